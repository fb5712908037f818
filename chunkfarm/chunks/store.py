"""The chunks on this server's disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from attrs import frozen
from twisted.internet.defer import Deferred

from chunkfarm.chunks.pieces import Buffer, PieceSource, RunInThread
from chunkfarm.errors import NotFound


class DamagedChunk(NotFound):
    """This server's copy of a chunk is damaged; it was put aside and is not served."""


@frozen
class Space:
    """Room for chunks, in bytes. `full` says that no more are taken."""

    free: int
    used: int
    full: bool


class ChunkStore:
    """Chunks as files below one directory."""

    def __init__(
        self,
        directory: Path,
        run_in_thread: RunInThread,
        *,
        reserve: int | None = None,
        on_damaged: Callable[[bytes, str], None] = lambda digest, reason: None,
    ) -> None:
        raise NotImplementedError

    def start(self) -> Deferred[None]:
        """Make the directories, remove what a crash left behind, make what is there durable, count it."""
        raise NotImplementedError

    def put(self, digest: bytes | None, data: Buffer, *, checked: bool = False) -> Deferred[bytes]:
        """Store a chunk; fires with its digest once it is durable. `Mismatch`, `Full`."""
        raise NotImplementedError

    def open(self, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[PieceSource]:
        """Verified pieces of a chunk; the first one has been verified when this fires. `NotFound`, `DamagedChunk`."""
        raise NotImplementedError

    def size(self, digest: bytes) -> Deferred[int]:
        """Bytes of the chunk; fails with `NotFound`, or `DamagedChunk` if its file is not whole."""
        raise NotImplementedError

    def has(self, digests: Sequence[bytes]) -> Deferred[Sequence[bool]]:
        """For each digest whether the chunk is here and its file is whole."""
        raise NotImplementedError

    def delete(self, digest: bytes) -> Deferred[bool]:
        """Remove a chunk; fires with whether there was one."""
        raise NotImplementedError

    def quarantine(self, digest: bytes, reason: str) -> Deferred[None]:
        """Put a chunk aside, so that it is neither served nor counted."""
        raise NotImplementedError

    def scan(self, prefix: int) -> Deferred[Sequence[bytes]]:
        """The digests held that begin with the byte `prefix`, in order."""
        raise NotImplementedError

    def space(self) -> Deferred[Space]:
        """Room on the file system now."""
        raise NotImplementedError


def digests_in(names: Iterable[str]) -> list[bytes]:
    raise NotImplementedError
