"""One chunk on its way to the servers it belongs on."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.patience import COPY_TIMEOUT, Attempt, Patience, reason_of
from chunkfarm.errors import FarmError, Full, ReadOnly
from chunkfarm.model import Server

RETRY_AFTER = 1.0
"""Seconds between tries while too few servers take the chunk."""
WRITE_PATIENCE = 15.0
"""Seconds after which a write that too few servers take fails. A dead server is called down after 5, and then
fewer copies are required or other servers are chosen: a writer rides over that. While a late copy may still come it
is longer by `COPY_TIMEOUT`."""


@frozen
class Plan:
    """Whom a chunk should go to now: `line` in order, `wanted` copies, `required` before it is acknowledged."""

    line: tuple[Server, ...]
    wanted: int
    required: int
    full: tuple[Server, ...]
    """Servers that would be asked if they were not full."""


@frozen
class _Refusal:
    name: str
    reason: str
    full: bool


class ChunkWrite:
    """Copies a chunk to servers until it has all its copies, in parallel; the next server replaces a late one.

    `put` stores the chunk on a server. `plan` is asked anew whenever a server is chosen, so that the write
    follows the server table. `acknowledged` fires with the holders as soon as the required copies are
    durable, or fails with `Full` or `ReadOnly`; cancelling it gives everything up. The remaining copies go
    on after it, until `settled`.
    """

    _log = Logger()

    def __init__(
        self,
        digest: bytes,
        plan: Callable[[], Plan],
        put: Callable[[Server], Deferred[object]],
        clock: IReactorTime,
        patience: Patience,
    ) -> None:
        self.holders: list[str] = []
        self.settled = False
        self.acknowledged: Deferred[tuple[str, ...]] = Deferred(lambda _: self.give_up())
        self._digest = digest
        self._plan = plan
        self._put = put
        self._clock = clock
        self._patience = patience
        self._began = clock.seconds()
        self._running: dict[str, Attempt] = {}
        self._failures: dict[str, _Refusal] = {}
        self._wanted = 0
        self._choosing = False
        self._again = False
        self._retry: IDelayedCall | None = None
        self._waiting: list[Deferred[None]] = []

    def start(self) -> None:
        """Choose the servers and begin."""
        self._go_on()

    def give_up(self) -> None:
        """Drop what is still under way; whoever takes care of the chunks later finds what is missing."""
        self._settle()

    def when_settled(self) -> Deferred[None]:
        """Fires when nothing of this write is under way any more and its bytes can be let go."""
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        if self.settled:
            waiting.callback(None)
        else:
            self._waiting.append(waiting)
        return waiting

    @property
    def is_short(self) -> bool:
        """Whether it has fewer copies than it should have, as far as the last plan knew."""
        return len(self.holders) < self._wanted

    def _go_on(self) -> None:
        """Whatever has happened: see what it means, and do what is to be done next."""
        # A copy may end while servers are still being chosen: then the choice is made once more.
        self._again = True
        if self._choosing:
            return
        self._choosing = True
        try:
            while self._again and not self.settled:
                self._again = False
                self._choose(self._plan())
        finally:
            self._choosing = False

    def _choose(self, plan: Plan) -> None:
        self._wanted = plan.wanted
        if len(self.holders) >= plan.required and not self.acknowledged.called:
            self.acknowledged.callback(tuple(self.holders))
        if len(self.holders) >= plan.wanted and self.acknowledged.called:
            self._settle()
        for server in self._patience.suspects_last(plan.line):
            expected = len(self.holders) + sum(not attempt.late for attempt in self._running.values())
            if self.settled or expected >= max(plan.wanted, plan.required):
                return
            if server.id not in self._running and server.id not in self._failures and server.id not in self.holders:
                self._begin(server)
        if all(attempt.late for attempt in self._running.values()) and not self._again and not self.settled:
            self._nobody_left(plan)

    def _begin(self, server: Server) -> None:
        attempt = Attempt(server, self._clock.seconds(), self._put(server))
        self._running[server.id] = attempt
        attempt.watch(self._clock, self._patience, self._go_on)
        attempt.result.addCallbacks(lambda _: self._done(attempt), lambda failure: self._failed(attempt, failure))

    def _done(self, attempt: Attempt) -> None:
        if self._end(attempt):
            self.holders.append(attempt.server.id)
            self._patience.succeeded(attempt.server.id, self._clock.seconds() - attempt.began)
            self._go_on()

    def _failed(self, attempt: Attempt, failure: Failure) -> None:
        if not self._end(attempt):
            return
        # Only the words are kept: a failure holds on to its frames, and they to the chunk.
        full = failure.check(Full) is not None
        self._failures[attempt.server.id] = _Refusal(attempt.server.name, reason_of(failure), full)
        if not full:
            self._patience.suspect(attempt.server.id)
        self._log.info(
            "no copy of chunk {digest} on {server}: {reason}",
            digest=self._digest.hex(),
            server=attempt.server.name,
            reason=reason_of(failure),
        )
        self._go_on()

    def _end(self, attempt: Attempt) -> bool:
        """Whether the copy that has ended still matters."""
        attempt.stop_watching()
        return self._running.pop(attempt.server.id, None) is not None

    def _nobody_left(self, plan: Plan) -> None:
        if self.acknowledged.called:
            if not self._running:
                self._settle()
            return
        failures = self._failures.values()
        too_full = len(plan.line) < plan.required and plan.full
        if not self._running and (failures or too_full) and all(failure.full for failure in failures):
            self._fail(Full(f"there is no room for another chunk: {self._sentence(plan)}"))
        elif self._clock.seconds() - self._began >= WRITE_PATIENCE + (COPY_TIMEOUT if self._running else 0):
            self._fail(ReadOnly(f"too few servers take chunks now: {self._sentence(plan)}"))
        elif self._retry is None:
            self._retry = self._clock.callLater(RETRY_AFTER, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._failures.clear()
        self._go_on()

    def _sentence(self, plan: Plan) -> str:
        reasons = [
            f"{refusal.name}: {refusal.reason.removeprefix(f'{refusal.name}: ')}" for refusal in self._failures.values()
        ]
        reasons += [f"{server.name}: it is full" for server in plan.full if server.id not in self._failures]
        why = "; ".join(reasons) or "no server that stores chunks is up"
        return f"{len(self.holders)} of {plan.required} required copies were stored ({why})"

    def _fail(self, error: FarmError) -> None:
        acknowledged = self.acknowledged
        self._settle()
        acknowledged.errback(error)

    def _settle(self) -> None:
        if self.settled:
            return
        self.settled = True
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        running, self._running = self._running, {}
        for attempt in running.values():
            attempt.stop_watching()
            attempt.result.cancel()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)
