"""What would be lost with a server that does not come back, as far as all others answer: the files, gone through once.

It is asked before a person lets the farm forget that server, and before the farm does so by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from attrs import define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from chunkfarm.catalog import Catalog
from chunkfarm.chunks.checking import Checked
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.errors import Busy
from chunkfarm.links.interface import HAVE_DIGESTS_MAX
from chunkfarm.model import File, Server

LIST_PAGE = 1000
NAMED_MAX = 100
"""Files that are named of those of which something would be lost: a person looks for a pattern, not for a list."""
FRESH_SECONDS = 60.0
"""How long what was found counts, for who looks, thinks, and looks again."""


@frozen(kw_only=True)
class Loss:
    """A file of which something would be lost."""

    name: str
    chunks: int
    bytes: int


@frozen(kw_only=True)
class Losses:
    """What was found, of the files that were looked at."""

    files: int = 0
    chunks: int = 0
    lost_files: int = 0
    lost_chunks: int = 0
    """That nobody has who answered."""
    lost_bytes: int = 0
    short_files: int = 0
    short_chunks: int = 0
    """That somebody has, but fewer servers than should: they are copied once the server is forgotten."""
    short_bytes: int = 0
    named: tuple[Loss, ...] = ()
    silent: tuple[str, ...] = ()
    """Names of other servers that did not answer: what they have is not counted."""
    done: bool = False
    """Whether all files were looked at."""

    def with_file(self, lost: Loss, short_chunks: int, short_bytes: int) -> Losses:
        """One file more."""
        return evolve(
            self,
            files=self.files + 1,
            lost_files=self.lost_files + bool(lost.chunks),
            lost_chunks=self.lost_chunks + lost.chunks,
            lost_bytes=self.lost_bytes + lost.bytes,
            short_files=self.short_files + bool(short_chunks),
            short_chunks=self.short_chunks + short_chunks,
            short_bytes=self.short_bytes + short_bytes,
            named=(*self.named, lost) if lost.chunks and len(self.named) < NAMED_MAX else self.named,
        )


@define(eq=False)
class _Look:
    """One way through all files, for one server."""

    server: str
    live: frozenset[str]
    found: Losses = Losses()
    running: Deferred[None] | None = None
    failure: Failure | None = None
    ended_at: float = 0.0
    waiting: list[Deferred[None]] = field(factory=list)


@define(eq=False)
class LossSurvey:
    """Goes through the files; one look at a time, which goes on when nobody waits for it any more."""

    _catalog: Catalog
    _transfer: Transfer
    _servers: Callable[[], tuple[Server, ...]]
    _replicas: Callable[[], int]
    _clock: IReactorTime
    _look: _Look | None = field(default=None, init=False)

    def ask(self, server_id: str, seconds: float | None = None) -> Deferred[Losses]:
        """What would be lost without that server; after so many seconds as far as it is found (`done` says no).

        Ask again to go on. Fails with a `FarmError` if the files cannot be listed now.
        """
        return Deferred.fromCoroutine(self._ask(server_id, seconds))

    def stop(self) -> Deferred[None]:
        """Give up what is under way."""
        look, self._look = self._look, None
        running = look.running if look is not None else None
        if running is None:
            return succeed(None)
        running.cancel()
        return running

    async def _ask(self, server_id: str, seconds: float | None) -> Losses:
        live = frozenset(server.id for server in self._servers() if server.state != "down" and server.id != server_id)
        look = self._look
        is_old = look is not None and look.running is None and self._clock.seconds() - look.ended_at > FRESH_SECONDS
        if look is None or look.server != server_id or look.live != live or look.failure is not None or is_old:
            await self.stop()
            look = self._look = _Look(server_id, live)
            running = Deferred.fromCoroutine(self._go_through(look)).addBoth(self._ended, look)
            if not running.called:
                look.running = running
        if look.running is not None:
            await self._wait(look, seconds)
        if look.failure is not None:
            look.failure.raiseException()
        return look.found

    async def _wait(self, look: _Look, seconds: float | None) -> None:
        waiter: Deferred[None] = Deferred(lambda _: look.waiting.remove(waiter) if waiter in look.waiting else None)
        look.waiting.append(waiter)

        def late() -> None:
            if waiter in look.waiting:
                look.waiting.remove(waiter)
                waiter.callback(None)

        call = self._clock.callLater(seconds, late) if seconds is not None else None
        try:
            await waiter
        finally:
            if call is not None and call.active():
                call.cancel()

    def _ended(self, result: object, look: _Look) -> None:
        look.running, look.ended_at = None, self._clock.seconds()
        if isinstance(result, Failure):
            gone = result.check(CancelledError) is not None
            look.failure = Failure(Busy("it was given up to look at what would be lost")) if gone else result
        waiting, look.waiting = look.waiting, []
        for waiter in waiting:
            waiter.callback(None)

    async def _go_through(self, look: _Look) -> None:
        after, more = "", True
        while more:
            listing = await self._catalog.list("", after, LIST_PAGE)
            if listing.stale:
                raise Busy("nobody who knows all files answers now")
            for file in listing.files:
                await self._look_at(look, file)
                after = file.name
            more = listing.more and bool(listing.files)
        look.found = evolve(look.found, done=True)

    async def _look_at(self, look: _Look, file: File) -> None:
        parts = await self._catalog.parts(file)
        staying = sum(server.owns for server in self._servers() if server.id != look.server)
        wanted = min(self._replicas(), staying)
        lost, short = Loss(name=file.name, chunks=0, bytes=0), (0, 0)
        seen: set[bytes] = set()
        for start in range(0, len(parts.chunks) + len(parts.manifest), HAVE_DIGESTS_MAX):
            batch = parts.digests(start, HAVE_DIGESTS_MAX)
            said = await self._transfer.check(batch, read=False)
            for number, digest in enumerate(batch, start):
                held, is_new, length = _held(said[digest], look.server), digest not in seen, parts.length(number)
                seen.add(digest)
                if not held:
                    lost = evolve(lost, chunks=lost.chunks + is_new, bytes=lost.bytes + length)
                elif held < wanted:
                    short = short[0] + is_new, short[1] + length
        if not parts.complete:
            # A part of its manifest is among what is lost: nothing of the file can be read without it.
            lost = evolve(lost, chunks=max(1, lost.chunks), bytes=file.size)
        found = look.found.with_file(lost, *short)
        look.found = evolve(found, chunks=found.chunks + len(seen), silent=self._silent(look.server))

    def _silent(self, without: str) -> tuple[str, ...]:
        silent: Collection[str] = self._transfer.silent()
        return tuple(server.name for server in self._servers() if server.id in silent and server.id != without)


def _held(said: Checked, without: str) -> int:
    return sum(id != without for id in said.holders)
