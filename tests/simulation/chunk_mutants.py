"""Servers with one fault each. A simulation of chunks that lets one of them live checks nothing.

Each stands in `CHUNK_MUTANTS` with the first seed that catches it and the rule by which it does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from chunkfarm.catalog import Catalog
from chunkfarm.chunks import placement
from chunkfarm.chunks.caretaker import Caretaker
from chunkfarm.chunks.chunkfile import ChunkFile
from chunkfarm.chunks.opened import OpenChunk
from chunkfarm.chunks.packs import _HEAD, PackedChunk
from chunkfarm.chunks.reading import ChunkFetch
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.model import Server
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
    store: Any, links: Any, transfer: Any, servers: Callable[[], tuple[Server, ...]], *others: Any
) -> Caretaker:
    """It waits for ever for a server that is dead."""
    return Caretaker(store, links, transfer, lambda: tuple(evolve(one, given_up=False) for one in servers()), *others)


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


CHUNK_MUTANTS: dict[str, tuple[Make, object, int, str]] = {
    "forgets-damage": (Make(caretaker=_ForgetsDamage), _ForgetsDamage, 1, "repair"),
    "ignores-changes": (Make(caretaker=_IgnoresChanges), _IgnoresChanges, 1, "repair"),
    "never-gives-up": (Make(caretaker=_never_gives_up), _never_gives_up, 22, "repair"),
    "acknowledges-unsynchronized": (Make(disks=_Forgetful), _Forgetful, 1, "repair"),
    "forgets-names": (Make(disks=_Nameless), _Nameless, 4, "repair"),
    "trusts-its-index": (Make(store=_TrustsItsIndex), _TrustsItsIndex, 5, "repair"),
    "serves-unverified": (Make(store=_ServesUnverified), _ServesUnverified, 2, "bytes"),
    "acknowledges-one-copy": (Make(transfer=_AcknowledgesOne), _AcknowledgesOne, 1, "copies"),
    "asks-owners-alone": (Make(transfer=_AsksOwnersAlone), _AsksOwnersAlone, 20, "availability"),
    "commits-unchecked": (Make(catalog=_CommitsUnchecked), _CommitsUnchecked, 1, "copies"),
}
"""What servers are made of, what is wrong with it, the first seed that finds it, and what it breaks then."""
