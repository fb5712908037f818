"""The file port: everything that an HTTP client may send, or another server, in whatever pieces it comes."""

from __future__ import annotations

import base64
import json
from typing import Any

from attrs import frozen
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from chunkfarm.model import digest_of
from chunkfarm.ports.files import FileFactory
from chunkfarm.ports.files.connection import WAITING
from chunkfarm.wire.http1 import HEAD_BYTES_MAX, REASONS
from tests.fuzz.mutations import Mutations
from tests.fuzz.promises import Broken, cut_up, no_timers, nothing_severe, promise, settle, unwatched
from tests.fuzz.server import CONTENT, DELAY, HELD_SECONDS, FuzzServer, certificates
from tests.ports.fakes import NOW

SWEEPER = 1
"""The one timer that the port has while it has connections."""


@frozen
class Way:
    """How a client comes."""

    certificate: str = ""
    phase: str = "serving"
    slow_catalog: bool = False
    forgotten: bool = False


WAYS = (
    Way(),
    Way(slow_catalog=True),
    Way(certificate="beta"),
    Way(phase="readonly"),
    Way(phase="waiting"),
    Way(certificate="beta", forgotten=True),
)


class Line(StringTransport):
    """A transport in memory, whose other side takes everything at once."""

    aborted = False
    queued = 0
    taken = 0

    def __init__(self, way: Way) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "10.0.0.9", 5000))
        self.certificate = way.certificate

    def write(self, data: bytes) -> None:
        promise(not self.over, "something is written to a connection that was ended")
        super().write(data)

    def getPeerCertificate(self) -> Any:
        return self.certificate or None

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    @property
    def over(self) -> bool:
        return bool(self.aborted or self.disconnecting)


class Link:
    """One connection to the file port."""

    def __init__(self, server: FuzzServer, factory: FileFactory, way: Way) -> None:
        self.clock = server.clock
        self.transport = Line(way)
        protocol: Any = factory.buildProtocol(self.transport.getPeer())
        self.protocol = protocol
        protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """Give bytes, and let everything happen that they bring about."""
        if not self.transport.over:
            self.protocol.dataReceived(data)
        self.settle()

    def settle(self) -> None:
        for _ in range(10_000):
            settle(self.clock)
            producer = self.transport.producer
            if producer is not None and not self.transport.streaming:
                producer.resumeProducing()
            elif self.protocol._running is not None and len(self.clock.getDelayedCalls()) > SWEEPER:
                self.clock.advance(DELAY)
            else:
                return
        raise Broken("a connection comes to no rest")

    def lose(self) -> None:
        if self.transport.producer is not None:
            self.transport.producer.stopProducing()
        self.protocol.connectionLost(Failure(ConnectionLost()))


class HttpTarget:
    """The file port."""

    name = "http"
    modules = ("chunkfarm.ports.files", "chunkfarm.wire.http1", "chunkfarm.scoped", "chunkfarm.trust.keys")
    separator = b"\r\n"

    def __init__(self) -> None:
        self.seeds = _seeds()
        self.tokens = _tokens()
        self._living: dict[Way, tuple[FuzzServer, FileFactory]] = {}

    def run(self, data: bytes) -> None:
        """The answers are the same in whatever pieces it comes, and the server is as good as before."""
        way, stream = _way(data)
        with nothing_severe():
            whole = self._answers(way, [stream])
            with unwatched():
                in_pieces = self._answers(way, cut_up(stream, 1))
        # Whoever has sent the body already is not told to go on; and after a refusal a body that is not here yet
        # is not waited for, but ends the connection.
        both = [[answer for answer in one if answer[0] != 100] for one in (whole, in_pieces)]
        alike = all(one == other for one, other in zip(*both, strict=False))
        promise(alike, f"the answers depend on how the bytes were cut up:\n{whole}\n{in_pieces}")

    def _answers(self, way: Way, pieces: list[bytes]) -> list[tuple[int, bytes, bytes]]:
        server, factory = _make(way)
        link = Link(server, factory, way)
        for piece in pieces:
            link.send(piece)
            protocol = link.protocol
            promise(len(protocol._input) <= HEAD_BYTES_MAX + 2 * max(map(len, pieces)), "too much is kept of an input")
        answers = read_answers(link.transport.value(), link.transport.over)
        link.transport.clear()
        _asked_again(link)
        link.clock.pump([1.0] * 3 + [HELD_SECONDS])
        link.lose()
        _at_rest(server, factory, way)
        return answers

    def live(self, data: bytes) -> None:
        way, stream = _way(data)
        server, factory = self._living.get(way) or _make(way)
        if server.is_full:
            server, factory = _make(way)
        self._living[way] = server, factory
        with nothing_severe():
            link = Link(server, factory, way)
            for piece in cut_up(stream, 2):
                link.send(piece)
            link.lose()
            settle(link.clock)
        server.clear()

    def end(self) -> None:
        """The servers of `live` hold nothing."""

    def changed(self, data: bytes, mutations: Mutations) -> bytes | None:
        """One more request behind the others, or one more header somewhere."""
        random = mutations.random
        if random.random() < 0.4:
            body = random.choice((b"", b"", b"x", CONTENT[:5000]))
            more = [mutations.token() for _ in range(random.randint(0, 3))]
            lines = [
                b"%b %b HTTP/1.1" % (random.choice(_METHODS), random.choice(_TARGETS)),
                b"Host: farm",
                _basic("admin"),
            ]
            lines += [line for line in more if b": " in line]
            if body or random.random() < 0.3:
                lines.append(b"Content-Length: %d" % len(body))
            return data + b"\r\n".join([*lines, b"", body])
        lines = data.split(b"\r\n")
        name, _, value = random.choice(_HEADERS).partition(b": ")
        if random.random() < 0.5:
            value = mutations.of_word(value)
        lines.insert(random.randint(1, max(1, min(len(lines), 6))), name + b": " + value)
        return b"\r\n".join(lines)


def _way(data: bytes) -> tuple[Way, bytes]:
    return (WAYS[data[0] % len(WAYS)], data[1:]) if data else (WAYS[0], b"")


def _make(way: Way) -> tuple[FuzzServer, FileFactory]:
    server = FuzzServer(Clock(), slow=way.slow_catalog, phase=way.phase)
    server.peers = certificates()
    if way.forgotten:
        server.forgotten.add(server.peers[way.certificate])
    inside: Any = server
    return server, FileFactory(inside, server.clock, lambda: NOW)


def read_answers(told: bytes, cut_short: bool) -> list[tuple[int, bytes, bytes]]:
    """The answers (status, head, body) that a server has written; raises `Broken` if they are not HTTP/1.1.

    Those to HEAD are told by the head behind them, which begins where a body would.
    """
    answers, at = [], 0
    while at < len(told):
        end = told.find(b"\r\n\r\n", at)
        promise(end >= 0, f"a head without an end: {told[at : at + 200]!r}")
        first, *lines = told[at:end].split(b"\r\n")
        words = first.split(b" ", 2)
        promise(words[0] == b"HTTP/1.1" and int(words[1]) in REASONS, f"a status line of no kind: {first!r}")
        status = int(words[1])
        promise(status != 500, f"a fault for what a client did: {told[at : end + 100]!r}")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        promise(len(headers) == len(lines), f"a header is given twice: {lines}")
        at = end + 4
        bare = status in (100, 204, 304)
        promise((b"content-length" in headers) != bare, f"a length where there is none, or none: {first!r} {lines}")
        length = 0 if bare else int(headers[b"content-length"])
        if told.startswith(b"HTTP/1.1 ", at) or at == len(told):
            # To HEAD, or cut short by the end.
            length = 0
        promise(cut_short or at + length <= len(told), "fewer bytes than were announced")
        stays = [line for line in lines if line != b"Connection: close"]
        answers.append((status, b"\r\n".join(stays), told[at : at + length]))
        at += length
    return answers


def _asked_again(link: Link) -> None:
    """On the same connection, if it waits for a request, the next good one is answered."""
    protocol, transport = link.protocol, link.transport
    if transport.over or protocol._state is not WAITING or protocol._offset < len(protocol._input):
        return
    link.send(b"GET /-/health HTTP/1.1\r\nHost: farm\r\n\r\n")
    told = read_answers(transport.value(), False)
    promise(len(told) == 1 and told[0][0] in (200, 503), f"the next request is answered {told}")


def _at_rest(server: FuzzServer, factory: FileFactory, way: Way) -> None:
    """Nothing is left of a connection that is gone, and a new one is answered."""
    settle(server.clock)
    no_timers(server.clock)
    promise(
        not factory.connections and not factory._hosts and not factory._places.total, "who is gone is still counted"
    )
    promise(not factory.routes._chunks._held, f"{factory.routes._chunks._held} bytes are held for nobody")
    promise(all(chunk.closed for chunk in server.opened), "a chunk is still open")
    link = Link(server, factory, way)
    link.send(
        b"GET /lab/a HTTP/1.1\r\nHost: farm\r\n"
        + _basic("admin")
        + b"\r\n\r\nGET /-/health HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    told = read_answers(link.transport.value(), False)
    promise(len(told) == 2 and told[1][0] in (200, 503), f"a new connection is answered {told}")
    health = json.loads(told[1][2])
    promise(health["state"] == way.phase, f"the server is {health}")
    link.lose()
    no_timers(server.clock)


def _basic(key: str, secret: str = "secret") -> bytes:
    return b"Authorization: Basic " + base64.b64encode(f"{key}:{secret}".encode())


_HEX = digest_of(CONTENT[:10]).hex().encode()
_NEW = b"bytes of a chunk that is new"
_METHODS = (b"GET", b"GET", b"HEAD", b"PUT", b"PUT", b"DELETE", b"POST", b"OPTIONS", b"TRACE", b"PRI", b"M-SEARCH")
_TARGETS = (
    b"/",
    b"/lab/",
    b"/lab/a",
    b"/lab/x%20y.txt",
    b"/home/b",
    b"/home/empty",
    b"/home/new",
    b"/lab?prefix=a&limit=1",
    b"/?format=json&after=home/b",
    b"/lab/?delimiter=&format=html",
    b"/-/health",
    b"/-/metrics",
    b"/-/chunks/" + _HEX,
    b"/-/chunks/" + digest_of(_NEW).hex().encode(),
    b"/-/chunks/have",
    b"/-/chunks/hold",
    b"/-/chunks/keep/7",
    b"/-/chunks/verify",
    b"/-/chunks/look",
    b"http://farm/lab/a",
    b"*",
    b"/a/../b",
    b"/%2e%2e/x",
    b"/lab/%00",
    b"//",
)
_HEADERS = (
    b"Content-Length: 5",
    b"Content-Length: 0005",
    b"Content-Length: 18446744073709551615",
    b"Content-Length: 18446744073709551616",
    b"Content-Length: -1",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Expect: 100-continue",
    b"Range: bytes=0-4",
    b"Range: bytes=-5",
    b"Range: bytes=4999-",
    b"Range: bytes=0-1,3-4",
    b'If-Match: "*", W/"x"',
    b"If-Match: *",
    b"If-None-Match: *",
    b'If-Range: "x"',
    b"If-Modified-Since: Sun, 22 Nov 2026 10:00:00 GMT",
    b"If-Unmodified-Since: Sunday, 22-Nov-26 10:00:00 GMT",
    b"If-Modified-Since: Sun Nov 22 10:00:00 2026",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade",
    b"Upgrade: h2c",
    b"Content-Type: text/plain; charset=utf-8",
    b"Content-Encoding: gzip",
    b"Content-Range: bytes 0-1/2",
    b"Authorization: Bearer x",
    b"Accept: application/json",
    b"Host: other:80",
    b"Host: [::1]:4102",
    b"X: y",
)


def _request(method: bytes, target: bytes, *lines: bytes, body: bytes = b"", key: str = "admin") -> bytes:
    more = [b"Content-Length: %d" % len(body)] if body else []
    head = [method + b" " + target + b" HTTP/1.1", b"Host: farm", _basic(key), *lines, *more, b"", b""]
    return b"\r\n".join(head) + body


def _seeds() -> tuple[bytes, ...]:
    chunked = b"Transfer-Encoding: chunked"
    scripts = [_request(b"GET", target) for target in _TARGETS]
    scripts += [
        _request(b"PUT", b"/lab/new", body=CONTENT[:5000]) + _request(b"GET", b"/lab/new", b"Range: bytes=1-2"),
        _request(b"PUT", b"/lab/new", chunked)
        + b"5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\nX: y\r\n\r\n"
        + _request(b"HEAD", b"/lab/new"),
        _request(b"PUT", b"/lab/new", b"Expect: 100-continue", b"If-None-Match: *", body=b"x"),
        _request(b"DELETE", b"/home/b", b"If-Match: *") + _request(b"DELETE", b"/home/b"),
        _request(b"GET", b"/lab/a", key="scoped") + _request(b"GET", b"/home/b", key="scoped"),
        _request(b"GET", b"/lab/a", key="nobody") + _request(b"PUT", b"/lab/a", body=b"x", key="reader"),
        _request(b"PUT", b"/-/chunks/" + digest_of(_NEW).hex().encode(), body=_NEW),
        _request(b"POST", b"/-/chunks/have", body=digest_of(CONTENT[:10]) * 2),
        _request(b"POST", b"/-/chunks/keep/7", body=digest_of(CONTENT[:10])),
        _request(b"POST", b"/-/chunks/verify", body=digest_of(CONTENT[:10])),
        b"GET /lab/a HTTP/1.0\r\n" + _basic("admin") + b"\r\n\r\n",
        b"\r\n\r\nGET /lab/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    scripts += [_request(b"GET", b"/home/b", header) for header in _HEADERS]
    return tuple(bytes((number % len(WAYS),)) + script for number, script in enumerate(scripts)) + tuple(
        bytes((way,)) + script for way in range(len(WAYS)) for script in scripts[25:30]
    )


def _tokens() -> tuple[bytes, ...]:
    return (
        *_HEADERS,
        *_TARGETS,
        *(method + b" " for method in _METHODS),
        *(_basic(key) for key in ("admin", "reader", "scoped", "nobody")),
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b" HTTP/2.0\r\n",
        b"Host: farm\r\n",
        b"\r\n\r\n",
        b"\r\n",
        b"\r\n ",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"FFFFFFFFFFFFFFF\r\n",
        b"chunked",
        b"bytes=",
        b"%2F",
        b"%C3%A9",
        b"%ff",
        b"0",
        _HEX,
        digest_of(CONTENT[:10]),
    )
