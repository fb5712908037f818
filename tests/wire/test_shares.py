"""What each of many connections may send in a turn."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.wire.shares import ALL_IN_TURN, LEAST_IN_TURN, ONE_IN_TURN, Shares


class SharesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.shares = Shares(self.clock)

    def turn(self, count: int) -> list[int]:
        """What each of so many sends in one turn who have more than they may send."""
        sent = []
        for _ in range(count):
            sent.append(self.shares.share)
            self.shares.sent(sent[-1])
        self.clock.advance(0)
        return sent

    def test_alone(self) -> None:
        """Who is alone sends as much in every turn."""
        assert [self.turn(1) for _ in range(5)] == [[ONE_IN_TURN]] * 5

    def test_some(self) -> None:
        """A few fast readers get equal parts of each turn but the first."""
        count = 2 * ALL_IN_TURN // ONE_IN_TURN
        self.turn(count)
        assert self.turn(count) == [ONE_IN_TURN // 2] * count

    def test_many(self) -> None:
        """However many there are, a turn is not much longer, and each sends something."""
        for _ in range(3):
            sent = self.turn(200)
            assert sum(sent) <= ALL_IN_TURN + 200 * LEAST_IN_TURN
            assert min(sent) == LEAST_IN_TURN

    def test_small_ones(self) -> None:
        """Small answers take nothing from the others, and need no look at when a turn is over."""
        for _ in range(10_000):
            self.shares.sent(LEAST_IN_TURN - 1)
        assert self.shares.share == ONE_IN_TURN
        assert self.clock.getDelayedCalls() == []

    def test_afterwards(self) -> None:
        """When the others have gone there is as much as before for the one who is left."""
        self.turn(100)
        self.turn(1)
        assert self.turn(1) == [ONE_IN_TURN]
