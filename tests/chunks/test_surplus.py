"""How copies that belong on other servers go, and that never too many do."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any, TypeVar, cast

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import placement, surplus
from chunkfarm.chunks.index import Index
from chunkfarm.chunks.keeping import Keeper
from chunkfarm.chunks.pins import Pins
from chunkfarm.chunks.promises import Promises
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.chunks.surplus import AGAIN_SECONDS, KEEP_BYTES_MAX, ROUND_SECONDS, START_SECONDS, Surplus, in_portions
from chunkfarm.errors import NotFound, ReadOnly
from chunkfarm.links.interface import KEEP_DIGESTS_MAX
from chunkfarm.model import Server, digest_of
from tests.chunks.builders import make_server, make_servers, pattern, run_now

T = TypeVar("T")
PREFIXES = 2


def digest(number: int) -> bytes:
    """Chunk number `number`, which begins with one of the first bytes."""
    found = digest_of(pattern(100, number))
    return bytes([found[0] % PREFIXES]) + found[1:]


class MarkedStore:
    """A disk that is a set of digests, with the real marks."""

    def __init__(self, chunks: set[bytes]) -> None:
        self.chunks = chunks
        self.damaged: set[bytes] = set()
        self._lock = threading.Lock()
        index = Index("/nowhere/at/all")
        self._promises = Promises(Pins(index, lambda: 0.0, lambda: 1.0), self._lock)
        self.lift = ChunkStore.lift.__get__(self)
        self.mark_surplus = ChunkStore.mark_surplus.__get__(self)
        self.unmark_surplus = ChunkStore.unmark_surplus.__get__(self)
        self.reads = 0

    def has(self, digests: Sequence[bytes]) -> Deferred[list[int]]:
        return execute(lambda: [100 if one in self.chunks else 0 for one in digests])

    def hold(self, digests: Sequence[bytes]) -> Deferred[list[int]]:
        held = self._promises.hold(digests)
        return execute(lambda: [100 if one in held & self.chunks else 0 for one in digests])

    def check(self, one: bytes) -> Deferred[int]:
        self.reads += 1
        if one in self.damaged:
            self.chunks.discard(one)
        return execute(lambda: 100) if one in self.chunks else fail(NotFound("no such chunk"))

    def scan(self, prefix: int) -> Deferred[list[bytes]]:
        return execute(lambda: sorted(one for one in self.chunks if one[0] == prefix))

    def delete_surplus(self, digests: Sequence[bytes]) -> Deferred[list[int]]:
        with self._lock:
            released = self._promises.release(self._promises.surplus, digests)
        self.chunks -= set(released)
        return execute(lambda: [100] * len(released))


@define(eq=False)
class Node:
    """One server, with the table as it knows it."""

    farm: Farm
    id: str
    name: str
    store: MarkedStore
    version: int = 0
    running: bool = True
    surplus: Surplus = field(init=False)
    keeper: Keeper = field(init=False)

    def __attrs_post_init__(self) -> None:
        store = cast(ChunkStore, self.store)
        farm = self.farm
        rows: tuple[Callable[[], tuple[Server, ...]], str, Callable[[], int]] = (
            lambda: farm.tables[self.version],
            self.id,
            lambda: farm.replicas,
        )
        self.keeper = farm.make_keeper(store, *rows, lambda: self.version, self.refresh)
        self.surplus = farm.make_surplus(
            store,
            self,
            *rows,
            lambda: self.version,
            self.refresh,
            farm.clock,
            run_now,
            hindered=lambda: farm.hindered,
            guards=lambda one: one in farm.guarded,
        )

    def refresh(self) -> Deferred[None]:
        """Learn the newest rows, if the farm lets it; or any newer ones, in a farm that is worse than it may be."""
        if self.farm.unreachable:
            return fail(ReadOnly("nobody leads the farm"))

        def learn() -> None:
            newest = len(self.farm.tables) - 1
            self.version = self.farm.random.randint(self.version, newest) if self.farm.stale else newest

        return self.farm.ask(learn)

    # What it asks of others: `IChunkLinks`, as far as it is needed.

    def have(self, server: Server, digests: Sequence[bytes]) -> Deferred[Any]:
        return self._ask(server, lambda other: other.store.has(digests))

    def keep(self, server: Server, digests: Sequence[bytes], revision: int) -> Deferred[Any]:
        assert len(digests) <= KEEP_DIGESTS_MAX
        return self._ask(server, lambda other: other.keeper.keep(digests, revision))

    def _ask(self, server: Server, question: Callable[[Node], Deferred[Any]]) -> Deferred[Any]:
        other = self.farm.nodes[server.id]
        self.farm.questions += 1

        def ask() -> Deferred[Any]:
            return question(other) if other.running else fail(ConnectionRefusedError())

        return self.farm.ask(ask)


class Farm:
    """Servers with tables that may differ, of which each knows one version. With `delays` everything takes time."""

    def __init__(
        self,
        count: int,
        seed: int = 0,
        delays: Sequence[float] = (),
        make_surplus: Callable[..., Surplus] = Surplus,
        make_keeper: Callable[..., Keeper] = Keeper,
    ) -> None:
        self.clock = Clock()
        self.random = Random(seed)
        self.delays = delays
        self.replicas = 3
        self.hindered = ""
        self.guarded: set[bytes] = set()
        self.questions = 0
        self.unreachable = False
        self.stale = False
        self.make_surplus, self.make_keeper = make_surplus, make_keeper
        self.tables: list[tuple[Server, ...]] = [make_servers(count)]
        self.nodes = {server.id: Node(self, server.id, server.name, MarkedStore(set())) for server in self.tables[0]}

    def node(self, number: int) -> Node:
        return self.nodes[f"{number:032x}"]

    def owners(self, one: bytes) -> list[Node]:
        return [self.nodes[server.id] for server in placement.owners(one, self.tables[-1], self.replicas)]

    def others(self, one: bytes) -> list[Node]:
        owners = self.owners(one)
        return [node for node in self.nodes.values() if node not in owners]

    def change(self, number: int, **fields: Any) -> None:
        """A new version of the table, which each server learns when it is told to."""
        rows = tuple(evolve(row, **fields) if row.seniority == number else row for row in self.tables[-1])
        self.tables.append(rows)

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            server = make_server(len(self.tables[-1]) + 1)
            self.tables.append((*self.tables[-1], server))
            self.nodes[server.id] = Node(self, server.id, server.name, MarkedStore(set()), len(self.tables) - 1)

    def learn(self) -> None:
        """Everybody knows the newest table."""
        for node in self.nodes.values():
            node.version = len(self.tables) - 1
            node.surplus.table_changed()

    def holders(self, one: bytes) -> list[Node]:
        return [node for node in self.nodes.values() if one in node.store.chunks]

    def ask(self, question: Callable[[], Any]) -> Deferred[Any]:
        if not self.delays:
            return execute(question)
        answer: Deferred[Any] = deferLater(self.clock, self.random.choice(self.delays), question)
        return answer.addBoth(lambda result: deferLater(self.clock, self.random.choice(self.delays), lambda: result))

    def pass_time(self, seconds: float) -> None:
        end = self.clock.seconds() + seconds
        while calls := [call.getTime() for call in self.clock.getDelayedCalls()]:
            if min(calls) > end:
                break
            self.clock.advance(max(0.0, min(calls) - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))


class SurplusTestCase(SynchronousTestCase):
    def farm(self, count: int = 5, **options: Any) -> Farm:
        self.patch(surplus, "PREFIXES", PREFIXES)
        farm = Farm(count, **options)
        self.addCleanup(lambda: [node.surplus.stop() for node in farm.nodes.values()])
        return farm

    def start(self, *nodes: Node) -> None:
        for node in nodes:
            node.surplus.start()
        nodes[0].farm.pass_time(START_SECONDS)


class GivenUpTests(SurplusTestCase):
    """One copy too many."""

    def prepare(self, count: int = 5) -> tuple[Farm, bytes, Node]:
        """A chunk that its three owners and one other server have."""
        farm = self.farm(count)
        one = digest(1)
        extra = farm.others(one)[0]
        for node in [*farm.owners(one), extra]:
            node.store.chunks.add(one)
        return farm, one, extra

    def test_given_up(self) -> None:
        """A copy that its owners do not need goes; those of the owners stay."""
        farm, one, extra = self.prepare()
        self.start(*farm.nodes.values())
        farm.pass_time(1)
        assert {node.name for node in farm.holders(one)} == {node.name for node in farm.owners(one)}
        told = extra.surplus.progress
        assert (told.chunks, told.bytes, told.left, told.paused) == (1, 100, 0, "")

    def test_an_owner_lacks_it(self) -> None:
        """While an owner does not have its copy nothing goes, and nobody reads a whole chunk in vain; then it does."""
        farm, one, extra = self.prepare()
        owner = farm.owners(one)[2]
        owner.store.chunks.clear()
        self.start(extra)
        farm.pass_time(100)
        assert extra in farm.holders(one)
        assert extra.surplus.progress.left == 1
        assert "do not have" in extra.surplus.progress.paused
        assert sum(node.store.reads for node in farm.nodes.values()) == 0
        owner.store.chunks.add(one)
        farm.pass_time(AGAIN_SECONDS)
        assert extra not in farm.holders(one)

    def test_an_owner_has_a_damaged_copy(self) -> None:
        """A copy that only looks whole counts for nothing."""
        farm, one, extra = self.prepare()
        farm.owners(one)[0].store.damaged.add(one)
        self.start(extra)
        farm.pass_time(60)
        assert extra in farm.holders(one)

    def test_an_owner_is_away(self) -> None:
        """While an owner is down, or does not answer, nothing goes, and it says who."""
        farm, one, extra = self.prepare()
        owner = farm.owners(one)[1]
        owner.running = False
        self.start(extra)
        farm.pass_time(15)
        assert owner.name in extra.surplus.progress.paused
        farm.change(int(owner.id, 16), state="down")
        farm.learn()
        asked = farm.questions
        farm.pass_time(60)
        assert extra in farm.holders(one)
        # The others' answers would change nothing.
        assert farm.questions == asked
        assert extra.surplus.progress.paused == f"{owner.name} is down"
        owner.running = True
        farm.change(int(owner.id, 16), state="up")
        farm.learn()
        farm.pass_time(60)
        assert extra not in farm.holders(one)

    def test_a_change_of_owners(self) -> None:
        """When the owners change it looks at once; without a change an hour later."""
        farm, one, extra = self.prepare()
        extra.store.chunks.clear()
        self.start(extra)
        farm.pass_time(60)
        extra.store.chunks.add(one)
        farm.pass_time(600)
        assert extra in farm.holders(one)
        farm.add()
        while farm.nodes[f"{len(farm.nodes):032x}"] in farm.owners(one):
            farm.add()
        farm.learn()
        farm.pass_time(10)
        assert extra not in farm.holders(one)
        extra.store.chunks.add(one)
        farm.pass_time(ROUND_SECONDS)
        assert extra not in farm.holders(one)

    def test_an_emptied_server(self) -> None:
        """A server that is emptied, or holds no chunks by its weight, gives all up that the others have."""
        for fields in ({"state": "draining"}, {"weight": 0}):
            farm = self.farm(4)
            leaving = farm.node(1)
            chunks = [digest(number) for number in range(20)]
            for node in farm.nodes.values():
                node.store.chunks.update(chunks)
            farm.change(1, **fields)
            farm.learn()
            self.start(*farm.nodes.values())
            farm.pass_time(30)
            assert leaving.store.chunks == set()
            assert all(len(farm.holders(one)) == 3 for one in chunks)

    def test_emptied_among_too_few(self) -> None:
        """Where the others cannot have all copies, one that is emptied keeps its own: nothing has fewer than before."""
        farm = self.farm(3)
        chunks = {digest(number) for number in range(20)}
        for node in farm.nodes.values():
            node.store.chunks.update(chunks)
        farm.change(1, state="draining", draining=True)
        farm.learn()
        self.start(*farm.nodes.values())
        farm.pass_time(30)
        assert farm.node(1).store.chunks == chunks

    def test_no_owner(self) -> None:
        """Where nobody owns chunks nobody gives one up."""
        farm, one, _ = self.prepare()
        for number in range(1, 6):
            farm.change(number, weight=0)
        farm.learn()
        self.start(*farm.nodes.values())
        farm.pass_time(60)
        assert len(farm.holders(one)) == 4

    def test_hindered(self) -> None:
        """While the farm has no first, or this server does not serve, nothing goes, and it says why."""
        farm, one, extra = self.prepare()
        farm.hindered = "nobody leads the farm"
        self.start(extra)
        farm.pass_time(60)
        assert extra.surplus.progress.paused == "nobody leads the farm"
        farm.hindered, farm.unreachable = "", True
        farm.pass_time(60)
        assert extra in farm.holders(one)
        assert extra.surplus.progress.paused == "nobody leads the farm"
        farm.unreachable = False
        farm.pass_time(60)
        assert extra not in farm.holders(one)

    def test_held_meanwhile(self) -> None:
        """A copy that somebody was told of between the question and the deletion stays."""
        farm, one, extra = self.prepare()
        farm.delays = (1.0,)
        self.start(extra)
        while not extra.store._promises.surplus:
            farm.pass_time(0.1)
        assert self.successResultOf(extra.store.hold([one])) == [100]
        farm.pass_time(5)
        assert extra in farm.holders(one)
        farm.pass_time(200)
        assert extra not in farm.holders(one)

    def test_owners_change_meanwhile(self) -> None:
        """A copy whose owners become others while they are asked to keep it stays, for it may be needed here now."""
        farm, one, extra = self.prepare(4)
        former = farm.owners(one)[0]
        farm.delays = (1.0,)
        self.start(extra)
        while not extra.store._promises.surplus:
            farm.pass_time(0.1)
        # All have answered yes, and the answers are on their way.
        farm.pass_time(1.5)
        farm.change(int(former.id, 16), weight=0)
        farm.learn()
        assert extra in farm.owners(one)
        farm.pass_time(100)
        assert extra in farm.holders(one)

    def test_guarded(self) -> None:
        """What is kept here for another reason stays, and is no surplus."""
        farm, one, extra = self.prepare()
        farm.guarded.add(one)
        self.start(extra)
        farm.pass_time(100)
        assert extra in farm.holders(one)
        assert extra.surplus.progress.left == 0

    def test_chunks_that_cannot_be_looked_at(self) -> None:
        """If the disk fails at some chunks again and again the others go all the same."""
        farm = self.farm()
        extra = farm.node(1)
        bad, one = (
            next(one for one in map(digest, range(1000)) if one[0] == prefix and extra in farm.others(one))
            for prefix in range(PREFIXES)
        )
        for node in farm.nodes.values():
            node.store.chunks |= {one for one in (bad, one) if node in [*farm.owners(one), extra]}
        has = extra.store.has
        extra.store.has = lambda digests: (  # type: ignore[method-assign]
            fail(OSError(errno.EACCES, "Permission denied")) if bad in digests else has(digests)
        )
        self.start(extra)
        farm.pass_time(60)
        assert self.flushLoggedErrors(OSError)
        assert extra not in farm.holders(one) and extra in farm.holders(bad)

    def test_condemned(self) -> None:
        """What an owner is about to collect is not its to keep."""
        farm, one, extra = self.prepare()
        farm.owners(one)[0].store._promises.condemned.add(one)
        self.start(extra)
        farm.pass_time(60)
        assert extra in farm.holders(one)

    def test_portions(self) -> None:
        """No question is about too many chunks, or too many bytes, but for one that is large alone."""
        small = {bytes([number % 256, number // 256]): 1 for number in range(KEEP_DIGESTS_MAX + 1)}
        assert list(map(len, in_portions(small))) == [KEEP_DIGESTS_MAX, 1]
        large = {b"a": KEEP_BYTES_MAX, b"b": 1, b"c": KEEP_BYTES_MAX - 1, b"d": 1}
        assert in_portions(large) == [[b"a"], [b"b", b"c"], [b"d"]]
        assert in_portions({}) == []


class UnequalTablesTests(SurplusTestCase):
    """Servers that do not know the same table must not each rely on another that gives its copy up."""

    def test_quick_joins(self) -> None:
        """A thinks that B, C and D own a chunk, B thinks A, C and D: not both give theirs up."""
        farm = self.farm(4)
        one = digest(3)
        a, b, c, d = (farm.node(number) for number in range(1, 5))
        for node in farm.nodes.values():
            node.store.chunks.add(one)
        farm.change(1, weight=0)
        farm.change(1, weight=1)
        farm.change(2, weight=0)
        # Of four that hold it A is no owner in the first of these tables, B in the last.
        for order in ((a, b), (b, a)):
            for node in farm.nodes.values():
                node.store.chunks.add(one)
            farm.unreachable = True
            a.version, b.version, c.version, d.version = 1, 3, 1, 3
            for node, version in ((a, 1), (b, 3)):
                # It goes by rows that nobody can make newer.
                node.surplus._standing = surplus.ownership(farm.tables[version], 3)
                node.surplus._due = [0.0] * PREFIXES
            for node in order:
                self.start(node)
            farm.pass_time(100)
            assert len(farm.holders(one)) >= 3
            farm.unreachable = False
            farm.learn()
            farm.pass_time(200)
            assert {node.name for node in farm.holders(one)} == {"s1", "s3", "s4"}
            for node in order:
                node.surplus.stop()

    def test_both_ask_at_once(self) -> None:
        """Two that ask each other at the same time, each an owner for the other, keep enough copies."""
        assert self.both_ask_at_once(Keeper) >= 3

    def test_a_yes_must_end_the_plan(self) -> None:
        """Without that two give their copies up for each other."""

        class Careless(Keeper):
            async def _keep(self, digests: Sequence[bytes], revision: int) -> Sequence[int]:
                there = await self.store.has(digests)
                return [length if self._owns(one) else 0 for one, length in zip(digests, there, strict=True)]

        assert self.both_ask_at_once(Careless) == 2

    def both_ask_at_once(self, make_keeper: Callable[..., Keeper]) -> int:
        """On how many servers a chunk is at the least of which A and B each think that the other one is an owner."""
        farm = self.farm(4, delays=(1.0,), make_keeper=make_keeper)
        one = digest(3)
        for node in farm.nodes.values():
            node.store.chunks.add(one)
        a, b = farm.node(1), farm.node(2)
        farm.change(1, weight=0)
        farm.change(1, weight=1)
        farm.change(2, weight=0)
        for node, version, later in ((a, 1, 3), (b, 3, 1)):
            # Each has made its plan by some rows, and answers the other one by others: nothing else keeps them apart.
            node.keeper = evolve(node.keeper, revision=lambda: 3, servers=partial(farm.tables.__getitem__, later))
            node.version = version
            node.surplus._standing = surplus.ownership(farm.tables[version], 3)
            node.surplus._is_newest = True
        for node in (a, b):
            node.surplus.start()
        least = 4
        for _ in range(600):
            farm.pass_time(0.5)
            least = min(least, len(farm.holders(one)))
        return least

    def test_histories(self) -> None:
        """However tables change and differ, a chunk is never on fewer servers than there are owners of it."""
        given = sum(self.history(seed) for seed in range(1, 31))
        assert given > 40

    def history(self, seed: int, **options: Any) -> int:
        farm = self.farm(5, seed=seed, delays=(0.01, 0.3, 2.0), **options)
        farm.stale = True
        random = Random(seed)
        one = digest(seed)
        for node in farm.nodes.values():
            node.store.chunks.add(one)
            node.surplus.start()
        for _ in range(60):
            what = random.choice(("weight", "weight", "learn", "learn", "reach", "copy"))
            if what == "weight":
                number = random.randint(1, 5)
                farm.change(number, weight=random.choice((0, 1, 1, 5)))
                if sum(row.owns for row in farm.tables[-1]) < 3:
                    farm.change(number, weight=1)
            elif what == "learn":
                node = random.choice(list(farm.nodes.values()))
                node.version = random.randint(node.version, len(farm.tables) - 1)
                node.surplus.table_changed()
            elif what == "reach":
                farm.unreachable = random.random() < 0.2
            elif farm.holders(one):
                # What the caretakers do.
                for node in farm.owners(one):
                    node.store._promises.keep([one])
                    node.store.chunks.add(one)
            end = farm.clock.seconds() + random.choice((0.5, 2.0, 12.0))
            while farm.clock.seconds() < end:
                farm.pass_time(0.25)
                assert len(farm.holders(one)) >= 3, f"seed {seed}"
        for node in farm.nodes.values():
            node.surplus.stop()
        return sum(node.surplus.progress.chunks for node in farm.nodes.values())
