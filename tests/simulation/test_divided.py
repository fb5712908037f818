"""Farms that are divided by takeovers by hand, and meet again: a few seeds."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.divided import LineSimulation


class DividedFarmTests(SynchronousTestCase):
    """Whole servers on simulated machines."""

    def test_one_side_goes_on(self) -> None:
        """The others learn from it or stop, and nobody who goes on has given up what it once had."""
        taken_over, stopped = 0, 0
        for seed in (2, 3, 27):
            simulation = LineSimulation(seed, seconds=40.0)
            simulation.run()
            taken_over += simulation.taken_over
            stopped += len(simulation.end[0])
        assert taken_over and stopped, (taken_over, stopped)
