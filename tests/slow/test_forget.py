"""Servers that are taken out for good, on real processes: what they had is kept, and they do not come back."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.large_files import MIB, digest_of, write_file
from tests.slow.line_socket import Refused
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

QUICK = "master_grace = 4s\nrepair_after = 5s\n"
FILES = {"small": 3000, "middle": 100_000, "large": 20 * MIB + 17}


class ForgetTests(FarmTestCase):
    def put_files(self, farm: RealFarm) -> dict[str, str]:
        digests = {}
        for number, (name, size) in enumerate(FILES.items()):
            digests[name] = write_file(farm.directory / name, size, seed=number)
            assert farm.cli("put", name, f"home/{name}").returncode == 0
        return digests

    def assert_equal(self, farm: RealFarm, digests: dict[str, str]) -> None:
        for name, digest in digests.items():
            fetched = farm.cli("get", f"home/{name}", "back")
            assert fetched.returncode == 0, fetched.stderr
            assert digest_of(farm.directory / "back") == digest, name

    def holders(self, farm: RealFarm, name: str) -> set[str]:
        """The servers that have chunks of a file, if each chunk has one copy: for a slow disk another one stands in."""
        ids = {row["id"]: row["name"] for row in farm.rows("alpha")}
        told = [row["holders"] for row in farm.ask("alpha", f"EXPLAIN {name}").parsed if "digest" in row]
        return {ids[one] for one in told} if all(one in ids for one in told) else set()

    def test_forgotten_but_not_gone(self) -> None:
        """A stolen machine with its data directory, its certificate, and a farm.join of before: none of it helps."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta", farm=QUICK)
        farm.wait_copies("beta", 3)
        digests = self.put_files(farm)
        stolen = farm.directory / "stolen"
        stolen.mkdir()
        shutil.copy2(farm.config_path, stolen / "config.ini")
        shutil.copy2(farm.directory / "farm.join", stolen / "farm.join")
        before = (farm.directory / "farm.join").read_text()
        ids = {row["name"]: row["id"] for row in farm.rows("alpha")}

        live = farm.cli("forget", "gamma", "--yes")
        assert live.returncode == 1 and "gamma is up" in live.stderr, live
        # A master, which has the journal, the sealing key and the secrets.
        farm.kill9("gamma")
        farm.wait_for(lambda: farm.states("beta").get("gamma") == "down", 20, "gamma is down")
        done = farm.cli("forget", "gamma", "--yes")
        print(done.stdout)
        assert done.returncode == 0 and "gamma is forgotten" in done.stdout, done
        farm.wait_for(lambda: farm.states("beta").keys() == {"alpha", "beta", "delta"}, 10, "beta has heard of it")
        farm.wait_for(lambda: (farm.directory / "farm.join").read_text() != before, 10, "farm.join is new")
        farm.wait_for(lambda: "gamma" not in farm.listed(), 10, "config.ini names it no more")
        farm.wait_copies("beta", 3)

        # With all that it has.
        farm.start("gamma", config=stolen / "config.ini")
        farm.wait_for(lambda: "taken out of this farm for good" in said(farm), 30, "gamma says why")
        assert ids["gamma"] not in {row["id"] for row in farm.rows("beta")}
        farm.kill9("gamma")
        # With an empty data directory, but the join key of before.
        shutil.rmtree(farm.servers["gamma"].data)
        logged = farm.fails_to_start("gamma", config=stolen / "config.ini")
        assert "join key (farm.join) is not this farm's" in logged, logged
        assert farm.states("beta").keys() == {"alpha", "beta", "delta"}
        # With the new one it is a server like any other.
        shutil.rmtree(farm.servers["gamma"].data)
        farm.start("gamma")
        farm.wait_serving("gamma")
        farm.wait_for(lambda: farm.states("beta").get("gamma") == "up", 10, "beta has heard of it")
        assert {row["name"]: row["id"] for row in farm.rows("beta")}["gamma"] != ids["gamma"]
        self.assert_equal(farm, digests)

    def test_what_is_lost(self) -> None:
        """It is said before; a server that has the last copy is not forgotten by the farm itself, another one is."""
        farm = self.make_farm("alpha", "beta", "gamma", farm=QUICK + "forget_after = 8s\n", replicas=1)
        digests = self.put_files(farm)
        while not (holders := self.holders(farm, "home/large") - {"alpha"}):
            # Where chunks belong follows from their digests and the ids of servers, which are made at random.
            digests["large"] = write_file(farm.directory / "large", FILES["large"], seed=random.randrange(2**32))
            assert farm.cli("put", "large", "home/large").returncode == 0
        holder = holders.pop()
        other = next(name for name in ("beta", "gamma") if name != holder)
        farm.kill9(holder)
        farm.wait_for(lambda: farm.states("alpha").get(holder) == "down", 20, f"{holder} is down")
        shown = farm.ask("alpha", f"FORGET {holder}")
        print(shown)
        assert shown.fields["may"] == "yes" and int(shown.fields["lostchunks"]) >= 1, shown
        assert any(row["name"] == "home/large" for row in shown.parsed), shown
        try:
            farm.ask("alpha", f"FORGET {holder} wrong")
        except Refused as error:
            assert error.code == "conflict", error
        else:
            raise AssertionError("forgotten with a wrong name")
        farm.wait_for(
            lambda: "may be on its disk alone" in "".join(s.logged() for s in farm.servers.values()), 30, "it"
        )
        assert holder in farm.states("alpha")
        # It comes back with all that it had; the other one is emptied, and goes by itself.
        farm.start(holder)
        farm.wait_serving(holder)
        self.assert_equal(farm, digests)
        drained = farm.cli("drain", other, "--wait")
        assert drained.returncode == 0, drained
        farm.sigterm(other)
        farm.wait_ended(other, 20)
        farm.wait_for(lambda: other not in farm.states("alpha"), 40, f"the row of {other} goes")
        self.assert_equal(farm, digests)
        farm.start(other)
        farm.wait_serving(other)


def said(farm: RealFarm) -> str:
    """What gamma says of the servers that it waits for."""
    hello = farm.hello("gamma")
    return "" if hello is None else str(hello.waits)
