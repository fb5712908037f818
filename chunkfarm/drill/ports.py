"""Ports for the servers of a drill, which nobody else takes before they listen."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from contextlib import ExitStack

from chunkfarm.config_values import PORT_MAX, PORTS_PER_SERVER
from chunkfarm.drill.story import DrillFailed

PORTS = range(20_000, 32_000, 10)
"""Below the range from which the kernel takes ports for outgoing connections."""
PORTS_TRIED = 1000
"""From the port that was asked for: so many servers nobody starts, and what is further away is somebody else's."""


class ReservedPorts:
    """Each taken port is held by a bound socket until `close`.

    Such a socket is bound while nobody else is, and shared only then (SO_REUSEADDR, socket(7)): a server, which always
    shares, can listen there as long as no other does, and nobody can reserve it a second time.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._held = ExitStack()

    def take(self, count: int, addresses: Iterable[str], start: int | None = None) -> list[int]:
        """So many times three ports in a row that are free on all these addresses; from `start` on, or anywhere.

        Raises `DrillFailed` if there are not enough.
        """
        wanted = tuple(addresses)
        tried: Iterable[int] = self._chance.sample(PORTS, len(PORTS))
        if start is not None:
            tried = range(start, min(start + PORTS_TRIED, PORT_MAX - 10), 10)
        found: list[int] = []
        with ExitStack() as taken:
            for base in tried:
                if len(found) == count:
                    break
                if (held := _reserved(base, wanted)) is not None:
                    taken.enter_context(held)
                    found.append(base)
            if len(found) < count:
                where = ", ".join(wanted)
                raise DrillFailed(f"there are not {count} times {PORTS_PER_SERVER} free ports in a row on {where}")
            self._held.enter_context(taken.pop_all())
        return found

    def close(self) -> None:
        """Leave them to others."""
        self._held.close()


def _reserved(base: int, addresses: Iterable[str]) -> ExitStack | None:
    """What holds three ports on each of them, or None if one is somebody's."""
    with ExitStack() as held:
        for address in addresses:
            for port in range(base, base + PORTS_PER_SERVER):
                bound = held.enter_context(socket.socket())
                try:
                    bound.bind((address, port))
                except OSError:
                    return None
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return held.pop_all()
