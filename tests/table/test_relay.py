"""Watches on a server without rows: everybody there is told everything, over a handful of connections."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from chunkfarm.table import relay as relay_module
from chunkfarm.table import watches
from chunkfarm.table.interface import Compacted, Event, IWatch, TableClosed, Unavailable
from chunkfarm.table.relay import (
    BEAT_SECONDS,
    LINGER_SECONDS,
    REACH_BACK_SECONDS,
    SHORT_STREAMS_MAX,
    STEADY_SECONDS,
    Relay,
)
from chunkfarm.table.watches import WatchHub


class Holder:
    """A server that holds rows, as others see it: `gone` refuses, `waits` keeps who opens a watch waiting."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.kept_from = 0
        self.hub = WatchHub(0, self.history)
        self.gone = False
        self.waits: list[Deferred[None]] | None = None
        self.opened: list[tuple[bytes, int]] = []
        self.open_now = 0

    def history(self, prefix: bytes, after: int, until: int) -> Deferred[Any]:
        raise AssertionError("everything is in memory")

    def open(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        return Deferred.fromCoroutine(self._open(prefix, from_revision))

    async def _open(self, prefix: bytes, from_revision: int) -> IWatch:
        self.opened.append((prefix, from_revision))
        if self.waits is not None:
            waiting: Deferred[None] = Deferred()
            self.waits.append(waiting)
            await waiting
        if self.gone:
            raise Unavailable("refused")
        if from_revision < self.kept_from:
            raise Compacted(self.kept_from + 1)
        self.open_now += 1
        return _Counted(self, await self.hub.watch(prefix, from_revision))

    def put(self, *keys: bytes) -> int:
        """One transaction."""
        revision = self.hub.revision + 1
        events = tuple(Event(revision, "PUT", key, b"%d" % revision) for key in keys)
        self.events += events
        self.hub.publish(revision, [(revision, events)])
        return revision

    def compact(self) -> None:
        self.kept_from = self.hub.revision


@implementer(IWatch)
class _Counted:
    """A watch over a connection."""

    def __init__(self, holder: Holder, watch: IWatch) -> None:
        self._holder = holder
        self._watch = watch
        self._open = True

    def next(self) -> Deferred[Any]:
        result: Deferred[Any] = self._watch.next()
        return result

    def close(self) -> None:
        if self._open:
            self._open = False
            self._holder.open_now -= 1
        self._watch.close()


class Reader:
    """Reads a watch as a client's link does, and keeps what it was told."""

    def __init__(self, watch: IWatch) -> None:
        self.watch = watch
        self.events: list[Event] = []
        self.revision = 0
        self.error: Exception | None = None
        self._read()

    def _read(self) -> None:
        self.watch.next().addCallbacks(self._told, self._ended)

    def _told(self, batch: Any) -> None:
        self.events += batch.events
        self.revision = batch.revision
        self._read()

    def _ended(self, failure: Any) -> None:
        self.error = failure.value

    @property
    def keys(self) -> list[bytes]:
        return [event.key for event in self.events]


class RelayTests(SynchronousTestCase):
    def make_relay(self) -> Relay:
        self.clock = Clock()
        self.holder = Holder()
        return Relay(lambda prefix, revision: self.holder.open(prefix, revision), self.clock)

    def read(self, relay: Relay, prefix: bytes = b"servers/", revision: int = 0) -> Reader:
        return Reader(self.successResultOf(relay.watch(prefix, revision)))

    def test_closed_while_a_stream_is_opened(self) -> None:
        """A connection that is there only after the server has stopped is ended, and no timer is left."""
        relay = self.make_relay()
        self.holder.waits = []
        watch = relay.watch(b"servers/", 0)
        relay.close()
        self.holder.waits.pop().callback(None)
        self.failureResultOf(watch, TableClosed)
        assert self.holder.open_now == 0 and self.clock.getDelayedCalls() == []

    def test_a_line_that_was_left(self) -> None:
        """What was told of a side that does not count cannot be gone on with: who watches reads anew."""
        relay = self.make_relay()
        reader = self.read(relay)
        for key in (b"servers/a", b"servers/b"):
            self.holder.put(key)
        relay.leave_line(1)
        error = reader.error
        assert isinstance(error, Compacted) and error.first_revision == 2
        assert self.holder.open_now == 0
        again = self.read(relay, revision=2)
        self.holder.put(b"servers/c")
        assert again.keys == [b"servers/c"]

    def test_a_stream_that_stands_still(self) -> None:
        """It is looked for elsewhere, and nobody here notices; without a stream there is nothing to do."""
        relay = self.make_relay()
        relay.look_elsewhere()
        reader = self.read(relay)
        self.holder.put(b"servers/a")
        stuck, self.holder = self.holder, Holder()
        self.holder.put(b"servers/a")
        relay.look_elsewhere()
        assert (stuck.open_now, self.holder.open_now) == (0, 1)
        self.holder.put(b"servers/b")
        assert reader.keys == [b"servers/a", b"servers/b"] and reader.error is None
        relay.close()
        relay.look_elsewhere()

    def test_one_connection_for_all(self) -> None:
        """A thousand who watch the servers see a change, each once, and the holder has one connection."""
        relay = self.make_relay()
        readers = [self.read(relay) for _ in range(1000)]
        self.holder.put(b"servers/a")
        assert {tuple(reader.keys) for reader in readers} == {(b"servers/a",)}
        assert self.holder.opened == [(b"servers/", 0)]

    def test_one_for_each_part(self) -> None:
        """However many prefixes are watched, there is one connection for each part and one for the whole."""
        relay = self.make_relay()
        prefixes = [b"servers/", b"farm/", b"files/", b"", b"files/a/", b"files/b/", b"servers/x", b"farm/options"]
        readers = {prefix: self.read(relay, prefix) for prefix in prefixes}
        for key in (b"servers/x", b"files/a/1", b"files/b/1", b"farm/options", b"servers/y"):
            self.holder.put(key)
        for prefix, reader in readers.items():
            assert reader.keys == [event.key for event in self.holder.events if event.key.startswith(prefix)], prefix
        assert self.holder.open_now == 4

    def test_a_later_watcher(self) -> None:
        """Who begins later is told what came after the revision that it names, from memory."""
        relay = self.make_relay()
        self.read(relay)
        for key in (b"servers/a", b"servers/b", b"servers/c"):
            self.holder.put(key)
        assert self.read(relay, revision=1).keys == [b"servers/b", b"servers/c"]
        assert self.read(relay, revision=3).keys == []
        assert len(self.holder.opened) == 1

    def test_from_a_revision_that_has_not_come_here(self) -> None:
        """Who has read newer rows elsewhere is told nothing twice."""
        relay = self.make_relay()
        self.read(relay)
        ahead = self.read(relay, revision=2)
        for key in (b"servers/a", b"servers/b", b"servers/c"):
            self.holder.put(key)
        assert ahead.keys == [b"servers/c"]

    def test_from_before_the_stream_began(self) -> None:
        """The changes in between are fetched once, however many ask for them."""
        relay = self.make_relay()
        for key in (b"files/a", b"servers/a", b"servers/b", b"servers/c", b"files/b"):
            self.holder.put(key)
        late = self.read(relay, revision=5)
        early = [self.read(relay, revision=1) for _ in range(100)]
        middle = self.read(relay, revision=3)
        self.holder.put(b"servers/d")
        assert {tuple(reader.keys) for reader in early} == {(b"servers/a", b"servers/b", b"servers/c", b"servers/d")}
        assert middle.keys == [b"servers/c", b"servers/d"] and late.keys == [b"servers/d"]
        assert self.holder.opened == [(b"servers/", 5), (b"servers/", 1)]
        assert self.holder.open_now == 1

    def test_too_far_back(self) -> None:
        """Who lags further than is worth fetching reads the rows instead, and so does who asks for what is gone."""
        relay = self.make_relay()
        self.patch(relay_module, "REACH_BACK_MAX", 2)
        for _ in range(5):
            self.holder.put(b"servers/a")
        self.read(relay, revision=5)
        error = self.failureResultOf(relay.watch(b"servers/", 1), Compacted).value
        assert error.first_revision == 6
        self.holder.kept_from = 4
        error = self.failureResultOf(relay.watch(b"servers/", 3), Compacted).value
        assert error.first_revision == 5
        assert self.read(relay, revision=4).keys == [b"servers/a"]
        assert self.holder.open_now == 1

    def test_many_too_far_back(self) -> None:
        """Five hundred who ask for what is gone are told so after one try."""
        relay = self.make_relay()
        for _ in range(5):
            self.holder.put(b"servers/a")
        self.holder.compact()
        self.read(relay, revision=5)
        self.holder.waits = []
        waiting = [relay.watch(b"servers/", 3) for _ in range(500)]
        self.holder.waits[0].callback(None)
        for one in waiting:
            self.failureResultOf(one, Compacted)
        assert len(self.holder.opened) == 2

    def test_nothing_comes_from_before(self) -> None:
        """A holder that lags behind this server keeps nobody waiting for ever."""
        relay = self.make_relay()
        self.holder.put(b"servers/a")
        self.read(relay, revision=5)
        waiting = relay.watch(b"servers/", 3)
        behind = relay.watch(b"servers/", 5)
        self.assertNoResult(waiting)
        self.clock.advance(REACH_BACK_SECONDS)
        self.failureResultOf(waiting, Unavailable)
        self.successResultOf(behind)
        assert self.holder.open_now == 1

    def test_the_holder_dies(self) -> None:
        """Another one goes on where it ended, and who watches here notices nothing: no gap, no change twice."""
        relay = self.make_relay()
        readers = [self.read(relay), self.read(relay, b"servers/b")]
        self.holder.put(b"servers/a")
        self.holder.put(b"servers/b")
        first, self.holder = self.holder, Holder()
        self.holder.put(b"servers/a")
        self.holder.put(b"servers/b")
        self.holder.put(b"servers/b")
        first.hub.end_all(Unavailable("it was killed"))
        self.holder.put(b"servers/c")
        assert [event.revision for event in readers[0].events] == [1, 2, 3, 4]
        assert [event.revision for event in readers[1].events] == [2, 3]
        assert self.holder.opened == [(b"servers/", 2)] and first.open_now == 0

    def test_a_stream_that_never_lasts(self) -> None:
        """A holder that ends each stream at once is not asked again and again: who watches hears so instead."""
        relay = self.make_relay()
        reader = self.read(relay)
        for _ in range(SHORT_STREAMS_MAX):
            self.holder.hub.end_all(Unavailable("no"))
        self.clock.advance(STEADY_SECONDS)
        for _ in range(SHORT_STREAMS_MAX + 1):
            assert reader.error is None
            self.holder.hub.end_all(Unavailable("no"))
        assert reader.error is None
        self.holder.hub.end_all(Unavailable("no"))
        assert isinstance(reader.error, Unavailable)
        assert len(self.holder.opened) == 2 * (SHORT_STREAMS_MAX + 1) and self.holder.open_now == 0

    def test_a_slow_reader(self) -> None:
        """Who does not read costs no memory: it is told that it fell behind, and the others notice nothing."""
        self.patch(watches, "RECENT_EVENTS_MAX", 8)
        relay = self.make_relay()
        slow, quick = self.successResultOf(relay.watch(b"servers/", 0)), self.read(relay)
        for _ in range(20):
            self.holder.put(b"servers/a")
        assert len(quick.events) == 20
        assert self.failureResultOf(slow.next(), Compacted).value.first_revision > 8

    def test_nobody_goes_on(self) -> None:
        """When no holder can be reached every watch ends with the reason, and a later one begins a new stream."""
        relay = self.make_relay()
        reader = self.read(relay)
        self.holder.gone = True
        self.holder.hub.end_all(Unavailable("it was killed"))
        assert isinstance(reader.error, Unavailable)
        self.failureResultOf(relay.watch(b"servers/", 0), Unavailable)
        self.holder.gone = False
        self.holder.put(b"servers/a")
        assert self.read(relay).keys == [b"servers/a"]

    def test_the_new_holder_has_forgotten(self) -> None:
        """If nobody can say what happened in between, all are told so, to read and to watch from there."""
        relay = self.make_relay()
        readers = [self.read(relay), self.read(relay)]
        first, self.holder = self.holder, Holder()
        for _ in range(5):
            self.holder.put(b"servers/a")
        self.holder.compact()
        first.hub.end_all(Unavailable("it was killed"))
        for reader in readers:
            assert isinstance(reader.error, Compacted) and reader.error.first_revision == 6
        again = self.read(relay, revision=5)
        self.holder.put(b"servers/b")
        assert again.keys == [b"servers/b"]

    def test_many_wait_for_one_try(self) -> None:
        """Five hundred who come while nobody answers are told so after one try, not after five hundred."""
        relay = self.make_relay()
        self.holder.gone = True
        self.holder.waits = []
        waiting = [relay.watch(b"files/", 0) for _ in range(500)]
        self.holder.waits[0].callback(None)
        for one in waiting:
            self.failureResultOf(one, Unavailable)
        assert len(self.holder.opened) == 1

    def test_one_gives_up_while_it_opens(self) -> None:
        """A client that goes away while the stream is opened takes nothing from the others."""
        relay = self.make_relay()
        self.holder.waits = []
        first, second = relay.watch(b"files/", 0), relay.watch(b"files/", 0)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.holder.waits[1].callback(None)
        reader = Reader(self.successResultOf(second))
        self.holder.put(b"files/a")
        assert reader.keys == [b"files/a"]

    def test_revisions_without_changes(self) -> None:
        """Who watches what does not change learns that time goes on."""
        relay = self.make_relay()
        quiet = self.read(relay, b"files/quiet/")
        self.holder.put(b"files/busy/a")
        assert quiet.revision == 0
        self.clock.advance(BEAT_SECONDS)
        assert quiet.revision == 1
        self.holder.put(b"servers/a")
        self.holder.hub.beat()
        assert quiet.revision == 2 and quiet.events == []

    def test_closed_when_nobody_watches(self) -> None:
        """The connection goes some seconds after the last who watched, and not while somebody still does."""
        relay = self.make_relay()
        first, second = self.read(relay), self.read(relay)
        first.watch.close()
        self.clock.advance(2 * LINGER_SECONDS)
        assert self.holder.open_now == 1
        second.watch.close()
        third = self.read(relay)
        self.clock.advance(LINGER_SECONDS)
        assert self.holder.open_now == 1
        third.watch.close()
        self.clock.advance(LINGER_SECONDS)
        assert self.holder.open_now == 0
        assert self.clock.getDelayedCalls() == []

    def test_stopping(self) -> None:
        """A server that stops ends every watch with that reason, and leaves neither connections nor timers."""
        relay = self.make_relay()
        readers = [self.read(relay), self.read(relay, b"files/a/")]
        self.holder.put(b"files/b/")
        relay.close()
        assert all(isinstance(reader.error, TableClosed) for reader in readers)
        self.failureResultOf(relay.watch(b"servers/", 0), TableClosed)
        assert self.holder.open_now == 0 and self.clock.getDelayedCalls() == []

    def test_a_fault(self) -> None:
        """Whatever goes wrong in the stream, nobody waits for ever."""
        relay = self.make_relay()
        reader = self.read(relay)
        self.patch(self.holder, "open", lambda prefix, from_revision: fail(KeyError("a fault")))
        self.holder.hub.end_all(Unavailable("it was killed"))
        assert isinstance(reader.error, Unavailable)
        assert len(self.flushLoggedErrors(KeyError)) == 1

    def test_any_history(self) -> None:
        """Whatever comes when, each watch is told the changes after its revision, in order, without gap or repeat."""
        for seed in range(60):
            rng = random.Random(seed)
            relay = self.make_relay()
            open_readers: list[tuple[Reader, bytes, int]] = []
            events: list[Event] = []
            for _ in range(60):
                what = rng.random()
                if what < 0.5:
                    self.holder.put(*(b"files/%s/%d" % (rng.choice([b"a", b"b"]), n) for n in range(rng.randint(1, 3))))
                    events = self.holder.events
                elif what < 0.8:
                    prefix = rng.choice([b"", b"files/", b"files/a/", b"files/b/"])
                    revision = rng.randint(0, self.holder.hub.revision)
                    open_readers.append((self.read(relay, prefix, revision), prefix, revision))
                elif what < 0.9 and open_readers:
                    rng.choice(open_readers)[0].watch.close()
                elif what < 0.95:
                    self.clock.advance(rng.uniform(0, LINGER_SECONDS))
                else:
                    self.clock.advance(STEADY_SECONDS)
                    self.holder.hub.end_all(Unavailable("it was killed"))
            for reader, prefix, revision in open_readers:
                told = [event for event in events if event.revision > revision and event.key.startswith(prefix)]
                if reader.error is None:
                    assert reader.events == told, seed
                else:
                    assert isinstance(reader.error, TableClosed), (seed, reader.error)
                    assert reader.events == told[: len(reader.events)], seed
            assert self.holder.open_now <= 2
