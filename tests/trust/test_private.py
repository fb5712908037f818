"""Secret files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.trust.private import (
    FILE_BYTES_MAX,
    AlreadyExists,
    NoSuchFile,
    TrustError,
    read_private,
    read_public,
    write_private,
    write_public,
)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class PrivateFileTests(SynchronousTestCase):
    """A secret file is for its owner alone."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "a key"

    def write_everything_readable(self) -> None:
        previous = os.umask(0)
        self.addCleanup(os.umask, previous)

    def test_round_trip(self) -> None:
        """What was written is read."""
        write_private(self.path, b"secret")
        assert read_private(self.path) == b"secret"
        assert os.listdir(self.folder) == ["a key"]

    def test_mode_whatever_the_umask(self) -> None:
        """A secret file is 0600 even where new files are open to all."""
        self.write_everything_readable()
        write_private(self.path, b"secret")
        assert mode_of(self.path) == 0o600

    def test_closed_from_the_first_byte(self) -> None:
        """The file is closed to others before anything is in it, and is a new one."""
        self.write_everything_readable()
        seen: list[tuple[int, int, int]] = []
        real = os.open

        def watched(path: Any, flags: int, mode: int = 0o777) -> int:
            descriptor = real(path, flags, mode)
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                seen.append((stat.S_IMODE(status.st_mode), flags & (os.O_EXCL | os.O_CREAT), status.st_size))
            return descriptor

        self.patch(os, "open", watched)
        write_private(self.path, b"secret")
        assert seen == [(0o600, os.O_EXCL | os.O_CREAT, 0)]

    def test_replaces_an_open_file(self) -> None:
        """A file that others could read is replaced by one that they cannot."""
        self.path.write_bytes(b"old")
        self.path.chmod(0o644)
        write_private(self.path, b"new")
        assert mode_of(self.path) == 0o600
        assert read_private(self.path) == b"new"

    def test_old_file_survives_a_failed_write(self) -> None:
        """If the new file cannot be put in place, the old one stays whole and nothing is left behind."""
        write_private(self.path, b"old")

        def fail(source: Any, target: Any) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "replace", fail)
        error = self.assertRaises(TrustError, write_private, self.path, b"new")
        assert str(error) == f"cannot write {self.path}: No space left on device"
        assert read_private(self.path) == b"old"
        assert os.listdir(self.folder) == ["a key"]

    def test_existing_file_is_kept(self) -> None:
        """A file that must not be replaced is not, and its writer is told."""
        write_private(self.path, b"first", replace=False)
        self.assertRaises(AlreadyExists, write_private, self.path, b"second", replace=False)
        assert read_private(self.path) == b"first"
        assert os.listdir(self.folder) == ["a key"]

    def test_refused_when_open_to_others(self) -> None:
        """A secret that group or others have any right to is refused, with the command that mends it."""
        write_private(self.path, b"secret")
        for mode in (0o640, 0o620, 0o604, 0o602, 0o601, 0o644, 0o666):
            self.path.chmod(mode)
            error = self.assertRaises(TrustError, read_private, self.path)
            assert str(self.path) in str(error)
            assert f"chmod 600 '{self.path}'" in str(error)
            assert "secret" not in str(error).replace("holds a secret", "")

    def test_owner_may_have_fewer_rights(self) -> None:
        """A secret that its owner can only read is as good."""
        write_private(self.path, b"secret")
        self.path.chmod(0o400)
        assert read_private(self.path) == b"secret"

    def test_absent(self) -> None:
        """A file that is not there is told from one that is wrong."""
        error = self.assertRaises(NoSuchFile, read_private, self.path)
        assert str(error) == f"{self.path} does not exist"

    def test_absent_directory(self) -> None:
        """Writing where there is no directory is one sentence."""
        error = self.assertRaises(TrustError, write_private, self.folder / "none" / "key", b"")
        assert "No such file or directory" in str(error)

    def test_not_a_file(self) -> None:
        """A FIFO or a directory in the file's place is refused and not waited for."""
        os.mkfifo(self.path, 0o600)
        error = self.assertRaises(TrustError, read_private, self.path)
        assert "not a regular file" in str(error)
        self.assertRaises(TrustError, read_private, self.folder)

    def test_too_large(self) -> None:
        """A file that is far too large is not read into memory."""
        write_private(self.path, bytes(FILE_BYTES_MAX))
        assert len(read_private(self.path)) == FILE_BYTES_MAX
        write_private(self.path, bytes(FILE_BYTES_MAX + 1))
        self.assertRaises(TrustError, read_private, self.path)

    def test_public(self) -> None:
        """A certificate may be read by anybody, whatever the umask."""
        previous = os.umask(0o077)
        self.addCleanup(os.umask, previous)
        write_public(self.path, b"certificate")
        assert mode_of(self.path) == 0o644
        assert read_public(self.path) == b"certificate"
