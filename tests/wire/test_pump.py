"""Tests for `chunkfarm.wire.pump`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.wire.pump import PumpStopped, pump


class Pieces:
    """A source that has its pieces at hand, or gives one when the test says so."""

    def __init__(self, pieces: Sequence[bytes | memoryview], *, at_hand: bool = True) -> None:
        self.pieces = list(pieces)
        self.at_hand = at_hand
        self.asked: list[Deferred[bytes | memoryview | None]] = []
        self.closed = 0

    def next(self) -> Deferred[bytes | memoryview | None]:
        if self.at_hand:
            return succeed(self.pieces.pop(0) if self.pieces else None)
        self.asked.append(Deferred())
        return self.asked[-1]

    def close(self) -> None:
        self.closed += 1


class PumpTests(SynchronousTestCase):
    """A file goes out through a connection."""

    def setUp(self) -> None:
        self.transport = StringTransport()

    def producer(self) -> Any:
        """What the transport asks for more."""
        return self.transport.producer

    def test_everything_is_written(self) -> None:
        """All pieces arrive in order, and the number of bytes is told."""
        source = Pieces([b"one", memoryview(b"two"), b""])
        assert self.successResultOf(pump(source, self.transport)) == 6
        assert self.transport.value() == b"onetwo"
        assert self.transport.producer is None
        assert source.closed == 1

    def test_long_source(self) -> None:
        """A file of many pieces that are all at hand does not overflow the stack."""
        source = Pieces([b"x"] * 20_000)
        assert self.successResultOf(pump(source, self.transport)) == 20_000

    def test_memoryview_is_handed_on_as_it_is(self) -> None:
        """A transport that takes a memoryview gets the very object, so nothing is copied."""
        written: list[object] = []
        self.transport.accepts_memoryview = True  # type: ignore[attr-defined]
        self.transport.write = written.append  # type: ignore[method-assign]
        view = memoryview(b"bytes of a file")
        self.successResultOf(pump(Pieces([view]), self.transport))
        assert written[0] is view

    def test_pause(self) -> None:
        """While the transport takes nothing, one piece is fetched ahead and no more."""
        source = Pieces([], at_hand=False)
        done = pump(source, self.transport)
        source.asked[0].callback(b"a")
        self.producer().pauseProducing()
        source.asked[1].callback(b"b")
        assert self.transport.value() == b"a"
        assert len(source.asked) == 2
        self.producer().resumeProducing()
        assert self.transport.value() == b"ab"
        source.asked[2].callback(None)
        assert self.successResultOf(done) == 2

    def test_end_while_paused(self) -> None:
        """The end of the source is not waited for by a transport that takes nothing."""
        source = Pieces([], at_hand=False)
        done = pump(source, self.transport)
        self.producer().pauseProducing()
        source.asked[0].callback(None)
        assert self.successResultOf(done) == 0

    def test_source_fails(self) -> None:
        """What went wrong with the source is told, after it has been closed and the transport is free again."""
        source = Pieces([], at_hand=False)
        done = pump(source, self.transport)
        source.asked[0].errback(ValueError("the disk is gone"))
        self.failureResultOf(done, ValueError)
        assert source.closed == 1
        assert self.transport.producer is None

    def test_source_raises(self) -> None:
        """A source that raises instead of failing its Deferred is treated the same."""
        source = Pieces([])
        source.pieces = None  # type: ignore[assignment]
        source.next = lambda: 1 // 0  # type: ignore[assignment,return-value]
        self.failureResultOf(pump(source, self.transport), ZeroDivisionError)
        assert source.closed == 1

    def test_connection_lost(self) -> None:
        """When the connection is lost the question under way is taken back and the source closed."""
        source = Pieces([], at_hand=False)
        done = pump(source, self.transport)
        self.producer().stopProducing()
        self.failureResultOf(done, PumpStopped)
        assert source.asked[0].called
        assert source.closed == 1

    def test_connection_lost_before(self) -> None:
        """A transport that is already lost takes nothing: the source is closed and not asked."""

        class Lost(StringTransport):
            def registerProducer(self, producer: object, streaming: bool) -> None:
                producer.stopProducing()  # type: ignore[attr-defined]

        source = Pieces([], at_hand=False)
        self.failureResultOf(pump(source, Lost()), PumpStopped)
        assert source.asked == []
        assert source.closed == 1

    def test_transport_in_use(self) -> None:
        """A second pump on one transport fails and leaves the first alone."""
        first, second = Pieces([], at_hand=False), Pieces([], at_hand=False)
        done = pump(first, self.transport)
        self.failureResultOf(pump(second, self.transport), RuntimeError)
        assert second.closed == 1
        first.asked[0].callback(b"still")
        first.asked[1].callback(None)
        assert self.successResultOf(done) == 5

    def test_cancel(self) -> None:
        """Whoever started it may stop it."""
        source = Pieces([], at_hand=False)
        done = pump(source, self.transport)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        assert source.asked[0].called
        assert source.closed == 1
        assert self.transport.producer is None

    def test_close_fails(self) -> None:
        """A source that cannot be closed does not spoil what was sent, and the log has it."""
        source = Pieces([b"all"])
        source.close = lambda: fail(OSError("no"))  # type: ignore[assignment]
        assert self.successResultOf(pump(source, self.transport)) == 3
        assert len(self.flushLoggedErrors(OSError)) == 1
