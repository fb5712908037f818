"""What a connection keeps of a command that is read and not yet answered."""

from __future__ import annotations

import ipaddress

from attrs import define
from twisted.internet.defer import Deferred

from chunkfarm.ports.client.session import Answer, Command, Request


@define(eq=False)
class Pending:
    """A command from its line to its answer."""

    command: Command | None
    request: Request
    answer: Answer | None = None
    whole: bool = True
    """Whether its payload is there."""
    running: Deferred[None] | None = None
    reserved: int = 0
    """Bytes of payload that it holds in memory."""

    @property
    def overlaps(self) -> bool:
        return self.answer is not None or (self.command is not None and self.command.overlaps)

    @property
    def is_told_little(self) -> bool:
        """Whether it is begun while answers are not taken: its own is a word, and it keeps bytes or others waiting."""
        return self.command is not None and (self.command.payload_at is not None or self.command.changes_session)


@define(eq=False)
class Payload:
    """A counted run on its way in. `target` is None if the bytes are to be dropped."""

    pending: Pending
    length: int
    keep: bool
    began: float
    target: bytearray | None = None
    received: int = 0
    admitted: bool = False


def is_loopback(host: str) -> bool:
    """Whether a peer's address is this machine's own; what is no address is not."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
