"""The catalog as somebody sees it whose key is good for a part of the names only.

Everything that is done with a name goes through a catalog, so this is the one place where that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from chunkfarm.catalog import Catalog, Condition, Found, Listing
from chunkfarm.chunks.download import Download
from chunkfarm.chunks.upload import Upload, Uploaded
from chunkfarm.errors import Denied
from chunkfarm.explanation import Explanation
from chunkfarm.model import File, Principal, Receipt

ANY = Condition()


class ScopedCatalog:
    """What `Catalog` gives, for names that begin with `prefix`; others are `Denied`, whether they exist or not."""

    def __init__(self, catalog: Catalog, prefix: str) -> None:
        self._catalog = catalog
        self._prefix = prefix

    def stat(self, name: str) -> Deferred[File]:
        return self._within(name) or self._catalog.stat(name)

    def find(self, name: str) -> Deferred[Found]:
        return self._within(name) or self._catalog.find(name)

    def list(self, prefix: str = "", after: str = "", limit: int = 1000) -> Deferred[Listing]:
        """Of what was asked for, the part that may be seen: a folder above it shows nothing else."""
        if prefix.startswith(self._prefix):
            return self._catalog.list(prefix, after, limit)
        if self._prefix.startswith(prefix):
            return self._catalog.list(self._prefix, after, limit)
        return succeed(Listing((), False))

    def remove(self, name: str, if_match: Sequence[str] = ()) -> Deferred[None]:
        return self._within(name) or self._catalog.remove(name, if_match)

    def commit(
        self,
        name: str,
        size: int,
        chunk_size: int,
        digests: Sequence[bytes],
        content_type: str = "application/octet-stream",
        condition: Condition = ANY,
        written: Uploaded | None = None,
    ) -> Deferred[Receipt]:
        return self._within(name) or self._catalog.commit(
            name, size, chunk_size, digests, content_type, condition, written
        )

    def explain(self, name: str, start: int = 0, limit: int = 1000) -> Deferred[Explanation]:
        return self._within(name) or self._catalog.explain(name, start, limit)

    def check(self, name: str, start: int = 0, limit: int = 1000, read: bool = True) -> Deferred[Explanation]:
        return self._within(name) or self._catalog.check(name, start, limit, read)

    def download(self, file: File, offset: int = 0, length: int | None = None) -> Deferred[Download]:
        return self._within(file.name) or self._catalog.download(file, offset, length)

    def upload(
        self,
        chunk_size: int | None = None,
        on_pause: Callable[[], None] = lambda: None,
        on_resume: Callable[[], None] = lambda: None,
    ) -> Upload:
        """Bytes have no name yet; `commit` looks at it."""
        return self._catalog.upload(chunk_size, on_pause, on_resume)

    def _within(self, name: str) -> Deferred[Any] | None:
        """A failure, if the name may not be touched."""
        if name.startswith(self._prefix):
            return None
        return fail(Denied(f"this key is good for names that begin with {self._prefix}"))


Names = Catalog | ScopedCatalog


def catalog_of(catalog: Catalog, principal: Principal | None) -> Names:
    """The catalog as this principal may see it."""
    return ScopedCatalog(catalog, principal.prefix) if principal is not None and principal.prefix else catalog
