"""Targets, dates, ranges and conditions of HTTP."""

from __future__ import annotations

import datetime
from email.utils import format_datetime
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import FarmError, InvalidRequest
from chunkfarm.wire.http1_rules import (
    QUERY_FIELDS_MAX,
    Conditions,
    RangeNotSatisfiable,
    format_date,
    parse_date,
    parse_etags,
    parse_query,
    parse_range,
    range_applies,
    split_target,
)

NOW = 1_795_341_600
"""2026-11-22T10:00:00Z."""

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


class TargetTests(SynchronousTestCase):
    """`split_target` and `parse_query`."""

    def test_any_name(self) -> None:
        """Every name comes back as it was encoded."""

        @given(names.filter(lambda name: not {".", ".."}.intersection(name.split("/"))))
        def holds(name: str) -> None:
            path, query = split_target(b"/b/" + quote(name).encode() + b"?x=y")
            assert (path, query) == ("/b/" + name, b"x=y")

        holds()

    def test_refused(self) -> None:
        """Whatever could be taken for another name is refused."""
        for target in (
            b"*",
            b"farm:80",
            b"/a#b",
            b"/a/../b",
            b"/a/%2e%2e/b",
            b"/a/%2E./b",
            b"/a/..%2fb",
            b"/a/..%5cb",
            b"/a/b%5C..",
            b"/a\\b",
            b"/a/..\\b",
            b"/a/./b",
            b"/..",
            b"/a%",
            b"/a%2",
            b"/a%zz",
            b"/a%00b",
            b"/a%0Ab",
            b"/a%7f",
            b"/a%ff",
            b"/a%C0%AF",
            b"/a%ED%A0%80",
        ):
            with pytest.raises(InvalidRequest):
                split_target(target)

    def test_dots_in_names(self) -> None:
        """Dots that are part of a name are none of that."""
        assert split_target(b"/b/.hidden/a..b/...")[0] == "/b/.hidden/a..b/..."

    def test_absolute_form(self) -> None:
        """A whole URL as target means its path, as RFC 9112 wants it."""
        assert split_target(b"https://farm:4102/a/b?c") == ("/a/b", b"c")
        assert split_target(b"http://farm") == ("/", b"")
        assert split_target(b"http://farm?c") == ("/", b"c")

    def test_any_bytes(self) -> None:
        """Whatever comes, the result is a path without control characters, or an error that can be told."""

        @given(st.binary(max_size=50))
        def holds(data: bytes) -> None:
            try:
                path, _ = split_target(b"/" + data)
            except FarmError as error:
                assert error.http_status == 400
            else:
                assert path.startswith("/") and "\0" not in path and "/../" not in path + "/"

        holds()

    def test_query(self) -> None:
        """Every field of a query comes back as it was encoded."""

        @given(st.dictionaries(names.filter(bool), names, max_size=5))
        def holds(values: dict[str, str]) -> None:
            query = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in values.items())
            assert parse_query(query.encode()) == values

        holds()
        assert parse_query(b"&a&b=&") == {"a": "", "b": ""}

    def test_query_refused(self) -> None:
        """A repeated field, a broken escape and too many fields are refused."""
        many = "&".join(f"a{number}=b" for number in range(QUERY_FIELDS_MAX + 1)).encode()
        for query in (b"a=b&a=c", b"a=%", b"a=%ff", b"a=%00", many, many + b"&" + many):
            with pytest.raises(InvalidRequest):
                parse_query(query)


class DateTests(SynchronousTestCase):
    """`format_date` and `parse_date`."""

    def test_round_trip(self) -> None:
        """A date that was written is read again, and is what the standard library writes."""

        @given(st.integers(0, 250_000_000_000))
        def holds(seconds: int) -> None:
            text = format_date(seconds)
            moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
            assert text == format_datetime(moment, usegmt=True)
            assert parse_date(text.encode(), NOW) == seconds

        holds()

    def test_three_forms(self) -> None:
        """All three forms of the RFC's example are understood."""
        for text in (b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"):
            assert parse_date(text, NOW) == 784111777, text

    def test_century(self) -> None:
        """A year of two digits is at most 50 years ahead."""
        for year, expected in ((94, 1994), (26, 2026), (76, 2076), (77, 1977)):
            found = parse_date(f"Sunday, 06-Nov-{year} 08:49:37 GMT".encode(), NOW)
            assert found is not None and format_date(found)[12:16] == str(expected)

    def test_no_date(self) -> None:
        """What is no date is None, never an error."""
        for text in (
            b"",
            b"yesterday",
            b"Sun, 31 Feb 2026 10:00:00 GMT",
            b"Sun, 22 Nov 2026 24:00:00 GMT",
            b"Sun, 22 Nov 2026 10:00:00 CET",
            b"Sun, 22 Nov 0000 10:00:00 GMT",
            b"Sun, 22 Nov 2026 10:00:00 GMT x",
            b"\xff",
        ):
            assert parse_date(text, NOW) is None, text


class RangeTests(SynchronousTestCase):
    """`parse_range` and `range_applies`."""

    def test_forms(self) -> None:
        """First and last byte, from a byte on, and the last bytes."""
        for value, expected in (
            (b"bytes=0-3", (0, 4)),
            (b"bytes=2-2", (2, 3)),
            (b"bytes=7-", (7, 10)),
            (b"bytes=7-99", (7, 10)),
            (b"bytes=-4", (6, 10)),
            (b"bytes=-10", (0, 10)),
            (b"bytes=-11", (0, 10)),
            (b"BYTES=0-0 ", (0, 1)),
        ):
            assert parse_range(value, 10) == expected, value

    def test_not_satisfiable(self) -> None:
        """A range that begins behind the end, or asks for the last no bytes, cannot be answered."""
        for value, size in ((b"bytes=10-", 10), (b"bytes=10-12", 10), (b"bytes=-0", 10), (b"bytes=0-", 0)):
            with pytest.raises(RangeNotSatisfiable) as caught:
                parse_range(value, size)
            assert caught.value.size == size and caught.value.http_status == 416

    def test_ignored(self) -> None:
        """What is not one range of bytes is as if it were not there."""
        for value in (
            b"",
            b"bytes",
            b"bytes=",
            b"bytes=-",
            b"bytes=3-2",
            b"bytes=0-1,3-4",
            b"bytes=0-1,",
            b"bytes=a-b",
            b"bytes=+1-2",
            b"lines=1-2",
            b"bytes=" + b"9" * 5000 + b"-",
            b"bytes=0-" + b"9" * 5000,
        ):
            assert parse_range(value, 10) is None, value
        assert parse_range(b"bytes=-3", 0) is None

    def test_always_inside(self) -> None:
        """Whatever is asked, the answer is a part of the file that is not empty."""
        number = st.integers(0, 50)

        @given(number, st.none() | number, number, st.booleans())
        def holds(first: int, last: int | None, size: int, suffix: bool) -> None:
            value = f"bytes=-{first}" if suffix else f"bytes={first}-{'' if last is None else last}"
            try:
                found = parse_range(value.encode(), size)
            except RangeNotSatisfiable:
                assert (first >= size) if not suffix else not first
                return
            if found is None:
                assert (last is not None and last < first) or (suffix and not size)
                return
            start, end = found
            assert 0 <= start < end <= size
            expected = range(max(0, size - first), size) if suffix else range(first, size if last is None else last + 1)
            assert list(range(size))[start:end] == [byte for byte in expected if byte < size]

        holds()

    def test_if_range(self) -> None:
        """A part is sent only of the very version that the client has; a date does not say which that is."""
        assert range_applies({}, "e1")
        assert range_applies({b"if-range": b'"e1"'}, "e1")
        for value in (b'"e2"', b'W/"e1"', b"e1", format_date(NOW).encode()):
            assert not range_applies({b"if-range": value}, "e1")


class ConditionTests(SynchronousTestCase):
    """`Conditions`, for a file `e1` of 2026-11-22 10:00:00."""

    def failed(self, *lines: tuple[bytes, bytes], etag: str | None = "e1", reading: bool = True) -> int:
        conditions = Conditions.of(dict(lines), NOW)
        assert conditions is not None
        return conditions.failed(etag, NOW, reading=reading)

    def test_none(self) -> None:
        """Most requests have no condition."""
        assert Conditions.of({b"host": b"farm"}, NOW) is None

    def test_if_match(self) -> None:
        """If-Match holds for the same strong tag, or for any file that is there."""
        assert self.failed((b"if-match", b'"x", "e1"')) == 0
        assert self.failed((b"if-match", b"*")) == 0
        assert self.failed((b"if-match", b'"x"')) == 412
        assert self.failed((b"if-match", b'W/"e1"')) == 412
        assert self.failed((b"if-match", b'"*"')) == 412
        assert self.failed((b"if-match", b"*"), etag=None, reading=False) == 412

    def test_if_none_match(self) -> None:
        """If-None-Match spares a reader what it has, and a writer what is there."""
        assert self.failed((b"if-none-match", b'"e1"')) == 304
        assert self.failed((b"if-none-match", b'W/"e1"')) == 304
        assert self.failed((b"if-none-match", b"*")) == 304
        assert self.failed((b"if-none-match", b'"x"')) == 0
        assert self.failed((b"if-none-match", b'"*"')) == 0
        assert self.failed((b"if-none-match", b"*"), reading=False) == 412
        assert self.failed((b"if-none-match", b"*"), etag=None, reading=False) == 0

    def test_dates(self) -> None:
        """Dates are compared by the second."""
        earlier, same = format_date(NOW - 1).encode(), format_date(NOW).encode()
        assert self.failed((b"if-modified-since", same)) == 304
        assert self.failed((b"if-modified-since", earlier)) == 0
        assert self.failed((b"if-modified-since", same), reading=False) == 0
        assert self.failed((b"if-modified-since", b"rubbish")) == 0
        assert self.failed((b"if-unmodified-since", same)) == 0
        assert self.failed((b"if-unmodified-since", earlier)) == 412
        assert self.failed((b"if-unmodified-since", same), etag=None, reading=False) == 412

    def test_order(self) -> None:
        """A tag goes before a date, and what forbids goes before what spares."""
        earlier, same = format_date(NOW - 1).encode(), format_date(NOW).encode()
        assert self.failed((b"if-match", b'"e1"'), (b"if-unmodified-since", earlier)) == 0
        assert self.failed((b"if-none-match", b'"x"'), (b"if-modified-since", same)) == 0
        assert self.failed((b"if-match", b'"x"'), (b"if-none-match", b'"e1"')) == 412

    def test_no_tag(self) -> None:
        """A condition that is not understood is an error: it must not count as one that holds."""
        for value in (b"", b"e1", b'"e1', b'"e1""e2"', b"**", b"* x", b'w/"e1"', b'"a" "b', b","):
            with pytest.raises(InvalidRequest):
                parse_etags(value)
        assert parse_etags(b' "a" ,, W/"b" ') == ((False, "a"), (True, "b"))
