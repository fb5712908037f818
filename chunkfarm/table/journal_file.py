"""The layout of the journal's file, and the one row in it that says where the server is."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from attrs import evolve, field, frozen

from chunkfarm.errors import FarmError
from chunkfarm.table.codec import ENTRY_KINDS, decode_configuration, encode_configuration
from chunkfarm.table.raft_log import decode_configuration as decode_entry_configuration
from chunkfarm.table.records import Configuration, EntryKind, HardState, SnapshotMeta
from chunkfarm.table.rows import ROWS_SCHEMA

FORMAT = 1
"""Of the file, in `user_version`. A later version raises it when it changes the layout."""
APPLICATION_ID = 0x43464A31
"""Marks the file as ours (`CFJ1`), so that some other SQLite file is not taken for a table."""

_SCHEMA = (
    """
CREATE TABLE state (
    term INTEGER NOT NULL, vote TEXT NOT NULL, committed INTEGER NOT NULL, applied INTEGER NOT NULL,
    snapshot_index INTEGER NOT NULL, snapshot_term INTEGER NOT NULL, snapshot_configuration BLOB NOT NULL,
    caught_up INTEGER NOT NULL
);
CREATE TABLE log (number INTEGER PRIMARY KEY, term INTEGER NOT NULL, kind INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE without_effect (number INTEGER PRIMARY KEY);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
    + ROWS_SCHEMA
)


class JournalError(FarmError):
    """The table's file cannot be used; the sentence says why."""


@frozen
class State:
    """The one row of the table `state`."""

    term: int = 0
    vote: str = ""
    committed: int = 0
    applied: int = 0
    snapshot_index: int = 0
    snapshot_term: int = 0
    snapshot_configuration: bytes = field(factory=lambda: encode_configuration(Configuration()))
    caught_up: int = 0

    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.committed)

    def with_hard_state(self, state: HardState) -> State:
        return evolve(self, term=state.term, vote=state.vote, committed=state.commit)

    @property
    def meta(self) -> SnapshotMeta:
        configuration = decode_configuration(self.snapshot_configuration)
        return SnapshotMeta(self.snapshot_index, self.snapshot_term, configuration)

    def with_meta(self, meta: SnapshotMeta) -> State:
        return evolve(
            self,
            snapshot_index=meta.index,
            snapshot_term=meta.term,
            snapshot_configuration=encode_configuration(meta.configuration),
        )

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> State:
        row = connection.execute(
            "SELECT term, vote, committed, applied, snapshot_index, snapshot_term, snapshot_configuration, caught_up"
            " FROM state"
        ).fetchone()
        return cls(*row)

    def write(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "UPDATE state SET term = ?, vote = ?, committed = ?, applied = ?, snapshot_index = ?, snapshot_term = ?,"
            " snapshot_configuration = ?, caught_up = ?",
            (
                self.term,
                self.vote,
                self.committed,
                self.applied,
                self.snapshot_index,
                self.snapshot_term,
                self.snapshot_configuration,
                self.caught_up,
            ),
        )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, such as a full disk.
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


class Files:
    """The files that a journal is made of, on the disk of this machine."""

    def connect(self, path: str) -> sqlite3.Connection:
        """Open a file with SQLite."""
        # Each connection is used by one thread at a time, which the callers see to; it may be closed by another.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA cache_size = -8192")
        return connection

    def create(self, path: str) -> None:
        """Make a new, empty file that only this user can read (SQLite gives its side files the same mode)."""
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600))

    def exists(self, path: str) -> bool:
        """Whether there is a file of that name."""
        return os.path.exists(path)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def rename(self, path: str, to: str) -> None:
        """Give a file another name, in the place of what had it."""
        os.rename(path, to)

    def sync(self, path: str) -> None:
        """Make the bytes of a file durable, or the names in a directory."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def create_schema(connection: sqlite3.Connection) -> None:
    """Lay out an empty journal."""
    connection.executescript(_SCHEMA)
    columns = State()
    connection.execute(
        "INSERT INTO state VALUES (0, '', 0, 0, 0, 0, ?, 0)",
        (columns.snapshot_configuration,),
    )
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")


def meta_at(connection: sqlite3.Connection, state: State, index: int) -> SnapshotMeta:
    """Term and configuration at `index`, which is in the log or where it begins."""
    if index == state.snapshot_index:
        return state.meta
    term = connection.execute("SELECT term FROM log WHERE number = ?", (index,)).fetchone()[0]
    changed = connection.execute(
        "SELECT data FROM log WHERE number <= ? AND kind = ? ORDER BY number DESC LIMIT 1",
        (index, ENTRY_KINDS[EntryKind.CONFIGURATION]),
    ).fetchone()
    configuration = state.meta.configuration if changed is None else decode_entry_configuration(changed[0])
    return SnapshotMeta(index, term, configuration)
