"""Servers that start together, each with its own copy of a list, over a network with delays, pauses and deaths.

What decides is the real thing (`finding.Search`, `ports.answers.PeerAnswers`, `ports.callers.Callers`); network,
clocks and founding itself are played, and every choice comes from the seed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from random import Random
from typing import Any

from attrs import define, field
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError, TimeoutError
from twisted.internet.task import Clock

from chunkfarm.finding import Asking, Found, Join, Search
from chunkfarm.links.peers import Peers
from chunkfarm.membership import Candidate
from chunkfarm.model import Address
from chunkfarm.ports.answers import PeerAnswers
from chunkfarm.ports.callers import Callers
from chunkfarm.ports.peer import Prober
from chunkfarm.state import ServerState
from tests.builders import server_id
from tests.simulation.checks import Violation

START_WITHIN = 3.0
SKEW_MS = 2_000
BETTER = 30.0
END = 100.0
"""Seconds by which everybody must serve: some rounds of time-outs."""


class Later:
    """A call of a node, which waits while the node is paused."""

    def __init__(self, node: Node, delay: float, call: Callable[[], Any]) -> None:
        self._node, self._call, self._done = node, call, False
        self._process = node.process
        self._due = node.world.clock.callLater(delay, self._fire)

    def _fire(self) -> None:
        node = self._node
        if node.process != self._process or self._done:
            return
        if node.paused_until > node.world.clock.seconds():
            self._due = node.world.clock.callLater(node.paused_until - node.world.clock.seconds(), self._fire)
            return
        self._done = True
        self._call()

    def active(self) -> bool:
        return not self._done

    def cancel(self) -> None:
        self._done = True
        if self._due.active():
            self._due.cancel()


class PlayedConnection(SSL.Connection):
    """What both ends of one connection know, and nobody else."""

    def __init__(self, exporter: bytes) -> None:
        self._exporter = exporter

    def get_protocol_version(self) -> int:
        return SSL.TLS1_3_VERSION

    def export_keying_material(self, label: bytes, length: int, context: bytes | None = None) -> bytes:
        return self._exporter


class PlayedLink:
    """An open connection from one node to another."""

    def __init__(self, source: Node, target: Node) -> None:
        self.source, self.target = source, target
        self.exporter = source.world.random.randbytes(32)
        self.transport = self

    def getHandle(self) -> PlayedConnection:
        return PlayedConnection(self.exporter)

    def callRemote(self, command: Any, **told: Any) -> Deferred[Any]:
        answered: Deferred[Any] = Deferred()
        world = self.source.world

        def ask() -> None:
            prober = Prober(
                told["server"],
                told["stamp"],
                told["farm"],
                told["version"],
                told.get("proof", b""),
                self.exporter,
                self.source.address.host,
                Address(told["host"], told["peer"]),
            )
            back = self.source.later if self.source.process == asker else _nowhere
            box = {"answer": json.dumps(self.target.answers.probe(prober))}
            back(world.delay(), lambda: None if answered.called else answered.callback(box))

        asker = self.source.process
        self.target.later(world.delay(), ask)
        return answered

    def close(self) -> None:
        pass


class Node:
    """One server that starts."""

    def __init__(self, world: World, number: int, key: bytes | None) -> None:
        self.world, self.number = world, number
        self.address = Address("127.0.0.1", 4101 + 10 * number)
        self.key = key
        self.skew = world.random.randint(-SKEW_MS, SKEW_MS)
        self.process, self.paused_until, self.listens = 0, 0.0, False
        self.outcome: Join | Found | None = None

    def seconds(self) -> float:
        return self.world.clock.seconds()

    def callLater(self, delay: float, call: Callable[..., Any], *arguments: Any, **named: Any) -> Later:
        return Later(self, delay, lambda: call(*arguments, **named))

    def later(self, delay: float, call: Callable[[], Any]) -> Later:
        return Later(self, delay, call)

    def start(self) -> None:
        """A new process: a new stamp and no memory."""
        self.process += 1
        stamp = 1_700_000_000_000 + int(self.seconds() * 1000) + self.skew
        self.state = ServerState(
            server_id=server_id(self.number), name=f"s{self.number}", stamp=stamp, incarnation=f"{stamp}"
        )
        self.callers = self.world.callers(self)
        nothing: Any = None
        self.answers = PeerAnswers(
            state=self.state,
            contexts=nothing,
            peers=nothing,
            table=nothing,
            registry=nothing,
            duties=nothing,
            access=nothing,
            issuer=nothing,
            invites=nothing,
            first=lambda: "",
            servers=lambda: (),
            learn=lambda server, address: None,
            farm=lambda: self.state.farm_id,
            callers=self.callers,
            call_back=nothing,
            set_table=nothing,
            uses=nothing,
            at_risk=nothing,
            lost_files=nothing,
        )
        self.later(self.world.random.uniform(0, 0.4), self._listen)

    def die(self) -> None:
        """As by kill -9, unless it has made up its mind."""
        if self.state.phase in ("starting", "waiting"):
            self.process += 1
            self.listens = False
            self.world.clock.callLater(self.world.random.uniform(0.2, 4), self.start)

    def _listen(self) -> None:
        self.listens = True
        clock: Any = self
        peers = Peers(clock, self._open, lambda certificate: None, lambda server: None)
        me = Candidate(stamp=self.state.stamp, server_id=self.state.server_id)
        others = [node.address for node in self.world.nodes]
        search = Search(
            peers,
            self.state,
            self.callers,
            clock,
            read=lambda: self._after((others, Asking(me=me, address=self.address, key=self.key))),
            may_found=lambda: self._after(True),
            explain=lambda wait: self.state.change("waiting" if wait.reasons else "starting"),
        )
        Deferred.fromCoroutine(search.run()).addCallback(self._decided)

    def _after(self, value: Any) -> Deferred[Any]:
        read: Deferred[Any] = Deferred()
        self.later(self.world.random.uniform(0, 0.05), lambda: read.callback(value))
        return read

    def _decided(self, outcome: Join | Found) -> None:
        self.outcome = outcome
        if isinstance(outcome, Found):
            self.world.founders.append(self.number)
            self.later(self.world.random.uniform(0.1, 1.5), lambda: self._serve(server_id(1000 + self.number)))
        else:
            self.later(self.world.random.uniform(0.05, 0.5), lambda: self._serve(outcome.answer.farm))

    def _serve(self, farm: str) -> None:
        self.state.farm_id = farm
        self.state.change("serving")

    def _open(self, address: Address, factory: Any, timeout: float) -> Deferred[Any]:
        target = next(node for node in self.world.nodes if node.address == address)
        opened: Deferred[Any] = Deferred()
        there, back = self.world.delay(), self.world.delay()
        process = self.process

        def end(outcome: PlayedLink | Exception) -> None:
            if opened.called:
                return
            if isinstance(outcome, Exception):
                opened.errback(outcome)
            else:
                opened.callback(outcome)

        def arrive() -> None:
            outcome = PlayedLink(self, target) if target.listens else ConnectionRefusedError()
            if self.process == process:
                self.later(back, lambda: end(outcome))

        # The kernel takes connections for a paused process.
        self.world.clock.callLater(there, arrive)
        self.later(timeout, lambda: end(TimeoutError()))
        return opened


@define(eq=False)
class World:
    """A network of starting servers."""

    random: Random
    callers: Callable[[Node], Callers]
    clock: Clock = field(factory=Clock)
    nodes: list[Node] = field(factory=list)
    founders: list[int] = field(factory=list)
    slow: float = 0.0

    def delay(self) -> float:
        """Mostly a few milliseconds; now and then so long that a call times out."""
        if self.random.random() < self.slow:
            return self.random.uniform(0.5, 7.0)
        return self.random.uniform(0.0, 0.05)


def play(seed: int, callers: Callable[[Any], Callers] = Callers) -> World:
    """One history; raises `Violation` unless one server founds, and all come to serve its farm."""
    random = Random(seed)
    world = World(random, callers)
    world.slow = random.choice([0.0, 0.0, 0.05, 0.3])
    key = random.choice([None, b"k" * 32])
    world.nodes = [Node(world, number, key) for number in range(random.randint(2, 6))]
    # Nobody can found while most calls time out, so the network gets better.
    world.clock.callLater(BETTER, setattr, world, "slow", 0.0)
    window = random.choice([0.0, 0.3, START_WITHIN])
    for node in world.nodes:
        world.clock.callLater(random.uniform(0, window), node.start)
        if random.random() < 0.2:
            world.clock.callLater(random.uniform(0, 3), _pause, node, random.uniform(0.1, 12))
        if random.random() < 0.1:
            world.clock.callLater(random.uniform(window, window + 2), node.die)
    while world.clock.seconds() < END:
        due = [call.getTime() for call in world.clock.getDelayedCalls()]
        if not due:
            break
        world.clock.advance(max(min(due) - world.clock.seconds(), 0.0))
        if len(world.founders) > 1:
            break
    if len(world.founders) != 1:
        raise Violation(f"one founder: {world.founders} founded with seed {seed}")
    farms = {node.state.farm_id for node in world.nodes}
    if farms != {server_id(1000 + world.founders[0])}:
        raise Violation(f"one farm: with seed {seed} they serve {farms}")
    return world


def _nowhere(delay: float, call: Callable[[], Any]) -> None:
    """Where an answer goes when whoever asked is dead."""


def _pause(node: Node, seconds: float) -> None:
    node.paused_until = node.world.clock.seconds() + seconds


if __name__ == "__main__":
    for one in range(int(sys.argv[1])):
        play(one)
