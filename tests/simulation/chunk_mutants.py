"""Caretakers with one fault each. A simulation that lets one of them live checks nothing.

Each stands in `CHUNK_MUTANTS` with the first seed that catches it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve

from chunkfarm.chunks.caretaker import Caretaker
from chunkfarm.model import Server
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


def _never_gives_up(
    store: Any, links: Any, transfer: Any, servers: Callable[[], tuple[Server, ...]], *others: Any
) -> Caretaker:
    """It waits for ever for a server that is dead."""
    return Caretaker(store, links, transfer, lambda: tuple(evolve(one, given_up=False) for one in servers()), *others)


CHUNK_MUTANTS: dict[str, tuple[MakeCaretaker, int]] = {
    "forgets-damage": (_ForgetsDamage, 3),
    "ignores-changes": (_IgnoresChanges, 7),
    "never-gives-up": (_never_gives_up, 4),
}
