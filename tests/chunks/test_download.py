from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.download import AHEAD_CHUNKS_MAX, DamagedFile, Download
from chunkfarm.chunks.pieces import BytesSource, Digests, PieceSource
from chunkfarm.chunks.transfer import ChunkUnavailable
from chunkfarm.errors import InvalidRequest, Mismatch, NotFound
from chunkfarm.model import MIB, Manifest, digest_of
from tests.chunks.builders import pattern, read_all

SIZE = 100


class CountingSource(BytesSource):
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


class MemoryTransfer:
    """Chunks in memory; with `hold`, a test answers each opening itself through `pending`."""

    def __init__(self, hold: bool) -> None:
        self.hold = hold
        self.chunks: dict[bytes, bytes] = {}
        self.errors: dict[bytes, Exception] = {}
        self.opened: list[tuple[bytes, int, int | None, int | None]] = []
        self.pending: list[Deferred[PieceSource]] = []
        self.sources: list[CountingSource] = []
        self.cancelled = 0

    def open(
        self, digest: bytes, offset: int = 0, length: int | None = None, chunk_length: int | None = None
    ) -> Deferred[PieceSource]:
        self.opened.append((digest, offset, length, chunk_length))
        if self.hold:
            self.pending.append(Deferred(self._cancel))
            return self.pending[-1]
        if digest in self.errors:
            return fail(self.errors[digest])
        return succeed(self.source(digest, offset, length))

    def source(self, digest: bytes, offset: int = 0, length: int | None = None) -> CountingSource:
        data = self.chunks[digest]
        self.sources.append(CountingSource(data[offset : None if length is None else offset + length], piece=30))
        return self.sources[-1]

    def _cancel(self, opening: Deferred[PieceSource]) -> None:
        self.cancelled += 1


class DownloadTests(SynchronousTestCase):
    def make(
        self, size: int = 5 * SIZE, offset: int = 0, length: int | None = None, hold: bool = False, step: int = SIZE
    ) -> Download:
        self.data = pattern(size)
        self.transfer = MemoryTransfer(hold)
        chunks = [self.data[start : start + step] for start in range(0, size, step)]
        self.transfer.chunks = {digest_of(chunk): chunk for chunk in chunks}
        self.digests = Digests(b"".join(map(digest_of, chunks)))
        transfer: Any = self.transfer
        return Download(transfer, Manifest(size, step, self.digests), offset, length)

    def read(self, download: Download) -> Deferred[bytes]:
        return Deferred.fromCoroutine(read_all(download))

    @given(st.sampled_from([0, 1, SIZE - 1, SIZE, SIZE + 1, 5 * SIZE - 1, 5 * SIZE, 5 * SIZE + 1]), st.data())
    def test_any_range(self, size: int, data: st.DataObject) -> None:
        """Any range of a file is what the same slice of its bytes is, wherever it begins and ends."""
        offset = data.draw(st.integers(0, size))
        length = data.draw(st.one_of(st.none(), st.integers(0, size - offset)))
        download = self.make(size, offset, length)
        end = size if length is None else offset + length
        assert self.successResultOf(self.read(download)) == self.data[offset:end]
        assert download.length == end - offset
        needed = {self.digests[number] for number in range(len(self.digests)) if _touched(number, offset, end)}
        assert {opened[0] for opened in self.transfer.opened} == needed, "nothing else is read"
        assert all(source.closed == 1 for source in self.transfer.sources)
        self.successResultOf(download.next())

    def test_wrong_range(self) -> None:
        """A range that the file does not have is refused."""
        for offset, length in ((501, None), (0, 501), (-1, 5), (500, 1), (5, -1)):
            with self.assertRaises(InvalidRequest):
                self.make(5 * SIZE, offset, length)

    def test_knows_lengths(self) -> None:
        """Each chunk is opened with the length that the manifest gives it."""
        self.successResultOf(self.read(self.make(2 * SIZE + 7, 150)))
        assert [opened[1:] for opened in self.transfer.opened] == [(50, 50, 100), (0, None, 7)]

    def test_reads_ahead(self) -> None:
        """While one chunk is sent the next ones are fetched, a bounded number of them."""
        download = self.make(50 * SIZE, hold=True)
        result = download.next()
        assert len(self.transfer.opened) == AHEAD_CHUNKS_MAX
        self.transfer.pending[0].callback(self.transfer.source(self.digests[0]))
        self.successResultOf(result)
        assert len(self.transfer.opened) == AHEAD_CHUNKS_MAX + 1
        download.close()

    def test_crowded(self) -> None:
        """Where memory is full one chunk after the other is opened; a reader that takes its pieces is trusted more."""
        for crowded, ahead in ((lambda proven: True, 1), (lambda proven: not proven, 5)):
            download = self.make()
            download._crowded = crowded
            self.successResultOf(download.next())
            self.successResultOf(download.next())
            assert len(self.transfer.opened) == 1
            self.successResultOf(download.next())
            assert len(self.transfer.opened) == ahead
            download.close()
            download = self.make()
            download._crowded = crowded
            assert self.successResultOf(self.read(download)) == self.data

    def test_large_chunks(self) -> None:
        """Of chunks so large that two fill the memory meant for it, only one is fetched ahead."""
        download = self.make(200 * MIB, hold=True, step=64 * MIB)
        download.next().addErrback(lambda failure: None)
        assert len(self.transfer.opened) == 1
        download.close()

    def test_begin(self) -> None:
        """An error of the first chunk is known before any byte is given; nothing is lost by asking."""
        download = self.make()
        self.successResultOf(download.begin())
        self.successResultOf(download.begin())
        assert self.successResultOf(self.read(download)) == self.data
        download = self.make()
        self.transfer.errors[self.digests[0]] = ChunkUnavailable("beta does not answer")
        self.failureResultOf(download.begin(), ChunkUnavailable)
        download.close()
        self.successResultOf(self.make(0).begin())

    def test_lost_and_damaged(self) -> None:
        """A lost chunk is not "no such file", and a wrong one no fault of the reader: the file is damaged."""
        for error in (NotFound("no server has it"), Mismatch("it has 7 bytes")):
            download = self.make()
            self.transfer.errors[self.digests[3]] = error
            failure = self.failureResultOf(self.read(download), DamagedFile)
            assert "chunk 3" in str(failure.value)
            assert str(error) in str(failure.value)
            download.close()

    def test_closed(self) -> None:
        """A reader that goes away closes what is open and gives up what is being opened."""
        download = self.make(50 * SIZE, hold=True)
        result = download.next()
        for number in (0, 1):
            self.transfer.pending[number].callback(self.transfer.source(self.digests[number]))
        self.successResultOf(result)
        download.close()
        download.close()
        assert [source.closed for source in self.transfer.sources] == [1, 1]
        assert self.transfer.cancelled == AHEAD_CHUNKS_MAX - 1
        self.failureResultOf(download.next(), CancelledError)

    def test_closed_while_waiting(self) -> None:
        """The same while the next piece is waited for."""
        download = self.make(hold=True)
        result = download.next()
        download.close()
        self.failureResultOf(result, CancelledError)
        assert self.transfer.cancelled == len(self.transfer.opened) == 5

    def test_closed_with_errors_ahead(self) -> None:
        """Errors of chunks that nobody wants any more are nobody's."""
        download = self.make()
        for number in range(1, 5):
            self.transfer.errors[self.digests[number]] = NotFound("lost")
        self.successResultOf(download.next())
        download.close()


def _touched(number: int, offset: int, end: int) -> bool:
    return offset < end and number * SIZE < end and (number + 1) * SIZE > offset
