"""One server of a drill: a process of this machine that is started, asked, killed, and never left behind."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

import chunkfarm
from chunkfarm.config import Listed
from chunkfarm.config_values import PORTS_PER_SERVER

INSIDE = "127.0.0.1"
"""Where the servers of a drill listen: nobody on another machine can reach them."""
TAIL_BYTES = 16_384

_PROGRAM = """
import ctypes, os, signal
os.setsid()
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != {parent}:
    raise SystemExit("the drill has ended")
from twisted.scripts.twistd import run
run()
"""
"""twistd in a session of its own, so that Ctrl-C ends the drill alone, which then ends its servers; and killed by the
kernel with the drill (PR_SET_PDEATHSIG), so that a drill that is killed leaves no server behind either."""

CONFIG = """\
{farm}
[server]
data = ./data
name = {name}
host = {host}
client = tcp:{client}:interface={inside}
peer = tcp:{peer}:interface={inside}
files = tcp:{files}:interface={inside}
{more}"""


class Server:
    """Where it listens and keeps its data, and its process if it runs. `base` is its client port."""

    def __init__(self, reactor: Any, name: str, base: int, folder: Path, host: str = INSIDE) -> None:
        self._reactor = reactor
        self.name = name
        self.base = base
        self.folder = folder
        self.host = host
        """What the others are told to connect to."""
        self._process: _Process | None = None

    @property
    def ports(self) -> range:
        """The client, the peer and the file port."""
        return range(self.base, self.base + PORTS_PER_SERVER)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def config(self) -> Path:
        return self.folder / "config.ini"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def is_running(self) -> bool:
        return self._process is not None and not self._process.has_ended

    @property
    def pid(self) -> int | None:
        """Its process, if it runs."""
        return self._process.pid if self._process is not None and self.is_running else None

    def listed(self) -> Listed:
        """Where people on this machine reach it, past any relay."""
        client, peer, files = self.ports
        return Listed(name=self.name, host=INSIDE, client=client, peer=peer, files=files)

    def write_config(self, farm: str, more: str = "") -> None:
        """Write its `config.ini`: the farm's part as given, and its own with `more` options."""
        client, peer, files = self.ports
        own = {"name": self.name, "host": self.host, "client": client, "peer": peer, "files": files}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(CONFIG.format(farm=farm, inside=INSIDE, more=more, **own))

    def start(self) -> None:
        """Start its process, and do not wait for it."""
        assert not self.is_running
        program = _PROGRAM.format(parent=os.getpid())
        arguments = [sys.executable, "-c", program, "-n", "chunkfarm", "--config", str(self.config)]
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._process = _Process()
        try:
            self._reactor.spawnProcess(
                self._process,
                sys.executable,
                arguments,
                env=environment(os.environ),
                path=str(self.folder),
                childFDs={0: nothing, 1: log, 2: log},
            )
        finally:
            os.close(log)
            os.close(nothing)

    def kill9(self) -> Deferred[None]:
        """End it without a warning, as a power cut would; fires when it is gone."""
        return self._end("KILL")

    def read_config_again(self) -> None:
        """SIGHUP."""
        if self._process is not None:
            self._process.send("HUP")

    def _end(self, how: str) -> Deferred[None]:
        gone: Deferred[None] = Deferred()
        if self._process is None or self._process.has_ended:
            gone.callback(None)
        else:
            self._process.waiting.append(gone)
            self._process.send(how)
        return gone

    def last_words(self) -> str:
        """What its log says of why it ended."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return last_words(text)


def last_words(log: str) -> str:
    """The last line of a log that tells why its server ended, or the very last. Pure."""
    lines = log.splitlines() or [""]
    told = [line for line in lines if "#critical]" in line]
    return (told or lines)[-1].partition("] ")[2]


class _Process(ProcessProtocol):
    """Remembers whether a process has ended, and tells who waits for that."""

    def __init__(self) -> None:
        self.has_ended = False
        self.pid: int | None = None
        self.waiting: list[Deferred[None]] = []

    def connectionMade(self) -> None:
        self.pid = cast(IProcessTransport, self.transport).pid

    def processEnded(self, reason: Failure) -> None:
        self.has_ended = True
        waiting, self.waiting = self.waiting, []
        for gone in waiting:
            gone.callback(None)

    def send(self, name: str) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            cast(IProcessTransport, self.transport).signalProcess(name)


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """What a server gets of this process's environment: nothing that names another farm, and where the package is."""
    kept = {name: value for name, value in own.items() if not name.startswith(("CHUNKFARM_", "LISTEN_", "NOTIFY_"))}
    package = str(Path(chunkfarm.__file__).resolve().parents[1])
    return {**kept, "PYTHONPATH": os.pathsep.join([package, *filter(None, [kept.get("PYTHONPATH")])])}
