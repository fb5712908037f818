"""Whole farms whose majority is lost and found again, while an admin lets single servers go on by hand.

A `LineSimulation` is a `farm.FarmSimulation` without the checks that hold for one line of history alone. Servers are
killed, frozen and cut apart, and at any moment somebody says TAKEOVER to one of them. At the end everything is
repaired and everybody meets. Then one side goes on, and whoever belongs to it has given up nothing that it ever
committed; the others have stopped. Only where two sides took over without knowing of each other, all stop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from chunkfarm.errors import FarmError
from chunkfarm.history import DOWN_INTERVAL
from chunkfarm.table.interface import Put, TableError
from tests.simulation.checks import Violation
from tests.simulation.farm import SERVE_WITHIN, FarmSimulation, Options
from tests.simulation.faults import both
from tests.simulation.journals import FarmChecks, JournalChecks, Seen
from tests.simulation.servers import SimulatedServer

if TYPE_CHECKING:
    from chunkfarm.parts import Parts

PREFIX = b"files/divided/"
WRITE_SECONDS = 0.5
MEET_SECONDS = 3 * DOWN_INTERVAL
"""After everybody is reached again: a first asks those that are down every `DOWN_INTERVAL`."""
FARM_NAME = "farm"


class _NoChecks(FarmChecks):
    """Two lines are two histories: what holds for one is not asked of both."""

    def look(self, *arguments: Any) -> None:
        pass

    sent = taken = own_term_first = applied = read_asked = read_answered = look  # type: ignore[assignment]


class _LineChecks(JournalChecks):
    """Knows what each server has applied, whatever became of it."""

    def __init__(self) -> None:
        super().__init__()
        self.applied: dict[str, set[bytes]] = {}
        """Keys by the name of the server."""

    def of(self, farm: str) -> FarmChecks:
        return self._farms.setdefault(farm, _NoChecks())

    def founded(self, seen: Seen) -> None:
        pass

    def open(self, name: str, life: int, path: str, disk: Any) -> Any:
        journal = super().open(name, life, path, disk)
        watched: Any = _Watched(journal.seen, self.applied.setdefault(name, set()))
        journal.seen = watched
        return journal


class _Watched:
    """Stands before a `Seen`, and remembers the keys that were put."""

    def __init__(self, seen: Seen, keys: set[bytes]) -> None:
        self._seen = seen
        self._keys = keys

    def saved(self, ready: Any, before: int, saved: Any, applied: int) -> None:
        for done in saved.applied:
            self._keys.update(one.key for one in done.operations if isinstance(one, Put) and one.key.startswith(PREFIX))
        self._seen.saved(ready, before, saved, applied)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_seen", "_keys"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._seen, name, value)


class LineSimulation(FarmSimulation):
    """One history of takeovers by hand."""

    one_table = False

    def __init__(self, seed: int, seconds: float | None = None) -> None:
        options = Options(servers=2 + seed % 3, spares=0, together=False, faults=0.25, slow=0.0, clients=0)
        super().__init__(seed, options, seconds)
        self.checks: _LineChecks = _LineChecks()
        for server in self.servers:
            server._checks = self.checks
        self.taken_over = 0
        self.refused = 0
        self.written = 0
        self.end: tuple[list[str], bool] = ([], False)
        """Who has stopped, and whether nobody could go on."""
        self._moves = self.world.random("moves")

    def run(self) -> None:
        with self:
            self.begin()
            self.must(self.everybody_has_begun, SERVE_WITHIN, "begin")
            self.run_for(15.0)
            self.world.at(0.0, None, self._move)
            self.world.at(0.0, None, self._write)
            self.run_for(self.seconds)
            self.heal()
            self.must(self.is_settled, 3 * SERVE_WITHIN, "serve or stop")
            self.run_for(MEET_SECONDS)
            self.must(self.is_settled, SERVE_WITHIN, "serve or stop after they met")
            self.check()

    def everybody_has_begun(self) -> bool:
        return all(server.is_serving for server in self.servers)

    # What happens.

    def _move(self) -> None:
        if self.healed:
            return
        kind = self._moves.choice(
            (self._lose, self._lose, self._back, self._cut, self._freeze, self._say, self._say, self._fork, self._fork)
        )
        kind()
        self.world.at(self._moves.expovariate(self.options.faults), None, self._move)

    def _lose(self) -> None:
        up = [server for server in self.servers if server.is_up]
        if len(up) > 1:
            self._moves.choice(up).kill()

    def _back(self) -> None:
        for server in self.servers:
            if not server.is_up and self._moves.random() < 0.5:
                server.start()

    def _cut(self) -> None:
        self.faults._split()

    def _freeze(self) -> None:
        up = [server for server in self.servers if server.is_up]
        if up:
            self._moves.choice(up).freeze(self._moves.choice((5.0, 20.0, 40.0)))

    def _fork(self) -> None:
        """One server is cut off, and an admin who believes that the others are lost lets it go on."""
        server = self._moves.choice(self.servers)
        seconds = self._moves.choice((15.0, 30.0, 60.0))
        others = [other for other in self.servers if other is not server]
        self.world.note(server.name, f"is cut off for {seconds:g} s, and an admin will take it for the last")
        self.faults._cut([way for other in others for way in both(server, other)], seconds)
        for delay in (6.0, 12.0, 25.0):
            if self._moves.random() < 0.5:
                self.world.at(delay, None, self._say_to, server)

    def _say_to(self, server: SimulatedServer) -> None:
        if server.process is not None and server.parts is not None and not self.healed:
            server.process.at(0.0, self._take_over, server, server.parts)

    def _say(self) -> None:
        """An admin at any server that is up says TAKEOVER, now and then to more than one of them."""
        for server in self.servers:
            if self._moves.random() < 0.6:
                self._say_to(server)

    def _take_over(self, server: SimulatedServer, parts: Parts) -> None:
        if not parts.embedded.holds_rows or parts.state.phase not in ("serving", "readonly", "waiting"):
            return

        def done(_: object) -> None:
            self.taken_over += 1
            self.world.note(server.name, "has taken over by hand")

        def refused(failure: Failure) -> None:
            failure.trap(FarmError, TableError)
            self.refused += 1

        parts.by_hand.run(FARM_NAME).addCallbacks(done, refused)

    def _write(self) -> None:
        """Somebody writes through a server, a new key each time."""
        if self.healed:
            return
        servers = [server for server in self.servers if server.parts is not None and server.state == "serving"]
        if servers:
            server = self._moves.choice(servers)
            self.written += 1
            assert server.process is not None and server.parts is not None
            server.process.at(0.0, self._put, server.parts, PREFIX + b"%06d" % self.written)
        self.world.at(WRITE_SECONDS, None, self._write)

    def _put(self, parts: Parts, key: bytes) -> None:
        parts.embedded.transact((), (Put(key, b"x"),)).addErrback(lambda failure: failure.trap(TableError, FarmError))

    # How it ends.

    @property
    def stopped(self) -> list[SimulatedServer]:
        """Those that take part in nothing any more."""
        return [server for server in self.servers if server.parts is not None and server.parts.state.halted]

    @property
    def going_on(self) -> list[SimulatedServer]:
        return [server for server in self.servers if server not in self.stopped]

    def is_settled(self) -> bool:
        """Whether everybody serves or has stopped; if nobody can lead any more, who only follows may wait for ever."""
        if any(server.parts is None for server in self.servers):
            return False
        if self.divided:
            return all(not server.is_serving for server in self.going_on)
        return all(server.is_serving for server in self.going_on) and bool(self.going_on)

    @property
    def divided(self) -> bool:
        """Whether two sides took over without knowing of each other."""
        return any(
            server.parts.history.stopped is not None and server.parts.history.stopped.verdict == "apart"
            for server in self.servers
            if server.parts is not None
        )

    def check(self) -> None:
        """One line goes on, and all who belong to it have kept what they ever committed."""
        self.end = [server.name for server in self.stopped], self.divided
        if self.divided:
            return
        leaders = [server for server in self.going_on if server.parts is not None and server.parts.embedded.is_leader]
        if len(leaders) != 1:
            raise Violation(f"one side goes on: {[server.name for server in leaders]} lead")
        (leader,) = leaders
        assert leader.parts is not None
        kept = {row.key for row in leader.parts.journal.read(PREFIX, b"", 100_000).rows}
        lines = {server.parts.history.said for server in self.going_on if server.parts is not None}
        if len(lines) != 1:
            raise Violation(f"one line: {sorted(map(str, lines))}")
        for server in self.going_on:
            missing = self.checks.applied.get(server.name, set()) - kept
            if missing:
                raise Violation(f"kept: {server.name} had {sorted(missing)[:3]} and more, {len(missing)} keys in all")
        logs: dict[tuple[int, int], Any] = {}
        tables: dict[int, Any] = {}
        for server in self.going_on:
            if server.parts is None:
                continue
            for entry in server.parts.journal.load().entries:
                if logs.setdefault((entry.index, entry.term), entry) != entry:
                    raise Violation(f"log matching: {server.name} has another {entry.index} of term {entry.term}")
            if server.parts.embedded.holds_rows:
                page = server.parts.journal.read(PREFIX, b"", 100_000)
                if tables.setdefault(page.revision, page.rows) != page.rows:
                    raise Violation(f"one table: that of {server.name} at {page.revision} differs")
