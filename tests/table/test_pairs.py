"""Two voters, of whom one is lost: the leader goes on alone, and only where that is safe."""

from __future__ import annotations

import pytest
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.consensus import ChangeRefused, NotLeader
from chunkfarm.table.interface import Put
from chunkfarm.table.raft_log import encode_configuration
from chunkfarm.table.records import Configuration, EntryKind, MessageKind
from chunkfarm.table.survivor import Survivor
from tests.table.cluster import Cluster
from tests.table.one_server import ELECTION_TICKS, OneServer, entry, log_of

GRACE = 10.0
"""`master_grace`, in seconds."""


class DropRuleTests(SynchronousTestCase):
    """What the core allows."""

    def make_leader(self, others: str = "b", committed: bool = True) -> OneServer:
        server = OneServer.leading(others, committed=committed)
        server.take()
        return server

    def test_after_its_silence(self) -> None:
        """The other has not answered for so many ticks: what waited for it is committed with the change."""
        server = self.make_leader()
        _, waiting = server.core.propose(b"x")
        server.tick(20)
        _, dropped = server.core.drop("b", 20)
        server.take()
        assert server.core.commit == dropped > waiting
        assert server.core.configuration == Configuration("a")
        assert server.core.has_quorum

    def test_an_answer_begins_the_silence_anew(self) -> None:
        """Not a tick sooner than that after the last answer."""
        server = self.make_leader()
        server.tick(15)
        server.answer("b", server.core.last_index)
        server.tick(19)
        with pytest.raises(ChangeRefused, match="a short while ago"):
            server.core.drop("b", 20)
        server.tick()
        server.core.drop("b", 20)

    def test_the_other_died_while_joining(self) -> None:
        """The change that made it a voter is not committed, and never can be; it is overtaken."""
        server = self.make_leader("")
        server.core.propose_configuration(Configuration("ab"))
        _, waiting = server.core.propose(b"x")
        server.tick(20)
        assert server.core.pending_change
        server.core.drop("b", 20)
        server.take()
        assert server.core.commit == server.core.last_index > waiting
        assert not server.core.pending_change

    def test_the_other_died_before_the_term_began(self) -> None:
        """Elected by both, and alone before its first entry was on both: it goes on all the same."""
        server = self.make_leader(committed=False)
        server.tick(20)
        server.core.drop("b", 20)
        server.take()
        assert server.core.commit == server.core.last_index

    def test_its_own_disk_must_have_it(self) -> None:
        """Nothing is committed before the change is durable here."""
        server = self.make_leader()
        before = server.core.commit
        server.tick(20)
        server.core.drop("b", 20)
        server.core.ready()
        assert server.core.commit == before

    def test_not_of_three(self) -> None:
        """Two others could go on without this server."""
        server = self.make_leader("bc")
        server.tick(5)
        with pytest.raises(ChangeRefused, match="two voters"):
            server.core.drop("b", 0)

    def test_not_while_a_third_may_count(self) -> None:
        """The change from three to two is under way: those two may know nothing of it, and decide."""
        server = self.make_leader("bc")
        server.core.propose_configuration(Configuration("ab"))
        server.tick(5)
        with pytest.raises(ChangeRefused, match="without this server"):
            server.core.drop("b", 0)

    def test_learners_stay(self) -> None:
        """Whoever learns goes on learning."""
        server = self.make_leader()
        server.core.propose_configuration(Configuration("ab", "c"))
        server.tick(20)
        server.core.drop("b", 20)
        assert server.core.configuration == Configuration("a", "c")

    def test_only_leaders(self) -> None:
        """A follower drops nobody."""
        with pytest.raises(NotLeader):
            OneServer("b").core.drop("b", 0)

    def test_only_the_other_voter(self) -> None:
        """Neither itself nor a stranger."""
        server = self.make_leader()
        for id in ("a", "c"):
            with pytest.raises(ChangeRefused):
                server.core.drop(id, 0)


class TakeOverRuleTests(SynchronousTestCase):
    """What the core allows, and what a leader confirms."""

    def test_its_own_vote_decides(self) -> None:
        """It leads once its vote is durable, and alone; what the leader had committed with it stays."""
        server = OneServer("b", entries=log_of(1, 1), commit=1, term=1)
        server.core.take_over("b")
        assert server.core.role == "candidate"
        server.take()
        assert server.core.role == "leader"
        assert (server.core.term, server.core.configuration) == (2, Configuration("a"))
        assert server.core.commit == server.core.last_index
        assert [item.data for item in server.applied[:2]] == [b"1", b"2"]

    def test_not_where_others_may_have_decided(self) -> None:
        """A third voter, a learner, a configuration that is not committed, somebody else, or itself in the lead."""
        changed = entry(1, 1, encode_configuration(Configuration("ab")), EntryKind.CONFIGURATION)
        for server, leader in (
            (OneServer("bc"), "b"),
            (OneServer("bc", learners="c"), "b"),
            (OneServer("", term=1, entries=[changed]), "b"),
            (OneServer("b"), "c"),
            (OneServer.leading("b"), "b"),
        ):
            with pytest.raises(ChangeRefused):
                server.core.take_over(leader)

    def test_given_up(self) -> None:
        """A leader that is heard after all is followed."""
        server = OneServer("b", term=1)
        server.core.take_over("b")
        server.hear("b", MessageKind.HEARTBEAT, term=3)
        server.take()
        assert (server.core.role, server.core.alone, server.core.leader) == ("follower", False, "b")

    def test_a_slow_disk(self) -> None:
        """However long its disk takes to write the vote, time does not make it forget that it goes on alone."""
        server = OneServer("b", entries=log_of(1, 1), commit=1, term=1)
        server.core.take_over("b")
        ready = server.core.ready()
        server.tick(5 * ELECTION_TICKS)
        # Whoever watches the ports asks for it again and again.
        server.core.take_over("b")
        server.core.persisted(ready)
        server.take()
        assert (server.core.role, server.core.term) == ("leader", 2)
        assert server.core.configuration == Configuration("a")

    def test_answers_are_numbered(self) -> None:
        """Each has a number of its own, which two processes do not share."""
        numbers = []
        for seed in (1, 2):
            server = OneServer("b", seed=seed)
            server.hear("b", MessageKind.HEARTBEAT, term=1)
            server.take()
            server.hear("b", MessageKind.HEARTBEAT)
            numbers += [message.answer for message in server.taken(MessageKind.HEARTBEAT_ANSWER)]
        assert len({*numbers}) == 2 and all(numbers)

    def test_a_leader_confirms_voters_that_lack_nothing(self) -> None:
        """A voter that has the configuration in force, committed, hears which of its answers came last."""
        server = OneServer.leading("b")
        server.hear("b", MessageKind.HEARTBEAT_ANSWER, answer=7)
        assert self.confirmed(server) == {"b": 7}
        server.core.propose_configuration(Configuration("ab", "c"))
        assert self.confirmed(server)["b"] == 0
        server.answer("b", server.core.last_index)
        server.hear("c", MessageKind.HEARTBEAT_ANSWER, answer=9)
        assert self.confirmed(server) == {"b": 7, "c": 0}

    def confirmed(self, server: OneServer) -> dict[str, int]:
        server.take()
        server.tick()
        return {message.to: message.answer for message in server.taken(MessageKind.HEARTBEAT)}


class SurvivorTests(SynchronousTestCase):
    """What proves that the leader of a pair is gone, and was gone in time."""

    def make_survivor(self, answered: float = 0.0, confirmed: bool = True, closed: bool = True) -> Survivor:
        survivor = Survivor()
        survivor.answered("a", 1, answered)
        if confirmed:
            survivor.confirmed("a", 1)
        if closed:
            survivor.closed("a")
        return survivor

    def refused(self, survivor: Survivor, first: float, last: float, step: float = 1.0) -> bool:
        """Refusals from `first` to `last`; what the last one says."""
        may, now = False, first
        while now <= last:
            may = survivor.tried("a", True, now, GRACE)
            now += step
        return may

    def test_all_of_it(self) -> None:
        """A link ended, the first refusal in time, and refusals for another `grace`."""
        assert not self.refused(self.make_survivor(), 9.0, 18.0)
        assert self.refused(self.make_survivor(), 9.0, 19.0)

    def test_too_late(self) -> None:
        """From `grace` after the confirmed answer on, the leader could have gone on alone before it died."""
        assert not self.refused(self.make_survivor(), 10.0, 100.0)

    def test_unconfirmed(self) -> None:
        """What was only sent proves nothing, nor does the word of another server or about another answer."""
        survivor = self.make_survivor(confirmed=False)
        survivor.confirmed("a", 2)
        survivor.confirmed("c", 1)
        assert not self.refused(survivor, 1.0, 50.0)

    def test_silence(self) -> None:
        """A link that was not ended by the other side, or ports that do not answer, are no proof."""
        assert not self.refused(self.make_survivor(closed=False), 1.0, 50.0)
        survivor = self.make_survivor()
        assert not any(survivor.tried("a", False, float(now), GRACE) for now in range(50))

    def test_a_sign_of_life(self) -> None:
        """Anything that is heard, or a port that does not refuse, begins the proof anew."""
        survivor = self.make_survivor()
        self.refused(survivor, 1.0, 8.0)
        survivor.heard("a")
        survivor.closed("a")
        assert not self.refused(survivor, 9.0, 18.0)
        assert self.refused(survivor, 19.0, 19.0)
        survivor.tried("a", False, 20.0, GRACE)
        assert not self.refused(survivor, 21.0, 50.0)

    def test_a_pause_of_its_own(self) -> None:
        """Between two refusals that lie far apart the other one could have come and gone."""
        survivor = self.make_survivor()
        self.refused(survivor, 1.0, 3.0)
        assert not self.refused(survivor, 12.0, 50.0)

    def test_another_leader(self) -> None:
        """What was seen of the one before says nothing of this one."""
        survivor = self.make_survivor()
        survivor.answered("b", 2, 1.0)
        assert not survivor.suspects
        assert not self.refused(survivor, 1.0, 50.0)


class PairOfTablesTests(SynchronousTestCase):
    """The same with journals, and time in seconds."""

    def make_cluster(self, *voters: str) -> Cluster:
        cluster = Cluster(self.mktemp())
        self.addCleanup(cluster.stop)
        cluster.found("a")
        cluster.grow(*voters)
        return cluster

    def write(self, cluster: Cluster, id: str, key: bytes = b"k") -> int:
        return cluster.result(cluster.nodes[id].table.transact((), (Put(key, b"v"),)))

    def test_the_second_is_killed(self) -> None:
        """A write that waits for it is done once it has been silent for `master_grace`, not sooner."""
        cluster = self.make_cluster("b")
        table = cluster.nodes["a"].table
        cluster.kill("b")
        killed = cluster.clock.seconds()
        write = table.transact((), (Put(b"k", b"v"),))
        while not write.called:
            cluster.run(0.5)
            refused = self.drop(cluster, "a", "b")
            if cluster.clock.seconds() - killed < GRACE:
                assert refused
            assert cluster.clock.seconds() - killed < GRACE + 2
        assert cluster.result(write)
        assert table.configuration == Configuration("a")

    def drop(self, cluster: Cluster, leader: str, other: str) -> bool:
        """Ask for it; returns whether it was refused."""
        refused: list[object] = []
        cluster.nodes[leader].table.drop(other, GRACE).addErrback(refused.append)
        return bool(refused)

    def test_back_again(self) -> None:
        """The one that was dropped finds its place as a learner, with all that was written meanwhile."""
        cluster = self.make_cluster("b")
        cluster.kill("b")
        cluster.run(GRACE + 1)
        assert not self.drop(cluster, "a", "b")
        self.write(cluster, "a", b"meanwhile")
        cluster.restart("b")
        cluster.grow("b")
        page = cluster.result(cluster.nodes["b"].table.read(b""))
        assert [row.key for row in page.rows] == [b"meanwhile"]

    def test_frozen_is_not_silent(self) -> None:
        """A leader that was paused has heard nobody, and drops nobody for it."""
        cluster = self.make_cluster("b")
        cluster.run(1)
        cluster.clock.advance(60)
        assert self.drop(cluster, "a", "b")

    def test_a_crash_behind_the_drop(self) -> None:
        """Restarted, it still goes on alone: the change is in its journal."""
        cluster = self.make_cluster("b")
        cluster.kill("b")
        cluster.run(GRACE + 1)
        assert not self.drop(cluster, "a", "b")
        self.write(cluster, "a")
        cluster.kill("a")
        cluster.restart("a")
        cluster.until(lambda: cluster.nodes["a"].table.is_leader)
        self.write(cluster, "a", b"again")
