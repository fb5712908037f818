"""`chunkfarm export`: has an export of the table made now, and waits for it."""

from __future__ import annotations

import click
from twisted.internet.task import deferLater

from chunkfarm.cli import screen
from chunkfarm.cli.exits import give_up
from chunkfarm.cli.farm import Farm
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.cli.threads import RunInThread
from chunkfarm.errors import FarmError
from chunkfarm.links.lines import LineClient

POLL_SECONDS = 0.5
"""Between two questions how far it is."""
_NUMBERS = {"number", "revision", "rows", "chunks", "new", "size", "complete", "servers"}


@click.command("export")
@screen.as_json
@click.pass_obj
def export(surroundings: Surroundings, as_json: bool) -> None:
    """Store an export of all names as chunks on every server, now.

    The farm does so by itself once an hour. `chunkfarm restore` reads it when every server that held the table is lost.

    \b
    chunkfarm export
    """

    async def work(farm: Farm, run_in_thread: RunInThread) -> dict[str, str]:
        async def follow(link: LineClient) -> dict[str, str]:
            told = (await link.request("EXPORT")).fields
            while told["state"] == "running":
                await deferLater(farm.clock, POLL_SECONDS)
                farm.moved()
                told = (await link.request(f"EXPORT {told['number']}")).fields
            return told

        return await farm.run(follow)

    told = surroundings.run(work)
    if as_json:
        screen.show_json({name: int(text) if name in _NUMBERS else text for name, text in told.items()})
    if told["state"] != "done":
        give_up(FarmError(f"no export was made: {screen.clean(told.get('because', told['state']))}"))
    if not as_json:
        for line in lines(told):
            screen.say(line)


def lines(told: dict[str, str]) -> list[str]:
    """What an export has come to, for people."""
    rows, size = f"{int(told['rows']):,} rows", screen.readable_size(int(told["size"]))
    if told["new"] == "0":
        made = f"Nothing has changed since the export of {screen.readable_time(told['time'])}: {rows}, {size}."
    else:
        made = (
            f"Exported the table at revision {told['revision']}: {rows}, {size} in {told['chunks']} chunks, "
            f"{told['new']} of them new."
        )
    return [made, f"{told['complete']} of {told['servers']} servers have all of it."]
