"""Watchers by the thousand, and a config file that people edit."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

WATCHERS = 1000
ADDRESSES = 4
"""Loopback addresses that the watchers come from: one address alone may not have that many connections."""


class WatcherTests(FarmTestCase):
    def open_watchers(self, farm: RealFarm, names: tuple[str, ...]) -> list[socket.socket]:
        """Authenticated links that watch `servers/`, spread over the servers."""
        key_id, secret = farm.key()
        watchers = []
        for number in range(WATCHERS):
            port = farm.servers[names[number % len(names)]].client
            source = (f"127.0.0.{1 + number % ADDRESSES}", 0)
            link = socket.create_connection(("127.0.0.1", port), 10, source_address=source)
            self.addCleanup(link.close)
            link.sendall(f"AUTH {key_id} {secret}\nWATCH servers/\n".encode())
            watchers.append(link)
        for link in watchers:
            told = b""
            while told.count(b"\n") < 2:
                told += link.recv(4096)
            assert told.count(b"OK") == 2, told
            link.setblocking(False)
        return watchers

    def hear(self, watchers: list[socket.socket], what: bytes) -> float:
        """Read from all until each has heard of `what`; when the last one had."""
        heard: dict[socket.socket, bytes] = {}
        with selectors.DefaultSelector() as selector:
            for link in watchers:
                selector.register(link, selectors.EVENT_READ, link)
                heard[link] = b""
            waiting = set(watchers)
            deadline = time.monotonic() + 30
            while waiting:
                assert time.monotonic() < deadline, f"{len(waiting)} of {len(watchers)} never heard"
                for ready, _ in selector.select(1):
                    link = ready.data
                    with contextlib.suppress(BlockingIOError):
                        heard[link] += link.recv(65536)
                    if what in heard[link]:
                        waiting.discard(link)
                        selector.unregister(link)
        return time.monotonic()

    def test_a_thousand_see_a_change(self) -> None:
        """A change of a row reaches a thousand watchers of three servers, each of them once."""
        names = ("alpha", "beta", "gamma")
        farm = self.make_farm(*names)
        # A server whose table is replaced as a whole ends its watches; these three have that behind them.
        farm.wait_for(lambda: "table-copies=3" in farm.ask("alpha", "STATUS").rows, 20, "three vote")
        watchers = self.open_watchers(farm, names)
        times = []
        for turn in range(5):
            started = time.monotonic()
            farm.ask("alpha", f"SET gamma zone=attic{turn}")
            times.append(self.hear(watchers, f"zone=attic{turn} ".encode()) - started)
        print(f"a change reached {WATCHERS} watchers after {sorted(times)[2] * 1000:.0f} ms (median of {len(times)})")
        assert farm.ask("alpha", "PING").line == "OK"


class EditTests(FarmTestCase):
    """`[farm]` belongs to the farm, `[server]` to the person."""

    def test_drift_is_put_back(self) -> None:
        """An edit of `[farm]` is said in the log with the difference, and undone; comments and `[server]` stay."""
        farm = self.make_farm("alpha", "beta")
        before = farm.config_path.read_text()
        edited = before.replace("replicas = 3", "replicas = 2").replace("[server]", "; a note of mine\n[server]")
        assert edited != before
        farm.config_path.write_text(edited)
        farm.wait_for(lambda: "replicas = 3" in farm.config_path.read_text(), 45, "the edit is undone")
        assert "; a note of mine" in farm.config_path.read_text()
        logs = farm.servers["alpha"].logged() + farm.servers["beta"].logged()
        assert "replicas" in logs and "2" in logs, farm.tails()
        assert (farm.directory / "config.ini.1").read_text() == edited

    def test_set_farm_is_the_way(self) -> None:
        """SET farm changes the option for good, in the table and in the file."""
        farm = self.make_farm("alpha")
        generation = farm.config().generation
        changed = farm.cli("set", "farm", "replicas=2")
        assert changed.returncode == 0, changed.stderr
        farm.wait_for(lambda: farm.config().farm.replicas == 2, 10, "config.ini has the new option")
        assert farm.config().generation > generation
