"""One chunk in one file: its bytes from offset 0, then a trailer by which any part of them can be checked.

    data | CRC32C (4) of each 64 KiB block | digest (32) | block size (4) | length (8) | magic (8) | CRC32C (4)

Numbers are big-endian. The last CRC32C is that of the trailer before it. The digest stands in the trailer
because a file that bears another chunk's name, after a repair of the file system say, has perfect blocks.

Everything here blocks, and is called on a thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading

import google_crc32c

from chunkfarm.chunks.pieces import Buffer
from chunkfarm.errors import InvalidRequest, Mismatch, NotFound
from chunkfarm.model import CHUNK_SIZE_MAX, KIB, MIB

BLOCK = 64 * KIB
"""What must be read to verify one byte; 4 bytes of trailer for each are 0.006 %."""
MAGIC = b"chunk 1\n"
WRITE_PIECE = MIB
"""Bytes hashed and written in one go, so that they are still in the processor's cache for the second."""

_TAIL = struct.Struct(">32sIQ8sI")
_TRAILER_MAX = CHUNK_SIZE_MAX // BLOCK * 4 + _TAIL.size


class DamagedChunk(NotFound):
    """This server's copy of a chunk is damaged; it was put aside and is not served."""

    def __init__(self, message: str, inode: int | None = None) -> None:
        """`inode` tells the copy from one that follows it; None if not even that could be learned."""
        super().__init__(message)
        self.inode = inode


def is_unreadable(error: OSError) -> bool:
    """Whether the disk cannot read what it was asked for, or the file system is damaged there: it stays like this."""
    return error.errno in (errno.EIO, errno.EUCLEAN)


def crc32c(data: Buffer) -> int:
    # The C function takes nothing but bytes; a block copied is a block in the cache.
    return int(google_crc32c.value(bytes(data)))


def trailer_length(length: int) -> int:
    """Bytes of the trailer of a chunk of `length` bytes."""
    return -(-length // BLOCK) * 4 + _TAIL.size


def write_chunk(path: str, data: Buffer, digest: bytes | None, *, checked: bool = False) -> bytes:
    """Write a chunk into a new file and make its contents durable; returns the digest.

    Raises `Mismatch` if the bytes do not have `digest`; with `checked` the caller has compared them already.
    Leaves the file behind on an error: the caller removes it.
    """
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    hashed = hashlib.sha256()
    sums: list[int] = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for start in range(0, len(view), WRITE_PIECE):
            piece = view[start : start + WRITE_PIECE]
            if not checked or digest is None:
                hashed.update(piece)
            sums += [crc32c(piece[block : block + BLOCK]) for block in range(0, len(piece), BLOCK)]
            _write_all(descriptor, piece)
        if not checked or digest is None:
            found = hashed.digest()
            if digest is not None and found != digest:
                raise Mismatch(f"the bytes have the digest {found.hex()}, not {digest.hex()}")
            digest = found
        _write_all(descriptor, memoryview(_trailer(digest, len(view), sums)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest


class ChunkFile:
    """An open chunk; every byte that it gives has been verified. Threads wait for each other."""

    def __init__(self, path: str, digest: bytes) -> None:
        """Open the file; raises `NotFound`, or `DamagedChunk` if it is not whole."""
        self.path = path
        self._descriptor = -1
        # A reader may be closed while a thread reads for it, and a closed descriptor's number may be another
        # file's a moment later.
        self._lock = threading.Lock()
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"this server has no chunk {digest.hex()}") from None
        except OSError as error:
            if is_unreadable(error):
                raise DamagedChunk(f"{os.path.basename(path)} cannot be opened: {error.strerror}") from error
            raise
        try:
            status = os.fstat(self._descriptor)
            self.inode = status.st_ino
            self.file_size = status.st_size
            self.length, self._sums = self._read_trailer(digest)
        except BaseException as error:
            if isinstance(error, DamagedChunk):
                error.inode = status.st_ino
            self.close()
            raise

    def read(self, offset: int, length: int) -> memoryview:
        """Bytes of the chunk, whose blocks have been verified; raises `DamagedChunk`.

        pread into fresh memory rather than a map of the file: a map shows what the disk says whenever a page
        is read again, so what was verified may not be what is sent; and a bad sector under a map ends the
        process with SIGBUS, where it should cost one chunk. Measured at 6 GB/s with the sums; a map, 11.
        """
        if offset < 0 or length < 0 or offset + length > self.length:
            raise InvalidRequest(f"the chunk has {self.length} bytes, not {offset + length}")
        if not length:
            return memoryview(b"")
        first = offset // BLOCK
        last = (offset + length - 1) // BLOCK
        start = first * BLOCK
        with self._lock:
            data = self._read_at(start, min((last + 1) * BLOCK, self.length) - start)
        for block in range(first, last + 1):
            at = (block - first) * BLOCK
            if google_crc32c.value(data[at : at + BLOCK]) != self._sums[block]:
                raise DamagedChunk(f"block {block} of {os.path.basename(self.path)} is damaged")
        return memoryview(data)[offset - start : offset - start + length]

    def digest(self) -> bytes:
        """The digest of the bytes as they are on disk; raises `DamagedChunk` for a damaged block."""
        hashed = hashlib.sha256()
        for start in range(0, self.length, WRITE_PIECE):
            hashed.update(self.read(start, min(WRITE_PIECE, self.length - start)))
        return hashed.digest()

    def close(self) -> None:
        """Close the file. Harmless when called twice."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def __del__(self) -> None:
        # A reader whose opening was cancelled while the thread was at work has nobody else to close it.
        self.close()

    def _read_trailer(self, digest: bytes) -> tuple[int, tuple[int, ...]]:
        name = os.path.basename(self.path)
        begin = max(self.file_size - _TRAILER_MAX, 0)
        end = self._read_at(begin, self.file_size - begin)
        if len(end) < _TAIL.size:
            raise DamagedChunk(f"{name} is cut off: {self.file_size} bytes are less than a trailer")
        named, block_size, length, magic, crc = _TAIL.unpack(end[-_TAIL.size :])
        if magic != MAGIC or block_size != BLOCK:
            raise DamagedChunk(f"{name} does not end with a chunk's trailer")
        if self.file_size != length + trailer_length(length):
            raise DamagedChunk(f"{name} has {self.file_size} bytes; its trailer says {length + trailer_length(length)}")
        trailer = end[-trailer_length(length) :]
        if crc32c(trailer[:-4]) != crc:
            raise DamagedChunk(f"the trailer of {name} is damaged")
        if named != digest:
            raise DamagedChunk(f"{name} holds the chunk {named.hex()}")
        return length, struct.unpack(f">{-(-length // BLOCK)}I", trailer[: -_TAIL.size])

    def _read_at(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
            while len(data) < length and (more := os.pread(self._descriptor, length - len(data), offset + len(data))):
                data += more
        except OSError as error:
            if is_unreadable(error):
                raise DamagedChunk(f"{os.path.basename(self.path)} cannot be read: {error.strerror}") from error
            raise
        if len(data) < length:
            raise DamagedChunk(f"{os.path.basename(self.path)} is cut off at {offset + len(data)}")
        return data


def _trailer(digest: bytes, length: int, sums: list[int]) -> bytes:
    trailer = struct.pack(f">{len(sums)}I", *sums) + _TAIL.pack(digest, BLOCK, length, MAGIC, 0)[:-4]
    return trailer + struct.pack(">I", crc32c(trailer))


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]
