"""One serving server behind the ports that are fuzzed: the product's parts on a table, a disk and links in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.task import Clock, deferLater

from chunkfarm.catalog import Catalog
from chunkfarm.chunks.read_memory import ReadMemory
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.errors import InvalidRequest, NotFound
from chunkfarm.invites import Invites
from chunkfarm.keyring import Keyring
from chunkfarm.metrics import Metrics
from chunkfarm.model import Address, FarmOptions, File, Server, digest_of, etag_of
from chunkfarm.settings import changed_farm, changed_server
from chunkfarm.state import Wait
from chunkfarm.table.interface import Row
from chunkfarm.trust.keys import new_key
from chunkfarm.trust.seal import SealKey
from tests.chunks.builders import MemoryLinks, run_now
from tests.memory_table import MemoryTable
from tests.ports.fakes import (
    EXPORT_MADE,
    EXPORT_RUNS,
    NOW,
    OTHER_ID,
    SERVER_ID,
    MemoryBackend,
    MemorySource,
    MemoryStore,
)

PLACES_MAX = 64
"""Files that an input can leave behind before the server is made anew, and keys, and codes."""
CONTENT = bytes(range(256)) * 20


class SteadyMetrics(Metrics):
    """Says the same whenever it is asked."""

    def text(self, pairs: Any) -> bytes:
        assert super().text(pairs)
        return b"chunkfarm_info 1\n"


METRICS = SteadyMetrics()
"""One for all servers: to make one takes longer than to serve an input."""
SEAL = SealKey.create()
FILES = {"lab/a": CONTENT[:10], "lab/x y.txt": CONTENT[:4096], "home/b": CONTENT[:5000], "home/empty": b""}
CHUNK_SIZE = 4096
FILE_CHUNKS = [data[start : start + CHUNK_SIZE] for data in FILES.values() for start in range(0, len(data), CHUNK_SIZE)]
DELAY = 0.01
"""Seconds that a slow catalog takes."""
HELD_SECONDS = 3600.0
"""After which everything that waits for a time has had it."""


def _file(name: str, data: bytes) -> tuple[bytes, bytes]:
    digests = tuple(digest_of(data[start : start + CHUNK_SIZE]) for start in range(0, len(data), CHUNK_SIZE))
    etag = etag_of(len(data), CHUNK_SIZE, digests)
    file = File(name=name, size=len(data), chunk_size=CHUNK_SIZE, digests=digests, modified=NOW, etag=etag)
    return file.key, file.to_value()


def _key(key_id: str, role: str, prefix: str = "") -> tuple[bytes, bytes]:
    row = evolve(new_key(role, created=NOW, prefix=prefix, seal=SEAL)[0], id=key_id)
    return row.key, row.to_value()


def _rows() -> dict[bytes, Row]:
    pairs = [_file(name, data) for name, data in FILES.items()]
    pairs += [_key("reader", "read"), _key("admin", "admin"), _key("scoped", "write", "lab/")]
    return {key: Row(key, value, number) for number, (key, value) in enumerate(pairs, 1)}


STORED = _rows()
"""What every server begins with."""


class OpenChunk(MemorySource):
    """A part of a chunk in memory, as the store gives it."""

    def __init__(self, data: bytes, offset: int, length: int) -> None:
        super().__init__(data[offset : offset + length], piece=1000)
        self.chunk_length = len(data)
        self.length = length


@define
class FuzzStore(MemoryStore):
    """A disk in memory, which says of ranges what the real one says."""

    opened: list[OpenChunk] = field(factory=list)
    memory: ReadMemory = field(factory=ReadMemory)

    def open(self, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[Any]:
        if digest not in self.chunks:
            return fail(NotFound(f"there is no chunk {digest.hex()} here"))
        data = self.chunks[digest]
        end = len(data) if length is None else offset + length
        if not 0 <= offset <= end <= len(data):
            return fail(InvalidRequest(f"the chunk has {len(data)} bytes: there is no range {offset} to {end}"))
        self.opened.append(OpenChunk(data, offset, end - offset))
        return execute(lambda: self.opened[-1])


class Slow:
    """A catalog whose answers take their time."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._catalog, name)
        if name == "upload":
            return call
        return lambda *arguments, **more: deferLater(self._clock, DELAY, call, *arguments, **more)


class FuzzServer(MemoryBackend):
    """`alpha` of a farm of two, with some files, and four keys of which one is good for `lab/` only."""

    def __init__(self, clock: Clock, *, slow: bool = False, phase: str = "serving") -> None:
        super().__init__(METRICS)
        self.clock = clock
        self.state.phase = phase
        if phase in ("waiting", "readonly"):
            self.state.waits = (Wait(Address("10.0.0.2", 4101), "refused", NOW, 3),)
            self.state.cures = ("start it", "add a third server")
        self.keys["scoped"] = "write"
        self.prefixes["scoped"] = "lab/"
        self.store = FuzzStore()
        self.table = MemoryTable()
        links = MemoryLinks()
        transfer: Any = Transfer(
            self.store,  # type: ignore[arg-type]
            self.servers,
            SERVER_ID,
            links,
            lambda: self.farm.replicas,
            clock,
            run_now,
            lambda digests: self.caretaker.look_first(digests),
        )
        self.transfer = transfer
        catalog: Any = Catalog(self.table, transfer, lambda: self.farm, lambda: NOW, clock)
        self.catalog = Slow(catalog, clock) if slow else catalog  # type: ignore[assignment]
        self.links = links
        for piece in FILE_CHUNKS:
            self.store.chunks[digest_of(piece)] = links.on(self.rows[1])[digest_of(piece)] = piece
        self.table.rows.update(STORED)
        self.table.revision = len(STORED)
        self.table.compact()
        self.keyring = Keyring(self.table, lambda: SEAL, lambda: NOW)
        self.exports = [EXPORT_RUNS, EXPORT_MADE]
        invites = Invites(self.table, lambda: SEAL, lambda: NOW, self.servers, lambda: self.farm)
        self.invite: Callable[[float], Deferred[tuple[str, int]]] = invites.make

    def set_server(self, server: str, fields: Mapping[str, str]) -> Deferred[Server]:
        def change(row: Server) -> Server:
            taken = {other.name for other in self.rows if other.id != row.id}
            return changed_server(row, fields, taken)

        return self._change(server, change)

    def set_farm(self, fields: Mapping[str, str]) -> Deferred[FarmOptions]:
        def change() -> FarmOptions:
            self.farm = changed_farm(self.farm, fields)
            return self.farm

        return execute(change)

    @property
    def opened(self) -> list[OpenChunk]:
        """All chunks of this disk that were opened."""
        assert isinstance(self.store, FuzzStore)
        return self.store.opened

    @property
    def is_full(self) -> bool:
        """Whether so much was stored here that a new server should take over."""
        return len(self.table.rows) > PLACES_MAX or len(self.store.chunks) > PLACES_MAX

    def clear(self) -> None:
        """Forget what the parts in memory note for tests, and real ones would not."""
        for noted in (self.table.transactions, self.links.calls, self.caretaker.asked, self.failed):
            noted.clear()
        for seen in (self.authentications, self.opened, self.store.kept, self.taken_over, self.exports):
            seen.clear()
        self.table.compact()
        self.table._watches = [watch for watch in self.table._watches if watch._error is None]


def certificates() -> dict[Any, str]:
    """What is shown in a handshake, and whom it proves."""
    return {"alpha": SERVER_ID, "beta": OTHER_ID}
