"""Servers that are said to be where they are not."""

from __future__ import annotations

import socket
import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.large_files import write_file
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow


class AddressTests(FarmTestCase):
    def told(self, farm: RealFarm, *names: str) -> str:
        """What STATUS says of repairs that do not go on, on these servers."""
        return "".join(farm.status(name).get("repair-paused", "") for name in names)

    def test_refused(self) -> None:
        """A server that is up keeps its address unless it answers at the new one, and no port is given twice."""
        farm = self.make_farm("alpha", "beta")
        alpha, beta = farm.server("alpha"), farm.server("beta")
        before = farm.rows("alpha")
        for asked, why in (
            (f"peer={alpha.peer}", f"127.0.0.1:{alpha.peer} is the peer port of alpha"),
            (f"client={alpha.client}", f"127.0.0.1:{alpha.client} is the client port of alpha"),
            ("host=10.255.255.1", f"10.255.255.1:{beta.peer}, which"),
            ("peer=9", "127.0.0.1:9, which cannot be reached from here: refused"),
            ("files=9", "127.0.0.1:9, which cannot be reached from here: refused"),
        ):
            done = farm.cli("set", "beta", asked)
            assert done.returncode and why in done.stderr, done.stdout + done.stderr
        places = [(row["host"], row["client"], row["peer"], row["files"]) for row in before]
        assert [(row["host"], row["client"], row["peer"], row["files"]) for row in farm.rows("alpha")] == places
        done = farm.cli("set", "beta", "host=localhost")
        assert done.returncode == 0, done.stderr

    def test_not_reached(self) -> None:
        """One that reports, and is said to be where it is not, is named with the reason, and not waited for."""
        farm = self.make_farm("alpha", "beta", "gamma", farm="repair_after = 600s\n")
        write_file(farm.directory / "file", 100_000)
        farm.wait_for(lambda: farm.states("alpha").get("gamma") == "up", 10, "gamma is up")
        gamma = farm.server("gamma")
        with socket.create_server(("127.0.0.1", 0)) as somebody:
            port = somebody.getsockname()[1]
            assert farm.cli("set", "gamma", f"files={port}").returncode == 0
        assert farm.cli("put", "file", "home/file").returncode == 0
        assert farm.states("alpha")["gamma"] == "up"
        why = f"gamma is up, but not reached at 127.0.0.1:{port}: "
        farm.wait_for(lambda: why in self.told(farm, "alpha", "beta"), 60, "it is said that gamma is not reached")
        began = time.monotonic()
        done = farm.cli("--timeout", "5", "check", "--quick", "--repair")
        assert done.returncode == 1 and not done.stderr, done.stdout + done.stderr
        assert time.monotonic() - began < 60
        farm.wait_for(lambda: why in farm.cli("status").stdout, 90, "every server tells")
        assert farm.cli("set", "gamma", f"files={gamma.files}").returncode == 0
        farm.wait_for(lambda: not self.told(farm, "alpha", "beta"), 60, "gamma is reached")
        assert farm.cli("check", "--quick", "--repair").returncode == 0
