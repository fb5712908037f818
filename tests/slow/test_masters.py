"""Masters that are lost for good are replaced, so that the farm survives the next loss too."""

from __future__ import annotations

import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

GRACE = 3.0
"""`master_grace` of these farms, so that a test does not wait longer than it must."""
OPTIONS = f"master_grace = {GRACE:g}s\nrepair_after = 60s"


class ReplacementTests(FarmTestCase):
    """Four servers: three vote, the fourth learns and waits for its turn."""

    def voters(self, farm: RealFarm, name: str) -> tuple[str, str]:
        status = farm.status(name)
        return status["table-copies"], status["table-learners"]

    def put(self, farm: RealFarm, number: int) -> None:
        (farm.directory / "note").write_text(f"note {number}\n")
        stored = farm.cli("put", "note", f"home/note{number}", seconds=60)
        assert stored.returncode == 0, stored.stderr

    def test_one_after_the_other(self) -> None:
        """The first dies, the learner takes its vote; then the next first dies, and two of four still take writes."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta", farm=OPTIONS)
        farm.wait_for(lambda: self.voters(farm, "delta") == ("3", "1"), 20, "three vote and one learns")
        self.put(farm, 1)

        farm.kill9("alpha")
        killed = time.monotonic()
        farm.wait_for(lambda: self.voters(farm, "delta") == ("3", "0"), 30, "the learner votes in place of the dead")
        print(f"replaced after {time.monotonic() - killed:.1f} s")
        self.put(farm, 2)

        farm.kill9("beta")
        farm.wait_for(lambda: farm.status("gamma").get("first") == "gamma", 30, "gamma leads")
        self.put(farm, 3)
        for number in (1, 2, 3):
            fetched = farm.cli("get", f"home/note{number}", "-", seconds=60)
            assert fetched.stdout == f"note {number}\n", fetched.stderr

        for name in ("alpha", "beta"):
            farm.start(name)
        farm.wait_serving("alpha", "beta")
        farm.wait_for(lambda: list(farm.states("gamma"))[:2] == ["gamma", "delta"], 20, "the old ones stand at the end")
        farm.wait_for(lambda: self.voters(farm, "gamma") == ("3", "1"), 40, "three vote and one learns again")

    def test_growing_and_its_masters(self) -> None:
        """From one server to five, each joins as it comes: three vote, two learn, nothing is edited."""
        farm = self.make_farm("alpha")
        assert self.voters(farm, "alpha") == ("1", "0")
        for name in ("beta", "gamma", "delta", "epsilon"):
            farm.start_serving(name)
            self.put(farm, len(farm.servers))
        farm.wait_for(lambda: self.voters(farm, "epsilon") == ("3", "2"), 30, "three vote and two learn")
        roles = {row["name"]: row["role"] for row in farm.rows("epsilon")}
        assert roles == {"alpha": "first", "beta": "master", "gamma": "master", "delta": "server", "epsilon": "server"}
        assert farm.listed() == ["alpha", "beta", "gamma", "delta", "epsilon"]
