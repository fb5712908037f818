"""A watch of the table over a link of the line protocol."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from chunkfarm.errors import FarmError
from chunkfarm.links.rows import EventReader
from chunkfarm.table.interface import Batch, Compacted, Event, IWatch, TableClosed, Unavailable

if TYPE_CHECKING:
    from chunkfarm.links.lines import LineClient

EVENTS_WAITING_MAX = 10_000
"""Events that wait for a `next` before reading pauses; then the server's own limit decides."""

_COMPACTED = re.compile(r"changes before revision ([0-9]{1,18}) ")


def compacted(error: FarmError) -> Compacted | None:
    """The table's error, if that is what the server said."""
    match = _COMPACTED.match(error.sentence) if error.code == "conflict" else None
    return Compacted(int(match[1])) if match is not None else None


@implementer(IWatch)
class LineWatch:
    """A watch over a link. It ends with the link, and `close` leaves the link open."""

    def __init__(self, client: LineClient) -> None:
        self._client = client
        self._reader = EventReader(0)
        self._events: list[Event] = []
        self._revision: int | None = None
        self._waiting: Deferred[Batch] | None = None
        self._error: Exception | None = None
        self._holds = False

    def next(self) -> Deferred[Batch]:
        assert self._waiting is None, "one call at a time"
        if self._revision is not None:
            batch = self._take()
            if self._holds:
                self._holds = False
                self._client.release_reading()
            return succeed(batch)
        if self._error is not None:
            return fail(self._error)

        def cancel(_: Deferred[Batch]) -> None:
            self._waiting = None

        self._waiting = Deferred(cancel)
        return self._waiting

    def close(self) -> None:
        self._client.end_watch(self)
        self._end(TableClosed("this watch was closed"))

    def add(self, line: str) -> None:
        """Take an EVENT line."""
        if self._error is None and self._reader.add(line):
            batch = self._reader.take()
            self._events += batch.events
            self._revision = batch.revision

    def deliver(self) -> None:
        """Give out what has come, if somebody waits."""
        if self._revision is not None and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(self._take())
        if len(self._events) > EVENTS_WAITING_MAX and not self._holds:
            self._holds = True
            self._client.hold_reading()

    def lost(self, error: FarmError) -> None:
        """The link is gone."""
        self._end(compacted(error) or Unavailable(error.sentence))

    def _end(self, error: Exception) -> None:
        if self._error is not None:
            return
        self._error = error
        if self._holds:
            self._holds = False
            self._client.release_reading()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.errback(error)

    def _take(self) -> Batch:
        assert self._revision is not None
        batch = Batch(self._revision, tuple(self._events))
        self._events.clear()
        self._revision = None
        return batch
