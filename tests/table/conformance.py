"""What every engine of the table must do: a mixin for test cases, which say how to make one and how time passes."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

from twisted.internet.defer import Deferred

from chunkfarm.errors import FarmError
from chunkfarm.table.interface import (
    Batch,
    Compacted,
    Compare,
    Conflict,
    Delete,
    Event,
    ITable,
    IWatch,
    Put,
    Row,
    TableClosed,
)

T = TypeVar("T")


class TableConformance:
    """Mix into a `SynchronousTestCase`."""

    @abstractmethod
    def table(self) -> ITable:
        """A new, empty table that answers."""

    @abstractmethod
    def result(self, deferred: Deferred[T]) -> T:
        """Let time pass until it has fired; the value, or the error raised."""

    @abstractmethod
    def settle(self) -> None:
        """Let a moment pass, so that all servers know what one of them has acknowledged."""

    @abstractmethod
    def close(self, table: ITable) -> None:
        """End this server's part of the table."""

    @abstractmethod
    def compact(self, table: ITable) -> None:
        """Forget the changes so far."""

    checks_limits = True
    """Whether the engine itself refuses what is too large."""

    def put(self, table: ITable, key: bytes, value: bytes = b"") -> int:
        return self.result(table.transact((), (Put(key, value),)))

    def error(self, deferred: Deferred[T], kind: type[Exception]) -> Exception:
        try:
            value = self.result(deferred)
        except kind as error:
            return error
        raise AssertionError(f"gave {value!r} instead of {kind.__name__}")

    def watch(self, table: ITable, prefix: bytes, revision: int) -> IWatch:
        return self.result(table.watch(prefix, revision))

    def events(self, watch: IWatch, last: int) -> list[Event]:
        """The events of a watch up to revision `last`."""
        seen: list[Event] = []
        while not seen or seen[-1].revision < last:
            batch: Batch = self.result(watch.next())
            assert all(event.revision <= batch.revision for event in batch.events)
            seen += batch.events
        return seen

    def test_read_what_was_written(self) -> None:
        """A row reads as it was written, at the revision of its transaction."""
        table = self.table()
        revision = self.put(table, b"a", b"1")
        page = self.result(table.read(b""))
        assert page.rows == (Row(b"a", b"1", revision),)
        assert page.revision >= revision and not page.more

    def test_revisions_grow(self) -> None:
        """Each transaction has a higher revision; those that put and delete several rows have one."""
        table = self.table()
        first = self.put(table, b"a", b"1")
        second = self.result(table.transact((), (Put(b"b", b""), Delete(b"a"), Put(b"c", b""))))
        assert 0 < first < second
        assert self.result(table.read(b"")).rows == (Row(b"b", b"", second), Row(b"c", b"", second))

    def test_compares(self) -> None:
        """All compares must hold; 0 stands for a row that is absent."""
        table = self.table()
        first = self.result(table.transact((Compare(b"a", "==", 0),), (Put(b"a", b"1"),)))
        conditions = (Compare(b"a", "==", first), Compare(b"a", ">", first - 1), Compare(b"b", "<", 1))
        second = self.result(table.transact(conditions, (Put(b"a", b"2"),)))
        for compare in (
            Compare(b"a", "==", first),
            Compare(b"a", "<", second),
            Compare(b"a", ">", second),
            Compare(b"b", ">", 0),
        ):
            error = self.error(table.transact((compare,), (Put(b"x", b""),)), Conflict)
            assert isinstance(error, Conflict)
            assert error.rows == ((Row(b"a", b"2", second),) if compare.key == b"a" else ())
        assert [row.key for row in self.result(table.read(b"")).rows] == [b"a"]

    def test_replace(self) -> None:
        """A row is put whatever is there, and whoever puts it hears what was."""
        table = self.table()
        first = self.result(table.replace(b"a", b"1"))
        second = self.result(table.replace(b"a", b"2"))
        self.result(table.transact((), (Delete(b"a"),)))
        third = self.result(table.replace(b"a", b"3"))
        assert (first.before, second.before, third.before) == (0, first.revision, 0)
        self.error(table.replace(b"a", b"4", (Compare(b"b", ">", 0),)), Conflict)
        assert self.result(table.read(b"")).rows == (Row(b"a", b"3", third.revision),)

    def test_pages(self) -> None:
        """Rows come in key order, a page at a time, each once."""
        table = self.table()
        names = [b"p/%02d" % number for number in range(7)]
        for key in (*names, b"p", b"p0", b"q"):
            self.put(table, key)
        seen: list[bytes] = []
        more = True
        while more:
            page = self.result(table.read(b"p/", after=seen[-1] if seen else b"", limit=3))
            assert 0 < len(page.rows) <= 3
            seen += [row.key for row in page.rows]
            more = page.more
        assert seen == names

    def test_find(self) -> None:
        """One row is asked for by its key, and no other row is taken for it."""
        table = self.table()
        for key in (b"a", b"ab", b"b"):
            self.put(table, key, key)
        for _ in range(2):
            assert self.result(table.find(b"")).rows == self.result(table.find(b"aa")).rows == ()
            page = self.result(table.find(b"a"))
            assert [row.value for row in page.rows] == [b"a"] and not page.more and page.revision >= 3
        changed = self.put(table, b"a", b"2")
        assert self.result(table.find(b"a")).rows == (Row(b"a", b"2", changed),)
        self.result(table.transact((), (Delete(b"a"),)))
        assert self.result(table.find(b"a")).rows == ()
        if self.checks_limits:
            self.error(table.find(b"k" * 1201), FarmError)

    def test_stale(self) -> None:
        """A stale read is this server's own last state."""
        table = self.table()
        revision = self.put(table, b"a", b"1")
        self.settle()
        page = self.result(table.read(b"", stale=True))
        assert page.rows == (Row(b"a", b"1", revision),) and page.revision >= revision
        found = self.result(table.find(b"a", stale=True))
        assert found.rows == page.rows and found.revision >= revision

    def test_last_known(self) -> None:
        """What is last known is told page by page, by whichever server."""
        table = self.table()
        for key in (b"a", b"b", b"c"):
            revision = self.put(table, key)
        self.settle()
        page = self.result(table.last_known(b"", limit=2))
        assert [row.key for row in page.rows] == [b"a", b"b"] and page.more and page.revision >= revision
        page = self.result(table.last_known(b"", b"b"))
        assert [row.key for row in page.rows] == [b"c"] and not page.more

    def test_limits(self) -> None:
        """What is too large is refused, and changes nothing."""
        table = self.table()
        if self.checks_limits:
            self.error(table.transact((), (Put(b"k", bytes(16 * 1024 + 1)),)), FarmError)
            self.error(table.transact((), (Put(b"k" * 1201, b""),)), FarmError)
            self.error(table.transact((), tuple(Put(b"%d" % n, b"") for n in range(65))), FarmError)
        self.put(table, b"k" * 1200, bytes(16 * 1024))
        assert len(self.result(table.read(b"")).rows) == 1

    def test_watch(self) -> None:
        """A watch tells every later change under its prefix, in order, whole transactions, and no other."""
        table = self.table()
        before = self.put(table, b"w/0")
        watch = self.watch(table, b"w/", before)
        one = self.put(table, b"w/1", b"x")
        self.put(table, b"elsewhere")
        two = self.result(table.transact((), (Put(b"w/2", b"y"), Delete(b"w/1"), Put(b"v", b""))))
        assert self.events(watch, two) == [
            Event(one, "PUT", b"w/1", b"x"),
            Event(two, "PUT", b"w/2", b"y"),
            Event(two, "DEL", b"w/1", b""),
        ]
        waiting = watch.next()
        three = self.put(table, b"w/3")
        assert self.result(waiting).events == (Event(three, "PUT", b"w/3", b""),)
        watch.close()

    def test_watch_the_past(self) -> None:
        """A watch may begin at an earlier revision, and sees what happened since."""
        table = self.table()
        start = self.put(table, b"a", b"0")
        revisions = [self.put(table, b"a", b"%d" % number) for number in range(1, 5)]
        self.settle()
        watch = self.watch(table, b"", start)
        revisions.append(self.put(table, b"a", b"5"))
        events = self.events(watch, revisions[-1])
        assert events == [Event(revision, "PUT", b"a", b"%d" % n) for n, revision in enumerate(revisions, 1)]
        watch.close()

    def test_watch_what_is_forgotten(self) -> None:
        """From where changes are no longer kept there is no watch, but a later one goes on."""
        table = self.table()
        start = self.put(table, b"a")
        last = self.put(table, b"b")
        self.settle()
        self.compact(table)
        error = self.error(table.watch(b"", start - 1), Compacted)
        assert isinstance(error, Compacted) and start < error.first_revision <= last + 1
        watch = self.watch(table, b"", last)
        new = self.put(table, b"c")
        assert self.events(watch, new) == [Event(new, "PUT", b"c", b"")]
        watch.close()

    def test_closing(self) -> None:
        """A closed watch, and one on a closed table, fail at once and ever after."""
        table = self.table()
        revision = self.put(table, b"a")
        self.settle()
        closed, waiting, idle = (self.watch(table, b"", revision) for _ in range(3))
        told = closed.next()
        closed.close()
        self.error(told, TableClosed)
        self.error(closed.next(), TableClosed)
        told = waiting.next()
        self.close(table)
        self.error(told, TableClosed)
        self.error(waiting.next(), TableClosed)
        self.error(idle.next(), TableClosed)
