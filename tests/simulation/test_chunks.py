"""Random histories of farms that carry files. `python -m tests.simulation --chunks` plays as many as wanted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.chunks import ChunkFarm

ROOT = Path(__file__).parents[2]
SEEDS = range(1, 3)
DIGEST = """
from tests.simulation.test_chunks import digest_of
print(digest_of(2))
"""


def digest_of(seed: int) -> str:
    """What a history is known by."""
    farm = ChunkFarm(seed, steps=12)
    farm.run()
    return farm.world.digest


class HistoryTests(SynchronousTestCase):
    def test_seeds(self) -> None:
        """What users were told holds, and in the end every file is whole on all owners, after enough went wrong."""
        acknowledged = reads = injuries = collected = given = 0
        for seed in SEEDS:
            farm = ChunkFarm(seed)
            try:
                farm.run()
            except AssertionError as error:
                raise AssertionError(f"python -m tests.simulation --chunks --seeds {seed} --trace: {error}") from error
            acknowledged += farm.users.acknowledged
            reads += farm.users.reads
            injuries += farm.injuries
            collected += farm.collected
            given += farm.given
        assert acknowledged > 25 and reads > 5 and injuries > 3 and collected > 20 and given > 10

    def test_a_seed_is_one_history(self) -> None:
        """A seed fails again: another process, in which sets have another order, tells the same to the last message."""
        hash_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", DIGEST]
        told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
        assert told.stdout.decode().strip() == digest_of(2)
