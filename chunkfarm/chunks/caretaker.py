"""Looks after the chunks on this server: that each is on every server it belongs on, and whole.

One loop. It looks (asks the owners of a run of this server's chunks whether they have theirs), notes what is
missing, and copies what comes first; what to do is decided by `repair`, and nothing is ever deleted here. A look
at everything follows each start and each change of who owns what, but only at the chunks that the change touches;
all are looked at once an hour. What is known to be short, a write that did not reach all servers say, does not
wait for that (`look_first`). All of it is in memory: after a start everything is looked at anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from heapq import nsmallest
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks import placement, repair
from chunkfarm.chunks.at_risk import AtRisk
from chunkfarm.chunks.chunkfile import is_unreadable
from chunkfarm.chunks.examining import QUICKLY, Examined, Examiner, Found, together
from chunkfarm.chunks.loop import Loop
from chunkfarm.chunks.loose import PREFIXES
from chunkfarm.chunks.patience import COPY_TIMEOUT, reason_of
from chunkfarm.chunks.pieces import RunInThread, read_whole
from chunkfarm.chunks.repair import Backlog, Bucket, Meter, Progress, Servers
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.chunks.unneeded import Unneeded, Uses, all_used
from chunkfarm.errors import FarmError, Full, Mismatch, NotFound
from chunkfarm.links.interface import IChunkLinks
from chunkfarm.model import MIB, Server
from chunkfarm.risk import COPIES_MAX, Risk

RATE = 64 * MIB
"""Bytes a second that are copied unless `repair_rate` says another: about half of what 1 Gbit/s carries, so that a
disk of 1 TB is copied in 5 hours by one server, and in a fraction of that by several."""
BURST_SECONDS = 1.0
"""Of the rate, which may go at once after a pause."""
YIELD_SECONDS = 5.0
"""How long a repair makes room, before it copies a chunk all the same: a farm that is never idle is repaired too."""
RATE_SECONDS = 15.0
"""Over which the rate that is shown is measured."""
START_SECONDS = 3.0
"""After a start of this process, in which others that were started with it come up."""
ROUND_SECONDS = 3600.0
"""After so long every chunk is looked at again: a copy that vanished from another server's disk is missed by then."""
AGAIN_SECONDS = 30.0
"""After so long it is looked again at what could not be settled: a server did not answer, or has yet to do its part."""
AGAIN_SECONDS_A_CHUNK = 0.001
"""But with many chunks here later, so that looks that are only repeated take no more than a tenth of the time: to look
at a chunk takes some 0.1 ms."""
FAILED_SECONDS = 300.0
"""After so long it is tried again to look at chunks at which the disk has failed, say, or to send one at which that of
another server has: all others come first."""
LOST_SECONDS = 60.0
"""So often it is asked whether files still use the chunks that are lost."""
TROUBLE_SECONDS = 30.0
"""After so long it is told in this server's row that another is not reached: one that starts is reached by then."""
IDLE_SECONDS = 60.0
"""The longest rest between two looks at what is due."""
LOOK_BATCH = 250
"""Chunks looked at in one go: to rank the servers for each takes a thread some 0.1 ms, which slows the reactor."""
REPAIR_BATCH = 32
"""Chunks of which it is asked once more, right before they are sent, who has them."""
FETCH_SECONDS = 5.0
"""After so long no further chunk is fetched before all else that is to be done has had as much time: each whose copies
are on a server that is away is waited for, and there may be thousands."""
SENDS_MAX = 16
"""Chunks on their way at a time: small ones become durable together, and large ones are bounded by their bytes."""
SEND_BYTES_MAX = 8 * MIB
"""Bytes of them, all of which are in memory; one chunk goes always. One large one at a time still carries what `RATE`
says over 1 Gbit/s; with eight, who reads a file meanwhile waits for a tenth of a second now and then."""
NEW_SECONDS = 10.0
"""After so long new chunks are looked at, where they may have so few copies that STATUS is to name their holders."""
NEW_MAX = 100_000
"""Of them that are remembered; all others are counted in the next round."""
NOT_TAKEN_MAX = 10_000
"""Chunks at which other servers fail that are remembered: of a disk that fails at more nothing helps."""


@define
class _Part:
    """The chunks that begin with one byte, and how they were looked at last."""

    standing: object = None
    """What their needs followed from; None: they were not looked at yet."""
    servers: Servers = ()
    replicas: int = 0
    at: float = 0.0
    """When all of them were looked at."""
    again: float | None = None
    """When to look again at what was not settled."""
    turn: int = 0
    """How many looks there were before the last at this one."""
    rests_until: float = 0.0
    """It is left alone so long, for the last look at it failed."""
    short: set[bytes] = field(factory=set)
    """Those that have too few copies, and for which this server answers."""


class Caretaker(Loop):
    """The loop. `rate` is `repair_rate` in bytes a second; `hindered` says why nothing may be done now, or is empty.

    `verified` is how far the scrub has come, in percent. `uses` asks the masters how many files use each of up to 1,000
    chunks: those that none does are left alone. In doubt a chunk is used.
    `is_everywhere` says of a chunk that all servers keep it, owners or not.
    """

    _log = Logger()

    def __init__(
        self,
        store: ChunkStore,
        links: IChunkLinks,
        transfer: Transfer,
        servers: Callable[[], Servers],
        self_id: str,
        replicas: Callable[[], int],
        clock: IReactorTime,
        run_in_thread: RunInThread,
        *,
        rate: int | None = None,
        hindered: Callable[[], str] = lambda: "",
        verified: Callable[[], int] = lambda: 0,
        uses: Uses = all_used,
        is_everywhere: Callable[[bytes], bool] = lambda digest: False,
    ) -> None:
        super().__init__(
            clock,
            "looking after the chunks of this server",
            start_seconds=START_SECONDS,
            failed_seconds=AGAIN_SECONDS,
            busy=lambda: transfer.is_busy,
        )
        self._store = store
        self._links = links
        self._examiner = Examiner(store, links, servers, self_id, replicas, clock, run_in_thread)
        self._transfer = transfer
        self._servers = servers
        self._self_id = self_id
        self._replicas = replicas
        self._run_in_thread = run_in_thread
        self._hindered = hindered
        self._is_everywhere = is_everywhere
        self._verified = verified
        self.limit(rate)
        self._moved = Meter(RATE_SECONDS)
        self._parts = [_Part() for _ in range(PREFIXES)]
        self._known: tuple[Servers, int, object] | None = None
        self._first: dict[bytes, None] = {}
        self._backlog = Backlog()
        self._missing: dict[bytes, float] = {}
        """Chunks that should be here and are not, with the time before which they are not asked for again."""
        self._fetch_at = 0.0
        """Before this time all else comes first."""
        self._lost: set[bytes] = set()
        self._lost_at = 0.0
        """When it was last asked whether these are missed at all."""
        self._unneeded = Unneeded(store, uses, clock)
        self._at_risk = AtRisk()
        self._new: dict[bytes, None] = {}
        self._able: tuple[Servers, int] = ((), 0)
        """The rows, and how many servers of them may take a copy."""
        self._new_at = 0.0
        """When to look at these."""
        self._not_taken: dict[tuple[bytes, str], float] = {}
        """Chunks at which a server failed, by chunk and server, with the time before which it is not sent it again."""
        self._sending = 0
        self._done = 0
        self._was_idle = True
        self._looks = 0
        self._news = 0
        """Steps in a row in which there was something to look at that a change had touched."""
        self._looked = False
        """Whether the last step was to look again."""
        self._damaged = 0

    # What others may do.

    def look_first(self, digests: Iterable[bytes]) -> None:
        """Look at these chunks before all others: somebody knows, or fears, that copies of them are missing."""
        self._first.update(dict.fromkeys(digests))
        self._wake()

    def stored(self, digest: bytes) -> None:
        """A chunk has come to this disk. It is looked at soon if not even three servers are to have it."""
        if digest in self._missing:
            self._missing[digest] = 0.0
            self._wake()
        if len(self._new) < NEW_MAX and self._copies_possible <= COPIES_MAX:
            if not self._new:
                self._new_at = self._clock.seconds() + NEW_SECONDS
                self._wake()
            self._new[digest] = None

    def found_damaged(self, digest: bytes, reason: str) -> None:
        """A chunk of this server was put aside: it is fetched anew from another one."""
        self._damaged += 1
        self._forget(digest)
        # One that could not be had, or that this disk does not take, is found anew at each look.
        self._missing.setdefault(digest, 0.0)
        self._wake()

    def limit(self, rate: int | None) -> None:
        """Copy at most so many bytes a second from now on: `repair_rate`."""
        rate = RATE if rate is None else rate
        self._bucket = Bucket(rate, max(1.0, rate * BURST_SECONDS))

    def table_changed(self) -> None:
        """Servers came, went or changed."""
        self._wake()

    @property
    def progress(self) -> Progress:
        """What it does now."""
        standing = self._standing()[2]
        return Progress(
            done=self._done,
            left=len(self._backlog) + self._sending + len(self._missing.keys() - self._lost),
            bytes_left=self._backlog.size,
            rate=int(self._moved.rate(self._clock.seconds())),
            paused=self._made_room or self._hindered() or self._why_short(),
            looked=100 * sum(part.standing is standing for part in self._parts) // PREFIXES,
            short=self._short,
            damaged=self._damaged,
            lost=len(self._lost),
            verified=self._verified(),
            unreached=len(self._examiner.unreached()),
        )

    @property
    def trouble(self) -> str:
        """What the whole farm should know: who is up, but was not reached from here for long, while copies lack."""
        long_ago = self._clock.seconds() - TROUBLE_SECONDS
        long = [one.sentence for one in self._examiner.unreached() if one.since <= long_ago]
        return "; ".join(long) if self._short else ""

    @property
    def risk(self) -> Risk:
        """Which of the chunks that this server answers for are lost with one disk, or with two."""
        return self._at_risk.risk(all(part.standing is not None for part in self._parts))

    def at_risk(self, holders: Collection[str], start: int) -> tuple[Sequence[int], int | None]:
        """Which chunks are lost with the disks of these servers, of those that this one answers for (`AtRisk.page`)."""
        return self._at_risk.page(holders, start)

    @property
    def _copies_possible(self) -> int:
        servers = self._servers()
        if self._able[0] is not servers:
            # Every chunk that is put asks for it, and the rows seldom change.
            self._able = servers, sum(server.owns and server.state != "down" for server in servers)
        return min(self._replicas(), self._able[1])

    # The loop.

    async def _begin(self) -> None:
        self._missing.update(dict.fromkeys(await self._store.quarantined(), 0.0))

    async def _step(self) -> float:
        """Do what comes first; gives seconds to rest if there is nothing."""
        now = self._clock.seconds()
        if self._hindered():
            return 1.0
        if self._first:
            digests = list(self._first)[:LOOK_BATCH]
            for digest in digests:
                del self._first[digest]
            settled = False
            try:
                settled = await self._look(digests, should_be_here=True)
            finally:
                for number in {digest[0] for digest in digests}:
                    if not settled or self._parts[number].short:
                        self._look_again(number)
            return 0.0
        if self._backlog.fewest is not None and self._backlog.fewest <= 1:
            # What a single disk may lose waits for nothing else.
            await self._repair()
            return 0.0
        is_missed = any(at <= now for at in self._missing.values())
        if is_missed and self._fetch_at <= now:
            await self._fetch_missing(now)
            return 0.0
        due = self._due(now)
        # All that a change touched is looked at before anything is copied, so that what has the fewest copies is known.
        # What is only looked at again takes turns with copying: on a busy machine there would be no end of it.
        is_new = due is not None and self._parts[due].standing is not self._standing()[2]
        self._news = self._news + 1 if is_new else 0
        # Where rows change again and again there would be no end of that either.
        is_new = is_new and self._news <= PREFIXES
        if due is not None and (is_new or not (self._looked and len(self._backlog))):
            self._looked = True
            # If this fails the others must not wait for it.
            self._parts[due].rests_until = now + FAILED_SECONDS
            self._looks += 1
            self._parts[due].turn = self._looks
            await self._look_at(due)
            self._parts[due].rests_until = 0.0
            return 0.0
        if self._new and self._new_at <= now and not (self._looked and len(self._backlog)):
            self._looked = True
            for digest in list(self._new)[:LOOK_BATCH]:
                del self._new[digest]
                self._first[digest] = None
            return 0.0
        self._looked = False
        if (again := self._unneeded.due) is not None and again <= now:
            self._first.update(dict.fromkeys(await self._unneeded.look_again()))
            return 0.0
        if self._lost and now - self._lost_at >= LOST_SECONDS:
            self._lost_at = now
            self._no_longer_missed(await self._unneeded.unused(self._lost))
            return 0.0
        if len(self._backlog):
            await self._repair()
            return 0.0
        if is_missed:
            await self._fetch_missing(now)
            return 0.0
        self._was_idle = not self._missing
        return self._until_due(now)

    def _standing(self) -> tuple[Servers, int, object]:
        """The rows and replicas as they are, and what follows from them: the same object while it is the same."""
        servers, replicas = self._servers(), self._replicas()
        if self._known is None or self._known[0] is not servers or self._known[1] != replicas:
            standing: object = repair.standing(servers, replicas)
            if self._known is not None and self._known[2] == standing:
                standing = self._known[2]
            self._known = servers, replicas, standing
        return self._known

    def _due(self, now: float) -> int | None:
        """Which chunks to look at next: those that a change touched, then those not settled, then the oldest look."""
        standing = self._standing()[2]
        parts = [(number, part) for number, part in enumerate(self._parts) if part.rests_until <= now]
        # Not always the first of them, or there are some that are never reached while rows change again and again.
        touched = [(part.turn, number) for number, part in parts if part.standing is not standing]
        if touched:
            return min(touched)[1]
        for number, part in parts:
            if part.again is not None and part.again <= now:
                return number
        oldest = min(parts, key=lambda one: one[1].at, default=None)
        return oldest[0] if oldest is not None and now - oldest[1].at >= ROUND_SECONDS else None

    def _until_due(self, now: float) -> float:
        parts = [part for part in self._parts if part.rests_until <= now]
        times = [part.rests_until for part in self._parts if part.rests_until > now]
        times += [part.again for part in parts if part.again is not None]
        times += [part.at + ROUND_SECONDS for part in parts]
        times += [] if self._unneeded.due is None else [self._unneeded.due]
        times += [self._lost_at + LOST_SECONDS] if self._lost else []
        times += [self._new_at] if self._new else []
        times += [now + IDLE_SECONDS, *self._missing.values()]
        return max(0.1, min(times) - now)

    # Looking.

    async def _look_at(self, number: int) -> None:
        """Look at the chunks that begin with this byte, or at those of them that a change touched."""
        part = self._parts[number]
        servers, replicas, standing = self._standing()
        began = self._clock.seconds()
        digests = list(await self._store.scan(number))
        here = len(digests)
        whole = part.standing is None or began - part.at >= ROUND_SECONDS
        again = part.again is not None and part.again <= began
        if not whole and not again:
            digests = await self._affected(digests, part, servers, replicas)
        settled = True
        for start in range(0, len(digests), LOOK_BATCH):
            before = self._clock.seconds()
            # Rows that hold for this run alone say nothing of those before and after, which may be the same.
            settled = settled and self._standing()[2] is standing
            settled = await self._look(digests[start : start + LOOK_BATCH]) and settled
            await self._breathe(before)
        now = self._clock.seconds()
        part.standing, part.servers, part.replicas = standing, servers, replicas
        if whole or again:
            part.at, part.again = now, None
            # What vanished from the disk is nobody's task here any more.
            part.short &= set(digests)
            self._at_risk.keep(number, digests)
        if not settled or part.short:
            self._look_again(number, here * PREFIXES * AGAIN_SECONDS_A_CHUNK)

    async def _affected(self, digests: list[bytes], part: _Part, servers: Servers, replicas: int) -> list[bytes]:
        """Those that the changes since the last look at this part may have touched."""
        found: list[bytes] = []
        for start in range(0, len(digests), LOOK_BATCH):
            before = self._clock.seconds()
            batch = digests[start : start + LOOK_BATCH]
            found += await self._run_in_thread(_affected, batch, part.servers, servers, (part.replicas, replicas))
            await self._breathe(before)
        return found

    def _look_again(self, number: int, seconds: float = 0.0) -> None:
        part = self._parts[number]
        soon = self._examiner.soon
        # Who has just been started is asked as soon as it answers.
        at = self._clock.seconds() + (max(AGAIN_SECONDS, seconds) if soon is None else soon)
        part.again = at if part.again is None else min(part.again, at)

    async def _look(self, digests: Sequence[bytes], should_be_here: bool = False) -> bool:
        """See what these chunks need, and note it; says whether nothing about them is left open."""
        examined = await self._examiner.examine(digests)
        settled = examined.all_answered
        for digest in examined.absent:
            await self._note_absent(digest, should_be_here)
        unused = await self._unused(examined)
        for digest, found in examined.found.items():
            if digest in unused:
                self._forget(digest)
                continue
            if found.need.sender != self._self_id:
                # Who has the task may fail at it, and then it is the next one's.
                settled = settled and not found.need.targets
                self._forget(digest)
                continue
            if found.need.targets:
                self._backlog.add(digest, found.need.copies, found.length)
            else:
                self._backlog.discard(digest)
            self._note_short(digest, found.need.is_short)
            self._note_copies(digest, found.length, found.holders)
        return settled

    async def _unused(self, examined: Examined) -> set[bytes]:
        """Those that should be on more servers, by this one's doing, and that no file uses: nothing is done for them.

        But what is also on a server that is emptied goes where it belongs, or that one would not get rid of it.
        """
        needs = {digest: found.need for digest, found in examined.found.items()}
        mine = [digest for digest, need in needs.items() if need.sender == self._self_id and need.targets]
        unused = await self._unneeded.unused([one for one in mine if needs[one].copies == needs[one].staying])
        self._unneeded.note(unused)
        return unused

    async def _note_absent(self, digest: bytes, should_be_here: bool) -> None:
        self._forget(digest)
        try:
            # A file that is not whole is found to be damaged by this, and put aside.
            await self._store.size(digest)
        except NotFound:
            owners = placement.owners(digest, self._servers(), self._replicas())
            if should_be_here and any(server.id == self._self_id for server in owners):
                self._missing.setdefault(digest, 0.0)

    def _forget(self, digest: bytes) -> None:
        self._backlog.discard(digest)
        self._parts[digest[0]].short.discard(digest)
        self._at_risk.forget(digest)

    def _note_short(self, digest: bytes, is_short: bool) -> None:
        if is_short:
            self._parts[digest[0]].short.add(digest)
        else:
            self._parts[digest[0]].short.discard(digest)

    def _note_copies(self, digest: bytes, length: int, holders: Collection[str]) -> None:
        if self._is_everywhere(digest):
            # Only owners were asked, and all servers have it.
            self._at_risk.forget(digest)
        else:
            self._at_risk.note(digest, length, holders)

    @property
    def _short(self) -> int:
        return sum(len(part.short) for part in self._parts)

    def _why_short(self) -> str:
        if self._backlog or self._sending:
            return ""
        unreached = self._examiner.unreached()
        reasons = [one.sentence for one in unreached]
        if not self._short:
            # What is short because of them is another server's to tell, if it gets that far.
            return "; ".join(reasons)
        down = [server.name for server in self._servers() if server.owns and server.state in ("down", "leaving")]
        full = [server.name for server in self._servers() if server.owns and server.full]
        named = {one.server.id for one in unreached}
        reasons += [one.reason for id, one in self._examiner.hindrances().items() if id not in named]
        if full:
            reasons.append(f"no room on {', '.join(full)}")
        if down:
            verb = "is" if len(down) == 1 else "are"
            reasons.append(f"{', '.join(down)} may come back, and {verb} given up after repair_after")
        return "; ".join(reasons)

    # Repairing.

    async def _repair(self) -> None:
        """Copy what comes first."""
        copies = self._backlog.fewest
        taken = self._backlog.take(REPAIR_BATCH)
        self._sending = len(taken)
        settled = False
        try:
            if copies is not None and copies > 1:
                await self._make_room(YIELD_SECONDS)
            examined = await self._examiner.examine(taken)
            running: list[Coroutine[Deferred[Any], Any, None]] = []
            size = 0
            for digest in examined.absent:
                await self._note_absent(digest, should_be_here=False)
            for digest, found in examined.found.items():
                if found.need.sender != self._self_id or not found.need.targets:
                    if found.need.sender == self._self_id:
                        self._note_short(digest, found.need.is_short)
                        self._note_copies(digest, found.length, found.holders)
                    else:
                        self._forget(digest)
                    self._look_again(digest[0])
                    continue
                if running and (len(running) == SENDS_MAX or size + found.length > SEND_BYTES_MAX):
                    await together(running)
                    running, size = [], 0
                running.append(self._send(digest, found))
                size += found.length
            await together(running)
            # Who was left out of the question may lack it too.
            settled = examined.all_answered
        finally:
            self._sending = 0
            if not settled:
                for number in {digest[0] for digest in taken}:
                    self._look_again(number)

    async def _send(self, digest: bytes, found: Found) -> None:
        now = self._clock.seconds()
        targets = [one for one in found.need.targets if self._not_taken.get((digest, one.id), 0.0) <= now]
        data = await self._read(digest) if targets else b""
        if data is None:
            self._forget(digest)
            # It may have been for a moment only, and it may have copies enough: then nothing else would bring it back.
            self._look_again(digest[0])
            return
        copies, holders = found.need.copies, set(found.holders)
        for server in targets:
            if self._examiner.is_hindered(server):
                # Others were sent theirs meanwhile, and it failed at that.
                self._look_again(digest[0])
                continue
            await self._pace(len(data))
            began = self._clock.seconds()
            try:
                # What a single disk may lose makes no room for anybody.
                sent = self._links.put(server, digest, data, gently=copies > 1)
                await sent.addTimeout(COPY_TIMEOUT, self._clock)
            except CancelledError:
                raise
            except Exception as error:
                failure = Failure()
                self._log.info(
                    "chunk {digest} could not be copied to {server}: {reason}",
                    digest=digest.hex(),
                    server=server.name,
                    reason=reason_of(failure),
                )
                if isinstance(error, Mismatch):
                    # It looks whole here, and is not: the whole of it is compared, and put aside if need be.
                    with suppress(NotFound):
                        await self._store.check(digest)
                    self._look_again(digest[0])
                    return
                if not self._fails_at(digest, server, error):
                    quickly = self._clock.seconds() - began < QUICKLY
                    self._examiner.hinder(server, failure, isinstance(error, Full), quickly)
                self._look_again(digest[0])
            else:
                self._not_taken.pop((digest, server.id), None)
                copies += 1
                holders.add(server.id)
                self._count(len(data))
        self._note_short(digest, copies < found.need.wanted)
        self._note_copies(digest, found.length, holders)

    def _fails_at(self, digest: bytes, server: Server, error: Exception) -> bool:
        """Whether a server that has said that it has a fault said so of this chunk before: then it gets all others.

        Its disk can neither read nor replace the file of that chunk, say, and that stays like this.
        """
        if type(error) is not FarmError:
            return False
        if len(self._not_taken) >= NOT_TAKEN_MAX:
            self._not_taken.clear()
        is_known = (digest, server.id) in self._not_taken
        self._not_taken[digest, server.id] = self._clock.seconds() + FAILED_SECONDS if is_known else 0.0
        return is_known

    async def _read(self, digest: bytes) -> bytes | None:
        """A chunk of this disk; None if it is not there, or damaged (then others have been told of it)."""
        try:
            return await read_whole(await self._store.open(digest))
        except NotFound:
            return None
        except CancelledError:
            raise
        except Exception:
            self._log.failure("while reading chunk {digest} to copy it", digest=digest.hex())
            return None

    async def _fetch_missing(self, now: float) -> None:
        """Fetch chunks that should be here, one after the other."""
        await self._fetch_some(now)
        ended = self._clock.seconds()
        self._fetch_at = ended + (ended - now)

    async def _fetch_some(self, now: float) -> None:
        if (await self._store.space()).full:
            self._missing = {digest: max(at, now + AGAIN_SECONDS) for digest, at in self._missing.items()}
            return
        due = [digest for digest, at in self._missing.items() if at <= now]
        # Or those that cannot be had would be tried again before others for the first time.
        digests = nsmallest(REPAIR_BATCH, due, key=self._missing.__getitem__)
        unused = await self._unneeded.unused(digests)
        self._no_longer_missed(unused)
        for digest in digests:
            if digest in unused:
                continue
            if self._clock.seconds() - now >= FETCH_SECONDS:
                return
            try:
                if not any(await self._store.has([digest])):
                    await self._fetch(digest)
            except CancelledError:
                raise
            except Exception as error:
                self._note_unfetched(digest, error)
                continue
            self._missing.pop(digest, None)
            self._lost.discard(digest)
            self._first[digest] = None

    async def _fetch(self, digest: bytes) -> None:
        data = await self._transfer.fetch(digest)
        await self._pace(len(data))
        await self._store.put(digest, data)
        self._count(len(data))
        self._log.info("chunk {digest} is whole again", digest=digest.hex())

    def _no_longer_missed(self, unused: Iterable[bytes]) -> None:
        """No file uses these: whether they can be had does not matter."""
        for digest in unused:
            self._missing.pop(digest, None)
            self._lost.discard(digest)

    def _note_unfetched(self, digest: bytes, error: Exception) -> None:
        if isinstance(error, NotFound):
            if digest not in self._lost:
                self._log.error("chunk {digest} is lost: {reason}", digest=digest.hex(), reason=str(error))
            self._lost.add(digest)
        elif not isinstance(error, FarmError):
            self._log.failure("while fetching chunk {digest} anew", digest=digest.hex())
        # One that is lost may be found on the disk of a server that comes back. And this disk does not mend by itself.
        is_hopeless = digest in self._lost or (isinstance(error, OSError) and is_unreadable(error))
        pause = ROUND_SECONDS if is_hopeless else AGAIN_SECONDS
        self._missing[digest] = self._clock.seconds() + pause

    def _count(self, moved: int) -> None:
        if self._was_idle:
            self._was_idle, self._done = False, 0
            self._moved.begin(self._clock.seconds())
        self._done += 1
        self._moved.note(self._clock.seconds(), moved)

    async def _pace(self, amount: int) -> None:
        """Wait until so many bytes may move."""
        delay = self._bucket.take(self._clock.seconds(), amount)
        if delay > 0:
            await deferLater(self._clock, delay)


def _affected(digests: Sequence[bytes], before: Servers, after: Servers, replicas: tuple[int, int]) -> list[bytes]:
    # On a thread.
    return [digest for digest in digests if repair.is_affected(digest, before, after, replicas)]
