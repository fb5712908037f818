"""Where servers listen: the address that this one tells of itself, and what it has heard of the others."""

from __future__ import annotations

import socket
from collections.abc import Callable

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from chunkfarm.model import Address, Server

HINT_SECONDS = 10.0
"""How long a hint counts against a row that says otherwise: it is given again while it matters."""


def advertised_host(wanted: str | None) -> str:
    """The address that others are told: the configured one, else the source address of the default route.

    Connecting a UDP socket sends nothing; it only asks the kernel for a route. The address asked about is
    of the range that RFC 5737 keeps for documentation.
    """
    if wanted is not None:
        return wanted
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def is_own_address(host: str) -> bool:
    """Whether this machine has that address now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


@frozen
class _Hint:
    """Where a server was said to listen."""

    address: Address
    instead_of: Address | None
    """What its row said then: a row that has changed since is newer."""
    until: float


@define
class AddressBook:
    """Where servers listen, as far as this one has heard: by its row, or by a hint newer than that."""

    servers: Callable[[], tuple[Server, ...]]
    clock: IReactorTime
    _hints: dict[str, _Hint] = field(factory=dict, init=False)

    def learn(self, server_id: str, address: Address) -> None:
        """Take a hint; a certificate proves later whether it was right."""
        self._hints[server_id] = _Hint(address, self._by_row(server_id), self.clock.seconds() + HINT_SECONDS)

    def lookup(self, server_id: str) -> Address | None:
        """The peer address of a server."""
        row, hint = self._by_row(server_id), self._hints.get(server_id)
        if hint is None:
            return row
        if row is None or (row == hint.instead_of and self.clock.seconds() < hint.until):
            return hint.address
        del self._hints[server_id]
        return row

    def _by_row(self, server_id: str) -> Address | None:
        return next((server.peer_address for server in self.servers() if server.id == server_id), None)
