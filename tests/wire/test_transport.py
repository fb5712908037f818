"""Tests for `chunkfarm.wire.transport`: listening, connecting, and what goes wrong with either."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError, ConnectionRefusedError, DNSLookupError, NoProtocol
from twisted.internet.error import TimeoutError as ConnectTimedOut
from twisted.internet.interfaces import INegotiated, ITLSTransport
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config_values import ListenDescription
from chunkfarm.wire.transport import (
    HandshakeTimedOut,
    TLSFailed,
    adopt,
    connect,
    end_when_gone,
    end_when_silent,
    listen,
)
from tests.wire.certificates import contexts
from tests.wire.links import End, LinkTestCase


class ListenTests(LinkTestCase):
    """A port is opened."""

    def test_port_is_taken(self) -> None:
        """A port that somebody else uses is refused at once, with an error that names it."""
        number = self.listen()
        with self.assertRaises(CannotListenError) as caught:
            listen(reactor, ListenDescription("tcp", number, "127.0.0.1"), self.accepted)
        assert str(number) in str(caught.exception)

    def test_no_such_interface(self) -> None:
        """An address that this machine does not have is refused at once."""
        with self.assertRaises(CannotListenError):
            listen(reactor, ListenDescription("tcp", 0, "192.0.2.1"), self.accepted)

    async def test_ipv6(self) -> None:
        """Connections over IPv6 are accepted."""
        if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
            self.skipTest("no IPv6 here")
        try:
            self.port = listen(reactor, ListenDescription("tcp6", 0, "::1"), self.accepted)
        except CannotListenError:
            self.skipTest("no IPv6 here")
        client: Any = await connect(reactor, "::1", self.port.getHost().port, self.dialed)
        await self.until(lambda: bool(self.accepted.made))
        assert self.accepted.made[0].transport.getPeer().host == "::1"
        assert client.transport.getPeer().port == self.port.getHost().port

    async def test_socket_of_systemd(self) -> None:
        """A listening socket that systemd opened is used, under the name it was passed by."""
        opened = socket.create_server(("127.0.0.1", 0))
        number, descriptor = opened.getsockname()[1], opened.detach()
        asked: list[str] = []

        def inherited(reactor: object, name: str) -> int:
            asked.append(name)
            return descriptor

        tls = contexts("server")
        description = ListenDescription("systemd", 0, "client", "INET")
        self.port = listen(reactor, description, self.accepted, tls, inherited=inherited)
        with self.assertRaises(OSError):
            os.fstat(descriptor)
        await connect(reactor, "127.0.0.1", number, self.dialed, contexts(None))
        assert asked == ["client"]

    def test_systemd_passed_nothing(self) -> None:
        """A name that systemd did not pass is refused with an error that names it."""
        with self.assertRaises(CannotListenError) as caught:
            listen(reactor, ListenDescription("systemd", 0, "no-such-name", "INET"), self.accepted)
        assert "no-such-name" in str(caught.exception)

    def test_socket_does_not_listen(self) -> None:
        """A socket that only looks like one that listens is refused."""
        with socket.socket() as useless, self.assertRaises(CannotListenError):
            adopt(reactor, useless.fileno(), self.accepted)

    def test_no_tcp_socket(self) -> None:
        """A socket of another kind is refused."""
        with socket.socket(socket.AF_UNIX) as useless, self.assertRaises(CannotListenError):
            adopt(reactor, useless.fileno(), self.accepted)

    async def test_unwanted_connection(self) -> None:
        """A factory that wants no connection has it closed."""
        self.accepted.buildProtocol = lambda addr: None  # type: ignore[method-assign]
        client: Any = await connect(reactor, "127.0.0.1", self.listen(), self.dialed)
        await client.lost

    async def test_certificate_is_looked_up_each_time(self) -> None:
        """A certificate that is replaced is shown to the next connection."""
        shown = [contexts("before"), contexts("after")]

        class Source:
            def getContext(self) -> SSL.Context:
                return shown.pop(0).getContext()

        number = self.listen(Source())
        names = []
        for _ in range(2):
            client: Any = await connect(reactor, "127.0.0.1", number, self.dialed, contexts(None))
            names.append(client.shown_to_it())
        assert names == ["CN=before", "CN=after"]

    async def test_no_certificate_to_show(self) -> None:
        """When there is no context the connection is closed, the log says why, and the port goes on."""

        class Source:
            def getContext(self) -> SSL.Context:
                raise LookupError("no certificate yet")

        number = self.listen(Source())
        for _ in range(2):
            with self.assertRaises(TLSFailed):
                await connect(reactor, "127.0.0.1", number, self.dialed, contexts(None))
        assert len(self.flushLoggedErrors(LookupError)) == 2


class ConnectTests(LinkTestCase):
    """A connection is made, or not."""

    async def test_plain(self) -> None:
        """Without TLS the connection is ready as it is."""
        server, client = await self.link()
        assert not client.transport.secure
        assert client.transport.getTcpNoDelay() and server.transport.getTcpNoDelay()
        assert client.transport.getHost() == server.transport.getPeer()
        assert client.transport.getPeer() == server.transport.getHost()
        assert client.transport.getPeerCertificate() is None
        assert isinstance(client.transport.getHandle(), socket.socket)

    async def test_tls(self) -> None:
        """With TLS it is ready after the handshake, and tells what was agreed."""
        alpn = [b"http/1.1"]
        seen: list[bool] = []
        self.dialed.on_made = lambda end: seen.append(end.transport.secure)
        server, client = await self.link(
            contexts("server", alpn=alpn, verify=lambda *args: True),
            contexts("client", alpn=[b"h2", b"http/1.1"], verify=lambda *args: True),
        )
        assert seen == [False]
        for end, other in ((server, "CN=client"), (client, "CN=server")):
            assert end.handshakes == 1
            assert end.transport.secure and end.transport.TLS
            assert end.transport.negotiatedProtocol == b"http/1.1"
            assert INegotiated.providedBy(end.transport) and ITLSTransport.providedBy(end.transport)
            assert end.shown_to_it() == other
        bindings = {
            end.transport.getHandle().export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
            for end in (server, client)
        }
        assert len(bindings) == 1

    async def test_first_bytes_come_after_the_news(self) -> None:
        """Who waits for the connection hears of it before the protocol gets its first byte."""
        self.accepted.on_made = lambda end: end.transport.write(b"welcome")
        number = self.listen(contexts("server"))
        client: Any = await connect(reactor, "127.0.0.1", number, self.dialed, contexts(None))
        assert client.received == b""
        await self.until(lambda: bytes(client.received) == b"welcome")

    async def test_by_name(self) -> None:
        """A host may be given by name, which is then asked for in the handshake."""
        asked: list[bytes | None] = []
        tls = contexts("server")
        tls.getContext().set_tlsext_servername_callback(lambda link: asked.append(link.get_servername()))
        await connect(reactor, "localhost", self.listen(tls), self.dialed, contexts(None))
        assert asked == [b"localhost"]

    async def test_name_of_the_source_goes_first(self) -> None:
        """A context source that knows the server's name has it asked for."""
        asked: list[bytes | None] = []
        tls = contexts("server")
        tls.getContext().set_tlsext_servername_callback(lambda link: asked.append(link.get_servername()))
        client = contexts(None)

        class Source:
            server_name = b"0123abcd"

            def getContext(self) -> SSL.Context:
                return client.getContext()

        await connect(reactor, "127.0.0.1", self.listen(tls), self.dialed, Source())
        assert asked == [b"0123abcd"]

    async def test_unknown_name(self) -> None:
        """A name that nobody knows is a failed lookup."""
        with self.assertRaises(DNSLookupError):
            await connect(reactor, "no-such-host.invalid", 1, self.dialed)

    async def test_refused(self) -> None:
        """Where nobody listens the connection is refused."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            number = closed.getsockname()[1]
        with self.assertRaises(ConnectionRefusedError):
            await connect(reactor, "127.0.0.1", number, self.dialed, contexts(None))
        assert self.dialed.made == []

    async def test_next_address(self) -> None:
        """A name with several addresses is reached at the first that answers."""
        client: Any = await connect(_machine("127.0.0.2", "127.0.0.1"), "farm.example", self.listen(), self.dialed)
        assert client.transport.getPeer().host == "127.0.0.1"

    async def test_silent_address(self) -> None:
        """An address that swallows everything leaves time for the next one."""
        number = self.listen()
        self.swallow("127.0.0.2", number)
        machine = _machine("127.0.0.2", "127.0.0.1")
        begin = machine.seconds()
        client: Any = await connect(machine, "farm.example", number, self.dialed, timeout=0.2)
        assert machine.seconds() - begin < 5
        assert client.transport.getPeer().host == "127.0.0.1"

    async def test_no_protocol(self) -> None:
        """A factory that makes no protocol has the connection dropped."""
        self.dialed.buildProtocol = lambda addr: None  # type: ignore[method-assign]
        with self.assertRaises(NoProtocol):
            await connect(reactor, "127.0.0.1", self.listen(), self.dialed)

    async def test_nobody_answers(self) -> None:
        """An attempt that nobody answers ends after the given time."""
        number = self.swallow("127.0.0.1", 0)
        with self.assertRaises(ConnectTimedOut):
            await connect(reactor, "127.0.0.1", number, self.dialed, timeout=0.1)

    def swallow(self, host: str, number: int) -> int:
        """Open a port whose queue is full, so that the kernel answers nobody; returns its number."""
        full = socket.socket()
        self.addCleanup(full.close)
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind((host, number))
        full.listen(0)
        for _ in range(3):
            one = socket.socket()
            self.addCleanup(one.close)
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        return int(full.getsockname()[1])

    async def test_cancelled_at_once(self) -> None:
        """An attempt may be given up before it has begun."""
        made = connect(reactor, "127.0.0.1", self.listen(), self.dialed)
        made.cancel()
        with self.assertRaises(CancelledError):
            await made
        assert self.dialed.made == []

    async def test_cancelled_in_the_handshake(self) -> None:
        """An attempt may be given up while the other side is silent; the connection is closed then."""
        made = connect(reactor, "127.0.0.1", self.listen(), self.dialed, contexts(None))
        await self.until(lambda: bool(self.dialed.made))
        made.cancel()
        with self.assertRaises(CancelledError):
            await made
        await self.dialed.made[0].lost


class HandshakeTests(LinkTestCase):
    """The handshake goes wrong."""

    async def raw(self, number: int) -> socket.socket:
        """A client that knows nothing of TLS."""
        made = socket.create_connection(("127.0.0.1", number))
        made.setblocking(False)
        self.addCleanup(made.close)
        await self.until(lambda: bool(self.accepted.made))
        return made

    async def test_silent_client(self) -> None:
        """A client that says nothing is dropped after the handshake's time."""
        await self.raw(self.listen(contexts("server"), handshake_timeout=0.05))
        (server,) = self.accepted.made
        await server.lost
        assert isinstance(server.reason, HandshakeTimedOut)
        assert "0.05 seconds" in str(server.reason)

    async def test_silent_server(self) -> None:
        """A server that says nothing is given up after the connection's time."""
        with self.assertRaises(HandshakeTimedOut):
            await connect(reactor, "127.0.0.1", self.listen(), self.dialed, contexts(None), timeout=0.05)

    async def test_garbage(self) -> None:
        """Whoever does not speak TLS is dropped, and the protocol never sees his bytes."""
        client = await self.raw(self.listen(contexts("server")))
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        (server,) = self.accepted.made
        await server.lost
        assert isinstance(server.reason, TLSFailed)
        assert "http request" in str(server.reason)
        assert server.reads == []

    async def test_client_leaves(self) -> None:
        """A client that leaves in the middle is a failed handshake."""
        client = await self.raw(self.listen(contexts("server")))
        client.close()
        (server,) = self.accepted.made
        await server.lost
        assert isinstance(server.reason, TLSFailed)

    async def test_no_version_in_common(self) -> None:
        """Two sides without a common version both learn that TLS failed."""
        number = self.listen(contexts("server", version=SSL.TLS1_3_VERSION))
        with self.assertRaises(TLSFailed) as caught:
            await connect(reactor, "127.0.0.1", number, self.dialed, contexts(None, version=SSL.TLS1_2_VERSION))
        assert "protocol version" in str(caught.exception)
        await self.accepted.made[0].lost

    async def test_certificate_is_refused(self) -> None:
        """What the check of the certificate raises is what the attempt fails with."""

        class Stranger(Exception):
            pass

        def verify(*args: object) -> bool:
            raise Stranger("not one of us")

        number = self.listen(contexts("server"))
        with self.assertRaises(Stranger):
            await connect(reactor, "127.0.0.1", number, self.dialed, contexts(None, verify=verify))
        await self.accepted.made[0].lost

    async def test_closed_before_it_ends(self) -> None:
        """A connection that is not wanted any more does not wait for the handshake."""
        self.accepted.on_made = lambda end: end.transport.loseConnection()
        client = await self.raw(self.listen(contexts("server")))
        await self.accepted.made[0].lost
        await self.until(lambda: _is_closed(client))

    async def test_written_before_it_ends(self) -> None:
        """What is written before the handshake ends arrives, also when the connection is closed at once."""

        def made(end: End) -> None:
            end.transport.write(b"goodbye")
            end.transport.loseConnection()

        self.accepted.on_made = made
        client: Any = await connect(reactor, "127.0.0.1", self.listen(contexts("server")), self.dialed, contexts(None))
        await client.lost
        assert client.received == b"goodbye"

    async def test_paused_before_it_ends(self) -> None:
        """A protocol that wants no data yet still gets its handshake, and no data."""
        self.accepted.on_made = lambda end: end.transport.pauseProducing()
        server, client = await self.link(contexts("server"), contexts(None))
        client.transport.write(b"data")
        await self.until_still(lambda: len(server.received))
        assert server.received == b""
        server.transport.resumeProducing()
        await self.until(lambda: bytes(server.received) == b"data")


class CurlTests(LinkTestCase):
    """The most common client of the file port."""

    async def test_curl(self) -> None:
        """curl agrees on HTTP/1.1, although it would rather speak HTTP/2, and gets the whole answer."""
        curl = shutil.which("curl")
        if curl is None:
            self.skipTest("no curl here")

        def answer(end: End, data: bytes) -> None:
            body = b"%s %d" % (end.transport.negotiatedProtocol, len(data))
            end.transport.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            end.transport.write(body + bytes(1 << 20))
            end.transport.loseConnection()

        self.accepted.on_data = answer
        number = self.listen(contexts("server", version=SSL.TLS1_3_VERSION, alpn=[b"http/1.1"]))
        out: Deferred[tuple[bytes, bytes, int]] = getProcessOutputAndValue(
            curl, ["-sSk", f"https://127.0.0.1:{number}/"], env=dict(os.environ)
        )
        body, errors, status = await out
        assert (status, errors) == (0, b"")
        assert body.startswith(b"http/1.1 ")
        assert body.endswith(bytes(1 << 20))


def _machine(*hosts: str) -> Any:
    """The reactor, on a machine where every name has these addresses."""

    class Resolver:
        def resolveHostName(self, receiver: Any, name: str, *more: object) -> None:
            for host in hosts:
                receiver.addressResolved(IPv4Address("TCP", host, 0))
            receiver.resolutionComplete()

    class Machine:
        nameResolver = Resolver()

        def __getattr__(self, name: str) -> Any:
            return getattr(reactor, name)

    return Machine()


def _is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1 << 16) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False


class SilenceTests(SynchronousTestCase):
    """Connections whose other machine is gone without a word."""

    def test_the_kernel_is_asked(self) -> None:
        """A connection is probed when it is at rest, and does not wait a quarter of an hour for what it sent."""
        with socket.socket() as sock:

            class Transport:
                socket = sock

            end_when_silent(Transport(), 10.0)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle, interval, probes = (
                sock.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * probes <= 12
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000

    def test_patience_with_who_takes_nothing(self) -> None:
        """A client's machine that is gone is noticed; one that is there and takes nothing is left alone."""
        with socket.socket() as sock:

            class Transport:
                socket = sock

            end_when_gone(Transport())
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 300
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0

    def test_what_is_no_socket(self) -> None:
        """A transport of a test, or any other, is left as it is."""
        end_when_silent(object())
