"""The client's half of a session: numbers that are never used twice and always given back."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.rows import ANSWERS_MAX
from chunkfarm.table.sessions import Session, Sessions


class SessionTests(SynchronousTestCase):
    """Numbers of one session."""

    def test_acknowledged(self) -> None:
        """Up to the oldest transaction under way everything is answered, in whatever order answers come."""
        session = Session("c", 1)
        numbers = [self.successResultOf(session.take()) for _ in range(3)]
        assert numbers == [1, 2, 3] and session.acknowledged == 0
        session.give_back(2)
        assert session.acknowledged == 0
        session.give_back(1)
        assert session.acknowledged == 2
        session.give_back(3)
        assert session.acknowledged == 3

    def test_window(self) -> None:
        """More than the state machine remembers wait for their turn, in order; some may give up waiting."""
        session = Session("c", 1)
        for _ in range(ANSWERS_MAX):
            self.successResultOf(session.take())
        first, second, third = session.take(), session.take(), session.take()
        session.give_back(7)
        self.assertNoResult(first)
        second.cancel()
        self.failureResultOf(second)
        session.give_back(1)
        assert self.successResultOf(first) == ANSWERS_MAX + 1
        self.assertNoResult(third)
        session.give_back(2)
        assert self.successResultOf(third) == ANSWERS_MAX + 2


class SessionsTests(SynchronousTestCase):
    """One session for all who ask."""

    def test_opened_once(self) -> None:
        """Whoever asks while it is being opened waits for the same one."""
        opening: list[Deferred[Session]] = []

        def open_one() -> Deferred[Session]:
            opening.append(Deferred())
            return opening[-1]

        sessions = Sessions(open_one)
        waiting = [sessions.current(), sessions.current()]
        session = Session("c", 1)
        opening[0].callback(session)
        assert [self.successResultOf(one) for one in waiting] == [session, session]
        assert self.successResultOf(sessions.current()) is session and len(opening) == 1
        sessions.expired(Session("c", 0))
        assert self.successResultOf(sessions.current()) is session
        sessions.expired(session)
        self.assertNoResult(sessions.current())
        assert len(opening) == 2

    def test_failure(self) -> None:
        """An opening that fails tells all who waited, and the next one tries again."""
        sessions = Sessions(lambda: fail(ValueError("no")))
        self.failureResultOf(sessions.current(), ValueError)
        self.failureResultOf(sessions.current(), ValueError)
