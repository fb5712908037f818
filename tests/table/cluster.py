"""A few embedded tables in one process: one clock, disks that answer at once (or on demand), links in memory."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.table.embedded import EmbeddedTable, IConsensusLinks
from chunkfarm.table.interface import IWatch
from chunkfarm.table.journal import Journal
from chunkfarm.table.records import Configuration

T = TypeVar("T")

LATENCY = 0.001
"""Seconds a message takes."""
STEP = 0.01
"""Seconds by which the clock moves at a time."""


def at_once(call: Callable[[], T]) -> Deferred[T]:
    """`RunBlocking` without a thread."""
    return execute(call)


class HeldDisk:
    """`RunBlocking` that does what it was given only when it is told to."""

    def __init__(self) -> None:
        self.held = False
        self._waiting: list[tuple[Callable[[], object], Deferred[object]]] = []

    def __call__(self, call: Callable[[], T]) -> Deferred[T]:
        if not self.held:
            return execute(call)
        result: Deferred[T] = Deferred()
        self._waiting.append((call, result))  # type: ignore[arg-type]
        return result

    def __len__(self) -> int:
        return len(self._waiting)

    def release(self) -> None:
        self.held = False
        while self._waiting:
            call, result = self._waiting.pop(0)
            execute(call).chainDeferred(result)


class QuickJournal(Journal):
    """A journal that waits for no disk: these tests kill processes, not power."""

    def _synchronous(self, full: bool) -> None:
        self._connection.execute("PRAGMA synchronous = OFF")


@define
class Node:
    """One server's table, and what it told."""

    id: str
    path: str
    disk: HeldDisk
    table: EmbeddedTable
    reads: HeldDisk
    alive: bool = True
    fatal: list[Failure] = field(factory=list)


@implementer(IConsensusLinks)
class MemoryLinks:
    """The links of one node: everything arrives a moment later, if at all."""

    def __init__(self, cluster: Cluster, own_id: str) -> None:
        self._cluster = cluster
        self._id = own_id

    def send(self, to: str, payload: bytes) -> None:
        if not self._cluster.lost(self._id, to):
            way = self._cluster.far if self._id in self._cluster.far_away or to in self._cluster.far_away else LATENCY
            self._cluster.clock.callLater(way, self._cluster.deliver, self._id, to, payload)

    def call(self, to: str, payload: bytes) -> Deferred[None]:
        self._cluster.pages += 1
        return self._ask(to, lambda node: node.table.for_others.receive(self._id, payload))

    def transact(self, to: str, request: bytes) -> Deferred[bytes]:
        return self._ask(to, lambda node: node.table.for_others.transact(request))

    def read(self, to: str, request: bytes, stale: bool = False) -> Deferred[bytes]:
        return self._ask(to, lambda node: node.table.for_others.read(request, stale=stale))

    def holders(self) -> tuple[str, ...]:
        return tuple(id for id in self._cluster.nodes if id != self._id)

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        for node in self._cluster.nodes.values():
            if node.alive and node.table.holds_rows and not self._cluster.lost(self._id, node.id):
                return node.table.watch(prefix, from_revision)
        return fail(ConnectionError("nobody holds rows"))

    def leader_hint(self) -> str:
        return self._cluster.hint

    def _ask(self, to: str, ask: Callable[[Node], Deferred[T]]) -> Deferred[T]:
        """There and back, each way with its delay and its chance to be lost."""
        result: Deferred[T] = Deferred()
        cluster = self._cluster

        def lose(where: str) -> None:
            if not cluster.silent:
                result.errback(ConnectionError(where))

        def arrive() -> None:
            if cluster.lost(self._id, to):
                lose("lost on the way there")
                return
            ask(cluster.nodes[to]).addBoth(lambda outcome: cluster.clock.callLater(LATENCY, give, outcome))

        def give(outcome: T | Failure) -> None:
            if result.called:
                return
            if cluster.lost(to, self._id) or cluster.lose_answers:
                lose("lost on the way back")
            elif isinstance(outcome, Failure):
                result.errback(outcome)
            else:
                result.callback(outcome)

        cluster.clock.callLater(LATENCY, arrive)
        return result


class Cluster:
    """Nodes by name on one clock. `directory` holds a file for each."""

    def __init__(self, directory: str, seed: int = 1) -> None:
        os.makedirs(directory, exist_ok=True)
        self.directory = directory
        self.clock = Clock()
        self.random = random.Random(seed)
        self.nodes: dict[str, Node] = {}
        self.cut: set[tuple[str, str]] = set()
        self.hint = ""
        self.far_away: set[str] = set()
        self.far = 0.0
        """Seconds that a message to or from those takes."""
        self.lose_answers = False
        self.silent = False
        """Whether nobody is told of what is lost, as on a network that is cut."""
        self.pages = 0

    def add(self, id: str, before: Callable[[EmbeddedTable], object] = lambda table: None) -> Node:
        """A node that is started, after `before` had its say; it takes up what its file holds."""
        path = os.path.join(self.directory, f"{id}.sqlite")
        disk, reads = HeldDisk(), HeldDisk()
        fatal: list[Failure] = []
        table = EmbeddedTable(
            id,
            QuickJournal.open(path),
            MemoryLinks(self, id),
            self.clock,
            random.Random(self.random.getrandbits(64)),
            run_on_disk=disk,
            run_reads=reads,
            on_fatal=fatal.append,
        )
        node = self.nodes[id] = Node(id, path, disk, table, reads, fatal=fatal)
        before(table)
        table.start()
        return node

    def lost(self, sender: str, to: str) -> bool:
        alive = all(id in self.nodes and self.nodes[id].alive for id in (sender, to))
        return not alive or (sender, to) in self.cut

    def deliver(self, sender: str, to: str, payload: bytes) -> None:
        if not self.lost(sender, to):
            self.nodes[to].table.for_others.receive(sender, payload)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.clock.advance(STEP)

    def until(self, what: Callable[[], object], patience: float = 20.0) -> None:
        """Let time pass until `what()` holds."""
        for _ in range(round(patience / STEP)):
            if what():
                return
            self.clock.advance(STEP)
        raise AssertionError(f"waited {patience} s in vain")

    def result(self, deferred: Deferred[T], patience: float = 40.0) -> T:
        """Let time pass until `deferred` fires; its value, or its error raised."""
        outcome: list[T | Failure] = []
        deferred.addBoth(outcome.append)
        self.until(lambda: outcome, patience)
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        return outcome[0]

    def leader(self) -> Node | None:
        """The one that leads in the highest term."""
        leaders = [node for node in self.nodes.values() if node.alive and node.table.is_leader]
        return max(leaders, key=lambda node: node.table.term, default=None)

    def found(self, id: str) -> Node:
        node = self.add(id)
        self.result(node.table.found())
        self.until(lambda: node.table.is_leader)
        return node

    def grow(self, *ids: str, learners: tuple[str, ...] = ()) -> None:
        """Make `ids` voters, and `learners` learners, one after the other."""
        for id in (*ids, *learners):
            if id not in self.nodes:
                self.add(id)
            leader = self.leader()
            assert leader is not None
            now = leader.table.configuration
            self.result(leader.table.propose_configuration(Configuration(now.voters, now.learners | {id})))
            self.until(lambda table=leader.table, id=id: id in table.caught_up())  # type: ignore[misc]
            if id in ids:
                # One step a server: a learner becomes a voter in two changes of the two sets, but of one server.
                self.result(leader.table.propose_configuration(Configuration(now.voters | {id}, now.learners)))

    def kill(self, id: str) -> None:
        """The process is gone from one moment to the next; its disk keeps what was committed."""
        node = self.nodes[id]
        node.alive = False
        node.disk.held = node.reads.held = True
        node.table.stop()
        node.table._journal.close()

    def restart(self, id: str) -> Node:
        return self.add(id)

    def stop(self) -> None:
        for node in self.nodes.values():
            if node.alive:
                node.disk.release()
                node.reads.release()
                self.result(node.table.stop())
