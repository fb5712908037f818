"""What systemd hears from us, on a socket of the kind that it listens on."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.systemd import STATUS_LENGTH_MAX, Systemd


class SystemdTests(SynchronousTestCase):
    def listen(self, address: str) -> socket.socket:
        """The service manager's end."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(listening.close)
        listening.bind(address)
        return listening

    def make(self) -> tuple[Systemd, socket.socket]:
        """A process whose service manager listens on an abstract address."""
        name = f"chunkfarm-{uuid.uuid4()}"
        listening = self.listen(f"\0{name}")
        return Systemd({"NOTIFY_SOCKET": f"@{name}"}), listening

    def test_states(self) -> None:
        """Ready, a longer start, a turning reactor and the end each have their word."""
        systemd, listening = self.make()
        systemd.extend_timeout(1.5)
        systemd.ready()
        systemd.watchdog()
        systemd.stopping()
        assert [listening.recv(100) for _ in range(4)] == [
            b"EXTEND_TIMEOUT_USEC=1500000",
            b"READY=1",
            b"WATCHDOG=1",
            b"STOPPING=1",
        ]

    def test_status(self) -> None:
        """A status is one line, and of a length that can be shown."""
        systemd, listening = self.make()
        systemd.status("waiting for\nREADY=1 " + "x" * 5000)
        told = listening.recv(10_000)
        assert told.startswith(b"STATUS=waiting for READY=1 xxx")
        assert len(told) == len("STATUS=") + STATUS_LENGTH_MAX

    def test_socket_in_the_file_system(self) -> None:
        """The address may be a path."""
        folder = self.mktemp()
        os.makedirs(folder)
        # Relative, since the path of a socket has room for some hundred bytes only.
        path = os.path.relpath(Path(folder) / "notify")
        listening = self.listen(path)
        Systemd({"NOTIFY_SOCKET": path}).ready()
        assert listening.recv(100) == b"READY=1"

    def test_nobody_listens(self) -> None:
        """Without systemd nothing is sent, and nothing goes wrong."""
        systemd = Systemd({})
        systemd.ready()
        assert systemd.watchdog_interval == 0

    def test_socket_gone(self) -> None:
        """A service manager that is away for a moment does not stop the server."""
        systemd, listening = self.make()
        listening.close()
        systemd.status("serving")

    def test_full(self) -> None:
        """A service manager that does not read does not hold up the server."""
        systemd, _ = self.make()
        for _ in range(500):
            systemd.watchdog()

    def test_watchdog(self) -> None:
        """The watchdog is fed twice in the time that the unit allows."""
        assert Systemd({"WATCHDOG_USEC": "30000000"}).watchdog_interval == 15.0
        assert Systemd({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, pid=7).watchdog_interval == 15.0
        assert Systemd({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, pid=7).watchdog_interval == 0
        assert Systemd({"WATCHDOG_USEC": "soon"}).watchdog_interval == 0

    def test_reloading(self) -> None:
        """While the config is read again systemd is told so, with the time that it asks for."""
        name = f"chunkfarm-{uuid.uuid4()}"
        listening = self.listen(f"\0{name}")
        Systemd({"NOTIFY_SOCKET": f"@{name}"}, monotonic_ns=lambda: 5_000_000).reloading()
        assert listening.recv(100) == b"RELOADING=1\nMONOTONIC_USEC=5000"
