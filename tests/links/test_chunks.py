"""Chunks to and from other servers: against the real file port, over wires in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, evolve, field
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from chunkfarm.chunks.patience import COPY_TIMEOUT
from chunkfarm.errors import Busy, Full, InvalidRequest, Mismatch, NotFound, Waiting
from chunkfarm.links.chunks import (
    GENTLE_PAUSE,
    GENTLE_PAUSE_MAX,
    GENTLE_PIECE,
    IDLE_LINKS_MAX,
    IDLE_SECONDS,
    LINKS_MAX,
    STALL_SECONDS,
    ChunkClient,
    ChunkLink,
    LostLink,
)
from chunkfarm.links.interface import DAMAGED, HAVE_DIGESTS_MAX, IChunkLinks
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import CHUNK_SIZE_MAX, digest_of
from chunkfarm.ports.files import FileFactory
from chunkfarm.wire.http1 import BadResponse
from tests.ports.fakes import NOW, OTHER_ID, MemoryBackend

DATA = bytes(range(256)) * 1000
DIGEST = digest_of(DATA)
ALPHA, BETA = "the certificate of alpha", "the certificate of beta"


class End(StringTransport):
    """One end of a wire. `certificate` is what the other end shows."""

    accepts_memoryview = True
    certificate: str | None = None
    aborted = False
    taken = 0

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []

    def write(self, data: Any) -> None:
        self.written.append(data)

    def getPeerCertificate(self) -> str | None:
        return self.certificate

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True


@define
class Wire:
    """A connection in memory: what was written at one end comes out of the other when it is pumped."""

    client: Any
    server: Any
    near: End
    far: End
    cut: bool = False

    def pump(self) -> bool:
        """Move what there is; whether anything moved."""
        if self.cut:
            return False
        moved = False
        for source, target in ((self.near, self.server), (self.far, self.client)):
            written, source.written = source.written, []
            for data in written:
                moved = True
                if target is not None:
                    target.dataReceived(bytes(data))
        if self.near.disconnecting or self.far.disconnecting:
            self.lose(ConnectionDone())
            moved = True
        return moved

    def lose(self, reason: Exception | None = None) -> None:
        """The connection breaks."""
        if not self.cut:
            self.cut = True
            failure = Failure(reason if reason is not None else ConnectionLost())
            self.client.connectionLost(failure)
            if self.server is not None:
                self.server.connectionLost(failure)


class Trust:
    """Certificates that prove what they say."""

    def client_factory(self, protocols: Any = (), server_id: str = "") -> tuple[Any, str]:
        return protocols, server_id

    def peer_of(self, certificate: str | None) -> str | None:
        return {BETA: OTHER_ID, "the certificate of gamma": "0c" * 16}.get(certificate or "")


@define
class Net:
    """A client on alpha, and the file port of beta. `silent` makes wires without anybody at the other end."""

    silent: bool = False
    clock: Clock = field(factory=Clock)
    backend: MemoryBackend = field(factory=MemoryBackend)
    wires: list[Wire] = field(factory=list)
    dialed: list[tuple[Any, ...]] = field(factory=list)
    certificate: str | None = BETA
    answer: Callable[[Any], Deferred[Any]] = succeed

    def __attrs_post_init__(self) -> None:
        self.backend.peers[ALPHA] = "5e" * 16
        self.files = FileFactory(self.backend, self.clock, lambda: NOW)  # type: ignore[arg-type]
        self.client = ChunkClient(self.clock, Trust(), self.connect)
        self.beta = self.backend.rows[1]

    files: Any = field(init=False)
    client: ChunkClient = field(init=False)
    beta: Any = field(init=False)

    def connect(self, reactor: Any, host: str, port: int, factory: Any, tls: Any, timeout: float) -> Deferred[Any]:
        self.dialed.append((host, port, tls))
        near, far = End(), End()
        near.certificate, far.certificate = self.certificate, ALPHA
        client = factory.buildProtocol(None)
        server = None if self.silent else self.files.buildProtocol(IPv4Address("TCP", "10.0.0.1", 5000))
        client.makeConnection(near)
        if server is not None:
            server.makeConnection(far)
        self.wires.append(Wire(client, server, near, far))
        return self.answer(client)

    def pump(self) -> None:
        while sum(wire.pump() for wire in self.wires):
            pass

    @property
    def open(self) -> int:
        return sum(not wire.cut for wire in self.wires)


class ChunkClientTests(SynchronousTestCase):
    """`ChunkClient`."""

    def make(self, **options: Any) -> Net:
        return Net(**options)

    def result(self, net: Net, asked: Deferred[Any]) -> Any:
        net.pump()
        return self.successResultOf(asked)

    def error(self, net: Net, asked: Deferred[Any], kind: type[Exception]) -> str:
        net.pump()
        failure = self.failureResultOf(asked, kind)
        assert failure.type is kind or kind is LinkFailed
        return str(failure.value)

    def test_interface(self) -> None:
        """It is what the chunks' room asks for."""
        assert verifyObject(IChunkLinks, self.make().client)

    def test_put_and_get(self) -> None:
        """A chunk that was put is got, whole or in parts."""
        net = self.make()
        assert self.result(net, net.client.put(net.beta, DIGEST, DATA)) is None
        assert net.backend.store.chunks == {DIGEST: DATA}
        assert self.result(net, net.client.get(net.beta, DIGEST)) == DATA
        assert self.result(net, net.client.get(net.beta, DIGEST, 10, 20)) == DATA[10:30]
        assert self.result(net, net.client.get(net.beta, DIGEST, 255_990)) == DATA[255_990:]
        assert self.result(net, net.client.get(net.beta, DIGEST, 0, 1)) == DATA[:1]
        assert self.result(net, net.client.get(net.beta, DIGEST, 5, 0)) == b""

    def test_have(self) -> None:
        """Which of these chunks the other server holds, and how long they are."""
        net = self.make()
        net.backend.store.chunks[DIGEST] = DATA
        digests = [bytes(32), DIGEST] * (HAVE_DIGESTS_MAX // 2)
        assert self.result(net, net.client.have(net.beta, digests)) == [0, len(DATA)] * (HAVE_DIGESTS_MAX // 2)
        assert self.result(net, net.client.have(net.beta, [])) == []

    def test_hold(self) -> None:
        """The same, and the other server keeps what it answers for."""
        net = self.make()
        net.backend.store.chunks[DIGEST] = DATA
        assert self.result(net, net.client.hold(net.beta, [bytes(32), DIGEST])) == [0, len(DATA)]
        assert net.backend.store.kept == [bytes(32), DIGEST]

    def test_keep(self) -> None:
        """Which of these chunks the other server keeps for good, by rows of a revision; or that its rows are older."""
        net = self.make()
        net.backend.store.chunks[DIGEST] = DATA
        assert self.result(net, net.client.keep(net.beta, [bytes(32), DIGEST], 7)) == [0, len(DATA)]
        assert "older" in self.error(net, net.client.keep(net.beta, [DIGEST], 8), Busy)

    def test_verify(self) -> None:
        """The same after the other server has read them, which may find one damaged."""
        net = self.make()
        net.backend.store.chunks |= {DIGEST: DATA, digest_of(b"rot"): b"rot"}
        net.backend.store.damaged.add(digest_of(b"rot"))
        digests = [bytes(32), DIGEST, digest_of(b"rot")]
        assert self.result(net, net.client.verify(net.beta, digests)) == [0, len(DATA), DAMAGED]
        assert self.result(net, net.client.have(net.beta, digests)) == [0, len(DATA), 0]

    def test_verified(self) -> None:
        """When the other server last read these chunks whole; an answer that no clock gives is none."""
        net = self.make()
        net.backend.store.times[DIGEST] = 1_800_000_000_123
        assert self.result(net, net.client.verified(net.beta, [bytes(32), DIGEST])) == [0, 1_800_000_000_123]
        for body in (b"", bytes(8), bytes(17), bytes(8) + b"\xff" * 8):
            net = self.make(silent=True)
            asked = net.client.verified(net.beta, [DIGEST, DIGEST])
            net.wires[0].client.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            self.error(net, asked, BadResponse)

    def test_look(self) -> None:
        """The other server's caretaker is told what to look at."""
        net = self.make()
        assert self.result(net, net.client.look(net.beta, [DIGEST, bytes(32)])) is None
        assert net.backend.caretaker.asked == [DIGEST, bytes(32)]

    def test_not_copied(self) -> None:
        """The bytes of a chunk go to the transport as they are, whatever kind of bytes they are."""
        for data in (DATA, bytearray(DATA), memoryview(DATA)):
            net = self.make()
            asked = net.client.put(net.beta, DIGEST, data)
            view = net.wires[0].near.written[1]
            assert isinstance(view, memoryview) and view.obj is (DATA if isinstance(data, memoryview) else data)
            self.result(net, asked)

    def test_address_and_name(self) -> None:
        """The file port is dialed, with the server id as the name of the certificate that is wanted."""
        net = self.make()
        self.result(net, net.client.have(net.beta, []))
        assert net.dialed == [("10.0.0.2", 4102, ((b"http/1.1",), OTHER_ID))]

    def test_errors(self) -> None:
        """What the other server refuses comes back as the same error, with its name."""
        net = self.make()
        assert "beta: there is no chunk" in self.error(net, net.client.get(net.beta, DIGEST), NotFound)
        self.error(net, net.client.put(net.beta, DIGEST, b"other"), Mismatch)
        net.backend.store.error = Full("the disk has reached its reserve")
        assert self.error(net, net.client.put(net.beta, DIGEST, DATA), Full) == "beta: the disk has reached its reserve"
        net.backend.store.error = None
        net.backend.store.chunks[DIGEST] = DATA
        net.backend.state.change("starting")
        self.error(net, net.client.get(net.beta, DIGEST), Waiting)
        net.backend.state.change("serving")
        assert net.open == 1

    def test_behind_the_end(self) -> None:
        """A range behind the end of the chunk is an error, not no bytes."""
        net = self.make()
        net.backend.store.chunks[DIGEST] = DATA
        net.pump()
        asked = net.client.get(net.beta, DIGEST, len(DATA), 5)
        net.pump()
        self.failureResultOf(asked, InvalidRequest)

    def test_kept(self) -> None:
        """One request after the other uses the same connection, several at once one each."""
        net = self.make()
        for _ in range(3):
            self.result(net, net.client.have(net.beta, [DIGEST]))
        assert len(net.dialed) == 1
        asked = [net.client.have(net.beta, [DIGEST]) for _ in range(3)]
        assert [self.result(net, one) for one in asked] == [[False]] * 3
        assert len(net.dialed) == 3

    def test_bounded(self) -> None:
        """To one server there are so many connections at a time; further requests wait, none is lost."""
        net = self.make()
        asked = [net.client.have(net.beta, [DIGEST]) for _ in range(3 * LINKS_MAX)]
        assert len(net.dialed) == LINKS_MAX
        for one in asked:
            assert self.result(net, one) == [False]
        assert net.open == IDLE_LINKS_MAX

    def test_waiting_is_cancelled(self) -> None:
        """A request that waits for a connection may be given up."""
        net = self.make()
        asked = [net.client.have(net.beta, [DIGEST]) for _ in range(LINKS_MAX + 2)]
        asked[-2].cancel()
        self.failureResultOf(asked.pop(-2), CancelledError)
        for one in asked:
            assert self.result(net, one) == [False]

    def test_idle(self) -> None:
        """A connection that is not used is closed before the other side does it, and nothing is left of it."""
        net = self.make()
        self.result(net, net.client.have(net.beta, [DIGEST]))
        net.clock.advance(IDLE_SECONDS - 1)
        net.pump()
        assert net.open == 1
        net.clock.advance(1)
        net.pump()
        assert net.open == 0 and not net.client._places and not net.clock.getDelayedCalls()

    def test_idle_lost(self) -> None:
        """A kept connection that the other side closes is forgotten."""
        net = self.make()
        self.result(net, net.client.have(net.beta, [DIGEST]))
        net.wires[0].lose()
        assert not net.client._places
        assert self.result(net, net.client.have(net.beta, [DIGEST])) == [0]

    def test_stale(self) -> None:
        """A request that finds its kept connections dead is sent once more, on a new one."""
        net = self.make()
        asked = [net.client.put(net.beta, DIGEST, DATA) for _ in range(2)]
        for one in asked:
            self.result(net, one)
        again = net.client.put(net.beta, DIGEST, DATA)
        for wire in list(net.wires):
            if wire.near.written:
                wire.lose()
        assert self.result(net, again) is None
        # The other one that was kept is not tried at all.
        assert len(net.dialed) == 3 and net.open == 1

    def test_lost_twice(self) -> None:
        """A server that closes again is not asked a third time."""
        net = self.make()
        self.result(net, net.client.have(net.beta, [DIGEST]))
        asked = net.client.have(net.beta, [DIGEST])
        net.wires[0].lose()
        net.wires[1].lose()
        self.error(net, asked, LostLink)
        assert len(net.dialed) == 2

    def test_lost_at_first(self) -> None:
        """A new connection that breaks is an error at once."""
        net = self.make(silent=True)
        asked = net.client.put(net.beta, DIGEST, DATA)
        net.wires[0].lose()
        self.error(net, asked, LostLink)
        assert len(net.dialed) == 1

    def test_refused(self) -> None:
        """A server that cannot be reached is an error, and others may try again at once."""
        net = self.make(answer=lambda client: fail(ConnectionRefusedError()))
        with pytest.raises(ConnectionRefusedError):
            self.failureResultOf(net.client.get(net.beta, DIGEST)).raiseException()
        net.answer = succeed
        assert self.result(net, net.client.have(net.beta, [])) == []

    def test_wrong_server(self) -> None:
        """Nothing is sent to whoever cannot prove to be the server that was meant."""
        for certificate in (None, "of another farm", "the certificate of gamma"):
            net = self.make(certificate=certificate)
            sentence = self.error(net, net.client.put(net.beta, DIGEST, DATA), LinkFailed)
            assert "not beta" in sentence and net.wires[0].near.aborted
            assert not net.backend.store.chunks and not net.wires[0].near.written

    def test_moved(self) -> None:
        """A server that has moved is looked for where it is now."""
        net = self.make()
        self.result(net, net.client.have(net.beta, []))
        self.result(net, net.client.have(evolve(net.beta, host="10.0.0.7"), []))
        assert [host for host, _, _ in net.dialed] == ["10.0.0.2", "10.0.0.7"]

    def test_silence(self) -> None:
        """A server from which nothing comes is given up; one from which bytes come is waited for."""
        net = self.make(silent=True)
        asked = net.client.get(net.beta, DIGEST)
        net.clock.advance(STALL_SECONDS - 1)
        net.pump()
        link: ChunkLink = net.wires[0].client
        link.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        for _ in range(100):
            net.clock.advance(STALL_SECONDS - 1)
            link.dataReceived(b"x")
        assert self.successResultOf(asked) == b"x" * 100
        asked = net.client.get(net.beta, DIGEST)
        net.clock.advance(STALL_SECONDS - 1)
        self.assertNoResult(asked)
        net.clock.advance(1)
        assert "no byte moved" in self.error(net, asked, LinkFailed)
        assert net.wires[0].near.aborted

    def test_slow_sending(self) -> None:
        """A chunk that leaves slowly is on its way."""
        net = self.make(silent=True)
        asked = net.client.put(net.beta, DIGEST, DATA)
        near: Any = net.wires[0].near
        near.taken = 0
        for _ in range(10):
            near.taken += 1
            net.clock.advance(STALL_SECONDS)
        self.assertNoResult(asked)

    def test_cancelled(self) -> None:
        """A request that is given up ends its connection, because its answer may still come."""
        net = self.make(silent=True)
        asked = net.client.get(net.beta, DIGEST)
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        assert net.wires[0].near.aborted
        net.pump()
        assert not net.client._places and not net.clock.getDelayedCalls()

    def test_cancelled_while_connecting(self) -> None:
        """A request may be given up before there is a connection."""
        connecting: Deferred[Any] = Deferred()
        net = self.make(answer=lambda client: connecting)
        asked = net.client.get(net.beta, DIGEST)
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        assert not net.client._places

    def test_close(self) -> None:
        """At the end everything under way fails, and nothing new begins."""
        net = self.make()
        asked = [net.client.have(net.beta, [DIGEST]) for _ in range(LINKS_MAX + 1)]
        net.client.close()
        net.pump()
        for one in asked:
            self.failureResultOf(one, LinkFailed)
        self.failureResultOf(net.client.have(net.beta, [DIGEST]), LinkFailed)
        assert net.open == 0 and not net.clock.getDelayedCalls()

    def test_close_while_connecting(self) -> None:
        """A connection that comes after the end is closed."""
        connecting: Deferred[Any] = Deferred()
        net = self.make(answer=lambda client: connecting)
        asked = net.client.get(net.beta, DIGEST)
        net.client.close()
        connecting.callback(net.wires[0].client)
        self.failureResultOf(asked, LinkFailed)
        assert net.wires[0].near.aborted

    def test_bad_answers(self) -> None:
        """An answer that makes no sense is an error and ends the connection; it is never taken for a chunk."""
        ok = b"HTTP/1.1 200 OK\r\nContent-Length: "
        for answer in (
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"nonsense\r\n\r\n",
            b"x" * 40_000,
            ok + b"%d\r\n\r\n" % (CHUNK_SIZE_MAX + 1),
            ok + b"3\r\n\r\nabcd",
            b"HTTP/1.1 500 Oops\r\nContent-Length: 1000000\r\n\r\n",
            b"HTTP/1.1 206 Partial\r\nContent-Length: 3\r\nContent-Range: bytes 0-2/9\r\n\r\nabc",
        ):
            net = self.make(silent=True)
            asked = net.client.get(net.beta, DIGEST)
            net.wires[0].client.dataReceived(answer)
            self.error(net, asked, BadResponse)
            assert net.wires[0].near.aborted or answer.startswith(b"HTTP/1.1 206"), answer

    def test_bad_ranges(self) -> None:
        """A range is only taken if it is the one that was asked for."""
        part = b"HTTP/1.1 206 Partial\r\nContent-Length: %d\r\nContent-Range: bytes %b/99\r\n\r\n%b"
        for answer in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            part % (3, b"6-8", b"abc"),
            part % (4, b"5-8", b"abcd"),
            b"HTTP/1.1 206 Partial\r\nContent-Length: 3\r\n\r\nabc",
        ):
            net = self.make(silent=True)
            asked = net.client.get(net.beta, DIGEST, 5, 3)
            net.wires[0].client.dataReceived(answer)
            self.error(net, asked, BadResponse)

    def test_bad_have(self) -> None:
        """An answer about other chunks, or with a length that no chunk has, is none."""
        for body in (bytes(4), bytes(7), bytes(12), bytes(4) + b"\x04\0\0\1"):
            net = self.make(silent=True)
            asked = net.client.have(net.beta, [DIGEST, DIGEST])
            net.wires[0].client.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            self.error(net, asked, BadResponse)

    def test_unknown_refusal(self) -> None:
        """A refusal without a sentence of ours says the status; a proxy in between speaks so."""
        net = self.make(silent=True)
        asked = net.client.get(net.beta, DIGEST)
        net.wires[0].client.dataReceived(b"HTTP/1.1 502 Bad\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
        assert self.error(net, asked, LinkFailed) == "beta answered with the status 502"
        assert net.open == 0

    def test_interim_answer(self) -> None:
        """An interim answer is passed over, and an answer may come in any pieces."""
        net = self.make(silent=True)
        asked = net.client.get(net.beta, DIGEST)
        answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
        for byte in answer:
            net.wires[0].client.dataReceived(bytes([byte]))
        assert self.successResultOf(asked) == b"abc"
        asked = net.client.get(net.beta, DIGEST)
        net.wires[0].client.dataReceived(answer)
        assert self.successResultOf(asked) == b"abc" and len(net.dialed) == 1

    def test_interim_answers_without_end(self) -> None:
        """Who announces an answer again and again gives none: the bytes that move are no progress."""
        net = self.make(silent=True)
        asked = net.client.get(net.beta, DIGEST)
        net.wires[0].client.dataReceived(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
        assert "interim" in self.error(net, asked, BadResponse)
        assert net.open == 0

    def test_unasked(self) -> None:
        """A connection on which something comes that nobody asked for is not used again."""
        net = self.make()
        self.result(net, net.client.have(net.beta, []))
        net.wires[0].client.dataReceived(b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n")
        assert net.wires[0].near.aborted
        self.result(net, net.client.have(net.beta, []))
        assert len(net.dialed) == 2


class GentleTests(SynchronousTestCase):
    """A chunk that nobody waits for leaves the processor to others."""

    DATA = bytes(4 * GENTLE_PIECE - 1)
    DIGEST = digest_of(DATA)

    def begin(self, net: Net) -> tuple[Deferred[None], Any]:
        """A chunk of four pieces on its way, and where it is written."""
        asked = net.client.put(net.beta, self.DIGEST, self.DATA, gently=True)
        return asked, net.wires[0].near

    def sent(self, near: Any) -> int:
        """Bytes of the body so far."""
        return sum(len(data) for data in near.written[1:])

    def make(self, silent: bool = True) -> Net:
        return Net(silent=silent)

    def test_pieces(self) -> None:
        """It goes piece after piece, with a pause after each, and is whole there."""
        net = self.make(silent=False)
        asked, near = self.begin(net)
        for number in range(1, 4):
            assert self.sent(near) == number * GENTLE_PIECE
            net.clock.advance(GENTLE_PAUSE)
        assert self.sent(near) == len(self.DATA)
        net.pump()
        self.successResultOf(asked)
        assert net.backend.store.chunks == {self.DIGEST: self.DATA}

    def test_others_wait_for_a_processor(self) -> None:
        """Pauses are longer where timers are late, up to a limit."""
        net = self.make()
        _, near = self.begin(net)
        net.clock.advance(GENTLE_PAUSE + 0.001)
        assert self.sent(near) == 2 * GENTLE_PIECE
        net.clock.advance(GENTLE_PAUSE + 0.003)
        assert self.sent(near) == 2 * GENTLE_PIECE
        net.clock.advance(0.002)
        assert self.sent(near) == 3 * GENTLE_PIECE
        net = self.make()
        _, near = self.begin(net)
        net.clock.advance(GENTLE_PAUSE + GENTLE_PAUSE_MAX / 2)
        net.clock.advance(GENTLE_PAUSE_MAX - 0.001)
        assert self.sent(near) == 2 * GENTLE_PIECE
        net.clock.advance(0.001)
        assert self.sent(near) == 3 * GENTLE_PIECE

    def test_always_late(self) -> None:
        """Where every timer is late it goes at the least rate all the same, and so within the time for a copy."""
        net = self.make()
        data = bytes(CHUNK_SIZE_MAX)
        asked = net.client.put(net.beta, digest_of(b""), data, gently=True)
        near, taken = net.wires[0].near, 0
        while self.sent(near) < len(data):
            near.taken = taken = taken + 1
            net.clock.advance(0.3)
        assert net.clock.seconds() < COPY_TIMEOUT / 2
        asked.cancel()
        self.failureResultOf(asked, CancelledError)

    def test_refused_early(self) -> None:
        """After an answer to a part of it the rest is not sent, and the connection is not used again."""
        net = self.make()
        asked, near = self.begin(net)
        net.wires[0].client.dataReceived(b"HTTP/1.1 507 x\r\nContent-Length: 4\r\n\r\nfull")
        self.failureResultOf(asked, LinkFailed)
        assert near.aborted
        before = self.sent(near)
        net.clock.advance(1.0)
        assert self.sent(near) == before

    def test_given_up(self) -> None:
        """Nothing follows when it is given up."""
        net = self.make()
        asked, near = self.begin(net)
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        assert near.aborted
        net.pump()
        assert not net.clock.getDelayedCalls()

    def test_lost_between_pieces(self) -> None:
        """A connection that is lost half-way ends it, and on a kept one it begins again as a whole."""
        net = self.make()
        asked, _ = self.begin(net)
        net.wires[0].lose()
        self.failureResultOf(asked, LostLink)
        assert not net.clock.getDelayedCalls()
        net = self.make(silent=False)
        self.successResultOf(self.pumped(net, net.client.have(net.beta, [])))
        asked, near = self.begin(net)
        net.clock.advance(GENTLE_PAUSE)
        net.wires[0].lose()
        for _ in range(4):
            net.clock.advance(GENTLE_PAUSE_MAX)
        assert self.sent(near) == 2 * GENTLE_PIECE
        self.successResultOf(self.pumped(net, asked))
        assert net.backend.store.chunks == {self.DIGEST: self.DATA} and len(net.wires) == 2

    def test_silence_between_pieces(self) -> None:
        """A server that takes nothing is given up, and nothing follows."""
        net = self.make()
        asked, _ = self.begin(net)
        net.clock.pump([GENTLE_PAUSE_MAX] * round(2.1 * STALL_SECONDS / GENTLE_PAUSE_MAX))
        self.failureResultOf(asked, LinkFailed)
        net.pump()
        assert not net.clock.getDelayedCalls()

    def pumped(self, net: Net, asked: Deferred[Any]) -> Deferred[Any]:
        net.pump()
        return asked

    def test_small(self) -> None:
        """What is one piece goes at once."""
        net = self.make(silent=False)
        asked = net.client.put(net.beta, DIGEST, DATA, gently=True)
        net.pump()
        self.successResultOf(asked)
