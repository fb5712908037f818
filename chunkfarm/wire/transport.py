"""Listening and connecting with `Stream` transports.

The ports and links of a server are built on these two functions instead of Twisted's endpoints, because
endpoints choose the class of the transport themselves.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet import tcp
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError, ConnectError, DNSLookupError, NoProtocol, UserError
from twisted.internet.error import TimeoutError as ConnectTimedOut
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol, IProtocolFactory, IResolutionReceiver
from twisted.internet.protocol import ClientFactory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.config_values import ListenDescription
from chunkfarm.wire.inherited import Inherited, inherited_descriptor, own_inherited_ports
from chunkfarm.wire.stream import Flusher, Stream
from chunkfarm.wire.tls import HANDSHAKE_TIMEOUT, ContextSource, HandshakeTimedOut, TLSFailed, name_to_ask_for
from chunkfarm.wire.turnstile import ACCEPTED_IN_TURN, HANDSHAKES_IN_TURN, SENT_IN_TURN, Turnstile

__all__ = [
    "CONNECT_TIMEOUT",
    "HANDSHAKE_TIMEOUT",
    "AcceptedStream",
    "ContextSource",
    "DialedStream",
    "HandshakeTimedOut",
    "StreamPort",
    "TLSFailed",
    "adopt",
    "connect",
    "end_when_gone",
    "end_when_silent",
    "listen",
]

CONNECT_TIMEOUT = 10.0
"""Seconds for the name, the connection and the handshake together."""
BACKLOG = 512
"""Connections that the kernel holds until they are accepted: enough for every client of a busy farm at once."""

GONE_SECONDS = 300.0
"""Until a client's connection ends whose machine is gone: a laptop may well be out of reach for a minute or two."""
SILENCE_SECONDS = 10.0
"""Until a connection between servers whose other machine is gone ends: as long as `master_grace`."""


class AcceptedStream(Stream, tcp.Server):
    """A connection that somebody made to one of our ports."""

    _log = Logger()

    def __init__(self, sock: Any, protocol: Any, client: Any, server: StreamPort, sessionno: int, reactor: Any) -> None:
        self._begin(server.flusher, server.handshake_timeout)
        self._handshakes = server.handshakes
        self._large_sends = server.large_sends
        tcp.Server.__init__(self, sock, protocol, client, server, sessionno, reactor)
        self.setTcpNoDelay(True)
        if server.tls is None:
            return
        try:
            self._start_tls(server.tls.getContext(), client=False)
        except Exception:
            self._log.failure("while preparing TLS for {connection!r}", connection=self)
            self.abortConnection()


class StreamPort(tcp.Port):
    """A listening port whose connections are `AcceptedStream`s."""

    transport = AcceptedStream  # type: ignore[assignment]
    tls: ContextSource | None = None
    handshake_timeout = HANDSHAKE_TIMEOUT
    flusher: Flusher
    handshakes: Turnstile[Stream]
    large_sends: Turnstile[Stream]

    def doRead(self) -> None:
        """Accept some of those who wait, and leave the others for the next turn."""
        self.numberAccepts = min(self.numberAccepts, ACCEPTED_IN_TURN)
        super().doRead()

    def prepare(self, tls: ContextSource | None, handshake_timeout: float) -> None:
        """Say how connections are to be; must come before the first is accepted."""
        self.flusher = Flusher(self.reactor)
        self.handshakes = Turnstile(self.reactor, HANDSHAKES_IN_TURN, Stream.shake_on)
        self.large_sends = Turnstile(self.reactor, SENT_IN_TURN, Stream.send_on)
        self.tls = tls
        self.handshake_timeout = handshake_timeout
        try:
            self.startListening()
        except OSError as error:
            raise CannotListenError(self.interface, self.port, error) from error


def listen(
    reactor: Any,
    description: ListenDescription,
    factory: IProtocolFactory,
    tls: ContextSource | None = None,
    *,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    inherited: Inherited = inherited_descriptor,
    inherited_ports: Callable[[], Mapping[int, int]] = own_inherited_ports,
) -> IListeningPort:
    """Listen as `description` says; with `tls` every connection starts with a handshake.

    A socket that systemd passed for this very port is taken instead of a new one. Raises `CannotListenError`.
    `inherited` and `inherited_ports` (see `wire.inherited`) are arguments for tests.
    """
    descriptor = None
    if description.kind == "systemd":
        try:
            descriptor = inherited(reactor, description.name)
        except KeyError as error:
            missing = OSError(errno.ENOENT, "systemd passed no socket of this name (FileDescriptorName=)")
            raise CannotListenError("systemd", description.name, missing) from error
    elif description.port:
        descriptor = inherited_ports().get(description.port)
    if descriptor is not None:
        return adopt(reactor, descriptor, factory, tls, handshake_timeout=handshake_timeout)
    default = "::" if description.kind == "tcp6" else ""
    port = StreamPort(description.port, factory, BACKLOG, description.name or default, reactor)
    port.prepare(tls, handshake_timeout)
    return cast(IListeningPort, port)


def end_when_gone(transport: Any, seconds: float = GONE_SECONDS) -> None:
    """Let the kernel end a connection whose other machine is gone, within about that long.

    A watch of a table at rest sends nothing, so nothing else would ever notice. Whoever is there and takes nothing is
    left alone: its kernel answers.
    """
    _keep_alive(transport, seconds, patient=True)


def end_when_silent(transport: Any, seconds: float = SILENCE_SECONDS) -> None:
    """Let the kernel end a connection whose other machine has not answered it for about that long.

    A machine that lost its power or its cable says nothing, and TCP alone waits a quarter of an hour, or for ever where
    nothing is sent. Not for connections whose other side may leave bytes untaken for long.
    """
    _keep_alive(transport, seconds, patient=False)


def _keep_alive(transport: Any, seconds: float, *, patient: bool) -> None:
    sock = getattr(transport, "socket", None)
    if not isinstance(sock, socket.socket) or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    probes = 3
    wanted = (
        ("TCP_KEEPIDLE", max(1, round(seconds / 2))),
        ("TCP_KEEPINTVL", max(1, round(seconds / 2 / probes))),
        ("TCP_KEEPCNT", probes),
        ("TCP_USER_TIMEOUT", round(seconds * 1000)),
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in wanted[:-1] if patient else wanted:
        # Not every system has every one of them.
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def adopt(
    reactor: Any,
    descriptor: int,
    factory: IProtocolFactory,
    tls: ContextSource | None = None,
    *,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
) -> IListeningPort:
    """Accept on a listening socket made by somebody else, and close `descriptor` in favour of a copy.

    Raises `CannotListenError` if it is no listening TCP socket.
    """
    try:
        with socket.socket(fileno=os.dup(descriptor)) as probe:
            family = probe.family
            if family not in (socket.AF_INET, socket.AF_INET6):
                raise OSError(errno.EAFNOSUPPORT, "only TCP sockets can be adopted")
            if not probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise OSError(errno.EINVAL, "the socket is not listening")
            probe.setblocking(False)
            port: StreamPort = StreamPort._fromListeningDescriptor(reactor, descriptor, family, factory)
    except OSError as error:
        raise CannotListenError("descriptor", descriptor, error) from error
    port.prepare(tls, handshake_timeout)
    os.close(descriptor)
    return cast(IListeningPort, port)


class DialedStream(Stream, tcp.Client):
    """A connection that we made."""

    def __init__(self, host: str, port: int, bind_address: Any, connector: _Connector, reactor: Any) -> None:
        self._begin(Flusher(reactor), HANDSHAKE_TIMEOUT)
        tcp.Client.__init__(self, host, port, bind_address, connector, reactor)

    def _connectDone(self) -> None:
        connector = cast(_Connector, self.connector)
        protocol = connector.buildProtocol(self.getPeer())
        if protocol is None:
            self.failIfNotConnected(NoProtocol())
            return
        self.protocol = protocol
        self.connected = 1
        self.logstr = f"{self._getLogPrefix(protocol)},client"
        self.setTcpNoDelay(True)
        self.startReading()
        if connector.context is not None:
            self._handshake_timeout = connector.handshake_time()
            self._start_tls(connector.context, client=True, server_name=connector.server_name)
        protocol.makeConnection(self)
        connector.connected(self)


class _Connector(tcp.Connector):
    """One attempt to connect to one address."""

    def __init__(
        self,
        reactor: Any,
        address: str,
        port: int,
        factory: IProtocolFactory,
        timeout: float,
        context: SSL.Context | None,
        server_name: bytes | None,
        handshake_time: Callable[[], float],
    ) -> None:
        self.done: Deferred[DialedStream] | None = Deferred(lambda done: self._cancel())
        self.context = context
        self.server_name = server_name
        self.handshake_time = handshake_time
        super().__init__(address, port, _Attempt(self, factory), timeout, None, reactor)

    def _makeTransport(self) -> DialedStream:
        return DialedStream(self.host, self.port, None, self, self.reactor)

    def connected(self, stream: DialedStream) -> None:
        done, self.done = self.done, None
        if done is not None:
            done.callback(stream)

    def failed(self, reason: Failure) -> None:
        done, self.done = self.done, None
        if done is not None:
            done.errback(reason)

    def _cancel(self) -> None:
        self.done = None
        if self.state == "connecting":
            self.stopConnecting()


class _Attempt(ClientFactory):
    """Gives the connector's news to the Deferred, and the caller's factory the say over the protocol."""

    noisy = False

    def __init__(self, connector: _Connector, factory: IProtocolFactory) -> None:
        self._connector = connector
        self._wrapped = factory

    def doStart(self) -> None:
        self._wrapped.doStart()

    def doStop(self) -> None:
        self._wrapped.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        assert addr is not None
        return self._wrapped.buildProtocol(addr)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._connector.failed(reason)


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects what a name resolves to."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.done: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolution: Any) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, IPv4Address | IPv6Address) and address.host not in self.found:
            self.found.append(address.host)

    def resolutionComplete(self) -> None:
        if not self.done.called:
            self.done.callback(self.found)


def connect(
    reactor: Any,
    host: str,
    port: int,
    factory: IProtocolFactory,
    tls: ContextSource | None = None,
    timeout: float = CONNECT_TIMEOUT,
) -> Deferred[IProtocol]:
    """Connect to `host` (a name or an IP address); fires with the protocol, with `tls` after the handshake.

    Every address of a name is tried in turn, within `timeout` seconds for all. The protocol is told
    `connectionMade` when the connection is there, before the handshake; it gets its first byte after the
    Deferred has fired. Fails with `ConnectError` and its kinds, `DNSLookupError`, `NoProtocol` (the factory
    wanted none), `TLSFailed`, or what the context's own check of the certificate raised. Cancelling gives up
    the attempt.
    """
    return Deferred.fromCoroutine(_connect(reactor, host, port, factory, tls, timeout))


async def _connect(
    reactor: Any, host: str, port: int, factory: IProtocolFactory, tls: ContextSource | None, timeout: float
) -> IProtocol:
    context = None if tls is None else tls.getContext()
    deadline = reactor.seconds() + timeout
    is_name = not (isIPAddress(host) or isIPv6Address(host))
    addresses = await _resolve(reactor, host, timeout) if is_name else [host]
    server_name = None if tls is None else name_to_ask_for(tls, host if is_name else None)
    stream = None
    for position, address in enumerate(addresses):
        left = deadline - reactor.seconds()
        connector = _Connector(
            reactor,
            address,
            port,
            factory,
            # An address that swallows packets must leave time for the others.
            max(0.0, left / (len(addresses) - position)),
            context,
            server_name,
            lambda: min(HANDSHAKE_TIMEOUT, max(0.0, deadline - reactor.seconds())),
        )
        attempt = connector.done
        assert attempt is not None
        connector.connect()
        try:
            stream = await attempt
            break
        except (ConnectError, UserError):
            if position + 1 == len(addresses):
                raise
    assert stream is not None
    protocol = stream.protocol
    if context is not None:
        await stream.when_secure()
    return protocol


async def _resolve(reactor: Any, host: str, timeout: float) -> list[str]:
    """The addresses of `host` in the order of the system's resolver."""
    receiver = _Addresses()
    reactor.nameResolver.resolveHostName(receiver, host)
    try:
        found = await receiver.done.addTimeout(timeout, reactor)
    except CancelledError:
        raise
    except Exception as error:
        raise ConnectTimedOut(string=f"the name {host} was not resolved in time") from error
    if not found:
        raise DNSLookupError(f"no address is known for {host}")
    return found
