"""The table as a farm of chunks needs it: one linearizable history, and servers that hear of it at different times.

How the table comes to agree is simulated elsewhere. Here a transaction takes effect at one moment on its way, its
answer may be lost, nobody may be there to answer for a while, and each server's watches run behind as far as that
server's lag says.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.table.interface import (
    Batch,
    Compare,
    Conflict,
    Delete,
    Event,
    ITable,
    IWatch,
    Operation,
    Page,
    Put,
    Replaced,
    Row,
    TableClosed,
    Unavailable,
    of_one,
)
from tests.simulation.world import Process, World

T = TypeVar("T")

ANSWER_SECONDS = (0.001, 0.005, 0.02)
"""One way to the first and back is twice one of these."""
GIVES_UP_SECONDS = 3.0
"""After which a server that finds no first says so."""
LOST_ANSWERS = 0.03
"""Of all transactions: the first has done it, or not, and ends before it can say so."""


class Table:
    """All rows, and every change since the beginning. `on_change` hears of each transaction that took effect."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random: Random = world.random("table")
        self.rows: dict[bytes, Row] = {}
        self.history: list[tuple[Event, ...]] = []
        """The changes of revision 1, 2, ..."""
        self.answers_from = 0.0
        """Until then nobody leads."""
        self.loses_answers = True
        self.on_change: Callable[[tuple[Event, ...]], None] = lambda events: None
        self.waiting: dict[_Watch, None] = {}

    @property
    def revision(self) -> int:
        return len(self.history)

    @property
    def leads(self) -> bool:
        """Whether there is a first now."""
        return self.world.now >= self.answers_from

    def apply(self, compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> int:
        """Do all of it or raise `Conflict`."""
        if not all(map(self._holds, compares)):
            raise Conflict(tuple(self.rows[compare.key] for compare in compares if compare.key in self.rows))
        revision = self.revision + 1
        events = []
        for operation in operations:
            if isinstance(operation, Put):
                self.rows[operation.key] = Row(operation.key, operation.value, revision)
                events.append(Event(revision, "PUT", operation.key, operation.value))
            elif self.rows.pop(operation.key, None) is not None:
                events.append(Event(revision, "DEL", operation.key, b""))
        self.history.append(tuple(events))
        self.on_change(tuple(events))
        for watch in list(self.waiting):
            watch.moved()
        return revision

    def put(self, key: bytes, value: bytes) -> int:
        """Put a row, as the first does."""
        return self.apply((), (Put(key, value),))

    def delete(self, key: bytes) -> int:
        return self.apply((), (Delete(key),))

    def page(self, prefix: bytes, after: bytes, limit: int) -> Page:
        keys = sorted(key for key in self.rows if key.startswith(prefix) and key > after)
        return Page(self.revision, tuple(self.rows[key] for key in keys[:limit]), len(keys) > limit)

    def _holds(self, compare: Compare) -> bool:
        row = self.rows.get(compare.key)
        revision = row.revision if row is not None else 0
        return {"==": revision == compare.revision, ">": revision > compare.revision}.get(
            compare.relation, revision < compare.revision
        )


@implementer(ITable)
class ServerTable:
    """One process's way to the table. `lag` gives the seconds by which its watches are behind."""

    def __init__(self, table: Table, process: Process, lag: Callable[[], float]) -> None:
        self._table = table
        self._process = process
        self.lag = lag

    def transact(self, compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> Deferred[int]:
        return self._change(lambda: self._table.apply(compares, operations))

    def replace(self, key: bytes, value: bytes, compares: tuple[Compare, ...] = ()) -> Deferred[Replaced]:
        def replace() -> Replaced:
            before = self._table.rows.get(key)
            revision = self._table.apply(compares, (Put(key, value),))
            return Replaced(revision, before.revision if before is not None else 0)

        return self._change(replace)

    def _change(self, change: Callable[[], T]) -> Deferred[T]:
        lost = self._table.loses_answers and self._table.random.random() < LOST_ANSWERS
        happens = not lost or self._table.random.random() < 0.5

        def work() -> T:
            if not lost:
                return change()
            if happens:
                change()
            raise Unavailable("the first has ended meanwhile")

        return self._ask(work)

    def read(self, prefix: bytes, after: bytes = b"", limit: int = 1000, stale: bool = False) -> Deferred[Page]:
        if stale:
            # How old rows mislead nobody is not asked here: a guess that is right costs nothing.
            return succeed(self._table.page(prefix, after, limit))
        return self._ask(lambda: self._table.page(prefix, after, limit))

    def find(self, key: bytes, stale: bool = False) -> Deferred[Page]:
        return self.read(key, limit=1, stale=stale).addCallback(of_one, key)

    def last_known(self, prefix: bytes, after: bytes = b"", limit: int = 1000) -> Deferred[Page]:
        return self.read(prefix, after, limit, stale=True)

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        return succeed(_Watch(self._table, self._process, self.lag, prefix, from_revision))

    def _ask(self, work: Callable[[], T]) -> Deferred[T]:
        answer: Deferred[T] = Deferred(lambda _: None)
        world, random = self._table.world, self._table.random

        def give(result: object) -> None:
            if not answer.called:
                answer.callback(result)  # type: ignore[arg-type]

        def arrive() -> None:
            if not self._table.leads:
                self._process.at(GIVES_UP_SECONDS, give, Failure(Unavailable("nobody leads")))
                return
            try:
                result: object = work()
            except (Conflict, Unavailable):
                result = Failure()
            self._process.at(random.choice(ANSWER_SECONDS), give, result)

        if not self._process.alive:
            return fail(TableClosed("this process has ended"))
        # What is on its way arrives, also if the sender ends meanwhile.
        world.at(random.choice(ANSWER_SECONDS), None, arrive)
        return answer


@implementer(IWatch)
@define(eq=False)
class _Watch:
    """Gives what has happened by the time that it is late."""

    table: Table
    process: Process
    lag: Callable[[], float]
    prefix: bytes
    revision: int
    _waiting: Deferred[Batch] | None = field(default=None, init=False)
    _coming: bool = field(default=False, init=False)

    def next(self) -> Deferred[Batch]:
        assert self._waiting is None, "one call at a time"
        self._waiting = Deferred(self._cancelled)
        waiting = self._waiting
        self.table.waiting[self] = None
        if self.table.revision > self.revision:
            self.moved()
        return waiting

    def moved(self) -> None:
        """The table has a revision that was not given yet."""
        if not self.process.alive:
            self.table.waiting.pop(self, None)
        elif self._waiting is not None and not self._coming:
            self._coming = True
            self.process.at(self.lag(), self._give, self.table.revision)

    def close(self) -> None:
        self.table.waiting.pop(self, None)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called and self.process.alive:
            waiting.errback(TableClosed("the watch was closed"))

    def _cancelled(self, waiting: Deferred[Batch]) -> None:
        self._waiting = None

    def _give(self, revision: int) -> None:
        self._coming = False
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        self.table.waiting.pop(self, None)
        # As it was when the message was sent: what has happened since comes with the next one.
        changes = self.table.history[self.revision : revision]
        events = tuple(event for batch in changes for event in batch if event.key.startswith(self.prefix))
        self.revision = revision
        waiting.callback(Batch(revision, events))
