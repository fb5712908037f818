"""Room on the disk that is kept for a start, so that a full disk does not keep a server from serving what it has.

A start writes little, but it does write: SQLite's side files, a pid, a log. Where there is no room for that, the file
that stands here for it goes first. It comes back once there is room again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FILE = "room"
ROOM_BYTES = 8 * 1024 * 1024
"""Some hundred KiB for a start, the rest for all others until somebody has made room. Changes of the table may take it
too, so a farm with full disks goes on a little longer after a restart."""
NEEDED_BYTES = 2 * 1024 * 1024
"""With less than this free a start is not tried without it: the side files of three tables, and what is in them."""
PLENTY = 4
"""It is made where so many times as much is free: who has less needs every byte."""


def give_back(directory: str | os.PathLike[str]) -> bool:
    """Before a start: give the room back if the disk is full; says whether there was any. Blocks for the disk."""
    path = Path(directory, FILE)
    try:
        if _free(path.parent) >= NEEDED_BYTES:
            return False
        path.unlink()
    except OSError:
        # What is wrong with that disk, the start itself says better.
        return False
    return True


def keep(directory: str | os.PathLike[str]) -> bool:
    """Keep the room if it is not kept yet and there is plenty; says whether it is kept. Blocks for the disk."""
    path = Path(directory, FILE)
    try:
        if path.exists():
            return True
        if _free(path.parent) < PLENTY * ROOM_BYTES:
            return False
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, ROOM_BYTES)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(descriptor)
    except OSError:
        # A file system that cannot promise room, or has just lost it: the start will have to do without.
        return False
    return True


def _free(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
