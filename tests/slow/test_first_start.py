"""How servers become one farm, and never two: first starts, and starts while nobody answers."""

from __future__ import annotations

import socket
import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm, hash_of_folder

pytestmark = pytest.mark.slow

TOGETHER = [f"server{number}" for number in range(10)]
TOGETHER_SECONDS = 90.0
"""For ten interpreters to start on two cores, and to join one after the other."""


class StartTogetherTests(FarmTestCase):
    def test_ten_servers_on_one_empty_config(self) -> None:
        """Ten servers start in the same instant on one empty config: they become one farm with ten rows. Ten times."""
        for repetition in range(10):
            begun = time.monotonic()
            farm = self.make_farm()
            for name in TOGETHER:
                farm.start(name)
            farm.wait_serving(*TOGETHER, seconds=TOGETHER_SECONDS)
            print(f"repetition {repetition}: all serve after {time.monotonic() - begun:.1f} s")
            self.check_is_one(farm)
            farm.kill9(*TOGETHER)
            farm.close()

    def check_is_one(self, farm: RealFarm) -> None:
        identity = farm.config().farm.id
        assert identity
        for name in TOGETHER:
            hello = farm.hello(name)
            assert hello is not None and hello.fields["farm"] == identity, f"{name} is of another farm: {hello}"
        farm.wait_for(lambda: sorted(farm.listed()) == TOGETHER, 10, "config.ini lists ten servers")
        assert farm.config().farm.id == identity
        farm.wait_for(lambda: sorted(farm.states(TOGETHER[0])) == TOGETHER, 10, f"{TOGETHER[0]} has heard of all")
        rows = farm.rows(TOGETHER[0])
        assert len({row["id"] for row in rows}) == 10
        assert [row["role"] for row in rows].count("first") == 1
        assert len(list(farm.directory.glob("*/admin.key"))) == 1, "more than one server founded a farm"
        for name in TOGETHER:
            assert "Traceback" not in farm.servers[name].logged(), farm.tails([name])


class NobodyAnswersTests(FarmTestCase):
    def test_a_fresh_server_waits_and_says_for_whom(self) -> None:
        """A server that knows of a farm, of which nobody answers, names each address and error, and joins later."""
        farm = self.make_farm("alpha", "beta")
        farm.wait_for(lambda: farm.listed() == ["alpha", "beta"], 10, "config.ini lists both")
        farm.kill9("alpha", "beta")
        config = farm.config_path.read_text()

        gamma = farm.start("gamma")

        peers = {f"127.0.0.1:{farm.server(name).peer}" for name in ("alpha", "beta")}
        hello = farm.wait_waiting("gamma")
        assert hello.waits.keys() == peers
        assert {wait["error"] for wait in hello.waits.values()} == {"refused"}
        assert all(wait["since"].endswith("Z") and int(wait["tries"]) >= 1 for wait in hello.waits.values())
        assert any("start one of the servers" in cure for cure in hello.cures), hello.cures
        assert any("--found" in cure for cure in hello.cures), hello.cures
        for peer in peers:
            assert f"{peer}: refused" in gamma.logged()
        time.sleep(3)
        assert gamma.logged().count("Waiting for the farm") == 1, "the log says it once a change"
        assert farm.config_path.read_text() == config
        assert not (gamma.data / "admin.key").exists()

        farm.start("alpha")
        farm.start("beta")
        farm.wait_serving("alpha", "beta", "gamma")
        farm.wait_for(lambda: farm.listed() == ["alpha", "beta", "gamma"], 10, "gamma has joined")

    def test_a_silent_address_may_be_a_farm(self) -> None:
        """Of a hand-made list one address takes connections and says nothing: nobody founds until it refuses."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            farm = self.make_farm(servers=f"ghost = 127.0.0.1 {port - 1}")
            alpha = farm.start("alpha")
            hello = farm.wait_waiting("alpha", 30)
            (address,) = hello.waits
            assert address == f"127.0.0.1:{port}"
            assert hello.waits[address]["error"] == "no answer within 5 s", hello
            assert f"127.0.0.1:{port}: no answer within 5 s" in alpha.logged()
            assert not farm.config().farm.id
        farm.wait_serving("alpha")
        farm.wait_for(lambda: farm.listed() == ["alpha"], 10, "alpha founded a farm")


class FoundAnywayTests(FarmTestCase):
    def test_refused_where_the_data_belong_to_a_farm(self) -> None:
        """--found is refused for a data directory of a farm, with one sentence, and changes nothing."""
        farm = self.make_farm("alpha")
        farm.sigterm("alpha")
        farm.wait_ended("alpha", 10)
        before = contents(farm)

        logged = farm.fails_to_start("alpha", "--found")

        assert "--found is refused" in logged and farm.config().farm.id in logged
        assert "Traceback" not in logged
        assert contents(farm) == before
        farm.start_serving("alpha")

    def test_makes_a_new_farm_where_nobody_answers(self) -> None:
        """--found makes a new, empty farm in place of one that is lost, and keeps the old list beside it."""
        farm = self.make_farm("alpha")
        lost = farm.config().farm
        farm.kill9("alpha")

        farm.start("beta", "--found")

        farm.wait_serving("beta")
        found = farm.config().farm
        assert found.id and found.id != lost.id and found.ca != lost.ca
        assert farm.listed() == ["beta"]
        assert f"id = {lost.id}" in (farm.directory / "config.ini.1").read_text()
        assert (farm.server("beta").data / "admin.key").exists()
        logged = farm.fails_to_start("alpha")
        assert lost.id in logged and found.id in logged

    def test_joins_where_somebody_answers(self) -> None:
        """--found makes no second farm beside one that answers: the server joins."""
        farm = self.make_farm("alpha")
        farm.start("beta", "--found")
        farm.wait_serving("beta")
        farm.wait_for(lambda: farm.listed() == ["alpha", "beta"], 10, "beta has joined")


def contents(farm: RealFarm) -> dict[str, str]:
    """What a refused start must leave as it was."""
    return hash_of_folder(farm.directory, but=("*.log", "twistd.pid", "lock", "*-shm", "*-wal"))
