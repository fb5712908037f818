"""Calling a server back where it is said to listen: a wrong address in the table would be in every `config.ini`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol

from chunkfarm.links.commands import PROTOCOL_VERSION, Probe
from chunkfarm.links.peers import CONNECT_TIMEOUT, PeerLink, Peers, call_on, reason_of
from chunkfarm.model import Address
from chunkfarm.state import ServerState
from chunkfarm.trust.private import TrustError


class NotThere(Exception):
    """That server does not listen there; the text says what was found, as a clause about the address."""

    def __init__(self, clause: str, found: str = "") -> None:
        """`found` is the id of the other server that answers there, if one does."""
        super().__init__(clause)
        self.found = found


class _Silent(Factory):
    """Makes connections that only show that somebody listens."""

    noisy = False
    protocol = Protocol


class CallBack:
    """Calls on behalf of this server. `connect` is `wire.transport.connect`, and `reactor` its first argument."""

    def __init__(self, peers: Peers, state: ServerState, connect: Callable[..., Deferred[Any]], reactor: Any) -> None:
        self._peers = peers
        self._state = state
        self._connect = connect
        self._reactor = reactor

    def knock(self, address: Address) -> Deferred[None]:
        """Fires if anybody listens there; fails with `NotThere`."""
        return Deferred.fromCoroutine(self._knock(address))

    async def _knock(self, address: Address) -> None:
        try:
            there = await self._connect(self._reactor, address.host, address.port, _Silent(), None, CONNECT_TIMEOUT)
        except CancelledError:
            raise
        except Exception as error:
            raise _not_reached(error) from None
        there.transport.abortConnection()

    def call(self, address: Address, server: str, is_same: Callable[[PeerLink], bool] | None = None) -> Deferred[None]:
        """Fires if the server of that id answers there; fails with `NotThere`, or `TrustError` for a bad certificate.

        `is_same` looks whether the other side has proved to be that server; by default a certificate of the farm does.
        """
        return Deferred.fromCoroutine(self._call(address, server, is_same or self._is_certified(server)))

    def _is_certified(self, server: str) -> Callable[[PeerLink], bool]:
        return lambda link: self._peers.identity(link) == server

    async def _call(self, address: Address, server: str, is_same: Callable[[PeerLink], bool]) -> None:
        try:
            link = await self._peers.open(address)
        except CancelledError:
            raise
        except Exception as error:
            raise _not_reached(error) from None
        try:
            state = self._state
            own = {"server": state.server_id, "stamp": state.stamp, "farm": state.farm_id, "version": PROTOCOL_VERSION}
            box = await self._peers.limit(call_on(link, Probe, own), CONNECT_TIMEOUT, "call back")
            found = json.loads(box["answer"])["server"]
            # The id is public; the key of its certificate is what only that server has.
            proved = is_same(link)
        except CancelledError:
            raise
        except TrustError:
            raise
        except Exception as error:
            raise NotThere(f"gives no answer that could be understood: {error}") from None
        finally:
            link.close()
        if found != server or not proved:
            raise NotThere(f"leads to another server, {found}", found if isinstance(found, str) else "")


def _not_reached(error: Exception) -> NotThere:
    return NotThere(f"cannot be reached from here: {reason_of(error)}")
