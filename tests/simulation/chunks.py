"""Farms that carry files, with the real stores, transfers, caretakers and catalogs over disks and links in memory.

Each seed is a history of its own: clients put, overwrite, remove and read files while servers join, leave, die and come
back, lose their power in the middle of a write, hear late of each other, while bits flip, chunks and whole disks
vanish and fill up. Only injuries that must be survivable are done: a copy is harmed only while another whole one of
the same chunk exists. What must hold at a moment is looked at then (`removes`, `must_have_copies`, and what users
read); in the end all is well again, and within `HEAL_SECONDS` every chunk of every file must be on all of its owners.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from chunkfarm import catalog as catalog_module
from chunkfarm.chunks import placement, surplus
from chunkfarm.errors import Full
from chunkfarm.membership import masters
from chunkfarm.model import EPOCH_KEY, FILES, OPTIONS_KEY, SERVERS, FarmOptions, File, Server
from chunkfarm.pace import down_after
from chunkfarm.table.epochs import PARTS_OF_GRACE
from chunkfarm.table.interface import Event
from tests.simulation.checks import Violation
from tests.simulation.chunk_contents import (
    CHUNK_SIZE,
    CHUNK_SIZE_MIN,
    INLINE,
    PREFIXES,
    Content,
    Hash,
    Images,
    digest_of,
)
from tests.simulation.chunk_servers import ChunkServer, Make
from tests.simulation.chunk_table import Table
from tests.simulation.chunk_users import Users
from tests.simulation.world import Process, World

DOWN_AFTER = down_after(5)
REPAIR_AFTER = 120.0
OTHERS = ("chunkfarm.durable", "chunkfarm.reference_index")
"""What else uses the disk of the chunks."""
GRACE = 240.0
"""`collect_grace`: some epochs go by while a client dawdles."""
STEPS = 40
SERVERS_MAX = 7
HEAL_SECONDS = 300.0
"""Far less than the hourly look takes to come round: it must not be needed for anything here."""
LAGS = (0.02, 0.02, 0.02, 5.0, 40.0)
"""Seconds by which a server's rows are old, at the most."""
WAYS = (0.001, 0.01, 0.05)
"""Seconds that a question travels."""
MEMORY = "/dev/shm"
"""Where a file costs no time of a real disk."""
REMEMBERED_SECONDS = 120.0
"""How long a copy that was harmed still counts for whoever was told of it."""
SURPLUS_ROUND = 240.0
"""Instead of an hour: copies that were made in the stead of an owner that is back are looked for so often."""
SURPLUS_AGAIN = 40.0
"""Instead of five seconds: while an owner is down it would be asked most of the time."""
TIDY_SECONDS = 600.0
"""After the last fault and the last client: pins run out after 300 seconds, and the epoch moves on after 60."""


class _Scores:
    """Stands in the place of `placement.score`, and computes no score twice."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, str, int], float] = {}
        self._score = placement.score

    def __call__(self, digest: bytes, server: Server) -> float:
        key = digest, server.id, server.weight
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._score(digest, server)
        return found


class ChunkFarm:
    """One history. `run` raises `Violation` when something does not hold; `story` says what happened."""

    def __init__(self, seed: int, make: Make | None = None, steps: int = STEPS) -> None:
        self.seed = seed
        self.steps = steps
        self.world = World(seed)
        self.random = self.world.random("farm")
        self.make = make or Make()
        self._root = tempfile.mkdtemp(prefix="chunkfarm-simulation-", dir=MEMORY if os.path.isdir(MEMORY) else None)
        self.disks = self.make.disks(self._root)
        self.images = Images(f"{self._root}/scratch")
        self.table = Table(self.world)
        self.table.on_change = self._changed
        self.servers: dict[str, ChunkServer] = {}
        self.users = Users(self)
        self.live: dict[str, Content] = {}
        """By name: what the table has."""
        self.wanted: Counter[bytes] = Counter()
        """Chunks that clients are about to need: they were told of copies, or soon will be."""
        self.harmed: dict[tuple[bytes, str], float] = {}
        """Copies that an injury took, and when."""
        self.put_aside: dict[tuple[bytes, str], float] = {}
        """When a server found that a copy was harmed."""
        self.promised: list[tuple[float, int, int]] = []
        """How many copies each chunk was to have, and how many of them before a client was told of it, from when."""
        self.injuries = self.losses = self.buried = self.cuts = self.collected = self.given = self.left = 0
        self.is_healed = False
        self.pinned_for = self.random.choice((GRACE, 0.0))
        """Seconds: in every other history pins protect nobody, and what is left is what safety hangs on."""
        self._rows: tuple[int, tuple[Server, ...]] = 0, ()
        self._sleeping: dict[Deferred[None], None] = {}
        self._numbers = itertools.count()
        self._failure: AssertionError | None = None
        self._patches = ExitStack()

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.world.now

    @property
    def story(self) -> list[str]:
        return [f"seed {self.seed}", *self.world.story]

    # The course of a run.

    def run(self) -> None:
        """The history, then a time in which all must heal; raises `AssertionError` if it does not."""
        with self:
            self.begin()
            for _ in range(self.steps):
                self.step()
                self.pass_time(self.random.choice((0.05, 0.5, 3.0, 20.0, 120.0)))
            self.heal()
            self._within(TIDY_SECONDS, self.tidy)
            self.users.read_all()

    def __enter__(self) -> Self:
        instead = {
            "os": self.disks,
            "hashlib": SimpleNamespace(sha256=Hash),
            "digest_of": digest_of,
            "PREFIXES": PREFIXES,
        }
        for name, module in sorted(sys.modules.items()):
            if name.startswith("chunkfarm.chunks.") or name in OTHERS:
                for attribute in instead.keys() & vars(module).keys():
                    self._patches.enter_context(patch.object(module, attribute, instead[attribute]))
        self._patches.enter_context(patch.object(surplus, "ROUND_SECONDS", SURPLUS_ROUND))
        self._patches.enter_context(patch.object(surplus, "AGAIN_SECONDS", SURPLUS_AGAIN))
        self._patches.enter_context(patch.object(sqlite3, "connect", self.disks.connect))
        self._patches.enter_context(patch.object(catalog_module, "CHUNK_SIZE_MIN", CHUNK_SIZE_MIN))
        self._patches.enter_context(patch.object(catalog_module, "INLINE_DIGESTS_MAX", INLINE))
        self._patches.enter_context(patch.object(placement, "score", _Scores()))
        # Everybody else would hear of failures that are meant to be, and of those of processes that are dead.
        self._patches.enter_context(patch.object(globalLogPublisher, "_observers", [self._logged]))
        # What a process has left behind is cleared away when its history is over, not in the middle of another event.
        gc.disable()
        gc.freeze()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for server in self.servers.values():
            server.kill()
        self.world.clear()
        self.servers.clear()
        gc.collect()
        gc.unfreeze()
        gc.enable()
        self._patches.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def begin(self) -> None:
        """Start the first servers."""
        self.set_options(self.random.choice((2, 3, 3, 3)))
        for _ in range(self.random.randint(3, 6)):
            self.add().start()
        self._turn_epoch()
        self.pass_time(5.0)

    def set_options(self, replicas: int) -> None:
        """A person says how many copies are wanted."""
        options = FarmOptions(chunksize=CHUNK_SIZE, replicas=replicas, repair_after=REPAIR_AFTER, collect_grace=GRACE)
        self.table.put(OPTIONS_KEY, options.to_value())

    def pass_time(self, seconds: float) -> None:
        """Let time pass from event to event."""
        self.world.run_until(self.now + seconds, lambda: self._failure is not None)
        if self._failure is not None:
            raise self._failure

    def fail(self, error: BaseException | None) -> None:
        """Something does not hold. Whoever notices it may stand where its exception would be taken for another's."""
        if not isinstance(error, AssertionError):
            error = Violation(f"a fault: {type(error).__name__}: {error}")
        self._failure = self._failure or error

    def note(self, who: str, what: str) -> None:
        self.world.note(who, what)

    def _logged(self, event: Any) -> None:
        process = self.world.running
        failure = event.get("log_failure")
        if event.get("log_level") is LogLevel.debug or (process is not None and not process.alive):
            return
        text = (formatEvent(event) or "").replace(self._root, "")
        if failure is not None:
            text += f": {failure.type.__name__}: {failure.getErrorMessage()}"
        self.note(process.name if process is not None else "-", f"| {text}")
        if failure is not None and not self._expects(failure):
            self.fail(Violation(f"a fault of the product: {text}\n{failure.getTraceback()}"))

    def _expects(self, failure: Any) -> bool:
        """What a disk says that has no room at all."""
        return isinstance(failure.value, OSError | sqlite3.Error | Full) and any(
            server.disk.no_space for server in self.servers.values()
        )

    # What clients and servers use.

    def sleep(self, seconds: float) -> Deferred[None]:
        """A client does something else for a while."""
        done: Deferred[None] = Deferred()
        self._sleeping[done] = None
        self.world.at(0.0 if self.is_healed else seconds, None, self._wake, done)
        return done

    def _wake(self, sleeper: Deferred[None]) -> None:
        if self._sleeping.pop(sleeper, self) is None:
            sleeper.callback(None)

    def way(self) -> float:
        """How long a question, or an answer, travels."""
        return self.random.choice(WAYS)

    def later(self, process: Process | None, call: Callable[..., object], *arguments: Any) -> None:
        """An answer arrives at a process, or a client."""
        self.world.at(self.way(), process, call, *arguments)

    @contextmanager
    def wants(self, content: Content) -> Iterator[None]:
        """While a client relies on these chunks they are not harmed beyond what it was promised."""
        self.wanted.update(content.all)
        try:
            yield
        finally:
            # What it has sent may still arrive.
            self.world.at(10.0, None, self.wanted.subtract, content.all)

    @property
    def rows(self) -> tuple[Server, ...]:
        """The server table as it is."""
        revision, servers = self._rows
        if revision != self.table.revision:
            rows = [row for key, row in sorted(self.table.rows.items()) if key.startswith(SERVERS)]
            servers = tuple(Server.from_value(row.value, row.revision) for row in rows)
            self._rows = self.table.revision, servers
        return servers

    @property
    def options(self) -> FarmOptions:
        return FarmOptions.from_value(self.table.rows[OPTIONS_KEY].value)

    @property
    def required(self) -> int:
        """Copies that a client wants to be told of before it takes a chunk for stored."""
        return self.options.replicas // 2 + 1

    # The first of the farm, as far as chunks need it.

    def add(self, weight: int | None = None) -> ChunkServer:
        """A machine with an empty disk."""
        number = next(self._numbers)
        weight = self.random.choice((1, 1, 2)) if weight is None else weight
        row = Server(id=f"{number:032x}", name=f"s{number}", host="", client=1, peer=2, files=3, weight=weight)
        server = ChunkServer(self, number, row, self.make)
        self.servers[row.id] = server
        return server

    def holds_rows(self, server: ChunkServer) -> bool:
        """Whether it is a master."""
        return any(row.id == server.id for row in masters(self.rows))

    def row(self, server: ChunkServer) -> Server | None:
        found = self.table.rows.get(SERVERS + server.id.encode())
        return Server.from_value(found.value, found.revision) if found is not None else None

    def update(self, server: ChunkServer, **changes: Any) -> None:
        """Change its row."""
        row = self.row(server)
        if row is not None and (changed := evolve(row, **changes)) != row:
            self.table.put(changed.key, changed.to_value())

    def joined(self, server: ChunkServer) -> None:
        """A process is there, and gives its row."""
        row = self.row(server) or server.row
        changed = evolve(
            row, state=row.live_state, given_up=False, full=server.disk.full, incarnation=f"{server.process_number}"
        )
        self.note(server.name, "is up")
        self.table.put(changed.key, changed.to_value())

    def ended(self, server: ChunkServer) -> None:
        """A process is gone; the first notices after a while. If it was the first, another one has to be chosen."""
        self.note(server.name, "has ended")
        if self.random.random() < 1 / len(self.servers):
            self.table.answers_from = max(self.table.answers_from, self.now + self.random.choice((0.5, 2.0, 6.0)))
        number = server.process_number

        def notice(**changes: Any) -> None:
            if server.process is None and server.process_number == number:
                self.update(server, **changes)

        self.world.at(DOWN_AFTER, None, lambda: notice(state="down"))
        self.world.at(REPAIR_AFTER, None, lambda: notice(given_up=True))

    def _turn_epoch(self) -> None:
        """As the first does, four times in each `collect_grace`."""
        if self.table.leads and any(server.is_serving for server in self.servers.values()):
            self.table.put(EPOCH_KEY, b"{}")
        self.world.at(GRACE / PARTS_OF_GRACE, None, self._turn_epoch)

    def _changed(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.key.startswith(FILES):
                self._file_changed(event)
        if any(not event.key.startswith(FILES) for event in events) and OPTIONS_KEY in self.table.rows:
            rows, replicas = self.rows, self.options.replicas
            able = sum(row.stores and row.state == "up" for row in rows)
            self.promised.append((self.now, min(replicas, sum(row.owns for row in rows)), min(replicas, able) // 2 + 1))

    def _file_changed(self, event: Event) -> None:
        name = event.key[len(FILES) :].decode()
        if event.kind == "DEL":
            self.live.pop(name, None)
            self.note("-", f"{name} is removed")
            return
        file = File.from_row(event.key, event.value, event.revision)
        content = self.live[name] = self.users.by_etag[file.etag]
        gone = [digest.hex()[:6] for digest in content.all if not self.intact(digest)]
        if gone:
            self.fail(Violation(f"commit: {name} has a row, and its chunks {' '.join(gone)} are nowhere"))

    # Looking on.

    def intact(self, digest: bytes) -> list[ChunkServer]:
        """Servers that have a whole copy on their disks, whether they run or not."""
        return [server for server in self.servers.values() if not server.gone and server.holds(digest)]

    def reachable(self, content: Content, reader: ChunkServer) -> dict[bytes, set[tuple[str, int]]]:
        """For each chunk the processes that have it and that `reader` knows."""
        known = {server.id for server in reader.roster.servers}
        return {
            digest: {(one.id, one.process_number) for one in self.intact(digest) if one.is_serving and one.id in known}
            for digest in content.all
        }

    def is_live(self, file: File) -> bool:
        """Whether this is still what the table has."""
        row = self.table.rows.get(file.key)
        return row is not None and row.revision == file.revision

    def counted(self, digest: bytes, since: float, unread: bool = True) -> int:
        """Copies that there are, and those harmed since then, or (`unread`) before and not read up to then."""
        holders = {server.id for server in self.intact(digest)}
        for (one, id), at in self.harmed.items():
            if one != digest:
                continue
            # A server may find it between its answer and what came of that.
            was_unread = self.put_aside.get((digest, id), -1.0) >= since
            if at >= since or (unread and (was_unread or self.servers[id].place(digest) is not None)):
                holders.add(id)
        return len(holders)

    def lowest(self, since: float) -> tuple[int, int]:
        """The fewest copies that chunks were to have at any time since then, and the fewest that were required."""
        # The last one before it was in force at that time.
        first = max((number for number, (at, *_) in enumerate(self.promised) if at < since), default=0)
        return min(one[1] for one in self.promised[first:]), min(one[2] for one in self.promised[first:])

    def must_have_copies(self, content: Content, copies: int, began: float) -> None:
        """What a client was told: so many copies of each chunk are durable, and those are enough."""
        wanted, required = self.lowest(began - LAGS[-1])
        if copies < required:
            raise Violation(f"copies: a client was told of {copies}, and {required} are required")
        for digest in content.all:
            found = self.counted(digest, began)
            if found < min(copies, wanted):
                raise Violation(f"copies: {found} of {digest.hex()[:6]}, and a client was told of {copies}")

    def removes(self, server: ChunkServer, digest: bytes, how: str) -> None:
        """A server is about to remove a whole copy."""
        self.note(server.name, f"{how or 'removes'} {digest.hex()[:6]}")
        self.given += how == "gives up"
        if how == "collects":
            self.collected += 1
            if self.now - server.held.get(digest, -GRACE) < self.pinned_for:
                self.fail(Violation(f"pins: {server.name} collects {digest.hex()[:6]}, and has promised to keep it"))
        if any(digest in content.all for content in self.live.values()):
            since = self.now - REMEMBERED_SECONDS
            others = self.counted(digest, since, unread=False) - 1
            if others < self.lowest(since)[0]:
                self.fail(
                    Violation(f"removed: {server.name} removes {digest.hex()[:6]}, of which there are {others} more")
                )

    def needed(self) -> list[bytes]:
        """Chunks of files, and those that clients rely on."""
        found = {digest for content in self.live.values() for digest in content.all}
        return sorted(found | {digest for digest, count in self.wanted.items() if count > 0})

    # The end.

    def heal(self) -> None:
        """Nothing goes wrong any more, and everything is read once.

        A server that is dead stays so for good in every other history, if nothing is only there.
        """
        self.is_healed = True
        self.note("-", "everything is repaired")
        self.table.loses_answers = False
        self.table.answers_from = self.now
        if len(self._alive()) == len(self._present()) > 3 and self.random.random() < 0.5:
            self.random.choice(self._alive()).kill()
        needed = not all(any(one.process for one in self.intact(digest)) for digest in self.needed())
        for server in self.servers.values():
            server.lag_max = LAGS[0]
            server.disk.cut_at, server.disk.no_space = 0, False
            self.fill(server, False)
            if server.process is None and not server.gone and (needed or self.random.random() < 0.5):
                server.start()
        self.buried = sum(server.process is None and not server.gone for server in self.servers.values())
        for sleeper in list(self._sleeping):
            self._wake(sleeper)
        self.pass_time(60 + (REPAIR_AFTER if self.buried else 0))
        assert not self.users.under_way, "clients wait for answers that do not come"
        for _ in range(2):
            self._read_everything()
        self._within(HEAL_SECONDS, self.check)

    def _within(self, seconds: float, check: Callable[[], None]) -> None:
        """In so much time at the latest it must be so."""
        until = self.now + seconds
        while self.now < until:
            self.pass_time(20.0)
            try:
                check()
            except Violation:
                continue
            return
        check()

    def _read_everything(self) -> None:
        """As `chunkfarm check` does."""
        (somebody, *_) = [server for server in self.servers.values() if server.is_serving]
        digests = sorted({digest for content in self.live.values() for digest in content.all})
        checking = somebody.transfer.check(digests, read=True)
        self.pass_time(30.0)
        assert checking.called and isinstance(checking.result, dict), "a check has not ended"

    def check(self) -> None:
        """Every file is on all owners of its chunks, can be read, and nobody believes that anything is left to do."""
        rows, replicas = self.rows, self.options.replicas
        for name, content in sorted(self.live.items()):
            for digest in content.all:
                owners = placement.owners(digest, rows, replicas)
                lacking = [row.name for row in owners if not self.servers[row.id].holds(digest)]
                if lacking:
                    raise Violation(f"repair: chunk {digest.hex()[:6]} of {name} is not on {lacking}")
        for server in self.servers.values():
            if server.process is not None:
                told = server.caretaker.progress
                if (told.left, told.short) != (0, 0):
                    raise Violation(f"repair: {server.name} says {told}")

    def tidy(self) -> None:
        """What no file uses is gone in the end, and so is what belongs on other servers."""
        rows, replicas = self.rows, self.options.replicas
        used = {digest for content in self.live.values() for digest in content.all}
        for server in self.servers.values():
            for digest in server.digests() if server.is_serving else ():
                owners = placement.owners(digest, rows, replicas)
                if digest not in used:
                    raise Violation(f"garbage: {server.name} has {digest.hex()[:6]} still")
                # Who is emptied keeps its copy where the others are too few for all of them.
                if len(owners) == replicas and server.id not in [row.id for row in owners]:
                    raise Violation(f"surplus: {server.name} has {digest.hex()[:6]} still")
        self.check()

    # The weather.

    def step(self) -> None:
        """One thing happens; clients do something in any case."""
        happens: list[tuple[int, Callable[[], None]]] = [
            (8, self.users.act),
            (3, self._kill),
            (3, self._come_back),
            (3, self._injure),
            (2, self._cut_soon),
            (1, self._lose_disk),
            (1, self._cut_all),
            (1, self._change_fullness),
            (1, self._join),
            (1, self._leave),
            (1, self._change_weight),
            (1, self._change_replicas),
            (1, self._freeze),
            (1, self._lag),
            (1, self._stop_table),
        ]
        self.random.choices([one for _, one in happens], [weight for weight, _ in happens])[0]()
        for _ in range(self.random.choice((0, 1, 1, 2))):
            self.users.act()

    def _alive(self) -> list[ChunkServer]:
        return [server for server in self.servers.values() if server.process is not None]

    def _present(self) -> list[ChunkServer]:
        return [server for server in self.servers.values() if not server.gone]

    def _kill(self) -> None:
        # Of the copies one may be lost at a time; what was written is on more than half of them.
        if len(self._alive()) == len(self._present()):
            server = self.random.choice(self._alive())
            if self.random.random() < 0.5:
                server.cut_power()
            else:
                server.kill()

    def _cut_soon(self) -> None:
        """A machine goes dark, or a process ends, in the middle of what it writes."""
        if len(self._alive()) == len(self._present()) and not any(one.disk.cut_at for one in self._present()):
            server = self.random.choice(self._alive())
            server.disk.cut_power = self.random.random() < 0.7
            server.disk.cut_at = self.random.randint(1, 20)

    def _cut_all(self) -> None:
        """The power fails everywhere, and comes back."""
        self.cuts += 1
        for server in self._alive():
            server.cut_power()
        for server in self._present():
            self.world.at(self.random.random() * 20.0, None, self.start_if_down, server)

    def start_if_down(self, server: ChunkServer) -> None:
        if server.process is None and not server.gone:
            server.start()

    def _come_back(self) -> None:
        dead = [server for server in self._present() if server.process is None]
        if dead:
            dead[0].start()

    def _injure(self) -> None:
        """Flip a bit of a copy, cut it off, or delete it, if there is another one."""
        choices = [
            (server, digest) for digest in self.needed() if len(whole := self.intact(digest)) >= 2 for server in whole
        ]
        if not choices:
            return
        server, digest = self.random.choice(choices)
        place = server.place(digest)
        assert place is not None
        kind = self.random.choice(("flips", "vanishes", "is cut off"))
        packed = place.path.endswith(".pack")
        if packed or kind == "flips":
            self.note(server.name, f"a bit of {digest.hex()[:6]} flips")
            place.flip(self.random.randrange(10**6))
        elif kind == "vanishes":
            self.note(server.name, f"{digest.hex()[:6]} vanishes")
            self.disks.disks[server.name].vanishes(place.path)
        else:
            self.note(server.name, f"{digest.hex()[:6]} is cut off")
            place.cut(self.random.randrange(10**6))
        self._harm(digest, server)

    def _harm(self, digest: bytes, server: ChunkServer) -> None:
        self.injuries += 1
        self.harmed[digest, server.id] = self.now

    def _lose_disk(self) -> None:
        """A server loses its whole disk, and begins with an empty one, if nothing is only there."""
        server = self.random.choice(self._present())
        whole = {digest: self.intact(digest) for digest in self.needed()}
        if any(found == [server] for found in whole.values()):
            return
        self.losses += 1
        self.note(server.name, "loses its disk")
        server.kill()
        for digest, found in whole.items():
            if server in found:
                self._harm(digest, server)
        server.disk.wipe()
        server.start()

    def _change_fullness(self) -> None:
        server = self.random.choice(self._present())
        if self.random.random() < 0.3:
            server.disk.no_space = not server.disk.no_space
        else:
            self.fill(server, not server.disk.full)

    def fill(self, server: ChunkServer, full: bool) -> None:
        """The disk fills up, or has room again; the row says so two seconds later."""
        server.disk.full = full
        self.world.at(2.0, None, lambda: self.update(server, full=server.disk.full))

    def _join(self) -> None:
        if len(self._present()) < SERVERS_MAX:
            self.add().start()

    def _leave(self) -> None:
        """A server is emptied; one that is empty enough may go for good."""
        emptied = {row.id for row in self.rows if row.draining}
        draining = [server for server in self._present() if server.id in emptied]
        staying = [server for server in self._present() if server not in draining]
        if draining:
            server = draining[0]
            if self.random.random() < 0.3:
                self.note(server.name, "is to stay")
                self.update(server, draining=False, state="up" if server.process is not None else "down")
            elif server.is_serving and (told := server.draining.progress) is not None and told.drained:
                self.note(server.name, "leaves for good")
                self.left += 1
                # What was lost with its disk before goes with nobody who leaves.
                held = sorted(
                    {digest for content in self.live.values() for digest in content.all if server.holds(digest)}
                )
                server.gone = True
                since = self.now - REMEMBERED_SECONDS
                for digest in held:
                    # What has rotted since it was verified is nobody's fault here.
                    if self.counted(digest, since) < self.lowest(since)[1]:
                        raise Violation(f"drained: {server.name} was not needed any more, but for {digest.hex()[:6]}")
                for digest in self.needed():
                    if server.holds(digest):
                        self._harm(digest, server)
                server.kill()
                self.table.delete(SERVERS + server.id.encode())
        elif len(staying) > 3:
            server = self.random.choice(staying)
            if server.process is not None:
                self.note(server.name, "is emptied")
                self.update(server, draining=True, state="draining")

    def _change_weight(self) -> None:
        """A server gets more chunks, fewer, or none any more, but not all of them none."""
        server = self.random.choice(self._present())
        weight = self.random.choice((0, 1, 2, 4))
        row = self.row(server)
        if row and (weight or sum(other.weight > 0 for other in self.rows if other.id != server.id) >= 3):
            self.note(server.name, f"has the weight {weight}")
            self.update(server, weight=weight)

    def _change_replicas(self) -> None:
        replicas = self.random.choice((2, 3, 3, 4))
        self.note("-", f"{replicas} replicas are wanted")
        self.set_options(replicas)

    def _freeze(self) -> None:
        if self._alive():
            self.random.choice(self._alive()).freeze(self.random.choice((1.0, 10.0, 40.0)))

    def _lag(self) -> None:
        """A server hears of changes late, or in good time again."""
        server = self.random.choice(self._present())
        server.lag_max = self.random.choice(LAGS)

    def _stop_table(self) -> None:
        """Nobody leads for a while."""
        self.table.answers_from = self.now + self.random.choice((1.0, 5.0, 30.0))
