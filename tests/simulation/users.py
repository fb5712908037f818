"""What users do with a simulated farm meanwhile, and what they are told."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chunkfarm.table.interface import Batch, Compacted, Compare, Conflict, Put, TableError
from tests.simulation.checks import Violation
from tests.simulation.linearizable import (
    UNKNOWN,
    Call,
    Done,
    Outcome,
    Read,
    Refused,
    Seen,
    Transact,
    Undecided,
    check,
)

if TYPE_CHECKING:
    from tests.simulation.farm import FarmSimulation
    from tests.simulation.servers import SimulatedServer

PREFIX = b"files/simulation/"
KEYS = 3
THINK_SECONDS = 0.4
PATIENCE = 40.0
"""Longer than a table looks for a leader."""


@define(eq=False)
class _Asked:
    """One thing that a client asked, and what it was told; `UNKNOWN` until it is."""

    client: int
    invoked: float
    what: Transact | Read
    returned: float = inf
    outcome: Outcome = UNKNOWN

    def as_call(self) -> Call:
        return Call(str(self.client), self.invoked, self.returned, self.what, self.outcome)


class Users:
    """Users at random servers."""

    def __init__(self, farm: FarmSimulation) -> None:
        self.undecided = False
        """Whether the history was too hard to judge."""
        self.watched = 0
        """Events that watchers have seen."""
        self._farm = farm
        self._random = farm.world.random("clients")
        self._asked: list[_Asked] = []
        self._written = 0
        self._proofs: dict[str, bool] = {}
        self._positions: dict[int, int] = {}
        """Up to which revision each watcher has seen everything."""
        self._stopped = False

    @property
    def history(self) -> list[Call]:
        """What was asked and told so far. A read that failed says nothing."""
        told = [asked.as_call() for asked in self._asked]
        return [call for call in told if not isinstance(call.what, Read) or isinstance(call.outcome, Seen)]

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
        server.process.at(0.0, self._ask, client, server, kind, key, -1)

    def _later(self, client: int) -> None:
        self._farm.world.at(self._random.expovariate(1 / THINK_SECONDS), None, self._next, client)

    def _ask(self, client: int, server: SimulatedServer, kind: str, key: bytes, expected: int) -> None:
        """Read, or write a value that nobody else writes; `swap` reads first, and writes if nobody did since."""
        assert server.parts is not None
        table = server.parts.embedded
        reads = kind == "read" or (kind == "swap" and expected < 0)
        answer: Deferred[Any]
        if reads:
            asked = _Asked(client, self._farm.now, Read(key, exact=True))
            # Both ways to ask for a row: among the recent ones, and on the disk.
            answer = table.find(key) if kind == "read" else table.read(key, limit=1)
        else:
            self._written += 1
            compares = (Compare(key, "==", expected),) if kind == "swap" else ()
            what = Transact(compares, (Put(key, b"%d" % self._written),))
            asked = _Asked(client, self._farm.now, what)
            answer = table.transact(what.compares, what.operations)
        self._asked.append(asked)
        over: list[bool] = []

        def go_on() -> None:
            if not over:
                over.append(True)
                self._later(client)

        def told(result: Any) -> None:
            self._told(asked, result)
            if kind == "swap" and reads and isinstance(asked.outcome, Seen) and not over:
                over.append(True)
                self._ask(client, server, kind, key, asked.outcome.rows[0].revision if asked.outcome.rows else 0)
            else:
                go_on()

        answer.addBoth(told)
        self._farm.world.at(PATIENCE, None, go_on)

    def _told(self, asked: _Asked, result: Any) -> None:
        asked.returned = self._farm.now
        if not isinstance(result, Failure):
            if isinstance(asked.what, Read):
                rows = tuple(row for row in result.rows if row.key == asked.what.prefix)
                asked.outcome = Seen(rows, result.revision)
            else:
                asked.outcome = Done(result)
        elif isinstance(result.value, Conflict):
            asked.outcome = Refused(result.value.rows)
        elif not isinstance(result.value, TableError):
            self._farm.fail(result.value)
        self._farm.world.trace(str(asked.as_call()))

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
                    revision = (await parts.embedded.read(PREFIX, limit=1)).revision
                watch = await parts.embedded.watch(PREFIX, revision)
                while True:
                    batch = await watch.next()
                    self.check_batch(server.name, revision, batch)
                    revision = max(revision, batch.revision)
                    self._positions[watcher] = revision
            except Compacted:
                again(-1)
            except TableError:
                again(revision)

        def failed(failure: Failure) -> None:
            self._farm.fail(failure.value)

        Deferred.fromCoroutine(follow()).addErrback(failed)
        look(after)

    def check_batch(self, name: str, after: int, batch: Batch) -> None:
        """Whole transactions, in order, without a gap, none twice."""
        changes = self._farm.checks.changes
        wanted = [
            (revision, operation.key)
            for revision in range(after + 1, batch.revision + 1)
            for operation in changes.get(revision, ())
            if operation.key.startswith(PREFIX)
        ]
        found = [(event.revision, event.key) for event in batch.events]
        self.watched += len(found)
        if found != wanted:
            text = f"watch: after {after} {name} showed {found} up to {batch.revision}, expected {wanted}"
            self._farm.fail(Violation(text))

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

        server.parts.embedded.transact((), (Put(PREFIX + b"proof", mark.encode()),)).addBoth(ended)

    # Afterwards.

    def check(self) -> None:
        """One order of all that was asked explains all that was told (see `linearizable`)."""
        try:
            check(self.history)
        except Undecided:
            # Too many unknown outcomes to look at all their orders: nothing is proved, and nothing is wrong.
            self.undecided = True
