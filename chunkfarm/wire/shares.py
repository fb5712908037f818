"""Shares out what may be sent in one turn of the reactor, so that nobody waits for the megabytes of a hundred others.

A large answer is sent a megabyte a turn, in half a millisecond of encryption. A hundred who are all ready in the same
turn would take fifty of them, and with fresh sockets, whose kernel takes megabytes even for somebody who reads nothing,
one turn after the other. So a turn has a size, and those who fill it get equal parts of the next one.
"""

from __future__ import annotations

from typing import Any

from chunkfarm.model import KIB, MIB

ONE_IN_TURN = 1 * MIB
"""Bytes that one connection sends in one turn at most: half a millisecond of encryption."""
ALL_IN_TURN = 4 * MIB
"""That all of a port send, about: two milliseconds. Four who read as fast as they can notice nothing of it."""
LEAST_IN_TURN = 64 * KIB
"""That each may send all the same: a small file in one go."""


class Shares:
    """For all connections of a port; `reactor` says when a turn is over."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._left = ALL_IN_TURN
        self._one = ONE_IN_TURN
        self._count = 0
        """Connections that have sent as much as the least share or more in this turn."""

    @property
    def share(self) -> int:
        """Bytes that a connection may send now, in one turn of its own."""
        return max(LEAST_IN_TURN, min(self._one, self._left))

    def sent(self, count: int) -> None:
        """A connection has had its turn, and sent so much."""
        if count < LEAST_IN_TURN:
            # Most answers are small, and those need no account.
            return
        if not self._count:
            self._reactor.callLater(0, self._turn)
        self._count += 1
        self._left -= count

    def _turn(self) -> None:
        self._one = min(ONE_IN_TURN, ALL_IN_TURN // self._count)
        self._left, self._count = ALL_IN_TURN, 0
