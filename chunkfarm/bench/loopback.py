"""TCP and TLS between two processes of this machine, by the transport that servers and clients use."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, cast

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.python.failure import Failure

from chunkfarm.bench.bounds import MIB, median
from chunkfarm.bench.sink import HOST, LENGTH
from chunkfarm.drill.servers import environment
from chunkfarm.errors import FarmError
from chunkfarm.trust.contexts import Contexts
from chunkfarm.wire.pump import pump
from chunkfarm.wire.transport import connect

PIECE = 256 * 1024
"""As servers and clients write."""
ROUND_TRIPS = 200
START_SECONDS = 20.0
TOLD_MAX = 64


class NoSink(FarmError):
    """The process that takes in bytes did not start, or ended."""


class _Process(ProcessProtocol):
    """Waits for the ports that the process tells."""

    def __init__(self) -> None:
        self.told: Deferred[bytes] = Deferred()
        self._said = b""
        self._mistake = b""

    def outReceived(self, data: bytes) -> None:
        self._said += data
        if self._said.endswith(b"\n") and not self.told.called:
            self.told.callback(self._said)

    def errReceived(self, data: bytes) -> None:
        self._mistake = (self._mistake + data)[-500:]

    def processEnded(self, reason: Failure) -> None:
        if not self.told.called:
            last = self._mistake.decode(errors="replace").strip().splitlines()[-1:]
            self.told.errback(NoSink(f"a process of this benchmark did not start: {' '.join(last)}"))


@define(eq=False)
class SinkProcess:
    """That process, started by `start` and ended by `end`."""

    reactor: Any
    ports: tuple[int, int] = field(default=(0, 0), init=False)
    """Of TCP, and of TLS."""
    _process: _Process = field(factory=_Process, init=False)

    async def start(self) -> None:
        """Raises `NoSink`."""
        program = "from chunkfarm.bench.sink import main; main()"
        arguments = [sys.executable, "-c", program]
        self.reactor.spawnProcess(self._process, sys.executable, arguments, env=environment(os.environ))
        try:
            told = await self._process.told.addTimeout(START_SECONDS, self.reactor)
        except TimeoutError:
            raise NoSink("a process of this benchmark did not start in time") from None
        plain, secure = told.split()
        self.ports = int(plain), int(secure)

    def end(self) -> None:
        """Harmless the second time."""
        process = self._process.transport
        if process is not None:
            with contextlib.suppress(ProcessExitedAlready):
                process.signalProcess("KILL")


class _Sender(Protocol):
    """Sends lengths and bytes, and waits until they are taken."""

    def __init__(self) -> None:
        self._waiting: Deferred[None] | None = None

    def send(self, size: int, piece: bytes) -> Deferred[None]:
        """Send so many bytes; fires when the other side has them."""
        transport = cast(Any, self.transport)
        waiting: Deferred[None] = Deferred()
        self._waiting = waiting
        transport.write(LENGTH.pack(size))
        if size <= len(piece):
            transport.write(piece[:size])
        else:
            pump(_Pieces(piece, size), transport).addErrback(lambda _: None)
        return waiting

    def dataReceived(self, data: bytes) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.errback(NoSink("a connection of this benchmark ended early"))


class _Pieces:
    """The same piece over and over."""

    def __init__(self, piece: bytes, size: int) -> None:
        self._piece = memoryview(piece)
        self._left = size

    def next(self) -> Deferred[bytes | memoryview | None]:
        part = self._piece[: min(self._left, len(self._piece))]
        self._left -= len(part)
        return succeed(part if len(part) else None)

    def close(self) -> None:
        self._left = 0


async def measure(reactor: Any, port: int, tls: bool, size: int, seconds: Callable[[], float]) -> tuple[float, float]:
    """Bytes a second to the sink, and the median of round trips in milliseconds. Raises `NoSink` and `ConnectError`."""
    context = Contexts().client_factory() if tls else None
    sender = cast(_Sender, await connect(reactor, HOST, port, Factory.forProtocol(_Sender), context))
    try:
        piece = os.urandom(PIECE)
        await sender.send(MIB, piece)
        times = []
        for _ in range(ROUND_TRIPS):
            begun = seconds()
            await sender.send(1, piece)
            times.append(seconds() - begun)
        begun = seconds()
        await sender.send(size, piece)
        return size / (seconds() - begun), 1000 * median(times)
    finally:
        cast(Any, sender.transport).abortConnection()
