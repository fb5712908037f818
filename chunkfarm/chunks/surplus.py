"""Gives up copies that belong on other servers: after a join, a change of weights, or when an owner has come back.

A copy goes only when every owner of the chunk, by the newest rows that this server knows, has said that it owns the
chunk by rows that are no older, has just read its own copy and compared it, and keeps it (see `keeping`, where it is
told why tables that differ do no harm). So nothing is given up while an owner lacks its copy, is down, or does not
answer: that the owners get theirs is the caretaker's work.

How far this has come is kept in memory: after a start everything is looked at anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks import placement
from chunkfarm.chunks.examining import together
from chunkfarm.chunks.holders import HAVE_TIMEOUT
from chunkfarm.chunks.loop import Loop
from chunkfarm.chunks.loose import PREFIXES
from chunkfarm.chunks.patience import COPY_TIMEOUT, reason_of
from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.chunks.repair import Bucket, Servers
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.errors import FarmError
from chunkfarm.links.interface import HAVE_DIGESTS_MAX, KEEP_DIGESTS_MAX, IChunkLinks
from chunkfarm.model import MIB, Server
from chunkfarm.table.interface import TableError

START_SECONDS = 10.0
"""After a start, in which the caretaker has begun to send what others lack."""
ROUND_SECONDS = 3600.0
"""After so long every chunk is looked at again, though the owners of none have changed: while an owner was down or
full, another server was given its copy."""
AGAIN_SECONDS = 5.0
"""After so long it is looked again at what could not be given up."""
AGAIN_TIMES = 10
"""Or after so many times as long as that look took: what is only repeated takes a tenth of the time."""
FAILED_SECONDS = 300.0
"""After so long it is looked again at chunks at which the disk has failed."""
SILENT_SECONDS = 20.0
"""How long a server that did not answer is not asked again."""
YIELD_SECONDS = 5.0
"""How long it makes room for users before each question."""
RATE = 64 * MIB
"""Bytes a second, unless `repair_rate` says another, of the copies that all owners are made to read."""
LOOK_BATCH = 250
"""Chunks whose owners are found out in one go, in some 30 ms of a thread."""
KEEP_BYTES_MAX = 64 * MIB
"""Bytes of the chunks in one question, unless it is a single one: a slow disk reads so much in less time than a link
may be silent."""


@frozen
class Given:
    """What has been given up on this server: one record, wherever it is shown."""

    chunks: int = 0
    """Deleted since this process began."""
    bytes: int = 0
    left: int = 0
    """Known to belong elsewhere."""
    paused: str = ""
    """Why it does not go on, as a clause; empty while it does, and while there is nothing to do."""

    def pairs(self) -> list[tuple[str, str]]:
        """As STATUS shows it."""
        told = [("surplus-moved", str(self.chunks)), ("surplus-bytes", str(self.bytes)), ("surplus", str(self.left))]
        if self.paused:
            told.append(("surplus-paused", self.paused))
        return told


def surplus(digests: Iterable[bytes], servers: Servers, replicas: int, self_id: str) -> dict[bytes, Servers]:
    """Those of these chunks that belong on other servers alone, with their owners; on a thread if they are many."""
    found: dict[bytes, Servers] = {}
    # Where the others are too few for all copies, one that is emptied keeps its own until it is switched off.
    is_emptied = any(server.is_emptied for server in servers if server.id == self_id)
    fewest = replicas if is_emptied else 1
    for digest in digests:
        owners = placement.owners(digest, servers, replicas)
        # Without owners there is nobody who could keep it.
        if len(owners) >= fewest and all(server.id != self_id for server in owners):
            found[digest] = owners
    return found


def ownership(servers: Servers, replicas: int) -> object:
    """What owners follow from: while it stays the same, so do they."""
    return replicas, frozenset((server.id, server.weight, server.zone) for server in servers if server.owns)


def in_portions(lengths: Mapping[bytes, int]) -> list[list[bytes]]:
    """Chunks in such numbers as may stand in one question."""
    portions: list[list[bytes]] = []
    size = 0
    for digest, length in lengths.items():
        if not portions or len(portions[-1]) == KEEP_DIGESTS_MAX or size + length > KEEP_BYTES_MAX:
            portions.append([])
            size = 0
        portions[-1].append(digest)
        size += length
    return portions


class Surplus(Loop):
    """The loop. `revision` is that of the rows that `servers` gives, and `refresh` makes them as new as any.

    `rate` is `repair_rate` in bytes a second; `hindered` says why nothing may be done now, or is empty; `guards` says
    whether a chunk is kept here whoever owns it.
    """

    _log = Logger()

    def __init__(
        self,
        store: ChunkStore,
        links: IChunkLinks,
        servers: Callable[[], Servers],
        self_id: str,
        replicas: Callable[[], int],
        revision: Callable[[], int],
        refresh: Callable[[], Deferred[None]],
        clock: IReactorTime,
        run_in_thread: RunInThread,
        *,
        rate: int | None = None,
        busy: Callable[[], bool] = lambda: False,
        hindered: Callable[[], str] = lambda: "",
        guards: Callable[[bytes], bool] = lambda digest: False,
    ) -> None:
        super().__init__(
            clock,
            "giving up copies that belong on other servers",
            start_seconds=START_SECONDS,
            failed_seconds=AGAIN_SECONDS,
            busy=busy,
        )
        self._store = store
        self._links = links
        self._servers = servers
        self._self_id = self_id
        self._replicas = replicas
        self._revision = revision
        self._refresh = refresh
        self._run_in_thread = run_in_thread
        self._hindered = hindered
        self._guards = guards
        self.limit(rate)
        self._standing: object = None
        self._is_newest = False
        self._at = 0
        """The revision of the rows that are gone by."""
        self._due = [0.0] * PREFIXES
        """When to look at the chunks that begin with each byte."""
        self._left = [0] * PREFIXES
        """How many of them belong elsewhere, as far as is known."""
        self._silent: dict[str, tuple[float, str]] = {}
        self._chunks = 0
        self._bytes = 0
        self._paused = ""

    def limit(self, rate: int | None) -> None:
        """Another `repair_rate`, from now on; None: the usual one."""
        rate = RATE if rate is None else rate
        self._bucket = Bucket(rate, max(1.0, rate))

    def table_changed(self) -> None:
        """Servers came, went or changed."""
        self._wake()

    @property
    def progress(self) -> Given:
        """What it does now."""
        left = sum(self._left)
        return Given(self._chunks, self._bytes, left, self._paused or self._made_room or self._why_left(left))

    def _why_left(self, left: int) -> str:
        if not left:
            return ""
        silent = [reason for until, reason in self._silent.values() if until > self._clock.seconds()]
        down = [f"{server.name} is down" for server in self._servers() if server.owns and server.state == "down"]
        return "; ".join([*silent, *down]) or "the owners do not have all of them yet"

    # The loop.

    async def _step(self) -> float:
        now = self._clock.seconds()
        if reason := self._hindered():
            self._paused = reason
            return 1.0
        standing = ownership(self._servers(), self._replicas())
        if standing != self._standing:
            self._standing = standing
            self._is_newest = False
            self._due = [0.0] * PREFIXES
        self._paused = ""
        number = min(range(PREFIXES), key=lambda number: self._due[number])
        if (rest := self._due[number] - now) > 0:
            return min(rest, ROUND_SECONDS)
        try:
            await self._look_at(number)
        except CancelledError:
            raise
        except (FarmError, TableError) as error:
            self._paused = str(error)
            return AGAIN_SECONDS
        except Exception:
            # The disk, say: the others must not wait for these.
            self._due[number] = now + FAILED_SECONDS
            raise
        return 0.0

    async def _look_at(self, number: int) -> None:
        """Give up what can be given up of the chunks that begin with this byte."""
        began = self._clock.seconds()
        servers, replicas = self._servers(), self._replicas()
        digests = await self._store.scan(number)
        left = 0
        for start in range(0, len(digests), LOOK_BATCH):
            before = self._clock.seconds()
            batch = digests[start : start + LOOK_BATCH]
            found = await self._run_in_thread(surplus, batch, servers, replicas, self._self_id)
            found = {digest: owners for digest, owners in found.items() if not self._guards(digest)}
            if found and not await self._has_newest():
                # Others own them now: all is looked at again.
                return
            if found:
                left += len(found) - await self._give_up(found)
            await self._breathe(before)
        now = self._clock.seconds()
        self._left[number] = left
        again = max(AGAIN_SECONDS, AGAIN_TIMES * (now - began))
        self._due[number] = now + (min(again, ROUND_SECONDS) if left else ROUND_SECONDS)

    async def _has_newest(self) -> bool:
        """See that the rows are as new as any, once after each change; whether owners are as they were by them.

        Who has newer rows would not keep what it does not own by them, and who has older ones would have to look.
        """
        if not self._is_newest:
            await self._refresh()
            self._is_newest = True
        self._at = self._revision()
        return ownership(self._servers(), self._replicas()) == self._standing

    async def _give_up(self, found: Mapping[bytes, Servers]) -> int:
        """Delete those of these chunks that all of their owners keep; says how many."""
        # While an owner is down the others' answers change nothing, and there may be a million such chunks.
        found = {digest: owners for digest, owners in found.items() if all(owner.state != "down" for owner in owners)}
        lengths = dict(zip(found, await self._store.has(list(found)), strict=True))
        here = {digest: owners for digest, owners in found.items() if lengths[digest]}
        # To be asked to keep it makes an owner read its copy: first those are passed over that some owner lacks.
        there = await self._ask_all(here, self._have)
        count = 0
        for portion in in_portions({digest: lengths[digest] for digest in here if digest in there}):
            await self._make_room(YIELD_SECONDS)
            await self._pace(sum(lengths[digest] for digest in portion))
            # Before anybody is asked: whoever is told meanwhile that this server has the chunk ends the plan.
            self._store.mark_surplus(portion)
            try:
                kept = await self._ask_all({digest: here[digest] for digest in portion}, self._keep)
                if ownership(self._servers(), self._replicas()) != self._standing:
                    # Others own it now, and it may be this server again.
                    return count
                sizes = await self._store.delete_surplus(kept)
            finally:
                self._store.unmark_surplus(portion)
            count += len(sizes)
            self._chunks += len(sizes)
            self._bytes += sum(sizes)
        return count

    async def _ask_all(
        self, chunks: Mapping[bytes, Servers], ask: Callable[[Server, Sequence[bytes]], Deferred[Sequence[int]]]
    ) -> list[bytes]:
        """Those of these chunks for which all of their owners have answered yes."""
        questions: dict[str, tuple[Server, list[bytes]]] = {}
        for digest, owners in chunks.items():
            for server in owners:
                questions.setdefault(server.id, (server, []))[1].append(digest)
        answers = await together(self._ask(*question, ask) for question in questions.values())
        no = {digest for answer in answers for digest in answer}
        return [digest for digest in chunks if digest not in no]

    async def _ask(
        self, server: Server, digests: list[bytes], ask: Callable[[Server, Sequence[bytes]], Deferred[Sequence[int]]]
    ) -> list[bytes]:
        """Those of these chunks for which this server has not answered yes."""
        now = self._clock.seconds()
        if server.state == "down" or self._silent.get(server.id, (0.0, ""))[0] > now:
            return digests
        try:
            answer = await ask(server, digests)
        except CancelledError:
            raise
        except Exception:
            reason = f"{server.name}: {reason_of(Failure())}"
            self._silent[server.id] = self._clock.seconds() + SILENT_SECONDS, reason
            return digests
        return [digest for digest, length in zip(digests, answer, strict=True) if not length]

    def _have(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        assert len(digests) <= HAVE_DIGESTS_MAX
        return self._links.have(server, digests).addTimeout(HAVE_TIMEOUT, self._clock)

    def _keep(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self._links.keep(server, digests, self._at).addTimeout(COPY_TIMEOUT, self._clock)

    async def _pace(self, amount: int) -> None:
        if (delay := self._bucket.take(self._clock.seconds(), amount)) > 0:
            await deferLater(self._clock, delay)
