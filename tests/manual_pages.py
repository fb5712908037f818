"""The manual pages, made from the definitions that the program itself reads, so that they tell of no other one.

`chunkfarm(1)` follows from the commands as click knows them, `chunkfarm.ini(5)` from the tables of options in
README.md and docs/operations.md, and from the options of `twistd chunkfarm`. `tests/test_manual.py` holds the pages to
that.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from chunkfarm import __version__
from chunkfarm.cli.commands import chunkfarm as command
from chunkfarm.cli.exits import MEANINGS
from chunkfarm.cli.surroundings import KEY_VARIABLE
from chunkfarm.tap import Options

ROOT = Path(__file__).parents[1]
DATE = "2026-11-23"
"""When what the pages say beside the definitions was last written."""

Page = dict[str, str]


def pages() -> Page:
    """Each page by its file name."""
    return {"chunkfarm.1": _lines(commands_page()), "chunkfarm.ini.5": _lines(config_page())}


def _lines(lines: Iterator[str]) -> str:
    return "".join(f"{line}\n" for line in lines if line)


def roff(text: str) -> str:
    """Text as it stands on a line of its own: nothing in it is a request."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", "").replace("^", r"\(ha")
    text = text.replace("~", r"\(ti").replace("…", "...")
    return rf"\&{text}" if text.startswith((".", "'")) else text


def prose(text: str) -> Iterator[str]:
    """Paragraphs of a docstring; those behind a backspace stay as they are."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines[0] == "\b":
            as_they_are = textwrap.dedent(paragraph.partition("\n")[2]).splitlines()
            yield from (".PP", ".RS 4", ".nf", *map(roff, as_they_are), ".fi", ".RE")
        else:
            yield ".PP" if number else ""
            # A line for each sentence, as roff wants it.
            yield from (roff(sentence) for sentence in re.split(r"(?<=[.:;]) ", " ".join(lines)))


def item(term: str, text: str) -> Iterator[str]:
    """A term and what it means."""
    yield from (".TP", rf"\fB{roff(term)}\fR", roff(text))


def _options(each: click.Command) -> Iterator[str]:
    for parameter in each.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            record = parameter.get_help_record(click.Context(each))
            assert record is not None
            yield from item(record[0], record[1])


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands that do something, sub-commands included, in the order of their names."""
    for name in sorted(group.commands):
        each = group.commands[name]
        if isinstance(each, click.Group):
            yield (*path, name), each
            yield from every_command(each, (*path, name))
        else:
            yield (*path, name), each


def _synopsis(path: tuple[str, ...], each: click.Command) -> str:
    pieces = each.collect_usage_pieces(click.Context(each))
    return " ".join(("chunkfarm", *path, *pieces))


def commands_page() -> Iterator[str]:
    """chunkfarm(1)."""
    yield f'.TH CHUNKFARM 1 {DATE} "chunkfarm {__version__}" "User Commands"'
    yield from (".SH NAME", r"chunkfarm \- store and fetch files on a farm, and see how it is")
    yield from (".SH SYNOPSIS", r"\fBchunkfarm\fR [\fIoptions\fR] \fIcommand\fR [\fIarguments\fR]")
    yield from (".SH DESCRIPTION", *prose(command.help or ""), ".PP")
    yield from prose(
        "The command reads config.ini, and tries the servers that are listed there one after the other; it moves on "
        "when one dies, also in the middle of a transfer. What it tells goes to the standard output, progress and "
        "complaints to the standard error. Progress is shown on terminals only."
    )
    yield from (".SH OPTIONS", "These stand before the command.", *_options(command))
    yield ".SH COMMANDS"
    for path, each in every_command(command):
        yield f".SS {roff(_synopsis(path, each))}"
        yield from prose(each.help or "")
        yield from _options(each)
    yield ".SH EXIT STATUS"
    for status, meaning in MEANINGS.items():
        yield from item(str(status), f"{meaning[0].upper()}{meaning[1:]}.")
    yield from (".SH ENVIRONMENT",)
    yield from item("CHUNKFARM_CONFIG", "The farm's file, where --config does not say it.")
    yield from item(KEY_VARIABLE, "The file with your key, where --key does not say it.")
    yield from item("NO_COLOR", "Anything here has progress be shown without colours.")
    yield ".SH FILES"
    for name, text in (
        ("config.ini", "The farm's file, in the working directory: chunkfarm.ini(5)."),
        (
            "admin.key",
            "Your key: one line, <key id> <secret>. Looked for in the data directory, then beside config.ini.",
        ),
        ("~/.config/chunkfarm/key", "Your key, where there is no admin.key."),
        ("farm.join", "The right to join the farm, beside config.ini, mode 0600."),
    ):
        yield from item(name, text)
    yield ".SH EXAMPLES"
    yield from (
        "Three servers on three machines, the first of which has the address 10.0.0.1:",
        ".PP", ".RS 4", ".nf",
        *map(roff, (
            "first$ twistd chunkfarm --config config.ini --host 10.0.0.1",
            "first$ chunkfarm invite --out code          and carry it over",
            "other$ twistd chunkfarm --join @code",
            "first$ chunkfarm servers",
        )),
        ".fi", ".RE", ".PP",
        "A script that tells a file that is missing from a farm that is:",
        ".PP", ".RS 4", ".nf",
        *map(roff, (
            "chunkfarm get backup/db.dump /tmp/db.dump",
            "case $? in",
            "    0) ;;",
            "    3) echo there was no backup yet ;;",
            "    *) echo the farm cannot be asked now; exit 1 ;;",
            "esac",
        )),
        ".fi", ".RE",
    )  # fmt: skip
    yield from (".SH SEE ALSO", ".BR chunkfarm.ini (5),", ".BR twistd (1),", ".BR curl (1)")


def tables(text: str, first: str) -> list[list[str]]:
    """The rows of the table in a document whose head begins with that cell, without head and line."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def config_page() -> Iterator[str]:
    """chunkfarm.ini(5)."""
    readme, operations = (ROOT / "README.md").read_text(), (ROOT / "docs" / "operations.md").read_text()
    yield f'.TH CHUNKFARM.INI 5 {DATE} "chunkfarm {__version__}" "File Formats"'
    yield from (".SH NAME", r"chunkfarm.ini \- the one file of a chunkfarm farm, usually config.ini", ".SH DESCRIPTION")
    yield from prose(
        "All servers of a farm and its clients read this file, be it one shared file or a copy on each machine. "
        "Comments begin with ; or #. Sizes may end with K, M, G or T, which are powers of 1024, durations with s, m, "
        "h or d. An option that is not known is an error.\n\n"
        "The farm keeps [farm] and [servers] itself: it writes the file anew whenever they change, and keeps the "
        "last three versions as config.ini.1 to config.ini.3. It never touches [server] and [limits]. "
        "The file holds no secret."
    )
    for document, section, text in (
        (
            readme,
            "farm",
            "What all servers share. Change it with chunkfarm set farm OPTION=VALUE: an edit by hand is put back.",
        ),
        (
            readme,
            "server",
            "This machine. twistd chunkfarm overrides it with the options below; SIGHUP has it read again.",
        ),
        (
            operations,
            "limits",
            "What others may take of this machine: connections, bytes and time, by the port named first. "
            "SIGHUP has it read again; new connections have the new limits at once.",
        ),
    ):
        yield from (f".SH [{section}]", *prose(text))
        for names, default, meaning in tables(document, f"`[{section}]`"):
            for name in names.split(", "):
                default_of = default.split(", ")
                own = (
                    default_of[names.split(", ").index(name)] if len(default_of) == len(names.split(", ")) else default
                )
                yield from item(f"{name.strip('`')} =", f"{_capital(meaning)}.{f' Default: {own}.' if own else ''}")
    yield ".SH [servers]"
    yield from prose(
        "The servers, live ones first, the oldest ahead; the first three are the masters. A row is a name, then "
        "when it joined, its host, its client port, peer port and file port, its state and its id. In a list made by "
        "hand, as by chunkfarm init, a name with a host and the client port is enough."
    )
    yield from (".SH OPTIONS OF THE SERVER", *prose("twistd chunkfarm takes these:"))
    parameters: Any = Options.optParameters
    flags: Any = Options.optFlags
    for name, _, default, text, _ in parameters:
        yield from item(f"--{name} {name.upper()}", text + (f" Default: {default}." if default else ""))
    for name, _, text in flags:
        yield from item(f"--{name}", text)
    yield ".SH EXAMPLES"
    yield from (".RS 4", ".nf", *(roff(line) for line in (ROOT / "config.ini").read_text().splitlines()), ".fi", ".RE")
    yield from (".SH SEE ALSO", ".BR chunkfarm (1),", ".BR twistd (1)")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
