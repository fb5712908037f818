"""What one process has of the machine that it runs on, in one place.

`Machine()` is the real one. A simulation gives another, with a network, disks and clocks of its own, and runs
everything above it as it is.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from random import Random, SystemRandom
from typing import Any
from uuid import UUID

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort

from chunkfarm.chunks.store import room_of
from chunkfarm.descriptors import raise_descriptor_limit
from chunkfarm.kept_room import keep
from chunkfarm.table.journal import Journal
from chunkfarm.threads import Threads
from chunkfarm.wire import transport


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000


def boot_time() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@frozen(kw_only=True)
class Machine:
    """Clocks, randomness, threads, network and disk. Timers are not here: they are the reactor's."""

    now: Callable[[], int] = _wall_clock
    """Milliseconds since 1970, for people and certificates."""
    boot_time: Callable[[], float] = boot_time
    random: Random = field(factory=SystemRandom)
    new_id: Callable[[], UUID] = uuid.uuid4
    threads: Callable[..., Threads] = Threads
    """Makes at most so many threads of that name, for a reactor, that stand back by so much."""
    connect: Callable[..., Deferred[Any]] = transport.connect
    listen: Callable[..., IListeningPort] = transport.listen
    open_journal: Callable[[str], Journal] = Journal.open
    room: Callable[[str], tuple[int, int]] = room_of
    """Free bytes of a directory's file system, and all of them."""
    descriptors: Callable[[], int] = raise_descriptor_limit
    """Takes as many descriptors as the process may have; gives their number."""
    keep_room: Callable[[str], bool] = keep
    """Keeps room in a data directory for the next start; says whether it is kept."""
    exit: Callable[[int], None] = os._exit
    """Ends the process at once."""
