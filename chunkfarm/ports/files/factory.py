"""All connections of the file port: how many there may be, what time it is, and the end."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from chunkfarm.limits import Limits
from chunkfarm.ports.backend import Backend
from chunkfarm.ports.files.connection import FileProtocol
from chunkfarm.ports.files.routes import Routes
from chunkfarm.ports.files.uploads import Uploads
from chunkfarm.ports.places import REFUSALS_MAX, Met, Places
from chunkfarm.wire.http1 import fields
from chunkfarm.wire.http1_rules import format_date

SWEEP_SECONDS = 1.0
"""How often the time of all connections is looked at: one timer for all is cheaper than one a request."""

ENDED_IN_TURN = 8
"""Connections that are ended in one turn of the reactor, at a sixth of a millisecond each: hundreds may be idle since
the same second, and others wait for answers."""


class FileFactory(Factory):
    """Makes the connections of the file port. `now_ms` is the wall clock, in milliseconds since 1970.

    `limits` may be replaced at any time; `met` knows where servers of this farm are; `queued` is told once a second how
    many bytes of answers wait to be sent.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        backend: Backend,
        clock: IReactorTime,
        now_ms: Callable[[], int],
        limits: Limits | None = None,
        met: Met | None = None,
        queued: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.clock = clock
        self.limits = limits or Limits()
        self.metrics = backend.metrics
        self.peer_of = backend.peer_of
        met = met or Met()
        self._uploads = Uploads(lambda: self.limits.files_bodies, lambda: self.limited("bodies"))
        self.routes = Routes(backend, clock, now_ms, met.note, self._uploads)
        self.connections: dict[FileProtocol, None] = {}
        """The oldest first."""
        self.finishing = False
        self.common = b""
        """The header lines of every answer, made anew once a second."""
        self._now_ms = now_ms
        self._tell_queued = queued
        self._sweeper: IDelayedCall | None = None
        self._looking: IDelayedCall | None = None
        self._crowded = False
        self._places = Places(met)
        self._turned_away: set[FileProtocol] = set()
        self._hosts: dict[FileProtocol, str] = {}
        self._finished: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> FileProtocol | None:
        """A connection; one that answers 503, if there are too many; None, which closes it, if those are too many."""
        if self.finishing:
            return None
        host, limits = str(getattr(addr, "host", "")), self.limits
        refused = self._places.refusal(
            host, limits.files_connections, limits.files_connections_address, limits.files_reserved
        )
        on_trust = bool(refused) and self._places.on_trust(host, limits.files_connections)
        away = bool(refused) and not on_trust
        if away:
            self._crowd(refused)
            if len(self._turned_away) >= REFUSALS_MAX:
                return None
        protocol = FileProtocol(self, turned_away=away, on_trust=on_trust)
        protocol.factory = self
        self._hosts[protocol] = host
        if away:
            self._turned_away.add(protocol)
        else:
            self._places.take(host)
        if self._sweeper is None:
            self._sweep()
        return protocol

    def limited(self, limit: str) -> None:
        """A limit of this port (its name, without `files_`) has kept somebody out, or ended a connection."""
        self.metrics.limited("files", limit)

    def _crowd(self, limit: str) -> None:
        self.limited(limit)
        if not self._crowded:
            self._crowded = True
            self._log.warn(
                "the file port turns connections away ({limit}): it has {count}", limit=limit, count=self._places.total
            )

    def forget(self, protocol: FileProtocol) -> None:
        """The connection is lost."""
        self.connections.pop(protocol, None)
        host = self._hosts.pop(protocol, None)
        if protocol in self._turned_away:
            self._turned_away.discard(protocol)
        elif host is not None:
            self._crowded = False
            self._places.leave(host)
        if not self._hosts:
            self._tell_queued(0)
            sweeper, self._sweeper = self._sweeper, None
            looking, self._looking = self._looking, None
            for call in (sweeper, looking):
                if call is not None and call.active():
                    call.cancel()
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
        self._uploads.look()
        self._tell_queued(sum(getattr(protocol.transport, "queued", 0) for protocol in self.connections))
        if self._looking is None:
            self._look(list(self.connections), self.clock.seconds())

    def _look(self, connections: list[FileProtocol], now: float) -> None:
        """End those of these that take too long: a few now, and the others in the next turns of the reactor."""
        self._looking = None
        ended = 0
        for number, protocol in enumerate(connections):
            if ended == ENDED_IN_TURN:
                self._looking = self.clock.callLater(0, self._look, connections[number:], now)
                return
            # Some may have ended meanwhile.
            ended += protocol in self.connections and protocol.look_at_time(now)
