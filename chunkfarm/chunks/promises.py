"""What this store has promised to keep, and what it is about to delete: the two are told apart under one lock.

A chunk is deleted in two steps. First it is marked: *condemned*, for no file uses it, or *surplus*, for it belongs on
other servers. Then, when it is known that it may go, it is deleted if the mark is still there. Whoever is told that
this server has the chunk takes the mark away, or is told no; under the lock, so that the answer comes before the
deletion or after it.

Everything here blocks, and is called on a thread, but for `mark_surplus` and `lift`: the reactor plans and gives up
plans, and must not wait for a disk on which a name appears just then.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

from chunkfarm.chunks.pins import Pins


class Promises:
    """The marks and the pins of one store. `lock` is held while a chunk's name appears or disappears."""

    def __init__(self, pins: Pins, lock: threading.Lock) -> None:
        self.pins = pins
        self._lock = lock
        # Held for a moment while marks change. Who needs both takes it second.
        self._marks = threading.Lock()
        self.condemned: set[bytes] = set()
        self.surplus: set[bytes] = set()

    def keep(self, digests: Collection[bytes]) -> None:
        """Keep these for `collect_grace`, whatever mark they have: somebody brings them. Raises `sqlite3.Error`."""
        self.pins.hold(digests)
        with self._lock, self._marks:
            self.condemned.difference_update(digests)
            self.surplus.difference_update(digests)

    def hold(self, digests: Sequence[bytes]) -> set[bytes]:
        """Keep these for `collect_grace`, except those that are condemned; gives those that are kept."""
        with self._lock, self._marks:
            held = set(digests) - self.condemned
        self.pins.hold(held)
        with self._lock, self._marks:
            held -= self.condemned
            self.surplus -= held
        return held

    def condemn(self, unused: Sequence[bytes]) -> set[bytes]:
        """Mark those whose pins have run out, and give them. For the others it is counted from now on."""
        self.pins.begin(unused)
        with self._lock:
            # Under the lock: whoever asks meanwhile either renews the pin before this or sees the mark.
            found = self.pins.ended(unused)
            with self._marks:
                self.condemned |= found
        return found

    def mark_surplus(self, digests: Collection[bytes]) -> None:
        """Mark these as belonging on other servers; what is condemned is no matter of theirs."""
        with self._marks:
            self.surplus |= set(digests) - self.condemned

    def lift(self, marked: set[bytes], digests: Collection[bytes]) -> None:
        """Take this mark away: they are not deleted after all."""
        with self._marks:
            marked.difference_update(digests)

    def release(self, marked: set[bytes], digests: Sequence[bytes]) -> list[bytes]:
        """Those that still have this mark, without it from now on; the lock is held until they are deleted."""
        assert self._lock.locked()
        with self._marks:
            found = [digest for digest in digests if digest in marked]
            self.condemned.difference_update(found)
            self.surplus.difference_update(found)
        self.pins.forget(found)
        return found
