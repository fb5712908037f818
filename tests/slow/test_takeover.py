"""A majority of the masters is lost: what the last server says, and how a person lets the farm go on with it."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.line_socket import Refused
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

GRACE = 2.0
"""`master_grace` of these farms, so that a test does not wait longer than it must."""


class TakeoverTests(FarmTestCase):
    def make_three(self) -> RealFarm:
        """Three servers that all have the table, and a file."""
        farm = self.make_farm("alpha", "beta", "gamma", farm=f"master_grace = {GRACE:g}s")
        farm.wait_copies("alpha", 3, 30)
        self.put(farm, "before")
        self.wait_stored(farm, "before", {"alpha", "beta", "gamma"})
        return farm

    def make_pair(self) -> RealFarm:
        """Two servers, of which none goes on by itself when the first is gone."""
        farm = self.make_farm("alpha", "beta", farm=f"master_grace = {GRACE:g}s\ntwo_server_takeover = manual")
        farm.wait_copies("beta", 2, 30)
        self.put(farm, "before")
        return farm

    def wait_stored(self, farm: RealFarm, name: str, servers: set[str]) -> None:
        """Wait until these servers have a file: it is acknowledged once two have it."""

        def stored() -> bool:
            rows = farm.ask("alpha", f"EXPLAIN home/{name}").parsed
            return servers <= {row["name"] for row in rows if row.get("held") == "1"}

        farm.wait_for(stored, 30, f"{', '.join(sorted(servers))} have {name}")

    def said(self, farm: RealFarm, name: str) -> str:
        """All that STATUS tells."""
        return "\n".join(farm.ask(name, "STATUS").rows)

    def put(self, farm: RealFarm, name: str, seconds: float = 60.0) -> None:
        (farm.directory / name).write_text(f"{name}\n")
        stored = farm.cli("put", name, f"home/{name}", seconds=seconds)
        assert stored.returncode == 0, stored.stderr

    def fetched(self, farm: RealFarm, name: str) -> str:
        fetched = farm.cli("get", f"home/{name}", "-")
        assert fetched.returncode == 0, fetched.stderr
        return fetched.stdout

    def wait_readonly(self, farm: RealFarm, name: str) -> None:
        farm.wait_for(lambda: farm.status(name).get("state") == "readonly", 20, f"{name} is read-only")

    def test_two_of_three_are_lost(self) -> None:
        """The third says what to do, and goes on when it is told to; the others learn from it when they return."""
        farm = self.make_three()
        farm.kill9("alpha", "beta")
        self.wait_readonly(farm, "gamma")
        said = self.said(farm, "gamma")
        assert "alpha" in said and "beta" in said and "chunkfarm takeover" in said, said

        wrong = farm.cli("takeover", "--farm", "bal")
        assert wrong.returncode == 1 and "another name" in wrong.stderr, wrong.stderr
        assert farm.status("gamma")["state"] == "readonly"

        taken = farm.cli("takeover", "--farm", "lab", "--json")
        print(taken.stdout)
        assert taken.returncode == 0, taken.stderr
        told = json.loads(taken.stdout)
        assert told["server"] == "gamma" and told["taken_over"]
        found = {row["name"]: row for row in told["servers"]}
        assert found["alpha"]["error"] == "refused" and found["gamma"]["longest"]
        farm.wait_serving("gamma")
        self.put(farm, "meanwhile")
        assert self.fetched(farm, "before") == "before\n"

        farm.start("alpha")
        farm.start("beta")
        farm.wait_serving("alpha", "beta")
        farm.wait_copies("gamma", 3, 30)
        assert next(iter(farm.states("alpha"))) == "gamma"
        for name in ("alpha", "beta", "gamma"):
            status = farm.status(name)
            assert status["takeovers"] == "1" and "withheld" not in status, (name, status)
        for name in ("before", "meanwhile"):
            assert self.fetched(farm, name) == f"{name}\n"
        # Any two of them decide again.
        farm.kill9("gamma")
        self.put(farm, "after")
        assert self.fetched(farm, "after") == "after\n"

    def test_files_are_read_meanwhile(self) -> None:
        """Until then whoever is left gives every file, with a word of warning, also one that never had the table."""
        farm = self.make_three()
        own = farm.directory / "machine-delta"
        own.mkdir()
        (own / "config.ini").write_text(f"{farm.config_path.read_text()}master = no\n")
        shutil.copy2(farm.directory / "farm.join", own)
        farm.start("delta", config=own / "config.ini")
        farm.wait_serving("delta")
        assert farm.status("delta").get("holds-table") != "yes"
        farm.kill9("alpha", "beta")
        for name in ("gamma", "delta"):
            self.wait_readonly(farm, name)
            url = f"{farm.servers[name].url}/home/before"
            got = farm.curl("-sS", "-D", "-", url)
            head, _, body = got.stdout.partition(b"\r\n\r\n")
            assert body == b"before\n" and b"Warning: 110 chunkfarm" in head, (name, got)
            refused = farm.curl("-sS", "-w", "%{http_code}", "-T", str(farm.directory / "before"), url)
            assert refused.stdout.endswith(b"503"), refused
        assert "home/before" in farm.cli("ls").stdout

    def test_all_were_stopped(self) -> None:
        """A server that waits after a start takes the word too: its own rows tell who is an admin."""
        farm = self.make_three()
        farm.kill9("alpha", "beta", "gamma")
        farm.start("gamma")
        hello = farm.wait_waiting("gamma", 20)
        assert any("chunkfarm takeover" in cure for cure in hello.cures), hello
        taken = farm.cli("takeover", "--farm", "lab")
        print(taken.stdout)
        assert taken.returncode == 0, taken.stderr
        farm.wait_serving("gamma")
        self.put(farm, "meanwhile")
        assert self.fetched(farm, "before") == "before\n"
        # The line outlives the process that began it.
        farm.kill9("gamma")
        farm.start("gamma")
        farm.wait_serving("gamma")
        farm.start("alpha")
        farm.wait_serving("alpha")
        farm.start("beta")
        farm.wait_serving("beta")
        assert self.fetched(farm, "meanwhile") == "meanwhile\n"

    def test_who_may_not(self) -> None:
        """A farm that is well, and any server but the one with the longest journal, refuse and say why."""
        farm = self.make_three()
        before = farm.config_path.read_text()
        healthy = farm.cli("takeover", "--farm", "lab")
        assert healthy.returncode == 1 and "alpha" in healthy.stderr and "commits" in healthy.stderr, healthy.stderr
        assert "SERVER" in healthy.stdout and "longest journal" in healthy.stdout
        assert farm.config_path.read_text() == before

    def test_the_longest_journal(self) -> None:
        """Of two servers that are left without a majority, only the one that knows more may go on."""
        farm = self.make_three()
        farm.start_serving("delta")
        farm.wait_for(lambda: farm.status("delta").get("holds-table") == "yes", 20, "delta has learned")
        farm.kill9("delta")
        self.put(farm, "unheard")
        # While delta counts as up, two of the other three are enough: gamma need not be one of them at once.
        self.wait_stored(farm, "unheard", {"gamma"})
        farm.kill9("alpha", "beta")
        farm.start("delta")
        self.wait_readonly(farm, "gamma")
        farm.wait_waiting("delta", 20)
        try:
            farm.ask("delta", "TAKEOVER lab")
        except Refused as error:
            assert error.code == "conflict" and "gamma" in error.sentence and "longer" in error.sentence, error
        else:
            raise AssertionError("delta took over")
        taken = farm.cli("takeover", "--farm", "lab")
        assert taken.returncode == 0 and "gamma leads" in taken.stdout, taken
        farm.wait_serving("gamma", "delta")
        self.put(farm, "meanwhile")
        assert self.fetched(farm, "unheard") == "unheard\n"

    def test_both_sides_stored_something(self) -> None:
        """The side that took over goes on; the other one stops, shows its files and names the cure, always."""
        farm = self.make_pair()
        farm.pause("alpha")
        self.wait_readonly(farm, "beta")
        said = self.said(farm, "beta")
        assert "start alpha" in said and "chunkfarm takeover" in said and "weight = 0" in said, said
        taken = farm.cli("takeover", "--farm", "lab", "--json")
        assert taken.returncode == 0, taken.stderr
        assert json.loads(taken.stdout)["server"] == "beta"
        farm.wait_serving("beta")
        self.put(farm, "ours")

        farm.pause("beta")
        farm.resume("alpha")
        farm.wait_copies("alpha", 1, 20)
        self.put(farm, "theirs")
        farm.resume("beta")
        met = time.monotonic()
        farm.wait_for(lambda: "halted" in farm.status("alpha"), 30, "alpha stops")
        print(f"stopped {time.monotonic() - met:.1f} s after it could meet the other")
        self.check_stopped(farm)
        farm.wait_serving("beta")
        self.put(farm, "after")
        assert self.fetched(farm, "ours") == "ours\n"

        farm.kill9("alpha")
        farm.start("alpha")
        farm.wait_for(
            lambda: (hello := farm.hello("alpha")) and hello.state == "readonly", 20, "alpha shows what it has"
        )
        self.check_stopped(farm)

        # The cure.
        farm.sigterm("alpha")
        farm.wait_ended("alpha", 20)
        for path in sorted((farm.directory / "alpha").rglob("*"), reverse=True):
            if path.name not in ("admin.key", "ca.pem", "netrc"):
                path.rmdir() if path.is_dir() else path.unlink()
        farm.start("alpha")
        farm.wait_serving("alpha")
        assert farm.status("alpha")["first"] == "beta"

    def check_stopped(self, farm: RealFarm) -> None:
        """alpha is out of it, and shows what it has."""
        hello = farm.hello("alpha")
        assert hello is not None and hello.state == "readonly" and "beta" in hello.fields["because"], hello
        said = self.said(farm, "alpha")
        assert "chunkfarm get" in said and "empty the data directory" in said, said
        with farm.link("alpha", timeout=20.0) as link:
            assert link.ask("FETCH home/theirs").data == b"theirs\n"
            try:
                link.ask("REMOVE home/theirs")
            except Refused as error:
                assert error.code == "readonly" and "beta" in error.sentence, error
            else:
                raise AssertionError("alpha writes on")

    def test_the_other_side_stored_nothing(self) -> None:
        """A first that was frozen, and wakes in a farm that went on without it, learns and loses nothing."""
        farm = self.make_pair()
        farm.pause("alpha")
        self.wait_readonly(farm, "beta")
        taken = farm.cli("takeover", "--farm", "lab")
        assert taken.returncode == 0, taken.stderr
        farm.wait_serving("beta")
        self.put(farm, "ours")
        farm.resume("alpha")
        farm.wait_copies("beta", 2, 30)
        farm.wait_serving("alpha", "beta")
        assert "withheld" not in farm.status("alpha")
        assert farm.status("alpha")["first"] == "beta"
        for name in ("before", "ours"):
            assert self.fetched(farm, name) == f"{name}\n"
