"""A process that takes in bytes over TCP and over TLS, through the package's own transport, and says when it has them.

Who connects sends eight bytes, a length, and so many bytes; the answer is one byte. Then the next. The two ports are
told on the standard output; the process ends with its standard input, and so with whoever started it.
"""

from __future__ import annotations

import os
import struct
import time
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure

from chunkfarm.config import ListenDescription
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity
from chunkfarm.wire.transport import listen

LENGTH = struct.Struct(">Q")
TAKEN = b"."
HOST = "127.0.0.1"


class Sink(Protocol):
    """Counts what comes."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    def dataReceived(self, data: bytes) -> None:
        while data:
            if not self._left:
                missing = LENGTH.size - len(self._head)
                self._head, data = self._head + data[:missing], data[missing:]
                if len(self._head) < LENGTH.size:
                    return
                (self._left,) = LENGTH.unpack(self._head)
                self._head = b""
            taken = min(self._left, len(data))
            self._left, data = self._left - taken, data[taken:]
            if not self._left:
                self.transport.write(TAKEN)  # type: ignore[union-attr]


class Sinks(Factory):
    """One for each connection."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Sink:
        return Sink()


class _Until(Protocol):
    """Ends the process with its standard input."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._reactor.running:
            self._reactor.stop()


def main() -> None:
    """Be that process."""
    from twisted.internet import reactor

    running: Any = reactor
    identity = Identity.provisional("0" * 32, time.time_ns() // 1_000_000)
    tls = Contexts(identity).client_port_factory()
    plain, secure = (listen(running, ListenDescription("tcp", 0, HOST), Sinks(), context) for context in (None, tls))
    os.write(1, f"{plain.getHost().port} {secure.getHost().port}\n".encode())  # type: ignore[attr-defined]
    StandardIO(_Until(running), reactor=running)
    running.run(installSignalHandlers=False)
