"""A thread of its own for blocking work, so that the reactor thread never waits for a disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred

from chunkfarm.threads import Threads

T = TypeVar("T")


class RunBlocking(Protocol):
    """Run a call that may block, and fire with what it returns or raises; calls run one at a time, in order."""

    def __call__(self, call: Callable[[], T]) -> Deferred[T]: ...


class OneThread:
    """`RunBlocking` on one thread, which begins with the first call and ends with `stop`."""

    def __init__(self, reactor: Any, name: str, threads: Callable[[Any, int, str], Threads] = Threads) -> None:
        self._threads = threads(reactor, 1, name)

    def __call__(self, call: Callable[[], T]) -> Deferred[T]:
        return self._threads.run(call)

    def stop(self) -> None:
        """End the thread once it has done what it was given; waits for that, so give it nothing long."""
        self._threads.stop()
