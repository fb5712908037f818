"""Where the small chunks are that were put or read of late, to read them again without a thread.

The way to a thread and back costs a small read many times what the read does, and nearly always the bytes are in
the page cache. So the kernel is asked for them on the condition that it need not wait for the disk; only if it must, or
if nothing is known of the chunk here, a thread is asked.

All of this is a guess, and may be out of date: whoever reads verifies what came, and asks a thread if it is wrong.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import Protocol

PLACES_MOST = 65_536
"""Chunks of which it is known where they are: some 20 MiB."""
OPEN_MOST = 16
"""Packs that are open, 1 GiB of small chunks: those used last."""

_NOT_TO_WAIT = getattr(os, "RWF_NOWAIT", None)


class IPlace(Protocol):
    """Where a record is."""

    @property
    def pack(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...


class Recent:
    """What is known of the packs in one directory. `read` never waits; everything else is for threads."""

    def __init__(self) -> None:
        # Never held while the disk is waited for: the reactor takes it, too.
        self._lock = threading.Lock()
        self._places: OrderedDict[bytes, IPlace] = OrderedDict()
        self._open: OrderedDict[int, int] = OrderedDict()

    def note(self, digest: bytes, place: IPlace, path: str) -> None:
        """A chunk was put or read at this place, in the pack at `path`."""
        if _NOT_TO_WAIT is None:
            return
        if place.pack not in self._open:
            self._keep_open(place.pack, path)
        with self._lock:
            self._places[digest] = place
            self._places.move_to_end(digest)
            if len(self._places) > PLACES_MOST:
                self._places.popitem(last=False)

    def _keep_open(self, pack: int, path: str) -> None:
        # It may be gone, or there may be no descriptors left: then a thread is asked.
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            with self._lock:
                unwanted = [self._open.pop(pack, -1)]
                self._open[pack] = descriptor
                if len(self._open) > OPEN_MOST:
                    unwanted.append(self._open.popitem(last=False)[1])
            _close(unwanted)

    def read(self, digest: bytes) -> tuple[IPlace, bytes] | None:
        """A place and the bytes there, not verified; None if they are not at hand."""
        with self._lock:
            place = self._places.get(digest)
            descriptor = self._open.get(place.pack) if place is not None else None
            if place is None or descriptor is None:
                return None
            self._open.move_to_end(place.pack)
            record = bytearray(place.size)
            assert _NOT_TO_WAIT is not None
            try:
                # Under the lock, or the descriptor might be another file's by now.
                length = os.preadv(descriptor, [record], place.offset, _NOT_TO_WAIT)
                if not os.fstat(descriptor).st_nlink:
                    # Somebody has removed the pack: that must be noticed, though it could still be read.
                    return None
            except OSError:
                # It is not in memory, or this file system does not tell.
                return None
        return (place, bytes(record)) if length == len(record) else None

    def forget(self, digest: bytes) -> None:
        """The chunk is not here any more."""
        with self._lock:
            self._places.pop(digest, None)

    def forget_pack(self, pack: int) -> None:
        """The pack is not here any more."""
        with self._lock:
            unwanted = self._open.pop(pack, -1)
        _close([unwanted])

    def clear(self) -> None:
        """Know nothing, and have nothing open."""
        with self._lock:
            unwanted = list(self._open.values())
            self._open.clear()
            self._places.clear()
        _close(unwanted)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
