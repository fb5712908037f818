"""Several servers' chunks under bad luck, with the real transfers and caretakers over disks and links in memory.

Each seed is a history of its own: files are put and removed while servers die and come back, bits flip, chunks and
whole disks vanish, disks fill up. Only injuries that must be survivable are done: a copy is harmed only while
another whole one of the same chunk exists that is not harmed before this one could be mended. In the end all is
well again, the caretakers get time, and then every chunk of every file that was acknowledged must be on all of
its owners, whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar, cast

from attrs import define, evolve
from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.chunks import placement
from chunkfarm.chunks.caretaker import Caretaker
from chunkfarm.chunks.checking import verify_here
from chunkfarm.chunks.pieces import Buffer, BytesSource
from chunkfarm.chunks.store import ChunkStore, DamagedChunk, Space
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.errors import Full, Mismatch, NotFound
from chunkfarm.links.interface import IChunkLinks
from chunkfarm.model import Server, digest_of

T = TypeVar("T")

DOWN_AFTER = 5.0
REPAIR_AFTER = 120.0
STEPS = 60
HEAL_SECONDS = 300.0
"""Far less than the hourly look takes to come round: it must not be needed for anything here."""
SIZE = 600
"""Bytes of a chunk at most: what is simulated does not depend on it."""


class MemoryStore:
    """A disk with what `ChunkStore` promises. Damage is done by writing to `chunks`."""

    def __init__(self, on_damaged: Callable[[bytes, str], None]) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.aside: set[bytes] = set()
        self.full = False
        self.on_damaged = on_damaged

    def put(self, digest: bytes | None, data: Buffer, *, checked: bool = False) -> Deferred[bytes]:
        def put() -> bytes:
            found = digest_of(data)
            if digest is not None and found != digest:
                raise Mismatch("other bytes")
            if self.chunks.get(found):
                # Like the real one: a file that is whole by its length is not written again.
                return found
            if self.full:
                raise Full("this server's disk is full")
            self.chunks[found] = bytes(data)
            return found

        return execute(put)

    def has(self, digests: Sequence[bytes]) -> Deferred[list[int]]:
        return execute(lambda: [len(self.chunks.get(digest, b"")) for digest in digests])

    def hold(self, digests: Sequence[bytes]) -> Deferred[list[int]]:
        return self.has(digests)

    def size(self, digest: bytes) -> Deferred[int]:
        def size() -> int:
            if digest not in self.chunks:
                raise NotFound("no such chunk")
            return len(self.chunks[digest])

        return execute(size)

    def check(self, digest: bytes) -> Deferred[int]:
        return execute(lambda: len(self._whole(digest)))

    def open(self, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[Any]:
        def read() -> Any:
            data = self._whole(digest)
            end = len(data) if length is None else offset + length
            source = cast(Any, BytesSource(data[offset:end]))
            source.chunk_length, source.length = len(data), end - offset
            return source

        return execute(read)

    def scan(self, prefix: int) -> Deferred[list[bytes]]:
        return execute(lambda: sorted(digest for digest in self.chunks if digest[0] == prefix))

    def space(self) -> Deferred[Space]:
        return execute(lambda: Space(0, 0, self.full))

    def quarantined(self) -> Deferred[list[bytes]]:
        return execute(lambda: sorted(self.aside - set(self.chunks)))

    def _whole(self, digest: bytes) -> bytes:
        if digest not in self.chunks:
            raise NotFound("no such chunk")
        data = self.chunks[digest]
        if digest_of(data) != digest:
            del self.chunks[digest]
            self.aside.add(digest)
            self.on_damaged(digest, "other bytes")
            raise DamagedChunk("other bytes")
        return data


@define(eq=False)
class Node:
    """One server: its row, its disk, and its process while it runs."""

    row: Server
    store: MemoryStore
    running: bool = False
    run: int = 0
    """Which process of it this is: what an earlier one had asked is answered to nobody."""
    transfer: Transfer | None = None
    caretaker: Caretaker | None = None
    died: float = 0.0


@implementer(IChunkLinks)
class Links:
    """What one process asks of the others: a little later, in any order, and not at all if one of the two is dead."""

    def __init__(self, farm: ChunkFarm, node: Node) -> None:
        self._farm = farm
        self._node = node
        self._run = node.run

    def put(self, server: Server, digest: bytes, data: Buffer) -> Deferred[None]:
        return self._ask(server, lambda other: other.store.put(digest, data))

    def get(self, server: Server, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[bytes]:
        return self._ask(server, lambda other: execute(other.store._whole, digest))

    def have(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self._ask(server, lambda other: other.store.has(digests))

    def hold(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self._ask(server, lambda other: other.store.hold(digests))

    def keep(self, server: Server, digests: Sequence[bytes], revision: int) -> Deferred[Sequence[int]]:
        return fail(ConnectionRefusedError())

    def verify(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self._ask(
            server, lambda other: Deferred.fromCoroutine(verify_here(cast(ChunkStore, other.store), digests))
        )

    def look(self, server: Server, digests: Sequence[bytes]) -> Deferred[None]:
        def look(other: Node) -> Deferred[None]:
            assert other.caretaker is not None
            return execute(other.caretaker.look_first, digests)

        return self._ask(server, look)

    def _ask(self, server: Server, work: Callable[[Node], Deferred[Any]]) -> Deferred[Any]:
        farm = self._farm
        other = farm.nodes[server.id]
        if not other.running:
            return fail(ConnectionRefusedError())
        answer: Deferred[Any] = Deferred(lambda _: None)
        run = other.run

        def give(result: Any) -> None:
            if not answer.called:
                answer.callback(result)

        def answered(result: Any) -> None:
            self._later(lambda: give(result))

        def arrive() -> None:
            if other.running and other.run == run:
                work(other).addBoth(answered)
            else:
                answered(Failure(ConnectionRefusedError()))

        self._later(arrive)
        return answer

    def _later(self, call: Callable[[], object]) -> None:
        def now() -> None:
            if self._node.running and self._node.run == self._run:
                call()

        self._farm.clock.callLater(self._farm.random.choice((0.001, 0.01, 0.05)), now)


MakeCaretaker = Callable[..., Caretaker]


class ChunkFarm:
    """A farm of `servers` with one table, which all know at once."""

    def __init__(self, seed: int, make_caretaker: MakeCaretaker = Caretaker) -> None:
        self.random = Random(seed)
        self.clock = Clock()
        self.replicas = self.random.choice((2, 3, 3, 3))
        self._make_caretaker = make_caretaker
        self.nodes: dict[str, Node] = {}
        self.files: dict[int, bytes] = {}
        """Acknowledged files that were not removed: the digest of the one chunk that each has."""
        self.acknowledged = self.injuries = self.losses = self.buried = 0
        self.story: list[str] = []
        self._number = 0
        self.table: tuple[Server, ...] = ()
        for number in range(self.random.randint(3, 6)):
            self._add(number)
        self._publish()
        for node in self.nodes.values():
            self.start(node)

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.clock.seconds()

    # The farm.

    def _add(self, number: int) -> Node:
        weight = self.random.choice((1, 1, 2))
        row = Server(id=f"{number:032x}", name=f"s{number}", host="", client=1, peer=2, files=3, weight=weight)
        node = Node(row, MemoryStore(lambda digest, reason: None))
        node.store.on_damaged = lambda digest, reason: self._damaged(node, digest, reason)
        self.nodes[row.id] = node
        return node

    def _damaged(self, node: Node, digest: bytes, reason: str) -> None:
        if node.running and node.caretaker is not None:
            node.caretaker.found_damaged(digest, reason)

    def _publish(self) -> None:
        self.table = tuple(node.row for node in self.nodes.values())
        for node in self.nodes.values():
            if node.running and node.caretaker is not None:
                node.caretaker.table_changed()

    def start(self, node: Node) -> None:
        """A process begins, and its row is up."""
        node.running, node.run = True, node.run + 1
        links, store = Links(self, node), cast(ChunkStore, node.store)
        server_id = node.row.id

        def run_in_thread(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Deferred[T]:
            return execute(function, *args, **kwargs)

        node.transfer = Transfer(
            store,
            lambda: self.table,
            server_id,
            links,
            lambda: self.replicas,
            self.clock,
            run_in_thread,
            lambda digests: node.caretaker.look_first(digests) if node.caretaker is not None else None,
        )
        node.caretaker = self._make_caretaker(
            store,
            links,
            node.transfer,
            lambda: self.table,
            server_id,
            lambda: self.replicas,
            self.clock,
            run_in_thread,
        )
        node.caretaker.start()
        node.row = evolve(node.row, state="up", given_up=False, full=node.store.full, incarnation=f"{node.run}")
        self._publish()

    def kill(self, node: Node) -> None:
        """A process ends without a word; the first notices after a while."""
        assert node.caretaker is not None
        node.running, node.died = False, self.clock.seconds()
        node.caretaker.stop()
        run = node.run

        def is_down() -> None:
            if not node.running and node.run == run:
                node.row = evolve(node.row, state="down")
                self._publish()

        def is_given_up() -> None:
            if not node.running and node.run == run:
                node.row = evolve(node.row, given_up=True)
                self._publish()

        self.clock.callLater(DOWN_AFTER, is_down)
        self.clock.callLater(REPAIR_AFTER, is_given_up)

    # The weather.

    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.running]

    def intact(self, digest: bytes) -> list[Node]:
        """Servers that run and have a whole copy."""
        return [node for node in self.alive() if self._is_whole(node, digest)]

    def _is_whole(self, node: Node, digest: bytes) -> bool:
        data = node.store.chunks.get(digest)
        return data is not None and digest_of(data) == digest

    def run(self) -> None:
        """The history, then a time in which all must heal; raises `AssertionError` if it does not."""
        for _ in range(STEPS):
            self._step()
            self.pass_time(self.random.choice((0.05, 0.5, 3.0, 20.0, 200.0)))
        self.heal()
        self.check()

    def heal(self) -> None:
        """Nothing goes wrong any more, and everything is read once.

        A server that is dead stays so for good in every other history, if nothing is only there.
        """
        needed = not all(map(self.intact, self.files.values()))
        for node in self.nodes.values():
            self.fill(node, False)
            if not node.running and (needed or self.random.random() < 0.5):
                self.start(node)
        self.buried = sum(not node.running for node in self.nodes.values())
        self.pass_time(60 + REPAIR_AFTER * self.buried)
        (somebody, *_) = self.alive()
        assert somebody.transfer is not None
        for _ in range(2):
            checking = somebody.transfer.check(sorted(set(self.files.values())), read=True)
            self.pass_time(300)
            assert checking.called and isinstance(checking.result, dict), "a check has not ended"
        self.pass_time(HEAL_SECONDS)

    def check(self) -> None:
        """Every file is on all owners of its chunks, and nobody believes that anything is left to do."""
        for number, digest in sorted(self.files.items()):
            owners = placement.owners(digest, self.table, self.replicas)
            lacking = [server.name for server in owners if not self._is_whole(self.nodes[server.id], digest)]
            assert not lacking, f"file {number} ({digest.hex()[:8]}) is not on {lacking}"
        for node in self.alive():
            assert node.caretaker is not None
            told = node.caretaker.progress
            assert (told.left, told.short) == (0, 0), f"{node.row.name}: {told}"
            for digest, data in node.store.chunks.items():
                assert digest_of(data) == digest or digest not in self.files.values(), "wrong bytes"

    def pass_time(self, seconds: float) -> None:
        """Let time pass from event to event."""
        end = self.clock.seconds() + seconds
        while True:
            calls = self.clock.getDelayedCalls()
            upcoming = heapq.nsmallest(1, (call.getTime() for call in calls))
            if not upcoming or upcoming[0] > end:
                break
            self.clock.advance(max(0.0, upcoming[0] - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def _step(self) -> None:
        happens: list[tuple[int, Callable[[], None]]] = [
            (8, self._put),
            (2, self._remove),
            (3, self._kill),
            (3, self._come_back),
            (3, self._injure),
            (1, self._lose_disk),
            (1, self._change_fullness),
            (1, self._join),
            (1, self._change_weight),
            (1, self._change_replicas),
        ]
        self.random.choices([one for _, one in happens], [weight for weight, _ in happens])[0]()

    def say(self, text: str) -> None:
        self.story.append(f"{self.clock.seconds():10.2f}  {text}")

    def _put(self) -> None:
        able = self.alive()
        if not able:
            return
        node = self.random.choice(able)
        self._number += 1
        number = self._number
        data = self.random.randbytes(self.random.randint(1, SIZE))
        assert node.transfer is not None

        def acknowledged(receipt: Any) -> None:
            self.acknowledged += 1
            self.files[number] = receipt.digest
            names = [self.nodes[id].row.name for id in receipt.holders]
            self.say(f"file {number} ({receipt.digest.hex()[:8]}) is on {names}")

        node.transfer.write(data).addCallback(acknowledged).addErrback(lambda failure: None)

    def _remove(self) -> None:
        if self.files:
            del self.files[self.random.choice(sorted(self.files))]

    def _kill(self) -> None:
        able = self.alive()
        # Of `replicas` copies one may be lost at a time; what was written is on more than half of them.
        if len(able) < len(self.nodes):
            return
        node = self.random.choice(able)
        self.say(f"{node.row.name} dies")
        self.kill(node)

    def _come_back(self) -> None:
        dead = [node for node in self.nodes.values() if not node.running]
        if dead:
            self.say(f"{dead[0].row.name} comes back")
            self.start(dead[0])

    def _injure(self) -> None:
        """Flip a bit of a copy, cut it, or delete it, if there is another one."""
        choices = [
            (node, digest)
            for digest in sorted(set(self.files.values()))
            if len(self.intact(digest)) >= 2
            for node in self.intact(digest)
        ]
        if not choices:
            return
        node, digest = self.random.choice(choices)
        self.injuries += 1
        if self.random.random() < 0.5:
            self.say(f"{digest.hex()[:8]} vanishes from {node.row.name}")
            del node.store.chunks[digest]
        else:
            self.say(f"a bit of {digest.hex()[:8]} flips on {node.row.name}")
            data = node.store.chunks[digest]
            node.store.chunks[digest] = bytes([data[0] ^ 1]) + data[1:]

    def _lose_disk(self) -> None:
        """A server loses its whole disk, and begins with an empty one, if nothing is only there."""
        node = self.random.choice(list(self.nodes.values()))
        if any(self.intact(digest) in ([], [node]) for digest in self.files.values()):
            return
        self.losses += 1
        self.say(f"the disk of {node.row.name} is lost")
        if node.running:
            self.kill(node)
        node.store.chunks.clear()
        node.store.aside.clear()
        self.start(node)

    def _change_fullness(self) -> None:
        node = self.random.choice(list(self.nodes.values()))
        self.fill(node, not node.store.full)

    def fill(self, node: Node, full: bool) -> None:
        """The disk fills up, or has room again; the row says so two seconds later."""
        node.store.full = full

        def tell() -> None:
            node.row = evolve(node.row, full=node.store.full)
            self._publish()

        self.clock.callLater(2.0, tell)

    def _change_weight(self) -> None:
        """A server gets more chunks, fewer, or none any more, but not all of them none."""
        node = self.random.choice(list(self.nodes.values()))
        weight = self.random.choice((0, 1, 2, 4))
        if weight or sum(other.row.weight > 0 for other in self.nodes.values() if other is not node) >= 3:
            node.row = evolve(node.row, weight=weight)
            self.say(f"{node.row.name} has the weight {weight}")
            self._publish()

    def _change_replicas(self) -> None:
        self.replicas = self.random.choice((2, 3, 3, 4))
        self.say(f"{self.replicas} replicas are wanted")
        self._publish()

    def _join(self) -> None:
        if len(self.nodes) < 7:
            self.say(f"s{len(self.nodes)} joins")
            self.start(self._add(len(self.nodes)))
