"""Farms of one or two voters simulated, with what two servers see of each other beside their messages.

A `PairSimulation` is a `core.Simulation` whose first also drops a silent second (`Consensus.drop`), and whose
second may take over from a first that is gone (`survivor.Survivor`). Servers are killed (their machine ends
their links and refuses new ones), lose their power (silence; later their machine refuses until they start),
are frozen, cut off in one or both directions, robbed of their address by a machine that refuses, and end a
link although they live. A third server comes and goes.

`Checks` asks what matters here: whoever leads has all that was ever committed, and whatever is committed is
committed once.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve, frozen

from chunkfarm.table.consensus import LEADER, ChangeRefused, Consensus
from chunkfarm.table.records import Configuration, Message
from chunkfarm.table.survivor import Survivor
from tests.simulation.core import TICK, MakeCore, Options, Server, Simulation

GRACE_TICKS = 30
"""`master_grace`: three election timeouts."""
GRACE = GRACE_TICKS * TICK
TICKS = 500
"""How long faults are made: long enough to lose one of two, to find it again and to lose the other."""
PROBE_TICKS = 5
"""Between two tries of the ports of a server that is suspected to be gone."""


@frozen
class Rules:
    """What is tried out: the real rules, or one of them broken."""

    make_core: MakeCore = Consensus
    make_survivor: Callable[[], Survivor] = Survivor
    drop_after: int = GRACE_TICKS + 2
    takes_over: bool = True
    remembers: bool = False
    """Whether a process goes by what an earlier one of the same server saw."""


class PairSimulation(Simulation):
    """One run of a farm of two, now and then of one or three."""

    names = ("a", "b", "c")

    def __init__(self, seed: int, rules: Rules | None = None, faulty_ticks: int = TICKS) -> None:
        self.rules = rules or Rules()
        self.survivors = {name: self.rules.make_survivor() for name in self.names}
        self.renounced: set[tuple[str, int]] = set()
        """Processes that have said that they leave: they never take over, and may be removed at once."""
        self.dark: set[str] = set()
        """Machines without power."""
        self.stolen: set[str] = set()
        """Servers whose address leads to another machine."""
        self.ending: set[tuple[str, int]] = set()
        """Servers whose links were ended a short while ago."""
        self.takeovers = 0
        self.drops = 0
        super().__init__(seed, self.rules.make_core, faulty_ticks)
        self.checks.changes_max = 2

    def _draw_options(self) -> Options:
        options = Options.draw(self.random)
        return evolve(options, voters=self.random.choice((1, 2, 2, 2, 2, 3)), faults=options.faults / 2)

    # A server.

    def _start(self, server: Server) -> None:
        self.dark.discard(server.id)
        super()._start(server)
        survivor = self.survivors[server.id] = self.rules.make_survivor()
        if self.rules.remembers and server.core is not None:
            for other in server.core.configuration.voters - {server.id}:
                survivor.answered(other, 1, self.now)
                survivor.confirmed(other, 1)
                survivor.closed(other)

    def _tick(self, server: Server) -> None:
        before = server.frozen_until <= self.now
        super()._tick(server)
        core = server.core
        if core is None or not before:
            return
        if core.role == LEADER and self.rules.drop_after:
            for other in core.configuration.voters - {server.id}:
                self.drop(server, other)
        if core.role == LEADER and not self._healed and self.random.random() < 0.03:
            self._change()
        if (self.now // TICK) % PROBE_TICKS == 0:
            self._probe(server)

    def drop(self, server: Server, other: str) -> bool:
        """What the duties of the first do in each round."""
        core = server.core
        assert core is not None
        try:
            core.drop(other, self.rules.drop_after)
        except ChangeRefused:
            return False
        self.drops += 1
        self._note("drop", server.id, other)
        self._touched(server)
        return True

    def _deliver(self, message: Message) -> None:
        server = self.servers[message.to]
        if message.sender in self.stolen or message.to in self.stolen:
            return
        awake = server.core is not None and server.frozen_until <= self.now
        if awake and (message.sender, message.to) not in self.cut:
            assert server.core is not None
            self.survivors[server.id].saw(message, server.core.term, server.core.answers, self.now)
        super()._deliver(message)

    # What servers see of each other's ends.

    def _ended(self, id: str) -> None:
        self.ending.add((id, self.servers[id].life))
        self._at(GRACE, self.ending.discard, (id, self.servers[id].life))
        self._end_links(id)

    def _end_links(self, id: str) -> None:
        """The links with `id` are ended by its machine: two ends, of which one comes behind all that was sent."""
        for other in self.servers.values():
            if other.id != id:
                for delay in (self.random.randrange(1, 5), self.random.randrange(5, 20)):
                    self._at(delay, self._see_end, other, other.life, id, self.servers[id].life)

    def _see_end(self, server: Server, life: int, id: str, whose: int) -> None:
        if self._later(server, self._see_end, server, life, id, whose):
            return
        there = server.core is not None and server.life == life and self.servers[id].life == whose
        if there and id not in self.stolen and (id, server.id) not in self.cut:
            self._note("closed", server.id, id)
            self.survivors[server.id].closed(id)

    def _probe(self, server: Server) -> None:
        """Try the ports of a leader that is suspected to be gone; the answer comes a little later."""
        survivor = self.survivors[server.id]
        if not survivor.suspects:
            return
        id = survivor.leader
        way = {(id, server.id), (server.id, id)} & self.cut
        refused = id in self.stolen or (not way and id not in self.dark and self.servers[id].core is None)
        self._at(self.random.randrange(1, 4), self._tried, server, server.life, id, refused)

    def _tried(self, server: Server, life: int, id: str, refused: bool) -> None:
        if self._later(server, self._tried, server, life, id, refused):
            return
        core = server.core
        if core is None or server.life != life:
            return
        may = self.survivors[server.id].tried(id, refused, self.now, GRACE)
        if may and self.rules.takes_over and (server.id, life) not in self.renounced:
            self._take_over(server, core, id)

    def _take_over(self, server: Server, core: Consensus, leader: str) -> None:
        try:
            core.take_over(leader)
        except ChangeRefused:
            return
        self.takeovers += 1
        self._note("take over", server.id, leader)
        self._touched(server)

    # Faults.

    def _faults(self) -> tuple[Callable[[], None], ...]:
        return (
            self._fault_kill,
            self._fault_kill,
            self._fault_kill_first,
            self._fault_kill_first,
            self._fault_power,
            self._fault_cut,
            self._fault_freeze,
            self._fault_freeze,
            self._fault_steal,
            self._fault_reset,
            self._fault_crowd,
            self._fault_story,
            self._fault_story,
            self._fault_story,
            self._mend,
        )

    def _crash(self, server: Server) -> None:
        super()._crash(server)
        self._ended(server.id)

    def _fault_kill(self, server: Server | None = None) -> None:
        server = server or self.random.choice(list(self.servers.values()))
        if server.core is None:
            self._restart(server)
            return
        self._crash(server)
        if self.random.random() < 0.8:
            # Often so soon that nobody can have gone on, often so late that somebody has.
            longest = self.random.choice((TICK, 10 * TICK, 3 * GRACE, 6 * GRACE))
            self._at(self.random.randrange(1, longest), self._restart, server)

    def _fault_kill_first(self) -> None:
        for server in self._leaders()[:1]:
            self._fault_kill(server)

    def _fault_power(self) -> None:
        """Nobody hears the end of it; its machine refuses between its own start and that of the server."""
        server = self.random.choice(self._running())
        self._note("power", server.id)
        server.core = None
        self.dark.add(server.id)
        on = self.random.randrange(1, 2 * GRACE)
        self._at(on, self._power_on, server, server.life)

    def _power_on(self, server: Server, life: int) -> None:
        if server.life == life and server.id in self.dark:
            self._note("power on", server.id)
            self.dark.discard(server.id)
            self._ended(server.id)
            self._at(self.random.randrange(1, 2 * GRACE), self._restart, server)

    def _fault_steal(self) -> None:
        """For a while another machine has the address: silence on the links there are, and new ones are refused.

        Not of one whose links just ended: something that ends links and refuses in the name of a server that
        lives is what the survivor cannot tell from its death.
        """
        server = self.random.choice(self._running())
        if (server.id, server.life) in self.ending:
            return
        self._note("stolen", server.id)
        self.stolen.add(server.id)
        self._at(self.random.randrange(1, 3 * GRACE), self._give_back, server.id)

    def _give_back(self, id: str) -> None:
        self.stolen.discard(id)

    def _fault_reset(self) -> None:
        """A server that lives ends its links, and opens others."""
        server = self.random.choice(self._running())
        if server.id not in self.stolen:
            self._note("reset", server.id)
            self._ended(server.id)

    def _fault_crowd(self) -> None:
        """Several things at once, as they come when a machine is in trouble."""
        first = self._leaders()[:1]
        for server in self.servers.values():
            if self.random.random() < 0.3 and server.core is not None:
                length = self.random.randrange(TICK, 2 * GRACE)
                self._note("freeze", server.id, length)
                server.frozen_until = max(server.frozen_until, self.now + length)
        for server in first:
            self._at(self.random.randrange(1, 2 * GRACE), self._kill_running, server)

    def _fault_story(self) -> None:
        """The first goes on without an answer of the second, and is killed just when that one comes to itself."""
        for first in self._leaders()[:1]:
            assert first.core is not None
            death = self.random.randrange(TICK, 2 * GRACE)
            length = max(TICK, death + self.random.randrange(-5 * TICK, 15 * TICK))
            frozen = self.random.random() < 0.5
            for id in first.core.configuration.voters - {first.id}:
                self._note("story", first.id, id, "frozen" if frozen else "unheard", death, length)
                if frozen:
                    second = self.servers[id]
                    second.frozen_until = max(second.frozen_until, self.now + length)
                else:
                    self.cut.add((id, first.id))
                    self._at(length, self.cut.discard, (id, first.id))
            for _ in range(self.random.randrange(3)):
                self._at(self.random.randrange(1, death), self._change)
            self._at(death, self._end_for_long, first)

    def _end_for_long(self, server: Server) -> None:
        if server.core is not None and not self._healed:
            self._crash(server)
            self._at(self.random.randrange(GRACE, 6 * GRACE), self._restart, server)

    def _kill_running(self, server: Server) -> None:
        if server.core is not None and not self._healed:
            self._fault_kill(server)

    # What the duties do.

    def _change(self) -> None:
        """One step as `voters.next_configuration` makes them: learn, vote, leave."""
        for server in self._leaders()[:1]:
            core = server.core
            assert core is not None
            wanted = self._next_change(server.id, core)
            if wanted is None:
                continue
            try:
                core.propose_configuration(wanted)
            except ChangeRefused:
                continue
            self._note("change", server.id, "".join(sorted(wanted.voters)), "".join(sorted(wanted.learners)))
            self.checks.changed(core)
            self._touched(server)

    def _next_change(self, leader: str, core: Consensus) -> Configuration | None:
        voters, learners = core.configuration.voters, core.configuration.learners
        for id in sorted(learners):
            if core.progress[id].recently_active and core.progress[id].state == "replicate":
                return Configuration(voters | {id}, learners - {id})
        others = sorted(voters - {leader})
        if len(voters) > 2 and self.random.random() < 0.5:
            return Configuration(voters - {self.random.choice(others)}, learners)
        if len(voters) == 2 and self.random.random() < 0.05:
            (id,) = others
            if self.servers[id].core is not None:
                self.renounced.add((id, self.servers[id].life))
                self._at(self.random.randrange(1, 50), self._kill_running, self.servers[id])
                return Configuration(voters - {id}, learners)
        strangers = sorted(set(self.names) - voters - learners)
        if strangers and (len(voters | learners) == 1 or self.random.random() < 0.1):
            return Configuration(voters, learners | {self.random.choice(strangers)})
        if learners:
            return Configuration(voters, learners - {self.random.choice(sorted(learners))})
        return None

    # The end.

    def _heal(self) -> None:
        self.stolen.clear()
        super()._heal()


class ThirdSimulation(PairSimulation):
    """Farms of two in which a third learns, and may get its vote just when the second hears nothing."""

    def _draw_options(self) -> Options:
        return evolve(super()._draw_options(), voters=2)

    def _faults(self) -> tuple[Callable[[], None], ...]:
        return (self._fault_third, self._fault_third, self._fault_third, self._fault_reset, self._mend)

    def _fault_third(self) -> None:
        """The first gives the third a vote, which the second does not hear, and dies."""
        for first in self._leaders()[:1]:
            core = first.core
            assert core is not None
            now = core.configuration
            seconds, thirds = sorted(now.voters - {first.id}), sorted(set(self.names) - now.voters)
            if len(now.voters) != 2 or not thirds:
                continue
            second, third = seconds[0], thirds[0]
            self._note("third", first.id, second, third)
            self._at(TICK, self.cut.update, {(first.id, second), (second, third), (third, second)})
            for later in range(2, 6):
                self._at(later * TICK, self._change)
            death = self.random.randrange(3 * TICK, 12 * TICK)
            self._at(death, self._end_for_long, first)
            self._at(death, self.cut.discard, (first.id, second))
            self._at(death + 4 * GRACE, self._mend)
