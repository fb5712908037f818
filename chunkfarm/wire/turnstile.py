"""Lets few of those through in each turn of the reactor who take long, so that all others do not wait for them.

A handshake takes half a millisecond and more, and a thousand who come together are all ready in the same turn; so are a
hundred large answers. Each of them then waits for its place in line; whoever only wants little is served in between.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

HANDSHAKES_IN_TURN = 1
"""Steps of handshakes in one turn: up to a millisecond, as long as a small request takes anyway, which has several."""
ACCEPTED_IN_TURN = 2
"""Connections that a port accepts in one turn, at a fifth of a millisecond each. Others wait in the kernel."""
SENT_IN_TURN = 2
"""Parts of large answers in one turn, at half a millisecond each, or two where threads for the disk want the
interpreter at the same time."""

T = TypeVar("T", bound=Hashable)


class Turnstile(Generic[T]):
    """For all connections of a port. `go_on` is called with whoever was not let through, when its turn has come.

    `reactor` says when a turn is over.
    """

    def __init__(self, reactor: Any, in_turn: int, go_on: Callable[[T], None]) -> None:
        self._reactor = reactor
        self._in_turn = in_turn
        self._go_on = go_on
        self._left = in_turn
        self._line: OrderedDict[T, None] = OrderedDict()
        self._scheduled = False

    def passes(self, waits: T) -> bool:
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

    def leave(self, waits: T) -> None:
        """It waits no longer."""
        self._line.pop(waits, None)

    def _later(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._left = self._in_turn
        try:
            while self._line and self._left:
                self._left -= 1
                waits, _ = self._line.popitem(last=False)
                self._go_on(waits)
        finally:
            # Whoever fails at its turn must not keep the others from theirs.
            if self._line or self._left < self._in_turn:
                self._later()
