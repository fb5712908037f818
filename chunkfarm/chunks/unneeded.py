"""Chunks that lack copies, or are lost, and that no file uses: they are neither copied nor missed.

Else the owners of a removed file's chunks would send them to each other for as long as one of them has yet to collect
its own. A file may come to use such a chunk later, for its upload is not over yet: so it is asked again now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from chunkfarm.chunks.store import ChunkStore

ASK_TIMEOUT = 15.0
"""Seconds for one answer of the masters, which may have to catch up."""
SILENT_SECONDS = 30.0
"""How long they are not asked again if they did not answer: meanwhile everything counts as used."""
AGAIN_SECONDS = 30.0
"""After so long it is asked again about the first of those that were not used."""
YOUNG_SECONDS = 60.0
"""But every `PAUSE_SECONDS` while one of those was found only so long ago: its upload may be about to end."""
BATCH = 1000
"""Chunks in one question."""
PAUSE_SECONDS = 3.0
"""Between two questions about them: a thousand chunks a time, so that a million are gone through in an hour."""

Uses = Callable[[Sequence[bytes]], Deferred[Sequence[int]]]


def all_used(digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
    """For a farm that knows nothing of it: every chunk is used."""
    return succeed([1] * len(digests))


@define
class Unneeded:
    """What is known to be unused. `uses` tells how many files use each of up to `BATCH` chunks."""

    store: ChunkStore
    uses: Uses
    clock: IReactorTime
    _unused: dict[bytes, float] = field(factory=dict, init=False)
    """When each was found first. Those asked about longest ago come first."""
    _due: float = field(default=0.0, init=False)
    _silent_until: float = field(default=0.0, init=False)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._unused

    @property
    def due(self) -> float | None:
        """When to call `look_again`; None if there is no reason to."""
        return self._due if self._unused else None

    async def unused(self, digests: Collection[bytes]) -> set[bytes]:
        """Those of these chunks that no file uses. In doubt they are used."""
        found: set[bytes] = set()
        asked = list(digests)
        for start in range(0, len(asked), BATCH):
            if self.clock.seconds() < self._silent_until:
                break
            batch = asked[start : start + BATCH]
            try:
                counts = await self.uses(batch).addTimeout(ASK_TIMEOUT, self.clock)
            except CancelledError:
                raise
            except Exception:
                self._silent_until = self.clock.seconds() + SILENT_SECONDS
                break
            found |= {digest for digest, count in zip(batch, counts, strict=True) if not count}
        return found

    def note(self, unused: Collection[bytes]) -> None:
        """Ask about these again, later."""
        now = self.clock.seconds()
        new = [digest for digest in unused if digest not in self._unused]
        if new:
            self._due = min(self._due, now + PAUSE_SECONDS) if self._unused else now + PAUSE_SECONDS
        self._unused.update(dict.fromkeys(new, now))

    async def look_again(self) -> list[bytes]:
        """Those that are used by now, of the ones asked about longest ago; they are not noted any more."""
        batch = list(self._unused)[:BATCH]
        lengths = await self.store.has(batch)
        found = {digest: self._unused.pop(digest) for digest in batch}
        here = [digest for digest, length in zip(batch, lengths, strict=True) if length]
        unused = await self.unused(here)
        still = {digest: found[digest] for digest in here if digest in unused}
        self._unused.update(still)
        now = self.clock.seconds()
        is_soon = len(self._unused) > BATCH or now - max(still.values(), default=0.0) < YOUNG_SECONDS
        self._due = now + (PAUSE_SECONDS if is_soon else AGAIN_SECONDS)
        return [digest for digest in here if digest not in unused]
