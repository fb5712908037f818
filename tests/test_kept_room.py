"""Room that is kept for a start on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.kept_room import FILE, NEEDED_BYTES, PLENTY, ROOM_BYTES, give_back, keep


@frozen
class Status:
    f_bavail: int
    f_frsize: int = 1


class KeptRoomTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.file = self.folder / FILE
        self.free = PLENTY * ROOM_BYTES
        self.patch(os, "statvfs", lambda path: Status(self.free))

    def test_kept_and_given_back(self) -> None:
        """It really takes its room, for its owner alone, and goes when a start needs it."""
        assert keep(self.folder) and keep(self.folder)
        status = os.stat(self.file)
        assert (status.st_size, status.st_mode & 0o777) == (ROOM_BYTES, 0o600)
        assert status.st_blocks * 512 >= ROOM_BYTES
        assert not give_back(self.folder) and self.file.exists()
        self.free = NEEDED_BYTES - 1
        assert give_back(self.folder) and not self.file.exists()
        assert not give_back(self.folder)

    def test_no_plenty(self) -> None:
        """Where little is free it is not taken."""
        self.free -= 1
        assert not keep(self.folder) and not self.file.exists()

    def test_a_disk_that_cannot(self) -> None:
        """Nothing half is left, and nobody is troubled."""

        def refuse(*arguments: Any) -> None:
            raise OSError(errno.ENOSPC, "no room")

        self.patch(os, "posix_fallocate", refuse)
        assert not keep(self.folder) and not self.file.exists()
        assert not keep(self.folder / "nowhere") and not give_back(self.folder / "nowhere")
