"""Until when a chunk must be kept although no file uses it.

Whoever is told "this server has it" may need the chunk only a while later: a client asks which chunks the farm has,
sends the others, and names all of them in the end. So the answer is a promise to keep it for `collect_grace`, a pin.

Times are of the store's own clock: seconds that it has been running, over all its starts. Down time does not count,
a step of the wall clock does not matter, and what a crash takes from the clock only makes pins last longer. A chunk
of which no row tells when it was held last counts as held: so a new chunk needs no row, and nothing is lost with the
index.

No safety hangs on any of this (see `collecting`): pins only spare slow writers a second way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence

from chunkfarm.chunks.index import Index, Statement
from chunkfarm.durable import is_full

SLACK = 0.25
"""Of `collect_grace`, for which a pin lasts longer than was promised, so that it need not be renewed for each who asks:
in that time any number of them cost the disk nothing."""

NOTED_MAX = 100_000
"""Chunks of which it is kept in memory when they were first seen unused, where the disk has no room for that."""

_PUT = "INSERT OR REPLACE INTO pins (digest, held) VALUES (?, ?)"
_DELETE = "DELETE FROM pins WHERE digest = ?"


def must_renew(held: float, now: float, grace: float) -> bool:
    """Whether what was held at `held` must be held anew, if it is to be kept for `grace` from now on."""
    return now - held > SLACK * grace


def has_run_out(held: float, now: float, grace: float) -> bool:
    """Whether a chunk that was held at `held` need not be kept any more."""
    return now - held >= (1 + SLACK) * grace


class Pins:
    """The pins of one store. `seconds` is a monotonic clock, `grace` gives `collect_grace` in seconds."""

    def __init__(self, index: Index, seconds: Callable[[], float], grace: Callable[[], float]) -> None:
        self._index = index
        self._seconds = seconds
        self._grace = grace
        self._started = seconds()
        self._before = 0.0
        self._noted: dict[bytes, float] = {}
        """What there was no room for on the disk."""

    def open(self) -> None:
        """Set the store's clock to where it stood."""
        rows = self._index.read("SELECT seconds FROM clock")
        self._started, self._before = self._seconds(), float(rows[0][0]) if rows else 0.0

    @property
    def now(self) -> float:
        """The store's clock: seconds that it has been running, over all starts."""
        return self._before + self._seconds() - self._started

    def hold(self, digests: Collection[bytes]) -> None:
        """Keep these for `collect_grace` from now on; durable on return. Raises `sqlite3.Error`."""
        now, grace = self.now, self._grace()
        renewed = [digest for digest, held in self._rows(digests).items() if must_renew(held, now, grace)]
        if renewed:
            self._index.write([(_PUT, [(digest, now) for digest in renewed]), self._clock(now)], durable=True)

    def begin(self, digests: Collection[bytes]) -> None:
        """From now on count for how long these have been held: for those of which nothing is known yet."""
        known = self._rows(digests)
        now = self.now
        unknown = [(digest, now) for digest in digests if digest not in known]
        if unknown and not self._write_if_room([(_PUT, unknown), self._clock(now)]):
            # To delete is what gives room again. A process that ends before that begins anew.
            self._noted.update(unknown[: NOTED_MAX - len(self._noted)])

    def ended(self, digests: Collection[bytes]) -> set[bytes]:
        """Those of these that need not be kept any more."""
        now, grace = self.now, self._grace()
        return {digest for digest, held in self._rows(digests).items() if has_run_out(held, now, grace)}

    def forget(self, digests: Sequence[bytes]) -> None:
        """Know nothing of these: they count as held if they are there.

        Where nothing is known a promise is made without a write, so no power cut may bring an old row back.
        """
        for digest in digests:
            self._noted.pop(digest, None)
        known = [(digest,) for digest in self._rows(digests)]
        if known:
            # If a row stays: whoever stores the chunk again has it renewed.
            self._write_if_room([(_DELETE, known)], durable=True)

    def save(self) -> None:
        """Save the clock, if there is anything that it is of use for."""
        if self._index.is_open:
            self._write_if_room([self._clock(self.now)])

    def tidy(self, prefix: int, wanted: Collection[bytes]) -> None:
        """Forget the pins that have run out of chunks that begin with this byte, except those that are `wanted`.

        What is in use needs none, and the table stays small. Saves the clock, too.
        """
        now, grace = self.now, self._grace()
        if self._index.is_open:
            rows = self._index.read("SELECT digest, held FROM pins WHERE digest >= ? AND digest < ?", _span(prefix))
            ended = [bytes(digest) for digest, held in rows if has_run_out(float(held), now, grace)]
            gone = [(digest,) for digest in ended if digest not in wanted]
            # As in `forget`.
            self._write_if_room([(_DELETE, gone), self._clock(now)], durable=bool(gone))

    def _write_if_room(self, statements: Sequence[Statement], durable: bool = False) -> bool:
        """Write what is no promise; whether there was room for it."""
        try:
            self._index.write(statements, durable)
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            return False
        return True

    def _rows(self, digests: Collection[bytes]) -> dict[bytes, float]:
        rows = self._index.read_named("SELECT digest, held FROM pins WHERE digest IN", list(digests))
        noted = {digest: self._noted[digest] for digest in digests if digest in self._noted}
        return noted | {bytes(digest): float(held) for digest, held in rows}

    def _clock(self, now: float) -> Statement:
        return "INSERT OR REPLACE INTO clock (one, seconds) VALUES (1, ?)", [(now,)]


def _span(prefix: int) -> tuple[bytes, bytes]:
    """What is not less than the first and less than the second begins with this byte."""
    return bytes([prefix]), bytes([prefix + 1]) if prefix < 255 else b"\xff" * 33
