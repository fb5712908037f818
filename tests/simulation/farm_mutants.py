"""Whole servers with one fault each. A simulation that lets one of them live checks nothing.

Each changes one function of the product while a history is played. They stand in `FARM_MUTANTS` with their weather, the
seed of a history that catches them, and the rule that they break then.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from attrs import frozen

from chunkfarm import by_hand
from chunkfarm.history import History
from chunkfarm.table.driver import Driver
from chunkfarm.table.interface import Row
from chunkfarm.table.journal import Journal
from chunkfarm.table.leadership import Leadership
from chunkfarm.table.own_rows import OwnRows
from chunkfarm.table.recent_rows import RecentRows
from chunkfarm.table.watches import WatchHub
from tests.simulation.divided import LineSimulation
from tests.simulation.divided_stories import away_from_both, terms_of_the_lost
from tests.simulation.farm import FarmSimulation, Options

BUSY = Options(servers=3, spares=0, together=False, faults=0.4, slow=0.02, clients=4)
BUSY_SECONDS = 20.0
CALM = Options(servers=3, spares=0, together=False, faults=0.1, slow=0.0, clients=2)
CALM_SECONDS = 30.0
DIVIDED_SECONDS = 40.0

Mutate = Callable[[], AbstractContextManager[Any]]


def _never_full() -> AbstractContextManager[Any]:
    """A disk is not told to synchronize what was promised."""

    def normal(self: Journal, full: bool) -> None:
        self._connection.execute("PRAGMA synchronous = NORMAL")

    return patch.object(Journal, "_synchronous", normal)


def _reads_at_home() -> AbstractContextManager[Any]:
    """A server answers reads from its own rows alone, without asking who leads now."""

    return patch.object(OwnRows, "read_current", OwnRows.read)


def _keeps_old_rows() -> AbstractContextManager[Any]:
    """A row that is in memory stays as it was when it was asked for."""
    keep = RecentRows._keep

    def keeps(self: RecentRows, key: bytes, row: Row | None, revision: int) -> None:
        if key not in self._rows:
            keep(self, key, row, revision)

    return patch.object(RecentRows, "_keep", keeps)


def _watches_with_a_gap() -> AbstractContextManager[Any]:
    """A server keeps one change in seven to itself."""
    publish = WatchHub.publish

    def forgets(self: WatchHub, revision: int, changes: Any) -> None:
        publish(self, revision, [change for change in changes if change[0] % 7])

    return patch.object(WatchHub, "publish", forgets)


def _promises_early() -> AbstractContextManager[Any]:
    """A server says yes before it has written."""
    save = Driver._save

    async def hasty(self: Driver, ready: Any) -> None:
        self._send(ready.messages)
        await save(self, ready)

    return patch.object(Driver, "_save", hasty)


def _needs_everybody() -> AbstractContextManager[Any]:
    """A first gives up as soon as any voter is silent, and so does the next one."""
    tick = Leadership.tick

    def anxious(self: Leadership) -> bool:
        voters = self._state.configuration.voters
        return tick(self) and all(one.recently_active for id, one in self.progress.items() if id in voters)

    return patch.object(Leadership, "tick", anxious)


def _learns_nothing() -> AbstractContextManager[Any]:
    """A server of a line that was left goes on as before when it meets the one that goes on."""

    async def learn(self: History, told: Any) -> None:
        return None

    return patch.object(History, "_learn", learn)


def _learns_whatever_it_had() -> AbstractContextManager[Any]:
    """A server learns the line that goes on although that lacks what it has committed."""

    async def end(self: History, told: Any, verdict: Any) -> None:
        await self._learn(told)

    return patch.object(History, "_end", end)


def _goes_on_beside_the_stopped() -> AbstractContextManager[Any]:
    """Who meets one that took over and has stopped goes on without what that one acknowledged."""
    return patch.object(History, "_wait_for_choice", lambda self: None)


def _forced_nearby() -> AbstractContextManager[Any]:
    """A takeover by hand does not leap ahead in terms, so a lost majority may come to a term of the new line."""
    return patch.object(by_hand, "TERM_LEAP", 0)


@frozen
class FarmMutant:
    """One fault of whole servers."""

    kind: str
    mutate: Mutate
    history: Callable[[int], object]
    """Plays a seed."""
    seed: int
    rule: str

    def play(self, seed: int) -> None:
        """One history with this fault."""
        with self.mutate():
            self.history(seed)


def _busy(seed: int) -> None:
    FarmSimulation(seed, BUSY, BUSY_SECONDS).run()


def _calm(seed: int) -> None:
    FarmSimulation(seed, CALM, CALM_SECONDS).run()


def _divided(seed: int) -> None:
    LineSimulation(seed, DIVIDED_SECONDS).run()


FARM_MUTANTS: dict[str, FarmMutant] = {
    "farm-not-synchronized": FarmMutant("farm", _never_full, _busy, 4, "promises"),
    "farm-promises-early": FarmMutant("farm", _promises_early, _busy, 1, "promises"),
    "farm-reads-at-home": FarmMutant("farm", _reads_at_home, _busy, 2, "linearizable"),
    "farm-keeps-old-rows": FarmMutant("farm", _keeps_old_rows, _busy, 1, "linearizable"),
    "farm-watches-with-a-gap": FarmMutant("farm", _watches_with_a_gap, _busy, 1, "watch"),
    "farm-needs-everybody": FarmMutant("farm", _needs_everybody, _calm, 2, "takeover storm"),
    "line-learns-nothing": FarmMutant("divided", _learns_nothing, _divided, 3, "liveness"),
    "line-learns-whatever-it-had": FarmMutant("divided", _learns_whatever_it_had, _divided, 2, "kept"),
    "line-goes-on-beside-stopped": FarmMutant("divided", _goes_on_beside_the_stopped, away_from_both, 1, "divided"),
    "line-forced-nearby": FarmMutant("divided", _forced_nearby, terms_of_the_lost, 1, "log matching"),
}
