"""One consensus core whose peers are played by the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from chunkfarm.table.consensus import Consensus
from chunkfarm.table.records import (
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageKind,
    ReadState,
    SnapshotMeta,
)

ELECTION_TICKS = 10


def entry(index: int, term: int, data: bytes = b"", kind: EntryKind = EntryKind.DATA) -> Entry:
    return Entry(term, index, kind, data)


def log_of(*terms: int) -> list[Entry]:
    """Entries 1, 2, 3 ... with these terms."""
    return [entry(index, term, b"%d" % index) for index, term in enumerate(terms, 1)]


class OneServer:
    """Server `a` of a farm. `take()` does what the core wants done, and returns the messages in order."""

    def __init__(
        self,
        others: str = "bc",
        *,
        learners: str = "",
        term: int = 0,
        vote: str = "",
        commit: int = 0,
        entries: Sequence[Entry] = (),
        snapshot: SnapshotMeta | None = None,
        applied: int = 0,
        rank: Callable[[str], int] | None = None,
        seed: int = 1,
    ) -> None:
        voters = set("a" + others) - set(learners)
        self.core = Consensus(
            "a",
            hard_state=HardState(term, vote, commit),
            snapshot=snapshot or SnapshotMeta(0, 0, Configuration(voters, learners)),
            entries=entries,
            applied=applied,
            random=Random(seed),
            election_ticks=ELECTION_TICKS,
            rank=rank,
        )
        self.written: list[Entry] = []
        self.hard_states: list[HardState] = []
        self.applied: list[Entry] = []
        self.reads: list[ReadState] = []

    @classmethod
    def leading(cls, others: str = "bc", *, committed: bool = True, **arguments: Any) -> OneServer:
        """`a` as leader, elected by everybody; with `committed` the others have its first entry."""
        server = cls(others, **arguments)
        server.elect()
        if committed:
            for other in others:
                server.answer(other, server.core.last_index)
        server.take()
        return server

    def elect(self) -> None:
        """Go through an election that everybody grants."""
        self.core.campaign()
        self.take()
        for kind, role in ((MessageKind.PRE_VOTE_ANSWER, "pre_candidate"), (MessageKind.VOTE_ANSWER, "candidate")):
            for other in sorted(self.core.configuration.voters - {"a"}):
                if self.core.role == role:
                    self.hear(other, kind, term=self.core.term + (role == "pre_candidate"))
            self.take()
        assert self.core.role == "leader"

    def hear(self, sender: str, kind: MessageKind, **fields: Any) -> None:
        """A message arrives; it is of this server's term unless said otherwise."""
        fields.setdefault("term", self.core.term)
        self.core.step(Message(kind=kind, sender=sender, to="a", **fields))

    def answer(self, sender: str, index: int, **fields: Any) -> None:
        """A follower acknowledges entries up to `index`."""
        self.hear(sender, MessageKind.APPEND_ANSWER, log_index=index, **fields)

    def take(self) -> list[Message]:
        """Write, send and apply until there is nothing left to do."""
        messages = list(self.core.urgent())
        while self.core.has_ready():
            ready = self.core.ready()
            self.written += ready.entries
            if ready.hard_state is not None:
                self.hard_states.append(ready.hard_state)
            messages += ready.messages
            self.applied += ready.committed
            self.reads += ready.reads
            self.core.persisted(ready)
            messages += self.core.urgent()
        return messages

    def taken(self, kind: MessageKind) -> list[Message]:
        """The messages of one kind among those that `take` returns."""
        return [message for message in self.take() if message.kind is kind]

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.core.tick()

    @property
    def terms(self) -> list[int]:
        """The terms of the log, from the first entry that is held."""
        return [item.term for item in self.core.log.entries(self.core.log.first_index, self.core.last_index)]
