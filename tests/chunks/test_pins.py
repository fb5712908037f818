"""What a store has promised to keep, and what it may delete."""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import loose
from chunkfarm.chunks.index import Index
from chunkfarm.chunks.pins import Pins
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.durable import sync_directory
from chunkfarm.errors import Full
from chunkfarm.model import digest_of
from tests.chunks.builders import make_store, pattern, read_all

GRACE = 100.0
LONG = 1.25 * GRACE
"""After so long every pin has run out."""
OTHER = digest_of(b"not here")


class PromisesTestCase(SynchronousTestCase):
    """A store with a clock that a test sets; what is up to 1,000 bytes long is packed."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.time = 1000.0
        self.grace = GRACE
        self.broken: list[Failure] = []

    def store(self) -> ChunkStore:
        store = make_store(
            self.directory,
            packed_most=1000,
            grace=lambda: self.grace,
            seconds=lambda: self.time,
            on_broken=self.broken.append,
        )
        self.addCleanup(store.close)
        return store

    def put(self, store: ChunkStore, data: bytes) -> bytes:
        return self.successResultOf(store.put(None, data))

    def two(self, store: ChunkStore) -> list[bytes]:
        """A small chunk and a large one."""
        return [self.put(store, pattern(size)) for size in (100, 2000)]

    def condemned(self, store: ChunkStore, digests: list[bytes]) -> list[bytes]:
        condemned: Sequence[bytes] = self.successResultOf(store.condemn(digests))
        return list(condemned)

    def delete(self, store: ChunkStore, digests: list[bytes]) -> list[int]:
        sizes: Sequence[int] = self.successResultOf(store.delete_condemned(digests))
        return list(sizes)

    def has(self, store: ChunkStore, digests: list[bytes]) -> list[bool]:
        return [bool(length) for length in self.successResultOf(store.has(digests))]


class CollectedTests(PromisesTestCase):
    """How a chunk that no file uses goes."""

    def test_the_whole_way(self) -> None:
        """It is kept for the grace from when it was first seen unused; then condemned, and deleted when told to."""
        store = self.store()
        chunks = self.two(store)
        self.time += 10 * LONG
        assert self.condemned(store, chunks) == []
        self.time += GRACE
        assert self.condemned(store, chunks) == []
        self.time += LONG - GRACE
        assert self.condemned(store, chunks) == chunks
        assert store.condemned == 2
        assert self.has(store, chunks) == [True, True]
        assert len(self.delete(store, [*chunks, OTHER])) == 2
        assert self.has(store, chunks) == [False, False]
        assert store.condemned == 0
        assert self.successResultOf(store.scan(chunks[0][0])) == []

    def test_held_before_its_name_is_durable(self) -> None:
        """Whoever asks for a chunk whose writer still waits for the disk is told yes when that is durable."""
        store = self.store()
        data = pattern(2000)
        digest = digest_of(data)
        answers: list[tuple[Sequence[int], int]] = []
        done: list[str] = []

        def syncing(directory: str) -> None:
            if not answers and directory.endswith(digest.hex()[:2]):
                answers.append(([], 0))
                answers[0] = self.successResultOf(store.hold([digest, OTHER])), len(done)
            sync_directory(directory)
            done.append(directory)

        with mock.patch.object(loose, "sync_directory", syncing):
            self.successResultOf(store.put(digest, data))
            # The directory above comes first.
            assert answers == [([2000, 0], 2)]
            asked = len(done)
            assert self.successResultOf(store.hold([digest])) == [2000]
            assert len(done) == asked, "once is enough"

    def test_held_after_the_disk_failed(self) -> None:
        """The same if its writer was told that the disk had failed: the chunk is seen, and is promised when durable."""
        store = self.store()
        data = pattern(2000)
        with mock.patch.object(loose.LooseChunks, "settle", side_effect=OSError(errno.EIO, "Input/output error")):
            self.failureResultOf(store.put(digest_of(data), data), OSError)
            assert self.successResultOf(store.hold([digest_of(data)])) == [0]
        assert self.successResultOf(store.hold([digest_of(data)])) == [2000]

    def test_plans_wait_for_no_disk(self) -> None:
        """The reactor plans and gives up plans without a wait while a thread waits for the disk to name a chunk."""
        store = self.store()
        chunks = self.two(store)

        def plan() -> None:
            store.mark_surplus(chunks)
            store.unmark_surplus(chunks)
            store.lift(chunks)

        planning = threading.Thread(target=plan, daemon=True)
        with store._lock:
            planning.start()
            planning.join(10.0)
            assert not planning.is_alive()

    def run_out(self, store: ChunkStore, chunks: list[bytes]) -> None:
        self.condemned(store, chunks)
        self.time += LONG

    def test_sizes(self) -> None:
        """What was won back is told for each chunk that was deleted, and for no other."""
        store = self.store()
        small, large = self.two(store)
        self.run_out(store, [small, large])
        self.condemned(store, [small, large])
        used = self.successResultOf(store.space()).used
        (size,) = self.delete(store, [large])
        assert self.successResultOf(store.space()).used == used - size
        assert self.delete(store, [OTHER, small]) == [100]
        assert self.delete(store, [small]) == []

    def test_held(self) -> None:
        """Who asked for it has it kept for the grace from then on, also over a restart."""
        store = self.store()
        chunks = self.two(store)
        self.run_out(store, chunks)
        assert self.successResultOf(store.hold([*chunks, OTHER])) == [100, 2000, 0]
        for one in (store, self.store()):
            assert self.condemned(one, chunks) == []
        self.time += GRACE
        assert self.condemned(store, chunks) == []
        self.time += LONG - GRACE
        assert self.condemned(store, chunks) == chunks

    def test_condemned(self) -> None:
        """Who asks for one that is being collected is told no, and others the truth; it can be read."""
        store = self.store()
        chunks = self.two(store)
        self.run_out(store, chunks)
        self.condemned(store, chunks)
        assert self.successResultOf(store.hold(chunks)) == [0, 0]
        assert self.has(store, chunks) == [True, True]
        for digest in chunks:
            reader = self.successResultOf(store.open(digest))
            assert digest_of(self.successResultOf(Deferred.fromCoroutine(read_all(reader)))) == digest

    def test_put_again(self) -> None:
        """Who brings it again has saved it, and it is kept for the grace."""
        store = self.store()
        chunks = self.two(store)
        for known in (True, False):
            self.run_out(store, chunks)
            assert self.condemned(store, chunks) == chunks
            for digest, size in zip(chunks, (100, 2000), strict=True):
                self.successResultOf(store.put(digest if known else None, pattern(size)))
            assert self.delete(store, chunks) == []
            assert self.successResultOf(store.hold(chunks)) == [100, 2000]
            assert self.condemned(store, chunks) == []

    def test_put_after_it_was_deleted(self) -> None:
        """One that comes again after it was deleted is as new."""
        store = self.store()
        chunks = self.two(store)
        self.run_out(store, chunks)
        self.condemned(store, chunks)
        self.delete(store, chunks)
        assert self.two(store) == chunks
        assert self.delete(store, chunks) == []
        assert self.condemned(store, chunks) == []
        assert self.has(store, chunks) == [True, True]

    def test_lifted(self) -> None:
        """One that turns out to be used stays, and is promised again."""
        store = self.store()
        chunks = self.two(store)
        self.run_out(store, chunks)
        self.condemned(store, chunks)
        store.lift(chunks[:1])
        assert self.successResultOf(store.hold(chunks)) == [100, 0]
        assert len(self.delete(store, chunks)) == 1
        assert self.has(store, chunks) == [True, False]

    def test_a_restart_forgets(self) -> None:
        """A process that ends has condemned nothing, and the next one may do so at once."""
        store = self.store()
        chunks = self.two(store)
        self.run_out(store, chunks)
        self.condemned(store, chunks)
        store.close()
        again = self.store()
        assert self.delete(again, chunks) == []
        assert self.has(again, chunks) == [True, True]
        # The clock was saved when the pins were noted, so that what passed since does not count.
        assert self.condemned(again, chunks) == []

    def test_the_index_is_lost(self) -> None:
        """Without its index a store keeps everything for another grace."""
        store = self.store()
        chunks = self.two(store)
        self.run_out(store, chunks)
        store.close()
        for path in self.directory.glob("index.sqlite*"):
            path.unlink()
        again = self.store()
        assert self.condemned(again, chunks) == []
        self.time += LONG
        assert self.condemned(again, chunks) == chunks

    def test_another_grace(self) -> None:
        """A grace that is changed holds from then on for what was promised before."""
        store = self.store()
        chunks = self.two(store)
        self.condemned(store, chunks)
        self.time += 10
        self.grace = 8.0
        assert self.condemned(store, chunks) == chunks

    def test_rows_are_few(self) -> None:
        """Chunks that are used need no row, however often they are asked for; repeated questions write nothing."""
        store = self.store()
        chunks = self.two(store)
        writes = self.count_writes(store)
        for _ in range(3):
            self.successResultOf(store.hold(chunks))
            self.time += GRACE / 10
        assert writes == []
        self.condemned(store, chunks)
        self.time += LONG
        self.successResultOf(store.hold(chunks))
        assert len(writes) == 2
        self.successResultOf(store.hold(chunks))
        assert len(writes) == 2
        for digest in chunks:
            self.successResultOf(store.tidy_pins(digest[0], []))
        assert self.rows(store) == 2
        self.time += LONG
        self.successResultOf(store.tidy_pins(chunks[0][0], chunks))
        assert self.rows(store) == 2
        for digest in chunks:
            self.successResultOf(store.tidy_pins(digest[0], []))
        assert self.rows(store) == 0

    def count_writes(self, store: ChunkStore) -> list[Any]:
        writes: list[Any] = []
        real = store._index.write

        def write(statements: Any, durable: bool = False) -> None:
            writes.append(statements)
            real(statements, durable)

        self.patch(store._index, "write", write)
        return writes

    def rows(self, store: ChunkStore) -> int:
        return int(store._index.read("SELECT count(*) FROM pins")[0][0])


class SurplusMarkTests(PromisesTestCase):
    """A copy that belongs on other servers."""

    def test_deleted(self) -> None:
        """It is deleted when they have said that they keep theirs, whatever was promised before."""
        store = self.store()
        chunks = self.two(store)
        self.successResultOf(store.hold(chunks))
        store.mark_surplus(chunks)
        assert len(self.successResultOf(store.delete_surplus(chunks))) == 2
        assert self.has(store, chunks) == [False, False]

    def test_kept(self) -> None:
        """Not if somebody was told meanwhile that this server has it, or brought it."""
        store = self.store()
        chunks = self.two(store)
        for keep in (lambda: self.successResultOf(store.hold(chunks)), lambda: self.two(store)):
            store.mark_surplus(chunks)
            keep()
            assert self.successResultOf(store.delete_surplus(chunks)) == []
        assert self.has(store, chunks) == [True, True]

    def test_not_marked(self) -> None:
        """Nothing is deleted that was not marked."""
        store = self.store()
        chunks = self.two(store)
        assert self.successResultOf(store.delete_surplus(chunks)) == []
        assert self.delete(store, chunks) == []


class DiskTests(PromisesTestCase):
    """A disk that fails under the pins."""

    def fail_with(self, code: int) -> Any:
        error = sqlite3.OperationalError("the disk says no")
        error.sqlite_errorcode = code
        return mock.patch.object(Index, "write", side_effect=error)

    def prepare(self) -> tuple[ChunkStore, list[bytes]]:
        store = self.store()
        chunks = self.two(store)
        self.condemned(store, chunks)
        self.time += LONG
        return store, chunks

    def test_full(self) -> None:
        """Without room for the promise nothing is promised, and that is told as a full disk."""
        store, chunks = self.prepare()
        with self.fail_with(sqlite3.SQLITE_FULL):
            self.failureResultOf(store.hold(chunks), Full)
            self.failureResultOf(store.put(chunks[1], pattern(2000)), Full)
            self.failureResultOf(store.put(chunks[0], pattern(100)), Full)
        assert self.broken == []
        assert self.successResultOf(store.hold(chunks)) == [100, 2000]

    def test_room_is_won_back(self) -> None:
        """A disk without any room left collects all the same: what it can free first makes room for the rest."""
        store = self.store()
        small, large = self.two(store)
        with self.fail_with(sqlite3.SQLITE_FULL):
            assert self.condemned(store, [small, large]) == []
            self.time += LONG
            assert self.condemned(store, [small, large]) == [small, large]
            self.successResultOf(store.tidy_pins(small[0], [small]))
            self.successResultOf(store.save_clock())
            self.failureResultOf(store.delete_condemned([small, large]), Full)
        assert self.has(store, [small, large]) == [True, False]
        self.condemned(store, [small])
        self.time += LONG
        assert self.condemned(store, [small]) == [small]
        assert self.delete(store, [small]) == [100]

    def test_broken(self) -> None:
        """A disk that fails is told once, for the process must not go on with it."""
        store, chunks = self.prepare()
        with self.fail_with(sqlite3.SQLITE_IOERR):
            self.failureResultOf(store.hold(chunks), sqlite3.OperationalError)
            self.failureResultOf(store.put(chunks[0], pattern(100)), sqlite3.OperationalError)
        assert len(self.broken) == 1

    def test_nothing_half_done(self) -> None:
        """What fails in the middle is as if it had not begun, and the next attempt works."""
        with TemporaryDirectory() as directory:
            index = Index(f"{directory}/index.sqlite")
            index.write([("INSERT INTO clock VALUES (1, ?)", [(5.0,)])])
            wrong = [("UPDATE clock SET seconds = ?", [(6.0,)]), ("INSERT INTO nothing VALUES (?)", [(1,)])]
            for durable in (False, True):
                self.assertRaises(sqlite3.OperationalError, index.write, wrong, durable)
            assert index.read("SELECT seconds FROM clock") == [(5.0,)]
            index.write([("UPDATE clock SET seconds = ?", [(7.0,)])], durable=True)
            assert index.read("SELECT seconds FROM clock") == [(7.0,)]
            index.close()


@define
class Model:
    """What was promised of a few chunks, in words: until when each is kept, by the clock of somebody who waits."""

    promised: dict[int, float] = field(factory=dict)
    seen: dict[int, float] = field(factory=dict)


ACTIONS = st.one_of(
    st.tuples(st.just("hold"), st.sets(st.integers(0, 3))),
    st.tuples(st.just("unused"), st.sets(st.integers(0, 3))),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 20.0, 26.0, 60.0, 130.0])),
    st.tuples(st.just("down"), st.sampled_from([1.0, 1000.0])),
    st.tuples(st.just("lose"), st.just(0)),
    st.tuples(st.just("tidy"), st.sets(st.integers(0, 3))),
)


class ModelTests(SynchronousTestCase):
    """The rules of pins against the promise that they make."""

    @settings(max_examples=80, deadline=None)
    @given(st.lists(ACTIONS, max_size=25))
    def test_promises_are_kept(self, actions: list[tuple[str, Any]]) -> None:
        """Nothing runs out within the grace of its last promise, or of when it was first seen; later all does."""
        names = [bytes([7]) * 31 + bytes([number]) for number in range(4)]
        with TemporaryDirectory() as directory:
            index = Index(f"{directory}/index.sqlite")
            running, wall = [0.0], 0.0
            pins = Pins(index, lambda: running[0], lambda: GRACE)
            model = Model()
            for what, value in actions:
                if what == "hold":
                    pins.hold([names[number] for number in value])
                    model.promised |= dict.fromkeys(value, wall + GRACE)
                elif what == "unused":
                    pins.begin([names[number] for number in value])
                    for number in value:
                        model.seen.setdefault(number, wall)
                elif what == "wait":
                    running[0] += value
                    wall += value
                elif what == "down":
                    index.close()
                    index.open()
                    running[0] += value
                    pins = Pins(index, lambda: running[0], lambda: GRACE)
                    pins.open()
                elif what == "lose":
                    index.discard()
                    pins = Pins(index, lambda: running[0], lambda: GRACE)
                    pins.open()
                    model.seen.clear()
                else:
                    pins.tidy(7, {names[number] for number in value})
                ended = {number for number in range(4) if names[number] in pins.ended([names[number]])}
                for number in ended:
                    assert wall >= model.promised.get(number, 0.0), "a promise was broken"
                    assert number in model.seen, "nobody ever said that it was unused"
                    assert wall >= model.seen[number] + GRACE, "it was unused for too short a time"
            pins.begin(names)
            running[0] += LONG
            assert pins.ended(names) == set(names), "it is never collected"
            index.close()
