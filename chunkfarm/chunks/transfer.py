"""Chunks to and from the servers of the farm: write to enough of them, read from the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from chunkfarm.chunks.pieces import Buffer, PieceSource, RunInThread
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.errors import Busy
from chunkfarm.links.interface import IChunkLinks
from chunkfarm.model import Server


class ChunkUnavailable(Busy):
    """Servers that may hold the chunk did not answer; the same request may succeed later."""


@frozen
class ChunkReceipt:
    """A chunk that is durable on the servers `holders` (ids)."""

    digest: bytes
    holders: tuple[str, ...]


class Transfer:
    """Writes and reads chunks wherever they belong."""

    def __init__(
        self,
        store: ChunkStore,
        servers: Callable[[], tuple[Server, ...]],
        self_id: str,
        links: IChunkLinks,
        replicas: Callable[[], int],
        clock: IReactorTime,
        run_in_thread: RunInThread,
    ) -> None:
        raise NotImplementedError

    def required(self) -> int:
        """Copies that must be durable before a write is acknowledged."""
        raise NotImplementedError

    def write(self, data: Buffer, digest: bytes | None = None) -> Deferred[ChunkReceipt]:
        """Store a chunk on the servers it belongs on; fires when the required copies are durable.

        Fails with `Mismatch`, `Full`, or `ReadOnly` if not enough servers take it. Cancelling gives it up.
        """
        raise NotImplementedError

    def open(
        self, digest: bytes, offset: int = 0, length: int | None = None, chunk_length: int | None = None
    ) -> Deferred[PieceSource]:
        """Verified pieces of a chunk from wherever it is; the first piece is ready when this fires.

        `chunk_length`, when known, is what the whole chunk must have. Fails with `NotFound` if every server
        answered that it has none, with `ChunkUnavailable` if some did not answer.
        """
        raise NotImplementedError

    def have(self, digests: Sequence[bytes]) -> Deferred[dict[bytes, tuple[str, ...]]]:
        """The ids of the servers that hold each chunk (an empty tuple if none does)."""
        raise NotImplementedError

    def stop(self) -> Deferred[None]:
        """Wait for copies that still follow an acknowledged write."""
        raise NotImplementedError
