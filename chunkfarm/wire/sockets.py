"""A look at whether a port can be had, before anything is made for the server that wants it."""

from __future__ import annotations

import socket
from typing import Protocol

from chunkfarm.wire.inherited import own_inherited_ports


class Place(Protocol):
    """Where to listen: what is needed here of a `config.ListenDescription`."""

    @property
    def kind(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def name(self) -> str: ...


def why_taken(place: Place) -> str | None:
    """Why nobody could listen there now, in a few words; None if it could be done.

    Only a look: somebody else may be quicker than the caller. A socket that systemd hands over is never taken.
    """
    if place.kind not in ("tcp", "tcp6") or place.port in own_inherited_ports():
        return None
    family = socket.AF_INET6 if place.kind == "tcp6" else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As Twisted does: connections of a process that has ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((place.name, place.port))
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None
