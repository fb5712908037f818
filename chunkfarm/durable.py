"""What makes a name on a disk outlive a power cut, and what a disk says that has no room for it."""

from __future__ import annotations

import errno
import os
import sqlite3


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable: a file that was renamed into it may be gone otherwise. Blocks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_broken(error: BaseException) -> bool:
    """Whether a database could not be read or written because the disk failed, or gives back what was not written."""
    code = getattr(error, "sqlite_errorcode", None)
    # The low byte says what kind of error it is.
    return code is not None and code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_full(error: BaseException) -> bool:
    """Whether something could not be written because the disk has no room, or no inode, or the quota is used up."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
