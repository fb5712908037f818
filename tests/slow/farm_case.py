"""What the tests on real processes share."""

from __future__ import annotations

import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.slow.load import Load
from tests.slow.real_farm import RealFarm


class FarmTestCase(SynchronousTestCase):
    """Makes farms that end with the test, however it ends."""

    def make_farm(self, *names: str, **settings: Any) -> RealFarm:
        """A farm in a folder of its own, of servers that serve."""
        farm = RealFarm(os.path.abspath(self.mktemp()), **settings)
        self.addCleanup(farm.close)
        farm.start_serving(*names)
        return farm

    def make_load(self, farm: RealFarm, **settings: Any) -> Load:
        """Clients at work on a farm, which stop with the test."""
        load = Load(farm, **settings)
        self.addCleanup(load.stopping.set)
        load.start()
        return load

    def check_load(self, farm: RealFarm, load: Load, *, logs: bool = True) -> None:
        """Nothing that was acknowledged is lost, on any of the servers that were asked.

        Nobody logged a fault either, but with `logs=False` that is not looked at.
        """
        load.stop()
        print(load)
        wrong = load.check()
        assert not wrong, "\n".join([*wrong, farm.tails()])
        for name, server in farm.servers.items() if logs else ():
            assert "Traceback" not in server.logged(), farm.tails([name])
