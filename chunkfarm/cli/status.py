"""`chunkfarm status`: what a server says of itself and its farm."""

from __future__ import annotations

from typing import Any

import click

from chunkfarm.cli import screen
from chunkfarm.cli.screen import as_json
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.links.rows import parse_row


@click.command()
@as_json
@click.pass_obj
def status(surroundings: Surroundings, as_json: bool) -> None:
    """Show jobs, copies of the table, and what could be lost now.

    \b
    chunkfarm status
    chunkfarm status --json | jq -r .state
    """
    reply = surroundings.ask("STATUS")
    pairs = [_pair(row) for row in reply.rows]
    risks = [_risk(value) for name, value in pairs if name == LOST_WITH]
    for name, value in pairs:
        if name == LOST_FILE:
            holders, _, file = value.partition(" ")
            for risk in risks:
                if ",".join(risk["servers"]) == holders:
                    risk.setdefault("names", []).append(file)
    pairs = [pair for pair in pairs if pair[0] != LOST_FILE]
    if as_json:
        screen.show_json(_as_value(pairs) | ({LOST_WITH: risks} if risks else {}))
        return
    pairs = [pair for pair in pairs if pair[0] != LOST_WITH]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        screen.say(f"{screen.clean(name).ljust(width)}  {screen.clean(value)}")
    if risks:
        screen.say("")
        screen.show_table(
            ["LOST WITH", "CHUNKS", "SIZE", "FILES", "SUCH AS"],
            [
                [
                    " and ".join(risk["servers"]),
                    str(risk["chunks"]),
                    screen.readable_size(risk["bytes"]),
                    f"{risk['files']}{'' if risk['exactly'] else ' or more'}" if "files" in risk else "not known",
                    ", ".join(map(screen.clean, risk.get("names", ()))),
                ]
                for risk in risks
            ],
            right=["CHUNKS", "SIZE", "FILES"],
        )


LOST_WITH = "lost-with"
"""The name in STATUS of servers that have all copies of some chunks."""
LOST_FILE = "lost-file"
"""That of files which such chunks are parts of."""
SEVERAL = {"cure", "draining", "drift", "note", "waits-for"}
"""Names that may be there more than once."""
_TEXTS = {"farm", "first", "name"}
"""Names whose value is a text, also where it looks like a number."""


def _as_value(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """For JSON: numbers as numbers, and what may be there several times as a list."""
    told: dict[str, Any] = {}
    for name, text in pairs:
        value = int(text) if text.isdecimal() and name not in _TEXTS else text
        if name in SEVERAL:
            told.setdefault(name, []).append(value)
        else:
            told[name] = value
    return told


def _risk(value: str) -> dict[str, Any]:
    """Who has all copies, and of how much: `alpha,beta chunks=3 bytes=100 files=2`, or `files=2+`: perhaps more."""
    servers, fields = parse_row(value)
    risk: dict[str, Any] = {"servers": servers.split(",")}
    risk |= {name: int(fields[name]) for name in ("chunks", "bytes")}
    if "files" in fields:
        files = fields["files"]
        risk |= {"files": int(files.removesuffix("+")), "exactly": not files.endswith("+")}
    return risk


def _pair(row: str) -> tuple[str, str]:
    """`name=value`, where the name may be several words."""
    name, _, value = row.partition("=")
    return parse_row(name)[0], parse_row(f"x={value}")[1]["x"]
