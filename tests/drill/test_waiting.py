"""What a drill makes sure of before it judges: that the farm is at rest, however slow the machine is."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli.check import Checked
from chunkfarm.drill import flip_bit
from chunkfarm.drill.farm import POLL_SECONDS, DrillFarm
from chunkfarm.drill.partition import AGREED_SECONDS, agreed
from chunkfarm.drill.story import DrillFailed
from chunkfarm.links.lines import Reply

T = TypeVar("T")
NAMES = ("alpha", "beta", "gamma", "delta")


class ScriptedFarm(DrillFarm):
    """Its servers do not run; a test says what they answer."""

    def __init__(self, clock: Clock) -> None:
        bases = range(20_000, 20_000 + 10 * len(NAMES), 10)
        super().__init__(clock, Path(), NAMES, bases, lambda: 0)
        self.holding: list[tuple[str, ...]] = []
        """Who has the chunk of the file that is stored first, next, and so on."""
        self.leaders = dict.fromkeys(NAMES, "beta")

    async def until_whole(self, seconds: float) -> Checked:
        return Checked()

    async def ask(self, line: str, *names: str, timeout: float = 0.0) -> Reply:
        if line == "WHO":
            told = self.leaders[names[0]]
            return Reply("WHO", "4", tuple(f"name={name} leads={'yes' if name == told else 'no'}" for name in NAMES))
        holding = self.holding.pop(0)
        rows = tuple(f"HOLDER name={name} held={int(name in holding)}" for name in NAMES)
        return Reply("EXPLAIN", f"{len(rows)} wanted=3", rows)


class WaitingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.farm = ScriptedFarm(self.clock)

    def begin(self, waiting: Awaitable[T]) -> Deferred[T]:
        async def wait() -> T:
            return await waiting

        return Deferred.fromCoroutine(wait())

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([POLL_SECONDS] * round(seconds / POLL_SECONDS))

    def store(self) -> Deferred[tuple[bytes, str]]:
        async def put(way: object, name: str, data: bytes) -> None:
            self.stored.append(data)

        self.stored: list[bytes] = []
        self.patch(flip_bit, "put", put)
        return self.begin(flip_bit.store(self.farm, None, "drill/read", 10))  # type: ignore[arg-type]

    def test_a_copy_too_many(self) -> None:
        """No bit flips of a chunk of which a server has a copy that only stood in for a slow one."""
        self.farm.holding = [NAMES, NAMES[1:]]
        content, holder = self.successResultOf(self.store())
        assert content == self.stored[1] != self.stored[0] and holder == "beta"

    def test_always_a_copy_too_many(self) -> None:
        """It is told if there is one each time."""
        self.farm.holding = [NAMES] * flip_bit.TRIES_MAX
        assert "more copies" in str(self.failureResultOf(self.store(), DrillFailed).value)

    def test_the_lead_is_handed_on(self) -> None:
        """Servers that are asked while the lead is handed on are asked again."""
        self.farm.leaders["alpha"] = "gamma"
        leader = self.begin(agreed(self.farm))
        self.pass_time(5.0)
        self.assertNoResult(leader)
        self.farm.leaders["alpha"] = "beta"
        self.pass_time(1.0)
        assert self.successResultOf(leader) == "beta"

    def test_who_has_lost_the_lead(self) -> None:
        """A server that has not heard yet that another one leads is asked again."""
        self.farm.leaders["gamma"] = "alpha"
        leader = self.begin(self.farm.first("gamma", but="alpha"))
        self.pass_time(2.0)
        self.assertNoResult(leader)
        self.farm.leaders["gamma"] = "beta"
        self.pass_time(1.0)
        assert self.successResultOf(leader) == "beta"

    def test_two_leaders(self) -> None:
        """Two that both are said to lead, and stay so, are a fault."""
        self.farm.leaders["delta"] = "gamma"
        leader = self.begin(agreed(self.farm))
        self.pass_time(AGREED_SECONDS + 1.0)
        assert "who leads" in str(self.failureResultOf(leader, DrillFailed).value)
