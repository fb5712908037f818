"""Farms in which nobody hears a leader, and votes come as late as elections take: many arrive in another term.

A `LateSimulation` is a `core.Simulation` of three voters that stand for election all the time. When the faults end
they are to agree on a leader like everybody else.
"""

from __future__ import annotations

from attrs import evolve

from chunkfarm.table.records import Message, MessageKind
from tests.simulation.core import ELECTION_TICKS, TICK, Options, Server, Simulation

LATE = (MessageKind.VOTE_ANSWER, MessageKind.APPEND_ANSWER, MessageKind.HEARTBEAT_ANSWER)
UNHEARD = (MessageKind.APPEND, MessageKind.HEARTBEAT)


class LateSimulation(Simulation):
    """One run of such a farm."""

    names = ("a", "b", "c")

    def _draw_options(self) -> Options:
        return evolve(Options.draw(self.random), voters=3, loss=0.0, ranked=False, faults=0.0)

    def _post(self, server: Server, message: Message) -> None:
        if self._healed or message.kind not in LATE + UNHEARD:
            super()._post(server, message)
            return
        self.checks.sent(message, server.disk)
        self._note("send", message)
        if message.kind in LATE:
            self._at(self.random.randrange(1, 2 * ELECTION_TICKS * TICK), self._deliver, message)

    def _change(self) -> None:
        """Nobody comes or goes: this is about elections."""
