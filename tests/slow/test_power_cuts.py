"""Power cuts: what was written and not synchronized is gone, while clients put, get and SET."""

from __future__ import annotations

import random

import pytest

from tests.slow.own_disks import DisksTestCase

pytestmark = pytest.mark.slow

NAMES = ("alpha", "beta", "gamma")
ROUNDS = 2
WRITES_AGAIN_SECONDS = 15.0
ALL_AGAIN_SECONDS = 30.0
SOME_PUTS = 10
MANY_PUTS = 60
"""Before each cut, so that there is something to lose."""
# What the logs say is not looked at: a process whose disk is gone says that loudly, and ends.


class PowerCutTests(DisksTestCase):
    def test_of_one_server(self) -> None:
        """The power of one machine is cut, the first's as well: the others go on, it comes back, nothing is lost."""
        farm = self.make_disks(*NAMES)
        load = self.make_load(farm, timeout=20.0)
        chance = random.Random(3)
        for turn in range(ROUNDS):
            load.wait_for_puts(MANY_PUTS, 30)
            victim = farm.first() if turn % 2 == 0 else chance.choice(NAMES)
            farm.cut_power(victim)
            print(f"{victim} cut: a put after {load.wait_for_puts(SOME_PUTS, WRITES_AGAIN_SECONDS):.1f} s")
            farm.start_again(victim)
            farm.wait_serving(victim)
        self.check_load(farm, load, logs=False)

    def test_of_all_at_once(self) -> None:
        """The power of the whole farm is cut: with nothing but what is on the disks, nothing is lost."""
        farm = self.make_disks(*NAMES)
        load = self.make_load(farm, timeout=20.0)
        chance = random.Random(4)
        for _ in range(ROUNDS):
            load.wait_for_puts(MANY_PUTS, 30)
            farm.cut_power(*NAMES)
            farm.start_again(*chance.sample(NAMES, len(NAMES)))
            print(f"all cut: a put after {load.wait_for_puts(1, ALL_AGAIN_SECONDS):.1f} s")
            farm.wait_serving(*NAMES)
        self.check_load(farm, load, logs=False)
