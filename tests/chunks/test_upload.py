from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.transfer import ChunkReceipt
from chunkfarm.chunks.upload import IN_FLIGHT_MAX, KEPT_PIECE_MIN, Upload
from chunkfarm.errors import Full
from chunkfarm.model import digest_of
from tests.chunks.builders import pattern

SIZE = 100


class MemoryTransfer:
    """Keeps what is written; with `waits`, a test answers each write itself through `pending`."""

    def __init__(self, waits: bool = False) -> None:
        self.chunks: list[bytes] = []
        self.waits = waits
        self.held: list[list[bytes]] = []
        self.holding: Deferred[object] = succeed(None)
        self.pending: list[tuple[bytes, Deferred[ChunkReceipt]]] = []
        self.cancelled = 0

    def write(self, data: bytearray) -> Deferred[ChunkReceipt]:
        self.chunks.append(bytes(data))
        if not self.waits:
            return succeed(ChunkReceipt(digest_of(data), ("a", "b")))
        result: Deferred[ChunkReceipt] = Deferred(self._cancel)
        self.pending.append((bytes(data), result))
        return result

    def hold(self, digests: Sequence[bytes]) -> Deferred[object]:
        self.held.append(list(digests))
        return self.holding

    def answer(self, position: int = 0, holders: tuple[str, ...] = ("a", "b")) -> None:
        """Acknowledge one of the writes that wait."""
        data, result = self.pending.pop(position)
        result.callback(ChunkReceipt(digest_of(data), holders))

    def _cancel(self, result: Deferred[ChunkReceipt]) -> None:
        self.cancelled += 1


class UploadTests(SynchronousTestCase):
    def make(self, hold: bool = False, chunk_size: int = SIZE) -> Upload:
        self.transfer = MemoryTransfer(hold)
        self.calls: list[str] = []
        transfer: Any = self.transfer
        self.epoch = 7
        pause, resume = lambda: self.calls.append("pause"), lambda: self.calls.append("resume")
        return Upload(transfer, chunk_size, pause, resume, lambda: self.epoch)

    @given(
        size=st.sampled_from([0, 1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE - 1, 3 * SIZE, 3 * SIZE + 1]),
        pieces=st.lists(st.integers(0, 350), max_size=20),
        kind=st.sampled_from([bytes, memoryview, bytearray]),
    )
    def test_any_pieces(self, size: int, pieces: list[int], kind: Callable[[bytes], bytes]) -> None:
        """Whatever the pieces are that bytes come in, chunks are cut at the same places."""
        upload = self.make()
        data = pattern(size)
        position = 0
        for length in [*pieces, size]:
            upload.write(kind(data[position : position + length]))
            position += length
        uploaded = self.successResultOf(upload.finish())
        expected = [data[start : start + SIZE] for start in range(0, size, SIZE)]
        assert self.transfer.chunks == expected
        assert uploaded.digests == [digest_of(chunk) for chunk in expected]
        assert (uploaded.size, uploaded.chunk_size) == (size, SIZE)
        assert (uploaded.copies, uploaded.holders) == ((2, ("a", "b")) if size else (0, ()))

    def test_own_memory(self) -> None:
        """The caller may use its buffer again: bytes were copied."""
        upload = self.make()
        buffer = bytearray(pattern(SIZE // 2))
        upload.write(buffer)
        buffer[:] = bytes(len(buffer))
        self.successResultOf(upload.finish())
        assert self.transfer.chunks == [pattern(SIZE // 2)]

    def test_large_pieces(self) -> None:
        """Large pieces, small ones and the caller's own memory make the same chunk."""
        chunk_size = 4 * KEPT_PIECE_MIN
        upload = self.make(chunk_size=chunk_size)
        data = pattern(2 * chunk_size + 100)
        own = bytearray(data[:KEPT_PIECE_MIN])
        upload.write(own)
        own[:] = bytes(len(own))
        cuts = [KEPT_PIECE_MIN, KEPT_PIECE_MIN + 1, KEPT_PIECE_MIN + 7, 3 * KEPT_PIECE_MIN, len(data)]
        for start, end in pairwise(cuts):
            upload.write(memoryview(data)[start:end])
        self.successResultOf(upload.finish())
        assert self.transfer.chunks == [data[:chunk_size], data[chunk_size : 2 * chunk_size], data[2 * chunk_size :]]

    def test_small_pieces_are_joined(self) -> None:
        """Many tiny pieces do not cost more memory than their bytes."""
        upload = self.make(chunk_size=KEPT_PIECE_MIN)
        for _ in range(1000):
            upload.write(memoryview(b"x"))
        assert len(upload._parts) == 1

    def test_in_flight(self) -> None:
        """A few chunks travel at a time; a fourth one makes the sender pause until one has arrived."""
        upload = self.make(hold=True)
        upload.write(pattern(IN_FLIGHT_MAX * SIZE + SIZE - 1))
        assert (len(self.transfer.pending), self.calls) == (IN_FLIGHT_MAX, [])
        upload.write(b"x")
        assert (len(self.transfer.pending), self.calls) == (IN_FLIGHT_MAX, ["pause"])
        upload.write(b"y" * SIZE)
        self.transfer.answer()
        assert self.calls == ["pause"], "bytes that came all the same are sent first"
        self.transfer.answer()
        assert self.calls == ["pause", "resume"]

    def test_any_order(self) -> None:
        """Chunks may be acknowledged in any order; the manifest has them in the file's."""
        upload = self.make(hold=True)
        data = pattern(3 * SIZE)
        upload.write(data)
        result = upload.finish()
        self.transfer.answer(2, ("c",))
        self.transfer.answer(0, ("a", "b", "c"))
        self.assertNoResult(result)
        self.transfer.answer(0, ("a", "d"))
        uploaded = self.successResultOf(result)
        assert uploaded.digests == [digest_of(data[start : start + SIZE]) for start in (0, SIZE, 2 * SIZE)]
        assert (uploaded.copies, uploaded.holders) == (1, ("a", "b", "c", "d"))

    def test_failure(self) -> None:
        """When a chunk cannot be stored the upload fails at once, with that reason, and lets the sender go on."""
        upload = self.make(hold=True)
        upload.write(pattern(5 * SIZE))
        self.transfer.pending[1][1].errback(Full("no room"))
        assert upload.failure is not None
        assert upload.failure.check(Full)
        assert self.calls == ["pause", "resume"]
        assert self.transfer.cancelled == IN_FLIGHT_MAX - 1
        upload.write(pattern(5 * SIZE))
        assert len(self.transfer.chunks) == IN_FLIGHT_MAX, "what comes later is dropped"
        self.failureResultOf(upload.finish(), Full)
        assert upload.size == 10 * SIZE

    def test_failure_while_finishing(self) -> None:
        """The same when the last bytes have come already."""
        upload = self.make(hold=True)
        upload.write(pattern(2 * SIZE))
        result = upload.finish()
        self.transfer.pending[0][1].errback(Full("no room"))
        self.failureResultOf(result, Full)

    def test_abort(self) -> None:
        """A sender that goes away leaves nothing running."""
        for finishing in (False, True):
            upload = self.make(hold=True)
            upload.write(pattern(2 * SIZE))
            result = upload.finish() if finishing else None
            upload.abort()
            upload.abort()
            assert self.transfer.cancelled == 2
            if result is not None:
                self.failureResultOf(result, CancelledError)

    def test_cancel(self) -> None:
        """Cancelling the end of an upload aborts it."""
        upload = self.make(hold=True)
        upload.write(pattern(2 * SIZE))
        result = upload.finish()
        result.cancel()
        self.failureResultOf(result, CancelledError)
        assert self.transfer.cancelled == 2

    def test_abort_after_the_end(self) -> None:
        """Aborting what is finished does nothing."""
        upload = self.make()
        upload.write(pattern(SIZE))
        self.successResultOf(upload.finish())
        upload.abort()
        assert upload.failure is None

    def test_epoch(self) -> None:
        """What is uploaded tells the epoch in which it was begun, and a short upload asks nobody to keep anything."""
        upload = self.make()
        upload.write(pattern(2 * SIZE))
        self.epoch = 9
        assert self.successResultOf(upload.finish()).epoch == 7
        assert self.transfer.held == []

    def test_long_upload(self) -> None:
        """When the epoch moves on during an upload the holders are asked, once, to keep what they have of it."""
        upload = self.make(hold=True)
        self.transfer.holding = Deferred()
        upload.write(pattern(4 * SIZE))
        first, second, third = (data for data, _ in self.transfer.pending)
        self.transfer.answer()
        self.epoch = 9
        self.transfer.answer(1)
        self.transfer.answer(0)
        assert self.transfer.held == [[digest_of(first), digest_of(third)]]
        self.epoch = 11
        self.transfer.holding.callback(None)
        self.transfer.answer()
        assert self.transfer.held[1][:3] == [digest_of(first), digest_of(second), digest_of(third)]
        assert self.successResultOf(upload.finish()).size == 4 * SIZE

    def test_long_upload_that_is_given_up(self) -> None:
        """Nobody is asked any more on behalf of an upload that has failed, and a holder that fails does not fail it."""
        upload = self.make()
        cancelled: list[object] = []
        self.transfer.holding = Deferred(cancelled.append)
        upload.write(pattern(SIZE))
        self.epoch = 9
        upload.write(pattern(SIZE))
        assert len(self.transfer.held) == 1 and not cancelled
        upload.abort()
        assert len(cancelled) == 1
        upload = self.make()
        self.transfer.holding = fail(Full("no"))
        self.epoch = 9
        upload.write(pattern(SIZE))
        assert self.successResultOf(upload.finish()).size == SIZE
