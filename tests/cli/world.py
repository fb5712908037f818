"""A farm in memory and the command line before it: no reactor, no sockets, no waiting."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field
from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock

from chunkfarm.chunks.transfer import ChunkReceipt
from chunkfarm.cli.commands import chunkfarm
from chunkfarm.cli.farm import Dial
from chunkfarm.cli.surroundings import Main, Surroundings
from chunkfarm.config import Config, Listed
from chunkfarm.links.lines import LineClient
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.keys import KeyPair, write_key_file
from tests.links.line_pair import LinePair
from tests.memory_table import MemoryTable
from tests.ports.fakes import MemoryBackend, MemoryTransfer

CONFIG = """\
[farm]
chunksize = 4K
name = lab
id = {farm}
generation = 3
ca = sha256:{ca}

[servers]
alpha = 2026-11-22T10:00:00.123Z 10.0.0.1 4100 4101 4102 up {alpha}
beta = 2026-11-22T10:00:01.123Z 10.0.0.2 4100 4101 4102 up {beta}

[server]
data = data
"""


class CountedTransfer:
    """A server's transfer, which a test can break after some chunks."""

    def __init__(self, inner: MemoryTransfer) -> None:
        self.inner = inner
        self.written: list[bytes] = []
        self.fatal: Callable[[int], bool] = lambda count: False
        self.delay: Callable[[int], Deferred[None]] = lambda count: succeed(None)
        self.on_fatal: Callable[[], None] = lambda: None

    def write(self, data: bytes, digest: bytes) -> Deferred[ChunkReceipt]:
        self.written.append(digest)
        if self.fatal(len(self.written)):
            self.on_fatal()
            return Deferred()
        return self.delay(len(self.written)).addCallback(lambda _: self.inner.write(data, digest))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@define
class Server:
    """One server of the farm in memory."""

    backend: MemoryBackend
    transfer: CountedTransfer
    refuses: bool = False
    frozen: bool = False
    """Its links are open, and it says nothing more."""
    pairs: list[LinePair] = field(factory=list)

    def die(self) -> None:
        """Lose all links, and accept no more."""
        self.refuses = True
        for pair in self.pairs:
            pair.server_transport.loseConnection()


class World:
    """Two servers with one table and one store, a `config.ini`, a key, and a way to run commands."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True)
        (self.directory / "data").mkdir()
        self.config = self.directory / "config.ini"
        self.config.write_text(CONFIG.format(farm="fa" * 16, ca="3a" * 32, alpha="5e" * 16, beta="0f" * 16))
        self.home = self.directory / "user"
        self.environment: dict[str, str] = {}
        self.write_key(self.directory / "data" / "admin.key")
        self.said: dict[str, dict[str, str]] = {}
        """What servers say to HELLO, by name; the others refuse."""
        self.clock = Clock()
        self.now_ms = 0
        """This machine's time of day."""
        self.dialled: list[str] = []
        self.probed: list[str] = []
        self.waited: list[tuple[float, str]] = []
        """What people were told of why nothing moves, and when."""
        self.on_idle: list[Callable[[], None]] = []
        self._has_run = False
        shared = MemoryBackend()
        self.table = MemoryTable()
        self.catalog = shared.catalog
        self.chunks = shared.store.chunks
        self.servers: dict[str, Server] = {}
        for name in ("alpha", "beta"):
            backend = MemoryBackend()
            backend.catalog, backend.store = shared.catalog, shared.store
            transfer = CountedTransfer(shared.transfer)
            backend.transfer = transfer  # type: ignore[assignment]
            backend.table = self.table
            backend.state.chunksize = 4096
            backend.state.name = name
            self.servers[name] = Server(backend, transfer)

    def write_key(self, path: Path, key: str = "admin") -> None:
        """A key file."""
        write_key_file(path, KeyPair(key, "secret"))

    def dial_with(
        self, reactor: Any, config: Config, key: KeyPair | Identity, timeout: float, now_ms: Callable[[], int]
    ) -> Dial:
        async def dial(listed: Listed) -> LineClient:
            self.dialled.append(listed.name)
            server = self.servers[listed.name]
            if server.refuses:
                raise ConnectionRefusedError()
            pair = LinePair(backend=server.backend)
            server.pairs.append(pair)
            await pair.client.say_hello()
            assert isinstance(key, KeyPair)
            await pair.client.auth(key.id, key.secret)
            return pair.client

        return lambda listed: Deferred.fromCoroutine(dial(listed))

    def probe(self, listed: Listed) -> Deferred[object]:
        self.probed.append(listed.name)
        server = self.servers[listed.name]
        return fail(ConnectionRefusedError()) if server.frozen or server.refuses else succeed(None)

    def greet(self, listed: Listed) -> Deferred[Mapping[str, str]]:
        said = self.said.get(listed.name)
        return succeed(said) if said is not None else fail(ConnectionRefusedError())

    def react(self, main: Main) -> None:
        """Run until it is done, and let time pass when nothing else does."""
        assert not self._has_run, "a reactor runs once in a process"
        self._has_run = True
        done = main(self.clock)
        for _ in range(2000):
            for server in self.servers.values():
                for pair in server.pairs:
                    pair.pump.flush()
            if done.called:
                break
            if self.on_idle:
                self.on_idle.pop(0)()
                continue
            self.clock.advance(0.1)
            for server in self.servers.values():
                for pair in server.pairs:
                    pair.clock.advance(0.1)
        assert done.called, "the command does not end"

    def surroundings(self) -> Surroundings:
        """What a command finds here."""
        self._has_run = False
        return Surroundings(
            react=self.react,
            probe_with=lambda reactor: self.probe,
            greet_with=lambda reactor: self.greet,
            dial_with=self.dial_with,
            in_thread=lambda reactor: _at_once,
            environment=self.environment,
            home=self.home,
            now_ms=lambda: self.now_ms,
            on_wait=lambda why: self.waited.append((self.clock.seconds(), why)),
        )

    def run(self, *arguments: str, input: bytes = b"") -> Result:
        """Run the command."""
        before = os.getcwd()
        os.chdir(self.directory)
        try:
            return CliRunner().invoke(
                chunkfarm, ["--config", str(self.config), *arguments], obj=self.surroundings(), input=input
            )
        finally:
            os.chdir(before)


def _at_once(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
    return maybeDeferred(function, *args, **kwargs)
