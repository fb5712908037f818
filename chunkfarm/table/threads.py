"""A thread of its own for blocking work, so that the reactor thread never waits for a disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

T = TypeVar("T")


class RunBlocking(Protocol):
    """Run a call that may block, and fire with what it returns or raises; calls run one at a time, in order."""

    def __call__(self, call: Callable[[], T]) -> Deferred[T]: ...


class OneThread:
    """`RunBlocking` on one thread, which begins with the first call and ends with `stop`."""

    def __init__(self, reactor: Any, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(1, 1, name)
        self._stopped = False

    def __call__(self, call: Callable[[], T]) -> Deferred[T]:
        if not self._pool.started and not self._stopped:
            self._pool.start()
        return deferToThreadPool(self._reactor, self._pool, call)

    def stop(self) -> None:
        """End the thread once it has done what it was given; waits for that, so give it nothing long."""
        if self._pool.started and not self._stopped:
            self._pool.stop()
        self._stopped = True
