"""When the copies on this disk were last found to be whole: for people, who want to know how old that knowledge is.

A copy was whole when it was written, and again whenever all of it was read and compared. The scrub reads every chunk in
the order of the digests, so one time for each first byte tells when all that begin with it were read (`passed`). Packs
note once a minute where they ended (`chunks.packs`), and the file of a larger chunk has a time of its own. What was
read in between, by a user or because somebody asked, is noted chunk by chunk (`note`), some at a time and
seldom (`save`), and forgotten when the scrub has come by. All times are ms since 1970 of this machine's clock, and none
is later than the truth. Like all of the index they may be lost; then they are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chunkfarm.chunks.index import Index

AGAIN_MS = 3_600_000
"""A chunk that is read again and again is noted once in so long: a page that everybody looks at costs one small row."""
NOTED_MAX = 20_000
"""Chunks that are noted until they are saved, and of which it is remembered that they were: some 4 MiB."""


class Verified:
    """The times of one store. `now` is the wall clock in ms. All but `note` block, and are called on a thread."""

    def __init__(self, index: Index, now: Callable[[], int]) -> None:
        self._index = index
        self._now = now
        self._noted: dict[bytes, int] = {}
        """What is to be saved."""
        self._saved: dict[bytes, int] = {}
        """What was saved of late."""

    def note(self, digest: bytes) -> None:
        """All of this chunk was read just now, and found right. May be called from any thread."""
        now, noted = self._now(), self._noted
        if len(noted) < NOTED_MAX and abs(now - self._saved.get(digest, 0)) >= AGAIN_MS:
            noted[digest] = now

    def save(self) -> None:
        """Write down what was noted."""
        noted, self._noted = self._noted, {}
        if noted:
            self._index.write([("INSERT OR REPLACE INTO verified VALUES (?, ?)", list(noted.items()))])
            self._saved = noted if len(self._saved) + len(noted) > NOTED_MAX else self._saved | noted

    def passed(self, prefix: int, began: int) -> None:
        """All chunks that begin with this byte have been read, none of them before `began`."""
        first, last = bytes([prefix]), bytes([prefix]) + b"\xff" * 32
        self._index.write(
            [
                ("INSERT OR REPLACE INTO passes VALUES (?, ?)", [(prefix, began)]),
                ("DELETE FROM verified WHERE digest >= ? AND digest <= ? AND ms <= ?", [(first, last, began)]),
            ]
        )

    def times(self, digests: Sequence[bytes]) -> list[int]:
        """When each was last read and found right, by what is known here; 0 if that is not known."""
        passes: dict[int, int] = dict(self._index.read("SELECT prefix, ms FROM passes"))
        rows = self._index.read_named("SELECT digest, ms FROM verified WHERE digest IN", digests)
        read = {bytes(digest): ms for digest, ms in rows} | self._noted
        return [max(passes.get(digest[0], 0), read.get(digest, 0)) for digest in digests]
