"""One connection of the file port: requests out of bytes, answers into bytes, and the time all that may take.

A connection is in one of four states:

- WAITING: between requests, or in the middle of a head.
- BODY: a request is being answered, and bytes of its body are still to come.
- ANSWERING: the whole request is here, its answer is not complete.
- ENDED: the last answer is on its way, or the connection is lost. Nothing is read any more.

Bytes that come before they are wanted stay where they are, and the transport stops reading: at most one
read is kept. What a request means is for `routes` to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.protocol import connectionDone as _done
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.errors import Busy, FarmError, InvalidRequest
from chunkfarm.model import KIB
from chunkfarm.ports.files.answers import Answer, TooSlow, refusal
from chunkfarm.ports.files.requests import Request, Session
from chunkfarm.ports.files.sending import Counted, CutShort, WhenDrained
from chunkfarm.wire.http1 import (
    EMPTY_LINE,
    HEAD_END,
    STATUS_LINES,
    CountedBody,
    HeadTooLarge,
    RequestHead,
    parse_request,
)
from chunkfarm.wire.http1_rules import split_target
from chunkfarm.wire.pump import PieceSource, PumpStopped, pump

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from chunkfarm.ports.files.factory import FileFactory

QUEUED_MAX = 256 * KIB
"""Bytes of answers not sent yet, above which the next pipelined request waits."""
JOINED_BYTES_MAX = 16 * KIB
"""A body up to the size of a TLS record is joined to its head, which is cheaper than a second write."""

WAITING, BODY, ANSWERING, ENDED = "waiting", "body", "answering", "ended"

_NEVER = float("inf")


class FileProtocol(Protocol):
    """HTTP/1.1, server side."""

    _log = Logger()

    def __init__(self, factory: FileFactory, *, turned_away: bool = False, on_trust: bool = False) -> None:
        """`turned_away`: there is no place for it. `on_trust`: it has one that is kept for servers of this farm."""
        self._files = factory
        self._limits = factory.limits
        self._turned_away = turned_away
        self._on_trust = on_trust
        self._clock = factory.clock
        self._state = WAITING
        self._input = b""
        self._offset = 0
        """Where in `_input` what has not been used yet begins."""
        self._searched = 0
        """How many bytes after that hold no end of a head."""
        self._turning = False
        self._next_turn: IDelayedCall | None = None
        """In which the rest of what was read of a body is taken."""
        self._reading = True
        self._draining = False
        self._request: Request | None = None
        self._running: Deferred[Any] | None = None
        self._counted: Counted | None = None
        self._head_written = False
        self._close = False
        """Whether the connection ends with the answer under way."""
        self._head_only = False
        """Whether that answer has no body, since HEAD was asked."""
        self._began = 0
        """Requests begun in this turn."""
        self._in_head = False
        self._deadline = _NEVER
        self._body_bytes = 0
        self._body_since = 0.0
        self._moved = 0
        self._moved_at = 0.0
        """How many bytes of answers were taken, and when that was looked at."""
        self._started = 0.0
        self._status = 0

    # From the transport.

    def connectionMade(self) -> None:
        """Somebody connected; what they say comes after the handshake."""
        assert self.transport is not None
        self._session = Session(self._certificate, str(getattr(self.transport.getPeer(), "host", "")))
        if self._turned_away or self._on_trust:
            self._deadline = self._clock.seconds() + self._limits.handshake_time + self._limits.files_head_time
        else:
            self._deadline = self._clock.seconds() + self._limits.files_idle
        self._files.connections[self] = None

    def _certificate(self) -> Any:
        get = getattr(self.transport, "getPeerCertificate", None)
        return None if get is None else get()

    def dataReceived(self, data: bytes) -> None:
        """Bytes came; they are used now, or kept until they are wanted."""
        if self._state is ENDED:
            return
        self._input = data if self._offset == len(self._input) else self._input[self._offset :] + data
        self._offset = 0
        if not self._turning:
            self._turn()

    def connectionLost(self, reason: Failure = _done) -> None:
        """The connection is gone, and with it whoever waited for the answer."""
        self._state = ENDED
        self._input = b""
        self._offset = 0
        self._files.forget(self)
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    # Requests out of bytes.

    def _turn(self) -> None:
        """Use what has come as far as it is wanted. A loop, so that no number of requests deepens the stack."""
        self._turning = True
        self._began = 0
        try:
            while self._offset < len(self._input) and not self._draining:
                if self._state is WAITING:
                    if self._began >= self._limits.files_pipelined:
                        self._wait_until_drained()
                        self._clock.callLater(0, self._drained)
                    elif not self._read_head():
                        break
                elif self._state is BODY and self._body().wanted and self._next_turn is None:
                    self._read_body()
                    if self._offset < len(self._input) and self._state is BODY:
                        # A body of very many small chunks: others have their turn before the rest.
                        self._next_turn = self._clock.callLater(0, self._go_on)
                else:
                    break
        finally:
            self._turning = False
        self._choose_reading()

    def _go_on(self) -> None:
        """The others have had their turn."""
        self._next_turn = None
        if self._state is not ENDED and not self._turning:
            self._turn()

    def _choose_reading(self) -> None:
        """Read on unless what is here already must wait."""
        if self._state is ENDED:
            return
        left = self._offset < len(self._input)
        if self._state is WAITING:
            wanted = not (self._draining and left)
        else:
            wanted = not (left or (self._state is BODY and self._body().paused))
        if wanted != self._reading:
            self._reading = wanted
            transport: Any = self.transport
            if wanted:
                transport.resumeProducing()
            else:
                transport.pauseProducing()

    def _read_head(self) -> bool:
        """Begin the request whose head is complete; False if more of it must come first."""
        data, offset = self._input, self._offset
        found = EMPTY_LINE.search(data, offset + self._searched)
        if found is None:
            if len(data) - offset > self._limits.files_head:
                self._files.limited("head")
                self._refuse(HeadTooLarge(f"the head of a request has at most {self._limits.files_head} bytes"))
                return False
            self._searched = max(0, len(data) - offset - len(HEAD_END) + 1)
            if not self._in_head:
                self._in_head = True
                self._deadline = self._clock.seconds() + self._limits.files_head_time
            return False
        self._offset = end = found.end()
        self._searched = 0
        head = None
        try:
            head = parse_request(data[offset:end], self._limits.files_head)
            if head is None:
                return True
            path, query = split_target(head.target)
        except FarmError as error:
            if isinstance(error, HeadTooLarge):
                self._files.limited("head")
            self._refuse(error, head)
            return False
        if (self._turned_away or self._on_trust) and not self._is_server():
            if self._on_trust:
                self._files.limited("connections")
            self._refuse(Busy("this server has too many connections"), head)
            return False
        self._begin(head, path, query)
        return True

    def _is_server(self) -> bool:
        """Whether a place that is kept for servers of this farm is this one's."""
        peer = None if self._turned_away else self._session.peer(self._files.peer_of, self._clock.seconds())
        if peer is not None:
            self._on_trust = False
        return peer is not None

    def _begin(self, head: RequestHead, path: str, query: bytes) -> None:
        self._began += 1
        self._in_head = False
        self._deadline = _NEVER
        self._head_written = False
        self._close = not head.keep_alive
        self._head_only = head.method == b"HEAD"
        self._started = self._clock.seconds()
        self._state = BODY if head.has_body else ANSWERING
        self._request = request = Request(head, path, query, self._session, self)
        self._running = running = self._files.routes.answer(request)
        running.addCallbacks(self._answer, self._fail)
        running.addErrback(self._fault)

    def _body(self) -> Any:
        assert self._request is not None
        return self._request.body

    def _read_body(self) -> None:
        body = self._body()
        start = self._offset
        try:
            piece, self._offset = body.decoder.take(self._input, start)
        except InvalidRequest as error:
            # Where the next request begins is not known: the answer finds a body without an end, and closes.
            body.fail(error)
            return
        self._body_bytes += self._offset - start
        if len(piece):
            body.deliver(piece)
        if body.decoder.done and self._state is BODY:
            self._state = ANSWERING
            body.end()

    def body_wanted(self) -> None:
        """Somebody takes the body (again): read it, and say so to a client that waits for that."""
        request = self._request
        if self._state is not BODY or request is None:
            return
        self._body_since = self._clock.seconds()
        self._body_bytes = 0
        if request.head.expects_continue:
            request.head.expects_continue = False
            if self._offset == len(self._input):
                self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._turning:
            self._turn()

    def body_paused(self) -> None:
        """Whoever takes the body has enough for now."""
        if not self._turning and self._state is BODY:
            self._choose_reading()

    # Answers into bytes.

    def _refuse(self, error: FarmError, head: RequestHead | None = None) -> None:
        """Answer a head that is not one, or that asks for nothing that could be, and end.

        Where the next request begins is mostly not known. `head` is what was asked, if it could be read.
        """
        self._close = True
        self._head_only = head is not None and head.method == b"HEAD"
        self._state = ANSWERING
        self._head_written = False
        self._answer(refusal(error))

    def _answer(self, answer: Answer) -> Deferred[None] | None:
        self._running = None
        if self._state is ENDED:
            if answer.source is not None:
                answer.source.close()
            return None
        if self._state is BODY and not self._skip_body():
            self._close = True
        if answer.source is not None and not self._head_only:
            self._running = stream = self._stream(answer, answer.source)
            return stream.addCallback(self._streamed)
        if answer.source is not None:
            answer.source.close()
        head = self._head(answer)
        self._write(head if self._head_only else head + answer.body)
        self._finish()
        return None

    def _skip_body(self) -> bool:
        """Pass over a short body that nobody wanted, if all of it is here; False if it must be waited for."""
        decoder = self._body().decoder
        if not isinstance(decoder, CountedBody) or decoder.remaining > len(self._input) - self._offset:
            return False
        self._offset += decoder.remaining
        self._state = ANSWERING
        return True

    def _head(self, answer: Answer) -> bytes:
        self._head_written = True
        self._status = answer.status
        if self._files.finishing:
            self._close = True
        ending = b"Connection: close\r\n" if self._close else b""
        if answer.status in (204, 304):
            return b"%b%b%b%b\r\n" % (STATUS_LINES[answer.status], self._files.common, answer.fields, ending)
        length = answer.length if answer.length >= 0 else len(answer.body)
        return b"%b%b%b%bContent-Length: %d\r\n\r\n" % (
            STATUS_LINES[answer.status],
            self._files.common,
            answer.fields,
            ending,
            length,
        )

    def _stream(self, answer: Answer, source: PieceSource) -> Deferred[Any]:
        """Send a head and then the pieces of a source; a failure after the head resets the connection.

        The first piece is asked for before the head is sent, and is most often the only one: then nothing
        more is set in motion than this.
        """

        def first(piece: bytes | memoryview | None) -> Deferred[int] | None:
            length = len(piece) if piece is not None else 0
            if piece is None or length > answer.length:
                raise CutShort(f"{length} bytes came of an answer of {answer.length}")
            head = self._head(answer)
            if length <= JOINED_BYTES_MAX:
                self._write(b"".join((head, piece)))
            else:
                self._write(head)
                self._write(piece)
            if length == answer.length:
                source.close()
                return None
            self._counted = counted = Counted(source, answer.length - length)
            self._look_anew(self._clock.seconds())
            return pump(counted, self.transport)

        def failed(failure: Failure) -> Failure:
            # What was handed to the pump is closed by the pump.
            if self._counted is None:
                source.close()
            return failure

        asked = source.next()
        return asked.addCallback(first).addErrback(failed)

    def _streamed(self, _: object) -> None:
        self._running = None
        self._finish()

    def _write(self, data: bytes | memoryview) -> None:
        transport: Any = self.transport
        if type(data) is memoryview and not getattr(transport, "accepts_memoryview", False):
            data = bytes(data)
        transport.write(data)

    def _fail(self, failure: Failure) -> Deferred[None] | None:
        """The routes have no answer: say why."""
        self._running = None
        if self._state is ENDED:
            return None
        if failure.check(FarmError):
            error = failure.value
            assert isinstance(error, FarmError)
            return self._answer(refusal(error))
        self._internal(failure)
        return None

    def _fault(self, failure: Failure) -> None:
        """An answer could not be sent. If none of it is out yet there is another; else only a reset is honest."""
        self._running = None
        if self._state is ENDED:
            return
        if failure.check(PumpStopped):
            self._abort()
        elif self._head_written:
            if failure.check(FarmError):
                self._log.warn("an answer was cut short: {reason}", reason=failure.getErrorMessage())
            else:
                self._log_failure(failure)
            self._abort()
        elif failure.check(FarmError):
            self._fail(failure)
        else:
            self._internal(failure)

    def _internal(self, failure: Failure) -> None:
        self._log_failure(failure)
        self._answer(refusal(FarmError("this server has a fault; its log says more")))

    def _log_failure(self, failure: Failure) -> None:
        request = self._request
        self._log.failure(
            "while answering {method} {target}",
            failure,
            method=request.method.decode() if request is not None else "",
            target=request.head.target.decode("ascii", "replace") if request is not None else "",
        )

    def _finish(self) -> None:
        """The answer is written: on to the next request, or to the end."""
        if self._request is not None:
            seconds = self._clock.seconds() - self._started
            self._files.metrics.observed("files", operation(self._request), outcome_of(self._status), seconds)
        self._request = self._counted = None
        if self._state is ENDED:
            return
        if self._close or self._files.finishing:
            # An answer whose head was written before the server was told to end did not say so, and need not.
            self._end()
            return
        self._state = WAITING
        self._limits = self._files.limits
        self._deadline = self._clock.seconds() + self._limits.files_idle
        transport: Any = self.transport
        if getattr(transport, "queued", 0) > QUEUED_MAX:
            # The client asks faster than it takes the answers.
            self._wait_until_drained()
            transport.registerProducer(WhenDrained(transport, self._drained), False)
        if not self._turning:
            self._turn()

    def _wait_until_drained(self) -> None:
        self._draining = True
        self._deadline = _NEVER
        self._look_anew(self._clock.seconds())

    def _drained(self) -> None:
        self._draining = False
        if self._state is WAITING and self._files.finishing:
            self._end()
        elif self._state is WAITING:
            self._deadline = self._clock.seconds() + self._limits.files_idle
            self._turn()

    def _end(self) -> None:
        self._state = ENDED
        self._deadline = _NEVER
        self._input = b""
        self._offset = 0
        transport: Any = self.transport
        transport.loseConnection()

    def _abort(self) -> None:
        self._state = ENDED
        transport: Any = self.transport
        transport.abortConnection()

    # From the factory.

    def end_if_idle(self) -> None:
        """The server is about to end: close unless answers are under way, behind which the connection ends."""
        if self._state is WAITING and not self._draining:
            self._end()

    def abort(self) -> None:
        """The server ends now."""
        if self._state is not ENDED:
            self._abort()

    def look_at_time(self, now: float) -> bool:
        """End what takes too long, and say whether that was done; called about once a second."""
        if now >= self._deadline:
            self._too_late()
            return True
        if self._state is BODY and self._body().wanted:
            return self._look_at_body(now)
        return (self._counted is not None or self._draining) and self._look_at_answer(now)

    def _too_late(self) -> None:
        if self._in_head:
            self._files.limited("head_time")
            self._refuse(TooSlow(f"the head of a request must come within {self._limits.files_head_time:.0f} s"))
        else:
            self._files.limited("idle")
            self._end()

    def _look_at_body(self, now: float) -> bool:
        elapsed, rate = now - self._body_since, self._limits.files_body_rate
        if elapsed < self._limits.files_body_time:
            return False
        if self._body_bytes < elapsed * rate:
            self._files.limited("body_rate")
            self._close = True
            self._body().fail(TooSlow(f"a body must bring at least {rate} bytes a second"))
            return True
        self._body_since, self._body_bytes = now, 0
        return False

    def _look_at_answer(self, now: float) -> bool:
        elapsed = now - self._moved_at
        is_too_slow = False
        if not getattr(self.transport, "queued", 0):
            # The client has taken all that there is: it is we who are slow.
            self._look_anew(now)
        elif elapsed >= self._limits.files_answer_time:
            is_too_slow = self._delivered() - self._moved < elapsed * self._limits.files_answer_rate
            if is_too_slow:
                self._files.limited("answer_rate")
                self._abort()
            self._look_anew(now)
        return is_too_slow

    def _look_anew(self, now: float) -> None:
        self._moved, self._moved_at = self._delivered(), now

    def _delivered(self) -> int:
        return int(getattr(self.transport, "delivered", 0))


def operation(request: Request) -> str:
    """What a request is counted as."""
    path, method = request.path, request.method.decode("latin-1")
    if method not in ("GET", "HEAD", "PUT", "DELETE", "POST"):
        # Anybody may write anything there, and each word would be remembered for ever.
        return "other"
    if path.startswith("/-/chunks/"):
        return f"chunk {method}"
    if path.startswith("/-/"):
        return "internal"
    return f"list {method}" if path.endswith("/") or "/" not in path[1:] else method


def outcome_of(status: int) -> str:
    """`ok`, or the status."""
    return "ok" if status < 400 else str(status)
