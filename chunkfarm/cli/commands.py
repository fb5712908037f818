"""The commands of `chunkfarm`, as click sees them."""

from __future__ import annotations

import json
import sys
from pathlib import Path, PurePosixPath
from typing import IO, Any

import click
from twisted.internet.task import deferLater

from chunkfarm import __version__
from chunkfarm.bench.command import bench
from chunkfarm.cli import authority, draining, exits, exporting, forgetting, keys, restoring, screen, taking_over
from chunkfarm.cli import check as checking
from chunkfarm.cli import explain as explaining
from chunkfarm.cli import init as initial
from chunkfarm.cli.completion import completion, file_names, server_names, targets, watched
from chunkfarm.cli.download import Download, NewFile
from chunkfarm.cli.exits import FAILED, Commands, give_up
from chunkfarm.cli.farm import PAUSE_FIRST, Farm
from chunkfarm.cli.history import history
from chunkfarm.cli.inviting import invite
from chunkfarm.cli.screen import as_json
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.cli.threads import RunInThread
from chunkfarm.cli.upload import Upload
from chunkfarm.drill.command import drill
from chunkfarm.errors import FarmError, InvalidRequest
from chunkfarm.links.lines import LineClient, Reply
from chunkfarm.links.rows import parse_row
from chunkfarm.model import check_file_name
from chunkfarm.table.interface import Compacted, Event, Unavailable
from chunkfarm.wire.lines import quote

DEFAULT_BUCKET = "home"
"""Where `put` stores a file that was given no name."""
LIST_PAGE = 1000

_NUMBERS = {"size", "chunks", "chunksize", "revision", "copies", "seniority", "client", "peer", "files", "weight",
            "free", "used", "rank", "stale", "replicas"}  # fmt: skip


def typed(fields: dict[str, str]) -> dict[str, str | int]:
    """Fields for JSON: what counts something is a number there."""
    return {name: int(value) if name in _NUMBERS and value.isdecimal() else value for name, value in fields.items()}


def file_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """`bucket/path`, as an argument."""
    if value is None:
        return None
    try:
        return check_file_name(value)
    except InvalidRequest as error:
        raise click.BadParameter(error.sentence, context, parameter) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chunkfarm")
@click.option(
    "--config",
    default="config.ini",
    show_default=True,
    envvar="CHUNKFARM_CONFIG",
    type=click.Path(),
    help="The farm's file, or $CHUNKFARM_CONFIG.",
)
@click.option("--key", metavar="FILE", type=click.Path(), help="File with your key: one line, <key id> <secret>.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    help="How long to wait without any progress before giving up.",
)
@click.pass_context
def chunkfarm(context: click.Context, config: str, key: str | None, timeout: float) -> None:
    """Store and fetch files on a farm, and see how it is.

    A file's name is bucket/path. Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 not allowed,
    5 nobody answered, 6 no writes now, 130 interrupted with Ctrl-C.
    """
    surroundings = context.ensure_object(Surroundings)
    surroundings.config_path, surroundings.key_path, surroundings.timeout = config, key, timeout


chunkfarm.add_command(authority.ca)
chunkfarm.add_command(keys.key)
chunkfarm.add_command(invite)
chunkfarm.add_command(drill)
chunkfarm.add_command(bench)


@chunkfarm.command()
@click.argument("hosts", metavar="HOST[:PORT]...", nargs=-1, required=True)
@click.pass_obj
def init(surroundings: Surroundings, hosts: tuple[str, ...]) -> None:
    """Write a config.ini that lists these servers, and a farm.join, for machines that are to be a farm.

    PORT is a server's client port, 4100 by default. Nothing is overwritten.

    \b
    chunkfarm init 10.0.0.1 10.0.0.2 10.0.0.3
    """
    addresses = []
    for host in hosts:
        try:
            addresses.append(initial.read_address(host))
        except ValueError as error:
            raise click.UsageError(f"{host}: {error}") from None
    try:
        rows = initial.make_list(addresses)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    path = surroundings.config_path
    try:
        join = initial.write(path, rows)
    except FarmError as error:
        give_up(error)
    click.echo(f"{path} lists {', '.join(str(address) for address in addresses)}; {join} proves the right to join.")
    click.echo(f"Copy both to each machine ({join.name} with mode 0600), and start there:")
    click.echo(f"  twistd chunkfarm --config {path}")


@chunkfarm.command()
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
        name = f"{DEFAULT_BUCKET}/{Path(file).name}"
    try:
        check_file_name(name)
        source: IO[bytes] = _standard_input() if file == "-" else open(file, "rb")  # noqa: SIM115 - closed below
    except (InvalidRequest, OSError) as error:
        give_up(error)
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
            return await upload.run()

        receipt = surroundings.run(work).fields
    if as_json:
        screen.show_json(typed(receipt))
    else:
        click.echo(f"{screen.clean(receipt['name'])}: {_kept(receipt)}")


def _standard_input() -> IO[bytes]:
    """Without a buffer: its lock would be held, at the end of the process, by a thread that waits for more."""
    raw: IO[bytes] = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    return raw


def _kept(receipt: dict[str, str]) -> str:
    """What a receipt promises, in words."""
    size = screen.readable_size(int(receipt["size"]))
    if receipt["size"] == "0":
        return size
    copies, holders = int(receipt["copies"]), len(receipt["holders"].split(","))
    several = "copy" if copies == 1 else "copies"
    return f"{size}, at least {copies} {several}, on {holders} server{'' if holders == 1 else 's'}"


@chunkfarm.command()
@click.argument("name", callback=file_name, shell_complete=file_names)
@click.argument("file", type=click.Path(path_type=str, allow_dash=True), required=False)
@click.pass_obj
def get(surroundings: Surroundings, name: str, file: str | None) -> None:
    """Fetch NAME into FILE (- for the standard output), its last part by default.

    \b
    chunkfarm get home/report.pdf
    chunkfarm get backup/photos.tar - | tar x
    """
    target = None
    if file in ("-", "/dev/stdout"):
        stream: IO[bytes] = sys.stdout.buffer
    else:
        path = Path(file) if file is not None else Path(PurePosixPath(name).name)
        if path.is_dir():
            path = path / PurePosixPath(name).name
        try:
            target = NewFile(path)
        except OSError as error:
            give_up(error)
        stream = target.stream
    try:
        with screen.bar(name) as bar:

            async def work(farm: Farm, run_in_thread: RunInThread) -> dict[str, str]:
                download = Download(
                    farm,
                    name,
                    stream,
                    can_restart=target is not None and target.can_restart,
                    on_size=bar.size,
                    on_bytes=bar.at,
                )
                return await download.run()

            surroundings.run(work)
        if target is not None:
            target.keep()
        else:
            stream.flush()
    except OSError as error:
        give_up(error)
    finally:
        if target is not None:
            target.drop()


@chunkfarm.command()
@click.argument("prefix", default="", shell_complete=file_names)
@as_json
@click.pass_obj
def ls(surroundings: Surroundings, prefix: str, as_json: bool) -> None:
    """List files, or those whose name begins with PREFIX.

    \b
    chunkfarm ls work/2026/
    chunkfarm ls --json | jq '.[].name'
    """

    async def work(farm: Farm, run_in_thread: RunInThread) -> list[dict[str, str]]:
        files: list[dict[str, str]] = []
        more = True
        while more:
            after = quote(files[-1]["name"]) if files else "-"
            line = f"LIST {quote(prefix) or '-'} {after} {LIST_PAGE}"
            reply = await farm.run(lambda link, line=line: link.request(line))  # type: ignore[misc]
            files += reply.parsed()
            more = "more" in reply.words and bool(reply.rows)
        return files

    files = surroundings.run(work)
    if as_json:
        screen.show_json([typed(file) for file in files])
        return
    rows = [
        [screen.readable_time(file["modified"]), screen.readable_size(int(file["size"])), file["name"]]
        for file in files
    ]
    screen.show_table(["MODIFIED", "SIZE", "NAME"], rows, right=["SIZE"])


@chunkfarm.command()
@click.argument("name", callback=file_name, shell_complete=file_names)
@click.pass_obj
def rm(surroundings: Surroundings, name: str) -> None:
    """Remove a file.

    \b
    chunkfarm rm home/report.pdf
    """
    surroundings.ask(f"REMOVE {quote(name)}")


@chunkfarm.command()
@click.argument("name", callback=file_name, shell_complete=file_names)
@as_json
@click.pass_obj
def stat(surroundings: Surroundings, name: str, as_json: bool) -> None:
    """Say what is known of a file.

    \b
    chunkfarm stat home/report.pdf
    """
    fields = surroundings.ask(f"STAT {quote(name)}").fields
    if as_json:
        screen.show_json(typed(fields))
        return
    for field, value in fields.items():
        click.echo(f"{field:10} {screen.clean(value)}")


@chunkfarm.command()
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

    told = surroundings.run(work)
    if as_json:
        screen.show_json(explaining.as_value(told))
        return
    for line in explaining.lines(told):
        click.echo(line)
    if told.parts:
        columns = ["CHUNKS", "SIZE", "COPIES", "VERIFIED", "ON"]
        screen.show_table(columns, explaining.chunk_table(told), right=["SIZE", "COPIES"])
        columns = ["SERVER", "STATE", "HOLDS", "VERIFIED", "LOST IF IT DIES"]
        screen.show_table(columns, explaining.server_table(told), right=["HOLDS"])


@chunkfarm.command()
@as_json
@click.option("--raw", is_flag=True, help="Print the table as the farm writes it, to be edited for --put.")
@click.option("--put", "edited", type=click.File("rb"), metavar="FILE", help="Take the edited table from FILE (or -).")
@click.pass_obj
def servers(surroundings: Surroundings, as_json: bool, raw: bool, edited: IO[bytes] | None) -> None:
    """Show the server table, oldest first; or, with --put, set the editable fields of all of it in one step.

    \b
    chunkfarm servers
    chunkfarm servers --raw > table; edit table; chunkfarm servers --put table
    """
    if edited is not None:
        table = edited.read()
        changed = surroundings.ask(f"TABLE {len(table)}", table).fields["changed"]
        click.echo(f"{changed} row{'' if changed == '1' else 's'} changed")
        return
    reply = surroundings.ask("SERVERS")
    if raw:
        for line in (f"{reply.word} {len(reply.rows)} {reply.text}", *reply.rows, "END"):
            # What goes to a file must come back as it was.
            click.echo(screen.clean(line) if sys.stdout.isatty() else line)
        return
    rows = reply.parsed()
    if as_json:
        screen.show_json([typed(row) for row in rows])
        return
    columns = ["NAME", "STATE", "ROLE", "ADDRESS", "USED", "FREE", "ZONE", "JOINED", "VERSION"]
    shown = [
        [
            row["name"],
            row["state"],
            row["role"],
            f"{row['host']}:{row['client']}",
            screen.readable_size(int(row["used"])),
            screen.readable_size(int(row["free"])),
            row["zone"],
            screen.readable_time(row["joined"]),
            row["version"],
        ]
        for row in rows
    ]
    screen.show_table(columns, shown, right=["USED", "FREE"])


@chunkfarm.command()
@as_json
@click.pass_obj
def who(surroundings: Surroundings, as_json: bool) -> None:
    """Show who leads, who would take over, and why.

    \b
    chunkfarm who
    """
    rows = surroundings.ask("WHO").parsed()
    if as_json:
        screen.show_json([typed(row) for row in rows])
        return
    leader = next((row for row in rows if row.get("leads") == "yes"), None)
    click.echo(f"{screen.clean(leader['name'])} leads the farm." if leader else "Nobody leads the farm now.")
    screen.show_table(
        ["NEXT", "NAME", "ROLE", "STATE", "BECAUSE"],
        [[row["rank"], row["name"], row["role"], row["state"], row["because"]] for row in rows],
        right=["NEXT"],
    )


@chunkfarm.command()
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
        screen.show_json(dict(pairs) | ({LOST_WITH: risks} if risks else {}))
        return
    pairs = [pair for pair in pairs if pair[0] != LOST_WITH]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{screen.clean(name).ljust(width)}  {screen.clean(value)}")
    if risks:
        click.echo()
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


@chunkfarm.command()
@click.argument("prefix", default="", shell_complete=file_names)
@click.option("--repair", is_flag=True, help="Wait until everything is whole.")
@click.option("--quick", is_flag=True, help="Ask the servers what they have; do not make them read it.")
@as_json
@click.pass_obj
def check(surroundings: Surroundings, prefix: str, repair: bool, quick: bool, as_json: bool) -> None:
    """Have every copy of every chunk read and compared, and say what is damaged, missing or lost.

    What is wrong is mended in any case. The exit status is 0 if nothing is wrong, or, with --repair, any more;
    that gives up after --timeout seconds without progress, unless a server is down that may come back.

    \b
    chunkfarm check --quick
    chunkfarm check work/ --repair
    """
    names: dict[str, str] = {}

    async def work(farm: Farm, run_in_thread: RunInThread) -> checking.Checked:
        told = await farm.run(lambda link: link.request("SERVERS"))
        names.update({row["id"]: row["name"] for row in told.parsed()})
        with screen.bar(f"check {prefix}".strip()) as bar:
            found = await checking.check(farm, prefix, quick, bar)
        if found.wrong and repair:
            if not as_json:
                for line in checking.lines(found, quick, names):
                    click.echo(line)
            say = lambda text: click.echo(text, err=True)  # noqa: E731
            found.wrong = await checking.repaired(farm, found.wrong, surroundings.timeout, quick, say)
        return found

    found = surroundings.run(work)
    if as_json:
        screen.show_json(checking.as_value(found))
    else:
        for line in checking.lines(found, quick, names):
            click.echo(line)
    if found.wrong:
        raise click.exceptions.Exit(exits.FAILED)


@chunkfarm.command("set")
@click.argument("target", shell_complete=targets)
@click.argument("assignments", metavar="FIELD=VALUE...", nargs=-1, required=True)
@as_json
@click.pass_obj
def set_(surroundings: Surroundings, target: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Change fields of a server (by name or id), or options of the farm (`farm`).

    \b
    chunkfarm set farm replicas=2
    chunkfarm set delta weight=500 zone=rack2
    """
    for assignment in assignments:
        if "=" not in assignment:
            raise click.UsageError(f"{assignment!r} is not FIELD=VALUE")
    words = " ".join(quote(word) for word in (target, *assignments))
    fields = surroundings.ask(f"SET {words}").fields
    if as_json:
        screen.show_json(typed(fields))
        return
    for field, value in fields.items():
        click.echo(f"{field:20} {screen.clean(value)}")


@chunkfarm.command()
@click.argument("server", metavar="[NAME]", required=False, shell_complete=server_names)
@click.option("--wait", is_flag=True, help="Return once it may be switched off.")
@click.option("--undo", is_flag=True, help="Let it keep its chunks after all.")
@click.option("--anyway", is_flag=True, help="Also if the others cannot keep as many copies, or have no room.")
@as_json
@click.pass_obj
def drain(surroundings: Surroundings, server: str | None, wait: bool, undo: bool, anyway: bool, as_json: bool) -> None:
    """Empty the server NAME (or id), so that it can be switched off; without NAME show which servers are emptied.

    It goes on serving; its chunks are copied to the others, and it is not master any more once others are. With --wait
    the exit status is 0 once nothing on it is needed any more, however long that takes.

    \b
    chunkfarm drain delta --wait
    chunkfarm drain delta --undo
    """
    if server is None and (wait or undo or anyway):
        raise click.UsageError("which server? Give its NAME")
    if undo and (wait or anyway):
        raise click.UsageError("--undo goes alone")

    async def work(farm: Farm, run_in_thread: RunInThread) -> list[draining.Row]:
        if server is None:
            return await draining.look(farm)
        row = await draining.begin(farm, server, "off" if undo else "anyway" if anyway else "")
        if wait:
            row = await draining.wait(farm, row["id"], lambda text: click.echo(text, err=True))
        return [row]

    rows = surroundings.run(work)
    if as_json:
        values = [draining.as_value(row) for row in rows]
        screen.show_json(values if server is None else values[0])
    elif server is None:
        screen.show_table(draining.COLUMNS, draining.table(rows), right=draining.COLUMNS[2:6])
    elif undo:
        click.echo(f"{screen.clean(rows[0]['name'])} keeps its chunks.")
    else:
        click.echo(draining.sentence(rows[0]))


@chunkfarm.command()
@click.argument("server", metavar="NAME", shell_complete=server_names)
@click.option("--yes", is_flag=True, help="Do it without a question on the terminal.")
@as_json
@click.pass_obj
def forget(surroundings: Surroundings, server: str, yes: bool, as_json: bool) -> None:
    """Take the server NAME (or id) out of the farm for good, which must be down.

    Says first what would be lost with it, as far as all others answer. It can never come back with what is in its data
    directory, and the farm has a new farm.join afterwards.

    \b
    chunkfarm forget delta
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: give --yes")

    async def work(farm: Farm, run_in_thread: RunInThread) -> tuple[forgetting.Outlook, bool]:
        outlook = await forgetting.look(farm, server, lambda text: click.echo(text, err=True))
        if outlook.objection:
            return outlook, False
        if not as_json:
            for line in forgetting.lines(outlook):
                click.echo(line)
        question = f"Forget {outlook.name} for good?"
        if not yes and not await run_in_thread(lambda: click.confirm(question, err=True)):
            return outlook, False
        await forgetting.forget(farm, outlook)
        return outlook, True

    outlook, done = surroundings.run(work)
    if as_json:
        screen.show_json(outlook.as_value(done))
    if outlook.objection:
        click.echo(f"chunkfarm: {screen.clean(outlook.objection)}", err=True)
    if not done:
        raise click.exceptions.Exit(FAILED)
    if not as_json:
        click.echo(f"{outlook.name} is forgotten. Servers that are to join need the new farm.join.")


@chunkfarm.command()
@click.option("--farm", "farm_name", metavar="NAME", help="The farm's name, instead of a question on the terminal.")
@as_json
@click.pass_obj
def takeover(surroundings: Surroundings, farm_name: str | None, as_json: bool) -> None:
    """Let the farm go on without a majority of its masters, which is lost for good.

    Shows which server was found with which journal. The one with the longest goes on, alone; the others learn from
    it when they come back. What only the lost servers knew is lost.

    \b
    chunkfarm takeover
    """
    if farm_name is None and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: give the farm's name with --farm NAME")

    async def work(farm: Farm, run_in_thread: RunInThread) -> taking_over.Taken:
        outlook = await taking_over.look(farm)
        if not as_json:
            _show_outlook(outlook)
        if outlook.objection:
            return outlook
        name = farm_name
        if name is None:
            question = f"{outlook.name} goes on alone. The farm's name, to confirm"
            name = await run_in_thread(lambda: str(click.prompt(question, err=True)))
        return await taking_over.take_over(farm, outlook, name)

    taken = surroundings.run(work)
    if as_json:
        screen.show_json(taken.as_value())
    if taken.objection:
        click.echo(f"chunkfarm: {screen.clean(taken.objection)}", err=True)
        raise click.exceptions.Exit(FAILED)
    if not as_json:
        click.echo(f"{screen.clean(taken.name)} leads the farm, in line {screen.clean(taken.line)}.")


def _show_outlook(outlook: taking_over.Taken) -> None:
    rows = [
        [
            row["name"],
            row["address"],
            row.get("state", "-"),
            row.get("term", "-"),
            row.get("index", "-"),
            row.get("error") or ("the longest journal" if row.get("longest") == "yes" else ""),
        ]
        for row in outlook.rows
    ]
    screen.show_table(["SERVER", "ADDRESS", "STATE", "TERM", "INDEX", ""], rows, right=["TERM", "INDEX"])


chunkfarm.add_command(history)
chunkfarm.add_command(completion)
chunkfarm.add_command(exporting.export)
chunkfarm.add_command(restoring.restore)


@chunkfarm.command()
@click.argument("prefix", default="", shell_complete=watched)
@as_json
@click.pass_obj
def watch(surroundings: Surroundings, prefix: str, as_json: bool) -> None:
    """Show changes as they happen, under PREFIX (servers/, farm/ or files/) or all; end with Ctrl-C.

    \b
    chunkfarm watch files/work/
    chunkfarm watch --json | jq .key
    """
    seen: list[int] = []

    async def follow(link: LineClient) -> None:
        try:
            running = await link.watch(prefix.encode(), seen[-1] if seen else None)
        except Compacted as error:
            click.echo(f"chunkfarm: changes before revision {error.first_revision} were missed", err=True)
            running = await link.watch(prefix.encode(), error.first_revision - 1)
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

    surroundings.run(work)


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
    click.echo(screen.clean(f"{event.revision:>8}  {word:4}  {key}  {detail}".rstrip()))
    sys.stdout.flush()
