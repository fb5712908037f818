"""The command on a real farm: interrupted, in pipes, and asked for what happened."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import CLI, RealFarm

pytestmark = pytest.mark.slow

PATIENCE = 30.0
"""Seconds for a command to begin or to end."""


class CommandTests(FarmTestCase):
    def begin(self, farm: RealFarm, *arguments: str, stdin: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*CLI, "--config", str(farm.config_path), *arguments],
            cwd=farm.directory,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def until(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < end
            time.sleep(0.02)

    def talks(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it has a socket open, so that it is past its own beginning."""
        found = []
        for name in os.listdir(f"/proc/{process.pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{process.pid}/fd/{name}"))
        return any(place.startswith("socket:") for place in found)

    def interrupt(self, process: subprocess.Popen[bytes]) -> None:
        """Ctrl-C ends it soon, with the status and the word that it should."""
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr is not None
        assert process.stderr.read().endswith(b"chunkfarm: interrupted\n")

    def test_a_morning(self) -> None:
        """Ctrl-C ends whatever waits, a closed pipe too; and `history` tells why a server was missed."""
        farm = self.make_farm("alpha", "beta")
        for arguments in (("put", "-", "home/endless"), ("watch",)):
            process = self.begin(farm, *arguments)
            self.until(lambda process=process: self.talks(process))  # type: ignore[misc]
            self.interrupt(process)
        data = os.urandom(9 * 1024 * 1024)
        put = self.begin(farm, "put", "-", "home/big")
        assert put.communicate(data)[0].startswith(b"home/big: 9.0 MiB")
        get = self.begin(farm, "get", "home/big", "-")
        assert get.stdout is not None and get.stderr is not None
        assert get.stdout.read(10) == data[:10]
        get.stdout.close()
        assert (get.wait(PATIENCE), get.stderr.read()) == (141, b"")
        farm.kill9("beta")
        farm.wait_for(lambda: farm.states("alpha").get("beta") == "down", PATIENCE, "beta is called down")
        master, terminal = pty.openpty()
        self.addCleanup(os.close, master)
        asks = self.begin(farm, "forget", "beta", stdin=terminal)
        os.close(terminal)
        assert asks.stderr is not None
        said = b""
        while b"Forget beta for good?" not in said:
            said += (letter := os.read(asks.stderr.fileno(), 1))
            assert letter, said
        self.interrupt(asks)
        farm.start_serving("beta")
        told = json.loads(farm.cli("history", "--json").stdout)
        of_beta = [(one["kind"], one.get("because", "")) for one in told["events"] if one["name"] == "beta"]
        assert ("down", "no report for 5 s") in of_beta
        starts = [because for kind, because in of_beta if kind == "started"]
        assert len(starts) == 2 and "ended without a word" in starts[1]
        assert [kind for kind, _ in of_beta].count("joined") == 2
        assert all(one["answered"] and abs(one["clock_ahead_ms"]) <= one["margin_ms"] + 2 for one in told["servers"])
