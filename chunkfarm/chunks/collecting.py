"""Deletes the chunks of this disk that no file uses, and never one that somebody relies on.

Nobody can see that a chunk is unused for good: a client may have been told a moment ago that it is here, and name it in
its next COMMIT. So it goes in these steps:

1. Its pin has run out (see `pins`): a convenience for those who are slow, on which no safety hangs.
2. It is condemned. From now on this server says no to whoever asks on behalf of a writer; a PUT of it lifts that.
3. The farm's epoch is read (see `table.epochs`), linearizably.
4. It is waited until the epoch has moved on.
5. The masters are asked, linearizably, whether a file uses it.
6. If none does, and it is condemned still, it is deleted.

Who relies on an answer of this server's got it before 2, and had read the epoch before that: it was not later than the
one read in 3, so after 4 its commit is refused. If it was committed before, 5 sees it. No clock takes part in this.

A crash forgets what was condemned, and everything begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from chunkfarm.chunks.loop import Loop
from chunkfarm.chunks.loose import PREFIXES
from chunkfarm.chunks.repair import Bucket
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.errors import FarmError
from chunkfarm.table.interface import TableError

START_SECONDS = 5.0
AGAIN_SECONDS = 30.0
"""After so long it is tried again what failed, or could not be asked."""
ROUNDS_OF_GRACE = 8
"""So many rounds over the disk in one `collect_grace`: a chunk goes at most so much later than it could."""
ROUND_SECONDS_MIN = 1.0
POLLS_OF_GRACE = 32
"""So often in one `collect_grace` it is asked whether the epoch has moved on, which it does four times in it."""
POLL_SECONDS_MIN, POLL_SECONDS_MAX = 0.5, 60.0
SAVE_SECONDS = 300.0
"""So often the store's clock is saved: what a crash takes from it is added to how long pins last."""
YIELD_SECONDS = 5.0
"""How long it makes room for users before each batch."""
USES_MOST = 1000
"""Digests in one question to the masters."""
DELETE_BATCH = 100
"""Chunks deleted in one go, which takes a disk some ten milliseconds; nobody can store a chunk meanwhile."""
DELETED_A_SECOND = 1000
"""Chunks a second, at most: half a million in ten minutes, of which users feel nothing."""
CONDEMNED_MAX = 250_000
"""Chunks condemned at a time, some 70 MB of memory. What is more waits for the next epoch: a million go in a day."""

Uses = Callable[[Sequence[bytes]], Deferred[Sequence[int]]]
"""How many files use each of these chunks, at most `USES_MOST`; linearizable. Fails with a `FarmError`."""


def round_seconds(grace: float) -> float:
    """The rest between two rounds over the disk."""
    return max(ROUND_SECONDS_MIN, grace / ROUNDS_OF_GRACE)


def poll_seconds(grace: float) -> float:
    """The rest between two looks at the epoch."""
    return min(max(POLL_SECONDS_MIN, grace / POLLS_OF_GRACE), POLL_SECONDS_MAX)


@define
class Round:
    """One round over the disk: where it stands, and when what was condemned on the way may be judged."""

    prefix: int = 0
    """The chunks that begin with this byte come next."""
    condemned: list[bytes] = field(factory=list)
    """What was condemned, and not judged yet."""
    _before: int | None = None
    """The epoch as it was read after the last of them was condemned."""
    _has_passed: bool = False

    @property
    def looks(self) -> bool:
        """Whether there is more to look at before anything is judged."""
        return self._before is None and self.prefix < PREFIXES and len(self.condemned) < CONDEMNED_MAX

    def looked(self, condemned: Sequence[bytes]) -> None:
        """The chunks that begin with `prefix` were looked at, and these of them are condemned now."""
        assert self.looks
        self.prefix += 1
        self.condemned += condemned

    def saw(self, epoch: int) -> None:
        """The epoch was read, linearizably, after all that was said so far."""
        assert not self.looks
        if self._before is None:
            self._before = epoch
        elif epoch > self._before:
            self._has_passed = True

    @property
    def may_judge(self) -> bool:
        """Whether what the masters say from now on is the last word on what is condemned."""
        return self._has_passed

    def judged(self, count: int) -> None:
        """So many of `condemned`, from its end, were deleted or lifted."""
        assert self.may_judge
        del self.condemned[len(self.condemned) - count :]
        if not self.condemned:
            self._before, self._has_passed = None, False

    @property
    def is_over(self) -> bool:
        """Whether everything was looked at and judged."""
        return self.prefix == PREFIXES and not self.condemned


@frozen
class Collected:
    """What has been collected on this server: one record, wherever it is shown."""

    chunks: int = 0
    """Deleted since this process began."""
    bytes: int = 0
    """Of them."""
    condemned: int = 0
    """About to be."""
    paused: str = ""
    """Why it does not go on, as a clause; empty while it does, and while there is nothing to do."""

    def pairs(self) -> list[tuple[str, str]]:
        """As STATUS shows it."""
        told = [
            ("collected", str(self.chunks)),
            ("collected-bytes", str(self.bytes)),
            ("condemned", str(self.condemned)),
        ]
        if self.paused:
            told.append(("collect-paused", self.paused))
        return told


class Collector(Loop):
    """The loop. `uses` asks the masters, `epoch` reads the farm's epoch linearizably: both fail with a `FarmError`.

    `grace` gives `collect_grace` in seconds; `hindered` says why nothing may be done now, or is empty. `last_word` is
    what is asked in place of `uses` right before something is deleted.
    """

    _log = Logger()

    def __init__(
        self,
        store: ChunkStore,
        uses: Uses,
        epoch: Callable[[], Deferred[int]],
        grace: Callable[[], float],
        clock: IReactorTime,
        *,
        busy: Callable[[], bool] = lambda: False,
        hindered: Callable[[], str] = lambda: "",
        last_word: Uses | None = None,
    ) -> None:
        super().__init__(
            clock,
            "collecting chunks that no file uses",
            start_seconds=START_SECONDS,
            failed_seconds=AGAIN_SECONDS,
            busy=busy,
        )
        self._store = store
        self._uses = uses
        self._last_word = last_word or uses
        self._epoch = epoch
        self._grace = grace
        self._hindered = hindered
        self._bucket = Bucket(DELETED_A_SECOND, DELETE_BATCH)
        self._round = Round()
        self._ended_at: float | None = None
        self._failed_at: float | None = None
        self._failed_prefix: int | None = None
        """The chunks at which the disk failed last begin with it."""
        self._saved_at = clock.seconds()
        self._chunks = 0
        self._bytes = 0
        self._paused = ""

    def table_changed(self) -> None:
        """Rows have changed, and options may have."""
        self._wake()

    @property
    def progress(self) -> Collected:
        """What it does now."""
        paused = self._paused or self._made_room
        return Collected(self._chunks, self._bytes, self._store.condemned, paused)

    async def _step(self) -> float:
        now = self._clock.seconds()
        if now - self._saved_at >= SAVE_SECONDS:
            self._saved_at = now
            await self._store.save_clock()
        return min(await self._next(now), SAVE_SECONDS)

    async def _next(self, now: float) -> float:
        if reason := self._hindered():
            self._paused = reason
            return ROUND_SECONDS_MIN
        if self._failed_at is not None and (rest := self._failed_at + self._again() - now) > 0:
            return rest
        self._failed_at = None
        if self._round.is_over:
            return self._between_rounds(now)
        try:
            return await self._go_on()
        except (FarmError, TableError) as error:
            # What is condemned stays so: a master that answers again is asked about it.
            self._paused = str(error)
            self._failed_at = self._clock.seconds()
            return self._again()

    def _again(self) -> float:
        return min(AGAIN_SECONDS, round_seconds(self._grace()))

    def _between_rounds(self, now: float) -> float:
        self._paused = ""
        if self._ended_at is None:
            self._ended_at = now
        rest = self._ended_at + round_seconds(self._grace()) - now
        if rest <= 0:
            self._round, self._ended_at = Round(), None
        return max(0.0, rest)

    async def _go_on(self) -> float:
        if self._round.looks:
            await self._look_or_pass()
            self._paused = ""
            return 0.0
        if not self._round.condemned:
            return 0.0
        if not self._round.may_judge:
            self._round.saw(await self._epoch())
            if not self._round.may_judge:
                self._paused = (
                    "what is condemned waits until nobody can rely on it any more, a quarter of collect_grace"
                )
                return poll_seconds(self._grace())
        self._paused = ""
        await self._judge()
        return 0.0

    async def _look_or_pass(self) -> None:
        """If the disk fails twice at the chunks that begin with one byte, they wait for the next round."""
        try:
            await self._look()
        except (CancelledError, FarmError, TableError):
            raise
        except Exception:
            if self._failed_prefix != self._round.prefix:
                self._failed_prefix = self._round.prefix
                raise
            self._log.failure("while collecting chunks of {prefix:02x}, passed over", prefix=self._round.prefix)
            self._round.looked(())

    async def _look(self) -> None:
        """Condemn what is unused, and has been for long enough, of the chunks that begin with one byte."""
        prefix = self._round.prefix
        digests = await self._store.scan(prefix)
        unused: list[bytes] = []
        condemned: list[bytes] = []
        for start in range(0, len(digests), USES_MOST):
            await self._make_room(YIELD_SECONDS)
            before = self._clock.seconds()
            # What is used is not condemned, or its holders would say no to all who name it again.
            used, found = await self._used(digests[start : start + USES_MOST])
            # It may have been condemned when this was begun before, and failed.
            self._store.lift(used)
            unused += found
            condemned += await self._store.condemn(found)
            await self._breathe(before)
        await self._store.tidy_pins(prefix, unused)
        self._round.looked(condemned)

    async def _judge(self) -> None:
        """Delete what nobody uses of the last that were condemned; the others stay."""
        asked = self._round.condemned[-USES_MOST:]
        used, unused = await self._used(asked)
        self._store.lift(used)
        for start in range(0, len(unused), DELETE_BATCH):
            await self._make_room(YIELD_SECONDS)
            before = self._clock.seconds()
            batch = unused[start : start + DELETE_BATCH]
            if (delay := self._bucket.take(before, len(batch))) > 0:
                await deferLater(self._clock, delay)
            before = self._clock.seconds()
            sizes = await self._store.delete_condemned(batch)
            self._chunks += len(sizes)
            self._bytes += sum(sizes)
            await self._breathe(before)
        self._round.judged(len(asked))

    async def _used(self, digests: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Those that files use, and those that none does."""
        counts = await (self._last_word if self._round.may_judge else self._uses)(digests)
        used = [digest for digest, count in zip(digests, counts, strict=True) if count]
        return used, [digest for digest, count in zip(digests, counts, strict=True) if not count]
