"""One connection: plain TCP at first or TLS from the start, with OpenSSL working on the socket itself.

Twisted's own TLS moves every byte through two memory buffers and a second protocol. Here an
`OpenSSL.SSL.Connection` reads from and writes to the non-blocking socket, so that a large file goes from
the page cache into the cipher without a copy made by Python.

What holds of every connection:

- What is written during a turn of the connection leaves at the end of that turn; what is written at
  another time leaves before the reactor waits again. So a head and a body written one after the other
  share a record. A turn moves a bounded number of bytes in each direction.
- `startTLS` first sends what was written before it in the clear. From the call on nothing is read from
  the socket except through TLS, and nothing that was read before is fed to TLS: bytes that came together
  with the request to start TLS are in the `dataReceived` that is running, where the protocol sees them
  and must end the link (they may have been slipped in by somebody in between).
- The end of a TLS connection without its closing alert is `ConnectionLost`, with it `ConnectionDone`.
- `loseConnection` sends what is queued, then the closing alert, then the end of the stream, and then
  listens for a moment to what the other side still sends, because closing a socket with unread bytes
  would reset the connection and destroy the answer on its way. A peer that takes nothing is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import sys
import termios
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL
from twisted.internet import tcp
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IHandshakeListener, INegotiated, ITLSTransport
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from chunkfarm.model import KIB, MIB
from chunkfarm.wire.outbox import RECORD, Outbox, Piece
from chunkfarm.wire.tls import (
    HANDSHAKE_TIMEOUT,
    ContextSource,
    HandshakeTimedOut,
    PeerEnded,
    TLSFailed,
    explain,
    name_to_ask_for,
)
from chunkfarm.wire.turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from OpenSSL.crypto import X509
    from twisted.internet.interfaces import IDelayedCall

LINGER = 2.0
"""Seconds that a closed connection still listens, so that its last bytes are not destroyed by a reset."""
FLUSH_PATIENCE = 30.0
"""Seconds after which a connection that is to be closed is looked at: it is cut off if the peer took too little."""
FLUSH_BYTES_MIN = 16 * KIB
"""What it must have taken of what is queued by then."""
WRITE_TURN = 1 * MIB
"""Bytes sent in one turn, about half a millisecond of encryption: other connections must have their turn."""
SMALL = 64 * KIB + 4 * KIB
"""An answer of no more bytes, with its head, is sent when it is ready; larger ones of a port wait for each other."""
READ_TURN = 256 * KIB
"""Bytes read in one turn and handed over as one piece, for the same reason as `WRITE_TURN`."""
SHORT_READ = 2 * KIB
"""A first record of so few bytes is mostly all there is, as with a question or an answer. To ask the socket for more,
and hear that there is none, costs as much as the record; if there is more the reactor says so at once."""
READ_FIRST = 16 * KIB
"""The first read of a plain connection; it grows while reads come back full, so that idle ones stay small."""
HIGH_WATER = 256 * KIB
"""A push producer is paused when more than this is queued."""


class Flusher:
    """Sends, before the reactor waits again, what was written outside a connection's own turn.

    One delayed call serves all connections of a port, so that a line written to a thousand of them does
    not cost a thousand timers.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._waiting: list[Stream] = []

    def add(self, stream: Stream) -> None:
        if not self._waiting:
            self._reactor.callLater(0, self._flush)
        self._waiting.append(stream)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            stream.flush()


_ENDED_BY_PEER = frozenset({errno.ECONNRESET, errno.EPIPE, -1})
"""What a socket says after a reset, and (-1) what OpenSSL says of an end of file; silence has other numbers."""


def _why_lost(number: Any) -> Exception:
    """The reason of a connection that failed with this error number."""
    return PeerEnded() if number in _ENDED_BY_PEER else CONNECTION_LOST


@implementer(ITLSTransport, IConsumer)
class Stream(tcp.Connection):
    """What accepted and outgoing connections have in common."""

    accepts_memoryview = True
    """`write` takes a `memoryview` of any size without copying it."""
    TLS = False
    _log = Logger()

    reactor: Any
    _tlsClientDefault: bool
    _flusher: Flusher
    _outbox: Outbox
    _handshake_timeout: float = HANDSHAKE_TIMEOUT
    _cleartext: Outbox | None = None
    """What must leave before TLS starts."""
    _starting: SSL.Connection | None = None
    """TLS that waits for that."""
    _speaks_first = False
    """Whether this side is the TLS client."""
    _tls: SSL.Connection | None = None
    _handshaking = False
    _handshake_waiter: Deferred[None] | None = None
    _handshakes: Turnstile[Stream] | None = None
    """Of those who shake hands with this port."""
    _large_sends: Turnstile[Stream] | None = None
    """Of those to whom it sends much."""
    _timer: IDelayedCall | None = None
    """Of the handshake, then of the close: never both."""
    _in_turn = False
    _scheduled = False
    _blocked = False
    """The socket takes nothing more; the reactor says when it does."""
    _waits_to_write = False
    _paused = False
    _write_wants_read = False
    _read_wants_write = False
    _lingering = False
    _said_goodbye = False
    _heard_goodbye = False
    _read_size = READ_FIRST
    taken = 0
    """Bytes written that the kernel has taken, in all."""
    _delivered_before = 0
    """`delivered` when the progress of a close was last looked at."""

    def _begin(self, flusher: Flusher, handshake_timeout: float) -> None:
        self._flusher = flusher
        self._outbox = Outbox()
        self._handshake_timeout = handshake_timeout

    # Reading.

    def doRead(self) -> Exception | None:  # type: ignore[override]
        """The socket has something to read."""
        if self._lingering:
            return self._discard()
        self._in_turn = True
        try:
            why = self._read_plain() if self._tls is None else self._read_tls()
        finally:
            self._in_turn = False
        if why is not None and why is not CONNECTION_DONE:
            return why
        unsent = self._outbox or self._cleartext is not None or self.disconnecting
        if unsent and self.connected and not (self._blocked or self._aborting):
            ended = self._turn()
            return why or ended
        return why

    def _read_plain(self) -> Exception | None:
        size = self._read_size
        try:
            data = self.socket.recv(size)
        except BlockingIOError:
            return None
        except OSError as error:
            return _why_lost(error.errno)
        if not data:
            return CONNECTION_DONE
        if len(data) == size:
            self._read_size = min(size * 2, READ_TURN)
        elif len(data) < size // 4:
            self._read_size = max(size // 2, READ_FIRST)
        self.protocol.dataReceived(data)
        return None

    def _read_tls(self) -> Exception | None:
        if self._write_wants_read:
            # The socket is readable, which is what the write waited for; it is repeated after this turn.
            self._write_wants_read = self._blocked = False
        if self._handshaking:
            if self._handshakes is not None and not self._handshakes.passes(self):
                self.stopReading()
                return None
            why = self._shake_hands()
            if why is not None or self._handshaking or not self.connected:
                return why
        if self._paused or self.disconnecting:
            self.stopReading()
            return None
        return self._read_records()

    def _read_records(self) -> Exception | None:
        tls = self._tls
        assert tls is not None
        pieces: list[bytes] = []
        length = 0
        emptied = False
        ended: Exception | None = None
        try:
            while length < READ_TURN:
                # One call never returns more than a record, and a whole record always fits.
                piece = tls.recv(RECORD)
                pieces.append(piece)
                length += len(piece)
                if length <= SHORT_READ and not tls.pending():
                    emptied = True
                    break
        except SSL.WantReadError:
            pass
        except SSL.WantWriteError:
            # A new key was asked for and the answer does not fit into the socket.
            self._read_wants_write = True
            self.startWriting()
        except SSL.ZeroReturnError:
            self._heard_goodbye = True
            ended = CONNECTION_DONE
        except SSL.SysCallError as error:
            ended = _why_lost(error.args[0])
        except SSL.Error as error:
            ended = TLSFailed(explain(error))
        if pieces:
            self.protocol.dataReceived(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if not emptied and self.connected and not self._paused and tls.pending():
                self._read_again()
        return ended

    def _read_again(self) -> None:
        """Decrypted bytes wait inside OpenSSL, of which the reactor knows nothing."""
        self.reactor.callLater(0, self._read_pending)

    def _read_pending(self) -> None:
        if self.connected and not self._paused and not self.disconnecting and self._tls is not None:
            why = self._guarded(self.doRead)
            if why is CONNECTION_DONE and self.connected:
                self.stopReading()
                self.readConnectionLost(Failure(why))
            else:
                self._finish(why)

    def _discard(self) -> Exception | None:
        """Listen to what the peer still sends after we closed, and drop it."""
        try:
            return None if self.socket.recv(READ_TURN) else CONNECTION_DONE
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_DONE

    def pauseProducing(self) -> None:
        """Stop handing data to the protocol."""
        self._paused = True
        if not (self._handshaking or self._write_wants_read or self._lingering):
            self.stopReading()

    def resumeProducing(self) -> None:
        """Hand data to the protocol again."""
        self._paused = False
        if self.connected and not self.disconnecting and self._cleartext is None:
            self.startReading()
            if self._tls is not None and not self._handshaking and not self._in_turn and self._tls.pending():
                self._read_again()

    def readConnectionLost(self, reason: Failure) -> None:
        """The peer sends no more."""
        if self._said_goodbye:
            self.connectionLost(reason)
        elif self._tls is not None and not self._heard_goodbye:
            # The reactor says so, and not the socket: nobody knows whose doing it was.
            self.connectionLost(Failure(ConnectionLost()))
        else:
            super().readConnectionLost(reason)

    # Writing.

    def write(self, data: Piece) -> None:
        """Send `data` after all that was written before. See `Outbox.append` about what is copied."""
        if not self._writable():
            return
        if isinstance(data, bytes) and len(data) <= RECORD and self._takes_at_once():
            data = data[self._try(data) :]
            if not data:
                return
        self._outbox.append(data)
        self._written()

    def write_now(self, data: Piece) -> None:
        """The same for what is whole as it is: it leaves at once where it can, in a record of its own."""
        if not self._writable():
            return
        self._outbox.append(data)
        if self._in_turn or self._scheduled or self._blocked or self._handshaking or self._cleartext is not None:
            self._written()
            return
        why = self._guarded(self._turn)
        if why is not None:
            # Whoever writes does not expect that the connection ends meanwhile.
            self.reactor.callLater(0, self._finish, why)

    def _takes_at_once(self) -> bool:
        """Whether a few bytes may go to the socket as they come: no TLS, and nothing before them."""
        return (
            self._tls is None
            and self._cleartext is None
            and not self._outbox.size
            and not (self._in_turn or self._scheduled or self._blocked)
        )

    def _try(self, data: bytes) -> int:
        """Give it to the kernel: how many bytes it took. What is wrong with the socket, the next turn finds out."""
        try:
            count = self.socket.send(data)
        except OSError:
            return 0
        self.taken += count
        return count

    def writeSequence(self, iovec: Iterable[Piece]) -> None:
        """Send several pieces as one."""
        if not self._writable():
            return
        for piece in iovec:
            self._outbox.append(piece)
        self._written()

    def _writable(self) -> bool:
        if not self.connected or self._aborting or self._lingering or self._said_goodbye:
            return False
        return not self.disconnecting or self.producer is not None

    def _written(self) -> None:
        if self.streamingProducer and not self.producerPaused and self._outbox.size > HIGH_WATER:
            producer: Any = self.producer
            if producer is not None:
                self.producerPaused = True
                producer.pauseProducing()
        self._schedule()

    def _schedule(self) -> None:
        """Have a turn soon, unless one is under way or the socket must become ready first."""
        if not (self._in_turn or self._scheduled or self._blocked or self._handshaking):
            self._scheduled = True
            self._flusher.add(self)

    @property
    def queued(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        return self._outbox.size + (self._cleartext.size if self._cleartext is not None else 0)

    @property
    def delivered(self) -> int:
        """Bytes that the other machine has acknowledged, about: with TLS its records' own bytes count as well.

        The kernel takes megabytes for somebody who takes nothing.
        """
        try:
            waiting = int.from_bytes(fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except (OSError, ValueError, AttributeError):
            return self.taken
        return max(0, self.taken - waiting)

    def flush(self) -> None:
        """Send what can be sent now; called by the `Flusher`."""
        self._scheduled = False
        if self.connected and not (self._aborting or self._blocked):
            self._finish(self._guarded(self._turn))

    def _guarded(self, call: Any) -> Exception | None:
        """What the reactor does around `doRead` and `doWrite`, for turns that it does not start."""
        try:
            why: Exception | None = call()
            return why
        except Exception as error:
            self._log.failure("while serving {connection!r}", connection=self)
            return error

    def startWriting(self) -> None:
        """Let the reactor say when the socket takes bytes."""
        self._waits_to_write = True
        super().startWriting()

    def stopWriting(self) -> None:
        """Do not ask the reactor for that any more; mostly it was not asked."""
        if self._waits_to_write:
            self._waits_to_write = False
            super().stopWriting()

    def _finish(self, why: Exception | None) -> None:
        if why is not None and self.connected:
            self.connectionLost(Failure(why))

    def doWrite(self) -> Exception | None:  # type: ignore[override]
        """The socket takes bytes again."""
        self._blocked = False
        if self._lingering:
            self.stopWriting()
            return None
        if self._read_wants_write:
            self._read_wants_write = False
            why = self.doRead()
            if why is not None or self._blocked or not self.connected:
                return why
        return self._turn()

    def _turn(self, send: Callable[[], Exception | None] | None = None) -> Exception | None:
        self._in_turn = True
        try:
            return self._send_queued() if send is None else send()
        finally:
            self._in_turn = False

    def _send_queued(self) -> Exception | None:
        if self._handshaking:
            why = self._shake_hands()
            if why is not None or self._handshaking or not self.connected or self._aborting:
                return why
        if self._large_sends is not None and not (self._is_small or self._large_sends.passes(self)):
            self._blocked = True
            self.stopWriting()
            return None
        return self._send_now()

    @property
    def _is_small(self) -> bool:
        """Whether what is to be sent now holds up nobody: it is little, and nobody waits to write more behind it."""
        if self._outbox.size > SMALL:
            return False
        # The client port's links have a producer all the time, of which most answers are small.
        return self.producer is None or (self.streamingProducer and not self.producerPaused)

    def send_on(self) -> None:
        """Its turn to send a part of a large answer has come."""
        self._blocked = False
        if self.connected and not self._aborting:
            self._finish(self._guarded(lambda: self._turn(self._send_now)))

    def _send_now(self) -> Exception | None:
        left = WRITE_TURN
        while True:
            outbox = self._outbox if self._cleartext is None else self._cleartext
            while outbox and left > 0:
                count = self._send(outbox.head())
                if isinstance(count, Exception):
                    return count
                if count == 0:
                    self._blocked = True
                    return None
                outbox.sent(count)
                self.taken += count
                left -= count
            if outbox:
                self._blocked = True
                self.startWriting()
                return None
            if self._cleartext is not None:
                self._cleartext = None
                self._enter_tls()
                return None
            producer: Any = self.producer
            if producer is None or (self.streamingProducer and not self.producerPaused):
                break
            self.producerPaused = False
            producer.resumeProducing()
            if not self.connected or self._aborting:
                return None
            if not self._outbox:
                break
        if self.disconnecting and self.producer is None:
            return self._say_goodbye()
        self.stopWriting()
        return None

    def _send(self, data: bytes | memoryview) -> int | Exception:
        """Give `data` to the kernel: bytes taken, 0 to wait for the reactor, or why the connection is lost."""
        try:
            if self._tls is None:
                return self.socket.send(data)
            return self._tls.send(data)
        except (BlockingIOError, SSL.WantWriteError):
            self.startWriting()
        except SSL.WantReadError:
            self._write_wants_read = True
            self.stopWriting()
            self.startReading()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                return _why_lost(error.errno)
            self.startWriting()
        except SSL.SysCallError as error:
            return _why_lost(error.args[0])
        except SSL.Error as error:
            return TLSFailed(explain(error))
        return 0

    # Producers that write into this connection.

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let `producer` write; see `IConsumer`. Raises `RuntimeError` while there is another one."""
        if self.producer is not None:
            raise RuntimeError(f"cannot register {producer!r}: {self.producer!r} is still registered")
        if not self.connected or self._aborting or self.disconnecting:
            producer.stopProducing()
            return
        self.producer = producer
        self.streamingProducer = streaming
        self.producerPaused = False
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """The producer has written everything."""
        self.producer = None
        if self.connected and self.disconnecting:
            self._schedule()

    # TLS.

    def startTLS(self, contextFactory: ContextSource, normal: bool = True) -> None:  # type: ignore[override]
        """Encrypt from here on; see the head of the module for what this guarantees.

        With `normal` the accepting side is the TLS server. A protocol that provides `IHandshakeListener`
        is told when the handshake is complete. Raises `RuntimeError` if TLS has been started before.
        """
        client = normal == self._tlsClientDefault
        self._start_tls(contextFactory.getContext(), client=client, server_name=name_to_ask_for(contextFactory))

    def _start_tls(self, context: SSL.Context, *, client: bool, server_name: bytes | None = None) -> None:
        if self.TLS:
            raise RuntimeError("TLS has been started before")
        tls = SSL.Connection(context, self.socket)
        if client:
            if server_name is not None:
                tls.set_tlsext_host_name(server_name)
            tls.set_connect_state()
        else:
            tls.set_accept_state()
        self.TLS = True
        self._starting = tls
        self._speaks_first = client
        alsoProvides(self, INegotiated)
        self._arm(self._handshake_timeout, self._handshake_timed_out)
        if self._outbox:
            self._cleartext, self._outbox = self._outbox, Outbox()
            # Nothing may be read in the clear any more, and TLS cannot begin before this has left.
            self.stopReading()
            self._schedule()
        else:
            self._enter_tls()

    def _enter_tls(self) -> None:
        self._tls, self._starting = self._starting, None
        self._handshaking = True
        self.startReading()
        if self._speaks_first:
            self.startWriting()

    def _shake_hands(self) -> Exception | None:
        tls = self._tls
        assert tls is not None
        try:
            tls.do_handshake()
        except SSL.WantReadError:
            self.stopWriting()
            return None
        except SSL.WantWriteError:
            self.startWriting()
            return None
        except SSL.Error as error:
            why = TLSFailed(f"in the handshake: {explain(error)}")
            self._log.debug("TLS with {peer} failed: {reason}", peer=self.getPeer(), reason=str(why))
            return why
        except Exception as error:
            # The caller's own check of the certificate raised this; it is the best reason there is.
            self._log.debug("TLS with {peer} failed: {reason}", peer=self.getPeer(), reason=str(error))
            return error
        self._handshaking = False
        self._disarm()
        if self.disconnecting:
            self._wait_for_flush()
        if self._paused or self.disconnecting:
            self.stopReading()
        if IHandshakeListener.providedBy(self.protocol):
            self.protocol.handshakeCompleted()
        waiter, self._handshake_waiter = self._handshake_waiter, None
        if waiter is not None:
            waiter.callback(None)
        return None

    def shake_on(self) -> None:
        """Its turn to shake hands has come."""
        if not (self.connected and self._handshaking) or self._aborting:
            return
        # A question that came together with the end of the handshake is still in the kernel, which says so.
        self.startReading()
        self._finish(self._guarded(self._shake_hands))

    def _handshake_timed_out(self) -> None:
        self._timer = None
        why = HandshakeTimedOut(f"the peer did not finish the handshake within {self._handshake_timeout:g} seconds")
        self._log.debug("TLS with {peer} failed: {reason}", peer=self.getPeer(), reason=str(why))
        self.connectionLost(Failure(why))

    def when_secure(self) -> Deferred[None]:
        """Fires when the handshake is complete, before the first byte is handed to the protocol.

        Fails with the reason if the connection is lost before. Only one may wait at a time; cancelling
        resets the connection.
        """
        assert self.TLS and self.connected and self._handshake_waiter is None
        if self.secure:
            return succeed(None)
        self._handshake_waiter = Deferred(self._give_up_handshake)
        return self._handshake_waiter

    def _give_up_handshake(self, waiter: Deferred[None]) -> None:
        self._handshake_waiter = None
        self.abortConnection()

    def getHandle(self) -> Any:
        """The `OpenSSL.SSL.Connection` once TLS has been started, the socket before."""
        return self._tls or self._starting or getattr(self, "socket", None)

    def getPeerCertificate(self) -> X509 | None:
        """The certificate that the peer has shown, if any."""
        return None if self._tls is None else self._tls.get_peer_certificate()

    @property
    def secure(self) -> bool:
        """Whether a TLS handshake is complete."""
        return self._tls is not None and not self._handshaking

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """What ALPN chose."""
        return (self._tls.get_alpn_proto_negotiated() or None) if self._tls is not None else None

    # The end.

    def loseConnection(self) -> None:
        """Close after everything written has been sent and the producer, if any, has finished."""
        if not self.connected or self.disconnecting or self._aborting:
            return
        self.disconnecting = True
        if not (self._handshaking or self._starting or self._write_wants_read):
            self.stopReading()
        if self._handshaking or self._cleartext is not None:
            # The timer of the handshake goes on; without anything to send there is no reason to wait.
            if self._outbox or self._cleartext or self.producer is not None:
                return
            self._arm(0, self._close_quietly)
            return
        self._wait_for_flush()
        self._schedule()

    def loseWriteConnection(self) -> None:
        """Half a connection is not offered: closes all of it, after everything written has been sent."""
        self.loseConnection()

    def _close_quietly(self) -> None:
        self._timer = None
        self.connectionLost(Failure(ConnectionDone()))

    def _wait_for_flush(self) -> None:
        self._delivered_before = self.delivered
        self._arm(FLUSH_PATIENCE, self._look_at_flush)

    def _look_at_flush(self) -> None:
        self._timer = None
        if self._outbox and self.delivered - self._delivered_before < FLUSH_BYTES_MIN:
            self.abortConnection()
        else:
            self._wait_for_flush()

    def _say_goodbye(self) -> Exception | None:
        """Everything has been sent: close our half and listen for the end of the other."""
        self._said_goodbye = True
        try:
            if self._tls is not None:
                self._tls.shutdown()
        except SSL.WantWriteError:
            self._said_goodbye = False
            self._blocked = True
            self.startWriting()
            return None
        except SSL.Error:
            return CONNECTION_DONE
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return CONNECTION_DONE
        self._lingering = True
        self.stopWriting()
        self.startReading()
        self._arm(LINGER, self._close_quietly)
        return None

    def abortConnection(self) -> None:
        """Reset the connection; what is queued is dropped. The protocol is told in the next turn."""
        self._outbox.clear()
        super().abortConnection()

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._disarm()
        for line in (self._handshakes, self._large_sends):
            if line is not None:
                line.leave(self)
        if self._tls is not None and self._heard_goodbye and not self._said_goodbye:
            with contextlib.suppress(SSL.Error):
                self._tls.shutdown()
        self._outbox.clear()
        self._cleartext = None
        waiter, self._handshake_waiter = self._handshake_waiter, None
        super().connectionLost(reason)
        # OpenSSL knows the number of the descriptor, which may soon be that of another connection.
        self._tls = self._starting = None
        if waiter is not None:
            waiter.errback(reason)

    def _arm(self, delay: float, call: Any) -> None:
        self._disarm()
        self._timer = self.reactor.callLater(delay, call)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
