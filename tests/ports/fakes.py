"""A server's inside in memory, for tests of the ports: the same interface as the real parts, no disk, no links.

`MemoryBackend` answers at once. A test that wants something else sets it: `backend.catalog.waits` (a Deferred
that every answer of the catalog waits for), `backend.catalog.error` (what every answer of the catalog fails
with), `backend.catalog.fails_at` (the offset at which the bytes of a download end in an error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.python.failure import Failure

from chunkfarm.by_hand import Outlook, Seen
from chunkfarm.catalog import Condition, Found, Listing
from chunkfarm.chronicle import NOTES_MAX, Chronicle
from chunkfarm.chunks.pieces import Digests
from chunkfarm.chunks.store import DamagedChunk
from chunkfarm.chunks.transfer import ChunkReceipt
from chunkfarm.chunks.upload import Uploaded
from chunkfarm.emptying import emptied, kept
from chunkfarm.errors import (
    AuthenticationFailed,
    Busy,
    FarmError,
    InvalidRequest,
    Mismatch,
    MissingChunks,
    NotFound,
    PreconditionFailed,
    ReadOnly,
)
from chunkfarm.explanation import Explanation, Part
from chunkfarm.exports.form import Kept
from chunkfarm.exports.maker import Made, Progress
from chunkfarm.forgetting import ForgetOutlook
from chunkfarm.forgetting import objection as forget_objection
from chunkfarm.losses import Losses
from chunkfarm.membership import Standing, in_order, succession
from chunkfarm.metrics import Metrics
from chunkfarm.model import (
    Address,
    Drain,
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
from chunkfarm.rotation import Authorities
from chunkfarm.settings import changed_table, read_table
from chunkfarm.state import ServerState
from chunkfarm.survey import Told

SERVER_ID = "5e" * 16
OTHER_ID = "0f" * 16
NOW = 1_795_341_600_123
"""Milliseconds: 2026-11-22T10:00:00.123Z."""

EXPORT_RUNS = Progress(number=2, running=True, rows=100)
EXPORT_MADE = Progress(
    number=2,
    running=False,
    made=Made(
        kept=Kept(revision=1234, time=NOW, rows=5678, digest=b"\x1e" * 32),
        pages=11,
        new=3,
        size=700_000,
        complete=4,
        servers=5,
    ),
)

T = TypeVar("T")


class MemorySource:
    """Pieces of bytes, one a call, then None. `fails_at` is the offset at which the bytes end in an error."""

    def __init__(self, data: bytes, piece: int = 64 * 1024, fails_at: int | None = None) -> None:
        self._data = memoryview(data)
        self.chunk_length = len(data)
        self._piece = piece
        self._offset = 0
        self._fails_at = fails_at
        self.closed = False

    def next(self) -> Deferred[bytes | memoryview | None]:
        assert not self.closed
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
    sources: list[MemorySource] = field(factory=list)
    kept: list[bytes] = field(factory=list)
    """What somebody relies on who asked for it."""

    def put(
        self, digest: bytes | None, data: bytes | bytearray | memoryview, *, checked: bool = False
    ) -> Deferred[bytes]:
        if self.error is not None:
            return fail(self.error)
        found = digest_of(data)
        if digest is not None and found != digest:
            return fail(Mismatch(f"the bytes have the digest {found.hex()}, not {digest.hex()}"))
        self.chunks[found] = bytes(data)
        return succeed(found)

    def open(self, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[MemorySource]:
        if digest not in self.chunks:
            return fail(NotFound(f"there is no chunk {digest.hex()} here"))
        data = self.chunks[digest]
        self.sources.append(MemorySource(data[offset : None if length is None else offset + length]))
        return succeed(self.sources[-1])

    damaged: set[bytes] = field(factory=set)

    def check(self, digest: bytes) -> Deferred[int]:
        if digest in self.damaged:
            self.damaged.discard(digest)
            del self.chunks[digest]
            return fail(DamagedChunk("its bytes do not have that digest"))
        return self.size(digest)

    def size(self, digest: bytes) -> Deferred[int]:
        if digest not in self.chunks:
            return fail(NotFound(f"there is no chunk {digest.hex()} here"))
        return succeed(len(self.chunks[digest]))

    def has(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return succeed([len(self.chunks.get(digest, b"")) for digest in digests])

    def hold(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        self.kept += digests
        return self.has(digests)

    times: dict[bytes, int] = field(factory=dict)
    """When these were verified, in ms."""

    def verified(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return succeed([self.times.get(digest, 0) for digest in digests])


@define
class MemoryTransfer:
    """Chunks of the farm: all of them are on this disk and on another server's."""

    store: MemoryStore

    def write(self, data: bytes | bytearray | memoryview, digest: bytes | None = None) -> Deferred[ChunkReceipt]:
        return self.store.put(digest, data).addCallback(lambda found: ChunkReceipt(found, (SERVER_ID, OTHER_ID)))

    def open(
        self, digest: bytes, offset: int = 0, length: int | None = None, chunk_length: int | None = None
    ) -> Deferred[MemorySource]:
        return self.store.open(digest, offset, length)

    only: set[bytes] = field(factory=set)
    """But these are on this disk alone."""

    def hold(self, digests: Sequence[bytes]) -> Deferred[dict[bytes, tuple[str, ...]]]:
        self.store.kept += digests
        return succeed({digest: self.holders(digest) for digest in digests})

    damaged: set[bytes] = field(factory=set)
    """And the other server finds its copies of these damaged when it is made to read them."""
    unheard: frozenset[str] = frozenset()

    def silent(self) -> frozenset[str]:
        return self.unheard

    def holders(self, digest: bytes) -> tuple[str, ...]:
        if digest not in self.store.chunks:
            return ()
        return (SERVER_ID,) if digest in self.only else (SERVER_ID, OTHER_ID)


class MemoryUpload:
    """Cuts what is written into chunks. A test makes it full with `on_pause()`, empty again with `on_resume()`."""

    def __init__(
        self,
        transfer: MemoryTransfer,
        chunk_size: int,
        on_pause: Callable[[], None],
        on_resume: Callable[[], None],
    ) -> None:
        self._transfer = transfer
        self.chunk_size = self._chunk_size = chunk_size
        self._data = bytearray()
        self.on_pause = on_pause
        self.on_resume = on_resume
        self.written: list[int] = []
        self.aborted = False
        self.error: Exception | None = None
        self.failure: Failure | None = None

    @property
    def held(self) -> int:
        return len(self._data)

    def write(self, data: bytes | memoryview) -> None:
        assert not self.aborted
        self.written.append(len(data))
        self._data += data

    def finish(self) -> Deferred[Uploaded]:
        if self.error is not None:
            return fail(self.error)
        digests = []
        for start in range(0, len(self._data), self._chunk_size):
            piece = bytes(self._data[start : start + self._chunk_size])
            digests.append(digest_of(piece))
            self._transfer.store.chunks[digests[-1]] = piece
        found = Digests(b"".join(digests))
        return succeed(Uploaded(len(self._data), self._chunk_size, found, 2, (SERVER_ID, OTHER_ID)))

    def abort(self) -> None:
        self.aborted = True


class MemoryCatalog:
    """Names and manifests in a dict."""

    def __init__(self, transfer: MemoryTransfer) -> None:
        self.transfer = transfer
        self.files: dict[str, File] = {}
        self.revision = 0
        self.waits: Deferred[None] | None = None
        self.error: Exception | None = None
        self.stale = 0
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
        return self._set(name, len(data), chunk_size, digests, content_type)

    def content(self, name: str) -> bytes:
        """The bytes of a file, for a test to look at."""
        return b"".join(self.transfer.store.chunks[digest] for digest in self.files[name].digests)

    def stat(self, name: str) -> Deferred[File]:
        self.calls.append(("stat", name))
        return self._answer(lambda: self._file(name))

    def find(self, name: str) -> Deferred[Found]:
        self.calls.append(("find", name))
        return self._answer(lambda: Found(self._file(name), self.stale))

    def list(self, prefix: str = "", after: str = "", limit: int = 1000) -> Deferred[Listing]:
        self.calls.append(("list", prefix, after, limit))
        names = sorted(self.files, key=str.encode)
        chosen = [name for name in names if name.startswith(prefix) and name.encode() > after.encode()]
        files = tuple(self.files[name] for name in chosen[:limit])
        return self._answer(lambda: Listing(files, len(chosen) > limit, self.stale))

    def remove(self, name: str, if_match: Sequence[str] = ()) -> Deferred[None]:
        self.calls.append(("remove", name, if_match))

        def remove() -> None:
            file = self._file(name)
            if if_match and not {"*", file.etag}.intersection(if_match):
                raise PreconditionFailed(f"{name!r} has changed")
            del self.files[name]

        return self._answer(remove)

    def commit(
        self,
        name: str,
        size: int,
        chunk_size: int,
        digests: Sequence[bytes],
        content_type: str = "application/octet-stream",
        condition: Condition = Condition(),  # noqa: B008
        written: Uploaded | None = None,
    ) -> Deferred[Receipt]:
        self.calls.append(("commit", name, size, condition))

        def commit() -> Receipt:
            there = self.files.get(name)
            there_is = {"*", there.etag} if there is not None else set()
            if condition.if_none_match and there_is.intersection(condition.if_none_match):
                raise PreconditionFailed(f"{name!r} exists")
            if condition.if_match and not there_is.intersection(condition.if_match):
                raise PreconditionFailed(f"{name!r} has changed")
            if len(digests) != chunk_count(size, chunk_size):
                raise InvalidRequest(f"{len(digests)} chunks are not what {size} bytes need")
            for digest in digests:
                if digest not in self.transfer.store.chunks:
                    raise MissingChunks(f"the farm does not hold {digest.hex()}")
            file = self._set(name, size, chunk_size, digests, content_type)
            return Receipt(file, 2, (SERVER_ID, OTHER_ID), created=there is None)

        return self._answer(commit)

    def manifest(self, file: File) -> Deferred[Manifest]:
        return self._answer(lambda: Manifest(file.size, file.chunk_size, file.digests))

    def explain(self, name: str, start: int = 0, limit: int = 1000) -> Deferred[Explanation]:
        def explain() -> Explanation:
            file = self._file(name)
            manifest = Manifest(file.size, file.chunk_size, file.digests)
            chunks = list(enumerate(file.digests))
            times = self.transfer.store.times
            parts = tuple(
                Part(
                    digest,
                    self.transfer.holders(digest),
                    number,
                    manifest.chunk_length(number),
                    # What this server knows; the other one does not say.
                    verified=(times.get(digest, 0), 0)[: len(self.transfer.holders(digest))],
                )
                for number, digest in chunks[start : start + limit]
            )
            return Explanation(file, 2, parts, start + limit < len(chunks), self.stale)

        return self._answer(explain)

    def check(self, name: str, start: int = 0, limit: int = 1000, read: bool = True) -> Deferred[Explanation]:
        self.calls.append(("check", name, start, limit, read))

        def check() -> Explanation:
            file = self._file(name)
            manifest = Manifest(file.size, file.chunk_size, file.digests)
            chunks = list(enumerate(file.digests))[start : start + limit]
            parts = []
            for number, digest in chunks:
                damaged = (OTHER_ID,) if read and digest in self.transfer.damaged else ()
                if damaged:
                    self.transfer.damaged.discard(digest)
                    self.transfer.only.add(digest)
                parts.append(
                    Part(digest, self.transfer.holders(digest), number, manifest.chunk_length(number), damaged)
                )
            return Explanation(file, 2, tuple(parts), start + limit < len(file.digests), self.stale)

        return self._answer(check)

    def download(self, file: File, offset: int = 0, length: int | None = None) -> Deferred[MemorySource]:
        def download() -> MemorySource:
            if self.fails_at == 0:
                raise NotFound("no holder of the chunk answers")
            data = b"".join(self.transfer.store.chunks[digest] for digest in file.digests)
            end = None if length is None else offset + length
            self.sources.append(MemorySource(data[offset:end], self.piece, self.fails_at))
            return self.sources[-1]

        return self._answer(download)

    def upload(
        self,
        chunk_size: int | None = None,
        on_pause: Callable[[], None] = lambda: None,
        on_resume: Callable[[], None] = lambda: None,
    ) -> MemoryUpload:
        self.uploads.append(MemoryUpload(self.transfer, chunk_size or 4096, on_pause, on_resume))
        return self.uploads[-1]

    def _file(self, name: str) -> File:
        if name not in self.files:
            raise NotFound(f"there is no file {name!r}")
        return self.files[name]

    def _set(self, name: str, size: int, chunk_size: int, digests: Sequence[bytes], content_type: str) -> File:
        self.revision += 1
        self.files[name] = File(
            name=name,
            size=size,
            chunk_size=chunk_size,
            digests=tuple(digests),
            modified=NOW,
            content_type=content_type,
            etag=etag_of(size, chunk_size, digests),
            revision=self.revision,
        )
        return self.files[name]

    def _answer(self, call: Callable[[], T]) -> Deferred[T]:
        def answer(_: object) -> T:
            if self.error is not None:
                raise self.error
            return call()

        if self.waits is None:
            return succeed(None).addCallback(answer)
        # The waiting answer is a Deferred of its own, so that giving up on one does not give up on all.
        waiting: Deferred[None] = Deferred()

        def wake(result: T) -> T:
            if not waiting.called:
                waiting.callback(None)
            return result

        self.waits.addBoth(wake)
        return waiting.addCallback(answer)


class MemoryCaretaker:
    """Notes what it was asked to look at."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def look_first(self, digests: Iterable[bytes]) -> None:
        self.asked += digests


class MemoryNotes:
    """The file of a time line. `error` is what every write fails with."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.error: OSError | None = None

    def load(self) -> bytes:
        return self.data

    def add(self, data: bytes) -> None:
        if self.error is not None:
            # As a disk does that becomes full.
            self.data += data[: len(data) // 2]
            raise self.error
        self.data += data

    def replace(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.data = data


class AtOnce:
    """Threads that are not: each call is done when it is made."""

    def run(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Deferred[T]:
        return execute(function, *args, **kwargs)

    def stop(self) -> None:
        pass


def memory_chronicle(
    now: Callable[[], int],
    file: MemoryNotes | None = None,
    run: str = "1",
    boot_time: Callable[[], float] | None = None,
    most: int = NOTES_MAX,
) -> Chronicle:
    """A time line that is on no disk; its machine has run since 1970 if no `boot_time` is given."""
    threads: Any = AtOnce()
    chronicle = Chronicle(file or MemoryNotes(), threads, run, now, boot_time or (lambda: now() / 1000), most)
    chronicle.begin()
    return chronicle


class MemoryBackend:
    """A serving server `alpha` of the farm `lab`, with the keys reader, writer and admin (secret: `secret`)."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self.holds_table = True
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
        self.caretaker = MemoryCaretaker()
        self.table: Any = None
        self.keys = {"reader": "read", "writer": "write", "admin": "admin"}
        self.peers: dict[Any, str] = {}
        self.prefixes: dict[str, str] = {}
        self.keys_revision = 0
        self.keyring: Any = None
        self.now = NOW
        self.chronicle = memory_chronicle(lambda: self.now)
        self.metrics = metrics or Metrics()
        self.failed: list[str] = []
        self.pause = 0.0
        """Seconds before a wrong key is answered."""
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
        self.told: dict[str, Drain] = {}
        self.losses = Losses(files=7, chunks=9, done=True)
        self.forgotten: set[str] = set()
        self.objection = ""
        self.taken_over: list[str] = []
        self.told_of_ca = [Authorities(signs="")]
        """What CA tells, one after the other; the last one again and again."""
        self.rotated = 0
        self.exports: list[Progress] = []
        """How an export is, each time somebody asks."""

    def keep(self, digests: Sequence[bytes], revision: int) -> Deferred[Sequence[int]]:
        if revision > self.state.revision:
            return fail(Busy("the rows of this server are older"))
        return self.store.has(digests)

    def servers(self) -> tuple[Server, ...]:
        return in_order(self.rows)

    def options(self) -> FarmOptions:
        return self.farm

    def succession(self) -> tuple[Standing, ...]:
        return succession(self.rows, leader=self.rows[0].id)

    def authenticate(self, key_id: str, secret: str) -> Deferred[Principal]:
        self.authentications.append(key_id)
        if secret != "secret" or key_id not in self.keys:
            return fail(AuthenticationFailed("the key is not known here, or the secret is wrong"))
        return succeed(Principal(key_id, self.keys[key_id], self.prefixes.get(key_id, "")))

    def confirm(self, key_id: str, proof: bytes) -> Deferred[Principal]:
        return self.authenticate(key_id, "secret")

    def failed_attempt(self, address: str) -> float:
        self.failed.append(address)
        return self.pause

    def is_master(self, server_id: str) -> bool:
        return server_id == SERVER_ID

    def look_at_takeover(self) -> Deferred[Outlook]:
        here = Told(server=SERVER_ID, name="alpha", state=self.state.phase, journal=(3, 17))
        seen = (
            Seen(name="alpha", address=Address("10.0.0.1", 4101), told=here, here=True, longest=True),
            Seen(name="beta", address=Address("10.0.0.2", 4101), error="no answer within 5 s"),
        )
        return succeed(Outlook(seen=seen, objection=self.objection))

    def take_over(self, farm_name: str) -> Deferred[Outlook]:
        if farm_name != self.farm.name:
            return fail(PreconditionFailed(f"this farm has another name than {farm_name!r}; nothing was changed"))
        if self.objection:
            return fail(PreconditionFailed(self.objection))
        self.taken_over.append(farm_name)
        return self.look_at_takeover().addCallback(lambda outlook: evolve(outlook, line="1e" * 16))

    def look_at_forgetting(self, server: str) -> Deferred[ForgetOutlook]:
        for row in self.rows:
            if server in (row.id, row.name):
                return succeed(ForgetOutlook(server=row, losses=self.losses, objection=forget_objection(row)))
        return fail(NotFound(f"there is no server {server!r}"))

    def forget(self, server: str, farm_name: str) -> Deferred[Server]:
        if farm_name != self.farm.name:
            return fail(PreconditionFailed(f"this farm has another name than {farm_name!r}; nothing was changed"))

        def forget(outlook: ForgetOutlook) -> Server:
            if outlook.objection:
                raise PreconditionFailed(outlook.objection)
            self.rows.remove(outlook.server)
            return outlook.server

        return self.look_at_forgetting(server).addCallback(forget)

    def barred(self, server_id: str) -> str:
        return "it was forgotten" if server_id in self.forgotten else ""

    def drain(self, server: str, anyway: bool) -> Deferred[Server]:
        return self._change(server, lambda row: emptied(row, self.rows, self.farm.replicas, NOW, anyway))

    def end_drain(self, server: str) -> Deferred[Server]:
        return self._change(server, lambda row: kept(row, NOW))

    def drains(self) -> tuple[tuple[Server, Drain | None], ...]:
        return tuple((row, self.told.get(row.id)) for row in self.servers() if row.is_emptied)

    def _change(self, server: str, change: Callable[[Server], Server]) -> Deferred[Server]:
        for position, row in enumerate(self.rows):
            if server in (row.id, row.name):
                return execute(change, row).addCallback(self._put, position)
        return fail(NotFound(f"there is no server {server!r}"))

    def _put(self, row: Server, position: int) -> Server:
        self.rows[position] = row
        return row

    def authorities(self) -> Authorities:
        return self.told_of_ca.pop(0) if len(self.told_of_ca) > 1 else self.told_of_ca[0]

    def rotate(self) -> Deferred[None]:
        self.rotated += 1
        return succeed(None)

    def export(self, number: int = 0) -> Progress:
        if not self.exports:
            raise ReadOnly("this server does not hold the table: ask a master")
        return self.exports.pop(0)

    def peer_of(self, certificate: Any) -> str | None:
        return self.peers.get(certificate)

    def set_server(self, server: str, fields: Mapping[str, str]) -> Deferred[Server]:
        for position, row in enumerate(self.rows):
            if server in (row.id, row.name):
                self.rows[position] = evolve(row, **dict[str, Any](fields))
                return succeed(self.rows[position])
        return fail(NotFound(f"there is no server {server!r}"))

    def set_table(self, block: bytes) -> Deferred[int]:
        rows = {row.id: row for row in self.rows}
        revisions = dict.fromkeys(rows, self.state.revision)
        try:
            changed = changed_table(read_table(block), rows, revisions, self.state.revision)
        except FarmError:
            return fail()
        self.rows = list({**rows, **{row.id: row for row in changed}}.values())
        return succeed(len(changed))

    def set_farm(self, fields: Mapping[str, str]) -> Deferred[FarmOptions]:
        self.farm = evolve(self.farm, **dict[str, Any](fields))
        return succeed(self.farm)

    def status(self) -> Deferred[list[tuple[str, str]]]:
        return succeed([("table copies", "2"), ("under-replicated chunks", "0")])
