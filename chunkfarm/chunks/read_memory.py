"""How much of chunks that are read out may be in memory, over all readers.

A reader keeps some pieces of two megabytes: one that is sent, one that waits, one that is read ahead. That is little
for those who take what they asked for, and gigabytes for a thousand who do not. So pieces become smaller as memory
fills up, down to one block: nobody is refused, and whoever came first keeps what it has until it has taken it.
"""

from __future__ import annotations

import threading

from chunkfarm.chunks.chunkfile import BLOCK
from chunkfarm.model import MIB

PIECE = 2 * MIB
"""Bytes read in one go. The way of a piece from the disk's thread to the connection costs some 150 us, so that a large
file comes 6 % slower in pieces of half the size."""
READ_BYTES_MAX = 256 * MIB
"""What all readers together should stay within: some twenty have the largest pieces, forty half as large ones."""
SHARE = 64
"""A piece takes no more than such a part of what is left of it."""
PIECES = 3
"""Of one reader in memory: one is sent, one waits until that is done, one is read ahead."""


class ReadMemory:
    """Counts it. Every method may be called from any thread."""

    def __init__(self, most: int = READ_BYTES_MAX) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._taken = 0
        self.queued = 0
        """Bytes that connections have not sent yet, as they were counted last; some of them are counted as read too."""

    @property
    def used(self) -> int:
        """Bytes in memory, as far as they are known."""
        return max(self._taken, self.queued)

    def is_crowded(self, proven: bool) -> bool:
        """Whether it is better to read nothing ahead, for a reader that takes what it asks for or for another one."""
        return self.used > self._most // (2 if proven else 8)

    def piece(self) -> int:
        """How many bytes the next piece may have: a power of two, and at least a block."""
        room = (self._most - self.used) // SHARE
        if room >= PIECE:
            return PIECE
        return BLOCK if room <= BLOCK else 1 << room.bit_length() - 1

    def take(self, count: int) -> None:
        """So many bytes have been read."""
        with self._lock:
            self._taken += count

    def give(self, count: int) -> None:
        """So many are no longer needed."""
        with self._lock:
            self._taken -= count
