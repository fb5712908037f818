"""Random deaths, cuts, lost answers and slow disks: what was acknowledged is there, once, on everyone."""

from __future__ import annotations

import random
from unittest.mock import patch

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table import journal as journal_module
from chunkfarm.table.driver import StorageTooSlow
from chunkfarm.table.interface import Batch, Compare, Conflict, Event, IWatch, Put, Row, TableError
from chunkfarm.table.rows import digest_of_state
from tests.table.cluster import Cluster, Node

VOTERS = ("a", "b", "c")


@define
class Storm:
    """A cluster in bad weather, and what its users were told."""

    cluster: Cluster
    chance: random.Random
    acknowledged: dict[bytes, int] = field(factory=dict)
    refused: set[bytes] = field(factory=set)
    counted: int = 0
    uncertain: int = 0
    number: int = 0
    under_way: int = 0
    read_at: list[tuple[int, int]] = field(factory=list)

    def alive(self) -> list[Node]:
        return [node for node in self.cluster.nodes.values() if node.alive]

    def put(self) -> None:
        """A row of its own name, which must be there once it is acknowledged."""
        if not self.alive():
            return
        self.number += 1
        key = b"own/%04d" % self.number
        table = self.chance.choice(self.alive()).table
        self._going(table.transact((Compare(key, "==", 0),), (Put(key, b""),)), key)

    def _going(self, going: Deferred[int], key: bytes) -> None:
        self.under_way += 1

        def done(outcome: int | Failure) -> None:
            self.under_way -= 1
            if not isinstance(outcome, Failure):
                self.acknowledged[key] = outcome
            elif outcome.check(Conflict):
                self.refused.add(key)
            else:
                outcome.trap(TableError)

        going.addBoth(done)

    def count(self) -> None:
        """Read a number and add one to it, if nobody else has meanwhile."""
        if not self.alive():
            return
        table = self.chance.choice(self.alive()).table
        before = max(self.acknowledged.values(), default=0)

        async def add() -> None:
            self.under_way += 1
            try:
                page = await table.read(b"count")
                # A linearizable read is never older than what was acknowledged before it began.
                self.read_at.append((before, page.revision))
                row = page.rows[0] if page.rows else None
                value = int(row.value) if row else 0
                compare = Compare(b"count", "==", row.revision if row else 0)
                self.uncertain += 1
                await table.transact((compare,), (Put(b"count", b"%d" % (value + 1)),))
            except Conflict:
                self.uncertain -= 1
            except TableError:
                pass
            else:
                self.uncertain -= 1
                self.counted += 1
            finally:
                self.under_way -= 1

        Deferred.fromCoroutine(add())

    def weather(self) -> None:
        cluster, chance = self.cluster, self.chance
        what = chance.randrange(12)
        if what == 0 and len(self.alive()) == len(VOTERS):
            cluster.kill(chance.choice(VOTERS))
        elif what <= 3:
            for node in list(cluster.nodes.values()):
                if not node.alive:
                    cluster.restart(node.id)
        elif what == 4:
            one, other = chance.sample(VOTERS, 2)
            cluster.cut.add((one, other))
        elif what == 5:
            one = chance.choice(VOTERS)
            cluster.cut |= {(one, other) for other in VOTERS} | {(other, one) for other in VOTERS}
        elif what <= 7:
            cluster.cut.clear()
        elif what == 8 and self.alive():
            chance.choice(self.alive()).disk.held = True
        elif what == 9:
            cluster.lose_answers = not cluster.lose_answers
        else:
            for node in self.alive():
                node.disk.release()

    def bury(self) -> None:
        """A process whose disk was too slow has ended itself."""
        for node in self.alive():
            if node.fatal:
                assert [failure.type for failure in node.fatal] == [StorageTooSlow]
                self.cluster.kill(node.id)

    def calm(self) -> None:
        self.bury()
        cluster = self.cluster
        cluster.cut.clear()
        cluster.lose_answers = False
        for node in list(cluster.nodes.values()):
            if node.alive:
                node.disk.release()
            else:
                cluster.restart(node.id)
        cluster.until(lambda: self.under_way == 0, 60)
        cluster.until(lambda: len({node.table.revision for node in self.alive()}) == 1, 60)


class StormTests(SynchronousTestCase):
    """Each seed is another history."""

    @patch.object(journal_module, "LOG_ENTRIES_MAX", 60)
    @patch.object(journal_module, "LOG_TAIL", 20)
    def storm(self, seed: int) -> None:
        cluster = Cluster(self.mktemp(), seed)
        self.addCleanup(cluster.stop)
        cluster.found("a")
        cluster.grow("b", "c")
        storm = Storm(cluster, random.Random(seed))
        for _ in range(150):
            storm.put()
            if storm.chance.random() < 0.5:
                storm.count()
            if storm.chance.random() < 0.4:
                storm.weather()
            storm.bury()
            cluster.run(storm.chance.choice((0.01, 0.05, 0.3, 0.6)))
        storm.calm()
        rows: dict[bytes, Row] = {}
        more = True
        while more:
            page = cluster.result(cluster.nodes["b"].table.read(b"", after=max(rows, default=b"")))
            rows |= {row.key: row for row in page.rows}
            more = page.more
        assert len(storm.acknowledged) > 20
        for key, revision in storm.acknowledged.items():
            assert rows[key].revision == revision, key
        # Nobody else writes those rows, so a conflict can only mean that a repeat was taken for a new one.
        assert not storm.refused
        assert all(revision >= before for before, revision in storm.read_at)
        value = int(rows[b"count"].value) if b"count" in rows else 0
        assert storm.counted <= value <= storm.counted + storm.uncertain
        assert len({digest_of_state(node.table._journal._connection) for node in storm.alive()}) == 1
        assert not any(node.fatal for node in storm.alive())

    def test_storms(self) -> None:
        """Nothing acknowledged is lost, nothing takes effect twice, reads are never old, and all end up the same."""
        for seed in range(8):
            self.storm(seed)


class WatchStormTests(SynchronousTestCase):
    """A watcher that moves from server to server."""

    def test_watch(self) -> None:
        """Whoever reads and watches again where it left off sees every change once, in order."""
        cluster = Cluster(self.mktemp())
        self.addCleanup(cluster.stop)
        cluster.found("a")
        cluster.grow("b", "c")
        cluster.run(1)
        storm = Storm(cluster, random.Random(5))
        start = cluster.nodes["a"].table.revision
        seen: list[Event] = []
        position = start
        waiting: list[Deferred[Batch]] = []
        watch: IWatch | None = None
        for _ in range(120):
            storm.put()
            if storm.chance.random() < 0.3:
                storm.weather()
            storm.bury()
            cluster.run(0.2)
            holders = [node for node in storm.alive() if node.table.holds_rows]
            if watch is None and not holders:
                continue
            if watch is None:
                watch = self.successResultOf(storm.chance.choice(holders).table.watch(b"own/", position))
            if not waiting:
                waiting.append(watch.next())
            outcome: list[Batch | Failure] = []
            if waiting[0].called:
                waiting.pop().addBoth(outcome.append)
            if not outcome:
                continue
            if isinstance(outcome[0], Failure):
                outcome[0].trap(TableError)
                watch = None
            else:
                assert all(event.revision > position for event in outcome[0].events)
                seen += outcome[0].events
                position = outcome[0].revision
        storm.calm()
        last = self.successResultOf(cluster.nodes["c"].table.watch(b"own/", position))
        while position < max(storm.acknowledged.values()):
            batch = cluster.result(last.next())
            seen += batch.events
            position = batch.revision
        for one in waiting:
            one.cancel()
            one.addErrback(lambda _: None)
        revisions = [event.revision for event in seen]
        assert revisions == sorted(set(revisions))
        assert {(event.key, event.revision) for event in seen} >= set(storm.acknowledged.items())
        assert len({event.key for event in seen}) == len(seen)
