"""Chunks that have a file of their own: all of more than 64 KiB.

    chunks/3f/3fa9...c1.chunk       a chunk, see `chunkfile`
    chunks/incoming/17.tmp          a chunk that is being written; what a crash leaves is removed at the start

A chunk is immutable: it is renamed into its place when it is durable, later unlinked or put aside, and never written
to in between. So a reader that has the file open is never disturbed.

Everything here blocks, and is called on a thread.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from itertools import count

from chunkfarm.chunks.chunkfile import ChunkFile, is_unreadable, write_chunk
from chunkfarm.chunks.pieces import Buffer
from chunkfarm.durable import sync_directory
from chunkfarm.errors import NotFound
from chunkfarm.model import DIGEST_LENGTH

PREFIXES = 256


class LooseChunks:
    """The chunk files below one directory. `lock` is held while a name appears or disappears."""

    def __init__(self, directory: str, lock: threading.Lock) -> None:
        self._directory = directory
        self._lock = lock
        self._numbers = count()
        self._counted: list[int | None] = [None] * PREFIXES
        self._directories: set[int] = set()
        self._unsettled: set[bytes] = set()
        """Chunks whose names can be seen, and may not outlive a power cut."""
        self._stuck: set[str] = set()
        """Files that are in the way and cannot be removed."""
        self.unreadable: list[str] = []
        """What the disk could not read or remove when they were opened."""

    def open(self) -> None:
        """Make the directories, remove what a crash left behind, make durable what is there."""
        self._counted = [None] * PREFIXES
        self._directories.clear()
        for name in ("", "incoming"):
            os.makedirs(os.path.join(self._directory, name), mode=0o700, exist_ok=True)
        with os.scandir(f"{self._directory}/incoming") as entries:
            for entry in entries:
                if entry.name.endswith(".tmp"):
                    self._remove(entry.path)
        # A process killed between rename and fsync leaves a chunk that is seen but could be lost with the
        # power. It must not be promised to anybody before its name is durable.
        for prefix in range(PREFIXES):
            path = f"{self._directory}/{prefix:02x}"
            try:
                sync_directory(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._pass_over(path, error)
                continue
            self._directories.add(prefix)

    def _remove(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError as error:
            self._pass_over(path, error)
            self._stuck.add(path)

    def _pass_over(self, path: str, error: OSError) -> None:
        """One bad sector must not keep a server from all the chunks that are beside it."""
        if not is_unreadable(error):
            raise error
        self.unreadable.append(f"{path}: {error.strerror}")

    @property
    def used(self) -> int:
        """Bytes of the files that have been counted."""
        return sum(filter(None, self._counted))

    def count(self, prefix: int) -> None:
        """Count the bytes of the chunks that begin with this byte."""
        with self._lock:
            total = 0
            try:
                with os.scandir(f"{self._directory}/{prefix:02x}") as entries:
                    total = sum(_size(entry) for entry in entries if entry.name.endswith(".chunk"))
            except OSError as error:
                if not isinstance(error, FileNotFoundError) and not is_unreadable(error):
                    raise
            self._counted[prefix] = total

    def path(self, digest: bytes) -> str:
        """Where this chunk's file is, if there is one."""
        assert len(digest) == DIGEST_LENGTH
        name = digest.hex()
        return f"{self._directory}/{name[:2]}/{name}.chunk"

    def file(self, digest: bytes) -> ChunkFile:
        """The chunk's file, opened; raises `NotFound`, and `DamagedChunk` if it is not whole."""
        return ChunkFile(self.path(digest), digest)

    def length(self, digest: bytes) -> int | None:
        """Bytes of the chunk, if it is here and its file is whole."""
        try:
            file = self.file(digest)
        except NotFound:
            return None
        file.close()
        return file.length

    def written(self, digest: bytes) -> int:
        """When the chunk's file was written, in ms; 0 if there is none, or nothing can be learned of it."""
        status = _status(self.path(digest))
        return status.st_mtime_ns // 1_000_000 if status is not None else 0

    def settle(self, digest: bytes) -> None:
        """Make the chunk's name durable: whoever writes the same chunk may not have come to that."""
        sync_directory(os.path.dirname(self.path(digest)))
        self._unsettled.discard(digest)

    def settle_new(self, digest: bytes) -> None:
        """The same, if it may not be durable yet: its writer may be waiting for the disk, or the disk has failed."""
        if digest in self._unsettled:
            self.settle(digest)

    def write(self, digest: bytes | None, data: Buffer, checked: bool) -> tuple[str, bytes]:
        """Write a chunk into a file that bears no chunk's name yet; the file, and the digest.

        Raises `Mismatch` and `OSError`; then no file is left behind.
        """
        names = (f"{self._directory}/incoming/{number}.tmp" for number in self._numbers)
        temporary = next(name for name in names if name not in self._stuck)
        try:
            return temporary, write_chunk(temporary, data, digest, checked=checked)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def take(self, temporary: str, digest: bytes) -> None:
        """Rename a durable file into its place, over one that may be there, and make the name durable."""
        path = self.path(digest)
        try:
            with self._lock:
                if digest[0] not in self._directories:
                    # Under the lock, or another thread could promise a chunk in a directory that is not durable yet.
                    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
                    sync_directory(self._directory)
                    self._directories.add(digest[0])
                # What was there may be damaged, and nobody has read it just now.
                before = os.stat(path).st_size if os.path.exists(path) else 0
                self._unsettled.add(digest)
                os.rename(temporary, path)
                self._adjust(digest, os.stat(path).st_size - before)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        self.settle(digest)

    def delete(self, digest: bytes) -> int | None:
        """Remove a chunk, the lock being held; bytes of its file, None if there was none, or it cannot be touched."""
        path = self.path(digest)
        status = _status(path)
        if status is None:
            return None
        try:
            os.unlink(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if is_unreadable(error):
                return None
            raise
        self._unsettled.discard(digest)
        self._adjust(digest, -status.st_size)
        return status.st_size

    def put_aside(self, digest: bytes, aside: str, inode: int | None) -> bool:
        """Move a chunk's file away, the lock being held; with `inode` only the one that was found damaged."""
        path = self.path(digest)
        status = _status(path)
        if status is None or (inode is not None and status.st_ino != inode):
            return False
        os.rename(path, aside)
        self._unsettled.discard(digest)
        self._adjust(digest, -status.st_size)
        return True

    def digests(self, prefix: int) -> list[bytes]:
        """The chunks that begin with this byte, in no order."""
        found = []
        with suppress(FileNotFoundError), os.scandir(f"{self._directory}/{prefix:02x}") as entries:
            for entry in entries:
                name, _, kind = entry.name.partition(".")
                if kind == "chunk" and len(name) == 2 * DIGEST_LENGTH:
                    with suppress(ValueError):
                        found.append(bytes.fromhex(name))
        return [digest for digest in found if digest[0] == prefix]

    def _adjust(self, digest: bytes, change: int) -> None:
        # A directory that has not been counted yet will be, with this change in it.
        before = self._counted[digest[0]]
        if before is not None:
            self._counted[digest[0]] = before + change


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError as error:
        if is_unreadable(error):
            return 0
        raise


def _status(path: str) -> os.stat_result | None:
    """What is known of a file; None if there is none, or the disk cannot tell: then it cannot be moved away either."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if is_unreadable(error):
            return None
        raise
