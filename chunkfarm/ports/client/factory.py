"""All connections of the client port together: how many, from where, and how much memory they hold."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from chunkfarm.errors import Busy
from chunkfarm.limits import Limits
from chunkfarm.ports.backend import Backend
from chunkfarm.ports.client.connection import ClientConnection
from chunkfarm.ports.client.session import refusal
from chunkfarm.ports.client.watching import Written
from chunkfarm.ports.places import REFUSALS_MAX, Met, Places


class TurnedAway(Protocol):
    """Says why nobody talks to it."""

    factory: ClientFactory

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.factory.turned_away += 1
        for line in refusal(Busy("this server has too many connections")).lines:
            self.transport.write(f"{line}\r\n".encode())
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.turned_away -= 1


class ClientFactory(Factory):
    """Makes a `ClientConnection` for each client.

    `tls` is what STARTTLS uses (a context factory), or None as long as there is no certificate to show. `limits` may be
    replaced at any time; `met` knows where servers of this farm are.
    """

    noisy = False

    def __init__(
        self,
        backend: Backend,
        clock: IReactorTime,
        tls: Any | None = None,
        limits: Limits | None = None,
        met: Met | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.met = met or Met()
        self.turned_away = 0
        """Connections that are being told that there is no place for them."""
        self.backend = backend
        self.clock = clock
        self.tls = tls
        self.written = Written(backend)
        self.connections: dict[ClientConnection, None] = {}
        """The oldest first."""
        self._places = Places(self.met)
        self._payload_bytes = 0
        self._waiting: list[ClientConnection] = []
        self._finished: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """A connection; one that says why not, if there are too many; None, which closes it, if those are too many."""
        host, limits = str(getattr(addr, "host", "")), self.limits
        refused = self._places.refusal(
            host, limits.client_connections, limits.client_connections_address, limits.client_reserved
        )
        if not refused or self._places.on_trust(host, limits.client_connections):
            return ClientConnection(self, on_trust=bool(refused))
        self.limited(refused)
        if self.turned_away >= REFUSALS_MAX:
            return None
        away = TurnedAway()
        away.factory = self
        return away

    def limited(self, limit: str) -> None:
        """A limit of this port (its name, without `client_`) has kept somebody out, or ended a link."""
        self.backend.metrics.limited("client", limit)

    def opened(self, connection: ClientConnection) -> None:
        """A connection is there."""
        self.connections[connection] = None
        self._places.take(_host(connection))
        if self._finished is not None:
            connection.finish()

    def closed(self, connection: ClientConnection) -> None:
        """It is gone."""
        self.connections.pop(connection, None)
        self._places.leave(_host(connection))
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
        if self._payload_bytes and self._payload_bytes + length > self.limits.client_payloads:
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
