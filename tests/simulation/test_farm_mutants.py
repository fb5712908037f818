"""What the simulation of whole farms is good for: servers with a fault of their own are found out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.driver import Driver
from chunkfarm.table.embedded import EmbeddedTable
from chunkfarm.table.interface import Page
from chunkfarm.table.journal import Journal
from chunkfarm.table.watches import WatchHub
from tests.simulation.checks import Violation
from tests.simulation.farm import FarmSimulation, Options
from tests.simulation.linearizable import NotLinearizable

BUSY = Options(servers=3, spares=0, together=False, faults=0.4, slow=0.02, clients=4)


async def _read_at_home(self: EmbeddedTable, request: Any, secrets: bool = True) -> Page:
    """Without asking who leads now."""
    return await self._read_here(request, secrets)


def _never_full(self: Journal, full: bool) -> None:
    self._connection.execute("PRAGMA synchronous = NORMAL")


class MutantTests(SynchronousTestCase):
    """Each is found within a few histories."""

    def find(self, mutant: Callable[[], AbstractContextManager[Any]], *seeds: int) -> str:
        """What is said of the first history in which it shows."""
        for seed in seeds:
            try:
                with mutant():
                    FarmSimulation(seed, BUSY, seconds=20.0).run()
            except (Violation, NotLinearizable) as found:
                return str(found)
        raise AssertionError("nobody noticed")

    def test_a_disk_that_is_not_synchronized(self) -> None:
        """Votes and entries that a power cut takes away are missed."""
        found = self.find(lambda: patch.object(Journal, "_synchronous", _never_full), 7, 6, 4)
        assert "promises" in found

    def test_reads_that_ask_nobody(self) -> None:
        """A server that answers from its own rows alone shows old ones for new."""
        found = self.find(lambda: patch.object(EmbeddedTable, "_read_current", _read_at_home), 1, 2)
        assert found

    def test_a_watch_with_a_gap(self) -> None:
        """A server that keeps a change to itself is caught."""
        publish = WatchHub.publish

        def forgets(self: WatchHub, revision: int, changes: Any) -> None:
            publish(self, revision, [change for change in changes if change[0] % 7])

        found = self.find(lambda: patch.object(WatchHub, "publish", forgets), 1, 2)
        assert "watch" in found

    def test_promises_before_the_disk(self) -> None:
        """A server that says yes before it has written is caught at its first word."""
        save = Driver._save

        async def hasty(self: Driver, ready: Any) -> None:
            self._send(ready.messages)
            await save(self, ready)

        found = self.find(lambda: patch.object(Driver, "_save", hasty), 1)
        assert "promises" in found
