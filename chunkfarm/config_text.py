"""The text of `config.ini` as a whole, read into a frozen `Config`. Pure.

`config_values` says what one option means, `config_render` writes the farm's sections anew, and `config_file`
moves the text to and from the disk. Every error names the file, the line and what was expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from chunkfarm.config_values import (
    DEFAULT_PORT,
    FARM_READERS,
    PORT_MAX,
    PORTS_PER_SERVER,
    RELATED,
    ConfigError,
    ListenDescription,
    check_farm,
    clean_name,
    read_duration,
    read_generation,
    read_host,
    read_listen,
    read_log_format,
    read_log_level,
    read_names,
    read_path,
    read_peer_listen,
    read_port,
    read_server_name,
    read_size,
    read_weight,
    read_yes_or_no,
    read_zone,
    shown,
)
from chunkfarm.limits import LIMIT_READERS, Limits, check_limits
from chunkfarm.model import SERVER_STATES, FarmOptions, Server, check_server_id, parse_timestamp, timestamp

SECTIONS = ("farm", "servers", "server", "limits")
DEFAULT_DATA = "data"
DEFAULT_CLIENT = ListenDescription("tcp", DEFAULT_PORT)
DEFAULT_PEER = ListenDescription("tcp", DEFAULT_PORT + 1)
DEFAULT_FILES = ListenDescription("tcp", DEFAULT_PORT + 2)
DEFAULT_DRAIN_SECONDS = 20.0
"""Less than the 30 s that the systemd unit grants before it kills."""

_BOM = "\ufeff"
_COMMENT = re.compile(r"[ \t][;#]")
_SECTION = re.compile(r"\[([^\[\]]*)\](?:[ \t]+[;#].*)?\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@frozen(kw_only=True)
class ServerOptions:
    """The options of `[server]`, with the command line's on top. Sizes are bytes, durations seconds."""

    name: str
    host: str | None = None
    """The advertised address; None: found out at the start."""
    data: Path
    client: ListenDescription = DEFAULT_CLIENT
    peer: ListenDescription = DEFAULT_PEER
    files: ListenDescription = DEFAULT_FILES
    weight: int | None = None
    """None: the capacity of the disk."""
    zone: str = ""
    """Empty: the host."""
    master: bool = True
    reserve: int | None = None
    """None: the larger of 1 GiB and 2 % of the disk."""
    repair_rate: int | None = None
    """Bytes a second, 0 for no limit; None: 64 MiB."""
    drain_timeout: float = DEFAULT_DRAIN_SECONDS
    certificate: Path | None = None
    """A PEM file with key and chain for the file port; None: the farm's own."""
    names: tuple[str, ...] = ()
    """Further names for the certificate."""
    log_level: str = "info"
    """Events of less weight are not logged."""
    log_format: str = "text"
    """`text`, or `json`: one object a line."""


@frozen(kw_only=True)
class Listed:
    """A row of `[servers]`. A row made by hand has no `joined`, no `state` and no `id`."""

    name: str
    joined: int | None = None
    host: str
    client: int
    peer: int
    files: int
    state: str = ""
    id: str = ""

    @classmethod
    def of(cls, server: Server) -> Listed:
        """The row that shows a server of the table."""
        return cls(
            name=server.name,
            joined=server.joined,
            host=server.host,
            client=server.client,
            peer=server.peer,
            files=server.files,
            state=server.state,
            id=server.id,
        )

    @property
    def text(self) -> str:
        """What stands behind `name = `."""
        if self.joined is None:
            return f"{self.host} {self.client}"
        when = timestamp(self.joined)
        return f"{when} {self.host} {self.client} {self.peer} {self.files} {self.state} {self.id}"


@frozen(kw_only=True)
class Config:
    """A whole `config.ini`, validated. `generation` is 0 in a file that no farm has written."""

    path: Path
    farm: FarmOptions
    generation: int
    servers: tuple[Listed, ...]
    server: ServerOptions
    limits: Limits = field(factory=Limits)


@frozen(kw_only=True)
class Line:
    """One line of the file. `section` is the one it stands in (a header stands in its own); `option` is
    empty for all but options. `value` has no white space around it, `comment` has what parts it from the value."""

    number: int
    text: str
    ending: str
    kind: str
    section: str = ""
    option: str = ""
    value: str = ""
    comment: str = ""


@frozen
class Document:
    """The lines of a file, known to be well formed but not yet looked at for meaning."""

    path: str
    lines: tuple[Line, ...]

    def options(self, section: str) -> dict[str, Line]:
        return {line.option: line for line in self.lines if line.section == section and line.kind == "option"}

    def error(self, line: Line, sentence: str) -> ConfigError:
        return _error_at(self.path, line.number, sentence, line.option)

    def text_of(self, option: str) -> str:
        """The text of an option of `[farm]`, empty if it is absent."""
        line = self.options("farm").get(option)
        return line.value if line else ""


def _error_at(path: str, number: int, sentence: str, option: str = "") -> ConfigError:
    return ConfigError(f"{path}, line {number}: {sentence}", line=number, option=option)


# --- reading -------------------------------------------------------------------------------------------


def scan(text: str, path: str | os.PathLike[str]) -> Document:
    """Split text into lines whose role is known; raises `ConfigError` for what is not an INI file of ours."""
    name = os.fspath(path)
    lines: list[Line] = []
    seen: dict[tuple[str, str], int] = {}
    section = ""
    for number, raw in enumerate(text.removeprefix(_BOM).split("\n"), 1):
        body = raw.removesuffix("\r")
        line = Line(number=number, text=body, ending=raw[len(body) :] + "\n", kind="blank", section=section)
        if control := _CONTROL.search(body):
            raise _error_at(name, number, f"expected text, found the control character {control[0]!r}")
        stripped = body.strip()
        if not stripped:
            lines.append(line)
        elif stripped[0] in ";#":
            lines.append(evolve(line, kind="comment"))
        elif stripped[0] == "[":
            match = _SECTION.match(stripped)
            section = match[1] if match else stripped
            if section not in SECTIONS:
                known = ", ".join(f"[{one}]" for one in SECTIONS)
                raise _error_at(name, number, f"{shown(stripped)}: expected one of {known}")
            _only_once(seen, (section, ""), number, name, f"[{section}]")
            lines.append(evolve(line, kind="section", section=section))
        else:
            if not section:
                raise _error_at(name, number, f"{shown(stripped)}: expected a section such as [farm] before any option")
            lines.append(_scan_option(line, name))
            _only_once(seen, (section, lines[-1].option), number, name, lines[-1].option)
    # What follows the last newline is not a line unless there is something in it.
    if lines[-1].text == "" and lines[-1].ending == "\n":
        lines.pop()
    else:
        lines[-1] = evolve(lines[-1], ending=lines[-1].ending[:-1])
    return Document(name, tuple(lines))


def _only_once(seen: dict[tuple[str, str], int], key: tuple[str, str], number: int, path: str, what: str) -> None:
    if key in seen:
        raise _error_at(
            path, number, f"{what} stands here again: expected it once, and line {seen[key]} has it", key[1]
        )
    seen[key] = number


def _scan_option(line: Line, path: str) -> Line:
    comment = _COMMENT.search(line.text)
    body = (line.text[: comment.start()] if comment else line.text).rstrip()
    option, equals, value = body.partition("=")
    option = option.strip()
    if not equals:
        raise _error_at(path, line.number, f"{shown(option)}: expected <option> = <value>")
    if not option or option != option.lower() or any(character.isspace() for character in option):
        raise _error_at(path, line.number, f"{shown(option)}: expected an option name of one word in lower case")
    return evolve(line, kind="option", option=option, value=value.strip(), comment=line.text[len(body) :])


def parse_config(
    text: str,
    path: str | os.PathLike[str],
    overrides: Mapping[str, str | None] | None = None,
    host_name: str = "",
) -> Config:
    """Validate a whole file into frozen values; raises `ConfigError`, and nothing else.

    `overrides` are from the command line: `data name host ports weight zone`, where `data` is already
    relative to nothing but `path`'s folder or absolute. `host_name` is what `name` defaults to.
    """
    document = scan(text, path)
    farm, generation = _read_farm(document)
    return Config(
        path=Path(path),
        farm=farm,
        generation=generation,
        servers=_read_rows(document),
        server=_read_server(document, overrides or {}, host_name),
        limits=_read_limits(document),
    )


def _read(document: Document, line: Line, reader: Callable[[str], Any]) -> Any:
    try:
        if not line.value:
            raise ValueError("expected a value, or no line at all")
        return reader(line.value)
    except ValueError as error:
        raise document.error(line, f"{line.option} = {shown(line.value) if line.value else ''}: {error}") from None


def _read_farm(document: Document) -> tuple[FarmOptions, int]:
    readers = {**FARM_READERS, "generation": read_generation}
    options = document.options("farm")
    values = {option: _read(document, line, _reader(document, line, readers)) for option, line in options.items()}
    generation = values.pop("generation", 0)
    farm = FarmOptions(**values)
    try:
        check_farm(farm)
    except ConfigError as error:
        # The default of one option may be what the other, which stands in the file, does not agree with.
        line = options.get(error.option) or next(options[option] for option in RELATED if option in options)
        raise document.error(line, error.sentence) from None
    return farm, generation


def _reader(document: Document, line: Line, readers: Mapping[str, Callable[[str], Any]]) -> Callable[[str], Any]:
    if line.option not in readers:
        known = " ".join(readers)
        raise document.error(
            line, f"{shown(line.option)} is not an option of [{line.section}]: expected one of {known}"
        )
    return readers[line.option]


def _read_rows(document: Document) -> tuple[Listed, ...]:
    rows: list[Listed] = []
    ids: dict[str, int] = {}
    for line in document.options("servers").values():
        try:
            row = read_row(line.option, line.value)
        except ValueError as error:
            raise document.error(line, f"{shown(line.option)} = {shown(line.value)}: {error}") from None
        if row.id and row.id in ids:
            raise document.error(line, f"{row.name} has the same server id as line {ids[row.id]}: expected another")
        ids[row.id] = line.number
        rows.append(row)
    return tuple(rows)


def read_row(name: str, text: str) -> Listed:
    """A row of `[servers]`, full or made by hand; raises `ValueError`."""
    try:
        read_server_name(name)
    except ValueError as error:
        raise ValueError(f"{error} as the server's name") from None
    words = text.split()
    if len(words) == 2:
        client = read_port(words[1], room_for=PORTS_PER_SERVER)
        return Listed(name=name, host=read_host(words[0]), client=client, peer=client + 1, files=client + 2)
    if len(words) != 7:
        raise ValueError(
            "expected <timestamp> <host> <client port> <peer port> <file port> <state> <server id>, "
            "or <host> <client port> in a list made by hand"
        )
    when, host, client_port, peer_port, file_port, state, server_id = words
    try:
        joined = parse_timestamp(when)
    except ValueError:
        raise ValueError("expected a timestamp such as 2026-11-22T10:00:00.123Z as the first word") from None
    if state not in SERVER_STATES:
        raise ValueError(f"expected one of {' '.join(SERVER_STATES)} as the sixth word")
    try:
        check_server_id(server_id)
    except ValueError:
        raise ValueError("expected a server id of 32 hexadecimal digits as the seventh word") from None
    return Listed(
        name=name,
        joined=joined,
        host=read_host(host),
        client=read_port(client_port),
        peer=read_port(peer_port),
        files=read_port(file_port),
        state=state,
        id=server_id,
    )


def _read_limits(document: Document) -> Limits:
    options = document.options("limits")
    values = {option: _read(document, line, _reader(document, line, LIMIT_READERS)) for option, line in options.items()}
    limits = Limits(**values)
    if wrong := check_limits(limits):
        option, other, sentence = wrong
        # The default of one option may be what the other, which stands in the file, does not agree with.
        line = options.get(option) or options[other]
        raise document.error(line, sentence)
    return limits


_SERVER_READERS: Mapping[str, Callable[[str], Any]] = {
    "name": read_server_name,
    "host": read_host,
    "data": read_path,
    "client": read_listen,
    "peer": read_peer_listen,
    "files": read_listen,
    "weight": read_weight,
    "zone": read_zone,
    "master": read_yes_or_no,
    "reserve": read_size,
    "repair_rate": read_size,
    "drain_timeout": read_duration,
    "certificate": read_path,
    "names": read_names,
    "log_level": read_log_level,
    "log_format": read_log_format,
}

SERVER_OPTIONS = tuple(_SERVER_READERS)
"""The options of `[server]`."""

_OVERRIDE_READERS: Mapping[str, Callable[[str], Any]] = {
    **{option: _SERVER_READERS[option] for option in ("data", "name", "host", "weight", "zone")},
    "ports": lambda text: read_port(text, room_for=PORTS_PER_SERVER),
}


def _read_server(document: Document, overrides: Mapping[str, str | None], host_name: str) -> ServerOptions:
    options = document.options("server")
    values = {
        option: _read(document, line, _reader(document, line, _SERVER_READERS)) for option, line in options.items()
    }
    given = {option: _read_override(option, text) for option, text in overrides.items() if text is not None}
    base = given.pop("ports", None)
    values.update(given)
    folder = os.path.dirname(os.path.abspath(document.path))
    values["data"] = Path(os.path.normpath(os.path.join(folder, values.get("data", DEFAULT_DATA))))
    if "certificate" in values:
        values["certificate"] = Path(os.path.normpath(os.path.join(folder, values["certificate"])))
    values.setdefault("name", clean_name(host_name))
    values.update(_listen_descriptions(values, base))
    _check_ports_differ(document, values)
    return ServerOptions(**values)


def _read_override(option: str, text: str) -> Any:
    try:
        if not text:
            raise ValueError("expected a value")
        return _OVERRIDE_READERS[option](text)
    except ValueError as error:
        raise ConfigError(f"--{option} {shown(text)}: {error}", option=option) from None


def _listen_descriptions(values: Mapping[str, Any], base: int | None) -> dict[str, ListenDescription]:
    """The three ports: what is not given follows from the client port, as it does in a row made by hand."""
    client = values.get("client", DEFAULT_CLIENT)
    if base is not None:
        client = client.on_port(base)
    follows = base or client.port or DEFAULT_PORT
    found = {"client": client}
    for option, offset in (("peer", 1), ("files", 2)):
        description = values.get(option)
        if description is None:
            # A client port at the very end leaves no room behind it; the check below names the clash.
            description = ListenDescription("tcp", min(follows + offset, PORT_MAX))
        elif base is not None:
            description = description.on_port(base + offset)
        found[option] = description
    return found


def _check_ports_differ(document: Document, values: Mapping[str, Any]) -> None:
    taken: dict[int | str, str] = {}
    for option in ("client", "peer", "files"):
        description = values[option]
        key = description.port or description.name
        if key in taken:
            line = document.options("server").get(option) or document.options("server").get(taken[key])
            sentence = f"{option} and {taken[key]} both use {description}: expected different ports"
            raise document.error(line, sentence) if line else ConfigError(f"{document.path}: {sentence}", option=option)
        taken[key] = option
