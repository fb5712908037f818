"""Commands for files: `put`, `get`, `ls`, `rm`, `stat` and `explain`."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import IO

import click

from chunkfarm.cli import explain as explaining
from chunkfarm.cli import screen
from chunkfarm.cli.completion import file_names
from chunkfarm.cli.download import Download, NewFile
from chunkfarm.cli.exits import OUTPUT, give_up, naming
from chunkfarm.cli.farm import Farm
from chunkfarm.cli.screen import as_json, typed
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.cli.threads import RunInThread
from chunkfarm.cli.upload import Upload
from chunkfarm.errors import InvalidRequest
from chunkfarm.links.lines import Reply
from chunkfarm.model import check_file_name
from chunkfarm.wire.lines import quote

DEFAULT_BUCKET = "home"
"""Where `put` stores a file that was given no name."""
LIST_PAGE = 1000


def file_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """`bucket/path`, as an argument."""
    if value is None:
        return None
    try:
        return check_file_name(value)
    except InvalidRequest as error:
        raise click.BadParameter(error.sentence, context, parameter) from None


@click.command()
@click.argument("file", type=click.Path(path_type=str, allow_dash=True))
@click.argument("name", callback=file_name, required=False, shell_complete=file_names)
@as_json
@click.pass_obj
def put(surroundings: Surroundings, file: str, name: str | None, as_json: bool) -> None:
    """Store FILE (- for the standard input) as NAME, home/<base name> by default.

    \b
    chunkfarm put report.pdf
    chunkfarm put report.pdf work/2026/report.pdf
    tar c photos | chunkfarm put - backup/photos.tar
    """
    if name is None:
        if file == "-":
            raise click.UsageError("the standard input needs a NAME")
        name = f"{DEFAULT_BUCKET}/{_last_part(file)}"
    try:
        check_file_name(name)
        source: IO[bytes] = _standard_input() if file == "-" else open(file, "rb")  # noqa: SIM115 - closed below
    except InvalidRequest as error:
        raise click.UsageError(f"{error.sentence}: give a NAME") from None
    except OSError as error:
        give_up(naming(error, repr(file)))
    with source, screen.bar(name) as bar:
        if file != "-":
            bar.size(Path(file).stat().st_size)

        async def work(farm: Farm, run_in_thread: RunInThread) -> Reply:
            upload = Upload(
                farm,
                source,
                name,
                seekable=file != "-" and source.seekable(),
                run_in_thread=run_in_thread,
                on_bytes=bar.more,
            )
            try:
                return await upload.run()
            except OSError as error:
                raise naming(error, "the standard input" if file == "-" else file) from None

        receipt = surroundings.run(work).fields
    if as_json:
        screen.show_json(typed(receipt) | {"holders": _holders(receipt)})
    else:
        screen.say(f"{screen.clean(receipt['name'])}: {_kept(receipt)}")


def _last_part(file: str) -> str:
    """What a file of this machine is called there, for the farm to call it so, too."""
    part = Path(file).name
    if not part:
        raise click.UsageError(f"{file!r} has no name of its own: give a NAME")
    if any("\ud800" <= letter <= "\udfff" for letter in part):
        # Bytes of a name that mean nothing in UTF-8 stand in it so.
        raise click.UsageError(f"the name of {file!r} is not UTF-8: give a NAME")
    return part


def _standard_input() -> IO[bytes]:
    """Without a buffer: its lock would be held, at the end of the process, by a thread that waits for more."""
    raw: IO[bytes] = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    return raw


def _holders(receipt: dict[str, str]) -> list[str]:
    """Ids of the servers that a receipt names; none of an empty file."""
    return [holder for holder in receipt["holders"].split(",") if holder]


def _kept(receipt: dict[str, str]) -> str:
    """What a receipt promises, in words."""
    size = screen.readable_size(int(receipt["size"]))
    if receipt["size"] == "0":
        return size
    copies, holders = int(receipt["copies"]), len(_holders(receipt))
    several = "copy" if copies == 1 else "copies"
    return f"{size}, at least {copies} {several}, on {holders} server{'' if holders == 1 else 's'}"


@click.command()
@click.argument("name", callback=file_name, shell_complete=file_names)
@click.argument("file", type=click.Path(path_type=str, allow_dash=True), required=False)
@click.pass_obj
def get(surroundings: Surroundings, name: str, file: str | None) -> None:
    """Fetch NAME into FILE (- for the standard output), its last part by default.

    \b
    chunkfarm get home/report.pdf
    chunkfarm get backup/photos.tar - | tar x
    """
    target, shown = None, OUTPUT
    if file in ("-", "/dev/stdout"):
        stream: IO[bytes] = sys.stdout.buffer
    else:
        path = Path(file) if file is not None else Path(PurePosixPath(name).name)
        if path.is_dir():
            path = path / PurePosixPath(name).name
        shown = str(path)
        try:
            target = NewFile(path)
        except OSError as error:
            give_up(error)
        stream = target.stream
    try:
        with screen.bar(name) as bar:

            async def work(farm: Farm, run_in_thread: RunInThread) -> int:
                download = Download(
                    farm,
                    name,
                    stream,
                    can_restart=target is not None and target.can_restart,
                    on_size=bar.size,
                    on_bytes=bar.at,
                )
                try:
                    await download.run()
                    return download.stale
                except OSError as error:
                    # Without its name it might be the farm's disk that is full.
                    raise naming(error, shown) from None

            stale = surroundings.run(work, reads=True)
        if target is not None:
            target.keep()
        else:
            stream.flush()
        screen.say_how_old(stale)
    except OSError as error:
        give_up(naming(error, shown))
    finally:
        if target is not None:
            target.drop()


@click.command()
@click.argument("prefix", default="", shell_complete=file_names)
@as_json
@click.pass_obj
def ls(surroundings: Surroundings, prefix: str, as_json: bool) -> None:
    """List files, or those whose name begins with PREFIX.

    \b
    chunkfarm ls work/2026/
    chunkfarm ls --json | jq '.[].name'
    """

    async def work(farm: Farm, run_in_thread: RunInThread) -> tuple[list[dict[str, str]], int]:
        files: list[dict[str, str]] = []
        more, stale = True, 0
        while more:
            after = quote(files[-1]["name"]) if files else "-"
            line = f"LIST {quote(prefix) or '-'} {after} {LIST_PAGE}"
            reply = await farm.run(lambda link, line=line: link.request(line))  # type: ignore[misc]
            # Of a page that is old, each file says so, as in the answer to STAT.
            mark = {"stale": str(reply.stale)} if reply.stale else {}
            files += [file | mark for file in reply.parsed()]
            stale = max(stale, reply.stale)
            more = "more" in reply.words and bool(reply.rows)
        return files, stale

    files, stale = surroundings.run(work, reads=True)
    screen.say_how_old(stale)
    if as_json:
        screen.show_json([typed(file) for file in files])
        return
    rows = [
        [screen.readable_time(file["modified"]), screen.readable_size(int(file["size"])), file["name"]]
        for file in files
    ]
    screen.show_table(["MODIFIED", "SIZE", "NAME"], rows, right=["SIZE"])


@click.command()
@click.argument("name", callback=file_name, shell_complete=file_names)
@click.pass_obj
def rm(surroundings: Surroundings, name: str) -> None:
    """Remove a file.

    \b
    chunkfarm rm home/report.pdf
    """
    surroundings.ask(f"REMOVE {quote(name)}")


@click.command()
@click.argument("name", callback=file_name, shell_complete=file_names)
@as_json
@click.pass_obj
def stat(surroundings: Surroundings, name: str, as_json: bool) -> None:
    """Say what is known of a file.

    \b
    chunkfarm stat home/report.pdf
    """
    reply = surroundings.ask(f"STAT {quote(name)}", reads=True)
    fields = reply.fields
    screen.say_how_old(reply.stale)
    if as_json:
        screen.show_json(typed(fields))
        return
    for field, value in fields.items():
        screen.say(f"{field:10} {screen.clean(value)}")


@click.command()
@click.argument("name", callback=file_name, shell_complete=file_names)
@as_json
@click.pass_obj
def explain(surroundings: Surroundings, name: str, as_json: bool) -> None:
    """Show which servers hold each chunk of NAME, since when each copy was read whole, and what is lost with which.

    \b
    chunkfarm explain backup/photos.tar
    """

    async def work(farm: Farm, run_in_thread: RunInThread) -> explaining.Explained:
        return await explaining.explain(farm, name)

    told = surroundings.run(work, reads=True)
    if as_json:
        screen.show_json(explaining.as_value(told))
        return
    for line in explaining.lines(told):
        screen.say(line)
    if told.parts:
        columns = ["CHUNKS", "SIZE", "COPIES", "VERIFIED", "ON"]
        screen.show_table(columns, explaining.chunk_table(told), right=["SIZE", "COPIES"])
        columns = ["SERVER", "STATE", "HOLDS", "VERIFIED", "LOST IF IT DIES"]
        screen.show_table(columns, explaining.server_table(told), right=["HOLDS"])
