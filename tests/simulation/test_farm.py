"""Whole farms: a few seeds, and that a seed is always the same history."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config_text import parse_config
from chunkfarm.exports import keeper, maker
from chunkfarm.exports.form import EXPORTS_KEPT
from chunkfarm.table.journal import Journal
from chunkfarm.table.records import Entry
from chunkfarm.table.rows import Applied
from tests.simulation.checks import Violation
from tests.simulation.farm import FarmSimulation, Options
from tests.simulation.linearizable import Done
from tests.simulation.users import PREFIX

ROOT = Path(__file__).parents[2]
DIGEST = """
from tests.simulation.test_farm import digest_of
print(digest_of(4), digest_of(5))
"""
SHORT = 12.0
"""Seconds of faults, so that a few histories fit into the quick tests."""


def digest_of(seed: int) -> str:
    """What a history is known by."""
    simulation = FarmSimulation(seed, seconds=8.0)
    simulation.run()
    return simulation.world.digest


class WholeFarmTests(SynchronousTestCase):
    """Servers as twistd runs them, on simulated machines."""

    def test_random_histories(self) -> None:
        """Whatever goes wrong, nothing acknowledged is lost, and the farm serves again."""
        for seed in (2, 3):
            simulation = FarmSimulation(seed, seconds=SHORT)
            simulation.run()
            assert simulation.users.history

    def test_what_config_ini_lists(self) -> None:
        """A config.ini that lists the servers in another order than the table's, or not all of them, is found."""
        case = self
        looked = []

        class Looking(FarmSimulation):
            def finished(self) -> None:
                for server in self.servers:
                    config = parse_config(server.config.read_text(), "config.ini", {}, server.name)
                    for wrong in (config.servers[::-1], config.servers[:2], ()):
                        with case.assertRaisesRegex(Violation, "lists .* and the table has"):
                            self._look_at_list(evolve(config, servers=wrong), server)
                        looked.append(server.name)
                super().finished()

        options = Options(servers=3, spares=0, together=True, faults=1e-9, slow=0.0, clients=1)
        Looking(7, options, seconds=2.0).run()
        assert len(looked) == 9

    def test_rows_that_no_log_explains(self) -> None:
        """A server whose rows are not what its log makes of them is found, also where nobody asks it for them."""
        apply = Journal._apply

        def loses(self: Journal, entries: list[Entry]) -> tuple[Applied, ...]:
            applied = apply(self, entries)
            if "/s2/" in self.path:
                self._connection.execute("DELETE FROM rows WHERE key = ?", (PREFIX + b"proof",))
            return applied

        options = Options(servers=3, spares=0, together=True, faults=1e-9, slow=0.0, clients=1)
        with patch.object(Journal, "_apply", loses), self.assertRaisesRegex(Violation, "replay: the rows of s2"):
            FarmSimulation(7, options, seconds=5.0).run()

    def test_a_quiet_farm(self) -> None:
        """Three servers that start together are one farm within seconds, and clients write, read and watch."""
        options = Options(servers=3, spares=0, together=True, faults=1e-9, slow=0.0, clients=3)
        simulation = FarmSimulation(7, options, seconds=20.0)
        simulation.run()
        assert simulation.healed_within < 2
        assert len([call for call in simulation.users.history if isinstance(call.outcome, Done)]) > 10
        assert simulation.users.watched > 10
        assert simulation.checks.replayed
        assert simulation.lists_compared >= 3

    def test_exports(self) -> None:
        """Whatever happens to servers, names are exported by whoever leads, and come to be whole on all of them."""
        kept: dict[str, list[tuple[int, int]]] = {}

        class Exporting(FarmSimulation):
            def finished(self) -> None:
                for server in self.servers:
                    assert server.parts is not None
                    here = server.parts.chunks.export_keeper
                    kept[server.id] = [(one.revision, here.missing) for one in here.kept]
                super().finished()

        options = Options(servers=3, spares=0, together=True, faults=0.2, slow=0.0, clients=2)
        with (
            patch.multiple(maker, FIRST_AFTER=1.0, INTERVAL=3.0, RETRY_AFTER=1.0, LOOK_INTERVAL=0.5),
            patch.multiple(keeper, START_SECONDS=1.0, AGAIN_SECONDS=2.0),
        ):
            Exporting(11, options, seconds=8.0).run()
        assert len(kept) == 3
        for exports in kept.values():
            assert len(exports) == EXPORTS_KEPT and all(missing == 0 for _, missing in exports), kept

    def test_a_seed_is_one_history(self) -> None:
        """A seed fails again: another process, in which sets have another order, tells the same to the last message."""
        hash_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", DIGEST]
        told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
        # The CA changes in the second one.
        assert told.stdout.decode().split() == [digest_of(4), digest_of(5)]
