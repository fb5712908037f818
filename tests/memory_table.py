"""A whole table in the memory of one test, with the promises of `ITable` and switches for its failures."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from chunkfarm.errors import LimitExceeded
from chunkfarm.table.interface import (
    KEY_BYTES_MAX,
    OPERATIONS_MAX,
    TRANSACTION_BYTES_MAX,
    VALUE_BYTES_MAX,
    Batch,
    Compacted,
    Compare,
    Conflict,
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


@implementer(IWatch)
class MemoryWatch:
    """A watch of a `MemoryTable`."""

    def __init__(self, prefix: bytes, revision: int, backlog: list[Event]) -> None:
        self.prefix = prefix
        self._revision = revision
        self._events = list(backlog)
        self._waiting: Deferred[Batch] | None = None
        self._error: Exception | None = None

    def next(self) -> Deferred[Batch]:
        assert self._waiting is None, "one call at a time"
        if self._error is not None:
            return fail(self._error)
        if self._events:
            return succeed(self._take())
        self._waiting = Deferred(self._cancel)
        return self._waiting

    def close(self) -> None:
        self.end(TableClosed("this table is closed"))

    def add(self, events: list[Event], revision: int) -> None:
        """Tell of one committed transaction."""
        self._events += [event for event in events if event.key.startswith(self.prefix)]
        self._revision = revision
        if self._events and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(self._take())

    def beat(self, revision: int) -> None:
        """Tell of the revision, if nothing else is to be told."""
        self._revision = revision
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(self._take())

    def end(self, error: Exception) -> None:
        """Fail this and every later `next`."""
        if self._error is None:
            self._error = error
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.errback(self._error)

    def _take(self) -> Batch:
        events, self._events = tuple(self._events), []
        return Batch(self._revision, events)

    def _cancel(self, waiting: Deferred[Batch]) -> None:
        self._waiting = None


@implementer(ITable)
class MemoryTable:
    """Rows in a dict. All Deferreds have fired when they are returned, unless a switch says otherwise.

    `unavailable`: transactions and linearizable reads fail; stale reads go on. `silent`: they are never
    answered. `before_transact`: called with the operations before the compares are looked at, so that a
    test can let somebody else be quicker.
    """

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.revision = 0
        self.unavailable = False
        self.silent = False
        self.before_transact: Callable[[tuple[Operation, ...]], None] = lambda operations: None
        self.transactions: list[tuple[tuple[Compare, ...], tuple[Operation, ...]]] = []
        self._events: list[Event] = []
        self._first_kept = 1
        self._before = 0
        """The revision of the row that the last transaction changed first."""
        self._watches: list[MemoryWatch] = []

    def transact(self, compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> Deferred[int]:
        assert len(operations) <= OPERATIONS_MAX
        assert sum(len(one.key) + len(one.value if isinstance(one, Put) else b"") for one in operations) <= (
            TRANSACTION_BYTES_MAX
        )
        if self.silent:
            return Deferred()
        if self.unavailable:
            return fail(Unavailable("no majority of the masters answers"))
        self.before_transact(operations)
        self.transactions.append((compares, operations))
        compared = {compare.key: self.rows[compare.key] for compare in compares if compare.key in self.rows}
        if not all(self._holds(compare) for compare in compares):
            return fail(Conflict(tuple(compared[key] for key in sorted(compared))))
        return succeed(self._apply(operations))

    def replace(self, key: bytes, value: bytes, compares: tuple[Compare, ...] = ()) -> Deferred[Replaced]:
        done = self.transact(compares, (Put(key, value),))
        return done.addCallback(lambda revision: Replaced(revision, self._before))

    def put(self, key: bytes, value: bytes) -> int:
        """Put a row, as somebody else would."""
        return self._apply((Put(key, value),))

    def read(self, prefix: bytes, after: bytes = b"", limit: int = 1000, stale: bool = False) -> Deferred[Page]:
        if self.silent and not stale:
            return Deferred()
        if self.unavailable and not stale:
            return fail(Unavailable("no majority of the masters answers"))
        keys = sorted(key for key in self.rows if key.startswith(prefix) and key > after)
        return succeed(Page(self.revision, tuple(self.rows[key] for key in keys[:limit]), len(keys) > limit))

    def find(self, key: bytes, stale: bool = False) -> Deferred[Page]:
        if len(key) > KEY_BYTES_MAX:
            return fail(LimitExceeded(f"a key has at most {KEY_BYTES_MAX} bytes"))
        return self.read(key, b"", 1, stale).addCallback(of_one, key)

    def last_known(self, prefix: bytes, after: bytes = b"", limit: int = 1000) -> Deferred[Page]:
        return self.read(prefix, after, limit, stale=True)

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        if from_revision + 1 < self._first_kept:
            return fail(Compacted(self._first_kept))
        backlog = [event for event in self._events if event.revision > from_revision and event.key.startswith(prefix)]
        watch = MemoryWatch(prefix, self.revision, backlog)
        self._watches.append(watch)
        return succeed(watch)

    def beat(self) -> None:
        """Tell all watches how far the table is."""
        for watch in list(self._watches):
            watch.beat(self.revision)

    def compact(self) -> None:
        """Forget all changes so far: watches from before them fail with `Compacted`."""
        self._events = []
        self._first_kept = self.revision + 1

    def close(self) -> None:
        """End all watches, as a server does that stops."""
        for watch in self._watches:
            watch.end(TableClosed("this table is closed"))

    def _holds(self, compare: Compare) -> bool:
        row = self.rows.get(compare.key)
        revision = row.revision if row is not None else 0
        return {
            "==": revision == compare.revision,
            ">": revision > compare.revision,
            "<": revision < compare.revision,
        }[compare.relation]

    def _apply(self, operations: tuple[Operation, ...]) -> int:
        self.revision += 1
        there = self.rows.get(operations[0].key) if operations else None
        self._before = there.revision if there is not None else 0
        events = []
        for operation in operations:
            assert len(operation.key) <= KEY_BYTES_MAX
            if isinstance(operation, Put):
                assert len(operation.value) <= VALUE_BYTES_MAX
                self.rows[operation.key] = Row(operation.key, operation.value, self.revision)
                events.append(Event(self.revision, "PUT", operation.key, operation.value))
            elif self.rows.pop(operation.key, None) is not None:
                events.append(Event(self.revision, "DEL", operation.key, b""))
        self._events += events
        for watch in list(self._watches):
            watch.add(events, self.revision)
        return self.revision
