"""A file, or a range of it, on its way out."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from chunkfarm.chunks.transfer import Transfer
from chunkfarm.model import Manifest


class Download:
    """A `PieceSource` over a range of a manifest, which reads the next chunks ahead."""

    def __init__(self, transfer: Transfer, manifest: Manifest, offset: int = 0, length: int | None = None) -> None:
        raise NotImplementedError

    def next(self) -> Deferred[bytes | memoryview | None]:
        """The next piece; None after the last one."""
        raise NotImplementedError

    def close(self) -> None:
        """Give up what is read ahead."""
        raise NotImplementedError
