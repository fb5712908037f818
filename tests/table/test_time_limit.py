"""Limits of time that share a timer."""

from __future__ import annotations

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.time_limit import TimeLimit, TimeLimits

LIMIT = 10.0


class TimeLimitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.over = 0
        self.limit = TimeLimit(self.clock, LIMIT, self._count)

    def _count(self) -> None:
        self.over += 1

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.5] * round(seconds / 0.5))

    def test_too_long(self) -> None:
        """What takes as long as the limit is over, however often other things began and ended before."""
        for _ in range(7):
            number = self.limit.begin()
            self.wait(3)
            self.limit.end(number)
        self.limit.begin()
        self.wait(LIMIT - 1)
        assert self.over == 0
        self.wait(1)
        assert self.over == 1

    def test_several(self) -> None:
        """Of several things under way the oldest counts."""
        first = self.limit.begin()
        self.wait(6)
        self.limit.begin()
        self.limit.end(first)
        self.wait(9)
        assert self.over == 0
        self.wait(1)
        assert self.over == 1

    def test_paused(self) -> None:
        """The time in which the process did not run does not count."""
        self.limit.begin()
        self.clock.advance(3600)
        assert self.over == 0
        self.wait(LIMIT)
        assert self.over == 1

    def test_one_timer(self) -> None:
        """A thousand writes cost one timer, and none is left after the end."""
        for _ in range(1000):
            self.limit.end(self.limit.begin())
        assert len(self.clock.getDelayedCalls()) == 1
        self.limit.close()
        assert self.clock.getDelayedCalls() == []


class TimeLimitsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.limits = TimeLimits(self.clock)

    def limit(self, seconds: float) -> Deferred[str]:
        return self.limits.limit(Deferred(), seconds)

    def test_each_in_its_time(self) -> None:
        """Each fails after its own time, in whatever order they began; an answer in time is an answer."""
        long, short, answered = self.limit(5), self.limit(2), self.limit(2)
        answered.callback("yes")
        self.clock.advance(2)
        self.failureResultOf(short, TimeoutError)
        self.assertNoResult(long)
        self.clock.advance(3)
        self.failureResultOf(long, TimeoutError)
        assert self.successResultOf(answered) == "yes"
        assert self.clock.getDelayedCalls() == []

    def test_one_timer(self) -> None:
        """Many share a timer, which goes with the limits."""
        many = [self.limit(5) for _ in range(100)]
        assert len(self.clock.getDelayedCalls()) == 1
        self.limits.close()
        assert self.clock.getDelayedCalls() == []
        self.limit(5).callback("late")
        assert self.clock.getDelayedCalls() == []
        for one in many:
            self.assertNoResult(one)

    def test_cancelled(self) -> None:
        """Who is cancelled by somebody else hears that, and not of a limit."""
        one = self.limit(5)
        one.addErrback(lambda failure: type(failure.value).__name__)
        one.cancel()
        assert self.successResultOf(one) == "CancelledError"
