"""Of servers that start together on copies of one list, one founds."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.starts import play

SEEDS = 100
"""A fast sample; `python -m tests.simulation.starts N` plays more."""


class StartsTests(SynchronousTestCase):
    """Clocks 2 s apart, pauses, deaths, slow answers."""

    def test_one_founds(self) -> None:
        """Exactly one of them founds, and the others come to serve its farm."""
        for seed in range(SEEDS):
            play(seed)
