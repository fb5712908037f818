"""Watchers by the thousand, and a config file that people edit."""

from __future__ import annotations

import contextlib
import re
import selectors
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from chunkfarm.config import read_config
from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

WATCHERS = 1000
ADDRESSES = 4
"""Loopback addresses that the watchers come from: one address alone may not have that many connections."""


class WatchersCase(FarmTestCase):
    def open_watchers(self, farm: RealFarm, names: tuple[str, ...], count: int = WATCHERS) -> list[socket.socket]:
        """Authenticated links that watch `servers/`, spread over the servers."""
        key_id, secret = farm.key()
        watchers = []
        for number in range(count):
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


class WatcherTests(WatchersCase):
    def test_a_thousand_see_a_change(self) -> None:
        """A change of a row reaches a thousand watchers of three servers, each of them once."""
        names = ("alpha", "beta", "gamma")
        farm = self.make_farm(*names)
        # A server whose table is replaced as a whole ends its watches; these three have that behind them.
        farm.wait_copies("alpha", 3)
        watchers = self.open_watchers(farm, names)
        times = []
        for turn in range(5):
            started = time.monotonic()
            farm.ask("alpha", f"SET gamma zone=attic{turn}")
            times.append(self.hear(watchers, f"zone=attic{turn} ".encode()) - started)
        print(f"a change reached {WATCHERS} watchers after {sorted(times)[2] * 1000:.0f} ms (median of {len(times)})")
        assert farm.ask("alpha", "PING").line == "OK"


RELAYED = 500
REWRITES = 30
MASTERS = ("alpha", "beta", "gamma")
OTHERS = ("delta", "epsilon")
"""Servers that may not be masters, so they hold no rows."""
LINKS = 2
"""By which such a server follows a master: one for the rows of servers, one for those of the farm."""


class RelayTests(WatchersCase):
    """Five machines with a config of their own; the last two hold nothing of the table."""

    def make_five(self) -> RealFarm:
        farm = self.make_farm(farm="master_grace = 3s")
        for name in MASTERS + OTHERS:
            config = farm.directory / f"machine-{name}" / "config.ini"
            config.parent.mkdir()
            text = farm.config_path.read_text()
            if name != "alpha":
                text = (farm.directory / "machine-alpha" / "config.ini").read_text()
                shutil.copy2(farm.directory / "machine-alpha" / "farm.join", config.parent)
            if name in OTHERS:
                text += "master = no\n"
            config.write_text(text)
            farm.start(name, config=config)
            farm.wait_serving(name)
        farm.config_path = farm.directory / "machine-alpha" / "config.ini"
        farm.wait_copies("alpha", 3)
        for name in OTHERS:
            farm.wait_for(lambda name=name: len(farm.rows(name)) == 5, 10, f"{name} knows all")  # type: ignore[misc]
        return farm

    def links_to_masters(self, farm: RealFarm) -> int:
        """Connections of this machine to the client ports of the masters."""
        ports = {farm.servers[name].client for name in MASTERS}
        found = 0
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                found += state == "01" and int(local.rpartition(":")[2], 16) in ports
        return found

    def wait_only_followed(self, farm: RealFarm) -> None:
        """Wait until the masters have no links but those of the servers that follow them; a closed one lingers."""
        farm.wait_for(lambda: self.links_to_masters(farm) == LINKS * len(OTHERS), 20, "only servers follow the masters")

    def test_servers_without_rows(self) -> None:
        """They serve every question as the masters do, and 500 watchers, at no cost to the masters."""
        farm = self.make_five()
        (farm.directory / "note").write_text("a note\n")
        stored = farm.cli("put", "note", "home/note")
        assert stored.returncode == 0, stored.stderr
        farm.wait_for(lambda: fewest(farm, "home/note") >= 3, 20, "no copy is on its way any more")
        assert "holds-table=yes" in farm.ask("gamma", "STATUS").rows
        for name in OTHERS:
            assert "holds-table=no" in farm.ask(name, "STATUS").rows
            for question in ("SERVERS", "WHO", "LIST home/", "STAT home/note", "EXPLAIN home/note"):
                told, same = farm.ask(name, question), farm.ask("alpha", question)
                assert [strip(row) for row in (told.line, *told.rows)] == [
                    strip(row) for row in (same.line, *same.rows)
                ], question
            assert farm.ask(name, "FETCH home/note").data == b"a note\n"

        self.wait_only_followed(farm)
        watchers = self.open_watchers(farm, ("epsilon",), RELAYED)
        self.wait_only_followed(farm)
        times = []
        for turn in range(3):
            started = time.monotonic()
            farm.ask("alpha", f"SET gamma zone=attic{turn}")
            times.append(self.hear(watchers, f"zone=attic{turn} ".encode()) - started)
        print(f"a change reached {RELAYED} watchers of the fifth server after {sorted(times)[1] * 1000:.0f} ms")
        self.wait_only_followed(farm)

        with farm.link("delta") as link:
            link.ask("WATCH files/home/")
            farm.kill9("alpha")
            started = time.monotonic()
            farm.wait_for(lambda: farm.ask("epsilon", "STATUS").rows[3] != "first=alpha", 20, "another leads")
            farm.ask("delta", "COMMIT home/empty 0 8388608 0")
            farm.ask("delta", "SET gamma zone=cellar")
            print(f"written after {time.monotonic() - started:.1f} s")
            self.hear(watchers, b"zone=cellar ")
            while " FILE name=home/empty " not in (event := link.line()):
                assert event.startswith("EVENT "), event
        for name in OTHERS:
            assert farm.servers[name].logged().count("Traceback") == 0


def fewest(farm: RealFarm, name: str) -> int:
    """Copies of the chunk of a file that has the fewest."""
    return min(int(row["copies"]) for row in farm.ask("alpha", f"EXPLAIN {name}").parsed if "digest" in row)


def strip(row: str) -> str:
    """A row without what differs from moment to moment, and from place to place."""
    row = re.sub(r" (revision|free|used)=[^ ]*", "", row)
    return re.sub(
        r"(holders|verified)=([^ ]*)", lambda found: f"{found[1]}=" + ",".join(sorted(found[2].split(","))), row
    )


class TightReader:
    """Reads a config file in a loop, on a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.reads = 0
        self.wrong: list[Exception] = []
        self.generations: list[int] = []

    def __enter__(self) -> TightReader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                config = read_config(self._path)
                assert len(config.servers) == 3 and config.farm.id
            except Exception as error:
                self.wrong.append(error)
                continue
            self.reads += 1
            if self.generations[-1:] != [config.generation]:
                self.generations.append(config.generation)


class EditTests(FarmTestCase):
    """`[farm]` belongs to the farm, `[server]` to the person."""

    def test_drift_is_put_back(self) -> None:
        """An edit of `[farm]` is said in the log with the difference, and undone; comments and `[server]` stay."""
        farm = self.make_farm("alpha", "beta")
        # Whatever else is written there later would push the edit further back than config.ini.1.
        farm.wait_for(lambda: farm.listed() == ["alpha", "beta"], 10, "config.ini lists both")
        before = farm.config_path.read_text()
        edited = before.replace("replicas = 3", "replicas = 2").replace("[server]", "; a note of mine\n[server]")
        assert edited != before
        farm.config_path.write_text(edited)
        farm.wait_for(lambda: "replicas = 3" in farm.config_path.read_text(), 45, "the edit is undone")
        assert "; a note of mine" in farm.config_path.read_text()
        logs = farm.servers["alpha"].logged() + farm.servers["beta"].logged()
        assert "replicas" in logs and "2" in logs, farm.tails()
        assert (farm.directory / "config.ini.1").read_text() == edited

    def test_never_half(self) -> None:
        """Whoever reads the file that three servers share, again and again, never sees half of it, or an older one."""
        farm = self.make_farm("alpha", "beta", "gamma")
        before = farm.config().generation
        with TightReader(farm.config_path) as reader, farm.link("beta") as link:
            for number in range(1, REWRITES + 1):
                link.ask(f"SET farm replicas={3 - number % 2}")
                farm.wait_for(
                    lambda number=number: farm.config().generation >= before + number,  # type: ignore[misc]
                    10,
                    "the change is in the file",
                )
        print(f"{reader.reads} reads saw {len(reader.generations)} of {REWRITES} generations")
        assert reader.wrong == []
        assert reader.generations == sorted(reader.generations)
        assert len(reader.generations) > REWRITES // 2

    def test_set_farm_is_the_way(self) -> None:
        """SET farm changes the option for good, in the table and in the file."""
        farm = self.make_farm("alpha")
        generation = farm.config().generation
        changed = farm.cli("set", "farm", "replicas=2")
        assert changed.returncode == 0, changed.stderr
        farm.wait_for(lambda: farm.config().farm.replicas == 2, 10, "config.ini has the new option")
        assert farm.config().generation > generation
