"""`chunkfarm drill`: what is refused, what is shown, and what is left behind. Without a server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import stopping
from chunkfarm.cli.commands import chunkfarm
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.drill import command
from chunkfarm.drill.run import Run
from chunkfarm.drill.story import DrillFailed


class Reactor(Clock):
    """A clock that can be told to stop, as by Ctrl-C."""

    def __init__(self) -> None:
        super().__init__()
        self.before_shutdown: list[Callable[[], Any]] = []

    def addSystemEventTrigger(self, phase: str, event: str, function: Callable[[], Any]) -> Any:
        self.before_shutdown.append(function)
        return function

    def removeSystemEventTrigger(self, trigger: Any) -> None:
        self.before_shutdown.remove(trigger)


class DrillTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folders: list[Path] = []
        self.patch(stopping, "end_quietly", lambda: None)

    def run_command(
        self, scripts: Mapping[str, Callable[[Run], Awaitable[None]]], *arguments: str, interrupt: bool = False
    ) -> Result:
        drills = {name: command.Drill(f"about {name}", script, 3) for name, script in scripts.items()}
        self.patch(command, "DRILLS", drills)

        def react(main: Callable[[Any], Deferred[None]]) -> None:
            reactor = Reactor()
            done = main(reactor)
            if interrupt:
                for trigger in reactor.before_shutdown:
                    trigger()
            self.successResultOf(done)

        surroundings = Surroundings(react=react, now_ms=lambda: 0)
        return CliRunner().invoke(chunkfarm, ["drill", *arguments], obj=surroundings)

    async def good(self, run: Run) -> None:
        run.farm.folder.mkdir()
        self.folders.append(run.farm.folder.parent)
        run.story.figure("takeover", 0.25, "back after {}")

    async def bad(self, run: Run) -> None:
        raise DrillFailed("not within 30 s: beta serves")

    async def endless(self, run: Run) -> None:
        run.farm.folder.mkdir()
        self.folders.append(run.farm.folder.parent)
        await Deferred()

    def test_good(self) -> None:
        """What was as promised ends with 0, and nothing is left."""
        done = self.run_command({"kill-first": self.good}, "kill-first")
        assert done.exit_code == 0, done.output
        assert done.output.splitlines()[0] == "kill-first: about kill-first"
        assert done.output.splitlines()[-1] == "PASS  kill-first: takeover 0.2 s"
        assert not self.folders[0].exists()

    def test_bad(self) -> None:
        """What was not as promised ends with 1; of several drills the others are done all the same."""
        done = self.run_command({"kill-first": self.bad, "flip-bit": self.good}, "all", "--json")
        assert done.exit_code == 1
        told = json.loads(done.stdout)
        assert [(one["drill"], one["passed"]) for one in told] == [("kill-first", False), ("flip-bit", True)]
        assert "FAIL  kill-first: not within 30 s: beta serves" in done.stderr

    def test_interrupted(self) -> None:
        """Ctrl-C ends the drill once everything is cleaned up; no further one begins."""
        done = self.run_command({"kill-first": self.endless, "flip-bit": self.good}, "all", interrupt=True)
        assert done.exit_code == 130 and "interrupted" in done.stderr
        assert "flip-bit" not in done.stdout and not self.folders[0].exists()

    def test_kept(self) -> None:
        """With --keep the data stay."""
        folder = Path(self.mktemp()).absolute()
        assert self.run_command({"kill-first": self.good}, "kill-first", "--keep", str(folder)).exit_code == 0
        assert (folder / "kill-first").is_dir()
        done = self.run_command({"kill-first": self.good}, "kill-first", "--keep", str(folder))
        assert done.exit_code == 2 and "is not empty" in done.stderr

    def test_too_few_servers(self) -> None:
        """A drill for which the servers are too few says how many it needs."""
        done = self.run_command({"kill-first": self.good}, "kill-first", "--servers", "2")
        assert done.exit_code == 2 and "needs at least 3" in done.stderr
