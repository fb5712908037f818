"""Disks that are put back from a copy, and persons who go on with what is left, in simulated weather.

An `OldDiskSimulation` is a `core.Simulation` in which copies of disks are taken, and put back later: a backup that
is restored, or a copied data directory that is started after the original is gone. Every fourth entry raises the
generation. Each server has a `config.ini` that is not on that disk: its process writes the generation into it a
moment after its rows have it. A process that finds the journal on its disk older than its `config.ini` is
withheld (`Consensus.withhold`) until it is `proven`, over crashes too.

Which histories that saves, and which it cannot:

* A disk whose copy lacks a generation that its `config.ini` has: whatever else was lost with it, votes and
  acknowledged entries, nothing that was committed is lost, and no term has two leaders.
* A copy that lacks no generation cannot be told from the disk itself. It may vote twice in a term, or for somebody
  who lacks what it has acknowledged. No rule that looks at generations saves that, so no such copy is put back here.
* Two old disks at a time: a majority of three may have forgotten the same entry, and nobody else ever had it. Not
  put back here either. The farm stands still then, until a person decides.
* The only disk that had everything: there is nobody who could catch it up. Not put back here.
* A copy that runs beside its original is one server for the core, with two wills. What keeps it from running
  stands outside the core (`links.twins`): it is refused as long as the original answers.
* A farm of one or two, where nobody can be elected without the one in doubt, stands still where its leader is
  gone; so does one of three where another is gone as well. The person of this simulation then goes on by force
  with the longest log of all, which loses nothing.

At the end of some histories a majority is lost for ever: the servers that are left lose what only those had, and the
one with the longest log goes on by force (`Consensus.force`) and takes the others in again.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from chunkfarm.table.consensus import LEADER, ChangeRefused, Consensus, NotLeader, majority
from chunkfarm.table.lines import TERM_LEAP
from chunkfarm.table.records import Configuration, Entry, EntryKind, Message
from tests.simulation.checks import Violation
from tests.simulation.core import FAULTY_TICKS, HEALED_TICKS_MAX, TICK, Disk, MakeCore, Server, Simulation

GENERATION_EVERY = 4
"""Of so many entries one raises the generation: often enough that most copies lack some."""
LEDGER_TICKS = 3
"""Between the rows and `config.ini`."""
COPIES_MAX = 4
"""Of each disk; old ones are thrown away."""
PATIENCE = 12
"""Looks, five ticks apart, in which nothing new was committed: then a person believes that the farm stands still."""
FORCED_TICKS_MAX = 200
"""For the one that goes on by force to take the others in again, one after the other."""


@define(eq=False)
class Witness:
    """What one server has beside its disk."""

    config: int = 0
    """The generation in its `config.ini`."""
    withheld: bool = False
    """The note on its disk that it is withheld."""
    copies: list[tuple[Disk, bool]] = field(factory=list)
    """Its disk and that note as they were at other times."""


def raises_generation(entry: Entry) -> bool:
    return entry.kind is EntryKind.DATA and int(entry.data.split()[0]) % GENERATION_EVERY == 0


class OldDiskSimulation(Simulation):
    """One run of a farm whose disks are put back now and then."""

    def __init__(self, seed: int, make_core: MakeCore = Consensus, faulty_ticks: int = FAULTY_TICKS) -> None:
        self.witnesses = {name: Witness() for name in self.names}
        self.generations = [0]
        """By index, as every server's rows have it."""
        self._seen_commit = 0
        self._stands_still = 0
        """Looks at the farm since anything new was committed."""
        self.gone: set[str] = set()
        """Servers that are lost for ever."""
        super().__init__(seed, make_core, faulty_ticks)
        # Who goes on by force need not wait for the end of another change.
        self.checks.changes_max = 2

    # A server.

    def _start(self, server: Server) -> None:
        super()._start(server)
        witness, core = self.witnesses[server.id], server.core
        assert core is not None
        witness.withheld = witness.withheld or self.generation(server.disk) < witness.config
        if witness.withheld:
            self._note("withheld", server.id)
            core.withhold()

    def _restart(self, server: Server) -> None:
        if server.id not in self.gone:
            super()._restart(server)

    def _deliver(self, message: Message) -> None:
        # A person takes longer than a message, so nothing of a machine that is gone is still under way.
        if message.sender not in self.gone:
            super()._deliver(message)

    def generation(self, disk: Disk) -> int:
        """The newest generation that a process finds on this disk, entries that are not applied included."""
        applied = disk.rows.index
        later = disk.entries[max(0, applied - disk.snapshot.index) :]
        return self.generations[applied] + sum(map(raises_generation, later))

    def _applied(self, server: Server, entry: Entry) -> None:
        if entry.index == len(self.generations):
            self.generations.append(self.generations[-1] + raises_generation(entry))
        self._at(LEDGER_TICKS * TICK, self._write_config, server, server.life, self.generations[entry.index])

    def _write_config(self, server: Server, life: int, generation: int) -> None:
        if (
            server.core is not None
            and server.life == life
            and not self._later(server, self._write_config, server, life, generation)
        ):
            witness = self.witnesses[server.id]
            witness.config = max(witness.config, generation)

    def _touched(self, server: Server) -> None:
        core = server.core
        assert core is not None
        if core.withheld and core.proven:
            self._release(server, core)
        super()._touched(server)

    def _release(self, server: Server, core: Consensus) -> None:
        self._note("released", server.id)
        core.release()
        self.witnesses[server.id].withheld = False
        self.checks.caught_up(server.id)

    # Bad luck.

    def _faults(self) -> tuple[Callable[[], None], ...]:
        return (*super()._faults(), self._fault_copy, self._fault_copy, self._fault_put_back, self._fault_put_back)

    def _fault_copy(self) -> None:
        """Somebody makes a backup."""
        server = self.random.choice(list(self.servers.values()))
        witness = self.witnesses[server.id]
        witness.copies = [*witness.copies[1 - COPIES_MAX :], (server.disk.copy(), witness.withheld)]
        self._note("copy", server.id, server.disk.last_index)

    def _fault_put_back(self) -> None:
        """A server is stopped, and a while later an older disk is in the place of its own."""
        server = self.random.choice(list(self.servers.values()))
        if server.core is not None:
            self._crash(server)
        self._at(self.random.randrange(1, 30 * TICK), self._put_back, server)

    def _put_back(self, server: Server) -> None:
        witness = self.witnesses[server.id]
        others = [self.witnesses[name] for name in self.names if name != server.id]
        older = [item for item in witness.copies if self.generation(item[0]) < witness.config]
        if self._healed or server.core is not None or not older or any(other.withheld for other in others):
            return
        if not any(self.checks.has_all(other.disk) for other in self.servers.values() if other is not server):
            return
        disk, withheld = self.random.choice(older)
        self._note("put back", server.id, server.disk.last_index, disk.last_index)
        self.checks.put_back(server.id, server.disk)
        server.disk, witness.withheld = disk.copy(), withheld
        self._restart(server)

    # The end.

    def run(self) -> None:
        self._until(self._faulty_ticks * TICK)
        self._heal()
        self._wait_alive(HEALED_TICKS_MAX, self._person)
        if self.random.random() < 0.5:
            self._disaster()
        self.checks.finished({name: server for name, server in self.servers.items() if name not in self.gone})

    def _wait_alive(self, ticks: int, meanwhile: Callable[[], None]) -> None:
        deadline = self.now + ticks * TICK
        while not self._alive():
            if self.now >= deadline:
                raise Violation(f"healed for {ticks} ticks, and {self._what_is_missing()}")
            self._until(self.now + 5 * TICK)
            meanwhile()

    def _person(self) -> None:
        """Somebody sees that nothing moves because one who is needed is withheld, and goes on with the longest log."""
        moved, self._seen_commit = self.checks.commit > self._seen_commit, self.checks.commit
        self._stands_still = 0 if moved else self._stands_still + 1
        if self._stands_still > PATIENCE and any(witness.withheld for witness in self.witnesses.values()):
            self._stands_still = 0
            self._force()

    def _cores(self) -> list[Consensus]:
        return [server.core for server in self.servers.values() if server.core is not None]

    def _force(self) -> Consensus:
        """The longest of all logs that are left goes on."""
        core = max(self._cores(), key=lambda core: (core.log.last_term, core.last_index))
        self._note("force", core.id)
        # As `by_hand` does: whoever is gone may have led terms that nobody who is left has heard of.
        core.force(max(other.term for other in self._cores()) + TERM_LEAP)
        self.witnesses[core.id].withheld = False
        self._touched(self.servers[core.id])
        return core

    def _disaster(self) -> None:
        """A majority burns down; the one with the longest log goes on, and takes in those that are left."""
        leader = self._leader()
        assert leader is not None
        voters = sorted(leader.configuration.voters)
        self.random.shuffle(voters)
        for name in voters[: majority(len(voters))]:
            self._note("gone", name)
            self.gone.add(name)
            self.servers[name].core = None
        self._until(self.now + self.random.randrange(30) * TICK)
        if not any(core.last_index for core in self._cores()):
            return
        core = max(self._cores(), key=lambda core: (core.log.last_term, core.last_index))
        self.checks.lost(core, max(other.term for other in self._cores()))
        assert self._force() is core
        self._goal, self._goal_token = self.checks.commit, self._tokens
        self._wait_alive(FORCED_TICKS_MAX, self._take_in)

    def _take_in(self) -> None:
        leader = self._leader()
        if leader is None:
            return
        now = leader.configuration
        left = [name for name in self.names if name not in self.gone and name not in now.voters]
        if left and leader.role == LEADER:
            try:
                leader.propose_configuration(Configuration(now.voters | {left[0]}, now.learners - {left[0]}))
            except (NotLeader, ChangeRefused):
                return
            self._touched(self.servers[leader.id])
