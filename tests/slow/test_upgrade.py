"""A farm is upgraded server by server while it is used, from an earlier revision of this repository."""

from __future__ import annotations

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from unittest import SkipTest

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import ROOT, RealFarm

pytestmark = pytest.mark.slow

BEFORE = "b5bb52a66880159f4660b1d759dd7c1117e2332d"
"""The commit of which the older servers are: it lacks what rows, reports and commands have been given since."""


def unpack_before(directory: Path) -> Path:
    """The code of that commit, in a folder of its own; skips the test where it is not to be had."""
    try:
        command = ["git", "-C", str(ROOT), "archive", BEFORE, "chunkfarm", "twisted"]
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SkipTest(f"the earlier revision {BEFORE[:7]} is not to be had: {error}") from None
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(directory, filter="data")
    return directory


class UpgradeTests(FarmTestCase):
    def version_of(self, farm: RealFarm, name: str) -> bool:
        """Whether a server is of the new code: it knows a command that the older one does not."""
        with farm.link(name) as link:
            return "CA" in {row.split(" ")[0] for row in link.ask("HELP").rows}

    def test_one_after_the_other(self) -> None:
        """Nothing that was acknowledged is lost, and in the end the farm does what is new."""
        farm = self.make_farm()
        older = {"PYTHONPATH": str(unpack_before(farm.directory / "older"))}
        for name in ("alpha", "beta", "gamma"):
            farm.start(name, environment=older)
            farm.wait_serving(name)
        farm.wait_copies("gamma", 3)
        assert not any(self.version_of(farm, name) for name in farm.servers)
        load = self.make_load(farm)
        first = farm.first()
        order = [name for name in farm.servers if name != first] + [first]
        before = farm.config().farm.ca
        for number, name in enumerate(order):
            farm.sigterm(name)
            farm.wait_ended(name, 30)
            farm.start(name)
            farm.wait_serving(name)
            farm.wait_copies(name, 3)
            assert [self.version_of(farm, one) for one in order] == [at <= number for at in range(len(order))]
            if number == 0:
                # What takes all of them waits until all of them can.
                farm.ask(name, "ROTATE")
            assert number == 2 or farm.config().farm.ca == before
        farm.wait_for(lambda: farm.config().farm.ca != before, 30, "config.ini names another CA")
        assert farm.cli("ca").stdout.count("BEGIN CERTIFICATE") == 1
        self.check_load(farm, load)
