"""How the disk of a server becomes full: a small one of its own, where this user may mount, else by its `reserve`.

Without the right to mount nobody can be given a disk that is full for one process alone. But a server also calls its
disk full when less is free than its option `reserve` says, and a drill may raise that. The story says which of the two
it was: by `reserve` chunks are refused before the disk could refuse anything, and the table goes on.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Protocol

from chunkfarm.drill.servers import Server
from chunkfarm.drill.story import DrillFailed

DISK_MIB = 96
"""For a table and some dozen files; it is in memory, and so are as many as there are servers."""
RESERVE_MIB = 16
"""What servers keep free, where their disks are that small."""
FAR_TOO_MUCH = "1000T"
"""What no disk has free."""
FILLER = "filler"
TOOL_SECONDS = 30
PIECE = 1 << 22
PIECE_LEAST = 4096


class Disks(Protocol):
    """One way to have full disks."""

    words: str
    """What the story says of it."""
    how_full: str
    """How it says that all are full."""
    reserve: str
    """For `config.ini`."""

    def prepare(self, server: Server) -> None:
        """Before its first start. Raises `DrillFailed`."""

    def fill(self, server: Server, leave: int = 0) -> None:
        """Take its room, but so many MiB."""

    def empty(self, server: Server) -> None:
        """Give it back."""

    def end(self, server: Server) -> None:
        """When its process has ended; harmless the second time."""


class OwnDisks:
    """A tmpfs for each data directory; only who may mount can have that."""

    words = f"each server has a disk of its own of {DISK_MIB} MiB (tmpfs)"
    how_full = ", to the last byte"
    reserve = f"{RESERVE_MIB}M"

    def prepare(self, server: Server) -> None:
        server.data.mkdir(mode=0o700, parents=True)
        try:
            mount(server.data)
        except (OSError, subprocess.SubprocessError) as error:
            raise DrillFailed(f"a tmpfs cannot be mounted at {server.data}: {error}") from None

    def fill(self, server: Server, leave: int = 0) -> None:
        fill_up(server.data / FILLER, leave << 20)

    def empty(self, server: Server) -> None:
        (server.data / FILLER).unlink(missing_ok=True)

    def end(self, server: Server) -> None:
        unmount(server.data)


class Reserves:
    """By the option `reserve`, which a server takes up while it runs."""

    words = (
        f"this user cannot mount disks, so a disk is made full by raising what its server keeps free (reserve = "
        f"{FAR_TOO_MUCH}): it refuses chunks as with a full disk, and only the table goes on"
    )
    how_full = ", by what they keep in reserve"
    reserve = "1M"

    def prepare(self, server: Server) -> None:
        pass

    def fill(self, server: Server, leave: int = 0) -> None:
        self._set(server, FAR_TOO_MUCH)

    def empty(self, server: Server) -> None:
        self._set(server, self.reserve)

    def _set(self, server: Server, reserve: str) -> None:
        text = server.config.read_text()
        head, _, own = text.rpartition("reserve = ")
        server.config.write_text(f"{head}reserve = {reserve}\n{own.partition(chr(10))[2]}")
        server.read_config_again()

    def end(self, server: Server) -> None:
        pass


def disks_for(folder: Path, user: int | None = None) -> Disks:
    """Disks that become full really, if this user may have them."""
    if (os.geteuid() if user is None else user) == 0 and _may_mount(folder):
        return OwnDisks()
    return Reserves()


def _may_mount(folder: Path) -> bool:
    trial = folder / "may-mount"
    trial.mkdir(parents=True)
    try:
        mount(trial)
        unmount(trial)
    except (OSError, subprocess.SubprocessError):
        return False
    finally:
        trial.rmdir()
    return True


def mount(folder: Path) -> None:
    """Raises `OSError` or `SubprocessError`."""
    _run("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "chunkfarm-drill", str(folder))


def unmount(folder: Path) -> None:
    """Nothing is left mounted there, even if somebody looks at it still. Raises `OSError` or `SubprocessError`."""
    if os.path.ismount(folder):
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=TOOL_SECONDS)  # noqa: S603 - no text of others


def fill_up(path: Path, leave: int = 0) -> None:
    """Take all room of the disk on which `path` is, but so many bytes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        piece, at = PIECE, 0
        while piece >= PIECE_LEAST:
            try:
                os.posix_fallocate(descriptor, at, piece)
                at += piece
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                piece //= 2
        if leave:
            os.ftruncate(descriptor, max(0, at - leave))
    finally:
        os.close(descriptor)
