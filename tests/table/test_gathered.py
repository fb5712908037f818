"""Several calls, one way to the other thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.threads import Gathered

T = TypeVar("T")


class GatheredTests(SynchronousTestCase):
    """Questions that come together."""

    def test_one_way(self) -> None:
        """What is asked for together goes together; each gets its own answer or error."""
        ways: list[object] = []

        def run(call: Callable[[], T]) -> Deferred[T]:
            ways.append(call)
            return execute(call)

        clock = Clock()
        gathered = Gathered(run, clock)
        first, second, third = gathered(lambda: 1), gathered(lambda: 1 // 0), gathered(lambda: 3)
        self.assertNoResult(first)
        clock.advance(0)
        assert self.successResultOf(first) == 1
        self.failureResultOf(second, ZeroDivisionError)
        assert self.successResultOf(third) == 3
        later = gathered(lambda: 4)
        clock.advance(0)
        assert self.successResultOf(later) == 4
        assert len(ways) == 2
