"""The table on this disk: one SQLite file with the log, the hard state, the rows and how far they are applied.

The file is in WAL mode. A commit that a promise depends on (a vote, a term, entries of the log) runs with
`synchronous=FULL`. A commit that only applies entries runs with `synchronous=NORMAL`: after a power cut SQLite
comes back with some prefix of its commits, and the entries that are then unapplied are still in the log, which
was synchronized before. The WAL is one file, so the next full commit makes what was applied durable as well.

Everything here blocks. The methods that write belong to one thread; `read`, `changes` and the pages of an
`OutgoingSnapshot` may run on another one at the same time, on connections of their own.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from attrs import evolve, frozen

from chunkfarm.table.codec import (
    ENTRY_KIND_OF,
    ENTRY_KINDS,
    SnapshotPage,
    Transaction,
    decode_request,
)
from chunkfarm.table.framing import CodecError
from chunkfarm.table.interface import Compacted, Event, Page, Put, Row
from chunkfarm.table.journal_file import (
    APPLICATION_ID,
    FORMAT,
    Files,
    JournalError,
    State,
    create_schema,
    meta_at,
    transaction,
)
from chunkfarm.table.records import Configuration, Entry, EntryKind, HardState, Ready, SnapshotMeta
from chunkfarm.table.rows import Applied, StateMachine, events_of, read_rows
from chunkfarm.table.snapshots import IncomingSnapshot, OutgoingSnapshot, SnapshotError

LOG_ENTRIES_MAX = 10_000
"""Entries behind which the log is cut: they are held in memory too, and are read at every start."""
LOG_BYTES_MAX = 32 * 1024 * 1024
"""The same, for large transactions."""
LOG_TAIL = 5_000
"""Entries that stay when the log is cut, so that a follower or a watch that fell a little behind goes on."""
INCOMING_SYNC_BYTES = 16 * 1024 * 1024
"""Rows of a snapshot after which the file that takes them is synchronized. All at the end, a large table takes a slow
disk longer than a process may wait for a write; piece by piece the pages come as fast as the disk takes them."""
CHANGES_SCAN = 1_000
"""Log entries that one look for changes reads, so that it does not hold up other reads."""


@frozen
class Loaded:
    """What a process finds in the journal when it starts."""

    hard_state: HardState
    snapshot: SnapshotMeta
    entries: tuple[Entry, ...]
    applied: int
    caught_up: bool


@frozen
class Saved:
    """What one `save` did."""

    applied: tuple[Applied, ...] = ()
    revision: int = 0
    """The index up to which entries are applied."""
    compact_to: int = 0
    """The index up to which the log should be cut now; 0 for "leave it"."""


class Journal:
    """The open journal. `Journal.open` makes one; an instance is not usable after `close`."""

    def __init__(self, path: str, files: Files) -> None:
        self.path = path
        self._files = files
        self._lock = threading.Lock()
        """Held while a reading connection is in use, and while the file under it is replaced."""
        self._writing = threading.RLock()
        """Held while something is written: the notes are also written from outside the writing thread."""
        self._outgoing: set[OutgoingSnapshot] = set()
        self._incoming: IncomingSnapshot | None = None
        self._unsynced = 0
        """Bytes of its rows since the second file was synchronized."""
        self._closed = False
        self._open()

    @classmethod
    def open(cls, path: str, files: Files | None = None) -> Self:
        """Open the journal at `path`, making it if there is none. Blocks. Raises `JournalError`."""
        files = files or Files()
        try:
            cls._clear_leftovers(path, files)
            if not files.exists(path):
                cls._create(path, files)
            return cls(path, files)
        except (sqlite3.Error, OSError, CodecError) as error:
            raise JournalError(f"the table in {path} cannot be opened: {error}") from error

    @staticmethod
    def _clear_leftovers(path: str, files: Files) -> None:
        """A second file that was not swapped in is incomplete, or will be sent again: nothing was promised on it."""
        for ending in (".next", ".next-wal", ".next-shm", ".next-journal", ".new", ".new-journal"):
            files.remove(path + ending)

    @staticmethod
    def _create(path: str, files: Files) -> None:
        """Make the file under another name first, so that a crash never leaves half a layout."""
        new = path + ".new"
        files.create(new)
        connection = files.connect(new)
        try:
            # What is not whole when it is renamed is made anew, so nothing is synchronized before that.
            connection.execute("PRAGMA synchronous = OFF")
            create_schema(connection)
        finally:
            connection.close()
        files.sync(new)
        files.rename(new, path)
        files.sync(os.path.dirname(path) or ".")

    def _open(self) -> None:
        self._connection = self._files.connect(self.path)
        try:
            self._check_format()
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._full = False
            self._synchronous(True)
            self._state = State.read(self._connection)
            self._notes: dict[str, str] = dict(self._connection.execute("SELECT name, value FROM notes"))
            counted = self._connection.execute("SELECT count(*), total(length(data)) FROM log").fetchone()
            self._entries, self._bytes = int(counted[0]), int(counted[1])
            self._reads = self._files.connect(self.path)
        except BaseException:
            self._connection.close()
            raise
        self._reads.execute("PRAGMA query_only = 1")
        self._machine = StateMachine(self._connection)

    def _check_format(self) -> None:
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise JournalError(f"{self.path} is not a table of chunkfarm")
        if version != FORMAT:
            raise JournalError(f"{self.path} has format {version}, and this version of chunkfarm reads format {FORMAT}")

    def _synchronous(self, full: bool) -> None:
        """Choose how the next commit is made durable. SQLite ignores this inside a transaction."""
        if full != self._full:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full = full

    # -- what it holds -----------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Whether this server never was part of a farm's table: no log, no rows, no vote."""
        return self._state.snapshot_index == 0 and self._entries == 0 and self._state.term == 0

    @property
    def applied(self) -> int:
        """The index up to which entries are applied: the revision of this server's rows."""
        return self._state.applied

    @property
    def snapshot(self) -> SnapshotMeta:
        """Where the log begins."""
        return self._state.meta

    @property
    def farm_id(self) -> str:
        """The farm whose table this is; empty if it never was told."""
        return self.note("farm")

    @farm_id.setter
    def farm_id(self, farm_id: str) -> None:
        """Raises `JournalError` if the disk does not take it."""
        try:
            self.set_note("farm", farm_id)
        except sqlite3.Error as error:
            raise JournalError(f"{self.path} cannot be written: {error}") from error

    def note(self, name: str) -> str:
        """A word that was kept beside the table; empty if there is none."""
        return self._notes.get(name, "")

    def set_note(self, name: str, value: str) -> None:
        """Keep a word beside the table, durably. It belongs to this server and outlives snapshots."""
        with self._writing:
            self._synchronous(True)
            with transaction(self._connection):
                self._connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))
            self._notes[name] = value

    def load(self) -> Loaded:
        """What the core starts from. Raises `JournalError` if the log has a hole."""
        entries = tuple(
            Entry(term, index, ENTRY_KIND_OF[kind], data)
            for index, term, kind, data in self._connection.execute(
                "SELECT number, term, kind, data FROM log ORDER BY number"
            )
        )
        first = self._state.snapshot_index + 1
        if [entry.index for entry in entries] != list(range(first, first + len(entries))):
            raise JournalError(f"{self.path} is damaged: its log has a hole")
        if not self._state.snapshot_index <= self._state.applied < first + len(entries):
            raise JournalError(f"{self.path} is damaged: its rows and its log do not belong together")
        return Loaded(
            self._state.hard_state, self._state.meta, entries, self._state.applied, bool(self._state.caught_up)
        )

    def newest(self, key: bytes) -> bytes:
        """The value that a row has, or will have once all of the log is applied; empty if it has none.

        Entries that turn out to have no effect count as well. Blocks.
        """
        with self._lock, self._view() as connection:
            found = connection.execute("SELECT value FROM rows WHERE key = ?", (key,)).fetchone()
            value = bytes(found[0]) if found is not None else b""
            later = connection.execute(
                "SELECT data FROM log WHERE number > (SELECT applied FROM state) AND kind = ? ORDER BY number",
                (ENTRY_KINDS[EntryKind.DATA],),
            )
            for (data,) in later:
                request = decode_request(data)
                for one in request.operations if isinstance(request, Transaction) else ():
                    if one.key == key:
                        value = one.value if isinstance(one, Put) else b""
        return value

    # -- writing -----------------------------------------------------------------------------------------

    def found(self, server_id: str) -> None:
        """Make the empty journal that of a farm whose one voter is this server. Durable when it returns.

        The farm begins as if from a snapshot at index 1, so that whoever joins gets the configuration with it.
        Raises `JournalError`.
        """
        if not self.empty:
            raise JournalError(f"{self.path} already belongs to a farm")
        meta = SnapshotMeta(1, 1, Configuration(voters=(server_id,)))
        state = evolve(State().with_meta(meta), term=1, vote=server_id, committed=1, applied=1, caught_up=1)
        try:
            self._change(state)
        except sqlite3.Error as error:
            raise JournalError(f"{self.path} cannot be written: {error}") from error

    def mark_caught_up(self) -> None:
        """Remember that this server's rows once were as new as the leader's, so that they may be read stale."""
        self._change(evolve(self._state, caught_up=1), full=False)

    def _change(self, state: State, *, full: bool = True) -> None:
        with self._writing:
            self._synchronous(full)
            with transaction(self._connection):
                state.write(self._connection)
            self._state = state

    def save(self, ready: Ready, *, apply: bool = True) -> Saved:
        """Do a Ready's first step durably, and apply its committed entries (unless `apply` is false).

        Raises `sqlite3.Error` or `OSError` if the disk fails; then nothing of this Ready has been done, except
        perhaps the swap to its snapshot, which may be repeated.
        """
        with self._writing:
            return self._save(ready, apply)

    def _save(self, ready: Ready, apply: bool) -> Saved:
        hard_state = ready.hard_state or self._state.hard_state
        if ready.snapshot is not None and ready.snapshot.index > self._state.snapshot_index:
            hard_state = evolve(hard_state, commit=max(hard_state.commit, ready.snapshot.index))
            self._swap(ready.snapshot, hard_state)
        promised = (hard_state.term, hard_state.vote) != (self._state.term, self._state.vote)
        self._synchronous(bool(ready.entries) or promised)
        state = self._state.with_hard_state(hard_state)
        entries, size = self._entries, self._bytes
        applied: tuple[Applied, ...] = ()
        try:
            with transaction(self._connection):
                if ready.entries:
                    dropped, dropped_bytes = self._append(ready.entries)
                    entries += len(ready.entries) - dropped
                    size += sum(len(entry.data) for entry in ready.entries) - dropped_bytes
                if apply and ready.committed:
                    applied = self._apply([entry for entry in ready.committed if entry.index > state.applied])
                    state = evolve(state, applied=max(state.applied, ready.committed[-1].index))
                if state != self._state:
                    state.write(self._connection)
        except BaseException:
            self._machine.forget()
            raise
        self._state, self._entries, self._bytes = state, entries, size
        return Saved(applied, state.applied, self._compaction_point())

    def _append(self, entries: Sequence[Entry]) -> tuple[int, int]:
        """Replace the log from the first of `entries` on; returns count and bytes of what was dropped."""
        first = entries[0].index
        if first > self._state.snapshot_index + self._entries:
            self._insert(entries)
            return 0, 0
        dropped = self._connection.execute(
            "SELECT count(*), total(length(data)) FROM log WHERE number >= ?", (first,)
        ).fetchone()
        if dropped[0]:
            self._connection.execute("DELETE FROM log WHERE number >= ?", (first,))
        self._insert(entries)
        return int(dropped[0]), int(dropped[1])

    def _insert(self, entries: Sequence[Entry]) -> None:
        self._connection.executemany(
            "INSERT INTO log VALUES (?, ?, ?, ?)",
            [(entry.index, entry.term, ENTRY_KINDS[entry.kind], entry.data) for entry in entries],
        )

    def _apply(self, entries: list[Entry]) -> tuple[Applied, ...]:
        applied = tuple(map(self._machine.apply, entries))
        self._machine.write()
        # The log doubles as the history for watches, which must not show what had no effect.
        without = [
            (entry.index,)
            for entry, done in zip(entries, applied, strict=True)
            if entry.kind is EntryKind.DATA and not done.operations
        ]
        if without:
            self._connection.executemany("INSERT OR REPLACE INTO without_effect VALUES (?)", without)
        return applied

    def _compaction_point(self) -> int:
        if self._entries > LOG_ENTRIES_MAX:
            return max(0, min(self._state.applied, self._state.snapshot_index + self._entries - LOG_TAIL))
        if self._bytes <= LOG_BYTES_MAX:
            return 0
        kept = 0
        for index, size in self._connection.execute("SELECT number, length(data) FROM log ORDER BY number DESC"):
            kept += size
            if kept > LOG_BYTES_MAX // 2:
                return min(self._state.applied, int(index))
        return 0

    def compact(self, index: int) -> None:
        """Forget the log up to `index`, which must be applied."""
        assert index <= self._state.applied
        if index > self._state.snapshot_index:
            with self._writing:
                self._compact(index)

    def _compact(self, index: int) -> None:
        meta = meta_at(self._connection, self._state, index)
        state = self._state.with_meta(meta)
        self._synchronous(False)
        with transaction(self._connection):
            dropped = self._connection.execute(
                "SELECT count(*), total(length(data)) FROM log WHERE number <= ?", (index,)
            ).fetchone()
            self._connection.execute("DELETE FROM log WHERE number <= ?", (index,))
            self._connection.execute("DELETE FROM without_effect WHERE number <= ?", (index,))
            state.write(self._connection)
        self._state = state
        self._entries -= int(dropped[0])
        self._bytes -= int(dropped[1])

    # -- snapshots ---------------------------------------------------------------------------------------

    def receive(self, sender: str, page: SnapshotPage) -> bool:
        """Write a page into the second file, which begins with the first page; True once it is whole.

        Raises `SnapshotError` if the page does not belong to what is there.
        """
        with self._writing:
            source = (sender, page.stream)
            if page.sequence == 0:
                self.drop_incoming()
                self._incoming = self._begin_incoming(source, page.meta)
            incoming = self._incoming
            if incoming is None or incoming.source != source:
                raise SnapshotError("another snapshot has begun since")
            try:
                incoming.add(page)
                self._unsynced += len(page.records)
                if self._unsynced >= INCOMING_SYNC_BYTES:
                    self._unsynced = 0
                    self._files.sync(self.path + ".next")
            except BaseException:
                self.drop_incoming()
                raise
            return incoming.complete

    def _begin_incoming(self, source: tuple[str, int], meta: SnapshotMeta) -> IncomingSnapshot:
        path = self.path + ".next"
        self._unsynced = 0
        self._files.create(path)
        connection = self._files.connect(path)
        # Until it is swapped in the file may be lost at any time, so nothing is synchronized before that.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        create_schema(connection)
        return IncomingSnapshot(connection, source, meta)

    def drop_incoming(self) -> None:
        """Forget a snapshot that was not swapped in."""
        with self._writing:
            if self._incoming is not None:
                self._incoming.close()
                self._incoming = None
            self._clear_leftovers(self.path, self._files)

    def _swap(self, meta: SnapshotMeta, hard_state: HardState) -> None:
        """Put the received file in the place of this one. A crash at any moment leaves the one or the other."""
        incoming = self._incoming
        if incoming is None or not incoming.complete or incoming.meta != meta:
            raise JournalError("the snapshot to be installed is not the one that was received")
        state = evolve(
            State().with_hard_state(hard_state).with_meta(meta),
            applied=meta.index,
            caught_up=self._state.caught_up,
        )
        self._put_in_place(incoming, state, self._notes)

    def _put_in_place(self, incoming: IncomingSnapshot, state: State, notes: Mapping[str, str]) -> None:
        # It is done anyway when the file is closed, but a disk without room for it would be noticed too late then.
        self._synchronous(True)
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        incoming.finish(state.write, notes.items())
        self._incoming = None
        self._files.sync(self.path + ".next")
        with self._lock:
            self._close_all()
            # Closing the last connection empties the WAL into the file and removes it. A WAL that stayed
            # would be taken for the new file's, so the names must be gone for good before the swap.
            if self._files.exists(self.path + "-wal"):
                raise JournalError(f"{self.path} is in use by another process")
            directory = os.path.dirname(self.path) or "."
            self._files.sync(directory)
            self._files.rename(self.path + ".next", self.path)
            self._files.sync(directory)
            self._open()

    def restore(self, server_id: str, term: int, index: int, rows: Iterable[Row], notes: Mapping[str, str]) -> None:
        """Make this the journal of a server that votes alone and has these rows, as if from a snapshot at `index`.

        Nothing of what was here is kept; a crash leaves the one or the other as a whole. Raises `JournalError` for an
        index that is not behind all that is here, and if the disk does not take it.
        """
        with self._writing:
            if index <= self._state.snapshot_index + self._entries:
                raise JournalError(f"{self.path} has entries up to that index already")
            meta = SnapshotMeta(index, term, Configuration(voters=(server_id,)))
            state = evolve(
                State().with_meta(meta), term=term, vote=server_id, committed=index, applied=index, caught_up=1
            )
            try:
                self.drop_incoming()
                self._incoming = incoming = self._begin_incoming((server_id, 0), meta)
                for row in rows:
                    incoming.put(row)
                incoming.seal()
                self._put_in_place(incoming, state, notes)
            except (sqlite3.Error, OSError) as error:
                self.drop_incoming()
                raise JournalError(f"{self.path} cannot be written: {error}") from error
            except BaseException:
                self.drop_incoming()
                raise

    def open_outgoing(self) -> OutgoingSnapshot:
        """A consistent view of everything, to be sent page by page; close it when done."""
        with self._lock:
            connection = self._files.connect(self.path)
            try:
                connection.execute("PRAGMA query_only = 1")
                connection.execute("BEGIN")
                state = State.read(connection)
                meta = meta_at(connection, state, state.applied)
            except BaseException:
                connection.close()
                raise
            outgoing = OutgoingSnapshot(connection, meta, self._lock, self._outgoing.discard)
            self._outgoing.add(outgoing)
            return outgoing

    # -- reading (on another thread) ---------------------------------------------------------------------

    def read(self, prefix: bytes, after: bytes, limit: int, *, secrets: bool = True) -> Page:
        """A page of rows as they are now; without `secrets` as if there were no rows under `secret/`."""
        with self._lock, self._view() as connection:
            revision = connection.execute("SELECT applied FROM state").fetchone()[0]
            return read_rows(connection, revision, prefix, after, limit, secrets=secrets)

    def changes(self, prefix: bytes, after: int, until: int) -> tuple[tuple[Event, ...], int]:
        """Changes under `prefix` with a revision in `(after, until]`, and the revision up to which this looked.

        Raises `Compacted` when the log does not reach back to `after`.
        """
        with self._lock, self._view() as connection:
            begin = connection.execute("SELECT snapshot_index FROM state").fetchone()[0]
            if after < begin:
                raise Compacted(begin + 1)
            until = min(until, after + CHANGES_SCAN)
            events: list[Event] = []
            found = connection.execute(
                "SELECT number, data FROM log WHERE number > ? AND number <= ? AND kind = ?"
                " AND number NOT IN (SELECT number FROM without_effect) ORDER BY number",
                (after, until, ENTRY_KINDS[EntryKind.DATA]),
            )
            for index, data in found:
                request = decode_request(data)
                assert isinstance(request, Transaction)
                events += [event for event in events_of(index, request.operations) if event.key.startswith(prefix)]
            return tuple(events), until

    @contextmanager
    def _view(self) -> Iterator[sqlite3.Connection]:
        if self._closed:
            raise JournalError("the table's journal is closed")
        self._reads.execute("BEGIN")
        try:
            yield self._reads
        finally:
            self._reads.execute("ROLLBACK")

    # -- the end -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all connections; harmless the second time."""
        with self._writing, self._lock:
            if not self._closed:
                self.drop_incoming()
                self._closed = True
                self._close_all()

    def _close_all(self) -> None:
        for outgoing in list(self._outgoing):
            outgoing.close_locked()
        self._reads.close()
        # FULL, so that what closing writes back into the file is synchronized before the WAL goes.
        self._synchronous(True)
        self._connection.close()
