"""`chunkfarm key`: who may use the farm."""

from __future__ import annotations

import click

from chunkfarm.cli import screen
from chunkfarm.cli.exits import give_up
from chunkfarm.cli.surroundings import Surroundings, check_new_file
from chunkfarm.errors import FarmError
from chunkfarm.model import ROLES
from chunkfarm.trust.keys import KeyPair, write_key_file
from chunkfarm.wire.lines import quote


@click.group()
def key() -> None:
    """Make keys for people and programs, list them, and take them away.

    It takes a key of an admin. Where there is none, on the machine of a master, the certificate in the data directory
    of config.ini will do, so that a lost key locks nobody out.

    \b
    chunkfarm key list
    """


@key.command()
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it is good for.")
@click.option("--prefix", default="", metavar="PREFIX", help="Only for files whose names begin so, such as lab/.")
@click.option("--label", default="", metavar="TEXT", help="Whose it is, to be shown in the list.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(),
    help="Write it to a new file that only you can read, instead of showing it.",
)
@click.pass_obj
def add(surroundings: Surroundings, role: str, prefix: str, label: str, out: str | None) -> None:
    """Make a key and show it, once: one line, <key id> <secret>.

    \b
    chunkfarm key add --role write --prefix lab/ --label "the lab's microscope" --out microscope.key
    """
    if out is not None:
        check_new_file(out)
    if prefix == "-":
        # On a line it stands for none, which would be a key for all files.
        raise click.UsageError("--prefix: no file has a name that begins with a dash")
    words = ["KEY", "add", role, quote(prefix) or "-", quote(label) or "-"]
    made = surroundings.ask(" ".join(words), certificate_will_do=True).fields
    pair = KeyPair(made["id"], made["secret"])
    if out is None:
        screen.say(f"{pair.id} {pair.secret}")
        return
    try:
        write_key_file(out, pair)
    except FarmError as error:
        # It is in the table, and nobody will ever know its secret.
        screen.say(f"chunkfarm: the key {pair.id} was made and is lost: remove it", err=True)
        give_up(error)
    screen.say(f"{out} holds the key {pair.id}")


@key.command("list")
@screen.as_json
@click.pass_obj
def list_keys(surroundings: Surroundings, as_json: bool) -> None:
    """Show all keys; their secrets are nowhere to be read.

    \b
    chunkfarm key list
    """
    rows = surroundings.ask("KEYS", certificate_will_do=True, reads=True).parsed()
    if as_json:
        screen.show_json([{**row, "disabled": row["disabled"] == "yes"} for row in rows])
        return
    told = [
        [
            row["id"],
            row["role"],
            row["prefix"] or "all files",
            screen.readable_time(row["created"]),
            "disabled" if row["disabled"] == "yes" else "",
            row["label"],
        ]
        for row in rows
    ]
    screen.show_table(["ID", "ROLE", "FOR", "MADE", "STATE", "LABEL"], told)


@key.command()
@click.argument("key_id", metavar="ID")
@click.pass_obj
def disable(surroundings: Surroundings, key_id: str) -> None:
    """Have a key be refused from now on, also on links that are open.

    \b
    chunkfarm key disable AEBAGBAFAYDQQCIK
    """
    surroundings.ask(f"KEY disable {quote(key_id)}", certificate_will_do=True)


@key.command()
@click.argument("key_id", metavar="ID")
@click.pass_obj
def enable(surroundings: Surroundings, key_id: str) -> None:
    """Have a disabled key be good again.

    \b
    chunkfarm key enable AEBAGBAFAYDQQCIK
    """
    surroundings.ask(f"KEY enable {quote(key_id)}", certificate_will_do=True)


@key.command()
@click.argument("key_id", metavar="ID")
@click.pass_obj
def remove(surroundings: Surroundings, key_id: str) -> None:
    """Take a key away for good.

    \b
    chunkfarm key remove AEBAGBAFAYDQQCIK
    """
    surroundings.ask(f"KEY remove {quote(key_id)}", certificate_will_do=True)
