"""The journal keeps what it promised, whenever the power goes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from random import Random
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.durable import is_full
from chunkfarm.table import journal as journal_module
from chunkfarm.table.codec import OpenSession, Request, SnapshotPage, Transaction, encode_request
from chunkfarm.table.interface import Compacted, Compare, Delete, Event, Put
from chunkfarm.table.journal import Journal
from chunkfarm.table.journal_file import Files, JournalError
from chunkfarm.table.raft_log import encode_configuration
from chunkfarm.table.records import Configuration, Entry, EntryKind, HardState, Ready, SnapshotMeta
from chunkfarm.table.rows import StateMachine, digest_of_state
from chunkfarm.table.snapshots import IncomingSnapshot, SnapshotError
from tests.simulation.disks import Disk

CLIENT = "c"


def data(index: int, request: Request, term: int = 1) -> Entry:
    return Entry(term, index, EntryKind.DATA, encode_request(request))


def opening(index: int) -> Entry:
    return data(index, OpenSession(CLIENT))


def put(index: int, key: bytes, value: bytes = b"", *, epoch: int = 2, number: int = 0, term: int = 1) -> Entry:
    """A put by the session that was opened at `epoch`."""
    number = number or index - epoch
    return data(index, Transaction(CLIENT, epoch, number, number - 1, (), (Put(key, value),)), term)


class JournalTestCase(SynchronousTestCase):
    """Builds journals, and looks at what a process would find after a crash."""

    def directory(self) -> str:
        path: str = self.mktemp()
        os.makedirs(path)
        return path

    def journal(self, path: str | None = None) -> Journal:
        journal = Journal.open(path or os.path.join(self.directory(), "table.sqlite"))
        self.addCleanup(journal.close)
        return journal

    def founded(self) -> Journal:
        """A journal of a farm of one, with a session and nothing else, applied up to 2."""
        journal = self.journal()
        journal.found("a")
        self.commit(journal, opening(2))
        return journal

    def commit(self, journal: Journal, *entries: Entry) -> None:
        journal.save(Ready(entries=entries))
        journal.save(Ready(committed=entries))

    def after_crash(self, journal: Journal, *, wal: int | None = None) -> Journal:
        """What the next process finds if this one ends now; `wal`: so much of the WAL had reached the disk."""
        path = os.path.join(self.directory(), "table.sqlite")
        for ending in ("", "-wal", ".next", ".next-wal"):
            if os.path.exists(journal.path + ending):
                shutil.copy(journal.path + ending, path + ending)
        if wal is not None:
            os.truncate(path + "-wal", wal)
        return self.journal(path)


class JournalTests(JournalTestCase):
    """Log, hard state and rows of one server."""

    def test_new(self) -> None:
        """A new journal is empty, and nobody else may read its file."""
        journal = self.journal()
        assert journal.empty and journal.farm_id == ""
        loaded = journal.load()
        assert (loaded.hard_state, loaded.snapshot, loaded.entries) == (HardState(), SnapshotMeta(), ())
        assert stat.S_IMODE(os.stat(journal.path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(journal.path + "-wal").st_mode) == 0o600

    def test_found(self) -> None:
        """A founded journal has one voter, and is founded once."""
        journal = self.journal()
        journal.found("a")
        again = self.after_crash(journal)
        assert not again.empty
        assert again.load().snapshot == SnapshotMeta(1, 1, Configuration({"a"}))
        assert again.load().hard_state == HardState(1, "a", 1)
        with self.assertRaises(JournalError):
            again.found("b")

    def test_notes(self) -> None:
        """The farm id outlives the process."""
        journal = self.journal()
        journal.farm_id = "f" * 32
        assert self.after_crash(journal).farm_id == "f" * 32

    def test_no_room_for_a_note(self) -> None:
        """A server that founds or joins on a full disk says so in a sentence."""
        disk = Disk(Random(1))
        journal = Journal.open(os.path.join(self.directory(), "table.sqlite"), disk)
        self.addCleanup(journal.close)
        disk.full = True
        for call in (lambda: setattr(journal, "farm_id", "f" * 32), lambda: journal.found("a")):
            with self.assertRaises(JournalError) as caught:
                call()
            assert "cannot be written: database or disk is full" in str(caught.exception)
        assert journal.empty and journal.farm_id == ""

    def test_hard_state(self) -> None:
        """A vote is on the disk when `save` returns."""
        journal = self.journal()
        journal.save(Ready(hard_state=HardState(7, "b", 0)))
        assert not journal.empty
        assert self.after_crash(journal).load().hard_state == HardState(7, "b", 0)

    def test_entries(self) -> None:
        """So are entries; later ones replace those from their place on."""
        journal = self.founded()
        journal.save(Ready(entries=(put(3, b"a"), put(4, b"b"), put(5, b"c"))))
        journal.save(Ready(entries=(put(4, b"x", term=2),), hard_state=HardState(2, "a", 2)))
        loaded = self.after_crash(journal).load()
        assert loaded.entries == (opening(2), put(3, b"a"), put(4, b"x", term=2))
        assert loaded.applied == 2

    def test_killed_before_the_commit(self) -> None:
        """A process that dies in the middle of a save leaves what was there before."""
        journal = self.founded()
        seen: list[tuple[int, tuple[Entry, ...]]] = []

        def apply(machine: StateMachine, entry: Entry) -> None:
            loaded = self.after_crash(journal).load()
            seen.append((loaded.applied, loaded.entries))
            raise KeyboardInterrupt

        with patch.object(StateMachine, "apply", apply), self.assertRaises(KeyboardInterrupt):
            journal.save(Ready(entries=(put(3, b"a"),), committed=(put(3, b"a"),)))
        assert seen == [(2, (opening(2),))]
        assert journal.load().entries == (opening(2),)
        self.commit(journal, put(3, b"a"))
        assert journal.applied == 3

    def test_power_cut_after_applying(self) -> None:
        """Applying is not synchronized: a power cut may undo it, and finds the entries in the log instead."""
        journal = self.founded()
        journal.save(Ready(entries=(put(3, b"a"),)))
        durable = os.path.getsize(journal.path + "-wal")
        journal.save(Ready(committed=(put(3, b"a"),)))
        assert os.path.getsize(journal.path + "-wal") > durable
        before, after = self.after_crash(journal, wal=durable), self.after_crash(journal)
        assert (before.applied, after.applied) == (2, 3)
        assert before.load().entries == after.load().entries
        before.save(Ready(committed=(put(3, b"a"),)))
        assert digest_of_state(before._connection) == digest_of_state(after._connection)

    def test_what_is_synchronized(self) -> None:
        """A save with entries or a vote runs with synchronous=FULL, one that only applies with NORMAL."""
        journal = self.founded()
        level = journal._connection.execute
        journal.save(Ready(entries=(put(3, b"a"),)))
        assert level("PRAGMA synchronous").fetchone() == (2,)
        journal.save(Ready(committed=(put(3, b"a"),)))
        assert level("PRAGMA synchronous").fetchone() == (1,)
        journal.save(Ready(hard_state=HardState(5, "a", 3)))
        assert level("PRAGMA synchronous").fetchone() == (2,)
        journal.save(Ready(hard_state=HardState(5, "a", 4)))
        assert level("PRAGMA synchronous").fetchone() == (1,)

    def test_applied_once(self) -> None:
        """An entry that is already applied is not applied again."""
        journal = self.founded()
        self.commit(journal, put(3, b"a"))
        assert journal.save(Ready(committed=(put(3, b"a"),))).applied == ()

    def test_damaged(self) -> None:
        """A log with a hole, or a file that is something else, is refused in one sentence."""
        journal = self.founded()
        journal._connection.execute("DELETE FROM log WHERE number = 2")
        with self.assertRaises(JournalError):
            journal.load()
        path = os.path.join(self.directory(), "table.sqlite")
        for content in (b"something else" * 100, b""):
            with open(path, "wb") as file:
                file.write(content)
            with self.assertRaises(JournalError):
                Journal.open(path)

    def test_format(self) -> None:
        """A file of a later format is left alone."""
        journal = self.journal()
        journal._connection.execute("PRAGMA user_version = 99")
        journal.close()
        with self.assertRaises(JournalError) as caught:
            Journal.open(journal.path)
        assert "format 99" in str(caught.exception)

    def test_close_twice(self) -> None:
        """Closing twice does no harm, and a read afterwards is an error, not a crash."""
        journal = self.founded()
        journal.close()
        journal.close()
        with self.assertRaises(JournalError):
            journal.read(b"", b"", 10)


class LogTests(JournalTestCase):
    def test_the_newest_value(self) -> None:
        """What the log holds counts before it is applied."""
        journal = self.founded()
        assert journal.newest(b"k") == b""
        self.commit(journal, put(3, b"k", b"one"))
        assert journal.newest(b"k") == b"one"
        journal.save(Ready(entries=(put(4, b"k", b"two"), put(5, b"other", b"x"))))
        assert journal.newest(b"k") == b"two"

    """The log is cut behind a tail, and doubles as the history for watches."""

    @patch.object(journal_module, "LOG_ENTRIES_MAX", 10)
    @patch.object(journal_module, "LOG_TAIL", 4)
    def test_cut_by_entries(self) -> None:
        """With too many entries the oldest applied ones go, and the log begins where they ended."""
        journal = self.founded()
        entries = tuple(put(index, b"k%d" % index) for index in range(3, 13))
        assert journal.save(Ready(entries=entries)).compact_to == 2
        point = journal.save(Ready(committed=entries)).compact_to
        assert point == 8
        journal.compact(point)
        loaded = self.after_crash(journal).load()
        assert loaded.snapshot == SnapshotMeta(8, 1, Configuration({"a"}))
        assert [entry.index for entry in loaded.entries] == [9, 10, 11, 12]
        assert journal.save(Ready(committed=())).compact_to == 0

    @patch.object(journal_module, "LOG_BYTES_MAX", 10_000)
    def test_cut_by_bytes(self) -> None:
        """The same for few large entries."""
        journal = self.founded()
        entries = tuple(put(index, b"k", bytes(3000)) for index in range(3, 8))
        journal.save(Ready(entries=entries))
        point = journal.save(Ready(committed=entries)).compact_to
        assert point == 6
        journal.compact(point)
        assert journal.save(Ready(committed=())).compact_to == 0

    def test_configuration_where_the_log_begins(self) -> None:
        """A log that is cut begins with the configuration that was in force there."""
        journal = self.founded()
        change = Entry(1, 4, EntryKind.CONFIGURATION, encode_configuration(Configuration({"a"}, {"b"})))
        later = Entry(1, 6, EntryKind.CONFIGURATION, encode_configuration(Configuration({"a", "b"})))
        self.commit(journal, put(3, b"x"), change, put(5, b"y"), later)
        journal.compact(3)
        assert journal.snapshot.configuration == Configuration({"a"})
        journal.compact(5)
        assert journal.snapshot == SnapshotMeta(5, 1, Configuration({"a"}, {"b"}))

    def test_changes(self) -> None:
        """Changes come from the log, in order, without those that had no effect."""
        journal = self.founded()
        repeated = put(3, b"a", b"1", number=1)
        conflict = data(5, Transaction(CLIENT, 2, 2, 1, (Compare(b"a", "==", 0),), (Put(b"a", b"no"),)))
        removal = data(6, Transaction(CLIENT, 2, 3, 1, (), (Delete(b"a"), Put(b"b", b"2"))))
        self.commit(journal, repeated, put(4, b"a", b"1", number=1), conflict, removal)
        events, reached = journal.changes(b"", 1, 6)
        assert events == (Event(3, "PUT", b"a", b"1"), Event(6, "DEL", b"a", b""), Event(6, "PUT", b"b", b"2"))
        assert reached == 6
        assert journal.changes(b"b", 3, 6) == ((Event(6, "PUT", b"b", b"2"),), 6)
        assert journal.changes(b"", 3, 5) == ((), 5)

    def test_changes_that_are_gone(self) -> None:
        """What the log no longer holds is said to be gone."""
        journal = self.founded()
        self.commit(journal, put(3, b"a"), put(4, b"b"))
        journal.compact(3)
        with self.assertRaises(Compacted) as caught:
            journal.changes(b"", 2, 4)
        assert caught.exception.first_revision == 4
        assert [event.key for event in journal.changes(b"", 3, 4)[0]] == [b"b"]

    @patch.object(journal_module, "CHANGES_SCAN", 2)
    def test_long_histories(self) -> None:
        """A long history is read in pieces."""
        journal = self.founded()
        self.commit(journal, *(put(index, b"k%d" % index) for index in range(3, 8)))
        assert journal.changes(b"k7", 2, 7) == ((), 4)
        assert journal.changes(b"k7", 6, 7)[1] == 7


class SnapshotTests(JournalTestCase):
    """A table moves to another server as a whole, or not at all."""

    def full(self, rows: int = 300) -> Journal:
        journal = self.founded()
        self.commit(journal, *(put(index, b"k%04d" % index, bytes(700)) for index in range(3, 3 + rows)))
        return journal

    def pages(self, journal: Journal, stream: int = 1, term: int = 1) -> list[SnapshotPage]:
        view = journal.open_outgoing()
        pages: list[SnapshotPage] = []
        while not pages or not pages[-1].last:
            piece = view.next_piece()
            pages.append(
                SnapshotPage(
                    stream=stream,
                    sequence=len(pages),
                    term=term,
                    meta=view.meta,
                    records=piece.records,
                    last=piece.last,
                    count=piece.count,
                    digest=piece.digest,
                )
            )
        view.close()
        return pages

    def receiver(self) -> Journal:
        """A server with a vote, notes and an old log of its own."""
        journal = self.journal()
        journal.farm_id = "farm"
        journal.save(Ready(hard_state=HardState(3, "b", 0), entries=(Entry(2, 1, EntryKind.EMPTY),)))
        return journal

    def test_the_rows_alone(self) -> None:
        """A view gives all rows as they were when it was opened, a few at a time, and nothing else."""
        journal = self.founded()
        for index in range(3, 13):
            self.commit(journal, put(index, b"key %02d" % index, b"v" * 100))
        view = journal.open_outgoing()
        self.commit(journal, put(13, b"key 00"), put(14, b"key 05", b"new"))
        parts = []
        while rows := view.next_rows(250):
            parts.append([row.key for row in rows])
        assert [len(part) for part in parts] == [3, 3, 3, 1] and parts[0][0] == b"key 03"
        assert view.next_rows(250) == ()
        view.close()
        self.assertRaises(SnapshotError, view.next_rows, 250)

    def test_whole(self) -> None:
        """Rows, sessions and answers arrive; vote and notes are the receiver's own; the old log is gone."""
        sender, receiver = self.full(), self.receiver()
        pages = self.pages(sender)
        assert len(pages) > 2
        assert [receiver.receive("a", page) for page in pages] == [False] * (len(pages) - 1) + [True]
        assert receiver.applied == 0
        entry = put(303, b"after")
        saved = receiver.save(
            Ready(snapshot=pages[0].meta, hard_state=HardState(4, "a", 303), entries=(entry,), committed=(entry,))
        )
        assert saved.revision == 303
        self.commit(sender, entry)
        assert digest_of_state(receiver._connection) == digest_of_state(sender._connection)
        for journal in (receiver, self.after_crash(receiver)):
            loaded = journal.load()
            assert (loaded.hard_state, loaded.entries) == (HardState(4, "a", 303), (entry,))
            assert loaded.snapshot == SnapshotMeta(302, 1, Configuration({"a"}))
            assert journal.farm_id == "farm" and not journal.empty
            assert [row.key for row in journal.read(b"after", b"", 9).rows] == [b"after"]
        assert not os.path.exists(receiver.path + ".next")
        assert stat.S_IMODE(os.stat(receiver.path).st_mode) == 0o600

    def test_synchronized_on_the_way(self) -> None:
        """A large table is on the disk, but for its end, when it is swapped in: that must not take long."""
        pages, receiver = self.pages(self.full()), self.receiver()
        synchronized: list[str] = []
        sync = receiver._files.sync

        def note(path: str) -> None:
            synchronized.append(os.path.basename(path))
            sync(path)

        with patch("chunkfarm.table.journal.INCOMING_SYNC_BYTES", 50_000), patch.object(receiver._files, "sync", note):
            for page in pages:
                receiver.receive("a", page)
        assert set(synchronized) == {"table.sqlite.next"} and len(synchronized) > 1
        receiver.save(Ready(snapshot=pages[0].meta, hard_state=HardState(4, "a", 302)))
        assert receiver.applied == 302

    def test_consistent(self) -> None:
        """What is committed while a snapshot is being sent is not in it."""
        sender = self.full()
        digest = digest_of_state(sender._connection)
        view = sender.open_outgoing()
        view.next_piece()
        self.commit(sender, put(303, b"k0003", b"changed"), put(304, b"zzz"))
        view.close()
        receiver = self.receiver()
        before = self.pages(self.after_crash(sender))
        for page in before:
            receiver.receive("a", page)
        assert view.meta.index == 302 and before[0].meta.index == 304
        assert digest != digest_of_state(sender._connection)
        with self.assertRaises(SnapshotError):
            view.next_piece()

    def test_damaged(self) -> None:
        """A snapshot that arrives damaged, out of order or mixed with another is never used."""
        sender = self.full()
        pages = self.pages(sender)
        other = self.pages(sender, stream=2)
        broken = bytearray(pages[1].records)
        broken[-1] ^= 1
        import attrs

        damaged = attrs.evolve(pages[1], records=bytes(broken))
        cases = (
            [pages[0], pages[2]],
            [pages[1]],
            [pages[0], pages[0], pages[0], other[1]],
            [pages[0], damaged, *pages[2:]],
            [pages[0], attrs.evolve(pages[1], records=pages[0].records)],
            [*pages[:-1], attrs.evolve(pages[-1], count=1)],
        )
        receiver = self.receiver()
        for case in cases:
            with self.assertRaises(SnapshotError):
                for page in case:
                    receiver.receive("a", page)
            with self.assertRaises(JournalError):
                receiver.save(Ready(snapshot=pages[0].meta, hard_state=HardState(4, "a", 302)))
            assert receiver.load().entries == (Entry(2, 1, EntryKind.EMPTY),)
        for page in pages:
            receiver.receive("a", page)
        receiver.save(Ready(snapshot=pages[0].meta, hard_state=HardState(4, "a", 302)))
        assert receiver.applied == 302

    def test_power_cut_at_every_step(self) -> None:
        """Whenever the swap is interrupted, the next process finds the old table or the new one."""
        sender = self.full()
        pages = self.pages(sender)
        found: list[int] = []
        step = 0
        while True:
            receiver = self.receiver()
            for page in pages:
                receiver.receive("a", page)
            calls = 0

            def interrupted(real: object, limit: int) -> object:
                def call(*arguments: object) -> object:
                    nonlocal calls
                    calls += 1
                    if calls > limit:
                        raise OSError("power cut")
                    return real(*arguments)  # type: ignore[operator]

                return call

            try:
                with (
                    patch.object(Files, "sync", interrupted(Files.sync, step)),
                    patch.object(Files, "rename", interrupted(Files.rename, step)),
                    patch.object(Journal, "_close_all", interrupted(Journal._close_all, step)),
                    patch.object(Journal, "_open", interrupted(Journal._open, step)),
                ):
                    receiver.save(Ready(snapshot=pages[0].meta, hard_state=HardState(4, "a", 302)))
            except OSError:
                pass
            else:
                break
            next_process = self.after_crash(receiver)
            loaded = next_process.load()
            found.append(loaded.applied)
            if loaded.applied:
                assert loaded.hard_state == HardState(4, "a", 302)
                assert digest_of_state(next_process._connection) == digest_of_state(sender._connection)
            else:
                assert loaded.hard_state == HardState(3, "b", 0)
                assert loaded.entries == (Entry(2, 1, EntryKind.EMPTY),)
            assert next_process.farm_id == "farm"
            step += 1
        assert found[0] == 0 and found[-1] == 302 and len(found) == 6
        assert found == sorted(found)

    def test_no_room_for_its_end(self) -> None:
        """A disk that is full when a snapshot is put in its place is waited for, and nothing is done till then."""
        sender, receiver = self.full(), self.receiver()
        receiver.set_note("lines", "x" * 50_000)
        pages = self.pages(sender)
        for page in pages:
            receiver.receive("a", page)
        assert receiver._incoming is not None
        incoming = receiver._incoming._connection
        size = incoming.execute("PRAGMA page_count").fetchone()[0]
        incoming.execute(f"PRAGMA max_page_count = {size}")
        ready = Ready(snapshot=pages[0].meta, hard_state=HardState(4, "a", 302))
        for _ in range(2):
            with self.assertRaises(sqlite3.OperationalError) as caught:
                receiver.save(ready)
            assert is_full(caught.exception)
            assert receiver.applied == 0 and receiver.read(b"", b"", 9).rows == ()
        assert self.after_crash(receiver).load().entries == (Entry(2, 1, EntryKind.EMPTY),)
        incoming.execute("PRAGMA max_page_count = 100000")
        receiver.save(ready)
        assert receiver.note("lines") == "x" * 50_000
        assert digest_of_state(receiver._connection) == digest_of_state(sender._connection)

    def test_no_room_for_its_rows(self) -> None:
        """Before it is offered to anybody all its rows are written: without room for them nothing is promised."""
        pages, receiver = self.pages(self.full()), self.receiver()
        for page in pages[:-1]:
            receiver.receive("a", page)
        assert receiver._incoming is not None
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        with patch.object(IncomingSnapshot, "seal", side_effect=full), self.assertRaises(sqlite3.OperationalError):
            receiver.receive("a", pages[-1])
        assert not os.path.exists(receiver.path + ".next")
        for page in pages:
            receiver.receive("a", page)
        receiver.save(Ready(snapshot=pages[0].meta, hard_state=HardState(4, "a", 302)))
        assert receiver.applied == 302

    def test_no_room_to_close_what_was_there(self) -> None:
        """What is still in the WAL needs room before the file can be given up; that is waited for, too."""
        sender, disk = self.full(), Disk(Random(1))
        pages = self.pages(sender)
        receiver = Journal.open(os.path.join(self.directory(), "table.sqlite"), disk)
        self.addCleanup(receiver.close)
        for page in pages:
            receiver.receive("a", page)
        ready = Ready(snapshot=pages[0].meta, hard_state=HardState(4, "a", 302))
        disk.full = True
        for _ in range(2):
            with self.assertRaises(sqlite3.OperationalError) as caught:
                receiver.save(ready)
            assert is_full(caught.exception) and receiver.applied == 0
        disk.full = False
        receiver.save(ready)
        assert digest_of_state(receiver._connection) == digest_of_state(sender._connection)

    def test_a_swap_ends_what_is_being_sent(self) -> None:
        """A server whose table is replaced stops sending the old one."""
        pages = self.pages(self.full())
        receiver = self.receiver()
        view = receiver.open_outgoing()
        for page in pages:
            receiver.receive("a", page)
        receiver.save(Ready(snapshot=pages[0].meta))
        with self.assertRaises(SnapshotError):
            view.next_piece()
        view.close()
