"""The commands of `chunkfarm`, as click sees them."""

from __future__ import annotations

import math
import sys
from typing import IO

import click

from chunkfarm import __version__
from chunkfarm.bench.command import bench
from chunkfarm.cli import authority, draining, exits, exporting, files, forgetting, keys, restoring, screen, taking_over
from chunkfarm.cli import check as checking
from chunkfarm.cli import init as initial
from chunkfarm.cli.completion import completion, file_names, server_names, targets
from chunkfarm.cli.exits import FAILED, Commands, give_up
from chunkfarm.cli.farm import Farm
from chunkfarm.cli.history import history
from chunkfarm.cli.inviting import invite
from chunkfarm.cli.screen import as_json
from chunkfarm.cli.status import ask_for_servers, status
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.cli.threads import RunInThread
from chunkfarm.cli.watching import watch
from chunkfarm.drill.command import drill
from chunkfarm.errors import FarmError, NotFound
from chunkfarm.wire.lines import quote


def seconds(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """A time that passes, as an option: whatever is compared with `nan` is neither longer nor shorter."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of seconds", context, parameter)
    return value


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chunkfarm")
@click.option(
    "--config",
    default="config.ini",
    show_default=True,
    envvar="CHUNKFARM_CONFIG",
    # What cannot be read is told like what is not there, and not as a mistake in usage.
    type=click.Path(readable=False),
    help="The farm's file, or $CHUNKFARM_CONFIG.",
)
@click.option(
    "--key", metavar="FILE", type=click.Path(readable=False), help="File with your key: one line, <key id> <secret>."
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    callback=seconds,
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
    screen.say(f"{path} lists {', '.join(str(address) for address in addresses)}; {join} proves the right to join.")
    screen.say(f"Copy both to each machine ({join.name} with mode 0600), and start there:")
    screen.say(f"  twistd chunkfarm --config {path}")


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
        screen.say(f"{changed} row{'' if changed == '1' else 's'} changed")
        return
    reply = ask_for_servers(surroundings, "SERVERS")
    if raw:
        for line in (f"{reply.word} {len(reply.rows)} {reply.text}", *reply.rows, "END"):
            # What goes to a file must come back as it was.
            click.echo(screen.clean(line) if sys.stdout.isatty() else line)
        return
    rows = reply.parsed()
    if as_json:
        screen.show_json([screen.typed(row) for row in rows])
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
    rows = ask_for_servers(surroundings, "WHO").parsed()
    if as_json:
        screen.show_json([screen.typed(row) | {"leads": row.get("leads") == "yes"} for row in rows])
        return
    leader = next((row for row in rows if row.get("leads") == "yes"), None)
    screen.say(f"{screen.clean(leader['name'])} leads the farm." if leader else "Nobody leads the farm now.")
    screen.show_table(
        ["NEXT", "NAME", "ROLE", "STATE", "BECAUSE"],
        [[row["rank"], row["name"], row["role"], row["state"], row["because"]] for row in rows],
        right=["NEXT"],
    )


@chunkfarm.command()
@click.argument("prefix", default="", shell_complete=file_names)
@click.option("--repair", is_flag=True, help="Wait until everything is whole.")
@click.option("--quick", is_flag=True, help="Ask the servers what they have; do not make them read it.")
@as_json
@click.pass_obj
def check(surroundings: Surroundings, prefix: str, repair: bool, quick: bool, as_json: bool) -> None:
    """Have every copy of every chunk read and compared, and say what is damaged, missing or lost.

    What is wrong is mended in any case. The exit status is 0 if nothing is wrong, or, with --repair, any more;
    that gives up after --timeout seconds without progress, but not while a server is down that may come back.
    One that is up and does not answer is not waited for any longer.

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
        if prefix and not found.files:
            raise NotFound(f"no file has a name that begins with {prefix!r}")
        if found.wrong and repair:
            if not as_json:
                for line in checking.lines(found, quick, names):
                    screen.say(line)
            found.wrong = await checking.repaired(farm, found.wrong, surroundings.timeout, quick)
        return found

    found = surroundings.run(work, reads=True)
    screen.say_how_old(found.stale)
    if as_json:
        screen.show_json(checking.as_value(found))
    else:
        for line in checking.lines(found, quick, names):
            screen.say(line)
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

    A server that is up must answer at the host and peer port that it is given; no other may have that host and port.
    """
    for assignment in assignments:
        if "=" not in assignment:
            raise click.UsageError(f"{assignment!r} is not FIELD=VALUE")
    words = " ".join(quote(word) for word in (target, *assignments))
    fields = surroundings.ask(f"SET {words}").fields
    if as_json:
        screen.show_json(screen.typed(fields))
        return
    for field, value in fields.items():
        screen.say(f"{field:20} {screen.clean(value)}")


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
            row = await draining.wait(farm, row["id"], lambda text: screen.say(text, err=True))
        return [row]

    rows = surroundings.run(work, reads=server is None)
    if as_json:
        values = [draining.as_value(row) for row in rows]
        screen.show_json(values if server is None else values[0])
    elif server is None:
        screen.show_table(draining.COLUMNS, draining.table(rows), right=draining.COLUMNS[2:6])
    elif undo:
        screen.say(f"{screen.clean(rows[0]['name'])} keeps its chunks.")
    else:
        screen.say(draining.sentence(rows[0]))


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
        outlook = await forgetting.look(farm, server, lambda text: screen.say(text, err=True))
        if outlook.objection:
            return outlook, False
        if not as_json:
            for line in forgetting.lines(outlook):
                screen.say(line)
        question = f"Forget {outlook.name} for good?"
        if not yes and not await run_in_thread(lambda: click.confirm(question, err=True)):
            return outlook, False
        await forgetting.forget(farm, outlook)
        return outlook, True

    outlook, done = surroundings.run(work)
    if as_json:
        screen.show_json(outlook.as_value(done))
    if outlook.objection:
        screen.say(f"chunkfarm: {screen.clean(outlook.objection)}", err=True)
    if not done:
        raise click.exceptions.Exit(FAILED)
    if not as_json:
        screen.say(f"{outlook.name} is forgotten. Servers that are to join need the new farm.join.")


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
        screen.say(f"chunkfarm: {screen.clean(taken.objection)}", err=True)
        raise click.exceptions.Exit(FAILED)
    if not as_json:
        screen.say(f"{screen.clean(taken.name)} leads the farm, in line {screen.clean(taken.line)}.")


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


for command in (
    authority.ca,
    bench,
    completion,
    drill,
    exporting.export,
    files.explain,
    files.get,
    files.ls,
    files.put,
    files.rm,
    files.stat,
    history,
    invite,
    keys.key,
    restoring.restore,
    status,
    watch,
):
    chunkfarm.add_command(command)
