"""A farm whose servers each have a disk of their own, of which the power can be cut: ext4 in a file, on a loop device.

The cut is that of the file system's own tests (FS_IOC_SHUTDOWN without a last write of its journal): whatever was
written and not synchronized is gone when it is mounted again, and the journal is replayed as after a real one. What
it cannot show is a disk that loses what it has confirmed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest

from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm

_SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN, which is _IOR('X', 125, __u32)."""
_NO_LOG_FLUSH = 2
DISK_BYTES = 512 * 1024 * 1024
"""The file is sparse: it takes what is written."""


class Disk:
    """One file system in a file, mounted at a folder."""

    def __init__(self, image: Path, folder: Path) -> None:
        self._image = image
        self.folder = folder

    def make(self) -> None:
        """Make it and mount it. Raises `SkipTest` where this machine cannot."""
        with self._image.open("wb") as file:
            file.truncate(DISK_BYTES)
        try:
            _run("mkfs.ext4", "-q", "-F", str(self._image))
            self.folder.mkdir(parents=True)
            self.mount()
        except (OSError, subprocess.CalledProcessError) as error:
            raise SkipTest(f"a file system in a file cannot be made and mounted: {_words(error)}") from None

    def mount(self) -> None:
        """Mount it; the journal is replayed if it was not unmounted in order."""
        _run("mount", "-o", "loop", str(self._image), str(self.folder))

    def unmount(self) -> None:
        """Unmount it; harmless if it is not mounted."""
        if os.path.ismount(self.folder):
            _run("umount", str(self.folder))

    def cut(self) -> None:
        """From here on nothing reaches the disk any more, and every write fails. Raises `OSError`."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


def need_power_cuts() -> None:
    """Raises `SkipTest`, with the reason, where the power of a disk cannot be cut."""
    if os.geteuid() != 0:
        raise SkipTest("only root can mount a file system")
    for tool in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            raise SkipTest(f"{tool} is not installed")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disk = Disk(folder / "image", folder / "disk")
        stack.callback(disk.unmount)
        disk.make()
        try:
            disk.cut()
        except OSError as error:
            raise SkipTest(f"the kernel does not let a file system be shut down: {error.strerror}") from None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)


def _words(error: OSError | subprocess.CalledProcessError) -> str:
    said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
    return said or str(error)


class DisksFarm(RealFarm):
    """Each server's data directory is a disk of its own, and holds its own `config.ini` as well."""

    def __init__(self, directory: str | Path, **settings: Any) -> None:
        super().__init__(directory, server="reserve = 1M", **settings)
        self.disks: dict[str, Disk] = {}

    def start_on_disks(self, *names: str) -> None:
        """Make the disks, and start on each a server with its own copy of `config.ini` and of the join key."""
        template, first = self.config_path, self.server(names[0]).data
        self.config_path = first / "config.ini"
        for name in names:
            data = self.server(name).data
            disk = self.disks[name] = Disk(self.directory / f"{name}.image", data)
            disk.make()
            shutil.copy(template if name == names[0] else self.config_path, data / "config.ini")
            if name != names[0]:
                shutil.copy(first / "farm.join", data / "farm.join")
            self.start_again(name)
            self.wait_serving(name)

    def start_again(self, *names: str) -> None:
        """Start servers whose disks are there."""
        for name in names:
            self.start(name, config=self.server(name).data / "config.ini")

    def cut_power(self, *names: str) -> None:
        """End machines without a warning: first the disks, so that the processes run on without one for a moment."""
        for name in names:
            self.disks[name].cut()
        self.kill9(*names)
        for name in names:
            self.disks[name].unmount()
            self.disks[name].mount()

    def close(self) -> None:
        try:
            for server in self.servers.values():
                if server.is_running():
                    self.kill9(server.name)
        finally:
            for disk in self.disks.values():
                disk.unmount()
            super().close()


class DisksTestCase(FarmTestCase):
    """Makes farms whose servers each have a disk of their own."""

    def make_disks(self, *names: str) -> DisksFarm:
        """Servers that all hold the table. Raises `SkipTest` where this machine cannot have it."""
        need_power_cuts()
        farm = DisksFarm(os.path.abspath(self.mktemp()))
        self.addCleanup(farm.close)
        farm.start_on_disks(*names)
        farm.wait_copies(names[-1], len(names))
        return farm
