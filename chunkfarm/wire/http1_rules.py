"""What the headers of a request mean (RFC 9110): targets, dates, ranges, conditions. Pure: values in, values out."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from attrs import frozen

from chunkfarm.errors import InvalidRequest

QUERY_FIELDS_MAX = 20
"""Fields in a query; a listing uses five."""

_ESCAPE_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SLASHES = re.compile(r"[/\\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ABSOLUTE = re.compile(rb"https?://[^/?]+", re.IGNORECASE)
_ETAG = re.compile(rb'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_RANGE = re.compile(rb"bytes=[ \t]*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))[ \t]*\Z", re.IGNORECASE)
"""Eighteen digits: more than any file has bytes, and never slow to read as a number."""

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = "|".join(_MONTHS)
_DATE_FORMS = (
    re.compile(rf"[A-Z][a-z]{{2}}, (?P<d>\d\d) (?P<m>{_MONTH}) (?P<y>\d{{4}}) (?P<t>\d\d:\d\d:\d\d) GMT\Z"),
    re.compile(rf"[A-Z][a-z]{{5,8}}, (?P<d>\d\d)-(?P<m>{_MONTH})-(?P<y>\d\d) (?P<t>\d\d:\d\d:\d\d) GMT\Z"),
    re.compile(rf"[A-Z][a-z]{{2}} (?P<m>{_MONTH}) (?P<d>[ \d]\d) (?P<t>\d\d:\d\d:\d\d) (?P<y>\d{{4}})\Z"),
)
"""IMF-fixdate, then the two obsolete forms that a recipient must still understand (RFC 9110, 5.6.7)."""


class RangeNotSatisfiable(InvalidRequest):
    """The range lies behind the end."""

    http_status = 416

    def __init__(self, size: int) -> None:
        super().__init__(f"the range lies behind the end of {size} bytes")
        self.size = size


# Targets.


def split_target(target: bytes) -> tuple[str, bytes]:
    """The decoded path, which begins with `/`, and the raw query of a request target.

    Raises `InvalidRequest` for anything that two readers could take for two different names: a broken
    escape, bytes that are not UTF-8, control characters, the path segments `.` and `..`, a fragment.
    """
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.match(target)
        if absolute is None:
            raise InvalidRequest("the request target is neither a path nor a URL")
        target = target[absolute.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    if b"\\" in target:
        # A browser or a proxy may make a slash of it.
        raise InvalidRequest("a request target has no backslash; in a name it is written %5C")
    if b"#" in target:
        raise InvalidRequest("a request target has no fragment; '#' in a name is written %23")
    raw, _, query = target.partition(b"?")
    path = decode(raw)
    if "." in path and any(part in (".", "..") for part in _SLASHES.split(path)):
        raise InvalidRequest("no part of the path may be '.' or '..'")
    return path, query


def decode(raw: bytes) -> str:
    """Percent-decode strictly; raises `InvalidRequest`."""
    if b"%" in raw:
        if _ESCAPE_BROKEN.search(raw):
            raise InvalidRequest("a '%' in the request target is not followed by two hexadecimal digits")
        raw = unquote_to_bytes(raw)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the request target is not UTF-8") from None
    if _CONTROL.search(text):
        raise InvalidRequest("the request target has a control character")
    return text


def parse_query(query: bytes) -> dict[str, str]:
    """The fields of a query; a `+` is a space. Raises `InvalidRequest` for a broken or repeated one."""
    values: dict[str, str] = {}
    if not query:
        return values
    for pair in query.split(b"&", QUERY_FIELDS_MAX + 1):
        if not pair:
            continue
        raw_name, _, raw_value = pair.replace(b"+", b" ").partition(b"=")
        name = decode(raw_name)
        if name in values:
            raise InvalidRequest(f"the query has {name!r} more than once")
        if len(values) == QUERY_FIELDS_MAX:
            raise InvalidRequest(f"a query has at most {QUERY_FIELDS_MAX} fields")
        values[name] = decode(raw_value)
    return values


# Dates.


@lru_cache(maxsize=1024)
def format_date(seconds: int) -> str:
    """Seconds since 1970 as `Sun, 22 Nov 2026 10:00:00 GMT`, whatever the locale."""
    year, month, day, hour, minute, second, weekday = time.gmtime(seconds)[:7]
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"


def parse_date(value: bytes, now: int) -> int | None:
    """Seconds since 1970 of a date in any of HTTP's three forms; None if it is not one.

    `now`, in seconds, decides the century of a year of two digits: not more than 50 years ahead.
    """
    text = value.decode("latin-1").strip()
    match = next((match for form in _DATE_FORMS if (match := form.match(text))), None)
    if match is None:
        return None
    year, month, day = int(match["y"]), _MONTHS.index(match["m"]) + 1, int(match["d"])
    hour, minute, second = (int(part) for part in match["t"].split(":"))
    if len(match["y"]) == 2:
        this_year = time.gmtime(now).tm_year
        year += this_year // 100 * 100
        if year > this_year + 50:
            year -= 100
    if not (year and 1 <= day <= calendar.monthrange(year, month)[1] and hour < 24 and minute < 60 and second <= 60):
        return None
    return calendar.timegm((year, month, day, hour, minute, second))


# Conditions.


def parse_etags(value: bytes) -> tuple[tuple[bool, str], ...]:
    """The entity tags of a list as (weak, tag); `*` is `((False, "*"),)`.

    Raises `InvalidRequest`: a condition that is not understood must not be taken as one that holds.
    """
    if value.strip() == b"*":
        return ((False, "*"),)
    tags: list[tuple[bool, str]] = []
    position = 0
    while position < len(value):
        if value[position] in b", \t":
            position += 1
            continue
        match = _ETAG.match(value, position)
        if match is None or (match.end() < len(value) and value[match.end()] not in b", \t"):
            raise InvalidRequest("a condition has something that is not a quoted entity tag")
        tag = match[2].decode("latin-1")
        tags.append((match[1] is not None, tag if tag != "*" else '"*"'))
        position = match.end()
    if not tags:
        raise InvalidRequest("a condition has no entity tag")
    return tuple(tags)


@frozen
class Conditions:
    """What a request is conditional on. Tags as `parse_etags` gives them; times in seconds."""

    if_match: tuple[tuple[bool, str], ...] = ()
    if_none_match: tuple[tuple[bool, str], ...] = ()
    modified_since: int | None = None
    unmodified_since: int | None = None

    @classmethod
    def of(cls, headers: Mapping[bytes, bytes], now: int) -> Conditions | None:
        """The conditions of a request; None if it has none. A date that is not one is ignored, as the RFC says."""
        match, none_match = headers.get(b"if-match"), headers.get(b"if-none-match")
        since, unmodified = headers.get(b"if-modified-since"), headers.get(b"if-unmodified-since")
        if match is None and none_match is None and since is None and unmodified is None:
            return None
        return cls(
            parse_etags(match) if match is not None else (),
            parse_etags(none_match) if none_match is not None else (),
            parse_date(since, now) if since is not None and none_match is None else None,
            parse_date(unmodified, now) if unmodified is not None and match is None else None,
        )

    def failed(self, etag: str | None, modified: int, *, reading: bool) -> int:
        """The status to answer, 304 or 412; 0 if all holds. In the order of RFC 9110, 13.2.2.

        `etag` is that of the file that is there (None if there is none), `modified` its time in seconds.
        """
        if self.if_match:
            if etag is None or not any(not weak and tag in ("*", etag) for weak, tag in self.if_match):
                return 412
        elif self.unmodified_since is not None and (etag is None or modified > self.unmodified_since):
            return 412
        if self.if_none_match:
            if etag is not None and any(tag in ("*", etag) for _, tag in self.if_none_match):
                return 304 if reading else 412
        elif reading and self.modified_since is not None and etag is not None and modified <= self.modified_since:
            return 304
        return 0


# Ranges.


def parse_range(value: bytes, size: int) -> tuple[int, int] | None:
    """Where the one range asked for begins and where it ends (the offset after it), of `size` bytes.

    None if the header is to be ignored and the whole is to be sent: another unit, something malformed, or
    several ranges (which a server may ignore; many small ones would cost far more than they are worth).
    Raises `RangeNotSatisfiable`.
    """
    match = _RANGE.match(value)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        length = int(suffix)
        if not length:
            raise RangeNotSatisfiable(size)
        # The last bytes of nothing are nothing, which Content-Range has no words for.
        return (max(0, size - length), size) if size else None
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiable(size)
    return start, min(size, int(last) + 1) if last else size


def range_applies(headers: Mapping[bytes, bytes], etag: str) -> bool:
    """Whether If-Range, if given, lets a Range be answered: only for the very same entity tag.

    A date never does: two versions may have been stored within its second, and then the ranges of both
    would be put together into a file that never was.
    """
    wanted = headers.get(b"if-range")
    return wanted is None or wanted == b'"%b"' % etag.encode()
