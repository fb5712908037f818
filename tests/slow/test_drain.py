"""A server that is emptied while it serves, on real processes."""

from __future__ import annotations

import json

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.large_files import MIB, digest_of, write_file
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

QUICK = "master_grace = 4s\nrepair_after = 5s\n"
FILES = {"small": 3000, "middle": 100_000, "large": 20 * MIB + 17, "larger": 32 * MIB}


class DrainTests(FarmTestCase):
    def test_the_first_is_emptied(self) -> None:
        """The first gives away its chunks and the farm, over a restart too, serves all the while, and may then go."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta", farm=QUICK)
        farm.wait_copies("alpha", 3)
        digests = {}
        for number, (name, size) in enumerate(FILES.items()):
            digests[name] = write_file(farm.directory / name, size, seed=number)
            assert farm.cli("put", name, f"home/{name}").returncode == 0
        farm.wait_for(lambda: fewest(farm, digests) == 3, 20, "all copies are there")
        ids = {row["name"]: row["id"] for row in farm.rows("alpha")}

        refused = farm.cli("drain", "nobody")
        assert refused.returncode == 3, refused
        begun = farm.cli("drain", "alpha")
        assert begun.returncode == 0 and "alpha" in begun.stdout, begun
        farm.wait_for(lambda: farm.states("delta").get("alpha") == "draining", 10, "delta has heard of it")
        farm.kill9("alpha")
        farm.start("alpha")
        farm.wait_serving("alpha")
        waited = farm.cli("drain", "alpha", "--wait")
        print(waited.stdout, waited.stderr)
        assert waited.returncode == 0 and "may be switched off" in waited.stdout, waited
        assert farm.states("delta")["alpha"] == "draining"
        shown = farm.cli("status").stdout
        assert "alpha: drained" in shown, shown
        (told,) = json.loads(farm.cli("drain", "--json").stdout)
        assert told["drained"] and told["left"] == 0 and told["chunks"] >= 0
        farm.wait_for(lambda: farm.first() != "alpha", 20, "another server leads")
        farm.wait_for(lambda: "alpha" not in masters(farm), 20, "alpha is no master")
        self.assert_equal(farm, digests)

        # It is switched off, and nothing is missed: every chunk has three copies on the others.
        farm.sigterm("alpha")
        farm.wait_ended("alpha", 20)
        assert fewest(farm, digests) == 3
        assert not any(ids["alpha"] in row["holders"].split(",") for row in chunks(farm, digests))
        farm.wait_for(lambda: farm.status("beta")["under-replicated"] == "0", 10, "nothing is short")
        self.assert_equal(farm, digests)

    def assert_equal(self, farm: RealFarm, digests: dict[str, str]) -> None:
        for name, digest in digests.items():
            fetched = farm.cli("get", f"home/{name}", "back")
            assert fetched.returncode == 0, fetched.stderr
            assert digest_of(farm.directory / "back") == digest, name


def chunks(farm: RealFarm, names: dict[str, str]) -> list[dict[str, str]]:
    """What EXPLAIN says of each chunk of these files, asked of a server that stays."""
    rows = [row for name in names for row in farm.ask("delta", f"EXPLAIN home/{name}").parsed]
    return [row for row in rows if "digest" in row]


def fewest(farm: RealFarm, names: dict[str, str]) -> int:
    """Copies of the chunk that has the fewest."""
    return min(int(row["copies"]) for row in chunks(farm, names))


def masters(farm: RealFarm) -> set[str]:
    """Names of those that have the role of the first or a master."""
    return {row["name"] for row in farm.rows("delta") if row["role"] != "server"}
