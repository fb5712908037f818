"""What runs of chunks need, by asking the other servers what they have; and whom it is no use to ask or to send to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from attrs import define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from chunkfarm.chunks import repair
from chunkfarm.chunks.holders import HAVE_TIMEOUT
from chunkfarm.chunks.patience import reason_of
from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.chunks.repair import Need, Servers
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.errors import FarmError
from chunkfarm.links.interface import HAVE_DIGESTS_MAX, IChunkLinks
from chunkfarm.membership import LIVE
from chunkfarm.model import Server

SILENT_SECONDS = 20.0
"""How long a server that did not answer is left alone: if it is gone, its row says so by then."""
SOON_SECONDS = 1.0
"""How long one that refused at once is left alone: mostly it has only just been started, and listens in a moment. The
next times are twice as long each, up to `SILENT_SECONDS`; they are counted anew for each process of a server."""
QUICKLY = 1.0
"""Seconds within which a refusal comes; who takes longer would hold up the look at all other chunks each time."""
FULL_SECONDS = 120.0
"""How long a server that said it is full is sent nothing: much longer than it takes until somebody else stands in."""

T = TypeVar("T")
Holders = dict[bytes, set[str]]


@frozen
class Hindrance:
    """Why nothing is sent to a server, and until when."""

    until: float
    reason: str
    full: bool
    soon: bool = False
    """Whether it is asked again sooner than one that is silent."""


@frozen
class Unreached:
    """A server that did not answer, as its row was then."""

    server: Server
    since: float
    reason: str

    def is_of(self, server: Server) -> bool:
        """Whether this says anything of the server as its row is now: the same process, and the same address."""
        then = self.server
        return (then.incarnation, then.files_address) == (server.incarnation, server.files_address)

    @property
    def sentence(self) -> str:
        """What people are told."""
        return f"{self.server.name} is up, but not reached at {self.server.files_address}: {self.reason}"


@frozen
class Found:
    """What a chunk needs that is on this disk, its length, and who said to have it, this server included."""

    need: Need
    length: int
    holders: frozenset[str]


@define
class Examined:
    """What was learned of a run of chunks."""

    found: dict[bytes, Found]
    absent: tuple[bytes, ...]
    """Those that are not on this disk, or not whole."""
    all_answered: bool


@define
class Examiner:
    """Asks the other servers about this one's chunks."""

    store: ChunkStore
    links: IChunkLinks
    servers: Callable[[], Servers]
    self_id: str
    replicas: Callable[[], int]
    clock: IReactorTime
    run_in_thread: RunInThread
    _hindrances: dict[str, Hindrance] = field(factory=dict, init=False)
    _refusals: dict[str, tuple[str, float]] = field(factory=dict, init=False)
    """Of servers that refused at once: which process that was, and the next pause in seconds."""

    _unreached: dict[str, Unreached] = field(factory=dict, init=False)
    """Servers that did not answer the last time, also where they may be asked again by now."""

    def hinder(self, server: Server, failure: Failure, full: bool = False, quickly: bool = False) -> None:
        """Leave a server alone for a while: it did not answer, `quickly` said that it does not, or has no room."""
        reason = f"{server.name}: {reason_of(failure)}"
        if failure.check(FarmError):
            # It answered.
            self._unreached.pop(server.id, None)
        else:
            known = self._unreached.get(server.id)
            same = known is not None and known.is_of(server)
            since = known.since if known is not None and same else self.clock.seconds()
            self._unreached[server.id] = Unreached(server, since, reason_of(failure))
        seconds = FULL_SECONDS if full else SILENT_SECONDS
        if quickly and not full:
            process, seconds = self._refusals.get(server.id, (server.incarnation, SOON_SECONDS))
            if process != server.incarnation:
                seconds = SOON_SECONDS
            self._refusals[server.id] = server.incarnation, min(SILENT_SECONDS, 2 * seconds)
        self._hindrances[server.id] = Hindrance(
            self.clock.seconds() + seconds, reason, full, quickly and seconds < SILENT_SECONDS
        )

    def is_hindered(self, server: Server) -> bool:
        """Whether a server is left alone now."""
        hindrance = self._hindrances.get(server.id)
        return hindrance is not None and hindrance.until > self.clock.seconds()

    @property
    def soon(self) -> float | None:
        """Seconds until a server is asked again that refused at once; None if there is none to be asked so soon."""
        now = self.clock.seconds()
        return min((one.until - now for one in self.hindrances().values() if one.soon), default=None)

    def hindrances(self) -> Mapping[str, Hindrance]:
        """Those that still count, by server id."""
        now = self.clock.seconds()
        self._hindrances = {id: one for id, one in self._hindrances.items() if one.until > now}
        return self._hindrances

    def unreached(self) -> tuple[Unreached, ...]:
        """Servers that are up by their reports, and did not answer this one where their rows say that they listen."""
        rows = {server.id: server for server in self.servers() if server.state in LIVE}
        self._unreached = {id: one for id, one in self._unreached.items() if id in rows and one.is_of(rows[id])}
        return tuple(self._unreached.values())

    async def examine(self, digests: Sequence[bytes]) -> Examined:
        """What each of these chunks needs."""
        # Who is hindered now is left out of this look, also if that is over before it ends.
        left_out = bool(self.hindrances())
        servers, replicas = self._as_seen(), self.replicas()
        lengths = dict(zip(digests, await self.store.has(digests), strict=True))
        here = [digest for digest in lengths if lengths[digest]]
        absent = tuple(digest for digest in lengths if not lengths[digest])
        holders = {digest: {self.self_id} for digest in here}
        whom = await self.run_in_thread(_owners_to_ask, here, servers, replicas)
        answered = await self._ask(whom, holders) and not left_out
        needs = await self.run_in_thread(_needs, here, servers, replicas, holders)
        short = [digest for digest in here if needs[digest].is_short]
        if short:
            asked = {digest: {server.id for server in whom[digest]} | {self.self_id} for digest in short}
            others = await self.run_in_thread(_others_to_ask, short, servers, replicas, asked)
            answered = await self._ask(others, holders) and answered
            needs |= await self.run_in_thread(_needs, short, servers, replicas, holders)
        found = {digest: Found(needs[digest], lengths[digest], frozenset(holders[digest])) for digest in here}
        return Examined(found, absent, answered)

    def _as_seen(self) -> Servers:
        """The rows, with what this server has learned since."""
        if not self.hindrances():
            return self.servers()
        return tuple(map(self._row_as_seen, self.servers()))

    def _row_as_seen(self, server: Server) -> Server:
        hindrance = self._hindrances.get(server.id)
        if hindrance is None:
            return server
        return evolve(server, full=True) if hindrance.full else evolve(server, state="down")

    async def _ask(self, whom: Mapping[bytes, Servers], holders: Holders) -> bool:
        """Ask servers what they have, and add them to the holders; says whether all answered."""
        questions: dict[str, tuple[Server, list[bytes]]] = {}
        for digest, servers in whom.items():
            for server in servers:
                if server.id != self.self_id:
                    questions.setdefault(server.id, (server, []))[1].append(digest)
        return all(await together(self._ask_one(*question, holders) for question in questions.values()))

    async def _ask_one(self, server: Server, digests: list[bytes], holders: Holders) -> bool:
        began = self.clock.seconds()
        try:
            for start in range(0, len(digests), HAVE_DIGESTS_MAX):
                batch = digests[start : start + HAVE_DIGESTS_MAX]
                answer = await self.links.have(server, batch).addTimeout(HAVE_TIMEOUT, self.clock)
                for digest, length in zip(batch, answer, strict=True):
                    if length:
                        holders[digest].add(server.id)
        except CancelledError:
            raise
        except Exception:
            self.hinder(server, Failure(), quickly=self.clock.seconds() - began < QUICKLY)
            return False
        self._unreached.pop(server.id, None)
        return True


async def together(steps: Iterable[Coroutine[Deferred[Any], Any, T]]) -> list[T]:
    """Run them beside each other to their ends; then raise what went wrong first, if anything did."""
    # Not gatherResults, which leaves the others running when one fails, and hides a cancelling in an error of its own.
    ended = await DeferredList([Deferred.fromCoroutine(step) for step in steps], consumeErrors=True)
    results: list[T] = []
    for succeeded, result in ended:
        if not succeeded and isinstance(result, Failure):
            result.raiseException()
        results.append(result)
    return results


# What follows runs on a thread: with many servers it is a tenth of a second for a run of chunks.


def _owners_to_ask(digests: Sequence[bytes], servers: Servers, replicas: int) -> dict[bytes, Servers]:
    return {digest: repair.owners_to_ask(digest, servers, replicas) for digest in digests}


def _others_to_ask(
    digests: Sequence[bytes], servers: Servers, replicas: int, asked: Mapping[bytes, set[str]]
) -> dict[bytes, Servers]:
    return {digest: repair.others_to_ask(digest, servers, replicas, asked[digest]) for digest in digests}


def _needs(
    digests: Sequence[bytes], servers: Servers, replicas: int, holders: Mapping[bytes, set[str]]
) -> dict[bytes, Need]:
    return {digest: repair.need(digest, servers, replicas, holders[digest]) for digest in digests}
