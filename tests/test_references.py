"""Which chunks are used, as a server that holds the table tells it, and how others ask."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, execute, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.download import DamagedFile
from chunkfarm.chunks.pieces import Digests
from chunkfarm.links import commands
from chunkfarm.links.interface import HAVE_DIGESTS_MAX
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import EPOCH_KEY, EXPORTS_KEY, FILES, INLINE_DIGESTS_MAX, KIB, File, digest_of
from chunkfarm.reference_index import ReferenceIndex
from chunkfarm.references import (
    LAZY_SECONDS,
    LOOK_SECONDS,
    PATIENCE,
    RETRY_SECONDS,
    UNREAD_RETRY_SECONDS,
    UNWRITTEN_REVISIONS,
    CannotTell,
    References,
)
from chunkfarm.references_link import ReferencesLink
from chunkfarm.table.interface import Compacted, Delete, Unavailable
from tests.builders import make_server, server_id
from tests.chunks.builders import pattern, run_now
from tests.memory_table import MemoryTable
from tests.test_catalog import SIZE, CatalogTestCase

FARM = "f" * 32
A, B, C = (digest_of(letter) for letter in (b"a", b"b", b"c"))


def file_of(name: str, *digests: bytes, levels: int = 0) -> File:
    return File(name=name, size=len(digests) * 4 * KIB, chunk_size=4 * KIB, digests=digests, levels=levels)


class ReferencesTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.table = MemoryTable()
        self.path = self.mktemp()
        self.holds = True
        self.manifests: dict[str, Any] = {}
        self.asked: list[str] = []
        self.references = self.make()

    def make(self, **changes: Any) -> References:
        """The references of one server, as a process of it has them."""
        references = References(
            ReferenceIndex(self.path),
            self.table,
            lambda: self.holds,
            lambda: FARM,
            changes.pop("started_at", 1_000_000),
            self.digests_of,
            self.clock,
            changes.pop("run_in_thread", run_now),
        )
        self.addCleanup(references.stop)
        return references

    def digests_of(self, file: File) -> Deferred[Sequence[Digests]]:
        self.asked.append(file.name)
        found = self.manifests[file.name]
        if isinstance(found, Exception):
            return fail(found)
        return succeed([Digests(b"".join(file.digests)), Digests(b"".join(found))])

    def manifest(self, name: str, found: Sequence[bytes] | Exception) -> None:
        """What the manifest of a long file holds, or why it cannot be read."""
        self.manifests[name] = found

    def put(self, name: str, *digests: bytes, levels: int = 0) -> None:
        file = file_of(name, *digests, levels=levels)
        self.table.put(file.key, file.to_value())

    def remove(self, name: str) -> None:
        self.table.transact((), (Delete(FILES + name.encode()),))

    def start(self) -> None:
        self.references.start()
        self.clock.advance(0)

    def again(self, **changes: Any) -> None:
        """The next process on the same disk."""
        self.successResultOf(self.references.stop())
        self.references = self.make(**changes)
        self.start()

    def uses(self, *digests: bytes) -> list[int]:
        asked = self.references.uses(digests or (A, B, C))
        if not asked.called:
            self.table.beat()
            self.clock.pump([LOOK_SECONDS] * 2)
            self.table.beat()
        return self.successResultOf(asked)

    def refusal(self, seconds: float = 0.0) -> str:
        """Why nothing is told."""
        asked = self.references.uses((A, B, C))
        if seconds:
            self.assertNoResult(asked)
            self.clock.pump([0.5] * round(2 * seconds))
        return str(self.failureResultOf(asked, CannotTell).value)


class AnswerTests(ReferencesTestCase):
    def test_what_is_there_and_what_follows(self) -> None:
        """Files that were there before count as those do that are written, replaced and removed later."""
        self.put("a/1", A, B)
        self.put("a/2", B, B)
        self.start()
        assert self.uses() == [1, 2, 0]
        self.put("a/3", C)
        assert self.uses() == [1, 2, 1]
        self.put("a/3", A)
        self.remove("a/2")
        assert self.uses() == [2, 1, 0]
        assert self.references.hindrance == ""
        assert self.successResultOf(self.references.names(A, 10)) == ["a/1", "a/3"]

    def test_all_chunks(self) -> None:
        """The chunks that files use can be gone through, and looked up again, by a server that knows all rows alone."""
        self.put("a/1", A, B)
        self.failureResultOf(self.references.used_after(b"", 10), CannotTell)
        self.start()
        assert self.successResultOf(self.references.used_after(b"", 10)) == sorted((A, B))
        assert self.successResultOf(self.references.used_after(min(A, B), 10)) == [max(A, B)]
        assert self.successResultOf(self.references.still_used([C, B])) == [B]
        self.holds = False
        self.failureResultOf(self.references.used_after(b"", 10), CannotTell)
        self.failureResultOf(self.references.still_used([B]), CannotTell)

    def test_at_once(self) -> None:
        """Whatever was committed before the question is in the answer, without waiting for the next look."""
        self.start()
        for number in range(3):
            self.put(f"a/{number}", A)
            asked = self.references.uses([A])
            assert self.successResultOf(asked) == [number + 1]

    def test_lazily(self) -> None:
        """If nobody asks, all changes of a while are taken in one step."""
        self.start()
        self.put("a/first", A)
        taken: list[int] = []
        index = self.references._index
        before = index.take_changes

        def take(events: Any, revision: int) -> Any:
            taken.append(len(events))
            return before(events, revision)

        self.patch(index, "take_changes", take)
        for number in range(20):
            self.put(f"a/{number}", A)
            self.clock.advance(LAZY_SECONDS / 100)
        assert taken == []
        self.clock.advance(LAZY_SECONDS)
        assert taken == [20]

    def test_a_table_that_is_ahead(self) -> None:
        """A revision without changes of files is waited for until the watch tells of it, and not for ever."""
        self.start()
        self.put("a/1", A)
        self.clock.advance(LAZY_SECONDS)
        self.table.put(EPOCH_KEY, b"{}")
        asked = self.references.uses([A])
        self.assertNoResult(asked)
        self.table.beat()
        assert self.successResultOf(asked) == [1]
        self.table.put(EPOCH_KEY, b"{}")
        assert "not up to date" in self.refusal(PATIENCE)

    def test_pages(self) -> None:
        """A table that comes in many pages, and changes meanwhile, is told as it is at the end."""
        for number in range(7):
            self.put(f"a/{number}", A)
        read, pages = self.table.read, [0]

        def short(prefix: bytes, after: bytes = b"", limit: int = 1000, stale: bool = False) -> Any:
            if prefix == FILES and stale:
                pages[0] += 1
                self.put(f"a/{pages[0]}", B)
                self.remove(f"a/{6 - pages[0]}")
                limit = 2
            return read(prefix, after, limit, stale)

        self.patch(self.table, "read", short)
        self.start()
        assert pages[0] > 2
        rows = [File.from_row(row.key, row.value, 1) for key, row in self.table.rows.items() if key.startswith(FILES)]
        assert self.uses(A, B) == [sum(digest in file.digests for file in rows) for digest in (A, B)]

    def test_moved_meanwhile(self) -> None:
        """A chunk that goes from one file to another while all rows are read is used at every moment."""
        self.put("a/1")
        self.put("b/1", A)
        asked = self.references.uses([A])
        read, watch, watching = self.table.read, self.table.watch, Deferred[Any]()
        changes = [lambda: self.put("a/1", A), lambda: self.remove("b/1")]

        def short(prefix: bytes, after: bytes = b"", limit: int = 1000, stale: bool = False) -> Any:
            page = read(prefix, after, 1, stale)
            while stale and changes:
                changes.pop(0)()
            return page

        self.patch(self.table, "read", short)
        self.patch(self.table, "watch", lambda prefix, revision: watching)
        self.start()
        assert self.references.hindrance == "" and self.references._index.count([A]) == [0]
        self.assertNoResult(asked)
        watch(FILES, self.references._reached).chainDeferred(watching)
        assert self.successResultOf(asked) == [1]

    def test_random_histories(self) -> None:
        """Through restarts, gaps and changes of who holds the table the answer is what the rows say."""
        for seed in range(12):
            self.setUp()
            self.random_history(Random(seed))

    def random_history(self, random: Random) -> None:
        self.start()
        names = [f"a/{number}" for number in range(6)]
        for _ in range(60):
            match random.randrange(12):
                case 0:
                    self.again(started_at=self.table.revision)
                case 1:
                    self.table.compact()
                case 2:
                    self.holds = not self.holds
                    if not self.holds:
                        for watch in self.table._watches:
                            watch.end(Unavailable("this server does not hold the table any more"))
                case 3:
                    self.remove(random.choice(names))
                case 4:
                    name, named = random.choice(names), random.sample((A, B, C), random.randrange(3))
                    self.manifest(name, named)
                    self.put(name, digest_of(b"manifest"), levels=1)
                case 5:
                    self.clock.advance(random.random() * 3)
                case _:
                    self.put(random.choice(names), *random.sample((A, B, C), random.randrange(3)))
            if random.random() < 0.3:
                self.clock.advance(0.3)
        self.holds = True
        self.clock.pump([LOOK_SECONDS] * 4)
        expected = [0, 0, 0]
        for key, row in self.table.rows.items():
            file = File.from_row(key, row.value, 1)
            used = {*file.digests, *(self.manifests[file.name] if file.levels else ())}
            expected = [count + (digest in used) for count, digest in zip(expected, (A, B, C), strict=True)]
        assert self.uses() == expected

    def test_not_here(self) -> None:
        """A server that does not hold the table says so at once, and writes nothing."""
        self.holds = False
        self.start()
        assert "does not hold the table" in self.refusal()
        self.failureResultOf(self.references.names(A, 1), CannotTell)
        assert not os.path.exists(self.path) and self.references.hindrance == ""

    def test_becomes_a_master_and_ceases_to_be_one(self) -> None:
        """Who comes to hold the table makes the index, who holds it no more stops, and goes on later."""
        self.put("a/1", A)
        self.holds = False
        self.start()
        self.holds = True
        assert "being made" in self.references.hindrance
        self.clock.advance(LOOK_SECONDS)
        assert self.uses(A) == [1]
        self.holds = False
        self.table._watches[0].end(Unavailable("this server does not hold the table any more"))
        self.put("a/2", A)
        self.clock.advance(5)
        assert "does not hold the table" in self.refusal()
        self.holds = True
        self.clock.advance(LOOK_SECONDS)
        assert self.uses(A) == [2]

    def test_no_majority(self) -> None:
        """Without a majority nothing is told: what is known may be old."""
        self.put("a/1", A)
        self.start()
        self.table.unavailable = True
        assert "no majority" in self.refusal()
        self.table.unavailable, self.table.silent = False, True
        assert "takes too long" in self.refusal(PATIENCE)

    def test_exports(self) -> None:
        """A chunk that an export names is used once more; a row about exports that nobody understands stops all."""
        self.put("a/1", A)
        self.start()
        value = b'{"exports": [{"revision": 3, "digests": ["%s"]}, {"digests": []}]}'
        for key in (EXPORTS_KEY, EXPORTS_KEY + b"/2"):
            self.table.put(key, value % A.hex().encode())
            self.table.beat()
            self.clock.advance(1)
            assert self.uses() == [2, 0, 0]
        for strange in (
            b"",
            b"[]",
            b'{"exports": 3}',
            b'{"exports": [{"digests": ["ab"]}]}',
            b'{"exports": [7]}',
        ):
            self.table.put(EXPORTS_KEY, strange)
            assert "farm/export cannot be understood" in self.refusal()

    def test_cancelled(self) -> None:
        """Who asks may give up."""
        self.holds = True
        asked = self.references.uses([A])
        self.clock.advance(1)
        asked.cancel()
        self.failureResultOf(asked, CancelledError)


class ManifestTests(ReferencesTestCase):
    def test_long_manifest(self) -> None:
        """All chunks of a long file count, and so do those that its manifest is stored in."""
        self.manifest("a/1", [A, B])
        self.put("a/1", C, levels=1)
        self.start()
        assert self.uses() == [1, 1, 1]
        self.manifest("a/2", [A])
        self.put("a/2", C, levels=1)
        assert self.uses() == [2, 1, 2]
        self.remove("a/1")
        assert self.uses() == [1, 0, 1]

    def test_unreadable(self) -> None:
        """While a manifest cannot be read nothing is told of any chunk, and the file is named; it is tried again."""
        self.manifest("a/1", DamagedFile("a part of it is lost"))
        self.put("a/1", C, levels=1)
        self.put("a/2", A)
        self.start()
        why = "the manifest of a/1 cannot be read: a part of it is lost"
        assert self.refusal(PATIENCE) == why == self.references.hindrance
        tried = len(self.asked)
        self.put("a/3", A)
        self.clock.advance(LAZY_SECONDS)
        assert len(self.asked) == tried == 1, "not tried again for every change"
        self.manifest("a/1", [B])
        self.clock.advance(UNREAD_RETRY_SECONDS)
        assert self.uses() == [2, 1, 1]

    def test_unreadable_is_replaced(self) -> None:
        """A file that stood in the way, and is gone, does not any more."""
        self.manifest("a/1", DamagedFile("a part of it is lost"))
        self.put("a/1", C, levels=1)
        self.start()
        self.clock.advance(1)
        self.put("a/1", A)
        assert self.uses() == [1, 0, 0]
        self.clock.advance(UNREAD_RETRY_SECONDS)
        assert self.references._unreadable == {}

    def test_strange_row(self) -> None:
        """A row that is no file this program knows may use any chunk."""
        self.table.put(FILES + b"a/odd", b"from the future")
        self.start()
        assert "a/odd cannot be read: its row cannot be understood" in self.refusal(PATIENCE)

    def test_fault(self) -> None:
        """What goes wrong for no good reason is logged, and keeps everything as it is."""
        self.manifest("a/1", ZeroDivisionError("a fault"))
        self.put("a/1", C, levels=1)
        self.start()
        assert "a fault" in self.refusal(PATIENCE)
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1


class CommittedTests(CatalogTestCase):
    def test_long_file(self) -> None:
        """Every chunk of a file that a catalog has committed counts, its manifest's included, until it is removed."""
        chunks = [pattern(SIZE, number) for number in range(INLINE_DIGESTS_MAX + 2)]
        file = self.stored(b"".join(chunks))
        assert file.levels == 1
        references = References(
            ReferenceIndex(self.mktemp()),
            self.table,
            lambda: True,
            lambda: FARM,
            self.table.revision,
            self.catalog.digests,
            self.clock,
            run_now,
        )
        self.addCleanup(references.stop)
        references.start()
        digests = [*map(digest_of, chunks), *file.digests, A]
        asked = references.uses(digests)
        self.clock.advance(0)
        assert self.successResultOf(asked) == [1] * (len(digests) - 1) + [0]
        self.successResultOf(self.catalog.remove(file.name))
        self.clock.advance(1)
        assert self.successResultOf(references.uses(digests)) == [0] * len(digests)


class DiskTests(ReferencesTestCase):
    def read_all(self) -> list[bytes]:
        """What is read from the table from now on."""
        reads: list[bytes] = []
        read = self.table.read

        def noted(prefix: bytes, *arguments: Any, **named: Any) -> Any:
            reads.append(prefix)
            return read(prefix, *arguments, **named)

        self.patch(self.table, "read", noted)
        return reads

    def test_restart(self) -> None:
        """A process that is started anew goes on where the one before was, and reads only what has changed since."""
        self.put("a/1", A)
        self.start()
        assert self.uses(A) == [1]
        self.put("a/2", A)
        reads = self.read_all()
        self.again(started_at=self.table.revision)
        assert self.uses(A) == [2]
        assert FILES not in reads

    def test_restart_after_many_other_changes(self) -> None:
        """How far the index is, is written down also where no file changes."""
        self.put("a/1", A)
        self.start()
        for _ in range(UNWRITTEN_REVISIONS):
            self.table.put(EPOCH_KEY, b"{}")
        self.table.beat()
        self.clock.advance(LAZY_SECONDS)
        self.table.compact()
        reads = self.read_all()
        self.again(started_at=self.table.revision)
        assert self.uses(A) == [1]
        assert FILES not in reads

    def test_fell_behind(self) -> None:
        """What the log holds no more is found by a look at all rows."""
        self.put("a/1", A)
        self.put("a/2", A, B)
        self.start()
        assert self.uses() == [2, 1, 0]
        self.successResultOf(self.references.stop())
        self.remove("a/1")
        self.put("a/3", C)
        self.table.compact()
        self.again()
        self.clock.pump([LOOK_SECONDS] * 2)
        assert self.uses() == [1, 1, 1]

    def test_rows_that_were_put_back(self) -> None:
        """An index that is newer than the rows is made anew: what it knows of may never have been."""
        self.put("a/1", A)
        old = dict(self.table.rows), self.table.revision, list(self.table._events)
        self.put("a/2", B)
        self.start()
        assert self.uses() == [1, 1, 0]
        self.successResultOf(self.references.stop())
        self.table.rows, self.table.revision, self.table._events = old
        self.references = self.make(started_at=self.table.revision)
        self.put("a/2", C)
        self.start()
        assert self.uses() == [1, 0, 1]

    def test_a_history_that_was_cut_off(self) -> None:
        """A watch that is refused because the table is not that far makes all be read anew."""
        self.put("a/1", A)
        self.start()
        assert self.uses() == [1, 0, 0]
        self.put("a/1", B)
        self.clock.advance(LAZY_SECONDS)
        assert self.uses() == [0, 1, 0]
        row = self.table.rows[FILES + b"a/1"]
        self.table.rows[row.key] = type(row)(row.key, file_of("a/1", C).to_value(), row.revision)
        self.table._watches[0].end(Compacted(row.revision))
        self.clock.pump([LOOK_SECONDS] * 2)
        assert self.uses() == [0, 0, 1]

    def failing(self, error: Exception, calls: int) -> Callable[..., Deferred[Any]]:
        """A thread on which the disk fails for so many calls that would change something."""
        left = [calls]

        def run(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Deferred[Any]:
            if function.__name__ in ("take_changes", "take_page") and left[0]:
                left[0] -= 1
                return fail(error)
            return execute(function, *arguments, **named)

        return run

    def test_full_disk(self) -> None:
        """A full disk is waited for, with the reason, and told of once."""
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        self.put("a/1", A)
        self.references = self.make(run_in_thread=self.failing(error, 2))
        with capturedLogs() as said:
            self.start()
            assert "disk is full" in self.references.hindrance
            self.clock.advance(RETRY_SECONDS)
        (said_once,) = (event for event in said if event["log_level"] >= LogLevel.warn)
        assert "waits for room" in (formatEvent(said_once) or "")
        self.clock.advance(RETRY_SECONDS)
        assert self.uses(A) == [1]
        assert self.references.hindrance == ""

    def test_broken_file(self) -> None:
        """A file that turns out damaged is made anew."""
        error = sqlite3.DatabaseError("malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        self.put("a/1", A)
        self.references = self.make(run_in_thread=self.failing(error, 1))
        self.start()
        self.clock.advance(RETRY_SECONDS)
        assert self.uses(A) == [1]
        assert len(self.flushLoggedErrors(sqlite3.DatabaseError)) == 1

    def test_stop(self) -> None:
        """The end comes at any time, also while a thread is busy, and only then is the file closed."""
        jobs: list[tuple[Deferred[Any], Callable[[], Any]]] = []

        def later(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Deferred[Any]:
            result: Deferred[Any] = Deferred()
            jobs.append((result, lambda: function(*arguments, **named)))
            return result

        self.references = self.make(run_in_thread=later)
        self.references.start()
        stopped = self.references.stop()
        self.assertNoResult(stopped)
        while jobs:
            result, job = jobs.pop(0)
            result.callback(job())
        assert self.successResultOf(stopped) is None
        self.successResultOf(self.make().stop())

    def test_table_ends(self) -> None:
        """When the table is closed the index is left as it is."""
        self.put("a/1", A)
        self.start()
        self.table.close()
        self.clock.advance(60)
        assert self.successResultOf(self.references.stop()) is None


class FakePeers:
    """Answers as the test says, by server id."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []

    def call(self, server: str, command: Any, **arguments: Any) -> Deferred[Any]:
        assert command is commands.Referenced
        self.asked.append(server)
        answer = self.answers[server]
        return fail(answer) if isinstance(answer, Exception) else succeed({"counts": answer})


class LinkTests(ReferencesTestCase):
    def link(self, own: int = 3, first: int | None = 1) -> ReferencesLink:
        self.peers = FakePeers()
        masters = [make_server(number) for number in (1, 2, 3)]
        leader = server_id(first) if first is not None else ""
        peers: Any = self.peers
        return ReferencesLink(server_id(own), self.references, self.table, peers, lambda: leader, lambda: masters)

    def test_the_first_is_asked(self) -> None:
        """The first is asked, whatever this server holds itself."""
        link = self.link()
        self.peers.answers[server_id(1)] = b"\0\0\0\5\0\0\0\0"
        assert self.successResultOf(link.uses([A, B])) == [5, 0]
        assert self.peers.asked == [server_id(1)]
        assert self.successResultOf(link.uses([])) == ()

    def test_this_server_leads(self) -> None:
        """A first that asks for itself needs no link."""
        self.put("a/1", A)
        self.start()
        assert self.successResultOf(self.link(own=1).uses([A, B])) == [1, 0]
        assert self.peers.asked == []

    def test_others_are_asked(self) -> None:
        """If the first cannot be asked the other masters are, this server among them; what the first said is told."""
        self.put("a/1", A)
        self.start()
        link = self.link()
        self.peers.answers = {server_id(1): LinkFailed("refused"), server_id(2): commands.NotNow("it starts")}
        assert self.successResultOf(link.uses([A, B])) == [1, 0]
        assert self.peers.asked == [server_id(1), server_id(2)]
        self.holds = False
        told = str(self.failureResultOf(link.uses([A]), CannotTell).value)
        assert told == "no master can tell which chunks are used (s1: refused)"

    def test_no_first(self) -> None:
        """While nobody leads the masters are asked in their order."""
        link = self.link(own=9, first=None)
        self.peers.answers = {server_id(1): commands.NotFirst("{}"), server_id(2): b"\0\0\0\1"}
        assert self.successResultOf(link.uses([A])) == [1]
        peers: Any = self.peers
        link = ReferencesLink(server_id(9), self.references, self.table, peers, lambda: "", lambda: ())
        assert "no master is known" in str(self.failureResultOf(link.uses([A]), CannotTell).value)

    def test_answers_that_make_no_sense(self) -> None:
        """An answer about other chunks is none."""
        link = self.link(own=9)
        self.peers.answers = {server_id(number): b"\0\0\0\1" for number in (1, 2, 3)}
        self.failureResultOf(link.uses([A, B]), CannotTell)
        assert len(self.peers.asked) == 3
        with self.assertRaises(AssertionError):
            link.uses([A] * (HAVE_DIGESTS_MAX + 1))

    def test_before_something_is_deleted(self) -> None:
        """All masters that answer have a word on what the first does not know of, for its rows may have rotted."""
        link = self.link(own=9)
        one, none = b"\0\0\0\1", b"\0\0\0\0"
        self.peers.answers = {server_id(1): one + none + none, server_id(2): none + one + none, server_id(3): none * 3}
        assert self.successResultOf(link.uses_by_all([A, B, C])) == [1, 1, 0]
        assert self.peers.asked == [server_id(2), server_id(3), server_id(1)], "the word that counts is the newest"
        self.peers.answers |= {server_id(2): LinkFailed("refused"), server_id(3): KeyError("a fault")}
        assert self.successResultOf(link.uses_by_all([A, B, C])) == [1, 0, 0]
        assert self.successResultOf(link.uses_by_all([])) == ()
        self.peers.answers |= {server_id(1): LinkFailed("refused"), server_id(3): commands.NotNow("it starts")}
        self.failureResultOf(link.uses_by_all([A]), CannotTell)

    def test_epoch(self) -> None:
        """The epoch is read from the farm, and not to be had without a majority."""
        link = self.link()
        assert self.successResultOf(link.epoch()) == 0
        revision = self.table.put(EPOCH_KEY, b"{}")
        assert self.successResultOf(link.epoch()) == revision
        self.table.unavailable = True
        told = str(self.failureResultOf(link.epoch(), CannotTell).value)
        assert told.startswith("the farm's epoch cannot be read now: no majority")
