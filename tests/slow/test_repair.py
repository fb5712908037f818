"""Copies that are lost with a server or rot on a disk, and the farm that makes them anew."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.large_files import MIB, digest_of, write_file
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

QUICK = "master_grace = 4s\nrepair_after = 5s\n"
SLOWER = "master_grace = 4s\nrepair_after = 20s\n"
"""Leaves time to look at what is short."""
FILES = {"small": 3000, "middle": 100_000, "large": 20 * MIB + 17, "larger": 32 * MIB}
REPAIR_SECONDS = 60.0


class RepairTests(FarmTestCase):
    def put_files(self, farm: RealFarm) -> dict[str, str]:
        """Some files of every size, and their digests."""
        digests = {}
        for number, (name, size) in enumerate(FILES.items()):
            digests[name] = write_file(farm.directory / name, size, seed=number)
            stored = farm.cli("put", name, f"home/{name}")
            assert stored.returncode == 0, stored.stderr
        return digests

    def assert_equal(self, farm: RealFarm, digests: dict[str, str]) -> None:
        """Every file comes back as it was put."""
        for name, digest in digests.items():
            fetched = farm.cli("get", f"home/{name}", "back")
            assert fetched.returncode == 0, fetched.stderr
            assert digest_of(farm.directory / "back") == digest, name

    def test_a_server_is_lost(self) -> None:
        """After `repair_after` each chunk of a dead server is copied to another one, and STATUS tells of it."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta", farm=QUICK)
        digests = self.put_files(farm)
        others = ["alpha", "beta", "gamma"]
        lost = {row["id"] for row in farm.rows("alpha") if row["name"] == "delta"}
        farm.wait_for(lambda: fewest(farm, digests) == 3, 20, "all copies are there")
        assert any(holders_of(farm, name) & lost for name in digests)

        farm.kill9("delta")
        killed = time.monotonic()
        farm.wait_for(lambda: sum(status(farm, name, "under-replicated") for name in others), 15, "STATUS tells")
        farm.wait_for(
            lambda: fewest(farm, digests) == 3 and not any(status(farm, name, "repair-left") for name in others),
            REPAIR_SECONDS,
            "all copies are there again",
        )
        print(f"all copies were there again {time.monotonic() - killed:.1f} s after the kill")
        farm.wait_for(
            lambda: not sum(status(farm, name, "under-replicated") for name in others), 5, "nothing is short any more"
        )

        done = {name: status(farm, name, "repair-done") for name in others}
        print(f"copied: {done}")
        assert sum(done.values()) > 0
        assert not any(holders_of(farm, name) & lost for name in digests)
        self.assert_equal(farm, digests)
        shown = farm.cli("status")
        assert "repair-done" in shown.stdout and "under-replicated" in shown.stdout, shown.stdout
        checked = farm.cli("check")
        assert checked.returncode == 0, checked.stdout + checked.stderr

        # Its copies are its own again as soon as it is back.
        farm.start("delta")
        farm.wait_serving("delta")
        farm.wait_for(lambda: any(lost & holders_of(farm, name) for name in digests), 20, "delta has its copies")

    def test_what_can_be_lost(self) -> None:
        """With two replicas each pair is named with what it has; who is left of one is alone until that is repaired."""
        farm = self.make_farm("alpha", "beta", "gamma", farm=SLOWER, replicas=2)
        digests = self.put_files(farm)
        farm.wait_for(lambda: fewest(farm, digests) == 2, 20, "all copies are there")
        if any(len(row["holders"].split(",")) > 2 for name in digests for row in chunks_of(farm, name)):
            # For a disk that was slow another server has stood in, and keeps its copy for up to an hour. When owners
            # change, everybody looks at once.
            for replicas in (3, 2):
                assert farm.cli("set", "farm", f"replicas={replicas}").returncode == 0
        self.wait_told(farm, digests, 2)
        before = lost_with(farm, "alpha")

        farm.kill9("gamma")
        alone = {tuple(name for name in holders if name != "gamma"): total for holders, total in before.items()}
        farm.wait_for(lambda: lost_with(farm, "beta") == alone, 25, "those who had the other copies are alone")
        print(f"after the kill: {alone}")
        self.wait_told(farm, digests, 2)
        assert set(lost_with(farm, "beta")) == {("alpha", "beta")}

        set_replicas = farm.cli("set", "farm", "replicas=3")
        assert set_replicas.returncode == 0, set_replicas.stderr
        farm.start("gamma")
        farm.wait_serving("gamma")
        farm.wait_for(lambda: not lost_with(farm, "gamma"), REPAIR_SECONDS, "three copies of everything")
        farm.wait_for(lambda: "nothing with any two" in farm.status("beta")["can-be-lost"], 20, "STATUS says so")

    def wait_told(self, farm: RealFarm, digests: dict[str, str], copies: int) -> None:
        """Until STATUS of each server that is up says of all chunks what EXPLAIN does, and they have so many copies."""

        def is_told() -> bool:
            names = {row["id"]: row["name"] for row in farm.rows("alpha")}
            totals: dict[tuple[str, ...], tuple[int, int, str]] = {}
            files: dict[tuple[str, ...], set[str]] = {}
            for file, row in ((one, row) for one in digests for row in chunks_of(farm, one)):
                holders = tuple(sorted(names.get(holder, holder) for holder in row["holders"].split(",")))
                chunks, size, _ = totals.get(holders, (0, 0, ""))
                files.setdefault(holders, set()).add(file)
                totals[holders] = chunks + 1, size + int(row["length"]), str(len(files[holders]))
            running = [name for name, server in farm.servers.items() if server.is_running()]
            told = [lost_with(farm, name) for name in running]
            return {len(holders) for holders in totals} == {copies} and all(one == totals for one in told)

        farm.wait_for(is_told, REPAIR_SECONDS, "STATUS tells what EXPLAIN does")
        print(lost_with(farm, "alpha"))

    def test_disks_that_rot(self) -> None:
        """A flipped bit, a file cut short, one that is gone, a whole data directory: found, told, healed."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta", farm=QUICK)
        digests = self.put_files(farm)
        farm.wait_for(lambda: fewest(farm, digests) == 3, 20, "all copies are there")

        harmed: set[str] = set()
        flip(another_chunk(farm, "alpha", harmed))
        cut = another_chunk(farm, "beta", harmed)
        cut.write_bytes(cut.read_bytes()[:-1000])
        another_chunk(farm, "gamma", harmed).unlink()
        # Not every server need hold one of the few small chunks.
        flip(next(farm.directory.glob("*/chunks/packs/*.pack")))
        self.assert_equal(farm, digests)

        checked = farm.cli("check", "--repair", "home/")
        print(checked.stdout, checked.stderr)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        # The reads above may have found some of it before.
        damaged = {name: status(farm, name, "damaged") for name in ("alpha", "beta")}
        assert all(damaged.values()), damaged
        assert list((farm.directory / "alpha" / "chunks" / "quarantine").iterdir())
        assert "was put aside" in farm.servers["alpha"].logged()
        assert "all whole" in checked.stdout.splitlines()[-1], checked.stdout
        farm.wait_for(lambda: fewest(farm, digests) == 3, 20, "all copies are there")

        farm.kill9("gamma")
        shutil.rmtree(farm.directory / "gamma")
        farm.start("gamma")
        farm.wait_serving("gamma")
        began = time.monotonic()
        checked = farm.cli("check", "--repair")
        print(checked.stdout, checked.stderr, f"{time.monotonic() - began:.1f} s")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        self.assert_equal(farm, digests)
        assert fewest(farm, digests) == 3


def status(farm: RealFarm, name: str, field: str) -> int:
    """A number of STATUS."""
    return int(farm.status(name)[field])


def lost_with(farm: RealFarm, name: str) -> dict[tuple[str, ...], tuple[int, int, str]]:
    """Chunks, bytes and files by the names of the servers that have all copies, as a server tells."""
    found: dict[tuple[str, ...], tuple[int, int, str]] = {}
    for row in farm.ask(name, "STATUS").rows:
        if row.startswith("lost-with="):
            holders, *told = row.removeprefix("lost-with=").strip('"').split(" ")
            total = dict(field.split("=") for field in told)
            found[tuple(sorted(holders.split(",")))] = int(total["chunks"]), int(total["bytes"]), total.get("files", "")
    return found


def chunks_of(farm: RealFarm, name: str) -> list[dict[str, str]]:
    """What EXPLAIN says of each chunk of a file."""
    return [row for row in farm.ask("alpha", f"EXPLAIN home/{name}").parsed if "digest" in row]


def holders_of(farm: RealFarm, name: str) -> set[str]:
    """Ids of all servers that hold a chunk of a file."""
    return {holder for row in chunks_of(farm, name) for holder in row["holders"].split(",")}


def fewest(farm: RealFarm, names: dict[str, str]) -> int:
    """Copies of the chunk that has the fewest."""
    return min(int(row["copies"]) for name in names for row in chunks_of(farm, name))


def another_chunk(farm: RealFarm, name: str, harmed: set[str]) -> Path:
    """The file of a chunk of which no copy was harmed yet."""
    files = sorted((farm.directory / name / "chunks").glob("??/*.chunk"))
    chosen = next(path for path in files if path.name not in harmed)
    harmed.add(chosen.name)
    return chosen


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
