"""Helpers for what is on its way out: exact lengths, and waiting until all of it has left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from zope.interface import implementer

from chunkfarm.wire.pump import PieceSource


class CutShort(Exception):
    """A source ended before the length that its answer announced, or went on after it."""


class Counted:
    """A source that must give exactly `length` bytes, and says how many it has given."""

    def __init__(self, source: PieceSource, length: int) -> None:
        self._source = source
        self._left = length
        self.pieces = 0

    def next(self) -> Deferred[bytes | memoryview | None]:
        """The next piece; fails with `CutShort` rather than let the answer differ from its Content-Length."""
        return self._source.next().addCallback(self._count)

    def _count(self, piece: bytes | memoryview | None) -> bytes | memoryview | None:
        self.pieces += 1
        self._left -= len(piece) if piece is not None else 0
        if self._left < 0 or (piece is None and self._left):
            raise CutShort(f"{self._left} bytes are left of an answer that was announced longer or shorter")
        return piece

    def close(self) -> object:
        """Give up what the source holds."""
        return self._source.close()


@implementer(IPullProducer)
class WhenDrained:
    """Calls back once the transport has sent everything that it was given."""

    def __init__(self, transport: Any, call: Callable[[], None]) -> None:
        self._transport = transport
        self._call = call
        self._asked = False

    def resumeProducing(self) -> None:
        """Nothing is queued."""
        # A pull producer is asked once when it is registered, and then whenever nothing is queued.
        if self._asked:
            self._transport.unregisterProducer()
            self._call()
        self._asked = True

    def stopProducing(self) -> None:
        """The connection is lost, which its protocol is told as well."""
