"""`chunkfarm invite`: a code for a new server."""

from __future__ import annotations

import click

from chunkfarm.cli import screen
from chunkfarm.cli.exits import give_up
from chunkfarm.cli.surroundings import Surroundings, check_new_file
from chunkfarm.config import ConfigError, parse_duration
from chunkfarm.errors import FarmError
from chunkfarm.trust.private import write_private


@click.command()
@click.option("--valid", default="1d", show_default=True, metavar="TIME", help="How long it is good: 10m, 2h, 1d.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(),
    help="Write it to a new file that only you can read, instead of showing it.",
)
@click.pass_obj
def invite(surroundings: Surroundings, valid: str, out: str | None) -> None:
    """Make a code with which one new server may join; it says where the farm is and how to recognise it.

    \b
    chunkfarm invite --out code             on a machine of the farm
    twistd chunkfarm --join @code           on the new one, which needs no config.ini
    """
    try:
        seconds = round(parse_duration(valid))
    except ConfigError as error:
        raise click.UsageError(f"--valid: {error}") from None
    if out is not None:
        check_new_file(out)
    made = surroundings.ask(f"INVITE {seconds}").fields
    if out is None:
        screen.say(made["code"])
        return
    try:
        write_private(out, made["code"].encode() + b"\n")
    except FarmError as error:
        give_up(error)
    screen.say(f"{out} holds a code that is good until {screen.readable_time(made['expires'])}")
