"""The network of a simulated farm: connections between protocol objects, with everything that happens to those.

A connection keeps the order of its bytes, as TCP does; between connections there is none. There is no TLS: each end
*states* the identity that its process has at the moment of the handshake, and the other end believes it.

What is cut is held back and comes later, until the machines give a connection up (`SILENCE`). A process that ends has
its connections ended by its machine; a machine without power says nothing.
"""

from __future__ import annotations

import errno
import hashlib
from collections import deque
from random import Random
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import (
    CannotListenError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    TimeoutError,
)
from twisted.internet.interfaces import ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.wire.tls import HandshakeTimedOut, PeerEnded
from chunkfarm.wire.transport import SILENCE_SECONDS
from tests.simulation.world import Event, Process, World

SYN_AGAIN = (1.0, 3.0, 7.0)
"""Seconds after which a machine tries again to connect when nobody says anything."""


class StatedConnection(SSL.Connection):
    """In the place of OpenSSL's: what the other end has stated, and what only the two ends know."""

    def __init__(self, chain: tuple[Any, ...], secret: bytes) -> None:
        self._chain = chain
        self._secret = secret

    def get_protocol_version(self) -> int:
        return SSL.TLS1_3_VERSION

    def get_peer_cert_chain(self, *, as_cryptography: bool = False) -> Any:
        return list(self._chain) or None

    def export_keying_material(self, label: bytes, olen: int, context: bytes | None = None) -> bytes:
        return hashlib.sha256(label + self._secret).digest()[:olen]


@implementer(ITransport)
class SimulatedTransport:
    """One end of a connection."""

    disconnecting = False

    def __init__(self, network: Network, process: Process, host: IPv4Address, peer: IPv4Address, number: int) -> None:
        self.network = network
        self.process = process
        self.other: SimulatedTransport
        self.protocol: Any = None
        self.connected = True
        self.secure = False
        self.stated: tuple[Any, ...] = ()
        """The certificates that this end has shown."""
        self._number = number
        self._host = host
        self._peer = peer
        self._out: list[bytes] = []
        self._flushing: Event | None = None
        self._ending: Exception | None = None
        self._paused = False
        self._unread: deque[bytes | Exception] = deque()
        self.arrives = 0.0
        """When the last thing that this end sent arrives there, at the soonest."""
        self.held: deque[bytes | Exception] = deque()
        """What this end sent, and is held back by a cut."""
        process.connections[self] = None

    # What protocols ask of it.

    def write(self, data: bytes) -> None:
        if self.connected and not self.disconnecting and data:
            self._out.append(bytes(data))
            if self._flushing is None:
                self._flushing = self.process.at(0.0, self._flush)

    def writeSequence(self, data: Any) -> None:
        for piece in data:
            self.write(piece)

    def _flush(self) -> None:
        self._flushing = None
        data, self._out = b"".join(self._out), []
        if data and self.connected:
            self.network.send(self, data)
        if self._ending is not None:
            self.network.send(self, self._ending)
            self.lost(ConnectionDone())

    def loseConnection(self) -> None:
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self._ending = ConnectionDone()
            if self._flushing is None:
                self._flushing = self.process.at(0.0, self._flush)

    def abortConnection(self) -> None:
        if self.connected and self.process.alive:
            self.disconnecting = True
            self._out = []
            self.network.send(self, PeerEnded())
            self.process.at(0.0, self.lost, ConnectionAborted())

    def getPeer(self) -> IPv4Address:
        return self._peer

    def getHost(self) -> IPv4Address:
        return self._host

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        pass

    def unregisterProducer(self) -> None:
        pass

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        if self._paused:
            self._paused = False
            self.process.at(0.0, self._read)

    def stopProducing(self) -> None:
        self.loseConnection()

    def startTLS(self, context: Any) -> None:
        self.shake_hands()

    def shake_hands(self) -> None:
        """State the identity that this process has now."""
        self.secure = True
        identity = self.process.identity()
        if identity is not None:
            self.stated = (identity.certificate, *identity.introductions, *identity.believed[:1])

    def getPeerCertificate(self) -> Any:
        if not self.secure or not self.other.stated:
            return None
        return crypto.X509.from_cryptography(self.other.stated[0])

    def getHandle(self) -> Any:
        return StatedConnection(self.other.stated, b"%d" % self._number) if self.secure else None

    # What the network does to it.

    def begin(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self)

    def take(self, what: bytes | Exception) -> None:
        """Bytes have come, or the end."""
        if self.connected and self.process.alive:
            self._unread.append(what)
            self._read()

    def _read(self) -> None:
        while self._unread and self.connected and not self._paused:
            what = self._unread.popleft()
            if isinstance(what, Exception):
                self.lost(what)
            elif not self.disconnecting:
                self.protocol.dataReceived(what)

    def lost(self, reason: Exception) -> None:
        """It has ended; the protocol hears of it unless its process has ended, too."""
        if self.connected:
            self.connected = False
            self.disconnecting = True
            self.process.connections.pop(self, None)
            if not self.held:
                # Else the other end has yet to hear of it.
                self.network.connections.pop(self, None)
            if not self.other.process.alive:
                self.network.connections.pop(self.other, None)
            if self.process.alive and self.protocol is not None:
                self.protocol.connectionLost(Failure(reason))


class SimulatedPort:
    """A port on which a process listens."""

    def __init__(self, network: Network, place: tuple[str, int], process: Process, factory: Any, tls: Any) -> None:
        self.process = process
        self.factory = factory
        self.tls = tls
        self._network = network
        self._place = place

    def stopListening(self) -> Deferred[None]:
        if self._network.ports.get(self._place) is self:
            del self._network.ports[self._place]
        return succeed(None)


class Network:
    """Machines by address, what listens on them, and what lies between them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random: Random = world.random("network")
        self.ports: dict[tuple[str, int], SimulatedPort] = {}
        self.connections: dict[SimulatedTransport, None] = {}
        self.cut: set[tuple[str, str]] = set()
        """Ways from one host to another on which nothing goes."""
        self.dark: set[str] = set()
        """Hosts without power."""
        self.slow: dict[tuple[str, str], float] = {}
        """Seconds that a way takes in addition, at the most."""
        self._numbers = 0
        self._cuts: dict[tuple[str, str], int] = {}

    # What servers use of it.

    def connect(
        self, reactor: Any, host: str, port: int, factory: Any, tls: Any = None, timeout: float = 10.0
    ) -> Deferred[Any]:
        """As `wire.transport.connect`."""
        return _Attempt(self, reactor._process, (host, port), factory, tls is not None, timeout).done

    def listen(self, reactor: Any, description: Any, factory: Any, tls: Any = None) -> Any:
        """As `wire.transport.listen`."""
        process: Process = reactor._process
        place = (process.host, description.port)
        if place in self.ports:
            raise CannotListenError(process.host, description.port, OSError(errno.EADDRINUSE, "Address already in use"))
        self.ports[place] = SimulatedPort(self, place, process, factory, tls)
        return self.ports[place]

    # Ways.

    def delay(self, source: str, target: str) -> float:
        """Seconds from one host to another, this time."""
        slow = self.slow.get((source, target), 0.0)
        base = 0.0001 if source == target else 0.0002 + self.random.expovariate(1000.0)
        return base + (self.random.random() * slow if slow else 0.0)

    def is_open(self, source: str, target: str) -> bool:
        return (source, target) not in self.cut and not self.dark & {source, target}

    def pair(self, process: Process, address: IPv4Address, other: Process, where: IPv4Address) -> SimulatedTransport:
        """A connection; returns the end of `process`."""
        self._numbers += 1
        here = SimulatedTransport(self, process, address, where, self._numbers)
        there = SimulatedTransport(self, other, where, address, self._numbers)
        here.other, there.other = there, here
        self.connections[here] = self.connections[there] = None
        return here

    def send(self, end: SimulatedTransport, what: bytes | Exception) -> None:
        """Let it come to the other end, behind all that was sent before."""
        source, target = end.process.host, end.other.process.host
        if end.held or not self.is_open(source, target):
            end.held.append(what)
            return
        end.arrives = max(end.arrives + 1e-6, self.world.now + self.delay(source, target))
        self.world.at(end.arrives - self.world.now, end.other.process, end.other.take, what)

    # Faults.

    def close_way(self, source: str, target: str) -> None:
        """From now on nothing goes that way; connections that need it end after a while."""
        if (source, target) in self.cut:
            return
        self.cut.add((source, target))
        number = self._cuts[source, target] = self._cuts.get((source, target), 0) + 1
        patience = SILENCE_SECONDS + 2 * self.random.random()
        self.world.at(patience, None, self._give_up, source, target, number)

    def open_way(self, source: str, target: str) -> None:
        if (source, target) in self.cut:
            self.cut.discard((source, target))
            self._cuts[source, target] += 1
            self._release()

    def _release(self) -> None:
        """What was held back goes on its way."""
        for end in list(self.connections):
            if end.held and self.is_open(end.process.host, end.other.process.host):
                held, end.held = end.held, deque()
                for what in held:
                    self.send(end, what)
                if not end.process.alive or not end.connected:
                    del self.connections[end]

    def _give_up(self, source: str, target: str, number: int) -> None:
        if (source, target) in self.cut and self._cuts[source, target] == number:
            for end in list(self.connections):
                if {end.process.host, end.other.process.host} == {source, target}:
                    self._break(end)

    def _break(self, end: SimulatedTransport) -> None:
        """This end's machine has given the connection up."""
        end.process.at(0.0, end.lost, ConnectionLost("silence"))

    def end_process(self, process: Process) -> None:
        """Its machine ends its connections, behind what was sent, and refuses new ones."""
        for place in [place for place, port in self.ports.items() if port.process is process]:
            del self.ports[place]
        if process.host in self.dark:
            return
        for end in list(process.connections):
            self.send(end, PeerEnded())
        self._forget(process)

    def _forget(self, process: Process) -> None:
        for end in list(process.connections):
            end.connected = False
            if not end.held:
                self.connections.pop(end, None)
        process.connections.clear()

    def power_off(self, host: str) -> None:
        """Silence, from now on."""
        self.dark.add(host)
        self.world.at(SILENCE_SECONDS + 1.0, None, self._give_up_dark, host)

    def _give_up_dark(self, host: str) -> None:
        if host in self.dark:
            for end in list(self.connections):
                if end.other.process.host == host:
                    self._break(end)

    def power_on(self, host: str) -> None:
        """A machine that knows nothing of the connections that others believe to have with it."""
        self.dark.discard(host)
        for end in list(self.connections):
            if end.other.process.host == host and not end.other.process.alive:
                delay = self.delay(host, end.process.host)
                self.world.at(delay, end.process, end.lost, PeerEnded())
                end.held.clear()
        self._release()

    def reset(self, host: str) -> None:
        """All connections of a process that lives are reset."""
        for end in list(self.connections):
            if end.process.host == host and end.connected:
                self.send(end, PeerEnded())
                end.process.at(0.0, end.lost, PeerEnded())


class _Attempt:
    """One attempt to connect."""

    def __init__(
        self, network: Network, process: Process, to: tuple[str, int], factory: Any, secure: bool, timeout: float
    ) -> None:
        self.done: Deferred[Any] = Deferred(self._cancelled)
        self._over = False
        self._network = network
        self._process = process
        # What only its own machine can reach is another server on each.
        self._to = (process.host, to[1]) if to[0].startswith("127.") else to
        self._factory = factory
        self._secure = secure
        self._answered = False
        """Whether the other machine has the connection, and only its process says nothing."""
        self._here = IPv4Address("TCP", process.host, 30_000 + network.random.randrange(30_000))
        self._timer = process.reactor.callLater(timeout, self._timed_out)
        self._try(SYN_AGAIN)

    def _try(self, again: tuple[float, ...]) -> None:
        if self._over:
            return
        source, target = self._process.host, self._to[0]
        network = self._network
        if network.is_open(source, target) and network.is_open(target, source):
            delay = network.delay(source, target)
            network.world.at(delay, None, self._arrived)
        elif again:
            self._process.at(again[0], self._try, again[1:])

    def _arrived(self) -> None:
        """The other machine knows of it: its kernel answers, whatever its process does."""
        if self._over or not self._process.alive:
            return
        back = self._network.delay(self._to[0], self._process.host)
        port = self._network.ports.get(self._to)
        if port is None:
            if self._to[0] not in self._network.dark:
                self._process.at(back, self._failed, ConnectionRefusedError())
            return
        self._answered = True
        if self._secure:
            # The handshake needs the process.
            port.process.at(0.0, self._accept, port)
            return
        accepted = self._pair(port)
        port.process.at(0.0, self._begin, port, accepted)
        self._process.at(back, self._connected, accepted.other)

    def _pair(self, port: SimulatedPort) -> SimulatedTransport:
        where = IPv4Address("TCP", *self._to)
        return self._network.pair(port.process, where, self._process, self._here)

    def _begin(self, port: SimulatedPort, accepted: SimulatedTransport) -> None:
        if accepted.connected:
            protocol = port.factory.buildProtocol(accepted.getPeer())
            if protocol is None:
                accepted.abortConnection()
            else:
                accepted.begin(protocol)
                accepted._read()

    def _accept(self, port: SimulatedPort) -> None:
        if self._over or not self._process.alive:
            return
        accepted = self._pair(port)
        if port.tls is None:
            # It speaks no TLS, and ends what it does not understand.
            self._process.at(0.001, self._failed, ConnectionLost("TLS failed"))
            return
        accepted.shake_hands()
        accepted.other.shake_hands()
        self._begin(port, accepted)
        back = self._network.delay(self._to[0], self._process.host)
        self._process.at(back, self._connected, accepted.other)

    def _connected(self, end: SimulatedTransport) -> None:
        if self._over:
            end.process.connections.pop(end, None)
            self._network.send(end, PeerEnded())
            end.connected = False
            return
        if not end.connected:
            self._failed(PeerEnded())
            return
        self._end()
        protocol = self._factory.buildProtocol(end.getPeer())
        end.begin(protocol)
        self.done.callback(protocol)
        end._read()

    def _failed(self, reason: Exception) -> None:
        if not self._over:
            self._end()
            self.done.errback(Failure(reason))

    def _timed_out(self) -> None:
        self._failed(HandshakeTimedOut() if self._answered else TimeoutError())

    def _cancelled(self, _: object) -> None:
        if not self._over:
            self._end()

    def _end(self) -> None:
        self._over = True
        if self._timer.active():
            self._timer.cancel()
