"""Ctrl-C for commands that have something to clean up: their work is cancelled, and waited for."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.python.failure import Failure


def stop_on_hangup(reactor: Any) -> None:
    """Take a terminal that goes away for Ctrl-C, unless whoever started this wants it to go on (nohup)."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        return

    def stop() -> None:
        with contextlib.suppress(ReactorNotRunning):
            reactor.stop()

    signal.signal(signal.SIGHUP, lambda number, frame: reactor.callFromThread(stop))


def end_quietly() -> None:
    """From here on Ctrl-C changes nothing: what is being cleaned up is cleaned up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def cancelled_by_stop(reactor: Any, work: Coroutine[Deferred[Any], Any, object]) -> Deferred[bool]:
    """Do some work, which is cancelled when the reactor stops; that waits until it has ended.

    Fires with whether it came to its end; fails with what the work failed with.
    """
    done: Deferred[bool] = Deferred()
    working = Deferred.fromCoroutine(work)
    stopping: list[Deferred[None]] = []

    def stop() -> Deferred[None]:
        # What is left to do is short, and must not be broken off.
        end_quietly()
        stopping.append(Deferred())
        working.cancel()
        return stopping[0]

    trigger = reactor.addSystemEventTrigger("before", "shutdown", stop)

    def over(result: object) -> None:
        if not stopping:
            reactor.removeSystemEventTrigger(trigger)
        if not isinstance(result, Failure):
            done.callback(True)
        elif result.check(CancelledError):
            done.callback(False)
        else:
            done.errback(result)
        for ended in stopping:
            ended.callback(None)

    working.addBoth(over)
    return done
