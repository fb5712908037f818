"""The service as a whole: what its parts do together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.farm import Farm


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
