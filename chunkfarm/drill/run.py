"""One drill while it runs: its farm, its story, and the steps that all drills have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred

from chunkfarm.cli import check as checking
from chunkfarm.drill.farm import DrillFarm
from chunkfarm.drill.people import Load, digests, together
from chunkfarm.drill.story import Story, differences, in_short

PEOPLE = 3


@define
class Run:
    """What a drill is given."""

    farm: DrillFarm
    story: Story
    _loads: list[Load] = field(factory=list, init=False)
    _last: list[Callable[[], Awaitable[None]]] = field(factory=list, init=False)

    def seconds(self) -> float:
        """A monotonic clock."""
        return self.story.seconds()

    async def begin(self, *, farm: str = "", server: str = "") -> None:
        """Start the servers."""
        names = list(self.farm.servers)
        self.story.tell(f"{len(names)} servers start in {self.farm.folder}: {', '.join(names)}")
        await self.farm.start(farm=farm, server=server)
        self.story.tell("all of them serve")

    def load(self, *servers: str, prefix: str = "drill", timeout: float = 60.0, people: int = PEOPLE) -> Load:
        """People at work, at these servers (all by default), each of whom begins with another one."""
        names = list(servers or self.farm.servers)
        orders = [names[turn % len(names) :] + names[: turn % len(names)] for turn in range(people)]
        load = Load(self.farm.reactor, self.farm.people, orders, prefix, timeout)
        self._loads.append(load)
        load.start()
        return load

    async def read_back(self, stored: Mapping[str, str], servers: Sequence[str]) -> None:
        """Read every file from each server, and compare it with what was stored."""
        reading = [Deferred.fromCoroutine(self._differences(stored, server)) for server in servers]
        wrong = [one for some in await together(reading) for one in some]
        self.story.check(
            not wrong,
            f"{_files(len(stored))} read back equal, from {_each(servers)}",
            f"{len(wrong)} reads were wrong: {in_short(wrong)}",
        )

    async def _differences(self, stored: Mapping[str, str], server: str) -> list[str]:
        way = self.farm.people(server)
        try:
            return differences(stored, await digests(way, list(stored)), server)
        finally:
            way.hang_up()

    async def all_is_whole(self) -> None:
        """Have every copy of every chunk read."""
        found = await self.farm.checked(quick=False)
        whole = list(checking.lines(found, False, {}))
        self.story.check(not found.wrong, f"chunkfarm check: {whole[-1]}", f"chunkfarm check: {in_short(whole)}")

    def at_end(self, undo: Callable[[], Awaitable[None]]) -> None:
        """Something to be undone when the servers have ended, however the drill ends."""
        self._last.append(undo)

    async def close(self) -> None:
        """Send everybody away, and end every process."""
        for load in self._loads:
            load.drop()
        try:
            await self.farm.close()
        finally:
            for undo in reversed(self._last):
                await undo()


def _each(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"each of {', '.join(names)}"


def _files(count: int) -> str:
    return "a file that was acknowledged is" if count == 1 else f"all {count} files that were acknowledged are"
