"""Of servers that start together on copies of one list, one founds."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.ports.callers import Caller, Callers
from tests.simulation.starts import play

SEEDS = 100
"""A fast sample; `python -m tests.simulation.starts N` plays more."""


class DeafCallers(Callers):
    """Forgets who asked."""

    def current(self) -> tuple[Caller, ...]:
        return ()


class StartsTests(SynchronousTestCase):
    """Clocks 2 s apart, pauses, deaths, slow answers."""

    def test_one_founds(self) -> None:
        """Exactly one of them founds, and the others come to serve its farm."""
        for seed in range(SEEDS):
            play(seed)

    def test_the_simulation_can_fail(self) -> None:
        """Servers that do not count who asked them make two farms now and then."""
        with self.assertRaises(AssertionError):
            for seed in range(10 * SEEDS):
                play(seed, DeafCallers)
