"""What an admin may change in a row or in the farm's options, as text in and a changed record out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve

from chunkfarm.config_values import (
    ConfigError,
    check_farm,
    read_farm_option,
    read_host,
    read_port,
    read_server_name,
    read_weight,
    read_yes_or_no,
    read_zone,
)
from chunkfarm.errors import InvalidRequest
from chunkfarm.model import FarmOptions, Server

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
    if values.get("name", server.name) in taken_names:
        raise InvalidRequest(f"another server has the name {values['name']}")
    return evolve(server, **values)


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
