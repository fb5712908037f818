"""The replicated state machine: rows, and the sessions that make a repeated transaction take effect once.

Everything here is a function of the log alone, so every server that applies the same entries holds the same
rows, sessions and answers, byte for byte. A row's revision is the log index of the entry that last changed
it. Sessions follow Ongaro's dissertation, section 6.3: a client opens a session, numbers its transactions,
and says up to which number it has the answers; a number seen before gets its answer again, not its effect.

All of it works on an open SQLite connection and leaves transactions to its caller.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator

from attrs import define, field, frozen

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

SESSIONS_KEPT_MAX = 64
"""Sessions that are kept in memory, so that nothing has to be read for those in use. A farm has one for each server."""

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
    machine = StateMachine(connection)
    done = machine.apply(entry)
    machine.write()
    return done


def events_of(index: int, operations: tuple[Operation, ...]) -> tuple[Event, ...]:
    """The changes that watchers see for operations that took effect at `index`."""
    return tuple(
        Event(index, "PUT", operation.key, operation.value)
        if isinstance(operation, Put)
        else Event(index, "DEL", operation.key, b"")
        for operation in operations
    )


@define
class _Session:
    """A session as it is after the entries that were applied, and what of it is not written yet."""

    epoch: int
    used: int
    acknowledged: int
    answers: dict[int, int]
    """Revisions by number, those of conflicts 0, as far as they are remembered."""
    written: int
    """Up to which number answers are acknowledged in the file."""
    news: dict[int, int] = field(factory=dict)
    """Answers that are not in the file."""


class StateMachine:
    """Applies committed entries, several in one transaction of SQLite, to which `write` brings what they came to.

    Of many entries of one session its row is so written once, and answers that a later one acknowledges are not written
    at all. Sessions that were read are remembered, so whoever rolls the transaction back says `forget`.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._sessions: dict[str, _Session] = {}
        self._used: set[str] = set()
        """Sessions that have changed since the last `write`."""
        self._rows: dict[bytes, tuple[bytes, int] | None] = {}
        """Rows that have changed since then; None for one that is gone."""

    def apply(self, entry: Entry) -> Applied:
        """Apply one entry. Never fails because of what the entry says."""
        if entry.kind is not EntryKind.DATA:
            return Applied(entry.index, entry.term, Answer(AnswerKind.DONE, entry.index))
        try:
            request = decode_request(entry.data)
        except CodecError:
            return Applied(entry.index, entry.term, _INVALID)
        if isinstance(request, OpenSession):
            self.write()
            self._sessions.clear()
            return Applied(entry.index, entry.term, _open(self._connection, request, entry.index))
        answer, took_effect = self._transact(request, entry.index)
        return Applied(entry.index, entry.term, answer, request.operations if took_effect else ())

    def write(self) -> None:
        """Bring everything into the transaction of SQLite that is under way."""
        if self._rows:
            self._write_rows()
        for client in self._used:
            self._write_session(client, self._sessions[client])
        self._used.clear()
        while len(self._sessions) > SESSIONS_KEPT_MAX:
            del self._sessions[next(iter(self._sessions))]

    def forget(self) -> None:
        """The transaction of SQLite was rolled back: everything is as the file says."""
        self._rows.clear()
        self._used.clear()
        self._sessions.clear()

    def _write_rows(self) -> None:
        changed, self._rows = self._rows, {}
        self._connection.executemany(
            "INSERT INTO rows VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
            "SET value = excluded.value, revision = excluded.revision",
            [(key, *row) for key, row in changed.items() if row is not None],
        )
        gone = [(key,) for key, row in changed.items() if row is None]
        if gone:
            self._connection.executemany("DELETE FROM rows WHERE key = ?", gone)

    def _write_session(self, client: str, session: _Session) -> None:
        if session.acknowledged > session.written:
            self._connection.execute(
                "DELETE FROM answers WHERE client = ? AND number <= ?", (client, session.acknowledged)
            )
            session.written = session.acknowledged
        self._connection.execute(
            "UPDATE sessions SET used = ?, acknowledged = ? WHERE client = ?",
            (session.used, session.acknowledged, client),
        )
        news, session.news = session.news, {}
        self._connection.executemany(
            "INSERT INTO answers VALUES (?, ?, ?)", [(client, number, revision) for number, revision in news.items()]
        )

    def _session(self, client: str) -> _Session | None:
        session = self._sessions.get(client)
        if session is None:
            found = self._connection.execute(
                "SELECT epoch, used, acknowledged FROM sessions WHERE client = ?", (client,)
            ).fetchone()
            if found is None:
                return None
            answers = self._connection.execute("SELECT number, revision FROM answers WHERE client = ?", (client,))
            epoch, used, acknowledged = found
            self._sessions[client] = session = _Session(
                epoch, used, acknowledged, dict(answers.fetchall()), written=acknowledged
            )
        return session

    def _transact(self, request: Transaction, index: int) -> tuple[Answer, bool]:
        """The answer, and whether the operations took effect now."""
        session = self._session(request.client)
        if session is None or session.epoch != request.epoch:
            return _EXPIRED, False
        number = request.number
        if number <= session.acknowledged:
            # Its answer has arrived long ago; this is a copy that was late.
            return _EXPIRED, False
        if request.acknowledged >= number or number > request.acknowledged + ANSWERS_MAX:
            return _INVALID, False
        self._used.add(request.client)
        session.used = index
        if request.acknowledged > session.acknowledged:
            session.acknowledged = request.acknowledged
            for old in [old for old in session.answers if old <= request.acknowledged]:
                del session.answers[old]
                session.news.pop(old, None)
        before = session.answers.get(number)
        if before:
            return Answer(AnswerKind.DONE, before), False
        holds = before is None and all(self._holds(compare) for compare in request.compares)
        if before is None:
            session.answers[number] = session.news[number] = index if holds else 0
        if not holds:
            if self._rows:
                self._write_rows()
            return Answer(AnswerKind.CONFLICT, index, compared_rows(self._connection, request.compares)), False
        # Whoever compares a row knows what was there. Of the others it is told.
        compared = {compare.key for compare in request.compares}
        told = tuple(
            Row(one.key, b"", self._revision(one.key)) for one in request.operations if one.key not in compared
        )
        for operation in request.operations:
            self._rows[operation.key] = None if isinstance(operation, Delete) else (operation.value, index)
        return Answer(AnswerKind.DONE, index, told), True

    def _revision(self, key: bytes) -> int:
        """That of the row; 0 if there is none."""
        if key in self._rows:
            row = self._rows[key]
            return 0 if row is None else row[1]
        found = self._connection.execute("SELECT revision FROM rows WHERE key = ?", (key,)).fetchone()
        return 0 if found is None else int(found[0])

    def _holds(self, compare: Compare) -> bool:
        revision = self._revision(compare.key)
        if compare.relation == "==":
            return revision == compare.revision
        return revision > compare.revision if compare.relation == ">" else revision < compare.revision


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
