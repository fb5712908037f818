"""Brings requests to whoever leads, through elections, lost links and full disks, until a deadline."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.links.commands import BadRequest, NotFirst
from chunkfarm.table.consensus import Dropped, NotLeader
from chunkfarm.table.driver import Lost
from chunkfarm.table.interface import TableClosed, TableError, Unavailable
from chunkfarm.table.time_limit import TimeLimits

RETRY_MIN = 0.05
"""Seconds between the first tries; doubled each time. A change of leader ends the pause."""
RETRY_MAX = 1.0
TRY_PATIENCE = 12.0
"""Seconds for one try: a little longer than the links wait for an answer, so that theirs is the better error."""

T = TypeVar("T")


class _Overtaken(Exception):
    """Another server leads by now, so the one that was asked may never answer."""


@frozen(eq=False)
class _Try:
    """One try that is under way at another server, or a read here."""

    to: str
    target: Callable[[], str]
    going: Deferred[Any]

    @property
    def is_in_vain(self) -> bool:
        """Whether somebody else is known to lead by now."""
        leader = self.target()
        return leader not in ("", self.to)


@frozen
class Carried(Generic[T]):
    """The answer, and how often the request was sent, hence how often it may have taken effect."""

    answer: T
    sent: int


class Courier:
    """Carries requests. `target` names the server that should do it now: this one, another, or nobody known."""

    _log = Logger()

    def __init__(self, own_id: str, clock: IReactorTime) -> None:
        self._id = own_id
        self._clock = clock
        self._limits = TimeLimits(clock)
        self._pauses: list[Deferred[None]] = []
        self._tries: dict[_Try, None] = {}
        """In the order in which they began."""
        self._closed = False

    async def carry(
        self,
        target: Callable[[], str],
        here: Callable[[], Deferred[T]],
        there: Callable[[str], Deferred[T]],
        deadline: float,
        *,
        is_read: bool = False,
    ) -> Carried[T]:
        """Do `here()` or `there(server)` until one of them answers; raises `Unavailable` at the deadline.

        A read that is under way here is given up as soon as another server should be asked: one that has just been
        removed would wait for entries that never come to it. A change is not, for it may have been made.
        """
        sent = 0
        hint = ""
        pause = RETRY_MIN
        while not self._closed:
            left = deadline - self._clock.seconds()
            if left <= 0:
                raise Unavailable("no leader of the table answered in time")
            to, hinted, hint = hint or target(), bool(hint), ""
            try:
                if to:
                    sent += 1
                    going = here() if to == self._id else there(to)
                    if is_read or to != self._id:
                        going = self._try(to, target, going)
                    answer = await self._limits.limit(going, min(left, TRY_PATIENCE))
                    return Carried(answer, sent)
            except (CancelledError, TableError):
                raise
            except _Overtaken:
                continue
            except (NotLeader, Dropped):
                sent -= 1
            except NotFirst as error:
                hint = "" if hinted else _hint_of(error)
                if hint and hint != to:
                    continue
            except BadRequest as error:
                raise TableError(f"the leader refuses the request: {error}") from error
            except (Lost, TimeoutError):
                pass
            except Exception as error:
                # Links fail in many ways, and each of them means the same: try again.
                self._log.debug("A request to {to} failed: {error!r}", to=to, error=error)
            await self._pause(min(pause, max(0.0, deadline - self._clock.seconds())))
            pause = min(2 * pause, RETRY_MAX)
        raise TableClosed("this server's part of the table is closed")

    def _try(self, to: str, target: Callable[[], str], going: Deferred[T]) -> Deferred[T]:
        """The same, failed with `_Overtaken` as soon as another server is known to lead.

        A leader that is cut off takes a request and never answers, so nobody should wait for that.
        """
        attempt = _Try(to, target, going)
        self._tries[attempt] = None

        def ended(result: T | Failure) -> T | Failure:
            if attempt in self._tries:
                del self._tries[attempt]
                return result
            return Failure(_Overtaken())

        return going.addBoth(ended)

    async def _pause(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self._clock.callLater(seconds, self._resume, waiting)
        self._pauses.append(waiting)
        try:
            await waiting
        finally:
            self._pauses.remove(waiting)
            if call.active():
                call.cancel()

    def _resume(self, waiting: Deferred[None]) -> None:
        if not waiting.called:
            waiting.callback(None)

    def hurry(self) -> None:
        """Something may have changed about who leads: whoever pauses, or asks the one before, tries again now."""
        for attempt in [attempt for attempt in self._tries if attempt.is_in_vain]:
            del self._tries[attempt]
            attempt.going.cancel()
        for waiting in list(self._pauses):
            self._resume(waiting)

    def close(self) -> None:
        """End what is under way with `TableClosed` (at its next turn)."""
        self._closed = True
        self._limits.close()
        self.hurry()


def _hint_of(error: NotFirst) -> str:
    """The leader that a refusal names; empty if it names none."""
    try:
        hint = json.loads(str(error))
        return str(hint.get("id", "")) if isinstance(hint, dict) else ""
    except (ValueError, RecursionError):
        return ""
