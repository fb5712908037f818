"""First starts where each machine has its own copy of a list that a person made, and of the join key."""

from __future__ import annotations

import random
import socket
import time
from functools import partial
from pathlib import Path

import pytest

from chunkfarm.config import read_config
from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")
REPETITIONS = 20
START_WITHIN = 0.3
"""Seconds in which all of them are started: about as long as a process needs to open its port."""
JOIN_KEY = "5a" * 32
CONFIG = "[farm]\nchunksize = 8M\nname = lab\n\n[servers]\n{rows}\n[server]\ndata = ./data\nhost = 127.0.0.1\n"


def machine(farm: RealFarm, name: str) -> Path:
    return farm.directory / f"machine-{name}" / "config.ini"


def make_copies(farm: RealFarm, names: tuple[str, ...], more: str = "") -> None:
    """What `chunkfarm init` writes, copied to each machine."""
    rows = "".join(f"{name} = 127.0.0.1 {farm.server(name).base}\n" for name in names) + more
    for name in names:
        config = machine(farm, name)
        config.parent.mkdir()
        config.write_text(CONFIG.format(rows=rows))
        write_key(config.parent, JOIN_KEY)


def write_key(directory: Path, key: str) -> None:
    path = directory / "farm.join"
    path.touch(0o600)
    path.write_text(key + "\n")


class OwnCopiesTests(FarmTestCase):
    def test_five_servers_that_start_within_300_ms(self) -> None:
        """Five machines start at random within 300 ms: they become one farm. Twenty times."""
        for repetition in range(REPETITIONS):
            farm = self.make_farm()
            make_copies(farm, NAMES)
            begun = time.monotonic()
            moments = sorted((random.uniform(0, START_WITHIN), name) for name in NAMES)
            for moment, name in moments:
                time.sleep(max(0.0, begun + moment - time.monotonic()))
                farm.start(name, config=machine(farm, name))
            farm.wait_serving(*NAMES, seconds=60)
            print(f"repetition {repetition}: all serve after {time.monotonic() - begun:.1f} s")
            self.check_is_one(farm)
            farm.kill9(*NAMES)
            farm.close()

    def check_is_one(self, farm: RealFarm) -> None:
        hellos = [farm.hello(name) for name in NAMES]
        assert len({hello.fields["farm"] for hello in hellos if hello is not None}) == 1, hellos
        assert None not in hellos
        assert len(list(farm.directory.glob("*/admin.key"))) == 1, "more than one server founded a farm"
        farm.wait_for(lambda: sorted(farm.states(NAMES[0])) == sorted(NAMES), 10, f"{NAMES[0]} has heard of all")
        for name in NAMES:
            assert "Traceback" not in farm.servers[name].logged(), farm.tails([name])

    def test_one_with_another_join_key(self) -> None:
        """A machine with another farm.join is waited for and named; with the right one there is one farm."""
        farm = self.make_farm()
        # Until the third answers or refuses nobody founds, so that both are there before anybody does.
        with socket.create_server(("127.0.0.1", 0)) as silent:
            third = f"ghost = 127.0.0.1 {silent.getsockname()[1] - 1}\n"
            make_copies(farm, ("alpha", "beta"), more=third)
            write_key(machine(farm, "beta").parent, "77" * 32)
            for name in ("alpha", "beta"):
                farm.start(name, config=machine(farm, name))
            for name, other in (("alpha", "beta"), ("beta", "alpha")):
                farm.wait_for(partial(self.names_key, farm, name, other), 20, f"{name} names the join key")
        time.sleep(2)
        for name in ("alpha", "beta"):
            assert not read_config(machine(farm, name)).farm.id
        write_key(machine(farm, "beta").parent, JOIN_KEY)
        farm.wait_serving("alpha", "beta")
        farm.wait_for(lambda: len(farm.rows("alpha")) == 2, 10, "alpha has heard of beta")
        assert len(list(farm.directory.glob("*/admin.key"))) == 1

    def names_key(self, farm: RealFarm, name: str, other: str) -> bool:
        """Whether a server says that it waits for the other one because of its join key."""
        hello = farm.hello(name)
        told = hello.waits.get(f"127.0.0.1:{farm.server(other).peer}", {}) if hello is not None else {}
        return "farm.join" in told.get("error", "")
