"""Takeover by hand: an admin lets the farm go on with one server, because the majority of its masters is lost.

`objection` is the rule, pure: which server may, and what stands in the way of the others. `TakeoverByHand` asks
everybody who may know better, and does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.errors import Busy, PreconditionFailed
from chunkfarm.history import History
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import Address, Server
from chunkfarm.survey import Questions, Told
from chunkfarm.table.embedded import EmbeddedTable
from chunkfarm.table.leadership import ChangeRefused
from chunkfarm.table.lines import TERM_LEAP, Verdict, contains, newest

AT_ONCE = 16
"""Servers that are asked at the same time, as at a start."""
WRITE_TIMEOUT = 20.0
"""Seconds until the takeover stands in the table: two commits on this server's own disk."""

RESTORE = "if all who did are lost for good, stop the servers that are left and see `chunkfarm restore`"


@frozen(kw_only=True)
class Seen:
    """One line of the list that is shown: a server, or an address where one should be, and what was found there."""

    name: str
    address: Address
    """Of the peer port."""
    told: Told | None = None
    error: str = ""
    """Why nothing was found."""
    here: bool = False
    """Whether it is this server."""
    longest: bool = False
    """Whether no journal that was found is longer."""


@frozen(kw_only=True)
class Outlook:
    """Everybody who was asked, and why this server must not take over; an empty sentence if it may."""

    seen: tuple[Seen, ...]
    objection: str
    line: str = ""
    """The line that has begun, once it has."""


def longest(seen: Sequence[Seen]) -> tuple[int, int]:
    """The greatest position of all journals that were found."""
    found = (one.told.journal for one in seen if one.told is not None and one.told.journal is not None)
    return max(found, default=(0, 0))


def objection(seen: Sequence[Seen], lost: str = "") -> str:
    """Why this server must not take over, in a sentence; empty if it may.

    `lost` says why this server's line has ended, if it has: a takeover there would divide the farm that goes on.
    """
    here = next(one for one in seen if one.here)
    me, found = here.told, [one for one in seen if one.told is not None]
    assert me is not None
    for one in found:
        assert one.told is not None
        if one.told.commits:
            return f"the farm has a first that commits, {one.told.name} ({one.address}): nothing is lost"
    for one in found:
        assert one.told is not None
        if one.told.state == "serving" and not one.told.stopped:
            first = next((other.name for other in seen if other.told and other.told.server == one.told.first), "")
            who = f", {first}" if first else ""
            return f"{one.told.name} is served by a first{who}; if that was lost just now, ask again in a moment"
    if lost:
        return lost
    if me.journal is None:
        holders = [f"{one.name} ({one.address})" for one in found if one.told and one.told.journal is not None]
        where = f"say it to {' or '.join(holders)}" if holders else f"nobody who answers does ({RESTORE})"
        return f"{me.name} does not hold the table; {where}"
    for one in found:
        assert one.told is not None
        if not contains(me.chain, newest(one.told.chain)):
            return f"{one.told.name} ({one.address}) knows of a takeover that {me.name} does not: say it there"
    if not me.settled:
        return f"{me.name} has not learned what the farm did since the last takeover; start a server that has"
    for one in found:
        assert one.told is not None
        if one.told.journal is not None and one.told.journal > me.journal and not one.told.stopped:
            return (
                f"{one.told.name} ({one.address}) has the longer journal, up to term {one.told.journal[0]} and index "
                f"{one.told.journal[1]}: say it there"
            )
    return ""


@frozen
class TakeoverByHand:
    """Asks, shows, and takes over."""

    _log = Logger()

    history: History
    table: EmbeddedTable
    questions: Questions
    own: Callable[[], Told]
    """What this server would say of itself."""
    servers: Callable[[], tuple[Server, ...]]
    listed: Callable[[], Deferred[list[Seen]]]
    """Names and addresses in `config.ini`."""
    own_address: Callable[[], Address]
    farm_name: Callable[[], str]
    clock: IReactorTime
    _turn: DeferredSemaphore = field(factory=lambda: DeferredSemaphore(1), init=False)

    def look(self) -> Deferred[Outlook]:
        """Ask everybody; changes nothing."""
        return Deferred.fromCoroutine(self._look())

    async def _look(self) -> Outlook:
        me = self.own()
        places = {row.peer_address: row.name for row in self.servers() if row.id != me.server}
        for listed in await self.listed():
            places.setdefault(listed.address, listed.name)
        places.pop(self.own_address(), None)
        turns = DeferredSemaphore(AT_ONCE)
        asked = [turns.run(self._ask, name, address) for address, name in places.items()]
        found: list[Seen] = await gatherResults(asked, consumeErrors=True)
        # A server that stands in the list with two addresses, or under this one's, is one server.
        ids = {me.server}
        others = []
        for one in sorted(found, key=lambda one: one.told is None):
            if one.told is None or one.told.server not in ids:
                others.append(one)
            if one.told is not None:
                ids.add(one.told.server)
        # While they were asked, this server may have heard of a first.
        here = Seen(name=me.name, address=self.own_address(), told=self.own(), here=True)
        seen = (here, *others)
        most = longest(seen)
        shown = tuple(
            _marked(one, one.told is not None and one.told.journal is not None and one.told.journal == most)
            for one in seen
        )
        stopped = self.history.stopped
        lost = stopped.reason if stopped is not None and stopped.verdict == Verdict.LOST.value else ""
        return Outlook(seen=shown, objection=objection(seen, lost))

    def _ask(self, name: str, address: Address) -> Deferred[Seen]:
        return Deferred.fromCoroutine(self._ask_one(name, address))

    async def _ask_one(self, name: str, address: Address) -> Seen:
        try:
            told = await self.questions.ask_at(address)
        except CancelledError:
            raise
        except LinkFailed as error:
            return Seen(name=name, address=address, error=str(error))
        return Seen(name=told.name, address=address, told=told)

    def run(self, farm_name: str) -> Deferred[Outlook]:
        """Go on with this server alone; fires when the table says so.

        Fails with `PreconditionFailed` if the name is wrong or something stands in the way, which changes nothing.
        """
        return self._turn.run(lambda: Deferred.fromCoroutine(self._run(farm_name)))

    async def _run(self, farm_name: str) -> Outlook:
        if farm_name != self.farm_name():
            raise PreconditionFailed(f"this farm has another name than {farm_name!r}; nothing was changed")
        outlook = await self._look()
        if outlook.objection:
            raise PreconditionFailed(outlook.objection)
        stopped = self.history.stopped
        terms = [one.told.journal[0] for one in outlook.seen if one.told is not None and one.told.journal is not None]
        try:
            await _unbroken(self.history.begin(self.table.journal_position))
            # The journal may have grown while that was written down; from this turn on it does not.
            kept = self.history.begin(self.table.journal_position)
            self.table.take_over_by_force(max(self.table.term, *terms) + TERM_LEAP)
        except ChangeRefused as error:
            await _unbroken(self.history.abandon(stopped))
            raise PreconditionFailed(str(error)) from None
        except CancelledError:
            # Whoever asked is gone. Until it is taken back this server listens to nobody.
            self.history.abandon(stopped).addErrback(lambda _: None)
            raise
        self._log.warn("An admin lets this server go on alone; the lost masters do not count any more.")
        await _unbroken(kept)
        try:
            await self.history.when_written().addTimeout(WRITE_TIMEOUT, self.clock)
        except TimeoutError:
            raise Busy("the takeover has begun, but the table does not say so yet; look at STATUS") from None
        return Outlook(seen=outlook.seen, objection="", line=newest(self.history.chain))


def _unbroken(going: Deferred[None]) -> Deferred[None]:
    """Fires as the other one does, which goes on when nobody waits for this one any more."""
    waiting: Deferred[None] = Deferred()

    def ended(result: Failure | None) -> None:
        if not waiting.called:
            waiting.callback(result)

    going.addBoth(ended)
    return waiting


def _marked(one: Seen, longest: bool) -> Seen:
    return Seen(name=one.name, address=one.address, told=one.told, error=one.error, here=one.here, longest=longest)
