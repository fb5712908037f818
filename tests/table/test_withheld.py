"""A server that decides nothing until it has caught up, and one that goes on alone because a person says so."""

from __future__ import annotations

import pytest
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.consensus import LEADER, ChangeRefused
from chunkfarm.table.read_rounds import ROUNDS_MAX
from chunkfarm.table.records import Configuration, MessageKind, SnapshotMeta
from tests.table.one_server import ELECTION_TICKS, OneServer, log_of

K = MessageKind


class WithheldCoreTests(SynchronousTestCase):
    """What the core of a withheld server does and does not do."""

    def make_server(self, others: str = "bc") -> OneServer:
        server = OneServer(others, term=1, entries=log_of(1, 1), commit=1)
        server.core.withhold()
        return server

    def follow(self, server: OneServer, *, commit: int = 3) -> None:
        """Server b leads term 2, and has sent the third entry."""
        entries = (log_of(1, 1, 2)[2],)
        server.hear("b", K.APPEND, term=2, log_index=2, log_term=1, entries=entries, commit=commit)

    def prove(self, server: OneServer, index: int) -> None:
        """The leader answers the question for a read index."""
        server.tick()
        (asked,) = server.taken(K.READ)
        server.hear("b", K.READ_ANSWER, context=asked.context, log_index=index)

    def test_never_stands(self) -> None:
        """However long it hears nobody, and whatever it is asked for."""
        server = self.make_server()
        server.tick(50 * ELECTION_TICKS)
        server.core.campaign()
        server.hear("b", K.TIMEOUT_NOW)
        assert server.taken(K.PRE_VOTE) == server.taken(K.VOTE) == []
        assert (server.core.role, server.core.term) == ("follower", 1)

    def test_never_votes(self) -> None:
        """Whoever asks, with whatever log, is told no."""
        server = self.make_server()
        for kind, answer in ((K.PRE_VOTE, K.PRE_VOTE_ANSWER), (K.VOTE, K.VOTE_ANSWER)):
            server.hear("b", kind, term=9, log_index=99, log_term=8)
            (message,) = server.taken(answer)
            assert message.reject
        assert server.core.vote == ""

    def test_a_vote_that_has_not_left_is_not_given(self) -> None:
        """Withheld between the decision and the disk, it says nothing."""
        server = OneServer(term=1)
        server.hear("b", K.VOTE, term=2)
        server.core.withhold()
        assert server.taken(K.VOTE_ANSWER) == []

    def test_leads_no_more(self) -> None:
        """A leader that is withheld steps down."""
        server = OneServer.leading()
        server.core.withhold()
        assert server.core.role == "follower"

    def test_follows(self) -> None:
        """It takes entries, writes them, and acknowledges with the word that it does not count."""
        server = self.make_server()
        self.follow(server)
        (answer,) = server.taken(K.APPEND_ANSWER)
        assert (answer.log_index, answer.reject, answer.withheld) == (3, False, True)
        assert [item.index for item in server.written] == [3]
        server.hear("b", K.HEARTBEAT)
        (answer,) = server.taken(K.HEARTBEAT_ANSWER)
        assert answer.withheld

    def test_proven(self) -> None:
        """Once it has applied the read index that a leader gave."""
        server = self.make_server()
        self.follow(server, commit=2)
        server.take()
        self.prove(server, 3)
        assert not server.core.proven
        server.hear("b", K.HEARTBEAT, log_index=3, log_term=2, commit=3)
        server.take()
        assert server.core.proven
        server.core.release()
        server.hear("c", K.VOTE, term=7, log_index=9, log_term=6, transfer=True)
        assert [message.reject for message in server.taken(K.VOTE_ANSWER)] == [False]

    def test_asks_again(self) -> None:
        """A question that is lost is asked again, and reads of the surroundings are not mixed up with it."""
        server = self.make_server()
        self.follow(server)
        server.take()
        asked = 0
        for _ in range(3 * ELECTION_TICKS):
            server.hear("b", K.HEARTBEAT)
            server.tick()
            asked += len(server.taken(K.READ))
        assert asked == 3
        server.core.read_index(1)
        (question,) = server.taken(K.READ)
        server.hear("b", K.READ_ANSWER, context=question.context, log_index=3)
        assert [read.token for read in server.core.take_reads()] == [1]
        assert not server.core.proven

    def test_a_second_doubt_needs_a_second_proof(self) -> None:
        """What was proven before says nothing of what gives rise to doubt now."""
        server = self.make_server()
        self.follow(server)
        server.take()
        self.prove(server, 3)
        server.take()
        assert server.core.proven
        server.core.withhold()
        assert not server.core.proven
        self.prove(server, 3)
        assert server.core.proven

    def test_takes_over_from_nobody(self) -> None:
        """The rule of the second of two servers is not for it."""
        with pytest.raises(ChangeRefused):
            self.make_server("b").core.take_over("b")


class LeaderOfWithheldTests(SynchronousTestCase):
    """What a leader makes of the answers of a withheld server."""

    def test_does_not_count(self) -> None:
        """Of three, one that is withheld commits nothing; the other one does."""
        server = OneServer.leading("bc")
        _, index = server.core.propose(b"x")
        server.take()
        server.answer("b", index, withheld=True)
        assert server.core.commit < index
        server.answer("c", index)
        assert server.core.commit == index

    def test_does_not_keep_a_leader(self) -> None:
        """A leader of three that hears but a withheld one hears no majority, and steps down."""
        server = OneServer.leading("bc")
        for _ in range(3 * ELECTION_TICKS):
            server.tick()
            server.answer("b", 1, withheld=True)
        assert server.core.role != "leader"

    def test_confirms_no_read(self) -> None:
        """A read waits for a round that somebody has answered who counts."""
        server = OneServer.leading("bc")
        server.core.read_index(1)
        (round,) = {message.context for message in server.taken(K.HEARTBEAT)}
        server.hear("b", K.HEARTBEAT_ANSWER, context=round, withheld=True)
        assert server.core.take_reads() == ()
        server.hear("c", K.HEARTBEAT_ANSWER, context=round)
        assert [read.token for read in server.core.take_reads()] == [1]

    def test_counts_of_two(self) -> None:
        """Of two nothing was ever decided without the leader, so what the other one has now is enough."""
        server = OneServer.leading("b")
        _, index = server.core.propose(b"x")
        server.take()
        server.answer("b", index, withheld=True)
        assert server.core.commit == index

    def test_does_not_count_of_two_that_were_three(self) -> None:
        """While the change from three to two is not committed, the third may have decided with the withheld one."""
        server = OneServer.leading("bc")
        _, index = server.core.propose_configuration(Configuration("ab"))
        server.take()
        server.answer("b", index, withheld=True)
        assert server.core.pending_change

    def test_counts_from_when_it_is_released(self) -> None:
        """What it has acknowledged before then is committed, and reads are confirmed, although nothing new is said."""
        server = OneServer.leading("bc")
        _, index = server.core.propose(b"x")
        server.take()
        server.answer("b", index, withheld=True)
        rounds = []
        for token in range(1, 2 * ROUNDS_MAX):
            server.core.read_index(token)
            rounds += [message.context for message in server.taken(K.HEARTBEAT)]
        server.hear("b", K.HEARTBEAT_ANSWER, context=max(rounds), withheld=True)
        assert (server.core.commit, server.core.take_reads()) == (1, ())
        server.hear("b", K.HEARTBEAT_ANSWER, context=max(rounds))
        assert server.core.commit == index
        assert len(server.core.take_reads()) == ROUNDS_MAX

    def test_no_transfer(self) -> None:
        """Leadership is not handed to it."""
        server = OneServer.leading("bc")
        server.answer("b", 1, withheld=True)
        with pytest.raises(ChangeRefused, match="caught up"):
            server.core.transfer("b")
        server.answer("b", 1)
        server.core.transfer("b")


class AnotherDiskTests(SynchronousTestCase):
    """A follower that was started anew under the same leader, with less on its disk than it had acknowledged."""

    def make_leader(self) -> OneServer:
        server = OneServer.leading("bc")
        for _ in range(3):
            server.core.propose(b"x")
        server.take()
        for other in "bc":
            server.answer(other, 4, life=10)
        server.take()
        assert server.core.commit == 4
        return server

    def test_looks_for_it_anew(self) -> None:
        """The refusal of another process is not taken for an old one: the leader looks where that log ends."""
        server = self.make_leader()
        server.hear("b", K.HEARTBEAT_ANSWER, life=11)
        (probe,) = [message for message in server.taken(K.APPEND) if message.to == "b"]
        assert (probe.log_index, server.core.progress["b"].match) == (4, 0)
        server.answer("b", 4, reject=True, hint_index=2, hint_term=1, life=11)
        (probe,) = [message for message in server.taken(K.APPEND) if message.to == "b"]
        assert (probe.log_index, [item.index for item in probe.entries]) == (2, [3, 4])

    def test_commits_nothing_on_what_is_gone(self) -> None:
        """What the earlier process acknowledged does not count for the later one."""
        server = OneServer.leading("bc")
        server.core.propose(b"x")
        ready = server.core.ready()
        server.answer("b", 2, life=10)
        server.answer("b", 2, reject=True, hint_index=1, hint_term=1, life=11)
        server.core.persisted(ready)
        server.take()
        assert server.core.commit == 1
        server.answer("b", 2, life=11)
        assert server.core.commit == 2

    def test_a_late_answer_of_the_earlier_process(self) -> None:
        """It came on another connection, and brings back nothing that is gone."""
        server = OneServer.leading("bc")
        server.core.propose(b"x")
        ready = server.core.ready()
        server.hear("b", K.HEARTBEAT_ANSWER, life=10)
        server.answer("b", 2, reject=True, hint_index=1, hint_term=1, life=11)
        server.answer("b", 2, life=10)
        server.core.persisted(ready)
        server.take()
        assert server.core.commit == 1
        server.answer("b", 2, life=11)
        assert server.core.commit == 2

    def test_a_late_answer_of_a_process_never_heard_of(self) -> None:
        """It is taken for the later one, until it has had nothing more to say for an election timeout."""
        server = OneServer.leading("bc")
        server.core.propose(b"x")
        server.take()
        server.answer("b", 2, life=10)
        server.answer("b", 1, life=9)
        for _ in range(ELECTION_TICKS):
            server.tick()
            server.answer("b", 2, life=10)
            server.answer("c", 1, life=20)
        assert server.core.role == LEADER
        assert server.core.progress["b"].match == 2

    def test_confirms_no_round_of_the_earlier_process(self) -> None:
        """What one that was withheld has acknowledged does not count for one that is not, on another disk perhaps."""
        server = OneServer.leading("bc")
        server.core.read_index(1)
        (round,) = {message.context for message in server.taken(K.HEARTBEAT)}
        server.hear("b", K.HEARTBEAT_ANSWER, context=round, life=10, withheld=True)
        server.hear("b", K.HEARTBEAT_ANSWER, life=11)
        assert server.core.take_reads() == ()
        server.hear("b", K.HEARTBEAT_ANSWER, context=round, life=11)
        assert [read.token for read in server.core.take_reads()] == [1]

    def test_an_old_refusal(self) -> None:
        """A late refusal of the same process is still no news."""
        server = self.make_leader()
        server.answer("b", 3, reject=True, hint_index=1, hint_term=1, life=10)
        assert server.core.progress["b"].match == 4


class ForceTests(SynchronousTestCase):
    """What the core does when a person has decided."""

    def test_alone_with_all_it_has(self) -> None:
        """It leads above all terms named, keeps its whole log, and commits it."""
        server = OneServer("bc", term=3, entries=log_of(1, 1, 3), commit=1)
        server.core.force(7)
        server.take()
        assert (server.core.role, server.core.term) == ("leader", 8)
        assert server.core.configuration == Configuration("a")
        assert server.core.commit == server.core.last_index == 5
        assert [item.data for item in server.applied[:3]] == [b"1", b"2", b"3"]

    def test_its_own_disk_decides(self) -> None:
        """Not before the vote is durable; and until then no message, nor time, makes it forget the decision."""
        server = OneServer("bc", term=3)
        server.core.log.append(log_of(3)[0])
        server.core.force(0)
        server.hear("b", K.HEARTBEAT, term=9)
        server.tick(5 * ELECTION_TICKS)
        assert server.core.role == "candidate"
        server.take()
        assert (server.core.role, server.core.term) == ("leader", 4)

    def test_nobody_is_asked(self) -> None:
        """The others, if they live, are not disturbed by an election."""
        server = OneServer("bc", term=1, entries=log_of(1))
        server.core.force(0)
        assert server.taken(K.VOTE) == []

    def test_a_leader_without_majority(self) -> None:
        """One that still leads, and can commit nothing, goes on in a new term."""
        server = OneServer.leading("bc")
        server.core.propose(b"x")
        server.take()
        server.core.force(0)
        server.take()
        assert (server.core.role, server.core.term, server.core.commit) == ("leader", 2, 4)

    def test_a_learner(self) -> None:
        """One that only learned becomes the one voter."""
        server = OneServer("bc", learners="a", term=1, entries=log_of(1))
        server.core.force(1)
        server.take()
        assert server.core.configuration == Configuration("a")
        assert server.core.commit == server.core.last_index

    def test_a_server_that_was_removed(self) -> None:
        """So does one that belongs to no configuration, if it has a log."""
        snapshot = SnapshotMeta(5, 1, Configuration("bc"))
        server = OneServer("bc", term=1, snapshot=snapshot, applied=5)
        server.core.force(0)
        server.take()
        assert (server.core.role, server.core.configuration) == ("leader", Configuration("a"))

    def test_withheld(self) -> None:
        """A person's word ends the doubt."""
        server = OneServer("bc", term=1, entries=log_of(1))
        server.core.withhold()
        server.core.force(0)
        server.take()
        assert (server.core.role, server.core.withheld) == ("leader", False)

    def test_no_table(self) -> None:
        """Where there is nothing to go on with, nothing is done."""
        server = OneServer("bc")
        with pytest.raises(ChangeRefused, match="no table"):
            server.core.force(0)
        assert server.core.term == 0
