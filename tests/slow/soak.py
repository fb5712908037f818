"""A farm under kill -9 for as long as you like: `python -m tests.slow.soak --seconds 300 --seed 7`.

Four servers, three copies. Clients (see `load`) put, get and SET through whichever server they like, while one server
after the other (the first more often than not) is killed and started again. It is a failure if a name holds anything
but what was put last, or if an acknowledged file cannot be read when all servers are back.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from tests.slow.load import Load
from tests.slow.real_farm import RealFarm

NAMES_PER_CLIENT = 25
SIZES = (0, 1, 100, 5_000, 70_000, 1_000_000, 9_000_000)


def soak(seconds: float, seed: int) -> list[str]:
    """Run it; returns what went wrong."""
    chance = random.Random(seed)
    farm = RealFarm(Path(tempfile.mkdtemp(prefix="chunkfarm-soak-")))
    try:
        names = ["alpha", "beta", "gamma", "delta"]
        farm.start_serving(*names)
        load = Load(farm, names=NAMES_PER_CLIENT, seed=seed, sizes=SIZES)
        load.start()
        kills = _kill_and_restart(farm, names, chance, time.monotonic() + seconds)
        load.stop()
        farm.wait_serving(*names, seconds=60)
        wrong = load.check()
        wrong += [f"{name}: a traceback in its log" for name in names if "Traceback" in farm.servers[name].logged()]
        print(f"seed {seed}: {kills} kills, {load}")
        return wrong
    finally:
        farm.close()


def _kill_and_restart(farm: RealFarm, names: list[str], chance: random.Random, until: float) -> int:
    kills = 0
    while time.monotonic() < until:
        time.sleep(chance.uniform(1, 6))
        leader = next((row["name"] for name in names for row in farm.rows(name) if row["role"] == "first"), names[0])
        victim = leader if chance.random() < 0.6 else chance.choice(names)
        farm.kill9(victim)
        kills += 1
        time.sleep(chance.choice([0.1, 2, 7, 14]))
        farm.start(victim)
        farm.wait_serving(victim, seconds=60)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    wrong = soak(arguments.seconds, arguments.seed)
    for fault in sorted(set(wrong)):
        print(f"WRONG: {fault}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
