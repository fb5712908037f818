"""`chunkfarm drill` on the command line."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from attrs import frozen

from chunkfarm.cli import screen
from chunkfarm.cli.exits import FAILED, give_up, interrupted
from chunkfarm.cli.stopping import cancelled_by_stop
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.drill import fill_disk, flip_bit, kill_first, partition
from chunkfarm.drill.farm import DrillFarm
from chunkfarm.drill.ports import ReservedPorts
from chunkfarm.drill.relay import OUTSIDE
from chunkfarm.drill.run import Run
from chunkfarm.drill.servers import INSIDE
from chunkfarm.drill.story import DrillFailed, Story
from chunkfarm.errors import FarmError

SERVERS = 4
SERVERS_MAX = 9
"""More processes than that make a machine slow, and show nothing else."""
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota")
ALL = "all"


@frozen
class Drill:
    """One of them: what it does in a line, and the script."""

    title: str
    script: Callable[[Run], Awaitable[None]]
    servers_min: int
    relayed: bool = False


DRILLS = {
    "kill-first": Drill(kill_first.TITLE, kill_first.kill_first, kill_first.SERVERS_MIN),
    "partition": Drill(partition.TITLE, partition.partition, partition.SERVERS_MIN, relayed=True),
    "fill-disk": Drill(fill_disk.TITLE, fill_disk.fill_disk, fill_disk.SERVERS_MIN),
    "flip-bit": Drill(flip_bit.TITLE, flip_bit.flip_bit, flip_bit.SERVERS_MIN),
}


@click.command()
@click.argument("which", metavar="|".join((*DRILLS, ALL)), type=click.Choice([*DRILLS, ALL]))
@click.option(
    "--servers",
    type=click.IntRange(max=SERVERS_MAX),
    default=SERVERS,
    show_default=True,
    metavar="N",
    help="How many servers the farm has.",
)
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(),
    help="Keep the servers' data and logs in DIR, which must be new or empty.",
)
@click.option("--ports", type=click.IntRange(1024, 65_000), metavar="PORT", help="Use free ports from PORT on.")
@screen.as_json
@click.pass_obj
def drill(
    surroundings: Surroundings, which: str, servers: int, keep: str | None, ports: int | None, as_json: bool
) -> None:
    """Let something go wrong on a throw-away farm, and see what comes of it.

    Starts servers on 127.0.0.1 with data in a temporary directory, lets people store files, does what the drill is
    named for, and tells what happened, with times. Your own farm, config.ini and keys are not touched. Processes
    and data are removed at the end, also on Ctrl-C.

    \b
    kill-first   the first server is killed: who takes over, how long that takes,
                 and how long until every chunk has all its copies again
    partition    the first server is cut off: which side goes on, and what the other says
    fill-disk    disks run full: what is taken, what is refused, and what becomes of it
    flip-bit     bits flip on the disk: who notices, and how it is mended
    all          one after the other

    \b
    chunkfarm drill kill-first
    chunkfarm drill all --json
    chunkfarm drill kill-first --keep drill-data     and look at the logs in there

    Exit status: 0 everything was as promised, 1 something was not, 2 usage, 130 Ctrl-C.
    """
    chosen = list(DRILLS) if which == ALL else [which]
    least = max(DRILLS[name].servers_min for name in chosen)
    if servers < least:
        raise click.UsageError(f"--servers: {which} needs at least {least}")
    say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    try:
        folder = _make_folder(keep)
    except OSError as error:
        give_up(error)
    stories: list[Story] = []
    try:
        finished = _run_all(surroundings, chosen, servers, folder, ports, say, stories)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        screen.show_json([story.as_value() for story in stories])
    if finished is False:
        interrupted()
    if finished is None or not all(story.passed for story in stories):
        raise click.exceptions.Exit(FAILED)


def _make_folder(keep: str | None) -> Path:
    """Where the data go; raises `OSError`."""
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="chunkfarm-drill-"))
    folder = Path(keep).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise click.UsageError(f"--keep: {keep} is not empty")
    return folder


def _run_all(
    surroundings: Surroundings,
    chosen: Sequence[str],
    servers: int,
    folder: Path,
    ports: int | None,
    say: Callable[[str], None],
    stories: list[Story],
) -> bool | None:
    """Whether they were brought to their end, or None after a fault of the drill itself, which is logged."""

    async def main(reactor: Any) -> None:
        for name in chosen:
            one = DRILLS[name]
            story = Story(name, one.title, reactor.seconds, say)
            stories.append(story)
            addresses = (INSIDE, OUTSIDE) if one.relayed else (INSIDE,)
            with closing(ReservedPorts(random.SystemRandom())) as reserved:
                try:
                    bases = reserved.take(servers, addresses, ports)
                    farm = DrillFarm(
                        reactor, folder / name, NAMES[:servers], bases, surroundings.now_ms, relayed=one.relayed
                    )
                except FarmError as error:
                    story.end(error)
                    continue
                await play(Run(farm, story), one.script)

    finished: list[bool] = []
    surroundings.react(lambda reactor: cancelled_by_stop(reactor, main(reactor)).addCallback(finished.append))
    return finished[0] if finished else None


async def play(run: Run, script: Callable[[Run], Awaitable[None]]) -> None:
    """One drill from its beginning to its end, after which nothing runs any more."""
    error: FarmError | None = None
    try:
        try:
            await script(run)
        except (FarmError, OSError) as fault:
            error = fault if isinstance(fault, FarmError) else DrillFailed(str(fault))
    finally:
        await run.close()
    run.story.end(error)
