"""Single bits of stored chunks flip on the disk: who notices, what people get, how the copies become whole again."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

from attrs import frozen

from chunkfarm.cli import check as checking
from chunkfarm.cli import farm as cli
from chunkfarm.drill.farm import DrillFarm
from chunkfarm.drill.people import get, put
from chunkfarm.drill.run import Run
from chunkfarm.drill.story import DrillFailed

TITLE = "single bits of stored chunks flip on the disk"
SERVERS_MIN = 3
SIZES = {"read": 300_000, "checked": 400_000, "packed": 5_000}
"""Of the three files: two chunks with files of their own, and one that shares a file with others."""
HEALED_SECONDS = 60.0
TRIES_MAX = 10
"""Files that are stored before it is said that they have too many copies."""


@frozen
class Place:
    """A byte on a disk."""

    path: Path
    offset: int

    def flip(self) -> None:
        """Change one bit."""
        with self.path.open("r+b") as file:
            file.seek(self.offset)
            byte = file.read(1)[0]
            file.seek(self.offset)
            file.write(bytes([byte ^ 0x10]))
            file.flush()
            os.fsync(file.fileno())


def find(data: Path, content: bytes) -> Place:
    """Where the middle of a chunk is in a data directory; raises `DrillFailed` if the chunk is not there."""
    for path in sorted((*data.glob("chunks/*/*.chunk"), *data.rglob("*.pack"))):
        at = path.read_bytes().find(content)
        if at >= 0:
            return Place(path, at + len(content) // 2)
    raise DrillFailed(f"a chunk that should be in {data} is not there")


async def flip_bit(run: Run) -> None:
    """The drill."""
    farm, story = run.farm, run.story
    await run.begin()
    contents: dict[str, bytes] = {}
    holders: dict[str, str] = {}
    way = farm.people()
    try:
        for name, size in SIZES.items():
            contents[f"drill/{name}"], holders[f"drill/{name}"] = await store(farm, way, f"drill/{name}", size)
    finally:
        way.hang_up()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    story.tell(f"{len(contents)} files are stored, each in three copies")

    name, holder = "drill/read", holders["drill/read"]
    find(farm.servers[holder].data, contents[name]).flip()
    story.tell(f"a bit of {name} is flipped on the disk of {holder}")
    way = farm.people(holder)
    try:
        right = await get(way, name) == contents[name]
    finally:
        way.hang_up()
    story.check(right, f"{name}, read through {holder}, is right", f"{holder} gave wrong bytes for {name}")

    for name in ("drill/checked", "drill/packed"):
        find(farm.servers[holders[name]].data, contents[name]).flip()
        story.tell(f"a bit of {name} is flipped on the disk of {holders[name]}, and nobody reads it")
    flipped = run.seconds()
    found = await farm.checked(quick=False)
    names = await _names(run)
    for line in checking.lines(found, False, names):
        story.tell(f"chunkfarm check: {line}")
    damaged = {file.name for file in found.wrong if file.damaged}
    story.check(
        {"drill/checked", "drill/packed"} <= damaged,
        "it found both",
        f"chunkfarm check found no damage in {', '.join(sorted({'drill/checked', 'drill/packed'} - damaged))}",
    )

    await farm.until_whole(HEALED_SECONDS)
    story.figure("healed", run.seconds() - flipped, "every chunk has all its copies again, {} after the last flip")
    for name, holder in holders.items():
        find(farm.servers[holder].data, contents[name])
    story.tell("the copies that were damaged are on their disks again, byte by byte")
    aside = [path for server in farm.servers.values() for path in server.data.glob("chunks/quarantine/*")]
    story.check(
        len(aside) >= len(contents),
        f"{len(aside)} damaged copies are put aside in chunks/quarantine, for whoever wants to look at them",
        f"only {len(aside)} damaged copies were put aside",
    )
    await run.read_back(digests, list(farm.servers))
    await run.all_is_whole()


async def _names(run: Run) -> dict[str, str]:
    """Names of servers by their ids."""
    return {row["id"]: row["name"] for row in (await run.farm.ask("SERVERS")).parsed()}


async def store(farm: DrillFarm, way: cli.Farm, name: str, size: int) -> tuple[bytes, str]:
    """Store a file of one chunk; gives its bytes, and a server on which that chunk belongs, and is.

    Where a disk is slow for a moment another server stands in, which would not make a copy anew that it need not have.
    Other bytes are stored then. Raises `FarmError`.
    """
    chance = random.Random(name)  # noqa: S311 - any bytes will do
    for _ in range(TRIES_MAX):
        content = chance.randbytes(size)
        await put(way, name, content)
        await farm.until_whole(HEALED_SECONDS)
        told = await farm.ask(f"EXPLAIN {name}")
        holders = [row["name"] for row in told.parsed() if row.get("held") == "1"]
        if len(holders) == int(told.fields["wanted"]):
            return content, holders[0]
    raise DrillFailed(f"{name} had more copies than it should each time that it was stored")
