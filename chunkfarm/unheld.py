"""Chunks of files that no server that answers has: who is asked, when to look again, and what is told. Pure.

A server that is up and does not answer counts as one that has nothing: what it has cannot be read from it either. So
does one that is down, which may come back with all it had. Each chunk counts once, however many files use it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf

from attrs import define, field, frozen

from chunkfarm.chunks import placement
from chunkfarm.model import Server, timestamp

SOON_SECONDS = 3.0
"""After a change of the servers: those that died together, or come back together, are mostly noticed in one look."""
HOUR_SECONDS = 3600.0
"""Between two looks while nothing changes: as often as each server looks at all of its chunks."""
AGAIN_SECONDS = 60.0
"""Between two looks while chunks are lost, a server did not answer, or one misses others than before."""
REST_FACTOR = 20
"""But no sooner than after so many times as long as the look took, so that a small part of the time goes into it."""
ANEW_MAX = 3
"""Looks in a row that a change of the servers ends: where they change all the time one must come to its end."""
LOOK_SECONDS = 1.0
"""Between two looks at whether there is something to do."""

Servers = tuple[Server, ...]


@frozen(kw_only=True)
class Unheld:
    """How many chunks of files no server has that answers, in the whole farm."""

    chunks: int
    at_least: bool = False
    """Whether there may be more: a look under way has found so many so far, or not all chunks of files are known."""
    since: int = 0
    """When the first of them was noticed, in ms since 1970; 0 if there are none."""
    looked: int = 0
    """When the newest look at all chunks ended, in ms since 1970; 0 if none has yet."""


def found_so_far(before: Unheld | None, chunks: int, now: int) -> Unheld | None:
    """What to tell while a look is under way that has found so many: it can only make the number larger."""
    if chunks <= (before.chunks if before is not None else 0):
        return before
    looked = before.looked if before is not None else 0
    return Unheld(chunks=chunks, at_least=True, since=_since(before, now), looked=looked)


def counted(before: Unheld | None, chunks: int, at_least: bool, now: int) -> Unheld:
    """What to tell after a look at all chunks."""
    return Unheld(chunks=chunks, at_least=at_least, since=_since(before, now) if chunks else 0, looked=now)


def _since(before: Unheld | None, now: int) -> int:
    return before.since if before is not None and before.since else now


def pairs(unheld: Unheld | None) -> list[tuple[str, str]]:
    """As STATUS shows it; None: nobody has told this server."""
    if unheld is None:
        return [("lost-looked", "not yet")]
    told = [("lost", str(unheld.chunks))]
    if unheld.at_least:
        told.append(("lost-at-least", "yes"))
    if unheld.since:
        told.append(("lost-since", timestamp(unheld.since)))
    return [*told, ("lost-looked", timestamp(unheld.looked) if unheld.looked else "not yet")]


# Who is asked.


def living(servers: Servers) -> Servers:
    """Those that are asked at all, also those that are to store nothing any more."""
    return tuple(server for server in servers if server.state != "down")


def owners_alive(digests: Sequence[bytes], servers: Servers, replicas: int) -> dict[bytes, tuple[str, ...]]:
    """Who most likely has each chunk, of those that live: the ids of its owners, the most entitled first."""
    return {
        digest: tuple(server.id for server in living(placement.owners(digest, servers, replicas))) for digest in digests
    }


def questions(line: Mapping[bytes, Sequence[str]], missing: Collection[bytes], rank: int) -> dict[str, list[bytes]]:
    """Which of the chunks that are not found yet to ask whom: for each the one at that place of its line."""
    asked: dict[str, list[bytes]] = {}
    for digest in missing:
        if rank < len(line[digest]):
            asked.setdefault(line[digest][rank], []).append(digest)
    return asked


# When.


def standing(servers: Servers) -> object:
    """What the number depends on: another one when a server went, came back, was started anew, or was given up."""
    return frozenset((server.id, server.incarnation, server.state == "down", server.given_up) for server in servers)


@define
class Turns:
    """When to look at all chunks. All times are seconds of one clock."""

    _standing: object = None
    _missed: Mapping[str, int] = field(factory=dict)
    _due: float = inf
    _not_before: float = -inf
    """Looks may take half of the time at most, however often servers change."""
    _again_from: float = -inf
    """And a small part of it for whatever else may have changed the number."""
    _again: bool = False
    """Whether the look under way is not to stand for an hour."""
    _began: float | None = None
    """When the look under way began."""
    _anew: int = 0

    def note(self, standing: object, missed: Mapping[str, int], now: float) -> None:
        """This is how things are now.

        `missed` is how many chunks each server misses that it found nowhere: one may have rotted that had one copy.
        While servers try to mend much these numbers change all the time, so they end no look, and begin few.
        """
        if standing != self._standing:
            self._standing = standing
            self._due = min(self._due, max(now + SOON_SECONDS, self._not_before))
        if missed != self._missed:
            self._missed = missed
            if self._began is not None:
                self._again = True
            else:
                self._due = min(self._due, max(now + SOON_SECONDS, self._again_from))

    def begins(self, now: float) -> bool:
        """Whether a look begins now; one that is under way tells nothing then."""
        if now < self._due or (self._began is not None and self._anew >= ANEW_MAX):
            return False
        self._anew = self._anew + 1 if self._began is not None else 0
        self._began, self._due, self._again = now, inf, False
        return True

    def over(self, now: float, *, again: bool) -> None:
        """The look has come to its end; `again`: what it found is not to stand for an hour."""
        took = now - self._began if self._began is not None else 0.0
        self._not_before = now + took
        self._again_from = now + min(HOUR_SECONDS, max(AGAIN_SECONDS, REST_FACTOR * took))
        self._began = None
        later = self._again_from if again or self._again else now + HOUR_SECONDS
        self._due = min(max(self._due, self._not_before), later)

    def failed(self, now: float, seconds: float) -> None:
        """The look could not go on, and is tried anew after so long."""
        self._began, self._due = None, now + seconds

    def rest(self, now: float) -> float:
        """Seconds until there may be something to do."""
        return max(0.0, min(self._due - now, LOOK_SECONDS))
