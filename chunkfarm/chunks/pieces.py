"""Bytes that come one piece after the other, and lists of digests that do not fill the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, Protocol, TypeVar, overload

from twisted.internet.defer import Deferred, succeed

from chunkfarm.model import DIGEST_LENGTH, split_digests
from chunkfarm.wire.pump import PieceSource

__all__ = ["Buffer", "BytesSource", "Digests", "PieceSource", "RunInThread", "raw_digests", "read_whole"]

Buffer = bytes | bytearray | memoryview
"""What may be stored or written without a copy. Whoever hands it over leaves it alone from then on."""

P = ParamSpec("P")
T = TypeVar("T")


class RunInThread(Protocol):
    """Calls a function that blocks, away from the reactor: `deferToThreadPool` with its first two arguments given."""

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]: ...


class BytesSource:
    """Bytes in memory as a `PieceSource`."""

    def __init__(
        self, data: bytes | memoryview, piece: int = 512 * 1024, closed: Callable[[], None] = lambda: None
    ) -> None:
        """`closed` is called once when nobody needs the bytes any more."""
        self._rest = memoryview(data)
        self._piece = piece
        self._on_close: Callable[[], None] | None = closed

    def next(self) -> Deferred[bytes | memoryview | None]:
        """The next piece, a slice without a copy; None after the last one."""
        piece, self._rest = self._rest[: self._piece], self._rest[self._piece :]
        return succeed(piece if piece else None)

    def close(self) -> None:
        """Let go of the bytes."""
        self._rest = memoryview(b"")
        closed, self._on_close = self._on_close, None
        if closed is not None:
            closed()


async def read_whole(source: PieceSource) -> bytes:
    """All bytes of a source, which is closed then."""
    pieces: list[bytes | memoryview] = []
    try:
        while (piece := await source.next()) is not None:
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        source.close()


class Digests(Sequence[bytes]):
    """Raw digests, concatenated, as a sequence: a million of them take 32 MiB instead of 100."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) % DIGEST_LENGTH:
            split_digests(raw)
        self.raw = raw

    def __len__(self) -> int:
        return len(self.raw) // DIGEST_LENGTH

    @overload
    def __getitem__(self, position: int) -> bytes: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[bytes]: ...

    def __getitem__(self, position: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(position, slice):
            return tuple(self[index] for index in range(*position.indices(len(self))))
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        start = position % len(self) * DIGEST_LENGTH
        return self.raw[start : start + DIGEST_LENGTH]

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self.raw), DIGEST_LENGTH):
            yield self.raw[start : start + DIGEST_LENGTH]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Digests):
            return self.raw == other.raw
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"<{len(self)} digests>"


def raw_digests(digests: Sequence[bytes]) -> bytes:
    """Digests as one run of bytes."""
    return digests.raw if isinstance(digests, Digests) else b"".join(digests)
