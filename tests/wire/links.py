"""Two ends of a real connection on 127.0.0.1, for the tests of the transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IAddress, IHandshakeListener
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from chunkfarm.config_values import ListenDescription
from chunkfarm.wire.transport import HANDSHAKE_TIMEOUT, ContextSource, connect, listen

ANYWHERE = ListenDescription("tcp", 0, "127.0.0.1")


@implementer(IHandshakeListener)
class End(Protocol):
    """One end: remembers what happened to it."""

    transport: Any

    def __init__(self) -> None:
        self.received = bytearray()
        self.reads: list[bytes] = []
        self.handshakes = 0
        self.reason: Any = None
        self.lost: Deferred[None] = Deferred()
        self.on_data: Callable[[End, bytes], object] = lambda end, data: None
        self.on_made: Callable[[End], object] = lambda end: None

    def shown_to_it(self) -> str:
        """The subject of the certificate that the other end has shown."""
        return str(self.transport.getPeerCertificate().to_cryptography().subject.rfc4514_string())

    def connectionMade(self) -> None:
        self.on_made(self)

    def handshakeCompleted(self) -> None:
        self.handshakes += 1

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.reads.append(data)
        self.on_data(self, data)

    def connectionLost(self, reason: Failure = Failure(RuntimeError())) -> None:  # noqa: B008
        self.reason = reason.value
        self.lost.callback(None)


class Ends(Factory):
    """Makes ends and remembers them."""

    noisy = False

    def __init__(self) -> None:
        self.made: list[End] = []
        self.on_data: Callable[[End, bytes], object] = lambda end, data: None
        self.on_made: Callable[[End], object] = lambda end: None

    def buildProtocol(self, addr: IAddress | None) -> End | None:
        end = End()
        end.on_data, end.on_made = self.on_data, self.on_made
        self.made.append(end)
        return end


class LinkTestCase(TestCase):
    """Makes links, and takes down whatever is left of them."""

    timeout = 20

    def setUp(self) -> None:
        self.accepted = Ends()
        self.dialed = Ends()
        self.port: Any = None

    async def tearDown(self) -> None:  # type: ignore[override]
        if self.port is not None:
            await maybeDeferred(self.port.stopListening)
        left = [end for end in self.accepted.made + self.dialed.made if end.transport is not None]
        for end in left:
            end.transport.abortConnection()
        await gatherResults([end.lost for end in left])
        # A discarded Deferred of a finished connection has one turn to go.
        await deferLater(reactor, 0)

    def listen(self, tls: ContextSource | None = None, handshake_timeout: float = HANDSHAKE_TIMEOUT) -> int:
        """Accept connections; returns the port number."""
        self.port = listen(reactor, ANYWHERE, self.accepted, tls, handshake_timeout=handshake_timeout)
        return int(self.port.getHost().port)

    async def link(
        self, server_tls: ContextSource | None = None, client_tls: ContextSource | None = None
    ) -> tuple[End, End]:
        """An accepted and an outgoing end, both ready."""
        number = self.listen(server_tls)
        client: Any = await connect(reactor, "127.0.0.1", number, self.dialed, client_tls)
        await self.until(lambda: bool(self.accepted.made))
        (server,) = self.accepted.made
        if server_tls is not None:
            await self.until(lambda: server.handshakes > 0)
        return server, client

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the reactor turn until something holds; the test's own time limit ends a vain wait."""
        while not condition():
            await deferLater(reactor, 0)

    async def until_still(self, value: Callable[[], object], turns: int = 50) -> None:
        """Let the reactor turn until `value` has not changed for some turns."""
        last, same = value(), 0
        while same < turns:
            await deferLater(reactor, 0.001)
            now = value()
            last, same = (now, 0) if now != last else (last, same + 1)
