"""A `LineClient` and a client port, joined in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.test import iosim

from chunkfarm.links.lines import LineClient
from chunkfarm.ports.client import ClientFactory
from tests.memory_table import MemoryTable
from tests.ports.fakes import MemoryBackend


class PretendedTLS:
    """A TLS context of a pretended handshake, which succeeds unless told otherwise."""

    def __init__(self, good: bool = True) -> None:
        self.good = good

    def iosimVerify(self, other: object) -> bool:
        return self.good


class LinePair:
    """Both ends of one link, as if the client were at `host`."""

    def __init__(self, host: str = "127.0.0.1", backend: MemoryBackend | None = None) -> None:
        self.clock = Clock()
        self.backend = backend if backend is not None else MemoryBackend()
        if self.backend.table is None:
            self.backend.table = MemoryTable()
        inside: Any = self.backend
        self.factory = ClientFactory(inside, self.clock, PretendedTLS())
        self.client = LineClient()
        address = IPv4Address("TCP", host, 50000)
        self.server: Any = self.factory.buildProtocol(address)
        self.server_transport = iosim.FakeTransport(self.server, True, peerAddress=address)
        self.client_transport = iosim.FakeTransport(self.client, False)
        self.pump = iosim.connect(self.server, self.server_transport, self.client, self.client_transport)

    def auth(self, key: str = "admin") -> LinePair:
        """Prove a key, and return this pair."""
        self.client.auth(key, "secret")
        self.pump.flush()
        return self
