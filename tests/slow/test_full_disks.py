"""Disks without room, and disks without inodes: clean refusals, and everything again once there is room."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from chunkfarm import kept_room
from tests.slow.line_socket import Refused
from tests.slow.own_disks import DisksFarm, DisksTestCase

pytestmark = pytest.mark.slow

NAMES = ("alpha", "beta", "gamma")
LARGE = 20_000_000
SMALL = 3_000


class FullDiskTests(DisksTestCase):
    def make_full(self) -> DisksFarm:
        """Three servers with small disks, and files to put there."""
        farm = self.make_disks(*NAMES)
        self.large = farm.directory / "large"
        self.large.write_bytes(os.urandom(LARGE))
        self.more = farm.directory / "more"
        self.more.write_bytes(os.urandom(LARGE))
        self.small = farm.directory / "small"
        self.small.write_bytes(os.urandom(SMALL))
        return farm

    def put(self, farm: DisksFarm, path: Path, name: str) -> tuple[int, str]:
        done = farm.cli("--timeout", "10", "put", str(path), name)
        return done.returncode, done.stderr

    def reads(self, farm: DisksFarm) -> None:
        """Every server still gives the file that was stored before."""
        for name in NAMES:
            got = farm.curl("-sS", f"{farm.servers[name].url}/home/large")
            assert got.stdout == self.large.read_bytes(), f"{name}: {got.stderr!r}"

    def well_again(self, farm: DisksFarm) -> None:
        """Everything works as before, without a restart."""
        farm.wait_serving(*NAMES)
        farm.wait_for(lambda: self.put(farm, self.more, "home/again")[0] == 0, 30, "a large file is taken again")
        status, said = self.put(farm, self.small, "home/again2")
        assert status == 0, said
        assert farm.cli("rm", "home/again").returncode == 0
        self.reads(farm)

    def test_no_room(self) -> None:
        """Full disks: nothing new is taken, with the reason; files are read, after a start too; then all is well."""
        farm = self.make_full()
        assert self.put(farm, self.large, "home/large")[0] == 0
        gamma = farm.servers["gamma"].data
        farm.wait_for((gamma / kept_room.FILE).exists, 20, "gamma keeps room for a start")
        fillers = [self.fill(gamma)]
        farm.sigterm("gamma")
        farm.wait_ended("gamma", 20)
        fillers.append(self.fill(gamma))
        farm.start("gamma")
        farm.wait_serving("gamma")
        self.reads(farm)
        assert not (gamma / kept_room.FILE).exists()
        fillers += [self.fill(farm.servers[name].data) for name in NAMES]
        status, said = self.put(farm, self.more, "home/more")
        assert status in (1, 6) and "full" in said and "Traceback" not in said, said
        refused = farm.curl("-sS", "-w", "%{http_code}", "-T", str(self.more), f"{farm.servers['beta'].url}/home/more")
        assert refused.stdout[-3:] in (b"507", b"503") and b"full" in refused.stdout, refused.stdout

        numbers = itertools.count()

        def says_why() -> bool:
            # Each time another one: a change to what is there already writes nothing, so no disk would refuse it.
            farm.cli("--timeout", "3", "set", "alpha", f"zone=attic{next(numbers)}")
            told = [farm.hello(name) for name in NAMES]
            return all(hello is not None and hello.state == "readonly" for hello in told)

        farm.wait_for(says_why, 60, "the table cannot be changed, and every server says so")
        with self.assertRaises(Refused) as refusal:
            farm.ask("beta", "SET alpha zone=attic")
        said = str(refusal.exception)
        assert said.startswith("ERR readonly ") and "the disk that holds the table is full on " in said, said
        assert "make room" in said
        self.reads(farm)
        for filler in fillers:
            filler.unlink()
        self.well_again(farm)

    def fill(self, folder: Path) -> Path:
        """Take all room of a disk."""
        filler = folder / f"filler{len(list(folder.iterdir()))}"
        descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            piece, at = 1 << 26, 0
            while piece >= 512:
                try:
                    os.posix_fallocate(descriptor, at, piece)
                    at += piece
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    piece //= 2
        finally:
            os.close(descriptor)
        return filler

    def test_no_inodes(self) -> None:
        """Disks that take no more files: large chunks are refused as for want of room, and nothing else is harmed."""
        farm = self.make_full()
        assert self.put(farm, self.large, "home/large")[0] == 0
        assert self.put(farm, self.small, "home/small")[0] == 0
        for name in NAMES:
            self.use_up_inodes(farm.servers[name].data / "many")
        refused = farm.curl("-sS", "-w", "%{http_code}", "-T", str(self.more), f"{farm.servers['beta'].url}/home/more")
        assert refused.stdout[-3:] == b"507", refused.stdout
        assert farm.ask("beta", "SET alpha zone=attic").line.startswith("OK ")
        self.reads(farm)
        for name in NAMES:
            for path in (farm.servers[name].data / "many").iterdir():
                path.unlink()
        self.well_again(farm)

    def use_up_inodes(self, folder: Path) -> None:
        folder.mkdir()
        number = 0
        while True:
            try:
                os.close(os.open(folder / str(number), os.O_WRONLY | os.O_CREAT, 0o600))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                return
            number += 1
