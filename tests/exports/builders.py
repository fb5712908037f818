"""A table in memory whose rows can be viewed as those of a journal, on a farm of servers that are only objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from chunkfarm.chunks.transfer import Transfer
from chunkfarm.exports.form import EXPORT_KEY, Head, Kept, read_head, read_kept
from chunkfarm.exports.keeper import ExportKeeper, keepers
from chunkfarm.exports.maker import ExportMaker
from chunkfarm.model import FarmOptions, Server
from chunkfarm.table.interface import Row
from chunkfarm.table.records import SnapshotMeta
from tests.chunks.builders import MemoryLinks, make_servers, make_store, run_now
from tests.memory_table import MemoryTable

NOW = 1_795_341_600_123


@define(eq=False)
class MemoryView:
    """The rows of a `MemoryTable` as they were when it was made."""

    table: MemoryTable
    meta: SnapshotMeta = field(init=False)
    closed: bool = False
    _rows: list[Row] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.meta = SnapshotMeta(self.table.revision, 3)
        self._rows = [self.table.rows[key] for key in sorted(self.table.rows)]

    def next_rows(self, size: int) -> Sequence[Row]:
        rows = []
        while self._rows and size > 0:
            rows.append(self._rows.pop(0))
            size -= len(rows[-1].key) + len(rows[-1].value)
        return tuple(rows)

    def close(self) -> None:
        self.closed = True


class World:
    """Server s1 of a farm, which leads it and holds the table; `servers` may be replaced at any time."""

    def __init__(self, test: Any, count: int = 3) -> None:
        self.clock = Clock()
        self.table = MemoryTable()
        self.links = MemoryLinks()
        self.servers = make_servers(count)
        self.store = make_store(test.mktemp())
        test.addCleanup(self.store.close)
        self.transfer = Transfer(
            self.store, lambda: self.servers, self.servers[0].id, self.links, lambda: 2, self.clock, run_now
        )
        self.noted = Path(test.mktemp()).absolute()
        self.urgent = False
        self.broken: list[Failure] = []
        self.fails_with: Exception | None = None
        self.is_leader = True
        self.has_quorum = True
        self.holds_rows = True
        self.views: list[MemoryView] = []
        self.maker = ExportMaker(
            self.table,
            self,
            self.open_view,
            self.transfer,
            lambda: keepers(self.servers),
            lambda: FarmOptions(id="fa" * 16, name="lab"),
            lambda: "1e" * 16,
            self.clock,
            lambda: NOW + int(self.clock.seconds() * 1000),
            run_now,
            lambda: self.urgent,
            self.broken.append,
        )
        test.addCleanup(self.maker.stop)
        self.keeper = self.make_keeper(self.servers[0])
        test.addCleanup(self.keeper.stop)

    def make_keeper(self, server: Server) -> ExportKeeper:
        return ExportKeeper(
            lambda: self.table.rows[EXPORT_KEY].value if EXPORT_KEY in self.table.rows else b"",
            self.store,
            self.transfer,
            lambda: self.servers,
            server.id,
            self.clock,
            self.noted,
            run_now,
        )

    def open_view(self) -> MemoryView:
        if self.fails_with is not None:
            raise self.fails_with
        self.views.append(MemoryView(self.table))
        return self.views[-1]

    def fill(self, count: int, size: int = 300, begin: int = 0) -> None:
        for number in range(begin, begin + count):
            self.table.put(b"files/home/%06d" % number, b"%d " % number * (size // 7))

    @property
    def kept(self) -> tuple[Kept, ...]:
        row = self.table.rows.get(EXPORT_KEY)
        return read_kept(row.value) if row is not None else ()

    def chunk(self, digest: bytes) -> bytes:
        """A chunk from wherever it is."""
        for held in self.links.held.values():
            if digest in held:
                return held[digest]
        opened: list[bytes] = []

        async def read() -> None:
            source = await self.store.open(digest)
            while (piece := await source.next()) is not None:
                opened.append(bytes(piece))

        Deferred.fromCoroutine(read())
        return b"".join(opened)

    def head(self, number: int = 0) -> Head:
        return read_head(self.chunk(self.kept[number].digest))

    def pass_time(self, seconds: float, step: float = 1.0) -> None:
        for _ in range(int(seconds / step)):
            self.clock.advance(step)

    def copy_to_all(self) -> None:
        """As every server's keeper does."""
        for kept in self.kept:
            for digest in (kept.digest, *read_head(self.chunk(kept.digest)).digests):
                data = self.chunk(digest)
                self.store.put(digest, data)
                for server in self.servers[1:]:
                    self.links.on(server)[digest] = data
