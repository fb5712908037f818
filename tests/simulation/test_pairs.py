"""Two servers, of which one is lost: the attacks that broke earlier rules, and random histories."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.records import Configuration
from tests.simulation.checks import Violation
from tests.simulation.core import TICK, Options, Server
from tests.simulation.pair_mutants import PAIR_MUTANTS
from tests.simulation.pairs import GRACE, PairSimulation, Rules, ThirdSimulation

SEEDS = range(1, 26)
SECOND = 10 * TICK


class Stage(PairSimulation):
    """A pair without weather, for histories that are told step by step; clients write all the time."""

    def __init__(self, rules: Rules | None = None, voters: int = 2) -> None:
        self._voters = voters
        super().__init__(1, rules)
        self._healed = True
        self._nudge_first()
        self.run_for(5 * SECOND)

    def _draw_options(self) -> Options:
        return evolve(super()._draw_options(), voters=self._voters, ranked=True, loss=0.0, repeat=0.0, slow=0.0)

    def _nudge_first(self) -> None:
        first = self.servers["a"]
        assert first.core is not None
        first.core.campaign()
        self._touched(first)

    def _weather(self) -> None:
        self._at(TICK, self._weather)
        for server in self._leaders():
            self._propose(server)

    def _running(self) -> list[Server]:
        return [one for one in self.servers.values() if one.core is not None and one.frozen_until <= self.now]

    def _change(self) -> None:
        """Nobody is added or removed but by the test."""

    def run_for(self, time: int) -> None:
        self._until(self.now + time)

    def freeze(self, id: str, time: int) -> None:
        self.servers[id].frozen_until = self.now + time

    def kill(self, *ids: str) -> None:
        for id in ids:
            self._crash(self.servers[id])

    def start(self, *ids: str) -> None:
        for id in ids:
            self._restart(self.servers[id])

    def writes(self, time: int = 3 * SECOND) -> bool:
        """Whether writes are committed while this time passes."""
        before = self.checks.commit
        self.run_for(time)
        return self.checks.commit > before + 2

    def voters(self, id: str) -> str:
        core = self.servers[id].core
        assert core is not None
        return "".join(sorted(core.configuration.voters))

    def propose_change(self, voters: str, learners: str = "") -> None:
        (server,) = self._leaders()
        assert server.core is not None
        server.core.propose_configuration(Configuration(voters, learners))
        self._touched(server)

    def leads(self, id: str) -> bool:
        return [server.id for server in self._leaders()] == [id]

    def until(self, what: Callable[[], bool]) -> None:
        for _ in range(1000):
            if what():
                return
            self.run_for(1)
        raise AssertionError("waited in vain")


class AttackTests(SynchronousTestCase):
    """Each history is also played with the rule broken that it was made for, and must lose something then."""

    def check(self, history: Callable[[Stage], None], mutant: str = "", voters: int = 2) -> None:
        history(Stage(voters=voters))
        if mutant:
            with pytest.raises(Violation):
                history(Stage(PAIR_MUTANTS[mutant][0], voters=voters))

    def test_the_first_dies(self) -> None:
        """The second takes over and takes writes; the first comes back to a farm that does not wait for it."""

        def history(stage: Stage) -> None:
            assert stage.leads("a")
            stage.kill("a")
            stage.run_for(GRACE - SECOND)
            assert stage.takeovers == 0
            stage.run_for(3 * SECOND)
            assert stage.takeovers == 1 and stage.leads("b") and stage.voters("b") == "b"
            assert stage.writes()
            stage.start("a")
            assert stage.writes() and stage.leads("b")

        self.check(history)

    def test_the_second_dies(self) -> None:
        """The first drops it after `master_grace`, and takes writes."""

        def history(stage: Stage) -> None:
            stage.kill("b")
            assert not stage.writes(GRACE - TICK)
            assert stage.writes() and stage.drops == 1 and stage.voters("a") == "a"

        self.check(history)

    def test_thawed_follower(self) -> None:
        """1: the second was frozen while the first dropped it, wrote and died; it must not take over."""

        def history(stage: Stage) -> None:
            stage.freeze("b", 2 * GRACE)
            stage.run_for(GRACE + 3 * SECOND)
            assert stage.drops
            stage.kill("a")
            stage.run_for(6 * GRACE)
            assert stage.takeovers == 0
            stage.start("a")
            assert stage.writes() and stage.leads("a")

        self.check(history, "takes-over-thawed")

    def test_thawed_in_time(self) -> None:
        """The second was frozen for less than `master_grace`: the first did not go on, so nothing can be lost."""

        def history(stage: Stage) -> None:
            stage.freeze("b", GRACE // 2)
            stage.run_for(GRACE // 3)
            stage.kill("a")
            stage.run_for(3 * GRACE)
            assert stage.takeovers == 1 and stage.writes()

        self.check(history, "drops-too-early")

    def test_buried_leader_starts_first(self) -> None:
        """2: the survivor wrote and died too; the old first starts before it, and must wait for it."""

        def history(stage: Stage) -> None:
            stage.kill("a")
            stage.run_for(3 * GRACE)
            assert stage.takeovers == 1 and stage.writes()
            stage.kill("b")
            stage.run_for(2 * GRACE)
            stage.start("a")
            stage.run_for(6 * GRACE)
            assert stage.takeovers == 1 and not stage._leaders()
            stage.start("b")
            assert stage.writes() and stage.leads("b")

        self.check(history, "takes-over-restarted")

    def test_stolen_address(self) -> None:
        """3: another machine has the first's address and refuses, while the first lives and goes on."""

        def history(stage: Stage) -> None:
            stage.stolen.add("a")
            stage.run_for(5 * GRACE)
            assert stage.takeovers == 0 and stage.drops == 1
            assert stage.writes() and stage.leads("a")

        self.check(history, "takes-over-stolen")

    def test_half_deaf_leader(self) -> None:
        """4: the first did not hear the second, which heard it all the time; it went on alone and died."""

        def history(stage: Stage) -> None:
            stage.cut.add(("b", "a"))
            stage.until(lambda: stage.drops == 1)
            stage.run_for(SECOND)
            stage.kill("a")
            stage.cut.clear()
            stage.run_for(6 * GRACE)
            assert stage.takeovers == 0
            stage.start("a")
            assert stage.writes()

        self.check(history, "takes-over-unconfirmed")

    def test_silence_is_no_death(self) -> None:
        """A cut between two that live: one side goes on, and the other one waits."""

        def history(stage: Stage) -> None:
            stage.cut |= {("a", "b"), ("b", "a")}
            stage.run_for(6 * GRACE)
            assert stage.takeovers == 0 and stage.leads("a")

        self.check(history, "takes-over-on-timeout")

    def test_a_machine_without_power(self) -> None:
        """Nobody said that the first is gone, so the second waits, until the first is back."""

        def history(stage: Stage) -> None:
            stage.servers["a"].core = None
            stage.dark.add("a")
            stage.run_for(6 * GRACE)
            assert stage.takeovers == 0
            stage.start("a")
            assert stage.writes()

        self.check(history)

    def test_second_dies_while_joining(self) -> None:
        """13: the change that makes it a voter is never committed; a farm of one goes on all the same."""

        def history(stage: Stage) -> None:
            stage.propose_change("a", "b")
            stage.run_for(SECOND)
            stage.propose_change("ab")
            stage.kill("b")
            assert not stage.writes(GRACE - TICK)
            assert stage.writes() and stage.voters("a") == "a"

        self.check(history, voters=1)

    def test_second_dies_behind_its_vote(self) -> None:
        """13: the first is elected by both, and the second dies before anything of the new term is on both."""

        def history(stage: Stage) -> None:
            stage.kill("a", "b")
            stage.start("a", "b")
            stage.until(lambda: bool(stage._leaders()))
            (first,) = stage._leaders()
            (second,) = {"a", "b"} - {first.id}
            stage.kill(second)
            assert not stage.writes(GRACE - TICK)
            assert stage.writes() and stage.voters(first.id) == first.id

        self.check(history)

    def test_a_third_that_learns(self) -> None:
        """The first may have made a voter of a third without the second: that one waits."""

        def history(stage: Stage) -> None:
            stage.propose_change("ab", "c")
            stage.run_for(SECOND)
            stage.cut |= {("a", "b"), ("b", "c"), ("c", "b")}
            stage.propose_change("abc")
            stage.run_for(SECOND)
            stage.kill("a")
            stage.cut.discard(("a", "b"))
            stage.run_for(6 * GRACE)
            assert stage.takeovers == 0
            stage.cut.clear()
            assert stage.writes()

        self.check(history, "takes-over-beside-others")


class HistoryTests(SynchronousTestCase):
    """Random histories. `python -m tests.simulation --pairs` plays as many as wanted, also of each mutant."""

    def caught(self, name: str) -> None:
        rules, seed, _ = PAIR_MUTANTS[name]
        with pytest.raises(AssertionError):
            PairSimulation(seed, rules).run()

    def test_one_of_three_is_dropped(self) -> None:
        """A leader that goes on without one of three is noticed."""
        self.caught("drops-one-of-three")

    def test_anybody_is_confirmed(self) -> None:
        """A leader that lets a server build on its answers which lacks what was written without it is noticed."""
        self.caught("confirms-anybody")

    def test_seeds(self) -> None:
        """Random histories lose nothing, both ways of going on alone occur, and every farm works in the end."""
        takeovers = drops = 0
        for seed in SEEDS:
            simulation = PairSimulation(seed)
            try:
                simulation.run()
            except Violation as error:
                raise AssertionError(f"python -m tests.simulation --pairs --seeds {seed} --trace: {error}") from error
            takeovers += simulation.takeovers
            drops += simulation.drops
        assert takeovers and drops

    def test_a_third(self) -> None:
        """Where a third gets its vote just when the second hears nothing, nobody goes on beside the others."""
        for seed in range(1, 6):
            ThirdSimulation(seed).run()
