"""The consensus in simulated weather, a few seeds of it. `python -m tests.simulation` runs as many as wanted."""

from __future__ import annotations

import contextlib
import io
from unittest import mock

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.__main__ import main
from tests.simulation.all_mutants import ALL_MUTANTS, CHUNKS
from tests.simulation.checks import Violation
from tests.simulation.config_writes import ConfigSimulation
from tests.simulation.core import Simulation
from tests.simulation.disturbance import DisturbanceSimulation
from tests.simulation.lateness import LateSimulation
from tests.simulation.repeats import RepeatSimulation
from tests.simulation.trace import lines

SEEDS = range(1, 41)


class SimulationTests(SynchronousTestCase):
    def test_seeds(self) -> None:
        """Forty histories full of faults break no rule, and each farm works again when the faults end."""
        for seed in SEEDS:
            try:
                Simulation(seed).run()
            except Violation as error:
                raise AssertionError(f"python -m tests.simulation --seeds {seed} --trace: {error}") from error

    def test_same_trace(self) -> None:
        """The same seed makes the same history, byte for byte."""
        told = []
        for _ in range(2):
            simulation = Simulation(17)
            simulation.run()
            told.append("\n".join(lines(simulation)))
        assert told[0] == told[1]
        assert len(told[0].splitlines()) > 500

    def test_every_kind_of_event(self) -> None:
        """The histories hold what they are meant to hold: elections, changes, transfers, snapshots, faults."""
        seen = set()
        for seed in range(1, 9):
            simulation = Simulation(seed)
            simulation.run()
            for _, what, *rest in simulation.trace:
                seen.add(what)
                if what == "deliver":
                    seen.add(rest[0].kind.value)
        wanted = {"crash", "restart", "freeze", "cut", "mend", "change", "transfer", "compact", "campaign", "propose"}
        wanted |= {"snapshot", "timeout_now", "read_answer", "pre_vote_answer", "vote_answer", "append_answer"}
        assert wanted <= seen, wanted - seen


class MutantTests(SynchronousTestCase):
    """Known faults are found out."""

    def test_each_is_caught(self) -> None:
        """Each fault is found with the seed that stands beside it, or, if histories have changed, with another one."""
        for mutant in ALL_MUTANTS.values():
            if mutant.kind == CHUNKS:
                continue
            seeds = (mutant.seed, *range(1, mutant.within + 1))
            assert any(mutant.caught(seed) for seed in seeds), f"{mutant.name} lives through {mutant.within} seeds"


class DisturbanceTests(SynchronousTestCase):
    def test_a_lonely_server_disturbs_nobody(self) -> None:
        """Whoever was cut off and comes back follows the leader that the others heard all the time."""
        for seed in (1, 2):
            DisturbanceSimulation(seed).run()

    def test_late_answers(self) -> None:
        """Votes that arrive in another term elect nobody."""
        for seed in range(1, 6):
            LateSimulation(seed).run()


class RepeatTests(SynchronousTestCase):
    def test_once(self) -> None:
        """Requests that are lost, late, doubled and sent again take effect once at most."""
        for seed in range(1, 21):
            RepeatSimulation(seed).run()

    def test_generations_of_config_ini(self) -> None:
        """Servers that hear of changes late never put an older config.ini in the place of a newer one."""
        ConfigSimulation(1).run()


class CommandTests(SynchronousTestCase):
    def run_command(self, *arguments: str) -> tuple[int, str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            status = main(arguments)
        return status, out.getvalue()

    def test_passes(self) -> None:
        """The command says how many seeds passed, and exits 0."""
        status, out = self.run_command("--seeds", "1..3")
        assert status == 0
        assert "3 seeds passed" in out

    def test_pairs(self) -> None:
        """Farms of two are another kind of history, with mutants of their own."""
        status, out = self.run_command("--pairs", "--seeds", "1..2")
        assert status == 0
        assert "2 seeds passed" in out
        status, out = self.run_command("--pairs", "--seeds", "133", "--mutant", "drops-one-of-three")
        assert status == 1
        assert "replay: python -m tests.simulation --seeds 133 --pairs --mutant drops-one-of-three --trace" in out

    def test_mutants(self) -> None:
        """All known faults are looked for, each from the first seed on; one that lives is a failure."""
        few = {name: ALL_MUTANTS[name] for name in ("forgets-votes", "no-pre-vote")}
        with mock.patch("tests.simulation.__main__.ALL_MUTANTS", few):
            status, out = self.run_command("--mutants")
        assert status == 0
        assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["forgets-votes", "1"], ["no-pre-vote", "1"]]
        lives = {"harmless": evolve(few["forgets-votes"], name="harmless", play=lambda seed: None)}
        with mock.patch("tests.simulation.__main__.ALL_MUTANTS", lives):
            status, out = self.run_command("--mutants")
        assert status == 1
        assert "harmless" in out and "lives" in out

    def test_failure_can_be_replayed(self) -> None:
        """A failing seed is named with the rule that broke, the trace and the command that shows it again."""
        status, out = self.run_command("--seeds", "1..60", "--mutant", "commits-on-half")
        assert status == 1
        assert "durability: " in out
        replay = next(line for line in out.splitlines() if line.startswith("replay: python -m tests.simulation "))
        _, again = self.run_command(*replay.split()[4:])
        assert out.splitlines()[-5:] == again.splitlines()[-5:]
