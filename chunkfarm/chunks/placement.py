"""Which servers should hold a chunk: computed from its digest and the server table, never stored.

Weighted rendezvous hashing. Rendezvous hashing is D. Thaler and C. Ravishankar, "Using Name-Based Mappings
to Increase Hit Rates" (IEEE/ACM Transactions on Networking 6(1), 1998): every server gets a score for every
chunk, and the highest scores own it, so that a server that comes or goes moves only what it gains or held.
The weights are the logarithmic method of C. Schindelhauer and G. Schomaker, "Weighted Distributed Hash
Tables" (SPAA 2005): with u uniform in (0, 1), the largest of -weight / ln(u) falls to each server in
proportion to its weight, and a changed weight moves only what it must.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from math import log

from chunkfarm.model import Server

_UNIT = 2.0**52
"""52 bits of the hash plus a half are exact in a float, and so never reach 0 or 1."""


def score(digest: bytes, server: Server) -> float:
    """How entitled `server` (of weight > 0) is to the chunk: the highest score comes first."""
    hashed = int.from_bytes(blake2b(digest + server.id.encode(), digest_size=8).digest(), "big")
    return -server.weight / log(((hashed >> 12) + 0.5) / _UNIT)


def order(digest: bytes, servers: Iterable[Server]) -> tuple[Server, ...]:
    """All servers that store (weight > 0, whatever their state), the most entitled first."""
    scored = [(score(digest, server), server.id, server) for server in servers if server.stores]
    # The id decides between equal scores, so that every server computes the same order.
    scored.sort(key=_by_score, reverse=True)
    return tuple([server for _, _, server in scored])


def _by_score(scored: tuple[float, str, Server]) -> tuple[float, str]:
    return scored[:2]


def owners(digest: bytes, servers: Iterable[Server], replicas: int) -> tuple[Server, ...]:
    """Who should hold the chunk, the most entitled first.

    The first `replicas` in order, in different zones while there are enough; a server without a zone is a
    zone of its own. This is the one place that says who owns a chunk. It looks at nothing but rows (see
    `Server.owns`): who has the same rows and the same `replicas` comes to the same answer.
    """
    return _spread(order(digest, (server for server in servers if server.owns)), replicas)


def writers(digest: bytes, servers: Iterable[Server], replicas: int) -> tuple[Server, ...]:
    """Who is given a new chunk: the owners, those that take none now replaced by the next in order."""
    return _spread(order(digest, (server for server in servers if takes_chunks(server))), replicas)


def takes_chunks(server: Server) -> bool:
    """Whether a new chunk may be put on `server` now."""
    return server.stores and server.state == "up" and not server.full


def writing_order(digest: bytes, servers: Iterable[Server], replicas: int) -> tuple[Server, ...]:
    """The writers, then whoever may stand in for one that fails, in order."""
    line = order(digest, (server for server in servers if takes_chunks(server)))
    first = _spread(line, replicas)
    return first + tuple(server for server in line if server not in first)


def reading_order(digest: bytes, servers: Sequence[Server], replicas: int, zone: str) -> tuple[Server, ...]:
    """Whom to ask for the chunk: the owners (those of `zone` first), the rest in order, then those of weight 0.

    Goes down to the last server of the table: right after joins no computed owner may have the chunk yet,
    and a server whose weight was set to 0 may still hold what it had. Those that are down come last of all,
    because most likely they do not answer; but the table may be behind.
    """
    line = order(digest, servers)
    owning = _spread([server for server in line if server.owns], replicas)
    first = sorted(owning, key=lambda server: not zone or server.zone != zone)
    rest = [server for server in line if server not in first]
    everyone = [*first, *rest, *(server for server in servers if not server.stores)]
    return tuple(sorted(everyone, key=lambda server: server.state == "down"))


def _spread(line: Sequence[Server], replicas: int) -> tuple[Server, ...]:
    """The first `replicas` of `line`, of each zone one before any zone has two."""
    zones: set[str] = set()
    chosen: list[Server] = []
    passed_over: list[Server] = []
    for server in line:
        if len(chosen) == replicas:
            return tuple(chosen)
        zone = server.zone or server.id
        if zone in zones:
            passed_over.append(server)
        else:
            zones.add(zone)
            chosen.append(server)
    if not passed_over:
        return tuple(chosen)
    filled = [*chosen, *passed_over[: replicas - len(chosen)]]
    return tuple(server for server in line if server in filled)
