"""Each server's report to the first, mostly once a second, and what its answers mean for this server.

An answered report is the proof that this server belongs: while none comes back the server is read-only and
says whom it waits for. The first reports to itself, by the same rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from chunkfarm.config_values import read_host, read_port
from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed, Peers
from chunkfarm.membership import masters
from chunkfarm.model import Address, Drain, Server, check_server_id
from chunkfarm.pace import INTERVAL, lost_after, report_interval
from chunkfarm.risk import Risk
from chunkfarm.said import count_of, drain_of, risk_of, told, unheld_of
from chunkfarm.state import ServerState, Wait
from chunkfarm.table.duties import NO_ROOM, Duties, Report, no_room_sentence
from chunkfarm.table.interface import TableError
from chunkfarm.table.records import Configuration
from chunkfarm.unheld import Unheld

LATE = 1.0
"""Seconds by which a turn may come late; a process that was paused for longer misses nobody from before it woke."""
REPORT_TIMEOUT = 2.0
"""Seconds to wait for the answer of one report."""
ROOM_CURE = "make room on the disks of the servers that are named"
BEHIND_SECONDS = 10.0
"""Seconds until the table here must be as far as that of the first was. Who follows is told that each second."""
PUT_TIMEOUT = 10.0
"""Seconds to wait until a row given anew is committed, which may take an election."""


class LedTable(Protocol):
    """What the reporter asks of this server's part of the table."""

    @property
    def leader(self) -> str: ...

    @property
    def is_leader(self) -> bool: ...

    @property
    def has_quorum(self) -> bool: ...

    @property
    def withheld(self) -> str: ...

    @property
    def configuration(self) -> Configuration: ...


@frozen(kw_only=True)
class Answer:
    """What a report is answered."""

    term: int | None
    voters: frozenset[str]
    learners: frozenset[str]
    revision: int
    """Of the first's rows; 0 if it does not say."""
    known: bool
    short: int
    risk: Risk | None
    drains: Mapping[str, Drain]
    unheld: Unheld | None


def read_answer(text: str) -> Answer:
    """The answer to a report, looked at word by word; raises `ValueError` for what is none.

    Who answers may be broken, or have been taken over, and whoever is asked once a second must not be stuck with that.
    """
    try:
        told = json.loads(text)
    except RecursionError:
        raise ValueError("it is too deep") from None
    if not isinstance(told, dict) or type(told.get("known")) is not bool:
        raise ValueError("it does not say whether this server is known")
    term, drains, risk, lost = told.get("term"), told.get("drains", {}), told.get("risk"), told.get("lost")
    if term is not None:
        count_of(term)
    if not isinstance(drains, dict):
        raise ValueError("drains is not what it should be")
    return Answer(
        term=term,
        voters=_ids(told.get("voters", [])),
        learners=_ids(told.get("learners", [])),
        revision=count_of(told.get("revision", 0)),
        known=told["known"],
        short=count_of(told.get("short", 0)),
        risk=risk_of(risk) if risk is not None else None,
        drains={check_server_id(server): drain_of(drain) for server, drain in drains.items()},
        unheld=unheld_of(lost) if lost is not None else None,
    )


def _ids(told: Any) -> frozenset[str]:
    if not isinstance(told, list):
        raise ValueError("it does not say who votes and who learns")
    return frozenset(check_server_id(str(one)) for one in told)


class Reporter:
    """Reports to the first, finds out who that is, and keeps the server's phase true."""

    _log = Logger()

    def __init__(
        self,
        *,
        state: ServerState,
        make_report: Callable[[], Report],
        own_row: Callable[[], Server],
        table: LedTable,
        duties: Duties,
        peers: Peers,
        servers: Callable[[], tuple[Server, ...]],
        learn: Callable[[str, Address], None],
        clock: IReactorTime,
        now: Callable[[], int],
        heed: Callable[[int, frozenset[str]], None] = lambda term, members: None,
        cures: Callable[[], tuple[str, ...]] = lambda: (),
        heard: Callable[[str, int], None] = lambda first, term: None,
        behind: Callable[[], None] = lambda: None,
        unheld: Callable[[], Unheld | None] = lambda: None,
    ) -> None:
        """`cures` says what a person may do while nobody leads; `heard` is told who has answered, and in which term.

        `behind` is called when the table here does not become what the first knew long ago. `unheld` is what this
        server has found since it leads of chunks that nobody has.
        """
        self._unheld_here = unheld
        self._heard = heard
        self._behind = behind
        self._there: tuple[int, float] = (0, 0.0)
        """The revision that this server is to reach, and since when."""
        self._cures = cures
        self._state = state
        self._heed = heed
        self._make_report = make_report
        self._own_row = own_row
        self._table = table
        self._duties = duties
        self._peers = peers
        self._servers = servers
        self._learn = learn
        self._clock = clock
        self._now = now
        self._first = ""
        self._tried = 0
        self._acknowledged = self._ticked = clock.seconds()
        self._lost_since = 0
        self._tries = 0
        self._rested = 0
        self._errors: dict[str, str] = {}
        self._busy: Deferred[None] | None = None
        self._loop: LoopingCall | None = None
        self._joined: list[Deferred[None]] = []
        self._settling: list[Deferred[bool]] = []
        self.short = 0
        """Chunks of the farm with too few copies, by the last answer of the first."""
        self.risk: Risk | None = None
        """What can be lost in the farm now, by the same answer; None if nobody has told."""
        self.unheld: Unheld | None = None
        """Chunks of files that no server has that answers, by the same answer; None if nobody has told."""
        self.drains: Mapping[str, Drain] = {}
        """How far servers are that are emptied, by id, by the same answer."""
        self._said_to_lead = ""
        self.belongs = False
        """Whether the first has acknowledged this process's row."""
        self.voters: frozenset[str] = frozenset()
        """Who votes, by the last answer of another server that leads."""

    @property
    def first(self) -> str:
        """The server that leads, as far as this one knows; empty if it does not."""
        return self._table.leader or self._first

    @property
    def hint(self) -> str:
        """Who leads by what the answers to reports said, for an engine that cannot know it by itself."""
        return self._first

    def answered_by(self, server_id: str) -> bool:
        """Whether that server is the first, and has answered the last reports: it lives, and is in reach."""
        return server_id == self._first and self._is_answered()

    def hear_of(self, first: str) -> None:
        """Somebody says who leads; that counts where no row and no list names another server to ask."""
        if first != self._state.server_id:
            self._said_to_lead = first

    def start(self, first: str = "") -> None:
        """Begin to report, to `first` at the start."""
        self._first = first
        self._acknowledged = self._ticked = self._clock.seconds()
        self._loop = LoopingCall(self._tick)
        self._loop.clock = self._clock
        self._loop.start(INTERVAL)

    def stop(self) -> Deferred[None]:
        """End reporting; fires when the report under way has ended."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        waiting: list[Deferred[Any]] = [*self._joined, *self._settling]
        self._joined, self._settling = [], []
        for waiter in waiting:
            waiter.cancel()
        if self._busy is None:
            return succeed(None)
        busy, self._busy = self._busy, None
        busy.cancel()
        return busy

    def when_belonging(self) -> Deferred[None]:
        """Fires when the first has acknowledged this process's row."""
        if self.belongs:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._joined.append(waiter)
        return waiter

    def when_settled(self) -> Deferred[bool]:
        """Fires with whether this server belongs: with no as soon as it takes part in nothing any more."""
        if self.belongs or self._state.halted:
            return succeed(self.belongs)
        waiter: Deferred[bool] = Deferred()
        self._settling.append(waiter)
        return waiter

    def _settle(self) -> None:
        waiting, self._settling = self._settling, []
        for waiter in waiting:
            waiter.callback(self.belongs)

    def report_now(self) -> Deferred[None]:
        """One report at once, such as the last one of a server that is leaving."""
        return Deferred.fromCoroutine(self._report())

    def _tick(self) -> None:
        if self._busy is None and not self._state.halted and self._is_due():
            busy = Deferred.fromCoroutine(self._report())
            if not busy.called:
                self._busy = busy
            busy.addErrback(self._failed).addCallback(self._rest)
        now = self._clock.seconds()
        if now - self._ticked > INTERVAL + LATE:
            # This process was paused. Others may have answered all the time, so their silence begins now.
            self._acknowledged = now
        self._ticked = now
        try:
            self._judge()
        except Exception:
            # A loop ends with the first exception, and without reports this server would be counted as down.
            self._log.failure("while judging whether this server is served")

    def _is_due(self) -> bool:
        """Whether to report now: one of very many, answered by the server that still leads, rests for some turns."""
        if self._tries or not self.belongs or self.first != self._first or self._first == self._state.server_id:
            return True
        self._rested += 1
        return self._rested * INTERVAL >= report_interval(len(self._servers()))

    def _is_answered(self) -> bool:
        return self._clock.seconds() - self._acknowledged < lost_after(len(self._servers()))

    def _failed(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("while reporting to the first", failure)

    def _rest(self, _: object) -> None:
        self._busy = None

    async def _report(self) -> None:
        target = self._target()
        self._tries += 1
        self._rested = 0
        if not target:
            return
        try:
            if target == self._state.server_id:
                await self._report_here()
            else:
                await self._report_to(target)
        except CancelledError:
            raise
        except commands.NotFirst as error:
            self._errors.pop(target, None)
            self._follow(str(error), target)
            return
        except (LinkFailed, commands.NotNow, commands.BadRequest, commands.JoinRefused, TableError) as error:
            self._errors[target] = str(error) or type(error).__name__
            self._first = ""
            return
        self._errors.clear()
        self._tries = 0
        self._acknowledged = self._clock.seconds()
        self._first = target
        if not self.belongs:
            self.belongs = True
            waiting, self._joined = self._joined, []
            for waiter in waiting:
                waiter.callback(None)
            self._settle()

    def _target(self) -> str:
        """Whom to report to: the leader if known, else one of the others in turn, masters first."""
        if self.first:
            return self.first
        line = [server.id for server in masters(self._servers())]
        line += [server.id for server in self._servers() if server.id not in line]
        others = [server_id for server_id in line if server_id != self._state.server_id]
        if not others:
            return self._said_to_lead
        self._tried += 1
        return others[self._tried % len(others)]

    def _follow(self, hint: str, asked: str) -> None:
        try:
            leader = json.loads(hint)
            server_id = check_server_id(str(leader["id"]))
            address = Address(read_host(str(leader["host"])), read_port(str(leader["peer"])))
        except (ValueError, KeyError, TypeError, RecursionError):
            self._first = ""
            return
        self._learn(server_id, address)
        self._first = server_id if server_id != asked else ""

    async def _report_here(self) -> None:
        if not self._table.is_leader or not self._table.has_quorum:
            raise TableError("no majority of the masters answers")
        is_known = self._duties.report(self._state.server_id, self._make_report())
        if names := self._duties.without_room():
            raise TableError(no_room_sentence(names))
        if not is_known:
            await self._duties.put(self._own_row())
        self.short, self.drains, self.risk = self._duties.short(), self._duties.drains(), self._duties.risk()
        # A new first goes by what the one before it found, until it has looked itself.
        self.unheld = found if (found := self._unheld_here()) is not None else self.unheld

    async def _report_to(self, target: str) -> None:
        report = json.dumps(told(self._make_report()))
        box = await self._peers.call(target, commands.Report, REPORT_TIMEOUT, report=report)
        try:
            answer = read_answer(box["answer"])
        except ValueError as error:
            raise LinkFailed(f"its answer makes no sense: {error}") from None
        if answer.term is not None:
            # A master that was removed hears of it from nobody but the first.
            self._heard(target, answer.term)
            self.voters = answer.voters
            self._heed(answer.term, answer.voters | answer.learners)
        self._compare(answer.revision)
        self.short, self.risk, self.drains, self.unheld = answer.short, answer.risk, answer.drains, answer.unheld
        if not answer.known:
            row = self._own_row().to_value().decode()
            await self._peers.call(target, commands.PutServer, PUT_TIMEOUT, row=row)

    def _compare(self, revision: int) -> None:
        """The first's table is at that revision. Whom this server follows may be cut off, or have a full disk."""
        now, (reach, since) = self._clock.seconds(), self._there
        if self._state.revision >= reach:
            self._there = revision, now
        elif now - since >= BEHIND_SECONDS:
            self._there = revision, now
            self._behind()

    def _judge(self) -> None:
        """Serving while reports are answered, else read-only with the reason."""
        if self._state.halted:
            self._settle()
        if self._state.phase not in ("serving", "readonly"):
            return
        if self._state.halted:
            self._state.change("readonly", cures=self._state.halted_cures)
            return
        if self._is_answered():
            if self._state.phase == "readonly":
                self._lost_since = 0
            self._state.change("serving")
            return
        self.risk = self.unheld = None
        self._lost_since = self._lost_since or self._now()
        waits = self.waits(self._lost_since)
        full = any(NO_ROOM in wait.error for wait in waits)
        self._state.change("readonly", waits=waits, cures=(ROOM_CURE,) if full else self._cures())

    def _who_decides(self) -> list[Server]:
        """The masters, and those that vote although they left, or are down, since nobody has taken their place yet.

        Where all masters left together, anybody may know more.
        """
        servers, voters = self._servers(), self._table.configuration.voters
        chosen = {server.id: server for server in masters(servers)}
        chosen |= {server.id: server for server in servers if server.id in voters}
        return list(chosen.values() if voters or chosen.keys() - {self._state.server_id} else servers)

    def waits(self, since: int) -> tuple[Wait, ...]:
        """The masters that do not answer, and why; or all of them, where this server must be caught up by one."""
        found = (
            (server, (self._errors.get(server.id) or self._peers.error_of(server.id), self._table.withheld))
            for server in self._who_decides()
            if server.id != self._state.server_id or NO_ROOM in self._errors.get(server.id, "")
        )
        waits = tuple(
            Wait(server.peer_address, "; ".join(filter(None, why)), since, self._tries)
            for server, why in found
            if any(why)
        )
        if not waits and self._table.withheld:
            # There is no other master, and so nobody who could catch this server up.
            return (Wait(self._own_row().peer_address, self._table.withheld, since, self._tries),)
        return waits
