"""Which line of the farm's history this server belongs to, what it does when it meets another, and what it keeps of it.

Every message between servers says its sender's line (`links.boxes`). One of another line is not acted on; its sender
is asked for its chain of takeovers, and `table.lines` judges. What follows from that is written down before
anything else is done, so that a restart forgets nothing:

* *behind*: this server is withheld from every decision until its rows tell of the new line. Two masters of a line that
  was left could otherwise elect each other again.
* *lost* or *apart*: it takes part in nothing any more, and shows its files to those who read them.

One that has stopped teaches nobody: a person may choose another side, and who had learned of this one would be apart
from that. But what it acknowledged stands, so who is behind it decides nothing until it has learned what goes on.

Masters of a line that was left, which start together and meet nobody of the new one, cannot know; they go on, and are
judged when they meet it. Therefore a first asks those of its table that are down now and then.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Protocol

from attrs import asdict, define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.durable import is_full
from chunkfarm.errors import FarmError
from chunkfarm.links.commands import BadRequest, NotNow
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import EPOCH_KEY, GENERATION_KEY, LINES_KEY, Server
from chunkfarm.survey import Told
from chunkfarm.table.driver import FULL_RETRY
from chunkfarm.table.interface import Compare, Conflict, Operation, Page, Put, TableError
from chunkfarm.table.lines import (
    LINES_MAX,
    Chain,
    Fork,
    Past,
    Verdict,
    contains,
    fork_between,
    judge,
    longer,
    newest,
    read_chain,
    read_fork,
)
from chunkfarm.table.records import Configuration

ROUND = 0.5
"""Seconds between two looks at what is to be written down, and at what the rows tell."""
ASK_INTERVAL = 2.0
"""Seconds between two questions to one server about its line: messages of another line come ten a second."""
DOWN_INTERVAL = 10.0
"""Seconds between two questions of a first to those that are down: a first of another line may be among them, and is
met in no other way. It costs each of them one attempt to connect."""
NOTE = "lines"
"""Beside the journal's rows."""
LEARNS = "The farm went on without this server; until it has learned what happened since, it decides nothing."
NOBODY_TEACHES = (
    "The farm went on without this server, and whoever did so has stopped: until a person has chosen the side that "
    "goes on, this server decides nothing."
)


class HistoryError(FarmError):
    """What was written down of the farm's history cannot be read; the sentence says where."""


@frozen(kw_only=True)
class Stopped:
    """Why this server takes part in nothing any more: another line goes on, or none can be chosen."""

    verdict: str
    """`lost` or `apart`."""
    line: str
    index: int
    term: int
    """The newest takeover of the other line."""
    server: str
    """Id of who leads the other line, or of whom it was heard from."""
    name: str
    address: str
    """Its client port, or where else it was met."""

    @property
    def reason(self) -> str:
        """What happened, in a sentence."""
        since = f"since the takeover {self.line[:8]} at index {self.index} of its journal"
        if self.verdict == "lost":
            return (
                f"the farm goes on without this server: {self.name} ({self.address}) leads it {since}, "
                "and lacks what was stored here after that"
            )
        return (
            f"the farm was divided: {self.name} ({self.address}) took over {since}, and this side did so too, "
            "so each side lacks what the other one stored"
        )

    @property
    def cures(self) -> tuple[str, ...]:
        """What a person may do."""
        export = "fetch what is needed from here with `chunkfarm get`, then empty the data directory and start again"
        if self.verdict == "lost":
            return (export,)
        return (
            f"choose one side: on every server of the other one {export}; once all of those are empty, "
            "say `chunkfarm takeover` on the side that is to go on",
        )


@frozen(kw_only=True)
class Memory:
    """What outlives the process."""

    chain: Chain = ()
    """The takeovers that this server has learned of, perhaps before its rows tell of them."""
    intended: Fork | None = None
    """A takeover of this server that its rows do not tell of yet."""
    stopped: Stopped | None = None

    def to_text(self) -> str:
        item = {
            "chain": [fork.as_item() for fork in self.chain],
            "intended": self.intended.as_item() if self.intended is not None else None,
            "stopped": asdict(self.stopped) if self.stopped is not None else None,
        }
        return json.dumps(item)

    @classmethod
    def from_text(cls, text: str) -> Memory:
        """Raises `HistoryError` for what is none."""
        if not text:
            return cls()
        try:
            item = json.loads(text)
            return cls(
                chain=read_chain(item["chain"]),
                intended=read_fork(item["intended"]) if item["intended"] is not None else None,
                stopped=Stopped(**item["stopped"]) if item["stopped"] is not None else None,
            )
        except (ValueError, TypeError, KeyError) as error:
            raise HistoryError(f"what the table's journal notes of takeovers cannot be read: {error}") from None


@define
class OwnLine:
    """What links say and hear of lines (`links.boxes.Lines`); the history stands behind it once there is one."""

    history: History | None = None

    @property
    def said(self) -> str | None:
        return self.history.said if self.history is not None else None

    def met(self, server_id: str, line: str) -> bool:
        return self.history is None or self.history.met(server_id, line)


class Notes(Protocol):
    """The journal, as far as it is used here."""

    def note(self, name: str) -> str: ...

    def set_note(self, name: str, value: str) -> None: ...

    def read(self, prefix: bytes, after: bytes, limit: int) -> Page: ...


class LinedTable(Protocol):
    """This server's part of the table."""

    @property
    def is_leader(self) -> bool: ...

    @property
    def has_quorum(self) -> bool: ...

    @property
    def committed_this_term(self) -> bool: ...

    @property
    def last_index(self) -> int: ...

    @property
    def past(self) -> Past: ...

    @property
    def journal_position(self) -> tuple[int, int]: ...

    @property
    def configuration(self) -> Configuration: ...

    @property
    def configuration_index(self) -> int: ...

    def withhold(self, reason: str, until: Callable[[], bool]) -> None: ...

    def read(self, prefix: bytes) -> Deferred[Page]: ...

    def transact(self, compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> Deferred[int]: ...


@define
class History:
    """This server's line. `load` comes before anything is sent, `start` once it serves or tries to."""

    _log = Logger()

    server_id: str
    table: LinedTable
    notes: Notes
    run_in_thread: RunInThread
    ask: Callable[[str, int], Deferred[Told]]
    """Asks a server, by its id, who it is and what its journal has at an index."""
    servers: Callable[[], tuple[Server, ...]]
    generation: Callable[[], int]
    """The generation that `config.ini` had: a takeover goes beyond it, or this journal would pass for an old one."""
    on_change: Callable[[], None]
    """Called when this server has stopped taking part, or begun again."""
    on_learned: Callable[[int], None]
    """Called when this server belongs to another line, with the index up to which that shares this one's past."""
    on_fatal: Callable[[Failure], None]
    clock: IReactorTime
    random: Random
    _memory: Memory = field(factory=Memory, init=False)
    _settled: Chain = field(default=(), init=False)
    """What the rows of this journal tell."""
    _to_forget: bool = field(default=False, init=False)
    """Whether a takeover is written down that came to nothing."""
    _deciding: bool = field(default=False, init=False)
    """Whether something is being written down that nothing may come before."""
    _asked: dict[str, float] = field(factory=dict, init=False)
    _asking: dict[str, Deferred[None]] = field(factory=dict, init=False)
    _said: set[tuple[str, str]] = field(factory=set, init=False)
    _waiting: list[Deferred[None]] = field(factory=list, init=False)
    _waits_on: str | None = field(default=None, init=False)
    """The line on which this server decides nothing any more."""
    _down_asked: float = field(default=0.0, init=False)
    _busy: Deferred[None] | None = field(default=None, init=False)
    _turns: DeferredLock = field(factory=DeferredLock, init=False)
    _loop: LoopingCall | None = field(default=None, init=False)

    # Its life.

    def load(self) -> None:
        """Take up what is written down; blocks. Raises `HistoryError`."""
        memory = Memory.from_text(self.notes.note(NOTE))
        self._settled = _chain_of(self.notes.read(LINES_KEY, b"", 1))
        intended = memory.intended
        if intended is not None:
            # Without that configuration the process ended before it took over, and nobody was told of it.
            alone = self.table.configuration.voters == {self.server_id}
            taken = alone and self.table.configuration_index > intended.index
            intended = intended if taken and not contains(self._settled, intended.line) else None
            self._to_forget = intended is None
        self._memory = evolve(memory, chain=longer(memory.chain, self._settled), intended=intended)
        if memory.stopped is not None:
            self.table.withhold(_sentence(memory.stopped.reason), lambda: False)
            self.on_change()
        elif self.table.last_index and not self._has_learned():
            self.table.withhold(LEARNS, self._has_learned)

    def start(self) -> None:
        """Begin to look."""
        self._loop = LoopingCall(self._look)
        self._loop.clock = self.clock
        self._loop.start(ROUND, now=False)
        if self._to_forget:
            # This server may come to vote alone in another way, and a later start would take that for the takeover.
            self._do(self._keep())

    def stop(self) -> Deferred[Any]:
        """End; fires when what is under way has ended."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.cancel()
        running = [*self._asking.values(), *([self._busy] if self._busy is not None else [])]
        for one in running:
            one.cancel()
        return gatherResults(running, consumeErrors=True) if running else succeed(None)

    # What is so.

    @property
    def chain(self) -> Chain:
        """The takeovers of this server's line, as far as it knows them; not one of its own that is under way."""
        return self._memory.chain

    @property
    def settled(self) -> bool:
        """Whether the rows of this server's own journal tell of its line."""
        return self._has_learned()

    @property
    def stopped(self) -> Stopped | None:
        """Why this server takes part in nothing any more; None if it does."""
        return self._memory.stopped

    @property
    def learns(self) -> bool:
        """Whether this server's journal is of a line that was left."""
        return bool(self.table.last_index) and not self._has_learned()

    @property
    def said(self) -> str | None:
        """The line that every message says; None while there is nothing that a line could be told from."""
        if self._memory.intended is not None:
            return self._memory.intended.line
        return newest(self.chain) if self.chain or self.table.last_index else None

    def describe(self, index: int | None) -> dict[str, Any]:
        """What a probe of another server of the farm is told."""
        term, last = self.table.journal_position
        there = self.table.past.term_at(index) if index is not None and index >= 0 and self.settled else None
        return {
            "journal": {"term": term, "index": last} if self.table.last_index else None,
            "commits": self.table.is_leader and self.table.has_quorum and self.stopped is None,
            "lines": [fork.as_item() for fork in self.chain],
            "settled": self.settled,
            "stopped": self.stopped is not None,
            "term_at": there,
        }

    def _has_learned(self) -> bool:
        return contains(self._settled, newest(self._memory.chain))

    # Meeting others.

    def met(self, server_id: str, line: str) -> bool:
        """A server has said its line; whether what it asks may be done."""
        if self._deciding or self.stopped is not None:
            return False
        if line == (self.said or ""):
            return True
        self.look_at(server_id)
        return False

    def look_at(self, server_id: str) -> None:
        """Ask a server for its chain, unless that was done just now, and act on what it says."""
        now = self.clock.seconds()
        if server_id in self._asking or now - self._asked.get(server_id, float("-inf")) < ASK_INTERVAL:
            return
        self._asked[server_id] = now
        asking = Deferred.fromCoroutine(self._ask(server_id))
        if not asking.called:
            self._asking[server_id] = asking

        def rest(_: object) -> None:
            self._asking.pop(server_id, None)

        asking.addErrback(self._failed).addCallback(rest)

    def _failed(self, failure: Any) -> None:
        if not failure.check(CancelledError, LinkFailed, NotNow, BadRequest, TableError, Conflict):
            self._log.failure("while asking which line of the farm's history goes on", failure)

    async def _ask(self, server_id: str) -> None:
        index = self.table.past.committed
        told = await self.ask(server_id, index)
        if told.server == server_id and not self._deciding and self.stopped is None:
            await self._weigh(told, index)

    def _judge(self, told: Told, index: int) -> Verdict | None:
        """What follows from that answer, in which `term_there` is about `index`; None if it must be asked again."""
        past, there = self.table.past, told.term_there if told.settled else None
        if past.committed == index:
            return judge(self.chain, past, told.chain, there)
        # More is committed by now, of which the answer says nothing.
        verdict = judge(self.chain, past, told.chain, None)
        unclear = verdict is not judge(self.chain, past, told.chain, past.term_at(past.committed))
        shared_then = judge(self.chain, evolve(past, committed=index), told.chain, there) is Verdict.BEHIND
        return None if unclear and shared_then else verdict

    async def _weigh(self, told: Told, index: int) -> None:
        """Act on what another server of this farm said of its line, asked about `index`."""
        if self._memory.intended is not None:
            # This one's takeover is not complete: there is nothing yet to compare with.
            return
        verdict = self._judge(told, index)
        if told.stopped and verdict is not Verdict.APART:
            if verdict in (Verdict.BEHIND, Verdict.LOST):
                self._wait_for_choice()
            return
        if verdict is Verdict.AHEAD and (told.server, newest(told.chain)) not in self._said:
            self._said.add((told.server, newest(told.chain)))
            self._log.info("{name} comes from before a takeover; this server's line goes on.", name=told.name)
        if verdict is Verdict.BEHIND:
            await self._learn(told)
        elif verdict is Verdict.LOST:
            past = self.table.past
            known = judge(self.chain, past, told.chain, past.term_at(past.committed))
            if told.settled or known is Verdict.LOST:
                await self._end(told, verdict)
        elif verdict is Verdict.APART:
            await self._end(told, verdict)

    def _wait_for_choice(self) -> None:
        """Decide nothing until this server belongs to another line than now, or takes over by hand."""
        line = newest(self.chain)
        if self.table.last_index and self._waits_on != line:
            self._waits_on = line
            self._log.warn("This server decides nothing: {reason}", reason=NOBODY_TEACHES)
            self.table.withhold(NOBODY_TEACHES, lambda: newest(self.chain) != line)

    async def _learn(self, told: Told) -> None:
        """Belong to the other's line from now on, and decide nothing until this journal tells of it."""
        self._deciding = True
        before = self.chain
        try:
            if self.table.last_index:
                self.table.withhold(LEARNS, self._has_learned)
            await self._keep(chain=told.chain)
        finally:
            self._deciding = False
        # Who holds no table has promised nothing, whatever it was told and by whom.
        fork = fork_between(before, told.chain) if contains(told.chain, newest(before)) else None
        self.on_learned(fork.index if fork is not None else 0)
        self._log.warn(
            "The farm went on without this server, since a takeover that {name} tells of; it learns what happened.",
            name=told.name,
        )

    async def _end(self, told: Told, verdict: Verdict) -> None:
        """Take part in nothing any more."""
        self._deciding = True
        fork = told.chain[-1]
        rows = {server.id: server for server in self.servers()}
        row = rows.get(told.first) or rows.get(told.server)
        stopped = Stopped(
            verdict=verdict.value,
            line=fork.line,
            index=fork.index,
            term=fork.term,
            server=row.id if row is not None else told.server,
            name=row.name if row is not None else told.name,
            address=str(row.client_address) if row is not None else "",
        )
        try:
            self.table.withhold(_sentence(stopped.reason), lambda: False)
            await self._keep(stopped=stopped)
        finally:
            self._deciding = False
        self._log.critical(
            "This server stops writing: {reason}. Cure: {cure}.", reason=stopped.reason, cure="; ".join(stopped.cures)
        )
        self.on_change()

    async def _keep(self, **changes: Any) -> None:
        """Write it down, then go by it."""
        await self._turns.acquire()
        try:
            await self._write_down(evolve(self._memory, **changes).to_text())
        except CancelledError:
            raise
        except Exception:
            # As for the journal itself: what cannot be written must not be acted on.
            self.on_fatal(Failure())
            raise
        finally:
            self._turns.release()
        self._memory = evolve(self._memory, **changes)

    async def _write_down(self, text: str) -> None:
        """Write the note; a full disk is waited for, as with the journal."""
        while True:
            try:
                await self.run_in_thread(self.notes.set_note, NOTE, text)
                return
            except (sqlite3.Error, OSError) as error:
                if not is_full(error):
                    raise
            await deferLater(self.clock, FULL_RETRY)

    # Taking over.

    def begin(self, position: tuple[int, int]) -> Deferred[None]:
        """This server takes over where its journal ends: from this turn on it listens to nobody of its old line.

        `position` is the term and the index of the last entry. May be called again, when there are more. Fires when
        it is written down, which a takeover by hand waits for.
        """
        term, index = position
        before = self._memory.intended
        fork = Fork(before.line if before is not None else f"{self.random.getrandbits(128):032x}", index, term)
        self._memory = evolve(self._memory, intended=fork, stopped=None)
        self.on_change()
        return Deferred.fromCoroutine(self._keep())

    def abandon(self, stopped: Stopped | None = None) -> Deferred[None]:
        """It came to nothing: back to what was before."""
        self._memory = evolve(self._memory, intended=None, stopped=stopped)
        self.on_change()
        return Deferred.fromCoroutine(self._keep())

    def when_written(self) -> Deferred[None]:
        """Fires when the table tells of the takeover that was begun."""
        if self._memory.intended is None:
            return succeed(None)
        waiter: Deferred[None] = Deferred(lambda d: self._waiting.remove(d) if d in self._waiting else None)
        self._waiting.append(waiter)
        return waiter

    # Rounds.

    def _look(self) -> None:
        now = self.clock.seconds()
        leads = self.table.is_leader and self.table.has_quorum
        if leads and self._memory.intended is None and now - self._down_asked >= DOWN_INTERVAL:
            self._down_asked = now
            for server in self.servers():
                if server.state == "down" and server.id != self.server_id:
                    self.look_at(server.id)
        if self._busy is not None:
            return
        if self._memory.intended is not None and leads and self.table.committed_this_term:
            self._do(self._write(self._memory.intended))
        elif self.learns:
            self._do(self._read())

    def _do(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        busy = Deferred.fromCoroutine(work)
        self._busy = busy if not busy.called else None
        busy.addErrback(self._failed).addCallback(self._rest)

    def _rest(self, _: object) -> None:
        self._busy = None

    async def _read(self) -> None:
        self._settled = _chain_of(await self.run_in_thread(self.notes.read, LINES_KEY, b"", 1))
        self._memory = evolve(self._memory, chain=longer(self._memory.chain, self._settled))

    async def _write(self, fork: Fork) -> None:
        """Tell the table where this line begins."""
        rows = {row.key: row for key in (LINES_KEY, GENERATION_KEY) for row in (await self.table.read(key)).rows}
        before = rows.get(LINES_KEY)
        chain = read_chain(json.loads(before.value)) if before is not None else ()
        if not contains(chain, fork.line):
            chain = (*chain, fork)[-LINES_MAX:]
            generation = rows.get(GENERATION_KEY)
            number = max(int(generation.value) if generation is not None else 0, self.generation()) + 1
            compares = tuple(
                Compare(key, "==", row.revision if (row := rows.get(key)) is not None else 0)
                for key in (LINES_KEY, GENERATION_KEY)
            )
            value = json.dumps([one.as_item() for one in chain]).encode()
            # The epoch may have moved on in what is lost, and chunks have been collected by that: it moves on again.
            puts = (Put(LINES_KEY, value), Put(GENERATION_KEY, str(number).encode()), Put(EPOCH_KEY, b"{}"))
            await self.table.transact(compares, puts)
        self._settled = chain
        await self._keep(chain=chain, intended=None)
        self._log.warn("A new line of the farm's history begins at index {index}.", index=fork.index)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)


def _chain_of(page: Page) -> Chain:
    """The chain in the rows, if they have one."""
    for row in page.rows:
        if row.key == LINES_KEY:
            try:
                return read_chain(json.loads(row.value))
            except ValueError as error:
                raise HistoryError(f"the row {LINES_KEY.decode()} of the table cannot be read: {error}") from None
    return ()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
