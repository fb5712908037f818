"""The chunks on this server's disk.

    chunks/3f/3fa9...c1.chunk       a chunk of more than 64 KiB, see `loose`
    chunks/packs/                   the smaller ones, see `packs`
    chunks/quarantine/3fa9...c1.0   a damaged chunk, put aside for whoever wants to look at it
    index.sqlite                    beside the directory of the chunks, see `index`

What has been promised about chunks, and which of them may be deleted, is told in `promises`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import monotonic, time_ns
from typing import ParamSpec, TypeVar

from attrs import frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.chunkfile import DamagedChunk, is_unreadable, trailer_length
from chunkfarm.chunks.index import Index
from chunkfarm.chunks.loose import PREFIXES, LooseChunks
from chunkfarm.chunks.opened import ChunkReader, OpenChunk
from chunkfarm.chunks.packing import Packing
from chunkfarm.chunks.packs import PACKED_MOST, Given, Packs
from chunkfarm.chunks.pieces import Buffer, RunInThread
from chunkfarm.chunks.pins import Pins
from chunkfarm.chunks.promises import Promises
from chunkfarm.chunks.read_memory import ReadMemory
from chunkfarm.chunks.verified import Verified
from chunkfarm.durable import is_broken, is_full, sync_directory
from chunkfarm.errors import Full, InvalidRequest, LimitExceeded, Mismatch, NotFound
from chunkfarm.model import CHUNK_SIZE_MAX, DIGEST_LENGTH, GIB, FarmOptions, digest_of

__all__ = ["ChunkStore", "DamagedChunk", "Space"]

RESERVE_LEAST = GIB
RESERVE_PART = 50
"""The reserve, unless the config says another: the larger of 1 GiB and one part in 50 (2 %) of the file system."""

P = ParamSpec("P")
T = TypeVar("T")


@frozen
class Space:
    """Room for chunks, in bytes. `full` says that no more are taken."""

    free: int
    """Of the file system."""
    used: int
    """By chunks; too small until they have been counted after a start."""
    full: bool


def room_of(directory: str) -> tuple[int, int]:
    """Free bytes of a directory's file system, and all of them."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


class ChunkStore:
    """Chunks as files below one directory, and what is known of them in the file `index`.

    All disk work is done by `run_in_thread`. `reserve`: bytes of the file system that chunks must leave free.
    `on_damaged(digest, reason)` is called in the reactor's thread after a chunk was put aside, `on_broken(failure)`
    when the index can no longer be used, `on_stored(digest)` when a chunk was put.
    `room` answers like `room_of`. Chunks of at most `packed_most` bytes share files. `grace` gives `collect_grace` in
    seconds, `seconds` is a monotonic clock, and `now` the wall clock in ms.
    """

    _log = Logger()

    def __init__(
        self,
        directory: Path,
        index: Path,
        run_in_thread: RunInThread,
        *,
        reserve: int | None = None,
        on_damaged: Callable[[bytes, str], None] = lambda digest, reason: None,
        on_broken: Callable[[Failure], None] = lambda failure: None,
        on_stored: Callable[[bytes], None] = lambda digest: None,
        room: Callable[[str], tuple[int, int]] = room_of,
        packed_most: int = PACKED_MOST,
        grace: Callable[[], float] = lambda: FarmOptions().collect_grace,
        seconds: Callable[[], float] = monotonic,
        now: Callable[[], int] = lambda: time_ns() // 1_000_000,
    ) -> None:
        self._directory = str(directory)
        self._run_in_thread = run_in_thread
        self.reserve = reserve
        """Bytes that chunks leave free; None: the usual part of the disk. May be changed at any time."""
        self._on_damaged = on_damaged
        self._on_broken = on_broken
        self._on_stored = on_stored
        self._room = room
        # Held while a name appears or disappears together with its bytes in the count.
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._identity: list[tuple[int, int]] = []
        self.memory = ReadMemory()
        """What all who read chunks here keep in memory."""
        self._was_gone = False
        self._is_broken = False
        self._stopped = False
        self._packed_most = packed_most
        self._index = Index(str(index))
        self._promises = Promises(Pins(self._index, seconds, grace), self._lock)
        self._loose = LooseChunks(self._directory, self._lock)
        self._verified = Verified(self._index, now)
        self._found_damaged: deque[tuple[bytes, str]] = deque()
        """What was found damaged by a thread that stored the same chunk anew."""
        self._packs = Packs(
            f"{self._directory}/packs", self._index, self._check_room, self._promises.keep, now, self._is_right
        )
        self._packing = Packing(self._packs, self._append, run_in_thread, self._report)

    def start(self) -> Deferred[None]:
        """Make the directories, remove what a crash left behind, make durable what is there.

        Then counts the bytes held, without anybody waiting for it.
        """
        return Deferred.fromCoroutine(self._start())

    def stop(self) -> None:
        """End the counting that `start` began. What is being written or read goes on."""
        self._stopped = True
        self._packing.stop()

    def close(self) -> None:
        """Close what is open for good, once nothing is written or read any more. Blocks for a moment."""
        self._packs.close()
        with suppress(sqlite3.Error, OSError):
            # A full disk, say: what is lost with it is only when chunks were read last.
            self._verified.save()
        self._index.close()

    def __del__(self) -> None:
        # What is under way when the process ends is finished first, and nobody waits for that.
        self._index.close()

    def put(self, digest: bytes | None, data: Buffer, *, checked: bool = False) -> Deferred[bytes]:
        """Store a chunk; fires with its digest once it is durable. A chunk that is here already is not rewritten.

        But it is read first: who brings the bytes relies on the copy from then on, and a damaged one is put aside.

        It is kept for `collect_grace` from then on, if only that was promised; so it is not collected meanwhile.

        With `checked` the caller has computed `digest` from these very bytes, and they are not hashed again.
        Fails with `Mismatch`, with `Full` before anything is written if the reserve would be touched, and
        with `LimitExceeded` for more than `CHUNK_SIZE_MAX`; nothing is left behind then.
        """
        if len(data) <= self._packed_most:
            put = self._packing.put(digest, data, checked).addCallbacks(self._stored, self._failed)
        else:
            put = self._run(self._put, digest, data, checked).addCallback(self._stored)
        return put.addBoth(self._tell_damage)

    def open(self, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[ChunkReader]:
        """Verified pieces of a chunk (to its end if `length` is None); the first is verified when this fires.

        Fails with `NotFound`, with `DamagedChunk` (then it has been put aside), and with `InvalidRequest`
        for a range that the chunk does not have.
        """
        if (packed := self._packs.read_now(digest)) is not None:
            try:
                return succeed(self._reader(digest, packed, offset, length))
            except InvalidRequest as error:
                return fail(error)
        return self._watched(digest, self._run(self._open, digest, offset, length), ChunkReader.close)

    def size(self, digest: bytes) -> Deferred[int]:
        """Bytes of the chunk; fails with `NotFound`, or `DamagedChunk` if its file is not whole."""
        return self._watched(digest, self._run(self._size, digest))

    def has(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """For each digest the chunk's length if it is here and its file is whole (its blocks are not read), else 0."""
        return self._run(self._has, digests)

    def hold(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """The same as `has`, for whoever is going to rely on the answer: what is here is kept for `collect_grace`.

        The promise is durable when this fires. Says 0 for what is condemned, too.
        """
        return self._run(self._hold, digests)

    @property
    def condemned(self) -> int:
        """How many chunks are about to be deleted because no file uses them."""
        return len(self._promises.condemned)

    def condemn(self, unused: Sequence[bytes]) -> Deferred[Sequence[bytes]]:
        """Begin to collect those of these chunks whose pins have run out; fires with those.

        From then on `hold` says no, and a `put` lifts it; nothing else changes. For those of which it is not known
        when they were held last, it is counted from now on.
        """
        return self._run(self._condemn, unused)

    def delete_condemned(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """Delete those of these chunks that are condemned still; fires with the bytes of each that was deleted."""
        return self._tidying(self._run(self._release, self._promises.condemned, digests))

    def mark_surplus(self, digests: Sequence[bytes]) -> None:
        """Plan to delete these because they belong on other servers; `hold`, `keep` and `put` end that."""
        self._promises.mark_surplus(digests)

    def unmark_surplus(self, digests: Sequence[bytes]) -> None:
        """End that plan."""
        self._promises.lift(self._promises.surplus, digests)

    def delete_surplus(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """Delete those of these chunks that are marked as surplus still; fires like `delete_condemned`."""
        return self._tidying(self._run(self._release, self._promises.surplus, digests))

    def lift(self, digests: Sequence[bytes]) -> None:
        """These are not condemned any more."""
        self._promises.lift(self._promises.condemned, digests)

    def save_clock(self) -> Deferred[None]:
        """Note for how long this store has been running."""
        return self._run(self._promises.pins.save)

    def tidy_pins(self, prefix: int, unused: Sequence[bytes]) -> Deferred[None]:
        """Forget the pins that have run out of chunks that begin with this byte, but not those of the `unused`."""
        return self._run(self._promises.pins.tidy, prefix, frozenset(unused))

    def check(self, digest: bytes, note: bool = True) -> Deferred[int]:
        """Read the whole chunk and compare its digest; fires with its length, fails as `size` does.

        With `note` it is noted when that was; who reads all chunks says so by `passed`.
        """
        return self._watched(digest, self._run(self._check, digest, note))

    def passed(self, prefix: int, began: int) -> Deferred[None]:
        """All chunks that begin with this byte were checked, none of them before `began` (ms)."""
        return self._run(self._verified.passed, prefix, began).addErrback(_no_room)

    def save_verified(self) -> Deferred[None]:
        """Write down which chunks were read whole, for a later process; on a full disk that is left out."""
        return self._run(self._verified.save).addErrback(_no_room)

    def verified(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """When each chunk was last read whole and found right, or written, in ms; 0 if it is not here or not known."""
        return self._run(self._when_verified, digests)

    def delete(self, digest: bytes) -> Deferred[bool]:
        """Remove a chunk, whatever was promised; fires with whether there was one. Readers that have it open go on."""
        return self._tidying(self._run(self._delete, digest))

    def quarantine(self, digest: bytes, reason: str) -> Deferred[None]:
        """Put a chunk aside, so that it is neither served nor counted; tells `on_damaged`."""

        def tell(moved: bool) -> None:
            if moved:
                self._report(digest, reason)

        return self._run(self._put_aside, digest).addCallback(tell)

    def quarantined(self) -> Deferred[Sequence[bytes]]:
        """The digests of which a damaged copy was put aside, and of which there is no whole one here now."""
        return self._run(self._quarantined)

    def scan(self, prefix: int) -> Deferred[Sequence[bytes]]:
        """The digests held that begin with the byte `prefix`, in order: the whole store in 256 steps."""
        return self._run(self._scan, prefix)

    def space(self) -> Deferred[Space]:
        """Room on the file system now. Notices, too, if the directory was removed, and then begins it anew."""

        def tell(space: Space) -> Space:
            if self._was_gone:
                self._was_gone = False
                self._log.error(
                    "The chunks in {path} are gone: the directory was removed, or another put in its place, while this "
                    "server ran. It goes on there; what is missing comes from the other servers as they notice.",
                    path=self._directory,
                )
            return space

        return self._run(self._space).addCallback(tell)

    # What follows up to the reader runs on threads.

    def _prepare(self) -> None:
        self._open_all()
        self._promises.pins.open()

    def _open_all(self) -> None:
        self._loose.open()
        os.makedirs(f"{self._directory}/quarantine", mode=0o700, exist_ok=True)
        self._packs.open()
        # The directories themselves are new at the first start, and with one of them all that is in it could be lost.
        sync_directory(self._directory)
        sync_directory(os.path.dirname(self._directory))
        self._identity = self._identify()

    def _identify(self) -> list[tuple[int, int]]:
        try:
            found = [os.stat(f"{self._directory}/{name}") for name in ("", "incoming", "packs")]
        except FileNotFoundError:
            return []
        return [(status.st_dev, status.st_ino) for status in found]

    def _mend(self) -> bool:
        """Begin the directory anew if it was removed under this process, or is another now; says whether it was."""
        with self._opening:
            if self._identify() == self._identity:
                return False
            self._was_gone = True
            self._packs.close()
            self._open_all()
            for prefix in range(PREFIXES):
                self._loose.count(prefix)
            return True

    def _append(self, given: Sequence[Given]) -> list[bytes | Mismatch]:
        try:
            return self._packs.append(given)
        except FileNotFoundError:
            if not self._mend():
                raise
        return self._packs.append(given)

    def _put(self, digest: bytes | None, data: Buffer, checked: bool) -> bytes:
        length = len(data)
        if length > CHUNK_SIZE_MAX:
            raise LimitExceeded(f"a chunk has at most {CHUNK_SIZE_MAX} bytes, not {length}")
        if digest is not None:
            self._promises.keep([digest])
            if self._whole(digest) is not None:
                if not checked and digest_of(data) != digest:
                    raise Mismatch(f"the bytes do not have the digest {digest.hex()}")
                if self._is_right(digest):
                    self._loose.settle(digest)
                    return digest
        self._check_room(length + trailer_length(length))
        try:
            try:
                return self._write(digest, data, checked)
            except FileNotFoundError:
                if not self._mend():
                    raise
            return self._write(digest, data, checked)
        except BaseException as error:
            if is_full(error):
                raise Full(f"this server's disk is full: {error}") from error
            raise

    def _is_right(self, digest: bytes) -> bool:
        """Whether the copy that is here has the right bytes; one that has not is put aside, and told of later."""
        try:
            self._check(digest, note=True)
        except DamagedChunk as error:
            self._found_damaged.append((digest, str(error)))
            return False
        except NotFound:
            return False
        return True

    def _write(self, digest: bytes | None, data: Buffer, checked: bool) -> bytes:
        temporary, digest = self._loose.write(digest, data, checked)
        # Somebody else may have stored it while this was written, and so long ago that it is condemned by now.
        self._promises.keep([digest])
        self._loose.take(temporary, digest)
        return digest

    def _check_room(self, needed: int) -> None:
        free, reserve = self._free_and_reserve()
        if free - needed < reserve:
            raise Full(
                f"this server's disk is full: {free} bytes are free, {needed} are needed, {reserve} are kept in reserve"
            )

    def _free_and_reserve(self) -> tuple[int, int]:
        free, total = self._room(self._directory)
        return free, self.reserve if self.reserve is not None else max(RESERVE_LEAST, total // RESERVE_PART)

    def _space(self) -> Space:
        self._mend()
        free, reserve = self._free_and_reserve()
        return Space(free, self._loose.used + self._packs.used, free < reserve)

    def _whole(self, digest: bytes) -> int | None:
        """The length of a chunk that is here and whole."""
        if (place := self._packs.place(digest)) is not None:
            return place.length
        return self._loose.length(digest)

    def _has(self, digests: Sequence[bytes]) -> Sequence[int]:
        return [self._whole(digest) or 0 for digest in digests]

    def _hold(self, digests: Sequence[bytes]) -> Sequence[int]:
        held = self._promises.hold(digests)
        return [self._durable(digest) or 0 if digest in held else 0 for digest in digests]

    def _durable(self, digest: bytes) -> int | None:
        """The length of a chunk that is here and whole, and is so after a power cut."""
        if (length := self._whole(digest)) is not None:
            try:
                self._loose.settle_new(digest)
            except OSError as error:
                if is_unreadable(error):
                    return None
                raise
        return length

    def _condemn(self, unused: Sequence[bytes]) -> Sequence[bytes]:
        condemned = self._promises.condemn(unused)
        return [digest for digest in unused if digest in condemned]

    def _release(self, marked: set[bytes], digests: Sequence[bytes]) -> Sequence[int]:
        with self._lock:
            released = self._promises.release(marked, digests)
            # Those that have a file of their own first: that gives room also where there is none to note anything.
            loose = {digest: size for digest in released if (size := self._loose.delete(digest)) is not None}
            packed = self._packs.delete([digest for digest in released if digest not in loose])
        return [*loose.values(), *packed.values()]

    def _open_file(self, digest: bytes) -> OpenChunk:
        try:
            if (packed := self._packs.read(digest)) is not None:
                return packed
            return self._loose.file(digest)
        except DamagedChunk as error:
            self._put_damaged_aside(digest, error.inode)
            raise

    def _size(self, digest: bytes) -> int:
        file = self._open_file(digest)
        file.close()
        return file.length

    def _when_verified(self, digests: Sequence[bytes]) -> Sequence[int]:
        times = self._verified.times(digests)
        written = map(self._written, digests)
        return [0 if at is None else max(at, read) for at, read in zip(written, times, strict=True)]

    def _written(self, digest: bytes) -> int | None:
        """When a chunk was written, in ms, 0 if that is not known; None if it is not here."""
        if (place := self._packs.place(digest)) is not None:
            return self._packs.written(place)
        return self._loose.written(digest) or None

    def _check(self, digest: bytes, note: bool) -> int:
        file = self._open_file(digest)
        try:
            if file.digest() != digest:
                raise DamagedChunk(f"the bytes of chunk {digest.hex()} do not have that digest")
        except DamagedChunk:
            self._put_damaged_aside(digest, file.inode)
            raise
        finally:
            file.close()
        if note:
            self._verified.note(digest)
        return file.length

    def _open(self, digest: bytes, offset: int, length: int | None) -> ChunkReader:
        return self._reader(digest, self._open_file(digest), offset, length)

    def _reader(self, digest: bytes, file: OpenChunk, offset: int, length: int | None) -> ChunkReader:
        end = file.length if length is None else offset + length
        if not 0 <= offset <= end <= file.length:
            file.close()
            raise InvalidRequest(f"the chunk has {file.length} bytes: there is no range {offset} to {end}")
        reader = ChunkReader(self, digest, file, offset, end)
        try:
            reader.begin(self._read(digest, file, offset, reader.piece_end(offset), end))
        except BaseException:
            reader.forget()
            raise
        return reader

    def _read(self, digest: bytes, file: OpenChunk, start: int, end: int, last: int) -> memoryview:
        try:
            piece = file.read(start, end - start)
        except DamagedChunk:
            # While it is open no file that follows it gets the same inode.
            self._put_damaged_aside(digest, file.inode)
            file.close()
            raise
        if end == last:
            file.close()
        return piece

    def _delete(self, digest: bytes) -> bool:
        with self._lock:
            packed = self._packs.delete([digest])
            return self._loose.delete(digest) is not None or bool(packed)

    def _put_aside(self, digest: bytes) -> bool:
        """Move a chunk away, whatever is known of it."""
        with self._lock:
            return self._move_aside(digest, None)

    def _put_damaged_aside(self, digest: bytes, inode: int | None) -> None:
        """Move a chunk away, but only the copy that was found damaged: a good one may have followed it."""
        with self._lock:
            # If nothing is known of the one that was found, it is the one that is there, unless that can be read.
            if inode is not None or self._loose.length(digest) is None:
                self._move_aside(digest, inode)

    def _move_aside(self, digest: bytes, inode: int | None) -> bool:
        with suppress(FileExistsError, FileNotFoundError):
            # Somebody may have removed it with what was in it, which nobody needs.
            os.mkdir(f"{self._directory}/quarantine", 0o700)
        names = (f"{self._directory}/quarantine/{digest.hex()}.{number}" for number in count())
        aside = next(name for name in names if not os.path.exists(name))
        return self._packs.put_aside(digest, aside, inode) or self._loose.put_aside(digest, aside, inode)

    def _quarantined(self) -> Sequence[bytes]:
        aside: set[bytes] = set()
        try:
            names = os.listdir(f"{self._directory}/quarantine")
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and not is_unreadable(error):
                raise
            # What is missing shows when the servers that should have it are asked.
            return []
        for name in names:
            with suppress(ValueError):
                digest = bytes.fromhex(name.partition(".")[0])
                if len(digest) == DIGEST_LENGTH and self._whole(digest) is None:
                    aside.add(digest)
        return sorted(aside)

    def _scan(self, prefix: int) -> Sequence[bytes]:
        return sorted({*self._packs.digests(prefix), *self._loose.digests(prefix)})

    # What follows runs in the reactor's thread.

    async def _start(self) -> None:
        await self._run(self._prepare)
        for what in (*self._loose.unreadable, *self._packs.unreadable):
            self._log.error("The disk has failed at the chunks of this server, which goes on: {what}", what=what)
        Deferred.fromCoroutine(self._count_all()).addErrback(
            lambda failure: self._log.failure("while counting the chunks in {path}", failure, path=self._directory)
        )

    async def _count_all(self) -> None:
        for prefix in range(PREFIXES):
            if self._stopped:
                return
            await self._run(self._loose.count, prefix)

    def _run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return self._run_in_thread(function, *args, **kwargs).addErrback(self._failed)

    def _failed(self, failure: Failure) -> Failure:
        """Tell what a failed index means, by the rules that hold for the table's disk, too."""
        error = failure.value
        assert error is not None
        if is_full(error):
            return Failure(Full(f"this server's disk is full: {error}"))
        if is_broken(error) and not self._is_broken:
            self._is_broken = True
            self._on_broken(failure)
        return failure

    def _tidying(self, result: Deferred[T]) -> Deferred[T]:
        def tidy(value: T) -> T:
            self._packing.tidy()
            return value

        return result.addCallback(tidy)

    def read_piece(self, digest: bytes, file: OpenChunk, start: int, end: int, last: int) -> Deferred[memoryview]:
        """For the reader: the verified bytes from `start` to `end`; the file is closed when `end` is the `last`."""
        return self._watched(digest, self._run(self._read, digest, file, start, end, last))

    def was_whole(self, digest: bytes) -> None:
        """For the reader: all of it has been read, and was verified."""
        self._verified.note(digest)

    def close_file(self, file: OpenChunk) -> None:
        """For the reader: close a file, away from the reactor because closing may wait for the disk."""
        self._run(file.close).addErrback(lambda failure: self._log.failure("while closing a chunk", failure))

    def _watched(
        self, digest: bytes, result: Deferred[T], unwanted: Callable[[T], None] = lambda value: None
    ) -> Deferred[T]:
        """The same result, with damage told also if it is cancelled; what comes all the same is `unwanted` then."""
        watched: Deferred[T] = Deferred()

        def done(value: T) -> None:
            if watched.called:
                unwanted(value)
            else:
                watched.callback(value)

        def look(failure: Failure) -> None:
            if failure.check(DamagedChunk):
                self._report(digest, str(failure.value))
            if not watched.called:
                watched.errback(failure)

        # The thread goes on, whoever has ceased to wait for it.
        result.addCallbacks(done, look)
        return watched

    def _stored(self, digest: bytes) -> bytes:
        self._on_stored(digest)
        return digest

    def _tell_damage(self, result: T) -> T:
        while self._found_damaged:
            self._report(*self._found_damaged.popleft())
        return result

    def _report(self, digest: bytes, reason: str) -> None:
        self._log.error("chunk {digest} was put aside: {reason}", digest=digest.hex(), reason=reason)
        self._on_damaged(digest, reason)


def _no_room(failure: Failure) -> None:
    # Nothing is lost with it but since when a copy is known to be whole.
    failure.trap(Full)
