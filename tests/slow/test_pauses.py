"""A server is frozen for a while under load, as a machine that is suspended, and then goes on."""

from __future__ import annotations

import time

import pytest

from tests.slow.farm_case import FarmTestCase

pytestmark = pytest.mark.slow

NAMES = ("alpha", "beta", "gamma")
PAUSE_SECONDS = 15.0
"""Longer than every silence that somebody judges by: reports, elections, and `master_grace`."""
WRITES_AGAIN_SECONDS = 15.0
"""Three or four where the machine has nothing else to do."""
BACK_SECONDS = 20.0
SOME_PUTS = 5
CHANGES_MAX = 3
"""Of who leads: another one takes over, and the old one may be handed its place back, but no more than that."""


class PauseTests(FarmTestCase):
    def try_pause(self, victim: str) -> None:
        farm = self.make_farm(*NAMES)
        farm.wait_copies("gamma", 3)
        others = [name for name in NAMES if name != victim]
        load = self.make_load(farm, timeout=4.0)
        load.wait_for_puts(SOME_PUTS, 30)
        firsts = [farm.first()]

        def look(seconds: float) -> None:
            ended = time.monotonic() + seconds
            while time.monotonic() < ended:
                led = [row["name"] for row in farm.rows(others[0]) if row["role"] == "first"]
                if led and led[0] != firsts[-1]:
                    firsts.append(led[0])
                time.sleep(0.2)

        farm.pause(victim)
        paused = time.monotonic()
        print(f"{victim} paused: a put after {load.wait_for_puts(SOME_PUTS, WRITES_AGAIN_SECONDS):.1f} s")
        look(paused + PAUSE_SECONDS - time.monotonic())
        farm.resume(victim)
        resumed = time.monotonic()
        farm.wait_serving(victim, seconds=BACK_SECONDS)
        print(f"{victim} woke, and served after {time.monotonic() - resumed:.1f} s")
        load.wait_for_puts(SOME_PUTS, WRITES_AGAIN_SECONDS)
        look(6)
        farm.wait_copies(others[0], 3)
        print(f"first were: {' '.join(firsts)}")
        assert len(firsts) - 1 <= (CHANGES_MAX if victim == NAMES[0] else 0), firsts
        # It says that it serves as long as it does not know how long it was away.
        up = dict.fromkeys(NAMES, "up")
        farm.wait_for(lambda: farm.states(others[0]) == up, BACK_SECONDS, "all are up again")
        self.check_load(farm, load)

    def test_the_first(self) -> None:
        """The others go on without the first within seconds; when it wakes, it takes its place, and nothing is lost."""
        self.try_pause("alpha")

    def test_another(self) -> None:
        """The first goes on and stays first, also when the other one wakes."""
        self.try_pause("beta")
