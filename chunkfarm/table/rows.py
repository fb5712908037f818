"""The replicated state machine: rows, and the sessions that make a repeated transaction take effect once.

Everything here is a function of the log alone, so every server that applies the same entries holds the same
rows, sessions and answers, byte for byte. A row's revision is the log index of the entry that last changed
it. Sessions follow Ongaro's dissertation, section 6.3: a client opens a session, numbers its transactions,
and says up to which number it has the answers; a number seen before gets its answer again, not its effect.

The functions work on an open SQLite connection and leave transactions to their caller.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator

from attrs import frozen

from chunkfarm.model import SECRET
from chunkfarm.table.codec import (
    PAGE_BYTES_MAX,
    Answer,
    AnswerKind,
    AnswerRecord,
    OpenSession,
    SessionRecord,
    SnapshotRecord,
    Transaction,
    decode_request,
    encode_record,
    row_bytes,
)
from chunkfarm.table.framing import CodecError
from chunkfarm.table.interface import Compare, Delete, Event, Operation, Page, Put, Row
from chunkfarm.table.records import Entry, EntryKind

SESSIONS_MAX = 2_000
"""Sessions that are remembered, those used last. Every server process that changes the table has one."""
ANSWERS_MAX = 512
"""Transactions of one session that may be under way at once, which bounds the answers kept for it."""

ROWS_SCHEMA = """
CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL);
CREATE TABLE sessions (
    client TEXT PRIMARY KEY, epoch INTEGER NOT NULL, used INTEGER NOT NULL, acknowledged INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE answers (
    client TEXT NOT NULL, number INTEGER NOT NULL, revision INTEGER NOT NULL, PRIMARY KEY (client, number)
) WITHOUT ROWID;
"""

_INVALID = Answer(AnswerKind.INVALID)
_EXPIRED = Answer(AnswerKind.EXPIRED)


@frozen
class Applied:
    """What one entry did: the answer for whoever proposed it, and the operations that took effect (in order)."""

    index: int
    term: int
    answer: Answer
    operations: tuple[Operation, ...] = ()


def apply_entry(connection: sqlite3.Connection, entry: Entry) -> Applied:
    """Apply one committed entry. Never fails because of what the entry says."""
    if entry.kind is not EntryKind.DATA:
        return Applied(entry.index, entry.term, Answer(AnswerKind.DONE, entry.index))
    try:
        request = decode_request(entry.data)
    except CodecError:
        return Applied(entry.index, entry.term, _INVALID)
    if isinstance(request, OpenSession):
        return Applied(entry.index, entry.term, _open(connection, request, entry.index))
    answer, took_effect = _transact(connection, request, entry.index)
    return Applied(entry.index, entry.term, answer, request.operations if took_effect else ())


def events_of(index: int, operations: tuple[Operation, ...]) -> tuple[Event, ...]:
    """The changes that watchers see for operations that took effect at `index`."""
    return tuple(
        Event(index, "PUT", operation.key, operation.value)
        if isinstance(operation, Put)
        else Event(index, "DEL", operation.key, b"")
        for operation in operations
    )


def _open(connection: sqlite3.Connection, request: OpenSession, index: int) -> Answer:
    found = connection.execute("SELECT epoch FROM sessions WHERE client = ?", (request.client,)).fetchone()
    if found is not None:
        # A repeated opening finds the session that the first copy made.
        connection.execute("UPDATE sessions SET used = ? WHERE client = ?", (index, request.client))
        return Answer(AnswerKind.OPENED, found[0])
    connection.execute("INSERT INTO sessions VALUES (?, ?, ?, 0)", (request.client, index, index))
    count = connection.execute("SELECT count(*) FROM sessions").fetchone()[0]
    if count > SESSIONS_MAX:
        # `used` is a log index and each index uses one session, so the order is total and the same everywhere.
        oldest = connection.execute(
            "SELECT client FROM sessions ORDER BY used LIMIT ?", (count - SESSIONS_MAX,)
        ).fetchall()
        connection.executemany("DELETE FROM answers WHERE client = ?", oldest)
        connection.executemany("DELETE FROM sessions WHERE client = ?", oldest)
    return Answer(AnswerKind.OPENED, index)


def _transact(connection: sqlite3.Connection, request: Transaction, index: int) -> tuple[Answer, bool]:
    """The answer, and whether the operations took effect now."""
    session = connection.execute(
        "SELECT epoch, acknowledged FROM sessions WHERE client = ?", (request.client,)
    ).fetchone()
    if session is None or session[0] != request.epoch:
        return _EXPIRED, False
    acknowledged = session[1]
    if request.number <= acknowledged:
        # Its answer has arrived long ago; this is a copy that was late.
        return _EXPIRED, False
    if request.acknowledged >= request.number or request.number > request.acknowledged + ANSWERS_MAX:
        return _INVALID, False
    if request.acknowledged > acknowledged:
        connection.execute(
            "DELETE FROM answers WHERE client = ? AND number <= ?", (request.client, request.acknowledged)
        )
        acknowledged = request.acknowledged
    connection.execute(
        "UPDATE sessions SET used = ?, acknowledged = ? WHERE client = ?", (index, acknowledged, request.client)
    )
    before = connection.execute(
        "SELECT revision FROM answers WHERE client = ? AND number = ?", (request.client, request.number)
    ).fetchone()
    if before is not None:
        if before[0]:
            return Answer(AnswerKind.DONE, before[0]), False
        return Answer(AnswerKind.CONFLICT, index, compared_rows(connection, request.compares)), False
    holds = all(_holds(connection, compare) for compare in request.compares)
    connection.execute("INSERT INTO answers VALUES (?, ?, ?)", (request.client, request.number, index if holds else 0))
    if not holds:
        return Answer(AnswerKind.CONFLICT, index, compared_rows(connection, request.compares)), False
    for operation in request.operations:
        _do(connection, operation, index)
    return Answer(AnswerKind.DONE, index), True


def _holds(connection: sqlite3.Connection, compare: Compare) -> bool:
    found = connection.execute("SELECT revision FROM rows WHERE key = ?", (compare.key,)).fetchone()
    revision: int = 0 if found is None else found[0]
    if compare.relation == "==":
        return revision == compare.revision
    return revision > compare.revision if compare.relation == ">" else revision < compare.revision


def _do(connection: sqlite3.Connection, operation: Operation, index: int) -> None:
    if isinstance(operation, Delete):
        connection.execute("DELETE FROM rows WHERE key = ?", (operation.key,))
    else:
        connection.execute(
            "INSERT INTO rows VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
            "SET value = excluded.value, revision = excluded.revision",
            (operation.key, operation.value, index),
        )


def compared_rows(connection: sqlite3.Connection, compares: tuple[Compare, ...]) -> tuple[Row, ...]:
    """The rows that were compared, as they are now. Values that would not fit one answer are left empty."""
    rows: dict[bytes, Row] = {}
    room = PAGE_BYTES_MAX - sum(row_bytes(Row(compare.key, b"", 0)) for compare in compares)
    for compare in compares:
        found = connection.execute("SELECT value, revision FROM rows WHERE key = ?", (compare.key,)).fetchone()
        if found is None or compare.key in rows:
            continue
        value: bytes = found[0] if len(found[0]) <= room else b""
        room -= len(value)
        rows[compare.key] = Row(compare.key, value, found[1])
    return tuple(rows.values())


def end_of(prefix: bytes) -> bytes | None:
    """The first key behind all keys that start with `prefix`; None when there is no such key."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else None


def read_rows(
    connection: sqlite3.Connection, revision: int, prefix: bytes, after: bytes, limit: int, *, secrets: bool = True
) -> Page:
    """Up to `limit` rows under `prefix` behind `after`; fewer if more would not fit one payload."""
    query = "SELECT key, value, revision FROM rows WHERE key >= ? AND key > ?"
    arguments: list[bytes | int] = [prefix, after]
    end = end_of(prefix)
    if end is not None:
        query += " AND key < ?"
        arguments.append(end)
    if not secrets:
        query += " AND NOT (key >= ? AND key < ?)"
        arguments += [SECRET, SECRET[:-1] + bytes((SECRET[-1] + 1,))]
    arguments.append(limit + 1)
    rows: list[Row] = []
    size = 0
    cursor = connection.execute(query + " ORDER BY key LIMIT ?", arguments)
    try:
        for key, value, changed in cursor:
            row = Row(key, value, changed)
            size += row_bytes(row)
            if len(rows) == limit or (rows and size > PAGE_BYTES_MAX):
                return Page(revision, tuple(rows), more=True)
            rows.append(row)
    finally:
        cursor.close()
    return Page(revision, tuple(rows), more=False)


def records(connection: sqlite3.Connection) -> Iterator[SnapshotRecord]:
    """Everything that a snapshot carries, always in the same order."""
    for key, value, revision in connection.execute("SELECT key, value, revision FROM rows ORDER BY key"):
        yield Row(key, value, revision)
    for session in connection.execute("SELECT client, epoch, used, acknowledged FROM sessions ORDER BY client"):
        yield SessionRecord(*session)
    for answer in connection.execute("SELECT client, number, revision FROM answers ORDER BY client, number"):
        yield AnswerRecord(*answer)


def insert_record(connection: sqlite3.Connection, record: SnapshotRecord) -> None:
    """Put one record of a snapshot into an empty state; raises `sqlite3.IntegrityError` for a second one."""
    if isinstance(record, Row):
        connection.execute("INSERT INTO rows VALUES (?, ?, ?)", (record.key, record.value, record.revision))
    elif isinstance(record, SessionRecord):
        connection.execute(
            "INSERT INTO sessions VALUES (?, ?, ?, ?)",
            (record.client, record.epoch, record.used, record.acknowledged),
        )
    else:
        connection.execute("INSERT INTO answers VALUES (?, ?, ?)", (record.client, record.number, record.revision))


def digest_of_state(connection: sqlite3.Connection) -> str:
    """SHA-256 (hexadecimal) over the whole state: equal on all servers that applied the same entries."""
    text = hashlib.sha256()
    for record in records(connection):
        text.update(encode_record(record))
    return text.hexdigest()
