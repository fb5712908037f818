"""Small chunks, many in one file: a file and two fsyncs for each would cap them at a few hundred a second.

    chunks/packs/00000017.pack      one record after another; nothing is ever changed in it

Where each chunk is stands in the index (see `index`), which is made anew from the packs if it is lost.

A record: magic (8) | digest (32) | length (4) | CRC32C (4) of the three before and of the data | data. Numbers
are big-endian. A chunk is in the index only when its record is durable, and the index never needs to be: what a
power cut takes from it, or it was not told yet, is read again from the end of the packs. A chunk that was removed may
come back so; that costs nothing but its room. A pack of which less than half is in use is written anew, in small
steps.

Everything in `Packs` blocks, and is called on a thread. Who appends is one at a time (see `packing`).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress

import google_crc32c
from attrs import frozen

from chunkfarm.chunks.chunkfile import DamagedChunk, crc32c, is_unreadable
from chunkfarm.chunks.index import Index, Statement
from chunkfarm.chunks.pieces import Buffer
from chunkfarm.chunks.recent import Recent
from chunkfarm.durable import is_full, sync_directory
from chunkfarm.errors import Full, InvalidRequest, Mismatch
from chunkfarm.model import DIGEST_LENGTH, KIB, MIB, digest_of

PACKED_MOST = 64 * KIB
"""Bytes of the largest chunk that is packed. A larger one takes longer to write than a file of its own to make."""
PACK_FULL = 64 * MIB
"""Bytes after which the next pack begins: few files for a million chunks, and little to write anew at a time."""
STEP = 4 * MIB
"""Bytes looked at in one step of writing a pack anew: some ten milliseconds in which nobody appends."""
UNINDEXED_MOST = 64
"""Chunks that the index is told of together: it need not be durable, and a statement for each took longer than what
else is done for a small chunk beside waiting for the disk."""
MARK_MS = 60_000
"""A minute in which chunks are written costs one row that tells from which place of a pack on they are not older."""
SCAN_STEP = 8 * MIB
"""Bytes of a pack in memory while it is read at the start: many times the largest record."""
SECTOR = 4 * KIB
"""Bytes that a disk reads together, or cannot: what is around them is looked for."""
UNREADABLE_MOST = 100
"""Reads of one pack that may fail while it is looked for what can be read: some eight places. A disk takes a second and
more for each, and a start waits for it."""

MAGIC = b"packed1\n"
_HEAD = struct.Struct(f">8s{DIGEST_LENGTH}sII")
_LENGTH = struct.Struct(">I")

_SET_LIVE = "INSERT INTO packs VALUES (?, ?, ?) ON CONFLICT (number) DO UPDATE SET live = excluded.live"

Given = tuple[bytes | None, Buffer, bool]
"""(digest or None, the bytes, whether the digest was computed from these very bytes)."""


@frozen
class Place:
    """Where the bytes of a chunk are: `offset` is that of the record."""

    pack: int
    offset: int
    length: int

    @property
    def size(self) -> int:
        """Bytes of the record."""
        return _HEAD.size + self.length

    @property
    def inode(self) -> int:
        """What tells this record from one that follows it, as an inode does for a file."""
        return self.pack << 40 | self.offset


class PackedChunk:
    """A small chunk, read and verified as a whole. Stands in for a `ChunkFile`."""

    def __init__(self, data: bytes, place: Place) -> None:
        self.length = len(data)
        self.inode = place.inode
        self._data = data

    def read(self, offset: int, length: int) -> memoryview:
        """Bytes of the chunk; raises `InvalidRequest` for a range that it does not have."""
        if offset < 0 or length < 0 or offset + length > self.length:
            raise InvalidRequest(f"the chunk has {self.length} bytes, not {offset + length}")
        return memoryview(self._data)[offset : offset + length]

    def digest(self) -> bytes:
        """The digest of the bytes."""
        return hashlib.sha256(self._data).digest()

    def close(self) -> None:
        """Nothing is open."""


class Packs:
    """The packs of one store. `room(bytes)` raises `Full` if there is no room for so many more.

    `promise(digests)` is called before it is looked which of them are here already: they are not deleted after that.
    `is_right(digest)` says whether a chunk that is here can be read whole; it has put it aside if not.
    """

    def __init__(
        self,
        directory: str,
        index: Index,
        room: Callable[[int], None],
        promise: Callable[[Sequence[bytes]], None] = lambda digests: None,
        now: Callable[[], int] = lambda: 0,
        is_right: Callable[[bytes], bool] = lambda digest: True,
    ) -> None:
        """`now` is the wall clock in ms."""
        self._is_right = is_right
        self._directory = directory
        self._index = index
        self._room = room
        self._promise = promise
        self._writing = threading.Lock()
        self._sizes: dict[int, int] = {}
        """Bytes of each pack that may be given out."""
        self._live: dict[int, int] = {}
        """Bytes of each pack that are in use."""
        self._current = -1
        self._descriptor = -1
        self._end = 0
        self._recent = Recent()
        self._now = now
        self._marks: list[tuple[int, int, int]] = []
        """Packs, places in them and times: what follows there was not written before. To be told to the index."""
        self._marked = 0
        """The last of these times, in the current pack; 0 if it has none."""
        self._unindexed: dict[bytes, Place] = {}
        """Chunks of the current pack that are durable, and not in the index yet."""
        self.unreadable: list[str] = []
        """What the disk could not read when they were opened; it is tried again at the next start."""

    def open(self) -> None:
        """Open the index, if there is one or any pack, and bring it up to what the packs hold. Raises `OSError`."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        found: dict[int, int] = {}
        with os.scandir(self._directory) as entries:
            for entry in entries:
                stem, _, kind = entry.name.partition(".")
                if kind == "pack" and stem.isdecimal():
                    found[int(stem)] = self._size_of(entry.path)
                elif stem == "index":
                    # Where it was in earlier versions; what it held is found in the packs.
                    os.unlink(entry.path)
        try:
            self._index.open(make=bool(found))
            self._catch_up(found)
        except sqlite3.DatabaseError:
            self._index.discard()
            self._index.open(make=bool(found))
            self._catch_up(found)
        sync_directory(self._directory)

    def close(self) -> None:
        """Close what is open; it is opened again by `open`."""
        with self._writing:
            with suppress(sqlite3.Error, OSError):
                # What is not written now is found in the packs.
                self._bring_up()
            self._unindexed.clear()
            self._let_go()
        self._recent.clear()

    def __del__(self) -> None:
        # What is under way when the process ends is finished first, and nobody waits for that.
        self._let_go()
        self._recent.clear()

    @property
    def used(self) -> int:
        """Bytes of all packs."""
        return sum(tuple(self._sizes.values()))

    # -- looking -----------------------------------------------------------------------------------------

    def place(self, digest: bytes) -> Place | None:
        """Where a chunk is, if its pack reaches that far."""
        if (place := self._unindexed.get(digest)) is not None:
            return place
        rows = self._index.read("SELECT pack, at, length FROM chunks WHERE digest = ?", (digest,))
        if not rows:
            return None
        place = Place(*rows[0])
        return place if place.offset + place.size <= self._sizes.get(place.pack, 0) else None

    def written(self, place: Place) -> int:
        """When the record there was written, in ms and at most a minute too early; 0 if that is not known."""
        question = "SELECT max(ms) FROM written WHERE pack = ? AND at <= ?"
        found = [ms for (ms,) in self._index.read(question, (place.pack, place.offset)) if ms is not None]
        marks = [ms for pack, at, ms in tuple(self._marks) if pack == place.pack and at <= place.offset]
        return max(found + marks, default=0)

    def read(self, digest: bytes) -> PackedChunk | None:
        """A chunk, verified, if it is here; raises `DamagedChunk`."""
        while (place := self.place(digest)) is not None:
            try:
                record = self._read_record(place)
            except FileNotFoundError:
                if self.place(digest) == place:
                    raise DamagedChunk(f"the pack of chunk {digest.hex()} is gone", place.inode) from None
                # It was written anew meanwhile, and the chunk is in another pack now.
                continue
            except DamagedChunk as error:
                error.inode = place.inode
                raise
            data = _verified(record, place, digest)
            if data is None:
                raise DamagedChunk(f"chunk {digest.hex()} is damaged in pack {place.pack}", place.inode)
            self._recent.note(digest, place, self._path(place.pack))
            return PackedChunk(data, place)
        return None

    def read_now(self, digest: bytes) -> PackedChunk | None:
        """A chunk, verified, if that takes no waiting: for the reactor's thread. None: ask `read`."""
        found = self._recent.read(digest)
        if found is None:
            return None
        place, record = found
        assert isinstance(place, Place)
        # What is wrong with it is for `read` to find out, which knows where the chunk is now.
        data = _verified(record, place, digest)
        return PackedChunk(data, place) if data is not None else None

    def digests(self, prefix: int) -> list[bytes]:
        """The chunks whose digest begins with the byte `prefix`, in order."""
        first = bytes([prefix])
        last = bytes([prefix + 1]) if prefix < 255 else b"\xff" * (DIGEST_LENGTH + 1)
        question = "SELECT digest FROM chunks WHERE digest >= ? AND digest < ? ORDER BY digest"
        unindexed = [digest for digest in tuple(self._unindexed) if digest[0] == prefix]
        rows = self._index.read(question, (first, last))
        return sorted({*unindexed, *(bytes(row[0]) for row in rows)})

    # -- changing ----------------------------------------------------------------------------------------

    def append(self, given: Sequence[Given]) -> list[bytes | Mismatch]:
        """Make all of these durable with one fsync; for each its digest, or why it was refused.

        Raises `Full`, or what else the disk said (`OSError`, `sqlite3.Error`); then none of them is stored.
        """
        try:
            answers, new = self._look(given)
            if new:
                with self._writing:
                    if len(self._unindexed) >= UNINDEXED_MOST:
                        self._bring_up()
                    self._write([(digest, bytes(data)) for digest, data in new.items()])
        except (OSError, sqlite3.Error) as error:
            if is_full(error):
                raise Full(f"this server's disk is full: {error}") from error
            raise
        return answers

    def delete(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """Forget chunks; the length of each that was here."""
        with self._writing:
            return self._forget(digests)

    def put_aside(self, digest: bytes, path: str, inode: int | None) -> bool:
        """Forget a damaged chunk and keep its record in a file for whoever wants to look at it.

        With `inode` only if it is still the one that was found damaged. Returns whether it was here.
        """
        with self._writing:
            place = self.place(digest)
            if place is None:
                # What lies behind the end of a pack that was cut off is forgotten all the same.
                return inode is None and digest in self._forget([digest])
            if inode is not None and inode != place.inode:
                return False
            with suppress(OSError, DamagedChunk), open(path, "xb") as aside:
                aside.write(self._read_record(place))
            return digest in self._forget([digest])

    def wasteful(self, but: Collection[int] = ()) -> int | None:
        """A pack that is to be written anew: it is full, and less than half of it is in use; none of those in `but`."""
        for number, size in tuple(self._sizes.items()):
            if number != self._current and number not in but and self._live.get(number, 0) * 2 < size:
                return number
        return None

    def rewrite(self, number: int, offset: int) -> tuple[int | None, list[bytes]]:
        """One step: what is in use behind `offset` goes into the current pack.

        Returns where the next step begins, None after the last; and the chunks that were lost, because their
        records were damaged.
        """
        with self._writing:
            self._bring_up()
            kept: list[tuple[bytes, bytes]] = []
            end = None
            for start, digest, data in self._records(number, offset, self._sizes[number]):
                if start >= offset + STEP:
                    end = start
                    break
                place = self.place(digest)
                if place is not None and (place.pack, place.offset) == (number, start):
                    kept.append((digest, data))
            if end is None and self._live.get(number, 0) > sum(_HEAD.size + len(data) for _, data in kept):
                found = {digest for digest, _ in kept}
                kept += [one for one in self._left(number) if one[0] not in found]
            if kept:
                # It takes less than it frees, so it may use what is kept in reserve: a disk that is full of what was
                # removed would stay full for ever.
                self._write(kept, in_reserve=True)
                self._bring_up()
            return end, self._drop(number) if end is None else []

    # -- inside ------------------------------------------------------------------------------------------

    def _size_of(self, path: str) -> int:
        try:
            return os.stat(path).st_size
        except OSError as error:
            if not is_unreadable(error):
                raise
            # As if it were cut off at its beginning: its chunks are not here, and come back with it.
            self.unreadable.append(f"{path}: {error.strerror}")
            return 0

    def _catch_up(self, found: dict[int, int]) -> None:
        self._sizes, self._live = {}, {}
        known = {number: (scanned, live) for number, scanned, live in self._index.read("SELECT * FROM packs")}
        gone = [(number,) for number in known.keys() - found.keys()]
        if gone:
            self._index.write(
                [
                    ("DELETE FROM chunks WHERE pack = ?", gone),
                    ("DELETE FROM packs WHERE number = ?", gone),
                    ("DELETE FROM written WHERE pack = ?", gone),
                ]
            )
        for number in sorted(found):
            scanned, self._live[number] = known.get(number, (0, 0))
            self._sizes[number] = found[number]
            if scanned < found[number]:
                self._scan_tail(number, scanned)
        self._current = max(found, default=0)

    def _scan_tail(self, number: int, offset: int) -> None:
        """Take what was appended since the index was last durable; a record that is not whole is passed over.

        So is what the disk cannot read: one bad sector must not keep a server, or whoever restores a farm, from all
        that is beside it.
        """
        size, failures = self._sizes[number], 0

        def read(number: int, offset: int, length: int) -> bytes:
            nonlocal failures
            try:
                return self._read_at(number, offset, length)
            except DamagedChunk as error:
                if not failures:
                    self.unreadable.append(str(error))
                failures += 1
                if length <= SECTOR or failures > UNREADABLE_MOST:
                    return bytes(length)
                half = max(SECTOR, length // 2 // SECTOR * SECTOR)
                return read(number, offset, half) + read(number, offset + half, length - half)

        try:
            descriptor = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC)
            try:
                # It may be in memory only, and is about to be promised.
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if not is_unreadable(error):
                raise
            self.unreadable.append(f"{self._path(number)}: {error.strerror}")
            return
        # What bit rot or a torn write left is passed over, by its sum.
        rows = {digest: (digest, at, len(data)) for at, digest, data in self._records(number, offset, size, read)}
        self._enter(number, list(rows.values()), offset if failures else size)

    def _records(
        self, number: int, offset: int, size: int, read: Callable[[int, int, int], bytes] | None = None
    ) -> Iterator[tuple[int, bytes, bytes]]:
        """Every whole record that begins at `offset` or behind it: where it begins, its digest, its data."""
        read = read or self._read_at
        while offset < size:
            window = read(number, offset, min(SCAN_STEP, size - offset))
            is_last = offset + len(window) >= size or not window
            at = 0
            while (at := window.find(MAGIC, at)) >= 0:
                if at + _HEAD.size + PACKED_MOST > len(window) and not is_last:
                    break
                head = window[at : at + _HEAD.size]
                if len(head) == _HEAD.size:
                    _, digest, length, _ = _HEAD.unpack(head)
                    data = window[at + _HEAD.size : at + _HEAD.size + length]
                    # The sum alone is not believed: behind damage a record may be found inside of another one, in bytes
                    # that somebody chose.
                    if length <= PACKED_MOST and _is_good(head, data, digest) and digest_of(data) == digest:
                        yield offset + at, digest, data
                        at += _HEAD.size + length - 1
                at += 1
            if is_last:
                return
            # The window may end in the middle of the magic.
            offset += at if at >= 0 else len(window) - len(MAGIC) + 1

    def _look(self, given: Sequence[Given]) -> tuple[list[bytes | Mismatch], dict[bytes, Buffer]]:
        answers: list[bytes | Mismatch] = []
        new: dict[bytes, Buffer] = {}
        for digest, data, checked in given:
            found = digest if checked and digest is not None else digest_of(data)
            if digest is not None and found != digest:
                answers.append(Mismatch(f"the bytes do not have the digest {digest.hex()}"))
                continue
            answers.append(found)
            new[found] = data
        self._promise(list(new))
        return answers, {
            found: data for found, data in new.items() if self.place(found) is None or not self._is_right(found)
        }

    def _write(self, chunks: list[tuple[bytes, bytes]], in_reserve: bool = False) -> None:
        records = [_head(digest, data) + data for digest, data in chunks]
        if not in_reserve:
            self._room(sum(map(len, records)))
        if self._descriptor < 0 or self._end >= PACK_FULL:
            self._bring_up()
            self._begin()
        start = self._end
        if abs((now := self._now()) - self._marked) >= MARK_MS:
            self._marks.append((self._current, start, now))
            self._marked = now
        try:
            _write_all(self._descriptor, memoryview(b"".join(records)), start)
            os.fdatasync(self._descriptor)
            # One that was unlinked under this process takes bytes all the same, and they are gone with it.
            os.stat(self._path(self._current))
        except OSError:
            self._abandon(start)
            raise
        # First of all, or what comes next could be written over these.
        self._end = self._sizes[self._current] = start + sum(map(len, records))
        path, offset = self._path(self._current), start
        for (digest, _), record in zip(chunks, records, strict=True):
            place = Place(self._current, offset, len(record) - _HEAD.size)
            self._unindexed[digest] = place
            self._recent.note(digest, place, path)
            offset += len(record)

    def _bring_up(self) -> None:
        """Have the index know everything that is in the packs."""
        if self._unindexed:
            rows = [(digest, place.offset, place.length) for digest, place in self._unindexed.items()]
            self._enter(self._current, rows, self._end)
            self._unindexed.clear()

    def _begin(self) -> None:
        """The next pack, with a name that outlives a power cut."""
        self._let_go()
        number = self._current + 1
        self._descriptor = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._current, self._end, self._marked = number, 0, 0
        self._sizes[number] = self._live[number] = 0
        try:
            sync_directory(self._directory)
        except OSError:
            self._abandon(0)
            raise

    def _abandon(self, start: int) -> None:
        """Write no more into a pack that failed: after a failed fsync nobody knows what the disk has of it."""
        with suppress(OSError):
            os.ftruncate(self._descriptor, start)
        self._let_go()

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _enter(self, number: int, rows: list[tuple[bytes, int, int]], scanned: int) -> None:
        """Put chunks into the index; where one was before is room to be won back."""
        freed = self._freed([digest for digest, _, _ in rows])
        live = {pack: self._live.get(pack, 0) - size for pack, size in freed.items() if pack in self._sizes}
        live[number] = live.get(number, self._live.get(number, 0)) + sum(_HEAD.size + length for _, _, length in rows)
        put = "INSERT OR REPLACE INTO chunks (digest, pack, at, length) VALUES (?, ?, ?, ?)"
        marks = self._marks[:]
        self._index.write(
            [
                ("INSERT OR REPLACE INTO written VALUES (?, ?, ?)", marks),
                (put, [(digest, number, offset, length) for digest, offset, length in rows]),
                (_SET_LIVE, [(pack, 0, size) for pack, size in live.items()]),
                ("UPDATE packs SET scanned = ? WHERE number = ?", [(scanned, number)]),
            ]
        )
        self._live.update(live)
        del self._marks[: len(marks)]

    def _freed(self, digests: Sequence[bytes]) -> dict[int, int]:
        """Bytes of each pack that are used for these chunks."""
        freed: dict[int, int] = {}
        for pack, length in self._index.read_named("SELECT pack, length FROM chunks WHERE digest IN", digests):
            freed[pack] = freed.get(pack, 0) + _HEAD.size + length
        return freed

    def _forget(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        self._bring_up()
        rows = self._index.read_named("SELECT digest, length FROM chunks WHERE digest IN", digests)
        if not rows:
            return {}
        live = {pack: self._live.get(pack, 0) - size for pack, size in self._freed(digests).items()}
        statements: list[Statement] = [
            ("DELETE FROM chunks WHERE digest = ?", [(digest,) for digest, _ in rows]),
            ("UPDATE packs SET live = ? WHERE number = ?", [(size, pack) for pack, size in live.items()]),
        ]
        self._index.write(statements)
        self._live.update(live)
        for digest in digests:
            self._recent.forget(digest)
        return {bytes(digest): length for digest, length in rows}

    def _left(self, number: int) -> Iterator[tuple[bytes, bytes]]:
        """What the index has in a pack and can be read: it may have been read wrong on the way, and is about to go."""
        for digest, at, length in self._index.read("SELECT digest, at, length FROM chunks WHERE pack = ?", (number,)):
            place = Place(number, at, length)
            data = _verified(self._read_record(place), place, bytes(digest))
            if data is not None:
                yield bytes(digest), data

    def _drop(self, number: int) -> list[bytes]:
        """Remove a pack that was written anew; returns what was in use and could not be read."""
        lost = []
        if self._live.get(number, 0) > 0:
            rows = self._index.read("SELECT digest FROM chunks WHERE pack = ?", (number,))
            lost = [bytes(row[0]) for row in rows]
        self._index.write(
            [
                ("DELETE FROM chunks WHERE digest = ?", [(digest,) for digest in lost]),
                ("DELETE FROM packs WHERE number = ?", [(number,)]),
                ("DELETE FROM written WHERE pack = ?", [(number,)]),
            ]
        )
        self._recent.forget_pack(number)
        with suppress(FileNotFoundError):
            os.unlink(self._path(number))
        self._sizes.pop(number, None)
        self._live.pop(number, None)
        return lost

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number:08}.pack"

    def _read_record(self, place: Place) -> bytes:
        return self._read_at(place.pack, place.offset, place.size)

    def _read_at(self, number: int, offset: int, length: int) -> bytes:
        try:
            descriptor = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            if is_unreadable(error):
                raise DamagedChunk(f"pack {number} cannot be read at {offset}: {error.strerror}") from error
            raise


def _head(digest: bytes, data: Buffer) -> bytes:
    return _HEAD.pack(MAGIC, digest, len(data), _sum(digest, data))


def _sum(digest: bytes, data: Buffer) -> int:
    head = crc32c(MAGIC + digest + _LENGTH.pack(len(data)))
    return int(google_crc32c.extend(head, data if isinstance(data, bytes) else bytes(data)))


def _is_good(head: bytes, data: bytes, digest: bytes) -> bool:
    if len(head) < _HEAD.size:
        return False
    magic, named, length, crc = _HEAD.unpack(head)
    return magic == MAGIC and named == digest and length == len(data) and bool(crc == _sum(digest, data))


def _verified(record: bytes, place: Place, digest: bytes) -> bytes | None:
    """The bytes of the chunk if this is its record."""
    data = record[_HEAD.size :]
    return data if len(record) == place.size and _is_good(record[: _HEAD.size], data, digest) else None


def _write_all(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
