"""`index.sqlite`: what is known of the chunks on this disk and can be found out, or waited for, anew.

It holds where each packed chunk is (`packs`), until when chunks must be kept (`pins`), and when they were last found to
be whole (`verified`), in one SQLite file beside the directory of the chunks. Nothing is lost with it: the packs are
read again, and a chunk of which nothing is known counts as pinned. So one that cannot be read at a start is thrown
away, and one that turns out to be damaged later loses its name, so that the next process begins with none. It is made
with the first thing that is written into it, for a start that is refused must leave nothing behind.

Everything here blocks, and is called on a thread.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from chunkfarm.durable import is_broken, sync_directory
from chunkfarm.model import KIB, MIB

CACHE = 32 * MIB
"""Of what is written: half of what a million packed chunks take, so that most inserts touch no disk."""
NAMED_MOST = 500
"""Digests in one question, for which SQLite makes a plan anew."""

_WANTING = (
    sqlite3.SQLITE_IOERR_NOMEM,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMMAP,
)
"""Errors that show a want of room or memory, and nothing of what is in the file."""

Row = tuple[Any, ...]
Statement = tuple[str, Sequence[Row]]
"""An SQL statement, and the values of each time that it is done."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS packs (number INTEGER PRIMARY KEY, scanned INT, live INT)",
    "CREATE TABLE IF NOT EXISTS chunks (digest BLOB PRIMARY KEY, pack INT, at INT, length INT) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS pins (digest BLOB PRIMARY KEY, held REAL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY, seconds REAL)",
    "CREATE TABLE IF NOT EXISTS written (pack INT, at INT, ms INT, PRIMARY KEY (pack, at)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS passes (prefix INTEGER PRIMARY KEY, ms INT)",
    "CREATE TABLE IF NOT EXISTS verified (digest BLOB PRIMARY KEY, ms INT) WITHOUT ROWID",
)


class Index:
    """One file with two connections: what is read waits for nothing that is written."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is anything in it."""
        return self._reader is not None

    def open(self, make: bool = False) -> None:
        """Open it if it is there, or in any case; raises `sqlite3.DatabaseError` if it cannot be used."""
        with self._writing, self._reading:
            if self._reader is not None or not (make or os.path.exists(self._path)):
                return
            is_new = not os.path.exists(self._path)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            writer = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                writer.execute("PRAGMA journal_mode = WAL")
                # It may lose what came last, but not its shape.
                writer.execute("PRAGMA synchronous = NORMAL")
                writer.execute(f"PRAGMA cache_size = -{CACHE // KIB}")
                for table in _TABLES:
                    writer.execute(table)
                reader = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            except BaseException:
                writer.close()
                raise
            self._writer, self._reader = writer, reader
            if is_new:
                sync_directory(os.path.dirname(self._path))

    def discard(self) -> None:
        """Throw away what is in it."""
        self.close()
        self._unlink()

    def close(self) -> None:
        """Close it; it is opened again by `open`."""
        with self._writing, self._reading:
            for connection in (self._reader, self._writer):
                if connection is not None:
                    connection.close()
            self._reader = self._writer = None

    def read(self, question: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows that answer a question; none while there is no index. Raises `sqlite3.Error`."""
        try:
            with self._reading:
                return self._reader.execute(question, values).fetchall() if self._reader is not None else []
        except sqlite3.Error as error:
            self._give_up(error)
            raise

    def read_named(self, question: str, digests: Sequence[bytes]) -> list[Row]:
        """The rows of these digests: the question ends with `digest IN`."""
        rows: list[Row] = []
        if self._reader is not None:
            for start in range(0, len(digests), NAMED_MOST):
                named = digests[start : start + NAMED_MOST]
                rows += self.read(f"{question} ({','.join('?' * len(named))})", named)
        return rows

    def write(self, statements: Iterable[Statement], durable: bool = False) -> None:
        """Do all of these or none; with `durable` no power cut takes that back. Raises `sqlite3.Error`."""
        self.open(make=True)
        try:
            self._write(statements, durable)
        except sqlite3.Error as error:
            self._give_up(error)
            raise

    def _write(self, statements: Iterable[Statement], durable: bool) -> None:
        with self._writing:
            writer = self._writer
            assert writer is not None, "the index is closed"
            if durable:
                writer.execute("PRAGMA synchronous = FULL")
            try:
                writer.execute("BEGIN")
                for text, values in statements:
                    writer.executemany(text, values)
                writer.execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction already.
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise
            finally:
                if durable:
                    writer.execute("PRAGMA synchronous = NORMAL")

    def _give_up(self, error: sqlite3.Error) -> None:
        """Have the next process make it anew if it is damaged: a start sees little of it, and would go on with it.

        This process keeps what it has open, for an index that is suddenly empty would be a false answer.
        """
        if is_broken(error) and error.sqlite_errorcode not in _WANTING:
            self._unlink()

    def _unlink(self) -> None:
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(self._path + end)
