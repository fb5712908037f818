"""Snapshots on their way: a leader sends its rows to followers that lack log, a follower takes them in."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.durable import is_full
from chunkfarm.links.commands import BadRequest, NotNow
from chunkfarm.table.codec import SnapshotPage, decode_consensus, encode_snapshot_page
from chunkfarm.table.consensus import LEADER
from chunkfarm.table.framing import CodecError
from chunkfarm.table.journal import Journal
from chunkfarm.table.links_interface import IConsensusLinks
from chunkfarm.table.objections import objection
from chunkfarm.table.records import Message, MessageKind, SnapshotMeta
from chunkfarm.table.snapshots import SnapshotError
from chunkfarm.table.threads import RunBlocking

if TYPE_CHECKING:
    from chunkfarm.table.driver import Driver

PAGE_TIMEOUT = 30.0
"""Seconds until a page that is not answered ends its stream."""
RETRY_AFTER = 1.0
"""Seconds until a follower whose snapshot failed is tried again."""
STREAMS_MAX = 2
"""Followers that are sent a snapshot at once: each holds the WAL of the sender as long as it reads."""


class SnapshotStreams:
    """All snapshots that this server sends, and the one it receives."""

    _log = Logger()

    def __init__(
        self,
        driver: Driver,
        journal: Journal,
        links: IConsensusLinks,
        clock: IReactorTime,
        random: random.Random,
        run_on_disk: RunBlocking,
        run_reads: RunBlocking,
    ) -> None:
        self._driver = driver
        self._journal = journal
        self._links = links
        self._clock = clock
        self._random = random
        self._on_disk = run_on_disk
        self._reads = run_reads
        self._sending: dict[str, Deferred[None]] = {}
        self._indexes: dict[str, int] = {}
        self._installing = False
        """A whole snapshot waits for its swap; the second file must not be touched until then."""
        self._writing = False
        """One page at a time, so that nobody begins another snapshot between the last page and its swap."""
        self._told_full = False
        """Whether it has been said that there is no room for a snapshot."""

    # -- sending -----------------------------------------------------------------------------------------

    def serve(self, followers: Sequence[str]) -> None:
        """Begin a stream to each of `followers` that has none."""
        for id in followers:
            if id not in self._sending and len(self._sending) < STREAMS_MAX:
                # Nothing may end before it is noted, so the note comes first.
                self._sending[id] = Deferred()
                stream = Deferred.fromCoroutine(self._serve(id))
                if not stream.called:
                    self._sending[id] = stream
                stream.addErrback(self._stream_failed)

    def oldest_index(self, otherwise: int) -> int:
        """The oldest position of a snapshot that is being sent: its follower will need the log from there."""
        return min(self._indexes.values(), default=otherwise)

    async def stop(self) -> None:
        """End all streams."""
        streams = list(self._sending.values())
        for stream in streams:
            stream.cancel()
        await DeferredList(streams)

    def _stream_failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("while sending a snapshot", failure)

    async def _serve(self, id: str) -> None:
        ok = False
        try:
            await self._send(id)
            ok = True
        except CancelledError:
            raise
        except Exception as error:
            # Links fail in many ways, and each of them means the same: not now.
            self._log.info("Sending the table to {id} failed: {error!r}", id=id, error=error)
            await deferLater(self._clock, RETRY_AFTER)
        finally:
            del self._sending[id]
            self._indexes.pop(id, None)
        if not self._driver.stopped:
            self._driver.core.report_snapshot(id, ok)
            self._driver.pump()

    async def _send(self, id: str) -> None:
        term = self._driver.core.term
        view = await self._reads(self._journal.open_outgoing)
        try:
            self._indexes[id] = view.meta.index
            stream, sequence, last = self._random.getrandbits(62), 0, False
            self._log.info("Sending the table at revision {index} to {id}.", index=view.meta.index, id=id)
            while not last:
                piece = await self._reads(view.next_piece)
                core = self._driver.core
                if core.role != LEADER or core.term != term or id not in core.progress:
                    raise SnapshotError("this server does not lead that one any more")
                last = piece.last
                page = SnapshotPage(
                    stream=stream,
                    sequence=sequence,
                    term=term,
                    meta=view.meta,
                    records=piece.records,
                    last=last,
                    count=piece.count,
                    digest=piece.digest,
                )
                sequence += 1
                await self._links.call(id, encode_snapshot_page(page)).addTimeout(PAGE_TIMEOUT, self._clock)
        finally:
            # Not on the reading thread: a cancelled stream must not wait for anything.
            view.close()

    # -- receiving ---------------------------------------------------------------------------------------

    def receive(self, sender: str, payload: bytes) -> Deferred[None]:
        """Write a page of a snapshot; with the last one the core is told.

        Fails with `BadRequest` or `NotNow`; either way the sender begins anew, if at all.
        """
        try:
            page = decode_consensus(payload)
        except CodecError as error:
            return fail(BadRequest(str(error)))
        assert isinstance(page, SnapshotPage)
        return Deferred.fromCoroutine(self._receive(sender, page))

    async def _receive(self, sender: str, page: SnapshotPage) -> None:
        if self._driver.stopped or self._installing or self._writing:
            raise NotNow("this server cannot take in a snapshot now")
        if page.term < self._driver.core.term:
            raise NotNow("a server of an older term sends a snapshot")
        why = objection(self._message(sender, page.term, page.meta), self._driver.core.term)
        if why:
            raise BadRequest(f"a snapshot makes no sense: {why}")
        self._writing = True
        try:
            complete = await self._on_disk(lambda: self._journal.receive(sender, page))
        except SnapshotError as error:
            raise BadRequest(str(error)) from error
        except (sqlite3.Error, OSError) as error:
            # Nothing depends on the second file, so its failure is not yet that of the journal.
            if not is_full(error):
                self._log.failure("while writing a snapshot")
            elif not self._told_full:
                # It is tried again each second.
                self._told_full = True
                self._log.error("There is no room on the disk for the table, which {sender} sends.", sender=sender)
            raise NotNow("the snapshot cannot be written") from error
        finally:
            self._writing = False
        self._told_full = self._told_full and not complete
        if complete and not self._driver.stopped:
            await self._offer(sender, page.term, page.meta)

    def _message(self, sender: str, term: int, meta: SnapshotMeta) -> Message:
        return Message(kind=MessageKind.SNAPSHOT, sender=sender, to=self._driver.id, term=term, snapshot=meta)

    async def _offer(self, sender: str, term: int, meta: SnapshotMeta) -> None:
        """Let the core decide whether the snapshot that was received is any use."""
        core = self._driver.core
        before = core.log.snapshot
        self._installing = True
        core.step(self._message(sender, term, meta))
        if core.log.snapshot is not before:
            self._log.info(
                "The table is replaced by that of {sender} at revision {index}.", sender=sender, index=meta.index
            )
            self._driver.pump()
            return
        self._driver.pump()
        try:
            await self._on_disk(self._journal.drop_incoming)
        except (sqlite3.Error, OSError):
            # It is of no use to anybody, and the first page of the next one takes it away.
            self._log.failure("while throwing away a snapshot")
        finally:
            self._installing = False

    def installed(self) -> None:
        """The snapshot has been swapped in; another one may come."""
        self._installing = False
