"""A server's inside in memory, for tests of the ports: the same interface as the real parts, no disk, no links.

`MemoryBackend` answers at once. A test that wants an answer later, or an error, sets what it needs:
`backend.catalog.waits` (a Deferred that every answer of the catalog waits for), `backend.catalog.fails_at` (the offset at
which the bytes of a download end in an error), `backend.catalog.error` (what a commit, stat, list or remove fails with).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred, fail, succeed

from chunkfarm.errors import AuthenticationFailed, MissingChunks, Mismatch, NotFound, PreconditionFailed
from chunkfarm.membership import Standing, in_order, succession
from chunkfarm.model import (
    FarmOptions,
    File,
    Manifest,
    Principal,
    Receipt,
    Server,
    chunk_count,
    digest_of,
    etag_of,
)
from chunkfarm.state import ServerState

SERVER_ID = "5e" * 16
OTHER_ID = "0f" * 16
NOW = 1_795_341_600_123
"""Milliseconds: 2026-11-22T10:00:00.123Z."""

T = TypeVar("T")


class MemorySource:
    """Pieces of bytes, one a call, then None."""

    def __init__(self, data: bytes, piece: int = 64 * 1024, fails_at: int | None = None) -> None:
        self._data = memoryview(data)
        self._piece = piece
        self._offset = 0
        self._fails_at = fails_at
        self.closed = False

    def next(self) -> Deferred[bytes | memoryview | None]:
        if self._fails_at is not None and self._offset >= self._fails_at:
            return fail(NotFound("no holder of the chunk answers"))
        if self._offset >= len(self._data):
            return succeed(None)
        end = self._offset + self._piece
        if self._fails_at is not None:
            end = min(end, self._fails_at)
        piece = self._data[self._offset : end]
        self._offset = end
        return succeed(piece)

    def close(self) -> None:
        self.closed = True


@define
class MemoryStore:
    """This disk: digest -> bytes. `error` makes every put fail."""

    chunks: dict[bytes, bytes] = field(factory=dict)
    error: Exception | None = None

    def put(self, digest: bytes | None, data: bytes | bytearray | memoryview) -> Deferred[bytes]:
        if self.error is not None:
            return fail(self.error)
        found = digest_of(data)
        if digest is not None and found != digest:
            return fail(Mismatch(f"the bytes have the digest {found.hex()}, not {digest.hex()}"))
        self.chunks[found] = bytes(data)
        return succeed(found)

    def has(self, digest: bytes) -> bool:
        return digest in self.chunks


@frozen
class MemoryChunkReceipt:
    digest: bytes
    holders: tuple[str, ...]


@define
class MemoryTransfer:
    """Chunks of the farm: all of them are on this disk."""

    store: MemoryStore

    def write(self, data: bytes | bytearray | memoryview, digest: bytes | None = None) -> Deferred[MemoryChunkReceipt]:
        return self.store.put(digest, data).addCallback(lambda found: MemoryChunkReceipt(found, (SERVER_ID, OTHER_ID)))

    def open(self, digest: bytes, offset: int = 0, length: int | None = None) -> MemorySource:
        data = self.store.chunks[digest]
        return MemorySource(data[offset : None if length is None else offset + length])

    def have(self, digests: Sequence[bytes]) -> Deferred[dict[bytes, tuple[str, ...]]]:
        return succeed(
            {digest: (SERVER_ID, OTHER_ID) if self.store.has(digest) else () for digest in digests},
        )


class MemoryUpload:
    """Cuts what is written into chunks; `abort` forgets it. A test makes it `full` by calling `fill` and `drain`."""

    def __init__(self, transfer: MemoryTransfer, chunk_size: int) -> None:
        self._transfer = transfer
        self._chunk_size = chunk_size
        self._data = bytearray()
        self.written: list[int] = []
        self.aborted = False
        self.error: Exception | None = None
        self.full: Callable[[bool], None] = lambda full: None

    def write(self, data: bytes | memoryview) -> None:
        assert not self.aborted
        self.written.append(len(data))
        self._data += data

    def finish(self) -> Deferred[tuple[int, tuple[bytes, ...], tuple[MemoryChunkReceipt, ...]]]:
        if self.error is not None:
            return fail(self.error)
        receipts = []
        for start in range(0, len(self._data), self._chunk_size):
            piece = bytes(self._data[start : start + self._chunk_size])
            self._transfer.store.chunks[digest_of(piece)] = piece
            receipts.append(MemoryChunkReceipt(digest_of(piece), (SERVER_ID, OTHER_ID)))
        return succeed((len(self._data), tuple(receipt.digest for receipt in receipts), tuple(receipts)))

    def abort(self) -> None:
        self.aborted = True


class MemoryCatalog:
    """Names and manifests in a dict."""

    def __init__(self, transfer: MemoryTransfer) -> None:
        self.transfer = transfer
        self.files: dict[str, File] = {}
        self.revision = 0
        self.waits: Deferred[Any] | None = None
        self.error: Exception | None = None
        self.fails_at: int | None = None
        self.piece = 64 * 1024
        self.calls: list[tuple[Any, ...]] = []
        self.sources: list[MemorySource] = []
        self.uploads: list[MemoryUpload] = []

    def add(
        self, name: str, data: bytes, content_type: str = "application/octet-stream", chunk_size: int = 4096
    ) -> File:
        """Put a file there, as a test's preparation."""
        digests = []
        for start in range(0, len(data), chunk_size):
            piece = data[start : start + chunk_size]
            digests.append(digest_of(piece))
            self.transfer.store.chunks[digests[-1]] = piece
        return self._set(name, len(data), chunk_size, tuple(digests), content_type)

    def content(self, name: str) -> bytes:
        """The bytes of a file, for a test to look at."""
        return b"".join(self.transfer.store.chunks[digest] for digest in self.files[name].digests)

    def stat(self, name: str) -> Deferred[File]:
        self.calls.append(("stat", name))
        if name not in self.files:
            return self._answer(NotFound(f"there is no file {name!r}"))
        return self._answer(self.files[name])

    def list(self, prefix: str, after: str = "", limit: int = 1000) -> Deferred[tuple[tuple[File, ...], bool]]:
        self.calls.append(("list", prefix, after, limit))
        names = sorted(
            (name for name in self.files if name.startswith(prefix) and name.encode() > after.encode()), key=str.encode
        )
        return self._answer((tuple(self.files[name] for name in names[:limit]), len(names) > limit))

    def remove(self, name: str, if_match: str | None = None) -> Deferred[None]:
        self.calls.append(("remove", name, if_match))
        if name not in self.files:
            return self._answer(NotFound(f"there is no file {name!r}"))
        if if_match is not None and if_match != self.files[name].etag:
            return self._answer(PreconditionFailed(f"{name!r} has changed"))
        if self.error is None:
            del self.files[name]
        return self._answer(None)

    def commit(
        self,
        name: str,
        size: int,
        chunk_size: int,
        digests: Sequence[bytes],
        content_type: str = "application/octet-stream",
        condition: Any = None,
    ) -> Deferred[Receipt]:
        self.calls.append(("commit", name, size, condition))
        there = self.files.get(name)
        if condition is not None:
            if condition.if_none_match and there is not None:
                return self._answer(PreconditionFailed(f"{name!r} exists"))
            if condition.if_match and (there is None or condition.if_match not in ("*", there.etag)):
                return self._answer(PreconditionFailed(f"{name!r} has changed"))
        if len(digests) != chunk_count(size, chunk_size):
            return self._answer(Mismatch(f"{len(digests)} chunks are not what {size} bytes need"))
        for digest in digests:
            if not self.transfer.store.has(digest):
                return self._answer(MissingChunks(f"the farm does not hold {digest.hex()}"))
        if self.error is not None:
            return self._answer(None)
        file = self._set(name, size, chunk_size, tuple(digests), content_type)
        return self._answer(Receipt(file, 2, (SERVER_ID, OTHER_ID)))

    def manifest(self, file: File) -> Deferred[Manifest]:
        return self._answer(Manifest(file.size, file.chunk_size, file.digests))

    def download(self, file: File, offset: int = 0, length: int | None = None) -> MemorySource:
        data = b"".join(self.transfer.store.chunks[digest] for digest in file.digests)
        end = None if length is None else offset + length
        self.sources.append(MemorySource(data[offset:end], self.piece, self.fails_at))
        return self.sources[-1]

    def upload(self, chunk_size: int) -> MemoryUpload:
        self.uploads.append(MemoryUpload(self.transfer, chunk_size))
        return self.uploads[-1]

    def _set(self, name: str, size: int, chunk_size: int, digests: tuple[bytes, ...], content_type: str) -> File:
        self.revision += 1
        self.files[name] = File(
            name=name,
            size=size,
            chunk_size=chunk_size,
            digests=digests,
            modified=NOW,
            content_type=content_type,
            etag=etag_of(size, chunk_size, digests),
            revision=self.revision,
        )
        return self.files[name]

    def _answer(self, result: T | Exception) -> Deferred[T]:
        error = self.error if self.error is not None else result if isinstance(result, Exception) else None
        answer: Deferred[T] = Deferred() if self.waits is not None else fail(error) if error else succeed(result)
        if self.waits is not None:
            self.waits.addBoth(lambda _: answer.errback(error) if error else answer.callback(result))
        return answer


class MemoryBackend:
    """A serving server `alpha` of the farm `lab`, with the keys reader, writer and admin (secret: `secret`)."""

    def __init__(self) -> None:
        self.state = ServerState(
            server_id=SERVER_ID,
            name="alpha",
            stamp=NOW,
            incarnation="1",
            phase="serving",
            farm_id="fa" * 16,
            revision=7,
        )
        self.store = MemoryStore()
        self.transfer = MemoryTransfer(self.store)
        self.catalog = MemoryCatalog(self.transfer)
        self.table: Any = None
        self.keys = {"reader": "read", "writer": "write", "admin": "admin"}
        self.peers: dict[Any, str] = {}
        self.authentications: list[str] = []
        self.rows = [
            Server(
                id=SERVER_ID, name="alpha", host="10.0.0.1", client=4100, peer=4101, files=4102, joined=NOW, seniority=1
            ),
            Server(
                id=OTHER_ID, name="beta", host="10.0.0.2", client=4100, peer=4101, files=4102, joined=NOW, seniority=2
            ),
        ]
        self.farm = FarmOptions(chunksize=4096, name="lab", id="fa" * 16, replicas=2)

    def servers(self) -> tuple[Server, ...]:
        return in_order(self.rows)

    def options(self) -> FarmOptions:
        return self.farm

    def succession(self) -> tuple[Standing, ...]:
        return succession(self.rows)

    def authenticate(self, key_id: str, secret: str) -> Deferred[Principal]:
        self.authentications.append(key_id)
        if secret != "secret" or key_id not in self.keys:
            return fail(AuthenticationFailed("the key is not known here, or the secret is wrong"))
        return succeed(Principal(key_id, self.keys[key_id]))

    def peer_of(self, certificate: Any) -> str | None:
        return self.peers.get(certificate)

    def set_server(self, server: str, fields: Mapping[str, str]) -> Deferred[Server]:
        for position, row in enumerate(self.rows):
            if server in (row.id, row.name):
                self.rows[position] = evolve(row, **fields)
                return succeed(self.rows[position])
        return fail(NotFound(f"there is no server {server!r}"))

    def set_farm(self, fields: Mapping[str, str]) -> Deferred[FarmOptions]:
        self.farm = evolve(self.farm, **fields)
        return succeed(self.farm)

    def status(self) -> Deferred[list[tuple[str, str]]]:
        return succeed([("table copies", "2"), ("under-replicated chunks", "0")])
