"""Moves a source of pieces into a transport, as fast as the transport takes them and no faster."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer


class PumpStopped(ConnectionLost):
    """The connection was lost before the source was empty."""

    MESSAGE = "The connection was lost before everything had been sent"


class PieceSource(Protocol):
    """Something to send, piece by piece."""

    def next(self) -> Deferred[bytes | memoryview | None]:
        """The next piece, `None` at the end. Not called again before it has fired, nor after the end."""

    def close(self) -> object:
        """No more pieces are wanted; called exactly once, also after a failure. May return a Deferred."""


def pump(source: PieceSource, transport: Any) -> Deferred[int]:
    """Write all of `source` to `transport` (an `IConsumer`); fires with the number of bytes.

    It fires when the last piece has been given to the transport, which may still have to send it. One piece
    is fetched ahead while the transport takes nothing. Fails with what the source failed with (the transport
    has then had a part), or with `PumpStopped` if the connection is lost. Cancelling stops. The source is
    closed in every case before the Deferred fires.
    """
    return _Pump(source, transport).start()


@implementer(IPushProducer)
class _Pump:
    _log = Logger()

    def __init__(self, source: PieceSource, transport: Any) -> None:
        self._source = source
        self._transport = transport
        self._takes_views = bool(getattr(transport, "accepts_memoryview", False))
        self._done: Deferred[int] | None = None
        self._asked: Deferred[bytes | memoryview | None] | None = None
        self._ahead: bytes | memoryview | None = None
        self._asking = False
        self._paused = False
        self._ended = False
        self._registered = False
        self._count = 0

    def start(self) -> Deferred[int]:
        done: Deferred[int] = Deferred(lambda done: self._finish(Failure(CancelledError())))
        self._done = done
        self._registered = True
        try:
            self._transport.registerProducer(self, True)
        except RuntimeError:
            self._registered = False
            self._finish(Failure())
        else:
            self._ask()
        return done

    def _ask(self) -> None:
        """Ask for pieces until one must be waited for, or there is one ahead that cannot be written.

        A source may have its pieces at hand: this is a loop and not a call from each answer, because a long
        file would overflow the stack.
        """
        if self._asking:
            return
        self._asking = True
        try:
            while self._done is not None and self._asked is None and self._ahead is None:
                if self._ended:
                    self._finish(None)
                    return
                self._asked = asked = maybeDeferred(self._source.next)
                asked.addCallbacks(self._got, self._failed)
                # `_got` looks to its own code only; whatever it lets through is a fault of ours.
                asked.addErrback(self._failed)
        finally:
            self._asking = False

    def _got(self, piece: bytes | memoryview | None) -> None:
        self._asked = None
        if self._done is None:
            return
        if piece is None:
            self._ended = True
        elif self._paused:
            self._ahead = piece
        else:
            self._write(piece)
        self._ask()

    def _write(self, piece: bytes | memoryview) -> None:
        self._count += len(piece)
        self._transport.write(piece if self._takes_views else bytes(piece))

    def _failed(self, failure: Failure) -> None:
        self._asked = None
        self._finish(failure)

    def _finish(self, failure: Failure | None) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        asked, self._asked = self._asked, None
        self._ahead = None
        if asked is not None:
            asked.cancel()
        if self._registered:
            self._registered = False
            self._transport.unregisterProducer()
        closed = maybeDeferred(self._source.close)
        closed.addErrback(lambda failure: self._log.failure("while closing what was sent", failure))
        if failure is None:
            done.callback(self._count)
        else:
            done.errback(failure)

    def pauseProducing(self) -> None:
        """The transport has enough for now."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The transport takes more."""
        self._paused = False
        piece, self._ahead = self._ahead, None
        if piece is not None:
            self._write(piece)
        self._ask()

    def stopProducing(self) -> None:
        """The connection is lost, and the transport has forgotten us."""
        self._registered = False
        self._finish(Failure(PumpStopped()))
