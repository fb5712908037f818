"""AMP as both ends of a link between servers speak it."""

from __future__ import annotations

from typing import Any, cast

from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure


class Boxes(amp.AMP):
    """AMP that says nothing when links come and go, and does not let a peer's malformed box raise here."""

    _log = Logger()

    def makeConnection(self, transport: Any) -> None:
        # AMP's own version logs each link at its beginning and end; a farm's links come and go all day.
        amp.BinaryBoxProtocol.makeConnection(self, transport)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None

    def dataReceived(self, data: bytes) -> None:
        """Take bytes; those that are no AMP are the peer's fault and end only this link."""
        try:
            super().dataReceived(data)
        except Exception as error:
            self._log.info("A peer sent what is not AMP ({error}); its link is closed.", error=type(error).__name__)
            self.abort()

    def abort(self) -> None:
        """End the link at once; harmless when it has ended."""
        if self.transport is not None:
            cast(Any, self.transport).abortConnection()
