"""Who has which chunks whole, by their own word after they have read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks import placement
from chunkfarm.chunks.examining import together
from chunkfarm.chunks.patience import AGAIN_TIMEOUT, SILENT_FOR, Silences, reason_of
from chunkfarm.chunks.store import ChunkStore, DamagedChunk
from chunkfarm.errors import NotFound
from chunkfarm.links.interface import DAMAGED, HAVE_DIGESTS_MAX, VERIFY_DIGESTS_MAX, IChunkLinks
from chunkfarm.model import Server

ANSWER_SECONDS = 15.0
"""For one answer, in which a slow disk reads 64 MiB: less than a client waits for a server that lives."""
SILENT_SECONDS = 30.0
"""How long a server that did not answer is not asked again."""


@frozen
class Checked:
    """What the servers that answered say of one chunk (their ids)."""

    holders: tuple[str, ...]
    damaged: tuple[str, ...]
    """Those that found their copy damaged just now, and put it aside."""


@define
class Checker:
    """Asks all servers that are not down. Where something is wrong it asks the caretakers to look."""

    _log = Logger()

    store: ChunkStore
    links: IChunkLinks
    servers: Callable[[], tuple[Server, ...]]
    self_id: str
    replicas: Callable[[], int]
    clock: IReactorTime
    look_here: Callable[[Sequence[bytes]], None]
    _silences: Silences = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._silences = Silences(self.clock)

    def silent(self) -> frozenset[str]:
        """Servers that are down, or did not answer of late: what they have is not known."""
        down = frozenset(server.id for server in self.servers() if server.state == "down")
        return down | self._silences.lately(SILENT_SECONDS)

    async def have(self, server: Server, digests: Sequence[bytes]) -> Sequence[int]:
        """What another server holds; it fails soon if that one is down, or did not answer a moment ago either."""
        try:
            if server.state == "down" or server.id in self._silences.lately(SILENT_FOR):
                await self._has_come_back(server, digests)
            answer = await self.links.have(server, digests).addTimeout(ANSWER_SECONDS, self.clock)
        except CancelledError:
            raise
        except Exception:
            self._silences.note(server.id)
            raise
        self._silences.heard(server.id)
        return answer

    async def _has_come_back(self, server: Server, digests: Sequence[bytes]) -> None:
        """Fails if a server does not answer at once about a single chunk."""
        await self.links.have(server, digests[:1]).addTimeout(AGAIN_TIMEOUT, self.clock)

    async def check(self, digests: Sequence[bytes], read: bool) -> dict[bytes, Checked]:
        """Ask every server about these chunks; with `read` each reads its copies and compares them."""
        unique = list(dict.fromkeys(digests))
        servers = self.servers()
        silent = self.silent()
        asked = [server for server in servers if server.id not in silent]
        answers = await together(self._ask(server, unique, read) for server in asked)
        found: dict[bytes, Checked] = {}
        for number, digest in enumerate(unique):
            said = {server.id: answer[number] for server, answer in zip(asked, answers, strict=True) if answer}
            found[digest] = Checked(
                tuple(id for id, length in said.items() if length not in (0, DAMAGED)),
                tuple(id for id, length in said.items() if length == DAMAGED),
            )
        await self._tell(found, servers)
        return found

    async def verified(self, held: Mapping[bytes, Sequence[str]]) -> dict[tuple[bytes, str], int]:
        """When the holders of these chunks last read them whole, in ms; who does not say that is left out."""
        rows = {server.id: server for server in self.servers()}
        of: dict[str, list[bytes]] = {}
        for digest, holders in held.items():
            for id in holders:
                of.setdefault(id, []).append(digest)
        told = await together(self._ask_when(rows[id], digests) for id, digests in of.items() if id in rows)
        return {known: ms for one in told for known, ms in one.items()}

    async def _ask_when(self, server: Server, digests: list[bytes]) -> dict[tuple[bytes, str], int]:
        known: dict[tuple[bytes, str], int] = {}
        try:
            for start in range(0, len(digests), HAVE_DIGESTS_MAX):
                batch = digests[start : start + HAVE_DIGESTS_MAX]
                asked = self.store.verified(batch) if server.id == self.self_id else self.links.verified(server, batch)
                times = await asked.addTimeout(ANSWER_SECONDS, self.clock)
                known |= {(digest, server.id): ms for digest, ms in zip(batch, times, strict=True) if ms}
        except CancelledError:
            raise
        except Exception:
            # It may be of a version that does not know; only people miss it.
            reason = reason_of(Failure())
            self._log.debug("{server} does not say when it read its chunks: {why}", server=server.name, why=reason)
        return known

    async def _ask(self, server: Server, digests: list[bytes], read: bool) -> list[int]:
        """What one server says; empty if it does not answer."""
        most = VERIFY_DIGESTS_MAX if read else HAVE_DIGESTS_MAX
        told: list[int] = []
        try:
            if server.id in self._silences.lately(SILENT_SECONDS + SILENT_FOR):
                await self._has_come_back(server, digests)
            for start in range(0, len(digests), most):
                batch = digests[start : start + most]
                told += await self._question(server, batch, read).addTimeout(ANSWER_SECONDS, self.clock)
        except CancelledError:
            raise
        except Exception:
            self._log.info(
                "{server} does not say what it holds: {reason}", server=server.name, reason=reason_of(Failure())
            )
            self._silences.note(server.id)
            return []
        self._silences.heard(server.id)
        return told

    def _question(self, server: Server, digests: list[bytes], read: bool) -> Deferred[Sequence[int]]:
        if server.id != self.self_id:
            return maybeDeferred(self.links.verify if read else self.links.have, server, digests)
        if read:
            return Deferred.fromCoroutine(verify_here(self.store, digests))
        return maybeDeferred(self.store.has, digests)

    async def _tell(self, found: dict[bytes, Checked], servers: tuple[Server, ...]) -> None:
        """Have those who can mend it look at what is wrong: who has the chunk sends it, who lacks it fetches it."""
        rows = {server.id: server for server in servers}
        silent = self.silent()
        wrong: dict[str, list[bytes]] = {}
        for digest, checked in found.items():
            owners = {server.id for server in placement.owners(digest, servers, self.replicas())}
            if checked.damaged or not owners <= {*checked.holders, *silent} or len(checked.holders) < len(owners):
                for id in sorted({*checked.holders, *owners} - silent):
                    wrong.setdefault(id, []).append(digest)
        await together(self._tell_one(rows[id], digests) for id, digests in wrong.items() if id in rows)

    async def _tell_one(self, server: Server, digests: list[bytes]) -> None:
        if server.id == self.self_id:
            self.look_here(digests)
            return
        try:
            for start in range(0, len(digests), HAVE_DIGESTS_MAX):
                batch = digests[start : start + HAVE_DIGESTS_MAX]
                await self.links.look(server, batch).addTimeout(ANSWER_SECONDS, self.clock)
        except CancelledError:
            raise
        except Exception:
            reason = reason_of(Failure())
            self._log.info("{server} could not be told what to look at: {why}", server=server.name, why=reason)


async def verify_here(store: ChunkStore, digests: Sequence[bytes]) -> list[int]:
    """The length of each chunk that is on this disk and was read and found whole, 0 for none, or `DAMAGED`."""
    told: list[int] = []
    for digest in digests:
        try:
            told.append(await store.check(digest))
        except DamagedChunk:
            told.append(DAMAGED)
        except NotFound:
            told.append(0)
    return told
