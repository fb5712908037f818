"""Finds out what is still needed of a server that is emptied: which of its chunks are not on their new owners yet.

The copying is the caretakers' work, as for every other change of who owns what, with the copy of this server counting
while it is there. What is done here comes after it: a chunk is needed here no more once as many servers that stay as
should have it have read their copies just now, and found them whole. Nothing is deleted, and all of it is in
memory: a server that starts anew, or whose chunks other servers own now, verifies anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks import placement, repair
from chunkfarm.chunks.caretaker import RATE
from chunkfarm.chunks.checking import ANSWER_SECONDS
from chunkfarm.chunks.examining import together
from chunkfarm.chunks.loose import PREFIXES
from chunkfarm.chunks.patience import reason_of
from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.chunks.repair import Bucket, Meter, Servers
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.errors import FarmError
from chunkfarm.links.interface import DAMAGED, HAVE_DIGESTS_MAX, VERIFY_DIGESTS_MAX, IChunkLinks
from chunkfarm.model import MIB, Drain, Server
from chunkfarm.table.interface import TableError

BATCH = 250
"""Chunks whose owners are asked in one go, as the caretaker has it."""
VERIFY_BYTES = 64 * MIB
"""Bytes that one answer makes another server read, or one chunk: what a slow disk reads within `ANSWER_SECONDS`."""
REST_SECONDS = 2.0
"""Between two rounds over what is left: others copy meanwhile."""
STUCK_SECONDS = 10.0
"""After a round in which nothing was found to have arrived."""
DONE_SECONDS = 30.0
"""Once nothing is left: somebody with old rows may yet have sent a chunk here."""
REST_FACTOR = 4
"""Or so many times as long as the round took to look at this disk and to ask, which it may with a million chunks."""
RATE_SECONDS = 30.0
"""Over which the rate that is shown is measured."""
TOLD_PART = 100
"""A rate is told once one part in so many of the bytes has arrived: from a few small chunks, which are there at once
while the large ones are still copied, a time left of days would follow."""


@define
class _Part:
    """The chunks that begin with one byte."""

    servers: Servers = ()
    replicas: int = 0
    verified: set[bytes] = field(factory=set)
    """Those that are needed here no more, by these rows."""
    left: dict[bytes, int] = field(factory=dict)
    """The others, and their lengths."""


class Draining:
    """The rounds of one server over its own chunks, while its row says that it is emptied.

    `rate` is `repair_rate` in bytes a second, which other servers are made to read at most; 0 is no limit. `hindered`
    says why nothing may be done now, or is empty. `refresh` makes the rows as new as any.
    """

    _log = Logger()

    def __init__(
        self,
        store: ChunkStore,
        links: IChunkLinks,
        servers: Callable[[], Servers],
        self_id: str,
        replicas: Callable[[], int],
        clock: IReactorTime,
        run_in_thread: RunInThread,
        *,
        rate: int | None,
        hindered: Callable[[], str] = lambda: "",
        refresh: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        self._store = store
        self._links = links
        self._servers = servers
        self._self_id = self_id
        self._replicas = replicas
        self._clock = clock
        self._run_in_thread = run_in_thread
        self._refresh = refresh
        self._unsure = ""
        """Why it could not be looked at what is here, or cannot be said whether these rows still hold."""
        self.limit(rate)
        self._hindered = hindered
        self._moved = Meter(RATE_SECONDS)
        self._arrived = 0
        """Bytes that were found to be whole elsewhere since this server has been counted."""
        self._parts: list[_Part] = []
        self._standing: object = None
        self._drained = False
        self._came = False
        """Whether a chunk has come since this round began, which may have counted without it."""
        self._counted = False
        self._stuck = False
        self._asked = 0
        """How many of those that are left others were asked to look after, since they were asked about the first."""
        self._silent: dict[str, str] = {}
        """Servers that did not answer in this round, and why."""
        self._resting: Deferred[None] | None = None
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Begin; nothing is done before this server's row says that it is emptied."""
        assert self._running is None, "it runs already"
        self._running = Deferred.fromCoroutine(self._run()).addErrback(self._ended)

    def stop(self) -> Deferred[None]:
        """End; fires when nothing is under way any more."""
        running, self._running = self._running, None
        if running is None:
            return succeed(None)
        running.cancel()
        return running

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("while emptying this server; nobody looks after that any more", failure)

    def limit(self, rate: int | None) -> None:
        """Another `repair_rate`, from now on; None: the usual one."""
        rate = RATE if rate is None else rate
        self._bucket = Bucket(rate, max(1, rate))

    def table_changed(self) -> None:
        """Servers came, went or changed: what was drained may be needed again."""
        if not self._is_emptied() and not self._parts:
            return
        standing = repair.standing(self._servers(), self._replicas())
        if standing != self._standing:
            self._standing, self._drained = standing, False
            self._wake()

    def stored(self, digest: bytes) -> None:
        """A chunk has come to this disk: somebody with old rows counts on it, until it is known to be elsewhere too."""
        if self._parts and digest not in self._parts[digest[0]].verified:
            self._came = True
            if self._drained:
                self._drained = False
                self._wake()

    @property
    def progress(self) -> Drain | None:
        """How far it is; None while this server is not emptied."""
        if not self._is_emptied():
            return None
        left = sum(len(part.left) for part in self._parts)
        bytes_left = sum(sum(part.left.values()) for part in self._parts)
        return Drain(
            chunks=left + sum(len(part.verified) for part in self._parts),
            left=left,
            bytes_left=bytes_left,
            rate=self._rate(bytes_left),
            counted=self._counted,
            drained=self._drained,
            paused=self._why_paused(),
        )

    def _rate(self, bytes_left: int) -> int:
        """Bytes a second; 0 also while nobody could tell."""
        now = self._clock.seconds()
        if self._moved.is_silent(now) or self._arrived * TOLD_PART < bytes_left:
            return 0
        return int(self._moved.rate(now))

    def _is_emptied(self) -> bool:
        return any(server.is_emptied for server in self._servers() if server.id == self._self_id)

    def _why_paused(self) -> str:
        if hindered := self._hindered():
            return hindered
        if self._drained or not (self._stuck or self._unsure):
            return ""
        staying = [server for server in self._servers() if server.owns]
        down = [server.name for server in staying if server.state in ("down", "leaving")]
        full = [server.name for server in staying if server.full]
        reasons = list(self._silent.values())
        if self._unsure:
            reasons.append(self._unsure)
        if full:
            reasons.append(f"no room on {', '.join(full)}")
        if down:
            verb = "is" if len(down) == 1 else "are"
            reasons.append(f"{', '.join(down)} may come back, and {verb} given up after repair_after")
        if not staying:
            reasons.append("no other server stores chunks")
        return "; ".join(reasons)

    # The loop.

    async def _run(self) -> None:
        while True:
            rest: float | None = None
            try:
                if self._is_emptied():
                    rest = STUCK_SECONDS if self._hindered() else await self._round()
                else:
                    self._parts, self._drained, self._counted, self._stuck = [], False, False, False
            except CancelledError:
                raise
            except Exception:
                self._log.failure("while looking what is still needed of this server")
                self._drained, self._unsure = False, reason_of(Failure())
                rest = STUCK_SECONDS
            await self._rest(rest)

    async def _rest(self, seconds: float | None) -> None:
        """Until something changes, or for so long."""
        resting: Deferred[None] = Deferred()
        self._resting = resting
        call = self._clock.callLater(seconds, self._wake) if seconds is not None else None
        try:
            await resting
        finally:
            self._resting = None
            if call is not None and call.active():
                call.cancel()

    def _wake(self) -> None:
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    async def _round(self) -> float:
        """Look at all that is left; says how long to rest."""
        began = self._clock.seconds()
        self._silent.clear()
        self._came, self._unsure = False, ""
        servers, replicas = self._servers(), self._replicas()
        standing = self._standing = repair.standing(servers, replicas)
        self._parts = self._parts or [_Part() for _ in range(PREFIXES)]
        for number, part in enumerate(self._parts):
            await self._count(number, part, servers, replicas)
        if not self._counted:
            self._counted, self._arrived = True, 0
            self._moved.begin(self._clock.seconds())
        working = self._clock.seconds() - began
        arrived = 0
        for part in self._parts:
            began = self._clock.seconds()
            digests = list(part.left)
            for start in range(0, len(digests), BATCH):
                if self._standing != standing:
                    # Other servers own the chunks now.
                    return 0.0
                arrived += await self._look(part, digests[start : start + BATCH], servers, replicas)
            working += self._clock.seconds() - began
        drained = not any(part.left for part in self._parts) and await self._is_as_it_is(standing) and not self._came
        if drained and not self._drained:
            self._log.info("This server is drained: everything on it was read whole on other servers.")
        self._drained = drained
        self._stuck = not (drained or arrived or self._came)
        if self._stuck:
            await self._have_looked_after(servers, replicas)
        return max(DONE_SECONDS if drained else STUCK_SECONDS if self._stuck else REST_SECONDS, REST_FACTOR * working)

    async def _is_as_it_is(self, standing: object) -> bool:
        """Whether these rows are the newest: by others one that was asked may be gone, or another own the chunks."""
        try:
            await self._refresh()
        except (FarmError, TableError) as error:
            self._unsure = str(error)
            return False
        return repair.standing(self._servers(), self._replicas()) == standing == self._standing

    async def _count(self, number: int, part: _Part, servers: Servers, replicas: int) -> None:
        """See what is on this disk, and forget what was verified by rows that say something else."""
        digests = list(await self._store.scan(number))
        if part.verified and (part.servers is not servers or part.replicas != replicas):
            known = list(part.verified)
            before, options = part.servers, (part.replicas, replicas)
            part.verified -= set(await self._run_in_thread(_affected, known, before, servers, options))
        part.servers, part.replicas = servers, replicas
        part.verified &= set(digests)
        new = [digest for digest in digests if digest not in part.verified and digest not in part.left]
        lengths: dict[bytes, int] = {}
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            lengths |= zip(batch, await self._store.has(batch), strict=True)
        here = set(digests)
        part.left = {digest: length for digest, length in part.left.items() if digest in here}
        # What has no length is damaged, and is put aside when it is read.
        part.left |= {digest: length for digest, length in lengths.items() if length}

    async def _look(self, part: _Part, digests: Sequence[bytes], servers: Servers, replicas: int) -> int:
        """Have those that stay say what they have, and read it; gives how many chunks are needed here no more."""
        asked, wanted = await self._run_in_thread(_whom_to_ask, digests, servers, replicas)
        rows = {server.id: server for server in servers}
        holders: dict[bytes, set[str]] = {digest: set() for digest in digests}
        await together(self._have(rows[id], some, holders) for id, some in asked.items())
        there = [digest for digest in digests if 0 < wanted[digest] <= len(holders[digest])]
        to_read: dict[str, list[bytes]] = {}
        for digest in there:
            for id in sorted(holders[digest]):
                to_read.setdefault(id, []).append(digest)
        whole: dict[bytes, set[str]] = {digest: set() for digest in there}
        await together(self._verify(rows[id], some, part.left, whole) for id, some in to_read.items())
        arrived = 0
        for digest in there:
            if len(whole[digest]) >= wanted[digest] and digest in part.left:
                size = part.left.pop(digest)
                self._moved.note(self._clock.seconds(), size)
                self._arrived += size
                part.verified.add(digest)
                arrived += 1
        return arrived

    async def _have_looked_after(self, servers: Servers, replicas: int) -> None:
        """Let the caretakers of those that should have what is left look at some of it first.

        One may have passed a chunk over before this server was to be emptied, because no file uses it: as long as its
        owners are the same it comes back to it with its hourly round only.
        """
        left = [digest for part in self._parts for digest in part.left]
        some = left[self._asked : self._asked + HAVE_DIGESTS_MAX]
        self._asked = self._asked + len(some) if self._asked + len(some) < len(left) else 0
        asked, _ = await self._run_in_thread(_whom_to_ask, some, servers, replicas)
        rows = {server.id: server for server in servers}
        await together(self._ask_to_look(rows[id], digests) for id, digests in asked.items())

    async def _ask_to_look(self, server: Server, digests: Sequence[bytes]) -> None:
        if server.id in self._silent:
            return
        try:
            await self._links.look(server, digests).addTimeout(ANSWER_SECONDS, self._clock)
        except CancelledError:
            raise
        except Exception:
            self._silent[server.id] = f"{server.name}: {reason_of(Failure())}"

    async def _have(self, server: Server, digests: Sequence[bytes], holders: Mapping[bytes, set[str]]) -> None:
        if server.id in self._silent:
            return
        try:
            answer = await self._links.have(server, digests).addTimeout(ANSWER_SECONDS, self._clock)
        except CancelledError:
            raise
        except Exception:
            self._silent[server.id] = f"{server.name}: {reason_of(Failure())}"
            return
        for digest, length in zip(digests, answer, strict=True):
            if length:
                holders[digest].add(server.id)

    async def _verify(
        self, server: Server, digests: Sequence[bytes], lengths: Mapping[bytes, int], whole: Mapping[bytes, set[str]]
    ) -> None:
        for batch in _batches(digests, lengths):
            if server.id in self._silent:
                return
            if (delay := self._bucket.take(self._clock.seconds(), sum(map(lengths.__getitem__, batch)))) > 0:
                await deferLater(self._clock, delay)
            try:
                answer = await self._links.verify(server, batch).addTimeout(ANSWER_SECONDS, self._clock)
            except CancelledError:
                raise
            except Exception:
                self._silent[server.id] = f"{server.name}: {reason_of(Failure())}"
                return
            for digest, length in zip(batch, answer, strict=True):
                if length not in (0, DAMAGED):
                    whole[digest].add(server.id)


def _batches(digests: Sequence[bytes], lengths: Mapping[bytes, int]) -> list[list[bytes]]:
    """Runs of chunks that another server reads within the time for an answer."""
    batches: list[list[bytes]] = []
    size = 0
    for digest in digests:
        size += lengths[digest]
        if not batches or len(batches[-1]) == VERIFY_DIGESTS_MAX or size > VERIFY_BYTES:
            batches.append([])
            size = lengths[digest]
        batches[-1].append(digest)
    return batches


# What follows runs on a thread.


def _affected(digests: Sequence[bytes], before: Servers, after: Servers, replicas: tuple[int, int]) -> list[bytes]:
    return [digest for digest in digests if repair.is_affected(digest, before, after, replicas)]


def _whom_to_ask(
    digests: Sequence[bytes], servers: Servers, replicas: int
) -> tuple[dict[str, list[bytes]], dict[bytes, int]]:
    """By server id the chunks to ask it about, and how many copies each chunk should have on those that stay.

    Where an owner has no room, another server stands in for it.
    """
    asked: dict[str, list[bytes]] = {}
    wanted: dict[bytes, int] = {}
    for digest in digests:
        owners = placement.owners(digest, servers, replicas)
        wanted[digest] = len(owners)
        whom = list(owners)
        if any(owner.full for owner in owners):
            ids = {owner.id for owner in owners}
            whom += repair.others_to_ask(digest, tuple(one for one in servers if one.owns), replicas, ids)
        for server in whom:
            if server.state != "down":
                asked.setdefault(server.id, []).append(digest)
    return asked, wanted
