"""What an export looks like: chunks with rows, a head that lists them, a row of the table that names the heads. Pure.

A page is `chunkfarm rows 1` and a line feed, then rows in the order of their keys, each as

    length of the key (2) | length of the value (4) | revision (8) | key | value

with numbers big-endian. The head is `chunkfarm export 1`, a line feed, a JSON object, a line feed, and the raw digests
of the pages in order. So an export is found by looking at the first bytes of chunks, without any table.

Where one page ends and the next begins follows from the rows around that place alone. A range of rows in which
nothing changed gives the same chunks again, whatever came before it, and they cost nothing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

from attrs import asdict, define, field, fields, frozen

from chunkfarm.errors import FarmError
from chunkfarm.model import DIGEST_LENGTH, FARM, KIB, digest_of, split_digests
from chunkfarm.table.interface import KEY_BYTES_MAX, VALUE_BYTES_MAX, Row

EXPORT_KEY = FARM + b"export"
"""The row that names the exports that are kept."""
INVITES = b"invites/"
EXPORTS_KEPT = 3
"""If the newest is not whole on the servers that are left, the one before may be. They share most of their chunks."""
PAGE_LEAST = 16 * KIB
"""Bytes of rows after which a page may end: shorter ones would make the head long for nothing."""
PAGE_STEP = 48 * KIB
"""Bytes of rows that follow on average until it does. A changed row costs its page anew, on each server that keeps
it; of a million files there are some five thousand pages."""
PAGE_MOST = 256 * KIB
"""Bytes of rows after which it ends in any case: it is in memory as a whole."""
HEAD_BYTES_MAX = 64 * 1024 * KIB
"""As of any chunk: the digests of two million pages."""
NUMBER_MAX = 2**63 - 1

PAGE_MAGIC = b"chunkfarm rows 1\n"
HEAD_MAGIC = b"chunkfarm export 1\n"
_ROW = struct.Struct(">HIQ")
_SCALE = 32


class BadExport(FarmError):
    """These bytes are not what they should be; the sentence says which part of an export they are not."""


def is_exported(key: bytes) -> bool:
    """Whether a row belongs into an export.

    Not the row about exports, which would make each differ from the one before. Nor invites: whoever may read chunks
    could use one, and one that was used since the export would be good again.
    """
    return key != EXPORT_KEY and not key.startswith(INVITES)


# -- pages -----------------------------------------------------------------------------------------------


@define
class Cutter:
    """Cuts rows, which are given in order, into pages."""

    rows: int = field(default=0, init=False)
    """Taken so far, those left out not counted."""
    _parts: list[bytes] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)

    def add(self, row: Row) -> bytes | None:
        """Take a row; returns the page that ends with it, if one does."""
        if not is_exported(row.key):
            return None
        self.rows += 1
        record = _ROW.pack(len(row.key), len(row.value), row.revision) + row.key + row.value
        self._parts.append(record)
        self._size += len(record)
        ends = self._size >= PAGE_LEAST and _ends_after(row.key, len(record))
        return self.finish() if ends or self._size >= PAGE_MOST else None

    def finish(self) -> bytes | None:
        """The last page, if there are rows left for one."""
        if not self._parts:
            return None
        page = PAGE_MAGIC + b"".join(self._parts)
        self._parts, self._size = [], 0
        return page


def _ends_after(key: bytes, size: int) -> bool:
    """Whether a page may end after this row: with a chance of its bytes in `PAGE_STEP`, by its key alone."""
    drawn = int.from_bytes(blake2b(key, digest_size=_SCALE // 8).digest(), "big")
    return drawn * PAGE_STEP < size << _SCALE


def read_page(page: bytes, after: bytes = b"") -> tuple[Row, ...]:
    """The rows of a page, all behind the key `after`; raises `BadExport` for bytes that are no page."""
    if not page.startswith(PAGE_MAGIC):
        raise BadExport("this chunk is no page of an export")
    rows = []
    at = len(PAGE_MAGIC)
    while at < len(page):
        if at + _ROW.size > len(page):
            raise BadExport("a page of an export ends in the middle of a row")
        key_length, value_length, revision = _ROW.unpack_from(page, at)
        at += _ROW.size
        if not 0 < key_length <= KEY_BYTES_MAX or value_length > VALUE_BYTES_MAX or revision > NUMBER_MAX:
            raise BadExport("a page of an export has a row that no table has")
        end = at + key_length + value_length
        if end > len(page):
            raise BadExport("a page of an export ends in the middle of a row")
        key = page[at : at + key_length]
        if key <= after:
            raise BadExport("the rows of an export are out of order")
        rows.append(Row(key, page[at + key_length : end], revision))
        at, after = end, key
    if not rows:
        raise BadExport("a page of an export is empty")
    return tuple(rows)


# -- the head --------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Head:
    """What an export is, and which chunks it is made of."""

    farm: str
    """Id of the farm."""
    name: str
    revision: int
    """The table as it was then. No row is newer."""
    term: int
    """Of the entry of the log at that revision."""
    line: str
    """The line of the farm's history; empty before the first takeover."""
    time: int
    """When it was begun (ms since 1970), for people."""
    rows: int
    size: int
    """Bytes of all pages."""
    pages: bytes = field(repr=False)
    """Their raw digests, in order."""

    @property
    def digests(self) -> tuple[bytes, ...]:
        """Of the pages."""
        return split_digests(self.pages)

    def to_bytes(self) -> bytes:
        """As it stands in its chunk."""
        item = asdict(self)
        del item["pages"]
        told = json.dumps(item, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
        return HEAD_MAGIC + told + b"\n" + self.pages


_TEXTS = ("farm", "name", "line")


def read_head(data: bytes) -> Head:
    """The head in these bytes; raises `BadExport` if they are none."""
    if not data.startswith(HEAD_MAGIC) or len(data) > HEAD_BYTES_MAX:
        raise BadExport("this chunk is no head of an export")
    told, feed, pages = data[len(HEAD_MAGIC) :].partition(b"\n")
    if not feed or len(pages) % DIGEST_LENGTH:
        raise BadExport("the head of an export is cut off")
    try:
        item = json.loads(told)
    except (ValueError, RecursionError):
        raise BadExport("the head of an export does not say what it is") from None
    wanted = [attribute.name for attribute in fields(Head) if attribute.name != "pages"]
    if not isinstance(item, dict) or not all(_is_good(name, item.get(name)) for name in wanted):
        raise BadExport("the head of an export does not say what it is")
    return Head(**{name: item[name] for name in wanted}, pages=pages)


def _is_good(name: str, value: Any) -> bool:
    if name in _TEXTS:
        return isinstance(value, str)
    return type(value) is int and 0 <= value <= NUMBER_MAX


# -- the row ---------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Kept:
    """An export as the row of the table names it."""

    revision: int
    time: int
    rows: int
    digest: bytes
    """Of the head."""


def write_kept(exports: Iterable[Kept]) -> bytes:
    """The value of the row, the newest first."""
    items = [
        {"revision": one.revision, "time": one.time, "rows": one.rows, "digests": [one.digest.hex()]} for one in exports
    ]
    return json.dumps({"exports": items}).encode()


def read_kept(value: bytes) -> tuple[Kept, ...]:
    """The exports that the row names; raises `BadExport` for anything else."""
    try:
        return tuple(
            Kept(
                revision=int(item["revision"]),
                time=int(item["time"]),
                rows=int(item["rows"]),
                digest=_digest(item["digests"]),
            )
            for item in json.loads(value)["exports"]
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadExport(f"the row {EXPORT_KEY.decode()} cannot be read") from None


def _digest(texts: Sequence[str]) -> bytes:
    (text,) = texts
    digest = bytes.fromhex(text)
    if len(digest) != DIGEST_LENGTH:
        raise ValueError("it is not the length of a digest")
    return digest


def pages_of(rows: Iterable[Row]) -> Iterator[bytes]:
    """All pages of these rows, which are in order."""
    cutter = Cutter()
    for row in rows:
        page = cutter.add(row)
        if page is not None:
            yield page
    page = cutter.finish()
    if page is not None:
        yield page


@define
class Pages:
    """Cuts rows into pages and names them, keeping only those that are not among `known`. For a thread."""

    known: frozenset[bytes]
    size: int = field(default=0, init=False)
    """Bytes of all pages so far."""
    _cutter: Cutter = field(factory=Cutter, init=False)
    _digests: list[bytes] = field(factory=list, init=False)

    @property
    def rows(self) -> int:
        return self._cutter.rows

    @property
    def digests(self) -> bytes:
        """Of all pages so far, raw."""
        return b"".join(self._digests)

    def take(self, rows: Sequence[Row], *, last: bool) -> list[tuple[bytes, bytes]]:
        """Cut these rows; returns digest and bytes of the pages that have ended and are new."""
        pages = [page for row in rows if (page := self._cutter.add(row)) is not None]
        if last and (page := self._cutter.finish()) is not None:
            pages.append(page)
        new = []
        for page in pages:
            digest = digest_of(page)
            self._digests.append(digest)
            self.size += len(page)
            if digest not in self.known:
                new.append((digest, page))
        return new
