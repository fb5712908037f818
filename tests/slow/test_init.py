"""A farm that begins with `chunkfarm init`."""

from __future__ import annotations

import shutil

import pytest

from chunkfarm.config import read_config
from tests.slow.farm_case import FarmTestCase

pytestmark = pytest.mark.slow


class InitTests(FarmTestCase):
    def test_two_machines(self) -> None:
        """Both files are copied to each machine, and servers that start there at the same time are one farm."""
        farm = self.make_farm()
        farm.config_path.unlink()
        ports = [farm.server(name).client for name in ("alpha", "beta")]
        made = farm.cli("init", *(f"127.0.0.1:{port}" for port in ports))
        assert made.returncode == 0, made.stderr
        second = farm.directory / "second"
        second.mkdir()
        for name in ("config.ini", "farm.join"):
            shutil.copy(farm.directory / name, second)
        farm.start("alpha")
        farm.start("beta", config=second / "config.ini")
        farm.wait_serving("alpha", "beta")

        def agree() -> bool:
            first, other = farm.config(), read_config(str(second / "config.ini"), {})
            names = [row.name for row in first.servers]
            return (
                first.farm.id == other.farm.id != ""
                and sorted(names) == ["alpha", "beta"]
                and names == [row.name for row in other.servers]
            )

        farm.wait_for(agree, 15, "both files list both servers of one farm")
        assert "exists already" in farm.cli("init", "127.0.0.1").stderr
