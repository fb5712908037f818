"""Tests for `chunkfarm.wire.stream`: what is written arrives, and how a connection ends."""

from __future__ import annotations

import hashlib
import itertools
import socket
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer, IPushProducer
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer

from chunkfarm.wire import stream
from chunkfarm.wire.pump import PumpStopped, pump
from chunkfarm.wire.stream import HIGH_WATER, WRITE_TURN
from chunkfarm.wire.tls import PeerEnded
from chunkfarm.wire.transport import TLSFailed, connect
from chunkfarm.wire.turnstile import SENT_IN_TURN
from tests.wire.certificates import Contexts, contexts
from tests.wire.links import End, LinkTestCase

MIB = 1 << 20


class Repeated:
    """A source that gives the same piece `count` times, without memory of its own."""

    def __init__(self, piece: bytes, count: int) -> None:
        self.piece = memoryview(piece)
        self.count = count
        self.given = 0
        self.closed = False

    def next(self) -> Deferred[bytes | memoryview | None]:
        if self.given == self.count:
            return succeed(None)
        self.given += 1
        return succeed(self.piece)

    def close(self) -> None:
        self.closed = True


@implementer(IPullProducer)
class Puller:
    """Writes one piece each time it is asked."""

    def __init__(self, transport: Any, count: int) -> None:
        self.transport = transport
        self.left = count
        self.stopped = False

    def resumeProducing(self) -> None:
        if not self.left:
            self.transport.unregisterProducer()
            self.transport.loseConnection()
            return
        self.left -= 1
        self.transport.write(b"piece")

    def stopProducing(self) -> None:
        self.stopped = True


@implementer(IPushProducer)
class Writer:
    """Writes what it has to say whether it is paused or not, as the client port does."""

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...


def echo(end: End, data: bytes) -> None:
    end.transport.write(data)


class BytesTests(LinkTestCase):
    """Bytes go both ways, over each kind of connection."""

    async def there_and_back(self, server_tls: Contexts | None, client_tls: Contexts | None) -> None:
        self.accepted.on_data = echo
        server, client = await self.link(server_tls, client_tls)
        data = b"".join(hashlib.sha256(b"%d" % number).digest() * 2048 for number in range(320))
        assert len(data) == 20 * MIB
        client.transport.write(memoryview(data)[: 10 * MIB])
        client.transport.write(data[10 * MIB : 10 * MIB + 5])
        client.transport.writeSequence([data[10 * MIB + 5 : 11 * MIB], memoryview(data)[11 * MIB :]])
        await self.until(lambda: len(client.received) == len(data))
        assert bytes(client.received) == data
        assert client.transport.taken == len(data)
        assert client.transport.queued == 0
        client.transport.loseConnection()
        await server.lost
        await client.lost
        assert isinstance(server.reason, ConnectionDone)
        assert isinstance(client.reason, ConnectionDone)

    async def test_plain(self) -> None:
        """20 MiB there and back in the clear."""
        await self.there_and_back(None, None)

    async def test_small_and_plain(self) -> None:
        """A line in the clear is the kernel's when `write` returns; more than that keeps its order behind it."""
        server, client = await self.link(None, None)
        client.transport.write(b"line\n")
        assert (client.transport.taken, client.transport.queued) == (5, 0)
        client.transport.write(b"x" * MIB)
        client.transport.write(b"last\n")
        assert client.transport.queued == MIB + 5
        await self.until(lambda: len(server.received) == MIB + 10)
        assert server.received == b"line\n" + b"x" * MIB + b"last\n"
        client.transport.loseConnection()
        await server.lost
        await client.lost

    async def test_small_and_plain_without_room(self) -> None:
        """What the kernel does not take of many small writes goes out later, in order."""
        server, client = await self.link(None, None)
        server.transport.pauseProducing()
        lines = [b"%0999d\n" % number for number in range(20_000)]
        for line in lines:
            client.transport.write(line)
        assert 0 < client.transport.queued < len(lines) * 1000
        server.transport.resumeProducing()
        await self.until(lambda: len(server.received) == len(lines) * 1000)
        assert server.received == b"".join(lines)
        client.transport.loseConnection()
        await server.lost
        await client.lost

    async def test_tls_1_3(self) -> None:
        """20 MiB there and back over TLS 1.3."""
        await self.there_and_back(contexts("server"), contexts(None))

    async def test_tls_1_2(self) -> None:
        """20 MiB there and back over TLS 1.2."""
        version = SSL.TLS1_2_VERSION
        await self.there_and_back(contexts("server", version=version), contexts(None, version=version))

    async def test_partial_writes(self) -> None:
        """A context that lets OpenSSL write in parts works as well."""
        await self.there_and_back(contexts("server", tuned=False), contexts(None, tuned=False))

    async def test_bytes_that_wait_in_openssl(self) -> None:
        """Decrypted bytes that no readiness of the socket announces are handed over all the same."""
        self.patch(stream, "RECORD", 1000)
        self.patch(stream, "READ_TURN", 2000)
        server, client = await self.link(contexts("server"), contexts(None))
        client.transport.write(bytes(16_000))
        await self.until(lambda: len(server.received) == 16_000)
        assert max(map(len, server.reads)) == 2000

    async def test_they_wait_until_reading_goes_on(self) -> None:
        """The same when the protocol stopped reading in between."""
        self.patch(stream, "RECORD", 1000)
        self.patch(stream, "READ_TURN", 2000)
        self.accepted.on_data = lambda end, data: end.transport.pauseProducing()
        server, client = await self.link(contexts("server"), contexts(None))
        client.transport.write(bytes(16_000))
        for part in range(1, 9):
            await self.until_still(lambda: len(server.received), 5)
            assert len(server.received) == part * 2000
            server.transport.resumeProducing()

    async def test_head_and_body_leave_together(self) -> None:
        """What is written piece by piece in one go arrives as one."""
        server, client = await self.link(contexts("server"), contexts(None))
        client.transport.write(b"head ")
        client.transport.write(b"body")
        await self.until(lambda: bool(server.received))
        assert server.reads == [b"head body"]

    async def test_a_turn_is_bounded(self) -> None:
        """However much is written, one turn sends only so much of it."""
        server, client = await self.link()
        seen: list[int] = []
        client.transport.write(bytes(16 * MIB))

        def look() -> None:
            seen.append(client.transport.taken)
            if client.transport.queued:
                reactor.callLater(0, look)

        look()
        await self.until(lambda: len(server.received) == 16 * MIB)
        assert max(after - before for before, after in itertools.pairwise(seen)) <= 3 * WRITE_TURN

    async def test_a_turn_of_many_is_bounded(self) -> None:
        """Many who are sent much at once go one after the other: a turn is not longer for it."""
        number, count = self.listen(), 30
        clients: list[Any] = [await connect(reactor, "127.0.0.1", number, self.dialed) for _ in range(count)]
        await self.until(lambda: len(self.accepted.made) == count)
        ends = self.accepted.made
        for end in ends:
            end.transport.write(bytes(2 * MIB))
        seen: list[int] = []

        def look() -> None:
            seen.append(sum(end.transport.taken for end in ends))
            if any(end.transport.queued for end in ends):
                reactor.callLater(0, look)

        look()
        await self.until(lambda: all(len(client.received) == 2 * MIB for client in clients))
        # The reactor may call the ports' turn before or after this one's look.
        most = 2 * SENT_IN_TURN * WRITE_TURN
        assert max(after - before for before, after in itertools.pairwise(seen)) <= most

    async def test_small_answers_do_not_wait(self) -> None:
        """Small answers leave when they are ready, however many; also where whoever writes them could be paused."""
        number, count = self.listen(), 30
        clients: list[Any] = [await connect(reactor, "127.0.0.1", number, self.dialed) for _ in range(count)]
        await self.until(lambda: len(self.accepted.made) == count)
        before = [end.transport.taken for end in self.accepted.made]
        for end in self.accepted.made:
            end.transport.registerProducer(Writer(), True)
            end.transport.writeSequence([b"an ", b"answer"])
        await deferLater(reactor, 0, lambda: None)
        assert [end.transport.taken for end in self.accepted.made] == [taken + 9 for taken in before]
        for end in self.accepted.made:
            end.transport.unregisterProducer()
        await self.until(lambda: all(client.received == b"an answer" for client in clients))

    async def test_lost_in_line(self) -> None:
        """Whoever goes while others are sent much is passed over, and the others get all of theirs."""
        number, count = self.listen(), 12
        clients: list[Any] = [await connect(reactor, "127.0.0.1", number, self.dialed) for _ in range(count)]
        await self.until(lambda: len(self.accepted.made) == count)
        for end in self.accepted.made:
            end.transport.write(bytes(2 * MIB))
        for client in clients[::2]:
            client.transport.abortConnection()
        for end in self.accepted.made[1::4]:
            end.transport.loseConnection()
        await self.until(lambda: all(len(client.received) == 2 * MIB for client in clients[1::2]))
        await self.until(lambda: all(client.lost.called for client in clients[1::4]))

    async def test_fan_out(self) -> None:
        """One line to many connections in one go reaches all of them."""
        number = self.listen()
        clients: list[Any] = [await connect(reactor, "127.0.0.1", number, self.dialed) for _ in range(20)]
        await self.until(lambda: len(self.accepted.made) == 20)
        for end in self.accepted.made:
            end.transport.write(b"news")
        await self.until(lambda: all(bytes(client.received) == b"news" for client in clients))

    async def test_a_protocol_that_fails(self) -> None:
        """A protocol that raises loses its connection, and the log has why."""

        def fail(end: End, data: bytes) -> None:
            raise ArithmeticError("a fault of ours")

        self.accepted.on_data = fail
        server, client = await self.link(contexts("server"), contexts(None))
        client.transport.write(b"data")
        await server.lost
        assert isinstance(server.reason, ArithmeticError)
        assert len(self.flushLoggedErrors(ArithmeticError)) == 1


class PressureTests(LinkTestCase):
    """The other side reads more slowly than we could write."""

    async def slow_reader(self, server_tls: Contexts | None, client_tls: Contexts | None) -> None:
        server, client = await self.link(server_tls, client_tls)
        client.transport.pauseProducing()
        source = Repeated(bytes(256 * 1024), 256)
        done = pump(source, server.transport)
        await self.until_still(lambda: source.given)
        assert source.given < 256
        assert server.transport.producerPaused
        assert server.transport.queued <= 2 * HIGH_WATER
        client.transport.resumeProducing()
        assert await done == 64 * MIB
        await self.until(lambda: len(client.received) == 64 * MIB)
        assert source.closed

    async def test_slow_reader(self) -> None:
        """The source of a large answer waits, and little is kept in memory."""
        await self.slow_reader(None, None)

    async def test_slow_reader_over_tls(self) -> None:
        """The same over TLS."""
        await self.slow_reader(contexts("server"), contexts(None))

    async def test_reader_leaves(self) -> None:
        """A reader that leaves in the middle stops the source."""
        server, client = await self.link(contexts("server"), contexts(None))
        client.transport.pauseProducing()
        source = Repeated(bytes(256 * 1024), 256)
        done = pump(source, server.transport)
        await self.until_still(lambda: source.given)
        client.transport.abortConnection()
        with self.assertRaises(PumpStopped):
            await done
        assert source.closed
        transport = server.transport
        await self.until(lambda: transport.producer is None)

    async def test_pull_producer(self) -> None:
        """A producer that is asked for each piece finishes before the connection is closed."""
        server, client = await self.link(contexts("server"), contexts(None))
        server.transport.registerProducer(Puller(server.transport, 1000), False)
        await client.lost
        assert client.received == b"piece" * 1000
        assert isinstance(client.reason, ConnectionDone)

    async def test_second_producer(self) -> None:
        """Two producers at once are a mistake."""
        server, _ = await self.link()
        server.transport.registerProducer(object(), True)
        with self.assertRaises(RuntimeError):
            server.transport.registerProducer(object(), True)
        server.transport.unregisterProducer()

    async def test_producer_for_a_lost_connection(self) -> None:
        """A producer that comes too late is stopped."""
        server, _ = await self.link()
        transport = server.transport
        transport.abortConnection()
        await server.lost
        late = Puller(transport, 1)
        transport.registerProducer(late, True)
        assert late.stopped

    async def test_close_waits_for_the_producer(self) -> None:
        """A connection that is to be closed takes all that its producer still has."""
        server, client = await self.link(contexts("server"), contexts(None))
        done = pump(Repeated(bytes(256 * 1024), 64), server.transport)
        server.transport.loseConnection()
        assert await done == 16 * MIB
        await client.lost
        assert len(client.received) == 16 * MIB


class StartTLSTests(LinkTestCase):
    """A connection begins in the clear and goes on encrypted."""

    async def start(self, *, normal: bool) -> tuple[End, End]:
        """Ask for TLS in the clear, agree in the clear, start it. With `normal` false the roles are changed."""
        ours, theirs = (contexts("server"), contexts(None)) if normal else (contexts(None), contexts("client"))

        def asked(end: End, data: bytes) -> None:
            if data == b"STARTTLS\r\n":
                end.transport.write(b"OK\r\n")
                end.transport.startTLS(ours, normal)
                end.transport.write(b"secret of the server")

        def agreed(end: End, data: bytes) -> None:
            if data == b"OK\r\n":
                end.transport.startTLS(theirs, normal)
                end.transport.write(b"secret of the client")

        self.accepted.on_data, self.dialed.on_data = asked, agreed
        server, client = await self.link()
        client.transport.write(b"STARTTLS\r\n")
        await self.until(lambda: b"client" in server.received and b"server" in client.received)
        assert server.received == b"STARTTLS\r\nsecret of the client"
        assert client.received == b"OK\r\nsecret of the server"
        return server, client

    async def test_start(self) -> None:
        """What was written before is in the clear, what comes after is not."""
        server, client = await self.start(normal=True)
        assert (server.handshakes, client.handshakes) == (1, 1)
        assert client.shown_to_it() == "CN=server"

    async def test_other_way_round(self) -> None:
        """The accepting side may be the TLS client."""
        server, _ = await self.start(normal=False)
        assert server.shown_to_it() == "CN=client"

    async def test_twice(self) -> None:
        """TLS inside TLS is a mistake."""
        server, _ = await self.start(normal=True)
        with self.assertRaises(RuntimeError):
            server.transport.startTLS(contexts("server"))

    async def test_bytes_behind_the_request(self) -> None:
        """What comes in one read with the request is handed over in the clear with it, and never as decrypted."""
        before: list[bool] = []

        def asked(end: End, data: bytes) -> None:
            before.append(end.transport.secure)
            if data.startswith(b"STARTTLS"):
                end.transport.write(b"OK\r\n")
                end.transport.startTLS(contexts("server"))

        self.accepted.on_data = asked
        self.dialed.on_data = lambda end, data: end.transport.startTLS(contexts(None))
        server, client = await self.link()
        client.transport.write(b"STARTTLS\r\nDELETE everything\r\n")
        await self.until(lambda: client.handshakes == 1)
        client.transport.write(b"hello")
        await self.until(lambda: b"hello" in server.received)
        assert server.reads == [b"STARTTLS\r\nDELETE everything\r\n", b"hello"]
        assert before == [False, True]

    async def test_bytes_slipped_in_later(self) -> None:
        """Bytes in the clear that arrive after TLS was started break the handshake and nothing else."""

        def asked(end: End, data: bytes) -> None:
            end.transport.startTLS(contexts("server"))

        self.accepted.on_data = asked
        server, client = await self.link()
        client.transport.write(b"STARTTLS\r\n")
        await self.until(lambda: bool(server.received))
        client.transport.write(b"DELETE everything\r\n")
        await server.lost
        assert isinstance(server.reason, TLSFailed)
        assert server.received == b"STARTTLS\r\n"

    async def test_much_is_queued_before(self) -> None:
        """TLS waits until everything that was written before it has left in the clear."""
        server, client = await self.link()
        client.transport.pauseProducing()
        server.transport.write(bytes(20 * MIB))
        server.transport.startTLS(contexts("server"))
        server.transport.write(b"secret")
        await self.until_still(lambda: server.transport.taken)
        assert server.transport.queued > len(b"secret")

        def count(end: End, data: bytes) -> None:
            if len(end.received) == 20 * MIB:
                end.transport.startTLS(contexts(None))

        client.on_data = count
        client.transport.resumeProducing()
        await self.until(lambda: len(client.received) > 20 * MIB)
        assert client.received[20 * MIB :] == b"secret"

    async def test_closed_after_the_request(self) -> None:
        """A connection that is closed while TLS waits still sends what came before."""

        def asked(end: End, data: bytes) -> None:
            end.transport.write(b"OK\r\n")
            end.transport.startTLS(contexts("server"))
            end.transport.loseConnection()

        self.accepted.on_data = asked
        server, client = await self.link()
        client.transport.write(b"STARTTLS\r\n")
        await self.until(lambda: bytes(client.received) == b"OK\r\n")
        client.transport.abortConnection()
        await server.lost


class WantTests(LinkTestCase):
    """OpenSSL must read in order to write, or write in order to read, as when keys are changed."""

    async def wrapped(self) -> tuple[End, End, Contrary]:
        server, client = await self.link(contexts("server"), contexts(None))
        contrary = Contrary(client.transport._tls)
        client.transport._tls = contrary
        return server, client, contrary

    async def test_write_wants_read(self) -> None:
        """A write that waits for the peer goes on, with the same bytes, when the peer has spoken."""
        server, client, contrary = await self.wrapped()
        contrary.sends = [SSL.WantReadError()]
        client.transport.write(b"first")
        await self.until(lambda: len(contrary.sent) == 1)
        client.transport.write(b" second")
        await self.until_still(lambda: len(contrary.sent), 5)
        assert server.received == b""
        server.transport.write(b"go on")
        await self.until(lambda: bytes(server.received) == b"first second")
        assert contrary.sent[0] is contrary.sent[1]
        assert client.received == b"go on"

    async def test_write_wants_read_of_a_paused_protocol(self) -> None:
        """The same for a protocol that wants no data: it gets none."""
        server, client, contrary = await self.wrapped()
        contrary.sends = [SSL.WantReadError()]
        client.transport.pauseProducing()
        client.transport.write(b"first")
        await self.until(lambda: len(contrary.sent) == 1)
        server.transport.write(b"go on")
        await self.until(lambda: bytes(server.received) == b"first")
        assert client.received == b""

    async def test_write_wants_write(self) -> None:
        """A write that the socket does not take is repeated with the same bytes."""
        server, client, contrary = await self.wrapped()
        contrary.sends = [SSL.WantWriteError(), SSL.WantWriteError()]
        client.transport.write(b"first")
        await self.until(lambda: bytes(server.received) == b"first")
        assert contrary.sent[0] is contrary.sent[1] is contrary.sent[2]

    async def test_read_wants_write(self) -> None:
        """A read that must answer first goes on when the socket takes the answer, and not only on more data."""
        server, client, contrary = await self.wrapped()
        contrary.keeps = True
        server.transport.write(b"data")
        await self.until(lambda: bytes(client.received) == b"data")

    async def test_goodbye_wants_write(self) -> None:
        """The closing alert waits until the socket takes it."""
        server, client, contrary = await self.wrapped()
        contrary.shutdowns = [SSL.WantWriteError()]
        client.transport.loseConnection()
        await server.lost
        await client.lost
        assert isinstance(server.reason, ConnectionDone)
        assert isinstance(client.reason, ConnectionDone)

    async def test_broken_record(self) -> None:
        """A record that cannot be decrypted ends the connection with the reason."""
        server, client, contrary = await self.wrapped()
        contrary.recvs = [SSL.Error([("SSL routines", "", "decryption failed or bad record mac")])]
        server.transport.write(b"data")
        await client.lost
        assert isinstance(client.reason, TLSFailed)
        assert "bad record mac" in str(client.reason)


class Contrary:
    """An `SSL.Connection` that raises what it is told to before it does its work."""

    def __init__(self, real: SSL.Connection) -> None:
        self._real = real
        self.sends: list[Exception] = []
        self.recvs: list[Exception] = []
        self.shutdowns: list[Exception] = []
        self.sent: list[object] = []
        self.keeps = False
        self._kept: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def send(self, data: bytes | memoryview) -> int:
        self.sent.append(data)
        if self.sends:
            raise self.sends.pop(0)
        return self._real.send(data)

    def recv(self, size: int) -> bytes:
        if self.recvs:
            raise self.recvs.pop(0)
        if self.keeps:
            # The bytes have left the socket, so that it will not become readable for them again.
            self.keeps, self._kept = False, self._real.recv(size)
            raise SSL.WantWriteError
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        return self._real.recv(size)

    def shutdown(self) -> bool:
        if self.shutdowns:
            raise self.shutdowns.pop(0)
        return self._real.shutdown()


class EndTests(LinkTestCase):
    """A connection ends, one way or the other."""

    async def test_no_closing_alert(self) -> None:
        """The end of a TLS stream that the peer did not announce may be an attacker's: it is a loss."""
        server, client = await self.link(contexts("server"), contexts(None))
        client.transport.socket.shutdown(socket.SHUT_WR)
        await server.lost
        assert type(server.reason) is PeerEnded

    async def test_hung_up(self) -> None:
        """The same when the reactor finds out before OpenSSL does."""
        server, _ = await self.link(contexts("server"), contexts(None))
        server.transport.readConnectionLost(Failure(ConnectionDone()))
        await server.lost
        assert type(server.reason) is ConnectionLost

    async def test_reset(self) -> None:
        """A reset is a loss on the other side, and an abort on this."""
        server, client = await self.link(contexts("server"), contexts(None))
        client.transport.write(bytes(20 * MIB))
        await self.until(lambda: len(server.received) > 0)
        client.transport.abortConnection()
        client.transport.write(b"ignored")
        await server.lost
        await client.lost
        assert type(server.reason) is PeerEnded
        assert type(client.reason) is ConnectionAborted

    async def test_abort_in_the_middle_of_a_read(self) -> None:
        """A protocol may abort from `dataReceived`; what it wrote there is dropped."""

        def abort(end: End, data: bytes) -> None:
            end.transport.write(bytes(MIB))
            end.transport.abortConnection()

        self.accepted.on_data = abort
        server, client = await self.link(contexts("server"), contexts(None))
        client.transport.write(b"data")
        await server.lost
        await client.lost
        assert isinstance(server.reason, ConnectionAborted)
        assert client.received == b""

    async def test_write_after_the_end(self) -> None:
        """What is written to a lost connection is ignored, as is closing it again."""
        server, client = await self.link(contexts("server"), contexts(None))
        transport = client.transport
        transport.loseConnection()
        transport.write(b"too late")
        transport.writeSequence([b"too late"])
        transport.loseConnection()
        await client.lost
        await server.lost
        transport.write(b"too late")
        transport.loseConnection()
        transport.abortConnection()
        assert server.received == b""
        await self.until(lambda: transport.getHandle() is None)

    async def test_everything_is_sent_first(self) -> None:
        """A connection that is closed first sends what is queued."""
        server, client = await self.link(contexts("server"), contexts(None))
        server.transport.write(bytes(20 * MIB))
        server.transport.loseConnection()
        await client.lost
        assert len(client.received) == 20 * MIB
        assert isinstance(client.reason, ConnectionDone)
        await server.lost
        assert isinstance(server.reason, ConnectionDone)

    async def refused_upload(self, server_tls: Contexts | None, client_tls: Contexts | None) -> None:
        def refuse(end: End, data: bytes) -> None:
            end.transport.write(b"ERR full")
            end.transport.loseConnection()

        self.accepted.on_data = refuse
        _, client = await self.link(server_tls, client_tls)
        client.transport.write(bytes(20 * MIB))
        await client.lost
        assert client.received == b"ERR full"

    async def test_refused_upload(self) -> None:
        """Who is refused in the middle of a large upload gets the whole answer and no reset."""
        await self.refused_upload(None, None)

    async def test_refused_upload_over_tls(self) -> None:
        """The same over TLS."""
        await self.refused_upload(contexts("server"), contexts(None))

    async def test_peer_does_not_close(self) -> None:
        """A peer that keeps its half open does not hold the connection."""
        self.patch(stream, "LINGER", 0.05)
        number = self.listen()
        with socket.create_connection(("127.0.0.1", number)) as client:
            await self.until(lambda: bool(self.accepted.made))
            (server,) = self.accepted.made
            server.transport.write(b"bye")
            server.transport.loseConnection()
            await server.lost
            assert isinstance(server.reason, ConnectionDone)
            assert client.recv(10) == b"bye"

    async def test_peer_takes_nothing(self) -> None:
        """A peer that takes nothing of what is left is cut off."""
        self.patch(stream, "FLUSH_PATIENCE", 0.05)
        server, client = await self.link(contexts("server"), contexts(None))
        client.transport.pauseProducing()
        server.transport.write(bytes(64 * MIB))
        server.transport.loseConnection()
        await server.lost
        assert isinstance(server.reason, ConnectionAborted)

    async def test_half_close(self) -> None:
        """A client in the clear that closes only its half (`nc -N`) gets an answer from a protocol that allows it."""

        class Patient(End):
            def readConnectionLost(self) -> None:
                self.transport.write(b"answer to %s" % self.received)
                self.transport.loseConnection()

            def writeConnectionLost(self) -> None:
                raise NotImplementedError

        patient = Patient()
        directlyProvides(patient, IHalfCloseableProtocol)
        self.accepted.buildProtocol = lambda addr: patient  # type: ignore[method-assign]
        number = self.listen()
        with socket.create_connection(("127.0.0.1", number)) as client:
            client.sendall(b"HELLO")
            client.shutdown(socket.SHUT_WR)
            await patient.lost
            assert client.recv(100) == b"answer to HELLO"

    async def test_reply_before_the_end(self) -> None:
        """What is answered to the last data leaves, although the end came in the same read."""
        self.accepted.on_data = echo
        server, client = await self.link(contexts("server"), contexts(None))
        server.transport.pauseProducing()
        client.transport.write(b"question")
        client.transport.loseConnection()
        await self.until_still(lambda: client.transport._lingering, 5)
        replies: list[object] = []
        contrary = Contrary(server.transport._tls)
        contrary.sent = replies
        server.transport._tls = contrary
        server.transport.resumeProducing()
        await server.lost
        assert replies == [b"question"]
        assert isinstance(server.reason, ConnectionDone)
