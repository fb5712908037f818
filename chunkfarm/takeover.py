"""The second of two servers watches over the first, and goes on alone when that one is gone for good.

What proves that is `table.survivor`; here are the clock, the ports that are tried, and what is written down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as Connection
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from chunkfarm.model import FarmOptions, Server
from chunkfarm.table.embedded import EmbeddedTable
from chunkfarm.table.interface import TableError
from chunkfarm.table.leadership import ChangeRefused
from chunkfarm.table.records import Message
from chunkfarm.table.survivor import Survivor

INTERVAL = 0.25
"""Seconds between two tries of ports: a `master_grace` of a second has several."""
TRY_TIMEOUT = 2.0
"""Seconds to wait for a port: a machine that is there refuses at once."""


class _Silent(Factory):
    noisy = False
    protocol = Connection


def refuses(connect: Callable[..., Deferred[Any]], reactor: Any, host: str, port: int) -> Deferred[bool]:
    """Whether the machine at that address says that nobody listens on the port; anything else is no."""

    def connected(connection: Any) -> bool:
        connection.transport.abortConnection()
        return False

    trying = connect(reactor, host, port, _Silent(), None, TRY_TIMEOUT)
    return trying.addCallbacks(connected, lambda failure: failure.check(ConnectionRefusedError) is not None)


class TakesDown(Protocol):
    """Where a takeover is written down (`history.History`)."""

    def begin(self, position: tuple[int, int]) -> Deferred[None]: ...


class Takeover:
    """Watches over the first of two servers. Does nothing where there are more, or one."""

    _log = Logger()

    def __init__(
        self,
        server_id: str,
        table: EmbeddedTable,
        servers: Callable[[], tuple[Server, ...]],
        options: Callable[[], FarmOptions],
        entitled: Callable[[], bool],
        refuses: Callable[[str, int], Deferred[bool]],
        clock: IReactorTime,
        boot_time: Callable[[], float],
        history: TakesDown,
    ) -> None:
        self._id = server_id
        self._history = history
        self._table = table
        self._servers = servers
        self._options = options
        self._entitled = entitled
        self._refuses = refuses
        self._clock = clock
        self._boot_time = boot_time
        self._survivor = Survivor()
        self._busy: Deferred[None] | None = None
        self._loop: LoopingCall | None = None

    def saw(self, message: Message, term: int, answers: int) -> None:
        """A message of the consensus has come, and has not been taken yet."""
        if self._entitled():
            self._survivor.saw(message, term, answers, self._boot_time())
        else:
            # What was answered before this process had its place, or now that it leaves, is nothing to build on.
            self._survivor.forget()

    def ended(self, server_id: str) -> None:
        """That server has ended a link, by end of file or reset."""
        self._survivor.closed(server_id)

    def start(self) -> None:
        """Begin to watch."""
        self._loop = LoopingCall(self._look)
        self._loop.clock = self._clock
        self._loop.start(INTERVAL, now=False)

    def stop(self) -> Deferred[None]:
        """End watching; fires when what is under way has ended."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        if self._busy is None:
            return succeed(None)
        busy, self._busy = self._busy, None
        busy.cancel()
        return busy

    def _look(self) -> None:
        if self._busy is not None:
            return
        busy = Deferred.fromCoroutine(self._watch_over())
        if not busy.called:
            self._busy = busy
        busy.addErrback(self._failed).addCallback(self._rest)

    def _failed(self, failure: Any) -> None:
        if not failure.check(CancelledError, TableError, ChangeRefused):
            self._log.failure("while watching over the first of two servers", failure)

    def _rest(self, _: object) -> None:
        self._busy = None

    async def _watch_over(self) -> None:
        if self._table.is_leader:
            return
        leader, options = self._survivor.leader, self._options()
        row = next((server for server in self._servers() if server.id == leader), None)
        if not self._survivor.suspects or row is None or not self._entitled():
            return
        if options.two_server_takeover != "auto":
            return
        refused = await self._refuses(row.host, row.peer) and await self._refuses(row.host, row.files)
        if self._survivor.tried(leader, refused, self._boot_time(), options.master_grace) and self._entitled():
            position = self._table.journal_position
            self._table.take_over(leader)
            self._log.warn("{name} is gone, and this server goes on alone.", name=row.name)
            # The proof holds right now, so this disk is not waited for.
            await self._history.begin(position)
