"""Hundreds of slow and a thousand idle connections at once: others are served, and those are closed."""

from __future__ import annotations

import resource
import statistics

import pytest

from benchmarks import abuse
from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

SECONDS = 3.0
"""In place of the times in [limits]."""
LAST = 25.0
"""Seconds after which nobody may be left. A slow reader is looked at twice: at first the kernel takes what is sent.
Twice what it takes where a machine has ten other things to do."""
LIMITS = ("head_time", "body_rate", "answer_rate", "idle")
DESCRIPTORS = 4096
"""That the process which abuses needs, and the server."""


class AbuseTests(FarmTestCase):
    def test_slow_and_idle_connections(self) -> None:
        """They are closed by their deadlines, memory and descriptors stay bounded, and a client hardly notices them.

        `python -m benchmarks.abuse` measures how little on a machine that does nothing else.
        """
        if (hard := resource.getrlimit(resource.RLIMIT_NOFILE)[1]) < DESCRIPTORS:
            self.skipTest(f"a process may open {hard} files here, and {DESCRIPTORS} are needed")
        farm = self.make_farm("alpha", replicas=1, server=abuse.limits(SECONDS))
        found = abuse.run(farm, LAST)
        abuse.show(found)
        for kind, held in found.held.items():
            assert held.opened + held.refused >= abuse.LEAST[kind], kind
            assert len(held.closed) == held.opened, kind
            assert max(held.closed) < LAST, kind
        assert max(found.memory) - found.memory[0] < 512 << 20
        assert max(found.descriptors) < 1800
        assert found.descriptors[-1] < found.descriptors[0] + 50
        assert statistics.median(found.during) < 2 * abuse.percentile(found.before, 0.99)
        assert "Traceback" not in farm.servers["alpha"].logged()
        if self.not_counted(farm):
            # On a busy machine so many handshakes take longer than they may, and all end by that: a few show the rest.
            abuse.show(abuse.run(farm, LAST, slow=3, idle=4))
        assert not self.not_counted(farm)

    def not_counted(self, farm: RealFarm) -> set[str]:
        """The limits by which the metrics know of no link that was ended."""
        metrics = farm.curl(f"{farm.servers['alpha'].url}/-/metrics").stdout.decode()
        return {limit for limit in LIMITS if f'chunkfarm_limited_total{{limit="{limit}",port="files"}}' not in metrics}
