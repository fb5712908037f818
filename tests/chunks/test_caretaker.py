"""A server that looks after its chunks, beside others that are only objects."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import caretaker as caretaker_module
from chunkfarm.chunks import placement, unneeded
from chunkfarm.chunks.caretaker import (
    AGAIN_SECONDS,
    FAILED_SECONDS,
    IDLE_SECONDS,
    LOST_SECONDS,
    NEW_SECONDS,
    ROUND_SECONDS,
    START_SECONDS,
    YIELD_SECONDS,
    Caretaker,
)
from chunkfarm.chunks.patience import COPY_TIMEOUT
from chunkfarm.chunks.pieces import Buffer
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.errors import Busy, FarmError
from chunkfarm.links.peers import CONNECT_TIMEOUT
from chunkfarm.model import MIB, Server, digest_of
from chunkfarm.risk import Risk
from tests.chunks.builders import MemoryLinks, make_servers, make_store, pattern, run_now

DATA = pattern(1000)
DIGEST = digest_of(DATA)


class CaretakerTests(SynchronousTestCase):
    """Server s1 is this one, with a store on disk; the others are in memory."""

    caretaker: Caretaker

    def make(self, count: int = 3, rate: int | None = None, replicas: int = 3, **fields: Any) -> Caretaker:
        self.clock = Clock()
        self.everywhere: set[bytes] = set()
        self.links = MemoryLinks()
        self.servers = make_servers(count, **fields)
        self.me = self.servers[0]
        self.hindered = ""
        self.unused: set[bytes] = set()
        self.asked: list[int] = []
        self.error: FarmError | None = None
        self.store = make_store(
            self.mktemp(),
            on_damaged=lambda digest, reason: self.caretaker.found_damaged(digest, reason),
            on_stored=lambda digest: self.caretaker.stored(digest),
        )
        self.addCleanup(self.store.close)
        self.transfer = Transfer(
            self.store,
            lambda: self.servers,
            self.me.id,
            self.links,
            lambda: replicas,
            self.clock,
            run_now,
            lambda digests: self.caretaker.look_first(digests),
        )
        self.caretaker = Caretaker(
            self.store,
            self.links,
            self.transfer,
            lambda: self.servers,
            self.me.id,
            lambda: replicas,
            self.clock,
            run_now,
            rate=rate,
            hindered=lambda: self.hindered,
            uses=self.count,
            is_everywhere=self.everywhere.__contains__,
        )
        self.caretaker.start()
        self.addCleanup(self.caretaker.stop)
        return self.caretaker

    def count(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        self.asked.append(len(digests))
        return fail(self.error) if self.error else succeed([0 if digest in self.unused else 1 for digest in digests])

    def put(self, data: bytes = DATA) -> bytes:
        return self.successResultOf(self.store.put(None, data))

    def has(self, number: int, digest: bytes = DIGEST) -> bool:
        return digest in self.links.on(self.servers[number - 1])

    def change(self, number: int, **fields: Any) -> None:
        server = self.servers[number - 1]
        self.servers = tuple(evolve(one, **fields) if one.id == server.id else one for one in self.servers)
        self.caretaker.table_changed()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.clock.advance(1.0)

    def own(self, count: int, size: int) -> list[bytes]:
        """Chunks of which this server is the most entitled owner."""
        found: list[bytes] = []
        number = 0
        while len(found) < count:
            number += 1
            data = pattern(size, number)
            if placement.order(digest_of(data), self.servers)[0] == self.me:
                found.append(data)
        return found

    def test_what_others_lack(self) -> None:
        """A chunk that only this server has is sent to its other owners soon after the start."""
        caretaker = self.make()
        self.put()
        self.pass_time(START_SECONDS + 1)
        assert self.has(2) and self.has(3)
        progress = caretaker.progress
        assert (progress.done, progress.left, progress.short, progress.looked) == (2, 0, 0, 100)

    def test_looks_that_take_long(self) -> None:
        """What others have yet to send is looked at again and again; what is this server's task is sent meanwhile."""
        self.make()
        chunks = [pattern(900, number) for number in range(60)]
        for data in chunks:
            self.put(data)
            self.links.on(self.servers[1])[digest_of(data)] = data
        have = self.links.have
        # Each answer takes so long that a look at all takes longer than until the first is due again.
        self.links.have = lambda server, digests: deferLater(self.clock, 1.0).addCallback(  # type: ignore[method-assign]
            lambda _: have(server, digests)
        )
        mine = {one for one in map(digest_of, chunks) if placement.order(one, self.servers)[0] == self.me}
        self.pass_time(600)
        assert mine and all(self.has(3, one) for one in mine)

    def test_what_others_have(self) -> None:
        """Nothing is sent to those that have their copies."""
        self.make()
        self.put()
        for server in self.servers[1:]:
            self.links.on(server)[DIGEST] = DATA
        self.pass_time(START_SECONDS + 5)
        assert "put" not in {verb for verb, _ in self.links.calls}

    def test_a_server_that_is_given_up(self) -> None:
        """While a server is down its chunks are short, and wait; once it is given up they are sent to another one."""
        caretaker = self.make(4)
        data = self.own(1, 1000)[0]
        digest = self.put(data)
        owners = placement.owners(digest, self.servers, 3)
        for owner in owners[1:]:
            self.links.on(owner)[digest] = data
        self.pass_time(START_SECONDS + 1)
        assert caretaker.progress.short == 0
        number = self.servers.index(owners[2]) + 1
        self.links.dead.add(owners[2].id)
        self.change(number, state="down")
        self.pass_time(5)
        other = next(server for server in self.servers if server not in owners)
        assert caretaker.progress.short == 1 and digest not in self.links.on(other)
        assert owners[2].name in caretaker.progress.paused
        self.change(number, given_up=True)
        self.pass_time(5)
        assert digest in self.links.on(other) and caretaker.progress.short == 0

    def at_risk(self) -> dict[tuple[str, ...], tuple[int, int]]:
        """Chunks and bytes by the numbers of the servers that have all copies."""
        numbers = {server.id: number for number, server in enumerate(self.servers, 1)}
        return {
            tuple(sorted(str(numbers[holder]) for holder in one.holders)): (one.chunks, one.bytes)
            for one in self.caretaker.risk.sets
        }

    def test_what_can_be_lost(self) -> None:
        """With two replicas every pair is named; a partner that dies leaves this server alone until it is repaired."""
        caretaker = self.make(replicas=2)
        assert caretaker.risk.unknown == 1
        first, second, third = self.own(3, 1000)
        self.put(first)
        self.put(second)
        self.pass_time(START_SECONDS + 1)
        with_2 = sum(placement.owners(digest_of(data), self.servers, 2)[1].name == "s2" for data in (first, second))
        expected = {("1", "2"): (with_2, with_2 * 1000), ("1", "3"): (2 - with_2, (2 - with_2) * 1000)}
        assert self.at_risk() == {pair: total for pair, total in expected.items() if total[0]}
        assert caretaker.risk.unknown == 0

        # A new chunk is counted soon, a removed one with the next round.
        self.put(third)
        self.pass_time(NEW_SECONDS + 1)
        assert sum(chunks for chunks, _ in self.at_risk().values()) == 3
        self.successResultOf(self.store.delete(digest_of(third)))
        self.pass_time(ROUND_SECONDS + IDLE_SECONDS)
        assert sum(chunks for chunks, _ in self.at_risk().values()) == 2

        other = placement.owners(digest_of(first), self.servers, 2)[1]
        both = sum(other in placement.owners(digest_of(data), self.servers, 2) for data in (first, second))
        number = self.servers.index(other) + 1
        self.links.dead.add(other.id)
        self.change(number, state="down")
        self.pass_time(5)
        assert self.at_risk()[("1",)] == (both, both * 1000)
        self.change(number, given_up=True)
        self.pass_time(10)
        assert self.at_risk() == {("1", str(5 - number)): (2, 2000)}

    def test_nothing_can_be_lost(self) -> None:
        """With three copies of everything no two servers can take anything with them; nor what all servers keep."""
        caretaker = self.make()
        self.put()
        self.pass_time(START_SECONDS + 1)
        assert self.has(2) and self.has(3) and caretaker.risk == Risk()
        caretaker = self.make(replicas=2)
        data = self.own(1, 1000)[0]
        self.everywhere.add(digest_of(data))
        self.put(data)
        self.pass_time(START_SECONDS + 1)
        assert caretaker.risk == Risk()

    def test_unused(self) -> None:
        """What no file uses is not copied, nor called short; when a file uses it after all, it is."""
        caretaker = self.make()
        self.unused.add(DIGEST)
        self.put()
        self.pass_time(START_SECONDS + 200)
        assert not self.has(2) and not self.has(3)
        assert (caretaker.progress.short, caretaker.progress.left) == (0, 0)
        assert sum(self.asked) < 30
        self.unused.clear()
        self.pass_time(unneeded.AGAIN_SECONDS + 2)
        assert self.has(2) and self.has(3)

    def test_used_soon(self) -> None:
        """What was unused only because its upload was not over yet is copied seconds after that."""
        self.make()
        self.unused.add(DIGEST)
        self.put()
        self.pass_time(START_SECONDS + 10)
        self.unused.clear()
        self.pass_time(unneeded.PAUSE_SECONDS + 1)
        assert self.has(2) and self.has(3)

    def test_nobody_knows_what_is_used(self) -> None:
        """While the masters cannot tell, everything is copied, and they are not asked all the time."""
        self.make()
        self.error = FarmError("nobody leads the farm")
        self.unused.add(DIGEST)
        for number in range(3):
            self.put(pattern(1000, number))
        self.pass_time(START_SECONDS + 2)
        assert all(self.has(number, digest_of(pattern(1000, seed))) for number in (2, 3) for seed in range(3))
        assert len(self.asked) == 1

    def test_unused_on_a_server_that_is_emptied(self) -> None:
        """What is on a server that is emptied goes to the owners, used or not: it could not be emptied else."""
        self.make(4)
        self.unused.add(DIGEST)
        self.change(1, state="draining")
        self.put()
        self.pass_time(START_SECONDS + 2)
        assert self.has(2) and self.has(3) and self.has(4)

    def test_unused_and_gone(self) -> None:
        """What was unused and is collected meanwhile is forgotten."""
        caretaker = self.make()
        self.unused.add(DIGEST)
        self.put()
        self.pass_time(START_SECONDS + 2)
        assert DIGEST in caretaker._unneeded
        self.successResultOf(self.store.delete(DIGEST))
        self.pass_time(unneeded.AGAIN_SECONDS + 2)
        assert DIGEST not in caretaker._unneeded

    def test_lost_and_removed(self) -> None:
        """A lost chunk is no longer counted once the files that used it are removed, nor fetched when it was unused."""
        caretaker = self.make()
        digest = self.put()
        self.pass_time(START_SECONDS + 1)
        for server in self.servers[1:]:
            self.links.on(server).clear()
        self.successResultOf(self.store.quarantine(digest, "a bit flipped"))
        self.pass_time(5)
        assert caretaker.progress.lost == 1
        self.unused.add(digest)
        self.pass_time(LOST_SECONDS + 1)
        assert (caretaker.progress.lost, caretaker.progress.left) == (0, 0)
        other = self.put(pattern(500))
        self.unused.add(other)
        self.successResultOf(self.store.quarantine(other, "a bit flipped"))
        self.links.calls.clear()
        self.pass_time(60)
        assert caretaker.progress.lost == 0
        assert "get" not in {verb for verb, _ in self.links.calls}

    def test_fewest_copies_first(self) -> None:
        """What only this disk has goes before what another one has too, and makes no room for users."""
        self.make(4, rate=1000)
        both, alone = self.own(2, 70_000)
        self.put(both)
        self.put(alone)
        for owner in placement.owners(digest_of(both), self.servers, 3)[1:2]:
            self.links.on(owner)[digest_of(both)] = both
        sent: list[tuple[bytes, bool]] = []
        put = self.links.put

        def noting(server: Server, digest: bytes, data: Buffer, gently: bool = False) -> Deferred[None]:
            sent.append((digest, gently))
            return put(server, digest, data, gently)

        self.patch(self.links, "put", noting)
        self.pass_time(START_SECONDS + 400)
        assert sent == [(digest_of(alone), False), (digest_of(alone), True), (digest_of(both), True)]

    def test_rate(self) -> None:
        """No more bytes a second are sent than `repair_rate` says, and STATUS tells how long it will take."""
        caretaker = self.make(2, rate=10_000)
        for data in self.own(20, 10_000):
            self.put(data)
        self.pass_time(START_SECONDS + 10)
        assert 9 <= len(self.links.on(self.servers[1])) <= 12
        progress = caretaker.progress
        assert progress.left and 5_000 < progress.rate < 15_000
        self.pass_time(12)
        assert len(self.links.on(self.servers[1])) == 20

    def test_foreground_goes_first(self) -> None:
        """While users read and write a lot, repairs pause, say so, and go on at a crawl."""
        caretaker = self.make(3)
        (data,) = self.own(1, 1000)
        self.put(data)
        self.links.on(self.servers[1])[digest_of(data)] = data
        self.pass_time(START_SECONDS - 1)
        for _ in range(int(YIELD_SECONDS)):
            for seed in range(5):
                self.transfer.write(pattern(8 * MIB, 1000 + seed))
            self.clock.advance(0.9)
        assert caretaker.progress.paused == "files are being read and written"
        assert not self.has(3, digest_of(data))
        self.pass_time(30)
        assert self.has(3, digest_of(data)) and caretaker.progress.paused == ""

    def test_a_damaged_chunk(self) -> None:
        """It is fetched again from another server at once, and counted."""
        caretaker = self.make()
        self.put()
        for server in self.servers[1:]:
            self.links.on(server)[DIGEST] = DATA
        self.pass_time(START_SECONDS + 1)
        self.successResultOf(self.store.quarantine(DIGEST, "a bit flipped"))
        self.pass_time(2)
        assert self.successResultOf(self.store.check(DIGEST)) == len(DATA)
        assert (caretaker.progress.damaged, caretaker.progress.left) == (1, 0)

    def test_damaged_before_the_start(self) -> None:
        """What was put aside before this process began is fetched too."""
        self.make()
        self.put()
        self.successResultOf(self.store.quarantine(DIGEST, "a bit flipped"))
        self.links.on(self.servers[1])[DIGEST] = DATA
        self.pass_time(START_SECONDS + 1)
        assert self.successResultOf(self.store.has([DIGEST])) == [len(DATA)]

    def test_a_lost_chunk(self) -> None:
        """A chunk that no server has is said to be lost; it is found again if a server comes back with it."""
        caretaker = self.make()
        self.put()
        self.pass_time(1)
        self.successResultOf(self.store.quarantine(DIGEST, "a bit flipped"))
        self.pass_time(START_SECONDS + 1)
        assert (caretaker.progress.lost, caretaker.progress.left) == (1, 0)
        self.links.on(self.servers[1])[DIGEST] = DATA
        self.pass_time(ROUND_SECONDS + 5)
        assert (caretaker.progress.lost, caretaker.progress.left) == (0, 0)
        assert self.successResultOf(self.store.has([DIGEST])) == [len(DATA)]

    def test_a_copy_that_vanished(self) -> None:
        """A copy that is gone from another disk without a word is missed within the hour."""
        self.make()
        self.put()
        self.pass_time(START_SECONDS + 1)
        del self.links.on(self.servers[1])[DIGEST]
        self.pass_time(ROUND_SECONDS + 5)
        assert self.has(2)

    def test_a_write_that_fell_short(self) -> None:
        """The last copy of an acknowledged write is made up for at once, not after an hour."""
        self.make()
        self.pass_time(START_SECONDS + 1)
        self.links.dead.add(self.servers[2].id)
        receipt = self.successResultOf(self.transfer.write(DATA))
        assert len(receipt.holders) == 2
        self.pass_time(1)
        self.links.dead.clear()
        self.pass_time(AGAIN_SECONDS + 2)
        assert self.has(3)

    def test_a_write_that_fell_short_elsewhere(self) -> None:
        """A server that has no copy itself tells those that have one."""
        self.make(4)
        self.pass_time(START_SECONDS + 1)
        data = next(
            data
            for data in (pattern(1000, seed) for seed in range(1000))
            if self.me not in placement.owners(digest_of(data), self.servers, 3)
        )
        owners = placement.owners(digest_of(data), self.servers, 3)
        self.links.dead |= {owners[2].id}
        self.links.full |= {self.me.id}
        self.store.reserve = 10**18  # This disk takes nothing.
        self.successResultOf(self.transfer.write(data))
        assert self.links.looked == {owner.id: [digest_of(data)] for owner in owners[:2]}

    def test_a_full_server(self) -> None:
        """A server that says it is full is left alone, and another one stands in."""
        self.make(4)
        data = self.own(1, 1000)[0]
        digest = self.put(data)
        owners = placement.owners(digest, self.servers, 3)
        self.links.full.add(owners[2].id)
        self.pass_time(START_SECONDS + AGAIN_SECONDS + 5)
        other = next(server for server in self.servers if server not in owners)
        assert digest in self.links.on(owners[1]) and digest in self.links.on(other)

    def test_no_room_anywhere(self) -> None:
        """If nobody has room the chunk stays short, and it is said why."""
        caretaker = self.make(2)
        self.change(2, full=True)
        self.put(self.own(1, 1000)[0])
        self.pass_time(START_SECONDS + 5)
        progress = caretaker.progress
        assert (progress.short, progress.left, progress.paused) == (1, 0, "no room on s2")
        self.change(2, full=False)
        self.pass_time(5)
        assert caretaker.progress.short == 0

    def test_not_now(self) -> None:
        """A server that does not serve repairs nothing, and says why."""
        caretaker = self.make()
        self.hindered = "this server is readonly"
        self.put()
        self.pass_time(20)
        assert not self.links.calls and caretaker.progress.paused == self.hindered
        self.hindered = ""
        self.pass_time(3)
        assert self.has(2)

    def test_a_server_that_says_nothing(self) -> None:
        """A server that does not answer holds nobody up, and is asked again later."""
        self.make()
        self.put()
        self.links.silent.add(self.servers[1].id)
        self.pass_time(START_SECONDS + 20)
        assert self.has(3) and not self.has(2)
        self.links.silent.clear()
        self.pass_time(3 * AGAIN_SECONDS)
        assert self.has(2)

    def test_a_server_that_nobody_reaches(self) -> None:
        """Of a server that is up by its reports, and refuses at the address in its row, it is said all the time."""
        caretaker = self.make(3)
        self.change(2, host="10.0.0.9")
        data = self.own(1, 1000)[0]
        self.put(data)
        self.links.dead.add(self.servers[1].id)
        why = "s2 is up, but not reached at 10.0.0.9:4102: Connection was refused by other side"
        for _ in range(20):
            self.pass_time(10)
            progress = caretaker.progress
            assert (progress.short, progress.left, progress.unreached) == (1, 0, 1) and progress.paused == why, progress
        # All servers show what stands in this one's row.
        assert caretaker.trouble == why
        # Where its row says another address, or is of another process, or it is down, that is not known any more.
        for fields in ({"files": 4129}, {"incarnation": "another"}, {"state": "down"}):
            rows = self.servers
            self.servers = tuple(evolve(one, **fields) if one.name == "s2" else one for one in rows)
            assert "not reached" not in caretaker.progress.paused
            self.servers = rows
        self.links.dead.clear()
        self.pass_time(AGAIN_SECONDS + 5)
        assert caretaker.progress.short == 0 and caretaker.progress.paused == caretaker.trouble == ""
        assert caretaker.progress.unreached == 0

    def test_a_server_that_others_do_not_reach(self) -> None:
        """Also where other servers answer for what is short because of it."""
        caretaker = self.make(3)
        data = next(
            data
            for data in (pattern(1000, seed) for seed in range(1000))
            if placement.order(digest_of(data), self.servers)[0] == self.servers[2]
        )
        self.links.on(self.servers[2])[self.put(data)] = data
        self.links.silent.add(self.servers[1].id)
        self.pass_time(2 * AGAIN_SECONDS)
        assert caretaker.progress.short == 0
        assert caretaker.progress.paused.startswith("s2 is up, but not reached at 10.0.0.2:4102: no answer")

    def test_a_server_that_is_still_starting(self) -> None:
        """Who has joined and does not listen yet gets its copies as soon as it does, not after half a minute."""
        self.make(2)
        digest = self.put(self.own(1, 1000)[0])
        self.pass_time(START_SECONDS + 5)
        joined = make_servers(3)[2]
        self.links.dead.add(joined.id)
        self.servers = (*self.servers, joined)
        self.caretaker.table_changed()
        self.pass_time(4)
        self.links.dead.clear()
        self.pass_time(5)
        assert self.has(3, digest)

    def test_a_look_while_a_server_begins_to_listen(self) -> None:
        """Whoever is left out of a look that is under way gets its copies soon after, not in an hour."""
        self.make(3)
        digests = [self.put(data) for data in self.own(20, 1000)]
        self.pass_time(START_SECONDS + 2 * NEW_SECONDS)
        joined = make_servers(4)[3]
        have = self.links.have
        # Some looks begin while it is not to be asked, and end when it is again.
        self.links.have = lambda server, digests: deferLater(  # type: ignore[method-assign]
            self.clock, 0.0 if server.id == joined.id else 0.6
        ).addCallback(lambda _: have(server, digests))
        self.links.dead.add(joined.id)
        self.servers = (*self.servers, joined)
        self.caretaker.table_changed()
        self.clock.pump([0.1] * 150)
        self.links.dead.clear()
        self.clock.pump([0.1] * 1200)
        owned = [one for one in digests if joined in placement.owners(one, self.servers, 3)]
        assert owned and all(one in self.links.on(joined) for one in owned)

    def test_a_change_that_is_taken_back_during_a_look(self) -> None:
        """What was looked at by rows that held for a moment only is looked at again soon, not in an hour."""
        self.make(5)
        data = self.own(1, 1000)[0]
        digest = self.put(data)
        _, second, third, fourth, _ = placement.order(digest, self.servers)
        # Another server has the copy of the third owner, so that nobody takes the chunk for short.
        for server in (second, fourth):
            self.links.on(server)[digest] = data
        scan, have = self.store.scan, self.links.have
        scanned: list[int] = []

        def scan_slowly(prefix: int) -> Deferred[Sequence[bytes]]:
            scanned.append(prefix)
            return (
                deferLater(self.clock, 1.0).addCallback(lambda _: scan(prefix)) if prefix == digest[0] else scan(prefix)
            )

        self.store.scan = scan_slowly  # type: ignore[method-assign]
        self.links.have = lambda server, digests: deferLater(self.clock, 1.0).addCallback(  # type: ignore[method-assign]
            lambda _: have(server, digests)
        )
        self.clock.advance(START_SECONDS)
        assert scanned[-1] == digest[0]
        self.clock.advance(0.5)
        number = self.servers.index(third) + 1
        self.change(number, state="down")
        self.clock.advance(1.0)
        self.change(number, state="up")
        self.clock.pump([0.1] * 1000)
        assert self.has(number, digest)

    def test_a_look_that_failed(self) -> None:
        """What is to be looked at first is so also if the disk refuses once."""
        self.make()
        self.pass_time(START_SECONDS + 1)
        self.links.dead.add(self.servers[2].id)
        self.refuse(1)
        self.successResultOf(self.transfer.write(DATA))
        self.links.dead.clear()
        self.pass_time(AGAIN_SECONDS + 5)
        assert len(self.flushLoggedErrors(OSError)) == 1
        assert self.has(3)

    def test_copies_that_failed(self) -> None:
        """What was about to be copied when the disk refused is copied later, also if it has copies enough elsewhere."""
        self.make(5)
        data = self.own(1, 1000)[0]
        digest = self.put(data)
        _, *owners = placement.owners(digest, self.servers, 3)
        for server in self.servers[1:]:
            if server not in owners:
                self.links.on(server)[digest] = data
        self.refuse(2)
        self.pass_time(START_SECONDS + 5 * AGAIN_SECONDS)
        assert len(self.flushLoggedErrors(OSError)) == 1
        assert all(digest in self.links.on(server) for server in owners)

    def test_a_chunk_that_could_not_be_read_for_a_moment(self) -> None:
        """What could not be read when it was to be copied is copied later, also if it has copies enough elsewhere."""
        self.make(5)
        data = self.own(1, 1000)[0]
        digest = self.put(data)
        _, *owners = placement.owners(digest, self.servers, 3)
        for server in self.servers[1:]:
            if server not in owners:
                self.links.on(server)[digest] = data
        opening = self.store.open
        failed: list[bytes] = []

        def refusing(digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[Any]:
            failed.append(digest)
            self.store.open = opening  # type: ignore[method-assign]
            return fail(OSError(errno.EMFILE, "Too many open files"))

        self.store.open = refusing  # type: ignore[method-assign]
        self.pass_time(START_SECONDS + 2 * AGAIN_SECONDS)
        assert failed == [digest] and len(self.flushLoggedErrors(OSError)) == 1
        assert all(digest in self.links.on(server) for server in owners)

    def test_who_stood_in_for_a_full_owner_is_gone(self) -> None:
        """The copy that another server held for an owner without room is made anew elsewhere soon, not in an hour."""
        self.make(7)
        data = self.own(1, 1000)[0]
        line = placement.order(digest_of(data), self.servers)
        numbers = [self.servers.index(server) + 1 for server in line]
        self.change(numbers[1], full=True)
        digest = self.put(data)
        self.pass_time(START_SECONDS + AGAIN_SECONDS)
        assert [self.has(number, digest) for number in numbers[1:5]] == [False, True, True, False]
        self.links.dead.add(line[3].id)
        self.change(numbers[3], state="down")
        self.pass_time(AGAIN_SECONDS)
        assert self.has(numbers[4], digest)

    def test_a_chunk_that_another_disk_does_not_take(self) -> None:
        """Who fails at one chunk again and again is sent that one seldom, and all others as if nothing were."""
        self.make()
        bad = self.put()
        put = self.links.put
        tried: list[float] = []

        def refusing(server: Server, digest: bytes, data: Buffer, gently: bool = False) -> Deferred[None]:
            if digest == bad and server == self.servers[2]:
                tried.append(self.clock.seconds())
                return fail(FarmError("this server has a fault; its log says more"))
            return put(server, digest, data, gently)

        self.links.put = refusing  # type: ignore[method-assign]
        self.pass_time(START_SECONDS + 3 * AGAIN_SECONDS)
        assert len(tried) == 2 and self.caretaker.progress.short == 1
        for number in range(20):
            data = self.own(number + 1, 900)[number]
            digest = self.put(data)
            self.caretaker.look_first([digest])
            self.pass_time(10)
            assert self.has(3, digest)
        self.pass_time(ROUND_SECONDS)
        assert 3 <= len(tried) < 3 + 2 * ROUND_SECONDS / FAILED_SECONDS

    def test_a_damaged_file_that_the_disk_does_not_replace(self) -> None:
        """What this server's disk neither reads nor replaces is fetched seldom, however often it is looked at."""
        self.make()
        digest = self.put()
        for server in self.servers[1:]:
            self.links.on(server)[digest] = DATA
        self.pass_time(START_SECONDS + 1)
        self.store.put = lambda *args, **options: fail(  # type: ignore[method-assign]
            OSError(errno.EIO, "Input/output error")
        )
        self.successResultOf(self.store.delete(digest))
        self.links.calls.clear()
        for _ in range(20):
            self.caretaker.found_damaged(digest, "it cannot be opened")
            self.pass_time(AGAIN_SECONDS)
        assert [verb for verb, _ in self.links.calls].count("get") == 1
        assert self.flushLoggedErrors(OSError)

    def refuse(self, number: int) -> None:
        """The disk fails when it is asked for this time from now on which chunks it has."""
        has = self.store.has
        asked: list[int] = []

        def refusing(digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
            asked.append(len(digests))
            return fail(OSError(errno.EMFILE, "Too many open files")) if len(asked) == number else has(digests)

        self.store.has = refusing  # type: ignore[method-assign]

    def test_chunks_that_cannot_be_looked_at(self) -> None:
        """If the disk fails at some chunks again and again the others are looked at, and copied, all the same."""
        self.make()
        bad, *others = sorted(self.own(4, 1000), key=digest_of)
        good = [self.put(data) for data in others if digest_of(data)[0] != digest_of(bad)[0]]
        spoilt = self.put(bad)
        has = self.store.has

        def refusing(digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
            return fail(OSError(errno.EACCES, "Permission denied")) if spoilt in digests else has(digests)

        self.store.has = refusing  # type: ignore[method-assign]
        self.pass_time(START_SECONDS + 3 * AGAIN_SECONDS)
        assert good and all(self.has(2, digest) and self.has(3, digest) for digest in good)
        assert self.flushLoggedErrors(OSError)
        # Nor is it in the way when it is missed.
        self.caretaker.found_damaged(spoilt, "a test says so")
        later = self.put(self.own(5, 900)[4])
        self.caretaker.look_first([later])
        self.pass_time(10 * AGAIN_SECONDS)
        assert self.has(2, later)
        assert self.flushLoggedErrors(OSError)

    def test_a_server_that_is_left_out_of_sending(self) -> None:
        """Who did not answer for a moment while another got its copy of a chunk gets its own soon, not in an hour."""
        self.make(7)
        chunks = self.own(200, 1000)
        data = min(chunks, key=digest_of)
        digest = self.put(data)
        _, second, third, *others = placement.order(digest, self.servers)
        # Others have what the two owners lack, so that nobody takes the chunk for short.
        for server in others[:2]:
            self.links.on(server)[digest] = data
        # What has a single copy is sent first, and fails at the second owner.
        for other in chunks:
            owners = placement.owners(digest_of(other), self.servers, 3)
            if digest_of(other)[0] != digest[0] and second in owners and third not in owners:
                self.put(other)
                break
        put = self.links.put
        failures = [Busy("not now")]

        def refuse_once(server: Server, *args: Any, **options: Any) -> Deferred[None]:
            return fail(failures.pop()) if server == second and failures else put(server, *args, **options)

        self.links.put = refuse_once  # type: ignore[method-assign]
        self.pass_time(START_SECONDS + 5 * AGAIN_SECONDS)
        assert not failures and digest in self.links.on(third)
        assert digest in self.links.on(second)

    def test_a_server_that_is_started_again_and_again(self) -> None:
        """However often rows change, all chunks are looked at, and in the end copied, too."""
        self.make(4)
        data = next(
            one
            for one in self.own(100, 1000)
            if digest_of(one)[0] > 30 and self.servers[3] not in placement.owners(digest_of(one), self.servers, 3)
        )
        digest = self.put(data)
        # One that is missed at another server, and has other copies.
        other = self.own(1, 900)[0]
        self.links.on(self.servers[1])[self.put(other)] = other
        scan = self.store.scan
        # There are many chunks.
        self.store.scan = lambda prefix: deferLater(self.clock, 1.0).addCallback(  # type: ignore[method-assign]
            lambda _: scan(prefix)
        )
        for number in range(40):
            self.pass_time(10)
            self.change(4, incarnation=str(number))
        assert self.has(2, digest) and self.has(3, digest)
        assert all(
            digest_of(other) in self.links.on(one) for one in placement.owners(digest_of(other), self.servers, 3)[1:]
        )

    def test_chunks_that_cannot_be_had(self) -> None:
        """Damaged chunks whose other copy is on a server that is away hold up nothing: what others lack is sent."""
        self.make(4)
        self.pass_time(START_SECONDS + 1)
        self.change(4, state="down")
        get = self.links.get
        # Nobody answers at its address.
        self.links.get = lambda server, *range: (  # type: ignore[method-assign]
            deferLater(self.clock, CONNECT_TIMEOUT).addCallback(lambda _: get(server, *range))
            if server == self.servers[3]
            else get(server, *range)
        )
        self.links.dead.add(self.servers[3].id)
        for number in range(40):
            self.caretaker.found_damaged(digest_of(pattern(500, number)), "a test says so")
        self.links.on(self.servers[1])[digest_of(pattern(500, 39))] = pattern(500, 39)
        self.pass_time(60)
        digest = self.put(self.own(1, 1000)[0])
        # Any change has everything that it touches looked at.
        self.change(4, given_up=True)
        self.change(2, incarnation="another process")
        self.pass_time(120)
        assert sum(digest in self.links.on(server) for server in self.servers[1:3]) == 2
        # Nor do they hold up each other for ever.
        self.pass_time(40 * 2 * CONNECT_TIMEOUT)
        assert self.successResultOf(self.store.has([digest_of(pattern(500, 39))])) == [500]

    def test_a_server_that_takes_nothing(self) -> None:
        """Who says what it has, and takes no copy to its end, is waited for once, and not for each of many chunks."""
        self.make(4)
        self.patch(caretaker_module, "SEND_BYTES_MAX", 1)
        hanging, other = self.servers[1:3]
        lacking: dict[Server, list[bytes]] = {hanging: [], other: []}
        for data in self.own(40, 1000):
            owners = placement.owners(digest_of(data), self.servers, 3)
            lacks = hanging if hanging in owners else other
            lacking[lacks].append(self.put(data))
            for server in owners[1:]:
                if server != lacks:
                    self.links.on(server)[digest_of(data)] = data
        assert len(lacking[hanging]) > 10 and len(lacking[other]) > 5
        put = self.links.put
        hangs = True
        self.links.put = lambda server, *args, **options: (  # type: ignore[method-assign]
            Deferred() if hangs and server == hanging else put(server, *args, **options)
        )
        self.pass_time(START_SECONDS + 3 * COPY_TIMEOUT)
        assert all(digest in self.links.on(other) for digest in lacking[other])
        hangs = False
        self.pass_time(2 * COPY_TIMEOUT)
        assert all(digest in self.links.on(hanging) for digest in lacking[hanging])

    def test_a_chunk_that_has_no_place(self) -> None:
        """A chunk is not fetched every half minute where the disk cannot put it in its place."""
        self.make()
        self.put()
        self.links.on(self.servers[1])[DIGEST] = DATA
        self.store.put = lambda *args, **options: fail(OSError(errno.EIO, "Input/output error"))  # type: ignore
        self.successResultOf(self.store.quarantine(DIGEST, "a test says so"))
        self.pass_time(600)
        assert self.links.calls.count(("get", "s2")) == 1
        assert len(self.flushLoggedErrors(OSError)) == 1

    def test_a_lost_chunk_that_is_sent(self) -> None:
        """A chunk that was lost is so no more as soon as another server has sent it."""
        caretaker = self.make()
        self.put()
        self.pass_time(1)
        self.successResultOf(self.store.quarantine(DIGEST, "a bit flipped"))
        self.pass_time(START_SECONDS + 1)
        assert caretaker.progress.lost == 1
        self.put()
        self.pass_time(2)
        assert (caretaker.progress.lost, caretaker.progress.left) == (0, 0)

    def test_a_server_that_refuses_for_long(self) -> None:
        """It is asked less and less often; when it is started anew, soon again."""
        self.make()
        self.put()
        other = self.servers[1]
        self.links.dead.add(other.id)
        self.pass_time(600)
        asked = self.links.calls.count(("have", other.name))
        assert 10 < asked < 45
        self.change(2, incarnation="another process")
        self.pass_time(10)
        assert self.links.calls.count(("have", other.name)) > asked + 2

    def test_stop(self) -> None:
        """It ends wherever it is, and leaves no call behind."""
        caretaker = self.make(rate=1000)
        self.put(pattern(200_000))
        self.links.silent.add(self.servers[1].id)
        self.pass_time(START_SECONDS + 3)
        self.successResultOf(caretaker.stop())
        assert self.clock.getDelayedCalls() == []
        self.successResultOf(caretaker.stop())

    def test_another_server_has_the_task(self) -> None:
        """Of two that have the chunk one sends it; if it does not, this one does not either, as long as it has it."""
        self.make(3)
        data = next(
            data
            for data in (pattern(1000, seed) for seed in range(1000))
            if placement.order(digest_of(data), self.servers)[1] == self.me
        )
        digest = self.put(data)
        first, _, third = placement.order(digest, self.servers)
        self.links.on(first)[digest] = data
        self.pass_time(START_SECONDS + 5)
        assert digest not in self.links.on(third)
        del self.links.on(first)[digest]
        self.pass_time(2 * AGAIN_SECONDS)
        assert digest in self.links.on(third) and digest in self.links.on(first)
