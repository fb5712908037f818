"""Threads for calls that block, with as little between the reactor and them as there can be.

A small request goes to a thread and back up to four times, so the way counts: through Twisted's pool, whose
queue is made of locks in Python that both sides wake up to wait for, it costs almost twice as much.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread, get_native_id
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

P = ParamSpec("P")
T = TypeVar("T")

_Job = tuple[Deferred[Any], Callable[[], Any]]


class Threads:
    """At most `most` threads, begun when they are needed. Everything but the calls is for the reactor's thread.

    `reactor` is an `IReactorFromThreads`. With one thread calls run one at a time, in order. `nice` is by how much they
    stand back behind the process's other threads when all processors are taken, as in `nice`; on Linux alone.
    """

    def __init__(self, reactor: Any, most: int, name: str, nice: int = 0) -> None:
        self._nice = nice
        self._reactor = reactor
        self._most = most
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._under_way = 0
        self._done: deque[tuple[Deferred[Any], Any]] = deque()
        self._told = False
        """Whether the reactor has been woken for what is done: one that is late is woken once for many."""
        self._stopped = False

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Fires with what the function returns or raises; not at all if `stop` came before the call."""
        result: Deferred[T] = Deferred()
        if not self._stopped:
            self._under_way += 1
            if self._under_way > len(self._threads) < self._most:
                self._begin()
            self._jobs.put((result, lambda: function(*args, **kwargs)))
        return result

    def stop(self) -> None:
        """End the threads once they have done what they were given; waits for that, so give them nothing long."""
        if self._stopped:
            return
        self._stopped = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _begin(self) -> None:
        # A process that ends without `stop` has failed, and must not wait for a disk that may never answer.
        thread = Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        if self._nice and sys.platform == "linux":
            # There it is the thread's own, and anybody may give way, but for those whose sandbox forbids the call.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + self._nice)
        while (job := self._jobs.get()) is not None:
            result, call = job
            try:
                value = call()
            except BaseException:
                self._done.append((result, Failure()))
            else:
                self._done.append((result, value))
                del value
            if not self._told:
                self._told = True
                self._reactor.callFromThread(self._tell)
            # What was done must not live on until there is something else to do.
            del job, result, call

    def _tell(self) -> None:
        """Fire what is done. Whoever is done from here on wakes the reactor again."""
        self._told = False
        for _ in range(len(self._done)):
            result, value = self._done.popleft()
            self._under_way -= 1
            result.callback(value)
