"""One queue of events for everything that a simulated farm is made of: time, processes, and what they are asked to do.

An event belongs to a process or to nobody. A process that has ended gets no more events; one that is frozen gets them
when it wakes up, in the order in which they came. So a reactor is no more than a view of this queue.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from attrs import define, field
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

EPOCH_MS = 1_790_000_000_000
"""The time of day at which every history begins."""


class PowerCut(BaseException):
    """The machine goes dark in the middle of a write. Nothing that runs on it may catch this."""


@define(eq=False)
class Event:
    """Something that is going to happen."""

    call: Callable[..., object] | None
    arguments: tuple[Any, ...]
    process: Process | None

    def cancel(self) -> None:
        self.call = None


class World:
    """Time, the queue of events, and the story of what has happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.running: Process | None = None
        """Whose event it is that is happening."""
        self.story: list[str] = []
        self.events = 0
        self.after_event: Callable[[Process | None], None] = lambda process: None
        self._digest = hashlib.sha256()
        self._queue: list[tuple[float, int, Event]] = []
        self._sequence = 0

    def random(self, what: str) -> Random:
        """A source of numbers of its own for each purpose, so that one more draw here changes nothing there."""
        return Random(f"{self.seed} {what}")

    def note(self, who: str, what: str) -> None:
        """A line of the story."""
        line = f"{self.now:10.4f} {who:<8} {what}"
        self.story.append(line)
        self._digest.update(line.encode())

    def trace(self, what: str) -> None:
        """What is too much for the story, and must be the same in every run of this seed."""
        self._digest.update(f"{self.now:.6f} {what}\n".encode())

    @property
    def digest(self) -> str:
        """Of all that has happened so far."""
        return self._digest.hexdigest()

    def at(self, delay: float, process: Process | None, call: Callable[..., object], *arguments: Any) -> Event:
        """Let something happen after so many seconds."""
        event = Event(call, arguments, process)
        self.push(self.now + max(0.0, delay), event)
        return event

    def push(self, time: float, event: Event) -> None:
        """Let it happen then, behind what happens at that time already."""
        self._sequence += 1
        heapq.heappush(self._queue, (time, self._sequence, event))

    def clear(self) -> None:
        """Nothing happens any more."""
        self._queue.clear()

    def run_until(self, time: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Let everything happen up to that time; returns whether `done` was so before."""
        while self._queue and self._queue[0][0] <= time:
            self.now, _, event = heapq.heappop(self._queue)
            if self._happen(event) and done():
                return True
        self.now = time
        return done()

    def _happen(self, event: Event) -> bool:
        process, call = event.process, event.call
        if call is None or (process is not None and not process.alive):
            return False
        if process is not None and process.frozen_until > self.now:
            process.waiting.append(event)
            return False
        self.events += 1
        self.running = process
        try:
            call(*event.arguments)
        except PowerCut:
            assert process is not None and not process.alive, "the machine is off already"
        finally:
            self.running = None
        self.after_event(process)
        return True


class Process:
    """One start of one server: what of the queue belongs to it, and how it ends."""

    def __init__(self, world: World, name: str, host: str, on_end: Callable[[str], None]) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.alive = True
        self.frozen_until = 0.0
        self.waiting: list[Event] = []
        """What happens as soon as it is not frozen any more."""
        self.reactor = SimulatedReactor(self)
        self.has_used_disk = False
        """Set by every call that ran on a thread, for who looks at files."""
        self.connections: dict[Any, None] = {}
        self.identity: Callable[[], Any] = lambda: None
        """The identity that it shows in TLS."""
        self.disk_delay: Callable[[str], float] = lambda name: 0.0005
        self.on_stop: Callable[[], Deferred[Any]] | None = None
        self._on_end = on_end
        self._after_stop: list[Callable[[], object]] = []
        self._stopping = False

    def at(self, delay: float, call: Callable[..., object], *arguments: Any) -> Event:
        return self.world.at(delay, self, call, *arguments)

    def freeze(self, seconds: float) -> None:
        """Nothing reaches it for so long, and it does not know."""
        self.frozen_until = max(self.frozen_until, self.world.now + seconds)
        self.world.at(self.frozen_until - self.world.now, None, self._thaw)

    def thaw(self) -> None:
        """Go on at once."""
        self.frozen_until = 0.0
        self._thaw()

    def _thaw(self) -> None:
        if self.frozen_until <= self.world.now:
            waiting, self.waiting = self.waiting, []
            for event in waiting:
                self.world.push(self.world.now, event)

    def end(self, how: str) -> None:
        """It is gone, from one instruction to the next."""
        if self.alive:
            self.alive = False
            self._on_end(how)

    def stop(self) -> None:
        """As SIGTERM, or `reactor.stop`."""
        if self._stopping or not self.alive or self.on_stop is None:
            return
        self._stopping = True
        self.on_stop().addBoth(self._stopped)

    def _stopped(self, result: object) -> None:
        if isinstance(result, Failure):
            result.raiseException()
        for call in self._after_stop:
            call()
        self.end("stopped")

    def after_stop(self, call: Callable[..., object], *arguments: Any) -> None:
        self._after_stop.append(lambda: call(*arguments))


class SimulatedReactor:
    """What a server's process uses of a reactor; the network is not here."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def seconds(self) -> float:
        # Since an unknown moment, as a monotonic clock: nobody may compare those of two processes.
        return self._process.world.now + 1000.0

    def callLater(self, delay: float, call: Callable[..., object], *args: Any, **kwargs: Any) -> DelayedCall:
        events: list[Event] = []

        def fire() -> None:
            left = delayed.getTime() - self.seconds()
            if left > 1e-9:
                # It was put off meanwhile.
                delayed.activate_delay()
                move(delayed)
                return
            delayed.called = 1
            delayed.func(*delayed.args, **delayed.kw)

        def move(_: DelayedCall) -> None:
            cancel(delayed)
            events[:] = [self._process.at(delayed.getTime() - self.seconds(), fire)]

        def cancel(_: DelayedCall) -> None:
            for event in events:
                event.cancel()

        delayed = DelayedCall(self.seconds() + delay, call, args, kwargs, cancel, move, seconds=self.seconds)
        move(delayed)
        return delayed

    def callFromThread(self, call: Callable[..., object], *args: Any) -> None:
        self._process.at(0.0, call, *args)

    def callWhenRunning(self, call: Callable[..., object], *args: Any) -> None:
        self._process.at(0.0, call, *args)

    def addSystemEventTrigger(self, phase: str, event: str, call: Callable[..., object], *args: Any) -> None:
        assert (phase, event) == ("after", "shutdown")
        self._process.after_stop(call, *args)

    def stop(self) -> None:
        self._process.stop()


@define(eq=False)
class _Job:
    result: Deferred[Any]
    call: Callable[[], Any]
    event: Event | None = field(default=None)


class SimulatedThreads:
    """`chunkfarm.threads.Threads` without threads: a call happens as a whole at one moment, its answer comes later.

    Between the two, as before the first, the process may end: what was done then was done.
    """

    def __init__(self, process: Process, most: int, name: str) -> None:
        self._process = process
        self._name = name
        self._lanes = [0.0] * most
        self._jobs: dict[_Job, None] = {}
        self._stopped = False

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        if self._stopped:
            return result
        job = _Job(result, lambda: function(*args, **kwargs))
        self._jobs[job] = None
        now = self._process.world.now
        lane = min(range(len(self._lanes)), key=self._lanes.__getitem__)
        begin = max(now, self._lanes[lane])
        self._lanes[lane] = begin + self._process.disk_delay(self._name)
        job.event = self._process.at(self._lanes[lane] - now, self._do, job)
        return result

    def _do(self, job: _Job) -> None:
        if self._jobs.pop(job, self) is self:
            return
        try:
            value = job.call()
        except PowerCut:
            raise
        except BaseException:
            value = Failure()
        self._process.has_used_disk = True
        self._process.at(0.0001, job.result.callback, value)

    def stop(self) -> None:
        self._stopped = True
        # What a dead process leaves behind is cleared away at any time, and does nothing more.
        for job in list(self._jobs) if self._process.alive else []:
            self._do(job)
