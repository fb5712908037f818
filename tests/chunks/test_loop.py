"""Loops that look after chunks."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.loop import BUSY, LOOK_SECONDS, Loop


class Counting(Loop):
    """Counts its steps, and rests for `seconds` after each."""

    def __init__(self, clock: Clock) -> None:
        self.is_busy = False
        super().__init__(clock, "counting", start_seconds=2.0, failed_seconds=7.0, busy=lambda: self.is_busy)
        self.begun = self.steps = 0
        self.seconds = 10.0
        self.errors: list[Exception] = []
        self.waits: Deferred[None] | None = None

    async def _begin(self) -> None:
        self.begun += 1
        if self.errors:
            raise self.errors.pop(0)

    async def _step(self) -> float:
        self.steps += 1
        if self.waits is not None:
            await self.waits
        if self.errors:
            raise self.errors.pop(0)
        return self.seconds


class LoopTests(SynchronousTestCase):
    def make(self) -> Counting:
        self.clock = Clock()
        loop = Counting(self.clock)
        self.addCleanup(loop.stop)
        return loop

    def test_steps(self) -> None:
        """It begins a while after the start, and rests between its steps."""
        loop = self.make()
        loop.start()
        self.clock.advance(1.9)
        assert (loop.begun, loop.steps) == (0, 0)
        self.clock.advance(0.1)
        assert (loop.begun, loop.steps) == (1, 1)
        self.clock.advance(9.9)
        assert loop.steps == 1
        self.clock.advance(0.1)
        assert (loop.begun, loop.steps) == (1, 2)

    def test_woken(self) -> None:
        """A rest ends when something has changed; to wake what does not rest is harmless."""
        loop = self.make()
        loop._wake()
        loop.start()
        loop._wake()
        self.clock.advance(2)
        loop._wake()
        assert loop.steps == 2
        assert len(self.clock.getDelayedCalls()) == 1

    def test_faults(self) -> None:
        """A fault in the beginning or in a step is logged, and it is tried again: the loop does not end."""
        loop = self.make()
        loop.errors = [ValueError("a"), ValueError("b")]
        loop.start()
        self.clock.advance(2)
        assert (loop.begun, loop.steps) == (1, 0)
        self.clock.advance(7)
        assert (loop.begun, loop.steps) == (2, 0)
        self.clock.advance(7)
        assert (loop.begun, loop.steps) == (3, 1)
        loop.errors = [ValueError("c")]
        self.clock.advance(10)
        self.clock.advance(7)
        assert loop.steps == 3
        assert len(self.flushLoggedErrors(ValueError)) == 3

    def test_stopped(self) -> None:
        """It ends at once, wherever it is, and may be started again."""
        loop = self.make()
        self.successResultOf(loop.stop())
        for seconds in (0, 1, 2, 5):
            loop.start()
            self.clock.advance(seconds)
            self.successResultOf(loop.stop())
            assert self.clock.getDelayedCalls() == []
        loop.waits = Deferred()
        loop.start()
        self.clock.advance(2)
        self.successResultOf(loop.stop())
        assert loop.waits.called

    def test_room_for_users(self) -> None:
        """It waits while users do, but no longer than it was told, and says so."""
        loop = self.make()
        loop.is_busy = True
        waiting = Deferred.fromCoroutine(loop._make_room(3.0))
        assert loop._made_room == BUSY
        self.clock.pump([LOOK_SECONDS] * 5)
        self.assertNoResult(waiting)
        self.clock.pump([LOOK_SECONDS])
        self.successResultOf(waiting)
        assert loop._made_room == ""
        waiting = Deferred.fromCoroutine(loop._make_room(3.0))
        loop.is_busy = False
        self.clock.advance(LOOK_SECONDS)
        self.successResultOf(waiting)
