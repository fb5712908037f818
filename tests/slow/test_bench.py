"""`chunkfarm bench` on a farm that runs: every figure is there, and nothing is left."""

from __future__ import annotations

import json
import signal

import pytest

from tests.slow.farm_case import FarmTestCase

pytestmark = pytest.mark.slow


class BenchTests(FarmTestCase):
    def test_a_farm(self) -> None:
        """It measures this machine, the way to the server, and the farm as a part of that; Ctrl-C removes its files."""
        farm = self.make_farm("alpha")
        done = farm.cli("bench", "--size", "8M", "--json")
        assert done.returncode == 0, done.stderr
        print(done.stderr, done.stdout)
        figures = {row["name"]: row for row in json.loads(done.stdout)}
        for name in ("disk write", "disk sync", "hash SHA-256", "tls loopback", "round trip alpha", "link alpha"):
            assert figures[name]["value"] > 0, figures[name]
        for name in ("farm put large", "farm get large", "farm put small", "farm get small"):
            row = figures[name]
            assert row["percent"] > 0 and row["nearest"] in row["ceilings"], row
        assert "201 files were removed again" in done.stderr
        assert farm.cli("ls").stdout.split() == ["MODIFIED", "SIZE", "NAME"]

        process = farm.start_cli("bench", "--size", "256M")
        assert process.stderr is not None
        while b"goes in and comes out" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130 and b"removed again" in said and b"interrupted" in said, said
        assert farm.cli("ls").stdout.split() == ["MODIFIED", "SIZE", "NAME"]
        assert not list(farm.directory.rglob(".chunkfarm-bench-*"))
