"""Keeps `farm.join` beside `config.ini` as the farm's join key, which is made anew when a server is forgotten.

Every server sees in the row `farm/join` which key is the right one, by its digest, and asks for the key itself only if
its file has another. Where there is no file none is made: a person has taken it away.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed
from chunkfarm.table.interface import TableError
from chunkfarm.trust.private import NoSuchFile, TrustError
from chunkfarm.trust.proof import digest_of_key, read_join_key, write_join_key

UNANSWERED = (LinkFailed, commands.NotFirst, commands.NotNow, commands.BadRequest)
RETRY_SECONDS = 10.0
"""After a try that failed: the first may be changing, or a disk be full."""


@define(eq=False)
class JoinFile:
    """Looks at each change of the row. `wanted` is the digest that it has, empty while there is none.

    `ask` gives the key from whoever has it.
    """

    _log = Logger()

    _path: Path
    _wanted: Callable[[], str]
    _ask: Callable[[], Deferred[bytes]]
    _clock: IReactorTime
    _run_in_thread: RunInThread
    _done: str = field(default="", init=False)
    _busy: Deferred[None] | None = field(default=None, init=False)
    _again: IDelayedCall | None = field(default=None, init=False)
    _started: bool = field(default=False, init=False)

    def start(self) -> None:
        """Look now, and from now on."""
        self._started = True
        self.table_changed()

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

    def table_changed(self) -> None:
        """The row may be another."""
        waits = self._again is not None and self._again.active()
        if not self._started or self._busy is not None or waits or self._wanted() in ("", self._done):
            return
        busy = Deferred.fromCoroutine(self._bring_up_to_date(self._wanted()))
        if not busy.called:
            self._busy = busy
        busy.addErrback(self._failed).addCallback(self._rest)

    def _rest(self, _: object) -> None:
        self._busy = None
        self.table_changed()

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if failure.check(TrustError, TableError, OSError, *UNANSWERED):
            self._log.warn("{path} cannot be renewed yet: {reason}", path=str(self._path), reason=str(failure.value))
        else:
            self._log.failure("while renewing {path}", failure, path=str(self._path))
        if self._started:
            self._again = self._clock.callLater(RETRY_SECONDS, self.table_changed)

    async def _bring_up_to_date(self, wanted: str) -> None:
        try:
            key = await self._run_in_thread(read_join_key, self._path)
        except NoSuchFile:
            self._done = wanted
            return
        if digest_of_key(key) != wanted:
            new = await self._ask()
            if digest_of_key(new) != wanted:
                raise TrustError("the key that was given is not the one that the table names")
            await self._run_in_thread(lambda: write_join_key(self._path, new, replace=True))
            self._log.info("The join key has changed; {path} has the new one.", path=str(self._path))
        self._done = wanted
