"""The line protocol: everything that a client may send, in whatever pieces it comes."""

from __future__ import annotations

import re
from typing import Any

from attrs import frozen
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from chunkfarm.errors import CODES
from chunkfarm.model import digest_of
from chunkfarm.ports.client import ClientFactory
from chunkfarm.ports.client.commands import COMMANDS
from chunkfarm.wire.lines import LINE_BYTES_MAX
from tests.fuzz.mutations import Mutations
from tests.fuzz.promises import Broken, cut_up, no_timers, nothing_severe, promise, settle, unwatched
from tests.fuzz.server import CONTENT, DELAY, HELD_SECONDS, FuzzServer, certificates
from tests.ports.fakes import OTHER_ID, SERVER_ID

BLOCKS = frozenset(
    "CA CHECK DRAINS EXPLAIN FILES FORGET HAVE HELP HISTORY KEYS STATUS TABLE TAKEOVER WAIT WHO".split()  # noqa: SIM905
)
"""First words of answers that are followed by as many lines as they say."""
REST_MAX = 70_000
"""Bytes of a payload that an input has begun, up to which the rest is sent so that another request can follow."""
_DRAWN = re.compile(rb"(?:secret|id|code)=[^ \r]+|EVENT [^\r]*ROW key=[^\r]*\r\n")
"""Keys and codes are drawn anew each time, and so are rows that have to do with them."""
_DRAWN_OR_TOLD = re.compile(_DRAWN.pattern + rb"|EVENT [^\r]*\r\n")
"""And changes that a watch tells."""


@frozen
class Way:
    """How a client comes."""

    host: str = "127.0.0.1"
    certificate: str = ""
    phase: str = "serving"
    slow_catalog: bool = False
    slow_reader: bool = False


WAYS = (
    Way(),
    Way(slow_catalog=True),
    Way(slow_reader=True),
    Way(host="10.0.0.9"),
    Way(host="10.0.0.2", certificate="beta"),
    Way(phase="readonly"),
    Way(phase="waiting"),
    Way(slow_catalog=True, slow_reader=True),
)


class Line(StringTransport):
    """A transport in memory, which asks for a pause after each write if its reader is slow."""

    def __init__(self, way: Way) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", way.host, 50000))
        self.certificate = way.certificate
        self.slow = way.slow_reader
        self.tired = False
        self.aborted = False

    def write(self, data: bytes) -> None:
        promise(not self.aborted and not self.disconnecting, "something is written to a link that was ended")
        super().write(data)
        if self.slow and self.producer is not None and not self.tired:
            self.tired = True
            self.producer.pauseProducing()

    def rest(self) -> None:
        """Everything written has been taken."""
        if self.tired:
            self.tired = False
            if self.producer is not None:
                self.producer.resumeProducing()

    def startTLS(self, contextFactory: Any) -> None:
        pass

    def getPeerCertificate(self) -> Any:
        return self.certificate or None

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    @property
    def over(self) -> bool:
        return bool(self.aborted or self.disconnecting)


class Link:
    """One client of a server."""

    def __init__(self, server: FuzzServer, factory: ClientFactory, way: Way) -> None:
        self.clock = server.clock
        self.factory = factory
        self.transport = Line(way)
        protocol: Any = factory.buildProtocol(self.transport.getPeer())
        self.protocol = protocol
        protocol.makeConnection(self.transport)
        if way.certificate:
            protocol._session.encrypted = True

    def send(self, data: bytes) -> None:
        """Give bytes, and let everything happen that they bring about."""
        if not self.transport.over:
            self.protocol.dataReceived(data)
        self.settle()

    def settle(self) -> None:
        for _ in range(10_000):
            settle(self.clock)
            busy = any(pending.running is not None for pending in self.protocol._queue)
            if self.transport.tired:
                self.transport.rest()
            elif busy and self.clock.getDelayedCalls():
                self.clock.advance(DELAY)
            else:
                return
        raise Broken("a link comes to no rest")

    @property
    def held(self) -> int:
        """Bytes that it has read and keeps."""
        return len(self.protocol._buffer) + sum(len(text) for text in self.protocol._backlog)

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionLost()))


class LinesTarget:
    """The client port."""

    name = "lines"
    modules = ("chunkfarm.ports.client", "chunkfarm.wire.lines", "chunkfarm.settings", "chunkfarm.scoped")
    separator = b"\n"

    def __init__(self) -> None:
        self.seeds = _seeds()
        self.tokens = _tokens()
        self._living: dict[Way, tuple[FuzzServer, ClientFactory]] = {}

    def run(self, data: bytes) -> None:
        """The answers are the same in whatever pieces it comes, and the server is as good as before."""
        way, stream = _way(data)
        with nothing_severe():
            whole, aborted = self._answers(way, [stream])
            with unwatched():
                in_pieces, _ = self._answers(way, cut_up(stream, 1))
        # Bytes behind STARTTLS end the link, before its answer or after it; and a TLS hello must come in one piece.
        if b"starttls" not in stream.lower() and not stream.startswith(b"\x16"):
            # Whoever is slow may not be told before it says UNWATCH.
            left_out = _DRAWN_OR_TOLD if way.slow_reader else _DRAWN
            one, other = left_out.sub(b"", whole), left_out.sub(b"", in_pieces)
            # And a link that is cut is cut at once: what was not answered by then is not answered.
            alike = one == other or (aborted and (one.startswith(other) or other.startswith(one)))
            promise(alike, f"the answers depend on how the bytes were cut up:\n{whole!r}\n{in_pieces!r}")

    def _answers(self, way: Way, pieces: list[bytes]) -> tuple[bytes, bool]:
        """What was written, and whether the link was cut."""
        server, factory = _make(way)
        link = Link(server, factory, way)
        for piece in pieces:
            link.send(piece)
            promise(link.held <= LINE_BYTES_MAX + max(map(len, pieces)), f"{link.held} bytes are kept")
        told, aborted = link.transport.value(), link.transport.aborted
        read_answers(told, link.transport.over)
        _asked_again(link)
        link.clock.advance(HELD_SECONDS)
        link.lose()
        _at_rest(server, factory, way)
        return told, aborted

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
        """One more command somewhere, or the first ones of a key that may do much."""
        lines = data.split(b"\n")
        at = mutations.random.randint(0, len(lines))
        words = [mutations.random.choice(_NAMES)]
        for _ in range(mutations.random.choice((0, 1, 1, 2, 2, 3, 4))):
            words.append(mutations.token() if mutations.random.random() < 0.8 else b"%d" % mutations.number())
        lines.insert(at, b" ".join(words) + mutations.random.choice((b"", b"\r")))
        if mutations.random.random() < 0.3:
            lines.insert(0, bytes((mutations.random.randrange(len(WAYS)),)) + b"AUTH admin secret")
        return b"\n".join(lines)


def _way(data: bytes) -> tuple[Way, bytes]:
    return (WAYS[data[0] % len(WAYS)], data[1:]) if data else (WAYS[0], b"")


def _make(way: Way) -> tuple[FuzzServer, ClientFactory]:
    server = FuzzServer(Clock(), slow=way.slow_catalog, phase=way.phase)
    server.peers = certificates()
    inside: Any = server
    return server, ClientFactory(inside, server.clock, "a context")


def read_answers(told: bytes, cut_short: bool) -> list[bytes]:
    """The answers, each its first line, of what a server has written; raises `Broken` if it is not the protocol."""
    answers, at = [], 0
    while at < len(told):
        end = told.find(b"\r\n", at)
        if end < 0:
            promise(cut_short, f"a line without an end: {told[at:]!r}")
            break
        line = told[at:end]
        at = end + 2
        promise(len(line) <= 70_000, f"a line of {len(line)} bytes")
        text = line.decode()
        promise(not re.search("[\x00-\x1f\x7f]", text), f"control characters in an answer: {line!r}")
        words = text.split(" ")
        if words[0] == "EVENT":
            continue
        answers.append(line)
        if words[0] == "ERR":
            promise(words[1] in CODES and words[1] != "internal", f"an answer of no kind: {line!r}")
        elif words[0] == "DATA":
            at += int(words[1])
            promise(cut_short or at <= len(told), "fewer bytes than were announced")
        elif words[0] in BLOCKS:
            for _ in range(int(words[1])):
                at = told.index(b"\r\n", at) + 2
            promise(told.startswith(b"END\r\n", at), f"a block without END: {line!r}")
            at += 5
        else:
            promise(words[0] == "OK", f"an answer of no kind: {line!r}")
    return answers


def _asked_again(link: Link) -> None:
    """On the same link, unless it was ended for good reason, the next good request is answered."""
    protocol, transport = link.protocol, link.transport
    # The rest of a payload, the rest of a line, and the payload that this line may have announced.
    for rest in (b"\r\n", b"", b""):
        if transport.over or protocol._awaits_tls:
            return
        payload = protocol._payload
        if payload is not None:
            if payload.length - payload.received > REST_MAX:
                return
            link.send(bytes(payload.length - payload.received))
        link.send(rest)
    if not transport.over:
        transport.clear()
        link.send(b"HELLO\r\n")
        told = transport.value()
        promise(b"OK chunkfarm/1 farm=" in told, f"HELLO is answered {told!r}")


def _at_rest(server: FuzzServer, factory: ClientFactory, way: Way) -> None:
    """Nothing is left of a link that is gone, and a new one is answered."""
    settle(server.clock)
    no_timers(server.clock)
    promise(not factory.connections and not factory._places.total, "a link that is gone is still counted")
    promise(not factory._payload_bytes, f"{factory._payload_bytes} bytes of payload are reserved for nobody")
    promise(not factory._waiting, "a link that is gone waits for memory")
    promise(all(chunk.closed for chunk in server.opened), "a chunk is still open")
    promise(all(watch._waiting is None for watch in server.table._watches), "somebody still watches")
    link = Link(server, factory, way)
    link.send(b"HELLO\r\n")
    promise(link.transport.value().startswith(b"OK chunkfarm/1 "), "a new link is not answered")
    if way == WAYS[0]:
        link.send(b"AUTH admin secret\r\nLIST\r\nSTATUS\r\n")
        heard = read_answers(link.transport.value(), False)
        promise(len(heard) == 4 and heard[2].startswith(b"FILES "), f"a new link is answered {heard}")
    link.lose()
    no_timers(server.clock)


_NAMES = tuple(name.encode() for name in COMMANDS)
_CHUNK = b"some bytes of a chunk"
_HEX = digest_of(_CHUNK).hex().encode()
_STORED = [digest_of(piece) for piece in (CONTENT[:10], CONTENT[:4096], CONTENT[4096:5000])]


def _put(data: bytes) -> bytes:
    return b"PUT %s %d\r\n%b" % (digest_of(data).hex().encode(), len(data), data)


def _commit(name: bytes, size: int, *digests: bytes) -> bytes:
    return b"COMMIT %s %d 4096 %d\r\n%b" % (name, size, 32 * len(digests), b"".join(digests))


def _seeds() -> tuple[bytes, ...]:
    scripts = (
        b"HELLO\r\nHELP\r\nHELP put\r\nPING\r\nQUIT\r\n",
        b"STARTTLS\r\n",
        b"AUTH admin wrong\r\nAUTH reader secret\r\nSERVERS\r\nWHO\r\nSTATUS\r\nLIST lab/ - 2\r\nSTAT lab/a\r\n",
        b"AUTH writer secret\r\n"
        + _put(_CHUNK)
        + _commit(b"lab/new", len(_CHUNK), digest_of(_CHUNK))
        + b"FETCH lab/new\r\n",
        b"AUTH writer secret\nHAVE " + b" ".join(one.hex().encode() for one in _STORED) + b"\nPING\nREMOVE home/b\n",
        b"AUTH admin secret\r\nGET %s 2 5\r\nEXPLAIN home/b 0 2\r\nCHECK home/b 0 5 quick\r\n"
        % _STORED[0].hex().encode(),
        b"AUTH admin secret\r\nWATCH files/\r\n"
        + _put(_CHUNK)
        + _commit(b"lab/new", 21, digest_of(_CHUNK))
        + b"UNWATCH\r\n",
        b"AUTH admin secret\r\nSET beta zone=r%201 weight=5\r\nSET farm replicas=2 name=home\r\nTABLE 9\r\nTABLE 0\r\n",
        b"AUTH admin secret\r\nDRAIN\r\nDRAIN beta anyway\r\nDRAIN beta off\r\nFORGET beta\r\nTAKEOVER\r\n",
        b"AUTH admin secret\r\nEXPORT\r\nEXPORT 2\r\nINVITE 60\r\nKEYS\r\nKEY add read lab/ me\r\nKEY remove admin\r\n",
        b"AUTH scoped secret\r\nLIST\r\nFETCH home/b\r\nFETCH lab/x%20y.txt 5 100\r\nWATCH files/lab/ 0\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"AUTH admin secret\r\nSERVERS\r\nTABLE 300\r\n",
    )
    return tuple(bytes((way,)) + script for way in range(len(WAYS)) for script in scripts)


def _tokens() -> tuple[bytes, ...]:
    words = [
        "-",
        "farm",
        "admin",
        "reader",
        "writer",
        "scoped",
        "secret",
        "alpha",
        "beta",
        "gamma",
        "lab/",
        "lab/a",
        "home/b",
        "home/empty",
        "lab/x%20y.txt",
        "files/",
        "servers/",
        "farm/",
        "keys/",
        "secret/",
        "add",
        "disable",
        "enable",
        "remove",
        "read",
        "write",
        "anyway",
        "off",
        "quick",
        "%00",
        "%0A",
        "%zz",
        "%C3",
        "%FF",
        "a/../b",
        "/",
        "//",
        "é",
        "zone=a",
        "name=beta",
        "name=",
        "weight=0",
        "weight=1000000000",
        "host=10.0.0.9",
        "host=fe80::1%eth0",
        "master=no",
        "client=1",
        "peer=65535",
        "replicas=3",
        "replicas=17",
        "chunksize=1M",
        "chunksize=0",
        "master_grace=10s",
        "repair_after=7d",
        "forget_after=1s",
        "collect_grace=24h",
        "two_server_takeover=manual",
        "table=embedded",
        "id=x",
        '"a',
        'b"',
        "value=1",
    ]
    return (
        *(word.encode() for word in words),
        *(name + b" " for name in _NAMES),
        *(one.hex().encode() for one in _STORED),
        _HEX,
        SERVER_ID.encode(),
        OTHER_ID.encode(),
        b"AUTH admin secret\r\n",
        b"AUTH writer secret\r\n",
        b"AUTH nobody wrong\r\n",
        _put(_CHUNK),
        _commit(b"lab/new", len(_CHUNK), digest_of(_CHUNK)),
        b"WATCH files/ 0\r\n",
        b"\r\n",
        b"\n",
        b"\x16\x03\x01",
        b"GET / HTTP/1.1\r\n",
        b"Host: x\r\n",
    )
