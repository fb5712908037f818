"""A thread of its own for blocking work, so that the reactor thread never waits for a disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from chunkfarm.threads import Threads

T = TypeVar("T")


class RunBlocking(Protocol):
    """Run a call that may block, and fire with what it returns or raises; calls run one at a time, in order."""

    def __call__(self, call: Callable[[], T]) -> Deferred[T]: ...


class Gathered:
    """`RunBlocking` that gives what is asked for within one turn of the reactor to another one as a single call.

    Many questions that come together, each of a few microseconds, then wake the other thread once.
    """

    def __init__(self, run: RunBlocking, clock: IReactorTime) -> None:
        self._run = run
        self._clock = clock
        self._calls: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def __call__(self, call: Callable[[], T]) -> Deferred[T]:
        result: Deferred[T] = Deferred()
        if not self._calls:
            self._clock.callLater(0, self._give)
        self._calls.append((result, call))
        return result

    def _give(self) -> None:
        calls, self._calls = self._calls, []

        def run() -> list[tuple[Deferred[Any], Any]]:
            return [(result, _outcome(call)) for result, call in calls]

        self._run(run).addCallback(self._fire)

    def _fire(self, outcomes: list[tuple[Deferred[Any], Any]]) -> None:
        for result, outcome in outcomes:
            result.callback(outcome)


def _outcome(call: Callable[[], Any]) -> Any:
    """What the call returns, or the failure with which it ends."""
    try:
        return call()
    except BaseException:
        return Failure()


class OneThread:
    """`RunBlocking` on one thread, which begins with the first call and ends with `stop`."""

    def __init__(self, reactor: Any, name: str, threads: Callable[[Any, int, str], Threads] = Threads) -> None:
        self._threads = threads(reactor, 1, name)

    def __call__(self, call: Callable[[], T]) -> Deferred[T]:
        return self._threads.run(call)

    def stop(self) -> None:
        """End the thread once it has done what it was given; waits for that, so give it nothing long."""
        self._threads.stop()
