"""What an export looks like."""

from __future__ import annotations

import json
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.exports.form import (
    EXPORTS_KEPT,
    HEAD_MAGIC,
    PAGE_MAGIC,
    PAGE_MOST,
    PAGE_STEP,
    BadExport,
    Head,
    Kept,
    Pages,
    is_exported,
    pages_of,
    read_head,
    read_kept,
    read_page,
    write_kept,
)
from chunkfarm.model import digest_of, split_digests
from chunkfarm.table.interface import KEY_BYTES_MAX, VALUE_BYTES_MAX, Row

TABLES = st.dictionaries(
    st.binary(min_size=1, max_size=40).filter(is_exported),
    st.tuples(st.binary(max_size=200), st.integers(1, 2**62)),
    max_size=30,
)


def rows_of(table: dict[bytes, tuple[bytes, int]]) -> list[Row]:
    return [Row(key, *table[key]) for key in sorted(table)]


def read_all(pages: list[bytes]) -> list[Row]:
    rows: list[Row] = []
    for page in pages:
        rows += read_page(page, rows[-1].key if rows else b"")
    return rows


def many(count: int, seed: int = 1) -> list[Row]:
    """Rows as files have them, names in a regular order."""
    random = Random(seed)
    return [Row(b"files/home/%07d" % n, random.randbytes(random.choice((180, 260, 900))), n) for n in range(count)]


def head(**fields: object) -> Head:
    values: dict[str, object] = {"farm": "fa" * 16, "name": "lab", "revision": 7, "term": 3, "line": "", "time": 1}
    values |= {"rows": 2, "size": 60, "pages": b"p" * 64}
    return Head(**values | fields)  # type: ignore[arg-type]


class PageTests(SynchronousTestCase):
    @given(TABLES)
    @settings(max_examples=50)
    def test_there_and_back(self, table: dict[bytes, tuple[bytes, int]]) -> None:
        """Whatever is in a table is in the pages, once and in order."""
        assert read_all(list(pages_of(rows_of(table)))) == rows_of(table)

    def test_the_largest_rows(self) -> None:
        """Keys and values at their limits fit."""
        rows = [Row(bytes([n]) * KEY_BYTES_MAX, b"v" * VALUE_BYTES_MAX, n) for n in range(1, 40)]
        pages = list(pages_of(rows))
        assert read_all(pages) == rows
        assert max(map(len, pages)) <= PAGE_MOST + KEY_BYTES_MAX + VALUE_BYTES_MAX + 100

    def test_what_is_left_out(self) -> None:
        """Neither the row about exports nor invites, which would be good again."""
        rows = [Row(key, b"", 1) for key in (b"farm/expor", b"farm/export", b"farm/exports", b"invites/a", b"keys/a")]
        assert [row.key for row in read_all(list(pages_of(rows)))] == [b"farm/expor", b"farm/exports", b"keys/a"]

    def test_a_change_costs_its_page(self) -> None:
        """Rows that come, change and go leave all pages but those around them as they were."""
        rows = many(20_000)
        before = {digest_of(page) for page in pages_of(rows)}
        assert len(before) > 80, "on average a page has some 64 KiB"
        changed = list(rows)
        changed[5_000] = Row(changed[5_000].key, b"other", 9)
        del changed[12_345]
        changed.insert(15_000, Row(changed[15_000].key[:-1] + b"!", b"new", 9))
        changed.insert(0, Row(b"farm/generation", b"8", 9))
        after = {digest_of(page) for page in pages_of(changed)}
        assert 4 <= len(after - before) <= 12, len(after - before)

    @given(st.integers(0, 2_999), st.binary(max_size=2_000))
    @settings(max_examples=10, deadline=None)
    def test_any_one_change(self, place: int, value: bytes) -> None:
        """Wherever one value changes, only few pages are other ones."""
        rows = many(3_000)
        before = {digest_of(page) for page in pages_of(rows)}
        rows[place] = Row(rows[place].key, value, 9)
        assert len({digest_of(page) for page in pages_of(rows)} - before) <= 4

    def test_the_length_of_pages(self) -> None:
        """Short rows and long ones alike give pages of some 64 KiB, so that no head is long for nothing."""
        for size in (30, 300, 6_000):
            rows = [Row(b"files/a/%08d" % n, b"x" * size, n) for n in range(4_000_000 // (size + 30))]
            lengths = [len(page) for page in pages_of(rows)]
            assert PAGE_STEP < sum(lengths) / len(lengths) < 2 * PAGE_STEP, size

    @given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
    @settings(max_examples=200)
    def test_nonsense(self, junk: bytes, place: int, byte: int) -> None:
        """What is no page is refused, and never anything else; with a flipped byte it is a page or refused."""
        page = bytearray(next(iter(pages_of([Row(b"a", b"1", 1), Row(b"b", b"2" * 90, 2)]))))
        page[place % len(page)] = byte
        for data in (junk, PAGE_MAGIC + junk, bytes(page), bytes(page[: place % len(page)])):
            try:
                rows = read_page(data)
            except BadExport:
                continue
            assert rows == tuple(sorted(rows, key=lambda row: row.key))

    def test_out_of_order(self) -> None:
        """A page must follow the one before it."""
        (page,) = pages_of([Row(b"m", b"1", 1)])
        assert read_page(page, b"l")
        for after in (b"m", b"n"):
            self.assertRaises(BadExport, read_page, page, after)

    def test_only_what_is_new(self) -> None:
        """Pages that are known are named, and not given again."""
        rows = many(3_000)
        first = Pages(frozenset())
        new = first.take(rows[:1_000], last=False) + first.take(rows[1_000:], last=True)
        assert [digest for digest, _ in new] == list(split_digests(first.digests))
        assert (first.rows, first.size) == (3_000, sum(len(page) for _, page in new))
        rows[1_500] = Row(rows[1_500].key, b"", 1)
        second = Pages(frozenset(digest for digest, _ in new))
        assert 1 <= len(second.take(rows, last=True)) <= 4
        assert len(second.digests) > 300


class HeadTests(SynchronousTestCase):
    def test_there_and_back(self) -> None:
        """A head says what it said."""
        for one in (head(), head(name="läb", line="1e" * 16), head(pages=b"", rows=0)):
            assert read_head(one.to_bytes()) == one
        assert head().digests == (b"p" * 32, b"p" * 32)

    def test_nonsense(self) -> None:
        """What does not say all of it is refused."""
        good = head().to_bytes()
        told = json.loads(good[len(HEAD_MAGIC) :].partition(b"\n")[0])
        wrong = [
            b"",
            HEAD_MAGIC,
            HEAD_MAGIC + b"\n",
            good[:-1],
            good[1:],
            b"x" + good,
            HEAD_MAGIC + b"[]\n",
            PAGE_MAGIC,
        ]
        numbers: list[object] = [None, -1, 2**63, 1.5, True, [], {}]
        for name in told:
            for value in [None, 1] if name in ("farm", "name", "line") else numbers:
                wrong.append(HEAD_MAGIC + json.dumps(told | {name: value}).encode() + b"\n")
            wrong.append(HEAD_MAGIC + json.dumps({key: told[key] for key in told if key != name}).encode() + b"\n")
        for data in wrong:
            self.assertRaises(BadExport, read_head, data)

    @given(st.binary(max_size=300))
    @settings(max_examples=100)
    def test_anything(self, junk: bytes) -> None:
        """No bytes do anything but be refused."""
        for data in (junk, HEAD_MAGIC + junk):
            self.assertRaises(BadExport, read_head, data)


class RowTests(SynchronousTestCase):
    def test_there_and_back(self) -> None:
        """The row names what it was given, and fits a row."""
        kept = [Kept(revision=n, time=n, rows=n, digest=bytes([n]) * 32) for n in range(EXPORTS_KEPT)]
        value = write_kept(kept)
        assert read_kept(value) == tuple(kept) and len(value) < VALUE_BYTES_MAX
        assert json.loads(value)["exports"][1]["digests"] == ["01" * 32]

    def test_nonsense(self) -> None:
        """Anything else is refused."""
        for value in (b"", b"[]", b"{}", b'{"exports": 1}', b'{"exports": [{}]}', b"\xff", b"[" * 100_000):
            self.assertRaises(BadExport, read_kept, value)
        for digests in ([], ["00"], ["zz" * 32], ["00" * 32] * 2, 7):
            item = {"revision": 1, "time": 1, "rows": 1, "digests": digests}
            self.assertRaises(BadExport, read_kept, json.dumps({"exports": [item]}).encode())
