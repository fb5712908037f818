"""A farm of two on real processes: one of them is lost, and what the other one does."""

from __future__ import annotations

import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.line_socket import Refused
from tests.slow.real_farm import RealFarm
from tests.slow.test_leaving import Writer

pytestmark = pytest.mark.slow

GRACE = 3.0
"""`master_grace` of these farms, so that a test does not wait longer than it must."""
OPTIONS = f"master_grace = {GRACE:g}s"
SECONDS_MORE = 6.0
"""Beside `GRACE`: rounds of duties and reports, an election, and a machine that has other things to do."""
SILENT_BEFORE = 1.0
"""By which the last answer of a server may be older than its end: silence counts from there, and on a busy machine it
does not answer ten times a second."""

REFUSED_SECONDS = 45.0
"""A write that comes while nobody leads waits 30 s for a leader before it is refused."""


class TwoServersTests(FarmTestCase):
    def make_pair(self) -> RealFarm:
        """Two servers that both have the table."""
        farm = self.make_farm("alpha", "beta", farm=OPTIONS)
        farm.wait_copies("beta", 2, 20)
        self.put(farm, "before")
        return farm

    def put(self, farm: RealFarm, name: str, seconds: float = 30.0) -> None:
        (farm.directory / name).write_text(f"{name}\n")
        stored = farm.cli("put", name, f"home/{name}", seconds=seconds)
        assert stored.returncode == 0, stored.stderr

    def fetched(self, farm: RealFarm, name: str) -> str:
        fetched = farm.cli("get", f"home/{name}", "-")
        assert fetched.returncode == 0, fetched.stderr
        return fetched.stdout

    def test_the_second_is_killed(self) -> None:
        """The first goes on alone after `master_grace`; the second comes back as one more copy."""
        farm = self.make_pair()
        killed = time.monotonic()
        farm.kill9("beta")

        farm.wait_copies("alpha", 1, GRACE + SECONDS_MORE)
        alone = time.monotonic() - killed
        assert alone >= GRACE - SILENT_BEFORE
        print(f"alone after {alone:.1f} s")
        self.put(farm, "meanwhile")

        farm.start("beta")
        farm.wait_serving("beta")
        farm.wait_copies("alpha", 2, 20)
        assert self.fetched(farm, "meanwhile") == "meanwhile\n"

    def test_the_second_is_frozen(self) -> None:
        """The same where it lives on: when it wakes, it finds its place again, and nothing is lost."""
        farm = self.make_pair()
        farm.pause("beta")
        farm.wait_copies("alpha", 1, GRACE + SECONDS_MORE)
        self.put(farm, "meanwhile")
        farm.resume("beta")
        farm.wait_copies("alpha", 2, 20)
        farm.wait_serving("beta")
        assert self.fetched(farm, "before") == "before\n"
        assert self.fetched(farm, "meanwhile") == "meanwhile\n"

    def test_the_first_is_killed(self) -> None:
        """Under a stream of writes the second takes over; the first comes back behind it, and nothing was lost."""
        farm = self.make_pair()
        with Writer(farm, "beta") as writer:
            farm.wait_for(lambda: len(writer.taken) > 20, 10, "writes are taken")
            killed = time.monotonic()
            farm.kill9("alpha")

            farm.wait_for(
                lambda: farm.status("beta").get("first") == "beta", GRACE + SECONDS_MORE, "beta leads, and serves"
            )
            alone = time.monotonic() - killed
            assert alone >= GRACE
            print(f"took over after {alone:.1f} s")
            done = len(writer.taken)
            farm.wait_for(lambda: len(writer.taken) > done + 20, 15, "the writes go on")
        print(f"{len(writer.taken)} writes; the longest wait: {writer.longest_gap:.1f} s; refused: {writer.refused}")
        names = {row["name"] for row in farm.ask("beta", "LIST home/").parsed}
        assert names >= set(writer.taken), "a write that was acknowledged is gone"
        self.put(farm, "meanwhile")
        assert farm.status("beta")["table-copies"] == "1"

        farm.start("alpha")
        farm.wait_serving("alpha")
        farm.wait_copies("beta", 2, 20)
        assert list(farm.states("alpha")) == ["beta", "alpha"]
        for name in ("before", "meanwhile"):
            assert self.fetched(farm, name) == f"{name}\n"

    def test_the_first_crashes_again_and_again(self) -> None:
        """Its disk is damaged and each start of it fails: it never opens its ports, so the second takes over."""
        farm = self.make_pair()
        farm.kill9("alpha")
        (farm.servers["alpha"].data / "table.sqlite").write_bytes(b"damaged" * 1000)
        deadline = time.monotonic() + GRACE + SECONDS_MORE
        while farm.status("beta").get("first") != "beta":
            assert time.monotonic() < deadline, farm.tails()
            assert "cannot be opened" in farm.fails_to_start("alpha")
        self.put(farm, "meanwhile")

    def test_the_first_is_frozen(self) -> None:
        """It may live, so the second takes no writes, says whom it misses, and loses nothing when it wakes."""
        farm = self.make_pair()
        farm.pause("alpha")
        farm.wait_for(lambda: farm.status("beta").get("state") == "readonly", 15, "beta is read-only")
        with farm.link("beta", timeout=REFUSED_SECONDS) as link:
            link.send(b"COMMIT home/refused 0 8388608 0\n")
            time.sleep(2 * GRACE)
            status = farm.ask("beta", "STATUS").rows
            assert "state=readonly" in status, status
            assert any(row.startswith("cure=") and "start alpha" in row for row in status), status
            assert self.fetched(farm, "before") == "before\n"
            missed = f"127.0.0.1:{farm.servers['alpha'].peer}"
            with self.assertRaises(Refused) as refused:
                link.reply()
            assert refused.exception.code == "readonly", refused.exception
            for words in (missed, "Cure: start alpha", "chunkfarm takeover"):
                assert words in refused.exception.sentence, refused.exception
        curl = farm.curl("-X", "DELETE", f"{farm.servers['beta'].url}/home/before")
        assert b"readonly" in curl.stdout and missed.encode() in curl.stdout, curl
        farm.resume("alpha")
        farm.wait_serving("alpha", "beta")
        self.put(farm, "after")
        for name in ("before", "after"):
            assert self.fetched(farm, name) == f"{name}\n"
        assert farm.status("beta")["first"] == "alpha"
