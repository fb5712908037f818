"""Farms that are divided by takeovers by hand, and meet again: a few seeds."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.divided import LineSimulation
from tests.simulation.divided_stories import away_from_both, nobody_can_teach, terms_of_the_lost, who_only_follows


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

    def test_who_was_away_does_not_go_on_without_both_sides(self) -> None:
        """Two sides took over, met and stopped; two masters that come back later do not serve what neither has."""
        away_from_both(1)

    def test_terms_of_the_lost(self) -> None:
        """Whoever had entries of a first that is lost gets those of the new line in their places."""
        terms_of_the_lost(1)

    def test_who_only_follows_the_side_that_stops(self) -> None:
        """A server without a table knows what the farm knows, and nothing of what it was told on the other side."""
        who_only_follows(1)

    def test_the_only_one_that_decides_has_an_old_disk(self) -> None:
        """Nobody can catch it up: it says so, and an admin may let it go on with what it has."""
        nobody_can_teach(1)
