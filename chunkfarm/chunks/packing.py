"""Who appends to the packs: everything that is waiting, with one fsync (group commit).

While the disk works on one batch, the next one gathers. Between two batches a pack that is mostly unused is
written anew, one small step at a time, so that it delays nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chunkfarm.chunks.packs import Given, Packs
from chunkfarm.chunks.pieces import Buffer, RunInThread
from chunkfarm.durable import is_full
from chunkfarm.errors import Mismatch
from chunkfarm.model import MIB

BATCH_BYTES = 4 * MIB
"""Bytes in one batch: what a disk takes in the time of a few fsyncs."""
BATCH_MOST = 512
"""Chunks in one batch: hashing and indexing them takes some ten milliseconds."""


class Packing:
    """Puts small chunks into packs by `append`, which is that of the packs or does it with more care.

    `on_lost` is told of each chunk that is found damaged on the way.
    """

    _log = Logger()

    def __init__(
        self,
        packs: Packs,
        append: Callable[[Sequence[Given]], list[bytes | Mismatch]],
        run_in_thread: RunInThread,
        on_lost: Callable[[bytes, str], None],
    ) -> None:
        self._packs = packs
        self._append_now = append
        self._run = run_in_thread
        self._on_lost = on_lost
        self._waiting: deque[tuple[Given, Deferred[bytes]]] = deque()
        self._rewriting: tuple[int, int] | None = None
        """The pack that is written anew, and where the next step begins."""
        self._stepping = False
        """Whether a thread is at such a step."""
        self._failed: set[int] = set()
        """Packs that could not be written anew: the others come first."""
        self._working = False
        self._stopped = False

    def put(self, digest: bytes | None, data: Buffer, checked: bool) -> Deferred[bytes]:
        """Fires with the digest once the chunk is durable; fails as `ChunkStore.put`."""
        stored: Deferred[bytes] = Deferred()
        self._waiting.append(((digest, data, checked), stored))
        self._go_on()
        return stored

    def tidy(self) -> None:
        """Look for packs that are mostly unused, and write them anew."""
        if self._rewriting is not None or self._stepping or self._stopped:
            # It is looked again after the last step.
            return
        number = self._packs.wasteful(self._failed)
        if number is None and self._failed:
            self._failed.clear()
            number = self._packs.wasteful()
        if number is not None:
            self._rewriting = (number, 0)
            self._go_on()

    def stop(self) -> None:
        """Write no more packs anew. What was put is stored."""
        self._stopped = True

    def _go_on(self) -> None:
        if not self._working:
            self._working = True
            Deferred.fromCoroutine(self._work()).addErrback(
                lambda failure: self._log.failure("while packing chunks", failure)
            )

    async def _work(self) -> None:
        try:
            while self._waiting or (self._rewriting is not None and not self._stopped):
                if self._waiting:
                    await self._append()
                if self._rewriting is not None and not self._stopped:
                    await self._rewrite(*self._rewriting)
        finally:
            self._working = False

    async def _append(self) -> None:
        batch: list[tuple[Given, Deferred[bytes]]] = []
        size = 0
        while self._waiting and len(batch) < BATCH_MOST and size < BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0][1])
        try:
            answers = await self._run(self._append_now, [given for given, _ in batch])
        except Exception as error:
            for _, stored in batch:
                _fire(stored, error)
            return
        for (_, stored), answer in zip(batch, answers, strict=True):
            _fire(stored, answer)

    async def _rewrite(self, number: int, offset: int) -> None:
        self._rewriting, self._stepping = None, True
        try:
            following, lost = await self._run(self._packs.rewrite, number, offset)
        except Exception as error:
            # Nothing is lost: the pack stays as it is, and is tried again when something else is removed, after others.
            self._failed.add(number)
            if is_full(error):
                self._log.warn("Pack {number} could not be written anew: {error}", number=number, error=error)
            else:
                self._log.failure("while writing pack {number} anew", number=number)
            if (other := self._packs.wasteful(self._failed)) is not None:
                self._rewriting = (other, 0)
            return
        finally:
            self._stepping = False
        for digest in lost:
            self._on_lost(digest, f"its record in pack {number} was damaged")
        if following is not None:
            self._rewriting = (number, following)
        else:
            self.tidy()


def _fire(stored: Deferred[bytes], answer: bytes | Exception) -> None:
    """Tell whoever waits; one that was cancelled waits no more."""
    if stored.called:
        return
    if isinstance(answer, Exception):
        stored.errback(answer)
    else:
        stored.callback(answer)
