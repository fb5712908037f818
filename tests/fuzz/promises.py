"""What must hold whatever is sent: the promises that all targets look at, and who hears it when one is broken."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest.mock import patch
from zlib import crc32

from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from chunkfarm.logs import clean

LOGGED_MAX = 1000
"""Characters of a line in the log that somebody brings about who need not have a key."""
AUDIT = "chunkfarm.audit"
"""What admins do stands in the log as they said it."""
SEVERE = (LogLevel.error, LogLevel.critical)
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f\x80-\x9f\u2028\u2029]")


class Broken(AssertionError):
    """A promise was broken; the text says which, and how."""


def promise(holds: object, what: str) -> None:
    """Raise `Broken` unless it holds."""
    if not holds:
        raise Broken(what)


@contextmanager
def nothing_severe(as_written: bool = False) -> Iterator[None]:
    """Nothing may be logged as a fault of ours, and what is logged is one line without control characters.

    Deferreds that failed and were heard by nobody are among it, once they are collected. With `as_written` that line
    is looked at as it stands in the log, where words of others cannot do harm.
    """
    events: list[dict[str, Any]] = []
    with patch.object(globalLogPublisher, "_observers", [events.append]):
        yield
        with unwatched():
            gc.collect()
    for event in events:
        text = formatEvent(event)
        if as_written:
            # What follows the end of a line stands behind a tab there.
            text = clean(text).replace("\n", " ")
        if event.get("log_level") in SEVERE:
            failure = event.get("log_failure")
            told = failure.getTraceback() if failure is not None else ""
            raise Broken(f"a fault is logged for what a peer did: {text}\n{told}")
        promise("Unable to format" not in text, f"a line of the log cannot be written: {text!r}")
        promise(not _CONTROL.search(text), f"a peer writes control characters into the log: {text!r}")
        level = event.get("log_level")
        short = len(text) <= LOGGED_MAX or level is LogLevel.debug or event.get("log_namespace") == AUDIT
        promise(short, f"a peer writes {len(text)} characters into one line of the log: {text[:200]!r}")


@contextmanager
def unwatched() -> Iterator[None]:
    """What an input does a second time need not be followed line by line."""
    before = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(before)


def no_timers(clock: Clock, allowed: int = 0) -> None:
    """Nothing waits for its time any more, but what belongs to the server and not to a connection."""
    left = [call for call in clock.getDelayedCalls() if call.active()]
    promise(len(left) <= allowed, f"timers are left when all connections are gone: {left}")


def cut_up(data: bytes, seed: int) -> list[bytes]:
    """The same bytes in pieces, as a network may deliver them: the same pieces for the same bytes and seed."""
    random = Random(crc32(data) ^ seed)
    longest = random.choice((1, 3, 10, 60, 300, 2000))
    if len(data) > 4096:
        longest = max(longest, len(data) // 300)
    pieces, at = [], 0
    while at < len(data):
        size = random.randint(1, longest)
        pieces.append(data[at : at + size])
        at += size
    return pieces


def settle(clock: Clock) -> None:
    """Let everything happen that only waits for its turn."""
    for _ in range(1000):
        due = [call for call in clock.getDelayedCalls() if call.getTime() <= clock.seconds()]
        if not due:
            return
        clock.advance(0)
    raise Broken("the same moment never ends: calls are made again and again without time passing")
