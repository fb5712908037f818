"""docs/table.md names tests that exist, and faults as they are.

`CHUNKFARM_REWRITE_DOCUMENTS=1 pytest tests/test_table_document.py` writes the table of faults anew.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.all_mutants import ALL_MUTANTS, CHUNKS
from tests.simulation.core import HEALED_TICKS_MAX
from tests.simulation.farm import SERVE_WITHIN
from tests.simulation.old_disks import FORCED_TICKS_MAX

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "table.md"
BEGIN, END = "<!-- made by tests/test_table_document.py -->\n", "<!-- end -->"


def faults() -> str:
    """All known faults as a table."""
    lines = ["| fault | simulation | seed | rule |", "|---|---|---|---|"]
    for mutant in ALL_MUTANTS.values():
        if mutant.kind == CHUNKS:
            continue
        lines.append(f"| `{mutant.name}`: {mutant.what} | {mutant.kind} | {mutant.seed} | {mutant.rule} |")
    return "\n".join(lines) + "\n"


def methods(path: Path, test_case: str) -> set[str]:
    """The methods of a class in a file of tests."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == test_case:
            return {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    return set()


class TableDocumentTests(SynchronousTestCase):
    def test_named_tests_exist(self) -> None:
        """Every rule names a test, and every test that is named is there."""
        named = re.findall(r"`([\w/]+)::(\w+)::(\w+)`", DOCUMENT.read_text())
        assert len(named) > 40
        missing = [name for name in named if name[2] not in methods(HERE / f"{name[0]}.py", name[1])]
        assert not missing, missing

    def test_every_rule_is_guarded(self) -> None:
        """No rule stands there that no test guards."""
        rules = DOCUMENT.read_text().split("## The simulations")[0].split("\n\n")
        unguarded = [rule for rule in rules if rule.startswith("**") and "::test_" not in rule]
        assert not unguarded, unguarded

    def test_bounds(self) -> None:
        """The times within which everything works again are those that the simulations allow."""
        text = " ".join(DOCUMENT.read_text().split())
        assert f"`HEALED_TICKS_MAX`, {HEALED_TICKS_MAX} ticks" in text
        assert f"`FORCED_TICKS_MAX`, {FORCED_TICKS_MAX} ticks" in text
        assert f"`SERVE_WITHIN`, {SERVE_WITHIN:g} seconds" in text

    def test_every_rule_has_a_source(self) -> None:
        """No rule stands there of which nobody can tell where it comes from."""
        rules = DOCUMENT.read_text().split("## The simulations")[0].split("\n\n")
        without = [rule for rule in rules if rule.startswith("**") and not re.search(r"(?<!\*)\*[A-Z]", rule)]
        assert not without, without

    def test_faults(self) -> None:
        """The table of faults is that of the simulations."""
        text = DOCUMENT.read_text()
        before, rest = text.split(BEGIN)
        written, after = rest.split(END)
        if os.environ.get("CHUNKFARM_REWRITE_DOCUMENTS"):
            DOCUMENT.write_text(before + BEGIN + faults() + END + after)
            return
        assert written == faults()
