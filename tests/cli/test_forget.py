"""`chunkfarm forget`."""

from __future__ import annotations

import json

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from chunkfarm.losses import Loss, Losses
from tests.cli.world import World


class ForgetTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(self.mktemp())
        for server in self.world.servers.values():
            server.backend.rows[1] = evolve(server.backend.rows[1], state="down")
        self.backend = self.world.servers["alpha"].backend

    def test_forgotten(self) -> None:
        """It says that nothing is lost, and does it."""
        result = self.world.run("forget", "beta", "--yes")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines() == [
            "Nothing is lost with beta: others have every chunk of 7 files.",
            "beta can open the farm's secrets, so the farm changes its CA too, within seconds: whoever reaches it from "
            "elsewhere needs a newer config.ini or ca.pem within a day.",
            "beta is forgotten. Servers that are to join need the new farm.join.",
        ]
        assert [row.name for row in self.backend.rows] == ["alpha"]

    def test_what_is_lost(self) -> None:
        """Files are named, and who did not answer."""
        self.backend.losses = Losses(
            files=9,
            lost_files=2,
            lost_chunks=3,
            lost_bytes=2048,
            short_files=1,
            short_chunks=4,
            named=(Loss(name="a/b", chunks=3, bytes=2048),),
            silent=("gamma",),
            done=True,
        )
        result = self.world.run("forget", "beta", "--yes")
        assert result.stdout.splitlines()[:5] == [
            "Lost with beta: 3 chunks of 2 files, 2.0 KiB; nobody else who answers has them.",
            "  a/b: 2.0 KiB",
            "  and 1 more file",
            "Too few copies without it: 4 chunks of 1 file.",
            "Without an answer: gamma; what they have is not counted.",
        ]

    def test_a_long_look(self) -> None:
        """While files are still looked at it asks again, and forgets nothing before."""
        looks = [Losses(files=2), Losses(files=5), Losses(files=9, done=True)]
        before = self.backend.look_at_forgetting

        def look(server: str):  # type: ignore[no-untyped-def]
            self.backend.losses = looks.pop(0) if len(looks) > 1 else looks[0]
            return before(server)

        self.backend.look_at_forgetting = look  # type: ignore[method-assign]
        result = self.world.run("forget", "beta", "--yes", "--json")
        told = json.loads(result.stdout)
        assert (told["files"], told["forgotten"], told["may"], told["lost"]) == (9, True, True, [])
        assert told["secrets"] is True

    def test_refusals(self) -> None:
        """A live server is refused with the sentence; without a terminal and --yes nothing is asked."""
        self.backend.rows[1] = evolve(self.backend.rows[1], state="up")
        result = self.world.run("forget", "beta", "--yes")
        assert result.exit_code == exits.FAILED and "beta is up" in result.stderr and result.stdout == ""
        assert self.world.run("forget", "beta").exit_code == exits.USAGE
        assert self.world.run("forget", "nobody", "--yes").exit_code == exits.NOT_FOUND
        assert len(self.backend.rows) == 2
