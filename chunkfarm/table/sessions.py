"""This process's session with the state machine: numbers for transactions, so that a repeat has no second effect.

The server's half is in `rows`; the rules are those of Ongaro's dissertation, section 6.3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from chunkfarm.table.rows import ANSWERS_MAX


class Session:
    """An open session. Every number that is taken must be given back, whatever became of its transaction."""

    def __init__(self, client: str, epoch: int) -> None:
        self.client = client
        self.epoch = epoch
        self._next = 1
        self._taken: dict[int, None] = {}
        """In the order of taking, so the first is the lowest."""
        self._queue: deque[Deferred[int]] = deque()

    @property
    def acknowledged(self) -> int:
        """All numbers up to this one have been given back."""
        return next(iter(self._taken), self._next) - 1

    def take_now(self) -> int:
        """The next number; 0 if the answers still to come leave no room for another."""
        return 0 if self._queue or not self._has_room() else self._number()

    def take(self) -> Deferred[int]:
        """The next number, as soon as the answers still to come leave room for another."""
        if number := self.take_now():
            return succeed(number)
        waiting: Deferred[int] = Deferred(self._queue.remove)
        self._queue.append(waiting)
        return waiting

    def give_back(self, number: int) -> None:
        """The answer to `number` has come, or nobody waits for it any more."""
        del self._taken[number]
        while self._queue and self._has_room():
            self._queue.popleft().callback(self._number())

    def _has_room(self) -> bool:
        return self._next <= self.acknowledged + ANSWERS_MAX

    def _number(self) -> int:
        number = self._next
        self._next += 1
        self._taken[number] = None
        return number


class Sessions:
    """The session in use, opened once for all who wait for it."""

    def __init__(self, open: Callable[[], Deferred[Session]]) -> None:
        self._begin = open
        self.open: Session | None = None
        """The one in use, if there is one."""
        self._opening = False
        self._waiting: list[Deferred[Session]] = []

    def current(self) -> Deferred[Session]:
        """The session; opens one first if there is none, and fails as that fails."""
        if self.open is not None:
            return succeed(self.open)
        waiting: Deferred[Session] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        if not self._opening:
            self._opening = True
            self._begin().addBoth(self._opened)
        return waiting

    def expired(self, session: Session) -> bool:
        """The state machine has forgotten `session`; the next one who asks gets a new one. Whether this was news."""
        news = self.open is session
        if news:
            self.open = None
        return news

    def _opened(self, outcome: Session | Failure) -> None:
        self._opening = False
        waiting, self._waiting[:] = list(self._waiting), []
        if isinstance(outcome, Session):
            self.open = outcome
        for one in waiting:
            # An error is no use to those who come later: they try again.
            one.callback(outcome) if isinstance(outcome, Session) else one.errback(outcome)
