"""Where the parts of a file are, and what is lost with which server: records and a count, pure."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from chunkfarm.model import File, Server


@frozen
class Part:
    """A chunk of a file, or of its manifest, and who holds it."""

    digest: bytes
    holders: tuple[str, ...]
    """Ids of the servers that answered and have it."""
    number: int | None = None
    """Which chunk of the file, from 0; None for a part of the manifest, without which no byte can be read."""
    length: int = 0
    """Bytes of the file in it."""
    damaged: tuple[str, ...] = ()
    """Ids of the servers that found their copy damaged when they were made to read it."""
    verified: tuple[int, ...] = ()
    """When each of the holders last read its copy whole and found it right, in ms; 0 where that is not known."""


@frozen
class Explanation:
    """A file, with a run of its parts."""

    file: File
    wanted: int
    """Copies that each should have."""
    parts: tuple[Part, ...]
    more: bool = False
    """Whether chunks of higher numbers follow."""
    stale: int = 0
    """As in `catalog.Found`."""


@frozen
class Share:
    """What one server has of these parts."""

    server: Server
    held: int
    """Different chunks, parts of the manifest among them."""
    only: int
    """Those that no other server which answered has: they are lost if this one is."""
    bytes: int
    """Bytes of the file in those."""
    verified: int = 0
    """When it last read whole the one of these that it has not read for longest, in ms; 0 if that is not known."""


def shares(parts: Iterable[Part], servers: Iterable[Server]) -> tuple[Share, ...]:
    """What each server holds, in the order of `servers`. A chunk that a file has twice is one chunk, and two runs."""
    held: dict[str, set[bytes]] = {}
    only: dict[str, set[bytes]] = {}
    lost: dict[str, int] = {}
    verified: dict[str, int] = {}
    for part in parts:
        for holder in part.holders:
            held.setdefault(holder, set()).add(part.digest)
        for holder, ms in zip(part.holders, part.verified, strict=False):
            verified[holder] = min(verified.get(holder, ms), ms)
        if len(part.holders) == 1:
            only.setdefault(part.holders[0], set()).add(part.digest)
            lost[part.holders[0]] = lost.get(part.holders[0], 0) + part.length
    return tuple(
        Share(
            server,
            len(held.get(server.id, ())),
            len(only.get(server.id, ())),
            lost.get(server.id, 0),
            verified.get(server.id, 0),
        )
        for server in servers
    )
