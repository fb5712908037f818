"""The rows that were written or asked for last, in memory: what a small GET needs without a way to a thread.

Pure. Whoever applies entries tells of each of them before anybody hears of it, so what is here is what the journal's
rows are at `at`. What is read from the journal is put in beside that, and may be older or newer than `at`: an older
row is not taken, for a change of it may have come and gone meanwhile, and of a newer one no earlier change counts.
"""

from __future__ import annotations

from collections.abc import Iterable

from chunkfarm.table.interface import Page, Put, Row
from chunkfarm.table.rows import Applied

BYTES_MAX = 4 * 1024 * 1024
"""Of keys, values and what goes with them: some eight thousand rows of small files, in a process of 60 MiB."""
ROW_OVERHEAD = 300
"""Bytes that Python takes for a row beside its key and its value."""

_Kept = tuple[Row | None, int]
"""A row, None for one that is not there, and the revision up to which that is known to be so."""


class RecentRows:
    """Rows by key, the one used last at the end."""

    def __init__(self, at: int, limit: int = BYTES_MAX) -> None:
        self.at = at
        """The index of the last entry that is in here."""
        self._limit = limit
        self._rows: dict[bytes, _Kept] = {}
        self.size = 0
        """Bytes that are taken, by the same count as the limit."""

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, key: bytes) -> Page | None:
        """The row at `key`, as a page of one row or none; None if it must be read from the journal."""
        kept = self._rows.pop(key, None)
        if kept is None:
            return None
        self._rows[key] = kept
        row, known_at = kept
        return Page(max(self.at, known_at), () if row is None else (row,), more=False)

    def apply(self, applied: Iterable[Applied], at: int) -> None:
        """These entries are in the journal's rows now, and all others up to `at`."""
        for done in applied:
            for operation in done.operations:
                before = self._rows.get(operation.key)
                if before is not None and done.index <= before[1]:
                    # It was read from the journal when that was ahead.
                    continue
                row = Row(operation.key, operation.value, done.index) if isinstance(operation, Put) else None
                self._keep(operation.key, row, done.index)
        self.at = max(self.at, at)
        self._drop()

    def read(self, key: bytes, page: Page) -> None:
        """Somebody has read the row at `key` from the journal: a page of one row or none, as it was at its revision."""
        before = self._rows.get(key)
        if page.revision < self.at or (before is not None and before[1] >= page.revision):
            return
        self._keep(key, page.rows[0] if page.rows else None, page.revision)
        self._drop()

    def replace(self, at: int) -> None:
        """The rows are others now, of a snapshot up to `at`: nothing is known of them."""
        self._rows.clear()
        self.size = 0
        self.at = at

    def _keep(self, key: bytes, row: Row | None, revision: int) -> None:
        before = self._rows.pop(key, None)
        if before is not None:
            self.size -= _size(key, before[0])
        self._rows[key] = row, revision
        self.size += _size(key, row)

    def _drop(self) -> None:
        while self.size > self._limit:
            key = next(iter(self._rows))
            self.size -= _size(key, self._rows.pop(key)[0])


def _size(key: bytes, row: Row | None) -> int:
    return ROW_OVERHEAD + len(key) + (0 if row is None else len(row.value))
