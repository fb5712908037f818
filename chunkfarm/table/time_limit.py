"""A limit of time for something that this process does, which counts only the time in which the process ran."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

PAUSE_SECONDS = 1.0
"""A timer that is later than that tells of a process that was paused."""


class TimeLimit:
    """Calls `over` once when so many seconds have passed; if the process was paused meanwhile, they begin anew."""

    def __init__(self, clock: IReactorTime, seconds: float, over: Callable[[], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._call = over
        self._begin()

    def _begin(self) -> None:
        self._timer: IDelayedCall = self._clock.callLater(self._seconds, self._over)
        self._due = self._timer.getTime()

    def _over(self) -> None:
        if self._clock.seconds() - self._due > PAUSE_SECONDS:
            self._begin()
        else:
            self._call()

    def end(self) -> None:
        """It is not needed any more."""
        if self._timer.active():
            self._timer.cancel()
