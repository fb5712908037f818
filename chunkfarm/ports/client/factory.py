"""All connections of the client port together: how many, from where, and how much memory they hold."""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory, Protocol

from chunkfarm.errors import Busy
from chunkfarm.model import MIB
from chunkfarm.ports.backend import Backend
from chunkfarm.ports.client.connection import ClientConnection
from chunkfarm.ports.client.session import refusal
from chunkfarm.ports.client.watching import Written

CONNECTIONS_MAX = 4096
"""A connection takes about 30 KiB with TLS, so these take some 120 MiB; and it is a small part of the file
descriptors that the systemd unit allows."""
CONNECTIONS_PER_ADDRESS_MAX = 512
"""One machine with many clients passes, and cannot shut out the others."""
PAYLOAD_BYTES_TOTAL_MAX = 256 * MIB
"""Payloads in memory over all links: four of the largest chunks, 32 of the usual ones."""


class TurnedAway(Protocol):
    """Says why nobody talks to it."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        for line in refusal(Busy("this server has too many connections")).lines:
            self.transport.write(f"{line}\r\n".encode())
        self.transport.loseConnection()


class ClientFactory(Factory):
    """Makes a `ClientConnection` for each client.

    `tls` is what STARTTLS uses (a context factory), or None as long as there is no certificate to show.
    """

    noisy = False

    def __init__(self, backend: Backend, clock: IReactorTime, tls: Any | None = None) -> None:
        self.backend = backend
        self.clock = clock
        self.tls = tls
        self.written = Written(backend)
        self.connections: dict[ClientConnection, None] = {}
        """The oldest first."""
        self._addresses: Counter[str] = Counter()
        self._payload_bytes = 0
        self._waiting: list[ClientConnection] = []
        self._finished: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        host = getattr(addr, "host", "")
        if len(self.connections) >= CONNECTIONS_MAX or self._addresses[host] >= CONNECTIONS_PER_ADDRESS_MAX:
            return TurnedAway()
        return ClientConnection(self)

    def opened(self, connection: ClientConnection) -> None:
        """A connection is there."""
        self.connections[connection] = None
        self._addresses[_host(connection)] += 1
        if self._finished is not None:
            connection.finish()

    def closed(self, connection: ClientConnection) -> None:
        """It is gone."""
        self.connections.pop(connection, None)
        host = _host(connection)
        self._addresses[host] -= 1
        if self._addresses[host] <= 0:
            del self._addresses[host]
        if connection in self._waiting:
            self._waiting.remove(connection)
        if self._finished is not None and not self.connections:
            finished, self._finished = self._finished, Deferred()
            finished.callback(None)

    def keys_changed(self) -> None:
        """Some key was made, changed or removed."""
        for connection in list(self.connections):
            connection.key_changed()

    def finish(self) -> Deferred[None]:
        """End each link once what it has pending is answered; fires when all are gone."""
        self._finished = Deferred()
        if not self.connections:
            return succeed(None)
        finished = self._finished
        for connection in list(self.connections):
            connection.finish()
        return finished

    def cut(self, server_id: str) -> None:
        """End the links of one server."""
        for connection in list(self.connections):
            if connection.server == server_id:
                transport: Any = connection.transport
                transport.abortConnection()

    def judge_again(self) -> None:
        """End the links of servers whose certificates prove nothing any more."""
        for connection in list(self.connections):
            if connection.server and not connection.proves_server:
                transport: Any = connection.transport
                transport.abortConnection()

    def abort(self) -> None:
        """End all links at once."""
        for connection in list(self.connections):
            transport: Any = connection.transport
            transport.abortConnection()

    def reserve(self, length: int, connection: ClientConnection) -> bool:
        """Whether a payload of that length may be taken now; if not, the connection is asked to try again later."""
        if self._payload_bytes and self._payload_bytes + length > PAYLOAD_BYTES_TOTAL_MAX:
            if connection not in self._waiting:
                self._waiting.append(connection)
            return False
        self._payload_bytes += length
        return True

    def release(self, length: int) -> None:
        """Give back what `reserve` gave."""
        self._payload_bytes -= length
        assert self._payload_bytes >= 0
        if self._waiting:
            self.clock.callLater(0, self._retry)

    def _retry(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.try_again()


def _host(connection: ClientConnection) -> str:
    assert connection.transport is not None
    return str(getattr(connection.transport.getPeer(), "host", ""))
