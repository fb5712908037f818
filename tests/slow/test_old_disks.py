"""Data directories that were put back from a copy, or copied and started a second time."""

from __future__ import annotations

import shutil
import time

import pytest

from chunkfarm.config import ConfigFile
from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm
from tests.slow.test_refused_starts import one_sentence

pytestmark = pytest.mark.slow

PATIENCE = 30.0
"""For a farm that starts, on a machine that has other things to do."""
QUIET_SECONDS = 10.0
"""Several elections: two that could decide without the third would have done so by then."""
OLD = "older than config.ini"


class OldDiskTests(FarmTestCase):
    def make_three(self) -> RealFarm:
        """Three servers that all vote."""
        farm = self.make_farm("alpha", "beta", "gamma")
        farm.wait_copies("alpha", 3, PATIENCE)
        return farm

    def put(self, farm: RealFarm, name: str) -> None:
        (farm.directory / name).write_text(f"{name}\n")
        stored = farm.cli("put", name, f"home/{name}")
        assert stored.returncode == 0, stored.stderr

    def fetched(self, farm: RealFarm, name: str) -> str:
        fetched = farm.cli("get", f"home/{name}", "-")
        assert fetched.returncode == 0, fetched.stderr
        return fetched.stdout

    def reached(self, farm: RealFarm, name: str) -> int:
        """The generation that this server has found config.ini at, or brought it to."""
        hello = farm.hello(name)
        assert hello is not None
        return ConfigFile(str(farm.config_path)).reached(hello.fields["server"]) or 0

    def put_back(self, farm: RealFarm, name: str) -> None:
        """The copy that was laid aside takes the place of the data directory."""
        data = farm.server(name).data
        shutil.rmtree(data)
        shutil.copytree(f"{data}.old", data)

    def test_put_back(self) -> None:
        """A master whose old disk is put back decides nothing, says so, and is caught up: nothing is lost."""
        farm = self.make_three()
        farm.kill9("gamma")
        data = farm.server("gamma").data
        shutil.copytree(data, f"{data}.old")
        farm.start_serving("gamma")
        farm.wait_for(lambda: farm.states("alpha").get("gamma") == "up", PATIENCE, "gamma is up")
        farm.kill9("beta")
        before = farm.config().generation
        assert farm.ask("alpha", "SET farm replicas=2").line.startswith("OK")
        farm.wait_for(lambda: self.reached(farm, "gamma") > before, PATIENCE, "gamma has seen config.ini follow")
        # Beta lacks this. If gamma forgets it, and may vote all the same, alpha alone has it.
        self.put(farm, "acknowledged")
        farm.kill9("alpha", "gamma")
        self.put_back(farm, "gamma")

        farm.start("beta")
        farm.start("gamma")
        farm.wait_for(lambda: OLD in str(farm.hello("gamma")), PATIENCE, "gamma says that it waits, and why")
        until = time.monotonic() + QUIET_SECONDS
        while time.monotonic() < until:
            for name in ("beta", "gamma"):
                hello = farm.hello(name)
                assert hello is None or hello.state in ("starting", "waiting"), hello
            time.sleep(0.5)
        assert farm.servers["gamma"].logged().count(OLD) >= 1

        farm.start("alpha")
        farm.wait_serving("alpha", "beta", "gamma")
        farm.wait_for(lambda: "withheld" not in farm.status("gamma"), PATIENCE, "gamma takes part again")
        assert self.fetched(farm, "acknowledged") == "acknowledged\n"
        farm.kill9("alpha")
        farm.wait_for(lambda: farm.status("beta").get("first") in ("beta", "gamma"), PATIENCE, "the two go on")
        # The old disk has lost the chunk, but not its name.
        assert farm.cli("stat", "home/acknowledged").returncode == 0

    def test_merely_away(self) -> None:
        """A master that was away while the farm changed has no old disk: with the second it can go on."""
        farm = self.make_three()
        farm.kill9("gamma")
        farm.wait_for(lambda: farm.states("alpha").get("gamma") == "down", PATIENCE, "gamma is down")
        assert farm.ask("alpha", "SET farm replicas=2").line.startswith("OK")
        self.put(farm, "meanwhile")
        farm.kill9("alpha", "beta")
        farm.start("beta")
        farm.start("gamma")
        farm.wait_serving("beta", "gamma")
        assert OLD not in farm.servers["gamma"].logged()
        assert self.fetched(farm, "meanwhile") == "meanwhile\n"


class CopiedDiskTests(FarmTestCase):
    def make_copied(self) -> RealFarm:
        """Two servers; the second's data directory was copied, while it stood still, to that of `copy`."""
        farm = self.make_farm("alpha", "beta")
        farm.pause("beta")
        shutil.copytree(farm.server("beta").data, farm.server("copy").data)
        farm.resume("beta")
        farm.wait_serving("beta")
        return farm

    def test_refused_while_the_original_lives(self) -> None:
        """A copy that is started on other ports is refused, both addresses named, and the original goes on."""
        farm = self.make_copied()
        told = one_sentence(farm.fails_to_start("copy"))
        for name in ("beta", "copy"):
            assert f"127.0.0.1:{farm.server(name).peer}" in told, told
        farm.wait_serving("alpha", "beta")
        row = next(row for row in farm.rows("alpha") if row["name"] == "beta")
        assert (row["state"], row["peer"]) == ("up", str(farm.server("beta").peer))

    def told(self, farm: RealFarm, name: str) -> str:
        return " ".join(farm.ask(name, "STATUS").rows)

    def test_the_original_wakes(self) -> None:
        """A copy that was started while the original slept stays; the original is refused when it wakes."""
        farm = self.make_copied()
        farm.pause("beta")
        farm.start("copy")
        farm.wait_serving("copy", seconds=60)
        farm.resume("beta")
        farm.wait_for(
            lambda: "two processes have the server id" in self.told(farm, "beta"),
            PATIENCE,
            "beta says that there are two",
        )
        farm.wait_serving("alpha", "copy")
