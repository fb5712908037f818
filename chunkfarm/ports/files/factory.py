"""All connections of the file port: how many there may be, what time it is, and the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from chunkfarm.ports.backend import Backend
from chunkfarm.ports.files.connection import FileProtocol
from chunkfarm.ports.files.routes import Routes
from chunkfarm.wire.http1 import fields
from chunkfarm.wire.http1_rules import format_date

CONNECTIONS_MAX = 4096
"""Tens of kilobytes of TLS each, so a few hundred megabytes at the worst; other files need descriptors too."""
ADDRESS_CONNECTIONS_MAX = 1024
"""From one address, which may be a gateway for many people but must not take everybody's place."""
SWEEP_SECONDS = 1.0
"""How often the time of all connections is looked at: one timer for all is cheaper than one a request."""


class FileFactory(Factory):
    """Makes the connections of the file port. `now_ms` is the wall clock, in milliseconds since 1970."""

    noisy = False
    _log = Logger()

    def __init__(self, backend: Backend, clock: IReactorTime, now_ms: Callable[[], int]) -> None:
        self.clock = clock
        self.metrics = backend.metrics
        self.routes = Routes(backend, clock, now_ms)
        self.connections: dict[FileProtocol, None] = {}
        """The oldest first."""
        self.finishing = False
        self.common = b""
        """The header lines of every answer, made anew once a second."""
        self._now_ms = now_ms
        self._sweeper: IDelayedCall | None = None
        self._crowded = False
        self._places: Counter[str] = Counter()
        self._hosts: dict[FileProtocol, str] = {}
        self._finished: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> FileProtocol | None:
        """A connection, or None, which closes it, if there are too many."""
        host = str(getattr(addr, "host", ""))
        if self.finishing or len(self._hosts) >= CONNECTIONS_MAX or self._places[host] >= ADDRESS_CONNECTIONS_MAX:
            if not self._crowded:
                self._crowded = True
                self._log.warn("the file port turns connections away: it has {count}", count=len(self._hosts))
            return None
        protocol = FileProtocol(self)
        protocol.factory = self
        self._hosts[protocol] = host
        self._places[host] += 1
        if self._sweeper is None:
            self._sweep()
        return protocol

    def forget(self, protocol: FileProtocol) -> None:
        """The connection is lost."""
        self.connections.pop(protocol, None)
        self._crowded = False
        host = self._hosts.pop(protocol, None)
        if host is not None:
            self._places[host] -= 1
            if not self._places[host]:
                del self._places[host]
        if not self._hosts:
            sweeper, self._sweeper = self._sweeper, None
            if sweeper is not None:
                sweeper.cancel()
            finished, self._finished = self._finished, []
            for waiting in finished:
                waiting.callback(None)

    def finish(self) -> Deferred[None]:
        """Take no more requests; fires when those under way are answered and all connections are gone.

        Listening is stopped by whoever started it.
        """
        self.finishing = True
        for protocol in list(self.connections):
            protocol.end_if_idle()
        if not self._hosts:
            return succeed(None)
        finished: Deferred[None] = Deferred()
        self._finished.append(finished)
        return finished

    def abort(self) -> None:
        """Cut off whatever is left."""
        self.finishing = True
        for protocol in list(self.connections):
            protocol.abort()

    def _sweep(self) -> None:
        self.common = fields(("Server", "chunkfarm"), ("Date", format_date(self._now_ms() // 1000)))
        self._sweeper = self.clock.callLater(SWEEP_SECONDS, self._sweep)
        now = self.clock.seconds()
        for protocol in list(self.connections):
            protocol.look_at_time(now)
