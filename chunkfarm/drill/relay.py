"""The way between the servers of a drill, which can be cut: no right of a superuser, and no firewall, is needed.

Each server listens on 127.0.0.1 and tells the others another address of this machine's loopback, 127.0.0.2, with the
same ports; there the drill listens, and passes on what comes. Which server a connection is from follows from
whose socket the other end is (/proc). In a cut no byte is passed on and no end is told, as with a cable that was
pulled: bytes wait, and arrive when it is healed. What is unlike a cable: a new connection is accepted, and then
hears nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IPushProducer, ITransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.drill.servers import INSIDE, Server
from chunkfarm.drill.story import DrillFailed

OUTSIDE = "127.0.0.2"
"""The address that relayed servers tell each other."""
DIAL_SECONDS = 5
"""To reach a server on this machine, which answers at once or refuses."""
NOBODY = ""
"""Whoever is no server: people, whose way is never cut."""


class Cuts:
    """Between whom nothing passes. Pure."""

    def __init__(self) -> None:
        self._cut: set[frozenset[str]] = set()

    def cut_off(self, name: str, others: Iterable[str]) -> None:
        """Between this server and those others."""
        self._cut |= {frozenset((name, other)) for other in others}

    def heal(self) -> None:
        """Everywhere again."""
        self._cut.clear()

    def between(self, one: str, other: str) -> bool:
        """Whether nothing passes between two of them."""
        return frozenset((one, other)) in self._cut


class Relays:
    """The relays before all servers of a drill."""

    def __init__(self, reactor: Any, servers: Iterable[Server]) -> None:
        self._reactor = reactor
        self._servers = {server.name: server for server in servers}
        self.cuts = Cuts()
        self._listening: dict[str, list[IListeningPort]] = {}
        self._connections: set[_Connection] = set()

    def open(self) -> None:
        """Listen before all of them. Raises `DrillFailed`."""
        for server in self._servers.values():
            for port in server.ports:
                factory = _Connections(self, server.name, port)
                try:
                    listening = self._reactor.listenTCP(port, factory, interface=OUTSIDE)
                except CannotListenError as error:
                    raise DrillFailed(f"a relay cannot listen on {OUTSIDE}:{port}: {error.socketError}") from None
                self._listening.setdefault(server.name, []).append(listening)

    def close(self, name: str) -> None:
        """Refuse for one server."""
        for listening in self._listening.pop(name, []):
            listening.stopListening()

    def close_all(self) -> None:
        """End all of it."""
        for name in list(self._listening):
            self.close(name)
        for connection in list(self._connections):
            connection.end()

    def cut_off(self, name: str, others: Iterable[str]) -> None:
        """Let nothing pass between this server and those others."""
        self.cuts.cut_off(name, others)
        self._look()

    def heal(self) -> None:
        """Let everything pass; what waited arrives now."""
        self.cuts.heal()
        self._look()

    def _look(self) -> None:
        for connection in list(self._connections):
            connection.set_cut(self.cuts.between(connection.source, connection.target))

    def begun(self, connection: _Connection) -> None:
        """A connection was made to a relay."""
        self._connections.add(connection)
        connection.set_cut(self.cuts.between(connection.source, connection.target))

    def ended(self, connection: _Connection) -> None:
        """It is over."""
        self._connections.discard(connection)

    def source_of(self, address: IAddress, port: int) -> str:
        """Which server's process has the other end of a connection from this address to a relay's port."""
        processes = {server.pid: name for name, server in self._servers.items() if server.pid is not None}
        owner = owner_of(cast(Any, address).port, port, processes)
        return processes.get(owner, NOBODY) if owner is not None else NOBODY

    def dial(self, port: int, protocol: Protocol) -> Deferred[Any]:
        """Connect to a server itself."""
        dialled: Deferred[Any] = connectProtocol(
            TCP4ClientEndpoint(self._reactor, INSIDE, port, timeout=DIAL_SECONDS), protocol
        )
        return dialled


class _Connections(Factory):
    """Makes connections to one port of one server."""

    noisy = False

    def __init__(self, relays: Relays, target: str, port: int) -> None:
        self._relays = relays
        self._target = target
        self._port = port

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        assert addr is not None
        source = self._relays.source_of(addr, self._port)
        return _Connection(self._relays, source, self._target, self._port)


class _Connection(Protocol):
    """The end towards who connects; what it reads goes to the server, and the other way round."""

    def __init__(self, relays: Relays, source: str, target: str, port: int) -> None:
        self.source = source
        self.target = target
        self._relays = relays
        self._port = port
        self._far = _FarEnd(self)
        self._flows: list[_Flow] = []
        self._is_cut = False
        self._dialled: Deferred[Any] | None = None

    def connectionMade(self) -> None:
        near = cast(Any, self.transport)
        near.setTcpNoDelay(True)
        near.pauseProducing()
        self._relays.begun(self)

    def set_cut(self, is_cut: bool) -> None:
        """Hold everything back, or let it pass."""
        self._is_cut = is_cut
        for flow in self._flows:
            flow.hold(is_cut)
        if not is_cut and self._dialled is None:
            self._dialled = self._relays.dial(self._port, self._far)
            self._dialled.addCallbacks(lambda _: self._joined(), lambda _: self.end())

    def _joined(self) -> None:
        near, far = cast(Any, self.transport), cast(Any, self._far.transport)
        if near is None or far is None or not near.connected or not far.connected:
            self.end()
            return
        far.setTcpNoDelay(True)
        self._flows = [_Flow(near, far), _Flow(far, near)]
        for flow in self._flows:
            flow.hold(self._is_cut)

    def dataReceived(self, data: bytes) -> None:
        cast(ITransport, self._far.transport).write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end()

    def end(self) -> None:
        """End both sides; what was read already is still written."""
        self._relays.ended(self)
        if self._dialled is not None and not self._dialled.called:
            self._dialled.cancel()
        for transport in (self.transport, self._far.transport):
            if transport is not None:
                if self._flows:
                    cast(Any, transport).unregisterProducer()
                transport.loseConnection()
        self._flows = []


class _FarEnd(Protocol):
    """The end towards the server."""

    def __init__(self, near: _Connection) -> None:
        self._near = near

    def connectionMade(self) -> None:
        cast(Any, self.transport).pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        cast(ITransport, self._near.transport).write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._near.end()


@implementer(IPushProducer)
class _Flow:
    """One direction: reads from `source` only while it is not cut and `sink` has room."""

    def __init__(self, source: Any, sink: Any) -> None:
        self._source = source
        self._held = True
        self._full = False
        sink.registerProducer(self, True)

    def hold(self, held: bool) -> None:
        self._held = held
        self._choose()

    def pauseProducing(self) -> None:
        self._full = True
        self._choose()

    def resumeProducing(self) -> None:
        self._full = False
        self._choose()

    def stopProducing(self) -> None:
        pass

    def _choose(self) -> None:
        if self._held or self._full:
            self._source.pauseProducing()
        elif self._source.connected and not self._source.disconnecting:
            self._source.resumeProducing()


def owner_of(
    near: int,
    far: int,
    processes: Iterable[int],
    table: Callable[[], str] = lambda: Path("/proc/net/tcp").read_text(),
    descriptors: Callable[[int], Iterable[str]] = lambda pid: _descriptors(pid),
) -> int | None:
    """Which of these processes has the end of a connection whose ports are `near` (its own) and `far`."""
    inode = socket_inode(table(), near, far)
    if inode is None:
        return None
    return next((pid for pid in processes if f"socket:[{inode}]" in descriptors(pid)), None)


def socket_inode(table: str, near: int, far: int) -> int | None:
    """The number of the socket with these ports in the kernel's table of TCP (/proc/net/tcp). Pure."""
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and _port(words[1]) == near and _port(words[2]) == far:
            return int(words[9])
    return None


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _descriptors(process: int) -> list[str]:
    folder = Path(f"/proc/{process}/fd")
    found = []
    try:
        for entry in folder.iterdir():
            try:
                found.append(os.readlink(entry))
            except OSError:
                # It was closed meanwhile.
                continue
    except OSError:
        return []
    return found
