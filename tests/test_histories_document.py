"""docs/histories.md names tests that exist, and rules that stand where it says."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.test_table_document import methods

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "histories.md"


def rows() -> list[str]:
    """A line of the tables for each history."""
    lines = DOCUMENT.read_text().splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| what happens ")]


def anchors(document: Path) -> set[str]:
    """The names by which its headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class HistoriesDocumentTests(SynchronousTestCase):
    def test_named_tests_exist(self) -> None:
        """Every test that is named is there."""
        named = re.findall(r"`([\w/]+)::(\w+)::(\w+)`", DOCUMENT.read_text())
        assert len(named) > 60
        missing = [name for name in named if name[2] not in methods(HERE / f"{name[0]}.py", name[1])]
        assert not missing, missing

    def test_every_history_is_played(self) -> None:
        """No history stands there that no test plays, or that no rule answers."""
        assert len(rows()) > 25
        lacking = [row for row in rows() if "::test_" not in row or ".md#" not in row]
        assert not lacking, lacking

    def test_rules_stand_where_it_says(self) -> None:
        """Every link leads to a heading of a document that is there."""
        links = re.findall(r"\]\((\w+\.md)#([\w\-]+)\)", DOCUMENT.read_text())
        lost = [(name, anchor) for name, anchor in links if anchor not in anchors(DOCUMENT.parent / name)]
        assert links and not lost, lost

    def test_stories_of_machines_are_told(self) -> None:
        """No story that was written for a history is missing."""
        for name in ("test_machine_stories", "test_start_stories"):
            stories = re.findall(r"^    def (test_\w+)", (HERE / "simulation" / f"{name}.py").read_text(), re.MULTILINE)
            untold = [story for story in stories if f"::{story}`" not in DOCUMENT.read_text()]
            assert not untold, untold
