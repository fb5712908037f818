"""Which files use which chunk, in an SQLite file of its own: derived from the rows, and made anew whenever in doubt.

It holds for each file the revision of its row and the digests of all chunks that it is made of. Rows come in two ways:
page by page from a reading of all of them (`take_page`), and as changes (`take_changes`). Each page may be newer than
the one before, so what is here is whole only when the changes have come up to the newest of them. What is here is never
newer than a page that is taken, and a change that is older than what is here has no effect, so both may be repeated.

Everything here blocks. The methods may be called from any thread, one at a time.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from attrs import evolve, frozen

from chunkfarm.model import DIGEST_LENGTH, FILES, File
from chunkfarm.table.interface import Event, Row

FORMAT = 1
"""Of the file. One of another format is made anew."""
CACHE_KIB = 8 * 1024
"""Memory for pages of the file. Digests are random, so of a large file no affordable part would be enough."""
USES_COUNTED_MAX = 1_000
"""Files that are counted for one chunk: nobody needs to know more, and a chunk of zeros may be in a million files."""
NAMES_AT_ONCE = 1_000
"""Names looked at in one step where files are gone, so that memory stays small however many they are."""

_SCHEMA = """
CREATE TABLE state (farm TEXT, revision INTEGER, newest INTEGER, scanned BLOB);
CREATE TABLE files (id INTEGER PRIMARY KEY, name BLOB UNIQUE, revision INTEGER, unread INTEGER);
CREATE INDEX unread ON files (name) WHERE unread;
CREATE TABLE uses (digest BLOB, file INTEGER, PRIMARY KEY (digest, file)) WITHOUT ROWID;
CREATE INDEX uses_of ON uses (file);
"""


@frozen
class Place:
    """How far the index is."""

    farm: str = ""
    """Which farm's files they are, and on which line of its history."""
    revision: int = 0
    """All changes up to here are in it, of what was read so far."""
    newest: int = 0
    """Of any row that may be in it."""
    scanned: bytes | None = b""
    """The last key that was read; None once all of them were."""
    unread: int = 0
    """Files of which not all chunks are known yet."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be read but changes."""
        return self.scanned is None and not self.unread


class ReferenceIndex:
    """The index at `path`. `open` comes first; what raises `sqlite3.Error` has changed nothing."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._place = Place()

    def open(self, farm: str, newest: int) -> Place:
        """Open the file, making it if need be.

        It is made anew if it belongs to another farm, or another line of its history; and if it has what is newer than
        `newest`, the revision of this server's rows as they were when this process began: then these rows were put
        back, and may go another way now.
        """
        with self._lock:
            try:
                place = self._open()
                if place is not None and place.farm in ("", farm) and max(place.newest, place.revision) <= newest:
                    self._place = place
                    return place
            except sqlite3.DatabaseError:
                # Not a database, or of another shape.
                pass
            self._remove()
            self._create()
            return self._place

    def close(self) -> None:
        """Close the file. Harmless when called twice."""
        with self._lock:
            self._close()

    def discard(self) -> Place:
        """Make the file anew, because it is damaged or nobody knows what it holds."""
        with self._lock:
            self._remove()
            self._create()
            return self._place

    def begin_scan(self, farm: str, revision: int) -> Place:
        """All rows are going to be read, as they are since `revision`; what is here is compared with them."""
        return self._change(lambda _: None, evolve(self._place, farm=farm, revision=revision, scanned=b""))

    def take_page(self, rows: Sequence[Row], revision: int, more: bool) -> Place:
        """The next rows under `files/`, as they are at `revision`; with `more` others follow."""
        after = self._place.scanned
        assert after is not None, "no reading has begun"
        last = rows[-1].key if more and rows else None

        def take(connection: sqlite3.Connection) -> None:
            present = {row.key: row.revision for row in rows}
            for key, found in self._range(connection, after, last):
                if present.get(key) != found:
                    self._forget(connection, key)
                else:
                    del present[key]
            for row in rows:
                if row.key in present:
                    self._enter(connection, row.key, row.value, row.revision)

        return self._change(take, evolve(self._place, newest=max(self._place.newest, revision), scanned=last))

    def take_changes(self, events: Iterable[Event], revision: int) -> Place:
        """Changes of rows under `files/` in order, all there are up to `revision`."""

        def take(connection: sqlite3.Connection) -> None:
            for event in events:
                known = connection.execute("SELECT revision FROM files WHERE name = ?", (event.key,)).fetchone()
                if known is not None and known[0] >= event.revision:
                    # It was in a page that was newer than this change.
                    continue
                if known is not None:
                    self._forget(connection, event.key)
                if event.kind == "PUT":
                    self._enter(connection, event.key, event.value, event.revision)

        return self._change(take, evolve(self._place, revision=max(self._place.revision, revision)))

    def unread(self, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Keys and revisions of rows behind `after` whose file's chunks are not all known."""
        with self._lock:
            query = "SELECT name, revision FROM files WHERE unread AND name > ? ORDER BY name LIMIT ?"
            return list(self._opened().execute(query, (after, limit)))

    def add(self, key: bytes, revision: int, digests: Iterable[bytes], *, last: bool) -> Place:
        """More chunks of a file that is not read yet, if its row is still at `revision`; `last`: that was all."""

        def add(connection: sqlite3.Connection) -> None:
            query = "SELECT id FROM files WHERE name = ? AND revision = ? AND unread"
            found = connection.execute(query, (key, revision)).fetchone()
            if found is not None:
                self._use(connection, found[0], digests)
                if last:
                    connection.execute("UPDATE files SET unread = 0 WHERE id = ?", found)

        return self._change(add, self._place)

    def count(self, digests: Sequence[bytes]) -> list[int]:
        """How many files use each chunk, up to `USES_COUNTED_MAX`."""
        query = "SELECT count(*) FROM (SELECT 1 FROM uses WHERE digest = ? LIMIT ?)"
        with self._lock:
            connection = self._opened()
            return [connection.execute(query, (digest, USES_COUNTED_MAX)).fetchone()[0] for digest in digests]

    def digests_after(self, after: bytes, limit: int) -> list[bytes]:
        """The next chunks behind `after` that are used, in order, `limit` at most."""
        # One search for each: of a chunk that a million files use there are as many rows to pass over.
        query = (
            "WITH RECURSIVE found (digest) AS (SELECT min(digest) FROM uses WHERE digest > ? UNION ALL"
            " SELECT (SELECT min(uses.digest) FROM uses WHERE uses.digest > found.digest) FROM found"
            " WHERE found.digest IS NOT NULL) SELECT digest FROM found WHERE digest IS NOT NULL LIMIT ?"
        )
        with self._lock:
            return [digest for (digest,) in self._opened().execute(query, (after, limit))]

    def files_with(self, keys: Sequence[bytes]) -> tuple[frozenset[int], bool]:
        """Numbers of the files that use chunks whose digests begin with one of these keys.

        Of one chunk `USES_COUNTED_MAX` at most; whether there were more is the second part.
        """
        query = "SELECT file FROM uses WHERE digest >= ? AND digest <= ? LIMIT ?"
        files: set[int] = set()
        is_cut = False
        with self._lock:
            connection = self._opened()
            for key in keys:
                last = key + b"\xff" * (DIGEST_LENGTH - len(key))
                rows = connection.execute(query, (key, last, USES_COUNTED_MAX)).fetchall()
                files.update(file for (file,) in rows)
                is_cut = is_cut or len(rows) == USES_COUNTED_MAX
        return frozenset(files), is_cut

    def names_of(self, files: Sequence[int]) -> list[str]:
        """Names of the files with these numbers; one that is gone is left out."""
        with self._lock:
            query = "SELECT name FROM files WHERE id = ?"
            found = [self._opened().execute(query, (file,)).fetchone() for file in files]
        return [_name_of(row[0]) for row in found if row is not None]

    def names(self, digest: bytes, limit: int) -> list[str]:
        """Names of files that use this chunk, `limit` at most."""
        query = "SELECT name FROM files WHERE id IN (SELECT file FROM uses WHERE digest = ? LIMIT ?) ORDER BY name"
        with self._lock:
            return [_name_of(key) for (key,) in self._opened().execute(query, (digest, limit))]

    # -- inside ------------------------------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.ProgrammingError("the index of uses is closed")
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._connection = connection
        connection.execute("PRAGMA journal_mode = WAL")
        # After a power cut it may lack what came last, and says so itself.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        return connection

    def _open(self) -> Place | None:
        if not os.path.exists(self._path):
            return None
        connection = self._connect()
        if connection.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
            return None
        state = connection.execute("SELECT farm, revision, newest, scanned FROM state").fetchone()
        unread = connection.execute("SELECT count(*) FROM files WHERE unread").fetchone()[0]
        if state is None:
            return None
        farm, revision, newest, scanned = state
        return Place(farm, revision, newest, scanned, unread)

    def _create(self) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = self._connect()
        connection.executescript(_SCHEMA)
        connection.execute("INSERT INTO state VALUES ('', 0, 0, x'')")
        # Last, so that a crash in between leaves a file that is made anew.
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        self._place = Place()

    def _remove(self) -> None:
        self._close()
        for ending in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(self._path + ending)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._opened()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # Where the error has ended the transaction itself there is nothing to take back.
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _change(self, change: Callable[[sqlite3.Connection], None], place: Place) -> Place:
        with self._lock, self._transaction() as connection:
            change(connection)
            unread = connection.execute("SELECT count(*) FROM files WHERE unread").fetchone()[0]
            place = evolve(place, unread=unread)
            connection.execute(
                "UPDATE state SET farm = ?, revision = ?, newest = ?, scanned = ?",
                (place.farm, place.revision, place.newest, place.scanned),
            )
        # Only now: the transaction has ended well.
        self._place = place
        return place

    def _range(self, connection: sqlite3.Connection, after: bytes, last: bytes | None) -> Iterator[tuple[bytes, int]]:
        """Keys and revisions of the files behind `after`, up to `last`. They may be changed meanwhile."""
        query = "SELECT name, revision FROM files WHERE name > ? AND (? IS NULL OR name <= ?) ORDER BY name LIMIT ?"
        while rows := connection.execute(query, (after, last, last, NAMES_AT_ONCE)).fetchall():
            yield from rows
            after = rows[-1][0]

    def _forget(self, connection: sqlite3.Connection, key: bytes) -> None:
        (number,) = connection.execute("SELECT id FROM files WHERE name = ?", (key,)).fetchone()
        connection.execute("DELETE FROM uses WHERE file = ?", (number,))
        connection.execute("DELETE FROM files WHERE id = ?", (number,))

    def _enter(self, connection: sqlite3.Connection, key: bytes, value: bytes, revision: int) -> None:
        try:
            file = File.from_row(key, value, revision)
            digests, unread = file.digests, file.levels != 0
        except Exception:
            # Whatever it is, it may use any chunk until somebody understands it.
            digests, unread = (), True
        inserted = connection.execute("INSERT INTO files VALUES (NULL, ?, ?, ?)", (key, revision, unread))
        assert inserted.lastrowid is not None
        self._use(connection, inserted.lastrowid, digests)

    def _use(self, connection: sqlite3.Connection, number: int, digests: Iterable[bytes]) -> None:
        connection.executemany(
            "INSERT OR IGNORE INTO uses VALUES (?, ?)", [(digest, number) for digest in sorted(set(digests))]
        )


def _name_of(key: bytes) -> str:
    return key[len(FILES) :].decode("utf-8", "replace")
