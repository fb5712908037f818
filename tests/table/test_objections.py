"""Messages that no server which keeps the rules would send: logged, ignored, and never the end of a process."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.links.commands import BadRequest
from chunkfarm.table.codec import SnapshotPage, encode_message, encode_snapshot_page
from chunkfarm.table.consensus import ChangeRefused, Consensus, Dropped, NotLeader
from chunkfarm.table.leadership import ENTRY_BYTES_MAX
from chunkfarm.table.objections import MEMBERS_MAX, NUMBER_MAX, TERM_STEP_MAX, objection
from chunkfarm.table.raft_log import encode_configuration
from chunkfarm.table.records import Configuration, Entry, EntryKind, Message, MessageKind, SnapshotMeta
from tests.simulation.core import Disk, Rows
from tests.table.one_server import ELECTION_TICKS, OneServer, entry, log_of
from tests.table.test_embedded import ClusterTestCase

K = MessageKind

numbers = st.one_of(st.integers(0, 6), st.integers(0, 6), st.sampled_from([2**40, 2**62 - 1, 2**62, 2**63 - 1]))
names = st.sampled_from(["b", "c", "d"])
members = st.sampled_from(["", "a", "b", "ab", "abc", "bc", "bcd"])
configurations = st.builds(lambda voters, learners: Configuration(voters, learners), members, members)


@st.composite
def entries(draw: st.DrawFn, index: int, term: int) -> tuple[Entry, ...]:
    """Mostly in order, now and then not."""
    found = []
    for _ in range(draw(st.integers(0, 4))):
        index = draw(numbers) if draw(st.integers(0, 15)) == 0 else index + 1
        term = draw(numbers) if draw(st.integers(0, 7)) == 0 else term + draw(st.integers(0, 1))
        kind = draw(st.sampled_from(list(EntryKind)))
        data = encode_configuration(draw(configurations)) if kind is EntryKind.CONFIGURATION else b"x"
        found.append(Entry(term, index, kind, data))
    return tuple(found)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from([*MessageKind, K.APPEND, K.APPEND, K.APPEND_ANSWER]))
    log_index, log_term = draw(numbers), draw(numbers)
    return Message(
        kind=kind,
        sender=draw(names),
        to="a",
        term=draw(numbers),
        log_index=log_index,
        log_term=log_term,
        entries=draw(entries(log_index, log_term)) if kind is K.APPEND or draw(st.integers(0, 30)) == 0 else (),
        commit=draw(numbers),
        reject=draw(st.booleans()),
        hint_index=draw(numbers),
        hint_term=draw(numbers),
        context=draw(numbers),
        answer=draw(numbers),
        life=draw(numbers),
        withheld=draw(st.booleans()),
        transfer=draw(st.booleans()),
        snapshot=draw(st.one_of(st.none(), st.builds(SnapshotMeta, numbers, numbers, configurations)))
        if kind is K.SNAPSHOT
        else None,
    )


ACTIONS = ("tick", "campaign", "propose", "change", "transfer", "drop", "read", "compact", "snapshot sent", "restart")
turns = st.one_of(messages(), messages(), st.sampled_from(ACTIONS), st.just("write"))


@define
class Besieged:
    """A core with a disk, to which anything may be said at any time."""

    disk: Disk
    core: Consensus = field(init=False)
    objects: Callable[[Message, int], str] = objection

    def __attrs_post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """From what the disk has: it must always be something that a server can start from."""
        disk = self.disk
        self.core = Consensus(
            "a",
            hard_state=disk.hard_state,
            snapshot=disk.snapshot,
            entries=list(disk.entries),
            applied=disk.snapshot.index,
            random=Random(1),
            election_ticks=ELECTION_TICKS,
        )

    def take(self, turn: Message | str) -> None:
        core, before = self.core, self.core.commit
        if isinstance(turn, Message):
            if not self.objects(turn, core.term):
                core.step(turn)
        else:
            self.act(turn)
        core = self.core
        for message in core.urgent():
            # What goes out is no nonsense either, or the mistake would travel.
            assert not objection(message, message.term)
        core.take_reads()
        assert core.commit <= core.last_index <= NUMBER_MAX + 100
        assert core.commit >= before or turn == "restart"

    def act(self, turn: str) -> None:
        core = self.core
        try:
            if turn == "tick":
                for _ in range(ELECTION_TICKS):
                    core.tick()
            elif turn == "campaign":
                core.campaign()
            elif turn == "propose":
                core.propose(b"x")
            elif turn == "change":
                core.propose_configuration(Configuration(core.configuration.voters, {"d"}))
            elif turn == "transfer":
                core.transfer("b")
            elif turn == "drop":
                core.drop("b", 1)
            elif turn == "read":
                core.read_index(1)
            elif turn == "compact" and core.applied > self.disk.snapshot.index:
                self.disk.compact(core.snapshot_meta(core.applied))
                core.compact(core.applied)
            elif turn == "snapshot sent":
                core.report_snapshot("b", True)
            elif turn == "restart":
                self.restart()
            elif turn == "write":
                self.write()
        except (NotLeader, Dropped, ChangeRefused):
            pass

    def write(self) -> None:
        while self.core.has_ready():
            ready = self.core.ready()
            self.disk.write(ready, Rows())
            self.core.persisted(ready)


class SiegeTests(SynchronousTestCase):
    """Random messages, between everything else that a server does."""

    @settings(max_examples=120, deadline=None)
    @given(st.sampled_from(["a", "ab", "abc"]), st.lists(turns, max_size=30))
    def test_never_raises(self, voters: str, said: list[Message | str]) -> None:
        """Whatever is sent, the core raises nothing, and its disk is one that a server can start from."""
        besieged = Besieged(Disk(snapshot=SnapshotMeta(0, 0, Configuration(voters))))
        for turn in said:
            besieged.take(turn)
        besieged.take("restart")


class ObjectionTests(SynchronousTestCase):
    """What is objected to, and what is not."""

    def why(self, kind: MessageKind, term: int = 3, at: int = 3, **fields: Any) -> str:
        return objection(Message(kind=kind, sender="b", to="a", term=term, **fields), at)

    def append(self, *entries: Entry, **fields: Any) -> str:
        return self.why(K.APPEND, **{"log_index": 1, "log_term": 1, "entries": entries, **fields})

    def test_what_is_said_in_earnest(self) -> None:
        """Nothing is wrong with what servers say to each other."""
        assert not self.append(entry(2, 1), entry(3, 3))
        assert not self.why(K.HEARTBEAT, log_index=5, commit=4)
        assert not self.why(K.SNAPSHOT, snapshot=SnapshotMeta(4, 2, Configuration("ab", "c")))
        assert not self.why(K.VOTE, term=TERM_STEP_MAX, at=0)

    def test_terms_out_of_reach(self) -> None:
        """A term that no election can have reached is none: after it there would be no higher one."""
        assert self.why(K.VOTE, term=4 + TERM_STEP_MAX)
        assert self.why(K.HEARTBEAT, term=NUMBER_MAX + 1, at=NUMBER_MAX)
        assert self.why(K.VOTE_ANSWER, term=2**63 - 1)

    def test_gaps(self) -> None:
        """Entries follow each other."""
        assert self.append(entry(3, 1))
        assert self.append(entry(2, 1), entry(2, 1))

    def test_terms_of_entries(self) -> None:
        """They never go down, and none is above that of the leader that sends them."""
        assert self.append(entry(2, 3), entry(3, 2))
        assert self.append(entry(2, 4))
        assert self.append(entry(2, 1), log_term=2)

    def test_entries_elsewhere(self) -> None:
        """Only an append has some."""
        assert self.why(K.HEARTBEAT, entries=(entry(1, 1),))

    def test_entries_that_cannot_be_sent_on(self) -> None:
        """An entry that fits no message would be stuck in the log of whoever leads next."""
        assert not self.append(entry(2, 1, b"x" * ENTRY_BYTES_MAX))
        assert self.append(entry(2, 1, b"x" * (ENTRY_BYTES_MAX + 1)))

    def test_configurations(self) -> None:
        """Somebody votes, nobody twice, and not a crowd; names can be written."""
        many = Configuration(map(str, range(MEMBERS_MAX + 1)))
        for wrong in (Configuration(), Configuration("", "b"), Configuration("ab", "b"), Configuration([""]), many):
            data = encode_configuration(wrong)
            assert self.append(entry(2, 1, data, EntryKind.CONFIGURATION)), wrong
            assert self.why(K.SNAPSHOT, snapshot=SnapshotMeta(4, 2, wrong))
        for nonsense in (b"", b"[]", b"[" * 40_000, b'{"voters": ["\\ud800"], "learners": []}'):
            assert self.append(entry(2, 1, nonsense, EntryKind.CONFIGURATION)), nonsense[:50]

    def test_snapshots(self) -> None:
        """One has a place in the log, and none is of a later term than its sender."""
        good = SnapshotMeta(4, 2, Configuration("ab"))
        assert self.why(K.SNAPSHOT)
        for wrong in (evolve(good, term=4), evolve(good, term=0), evolve(good, index=0), evolve(good, index=2**63 - 1)):
            assert self.why(K.SNAPSHOT, snapshot=wrong)

    def test_no_sender(self) -> None:
        """Who asks for a read index without a name would be taken for this server itself."""
        assert objection(Message(kind=K.READ, sender="", to="a", term=1), 1)


class ReceivedTests(ClusterTestCase):
    """What a server of the farm sends to another one over the peer port."""

    def forge(self, **fields: Any) -> None:
        """Server b says something to the leader, a."""
        message = Message(**{"sender": "b", "to": "a", "term": self.node.table.term + 1, **fields})
        self.cluster.result(self.node.table.for_others.receive("b", encode_message(message)))

    def setUp(self) -> None:
        self.cluster = self.of("a", "b", "c")
        self.node = self.cluster.nodes["a"]

    def test_gap(self) -> None:
        """A gap in an append is logged; the leader lives, and leads on."""
        with capturedLogs() as events:
            self.forge(kind=K.APPEND, log_index=5, log_term=1, entries=(entry(9, 1),))
        assert not self.node.fatal and self.node.table.is_leader
        assert self.put("a", b"k")
        told = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
        assert told == ["A message of b makes no sense: entry 9 follows 5."]

    def test_made_up_names(self) -> None:
        """Names that a server makes up cannot fill the log, nor write another line of it."""
        with capturedLogs() as events:
            self.forge(kind=K.HEARTBEAT, sender="c\nAll is well", to="x" * 60_000)
        (told,) = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
        assert "\n" not in told and len(told) < 300

    def test_last_term(self) -> None:
        """A term behind which there is no other is ignored, so that there are elections afterwards too."""
        self.forge(kind=K.VOTE, term=2**63 - 1, transfer=True)
        assert self.node.table.term < 2**32
        self.cluster.kill("a")
        self.new_leader("a")

    def test_snapshot_of_the_future(self) -> None:
        """A snapshot that could not be started from is refused before it is written."""
        term = self.node.table.term
        meta = SnapshotMeta(1000, term + 5, Configuration("ab"))
        page = SnapshotPage(stream=1, sequence=0, term=term, meta=meta, records=b"", last=True)
        with pytest.raises(BadRequest, match="makes no sense"):
            self.cluster.result(self.node.table.for_others.receive("b", encode_snapshot_page(page)))
        assert self.put("a", b"k")


class CoreTests(SynchronousTestCase):
    """What only the core can tell is wrong."""

    def test_a_round_that_was_never_asked(self) -> None:
        """An answer to a read round of the future confirms none that is asked later."""
        server = OneServer.leading("bc")
        server.hear("b", K.HEARTBEAT_ANSWER, context=2**60)
        server.core.read_index(7)
        server.take()
        assert not server.reads
        server.hear("b", K.HEARTBEAT_ANSWER, context=1)
        server.take()
        assert [read.token for read in server.reads] == [7]

    def test_only_the_leader_hands_over(self) -> None:
        """Somebody else cannot make a server stand against the leader that it hears."""
        server = OneServer(term=1, entries=log_of(1))
        server.hear("b", K.HEARTBEAT)
        server.hear("c", K.TIMEOUT_NOW)
        assert server.core.role == "follower"
        server.hear("b", K.TIMEOUT_NOW)
        assert server.core.role == "candidate"

    def test_the_test_can_fail(self) -> None:
        """Without the objections a gap ends the core."""
        besieged = Besieged(Disk(snapshot=SnapshotMeta(0, 0, Configuration("abc"))), objects=lambda message, term: "")
        gap = Message(kind=K.APPEND, sender="b", to="a", term=1, entries=(entry(3, 1),))
        with pytest.raises(AssertionError):
            besieged.take(gap)
