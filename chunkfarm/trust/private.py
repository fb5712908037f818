"""Files that hold secrets: never readable by others, and never seen half written."""

from __future__ import annotations

import os
import secrets
import shlex
import stat
from collections.abc import Callable
from pathlib import Path

from chunkfarm.durable import sync_directory
from chunkfarm.errors import FarmError

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
OTHERS = 0o077
"""Whoever can write a secret file can put in a secret of his own, so every right of others counts, not only reading."""
FILE_BYTES_MAX = 64 * 1024
"""The largest of these files is a certificate with its chain, a few KiB; whatever is larger is another file."""


class TrustError(FarmError):
    """Something about keys, certificates or secret files is not as it must be; one sentence says what."""


class NoSuchFile(TrustError):
    """The file does not exist, which its reader may know how to mend."""


class AlreadyExists(TrustError):
    """The file exists, and was not to be replaced."""


def write_private(path: str | os.PathLike[str], data: bytes, *, replace: bool = True) -> None:
    """Write a file that only its owner can read, as a whole or not at all.

    With `replace=False` an existing file stays and `AlreadyExists` is raised, whoever wins a race.
    Raises `TrustError` if it cannot be written. Blocks for the disk.
    """
    _write(Path(path), data, PRIVATE_MODE, replace)


def write_public(path: str | os.PathLike[str], data: bytes, *, replace: bool = True) -> None:
    """Write a file that anybody may read; otherwise as `write_private`. Blocks for the disk."""
    _write(Path(path), data, PUBLIC_MODE, replace)


def read_private(path: str | os.PathLike[str]) -> bytes:
    """The content of a secret file.

    Raises `NoSuchFile`, and `TrustError` if group or others have any right to it. Blocks for the disk.
    """
    content, mode = _read(Path(path))
    check_private(path, mode)
    return content


def check_private(path: str | os.PathLike[str], mode: int) -> None:
    """Raise `TrustError` if a secret file of that mode gives group or others any right to it."""
    if mode & OTHERS:
        raise TrustError(
            f"{path} holds a secret but is open to group or others (mode {mode & 0o777:04o}): "
            f"run chmod 600 {shlex.quote(os.fspath(path))}"
        )


def read_public(path: str | os.PathLike[str]) -> bytes:
    """The content of a file that is no secret; raises `NoSuchFile` or `TrustError`. Blocks for the disk."""
    return _read(Path(path))[0]


def _write(path: Path, data: bytes, mode: int, replace: bool) -> None:
    # The random part keeps two processes from each other's temporary file, and O_EXCL keeps a waiting
    # symbolic link from leading the secret elsewhere.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    put_in_place: Callable[[Path, Path], None] = os.replace if replace else os.link
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with open(descriptor, "wb") as file:
                # The umask may have taken rights away from what anybody may read; it never adds any.
                os.fchmod(descriptor, mode)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            put_in_place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise AlreadyExists(f"{path} exists already") from error
    except OSError as error:
        raise TrustError(f"cannot write {path}: {error.strerror}") from error


def _read(path: Path) -> tuple[bytes, int]:
    """Content and mode of one and the same open file, so that it cannot be swapped between check and use."""
    try:
        # O_NONBLOCK: opening a FIFO that was put there must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise TrustError(f"{path} is not a regular file")
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise NoSuchFile(f"{path} does not exist") from error
    except OSError as error:
        raise TrustError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise TrustError(f"{path} is larger than {FILE_BYTES_MAX} bytes, so it is not the file expected here")
    return content, status.st_mode
