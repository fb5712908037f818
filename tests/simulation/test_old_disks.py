"""Disks that are put back and majorities that are lost, a few seeds; `python -m tests.simulation --disks` runs more."""

from __future__ import annotations

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.checks import Violation
from tests.simulation.disk_mutants import DISK_MUTANTS
from tests.simulation.old_disks import OldDiskSimulation

SEEDS = range(1, 31)
WANTED = {"copy", "put back", "withheld", "released", "force", "gone"}


class HistoryTests(SynchronousTestCase):
    def test_seeds(self) -> None:
        """Thirty histories lose nothing that was committed, and hold what they are meant to hold."""
        seen = set()
        for seed in SEEDS:
            simulation = OldDiskSimulation(seed)
            try:
                simulation.run()
            except Violation as error:
                raise AssertionError(f"python -m tests.simulation --disks --seeds {seed} --trace: {error}") from error
            seen |= {what for _, what, *_ in simulation.trace}
        assert seen >= WANTED, WANTED - seen

    def caught(self, name: str) -> None:
        make_core, seed, _ = DISK_MUTANTS[name]
        with pytest.raises(AssertionError):
            OldDiskSimulation(seed, make_core).run()

    def test_an_old_disk_that_votes(self) -> None:
        """A server that votes although its disk is known to be old is noticed."""
        self.caught("old-disk-votes")

    def test_released_early(self) -> None:
        """One that trusts any leader, also one that is deposed without knowing it, is noticed."""
        self.caught("old-disk-released-early")

    def test_forced_without_tail(self) -> None:
        """Whoever goes on by force without all that it has is noticed."""
        self.caught("forced-without-tail")

    def test_forced_nearby(self) -> None:
        """Whoever goes on by force in a term that the lost ones may have had is noticed."""
        self.caught("forced-nearby")
