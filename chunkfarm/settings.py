"""What an admin may change in a row or in the farm's options, as text in and a changed record out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import evolve, frozen

from chunkfarm.config_values import (
    ConfigError,
    check_farm,
    is_loopback,
    read_farm_option,
    read_host,
    read_port,
    read_server_name,
    read_weight,
    read_yes_or_no,
    read_zone,
)
from chunkfarm.errors import InvalidRequest, NotFound, PreconditionFailed
from chunkfarm.links.rows import parse_row, server_row
from chunkfarm.membership import in_order
from chunkfarm.model import Address, FarmOptions, Server
from chunkfarm.wire.lines import parse_fields, text_of

SERVER_FIELDS: Mapping[str, Callable[[str], Any]] = {
    "name": read_server_name,
    "host": read_host,
    "client": read_port,
    "peer": read_port,
    "files": read_port,
    "weight": read_weight,
    "zone": read_zone,
    "master": read_yes_or_no,
}
"""Fields of a row that can be set, and how their text is read."""
NOT_SETTABLE = ("id", "ca", "table")
"""Farm options that only the farm itself writes, or that cannot change while it lives."""

NOT_COMPARED = ("role",)
"""Shown in a row, but not part of it: it follows from all rows together."""
NUMBER_DIGITS_MAX = 18
"""As in every number of the line protocol."""


def changed_server(server: Server, fields: Mapping[str, str], taken_names: set[str]) -> Server:
    """The row with the fields set; raises `InvalidRequest` with what was expected."""
    values: dict[str, Any] = {}
    for name, text in fields.items():
        reader = SERVER_FIELDS.get(name)
        if reader is None:
            raise InvalidRequest(f"{name} cannot be set; a server's fields are {', '.join(SERVER_FIELDS)}")
        try:
            values[name] = reader(text)
        except ValueError as error:
            raise InvalidRequest(f"{name}={text}: {error}") from None
    if values.get("name") in taken_names:
        raise InvalidRequest(f"another server has the name {values['name']}")
    return evolve(server, **values)


def check_places(rows: Iterable[Server], before: Mapping[str, Server]) -> None:
    """Raise `InvalidRequest` if a changed row says another server's host and port, or a host that others cannot reach.

    `before` are all rows by id as they are. What a row said before is not looked at: it must be possible to mend it.
    """
    changed = {row.id: row for row in rows}
    after = {**before, **changed}
    places: dict[tuple[str, int], list[tuple[str, Server]]] = {}
    for server in after.values():
        for port, place in _places(server).items():
            places.setdefault(place, []).append((port, server))
    for row in changed.values():
        old = _places(before[row.id])
        for port, place in _places(row).items():
            if place == old[port]:
                continue
            shown = Address(row.host, getattr(row, _PORTS[port]))
            for other_port, other in places[place]:
                if (other.id, other_port) != (row.id, port):
                    itself = " itself" if other.id == row.id else ""
                    raise InvalidRequest(f"{shown} is the {other_port} port of {other.name}{itself}")
        if row.host != before[row.id].host and is_loopback(row.host):
            for other in in_order(after.values()):
                if other.id != row.id and not is_loopback(other.host):
                    raise InvalidRequest(
                        f"{row.host} is an address that only the own machine of {row.name} can reach, and {other.name} "
                        f"is at {other.host}"
                    )


_PORTS = {"client": "client", "peer": "peer", "file": "files"}
"""What people call the ports, and their fields."""


def _places(server: Server) -> dict[str, tuple[str, int]]:
    """Where each port is, so that the same place looks the same."""
    host = server.host.lower().rstrip(".")
    host = "127.0.0.1" if host == "localhost" else host
    return {port: (host, getattr(server, name)) for port, name in _PORTS.items()}


def changed_farm(options: FarmOptions, fields: Mapping[str, str]) -> FarmOptions:
    """The options with the fields set; raises `InvalidRequest` with what was expected."""
    values: dict[str, Any] = {}
    for name, text in fields.items():
        if name in NOT_SETTABLE:
            raise InvalidRequest(f"{name} cannot be set")
        try:
            values[name] = read_farm_option(name, text)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None
    changed = evolve(options, **values)
    try:
        check_farm(changed)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None
    return changed


@frozen
class TableBlock:
    """The server table as SERVERS shows it, read back: by server id what each row says."""

    revision: int
    rows: Mapping[str, Mapping[str, str]]


def read_table(data: bytes) -> TableBlock:
    """Read `TABLE <count> revision=<n>`, rows and `END`; raises `InvalidRequest`. Empty lines do not count."""
    lines = [text_of(line.removesuffix(b"\r")) for line in data.split(b"\n")]
    lines = [line for line in lines if line.strip()]
    words = lines[0].split() if lines else []
    numbers = [word.removeprefix("revision=") for word in words[1:]]
    if (
        words[:1] != ["TABLE"]
        or len(words) != 3
        or not words[2].startswith("revision=")
        or not all(text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX for text in numbers)
    ):
        raise InvalidRequest("a table begins with TABLE <count> revision=<n>, as SERVERS shows it")
    if lines[-1] != "END":
        raise InvalidRequest("a table ends with END, as SERVERS shows it")
    if int(numbers[0]) != len(lines) - 2:
        raise InvalidRequest(f"the table's first line says {numbers[0]} rows, and there are {len(lines) - 2}")
    rows: dict[str, Mapping[str, str]] = {}
    for line in lines[1:-1]:
        bare, fields = parse_fields(line)
        server_id = fields.get("id", "")
        if bare != ["SERVER"] or not server_id:
            raise InvalidRequest(f"not a row of the server table: {line[:80]!r}")
        name, times = Counter(word.partition("=")[0] for word in line.split()).most_common(1)[0]
        if times > 1:
            raise InvalidRequest(f"{name} stands {times} times in the row of server {server_id[:40]}")
        if server_id in rows:
            raise InvalidRequest(f"server {server_id} stands in the table twice")
        rows[server_id] = fields
    return TableBlock(int(numbers[1]), rows)


def changed_table(
    block: TableBlock, servers: Mapping[str, Server], revisions: Mapping[str, int], revision: int
) -> tuple[Server, ...]:
    """The rows that the block changes.

    `servers` and their `revisions` are the table as it is at `revision`. Raises `PreconditionFailed` if a row has
    changed since the block was read, `NotFound` for a server that is not there, and `InvalidRequest` for one
    that is left out, or for a field that cannot be what the block says.
    """
    if block.revision > revision:
        raise PreconditionFailed(f"the table is at revision {revision}, and has not been at {block.revision} yet")
    late = [server.name for server in in_order(servers.values()) if revisions[server.id] > block.revision]
    if late:
        raise PreconditionFailed(
            f"the table has changed since revision {block.revision} ({', '.join(late)}): ask SERVERS, and edit that"
        )
    for server_id in block.rows:
        if server_id not in servers:
            raise NotFound(f"there is no server {server_id[:40]!r}")
    for server in in_order(servers.values()):
        if server.id not in block.rows:
            raise InvalidRequest(f"{server.name} is left out: a whole table has a row for every server")
    after = {id: _changed_row(servers[id], fields) for id, fields in block.rows.items()}
    name, times = Counter(server.name for server in after.values()).most_common(1)[0]
    if times > 1:
        raise InvalidRequest(f"{times} servers would have the name {name}")
    return tuple(server for id, server in after.items() if server != servers[id])


def _changed_row(server: Server, fields: Mapping[str, str]) -> Server:
    shown = parse_row(server_row(server, ""))[1]
    changed = {name: text for name, text in fields.items() if name not in NOT_COMPARED and text != shown.get(name)}
    for name in changed:
        if name in shown and name not in SERVER_FIELDS:
            raise InvalidRequest(f"{name} of {server.name} cannot be set; it is {shown[name]}")
    return changed_server(server, changed, set())
