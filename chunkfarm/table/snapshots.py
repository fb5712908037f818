"""The two ends of a snapshot on disk: a consistent view that is read page by page, and a file that grows from pages.

A snapshot carries the whole state machine: rows, sessions and remembered answers. Both ends count the records
and hash them in the order in which they travel; a file whose count or digest differs is never used.
Everything here blocks.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator

from attrs import frozen

from chunkfarm.table.codec import SnapshotPage, SnapshotRecord, decode_records, encode_record
from chunkfarm.table.interface import Row
from chunkfarm.table.journal_file import transaction
from chunkfarm.table.records import SnapshotMeta
from chunkfarm.table.rows import insert_record, records

RECORDS_BYTES_MAX = 56 * 1024
"""Records of one page: with a head that names a few dozen members they fit one payload of the peer port."""


class SnapshotError(Exception):
    """This snapshot cannot be sent or received any further; another one may be tried."""


@frozen
class Piece:
    """Records of one page as bytes; with the last one come count and digest of all."""

    records: bytes
    last: bool
    count: int
    digest: bytes


class OutgoingSnapshot:
    """A view of the journal as it was at `meta`, from a read transaction on a connection of its own."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        meta: SnapshotMeta,
        lock: threading.Lock,
        closed: Callable[[OutgoingSnapshot], None],
    ) -> None:
        self.meta = meta
        self._connection: sqlite3.Connection | None = connection
        self._lock = lock
        self._closed = closed
        self._records: Iterator[SnapshotRecord] = records(connection)
        self._held = b""
        self._count = 0
        self._digest = hashlib.sha256()

    def next_piece(self) -> Piece:
        """The next records. Raises `SnapshotError` once the view is closed."""
        with self._lock:
            if self._connection is None:
                raise SnapshotError("the view that was being sent is closed")
            pieces, size, self._held = [self._held] if self._held else [], len(self._held), b""
            last = True
            for record in self._records:
                encoded = encode_record(record)
                self._count += 1
                self._digest.update(encoded)
                if size + len(encoded) > RECORDS_BYTES_MAX:
                    self._held, last = encoded, False
                    break
                pieces.append(encoded)
                size += len(encoded)
            if last:
                return Piece(b"".join(pieces), True, self._count, self._digest.digest())
            return Piece(b"".join(pieces), False, 0, b"")

    def next_rows(self, size: int) -> tuple[Row, ...]:
        """The next rows alone, `size` bytes of them or a little more; none after the last one.

        For whoever wants no more than the rows, and asks for no pieces. Raises `SnapshotError` once the view is closed.
        """
        rows: list[Row] = []
        with self._lock:
            if self._connection is None:
                raise SnapshotError("the view that was being read is closed")
            while size > 0:
                record = next(self._records, None)
                if not isinstance(record, Row):
                    # They come first, so what follows is for others.
                    self._records = iter(())
                    break
                rows.append(record)
                size -= len(record.key) + len(record.value)
        return tuple(rows)

    def close(self) -> None:
        """Let go of the view, so that SQLite can reuse its WAL; harmless the second time."""
        with self._lock:
            self.close_locked()

    def close_locked(self) -> None:
        """The same for a caller that holds the journal's lock."""
        if self._connection is not None:
            self._records = iter(())
            self._connection.close()
            self._connection = None
            self._closed(self)


class IncomingSnapshot:
    """A second file that takes in the pages of one snapshot."""

    def __init__(self, connection: sqlite3.Connection, source: tuple[str, int], meta: SnapshotMeta) -> None:
        self.source = source
        """The sender and its number for this stream."""
        self.meta = meta
        self.complete = False
        self._connection = connection
        self._connection.execute("BEGIN")
        self._next = 0
        self._count = 0
        self._digest = hashlib.sha256()

    def add(self, page: SnapshotPage) -> None:
        """Write one page. Raises `SnapshotError` if it is not the next one, or if the whole is not what was sent."""
        if self.complete or page.sequence != self._next or page.meta != self.meta:
            raise SnapshotError(f"page {page.sequence} of a snapshot came out of order")
        self._next += 1
        try:
            for record in decode_records(page.records):
                insert_record(self._connection, record)
                self._count += 1
        except (sqlite3.IntegrityError, ValueError) as error:
            raise SnapshotError(f"page {page.sequence} of a snapshot cannot be used: {error}") from error
        self._digest.update(page.records)
        if page.last:
            if (self._count, self._digest.digest()) != (page.count, page.digest):
                raise SnapshotError("a snapshot arrived damaged: its count or its digest is wrong")
            self.seal()

    def seal(self) -> None:
        """All rows are here; raises `sqlite3.Error` if there is no room for them.

        Whoever is told that it is complete builds on it, so what comes after this is small and can be tried again.
        """
        self._connection.execute("COMMIT")
        # So that what finds no room is undone. Nothing of this outlives a crash.
        self._connection.execute("PRAGMA journal_mode = MEMORY")
        self.complete = True

    def put(self, record: SnapshotRecord) -> None:
        """Write one record that came in no page; raises `sqlite3.Error`."""
        insert_record(self._connection, record)

    def finish(self, write_state: Callable[[sqlite3.Connection], None], notes: Iterable[tuple[str, str]]) -> None:
        """Add what belongs to this server alone, and close the file; after `sqlite3.Error` nothing of that is done."""
        with transaction(self._connection):
            write_state(self._connection)
            self._connection.executemany("INSERT INTO notes VALUES (?, ?)", notes)
        self._connection.close()

    def close(self) -> None:
        """Give up; the file is unlinked by the journal."""
        self._connection.close()
