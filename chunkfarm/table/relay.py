"""Watches on a server that holds no rows: one stream from a server that does, told on to everybody here.

Whoever watches is served from the memory of this server, so the servers that hold the table have the same few
connections from here whether one client watches or a thousand. There is one stream for each part of the table
that may be watched, and one for the whole; each is opened when somebody wants it, and closed some seconds after
nobody does any more.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.model import FARM, FILES, SERVERS
from chunkfarm.table.interface import Batch, Compacted, Event, IWatch, TableClosed, TableError, Unavailable
from chunkfarm.table.watches import WatchHub

BEAT_SECONDS = 0.5
"""Until those are told of the revision who wait for other changes than those that come: as on a server with rows."""
LINGER_SECONDS = 10.0
"""A stream that nobody needs is kept for so long, so that one who looks again and again does not open it each time."""
REACH_BACK_MAX = 4_096
"""Changes that are fetched for who begins before this server did; who lags more reads the rows anew."""
REACH_BACK_SECONDS = 10.0
"""Seconds for that. A server that lags behind this one has nothing to give so far back, and others wait meanwhile."""

STEADY_SECONDS = 1.0
"""What a stream lasts at least, unless something is wrong with it."""
SHORT_STREAMS_MAX = 3
"""Streams in a row that ended sooner: then those who watch are told instead, and ask again in their own time."""

OpenWatch = Callable[[bytes, int], Deferred[IWatch]]
"""(prefix, from revision) -> a watch on a server that holds rows, over a connection of its own."""


class Relay:
    """All watches of a server that holds no rows. Promises what `ITable.watch` does."""

    def __init__(self, open_watch: OpenWatch, clock: IReactorTime) -> None:
        self._open_watch = open_watch
        self._clock = clock
        self._streams: dict[bytes, _Stream] = {}
        self._closed = False

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        """As `ITable.watch`; fails with `Unavailable` when no server gives the stream."""
        if self._closed:
            return fail(TableClosed("this server is stopping"))
        part = next((part for part in (SERVERS, FARM, FILES) if prefix.startswith(part)), b"")
        stream = self._streams.setdefault(part, _Stream(part, self._open_watch, self._clock))
        return Deferred.fromCoroutine(stream.watch(prefix, from_revision))

    def look_elsewhere(self) -> None:
        """What is told here stands still although the farm goes on: let somebody else tell."""
        for stream in self._streams.values():
            stream.look_elsewhere()

    def leave_line(self, index: int) -> None:
        """The farm went on without what was told here after `index`: who watches reads anew."""
        for stream in self._streams.values():
            stream.end(Compacted(index + 1))

    def close(self) -> None:
        """End every watch and every stream, and begin no new one."""
        self._closed = True
        for stream in self._streams.values():
            stream.close(TableClosed("this server is stopping"))


class _Stream:
    """One watch of a part of the table elsewhere, and everybody here who reads along."""

    _log = Logger()

    def __init__(self, part: bytes, open_watch: OpenWatch, clock: IReactorTime) -> None:
        self._part = part
        self._open_watch = open_watch
        self._clock = clock
        self._waiting: list[Deferred[None]] | None = None
        """Who waits while the stream is opened, or older changes are fetched: they all need it once. None: neither."""
        self._beyond = -1
        """Changes after this revision, or an older one, are not to be had any more."""
        self._hub: WatchHub | None = None
        """None: there is no stream."""
        self._upstream: IWatch | None = None
        self._following: Deferred[None] | None = None
        self._beat: IDelayedCall | None = None
        self._linger: IDelayedCall | None = None
        self._opened_at = 0.0
        self._short = 0
        self._failures = 0
        self._failure = Unavailable("nobody gives a watch")
        """The last failure to open the stream."""
        self._closed: TableError | None = None
        """Why there will be no stream any more."""

    async def watch(self, prefix: bytes, from_revision: int) -> IWatch:
        failures = self._failures
        while (hub := self._hub) is None or from_revision < hub.floor:
            if self._closed is not None:
                raise self._closed
            if self._failures != failures:
                # It was tried while this one waited, and trying takes long where machines are gone.
                raise self._failure
            if hub is not None and from_revision <= self._beyond:
                raise Compacted(hub.floor + 1)
            if self._waiting is not None:
                waiter: Deferred[None] = Deferred(self._waiting.remove)
                self._waiting.append(waiter)
                await waiter
                continue
            self._waiting = []
            try:
                await (self._open(from_revision) if hub is None else self._reach_back(hub, from_revision))
            finally:
                waiting, self._waiting = self._waiting, None
                for waiter in list(waiting):
                    if not waiter.called:
                        waiter.callback(None)
        return await hub.watch(prefix, from_revision)

    def look_elsewhere(self) -> None:
        """Go on with a stream of another server, if there is one."""
        if self._upstream is not None:
            # Whoever follows it is told that it has ended.
            self._upstream.close()

    def close(self, error: TableError) -> None:
        """End the stream, also one that is still being opened, and begin no other."""
        self._closed = error
        self.end(error)

    def end(self, error: TableError) -> None:
        """End the stream, and all watches with that error."""
        for call in (self._beat, self._linger):
            if call is not None:
                call.cancel()
        self._beat = self._linger = None
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
        self._close_upstream()
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.end_all(error)

    # -- from where ----------------------------------------------------------------------------------------

    async def _open(self, from_revision: int) -> None:
        try:
            upstream = await self._open_watch(self._part, from_revision)
        except Unavailable as error:
            self._failures += 1
            self._failure = error
            raise
        if self._closed is not None:
            upstream.close()
            raise self._closed
        self._upstream = upstream
        self._opened_at, self._short = self._clock.seconds(), 0
        hub = WatchHub(from_revision, self._forgotten, self._idle)
        self._hub, self._beyond = hub, -1
        following = Deferred.fromCoroutine(self._follow(hub))
        if not following.called:
            self._following = following
        following.addErrback(self._failed)

    def _forgotten(self, prefix: bytes, after: int, until: int) -> Deferred[tuple[tuple[Event, ...], int]]:
        """What the memory of this server has no more, it has nowhere."""
        return fail(Compacted(self._hub.floor + 1 if self._hub is not None else after + 2))

    async def _reach_back(self, hub: WatchHub, from_revision: int) -> None:
        """Fetch changes from before the stream began, for everybody at once."""
        floor = hub.floor
        try:
            changes = await self._older(from_revision, floor)
        except Compacted:
            self._beyond = max(self._beyond, from_revision)
            raise
        if hub.floor == floor:
            hub.reach_back(from_revision, changes)

    async def _older(self, from_revision: int, floor: int) -> list[tuple[int, tuple[Event, ...]]]:
        changes: list[tuple[int, tuple[Event, ...]]] = []
        watch = await self._open_watch(self._part, from_revision)
        try:
            reached, count = from_revision, 0
            deadline = self._clock.seconds() + REACH_BACK_SECONDS
            while reached < floor:
                left = deadline - self._clock.seconds()
                batch = await watch.next().addTimeout(max(0.0, left), self._clock)
                changes += [change for change in _by_revision(batch) if change[0] <= floor]
                reached, count = batch.revision, count + len(batch.events)
                if count > REACH_BACK_MAX:
                    raise Compacted(floor + 1)
        except TimeoutError:
            raise Unavailable("the older changes did not come in time") from None
        finally:
            watch.close()
        return changes

    # -- on its way ----------------------------------------------------------------------------------------

    async def _follow(self, hub: WatchHub) -> None:
        while True:
            assert self._upstream is not None
            try:
                while True:
                    self._take(hub, await self._upstream.next())
            except CancelledError:
                raise
            except TableError as error:
                lasted = self._clock.seconds() - self._opened_at >= STEADY_SECONDS
                self._short = 0 if lasted else self._short + 1
                if self._short > SHORT_STREAMS_MAX:
                    raise
                self._log.info(
                    "the stream of {part} ended at revision {revision}, and is looked for elsewhere: {error}",
                    part=self._part.decode() or "the table",
                    revision=hub.revision,
                    error=error,
                )
            self._close_upstream()
            # Those who watch here notice nothing, if somebody else goes on where this one has ended.
            self._upstream = await self._open_watch(self._part, hub.revision)
            self._opened_at = self._clock.seconds()

    def _failed(self, failure: Failure) -> None:
        self._following = None
        if failure.check(CancelledError):
            return
        error = failure.value
        if not isinstance(error, TableError):
            self._log.failure("while following the table for those who watch here", failure)
            error = Unavailable("this server has a fault; its log says more")
        self.end(error)

    def _take(self, hub: WatchHub, batch: Batch) -> None:
        news = [change for change in _by_revision(batch) if change[0] > hub.revision]
        hub.publish(max(batch.revision, hub.revision), news)
        if not batch.events:
            hub.beat()
        elif self._beat is None:
            self._beat = self._clock.callLater(BEAT_SECONDS, self._tell_revision)

    def _tell_revision(self) -> None:
        self._beat = None
        if self._hub is not None:
            self._hub.beat()

    def _idle(self) -> None:
        if self._linger is None and self._hub is not None:
            self._linger = self._clock.callLater(LINGER_SECONDS, self._perhaps_end)

    def _perhaps_end(self) -> None:
        self._linger = None
        if self._hub is not None and self._hub.idle and self._waiting is None:
            self.end(Unavailable("nobody watches"))

    def _close_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.close()


def _by_revision(batch: Batch) -> list[tuple[int, tuple[Event, ...]]]:
    """The transactions of a batch, in order."""
    return [(revision, tuple(events)) for revision, events in groupby(batch.events, lambda event: event.revision)]
