"""Servers with one fault each. A simulation of chunks that lets one of them live checks nothing.

Each stands in `CHUNK_MUTANTS` with the first seed that catches it by the rule named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from chunkfarm.catalog import Catalog
from chunkfarm.chunks import placement
from chunkfarm.chunks.caretaker import Caretaker
from chunkfarm.chunks.chunkfile import ChunkFile
from chunkfarm.chunks.collecting import Collector
from chunkfarm.chunks.keeping import Keeper
from chunkfarm.chunks.opened import OpenChunk
from chunkfarm.chunks.packs import _HEAD, PackedChunk
from chunkfarm.chunks.reading import ChunkFetch
from chunkfarm.chunks.repair import Servers
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.chunks.surplus import Surplus
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.model import Server
from chunkfarm.references import References
from chunkfarm.table.interface import Compare
from tests.simulation.chunk_disks import Disks
from tests.simulation.chunk_servers import Make


class _ForgetsDamage(Caretaker):
    """What was put aside is not fetched again, and nobody is asked to send it."""

    def found_damaged(self, digest: bytes, reason: str) -> None:
        pass

    async def _note_absent(self, digest: bytes, should_be_here: bool) -> None:
        self._forget(digest)

    def look_first(self, digests: Iterable[bytes]) -> None:
        pass


class _IgnoresChanges(Caretaker):
    """A change of the table is noticed an hour later."""

    def _due(self, now: float) -> int | None:
        number = super()._due(now)
        return number if number is None or self._parts[number].standing is None else None


def _never_gives_up(
    store: Any, links: Any, transfer: Any, servers: Callable[[], tuple[Server, ...]], *others: Any, **options: Any
) -> Caretaker:
    """It waits for ever for a server that is dead."""

    def still_waited_for() -> tuple[Server, ...]:
        return tuple(evolve(one, given_up=False) for one in servers())

    return Caretaker(store, links, transfer, still_waited_for, *others, **options)


class _Forgetful(Disks):
    """A chunk is acknowledged when it is written, and synchronized by nobody."""

    def fsync(self, descriptor: int) -> None:
        if os.path.isdir(self._paths.get(descriptor, "")):
            super().fsync(descriptor)

    fdatasync = fsync


class _Nameless(Disks):
    """The bytes of a chunk are synchronized, and its name is not."""

    def fsync(self, descriptor: int) -> None:
        if not os.path.isdir(self._paths.get(descriptor, "")):
            super().fsync(descriptor)


class _RawFile(ChunkFile):
    def read(self, offset: int, length: int) -> memoryview:
        with self._lock:
            return memoryview(self._read_at(offset, length))


class _ServesUnverified(ChunkStore):
    """Bytes are served as they come from the disk."""

    def _open_file(self, digest: bytes) -> OpenChunk:
        place = self._packs.place(digest)
        if place is not None:
            return PackedChunk(self._packs._read_record(place)[_HEAD.size :], place)
        return _RawFile(self._loose.path(digest), digest)


class _TrustsItsIndex(ChunkStore):
    """After a power cut the index of the packs is taken for all that there is."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._packs._scan_tail = lambda number, offset: None  # type: ignore[method-assign]


class _AcknowledgesOne(Transfer):
    """One copy is enough to tell the writer."""

    def required(self) -> int:
        return 1


class _AsksOwnersAlone(Transfer):
    """Who does not own a chunk is not asked for it."""

    def fetch(self, digest: bytes) -> Deferred[bytes]:
        owners = placement.owners(digest, self._servers(), self._replicas())
        others = [server for server in owners if server.id != self._self_id]
        fetch = ChunkFetch(digest, others, lambda server: self._get(digest, server), self._clock, self._patience)
        fetch.start()
        return fetch.result


class _CommitsUnchecked(Catalog):
    """COMMIT asks nobody whether the chunks are there."""

    async def _check_copies(self, digests: Sequence[bytes], size: int, chunk_size: int) -> tuple[int, set[str]]:
        return self._transfer.wanted(), set()


class _TrustsItsTable(Surplus):
    """What belongs on others by this server's rows is given up, and nobody is asked."""

    async def _ask_all(self, chunks: Mapping[bytes, Servers], ask: Any) -> list[bytes]:
        return list(chunks)


class _AsksWithoutPin(Surplus):
    """Owners are asked whether they have a chunk, and not to read it and keep it."""

    def _keep(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self._have(server, digests)


class _DeletesBeforeCopies(Surplus):
    """A copy is given up once one owner has it, before the others have been sent theirs."""

    async def _ask_all(self, chunks: Mapping[bytes, Servers], ask: Any) -> list[bytes]:
        found: list[bytes] = []
        for digest, owners in chunks.items():
            if any([not await self._ask(server, [digest], ask) for server in owners]):
                found.append(digest)
        return found


class _DeletesWhatItKeeps(ChunkStore):
    """Who says yes to `keep` goes on giving its own copy up."""

    def _release(self, marked: set[bytes], digests: Sequence[bytes]) -> Sequence[int]:
        return super()._release(set(digests) if marked is self._promises.surplus else marked, digests)


class _KeepsUnread(Keeper):
    """A server says that it keeps its copy, and has not read it."""

    async def _is_whole(self, digest: bytes) -> bool:
        return True


class _CollectsByAge(Collector):
    """What nobody has asked about for long enough is deleted, and no master is asked."""

    async def _used(self, digests: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        return [], list(digests)


class _AsksOnce(Collector):
    """What was unused when it was condemned is deleted, without being asked about again."""

    _is_judging = False

    async def _judge(self) -> None:
        self._is_judging = True
        try:
            await super()._judge()
        finally:
            self._is_judging = False

    async def _used(self, digests: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        return ([], list(digests)) if self._is_judging else await super()._used(digests)


class _WaitsForNoEpoch(Collector):
    """What is condemned and unused is deleted at once."""

    async def _go_on(self) -> float:
        if not self._round.looks and self._round.condemned and not self._round.may_judge:
            self._round.saw(0)
            self._round.saw(1)
        return await super()._go_on()


class _CondemnsNothing(ChunkStore):
    """A chunk that is about to be collected is still said to be there."""

    def _condemn(self, unused: Sequence[bytes]) -> Sequence[bytes]:
        pins = self._promises.pins
        pins.begin(unused)
        ended = pins.ended(unused)
        return [digest for digest in unused if digest in ended]

    def _release(self, marked: set[bytes], digests: Sequence[bytes]) -> Sequence[int]:
        return super()._release(set(digests) if marked is self._promises.condemned else marked, digests)


class _ForgetsPins(ChunkStore):
    """Nobody writes down that a chunk was promised."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._promises.pins.hold = lambda digests: None  # type: ignore[method-assign]


class _IgnoresTheEpoch(Catalog):
    """A row is committed in whatever epoch its holders were asked."""

    def _relying_on(self, epoch: int) -> tuple[Compare, ...]:
        return ()


class _AnswersFromMemory(References):
    """A master tells of uses from its own index, however far behind that is."""

    async def _read_exports(self, deadline: float) -> tuple[int, frozenset[bytes]]:
        return 0, frozenset()


CHUNK_MUTANTS: dict[str, tuple[Make, object, int, str]] = {
    "forgets-damage": (Make(caretaker=_ForgetsDamage), _ForgetsDamage, 3, "repair"),
    "ignores-changes": (Make(caretaker=_IgnoresChanges), _IgnoresChanges, 1, "repair"),
    "never-gives-up": (Make(caretaker=_never_gives_up), _never_gives_up, 12, "repair"),
    "acknowledges-unsynchronized": (Make(disks=_Forgetful), _Forgetful, 3, "copies"),
    "forgets-names": (Make(disks=_Nameless), _Nameless, 3, "copies"),
    "trusts-its-index": (Make(store=_TrustsItsIndex), _TrustsItsIndex, 18, "repair"),
    "serves-unverified": (Make(store=_ServesUnverified), _ServesUnverified, 11, "repair"),
    "acknowledges-one-copy": (Make(transfer=_AcknowledgesOne), _AcknowledgesOne, 1, "copies"),
    "asks-owners-alone": (Make(transfer=_AsksOwnersAlone), _AsksOwnersAlone, 55, "availability"),
    "commits-unchecked": (Make(catalog=_CommitsUnchecked), _CommitsUnchecked, 1, "copies"),
    "trusts-its-table": (Make(surplus=_TrustsItsTable), _TrustsItsTable, 1, "removed"),
    "deletes-before-copies": (Make(surplus=_DeletesBeforeCopies), _DeletesBeforeCopies, 1, "removed"),
    "collects-by-age": (Make(collector=_CollectsByAge), _CollectsByAge, 1, "removed"),
    "asks-once": (Make(collector=_AsksOnce), _AsksOnce, 2, "removed"),
    "condemns-nothing": (Make(store=_CondemnsNothing), _CondemnsNothing, 5, "pins"),
    "forgets-pins": (Make(store=_ForgetsPins), _ForgetsPins, 1, "pins"),
}
"""What servers are made of, what is wrong with it, the first seed that finds it, and what it breaks then."""

RARE: dict[str, Make] = {
    "asks-without-pin": Make(surplus=_AsksWithoutPin),
    "deletes-what-it-keeps": Make(store=_DeletesWhatItKeeps),
    "keeps-unread": Make(keeper=_KeepsUnread),
    "waits-for-no-epoch": Make(collector=_WaitsForNoEpoch),
    "ignores-the-epoch": Make(catalog=_IgnoresTheEpoch),
    "answers-from-memory": Make(references=_AnswersFromMemory),
}
"""Faults that random histories seldom meet: a story shows them, or the tests of the room in which they are."""
