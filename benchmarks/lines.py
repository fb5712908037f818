"""The line protocol: cutting lines out of reads, whole commands, and one change told to thousands of watchers.

    python -m benchmarks.lines [--rounds 5] [--watchers 1000 5000] [--only framing|commands|watchers]

Run it in the checkout. Each figure is the median of the rounds, in seconds of processor time of the one thread
that does it all (nothing here waits for anything else), so that other work on the machine shows less. What is
compared takes turns; absolute figures depend on the machine: read the ratios.

Framing: `wire.lines.LineBuffer` beside Twisted's `LineReceiver`, fed reads of several sizes; "split alone" is
`bytes.split` on the whole read and a loop over it, without a limit, a payload or a line that ends in the next read,
below which nobody comes. Commands: PING
pipelined through a whole connection of the client port, whose answers go nowhere. Watchers: connections over
127.0.0.1 whose other ends are in a process of their own, which reads between the rounds only; the time is from
the change until the kernel has taken the line of every watcher. "line" writes one line of 200 bytes to each, and
"send alone" is that with nothing but the system call, below which nobody comes; "change" is all of WATCH: a row is
put into a table in memory, and each watcher's link writes its event.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table as Screen
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater, react
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.protocols.basic import LineReceiver

from chunkfarm.config_values import ListenDescription
from chunkfarm.limits import Limits
from chunkfarm.model import KIB, File
from chunkfarm.ports.client import ClientFactory
from chunkfarm.wire.lines import LineBuffer
from chunkfarm.wire.transport import listen
from tests.memory_table import MemoryTable
from tests.ports.fakes import MemoryBackend

READ_SIZES = (16 * KIB, 256 * KIB, 1024 * KIB)
LINE = b"STAT home/photos/2026/11/0042.jpg\r\n"
PING = b"PING\r\n"
EVENT_BYTES = 200
SIZES = itertools.count(1_000_000)
"""Of the file that changes: no two events are the same."""
OPEN_FILES_BESIDE = 200
"""Descriptors that a process needs beside two for each watcher."""


def median(rounds: int, *calls: Callable[[], None]) -> list[float]:
    """Seconds of each call, which take turns."""
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, samples, strict=True):
            begun = time.thread_time()
            call()
            seconds.append(time.thread_time() - begun)
    return [statistics.median(seconds) for seconds in samples]


class CountingReceiver(LineReceiver):
    """Stock framing."""

    seen = 0

    def lineReceived(self, line: bytes) -> None:
        self.seen += 1


def framing(rounds: int) -> None:
    names = ("read", "LineReceiver, us a line", "own, us a line", "own, lines/s", "ratio", "split alone, us a line")
    screen = Screen(*names, title="framing")
    for size in READ_SIZES:
        count = size // len(LINE)
        data = LINE * count

        def stock(data: bytes = data, count: int = count) -> None:
            receiver = CountingReceiver()
            receiver.dataReceived(data)
            assert receiver.seen == count

        def own(data: bytes = data, count: int = count) -> None:
            buffer = LineBuffer()
            buffer.feed(data)
            seen = 0
            while buffer.line() is not None:
                seen += 1
            assert seen == count

        def bare(data: bytes = data, count: int = count) -> None:
            seen = 0
            for _ in data.split(b"\r\n"):
                seen += 1
            assert seen == count + 1

        theirs, ours, alone = median(rounds, stock, own, bare)
        screen.add_row(
            f"{size // KIB} KiB",
            f"{theirs / count * 1e6:.2f}",
            f"{ours / count * 1e6:.2f}",
            f"{count / ours:,.0f}",
            f"{theirs / ours:.1f}x",
            f"{alone / count * 1e6:.2f}",
        )
    Console().print(screen)


class Nowhere(StringTransport):
    """Takes all that is written, and keeps none of it."""

    accepts_memoryview = True
    taken = 0

    def write(self, data: bytes) -> None:
        self.taken += len(data)


def commands(rounds: int) -> None:
    screen = Screen("read", "PING, us each", "PING/s", title="commands through a whole connection")
    for size in READ_SIZES:
        count = size // len(PING)

        def own(data: bytes = PING * count, count: int = count) -> None:
            protocol: Any = ClientFactory(_backend(), Clock()).buildProtocol(None)
            transport = Nowhere()
            transport.peerAddr = _Loopback()
            protocol.makeConnection(transport)
            protocol.dataReceived(data)
            assert transport.taken == count * len("OK\r\n")

        (ours,) = median(rounds, own)
        screen.add_row(f"{size // KIB} KiB", f"{ours / count * 1e6:.1f}", f"{count / ours:,.0f}")
    Console().print(screen)


class _Loopback:
    host = "127.0.0.1"


def _backend() -> Any:
    return MemoryBackend()


# --- watchers ------------------------------------------------------------------------------------------


class Sink(Protocol):
    """A link that only writes."""

    def connectionMade(self) -> None:
        owner: Any = self.factory
        owner.links.append(self)


class SinkFactory(Factory):
    noisy = False
    protocol = Sink

    def __init__(self) -> None:
        self.links: list[Sink] = []

    def buildProtocol(self, addr: IAddress | None) -> Sink:
        link = Sink()
        link.factory = self
        return link


class Audience:
    """Watchers in a process of their own, on one listening port."""

    def __init__(self, port: Any, count: int, opening: str, transports: Callable[[], list[Any]]) -> None:
        self._port = port
        self._count = count
        self._transports = transports
        command = [sys.executable, "-m", "benchmarks.lines", "--watch", str(port.getHost().port), str(count), opening]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._ready = False

    async def ready(self) -> None:
        """All have connected, and said their opening."""
        if self._ready:
            return
        self._ready = True
        await deferToThread(self._hear)
        while len(self._transports()) < self._count:
            await deferLater(_clock(), 0.05)

    async def time(self, change: Callable[[], None]) -> float:
        """Seconds from before the change until the kernel has all that was written."""
        transports = self._transports()
        # The turn that was begun before is over, and nothing else waits.
        await deferLater(_clock(), 0.2)
        begun = time.thread_time()
        change()
        while True:
            await deferLater(_clock(), 0)
            ended = time.thread_time()
            if not any(map(_waits, transports)):
                break
        await deferToThread(self._drain)
        return ended - begun

    def _hear(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == b"ready"

    def _drain(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"drain\n")
        self._process.stdin.flush()
        self._hear()

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await deferToThread(self._process.wait)
        await self._port.stopListening()
        for transport in self._transports():
            transport.abortConnection()


def _clock() -> Any:
    return _reactor


def _waits(transport: Any) -> bool:
    """Whether bytes wait in a transport, ours or a stock one."""
    if hasattr(transport, "queued"):
        return bool(transport.queued)
    return bool(transport.dataBuffer or transport._tempDataBuffer)


def watch(port: int, count: int, opening: str) -> None:
    """The other ends: open them, say the opening, then read everything whenever told so."""
    links = []
    for _ in range(count):
        link = socket.create_connection(("127.0.0.1", port))
        link.sendall(opening.encode().decode("unicode_escape").encode())
        links.append(link)
    expected = opening.count("\\n")
    for link in links:
        heard = b""
        while heard.count(b"\n") < expected:
            heard += link.recv(4096)
    print("ready", flush=True)
    for _ in sys.stdin:
        for link in links:
            link.setblocking(True)
            data = link.recv(65536)
            assert data.endswith(b"\n"), data
            link.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while link.recv(65536):
                    pass
        print("ready", flush=True)


def stock_port(protocols: Factory) -> Any:
    reactor: Any = _reactor
    return reactor.listenTCP(0, protocols, backlog=4096, interface="127.0.0.1")


def own_port(protocols: Factory) -> Any:
    return listen(_reactor, ListenDescription("tcp", 0, "127.0.0.1"), protocols)


Measured = tuple[Audience, Callable[[], None]]


async def in_turns(measured: list[Measured], rounds: int) -> list[float]:
    """The median of the seconds of each, which take turns."""
    for audience, _ in measured:
        await audience.ready()
    samples: list[list[float]] = [[] for _ in measured]
    for _ in range(rounds):
        for (audience, change), seconds in zip(measured, samples, strict=True):
            seconds.append(await audience.time(change))
    for audience in dict.fromkeys(audience for audience, _ in measured):
        await audience.close()
    return [statistics.median(seconds) for seconds in samples]


def lines_to(count: int) -> list[Measured]:
    """Writes one line to each of `count` links: on stock transports, on ours, and by nothing but the system call."""
    text = b"x" * (EVENT_BYTES - 1) + b"\n"
    measured: list[Measured] = []
    for make in (stock_port, own_port):
        sinks = SinkFactory()

        def transports(sinks: SinkFactory = sinks) -> list[Any]:
            return [link.transport for link in sinks.links]

        def change(sinks: SinkFactory = sinks) -> None:
            for link in sinks.links:
                link.transport.write(text)  # type: ignore[union-attr]

        measured.append((Audience(make(sinks), count, "", transports), change))

    def bare(sinks: SinkFactory = sinks) -> None:
        for link in sinks.links:
            link.transport.socket.send(text)  # type: ignore[union-attr]

    return [*measured, (measured[-1][0], bare)]


def changes_to(count: int) -> list[Measured]:
    """Puts a row of which `count` watchers are told: on stock transports, on ours."""
    measured: list[Measured] = []
    for make in (stock_port, own_port):
        backend = MemoryBackend()
        backend.state.revision = 0
        backend.table = table = MemoryTable()
        inside: Any = backend
        # A server takes fewer from one address, and nobody has five thousand addresses at hand.
        many = Limits(client_connections=2 * count, client_connections_address=2 * count, client_reserved=0)
        clients = ClientFactory(inside, _clock(), limits=many)

        def transports(clients: ClientFactory = clients) -> list[Any]:
            return [one.transport for one in clients.connections]

        def change(table: MemoryTable = table) -> None:
            size = next(SIZES)
            file = File(name="home/photos/2026/11/0042.jpg", size=size, chunk_size=8 * 1024 * KIB, etag="e" * 32)
            table.put(file.key, file.to_value())

        opening = "AUTH reader secret\\nWATCH files/ 0\\n"
        measured.append((Audience(make(clients), count, opening, transports), change))
    return measured


async def watchers(counts: list[int], rounds: int) -> None:
    screen = Screen("watchers", "what", "stock, ms", "own, ms", "ratio", "send alone, ms", title="one change to all")
    for count in counts:
        for what, measure in (("line", lines_to), ("change", changes_to)):
            theirs, ours, *alone = await in_turns(measure(count), rounds)
            screen.add_row(
                f"{count:,}",
                what,
                f"{theirs * 1e3:.1f}",
                f"{ours * 1e3:.1f}",
                f"{theirs / ours:.1f}x",
                *(f"{seconds * 1e3:.1f}" for seconds in alone),
            )
    Console().print(screen)


def main() -> None:
    if sys.argv[1:2] == ["--watch"]:
        watch(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description="Measure the line protocol.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--watchers", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--only", choices=["framing", "commands", "watchers"])
    options = parser.parse_args()
    if options.only in (None, "framing"):
        framing(options.rounds)
    if options.only in (None, "commands"):
        commands(options.rounds)
    if options.only in (None, "watchers"):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * max(options.watchers) + OPEN_FILES_BESIDE
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))

        def run(reactor: Any) -> Deferred[None]:
            return ensureDeferred(watchers(options.watchers, options.rounds))

        react(run)


if __name__ == "__main__":
    main()
