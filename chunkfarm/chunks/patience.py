"""How long another server is waited for, and which ones are asked last for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from chunkfarm.model import Server

HEDGE_TIMEOUT = 1.5
"""Seconds after which a copy that has not come is asked of the next server too: well above what a chunk takes
on a quiet network (0.1 s at 1 Gbit/s), well below what a person takes for a stall."""
HEDGE_TIMEOUT_MAX = 10.0
"""However slow everything is: a silent server is not waited for longer."""
HEDGE_FACTOR = 3
"""A copy is late if it takes this many times what copies took of late. On a slow or crowded network every copy
takes long, and asking for more of them would only make it worse."""
SUSPECT_FOR = 10.0
"""Seconds that a server which failed is asked last. The table says it is down after 5."""

SILENT_FOR = 10.0
"""Seconds in which a server that did not answer is not waited for again at full length, by who asks every server."""
AGAIN_TIMEOUT = 1.0
"""It is asked about one chunk first, which takes a disk some milliseconds, and about all if it answers that in time."""

COPY_TIMEOUT = 60.0
"""Seconds after which one copy is given up: the largest chunk in this time is 9 Mbit/s."""

_WEIGHT_OF_THE_LATEST = 0.125


class Patience:
    """What the last copies say about the next ones. One for each server process."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._typical = 0.0
        self._suspects: dict[str, float] = {}

    @property
    def hedge_timeout(self) -> float:
        """Seconds to wait for a copy before another server is asked as well."""
        return min(max(HEDGE_TIMEOUT, HEDGE_FACTOR * self._typical), HEDGE_TIMEOUT_MAX)

    def succeeded(self, server: str, seconds: float) -> None:
        """A copy came from or went to `server` in this time."""
        self._typical += (seconds - self._typical) * _WEIGHT_OF_THE_LATEST
        self._suspects.pop(server, None)

    def suspect(self, server: str) -> None:
        """`server` failed or was late: ask it last for a while."""
        self._suspects[server] = self._clock.seconds() + SUSPECT_FOR

    def suspects_last(self, servers: Iterable[Server]) -> tuple[Server, ...]:
        """The same servers in the same order, but those that failed a moment ago behind the others."""
        now = self._clock.seconds()
        self._suspects = {server: until for server, until in self._suspects.items() if until > now}
        return tuple(sorted(servers, key=lambda server: server.id in self._suspects))


class Silences:
    """Which servers did not answer the last time. One for each server process."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def note(self, server: str) -> None:
        """`server` did not answer."""
        self._since[server] = self._clock.seconds()

    def heard(self, server: str) -> None:
        """`server` answered."""
        self._since.pop(server, None)

    def lately(self, seconds: float) -> frozenset[str]:
        """Those that did not answer, that long ago at most."""
        now = self._clock.seconds()
        return frozenset(server for server, since in self._since.items() if now - since < seconds)


@define(eq=False)
class Attempt:
    """One copy asked of one server, with the clock running."""

    server: Server
    began: float
    result: Deferred[Any]
    late: bool = False
    """Whether it has not come within the hedge timeout."""
    _timers: list[IDelayedCall] = field(factory=list)

    def watch(self, clock: IReactorTime, patience: Patience, on_late: Callable[[], None]) -> None:
        """Call `on_late` if the copy takes longer than it should, and cancel it if it takes far too long."""

        def is_late() -> None:
            self.late = True
            patience.suspect(self.server.id)
            on_late()

        self._timers = [
            clock.callLater(patience.hedge_timeout, is_late),
            clock.callLater(COPY_TIMEOUT, self.result.cancel),
        ]

    def stop_watching(self) -> None:
        """The copy has ended, or nobody waits for it any more."""
        for timer in self._timers:
            if timer.active():
                timer.cancel()


def reason_of(failure: Failure) -> str:
    """Why a server did not do it, as a clause."""
    if failure.check(TimeoutError):
        # Its own text are the arguments of whoever set the time.
        return "no answer in time"
    return failure.getErrorMessage().rstrip(".") or failure.value.__class__.__name__
