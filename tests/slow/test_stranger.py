"""A client that was written from docs/protocol.md alone, against a real server."""

from __future__ import annotations

import ast
import hashlib
import random
import re
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests import stranger_client
from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm
from tests.stranger_client import NotOurFarm, Refused, Stranger

pytestmark = pytest.mark.slow


class StrangerTests(FarmTestCase):
    def stranger(self, farm: RealFarm) -> Stranger:
        link = Stranger("127.0.0.1", farm.server("alpha").client, farm.config().farm.ca, *farm.key())
        self.addCleanup(link.close)
        return link

    def test_a_stranger(self) -> None:
        """Who has read the document, config.ini and a key can put, get, list and watch."""
        farm = self.make_farm("alpha")
        link = self.stranger(farm)
        assert link.role == "admin"
        assert link.hello["state"] == "serving"
        assert [(row["name"], row["state"], row["role"]) for row in link.block("SERVERS")[1]] == [
            ("alpha", "up", "first")
        ]

        before, files = link.ls()
        assert files == []
        data = random.Random(1).randbytes(5 * 65_536 + 7)
        name = "home/50 % of a film.mkv"
        receipt = link.put(name, data, 65_536)
        manifest = b"".join(
            hashlib.sha256(data[start : start + 65_536]).digest() for start in range(0, len(data), 65_536)
        )
        etag = hashlib.sha256(b"%d %d " % (len(data), 65_536) + manifest).hexdigest()[:32]
        assert (receipt["name"], receipt["chunks"], receipt["etag"]) == (name, "6", etag)
        assert link.get(name) == data
        assert [row["name"] for row in link.ls("home/")[1]] == [name]
        link.put("home/empty", b"", 65_536)
        assert link.get("home/empty") == b""
        link.ask("REMOVE home/empty")

        told = list(islice(self.stranger(farm).watch("files/", before), 3))
        assert [(kind, row["name"]) for _, kind, row, _ in told] == [
            ("PUT", name),
            ("PUT", "home/empty"),
            ("DEL", "home/empty"),
        ]
        assert told[0][3]["size"] == len(data)
        assert told[0][0] == int(receipt["revision"])

        with self.assertRaises(Refused) as caught:
            link.get("home/nothing")
        assert str(caught.exception).startswith("notfound ")
        assert link.ask("PING") == "OK"
        # A secret is shown only to a server that has proved to be of the farm.
        with self.assertRaises(NotOurFarm):
            Stranger("127.0.0.1", farm.server("alpha").client, "sha256:" + "0" * 64, *farm.key())

    def test_explained(self) -> None:
        """A file on one server is lost with it, and `explain` says so."""
        farm = self.make_farm("alpha")
        self.stranger(farm).put("home/a", b"x" * 10_000, 4096)
        shown = farm.cli("explain", "home/a")
        assert shown.returncode == 0, shown.stderr
        lines = [re.sub(r"\d+-\d+-\d+ [\d:]+", "TIME", " ".join(line.split())) for line in shown.stdout.splitlines()]
        assert lines == [
            "home/a: 9.8 KiB in 3 chunks, 3 copies wanted, at least 1 there",
            "CHUNKS SIZE COPIES VERIFIED ON",
            "0-2 9.8 KiB 1 TIME alpha",
            "SERVER STATE HOLDS VERIFIED LOST IF IT DIES",
            "alpha up 2 TIME 2 chunks, 9.8 KiB",
        ]

    def test_whole_table(self) -> None:
        """The server table can be printed, edited and put back as a whole, and config.ini follows."""
        farm = self.make_farm("alpha")

        def put_edited() -> bool:
            shown = farm.cli("servers", "--raw").stdout
            (farm.directory / "edited").write_text(shown.replace(" name=alpha ", " name=omega "))
            # The free space of the disk counts as a change, and moves when it likes.
            put = farm.cli("servers", "--put", "edited")
            assert put.returncode == 0 or "has changed since" in put.stderr, put.stderr
            return put.stdout == "1 row changed\n"

        farm.wait_for(put_edited, 20, "the edited table is taken")
        farm.wait_for(lambda: farm.listed() == ["omega"], 5, "config.ini names omega")

    def test_it_is_a_stranger(self) -> None:
        """It has 150 lines at most, and imports nothing but the standard library."""
        text = Path(stranger_client.__file__).read_text()
        assert len(text.splitlines()) <= 150
        used = set[str]()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                used.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                used.add(node.module or "")
        assert used and all(name.partition(".")[0] in sys.stdlib_module_names for name in used), used
