"""`chunkfarm drain`: empties a server, and tells how far that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.task import deferLater

from chunkfarm.cli import screen
from chunkfarm.cli.farm import Farm
from chunkfarm.errors import FarmError
from chunkfarm.links.lines import Reply
from chunkfarm.wire.lines import quote

POLL_SECONDS = 1.0
"""Between two looks at how far it is: servers report once a second."""
TOLD_SECONDS = 5.0
"""Between two words on it."""

Row = dict[str, str]
COLUMNS = ["NAME", "STATE", "CHUNKS", "LEFT", "BYTES LEFT", "TIME LEFT", ""]


class NotEmptied(FarmError):
    """The server that was waited for is not emptied any more."""


async def begin(farm: Farm, name: str, how: str = "") -> Row:
    """Empty a server; or, with `off` for `how`, no more."""
    reply: Reply = await farm.run(lambda link: link.request(f"DRAIN {quote(name)} {how}".rstrip()))
    return reply.fields


async def look(farm: Farm) -> list[Row]:
    """The servers that are emptied."""
    reply: Reply = await farm.run(lambda link: link.request("DRAIN"))
    return reply.parsed()


async def wait(farm: Farm, server_id: str, say: Callable[[str], None]) -> Row:
    """Wait until nothing on that server is needed any more. Raises `NotEmptied` if somebody else calls it off."""
    said_at, said = float("-inf"), ""
    while True:
        row = next((row for row in await look(farm) if row["id"] == server_id), None)
        if row is None:
            raise NotEmptied("the server is not emptied any more")
        if row["drained"] == "yes":
            return row
        now, text = farm.clock.seconds(), sentence(row)
        if text != said and now - said_at >= TOLD_SECONDS:
            said_at, said = now, text
            say(text)
        await deferLater(farm.clock, POLL_SECONDS)


def sentence(row: Row) -> str:
    """How far one server is."""
    name = screen.clean(row["name"])
    if row["drained"] == "yes":
        return f"{name} is drained: nothing on it is needed any more, it may be switched off."
    because = f"; paused: {screen.clean(row['paused'])}" if "paused" in row else ""
    if "left" not in row:
        return f"{name} is emptied; what is left is not known yet{because}"
    left = f"{name}: {row['left']} of {row['chunks']} chunks left, {screen.readable_size(int(row['bytes']))}"
    if row["rate"] != "0":
        left += f", {screen.readable_size(int(row['rate']))}/s"
    if "seconds" in row:
        left += f", {row['seconds']} s left"
    return left + because


def table(rows: Sequence[Row]) -> list[list[str]]:
    """All of them, as lines of a table."""
    return [
        [
            row["name"],
            row["state"],
            row.get("chunks", "-"),
            row.get("left", "-"),
            screen.readable_size(int(row["bytes"])) if "bytes" in row else "-",
            f"{row['seconds']} s" if "seconds" in row else "-",
            "drained: may be switched off" if row["drained"] == "yes" else row.get("paused", ""),
        ]
        for row in rows
    ]


def as_value(row: Row) -> dict[str, Any]:
    """For JSON."""
    numbers = ("chunks", "left", "bytes", "rate", "seconds")
    value: dict[str, Any] = {name: int(word) if name in numbers else word for name, word in row.items()}
    return value | {"drained": row["drained"] == "yes"}
