from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import data_directory
from chunkfarm.data_directory import DataDirectory, DataDirectoryError, is_unused, write_atomically

ID = UUID(int=1)


class DataDirectoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "data"

    def open(self, new_id: UUID = ID) -> DataDirectory:
        directory = DataDirectory.open(self.path, new_id)
        self.addCleanup(directory.close)
        return directory

    def refused(self) -> str:
        with self.assertRaises(DataDirectoryError) as caught:
            self.open()
        return str(caught.exception)

    def test_made(self) -> None:
        """A first start makes the directory, for this user alone, with its format and the server's id."""
        assert self.open().server_id == ID.hex
        assert stat.S_IMODE(self.path.stat().st_mode) == 0o700
        assert {file.name: file.read_text() for file in self.path.iterdir()} == {
            "format": "1\n",
            "lock": "",
            "server.id": f"{ID.hex}\n",
        }
        assert {stat.S_IMODE(file.stat().st_mode) for file in self.path.iterdir()} == {0o600}

    def test_durable(self) -> None:
        """A power cut takes neither what is in it nor its own name; a parent that may not be read is no hindrance."""
        synced: list[Path] = []
        self.patch(data_directory, "sync_directory", lambda path: synced.append(Path(path)))
        DataDirectory.open(self.path, ID).close()
        assert {self.path, self.path.parent} <= set(synced)

        def refuse(path: Path) -> None:
            if Path(path) == self.path.parent:
                raise PermissionError(13, "Permission denied")

        self.patch(data_directory, "sync_directory", refuse)
        self.open()

    def test_keeps_its_id(self) -> None:
        """The server id is made once and for ever."""
        DataDirectory.open(self.path, ID).close()
        assert self.open(UUID(int=2)).server_id == ID.hex

    def test_in_use(self) -> None:
        """A second process is turned away with a sentence that names the directory."""
        self.open()
        sentence = self.refused()
        assert str(self.path) in sentence
        assert "in use by another chunkfarm process" in sentence

    def test_lock_goes_with_the_process(self) -> None:
        """The lock of a process that was killed does not outlive it."""
        code = (
            "import os, sys, uuid, pathlib\n"
            "from chunkfarm.data_directory import DataDirectory\n"
            "DataDirectory.open(pathlib.Path(sys.argv[1]), uuid.UUID(int=3))\n"
            "os._exit(9)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(self.path)], cwd=Path(__file__).parents[1], check=False)
        assert done.returncode == 9
        assert self.open().server_id == UUID(int=3).hex

    def test_newer_format(self) -> None:
        """A directory of a newer version is left alone."""
        self.path.mkdir(parents=True)
        (self.path / "format").write_text("2\n")
        assert "format 2" in self.refused()
        assert not (self.path / "server.id").exists()

    def test_nonsense(self) -> None:
        """A format or an id that is none is refused, and the file is named."""
        for name, content in (
            ("format", "one"),
            ("format", ""),
            ("format", "²"),
            ("server.id", "me"),
            ("server.id", ""),
        ):
            path = Path(self.mktemp()).absolute()
            path.mkdir()
            (path / name).write_text(content)
            with self.assertRaises(DataDirectoryError) as caught:
                DataDirectory.open(path, ID)
            assert str(path / name) in str(caught.exception)

    def test_refused_lets_go(self) -> None:
        """A directory that was refused can be opened once it is put right."""
        self.path.mkdir(parents=True)
        (self.path / "format").write_text("2\n")
        self.refused()
        (self.path / "format").write_text("1\n")
        self.open()

    def test_not_a_directory(self) -> None:
        """A path that cannot be a directory gets one sentence."""
        self.path.parent.mkdir()
        self.path.write_text("a file")
        assert str(self.path) in self.refused()
        self.path = self.path / "below"
        assert str(self.path) in self.refused()


class WriteAtomicallyTests(SynchronousTestCase):
    def test_replaces(self) -> None:
        """A file is replaced as a whole, with the mode asked for, and nothing is left beside it."""
        directory = Path(self.mktemp())
        directory.mkdir()
        path = directory / "file"
        path.write_text("old")
        write_atomically(path, b"new", 0o644)
        assert path.read_text() == "new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert [one.name for one in directory.iterdir()] == ["file"]


class IsUnusedTests(SynchronousTestCase):
    """Whether a directory is free, without taking it."""

    def test_free_taken_free(self) -> None:
        """It is free before the first start, not while a process has it, and free again after that."""
        path = Path(self.mktemp())
        path.mkdir()
        assert is_unused(path)
        data = DataDirectory.open(path, UUID(int=1))
        assert not is_unused(path)
        data.close()
        assert is_unused(path)
