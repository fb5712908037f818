"""The values that the consensus core exchanges with its surroundings. No behaviour, no I/O.

The words are Raft's (Ongaro, "Consensus: Bridging Theory and Practice", 2014; etcd/raft's doc.go).
Nodes are named by server id.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from attrs import field, frozen


class EntryKind(Enum):
    EMPTY = "empty"
    """What a leader appends when its term begins."""
    DATA = "data"
    """An encoded transaction; the core never looks inside."""
    CONFIGURATION = "configuration"
    """The whole new configuration, as JSON; in force from the moment it is appended."""


@frozen
class Entry:
    term: int
    index: int
    kind: EntryKind
    data: bytes = b""


def _ids(ids: Iterable[str]) -> frozenset[str]:
    return frozenset(ids)


@frozen
class Configuration:
    """Who votes and who only learns."""

    voters: frozenset[str] = field(default=(), converter=_ids)
    learners: frozenset[str] = field(default=(), converter=_ids)

    @property
    def members(self) -> frozenset[str]:
        return self.voters | self.learners


@frozen
class HardState:
    """What must be durable before a message that depends on it is sent."""

    term: int = 0
    vote: str = ""
    commit: int = 0


@frozen
class SnapshotMeta:
    """The last log position that a state of the rows includes, and the configuration there."""

    index: int = 0
    term: int = 0
    configuration: Configuration = Configuration()


class Why(Enum):
    """Why a server stood for election, or ceased to lead; told to people, and nothing follows from it."""

    ONLY = "only"
    """It is the only voter."""
    SILENT = "silent"
    """It heard no leader for an election timeout."""
    CUT = "cut"
    """The leader's link had ended."""
    HANDED = "handed"
    """The leader handed over."""
    ALONE = "alone"
    """The other one of two voters is gone for good."""
    FORCED = "forced"
    """A person said so."""
    MAJORITY = "majority"
    """No majority answered."""
    REMOVED = "removed"
    """It does not vote any more."""
    WITHHELD = "withheld"
    LATER = "later"
    """There is a later term."""


@frozen
class Reasons:
    """Why a server stood for election last, who led before, and why it ceased to lead."""

    stood: Why | None = None
    former: str = ""
    ceased: Why | None = None


class MessageKind(Enum):
    PRE_VOTE = "pre_vote"
    PRE_VOTE_ANSWER = "pre_vote_answer"
    VOTE = "vote"
    VOTE_ANSWER = "vote_answer"
    APPEND = "append"
    APPEND_ANSWER = "append_answer"
    HEARTBEAT = "heartbeat"
    HEARTBEAT_ANSWER = "heartbeat_answer"
    SNAPSHOT = "snapshot"
    """A whole snapshot has been received and waits in the second file; stepped by the receiver's own driver."""
    READ = "read"
    """A follower asks the leader for a read index."""
    READ_ANSWER = "read_answer"
    TIMEOUT_NOW = "timeout_now"
    """The leader hands over: campaign at once, without pre-vote."""


@frozen(kw_only=True)
class Message:
    """One message of the core. Every message carries its sender's term (an answer too)."""

    kind: MessageKind
    sender: str
    to: str
    term: int
    log_index: int = 0
    """APPEND: index before the entries. Votes: the candidate's last index. APPEND_ANSWER: last matching index."""
    log_term: int = 0
    entries: tuple[Entry, ...] = ()
    commit: int = 0
    reject: bool = False
    hint_index: int = 0
    """APPEND_ANSWER with `reject`: where the follower's log may match."""
    hint_term: int = 0
    context: int = 0
    """Number of a read-index round (READ, READ_ANSWER, HEARTBEAT, HEARTBEAT_ANSWER)."""
    answer: int = 0
    """HEARTBEAT_ANSWER: its number among this process's answers. HEARTBEAT: the last one the leader has received."""
    life: int = 0
    """APPEND_ANSWER, HEARTBEAT_ANSWER: tells the processes of one server apart; 0 where it is not said."""
    withheld: bool = False
    """APPEND_ANSWER, HEARTBEAT_ANSWER: the sender decides nothing, because its disk may have lost what it promised."""
    transfer: bool = False
    """A vote asked for on the leader's own wish: followers answer although they hear the leader."""
    snapshot: SnapshotMeta | None = None


@frozen
class ReadState:
    """The read asked for under `token` may be answered from a state that has applied `index`."""

    token: int
    index: int


@frozen(kw_only=True)
class Ready:
    """What the surroundings must do, in this order: make durable, then send, then apply.

    1. durably, in one step: install the received snapshot (`snapshot`), drop all log entries from
       `entries[0].index` on, append `entries`, and write `hard_state` (None: unchanged);
    2. send `messages` (they depend on step 1);
    3. apply `committed` to the rows, in order, and answer `reads` once their index is applied.
    Then call `Consensus.persisted(ready)`. One Ready is under way at a time.
    """

    hard_state: HardState | None = None
    snapshot: SnapshotMeta | None = None
    entries: tuple[Entry, ...] = ()
    messages: tuple[Message, ...] = ()
    committed: tuple[Entry, ...] = ()
    reads: tuple[ReadState, ...] = ()

    @property
    def must_sync(self) -> bool:
        """Whether step 1 writes anything that a promise depends on (a moved commit index alone does not)."""
        return bool(self.entries or self.snapshot or self.hard_state is not None)
