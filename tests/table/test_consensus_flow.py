"""The consensus core and its surroundings: Ready, flow control, snapshots, compaction and reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.consensus import Dropped
from chunkfarm.table.leadership import APPEND_BYTES_MAX, ENTRY_BYTES_MAX, UNCOMMITTED_BYTES_MAX
from chunkfarm.table.progress import INFLIGHT_BYTES_MAX, INFLIGHT_ENTRIES_MAX
from chunkfarm.table.raft_log import decode_configuration, encode_configuration, encoded_size
from chunkfarm.table.raft_state import APPLY_BYTES_MAX
from chunkfarm.table.records import Configuration, MessageKind, ReadState, SnapshotMeta
from tests.table.one_server import ELECTION_TICKS, OneServer, entry, log_of

K = MessageKind


class ReadyTests(SynchronousTestCase):
    def test_nothing_to_do(self) -> None:
        """A server at rest wants nothing."""
        server = OneServer()
        assert not server.core.has_ready()
        assert server.core.urgent() == ()

    def test_one_at_a_time(self) -> None:
        """While one Ready is under way there is no other, and what happens meanwhile is in the next."""
        server = OneServer.leading("")
        server.core.propose(b"x")
        first = server.core.ready()
        server.core.propose(b"y")
        assert not server.core.has_ready()
        with pytest.raises(AssertionError):
            server.core.ready()
        server.core.persisted(first)
        second = server.core.ready()
        assert ([item.data for item in first.entries], [item.data for item in second.entries]) == ([b"x"], [b"y"])
        assert [item.data for item in second.committed] == [b"x"]

    def test_commit_alone_is_not_written(self) -> None:
        """A commit index that has only moved is no reason to sync; it rides with the next write."""
        server = OneServer.leading()
        _, index = server.core.propose(b"x")
        server.take()
        server.answer("b", index)
        ready = server.core.ready()
        assert [item.index for item in ready.committed] == [index]
        assert not ready.must_sync
        server.core.persisted(ready)
        server.core.propose(b"y")
        ready = server.core.ready()
        assert ready.hard_state is not None
        assert ready.hard_state.commit == index

    def test_applied_moves_when_done(self) -> None:
        """What was handed out counts as applied when the surroundings say so."""
        server = OneServer.leading("")
        server.core.propose(b"x")
        server.core.persisted(server.core.ready())
        ready = server.core.ready()
        assert (server.core.commit, server.core.applied) == (2, 1)
        server.core.persisted(ready)
        assert server.core.applied == 2

    def test_applies_in_pieces(self) -> None:
        """A long tail of committed entries is handed out in pieces, none lost."""
        entries = [entry(index, 1, b"x" * 50_000) for index in range(1, 61)]
        server = OneServer(term=1, entries=entries, commit=60)
        ready = server.core.ready()
        assert 0 < sum(map(encoded_size, ready.committed)) <= APPLY_BYTES_MAX
        server.core.persisted(ready)
        server.take()
        assert server.core.applied == 60

    def test_truncated_while_the_disk_works(self) -> None:
        """Entries that are replaced while the disk writes them are written again as they are now."""
        server = OneServer()
        server.hear("b", K.APPEND, term=1, entries=tuple(log_of(1, 1)))
        ready = server.core.ready()
        server.hear("c", K.APPEND, term=2, log_index=1, log_term=1, entries=(entry(2, 2), entry(3, 2)))
        server.core.persisted(ready)
        # The disk has 2 of term 1. An acknowledgement of 2 must wait for the one of term 2.
        server.hear("c", K.APPEND, term=2, log_index=2, log_term=2)
        assert server.core.urgent() == ()
        ready = server.core.ready()
        assert [(item.index, item.term) for item in ready.entries] == [(2, 2), (3, 2)]
        assert {message.term for message in ready.messages} == {2}

    def test_replaced_while_the_disk_works(self) -> None:
        """What the disk has just written is not taken for the entries that have come into its place meanwhile."""
        server = OneServer()
        server.hear("b", K.APPEND, term=1, entries=tuple(log_of(1)))
        server.take()
        server.hear("b", K.APPEND, term=1, log_index=1, log_term=1, entries=(entry(2, 1), entry(3, 1)))
        # Its term is written with them, so it is not what an answer would have to wait for.
        server.hear("c", K.HEARTBEAT, term=2)
        ready = server.core.ready()
        replacing = (entry(2, 2), entry(3, 2))
        server.hear("c", K.APPEND, term=2, log_index=1, log_term=1, entries=replacing)
        server.core.persisted(ready)
        server.hear("c", K.APPEND, term=2, log_index=1, log_term=1, entries=replacing)
        assert server.core.urgent() == ()
        answers = [message.log_index for message in server.take() if message.kind is K.APPEND_ANSWER]
        assert (answers[-1], [item.term for item in server.written]) == (3, [1, 2, 2])

    def test_new_term_is_durable_before_it_is_answered(self) -> None:
        """The first heartbeat of a term is answered after the disk has the term, later ones at once."""
        server = OneServer()
        server.hear("b", K.HEARTBEAT, term=4)
        assert server.core.urgent() == ()
        assert [message.kind for message in server.take()] == [K.HEARTBEAT_ANSWER]
        server.hear("b", K.HEARTBEAT, term=4)
        assert [message.kind for message in server.core.urgent()] == [K.HEARTBEAT_ANSWER]


class FlowTests(SynchronousTestCase):
    def appends(self, server: OneServer, to: str) -> list[list[int]]:
        messages = [message for message in server.take() if message.kind is K.APPEND and message.to == to]
        return [[item.index for item in message.entries] for message in messages]

    def test_many_proposals_one_message(self) -> None:
        """Proposals of one turn travel together."""
        server = OneServer.leading()
        for _ in range(5):
            server.core.propose(b"x")
        assert self.appends(server, "b") == [[2, 3, 4, 5, 6]]

    def test_messages_are_bounded(self) -> None:
        """Entries of one append stay below the bound, and the largest entry travels alone."""
        server = OneServer.leading()
        for size in (ENTRY_BYTES_MAX, ENTRY_BYTES_MAX, 20_000, 20_000, 20_000):
            server.core.propose(b"x" * size)
        messages = [message for message in server.take() if message.kind is K.APPEND and message.to == "b"]
        sizes = [sum(map(encoded_size, message.entries)) for message in messages]
        assert [len(message.entries) for message in messages] == [1, 1, 2, 1]
        assert max(sizes) <= APPEND_BYTES_MAX

    def test_bytes_in_flight(self) -> None:
        """A follower that does not answer is sent so many bytes and no more; answers make room."""
        server = OneServer.leading("b")
        for _ in range(40):
            server.core.propose(b"x" * 50_000)
        sent = [index for indexes in self.appends(server, "b") for index in indexes]
        assert INFLIGHT_BYTES_MAX <= len(sent) * 50_000 <= INFLIGHT_BYTES_MAX + APPEND_BYTES_MAX
        assert self.appends(server, "b") == []
        server.answer("b", sent[1])
        assert [index for indexes in self.appends(server, "b") for index in indexes] == [sent[-1] + 1, sent[-1] + 2]

    def test_entries_in_flight(self) -> None:
        """Nor is it sent more than so many entries."""
        server = OneServer.leading("b")
        for _ in range(INFLIGHT_ENTRIES_MAX + 2000):
            server.core.propose(b"")
        sent = sum(map(len, self.appends(server, "b")))
        assert INFLIGHT_ENTRIES_MAX <= sent < INFLIGHT_ENTRIES_MAX + 2000

    def test_probes_one_at_a_time(self) -> None:
        """Before the match is known one message is out; a heartbeat's answer lets another one go."""
        server = OneServer.leading(committed=False)
        server.core.propose(b"x")
        assert self.appends(server, "b") == []
        server.hear("b", K.HEARTBEAT_ANSWER)
        assert self.appends(server, "b") == [[1, 2]]
        assert self.appends(server, "b") == []

    def test_unreachable(self) -> None:
        """A broken link makes the leader look again where the follower is."""
        server = OneServer.leading()
        server.core.propose(b"x")
        assert self.appends(server, "b") == [[2]]
        server.core.report_unreachable("b")
        assert server.core.progress["b"].state == "probe"
        assert self.appends(server, "b") == [[2]]

    def test_stale_refusal(self) -> None:
        """A refusal of something that was acknowledged since changes nothing."""
        server = OneServer.leading()
        server.core.propose(b"x")
        server.take()
        server.answer("b", 2)
        server.hear("b", K.APPEND_ANSWER, log_index=1, reject=True, hint_index=0)
        assert (server.core.progress["b"].state, server.core.progress["b"].next) == ("replicate", 3)

    def test_too_much_under_way(self) -> None:
        """Without a majority a leader takes in only so much; when it is committed, it takes more."""
        server = OneServer.leading("b")
        with pytest.raises(Dropped, match="too much"):
            for _ in range(UNCOMMITTED_BYTES_MAX // 50_000 + 2):
                server.core.propose(b"x" * 50_000)
        server.take()
        server.answer("b", server.core.last_index)
        server.core.propose(b"x")

    def test_impossible_answers(self) -> None:
        """An answer about entries that do not exist, or from a stranger, is ignored."""
        server = OneServer.leading()
        server.answer("b", 99)
        server.answer("x", 1)
        assert server.core.commit == 1
        assert "x" not in server.core.progress


class SnapshotTests(SynchronousTestCase):
    """Chapter 5: compaction and snapshots."""

    CONFIGURATION = Configuration("abc", "d")

    def compacted(self) -> OneServer:
        """A leader whose log begins after 4."""
        server = OneServer.leading(committed=False, entries=log_of(1, 1, 1, 1), term=1)
        server.answer("b", 5)
        server.take()
        server.core.compact(4)
        server.hear("c", K.APPEND_ANSWER, log_index=4, reject=True, hint_index=1, hint_term=1)
        server.take()
        return server

    def test_compaction(self) -> None:
        """The log forgets what is applied, and nothing else; what it knows of the end stays true."""
        server = OneServer.leading(entries=log_of(1, 1, 1, 1), term=1)
        server.core.propose(b"x")
        server.core.compact(99)
        assert server.core.snapshot_meta(5) == SnapshotMeta(5, 2, Configuration("abc"))
        assert (server.core.last_index, server.terms) == (6, [2])
        server.core.compact(3)
        assert server.terms == [2]

    def test_asks_for_a_snapshot(self) -> None:
        """A follower whose next entry is gone needs a snapshot, and is sent no entries meanwhile."""
        server = self.compacted()
        assert server.core.wants_snapshot() == ("c",)
        server.core.propose(b"x")
        assert "c" not in {message.to for message in server.take()}

    def test_snapshot_arrived(self) -> None:
        """When the follower acknowledges it, entries follow; so they do if only the sender knows."""
        server = self.compacted()
        server.answer("c", 5)
        assert server.core.wants_snapshot() == ()
        assert server.core.progress["c"].state == "replicate"
        server = self.compacted()
        server.core.report_snapshot("c", True)
        assert server.core.wants_snapshot() == ()
        server.hear("c", K.HEARTBEAT_ANSWER)
        message = next(message for message in server.take() if message.kind is K.APPEND and message.to == "c")
        assert (message.log_index, [item.index for item in message.entries]) == (4, [5])

    def test_snapshot_failed(self) -> None:
        """One that failed is asked for again, but only after the follower has shown that it lives."""
        server = self.compacted()
        server.core.report_snapshot("c", False)
        server.take()
        assert server.core.wants_snapshot() == ()
        server.hear("c", K.HEARTBEAT_ANSWER)
        server.take()
        assert server.core.wants_snapshot() == ("c",)

    def test_silent_follower(self) -> None:
        """No snapshot is made for a follower that does not answer."""
        server = OneServer.leading("b", entries=log_of(1, 1, 1, 1), term=1)
        server.core.compact(4)
        server.tick(ELECTION_TICKS)
        server.core.report_unreachable("b")
        server.core.progress["b"].match = 0
        server.core.progress["b"].next = 1
        server.take()
        assert server.core.wants_snapshot() == ()

    def receive(self, server: OneServer, index: int, term: int) -> None:
        snapshot = SnapshotMeta(index, term, self.CONFIGURATION)
        server.hear("b", K.SNAPSHOT, term=3, snapshot=snapshot)

    def test_installs(self) -> None:
        """A snapshot replaces a log that does not match it, with its configuration; answered when durable."""
        server = OneServer(term=1, entries=log_of(1, 1), commit=1)
        self.receive(server, 8, 2)
        assert (server.core.commit, server.core.last_index) == (8, 8)
        assert server.core.configuration == self.CONFIGURATION
        server.hear("b", K.APPEND, term=3, log_index=8, log_term=2)
        assert server.core.urgent() == ()
        ready = server.core.ready()
        assert ready.snapshot == SnapshotMeta(8, 2, self.CONFIGURATION)
        assert ready.entries == ()
        assert {message.log_index for message in ready.messages} == {8}
        server.core.persisted(ready)
        assert server.core.applied == 8
        assert ready.must_sync

    def test_entries_after_it(self) -> None:
        """What is appended after a snapshot is written with it."""
        server = OneServer()
        self.receive(server, 8, 2)
        server.hear("b", K.APPEND, term=3, log_index=8, log_term=2, entries=(entry(9, 3),), commit=9)
        ready = server.core.ready()
        assert (ready.snapshot is not None, [item.index for item in ready.entries]) == (True, [9])
        assert [item.index for item in ready.committed] == [9]

    def test_while_the_disk_works(self) -> None:
        """A snapshot that arrives while entries are being written does not make them count."""
        server = OneServer()
        server.hear("b", K.APPEND, term=1, entries=tuple(log_of(1, 1, 1)))
        ready = server.core.ready()
        self.receive(server, 8, 2)
        server.core.persisted(ready)
        server.hear("b", K.APPEND, term=3, log_index=8, log_term=2)
        assert server.core.urgent() == ()

    def test_behind(self) -> None:
        """A snapshot that is behind what is committed changes nothing, and is answered with that."""
        server = OneServer(term=1, entries=log_of(1, 1, 1), commit=3)
        self.receive(server, 2, 1)
        assert server.core.configuration == Configuration("abc")
        assert [message.log_index for message in server.take()] == [3]
        assert server.terms == [1, 1, 1]

    def test_matching(self) -> None:
        """A snapshot that the log already includes commits that far, and what follows stays."""
        server = OneServer(term=1, entries=log_of(1, 1, 1), commit=1)
        self.receive(server, 2, 1)
        assert (server.core.commit, server.terms) == (2, [1, 1, 1])
        server.take()
        assert [item.index for item in server.applied] == [1, 2]


class ReadTests(SynchronousTestCase):
    """Section 6.4: reads without writing."""

    def confirm(self, server: OneServer, sender: str, *, past: int = 0) -> None:
        """`sender` answers the latest round (or one before it)."""
        server.take()
        number = server.core._leading._rounds.number if server.core._leading else 0
        server.hear(sender, K.HEARTBEAT_ANSWER, context=number - past)
        server.take()

    def test_after_a_round(self) -> None:
        """A leader answers when a majority has confirmed its leadership after the question."""
        server = OneServer.leading("bcde")
        server.core.read_index(7)
        self.confirm(server, "b")
        assert server.reads == []
        self.confirm(server, "b")
        assert server.reads == []
        self.confirm(server, "c")
        assert server.reads == [ReadState(7, 1)]

    def test_answers_to_older_rounds(self) -> None:
        """An answer to a heartbeat from before the question confirms nothing."""
        server = OneServer.leading()
        server.tick()
        server.take()
        server.core.read_index(7)
        server.take()
        server.hear("b", K.HEARTBEAT_ANSWER, context=0)
        server.take()
        assert server.reads == []

    def test_batched(self) -> None:
        """All questions of one turn share a round; a later answer confirms earlier rounds as well."""
        server = OneServer.leading()
        for token in range(50):
            server.core.read_index(token)
        beats = [message for message in server.take() if message.kind is K.HEARTBEAT]
        assert [message.to for message in beats] == ["b", "c"]
        server.core.read_index(50)
        self.confirm(server, "b")
        assert [read.token for read in server.reads] == list(range(51))

    def test_rounds_are_bounded(self) -> None:
        """However often it is asked, only so many rounds are under way; the rest follow."""
        server = OneServer.leading()
        beats = 0
        for token in range(20):
            server.core.read_index(token)
            beats += sum(message.kind is K.HEARTBEAT and message.to == "b" for message in server.take())
        assert beats < 10
        while len(server.reads) < 20:
            before = len(server.reads)
            self.confirm(server, "b")
            assert len(server.reads) > before

    def test_lost_round(self) -> None:
        """A round whose heartbeats were lost is confirmed by the answers to the next ones."""
        server = OneServer.leading()
        server.core.read_index(7)
        server.take()
        server.tick()
        beat = next(message for message in server.take() if message.kind is K.HEARTBEAT and message.to == "b")
        server.hear("b", K.HEARTBEAT_ANSWER, context=beat.context)
        server.take()
        assert server.reads == [ReadState(7, 1)]

    def test_alone(self) -> None:
        """A leader that is the only voter answers at once, learners or not."""
        for others, learners in (("", ""), ("b", "b")):
            server = OneServer.leading(others, learners=learners)
            server.core.read_index(7)
            assert server.core.take_reads() == (ReadState(7, 1),)

    def test_learners_confirm_nothing(self) -> None:
        """A learner's answer is no proof of leadership."""
        server = OneServer.leading("bcd", learners="d")
        server.core.read_index(7)
        self.confirm(server, "d")
        assert server.reads == []

    def test_own_term_first(self) -> None:
        """A new leader answers only when an entry of its own term is committed."""
        server = OneServer.leading(committed=False, entries=log_of(1), term=1, commit=1)
        server.core.read_index(7)
        assert server.taken(K.HEARTBEAT) == []
        server.answer("b", 2)
        self.confirm(server, "b")
        assert server.reads == [ReadState(7, 2)]

    def test_deposed(self) -> None:
        """A leader that is deposed forgets what it was asked."""
        server = OneServer.leading()
        server.core.read_index(7)
        server.take()
        server.hear("c", K.HEARTBEAT, term=5)
        server.hear("b", K.HEARTBEAT_ANSWER, term=5, context=1)
        server.take()
        assert server.reads == []

    def test_follower_asks(self) -> None:
        """A follower asks its leader, all questions of a turn at once, and answers what that says."""
        server = OneServer()
        server.hear("b", K.HEARTBEAT, term=1)
        server.take()
        server.core.read_index(1)
        server.core.read_index(2)
        (question,) = server.taken(K.READ)
        assert question.to == "b"
        server.hear("b", K.READ_ANSWER, context=question.context, log_index=9)
        server.hear("b", K.READ_ANSWER, context=question.context, log_index=9)
        server.take()
        assert server.reads == [ReadState(1, 9), ReadState(2, 9)]

    def test_leader_answers_a_follower(self) -> None:
        """The leader answers a follower's question after a round of its own."""
        server = OneServer.leading()
        server.hear("c", K.READ, context=77)
        server.take()
        server.hear("b", K.HEARTBEAT_ANSWER, context=1)
        (answer,) = server.taken(K.READ_ANSWER)
        assert (answer.to, answer.context, answer.log_index) == ("c", 77, 1)

    def test_answer_to_an_earlier_life(self) -> None:
        """An answer to what this server asked before it was restarted is not taken for a new one's."""
        first, second = OneServer(seed=1), OneServer(seed=2)
        questions = []
        for server in (first, second):
            server.hear("b", K.HEARTBEAT, term=1)
            server.take()
            server.core.read_index(1)
            questions += server.taken(K.READ)
        second.hear("b", K.READ_ANSWER, context=questions[0].context, log_index=3)
        second.take()
        assert second.reads == []

    def test_without_leader(self) -> None:
        """Without a leader a question is forgotten."""
        server = OneServer()
        server.core.read_index(1)
        assert server.take() == []

    def test_farm_shrinks_to_one(self) -> None:
        """Reads that wait for the other voter are answered when the leader is the only voter left."""
        server = OneServer.leading("b")
        server.core.read_index(7)
        server.take()
        server.core.propose_configuration(Configuration("a"))
        server.take()
        assert server.reads == [ReadState(7, 1)]
        assert server.core.commit == 2


class ConfigurationDataTests(SynchronousTestCase):
    @given(st.frozensets(st.text()), st.frozensets(st.text()))
    def test_round_trip(self, voters: frozenset[str], learners: frozenset[str]) -> None:
        """A configuration is read back as it was written."""
        configuration = Configuration(voters, learners)
        assert decode_configuration(encode_configuration(configuration)) == configuration

    def test_malformed(self) -> None:
        """Anything else is a ValueError."""
        for data in (b"", b"[]", b"{}", b'{"voters":[1],"learners":[]}', b'{"voters":"ab","learners":[]}', b"\xff"):
            with pytest.raises(ValueError):
                decode_configuration(data)
