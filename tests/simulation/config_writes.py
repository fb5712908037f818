"""Servers that keep one shared `config.ini`, each from a roster that is behind by its own time.

The ledgers and the file are real (`ledger.Ledger`, `config_file.ConfigFile`, a file on the disk); the table is a
generation that grows, and each roster hears of it late. The generation in the file never goes back, and in the end
the file is as the table is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock

from chunkfarm.config import ConfigFile
from chunkfarm.ledger import LOOK_SECONDS, Ledger
from chunkfarm.model import FarmOptions, Server
from chunkfarm.table.interface import Unavailable
from tests.simulation.checks import Violation

FARM = FarmOptions(name="lab", id="0123456789abcdef0123456789abcdef")
SERVER = Server(id="a" * 32, name="a", host="10.0.0.1", client=4100, peer=4101, files=4102, joined=1, seniority=1)
SERVERS = 3
CHANGES = 5
LATE_MAX = 8.0
"""Seconds by which a roster may be behind: longer than others wait before they write."""


@define(eq=False)
class LateRoster:
    """What one server knows of the table."""

    newest: Callable[[], int]
    unavailable: Callable[[], bool]
    options: FarmOptions = FARM
    servers: tuple[Server, ...] = (SERVER,)
    generation: int = 0
    _watchers: list[Callable[[], None]] = field(factory=list)

    def subscribe(self, watcher: Callable[[], None]) -> Callable[[], None]:
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def refresh(self) -> Deferred[None]:
        if self.unavailable():
            return fail(Unavailable("no majority"))
        self.learn(self.newest())
        return succeed(None)

    def learn(self, generation: int) -> None:
        if generation > self.generation:
            self.generation = generation
            self.servers = (evolve(SERVER, name=f"a{generation}"),)
            for watcher in list(self._watchers):
                watcher()


class ConfigSimulation:
    """One run; `run()` raises `Violation`."""

    def __init__(self, seed: int, make_file: Callable[[str], ConfigFile] = ConfigFile) -> None:
        self._random = Random(seed)
        self._make_file = make_file
        self._clock = Clock()
        self._generation = 0
        self._rosters: list[LateRoster] = []

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "config.ini")
            path.write_text("[server]\nzone = x\n")
            ledgers = [self._ledger(str(path), number) for number in range(SERVERS)]
            for ledger in ledgers:
                ledger.start()
            for change in range(CHANGES):
                self._clock.callLater(self._random.uniform(0, 20) + change, self._change)
            self._watch(path, until=30 + LATE_MAX + LOOK_SECONDS)
            for ledger in ledgers:
                ledger.stop()
            if _generation_in(path) != self._generation:
                raise Violation(
                    f"config.ini is kept: it is at {_generation_in(path)}, and the table at {self._generation}"
                )

    def _ledger(self, path: str, number: int) -> Ledger:
        random = self._random

        def on_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
            done: Deferred[Any] = Deferred()

            def work() -> None:
                maybeDeferred(function, *args, **kwargs).chainDeferred(done)

            self._clock.callLater(random.uniform(0, 0.5), work)
            return done

        roster = LateRoster(lambda: self._generation, lambda: random.random() < 0.5)
        self._rosters.append(roster)
        stand_in: Any = roster
        return Ledger(self._make_file(path), stand_in, self._clock, on_thread, lambda: number == 0)

    def _change(self) -> None:
        self._generation += 1
        for roster in self._rosters:
            self._clock.callLater(self._random.uniform(0, LATE_MAX), roster.learn, self._generation)

    def _watch(self, path: Path, until: float) -> None:
        before = 0
        while self._clock.seconds() < until:
            self._clock.advance(0.1)
            there = _generation_in(path)
            if there < before:
                raise Violation(f"config.ini never goes back: generation {before} was replaced by {there}")
            before = there


def _generation_in(path: Path) -> int:
    return ConfigFile(str(path)).read().generation
