"""Keeps the chunks of the newest exports on this server, whoever owns them.

The servers that own a chunk by its digest may all be masters, and an export is for the day on which all of those are
lost. Nobody knows beforehand who will be left, so every server keeps all of it: then any one that is left has enough.
That is some 300 bytes a file. In a farm with more than `KEEPERS_MAX` servers only that many do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks import placement
from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.chunks.repair import Bucket
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.data_directory import write_atomically
from chunkfarm.errors import FarmError, Full, NotFound
from chunkfarm.exports.form import BadExport, Kept, read_head, read_kept
from chunkfarm.exports.maker import read_chunk
from chunkfarm.links.interface import HAVE_DIGESTS_MAX
from chunkfarm.model import DIGEST_LENGTH, MIB, Server
from chunkfarm.references import CannotTell
from chunkfarm.table.interface import Row

EXPORTS_FILE = "exports.json"
"""In the data directory: the row that names the exports. It saves a look at every chunk on the day it is needed."""
KEEPERS_MAX = 24
"""Servers that keep all of it, in different zones while there are enough. An hour in which every page of a table of a
million rows changes costs each of them 300 MB, which a thousand servers would rather not all fetch."""
KEEPING = b"\0" * DIGEST_LENGTH
"""Stands for all exports where it is computed which servers those are."""
START_SECONDS = 5.0
"""After a start of this process, in which others come up."""
ROUND_SECONDS = 3600.0
"""After so long it is looked anew whether all is here."""
AGAIN_SECONDS = 30.0
"""After so long, if something could not be had."""
RATE = 8 * MIB
"""Bytes a second that are fetched."""


def keepers(servers: Sequence[Server]) -> tuple[Server, ...]:
    """The servers that keep all of the exports."""
    return placement.owners(KEEPING, servers, KEEPERS_MAX)


class ExportKeeper:
    """This server's copies. `row` gives the value of the row that names the exports, as far as this server knows."""

    _log = Logger()

    def __init__(
        self,
        row: Callable[[], bytes],
        store: ChunkStore,
        transfer: Transfer,
        servers: Callable[[], Sequence[Server]],
        self_id: str,
        clock: IReactorTime,
        path: Path,
        run_in_thread: RunInThread,
    ) -> None:
        self._path = path
        self._run = run_in_thread
        self._row = row
        self._store = store
        self._transfer = transfer
        self._servers = servers
        self._self_id = self_id
        self._clock = clock
        self._bucket = Bucket(RATE, RATE)
        self._heads: dict[bytes, frozenset[bytes]] = {}
        """The pages of each export, by the digest of its head."""
        self._asked: dict[bytes, frozenset[bytes]] = {}
        """The same of the exports that somebody asked about, perhaps by a newer row."""
        self._known = b""
        """The row that `_heads` is of."""
        self._keeps = True
        self._said = ""
        self.missing = 0
        """Chunks of exports that should be here and are not."""
        self._woken = False
        self._resting: Deferred[None] | None = None
        self._running: Deferred[None] | None = None

    # What others may do.

    def start(self) -> None:
        """Begin to keep what belongs here."""
        assert self._running is None, "it runs already"
        self._running = Deferred.fromCoroutine(self._loop()).addErrback(self._ended)

    def stop(self) -> Deferred[None]:
        """End; fires when nothing is under way any more."""
        running, self._running = self._running, None
        if running is None:
            return succeed(None)
        running.cancel()
        return running

    def table_changed(self) -> None:
        """The row, or the servers, may have changed. Cheap."""
        if self._row() != self._known:
            self._wake()

    def guards(self, digest: bytes) -> bool:
        """Whether this server keeps that chunk for an export, although it may own it no more, or never did.

        Also yes while it is not known which chunks those are.
        """
        if self._row() != self._known:
            return True
        return self._keeps and self.is_exported(digest)

    def is_exported(self, digest: bytes) -> bool:
        """Whether that chunk is one of an export of which this server knows, so that many servers keep it."""
        return digest in self._heads or any(digest in pages for pages in self._heads.values())

    def used(self, rows: Sequence[Row]) -> Deferred[frozenset[bytes]]:
        """All chunks of the exports that these rows name, as whoever collects chunks must know.

        Fails with `CannotTell` while that cannot be found out.
        """
        return Deferred.fromCoroutine(self._used(rows))

    @property
    def kept(self) -> tuple[Kept, ...]:
        """The exports that are kept, the newest first."""
        value = self._row()
        try:
            return read_kept(value) if value else ()
        except BadExport:
            return ()

    # The loop.

    async def _loop(self) -> None:
        await deferLater(self._clock, START_SECONDS)
        while True:
            seconds = AGAIN_SECONDS
            self._woken = False
            try:
                await self._step()
                seconds, self._said = ROUND_SECONDS, ""
            except CancelledError:
                raise
            except FarmError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    self._log.warn("Chunks of an export of the table cannot be had now: {error}", error=error)
            except Exception:
                self._log.failure("while keeping exports of the table")
            if not self._woken:
                await self._rest(seconds)

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("while keeping exports of the table; nothing does so any more", failure)

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

    def _wake(self) -> None:
        self._woken = True
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    async def _step(self) -> None:
        """Look at the row, and fetch what is missing."""
        value = self._row()
        if value != self._known:
            await self._learn(value)
        servers = self._servers()
        self._keeps = any(server.id == self._self_id for server in keepers(servers))
        if not self._keeps:
            self.missing = 0
            return
        missing = await self._find_missing()
        self.missing = len(missing)
        failed: FarmError | None = None
        for digest in missing:
            try:
                await self._fetch(digest)
            except FarmError as error:
                # The others may be had.
                failed = error
            except OSError as error:
                # The disk may take the others.
                failed = FarmError(f"chunk {digest.hex()} cannot be stored here: {error.strerror or error}")
        if failed is not None:
            raise failed

    async def _fetch(self, digest: bytes) -> None:
        if (await self._store.space()).full:
            raise Full("this server's disk is full")
        data = await self._transfer.fetch(digest)
        delay = self._bucket.take(self._clock.seconds(), len(data))
        if delay > 0:
            await deferLater(self._clock, delay)
        await self._store.put(digest, data)
        self.missing -= 1

    async def _learn(self, value: bytes) -> None:
        """Read which chunks the exports are made of."""
        heads: dict[bytes, frozenset[bytes]] = {}
        for kept in read_kept(value) if value else ():
            known = self._heads.get(kept.digest)
            heads[kept.digest] = await self._pages_of(kept) if known is None else known
        self._heads, self._known = heads, value
        if value:
            try:
                await self._run(write_atomically, self._path, value)
            except OSError as error:
                raise Full(f"{self._path} cannot be written: {error.strerror}") from error

    async def _used(self, rows: Sequence[Row]) -> frozenset[bytes]:
        heads: dict[bytes, frozenset[bytes]] = {}
        try:
            for row in rows:
                for kept in read_kept(row.value):
                    known = self._asked.get(kept.digest, self._heads.get(kept.digest))
                    heads[kept.digest] = await self._pages_of(kept) if known is None else known
        except FarmError as error:
            raise CannotTell(f"it cannot be said which chunks exports of the table use: {error}") from error
        self._asked = heads
        return frozenset(heads).union(*heads.values())

    async def _pages_of(self, kept: Kept) -> frozenset[bytes]:
        try:
            return frozenset(read_head(await read_chunk(self._transfer, kept.digest)).digests)
        except NotFound as error:
            # No server has it: without its head an export is of no use to anybody.
            self._log.error("The export of revision {revision} is lost: {error}", revision=kept.revision, error=error)
            return frozenset()

    async def _find_missing(self) -> list[bytes]:
        digests = sorted(frozenset(self._heads).union(*self._heads.values()))
        missing = []
        for start in range(0, len(digests), HAVE_DIGESTS_MAX):
            batch = digests[start : start + HAVE_DIGESTS_MAX]
            missing += [
                digest for digest, length in zip(batch, await self._store.has(batch), strict=True) if not length
            ]
        return missing
