"""What the tests on real processes share."""

from __future__ import annotations

import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.slow.real_farm import RealFarm


class FarmTestCase(SynchronousTestCase):
    """Makes farms that end with the test, however it ends."""

    def make_farm(self, *names: str, **settings: Any) -> RealFarm:
        """A farm in a folder of its own, of servers that serve."""
        farm = RealFarm(os.path.abspath(self.mktemp()), **settings)
        self.addCleanup(farm.close)
        farm.start_serving(*names)
        return farm
