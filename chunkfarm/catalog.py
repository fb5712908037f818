"""Files: their names and manifests, and what it takes to commit one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from chunkfarm.chunks.download import Download
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.chunks.upload import Upload, Uploaded
from chunkfarm.model import FarmOptions, File, Manifest, Receipt
from chunkfarm.table.interface import ITable


@frozen
class Condition:
    """What must hold of the file that is there: etags without quotes; `("*",)` is any file."""

    if_match: tuple[str, ...] = ()
    """One of these must be there (none given: no condition)."""
    if_none_match: tuple[str, ...] = ()
    """None of these may be there."""


@frozen
class Listing:
    """Files in name order; `more` says that others follow after the last one."""

    files: tuple[File, ...]
    more: bool
    stale: int = 0
    """The revision of this server's last state, if the farm could not be asked; 0 if it could."""


@frozen
class Found:
    """A file as it is, or (`stale` > 0) as it was at that revision, the last that this server knows."""

    file: File
    stale: int = 0


class Catalog:
    """The one owner of names and manifests."""

    def __init__(
        self,
        table: ITable,
        transfer: Transfer,
        options: Callable[[], FarmOptions],
        now_ms: Callable[[], int],
        clock: IReactorTime,
    ) -> None:
        raise NotImplementedError

    def stat(self, name: str) -> Deferred[File]:
        """The file as it is now; fails with `NotFound`, or `ReadOnly` when there is no majority to ask."""
        raise NotImplementedError

    def find(self, name: str) -> Deferred[Found]:
        """The file for reading: after `STALE_AFTER` seconds without an answer this server's last state."""
        raise NotImplementedError

    def list(self, prefix: str = "", after: str = "", limit: int = 1000) -> Deferred[Listing]:
        """Files whose name starts with `prefix` and is greater than `after`, in order of their UTF-8."""
        raise NotImplementedError

    def remove(self, name: str, if_match: Sequence[str] = ()) -> Deferred[None]:
        """Remove a file; fails with `NotFound`, or `PreconditionFailed` if its etag is not in `if_match`."""
        raise NotImplementedError

    def commit(
        self,
        name: str,
        size: int,
        chunk_size: int,
        digests: Sequence[bytes],
        content_type: str = "application/octet-stream",
        condition: Condition = Condition(),
        written: Uploaded | None = None,
    ) -> Deferred[Receipt]:
        """Give chunks a name. `written`: the upload of this process that stored them, which is not asked again.

        Fails with `InvalidRequest`, `LimitExceeded`, `MissingChunks`, `PreconditionFailed`, `ReadOnly`, `Busy`.
        """
        raise NotImplementedError

    def manifest(self, file: File) -> Deferred[Manifest]:
        """The whole manifest of a file, read from its chunks if need be."""
        raise NotImplementedError

    def download(self, file: File, offset: int = 0, length: int | None = None) -> Deferred[Download]:
        """The bytes of a file; its first piece is ready when this fires, so errors come before any byte."""
        raise NotImplementedError

    def upload(
        self,
        chunk_size: int | None = None,
        on_pause: Callable[[], None] = lambda: None,
        on_resume: Callable[[], None] = lambda: None,
    ) -> Upload:
        """Begin to take a file; commit what its `finish` gives."""
        raise NotImplementedError
