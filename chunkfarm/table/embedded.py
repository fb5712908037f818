"""The engine `embedded`: the table kept by the masters themselves.

Every server has one. On masters and learners it holds rows and takes part in the consensus; on all others it
sends transactions and reads on to the leader, and watches through a server that holds rows. Nobody else needs
to know which of the two a server is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, TimeoutError, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.errors import FarmError, InvalidRequest, LimitExceeded
from chunkfarm.table.borrowed import BorrowedWatch
from chunkfarm.table.codec import (
    Answer,
    AnswerKind,
    OpenSession,
    ReadRequest,
    Transaction,
    check_transaction,
    decode_answer,
    decode_page,
    encode_read,
    encode_request,
)
from chunkfarm.table.consensus import LEADER, ChangeRefused, NotLeader
from chunkfarm.table.courier import Carried, Courier
from chunkfarm.table.driver import Driver, Lost
from chunkfarm.table.for_others import ForOthers
from chunkfarm.table.framing import CodecError
from chunkfarm.table.interface import (
    KEY_BYTES_MAX,
    READ_LIMIT_MAX,
    Compacted,
    Compare,
    Conflict,
    ITable,
    IWatch,
    Operation,
    Page,
    Put,
    Replaced,
    TableClosed,
    TableError,
    Unavailable,
    of_one,
)
from chunkfarm.table.journal import Journal
from chunkfarm.table.lines import Past
from chunkfarm.table.links_interface import IConsensusLinks
from chunkfarm.table.own_rows import OwnRows
from chunkfarm.table.progress import REPLICATE, Progress
from chunkfarm.table.records import Configuration, Message, Reasons
from chunkfarm.table.sessions import Session, Sessions
from chunkfarm.table.threads import Gathered, OneThread, RunBlocking
from chunkfarm.threads import Threads

__all__ = ["ChangeRefused", "EmbeddedTable", "IConsensusLinks", "NotLeader"]

PATIENCE = 15.0
"""Seconds for which a transaction or a read looks for a leader: longer than elections, shorter than the 20 s after
which the command line asks another server, so that it still hears why there is none."""
LAST_KNOWN_SECONDS = 1.0
"""For those that hold rows to say what they last knew: somebody waits who has waited for a leader before."""
LAST_KNOWN_AGAIN_SECONDS = 0.1
"""For those of them that did not answer such a question a moment ago: who lives answers in a fraction of that."""
LAST_KNOWN_QUIET_SECONDS = 10.0
"""A moment: so often they are waited for as long as others, for whoever looks at many files one after the other."""
CAUGHT_UP_LAG = 256
"""Entries by which a member may lag and still count as caught up: what is under way on a busy farm."""


def _forget(_: Failure) -> None:
    """The storage failed, and nobody asked to be told."""


@implementer(ITable)
class EmbeddedTable:
    """This server's part of the table.

    `journal` is open; it is closed by `stop`. `run_on_disk` and `run_reads` run blocking calls, each one at a
    time and in order (default: a thread each). `rank` gives a server's place in the line of seniority.
    `on_change` is called when role, leader, term or configuration have changed. `on_fatal` is called once when
    the storage fails, or when a write takes more than `write_limit` seconds: the process must end then, because
    the table says nothing more.
    """

    _log = Logger()

    def __init__(
        self,
        server_id: str,
        journal: Journal,
        links: IConsensusLinks,
        clock: IReactorTime,
        random: random.Random,
        *,
        tick: float = 0.1,
        rank: Callable[[str], int] | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_fatal: Callable[[Failure], None] = _forget,
        run_on_disk: RunBlocking | None = None,
        run_reads: RunBlocking | None = None,
        write_limit: float = 10.0,
        client_id: str | None = None,
        threads: Callable[[Any, int, str], Threads] = Threads,
        observe: Callable[[Message, int, int], None] = lambda message, term, answers: None,
        on_committed: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`observe` sees each message before the core takes it, with the core's term and count of answers.

        `on_committed` is told of each transaction of this server that took effect, and how many seconds it took.
        """
        self._on_committed = on_committed
        self.id = server_id
        self._links = links
        self._clock = clock
        self._on_change = on_change
        self._make_threads = threads
        self._threads: list[OneThread] = []
        self._journal = journal
        self._run_reads = Gathered(self._thread("table-reads"), clock) if run_reads is None else run_reads
        self._client = client_id or f"{random.getrandbits(128):032x}"
        self._expired = 0
        self._sessions = Sessions(self._open_session)
        self._courier = Courier(server_id, clock)
        self._stopping: Deferred[None] | None = None
        self._held_rows = False
        self._borrowed: dict[BorrowedWatch, None] = {}
        """In the order in which they began, so that what comes of them has an order."""
        self._quiet: dict[str, float] = {}
        """Servers that did not say what they last knew, with the time up to which they are hardly waited for."""
        self._refusal = ""
        self._put_out = False
        """Whether the first has said that this server is no member, and no leader has been heard since."""
        self._driver = Driver(
            server_id,
            journal,
            links,
            clock,
            random,
            tick=tick,
            rank=rank,
            run_on_disk=self._thread("table-disk") if run_on_disk is None else run_on_disk,
            run_reads=self._run_reads,
            on_change=self._changed,
            on_fatal=on_fatal,
            write_limit=write_limit,
        )
        self._rows = OwnRows(self._driver, journal)
        self.for_others = ForOthers(self, self._driver, self._rows, clock, observe)
        """What other servers ask of it."""

    def _thread(self, name: str) -> OneThread:
        thread = OneThread(self._clock, name, self._make_threads)
        self._threads.append(thread)
        return thread

    # -- its life ----------------------------------------------------------------------------------------

    def found(self) -> Deferred[None]:
        """Make this server, whose journal is empty, the one voter of a new farm. Durable when it fires.

        It leads at once if started, else with `start`. Fails with `JournalError` if the journal is not empty.
        """
        return Deferred.fromCoroutine(self._driver.found())

    def start(self) -> None:
        """Begin to take part."""
        self._driver.start()

    def stop(self) -> Deferred[None]:
        """Promise nothing more, let the disk finish, close the journal. What is under way fails with `TableClosed`."""
        result: Deferred[None] = Deferred()
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self._stop())
            self._stopping.addErrback(lambda failure: self._log.failure("while closing the table", failure))

        def stopped(_: None) -> None:
            result.callback(None)

        self._stopping.addCallback(stopped)
        return result

    async def _stop(self) -> None:
        try:
            await self._driver.stop()
        finally:
            self._courier.close()
            for thread in self._threads:
                thread.stop()

    # -- what others see of it ---------------------------------------------------------------------------

    @property
    def role(self) -> str:
        return self._driver.core.role

    @property
    def is_leader(self) -> bool:
        return self._driver.core.role == LEADER and not self._driver.stopped

    @property
    def leader(self) -> str:
        """The server that leads, as far as this one knows; empty if it does not."""
        core = self._driver.core
        if (core.withheld or self.id in core.configuration.learners) and not core.has_quorum:
            # It never stands for election, so it would remember for ever a leader that is gone.
            return ""
        return core.leader if self.is_member or core.role == LEADER else self._links.leader_hint()

    def _whom_to_ask(self) -> str:
        """The leader; without one, whoever is said to lead elsewhere: this server may have been removed."""
        return self.leader or self._links.leader_hint()

    @property
    def term(self) -> int:
        return self._driver.core.term

    @property
    def configuration(self) -> Configuration:
        """Who votes and who learns, committed or not."""
        return self._driver.core.configuration

    @property
    def configuration_index(self) -> int:
        """The entry that made it so."""
        return self._driver.core.configuration_index

    @property
    def reasons(self) -> Reasons:
        """Why this server stood for election last, and ceased to lead, for people."""
        return self._driver.core.reasons

    @property
    def is_member(self) -> bool:
        """Whether this server votes or learns, as far as it knows."""
        return self.id in self._driver.core.configuration.members and not self._put_out

    def heed(self, term: int, members: frozenset[str]) -> None:
        """Take the word of the first, given with its answer to a report, about who the members are.

        A server that is removed is sent nothing any more, not even the change that removed it, so it would
        hold its last rows for current for ever. It votes and answers all the same: this is about where to read.
        """
        core = self._driver.core
        put_out = self.id not in members and term >= core.term and core.role != LEADER and not core.has_quorum
        if put_out != self._put_out:
            self._put_out = put_out
            self._changed()
        # A server that is no member learns who leads from nobody but the first that answers its reports.
        self._courier.hurry()

    @property
    def holds_rows(self) -> bool:
        """Whether this server has the table itself: it is a member, and its rows once were as new as the leader's."""
        return self.is_member and self._driver.caught_up and not self._driver.stopped

    @property
    def revision(self) -> int:
        """Of the rows that this server holds."""
        return self._driver.core.applied

    @property
    def change_pending(self) -> bool:
        """Whether a change of the configuration is not committed yet."""
        return self._driver.core.pending_change

    @property
    def last_index(self) -> int:
        return self._driver.core.last_index

    @property
    def past(self) -> Past:
        """What this server's journal promises, for the judgement between two lines of the farm's history."""
        core = self._driver.core
        # Whoever votes alone has decided with its last entry, although it may not have come to say so.
        alone = core.configuration.voters == {self.id}
        return Past(term=core.term, committed=core.last_index if alone else core.commit, term_at=core.log.term_at)

    @property
    def has_quorum(self) -> bool:
        """Leader: a majority answers. Others: a leader is heard."""
        return self._driver.core.has_quorum

    @property
    def committed_this_term(self) -> bool:
        """Whether this server leads and has committed an entry of its own term."""
        core = self._driver.core
        return core.role == LEADER and core.log.term_at(core.commit) == core.term

    @property
    def withheld(self) -> str:
        """Why this server decides nothing for now, in words; empty if it takes part in decisions."""
        return self._driver.withheld

    @property
    def journal_position(self) -> tuple[int, int]:
        """Term and index of the last entry in this server's log, committed or not.

        Of several logs with one history the greatest position is that of the one that holds all the others have.
        """
        log = self._driver.core.log
        return log.last_term, log.last_index

    @property
    def disk_full(self) -> bool:
        """Whether the table's disk has no room; nothing is acknowledged here until it has."""
        return self._driver.full

    @property
    def stands_still(self) -> bool:
        """Whether the rows here do not follow what a leader that is heard decides, for the table's disk has no room."""
        return self._driver.full and not self.is_leader and self.has_quorum

    def progress(self) -> Mapping[str, Progress]:
        """On the leader: how far every other member is (`match`, `recently_active`); empty elsewhere."""
        core = self._driver.core
        return dict(core.progress) if core.role == LEADER else {}

    def caught_up(self) -> frozenset[str]:
        """On the leader: the members, itself included, that answer and lack nothing but what is under way.

        Without those that are withheld, for they cannot take anybody's place.
        """
        if not self.is_leader:
            return frozenset()
        last = self.last_index
        others = (
            id
            for id, one in self.progress().items()
            if one.recently_active and one.state == REPLICATE and last - one.match <= CAUGHT_UP_LAG and not one.withheld
        )
        return frozenset({self.id, *others})

    def _changed(self) -> None:
        if self._driver.core.has_quorum:
            self._put_out = False
        if self._held_rows and not self.holds_rows:
            self._driver.hub.end_all(Unavailable("this server does not hold the table any more"))
        if not self._held_rows and self.holds_rows:
            for watch in list(self._borrowed):
                watch.bring_home()
        self._held_rows = self.holds_rows
        self._courier.hurry()
        self._on_change()

    # -- leading -----------------------------------------------------------------------------------------

    def propose_configuration(self, configuration: Configuration) -> Deferred[None]:
        """Change the role of one server; fires when that is committed.

        Fails with `ChangeRefused` or `NotLeader` when nothing was changed, and with `Unavailable` when
        leadership was lost on the way.
        """

        return self._changing(self._driver.propose_configuration(configuration))

    def drop(self, server_id: str, seconds: float) -> Deferred[None]:
        """Go on without the other one of two voters, which has not answered for `seconds`; fires when committed.

        Fails like `propose_configuration`; with `ChangeRefused` also where that is not safe (see the core).
        """
        return self._changing(self._driver.drop(server_id, seconds))

    def suspect(self, server_id: str) -> None:
        """That server has ended a link by itself. If it leads, the others need not wait until it is silent for long."""
        self._driver.suspect(server_id)

    def take_over(self, leader: str) -> None:
        """Lead alone, the other one of two voters being gone for good (see `survivor`); raises `ChangeRefused`."""
        self._driver.take_over(leader)

    def take_over_by_force(self, term_at_least: int) -> None:
        """Lead alone in a term above `term_at_least`, because a person says that the majority is lost for ever.

        This server becomes the one voter, with its whole log, what is not known to be committed included, and
        leads once that is durable; `is_leader` tells. A learner may, and one that is withheld, which so is
        released. Raises `ChangeRefused` if there is no table here, and `TableClosed` after `stop`. Nothing in
        here keeps the others from going on too, should they live.
        """
        self._driver.force(term_at_least)

    def withhold(self, reason: str, until: Callable[[], bool]) -> None:
        """Decide nothing for now: follow and acknowledge, but do not lead, stand for election, vote or count.

        `reason` is words for people. It ends when `until()` holds, which is looked at after each word of a
        leader and after what is applied, and a leader has since caught this server up with all that was decided
        (`withheld.Proof`); or by `take_over_by_force`. Several reasons may hold at once; each must come to its
        end. A restart does not forget it: then the same reason stands until a leader has caught this server up.
        Safe at a start only if called before `start`. Blocks for a write then; later the disk's thread does it.
        """
        self._driver.withhold(reason, until)

    def refuse_writes(self, reason: str) -> None:
        """Let no transaction of this server be tried any more, for that reason; an empty one allows them again."""
        self._refusal = reason

    def end_watches(self, reason: str) -> None:
        """End all watches that run here with `Unavailable`, because of what is told there."""
        self._driver.hub.end_all(Unavailable(reason))

    def _changing(self, change: Deferred[Answer]) -> Deferred[None]:
        def lost(failure: Failure) -> None:
            failure.trap(Lost)
            raise Unavailable("leadership was lost before the change was committed")

        return change.addCallbacks(lambda _: None, lost)

    def transfer(self, to: str) -> None:
        """Hand leadership to the voter `to` as soon as it has caught up; `NotLeader` or `ChangeRefused`."""
        self._driver.transfer(to)

    # -- ITable ------------------------------------------------------------------------------------------

    def transact(self, compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> Deferred[int]:
        try:
            check_transaction(compares, operations)
        except FarmError:
            return fail()
        if self._refusal:
            return fail(Unavailable(self._refusal))
        return Deferred.fromCoroutine(self._transact(compares, operations))

    def replace(self, key: bytes, value: bytes, compares: tuple[Compare, ...] = ()) -> Deferred[Replaced]:
        operations = (Put(key, value),)
        try:
            check_transaction(compares, operations)
        except FarmError:
            return fail()
        if self._refusal:
            return fail(Unavailable(self._refusal))
        return Deferred.fromCoroutine(self._replace(key, compares, operations))

    def read(self, prefix: bytes, after: bytes = b"", limit: int = 1000, stale: bool = False) -> Deferred[Page]:
        if not 0 <= limit <= READ_LIMIT_MAX:
            return fail(InvalidRequest(f"a read asks for 0 to {READ_LIMIT_MAX} rows"))
        if max(len(prefix), len(after)) > KEY_BYTES_MAX:
            return fail(LimitExceeded(f"a key has at most {KEY_BYTES_MAX} bytes"))
        if not stale:
            return Deferred.fromCoroutine(self._read(ReadRequest(prefix, after, limit)))
        if not self.holds_rows:
            return fail(Unavailable("this server holds no rows"))
        return Deferred.fromCoroutine(self._rows.read(ReadRequest(prefix, after, limit)))

    def last_known(self, prefix: bytes, after: bytes = b"", limit: int = 1000) -> Deferred[Page]:
        if self.holds_rows:
            return self.read(prefix, after, limit, stale=True)
        return Deferred.fromCoroutine(self._last_known(encode_read(ReadRequest(prefix, after, limit))))

    def find(self, key: bytes, stale: bool = False) -> Deferred[Page]:
        if len(key) > KEY_BYTES_MAX:
            return fail(LimitExceeded(f"a key has at most {KEY_BYTES_MAX} bytes"))
        if not stale:
            return Deferred.fromCoroutine(self._find(key))
        if not self.holds_rows:
            return fail(Unavailable("this server holds no rows"))
        return Deferred.fromCoroutine(self._rows.find(key))

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        if self._driver.stopped:
            return fail(TableClosed("this server's part of the table is closed"))
        if self.holds_rows:
            if self.committed_this_term and self.has_quorum and from_revision > self.last_index:
                # Whoever asks was told more by a server whose journal was given up: what it knows past the end of
                # this one never happened, and the same numbers will stand for other changes.
                return fail(Compacted(self.revision + 1))
            return self._driver.hub.watch(prefix, from_revision)
        return Deferred.fromCoroutine(self._borrow(prefix, from_revision))

    async def _borrow(self, prefix: bytes, from_revision: int) -> IWatch:
        watch = BorrowedWatch(
            await self._links.watch(prefix, from_revision),
            from_revision,
            lambda revision: self.watch(prefix, revision),
            lambda: self._borrowed.pop(watch, None),
        )
        self._borrowed[watch] = None
        if self.holds_rows:
            watch.bring_home()
        return watch

    # -- transactions ------------------------------------------------------------------------------------

    async def _transact(self, compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> int:
        return (await self._done(compares, operations)).revision

    async def _replace(self, key: bytes, compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> Replaced:
        answer = await self._done(compares, operations)
        # A repeat is not told what it replaced, and a leader of an earlier version tells nobody.
        return Replaced(answer.revision, next((row.revision for row in answer.rows if row.key == key), None))

    async def _done(self, compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> Answer:
        """The answer to a transaction that took effect."""
        began = self._clock.seconds()
        deadline = began + PATIENCE
        while True:
            session = self._sessions.open or await self._sessions.current()
            number = session.take_now() or await self._numbered(session, deadline)
            try:
                request = encode_request(
                    Transaction(session.client, session.epoch, number, session.acknowledged, compares, operations)
                )
                carried = await self._carry(request, deadline)
            finally:
                session.give_back(number)
            answer = carried.answer
            if answer.kind is AnswerKind.DONE:
                self._on_committed(self._clock.seconds() - began)
                return answer
            if answer.kind is AnswerKind.CONFLICT:
                raise Conflict(answer.rows)
            if answer.kind is not AnswerKind.EXPIRED:
                raise TableError("the table does not understand the transaction")
            self._expired += self._sessions.expired(session)
            if carried.sent > 1:
                raise Unavailable("the session has expired; whether the transaction took effect is unknown")
            # It was sent once, and that copy had no effect: a new session may carry it.

    async def _numbered(self, session: Session, deadline: float) -> int:
        try:
            return await session.take().addTimeout(max(0.0, deadline - self._clock.seconds()), self._clock)
        except TimeoutError:
            raise Unavailable("too many transactions of this server are under way") from None

    def _open_session(self) -> Deferred[Session]:
        async def begin() -> Session:
            # A session that expired is followed by one of another name, lest somebody else uses the same name.
            client = f"{self._client}.{self._expired}"
            carried = await self._carry(encode_request(OpenSession(client)), self._clock.seconds() + PATIENCE)
            if carried.answer.kind is not AnswerKind.OPENED:
                raise TableError("the table opens no session")
            return Session(client, carried.answer.revision)

        return Deferred.fromCoroutine(begin())

    async def _carry(self, request: bytes, deadline: float) -> Carried[Answer]:
        return await self._courier.carry(
            self._whom_to_ask,
            lambda: self._driver.propose(request),
            lambda leader: self._links.transact(leader, request).addCallback(decode_answer),
            deadline,
        )

    # -- reads -------------------------------------------------------------------------------------------

    async def _read(self, request: ReadRequest) -> Page:
        return await self._ask(request, lambda: self._rows.read_current(request))

    async def _find(self, key: bytes) -> Page:
        return of_one(await self._ask(ReadRequest(key, b"", 1), lambda: self._rows.find_current(key)), key)

    async def _ask(self, request: ReadRequest, here: Callable[[], Coroutine[Any, Any, Page]]) -> Page:
        """What the leader says, or, on a member, what is read here once the leader has said from where on it may be."""
        carried = await self._courier.carry(
            lambda: self.id if self.is_member and self.has_quorum and not self.stands_still else self._whom_to_ask(),
            lambda: Deferred.fromCoroutine(here()),
            lambda leader: self._links.read(leader, encode_read(request)).addCallback(decode_page),
            self._clock.seconds() + PATIENCE,
            is_read=True,
        )
        return carried.answer

    async def _last_known(self, request: bytes) -> Page:
        holders, now = self._links.holders(), self._clock.seconds()
        self._quiet = {server: until for server, until in self._quiet.items() if until > now}
        # Where nobody else is left there is nobody to be quicker with.
        quiet = self._quiet.keys() if not self._quiet.keys() >= set(holders) else ()
        asked = [
            self._links.read(server, request, stale=True).addTimeout(
                LAST_KNOWN_AGAIN_SECONDS if server in quiet else LAST_KNOWN_SECONDS, self._clock
            )
            for server in holders
        ]
        pages = []
        for server, (success, told) in zip(holders, await DeferredList(asked, consumeErrors=True), strict=True):
            if success:
                self._quiet.pop(server, None)
            elif server not in quiet:
                self._quiet[server] = self._clock.seconds() + LAST_KNOWN_QUIET_SECONDS
            try:
                if success:
                    pages.append(decode_page(told))
                else:
                    self._log.debug("A server that holds rows does not say what it knows: {error}", error=told)
            except CodecError as error:
                self._log.warn("What a server says that it last knew makes no sense: {error}", error=error)
        if not pages:
            raise Unavailable("this server holds no rows, and nobody who does answers")
        return max(pages, key=lambda page: page.revision)
