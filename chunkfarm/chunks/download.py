"""A file, or a range of it, on its way out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import PieceSource
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.errors import FarmError, InvalidRequest, Mismatch, NotFound
from chunkfarm.model import MIB, Manifest

AHEAD_BYTES = 16 * MIB
"""Bytes of the next chunks that are fetched while one is sent, but always one chunk: enough to hide the way to
another server, little enough for many downloads at a time."""
AHEAD_CHUNKS_MAX = 8
"""More small chunks at a time than this only fill the thread pool."""
PROVEN = 3
"""Whoever asks for the piece of this number takes what it asked for: one asks for the second while the first is on its
way. Others ask for much and take nothing, and the disk is busy for them, and memory full, for nothing."""


class DamagedFile(FarmError):
    """A chunk of a file is lost, or is not what the manifest says."""


class Download:
    """A `PieceSource` over a range of a manifest, which reads the next chunks ahead.

    `InvalidRequest` for a range that the file does not have. `next` fails with `DamagedFile`, and as
    `Transfer.open` does.
    """

    def __init__(
        self,
        transfer: Transfer,
        manifest: Manifest,
        offset: int = 0,
        length: int | None = None,
        crowded: Callable[[bool], bool] = lambda proven: False,
    ) -> None:
        """`crowded` says whether so much that was read waits to be sent that nothing should be read ahead.

        It is told whether this reader has proved to take what it asks for.
        """
        end = manifest.size if length is None else offset + length
        if not 0 <= offset <= end <= manifest.size:
            raise InvalidRequest(f"the file has {manifest.size} bytes: there is no range {offset} to {end}")
        self.length = end - offset
        """Bytes that this download gives."""
        self._transfer = transfer
        self._crowded = crowded
        self._manifest = manifest
        self._position = offset
        self._end = end
        self._ahead_max = max(1, min(AHEAD_CHUNKS_MAX, AHEAD_BYTES // manifest.chunk_size))
        self._ahead: deque[Deferred[PieceSource]] = deque()
        self._opening: Deferred[PieceSource] | None = None
        self._current: PieceSource | None = None
        self._closed = False
        self._asked = 0
        """How many pieces were asked for."""

    def begin(self) -> Deferred[None]:
        """Fires when the first piece can be given, so that an error comes before any byte."""
        return Deferred.fromCoroutine(self._begin())

    def next(self) -> Deferred[bytes | memoryview | None]:
        """The next piece; None after the last one."""
        return Deferred.fromCoroutine(self._next())

    def close(self) -> None:
        """Give up what is read ahead. Harmless when called twice."""
        self._closed = True
        if self._current is not None:
            self._current.close()
            self._current = None
        if self._opening is not None:
            self._opening.cancel()
        while self._ahead:
            opening = self._ahead.popleft()
            # One that is open already is closed; one that is not is given up.
            opening.addCallbacks(lambda source: source.close(), lambda failure: None)
            opening.cancel()

    async def _begin(self) -> None:
        self._read_ahead()
        if self._current is None and self._ahead:
            self._opening = self._ahead.popleft()
            self._current = await self._opening
            self._opening = None
            self._read_ahead()

    async def _next(self) -> bytes | memoryview | None:
        if self._closed:
            raise CancelledError
        self._asked += 1
        if self._asked == PROVEN:
            self._read_ahead()
        while True:
            if self._current is None:
                await self._begin()
                if self._current is None:
                    return None
            piece = await self._current.next()
            if piece is not None:
                return piece
            if self._current is not None:
                self._current.close()
                self._current = None

    def _read_ahead(self) -> None:
        alone = self._crowded(self._asked >= PROVEN)
        most = int(self._current is None) if alone else self._ahead_max
        while len(self._ahead) < most and self._position < self._end:
            number, within = divmod(self._position, self._manifest.chunk_size)
            chunk_length = self._manifest.chunk_length(number)
            length = min(chunk_length - within, self._end - self._position)
            whole = length == chunk_length
            opening = self._transfer.open(
                self._manifest.digests[number], within, None if whole else length, chunk_length
            )
            self._ahead.append(opening.addErrback(_tell, number))
            self._position += length


def _tell(failure: Failure, number: int) -> Failure:
    if failure.check(NotFound):
        return Failure(DamagedFile(f"the file's chunk {number} is lost: {failure.getErrorMessage()}"))
    if failure.check(Mismatch):
        return Failure(DamagedFile(f"the file's chunk {number} is damaged: {failure.getErrorMessage()}"))
    return failure
