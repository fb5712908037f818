"""Ports of a drill belong to it from the moment that they are chosen."""

from __future__ import annotations

import random
import socket

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.drill.ports import ReservedPorts
from chunkfarm.drill.relay import OUTSIDE
from chunkfarm.drill.servers import INSIDE
from chunkfarm.drill.story import DrillFailed


class ReservedPortsTests(SynchronousTestCase):
    def make_ports(self) -> ReservedPorts:
        ports = ReservedPorts(random.Random())
        self.addCleanup(ports.close)
        return ports

    def listen(self, address: str, port: int) -> socket.socket:
        """What a server does."""
        listening = socket.create_server((address, port))
        self.addCleanup(listening.close)
        return listening

    def test_three_in_a_row_everywhere(self) -> None:
        """A server gets three ports that are free on each address, and no two get the same."""
        (start,) = self.make_ports().take(1, (INSIDE, OUTSIDE))
        ports = self.make_ports()
        first, second = ports.take(2, (INSIDE, OUTSIDE), start)
        assert start < first < second
        (alone,) = self.make_ports().take(1, (INSIDE,))
        (elsewhere,) = self.make_ports().take(1, (OUTSIDE,), alone)
        assert elsewhere == alone
        (both,) = self.make_ports().take(1, (INSIDE, OUTSIDE), alone)
        assert both > alone

    def test_anywhere(self) -> None:
        """Without a wish they are somewhere below those that the kernel gives away."""
        bases = self.make_ports().take(4, (INSIDE,))
        assert len(set(bases)) == 4 and all(20_000 <= base < 32_000 for base in bases)

    def test_servers_listen_again_and_again(self) -> None:
        """The servers that they are for can listen there, also after they were killed."""
        (base,) = self.make_ports().take(1, (INSIDE, OUTSIDE))
        for _ in range(2):
            for port in range(base, base + 3):
                listening, relay = self.listen(INSIDE, port), self.listen(OUTSIDE, port)
                with socket.create_connection((INSIDE, port)):
                    listening.accept()[0].close()
                listening.close()
                relay.close()

    def test_nobody_else(self) -> None:
        """Two drills at a time never get the same ports, though no server listens yet."""
        mine = self.make_ports().take(3, (INSIDE,))
        theirs = self.make_ports().take(3, (INSIDE,), min(mine))
        assert not set(mine) & set(theirs)

    def test_given_back(self) -> None:
        """After the drill they are anybody's."""
        ports = self.make_ports()
        (base,) = ports.take(1, (INSIDE,))
        ports.close()
        with socket.socket() as other:
            other.bind((INSIDE, base))

    def test_none(self) -> None:
        """Where there are not enough, the drill says so, and keeps none of what it was refused."""
        ports = self.make_ports()
        with self.assertRaises(DrillFailed):
            ports.take(4, (INSIDE,), 65_500)
        assert ports.take(1, (INSIDE,), 65_500) == [65_500]
