"""Whether another process of one server is alive: two that were started from copies of one data directory.

Whoever answers at an address with the certificate of that server, and says that it is another process, is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from chunkfarm.links.commands import PROTOCOL_VERSION, Probe
from chunkfarm.links.peers import Peers, call_on
from chunkfarm.model import Address

_log = Logger()

CALL_SECONDS = 2.0
"""For each step of a call: long enough for a process that lives, short enough to wait for one that does not."""


def twin_sentence(server_id: str, first: Address, second: Address) -> str:
    """What is told of two such processes."""
    return (
        f"two processes have the server id {server_id}, at {first} and at {second}: "
        "stop one of them, and give it a data directory of its own"
    )


def find_twin(peers: Peers, server_id: str, incarnation: str, addresses: Iterable[Address]) -> Deferred[Address | None]:
    """The first of the addresses where a process of this server answers that is not `incarnation`; None if none does.

    Never fails: where nobody answers who can be understood, nobody says that it is this server.
    """
    return Deferred.fromCoroutine(_find_twin(peers, server_id, incarnation, tuple(addresses)))


async def _find_twin(peers: Peers, server_id: str, incarnation: str, addresses: tuple[Address, ...]) -> Address | None:
    for address in addresses:
        try:
            told = await _incarnation_at(peers, server_id, address)
        except CancelledError:
            raise
        except Exception as error:
            _log.debug("Nobody answers at {address}: {error}", address=str(address), error=error)
            continue
        if told not in ("", incarnation):
            return address
    return None


async def _incarnation_at(peers: Peers, server_id: str, address: Address) -> str:
    """Which process of the server listens there; empty if it is another server, or does not say."""
    link = await peers.open(address, CALL_SECONDS)
    try:
        if peers.identity(link) != server_id:
            return ""
        arguments = {"server": server_id, "stamp": 0, "farm": "", "version": PROTOCOL_VERSION}
        box = await peers.limit(call_on(link, Probe, arguments), CALL_SECONDS, "Probe")
        return str(json.loads(box["answer"]).get("incarnation", ""))
    finally:
        link.close()
