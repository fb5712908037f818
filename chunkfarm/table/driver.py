"""Drives the consensus core: time and messages in; the disk, then messages out, then the rows.

There is one save at a time. While the disk works the core goes on collecting, so everything that came in
meanwhile shares the next save (group commit); and messages that promise nothing never wait for it.
"""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

from attrs import define
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.durable import is_broken, is_full
from chunkfarm.table.codec import PAYLOAD_BYTES_MAX, Answer, encode_message
from chunkfarm.table.consensus import LEADER, Consensus
from chunkfarm.table.interface import TableClosed, Unavailable
from chunkfarm.table.journal import Journal, Saved
from chunkfarm.table.links_interface import IConsensusLinks
from chunkfarm.table.recent_rows import RecentRows
from chunkfarm.table.records import Configuration, Message, ReadState, Ready
from chunkfarm.table.rows import events_of
from chunkfarm.table.snapshot_streams import SnapshotStreams
from chunkfarm.table.threads import RunBlocking
from chunkfarm.table.time_limit import TimeLimit
from chunkfarm.table.watches import WatchHub
from chunkfarm.table.withheld import Doubts

APPLY_WITH_APPEND_MAX = 128
"""Committed entries that are applied in the same commit as an append. More are applied after its answer is out."""
READ_ROUND_TIMEOUT = 1.0
"""Seconds until an unanswered read index is asked for again: about an election timeout."""
FULL_RETRY = 1.0
"""Seconds between tries while the disk is full."""
WITHHELD = "withheld"
"""The note beside the table that says why this server is withheld: a restart must not forget it."""
COMMIT_DELAY = 0.01
"""Seconds that followers wait to hear how far is committed, if no entry follows that says it by the way. On a farm
with something to do it saves half of all messages and, on a follower, half of all writes; on another one it is the
time by which watches there hear later of a change."""
BEAT_TICKS = 5
"""Ticks between telling idle watches of the revision."""

T = TypeVar("T")


class Lost(Exception):
    """Leadership was lost before the outcome of a proposal was known: the same one may be sent again."""


class StorageTooSlow(Exception):
    """A write to the journal takes longer than the farm can wait for this server."""


@define
class _Proposal:
    term: int
    outcome: Deferred[Answer]


class Driver:
    """One server's consensus core with everything it moves.

    `on_change` is called after the role, the leader, the term or the configuration has changed; `on_fatal` once,
    when the storage fails and the process must end. Storage that takes longer than `write_limit` seconds has failed.
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
        tick: float,
        rank: Callable[[str], int] | None,
        run_on_disk: RunBlocking,
        run_reads: RunBlocking,
        on_change: Callable[[], None],
        on_fatal: Callable[[Failure], None],
        write_limit: float,
    ) -> None:
        self.id = server_id
        self.full = False
        """Whether the last write found no room on the disk."""
        self.stopped = False
        self._journal = journal
        self._links = links
        self._clock = clock
        self._random = random
        self._interval = tick
        self._rank = rank
        self._on_disk = run_on_disk
        self._run_reads = run_reads
        self._on_change = on_change
        self._on_fatal = on_fatal
        self._write_limit = write_limit
        self._limit = TimeLimit(clock, write_limit, self._too_slow)
        self._saving: Deferred[None] | None = None
        self._pumping = False
        self._again = False
        self._soon: IDelayedCall | None = None
        self._tell: IDelayedCall | None = None
        self._telling = False
        """Whether the followers are told now how far is committed."""
        self._proposals: dict[int, _Proposal] = {}
        self._reads_wanted: list[Deferred[int]] = []
        self._reads_asked: dict[int, tuple[float, list[Deferred[int]]]] = {}
        self._reads_confirmed: list[tuple[int, int, list[Deferred[int]]]] = []
        self._tokens = count(1)
        self._ticks = 0
        self._marking = False
        self._doubts = Doubts()
        self._to_keep = ""
        """The last word on why this server is withheld, for the disk's thread."""
        self.core = self._make_core()
        self.rows = RecentRows(self.core.applied)
        """Rows that were used last, as they are by all that is applied."""
        self._seen: object = None
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock
        before = journal.note(WITHHELD)
        if before:
            self._doubts.add(before, lambda: True)
            self.core.withhold()
        self._streams = SnapshotStreams(self, journal, links, clock, random, run_on_disk, self.reading)
        self.hub = WatchHub(
            self.core.applied, lambda prefix, after, until: self.reading(lambda: journal.changes(prefix, after, until))
        )

    def _make_core(self) -> Consensus:
        loaded = self._journal.load()
        self.caught_up = loaded.caught_up
        return Consensus(
            self.id,
            hard_state=loaded.hard_state,
            snapshot=loaded.snapshot,
            entries=loaded.entries,
            applied=loaded.applied,
            random=self._random,
            rank=self._rank,
        )

    # -- the ends of its life ----------------------------------------------------------------------------

    async def found(self) -> None:
        """Make this server, whose journal is empty, the one voter of a new farm."""
        server_id = self.id
        await self._on_disk(lambda: self._journal.found(server_id))
        self.core = self._make_core()
        self.rows.replace(self.core.applied)
        self.hub.replace(self.core.applied)
        if self._loop.running:
            self.core.campaign()
            self.pump()

    def start(self) -> None:
        """Begin to tick."""
        self._loop.start(self._interval, now=False).addErrback(self.fatal)
        if self.core.configuration.voters == {self.id}:
            # Nobody else can lead, so there is nobody to wait for.
            self.core.campaign()
        self.pump()

    async def stop(self) -> None:
        """Say nothing more to anybody, let the disk finish what it does, and close the journal."""
        self._halt()
        if self._saving is not None:
            await self._saving
        await self._streams.stop()
        await self._on_disk(self._journal.close)

    def _halt(self) -> None:
        """From here on nothing is promised any more: nothing is sent, nobody is answered."""
        if self.stopped:
            return
        self.stopped = True
        if self._loop.running:
            self._loop.stop()
        for call in (self._soon, self._tell):
            if call is not None:
                call.cancel()
        self._soon = self._tell = None
        self._limit.close()
        self.hub.close()
        self._lose_proposals(TableClosed("this server's part of the table is closed"))
        waiting = [
            *self._reads_wanted,
            *(read for _, reads in self._reads_asked.values() for read in reads),
            *(read for _, _, reads in self._reads_confirmed for read in reads),
        ]
        self._reads_wanted, self._reads_asked, self._reads_confirmed = [], {}, []
        for read in waiting:
            if not read.called:
                read.errback(TableClosed("this server's part of the table is closed"))

    def fatal(self, failure: Failure) -> None:
        """The storage failed: nothing that depends on it may be said any more."""
        if not self.stopped:
            self._halt()
            self._on_fatal(failure)

    def reading(self, call: Callable[[], T]) -> Deferred[T]:
        """Read from the disk with this call; a disk that fails it ends the process, and this with `Unavailable`."""

        def failed(failure: Failure) -> Failure:
            if failure.check(sqlite3.Error) is None or failure.value is None or not is_broken(failure.value):
                return failure
            self.fatal(failure)
            return Failure(Unavailable("the disk that holds the table here has failed"))

        return self._run_reads(call).addErrback(failed)

    # -- deciding nothing --------------------------------------------------------------------------------

    @property
    def withheld(self) -> str:
        """Why this server decides nothing for now; empty if it takes part."""
        return self._doubts.reason

    def withhold(self, reason: str, until: Callable[[], bool]) -> None:
        """Decide nothing until `until()` holds and a leader has caught this server up, over restarts too."""
        self._doubts.add(reason, until)
        self.core.withhold()
        self._keep_doubts()
        self.pump()

    def force(self, term: int) -> None:
        """Lead alone, above `term`, because a person says so; raises `ChangeRefused` if there is no table."""
        if self.stopped:
            raise TableClosed("this server's part of the table is closed")
        self.core.force(term)
        self._forget_doubts()
        self.pump()

    def _perhaps_release(self) -> None:
        if not self.core.withheld or not self.core.proven:
            return
        try:
            settled = self._doubts.settled()
        except Exception:
            self._log.failure("while looking whether this server may vote again")
            return
        if settled:
            self.core.release()
            self._forget_doubts()

    def _forget_doubts(self) -> None:
        if self._doubts.reason:
            self._log.info("This server takes part in decisions again.")
            self._doubts.clear()
            self._keep_doubts()

    def _keep_doubts(self) -> None:
        """Write down why this server is withheld, or that it is not any more."""
        self._to_keep = self._doubts.reason
        if not self._loop.running:
            # It must be known before the first message goes out.
            self._journal.set_note(WITHHELD, self._to_keep)
            return

        async def write() -> None:
            # What is so by then: a write that waits for room comes after a later one.
            await self._write(lambda: self._journal.set_note(WITHHELD, self._to_keep))

        Deferred.fromCoroutine(write()).addErrback(self._not_kept)

    def _not_kept(self, failure: Failure) -> None:
        if not self.stopped:
            self.fatal(failure)

    # -- what is asked of it -----------------------------------------------------------------------------

    def propose(self, data: bytes) -> Deferred[Answer]:
        """Propose an entry; fires with its answer once it is applied here.

        Fails with `NotLeader` or `Dropped` (nothing was proposed), or `Lost` (the outcome is unknown).
        """
        return self._propose(lambda: self.core.propose(data))

    def propose_configuration(self, configuration: Configuration) -> Deferred[Answer]:
        """The same for a change of who votes and learns; may also fail with `ChangeRefused`."""
        return self._propose(lambda: self.core.propose_configuration(configuration))

    def drop(self, id: str, seconds: float) -> Deferred[Answer]:
        """Go on without the other one of two voters, if it has not answered for `seconds`; fails like a change.

        Counted in ticks, because a process that is paused counts none. Two ticks may be as close together as
        one of them was late, hence two more than the time asks for.
        """
        ticks = math.ceil(seconds / self._interval) + 2
        return self._propose(lambda: self.core.drop(id, ticks))

    def _propose(self, propose: Callable[[], tuple[int, int]]) -> Deferred[Answer]:
        if self.stopped:
            return fail(TableClosed("this server's part of the table is closed"))
        try:
            term, index = propose()
        except Exception:
            return fail()
        outcome: Deferred[Answer] = Deferred()
        before, self._proposals[index] = self._proposals.get(index), _Proposal(term, outcome)
        if before is not None:
            before.outcome.errback(Lost())
        self._pump_soon()
        return outcome

    def read_index(self) -> Deferred[int]:
        """Fires once this server's rows show everything that was acknowledged before the call.

        Asks again and again until a leader answers; cancel it to stop waiting.
        """
        if self.stopped:
            return fail(TableClosed("this server's part of the table is closed"))
        read: Deferred[int] = Deferred()
        self._reads_wanted.append(read)
        self._pump_soon()
        return read

    def transfer(self, to: str) -> None:
        """Hand leadership to a voter as soon as it has caught up; raises `NotLeader` or `ChangeRefused`."""
        self.core.transfer(to)
        self.pump()

    def take_over(self, leader: str) -> None:
        """Lead alone, the other one of two voters being gone for good; raises `ChangeRefused`."""
        self.core.take_over(leader)
        self.pump()

    def suspect(self, server_id: str) -> None:
        """That server has ended a link: if it leads, see at once whether it still does."""
        if not self.stopped:
            self.core.suspect(server_id)
            self._pump_soon()

    def step(self, message: Message) -> None:
        """Take a message from another server."""
        if self.stopped:
            return
        try:
            self.core.step(message)
        except Exception:
            # The core may have done half of it, so nothing that it says can be trusted any more.
            self.fatal(Failure())
        self._pump_soon()

    def receive_page(self, sender: str, payload: bytes) -> Deferred[None]:
        """Take a page of a snapshot; see `SnapshotStreams.receive`."""
        return self._streams.receive(sender, payload)

    # -- the turn ----------------------------------------------------------------------------------------

    def _pump_soon(self) -> None:
        """Pump before the reactor waits again, once for all that comes in until then.

        Many proposals then go out in one message to each follower, and many messages share one save.
        """
        if self._soon is None and not self._pumping:
            self._soon = self._clock.callLater(0, self._pump_now)
        self._again = True

    def _pump_now(self) -> None:
        self._soon = None
        if self._again:
            self.pump()

    def _tell_commits(self) -> None:
        self._tell = None
        self._telling = True
        self.pump()

    def pump(self) -> None:
        """Do all that the core wants done, until it wants nothing more (or the disk is busy)."""
        self._again = True
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._again and not self.stopped:
                self._again = False
                self._turn()
        finally:
            self._pumping = False

    def _turn(self) -> None:
        self._perhaps_release()
        if self._reads_wanted:
            token, wanted, self._reads_wanted = next(self._tokens), self._reads_wanted, []
            self._reads_asked[token] = (self._clock.seconds(), wanted)
            self.core.read_index(token)
        self._send(self.core.urgent(commits=self._telling))
        self._telling = False
        if self._tell is None and self.core.commit_untold:
            self._tell = self._clock.callLater(COMMIT_DELAY, self._tell_commits)
        self._confirm(self.core.take_reads())
        if self._saving is None and self.core.has_ready():
            saving = Deferred.fromCoroutine(self._save(self.core.ready())).addErrback(self.fatal)
            if not saving.called:
                self._saving = saving
            saving.addCallback(self._saved)
        self._streams.serve(self.core.wants_snapshot())
        self._notice()

    def _saved(self, _: object) -> None:
        self._saving = None
        self.pump()

    def _send(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            payload = encode_message(message)
            if len(payload) > PAYLOAD_BYTES_MAX:
                self._log.error("A message of {size} bytes cannot be sent.", size=len(payload))
                continue
            self._links.send(message.to, payload)

    async def _save(self, ready: Ready) -> None:
        """One Ready: make durable, send, apply."""
        promises = bool(ready.entries or ready.snapshot is not None or ready.hard_state is not None)
        later = promises and len(ready.committed) > APPLY_WITH_APPEND_MAX
        saved = Saved()
        if promises or ready.committed:
            saved = await self._write(lambda: self._journal.save(ready, apply=not later))
        if self.stopped:
            return
        # Before anybody can hear of it, so that nobody finds a row here that is older than what was told.
        if ready.snapshot is not None:
            self.rows.replace(ready.snapshot.index)
        self.rows.apply(saved.applied, saved.revision)
        self._send(ready.messages)
        if later:
            saved = await self._write(lambda: self._journal.save(Ready(committed=ready.committed)))
            if self.stopped:
                return
            self.rows.apply(saved.applied, saved.revision)
        self.core.persisted(ready)
        if ready.snapshot is not None:
            self._streams.installed()
            self.hub.replace(ready.snapshot.index)
            for index in [index for index in self._proposals if index <= ready.snapshot.index]:
                self._proposals.pop(index).outcome.errback(Lost())
        self._applied(saved)
        self._confirm(ready.reads)
        if saved.compact_to:
            await self._compact(saved.compact_to)

    async def _compact(self, index: int) -> None:
        """Cut the log, but not behind what a follower is about to need after its snapshot."""
        index = min(index, self._streams.oldest_index(index))
        await self._write(lambda: self._journal.compact(index))
        if not self.stopped:
            self.core.compact(index)

    async def _write(self, call: Callable[[], T]) -> T:
        """Run a write on the disk thread. A full disk is waited for; a slow or a broken one is the end."""
        while True:
            limited = self._limit.begin()
            try:
                result = await self._on_disk(call)
            except CancelledError:
                raise
            except (sqlite3.Error, OSError) as error:
                if not is_full(error):
                    raise
                self._found_full()
            else:
                self.full = False
                return result
            finally:
                self._limit.end(limited)
            await deferLater(self._clock, FULL_RETRY)
            if self.stopped:
                raise TableClosed("this server's part of the table is closed")

    def _too_slow(self) -> None:
        self.fatal(Failure(StorageTooSlow(f"a write to the journal takes more than {self._write_limit} s")))

    def _found_full(self) -> None:
        """Until there is room this server acknowledges nothing, so somebody else should lead."""
        if not self.full:
            self._log.error("The disk that holds the table is full; this server waits for room.")
        self.full = True
        if self.core.role == LEADER and (to := self._who_has_room()):
            self.core.transfer(to)
            self._send(self.core.urgent())

    def _who_has_room(self) -> str:
        """On a leader whose own disk is full: a voter to lead instead; empty where the others could not elect it.

        An election has to be written down by a majority. Where that has no room either, it would only end the lead of
        this server, which at least tells what the table says. Who has written what this server could not has room.
        """
        core = self.core
        if core.log.stable == core.last_index:
            return ""
        able = {
            id
            for id, one in core.progress.items()
            if one.recently_active and not one.withheld and one.match == core.last_index
        }
        return min(able & core.configuration.voters) if core.is_quorum(able) else ""

    # -- outcomes ----------------------------------------------------------------------------------------

    def _applied(self, saved: Saved) -> None:
        """Tell watches, then whoever proposed, then the reads that waited for these entries."""
        if saved.applied:
            changes = [
                (done.index, events_of(done.index, done.operations)) for done in saved.applied if done.operations
            ]
            self.hub.publish(saved.revision, changes)
        for done in saved.applied:
            proposal = self._proposals.pop(done.index, None)
            if proposal is None:
                continue
            if proposal.term == done.term:
                proposal.outcome.callback(done.answer)
            else:
                proposal.outcome.errback(Lost())
        while self._reads_confirmed and self._reads_confirmed[0][0] <= self.core.applied:
            self._answer_reads(heappop(self._reads_confirmed)[2])

    def _confirm(self, reads: tuple[ReadState, ...]) -> None:
        for read in reads:
            _, waiting = self._reads_asked.pop(read.token, (0.0, []))
            if read.index > self.core.applied:
                heappush(self._reads_confirmed, (read.index, read.token, waiting))
            else:
                self._answer_reads(waiting)

    def _answer_reads(self, reads: list[Deferred[int]]) -> None:
        for read in reads:
            # It may have been asked for twice.
            if not read.called:
                read.callback(self.core.applied)

    def _lose_proposals(self, error: Exception, after: int = 0) -> None:
        for index in [index for index in self._proposals if index > after]:
            self._proposals.pop(index).outcome.errback(error)

    def _notice(self) -> None:
        """Tell of what has changed about who leads and who votes."""
        core = self.core
        seen = (core.role, core.leader, core.term, core.configuration, core.withheld)
        if seen == self._seen:
            return
        self._seen = seen
        if core.role != LEADER:
            # What is committed will be applied and answered; of the rest nobody knows yet.
            self._lose_proposals(Lost(), after=core.commit)
        self._tell_change()

    def _tell_change(self) -> None:
        try:
            self._on_change()
        except Exception:
            self._log.failure("while telling of a change of leader or voters")

    # -- time --------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticks += 1
        self.core.tick()
        long_ago = self._clock.seconds() - READ_ROUND_TIMEOUT
        for token, (asked, reads) in list(self._reads_asked.items()):
            if all(read.called for read in reads):
                del self._reads_asked[token]
            elif asked <= long_ago:
                # An answer to the old question is as good, and on a slow way always the first to come.
                self._reads_asked[token] = (math.inf, reads)
                self._reads_wanted += [read for read in reads if not read.called]
        if self._ticks % BEAT_TICKS == 0:
            self.hub.beat()
        if not self.caught_up and not self._marking and self.id in self.core.configuration.members:
            self._marking = True
            Deferred.fromCoroutine(self._catch_up()).addErrback(self.fatal)
        self.pump()

    async def _catch_up(self) -> None:
        """A new member's rows may be read stale only after they once were as new as the leader's."""
        await self.read_index()
        await self._write(self._journal.mark_caught_up)
        self.caught_up = True
        self._marking = False
        self._tell_change()
