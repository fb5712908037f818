"""A farm of real processes on this machine: starts them, asks them, kills them, and leaves none behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, TypeVar
from unittest import SkipTest

from attrs import define

import chunkfarm
from chunkfarm.config import Config, read_config
from chunkfarm.drill.ports import ReservedPorts
from chunkfarm.drill.servers import environment as inherited
from tests.slow.line_socket import Hello, LineSocket, Refused, Reply, link_to

ROOT = Path(chunkfarm.__file__).resolve().parents[1]
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
CLI = [sys.executable, "-c", "from chunkfarm.cli import main; main()"]

START_SECONDS = 30.0
"""For a server to serve, on a machine that is busy with other things."""
POLL_SECONDS = 0.05
TAIL_LINES = 60
CONFIG = """\
[farm]
chunksize = 8M
name = lab
replicas = {replicas}
{farm}
[servers]
{servers}
[server]
data = ./alpha
host = 127.0.0.1
{server}
"""

T = TypeVar("T")


@define(eq=False)
class RealServer:
    """One server: where it listens and keeps its data, and its process if it was started."""

    name: str
    base: int
    data: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> int:
        return self.base

    @property
    def peer(self) -> int:
        return self.base + 1

    @property
    def files(self) -> int:
        return self.base + 2

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.files}"

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def logged(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def peak_memory(self) -> int:
        """The most bytes of memory it has had so far."""
        return self._memory("VmHWM:")

    def memory(self) -> int:
        """The bytes of memory it has now."""
        return self._memory("VmRSS:")

    def processor_seconds(self) -> float:
        """What it has used of processors so far, its threads included."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def _memory(self, what: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"the kernel does not tell the memory of {self.name}")

    def tail(self, lines: int = TAIL_LINES) -> str:
        text = "\n".join(self.logged().splitlines()[-lines:])
        return f"--- the end of the log of {self.name}:\n{text}"


class RealFarm:
    """A folder with a `config.ini`, and servers that share it. Names are given: alpha is the one of `./alpha`."""

    def __init__(
        self, directory: str | Path, *, replicas: int = 3, farm: str = "", servers: str = "", server: str = ""
    ) -> None:
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.config_path = self.directory / "config.ini"
        self.config_path.write_text(CONFIG.format(replicas=replicas, farm=farm, servers=servers, server=server))
        self.servers: dict[str, RealServer] = {}
        self._ports = ReservedPorts(random.SystemRandom())
        self._children: list[subprocess.Popen[bytes]] = []

    # Processes.

    def server(self, name: str) -> RealServer:
        """The server of that name, started or not; its ports are nobody else's until the farm is closed."""
        if name not in self.servers:
            (base,) = self._ports.take(1, [""])
            self.servers[name] = RealServer(name, base, self.directory / name, self.directory / f"{name}.log")
        return self.servers[name]

    def inside(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Where a server is reached: what this thread starts and connects to in there is on that server's machine."""
        return contextlib.nullcontext()

    def start(
        self,
        name: str,
        *more: str,
        config: Path | None = None,
        ports: int | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
        sockets: Mapping[str, socket.socket] = MappingProxyType({}),
    ) -> RealServer:
        """Start a server, and do not wait for it. `more` are options of `twistd chunkfarm`.

        It is passed the listening `sockets`, by name, as systemd does it.
        """
        server = self.server(name)
        assert not server.is_running(), f"{name} is running"
        options = ["--config", str(config or self.config_path), "--data", str(server.data), "--name", name]
        options += ["--ports", str(server.base if ports is None else ports), *more]
        with server.log.open("ab") as log, self.inside(name):
            server.process = subprocess.Popen(
                [*_passing(sockets), *TWISTD, "-n", "chunkfarm", *options],
                pass_fds=[passed.fileno() for passed in sockets.values()],
                cwd=self.directory,
                env={**inherited(os.environ), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children.append(server.process)
        return server

    def start_serving(self, *names: str) -> None:
        """Start servers one after the other, each when the one before it serves."""
        for name in names:
            self.start(name)
            self.wait_serving(name)

    def kill9(self, *names: str) -> None:
        """End processes without a warning, as a power cut would."""
        for name in names:
            self.servers[name].pid  # noqa: B018 - fails for one that was never started
            os.kill(self.servers[name].pid, signal.SIGKILL)
        for name in names:
            self.wait_ended(name, 10)

    def sigterm(self, name: str) -> None:
        """Ask a process to end; does not wait."""
        os.kill(self.servers[name].pid, signal.SIGTERM)

    def pause(self, name: str) -> None:
        """Let a process do nothing more, as a machine that is suspended; its kernel goes on answering."""
        os.kill(self.servers[name].pid, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a paused process go on as if nothing had happened."""
        os.kill(self.servers[name].pid, signal.SIGCONT)

    def wait_ended(self, name: str, seconds: float) -> int:
        """The exit status of a process that ends within that time."""
        process = self.servers[name].process
        assert process is not None
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} has not ended within {seconds:g} s\n{self.tails([name])}") from None

    def fails_to_start(self, name: str, *more: str, config: Path | None = None, ports: int | None = None) -> str:
        """Start a server that must end by itself with status 1; returns what this process logged."""
        before = len(self.server(name).logged())
        self.start(name, *more, config=config, ports=ports)
        status = self.wait_ended(name, START_SECONDS)
        logged = self.servers[name].logged()[before:]
        assert status == 1, f"{name} ended with status {status}\n{logged}"
        return logged

    def close(self) -> None:
        """End every process, show the logs (pytest prints them if the test failed), and remove all files."""
        for child in self._children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()
        print(self.tails())
        with contextlib.suppress(OSError):
            print(f"--- config.ini:\n{self.config_path.read_text(errors='replace')}")
        self._ports.close()
        # A file of this farm may have gigabytes, and pytest keeps the folders of three runs.
        shutil.rmtree(self.directory, ignore_errors=True)

    def tails(self, names: Iterable[str] | None = None) -> str:
        return "\n".join(self.servers[name].tail() for name in (names or self.servers))

    # What is true now.

    def wait_for(self, predicate: Callable[[], T | None], seconds: float, what: str) -> T:
        """What `predicate` gives as soon as it is true; fails, with the logs, after that time.

        A server that does not answer, or answers that it cannot yet, has not said no: it is asked again.
        """
        deadline = time.monotonic() + seconds
        while True:
            last: T | Exception | None
            try:
                value = last = predicate()
            except (OSError, Refused) as error:
                value, last = None, error
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what} (last: {last!r})\n{self.tails()}")
            time.sleep(POLL_SECONDS)

    def wait_serving(self, *names: str, seconds: float = START_SECONDS) -> None:
        for name in names:
            self.wait_for(lambda name=name: self._serves(name), seconds, f"{name} serves")  # type: ignore[misc]

    def _serves(self, name: str) -> bool:
        assert self.servers[name].is_running(), f"{name} has ended by itself\n{self.tails([name])}"
        hello = self.hello(name)
        return hello is not None and hello.state == "serving"

    def wait_waiting(self, name: str, seconds: float = 10.0) -> Hello:
        """What a server says that waits for others."""

        def said() -> Hello | None:
            hello = self.hello(name)
            return hello if hello is not None and hello.state == "waiting" else None

        return self.wait_for(said, seconds, f"{name} says that it waits")

    def hello(self, name: str) -> Hello | None:
        """What HELLO says, or None if nobody answers."""
        try:
            with self._link(name, None, timeout=5.0) as link:
                return link.hello()
        except OSError:
            return None

    def key(self) -> tuple[str, str]:
        """The first key, which the founder keeps in its data directory."""
        (path,) = self.directory.glob("*/admin.key")
        key_id, secret = path.read_text().split()
        return key_id, secret

    def link(self, name: str, timeout: float = 10.0) -> contextlib.AbstractContextManager[LineSocket]:
        """An authenticated link to a server."""
        return self._link(name, self.key(), timeout)

    @contextlib.contextmanager
    def _link(self, name: str, key: tuple[str, str] | None, timeout: float) -> Iterator[LineSocket]:
        with contextlib.ExitStack() as stack:
            with self.inside(name):
                link = stack.enter_context(link_to(self.server(name).client, key, timeout))
            yield link

    def ask(self, name: str, line: str, payload: bytes = b"") -> Reply:
        """One command to one server."""
        with self.link(name) as link:
            return link.ask(line, payload)

    def rows(self, name: str) -> list[dict[str, str]]:
        """The server table as one server tells it, or nothing while it tells none."""
        try:
            return self.ask(name, "SERVERS").parsed
        except Exception:
            return []

    def status(self, name: str) -> dict[str, str]:
        """What STATUS tells, by its first word."""
        return dict(line.split("=", 1) for line in self.ask(name, "STATUS").rows)

    def wait_copies(self, name: str, copies: int, seconds: float = START_SECONDS) -> None:
        """Wait until so many servers hold the table: before that, the loss of the first may stop it."""
        self.wait_for(lambda: self.status(name)["table-copies"] == str(copies), seconds, f"{copies} have the table")

    def first(self) -> str:
        """The name of the server that leads, as the others tell it."""

        def told() -> str | None:
            names = [row["name"] for name in self.servers for row in self.rows(name) if row["role"] == "first"]
            return max(names, key=names.count, default=None)

        return self.wait_for(told, START_SECONDS, "somebody knows who is the first")

    def states(self, name: str) -> dict[str, str]:
        """Server names and states, in the order of the table."""
        return {row["name"]: row["state"] for row in self.rows(name)}

    def config(self) -> Config:
        """`config.ini` as it stands; whoever reads it must never see half of it."""
        return read_config(self.config_path)

    def listed(self) -> list[str]:
        """The names in `config.ini`, in order."""
        return [row.name for row in self.config().servers]

    # The tools of the people who use it.

    def cli(self, *arguments: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run the `chunkfarm` command to its end."""
        process = self.start_cli(*arguments)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(
                f"chunkfarm {' '.join(arguments)} has not ended within {seconds:g} s\n"
                f"{out.decode()}{err.decode()}\n{self.tails()}"
            ) from None
        return subprocess.CompletedProcess(arguments, process.returncode, out.decode(), err.decode())

    def start_cli(self, *arguments: str, stdin: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Run the `chunkfarm` command, and do not wait."""
        key = ["--key", str(self.key_file())] if self.key_file().exists() else []
        process = subprocess.Popen(
            [*CLI, "--config", str(self.config_path), *key, *arguments],
            cwd=self.directory,
            env=inherited(os.environ),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._children.append(process)
        return process

    def key_file(self) -> Path:
        """The key of the founder."""
        return next(self.directory.glob("*/admin.key"), self.directory / "admin.key")

    def curl(self, *arguments: str, seconds: float = 120.0, netrc: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run curl as README.md tells people to: with the farm's CA and the key of the founder."""
        founder = self.key_file().parent
        command = [find_curl(), "-sS", "--max-time", str(int(seconds)), "--cacert", str(founder / "ca.pem")]
        if netrc:
            command += ["--netrc-file", str(founder / "netrc")]
        return subprocess.run(
            [*command, *arguments],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds + 10,
            check=False,
        )


def _passing(sockets: Mapping[str, socket.socket]) -> list[str]:
    """What stands before a command so that it gets these sockets from descriptor 3 on, with a word on each."""
    if not sockets:
        return []
    descriptors = [passed.fileno() for passed in sockets.values()]
    return [sys.executable, "-c", _PASS_ON, ":".join(sockets), *map(str, descriptors), "--"]


_PASS_ON = """
import fcntl, os, sys
names, end = sys.argv[1], sys.argv.index("--")
# Copies far away first, or one move might overwrite what the next one needs.
copies = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[2:end]]
for place, copy in enumerate(copies, 3):
    os.dup2(copy, place)
    os.close(copy)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(copies)), LISTEN_FDNAMES=names)
os.execv(sys.argv[end + 1], sys.argv[end + 1:])
"""


def find_curl() -> str:
    """curl, or the test is skipped."""
    found = shutil.which("curl")
    if found is None:
        raise SkipTest("curl is not installed")
    return found


def hash_of_folder(directory: Path, but: Iterable[str] = ()) -> dict[str, str]:
    """A digest of every file below a folder, and of its mode; `but` are patterns of names that do not count."""
    told: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not any(path.match(pattern) for pattern in but):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            told[str(path.relative_to(directory))] = f"{path.stat().st_mode:o} {content}"
    return told
