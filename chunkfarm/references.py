"""How many files use a chunk, told by servers that hold the rows: whoever gives chunks up asks before.

The answer comes from an index (`reference_index`) that follows the rows under `files/` at a leisurely pace, so that it
costs a commit nothing: many changes are taken at a time, and sooner only when somebody asks. An answer is as good as a
linearizable read: the table is asked first for its revision, and the index must have come up to that. A manifest in
levels is read from its chunks. As long as one cannot be read nothing is told of any chunk: it may be in there.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, TimeoutError, execute, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import Digests, RunInThread
from chunkfarm.durable import is_broken, is_full
from chunkfarm.errors import FarmError, NotFound, Waiting
from chunkfarm.links.interface import HAVE_DIGESTS_MAX
from chunkfarm.model import DIGEST_LENGTH, EXPORTS_KEY, FILES, File
from chunkfarm.reference_index import Place, ReferenceIndex
from chunkfarm.table.interface import Compacted, Event, ITable, Row, TableClosed, TableError

LAZY_SECONDS = 1.0
"""Between two looks at the changes, unless somebody asks: a busy farm then makes one write of a thousand changes."""
LOOK_SECONDS = 1.0
"""Between two looks at whether this server holds the table."""
RETRY_SECONDS = 5.0
"""After something went wrong: a full disk, a watch that ended."""
UNREAD_RETRY_SECONDS = 30.0
"""Until a manifest is tried again that could not be read: its holders are down, or its chunks are being mended."""
UNREADABLE_MAX = 1_000
"""Manifests that could not be read and are remembered, so that each has its pause."""
UNREAD_LIMIT_SECONDS = 600.0
"""For one manifest: of the longest there are thousands of chunks, read one after the other."""
UNREAD_AT_ONCE = 100
"""Manifests of which the names are in memory."""
ADDED_AT_ONCE = 10_000
"""Digests entered in one step: a tenth of a second, in which nobody else is answered."""
PATIENCE = 8.0
"""Seconds in which the index must come up to the table: whoever asks gives up after 10, and should hear why."""
UNWRITTEN_REVISIONS = 1_000
"""Changes of other rows after which it is written down how far the index is: fewer than the log keeps, so that a server
that starts anew goes on from there."""

P = ParamSpec("P")
T = TypeVar("T")


class CannotTell(Waiting):
    """Nobody can say now which chunks are used; the sentence says why. Nothing may be given up then."""


def exported_in(rows: Iterable[Row]) -> frozenset[bytes]:
    """The chunks that rows about exports name; raises `CannotTell` for a row that cannot be understood."""
    digests: set[bytes] = set()
    for row in rows:
        try:
            for export in json.loads(row.value)["exports"]:
                digests.update(map(_digest, export["digests"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise CannotTell(f"the row {row.key.decode('utf-8', 'replace')} cannot be understood") from None
    return frozenset(digests)


def _digest(text: Any) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != DIGEST_LENGTH:
        raise ValueError("a digest has another length")
    return digest


class References:
    """Follows the table on a server that holds its rows, and answers which chunks its files use.

    `table` is this server's, `holds_rows` whether it holds the rows now, `farm` names the farm and the line of its
    history. `started_at` is the revision of the rows when this process began. `digests_of` gives all chunks of a file,
    its manifest's own included, in levels. `exported` gives the chunks of the exports that rows name.
    """

    _log = Logger()

    def __init__(
        self,
        index: ReferenceIndex,
        table: ITable,
        holds_rows: Callable[[], bool],
        farm: Callable[[], str],
        started_at: int,
        digests_of: Callable[[File], Deferred[Sequence[Digests]]],
        clock: IReactorTime,
        run_in_thread: RunInThread,
        exported: Callable[[Sequence[Row]], Deferred[frozenset[bytes]]] = lambda rows: execute(exported_in, rows),
    ) -> None:
        self._index = index
        self._exported = exported
        self._table = table
        self._holds_rows = holds_rows
        self._farm = farm
        self._started_at = started_at
        self._digests_of = digests_of
        self._clock = clock
        self._run_in_thread = run_in_thread
        self._turn = DeferredLock()
        self._place: Place | None = None
        """How far the index is; None while it is not open."""
        self._reached = 0
        """Up to here nothing is missing, written down or not."""
        self._problem = ""
        """Why the index does not go on."""
        self._unreadable: dict[bytes, tuple[int, float, str]] = {}
        """Manifests that could not be read: the row's revision, when to try again, and why."""
        self._waiters: list[Deferred[None]] = []
        self._pause: Deferred[None] | None = None
        self._reading: Deferred[None] | None = None
        self._more_manifests = False
        """Whether there may be some that were not looked at yet."""
        self._asked = False
        self._running: list[Deferred[None]] = []

    # -- what others may do ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow the table, whenever this server holds it."""
        for work in (self._follow_always, self._read_manifests):
            running = Deferred.fromCoroutine(work())
            self._running.append(running.addErrback(self._ended))

    def stop(self) -> Deferred[None]:
        """End; fires when the index is closed."""
        running, self._running = self._running, []
        for one in running:
            one.cancel()
        ended = gatherResults(running, consumeErrors=True)
        return ended.addCallback(lambda _: self._do(self._index.close)).addCallback(lambda _: None)

    def uses(self, digests: Sequence[bytes]) -> Deferred[list[int]]:
        """How many files (and exports) use each of at most `HAVE_DIGESTS_MAX` chunks, at some moment after this call.

        A number is exact up to `reference_index.USES_COUNTED_MAX`. Fails with `CannotTell`, on a server that does not
        hold the table at once, else after `PATIENCE` seconds at the latest.
        """
        assert len(digests) <= HAVE_DIGESTS_MAX
        return Deferred.fromCoroutine(self._uses(tuple(digests), self._clock.seconds() + PATIENCE))

    def names(self, digest: bytes, limit: int) -> Deferred[list[str]]:
        """Names of files that use a chunk, `limit` at most, as far as this server knows by now; for people.

        Fails with `CannotTell` on a server that does not hold the table.
        """
        return Deferred.fromCoroutine(self._names(digest, limit))

    def files_with(self, keys: Sequence[bytes]) -> Deferred[tuple[frozenset[int], bool]]:
        """The files that use chunks whose digests begin with these keys, as far as this server knows by now.

        As numbers that stand for them in this index; the second part says whether some were left out. Fails with
        `CannotTell` on a server that does not hold the table.
        """
        return Deferred.fromCoroutine(self._files_with(tuple(keys)))

    def names_of(self, files: Sequence[int]) -> Deferred[list[str]]:
        """The names of files that such numbers stand for; fails as `files_with` does."""
        return Deferred.fromCoroutine(self._names_of(tuple(files)))

    def used_after(self, after: bytes, limit: int) -> Deferred[list[bytes]]:
        """The next chunks behind `after` that files use, in order, `limit` at most, as far as this server knows by now.

        Those of manifests that are not read yet are missing (`hindrance`). Fails with `CannotTell` on a server that
        does not hold the table, and as long as it has not looked at all rows.
        """
        return Deferred.fromCoroutine(self._used_after(after, limit))

    def still_used(self, digests: Sequence[bytes]) -> Deferred[list[bytes]]:
        """Those of these chunks that files use, as far as this server knows by now; fails as `used_after` does."""
        return Deferred.fromCoroutine(self._still_used(tuple(digests)))

    @property
    def hindrance(self) -> str:
        """Why nothing can be told now, in words; empty if it can, or need not on a server that does not hold rows."""
        if not self._holds_rows():
            return ""
        if self._problem:
            return self._problem
        if self._place is None or self._place.scanned is not None:
            return "the index of which chunks are used is being made"
        if self._unreadable and self._place.unread:
            return next(iter(self._unreadable.values()))[2]
        if self._place.unread:
            return f"{self._place.unread} long manifests are still to be read"
        return ""

    # -- answering ---------------------------------------------------------------------------------------

    async def _uses(self, digests: tuple[bytes, ...], deadline: float) -> list[int]:
        revision, exported = await self._read_exports(deadline)
        while True:
            await self._come_up_to(revision, deadline)
            counts = await self._ask_index(self._index.count, digests)
            # What has come since is as good, if it is complete.
            if self._covers(revision):
                return [count + (digest in exported) for digest, count in zip(digests, counts, strict=True)]

    async def _names(self, digest: bytes, limit: int) -> list[str]:
        self._must_hold()
        return await self._ask_index(self._index.names, digest, limit)

    async def _files_with(self, keys: tuple[bytes, ...]) -> tuple[frozenset[int], bool]:
        self._must_hold()
        return await self._ask_index(self._index.files_with, keys)

    async def _names_of(self, files: tuple[int, ...]) -> list[str]:
        self._must_hold()
        return await self._ask_index(self._index.names_of, files)

    async def _used_after(self, after: bytes, limit: int) -> list[bytes]:
        self._must_know_rows()
        return await self._ask_index(self._index.digests_after, after, limit)

    async def _still_used(self, digests: tuple[bytes, ...]) -> list[bytes]:
        self._must_know_rows()
        counts = await self._ask_index(self._index.count, digests)
        return [digest for digest, count in zip(digests, counts, strict=True) if count]

    def _must_know_rows(self) -> None:
        self._must_hold()
        if self._place is None or self._place.scanned is not None:
            raise CannotTell(self._problem or "the index of which chunks are used is being made")

    def _must_hold(self) -> None:
        if not self._holds_rows():
            raise CannotTell("this server does not hold the table")

    async def _read_exports(self, deadline: float) -> tuple[int, frozenset[bytes]]:
        """A revision at least as new as any that was committed before this call, and what is exported then."""
        self._must_hold()
        rows: list[Row] = []
        revision, after, more = 0, b"", True
        try:
            while more:
                reading = self._table.read(EXPORTS_KEY, after)
                page = await reading.addTimeout(max(0.0, deadline - self._clock.seconds()), self._clock)
                rows += page.rows
                revision = max(revision, page.revision)
                more = page.more and bool(page.rows)
                after = page.rows[-1].key if page.rows else after
            left = max(0.0, deadline - self._clock.seconds())
            return revision, await self._exported(rows).addTimeout(left, self._clock)
        except TimeoutError:
            raise CannotTell("it takes too long to ask the masters what is stored") from None
        except TableError as error:
            raise CannotTell(f"the table cannot be read now: {error}") from error

    async def _ask_index(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._place is None:
            raise CannotTell(self._problem or "the index of which chunks are used is being made")
        try:
            return await self._do(call, *args, **kwargs)
        except sqlite3.Error as error:
            raise CannotTell(f"the index of which chunks are used cannot be read: {error}") from error

    def _covers(self, revision: int) -> bool:
        place = self._place
        return place is not None and place.complete and self._reached >= max(revision, place.newest)

    async def _come_up_to(self, revision: int, deadline: float) -> None:
        while not self._covers(revision):
            self._must_hold()
            left = deadline - self._clock.seconds()
            if left <= 0:
                raise CannotTell(self.hindrance or "the index of which chunks are used is not up to date yet")
            changed: Deferred[None] = Deferred()
            self._waiters.append(changed)
            self._hurry()
            try:
                await changed.addTimeout(left, self._clock)
            except TimeoutError:
                continue

    def _hurry(self) -> None:
        """Somebody waits: look at the changes now."""
        self._asked = True
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.callback(None)

    # -- following ---------------------------------------------------------------------------------------

    async def _follow_always(self) -> None:
        while True:
            seconds = LOOK_SECONDS
            try:
                if self._holds_rows():
                    await self._open()
                    await self._follow()
            except CancelledError:
                raise
            except TableClosed:
                return
            except Compacted as error:
                await self._fell_behind(error.first_revision)
            except TableError as error:
                self._log.debug("The index of which chunks are used waits: {error}", error=error)
            except Exception as error:
                seconds = RETRY_SECONDS
                await self._failed(error)
            await deferLater(self._clock, seconds)

    async def _open(self) -> None:
        if self._place is None:
            self._take(await self._do(self._index.open, self._farm(), self._started_at))

    async def _fell_behind(self, first_revision: int) -> None:
        """Have all rows read again, and compared with what is known."""
        assert self._place is not None
        self._log.info("The index of which chunks are used fell behind, and is compared with all rows.")
        try:
            if first_revision <= max(self._reached, self._place.newest):
                # It may know of changes that never were: a revision does not say what it stands for any more.
                self._take(await self._do(self._index.discard))
            else:
                self._take(await self._do(self._index.begin_scan, self._farm(), 0))
        except (sqlite3.Error, OSError) as error:
            await self._failed(error)

    async def _failed(self, error: Exception) -> None:
        """The disk, mostly. This index is no reason for a server to stop, so it goes on without answers."""
        problem = f"the index of which chunks are used cannot be written: {error}"
        if problem != self._problem:
            self._problem = problem
            if is_full(error):
                self._log.error("The index of which chunks are used waits for room on the disk.")
            else:
                self._log.failure("while keeping the index of which chunks are used", Failure(error))
        if is_broken(error):
            self._place = None
            try:
                await self._do(self._index.discard)
            except (sqlite3.Error, OSError):
                self._log.failure("while making the index of which chunks are used anew")

    async def _follow(self) -> None:
        assert self._place is not None
        if self._place.scanned is not None:
            await self._scan()
        watch = await self._table.watch(FILES, self._reached)
        try:
            while True:
                self._asked = False
                batch = await watch.next()
                await self._take_changes(batch.events, batch.revision)
                if not self._asked and not self._waiters:
                    await self._rest()
        finally:
            watch.close()

    async def _scan(self) -> None:
        """Read all rows, or those that are left after a restart, and rest as long as each step took."""
        assert self._place is not None
        while (after := self._place.scanned) is not None:
            if not self._holds_rows():
                raise TableError("this server does not hold the table any more")
            since = self._clock.seconds()
            page = await self._table.read(FILES, after, stale=True)
            if not self._place.revision:
                self._take(await self._do(self._index.begin_scan, self._farm(), page.revision))
            self._take(await self._do(self._index.take_page, page.rows, page.revision, page.more))
            if (elapsed := self._clock.seconds() - since) > 0:
                await deferLater(self._clock, elapsed)

    async def _take_changes(self, events: tuple[Event, ...], revision: int) -> None:
        assert self._place is not None
        if events or revision >= self._place.revision + UNWRITTEN_REVISIONS:
            self._take(await self._do(self._index.take_changes, events, revision))
        self._reached = max(self._reached, revision)
        self._tell()

    async def _rest(self) -> None:
        """Wait a little, unless somebody asks."""
        pause: Deferred[None] = Deferred()
        self._pause = pause
        call = self._clock.callLater(LAZY_SECONDS, self._hurry)
        try:
            await pause
        finally:
            self._pause = None
            if call.active():
                call.cancel()

    def _take(self, place: Place) -> None:
        """The index is as far as that now."""
        self._place, self._reached, self._problem = place, place.revision, ""
        if place.unread:
            self._look_for_manifests()
        self._tell()

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(None)

    # -- manifests in levels -----------------------------------------------------------------------------

    async def _read_manifests(self) -> None:
        while True:
            self._more_manifests = False
            try:
                if self._place is not None and self._place.unread and self._holds_rows():
                    await self._read_each()
                else:
                    self._unreadable.clear()
            except CancelledError:
                raise
            except (sqlite3.Error, TableError) as error:
                # Whoever follows the table meets the same, and tells of it.
                self._log.debug("The manifests of long files are read later: {error}", error=error)
            except Exception:
                self._log.failure("while reading the manifests of long files")
            if not self._more_manifests:
                await self._wait_for_manifests()

    async def _wait_for_manifests(self) -> None:
        waiting: Deferred[None] = Deferred()
        self._reading = waiting
        call = self._clock.callLater(UNREAD_RETRY_SECONDS, self._look_for_manifests)
        try:
            await waiting
        finally:
            self._reading = None
            if call.active():
                call.cancel()

    def _look_for_manifests(self) -> None:
        self._more_manifests = True
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.callback(None)

    async def _read_each(self) -> None:
        after, seen = b"", set()
        while found := await self._do(self._index.unread, after, UNREAD_AT_ONCE):
            for key, revision in found:
                seen.add(key)
                before = self._unreadable.get(key)
                if before is None or before[0] != revision or before[1] <= self._clock.seconds():
                    await self._read_one(key, revision)
                if len(self._unreadable) >= UNREADABLE_MAX:
                    # Nothing can be told while there is one of them, so the others may wait.
                    return
            after = found[-1][0]
        # Of files that are gone nobody needs to know.
        self._unreadable = {key: why for key, why in self._unreadable.items() if key in seen}

    async def _read_one(self, key: bytes, revision: int) -> None:
        page = await self._table.read(key, limit=1, stale=True)
        row = page.rows[0] if page.rows else None
        if row is None or row.key != key or row.revision != revision:
            # The index is about to hear of the change.
            return
        name = key[len(FILES) :].decode("utf-8", "replace")
        try:
            file = _file_of(row)
            levels = await self._digests_of(file).addTimeout(UNREAD_LIMIT_SECONDS, self._clock)
        except CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, FarmError | TimeoutError):
                self._log.failure("while reading the manifest of {name}", name=name)
            why = f"the manifest of {name} cannot be read: {error}"
            if not self._unreadable:
                self._log.warn("Nobody can tell which chunks are used, because {why}.", why=why)
            self._unreadable[key] = (revision, self._clock.seconds() + UNREAD_RETRY_SECONDS, why)
            return
        for digests in levels:
            for start in range(0, len(digests), ADDED_AT_ONCE):
                part = digests[start : start + ADDED_AT_ONCE]
                self._note(await self._do(self._index.add, key, revision, part, last=False))
        self._note(await self._do(self._index.add, key, revision, (), last=True))
        self._unreadable.pop(key, None)

    def _note(self, place: Place) -> None:
        """Manifests are read beside all else, and change nothing but how many are left."""
        self._place = place
        self._tell()

    # -- small things ------------------------------------------------------------------------------------

    def _do(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run it on a thread, one call at a time. Who cancels this gives up the wait, and not the call."""
        outcome: Deferred[T] = Deferred()

        def done(result: Any) -> None:
            if not outcome.called:
                outcome.callback(result)

        self._turn.run(self._run_in_thread, call, *args, **kwargs).addBoth(done)
        return outcome

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("while following which chunks are used; nobody does so any more", failure)


def _file_of(row: Row) -> File:
    try:
        return File.from_row(row.key, row.value, row.revision)
    except Exception:
        raise NotFound("its row cannot be understood") from None
