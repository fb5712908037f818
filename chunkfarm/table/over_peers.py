"""What the embedded table sends to other servers, over their peer ports and (for watches) client ports."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from zope.interface import implementer

from chunkfarm.links import commands
from chunkfarm.links.peers import Peers
from chunkfarm.table.embedded import IConsensusLinks
from chunkfarm.table.interface import IWatch

PAGE_TIMEOUT = 30.0
"""Seconds for one page of a snapshot: the receiver writes it to disk before it answers."""
FORWARD_TIMEOUT = 10.0
"""Seconds until a forwarded call is tried anew, perhaps with another leader."""

OpenWatch = Callable[[bytes, int], Deferred[IWatch]]


@implementer(IConsensusLinks)
class TableOverPeers:
    """The links of an embedded table. Pages of snapshots have connections of their own, so that they delay nobody."""

    def __init__(
        self,
        peers: Peers,
        streams: Peers,
        open_watch: OpenWatch,
        leader_hint: Callable[[], str],
        holders: Callable[[], tuple[str, ...]],
    ) -> None:
        self._peers = peers
        self._streams = streams
        self._open_watch = open_watch
        self._leader_hint = leader_hint
        self._holders = holders

    def send(self, to: str, payload: bytes) -> None:
        self._peers.send(to, payload)

    def call(self, to: str, payload: bytes) -> Deferred[None]:
        return self._streams.call(to, commands.Consensus, PAGE_TIMEOUT, payload=payload).addCallback(lambda _: None)

    def transact(self, to: str, request: bytes) -> Deferred[bytes]:
        answer = self._peers.call(to, commands.Transact, FORWARD_TIMEOUT, request=request)
        return answer.addCallback(lambda box: bytes(box["answer"]))

    def read(self, to: str, request: bytes, stale: bool = False) -> Deferred[bytes]:
        how = {"stale": True} if stale else {}
        answer = self._peers.call(to, commands.Read, FORWARD_TIMEOUT, request=request, **how)
        return answer.addCallback(lambda box: bytes(box["page"]))

    def holders(self) -> tuple[str, ...]:
        return self._holders()

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        return self._open_watch(prefix, from_revision)

    def leader_hint(self) -> str:
        return self._leader_hint()
