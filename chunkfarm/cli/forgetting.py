"""`chunkfarm forget`: says what would be lost with a server that is down, and takes it out of the farm for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from attrs import frozen

from chunkfarm.cli import screen
from chunkfarm.cli.farm import Farm
from chunkfarm.links.lines import Reply
from chunkfarm.wire.lines import quote

_NUMBERS = ("files", "chunks", "lostfiles", "lostchunks", "lostbytes", "shortfiles", "shortchunks", "shortbytes")


@frozen
class Outlook:
    """What the farm says of a server that may be forgotten."""

    fields: dict[str, str]
    lost: tuple[dict[str, str], ...]
    """The first hundred files of which something would be lost."""

    def number(self, name: str) -> int:
        return int(self.fields.get(name, "0"))

    @property
    def name(self) -> str:
        return screen.clean(self.fields["name"])

    @property
    def objection(self) -> str:
        return self.fields.get("because", "it must not") if self.fields["may"] == "no" else ""

    def as_value(self, forgotten: bool) -> dict[str, Any]:
        """For JSON."""
        value: dict[str, Any] = {
            name: int(word) if name in _NUMBERS else word for name, word in self.fields.items() if name != "done"
        }
        lost = [row | {"chunks": int(row["chunks"]), "bytes": int(row["bytes"])} for row in self.lost]
        if "secrets" in value:
            value["secrets"] = value["secrets"] == "yes"
        return value | {"may": not self.objection, "forgotten": forgotten, "lost": lost}


async def look(farm: Farm, name: str, say: Callable[[str], None]) -> Outlook:
    """Ask until all files were looked at: after some seconds an answer comes with what was found so far."""
    while True:
        reply: Reply = await farm.run(lambda link: link.request(f"FORGET {quote(name)}"))
        outlook = Outlook(reply.fields, tuple(reply.parsed()))
        if outlook.objection or outlook.fields["done"] == "yes":
            return outlook
        say(f"looked at {_count(outlook.number('files'), 'file')} so far")
        farm.moved()


async def forget(farm: Farm, outlook: Outlook) -> None:
    """Do it, as the farm of that name."""
    line = f"FORGET {quote(outlook.fields['id'])} {quote(outlook.fields['farm'])}"
    await farm.run(lambda link: link.request(line))


def lines(outlook: Outlook) -> Iterator[str]:
    """What people read before they confirm."""
    lost, short = outlook.number("lostchunks"), outlook.number("shortchunks")
    if lost:
        size = screen.readable_size(outlook.number("lostbytes"))
        files = _count(outlook.number("lostfiles"), "file")
        yield (
            f"Lost with {outlook.name}: {_count(lost, 'chunk')} of {files}, {size}; nobody else who answers has them."
        )
        for row in outlook.lost:
            yield f"  {screen.clean(row['name'])}: {screen.readable_size(int(row['bytes']))}"
        if outlook.number("lostfiles") > len(outlook.lost):
            yield f"  and {_count(outlook.number('lostfiles') - len(outlook.lost), 'more file')}"
    else:
        files = _count(outlook.number("files"), "file")
        yield f"Nothing is lost with {outlook.name}: others have every chunk of {files}."
    if short:
        files = _count(outlook.number("shortfiles"), "file")
        yield f"Too few copies without it: {_count(short, 'chunk')} of {files}."
    if "silent" in outlook.fields:
        silent = screen.clean(outlook.fields["silent"]).replace(",", ", ")
        yield f"Without an answer: {silent}; what they have is not counted."
    if outlook.fields.get("secrets") == "yes":
        yield (
            f"{outlook.name} can open the farm's secrets, so the farm changes its CA too, within seconds: "
            "whoever reaches it from elsewhere needs a newer config.ini or ca.pem within a day."
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
