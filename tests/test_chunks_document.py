"""docs/chunks.md names tests that exist, and faults as they are.

`CHUNKFARM_REWRITE_DOCUMENTS=1 pytest tests/test_chunks_document.py` writes the table of faults anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.all_mutants import ALL_MUTANTS, CHUNKS
from tests.test_table_document import methods

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "chunks.md"
BEGIN, END = "<!-- made by tests/test_chunks_document.py -->\n", "<!-- end -->"


def faults() -> str:
    """All known faults of who stores chunks, as a table."""
    lines = ["| fault | seed | rule |", "|---|---|---|"]
    for mutant in ALL_MUTANTS.values():
        if mutant.kind == CHUNKS:
            lines.append(f"| `{mutant.name}`: {mutant.what} | {mutant.seed} | {mutant.rule} |")
    return "\n".join(lines) + "\n"


class ChunksDocumentTests(SynchronousTestCase):
    def test_named_tests_exist(self) -> None:
        """Every rule names a test, and every test that is named is there."""
        named = re.findall(r"`([\w/]+)::(\w+)::(\w+)`", DOCUMENT.read_text())
        assert len(named) > 20
        missing = [name for name in named if name[2] not in methods(HERE / f"{name[0]}.py", name[1])]
        assert not missing, missing

    def test_every_rule_is_guarded(self) -> None:
        """No rule stands there that no test guards, and no fault is named that is not known."""
        rules = DOCUMENT.read_text().split("## The simulation")[0].split("\n\n")
        unguarded = [rule for rule in rules if rule.startswith("**") and "::test_" not in rule]
        assert not unguarded, unguarded
        named = {name for rule in rules if "Fault" in rule for name in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", rule)}
        known = {mutant.name for mutant in ALL_MUTANTS.values() if mutant.kind == CHUNKS}
        assert named == known, named ^ known

    def test_faults(self) -> None:
        """The table of faults is that of the simulation."""
        text = DOCUMENT.read_text()
        before, rest = text.split(BEGIN)
        written, after = rest.split(END)
        if os.environ.get("CHUNKFARM_REWRITE_DOCUMENTS"):
            DOCUMENT.write_text(before + BEGIN + faults() + END + after)
            return
        assert written == faults()
