"""What the embedded table asks of the connections to other servers."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import Interface

from chunkfarm.table.interface import IWatch


class IConsensusLinks(Interface):
    """Ways to other servers, which are named by server id. Every call ends by itself: no answer is a failure."""

    def send(to: str, payload: bytes) -> None:
        """Send one message of the core, best effort and in order; what is lost is repeated by the core."""

    def call(to: str, payload: bytes) -> Deferred[None]:
        """Send one page of a snapshot, on a connection of its own; fires when the receiver has written it."""

    def transact(to: str, request: bytes) -> Deferred[bytes]:
        """Send a transaction on to a leader. May fail with `commands.NotFirst`, `NotNow`, `BadRequest`."""

    def read(to: str, request: bytes, stale: bool = False) -> Deferred[bytes]:
        """Send a linearizable read on to a leader, or a `stale` one to a server that holds rows; failures as above."""

    def holders() -> tuple[str, ...]:
        """The other servers that hold rows, as far as this one knows from elsewhere."""

    def watch(prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        """Watch over the client port of a server that holds rows."""

    def leader_hint() -> str:
        """The server that leads as far as this one knows from elsewhere; empty if it does not."""
