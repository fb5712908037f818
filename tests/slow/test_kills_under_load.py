"""kill -9, again and again, while clients put, get and SET."""

from __future__ import annotations

import random

import pytest

from tests.slow.farm_case import FarmTestCase

pytestmark = pytest.mark.slow

NAMES = ("alpha", "beta", "gamma")
ROUNDS = 3
WRITES_AGAIN_SECONDS = 15.0
"""After the end of the first: an election of a second or two, and the silence until its partners notice."""
ALL_AGAIN_SECONDS = 30.0
"""After a start of all: processes start, gather for some seconds who is back, and give their rows."""
SOME_PUTS = 10
MANY_PUTS = 60
"""Before each cut, so that there is something to lose."""


class KillTests(FarmTestCase):
    def test_the_first_again_and_again(self) -> None:
        """Whoever leads is killed and started again: writes go on within seconds, and nothing is lost."""
        farm = self.make_farm(*NAMES)
        farm.wait_copies("gamma", 3)
        load = self.make_load(farm, timeout=20.0)
        load.wait_for_puts(MANY_PUTS, 30)
        chance = random.Random(1)
        for _ in range(ROUNDS):
            victim = farm.first()
            farm.kill9(victim)
            print(f"{victim} killed: a put after {load.wait_for_puts(SOME_PUTS, WRITES_AGAIN_SECONDS):.1f} s")
            farm.start(victim)
            farm.wait_serving(victim)
            load.wait_for_puts(chance.choice([1, SOME_PUTS]), WRITES_AGAIN_SECONDS)
        self.check_load(farm, load)

    def test_all_at_once(self) -> None:
        """All are killed in one moment and started again: writes go on, and nothing is lost."""
        farm = self.make_farm(*NAMES)
        farm.wait_copies("gamma", 3)
        load = self.make_load(farm, timeout=20.0)
        chance = random.Random(2)
        for _ in range(ROUNDS):
            load.wait_for_puts(MANY_PUTS, 30)
            farm.kill9(*NAMES)
            for name in chance.sample(NAMES, len(NAMES)):
                farm.start(name)
            print(f"all killed: a put after {load.wait_for_puts(1, ALL_AGAIN_SECONDS):.1f} s")
            farm.wait_serving(*NAMES)
        self.check_load(farm, load)
