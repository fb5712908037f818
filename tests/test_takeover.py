"""The second of two servers watches over the first."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.model import FarmOptions
from chunkfarm.table.leadership import ChangeRefused
from chunkfarm.table.records import Message, MessageKind
from chunkfarm.takeover import INTERVAL, Takeover
from tests.builders import make_server
from tests.memory_table import MemoryTable

FIRST, SECOND = make_server(1), make_server(2)


class FakeTable(MemoryTable):
    """A table that notes who is taken over from."""

    def __init__(self) -> None:
        super().__init__()
        self.is_leader = False
        self.has_quorum = self.committed_this_term = True
        self.term = 4
        self.taken_over: list[str] = []
        self.refusal: Exception | None = None
        self.journal_position = (3, 41)

    def take_over(self, leader: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.taken_over.append(leader)
        self.journal_position = (4, 42)
        self.is_leader = True


class TakeoverTests(SynchronousTestCase):
    """What it sees, what it tries, and what it writes."""

    def make_takeover(self, **options: Any) -> Takeover:
        self.clock = Clock()
        self.table = FakeTable()
        self.entitled = True
        self.refused: set[int] = set()
        self.begun: list[tuple[int, int]] = []
        self.tried: list[tuple[str, int]] = []
        self.options = evolve(FarmOptions(), **options)
        takeover = Takeover(
            SECOND.id,
            self.table,  # type: ignore[arg-type]
            lambda: (FIRST, SECOND),
            lambda: self.options,
            lambda: self.entitled,
            self.refuses,
            self.clock,
            lambda: 1000.0 + self.clock.seconds(),
            self,
        )
        takeover.start()
        self.addCleanup(takeover.stop)
        return takeover

    def begin(self, position: tuple[int, int]) -> Deferred[None]:
        self.begun.append(position)
        return succeed(None)

    def refuses(self, host: str, port: int) -> Deferred[bool]:
        self.tried.append((host, port))
        return succeed(port in self.refused)

    def hear(self, takeover: Takeover, answers: int, confirmed: int) -> None:
        message = Message(kind=MessageKind.HEARTBEAT, sender=FIRST.id, to=SECOND.id, term=3, answer=confirmed)
        takeover.saw(message, 3, answers)

    def lose_first(self, takeover: Takeover) -> None:
        """It was heard, has confirmed an answer, and its process is gone."""
        self.hear(takeover, 7, 0)
        self.hear(takeover, 8, 8)
        takeover.ended(FIRST.id)
        self.refused = {FIRST.peer, FIRST.files}

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([INTERVAL] * round(seconds / INTERVAL))

    def test_the_first_is_gone(self) -> None:
        """After `master_grace` of refusals it takes over, and writes down where its line begins."""
        takeover = self.make_takeover()
        self.lose_first(takeover)
        self.pass_time(10)
        assert self.table.taken_over == []
        self.pass_time(1)
        assert self.table.taken_over == [FIRST.id]
        assert self.begun == [(3, 41)]

    def test_both_ports(self) -> None:
        """One port that does not refuse is a sign of life."""
        takeover = self.make_takeover()
        self.lose_first(takeover)
        self.refused = {FIRST.peer}
        self.pass_time(60)
        assert self.table.taken_over == []

    def test_nobody_is_tried_while_all_is_well(self) -> None:
        """Nor is a first that is merely silent."""
        takeover = self.make_takeover()
        self.hear(takeover, 7, 0)
        self.pass_time(60)
        assert self.tried == []

    def test_by_hand(self) -> None:
        """With `two_server_takeover = manual` it never does."""
        takeover = self.make_takeover(two_server_takeover="manual")
        self.lose_first(takeover)
        self.pass_time(60)
        assert self.table.taken_over == []

    def test_not_entitled(self) -> None:
        """A process that has no place yet, or leaves, builds on nothing that it saw."""
        takeover = self.make_takeover()
        self.entitled = False
        self.lose_first(takeover)
        self.entitled = True
        takeover.ended(FIRST.id)
        self.pass_time(60)
        assert self.table.taken_over == []
        self.lose_first(takeover)
        self.entitled = False
        self.pass_time(60)
        assert self.table.taken_over == []

    def test_refused_by_the_core(self) -> None:
        """Others may have decided without it: it stays, and nothing is written down."""
        takeover = self.make_takeover()
        self.table.refusal = ChangeRefused("others may have decided")
        self.lose_first(takeover)
        self.pass_time(60)
        assert self.begun == []
