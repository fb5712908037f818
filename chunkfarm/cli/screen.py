"""What people see: tables, sizes, times and progress. Terminals get colour; pipes get plain, whole lines."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON; errors are a sentence on the standard error all the same."
)
"""For every command that prints a table."""


_NUMBERS = {"size", "chunks", "chunksize", "revision", "copies", "seniority", "client", "peer", "files", "weight",
            "free", "used", "rank", "stale", "replicas"}  # fmt: skip
_SECONDS = {"master_grace", "repair_after", "forget_after", "collect_grace"}
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?\Z")


def typed(fields: dict[str, str]) -> dict[str, str | int | float]:
    """Fields for JSON: what counts something is a number there, and so are seconds."""
    return {name: _typed(name, value) for name, value in fields.items()}


def _typed(name: str, value: str) -> str | int | float:
    if name in _NUMBERS and value.isdecimal():
        return int(value)
    return float(value) if name in _SECONDS and _DECIMAL.match(value) else value


def readable_size(size: int) -> str:
    """Bytes as people say them: `1.5 MiB`."""
    value = float(size)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def readable_time(timestamp: str) -> str:
    """`2026-11-22 10:00:00` of a timestamp, in UTC as the farm keeps it."""
    return timestamp[:19].replace("T", " ")


def clean(text: str) -> str:
    """Text from a server without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def say(text: str, *, err: bool = False) -> None:
    """Lines for people. Most of them have words of a server in them, and some of whoever only said to be one."""
    click.echo("\n".join(map(clean, text.split("\n"))), err=err)


def waits(why: str) -> None:
    """Tell who watches a terminal why nothing moves; a script is told at the end, if nothing came of it."""
    if sys.stderr.isatty():
        # In the place of a progress bar, which is drawn anew below.
        begin = "" if os.environ.get("TERM") == "dumb" else "\r\x1b[K"
        click.echo(f"{begin}chunkfarm: {clean(why)}", err=True)


def progress(text: str) -> None:
    """Tell who watches a terminal how far something has come."""
    if sys.stderr.isatty():
        say(text, err=True)


def say_how_old(revision: int) -> None:
    """Tell whoever reads the standard error that nobody who knows the last state answered; 0 says that somebody did."""
    if revision:
        say(f"chunkfarm: the masters do not answer; this is how things stood at revision {revision}", err=True)


def show_json(value: Any) -> None:
    """One value as JSON on a line of its own."""
    text = json.dumps(value, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)
    click.echo(text)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table; the columns named in `right` are flush right."""
    lines = [list(columns), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(line[position]) for line in lines) for position in range(len(columns))]
    for number, line in enumerate(lines):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        text = "  ".join(cells).rstrip()
        # Styles are left out by click where the output is no terminal.
        click.echo(click.style(text, bold=True) if number == 0 else text)


class Bar(Protocol):
    """Where progress is told."""

    def size(self, total: int | None) -> None: ...

    def at(self, done: int) -> None: ...

    def more(self, done: int) -> None: ...


class NoBar:
    """Nobody watches."""

    def size(self, total: int | None) -> None:
        pass

    def at(self, done: int) -> None:
        pass

    def more(self, done: int) -> None:
        pass


class RichBar:
    """A bar with bytes, rate and time left."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(clean(name).replace("[", "\\["), total=None)

    def size(self, total: int | None) -> None:
        self._progress.update(self._task, total=total)

    def at(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def more(self, done: int) -> None:
        self._progress.advance(self._task, done)


class _Rate(ProgressColumn):
    """Bytes a second, in the units that everything else is told in."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{readable_size(int(speed))}/s" if speed is not None else "")


@contextmanager
def bar(name: str) -> Iterator[Bar]:
    """A progress bar on the standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield NoBar()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), _Rate())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        yield RichBar(progress, name)
