"""Brings something of this server up to date when the rows say so: one try at a time, and again if it failed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed

UNANSWERED = (LinkFailed, commands.NotFirst, commands.NotNow, commands.BadRequest)
"""What a question to another server may end with, and a later one may not."""


@define(eq=False)
class Following:
    """`is_due` says whether there is anything to do, `bring_up_to_date` does it, `failed` logs why it could not."""

    _is_due: Callable[[], bool]
    _bring_up_to_date: Callable[[], Coroutine[Deferred[Any], Any, None]]
    _failed: Callable[[Failure], None]
    _retry_seconds: float
    _clock: IReactorTime
    _busy: Deferred[None] | None = field(default=None, init=False)
    _again: IDelayedCall | None = field(default=None, init=False)
    _started: bool = field(default=False, init=False)

    def start(self) -> None:
        """Look now, and from now on."""
        self._started = True
        self.look()

    def stop(self) -> Deferred[None]:
        """Look no more; fires when nothing is under way."""
        self._started = False
        if self._again is not None and self._again.active():
            self._again.cancel()
        busy, self._busy = self._busy, None
        if busy is None:
            return succeed(None)
        busy.cancel()
        return busy

    def look(self) -> None:
        """The rows may be others."""
        waits = self._again is not None and self._again.active()
        if not self._started or self._busy is not None or waits or not self._is_due():
            return
        busy = Deferred.fromCoroutine(self._bring_up_to_date())
        if not busy.called:
            self._busy = busy
        busy.addErrback(self._try_again).addCallback(self._rest)

    def _rest(self, _: object) -> None:
        self._busy = None
        self.look()

    def _try_again(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        self._failed(failure)
        if self._started:
            self._again = self._clock.callLater(self._retry_seconds, self.look)
