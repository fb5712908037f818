"""One connection of the client port: cuts what is read into commands, runs them, writes their answers in order.

What a command does is in `looking`, `moving` and `watching`; who may give it is in `commands`. Here are the
order of things and the limits.

A command is *pending* from the moment its line is read until its answer is written. It starts once every
earlier one is done, unless it and all unfinished earlier ones may overlap (PUT, HAVE, PING). Reading pauses
while too much is pending, while a payload finds no room, and while the other side does not take its answers; then
nothing is begun either whose answer may be long, so that no more than one such waits in memory. After some lines
everybody else has a turn.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.errors import Busy, FarmError, InvalidRequest, LimitExceeded, ReadOnly, Waiting
from chunkfarm.ports.client import commands
from chunkfarm.ports.client.limits import (
    CHECK_INTERVAL,
    CLOSE_TIMEOUT,
    EMIT_WHOLE,
    LINES_IN_TURN,
)
from chunkfarm.ports.client.pending import Payload, Pending, is_loopback
from chunkfarm.ports.client.session import ANYONE, PRIVATE, Answer, Command, Request, Session, refusal
from chunkfarm.table.interface import TableClosed, Unavailable
from chunkfarm.wire.lines import LineBuffer, LineTooLong, text_of, unquote, words
from chunkfarm.wire.transport import end_when_gone

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from chunkfarm.ports.client.factory import ClientFactory

_HTTP = re.compile(rb"[A-Za-z]+ [^ ]+ HTTP/[0-9.]+ *\Z|[A-Za-z][A-Za-z0-9-]*:")
_TLS_HELLO = b"\x16\x03"


@implementer(IPushProducer)
class ClientConnection(Protocol):
    """A link to a client; see the head of this package for what is spoken."""

    _log = Logger()

    factory: ClientFactory
    _session: Session

    def __init__(self, factory: ClientFactory, on_trust: bool = False) -> None:
        """`on_trust`: it has a place that is kept for servers of this farm, and must prove to be one."""
        self.factory = factory
        self._limits = factory.limits
        self._clock = factory.clock
        self._on_trust = on_trust
        self._began = self._clock.seconds()
        self._buffer = LineBuffer(self._limits.client_line)
        self._line_since: float | None = None
        """Since when there is a part of a line."""
        self._lines_taken = 0
        """In this turn of the reactor."""
        self._next_turn: IDelayedCall | None = None
        """In which more lines are taken."""
        self._slow_since = 0.0
        self._slow_from = 0
        """When, and at how many bytes taken, it was last seen that the other side takes too little."""
        self._queue: deque[Pending] = deque()
        self._payload: Payload | None = None
        self._spoken = False
        self._ending = False
        """Nothing more is read; what is pending is still answered."""
        self._leaving = False
        """`finish` was called, and waits for the payload that is on its way in."""
        self._ended = False
        """Nothing more is written."""
        self._awaits_tls = False
        self._streaming = False
        self._turning = False
        self._reading_paused = False
        self._writing_paused = False
        self._room: Deferred[None] | None = None
        """Fires when the other side takes bytes again."""
        self._backlog: list[bytes] = []
        self._backlog_bytes = 0
        self._active = 0.0
        self._checks: IDelayedCall | None = None
        self._pauses: set[IDelayedCall] = set()

    @property
    def server(self) -> str:
        """Id of the server of the farm that has said who it is with its certificate; empty if none has."""
        principal = self._session.principal
        return principal.id if principal is not None and principal.role == "server" else ""

    @property
    def proves_server(self) -> bool:
        """Whether that certificate still proves it."""
        return self._session.backend.peer_of(self._certificate()) == self.server

    # What Twisted calls.

    def connectionMade(self) -> None:
        assert self.transport is not None
        host = str(getattr(self.transport.getPeer(), "host", ""))
        self._session = Session(
            backend=self.factory.backend,
            link=self,
            written=self.factory.written,
            local=is_loopback(host),
            address=host,
            encrypted=ISSLTransport.providedBy(self.transport),
            certificate=self._certificate,
        )
        self._active = self._clock.seconds()
        self._look_later()
        if self._on_trust:
            self._pauses.add(self._clock.callLater(2 * self._limits.handshake_time, self._prove))
        end_when_gone(self.transport)
        transport: Any = self.transport
        transport.registerProducer(self, True)
        self.factory.opened(self)

    def dataReceived(self, data: bytes) -> None:
        self._active = self._clock.seconds()
        if self._ending:
            return
        if self._awaits_tls:
            # Somebody in between may have put them there (CVE-2011-0411).
            self._cut()
            return
        if not self._spoken:
            self._spoken = True
            if data.startswith(_TLS_HELLO) and not self._session.encrypted:
                self.fail(InvalidRequest("this port begins in plain text: say STARTTLS first"))
                return
        self._buffer.feed(data)
        if self._next_turn is None:
            self._lines_taken = 0
        self._turn()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ending = self._ended = True
        if self._checks is not None and self._checks.active():
            self._checks.cancel()
        for call in self._pauses:
            if call.active():
                call.cancel()
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        if self._session.watching is not None:
            self._session.watching.stop()
        room, self._room = self._room, None
        for pending in list(self._queue):
            if pending.running is not None and pending.command is not None and pending.command.once_begun:
                # It runs to its end, and gives the memory back then.
                continue
            self._release(pending)
            if pending.running is not None:
                pending.running.cancel()
        self._queue.clear()
        if room is not None:
            room.cancel()
        self.factory.closed(self)

    def pauseProducing(self) -> None:
        """The other side does not take what was written."""
        self._writing_paused = True
        self._slow_since, self._slow_from = self._clock.seconds(), self._delivered()
        self._adjust_reading()

    def resumeProducing(self) -> None:
        """There is room again."""
        self._writing_paused = False
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)
        self._flush_backlog()
        self._turn()

    def stopProducing(self) -> None:
        """The transport is going away; `connectionLost` follows."""

    # Reading.

    def _held(self) -> bool:
        """Whether no further command may be read now."""
        if self._awaits_tls or self._writing_paused or len(self._queue) >= self._limits.client_pending:
            return True
        if self._lines_taken >= LINES_IN_TURN:
            return True
        if self._payload is not None:
            return not self._admit(self._payload)
        last = self._queue[-1].command if self._queue else None
        return last is not None and last.changes_session

    def _turn(self) -> None:
        """Read, start and write whatever may be read, started and written, until nothing moves."""
        if self._turning:
            return
        self._turning = True
        try:
            while not self._ended and (self._read_some() or self._start_some() or self._write_some()):
                pass
        finally:
            self._turning = False
        if self._lines_taken >= LINES_IN_TURN and self._next_turn is None and not self._ended:
            self._next_turn = self._clock.callLater(0, self._go_on)
        self._adjust_reading()

    def _go_on(self) -> None:
        """The others have had their turn."""
        self._next_turn = None
        self._lines_taken = 0
        self._turn()

    def _read_some(self) -> bool:
        """Take from the buffer what may be taken; whether anything was."""
        taken = False
        while not self._ending and not self._held():
            if self._payload is not None:
                if not self._take_payload(self._payload):
                    break
            else:
                try:
                    line = self._buffer.line()
                except LineTooLong as error:
                    self.factory.limited("line")
                    self._answered(refusal(error, self.end))
                    self._stop_reading()
                    return True
                if line is None:
                    if not len(self._buffer):
                        self._line_since = None
                    elif self._line_since is None:
                        self._line_since = self._clock.seconds()
                    break
                self._line_since = None
                self._lines_taken += 1
                self._line(line)
            taken = True
        return taken

    def _adjust_reading(self) -> None:
        # While TLS is awaited reading goes on, to notice bytes that must not be there.
        hold = not self._awaits_tls and not self._ending and self._held()
        if hold == self._reading_paused or self._ended:
            return
        self._reading_paused = hold
        transport: Any = self.transport
        if hold:
            transport.pauseProducing()
        else:
            transport.resumeProducing()

    def _stop_reading(self) -> None:
        self._ending = True
        self._payload = None

    def _line(self, line: bytes) -> None:
        if _HTTP.match(line):
            # A browser that was tricked into posting here shall not get one of its later lines run.
            self._cut()
            return
        try:
            given = words(text_of(line))
            if not given:
                return
            command = commands.find(given[0])
        except FarmError as error:
            self._answered(refusal(error))
            return
        if command.payload_at is not None:
            self._with_payload(command, given[1:])
            return
        try:
            commands.check_words(command, given[1:])
            commands.check_access(self._session, command)
            request = Request(tuple(unquote(word) for word in given[1:]))
        except FarmError as error:
            self._answered(refusal(error))
            return
        self._queue.append(Pending(command, request))
        if command.name == "STARTTLS":
            if len(self._buffer):
                self._cut()
                return
            self._awaits_tls = not self._session.encrypted

    def _with_payload(self, command: Command, given: list[str]) -> None:
        try:
            length = commands.payload_length(command, given)
        except FarmError as error:
            # Where the payload ends is not known: to read on would be to run it as commands.
            self._answered(refusal(error, self.end))
            self._stop_reading()
            return
        answer = None
        decoded: tuple[str, ...] = ()
        try:
            commands.check_access(self._session, command)
            decoded = tuple(unquote(word) for word in given)
        except FarmError as error:
            answer = refusal(error)
        pending = Pending(command, Request(decoded), answer, whole=False)
        self._queue.append(pending)
        self._payload = Payload(pending, length, answer is None, self._clock.seconds())

    def _admit(self, payload: Payload) -> bool:
        """Whether there is memory for it; asked again whenever some has been given back."""
        if payload.admitted:
            return True
        if payload.keep:
            held = sum(pending.reserved for pending in self._queue)
            if held and held + payload.length > self._limits.client_payload:
                return False
            if not self.factory.reserve(payload.length, self):
                return False
            payload.pending.reserved = payload.length
            payload.target = bytearray(payload.length)
        payload.admitted = True
        payload.began = self._clock.seconds()
        return True

    def try_again(self) -> None:
        """Memory for payloads has been given back."""
        if not self._ended:
            self._turn()

    def _take_payload(self, payload: Payload) -> bool:
        """Take what there is of it; whether it is whole."""
        piece = self._buffer.take(payload.length - payload.received)
        if payload.target is not None:
            payload.target[payload.received : payload.received + len(piece)] = piece
        payload.received += len(piece)
        if payload.received < payload.length:
            return False
        self._payload = None
        payload.pending.request = Request(payload.pending.request.words, payload.target)
        payload.pending.whole = True
        if self._leaving:
            self.finish()
        return True

    # Running and answering.

    def _answered(self, answer: Answer) -> None:
        """Queue an answer that needs no running."""
        self._queue.append(Pending(None, Request(()), answer))

    def _start_some(self) -> bool:
        overlap = True
        for position, pending in enumerate(self._queue):
            overlap = overlap and pending.overlaps
            if not pending.whole or not (position == 0 or overlap):
                return False
            if pending.answer is None and pending.running is None:
                if self._writing_paused and not pending.is_told_little:
                    # Its answer would wait in memory behind those that are not taken.
                    return False
                pending.running = Deferred.fromCoroutine(self._run(pending))
                return True
        return False

    def _with_cure(self, error: FarmError) -> FarmError:
        """Who may not write while masters are missing is told which, and what can be done."""
        state = self._session.backend.state
        if isinstance(error, ReadOnly) and state.phase == "readonly":
            return ReadOnly(state.because(str(error)))
        return error

    async def _run(self, pending: Pending) -> None:
        assert pending.command is not None
        began, outcome = self._clock.seconds(), "ok"
        try:
            if pending.command.needs_first and self._session.backend.state.phase == "readonly":
                # It would wait for masters that have been missing for seconds, and could not say so meanwhile.
                raise ReadOnly("no change can be made now")
            await self._confirm(pending.command)
            answer = await pending.command.run(self._session, pending.request)
            commands.note_change(self._session, pending.command, pending.request)
        except CancelledError:
            if self._ended:
                self._release(pending)
                return
            # Somebody inside gave up, and whoever asked still waits.
            answer, outcome = refusal(Busy("this was given up; try again")), Busy.code
        except FarmError as error:
            answer, outcome = refusal(self._with_cure(error)), error.code
        except Unavailable:
            outcome = ReadOnly.code
            answer = refusal(self._with_cure(ReadOnly("no majority of the masters answers now")))
        except TableClosed:
            outcome = Waiting.code
            answer = refusal(Waiting("this server is leaving; ask another"))
        except Exception:
            self._log.failure("while answering {command}", command=pending.command.name)
            answer, outcome = refusal(FarmError("this server has a fault; its log says more")), FarmError.code
        command = pending.command.name
        self.factory.backend.metrics.observed("client", command, outcome, self._clock.seconds() - began)
        self._release(pending)
        if pending.command.name == "STARTTLS" and answer.then is None:
            self._awaits_tls = False
        if self._ended:
            if answer.source is not None:
                answer.source.close()
            return
        pending.answer = answer
        self._turn()

    async def _confirm(self, command: Command) -> None:
        """A key that was good when the link began may have been taken away, or be good for less."""
        session = self._session
        if command.access in (ANYONE, PRIVATE) or session.keys_revision == session.backend.keys_revision:
            return
        await session.confirm()
        commands.check_access(session, command)

    def key_changed(self) -> None:
        """Some key has changed: a watch goes on without a command that would notice."""
        if self._session.watching is not None and not self._ended:
            Deferred.fromCoroutine(self._session.confirm()).addErrback(self._no_longer)

    def _no_longer(self, failure: Failure) -> None:
        if failure.check(FarmError):
            assert isinstance(failure.value, FarmError)
            self.fail(failure.value)
        elif not failure.check(CancelledError):
            self._log.failure("while looking at a key again", failure)

    def _release(self, pending: Pending) -> None:
        """Give its payload's memory back."""
        reserved, pending.reserved = pending.reserved, 0
        pending.request = Request(pending.request.words)
        if reserved:
            self.factory.release(reserved)

    def _write_some(self) -> bool:
        """Write finished answers from the head of the queue."""
        if self._streaming:
            return False
        out: list[bytes] = []
        size = 0
        then = None
        while self._queue and self._queue[0].whole and size < EMIT_WHOLE and then is None:
            answer = self._queue[0].answer
            if answer is None:
                break
            text = "".join(f"{line}\r\n" for line in answer.lines).encode()
            out.append(text)
            size += len(text)
            if answer.source is not None:
                self._streaming = True
                self._write(b"".join(out))
                head = self._queue[0]
                head.running = Deferred.fromCoroutine(self._stream(answer))
                return True
            self._queue.popleft()
            then = answer.then
        if not out:
            return False
        self._write(b"".join(out))
        if then is not None:
            then()
        return True

    async def _stream(self, answer: Answer) -> None:
        """Write the bytes that an answer announced; whatever goes wrong now can only end the link."""
        assert answer.source is not None
        left = answer.length
        try:
            while left and not self._ended:
                piece = await answer.source.next()
                if piece is None or len(piece) > left:
                    raise FarmError("the bytes are not as many as were announced")
                left -= len(piece)
                self._write(piece)
                self._active = self._clock.seconds()
                if self._writing_paused and not self._ended:
                    self._room = Deferred()
                    await self._room
        except CancelledError:
            return
        except FarmError as error:
            self._log.info("cut off a client in the middle of its bytes: {error}", error=error.sentence)
            self._cut()
            return
        except Exception:
            self._log.failure("while sending bytes to a client")
            self._cut()
            return
        finally:
            answer.source.close()
        if self._ended:
            return
        self._queue.popleft()
        self._streaming = False
        self._flush_backlog()
        if answer.then is not None:
            answer.then()
        self._turn()

    def _write(self, data: bytes | memoryview) -> None:
        transport: Any = self.transport
        if isinstance(data, memoryview) and not getattr(transport, "accepts_memoryview", False):
            data = bytes(data)
        transport.write(data)

    # What commands do to their link (`session.Link`).

    @property
    def can_start_tls(self) -> bool:
        return self.factory.tls is not None

    def start_tls(self) -> None:
        assert self.factory.tls is not None
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.startTLS(self.factory.tls)
        transport.registerProducer(self, True)
        # Whether the transport takes more it says anew; what waited for that leaves before the handshake.
        self._writing_paused = False
        self._awaits_tls = False
        self._session.encrypted = True
        # What was proved in the clear counts no more, nor does what was begun with it.
        self._session.principal, self._session.proof = None, b""
        self._session.end_watch()

    def end(self) -> None:
        """Write nothing more, and close once everything written has left."""
        if self._ended:
            return
        self._ending = self._ended = True
        self._payload = None
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()
        self._pauses.add(self._clock.callLater(CLOSE_TIMEOUT, transport.abortConnection))

    def fail(self, error: FarmError) -> None:
        """Say why, unless bytes are on their way, and close."""
        if self._ended:
            return
        if not self._streaming:
            self._write("".join(f"{line}\r\n" for line in refusal(error).lines).encode())
        self.end()

    def _cut(self) -> None:
        """Close at once, without a word."""
        self._ending = self._ended = True
        self._payload = None
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.abortConnection()

    def pause(self, seconds: float) -> Deferred[None]:
        call: IDelayedCall

        def cancelled(_: Deferred[None]) -> None:
            if call.active():
                call.cancel()
            self._pauses.discard(call)

        waiting: Deferred[None] = Deferred(cancelled)

        def over() -> None:
            self._pauses.discard(call)
            waiting.callback(None)

        call = self._clock.callLater(seconds, over)
        self._pauses.add(call)
        return waiting

    def emit(self, lines: list[str]) -> None:
        if self._ended:
            return
        text = "".join(f"{line}\r\n" for line in lines).encode()
        if not (self._streaming or self._writing_paused):
            self._write(text)
            return
        self._backlog.append(text)
        self._backlog_bytes += len(text)
        if self._backlog_bytes > self._limits.client_watch_backlog:
            self._over("watch_backlog", "this watcher is too slow: read, then watch again")

    def forget_emitted(self) -> None:
        self._backlog.clear()
        self._backlog_bytes = 0

    def _flush_backlog(self) -> None:
        while self._backlog and not (self._streaming or self._writing_paused or self._ended):
            text = self._backlog.pop(0)
            self._backlog_bytes -= len(text)
            self._write(text)

    # Limits of time.

    def finish(self) -> None:
        """The server is leaving: end once what is pending has been answered, and the payload under way was taken."""
        if self._ended or self._ending:
            return
        if self._payload is not None:
            self._leaving = True
            return
        self._stop_reading()
        if not self._queue:
            if self._session.watching is not None:
                self.fail(Waiting("this server is leaving; watch another"))
            else:
                self.end()
        else:
            self._answered(refusal(Waiting("this server is leaving; ask another"), self.end))
            self._turn()

    def _look_later(self) -> None:
        limits = self._limits = self.factory.limits
        shortest = min(limits.client_line_time, limits.client_stranger_idle, limits.client_answer_time)
        self._checks = self._clock.callLater(min(CHECK_INTERVAL, shortest / 2), self._check)

    def _check(self) -> None:
        self._look_later()
        if self.server:
            self.factory.met.note(self._session.address)
        for look in (self._look_at_payload, self._look_at_answers, self._look_at_line, self._look_at_silence):
            if self._ended:
                return
            look(self._clock.seconds())

    def _over(self, limit: str, sentence: str) -> None:
        """End this link for a limit of the client port."""
        self.factory.limited(limit)
        self.fail(LimitExceeded(sentence))

    def _prove(self) -> None:
        """The time is over in which it had to show the certificate of a server of this farm."""
        self._session.identify()
        self._on_trust = False
        if not self.server and not self._ended:
            self.factory.limited("connections")
            self.fail(Busy("this server has too many connections"))

    def _look_at_payload(self, now: float) -> None:
        payload = self._payload
        if payload is None or not payload.admitted or self._writing_paused:
            return
        elapsed, rate = now - payload.began, self._limits.client_payload_rate
        if elapsed > self._limits.client_payload_time and payload.received < rate * elapsed:
            self._over("payload_rate", f"a payload must come with at least {rate} bytes a second")

    def _look_at_answers(self, now: float) -> None:
        elapsed = now - self._slow_since
        if not self._writing_paused or elapsed < self._limits.client_answer_time:
            return
        delivered, rate = self._delivered(), self._limits.client_answer_rate
        if delivered - self._slow_from < rate * elapsed:
            self._over("answer_rate", f"answers must be taken with at least {rate} bytes a second")
        self._slow_since, self._slow_from = now, delivered
        self._active = now

    def _delivered(self) -> int:
        return int(getattr(self.transport, "delivered", 0))

    def _look_at_line(self, now: float) -> None:
        if self._line_since is None:
            return
        if self._held():
            # It is we who do not read.
            self._line_since = now
        elif now - self._line_since > self._limits.client_line_time:
            self._over("line_time", f"a line must come whole within {self._limits.client_line_time:.0f} seconds")

    def _look_at_silence(self, now: float) -> None:
        limits = self._limits
        stranger = self._session.principal is None
        if stranger and now - self._began > limits.client_stranger_time:
            self._over("stranger_time", f"nobody has said who this is for {limits.client_stranger_time:.0f} seconds")
            return
        answering = any(pending.whole for pending in self._queue)
        if not self._writing_paused and (self._session.watching is not None or answering):
            # It waits for us.
            return
        limit = limits.client_stranger_idle if stranger else limits.client_idle
        if now - self._active > limit:
            self._over("stranger_idle" if stranger else "idle", f"nothing moved on this link for {limit:.0f} seconds")

    def _certificate(self) -> Any:
        show = getattr(self.transport, "getPeerCertificate", None)
        return show() if show is not None else None
