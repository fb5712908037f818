"""Makes exports of the table: one an hour on the first, and one when a person asks for it.

A server that holds the rows reads them as they were at one revision, in small steps with a rest after each, so that
neither users nor commits wait for it. What is cut out of them is stored as ordinary chunks, of which only those travel
that the last export did not have. The row `farm/export` names the newest heads; from then on every server fetches what
it lacks of them (`keeper`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import evolve, frozen
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.chunks.repair import Bucket
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.durable import is_broken
from chunkfarm.errors import Busy, FarmError, NotFound, ReadOnly
from chunkfarm.exports.form import (
    EXPORT_KEY,
    EXPORTS_KEPT,
    BadExport,
    Head,
    Kept,
    Pages,
    read_head,
    read_kept,
    write_kept,
)
from chunkfarm.model import KIB, MIB, FarmOptions, Server, timestamp
from chunkfarm.table.epochs import in_epoch, read_epoch
from chunkfarm.table.interface import Compare, Conflict, ITable, Put, Row, TableError
from chunkfarm.table.records import SnapshotMeta
from chunkfarm.table.snapshots import SnapshotError

INTERVAL = 3600.0
"""Seconds between two exports: names of the last hour are what the loss of all masters may cost."""
FIRST_AFTER = 300.0
"""Seconds after which a server that begins to lead makes one: a farm that changes its first all the time has other
things to do, and whoever led before may have been about to make one."""
RETRY_AFTER = 60.0
"""Seconds after one that failed, and the shortest time between two."""
URGENT_AFTER = 5.0
"""Seconds after a change that the loss of all masters must not undo: a key was taken away, or a server forgotten."""
LOOK_INTERVAL = 5.0
"""Seconds between two looks at whether one is due."""
STEP_BYTES = 64 * KIB
"""Of rows, that are read and cut in one go: a thread is busy with them for a millisecond or two."""
REST = 3.0
"""Times as long as a step took is the rest after it: a quarter of one processor is the most that an export takes."""
REST_MAX = 0.5
RATE = 6 * MIB
"""Bytes a second of new chunks: less than `transfer.BUSY_RATE`, so that it does not pass for the work of users."""
TRIES_MAX = 3
"""Times the row is tried to be written, against others who make an export as well."""
SPREAD_SECONDS = 60.0
"""How long it is waited until all servers have the new chunks, before it is told how many have."""
SPREAD_LOOK = 1.0
"""Seconds until the first look at that; each further one comes after twice the time."""
EVERY_COPY = 1_000_000
"""More copies than there are servers: all of them are asked."""


class RowsView(Protocol):
    """The rows as they were at one revision."""

    @property
    def meta(self) -> SnapshotMeta: ...

    def next_rows(self, size: int) -> Sequence[Row]: ...

    def close(self) -> None: ...


class HoldingTable(Protocol):
    """What of this server's part of the table is asked here, beside its rows."""

    @property
    def is_leader(self) -> bool: ...

    @property
    def has_quorum(self) -> bool: ...

    @property
    def holds_rows(self) -> bool: ...


@frozen(kw_only=True)
class Made:
    """What an export has come to."""

    kept: Kept
    pages: int
    new: int
    """Pages that the export before did not have. With none nothing has changed since, and that one is meant."""
    size: int
    """Bytes of all pages."""
    complete: int = 0
    """Servers that have all of it."""
    servers: int = 0
    """Servers that should, and are up."""


@frozen(kw_only=True)
class Progress:
    """How the export is that somebody asked for."""

    number: int
    running: bool
    rows: int = 0
    """Read so far, while it runs."""
    made: Made | None = None
    failed: str = ""


class ExportMaker:
    """Makes exports. `open_view` opens a view of this server's rows, and blocks; it may raise `sqlite3.Error`."""

    _log = Logger()

    def __init__(
        self,
        table: ITable,
        here: HoldingTable,
        open_view: Callable[[], RowsView],
        transfer: Transfer,
        keepers: Callable[[], Sequence[Server]],
        farm: Callable[[], FarmOptions],
        line: Callable[[], str],
        clock: IReactorTime,
        now: Callable[[], int],
        run_in_thread: RunInThread,
        urgent: Callable[[], bool] = lambda: False,
        on_broken: Callable[[Failure], None] = lambda failure: None,
    ) -> None:
        """`urgent` says whether something stands in the table and in no export that should be in one.

        `on_broken` is told that the disk failed on which the rows are.
        """
        self._on_broken = on_broken
        self._table = table
        self._here = here
        self._open_view = open_view
        self._transfer = transfer
        self._keepers = keepers
        self._farm = farm
        self._line = line
        self._clock = clock
        self._now = now
        self._run = run_in_thread
        self._urgent = urgent
        self._bucket = Bucket(RATE, RATE)
        self._due: float | None = None
        self._tried = float("-inf")
        """When the last one ended, well or not."""
        self._scanned = 0
        """The revision up to which nothing is missing in the newest export."""
        self._newest: tuple[Kept, Head] | None = None
        self._wanted = 0
        self._begun = 0
        self._rows = 0
        self._outcome = Progress(number=0, running=False)
        self._running: Deferred[None] | None = None
        self._loop: LoopingCall | None = None

    # What others may do.

    def start(self) -> None:
        """Begin to look whether an export is due."""
        self._loop = LoopingCall(self._look)
        self._loop.clock = self._clock
        self._loop.start(LOOK_INTERVAL, now=False)

    def stop(self) -> Deferred[None]:
        """End; fires when nothing is under way any more."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        running, self._running = self._running, None
        if running is None:
            return succeed(None)
        running.cancel()
        return running

    def begin(self) -> Progress:
        """Have an export made that begins after this; the number in the answer is what `progress` is asked with.

        Raises `ReadOnly` if this server does not hold the table, so that another one must be asked.
        """
        if not self._here.holds_rows:
            raise ReadOnly("this server does not hold the table: ask a master")
        self._wanted = self._begun + 1
        self._go_on()
        return self.progress(self._wanted)

    def progress(self, number: int) -> Progress:
        """How an export is that was begun; raises `NotFound` for a number that this process never gave."""
        if not 0 < number <= max(self._wanted, self._begun):
            raise NotFound(f"there is no export number {number}: this server was started anew since")
        if number <= self._outcome.number:
            return self._outcome
        return Progress(number=number, running=True, rows=self._rows)

    @property
    def last(self) -> Progress:
        """What the last one came to that this process made; its number is 0 if there was none."""
        return self._outcome

    # When.

    def _look(self) -> None:
        now = self._clock.seconds()
        if not self._here.is_leader or not self._here.has_quorum:
            self._due = None
        elif self._due is None:
            self._due = now + FIRST_AFTER
        elif self._urgent():
            self._due = min(self._due, max(now + URGENT_AFTER, self._tried + RETRY_AFTER))
        if self._due is not None and now >= self._due and self._running is None:
            self._wanted = max(self._wanted, self._begun + 1)
            self._go_on()

    def _go_on(self) -> None:
        if self._running is None and self._begun < self._wanted:
            self._begun += 1
            self._rows = 0
            running = Deferred.fromCoroutine(self._work(self._begun))
            if not running.called:
                self._running = running
            running.addErrback(self._ended).addCallback(self._rest)

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("while making an export of the table", failure)

    def _rest(self, _: None) -> None:
        if self._running is not None:
            self._running = None
            self._go_on()

    async def _work(self, number: int) -> None:
        try:
            made = await self._make()
        except CancelledError:
            raise
        except (FarmError, TableError, SnapshotError) as error:
            self._log.warn("No export of the table could be made: {error}", error=error)
            self._outcome = Progress(number=number, running=False, failed=str(error))
            self._put_off(RETRY_AFTER)
        except Exception as error:
            if is_broken(error):
                self._on_broken(Failure())
            self._outcome = Progress(number=number, running=False, failed="see the log of this server")
            self._put_off(RETRY_AFTER)
            raise
        else:
            self._outcome = Progress(number=number, running=False, made=made)
            self._put_off(INTERVAL)

    def _put_off(self, seconds: float) -> None:
        self._tried = self._clock.seconds()
        if self._due is not None:
            self._due = self._tried + seconds

    # Making.

    async def _make(self) -> Made:
        # Linearizable, so whatever was committed before somebody asked for this is in the rows here afterwards.
        kept, _ = await self._read_row()
        before = await self._head_of(kept[0]) if kept else None
        made = await self._export(kept, before)
        complete, servers, lost = await self._spread(made)
        if lost and before is not None:
            # What the last one was said to have is not there.
            self._log.warn("Chunks of the last export are lost, so the whole table is exported anew.")
            self._newest, self._scanned = None, 0
            made = await self._export(kept, None)
            complete, servers, _ = await self._spread(made)
        return evolve(made, complete=complete, servers=servers)

    async def _read_row(self) -> tuple[tuple[Kept, ...], int]:
        """The exports that are kept, the newest first, and the revision of the row."""
        for row in (await self._table.read(EXPORT_KEY, limit=1)).rows:
            if row.key == EXPORT_KEY:
                try:
                    return read_kept(row.value), row.revision
                except BadExport:
                    self._log.error("The row of exports cannot be read, and is made anew.")
                    return (), row.revision
        return (), 0

    async def _head_of(self, kept: Kept) -> Head | None:
        """The head of an export; None if it cannot be had, so that all is stored anew."""
        if self._newest is None or self._newest[0] != kept:
            try:
                self._newest = kept, read_head(await read_chunk(self._transfer, kept.digest))
            except CancelledError:
                raise
            except FarmError as error:
                self._log.warn("The head of the last export cannot be had: {error}", error=error)
                return None
        return self._newest[1]

    async def _export(self, kept: tuple[Kept, ...], before: Head | None) -> Made:
        began, epoch = self._now(), await read_epoch(self._table)
        pages = Pages(frozenset(before.digests) if before is not None else frozenset())
        new = 0
        view = await self._run(self._open_view)
        meta = view.meta
        try:
            if before is not None and meta.index <= self._scanned:
                return _same(kept[0], before)
            last = False
            while not last:
                since = self._clock.seconds()
                found, last = await self._run(_step, view, pages)
                self._rows = pages.rows
                for digest, page in found:
                    await self._store(page, digest)
                    new += 1
                await self._breathe(since)
        finally:
            # It waits for whoever reads the journal, so nobody waits for it here.
            self._run(view.close).addErrback(lambda failure: self._log.failure("while closing a view", failure))
        if before is not None and pages.digests == before.pages:
            self._scanned = meta.index
            return _same(kept[0], before)
        options = self._farm()
        head = Head(
            farm=options.id,
            name=options.name,
            revision=meta.index,
            term=meta.term,
            line=self._line(),
            time=began,
            rows=pages.rows,
            size=pages.size,
            pages=pages.digests,
        )
        receipt = await self._transfer.write(head.to_bytes())
        mine = Kept(revision=head.revision, time=began, rows=head.rows, digest=receipt.digest)
        written = await self._write_row(mine, epoch, (receipt.digest, *head.digests))
        # The row itself is in no export.
        self._scanned = written if written == meta.index + 1 else meta.index
        self._newest = mine, head
        self._log.info(
            "Exported the table at revision {revision}: {rows} rows in {pages} chunks, {new} of them new.",
            revision=head.revision,
            rows=head.rows,
            pages=len(head.digests),
            new=new,
        )
        return Made(kept=mine, pages=len(head.digests), new=new, size=head.size)

    async def _store(self, page: bytes, digest: bytes) -> None:
        delay = self._bucket.take(self._clock.seconds(), len(page))
        if delay > 0:
            await deferLater(self._clock, delay)
        await self._transfer.write(page, digest)

    async def _breathe(self, since: float) -> None:
        """Rest after a step, longer than it took."""
        if (elapsed := self._clock.seconds() - since) > 0:
            await deferLater(self._clock, min(REST * elapsed, REST_MAX))

    async def _write_row(self, mine: Kept, epoch: int, digests: Sequence[bytes]) -> int:
        """Have the row name the export, whose chunks were stored since that epoch; fires with the revision."""
        for _ in range(TRIES_MAX):
            kept, revision = await self._read_row()
            exports = sorted({mine, *kept}, key=lambda one: one.revision, reverse=True)[:EXPORTS_KEPT]
            compares = (Compare(EXPORT_KEY, "==", revision), in_epoch(epoch))
            try:
                return await self._table.transact(compares, (Put(EXPORT_KEY, write_kept(exports)),))
            except Conflict:
                newer = await read_epoch(self._table)
            if newer != epoch:
                # It took so long that a server may be giving up what it had promised to keep.
                held, epoch = await self._transfer.hold(digests), newer
                if not all(held.values()):
                    self._newest, self._scanned = None, 0
                    raise Busy("chunks of the export were given up before it was complete: it is made anew")
        raise Busy("others make exports of the table too: try again")

    async def _spread(self, made: Made) -> tuple[int, int, bool]:
        """How many servers have all of it, how many should, and whether nobody has some chunk.

        Waits a while for those that fetch it just now.
        """
        assert self._newest is not None
        digests = [made.kept.digest, *self._newest[1].digests]
        until, pause = self._clock.seconds() + SPREAD_SECONDS, SPREAD_LOOK
        while True:
            held = await self._transfer.have(digests, enough=EVERY_COPY)
            complete = frozenset.intersection(*(frozenset(holders) for holders in held.values()))
            keepers = {server.id for server in self._keepers() if server.state == "up" and not server.full}
            lost = not all(held.values())
            if lost or keepers <= complete or self._clock.seconds() + pause > until:
                return len(complete), len(keepers | complete), lost
            await deferLater(self._clock, pause)
            pause *= 2


def _same(kept: Kept, head: Head) -> Made:
    """Nothing has changed since that export."""
    return Made(kept=kept, pages=len(head.digests), new=0, size=head.size)


def _step(view: RowsView, pages: Pages) -> tuple[list[tuple[bytes, bytes]], bool]:
    # On a thread.
    rows = view.next_rows(STEP_BYTES)
    return pages.take(rows, last=not rows), not rows


async def read_chunk(transfer: Transfer, digest: bytes) -> bytes:
    """All bytes of a chunk, from wherever it is; fails as `Transfer.open` does."""
    source = await transfer.open(digest)
    try:
        pieces = []
        while (piece := await source.next()) is not None:
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        source.close()


def export_pairs(kept: Sequence[Kept], last: Progress, missing: int, now: int) -> list[tuple[str, str]]:
    """What STATUS tells of exports: the newest, what this server lacks of them, and how its own last one went.

    `now` is in ms.
    """
    if not kept:
        pairs = [("export", "none yet")]
    else:
        newest = kept[0]
        pairs = [
            ("export", f"{timestamp(newest.time)} of revision {newest.revision}"),
            ("export-age", str(max(0, now - newest.time) // 1000)),
            ("export-rows", str(newest.rows)),
            ("export-missing-here", str(missing)),
        ]
    if last.made is not None:
        pairs.append(("export-complete-on", f"{last.made.complete} of {last.made.servers} servers"))
    if last.failed:
        pairs.append(("export-failed", last.failed))
    return pairs
