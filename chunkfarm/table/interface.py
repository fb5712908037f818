"""What a table is: ordered rows, transactions with compares, linearizable reads, watches without gaps.

Any engine (`embedded`, later `etcd`) keeps these promises, and one conformance suite holds them to it.
Keys are ordered bytes. A revision is a positive number that grows with every committed change.
"""

from __future__ import annotations

from attrs import frozen
from twisted.internet.defer import Deferred
from zope.interface import Interface

READ_LIMIT_MAX = 100_000
"""Rows one read may ask for. A page ends earlier anyway, by its bytes."""
KEY_BYTES_MAX = 1200
"""A file name of 1,024 bytes with its prefix fits."""
VALUE_BYTES_MAX = 16 * 1024
"""A row is small: what is larger is stored as chunks."""
OPERATIONS_MAX = 64
TRANSACTION_BYTES_MAX = 48 * 1024
"""Keys and values of one transaction: it fits one AMP value (65,535 bytes) with its frame."""


class TableError(Exception):
    """The table could not do it."""


class Unavailable(TableError):
    """No majority of the masters answers now. Whether a transaction took effect is unknown."""


class TableClosed(TableError):
    """This server's part of the table is closed."""


@frozen
class Row:
    """A key, its value and the revision that last changed it."""

    key: bytes
    value: bytes
    revision: int


class Conflict(TableError):
    """A compare failed, and nothing was changed.

    `rows` are the compared keys' rows as they are now; absent ones are left out.
    """

    def __init__(self, rows: tuple[Row, ...]) -> None:
        super().__init__("a row is not at the revision that was compared")
        self.rows = rows


class Compacted(TableError):
    """The changes asked for are no longer kept; read, then watch from there. `first_revision` is the oldest kept."""

    def __init__(self, first_revision: int) -> None:
        super().__init__(f"changes before revision {first_revision} are no longer kept")
        self.first_revision = first_revision


@frozen
class Compare:
    """Holds if the revision of the row at `key` (0: absent) stands in `relation` (`==`, `>`, `<`) to `revision`."""

    key: bytes
    relation: str
    revision: int


@frozen
class Put:
    key: bytes
    value: bytes


@frozen
class Delete:
    key: bytes


Operation = Put | Delete


@frozen
class Replaced:
    """What `ITable.replace` did."""

    revision: int
    """That of the row."""
    before: int | None
    """That of the row that was there before, 0 if there was none; None if that is not known any more."""


@frozen
class Event:
    """One change of one row. `value` is empty for `DEL`."""

    revision: int
    kind: str
    key: bytes
    value: bytes


@frozen
class Page:
    """Rows in key order as they were at `revision`; `more` says that others follow after the last one."""

    revision: int
    rows: tuple[Row, ...]
    more: bool


@frozen
class Batch:
    """Changes in order, whole transactions; all changes up to `revision` have been given."""

    revision: int
    events: tuple[Event, ...]


def of_one(page: Page, key: bytes) -> Page:
    """What `ITable.find` says of `key`, by the first page of the rows whose keys start with it."""
    found = page.rows[:1] if page.rows and page.rows[0].key == key else ()
    return Page(page.revision, found, more=False)


class IWatch(Interface):
    """A running watch."""

    def next() -> Deferred[Batch]:
        """The next batch, once there is one (it may be empty and only move the revision on).

        Fails with `Compacted` if this watcher fell too far behind, with `TableClosed` when the
        table is closed, and with `Unavailable` when this watch cannot go on (read and watch again).
        One call at a time.
        """

    def close() -> None:
        """End the watch; a waiting `next` fails with `TableClosed`."""


class ITable(Interface):
    """The shared table, as every part of a server sees it."""

    def transact(compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> Deferred[int]:
        """Do all operations or none, and return the revision.

        Fails with `Conflict` when a compare does not hold, and `Unavailable` when no leader
        acknowledged it in time. Takes effect at most once whatever happens on the way.
        """

    def replace(key: bytes, value: bytes, compares: tuple[Compare, ...] = ()) -> Deferred[Replaced]:
        """Put one row whatever is there, and say what was; otherwise as `transact`. The compares are of other rows.

        What was there is forgotten if the answer was lost on the way, so that it was asked for again.
        """

    def read(prefix: bytes, after: bytes = b"", limit: int = 1000, stale: bool = False) -> Deferred[Page]:
        """Rows whose key starts with `prefix` and is greater than `after`, in key order.

        Linearizable, unless `stale`: then this server's own last state (`Unavailable` if it holds none).
        A page may end before `limit` rows; `more` says so.
        """

    def find(key: bytes, stale: bool = False) -> Deferred[Page]:
        """The row at `key`: a page of that row or of none. As current as `read`, and mostly cheaper."""

    def last_known(prefix: bytes, after: bytes = b"", limit: int = 1000) -> Deferred[Page]:
        """As `read` with `stale`; a server that holds no rows asks those that do, and believes who knows most.

        Fails with `Unavailable` where none of them answers either.
        """

    def watch(prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        """Watch changes of rows under `prefix` with a revision greater than `from_revision`.

        Fails with `Compacted(first_revision)` when those are no longer kept.
        """
