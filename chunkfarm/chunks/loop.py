"""What looks after the chunks all the time is made of: a loop that is started, woken, stopped, and never just ends."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

BREATH_SECONDS_MAX = 0.2
"""The rest after some work is as long as that took, but no longer: with a million chunks it serves all the while."""
LOOK_SECONDS = 0.5
"""Between two looks at whether users still wait."""
BUSY = "files are being read and written"


class Loop:
    """Does one step after the other, from `start` to `stop`. `doing` says what, for the log; `busy` whether users wait.

    Subclasses give `_step`, and may give `_begin`, which is done once before the first one.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        doing: str,
        *,
        start_seconds: float,
        failed_seconds: float,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clock = clock
        self._doing = doing
        self._start_seconds = start_seconds
        self._failed_seconds = failed_seconds
        self._busy = busy
        self._made_room = ""
        """Why it waits for users, while it does."""
        self._resting: Deferred[None] | None = None
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Begin, a little later: the process has other things to do at its start."""
        assert self._running is None, f"it is {self._doing} already"
        self._running = Deferred.fromCoroutine(self._run()).addErrback(self._ended)

    def stop(self) -> Deferred[None]:
        """End; fires when nothing is under way any more."""
        running, self._running = self._running, None
        if running is None:
            return succeed(None)
        running.cancel()
        return running

    async def _begin(self) -> None:
        """What comes before the first step. It is tried again if it fails."""

    async def _step(self) -> float:
        """Do what comes first; gives the seconds to rest, 0 if there may be more to do."""
        raise NotImplementedError

    def _wake(self) -> None:
        """Rest no longer: something has changed."""
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    async def _breathe(self, since: float) -> None:
        """Rest as long as the work since then has taken."""
        if (elapsed := self._clock.seconds() - since) > 0:
            await deferLater(self._clock, min(elapsed, BREATH_SECONDS_MAX))

    async def _make_room(self, seconds: float) -> None:
        """Let users go first, for so long at most: a farm that is never idle is looked after too."""
        until = self._clock.seconds() + seconds
        try:
            while self._busy() and self._clock.seconds() < until:
                self._made_room = BUSY
                await deferLater(self._clock, LOOK_SECONDS)
        finally:
            self._made_room = ""

    async def _run(self) -> None:
        await deferLater(self._clock, self._start_seconds)
        has_begun = False
        while True:
            try:
                if not has_begun:
                    await self._begin()
                    has_begun = True
                rest = await self._step()
            except CancelledError:
                raise
            except Exception:
                self._log.failure("while {doing}", doing=self._doing)
                rest = self._failed_seconds
            if rest > 0:
                await self._rest(rest)

    async def _rest(self, seconds: float) -> None:
        resting: Deferred[None] = Deferred()
        self._resting = resting
        call = self._clock.callLater(seconds, self._wake)
        try:
            await resting
        finally:
            self._resting = None
            if call.active():
                call.cancel()

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("while {doing}; nothing does so any more", failure, doing=self._doing)
