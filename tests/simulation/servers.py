"""One simulated server: its machine, its disk, and its processes, one after the other."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from chunkfarm.chronicle import THREAD as CHRONICLE_THREAD
from chunkfarm.chunks.loose import LooseChunks
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.farm import Farm
from chunkfarm.logs import Logs
from chunkfarm.machine import Machine
from chunkfarm.model import GENERATION_KEY, GIB, ROTATION_WANTED_KEY, SERVERS, Server
from chunkfarm.parts import Parts
from chunkfarm.startup import Wish
from chunkfarm.systemd import Systemd
from chunkfarm.table.driver import StorageTooSlow
from chunkfarm.table.interface import Row
from chunkfarm.trust.identity import CERTIFICATE_FILE
from tests.simulation.disks import Disk
from tests.simulation.journals import JournalChecks, WatchedJournal
from tests.simulation.network import Network
from tests.simulation.world import EPOCH_MS, Process, SimulatedThreads, World

PEER_PORT = 4101
JOIN_KEY = "5e" * 32
SLOW_DISK = "table-disk"


class _WatchedFarm(Farm):
    """The service as twistd runs it, with someone looking on."""

    def __init__(self, server: SimulatedServer, wish: Wish, reactor: Any, systemd: Systemd, machine: Machine) -> None:
        super().__init__(wish, reactor, systemd, machine, Logs())
        self._server = server

    def _built(self, parts: Parts) -> None:
        self._server.built(parts)
        super()._built(parts)

    def _fatal(self, failure: Failure) -> None:
        self._server.expects_fatal(failure)
        super()._fatal(failure)


class _Threads(SimulatedThreads):
    """Folders without chunks are looked at without waiting: 256 of them after each change of the servers."""

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        of = getattr(function, "__func__", None)
        if of is ChunkStore._scan or of is LooseChunks.count:
            found = function(*args, **kwargs)
            if not found:
                return succeed(found)
        return super().run(function, *args, **kwargs)


class _NoThreads:
    """Does nothing of what it is given."""

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return succeed(None)

    def stop(self) -> None:
        pass


class SimulatedServer:
    """A server of the farm, on a machine of its own."""

    def __init__(self, number: int, world: World, network: Network, root: Path, checks: JournalChecks) -> None:
        self.number = number
        self.name = f"s{number}"
        self.host = f"10.0.0.{number}"
        self.world = world
        self.process: Process | None = None
        self.parts: Parts | None = None
        self.clock_offset = 0
        """Milliseconds by which its time of day is wrong."""
        self.disk_slow = 0.0
        """Seconds that a write of the journal takes in addition, at the most."""
        self.disk_hangs = False
        self.disk_hangs_until = 0.0
        """When its disk goes on with what was written meanwhile."""
        self.free = 50 * GIB
        """Bytes that its disk has left for chunks."""
        self.zone = ""
        """What it may be lost with, as its config.ini says; empty: alone."""
        self.advertised = ""
        """The host that its config.ini names; empty: that of its machine."""
        self.lives = 0
        self.fail: Callable[[BaseException | None], None] = lambda error: None
        self.on_end: Callable[[SimulatedServer, str], None] = lambda server, how: None
        self.random = world.random(f"server {number}")
        self.disk = Disk(world.random(f"disk {number}"))
        self.disk.on_cut = self.cut_power
        self._network = network
        self._checks = checks
        self._farm: _WatchedFarm | None = None
        self.folder = root / self.name
        self.folder.mkdir()
        self.config = self.folder / "config.ini"
        self.config_path = os.fspath(self.config)
        self._write("farm.join", JOIN_KEY + "\n")

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)

    def configure(self, listed: tuple[SimulatedServer, ...], farm: str = "") -> None:
        """Give it a config.ini by hand, which lists those servers."""
        rows = "".join(f"{server.name} = {server.host} {PEER_PORT - 1}\n" for server in listed)
        own = f"name = {self.name}\nhost = {self.advertised or self.host}\nweight = 1\ndata = data\n"
        own += f"zone = {self.zone}\n" if self.zone else ""
        self._write("config.ini", f"[farm]\nchunksize = 8M\n{farm}\n[servers]\n{rows}\n[server]\n{own}")

    def copy_join_key(self, known: SimulatedServer) -> None:
        """Give it the farm.join that stands beside the config.ini of another."""
        self._write("farm.join", (known.folder / "farm.join").read_text())

    @property
    def has_joined(self) -> bool:
        """Whether it has a certificate of a farm."""
        return (self.folder / "data" / CERTIFICATE_FILE).exists()

    @property
    def id(self) -> str:
        """Its server id, if it has one by now."""
        path = self.folder / "data" / "server.id"
        return path.read_text().strip() if path.exists() else ""

    @property
    def has_the_ca(self) -> bool:
        """Whether it knows of no change of the CA that is under way, and has a certificate of the one there is."""
        parts = self.parts
        if parts is None or parts.contexts.identity is None or parts.roster.farm_row(ROTATION_WANTED_KEY) is not None:
            return False
        rotation = parts.beliefs.rotation
        if rotation is None:
            return True
        known = parts.contexts.identity.ca_fingerprint == rotation.fingerprint
        return known and not rotation.is_running and f"ca = {rotation.fingerprint}" in self.recorded

    @property
    def recorded(self) -> str:
        """The lines by which its config.ini names its farm; empty if it names none."""
        lines = self.config.read_text().splitlines()
        return "".join(line + "\n" for line in lines if line.startswith(("id = ", "ca = ")))

    def rows_of_servers(self, generation: int) -> list[Server] | None:
        """The servers by its journal, if that is at this generation of the farm."""
        if self.parts is None or not self.parts.embedded.holds_rows:
            return None
        journal = self.parts.journal
        found = journal.read(GENERATION_KEY, b"", 1).rows
        if not found or int(found[0].value) != generation:
            return None
        rows: list[Row] = []
        more = True
        while more:
            page = journal.read(SERVERS, rows[-1].key if rows else b"", 1000)
            rows += page.rows
            more = page.more
        return [Server.from_value(row.value, row.revision) for row in rows]

    @property
    def is_up(self) -> bool:
        return self.process is not None

    @property
    def is_serving(self) -> bool:
        return self.parts is not None and self.parts.state.phase == "serving"

    @property
    def state(self) -> str:
        """How it stands, in a word."""
        if self.parts is not None:
            return self.parts.state.phase
        return "down" if self.process is None else "starting"

    # Its processes.

    def start(self) -> None:
        """Begin a process, as systemd does."""
        if self.process is not None or self.host in self._network.dark:
            return
        self.lives += 1
        self.world.note(self.name, "starts")
        process = Process(self.world, self.name, self.host, self._ended)
        process.disk_delay = self._disk_delay
        process.identity = lambda: self.parts.contexts.identity if self.parts is not None else None
        self.process = process
        process.at(0.0, self._begin, process)

    def _begin(self, process: Process) -> None:
        random = Random(self.random.getrandbits(64))
        machine = Machine(
            now=lambda: EPOCH_MS + round(self.world.now * 1000) + self.clock_offset,
            boot_time=lambda: self.world.now + 5000.0,
            random=random,
            new_id=lambda: UUID(int=random.getrandbits(128), version=4),
            threads=self._make_threads,
            connect=self._network.connect,
            listen=self._network.listen,
            open_journal=self._open_journal,
            room=lambda directory: (self.free, 100 * GIB),
            descriptors=lambda: 65_536,
            keep_room=lambda directory: True,
            exit=lambda status: process.end(f"exit {status}"),
        )
        wish = Wish(config=self.config_path, overrides={}, host_name=self.name)
        self._farm = _WatchedFarm(self, wish, process.reactor, Systemd({}), machine)
        process.on_stop = self._farm.stopService
        self._farm.startService()

    def _make_threads(self, reactor: Any, most: int, name: str, nice: int = 0) -> Any:
        if name == CHRONICLE_THREAD:
            # What is noted for people changes nothing, so it takes no part in chance, and no time on the real disk.
            return _NoThreads()
        return _Threads(reactor._process, most, name)

    def _disk_delay(self, name: str) -> float:
        delay = 0.0002 + self.random.expovariate(2000.0)
        if name != SLOW_DISK:
            return delay
        if self.disk_hangs:
            return 1e6
        waits = max(0.0, self.disk_hangs_until - self.world.now)
        return delay + waits + self.disk_slow * self.random.random()

    def _open_journal(self, path: str) -> WatchedJournal:
        return self._checks.open(self.name, self.lives, path, self.disk)

    def built(self, parts: Parts) -> None:
        """Its objects are there, and nothing runs yet."""
        self.parts = parts
        self._checks.watch(self, parts)

    def expects_fatal(self, failure: Failure) -> None:
        self.world.note(self.name, f"must end: {failure.getErrorMessage()}")
        if not failure.check(sqlite3.Error, OSError, StorageTooSlow):
            self.fail(failure.value)

    def _ended(self, how: str) -> None:
        assert self.process is not None
        process, self.process, parts, self.parts, farm = self.process, None, self.parts, None, self._farm
        self.world.note(self.name, f"has ended: {how}")
        self._farm = None
        self._network.end_process(process)
        self._checks.ended(self.name)
        self.disk.end_process()
        if self.world.running is process:
            # It may be in the middle of what is to be given up.
            self.world.at(0.0, None, _let_go, parts, farm)
        else:
            _let_go(parts, farm)
        self.on_end(self, how)

    # What happens to it.

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.end("killed")

    def cut_power(self) -> None:
        """Silence; what was not synchronized may be lost."""
        self.world.note(self.name, "loses its power")
        self._network.power_off(self.host)
        if self.process is not None:
            self.process.end("no power")
        self.disk.lose_power()

    def power_on(self) -> None:
        """The machine is back; its server is started by somebody else."""
        if self.host in self._network.dark:
            self.world.note(self.name, "has power again")
            self._network.power_on(self.host)

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after that time."""
        if self.process is not None:
            self.world.note(self.name, f"is frozen for {seconds:.1f} s")
            self.process.freeze(seconds)

    def stop(self) -> None:
        """SIGTERM."""
        if self.process is not None:
            self.world.note(self.name, "is told to stop")
            self.process.at(0.0, self.process.stop)

    def copy_disk(self) -> bytes:
        """A copy of its journal as it is now, as a backup has it."""
        return self.disk.image(self._journal_path)

    def put_back(self, copy: bytes) -> None:
        """The journal of some time ago in the place of the newest one."""
        assert self.process is None
        self.world.note(self.name, "gets an old journal")
        self.disk.restore(self._journal_path, copy)
        self._checks.forget(self.name)

    def swap_data(self, other: SimulatedServer) -> None:
        """Somebody mixes up two disks: each machine has the data directory of the other one, and its own config.ini."""
        assert self.process is None and other.process is None
        self.world.note(self.name, f"has the disk of {other.name}, and the other way round")
        aside = self.folder / "aside"
        (self.folder / "data").rename(aside)
        (other.folder / "data").rename(self.folder / "data")
        aside.rename(other.folder / "data")
        self.disk.swap(other.disk, self._journal_path, other._journal_path)
        self._checks.swap(self.name, other.name)
        # Lives are counted for each server, which has another machine now.
        self.lives = other.lives = max(self.lives, other.lives)

    def copy_data(self, other: SimulatedServer) -> None:
        """Somebody copies the data directory of another server, which may run, in the place of this one's."""
        assert self.process is None
        self.world.note(self.name, f"has a copy of the disk of {other.name}")
        shutil.rmtree(self.folder / "data")
        self.disk.wipe()
        shutil.copytree(other.folder / "data", self.folder / "data")
        self.disk.restore(self._journal_path, other.copy_disk())
        self._checks.forget(self.name)

    @property
    def _journal_path(self) -> str:
        return os.fspath(self.folder / "data" / "table.sqlite")

    def wipe(self) -> None:
        """A new disk in the place of the old one; the server on it is a new one."""
        assert self.process is None
        self.world.note(self.name, "gets an empty disk")
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.disk.wipe()


def _let_go(parts: Parts | None, farm: Any) -> None:
    """What the kernel does for a process that has ended: locks on files go."""
    if parts is not None:
        # After an orderly end the number of the descriptor may be another file's.
        with suppress(OSError):
            if os.path.samestat(os.fstat(parts.data._lock), os.stat(parts.data.path / "lock")):
                parts.data.close()
    if farm is not None and farm._startup is not None:
        # Nothing else of this can have an effect any more: its process is not alive.
        farm._startup.cancel()
