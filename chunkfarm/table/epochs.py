"""The farm's epoch: a row whose revision says how old a promise to keep a chunk may be.

A commit relies on what holders have said, and so it names the epoch that it knew of before it asked them: its row is
refused once the epoch has moved on. A holder that is about to give a chunk up says no to whoever asks from then on, and
waits until the epoch has moved on. What relied on an earlier yes then stands in the table, or never will. So nothing in
this depends on how fast anybody's clock goes: the first only sees to it that the epoch does move on now and then.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chunkfarm.model import EPOCH_KEY, FarmOptions
from chunkfarm.table.interface import Compare, Conflict, ITable, Page, Put

PARTS_OF_GRACE = 4
"""The epoch moves on so often within `collect_grace`: a chunk is given up at most that much later than it could be, and
a farm at rest has four more changes of the table a day."""
INTERVAL_MIN = 1.0
"""Seconds between two epochs at least: a commit that takes longer than that asks the holders again."""


def in_epoch(epoch: int) -> Compare:
    """What a transaction compares that relies on what holders said after this was known to be the epoch (0: none)."""
    return Compare(EPOCH_KEY, "==", epoch)


def read_epoch(table: ITable) -> Deferred[int]:
    """The epoch as it is now, linearizable; 0 before the first one. Fails with `TableError`."""

    def revision(page: Page) -> int:
        return page.rows[0].revision if page.rows else 0

    return table.find(EPOCH_KEY).addCallback(revision)


@define(eq=False)
class Epochs:
    """Moves the epoch on, on the server that leads. `known` is the epoch as this server's roster has it."""

    _log = Logger()

    _table: ITable
    _known: Callable[[], int]
    _options: Callable[[], FarmOptions]
    _seen: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    def begin(self, now: float) -> None:
        """This server leads from now on: nothing that came before counts, since another clock has counted it."""
        self._seen, self._since = 0, now

    def turn(self, now: float) -> Deferred[None]:
        """Move the epoch on if its time is over; `now` is on the monotonic clock. Fails with `TableError`."""
        return Deferred.fromCoroutine(self._turn(now))

    async def _turn(self, now: float) -> None:
        epoch = self._known()
        if epoch > self._seen:
            self._seen, self._since = epoch, now
        if now - self._since < max(INTERVAL_MIN, self._options().collect_grace / PARTS_OF_GRACE):
            return
        try:
            # The value says nothing: every put of the row gives it a new revision.
            self._seen = await self._table.transact((in_epoch(epoch),), (Put(EPOCH_KEY, b"{}"),))
        except Conflict:
            self._log.debug("The epoch has moved on already, and this server is about to hear of it.")
        self._since = now
