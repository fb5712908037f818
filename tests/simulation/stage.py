"""A farm on which a named story is played: faults are made by its script, and time passes until something is so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chunkfarm.table.interface import Compare, Put, TableError
from tests.simulation.checks import Violation
from tests.simulation.farm import SERVE_WITHIN, FarmSimulation, Options
from tests.simulation.servers import SimulatedServer
from tests.simulation.users import PREFIX

STEP = 0.25
"""Seconds between two looks at whether something is so."""


class Stage(FarmSimulation):
    """Use it as a context. Servers are counted from 1; everything that is remembered must be there at the end."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed, Options(servers=0, spares=0, together=False, faults=1.0, slow=0.0, clients=0))
        self._remembered: dict[bytes, bytes] = {}

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, AssertionError):
            raise Violation("\n".join([*self.story, "", str(error)])) from error

    def __getitem__(self, number: int) -> SimulatedServer:
        return self.servers[number - 1]

    # Growing.

    def grow(self, count: int) -> None:
        """Add servers one after the other, until there are so many and all serve."""
        while len(self.servers) < count:
            server = self.add_server()
            if len(self.servers) == 1:
                server.configure(())
                server.start()
            else:
                self.join(server)
            self.serve()

    # Waiting.

    def wait(self, seconds: float) -> None:
        self.run_for(seconds)

    def until(self, so: Callable[[], bool], what: str, seconds: float = SERVE_WITHIN) -> None:
        """Let time pass until it is so."""
        end = self.now + seconds
        while not so():
            if self.now >= end:
                raise Violation(f"liveness: it was not so within {seconds:g} s that {what}")
            self.run_for(STEP)

    def serve(self, *servers: SimulatedServer, seconds: float = SERVE_WITHIN) -> None:
        """Until these servers (all that were started) serve, and a transaction went through each of them."""
        self.users.forget_proofs()
        chosen = servers or tuple(server for server in self.servers if server.lives)
        self.until(
            lambda: all(server.is_serving for server in chosen) and self.users.proved(chosen),
            f"{' '.join(server.name for server in chosen)} serve",
            seconds,
        )

    # Who is who.

    @property
    def leaders(self) -> list[SimulatedServer]:
        """Who leads, in its own eyes."""
        return [server for server in self.servers if server.parts is not None and server.parts.embedded.is_leader]

    @property
    def first(self) -> SimulatedServer:
        """Who leads with a majority that answers."""
        found = [server for server in self.leaders if server.parts and server.parts.embedded.has_quorum]
        assert len(found) == 1, f"{[server.name for server in found]} lead"
        return found[0]

    def voters(self, of: SimulatedServer | None = None) -> set[str]:
        """The names of those who vote."""
        server = of or self.first
        assert server.parts is not None
        names = {one.id: one.name for one in self.servers}
        return {names.get(id, id) for id in server.parts.embedded.configuration.voters}

    # Writing and reading.

    def ask(self, server: SimulatedServer, call: Callable[[Any], Deferred[Any]], seconds: float = 40.0) -> Any:
        """Ask a server's table, and let time pass until it has answered; raises what it fails with."""
        told: list[Any] = []
        assert server.process is not None and server.parts is not None
        table = server.parts.embedded
        server.process.at(0.0, lambda: call(table).addBoth(told.append))
        self.until(lambda: bool(told), f"{server.name} answers", seconds)
        if isinstance(told[0], Failure):
            raise told[0].value if told[0].value is not None else AssertionError
        return told[0]

    def remember(self, server: SimulatedServer, word: str) -> int:
        """Write a word through a server; it is not to be lost. Returns the revision."""
        key = PREFIX + word.encode()
        revision: int = self.ask(server, lambda table: table.transact((), (Put(key, word.encode()),)))
        self._remembered[key] = word.encode()
        return revision

    def try_to_write(self, server: SimulatedServer, word: str, seconds: float = 35.0) -> bool:
        """Whether a word can be written there; if not, it may still be written later."""
        key = PREFIX + b"tried " + word.encode()
        try:
            self.ask(server, lambda table: table.transact((Compare(key, "==", 0),), (Put(key, b"x"),)), seconds)
        except TableError:
            return False
        return True

    def check_memory(self) -> None:
        """Everything that was remembered is there, whoever is asked."""
        for server in self.servers:
            if server.is_serving:
                page = self.ask(server, lambda table: table.read(PREFIX))
                found = {row.key: row.value for row in page.rows}
                lost = {key: word for key, word in self._remembered.items() if found.get(key) != word}
                assert not lost, f"{server.name} has lost {lost}"

    def end(self) -> None:
        """All serve, and nothing is lost."""
        self.serve()
        self.check_memory()
        # Every config.ini is written within seconds.
        self.wait(5.0)
        self.finished()
