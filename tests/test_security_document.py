"""docs/security.md names a test for each way in, and each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import chunkfarm

ROOT = Path(chunkfarm.__file__).parents[1]
ROW = re.compile(r"^\| [a-z, ]+ \| .* \| `(tests/[^`]+)` \|$", re.MULTILINE)


class SecurityDocumentTests(SynchronousTestCase):
    def test_every_test_exists(self) -> None:
        """What is said to be tried is tried."""
        named = ROW.findall((ROOT / "docs" / "security.md").read_text())
        assert len(named) > 40
        for name in named:
            path, *parts = name.split("::")
            inside: ast.AST = ast.parse((ROOT / path).read_text())
            for part in parts:
                found = [node for node in ast.iter_child_nodes(inside) if getattr(node, "name", None) == part]
                assert found, name
                inside = found[0]
