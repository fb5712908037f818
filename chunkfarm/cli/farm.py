"""The farm as the command line sees it: a list of servers, of which any will do.

Work is done over one link. When the link breaks, or its server cannot serve now, the work is called again
with a link to the next server and goes on where it stood; after a round of all servers there is a short
pause. What ends it is success, an error that every server would give, or `timeout` seconds in which nothing moved.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from attrs import define, field
from twisted.internet import error as network
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater

from chunkfarm.cli.exits import NobodyAnswered
from chunkfarm.config import Listed
from chunkfarm.errors import Busy, FarmError, ReadOnly, Waiting
from chunkfarm.links.lines import LineClient, LinkLost, NotUnderstood
from chunkfarm.model import Address
from chunkfarm.trust.private import TrustError

PAUSE_FIRST = 0.2
"""Seconds before the second round: a server that takes over needs a moment."""
PAUSE_MAX = 2.0
SILENCE_CHECK = 0.5
"""Seconds between two looks at whether a link is still alive."""

PATIENCE = 2 / 3
"""Of the timeout: so long a server that lives may keep an answer to itself, before another one has the rest. By
default 20 s: a server rides over another's death within 15."""
PROBE_AFTER = 5.0
"""Seconds of silence after which it is tried whether the server still answers at all."""

TELL_AFTER = 3.0
"""Seconds without progress after which a person is told what is waited for: most takeovers are done by then."""

T = TypeVar("T")
Work = Callable[[LineClient], Awaitable[T]]
Probe = Callable[[Listed], Deferred[object]]
"""Fires if that server answers a word on a link of its own, and fails if it does not."""
Dial = Callable[[Listed], Deferred[LineClient]]
"""Gives a link that is encrypted, checked and authenticated."""

_ELSEWHERE = (LinkLost, NotUnderstood, Waiting, Busy, ReadOnly)
"""Errors of one server, which say nothing about the others."""


def in_order(servers: tuple[Listed, ...]) -> tuple[Listed, ...]:
    """Those that are up first, each part as it is listed, which is by seniority."""
    return tuple(sorted(servers, key=lambda server: server.state == "down"))


@define
class Farm:
    """Any server of a farm. `timeout` is in seconds; `on_wait` is told why nothing moves, once each time."""

    clock: IReactorTime
    servers: tuple[Listed, ...]
    dial: Dial
    probe: Probe
    timeout: float
    on_wait: Callable[[str], None] = lambda text: None
    reads: bool = False
    """Whether all of the work is reading: that the farm cannot do it has nothing to do with writes then."""
    link: LineClient | None = field(default=None, init=False)
    _current: int = field(default=0, init=False)
    _moved: float = field(default=0.0, init=False)
    _active: float = field(default=0.0, init=False)
    _reasons: dict[str, Exception] = field(factory=dict, init=False)
    _told: bool = field(default=False, init=False)

    def moved(self) -> None:
        """Something was achieved that need not be done again."""
        self._moved = self.clock.seconds()
        self._told = False

    def waits(self, why: str) -> None:
        """Nothing moves, for this reason."""
        if not self._told:
            self._told = True
            self.on_wait(f"still trying, for {self.timeout:g} s without progress at most: {why}")

    async def run(self, work: Work[T]) -> T:
        """Do the work, on whichever server can."""
        assert self.servers
        self.moved()
        pause = PAUSE_FIRST
        failures = 0
        while True:
            before = self._moved
            server = self.servers[self._current]
            try:
                return await self._attempt(server, work)
            except CancelledError:
                raise
            except (*_ELSEWHERE, TrustError, network.ConnectError, network.ConnectionLost, network.ConnectionDone,
                    network.DNSLookupError) as error:  # fmt: skip
                self._reasons[server.name] = error
            self._current = (self._current + 1) % len(self.servers)
            failures = 1 if self._moved > before else failures + 1
            if self.clock.seconds() - self._moved >= self.timeout:
                raise self._explain()
            if failures % len(self.servers) == 0:
                if self.clock.seconds() - self._moved >= TELL_AFTER:
                    self.waits(self._each())
                await deferLater(self.clock, pause)
                pause = min(2 * pause, PAUSE_MAX)

    async def _attempt(self, server: Listed, work: Work[T]) -> T:
        if self.link is None:
            link = await self.dial(server)
            link.on_activity = self._touch
            self.link = link
        self._touch()
        watcher = _Silence(self, self.link, server)
        try:
            return await work(self.link)
        except BaseException as error:
            if isinstance(error, _ELSEWHERE) or not isinstance(error, FarmError):
                self.hang_up()
            raise
        finally:
            watcher.stop()

    def hang_up(self) -> None:
        """End the link, if there is one."""
        link, self.link = self.link, None
        if link is not None:
            link.lose()

    def _touch(self) -> None:
        self._active = self.clock.seconds()

    def silent_for(self) -> float:
        """Seconds since a byte moved."""
        return self.clock.seconds() - self._active

    def _explain(self) -> FarmError:
        """Why nothing moved, for people."""
        for error in self._reasons.values():
            if isinstance(error, ReadOnly | Waiting | Busy):
                kind = NobodyAnswered if self.reads else type(error)
                return kind(f"the farm cannot do that now: {self._each()}")
        return NobodyAnswered(f"nobody answered within {self.timeout:g} s: {self._each()}")

    def _each(self) -> str:
        """What each server said last, or why it said nothing."""
        reasons = ((server, self._reasons.get(server.name)) for server in self.servers)
        return "; ".join(f"{shown(server)}: {sentence_of(error)}" for server, error in reasons if error is not None)


class _Silence:
    """Looks after a link on which an answer is due and nothing moves.

    Its server may be busy (it rides over the death of another one, say), or it may have lost its power, which TCP
    does not tell. So it is tried on a second link: while it answers there it is waited for.
    """

    def __init__(self, farm: Farm, link: LineClient, server: Listed) -> None:
        self._farm = farm
        self._link = link
        self._server = server
        self._probe: Deferred[object] | None = None
        self._next_probe = 0.0
        self._call: IDelayedCall = farm.clock.callLater(SILENCE_CHECK, self._look)

    def _look(self) -> None:
        self._call = self._farm.clock.callLater(SILENCE_CHECK, self._look)
        silent = self._farm.silent_for()
        if not self._link.owed:
            if silent > PROBE_AFTER:
                # A watch, or a slow standard input: is anybody still there?
                self._link.request("PING").addErrback(lambda _: None)
        elif silent > PATIENCE * self._farm.timeout:
            self._link.lose(f"no answer for {silent:.0f} s")
        elif silent > PROBE_AFTER and self._probe is None and self._farm.clock.seconds() >= self._next_probe:
            self._next_probe = self._farm.clock.seconds() + PROBE_AFTER
            self._probe = self._farm.probe(self._server)
            self._probe.addCallbacks(lambda _: self._probed(True), lambda _: self._probed(False))
            self._farm.waits(f"{shown(self._server)} has not answered for {silent:.0f} s")

    def _probed(self, alive: bool) -> None:
        self._probe = None
        if not alive and self._link.owed and self._farm.silent_for() > PROBE_AFTER:
            self._link.lose("it fell silent")

    def stop(self) -> None:
        self._call.cancel()
        if self._probe is not None:
            self._probe.cancel()


def shown(server: Listed) -> str:
    """A server's name, and where it is."""
    return f"{server.name} ({Address(server.host, server.client)})"


def sentence_of(error: Exception) -> str:
    """What went wrong with a server, for people."""
    if isinstance(error, FarmError):
        return error.sentence
    if isinstance(error, network.ConnectionRefusedError):
        return "refused"
    if isinstance(error, network.TimeoutError | network.TCPTimedOutError):
        return "timed out"
    if isinstance(error, network.DNSLookupError):
        return "its name is not known"
    return str(error).rstrip(".")
