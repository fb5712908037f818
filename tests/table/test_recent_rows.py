"""The rows that are kept in memory: what they say is never older than what was applied."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.codec import Answer, AnswerKind
from chunkfarm.table.interface import Delete, Operation, Page, Put, Row
from chunkfarm.table.recent_rows import ROW_OVERHEAD, RecentRows
from chunkfarm.table.rows import Applied

KEYS = (b"a", b"b", b"c")


def entry(index: int, *operations: Operation) -> Applied:
    return Applied(index, 1, Answer(AnswerKind.DONE, index), operations)


def page(revision: int, *rows: Row) -> Page:
    return Page(revision, rows, more=False)


class RecentRowsTests(SynchronousTestCase):
    def test_what_was_written(self) -> None:
        """A row that was written or removed of late is known, and of others nothing is said."""
        rows = RecentRows(5)
        rows.apply([entry(6, Put(b"a", b"1")), entry(7, Put(b"b", b"2"), Delete(b"a"))], 8)
        assert rows.find(b"a") == page(8)
        assert rows.find(b"b") == page(8, Row(b"b", b"2", 7))
        assert rows.find(b"c") is None

    def test_what_was_read(self) -> None:
        """What is read from the disk is kept, except what may have changed between the look and the answer."""
        rows = RecentRows(5)
        rows.read(b"a", page(4, Row(b"a", b"old", 3)))
        assert rows.find(b"a") is None
        rows.read(b"a", page(5, Row(b"a", b"1", 3)))
        rows.read(b"b", page(5))
        assert rows.find(b"a") == page(5, Row(b"a", b"1", 3))
        assert rows.find(b"b") == page(5)

    def test_a_disk_that_is_ahead(self) -> None:
        """A row that was read from the disk ahead of what is known to be applied does not go back."""
        rows = RecentRows(5)
        rows.read(b"a", page(8, Row(b"a", b"3", 8)))
        rows.apply([entry(6, Put(b"a", b"2"))], 6)
        assert rows.find(b"a") == page(8, Row(b"a", b"3", 8))
        rows.apply([entry(7, Delete(b"a")), entry(8, Put(b"a", b"3"))], 8)
        assert rows.find(b"a") == page(8, Row(b"a", b"3", 8))
        rows.apply([entry(9, Delete(b"a"))], 9)
        assert rows.find(b"a") == page(9)

    def test_bounded(self) -> None:
        """However many rows are used, and however large, they take no more than they may; the ones used last stay."""
        limit = 10 * (ROW_OVERHEAD + 3)
        rows = RecentRows(0, limit)
        for index in range(1, 100):
            rows.apply([entry(index, Put(b"%03d" % index, b""))], index)
            rows.find(b"001")
            assert rows.size <= limit
        assert len(rows) == 10 and rows.find(b"001") is not None and rows.find(b"090") is None
        rows.apply([entry(100, Put(b"001", bytes(limit)))], 100)
        assert len(rows) == 0 and rows.size == 0
        for index in range(101, 110):
            rows.read(b"x", page(index, Row(b"x", b"1" * index, index)))
            rows.read(b"y", page(index))
        assert rows.size == 2 * (ROW_OVERHEAD + 1) + 109

    def test_another_table(self) -> None:
        """A snapshot makes all that was known nothing."""
        rows = RecentRows(5)
        rows.apply([entry(6, Put(b"a", b"1"))], 6)
        rows.replace(20)
        assert rows.find(b"a") is None and rows.size == 0
        rows.read(b"a", page(19, Row(b"a", b"1", 6)))
        assert rows.find(b"a") is None

    @given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(KEYS)), max_size=60), st.integers(1, 4))
    def test_never_old(self, steps: list[tuple[int, bytes]], room: int) -> None:
        """Whatever is written, told and read in whatever order: a row is as it was at the last one told, or later."""
        history: list[dict[bytes, Row]] = [{}]
        entries: list[Applied] = []
        rows = RecentRows(0, room * (ROW_OVERHEAD + 4))
        told = 0
        reads: list[tuple[bytes, Page]] = []
        newest = dict.fromkeys(KEYS, 0)
        for kind, key in steps:
            if kind <= 1:
                index = len(history)
                operation = Delete(key) if kind else Put(key, b"%03d" % index)
                entries.append(entry(index, operation))
                state = {other: row for other, row in history[-1].items() if other != key}
                if isinstance(operation, Put):
                    state[key] = Row(key, operation.value, index)
                history.append(state)
            elif kind == 2:
                at = len(history) - 1
                row = history[at].get(key)
                reads.append((key, page(at, *([row] if row else []))))
            elif kind == 3 and reads:
                rows.read(*reads.pop(0))
            elif kind == 4:
                rows.apply(entries[told:], len(entries))
                told = len(entries)
            for one in KEYS:
                found = rows.find(one)
                if found is not None:
                    assert found.revision >= max(told, newest[one])
                    newest[one] = found.revision
                    assert found.rows == tuple(filter(None, [history[found.revision].get(one)]))
