"""What a connection has still to send: pieces of any size, cut into what one call of `send` is given.

Nothing here knows a socket. Large pieces are never copied; small ones are joined, so that a head and a
small body leave in one TLS record. The rule of TLS that a call which could not finish must be repeated
with the same bytes is kept here: `head` returns the same object until `sent` says that it went out.
"""

from __future__ import annotations

from collections import deque

from chunkfarm.model import KIB

RECORD = 16 * KIB
"""The plaintext of a full TLS record: below this, joining pieces saves records and system calls."""
SLICE = 256 * KIB
"""Given to one call of `send`: large enough to make the cost of the call vanish, small enough for the cache."""

Piece = bytes | bytearray | memoryview


class Outbox:
    """A queue of bytes to send."""

    __slots__ = ("_head", "_pieces", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes | memoryview] = deque()
        self._head: bytes | memoryview | None = None
        self.size = 0
        """Bytes not sent yet."""

    def __bool__(self) -> bool:
        return self.size > 0

    def append(self, data: Piece) -> None:
        """Put `data` at the end. A `memoryview` is kept, not copied: what it shows must not change any more.

        A `bytearray` is copied, because whoever owns it may change its length. Raises `TypeError` for
        anything else, and for a `memoryview` that is not contiguous.
        """
        if isinstance(data, memoryview):
            data = data.cast("B")
        elif isinstance(data, bytearray):
            data = bytes(data)
        elif not isinstance(data, bytes):
            raise TypeError(f"only bytes can be written, not {type(data).__name__}")
        length = len(data)
        if length:
            self._pieces.append(data)
            self.size += length

    def head(self) -> bytes | memoryview:
        """The next bytes to send; the same object until `sent` is called. The queue must not be empty."""
        if self._head is None:
            self._head = self._cut()
        return self._head

    def sent(self, count: int) -> None:
        """The first `count` bytes of the head went out."""
        head = self._head
        assert head is not None and 0 < count <= len(head)
        self.size -= count
        self._head = None if count == len(head) else memoryview(head)[count:]

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._head = None
        self.size = 0

    def _cut(self) -> bytes | memoryview:
        pieces = self._pieces
        piece = pieces.popleft()
        length = len(piece)
        if length > SLICE:
            view = memoryview(piece)
            pieces.appendleft(view[SLICE:])
            return view[:SLICE]
        if length >= RECORD or not pieces:
            return piece
        parts = [piece]
        while pieces and length < RECORD:
            piece = pieces.popleft()
            room = RECORD - length
            if len(piece) > room:
                view = memoryview(piece)
                pieces.appendleft(view[room:])
                piece = view[:room]
            parts.append(piece)
            length += len(piece)
        return b"".join(parts)
