"""What users do with a simulated farm meanwhile, and what they are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chunkfarm.table.interface import Batch, Compacted, Compare, Conflict, Put, TableError
from tests.simulation.checks import Violation

if TYPE_CHECKING:
    from tests.simulation.farm import FarmSimulation
    from tests.simulation.servers import SimulatedServer

PREFIX = b"files/simulation/"
KEYS = 3
THINK_SECONDS = 0.4
PATIENCE = 40.0
"""Longer than a table looks for a leader."""


@define(eq=False)
class Done:
    """One operation of one client, as a history tells it. `end` is None while nobody knows how it ended."""

    client: int
    kind: str
    """`write`, `read` or `swap`."""
    key: bytes
    begin: float
    value: bytes = b""
    """What was written, or read."""
    revision: int = 0
    """`write`: the revision that it was given. `read`: that of the row; 0 if there was none."""
    expected: int = 0
    """`swap`: the revision that was compared."""
    end: float | None = None
    failed: bool = False
    """Whether it is known to have had no effect."""


class Users:
    """Users at random servers."""

    def __init__(self, farm: FarmSimulation) -> None:
        self.history: list[Done] = []
        self.watched = 0
        """Events that watchers have seen."""
        self._farm = farm
        self._random = farm.world.random("clients")
        self._written = 0
        self._proofs: dict[str, bool] = {}
        self._positions: dict[int, int] = {}
        """Up to which revision each watcher has seen everything."""
        self._stopped = False

    def begin(self) -> None:
        """Let them begin."""
        for number in range(self._farm.options.clients):
            self._farm.world.at(2.0 + number * 0.1, None, self._next, number)
        for number in range(2):
            self._farm.world.at(3.0, None, self._watch_somewhere, number, -1)

    def finish(self) -> None:
        self._stopped = True

    def _server(self) -> SimulatedServer | None:
        servers = [server for server in self._farm.servers if server.state in ("serving", "readonly")]
        return self._random.choice(servers) if servers else None

    # Reading and writing.

    def _next(self, client: int) -> None:
        if self._stopped:
            return
        server = self._server()
        if server is None:
            self._later(client)
            return
        key = PREFIX + b"%d" % self._random.randrange(KEYS)
        kind = self._random.choice(("write", "read", "read", "swap"))
        assert server.process is not None
        # The work is the server's; the client learns what it is told.
        server.process.at(0.0, self._ask, client, server, kind, key, 0)

    def _later(self, client: int) -> None:
        self._farm.world.at(self._random.expovariate(1 / THINK_SECONDS), None, self._next, client)

    def _ask(self, client: int, server: SimulatedServer, kind: str, key: bytes, expected: int) -> None:
        assert server.parts is not None
        done = Done(client, kind, key, self._farm.now, expected=expected)
        table = server.parts.table
        asked: Deferred[Any]
        if kind == "read" or (kind == "swap" and not expected):
            done.kind = "read"
            self.history.append(done)
            asked = table.read(key, limit=1)
        else:
            self._written += 1
            done.value = b"%d" % self._written
            self.history.append(done)
            compares = (Compare(key, "==", expected),) if kind == "swap" else ()
            asked = table.transact(compares, (Put(key, done.value),))
        over: list[bool] = []

        def go_on() -> None:
            if not over:
                over.append(True)
                self._later(client)

        def told(result: Any) -> None:
            if over:
                return
            self._told(done, server, result)
            if kind == "swap" and not expected and done.end is not None and done.revision:
                over.append(True)
                self._ask(client, server, kind, key, done.revision)
                return
            go_on()

        asked.addBoth(told)
        self._farm.world.at(PATIENCE, None, go_on)

    def _told(self, done: Done, server: SimulatedServer, result: Any) -> None:
        world = self._farm.world
        if isinstance(result, Failure):
            if result.check(Conflict):
                done.end, done.failed = world.now, True
            elif not result.check(TableError):
                result.raiseException()
            elif done.kind == "read":
                done.end, done.failed = world.now, True
            world.trace(f"client {done.client} {done.kind} {type(result.value).__name__}")
            return
        done.end = world.now
        if done.kind == "read":
            row = next((row for row in result.rows if row.key == done.key), None)
            done.value, done.revision = (row.value, row.revision) if row is not None else (b"", 0)
        else:
            done.revision = result
        world.trace(f"client {done.client} {done.kind} {done.value!r} {done.revision}")

    # Watching.

    def _watch_somewhere(self, watcher: int, after: int) -> None:
        server = self._server()
        if server is None or server.parts is None or server.process is None:
            self._farm.world.at(0.5, None, self._watch_somewhere, watcher, after)
            return
        server.process.at(0.0, self._watch, watcher, server, after)

    def _watch(self, watcher: int, server: SimulatedServer, after: int) -> None:
        assert server.parts is not None
        parts = server.parts
        ended: list[bool] = []

        def again(revision: int) -> None:
            if not ended:
                ended.append(True)
                self._farm.world.at(0.2, None, self._watch_somewhere, watcher, revision)

        def look(revision: int) -> None:
            # The process may end without a word.
            if parts is not server.parts:
                again(self._positions.get(watcher, revision))
            elif not ended:
                self._farm.world.at(1.0, None, look, revision)

        async def follow() -> None:
            revision = after
            self._positions[watcher] = revision
            try:
                if revision < 0:
                    revision = (await parts.table.read(PREFIX, limit=1)).revision
                watch = await parts.table.watch(PREFIX, revision)
                while True:
                    batch = await watch.next()
                    self._check_batch(server.name, parts.journal.farm_id, revision, batch)
                    revision = max(revision, batch.revision)
                    self._positions[watcher] = revision
            except Compacted:
                again(-1)
            except TableError:
                again(revision)

        Deferred.fromCoroutine(follow())
        look(after)

    def _check_batch(self, name: str, farm: str, after: int, batch: Batch) -> None:
        """Whole transactions, in order, without a gap, none twice."""
        changes = self._farm.checks.of(farm).changes
        wanted = [
            (revision, operation.key)
            for revision in range(after + 1, batch.revision + 1)
            for operation in changes.get(revision, ())
            if operation.key.startswith(PREFIX)
        ]
        found = [(event.revision, event.key) for event in batch.events]
        self.watched += len(found)
        if found != wanted:
            raise Violation(f"watch: after {after} {name} showed {found} up to {batch.revision}, expected {wanted}")

    # Proof of life.

    def forget_proofs(self) -> None:
        """What was committed so far proves nothing any more."""
        self._proofs = {}

    def proved(self, servers: Sequence[SimulatedServer]) -> bool:
        """Whether a transaction was committed through each of these since everything was repaired."""
        for server in servers:
            if server.parts is None or server.process is None:
                return False
            mark = f"{server.name} {server.lives}"
            if mark not in self._proofs:
                self._proofs[mark] = False
                server.process.at(0.0, self._prove, server, mark)
        return all(self._proofs.get(f"{server.name} {server.lives}", False) for server in servers)

    def _prove(self, server: SimulatedServer, mark: str) -> None:
        assert server.parts is not None

        def ended(result: Any) -> None:
            if isinstance(result, Failure):
                self._proofs.pop(mark, None)
            else:
                self._proofs[mark] = True

        server.parts.table.transact((), (Put(PREFIX + b"proof", mark.encode()),)).addBoth(ended)

    # Afterwards.

    def check(self) -> None:
        """What was acknowledged is there, and what was read was the newest: per key, revisions never fall."""
        for key in {done.key for done in self.history}:
            done = [one for one in self.history if one.key == key and one.end is not None and not one.failed]
            done.sort(key=lambda one: one.end or 0.0)
            for one in done:
                floor = max((other.revision for other in done if (other.end or 0.0) < one.begin), default=0)
                if one.revision < floor or (one.kind != "read" and one.revision == floor):
                    raise Violation(f"history: {one} began when {floor} was known already")
