"""How much a server disturbs that is lonely for a while and comes back: not at all.

Three voters in good health, of which one follower at a time is cut off for longer than election timeouts take. The
others hear their leader all the time, so it goes on leading, in the same term, also when the lonely one returns
(pre-vote, dissertation 9.6).
"""

from __future__ import annotations

from attrs import evolve

from chunkfarm.table.consensus import Consensus
from tests.simulation.checks import Violation
from tests.simulation.core import ELECTION_TICKS, TICK, MakeCore, Options, Server, Simulation

TICKS = 600


class DisturbanceSimulation(Simulation):
    """One run of such a farm; `disturbances` counts the terms that began after the first leader's."""

    names = ("a", "b", "c")

    def __init__(self, seed: int, make_core: MakeCore = Consensus) -> None:
        super().__init__(seed, make_core)
        self._healed = True
        self._absent_until = 0

    @property
    def disturbances(self) -> int:
        return max(0, len(self.checks.terms_led) - 1)

    def run(self) -> None:
        self._until(TICKS * TICK)
        self.checks.finished(self.servers)
        if self.disturbances:
            raise Violation(f"disturbance: {self.disturbances} new leaders, though the first was heard all the time")

    def _draw_options(self) -> Options:
        return evolve(Options.draw(self.random), voters=3)

    def _weather(self) -> None:
        self._at(TICK, self._weather)
        followers = [server for server in self.servers.values() if server not in self._leaders()]
        if len(followers) == 2 and self.now > self._absent_until + 10 * TICK:
            self._send_away(self.random.choice(followers))
        for leader in self._leaders():
            self._propose(leader)

    def _send_away(self, lonely: Server) -> None:
        absence = self.random.randrange(2, 6) * ELECTION_TICKS * TICK
        self._note("cut", lonely.id, "|", "the others")
        for other in self.names:
            if other != lonely.id:
                self.cut |= {(lonely.id, other), (other, lonely.id)}
        self._absent_until = self.now + absence
        self._at(absence, self._mend)
