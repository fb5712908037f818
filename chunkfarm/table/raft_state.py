"""What every role of the consensus shares: term, vote, log, and what is to go out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chunkfarm.table.progress import Progress
from chunkfarm.table.raft_log import RaftLog
from chunkfarm.table.records import (
    Configuration,
    Entry,
    HardState,
    Message,
    MessageKind,
    ReadState,
    Ready,
    SnapshotMeta,
)

PAIR = 2
"""Voters of whom each is needed for every decision, so that nothing is ever decided without one of them."""
APPLY_BYTES_MAX = 1024 * 1024
"""Committed entries in one Ready: applying them must not hold up the next append for long."""


def majority(voters: int) -> int:
    """How many of `voters` decide."""
    return voters // 2 + 1


class RaftState:
    """The state of one server, whatever its role, and the one place that knows what a quorum is."""

    def __init__(
        self, id: str, hard_state: HardState, snapshot: SnapshotMeta, entries: Sequence[Entry], applied: int
    ) -> None:
        self.id = id
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.log = RaftLog(snapshot, entries)
        self.commit = max(hard_state.commit, snapshot.index, applied)
        self.applied = max(applied, snapshot.index)
        if self.commit > self.log.last_index or self.log.last_term > self.term:
            raise ValueError("the log on disk lacks entries that were committed, or the term is too old for it")
        self.withheld = False
        """Whether this server follows and decides nothing, because its disk may have lost what it promised."""
        self.alone = False
        """Whether this server goes on without any other voter, so that its own vote decides."""
        self.forced = False
        """The same by a person's word, so that no message changes it before the vote is durable."""
        self.reads: list[ReadState] = []
        """Reads that are confirmed and not handed out yet."""
        self._urgent: list[Message] = []
        self._promises: list[Message] = []
        # What goes out through Ready, and how far that has got.
        self._snapshot: SnapshotMeta | None = None
        self._under_way: Ready | None = None
        self._handed_up_to: tuple[int, int] | None = None
        self._handed_hard = (self.term, self.vote)
        self._durable_hard = (self.term, self.vote)
        self._handed_commit = hard_state.commit
        self._applying = self.applied

    @property
    def last_index(self) -> int:
        return self.log.last_index

    @property
    def configuration(self) -> Configuration:
        """The configuration in force, committed or not."""
        return self.log.configuration

    @property
    def configuration_index(self) -> int:
        """Where the configuration in force was appended."""
        return self.log.configuration_index

    @property
    def pending_change(self) -> bool:
        """Whether the configuration in force is not known to be committed."""
        return self.log.configuration_index > self.commit

    def is_quorum(self, servers: set[str]) -> bool:
        """Whether these servers decide, under the configuration in force."""
        voters = self.log.configuration.voters
        return len(voters & servers) >= majority(len(voters)) or (self.alone and self.id in servers)

    @property
    def always_needed(self) -> bool:
        """Whether no quorum of any configuration that can be in force anywhere lacks this server.

        Those are the last one that is known to be committed and all that were appended since.
        """
        possible = self.log.configurations_from(self.commit)
        return all(self.id in one.voters and len(one.voters) <= PAIR for one in possible)

    def counts(self, follower: Progress) -> bool:
        """Whether what this voter has counts for a leader's decisions.

        One that is withheld may have forgotten that it voted for a later leader, or what another leader committed
        with it, so it may join no majority that overlaps with those in it alone. Where nothing can be decided
        without this leader, there is no such other majority.
        """
        return not follower.withheld or self.always_needed

    def reached_by_quorum(self, mine: int, followers: Mapping[str, Progress], theirs: Callable[[Progress], int]) -> int:
        """The highest number that a quorum has reached; `mine` is this server's, `theirs` a follower's."""
        voters = self.log.configuration.voters
        reached = [theirs(one) for id, one in followers.items() if id in voters and self.counts(one)]
        if self.id in voters:
            reached.append(mine)
        if len(reached) < majority(len(voters)):
            return 0
        reached.sort(reverse=True)
        return reached[majority(len(voters)) - 1]

    def send(self, to: str, kind: MessageKind, **fields: Any) -> None:
        """Queue a message that promises nothing."""
        self._urgent.append(self._message(to, kind, **fields))

    def promise(self, to: str, kind: MessageKind, **fields: Any) -> None:
        """Queue a message that leaves only when everything that has happened so far is durable."""
        self._promises.append(self._message(to, kind, **fields))

    def _message(self, to: str, kind: MessageKind, **fields: Any) -> Message:
        return Message(kind=kind, sender=self.id, to=to, term=fields.pop("term", self.term), **fields)

    # The way to the disk.

    @property
    def term_is_durable(self) -> bool:
        return self._durable_hard[0] == self.term

    @property
    def vote_is_durable(self) -> bool:
        return self._durable_hard == (self.term, self.vote)

    def take_reads(self) -> tuple[ReadState, ...]:
        """Take the reads that are confirmed, for surroundings that do not want them to wait for the next Ready."""
        reads = tuple(self.reads)
        self.reads.clear()
        return reads

    def has_ready(self) -> bool:
        """Whether `ready()` would have something (never while one is under way)."""
        return self._under_way is None and bool(
            self.log.handed < self.log.last_index
            or self._promises
            or self.commit > self._applying
            or self.reads
            or self._snapshot is not None
            or self._handed_hard != (self.term, self.vote)
        )

    def ready(self) -> Ready:
        """Everything that is to be done now, as `records.Ready` says; `persisted` must follow."""
        assert self._under_way is None, "one Ready at a time"
        entries = self.log.unhanded()
        hard_state = None
        hard = (self.term, self.vote)
        # A commit index that has only moved rides along with the next write: losing it costs nothing.
        if hard != self._handed_hard or ((entries or self._snapshot) and self.commit != self._handed_commit):
            hard_state = HardState(self.term, self.vote, self.commit)
            self._handed_hard = hard
            self._handed_commit = self.commit
        committed: tuple[Entry, ...] = ()
        if self.commit > self._applying:
            committed = self.log.entries(self._applying + 1, self.commit, APPLY_BYTES_MAX)
            self._applying = committed[-1].index
        self._under_way = Ready(
            hard_state=hard_state,
            snapshot=self._snapshot,
            entries=entries,
            messages=tuple(self._promises),
            committed=committed,
            reads=self.take_reads(),
        )
        if entries:
            self.log.handed = entries[-1].index
            self._handed_up_to = (entries[-1].index, entries[-1].term)
        elif self._snapshot is not None:
            self._handed_up_to = (self._snapshot.index, self._snapshot.term)
        self._snapshot = None
        self._promises.clear()
        return self._under_way

    def note_persisted(self, ready: Ready) -> None:
        """Everything that `ready` asked for has been done: move the marks."""
        assert ready is self._under_way
        self._under_way = None
        if ready.hard_state is not None:
            self._durable_hard = (ready.hard_state.term, ready.hard_state.vote)
        if ready.snapshot is not None:
            self.applied = max(self.applied, ready.snapshot.index)
        if ready.committed:
            self.applied = max(self.applied, ready.committed[-1].index)
        if self._handed_up_to is not None:
            # Entries that were truncated meanwhile, and replaced, are not what the disk has now.
            index, term = self._handed_up_to
            if self.log.term_at(index) == term:
                self.log.stable = max(self.log.stable, index)
            self._handed_up_to = None
