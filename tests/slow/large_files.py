"""Large content that is cheap to make and never repeats, and what to compare it by."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

MIB = 1024 * 1024
GIB = 1024 * MIB


def blocks(size: int, seed: int = 0) -> Iterator[bytes]:
    """`size` bytes in blocks of a MiB: the same random ones, each with its own number in front."""
    common = random.Random(seed).randbytes(MIB)
    for number in range(size // MIB):
        yield b"%020d\n" % number + common[21:]
    if size % MIB:
        yield common[: size % MIB]


def write_file(path: Path, size: int, seed: int = 0) -> str:
    """Write such content, and return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in blocks(size, seed):
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_under(directory: Path, pattern: str = "**/*") -> int:
    """Bytes in the files below a directory, some of which may vanish meanwhile."""
    total = 0
    for path in directory.glob(pattern):
        try:
            if path.is_file():
                total += path.stat().st_size
        except FileNotFoundError:
            pass
    return total
