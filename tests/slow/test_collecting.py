"""Chunks of removed files and copies that are left over, on real disks of real processes."""

from __future__ import annotations

import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.large_files import MIB, digest_of, write_file
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

QUICK = "master_grace = 4s\nrepair_after = 5s\n"
KEPT = {"kept-small": 3000, "kept-large": 20 * MIB + 17}
REMOVED = {"small": 2000, "large": 24 * MIB + 100_000}


class CollectingTests(FarmTestCase):
    def put_files(self, farm: RealFarm, sizes: dict[str, int]) -> dict[str, str]:
        digests = {}
        for number, (name, size) in enumerate(sizes.items()):
            digests[name] = write_file(farm.directory / name, size, seed=size + number)
            stored = farm.cli("put", name, f"home/{name}")
            assert stored.returncode == 0, stored.stderr
        return digests

    def assert_equal(self, farm: RealFarm, digests: dict[str, str]) -> None:
        for name, digest in digests.items():
            fetched = farm.cli("get", f"home/{name}", "back")
            assert fetched.returncode == 0, fetched.stderr
            assert digest_of(farm.directory / "back") == digest, name

    def test_what_is_left_over_goes(self) -> None:
        """A joining server gets its share and others lose theirs; removed files leave all disks, over a kill -9 too."""
        farm = self.make_farm("alpha", "beta", "gamma", farm=QUICK)
        assert farm.cli("set", "farm", "collect_grace=5s").returncode == 0
        digests = self.put_files(farm, KEPT | REMOVED)
        used = chunks(farm, KEPT)
        unused = chunks(farm, REMOVED) - used
        assert len(used) == 3 and len(unused) == 4
        farm.wait_for(lambda: copies(farm, used | unused) == {3}, 60, "all copies are there")

        began = time.monotonic()
        farm.start("delta")
        farm.wait_serving("delta")
        farm.wait_for(lambda: held(farm, "delta") & (used | unused), 90, "it gets its share")
        farm.wait_for(lambda: copies(farm, used | unused) == {3}, 60, "nothing is left over")
        # Before beta is killed, which counts from nothing then, and by chance may have moved all of it.
        farm.wait_for(lambda: total(farm, "surplus-moved"), 10, "STATUS tells what was moved")
        print(f"the surplus was gone after {time.monotonic() - began:.1f} s")

        began = time.monotonic()
        for name in REMOVED:
            assert farm.cli("rm", f"home/{name}").returncode == 0
        farm.wait_for(lambda: farm.status("beta")["condemned"] != "0", 30, "beta has begun to collect")
        farm.kill9("beta")
        farm.start("beta")
        farm.wait_serving("beta")
        farm.wait_for(lambda: copies(farm, unused) == {0}, 60, "the removed files' chunks are gone from all disks")
        print(f"the chunks were gone after {time.monotonic() - began:.1f} s")
        kept = {name: digests[name] for name in KEPT}
        self.assert_equal(farm, kept)
        assert copies(farm, used) == {3}
        farm.wait_for(lambda: total(farm, "collected"), 10, "STATUS tells what was collected")
        assert "collected" in farm.cli("status").stdout

        # The same bytes again are stored anew, and stay.
        farm.wait_for(lambda: farm.status("alpha")["condemned"] == "0", 20, "alpha has nothing left to collect")
        again = {"small": digests["small"]}
        assert farm.cli("put", "small", "home/small").returncode == 0
        time.sleep(7)
        self.assert_equal(farm, again)
        for name, server in farm.servers.items():
            assert "Traceback" not in server.logged(), farm.tails([name])


def chunks(farm: RealFarm, names: dict[str, int]) -> set[str]:
    """Digests of all chunks of those of these files that are not small."""
    large = [name for name, size in names.items() if size > MIB]
    rows = [row for name in large for row in farm.ask("alpha", f"EXPLAIN home/{name}").parsed]
    return {row["digest"] for row in rows if "digest" in row}


def total(farm: RealFarm, field: str) -> int:
    """The sum of a number that STATUS of each server tells of that server."""
    return sum(int(farm.status(name)[field]) for name in farm.servers)


def held(farm: RealFarm, name: str) -> set[str]:
    """Digests of the chunks that have files of their own on one server's disk, whatever it says."""
    return {path.stem for path in farm.servers[name].data.glob("chunks/??/*.chunk")}


def copies(farm: RealFarm, digests: set[str]) -> set[int]:
    """On how many disks these chunks are: one number if it is the same for all of them."""
    disks = [held(farm, name) for name in farm.servers]
    return {sum(digest in disk for disk in disks) for digest in digests}
