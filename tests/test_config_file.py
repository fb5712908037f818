"""`config.ini` on the disk: never half a file, never another farm's, and always a way back."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path
from unittest import mock

import pytest
from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import config_file
from chunkfarm.config import ConfigError, ConfigFile, ForeignFarm, LockHeld, parse_config, read_config
from chunkfarm.model import FarmOptions, Server

ID = "0123456789abcdef0123456789abcdef"
FARM = FarmOptions(name="lab", id=ID)
A = Server(id="a" * 32, name="a", host="10.0.0.1", client=4100, peer=4101, files=4102, joined=1, seniority=1)
B = evolve(A, id="b" * 32, name="b", seniority=2)
OWN = "[server]\ndata = here  ; mine"


class ConfigFileTests(SynchronousTestCase):
    def make(self, text: str | None = OWN) -> tuple[ConfigFile, Path]:
        """A config.ini alone in its folder, with this text in it if there is any."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        path = folder / "config.ini"
        if text is not None:
            path.write_text(text)
        return ConfigFile(str(path)), path

    def test_read(self) -> None:
        """The file's own data directory is relative to the file, the command line's to the working directory."""
        _, path = self.make()
        assert read_config(path).server.data == path.parent / "here"
        assert read_config(path, {"data": "there"}).server.data == Path("there").absolute()
        assert read_config(path, {"data": None}, "Host").server.name == "host"

    def wrong(self, content: bytes) -> str:
        _, path = self.make(None)
        path.write_bytes(content)
        return str(self.assertRaises(ConfigError, read_config, path)).removeprefix(str(path))

    def test_other_bytes(self) -> None:
        """Bytes that are no text are refused with the line they stand in."""
        assert self.wrong(b"[farm]\nname = \xff\n") == ", line 2: expected text in UTF-8, found other bytes"
        assert self.wrong(b"[farm]\0") == r", line 1: expected text, found the control character '\x00'"

    def test_too_large(self) -> None:
        """A huge file was named by mistake, and is not read to its end."""
        assert "expected a config.ini" in self.wrong(b"; " + b"x" * config_file.CONFIG_BYTES_MAX)

    def test_missing(self) -> None:
        """A file that is not there is said to be missing, and nothing is made in its place."""
        _, path = self.make(None)
        error = self.assertRaises(ConfigError, read_config, path)
        assert str(error) == f"{path}: there is no such file; expected one, and `chunkfarm init` writes it"
        assert list(path.parent.iterdir()) == []

    def test_not_a_file(self) -> None:
        """A directory or a pipe in its place is named as what it is, without waiting for anything."""
        _, path = self.make(None)
        path.mkdir()
        assert "found a directory" in str(self.assertRaises(ConfigError, read_config, path))
        pipe = path / "pipe"
        os.mkfifo(pipe)
        assert "found something else" in str(self.assertRaises(ConfigError, read_config, pipe))
        self.assertRaises(ConfigError, read_config, pipe / "x")

    def test_unreadable(self) -> None:
        """A file that may not be read is refused in one sentence."""
        _, path = self.make()
        with mock.patch("os.open", side_effect=PermissionError(errno.EACCES, "Permission denied")):
            error = self.assertRaises(ConfigError, read_config, path)
        assert str(error) == f"{path}: expected a file that can be read: Permission denied"

    def test_write(self) -> None:
        """The farm's sections are written, and the machine's stays byte for byte."""
        file, path = self.make()
        assert file.write_if_newer(1, FARM, [A]) is True
        config = file.read()
        assert (config.farm, config.generation, [row.name for row in config.servers]) == (FARM, 1, ["a"])
        assert path.read_text().endswith(OWN)

    def test_only_if_newer(self) -> None:
        """A file that has this generation or a later one is not touched."""
        file, path = self.make()
        file.write_if_newer(2, FARM, [A])
        before = path.stat()
        assert file.write_if_newer(2, FARM, [A, B]) is False
        assert file.write_if_newer(1, FARM, [A, B]) is False
        assert path.stat() == before
        assert file.write_if_newer(3, FARM, [A, B]) is True

    def test_new_file(self) -> None:
        """A file that was not there can be read by all and written by its owner, whatever the umask."""
        file, path = self.make(None)
        mask = os.umask(0o077)
        self.addCleanup(os.umask, mask)
        assert file.write_if_newer(1, FARM, [A]) is True
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_mode_stays(self) -> None:
        """Mode and owner are those of the file that is replaced."""
        file, path = self.make()
        path.chmod(0o640)
        if os.getuid() == 0:
            os.chown(path, 1234, 2345)
        before = path.stat()
        file.write_if_newer(1, FARM, [A])
        after = path.stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)

    def test_owner_cannot_stay(self) -> None:
        """Where the owner may not be given away the file is written all the same."""
        file, path = self.make()
        other = mock.Mock(st_uid=1, st_gid=2, st_mode=0o100640)
        with (
            mock.patch("os.stat", return_value=other),
            mock.patch("os.fchown", side_effect=PermissionError(errno.EPERM, "no")) as fchown,
        ):
            assert file.write_if_newer(1, FARM, [A]) is True
        assert len(fchown.mock_calls) > 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_versions(self) -> None:
        """The last three versions stay beside the file, the newest as .1."""
        file, path = self.make()
        texts = [path.read_text()]
        for generation in range(1, 5):
            file.write_if_newer(generation, FARM, [A])
            texts.append(path.read_text())
        assert [Path(f"{path}.{number}").read_text() for number in (1, 2, 3)] == texts[-2:-5:-1]
        names = {"config.ini", "config.ini.1", "config.ini.2", "config.ini.3", "config.ini.lock"}
        assert {one.name for one in path.parent.iterdir()} == names

    def test_versions_without_links(self) -> None:
        """On a file system without hard links the versions are copies."""
        file, path = self.make()
        with mock.patch("os.link", side_effect=PermissionError(errno.EPERM, "no links")):
            file.write_if_newer(1, FARM, [A])
        assert Path(f"{path}.1").read_text() == OWN

    def test_failed_write(self) -> None:
        """A write that fails, even again and again, leaves the file, the versions and no litter."""
        file, path = self.make()
        file.write_if_newer(1, FARM, [A])
        before = path.read_text()
        with mock.patch("os.rename", side_effect=OSError(errno.EBUSY, "Device or resource busy")):
            for _ in range(5):
                self.assertRaises(OSError, file.write_if_newer, 2, FARM, [A, B])
        assert path.read_text() == before
        assert Path(f"{path}.2").read_text() == OWN
        assert not Path(f"{path}.tmp").exists()
        assert file.write_if_newer(2, FARM, [A, B]) is True

    def test_crash_before_the_rename(self) -> None:
        """What a crash left half-written is not in the way of the next write."""
        file, path = self.make()
        Path(f"{path}.tmp").write_text("[fa")
        assert file.write_if_newer(1, FARM, [A]) is True
        assert file.read().farm == FARM

    def test_durable_in_order(self) -> None:
        """The new text is on the disk before it gets the name, and the name before the write is reported."""
        file, path = self.make()
        happened: list[str] = []
        rename, fsync = os.rename, os.fsync

        def note_fsync(descriptor: int) -> None:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            happened.append("fsync of the folder" if is_folder else "fsync of the file")
            fsync(descriptor)

        def note_rename(old: str, new: str) -> None:
            assert Path(old).read_text().endswith(OWN)
            happened.append("rename")
            rename(old, new)

        with mock.patch("os.fsync", note_fsync), mock.patch("os.rename", note_rename):
            file.write_if_newer(1, FARM, [A])
        assert happened == ["fsync of the file", "rename", "fsync of the folder"]
        assert path.exists()

    def test_never_half(self) -> None:
        """A reader in a tight loop sees whole files only, and never finds none."""
        file, path = self.make()
        file.write_if_newer(1, FARM, [A])
        wrong: list[Exception] = []
        generations: set[int] = set()
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                try:
                    config = parse_config(path.read_text(), path)
                    assert config.server.data.name == "here"
                    assert len(config.servers) == config.generation % 2 + 1
                    generations.add(config.generation)
                except Exception as error:
                    wrong.append(error)

        # Generation 1 has one row; bring the rows in step with the numbers before anybody looks.
        file.write_if_newer(2, FARM, [A])
        reader = threading.Thread(target=read)
        reader.start()
        try:
            for generation in range(3, 60):
                file.write_if_newer(generation, FARM, [A, B][: generation % 2 + 1])
        finally:
            done.set()
            reader.join()
        assert wrong == []
        assert generations

    @pytest.mark.slow
    def test_a_thousand_rewrites(self) -> None:
        """Three servers that share a file rewrite it a thousand times: no reader sees half of it, or an older one."""
        self.patch(os, "fsync", lambda descriptor: None)
        _, path = self.make()
        writers = [ConfigFile(str(path)) for _ in range(3)]
        writers[0].write_if_newer(1, FARM, [A])
        wrong: list[Exception] = []
        seen: list[int] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                try:
                    seen.append(read_config(path).generation)
                except Exception as error:
                    wrong.append(error)

        def write(file: ConfigFile, start: int) -> None:
            for generation in range(start, 1002):
                with contextlib.suppress(LockHeld):
                    file.write_if_newer(generation, FARM, [A, B][: generation % 2 + 1])

        threads = [threading.Thread(target=write, args=(file, 2 + number)) for number, file in enumerate(writers)]
        reader = threading.Thread(target=read)
        reader.start()
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            done.set()
            reader.join()
        assert wrong == []
        assert seen == sorted(seen) and len(set(seen)) > 10
        writers[0].write_if_newer(1001, FARM, [A, B])
        assert read_config(path).generation == 1001

    def test_foreign(self) -> None:
        """A file of another farm is never written, not even to put something back."""
        file, path = self.make(f"[farm]\nid = {'f' * 32}\n")
        before = path.read_text()
        error = self.assertRaises(ForeignFarm, file.write_if_newer, 9, FARM, [A])
        assert "f" * 32 in str(error)
        self.assertRaises(ForeignFarm, file.put_back, before, 9, FARM, [A])
        assert path.read_text() == before

    def test_given_up(self) -> None:
        """A person who founds anew has the file of the farm that is given up written over, and no other's."""
        file, _ = self.make(f"[farm]\nid = {'f' * 32}\ngeneration = 70\n")
        with file.locked() as held:
            self.assertRaises(ForeignFarm, held.write, 1, FARM, [A], replaces="e" * 32)
            assert held.write(1, FARM, [A], replaces="f" * 32) is True
        assert (file.read().farm, file.read().generation) == (FARM, 1)

    def test_not_understood(self) -> None:
        """A file that cannot be understood is left as it is."""
        for text in ("[nonsense]\n", "[farm]\ngeneration = many\n"):
            file, path = self.make(text)
            self.assertRaises(ConfigError, file.write_if_newer, 9, FARM, [A])
            assert path.read_text() == text

    def test_link(self) -> None:
        """A symbolic link stays one: the file it names is replaced, and locked."""
        file, path = self.make()
        link = path.parent / "link.ini"
        link.symlink_to(path)
        with file.locked():
            self.assertRaises(LockHeld, ConfigFile(str(link)).write_if_newer, 1, FARM, [A])
        ConfigFile(str(link)).write_if_newer(1, FARM, [A])
        assert link.is_symlink()
        assert file.read().generation == 1

    def test_lock(self) -> None:
        """While somebody holds the lock nobody else writes; the holder reads and writes, and then lets go."""
        file, path = self.make()
        other = ConfigFile(str(path))
        with file.locked() as held:
            self.assertRaises(LockHeld, other.locked)
            self.assertRaises(LockHeld, other.write_if_newer, 1, FARM, [A])
            assert held.read().farm.id == ""
            assert held.write_if_newer(1, FARM, [A]) is True
            assert held.read().farm.id == ID
        held.release()
        assert other.write_if_newer(2, FARM, [A]) is True

    def test_lock_mode(self) -> None:
        """Who may write in the folder may take the lock, and nobody else can hold it up."""
        for folder_mode, lock_mode in ((0o755, 0o600), (0o775, 0o660), (0o777, 0o666)):
            file, path = self.make()
            path.parent.chmod(folder_mode)
            file.locked().release()
            assert stat.S_IMODE(Path(f"{path}.lock").stat().st_mode) == lock_mode

    def test_emptied(self) -> None:
        """A file that lost its id, as while an editor saves it, is not written over."""
        file, path = self.make()
        file.write_if_newer(1, FARM, [A])
        for text in ("", "[server]\n"):
            path.write_text(text)
            self.assertRaises(ConfigError, file.write_if_newer, 2, FARM, [A])
            assert path.read_text() == text

    def test_put_back(self) -> None:
        """An edit is undone, whatever generation it claims, and kept as a version."""
        file, path = self.make()
        file.write_if_newer(5, FARM, [A])
        good = path.read_text()
        edited = good.replace("replicas = 3", "replicas = 1").replace("generation = 5", "generation = 500")
        path.write_text(edited)
        assert file.put_back("something else", 5, FARM, [A]) is False
        assert path.read_text() == edited
        assert file.put_back(edited, 5, FARM, [A]) is True
        assert path.read_text() == good
        assert Path(f"{path}.1").read_text() == edited
        assert file.put_back(good, 5, FARM, [A]) is False

    def test_deleted(self) -> None:
        """A file that was deleted comes back with the machine's section as it last was."""
        file, path = self.make()
        file.write_if_newer(1, FARM, [A])
        path.unlink()
        assert file.write_if_newer(2, FARM, [A]) is True
        assert path.read_text().endswith(OWN)
        path.write_text("\n")
        assert file.put_back("\n", 2, FARM, [A]) is True
        assert path.read_text().endswith(OWN)
