"""What the first does besides leading: it notices who is alive, and keeps the masters in order.

Every server reports to the first, mostly once a second (`pace.py`). Reports live in memory; the table hears of
them only when a server goes down or comes back, and of its space on a change of a percent, at most once a
minute (so that a thousand servers at rest cost no commits). All times are on the monotonic clock, and a tick
that comes late judges nobody until a full round of reports could have arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from chunkfarm.membership import LIVE
from chunkfarm.model import Drain, FarmOptions, Server
from chunkfarm.pace import down_after
from chunkfarm.risk import Risk, of_down, summed
from chunkfarm.table.consensus import NotLeader
from chunkfarm.table.epochs import Epochs
from chunkfarm.table.interface import TableError
from chunkfarm.table.leadership import ChangeRefused
from chunkfarm.table.records import Configuration
from chunkfarm.table.registry import ROWS_A_TRANSACTION, Registry
from chunkfarm.table.voters import View, heir, next_configuration, to_drop

ROUND = 0.5
"""Seconds between looks at the farm: half the interval of reports."""
LATE = 1.0
"""Seconds by which a round may be late before all silence counters start anew: this process was paused."""
RESTART_GATHER = 2.0
"""Seconds in which the servers of a restarted farm may report back and keep their places in the line."""
RETIRED_MAX = 8
"""Earlier processes of one server that are remembered: two that share a data directory by mistake are enough."""
MEASURE_INTERVAL = 60.0
"""Seconds between two changes of a row for free space alone."""
RISK_INTERVAL = 1.0
"""Seconds between two sums of what can be lost: a thousand servers that repair change it with every report."""
SAID_MAX = 4
"""Changes of a row in as many seconds for a note, or a disk that is full or is not: what goes to and fro each second
must not cost a commit each time."""


@frozen(kw_only=True)
class Report:
    """What a server says of itself with each report."""

    incarnation: str
    free: int = 0
    used: int = 0
    full: bool = False
    revision: int = 0
    note: str = ""
    leaving: bool = False
    table_full: bool = False
    """Whether the disk that holds the table has no room, so that nothing is acknowledged there."""
    short: int = 0
    """Chunks with too few copies for which this server answers."""
    drain: Drain | None = None
    """How far it is, if it is emptied."""
    ca: str = ""
    """While the farm changes its CA, or wants to: the fingerprint of that which signed this server's certificate."""
    ready: str = ""
    """And of that which this server believes, durably, and whose seal key it holds if it may be a master."""
    risk: Risk | None = None
    """Which of the chunks for which it answers are on one disk or two; None from a version that does not tell."""
    missed: int = 0
    """Chunks that should be on its disk, and that it found on no server that answers."""


NO_ROOM = "no change can be made, because the disk that holds the table is full on "
"""How the sentence begins that tells of full disks, wherever it is told."""


def no_room_sentence(names: tuple[str, ...]) -> str:
    """Why the farm is read-only although everybody answers."""
    return NO_ROOM + ", ".join(names)


@define
class _Heard:
    """What the first remembers of one server."""

    at: float
    report: Report | None = None
    measured_at: float = field(default=float("-inf"))
    gone: bool = False
    """Whether it was away for `master_grace` and so has lost its place; until its row is given anew."""
    alive_at: float = field(default=float("-inf"))
    """When the very process that its row names was last heard."""
    retired: list[str] = field(factory=list)
    """Incarnations that later ones have taken the place of."""
    said_from: float = field(default=float("-inf"))
    said: int = 0
    """How often its row was changed since then for what it says of itself."""

    def may_say(self, now: float) -> bool:
        """Whether its row may be changed once more for its note, or for a disk that is full or is not."""
        if now - self.said_from >= MEASURE_INTERVAL:
            self.said_from, self.said = now, 0
        self.said += 1
        return self.said <= SAID_MAX


class LedTable(Protocol):
    """The part of the table's engine that the first's duties need."""

    @property
    def is_leader(self) -> bool: ...

    @property
    def leader(self) -> str: ...

    @property
    def has_quorum(self) -> bool: ...

    @property
    def term(self) -> int: ...

    @property
    def configuration(self) -> Configuration: ...

    @property
    def change_pending(self) -> bool: ...

    @property
    def committed_this_term(self) -> bool: ...

    def caught_up(self) -> frozenset[str]: ...

    def propose_configuration(self, configuration: Configuration) -> Deferred[None]: ...

    def drop(self, server_id: str, seconds: float) -> Deferred[None]: ...

    def transfer(self, to: str) -> None: ...


class Duties:
    """The duties of the first. Runs on every server, and does something only on the one that leads."""

    _log = Logger()

    def __init__(
        self,
        server_id: str,
        incarnation: str,
        table: LedTable,
        registry: Registry,
        servers: Callable[[], tuple[Server, ...]],
        options: Callable[[], FarmOptions],
        clock: IReactorTime,
        epochs: Epochs,
    ) -> None:
        self._epochs = epochs
        self._id = server_id
        self._incarnation = incarnation
        self._table = table
        self._registry = registry
        self._servers = servers
        self._options = options
        self._clock = clock
        self._indexed: tuple[Server, ...] = ()
        self._rows: dict[str, Server] = {}
        """The servers of `_indexed` by id."""
        self._emptied: tuple[str, ...] = ()
        """Those of them that are emptied."""
        self._short = 0
        """The sum of what those of them that are up have told to be short."""
        self._risk: Risk | None = None
        self._risk_at = float("-inf")
        """When that was summed up, from what all had told."""
        self._risk_changed = True
        self._without_room: dict[str, None] = {}
        """Who has told last that the table's disk has no room."""
        self._leaving: dict[str, None] = {}
        """Who has told last to be leaving."""
        self._unmeasured: dict[str, None] = {}
        """Whose row may differ from what was told: the row is another since it was looked at, or the report."""
        self._back: dict[str, None] = {}
        """Who is back in time, and is to be marked up, in the order of their reports."""
        self._letting_back = False
        self._heard: dict[str, _Heard] = {}
        self._term = -1
        self._followed = ""
        self._leading_since = 0.0
        self._last_round = 0.0
        self._grace = 0.0
        """The `master_grace` by which the other one of two is dropped."""
        self._grace_since = 0.0
        """When that was what the options say, last."""
        self._gathering: list[tuple[Server, Deferred[Server]]] | None = None
        self._gather_until = 0.0
        self._others_went_on = False
        """Whether a server has reported whose process is the one in its row, so that not all were started anew."""
        self._busy: Deferred[None] | None = None
        self._loop: LoopingCall | None = None

    def start(self) -> None:
        """Begin the rounds."""
        self._last_round = self._clock.seconds()
        self._loop = LoopingCall(self._round)
        self._loop.clock = self._clock
        self._loop.start(ROUND, now=False)

    def stop(self) -> Deferred[None]:
        """End the rounds; fires when the one under way has ended."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        self._give_up_gathering("this server is stopping")
        if self._busy is None:
            return succeed(None)
        busy, self._busy = self._busy, None
        busy.cancel()
        return busy

    def report(self, server_id: str, report: Report) -> bool:
        """Note a report; says whether the server's row carries this incarnation and is up.

        When it does not, the server gives its row anew (`put`).
        """
        now = self._clock.seconds()
        self._notice_term(now)
        heard = self._of(server_id, now)
        silence = now - heard.at
        row = self._row(server_id)
        if heard.report is not report:
            self._take_news(server_id, row, heard.report, report)
        heard.at, heard.report = now, report
        if row is None or row.incarnation != report.incarnation:
            return False
        heard.alive_at = now
        self._others_went_on = self._others_went_on or server_id != self._id
        if row.state != "down":
            heard.gone = False
            return True
        # It only lost contact: its place is kept if it is back within `master_grace`.
        heard.gone = heard.gone or silence >= self._options().master_grace
        if heard.gone:
            return False
        self._let_back(server_id)
        return True

    def _of(self, server_id: str, now: float) -> _Heard:
        """What is remembered of a server; one that was never heard begins to be silent now."""
        heard = self._heard.get(server_id)
        if heard is None:
            heard = self._heard[server_id] = _Heard(now)
        return heard

    def _take_news(self, server_id: str, row: Server | None, before: Report | None, report: Report) -> None:
        """Note what a report says that is not what the last one said: at rest a server says the same for hours."""
        if row is not None and row.state != "down":
            self._short += report.short - (before.short if before is not None else 0)
        if before is None or before.risk != report.risk:
            self._risk_changed = True
        self._unmeasured[server_id] = None
        for said, those in ((report.table_full, self._without_room), (report.leaving, self._leaving)):
            if said:
                those[server_id] = None
            else:
                those.pop(server_id, None)

    def _let_back(self, server_id: str) -> None:
        """Mark a server up that was down, and with it, in one transaction, all who come back while that is under way.

        When a thousand come back at once, as to a new first, one transaction for each would take a minute.
        """
        self._back[server_id] = None
        if not self._letting_back:
            self._letting_back = True
            Deferred.fromCoroutine(self._mark_back()).addErrback(self._failed)

    async def _mark_back(self) -> None:
        try:
            while self._back:
                some = list(self._back)[:ROWS_A_TRANSACTION]
                for server_id in some:
                    del self._back[server_id]
                await self._registry.enter_state(some, "up", only_from=("down",))
        finally:
            # Those who are left report again.
            self._back.clear()
            self._letting_back = False

    def without_room(self) -> tuple[str, ...]:
        """The names of the voters whose disks are too full for the table, if no change can be made because of them."""
        if not self._without_room:
            return ()
        voters = self._table.configuration.voters
        full = voters & self._without_room.keys()
        if not full or 2 * len(voters - full) > len(voters):
            return ()
        return tuple(server.name for server in self._servers() if server.id in full)

    def put(self, server: Server) -> Deferred[Server]:
        """A known server gives its row after a start: it joins the end of the line.

        The servers of a farm that was started anew as a whole keep their places, if they are back before
        the first change is made. Fails with `TableError` if this server leads no more before it is decided, and
        if a later process with the same server id is alive: of two that share a copied data directory one must go.
        """
        now = self._clock.seconds()
        self._notice_term(now)
        heard = self._heard.setdefault(server.id, _Heard(now))
        heard.at = now
        row = self._row(server.id)
        if row is not None and server.incarnation in heard.retired and now - heard.alive_at < self._down_after():
            return fail(
                TableError(
                    f"two processes have the server id {server.id}, at {row.peer_address} and, started before it, at "
                    f"{server.peer_address}: stop one of them, and give it a data directory of its own"
                )
            )
        if self._gathering is not None:
            waiter: Deferred[Server] = Deferred()
            self._gathering.append((server, waiter))
            return waiter
        return self._join(server)

    def _join(self, server: Server) -> Deferred[Server]:
        before = self._row(server.id)

        def joined(row: Server) -> Server:
            heard = self._heard.setdefault(row.id, _Heard(self._clock.seconds()))
            heard.gone = False
            if before is not None and before.incarnation != row.incarnation:
                heard.retired = [*heard.retired[1 - RETIRED_MAX :], before.incarnation]
            return row

        return self._registry.join(server).addCallback(joined)

    def short(self) -> int:
        """Chunks of the farm with too few copies, as the servers that are up have told."""
        self._index()
        return self._short

    def risk(self) -> Risk:
        """What can be lost now with one disk or two, as all servers have told.

        Of those that are down only that still counts which nobody else has; of one that is forgotten, nothing.
        """
        self._index()
        now = self._clock.seconds()
        if self._risk is None or (self._risk_changed and now - self._risk_at >= RISK_INTERVAL):
            down = {id for id, server in self._rows.items() if server.state == "down"}
            said = {id: heard.report.risk for id, heard in self._heard.items() if heard.report is not None}
            self._risk = summed(
                of_down(said.get(id) or Risk(), down) if id in down else said.get(id) for id in self._rows
            )
            self._risk_at, self._risk_changed = now, False
        return self._risk

    def told_risk(self) -> dict[str, Risk]:
        """What each server that is up told last of what can be lost, by id; of those that told of something."""
        self._index()
        up = {id: self._heard.get(id) for id, server in self._rows.items() if server.state != "down"}
        said = {id: heard.report.risk for id, heard in up.items() if heard is not None and heard.report is not None}
        return {id: risk for id, risk in said.items() if risk is not None and risk.sets}

    def drains(self) -> dict[str, Drain]:
        """How far those servers are that are emptied, as they told last."""
        self._index()
        if not self._emptied:
            return {}
        told = {id: heard.report.drain for id in self._emptied if (heard := self._heard.get(id)) and heard.report}
        return {id: drain for id, drain in told.items() if drain is not None}

    def reports(self) -> dict[str, Report]:
        """What the servers told last that are there, by the very processes that their rows name."""
        self._index()
        told = {id: heard.report for id, heard in self._heard.items() if heard.report is not None}
        rows = self._rows
        return {
            id: report
            for id, report in told.items()
            if id in rows and rows[id].state != "down" and rows[id].incarnation == report.incarnation
        }

    def heard(self) -> dict[str, float]:
        """Seconds since each server was heard."""
        now = self._clock.seconds()
        return {server_id: now - heard.at for server_id, heard in self._heard.items()}

    def _row(self, server_id: str) -> Server | None:
        self._index()
        return self._rows.get(server_id)

    def _index(self) -> None:
        """Look at the rows again if they have changed.

        Every report asks for a row, for the sum of what is short and for those that are emptied: with a search for
        each, reports would cost the square of the servers.
        """
        servers = self._servers()
        if servers is not self._indexed:
            self._indexed, self._rows = servers, {server.id: server for server in servers}
            self._emptied = tuple(server.id for server in servers if server.is_emptied)
            self._risk_changed = True
            self._unmeasured = dict.fromkeys(self._rows)
            up = {server.id for server in servers if server.state != "down"}
            self._short = sum(
                heard.report.short for id, heard in self._heard.items() if heard.report is not None and id in up
            )

    def _failed(self, failure: Any) -> None:
        if failure.check(ChangeRefused, NotLeader):
            # The core allows one change at a time, and takes its time at the beginning of a term: the next round asks.
            self._log.debug("Not now: {reason}", reason=failure.getErrorMessage())
        elif not failure.check(TableError, CancelledError):
            self._log.failure("while keeping the server table", failure)

    def _round(self) -> None:
        try:
            self._look()
        except Exception:
            # A loop ends with the first exception, and a farm without rounds notices nobody's end.
            self._log.failure("while looking at the farm")

    def _look(self) -> None:
        now = self._clock.seconds()
        late = now - self._last_round > ROUND + LATE
        self._last_round = now
        self._follow_grace(now)
        if not self._table.is_leader:
            self._term = -1
            self._give_up_gathering("this server does not lead any more")
            self._follow(now)
            return
        self._notice_term(now)
        if late:
            self._log.info("This process was paused for a while; nobody is judged until all could report.")
            self._hear_all(now)
        self._heard.setdefault(self._id, _Heard(now)).at = now
        # Before all else, and beside it: whatever writes to the table may be waiting for the one that is gone.
        self._perhaps_drop()
        if self._busy is None:
            busy = Deferred.fromCoroutine(self._work(now))
            if not busy.called:
                self._busy = busy
            busy.addErrback(self._failed).addCallback(self._rest)

    def _rest(self, _: object) -> None:
        self._busy = None

    def _follow(self, now: float) -> None:
        """Note when the leader was last heard, in case this server is the one that takes over."""
        if self._table.leader and self._table.has_quorum:
            self._followed = self._table.leader
            self._heard.setdefault(self._followed, _Heard(now)).at = now

    def _notice_term(self, now: float) -> None:
        """Begin a term of this leader, at the first round or with the first report, whichever comes before."""
        if self._table.is_leader and self._term != self._table.term:
            self._begin(now)

    def _begin(self, now: float) -> None:
        """A term begins: everyone gets a full round before silence counts.

        Only of the leader before this one it is known how long it has been silent.
        """
        self._term = self._table.term
        self._leading_since = now
        self._epochs.begin(now)
        before = self._heard.get(self._followed)
        silent_since = before.at if before is not None else now
        self._hear_all(now)
        if self._followed and self._followed != self._id:
            self._heard[self._followed].at = silent_since
        for server in self._servers():
            if server.state == "down":
                self._heard[server.id].gone = self._away(server) >= self._options().master_grace
        own = self._row(self._id)
        if own is not None and own.incarnation != self._incarnation:
            # The leader itself is newer than its row, so perhaps the farm as a whole was started anew.
            self._gathering = self._gathering or []
            self._gather_until = now + RESTART_GATHER
            self._others_went_on = False

    def _away(self, server: Server) -> float:
        """Seconds for which a server that is down has been away. Another leader noticed it, so the wall clock tells."""
        return (self._registry.now() - server.since) / 1000 + self._down_after()

    def _down_after(self) -> float:
        return down_after(len(self._servers()))

    def _hear_all(self, now: float) -> None:
        """Nobody's silence counts from before this moment: nobody here was listening."""
        for server in self._servers():
            self._heard.setdefault(server.id, _Heard(now)).at = now

    def _give_up_gathering(self, reason: str) -> None:
        gathered, self._gathering = self._gathering or [], None
        for _, waiter in gathered:
            waiter.errback(TableError(reason))

    async def _work(self, now: float) -> None:
        if self._gathering is not None:
            missing = len(self._gathering) < len(self._servers())
            if now < self._gather_until and missing and not self._others_went_on:
                return
            await self._end_gathering()
        await self._note_silence(now)
        await self._give_up(now)
        await self._note_measures(now)
        await self._keep_masters(now)
        await self._epochs.turn(now)

    async def _end_gathering(self) -> None:
        gathered, self._gathering = self._gathering or [], None
        try:
            if self._others_went_on:
                # Only some were started anew, this one among them: they are new in the line like anybody else.
                for server, waiter in gathered:
                    waiter.callback(await self._join(server))
                return
            await self._registry.resume([server for server, _ in gathered])
        except Exception as error:
            for _, waiter in gathered:
                if not waiter.called:
                    waiter.errback(TableError(str(error)))
            raise
        for server, waiter in gathered:
            waiter.callback(self._row(server.id) or server)

    async def _note_silence(self, now: float) -> None:
        limit = self._down_after()
        silent = [
            server
            for server in self._servers()
            if server.state != "down" and now - self._of(server.id, now).at >= limit
        ]
        if silent:
            self._log.info(
                "Down, after {seconds} s of silence: {names}.",
                seconds=limit,
                names=", ".join(server.name for server in silent),
            )
            await self._registry.enter_state(
                [server.id for server in silent], "down", only_from=("up", "draining", "leaving")
            )
        leaving = [
            server_id
            for server_id in self._leaving
            if (server := self._row(server_id)) is not None
            and server.state in LIVE
            and (report := self._heard[server_id].report) is not None
            and report.incarnation == server.incarnation
        ]
        if leaving:
            await self._registry.enter_state(leaving, "leaving", only_from=LIVE)

    async def _give_up(self, now: float) -> None:
        """Who is down for `repair_after` is not waited for any more: its chunks are copied elsewhere.

        Silence counts from when this server began to lead: a new first is a little later with it than the one before
        it would have been, and no clock that was set wrong can make the farm copy a disk for nothing.
        """
        limit = self._options().repair_after
        lost = [
            server
            for server in self._servers()
            if server.state == "down" and not server.given_up and now - self._of(server.id, now).at >= limit
        ]
        if lost:
            self._log.info(
                "Given up, after {seconds} s of silence: {names}. Their chunks are copied to other servers.",
                seconds=limit,
                names=", ".join(server.name for server in lost),
            )
            await self._registry.give_up([server.id for server in lost])

    async def _note_measures(self, now: float) -> None:
        self._index()
        figures: dict[str, dict[str, Any]] = {}
        unmeasured, self._unmeasured = self._unmeasured, {}
        for server_id in unmeasured:
            server, heard = self._rows.get(server_id), self._heard.get(server_id)
            if server is None or heard is None or heard.report is None or server.state == "down":
                continue
            report = heard.report
            changed: dict[str, Any] = {}
            if report.full != server.full:
                changed["full"] = report.full
            if report.note != server.note:
                changed["note"] = report.note
            if changed:
                # Until the row says so, whatever becomes of the transaction.
                self._unmeasured[server_id] = None
                if not heard.may_say(now):
                    changed.clear()
            percent = max(1, (report.free + report.used) // 100)
            moved = abs(report.free - server.free) >= percent
            # A percent of what is used, not of the disk: a server counts its chunks after it has joined, and would else
            # be shown as one that has lost them for as long as they fill less than that of a large disk.
            moved = moved or abs(report.used - server.used) >= max(1, max(report.used, server.used) // 100)
            if moved:
                self._unmeasured[server_id] = None
                if now - heard.measured_at >= MEASURE_INTERVAL:
                    heard.measured_at = now
                    changed |= {"free": report.free, "used": report.used}
            if changed:
                figures[server.id] = changed
        if figures:
            await self._registry.measure(figures)

    def _view(self) -> View:
        options = self._options()
        return View(
            servers=self._servers(),
            configuration=self._table.configuration,
            leader=self._id,
            caught_up=self._table.caught_up(),
            silent=self.heard(),
            master_grace=options.master_grace,
            repair_after=options.repair_after,
            change_pending=self._table.change_pending or not self._table.committed_this_term,
        )

    def _follow_grace(self, now: float) -> None:
        """A shorter `master_grace` counts for dropping once the longer one before it is over.

        The other one of two may have promised to keep the change before it knew that it was made. As long as it goes by
        the longer one, it could take over after it was dropped.
        """
        grace = self._options().master_grace
        if grace >= self._grace or now - self._grace_since >= self._grace:
            self._grace = grace
        if grace >= self._grace:
            self._grace_since = now

    def _perhaps_drop(self) -> None:
        """Of two voters the leader goes on alone, once the other has been silent for `master_grace`."""
        view = evolve(self._view(), master_grace=self._grace)
        lost = to_drop(view)
        if lost is None:
            return

        def dropped(_: None) -> None:
            self._log.info(
                "{lost} has been silent for {seconds} s and holds the table no more; the first goes on alone.",
                lost=lost,
                seconds=view.master_grace,
            )

        self._table.drop(lost, view.master_grace).addCallback(dropped).addErrback(self._failed)

    async def _keep_masters(self, now: float) -> None:
        if self._table.change_pending or not self._servers():
            return
        view = self._view()
        step = next_configuration(view)
        if step is not None:
            self._log.info(
                "The table's voters become {voters}, its learners {learners}.",
                voters=sorted(step.voters),
                learners=sorted(step.learners),
            )
            await self._table.propose_configuration(step)
            return
        to = heir(view)
        if to is not None and now - self._leading_since >= view.master_grace:
            self._log.info("Leadership is handed to {to}, which is senior.", to=to)
            self._leading_since = now
            self._table.transfer(to)
