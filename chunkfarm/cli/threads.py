"""How a command does what blocks: files are read and hashed away from the reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred

from chunkfarm.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

MOST = 4
"""Threads of a command: it reads ahead, and hardly does more than one thing."""


class RunInThread(Protocol):
    """Calls a function that blocks, on another thread."""

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]: ...


def in_thread(reactor: Any) -> RunInThread:
    """Runs blocking calls on threads that nobody waits for at the end.

    Those of the reactor are waited for, and one that reads a standard input on which nothing comes would keep a command
    that was interrupted from ending.
    """
    return Threads(reactor, MOST, "chunkfarm").run
