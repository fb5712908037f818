"""What every role of the consensus shares: term, vote, log, and what is to go out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chunkfarm.table.progress import Progress
from chunkfarm.table.raft_log import RaftLog
from chunkfarm.table.records import Configuration, Entry, HardState, Message, MessageKind, ReadState, SnapshotMeta


def majority(voters: int) -> int:
    """How many of `voters` decide."""
    return voters // 2 + 1


class RaftState:
    """The state of one server, whatever its role, and the one place that knows what a quorum is."""

    def __init__(self, id: str, hard_state: HardState, snapshot: SnapshotMeta, entries: Sequence[Entry]) -> None:
        self.id = id
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.commit = max(hard_state.commit, snapshot.index)
        self.log = RaftLog(snapshot, entries)
        self.reads: list[ReadState] = []
        """Reads that are confirmed and not handed out yet."""
        self._urgent: list[Message] = []
        self._promises: list[Message] = []

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
        return len(voters & servers) >= majority(len(voters))

    def reached_by_quorum(self, mine: int, followers: Mapping[str, Progress], theirs: Callable[[Progress], int]) -> int:
        """The highest number that a quorum has reached; `mine` is this server's, `theirs` a follower's."""
        voters = self.log.configuration.voters
        reached = [theirs(one) for id, one in followers.items() if id in voters]
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
