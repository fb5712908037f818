"""A whole farm in one process, from one seed: every server as twistd runs it, on simulated machines.

Everything above `chunkfarm.machine` is the product: start, parts, table, ledger, peer port and client port. Below are a
network, disks, clocks and threads whose every whim comes from the seed. The first part of a history is full of faults,
while clients read, write and watch; then everything is healed, and the farm has to serve within `SERVE_WITHIN`.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any, Self
from unittest.mock import patch

from attrs import frozen
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from chunkfarm.config import Config
from chunkfarm.config_text import parse_config
from chunkfarm.exports import maker
from tests.simulation.checks import Violation
from tests.simulation.faults import Faults
from tests.simulation.journals import JournalChecks
from tests.simulation.network import Network
from tests.simulation.servers import SimulatedServer
from tests.simulation.users import Users
from tests.simulation.visitors import Visitors
from tests.simulation.world import Process, World

FAULTY_SECONDS = 45.0
"""How long faults are made: several times `master_grace`, so that servers are dropped and come back."""
SETTLE_SECONDS = 6.0
"""How long the farm has for its first start before the first fault, in most histories."""
SERVE_WITHIN = 60.0
"""Seconds from the last fault until every server serves and a transaction has been committed through each of them:
a process that hangs ends after ten, a call to somebody who is gone takes as long, and a start asks in rounds."""
QUIET_SECONDS = 15.0
CHANGES_WHEN_QUIET_MAX = 2
"""Changes of the first in that time: back to the senior, once more if it was not ready yet."""
CHANGES_PER_FAULT_MAX = 2
"""Changes of the first that one fault may cause: it takes the first away, and when it is over leadership goes back to
the senior. A link that flaps is as many faults as it is cut, and the repair of everything at the end is one more."""
RESTART_SECONDS = 2.0
"""After which a process that ended by itself is started again, as systemd does."""
STOP_SECONDS = 40.0
CHANGES_CA_EVERY = 4
"""Histories of which one changes the farm's CA."""
DISKS_HANG_EVERY = 5
"""Histories of which one has disks that hang."""
NEVER = 1e9
LISTED = ("up", "draining", "leaving", "down")
"""The states of servers in the order in which config.ini lists them."""
_FINGERPRINT = re.compile("sha256:[0-9a-f]{64}")


@frozen
class Options:
    """What kind of farm and weather; drawn from the seed."""

    servers: int
    spares: int
    """Servers that join later, if a fault is that they do."""
    together: bool
    """Whether all start at once, each with a list of all."""
    faults: float
    """Faults a second, on average."""
    slow: float
    clients: int

    @classmethod
    def draw(cls, random: Random) -> Options:
        servers = random.choice((1, 2, 2, 3, 3, 3, 4, 5, 6, 7))
        return cls(
            servers=servers,
            spares=random.choice((0, 1, 2)) if servers < 5 else 0,
            together=random.random() < 0.5,
            faults=random.choice((0.1, 0.2, 0.4)),
            slow=random.choice((0.0, 0.0, 0.02, 0.2)),
            clients=random.choice((2, 3, 5)),
        )


class FarmSimulation:
    """One history. `run` raises `Violation` when something does not hold; `story` says what happened."""

    one_table = True
    """Whether there is one table only, so that a generation stands for the same servers everywhere."""

    def __init__(self, seed: int, options: Options | None = None, seconds: float | None = None) -> None:
        self.seed = seed
        self.world = World(seed)
        self.random = self.world.random("farm")
        self.options = options or Options.draw(self.random)
        self.network = Network(self.world)
        self.checks = JournalChecks(self.fail)
        self.servers: list[SimulatedServer] = []
        self._by_host: dict[str, SimulatedServer] = {}
        self.seconds = FAULTY_SECONDS if seconds is None else seconds
        self.changes_ca = options is None and seed % CHANGES_CA_EVERY == 1
        """Whether an admin wants another CA in the middle of the faults."""
        self.disks_hang = options is None and seed % DISKS_HANG_EVERY == 2
        """Whether the disk under some journal hangs now and then: what is written waits for ever, and nothing fails."""
        self.healed = False
        self.healed_at = 0.0
        self.healed_within = 0.0
        """Seconds from the last fault until all served."""
        self.changes_when_quiet = 0
        self.users = Users(self)
        self.visitors = Visitors(self)
        self._root = Path(tempfile.mkdtemp(prefix="chunkfarm-simulation-"))
        self._generations: dict[str, tuple[int, int]] = {}
        self.lists_compared = 0
        """How often what a config.ini lists was compared with a table of the same generation."""
        self._failure: AssertionError | None = None
        self._patches = ExitStack()
        self._collects = True
        self.faults = Faults(self)
        self.world.after_event = self._after_event
        self.checks.on_message = lambda message: self.world.trace(
            f"{message.sender} {message.to} {message.kind.value} {message.term} {message.log_index}"
        )

    @property
    def now(self) -> float:
        return self.world.now

    @property
    def story(self) -> list[str]:
        """What happened, for people."""
        return [f"seed {self.seed}: {self.options}", *self.world.story]

    # The course of a run.

    def run(self) -> None:
        """Faults, then healing, then proof of life."""
        with self:
            self.begin()
            self.users.begin()
            self.visitors.begin()
            self.faults.begin()
            self.run_for(self.seconds)
            self.heal()
            self.must(self.everybody_serves, SERVE_WITHIN, "serve again")
            if self.faults.rotated:
                self.must(self.everybody_has_the_ca, SERVE_WITHIN, "have a certificate of the farm's CA")
            self.quiet()
            self.users.finish()
            self.finished()

    def __enter__(self) -> Self:
        self._patches.enter_context(patch.object(os, "fsync", lambda descriptor: None))
        # Its chunks lie where their digests say, and in them are keys that are others in every run.
        self._patches.enter_context(patch.object(maker, "URGENT_AFTER", NEVER))
        # Everybody else would hear of failures that are meant to be, and of those of processes that are dead.
        self._patches.enter_context(patch.object(globalLogPublisher, "_observers", [self._logged]))
        # What a process has left behind is cleared away when its history is over, not in the middle of another event.
        self._collects = gc.isenabled()
        gc.disable()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for server in self.servers:
            server.on_end = lambda server, how: None
            server.kill()
        self.network.connections.clear()
        self.network.ports.clear()
        self.world.clear()
        # What is cleared away may leave more behind.
        while gc.collect():
            pass
        if self._collects:
            gc.enable()
        self._patches.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def begin(self) -> None:
        """Start the first servers."""
        options = self.options
        servers = [self.add_server() for _ in range(options.servers)]
        if options.slow:
            for one in servers:
                for other in servers:
                    self.network.slow[one.host, other.host] = options.slow
        for server in servers:
            others = tuple(other for other in servers if other is not server)
            server.configure(others if options.together else tuple(servers[:1]) if server is not servers[0] else ())
        for number, server in enumerate(servers):
            delay = self.random.random() * 0.5 if options.together else number * 0.4
            self.world.at(delay, None, server.start)

    def add_server(self) -> SimulatedServer:
        """A machine with nothing on it."""
        server = SimulatedServer(len(self.servers) + 1, self.world, self.network, self._root, self.checks)
        server.on_end = self._ended
        server.fail = self.fail
        self.servers.append(server)
        self._by_host[server.host] = server
        return server

    def join(self, server: SimulatedServer) -> None:
        """Start a new server."""
        self.prepare(server)
        server.start()

    def prepare(self, server: SimulatedServer) -> None:
        """Give it what a person copies from the config.ini of another."""
        known = next(other for other in self.servers if other is not server and other.recorded)
        server.configure(tuple(other for other in self.servers if other is not server), known.recorded)
        server.copy_join_key(known)

    @property
    def is_founded(self) -> bool:
        """Whether every server has its farm in its config.ini.

        Until then a list says nothing about who may have a farm already, and whoever is gone may have founded it.
        """
        return all(server.recorded for server in self.servers)

    def _ended(self, server: SimulatedServer, how: str) -> None:
        if how.startswith("exit"):
            if self.faults.rotated and not server.has_joined:
                # It was told that its farm.join is not the farm's any more, and a person copies it once more.
                self.prepare(server)
            # As systemd does.
            self.world.at(RESTART_SECONDS, None, server.start)

    def run_for(self, seconds: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Let so much time pass, or less if `done` is so before."""
        ended = self.world.run_until(self.now + seconds, done)
        if self._failure is not None:
            raise self._failure
        return ended

    def must(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """It has to be so within that time."""
        if not self.run_for(seconds, done):
            states = ", ".join(f"{server.name} {server.state}" for server in self.servers)
            raise Violation(f"liveness: not all {what} within {seconds:g} s ({states})")

    def heal(self) -> None:
        """No more faults: everything is repaired, and every server started."""
        self.healed, self.healed_at = True, self.now
        self.world.note("-", "everything is repaired")
        self.faults.heal()
        for server in self.servers:
            if server.lives:
                server.power_on()
                server.start()

    def quiet(self) -> None:
        """Where nothing is wrong, nobody takes over: at most leadership goes back to the senior."""
        self.healed_within = self.now - self.healed_at
        # What they still change is in every config.ini before it is over.
        self.visitors.finish()
        before = self.leaderships
        self.run_for(QUIET_SECONDS)
        self.changes_when_quiet = self.leaderships - before
        # Somebody had to be the first to begin with.
        changes, faults = self.leaderships - 1, self.faults.count + 1
        if changes > CHANGES_PER_FAULT_MAX * faults:
            raise Violation(f"takeover storm: the first changed {changes} times in {faults} faults")
        if self.changes_when_quiet > CHANGES_WHEN_QUIET_MAX:
            raise Violation(f"liveness: the first changed {self.changes_when_quiet} times while nothing was wrong")

    @property
    def leaderships(self) -> int:
        """How often somebody has come to lead so far."""
        return sum(checks.terms for checks in self.checks.farms.values())

    def everybody_serves(self) -> bool:
        """Whether all servers belong, agree about who leads, and a transaction went through each of them."""
        started = [server for server in self.servers if server.lives]
        return all(server.is_serving for server in started) and self.users.proved(started)

    def everybody_has_the_ca(self) -> bool:
        """Whether no change of the CA is under way, and all are known by the one that there is now."""
        return all(server.has_the_ca for server in self.servers if server.lives)

    def finished(self) -> None:
        """What must hold at the end."""
        farms = {server.parts.state.farm_id for server in self.servers if server.parts is not None}
        if len(farms) != 1:
            raise Violation(f"one farm: there are {len(farms)} now")
        self._compare_configs()
        self.checks.compare_rows([server for server in self.servers if server.is_serving])
        self.users.check()

    def _compare_configs(self) -> None:
        """Every config.ini says the same of the farm."""
        said: dict[str, list[str]] = {}
        for server in self.servers:
            if server.is_serving:
                config = parse_config(server.config.read_text(), "config.ini", {}, server.name)
                text = f"generation {config.generation}, {config.farm}, {config.servers}"
                said.setdefault(text, []).append(server.name)
        if len(said) > 1:
            raise Violation("config.ini: they differ: " + "; ".join(f"{names}: {text}" for text, names in said.items()))

    # Looking on.

    def fail(self, error: BaseException | None) -> None:
        """Something does not hold. Whoever notices it may stand where its exception would be taken for another's."""
        if not isinstance(error, AssertionError):
            error = Violation(f"a fault: {type(error).__name__}: {error}")
        self._failure = self._failure or error

    def _after_event(self, process: Process | None) -> None:
        server = self._by_host.get(process.host) if process is not None and process.alive else None
        if process is None or server is None:
            return
        try:
            self.checks.look(server)
            if process.has_used_disk:
                process.has_used_disk = False
                self._look_at_config(server)
        except Violation as violation:
            self.fail(violation)
        if self._failure is not None:
            raise self._failure

    def _look_at_config(self, server: SimulatedServer) -> None:
        """config.ini can be read at any time, and its generation never falls."""
        path = server.config_path
        status = os.stat(path)
        seen, generation = self._generations.get(path, (0, 0))
        if status.st_ino == seen:
            return
        config = parse_config(server.config.read_text(), path, {}, server.name)
        if config.generation < generation:
            raise Violation(f"config.ini: that of {server.name} went from {generation} to {config.generation}")
        self._generations[path] = (status.st_ino, config.generation)
        self._look_at_list(config, server)

    def _look_at_list(self, config: Config, writer: SimulatedServer) -> None:
        """It lists the servers as the table had them at that generation, if some journal is there just now."""
        listed = [(row.id, row.name, row.host, row.peer, row.state) for row in config.servers]
        for server in self.servers if self.one_table else ():
            rows = server.rows_of_servers(config.generation)
            if rows is None:
                continue
            # Live ones ahead, oldest first, then those that are leaving, then those that are down.
            line = sorted(rows, key=lambda row: (LISTED.index(row.state), row.seniority))
            expected = [(row.id, row.name, row.host, row.peer, row.state) for row in line]
            if listed != expected:
                wrong = next(pair for pair in zip_longest(listed, expected) if pair[0] != pair[1])
                raise Violation(f"config.ini: that of {writer.name} lists {wrong[0]} and the table has {wrong[1]}")
            self.lists_compared += 1
            return

    def _logged(self, event: Any) -> None:
        process = self.world.running
        if event.get("log_namespace") == "chunkfarm.audit":
            # It names a key, whose id is another one in every run.
            return
        level = event.get("log_level")
        if process is None or not process.alive or level is LogLevel.debug:
            return
        text = (formatEvent(event) or "").replace(os.fspath(self._root) + "/", "")
        # Keys are others in every run.
        text = _FINGERPRINT.sub("sha256:...", text)
        for server in self.servers:
            if server.id:
                text = text.replace(server.id, server.name)
        failure = event.get("log_failure")
        if failure is not None:
            text += f": {failure.type.__name__}: {failure.getErrorMessage()}"
        self.world.note(process.name, f"| {text}")
        if failure is not None and not self.faults.expects(text):
            self.fail(Violation(f"a fault of the product at {process.name}: {text}\n{failure.getTraceback()}"))
