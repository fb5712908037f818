"""Arrows point one way: every import goes to the same room or to one below."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import chunkfarm

ROOT = Path(chunkfarm.__file__).parent

FLOORS: list[set[str]] = [
    {"tap"},
    {"farm"},
    {"startup"},
    {"founding", "joining", "finding", "returning", "reloading"},
    {"backend", "chunk_parts", "parts", "status"},
    {"machine"},
    {"ports"},
    {"by_hand", "forgetting", "restoring"},
    {"believing", "join_file", "losses", "rotating"},
    {"renewal"},
    {"following"},
    {"exports"},
    {"files_at_risk", "references_link", "unheld_search"},
    {"references"},
    {"reference_index"},
    {"scoped"},
    {
        "access",
        "audit",
        "catalog",
        "changes",
        "emptying",
        "explanation",
        "failed_attempts",
        "invites",
        "issuer",
        "keyring",
        "ledger",
        "reporter",
        "sealed_rows",
        "said",
        "settings",
        "takeover",
        "unheld",
        "witness",
    },
    {"history"},
    {"survey"},
    {"chunks"},
    {"table"},
    {"chronicle"},
    {"links", "addresses", "data_directory", "kept_room", "systemd", "logs", "metrics"},
    {"rotation"},
    {"trust"},
    {"wire"},
    {"cures", "old_disks"},
    {
        "membership",
        "pace",
        "risk",
        "state",
        "timeline",
        "durable",
        "config",
        "config_file",
        "config_render",
        "config_text",
        "config_values",
        "limits",
    },
    {"model"},
    {"errors", "threads", "descriptors"},
]
"""From the top down. Rooms on one floor may use each other, but in no circle."""

CONTRACTS = {"table.interface": "model"}
"""Modules that hold promises and values alone stand as low as what they name, whatever room they are told in."""

BESIDE = {
    "cli": {"cli", "links", "trust", "wire", "model", "errors", "config", "config_values", "config_text"}
    | {"restoring", "config_file", "threads", "drill", "bench"},
    "drill": {"drill", "cli", "links", "trust", "errors", "config", "config_values"},
    "bench": {"bench", "cli", "drill", "links", "trust", "wire", "errors", "config"},
}
"""The operator's command stands beside the server; a part of it works on the data directory of one that is stopped. Its
drills and benchmarks use a farm as the command does: servers are processes of their own."""

PURE = [
    "bench.bounds",
    "drill.story",
    "model",
    "errors",
    "membership",
    "pace",
    "state",
    "table.consensus",
    "table.lines",
    "table.objections",
    "table.survivor",
    "table.voters",
    "chunks.placement",
    "chunks.repair",
    "cures",
    "emptying",
    "explanation",
    "exports.form",
    "settings",
    "old_disks",
    "failed_attempts",
    "timeline",
    "witness",
    "rotation",
    "sealed_rows",
    "unheld",
]
IMPURE_MODULES = {"socket", "os", "sqlite3", "threading", "subprocess", "time"}


def imports(path: Path) -> set[str]:
    """The modules that a file imports when it runs (not those for type checkers alone)."""
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.dump(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0 and node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)

    Visitor().visit(ast.parse(path.read_text()))
    return found


def room_of(module: str) -> str:
    for contract, room in CONTRACTS.items():
        if (module + ".").startswith(f"chunkfarm.{contract}."):
            return room
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


class ArrowTests(SynchronousTestCase):
    """Read from the imports themselves."""

    def modules(self) -> dict[str, set[str]]:
        return {
            ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): imports(path)
            for path in sorted(ROOT.rglob("*.py"))
        }

    def test_every_room_has_a_floor(self) -> None:
        """A new room is given its place before it is used."""
        known = set().union(*FLOORS) | set(BESIDE)
        rooms = {room_of(module) for module in self.modules()} - {""}
        assert rooms <= known, rooms - known

    def test_no_arrow_points_up(self) -> None:
        """Nobody imports from a floor above."""
        floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
        wrong = []
        for module, used in self.modules().items():
            room = room_of(module)
            for other in used:
                target = room_of(other)
                if not other.startswith("chunkfarm.") or target == "__version__":
                    continue
                if room in BESIDE:
                    if target not in BESIDE[room]:
                        wrong.append((module, other))
                elif room and (target not in floor or floor[target] < floor[room]):
                    wrong.append((module, other))
        assert wrong == []

    def test_rules_touch_no_machine(self) -> None:
        """What is pure imports neither sockets nor disks nor clocks, nor Twisted."""
        modules = self.modules()
        for name in PURE:
            used = {one.split(".")[0] for one in modules[f"chunkfarm.{name}"]}
            assert not used & (IMPURE_MODULES | {"twisted"}), (name, used)

    def test_no_circle(self) -> None:
        """Module by module, no import leads back to where it began."""
        modules = self.modules()
        graph = {
            module: {
                other if other in modules else other.rpartition(".")[0]
                for other in used
                if other.startswith("chunkfarm.") and (other in modules or other.rpartition(".")[0] in modules)
            }
            - {module}
            for module, used in modules.items()
        }
        done: set[str] = set()

        def visit(module: str, path: tuple[str, ...]) -> None:
            assert module not in path, " -> ".join((*path[path.index(module) :], module))
            if module in done:
                return
            for other in sorted(graph[module]):
                # A package is imported with each of its modules, and that is no arrow of theirs.
                if not (module + ".").startswith(other + ".") and not (other + ".").startswith(module + "."):
                    visit(other, (*path, module))
            done.add(module)

        for module in graph:
            visit(module, ())
