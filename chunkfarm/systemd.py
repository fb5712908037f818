"""Tells systemd what this process is doing (the protocol of sd_notify), if systemd is there to listen.

Nothing in Twisted sends it, and it is too little for a dependency: one datagram of `NAME=value` lines to the
socket that the environment names.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from twisted.logger import Logger

EXTEND_SECONDS = 120
"""How much longer a start may take, counted from each time we say so; well above the longest pause between
two tries to find the farm, which are when we do."""
STATUS_LENGTH_MAX = 1000
"""Characters of a status line: it is shown on a terminal, and a datagram must fit the socket's buffer."""


class Systemd:
    """What systemd is told. Every method does nothing where it is not listening."""

    _log = Logger()

    def __init__(
        self,
        environment: Mapping[str, str],
        pid: int | None = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_interval = _watchdog_interval(environment, os.getpid() if pid is None else pid)
        """Seconds between two calls of `watchdog`, half of what the unit allows; 0: not wanted."""

    def ready(self) -> None:
        """The start is done, and all ports answer."""
        self._notify("READY=1")

    def reloading(self) -> None:
        """The config is read again; `ready` says when that is done."""
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def status(self, sentence: str) -> None:
        """What `systemctl status` shows."""
        # A line break would begin another assignment.
        self._notify(f"STATUS={' '.join(sentence.split())[:STATUS_LENGTH_MAX]}")

    def extend_timeout(self, seconds: float = EXTEND_SECONDS) -> None:
        """The start takes longer, for a good reason: do not give up for this long."""
        self._notify(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def watchdog(self) -> None:
        """The reactor turns; called from it, every `watchdog_interval`."""
        self._notify("WATCHDOG=1")

    def stopping(self) -> None:
        """The orderly end has begun."""
        self._notify("STOPPING=1")

    def _notify(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # Non-blocking, since a service manager that is busy must not hold up the reactor.
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as sender:
                sender.connect(address)
                sender.sendall(state.encode())
        except OSError as error:
            self._log.warn("systemd could not be told {state}: {error}", state=state, error=error)


def _watchdog_interval(environment: Mapping[str, str], pid: int) -> float:
    """Half of WATCHDOG_USEC, in seconds, if it is meant for this process and not for its parent."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return 0.0
    return int(microseconds) / 2_000_000
