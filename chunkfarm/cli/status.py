"""`chunkfarm status`: what a server says of itself and its farm."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click
from twisted.internet.defer import Deferred

from chunkfarm.cli import screen
from chunkfarm.cli.farm import Farm
from chunkfarm.cli.screen import as_json
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.cli.threads import RunInThread
from chunkfarm.errors import FarmError
from chunkfarm.links.lines import LineClient, Reply
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
    reply = surroundings.ask("STATUS", reads=True)
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


def ask_for_servers(surroundings: Surroundings, line: str) -> Reply:
    """The answer to SERVERS or WHO; says so if whoever answered can only tell how the servers were."""

    async def work(farm: Farm, run_in_thread: RunInThread) -> tuple[Reply, str]:
        return await farm.run(lambda link: Deferred.fromCoroutine(_with_doubt(link, line)))

    reply, doubt = surroundings.run(work, reads=True)
    if doubt:
        click.echo(f"chunkfarm: {screen.clean(doubt)}", err=True)
    return reply


async def _with_doubt(link: LineClient, line: str) -> tuple[Reply, str]:
    reply = await link.request(line)
    said = link.hello.fields if link.hello is not None else {}
    state = said.get("state", "serving")
    if state == "serving":
        return reply, ""
    waits: list[str] = []
    with suppress(FarmError):
        waits = [value for name, value in map(_pair, (await link.request("STATUS")).rows) if name == "waits-for"]
    # Without a majority of the masters nobody can write into the table that a server went down.
    doubt = (
        f"{said.get('name', 'who answered')} is {state}: this is how things stood at revision "
        f"{said.get('revision', '0')}, and a server that is called up here may be down"
    )
    return reply, f"{doubt}; it waits for {', '.join(waits)}" if waits else doubt


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
