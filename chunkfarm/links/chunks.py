"""Chunks on other servers: the client of `/-/chunks/` on their file ports, over mutual TLS.

A connection carries one request at a time and is kept for the next one. It is used only after its
certificate has proved that the server at the other end is the one that was asked for: an address is no
more than a hint. What this client asks may be asked twice without harm, so a request that finds its kept
connection closed is sent again, once, on a new one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.errors import CODES
from chunkfarm.links.interface import (
    CHUNK_LENGTH,
    DAMAGED,
    HAVE_DIGESTS_MAX,
    KEEP_DIGESTS_MAX,
    VERIFIED_TIME,
    VERIFY_DIGESTS_MAX,
    IChunkLinks,
)
from chunkfarm.links.peers import CONNECT_TIMEOUT, LinkFailed
from chunkfarm.model import CHUNK_SIZE_MAX, KIB, Server
from chunkfarm.wire.http1 import HEAD_BYTES_MAX, HEAD_END, BadResponse, CountedBody, ResponseHead, parse_response

GENTLE_PIECE = 256 * KIB
"""Bytes of a chunk that is sent gently which go at once: one or two milliseconds of a processor at each end."""
GENTLE_PAUSE = 0.004
"""Seconds from one such piece to the next at least: 64 MiB a second, what `repair_rate` is by default."""
GENTLE_PAUSE_MAX = 0.032
"""At most: 8 MiB a second, so that copies come on also on a machine that is always busy."""
GENTLE_RATE_MIN = int(GENTLE_PIECE / GENTLE_PAUSE_MAX)
"""Bytes a second that go in any case: where timers are so late that pieces come more seldom they are larger. Else the
largest chunk might not be there within the time for a copy, and be given up again and again."""
GENTLE_FACTOR = 4
"""A timer that is late shows that others wait for a processor too: they have it for so many times that, before the next
piece."""
STALL_SECONDS = 20.0
"""Without a byte in either direction, after which (and before twice that time) a request is given up. A slow disk
may take some seconds for the fsync of a large chunk; whoever asks goes to another server long before."""
LINKS_MAX = 16
"""Connections to one server at a time; further requests wait. More would not make its disk or network faster."""
IDLE_LINKS_MAX = 8
"""Connections to one server that are kept for later."""
IDLE_SECONDS = 45.0
"""How long they are kept: less than the 60 s after which the other side closes them."""
TIME_MAX = 253_402_300_799_999
"""In ms since 1970: the last moment that can be shown as a date."""
INTERIM_MAX = 4
"""Answers that only announce another: a farm's servers give none that was not asked for."""
REFUSAL_BYTES_MAX = 64 * KIB
"""The body of an answer that is an error: one line of text."""

Buffer = bytes | bytearray | memoryview


class LostLink(LinkFailed):
    """The connection was closed before the answer was complete."""


class Connect(Protocol):
    """`wire.transport.connect`."""

    def __call__(
        self, reactor: Any, host: str, port: int, factory: Factory, tls: Any, timeout: float
    ) -> Deferred[Any]: ...


class Trust(Protocol):
    """What of `trust.contexts.Contexts` is needed here."""

    def client_factory(self, protocols: Sequence[bytes] = (), server_id: str = "") -> Any: ...

    def peer_of(self, certificate: Any) -> str | None: ...


@frozen
class Ask:
    """One request: its head, its body, and the most bytes that a good answer may have."""

    head: bytes
    body: Buffer = b""
    answer_max: int = 0
    gently: bool = False
    """Whether the body goes in small pieces, with pauses in which others have the processor."""


@frozen
class Told:
    """The answer to it."""

    head: ResponseHead
    body: bytes


class ChunkLink(TwistedProtocol):
    """One connection to another server's file port."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.alive = False
        """Whether the connection is there and may be asked."""
        self.used = False
        """Whether it has answered before."""
        self.place: _Place | None = None
        self.timer: IDelayedCall | None = None
        """While a request runs: looks for progress. While it rests: ends it."""
        self._asked: Ask | None = None
        self._waiting: Deferred[Told] | None = None
        self._input = b""
        self._head: ResponseHead | None = None
        self._body: CountedBody | None = None
        self._pieces: list[bytes | memoryview] = []
        self._received = 0
        self._interim = 0
        self._progress = (0, 0)
        self._unsent: memoryview | None = None
        """What is left of a body that goes gently."""
        self._next_piece: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """The connection is there; the handshake may still be under way."""
        self.alive = True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self.alive = False
        self.disarm()
        self._fail(LostLink(f"the connection was lost: {reason.getErrorMessage()}"))
        if self.place is not None:
            self.place.gone(self)

    def certificate(self) -> Any:
        """The peer's certificate, or None."""
        transport: Any = self.transport
        return transport.getPeerCertificate()

    def ask(self, ask: Ask) -> Deferred[Told]:
        """Send a request; fires with the answer, whatever its status.

        Fails with `LostLink`, `LinkFailed` (no progress) or `BadResponse`, after which the connection is of
        no use any more; and so does cancelling. `ask.body` is not copied.
        """
        assert self.alive and self._waiting is None
        self._asked = ask
        waiting: Deferred[Told] = Deferred(lambda _: self._give_up())
        self._waiting = waiting
        self._progress = (-1, -1)
        self._look_for_progress()
        transport: Any = self.transport
        transport.write(ask.head)
        if ask.gently and len(ask.body) > GENTLE_PIECE:
            self._unsent = memoryview(ask.body)
            self._send_piece(0.0, self._clock.seconds())
        elif len(ask.body):
            self._write(memoryview(ask.body))
        return waiting

    def _write(self, data: memoryview) -> None:
        transport: Any = self.transport
        transport.write(data if getattr(transport, "accepts_memoryview", False) else bytes(data))

    def _send_piece(self, pause: float, due: float) -> None:
        """Send the next piece of the body, which was to be sent at `due`, so long after the one before."""
        self._next_piece = None
        unsent = self._unsent
        if unsent is None:
            return
        late = self._clock.seconds() - due
        length = max(GENTLE_PIECE, int((pause + late) * GENTLE_RATE_MIN))
        self._write(unsent[:length])
        self._unsent = unsent[length:] or None
        if self._unsent is not None:
            pause = min(GENTLE_PAUSE + GENTLE_FACTOR * late, GENTLE_PAUSE_MAX)
            self._next_piece = self._clock.callLater(pause, self._send_piece, pause, self._clock.seconds() + pause)

    def dataReceived(self, data: bytes) -> None:
        """A part of an answer."""
        self._received += len(data)
        if self._waiting is None:
            # Nobody asked anything: whatever it is, the next answer could not be told from it.
            self.abort()
            return
        try:
            self._take(data)
        except BadResponse as error:
            self.alive = False
            self._fail(error)
            self.abort()

    def _take(self, data: bytes) -> None:
        offset = 0
        while self._head is None:
            data = self._input + data if self._input else data
            end = data.find(HEAD_END)
            if end < 0 or end > HEAD_BYTES_MAX:
                if len(data) > HEAD_BYTES_MAX:
                    raise BadResponse("the head of the answer does not end")
                self._input = data
                return
            self._input = b""
            offset = end + len(HEAD_END)
            head = parse_response(data[:offset])
            if head.status < 200:
                # An interim answer; the one that counts follows.
                self._interim += 1
                if self._interim > INTERIM_MAX:
                    raise BadResponse("there is one interim answer after the other")
                data, offset = data[offset:], 0
                continue
            self._begin_body(head)
        assert self._body is not None
        piece, offset = self._body.take(data, offset)
        if len(piece):
            self._pieces.append(piece)
        if self._body.done:
            if offset < len(data):
                raise BadResponse("there are bytes after the end of the answer")
            self._finish()

    def _begin_body(self, head: ResponseHead) -> None:
        assert self._asked is not None
        limit = self._asked.answer_max if head.status in (200, 206) else REFUSAL_BYTES_MAX
        if head.length > limit:
            raise BadResponse(f"the answer has {head.length} bytes where at most {limit} make sense")
        self._head = head
        self._body = CountedBody(head.length)

    def _finish(self) -> None:
        waiting, head = self._waiting, self._head
        assert waiting is not None and head is not None
        body = b"".join(self._pieces)
        self.used = True
        answered_early = self._unsent is not None
        self._reset()
        if answered_early or not head.keep_alive:
            # A part of the request may still be queued, which nobody wants any more.
            self.abort()
        waiting.callback(Told(head, body))

    def _reset(self) -> None:
        self.disarm()
        self._unsent = None
        if self._next_piece is not None:
            self._next_piece.cancel()
            self._next_piece = None
        self._waiting = self._asked = self._head = self._body = None
        self._pieces = []
        self._input = b""
        self._interim = 0

    def _fail(self, error: Exception) -> None:
        waiting = self._waiting
        self._reset()
        if waiting is not None:
            waiting.errback(error)

    def _give_up(self) -> None:
        self._reset()
        self.abort()

    def _look_for_progress(self) -> None:
        progress = (int(getattr(self.transport, "taken", 0)), self._received)
        if progress == self._progress:
            self.timer = None
            self.alive = False
            self._fail(LinkFailed(f"no byte moved for {STALL_SECONDS:.0f} s"))
            self.abort()
            return
        self._progress = progress
        self.timer = self._clock.callLater(STALL_SECONDS, self._look_for_progress)

    def disarm(self) -> None:
        """No timer any more."""
        timer, self.timer = self.timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def end(self) -> None:
        """Close; not to be asked any more."""
        self.alive = False
        transport: Any = self.transport
        transport.loseConnection()

    def abort(self) -> None:
        """Close at once, whatever is still to be sent; a request under way fails."""
        self.alive = False
        self._fail(LinkFailed("the connection was given up"))
        transport: Any = self.transport
        transport.abortConnection()


class _LinkFactory(Factory):
    """Makes a `ChunkLink`, without a word in the log."""

    noisy = False

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def buildProtocol(self, addr: Any) -> ChunkLink:
        return ChunkLink(self._clock)


class _Place:
    """The connections to one server at one address."""

    def __init__(self, client: ChunkClient, server: Server) -> None:
        self._client = client
        self._server = server
        self.links: set[ChunkLink] = set()
        self._opening = 0
        self._idle: list[ChunkLink] = []
        self._waiting: deque[Deferred[None]] = deque()

    @property
    def empty(self) -> bool:
        """Whether nothing is lost by forgetting this."""
        return not (self.links or self._opening or self._waiting)

    async def take(self) -> ChunkLink:
        """A connection that nobody else uses; the one used last, so that those not needed grow old."""
        while True:
            while self._idle:
                link = self._idle.pop()
                link.disarm()
                if link.alive:
                    return link
            if len(self.links) + self._opening < LINKS_MAX:
                return await self._open()
            turn: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(turn)
            await turn

    def give_back(self, link: ChunkLink) -> None:
        """The connection is not used any more."""
        if link.alive and len(self._idle) < IDLE_LINKS_MAX:
            self._idle.append(link)
            link.timer = self._client.clock.callLater(IDLE_SECONDS, self._end_idle, link)
        elif link.alive:
            link.end()
        self._next()

    def end_idle(self) -> None:
        """Close what is kept: one that was kept was found closed, and so will be the others."""
        idle, self._idle = self._idle, []
        for link in idle:
            link.disarm()
            link.abort()

    def _end_idle(self, link: ChunkLink) -> None:
        link.timer = None
        if link in self._idle:
            self._idle.remove(link)
        link.end()

    def gone(self, link: ChunkLink) -> None:
        """The connection is lost."""
        self.links.discard(link)
        if link in self._idle:
            self._idle.remove(link)
        self._next()

    def close(self) -> None:
        """No more connections; who waits for one is told."""
        for link in list(self.links):
            link.abort()
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            turn.errback(LinkFailed("this server is closing its links"))

    def _next(self) -> None:
        if self._waiting and (self._idle or len(self.links) + self._opening < LINKS_MAX):
            self._waiting.popleft().callback(None)
        self._client.forget_if_empty(self._server, self)

    async def _open(self) -> ChunkLink:
        self._opening += 1
        try:
            link = await self._client.connect(self._server)
        except BaseException:
            self._opening -= 1
            self._next()
            raise
        self._opening -= 1
        link.place = self
        self.links.add(link)
        return link


@implementer(IChunkLinks)
class ChunkClient:
    """Asks other servers about chunks. `connect` is `wire.transport.connect`, `contexts` this process's trust."""

    def __init__(self, reactor: Any, contexts: Trust, connect: Connect) -> None:
        self.clock: IReactorTime = reactor
        self._contexts = contexts
        self._connect = connect
        self._places: dict[tuple[str, str, int], _Place] = {}
        self._closed = False

    def put(self, server: Server, digest: bytes, data: Buffer, gently: bool = False) -> Deferred[None]:
        """Store a chunk on `server`; see `IChunkLinks`."""
        return Deferred.fromCoroutine(self._put(server, digest, data, gently))

    def get(self, server: Server, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[bytes]:
        """Bytes of a chunk from `server`, not checked yet; see `IChunkLinks`."""
        if length == 0:
            return succeed(b"")
        return Deferred.fromCoroutine(self._get(server, digest, offset, length))

    def have(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """Which of these chunks `server` holds; see `IChunkLinks`."""
        assert len(digests) <= HAVE_DIGESTS_MAX
        return Deferred.fromCoroutine(self._have(server, digests))

    def hold(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """Which of these chunks `server` holds, and keeps for a while; see `IChunkLinks`."""
        assert len(digests) <= HAVE_DIGESTS_MAX
        return Deferred.fromCoroutine(self._have(server, digests, "hold"))

    def keep(self, server: Server, digests: Sequence[bytes], revision: int) -> Deferred[Sequence[int]]:
        """Which of these chunks `server` keeps for good; see `IChunkLinks`."""
        assert len(digests) <= KEEP_DIGESTS_MAX
        return Deferred.fromCoroutine(self._have(server, digests, f"keep/{revision}"))

    def verify(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """The same after `server` has read them whole; see `IChunkLinks`."""
        assert len(digests) <= VERIFY_DIGESTS_MAX
        return Deferred.fromCoroutine(self._have(server, digests, "verify"))

    def verified(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """When `server` last found each of these chunks whole; see `IChunkLinks`."""
        assert len(digests) <= HAVE_DIGESTS_MAX
        return Deferred.fromCoroutine(self._verified(server, digests))

    def look(self, server: Server, digests: Sequence[bytes]) -> Deferred[None]:
        """Have these chunks looked at first on `server`; see `IChunkLinks`."""
        assert len(digests) <= HAVE_DIGESTS_MAX
        return Deferred.fromCoroutine(self._look(server, digests))

    def close(self) -> None:
        """Cut all connections; what is under way fails with `LinkFailed`."""
        self._closed = True
        for place in list(self._places.values()):
            place.close()

    async def _put(self, server: Server, digest: bytes, data: Buffer, gently: bool) -> None:
        head = self._head(b"PUT", digest.hex(), server, b"Content-Length: %d\r\n" % len(data))
        told = await self._ask(server, Ask(head, data, gently=gently))
        if told.head.status not in (200, 201, 204):
            raise refused(server, told)

    async def _get(self, server: Server, digest: bytes, offset: int, length: int | None) -> bytes:
        whole = offset == 0 and length is None
        last = b"" if length is None else b"%d" % (offset + length - 1)
        head = self._head(b"GET", digest.hex(), server, b"" if whole else b"Range: bytes=%d-%b\r\n" % (offset, last))
        told = await self._ask(server, Ask(head, answer_max=CHUNK_SIZE_MAX if length is None else length))
        if told.head.status not in (200, 206):
            raise refused(server, told)
        if told.head.status != (200 if whole else 206):
            raise BadResponse(f"{server.name} did not answer the range that it was asked for")
        if not whole and not told.head.headers.get(b"content-range", b"").startswith(b"bytes %d-" % offset):
            raise BadResponse(f"{server.name} answered another range than it was asked for")
        return told.body

    async def _look(self, server: Server, digests: Sequence[bytes]) -> None:
        body = b"".join(digests)
        head = self._head(b"POST", "look", server, b"Content-Length: %d\r\n" % len(body))
        told = await self._ask(server, Ask(head, body))
        if told.head.status != 204:
            raise refused(server, told)

    async def _have(self, server: Server, digests: Sequence[bytes], question: str = "have") -> list[int]:
        body = b"".join(digests)
        head = self._head(b"POST", question, server, b"Content-Length: %d\r\n" % len(body))
        told = await self._ask(server, Ask(head, body, answer_max=CHUNK_LENGTH.size * len(digests)))
        if told.head.status != 200:
            raise refused(server, told)
        if len(told.body) == CHUNK_LENGTH.size * len(digests):
            lengths = [length for (length,) in CHUNK_LENGTH.iter_unpack(told.body)]
            damaged = (DAMAGED,) if question == "verify" else ()
            if all(length <= CHUNK_SIZE_MAX or length in damaged for length in lengths):
                return lengths
        raise BadResponse(f"{server.name} did not answer about the chunks that it was asked for")

    async def _verified(self, server: Server, digests: Sequence[bytes]) -> list[int]:
        body = b"".join(digests)
        head = self._head(b"POST", "verified", server, b"Content-Length: %d\r\n" % len(body))
        told = await self._ask(server, Ask(head, body, answer_max=VERIFIED_TIME.size * len(digests)))
        if told.head.status != 200:
            raise refused(server, told)
        times = (
            [ms for (ms,) in VERIFIED_TIME.iter_unpack(told.body)] if not len(told.body) % VERIFIED_TIME.size else []
        )
        if len(times) != len(digests) or not all(ms <= TIME_MAX for ms in times):
            raise BadResponse(f"{server.name} did not answer about the chunks that it was asked for")
        return times

    def _head(self, method: bytes, what: str, server: Server, lines: bytes) -> bytes:
        host = str(server.files_address).encode()
        return b"%b /-/chunks/%b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (method, what.encode(), host, lines)

    async def _ask(self, server: Server, ask: Ask) -> Told:
        place = self._place(server)
        link = await place.take()
        kept = link.used
        try:
            return await link.ask(ask)
        except LostLink:
            if not kept:
                raise
        finally:
            place.give_back(link)
        # The other side closed it while it was kept, or has started anew.
        place.end_idle()
        place = self._place(server)
        link = await place.take()
        try:
            return await link.ask(ask)
        finally:
            place.give_back(link)

    def _place(self, server: Server) -> _Place:
        if self._closed:
            raise LinkFailed("this server is closing its links")
        key = _key(server)
        if key not in self._places:
            self._places[key] = _Place(self, server)
        return self._places[key]

    # For the places.

    async def connect(self, server: Server) -> ChunkLink:
        """A new connection to `server`, which has proved that it is that server; raises `LinkFailed` if not."""
        address = server.files_address
        tls = self._contexts.client_factory((b"http/1.1",), server.id)
        factory = _LinkFactory(self.clock)
        link: ChunkLink = await self._connect(self.clock, address.host, address.port, factory, tls, CONNECT_TIMEOUT)
        found = self._contexts.peer_of(link.certificate())
        if found != server.id:
            link.abort()
            who = f"the server {found}" if found is not None else "no server of this farm"
            raise LinkFailed(f"at {address} there is {who}, not {server.name}")
        if self._closed or not link.alive:
            link.abort()
            raise LinkFailed(f"the connection to {server.name} is closed again")
        return link

    def forget_if_empty(self, server: Server, place: _Place) -> None:
        """Do not keep what is known of servers that nobody asks any more."""
        if place.empty and self._places.get(_key(server)) is place:
            del self._places[_key(server)]


def _key(server: Server) -> tuple[str, str, int]:
    return server.id, server.host, server.files


def refused(server: Server, told: Told) -> Exception:
    """The error that a server's answer tells: that of its code, with its sentence."""
    code, _, sentence = told.body.decode("utf-8", "replace").strip().partition(" ")
    kind = CODES.get(code)
    if kind is None or not sentence:
        return LinkFailed(f"{server.name} answered with the status {told.head.status}")
    return kind(f"{server.name}: {sentence}")
