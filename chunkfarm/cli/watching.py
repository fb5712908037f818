"""`chunkfarm watch`: changes of the table as they happen."""

from __future__ import annotations

import json
import sys

import click
from twisted.internet.task import deferLater

from chunkfarm.cli import screen
from chunkfarm.cli.completion import watched
from chunkfarm.cli.farm import PAUSE_FIRST, Farm
from chunkfarm.cli.screen import as_json
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.cli.threads import RunInThread
from chunkfarm.links.lines import LineClient
from chunkfarm.model import FARM, FILES, INVITES, KEYS, SECRET, SERVERS
from chunkfarm.table.interface import Compacted, Event, Unavailable

OPEN = (SERVERS, FARM, FILES)
"""What may be watched."""


@click.command()
@click.argument("prefix", default="", shell_complete=watched)
@as_json
@click.pass_obj
def watch(surroundings: Surroundings, prefix: str, as_json: bool) -> None:
    """Show changes as they happen, under PREFIX (servers/, farm/ or files/) or all; end with Ctrl-C.

    \b
    chunkfarm watch files/home/
    chunkfarm watch --json | jq .key
    """
    try:
        wanted = prefix.encode()
    except UnicodeEncodeError:
        raise click.UsageError("PREFIX is not UTF-8") from None
    if wanted and not wanted.startswith((*OPEN, KEYS, INVITES, SECRET)):
        # Of those that are there and for nobody, the farm says so.
        raise click.UsageError("PREFIX begins with servers/, farm/ or files/")
    seen: list[int] = []

    async def follow(link: LineClient) -> None:
        try:
            running = await link.watch(wanted, seen[-1] if seen else None)
        except Compacted as error:
            screen.say(f"chunkfarm: changes before revision {error.first_revision} were missed", err=True)
            running = await link.watch(wanted, error.first_revision - 1)
        try:
            while True:
                batch = await running.next()
                for event in batch.events:
                    _show_event(event, as_json)
                seen[:] = [batch.revision]
        finally:
            running.close()

    async def work(farm: Farm, run_in_thread: RunInThread) -> None:
        while True:
            try:
                await farm.run(follow)
            except Unavailable:
                # The link's end, or its server's: the next one goes on after the last change shown.
                farm.hang_up()
                await deferLater(farm.clock, PAUSE_FIRST)

    surroundings.run(work, reads=True)


def _show_event(event: Event, as_json: bool) -> None:
    key = event.key.decode(errors="replace")
    try:
        value = json.loads(event.value) if event.value else None
    except ValueError:
        value = event.value.decode(errors="replace")
    if as_json:
        screen.show_json({"revision": event.revision, "kind": event.kind, "key": key, "value": value})
        return
    detail = ""
    if isinstance(value, dict):
        if event.key.startswith(b"servers/"):
            detail = f"{value.get('name')} is {value.get('state')}"
        elif event.key.startswith(b"files/"):
            detail = screen.readable_size(int(value.get("size", 0)))
        else:
            detail = json.dumps(value, ensure_ascii=False)
    elif value is not None:
        detail = str(value)
    word = {"PUT": "set", "DEL": "gone"}[event.kind]
    screen.say(screen.clean(f"{event.revision:>8}  {word:4}  {key}  {detail}".rstrip()))
    sys.stdout.flush()
