"""Keeps `farm.join` beside `config.ini` as the farm's join key, which is made anew when a server is forgotten.

Every server sees in the row `farm/join` which key is the right one, by its digest, and asks for the key itself only if
its file has another. Where there is no file none is made: a person has taken it away.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.following import UNANSWERED, Following
from chunkfarm.table.interface import TableError
from chunkfarm.trust.private import NoSuchFile, TrustError
from chunkfarm.trust.proof import digest_of_key, read_join_key, write_join_key

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
    _following: Following = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._following = Following(self._is_due, self._bring_up_to_date, self._failed, RETRY_SECONDS, self._clock)

    def start(self) -> None:
        """Look now, and from now on."""
        self._following.start()

    def stop(self) -> Deferred[None]:
        """Look no more; fires when nothing is under way."""
        return self._following.stop()

    def table_changed(self) -> None:
        """The row may be another."""
        self._following.look()

    def _is_due(self) -> bool:
        return self._wanted() not in ("", self._done)

    def _failed(self, failure: Failure) -> None:
        if failure.check(TrustError, TableError, OSError, *UNANSWERED):
            self._log.warn("{path} cannot be renewed yet: {reason}", path=str(self._path), reason=str(failure.value))
        else:
            self._log.failure("while renewing {path}", failure, path=str(self._path))

    async def _bring_up_to_date(self) -> None:
        wanted = self._wanted()
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
