"""Limits of time that cost no timer of their own, for what happens many hundred times a second."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

PAUSE_SECONDS = 1.0
"""A timer that is later than that tells of a process that was paused."""

T = TypeVar("T")


class TimeLimit:
    """Calls `over` when something that has begun has not ended for so many seconds.

    Only the time counts in which the process ran: if it was paused meanwhile, the seconds begin anew.
    """

    def __init__(self, clock: IReactorTime, seconds: float, over: Callable[[], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._over = over
        self._numbers = count()
        self._began: dict[int, float] = {}
        """When it was that each thing under way began, the oldest first."""
        self._timer: IDelayedCall | None = None
        self._due = 0.0

    def begin(self) -> int:
        """Something begins now; returns a number by which its end is told."""
        number = next(self._numbers)
        self._began[number] = self._clock.seconds()
        if self._timer is None:
            self._wait(self._began[number] + self._seconds)
        return number

    def end(self, number: int) -> None:
        """It has ended. The timer stays: it looks later whether something else is under way."""
        del self._began[number]

    def close(self) -> None:
        """Nothing is limited any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, due: float) -> None:
        self._due = due
        self._timer = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        if now - self._due > PAUSE_SECONDS:
            self._began = dict.fromkeys(self._began, now)
        if not self._began:
            return
        due = next(iter(self._began.values())) + self._seconds
        if now < due:
            self._wait(due)
        else:
            self._over()


@frozen(eq=False)
class _Limited:
    due: float
    going: Deferred[Any]


class TimeLimits:
    """The same as `Deferred.addTimeout` for many Deferreds at once, with one timer for all."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._under_way: dict[_Limited, None] = {}
        self._timer: IDelayedCall | None = None
        self._due = 0.0
        self._closed = False

    def limit(self, going: Deferred[T], seconds: float) -> Deferred[T]:
        """The same Deferred, cancelled after so many seconds; then it fails with `TimeoutError`."""
        one = _Limited(self._clock.seconds() + seconds, going)
        self._under_way[one] = None
        if self._timer is None or one.due < self._due:
            self._wait(one.due)
        return going.addBoth(self._ended, one)

    def close(self) -> None:
        """What is under way ends by itself, from here on."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ended(self, result: T | Failure, one: _Limited) -> T | Failure:
        if one in self._under_way:
            del self._under_way[one]
        elif isinstance(result, Failure) and result.check(CancelledError):
            return Failure(TimeoutError("no answer in time"))
        return result

    def _wait(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._closed:
            self._due = due
            self._timer = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        for one in [one for one in self._under_way if one.due <= now]:
            if self._under_way.pop(one, one) is None:
                one.going.cancel()
        if self._under_way and self._timer is None:
            self._wait(min(one.due for one in self._under_way))
