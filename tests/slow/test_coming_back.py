"""Servers that come back: on another address, with an empty disk, on the address of a dead one, all moved at once."""

from __future__ import annotations

import shutil

import pytest

from chunkfarm.config import read_config
from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

DOWN_SECONDS = 20.0
"""A silent server counts as down after five seconds; the rest is for a busy machine."""


def rows_by_name(farm: RealFarm, name: str) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in farm.rows(name)}


class ComingBackTests(FarmTestCase):
    def wait_row(self, farm: RealFarm, asked: str, name: str, **fields: str) -> dict[str, str]:
        def there() -> dict[str, str] | None:
            row = rows_by_name(farm, asked).get(name)
            return row if row is not None and fields.items() <= row.items() else None

        return farm.wait_for(there, DOWN_SECONDS, f"{asked} shows {name} with {fields}")

    def move(self, farm: RealFarm, name: str) -> int:
        """Ports for a server that nobody has heard of."""
        farm.servers[name].base = farm.server(f"moved-{name}").base
        return farm.servers[name].base

    def test_on_other_ports(self) -> None:
        """A server that starts again on other ports keeps its id and name; its row and config.ini follow."""
        farm = self.make_farm("alpha", "beta", "gamma")
        before = rows_by_name(farm, "alpha")["beta"]
        farm.kill9("beta")
        base = self.move(farm, "beta")
        farm.start_serving("beta")
        for asked in ("alpha", "gamma"):
            row = self.wait_row(farm, asked, "beta", state="up", client=str(base), peer=str(base + 1))
            assert row["id"] == before["id"]
        farm.wait_for(
            lambda: any((row.name, row.client) == ("beta", base) for row in farm.config().servers),
            10,
            "config.ini has the new ports",
        )
        put = farm.cli("put", str(farm.config_path), "home/there")
        assert put.returncode == 0, put.stderr

    def test_with_an_empty_disk(self) -> None:
        """A server that lost its disk joins with a new id; the row of the old one, on the same ports, goes."""
        farm = self.make_farm("alpha", "beta", "gamma")
        before = rows_by_name(farm, "alpha")["gamma"]
        farm.kill9("gamma")
        shutil.rmtree(farm.server("gamma").data)
        self.wait_row(farm, "alpha", "gamma", state="down")
        farm.start_serving("gamma")
        row = self.wait_row(farm, "alpha", "gamma", state="up")
        assert row["id"] != before["id"]
        assert len(farm.rows("alpha")) == 3

    def test_a_new_server_in_the_place_of_a_dead_one(self) -> None:
        """A new server on the host and ports of one that is down replaces its row."""
        farm = self.make_farm("alpha", "beta", "gamma")
        farm.kill9("gamma")
        self.wait_row(farm, "alpha", "gamma", state="down")
        farm.server("delta").base = farm.server("gamma").base
        farm.start_serving("delta")
        farm.wait_for(lambda: sorted(farm.states("beta")) == ["alpha", "beta", "delta"], 10, "gamma's row went")
        farm.wait_for(lambda: sorted(farm.listed()) == ["alpha", "beta", "delta"], 10, "config.ini follows")

    def test_all_moved_and_the_list_says_where(self) -> None:
        """All were stopped and start on other ports; a person wrote those into config.ini: it is the same farm."""
        farm = self.make_farm("alpha", "beta", "gamma")
        identity = self.stop_all(farm)
        text = farm.config_path.read_text()
        for name in ("alpha", "beta", "gamma"):
            old = farm.servers[name].base
            new = self.move(farm, name)
            text = text.replace(f" {old} {old + 1} {old + 2} ", f" {new} {new + 1} {new + 2} ")
        farm.config_path.write_text(text)
        self.start_all(farm, identity)

    def test_all_but_one_moved(self) -> None:
        """Two of three start on other ports that nobody wrote down: they call the third, which tells it on."""
        farm = self.make_farm("alpha", "beta", "gamma")
        identity = self.stop_all(farm)
        for name in ("alpha", "gamma"):
            self.move(farm, name)
        self.start_all(farm, identity)

    def stop_all(self, farm: RealFarm) -> str:
        """Kill three servers of which each has a vote, so that none can go on alone; the farm's id."""

        farm.wait_copies("alpha", 3)
        farm.kill9("alpha", "beta", "gamma")
        return farm.config().farm.id

    def start_all(self, farm: RealFarm, identity: str) -> None:
        names = ("alpha", "beta", "gamma")
        for name in names:
            farm.start(name)
        farm.wait_serving(*names)
        for name in names:
            base = str(farm.servers[name].base)
            for asked in names:
                self.wait_row(farm, asked, name, state="up", client=base)
        assert farm.config().farm.id == identity


class AdvertisedAddressTests(FarmTestCase):
    def test_an_address_that_leads_elsewhere(self) -> None:
        """A joiner with a wrong --host ends with the reason, which names the address; the farm has no row of it."""
        farm = self.make_farm("alpha")
        server = farm.server("beta")
        logged = farm.fails_to_start("beta", "--host", "no-such-host.invalid")
        assert f"no-such-host.invalid:{server.peer}, cannot be reached from here" in logged, logged
        assert "Traceback" not in logged
        assert [row["name"] for row in farm.rows("alpha")] == ["alpha"]

    def test_back_with_a_wrong_address(self) -> None:
        """A server of the farm that comes back with a wrong --host says why it waits, and its row stays as it was."""
        farm = self.make_farm("alpha", "beta")
        before = rows_by_name(farm, "alpha")["beta"]
        farm.kill9("beta")
        farm.start("beta", "--host", "no-such-host.invalid")
        why = f"no-such-host.invalid:{farm.server('beta').peer}, cannot be reached from here"
        farm.wait_for(lambda: why in str(farm.hello("beta")), 20, "beta says why it waits")
        row = rows_by_name(farm, "alpha")["beta"]
        assert (row["host"], row["joined"]) == (before["host"], before["joined"])
        farm.kill9("beta")
        farm.start_serving("beta")

    def test_the_address_that_reached_the_farm(self) -> None:
        """A joiner whose config names no host advertises the address that reached the farm, after a restart too."""
        farm = self.make_farm("alpha")
        config = farm.directory / "machine2" / "config.ini"
        config.parent.mkdir()
        config.write_text(farm.config_path.read_text().replace("\nhost = 127.0.0.1\n", "\n"))
        shutil.copy2(farm.directory / "farm.join", config.parent)
        for _ in range(2):
            farm.start("beta", config=config)
            farm.wait_serving("beta")
            assert rows_by_name(farm, "alpha")["beta"]["host"] == "127.0.0.1"
            farm.wait_for(lambda: len(read_config(config).servers) == 2, 10, "its config.ini lists it")
            farm.kill9("beta")

    def test_a_founder_on_loopback_says_so(self) -> None:
        """A founder that advertises 127.0.0.1 says once that other machines cannot reach it."""
        farm = self.make_farm("alpha")
        assert farm.servers["alpha"].logged().count("which only its own machine can reach") == 1
        farm.kill9("alpha")
        farm.start_serving("alpha")
        assert farm.servers["alpha"].logged().count("which only its own machine can reach") == 1
