"""AMP boxes on the peer port: what servers, strangers and servers that were forgotten may send, messages of the
consensus among it, in whatever pieces it comes."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

from attrs import evolve, frozen
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.protocols import amp
from twisted.python.failure import Failure

from chunkfarm.links import commands
from chunkfarm.table import codec
from chunkfarm.table.framing import CodecError
from chunkfarm.table.interface import Compare, Delete, Put
from chunkfarm.table.raft_log import encode_configuration
from chunkfarm.table.records import Configuration, Entry, EntryKind, Message, MessageKind, SnapshotMeta
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.proof import JOINER, proof
from tests.builders import make_server, server_id
from tests.fuzz.mutations import Mutations
from tests.fuzz.peers import (
    EXPORTER,
    FARM,
    FORGOTTEN,
    JOIN_KEY,
    LEARNER,
    ME,
    NOW,
    STORES,
    UNKNOWN,
    Certificate,
    Founded,
    PeerServer,
    found,
)
from tests.fuzz.promises import cut_up, nothing_severe, promise, settle, unwatched

BOX_BYTES_MAX = 32 * (256 + 65536)
"""Bytes of a box that is not whole yet: as many keys as one may have, with the longest values."""
TIMERS_OF_TABLE = 3
"""Timers by which the table may have more, or fewer, after it has changed its role."""
ROWS_MAX = 300
"""Entries of the journal after which a living server is followed by a new one."""
SECONDS = 30.0
"""After which everything that somebody asked for has been answered, or given up."""

Pairs = list[tuple[bytes, bytes]]


@frozen
class Way:
    """Who is at the other end of the link."""

    certificate: str = ""
    founded: bool = True


WAYS = (Way(LEARNER), Way(), Way(STORES), Way(FORGOTTEN), Way(UNKNOWN), Way(LEARNER, founded=False))


class Handle:
    """Of a TLS connection, if it were one."""

    def export_keying_material(self, label: bytes, length: int, context: bytes) -> bytes:
        return EXPORTER[:length]


class Line(StringTransport):
    """A transport in memory that can be asked what a TLS one can."""

    def __init__(self, certificate: str) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "10.0.0.9", 5000))
        self.certificate = certificate
        self.over = False

    def write(self, data: bytes) -> None:
        # AMP answers what was asked before the link was ended, and transports do not mind.
        if not self.over:
            super().write(data)

    def getPeerCertificate(self) -> Certificate | None:
        return Certificate(self.certificate) if self.certificate else None

    def getHandle(self) -> Handle:
        return Handle()

    def abortConnection(self) -> None:
        self.over = True

    def loseConnection(self) -> None:
        self.over = True


class Link:
    """One connection to the peer port."""

    def __init__(self, server: PeerServer, certificate: str) -> None:
        self.clock = server.clock
        self.transport = Line(certificate)
        self.protocol: Any = server.factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        if not self.transport.over:
            self.protocol.dataReceived(data)
        settle(self.clock)
        if self.transport.over and self.protocol.transport is not None:
            self.protocol.connectionLost(Failure(ConnectionLost()))

    @property
    def held(self) -> int:
        box = self.protocol._box or {}
        return len(self.protocol._unread) + sum(len(key) + len(value) for key, value in box.items())

    @property
    def may_ask(self) -> bool:
        """Whether a box may begin here."""
        protocol = self.protocol
        return not (self.transport.over or protocol._unread or protocol._box is not None or protocol._key)

    def lose(self) -> None:
        if self.protocol.transport is not None:
            self.protocol.connectionLost(Failure(ConnectionLost()))


class BoxesTarget:
    """The peer port."""

    name = "boxes"
    modules = (
        "chunkfarm.links.boxes",
        "chunkfarm.links.commands",
        "chunkfarm.ports.peer",
        "chunkfarm.ports.answers",
        "chunkfarm.ports.callers",
        "chunkfarm.said",
        "chunkfarm.table",
    )
    separator = b"\x00\x00"

    def __init__(self) -> None:
        self._founded = found()
        self.seeds = _seeds()
        self.tokens = _tokens()
        self._living: dict[Way, PeerServer] = {}

    def run(self, data: bytes) -> None:
        """It is answered alike in whatever pieces it comes, and the server is as good as before."""
        way, stream = _way(data)
        with nothing_severe():
            whole, over, led = self._answers(way, [stream])
            with unwatched():
                in_pieces, over_too, _ = self._answers(way, cut_up(stream, 1))
        promise(over == over_too, f"whether the link ends depends on how the bytes were cut up: {over}")
        # AMP answers when it can, in any order. What was not answered when a link was ended is not answered, and a
        # message may put down the first in the middle of what the table was asked.
        alike = over or not led or Counter(whole) == Counter(in_pieces)
        promise(alike, f"the answers depend on how the bytes were cut up:\n{whole}\n{in_pieces}")

    def _answers(self, way: Way, pieces: list[bytes]) -> tuple[list[tuple[bytes, bytes, bytes]], bool, bool]:
        """Which answers came, whether the link was ended, and whether the server led all the time."""
        server = _make(way, self._founded)
        try:
            return self._answered(server, way, pieces)
        finally:
            server.end()

    def _answered(
        self, server: PeerServer, way: Way, pieces: list[bytes]
    ) -> tuple[list[tuple[bytes, bytes, bytes]], bool, bool]:
        timers, term = len(server.clock.getDelayedCalls()), server.table.term
        link = Link(server, way.certificate)
        for piece in pieces:
            link.send(piece)
            promise(link.held <= BOX_BYTES_MAX, f"{link.held} bytes are kept of a box")
        # What goes through the table takes a moment.
        server.clock.advance(0.5)
        link.send(b"")
        answers = _told(read_boxes(link.transport.value()))
        over = link.transport.over
        led = server.table.term == term and server.table.is_leader
        if link.may_ask:
            link.transport.clear()
            _asked_again(link)
        link.lose()
        server.clock.advance(SECONDS)
        _at_rest(server, timers)
        return answers, over, led

    def live(self, data: bytes) -> None:
        way, stream = _way(data)
        server = self._living.get(way)
        if server is None or server.table.last_index > ROWS_MAX or not server.table.is_leader:
            if server is not None:
                server.end()
            server = self._living[way] = _make(way, self._founded)
        with nothing_severe():
            link = Link(server, way.certificate)
            for piece in cut_up(stream, 2):
                link.send(piece)
            link.lose()
            server.clock.advance(1.0)

    def end(self) -> None:
        for server in self._living.values():
            server.end()
        self._living.clear()

    def changed(self, data: bytes, mutations: Mutations) -> bytes | None:
        """A box more or less, or a value changed in its place: what comes out is boxes again."""
        random = mutations.random
        boxes = _boxes_of(data[1:])
        if not boxes or random.random() < 0.15:
            boxes.insert(
                random.randint(0, len(boxes)), list(random.choice(_boxes_of(random.choice(_seeds_once())[1:])))
            )
        at = random.randrange(len(boxes))
        box = boxes[at]
        what = random.randrange(12)
        if what == 0:
            del boxes[at]
        elif what == 1 and box:
            del box[random.randrange(len(box))]
        elif what == 2:
            box.insert(random.randint(0, len(box)), (mutations.token()[:255] or b"x", mutations.token()))
        elif what == 3:
            boxes.append(list(box))
        elif box:
            made = [place for place, (_, value) in enumerate(box) if value[:1] in (b"\x01", b"\x11")]
            number = random.choice(made) if made and random.random() < 0.7 else random.randrange(len(box))
            key, value = box[number]
            better = _changed_payload(value, mutations) if random.random() < 0.7 else None
            box[number] = key, better if better is not None else mutations.of_word(value)
        return data[:1] + b"".join(map(_box, boxes))


def _way(data: bytes) -> tuple[Way, bytes]:
    return (WAYS[data[0] % len(WAYS)], data[1:]) if data else (WAYS[0], b"")


def _make(way: Way, founded: Founded) -> PeerServer:
    return PeerServer(founded) if way.founded else PeerServer(None, "starting")


def _box(pairs: Pairs) -> bytes:
    parts = [struct.pack("!H", len(part[:65535])) + part[:65535] for pair in pairs for part in (pair[0][:255], pair[1])]
    return b"".join(parts) + b"\x00\x00"


def _boxes_of(data: bytes) -> list[Pairs]:
    """The boxes that there are in bytes which may be none."""
    boxes: list[Pairs] = []
    strings: list[bytes] = []
    at = 0
    while at + 2 <= len(data):
        end = at + 2 + struct.unpack_from("!H", data, at)[0]
        string, at = data[at + 2 : end], end
        if string or len(strings) % 2:
            strings.append(string)
        else:
            boxes.append(list(zip(strings[::2], strings[1::2], strict=False)))
            strings = []
    return boxes


def read_boxes(told: bytes) -> list[dict[bytes, bytes]]:
    """The boxes that a server has written; raises `Broken` if they are none, or tell of a fault."""
    boxes = []
    at = 0
    while at < len(told):
        box: dict[bytes, bytes] = {}
        while True:
            promise(at + 2 <= len(told), "a box without an end")
            strings = []
            for _ in range(2):
                (length,) = struct.unpack_from("!H", told, at)
                strings.append(told[at + 2 : at + 2 + length])
                at += 2 + length
                if not strings[0]:
                    break
            if not strings[0]:
                break
            box[strings[0]] = strings[1]
        boxes.append(box)
        code, why = box.get(amp.ERROR_CODE, b""), box.get(amp.ERROR_DESCRIPTION, b"")
        promise(code != b"UNKNOWN" and b"has a fault" not in why, f"a fault for what a peer did: {box}")
    return boxes


def _told(boxes: list[dict[bytes, bytes]]) -> list[tuple[bytes, bytes, bytes]]:
    """Of each box whom it answers, and how: what else stands in it may be drawn anew."""
    return [(box.get(amp.ANSWER, b""), box.get(amp.ERROR, b""), box.get(amp.ERROR_CODE, b"")) for box in boxes]


def _asked_again(link: Link) -> None:
    link.send(_PROBE)
    told = read_boxes(link.transport.value())
    promise(told and told[-1].get(amp.ANSWER) == b"probe", f"the next question is answered {told}")


def _at_rest(server: PeerServer, timers: int) -> None:
    """Nothing is left of a link that is gone, the table lives, and a new link is answered."""
    promise(not server.fatal, f"the process would end: {server.fatal}")
    promise(not server.factory.connections and not server.factory.strangers, "a link that is gone is still counted")
    left = len(server.clock.getDelayedCalls())
    promise(left <= timers + TIMERS_OF_TABLE, f"{left - timers} timers are left: {server.clock.getDelayedCalls()}")
    link = Link(server, "")
    _asked_again(link)
    link.lose()
    link = Link(server, STORES)
    link.send(_question(b"again", b"Report", report=b'{"incarnation": "run3", "free": 1, "used": 1}'))
    told = read_boxes(link.transport.value())
    promise(len(told) == 1, f"a server that reports is answered {told}")
    link.lose()


def _question(tag: bytes, command: bytes, **arguments: bytes) -> bytes:
    return _box(
        [
            (b"_ask", tag),
            (b"_command", command),
            (b"line", b"1e"),
            *((key.encode(), value) for key, value in arguments.items()),
        ]
    )


_PROBE = _question(b"probe", b"Probe", server=STORES.encode(), stamp=b"5", farm=FARM.encode())


# -- payloads that are made of parts --------------------------------------------------------------------


def _changed_payload(value: bytes, mutations: Mutations) -> bytes | None:
    """A message of the core, a transaction or a page with one part changed; None if it is none of them."""
    try:
        if value[:1] == b"\x01":
            message = codec.decode_consensus(value)
            assert isinstance(message, Message)
            return codec.encode_message(_changed_message(message, mutations))
        if value[:1] == b"\x11":
            request = codec.decode_request(value)
            assert isinstance(request, codec.Transaction)
            return codec.encode_request(_changed_transaction(request, mutations))
    except (CodecError, struct.error, UnicodeError):
        pass
    return None


_NUMBERS = ("term", "log_index", "log_term", "commit", "hint_index", "hint_term", "context", "answer", "life")
_FLAGS = ("reject", "withheld", "transfer")


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    return values


def _changed_message(message: Message, mutations: Mutations) -> Message:
    random = mutations.random
    what = random.randrange(8)
    if what < 3:
        name = random.choice(_NUMBERS)
        near = getattr(message, name) + random.choice((-1, 1, 2))
        number = near if random.random() < 0.7 else mutations.number()
        return evolve(message, **_fields({name: max(0, min(number, 2**63 - 1))}))
    if what == 3:
        name = random.choice(_FLAGS)
        return evolve(message, **_fields({name: not getattr(message, name)}))
    if what == 4:
        return evolve(message, kind=random.choice(list(MessageKind)))
    if what == 5:
        sender, to = random.choice((LEARNER, STORES, ME, "")), random.choice((ME, LEARNER))
        return evolve(message, sender=sender, to=to)
    last = message.entries[-1] if message.entries else Entry(message.log_term, message.log_index, EntryKind.EMPTY, b"")
    if what == 6 and message.entries:
        return evolve(message, entries=message.entries[:-1])
    kind = random.choice(list(EntryKind))
    return evolve(message, kind=MessageKind.APPEND, entries=(*message.entries, _entry(last, kind, mutations)))


def _entry(last: Entry, kind: EntryKind, mutations: Mutations) -> Entry:
    random = mutations.random
    names = [ME, LEARNER, STORES, "x"]
    data = b""
    if kind is EntryKind.CONFIGURATION:
        voters = random.sample(names, random.randint(0, 3))
        data = encode_configuration(Configuration(voters, random.sample(names, random.randint(0, 2))))
    elif kind is EntryKind.DATA:
        data = random.choice((_TRANSACTION, codec.encode_request(codec.OpenSession("x")), mutations.token(), b""))
    term = min(last.term + random.choice((0, 0, 1, 2)), 2**62)
    return Entry(term, min(last.index + random.choice((1, 1, 1, 2)), 2**62), kind, data)


def _changed_transaction(request: codec.Transaction, mutations: Mutations) -> codec.Transaction:
    random = mutations.random
    what = random.randrange(4)
    if what == 0:
        name = random.choice(("epoch", "number", "acknowledged"))
        return evolve(request, **_fields({name: min(mutations.number(), 2**63 - 1)}))
    key = random.choice(_KEYS) if random.random() < 0.7 else mutations.token()[:2000]
    if what == 1:
        number = min(mutations.number(), 2**63 - 1)
        return evolve(request, compares=(*request.compares, Compare(key, random.choice(("==", "<", ">")), number)))
    if what == 2:
        return evolve(request, operations=(*request.operations, Delete(key)))
    return evolve(request, operations=(*request.operations, Put(key, mutations.token())))


_KEYS = (
    b"servers/" + ME.encode(),
    b"servers/" + LEARNER.encode(),
    b"servers/" + b"f" * 32,
    b"farm/options",
    b"farm/generation",
    b"farm/epoch",
    b"farm/lines",
    b"farm/export",
    b"farm/join",
    b"farm/barred/" + STORES.encode(),
    b"files/lab/a",
    b"secret/ca",
    b"keys/admin",
    b"",
)
_TRANSACTION = codec.encode_request(
    codec.Transaction("c", 7, 1, 0, (Compare(b"files/lab/a", "==", 0),), (Put(b"files/lab/a", b"{}"),))
)


def _message(kind: MessageKind, **fields: Any) -> bytes:
    values = {"sender": LEARNER, "to": ME, "term": 2, "log_index": 8, "log_term": 1, **fields}
    return codec.encode_message(Message(kind=kind, **values))


def _one_way(payload: bytes) -> bytes:
    return _box([(b"_command", b"Consensus"), (b"line", b"1e"), (b"payload", payload)])


def _page(**fields: Any) -> bytes:
    meta = SnapshotMeta(100, 2, Configuration({ME, LEARNER}))
    values = {"stream": 1, "sequence": 0, "term": 3, "meta": meta, "records": b"", **fields}
    return codec.encode_snapshot_page(codec.SnapshotPage(**values))


_ONCE: list[tuple[bytes, ...]] = []


def _seeds_once() -> tuple[bytes, ...]:
    return _ONCE[0]


def _seeds() -> tuple[bytes, ...]:
    joiner = Identity.provisional(server_id(9), NOW)
    row = make_server(9).to_value()
    follow = Configuration({ME, LEARNER})
    change = Entry(2, 9, EntryKind.CONFIGURATION, encode_configuration(follow))
    questions = [
        _question(b"1", b"Probe", server=STORES.encode(), stamp=b"5", farm=FARM.encode(), version=b"1", proof=b"p" * 32)
        + _question(
            b"2", b"Probe", server=LEARNER.encode(), stamp=b"5", farm=b"", host=b"10.0.0.2", peer=b"4101", index=b"3"
        ),
        _question(
            b"1",
            b"Join",
            version=b"1",
            farm=FARM.encode(),
            proof=proof(JOIN_KEY, JOINER, EXPORTER),
            request=joiner.signing_request(),
            row=row,
        ),
        _question(b"1", b"Join", version=b"1", farm=b"", proof=b"", request=b"", row=row, invite=b"0" * 16),
        _question(b"1", b"Renew", request=joiner.signing_request()),
        _question(
            b"1",
            b"Report",
            report=b'{"incarnation": "run2", "free": 5, "used": 6, "full": false, "revision": 3, "note": "n", '
            b'"short": 1, "missed": 2, "drain": {"chunks": 1, "left": 1, "paused": ""}, '
            b'"risk": {"sets": [{"holders": ["%s"], "chunks": 1, "bytes": 2}]}}' % ME.encode(),
        )
        * 2,
        _question(b"1", b"PutServer", row=make_server(2).to_value()),
        _question(b"1", b"PutServer", row=make_server(3, host="10.0.0.3").to_value()),
        _question(b"1", b"GetServer", server=ME.encode()) + _question(b"2", b"GetServer", server=b"x"),
        _question(b"1", b"GetTable", request=codec.encode_read(codec.ReadRequest(b"servers/", b"", 10))),
        _question(b"1", b"Read", request=codec.encode_read(codec.ReadRequest(b"", b"files/", 100))),
        _question(b"1", b"PutTable", block=b"TABLE 0 revision=5\r\nEND\r\n"),
        _question(b"1", b"Transact", request=codec.encode_request(codec.OpenSession("c")))
        + _question(b"2", b"Transact", request=_TRANSACTION),
        _question(b"1", b"Referenced", digests=b"d" * 64),
        _question(b"1", b"Authenticate", key=b"admin", proof=b"p" * 32),
        _question(b"1", b"Forget", server=STORES.encode()) + _question(b"2", b"JoinKey"),
        _question(b"1", b"Consensus", payload=_page())
        + _question(b"2", b"Consensus", payload=_page(sequence=1, last=True)),
        _question(b"1", b"AtRisk", holders=STORES.encode(), start=bytes(8)) + _question(b"2", b"LostFiles"),
        _question(b"1", b"SealKey", digest=b"0a" * 32),
        _box([(b"_answer", b"1"), (b"x", b"y")]),
        _box([(b"_error", b"1"), (b"_error_code", b"X"), (b"_error_description", b"no")]),
        _question(b"1", b"StartTLS"),
    ]
    messages = [_one_way(_message(kind)) for kind in MessageKind]
    messages += [
        _one_way(_message(MessageKind.APPEND, log_index=8, log_term=1, entries=(change,), commit=9)) * 2,
        _one_way(_message(MessageKind.VOTE, term=3, transfer=True)) + _one_way(_message(MessageKind.HEARTBEAT, term=3)),
        _one_way(_message(MessageKind.SNAPSHOT, snapshot=SnapshotMeta(100, 2, follow))),
    ]
    both = [*questions, *messages]
    seeds = tuple(
        bytes((way,)) + script for way in range(len(WAYS)) for script in (both if way in (0, 2) else questions[:9])
    )
    _ONCE[:] = [seeds]
    return seeds


def _tokens() -> tuple[bytes, ...]:
    names = [
        command.commandName
        for command in vars(commands).values()
        if isinstance(command, type) and issubclass(command, amp.Command)
    ]
    arguments = {
        name
        for command in vars(commands).values()
        if isinstance(command, type) and issubclass(command, amp.Command)
        for name, _ in command.arguments
    }
    return (
        *sorted(set(names)),
        *sorted(arguments),
        *_KEYS,
        b"_ask",
        b"_command",
        b"_answer",
        b"_error",
        b"line",
        b"1e",
        b"2f",
        b"\x00\x00",
        b"\xff\xff",
        b"-1",
        b"true",
        b"null",
        b"{}",
        b"[]",
        b'{"risk": 1}',
        b'{"drain": []}',
        b"[" * 3000,
        b"9" * 5000,
        b'{"free": 1e400}',
        b'"\\ud800"',
        b"\xc3\xa9",
        b"\x80",
        ME.encode(),
        LEARNER.encode(),
        STORES.encode(),
        FARM.encode(),
        make_server(3).to_value(),
        _TRANSACTION,
        *(_message(kind) for kind in MessageKind),
        _page(),
        _page(sequence=1, last=True, count=1, digest=b"d" * 32),
        codec.encode_record(codec.SessionRecord("c", 1, 2, 1)),
    )
