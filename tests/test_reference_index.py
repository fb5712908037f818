"""The index of which files use which chunk says the same as a look at all rows, however the rows came in."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.model import FILES, KIB, File, digest_of
from chunkfarm.reference_index import USES_COUNTED_MAX, Place, ReferenceIndex
from chunkfarm.table.interface import Event, Row

FARM = "f" * 32
DIGESTS = [digest_of(b"%d" % number) for number in range(6)]


def file_row(name: str, *digests: bytes, revision: int = 1, levels: int = 0) -> Row:
    file = File(name=name, size=len(digests) * 4 * KIB, chunk_size=4 * KIB, digests=digests, levels=levels)
    return Row(file.key, file.to_value(), revision)


def put(row: Row) -> Event:
    return Event(row.revision, "PUT", row.key, row.value)


def gone(name: str, revision: int) -> Event:
    return Event(revision, "DEL", FILES + name.encode(), b"")


class ReferenceIndexTests(SynchronousTestCase):
    def make(self, newest: int = 1_000_000) -> ReferenceIndex:
        """An index on a new file, opened."""
        self.path = self.mktemp()
        return self.again(newest)

    def again(self, newest: int = 1_000_000, farm: str = FARM) -> ReferenceIndex:
        """The same file, as the next process opens it."""
        index = ReferenceIndex(self.path)
        self.addCleanup(index.close)
        self.place = index.open(farm, newest)
        return index

    def scanned(self, *rows: Row, revision: int = 10) -> ReferenceIndex:
        index = self.make()
        index.begin_scan(FARM, revision)
        index.take_page(rows, revision, more=False)
        return index

    def test_scan(self) -> None:
        """After all rows were read each chunk has as many uses as files that name it."""
        index = self.scanned(file_row("a/1", *DIGESTS[:3]), file_row("a/2", DIGESTS[1], DIGESTS[1]))
        assert index.count(DIGESTS[:4]) == [1, 2, 1, 0]
        assert index.names(DIGESTS[1], 10) == ["a/1", "a/2"]
        assert index.names(DIGESTS[1], 1) == ["a/1"]
        assert index.take_changes([], 10) == Place(FARM, 10, 10, None, 0)

    def test_all_chunks_in_order(self) -> None:
        """Every chunk that is used comes once, in order, also those of very many files; some at a time."""
        index = self.scanned(*(file_row(f"a/{number}", DIGESTS[0], DIGESTS[number % 5]) for number in range(50)))
        found, after = [], b""
        while some := index.digests_after(after, 2):
            assert len(some) <= 2
            found += some
            after = some[-1]
        assert found == sorted(DIGESTS[:5]) and index.digests_after(b"", 10) == found

    def test_changes(self) -> None:
        """Files are made, replaced and removed, and what they used is used no more."""
        index = self.scanned(file_row("a/1", DIGESTS[0]))
        index.take_changes([put(file_row("a/2", *DIGESTS[:2], revision=11))], 11)
        assert index.count(DIGESTS[:3]) == [2, 1, 0]
        index.take_changes([put(file_row("a/2", DIGESTS[2], revision=12)), gone("a/1", 13)], 13)
        assert index.count(DIGESTS[:3]) == [0, 0, 1]
        index.take_changes([gone("a/2", 14), gone("a/never", 14)], 14)
        assert index.count(DIGESTS) == [0] * 6

    def test_repeated_changes(self) -> None:
        """A change that the pages had already is passed over, also one that they have undone since."""
        index = self.scanned(file_row("a/1", DIGESTS[0], revision=9), revision=10)
        index.take_changes([put(file_row("a/1", DIGESTS[1], revision=7)), gone("a/1", 8)], 8)
        assert index.count(DIGESTS[:2]) == [1, 0]
        index.take_changes([put(file_row("a/0", DIGESTS[1], revision=5)), gone("a/0", 6)], 10)
        assert index.count(DIGESTS[:2]) == [1, 0]

    def test_many_uses(self) -> None:
        """A chunk that is in very many files costs no more to look up than one in many."""
        rows = [file_row(f"a/{number:05}", DIGESTS[0]) for number in range(USES_COUNTED_MAX + 5)]
        assert self.scanned(*rows).count(DIGESTS[:1]) == [USES_COUNTED_MAX]

    def test_levels(self) -> None:
        """A long file is unread until all of its chunks are known; what its row names counts from the beginning."""
        index = self.scanned(file_row("a/1", DIGESTS[0], levels=1), file_row("a/2", DIGESTS[1]))
        assert index.unread(b"", 10) == [(FILES + b"a/1", 1)]
        assert index.count(DIGESTS[:3]) == [1, 1, 0]
        assert index.add(FILES + b"a/1", 1, DIGESTS[1:3], last=False).unread == 1
        place = index.add(FILES + b"a/1", 1, (), last=True)
        assert place.complete and index.unread(b"", 10) == []
        assert index.count(DIGESTS[:3]) == [1, 2, 1]

    def test_levels_replaced_meanwhile(self) -> None:
        """What was read of a file that is another one by now is of no use."""
        index = self.scanned(file_row("a/1", DIGESTS[0], levels=1))
        index.take_changes([put(file_row("a/1", DIGESTS[3], revision=11))], 11)
        assert index.add(FILES + b"a/1", 1, DIGESTS[1:3], last=True).complete
        index.add(FILES + b"a/none", 1, DIGESTS[1:3], last=True)
        assert index.count(DIGESTS[:4]) == [0, 0, 0, 1]

    def test_strange_row(self) -> None:
        """A row that cannot be understood keeps the index from being complete, until it is gone."""
        index = self.scanned(Row(FILES + b"a/1", b"nonsense", 3))
        assert index.unread(b"", 10) == [(FILES + b"a/1", 3)]
        assert index.take_changes([gone("a/1", 11)], 11).complete

    def test_next_process(self) -> None:
        """A process that is started anew goes on where the one before was."""
        index = self.scanned(file_row("a/1", DIGESTS[0]), file_row("a/2", DIGESTS[1], levels=1))
        index.take_changes([], 17)
        index.close()
        index = self.again(17)
        assert self.place == Place(FARM, 17, 10, None, 1)
        assert index.count(DIGESTS[:2]) == [1, 1]

    def test_in_the_middle_of_a_scan(self) -> None:
        """A reading of all rows goes on behind the last page that was taken."""
        index = self.make()
        index.begin_scan(FARM, 5)
        index.take_page([file_row("a/1", DIGESTS[0])], 6, more=True)
        index.close()
        index = self.again()
        assert self.place == Place(FARM, 5, 6, FILES + b"a/1", 0) and not self.place.complete
        index.take_page([file_row("a/2", DIGESTS[0])], 7, more=False)
        assert index.count(DIGESTS[:1]) == [2]

    def test_rows_that_were_put_back(self) -> None:
        """What is newer than this server's rows is not believed: they may go another way now."""
        for newest, kept in ((17, True), (16, False)):
            self.scanned(file_row("a/1", DIGESTS[0])).take_changes([], 17)
            index = self.again(newest)
            assert index.count(DIGESTS[:1]) == [int(kept)]
        index = self.make()
        index.begin_scan(FARM, 5)
        index.take_page([file_row("a/1", DIGESTS[0])], 9, more=True)
        self.again(8)
        assert self.place == Place()

    def test_another_farm(self) -> None:
        """The index of another farm is made anew."""
        self.scanned(file_row("a/1", DIGESTS[0]))
        assert self.again(farm="e" * 32).count(DIGESTS[:1]) == [0]
        assert self.place == Place()

    def test_damaged(self) -> None:
        """What is no index, or that of another version, is made anew."""
        for spoil in (
            lambda path: Path(path).write_bytes(b"nonsense" * 1000),
            lambda path: Path(path).write_bytes(b""),
            lambda path: sqlite3.connect(path).execute("PRAGMA user_version = 99").connection.close(),
            lambda path: sqlite3.connect(path, isolation_level=None).execute("DELETE FROM state").connection.close(),
            lambda path: sqlite3.connect(path, isolation_level=None).execute("DROP TABLE files").connection.close(),
        ):
            self.scanned(file_row("a/1", DIGESTS[0])).close()
            for ending in ("-wal", "-shm"):
                Path(self.path + ending).unlink(missing_ok=True)
            spoil(self.path)
            index = self.again()
            assert self.place == Place() and index.count(DIGESTS[:1]) == [0]

    def test_discard(self) -> None:
        """An index in doubt is emptied, and can be filled at once."""
        index = self.scanned(file_row("a/1", DIGESTS[0]))
        assert index.discard() == Place()
        index.begin_scan(FARM, 20)
        assert index.take_page([file_row("a/1", DIGESTS[1])], 20, more=False).complete
        assert index.count(DIGESTS[:2]) == [0, 1]

    def test_closed(self) -> None:
        """After its end nothing is answered."""
        index = self.scanned()
        index.close()
        index.close()
        with self.assertRaises(sqlite3.Error):
            index.count(DIGESTS)

    def test_failed_change(self) -> None:
        """A change that fails has no effect, and the index says so."""
        index = self.scanned(file_row("a/1", DIGESTS[0]))
        with self.assertRaises(sqlite3.Error):
            index.take_changes([put(file_row("a/2", DIGESTS[0], revision=11)), Event(12, "PUT", object(), b"")], 12)  # type: ignore[arg-type]
        assert index.count(DIGESTS[:1]) == [1]
        assert index.take_changes([], 10).revision == 10

    NAMES = st.sampled_from(["a/1", "a/2", "b/1", "b/2", "c/1"])
    STEPS = st.lists(
        st.one_of(
            st.tuples(st.just("put"), NAMES, st.lists(st.sampled_from(DIGESTS), max_size=3), st.integers(0, 1)),
            st.tuples(st.just("remove"), NAMES),
            st.tuples(st.sampled_from(["follow", "page", "fell behind", "restart", "expand"])),
        ),
        max_size=40,
    )

    @settings(max_examples=60, deadline=None)
    @given(steps=STEPS)
    def test_against_all_rows(self, steps: list[tuple[object, ...]]) -> None:
        """Whatever happens, once the index says that it is complete and up to date it tells what the rows tell."""
        Model(self.make(), self).run(steps)


class Model:
    """The rows themselves, each change of them, and an index that hears of both in its own time."""

    def __init__(self, index: ReferenceIndex, test: ReferenceIndexTests) -> None:
        self.index = index
        self.test = test
        self.rows: dict[bytes, Row] = {}
        self.events: list[Event] = []
        self.hidden: dict[tuple[bytes, int], tuple[bytes, ...]] = {}
        """The chunks that the manifests of long files name."""
        self.revision = 1
        self.place = Place()

    def run(self, steps: list[tuple[object, ...]]) -> None:
        for step in steps:
            self.do(*step)
            self.check()
        while self.place.scanned is not None:
            self.page()
        self.follow()
        self.expand()
        assert self.is_up_to_date
        self.check()

    def do(self, what: object, *arguments: object) -> None:
        if what == "put":
            self.put(*arguments)  # type: ignore[arg-type]
        elif what == "remove":
            (name,) = arguments
            self.revision += 1
            self.rows.pop(FILES + str(name).encode(), None)
            self.events.append(gone(str(name), self.revision))
        elif what == "follow":
            self.follow()
        elif what == "page":
            self.page()
        elif what == "expand":
            self.expand()
        elif what == "fell behind":
            self.place = self.index.begin_scan(FARM, 0)
        else:
            self.index.close()
            self.index = self.test.again(self.revision)
            assert self.test.place == self.place
            self.place = self.test.place

    def put(self, name: str, digests: list[bytes], levels: int) -> None:
        self.revision += 1
        row = file_row(name, *digests, revision=self.revision, levels=levels)
        self.rows[row.key] = row
        self.events.append(put(row))
        if levels:
            self.hidden[row.key, row.revision] = tuple(digest_of(digest) for digest in digests)

    def page(self) -> None:
        """Two rows more, as they are now."""
        if self.place.scanned is None:
            return
        if not self.place.revision:
            self.place = self.index.begin_scan(FARM, self.revision)
        after = self.place.scanned
        left = [self.rows[key] for key in sorted(self.rows) if after is not None and key > after]
        self.place = self.index.take_page(left[:2], self.revision, more=len(left) > 2)

    def follow(self) -> None:
        if self.place.scanned is None:
            news = [event for event in self.events if event.revision > self.place.revision]
            self.place = self.index.take_changes(news, self.revision)

    def expand(self) -> None:
        for key, revision in self.index.unread(b"", 100):
            self.place = self.index.add(key, revision, self.hidden.get((key, revision), ()), last=True)

    @property
    def is_up_to_date(self) -> bool:
        return self.place.complete and self.place.revision == self.revision >= self.place.newest

    def check(self) -> None:
        if not self.is_up_to_date:
            return
        uses: dict[bytes, set[bytes]] = {digest: set() for digest in (*DIGESTS, *map(digest_of, DIGESTS))}
        for row in self.rows.values():
            file = File.from_row(row.key, row.value, row.revision)
            for digest in (*file.digests, *self.hidden.get((row.key, row.revision), ())):
                uses[digest].add(row.key)
        assert self.index.count(list(uses)) == [len(files) for files in uses.values()]
        numbers, is_cut = self.index.files_with([digest[:8] for digest in uses])
        assert sorted(self.index.names_of(sorted(numbers))) == sorted(
            key[len(FILES) :].decode() for key in set().union(*uses.values())
        )
        assert not is_cut
        for digest, files in uses.items():
            assert self.index.names_of(sorted(self.index.files_with([digest])[0])) is not None
            assert len(self.index.files_with([digest])[0]) == len(files)
            assert self.index.names(digest, 100) == sorted(key[len(FILES) :].decode() for key in files)
