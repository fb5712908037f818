"""Stores that people have today, each with three servers and three copies, to be measured beside a farm.

MooseFS and Gluster are mounted, as their users have them: twice each, so that what one mount has written the
other has not in its cache. They refuse to work on 127.0.0.1 alone, so each runs in a network namespace of its own,
in which nothing but its own loopback exists; that takes root. Tahoe-LAFS is asked over HTTP on 127.0.0.1.

What an answer to a put means differs. Gluster's mount answers fsync when its three bricks have synchronized (seen with
strace). MooseFS's answers when its chunkservers have the bytes in memory: with `HDD_FSYNC_BEFORE_CLOSE`
they synchronize a moment later, and its master does not at all. Tahoe-LAFS never does. Between their servers
MooseFS and Gluster do not encrypt unless told to; Tahoe-LAFS does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.beside import free_port

T = TypeVar("T")
START_SECONDS = 60.0
ADDRESS = "10.9.0.1"
"""In a namespace in which there is nothing else."""
NUMBERS = (1, 2, 3)
KEPT = "answered"
MOUNTS = ("write", "read")

MASTER = """
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = {folder}/master
EXPORTS_FILENAME = {folder}/exports.cfg
TOPOLOGY_FILENAME = {folder}/topology.cfg
MATOML_LISTEN_HOST = {address}
MATOCS_LISTEN_HOST = {address}
MATOCL_LISTEN_HOST = {address}
"""
CHUNKSERVER = """
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = {folder}/server{number}
HDD_CONF_FILENAME = {folder}/disk{number}.cfg
HDD_FSYNC_BEFORE_CLOSE = 1
HDD_LEAVE_SPACE_DEFAULT = 256MiB
MASTER_HOST = {address}
CSSERV_LISTEN_HOST = {address}
CSSERV_LISTEN_PORT = {port}
"""
GLUSTERD = """
volume management
    type mgmt/glusterd
    option working-directory {folder}/state{number}
    option run-directory {folder}/run{number}
    option transport-type socket
    option transport.socket.bind-address {address}
    option transport.socket.keepalive-time 10
    option transport.socket.keepalive-interval 2
    option base-port {port}
    option max-port 60999
    option glusterd-sockfile {folder}/run{number}/glusterd.sock
end-volume
"""


class Peer(Protocol):
    """A running store. Names of files are new each time."""

    name: str

    @property
    def pids(self) -> list[int]:
        """All of its processes."""

    def put_large(self, file: Path, name: str) -> None:
        """Store a file."""

    def get_large(self, name: str) -> None:
        """Read it again."""

    def client(self) -> list[str]:
        """How `benchmarks.small_files` finds it."""

    def clear(self, names: Sequence[str]) -> None:
        """Make room: the large files of these names are not wanted any more."""

    def close(self) -> None:
        """End every process."""


class Namespace:
    """Processes in a network of their own. Whatever is in it was started here, and is ended with it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._started: list[subprocess.Popen[bytes]] = []
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
        own = os.readlink("/proc/self/ns/net")
        wait_for(lambda: self._identity() not in ("", own), "there is a namespace")
        self.run("ip", "link", "set", "lo", "up")

    def _identity(self) -> str:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{self._holder.pid}/ns/net")
        return ""

    def _inside(self, *command: str) -> list[str]:
        return ["nsenter", "--target", str(self._holder.pid), "--net", *command]

    def run(self, *command: str) -> str:
        """Run a command to its end; what it says."""
        done = subprocess.run(
            self._inside(*command), check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *command: str) -> None:
        """Start a process, and do not wait."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self._inside(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(process)

    @property
    def pids(self) -> list[int]:
        """Every process in it, those that its processes have started as well."""
        identity, found = self._identity(), []
        for link in Path("/proc").glob("[0-9]*/ns/net"):
            pid = int(link.parts[2])
            with contextlib.suppress(OSError):
                if os.readlink(link) == identity and pid != self._holder.pid:
                    found.append(pid)
        return found

    def close(self) -> None:
        """End them all."""
        deadline = time.monotonic() + START_SECONDS
        while (left := self.pids) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._started:
                process.poll()
            time.sleep(0.05)
        self._holder.kill()
        for process in (*self._started, self._holder):
            process.wait()


class Mounted:
    """A store that is mounted twice in its folder: at `write` and at `read`."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for mount in MOUNTS:
            (folder / mount).mkdir()
        self.log = folder / "log"
        self.inside = Namespace(self.log)
        try:
            self.start()
            for mount in MOUNTS:
                wait_for((folder / mount).is_mount, f"{self.name} is mounted")
            self.mounted()
            # A first file takes what is done once: connections, chunks that are made in advance.
            wait_for(self._works, f"{self.name} works")
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start all servers, and the mounts."""
        raise NotImplementedError

    def mounted(self) -> None:
        """Set what is set from within."""

    def _works(self) -> bool:
        try:
            (self.folder / "write" / "first").write_bytes(b"first")
            return (self.folder / "read" / "first").read_bytes() == b"first"
        except OSError:
            return False

    @property
    def pids(self) -> list[int]:
        return self.inside.pids

    def put_large(self, file: Path, name: str) -> None:
        _copy(f"if={file}", f"of={self.folder}/write/{name}", "conv=fsync")

    def get_large(self, name: str) -> None:
        _copy(f"if={self.folder}/read/{name}", "of=/dev/null")

    def client(self) -> list[str]:
        return ["--mounts", *(str(self.folder / mount) for mount in MOUNTS)]

    def clear(self, names: Sequence[str]) -> None:
        for name in names:
            (self.folder / "write" / name).unlink(missing_ok=True)

    def close(self) -> None:
        for mount in MOUNTS:
            # Before its process ends: a mount without one cannot even be looked at.
            subprocess.run(["umount", "--lazy", str(self.folder / mount)], check=False, capture_output=True)
        self.inside.close()


class MooseFs(Mounted):
    """A master, three chunkservers and two mounts of MooseFS, goal 3."""

    name = "MooseFS"
    needs = ("mfsmaster", "mfschunkserver", "mfsmount", "mfssetgoal")

    def start(self) -> None:
        """Start all servers, and the mounts."""
        self.inside.run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
        for name in ("master", *(f"{what}{number}" for number in NUMBERS for what in ("server", "disk"))):
            (self.folder / name).mkdir()
        shutil.copy("/var/lib/mfs/metadata.mfs.empty", self.folder / "master" / "metadata.mfs")
        self._write("exports.cfg", f"{ADDRESS} / rw,alldirs,maproot=0\n")
        self._write("topology.cfg", "")
        self._write("master.cfg", MASTER)
        self.inside.start(_tool("mfsmaster"), "-f", "-c", f"{self.folder}/master.cfg", "start")
        # It has said so when it is ready, which is more than its ports tell.
        wait_for(lambda: "initialized properly" in self.log.read_text(errors="replace"), "MooseFS's master is there")
        for number in NUMBERS:
            self._write(f"disk{number}.cfg", f"{self.folder}/disk{number}\n")
            self._write(f"server{number}.cfg", CHUNKSERVER, number=number, port=9430 + number)
            self.inside.start(_tool("mfschunkserver"), "-f", "-c", f"{self.folder}/server{number}.cfg", "start")
        for mount in MOUNTS:
            self.inside.start(_tool("mfsmount"), "-f", f"{self.folder}/{mount}", "-H", ADDRESS)

    def mounted(self) -> None:
        """Three copies, and no wastebasket."""
        wait_for(self._has_goal, "MooseFS has three copies")

    def _has_goal(self) -> bool:
        top = str(self.folder / "write")
        try:
            self.inside.run(_tool("mfssetgoal"), "3", top)
            self.inside.run(_tool("mfssettrashtime"), "0", top)
            return self.inside.run(_tool("mfsgetgoal"), top).strip().endswith(": 3")
        except AssertionError:
            return False

    def _write(self, name: str, text: str, **values: object) -> None:
        (self.folder / name).write_text(text.format(folder=self.folder, address=ADDRESS, **values))


class Gluster(Mounted):
    """Three glusterd with a brick each and two mounts: a volume with `replica 3`, all options as they come."""

    name = "Gluster"
    needs = ("glusterd", "gluster", "glusterfs")

    def start(self) -> None:
        """Start all servers, and the mounts."""
        addresses = {number: f"10.9.0.{number}" for number in NUMBERS}
        for number, address in addresses.items():
            self.inside.run("ip", "address", "add", f"{address}/32", "dev", "lo")
            for name in ("state", "run", "brick", "logs"):
                (self.folder / f"{name}{number}").mkdir()
            path = self.folder / f"glusterd{number}.vol"
            port = 49_152 + 1_000 * number
            path.write_text(GLUSTERD.format(folder=self.folder, number=number, address=address, port=port))
            self.inside.start(_tool("glusterd"), "-N", "-f", str(path), "-p", f"{self.folder}/run{number}/pid",
                              "-l", f"{self.folder}/logs{number}/glusterd.log", "--log-level", "WARNING")  # fmt: skip
        wait_for(lambda: self._told("peer", "status"), "glusterd answers")
        for number in NUMBERS[1:]:
            wait_for(lambda number=number: self._told("peer", "probe", addresses[number]), "glusterd knows another")  # type: ignore[misc]
        wait_for(lambda: self._told("peer", "status").count("(Connected)") == 2, "all glusterd know each other")
        bricks = [f"{address}:{self.folder}/brick{number}/data" for number, address in addresses.items()]
        wait_for(lambda: self._told("volume", "create", "files", "replica", "3", *bricks, "force"), "there is a volume")
        wait_for(lambda: self._told("volume", "start", "files"), "the volume is started")
        for mount in MOUNTS:
            self.inside.start(_tool("glusterfs"), "-N", f"--volfile-server={ADDRESS}", "--volfile-id=files",
                              "-l", f"{self.folder}/{mount}.log", "-p", f"{self.folder}/{mount}.pid",
                              f"{self.folder}/{mount}")  # fmt: skip

    def _told(self, *command: str) -> str:
        try:
            return self.inside.run(
                _tool("gluster"), "--mode=script", f"--glusterd-sock={self.folder}/run1/glusterd.sock", *command
            )
        except AssertionError as error:
            with self.log.open("a") as log:
                log.write(f"{error}\n")
            return ""


class Tahoe:
    """An introducer and three nodes of Tahoe-LAFS, one of three shares enough; asked at the first node."""

    name = "Tahoe-LAFS"

    def __init__(self, folder: Path, command: str) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._command = command
        self._processes: list[subprocess.Popen[bytes]] = []
        self._links: dict[str, str] = {}
        """What a file is read by, by its name."""
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self._make("create-introducer", "introducer", free_port())
        furl = self._folder / "introducer" / "private" / "introducer.furl"
        wait_for(furl.exists, "Tahoe-LAFS has an introducer")
        self._web = 0
        for number in NUMBERS:
            port = free_port()
            self._web = self._web or port
            self._make("create-node", f"node{number}", free_port(), "--introducer", furl.read_text().strip(),
                       "--shares-needed=1", "--shares-happy=3", "--shares-total=3",
                       f"--webport=tcp:{port}:interface=127.0.0.1")  # fmt: skip
        (self._folder / "first").write_bytes(os.urandom(1000))
        wait_for(self._works, "Tahoe-LAFS works")

    def _make(self, what: str, name: str, port: int, *more: str) -> None:
        place = ["--listen=tcp", f"--port=tcp:{port}:interface=127.0.0.1", f"--location=tcp:127.0.0.1:{port}"]
        with (self._folder / f"{name}.log").open("ab") as log:
            subprocess.run([self._command, what, *place, *more, name], cwd=self._folder, check=True, stdout=log,
                           stderr=log, stdin=subprocess.DEVNULL)  # fmt: skip
            self._processes.append(
                subprocess.Popen([self._command, "run", "--allow-stdin-close", name], cwd=self._folder, stdout=log,
                                 stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
            )  # fmt: skip

    def _works(self) -> bool:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            self.put_large(self._folder / "first", "first")
            return True
        return False

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def put_large(self, file: Path, name: str) -> None:
        url = f"http://127.0.0.1:{self._web}/uri"
        done = subprocess.run(["curl", "-sSf", "-T", str(file), url], check=True, capture_output=True, text=True)
        self._links[name] = f"{url}/{done.stdout.strip()}"

    def get_large(self, name: str) -> None:
        subprocess.run(["curl", "-sSf", "-o", "/dev/null", self._links[name]], check=True, stdin=subprocess.DEVNULL)

    def client(self) -> list[str]:
        return ["--tahoe", f"{self._folder}/{KEPT}", "--port", str(self._web)]

    def clear(self, names: Sequence[str]) -> None:
        for name in names:
            self._links.pop(name, None)
        for share in self._folder.glob("node*/storage/shares/??/*/*"):
            share.unlink()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def start_peers(folder: Path, wanted: Sequence[str], tahoe: str) -> Iterator[Peer | str]:
    """Start those that can run here, one after the other; for the others, why not."""
    mounted: tuple[type[MooseFs] | type[Gluster], ...] = (MooseFs, Gluster)
    for kind in mounted:
        if kind.name.lower() in wanted:
            reason = _no_mounts() or next((f"{tool} is not installed" for tool in kind.needs if not _tool(tool)), "")
            yield f"{kind.name} is not measured: {reason}" if reason else kind(folder / kind.name.lower())
    if "tahoe" in wanted:
        found = shutil.which(tahoe)
        yield Tahoe(folder / "tahoe", found) if found else f"Tahoe-LAFS is not measured: {tahoe} is not there"


def _no_mounts() -> str:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        return "it takes root and /dev/fuse"
    return next((f"{tool} is not installed" for tool in ("unshare", "nsenter", "ip") if not _tool(tool)), "")


def _tool(name: str) -> str:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or ""


def _copy(*arguments: str) -> None:
    subprocess.run(["dd", "bs=1M", *arguments], check=True, capture_output=True, stdin=subprocess.DEVNULL)


def wait_for(predicate: Callable[[], T], what: str) -> T:
    """What it gives as soon as it is true; fails after `START_SECONDS`."""
    deadline = time.monotonic() + START_SECONDS
    while not (value := predicate()):
        assert time.monotonic() < deadline, f"not within {START_SECONDS:.0f} s: {what}"
        time.sleep(0.1)
    return value
