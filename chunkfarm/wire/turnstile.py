"""Lets few TLS handshakes through in each turn of the reactor, so that those who have done theirs do not wait for them.

A handshake takes half a millisecond and more, and a thousand who come together are all ready in the same turn. Each of
them then waits for a place in line; whoever only wants an answer is served in between.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

IN_TURN = 1
"""Steps of handshakes in one turn: up to a millisecond, as long as a small request takes anyway, which has several."""
ACCEPTED_IN_TURN = 2
"""Connections that a port accepts in one turn, at a fifth of a millisecond each. Others wait in the kernel."""


class Waits(Protocol):
    """Somebody in line."""

    def go_on(self) -> None:
        """Its turn has come."""


class Turnstile:
    """For all connections of a port; `reactor` says when a turn is over."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._left = IN_TURN
        self._line: OrderedDict[Waits, None] = OrderedDict()
        self._scheduled = False

    def passes(self, waits: Waits) -> bool:
        """Whether it may go on now; if not, `go_on` is called later."""
        if waits in self._line:
            return False
        if self._left and not self._line:
            self._left -= 1
            self._later()
            return True
        self._line[waits] = None
        self._later()
        return False

    def leave(self, waits: Waits) -> None:
        """It waits no longer."""
        self._line.pop(waits, None)

    def _later(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._left = IN_TURN
        while self._line and self._left:
            self._left -= 1
            waits, _ = self._line.popitem(last=False)
            waits.go_on()
        if self._line or self._left < IN_TURN:
            self._later()
