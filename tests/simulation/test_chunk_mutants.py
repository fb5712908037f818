"""What the simulation of files is good for: servers with a fault of their own are found out."""

from __future__ import annotations

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.all_mutants import ALL_MUTANTS, CHUNKS, Mutant

QUICK = ("acknowledges-one-copy", "trusts-its-table", "collects-by-age")
"""Those that take no second to find."""


def must_be_caught(mutant: Mutant) -> None:
    """With the seed that stands beside it, or, if histories have changed, with another one."""
    seeds = (mutant.seed, *range(1, mutant.within + 1))
    assert any(mutant.caught(seed) for seed in seeds), f"{mutant.name} lives through {mutant.within} seeds"


class QuickMutantsTests(SynchronousTestCase):
    def test_some_are_caught(self) -> None:
        """A few faults are found."""
        for name in QUICK:
            must_be_caught(ALL_MUTANTS[name])


@pytest.mark.slow
class AllMutantsTests(SynchronousTestCase):
    def test_each_is_caught(self) -> None:
        """Each fault is found."""
        for mutant in ALL_MUTANTS.values():
            if mutant.kind == CHUNKS:
                must_be_caught(mutant)
