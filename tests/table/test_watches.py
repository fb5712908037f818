"""Watches on one server: in order, no gap, no duplicate, and nobody pays for the slow."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table import watches
from chunkfarm.table.interface import Batch, Compacted, Event, IWatch, TableClosed, Unavailable
from chunkfarm.table.watches import WatchHub


class Past:
    """All changes ever, as the journal would know them; a look covers `scan` revisions."""

    def __init__(self, scan: int = 3) -> None:
        self.events: list[Event] = []
        self.scan = scan
        self.begin = 0
        self.looks = 0
        self.held: list[Deferred[None]] | None = None

    def __call__(self, prefix: bytes, after: int, until: int) -> Deferred[tuple[tuple[Event, ...], int]]:
        self.looks += 1
        if after < self.begin:
            return fail(Compacted(self.begin + 1))
        until = min(until, after + self.scan)
        events = tuple(
            event for event in self.events if after < event.revision <= until and event.key.startswith(prefix)
        )
        if self.held is None:
            return succeed((events, until))
        waiting: Deferred[None] = Deferred()
        self.held.append(waiting)
        return waiting.addCallback(lambda _: (events, until))


class WatchTests(SynchronousTestCase):
    """One hub, some watches."""

    def hub(self, scan: int = 3) -> WatchHub:
        self.past = Past(scan)
        return WatchHub(0, self.past)

    def publish(self, hub: WatchHub, *keys: bytes) -> int:
        """One transaction that puts `keys`."""
        revision = hub.revision + 1
        events = tuple(Event(revision, "PUT", key, b"") for key in keys)
        self.past.events += events
        hub.publish(revision, [(revision, events)] if events else [])
        return revision

    def watch(self, hub: WatchHub, prefix: bytes = b"", revision: int = 0) -> IWatch:
        return self.successResultOf(hub.watch(prefix, revision))

    def keys(self, watch: IWatch) -> list[bytes]:
        batch: Batch = self.successResultOf(watch.next())
        return [event.key for event in batch.events]

    def test_a_step_larger_than_memory(self) -> None:
        """Who keeps up is told all of a single step that memory cannot hold, and goes on from there."""
        self.patch(watches, "RECENT_EVENTS_MAX", 4)
        hub = self.hub()
        watch = self.watch(hub)
        waiting = watch.next()
        hub.publish(10, [(revision, (Event(revision, "PUT", b"a", b""),)) for revision in range(1, 11)])
        assert [event.revision for event in self.successResultOf(waiting).events] == list(range(1, 11))
        waiting = watch.next()
        self.publish(hub, b"b")
        assert [event.key for event in self.successResultOf(waiting).events] == [b"b"]

    def test_live(self) -> None:
        """What is published while a watcher waits is told at once; the rest with the next call, together."""
        hub = self.hub()
        watch = self.watch(hub, b"a")
        waiting = watch.next()
        self.publish(hub, b"b")
        self.assertNoResult(waiting)
        self.publish(hub, b"a1", b"b", b"a2")
        assert [event.key for event in self.successResultOf(waiting).events] == [b"a1", b"a2"]
        self.publish(hub, b"a3")
        self.publish(hub, b"a4")
        assert self.keys(watch) == [b"a3", b"a4"]
        assert self.past.looks == 0

    def test_beat(self) -> None:
        """Whoever is not concerned learns the revision now and then, once each."""
        hub = self.hub()
        watch = self.watch(hub, b"a")
        waiting = watch.next()
        hub.beat()
        self.assertNoResult(waiting)
        self.publish(hub, b"b")
        revision = self.publish(hub)
        self.assertNoResult(waiting)
        hub.beat()
        assert self.successResultOf(waiting) == Batch(revision, ())
        waiting = watch.next()
        hub.beat()
        self.assertNoResult(waiting)
        self.publish(hub, b"a")
        assert self.successResultOf(waiting).events[0].key == b"a"

    def test_from_the_future(self) -> None:
        """Who has seen a later revision elsewhere is told only what follows it."""
        hub = self.hub()
        watch = self.watch(hub, revision=2)
        waiting = watch.next()
        self.publish(hub, b"1")
        self.publish(hub, b"2")
        hub.beat()
        self.assertNoResult(waiting)
        self.publish(hub, b"3")
        assert [event.key for event in self.successResultOf(waiting).events] == [b"3"]

    def test_slow(self) -> None:
        """Who falls behind what memory holds reads on from the log, without a gap, until it is gone there too."""
        with patch.object(watches, "RECENT_EVENTS_MAX", 8):
            hub = self.hub()
            slow, slower = self.watch(hub), self.watch(hub)
            names = [b"%02d" % number for number in range(30)]
            for name in names:
                self.publish(hub, name)
            seen: list[bytes] = []
            while len(seen) < 30:
                seen += self.keys(slow)
            assert seen == names and self.past.looks > 2
            self.past.begin = 10
            error = self.failureResultOf(slower.next(), Compacted).value
            assert error.first_revision == 11
            self.failureResultOf(slower.next(), Compacted)
            self.failureResultOf(hub.watch(b"", 9), Compacted)
            assert self.keys(self.watch(hub, revision=10))[0] == names[10]

    def test_large_rows(self) -> None:
        """Memory is bounded by bytes as well."""
        with patch.object(watches, "RECENT_BYTES_MAX", 100):
            hub = self.hub()
            for _ in range(20):
                self.publish(hub, b"k" * 30)
            assert hub.floor >= 16

    def test_published_while_reading(self) -> None:
        """What happens while the log is being read comes behind it."""
        hub = self.hub(scan=2)
        self.publish(hub, b"1")
        hub.floor = 1
        hub._recent.clear()
        watch = self.watch(hub)
        self.past.held = []
        waiting = watch.next()
        self.publish(hub, b"2")
        self.past.held.pop().callback(None)
        assert [event.key for event in self.successResultOf(waiting).events] == [b"1"]
        assert self.keys(watch) == [b"2"]

    def test_replaced(self) -> None:
        """When the rows were replaced by a snapshot every watch ends, and new ones begin there."""
        hub = self.hub()
        watch = self.watch(hub)
        waiting = watch.next()
        hub.replace(50)
        assert self.failureResultOf(waiting, Compacted).value.first_revision == 51
        self.failureResultOf(watch.next(), Compacted)
        new = self.watch(hub, revision=50)
        hub.publish(51, [(51, (Event(51, "PUT", b"x", b""),))])
        assert self.keys(new) == [b"x"]

    def test_ended_while_reading(self) -> None:
        """A watch that ends while it reads the log tells why."""
        hub = self.hub()
        self.publish(hub, b"1")
        hub.floor = 1
        watch = self.watch(hub)
        self.past.held = []
        waiting = watch.next()
        hub.end_all(Unavailable("gone"))
        self.past.held.pop().callback(None)
        self.failureResultOf(waiting, Unavailable)

    def test_unreadable(self) -> None:
        """A log that cannot be read ends the watch with an error of the table."""
        hub = WatchHub(5, lambda prefix, after, until: fail(OSError("broken")))
        self.failureResultOf(hub.watch(b"", 1), Unavailable)
        watch = self.watch(hub, revision=5)
        self.assertNoResult(watch.next())

    def test_cancelled(self) -> None:
        """A wait that is given up loses nothing."""
        hub = self.hub()
        watch = self.watch(hub)
        waiting = watch.next()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.publish(hub, b"1")
        assert self.keys(watch) == [b"1"]

    def test_closed(self) -> None:
        """A closed hub begins no watch."""
        hub = self.hub()
        hub.close()
        self.failureResultOf(hub.watch(b"", 0), TableClosed)

    @settings(max_examples=80)
    @given(
        st.lists(st.tuples(st.sampled_from([b"a", b"b", b"ab"]), st.booleans()), max_size=60),
        st.integers(0, 10),
    )
    def test_no_gap_and_no_duplicate(self, steps: list[tuple[bytes, bool]], start: int) -> None:
        """At whatever pace a watcher asks, it sees every change under its prefix once, in order."""
        with patch.object(watches, "RECENT_EVENTS_MAX", 4):
            hub = self.hub(scan=2)
            watch = self.watch(hub, b"a", start)
            seen: list[Event] = []
            waiting: list[object] = []

            def ask() -> None:
                if not waiting:
                    asked = watch.next()
                    waiting.append(asked)
                    asked.addCallback(tell)

            def tell(batch: Batch) -> None:
                seen.extend(batch.events)
                waiting.clear()

            for key, asks in steps:
                self.publish(hub, key)
                if asks:
                    ask()
            for _ in range(60):
                ask()
            expected = [event for event in self.past.events if event.key.startswith(b"a") and event.revision > start]
            assert seen == expected
