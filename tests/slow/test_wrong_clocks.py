"""Servers whose wall clock is hours off, or steps by hours while they run.

The clock is shifted by a small library that is compiled for it (`wall_clock.c`): libfaketime 0.9.10 also touches what
waits by other clocks, where it makes `clock_nanosleep` fail and threads hang.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from unittest import SkipTest

import pytest

from chunkfarm.model import parse_timestamp
from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).with_name("wall_clock.c")
HOURS = 2
STEP_SECONDS = 4.0
"""Between two steps: longer than the silences by which somebody is missed."""
GAP_SECONDS = 8.0
"""Without an acknowledged put; an election adds less, so it is looked for by who leads."""
SOME_PUTS = 10


def compile_library(folder: Path) -> Path:
    """The library, or the test is skipped."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SkipTest("cc, which compiles what shifts a clock, is not installed")
    library = folder / "wall_clock.so"
    done = subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], capture_output=True, text=True
    )
    if done.returncode:
        raise SkipTest(f"what shifts a clock cannot be compiled here: {done.stderr[-300:]}")
    return library


class WrongClockTests(FarmTestCase):
    def make_clocked(self, **hours: int) -> RealFarm:
        """Servers whose clocks differ from this machine's by so many hours, started one after the other."""
        farm = self.make_farm()
        self.library = compile_library(farm.directory)
        for name, offset in hours.items():
            self.set_clock(farm, name, offset)
            farm.start(name, environment=self.environment(farm, name))
            farm.wait_serving(name)
        farm.wait_copies(name, len(hours))
        return farm

    def environment(self, farm: RealFarm, name: str) -> Mapping[str, str]:
        return {"LD_PRELOAD": str(self.library), "WALL_CLOCK_SHIFT": str(self.clock_file(farm, name))}

    def clock_file(self, farm: RealFarm, name: str) -> Path:
        return farm.directory / f"{name}.clock"

    def set_clock(self, farm: RealFarm, name: str, hours: int) -> None:
        """From now on the process sees that; its mapping of the file stays the same."""
        descriptor = os.open(self.clock_file(farm, name), os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.pwrite(descriptor, struct.pack("q", hours * 3600), 0)
        finally:
            os.close(descriptor)

    def joined(self, farm: RealFarm, name: str) -> list[str]:
        """The join times as the rows stand, oldest server first."""
        return [row["joined"] for row in farm.rows(name)]

    def happened(self, farm: RealFarm, **hours: int) -> list[str]:
        """Who joined and who went down, as `history` has it, which also tells how far each clock is off."""
        told = json.loads(farm.cli("history", "--json").stdout)
        ahead = {one["name"]: round(one["clock_ahead_ms"] / 3_600_000) for one in told["servers"]}
        assert ahead == hours, told["servers"]
        times = [parse_timestamp(one["time"]) for one in told["events"]]
        assert all(abs(moment / 1000 - time.time()) < 600 for moment in times), told["events"]
        return [f"{one['name']} {one['kind']}" for one in told["events"] if one["kind"] in ("joined", "down")]

    def test_steps_while_it_runs(self) -> None:
        """The clock of the first, and then of another, steps two hours forth and back: nobody notices."""
        farm = self.make_clocked(alpha=0, beta=0, gamma=0)
        load = self.make_load(farm, timeout=10.0)
        load.wait_for_puts(SOME_PUTS, 30)
        before, states = farm.rows("beta"), farm.states("beta")
        for name, hours in (("alpha", HOURS), ("alpha", -HOURS), ("beta", -HOURS), ("beta", HOURS)):
            self.set_clock(farm, name, hours)
            ended = time.monotonic() + STEP_SECONDS
            while time.monotonic() < ended:
                assert farm.states("gamma") == states
                time.sleep(0.3)
        assert farm.first() == "alpha"
        keep = ("id", "joined", "seniority", "role")
        after = farm.rows("beta")
        assert [[row[one] for one in keep] for row in after] == [[row[one] for one in keep] for row in before]
        assert load.longest_gap() < GAP_SECONDS, load
        in_order = ["alpha joined", "beta joined", "gamma joined"]
        assert self.happened(farm, alpha=-HOURS, beta=HOURS, gamma=0) == in_order
        self.check_load(farm, load)

    def test_hours_off_from_the_start(self) -> None:
        """Servers hours ahead and behind join, and come back: join times never decrease along the line."""
        farm = self.make_clocked(alpha=HOURS, beta=-HOURS, gamma=0)
        joined = self.joined(farm, "gamma")
        assert joined == sorted(joined) and len(joined) == 3
        load = self.make_load(farm, timeout=10.0)
        load.wait_for_puts(SOME_PUTS, 30)
        for name in ("beta", "alpha"):
            farm.kill9(name)
            farm.wait_for(lambda n=name: farm.states("gamma").get(n) == "down", 15, f"{name} is down")  # type: ignore[misc]
            farm.start(name, environment=self.environment(farm, name))
            farm.wait_serving(name)
            load.wait_for_puts(SOME_PUTS, 15)
        assert list(farm.states("gamma")) == ["gamma", "beta", "alpha"]
        joined = self.joined(farm, "gamma")
        assert joined == sorted(joined)
        assert self.happened(farm, alpha=HOURS, beta=-HOURS, gamma=0) == [
            "alpha joined",
            "beta joined",
            "gamma joined",
            "beta down",
            "beta joined",
            "alpha down",
            "alpha joined",
        ]
        self.check_load(farm, load)
