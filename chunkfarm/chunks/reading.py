"""One chunk from whichever server has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.patience import Attempt, Patience, reason_of
from chunkfarm.errors import Busy, NotFound
from chunkfarm.model import Server


class ChunkUnavailable(Busy):
    """Servers that may hold the chunk did not answer; the same request may succeed later."""


class ChunkFetch:
    """Asks one server after the other until one gives the chunk; does not wait for a late one alone.

    `get` fetches from a server and fails if the bytes are not the chunk. `result` fires with the bytes of the
    first that succeeds and the others are given up. It fails with `NotFound` if every server answered that
    it has no such chunk, else with `ChunkUnavailable`.
    """

    _log = Logger()

    def __init__(
        self,
        digest: bytes,
        servers: Iterable[Server],
        get: Callable[[Server], Deferred[bytes]],
        clock: IReactorTime,
        patience: Patience,
    ) -> None:
        self.result: Deferred[bytes] = Deferred(lambda _: self._stop())
        self._digest = digest
        self._line = iter(patience.suspects_last(servers))
        self._get = get
        self._clock = clock
        self._patience = patience
        self._running: dict[str, Attempt] = {}
        self._failures: list[str] = []
        self._choosing = False
        self._again = False

    def start(self) -> None:
        """Ask the first server."""
        self._go_on()

    def _go_on(self) -> None:
        # A loop, not a recursion: a hundred servers may refuse at once.
        self._again = True
        if self._choosing:
            return
        self._choosing = True
        while self._again and not self.result.called:
            self._again = False
            if all(attempt.late for attempt in self._running.values()):
                server = next(self._line, None)
                if server is not None:
                    self._begin(server)
                elif not self._running:
                    self._nobody_left()
        self._choosing = False

    def _begin(self, server: Server) -> None:
        attempt = Attempt(server, self._clock.seconds(), self._get(server))
        self._running[server.id] = attempt
        attempt.watch(self._clock, self._patience, self._go_on)
        attempt.result.addCallbacks(
            lambda data: self._done(attempt, data), lambda failure: self._failed(attempt, failure)
        )

    def _done(self, attempt: Attempt, data: bytes) -> None:
        if self._end(attempt):
            self._patience.succeeded(attempt.server.id, self._clock.seconds() - attempt.began)
            self._stop()
            self.result.callback(data)

    def _failed(self, attempt: Attempt, failure: Failure) -> None:
        if not self._end(attempt):
            return
        if not failure.check(NotFound):
            self._patience.suspect(attempt.server.id)
            self._failures.append(f"{attempt.server.name}: {reason_of(failure)}")
            self._log.info(
                "chunk {digest} could not be had from {server}: {reason}",
                digest=self._digest.hex(),
                server=attempt.server.name,
                reason=reason_of(failure),
            )
        self._go_on()

    def _end(self, attempt: Attempt) -> bool:
        """Whether the answer that has come still matters."""
        attempt.stop_watching()
        return self._running.pop(attempt.server.id, None) is not None

    def _nobody_left(self) -> None:
        name = self._digest.hex()
        if self._failures:
            self.result.errback(ChunkUnavailable(f"chunk {name} cannot be had now: {'; '.join(self._failures)}"))
        else:
            self.result.errback(NotFound(f"no server has the chunk {name}"))

    def _stop(self) -> None:
        running, self._running = self._running, {}
        for attempt in running.values():
            attempt.stop_watching()
            attempt.result.cancel()
