"""Servers that die with all copies of some chunks, and come back with them."""

from __future__ import annotations

import random
import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

CHUNK = 64 * 1024
CHUNKS = 128
"""Of so many about thirteen are on two of five servers alone."""
QUICK = "master_grace = 4s\nrepair_after = 5s\n"
TOLD_SECONDS = 40.0
"""Five until they are down, five more until they are given up, three until it is looked; on a machine that is busy."""


class LostTests(FarmTestCase):
    def test_chunks_that_no_living_server_ever_knew(self) -> None:
        """Of five servers, with two replicas, two die: STATUS of the others says what is lost until they are back."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta", "epsilon", replicas=2, farm=QUICK)
        assert farm.cli("set", "farm", f"chunksize={CHUNK}").returncode == 0
        farm.wait_copies("alpha", 3)
        # Each chunk has bytes of its own.
        (farm.directory / "file").write_bytes(random.Random(1).randbytes(CHUNKS * CHUNK))
        stored = farm.cli("put", "file", "home/file")
        assert stored.returncode == 0, stored.stderr
        farm.wait_for(lambda: lost(farm, "beta") == 0, TOLD_SECONDS, "beta is told that nothing is lost")

        # Both have no part in the table, so that the farm goes on.
        farm.kill9("delta", "epsilon")
        killed = time.monotonic()
        left = ("alpha", "beta", "gamma")
        farm.wait_for(lambda: all(lost(farm, name) for name in left), TOLD_SECONDS, "STATUS tells of lost chunks")
        print(f"STATUS told of lost chunks {time.monotonic() - killed:.1f} s after the kill")
        farm.wait_for(lambda: is_repaired(farm, left), TOLD_SECONDS, "what is left has its copies")
        count = on_nobody(farm)
        assert 0 < count < CHUNKS
        farm.wait_for(lambda: all(lost(farm, name) == count for name in left), TOLD_SECONDS, "all tell the same")
        assert "lost-since" in farm.status("gamma")
        checked = farm.cli("check", "--quick")
        assert f"home/file: {count} chunk" in checked.stdout, checked.stdout + checked.stderr
        assert farm.cli("get", "home/file", "back").returncode != 0

        farm.start("delta")
        farm.start("epsilon")
        farm.wait_serving("delta", "epsilon")
        farm.wait_for(lambda: all(lost(farm, name) == 0 for name in farm.servers), TOLD_SECONDS, "nothing is lost")
        assert "lost-since" not in farm.status("alpha")
        fetched = farm.cli("get", "home/file", "back")
        assert fetched.returncode == 0, fetched.stderr
        assert (farm.directory / "back").read_bytes() == (farm.directory / "file").read_bytes()


def lost(farm: RealFarm, name: str) -> int | None:
    """What STATUS of one server tells; None if it does not."""
    told = farm.status(name).get("lost")
    return int(told) if told is not None else None


def is_repaired(farm: RealFarm, names: tuple[str, ...]) -> bool:
    """Whether no server that is left has anything to copy."""
    told = [farm.status(name) for name in names]
    return all(one["under-replicated"] == "0" and one["repair-looked"].startswith("100") for one in told)


def on_nobody(farm: RealFarm) -> int:
    """How many chunks of the file nobody has who answers, by EXPLAIN."""
    rows = [row for row in farm.ask("alpha", "EXPLAIN home/file 0 1000").parsed if "digest" in row]
    return sum(row["copies"] == "0" for row in rows)
