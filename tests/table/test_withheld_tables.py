"""Tables that decide nothing until they have caught up, and one that goes on alone because a person says so."""

from __future__ import annotations

import os
import shutil
import sqlite3
from unittest.mock import patch

import pytest
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.consensus import ChangeRefused
from chunkfarm.table.interface import Put, TableClosed
from chunkfarm.table.records import Configuration
from tests.table.cluster import Cluster, Node


class TableCase(SynchronousTestCase):
    """Journals and time in seconds."""

    def make_cluster(self, *voters: str, learners: tuple[str, ...] = ()) -> Cluster:
        cluster = Cluster(self.mktemp())
        self.addCleanup(cluster.stop)
        cluster.found("a")
        cluster.grow(*voters, learners=learners)
        return cluster

    def write(self, cluster: Cluster, id: str, key: bytes = b"k") -> int:
        return cluster.result(cluster.nodes[id].table.transact((), (Put(key, b"v"),)))

    def keys(self, cluster: Cluster, id: str) -> list[bytes]:
        return [row.key for row in cluster.result(cluster.nodes[id].table.read(b"")).rows]

    def start_withheld(self, cluster: Cluster, id: str, reason: str = "Its disk is old.") -> Node:
        return cluster.add(id, lambda table: table.withhold(reason, lambda: True))

    def copy(self, source: str, to: str) -> None:
        """The files of a journal, as they lie on the disk of a process that is gone."""
        for ending in ("", "-wal", "-shm"):
            if os.path.exists(source + ending):
                shutil.copyfile(source + ending, to + ending)
            elif os.path.exists(to + ending):
                os.unlink(to + ending)


class WithheldTests(TableCase):
    def test_released_when_caught_up(self) -> None:
        """A withheld server says why, catches up, and votes again."""
        cluster = self.make_cluster("b", "c")
        cluster.kill("c")
        self.write(cluster, "a")
        node = self.start_withheld(cluster, "c")
        assert node.table.withheld == "Its disk is old."
        cluster.until(lambda: not node.table.withheld)
        assert node.table.revision >= cluster.nodes["a"].table.revision - 1
        cluster.kill("a")
        cluster.until(lambda: cluster.leader() is not None)
        assert self.keys(cluster, "c") == [b"k"]

    def test_not_before_its_condition_holds(self) -> None:
        """However far it is, it waits for what it was told to wait for; the leader does not count it."""
        cluster = self.make_cluster("b", "c")
        held = [True]
        table = cluster.nodes["c"].table
        table.withhold("It belongs to another history.", lambda: not held[0])
        cluster.run(20)
        assert table.withheld == "It belongs to another history."
        assert "c" not in cluster.nodes["a"].table.caught_up()
        held.clear()
        held.append(False)
        cluster.until(lambda: not table.withheld)
        cluster.until(lambda: "c" in cluster.nodes["a"].table.caught_up())

    def test_a_condition_that_fails(self) -> None:
        """An error in what is waited for is told, and counts as not yet."""
        cluster = self.make_cluster("b", "c")
        table = cluster.nodes["c"].table
        table.withhold("It is in doubt.", lambda: 1 // 0 > 0)
        cluster.run(3)
        assert table.withheld
        assert self.flushLoggedErrors(ZeroDivisionError)

    def test_two_reasons(self) -> None:
        """Both are told, and both must come to their end."""
        cluster = self.make_cluster("b", "c")
        table = cluster.nodes["c"].table
        first, second = [False], [False]
        table.withhold("one", lambda: first[0])
        table.withhold("two", lambda: second[0])
        assert table.withheld == "one; two"
        first[0] = True
        cluster.run(5)
        assert table.withheld == "one; two"
        second[0] = True
        cluster.until(lambda: not table.withheld)

    def test_a_restart_does_not_forget(self) -> None:
        """Killed before it has caught up, it is withheld again, without anybody's word."""
        cluster = self.make_cluster("b", "c")
        for id in "abc":
            cluster.kill(id)
        self.start_withheld(cluster, "c")
        cluster.run(1)
        cluster.kill("c")
        node = cluster.restart("c")
        assert node.table.withheld == "Its disk is old."
        cluster.restart("a")
        cluster.run(30)
        assert cluster.leader() is None
        cluster.restart("b")
        cluster.until(lambda: not node.table.withheld)
        cluster.kill("c")
        assert cluster.restart("c").table.withheld == ""

    def test_a_full_disk_of_the_leader(self) -> None:
        """It is not handed to one that may not lead, and the process does not end for that: it waits for room."""
        cluster = self.make_cluster("b", "c")
        cluster.nodes["c"].table.withhold("It is in doubt.", lambda: False)
        cluster.run(1)
        node = cluster.nodes["a"]
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        with patch.object(node.table._journal, "save", side_effect=full):
            node.table.transact((), (Put(b"k", b"v"),)).addErrback(lambda failure: None)
            cluster.run(5)
            assert node.table.disk_full and node.fatal == []
        self.write(cluster, "a", b"again")

    def test_a_full_disk_writes_the_last_word(self) -> None:
        """What was to be written before, and found no room, does not take the place of what is so now."""
        cluster = self.make_cluster("b", "c")
        table = cluster.nodes["c"].table
        waits = [True]
        table.withhold("It is in doubt.", lambda: not waits)
        cluster.run(1)
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        with patch.object(table._journal, "set_note", side_effect=full):
            waits.clear()
            cluster.until(lambda: not table.withheld)
        table.withhold("It is in doubt again.", lambda: False)
        cluster.run(3)
        cluster.kill("c")
        assert cluster.restart("c").table.withheld == "It is in doubt again."

    def test_a_leader_is_withheld(self) -> None:
        """It steps down, another one leads, and it comes back as one of them."""
        cluster = self.make_cluster("b", "c")
        table = cluster.nodes["a"].table
        table.withhold("It is in doubt.", lambda: True)
        assert not table.is_leader
        cluster.until(lambda: cluster.leader() is not None and not table.withheld)
        self.write(cluster, "a")

    def test_a_disk_that_was_put_back(self) -> None:
        """Three servers; the disk of one is put back, the leader dies, and what was written is not lost."""
        cluster = self.make_cluster("b", "c")
        cluster.kill("c")
        path = cluster.nodes["c"].path
        self.copy(path, path + ".old")
        cluster.restart("c")
        cluster.kill("b")
        self.write(cluster, "a", b"acknowledged")
        for id in "ac":
            cluster.kill(id)
        self.copy(path + ".old", path)
        # Without the word of doubt these two would elect one of them, and what a and c have acknowledged were gone.
        cluster.restart("b")
        node = self.start_withheld(cluster, "c")
        cluster.run(30)
        assert cluster.leader() is None
        cluster.restart("a")
        cluster.until(lambda: not node.table.withheld)
        assert self.keys(cluster, "c") == [b"acknowledged"]

    def test_a_follower_put_back_under_a_living_leader(self) -> None:
        """Nobody knows that its disk is old; the leader notices that the log is shorter, and sends it again."""
        cluster = self.make_cluster("b", "c")
        cluster.kill("c")
        path = cluster.nodes["c"].path
        self.copy(path, path + ".old")
        cluster.restart("c")
        self.write(cluster, "a", b"one")
        cluster.until(lambda: cluster.nodes["c"].table.revision == cluster.nodes["a"].table.revision)
        cluster.kill("c")
        self.copy(path + ".old", path)
        node = cluster.restart("c")
        assert node.table.revision < cluster.nodes["a"].table.revision
        cluster.until(lambda: node.table.revision == cluster.nodes["a"].table.revision, 5.0)
        assert self.keys(cluster, "c") == [b"one"]


class TakeoverByForceTests(TableCase):
    def test_two_of_three_are_lost(self) -> None:
        """The last one goes on alone with all it has, what was never acknowledged included; then it grows again."""
        cluster = self.make_cluster("b", "c")
        self.write(cluster, "a", b"before")
        cluster.until(lambda: len({node.table.revision for node in cluster.nodes.values()}) == 1)
        for id in "bc":
            cluster.kill(id)
        table = cluster.nodes["a"].table
        term, last = table.journal_position
        assert (term, last) == (table.term, table.last_index)
        cluster.until(lambda: not table.is_leader)
        cluster.run(20)
        table.take_over_by_force(17)
        cluster.until(lambda: table.is_leader and table.committed_this_term)
        assert table.term == 18
        assert table.configuration == Configuration("a")
        self.write(cluster, "a", b"after")
        assert self.keys(cluster, "a") == [b"after", b"before"]
        cluster.grow("d")
        self.write(cluster, "d", b"grown")

    def test_what_waited_for_the_majority(self) -> None:
        """A write whose outcome nobody knew is done once there is somebody to decide."""
        cluster = self.make_cluster("b", "c")
        for id in "bc":
            cluster.kill(id)
        write = cluster.nodes["a"].table.transact((), (Put(b"k", b"v"),))
        cluster.run(15)
        assert not write.called
        cluster.nodes["a"].table.take_over_by_force(0)
        assert cluster.result(write)

    def test_survives_a_restart(self) -> None:
        """What a person has decided stands in the journal."""
        cluster = self.make_cluster("b", "c")
        for id in "abc":
            cluster.kill(id)
        table = self.start_withheld(cluster, "a").table
        table.take_over_by_force(0)
        assert table.withheld == ""
        cluster.until(lambda: table.is_leader)
        cluster.kill("a")
        table = cluster.restart("a").table
        cluster.until(lambda: table.is_leader)
        assert (table.withheld, table.configuration) == ("", Configuration("a"))

    def test_a_learner(self) -> None:
        """Where all voters are lost, one that learned has nearly everything."""
        cluster = self.make_cluster(learners=("b",))
        self.write(cluster, "a")
        cluster.until(lambda: cluster.nodes["b"].table.revision == cluster.nodes["a"].table.revision)
        cluster.kill("a")
        table = cluster.nodes["b"].table
        table.take_over_by_force(0)
        cluster.until(lambda: table.is_leader)
        assert self.keys(cluster, "b") == [b"k"]

    def test_nothing_to_go_on_with(self) -> None:
        """A server without a table, or one that has stopped, says so."""
        cluster = self.make_cluster()
        table = cluster.add("b").table
        with pytest.raises(ChangeRefused, match="no table"):
            table.take_over_by_force(0)
        cluster.result(table.stop())
        with pytest.raises(TableClosed):
            table.take_over_by_force(0)
