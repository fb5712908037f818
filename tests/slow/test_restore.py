"""All masters' disks are lost, and the names come back from an export."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from pathlib import Path

import pytest

from chunkfarm.table.journal import Journal
from tests.slow.farm_case import FarmTestCase
from tests.slow.large_files import MIB, digest_of, write_file
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

FILES = {"empty": 0, "small": 3000, "middle": 100_000, "large": 20 * MIB + 17}
LOST = ("alpha", "beta", "gamma")


class RestoreTests(FarmTestCase):
    def test_all_masters_are_lost(self) -> None:
        """Of five servers three disks are gone; the other two bring back all files, and the farm grows again."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta", "epsilon", replicas=4)
        digests = self.put_files(farm)
        # It is acknowledged once three have it, and those may be the ones that are lost.
        farm.wait_for(lambda: fewest(farm, digests) == 4, 30, "all copies are there")
        exported = farm.cli("export")
        assert exported.returncode == 0 and "5 of 5 servers" in exported.stdout, exported
        self.put(farm, "late")
        farm.wait_for(lambda: farm.status("delta").get("holds-table") == "yes", 20, "delta has learned")
        running = farm.cli("restore", "--data", "delta", "--yes", "lab")
        assert running.returncode == 1 and "in use" in running.stderr, running

        farm.kill9(*farm.servers)
        (farm.directory / "person").mkdir()
        shutil.move(farm.directory / "alpha" / "admin.key", farm.directory / "person" / "admin.key")
        (farm.directory / "gamma").rename(farm.directory / "shelved")
        for name in ("alpha", "beta"):
            shutil.rmtree(farm.directory / name)
        self.check_takeover_is_better(farm)
        for name in ("delta", "epsilon"):
            forget_table(farm.directory / name)
        self.check_other_directories(farm)
        self.kill_restores(farm)

        began = time.monotonic()
        restored = farm.cli("restore", "--data", "delta", "--yes", "lab")
        print(f"{restored.stdout}{restored.stderr}{time.monotonic() - began:.1f} s")
        assert restored.returncode == 0, restored
        assert "Start delta as always" in restored.stdout
        farm.start_serving("delta", "epsilon")
        self.check_files(farm, digests)
        assert farm.cli("get", "home/late", "back").returncode == 3, "it was named after the export"
        self.put(farm, "after")
        farm.start_serving("zeta")
        farm.wait_copies("delta", 3)
        assert farm.status("zeta")["takeovers"] == "1"
        line = [("delta", "up"), ("epsilon", "up"), ("zeta", "up")]
        farm.wait_for(lambda: list(farm.states("zeta").items())[:3] == line, 10, "zeta knows the line")
        farm.wait_for(lambda: farm.listed()[0] == "delta", 10, "config.ini follows the table again")

        # A disk that was not lost after all, and knows more than the export.
        (farm.directory / "shelved").rename(farm.directory / "gamma")
        farm.start("gamma")
        farm.wait_for(lambda: "halted" in (status_of(farm, "gamma") or {}), 30, "gamma takes part no more")
        self.check_files(farm, digests)

    def put(self, farm: RealFarm, name: str) -> None:
        (farm.directory / name).write_text(f"{name}\n")
        stored = farm.cli("put", name, f"home/{name}")
        assert stored.returncode == 0, stored.stderr

    def put_files(self, farm: RealFarm) -> dict[str, str]:
        digests = {}
        for number, (name, size) in enumerate(FILES.items()):
            digests[name] = write_file(farm.directory / name, size, seed=number)
            stored = farm.cli("put", name, f"home/{name}")
            assert stored.returncode == 0, stored.stderr
        return digests

    def check_files(self, farm: RealFarm, digests: dict[str, str]) -> None:
        for name, digest in digests.items():
            fetched = farm.cli("get", f"home/{name}", "back")
            assert fetched.returncode == 0, fetched.stderr
            assert digest_of(farm.directory / "back") == digest, name

    def check_takeover_is_better(self, farm: RealFarm) -> None:
        """delta still learned from the masters, so it knows more than the export."""
        refused = farm.cli("restore", "--data", "delta", "--yes", "lab")
        assert refused.returncode == 1 and "chunkfarm takeover" in refused.stderr, refused

    def check_other_directories(self, farm: RealFarm) -> None:
        """A server without the chunks finds them in the directory of another one."""
        chunks, aside = farm.directory / "delta" / "chunks", farm.directory / "aside"
        chunks.rename(aside)
        chunks.mkdir()
        (farm.directory / "delta" / "exports.json").unlink()
        alone = farm.cli("restore", "--data", "delta", "--yes", "other")
        assert "no export of this farm" in alone.stderr, alone
        helped = farm.cli("restore", "--data", "delta", "--from", "epsilon", "--yes", "other")
        assert "another name" in helped.stderr and "whole" in helped.stdout, helped
        shutil.rmtree(chunks)
        aside.rename(chunks)

    def kill_restores(self, farm: RealFarm) -> None:
        """A restore that is killed while it writes leaves no half of a table."""
        table = farm.directory / "delta" / "table.sqlite"
        for _ in range(2):
            running = farm.start_cli("restore", "--data", "delta", "--yes", "lab")
            deadline = time.monotonic() + 30
            while running.poll() is None and not table.with_name("table.sqlite.next").exists():
                assert time.monotonic() < deadline
            with contextlib.suppress(ProcessLookupError):
                running.send_signal(signal.SIGKILL)
            running.wait()
            rows = rows_of(table)
            print(f"killed with {rows} rows there, status {running.returncode}")
            assert rows == 0 or rows > 10, rows
            if rows:
                # It was quicker.
                forget_table(farm.directory / "delta")


def fewest(farm: RealFarm, names: dict[str, str]) -> int:
    """Copies of the chunk that has the fewest."""
    rows = [row for name in names for row in farm.ask("alpha", f"EXPLAIN home/{name}").parsed]
    return min(int(row["copies"]) for row in rows if "digest" in row)


def status_of(farm: RealFarm, name: str) -> dict[str, str] | None:
    try:
        return farm.status(name)
    except Exception:
        return None


def rows_of(table: Path) -> int:
    journal = Journal.open(str(table))
    try:
        return len(journal.read(b"", b"", 1000).rows)
    finally:
        journal.close()


def forget_table(data: Path) -> None:
    """Leave what a server has that never was to be a master: the id of its farm, and no rows."""
    journal = Journal.open(str(data / "table.sqlite"))
    farm = journal.farm_id
    journal.close()
    for path in data.glob("table.sqlite*"):
        path.unlink()
    journal = Journal.open(str(data / "table.sqlite"))
    journal.farm_id = farm
    journal.close()
