"""The client's end of the line protocol, which `chunkfarm.ports.client` describes: requests, bytes and watches.

    client = await connect(reactor, address, tls=contexts.client_factory(), check=check)
    await client.auth(key_id, secret)
    reply = await client.request("STAT home/a")

Requests may be made without waiting for answers; they are sent and answered in order.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.errors import CODES, FarmError, InvalidRequest
from chunkfarm.links.line_watch import LineWatch, compacted
from chunkfarm.links.rows import parse_row
from chunkfarm.model import KIB, Address
from chunkfarm.table.interface import IWatch
from chunkfarm.wire import transport as wire_transport
from chunkfarm.wire.lines import LineBuffer, parse_fields, quote, text_of

CONNECT_TIMEOUT = 5.0
"""Seconds to reach a server: a few lost packets pass, and a dead machine does not hold up who tries the next."""
WRITE_PIECE = 256 * KIB
"""Bytes of a payload given to the transport at a time."""
BLOCK_LINES_MAX = 100_000
"""Lines of one block: more than any server answers, so that a broken one cannot fill the memory."""
BLOCK_CHARACTERS_MAX = 64 * 1024 * KIB
"""The same in characters: a thousand of the longest names, percent-encoded, take three of these megabytes."""
NUMBER_DIGITS_MAX = 18
"""Of every number in this protocol."""
DATA_COLLECTED_MAX = 64 * 1024 * KIB
"""Bytes of an answer kept in memory where no sink takes them: one chunk of the largest size."""

Piece = bytes | bytearray | memoryview
Sink = Callable[[bytes | memoryview], "Deferred[None] | None"]
"""Takes bytes as they come; while a Deferred that it returned waits, no more are read."""


class LinkLost(FarmError):
    """The connection ended before the answer came; whether the request took effect is not known."""

    code = "busy"
    http_status = 503


class NotUnderstood(FarmError):
    """The other side does not speak this protocol, or breaks it."""


def error_of(line: str) -> FarmError:
    """The error that `ERR <code> <sentence>` stands for."""
    _, code, sentence = [*line.split(" ", 2), "", ""][:3]
    with contextlib.suppress(InvalidRequest):
        sentence = parse_fields(f'x="{sentence}"')[1].get("x", sentence)
    return CODES.get(code, FarmError)(sentence or code)


class Fields(dict[str, str]):
    """Fields of an answer. One that is missing shows that the other side does not speak this protocol."""

    def __missing__(self, name: str) -> str:
        raise NotUnderstood(f"the server's answer does not say {name}")

    def number(self, name: str, least: int = 0, most: int = 10**NUMBER_DIGITS_MAX - 1) -> int:
        """The number of that name; raises `NotUnderstood` unless it is one in these bounds."""
        word = self[name]
        found = int(word) if word.isascii() and word.isdigit() and len(word) <= NUMBER_DIGITS_MAX else -1
        if not least <= found <= most:
            raise NotUnderstood(f"the server's answer gives {word[:40]!r} for {name}")
        return found


@frozen
class Reply:
    """A good answer. `text` is what follows OK, the count of a block, or the length of DATA."""

    word: str
    text: str
    rows: tuple[str, ...] = ()
    data: bytes = b""
    """Of a DATA answer whose bytes no sink took."""
    length: int = 0

    @property
    def words(self) -> list[str]:
        """The words of the text that are no fields."""
        return parse_fields(self.text)[0]

    @property
    def fields(self) -> Fields:
        """The fields of the text."""
        return Fields(parse_fields(self.text)[1])

    @property
    def stale(self) -> int:
        """The revision as of which this was told because nobody who knows the last state answers; 0 if somebody did."""
        fields = self.fields
        return fields.number("stale") if "stale" in fields else 0

    def parsed(self) -> list[dict[str, str]]:
        """The rows' fields."""
        return [Fields(parse_row(row)[1]) for row in self.rows]


@define(eq=False)
class Request:
    """A request and what has come of its answer."""

    line: str
    deferred: Deferred[Reply]
    sink: Sink | None = None
    word: str = ""
    text: str = ""
    rows: list[str] = field(factory=list)
    rows_left: int = 0
    characters: int = 0
    """Of the rows."""
    length: int = 0
    left: int = 0
    """Bytes of DATA that have not come yet."""
    collected: bytearray = field(factory=bytearray)
    in_block: bool = False
    dropped: bool = False
    """Nobody waits for the answer any more."""

    def succeed(self) -> None:
        if not self.dropped:
            self.dropped = True
            self.deferred.callback(Reply(self.word, self.text, tuple(self.rows), bytes(self.collected), self.length))

    def fail(self, error: Exception) -> None:
        if not self.dropped:
            self.dropped = True
            self.deferred.errback(error)


@implementer(IPushProducer)
class LineClient(Protocol):
    """One link to a client port. `on_activity` is called whenever bytes come, or leave towards the network."""

    def __init__(self) -> None:
        self.on_activity: Callable[[], None] = lambda: None
        self.address: Address | None = None
        self.hello: Reply | None = None
        """The last answer to a HELLO."""
        self._buffer = LineBuffer()
        self._requests: deque[Request] = deque()
        self._out: deque[Piece] = deque()
        self._write_paused = False
        self._read_holds = 0
        self._reading = False
        self._closing = False
        """This end hangs up: nothing that comes is looked at."""
        self._watch: LineWatch | None = None
        self._last_words: FarmError | None = None
        self._lost: LinkLost | None = None
        self._when_lost: list[Deferred[None]] = []

    # What a user of the link does.

    def request(self, line: str, payload: Iterable[Piece] = (), sink: Sink | None = None) -> Deferred[Reply]:
        """Send a command, with its payload right behind it.

        The payload's pieces are not copied and must not change until the answer has come. `sink` takes the
        bytes of a DATA answer. Fails with the class of `errors.CODES` that an ERR stands for, with
        `LinkLost`, or with `NotUnderstood`. After a cancel the answer is still read, and dropped.
        """
        if self._lost is not None or self._closing:
            return fail(self._lost or LinkLost("the link was closed"))
        assert "\n" not in line and "\r" not in line, "words are quoted before they are put into a line"
        try:
            written = f"{line}\r\n".encode()
        except UnicodeEncodeError:
            # Words of a command line may be any bytes.
            return fail(InvalidRequest("a line is UTF-8 text"))

        def cancel(_: Deferred[Reply]) -> None:
            request.dropped = True
            request.sink = None
            request.deferred.errback(CancelledError())

        request = Request(line, Deferred(cancel), sink)
        self._requests.append(request)
        self._out.append(written)
        self._out.extend(piece for piece in payload if len(piece))
        self._write_some()
        return request.deferred

    def say_hello(self) -> Deferred[Reply]:
        """HELLO; a waiting server's PEER and CURE lines are the reply's rows."""

        def keep(reply: Reply) -> Reply:
            self.hello = reply
            return reply

        return self.request("HELLO").addCallback(keep)

    def starttls(self, tls: wire_transport.ContextSource, check: Callable[[Any], object]) -> Deferred[Reply]:
        """Encrypt, and let `check(transport)` judge the server before anything else is said.

        Fires with the answer to a HELLO that came through TLS. What `check` raises closes the link.
        """
        return Deferred.fromCoroutine(self._starttls(tls, check))

    async def _starttls(self, tls: wire_transport.ContextSource, check: Callable[[Any], object]) -> Reply:
        assert not self._requests, "STARTTLS stands alone"
        await self.request("STARTTLS")
        transport: Any = self.transport
        if len(self._buffer):
            # Slipped in by somebody in between, or it would have come encrypted.
            self.lose()
            raise NotUnderstood("the server sent something between STARTTLS and the handshake")
        self.pauseProducing()
        transport.unregisterProducer()
        transport.startTLS(tls)
        transport.registerProducer(self, True)
        self.resumeProducing()
        # The handshake is over when an answer has come through it. HELLO gives nothing away.
        reply = await self.say_hello()
        try:
            check(transport)
        except BaseException:
            self.lose()
            raise
        return reply

    def auth(self, key_id: str, secret: str) -> Deferred[Reply]:
        """AUTH; fails with `errors.AuthenticationFailed`."""
        return self.request(f"AUTH {quote(key_id)} {quote(secret)}")

    def watch(self, prefix: bytes, from_revision: int | None = None) -> Deferred[IWatch]:
        """Watch the table; the answer is an `IWatch`, whose `next` gives whole transactions.

        None as revision is "from now on". Fails with `Compacted`, or as `request` does. One watch a link.
        """
        assert self._watch is None, "one watch a link"
        words = ["WATCH", quote(prefix.decode()) or "-"]
        if from_revision is not None:
            words.append(str(from_revision))
        watch = LineWatch(self)
        self._watch = watch

        def begun(reply: Reply) -> IWatch:
            return watch

        def failed(failure: Failure) -> Failure:
            if self._watch is watch:
                self._watch = None
            error = failure.value
            if isinstance(error, FarmError) and (told := compacted(error)) is not None:
                return Failure(told)
            return failure

        return self.request(" ".join(words)).addCallbacks(begun, failed)

    @property
    def owed(self) -> bool:
        """Whether an answer is due."""
        return bool(self._requests)

    def lose(self, reason: str = "") -> None:
        """Close the link, without waiting for answers, which fail with `reason`."""
        if self._lost is None and not self._closing:
            self._closing = True
            if reason:
                self._last_words = LinkLost(reason)
            transport: Any = self.transport
            transport.unregisterProducer()
            transport.abortConnection()

    def quit(self) -> Deferred[None]:
        """QUIT, and fires when the link is gone."""
        gone = self.when_lost()
        if self._lost is None:
            self.request("QUIT").addCallbacks(lambda _: self._hang_up(), lambda _: None)
        return gone

    def when_lost(self) -> Deferred[None]:
        """Fires when the link is gone (at once if it is)."""
        if self._lost is not None:
            return succeed(None)
        self._when_lost.append(Deferred())
        return self._when_lost[-1]

    def _hang_up(self) -> None:
        self._closing = True
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    # Writing.

    def _write_some(self) -> None:
        transport: Any = self.transport
        keeps = getattr(transport, "accepts_memoryview", False)
        while self._out and not self._write_paused and not self._closing and self._lost is None:
            piece = self._out.popleft()
            if len(piece) > WRITE_PIECE:
                view = memoryview(piece)
                self._out.appendleft(view[WRITE_PIECE:])
                piece = view[:WRITE_PIECE]
            transport.write(piece if keeps and isinstance(piece, memoryview) else bytes(piece))
            self.on_activity()

    def pauseProducing(self) -> None:
        self._write_paused = True

    def resumeProducing(self) -> None:
        self._write_paused = False
        self.on_activity()
        self._write_some()

    def stopProducing(self) -> None:
        self._out.clear()

    # Reading.

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        self.on_activity()
        self._buffer.feed(data)
        self._read()

    def _read(self) -> None:
        if self._reading:
            return
        self._reading = True
        try:
            while self._read_holds == 0 and not self._closing and self._lost is None and self._read_one():
                pass
        except FarmError as error:
            self._last_words = NotUnderstood(f"the server's answer cannot be understood: {error.sentence}")
            self.lose()
        finally:
            self._reading = False
        if self._watch is not None:
            self._watch.deliver()

    def _read_one(self) -> bool:
        """Take one line or one piece; whether there was one."""
        request = self._requests[0] if self._requests else None
        if request is not None and request.left:
            return self._take_data(request)
        line = self._buffer.line()
        if line is None:
            return False
        text = text_of(line)
        if request is not None and request.in_block:
            self._block_line(request, text)
        elif text.startswith("EVENT "):
            if self._watch is not None:
                self._watch.add(text)
        elif request is None:
            if not text.startswith("ERR "):
                raise NotUnderstood(f"nobody asked for {text[:80]!r}")
            # The server's reason for ending the link, which it does next.
            self._last_words = error_of(text)
        else:
            self._head(request, text)
        return True

    def _head(self, request: Request, text: str) -> None:
        if text.startswith("ERR "):
            self._requests.popleft()
            request.fail(error_of(text))
            return
        word, _, rest = text.partition(" ")
        if request.word == "OK":
            # The block that a waiting server's HELLO goes on with.
            request.in_block, request.rows_left = True, _count(rest)
            return
        request.word, request.text = word, rest
        if word == "OK":
            if request.line != "HELLO" or request_state(rest) != "waiting":
                self._done(request)
        elif word == "DATA":
            request.length = request.left = _count(rest)
            if request.sink is None and not request.dropped and request.length > DATA_COLLECTED_MAX:
                raise NotUnderstood("more bytes than were asked for")
            if not request.length:
                self._done(request)
        else:
            request.in_block, request.rows_left = True, _count(rest)
            request.text = rest.partition(" ")[2]
            if request.rows_left > BLOCK_LINES_MAX:
                raise NotUnderstood("more lines than were asked for")

    def _block_line(self, request: Request, text: str) -> None:
        if request.rows_left:
            request.rows_left -= 1
            request.characters += len(text)
            if request.characters > BLOCK_CHARACTERS_MAX:
                raise NotUnderstood("a block that is longer than any")
            if not request.dropped:
                request.rows.append(text)
        elif text == "END":
            self._done(request)
        else:
            raise NotUnderstood(f"END is missing before {text[:80]!r}")

    def _done(self, request: Request) -> None:
        self._requests.popleft()
        request.succeed()

    def _take_data(self, request: Request) -> bool:
        piece = self._buffer.take(request.left)
        if not len(piece):
            return False
        request.left -= len(piece)
        waits = None
        if request.sink is not None:
            try:
                waits = request.sink(piece)
            except Exception:
                # The rest cannot be delivered, and the link is out of step without it.
                self._requests.popleft()
                if not request.dropped:
                    request.dropped = True
                    request.deferred.errback(Failure())
                self.lose()
                return False
        elif not request.dropped:
            request.collected += piece
        if waits is not None and not waits.called:
            self.hold_reading()
            waits.addBoth(lambda _: self._sink_ready(request))
        elif not request.left:
            self._done(request)
        return True

    def _sink_ready(self, request: Request) -> None:
        if not request.left and self._requests and self._requests[0] is request:
            self._done(request)
        self.release_reading()

    def hold_reading(self) -> None:
        """Read no further until `release_reading`; may be nested."""
        self._read_holds += 1
        if self._read_holds == 1 and self._lost is None:
            transport: Any = self.transport
            transport.pauseProducing()

    def release_reading(self) -> None:
        """Undo one `hold_reading`."""
        self._read_holds -= 1
        if self._read_holds == 0 and self._lost is None:
            transport: Any = self.transport
            transport.resumeProducing()
            self._read()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        why = self._last_words.sentence if self._last_words is not None else reason.getErrorMessage()
        self._lost = LinkLost(f"the link was lost: {why.rstrip('.')}")
        self._out.clear()
        requests, self._requests = self._requests, deque()
        for request in requests:
            request.fail(self._last_words if isinstance(self._last_words, NotUnderstood) else self._lost)
        if self._watch is not None:
            self._watch.lost(self._last_words or self._lost)
        waiting, self._when_lost = self._when_lost, []
        for gone in waiting:
            gone.callback(None)

    def end_watch(self, watch: LineWatch) -> None:
        """Say UNWATCH, if this is the watch that runs."""
        if self._watch is watch:
            self._watch = None
            if self._lost is None and not self._closing:
                self.request("UNWATCH").addErrback(lambda _: None)


def _count(text: str) -> int:
    word = text.partition(" ")[0]
    if not (word.isascii() and word.isdigit() and len(word) <= NUMBER_DIGITS_MAX):
        raise NotUnderstood(f"a count was expected, not {text[:80]!r}")
    return int(word)


def request_state(hello: str) -> str:
    """The state in the text of a HELLO's OK."""
    return parse_fields(hello)[1].get("state", "")


class LineClientFactory(ClientFactory):
    """Makes one `LineClient`."""

    noisy = False

    def buildProtocol(self, addr: object) -> LineClient:
        return LineClient()


Connect = Callable[..., Deferred[Any]]
"""As `wire.transport.connect`: (reactor, host, port, factory, timeout=) -> Deferred[protocol]."""


def connect(
    reactor: Any,
    address: Address,
    *,
    tls: wire_transport.ContextSource | None,
    check: Callable[[Any], object] = lambda transport: None,
    timeout: float = CONNECT_TIMEOUT,
    dial: Connect = wire_transport.connect,
) -> Deferred[LineClient]:
    """A link to a client port, encrypted and checked if `tls` is given; its `hello` is filled in.

    `timeout` (seconds) holds for the connection and again for the first answers. Fails with Twisted's
    `ConnectError` and its kinds, with what `check` raises, or as `LineClient.request` does.
    """
    return Deferred.fromCoroutine(_connect(reactor, address, tls, check, timeout, dial))


async def _connect(
    reactor: Any,
    address: Address,
    tls: wire_transport.ContextSource | None,
    check: Callable[[Any], object],
    timeout: float,
    dial: Connect,
) -> LineClient:
    client = await dial(reactor, address.host, address.port, LineClientFactory(), timeout=timeout)
    assert isinstance(client, LineClient)
    client.address = address
    patience = reactor.callLater(timeout, client.lose)
    try:
        await (client.say_hello() if tls is None else client.starttls(tls, check))
    except BaseException:
        client.lose()
        raise
    finally:
        if patience.active():
            patience.cancel()
    return client
