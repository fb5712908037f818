"""`chunkfarm takeover`."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from tests.cli.world import World


class TakeoverTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(self.mktemp())
        for server in self.world.servers.values():
            server.backend.state.phase = "readonly"

    def test_going_on(self) -> None:
        """It shows who was found, takes the name, and says who leads."""
        result = self.world.run("takeover", "--farm", "lab")
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert lines[0].split() == ["SERVER", "ADDRESS", "STATE", "TERM", "INDEX"]
        assert lines[1].split() == ["alpha", "10.0.0.1:4101", "readonly", "3", "17", "the", "longest", "journal"]
        assert "no answer within 5 s" in lines[2]
        assert lines[3].startswith("alpha leads the farm, in line 1e1e")
        assert self.world.servers["alpha"].backend.taken_over == ["lab"]
        assert self.world.servers["beta"].backend.taken_over == []

    def test_json(self) -> None:
        """The table as JSON, with what was done."""
        told = json.loads(self.world.run("takeover", "--farm", "lab", "--json").stdout)
        assert (told["server"], told["taken_over"], told["line"]) == ("alpha", True, "1e" * 16)
        first, second = told["servers"]
        assert (first["term"], first["index"], first["longest"], first["here"]) == (3, 17, True, True)
        assert second == {"name": "beta", "address": "10.0.0.2:4101", "error": "no answer within 5 s"}

    def test_whoever_may(self) -> None:
        """The first server asked has a shorter journal, the second may: that one is told to go on."""
        self.world.servers["alpha"].backend.objection = "beta has the longer journal: say it there"
        result = self.world.run("takeover", "--farm", "lab")
        assert result.exit_code == 0, result.output
        assert self.world.servers["beta"].backend.taken_over == ["lab"]
        assert self.world.servers["alpha"].backend.taken_over == []

    def test_nobody_may(self) -> None:
        """The table is shown all the same, and why not; nothing is changed."""
        for server in self.world.servers.values():
            server.backend.objection = "the farm has a first that commits, alpha"
        result = self.world.run("takeover", "--farm", "lab")
        assert result.exit_code == exits.FAILED
        assert "alpha" in result.stdout and "a first that commits" in result.stderr
        told = json.loads(self.world.run("takeover", "--farm", "lab", "--json").stdout)
        assert told["taken_over"] is False and "commits" in told["because"]
        assert all(server.backend.taken_over == [] for server in self.world.servers.values())

    def test_a_wrong_name(self) -> None:
        """It is refused."""
        result = self.world.run("takeover", "--farm", "bal")
        assert result.exit_code == exits.FAILED and "another name" in result.stderr
        assert self.world.servers["alpha"].backend.taken_over == []

    def test_without_a_terminal(self) -> None:
        """The name must be given then: nothing goes on by accident in a script."""
        result = self.world.run("takeover")
        assert result.exit_code == exits.USAGE and "--farm" in result.stderr
        assert self.world.dialled == []

    def test_one_server_left(self) -> None:
        """Those that refuse are passed over; if all do, that is said with their reasons."""
        self.world.servers["alpha"].refuses = True
        assert self.world.run("takeover", "--farm", "lab").exit_code == 0
        assert self.world.servers["beta"].backend.taken_over == ["lab"]
        self.world.servers["beta"].refuses = True
        result = self.world.run("takeover", "--farm", "lab")
        assert result.exit_code == exits.NOBODY_ANSWERED and "alpha: refused; beta: refused" in result.stderr

    def test_another_key(self) -> None:
        """With a key that may not do this, or is none, the status says that it is the key, also where some are down."""
        path = self.world.directory / "key"
        self.world.write_key(path, "reader")
        for beta_refuses in (False, True):
            self.world.servers["beta"].refuses = beta_refuses
            result = self.world.run("--key", str(path), "takeover", "--farm", "lab")
            assert (result.exit_code, result.stderr) == (
                exits.NOT_ALLOWED,
                "chunkfarm: TAKEOVER takes a key with the role admin; this one has read\n",
            )
        self.world.write_key(self.world.directory / "unknown", "nobody")
        result = self.world.run("--key", str(self.world.directory / "unknown"), "takeover", "--farm", "lab")
        assert result.exit_code == exits.NOT_ALLOWED and "no server could be asked" not in result.stderr
        assert self.world.servers["alpha"].backend.taken_over == []

    def test_help(self) -> None:
        """What it costs is said."""
        text = self.world.run("takeover", "--help").stdout
        assert "lost for good" in text and "--farm" in text
