"""The service as a whole: what its parts do together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.farm import HAND_OVER_INTERVAL, HAND_OVER_SECONDS, Farm
from chunkfarm.model import Server


@define
class StubbornPort:
    """The connections of a port on which something goes on for ever."""

    told: list[str] = field(factory=list)
    finished: Deferred[None] = field(factory=Deferred)

    def finish(self) -> Deferred[None]:
        self.told.append("finish")
        return self.finished

    def abort(self) -> None:
        self.told.append("abort")


class LeavingTests(SynchronousTestCase):
    """What is under way when the server is told to end."""

    def setUp(self) -> None:
        self.clock = Clock()
        anything: Any = SimpleNamespace(threads=lambda *arguments: None)
        farm: Any = Farm(anything, self.clock, anything, anything, anything)
        self.ports: Any = StubbornPort(), StubbornPort()
        farm._client_factory, farm._file_factory = self.ports
        self.farm = farm
        self.parts: Any = SimpleNamespace(config=SimpleNamespace(server=SimpleNamespace(drain_timeout=20.0)))

    def test_all_ports_at_once(self) -> None:
        """Transfers on all ports have `drain_timeout` together, not one port after the other."""
        ended = Deferred.fromCoroutine(self.farm._drain(self.parts))
        assert [port.told for port in self.ports] == [["finish"], ["finish"]]
        self.clock.advance(19.9)
        self.assertNoResult(ended)
        self.clock.advance(0.1)
        self.successResultOf(ended)
        assert [port.told for port in self.ports] == [["finish", "abort"], ["finish", "abort"]]

    def test_no_longer_than_needed(self) -> None:
        """It is over as soon as nothing is under way any more on any of them."""
        ended = Deferred.fromCoroutine(self.farm._drain(self.parts))
        self.ports[1].finished.callback(None)
        self.assertNoResult(ended)
        self.ports[0].finished.callback(None)
        self.successResultOf(ended)
        assert self.clock.getDelayedCalls() == []

    def test_before_the_ports_are_open(self) -> None:
        """A server that leaves before it has opened them waits for nothing."""
        self.farm._client_factory = self.farm._file_factory = None
        self.successResultOf(Deferred.fromCoroutine(self.farm._drain(self.parts)))


class GivenUp:
    """The table of a first of three, in which a hand-over is given up after a second, as by an election timeout."""

    def __init__(self, clock: Clock, heirs: set[str]) -> None:
        self._clock = clock
        self._heirs = heirs
        self._until = 0.0
        self.leader = "a"
        self.tries: list[str] = []
        self.configuration = SimpleNamespace(voters=frozenset({"a", "b", "c"}))

    @property
    def is_leader(self) -> bool:
        return self.leader == "a"

    def caught_up(self) -> frozenset[str]:
        return frozenset({"a", *self._heirs}) if self.is_leader else frozenset()

    def transfer(self, to: str) -> None:
        if self._clock.seconds() >= self._until:
            self._until = self._clock.seconds() + 1.0
            self.tries.append(to)


class HandOverTests(SynchronousTestCase):
    """The lead is handed on before the server ends."""

    def begin(self, *heirs: str) -> Deferred[None]:
        self.clock = Clock()
        anything: Any = SimpleNamespace(threads=lambda *arguments: None)
        farm: Any = Farm(anything, self.clock, anything, anything, anything)
        self.table = GivenUp(self.clock, set(heirs))
        self.reports: list[str] = []
        servers = tuple(
            Server(id=id, name=id, host=id, client=1, peer=2, files=3, seniority=number)
            for number, id in enumerate("abc", 1)
        )
        parts: Any = SimpleNamespace(
            embedded=self.table,
            data=SimpleNamespace(server_id="a"),
            servers=lambda: servers,
            reporter=SimpleNamespace(report_now=self.report, voters=frozenset()),
        )
        return Deferred.fromCoroutine(farm._hand_over(parts))

    def report(self) -> Deferred[None]:
        self.reports.append(self.table.leader)
        return succeed(None)

    def test_tried_again(self) -> None:
        """Where a slow disk made a hand-over fail it is tried again; whoever leads then is told of the leave."""
        ended = self.begin("b", "c")
        self.clock.pump([HAND_OVER_INTERVAL] * 25)
        assert self.table.tries == ["b", "b", "b"]
        self.assertNoResult(ended)
        self.table.leader = "b"
        self.clock.pump([HAND_OVER_INTERVAL] * 2)
        self.successResultOf(ended)
        assert self.reports == ["b"]

    def test_not_for_ever(self) -> None:
        """A server that cannot hand over ends all the same."""
        ended = self.begin("b", "c")
        self.clock.pump([HAND_OVER_INTERVAL] * int(HAND_OVER_SECONDS / HAND_OVER_INTERVAL + 1))
        self.successResultOf(ended)

    def test_nobody_is_there(self) -> None:
        """Nobody is waited for where nobody could lead."""
        self.successResultOf(self.begin())
        assert self.table.tries == []
