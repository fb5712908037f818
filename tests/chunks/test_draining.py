"""A server that is emptied, and finds out what is still needed of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import draining, placement
from chunkfarm.chunks.draining import STUCK_SECONDS, VERIFY_BYTES, Draining, _batches
from chunkfarm.links.interface import VERIFY_DIGESTS_MAX
from chunkfarm.model import MIB, Drain, Server, digest_of
from chunkfarm.table.interface import Unavailable
from tests.chunks.builders import MemoryLinks, make_servers, make_store, pattern, run_now


class DrainingTests(SynchronousTestCase):
    """Server s1 is this one, with a store on disk; the others are in memory. Nobody copies but the test."""

    def make(self, count: int = 5, chunks: int = 6, rate: int = 0) -> Draining:
        self.clock = Clock()
        self.links = MemoryLinks()
        self.servers = make_servers(count)
        self.hindered = ""
        self.refreshed: list[Any] = []
        self.store = make_store(self.mktemp(), on_stored=lambda digest: self.stored(digest))
        self.addCleanup(self.store.close)
        self.data = {digest_of(data): data for data in (pattern(1000, number) for number in range(chunks))}
        for data in self.data.values():
            self.successResultOf(self.store.put(None, data))
        self.draining = Draining(
            self.store,
            self.links,
            lambda: self.servers,
            self.servers[0].id,
            lambda: 3,
            self.clock,
            run_now,
            rate=rate,
            hindered=lambda: self.hindered,
            refresh=self.refresh,
        )
        self.draining.start()
        self.addCleanup(self.draining.stop)
        return self.draining

    def stored(self, digest: bytes) -> None:
        if digest not in self.data:
            self.draining.stored(digest)

    def refresh(self) -> Deferred[None]:
        """The rows become as new as any: by the first of what a test has said that they are not yet."""
        return maybeDeferred(self.refreshed.pop(0)) if self.refreshed else succeed(None)

    def change(self, number: int, **fields: Any) -> None:
        self.servers = tuple(
            evolve(one, **fields) if place == number else one for place, one in enumerate(self.servers, 1)
        )
        self.draining.table_changed()

    def begin(self) -> None:
        self.change(1, draining=True, state="draining")

    def copy(self, digest: bytes, *servers: Server) -> None:
        for server in servers or self.owners(digest):
            self.links.on(server)[digest] = self.data[digest]

    def owners(self, digest: bytes) -> tuple[Server, ...]:
        return placement.owners(digest, self.servers, 3)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.clock.advance(1.0)

    def progress(self) -> Drain:
        progress = self.draining.progress
        assert progress is not None
        return progress

    def test_another_rate(self) -> None:
        """How much others are made to read for it can be changed at any time, and holds from then on."""
        for before, after in ((1, 0), (0, 1)):
            draining = self.make(rate=before)
            draining.limit(after)
            self.begin()
            for digest in self.data:
                self.copy(digest)
            self.pass_time(STUCK_SECONDS + 1)
            assert self.progress().drained == (after == 0)

    def test_not_emptied(self) -> None:
        """A server that stays asks nobody, and tells nothing."""
        draining = self.make()
        self.pass_time(60)
        assert draining.progress is None and self.links.calls == []

    def test_all_the_way(self) -> None:
        """It counts what is left; a chunk is done when all its owners have read it; then nothing is needed any more."""
        self.make()
        self.begin()
        told = self.progress()
        assert (told.chunks, told.left, told.bytes_left, told.counted, told.drained) == (6, 6, 6000, True, False)
        first, *rest = self.data
        self.copy(first)
        self.pass_time(STUCK_SECONDS + 1)
        told = self.progress()
        assert (told.left, told.bytes_left, told.drained) == (5, 5000, False) and told.rate > 0
        for digest in rest:
            self.copy(digest)
        self.pass_time(STUCK_SECONDS + 1)
        told = self.progress()
        assert (told.chunks, told.left, told.drained, told.paused) == (6, 0, True, "")
        assert "verify" in {verb for verb, _ in self.links.calls}
        # It is told once; everything stays where it is.
        assert len(self.successResultOf(self.store.has(list(self.data)))) == 6
        self.change(1, draining=False, state="up")
        assert self.draining.progress is None

    def test_passed_over(self) -> None:
        """After a round without news those who should have what is left are asked to look at it before all else."""
        self.make()
        self.begin()
        first, *rest = self.data
        for digest in rest:
            self.copy(digest)
        self.pass_time(STUCK_SECONDS + 1)
        assert self.progress().left == 1
        assert {id for id, asked in self.links.looked.items() if first in asked} == {
            one.id for one in self.owners(first)
        }
        self.links.looked.clear()
        self.copy(first)
        self.pass_time(3 * STUCK_SECONDS)
        assert self.progress().drained and self.links.looked == {}, "nobody is bothered any more"

    def test_much_that_is_passed_over(self) -> None:
        """It is asked about a part at a time, and all of it in the end."""
        self.patch(draining, "HAVE_DIGESTS_MAX", 2)
        self.make()
        self.begin()
        self.pass_time(4 * STUCK_SECONDS)
        assert {digest for asked in self.links.looked.values() for digest in asked} == set(self.data)

    def test_time_left(self) -> None:
        """No rate and no time left are told of a few small chunks that arrived first; of more of them a true one."""
        self.make(chunks=6)
        large = pattern(MIB, 99)
        self.data[digest_of(large)] = large
        self.successResultOf(self.store.put(None, large))
        self.begin()
        first, *rest, last = self.data
        self.copy(first)
        self.pass_time(STUCK_SECONDS + 1)
        told = self.progress()
        assert (told.left, told.rate, told.seconds_left) == (6, 0, None)
        self.copy(last)
        self.pass_time(STUCK_SECONDS + 1)
        told = self.progress()
        # A MiB within some 20 seconds.
        assert told.left == 5 and told.rate > MIB / 30 and told.seconds_left == 1
        self.pass_time(120)
        assert (self.progress().left, self.progress().rate, self.progress().seconds_left) == (len(rest), 0, None)

    def test_one_owner_lacks_it(self) -> None:
        """Two of three copies are not enough, however long that takes."""
        self.make(chunks=1)
        (digest,) = self.data
        self.begin()
        self.copy(digest, *self.owners(digest)[:2])
        self.pass_time(120)
        assert (self.progress().left, self.progress().drained) == (1, False)

    def test_a_damaged_copy(self) -> None:
        """A copy that its owner finds damaged when it reads it is none."""
        self.make(chunks=1)
        (digest,) = self.data
        self.begin()
        self.copy(digest)
        self.links.on(self.owners(digest)[1])[digest] = b"rotten"
        self.pass_time(30)
        assert not self.progress().drained

    def test_others_come_to_own_it(self) -> None:
        """When a server is given up that had copies, what was drained is needed again until others have them."""
        self.make()
        self.begin()
        for digest in self.data:
            self.copy(digest)
        self.pass_time(STUCK_SECONDS + 1)
        assert self.progress().drained
        self.change(2, state="down", given_up=True)
        assert not self.progress().drained
        self.pass_time(STUCK_SECONDS + 1)
        touched = [digest for digest in self.data if self.progress().left]
        assert 0 < self.progress().left < 6 and touched
        for digest in self.data:
            self.copy(digest)
        self.pass_time(STUCK_SECONDS + 1)
        assert self.progress().drained

    def test_a_chunk_that_came_late(self) -> None:
        """Somebody with old rows stores one more chunk here: it is seen, and counts."""
        self.make(chunks=1)
        self.begin()
        for digest in self.data:
            self.copy(digest)
        self.pass_time(STUCK_SECONDS + 1)
        assert self.progress().drained
        self.successResultOf(self.store.put(None, b"late"))
        assert not self.progress().drained, "it may be switched off at any moment"
        self.pass_time(40)
        assert (self.progress().left, self.progress().drained) == (1, False)

    def test_a_chunk_that_comes_during_a_look(self) -> None:
        """The same if it comes while all others are looked at, after those that begin like it were counted."""
        self.make(chunks=1)
        verify = self.links.verify
        late = next(pattern(1000, number) for number in range(10**6) if digest_of(pattern(1000, number))[0] == 0)

        def verifying(server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
            self.successResultOf(self.store.put(None, late))
            return verify(server, digests)

        self.links.verify = verifying  # type: ignore[method-assign]
        for digest in self.data:
            self.copy(digest, *self.servers)
        self.begin()
        assert "verify" in {verb for verb, _ in self.links.calls}
        assert not self.progress().drained
        self.pass_time(40)
        assert (self.progress().left, self.progress().drained) == (1, False)

    def test_by_old_rows(self) -> None:
        """Before it says so it sees that its rows are the newest: by others a server that it asked may be gone."""
        self.make(chunks=1)
        (digest,) = self.data
        self.copy(digest, *self.servers)
        number = self.servers.index(placement.owners(digest, self.servers[1:], 3)[1]) + 1
        self.refreshed = [lambda: fail(Unavailable("nobody leads the farm")), lambda: self.change(number, state="down")]
        self.begin()
        assert not self.progress().drained and "nobody leads" in self.progress().paused
        self.pass_time(2 * STUCK_SECONDS)
        assert not self.refreshed and not self.progress().drained
        self.change(number, state="up")
        self.pass_time(STUCK_SECONDS + 1)
        assert self.progress().drained

    def test_what_is_here_cannot_be_looked_at(self) -> None:
        """If the disk fails it is said, and nothing is called drained."""
        self.make(chunks=1)
        for digest in self.data:
            self.copy(digest, *self.servers)
        self.begin()
        assert self.progress().drained
        scan = self.store.scan
        self.store.scan = lambda prefix: fail(OSError(5, "Input/output error"))  # type: ignore[method-assign]
        self.pass_time(40)
        assert not self.progress().drained and "Input/output error" in self.progress().paused
        assert self.flushLoggedErrors(OSError)
        self.store.scan = scan  # type: ignore[method-assign]
        self.pass_time(STUCK_SECONDS + 1)
        assert self.progress().drained and not self.progress().paused

    def test_why_it_waits(self) -> None:
        """Owners that are down, silent or full are named; one that is full is stood in for by the next in order."""
        self.make(count=6, chunks=1)
        (digest,) = self.data
        self.begin()
        first, second, third = self.owners(digest)
        number = self.servers.index(third) + 1
        self.copy(digest, first, second)
        self.change(number, state="down")
        self.pass_time(STUCK_SECONDS + 1)
        assert f"{third.name} may come back" in self.progress().paused
        self.change(number, state="up")
        self.links.dead.add(third.id)
        self.pass_time(STUCK_SECONDS + 1)
        assert third.name in self.progress().paused
        self.links.dead.clear()
        self.change(number, full=True)
        self.pass_time(STUCK_SECONDS + 1)
        assert self.progress().paused == f"no room on {third.name}"
        line = placement.order(digest, [one for one in self.servers if one.owns])
        self.copy(digest, line[3])
        self.pass_time(STUCK_SECONDS + 1)
        assert self.progress().drained
        # With that one a copy is gone again.
        self.change(self.servers.index(line[3]) + 1, state="down")
        self.pass_time(1)
        assert not self.progress().drained

    def test_nobody_else(self) -> None:
        """Where no server stays that stores chunks nothing is ever drained."""
        self.make(count=2, chunks=1)
        self.begin()
        self.change(2, weight=0)
        self.pass_time(60)
        assert not self.progress().drained and self.progress().paused == "no other server stores chunks"

    def test_hindered(self) -> None:
        """While this server is read-only it asks nobody, and says why."""
        self.make()
        self.hindered = "this server is readonly"
        self.begin()
        self.pass_time(30)
        assert self.links.calls == [] and self.progress().paused == "this server is readonly"
        assert not self.progress().counted

    def test_batches(self) -> None:
        """One answer makes another server read no more than it can in its time, but one chunk always."""
        large = {bytes([number]): 40 * MIB for number in range(3)}
        assert [len(batch) for batch in _batches(list(large), large)] == [1, 1, 1]
        small = {number.to_bytes(2, "big"): 10 for number in range(2 * VERIFY_DIGESTS_MAX + 1)}
        assert [len(batch) for batch in _batches(list(small), small)] == [VERIFY_DIGESTS_MAX, VERIFY_DIGESTS_MAX, 1]
        halves = {bytes([number]): VERIFY_BYTES // 2 for number in range(3)}
        assert [len(batch) for batch in _batches(list(halves), halves)] == [2, 1]
