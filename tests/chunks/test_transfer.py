from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import placement, transfer
from chunkfarm.chunks.patience import COPY_TIMEOUT, HEDGE_TIMEOUT, SUSPECT_FOR
from chunkfarm.chunks.transfer import ChunkReceipt, ChunkUnavailable, Transfer
from chunkfarm.chunks.writing import RETRY_AFTER, WRITE_PATIENCE
from chunkfarm.errors import Full, InvalidRequest, LimitExceeded, Mismatch, NotFound, ReadOnly
from chunkfarm.model import CHUNK_SIZE_MAX, MIB, Server, digest_of
from tests.chunks.builders import MemoryLinks, make_servers, make_store, pattern, read_all, run_now

DATA = pattern(1000)
DIGEST = digest_of(DATA)


class TransferTestCase(SynchronousTestCase):
    """Server s1 is this one, with a store on disk; the others are in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.links = MemoryLinks()
        self.directory = self.mktemp()
        self.room = 10**12
        self.store = make_store(self.directory, reserve=1000, free=lambda: self.room)
        self.addCleanup(self.store.close)

    def make(self, count: int = 5, replicas: int = 3, **fields: Any) -> Transfer:
        self.servers = make_servers(count, **fields)
        self.me = self.servers[0]
        return Transfer(self.store, lambda: self.servers, self.me.id, self.links, lambda: replicas, self.clock, run_now)

    def order(self, digest: bytes = DIGEST) -> tuple[Server, ...]:
        return placement.order(digest, self.servers)

    def change(self, server: Server, **fields: Any) -> None:
        """Change a row of the server table."""
        self.servers = tuple(evolve(one, **fields) if one.id == server.id else one for one in self.servers)

    def holders(self, digest: bytes = DIGEST) -> set[str]:
        """The names of the servers that hold a chunk in truth."""
        here = {self.me.name} if self.successResultOf(self.store.has([digest]))[0] else set()
        return here | {one.name for one in self.servers if digest in self.links.on(one)}

    def written(self, result: Deferred[ChunkReceipt]) -> set[str]:
        """The names of the holders in a receipt."""
        receipt = self.successResultOf(result)
        assert receipt.digest == DIGEST
        return {one.name for one in self.servers if one.id in receipt.holders}

    def place(self, *servers: Server, data: bytes = DATA) -> None:
        """Put a chunk onto servers as if it had been written there."""
        for server in servers:
            if server.id == self.me.id:
                self.successResultOf(self.store.put(None, data))
            else:
                self.links.on(server)[digest_of(data)] = data

    def read(self, transfer: Transfer, digest: bytes = DIGEST, *range_: Any) -> Deferred[bytes]:
        async def read() -> bytes:
            source = await transfer.open(digest, *range_)
            try:
                return await read_all(source)
            finally:
                source.close()

        return Deferred.fromCoroutine(read())

    def asked(self, verb: str) -> list[str]:
        return [name for called, name in self.links.calls if called == verb]


class WriteTests(TransferTestCase):
    def test_to_the_owners(self) -> None:
        """A chunk goes to the servers that own it, to all of them and to nobody else."""
        moved = self.make(6)
        receipt = self.successResultOf(moved.write(DATA))
        assert self.holders() == {one.name for one in placement.owners(DIGEST, self.servers, 3)}
        assert len(receipt.holders) >= 2
        assert moved.following == 0
        assert self.clock.getDelayedCalls() == []

    def test_wrong_digest(self) -> None:
        """Bytes that are not what was announced go nowhere."""
        self.failureResultOf(self.make().write(DATA, digest_of(b"other")), Mismatch)
        assert self.links.calls == []
        self.written(self.make().write(DATA, DIGEST))

    def test_too_large(self) -> None:
        """More than the largest chunk is refused."""
        self.failureResultOf(self.make().write(bytes(CHUNK_SIZE_MAX + 1)), LimitExceeded)

    def test_alone(self) -> None:
        """A farm of one keeps one copy."""
        assert self.written(self.make(1).write(DATA)) == {"s1"}

    def test_required(self) -> None:
        """More than half of the copies are required, counted over the servers that are up and store."""
        assert [self.make(count).required() for count in (1, 2, 3, 4, 9)] == [1, 2, 2, 2, 2]
        assert [self.make(9, replicas).required() for replicas in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]
        assert self.make(3, weight=0).required() == 1
        assert self.make(3, state="down").required() == 1
        assert self.make(3, full=True).required() == 2, "a full server is no reason to promise more with less"

    def test_acknowledged_early(self) -> None:
        """The answer comes when the required copies are durable; the remaining copy follows at once."""
        moved = self.make()
        slow = next(one for one in placement.owners(DIGEST, self.servers, 3) if one is not self.me)
        self.links.silent = {slow.id}
        assert self.written(moved.write(DATA)) == {
            one.name for one in placement.owners(DIGEST, self.servers, 3) if one is not slow
        }
        assert moved.following == len(DATA)
        self.links.release()
        assert moved.following == 0
        assert slow.name in self.holders()

    def test_not_acknowledged_before(self) -> None:
        """One durable copy of three is not enough for an answer."""
        moved = self.make(6)
        self.links.silent = {one.id for one in self.servers}
        result = moved.write(DATA)
        self.assertNoResult(result)
        assert self.links.waiting
        self.links.release()
        self.written(result)

    def test_dead_holder(self) -> None:
        """A server that refuses is replaced by the next in order, at once."""
        moved = self.make(6)
        dead = next(one for one in self.order() if one is not self.me)
        self.links.dead = {dead.id}
        self.written(moved.write(DATA))
        assert self.holders() == {one.name for one in self.order() if one is not dead} & {
            one.name for one in self.order()[:4]
        }
        assert len(self.holders()) == 3

    def test_slow_holder(self) -> None:
        """A server that does not answer costs no more than one hedge timeout."""
        moved = self.make(6)
        others = [one for one in self.order()[:3] if one is not self.me]
        self.links.silent = {one.id for one in others}
        result = moved.write(DATA)
        self.clock.advance(HEDGE_TIMEOUT - 0.1)
        self.assertNoResult(result)
        self.clock.advance(0.2)
        assert len(self.written(result)) >= 2
        assert len(self.holders()) == 3
        assert len(self.links.cancelled) == len(others), "what nobody needs any more is given up"
        assert self.clock.getDelayedCalls() == []

    def test_slow_only_once(self) -> None:
        """A server that was slow a moment ago is not waited for again and again."""
        moved = self.make(6)
        slow = next(one for one in self.order() if one is not self.me)
        self.links.silent = {slow.id}
        result = moved.write(DATA)
        self.clock.advance(HEDGE_TIMEOUT)
        self.written(result)
        self.links.calls.clear()
        for seed in range(1, 20):
            self.successResultOf(moved.write(pattern(100, seed)))
        assert slow.name not in self.asked("put")
        self.clock.advance(SUSPECT_FOR)
        for seed in range(20, 60):
            moved.write(pattern(100, seed))
        assert slow.name in self.asked("put"), "but it gets its chance again"

    def test_full_holder(self) -> None:
        """A holder whose disk is full is replaced by the next; our own disk is no exception."""
        moved = self.make(6)
        self.room = 0
        full = next(one for one in self.order() if one is not self.me)
        self.links.full = {full.id}
        self.written(moved.write(DATA))
        assert len(self.holders()) == 3
        assert not self.holders() & {self.me.name, full.name}

    def test_rows_that_say_full(self) -> None:
        """Servers that are full, down, leaving or draining are not asked at all."""
        moved = self.make(8)
        line = self.order()
        self.change(line[0], full=True)
        for server, state in zip(line[1:4], ("down", "leaving", "draining"), strict=True):
            self.change(server, state=state)
        self.written(moved.write(DATA))
        assert self.holders() == {one.name for one in line[4:7]}

    def test_all_full(self) -> None:
        """When there is no room anywhere, that is what the writer is told, at once."""
        moved = self.make(3)
        self.links.full = {one.id for one in self.servers}
        self.room = 0
        failure = self.failureResultOf(moved.write(DATA), Full)
        for server in self.servers[1:]:
            assert f"the disk of {server.name} is full" in str(failure.value)
        self.servers = tuple(evolve(one, full=True) for one in self.servers)
        failure = self.failureResultOf(moved.write(DATA), Full)
        assert "s2: it is full" in str(failure.value)
        assert self.clock.getDelayedCalls() == []

    def test_too_few(self) -> None:
        """When too few servers take a chunk for long, the sentence says how many did and what the others said."""
        moved = self.make(3)
        self.links.dead = {one.id for one in self.servers}
        result = moved.write(DATA)
        self.clock.pump([RETRY_AFTER] * int(WRITE_PATIENCE / RETRY_AFTER - 1))
        self.assertNoResult(result)
        self.clock.advance(RETRY_AFTER)
        sentence = str(self.failureResultOf(result, ReadOnly).value)
        assert "1 of 2 required copies" in sentence
        assert "s2: Connection was refused" in sentence
        assert self.clock.getDelayedCalls() == []

    def test_nobody_is_up(self) -> None:
        """A farm in which no server stores chunks says so."""
        result = self.make(2, weight=0).write(DATA)
        self.clock.pump([RETRY_AFTER] * 20)
        assert "no server that stores chunks is up" in str(self.failureResultOf(result, ReadOnly).value)

    def test_rides_over_a_death(self) -> None:
        """Two servers, one is killed: the write waits until the table says so, and goes on alone."""
        moved = self.make(2)
        self.links.dead = {self.servers[1].id}
        result = moved.write(DATA)
        self.clock.pump([1.0] * 5)
        self.assertNoResult(result)
        self.change(self.servers[1], state="down")
        self.clock.advance(1)
        assert self.written(result) == {"s1"}

    def test_rides_over_a_freeze(self) -> None:
        """The same when the other server does not refuse but is silent."""
        moved = self.make(2)
        self.links.silent = {self.servers[1].id}
        result = moved.write(DATA)
        self.clock.pump([1.0] * 5)
        self.assertNoResult(result)
        self.change(self.servers[1], state="down")
        self.clock.advance(1)
        assert self.written(result) == {"s1"}

    def test_rides_over_a_restart(self) -> None:
        """A server that is back a moment later gets its copy after all."""
        moved = self.make(2)
        self.links.dead = {self.servers[1].id}
        result = moved.write(DATA)
        self.links.dead = set()
        self.clock.advance(RETRY_AFTER)
        assert self.written(result) == {"s1", "s2"}

    def test_silent_for_ever(self) -> None:
        """A server that is up in the table and never answers ends in an error, not in waiting for ever."""
        result = self.make(2)
        self.links.silent = {self.servers[1].id}
        written = result.write(DATA)
        self.clock.pump([1.0] * int(COPY_TIMEOUT + WRITE_PATIENCE + 5))
        self.failureResultOf(written, ReadOnly)

    def test_cancelled(self) -> None:
        """A writer that goes away leaves nothing running."""
        moved = self.make(6)
        self.links.silent = {one.id for one in self.servers}
        result = moved.write(DATA)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        assert self.clock.getDelayedCalls() == []
        assert len(self.links.cancelled) == len(self.links.waiting)

    def test_memory_is_bounded(self) -> None:
        """Copies that follow hold a bounded number of bytes; the oldest is given up after one hedge timeout."""
        self.patch(transfer, "FOLLOWING_BYTES_MAX", 2500)
        moved = self.make(3)
        self.links.silent = {self.servers[2].id}
        results = [moved.write(pattern(1000, seed)) for seed in range(3)]
        for result in results[:2]:
            self.successResultOf(result)
        self.assertNoResult(results[2])
        self.clock.advance(HEDGE_TIMEOUT)
        self.successResultOf(results[2])
        assert moved.following <= 2500

    def test_memory_freed_in_time(self) -> None:
        """A write that waits for room goes on as soon as there is some."""
        self.patch(transfer, "FOLLOWING_BYTES_MAX", 500)
        moved = self.make(3)
        self.links.silent = {self.servers[2].id}
        result = moved.write(DATA)
        self.assertNoResult(result)
        self.links.release()
        self.written(result)
        assert self.clock.getDelayedCalls() == []

    def test_stop(self) -> None:
        """A server that stops waits for copies that follow; when told to hurry it gives them up."""
        moved = self.make(3)
        self.links.silent = {self.servers[2].id}
        self.written(moved.write(DATA))
        stopped = moved.stop()
        self.assertNoResult(stopped)
        self.links.release()
        self.successResultOf(stopped)
        assert self.holders() == {"s1", "s2", "s3"}
        self.successResultOf(moved.write(pattern(10)))
        hurried = moved.stop()
        hurried.cancel()
        self.failureResultOf(hurried, CancelledError)
        assert moved.following == 0
        assert self.clock.getDelayedCalls() == []

    def test_slow_network(self) -> None:
        """On a network where every copy takes long, copies are not called late: more of them would not help."""
        moved = self.make(6)
        self.links.silent = {one.id for one in self.servers}
        for seed in range(30):
            result = moved.write(pattern(100, seed))
            self.clock.advance(1.4)
            self.links.release()
            self.successResultOf(result)
        self.links.calls.clear()
        result = moved.write(DATA)
        self.clock.advance(2)
        assert len(self.asked("put")) <= 3
        self.links.release()
        self.written(result)


class OpenTests(TransferTestCase):
    def test_own_copy(self) -> None:
        """A chunk that is here is read here."""
        moved = self.make()
        self.place(self.me)
        assert self.successResultOf(self.read(moved)) == DATA
        assert self.successResultOf(self.read(moved, DIGEST, 10, 20)) == DATA[10:30]
        assert self.links.calls == []

    def test_from_another(self) -> None:
        """A chunk that is elsewhere is fetched from there, whole or in part."""
        moved = self.make()
        self.place(self.order()[1])
        assert self.successResultOf(self.read(moved)) == DATA
        assert self.successResultOf(self.read(moved, DIGEST, 10, 20)) == DATA[10:30]
        assert self.successResultOf(self.read(moved, DIGEST, 990)) == DATA[990:]
        assert self.successResultOf(self.read(moved, DIGEST, 1000)) == b""
        assert self.clock.getDelayedCalls() == []

    def test_last_of_all(self) -> None:
        """Right after joins nobody who should have a chunk has it: every server is asked, weight 0 and down too."""
        moved = self.make(12)
        self.change(self.servers[4], weight=0)
        self.change(self.servers[5], state="down")
        for server in (self.servers[4], self.servers[5], self.order()[-1]):
            self.links.held.clear()
            self.place(server)
            assert self.successResultOf(self.read(moved)) == DATA

    def test_nowhere(self) -> None:
        """A chunk that every server says it does not have is not found."""
        failure = self.failureResultOf(self.read(self.make()), NotFound)
        assert DIGEST.hex() in str(failure.value)
        self.failureResultOf(self.read(self.make(1)), NotFound)

    def test_perhaps(self) -> None:
        """When a server did not answer, the chunk may be there: the reader is told who did not, and why."""
        moved = self.make()
        self.links.dead = {self.servers[3].id}
        failure = self.failureResultOf(self.read(moved), ChunkUnavailable)
        assert "s4: Connection was refused" in str(failure.value)
        assert "s3" not in str(failure.value)

    def test_dead(self) -> None:
        """Dead servers are passed over at once."""
        moved = self.make(8)
        self.links.dead = {one.id for one in self.order()[:5]}
        self.place(*self.order()[:3], self.order()[6])
        assert self.successResultOf(self.read(moved)) == DATA

    def test_hedged(self) -> None:
        """A server that does not answer costs one hedge timeout; the first answer wins, the other is given up."""
        moved = self.make(6)
        slow, other = [one for one in placement.reading_order(DIGEST, self.servers, 3, "z1") if one is not self.me][:2]
        self.place(slow, other)
        self.links.silent = {slow.id}
        result = self.read(moved)
        self.assertNoResult(result)
        self.clock.advance(HEDGE_TIMEOUT)
        assert self.successResultOf(result) == DATA
        assert self.links.cancelled == [("get", slow.name)]
        assert self.clock.getDelayedCalls() == []
        assert self.successResultOf(self.read(moved)) == DATA, "and the next time it is asked last"

    def test_slow_one_wins(self) -> None:
        """A late answer is good when nobody else has the chunk."""
        moved = self.make()
        self.place(self.servers[2])
        self.links.silent = {self.servers[2].id}
        result = self.read(moved)
        self.clock.advance(HEDGE_TIMEOUT * 2)
        self.assertNoResult(result)
        self.links.release()
        assert self.successResultOf(result) == DATA

    def test_never(self) -> None:
        """A server that never answers is given up in the end."""
        moved = self.make(2)
        self.links.silent = {self.servers[1].id}
        result = self.read(moved)
        self.clock.pump([1.0] * int(COPY_TIMEOUT + 1))
        self.failureResultOf(result, ChunkUnavailable)

    def test_wrong_bytes(self) -> None:
        """Bytes that are not the chunk are never passed on: the next server is asked."""
        moved = self.make()
        good = self.order()[-1]
        self.place(*self.servers[1:])
        self.links.corrupting = {one.id for one in self.servers} - {good.id}
        if good is self.me:
            good = self.servers[1]
            self.links.corrupting -= {good.id}
        assert self.successResultOf(self.read(moved)) == DATA
        self.links.corrupting = {one.id for one in self.servers}
        moved = self.make()
        self.failureResultOf(self.read(moved), ChunkUnavailable)

    def test_own_copy_is_damaged(self) -> None:
        """A damaged copy here is replaced by another server's in the middle of a read, without a wrong byte."""
        data = pattern(3 * MIB)
        digest = digest_of(data)
        moved = self.make()
        self.place(self.me, self.servers[1], data=data)
        path = next(self.store_files(digest))
        with open(path, "r+b") as file:
            file.seek(2 * MIB)
            file.write(b"damage")
        assert self.successResultOf(self.read(moved, digest, 5, 3 * MIB - 6)) == data[5:-1]
        assert len(self.asked("get")) >= 1
        assert self.successResultOf(self.read(moved, digest)) == data

    def test_damaged_and_alone(self) -> None:
        """A damaged copy that is the only one is an error after the good bytes."""
        moved = self.make(1)
        self.place(self.me)
        with open(next(self.store_files(DIGEST)), "r+b") as file:
            file.write(b"damage")
        self.failureResultOf(self.read(moved), NotFound)

    def test_manifest_lies(self) -> None:
        """A chunk that is longer or shorter than its manifest says is an error, here and from elsewhere."""
        moved = self.make()
        self.place(self.servers[1])
        self.failureResultOf(self.read(moved, DIGEST, 0, None, 999), Mismatch)
        self.place(self.me)
        for range_ in ((0, None, 999), (0, None, 1001), (500, 501, 1001)):
            self.failureResultOf(self.read(moved, DIGEST, *range_), Mismatch)
        assert self.successResultOf(self.read(moved, DIGEST, 0, None, 1000)) == DATA

    def test_wrong_range(self) -> None:
        """A range that the chunk does not have is refused, here and from elsewhere."""
        moved = self.make()
        self.place(self.servers[1])
        self.failureResultOf(self.read(moved, DIGEST, 900, 101), InvalidRequest)
        self.place(self.me)
        self.failureResultOf(self.read(moved, DIGEST, 900, 101), InvalidRequest)
        self.failureResultOf(self.read(moved, DIGEST, 900, 101, 1000), InvalidRequest)

    def test_small_ranges(self) -> None:
        """A reader that goes through a chunk in small ranges fetches it once; memory stays bounded."""
        self.patch(transfer, "RECENT_BYTES_MAX", 2500)
        moved = self.make()
        for seed in range(4):
            self.place(self.servers[1], data=pattern(1000, seed))
        for seed in range(4):
            for offset in range(0, 1000, 100):
                data = pattern(1000, seed)
                found = self.successResultOf(self.read(moved, digest_of(data), offset, 100))
                assert found == data[offset : offset + 100]
        fetched = len(self.asked("get"))
        self.successResultOf(self.read(moved, digest_of(pattern(1000, 3)), 0, 100))
        assert len(self.asked("get")) == fetched
        self.successResultOf(self.read(moved, digest_of(pattern(1000, 0)), 0, 100))
        assert len(self.asked("get")) > fetched

    def test_cancelled(self) -> None:
        """A reader that goes away leaves nothing running."""
        moved = self.make()
        self.links.silent = {one.id for one in self.servers}
        result = moved.open(DIGEST)
        self.clock.advance(HEDGE_TIMEOUT)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        assert len(self.links.cancelled) == 2
        assert self.clock.getDelayedCalls() == []

    def store_files(self, digest: bytes) -> Any:
        yield f"{self.directory}/{digest.hex()[:2]}/{digest.hex()}.chunk"

    def tearDown(self) -> None:
        self.flushLoggedErrors()


class HaveTests(TransferTestCase):
    def test_holders(self) -> None:
        """Every holder of every chunk is found, wherever it is; a chunk nobody has is on nobody."""
        moved = self.make(8)
        line = self.order()
        self.place(line[0], line[1])
        far = pattern(500)
        self.place(placement.order(digest_of(far), self.servers)[-1], data=far)
        found = self.successResultOf(moved.have([DIGEST, digest_of(far), digest_of(b"none"), DIGEST]))
        assert {digest: set(ids) for digest, ids in found.items()} == {
            DIGEST: {line[0].id, line[1].id},
            digest_of(far): {placement.order(digest_of(far), self.servers)[-1].id},
            digest_of(b"none"): set(),
        }
        assert self.clock.getDelayedCalls() == []

    def test_owners_first(self) -> None:
        """Servers that own nothing of it are asked only if the owners have too few copies."""
        moved = self.make(8)
        self.place(*self.order()[:2])
        self.successResultOf(moved.have([DIGEST]))
        assert len(self.asked("have")) <= 3
        self.links.calls.clear()
        self.successResultOf(moved.have([DIGEST], enough=3))
        assert len(self.asked("have")) == 7

    def test_hold(self) -> None:
        """Who is going to rely on the answer has every holder asked to keep the chunk."""
        moved = self.make(3)
        self.place(*self.servers)
        found = self.successResultOf(moved.hold([DIGEST], lengths={DIGEST: len(DATA)}))
        assert set(found[DIGEST]) == {server.id for server in self.servers}
        assert (len(self.asked("hold")), self.asked("have")) == (2, [])
        self.failureResultOf(moved.hold([DIGEST], lengths={DIGEST: 1}), Mismatch)

    def test_hold_what_one_has_collected(self) -> None:
        """Where a copy is missing of what somebody is going to rely on, who has one is told to look at it."""
        moved = self.make(3)
        self.place(*self.servers[1:])
        self.successResultOf(moved.have([DIGEST, digest_of(b"none")]))
        assert self.links.looked == {}
        self.successResultOf(moved.hold([DIGEST, digest_of(b"none")]))
        assert self.links.looked == {server.id: [DIGEST] for server in self.servers[1:]}

    def test_batches(self) -> None:
        """Many chunks are asked about in few questions."""
        moved = self.make(3)
        digests = [digest_of(b"%d" % number) for number in range(2500)]
        found = self.successResultOf(moved.have(digests))
        assert list(found) == digests
        assert len(self.asked("have")) == 3 * 2

    def test_dead(self) -> None:
        """A server that does not answer counts as not having it."""
        moved = self.make(3)
        self.place(*self.servers)
        self.links.dead = {self.servers[1].id}
        found = self.successResultOf(moved.have([DIGEST]))
        assert set(found[DIGEST]) == {self.servers[0].id, self.servers[2].id}

    def test_silent(self) -> None:
        """A silent server delays the answer by one hedge timeout if the others have enough copies."""
        moved = self.make(3)
        self.place(*self.servers)
        self.links.silent = {self.servers[1].id}
        result = moved.have([DIGEST])
        self.assertNoResult(result)
        self.clock.advance(HEDGE_TIMEOUT)
        assert set(self.successResultOf(result)[DIGEST]) == {self.servers[0].id, self.servers[2].id}
        assert self.links.cancelled == [("have", "s2")]
        assert self.clock.getDelayedCalls() == []

    def test_silent_and_needed(self) -> None:
        """A silent server is waited for while its copy would be needed, but not for ever."""
        moved = self.make(2)
        self.place(*self.servers)
        self.links.silent = {self.servers[1].id}
        result = moved.have([DIGEST])
        self.clock.advance(HEDGE_TIMEOUT)
        self.assertNoResult(result)
        self.links.release()
        assert len(self.successResultOf(result)[DIGEST]) == 2
        result = moved.have([DIGEST])
        self.clock.pump([1.0] * 40)
        assert self.successResultOf(result)[DIGEST] == (self.me.id,)

    def test_cancelled(self) -> None:
        """Who goes away leaves no question open."""
        moved = self.make(3)
        self.links.silent = {one.id for one in self.servers}
        result = moved.have([DIGEST])
        result.cancel()
        self.failureResultOf(result, CancelledError)
        assert self.clock.getDelayedCalls() == []
