"""`chunkfarm completion`: the shell completes commands, options, files, servers, and the names of what is stored.

The shell asks `chunkfarm` itself at each TAB (click does the talking), so what it offers is what this version knows.
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.config import read_config
from chunkfarm.errors import FarmError
from chunkfarm.wire.lines import quote

VARIABLE = "_CHUNKFARM_COMPLETE"
"""What the shell says to `chunkfarm` when it wants to know how words go on; click's name for it."""
NAMES_MAX = 200
"""Names of files that are offered: more do not help."""
PATIENCE = 2.0
"""Seconds in which a farm must answer: whoever presses TAB does not wait longer."""

_PLAIN = re.compile(r"[\w./@%+=:,-]+")
"""What bash may be given: it puts a completion into the line as it is, so that a file that somebody else has named
`x;reboot` would be a command there."""

_SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


def _surroundings(context: click.Context) -> Surroundings:
    root = context.find_root()
    surroundings = root.obj if isinstance(root.obj, Surroundings) else Surroundings()
    surroundings.config_path = root.params.get("config") or surroundings.config_path
    surroundings.key_path = root.params.get("key")
    surroundings.timeout = PATIENCE
    return surroundings


def server_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The servers in `config.ini`, whose list the farm keeps."""
    try:
        config = read_config(_surroundings(context).config_path, {})
    except FarmError:
        return []
    return [CompletionItem(row.name, help=row.state) for row in config.servers if row.name.startswith(incomplete)]


def targets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What `set` may change: the farm, or a server."""
    farm = [CompletionItem("farm", help="the farm's options")] if "farm".startswith(incomplete) else []
    return farm + server_names(context, parameter, incomplete)


def watched(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What `watch` may follow."""
    return [CompletionItem(prefix) for prefix in ("servers/", "farm/", "files/") if prefix.startswith(incomplete)]


def file_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of stored files, if a server tells them soon."""
    surroundings = _surroundings(context)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(click.exceptions.Exit):
        reply = surroundings.ask(f"LIST {quote(incomplete) or '-'} - {NAMES_MAX}")
        return [CompletionItem(row["name"]) for row in reply.parsed() if _PLAIN.fullmatch(row["name"])]
    return []


@click.command("completion")
@click.argument("shell", type=click.Choice(tuple(_SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete the words of this command with the TAB key.

    It completes commands, options, files of this machine, servers of config.ini, and names of stored files.

    \b
    chunkfarm completion bash > ~/.local/share/bash-completion/completions/chunkfarm
    chunkfarm completion zsh > ~/.zfunc/_chunkfarm            (with ~/.zfunc in fpath, before compinit)
    chunkfarm completion fish > ~/.config/fish/completions/chunkfarm.fish
    """
    complete: Any = _SHELLS[shell](context.find_root().command, {}, "chunkfarm", VARIABLE)
    source = complete.source_template % complete.source_vars()
    click.echo(source.strip())
