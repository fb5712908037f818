"""One test for each sentence of the rules of Raft (Ongaro's dissertation; section numbers are its)."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.consensus import ChangeRefused, Consensus, NotLeader
from chunkfarm.table.raft_log import encode_configuration
from chunkfarm.table.records import Configuration, EntryKind, HardState, Message, MessageKind, SnapshotMeta
from tests.table.one_server import ELECTION_TICKS, OneServer, entry, log_of

K = MessageKind


class TermTests(SynchronousTestCase):
    """Section 3.3: terms."""

    def test_higher_term_is_taken(self) -> None:
        """A server whose term is smaller takes the larger one, whatever its role, and follows."""
        for server in (OneServer(), OneServer.leading()):
            server.hear("b", K.APPEND_ANSWER, term=7)
            assert (server.core.role, server.core.term, server.core.vote) == ("follower", 7, "")

    def test_lower_term_is_refused(self) -> None:
        """A request with a stale term changes nothing, and is answered with the current term."""
        server = OneServer(term=5)
        server.hear("b", K.APPEND, term=4, entries=(entry(1, 4),))
        server.hear("b", K.VOTE, term=4)
        server.hear("b", K.PRE_VOTE, term=4)
        answers = server.take()
        assert server.core.last_index == 0
        assert [answer.term for answer in answers] == [5, 5, 5]
        assert [answer.reject for answer in answers if answer.kind is not K.HEARTBEAT_ANSWER] == [True, True]

    def test_every_answer_carries_the_term(self) -> None:
        """Nothing leaves a server without its term."""
        server = OneServer(term=3)
        server.hear("b", K.APPEND, term=4, entries=(entry(1, 4),))
        server.hear("b", K.HEARTBEAT, term=4)
        assert [message.term for message in server.take()] == [4, 4]

    def test_starts_as_follower(self) -> None:
        """When servers start they begin as followers, even if they led before."""
        server = OneServer(term=2, vote="a")
        assert (server.core.role, server.core.leader) == ("follower", "")


class ElectionTests(SynchronousTestCase):
    """Section 3.4, and 9.6 for pre-vote."""

    def test_election_timeout(self) -> None:
        """A follower that hears nothing for an election timeout stands for election, and not before."""
        server = OneServer()
        server.tick(ELECTION_TICKS - 1)
        assert server.core.role == "follower"
        server.tick(ELECTION_TICKS + 1)
        assert server.core.role == "pre_candidate"

    def test_heartbeat_keeps_quiet(self) -> None:
        """A follower stays one as long as it hears its leader."""
        server = OneServer()
        for _ in range(5 * ELECTION_TICKS):
            server.hear("b", K.HEARTBEAT, term=1)
            server.tick()
        assert server.core.role == "follower"

    def test_timeouts_are_randomised(self) -> None:
        """Election timeouts lie between one and two, and differ, so that votes are seldom split."""
        timeouts = set()
        for seed in range(60):
            server = OneServer(seed=seed)
            ticks = 0
            while server.core.role == "follower":
                server.tick()
                ticks += 1
            timeouts.add(ticks)
        assert min(timeouts) >= ELECTION_TICKS
        assert max(timeouts) < 2 * ELECTION_TICKS
        assert len(timeouts) > ELECTION_TICKS // 2

    def test_a_link_to_the_leader_ends(self) -> None:
        """The next in line stands a tick later, the others after it; and a leader that lives makes it as before."""
        for rank, ticks in ((1, 1), (2, 4), (3, 7)):
            server = OneServer(rank=lambda id, rank=rank: 0 if id == "b" else rank)  # type: ignore[misc]
            server.hear("b", K.HEARTBEAT, term=1)
            server.tick()
            server.core.suspect("c")
            assert server.core.has_quorum
            server.core.suspect("b")
            assert not server.core.has_quorum
            server.tick(ticks - 1)
            assert server.core.role == "follower"
            server.tick()
            assert server.core.role == "pre_candidate"
            server.hear("b", K.HEARTBEAT, term=1)
            assert (server.core.role, server.core.leader, server.core.has_quorum) == ("follower", "b", True)
            # A hint never makes a silence count for more than it is.
            server.core.suspect("b")
            server.hear("b", K.HEARTBEAT, term=1)
            server.tick(ELECTION_TICKS)
            assert server.core.role == "follower"

    def test_a_hint_deposes_nobody(self) -> None:
        """Whoever hears the leader still does not help against it, and the leader itself goes on."""
        for server in (OneServer(), OneServer.leading()):
            if server.core.role == "follower":
                server.hear("b", K.HEARTBEAT, term=1)
            term = server.core.term
            last = server.core.last_index
            server.hear("c", K.PRE_VOTE, term=term + 1, log_index=last + 1, log_term=term)
            assert server.taken(K.PRE_VOTE_ANSWER) == []
            server.core.suspect("b")
            server.hear("c", K.PRE_VOTE, term=term + 1, log_index=last + 1, log_term=term)
            assert len(server.taken(K.PRE_VOTE_ANSWER)) == (0 if server.core.role == "leader" else 1)
            assert server.core.term == term

    def test_a_link_between_two_ends(self) -> None:
        """Of two voters neither can lead without the other, so there is nothing to see."""
        server = OneServer("b")
        server.hear("b", K.HEARTBEAT, term=1)
        server.core.suspect("b")
        assert server.core.has_quorum

    def test_seniors_stand_first(self) -> None:
        """The longest timeout of a rank is shorter than the shortest of the rank two below."""
        ranges = []
        for rank in range(4):
            timeouts = []
            for seed in range(40):
                server = OneServer(seed=seed, rank=lambda id, rank=rank: rank)  # type: ignore[misc]
                ticks = 0
                while server.core.role == "follower":
                    server.tick()
                    ticks += 1
                timeouts.append(ticks)
            ranges.append((min(timeouts), max(timeouts)))
        assert all(ranges[rank][1] < ranges[rank + 2][0] for rank in range(2))
        assert ranges[0][0] == ELECTION_TICKS

    def test_pre_vote_changes_nothing(self) -> None:
        """Asking whether one would win raises no term and gives no vote, on either side."""
        server = OneServer(term=1)
        server.core.campaign()
        asked = server.take()
        assert [(message.kind, message.term, message.to) for message in asked] == [
            (K.PRE_VOTE, 2, "b"),
            (K.PRE_VOTE, 2, "c"),
        ]
        assert server.core.term == 1
        other = OneServer(term=1)
        other.hear("b", K.PRE_VOTE, term=2)
        answer = other.take()[0]
        assert (answer.kind, answer.term, answer.reject) == (K.PRE_VOTE_ANSWER, 2, False)
        assert (other.core.term, other.core.vote, other.hard_states) == (1, "", [])

    def test_candidate_votes_for_itself(self) -> None:
        """A candidate raises its term, votes for itself, and asks the others, once that is durable."""
        server = OneServer(term=1)
        server.core.campaign()
        server.take()
        server.hear("b", K.PRE_VOTE_ANSWER, term=2)
        assert (server.core.role, server.core.term, server.core.vote) == ("candidate", 2, "a")
        assert server.core.urgent() == ()
        ready = server.core.ready()
        assert ready.hard_state == HardState(2, "a", 0)
        assert [message.kind for message in ready.messages] == [K.VOTE, K.VOTE]

    def test_own_vote_counts_when_durable(self) -> None:
        """A farm of one is led only when its vote is on the disk."""
        server = OneServer("")
        server.core.campaign()
        assert server.core.role == "candidate"
        ready = server.core.ready()
        assert server.core.role == "candidate"
        server.core.persisted(ready)
        assert server.core.role == "leader"

    def test_majority_wins(self) -> None:
        """A candidate that has the votes of a majority leads; votes of learners and repeated votes do not count."""
        for votes, wins in (("", False), ("b", False), ("bb", False), ("bx", False), ("bc", True)):
            server = OneServer("bcdex", learners="x")
            server.core.campaign()
            server.take()
            for other in "bc":
                server.hear(other, K.PRE_VOTE_ANSWER, term=1)
            server.take()
            for other in votes:
                server.hear(other, K.VOTE_ANSWER)
            assert (server.core.role == "leader") is wins, votes

    def test_leader_tells_at_once(self) -> None:
        """A new leader appends an entry of its term and tells everybody."""
        server = OneServer.leading(committed=False)
        assert server.written[-1] == entry(1, 1, kind=EntryKind.EMPTY)
        server = OneServer()
        server.core.campaign()
        server.take()
        server.hear("b", K.PRE_VOTE_ANSWER, term=1)
        server.take()
        server.hear("b", K.VOTE_ANSWER)
        told = server.core.urgent()
        assert [(message.kind, message.to) for message in told] == [(K.APPEND, "b"), (K.APPEND, "c")]

    def test_one_vote_a_term(self) -> None:
        """Each server votes for at most one candidate a term, first come first served; the same one may ask again."""
        server = OneServer()
        for sender, reject in (("b", False), ("c", True), ("b", False)):
            server.hear(sender, K.VOTE, term=1)
            answer = server.take()[-1]
            assert (answer.to, answer.reject) == (sender, reject)

    def test_vote_across_restart(self) -> None:
        """A vote read back from the disk still binds."""
        server = OneServer(term=3, vote="b")
        server.hear("c", K.VOTE, term=3)
        assert server.take()[0].reject

    def test_vote_is_durable_first(self) -> None:
        """A granted vote leaves only with the Ready that writes it; a refusal may leave at once."""
        server = OneServer()
        server.hear("b", K.VOTE, term=1)
        assert server.core.urgent() == ()
        ready = server.core.ready()
        assert ready.hard_state == HardState(1, "b", 0)
        assert [message.reject for message in ready.messages] == [False]
        server.hear("c", K.VOTE, term=1)
        assert [message.reject for message in server.core.urgent()] == [True]

    def test_promise_of_an_old_term(self) -> None:
        """A vote that was not sent yet is not sent any more once the term is over."""
        server = OneServer()
        server.hear("b", K.VOTE, term=1)
        server.hear("c", K.VOTE, term=2)
        assert [(message.to, message.term) for message in server.take()] == [("c", 2)]

    def test_no_vote_for_shorter_logs(self) -> None:
        """A voter refuses a candidate whose log is behind: by last term, then by length (3.6.1)."""
        cases = [((3, 1), True), ((2, 2), True), ((3, 2), False), ((4, 2), False), ((1, 3), False)]
        for kind in (K.VOTE, K.PRE_VOTE):
            for (index, term), reject in cases:
                server = OneServer(term=2, entries=log_of(1, 1, 2))
                server.hear("b", kind, term=5, log_index=index, log_term=term)
                assert server.take()[-1].reject is reject, (kind, index, term)

    def test_candidate_gives_way(self) -> None:
        """A candidate that hears a leader of its term follows it."""
        for kind in (K.APPEND, K.HEARTBEAT):
            server = OneServer()
            server.core.campaign()
            server.take()
            server.hear("b", K.PRE_VOTE_ANSWER, term=1)
            assert server.core.role == "candidate"
            server.hear("c", kind, term=1)
            assert (server.core.role, server.core.leader) == ("follower", "c")

    def test_lost_election(self) -> None:
        """A candidate that a majority has refused follows, and stands again after a timeout."""
        server = OneServer()
        server.core.campaign()
        server.take()
        server.hear("b", K.PRE_VOTE_ANSWER, reject=True)
        assert server.core.role == "pre_candidate"
        server.hear("c", K.PRE_VOTE_ANSWER, reject=True)
        assert server.core.role == "follower"
        server.tick(2 * ELECTION_TICKS)
        assert server.core.role == "pre_candidate"

    def test_who_hears_a_leader_does_not_vote(self) -> None:
        """Requests for votes are ignored within an election timeout of hearing the leader (4.2.3)."""
        for kind in (K.VOTE, K.PRE_VOTE):
            server = OneServer()
            server.hear("b", K.HEARTBEAT, term=1)
            server.take()
            server.hear("c", kind, term=2)
            assert (server.take(), server.core.term) == ([], 1)
            server.tick(ELECTION_TICKS)
            server.hear("c", kind, term=2)
            assert not server.take()[-1].reject

    def test_leader_does_not_vote(self) -> None:
        """A leader is not deposed by a request for votes, however long it has led."""
        server = OneServer.leading()
        for _ in range(3 * ELECTION_TICKS):
            server.tick()
            server.hear("b", K.HEARTBEAT_ANSWER)
        server.take()
        server.hear("c", K.VOTE, term=9, log_index=9, log_term=8)
        assert server.core.role == "leader"

    def test_learners_answer(self) -> None:
        """Learners, and servers of no configuration, vote when asked: the asker may know a newer one."""
        outside = OneServer(snapshot=SnapshotMeta(0, 0, Configuration("bcd")))
        for server in (OneServer(learners="a"), outside):
            server.hear("b", K.VOTE, term=1)
            assert not server.take()[-1].reject

    def test_learners_notice_silence(self) -> None:
        """A learner that hears no leader votes for another one, however long the silence lasts."""
        for ticks in range(ELECTION_TICKS, 5 * ELECTION_TICKS):
            server = OneServer(learners="a")
            server.hear("b", K.HEARTBEAT, term=1)
            server.take()
            server.tick(ticks)
            assert not server.core.has_quorum
            server.hear("c", K.PRE_VOTE, term=2)
            assert [message.reject for message in server.take()] == [False]

    def test_learners_never_stand(self) -> None:
        """Learners, and servers of no configuration, never stand for election."""
        outside = OneServer(snapshot=SnapshotMeta(0, 0, Configuration("bcd")))
        for server in (OneServer(learners="a"), outside):
            server.tick(5 * ELECTION_TICKS)
            server.core.campaign()
            server.hear("b", K.TIMEOUT_NOW, term=0)
            assert (server.core.role, server.core.term) == ("follower", 0)


class LeaderTests(SynchronousTestCase):
    """Sections 3.5 and 3.6: replication and commitment."""

    def test_heartbeats(self) -> None:
        """A leader sends heartbeats to everybody with every tick, and they do not wait for a disk."""
        server = OneServer.leading("bcd", learners="d")
        server.core.propose(b"x")
        server.core.urgent()
        server.core.ready()
        server.tick()
        beats = [message.to for message in server.core.urgent() if message.kind is K.HEARTBEAT]
        assert beats == ["b", "c", "d"]

    def test_append_carries_what_precedes(self) -> None:
        """An append names index and term of the entry before those it carries."""
        server = OneServer.leading(entries=log_of(1, 1), term=1)
        server.core.propose(b"x")
        message = server.core.urgent()[0]
        assert (message.kind, message.log_index, message.log_term) == (K.APPEND, 3, 2)
        assert [item.data for item in message.entries] == [b"x"]

    def test_commits_with_a_majority(self) -> None:
        """An entry is committed when a majority has it durably, the leader's own disk included."""
        for acks, committed in (("", False), ("b", False), ("bc", True), ("bcd", True)):
            server = OneServer.leading("bcde")
            _, index = server.core.propose(b"x")
            server.take()
            for other in acks:
                server.answer(other, index)
            assert (server.core.commit == index) is committed, acks

    def test_own_disk_counts_when_written(self) -> None:
        """The leader's own copy counts only when its disk has it; others may decide without it."""
        server = OneServer.leading()
        _, index = server.core.propose(b"x")
        server.core.urgent()
        ready = server.core.ready()
        server.answer("b", index)
        assert server.core.commit == index - 1
        server.core.persisted(ready)
        assert server.core.commit == index
        _, index = server.core.propose(b"y")
        server.answer("b", index)
        server.answer("c", index)
        assert server.core.commit == index

    def test_learners_do_not_count(self) -> None:
        """What only learners have is not committed."""
        server = OneServer.leading("bcde", learners="de")
        _, index = server.core.propose(b"x")
        server.take()
        server.answer("d", index)
        server.answer("e", index)
        assert server.core.commit < index

    def test_committed_is_applied_in_order(self) -> None:
        """Committed entries are applied once each, in the order of the log, earlier terms' included."""
        server = OneServer.leading(entries=log_of(1, 1), term=1)
        server.core.propose(b"x")
        server.core.propose(b"y")
        server.take()
        server.answer("b", 5)
        server.take()
        server.take()
        assert [item.index for item in server.applied] == [1, 2, 3, 4, 5]

    def test_old_terms_are_not_counted(self) -> None:
        """Only entries of the leader's own term are committed by counting; older ones go with them (3.6.2)."""
        server = OneServer.leading(entries=log_of(1, 2), term=2, committed=False)
        server.answer("b", 2)
        assert server.core.commit == 0
        server.answer("b", 3)
        assert server.core.commit == 3

    def test_followers_learn_what_is_committed(self) -> None:
        """Followers hear of a commit with the next message, without waiting for a heartbeat."""
        server = OneServer.leading()
        _, index = server.core.propose(b"x")
        server.take()
        server.answer("b", index)
        assert {(message.to, message.commit) for message in server.core.urgent()} == {("b", index), ("c", index)}

    def test_leader_never_overwrites(self) -> None:
        """A leader takes no entries from others, not even in its own term."""
        server = OneServer.leading()
        server.hear("b", K.APPEND, log_index=0, entries=(entry(1, 1, b"other"),))
        assert (server.core.role, server.terms) == ("leader", [1])

    def test_only_leaders_take_proposals(self) -> None:
        """Who does not lead refuses a write, and names the leader if it knows one."""
        server = OneServer()
        with pytest.raises(NotLeader) as caught:
            server.core.propose(b"x")
        assert caught.value.leader is None
        server.hear("b", K.HEARTBEAT, term=1)
        with pytest.raises(NotLeader) as caught:
            server.core.propose(b"x")
        assert caught.value.leader == "b"

    def test_probes_backwards(self) -> None:
        """After a refusal the leader goes back to where the logs may match, a term at a time."""
        server = OneServer.leading(entries=log_of(1, 1, 1, 4, 4), term=4, committed=False)
        server.take()
        server.hear("b", K.APPEND_ANSWER, log_index=5, reject=True, hint_index=3, hint_term=2)
        message = next(message for message in server.core.urgent() if message.to == "b")
        assert (message.log_index, message.log_term) == (3, 1)
        assert [item.index for item in message.entries] == [4, 5, 6]

    def test_steps_down_without_majority(self) -> None:
        """A leader of three that hears no majority for an election timeout follows; one of two stays (6.2)."""
        for others, role in (("b", "leader"), ("bc", "follower"), ("bcde", "follower")):
            server = OneServer.leading(others)
            server.tick(ELECTION_TICKS - 1)
            assert (server.core.role, server.core.has_quorum) == ("leader", True)
            server.tick()
            assert (server.core.role, server.core.has_quorum) == (role, False)

    def test_hears_a_majority(self) -> None:
        """One answer in time from enough of the others keeps a leader; a learner's does not."""
        for heard, leads in (("b", True), ("d", False)):
            server = OneServer.leading("bcd", learners="d")
            for _ in range(3 * ELECTION_TICKS):
                server.tick()
                server.hear(heard, K.HEARTBEAT_ANSWER)
            assert (server.core.role == "leader") is leads


class FollowerTests(SynchronousTestCase):
    """Section 3.5: what a follower does with an append."""

    def test_refuses_a_gap(self) -> None:
        """An append that does not fit is refused, with a hint where it may."""
        for index, term in ((3, 3), (5, 2)):
            server = OneServer(term=2, entries=log_of(1, 1, 2))
            server.hear("b", K.APPEND, term=3, log_index=index, log_term=term, entries=(entry(index + 1, 3),))
            answer = server.take()[-1]
            assert (answer.reject, answer.log_index, answer.hint_index, answer.hint_term) == (True, index, 3, 2)
            assert server.terms == [1, 1, 2]

    def test_conflict_truncates(self) -> None:
        """An entry of another term replaces what is there, and what follows it."""
        server = OneServer(term=2, entries=log_of(1, 1, 1, 1))
        server.hear("b", K.APPEND, term=3, log_index=1, log_term=1, entries=(entry(2, 1), entry(3, 3)))
        server.take()
        assert server.terms == [1, 1, 3]
        assert [item.index for item in server.written] == [3]

    def test_stale_append_truncates_nothing(self) -> None:
        """A late append whose entries are all here leaves the log as it is, and acknowledges only itself."""
        server = OneServer(term=1, entries=log_of(1, 1, 1, 1))
        server.hear("b", K.APPEND, term=1, log_index=1, log_term=1, entries=(entry(2, 1),))
        answer = server.take()[-1]
        assert server.terms == [1, 1, 1, 1]
        assert server.written == []
        assert (answer.reject, answer.log_index) == (False, 2)

    def test_acknowledges_after_the_disk(self) -> None:
        """An accepted append is answered with the Ready that writes it."""
        server = OneServer()
        server.hear("b", K.APPEND, term=1, entries=(entry(1, 1),))
        assert server.core.urgent() == ()
        ready = server.core.ready()
        assert [item.index for item in ready.entries] == [1]
        assert [(message.kind, message.log_index) for message in ready.messages] == [(K.APPEND_ANSWER, 1)]

    def test_commit_is_bounded_by_the_match(self) -> None:
        """A follower commits no further than the last entry it knows to match its leader."""
        server = OneServer(term=1, entries=log_of(1, 1, 1, 1))
        server.hear("b", K.APPEND, term=2, log_index=1, log_term=1, commit=4)
        assert server.core.commit == 1
        server.hear("b", K.APPEND, term=2, log_index=1, log_term=1, entries=(entry(2, 1),), commit=4)
        assert server.core.commit == 2

    def test_heartbeat_commits_what_matches(self) -> None:
        """A heartbeat moves the commit index only where index and term agree."""
        server = OneServer(term=2, entries=log_of(1, 1, 1))
        server.hear("b", K.HEARTBEAT, term=2, log_index=3, log_term=2, commit=3)
        assert server.core.commit == 0
        server.hear("b", K.HEARTBEAT, term=2, log_index=9, log_term=1, commit=9)
        assert server.core.commit == 0
        server.hear("b", K.HEARTBEAT, term=2, log_index=2, log_term=1, commit=3)
        assert server.core.commit == 2

    def test_commit_never_goes_back(self) -> None:
        """An older message does not take a commit index back."""
        server = OneServer(term=1, entries=log_of(1, 1, 1), commit=3)
        server.hear("b", K.APPEND, term=1, log_index=3, log_term=1, commit=1)
        server.hear("b", K.HEARTBEAT, term=1, log_index=3, log_term=1, commit=1)
        assert server.core.commit == 3

    def test_committed_is_not_overwritten(self) -> None:
        """An append from before the commit index is answered with what is committed."""
        server = OneServer(term=1, entries=log_of(1, 1, 1), commit=2)
        server.hear("b", K.APPEND, term=1, log_index=0, entries=(entry(1, 1), entry(2, 1)))
        assert server.take()[-1].log_index == 2
        assert server.terms == [1, 1, 1]

    @given(st.lists(st.integers(1, 3), max_size=6), st.lists(st.integers(1, 3), min_size=1, max_size=6), st.data())
    def test_append_agrees_with_the_leader(self, mine: list[int], theirs: list[int], data: st.DataObject) -> None:
        """Whatever a follower has, an accepted append leaves it with the leader's entries up to there."""
        mine, theirs = sorted(mine), sorted(theirs)
        leader = log_of(*theirs)
        # Logs match up to where one leader made both: entries after the first difference are of other terms.
        same = next((at for at, (one, two) in enumerate(zip(mine, theirs, strict=False)) if one != two), 6)
        mine = [term for at, term in enumerate(mine) if at < same or term not in theirs]
        server = OneServer(term=3, entries=log_of(*mine))
        start = data.draw(st.integers(0, len(leader)))
        before = leader[start - 1].term if start else 0
        server.hear("b", K.APPEND, term=4, log_index=start, log_term=before, entries=tuple(leader[start:]))
        answer = server.take()[-1]
        if answer.reject:
            assert start > len(mine) or mine[start - 1] != before
        else:
            assert server.terms[: len(theirs)] == theirs


class ConfigurationTests(SynchronousTestCase):
    """Chapter 4: changes of the configuration, one server at a time."""

    def test_in_force_when_appended(self) -> None:
        """A server uses the latest configuration in its log, committed or not (4.1)."""
        server = OneServer.leading()
        _, index = server.core.propose_configuration(Configuration("abcd"))
        assert server.core.configuration.voters == set("abcd")
        assert (server.core.configuration_index, server.core.pending_change) == (index, True)
        server.take()
        server.answer("b", index)
        assert server.core.commit < index
        server.answer("d", index)
        assert server.core.commit == index
        assert not server.core.pending_change

    def test_reverted_when_truncated(self) -> None:
        """A server whose configuration is truncated goes back to the one before."""
        item = entry(2, 1, encode_configuration(Configuration("abcd")), EntryKind.CONFIGURATION)
        server = OneServer(term=1, entries=[entry(1, 1), item])
        assert server.core.configuration.voters == set("abcd")
        server.hear("b", K.APPEND, term=2, log_index=1, log_term=1, entries=(entry(2, 2),))
        assert server.core.configuration.voters == set("abc")
        assert server.core.configuration_index == 0

    def test_found_again_after_restart(self) -> None:
        """The configuration in force is read from snapshot and log."""
        item = entry(5, 1, encode_configuration(Configuration("ab", "c")), EntryKind.CONFIGURATION)
        snapshot = SnapshotMeta(4, 1, Configuration("abc"))
        server = OneServer(term=1, snapshot=snapshot, entries=[item], applied=4)
        assert server.core.configuration == Configuration("ab", "c")
        assert server.core.pending_change

    def test_one_server_at_a_time(self) -> None:
        """A change of no server, of two servers, or to nobody is refused."""
        server = OneServer.leading()
        for voters, learners in (("abc", ""), ("abcde", ""), ("abd", ""), ("", "abc"), ("abc", "de"), ("abc", "c")):
            with pytest.raises(ChangeRefused):
                server.core.propose_configuration(Configuration(voters, learners))
        assert server.core.last_index == 1

    def test_kinds_of_change(self) -> None:
        """A server may be added, as a learner too, promoted, demoted and removed."""
        steps = (("abc", "d"), ("abcd", ""), ("abd", "c"), ("abd", ""))
        server = OneServer.leading()
        for voters, learners in steps:
            _, index = server.core.propose_configuration(Configuration(voters, learners))
            server.take()
            for other in "bcd":
                server.answer(other, index)
            assert server.core.commit == index

    def test_one_change_under_way(self) -> None:
        """A change waits until the one before it is committed."""
        server = OneServer.leading()
        _, index = server.core.propose_configuration(Configuration("abcd"))
        with pytest.raises(ChangeRefused, match="another change"):
            server.core.propose_configuration(Configuration("abc"))
        server.take()
        server.answer("b", index)
        server.answer("c", index)
        server.core.propose_configuration(Configuration("abc"))

    def test_own_term_first(self) -> None:
        """A leader changes nothing before it has committed an entry of its term (the correction of 2015)."""
        server = OneServer.leading(committed=False)
        with pytest.raises(ChangeRefused, match="term"):
            server.core.propose_configuration(Configuration("abcd"))
        server.answer("b", 1)
        server.core.propose_configuration(Configuration("abcd"))

    def test_new_server_is_told(self) -> None:
        """A server that is added hears of it at once; one that is removed hears nothing more."""
        server = OneServer.leading()
        server.core.propose_configuration(Configuration("abcd"))
        assert {message.to for message in server.take()} == {"b", "c", "d"}
        server.answer("b", 2)
        server.answer("c", 2)
        server.take()
        server.core.propose_configuration(Configuration("abd"))
        assert "c" not in {message.to for message in server.take()}
        assert server.core.progress.keys() == {"b", "d"}

    def test_removed_leader(self) -> None:
        """A leader that removes itself does not count itself, and steps down when that is committed (4.2.2)."""
        server = OneServer.leading()
        _, index = server.core.propose_configuration(Configuration("bc"))
        server.take()
        server.answer("b", index)
        assert (server.core.role, server.core.commit) == ("leader", index - 1)
        server.answer("c", index)
        assert (server.core.role, server.core.commit) == ("follower", index)
        assert {(message.to, message.commit) for message in server.take()} == {("b", index), ("c", index)}

    def test_accepts_leaders_from_outside(self) -> None:
        """A server takes appends from a leader that is not in its configuration (4.1)."""
        server = OneServer()
        server.hear("x", K.APPEND, term=1, entries=(entry(1, 1),))
        assert not server.take()[-1].reject
        assert server.core.leader == "x"


class TransferTests(SynchronousTestCase):
    """Section 3.10: leadership transfer."""

    def test_waits_until_caught_up(self) -> None:
        """The target is told to stand only when it has every entry; meanwhile no writes are taken."""
        server = OneServer.leading()
        _, index = server.core.propose(b"x")
        server.core.transfer("b")
        assert server.taken(K.TIMEOUT_NOW) == []
        with pytest.raises(Exception, match="handed over"):
            server.core.propose(b"y")
        server.answer("b", index)
        assert [message.to for message in server.taken(K.TIMEOUT_NOW)] == ["b"]

    def test_target_stands_at_once(self) -> None:
        """Told so, a follower stands without pre-vote, and says that its leader wished it."""
        server = OneServer(term=1)
        server.hear("b", K.HEARTBEAT, term=1)
        server.take()
        server.hear("b", K.TIMEOUT_NOW, term=1)
        votes = server.taken(K.VOTE)
        assert server.core.role == "candidate"
        assert [(message.term, message.transfer) for message in votes] == [(2, True), (2, True)]

    def test_others_vote_although_they_hear(self) -> None:
        """Such a candidate gets votes although the leader is heard."""
        server = OneServer()
        server.hear("b", K.HEARTBEAT, term=1)
        server.take()
        server.hear("c", K.VOTE, term=2, transfer=True)
        assert not server.take()[-1].reject

    def test_given_up(self) -> None:
        """After an election timeout the leader takes writes again."""
        server = OneServer.leading()
        server.core.propose(b"x")
        server.core.transfer("b")
        for _ in range(ELECTION_TICKS):
            server.tick()
            server.hear("c", K.HEARTBEAT_ANSWER)
        server.core.propose(b"y")

    def test_only_to_voters(self) -> None:
        """Leadership goes to voters only, and only a leader can give it."""
        server = OneServer.leading("bcd", learners="d")
        for to in "dx":
            with pytest.raises(ChangeRefused):
                server.core.transfer(to)
        with pytest.raises(NotLeader):
            OneServer().core.transfer("b")

    def test_removed_target(self) -> None:
        """A transfer to a server that is removed is off."""
        server = OneServer.leading()
        server.core.propose_configuration(Configuration("ac"))
        with pytest.raises(ChangeRefused):
            server.core.transfer("b")


class RestartTests(SynchronousTestCase):
    """Section 3.8: what is read back from the disk."""

    def test_committed_and_applied(self) -> None:
        """After a restart the commit index is the highest one known, and only what is not applied is applied."""
        server = OneServer(term=1, entries=log_of(1, 1, 1, 1), commit=3, applied=1)
        server.take()
        assert [item.index for item in server.applied] == [2, 3]
        server = OneServer(term=1, entries=log_of(1, 1, 1, 1), commit=1, applied=3)
        assert server.core.commit == 3

    def test_lost_entries_are_noticed(self) -> None:
        """A disk that lacks what was committed, or whose term is behind its log, is refused."""
        for hard_state, applied in ((HardState(1, "", 3), 0), (HardState(1, "", 0), 3), (HardState(0), 0)):
            with pytest.raises(ValueError, match="lacks"):
                Consensus(
                    "a",
                    hard_state=hard_state,
                    snapshot=SnapshotMeta(0, 0, Configuration("abc")),
                    entries=log_of(1, 1),
                    applied=applied,
                    random=Random(1),
                )

    def test_messages_for_others(self) -> None:
        """A message for somebody else, or from oneself, is ignored."""
        server = OneServer()
        for sender, to in (("b", "c"), ("a", "a")):
            server.core.step(Message(kind=K.VOTE, sender=sender, to=to, term=9))
        assert (server.core.term, server.take()) == (0, [])
