"""One server as a service of twistd: its three ports under one MultiService, its start and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any, cast

from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm import __version__, membership
from chunkfarm.backend import ServerBackend
from chunkfarm.config import Config, ListenDescription
from chunkfarm.errors import FarmError
from chunkfarm.limits import Limits
from chunkfarm.logs import Logs
from chunkfarm.machine import Machine
from chunkfarm.model import Server
from chunkfarm.parts import Parts
from chunkfarm.ports.answers import PeerAnswers
from chunkfarm.ports.client.factory import ClientFactory
from chunkfarm.ports.files import FileFactory
from chunkfarm.ports.peer import PeerPortFactory
from chunkfarm.ports.places import Met
from chunkfarm.reloading import Reload
from chunkfarm.startup import CannotStart, Startup, Surroundings, Wish
from chunkfarm.systemd import Systemd
from chunkfarm.table.interface import TableClosed
from chunkfarm.wire.inherited import own_inherited_ports, with_ports
from chunkfarm.wire.transport import StreamPort

EXIT_FAILED = 1
DISK_THREADS = 8
"""Threads for files and hashes: enough to keep a disk and two cores busy, few enough not to thrash either."""
DISK_NICE = 5
"""By how much these stand back behind the reactor's thread, which needs a processor for a moment only. It was seen to
wait 20 to 60 ms for one, while several others hashed and wrote what was copied."""
LEAVE_SECONDS = 2.0
"""How long a leaving server tries to tell the first: what that is missing is noticed by silence a few seconds later
anyway."""
HAND_OVER_SECONDS = 5.0
"""How long it tries to hand leadership on. Each try is given up after an election timeout, which a write to a slow disk
may outlast; and of two servers the other one could go on only after `master_grace`."""
HAND_OVER_INTERVAL = 0.1
"""Seconds between two looks at whether somebody else leads, and goes on alone."""
GIVE_UP_VOTE_SECONDS = 4.0
"""How long a leaving server waits until the other of two goes on without its vote: that takes two rounds of the
other one's duties, and two commits."""
LAG_INTERVAL = 1.0
"""Seconds between two looks at how late the reactor is."""
SPACE_INTERVAL = 5.0
"""Seconds between looks at the disk's free space."""


class PortService(Service):
    """One listening port, opened by the startup when its turn comes."""

    def __init__(self, name: str, reactor: Any, machine: Machine) -> None:
        self.setName(name)
        self._reactor = reactor
        self._machine = machine
        self._port: IListeningPort | None = None
        self._handshake_time = Limits().handshake_time

    def open(self, description: ListenDescription, factory: IProtocolFactory, tls: Any) -> None:
        """Listen; raises `CannotStart` if the port is taken."""
        try:
            self._port = self._machine.listen(self._reactor, description, factory, tls)
            self.wait_for_handshakes(self._handshake_time)
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
            raise CannotStart(f"the {self.name} port {description} cannot be opened: {reason}") from None

    def wait_for_handshakes(self, seconds: float) -> None:
        """Give connections that long for TLS from now on."""
        self._handshake_time = seconds
        if isinstance(self._port, StreamPort):
            self._port.handshake_timeout = seconds

    def stopService(self) -> Deferred[None]:
        """Accept no more connections; the open ones stay."""
        super().stopService()
        port, self._port = self._port, None
        if port is None:
            return maybeDeferred(lambda: None)
        return maybeDeferred(port.stopListening).addCallback(lambda _: None)


class Farm(MultiService):
    """The service that `twistd chunkfarm` runs."""

    _log = Logger()

    def __init__(self, wish: Wish, reactor: Any, systemd: Systemd, machine: Machine, logs: Logs) -> None:
        super().__init__()
        self._wish = wish
        self._reactor = reactor
        self._systemd = systemd
        self._machine = machine
        self._logs = logs
        self._pool = machine.threads(reactor, DISK_THREADS, "chunkfarm-disk", DISK_NICE)
        self._parts: Parts | None = None
        self._startup: Deferred[Any] | None = None
        self._loops: list[LoopingCall] = []
        self._lag_due = 0.0
        self._stopping = False
        self._keeps_room = False
        self._why_end = "it was told to end"
        self._limits = Limits()
        self._met = Met(self._servers_known)
        self._client_factory: ClientFactory | None = None
        self._file_factory: FileFactory | None = None
        self._peer_factory: PeerPortFactory | None = None
        self._client = PortService("client", reactor, machine)
        self._peer = PortService("peer", reactor, machine)
        self._files = PortService("file", reactor, machine)
        for port in (self._client, self._peer, self._files):
            port.setServiceParent(self)

    # Opening the ports, on behalf of the startup.

    def open_peer(self, parts: Parts, answers: PeerAnswers) -> None:
        if parts.config.server.peer.port in own_inherited_ports():
            raise CannotStart(
                f"the peer port {parts.config.server.peer} was opened by systemd: leave it to the server itself, since "
                "others take a port that refuses for a sign that the process is gone"
            )
        self._peer_factory = PeerPortFactory(
            answers,
            self._reactor,
            parts.link_ended,
            parts.line,
            self._limits,
            self._met,
            lambda limit: parts.metrics.limited("peer", limit),
        )
        peers = self._peer_factory
        parts.metrics.count_connections("peer", lambda: len(peers.connections))
        parts.cutting.append(peers.cut)
        parts.judging.append(peers.judge_again)
        self._peer.open(parts.config.server.peer, self._peer_factory, parts.contexts.peer_server_factory())

    def open_client(self, parts: Parts) -> None:
        tls = parts.contexts.client_port_factory()
        self._client_factory = ClientFactory(ServerBackend(parts), self._reactor, tls, self._limits, self._met)
        clients = self._client_factory
        parts.metrics.count_connections("client", lambda: len(clients.connections))
        parts.on_keys_changed = clients.keys_changed
        parts.cutting.append(clients.cut)
        parts.judging.append(clients.judge_again)
        self._client.open(parts.config.server.client, self._client_factory, None)

    def open_files(self, parts: Parts) -> None:
        memory = parts.chunks.store.memory

        def queued(count: int) -> None:
            memory.queued = count

        self._file_factory = FileFactory(
            ServerBackend(parts), self._reactor, parts.now, self._limits, self._met, queued
        )
        files = self._file_factory
        parts.metrics.count_connections("files", lambda: len(files.connections))
        self._files.open(parts.config.server.files, self._file_factory, parts.contexts.file_port_factory())
        # By now nothing can refuse this start any more.
        parts.chronicle.begin()

    def _servers_known(self) -> tuple[Server, ...]:
        parts = self._parts
        if parts is None:
            return ()
        # Nobody connects to itself: where there is no other server, no place is kept on this address.
        return tuple(server for server in parts.servers() if server.id != parts.data.server_id)

    def _take_limits(self, limits: Limits) -> None:
        """Let these hold on all ports, as far as there are descriptors for them."""
        have = self._machine.descriptors()
        self._limits = limits.within(have)
        if self._limits != limits:
            self._log.warn(
                "This process may open {have} files, and its limits add up to {want}: it takes at most {client} "
                "connections of clients, {peer} of servers and {files} on the file port. Raise the limit (LimitNOFILE= "
                "in a unit, ulimit -Hn), or lower client_connections, peer_connections and files_connections.",
                have=have,
                want=limits.descriptors,
                client=self._limits.client_connections,
                peer=self._limits.peer_connections,
                files=self._limits.files_connections,
            )
        for factory in (self._client_factory, self._peer_factory, self._file_factory):
            if factory is not None:
                factory.limits = self._limits
        for port in (self._client, self._peer, self._files):
            port.wait_for_handshakes(self._limits.handshake_time)

    # Start and end.

    def startService(self) -> None:
        super().startService()
        surroundings = Surroundings(
            reactor=self._reactor,
            pool=self._pool,
            machine=self._machine,
            on_fatal=self._fatal,
            on_parts=self._built,
        )
        self._loop(self._systemd.watchdog_interval, self._systemd.watchdog)
        self._startup = Startup(self._wish, surroundings, self).run()
        self._startup.addCallbacks(self._serving, self._failed)

    def _loop(self, interval: float, call: Any, *arguments: Any) -> None:
        def turn() -> Any:
            try:
                return call(*arguments)
            except Exception:
                # A loop ends with the first exception.
                self._log.failure("while looking after this server")

        if interval > 0:
            loop = LoopingCall(turn)
            loop.clock = self._reactor
            loop.start(interval, now=False)
            self._loops.append(loop)

    def _built(self, parts: Parts) -> None:
        self._parts = parts
        parts.witness.started(__version__, parts.chronicle.last)
        self._take_limits(parts.config.limits)
        parts.state.subscribe(lambda: self._tell_systemd(parts))
        self._tell_systemd(parts)

    def _tell_systemd(self, parts: Parts) -> None:
        state = parts.state
        waits = "; ".join(f"{wait.address}: {wait.error}" for wait in state.waits)
        self._systemd.status(f"{state.phase} {waits}".strip())
        if state.phase in ("starting", "founding", "waiting"):
            self._systemd.extend_timeout()

    def _serving(self, parts: Parts) -> None:
        self._startup = None
        self._loop(SPACE_INTERVAL, self._look_at_disk, parts)
        self._lag_due = self._reactor.seconds() + LAG_INTERVAL
        self._loop(LAG_INTERVAL, self._measure_lag, parts)
        self._systemd.ready()

    def reload(self) -> Deferred[None]:
        """Take up what has changed in `config.ini`, as far as it can change while the server runs; fires when done."""
        parts = self._parts
        if parts is None or self._stopping:
            return maybeDeferred(lambda: None)

        def read() -> Config:
            return with_ports(parts.config_file.read(self._wish.overrides, self._wish.host_name))

        self._systemd.reloading()
        reloaded: Deferred[Any] = Reload(parts, read, self._logs, self._take_limits).run()

        def refused(failure: Failure) -> None:
            if failure.check(FarmError):
                self._log.error("Nothing was changed: {sentence}", sentence=str(failure.value))
            elif not failure.check(CancelledError):
                self._log.failure("while reading the config again", failure)

        return reloaded.addErrback(refused).addCallback(lambda _: self._tell_ready())

    def _tell_ready(self) -> None:
        if self._startup is None:
            self._systemd.ready()

    def _measure_lag(self, parts: Parts) -> None:
        """Note how late this is."""
        now = self._reactor.seconds()
        parts.metrics.late(now - self._lag_due)
        self._lag_due = now + LAG_INTERVAL

    def _look_at_disk(self, parts: Parts) -> Deferred[None]:
        return Deferred.fromCoroutine(self._measure(parts)).addErrback(
            lambda failure: self._log.failure("while looking at the free space", failure)
        )

    async def _measure(self, parts: Parts) -> None:
        await parts.measure_space()
        if not self._keeps_room and not parts.space.full:
            self._keeps_room = await parts.run_in_thread(self._machine.keep_room, os.fspath(parts.data.path))

    def _failed(self, failure: Failure) -> None:
        self._startup = None
        if self._stopping or failure.check(CancelledError):
            return
        if failure.check(FarmError):
            self._why_end = str(failure.value)
            self._log.critical("chunkfarm: {sentence}", sentence=str(failure.value))
        elif not failure.check(TableClosed):
            # Else the disk under the table has failed, and what is said of that follows.
            self._log.failure("while starting", failure)
        self._exit()

    def _fatal(self, failure: Failure) -> None:
        """The disk fails under the table, or the chunks: nothing may be promised any more, and the process ends."""
        self._log.failure("while writing to the disk; this process ends", failure)
        self._why_end = f"its disk failed: {failure.getErrorMessage()}"
        self._exit()
        # A disk that hangs would keep an orderly end waiting for ever.
        self._reactor.callLater(LEAVE_SECONDS, self._machine.exit, EXIT_FAILED)

    def _exit(self) -> None:
        """Stop with status 1; `reactor.stop` alone would exit with 0."""
        self._reactor.addSystemEventTrigger("after", "shutdown", self._machine.exit, EXIT_FAILED)

        def stop() -> None:
            with contextlib.suppress(ReactorNotRunning):
                self._reactor.stop()

        self._reactor.callWhenRunning(stop)

    def stopService(self) -> Deferred[None]:
        """Leave in order; a second SIGTERM ends the process at once, and loses nothing that was acknowledged."""
        self._stopping = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._systemd.stopping()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for loop in self._loops:
            if loop.running:
                loop.stop()
        if self._startup is not None:
            self._startup.cancel()
        try:
            if self._parts is not None:
                await self._leave(self._parts)
        except Exception:
            self._log.failure("while leaving")
        await maybeDeferred(MultiService.stopService, self)
        if self._peer_factory is not None:
            self._peer_factory.close_all()
        self._pool.stop()
        if self._parts is not None:
            self._parts.chunks.store.close()

    async def _leave(self, parts: Parts) -> None:
        served = parts.state.phase in ("serving", "readonly")
        parts.state.change("leaving")
        parts.leaving = True
        if served:
            await self._within(LEAVE_SECONDS, parts.reporter.report_now())
            try:
                await self._hand_over(parts)
            except Exception:
                # Others notice by silence what is missing; what follows must be done all the same.
                self._log.failure("while handing over")
        await self._client.stopService()
        await self._files.stopService()
        await self._drain(parts)
        for stop in (
            *parts.chunks.loops_to_stop(),
            parts.forgetting.stop,
            parts.join_file.stop,
            parts.rotating.stop,
            parts.beliefs.stop,
            parts.renewal.stop,
            parts.reporter.stop,
            parts.takeover.stop,
            parts.history.stop,
            parts.duties.stop,
            parts.ledger.stop,
            parts.roster.stop,
            parts.relay.close,
            parts.chunks.transfer.stop,
            parts.chunks.store.stop,
        ):
            await self._within(LEAVE_SECONDS, maybeDeferred(stop))
        # The table stops before the peer port closes: who sees that port refuse knows that nothing is committed here.
        await parts.embedded.stop()
        await self._peer.stopService()
        parts.chunks.links.close()
        parts.peers.close()
        parts.streams.close()
        parts.witness.ended(self._why_end)
        await self._within(LEAVE_SECONDS, parts.chronicle.stop())
        parts.data.close()

    async def _hand_over(self, parts: Parts) -> None:
        """Give leadership to the next in line that is caught up, and of two votes this one's too."""
        table = parts.embedded
        own_id = parts.data.server_id
        if table.is_leader and self._heirs(parts):
            for _ in range(int(HAND_OVER_SECONDS / HAND_OVER_INTERVAL)):
                if not table.is_leader and table.leader:
                    # It did not hear yet that this server leaves.
                    await self._within(LEAVE_SECONDS, parts.reporter.report_now())
                    break
                if heirs := self._heirs(parts):
                    # Of a try that is under way this changes nothing.
                    table.transfer(heirs[0])
                await deferLater(self._reactor, HAND_OVER_INTERVAL, lambda: None)
        voters = table.configuration.voters
        if len(voters) != 2 or own_id not in voters or table.is_leader:
            return
        # Of two voters neither can commit without the other, so the other one is left alone with its vote.
        for _ in range(int(GIVE_UP_VOTE_SECONDS / HAND_OVER_INTERVAL)):
            await self._within(LEAVE_SECONDS, parts.reporter.report_now())
            if parts.reporter.voters and own_id not in parts.reporter.voters:
                return
            await deferLater(self._reactor, HAND_OVER_INTERVAL, lambda: None)

    def _heirs(self, parts: Parts) -> list[str]:
        """Who may be given leadership, the next in line first; nobody unless this server leads."""
        table, own_id = parts.embedded, parts.data.server_id
        return [
            server.id
            for server in membership.masters(server for server in parts.servers() if server.id != own_id)
            if server.id in table.configuration.voters and server.id in table.caught_up()
        ]

    async def _drain(self, parts: Parts) -> None:
        """Let running requests end, for at most `drain_timeout` on all ports together; then cut them off."""
        factories = [factory for factory in (self._client_factory, self._file_factory) if factory is not None]
        finished = gatherResults([factory.finish() for factory in factories], consumeErrors=True)
        await self._within(parts.config.server.drain_timeout, finished)
        for factory in factories:
            factory.abort()

    async def _within(self, seconds: float, deferred: Deferred[Any]) -> None:
        """Wait for it, but not longer than that, and whatever comes of it."""
        try:
            await deferred.addTimeout(seconds, self._reactor)
        except Exception as error:
            self._log.debug("while leaving: {error}", error=error)


def make_farm(wish: Wish, logs: Logs, *, has_terminal: bool) -> Farm:
    """The farm's service on the process's reactor, with every timer on the monotonic clock.

    SIGHUP has it reload, unless it sits at a terminal (`has_terminal`), which says so that it is gone.
    """
    from twisted.internet import reactor

    # The reactor's clock is the wall clock by default: a step of it would fire or freeze every timer.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    farm = Farm(wish, reactor, Systemd(os.environ), Machine(), logs)
    if not has_terminal:
        signal.signal(signal.SIGHUP, lambda *_: cast(Any, reactor).callFromThread(farm.reload))
    return farm
