"""Who may connect to a crowded port: places in all and by address, some of them kept for servers of this farm. Pure.

An address says nothing of who connects. So a place that is kept is given on trust, to an address where a server of this
farm was met, and must be paid for with its certificate: whoever is slow to show one loses it.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from attrs import define, field

from chunkfarm.model import Server

MET_MAX = 4096
"""Addresses remembered, more than a farm has; the longest unseen is forgotten."""
REFUSALS_MAX = 64
"""Connections of one port that are told why they get no place, at one time; more are closed without a word."""
V6_PREFIX = 64
"""Whoever has one address of IPv6 has all of such a network."""


def whose(host: str) -> str:
    """What of an address is counted as one: an IPv4 address, or a network of IPv6."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, V6_PREFIX), strict=False))


@define
class Met:
    """The addresses from which servers of this farm have connected, and those that their rows show."""

    _servers: Callable[[], Iterable[Server]] = tuple
    _seen: OrderedDict[str, None] = field(factory=OrderedDict, init=False)

    def note(self, host: str) -> None:
        """A server has shown its certificate from there."""
        self._seen[whose(host)] = None
        self._seen.move_to_end(whose(host))
        if len(self._seen) > MET_MAX:
            self._seen.popitem(last=False)

    def __contains__(self, host: str) -> bool:
        return whose(host) in self._seen or any(whose(server.host) == whose(host) for server in self._servers())


@define
class Places:
    """The connections of one port."""

    _met: Met
    total: int = field(default=0, init=False)
    _by_address: Counter[str] = field(factory=Counter, init=False)

    def refusal(self, host: str, most: int, of_one: int, reserved: int) -> str:
        """Which limit keeps another connection from there out; empty if none does."""
        if self.total >= most - reserved:
            return "connections"
        return "connections_address" if self._by_address[whose(host)] >= of_one else ""

    def on_trust(self, host: str, most: int) -> bool:
        """Whether one that is kept out so may come in all the same, if it proves to be a server of this farm."""
        return self.total < most and host in self._met

    def take(self, host: str) -> None:
        """Somebody has come in."""
        self.total += 1
        self._by_address[whose(host)] += 1

    def leave(self, host: str) -> None:
        """Somebody has gone."""
        place = whose(host)
        self.total -= 1
        self._by_address[place] -= 1
        if self._by_address[place] <= 0:
            del self._by_address[place]
