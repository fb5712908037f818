"""`chunkfarm init`: a `config.ini` with a list made by hand, and a join key, for a farm that is not there yet."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from chunkfarm.config_text import Listed, parse_config
from chunkfarm.config_values import (
    DEFAULT_PORT,
    NAME_LENGTH_MAX,
    PORTS_PER_SERVER,
    clean_name,
    read_host,
    read_port,
)
from chunkfarm.model import Address
from chunkfarm.trust.private import AlreadyExists, write_public
from chunkfarm.trust.proof import JOIN_FILE, make_join_key, write_join_key

_TEXT = """\
; The one file of a farm; see README.md for what each option means. Copy it, and farm.join, to each machine
; that is listed before the first server starts. From then on the farm keeps [farm] and [servers].

[farm]
chunksize = 8M                ; K M G T are powers of 1024
name = farm
replicas = 3

[servers]
; Made by hand: name = host and client port; the peer port and the file port are the next two.
{rows}

[server]
data = ./data
; What the others are told to connect to; without it, the address of the default route.
{host}
"""


def read_address(text: str) -> Address:
    """`host`, `host:port` or `[IPv6 address]:port`; raises `ValueError` with what was expected."""
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("expected an IPv6 address as [address] or [address]:port")
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    return Address(read_host(host), read_port(port, room_for=PORTS_PER_SERVER))


def make_list(addresses: Sequence[Address]) -> tuple[Listed, ...]:
    """A row for each address, named after its host; raises `ValueError` for two servers that share a port."""
    rows: list[Listed] = []
    for address in addresses:
        for other in rows:
            if other.host == address.host and abs(other.client - address.port) < PORTS_PER_SERVER:
                raise ValueError(
                    f"{address} and {Address(other.host, other.client)} share a port: a server takes "
                    f"{PORTS_PER_SERVER} in a row"
                )
        name = _free_name(_name_of(address.host), {row.name for row in rows})
        port = address.port
        rows.append(Listed(name=name, host=address.host, client=port, peer=port + 1, files=port + 2))
    return tuple(rows)


def _name_of(host: str) -> str:
    """A server name: the first label of a host name, or the whole of an address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return clean_name(host)
    # The zone of an address may be anything: fe80::1%eth0.
    return re.sub(r"[^a-z0-9._-]", "-", host.lower()).strip("-._")[: NAME_LENGTH_MAX - 4] or "server"


def _free_name(name: str, taken: set[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free = f"{name}-{number}"
        number += 1
    return free


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def render(rows: Iterable[Listed]) -> str:
    """The text of a `config.ini` with that list."""
    listed = list(rows)
    # Who tries a farm on one machine need not know that the others are told another address.
    host = f"host = {listed[0].host}" if all(_is_loopback(row.host) for row in listed) else "; host = "
    text = _TEXT.format(rows="\n".join(f"{row.name} = {row.text}" for row in listed), host=host)
    assert parse_config(text, "config.ini").servers == tuple(listed)
    return text


def write(path: str, rows: Iterable[Listed]) -> Path:
    """Write `config.ini` at `path` and `farm.join` beside it, both or neither; returns where the latter is.

    Raises `AlreadyExists` if one of them is there, else `TrustError`. Blocks for the disk.
    """
    text = render(rows)
    join = Path(path).absolute().parent / JOIN_FILE
    for there in (path, join):
        if os.path.lexists(there):
            raise AlreadyExists(f"{there} exists already, so nothing was written")
    write_join_key(join, make_join_key())
    try:
        write_public(path, text.encode(), replace=False)
    except BaseException:
        join.unlink(missing_ok=True)
        raise
    return join
