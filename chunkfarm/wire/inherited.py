"""Listening sockets that a service manager opened and passed on (sd_listen_fds(3)).

They stay open while this process is exchanged for a newer one, so that nobody who connects meanwhile is refused. A
socket is recognised by its name (`systemd:...:name=client`), or, where `config.ini` gives a port number, by that
number: then the units alone decide whether the manager or this process opens the port.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

from attrs import evolve
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, quoteStringArgument, serverFromString

from chunkfarm.config_text import Config
from chunkfarm.config_values import ListenDescription

NAMES = "LISTEN_FDNAMES"

Inherited = Callable[[Any, str], int]


def inherited_descriptor(reactor: Any, name: str) -> int:
    """The descriptor that was passed under `name`; raises `KeyError`.

    Twisted reads the environment when its endpoints are imported and then clears it, so it must be asked.
    """
    endpoint = serverFromString(reactor, f"systemd:domain=INET:name={quoteStringArgument(name)}")
    return int(cast(AdoptedStreamServerEndpoint, endpoint).fileno)


def inherited_ports(environment: Mapping[str, str], inherited: Inherited = inherited_descriptor) -> dict[int, int]:
    """The descriptors that were passed, by the number of the TCP port that they listen on."""
    found = {}
    for name in filter(None, environment.get(NAMES, "").split(":")):
        try:
            descriptor = inherited(None, name)
        except KeyError:
            # The names were meant for another process, or say nothing about the sockets that were passed.
            continue
        if (port := port_of(descriptor)) is not None:
            found[port] = descriptor
    return found


@cache
def own_inherited_ports() -> Mapping[int, int]:
    """The same for this process; looked at once, because a socket that was adopted has another descriptor then."""
    return inherited_ports(os.environ)


def port_of(descriptor: int) -> int | None:
    """The number of the TCP port that a socket is bound to; None if it is something else."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as probe:
            if probe.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            return int(probe.getsockname()[1])
    except OSError:
        return None


def with_ports(config: Config, inherited: Inherited = inherited_descriptor) -> Config:
    """The same config, in which passed sockets have the numbers of their ports, which others must be told.

    A socket that is not there keeps port 0, and is complained about when it is to be opened.
    """
    client, files = (_with_port(place, inherited) for place in (config.server.client, config.server.files))
    return evolve(config, server=evolve(config.server, client=client, files=files))


def _with_port(description: ListenDescription, inherited: Inherited) -> ListenDescription:
    if description.kind != "systemd" or description.port:
        return description
    try:
        return evolve(description, port=port_of(inherited(None, description.name)) or 0)
    except KeyError:
        return description
