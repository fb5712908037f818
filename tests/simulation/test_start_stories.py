"""Named stories of starts: who founds, who is let in, and how a farm finds itself again."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.ports.answers import PeerAnswers
from chunkfarm.ports.peer import Prober
from chunkfarm.trust.authority import moment
from tests.simulation.faults import HOURS_2
from tests.simulation.servers import SimulatedServer
from tests.simulation.stage import Stage

YEAR = 366 * 24 * 3600 * 1000
"""Milliseconds."""


class FounderTests(SynchronousTestCase):
    """Servers without a farm, each with a copy of one list."""

    def play(self, gap: float, ahead: int, slow: float = 0.0) -> None:
        """The second starts so much later, by a clock that is so many ms behind; a third is far from the first."""
        with Stage() as farm:
            one, other, third = servers = [farm.add_server() for _ in range(3)]
            one.clock_offset = ahead
            for server in servers:
                server.configure(tuple(known for known in servers if known is not server))
            farm.network.slow[third.host, one.host] = slow
            one.start()
            farm.wait(gap)
            other.start()
            farm.wait(2.0)
            third.start()
            farm.end()

    def test_asked_while_it_founds(self) -> None:
        """The one that comes before it by the clock asks in the middle of that, and is told to wait."""
        for gap in (0.0, 0.006, 0.012):
            for ahead in (2000, -2000):
                self.play(gap, ahead)

    def test_asked_while_it_still_looks(self) -> None:
        """The one that comes before it refused a moment ago, and asks now: so it looks again, and does not found."""
        for gap in (0.01, 0.05):
            for ahead in (2000, -2000):
                self.play(gap, ahead, slow=0.5)


class ImpostorTests(SynchronousTestCase):
    """Machines that are not of the farm."""

    def test_a_proof_that_is_sent_back(self) -> None:
        """Whoever sends back what it was shown is not taken for one that starts, too: no farm is founded beside it."""
        with Stage() as farm:
            honest, impostor = farm.add_server(), farm.add_server()
            honest.configure((impostor,))
            impostor.configure((honest,))
            (impostor.folder / "farm.join").write_text("00" * 32)
            impostor.clock_offset = HOURS_2
            probe = PeerAnswers.probe

            def reflect(answers: PeerAnswers, prober: Prober) -> dict[str, Any]:
                told = probe(answers, prober)
                if prober.server == honest.id:
                    told |= {"state": "starting", "farm": "", "keyed": True, "proof": prober.proof.hex()}
                return told

            self.patch(PeerAnswers, "probe", reflect)
            impostor.start()
            farm.wait(0.01)
            honest.start()
            farm.wait(20.0)
            assert not honest.recorded and honest.parts is not None, honest.recorded
            assert "did not prove that it knows the join key" in honest.parts.state.waits[0].error
            impostor.kill()
            honest.kill()
            honest.configure(())
            honest.start()
            farm.serve(honest)


class AddressTests(SynchronousTestCase):
    """Where servers say that they can be reached."""

    def test_a_joiner_that_takes_itself_for_loopback(self) -> None:
        """It is not let in, though a server answers at that address, and is told what to change."""
        with Stage() as farm:
            farm.grow(2)
            third = farm.add_server()
            third.advertised = "127.0.1.1"
            farm.join(third)
            farm.wait(10.0)
            assert not third.has_joined
            assert any("set host in its config.ini" in line for line in farm.story)
            third.kill()
            third.advertised = ""
            farm.join(third)
            farm.serve()
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.end()

    def test_all_get_new_addresses(self) -> None:
        """The whole network is renumbered while all are off: a list with the new addresses is enough."""
        with Stage() as farm:
            farm.grow(4)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[1], "before")
            ids = [server.id for server in farm.servers]
            for server in farm.servers:
                server.kill()
            for server in farm.servers:
                server.host = f"10.1.0.{server.number}"
                farm._by_host[server.host] = server
            for server in farm.servers:
                server.configure(tuple(other for other in farm.servers if other is not server), server.recorded)
                server.start()
            farm.end()
            assert [server.id for server in farm.servers] == ids and len(farm.voters()) == 3


class ClockTests(SynchronousTestCase):
    """Certificates, and what the time is."""

    def is_valid(self, server: SimulatedServer) -> bool:
        """Whether its certificate is good by its own clock."""
        assert server.parts is not None and server.parts.contexts.identity is not None
        certificate = server.parts.contexts.identity.certificate
        return certificate.not_valid_before_utc <= moment(server.parts.machine.now()) < certificate.not_valid_after_utc

    def test_shelved_for_a_year(self) -> None:
        """All were off for longer than their certificates are good for: they serve, and have fresh ones soon."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[2], "before")
            for server in farm.servers:
                server.cut_power()
            for server in farm.servers:
                server.clock_offset = YEAR
                server.power_on()
                server.start()
            farm.serve()
            farm.until(lambda: all(map(self.is_valid, farm.servers)), "all have fresh certificates", 20)
            farm.end()

    def test_the_first_is_two_hours_ahead(self) -> None:
        """What it signs is good at once for those whose clocks are right."""
        with Stage() as farm:
            first = farm.add_server()
            first.clock_offset = HOURS_2
            first.configure(())
            first.start()
            farm.serve()
            farm.grow(3)
            assert all(map(self.is_valid, farm.servers))
            farm.end()
