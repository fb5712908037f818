from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from chunkfarm.threads import Threads

PATIENCE = 10.0
"""Seconds until a thread that should have met another has failed to."""


class ThreadsTests(TestCase):
    def make(self, most: int = 4, nice: int = 0) -> Threads:
        from twisted.internet import reactor

        self.reactor = reactor
        threads = Threads(reactor, most, "test", nice)
        self.addCleanup(threads.stop)
        return threads

    async def test_answers(self) -> None:
        """What a call returns comes back, and it was made on another thread."""

        def work(first: int, second: int) -> tuple[int, bool]:
            return first - second, threading.current_thread() is threading.main_thread()

        assert await self.make().run(work, 5, second=3) == (2, False)

    async def test_stand_back(self) -> None:
        """Those that compute leave a processor to those that answer, and nobody else stands back."""
        threads = self.make(nice=5)
        own = os.getpriority(os.PRIO_PROCESS, 0)

        def priority() -> int:
            return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        assert await threads.run(priority) == min(19, own + 5) or sys.platform != "linux"
        assert priority() == own and await self.make().run(priority) == own

    async def test_may_not_stand_back(self) -> None:
        """Where a sandbox forbids that, as the systemd units do, they work all the same."""

        def refuse(*arguments: object) -> None:
            raise PermissionError("Operation not permitted")

        self.patch(os, "setpriority", refuse)
        assert await self.make(nice=5).run(lambda: 7).addTimeout(10, self.reactor) == 7

    async def test_errors(self) -> None:
        """What a call raises comes back too, and the thread goes on."""

        def fail() -> NoReturn:
            raise KeyError("no")

        threads = self.make(1)
        await self.assertFailure(threads.run(fail), KeyError)
        assert await threads.run(lambda: 1) == 1

    async def test_in_order(self) -> None:
        """One thread does one thing at a time, in the order in which it was asked."""
        threads = self.make(1)
        seen: list[int] = []
        await gatherResults([threads.run(seen.append, number) for number in range(100)])
        assert seen == list(range(100))

    async def test_side_by_side(self) -> None:
        """Calls that wait for each other meet, as many as there are threads."""
        threads = self.make(4)
        meeting = threading.Barrier(4)
        await gatherResults([threads.run(meeting.wait, PATIENCE) for _ in range(4)])

    async def test_no_more_than_needed(self) -> None:
        """Calls that follow each other need one thread."""
        threads = self.make(4)
        for _ in range(5):
            await threads.run(lambda: None)
        assert len(threads._threads) == 1

    async def test_stop_waits(self) -> None:
        """What was given before the stop is done when the stop is over; its answers still come."""
        threads = self.make(1)
        seen: list[int] = []
        answers = [threads.run(seen.append, number) for number in range(10)]
        threads.stop()
        assert seen == list(range(10))
        await gatherResults(answers)

    async def test_after_the_stop(self) -> None:
        """What is given after the stop is not done."""
        threads = self.make()
        threads.stop()
        seen: list[int] = []
        late = threads.run(seen.append, 1)
        await deferLater(self.reactor, 0, lambda: None)
        assert not late.called and not seen

    async def test_cancelled(self) -> None:
        """Who waits no longer is told at once; the call goes on, and nobody stumbles over its answer."""
        threads = self.make(1)
        go = threading.Event()
        waiting: Deferred[bool] = threads.run(go.wait, PATIENCE)
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        go.set()
        assert await threads.run(lambda: 1) == 1
