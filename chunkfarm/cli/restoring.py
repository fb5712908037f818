"""`chunkfarm restore`: the table back from an export, on a server that is stopped."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import SystemRandom
from typing import Any

import click
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.python.failure import Failure

from chunkfarm.cli import screen
from chunkfarm.cli.exits import give_up
from chunkfarm.cli.farm import sentence_of
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.config import ConfigFile, Listed
from chunkfarm.errors import FarmError
from chunkfarm.model import Address
from chunkfarm.restoring import Candidate, CannotRestore, Plan, Restoring, when

TELL_SECONDS = 2.0
"""Between two words of how far the look at all chunks is; a small disk is done before the first."""

Greetings = dict[str, Mapping[str, str] | str]
"""What each server said to HELLO, by its name, or why it said nothing."""


@click.command("restore")
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="The data directory of the server that goes on; that of config.ini if not given.",
)
@click.option(
    "--from",
    "more",
    metavar="DIR",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another data directory, or a copy of its chunks, to look into as well. May be given several times.",
)
@click.option(
    "--copy-to",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Only copy the chunks of the exports there, for another server's --from.",
)
@click.option("--revision", type=int, help="Restore the export of this revision, and not the newest that is whole.")
@click.option("--scan", is_flag=True, help="Look at every chunk for exports, also if the servers noted where they are.")
@click.option("--yes", "farm_name", metavar="NAME", help="The farm's name, instead of a question on the terminal.")
@click.option("--force", is_flag=True, help="Restore although a server is left that knows more, or runs.")
@screen.as_json
@click.pass_obj
def restore(
    surroundings: Surroundings,
    data: str | None,
    more: tuple[Path, ...],
    copy_to: Path | None,
    revision: int | None,
    scan: bool,
    farm_name: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Bring back all names from an export, when every server that held the table is lost.

    Stop the servers that are left, and say this on one of them. It looks for exports among the chunks of that server,
    shows what it has found, and puts the rows of the newest that is whole in the place of its table. Start that server
    then as always, and the others after it: they learn from it, and new masters are made of them. What was named after
    the export was made has no name any more.

    If any server is left that holds the table, `chunkfarm takeover` loses less.

    \b
    chunkfarm restore
    chunkfarm restore --from /mnt/old-disk/chunks
    chunkfarm restore --copy-to /mnt/usb     then, on another server: --from /mnt/usb
    """
    if farm_name is None and copy_to is None and not is_terminal():
        raise click.UsageError("there is no terminal to ask on: give the farm's name with --yes NAME")
    try:
        restoring = Restoring.open(ConfigFile(surroundings.config_path), {"data": data}, socket.gethostname(), more)
        try:
            if copy_to is not None:
                told = _copy(restoring, scan, copy_to, not as_json)
            else:
                told = _restore(surroundings, restoring, revision, scan, farm_name, force, not as_json)
        finally:
            restoring.close()
    except (FarmError, OSError) as error:
        give_up(error)
    if as_json:
        screen.show_json(told)


def is_terminal() -> bool:
    """Whether there is somebody to be asked."""
    return sys.stdin.isatty()


def _restore(
    surroundings: Surroundings,
    restoring: Restoring,
    revision: int | None,
    scan: bool,
    farm_name: str | None,
    force: bool,
    in_words: bool,
) -> dict[str, Any]:
    candidates = _find(restoring, scan)
    if in_words:
        _show(candidates)
    chosen = choose(candidates, revision)
    others = [row for row in restoring.config.servers if row.id and row.id != restoring.server_id]
    greetings = _greet(surroundings, others)
    objection = why_not(greetings, restoring.farm, chosen)
    if in_words:
        for server, said in greetings.items():
            click.echo(f"{screen.clean(server)}: {screen.clean(_short(said))}")
    if objection and not force:
        raise CannotRestore(objection)
    plan = restoring.plan(chosen, SystemRandom(), surroundings.now_ms(), force=force)
    if in_words:
        _tell(plan)
    name = farm_name
    if name is None:
        name = str(click.prompt(f"{plan.server} goes on with that. The farm's name, to confirm", err=True))
    if name != plan.farm.name:
        raise CannotRestore(f"this farm has another name than {name!r}; nothing was changed")
    restoring.write(plan)
    if in_words:
        click.echo(f"Restored {plan.rows:,} rows. Start {plan.server} as always, then the other servers that are left:")
        click.echo(f"  twistd chunkfarm --config {surroundings.config_path} --data {restoring.config.server.data}")
    return {
        "exports": [_as_value(one) for one in candidates],
        "others": {server: _short(said) for server, said in greetings.items()},
        "restored": _as_value(chosen),
        "rows": plan.rows,
        "server": plan.server,
        "notes": list(plan.notes),
    }


def _copy(restoring: Restoring, scan: bool, directory: Path, in_words: bool) -> dict[str, Any]:
    candidates = _find(restoring, scan)
    if in_words:
        _show(candidates)
    count = restoring.pieces.copy(candidates, directory)
    if in_words:
        click.echo(f"Copied {count} chunks to {directory}: take it to another server, and name it there with --from.")
    return {"exports": [_as_value(one) for one in candidates], "copied": count, "to": str(directory)}


def _as_value(one: Candidate) -> dict[str, Any]:
    head = one.head
    return {
        "time": when(one),
        "revision": head.revision,
        "rows": head.rows,
        "chunks": len(head.digests),
        "missing": len(one.missing),
    }


def _find(restoring: Restoring, scan: bool) -> list[Candidate]:
    """The exports of this farm: those that were noted, or all, if the newest of those is not whole."""
    noted = restoring.pieces.noted(restoring.farm)
    if noted and noted[0].is_whole and not scan:
        return noted

    told = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            click.echo(f"looking at all chunks: {100 * done // of}%", err=True)

    found = restoring.pieces.scan(restoring.farm, progress)
    if not found:
        raise CannotRestore(
            "there is no export of this farm among the chunks: name the data directories of other servers, or copies "
            "of their chunks folders, with --from"
        )
    return found


def choose(candidates: Sequence[Candidate], revision: int | None) -> Candidate:
    """The one that was asked for, else the newest that is whole, else the newest; raises `CannotRestore`."""
    if revision is None:
        return next((one for one in candidates if one.is_whole), candidates[0])
    for one in candidates:
        if one.head.revision == revision:
            return one
    raise CannotRestore(f"there is no export of revision {revision}")


def _show(candidates: Sequence[Candidate]) -> None:
    rows = [
        [
            screen.readable_time(when(one)),
            str(one.head.revision),
            f"{one.head.rows:,}",
            str(len(one.head.digests)),
            f"{len(one.missing)} chunks are missing" if one.missing else "whole",
        ]
        for one in candidates
    ]
    screen.show_table(["EXPORT", "REVISION", "ROWS", "CHUNKS", ""], rows, right=["REVISION", "ROWS", "CHUNKS"])


def _tell(plan: Plan) -> None:
    click.echo(f"{screen.clean(plan.farm.name)} as it was at {screen.readable_time(when(plan.candidate))}:")
    for note in plan.notes:
        click.echo(f"- {screen.clean(note)}")


def _greet(surroundings: Surroundings, others: Sequence[Listed]) -> Greetings:
    """Ask the other servers in `config.ini` who they are."""
    greetings: Greetings = {}
    if not others:
        return greetings

    async def main(reactor: object) -> None:
        greet = surroundings.greet_with(reactor)
        answers = await DeferredList([greet(row) for row in others], consumeErrors=True)
        for row, (succeeded, answer) in zip(others, answers, strict=True):
            name = f"{row.name} ({Address(row.host, row.client)})"
            greetings[name] = answer if succeeded and not isinstance(answer, Failure) else _reason(answer)

    surroundings.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
    return greetings


def _reason(failure: object) -> str:
    assert isinstance(failure, Failure)
    if failure.check(CancelledError) or not isinstance(failure.value, Exception):
        return "no answer"
    return sentence_of(failure.value)


def _short(said: Mapping[str, str] | str) -> str:
    return said if isinstance(said, str) else f"it is {said.get('state')}"


def why_not(greetings: Greetings, farm: str, chosen: Candidate) -> str:
    """Why nothing should be restored, by what the other servers say; empty if nothing speaks against it."""
    for name, said in greetings.items():
        if isinstance(said, str) or said.get("farm") != farm:
            continue
        state, revision = said.get("state"), said.get("revision", "0")
        if state == "serving":
            return f"{name} is served by a first: nothing is lost"
        if state != "waiting":
            return (
                f"{name} runs: if it holds the table (`chunkfarm status` says holds-table=yes), `chunkfarm takeover` "
                "loses less; if not, stop it first"
            )
        if revision.isdecimal() and int(revision) >= chosen.head.revision:
            return (
                f"{name} holds the table up to revision {revision}, and the export is of revision "
                f"{chosen.head.revision}: say `chunkfarm takeover`"
            )
    return ""
