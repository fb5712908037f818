from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import chunkfile
from chunkfarm.chunks.chunkfile import BLOCK, ChunkFile, trailer_length
from chunkfarm.chunks.opened import ChunkReader
from chunkfarm.chunks.pieces import Buffer
from chunkfarm.chunks.read_memory import PIECE
from chunkfarm.chunks.store import ChunkStore, DamagedChunk, room_of
from chunkfarm.errors import Full, InvalidRequest, LimitExceeded, Mismatch, NotFound
from chunkfarm.model import CHUNK_SIZE_MAX, GIB, digest_of
from tests.chunks.builders import make_store, pattern, read_all, run_now

SIZES = [0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7]


class StoreTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.damaged: list[tuple[bytes, str]] = []

    def store(self, **options: Any) -> ChunkStore:
        store = make_store(self.directory, on_damaged=lambda *damage: self.damaged.append(damage), **options)
        self.addCleanup(store.close)
        return store

    def put(self, store: ChunkStore, data: Buffer) -> bytes:
        return self.successResultOf(store.put(None, data))

    def read(self, store: ChunkStore, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        reader = self.successResultOf(store.open(digest, offset, length))
        return self.successResultOf(Deferred.fromCoroutine(read_all(reader)))

    def path(self, digest: bytes) -> Path:
        return self.directory / digest.hex()[:2] / f"{digest.hex()}.chunk"

    def flip(self, digest: bytes, position: int) -> None:
        """Damage one bit of a chunk's file."""
        data = bytearray(self.path(digest).read_bytes())
        data[position] ^= 0x10
        self.path(digest).write_bytes(data)

    def leftovers(self) -> list[str]:
        return os.listdir(self.directory / "incoming")


class PutTests(StoreTestCase):
    def test_what_is_stored_is_read(self) -> None:
        """A chunk of any size comes back as it was."""
        store = self.store()
        for size in SIZES:
            data = pattern(size)
            assert self.read(store, self.put(store, data)) == data

    def test_data_first(self) -> None:
        """The file begins with the chunk's own bytes, so that other tools can read it."""
        data = pattern(BLOCK + 5)
        digest = self.put(self.store(), data)
        content = self.path(digest).read_bytes()
        assert content[: len(data)] == data
        assert len(content) == len(data) + trailer_length(len(data))

    def test_any_buffer(self) -> None:
        """A chunk may be given as bytes, bytearray or memoryview."""
        store = self.store()
        data = pattern(1000)
        for buffer in (data, bytearray(data), memoryview(data)):
            assert self.put(store, buffer) == digest_of(data)

    def test_wrong_digest(self) -> None:
        """Bytes that are not what was announced are refused, and nothing of them stays."""
        store = self.store()
        self.failureResultOf(store.put(digest_of(b"other"), b"data"), Mismatch)
        assert self.leftovers() == []
        assert self.successResultOf(store.has([digest_of(b"other"), digest_of(b"data")])) == [False, False]

    def test_wrong_digest_of_a_chunk_that_is_here(self) -> None:
        """Wrong bytes are refused also when the chunk they claim to be is here already."""
        store = self.store()
        digest = self.put(store, b"data")
        self.failureResultOf(store.put(digest, b"DATA"), Mismatch)
        assert self.read(store, digest) == b"data"

    def test_not_hashed_twice(self) -> None:
        """Bytes whose digest the caller has computed are taken at his word."""
        store = self.store()
        digest = digest_of(b"data")
        with mock.patch("hashlib.sha256") as sha256:
            assert self.successResultOf(store.put(digest, b"data", checked=True)) == digest
        assert not sha256.return_value.update.called
        assert self.read(store, digest) == b"data"

    def test_not_rewritten(self) -> None:
        """A chunk that is here already, and right, is not written again."""
        store = self.store()
        digest = self.put(store, b"data")
        before = self.path(digest).stat().st_ino
        self.successResultOf(store.put(digest, b"data"))
        assert self.path(digest).stat().st_ino == before
        assert self.leftovers() == []

    def test_broken_copy_is_replaced(self) -> None:
        """A chunk whose file is not whole is written anew."""
        store = self.store()
        digest = self.put(store, pattern(BLOCK * 2))
        os.truncate(self.path(digest), BLOCK)
        self.successResultOf(store.put(digest, pattern(BLOCK * 2)))
        assert self.read(store, digest) == pattern(BLOCK * 2)

    def test_too_large(self) -> None:
        """More than the largest chunk is refused."""
        data = memoryview(bytes(1)).cast("B")
        oversize = mock.MagicMock(wraps=data)
        oversize.__len__.return_value = CHUNK_SIZE_MAX + 1
        self.failureResultOf(self.store().put(None, oversize), LimitExceeded)

    def test_durable_before_it_is_said(self) -> None:
        """The file is synced before it gets its name, and the directory after."""
        store = self.store()
        steps: list[str] = []

        def note(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                directory = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
                steps.append("fsync directory" if directory else name)
                return real(*args)

            return call

        with mock.patch("os.fsync", note("fsync", os.fsync)), mock.patch("os.rename", note("rename", os.rename)):
            digest = self.put(store, b"data")
            assert steps == ["fsync", "fsync directory", "rename", "fsync directory"]
            steps.clear()
            self.successResultOf(store.put(digest, b"data"))
            assert steps == ["fsync directory"], "whoever wrote it may not have come to it yet"

    def test_private(self) -> None:
        """Nobody else on the machine can read the chunks."""
        digest = self.put(self.store(), b"data")
        assert stat.S_IMODE(self.path(digest).stat().st_mode) == 0o600
        for directory in (self.path(digest).parent, self.directory / "incoming", self.directory):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700


class DamageTests(StoreTestCase):
    @given(size=st.sampled_from(SIZES), where=st.integers(min_value=0), data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_any_flipped_bit(self, size: int, where: int, data: st.DataObject) -> None:
        """Whatever bit of the file flips: no wrong byte is ever handed out, and the chunk is put aside."""
        with TemporaryDirectory() as directory:
            self.directory = Path(directory)
            self.damaged = []
            store = self.store()
            content = pattern(size)
            digest = self.put(store, content)
            self.flip(digest, where % (size + trailer_length(size)))
            given: list[bytes] = []

            async def read() -> None:
                reader = await store.open(digest)
                while (piece := await reader.next()) is not None:
                    given.append(bytes(piece))

            self.failureResultOf(Deferred.fromCoroutine(read()), DamagedChunk)
            assert content.startswith(b"".join(given))
            assert [one[0] for one in self.damaged] == [digest]
            assert not self.path(digest).exists()
            assert len(os.listdir(self.directory / "quarantine")) == 1
            self.failureResultOf(store.open(digest), NotFound)
            self.flushLoggedErrors()

    def test_only_touched_blocks(self) -> None:
        """A range is verified without reading the rest of the chunk."""
        store = self.store()
        data = pattern(8 * BLOCK)
        digest = self.put(store, data)
        self.flip(digest, 5 * BLOCK + 3)
        assert self.read(store, digest, 2 * BLOCK + 1, 3 * BLOCK - 1) == data[2 * BLOCK + 1 : 5 * BLOCK]
        reader = self.failureResultOf(store.open(digest, 5 * BLOCK - 1, 2), DamagedChunk)
        assert "block 5" in str(reader.value)

    def test_cut_off(self) -> None:
        """A file of any shorter length is damaged, not a shorter chunk."""
        store = self.store()
        for length in (0, 1, 60, BLOCK, BLOCK + 100):
            digest = self.put(store, pattern(2 * BLOCK))
            os.truncate(self.path(digest), length)
            assert self.successResultOf(store.has([digest])) == [False]
            self.failureResultOf(store.size(digest), DamagedChunk)

    def test_cut_off_while_open(self) -> None:
        """A file that loses its end while it is read ends in an error, not in silence."""
        store = self.store()
        digest = self.put(store, pattern(4 * PIECE))
        reader = self.successResultOf(store.open(digest))
        self.successResultOf(reader.next())
        os.truncate(self.path(digest), 2 * PIECE)
        self.successResultOf(reader.next())
        self.failureResultOf(reader.next(), DamagedChunk)

    def test_longer(self) -> None:
        """A file with something behind its trailer is damaged."""
        store = self.store()
        digest = self.put(store, b"data")
        with self.path(digest).open("ab") as file:
            file.write(b"x")
        self.failureResultOf(store.open(digest), DamagedChunk)

    def test_another_chunks_file(self) -> None:
        """A perfect file that holds another chunk is not served under this one's name."""
        store = self.store()
        wrong = self.put(store, b"wrong")
        digest = self.put(store, b"right")
        os.replace(self.path(wrong), self.path(digest))
        self.failureResultOf(store.open(digest), DamagedChunk)

    def test_bad_sector(self) -> None:
        """A disk that cannot read a block costs that chunk."""
        store = self.store()
        digest = self.put(store, b"data")
        with mock.patch("os.pread", side_effect=OSError(errno.EIO, "Input/output error")):
            self.failureResultOf(store.open(digest), DamagedChunk)
        assert not self.path(digest).exists()

    def test_a_file_of_which_nothing_can_be_learned(self) -> None:
        """A file whose inode the disk cannot read costs that chunk, and no answer about others."""
        store = self.store()
        bad, good = self.put(store, b"data"), self.put(store, b"other data")
        self.spoil(bad)
        assert self.successResultOf(store.has([bad, good])) == [0, 10]
        assert self.successResultOf(store.hold([bad, good])) == [0, 10]
        assert self.successResultOf(store.verified([bad, good]))[0] == 0
        self.failureResultOf(store.open(bad), DamagedChunk)
        self.failureResultOf(store.check(bad), DamagedChunk)
        assert [digest for digest, _ in self.damaged] == [bad, bad]
        self.failureResultOf(store.put(None, b"data"), OSError)
        assert self.leftovers() == []
        assert self.successResultOf(store.delete(good))
        assert not self.successResultOf(store.delete(bad))

    def test_a_file_that_cannot_be_removed(self) -> None:
        """A file that the disk does not remove holds up none that is removed together with it."""
        store = self.store()
        digests = sorted(self.put(store, pattern(10, number)) for number in range(4))
        self.spoil(digests[1], "unlink")
        store._promises.condemned.update(digests)
        assert len(self.successResultOf(store.delete_condemned(digests))) == 3
        assert self.successResultOf(store.has(digests)) == [0, 10, 0, 0]

    def spoil(self, digest: bytes, *functions: str) -> None:
        """From now on the disk can do none of these with this chunk's file; by default nothing that needs its inode."""
        name = str(self.path(digest))

        def failing(call: Callable[..., Any]) -> Callable[..., Any]:
            def checked(*args: Any, **kwargs: Any) -> Any:
                if name in args:
                    raise OSError(errno.EIO, "Input/output error", name)
                return call(*args, **kwargs)

            return checked

        for function in functions or ("open", "stat", "rename", "unlink"):
            self.patch(os, function, failing(getattr(os, function)))

    def test_no_descriptors_left(self) -> None:
        """A server that has run out of file descriptors does not call its chunks damaged."""
        store = self.store()
        digest = self.put(store, b"data")
        with mock.patch("os.open", side_effect=OSError(errno.EMFILE, "Too many open files")):
            self.failureResultOf(store.open(digest), OSError)
        assert self.read(store, digest) == b"data"
        assert self.damaged == []

    def test_stored_again(self) -> None:
        """Who brings a chunk of which there is a damaged copy is not told that it is here: the copy is made anew."""
        for store, data in ((self.store(), pattern(2000)), (self.store(packed_most=1000), pattern(100))):
            for named in (True, False):
                digest = self.put(store, data)
                if len(data) > 1000:
                    self.flip(digest, 0)
                else:
                    self.flip_packed(data)
                self.damaged.clear()
                assert self.successResultOf(store.put(digest if named else None, data)) == digest
                assert self.read(store, digest) == data
                assert self.successResultOf(store.check(digest)) == len(data)
                if named or len(data) <= 1000:
                    assert [found for found, _ in self.damaged] == [digest]
        assert len(os.listdir(self.directory / "quarantine")) == 3

    def test_stored_again_without_room(self) -> None:
        """Damage that was found so is told of also if there is no room for a good copy."""
        free = [GIB]
        store = self.store(free=lambda: free[0])
        digest = self.put(store, pattern(2000))
        self.flip(digest, 0)
        free[0] = 0
        self.failureResultOf(store.put(digest, pattern(2000)), Full)
        assert [found for found, _ in self.damaged] == [digest]

    def test_good_one_stays(self) -> None:
        """Who reads a damaged file puts aside that file, not the good one that has taken its place."""
        store = self.store()
        data = pattern(4 * PIECE)
        digest = self.put(store, data)
        self.flip(digest, 3 * PIECE)
        reader = self.successResultOf(store.open(digest))
        self.successResultOf(store.quarantine(digest, "a test says so"))
        self.put(store, data)
        self.failureResultOf(Deferred.fromCoroutine(read_all(reader)), DamagedChunk)
        assert self.read(store, digest) == data

    def test_good_one_that_comes_meanwhile_stays(self) -> None:
        """The same if the good one comes right after the damage was found: it was acknowledged, and may be the last."""
        for store, data in ((self.store(), pattern(2000)), (self.store(packed_most=1000), pattern(100))):
            for call in (store.open, store.size, store.check):
                digest = self.put(store, data)
                if len(data) > 1000:
                    self.flip(digest, -1)
                else:
                    self.flip_packed(data)
                aside = store._put_damaged_aside

                def late(
                    found: bytes, inode: int | None, aside: Any = aside, put: Any = store.put, data: Any = data
                ) -> None:
                    """Another reader found it too, and the chunk was brought again, before this one goes on."""
                    aside(found, inode)
                    self.successResultOf(put(found, data))
                    aside(found, inode)

                with mock.patch.object(store, "_put_damaged_aside", late):
                    self.failureResultOf(call(digest), DamagedChunk)
                assert self.read(store, digest) == data

    def flip_packed(self, data: bytes) -> None:
        """Damage a chunk in its pack."""
        for path in (self.directory / "packs").glob("*.pack"):
            path.write_bytes(path.read_bytes().replace(data, bytes(len(data))))

    def test_good_one_in_the_place_of_one_that_could_not_be_opened(self) -> None:
        """The same if nothing at all could be learned of the damaged one."""
        store = self.store()
        digest = self.put(store, b"data")
        with (
            mock.patch("os.open", side_effect=OSError(errno.EIO, "Input/output error")),
            mock.patch.object(store, "_put_damaged_aside", lambda digest, inode: None),
        ):
            damage = self.failureResultOf(store.open(digest), DamagedChunk).value
        store._put_damaged_aside(digest, damage.inode)
        assert self.read(store, digest) == b"data"

    def test_nowhere_to_put_it(self) -> None:
        """Somebody has removed what was put aside, with its directory: the next chunk is put aside all the same."""
        store = self.store()
        digest = self.put(store, b"data")
        (self.directory / "quarantine").rmdir()
        assert self.successResultOf(store.quarantined()) == []
        self.flip(digest, 0)
        self.failureResultOf(store.check(digest), DamagedChunk)
        assert [found for found, _ in self.damaged] == [digest]
        assert self.successResultOf(store.quarantined()) == [digest]

    def test_twice(self) -> None:
        """The same chunk may be damaged again; both files are kept."""
        store = self.store()
        for _ in range(2):
            digest = self.put(store, b"data")
            self.flip(digest, 0)
            self.failureResultOf(store.open(digest), DamagedChunk)
        assert len(os.listdir(self.directory / "quarantine")) == 2

    def test_check(self) -> None:
        """A check reads the whole chunk."""
        store = self.store()
        digest = self.put(store, pattern(2 * PIECE))
        assert self.successResultOf(store.check(digest)) == 2 * PIECE
        self.flip(digest, PIECE)
        self.failureResultOf(store.check(digest), DamagedChunk)
        self.failureResultOf(store.check(digest), NotFound)

    def test_trailer_of_a_wrong_digest(self) -> None:
        """Blocks that agree with their sums but not with the digest are found by a check."""
        store = self.store()
        digest = digest_of(b"data")
        self.successResultOf(store.put(digest, b"lies", checked=True))
        self.failureResultOf(store.check(digest), DamagedChunk)


class ReadTests(StoreTestCase):
    @given(size=st.sampled_from(SIZES), data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_any_range(self, size: int, data: st.DataObject) -> None:
        """Any range of a chunk is what the same slice of its bytes is."""
        offset = data.draw(st.integers(0, size))
        length = data.draw(st.one_of(st.none(), st.integers(0, size - offset)))
        with TemporaryDirectory() as directory:
            self.directory = Path(directory)
            store = self.store()
            digest = self.put(store, pattern(size))
            end = size if length is None else offset + length
            assert self.read(store, digest, offset, length) == pattern(size)[offset:end]

    def test_wrong_ranges(self) -> None:
        """A range that the chunk does not have is refused."""
        store = self.store()
        digest = self.put(store, b"data")
        for offset, length in ((5, None), (5, 0), (0, 5), (4, 1), (-1, 2), (2, -1)):
            self.failureResultOf(store.open(digest, offset, length), InvalidRequest)

    def test_pieces(self) -> None:
        """Pieces are whole, large and aligned, so that no block is read twice."""
        store = self.store()
        reader = self.successResultOf(store.open(self.put(store, pattern(3 * PIECE)), 10))
        assert reader.chunk_length == 3 * PIECE
        assert reader.length == 3 * PIECE - 10
        lengths = [len(self.successResultOf(reader.next()) or b"") for _ in range(4)]
        assert lengths == [PIECE - 10, PIECE, PIECE, 0]

    def test_deleted_while_read(self) -> None:
        """Who reads a chunk is not disturbed by its removal."""
        store = self.store()
        digest = self.put(store, pattern(3 * PIECE))
        reader = self.successResultOf(store.open(digest))
        assert self.successResultOf(store.delete(digest))
        assert self.successResultOf(Deferred.fromCoroutine(read_all(reader))) == pattern(3 * PIECE)
        self.failureResultOf(store.open(digest), NotFound)
        assert not self.successResultOf(store.delete(digest))

    def test_closed(self) -> None:
        """A reader that is closed gives nothing more, keeps no file open and may be closed again."""
        store = self.store()
        digest = self.put(store, pattern(3 * PIECE))
        before = len(os.listdir("/proc/self/fd"))
        readers: list[ChunkReader] = [self.successResultOf(store.open(digest)) for _ in range(3)]
        self.successResultOf(readers[1].next())
        self.successResultOf(Deferred.fromCoroutine(read_all(readers[2])))
        for reader in readers:
            reader.close()
            reader.close()
            self.failureResultOf(reader.next(), CancelledError)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_forgotten(self) -> None:
        """A file whose opener has gone is closed all the same."""
        store = self.store()
        digest = self.put(store, b"data")
        before = len(os.listdir("/proc/self/fd"))
        file = ChunkFile(str(self.path(digest)), digest)
        del file
        assert len(os.listdir("/proc/self/fd")) == before

    def test_opener_that_has_gone(self) -> None:
        """What was read for somebody who has gone meanwhile is not in memory any more, and its file is closed."""
        digest = self.put(self.store(), pattern(3 * PIECE))
        store, finish = self.slow_store()
        before = len(os.listdir("/proc/self/fd"))
        opening = store.open(digest)
        opening.cancel()
        self.failureResultOf(opening, CancelledError)
        finish()
        assert store.memory.used == 0
        assert len(os.listdir("/proc/self/fd")) == before

    def test_damage_that_nobody_waits_for(self) -> None:
        """A copy is told to be damaged also when whoever had it read has gone meanwhile."""
        digest = self.put(self.store(), pattern(3 * PIECE))
        self.flip(digest, 0)
        for question in ("open", "check"):
            store, finish = self.slow_store()
            asked = getattr(store, question)(digest)
            asked.cancel()
            self.failureResultOf(asked, CancelledError)
            finish()
            assert not self.path(digest).exists() and [damage[0] for damage in self.damaged] == [digest]
            self.damaged.clear()
            self.put(self.store(), pattern(3 * PIECE))
            self.flip(digest, 0)

    def slow_store(self) -> tuple[ChunkStore, Callable[[], None]]:
        """The same store with a disk that works when it is told to."""
        calls: list[tuple[Deferred[Any], Callable[[], Any]]] = []

        def run(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
            result: Deferred[Any] = Deferred()
            calls.append((result, lambda: function(*args, **kwargs)))
            return result

        def finish() -> None:
            while calls:
                result, call = calls.pop(0)
                execute(call).chainDeferred(result)

        store = ChunkStore(
            self.directory,
            self.directory / "index.sqlite",
            run,
            reserve=0,
            on_damaged=lambda *damage: self.damaged.append(damage),
        )
        self.addCleanup(store.close)
        return store, finish

    def test_read_ahead(self) -> None:
        """While a piece is sent the next one is read, but not before the first was asked for."""
        calls: list[str] = []

        def run(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
            calls.append(function.__name__)
            return run_now(function, *args, **kwargs)

        store = ChunkStore(self.directory, self.directory / "index.sqlite", run, reserve=0)
        store.start()
        digest = self.put(store, pattern(3 * PIECE))
        calls.clear()
        reader = self.successResultOf(store.open(digest))
        assert calls == ["_open"]
        reader.next()
        assert calls == ["_open", "_read"]
        reader.next()
        assert calls == ["_open", "_read", "_read"]
        reader.next()
        reader.next()
        assert calls == ["_open", "_read", "_read"]


class FullDiskTests(StoreTestCase):
    def test_reserve(self) -> None:
        """Below the reserve nothing is written any more, and the reason says so."""
        free = GIB
        store = self.store(reserve=GIB - 500, free=lambda: free)
        digest = self.put(store, b"x" * 100)
        failure = self.failureResultOf(store.put(None, b"y" * 500), Full)
        assert "in reserve" in str(failure.value)
        assert not self.successResultOf(store.space()).full
        free = GIB - 501
        assert self.successResultOf(store.space()).full
        assert self.read(store, digest) == b"x" * 100
        assert self.successResultOf(store.put(digest, b"x" * 100)) == digest, "what is here needs no room"
        assert self.successResultOf(store.delete(digest))

    def test_default_reserve(self) -> None:
        """The reserve is the larger of 1 GiB and 2 % unless the config says another."""
        for free, total, full in (
            (GIB - 1, 10 * GIB, True),
            (GIB, 10 * GIB, False),
            (19 * GIB, 1000 * GIB, True),
            (20 * GIB, 1000 * GIB, False),
        ):
            room = mock.Mock(return_value=(free, total))
            store = ChunkStore(self.directory, self.directory / "index.sqlite", run_now, room=room)
            store.start()
            assert self.successResultOf(store.space()).full is full

    def test_disk_full(self) -> None:
        """A disk that fills up in the middle of a chunk is told as such, and nothing stays behind."""
        store = self.store()
        for number in (errno.ENOSPC, errno.EDQUOT):
            with mock.patch.object(chunkfile, "_write_all", side_effect=OSError(number, os.strerror(number))):
                self.failureResultOf(store.put(None, b"data"), Full)
            with mock.patch("os.fsync", side_effect=OSError(number, os.strerror(number))):
                self.failureResultOf(store.put(None, b"data"), Full)
        assert self.leftovers() == []

    def test_disk_fails(self) -> None:
        """A disk that cannot make a chunk durable is an error, and nothing stays behind."""
        store = self.store()
        with mock.patch("os.fsync", side_effect=OSError(errno.EIO, "Input/output error")):
            self.failureResultOf(store.put(None, b"data"), OSError)
        assert self.leftovers() == []
        assert self.successResultOf(store.has([digest_of(b"data")])) == [False]

    def test_used(self) -> None:
        """The space that chunks use is known after a start and follows every change."""
        store = self.store()
        size = 1000 + trailer_length(1000)
        digests = [self.put(store, pattern(1000, seed)) for seed in range(3)]
        assert self.successResultOf(store.space()).used == 3 * size
        assert self.successResultOf(self.store().space()).used == 3 * size
        self.successResultOf(store.put(digests[0], pattern(1000)))
        self.successResultOf(store.delete(digests[0]))
        assert self.successResultOf(store.space()).used == 2 * size
        self.flip(digests[1], 0)
        self.failureResultOf(store.open(digests[1]), DamagedChunk)
        assert self.successResultOf(store.space()).used == size

    def test_used_beside_a_file_of_which_nothing_can_be_learned(self) -> None:
        """A file whose inode the disk cannot read is not counted, and all others are."""
        store = self.store()
        digests = sorted(self.put(store, bytes([number])) for number in range(4))
        size = self.path(digests[0]).stat().st_size
        call = os.scandir
        unreadable = mock.Mock(stat=mock.Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        unreadable.name = self.path(digests[1]).name

        def scan(path: str) -> Any:
            entries = mock.MagicMock()
            entries.__enter__.return_value = [unreadable if one.name == unreadable.name else one for one in call(path)]
            return entries

        self.patch(os, "scandir", scan)
        assert self.successResultOf(self.store().space()).used == 3 * size

    def test_real_room(self) -> None:
        """The file system's own numbers are believed."""
        free, total = room_of("/")
        assert 0 <= free <= total


class StartTests(StoreTestCase):
    def test_crash_leftovers(self) -> None:
        """What was being written when the process was killed is gone after the next start; the rest is there."""
        digest = self.put(self.store(), b"data")
        (self.directory / "incoming" / "7.tmp").write_bytes(b"half a ch")
        store = self.store()
        assert self.leftovers() == []
        assert self.read(store, digest) == b"data"

    def test_what_the_disk_cannot_read(self) -> None:
        """A leftover that cannot be removed, and a directory that cannot be read, keep no server from all the rest."""
        first = self.store()
        bad, good = self.put(first, b"data"), self.put(first, b"other data")
        leftover = self.directory / "incoming" / "0.tmp"
        leftover.write_bytes(b"half a ch")
        names = (str(leftover), str(self.path(bad).parent))
        call = {name: getattr(os, name) for name in ("open", "unlink", "scandir")}

        def failing(name: str) -> Callable[..., Any]:
            def checked(path: Any, *args: Any, **kwargs: Any) -> Any:
                if str(path) in names and not (name == "open" and args[0] & os.O_CREAT):
                    raise OSError(errno.EIO, "Input/output error")
                return call[name](path, *args, **kwargs)

            return checked

        for name in call:
            self.patch(os, name, failing(name))
        store = self.store()
        assert self.read(store, good) == b"other data"
        later = self.put(store, b"new data")
        assert self.read(store, later) == b"new data"
        assert leftover.exists()
        # All that can be counted is.
        assert self.successResultOf(store.space()).used == sum(
            self.path(digest).stat().st_size for digest in (good, later)
        )

    def test_durable_again(self) -> None:
        """A chunk that was renamed just before a kill is made durable before it is promised to anybody."""
        digest = self.put(self.store(), b"data")
        synced: list[str] = []
        with mock.patch("chunkfarm.chunks.loose.sync_directory", synced.append):
            self.store()
        assert str(self.path(digest).parent) in synced

    def test_durable_directories(self) -> None:
        """A power cut soon after the first start takes no directory away, with all that was stored in it."""
        synced: list[tuple[str, list[str]]] = []

        def note(directory: str) -> None:
            synced.append((directory, os.listdir(directory)))

        with mock.patch("chunkfarm.chunks.store.sync_directory", note):
            self.store()
        held = dict(synced)
        assert "packs" in held[str(self.directory)]
        assert self.directory.name in held[str(self.directory.parent)]

    def test_scan(self) -> None:
        """A scan finds every chunk once, in order, and nothing else."""
        store = self.store()
        digests = sorted(self.put(store, pattern(10, seed)) for seed in range(40))
        (self.path(digests[0]).parent / "README").write_text("not a chunk")
        (self.path(digests[0]).parent / f"{'g' * 64}.chunk").write_text("not a chunk")
        found = [digest for prefix in range(256) for digest in self.successResultOf(store.scan(prefix))]
        assert found == digests
        assert self.successResultOf(store.has(digests)) == [10] * 40
        assert self.successResultOf(store.size(digests[0])) == 10

    def test_stopped_while_counting(self) -> None:
        """A server that stops does not wait until its chunks are counted."""
        pending: list[Callable[[], None]] = []

        def later(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
            result: Deferred[Any] = Deferred()
            pending.append(lambda: result.callback(function(*args, **kwargs)))
            return result

        store = ChunkStore(self.directory, self.directory / "index.sqlite", later, reserve=0)
        started = store.start()
        pending.pop()()
        self.successResultOf(started)
        pending.pop()()
        store.stop()
        pending.pop()()
        assert pending == []


class RemovedDirectoryTests(StoreTestCase):
    """Somebody removes the directory of the chunks while the server runs, or puts another in its place."""

    def setUp(self) -> None:
        super().setUp()
        self.index = Path(self.mktemp()).absolute()

    def store(self, **options: Any) -> ChunkStore:
        return super().store(index=self.index, packed_most=1000, **options)

    def test_goes_on(self) -> None:
        """What is put after that is stored and found again, small or large, and is not lost with what was removed."""
        store = self.store()
        before = [self.put(store, pattern(size)) for size in (100, 2000)]
        for size in (101, 2001):
            shutil.rmtree(self.directory)
            digest = self.put(store, pattern(size))
            assert self.successResultOf(store.has([*before, digest])) == [0, 0, size]
            for one in (store, self.store()):
                assert self.read(one, digest) == pattern(size)

    def test_noticed(self) -> None:
        """It is noticed without a write, said once, and the chunks that are gone are not promised any more."""
        store = self.store()
        small, large = self.put(store, pattern(100)), self.put(store, pattern(2000))
        shutil.rmtree(self.directory)
        assert self.successResultOf(store.space()).used == 0
        assert self.successResultOf(store.hold([small, large])) == [0, 0]
        assert self.successResultOf(store.quarantined()) == []
        assert self.damaged == []

    def test_another_directory(self) -> None:
        """Another directory with chunks in its place is taken as it is."""
        store = self.store()
        kept = self.put(store, pattern(2000))
        gone = [self.put(store, pattern(size)) for size in (100, 3000)]
        other = self.directory.with_name("other")
        shutil.copytree(self.directory, other, ignore=shutil.ignore_patterns("*.pack", f"{gone[1].hex()}.chunk"))
        shutil.rmtree(self.directory)
        other.rename(self.directory)
        self.successResultOf(store.space())
        assert self.successResultOf(store.has([kept, *gone])) == [2000, 0, 0]

    def test_nothing_was_removed(self) -> None:
        """A file that cannot be written for another reason is an error as before."""
        store = self.store()
        with mock.patch.object(chunkfile, "_write_all", side_effect=FileNotFoundError()):
            self.failureResultOf(store.put(None, pattern(2000)), FileNotFoundError)


class QuarantineTests(StoreTestCase):
    def test_what_was_put_aside(self) -> None:
        """What was put aside is known, also to the next process, until it is whole again."""
        store = self.store()
        small, large = self.put(store, b"small"), self.put(store, pattern(100_000))
        assert self.successResultOf(store.quarantined()) == []
        for digest in (small, large):
            self.successResultOf(store.quarantine(digest, "a bit flipped"))
        assert self.successResultOf(store.quarantined()) == sorted([small, large])
        assert self.successResultOf(self.store().quarantined()) == sorted([small, large])
        self.put(store, b"small")
        assert self.successResultOf(store.quarantined()) == [large]
        (self.directory / "quarantine" / "README").write_text("what a person left")
        assert self.successResultOf(store.quarantined()) == [large]
