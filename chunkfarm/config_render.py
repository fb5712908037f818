"""Writes the farm's sections of `config.ini` anew, and compares them with the table. Pure.

`[farm]` and `[servers]` follow from the table. What people add to them stays: a comment on a line of its own
keeps its place before the row that it precedes, a comment behind a value stays behind it, and a spelling
that already means the right value is left alone. `[server]` is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import define, evolve, field, frozen

from chunkfarm.config_text import Document, Line, Listed, scan
from chunkfarm.config_values import FARM_READERS, ConfigError, farm_option_text, read_generation
from chunkfarm.membership import in_order
from chunkfarm.model import FarmOptions, Server

ALWAYS_WRITTEN = ("chunksize", "name", "id", "generation", "ca", "replicas", "table")
"""Written even with their default value: who reads the file should not need to know the defaults."""
FARM_ORDER = (*ALWAYS_WRITTEN, "master_grace", "repair_after", "forget_after", "collect_grace", "two_server_takeover")
"""The options of `[farm]` in the order in which the farm writes them."""

_BOM = "\ufeff"


@frozen
class Difference:
    """Something in the farm's part of the file that is not as the table has it; empty text means absent."""

    option: str
    file: str
    farm: str

    def __str__(self) -> str:
        return f"{self.option} is {self.file or 'absent'} in the file and {self.farm or 'absent'} in the farm"


@define
class _Block:
    """A section with the comments that stand directly above its header."""

    section: str
    lines: list[Line] = field(factory=list)
    new: bool = False


def differences(document: Document, farm: FarmOptions, generation: int) -> tuple[Difference, ...]:
    """Where the text of `[farm]` says something else than the table: values are compared, not spellings."""
    options = document.options("farm")
    found: list[Difference] = []
    for option in FARM_ORDER:
        wanted = _wanted(option, farm, generation)
        line = options.get(option)
        if line is None:
            if wanted != _wanted(option, FarmOptions(), 0):
                found.append(Difference(option, "", _option_text(option, wanted)))
        elif not _means(option, line.value, wanted):
            found.append(Difference(option, line.value, _option_text(option, wanted)))
    return tuple(found)


def row_differences(document: Document, servers: Iterable[Server]) -> tuple[Difference, ...]:
    """Where the rows of `[servers]` are not those of the table, in whatever order they stand."""
    wanted = {server.name: Listed.of(server).text for server in servers}
    listed = {line.option: " ".join(line.value.split()) for line in document.options("servers").values()}
    return tuple(
        Difference(name, listed.get(name, ""), wanted.get(name, ""))
        for name in dict.fromkeys((*wanted, *listed))
        if listed.get(name) != wanted.get(name)
    )


def render(text: str, farm: FarmOptions, generation: int, servers: Iterable[Server]) -> str:
    """The file's new text: `[farm]` and `[servers]` as the table has them, everything else as it was.

    `text` is the file as it is, or empty. Raises `ConfigError` where `text` is not an INI file of ours, or
    where two servers have one name; wrong values in the farm's sections are replaced.
    """
    document = scan(text, "config.ini")
    ending = "\r\n" if document.lines and document.lines[0].ending == "\r\n" else "\n"
    head, blocks = _blocks(document)
    sections = {block.section: block for block in blocks}
    if "farm" not in sections:
        sections["farm"] = _Block("farm", [_line("[farm]", ending)], new=True)
        blocks.insert(0, sections["farm"])
    if "servers" not in sections:
        sections["servers"] = _Block("servers", [_line("[servers]", ending)], new=True)
        blocks.insert(blocks.index(sections["farm"]) + 1, sections["servers"])
    sections["farm"].lines = _farm_lines(sections["farm"].lines, farm, generation, ending)
    sections["servers"].lines = _row_lines(sections["servers"].lines, in_order(servers), ending)
    return (_BOM if text.startswith(_BOM) else "") + _joined(head, blocks, ending)


def _line(text: str, ending: str) -> Line:
    return Line(number=0, text=text, ending=ending, kind="new")


def _joined(head: list[Line], blocks: list[_Block], ending: str) -> str:
    """All lines as text; a section that is new is set off by empty lines."""
    lines = list(head)
    after_new = False
    for block in blocks:
        if lines and lines[-1].text.strip() and (block.new or after_new):
            lines.append(_line("", ending))
        lines.extend(block.lines)
        after_new = block.new
    # A last line without an ending gets one if it is no longer the last.
    parts = [line.text + (line.ending if line.ending.endswith("\n") else ending) for line in lines[:-1]]
    return "".join(parts) + lines[-1].text + lines[-1].ending


def _blocks(document: Document) -> tuple[list[Line], list[_Block]]:
    """What stands above all sections, and the sections; comments directly above a header go with it."""
    head: list[Line] = []
    blocks: list[_Block] = []
    current = head
    for line in document.lines:
        if line.kind == "section":
            above: list[Line] = []
            while current and current[-1].kind == "comment":
                above.insert(0, current.pop())
            blocks.append(_Block(line.section, above))
            current = blocks[-1].lines
        current.append(line)
    return head, blocks


# --- [farm] --------------------------------------------------------------------------------------------


def _wanted(option: str, farm: FarmOptions, generation: int) -> Any:
    return generation if option == "generation" else getattr(farm, option)


def _option_text(option: str, value: Any) -> str:
    return str(value) if option == "generation" else farm_option_text(option, value)


def _means(option: str, text: str, value: Any) -> bool:
    """Whether the text already says `value`, in whatever spelling."""
    reader = read_generation if option == "generation" else FARM_READERS[option]
    try:
        return bool(text) and bool(reader(text) == value)
    except ValueError:
        return False


def _farm_lines(lines: list[Line], farm: FarmOptions, generation: int, ending: str) -> list[Line]:
    present = {line.option for line in lines if line.kind == "option"}
    result: list[Line] = []
    for line in lines:
        if line.kind == "option" and line.option in FARM_ORDER:
            wanted = _wanted(line.option, farm, generation)
            text = _option_text(line.option, wanted)
            if not text:
                continue
            if not _means(line.option, line.value, wanted):
                line = _with_value(line, text)
        result.append(line)
    for position, option in enumerate(FARM_ORDER):
        wanted = _wanted(option, farm, generation)
        text = _option_text(option, wanted)
        needed = option in ALWAYS_WRITTEN or wanted != _wanted(option, FarmOptions(), 0)
        if option not in present and text and needed:
            new = evolve(_line(f"{option} = {text}", ending), kind="option", option=option)
            result.insert(_place(result, FARM_ORDER[:position]), new)
    return _chunksize_first(result)


def _place(lines: list[Line], ahead: Sequence[str]) -> int:
    """Where an option goes: behind the last of those that stand `ahead` of it, else before all options."""
    options = [index for index, line in enumerate(lines) if line.kind == "option"]
    behind = [index for index in options if lines[index].option in ahead]
    if behind:
        return behind[-1] + 1
    return options[0] if options else _end(lines)


def _end(lines: list[Line]) -> int:
    """Behind the last line that is not empty."""
    return max(index for index, line in enumerate(lines) if line.text.strip()) + 1


def _chunksize_first(lines: list[Line]) -> list[Line]:
    first = next(index for index, line in enumerate(lines) if line.kind == "option")
    now = next(index for index, line in enumerate(lines) if line.option == "chunksize")
    if now == first:
        return lines
    line = lines[now]
    return [*lines[:first], line, *lines[first:now], *lines[now + 1 :]]


def _with_value(line: Line, value: str) -> Line:
    """The line with another value; the comment behind it keeps its column if there is room."""
    body = line.text[: len(line.text) - len(line.comment)]
    before = body[: len(body) - len(line.value)] if line.value else body + " "
    text = before + value
    if line.comment:
        column = len(body) + len(line.comment) - len(line.comment.lstrip())
        text = (text + " ").ljust(column) + line.comment.lstrip()
    return evolve(line, text=text, value=value)


# --- [servers] -----------------------------------------------------------------------------------------


def _row_lines(lines: list[Line], servers: Sequence[Server], ending: str) -> list[Line]:
    rows = [index for index, line in enumerate(lines) if line.kind == "option"]
    start = rows[0] if rows else _end(lines)
    end = rows[-1] + 1 if rows else start
    attached: dict[int, list[Line]] = {}
    notes: list[Line] = []
    for line in lines[start:end]:
        if line.kind == "option":
            attached[line.number], notes = notes, []
        else:
            notes.append(line)
    old = {line.number: line for line in lines[start:end] if line.kind == "option"}
    written: list[Line] = []
    names: set[str] = set()
    for server in servers:
        if server.name in names:
            raise ConfigError(f"two servers of the table are named {server.name}: expected one", option=server.name)
        names.add(server.name)
        if found := _row_of(server, old.values()):
            del old[found.number]
            written.extend(attached.pop(found.number))
            written.append(_row_line(found, server))
        else:
            written.append(_line(f"{server.name} = {Listed.of(server).text}", ending))
    # The row of a forgotten server goes with the comment behind it; a comment on a line of its own may be
    # about anything, and stays.
    orphans = [line for lines_above in attached.values() for line in lines_above if line.kind == "comment"]
    return [*lines[:start], *written, *orphans, *lines[end:]]


def _row_of(server: Server, rows: Iterable[Line]) -> Line | None:
    """The line that stands for a server now: by id, or in a list made by hand by name or by address."""
    by_hand: list[Line] = []
    for line in rows:
        words = line.value.split()
        if words and words[-1] == server.id:
            return line
        if len(words) != 7:
            by_hand.append(line)
    for line in by_hand:
        if line.option == server.name or line.value.split() == [server.host, str(server.client)]:
            return line
    return None


def _row_line(line: Line, server: Server) -> Line:
    text = Listed.of(server).text
    if line.option == server.name:
        return line if line.value.split() == text.split() else _with_value(line, text)
    comment = f" {line.comment.lstrip()}" if line.comment else ""
    return evolve(line, text=f"{server.name} = {text}{comment}", option=server.name, value=text)
