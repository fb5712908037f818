"""The embedded engine, with one server and with several, on one clock and in-memory links."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.links.commands import BadRequest, NotFirst, NotNow
from chunkfarm.table import driver as driver_module
from chunkfarm.table import embedded as embedded_module
from chunkfarm.table import journal as journal_module
from chunkfarm.table import rows as rows_module
from chunkfarm.table.codec import (
    Answer,
    AnswerKind,
    OpenSession,
    ReadRequest,
    Transaction,
    decode_answer,
    decode_page,
    encode_message,
    encode_read,
    encode_request,
)
from chunkfarm.table.consensus import ChangeRefused, NotLeader
from chunkfarm.table.driver import StorageTooSlow
from chunkfarm.table.embedded import (
    LAST_KNOWN_AGAIN_SECONDS,
    LAST_KNOWN_QUIET_SECONDS,
    LAST_KNOWN_SECONDS,
    EmbeddedTable,
)
from chunkfarm.table.interface import (
    Batch,
    Compacted,
    Compare,
    Conflict,
    Delete,
    Event,
    ITable,
    IWatch,
    Put,
    Row,
    TableClosed,
    TableError,
    Unavailable,
)
from chunkfarm.table.journal import Saved
from chunkfarm.table.journal_file import JournalError
from chunkfarm.table.lines import Fork, Past, Verdict, judge
from chunkfarm.table.records import Configuration, Message, MessageKind, Ready, SnapshotMeta
from chunkfarm.table.rows import digest_of_state
from chunkfarm.table.snapshots import OutgoingSnapshot
from tests.memory_table import MemoryTable
from tests.table.cluster import Cluster, Node
from tests.table.conformance import TableConformance

T = TypeVar("T")


class ClusterTestCase(SynchronousTestCase):
    """Builds clusters, and stops them."""

    cluster: Cluster

    def of(self, *ids: str, learners: tuple[str, ...] = ()) -> Cluster:
        """A cluster whose voters are `ids`, the first of which leads, all with the same rows."""
        cluster = self.cluster = Cluster(self.mktemp())
        self.addCleanup(cluster.stop)
        cluster.found(ids[0])
        cluster.grow(*ids[1:], learners=learners)
        cluster.run(1)
        return cluster

    def table(self, id: str) -> ITable:
        return self.cluster.nodes[id].table

    def put(self, id: str, key: bytes, value: bytes = b"") -> int:
        return self.cluster.result(self.table(id).transact((), (Put(key, value),)))

    def keys(self, id: str, *, stale: bool = False) -> list[bytes]:
        keys: list[bytes] = []
        more = True
        while more:
            page = self.cluster.result(self.table(id).read(b"", after=keys[-1] if keys else b"", stale=stale))
            keys += [row.key for row in page.rows]
            more = page.more
        return keys

    def digests(self) -> set[str]:
        return {digest_of_state(node.table._journal._connection) for node in self.cluster.nodes.values() if node.alive}

    def new_leader(self, old: str) -> Node:
        """Let time pass until somebody else leads."""
        self.cluster.until(lambda: (leader := self.cluster.leader()) and leader.id != old)
        leader = self.cluster.leader()
        assert leader is not None
        return leader


class OneServerConformanceTests(TableConformance, SynchronousTestCase):
    """One server alone."""

    ids: tuple[str, ...] = ("a",)
    asked = "a"

    def table(self) -> ITable:
        self.cluster = Cluster(self.mktemp())
        self.addCleanup(self.cluster.stop)
        self.cluster.found(self.ids[0])
        self.cluster.grow(*self.ids[1:])
        if self.asked not in self.ids:
            self.cluster.hint = self.ids[0]
            self.cluster.add(self.asked)
        self.cluster.run(1)
        return self.cluster.nodes[self.asked].table

    def result(self, deferred: Deferred[T]) -> T:
        return self.cluster.result(deferred)

    def settle(self) -> None:
        self.cluster.run(0.5)

    def close(self, table: ITable) -> None:
        self.result(self.cluster.nodes[self.asked].table.stop())

    def compact(self, table: ITable) -> None:
        for node in self.cluster.nodes.values():
            node.table._journal.compact(node.table.revision)
            hub = node.table._driver.hub
            hub.floor = hub.revision
            hub._recent.clear()


class LeaderConformanceTests(OneServerConformanceTests):
    """The leader of three."""

    ids = ("a", "b", "c")


class FollowerConformanceTests(OneServerConformanceTests):
    """A follower of three."""

    ids = ("a", "b", "c")
    asked = "b"


class OutsiderConformanceTests(OneServerConformanceTests):
    """A server that holds no rows."""

    ids = ("a", "b", "c")
    asked = "d"

    def test_stale(self) -> None:
        """There is no last state of its own to read."""
        table = self.table()
        self.put(table, b"a")
        self.error(table.read(b"", stale=True), Unavailable)

    def test_closing(self) -> None:
        """Its watches belong to the link to another server, which outlives it; new ones are refused."""
        table = self.table()
        self.close(table)
        self.error(table.watch(b"", 0), TableClosed)
        self.error(table.transact((), (Put(b"a", b""),)), TableClosed)


class MemoryTableConformanceTests(TableConformance, SynchronousTestCase):
    """The table that other tests use instead of this one."""

    checks_limits = False

    def table(self) -> ITable:
        return MemoryTable()

    def result(self, deferred: Deferred[T]) -> T:
        outcome: list[object] = []
        deferred.addErrback(lambda failure: outcome.append(failure.value))
        if outcome:
            assert isinstance(outcome[0], Exception)
            raise outcome[0]
        return self.successResultOf(deferred)

    def settle(self) -> None:
        pass

    def close(self, table: ITable) -> None:
        assert isinstance(table, MemoryTable)
        table.close()

    def compact(self, table: ITable) -> None:
        assert isinstance(table, MemoryTable)
        table.compact()


class OneServerTests(ClusterTestCase):
    """A farm of one."""

    def test_founding(self) -> None:
        """An empty server holds nothing and leads nothing; once founded it leads at once, and only once."""
        cluster = self.cluster = Cluster(self.mktemp())
        self.addCleanup(cluster.stop)
        node = cluster.add("a")
        cluster.run(5)
        assert not node.table.is_leader and not node.table.holds_rows and node.table.leader == ""
        cluster.result(node.table.found())
        assert node.table.is_leader and node.table.holds_rows and node.table.committed_this_term
        assert node.table.configuration == Configuration({"a"})
        assert node.table.caught_up() == {"a"} and node.table.progress() == {}
        with self.assertRaises(JournalError):
            cluster.result(node.table.found())

    def test_restart(self) -> None:
        """What was acknowledged is there after a restart, and the farm of one goes on at once."""
        cluster = self.of("a")
        self.put("a", b"k", b"1")
        term = cluster.nodes["a"].table.term
        cluster.kill("a")
        node = cluster.restart("a")
        assert node.table.is_leader and node.table.term > term
        assert self.keys("a") == [b"k"]
        self.put("a", b"l")

    def test_power_cut_where_one_votes_alone(self) -> None:
        """Whoever decides alone has decided all that it wrote, also where its disk does not say so."""
        cluster = self.of("a")
        node = cluster.nodes["a"]
        save = node.table._journal.save

        def saving(ready: Ready, *, apply: bool = True) -> Saved:
            saved = save(ready, apply=apply)
            if ready.entries:
                # What is written behind that is not synchronized.
                for ending in ("", "-wal"):
                    shutil.copy(node.path + ending, node.path + ".durable" + ending)
            return saved

        with patch.object(node.table._journal, "save", saving):
            revision = self.put("a", b"k")
        cluster.kill("a")
        for ending in ("", "-wal"):
            os.replace(node.path + ".durable" + ending, node.path + ending)
        known: list[int] = []
        pasts: list[Past] = []

        def look(table: EmbeddedTable) -> None:
            known.append(table.revision)
            pasts.append(table.past)

        cluster.add("a", look)
        assert known == [revision - 1] and pasts[0].committed == revision
        # Another line that went on from what is known to be committed lacks what was acknowledged.
        fork = Fork(f"{1:032x}", known[0], pasts[0].term)
        assert judge((), pasts[0], (fork,), None) is Verdict.LOST

    def test_group_commit(self) -> None:
        """What comes while the disk works shares the next save."""
        cluster = self.of("a")
        self.put("a", b"first")
        node = cluster.nodes["a"]
        node.disk.held = True
        going = [node.table.transact((), (Put(b"0", b""),))]
        cluster.clock.advance(0)
        going += [node.table.transact((), (Put(b"%d" % n, b""),)) for n in range(1, 50)]
        cluster.clock.advance(0)
        saves: list[int] = []
        save = node.table._journal.save

        def counted(ready: Ready, *, apply: bool = True) -> Saved:
            saves.append(len(ready.entries))
            return save(ready, apply=apply)

        with patch.object(node.table._journal, "save", counted):
            node.disk.release()
        assert saves == [1, 49, 0] or saves == [1, 0, 49, 0]
        revisions = [self.successResultOf(one) for one in going]
        assert revisions == list(range(revisions[0], revisions[0] + 50))
        assert len(self.keys("a")) == 51

    def test_nothing_before_the_disk(self) -> None:
        """Nothing is acknowledged before the disk has it."""
        cluster = self.of("a")
        self.put("a", b"first")
        node = cluster.nodes["a"]
        node.disk.held = True
        going = node.table.transact((), (Put(b"k", b""),))
        cluster.run(1)
        self.assertNoResult(going)
        assert self.keys("a", stale=True) == [b"first"]
        node.disk.release()
        self.successResultOf(going)

    def test_far_away(self) -> None:
        """A member whose way to the leader and back takes longer than a second reads all the same."""
        cluster = self.of("a", "b", "c")
        self.put("a", b"first")
        cluster.far_away, cluster.far = {"c"}, 0.7
        cluster.run(3)
        page = cluster.result(cluster.nodes["c"].table.read(b""), patience=10)
        assert [row.key for row in page.rows] == [b"first"]

    def test_slow_disk(self) -> None:
        """A write that hangs ends the process: nothing more is said, and everybody is told."""
        cluster = self.of("a")
        self.put("a", b"first")
        node = cluster.nodes["a"]
        node.disk.held = True
        going = node.table.transact((), (Put(b"k", b""),))
        cluster.run(9)
        assert node.fatal == []
        cluster.run(1.1)
        assert [failure.type for failure in node.fatal] == [StorageTooSlow]
        self.failureResultOf(going, TableClosed)
        assert not node.table.is_leader

    def test_paused_while_it_writes(self) -> None:
        """A process that was frozen in the middle of a write gives its disk the whole time again."""
        cluster = self.of("a")
        self.put("a", b"first")
        node = cluster.nodes["a"]
        node.disk.held = True
        going = node.table.transact((), (Put(b"k", b""),))
        cluster.run(1)
        cluster.clock.advance(60)
        cluster.run(9)
        assert node.fatal == []
        node.disk.release()
        self.failureResultOf(going, Unavailable)
        assert self.keys("a", stale=True) == [b"first", b"k"]
        node.disk.held = True
        node.table.transact((), (Put(b"k", b"again"),)).addErrback(lambda _: None)
        cluster.run(10.2)
        assert [failure.type for failure in node.fatal] == [StorageTooSlow]

    def test_broken_disk(self) -> None:
        """So does a write that fails."""
        cluster = self.of("a")
        self.put("a", b"first")
        node = cluster.nodes["a"]
        with patch.object(node.table._journal, "save", side_effect=sqlite3.OperationalError("disk I/O error")):
            going = node.table.transact((), (Put(b"k", b""),))
            cluster.run(0.1)
        assert [failure.type for failure in node.fatal] == [sqlite3.OperationalError]
        self.failureResultOf(going, TableClosed)

    def test_full_disk(self) -> None:
        """A full disk is waited for."""
        cluster = self.of("a")
        self.put("a", b"first")
        node = cluster.nodes["a"]
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        with patch.object(node.table._journal, "save", side_effect=full):
            going = node.table.transact((), (Put(b"k", b""),))
            cluster.run(10)
            assert node.table.disk_full and node.fatal == []
            self.assertNoResult(going)
        cluster.result(going)
        assert not node.table.disk_full
        assert self.keys("a") == [b"first", b"k"]

    def broken(self) -> sqlite3.DatabaseError:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        return error

    def test_a_disk_that_fails_when_it_is_read(self) -> None:
        """Who reads is told to ask elsewhere, and the process ends, as when a write fails."""
        cluster = self.of("a")
        node = cluster.nodes["a"]
        broken = self.broken()
        with patch.object(node.table._journal, "read", side_effect=broken):
            self.failureResultOf(node.table.read(b"", stale=True), Unavailable)
        assert [failure.value for failure in node.fatal] == [broken]

    def test_a_disk_that_fails_when_a_row_is_found(self) -> None:
        """The same where the row is read before it is known from when on it may be."""
        node = self.of("a").nodes["a"]
        broken = self.broken()
        with patch.object(node.table._journal, "read", side_effect=broken):
            self.failureResultOf(node.table.find(b"none"), TableError)
        assert [failure.value for failure in node.fatal] == [broken]

    def test_a_disk_that_fails_under_a_watch(self) -> None:
        """Who watches from the past looks elsewhere, and the process ends."""
        cluster = self.of("a")
        start = self.put("a", b"first")
        self.put("a", b"second")
        cluster.kill("a")
        node = cluster.restart("a")
        broken = self.broken()
        with patch.object(node.table._journal, "changes", side_effect=broken):
            self.failureResultOf(node.table.watch(b"", start), TableError)
        assert [failure.value for failure in node.fatal] == [broken]

    def test_a_disk_that_fails_under_a_snapshot(self) -> None:
        """A server that cannot read what it is to send ends its process, so that another one leads."""
        for name in ("open_outgoing", "next_piece"):
            cluster = self.of("a")
            self.put("a", b"first")
            cluster.add("b")
            node = cluster.nodes["a"]
            broken = self.broken()
            where = node.table._journal if name == "open_outgoing" else OutgoingSnapshot
            with patch.object(where, name, side_effect=broken):
                node.table.propose_configuration(Configuration({"a"}, {"b"})).addErrback(lambda _: None)
                cluster.until(lambda node=node: bool(node.fatal))  # type: ignore[misc]
            assert [failure.value for failure in node.fatal] == [broken]

    def test_stop(self) -> None:
        """A table that stops lets its disk finish, and tells those who wait; stopping twice is no harm."""
        cluster = self.of("a")
        self.put("a", b"first")
        node = cluster.nodes["a"]
        node.disk.held = True
        going = node.table.transact((), (Put(b"k", b""),))
        stops = [node.table.stop(), node.table.stop()]
        self.failureResultOf(going, TableClosed)
        self.assertNoResult(stops[0])
        node.disk.release()
        for stop in (*stops, node.table.stop()):
            self.successResultOf(stop)
        for late in (node.table.transact((), (Put(b"l", b""),)), node.table.read(b""), node.table.watch(b"", 0)):
            assert isinstance(late, Deferred)
            self.failureResultOf(late, TableClosed)
        self.failureResultOf(node.table.for_others.transact(encode_request(OpenSession("x"))), NotNow)
        # What the disk had begun may be there; whoever asked was not told so.
        node.alive = False
        cluster.restart("a")
        assert self.keys("a") in ([b"first"], [b"first", b"k"])

    def test_cancelled(self) -> None:
        """A transaction that is given up blocks nobody, and its number is used by no other."""
        cluster = self.of("a")
        self.put("a", b"first")
        node = cluster.nodes["a"]
        node.disk.held = True
        going = node.table.transact((), (Put(b"k", b""),))
        going.cancel()
        self.failureResultOf(going, CancelledError)
        node.disk.release()
        self.put("a", b"l")
        assert self.keys("a") == [b"first", b"k", b"l"]

    @patch.object(journal_module, "LOG_ENTRIES_MAX", 20)
    @patch.object(journal_module, "LOG_TAIL", 10)
    def test_compaction(self) -> None:
        """The log does not grow without end, on disk or in memory; watches go on over the cut."""
        cluster = self.of("a")
        node = cluster.nodes["a"]
        start = self.put("a", b"k")
        watch = cluster.result(node.table.watch(b"", start))
        for n in range(100):
            self.put("a", b"k", b"%d" % n)
        assert node.table.last_index - node.table._driver.core.log.snapshot.index <= 21
        assert len(node.table._journal.load().entries) <= 21
        events: list[Event] = []
        while len(events) < 100:
            events += cluster.result(watch.next()).events
        assert [event.value for event in events] == [b"%d" % n for n in range(100)]
        cluster.kill("a")
        cluster.restart("a")
        assert self.keys("a") == [b"k"]
        with self.assertRaises(Compacted):
            cluster.result(self.table("a").watch(b"", start))


class ThreeServersTests(ClusterTestCase):
    """Three masters."""

    def test_joined(self) -> None:
        """Servers that join get the whole table, and are then as good as the others."""
        cluster = self.of("a")
        for n in range(40):
            self.put("a", b"%02d" % n, bytes(8000))
        cluster.grow("b", "c")
        cluster.run(1)
        assert cluster.pages > 8
        for id in "abc":
            assert len(self.keys(id, stale=True)) == 40 and cluster.nodes[id].table.holds_rows
        assert len(self.digests()) == 1
        assert cluster.nodes["a"].table.caught_up() == {"a", "b", "c"}
        assert {id: one.recently_active for id, one in cluster.nodes["a"].table.progress().items()} == {
            "b": True,
            "c": True,
        }

    def test_through_a_follower(self) -> None:
        """A follower brings a transaction to the leader, and a read sees what was acknowledged anywhere before."""
        cluster = self.of("a", "b", "c")
        revision = self.put("b", b"k", b"1")
        for id in "cab":
            rows = cluster.result(self.table(id).read(b"k")).rows
            assert [row.revision for row in rows] == [revision]
        with self.assertRaises(Conflict) as caught:
            cluster.result(self.table("c").transact((Compare(b"k", "==", 0),), (Delete(b"k"),)))
        assert caught.exception.rows == rows

    def test_found_rows_are_never_old(self) -> None:
        """Who asks for a row after a change of it was acknowledged sees the change, wherever both were asked for."""
        cluster = self.of("a", "b", "c")
        for number in range(30):
            writer, reader = "abc"[number % 3], "abc"[number // 3 % 3]
            if number % 7 == 6:
                cluster.result(self.table(writer).transact((), (Delete(b"k"),)))
                assert cluster.result(self.table(reader).find(b"k")).rows == ()
            else:
                revision = self.put(writer, b"k", b"%d" % number)
                assert cluster.result(self.table(reader).find(b"k")).rows == (Row(b"k", b"%d" % number, revision),)

    @patch.object(driver_module, "APPLY_WITH_APPEND_MAX", 0)
    def test_found_rows_of_a_backlog(self) -> None:
        """The same where so much came at once that it is applied after all else."""
        cluster = self.of("a", "b", "c")
        for number in range(10):
            # How far is committed comes with the next entry, and so does what is to be applied.
            put = self.table("a").transact((), (Put(b"k", b"%d" % number),))
            put.addCallback(lambda _: self.table("a").transact((), (Put(b"other", b""),)))
            cluster.result(put)
            for id in "abc":
                assert [row.value for row in cluster.result(self.table(id).find(b"k")).rows] == [b"%d" % number]

    def test_found_without_the_disk(self) -> None:
        """What was written or asked for of late is found without a way to a thread, and what is not there too."""
        cluster = self.of("a", "b", "c")
        self.put("a", b"k")
        for id in "abc":
            node = cluster.nodes[id]
            cluster.result(node.table.find(b"none"))
            node.reads.held = True
            for key in (b"k", b"none"):
                assert len(cluster.result(node.table.find(key)).rows) == (key == b"k")
            assert not len(node.reads)

    def test_read_while_the_leader_is_asked(self) -> None:
        """The row is read while the others confirm who leads, and not believed if it changed meanwhile."""
        cluster = self.of("a", "b", "c")
        self.put("a", b"k", b"1")
        for id in "ab":
            node = cluster.nodes[id]
            for changes in (False, True):
                rows, reading = node.table._driver.rows, node.table._driver.reading
                rows.replace(node.table.revision)
                ahead: list[object] = []

                def late(call: Callable[[], T], ahead: Any = ahead, reading: Any = reading) -> Deferred[T]:
                    """What the thread has read arrives a second later."""
                    result: Deferred[T] = Deferred()
                    ahead.append(reading(call).addCallback(partial(cluster.clock.callLater, 1, result.callback)))
                    return result

                with patch.object(node.table._driver, "reading", late):
                    asked = node.table.find(b"k")
                    if changes:
                        last = self.put("a", b"k", b"2" + id.encode())
                        cluster.run(0.5)
                        # The row was dropped since, for others that were used later.
                        rows._rows.clear()
                    cluster.result(asked)
                    assert len(ahead) == 1 + changes, "the row was read once, and again if it may be old"
                found = cluster.result(node.table.find(b"k")).rows
                assert not changes or found == (Row(b"k", b"2" + id.encode(), last),)

    def test_the_leader_dies(self) -> None:
        """The next one leads, everything acknowledged is there, and writing goes on."""
        cluster = self.of("a", "b", "c")
        names = [b"%02d" % n for n in range(20)]
        for name in names:
            self.put("abc"[int(name) % 3], name)
        cluster.kill("a")
        leader = self.new_leader("a")
        assert self.keys(leader.id) == names
        self.put("b", b"new")
        self.put("c", b"newer")
        cluster.restart("a")
        cluster.run(2)
        assert self.keys("a", stale=True) == [*names, b"new", b"newer"]
        assert len(self.digests()) == 1

    def test_under_way_when_the_leader_dies(self) -> None:
        """What was under way ends well on the next leader, and takes effect once."""
        cluster = self.of("a", "b", "c")
        self.put("b", b"counter", b"0")
        going = [self.table("b").transact((), (Put(b"k%d" % n, b""),)) for n in range(10)]
        cluster.run(0.001)
        cluster.kill("a")
        revisions = [cluster.result(one) for one in going]
        assert len(set(revisions)) == 10
        assert self.keys("c") == [b"counter", *(b"k%d" % n for n in range(10))]

    def test_under_way_when_the_leader_is_cut_off(self) -> None:
        """Nobody waits for a leader that will never answer once there is another: not to write, and not to read."""
        cluster = self.of("a", "b", "c")
        self.put("b", b"k")
        cluster.hint = "a"
        cluster.add("d")
        cluster.result(self.table("d").read(b""))
        cluster.silent = True
        cluster.cut |= {pair for other in "bcd" for pair in (("a", other), (other, "a"))}
        going = self.table("b").transact((), (Put(b"l", b""),))
        # d is no member: who leads it hears from the one that answers its reports.
        others = self.table("d").transact((), (Put(b"m", b""),)), self.table("d").read(b"")
        leader = self.new_leader("a")
        cluster.hint = leader.id
        cluster.nodes["d"].table.heed(leader.table.term, frozenset("abc"))
        cluster.run(1)
        for one in (going, *others):
            assert one.called
        assert self.keys(leader.id) == [b"k", b"l", b"m"]

    def test_a_lost_answer(self) -> None:
        """A transaction whose answer was lost gets the same answer again, not a second effect."""
        cluster = self.of("a", "b", "c")
        self.put("b", b"f", b"old")
        self.put("a", b"x")
        cluster.lose_answers = True
        removal = self.table("b").transact((), (Delete(b"f"),))
        cluster.run(0.02)
        cluster.result(self.table("a").read(b""))
        assert self.keys("a") == [b"x"]
        new = self.put("a", b"f", b"new")
        cluster.lose_answers = False
        assert cluster.result(removal) < new
        assert self.keys("c") == [b"f", b"x"]

    def test_no_majority(self) -> None:
        """Without a majority nothing is acknowledged, and after a while one hears so; stale reads go on."""
        cluster = self.of("a", "b", "c")
        self.put("a", b"k")
        cluster.run(0.5)
        cluster.kill("b")
        cluster.kill("c")
        going = self.table("a").transact((), (Put(b"l", b""),))
        reading = self.table("a").read(b"")
        cluster.run(14)
        self.assertNoResult(going)
        cluster.run(1.1)
        self.failureResultOf(going, Unavailable)
        self.failureResultOf(reading, Unavailable)
        assert self.keys("a", stale=True) == [b"k"]
        assert not cluster.nodes["a"].table.is_leader
        cluster.restart("b")
        cluster.until(lambda: cluster.leader())
        assert self.keys("a")[:1] == [b"k"]

    def test_an_old_leader(self) -> None:
        """A leader that is cut off acknowledges nothing more, and its reads are not answered from old rows."""
        cluster = self.of("a", "b", "c")
        self.put("a", b"k", b"old")
        cluster.cut = {("a", "b"), ("a", "c"), ("b", "a"), ("c", "a")}
        writing = self.table("a").transact((), (Put(b"lost", b""),))
        reading = self.table("a").read(b"")
        leader = self.new_leader("a")
        new = self.put(leader.id, b"k", b"new")
        self.assertNoResult(writing)
        self.assertNoResult(reading)
        cluster.cut = set()
        assert cluster.result(writing) > new
        assert [row.value for row in cluster.result(reading).rows if row.key == b"k"] == [b"new"]
        cluster.run(1)
        assert len(self.digests()) == 1

    def test_watch_from_a_history_that_was_cut_off(self) -> None:
        """Who has heard of more than the leader has, has heard of what a takeover undid: it is told to read anew."""
        self.of("a", "b", "c")
        revision = self.put("a", b"k")
        last = self.cluster.nodes["a"].table.last_index
        error = self.failureResultOf(self.table("a").watch(b"", last + 1), Compacted).value
        assert revision < error.first_revision <= last + 1
        self.successResultOf(self.table("a").watch(b"", last)).close()
        # A follower may only be late.
        self.successResultOf(self.table("b").watch(b"", last + 1)).close()

    def test_watch_across_a_change_of_leader(self) -> None:
        """A watch on a follower goes on when the leader dies: no gap, no duplicate, and what was undone never shows."""
        cluster = self.of("a", "b", "c")
        start = self.put("a", b"0")
        watches = {id: cluster.result(self.table(id).watch(b"", start)) for id in "bc"}
        seen: dict[str, list[Event]] = {"b": [], "c": []}

        def follow(id: str, watch: IWatch) -> None:
            def told(batch: Batch) -> None:
                seen[id].extend(batch.events)
                follow(id, watch)

            watch.next().addCallbacks(told, lambda failure: failure.trap(TableClosed))

        for id, watch in watches.items():
            follow(id, watch)
        for n in range(5):
            self.put("b", b"%d" % (n + 1))
        cluster.cut = {("a", "b"), ("a", "c")}
        undone = self.table("a").transact((), (Put(b"undone", b""),))
        cluster.run(0.05)
        cluster.kill("a")
        self.failureResultOf(undone, TableClosed)
        self.new_leader("a")
        for n in range(5, 10):
            self.put("c", b"%d" % (n + 1))
        cluster.run(1)
        expected = [b"%d" % (n + 1) for n in range(10)]
        assert [event.key for event in seen["b"]] == [event.key for event in seen["c"]] == expected
        assert seen["b"] == seen["c"]

    def test_watch_while_this_server_becomes_a_master(self) -> None:
        """A watch that began elsewhere goes on with this server's own rows: no gap, no duplicate, also when cut off."""
        cluster = self.of("a", "b")
        cluster.hint = "a"
        cluster.add("c")
        start = self.put("a", b"0")
        watches = [cluster.result(self.table("c").watch(b"", start)) for _ in range(2)]
        seen: list[bytes] = []

        def told(batch: Batch) -> None:
            seen.extend(event.key for event in batch.events)
            watches[0].next().addCallbacks(told, lambda failure: failure.trap(TableClosed))

        watches[0].next().addCallbacks(told)
        self.put("a", b"1")
        cluster.run(0.1)
        assert seen == [b"1"]
        cluster.grow("c")
        cluster.run(1)
        self.put("a", b"2")
        cluster.cut |= {pair for other in "bc" for pair in (("a", other), (other, "a"))}
        self.new_leader("a")
        self.put("c", b"3")
        cluster.run(1)
        assert seen == [b"1", b"2", b"3"]
        # One that nobody waits for finds its way as well, when it is asked again.
        late: list[bytes] = []
        while late[-1:] != [b"3"]:
            late += [event.key for event in cluster.result(watches[1].next()).events]
        assert late == [b"1", b"2", b"3"]
        for watch in watches:
            watch.close()
            self.failureResultOf(watch.next(), TableClosed)

    def test_hand_over(self) -> None:
        """Leadership goes to a voter that has caught up, and to nobody else."""
        cluster = self.of("a", "b", "c", learners=("d",))
        with self.assertRaises(ChangeRefused):
            cluster.nodes["a"].table.transfer("d")
        with self.assertRaises(NotLeader):
            cluster.nodes["b"].table.transfer("c")
        cluster.nodes["a"].table.transfer("c")
        cluster.until(lambda: cluster.nodes["c"].table.is_leader, 1)
        cluster.run(0.2)
        assert all(node.table.leader == "c" for node in cluster.nodes.values())
        self.put("a", b"k")

    def test_full_disk_of_the_leader(self) -> None:
        """A leader whose disk is full hands over."""
        cluster = self.of("a", "b", "c")
        node = cluster.nodes["a"]
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        with patch.object(node.table._journal, "save", side_effect=full):
            self.put("b", b"k")
            assert not node.table.is_leader and node.table.disk_full
        cluster.run(2)
        assert self.keys("a", stale=True) == [b"k"] and len(self.digests()) == 1

    def test_full_disks_of_all_but_one(self) -> None:
        """The leader keeps its place: of those that would have to elect another one, only that one could write it."""
        cluster = self.of("a", "b", "c")
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        with ExitStack() as stack:
            for id in "ac":
                stack.enter_context(patch.object(cluster.nodes[id].table._journal, "save", side_effect=full))
            cluster.nodes["a"].table.transact((), (Put(b"k", b""),)).addErrback(lambda failure: None)
            terms = set()
            for _ in range(100):
                cluster.run(0.1)
                terms.add((cluster.nodes["a"].table.is_leader, cluster.nodes["a"].table.term))
            assert len(terms) == 1
            assert self.keys("b", stale=True) == self.keys("b") == []
        cluster.run(3)
        assert self.keys("c") == [b"k"]

    def test_full_disk_of_a_follower(self) -> None:
        """Its rows stand still, so whoever reads there is told what the leader has."""
        cluster = self.of("a", "b", "c")
        node = cluster.nodes["b"]
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        with patch.object(node.table._journal, "save", side_effect=full):
            self.put("a", b"k", b"new")
            cluster.run(1)
            assert node.table.disk_full and node.table.stands_still
            began = cluster.clock.seconds()
            assert self.keys("b") == [b"k"]
            assert cluster.result(node.table.find(b"k")).rows[0].value == b"new"
            assert cluster.clock.seconds() - began < 1
            assert self.keys("b", stale=True) == []
            for id in "ac":
                cluster.kill(id)
            cluster.run(3)
            assert node.table.disk_full and not node.table.stands_still, "nobody is there to be asked"
            for id in "ac":
                cluster.restart(id)
            cluster.run(3)
        cluster.run(2)
        assert self.keys("b", stale=True) == [b"k"]

    def test_heartbeats_do_not_wait_for_the_disk(self) -> None:
        """A leader whose disk takes a while keeps its place."""
        cluster = self.of("a", "b", "c")
        self.put("a", b"first")
        node = cluster.nodes["a"]
        term = node.table.term
        node.disk.held = True
        going = node.table.transact((), (Put(b"k", b""),))
        cluster.run(6)
        assert node.table.is_leader and node.table.term == term
        node.disk.release()
        cluster.result(going)

    def test_everyone_thaws(self) -> None:
        """After a pause of all of them, when every timer is overdue at once, the same one leads in the same term."""
        cluster = self.of("a", "b", "c")
        self.put("a", b"first")
        term = self.cluster.nodes["a"].table.term
        for pause in (1.0, 60.0, 86_400.0):
            cluster.clock.advance(pause)
            cluster.run(5)
            leader = cluster.leader()
            assert leader is not None and (leader.id, leader.table.term) == ("a", term)
        self.put("b", b"second")

    def test_removed(self) -> None:
        """A server that is removed does not hear of it from the others; told so, it asks them from then on."""
        cluster = self.of("a", "b", "c")
        revision = self.put("a", b"k")
        cluster.run(0.5)
        removed = cluster.nodes["c"].table
        waiting = cluster.result(removed.watch(b"", revision)).next()
        cluster.result(cluster.nodes["a"].table.propose_configuration(Configuration({"a", "b"})))
        cluster.run(3)
        cluster.hint = "a"
        # Without having been told it brings what is asked of it to whoever leads.
        self.put("c", b"l")
        assert self.keys("c") == [b"k", b"l"]
        self.assertNoResult(waiting)
        removed.heed(cluster.nodes["a"].table.term, frozenset("ab"))
        self.failureResultOf(waiting, Unavailable)
        assert not removed.holds_rows and removed.leader == "a"
        with self.assertRaises(Unavailable):
            cluster.result(removed.read(b"", stale=True))
        self.put("c", b"m")
        assert self.keys("c") == [b"k", b"l", b"m"]
        again = cluster.result(removed.watch(b"", revision))
        assert [event.key for event in cluster.result(again.next()).events] == [b"l", b"m"]
        cluster.result(cluster.nodes["a"].table.propose_configuration(Configuration({"a", "b"}, {"c"})))
        cluster.until(lambda: removed.holds_rows)
        cluster.run(1)
        assert len(self.digests()) == 1

    def test_read_on_a_server_that_was_just_removed(self) -> None:
        """It waits for entries that never come there, and asks the leader as soon as it hears that one no more."""
        cluster = self.of("a", "b", "c", "d")
        self.put("a", b"k")
        cluster.run(0.5)
        cluster.hint = "a"
        cluster.result(cluster.nodes["a"].table.propose_configuration(Configuration({"a", "b", "c"})))
        found, page = self.table("d").find(b"k"), self.table("d").read(b"")
        assert [row.key for row in cluster.result(found, 3).rows] == [b"k"]
        assert [row.key for row in cluster.result(page, 0.5).rows] == [b"k"]

    def test_the_leader_removes_itself(self) -> None:
        """A leader may remove itself; it is told when that is committed, and another one leads."""
        cluster = self.of("a", "b", "c")
        cluster.hint = "b"
        cluster.result(cluster.nodes["a"].table.propose_configuration(Configuration({"b", "c"})))
        assert not cluster.nodes["a"].table.is_leader
        self.new_leader("a")
        self.put("c", b"k")

    def test_changes_that_are_refused(self) -> None:
        """A change of more than one server is refused with a reason, and so is one that a follower asks for."""
        cluster = self.of("a", "b", "c")
        with self.assertRaises(ChangeRefused):
            cluster.result(cluster.nodes["a"].table.propose_configuration(Configuration({"a"})))
        with self.assertRaises(NotLeader):
            cluster.result(cluster.nodes["b"].table.propose_configuration(Configuration({"a", "b"})))
        assert not cluster.nodes["a"].table.change_pending

    def test_change_lost_with_leadership(self) -> None:
        """A change whose leader is deposed before it was committed ends as unavailable, not as done."""
        cluster = self.of("a", "b", "c")
        cluster.cut = {("a", "b"), ("a", "c"), ("b", "a"), ("c", "a")}
        going = cluster.nodes["a"].table.propose_configuration(Configuration({"a", "b", "c"}, {"d"}))
        assert cluster.nodes["a"].table.change_pending
        cluster.run(3)
        self.failureResultOf(going, Unavailable)

    def test_forgotten_session(self) -> None:
        """A session that the table has forgotten is replaced without the user's noticing."""
        cluster = self.of("a")
        self.put("a", b"k")
        node = cluster.nodes["a"]
        node.table._journal._connection.execute("DELETE FROM sessions")
        node.table._journal._connection.execute("DELETE FROM answers")
        self.put("a", b"l")
        assert self.keys("a") == [b"k", b"l"]

    @patch.object(rows_module, "SESSIONS_MAX", 1)
    def test_forgotten_between_two_sends(self) -> None:
        """Nobody can tell whether what was sent twice took effect: the user hears so, and it is not done anew."""
        cluster = self.of("a", "b", "c")
        self.put("b", b"k")
        cluster.lose_answers = True
        going = self.table("b").transact((), (Put(b"l", b""),))
        cluster.run(0.02)
        assert self.keys("a") == [b"k", b"l"]
        # The table has room for no other session than that of the server which says this.
        cluster.result(self.table("a").transact((), (Delete(b"l"),)))
        cluster.lose_answers = False
        with self.assertRaisesRegex(Unavailable, "unknown"):
            cluster.result(going)
        cluster.run(1)
        assert self.keys("c") == [b"k"]

    @patch.object(rows_module, "SESSIONS_MAX", 1)
    def test_forgotten_after_leadership_was_lost(self) -> None:
        """What a leader had told others before it was deposed counts as sent: the next one may have committed it."""
        cluster = self.of("a", "b", "c")
        self.put("a", b"k")
        cluster.cut = {("b", "a"), ("c", "a")}
        going = self.table("a").transact((), (Put(b"l", b""),))
        leader = self.new_leader("a")
        assert self.keys(leader.id) == [b"k", b"l"]
        cluster.until(lambda: not cluster.nodes["a"].table.is_leader)
        cluster.result(leader.table.transact((), (Delete(b"l"),)))
        self.assertNoResult(going)
        cluster.cut = set()
        with self.assertRaisesRegex(Unavailable, "unknown"):
            cluster.result(going)
        cluster.run(1)
        assert self.keys("a") == [b"k"]


class CatchUpTests(ClusterTestCase):
    """Servers that were away, or are new."""

    @patch.object(journal_module, "LOG_ENTRIES_MAX", 20)
    @patch.object(journal_module, "LOG_TAIL", 10)
    def test_by_snapshot(self) -> None:
        """A server that missed more than the log holds gets the whole table; its watches say so."""
        cluster = self.of("a", "b", "c")
        start = self.put("a", b"start")
        cluster.run(0.5)
        watch = cluster.result(self.table("c").watch(b"", start))
        assert [row.value for row in cluster.result(self.table("c").find(b"start")).rows] == [b""]
        cluster.cut = {("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")}
        for n in range(60):
            self.put("a", b"%02d" % n)
        self.put("a", b"start", b"changed")
        waiting = watch.next()
        pages = cluster.pages
        cluster.cut = set()
        cluster.run(4)
        assert cluster.pages > pages
        assert isinstance(self.failureResultOf(waiting).value, Compacted)
        assert len(self.keys("c", stale=True)) == 61
        assert [row.value for row in cluster.result(self.table("c").find(b"start", stale=True)).rows] == [b"changed"]
        assert len(self.digests()) == 1
        again = cluster.result(self.table("c").watch(b"", cluster.nodes["c"].table.revision))
        new = self.put("b", b"new")
        assert cluster.result(again.next()).events == (Event(new, "PUT", b"new", b""),)

    def test_learner(self) -> None:
        """A learner has the rows, and its silence stops nobody."""
        cluster = self.of("a", learners=("b",))
        self.put("b", b"k")
        cluster.run(1)
        assert self.keys("b", stale=True) == [b"k"]
        cluster.kill("b")
        self.put("a", b"l")

    def test_not_caught_up(self) -> None:
        """A new member answers no stale reads before its rows once were as new as the leader's."""
        cluster = self.of("a")
        self.put("a", b"k")
        node = cluster.add("b")
        node.disk.held = True
        cluster.result(cluster.nodes["a"].table.propose_configuration(Configuration({"a"}, {"b"})))
        cluster.run(2)
        assert not node.table.holds_rows and cluster.nodes["a"].table.caught_up() == {"a"}
        with self.assertRaises(Unavailable):
            cluster.result(node.table.read(b"", stale=True))
        node.disk.release()
        cluster.until(lambda: node.table.holds_rows)
        assert self.keys("b", stale=True) == [b"k"]
        cluster.kill("a")
        cluster.kill("b")
        assert cluster.restart("b").table.holds_rows
        assert self.keys("b", stale=True) == [b"k"]

    @patch.object(embedded_module, "CAUGHT_UP_LAG", 5)
    def test_too_far_behind(self) -> None:
        """A member that answers, and whose disk is far behind, takes nobody's place until it has caught up."""
        cluster = self.of("a", "b", "c")
        self.put("a", b"k")
        cluster.run(1)
        leader, late = cluster.nodes["a"].table, cluster.nodes["c"]
        late.disk.held = True
        for number in range(10):
            self.put("a", b"%d" % number)
        cluster.run(1)
        assert leader.progress()["c"].recently_active and leader.caught_up() == {"a", "b"}
        late.disk.release()
        cluster.run(1)
        assert leader.caught_up() == {"a", "b", "c"}

    def test_snapshot_interrupted(self) -> None:
        """A snapshot whose receiver dies half way is sent again from the start."""
        cluster = self.of("a")
        for n in range(60):
            self.put("a", b"%02d" % n, bytes(8000))
        cluster.add("b")
        going = cluster.nodes["a"].table.propose_configuration(Configuration({"a"}, {"b"}))
        cluster.until(lambda: cluster.pages >= 3)
        cluster.kill("b")
        cluster.result(going)
        cluster.run(1)
        cluster.restart("b")
        cluster.until(lambda: cluster.nodes["b"].table.holds_rows)
        assert len(self.digests()) == 1

    def test_writes_while_a_snapshot_is_sent(self) -> None:
        """The farm goes on while a new server gets the table, and that one misses nothing."""
        cluster = self.of("a")
        for n in range(60):
            self.put("a", b"%02d" % n, bytes(8000))
        cluster.add("b")
        cluster.result(cluster.nodes["a"].table.propose_configuration(Configuration({"a"}, {"b"})))
        cluster.until(lambda: cluster.pages >= 3)
        for n in range(20):
            self.put("a", b"%02d" % n, b"new")
        cluster.until(lambda: cluster.nodes["b"].table.holds_rows)
        cluster.run(1)
        assert len(self.digests()) == 1

    def test_no_room_for_a_snapshot(self) -> None:
        """It is said once, not with each try, and the snapshot comes when there is room."""
        cluster = self.of("a")
        self.put("a", b"k")
        cluster.add("b")
        journal = cluster.nodes["b"].table._journal
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        with capturedLogs() as said, patch.object(journal, "receive", side_effect=full) as receive:
            cluster.result(cluster.nodes["a"].table.propose_configuration(Configuration({"a"}, {"b"})))
            cluster.run(10)
            assert receive.call_count > 2
        assert [event["log_level"] for event in said if "no room" in event["log_format"]] == [LogLevel.error]
        assert self.flushLoggedErrors() == []
        cluster.until(lambda: cluster.nodes["b"].table.holds_rows)

    def test_two_senders(self) -> None:
        """Pages that do not belong to what is being received are refused, and do no harm."""
        cluster = self.of("a", "b", "c")
        from chunkfarm.table.codec import SnapshotPage, encode_snapshot_page

        term = cluster.nodes["a"].table.term
        meta = SnapshotMeta(99, 1, Configuration({"x"}))
        page = SnapshotPage(stream=1, sequence=4, term=term, meta=meta, records=b"")
        self.failureResultOf(self.receive("b", "c", encode_snapshot_page(page)), BadRequest)
        old = SnapshotPage(stream=1, sequence=0, term=0, meta=meta, records=b"")
        self.failureResultOf(self.receive("b", "c", encode_snapshot_page(old)), NotNow)
        self.failureResultOf(self.receive("b", "c", b"\x02"), BadRequest)
        self.put("a", b"k")

    def test_one_that_cannot_be_thrown_away(self) -> None:
        """A snapshot that is no use, and of which the disk does not let go, keeps no later one out."""
        from chunkfarm.table.codec import SnapshotPage, encode_snapshot_page

        cluster = self.of("a", "b", "c")
        term = cluster.nodes["a"].table.term
        journal = cluster.nodes["c"].table._journal
        digest = hashlib.sha256().digest()
        page = encode_snapshot_page(
            SnapshotPage(
                stream=1,
                sequence=0,
                term=term,
                meta=SnapshotMeta(1, 1, Configuration({"a"})),
                records=b"",
                last=True,
                count=0,
                digest=digest,
            )
        )
        with patch.object(journal, "drop_incoming", side_effect=[None, OSError("Input/output error")]):
            self.successResultOf(self.receive("c", "a", page))
        assert self.flushLoggedErrors(OSError)
        self.successResultOf(self.receive("c", "a", page))

    def receive(self, to: str, sender: str, payload: bytes) -> Deferred[None]:
        return self.cluster.nodes[to].table.for_others.receive(sender, payload)


class AnswersTests(ClusterTestCase):
    """What the peer port asks on behalf of other servers."""

    def request(self, epoch: int, *keys: bytes) -> bytes:
        return encode_request(Transaction("x", epoch, 1, 0, (), tuple(Put(key, b"") for key in keys)))

    def answer(self, id: str, request: bytes, **options: bool) -> Answer:
        return decode_answer(self.cluster.result(self.cluster.nodes[id].table.for_others.transact(request, **options)))

    def test_only_the_leader(self) -> None:
        """Others name the leader."""
        cluster = self.of("a", "b", "c")
        for answer in (
            cluster.nodes["b"].table.for_others.transact(encode_request(OpenSession("x"))),
            cluster.nodes["b"].table.for_others.read(encode_read(ReadRequest(b"", b"", 9))),
        ):
            assert str(self.failureResultOf(answer, NotFirst).value) == '{"id": "a"}'
        cluster.add("d")
        answer = cluster.nodes["d"].table.for_others.transact(encode_request(OpenSession("x")))
        assert str(self.failureResultOf(answer, NotFirst).value) == "{}"

    def test_the_leader_answers(self) -> None:
        """The leader answers transactions and reads."""
        cluster = self.of("a", "b", "c")
        opened = self.answer("a", encode_request(OpenSession("x")))
        assert opened.kind is AnswerKind.OPENED
        done = self.answer("a", self.request(opened.revision, b"k"))
        assert done.kind is AnswerKind.DONE
        asked = cluster.nodes["a"].table.for_others.read(encode_read(ReadRequest(b"", b"", 9)))
        page = decode_page(cluster.result(asked))
        assert [(row.key, row.revision) for row in page.rows] == [(b"k", done.revision)]

    def test_secrets(self) -> None:
        """Secret rows are neither read nor touched for a server that may not; wide reads leave them out."""
        cluster = self.of("a")
        epoch = self.answer("a", encode_request(OpenSession("x"))).revision
        answers = cluster.nodes["a"].table.for_others
        self.failureResultOf(answers.transact(self.request(epoch, b"secret/ca")), BadRequest)
        request = self.request(epoch, b"secret/ca", b"servers/1", b"rest")
        assert self.answer("a", request, allow_secret=True).kind is AnswerKind.DONE
        narrow, wide = (encode_read(ReadRequest(prefix, b"", 2)) for prefix in (b"secret/", b"s"))
        table = cluster.nodes["a"].table
        self.failureResultOf(table.for_others.read(narrow), BadRequest)
        assert [row.key for row in decode_page(cluster.result(table.for_others.read(wide))).rows] == [b"servers/1"]
        page = decode_page(cluster.result(table.for_others.read(narrow, allow_secret=True)))
        assert [row.key for row in page.rows] == [b"secret/ca"]

    def test_last_known(self) -> None:
        """Who holds rows tells another server of them without a leader, secrets left out; who holds none does not."""
        cluster = self.of("a", "b", "c")
        for key in (b"files/a", b"secret/ca", b"servers/1"):
            self.put("a", key)
        cluster.add("d")
        cluster.run(1)
        for id in "ac":
            cluster.kill(id)
        cluster.run(5)
        table, request = cluster.nodes["b"].table, encode_read(ReadRequest(b"", b"", 9))
        assert self.rows(table.for_others.read(request, stale=True)) == [b"files/a", b"servers/1"]
        narrow = encode_read(ReadRequest(b"secret/", b"", 9))
        self.failureResultOf(table.for_others.read(narrow, stale=True), BadRequest)
        self.failureResultOf(cluster.nodes["d"].table.for_others.read(request, stale=True), NotNow)

    def test_who_knows_most(self) -> None:
        """A server without rows believes the one whose rows are newest, and waits for nobody who does not answer."""
        cluster = self.of("a", "b", "c")
        cluster.hint = "a"
        cluster.add("d")
        self.put("a", b"old")
        cluster.run(1)
        cluster.kill("c")
        self.put("a", b"new")
        cluster.run(1)
        cluster.kill("a")
        cluster.restart("c")
        cluster.silent = True
        cluster.cut |= {("b", "c"), ("c", "b")}
        cluster.run(5)
        assert cluster.leader() is None
        assert [row.key for row in cluster.result(self.table("d").last_known(b"")).rows] == [b"new", b"old"]
        cluster.kill("b")
        assert [row.key for row in cluster.result(self.table("d").last_known(b"")).rows] == [b"old"]
        cluster.kill("c")
        failed = self.table("d").last_known(b"")
        cluster.run(LAST_KNOWN_SECONDS + 0.1)
        self.failureResultOf(failed, Unavailable)

    def test_who_did_not_answer_a_moment_ago(self) -> None:
        """One that is silent is waited for once, and not again for each row that is read in the next seconds."""
        cluster = self.of("a", "b", "c")
        cluster.hint = "a"
        cluster.add("d")
        self.put("a", b"old")
        cluster.run(1)
        cluster.silent = True
        cluster.kill("a")
        cluster.kill("b")
        cluster.run(5)

        def read(seconds: float) -> None:
            asked = self.table("d").last_known(b"")
            cluster.run(seconds - 0.05)
            self.assertNoResult(asked)
            cluster.run(0.1)
            assert [row.key for row in self.successResultOf(asked).rows] == [b"old"]

        read(LAST_KNOWN_SECONDS)
        for _ in range(3):
            read(LAST_KNOWN_AGAIN_SECONDS)
        cluster.run(LAST_KNOWN_QUIET_SECONDS)
        read(LAST_KNOWN_SECONDS)
        # Who is left alone is waited for, and who answers is so again from then on.
        cluster.kill("c")
        failed = self.table("d").last_known(b"")
        cluster.run(LAST_KNOWN_SECONDS + 0.1)
        self.failureResultOf(failed, Unavailable)
        failed = self.table("d").last_known(b"")
        cluster.run(LAST_KNOWN_SECONDS - 0.1)
        self.assertNoResult(failed)
        cluster.run(0.2)
        self.failureResultOf(failed, Unavailable)
        cluster.restart("c")
        cluster.run(LAST_KNOWN_SECONDS)
        assert [row.key for row in cluster.result(self.table("d").last_known(b"")).rows] == [b"old"]

    def rows(self, answer: Deferred[bytes]) -> list[bytes]:
        return [row.key for row in decode_page(self.cluster.result(answer)).rows]

    def test_malformed(self) -> None:
        """Garbage, and what breaks the limits, is refused before it reaches the log."""
        cluster = self.of("a")
        table = cluster.nodes["a"].table
        last = table.last_index
        large = encode_request(Transaction("x", 1, 1, 0, (), (Put(b"k", bytes(20_000)),)))
        long_name = encode_request(OpenSession("x" * 60_000))
        for request in (b"", b"garbage", large, long_name):
            self.failureResultOf(table.for_others.transact(request), BadRequest)
        for request in (b"", encode_read(ReadRequest(b"", b"", 10**9))):
            self.failureResultOf(table.for_others.read(request), BadRequest)
        assert table.last_index == last

    def test_without_a_majority(self) -> None:
        """A leader of two whose follower is silent says that it cannot now."""
        cluster = self.of("a", "b")
        cluster.kill("b")
        opening = cluster.nodes["a"].table.for_others.transact(encode_request(OpenSession("x")))
        cluster.run(9)
        self.failureResultOf(opening, NotNow)
        assert cluster.nodes["a"].table.is_leader and not cluster.nodes["a"].table.has_quorum
        self.failureResultOf(cluster.nodes["a"].table.for_others.transact(encode_request(OpenSession("x"))), NotNow)

    def test_impostor(self) -> None:
        """A message counts only if it names the server whose certificate the link showed."""
        cluster = self.of("a", "b", "c")
        term = cluster.nodes["b"].table.term
        for kind, sender, to in (
            (MessageKind.APPEND, "a", "b"),
            (MessageKind.APPEND, "c", "a"),
            (MessageKind.SNAPSHOT, "c", "b"),
        ):
            snapshot = SnapshotMeta(99, 9, Configuration({"c"})) if kind is MessageKind.SNAPSHOT else None
            message = Message(kind=kind, sender=sender, to=to, term=term + 5, snapshot=snapshot)
            self.successResultOf(cluster.nodes["b"].table.for_others.receive("c", encode_message(message)))
        self.successResultOf(cluster.nodes["b"].table.for_others.receive("c", b"garbage"))
        assert cluster.nodes["b"].table.term == term
        assert cluster.nodes["b"].fatal == []
