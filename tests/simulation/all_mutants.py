"""Every rule that a simulation must find broken: known faults, and the seed that finds each.

The simulations are worth what they catch. Each fault stands here with its kind of simulation, a seed with which that
simulation fails, and the rule by which it does. `python -m tests.simulation --mutants` looks for all of them anew, from
seed 1 on, and the quick tests play each one's seed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from attrs import frozen

from chunkfarm.config import ConfigFile
from chunkfarm.model import FarmOptions, Server
from chunkfarm.ports.callers import Caller, Callers
from chunkfarm.table.codec import AnswerRecord
from chunkfarm.table.records import Entry, HardState
from chunkfarm.table.rows import Applied, apply_entry
from chunkfarm.table.survivor import Survivor
from chunkfarm.table.watches import History, WatchHub
from tests.simulation import starts
from tests.simulation.checks import Violation
from tests.simulation.chunk_mutants import CHUNK_MUTANTS
from tests.simulation.chunks import ChunkFarm
from tests.simulation.config_writes import ConfigSimulation
from tests.simulation.core import Disk, Simulation
from tests.simulation.core import Server as SimulatedServer
from tests.simulation.disk_mutants import DISK_MUTANTS
from tests.simulation.disturbance import DisturbanceSimulation
from tests.simulation.farm_mutants import FARM_MUTANTS
from tests.simulation.lateness import LateSimulation
from tests.simulation.linearizable import NotLinearizable
from tests.simulation.mutants import MUTANTS, AnswersWithoutTerm, NoPreVote
from tests.simulation.old_disks import OldDiskSimulation
from tests.simulation.pair_mutants import PAIR_MUTANTS
from tests.simulation.pairs import PairSimulation, Rules, ThirdSimulation
from tests.simulation.repeats import RepeatRules, RepeatSimulation

SEEDS_MIN = 200
CHUNKS = "chunks"
"""The kind of those that store chunks: what they break stands in docs/chunks.md, and a seed takes a second."""
CHUNK_SEEDS_MIN = 50
FARM_SEEDS_MIN = 30
"""A history of whole servers takes a second, and is as full as several of the core."""
WITH_A_THIRD = "takes-over-beside-others"
"""Seldom found without a third server that gets its vote at the wrong moment."""


@frozen
class Mutant:
    """One fault."""

    name: str
    kind: str
    """Which simulation plays it."""
    what: str
    play: Callable[[int], object]
    """Play one seed; raises when the fault is found."""
    seed: int
    """One that finds it."""
    rule: str
    """What it breaks then."""
    seeds: int = SEEDS_MIN

    @property
    def within(self) -> int:
        """A simulation that has not found the fault with so many seeds is too weak: another first seed may be luck."""
        return max(self.seeds, 2 * self.seed)

    def caught(self, seed: int) -> str:
        """The rule that this seed finds broken; empty if it finds nothing."""
        try:
            self.play(seed)
        except Violation as error:
            # The product may have taken it for a failure of its own.
            rule = str(error).rpartition("Violation: ")[2].split(":")[0]
            return "no failures" if rule.startswith("a fault of the product") else rule
        except NotLinearizable:
            return "linearizable"
        except AssertionError:
            return "the core's own assertions"
        except ValueError:
            return "a journal to start from"
        return ""


class TakesATable(Simulation):
    """A server that is started again takes the table of whoever answers, instead of its own journal."""

    def _restart(self, server: SimulatedServer) -> None:
        others = [one for one in self.servers.values() if one.core is not None and one.rows.index]
        if server.core is None and others:
            other = min(others, key=lambda one: one.rows.index)
            assert other.core is not None
            meta = other.core.snapshot_meta(other.rows.index)
            server.disk = Disk(HardState(other.disk.hard_state.term), meta, [], other.rows)
        super()._restart(server)


class ForgetfulHub(WatchHub):
    """A watch begins with what is in memory, however far back it is to begin."""

    def __init__(self, revision: int, history: History) -> None:
        super().__init__(revision, history)
        self.floor = 0


class DeafCallers(Callers):
    """A server that was asked by one that comes before it founds all the same, without looking again."""

    def current(self) -> tuple[Caller, ...]:
        return ()


def _twice(connection: sqlite3.Connection, entry: Entry) -> Applied:
    """A transaction that was applied is applied again when it comes again."""
    connection.execute("DELETE FROM answers")
    return apply_entry(connection, entry)


class CarelessFile(ConfigFile):
    """config.ini is written without a look at the generation that it has."""

    def write_if_newer(
        self, generation: int, farm: FarmOptions, servers: Iterable[Server], reached_by: str = ""
    ) -> bool:
        with self.locked() as held:
            return held.write(generation, farm, servers)


def _said(thing: Any) -> str:
    """The first sentence of a docstring."""
    return str(thing.__doc__).split("\n\n")[0].replace("\n    ", " ").strip()


def _broken(rules: Rules) -> str:
    """What is wrong with rules for two servers."""
    if rules.remembers:
        return "A process that was started again goes by what an earlier one saw."
    if rules.drop_after != Rules().drop_after:
        return "A leader drops the other one after a moment of silence."
    return _said(rules.make_survivor if rules.make_survivor is not Survivor else rules.make_core)


def _play(simulation: Callable[[int, Any], Any], broken: Any, seed: int) -> None:
    simulation(seed, broken).run()


def _all() -> Iterable[Mutant]:
    for name, (core, seed, rule) in MUTANTS.items():
        yield Mutant(name, "core", _said(core), partial(_play, Simulation, core), seed, rule)
    for name, (rules, seed, rule) in PAIR_MUTANTS.items():
        third = name == WITH_A_THIRD
        play = partial(_play, ThirdSimulation if third else PairSimulation, rules)
        yield Mutant(name, "third" if third else "pairs", _broken(rules), play, seed, rule)
    for name, (core, seed, rule) in DISK_MUTANTS.items():
        yield Mutant(name, "disks", _said(core), partial(_play, OldDiskSimulation, core), seed, rule)
    for name, (kind, what, simulation, broken, seed, rule) in OTHERS.items():
        yield Mutant(name, kind, what, partial(_play, simulation, broken), seed, rule)
    for name, (make, broken, seed, rule) in CHUNK_MUTANTS.items():
        yield Mutant(name, CHUNKS, _said(broken), partial(_play, ChunkFarm, make), seed, rule, CHUNK_SEEDS_MIN)
    for name, one in FARM_MUTANTS.items():
        yield Mutant(name, one.kind, _said(one.mutate), one.play, one.seed, one.rule, FARM_SEEDS_MIN)
    yield Mutant(
        "takes-a-table", "core", _said(TakesATable), lambda at: TakesATable(at).run(), 1, "leader completeness"
    )
    yield Mutant(
        "founds-without-looking-again",
        "starts",
        _said(DeafCallers),
        lambda at: starts.play(at, DeafCallers),
        54,
        "one founder",
    )


def _watched(seed: int, make_hub: Any) -> Simulation:
    return Simulation(seed, make_hub=make_hub)


OTHERS: dict[str, tuple[str, str, Callable[[int, Any], Any], object, int, str]] = {
    "answers-without-term": (
        "late",
        _said(AnswersWithoutTerm),
        LateSimulation,
        AnswersWithoutTerm,
        2,
        "election safety",
    ),
    "no-pre-vote": ("lonely", _said(NoPreVote), DisturbanceSimulation, NoPreVote, 1, "disturbance"),
    "watches-from-memory": ("core", _said(ForgetfulHub), _watched, ForgetfulHub, 1, "linearizable"),
    "repeats-effects": ("repeats", _said(_twice), RepeatSimulation, RepeatRules(apply=_twice), 1, "once"),
    "snapshots-without-answers": (
        "repeats",
        "A snapshot carries the rows, and not the answers that were given.",
        RepeatSimulation,
        RepeatRules(restores=lambda record: not isinstance(record, AnswerRecord)),
        1,
        "once",
    ),
    "repeats-with-another-number": (
        "repeats",
        "What is sent again has another number, and so is another transaction.",
        RepeatSimulation,
        RepeatRules(renumbers=True),
        1,
        "once",
    ),
    "writes-older-config": (
        "config",
        _said(CarelessFile),
        ConfigSimulation,
        CarelessFile,
        1,
        "config.ini never goes back",
    ),
}
"""Faults of other simulations: kind, sentence, simulation, what is broken, seed and rule."""

ALL_MUTANTS = {mutant.name: mutant for mutant in _all()}
