"""Random histories of several servers' chunks. `python -m tests.simulation --chunks` plays as many as wanted."""

from __future__ import annotations

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.chunk_mutants import CHUNK_MUTANTS
from tests.simulation.chunks import ChunkFarm

SEEDS = range(1, 7)


class HistoryTests(SynchronousTestCase):
    def caught(self, name: str) -> None:
        make_caretaker, seed = CHUNK_MUTANTS[name]
        with pytest.raises(AssertionError):
            ChunkFarm(seed, make_caretaker).run()

    def test_forgotten_damage(self) -> None:
        """A caretaker that does not fetch what was put aside is noticed."""
        self.caught("forgets-damage")

    def test_ignored_changes(self) -> None:
        """A caretaker that does not look when servers come and go is noticed."""
        self.caught("ignores-changes")

    def test_a_server_that_is_dead_for_good(self) -> None:
        """A caretaker that waits for ever for a dead server is noticed."""
        self.caught("never-gives-up")

    def test_seeds(self) -> None:
        """In the end every acknowledged file is on all owners of its chunks; enough went wrong on the way."""
        acknowledged = injuries = losses = buried = 0
        for seed in SEEDS:
            farm = ChunkFarm(seed)
            try:
                farm.run()
            except AssertionError as error:
                raise AssertionError(f"python -m tests.simulation --chunks --seeds {seed} --trace: {error}") from error
            acknowledged += farm.acknowledged
            injuries += farm.injuries
            losses += farm.losses
            buried += farm.buried
        assert acknowledged > 60 and injuries > 25 and losses > 5 and buried
