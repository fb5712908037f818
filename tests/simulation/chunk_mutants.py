"""Caretakers with one fault each. A simulation that lets one of them live checks nothing.

Each stands in `CHUNK_MUTANTS` with the first seed that catches it.
"""

from __future__ import annotations

from chunkfarm.chunks.caretaker import Caretaker
from chunkfarm.chunks.repair import Need
from tests.simulation.chunks import MakeCaretaker


class _ForgetsDamage(Caretaker):
    """What was put aside is not fetched again, and nobody is asked to send it."""

    def found_damaged(self, digest: bytes, reason: str) -> None:
        pass

    async def _note_absent(self, digest: bytes, should_be_here: bool) -> None:
        self._forget(digest)

    def look_first(self, digests: object) -> None:
        pass


class _IgnoresChanges(Caretaker):
    """A change of the table is noticed an hour later."""

    def _due(self, now: float) -> int | None:
        number = super()._due(now)
        return number if number is None or self._parts[number].standing is None else None


class _SendsOne(Caretaker):
    """Only the first of those that lack a chunk gets it, and the others are forgotten."""

    async def _send(self, digest: bytes, need: Need) -> None:
        await super()._send(digest, Need(need.targets[:1], need.sender, need.wanted, need.wanted))

    def _look_again(self, number: int, seconds: float = 0.0) -> None:
        pass


CHUNK_MUTANTS: dict[str, tuple[MakeCaretaker, int]] = {
    "forgets-damage": (_ForgetsDamage, 1),
    "ignores-changes": (_IgnoresChanges, 15),
    "sends-one": (_SendsOne, 8),
}
