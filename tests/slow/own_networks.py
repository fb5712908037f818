"""A farm whose servers each have a network of their own, of which any direction can be cut without a word.

Every server runs in a network namespace with one interface, and all interfaces hang on a bridge in one more
namespace; nothing leads out of there. A cut from one server to another is a wrong hardware address in the sender's
neighbour table: its packets for the other one go to nobody, nobody answers, and the other direction works. So a cut
needs no firewall.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

from tests.slow.real_farm import RealFarm

_CLONE_NEWNET = 0x40000000
_NOBODY = "02:00:00:00:00:fe"
_FOLDER = Path("/run/netns")
_counter = itertools.count()


class Network:
    """The namespaces of one farm. Names hold the process id, so that runs beside each other do not meet."""

    def __init__(self) -> None:
        self._prefix = f"chunkfarm-{os.getpid()}-{next(_counter)}"
        self._switch = f"{self._prefix}-switch"
        self._made: list[str] = []
        self._numbers: dict[str, int] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)

    def make(self) -> None:
        """Make the bridge. Raises `SkipTest` where this machine cannot."""
        if shutil.which("ip") is None:
            raise SkipTest("ip (iproute2) is not installed")
        try:
            self._add(self._switch)
            _ip(self._switch, "link", "add", "bridge", "type", "bridge")
            _ip(self._switch, "link", "set", "bridge", "up")
        except subprocess.CalledProcessError as error:
            self.close()
            raise SkipTest(f"network namespaces cannot be made here: {error.stderr.strip()}") from None

    def _add(self, namespace: str) -> None:
        _run("ip", "netns", "add", namespace)
        self._made.append(namespace)

    def add(self, name: str) -> None:
        """A namespace for a server of that name, whose packets reach all others."""
        number = self._numbers[name] = len(self._numbers) + 1
        namespace = self._namespace(name)
        self._add(namespace)
        pair = ("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip(self._switch, *pair)
        _ip(self._switch, "link", "set", f"port{number}", "master", "bridge", "up")
        _ip(namespace, "link", "set", "lo", "up")
        _ip(namespace, "link", "set", "eth0", "address", self._hardware(name), "up")
        _ip(namespace, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        for other in self._numbers:
            self.join(name, other)
            self.join(other, name)

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def address(self, name: str) -> str:
        """The address of a server, of the range that RFC 2544 keeps for trials."""
        return f"198.18.0.{self._numbers[name]}"

    def _hardware(self, name: str) -> str:
        return f"02:00:00:00:00:{self._numbers[name]:02x}"

    def cut(self, sender: str, receiver: str) -> None:
        """From here on nothing that one sends reaches the other."""
        self._neighbour(sender, receiver, _NOBODY)

    def join(self, sender: str, receiver: str) -> None:
        """End a cut."""
        if sender != receiver:
            self._neighbour(sender, receiver, self._hardware(receiver))

    def _neighbour(self, sender: str, receiver: str, hardware: str) -> None:
        entry = ("neighbour", "replace", self.address(receiver), "lladdr", hardware, "nud", "permanent", "dev", "eth0")
        _ip(self._namespace(sender), *entry)

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """This thread is in that server's namespace; what it opens and starts in there stays there."""
        with open("/proc/thread-self/ns/net") as own, open(_FOLDER / self._namespace(name)) as other:
            self._enter(other.fileno())
            try:
                yield
            finally:
                self._enter(own.fileno())

    def _enter(self, descriptor: int) -> None:
        if self._libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "a network namespace cannot be entered")

    def close(self) -> None:
        """Remove them all; what runs in there must have ended."""
        for namespace in self._made:
            _run("ip", "netns", "delete", namespace)
        self._made = []


def _ip(namespace: str, *arguments: str) -> None:
    _run("ip", "-netns", namespace, *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)


class NetworkFarm(RealFarm):
    """Servers that reach each other over that network alone; its tests reach each on its own loopback."""

    def __init__(self, directory: str | Path, network: Network, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self.network = network

    def start_on_network(self, *names: str) -> None:
        """Give each server a namespace, and start it when the one before it serves."""
        for name in names:
            self.network.add(name)
            self.start(name, "--host", self.network.address(name))
            self.wait_serving(name)

    def inside(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self.network.inside(name)

    def cut(self, sender: str, receiver: str) -> None:
        """One direction between two servers is gone."""
        self.network.cut(sender, receiver)

    def heal(self) -> None:
        """All directions are there again."""
        for sender, receiver in itertools.permutations(self.servers, 2):
            self.network.join(sender, receiver)

    def close(self) -> None:
        super().close()
        self.network.close()
