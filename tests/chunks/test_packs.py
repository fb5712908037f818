"""Small chunks that share files."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, execute
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import packing, packs
from chunkfarm.chunks.index import Index
from chunkfarm.chunks.packs import PACKED_MOST, Packs
from chunkfarm.chunks.store import ChunkStore, DamagedChunk
from chunkfarm.errors import Full, InvalidRequest, Mismatch, NotFound
from chunkfarm.model import GIB, digest_of
from tests.chunks.builders import make_store, pattern, read_all

P = ParamSpec("P")
T = TypeVar("T")


def no_limit(needed: int) -> None:
    """There is always room."""


class PackedTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.damaged: list[tuple[bytes, str]] = []

    def store(self, **options: Any) -> ChunkStore:
        store = make_store(
            self.directory,
            packed_most=PACKED_MOST,
            on_damaged=lambda *damage: self.damaged.append(damage),
            **options,
        )
        self.addCleanup(store.close)
        return store

    def put(self, store: ChunkStore, data: bytes) -> bytes:
        return self.successResultOf(store.put(None, data))

    def read(self, store: ChunkStore, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        reader = self.successResultOf(store.open(digest, offset, length))
        return self.successResultOf(Deferred.fromCoroutine(read_all(reader)))

    def pack_files(self) -> list[Path]:
        return sorted((self.directory / "packs").glob("*.pack"))

    def forget_index(self) -> None:
        """What a person does who copies chunks alone, or a disk that loses a file."""
        for path in self.directory.glob("index.sqlite*"):
            path.unlink()

    def flip(self, data: bytes) -> None:
        """Damage one bit of a chunk inside its pack."""
        for path in self.pack_files():
            content = bytearray(path.read_bytes())
            at = content.find(data)
            if at >= 0:
                content[at + len(data) // 2] ^= 4
                path.write_bytes(content)
                return
        self.fail("the bytes are in no pack")


class PackedStoreTests(PackedTestCase):
    """A store that packs what is small; everything else about it is as with files."""

    def test_what_is_stored_is_read(self) -> None:
        """Chunks up to 64 KiB share a file and come back as they were; a larger one has its own."""
        store = self.store()
        for size in (0, 1, 100, PACKED_MOST - 1, PACKED_MOST, PACKED_MOST + 1):
            data = pattern(size)
            digest = self.put(store, data)
            assert self.read(store, digest) == data
            assert self.successResultOf(store.size(digest)) == size
            assert self.successResultOf(store.check(digest)) == size
            assert self.successResultOf(store.has([digest])) == [size]
        assert len(self.pack_files()) == 1
        assert len(list(self.directory.rglob("*.chunk"))) == 1

    def test_ranges(self) -> None:
        """Any range of a packed chunk is read, and one that it does not have is refused."""
        store = self.store()
        digest = self.put(store, pattern(1000))
        assert self.read(store, digest, 10, 20) == pattern(1000)[10:30]
        assert self.read(store, digest, 1000) == b""
        self.failureResultOf(store.open(digest, 990, 11), InvalidRequest)

    def test_wrong_digest(self) -> None:
        """Bytes that are not what was announced are refused, also when that chunk is here."""
        store = self.store()
        self.failureResultOf(store.put(digest_of(b"other"), b"data"), Mismatch)
        assert self.successResultOf(store.has([digest_of(b"other"), digest_of(b"data")])) == [0, 0]
        digest = self.put(store, b"data")
        self.failureResultOf(store.put(digest, b"DATA"), Mismatch)
        assert self.read(store, digest) == b"data"

    def test_not_written_twice(self) -> None:
        """A chunk that is here already takes no more room."""
        store = self.store()
        self.put(store, pattern(500))
        used = self.successResultOf(store.space()).used
        self.put(store, pattern(500))
        assert self.successResultOf(store.space()).used == used > 500

    def test_listed(self) -> None:
        """The digests held are listed by their first byte, packed or not."""
        store = self.store()
        chunks = [pattern(size) for size in range(0, 3000, 30)] + [pattern(PACKED_MOST + 1)]
        digests = sorted(self.put(store, chunk) for chunk in chunks)
        assert [digest for prefix in range(256) for digest in self.successResultOf(store.scan(prefix))] == digests

    def test_deleted(self) -> None:
        """A chunk that was deleted is gone, also after a restart, and can be stored again."""
        store = self.store()
        digest, other = self.put(store, pattern(1000)), self.put(store, pattern(1000, 1))
        assert self.successResultOf(store.delete(digest)) is True
        assert self.successResultOf(store.delete(digest)) is False
        for again in (store, self.store()):
            self.failureResultOf(again.open(digest), NotFound)
            assert self.read(again, other) == pattern(1000, 1)
        assert self.read(store, self.put(store, pattern(1000))) == pattern(1000)

    def test_damaged(self) -> None:
        """A damaged chunk is never served: it is put aside and reported, and its neighbours are as before."""
        store = self.store()
        digest, other = self.put(store, pattern(1000)), self.put(store, pattern(1000, 1))
        self.flip(pattern(1000))
        self.failureResultOf(store.open(digest), DamagedChunk)
        assert [damage[0] for damage in self.damaged] == [digest]
        assert len(list((self.directory / "quarantine").iterdir())) == 1
        self.failureResultOf(store.open(digest), NotFound)
        assert self.read(store, other) == pattern(1000, 1)
        assert self.read(store, self.put(store, pattern(1000))) == pattern(1000)

    def test_a_pack_that_is_gone(self) -> None:
        """Chunks whose pack was deleted by hand are damaged, then missing; after a restart they are missing."""
        store = self.store()
        digest, other = self.put(store, pattern(1000)), self.put(store, pattern(1000, 1))
        self.pack_files()[0].unlink()
        self.failureResultOf(store.open(digest), DamagedChunk)
        self.failureResultOf(store.open(digest), NotFound)
        assert self.successResultOf(self.store().has([digest, other])) == [0, 0]

    def test_no_room(self) -> None:
        """With the reserve reached a small chunk is refused like any other; what is there is read and deleted."""
        free = [GIB]
        store = self.store(reserve=GIB // 2, free=lambda: free[0])
        digest = self.put(store, b"data")
        free[0] = GIB // 2
        self.failureResultOf(store.put(None, b"more"), Full)
        assert self.read(store, digest) == b"data"
        assert self.successResultOf(store.delete(digest))
        free[0] = GIB
        self.put(store, b"more")

    def test_the_disk_fills(self) -> None:
        """A disk without room is told as such, and nothing of the batch is there."""
        store = self.store()
        self.put(store, b"data")
        with mock.patch("os.pwrite", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            self.failureResultOf(store.put(None, b"more"), Full)
        assert self.successResultOf(store.has([digest_of(b"more")])) == [0]
        assert self.read(store, self.put(store, b"again")) == b"again"

    def test_the_disk_fills_elsewhere(self) -> None:
        """No inode for the next pack, and no room for the index, are told as a full disk too; with room all is well."""
        self.patch(packs, "PACK_FULL", 1)
        store = self.store()
        self.put(store, b"data")
        no_room = OSError(errno.ENOSPC, "No space left on device")
        with mock.patch("os.open", side_effect=no_room):
            self.failureResultOf(store.put(None, b"more"), Full)
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        with mock.patch.object(Packs, "_enter", side_effect=full):
            self.failureResultOf(store.put(None, b"more"), Full)
        with mock.patch("chunkfarm.chunks.packs.sync_directory", side_effect=no_room):
            self.failureResultOf(store.put(None, b"more"), Full)
        assert self.successResultOf(store.has([digest_of(b"more")])) == [0]
        assert self.read(store, self.put(store, b"more")) == b"more"
        assert self.read(self.store(), digest_of(b"more")) == b"more"


class RestartTests(PackedTestCase):
    """What is found after the process ended, however it ended."""

    def test_nothing_is_there(self) -> None:
        """A store that was opened and never written to has made no file."""
        store = self.store()
        assert self.successResultOf(store.has([digest_of(b"data")])) == [0]
        assert self.successResultOf(store.delete(digest_of(b"data"))) is False
        assert self.successResultOf(store.scan(0)) == []
        assert [path for path in self.directory.rglob("*") if path.is_file()] == []

    def test_everything_is_there(self) -> None:
        """All that was stored is found by the next process, with and without its index."""
        store = self.store()
        chunks = [pattern(size, size) for size in range(0, 4000, 50)]
        digests = [self.put(store, chunk) for chunk in chunks]
        for forget in (False, True):
            if forget:
                self.forget_index()
            again = self.store()
            assert [self.read(again, digest) for digest in digests] == chunks
            assert self.successResultOf(again.space()).used == sum(path.stat().st_size for path in self.pack_files())

    def test_a_spoilt_index(self) -> None:
        """An index that is no database is made anew."""
        digest = self.put(self.store(), b"data")
        self.forget_index()
        (self.directory / "index.sqlite").write_bytes(b"not a database at all" * 500)
        assert self.read(self.store(), digest) == b"data"

    def test_an_index_that_is_damaged_inside(self) -> None:
        """An index that opens well, and whose rows cannot be read, ends one process, and not each that follows."""
        store = self.store()
        digests = [self.put(store, pattern(20, number)) for number in range(10)]
        store.close()
        index = self.directory / "index.sqlite"
        content = index.read_bytes()
        pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
        index.write_bytes(b"".join(b"\xff" * len(page) if digests[0] in page else page for page in pages))
        broken: list[Any] = []
        again = self.store(on_broken=broken.append)
        self.failureResultOf(again.has(digests), sqlite3.DatabaseError)
        assert len(broken) == 1
        again.close()
        assert self.successResultOf(self.store(on_broken=broken.append).has(digests)) == [20] * 10
        assert len(broken) == 1

    def test_an_index_for_which_there_is_no_room(self) -> None:
        """One that cannot be used for want of room or memory is not made anew, for which there would be none either."""
        index = Index(str(self.directory) + ".sqlite")
        self.addCleanup(index.close)
        index.open(make=True)
        for code, stays in ((sqlite3.SQLITE_IOERR_SHMSIZE, True), (sqlite3.SQLITE_IOERR_READ, False)):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = code
            index._give_up(error)
            assert os.path.exists(index._path) == stays

    def test_an_old_index(self) -> None:
        """The index of an earlier version, in another place, is removed, and all is found without it."""
        store = self.store()
        digest = self.put(store, b"data")
        store.close()
        old = self.directory / "packs" / "index.sqlite"
        (self.directory / "index.sqlite").rename(old)
        assert self.read(self.store(), digest) == b"data"
        assert not old.exists()

    def test_killed_before_the_index(self) -> None:
        """Records that were written, and not entered, are found at the end of their pack."""
        self.patch(packs, "UNINDEXED_MOST", 2)
        store = self.store()
        written = [self.put(store, bytes([number]) * 40) for number in range(5)]
        rows = store._index.read("SELECT digest FROM chunks")
        assert 0 < len(rows) < len(written)
        again = self.store()
        assert self.successResultOf(again.has(written)) == [40] * 5
        assert [digest for prefix in range(256) for digest in self.successResultOf(again.scan(prefix))] == sorted(
            written
        )

    def test_durable_again(self) -> None:
        """Records that a killed process may not have made durable are, before anybody hears that they are here."""
        digest = self.put(self.store(), b"data")
        (pack,) = self.pack_files()
        synced: list[int] = []
        with mock.patch("os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino)):
            again = self.store()
            assert pack.stat().st_ino in synced
        assert self.successResultOf(again.hold([digest])) == [4]

    def test_not_in_the_index_yet(self) -> None:
        """What the index was not told of is listed, found and deleted like all else, and known after a proper end."""
        store = self.store()
        first, second = self.put(store, b"first"), self.put(store, b"second")
        assert store._index.read("SELECT digest FROM chunks") == []
        assert self.successResultOf(store.has([first, second])) == [5, 6]
        assert first in self.successResultOf(store.scan(first[0]))
        assert self.successResultOf(store.delete(first))
        assert self.successResultOf(store.has([first, second])) == [0, 6]
        self.put(store, b"third")
        store.close()
        again = self.store()
        assert len(again._index.read("SELECT digest FROM chunks")) == 2
        assert self.read(again, digest_of(b"third")) == b"third"

    def test_a_torn_end(self) -> None:
        """What a power cut left of the last records is passed over, and what is stored later is found."""
        store = self.store()
        digest = self.put(store, pattern(300))
        path = self.pack_files()[0]
        whole = path.read_bytes()
        for left in (whole[:1], whole[:20], whole[:-1], bytes(len(whole)), packs.MAGIC, packs.MAGIC * 40):
            path.write_bytes(whole + left + whole[: len(whole) // 2])
            again = self.store()
            later = self.put(again, pattern(400))
            for one in (again, self.store()):
                assert self.read(one, digest) == pattern(300)
                assert self.read(one, later) == pattern(400)

    def test_records_behind_damage(self) -> None:
        """Without an index one damaged record does not hide those behind it, however many windows they fill."""
        self.patch(packs, "SCAN_STEP", 2 * PACKED_MOST + 1000)
        store = self.store()
        chunks = [pattern(PACKED_MOST - number, number) for number in range(20)]
        digests = [self.put(store, chunk) for chunk in chunks]
        self.flip(chunks[3])
        self.forget_index()
        again = self.store()
        lengths = self.successResultOf(again.has(digests))
        assert [bool(length) for length in lengths] == [number != 3 for number in range(20)]

    def unreadable(self, start: int, end: int) -> Any:
        """The disk cannot read these bytes of the first pack."""
        read, path = os.pread, str(self.pack_files()[0])

        def reading(descriptor: int, length: int, offset: int) -> bytes:
            if os.readlink(f"/proc/self/fd/{descriptor}") == path and offset < end and offset + length > start:
                raise OSError(errno.EIO, "Input/output error")
            return read(descriptor, length, offset)

        return mock.patch.object(os, "pread", side_effect=reading)

    def test_a_bad_sector_behind_the_index(self) -> None:
        """Where the disk cannot read a pack a start passes over that place, and the next one reads it again."""
        self.patch(packs, "SCAN_STEP", 2 * PACKED_MOST + 1000)
        store = self.store()
        chunks = [pattern(PACKED_MOST - number, number) for number in range(12)]
        digests = [self.put(store, chunk) for chunk in chunks]
        place = store._packs.place(digests[5])
        assert place is not None
        self.forget_index()
        with capturedLogs() as logged, self.unreadable(place.offset + 20_000, place.offset + 20_100):
            again = self.store()
            lengths = self.successResultOf(again.has(digests))
            assert [bool(length) for length in lengths] == [number != 5 for number in range(12)]
            assert self.read(again, digests[6]) == chunks[6]
            later = self.put(again, b"later")
        assert [event["what"].partition(" at ")[0] for event in logged if "what" in event] == ["pack 1 cannot be read"]
        again = self.store()
        lengths = self.successResultOf(again.has([*digests, later]))
        assert all(lengths)

    def test_a_pack_of_which_nothing_can_be_learned(self) -> None:
        """A pack whose inode the disk cannot read keeps no server from starting, and is there when that succeeds."""
        store = self.store()
        digest = self.put(store, b"data")
        name = str(self.pack_files()[0])

        def failing(call: Callable[..., Any]) -> Any:
            def checked(path: Any, *args: Any, **kwargs: Any) -> Any:
                if path == name:
                    raise OSError(errno.EUCLEAN, "Structure needs cleaning")
                return call(path, *args, **kwargs)

            return mock.patch.object(os, call.__name__, checked)

        for forget in (False, True):
            if forget:
                self.forget_index()
            with failing(os.open), failing(os.stat):
                again = self.store()
                assert self.successResultOf(again.has([digest])) == [0]
                later = self.put(again, b"later %d" % forget)
                again.close()
            again = self.store()
            assert self.successResultOf(again.has([digest, later])) == [4, 7]

    def test_a_disk_that_cannot_be_read(self) -> None:
        """Of a pack of which nothing can be read a start tries some places, and not all: each may take seconds."""
        store = self.store()
        for number in range(12):
            self.put(store, pattern(PACKED_MOST, number))
        self.forget_index()
        with self.unreadable(0, 10**9) as reading:
            self.store()
        assert packs.UNREADABLE_MOST < reading.call_count <= packs.UNREADABLE_MOST + 100

    def test_a_record_inside_of_a_chunk(self) -> None:
        """Who stores a chunk in which a record of another one stands has not changed that one, after any damage."""
        store = self.store()
        digest = self.put(store, b"what is meant")
        forged = packs._head(digest, b"what was forged") + b"what was forged"
        self.put(store, b"before" + forged + b"behind")
        whole = self.pack_files()[0].read_bytes()
        for torn in (whole[:-3], whole.replace(b"behind", b"Behind")):
            self.pack_files()[0].write_bytes(torn)
            self.forget_index()
            assert self.read(self.store(), digest) == b"what is meant"

    def test_the_index_is_behind(self) -> None:
        """An index that lost its last rows in a power cut is brought up to the packs."""
        store = self.store()
        digest = self.put(store, b"first")
        kept = {path: path.read_bytes() for path in self.directory.glob("index.sqlite*")}
        later = self.put(store, b"later")
        store._packs.close()
        self.forget_index()
        for path, content in kept.items():
            path.write_bytes(content)
        again = self.store()
        assert self.successResultOf(again.has([digest, later])) == [5, 5]


class SyncTests(PackedTestCase):
    """Nothing is said to be stored before it is durable, and one fsync does for many."""

    def setUp(self) -> None:
        super().setUp()
        self.calls: list[tuple[Deferred[Any], Callable[[], Any]]] = []
        self.waits = False

    def run_later(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        if not self.waits:
            return execute(function, *args, **kwargs)
        result: Deferred[T] = Deferred()
        self.calls.append((result, lambda: function(*args, **kwargs)))
        return result

    def disk(self) -> None:
        """Let the disk do what it was asked first."""
        result, call = self.calls.pop(0)
        execute(call).chainDeferred(result)

    def slow_store(self) -> ChunkStore:
        store = ChunkStore(
            self.directory, self.directory / "index.sqlite", self.run_later, reserve=0, room=lambda path: (GIB, GIB)
        )
        self.addCleanup(store.close)
        store.start()
        self.waits = True
        return store

    def test_one_fsync_for_many(self) -> None:
        """What comes while the disk works is made durable together, with the next fsync."""
        store = self.slow_store()
        puts = [store.put(None, pattern(1000, number)) for number in range(30)]
        synced: list[int] = []
        with mock.patch("os.fdatasync", side_effect=synced.append):
            self.disk()
            self.successResultOf(puts[0])
            for put in puts[1:]:
                self.assertNoResult(put)
            self.disk()
        assert [len(self.successResultOf(put)) for put in puts[1:]] == [32] * 29
        assert len(synced) == 2

    def test_durable_before_it_is_said(self) -> None:
        """A chunk is neither acknowledged nor held before the fsync has come back; one that failed is not there."""
        store = self.slow_store()
        self.put_fails(store, b"first")
        put = store.put(None, b"data")

        def look(descriptor: int) -> None:
            self.assertNoResult(put)
            assert store._packs.place(digest_of(b"data")) is None

        with mock.patch("os.fdatasync", side_effect=look):
            self.disk()
        assert self.successResultOf(put) == digest_of(b"data")
        self.put_fails(store, b"other")
        self.waits = False
        assert self.successResultOf(self.store().has([digest_of(b"data"), digest_of(b"other")])) == [4, 0]

    def put_fails(self, store: ChunkStore, data: bytes) -> None:
        put = store.put(None, data)
        with mock.patch("os.fdatasync", side_effect=OSError(errno.EIO, "Input/output error")):
            self.disk()
        self.failureResultOf(put, OSError)

    def test_no_descriptors_left(self) -> None:
        """Where a pack cannot be kept open to be read, chunks are stored all the same, and none over another."""
        store = self.store()
        call = os.open

        def opening(path: str, flags: int, *args: Any) -> int:
            if path.endswith(".pack") and not flags & os.O_CREAT:
                raise OSError(errno.EMFILE, "Too many open files")
            return call(path, flags, *args)

        with mock.patch("os.open", side_effect=opening):
            # Whatever becomes of it.
            store.put(None, b"first").addErrback(lambda failure: None)
        self.put(store, b"second")
        digest = self.put(store, b"first")
        assert self.read(store, digest) == b"first"
        assert self.read(store, digest_of(b"second")) == b"second"

    def test_a_put_that_nobody_waits_for(self) -> None:
        """A put that was cancelled disturbs neither the others nor the store."""
        store = self.slow_store()
        first, second, third = (store.put(None, bytes([number])) for number in range(3))
        second.cancel()
        self.failureResultOf(second)
        self.disk()
        self.disk()
        self.successResultOf(first)
        assert self.successResultOf(third) == digest_of(bytes([2]))

    def test_batches_end(self) -> None:
        """A long queue is stored in batches, so that the first need not wait for the last."""
        store = self.slow_store()
        first = store.put(None, b"first")
        puts = [store.put(None, str(number).encode()) for number in range(packing.BATCH_MOST + 1)]
        self.disk()
        self.successResultOf(first)
        self.disk()
        self.successResultOf(puts[-2])
        self.assertNoResult(puts[-1])
        self.disk()
        self.successResultOf(puts[-1])


class RewriteTests(PackedTestCase):
    """Room that deleted chunks took is won back."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(packs, "PACK_FULL", 100_000)
        self.patch(packs, "STEP", 20_000)

    def fill(self, store: ChunkStore) -> dict[bytes, bytes]:
        chunks = [pattern(5000, number) for number in range(100)]
        return {self.put(store, chunk): chunk for chunk in chunks}

    def test_room_is_won_back(self) -> None:
        """A pack of which less than half is in use is written anew; what is in use stays readable all the time."""
        store = self.store()
        chunks = self.fill(store)
        before = self.successResultOf(store.space()).used
        gone = [digest for number, digest in enumerate(chunks) if number % 4]
        for digest in gone:
            self.successResultOf(store.delete(digest))
        assert self.successResultOf(store.space()).used < before * 0.6
        assert self.successResultOf(store.space()).used == sum(path.stat().st_size for path in self.pack_files())
        for one in (store, self.store()):
            for digest, data in chunks.items():
                if digest in gone:
                    self.failureResultOf(one.open(digest), NotFound)
                else:
                    assert self.read(one, digest) == data

    def test_on_a_full_disk(self) -> None:
        """Room is won back also where no more chunks are taken, by what is kept in reserve."""
        free = [GIB]
        store = self.store(reserve=GIB // 2, free=lambda: free[0])
        chunks = self.fill(store)
        before = self.successResultOf(store.space()).used
        free[0] = GIB // 2
        for number, digest in enumerate(chunks):
            if number % 4:
                self.successResultOf(store.delete(digest))
        assert self.successResultOf(store.space()).used < before * 0.6
        assert all(self.read(store, digest) == chunks[digest] for digest in list(chunks)[::4])

    def test_a_pack_that_cannot_be_read(self) -> None:
        """A pack that the disk cannot read costs its own room, and not that of all others."""
        store = self.store()
        chunks = self.fill(store)
        bad, *others = self.pack_files()[:-1]
        read = os.pread

        def reading(descriptor: int, length: int, offset: int) -> bytes:
            if os.readlink(f"/proc/self/fd/{descriptor}") == str(bad):
                raise OSError(errno.EIO, "Input/output error")
            return read(descriptor, length, offset)

        self.patch(os, "pread", reading)
        for number, digest in enumerate(chunks):
            if number % 4:
                self.successResultOf(store.delete(digest))
        assert self.flushLoggedErrors(DamagedChunk)
        assert others and not [path for path in others if path.exists()]
        # It is tried again, and goes once that succeeds.
        self.patch(os, "pread", read)
        assert bad.exists()
        for digest in list(chunks)[::8]:
            self.successResultOf(store.delete(digest))
        assert not bad.exists()

    def test_what_is_deleted_during_a_step(self) -> None:
        """What is deleted while a pack is written anew begins nothing at that pack, which is gone a moment later."""
        store = self.store()
        chunks = self.fill(store)
        first, *_, last = (digest for digest in chunks if (place := store._packs.place(digest)) and place.pack == 1)
        with mock.patch.object(packing.Packing, "tidy"):
            for digest in chunks:
                if digest not in (first, last):
                    self.successResultOf(store.delete(digest))
        steps: list[int] = []
        rewrite = store._packs.rewrite

        def rewriting(number: int, offset: int) -> Any:
            steps.append(number)
            self.successResultOf(store.delete(first))
            return rewrite(number, offset)

        with mock.patch.object(store._packs, "rewrite", rewriting):
            self.successResultOf(store.delete(bytes(32)))
        assert self.flushLoggedErrors() == []
        assert self.read(store, last) == chunks[last]
        assert len(self.pack_files()) == 1
        # Each is gone through once, one after the other.
        assert set(steps) == {1, 2, 3, 4, 5} and steps == sorted(steps)

    def test_pack_that_cannot_be_opened(self) -> None:
        """Of a pack whose inode the disk cannot read all chunks are damaged: a round over the disk goes on."""
        store = self.store()
        digest = self.put(store, pattern(5000))
        again = self.store()
        name, call = str(self.pack_files()[0]), os.open

        def opening(path: str, *args: Any) -> int:
            if path == name:
                raise OSError(errno.EIO, "Input/output error")
            return call(path, *args)

        self.patch(os, "open", opening)
        self.failureResultOf(again.check(digest), DamagedChunk)
        assert [damage[0] for damage in self.damaged] == [digest]
        assert self.successResultOf(again.has([digest])) == [0]

    def test_half_way(self) -> None:
        """A process that ends while it writes a pack anew loses nothing, with and without its index."""
        store = self.store()
        chunks = self.fill(store)
        kept = list(chunks)[::4]
        with mock.patch.object(packing.Packing, "tidy"):
            for digest in chunks.keys() - set(kept):
                self.successResultOf(store.delete(digest))
        number = store._packs.wasteful()
        assert number is not None
        following, lost = store._packs.rewrite(number, 0)
        assert following is not None and not lost
        for forget in (False, True):
            if forget:
                self.forget_index()
            again = self.store()
            assert [self.read(again, digest) for digest in kept] == [chunks[digest] for digest in kept]

    def test_what_was_read_wrong_once(self) -> None:
        """A record that is read wrong while its pack is written anew is read once more before the pack goes."""
        store = self.store()
        chunks = self.fill(store)
        victim = list(chunks)[4]
        read = os.pread
        flipped: list[int] = []

        def reading(descriptor: int, length: int, offset: int) -> bytes:
            data = read(descriptor, length, offset)
            at = data.find(chunks[victim])
            if at < 0 or flipped:
                return data
            flipped.append(at)
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

        with mock.patch.object(os, "pread", reading):
            for digest in list(chunks)[:20]:
                if digest != victim:
                    self.successResultOf(store.delete(digest))
        assert flipped and self.damaged == []
        place = store._packs.place(victim)
        assert place is not None and place.pack != 1
        assert self.read(store, victim) == chunks[victim]

    def test_what_is_damaged_is_reported(self) -> None:
        """A damaged record in a pack that is written anew is not copied: the chunk is reported and gone."""
        store = self.store()
        chunks = self.fill(store)
        victim = list(chunks)[4]
        self.flip(chunks[victim])
        for digest in list(chunks)[:20]:
            if digest != victim:
                self.successResultOf(store.delete(digest))
        assert victim in [digest for digest, _ in self.damaged]
        assert self.successResultOf(store.has([victim])) == [0]


class HistoryTests(SynchronousTestCase):
    """Any history of puts, deletes, restarts and lost tails."""

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("put"), st.integers(0, 30)),
                st.tuples(st.just("delete"), st.integers(0, 30)),
                st.tuples(st.just("restart"), st.booleans()),
                st.tuples(st.just("garbage"), st.integers(0, 200)),
                st.tuples(st.just("rewrite"), st.just(0)),
            ),
            max_size=40,
        )
    )
    def test_nothing_acknowledged_is_lost(self, history: list[tuple[str, int]]) -> None:
        """What was put and not deleted is there and right, whatever happened to the index and behind the packs."""
        with TemporaryDirectory() as directory, mock.patch.multiple(packs, PACK_FULL=3000, STEP=1000):
            held: dict[bytes, bytes] = {}
            opened = Packs(directory, Index(f"{directory}/index.sqlite"), no_limit)
            opened.open()
            for what, number in history:
                if what == "put":
                    data = pattern(number * 37, number)
                    assert opened.append([(None, data, False)]) == [digest_of(data)]
                    held[digest_of(data)] = data
                elif what == "delete":
                    digest = digest_of(pattern(number * 37, number))
                    opened.delete([digest])
                    held.pop(digest, None)
                elif what == "rewrite" and (wasteful := opened.wasteful()) is not None:
                    following: int | None = 0
                    while following is not None:
                        following, lost = opened.rewrite(wasteful, following)
                        assert lost == []
                elif what in ("restart", "garbage"):
                    opened.close()
                    if what == "restart" and number:
                        for path in Path(directory).glob("index.sqlite*"):
                            path.unlink()
                    elif what == "garbage" and (files := sorted(Path(directory).glob("*.pack"))):
                        with open(files[-1], "ab") as file:
                            file.write(packs.MAGIC + os.urandom(number))
                    opened = Packs(directory, Index(f"{directory}/index.sqlite"), no_limit)
                    opened.open()
                for digest, data in held.items():
                    packed = opened.read(digest)
                    assert packed is not None and bytes(packed.read(0, packed.length)) == data
            opened.close()
