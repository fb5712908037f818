"""A client connection on a transport in memory, for tests of the client port."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from chunkfarm.limits import Limits
from chunkfarm.ports.client import ClientFactory
from tests.fuzz.promises import settle
from tests.memory_table import MemoryTable
from tests.ports.fakes import MemoryBackend


class LinkTransport(StringTransport):
    """Remembers what a connection does to its transport."""

    def __init__(self, host: str) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", host, 50000))
        self.tls: list[Any] = []
        self.certificate: Any = None
        self.delivered = 0

    def startTLS(self, contextFactory: Any) -> None:
        self.tls.append(contextFactory)

    def getPeerCertificate(self) -> Any:
        return self.certificate


class ClientLink:
    """One client and its server. `say` gives lines and returns all that is answered at once."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        backend: MemoryBackend | None = None,
        tls: Any = "a context",
        limits: Limits | None = None,
    ) -> None:
        self.clock = Clock()
        self.backend = backend if backend is not None else MemoryBackend()
        if self.backend.table is None:
            self.backend.table = MemoryTable()
        inside: Any = self.backend
        self.factory = ClientFactory(inside, self.clock, tls, limits)
        self.transport = LinkTransport(host)
        self.come_in()

    def come_in(self) -> None:
        """Connect, with a new connection."""
        protocol: Any = self.factory.buildProtocol(self.transport.getPeer())
        self.protocol = protocol
        self.protocol.makeConnection(self.transport)

    def beside(self, host: str) -> ClientLink:
        """Another client of the same server."""
        other = ClientLink.__new__(ClientLink)
        other.__dict__.update(self.__dict__)
        other.transport = LinkTransport(host)
        other.come_in()
        return other

    def send(self, data: bytes) -> str:
        """Give bytes as they are, and let everything happen that only waits for its turn."""
        self.protocol.dataReceived(data)
        settle(self.clock)
        return self.heard()

    def say(self, *lines: str) -> str:
        """Give lines, all in one read."""
        return self.send("".join(f"{line}\r\n" for line in lines).encode())

    def auth(self, key: str = "admin") -> ClientLink:
        """Prove a key, and return this link."""
        assert self.say(f"AUTH {key} secret") == f"OK role={self.backend.keys[key]}\r\n"
        return self

    def heard(self) -> str:
        """What was written since the last look, with its line ends."""
        written = self.transport.value()
        self.transport.clear()
        return str(written.decode("utf-8", "surrogateescape"))

    @property
    def closed(self) -> bool:
        return bool(self.transport.disconnecting or self.transport.disconnected)

    def lose(self) -> None:
        """The connection breaks."""
        self.protocol.connectionLost(Failure(ConnectionLost()))
