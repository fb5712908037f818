"""`chunkfarm export`."""

from __future__ import annotations

import json

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from chunkfarm.exports.maker import Progress
from tests.cli.world import World
from tests.ports.fakes import EXPORT_MADE, EXPORT_RUNS


class ExportTests(SynchronousTestCase):
    def make(self, *exports: Progress, server: str = "alpha") -> World:
        world = World(self.mktemp())
        world.servers[server].backend.exports = list(exports)
        return world

    def test_an_export(self) -> None:
        """It waits for the export, and says what was made and who has it."""
        result = self.make(EXPORT_RUNS, EXPORT_RUNS, EXPORT_MADE).run("export")
        assert result.exit_code == 0, result.output
        first, second = result.stdout.splitlines()
        assert first.startswith("Exported the table at revision 1234: 5,678 rows, ") and "3 of them new" in first
        assert second == "4 of 5 servers have all of it."

    def test_nothing_has_changed(self) -> None:
        """Then it says since when."""
        assert EXPORT_MADE.made is not None
        result = self.make(evolve(EXPORT_MADE, made=evolve(EXPORT_MADE.made, new=0))).run("export")
        assert "Nothing has changed since the export of 2026-11-22" in result.stdout

    def test_json(self) -> None:
        """The same for programs."""
        told = json.loads(self.make(EXPORT_MADE).run("export", "--json").stdout)
        assert (told["revision"], told["rows"], told["complete"], told["state"]) == (1234, 5678, 4, "done")

    def test_whoever_holds_the_table(self) -> None:
        """A server that holds no table is passed over."""
        result = self.make(EXPORT_MADE, server="beta").run("export")
        assert result.exit_code == 0, result.output

    def test_it_fails(self) -> None:
        """One sentence, and exit status 1."""
        result = self.make(Progress(number=1, running=False, failed="there is no room")).run("export")
        assert result.exit_code == exits.FAILED
        assert result.stderr == "chunkfarm: no export was made: there is no room\n"
