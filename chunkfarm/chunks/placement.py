"""Which servers should hold a chunk: computed from its digest and the server table, never stored."""

from __future__ import annotations

from collections.abc import Iterable

from chunkfarm.model import Server


def order(digest: bytes, servers: Iterable[Server]) -> tuple[Server, ...]:
    """All servers that store (weight > 0, whatever their state), the most entitled first."""
    raise NotImplementedError


def owners(digest: bytes, servers: Iterable[Server], replicas: int) -> tuple[Server, ...]:
    """Who should hold the chunk: the first `replicas` in order, in different zones while there are enough."""
    raise NotImplementedError


def writers(digest: bytes, servers: Iterable[Server], replicas: int) -> tuple[Server, ...]:
    """Who is given a new chunk: the owners, those that are down, full, leaving or draining replaced by the next."""
    raise NotImplementedError
