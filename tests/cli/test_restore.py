"""`chunkfarm restore`."""

from __future__ import annotations

import json

import pytest
from click.testing import Result
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from chunkfarm.table.interface import Row
from tests.cli.world import World
from tests.survivor import FARM, Survivor


class RestoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.survivor = Survivor(self.mktemp())
        self.world = World(self.mktemp())
        self.world.config = self.survivor.directory / "config.ini"

    def run_restore(self, *arguments: str, name: str = "lab") -> Result:
        return self.world.run("restore", "--yes", name, *arguments)

    def test_restoring(self) -> None:
        """It shows what it found and who answers, restores the newest, and says how to go on."""
        self.survivor.export(revision=100, rows=309)
        self.survivor.export()
        result = self.run_restore()
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert lines[0].split() == ["EXPORT", "REVISION", "ROWS", "CHUNKS"]
        assert lines[1].split() == ["2026-11-22", "10:00:00", "500", "311", "2", "whole"]
        assert lines[3] == "s1 (127.0.0.1:4110): refused"
        assert "Restored 311 rows. Start s4 as always" in result.stdout
        assert "--data" in lines[-1]
        # Beside those of the export the line that begins, the export, and the epoch.
        assert len(self.survivor.restored()) == 314

    def test_json(self) -> None:
        """The same for programs."""
        self.survivor.export()
        told = json.loads(self.run_restore("--copy-to", "carried", "--json").stdout)
        assert told["copied"] == 3 and told["exports"][0]["missing"] == 0
        told = json.loads(self.run_restore("--json").stdout)
        assert (told["rows"], told["server"]) == (311, "s4")
        assert told["others"]["s1 (127.0.0.1:4110)"] == "refused"
        assert told["restored"] == told["exports"][0] and told["restored"]["revision"] == 500
        assert len(self.survivor.restored()) == 314

    def test_noted(self) -> None:
        """What the server has noted of its exports need not be looked for."""
        self.survivor.export(noted=True)
        self.survivor.export(revision=600)
        assert "600" not in self.run_restore(name="other").stdout
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr("chunkfarm.cli.restoring.TELL_SECONDS", -1.0)
            result = self.run_restore("--scan", name="other")
        assert "looking at all chunks: 100%" in result.stderr and "600" in result.stdout

    def test_an_older_one(self) -> None:
        """The export of a revision is restored if that is asked for, and else the newest that is whole."""
        self.survivor.files = {f"home/{number:05d}": number for number in range(2_000)}
        old = self.survivor.rows()
        self.survivor.export(old, revision=100)
        self.survivor.export([*old[:-1], Row(old[-1].key, old[-1].value, 500)], lose=-1)
        result = self.run_restore(name="other")
        assert "whole" in result.stdout and "2026" in result.stdout
        wrong = self.run_restore("--revision", "77")
        assert wrong.exit_code == exits.FAILED and "no export of revision 77" in wrong.stderr
        assert self.survivor.restored() == {}
        result = self.run_restore("--revision", "100")
        assert result.exit_code == 0, result.output

    def test_nothing_found(self) -> None:
        """One sentence that says where else to look."""
        (self.survivor.data / "chunks").mkdir()
        result = self.run_restore()
        assert result.exit_code == exits.FAILED
        assert "no export of this farm" in result.stderr and "--from" in result.stderr

    def test_carrying_chunks_over(self) -> None:
        """Two servers that lack different chunks have an export together: what one has is copied for the other."""
        for number in range(2_000):
            self.survivor.files[f"home/{number:05d}"] = number
        other = Survivor(self.mktemp())
        rows = self.survivor.rows()
        self.survivor.export(rows, lose=0)
        other.export(rows, lose=1)
        missing = self.run_restore()
        assert missing.exit_code == exits.FAILED and "--from" in missing.stderr
        self.world.config = other.directory / "config.ini"
        carried = other.directory / "carried"
        copied = self.world.run("restore", "--copy-to", str(carried))
        assert copied.exit_code == 0 and "Copied" in copied.stdout, copied.output
        self.world.config = self.survivor.directory / "config.ini"
        result = self.run_restore("--from", str(carried))
        assert result.exit_code == 0, result.output
        assert "whole" in result.stdout and len(self.survivor.restored()) == len(rows) + 3

    def test_a_wrong_name(self) -> None:
        """Nothing is changed."""
        self.survivor.export()
        result = self.run_restore(name="bal")
        assert result.exit_code == exits.FAILED and "another name" in result.stderr
        assert self.survivor.restored() == {}
        assert self.world.run("restore").exit_code == exits.USAGE

    def test_a_farm_that_lives(self) -> None:
        """A server that is served by a first, that runs, or that knows more, stands in the way, and is named."""
        self.survivor.export()
        for said, expected in (
            ({"state": "serving", "revision": "700"}, "nothing is lost"),
            ({"state": "readonly", "revision": "700"}, "holds-table=yes"),
            ({"state": "waiting", "revision": "500"}, "say `chunkfarm takeover`"),
        ):
            self.world.said = {"s2": {"farm": FARM, **said}}
            result = self.run_restore()
            assert result.exit_code == exits.FAILED and expected in result.stderr and "s2" in result.stderr, said
        assert self.survivor.restored() == {}
        assert self.run_restore("--force").exit_code == 0

    def test_who_stands_in_nobody_s_way(self) -> None:
        """A server that waits and holds no table, or one of another farm."""
        self.survivor.export()
        self.world.said = {
            "s5": {"farm": FARM, "state": "waiting", "revision": "0"},
            "s1": {"farm": "0b" * 16, "state": "serving", "revision": "9000"},
        }
        result = self.run_restore()
        assert result.exit_code == 0, result.output
        assert "s5 (127.0.0.1:4150): it is waiting" in result.stdout

    def test_asking(self) -> None:
        """On a terminal the name is asked for."""
        self.survivor.export()
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr("chunkfarm.cli.restoring.is_terminal", lambda: True)
            result = self.world.run("restore", input=b"lab\n")
        assert result.exit_code == 0, result.output
        assert "s4 goes on with that. The farm's name, to confirm" in result.stderr
