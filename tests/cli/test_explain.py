"""`chunkfarm explain`."""

from __future__ import annotations

import json
import re

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from chunkfarm.cli import explain as explaining
from tests.cli.world import World
from tests.ports.fakes import OTHER_ID, SERVER_ID


class ExplainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(self.mktemp())
        data = b"".join(bytes([number]) * 4096 for number in range(4)) + b"rest"
        self.file = self.world.catalog.add("lab/a", data)

    def test_table(self) -> None:
        """Runs of chunks that lie on the same servers, and what is lost with which server."""
        self.world.catalog.transfer.only.update(self.file.digests[3:])
        for number, digest in enumerate(self.file.digests[3:]):
            self.world.catalog.transfer.store.times[digest] = 1_800_000_000_000 + number
        result = self.world.run("explain", "lab/a")
        assert result.exit_code == 0
        assert [re.split("  +", line) for line in result.stdout.splitlines()] == [
            ["lab/a: 16.0 KiB in 5 chunks, 2 copies wanted, at least 1 there"],
            ["CHUNKS", "SIZE", "COPIES", "VERIFIED", "ON"],
            ["0-2", "12.0 KiB", "2", "not known", "alpha, beta"],
            ["3-4", "4.0 KiB", "1", "2027-01-15 08:00:00", "alpha"],
            ["SERVER", "STATE", "HOLDS", "VERIFIED", "LOST IF IT DIES"],
            ["alpha", "up", "5", "not all", "2 chunks, 4.0 KiB"],
            ["beta", "up", "3", "not known", "nothing"],
        ]

    def test_down(self) -> None:
        """Of a server that is down nobody knows what it holds, which is not the same as nothing."""
        backend = self.world.servers["alpha"].backend
        alpha, beta = backend.servers()
        backend.servers = lambda: (alpha, evolve(beta, state="down"))  # type: ignore[method-assign]
        self.world.catalog.transfer.only.update(self.file.digests)
        lines = [line.split(maxsplit=3) for line in self.world.run("explain", "lab/a").stdout.splitlines()]
        assert lines[-2][:3] == ["alpha", "up", "5"]
        assert lines[-1] == ["beta", "down", "?", "not known"]

    def test_lost(self) -> None:
        """A chunk that nobody holds is said first."""
        del self.world.chunks[self.file.digests[1]]
        lines = self.world.run("explain", "lab/a").stdout.splitlines()
        assert lines[0].endswith("at least 0 there")
        assert lines[1] == "No server that answered holds 1 chunk: the file cannot be read now."
        assert lines[4].split(maxsplit=4) == ["1", "4.0", "KiB", "0", "nobody who answered"]

    def test_json(self) -> None:
        """All of it for programs."""
        self.world.catalog.transfer.only.add(self.file.digests[0])
        told = json.loads(self.world.run("explain", "lab/a", "--json").stdout)
        assert (told["name"], told["size"], told["wanted"], told["manifest"]) == ("lab/a", self.file.size, 2, [])
        assert told["chunks"][0] == {
            "number": 0,
            "length": 4096,
            "digest": self.file.digests[0].hex(),
            "copies": 1,
            "holders": [SERVER_ID],
            "verified": {SERVER_ID: None},
        }
        assert [(one["name"], one["held"], one["only"], one["bytes"]) for one in told["servers"]] == [
            ("alpha", 5, 1, 4096),
            ("beta", 4, 0, 0),
        ]
        assert told["servers"][1]["id"] == OTHER_ID

    def test_pages(self) -> None:
        """A long file is asked for in runs, and shown as one."""
        self.patch(explaining, "PAGE", 2)
        lines = self.world.run("explain", "lab/a").stdout.splitlines()
        assert lines[2].split()[:2] == ["0-4", "16.0"]
        assert len(json.loads(self.world.run("explain", "lab/a", "--json").stdout)["chunks"]) == 5

    def test_empty_and_missing(self) -> None:
        """An empty file has no chunks; one that is not there is not found."""
        self.world.catalog.add("lab/empty", b"")
        assert self.world.run("explain", "lab/empty").stdout == "lab/empty: 0 B, no chunks\n"
        assert self.world.run("explain", "lab/none").exit_code == exits.NOT_FOUND
        assert self.world.run("explain", "nobucket").exit_code == exits.USAGE
