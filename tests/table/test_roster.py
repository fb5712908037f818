"""The roster follows the table through everything that can happen to a watch, and never shows a torn state."""

from __future__ import annotations

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from chunkfarm.model import EPOCH_KEY, FARM, GENERATION_KEY, OPTIONS_KEY, SERVERS, FarmOptions, Server
from chunkfarm.table.epochs import read_epoch
from chunkfarm.table.interface import (
    Batch,
    Compacted,
    Compare,
    Delete,
    Event,
    ITable,
    IWatch,
    Operation,
    Page,
    Put,
    Replaced,
    Row,
    TableClosed,
    TableError,
    Unavailable,
    of_one,
)
from chunkfarm.table.roster import CATCH_UP_SECONDS, RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX, Roster


@implementer(IWatch)
@define(eq=False)
class ScriptedWatch:
    """A watch that gives what the test puts in."""

    waiting: Deferred[Batch] | None = None
    batches: list[Batch] = field(factory=list)
    closed: bool = False

    def next(self) -> Deferred[Batch]:
        assert self.waiting is None, "one call at a time"
        if self.batches:
            return succeed(self.batches.pop(0))
        self.waiting = Deferred(lambda _: setattr(self, "waiting", None))
        return self.waiting

    def give(self, batch: Batch) -> None:
        self.batches.append(batch)
        if self.waiting is not None:
            waiting, self.waiting = self.waiting, None
            waiting.callback(self.batches.pop(0))

    def end(self, error: Exception) -> None:
        assert self.waiting is not None
        waiting, self.waiting = self.waiting, None
        waiting.errback(error)

    def close(self) -> None:
        self.closed = True


@frozen
class Watching:
    prefix: bytes
    from_revision: int
    watch: ScriptedWatch


@implementer(ITable)
@define(eq=False)
class ScriptedTable:
    """A table of one, whose watches give batches only when the test says so."""

    rows: dict[bytes, Row] = field(factory=dict)
    revision: int = 0
    watches: list[Watching] = field(factory=list)
    reads: list[tuple[bytes, bool]] = field(factory=list)
    events: list[Event] = field(factory=list)
    unavailable: bool = False
    stale_unavailable: bool = False
    failure: TableError = field(factory=lambda: Unavailable("no majority"))
    page_size: int = 1000
    compacted: bool = False

    def transact(self, compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> Deferred[int]:
        self.revision += 1
        for operation in operations:
            if isinstance(operation, Put):
                self.rows[operation.key] = Row(operation.key, operation.value, self.revision)
                self.events.append(Event(self.revision, "PUT", operation.key, operation.value))
            else:
                self.rows.pop(operation.key, None)
                self.events.append(Event(self.revision, "DEL", operation.key, b""))
        return succeed(self.revision)

    def replace(self, key: bytes, value: bytes, compares: tuple[Compare, ...] = ()) -> Deferred[Replaced]:
        raise NotImplementedError

    def read(self, prefix: bytes, after: bytes = b"", limit: int = 1000, stale: bool = False) -> Deferred[Page]:
        self.reads.append((prefix, stale))
        if self.stale_unavailable if stale else self.unavailable:
            return fail(Unavailable("no rows") if stale else self.failure)
        keys = sorted(key for key in self.rows if key.startswith(prefix) and key > after)
        rows = tuple(self.rows[key] for key in keys[: self.page_size])
        return succeed(Page(self.revision, rows, len(keys) > self.page_size))

    def find(self, key: bytes, stale: bool = False) -> Deferred[Page]:
        return self.read(key, limit=1, stale=stale).addCallback(of_one, key)

    def last_known(self, prefix: bytes, after: bytes = b"", limit: int = 1000) -> Deferred[Page]:
        raise NotImplementedError

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        if self.compacted:
            return fail(Compacted(self.revision))
        watch = ScriptedWatch()
        self.watches.append(Watching(prefix, from_revision, watch))
        return succeed(watch)

    def last_watch(self, prefix: bytes) -> Watching:
        return next(one for one in reversed(self.watches) if one.prefix == prefix)

    def deliver(self, prefix: bytes) -> None:
        """Give all that happened under the prefix since its watch began, in one batch."""
        watching = self.last_watch(prefix)
        events = tuple(
            event for event in self.events if event.key.startswith(prefix) and event.revision > watching.from_revision
        )
        watching.watch.give(Batch(self.revision, events))

    def put(
        self, *servers: Server, generation: int = 0, farm: FarmOptions | None = None, gone: tuple[str, ...] = ()
    ) -> int:
        """One transaction."""
        operations: list[Operation] = [Put(server.key, server.to_value()) for server in servers]
        operations += [Delete(SERVERS + server_id.encode()) for server_id in gone]
        if generation:
            operations.append(Put(GENERATION_KEY, b"%d" % generation))
        if farm:
            operations.append(Put(OPTIONS_KEY, farm.to_value()))
        self.transact((), tuple(operations))
        return self.revision


def server(letter: str, **changes: str | int | bool) -> Server:
    values: dict[str, object] = {"name": letter, "host": "10.0.0.1", "client": 4100, "peer": 4101, "files": 4102}
    return Server(id=letter * 32, **{**values, **changes})  # type: ignore[arg-type]


class RosterTests(SynchronousTestCase):
    def make(self) -> tuple[Roster, ScriptedTable, Clock]:
        """A roster that is not started, over a farm of two servers and generation 2."""
        table, clock = ScriptedTable(), Clock()
        table.put(server("b"), generation=1, farm=FarmOptions(name="lab"))
        table.put(server("a"), generation=2)
        return Roster(table, clock), table, clock

    def started(self) -> tuple[Roster, ScriptedTable, Clock]:
        roster, table, clock = self.make()
        self.successResultOf(roster.start())
        return roster, table, clock

    def names(self, roster: Roster) -> list[str]:
        return [one.name for one in roster.servers]

    def test_start(self) -> None:
        """Once started, the roster knows servers, options and generation, oldest server first."""
        roster, table, _ = self.started()
        assert self.names(roster) == ["b", "a"]
        assert roster.options.name == "lab"
        assert (roster.generation, roster.revision) == (2, 2)
        assert roster.first == roster.server("b" * 32)
        assert roster.server("c" * 32) is None
        assert {(one.prefix, one.from_revision) for one in table.watches} == {(SERVERS, 2), (FARM, 2)}

    def test_empty(self) -> None:
        """Before anything is known there is nobody."""
        roster, _, _ = self.make()
        assert (roster.servers, roster.first, roster.generation) == ((), None, 0)

    def test_change(self) -> None:
        """A change of a server is seen once it arrives, and subscribers are told once."""
        roster, table, _ = self.started()
        calls: list[list[str]] = []
        roster.subscribe(lambda: calls.append(self.names(roster)))
        table.put(server("c"), server("d"))
        table.deliver(SERVERS)
        assert calls == [["b", "a", "c", "d"]]

    def test_gone(self) -> None:
        """A server that is removed is gone."""
        roster, table, _ = self.started()
        table.put(gone=("b" * 32,))
        table.deliver(SERVERS)
        assert self.names(roster) == ["a"]

    def test_down_is_last(self) -> None:
        """A server that is down stands behind the live ones and is not the first."""
        roster, table, _ = self.started()
        old = roster.server("b" * 32)
        assert old is not None
        table.put(server("b", state="down", seniority=old.seniority))
        table.deliver(SERVERS)
        assert self.names(roster) == ["a", "b"]
        assert roster.first is not None
        assert roster.first.name == "a"

    def test_unsubscribe(self) -> None:
        """Who does not want to be told any more is not, and may say so twice."""
        roster, table, _ = self.started()
        calls: list[None] = []
        end = roster.subscribe(lambda: calls.append(None))
        end()
        end()
        table.put(server("c"))
        table.deliver(SERVERS)
        assert calls == []

    def test_failing_subscriber(self) -> None:
        """A subscriber that fails keeps the news from nobody."""
        roster, table, _ = self.started()
        calls: list[None] = []
        roster.subscribe(lambda: 1 // 0)  # type: ignore[arg-type]
        roster.subscribe(lambda: calls.append(None))
        table.put(server("c"))
        table.deliver(SERVERS)
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        assert calls == [None]

    def test_generation_waits_for_its_servers(self) -> None:
        """A new generation is not seen before the servers it counts, whichever watch is faster."""
        roster, table, _ = self.started()
        seen: list[tuple[int, list[str]]] = []
        roster.subscribe(lambda: seen.append((roster.generation, self.names(roster))))
        table.put(server("c"), generation=3)
        table.deliver(FARM)
        assert roster.generation == 2
        table.deliver(SERVERS)
        assert roster.generation == 3
        assert all(("c" in names) for generation, names in seen if generation == 3)

    def test_epoch(self) -> None:
        """The farm's epoch is the revision of its row, and none before there is one."""
        roster, table, clock = self.started()
        assert roster.epoch == 0
        for _ in range(2):
            table.transact((), (Put(EPOCH_KEY, b"{}"),))
            table.deliver(FARM)
            clock.advance(CATCH_UP_SECONDS)
            assert roster.epoch == table.revision
            assert self.successResultOf(read_epoch(table)) == table.revision
        assert roster.generation == 2

    def test_quiet_servers(self) -> None:
        """A change of the farm alone is seen soon, although the watch of the servers says nothing."""
        roster, table, clock = self.started()
        table.put(farm=FarmOptions(name="lab", replicas=2), generation=3)
        table.deliver(FARM)
        assert roster.options.replicas == 3
        clock.advance(CATCH_UP_SECONDS)
        assert (roster.options.replicas, roster.generation) == (2, 3)
        assert table.reads[-1] == (SERVERS, True)

    def test_quiet_servers_without_rows(self) -> None:
        """A server that holds no rows asks the farm instead, and goes on asking while nobody answers."""
        roster, table, clock = self.started()
        table.stale_unavailable = table.unavailable = True
        table.put(farm=FarmOptions(name="lab", replicas=2), generation=3)
        table.deliver(FARM)
        clock.advance(CATCH_UP_SECONDS)
        assert roster.generation == 2
        table.failure = TableError("the leader does not know this server")
        clock.advance(CATCH_UP_SECONDS)
        assert roster.generation == 2
        table.unavailable = False
        clock.advance(CATCH_UP_SECONDS)
        assert roster.generation == 3

    def test_pages(self) -> None:
        """A table that comes in several pages is read as a whole."""
        roster, table, _ = self.make()
        table.page_size = 1
        self.successResultOf(roster.start())
        assert self.names(roster) == ["b", "a"]
        assert roster.options.name == "lab"

    def test_repeated_events(self) -> None:
        """Changes that the reading already had are not applied again."""
        roster, table, _ = self.started()
        old = Event(1, "PUT", server("b").key, server("b", name="older").to_value())
        table.last_watch(SERVERS).watch.give(Batch(2, (old, Event(2, "DEL", server("a").key, b""))))
        assert self.names(roster) == ["b", "a"]

    def test_no_majority_at_the_start(self) -> None:
        """Without a majority the roster starts from what this server holds."""
        roster, table, _ = self.make()
        table.unavailable = True
        self.successResultOf(roster.start())
        assert self.names(roster) == ["b", "a"]

    def test_nobody_at_the_start(self) -> None:
        """While nobody answers the start waits, and tries ever less often."""
        roster, table, clock = self.make()
        table.unavailable = table.stale_unavailable = True
        starting = roster.start()
        clock.pump([RETRY_SECONDS_MAX] * 20)
        self.assertNoResult(starting)
        assert max(call.getTime() - clock.seconds() for call in clock.getDelayedCalls()) <= RETRY_SECONDS_MAX
        table.unavailable = False
        clock.advance(RETRY_SECONDS_MAX)
        self.successResultOf(starting)

    def test_watch_ends(self) -> None:
        """A watch that ends is taken up where it ended, after a moment, without reading all again."""
        roster, table, clock = self.started()
        table.put(server("c"))
        table.deliver(SERVERS)
        reads = len(table.reads)
        table.last_watch(SERVERS).watch.end(Unavailable("the link is lost"))
        table.put(server("d"))
        clock.advance(RETRY_SECONDS_FIRST)
        assert table.last_watch(SERVERS).from_revision == 3
        table.deliver(SERVERS)
        assert self.names(roster) == ["b", "a", "c", "d"]
        assert len(table.reads) == reads
        assert table.watches[0].watch.closed

    def test_compacted(self) -> None:
        """A roster that fell too far behind reads anew and goes on from there."""
        roster, table, clock = self.started()
        table.put(server("c"), gone=("a" * 32,))
        table.last_watch(SERVERS).watch.end(Compacted(3))
        clock.advance(RETRY_SECONDS_FIRST)
        assert self.names(roster) == ["b", "c"]
        assert table.last_watch(SERVERS).from_revision == 3

    def test_a_history_that_was_cut_off(self) -> None:
        """After a takeover by hand a server that has heard of more than the farm goes on with takes the farm's rows."""
        roster, table, clock = self.started()
        before = dict(table.rows)
        table.put(server("c"), generation=3)
        table.put(server("d"))
        for part in (SERVERS, FARM):
            table.deliver(part)
        assert sorted(self.names(roster)) == ["a", "b", "c", "d"] and roster.generation == 3
        table.rows, table.revision = before, 2
        table.put(gone=("b" * 32,))
        for part in (SERVERS, FARM):
            table.last_watch(part).watch.end(Compacted(4))
        clock.advance(RETRY_SECONDS_FIRST)
        assert self.names(roster) == ["a"] and roster.generation == 2
        assert {one.from_revision for one in table.watches[-2:]} == {3}

    def test_what_is_held_is_told_again(self) -> None:
        """A change of the farm whose servers never came is forgotten with its watch: perhaps it never was."""
        roster, table, clock = self.started()
        before = dict(table.rows)
        table.put(server("c"), generation=3)
        table.deliver(FARM)
        assert roster.generation == 2
        # Whoever told of that is lost, and the farm never had it.
        table.rows, table.revision, table.events = before, 2, []
        for part in (SERVERS, FARM):
            table.last_watch(part).watch.end(Unavailable("the link is lost"))
        clock.advance(RETRY_SECONDS_FIRST)
        table.put(server("d"))
        table.put(farm=FarmOptions(name="lab", replicas=2))
        for part in (SERVERS, FARM):
            table.deliver(part)
        clock.advance(CATCH_UP_SECONDS)
        assert self.names(roster) == ["b", "a", "d"]
        assert (roster.generation, roster.options.replicas) == (2, 2)

    def test_a_line_that_was_left(self) -> None:
        """Whoever followed a side that does not count takes the rows of the farm, whatever its revision."""
        roster, table, _ = self.started()
        before = dict(table.rows)
        table.put(server("c"), generation=3, farm=FarmOptions(name="lab", replicas=1))
        for part in (SERVERS, FARM):
            table.deliver(part)
        assert roster.options.replicas == 1
        table.rows, table.revision, table.events = before, 2, []
        table.put(server("d"))
        table.put(server("e"))
        old = list(table.watches)
        roster.leave_line(2)
        assert self.names(roster) == ["b", "a", "d", "e"]
        assert (roster.generation, roster.options.replicas) == (2, 3)
        assert all(one.watch.closed for one in old) and len(table.watches) == len(old) + 2
        table.put(generation=5)
        for part in (SERVERS, FARM):
            table.deliver(part)
        assert roster.generation == 5

    def test_a_line_that_was_left_with_nothing(self) -> None:
        """Whoever heard of nothing beyond the place where the lines part goes on as before, and so does one at rest."""
        roster, table, _ = self.started()
        reads = len(table.reads)
        roster.leave_line(2)
        assert len(table.reads) == reads and len(table.watches) == 2
        self.successResultOf(roster.stop())
        roster.leave_line(0)
        assert len(table.reads) == reads

    def test_a_line_that_was_left_while_nobody_answers(self) -> None:
        """Then it is read as soon as somebody does, however old that is."""
        roster, table, clock = self.started()
        before = dict(table.rows)
        table.put(server("c"), generation=3)
        for part in (SERVERS, FARM):
            table.deliver(part)
        table.rows, table.revision, table.events = before, 2, []
        table.unavailable = table.stale_unavailable = True
        roster.leave_line(1)
        assert roster.generation == 3
        table.unavailable = False
        clock.advance(RETRY_SECONDS_FIRST)
        assert self.names(roster) == ["b", "a"] and roster.generation == 2

    def test_compacted_at_once(self) -> None:
        """A watch that is refused as too old again and again does not make the server spin."""
        roster, table, clock = self.make()
        table.compacted = True
        self.successResultOf(roster.start())
        reads = len(table.reads)
        clock.advance(RETRY_SECONDS_FIRST / 2)
        assert len(table.reads) == reads
        table.compacted = False
        clock.advance(RETRY_SECONDS_MAX)
        assert table.last_watch(SERVERS).from_revision == 2

    def test_adopt(self) -> None:
        """Rows from another server serve until the table is there, and newer rows stand above them."""
        roster, _, _ = self.make()
        rows = (Row(server("c").key, server("c").to_value(), 1), Row(GENERATION_KEY, b"1", 1))
        roster.adopt(rows, 1)
        assert (self.names(roster), roster.generation) == (["c"], 1)
        self.successResultOf(roster.start())
        assert (self.names(roster), roster.generation) == (["b", "a"], 2)
        roster.adopt(rows, 1)
        assert self.names(roster) == ["b", "a"]

    def test_adopt_servers_only(self) -> None:
        """Rows of servers alone leave the farm's options as they are."""
        roster, _, _ = self.started()
        roster.adopt((Row(server("c").key, server("c").to_value(), 9),), 9)
        assert self.names(roster) == ["c"]
        assert roster.options.name == "lab"

    def test_refresh(self) -> None:
        """A refresh sees what no watch has said yet, or says that nobody answers."""
        roster, table, _ = self.started()
        table.put(server("c"), generation=3)
        self.successResultOf(roster.refresh())
        assert (self.names(roster), roster.generation, roster.revision) == (["b", "a", "c"], 3, 3)
        table.unavailable = True
        self.failureResultOf(roster.refresh(), Unavailable)

    def test_when(self) -> None:
        """One may wait for a state of the roster, and stop waiting."""
        roster, table, _ = self.started()
        self.successResultOf(roster.when(lambda one: one.generation == 2))
        three, four = (roster.when(lambda one, n=n: one.generation >= n) for n in (3, 4))  # type: ignore[misc]
        table.put(server("c"), generation=3)
        table.deliver(SERVERS)
        table.deliver(FARM)
        self.successResultOf(three)
        self.assertNoResult(four)
        four.cancel()
        self.failureResultOf(four, CancelledError)

    def test_stop(self) -> None:
        """A stopped roster holds no watch and no timer, and still tells what it knew."""
        roster, table, clock = self.started()
        table.put(generation=3)
        table.deliver(FARM)
        self.successResultOf(roster.stop())
        self.successResultOf(roster.stop())
        assert all(one.watch.closed for one in table.watches)
        assert clock.getDelayedCalls() == []
        assert self.names(roster) == ["b", "a"]

    def test_stop_while_starting(self) -> None:
        """Who waits for the start learns that it was given up."""
        roster, table, clock = self.make()
        table.unavailable = table.stale_unavailable = True
        starting = roster.start()
        self.successResultOf(roster.stop())
        self.failureResultOf(starting, CancelledError)
        assert clock.getDelayedCalls() == []

    def test_cancelled_start(self) -> None:
        """A start that is cancelled leaves nothing behind."""
        roster, table, clock = self.make()
        table.unavailable = table.stale_unavailable = True
        starting = roster.start()
        starting.cancel()
        self.failureResultOf(starting, CancelledError)
        assert clock.getDelayedCalls() == []

    def test_table_closed(self) -> None:
        """When the table is closed the roster ends quietly."""
        _, table, clock = self.started()
        table.last_watch(SERVERS).watch.end(TableClosed())
        table.last_watch(FARM).watch.end(TableClosed())
        assert clock.getDelayedCalls() == []
        assert all(one.watch.closed for one in table.watches)

    def test_broken_row(self) -> None:
        """A row that cannot be read is logged, and does not end the watch."""
        roster, table, clock = self.started()
        table.transact((), (Put(SERVERS + b"e" * 32, b"no json"),))
        table.deliver(SERVERS)
        assert self.flushLoggedErrors(ValueError)
        table.put(gone=("e" * 32,))
        clock.advance(RETRY_SECONDS_FIRST)
        self.flushLoggedErrors(ValueError)
        clock.advance(RETRY_SECONDS_MAX)
        table.put(server("c"))
        table.deliver(SERVERS)
        assert self.names(roster) == ["b", "a", "c"]
