"""Calling a server back where it is said to listen: a wrong address in the table would be in every `config.ini`."""

from __future__ import annotations

import json
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred

from chunkfarm.links.commands import PROTOCOL_VERSION, Probe
from chunkfarm.links.peers import CONNECT_TIMEOUT, PeerLink, Peers, reason_of
from chunkfarm.model import Address
from chunkfarm.state import ServerState
from chunkfarm.trust.private import TrustError


class NotThere(Exception):
    """That server does not listen there; the text says what was found, as a clause about the address."""

    def __init__(self, clause: str, found: str = "") -> None:
        """`found` is the id of the other server that answers there, if one does."""
        super().__init__(clause)
        self.found = found


class CallBack:
    """Calls on behalf of this server."""

    def __init__(self, peers: Peers, state: ServerState) -> None:
        self._peers = peers
        self._state = state

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
            raise NotThere(f"cannot be reached from here: {reason_of(error)}") from None
        try:
            call = link.callRemote(
                Probe,
                server=self._state.server_id,
                stamp=self._state.stamp,
                farm=self._state.farm_id,
                version=PROTOCOL_VERSION,
            )
            box = await self._peers.limit(call, CONNECT_TIMEOUT, "call back")
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
