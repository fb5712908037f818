"""The chunks on this server's disk.

    chunks/3f/3fa9...c1.chunk       a chunk, see `chunkfile`
    chunks/packs/                   those of 64 KiB and less, see `packs`
    chunks/incoming/17.tmp          a chunk that is being written; what a crash leaves is removed at the start
    chunks/quarantine/3fa9...c1.0   a damaged chunk, put aside for whoever wants to look at it

A chunk is immutable: a large one is renamed into its place when it is durable, later unlinked or put aside, and
never written to in between. So a reader that has the file open is never disturbed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.chunkfile import ChunkFile, DamagedChunk, trailer_length, write_chunk
from chunkfarm.chunks.packing import Packing
from chunkfarm.chunks.packs import PACKED_MOST, PackedChunk, Packs
from chunkfarm.chunks.pieces import Buffer, RunInThread
from chunkfarm.durable import is_full, sync_directory
from chunkfarm.errors import Full, InvalidRequest, LimitExceeded, Mismatch, NotFound
from chunkfarm.model import CHUNK_SIZE_MAX, DIGEST_LENGTH, GIB, MIB, digest_of

__all__ = ["ChunkReader", "ChunkStore", "DamagedChunk", "Space"]

PIECE = 2 * MIB
"""Bytes read in one go. The way of a piece from the disk's thread to the connection costs some 150 us, so that a large
file comes 6 % slower in pieces of half the size; two a reader are in memory."""
RESERVE_LEAST = GIB
RESERVE_PART = 50
"""The reserve, unless the config says another: the larger of 1 GiB and one part in 50 (2 %) of the file system."""

OpenChunk = ChunkFile | PackedChunk
_PREFIXES = 256
T = TypeVar("T")


@frozen
class Space:
    """Room for chunks, in bytes. `full` says that no more are taken."""

    free: int
    """Of the file system."""
    used: int
    """By chunks; too small until they have been counted after a start."""
    full: bool


def room_of(directory: str) -> tuple[int, int]:
    """Free bytes of a directory's file system, and all of them."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


class ChunkStore:
    """Chunks as files below one directory. All disk work is done by `run_in_thread`.

    `reserve`: bytes of the file system that chunks must leave free. `on_damaged(digest, reason)` is called
    in the reactor's thread after a chunk was put aside. `room` answers like `room_of`. Chunks of at most
    `packed_most` bytes share files.
    """

    _log = Logger()

    def __init__(
        self,
        directory: Path,
        run_in_thread: RunInThread,
        *,
        reserve: int | None = None,
        on_damaged: Callable[[bytes, str], None] = lambda digest, reason: None,
        room: Callable[[str], tuple[int, int]] = room_of,
        packed_most: int = PACKED_MOST,
    ) -> None:
        self._directory = str(directory)
        self._run = run_in_thread
        self.reserve = reserve
        """Bytes that chunks leave free; None: the usual part of the disk. May be changed at any time."""
        self._on_damaged = on_damaged
        self._room = room
        self._numbers = count()
        # Held while a name appears or disappears together with its bytes in the count.
        self._lock = threading.Lock()
        self._counted: list[int | None] = [None] * _PREFIXES
        self._directories: set[int] = set()
        self._stopped = False
        self._packed_most = packed_most
        self._packs = Packs(f"{self._directory}/packs", self._check_room)
        self._packing = Packing(self._packs, run_in_thread, self._report)

    def start(self) -> Deferred[None]:
        """Make the directories, remove what a crash left behind, make durable what is there.

        Then counts the bytes held, without anybody waiting for it.
        """
        return Deferred.fromCoroutine(self._start())

    def stop(self) -> None:
        """End the counting that `start` began. What is being written or read goes on."""
        self._stopped = True
        self._packing.stop()

    def close(self) -> None:
        """Close what is open for good, once nothing is written or read any more. Blocks for a moment."""
        self._packs.close()

    def put(self, digest: bytes | None, data: Buffer, *, checked: bool = False) -> Deferred[bytes]:
        """Store a chunk; fires with its digest once it is durable. A chunk that is here already is not rewritten.

        With `checked` the caller has computed `digest` from these very bytes, and they are not hashed again.
        Fails with `Mismatch`, with `Full` before anything is written if the reserve would be touched, and
        with `LimitExceeded` for more than `CHUNK_SIZE_MAX`; nothing is left behind then.
        """
        if len(data) <= self._packed_most:
            return self._packing.put(digest, data, checked)
        return self._run(self._put, digest, data, checked)

    def open(self, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[ChunkReader]:
        """Verified pieces of a chunk (to its end if `length` is None); the first is verified when this fires.

        Fails with `NotFound`, with `DamagedChunk` (then it has been put aside), and with `InvalidRequest`
        for a range that the chunk does not have.
        """
        return self._watched(digest, self._run(self._open, digest, offset, length))

    def size(self, digest: bytes) -> Deferred[int]:
        """Bytes of the chunk; fails with `NotFound`, or `DamagedChunk` if its file is not whole."""
        return self._watched(digest, self._run(self._size, digest))

    def has(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """For each digest the chunk's length if it is here and its file is whole (its blocks are not read), else 0."""
        return self._run(self._has, digests)

    def hold(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """The same as `has`, for whoever is going to rely on the answer."""
        return self.has(digests)

    def check(self, digest: bytes) -> Deferred[int]:
        """Read the whole chunk and compare its digest; fires with its length, fails as `size` does."""
        return self._watched(digest, self._run(self._check, digest))

    def delete(self, digest: bytes) -> Deferred[bool]:
        """Remove a chunk; fires with whether there was one. Readers that have it open go on."""

        def tidy(deleted: bool) -> bool:
            self._packing.tidy()
            return deleted

        return self._run(self._delete, digest).addCallback(tidy)

    def quarantine(self, digest: bytes, reason: str) -> Deferred[None]:
        """Put a chunk aside, so that it is neither served nor counted; tells `on_damaged`."""

        def tell(moved: bool) -> None:
            if moved:
                self._report(digest, reason)

        return self._run(self._put_aside, digest, None).addCallback(tell)

    def quarantined(self) -> Deferred[Sequence[bytes]]:
        """The digests of which a damaged copy was put aside, and of which there is no whole one here now."""
        return self._run(self._quarantined)

    def scan(self, prefix: int) -> Deferred[Sequence[bytes]]:
        """The digests held that begin with the byte `prefix`, in order: the whole store in 256 steps."""
        return self._run(self._scan, prefix)

    def space(self) -> Deferred[Space]:
        """Room on the file system now."""
        return self._run(self._space)

    # What follows up to the reader runs on threads.

    def _path(self, digest: bytes) -> str:
        assert len(digest) == DIGEST_LENGTH
        name = digest.hex()
        return f"{self._directory}/{name[:2]}/{name}.chunk"

    def _prepare(self) -> None:
        for name in ("", "incoming", "quarantine"):
            os.makedirs(os.path.join(self._directory, name), mode=0o700, exist_ok=True)
        with os.scandir(f"{self._directory}/incoming") as entries:
            for entry in entries:
                if entry.name.endswith(".tmp"):
                    os.unlink(entry.path)
        # A process killed between rename and fsync leaves a chunk that is seen but could be lost with the
        # power. It must not be promised to anybody before its name is durable.
        for prefix in range(_PREFIXES):
            with suppress(FileNotFoundError):
                sync_directory(f"{self._directory}/{prefix:02x}")
                self._directories.add(prefix)
        sync_directory(self._directory)
        self._packs.open()

    def _count(self, prefix: int) -> None:
        with self._lock:
            total = 0
            with suppress(FileNotFoundError), os.scandir(f"{self._directory}/{prefix:02x}") as entries:
                total = sum(entry.stat().st_size for entry in entries if entry.name.endswith(".chunk"))
            self._counted[prefix] = total

    def _adjust(self, digest: bytes, change: int) -> None:
        # A directory that has not been counted yet will be, with this change in it.
        before = self._counted[digest[0]]
        if before is not None:
            self._counted[digest[0]] = before + change

    def _put(self, digest: bytes | None, data: Buffer, checked: bool) -> bytes:
        length = len(data)
        if length > CHUNK_SIZE_MAX:
            raise LimitExceeded(f"a chunk has at most {CHUNK_SIZE_MAX} bytes, not {length}")
        if digest is not None and self._whole(digest) is not None:
            if not checked and digest_of(data) != digest:
                raise Mismatch(f"the bytes do not have the digest {digest.hex()}")
            # Whoever is writing the same chunk may not have come to its fsync.
            sync_directory(os.path.dirname(self._path(digest)))
            return digest
        self._check_room(length + trailer_length(length))
        temporary = f"{self._directory}/incoming/{next(self._numbers)}.tmp"
        try:
            digest = write_chunk(temporary, data, digest, checked=checked)
            self._settle(temporary, digest)
        except BaseException as error:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            if is_full(error):
                raise Full(f"this server's disk is full: {error}") from error
            raise
        return digest

    def _settle(self, temporary: str, digest: bytes) -> None:
        """Rename a durable file into its place, and make the name durable."""
        path = self._path(digest)
        directory = os.path.dirname(path)
        with self._lock:
            if digest[0] not in self._directories:
                # Under the lock, or another thread could promise a chunk in a directory that is not durable yet.
                os.makedirs(directory, 0o700, exist_ok=True)
                sync_directory(self._directory)
                self._directories.add(digest[0])
            if self._whole(digest) is None:
                before = os.stat(path).st_size if os.path.exists(path) else 0
                os.rename(temporary, path)
                self._adjust(digest, os.stat(path).st_size - before)
            else:
                os.unlink(temporary)
        sync_directory(directory)

    def _check_room(self, needed: int) -> None:
        free, reserve = self._free_and_reserve()
        if free - needed < reserve:
            raise Full(
                f"this server's disk is full: {free} bytes are free, {needed} are needed, {reserve} are kept in reserve"
            )

    def _free_and_reserve(self) -> tuple[int, int]:
        free, total = self._room(self._directory)
        return free, self.reserve if self.reserve is not None else max(RESERVE_LEAST, total // RESERVE_PART)

    def _space(self) -> Space:
        free, reserve = self._free_and_reserve()
        return Space(free, sum(filter(None, self._counted)) + self._packs.used, free < reserve)

    def _whole(self, digest: bytes) -> int | None:
        """The length of a chunk that is here and whole."""
        if (place := self._packs.place(digest)) is not None:
            return place.length
        try:
            file = ChunkFile(self._path(digest), digest)
        except NotFound:
            return None
        file.close()
        return file.length

    def _has(self, digests: Sequence[bytes]) -> Sequence[int]:
        return [self._whole(digest) or 0 for digest in digests]

    def _open_file(self, digest: bytes) -> OpenChunk:
        try:
            if (packed := self._packs.read(digest)) is not None:
                return packed
            return ChunkFile(self._path(digest), digest)
        except DamagedChunk:
            self._put_aside(digest, None)
            raise

    def _size(self, digest: bytes) -> int:
        file = self._open_file(digest)
        file.close()
        return file.length

    def _check(self, digest: bytes) -> int:
        file = self._open_file(digest)
        try:
            if file.digest() != digest:
                raise DamagedChunk(f"the bytes of chunk {digest.hex()} do not have that digest")
        except DamagedChunk:
            self._put_aside(digest, file.inode)
            raise
        finally:
            file.close()
        return file.length

    def _open(self, digest: bytes, offset: int, length: int | None) -> ChunkReader:
        file = self._open_file(digest)
        end = file.length if length is None else offset + length
        if not 0 <= offset <= end <= file.length:
            file.close()
            raise InvalidRequest(f"the chunk has {file.length} bytes: there is no range {offset} to {end}")
        reader = ChunkReader(self, digest, file, offset, end)
        reader.begin(self._read(digest, file, offset, reader.piece_end(offset), end))
        return reader

    def _read(self, digest: bytes, file: OpenChunk, start: int, end: int, last: int) -> memoryview:
        try:
            piece = file.read(start, end - start)
        except DamagedChunk:
            file.close()
            self._put_aside(digest, file.inode)
            raise
        if end == last:
            file.close()
        return piece

    def _delete(self, digest: bytes) -> bool:
        packed = self._packs.delete(digest)
        path = self._path(digest)
        with self._lock:
            try:
                size = os.stat(path).st_size
                os.unlink(path)
            except FileNotFoundError:
                return packed
            self._adjust(digest, -size)
            return True

    def _put_aside(self, digest: bytes, inode: int | None) -> bool:
        """Move a chunk's file away, but only the one that was found damaged: a good one may have followed it."""
        path = self._path(digest)
        with self._lock:
            names = (f"{self._directory}/quarantine/{digest.hex()}.{number}" for number in count())
            aside = next(name for name in names if not os.path.exists(name))
            if self._packs.put_aside(digest, aside, inode):
                return True
            try:
                status = os.stat(path)
            except FileNotFoundError:
                return False
            if inode is not None and status.st_ino != inode:
                return False
            os.rename(path, aside)
            self._adjust(digest, -status.st_size)
        return True

    def _quarantined(self) -> Sequence[bytes]:
        aside = set()
        for name in os.listdir(f"{self._directory}/quarantine"):
            with suppress(ValueError):
                digest = bytes.fromhex(name.partition(".")[0])
                if len(digest) == DIGEST_LENGTH and self._whole(digest) is None:
                    aside.add(digest)
        return sorted(aside)

    def _scan(self, prefix: int) -> Sequence[bytes]:
        digests = self._packs.digests(prefix)
        with suppress(FileNotFoundError), os.scandir(f"{self._directory}/{prefix:02x}") as entries:
            for entry in entries:
                name, _, kind = entry.name.partition(".")
                if kind == "chunk" and len(name) == 2 * DIGEST_LENGTH:
                    with suppress(ValueError):
                        digests.append(bytes.fromhex(name))
        return sorted({digest for digest in digests if digest[0] == prefix})

    # What follows runs in the reactor's thread.

    async def _start(self) -> None:
        await self._run(self._prepare)
        Deferred.fromCoroutine(self._count_all()).addErrback(
            lambda failure: self._log.failure("while counting the chunks in {path}", failure, path=self._directory)
        )

    async def _count_all(self) -> None:
        for prefix in range(_PREFIXES):
            if self._stopped:
                return
            await self._run(self._count, prefix)

    def read_piece(self, digest: bytes, file: OpenChunk, start: int, end: int, last: int) -> Deferred[memoryview]:
        """For the reader: the verified bytes from `start` to `end`; the file is closed when `end` is the `last`."""
        return self._watched(digest, self._run(self._read, digest, file, start, end, last))

    def close_file(self, file: OpenChunk) -> None:
        """For the reader: close a file, away from the reactor because closing may wait for the disk."""
        self._run(file.close).addErrback(lambda failure: self._log.failure("while closing a chunk", failure))

    def _watched(self, digest: bytes, result: Deferred[T]) -> Deferred[T]:
        def look(failure: Failure) -> Failure:
            if failure.check(DamagedChunk):
                self._report(digest, str(failure.value))
            return failure

        return result.addErrback(look)

    def _report(self, digest: bytes, reason: str) -> None:
        self._log.error("chunk {digest} was put aside: {reason}", digest=digest.hex(), reason=reason)
        self._on_damaged(digest, reason)


class ChunkReader:
    """Verified pieces of one chunk, one of them read ahead. A `PieceSource`."""

    def __init__(self, store: ChunkStore, digest: bytes, file: OpenChunk, start: int, end: int) -> None:
        self.chunk_length = file.length
        """Bytes of the whole chunk."""
        self.length = end - start
        """Bytes that this reader gives."""
        self._store = store
        self._digest = digest
        self._file = file
        self._position = start
        self._end = end
        self._ahead: Deferred[memoryview] | None = None
        self._closed = False

    def piece_end(self, start: int) -> int:
        """Where the piece that begins at `start` ends: at a multiple of `PIECE`, so that no block is read twice."""
        return min((start // PIECE + 1) * PIECE, self._end)

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
        if self._ahead is not None:
            self._ahead.addErrback(lambda failure: None)
            self._ahead = None
        if self._position < self._end:
            self._store.close_file(self._file)

    def _hand_over(self, piece: memoryview) -> bytes | memoryview | None:
        self._position += len(piece)
        if self._position < self._end and not self._closed:
            self._ahead = self._read()
        return piece

    def _read(self) -> Deferred[memoryview]:
        return self._store.read_piece(
            self._digest, self._file, self._position, self.piece_end(self._position), self._end
        )
