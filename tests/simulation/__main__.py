"""Simulate the consensus, or with `--farm` whole servers, from many seeds: `python -m tests.simulation --seeds 1..200`.

Each seed is a history of its own, and always the same one. A failing seed is shown with the end of its
trace and with the command that replays it.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence

from twisted.logger import globalLogPublisher

from chunkfarm.table.consensus import Consensus
from tests.simulation.all_mutants import ALL_MUTANTS, CHUNKS
from tests.simulation.chunk_mutants import CHUNK_MUTANTS
from tests.simulation.chunks import ChunkFarm
from tests.simulation.core import FAULTY_TICKS, MakeCore, Simulation
from tests.simulation.disk_mutants import DISK_MUTANTS
from tests.simulation.divided import LineSimulation
from tests.simulation.farm import FAULTY_SECONDS, FarmSimulation
from tests.simulation.mutants import MUTANTS
from tests.simulation.old_disks import OldDiskSimulation
from tests.simulation.pair_mutants import PAIR_MUTANTS
from tests.simulation.pairs import TICKS, PairSimulation, Rules
from tests.simulation.trace import lines

TRACE_LINES = 60
"""Shown of a failing run; `--trace` shows all of it."""
PROGRESS_SECONDS = 5.0


def _seeds(text: str) -> range:
    first, _, last = text.partition("..")
    return range(int(first), int(last or first) + 1)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=_seeds("1..200"), help="FIRST..LAST, or one seed")
    parser.add_argument("--ticks", type=int, help="how long faults are made")
    parser.add_argument("--pairs", action="store_true", help="farms of two servers, and what they see of each other")
    parser.add_argument("--disks", action="store_true", help="disks that are put back, and majorities that are lost")
    parser.add_argument("--chunks", action="store_true", help="chunks on several servers, and who repairs them")
    parser.add_argument("--farm", action="store_true", help="whole servers, from their first start on")
    parser.add_argument("--divided", action="store_true", help="whole servers, divided by takeovers by hand")
    parser.add_argument("--seconds", type=float, help="of a whole farm: how long faults are made")
    parser.add_argument(
        "--mutant",
        choices=sorted({**MUTANTS, **PAIR_MUTANTS, **DISK_MUTANTS, **CHUNK_MUTANTS}),
        help="run one with this fault instead",
    )
    parser.add_argument("--mutants", action="store_true", help="look for every known fault, and say what finds it")
    parser.add_argument("--trace", action="store_true", help="print the whole trace of every run")
    options = parser.parse_args(arguments)
    mutants = set(CHUNK_MUTANTS if options.chunks else PAIR_MUTANTS if options.pairs else MUTANTS)
    if options.disks:
        mutants = set(DISK_MUTANTS)
    if options.mutant and options.mutant not in mutants:
        parser.error("that mutant is of another kind of farm")
    of_core = options.pairs or options.disks or options.chunks
    if (options.farm or options.divided) and (options.mutant or of_core or options.ticks):
        parser.error("a whole farm has no mutants, and its faults are made for so many --seconds")
    return options


def _simulation(options: argparse.Namespace, seed: int) -> Simulation | FarmSimulation | ChunkFarm:
    if options.divided:
        return LineSimulation(seed, seconds=options.seconds or FAULTY_SECONDS)
    if options.farm:
        return FarmSimulation(seed, seconds=options.seconds or FAULTY_SECONDS)
    if options.chunks:
        return ChunkFarm(seed, CHUNK_MUTANTS[options.mutant][0] if options.mutant else None)
    if options.pairs:
        rules = PAIR_MUTANTS[options.mutant][0] if options.mutant else Rules()
        return PairSimulation(seed, rules, options.ticks or TICKS)
    make_core: MakeCore = Consensus
    if options.disks:
        make_core = DISK_MUTANTS[options.mutant][0] if options.mutant else make_core
        return OldDiskSimulation(seed, make_core, options.ticks or FAULTY_TICKS)
    make_core = MUTANTS[options.mutant][0] if options.mutant else make_core
    return Simulation(seed, make_core, options.ticks or FAULTY_TICKS)


def _look_for_mutants(of_chunks: bool) -> int:
    """Play each known fault from seed 1 on, and print what catches it; the exit status is 1 if one lives."""
    mutants = [mutant for mutant in ALL_MUTANTS.values() if mutant.kind == CHUNKS or not of_chunks]
    print(f"{'fault':30} {'seeds':>5}  rule")
    lived = 0
    for mutant in mutants:
        for seed in range(1, mutant.within + 1):
            rule = mutant.caught(seed)
            if rule:
                print(f"{mutant.name:30} {seed:5}  {rule}", flush=True)
                break
        else:
            lived += 1
            print(f"{mutant.name:30} lives through {mutant.within} seeds", flush=True)
    print(f"{len(mutants) - lived} of {len(mutants)} faults caught")
    return 1 if lived else 0


def main(arguments: Sequence[str]) -> int:
    """Run the seeds; the exit status is 1 if one of them fails."""
    options = _options(arguments)
    if options.mutants:
        return _look_for_mutants(options.chunks)
    if options.farm or options.divided:
        # A whole farm clears away what the one before it has left, and need not look through all modules for it.
        gc.disable()
        gc.freeze()
    began = shown = time.monotonic()
    for count, seed in enumerate(options.seeds, 1):
        simulation = _simulation(options, seed)
        failure = ""
        try:
            simulation.run()
        except (AssertionError, ValueError) as error:
            failure = str(error) or type(error).__name__
        if options.trace or failure:
            told = simulation.story if isinstance(simulation, FarmSimulation | ChunkFarm) else lines(simulation)
            print("\n".join(told if options.trace else told[-TRACE_LINES:]))
        if failure:
            more = f" --ticks {options.ticks}" if options.ticks else ""
            more += " --pairs" if options.pairs else ""
            more += " --disks" if options.disks else ""
            more += " --chunks" if options.chunks else ""
            more += " --farm" if options.farm else ""
            more += " --divided" if options.divided else ""
            more += f" --seconds {options.seconds:g}" if options.seconds else ""
            more += f" --mutant {options.mutant}" if options.mutant else ""
            print(f"\nseed {seed} failed at time {simulation.now:g}: {failure}")
            print(f"replay: python -m tests.simulation --seeds {seed}{more} --trace")
            return 1
        now = time.monotonic()
        if now - shown >= PROGRESS_SECONDS:
            shown = now
            print(f"{count} of {len(options.seeds)} seeds, {count / (now - began):.1f} a second", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(options.seeds)} seeds passed in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # What is cleared away behind the last history has nothing more to say.
    for observer in list(globalLogPublisher._observers):
        globalLogPublisher.removeObserver(observer)
    sys.exit(status)
