"""Forgetting a server (FORGET): its row goes for good, it may never be one of the farm again, the join key is new.

If it could open the farm's secrets the CA is changed too, in the steps of `rotation`.

The first does it, whoever was asked. By itself the first removes rows of servers that have been down for
`forget_after`, if nothing can be lost with them; those are not barred, and come back with their certificate if they
come back at all.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from chunkfarm.errors import Busy, FarmError, NotFound, PreconditionFailed
from chunkfarm.issuer import Issuer
from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed, Peers
from chunkfarm.losses import Losses, LossSurvey
from chunkfarm.model import FarmOptions, Server
from chunkfarm.rotating import wanted
from chunkfarm.table.interface import Operation, TableError
from chunkfarm.table.registry import Registry
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.proof import make_join_key

LOOK_SECONDS = 10.0
"""How long an answer waits for the way through all files; whoever asks again is told more."""
FORGET_TIMEOUT = 15.0
"""Seconds for the first to commit it."""
ROUND_SECONDS = 5.0
"""Between two looks of the first at whose time is over."""
AGAIN_SECONDS_MIN = 600.0
"""After a way through all files that said that something would be lost, or that could not be finished."""
AGAIN_FACTOR = 20
"""Or so many times as long as it took: with millions of files it is a load on all disks."""


@frozen(kw_only=True)
class ForgetOutlook:
    """A server, what would be lost with it, and why it cannot be forgotten; an empty sentence if it can."""

    server: Server
    losses: Losses
    objection: str


def objection(server: Server) -> str:
    """Why a server must not be forgotten now, in a sentence; empty if it may."""
    if server.state == "down":
        return ""
    if server.state == "leaving":
        return f"{server.name} is leaving: ask again in a few seconds"
    drained = "" if server.is_emptied else f", or say DRAIN {server.name} and stop it once it is drained"
    return f"{server.name} is {server.state}, and only a server that is down can be forgotten: stop it first{drained}"


def knows_secrets(server: Server) -> bool:
    """Whether what lies on a server's disk opens the farm's secrets, the key of its CA among them."""
    return server.master or server.secrets


def is_due(server: Server, options: FarmOptions, now: int) -> bool:
    """Whether the farm may forget a server by itself; `now` is in ms.

    It was given up, which the first found out on a monotonic clock. For the days after that the time of day will do:
    whoever leads changes meanwhile, and a row that went too early harms nobody, because nothing was lost with it and
    its server is taken in again.
    """
    return server.state == "down" and server.given_up and now - server.since >= options.forget_after * 1000


class Forgetting:
    """Looks, and forgets."""

    _log = Logger()

    def __init__(
        self,
        *,
        server_id: str,
        registry: Registry,
        issuer: Issuer,
        survey: LossSurvey,
        peers: Peers,
        servers: Callable[[], tuple[Server, ...]],
        options: Callable[[], FarmOptions],
        first: Callable[[], str],
        leads: Callable[[], bool],
        clock: IReactorTime,
    ) -> None:
        self._server_id = server_id
        self._registry = registry
        self._issuer = issuer
        self._survey = survey
        self._peers = peers
        self._servers = servers
        self._options = options
        self._first = first
        self._leads = leads
        self._clock = clock
        self._not_before: dict[str, float] = {}
        self._busy: Deferred[None] | None = None
        self._loop: LoopingCall | None = None

    # For people.

    def look(self, target: str) -> Deferred[ForgetOutlook]:
        """What would be lost; changes nothing. `target` is an id or name; fails with `NotFound`."""
        return Deferred.fromCoroutine(self._look(target))

    async def _look(self, target: str) -> ForgetOutlook:
        server = self._find(target)
        losses = await self._survey.ask(server.id, LOOK_SECONDS)
        return ForgetOutlook(server=server, losses=losses, objection=objection(server))

    def run(self, target: str, farm_name: str) -> Deferred[Server]:
        """Forget a server for good; fires with the row that it had.

        Fails with `PreconditionFailed` if the farm has another name or the server is not down, and changes nothing.
        """
        return Deferred.fromCoroutine(self._run(target, farm_name))

    async def _run(self, target: str, farm_name: str) -> Server:
        if farm_name != self._options().name:
            raise PreconditionFailed(f"this farm has another name than {farm_name!r}; nothing was changed")
        server = self._find(target)
        first = self._first()
        if first == self._server_id:
            return await self.forget(server.id)
        try:
            await self._peers.call(first, commands.Forget, FORGET_TIMEOUT, server=server.id)
        except commands.Conflict as error:
            raise PreconditionFailed(str(error)) from None
        except (commands.NotFirst, commands.NotNow, commands.BadRequest, LinkFailed) as error:
            raise Busy(f"the first could not do it: {error}") from None
        return server

    def _find(self, target: str) -> Server:
        server = next((one for one in self._servers() if target in (one.id, one.name)), None)
        if server is None:
            raise NotFound(f"there is no server {target!r}")
        return server

    def forget(self, server_id: str) -> Deferred[Server]:
        """On the first: remove the row, bar the id, make the join key anew, and have the CA changed too if that server
        could open its key; in one transaction.

        Fails with `NotFound`, `PreconditionFailed`, or `Busy` if the join key cannot be made here.
        """
        return Deferred.fromCoroutine(self._forget(server_id))

    async def _forget(self, server_id: str) -> Server:
        try:
            join_key = self._issuer.join_key_rows(make_join_key())
        except TrustError as error:
            raise Busy(str(error)) from None

        def also(row: Server) -> tuple[Operation, ...]:
            return (*join_key, wanted(f"{row.name} was forgotten")) if knows_secrets(row) else join_key

        row = await self._registry.forget(server_id, objection, bar=True, also=also)
        self._log.warn("{name} ({id}) was forgotten: it is barred, and the join key is new.", name=row.name, id=row.id)
        return row

    # By itself.

    def start(self) -> None:
        """Begin the rounds, which do something on the server that leads."""
        self._loop = LoopingCall(self._round)
        self._loop.clock = self._clock
        self._loop.start(ROUND_SECONDS, now=False)

    def stop(self) -> Deferred[None]:
        """End them; fires when nothing is under way any more."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        busy, self._busy = self._busy, None
        if busy is not None:
            busy.cancel()
        return self._survey.stop() if busy is None else busy.addCallback(lambda _: self._survey.stop())

    def _round(self) -> None:
        if self._busy is not None or not self._leads():
            return
        now = self._clock.seconds()
        for server in self._servers():
            if is_due(server, self._options(), self._registry.now()) and self._not_before.get(server.id, now) <= now:
                busy = Deferred.fromCoroutine(self._consider(server))
                if not busy.called:
                    self._busy = busy
                busy.addErrback(self._failed).addCallback(self._rest)
                return

    def _rest(self, _: object) -> None:
        self._busy = None

    def _failed(self, failure: object) -> None:
        check = getattr(failure, "check", None)
        if check is not None and not check(CancelledError, TableError, FarmError):
            self._log.failure("while looking whom the farm may forget", failure)  # type: ignore[arg-type]

    async def _consider(self, server: Server) -> None:
        began = self._clock.seconds()
        self._not_before[server.id] = began + AGAIN_SECONDS_MIN
        losses = await self._survey.ask(server.id)
        now = self._clock.seconds()
        if losses.done and not losses.lost_chunks:
            await self._registry.forget(server.id, objection, bar=False)
            self._log.info(
                "{name} was down for too long, and has nothing that others lack: its row goes.", name=server.name
            )
            return
        self._not_before[server.id] = now + max(AGAIN_SECONDS_MIN, AGAIN_FACTOR * (now - began))
        self._log.info(
            "{name} has been down for long, but {chunks} chunks may be on its disk alone: its row stays.",
            name=server.name,
            chunks=losses.lost_chunks,
        )
