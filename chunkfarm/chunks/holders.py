"""Who holds which chunks: many servers asked at once, none of them waited for in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.patience import reason_of
from chunkfarm.model import Server

HAVE_TIMEOUT = 15.0
"""Seconds for one answer: the server may have to look at 1,000 files, and a cold disk takes 10 ms for each."""


class Survey:
    """One round of questions. What is found is added to `holders` (digest -> server ids) and `lengths`.

    `done` fires when all have answered; or, once `hedge_timeout` has passed, as soon as every chunk asked
    about is known to be on `enough` servers. Who does not answer counts as not having it.
    """

    _log = Logger()

    def __init__(
        self,
        holders: dict[bytes, tuple[str, ...]],
        lengths: dict[bytes, int],
        enough: int,
        ask: Callable[[Server, Sequence[bytes]], Deferred[Sequence[int]]],
        clock: IReactorTime,
        hedge_timeout: float,
    ) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self._stop())
        self._holders = holders
        self._lengths = lengths
        self._enough = enough
        self._ask = ask
        self._clock = clock
        self._hedge_timeout = hedge_timeout
        self._digests: tuple[bytes, ...] = ()
        self._running: dict[str, Deferred[None]] = {}
        self._timer: IDelayedCall | None = None
        self._late = False
        self._over = False

    def start(self, whom: Mapping[bytes, Iterable[Server]]) -> None:
        """Ask about each digest the servers given for it."""
        self._digests = tuple(whom)
        questions: dict[str, tuple[Server, list[bytes]]] = {}
        for digest, servers in whom.items():
            for server in servers:
                questions.setdefault(server.id, (server, []))[1].append(digest)
        self._timer = self._clock.callLater(self._hedge_timeout, self._is_late)
        for server, digests in questions.values():
            answer = self._ask(server, digests).addTimeout(HAVE_TIMEOUT, self._clock)
            self._running[server.id] = answer.addCallback(self._note, server, digests).addErrback(self._no, server)
        for server, _ in questions.values():
            self._running[server.id].addCallback(self._end, server)
        self._check()

    def _note(self, answer: Sequence[int], server: Server, digests: Sequence[bytes]) -> None:
        for digest, length in zip(digests, answer, strict=True):
            if length:
                self._holders[digest] += (server.id,)
                self._lengths[digest] = length

    def _no(self, failure: Failure, server: Server) -> None:
        if not self._over:
            self._log.info(
                "{server} does not say what it holds: {reason}", server=server.name, reason=reason_of(failure)
            )

    def _end(self, _: None, server: Server) -> None:
        self._running.pop(server.id, None)
        self._check()

    def _is_late(self) -> None:
        self._late = True
        self._check()

    def _check(self) -> None:
        if self._over:
            return
        if not self._running or (
            self._late and all(len(self._holders[digest]) >= self._enough for digest in self._digests)
        ):
            self._stop()
            self.done.callback(None)

    def _stop(self) -> None:
        self._over = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        running, self._running = self._running, {}
        for answer in running.values():
            answer.cancel()
