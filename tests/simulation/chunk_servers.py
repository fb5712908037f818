"""One server of a farm of chunks: its disk, its processes one after the other, and what they ask of each other.

Store, transfers, caretaker, catalog and roster are the product's; links and threads are simulated.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.catalog import Catalog
from chunkfarm.chunks.caretaker import Caretaker
from chunkfarm.chunks.checking import verify_here
from chunkfarm.chunks.collecting import Collector
from chunkfarm.chunks.draining import Draining
from chunkfarm.chunks.keeping import Keeper
from chunkfarm.chunks.packs import Given
from chunkfarm.chunks.pieces import Buffer, PieceSource
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.chunks.surplus import Surplus
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.errors import FarmError, Full, Mismatch
from chunkfarm.links.commands import NotNow, Referenced
from chunkfarm.links.interface import IChunkLinks
from chunkfarm.links.peers import LinkFailed, Peers
from chunkfarm.membership import masters
from chunkfarm.model import GIB, Server, split_digests
from chunkfarm.reference_index import ReferenceIndex
from chunkfarm.references import References
from chunkfarm.references_link import ReferencesLink, pack_counts
from chunkfarm.table.roster import Roster
from tests.simulation.chunk_disks import Disks
from tests.simulation.chunk_table import ServerTable
from tests.simulation.world import EPOCH_MS, Process, SimulatedThreads

if TYPE_CHECKING:
    from tests.simulation.chunks import ChunkFarm

T = TypeVar("T")

JOIN_SECONDS = 0.5
"""From the start of a process until its row says that it is up."""
RESTART_SECONDS = 10.0
THREADS = 4
PACKED_MOST = (-1, 256, 64 * 1024)
"""Bytes of the largest chunk that is packed: nothing, some, or everything is."""


@frozen
class Make:
    """What servers are made of; a mutant puts something else in the place of one of these."""

    store: Callable[..., ChunkStore] = ChunkStore
    transfer: Callable[..., Transfer] = Transfer
    caretaker: Callable[..., Caretaker] = Caretaker
    catalog: Callable[..., Catalog] = Catalog
    keeper: Callable[..., Keeper] = Keeper
    collector: Callable[..., Collector] = Collector
    surplus: Callable[..., Surplus] = Surplus
    references: Callable[..., References] = References
    disks: Callable[[str], Disks] = Disks


@define(eq=False)
class Asked:
    """A request that is under way to a process."""

    answer: Deferred[Any]
    by: Process | None

    def give(self, result: Any) -> None:
        """The answer is there; whoever asked may have given up."""
        if not self.answer.called:
            self.answer.callback(result)


class ChunkServer:
    """A server, on a machine of its own."""

    def __init__(self, farm: ChunkFarm, number: int, row: Server, make: Make) -> None:
        self.farm = farm
        self.number = number
        self.id = row.id
        self.name = row.name
        self.row = row
        """As it was when it joined; the table has it as it is."""
        self.world = farm.world
        self.random = farm.world.random(f"server {number}")
        self.disk = farm.disks.add(self.name, farm.world.random(f"disk {number}"))
        self.disk.on_cut = self._cut
        self.disk.on_unlink = self._unlinked
        self.disk.on_forget = self._forgotten
        self.packed_most = self.random.choice(PACKED_MOST)
        self.lag_max = 0.02
        """Seconds by which its rows are old, at the most."""
        self.process: Process | None = None
        self.process_number = 0
        self.is_serving = False
        self.died = 0.0
        self.gone = False
        """Whether it was forgotten, and never comes back."""
        self.cleared: set[bytes] = set()
        self.caretaker: Caretaker
        self.collector: Collector
        self.surplus: Surplus
        self.draining: Draining
        self.held: dict[bytes, float] = {}
        """When it last said that it keeps a chunk."""
        self._removing = ""
        self._removed: set[bytes] = set()
        """Of which a pack may have the bytes, while nothing counts on them any more."""
        self._make = make
        self._asked: dict[Asked, None] = {}
        self._aside = False

    # Its processes.

    def start(self) -> None:
        """A process begins; its row follows."""
        assert self.process is None
        self.process_number += 1
        process = Process(self.world, self.name, self.name, self._ended)
        process.disk_delay = lambda name: 0.0002 + self.random.expovariate(2000.0)
        self.process = process
        self.disk.begin_process()
        self._build(process)
        Deferred.fromCoroutine(self._begin(process)).addErrback(self._must_not_fail)

    def _build(self, process: Process) -> None:
        clock: Any = process.reactor
        threads = SimulatedThreads(process, THREADS, "disk")
        self.table = ServerTable(self.farm.table, process, self._lag)
        self.roster = Roster(self.table, clock)
        self.roster.subscribe(self._rows_changed)
        self.links = Links(self, process)
        self.store = self._make.store(
            Path(self.disk.folder) / "chunks",
            Path(self.disk.folder) / "index.sqlite",
            threads.run,
            reserve=GIB,
            on_damaged=self._found_damaged,
            room=self.disk.room,
            packed_most=self.packed_most,
            grace=lambda: self.farm.pinned_for,
            seconds=clock.seconds,
            on_broken=self._must_not_fail,
        )
        self._watch(self.store)
        self.transfer = self._make.transfer(
            self.store,
            lambda: self.roster.servers,
            self.id,
            self.links,
            lambda: self.roster.options.replicas,
            clock,
            threads.run,
            lambda digests: self.caretaker.look_first(digests),
        )
        self.catalog = self._make.catalog(
            self.table,
            self.transfer,
            lambda: self.roster.options,
            lambda: EPOCH_MS + round(self.world.now * 1000),
            clock,
            lambda: self.roster.epoch,
        )
        self.references = self._make.references(
            ReferenceIndex(os.path.join(self.disk.folder, "references.sqlite")),
            self.table,
            lambda: self.farm.holds_rows(self),
            lambda: "farm",
            self.farm.table.revision,
            self.catalog.digests,
            clock,
            threads.run,
        )
        link = ReferencesLink(
            self.id,
            self.references,
            self.table,
            cast(Peers, self.links),
            lambda: next((row.id for row in masters(self.roster.servers)), ""),
            lambda: masters(self.roster.servers),
        )
        self.caretaker = self._make.caretaker(
            self.store,
            self.links,
            self.transfer,
            lambda: self.roster.servers,
            self.id,
            lambda: self.roster.options.replicas,
            clock,
            threads.run,
            uses=link.uses,
        )
        self.collector = self._make.collector(
            self.store,
            link.uses,
            link.epoch,
            lambda: self.roster.options.collect_grace,
            clock,
            last_word=link.uses_by_all,
        )
        self.surplus = self._make.surplus(
            self.store,
            self.links,
            lambda: self.roster.servers,
            self.id,
            lambda: self.roster.options.replicas,
            lambda: self.roster.revision,
            self.roster.refresh,
            clock,
            threads.run,
        )
        self.draining = Draining(
            self.store,
            self.links,
            lambda: self.roster.servers,
            self.id,
            lambda: self.roster.options.replicas,
            clock,
            threads.run,
            rate=0,
            refresh=self.roster.refresh,
        )
        self.keeper = self._make.keeper(
            self.store,
            lambda: self.roster.servers,
            self.id,
            lambda: self.roster.options.replicas,
            lambda: self.roster.revision,
            self.roster.refresh,
        )

    def _watch(self, store: ChunkStore) -> None:
        """Note what is promised, and why something is deleted."""
        hold, release = store._hold, store._release

        def watched_hold(digests: Sequence[bytes]) -> Sequence[int]:
            held = hold(digests)
            self.held.update({digest: self.world.now for digest, length in zip(digests, held, strict=True) if length})
            return held

        def watched_release(marked: set[bytes], digests: Sequence[bytes]) -> Sequence[int]:
            self._removing = "collects" if marked is store._promises.condemned else "gives up"
            try:
                return release(marked, digests)
            finally:
                self._removing = ""

        append = store._packs.append

        def watched_append(given: Sequence[Given]) -> list[bytes | Mismatch]:
            answers = append(given)
            self._removed.difference_update(answer for answer in answers if isinstance(answer, bytes))
            return answers

        store._packs.append = watched_append  # type: ignore[method-assign]
        store._hold = watched_hold  # type: ignore[method-assign]
        store._release = watched_release  # type: ignore[method-assign]

    async def _begin(self, process: Process) -> None:
        await self.store.start()
        await self.roster.start()
        self.is_serving = True
        process.at(JOIN_SECONDS, self.farm.joined, self)
        self.references.start()
        for loop in (self.caretaker, self.collector, self.surplus, self.draining):
            process.at(JOIN_SECONDS, loop.start)

    def _rows_changed(self) -> None:
        for loop in (self.caretaker, self.collector, self.surplus, self.draining):
            loop.table_changed()

    def _must_not_fail(self, failure: Failure) -> None:
        if self.process is None:
            return
        if self.disk.no_space and failure.check(OSError, sqlite3.Error, Full):
            # It ends with a sentence, and is started again by hand or by systemd.
            self.kill()
            self.world.at(RESTART_SECONDS, None, self.farm.start_if_down, self)
        else:
            self.farm.fail(failure.value)

    def _lag(self) -> float:
        return self.random.random() * self.lag_max

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.end("killed")

    def cut_power(self) -> None:
        """What was not synchronized may be lost."""
        self.world.note(self.name, "loses its power")
        self.kill()
        self.disk.dead = True
        self.disk.lose_power()

    def _cut(self, power: bool) -> None:
        """In the middle of a write."""
        self.world.note(self.name, "loses its power while it writes" if power else "is killed while it writes")
        self.kill()
        if power:
            self.world.at(0.0, None, self.disk.lose_power)

    def _ended(self, how: str) -> None:
        self.process, self.is_serving, self.died = None, False, self.world.now
        asked, self._asked = list(self._asked), {}
        for one in asked:
            self.farm.later(one.by, one.give, Failure(ConnectionLost()))
        self.farm.ended(self)

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after that time."""
        if self.process is not None:
            self.process.freeze(seconds)

    # What others ask of it.

    def ask(self, by: Process | None, work: Callable[[ChunkServer], Deferred[T]]) -> Deferred[T]:
        """Let it do something for another process, or for a client: a little later, and not at all if it ends."""
        process = self.process
        if process is None or not self.is_serving:
            return fail(ConnectionRefusedError())
        answer: Deferred[T] = Deferred(lambda _: None)
        asked = Asked(answer, by)
        self._asked[asked] = None

        def answered(result: Any) -> None:
            if self._asked.pop(asked, self) is None:
                self.farm.later(by, asked.give, result)

        def arrive() -> None:
            self.world.trace(self.name)
            work(self).addBoth(answered)

        process.at(self.farm.way(), arrive)
        return answer

    # What is on its disk, for whoever looks on.

    def holds(self, digest: bytes) -> bool:
        """Whether a whole copy is on its disk, whether it runs or not."""
        place = self.place(digest)
        return place is not None and place.is_whole

    def place(self, digest: bytes) -> Place | None:
        """Where the copy of a chunk is on its disk that counts; None if it has none."""
        name = digest.hex()
        folder = os.path.join(self.disk.folder, "chunks")
        rows = self._packed("SELECT pack, at, length FROM chunks WHERE digest = ?", (digest,))
        if self.is_serving and (unindexed := self.store._packs._unindexed.get(digest)) is not None:
            # The index is told of small chunks by the dozen.
            rows = [(unindexed.pack, unindexed.offset, unindexed.length)]
        for number, offset, length in rows:
            path = f"{folder}/packs/{number:08}.pack"
            if os.path.exists(path):
                expected = self.farm.images.packed(digest)
                return Place(path, offset, length + len(expected) - len(self.farm.images.known[digest]), expected)
        if not self.is_serving and (found := self._behind_the_index(f"{folder}/packs", digest)) is not None:
            return found
        path = f"{folder}/{name[:2]}/{name}.chunk"
        if os.path.exists(path):
            expected = self.farm.images.file(digest)
            return Place(path, 0, max(len(expected), os.path.getsize(path)), expected)
        return None

    def _behind_the_index(self, folder: str, digest: bytes) -> Place | None:
        """A record of which a power cut has taken the index: a start reads the packs to their ends."""
        if digest in self._removed:
            return None
        expected = self.farm.images.packed(digest)
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            if name.endswith(".pack"):
                with open(f"{folder}/{name}", "rb") as file:
                    at = file.read().find(expected)
                if at >= 0:
                    return Place(f"{folder}/{name}", at, len(expected), expected)
        return None

    def digests(self) -> list[bytes]:
        """All chunks of which there is something on its disk."""
        found = {bytes(row[0]) for row in self._packed("SELECT digest FROM chunks")}
        if self.is_serving:
            found.update(self.store._packs._unindexed)
        folder = os.path.join(self.disk.folder, "chunks")
        if os.path.isdir(folder):
            for prefix in os.listdir(folder):
                if len(prefix) == 2:
                    names = os.listdir(os.path.join(folder, prefix))
                    found.update(bytes.fromhex(name[:64]) for name in names if name.endswith(".chunk"))
        return sorted(found)

    def _packed(self, sql: str, parameters: tuple[bytes, ...] = ()) -> list[Any]:
        base = self.disk.database(os.path.join(self.disk.folder, "index.sqlite"))
        if base is None or not base.execute("SELECT 1 FROM sqlite_master WHERE name = 'chunks'").fetchall():
            return []
        return base.execute(sql, parameters).fetchall()

    def _found_damaged(self, digest: bytes, reason: str) -> None:
        self.farm.put_aside[digest, self.id] = self.farm.now
        self.caretaker.found_damaged(digest, reason)

    def _unlinked(self, path: str) -> None:
        if path.endswith(".chunk"):
            self._removes(bytes.fromhex(os.path.basename(path)[:64]))

    def _forgotten(self, digest: bytes) -> None:
        self._removes(digest)

    def _removes(self, digest: bytes) -> None:
        """The process is about to remove a copy; one that is damaged is put aside so."""
        self._removed.add(digest)
        if self.holds(digest):
            self.farm.removes(self, digest, self._removing)
        else:
            self.farm.put_aside[digest, self.id] = self.farm.now


@define
class Place:
    """A copy of a chunk: the bytes of its file, or of its record in a pack. `expected` is what they should be."""

    path: str
    at: int
    length: int
    expected: bytes

    @property
    def is_whole(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(self.at)
            return file.read(self.length) == self.expected

    def flip(self, number: int) -> None:
        """Change one bit."""
        at = self.at + number % self.length
        with open(self.path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    def cut(self, number: int) -> None:
        """Take the end of the file away; of a pack too, with all that follows."""
        os.truncate(self.path, self.at + number % self.length)


@implementer(IChunkLinks)
@define(eq=False)
class Links:
    """What one process asks of the others."""

    _server: ChunkServer
    _process: Process
    sent: int = field(default=0, init=False)

    def put(self, server: Server, digest: bytes, data: Buffer, gently: bool = False) -> Deferred[None]:
        copy = bytes(data)
        return self._ask(server, lambda other: other.store.put(digest, copy).addCallback(lambda _: None))

    def get(self, server: Server, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[bytes]:
        return self._ask(server, lambda other: Deferred.fromCoroutine(_read(other, digest, offset, length)))

    def have(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self._ask(server, lambda other: other.store.has(digests))

    def hold(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self._ask(server, lambda other: other.store.hold(digests))

    def keep(self, server: Server, digests: Sequence[bytes], revision: int) -> Deferred[Sequence[int]]:
        return self._ask(server, lambda other: other.keeper.keep(digests, revision))

    def call(self, server_id: str, command: Any, **arguments: Any) -> Deferred[Any]:
        """What `Referenced` asks of a master."""
        assert command is Referenced
        other = self._server.farm.servers.get(server_id)
        if other is None or not self._process.alive:
            return fail(LinkFailed("there is no such server"))
        digests = split_digests(arguments["digests"])
        answer = other.ask(self._process, lambda one: Deferred.fromCoroutine(_uses(one, digests)))
        return answer.addErrback(_link_failed)

    def verify(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self._ask(server, lambda other: Deferred.fromCoroutine(verify_here(other.store, digests)))

    def verified(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self._ask(server, lambda other: other.store.verified(digests))

    def look(self, server: Server, digests: Sequence[bytes]) -> Deferred[None]:
        return self._ask(server, partial(_look, digests=digests))

    def _ask(self, server: Server, work: Callable[[ChunkServer], Deferred[T]]) -> Deferred[T]:
        other = self._server.farm.servers.get(server.id)
        if other is None or not self._process.alive:
            return fail(ConnectionRefusedError())
        return other.ask(self._process, work)


def _link_failed(failure: Failure) -> Failure:
    return Failure(LinkFailed("the link ended")) if failure.check(ConnectionLost, ConnectionRefusedError) else failure


async def _uses(other: ChunkServer, digests: Sequence[bytes]) -> dict[str, bytes]:
    try:
        return {"counts": pack_counts(await other.references.uses(digests))}
    except FarmError as error:
        raise NotNow(str(error)) from None


def _look(other: ChunkServer, digests: Sequence[bytes]) -> Deferred[None]:
    other.caretaker.look_first(digests)
    done: Deferred[None] = Deferred()
    done.callback(None)
    return done


async def _read(other: ChunkServer, digest: bytes, offset: int, length: int | None) -> bytes:
    return await read_all(await other.store.open(digest, offset, length))


async def read_all(source: PieceSource) -> bytes:
    """All bytes of a source."""
    pieces = []
    try:
        while (piece := await source.next()) is not None:
            pieces.append(bytes(piece))
    finally:
        source.close()
    return b"".join(pieces)
