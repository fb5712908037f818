"""A chunk of this disk that is being read, piece after piece."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from chunkfarm.chunks.chunkfile import ChunkFile
from chunkfarm.chunks.packs import PackedChunk
from chunkfarm.chunks.read_memory import PIECES, ReadMemory

OpenChunk = ChunkFile | PackedChunk


class Disk(Protocol):
    """What of the store is needed here: the first and the last work away from the reactor."""

    memory: ReadMemory

    def read_piece(self, digest: bytes, file: OpenChunk, start: int, end: int, last: int) -> Deferred[memoryview]: ...

    def was_whole(self, digest: bytes) -> None: ...

    def close_file(self, file: OpenChunk) -> None: ...


class ChunkReader:
    """Verified pieces of one chunk, one of them read ahead. A `PieceSource`."""

    def __init__(self, store: Disk, digest: bytes, file: OpenChunk, start: int, end: int) -> None:
        self.chunk_length = file.length
        """Bytes of the whole chunk."""
        self.length = end - start
        """Bytes that this reader gives."""
        self._store = store
        self._digest = digest
        self._file = file
        self._position = start
        self._end = end
        self._is_whole = self.length == file.length
        self._ahead: Deferred[memoryview] | None = None
        self._closed = False
        self._kept: deque[int] = deque()
        """The lengths of its pieces that are taken to be in memory."""

    def piece_end(self, start: int) -> int:
        """Where the piece that begins at `start` ends: at a multiple of its size, so that no block is read twice."""
        size = self._store.memory.piece()
        end = min((start // size + 1) * size, self._end)
        self._keep(end - start)
        return end

    def _keep(self, length: int) -> None:
        self._kept.append(length)
        self._store.memory.take(length)
        if len(self._kept) > PIECES:
            self._store.memory.give(self._kept.popleft())

    def forget(self) -> None:
        """Its pieces are in memory no more, or the file could not be read."""
        self._store.memory.give(sum(self._kept))
        self._kept.clear()

    def begin(self, first: memoryview) -> None:
        """Take the first piece, which was read when the file was opened."""
        self._ahead = succeed(first)

    def next(self) -> Deferred[bytes | memoryview | None]:
        """The next piece, None after the last; fails with `DamagedChunk`, after `close` with `CancelledError`."""
        if self._closed:
            return fail(CancelledError())
        if self._position == self._end:
            return succeed(None)
        ahead = self._ahead if self._ahead is not None else self._read()
        self._ahead = None
        return ahead.addCallback(self._hand_over)

    def close(self) -> None:
        """Close the file, once a read that is under way has ended."""
        if self._closed:
            return
        self._closed = True
        self.forget()
        if self._ahead is not None:
            self._ahead.addErrback(lambda failure: None)
            self._ahead = None
        if self._position < self._end:
            self._store.close_file(self._file)

    def _hand_over(self, piece: memoryview) -> bytes | memoryview | None:
        self._position += len(piece)
        if self._position < self._end and not self._closed:
            self._ahead = self._read()
        elif self._is_whole and self._position == self._end:
            self._store.was_whole(self._digest)
        return piece

    def _read(self) -> Deferred[memoryview]:
        return self._store.read_piece(
            self._digest, self._file, self._position, self.piece_end(self._position), self._end
        )
