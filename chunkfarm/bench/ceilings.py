"""Disk and hashing on this machine, one after the other. Everything here blocks, and is called on a thread."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c

from chunkfarm.bench.bounds import MIB, median

PIECE = MIB
BLOCK = 64 * 1024
"""What a chunk has one CRC32C for."""
SYNCS = 50
SYNC_BYTES = 4096
SMALL_FILES = 50
SMALL_BYTES = 1024
HASH_SECONDS = 0.4
"""Of each hash: enough for a figure, and not to be waited for."""

Stopped = Callable[[], bool]
"""Whether nobody wants the figure any more."""


class GivenUp(Exception):
    """Nobody wants the figure any more."""


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A name for a file in there, which is removed."""
    path = folder / f".chunkfarm-bench-{secrets.token_hex(8)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def write_and_read(folder: Path, size: int, seconds: Callable[[], float], stopped: Stopped) -> tuple[float, float]:
    """Bytes a second of writing one file of `size` bytes and synchronizing it, and of reading it from the disk.

    It is read after the kernel was asked to forget it; where that is not done (tmpfs), the figure is that of memory.
    Raises `OSError`, and `GivenUp`.
    """
    piece = os.urandom(PIECE)
    with _temporary(folder) as path:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            begun = seconds()
            for _ in range(max(1, size // PIECE)):
                _go_on(stopped)
                os.write(descriptor, piece)
            os.fsync(descriptor)
            written = os.lseek(descriptor, 0, os.SEEK_CUR)
            write = written / (seconds() - begun)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(descriptor, 0, os.SEEK_SET)
            begun = seconds()
            while os.read(descriptor, PIECE):
                _go_on(stopped)
            return write, written / (seconds() - begun)
        finally:
            os.close(descriptor)


def sync_time(folder: Path, seconds: Callable[[], float], stopped: Stopped) -> float:
    """Milliseconds of appending a little to a file and synchronizing it, the median. Raises `OSError`, `GivenUp`."""
    times = []
    with _temporary(folder) as path:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for _ in range(SYNCS):
                _go_on(stopped)
                begun = seconds()
                os.write(descriptor, bytes(SYNC_BYTES))
                os.fsync(descriptor)
                times.append(seconds() - begun)
        finally:
            os.close(descriptor)
    return 1000 * median(times)


def new_files(folder: Path, seconds: Callable[[], float], stopped: Stopped) -> float:
    """Small files a second, each made, synchronized, renamed, and its name synchronized. Raises as `sync_time`."""
    directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        begun = seconds()
        for _ in range(SMALL_FILES):
            _go_on(stopped)
            with _temporary(folder) as path, _temporary(folder) as final:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.write(descriptor, bytes(SMALL_BYTES))
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                os.rename(path, final)
                os.fsync(directory)
        return SMALL_FILES / (seconds() - begun)
    finally:
        os.close(directory)


def hash_rate(seconds: Callable[[], float], stopped: Stopped) -> float:
    """Bytes a second of SHA-256 on one processor. Raises `GivenUp`."""
    piece = os.urandom(PIECE)
    hashed = hashlib.sha256()
    return _rate(lambda: hashed.update(piece), len(piece), seconds, stopped)


def crc_rate(seconds: Callable[[], float], stopped: Stopped) -> float:
    """Bytes a second of CRC32C on one processor, in blocks of 64 KiB. Raises `GivenUp`."""
    block = os.urandom(BLOCK)
    return _rate(lambda: google_crc32c.value(block), len(block), seconds, stopped)


def _rate(work: Callable[[], object], size: int, seconds: Callable[[], float], stopped: Stopped) -> float:
    begun, done = seconds(), 0
    while (passed := seconds() - begun) < HASH_SECONDS:
        _go_on(stopped)
        work()
        done += size
    return done / passed


def _go_on(stopped: Stopped) -> None:
    if stopped():
        raise GivenUp
