"""A file on its way in: cut into chunks, written a few at a time."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from twisted.internet.defer import Deferred

from chunkfarm.chunks.pieces import Digests
from chunkfarm.chunks.transfer import Transfer


@frozen
class Uploaded:
    """What an upload stored: the manifest to commit, the fewest copies of any chunk, and all holders."""

    size: int
    chunk_size: int
    digests: Digests
    copies: int
    holders: tuple[str, ...]


class Upload:
    """Takes bytes as they come; back-pressure through `on_pause` and `on_resume` (never called from `__init__`)."""

    def __init__(
        self,
        transfer: Transfer,
        chunk_size: int,
        on_pause: Callable[[], None] = lambda: None,
        on_resume: Callable[[], None] = lambda: None,
    ) -> None:
        raise NotImplementedError

    def write(self, data: bytes | memoryview) -> None:
        """Take bytes (copied). After a failure they are dropped, and `finish` tells why."""
        raise NotImplementedError

    def finish(self) -> Deferred[Uploaded]:
        """Store the rest; fires when every chunk is acknowledged, fails as `Transfer.write` does."""
        raise NotImplementedError

    def abort(self) -> None:
        """Give up: whoever uploads has gone away. Harmless after the end."""
        raise NotImplementedError
