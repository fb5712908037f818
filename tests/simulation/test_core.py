"""The consensus in simulated weather, a few seeds of it. `python -m tests.simulation` runs as many as wanted."""

from __future__ import annotations

import contextlib
import io

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.__main__ import main
from tests.simulation.checks import Violation
from tests.simulation.core import MakeCore, Simulation
from tests.simulation.mutants import MUTANTS
from tests.simulation.trace import lines

SEEDS = range(1, 61)


def first_failure(make_core: MakeCore, seeds: range) -> int:
    """The first seed in which this core breaks a rule; 0 if none does."""
    for seed in seeds:
        try:
            Simulation(seed, make_core).run()
        except (AssertionError, ValueError):
            return seed
    return 0


class SimulationTests(SynchronousTestCase):
    def test_seeds(self) -> None:
        """Sixty histories full of faults break no rule, and each farm works again when the faults end."""
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
    """A core with a fault is found out, each within the number of seeds that stands beside it."""

    def caught(self, name: str) -> None:
        make_core, seeds = MUTANTS[name]
        assert first_failure(make_core, range(1, seeds + 1)), f"{name} lived through {seeds} seeds"

    def test_truncates_matching(self) -> None:
        """A late append that cuts off acknowledged entries is noticed."""
        self.caught("truncates-matching")

    def test_commits_old_terms(self) -> None:
        """Committing an earlier term's entry by counting copies is noticed."""
        self.caught("commits-old-terms")

    def test_forgets_votes(self) -> None:
        """A vote that is not durable is noticed."""
        self.caught("forgets-votes")

    def test_forgets_terms(self) -> None:
        """A term that is not durable is noticed."""
        self.caught("forgets-terms")

    def test_changes_twice(self) -> None:
        """Two changes of configuration at once are noticed."""
        self.caught("changes-twice")

    def test_changes_early(self) -> None:
        """A change before the leader's term has committed anything is noticed."""
        self.caught("changes-early")

    def test_acknowledges_early(self) -> None:
        """A follower that answers before its disk does is noticed."""
        self.caught("acknowledges-early")

    def test_counts_own_disk_early(self) -> None:
        """A leader that counts its own disk too early is noticed."""
        self.caught("counts-own-disk-early")

    def test_reads_without_round(self) -> None:
        """A deposed leader that answers reads by itself is noticed."""
        self.caught("reads-without-round")

    def test_votes_for_short_logs(self) -> None:
        """A vote for a candidate whose log is behind is noticed."""
        self.caught("votes-for-short-logs")

    def test_commits_without_match(self) -> None:
        """A commit index beyond what is known to match is noticed."""
        self.caught("commits-without-match")

    def test_commits_on_half(self) -> None:
        """A commit without a majority is noticed."""
        self.caught("commits-on-half")

    def test_never_stands_again(self) -> None:
        """A farm that stops for good is noticed."""
        self.caught("never-stands-again")


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

    def test_failure_can_be_replayed(self) -> None:
        """A failing seed is named with the rule that broke, the trace and the command that shows it again."""
        status, out = self.run_command("--seeds", "1..60", "--mutant", "commits-on-half")
        assert status == 1
        assert "durability: " in out
        replay = next(line for line in out.splitlines() if line.startswith("replay: python -m tests.simulation "))
        _, again = self.run_command(*replay.split()[4:])
        assert out.splitlines()[-5:] == again.splitlines()[-5:]
