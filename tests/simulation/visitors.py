"""People at simulated client ports: they come over the network, show the admin key, ask, change and watch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.python.failure import Failure

from chunkfarm.errors import FarmError
from chunkfarm.links.lines import LineClient, connect
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import Address
from chunkfarm.table.interface import IWatch, TableError
from tests.simulation.servers import PEER_PORT
from tests.simulation.users import PREFIX
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.farm import FarmSimulation

VISIT_SECONDS = 12.0
"""After which a visitor who is still waiting goes elsewhere."""
PAUSE_SECONDS = 1.0
EXPECTED = (FarmError, TableError, LinkFailed, ConnectError, ConnectionLost)


class Visitors:
    """One machine with people on it."""

    def __init__(self, farm: FarmSimulation) -> None:
        self.visits = 0
        self.answers = 0
        """Commands that were answered with what was asked for."""
        self.changed = 0
        self._farm = farm
        self._random = farm.world.random("visitors")
        self._process = Process(farm.world, "visitors", "10.0.1.1", lambda how: None)
        self._stopped = False
        self._reactor: Any = self._process.reactor

    def begin(self) -> None:
        self._process.at(4.0, self._come)

    def finish(self) -> None:
        self._stopped = True

    def _key(self) -> str:
        """The line of the admin key, as its owner has it from the first server."""
        for server in self._farm.servers:
            path = server.folder / "data" / "admin.key"
            if path.exists():
                return path.read_text().strip()
        return ""

    def _come(self) -> None:
        if self._stopped:
            return
        server = self._random.choice(self._farm.servers)
        going = Deferred.fromCoroutine(self._visit(Address(server.host, PEER_PORT - 1), server.name))
        going.addTimeout(VISIT_SECONDS, self._reactor, onTimeoutCancel=lambda value, seconds: None)
        going.addErrback(self._failed)
        going.addBoth(lambda _: self._process.at(self._random.expovariate(1 / PAUSE_SECONDS), self._come))

    def _failed(self, failure: Failure) -> None:
        if not failure.check(*EXPECTED):
            self._farm.fail(failure.value)

    async def _visit(self, address: Address, name: str) -> None:
        client = await connect(self._process.reactor, address, tls=self._no_tls(), dial=self._farm.network.connect)
        try:
            key = self._key()
            if not key:
                return
            self.visits += 1
            await client.auth(*key.split())
            await self._random.choice((self._look, self._change, self._watch))(client, name)
        finally:
            client.lose()

    def _no_tls(self) -> Any:
        return object()

    async def _look(self, client: LineClient, name: str) -> None:
        for command in ("SERVERS", "WHO", "STATUS", "PING"):
            await client.request(command)
            self.answers += 1

    async def _change(self, client: LineClient, name: str) -> None:
        await client.request(f"SET farm replicas={self._random.randrange(1, 5)}")
        self.changed += 1

    async def _watch(self, client: LineClient, name: str) -> None:
        """From now on, which is after what has been seen by then."""
        reply = client.hello
        assert reply is not None
        after = int(next(word for word in reply.text.split() if word.startswith("revision=")).partition("=")[2])
        watch: IWatch = await client.watch(PREFIX, after)
        for _ in range(10):
            batch = await watch.next()
            self._farm.users.check_batch(f"the client port of {name}", after, batch)
            after = max(after, batch.revision)
            self.answers += 1
