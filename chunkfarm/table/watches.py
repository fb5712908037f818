"""Watches on a server that holds rows: everybody reads one shared run of recent changes, each at their own pace.

A watch is a position, not a queue: what is recent is in memory once for all watches, what is older is read from
the journal's log when its turn comes, and what the log no longer holds ends the watch with `Compacted`. So a
slow watcher costs no memory and delays nobody.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from chunkfarm.table.interface import Batch, Compacted, Event, IWatch, TableClosed, TableError, Unavailable

RECENT_EVENTS_MAX = 8_192
"""Changes kept in memory: seconds of the busiest farm, so that who keeps up never needs the disk."""
RECENT_BYTES_MAX = 8 * 1024 * 1024
"""The same, for large rows."""

History = Callable[[bytes, int, int], Deferred[tuple[tuple[Event, ...], int]]]
"""(prefix, after, until) -> changes in (after, until] as far as it looked, and how far that is."""


class WatchHub:
    """All watches of this server. `revision` is that of the rows; `history` reads what memory no longer has.

    `on_idle` is called when the last watch has ended.
    """

    def __init__(self, revision: int, history: History, on_idle: Callable[[], None] = lambda: None) -> None:
        self.revision = revision
        self.floor = revision
        """Changes after this revision are in memory."""
        self.history = history
        self.untold = False
        """Whether a watch has passed over changes of others without a word: at rest nobody is looked at."""
        self._on_idle = on_idle
        self._closed = False
        self._watches: dict[Watch, None] = {}
        """In the order in which they began, which is that in which they are told."""
        self._recent: list[tuple[int, tuple[Event, ...]]] = []
        self._count = 0
        self._bytes = 0

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        """As `ITable.watch`."""
        if self._closed:
            return fail(TableClosed("this server's part of the table is closed"))
        return Deferred.fromCoroutine(self._watch(prefix, from_revision))

    async def _watch(self, prefix: bytes, from_revision: int) -> Watch:
        watch = Watch(self, prefix, from_revision)
        self._watches[watch] = None
        try:
            if from_revision < self.floor:
                # Looks only for whether the log still reaches back that far.
                await self.history(prefix, from_revision, from_revision)
        except CancelledError:
            watch.close()
            raise
        except Exception as error:
            raise watch.end(error) from None
        return watch

    def publish(self, revision: int, changes: list[tuple[int, tuple[Event, ...]]]) -> None:
        """The rows are at `revision` now, by these changes (each with its revision, in order)."""
        self.revision = revision
        for number, events in changes:
            self._recent.append((number, events))
            self._count += len(events)
            self._bytes += sum(len(event.key) + len(event.value) for event in events)
        for watch in list(self._watches):
            watch.wake(beat=False)
        # Only now: who waits has kept up, and must not find that a single large step left memory behind it.
        self._trim()

    def reach_back(self, floor: int, changes: list[tuple[int, tuple[Event, ...]]]) -> None:
        """Take in older changes: all those after `floor`, up to what memory has had until now."""
        self._recent[:0] = changes
        self.floor = floor
        for _, events in changes:
            self._count += len(events)
            self._bytes += sum(len(event.key) + len(event.value) for event in events)

    @property
    def idle(self) -> bool:
        """Whether nobody watches."""
        return not self._watches

    def beat(self) -> None:
        """Let those know of the revision for whom nothing changed; called at a steady, leisurely pace."""
        if self.untold:
            self.untold = False
            for watch in list(self._watches):
                watch.wake(beat=True)

    def replace(self, revision: int) -> None:
        """The rows were replaced as a whole (by a snapshot), and nobody can say by which changes."""
        self.end_all(Compacted(revision + 1))
        self.revision = self.floor = revision
        self._recent, self._count, self._bytes = [], 0, 0

    def end_all(self, error: TableError) -> None:
        """End every watch with `error`."""
        for watch in list(self._watches):
            watch.end(error)

    def close(self) -> None:
        """End every watch, and begin no new one."""
        self._closed = True
        self.end_all(TableClosed("this server's part of the table is closed"))

    def recent(self, prefix: bytes, after: int) -> tuple[Event, ...]:
        """Changes under `prefix` after a revision that is not below the floor."""
        start = bisect_right(self._recent, after, key=lambda change: change[0])
        return tuple(event for _, events in self._recent[start:] for event in events if event.key.startswith(prefix))

    def forget(self, watch: Watch) -> None:
        self._watches.pop(watch, None)
        if not self._watches:
            self._on_idle()

    def _trim(self) -> None:
        """Drop the older half when there is too much, so that dropping is rare."""
        if self._count <= RECENT_EVENTS_MAX and self._bytes <= RECENT_BYTES_MAX:
            return
        drop = 0
        while self._count > RECENT_EVENTS_MAX // 2 or self._bytes > RECENT_BYTES_MAX // 2:
            number, events = self._recent[drop]
            self._count -= len(events)
            self._bytes -= sum(len(event.key) + len(event.value) for event in events)
            self.floor = number
            drop += 1
        del self._recent[:drop]


@implementer(IWatch)
class Watch:
    """One watch: how far its owner has been told."""

    _log = Logger()

    def __init__(self, hub: WatchHub, prefix: bytes, revision: int) -> None:
        self._hub = hub
        self._prefix = prefix
        self._position = revision
        """Everything up to here has been given, or concerns others."""
        self._told = revision
        self._error: Exception | None = None
        self._reading = False
        self._waiting: Deferred[Batch] | None = None

    def next(self) -> Deferred[Batch]:
        assert self._waiting is None and not self._reading, "one call at a time"
        if self._error is not None:
            return fail(self._error)
        batch = self._take()
        if batch is not None:
            return succeed(batch)
        if self._position < self._hub.floor:
            self._reading = True
            return Deferred.fromCoroutine(self._read())
        return self._wait()

    def close(self) -> None:
        self.end(TableClosed("the watch is closed"))

    def end(self, error: Exception) -> Exception:
        """Stop with an error that every later `next` gives; returns the error as the watcher sees it."""
        if self._error is None:
            if not isinstance(error, TableError):
                self._log.error("A watch ends, because the journal cannot be read: {error}", error=error)
                error = Unavailable("the changes cannot be read here")
            self._error = error
            self._hub.forget(self)
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                waiting.errback(error)
        return self._error

    def wake(self, beat: bool) -> None:
        """There may be something new; with `beat`, a revision alone is worth telling."""
        if self._waiting is None:
            self._hub.untold = True
            return
        batch = self._take()
        if batch is None and beat and self._told < self._position:
            self._told = self._position
            batch = Batch(self._position, ())
        if batch is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(batch)

    def _take(self) -> Batch | None:
        """What memory has for this watch; None if there is nothing (or memory does not reach back far enough)."""
        if not self._hub.floor <= self._position < self._hub.revision:
            return None
        events = self._hub.recent(self._prefix, self._position)
        self._position = self._hub.revision
        if events:
            return self._batch(events)
        self._hub.untold = True
        return None

    def _batch(self, events: tuple[Event, ...]) -> Batch:
        self._told = self._position
        return Batch(self._position, events)

    def _wait(self) -> Deferred[Batch]:
        def forget(_: Deferred[Batch]) -> None:
            self._waiting = None

        self._waiting = Deferred(forget)
        return self._waiting

    async def _read(self) -> Batch:
        """Read on in the log until there is something for this watch, or memory takes over."""
        try:
            while self._position < self._hub.floor:
                events, reached = await self._hub.history(self._prefix, self._position, self._hub.revision)
                if self._error is not None:
                    raise self._error
                self._position = reached
                self._hub.untold = True
                if events:
                    return self._batch(events)
            batch = self._take()
            if batch is not None:
                return batch
        except CancelledError:
            raise
        except Exception as error:
            raise self.end(error) from None
        finally:
            self._reading = False
        return await self._wait()
