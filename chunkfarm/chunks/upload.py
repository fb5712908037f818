"""A file on its way in: cut into chunks, written a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import Buffer, Digests
from chunkfarm.chunks.transfer import ChunkReceipt, Transfer
from chunkfarm.links.interface import HAVE_DIGESTS_MAX
from chunkfarm.model import DIGEST_LENGTH, KIB, split_digests

IN_FLIGHT_MAX = 3
"""Chunks of one upload that are being written: one is hashed while another travels and a third is fsynced."""
KEPT_PIECE_MIN = 16 * KIB
"""Pieces from here on are kept as they come and joined once. Smaller ones are copied together: each would keep
alive the whole read that it was cut from, and a client chooses how small they are."""


@frozen
class Uploaded:
    """What an upload stored: the manifest to commit, the fewest copies of any chunk, and all holders."""

    size: int
    chunk_size: int
    digests: Digests
    copies: int
    """When each chunk was acknowledged; 0 for an empty file, which has no chunk."""
    holders: tuple[str, ...]
    epoch: int = 0
    """The farm's epoch (see `table.epochs`) as it was known before the first chunk was acknowledged."""


class Upload:
    """Takes bytes as they come, and holds at most about four chunks of them.

    `on_pause` says that no more bytes should come until `on_resume`; bytes that come all the same are kept.
    """

    def __init__(
        self,
        transfer: Transfer,
        chunk_size: int,
        on_pause: Callable[[], None] = lambda: None,
        on_resume: Callable[[], None] = lambda: None,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        """`epoch` is the farm's epoch as this server knows it."""
        assert chunk_size > 0
        self._epoch_now = epoch
        self._epoch = epoch()
        self.size = 0
        """Bytes taken so far."""
        self.failure: Failure | None = None
        """Why this upload has failed, as soon as it has: a port need not take the rest of the bytes."""
        self._transfer = transfer
        self.chunk_size = chunk_size
        """Of each chunk but the last."""
        self._on_pause = on_pause
        self._on_resume = on_resume
        self._paused = False
        self._parts: list[Buffer] = []
        """Of the chunk that is coming in."""
        self._length = 0
        """Their bytes."""
        self._full: deque[Buffer] = deque()
        self._in_flight: set[Deferred[ChunkReceipt]] = set()
        self._in_flight_bytes = 0
        self._digests = bytearray()
        self._copies = 0
        self._holders: set[str] = set()
        self._finishing: Deferred[Uploaded] | None = None
        self._kept_in = self._epoch
        """The epoch in which the holders were last asked to keep what is stored."""
        self._keeping: Deferred[None] | None = None

    @property
    def held(self) -> int:
        """Bytes of it in memory."""
        return self._length + sum(map(len, self._full)) + self._in_flight_bytes

    def write(self, data: Buffer) -> None:
        """Take bytes; those in memory that may change are copied.

        After a failure they are dropped, and `finish` tells why.
        """
        assert self._finishing is None, "nothing is written after finish()"
        self.size += len(data)
        if self.failure is not None:
            return
        rest = memoryview(data)
        while rest:
            piece = rest[: self.chunk_size - self._length]
            rest = rest[len(piece) :]
            self._keep(piece)
            if self._length == self.chunk_size:
                self._cut()
        self._go_on()

    def _keep(self, piece: memoryview) -> None:
        self._length += len(piece)
        if len(piece) >= KEPT_PIECE_MIN:
            self._parts.append(piece if piece.readonly else bytes(piece))
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += piece
        else:
            self._parts.append(bytearray(piece))

    def _cut(self) -> None:
        """What has come is a chunk."""
        self._full.append(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))
        self._parts, self._length = [], 0

    def finish(self) -> Deferred[Uploaded]:
        """Store the rest; fires when every chunk is acknowledged, fails as `Transfer.write` does.

        Cancelling it is the same as `abort`.
        """
        assert self._finishing is None, "finish() is called once"
        self._finishing = Deferred(lambda _: self.abort())
        finishing = self._finishing
        if self._length:
            self._cut()
        self._go_on()
        return finishing

    def abort(self) -> None:
        """Give up: whoever uploads has gone away. Harmless after the end."""
        self._fail(Failure(CancelledError()))

    def _go_on(self) -> None:
        while self._full and len(self._in_flight) < IN_FLIGHT_MAX and self.failure is None:
            self._send(self._full.popleft())
        paused = bool(self._full)
        if paused != self._paused:
            self._paused = paused
            (self._on_pause if paused else self._on_resume)()
        if self._finishing is None or self._finishing.called:
            return
        if self.failure is not None:
            self._finishing.errback(self.failure)
        elif not self._full and not self._in_flight:
            self._finishing.callback(self._uploaded())

    def _send(self, data: Buffer) -> None:
        place = len(self._digests)
        self._digests += bytes(DIGEST_LENGTH)
        writing = self._transfer.write(data)
        self._in_flight.add(writing)
        self._in_flight_bytes += len(data)

        def done(receipt: ChunkReceipt) -> None:
            self._digests[place : place + DIGEST_LENGTH] = receipt.digest
            self._copies = min(self._copies or len(receipt.holders), len(receipt.holders))
            self._holders.update(receipt.holders)
            self._keep_stored()

        def ended(_: None) -> None:
            self._in_flight.discard(writing)
            self._in_flight_bytes -= len(data)
            self._go_on()

        writing.addCallback(done).addErrback(self._fail).addCallback(ended)

    def _keep_stored(self) -> None:
        """Have the holders keep what an upload that takes long has stored: they promise it for `collect_grace` only."""
        epoch = self._epoch_now()
        if epoch != self._kept_in and self._keeping is None:
            self._kept_in = epoch
            self._keeping = Deferred.fromCoroutine(self._hold_stored(bytes(self._digests)))
            # A holder that was not reached may give its copies up; whoever commits asks all of them again.
            self._keeping.addErrback(lambda failure: None).addCallback(self._kept)

    def _kept(self, _: None) -> None:
        self._keeping = None

    async def _hold_stored(self, raw: bytes) -> None:
        step = HAVE_DIGESTS_MAX * DIGEST_LENGTH
        for start in range(0, len(raw), step):
            # Those that are still being written stand there as zeros.
            stored = [digest for digest in split_digests(raw[start : start + step]) if any(digest)]
            await self._transfer.hold(stored)

    def _fail(self, failure: Failure) -> None:
        if self.failure is not None or (self._finishing is not None and self._finishing.called):
            return
        self.failure = failure
        if self._keeping is not None:
            self._keeping.cancel()
        self._full.clear()
        self._parts, self._length = [], 0
        for writing in list(self._in_flight):
            writing.cancel()
        self._go_on()

    def _uploaded(self) -> Uploaded:
        digests = Digests(bytes(self._digests))
        return Uploaded(self.size, self.chunk_size, digests, self._copies, tuple(sorted(self._holders)), self._epoch)
