"""The data directory: one process at a time, one format, one server id.

Its calls block for a moment; they are made at the start, before anything listens.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from attrs import frozen

from chunkfarm.durable import sync_directory
from chunkfarm.errors import FarmError
from chunkfarm.model import check_server_id

FORMAT = 1
"""What this program writes. It grows when an older program could misread the directory."""


class DataDirectoryError(FarmError):
    """The data directory cannot be used; the sentence names it and says why."""


@frozen
class DataDirectory:
    """An opened, locked data directory; the lock goes with `close` or with the process."""

    path: Path
    server_id: str
    _lock: int

    @classmethod
    def open(cls, path: Path, new_id: UUID) -> DataDirectory:
        """Make the directory if need be, lock it, check its format, and read its server id.

        `new_id` becomes the server id of a directory that has none. Raises `DataDirectoryError`.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(PermissionError):
                # Or a power cut might take the whole directory. Who may not read the parent has not made it here.
                sync_directory(path.parent)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirectoryError(f"the data directory {path} cannot be used: {error.strerror}") from error
        try:
            _take_lock(lock, path)
            _check_format(path)
            return cls(path, _server_id(path, new_id), lock)
        except OSError as error:
            os.close(lock)
            raise DataDirectoryError(f"the data directory {path} cannot be used: {error.strerror}") from error
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Let another process have the directory. Call once."""
        os.close(self._lock)


def is_unused(path: Path) -> bool:
    """Whether no process has this data directory open at the moment. Raises `OSError`."""
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a small file so that a crash leaves either the old one or the new one, durable on return."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, path)
    sync_directory(path.parent)


def _take_lock(lock: int, path: Path) -> None:
    # flock, not a pid in a file: the kernel lets go of it however the process ends, and a second
    # opening in the same process is refused like any other.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataDirectoryError(
            f"the data directory {path} is in use by another chunkfarm process: stop that one, or give this one "
            "a directory of its own with --data"
        ) from error


def _check_format(path: Path) -> None:
    file = path / "format"
    try:
        text = file.read_text("ascii", "replace").strip()
    except FileNotFoundError:
        write_atomically(file, b"%d\n" % FORMAT)
        return
    if not text.isdigit():
        raise DataDirectoryError(f"{file} should hold a format number, but holds {text[:20]!r}")
    if int(text) > FORMAT:
        raise DataDirectoryError(
            f"the data directory {path} has format {int(text)}, and this chunkfarm knows up to {FORMAT}: "
            "start the newer version that wrote it"
        )


def _server_id(path: Path, new_id: UUID) -> str:
    file = path / "server.id"
    try:
        text = file.read_text("ascii", "replace").strip()
    except FileNotFoundError:
        write_atomically(file, new_id.hex.encode() + b"\n")
        return new_id.hex
    try:
        return check_server_id(text)
    except ValueError as error:
        raise DataDirectoryError(f"{file} should hold this server's id: {error}") from error
