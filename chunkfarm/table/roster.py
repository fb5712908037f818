"""The servers and the farm's options as this server knows them, at hand without asking anybody.

A roster follows two prefixes of the table, `servers/` and `farm/`, which are all that a server without a copy
of the table may watch. The two watches are separate streams of one history, so a change of `farm/` is held
back until the rows of `servers/` are at least as new: whoever sees a generation sees the servers it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.membership import in_order, masters
from chunkfarm.model import (
    BARRED,
    EPOCH_KEY,
    FARM,
    GENERATION_KEY,
    JOIN_DIGEST_KEY,
    KEYS_CHANGED_KEY,
    OPTIONS_KEY,
    SERVERS,
    FarmOptions,
    Server,
)
from chunkfarm.table.interface import Batch, Compacted, ITable, IWatch, Row, TableClosed, TableError, Unavailable
from chunkfarm.table.registry import barred_key

RETRY_SECONDS_FIRST = 0.25
"""A watch mostly ends because the server that served it went away: another is found at once."""
RETRY_SECONDS_MAX = 5.0
"""A farm without a majority is asked this often; more would only fill its ports."""
CATCH_UP_SECONDS = 0.2
"""How long a change of `farm/` waits for the watch of `servers/` before the rows are read instead."""


@define(eq=False)
class _Part:
    """The rows of one prefix, and how new they are known to be."""

    prefix: bytes
    rows: dict[bytes, Row] = field(factory=dict)
    revision: int = 0
    known: bool = False
    ahead: bool = False
    """Whether what is here may be of a history that a takeover by hand has cut off, so that an older reading counts."""

    def replace(self, rows: Iterable[Row], revision: int) -> None:
        """Take a whole reading of this prefix, unless newer changes are here already."""
        if revision >= self.revision:
            self.rows = {row.key: row for row in rows if row.key.startswith(self.prefix)}
            self.revision = revision
            self.known = True

    def apply(self, batch: Batch) -> None:
        """Apply changes, except those that the last reading had already."""
        for event in batch.events:
            present = self.rows.get(event.key)
            # The later pages of a long reading are newer than its first one, which gave our revision.
            if event.revision <= self.revision or (present and present.revision >= event.revision):
                continue
            if event.kind == "DEL":
                self.rows.pop(event.key, None)
            else:
                self.rows[event.key] = Row(event.key, event.value, event.revision)
        self.revision = max(self.revision, batch.revision)


@define(eq=False)
class Roster:
    """Follows `servers/` and `farm/`; whoever wants to know of changes subscribes.

    Subscribers are called once for each batch of changes, after it has been taken in as a whole.
    """

    _log = Logger()

    _table: ITable
    _clock: IReactorTime
    servers: tuple[Server, ...] = field(default=(), init=False)
    """Live ones first, oldest first in each part."""
    options: FarmOptions = field(factory=FarmOptions, init=False)
    generation: int = field(default=0, init=False)
    """0: not known yet."""
    epoch: int = field(default=0, init=False)
    """The farm's epoch (see `table.epochs`), which may have moved on; 0: none is known."""
    barred: frozenset[str] = field(default=frozenset(), init=False)
    """Ids of servers that were forgotten."""
    join_digest: str = field(default="", init=False)
    """Of the join key; empty as long as it is the one that the farm was founded with."""
    _servers: _Part = field(factory=lambda: _Part(SERVERS), init=False)
    _farm: _Part = field(factory=lambda: _Part(FARM), init=False)
    _read_rows: dict[bytes, tuple[Row, Server]] = field(factory=dict, init=False)
    _held: list[Batch] = field(factory=list, init=False)
    _catching_up: IDelayedCall | None = field(default=None, init=False)
    _watchers: list[Callable[[], None]] = field(factory=list, init=False)
    _running: list[Deferred[None]] = field(factory=list, init=False)
    _following: dict[_Part, Deferred[None]] = field(factory=dict, init=False)
    """What follows each part; empty once it is stopped."""
    _started: Deferred[None] | None = field(default=None, init=False)

    @property
    def revision(self) -> int:
        """Every change up to here is in `servers`, `options` and `generation`."""
        return min(self._servers.revision, self._farm.revision)

    @property
    def revisions(self) -> tuple[int, int]:
        """How new `servers` is, and everything else: a row that goes may be seen before the word that it is barred."""
        return self._servers.revision, self._farm.revision

    @property
    def keys_revision(self) -> int:
        """Of the last change of any key."""
        row = self._farm.rows.get(KEYS_CHANGED_KEY)
        return row.revision if row is not None else 0

    @property
    def first(self) -> Server | None:
        """The most senior live master, or None while none is known."""
        line = masters(self.servers)
        return line[0] if line else None

    def server(self, server_id: str) -> Server | None:
        """One server by id, or None."""
        return next((server for server in self.servers if server.id == server_id), None)

    def farm_row(self, key: bytes) -> Row | None:
        """One row under `farm/`, or None."""
        return self._farm.rows.get(key)

    def barred_key(self, server_id: str) -> str:
        """The digest of the public key of a server that was forgotten; empty if there is none."""
        row = self._farm.rows.get(BARRED + server_id.encode())
        return barred_key(row.value) if row is not None else ""

    def start(self) -> Deferred[None]:
        """Read both prefixes and follow them; fires when both have been read once.

        While nothing answers it tries again, and says so in the log. Fails with `TableClosed` if the table
        is closed meanwhile. Cancelling it stops the roster.
        """
        assert not self._running, "the roster runs already"
        started: Deferred[None] = Deferred(lambda _: self._cancel_all())
        self._started = started
        for part in (self._servers, self._farm):
            self._begin(part)
        return started

    def stop(self) -> Deferred[None]:
        """Follow no more. What was known stays readable. May be called at any time, also twice."""
        if self._started is not None:
            # Whoever waits for the start learns that there will be none.
            self._started.cancel()
        ended = list(self._running)
        self._cancel_all()
        return gatherResults(ended, consumeErrors=True).addCallback(lambda _: None)

    def adopt(self, rows: Iterable[Row], revision: int = 0) -> None:
        """Take rows received from another server as the first state, before the table is there.

        `revision` is that of the page they came in; a prefix with no rows among them stays as it is, and so
        does one whose rows here are newer.
        """
        whole = tuple(rows)
        newest = revision or max((row.revision for row in whole), default=0)
        for part in (self._servers, self._farm):
            if any(row.key.startswith(part.prefix) for row in whole):
                part.replace(whole, newest)
        self._publish()

    def leave_line(self, index: int) -> None:
        """The farm went on without what this server has heard of after `index`: read all anew, if it heard of any."""
        self._held.clear()
        for part, following in list(self._following.items()):
            if part.revision > index:
                part.ahead = True
                following.cancel()
                self._begin(part)

    def refresh(self) -> Deferred[None]:
        """Read both prefixes anew, linearizably; fails with `Unavailable` when nobody can say."""
        return Deferred.fromCoroutine(self._refresh())

    def subscribe(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher` after each batch of changes; returns what ends the subscription."""
        self._watchers.append(watcher)

        def end() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return end

    def when(self, predicate: Callable[[Roster], bool]) -> Deferred[None]:
        """Fire once `predicate(self)` holds, at once if it does now. May be cancelled."""
        waiting: Deferred[None] = Deferred(lambda _: end())

        def look() -> None:
            if predicate(self):
                end()
                waiting.callback(None)

        end = self.subscribe(look)
        look()
        return waiting

    # --- running ---------------------------------------------------------------------------------------

    def _begin(self, part: _Part) -> None:
        following = Deferred.fromCoroutine(self._follow(part))
        self._following[part] = following
        self._run(following)

    def _run(self, running: Deferred[None]) -> None:
        self._running.append(running)
        running.addErrback(self._ended)
        running.addBoth(lambda _: self._running.remove(running))

    def _ended(self, failure: Failure) -> None:
        if self._started is not None and failure.check(TableClosed):
            started, self._started = self._started, None
            started.errback(failure)
        elif not failure.check(CancelledError, TableClosed):
            self._log.failure("while following the table", failure)

    def _cancel_all(self) -> None:
        self._started = None
        self._following.clear()
        if self._catching_up is not None:
            self._catching_up.cancel()
            self._catching_up = None
        for running in list(self._running):
            running.cancel()

    # --- following -------------------------------------------------------------------------------------

    async def _follow(self, part: _Part) -> None:
        delay = RETRY_SECONDS_FIRST
        needs_reading = True
        while True:
            watch: IWatch | None = None
            try:
                if needs_reading:
                    await self._read(part)
                # A watch that ends before it gave anything may not be able to: then the rows are read again.
                needs_reading = True
                if part is self._farm:
                    # Told again by this watch, which begins at what was taken in, unless it never happened.
                    self._held.clear()
                watch = await self._table.watch(part.prefix, part.revision)
                while True:
                    self._take(part, await watch.next())
                    needs_reading = False
                    delay = RETRY_SECONDS_FIRST
            except (CancelledError, TableClosed):
                raise
            except Compacted as error:
                self._log.info("the watch of {prefix} fell behind and reads anew", prefix=part.prefix.decode())
                part.ahead = part.ahead or error.first_revision <= part.revision
                needs_reading = True
            except TableError as error:
                self._log.info(
                    "the watch of {prefix} ended, and the next try is in {delay:.2f} s: {error}",
                    prefix=part.prefix.decode(),
                    delay=delay,
                    error=error,
                )
            except Exception:
                self._log.failure("while following {prefix}", prefix=part.prefix.decode())
            finally:
                if watch is not None:
                    watch.close()
            # Also after Compacted: a table that compacts faster than it is read must not make us spin.
            await deferLater(self._clock, delay)
            delay = min(2 * delay, RETRY_SECONDS_MAX)

    async def _read(self, part: _Part) -> None:
        """Read a whole prefix; without a majority, what this server holds is better than nothing."""
        rows, revision = await self._pages_or_stale(part)
        if part is self._farm:
            # After the farm's rows, so that the servers are never older than the generation that counts them.
            servers, servers_revision = await self._pages_or_stale(self._servers)
            if servers_revision < max((row.revision for row in rows), default=0):
                raise Unavailable("the servers could only be read as they were before")
            self._servers.replace(servers, servers_revision)
        part.replace(rows, revision)
        part.known = True
        self._publish()
        if self._started is not None and self._servers.known and self._farm.known:
            started, self._started = self._started, None
            started.callback(None)

    async def _pages_or_stale(self, part: _Part) -> tuple[list[Row], int]:
        try:
            rows, revision = await self._pages(part.prefix, stale=False)
        except Unavailable:
            return await self._pages(part.prefix, stale=True)
        if part.ahead:
            part.ahead, part.revision = False, min(part.revision, revision)
        return rows, revision

    async def _pages(self, prefix: bytes, stale: bool) -> tuple[list[Row], int]:
        page = await self._table.read(prefix, stale=stale)
        # Later pages may be newer; the watch goes on from the first one, and repeats nothing that matters.
        rows, revision = list(page.rows), page.revision
        while page.more:
            page = await self._table.read(prefix, after=page.rows[-1].key, stale=stale)
            rows.extend(page.rows)
        return rows, revision

    async def _refresh(self) -> None:
        farm = await self._pages(FARM, stale=False)
        # The servers last and taken in first, so that they are never older than the generation.
        self._servers.replace(*await self._pages(SERVERS, stale=False))
        self._farm.replace(*farm)
        self._publish()

    def _take(self, part: _Part, batch: Batch) -> None:
        if part is self._farm:
            self._held.append(batch)
        else:
            part.apply(batch)
        self._publish()

    def _release_held(self) -> None:
        """Apply the changes of `farm/` whose servers are known; wait a little for those of the others."""
        while self._held and _newest(self._held[0]) <= self._servers.revision:
            self._farm.apply(self._held.pop(0))
        if self._held and self._catching_up is None and self._running:
            self._catching_up = self._clock.callLater(CATCH_UP_SECONDS, self._start_catching_up)

    def _start_catching_up(self) -> None:
        self._catching_up = None
        self._run(Deferred.fromCoroutine(self._catch_up()))

    async def _catch_up(self) -> None:
        """Read the servers as they were at the change that is held; a quiet watch says nothing about them."""
        wanted = _newest(self._held[0]) if self._held else 0
        try:
            try:
                rows, revision = await self._pages(SERVERS, stale=True)
                if revision < wanted:
                    raise Unavailable("this server's own rows are older")
            except Unavailable:
                rows, revision = await self._pages(SERVERS, stale=False)
            self._servers.replace(rows, revision)
        except TableClosed:
            raise
        except TableError as error:
            self._log.info("the servers could not be read, the next try follows: {error}", error=error)
        self._publish()

    def _publish(self) -> None:
        self._release_held()
        self._decode()
        for watcher in list(self._watchers):
            try:
                watcher()
            except Exception:
                # One that fails must not keep the news from the others, or end the watch.
                self._log.failure("while telling of a change of the table")

    def _decode(self) -> None:
        rows = self._servers.rows
        before = self._read_rows
        self._read_rows = {
            key: before[key]
            if key in before and before[key][0] == row
            else (row, Server.from_value(row.value, row.revision))
            for key, row in rows.items()
        }
        if self._read_rows != before:
            self.servers = in_order(server for _, server in self._read_rows.values())
        if options := self._farm.rows.get(OPTIONS_KEY):
            self.options = FarmOptions.from_value(options.value)
        if generation := self._farm.rows.get(GENERATION_KEY):
            self.generation = int(generation.value)
        self.barred = frozenset(key[len(BARRED) :].decode() for key in self._farm.rows if key.startswith(BARRED))
        join = self._farm.rows.get(JOIN_DIGEST_KEY)
        self.join_digest = join.value.decode() if join is not None else ""
        epoch = self._farm.rows.get(EPOCH_KEY)
        self.epoch = epoch.revision if epoch is not None else 0


def _newest(batch: Batch) -> int:
    return max((event.revision for event in batch.events), default=0)
