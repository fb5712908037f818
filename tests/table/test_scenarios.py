"""Scenarios of several servers as stories: `scenarios/*.txt`.

A line that begins with `> ` is a command of `lab.Lab`; the indented lines under it are what must happen.
`CHUNKFARM_REWRITE_SCENARIOS=1 pytest tests/table/test_scenarios.py` writes them anew, to be read before
they are committed.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.table.lab import Lab

SCENARIOS = Path(__file__).parent / "scenarios"
INDENT = "    "


def play(text: str) -> str:
    """The script with what happens now under each command."""
    lab = Lab()
    lines = []
    for line in text.splitlines():
        if line.startswith("> "):
            lines.append(line)
            lines.extend(INDENT + told for told in lab.run(line[2:]))
        elif not line.startswith(INDENT):
            lines.append(line)
    return "\n".join(lines) + "\n"


class ScenarioTests(SynchronousTestCase):
    def check(self, name: str) -> None:
        path = SCENARIOS / f"{name}.txt"
        written = path.read_text()
        played = play(written)
        if os.environ.get("CHUNKFARM_REWRITE_SCENARIOS"):
            path.write_text(played)
            return
        difference = difflib.unified_diff(written.splitlines(), played.splitlines(), "written", "played", lineterm="")
        assert written == played, f"{name}:\n" + "\n".join(difference)

    def test_every_scenario_is_played(self) -> None:
        """No script lies about that nobody plays."""
        named = {name.removeprefix("test_") for name in dir(self) if name.startswith("test_")}
        assert {path.stem for path in SCENARIOS.glob("*.txt")} <= named

    def test_election(self) -> None:
        """The senior server is elected, and what it takes in is applied by all."""
        self.check("election")

    def test_pre_vote(self) -> None:
        """A server that returns from loneliness disturbs nobody."""
        self.check("pre_vote")

    def test_one_way_cut(self) -> None:
        """A leader that hears nobody steps down, and another one goes on."""
        self.check("one_way_cut")

    def test_deposed_leader(self) -> None:
        """What a deposed leader alone had taken in gives way to what the majority decided."""
        self.check("deposed_leader")

    def test_transfer(self) -> None:
        """A junior leader hands over to a senior without a pause."""
        self.check("transfer")

    def test_learner(self) -> None:
        """A new server learns first, and votes then."""
        self.check("learner")

    def test_remove_leader(self) -> None:
        """A leader that removes itself leads until that is committed."""
        self.check("remove_leader")

    def test_configuration_reverted(self) -> None:
        """A configuration that was never committed is forgotten with its entry."""
        self.check("configuration_reverted")

    def test_snapshot(self) -> None:
        """A follower whose entries are gone gets a snapshot, and goes on from there."""
        self.check("snapshot")

    def test_deposed_read(self) -> None:
        """A deposed leader answers no read, and a follower's read is answered by the new one."""
        self.check("deposed_read")

    def test_durable_vote(self) -> None:
        """A vote holds across a restart; one that was not written has never left."""
        self.check("durable_vote")

    def test_two_of_two(self) -> None:
        """Of two voters both must have an entry; the leader stays when the other is silent."""
        self.check("two_of_two")

    def test_removed_campaigns(self) -> None:
        """The only server that has a change which removes it may still bring it to the others."""
        self.check("removed_campaigns")

    def test_higher_term(self) -> None:
        """A server that is alone in a higher term is heard, and follows again."""
        self.check("higher_term")

    def test_lost_appends(self) -> None:
        """Lost, repeated and late appends cost nothing that was acknowledged."""
        self.check("lost_appends")

    def test_resumed(self) -> None:
        """A voter that restarts resumes with its own journal, so that nothing committed is forgotten."""
        self.check("resumed")
