"""The units for systemd, and what a server does for them: sockets that outlive it, and a config read again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import TestCase

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.line_socket import link_to
from tests.slow.real_farm import ROOT

pytestmark = pytest.mark.slow

EXPOSURE_MAX = 1.5
"""What `systemd-analyze security` may say; 10 is a service without any protection."""


class UnitsTests(TestCase):
    """The files in `systemd/`, as systemd itself judges them."""

    def analyze(self, *arguments: str) -> str:
        """Run systemd-analyze on copies of the units that name a twistd which exists."""
        if shutil.which("systemd-analyze") is None:
            self.skipTest("systemd-analyze is not installed")
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        for unit in (ROOT / "systemd").iterdir():
            text = unit.read_text().replace("/opt/chunkfarm/bin/twistd", sys.executable)
            (folder / unit.name.replace("@.", "@d2.")).write_text(text)
        told = subprocess.run(
            ["systemd-analyze", *arguments[:1], "--man=no", *arguments[1:]],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return told.stdout

    def test_verify(self) -> None:
        """systemd finds nothing to say about them."""
        for unit in ("chunkfarm.service", "chunkfarm@d2.service", "chunkfarm.socket", "chunkfarm-files.socket"):
            assert self.analyze("verify", f"./{unit}") == "", unit

    def test_exposure(self) -> None:
        """A server that is taken over can do little to its machine."""
        for unit in ("chunkfarm.service", "chunkfarm@d2.service"):
            told = self.analyze("security", "--offline=true", f"./{unit}")
            found = re.search(r"exposure level for \S+ ([0-9.]+)", told)
            if found is None:
                self.skipTest(f"this systemd-analyze does not judge files: {told[-200:]}")
            assert float(found[1]) <= EXPOSURE_MAX, told


class PassedSocketsTests(FarmTestCase):
    """Client and file port opened by somebody else, who keeps them open while the server is exchanged."""

    def test_upgrade(self) -> None:
        """Who connects while no process runs is served by the next one; the row has the right ports."""
        farm = self.make_farm()
        server = farm.server("alpha")
        sockets = {}
        for name, port in (("client", server.client), ("files", server.files)):
            sockets[name] = socket.create_server(("127.0.0.1", port))
            self.addCleanup(sockets[name].close)
        farm.start("alpha", sockets=sockets)
        farm.wait_serving("alpha")
        (row,) = farm.rows("alpha")
        assert (row["client"], row["files"]) == (str(server.client), str(server.files))
        farm.sigterm("alpha")
        farm.wait_ended("alpha", 20)
        early = socket.create_connection(("127.0.0.1", server.client), timeout=30)
        self.addCleanup(early.close)
        early.sendall(b"HELLO\n")
        farm.start("alpha", sockets=sockets)
        assert early.recv(4096).startswith(b"OK chunkfarm/1 ")
        farm.wait_serving("alpha")
        told = farm.curl("-o", os.devnull, "-w", "%{http_code}", f"{server.url}/-/health")
        assert told.stdout == b"200", told
        # What such a service is watched by.
        (farm.directory / "x").write_text("x")
        assert farm.curl("-T", "x", f"{server.url}/home/x").returncode == 0
        metrics = farm.curl(f"{server.url}/-/metrics").stdout.decode()
        assert 'chunkfarm_requests_total{operation="PUT",outcome="ok",port="files"} 1.0' in metrics
        counted = re.search(r"^chunkfarm_transaction_seconds_count (\S+)$", metrics, re.MULTILINE)
        assert counted is not None and float(counted[1]) > 0

    def test_peer_port(self) -> None:
        """The peer port is not taken from others: that it refuses must mean that the process is gone."""
        farm = self.make_farm()
        passed = socket.create_server(("127.0.0.1", farm.server("alpha").peer))
        self.addCleanup(passed.close)
        farm.start("alpha", sockets={"peer": passed})
        assert farm.wait_ended("alpha", 20) == 1
        assert "was opened by systemd" in farm.servers["alpha"].logged()


class ReloadTests(FarmTestCase):
    """SIGHUP, as `systemctl reload` sends it."""

    def test_reload(self) -> None:
        """Another weight is in the row, a mistake changes nothing, and the log is one of JSON lines all the while."""
        farm = self.make_farm("alpha", server="log_format = json\nweight = 5\n")
        server = farm.servers["alpha"]

        def reload(before: str, after: str) -> None:
            farm.config_path.write_text(farm.config_path.read_text().replace(before, after))
            os.kill(server.pid, signal.SIGHUP)

        reload("weight = 5", "weight = 6\nmaster = no")
        farm.wait_for(lambda: farm.rows("alpha")[0]["weight"] == "6", 10, "the new weight is in the table")
        farm.wait_for(lambda: "takes effect at the next start: master" in server.logged(), 10, "what waits is named")
        reload("weight = 6", "weight = heavy")
        farm.wait_for(lambda: "Nothing was changed" in server.logged(), 10, "the mistake is told")
        with link_to(server.client, farm.key(), 5.0) as link:
            assert link.hello().state == "serving"
        assert all(line.startswith("{") for line in server.logged().splitlines())
