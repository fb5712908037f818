"""`chunkfarm drain`."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from chunkfarm.model import Drain
from tests.cli.world import World
from tests.ports.fakes import OTHER_ID

LEFT = Drain(chunks=9, left=3, bytes_left=3072, rate=1024, counted=True)
DONE = Drain(chunks=9, counted=True, drained=True)


class DrainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(self.mktemp())
        self.backend = self.world.servers["alpha"].backend
        self.backend.farm = evolve(self.backend.farm, replicas=1)

    def test_begin(self) -> None:
        """It begins, and says so; without a name it shows how far all are."""
        result = self.world.run("drain", "beta")
        assert result.exit_code == 0 and result.stdout == "beta is emptied; what is left is not known yet\n"
        self.backend.told[OTHER_ID] = LEFT
        lines = self.world.run("drain").stdout.splitlines()
        assert lines[0].split() == ["NAME", "STATE", "CHUNKS", "LEFT", "BYTES", "LEFT", "TIME", "LEFT"]
        assert lines[1].split() == ["beta", "draining", "9", "3", "3.0", "KiB", "3", "s"]
        assert self.world.run("drain", "beta").stdout == "beta: 3 of 9 chunks left, 3.0 KiB, 1.0 KiB/s, 3 s left\n"
        (told,) = json.loads(self.world.run("drain", "--json").stdout)
        assert (told["left"], told["bytes"], told["drained"]) == (3, 3072, False)

    def test_wait(self) -> None:
        """With --wait it tells how far it is, and returns when nothing is needed any more."""
        told = [None, LEFT, LEFT, evolve(LEFT, paused="no room on gamma"), DONE]
        before = self.backend.drains

        def drains() -> Any:
            if len(told) > 1:
                told.pop(0)
            if told[0] is not None:
                self.backend.told[OTHER_ID] = told[0]
            return before()

        self.backend.drains = drains  # type: ignore[method-assign]
        result = self.world.run("drain", "beta", "--wait")
        assert result.exit_code == 0, result.output
        assert result.stdout == "beta is drained: nothing on it is needed any more, it may be switched off.\n"
        assert "3 of 9 chunks left" in result.stderr

    def test_undo(self) -> None:
        """--undo lets it keep its chunks; whoever waits for it learns that."""
        self.world.run("drain", "beta")
        result = self.world.run("drain", "beta", "--undo", "--json")
        assert json.loads(result.stdout)["state"] == "up"
        assert self.world.run("drain", "beta", "--undo").stdout == "beta keeps its chunks.\n"
        self.backend.drains = lambda: ()  # type: ignore[method-assign]
        result = self.world.run("drain", "beta", "--wait")
        assert result.exit_code == exits.FAILED and "not emptied any more" in result.stderr

    def test_refusals(self) -> None:
        """What the farm refuses is said; --anyway insists; options without a name make no sense."""
        self.backend.farm = evolve(self.backend.farm, replicas=2)
        result = self.world.run("drain", "beta")
        assert result.exit_code == exits.FAILED and "1 copy and not 2" in result.stderr
        assert self.world.run("drain", "beta", "--anyway").exit_code == 0
        assert self.world.run("drain", "--wait").exit_code == exits.USAGE
        assert self.world.run("drain", "beta", "--undo", "--wait").exit_code == exits.USAGE
        assert self.world.run("drain", "delta").exit_code == exits.NOT_FOUND
