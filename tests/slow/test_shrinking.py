"""Farms that lose one server after the other, down to the last, and grow again."""

from __future__ import annotations

import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm
from tests.slow.test_losing_servers import try_to_put_small

pytestmark = pytest.mark.slow

REPAIR_AFTER = 5.0
APART = 20.0
"""Seconds between two kills: twice the default `master_grace`."""
OPTIONS = f"repair_after = {REPAIR_AFTER:g}s"
LAST_SECONDS = 30.0
"""For the last of two to prove that the other is dead, with the default `master_grace`, and for its first write."""


class ShrinkingTests(FarmTestCase):
    """The defaults, but for `repair_after`."""

    def table(self, farm: RealFarm, name: str) -> tuple[str, str]:
        """Who leads, and how many hold the table, as one server tells."""
        status = dict(line.split("=", 1) for line in farm.ask(name, "STATUS").rows)
        return status["first"], status["table-copies"]

    def put_file(self, farm: RealFarm, name: str) -> None:
        (farm.directory / "note").write_text(f"{name}\n")
        stored = farm.cli("put", "note", f"home/{name}", seconds=60)
        assert stored.returncode == 0, stored.stderr

    def check_files(self, farm: RealFarm, *names: str) -> None:
        for name in names:
            fetched = farm.cli("get", f"home/{name}", "-", seconds=60)
            assert fetched.stdout == f"{name}\n", fetched.stderr

    def kill_one_after_the_other(self, farm: RealFarm, last: str, *names: str) -> None:
        """Kill those servers, with `APART` seconds between; then the last takes a file and a change of options."""
        for number, name in enumerate(names):
            if number:
                time.sleep(APART)
            farm.kill9(name)
        killed = time.monotonic()
        farm.wait_for(lambda: try_to_put_small(farm, last, "home/empty"), LAST_SECONDS, f"{last} takes a write")
        print(f"{last} took a write {time.monotonic() - killed:.1f} s after the last kill")
        assert self.table(farm, last) == (last, "1")
        self.put_file(farm, "alone")
        farm.ask(last, "SET farm replicas=2")
        farm.wait_for(lambda: farm.config().farm.replicas == 2, 10, "config.ini has the option")

    def test_the_seniors_die_first(self) -> None:
        """Three of four are killed, the first each time, 20 s apart: the last takes files and settings."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta", farm=OPTIONS)
        farm.wait_for(lambda: self.table(farm, "alpha") == ("alpha", "3"), 20, "three vote")
        self.put_file(farm, "before")
        self.kill_one_after_the_other(farm, "delta", "alpha", "beta", "gamma")

    def test_down_to_the_first_and_up_again(self) -> None:
        """Of three the juniors die; the first goes on alone, and they come back, as three copies of the table."""
        farm = self.make_farm("alpha", "beta", "gamma", farm=OPTIONS)
        farm.wait_for(lambda: self.table(farm, "alpha") == ("alpha", "3"), 20, "three vote")
        self.put_file(farm, "before")
        self.kill_one_after_the_other(farm, "alpha", "gamma", "beta")
        for name in ("beta", "gamma"):
            farm.start(name)
        farm.wait_serving("beta", "gamma")
        farm.wait_for(lambda: self.table(farm, "gamma") == ("alpha", "3"), 30, "three hold the table again")
        self.check_files(farm, "before", "alone")
        assert set(farm.states("gamma").values()) == {"up"}
