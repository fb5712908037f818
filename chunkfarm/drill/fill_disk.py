"""Disks run full, first one and then all: what is still taken, what is refused and how, and how it ends with room."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence

from chunkfarm.cli.farm import sentence_of
from chunkfarm.drill.disks import RESERVE_MIB, disks_for
from chunkfarm.drill.people import put
from chunkfarm.drill.run import Run
from chunkfarm.errors import FarmError, NotFound

TITLE = "the disk of one server runs full, then that of every server"
SERVERS_MIN = 3
FILES = 8
SIZES = (1_000, 200_000, 1_500_000)
REFUSED = "drill/too-much"
SAYS_SO_SECONDS = 30.0
ROOM_SECONDS = 60.0
REFUSED_SECONDS = 8.0
"""After which people take no for an answer."""


async def fill_disk(run: Run) -> None:
    """The drill."""
    farm, story = run.farm, run.story
    disks = disks_for(farm.folder)
    story.tell(disks.words)
    for server in farm.servers.values():

        async def end(server: object = server) -> None:
            disks.end(server)  # type: ignore[arg-type]

        run.at_end(end)
        disks.prepare(server)
    await run.begin(server=f"reserve = {disks.reserve}")
    stored = await _put_some(run, "before")
    story.tell(f"{len(stored)} files are stored")

    victim = [name for name in farm.servers if name != await farm.first()][-1]
    disks.fill(farm.servers[victim], leave=RESERVE_MIB // 2)
    await _say_full(run, [victim], "yes")
    story.tell(f"less is free on the disk of {victim} than it keeps in reserve, and {victim} says so (full=yes)")
    during = await _put_some(run, "one-full")
    stored |= during
    held = await _held_by(run, victim, during)
    story.check(
        held == 0,
        f"{len(during)} more files are taken, and no chunk of them is placed on {victim}",
        f"{held} chunks of new files were placed on {victim}, which is full",
    )
    await run.read_back(stored, [victim])

    for server in farm.servers.values():
        disks.fill(server)
    await _say_full(run, list(farm.servers), "yes")
    story.tell(f"the disks of all servers are full{disks.how_full}")
    await _is_refused(run)
    await run.read_back(dict(list(stored.items())[-1:]), list(farm.servers))

    for server in farm.servers.values():
        disks.empty(server)
    emptied = run.seconds()
    story.tell("there is room again on all of them; no server is restarted")
    await farm.serving(*farm.servers, seconds=ROOM_SECONDS)

    after: dict[str, str] = {}

    async def is_used() -> bool:
        some = await _put_some(run, f"after-{len(after)}", 1)
        after.update(some)
        return await _held_by(run, victim, some) > 0

    await farm.until(is_used, ROOM_SECONDS, f"a new chunk is placed on {victim}")
    stored |= after
    story.figure(
        "room", run.seconds() - emptied, f"files are taken again, and {victim} has a chunk of one {{}} after that"
    )
    await _nothing_is_left(run)
    await farm.until_whole(ROOM_SECONDS)
    await run.read_back(stored, list(farm.servers))
    await run.all_is_whole()


async def _put_some(run: Run, prefix: str, count: int = FILES) -> dict[str, str]:
    """Store some files; gives their digests by name. Raises `FarmError` if one is refused."""
    chance = random.Random(prefix)  # noqa: S311 - any bytes will do
    way = run.farm.people()
    stored = {}
    try:
        for number in range(count):
            data = chance.randbytes(SIZES[number % len(SIZES)])
            await put(way, f"drill/{prefix}-{number}", data)
            stored[f"drill/{prefix}-{number}"] = hashlib.sha256(data).hexdigest()
    finally:
        way.hang_up()
    return stored


async def _say_full(run: Run, names: Sequence[str], word: str) -> None:
    """Wait until these servers say whether they are full."""
    for name in names:

        async def says(name: str = name) -> bool:
            return (await run.farm.status(name)).get("full") == word

        await run.farm.until(says, SAYS_SO_SECONDS, f"{name} says full={word}")


async def _held_by(run: Run, server: str, names: Iterable[str]) -> int:
    """How many chunks of these files a server has."""
    count = 0
    for name in names:
        rows = (await run.farm.ask(f"EXPLAIN {name}")).parsed()
        count += sum(int(row["held"]) for row in rows if row.get("name") == server)
    return count


async def _is_refused(run: Run) -> None:
    """A file for which nobody has room."""
    way = run.farm.people(timeout=REFUSED_SECONDS)
    try:
        await put(way, REFUSED, random.Random(REFUSED).randbytes(SIZES[-1]))  # noqa: S311 - any bytes will do
    except (FarmError, OSError) as error:
        run.story.tell(f"a file is refused: {sentence_of(error).partition(' (')[0]}")
    else:
        run.story.check(False, "", "a file was taken although every disk is full")
    finally:
        way.hang_up()


async def _nothing_is_left(run: Run) -> None:
    """Of the file that was refused. While the table could not change either, nobody could know."""
    try:
        await run.farm.ask(f"STAT {REFUSED}")
    except NotFound:
        run.story.tell("nothing is left of the file that was refused: there is no such name")
    else:
        run.story.check(False, "", f"{REFUSED} was refused, and stands in the table")
