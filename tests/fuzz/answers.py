"""Everything that another side may answer to what we ask: to the client of the line protocol, whoever uses it, to the
client of chunks, and to calls of another server. It may be anybody, for an address proves nothing."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from chunkfarm import unheld
from chunkfarm.access import Access
from chunkfarm.chunks.pieces import Digests
from chunkfarm.cli.download import Download
from chunkfarm.errors import FarmError
from chunkfarm.files_at_risk import RiskLink
from chunkfarm.finding import Answer as Found
from chunkfarm.finding import Asking, probe
from chunkfarm.links import commands
from chunkfarm.links.chunks import ChunkClient
from chunkfarm.links.followers import FollowersWatch
from chunkfarm.links.lines import LineClient, Reply, connect
from chunkfarm.links.peers import LinkFailed, Peers
from chunkfarm.links.twins import find_twin
from chunkfarm.membership import Candidate
from chunkfarm.model import Address, Principal, digest_of, etag_of
from chunkfarm.reporter import Reporter
from chunkfarm.state import ServerState
from chunkfarm.survey import Questions
from chunkfarm.table import codec
from chunkfarm.table.duties import Report
from chunkfarm.table.framing import CodecError
from chunkfarm.table.interface import Batch, Page, Row, TableError
from chunkfarm.table.over_peers import TableOverPeers
from chunkfarm.table.records import Configuration
from chunkfarm.wire.http1 import BadResponse
from chunkfarm.wire.lines import LINE_BYTES_MAX
from tests.builders import make_server, server_id
from tests.fuzz.boxes import Line, _box, _boxes_of
from tests.fuzz.mutations import Mutations
from tests.fuzz.peers import FARM, ME, STORES, Shown
from tests.fuzz.peers import Line as OurLine
from tests.fuzz.promises import cut_up, no_timers, nothing_severe, promise, settle, unwatched

PATIENCE = 700.0
"""Seconds after which nobody waits for an answer any more."""
OTHER = make_server(3)
DIGEST = digest_of(b"some bytes")
EXPECTED = (FarmError, LinkFailed, TableError, CodecError, BadResponse, ConnectionLost, CancelledError)
REFUSALS = (commands.NotFirst, commands.NotNow, commands.BadRequest, commands.Conflict, commands.JoinRefused)


class Wire(Line):
    """The transport of a link of ours: the other side is who its certificate says."""

    accepts_memoryview = False
    taken = 0

    def __init__(self) -> None:
        super().__init__(STORES)

    def startTLS(self, contextFactory: Any) -> None:
        pass


@define
class Asked:
    """What one input is the answer to, and what came of it."""

    clock: Clock = field(factory=Clock)
    links: list[Any] = field(factory=list)
    """The protocols, in the order in which they were opened; the input goes to the first."""
    waiting: int = 0
    outcomes: list[str] = field(factory=list)
    faults: list[str] = field(factory=list)

    def open(self, protocol: Any) -> Any:
        self.links.append(protocol)
        protocol.makeConnection(Wire())
        return protocol

    def heed(self, asked: Deferred[Any], understood: Callable[[Any], object] = repr) -> None:
        """Whoever asked is told something, and can read it, or is told that it failed."""
        self.waiting += 1
        asked.addCallback(understood).addCallbacks(self._done, self._failed)

    def _done(self, told: Any) -> None:
        self.waiting -= 1
        self.outcomes.append(repr(told)[:500])

    def _failed(self, failure: Failure) -> None:
        self.waiting -= 1
        self.outcomes.append(type(failure.value).__name__)
        if not failure.check(*EXPECTED, *REFUSALS):
            self.faults.append(f"{failure.getErrorMessage()[:500]}\n{failure.getTraceback()}")


# -- the line protocol -----------------------------------------------------------------------------------


def _requests(asked: Asked) -> None:
    """Many at once, whose answers are read as commands read them."""
    client: LineClient = asked.open(LineClient())
    taken = hashlib.sha256()

    def read(reply: Reply) -> object:
        return reply.word, reply.words, sorted(reply.fields.items()), reply.parsed(), reply.data, reply.length

    asked.heed(client.say_hello(), read)
    asked.heed(client.request("LIST - - 5"), read)
    asked.heed(client.request("STAT home/a"), lambda reply: (reply.fields["size"], reply.fields["etag"]))
    asked.heed(client.request("FETCH home/a", sink=taken.update), lambda reply: (reply.length, taken.hexdigest()))
    given_up = client.request("STATUS")
    asked.heed(given_up, read)
    given_up.cancel()
    asked.heed(client.request("GET " + DIGEST.hex()), read)
    asked.heed(client.request("PUT " + DIGEST.hex() + " 10", (b"some bytes",)), read)
    asked.heed(client.quit())


def _watch(asked: Asked) -> None:
    """A server that follows the table over another one's client port."""

    def dial(reactor: Any, address: Address, **more: Any) -> Deferred[Any]:
        return succeed(asked.open(LineClient()))

    follower = FollowersWatch(asked.clock, _NoContexts(), lambda: [OTHER.client_address], dial)  # type: ignore[arg-type]

    async def follow() -> object:
        watch = await follower.open(b"files/", 5)
        seen: list[Batch] = []
        try:
            while True:
                seen.append(await watch.next())
        except TableError as error:
            return type(error).__name__, [(event.key, event.value) for batch in seen for event in batch.events]

    asked.heed(Deferred.fromCoroutine(follow()))


def _encrypted(asked: Asked) -> None:
    """The beginning of every link: STARTTLS, and a HELLO through it before the certificate is looked at."""

    def dial(reactor: Any, host: str, port: int, factory: Any, timeout: float) -> Deferred[Any]:
        return succeed(asked.open(factory.buildProtocol(None)))

    async def begin() -> object:
        client = await connect(asked.clock, OTHER.client_address, tls="a context", dial=dial)  # type: ignore[arg-type]
        assert client.hello is not None
        return (await client.auth("admin", "secret")).fields

    asked.heed(Deferred.fromCoroutine(begin()))


def _download(asked: Asked) -> None:
    """`chunkfarm get`, whatever it is told of the file."""
    client: LineClient = asked.open(LineClient())
    target = io.BytesIO()
    farm: Any = _Moved()
    download = Download(
        farm, "home/a", target, can_restart=True, on_size=lambda size: None, on_bytes=lambda count: None
    )
    asked.heed(Deferred.fromCoroutine(download._over(client)), lambda stat: (sorted(stat.items()), target.getvalue()))


class _Moved:
    def moved(self) -> None:
        pass


class _NoContexts(Shown):
    def client_factory(self) -> Any:
        return "a context"


# -- chunks ----------------------------------------------------------------------------------------------


def _chunks(ask: Callable[[ChunkClient], Deferred[Any]]) -> Callable[[Asked], None]:
    def begin(asked: Asked) -> None:
        def dial(reactor: Any, host: str, port: int, factory: Any, tls: Any, timeout: float) -> Deferred[Any]:
            return succeed(asked.open(factory.buildProtocol(None)))

        client = ChunkClient(asked.clock, _Trust(), dial)
        asked.heed(ask(client))

    return begin


class _Trust(Shown):
    def client_factory(self, protocols: Any = (), server_id: str = "") -> Any:
        return "a context"


# -- other servers -----------------------------------------------------------------------------------------


def _peers(ask: Callable[[Asked, Peers], None]) -> Callable[[Asked], None]:
    def begin(asked: Asked) -> None:
        def open_link(address: Address, factory: Any, timeout: float) -> Deferred[Any]:
            return succeed(asked.open(factory.buildProtocol(None)))

        # Whoever is asked about by another id has no address.
        known = {STORES: OTHER.peer_address}
        ask(asked, Peers(asked.clock, open_link, Shown().peer_of, known.get, lines=OurLine()))

    return begin


_ASKING = Asking(me=Candidate(stamp=5, server_id=ME), address=Address("10.0.0.1", 4101), farm=FARM)


def _probe(asked: Asked, peers: Peers) -> None:
    def read(answer: Found) -> object:
        return answer.outcome, answer.farm, answer.server_id, answer.first

    asked.heed(Deferred.fromCoroutine(probe(peers, OTHER.peer_address, _ASKING)), read)


def _survey(asked: Asked, peers: Peers) -> None:
    arguments = {"server": ME, "stamp": 5, "farm": FARM}
    asked.heed(Questions(peers, lambda: arguments).ask_at(OTHER.peer_address))


def _twin(asked: Asked, peers: Peers) -> None:
    asked.heed(find_twin(peers, STORES, "run3", [OTHER.peer_address]))


def _access(asked: Asked, peers: Peers) -> None:
    access = Access(None, lambda: False, peers, lambda: (OTHER,), asked.clock)  # type: ignore[arg-type]

    def read(principal: Principal) -> object:
        promise(principal.role in ("read", "write", "admin"), f"a key becomes {principal}")
        return principal

    asked.heed(access.authenticate("key", "secret"), read)


def _report(asked: Asked, peers: Peers) -> None:
    state = ServerState(server_id=ME, name="s1", stamp=1, incarnation="run1", phase="serving", farm_id=FARM)
    reporter = Reporter(
        state=state,
        make_report=lambda: Report(incarnation="run1"),
        own_row=lambda: make_server(1),
        table=_Led(),
        duties=None,  # type: ignore[arg-type]
        peers=peers,
        servers=lambda: (make_server(1), OTHER),
        learn=lambda server, address: None,
        clock=asked.clock,
        now=lambda: 77,
    )
    reporter._first = STORES

    def read(_: None) -> object:
        if not reporter.belongs:
            # Another one may be asked next time.
            promise(reporter._first != STORES, "a server is asked for ever that never answers what it is asked")
        told = reporter.risk.sets if reporter.risk is not None else None
        lost = unheld.pairs(reporter.unheld)
        return reporter.belongs, reporter.first, sorted(reporter.voters), reporter.short, told, lost

    asked.heed(reporter.report_now(), read)


class _Led:
    leader = ""
    is_leader = False
    has_quorum = True
    withheld = ""
    configuration = Configuration()


def _over_peers(ask: Callable[[TableOverPeers], Deferred[bytes]], read: Callable[[bytes], object]) -> Any:
    def begin(asked: Asked, peers: Peers) -> None:
        links = TableOverPeers(peers, peers, lambda prefix, revision: Deferred(), lambda: "", lambda: ())
        asked.heed(ask(links), read)

    return begin


def _at_risk(asked: Asked, peers: Peers) -> None:
    link = RiskLink(ME, peers, lambda holders, start: ((), None), lambda: STORES)
    asked.heed(link.ask(STORES, (STORES,), 5))


def _lost_files(asked: Asked, peers: Peers) -> None:
    asked.heed(RiskLink(ME, peers, lambda holders, start: ((), None), lambda: STORES).lost_files())


LINES: tuple[Callable[[Asked], None], ...] = (_requests, _watch, _encrypted, _download)
HTTP: tuple[Callable[[Asked], None], ...] = (
    _chunks(lambda client: client.get(OTHER, DIGEST)),
    _chunks(lambda client: client.get(OTHER, DIGEST, 2, 5)),
    _chunks(lambda client: client.have(OTHER, [DIGEST, DIGEST])),
    _chunks(lambda client: client.verified(OTHER, [DIGEST])),
    _chunks(lambda client: client.put(OTHER, DIGEST, b"some bytes")),
)
PEERS: tuple[Callable[[Asked], None], ...] = tuple(
    map(
        _peers,
        (
            _probe,
            _survey,
            _twin,
            _access,
            _report,
            _at_risk,
            _lost_files,
            _over_peers(lambda links: links.transact(STORES, b"x"), codec.decode_answer),
            _over_peers(lambda links: links.read(STORES, b"x"), codec.decode_page),
        ),
    )
)
WAYS = (*LINES, *HTTP, *PEERS)


class AnswersTarget:
    """What we are answered."""

    name = "answers"
    modules = (
        "chunkfarm.links",
        "chunkfarm.wire.lines",
        "chunkfarm.wire.http1",
        "chunkfarm.cli.download",
        "chunkfarm.finding",
        "chunkfarm.survey",
        "chunkfarm.access",
        "chunkfarm.reporter",
        "chunkfarm.said",
        "chunkfarm.table.codec",
    )
    separator = b"\n"

    def __init__(self) -> None:
        self.seeds = _seeds()
        self.tokens = _tokens()

    def run(self, data: bytes) -> None:
        """Whoever asked is told the same in whatever pieces it comes, and nobody waits for ever."""
        way, stream = _way(data)
        with nothing_severe(as_written=True):
            whole = _told(way, [stream])
            with unwatched():
                in_pieces = _told(way, cut_up(stream, 1))
        # Bytes behind an answer are a fault of the other side that is seen only if they come with it.
        together = way is _encrypted or (way in HTTP and whole == ["BadResponse"])
        alike = whole == in_pieces or together
        promise(alike, f"what is told depends on how the bytes were cut up:\n{whole}\n{in_pieces}")

    def live(self, data: bytes) -> None:
        way, stream = _way(data)
        with nothing_severe(as_written=True):
            _told(way, cut_up(stream, 2))

    def end(self) -> None:
        """Nothing lives on."""

    def changed(self, data: bytes, mutations: Mutations) -> bytes | None:
        """A line more, or a value of a box changed in its place."""
        number = data[0] % len(WAYS) if data else 0
        if number < len(LINES) + len(HTTP):
            lines = data.split(b"\n")
            at = mutations.random.randrange(len(lines))
            if mutations.random.random() < 0.5:
                lines.insert(at + 1, mutations.token())
            else:
                words = lines[at].split(b" ")
                place = mutations.random.randrange(len(words))
                words[place] = mutations.of_word(words[place])
                lines[at] = b" ".join(words)
            return data[:1] + b"\n".join(lines)[1:]
        boxes = _boxes_of(data[1:])
        if not boxes:
            return None
        box = mutations.random.choice(boxes)
        if box and mutations.random.random() < 0.8:
            place = mutations.random.randrange(len(box))
            key, value = box[place]
            box[place] = key, mutations.of_word(value) if mutations.random.random() < 0.6 else mutations.token()
        elif box and mutations.random.random() < 0.5:
            del box[mutations.random.randrange(len(box))]
        else:
            box.append((mutations.token()[:255] or b"x", mutations.token()))
        return data[:1] + b"".join(map(_box, boxes))


def _way(data: bytes) -> tuple[Callable[[Asked], None], bytes]:
    return (WAYS[data[0] % len(WAYS)], data[1:]) if data else (WAYS[0], b"")


def _told(way: Callable[[Asked], None], pieces: list[bytes]) -> list[str]:
    """What whoever asked was told; raises `Broken` if somebody was not, or in a way that nobody expects."""
    asked = Asked()
    way(asked)
    protocol = asked.links[0]
    for piece in pieces:
        if protocol.transport is not None and not _is_over(protocol):
            protocol.dataReceived(piece)
        settle(asked.clock)
        promise(_held(protocol) <= 3 * (LINE_BYTES_MAX + 65536) + 2 * len(piece), f"{_held(protocol)} bytes are kept")
    for link in asked.links:
        if link.transport is not None:
            link.connectionLost(Failure(ConnectionLost()))
    settle(asked.clock)
    for _ in range(round(PATIENCE)):
        if not asked.clock.getDelayedCalls():
            break
        asked.clock.advance(1.0)
        for link in asked.links:
            if _is_over(link) and link.transport is not None and not getattr(link, "_lost", None):
                link.connectionLost(Failure(ConnectionLost()))
    promise(not asked.faults, f"an answer brings about a fault: {asked.faults}")
    promise(not asked.waiting, f"{asked.waiting} wait for ever; the others were told {asked.outcomes}")
    no_timers(asked.clock)
    return asked.outcomes


def _is_over(protocol: Any) -> bool:
    transport = protocol.transport
    return bool(transport is None or getattr(transport, "over", False) or transport.disconnecting)


def _held(protocol: Any) -> int:
    if isinstance(protocol, LineClient):
        # What was collected of an answer is as long as it said, and no longer than one may be.
        return len(protocol._buffer)
    return len(getattr(protocol, "_unread", b"")) + len(getattr(protocol, "_input", b""))


# -- honest answers ----------------------------------------------------------------------------------------

_DATA = b"some bytes of a file"
_ETAG = etag_of(len(_DATA), 4096, Digests(digest_of(_DATA))).encode()
_FILE = b"FILE name=home/a size=20 modified=2026-11-22T10:00:00.123Z etag=%b chunksize=4096 chunks=1 revision=7" % _ETAG
_HELLO = b"OK chunkfarm/1 farm=%b name=s3 state=serving server=%b revision=7 chunksize=8388608" % (
    FARM.encode(),
    STORES.encode(),
)
_EVENT = b'EVENT 6 PUT FILE name=home/a size=20 more=1 value={"size": 20}\r\n'


def _line_seeds() -> list[tuple[int, bytes]]:
    waiting = _HELLO.replace(b"serving", b"waiting") + b'\r\nWAIT 2\r\nPEER 10.0.0.1:1 error="x"\r\nCURE y\r\nEND\r\n'
    rest = (
        b"FILES 1 revision=7 more\r\n%b\r\nEND\r\nOK %b\r\nDATA 20\r\n%bSTATUS 1\r\nphase=x\r\nEND\r\n"
        b"DATA 10\r\nsome bytesOK %b copies=1 holders=%b\r\nOK\r\n"
    ) % (_FILE, _FILE, _DATA, DIGEST.hex().encode(), STORES.encode())
    return [
        (0, _HELLO + b"\r\n" + rest),
        (0, waiting + rest),
        (0, _HELLO + b"\r\n" + b"".join(b"ERR notfound there is%%20no such file\r\n" for _ in range(7))),
        (0, b"ERR busy this server has too many connections\r\n"),
        (
            1,
            b"OK revision=5\r\n"
            + _EVENT
            + b"EVENT 6 DEL FILE name=home/b\r\nEVENT 7 NONE\r\nEVENT 9 PUT ROW key=files/%FF value=x\r\n",
        ),
        (1, b"OK revision=5\r\nEVENT 9 PUT ROW key=files/%FF value=x\r\n"),
        (1, b"OK revision=5\r\nEVENT 6 PART value=abc\r\nEVENT 6 PUT FILE name=home/a value=def\r\n"),
        (1, b"OK revision=5\r\nERR conflict changes before revision 99 are no longer kept; read, then watch again\r\n"),
        (1, b"ERR conflict changes before revision 99 are no longer kept; read, then watch again\r\n"),
        (2, b"OK\r\n"),
        (2, b"ERR waiting this server has no certificate yet\r\n"),
        (3, b"OK %b\r\nDATA 20\r\n%bOK %b\r\n" % (_FILE, _DATA, _FILE)),
        (3, b"OK %b\r\nERR syntax no\r\nOK %b\r\n" % (_FILE, _FILE)),
    ]


def _http_seeds() -> list[tuple[int, bytes]]:
    def told(body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
        return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), more, body)

    first = len(LINES)
    return [
        (first, told(b"some bytes")),
        (first, b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + told(b"notfound there is none\n", b"404 Not Found")),
        (first + 1, told(b"me by", b"206 Partial Content", b"Content-Range: bytes 2-6/10\r\n")),
        (first + 2, told(b"\0\0\0\x0a\0\0\0\0")),
        (first + 3, told(b"\0\0\0\0\0\0\0\x05")),
        (first + 4, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
        (first + 4, told(b"full no room\n", b"507 Insufficient Storage")),
    ]


def _peer_seeds() -> list[tuple[int, bytes]]:
    told = {
        "version": 1,
        "server": STORES,
        "state": "serving",
        "farm": FARM,
        "name": "s3",
        "stamp": 5,
        "incarnation": "run4",
        "generation": 3,
        "revision": 9,
        "first": {"id": server_id(2), "host": "10.0.0.2", "peer": 4101},
        "keyed": False,
        "proof": "",
        "journal": {"term": 3, "index": 17},
        "commits": True,
        "lines": [{"line": "1e" * 16, "index": 3, "term": 2}],
        "settled": True,
        "term_at": 3,
    }
    reported = {
        "term": 4,
        "first": STORES,
        "voters": [STORES],
        "learners": [],
        "revision": 9,
        "known": True,
        "short": 2,
        "drains": {STORES: {"chunks": 1, "left": 1}},
        "risk": {"sets": [{"holders": [STORES], "chunks": 1, "bytes": 2}]},
        "lost": {"chunks": 2, "at_least": True, "since": 5, "looked": 6},
    }
    lost = {
        "sets": [{"holders": [STORES], "files": 1, "at_least": False, "names": ["home/a"]}],
        "one": 1,
        "one_at_least": False,
        "two": 0,
        "two_at_least": True,
    }
    page = codec.encode_page(Page(9, (Row(b"files/a", b"{}", 5),), False))
    boxes = [
        {"answer": json.dumps(told).encode()},
        {"answer": json.dumps(told).encode()},
        {"answer": json.dumps(told).encode()},
        {"role": b"read", "prefix": b"lab/"},
        {"answer": json.dumps(reported).encode()},
        {"keys": bytes(16), "next": b""},
        {"answer": json.dumps(lost).encode()},
        {"answer": codec.encode_answer(codec.Answer(codec.AnswerKind.DONE, 5))},
        {"page": page},
    ]
    first = len(LINES) + len(HTTP)
    hint = json.dumps({"id": server_id(2), "host": "10.0.0.2", "peer": 4101}).encode()
    errors = [(b"NOT_FIRST", hint), (b"NOT_NOW", b"no leader"), (b"X", b"\x1b[2J"), (b"BAD_REQUEST", b"no")]
    seeds = []
    for number, box in enumerate(boxes):
        line = [(b"line", b"1e")]
        answer = _box([(b"_answer", b"1"), *((key.encode(), value) for key, value in box.items()), *line])
        seeds.append((first + number, answer))
        for code, why in errors:
            error = _box([(b"_error", b"1"), (b"_error_code", code), (b"_error_description", why), *line])
            seeds.append((first + number, error))
    seeds.append((first, _box([(b"_ask", b"1"), (b"_command", b"Probe"), (b"server", b"x")])))
    return seeds


def _seeds() -> tuple[bytes, ...]:
    return tuple(bytes((way,)) + told for way, told in (*_line_seeds(), *_http_seeds(), *_peer_seeds()))


def _tokens() -> tuple[bytes, ...]:
    words = """
        OK DATA END ERR EVENT PUT DEL PART NONE FILES TABLE WAIT more more=1 name= size= etag= chunksize= chunksize=0
        chunksize=-5 size=-1 size=1000000000000000000 revision= value= %1B[2J %zz %FF state=waiting 0 1 -1 20 busy
        conflict notfound Content-Length: 18446744073709551616 Transfer-Encoding:chunked Connection:close HTTP/1.1
        100 101 204 206 304 416 503 _answer _error _error_code _error_description _ask _command NOT_FIRST NOT_NOW
        answer role prefix keys next page true false null [] {} NaN Infinity 1e400 admin server
    """
    return (
        *(word.encode() for word in words.split()),
        b"EVENT 8 PART value=" + b"x" * 2000,
        b"EVENT 8 PUT FILE name=home/x more=1 value={}",
        b"EVENT " + b"9" * 5000 + b" NONE",
        b"ERR conflict changes before revision " + b"9" * 5000 + b" are no longer kept",
        b"HTTP/1.1 100 Continue\r\n\r",
        b"[" * 3000,
        b'{"a":' * 3000,
        b"9" * 5000,
        b'"\\ud800"',
        b'{"id": "x", "host": "y", "peer": Infinity}',
        b"\x00\x00",
        b"\xff\xff",
        STORES.encode(),
        FARM.encode(),
    )
