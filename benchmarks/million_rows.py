"""What a table of a million files costs: start, memory, a snapshot to a new server, restart, LIST, exports.

    python -m benchmarks.million_rows [--rows 1000000] [--json FILE]

Run it in the checkout. A server founds a farm and stops; its part of the table, in this process, then takes rows as
the catalog makes them, by ordinary transactions of many rows; and real servers go on from there. While one of them is
sent the whole table, small files are committed and questions are asked of both ends all the time: the longest answer
shows whether anybody was held up.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import asdict, define, field
from rich.console import Console
from rich.table import Table
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults

from benchmarks.alone import run_alone
from chunkfarm.model import File
from chunkfarm.table.embedded import EmbeddedTable
from chunkfarm.table.interface import Operation, Put
from tests.slow.line_socket import LineSocket, Refused
from tests.slow.real_farm import RealFarm

OPERATIONS = 64
"""Rows of one transaction, which is as many as it may have."""
UNDER_WAY = 32
PER_FOLDER = 1_000
PROBE_SECONDS = 0.02
"""Between two questions, and two commits."""
REST_SECONDS = 5.0
START_SECONDS = 120.0
SNAPSHOT_SECONDS = 600.0
EXPORT_SECONDS = 900.0
PAGES = 50

# What must hold for a million rows of some 400 bytes.
MEMORY_MAX = 256 * 2**20
"""Of a server that holds a million rows: they stay on the disk."""
RESTART_SECONDS_MAX = 10.0
ANSWER_SECONDS_MAX = 1.0
"""The longest that a question or a commit may take while a snapshot is on its way: an election timeout."""


def row_of(number: int) -> Put:
    """A file of one chunk, as the catalog writes it."""
    digest = hashlib.sha256(b"%d" % number).digest()
    file = File(
        name=f"home/folder-{number // PER_FOLDER:05d}/file-{number % PER_FOLDER:04d}.txt",
        size=1000 + number % 60_000,
        chunk_size=8 * 2**20,
        digests=(digest,),
        modified=1_795_000_000_000 + number,
        content_type="text/plain",
        etag=digest.hex()[:32],
    )
    return Put(file.key, file.to_value())


def fill(data: Path, rows: int) -> float:
    """Write so many files into the table in a data directory whose server does not run; seconds that it took."""

    async def work(table: EmbeddedTable) -> None:
        slots = DeferredSemaphore(UNDER_WAY)
        going: list[Deferred[Any]] = []
        for start in range(0, rows, OPERATIONS):
            operations: tuple[Operation, ...] = tuple(
                row_of(number) for number in range(start, min(start + OPERATIONS, rows))
            )
            await slots.acquire()
            going.append(table.transact((), operations).addBoth(_release(slots)))
        await gatherResults(going)

    begun = time.monotonic()
    run_alone(data, work)
    return time.monotonic() - begun


def _release(slots: DeferredSemaphore) -> Callable[[Any], Any]:
    def release(result: Any) -> Any:
        slots.release()
        return result

    return release


class Probe(threading.Thread):
    """Asks the same again and again, and notes how long each answer took."""

    def __init__(self, farm: RealFarm, name: str, line: Callable[[int], str]) -> None:
        super().__init__(daemon=True)
        self._farm = farm
        self._name = name
        self._line = line
        self._ended = threading.Event()
        self.took: list[float] = []
        self.refused: list[str] = []

    def run(self) -> None:
        link: LineSocket | None = None
        with contextlib.ExitStack() as stack:
            while not self._ended.wait(PROBE_SECONDS):
                begun = time.monotonic()
                try:
                    link = link or stack.enter_context(self._farm.link(self._name, 60.0))
                    link.ask(self._line(len(self.took)))
                except (OSError, Refused) as error:
                    self.refused.append(str(error))
                    link = None
                else:
                    self.took.append(time.monotonic() - begun)

    def stop(self) -> list[float]:
        """The seconds of all answers, the shortest first."""
        self._ended.set()
        self.join(70)
        return sorted(self.took) or [float("nan")]


@define
class Report:
    """What was found, by what is asked; seconds, and bytes."""

    figures: dict[str, float] = field(factory=dict)
    wrong: list[str] = field(factory=list)

    def note(self, what: str, value: float, limit: float | None = None) -> None:
        self.figures[what] = value
        print(f"{what}: {_shown(what, value)}", flush=True)
        if limit is not None and not value <= limit:
            self.wrong.append(f"{what} is {_shown(what, value)}, and may be {_shown(what, limit)}")


def _shown(what: str, value: float) -> str:
    if "bytes" in what:
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,.0f}" if "count" in what else f"{value:,.3f} s"


class Trial:
    """One run on one farm."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.farm = RealFarm(folder / "farm")
        self.rows = rows
        self.report = Report()

    def run(self) -> Report:
        farm, note = self.farm, self.report.note
        farm.start_serving("alpha")
        farm.sigterm("alpha")
        farm.wait_ended("alpha", 30)
        note("rows (count)", self.rows)
        note("writing them", fill(farm.server("alpha").data, self.rows))
        note("the table's file (bytes)", (farm.server("alpha").data / "table.sqlite").stat().st_size)
        self.start("alpha", "alone")
        self.list_all("alpha")
        for name in ("beta", "gamma"):
            self.snapshot_to(name)
        self.rest()
        self.export("the first export")
        self.export("the next export")
        farm.sigterm("gamma")
        farm.wait_ended("gamma", 60)
        self.start("gamma", "again as one of three")
        farm.kill9("alpha")
        self.start("alpha", "after kill -9")
        self.restore()
        return self.report

    def start(self, name: str, how: str) -> None:
        begun = time.monotonic()
        self.farm.start(name)
        self.farm.wait_serving(name, seconds=START_SECONDS)
        self.report.note(f"start of {name} {how}", time.monotonic() - begun, RESTART_SECONDS_MAX)
        server = self.farm.servers[name]
        self.report.note(f"memory of {name} started {how} (bytes)", server.peak_memory(), MEMORY_MAX)

    def list_all(self, name: str) -> None:
        """Pages from the beginning, from the middle, and one in the middle of nowhere."""
        with self.farm.link(name, 60.0) as link:
            taken, after, count = [], "", 0
            for _ in range(PAGES):
                begun = time.monotonic()
                reply = link.ask(f"LIST home/ {after} 1000" if after else "LIST home/")
                taken.append(time.monotonic() - begun)
                if not reply.rows:
                    break
                count += len(reply.rows)
                after = reply.parsed[-1]["name"]
            middle = f"home/folder-{self.rows // PER_FOLDER // 2:05d}/"
            begun = time.monotonic()
            found = len(link.ask(f"LIST {middle}").rows)
            self.report.note("LIST of one folder in the middle", time.monotonic() - begun, ANSWER_SECONDS_MAX)
            assert found, middle
        self.report.note("names in the first pages (count)", count)
        self.report.note("LIST of a page, median", sorted(taken)[len(taken) // 2], ANSWER_SECONDS_MAX)
        self.report.note("LIST of a page, longest", max(taken), ANSWER_SECONDS_MAX)
        self.report.note(f"memory of {name} after that (bytes)", self.farm.servers[name].peak_memory(), MEMORY_MAX)

    def snapshot_to(self, name: str) -> None:
        """A server joins, and is sent the whole table while others write and ask."""
        farm, note = self.farm, self.report.note
        copies = int(farm.status("alpha")["table-copies"])
        commits = Probe(farm, "alpha", lambda number: f"COMMIT probe/{name}-{number} 0 8388608 0")
        pings = Probe(farm, "alpha", lambda _: "PING")
        commits.start()
        pings.start()
        begun = time.monotonic()
        farm.start_serving(name)
        note(f"{name} joins and serves", time.monotonic() - begun)
        there = Probe(farm, name, lambda _: "PING")
        there.start()
        wal, table = 0, farm.servers["alpha"].data / "table.sqlite-wal"

        def is_sent() -> bool:
            nonlocal wal
            wal = max(wal, table.stat().st_size)
            return farm.status("alpha")["table-copies"] == str(copies + 1)

        farm.wait_for(is_sent, SNAPSHOT_SECONDS, f"{name} holds the table")
        note(f"{name} holds the table", time.monotonic() - begun)
        for who, probe in (("a commit", commits), ("a PING of alpha", pings), (f"a PING of {name}", there)):
            took = probe.stop()
            note(f"{who} meanwhile, median", took[len(took) // 2])
            note(f"{who} meanwhile, longest", took[-1], ANSWER_SECONDS_MAX)
            if probe.refused:
                self.report.wrong.append(f"{who} was refused {len(probe.refused)} times: {probe.refused[0]}")
        note("alpha's log file of SQLite, largest (bytes)", wal)
        for server in ("alpha", name):
            note(f"memory of {server} after that (bytes)", farm.servers[server].peak_memory(), MEMORY_MAX)

    def export(self, what: str) -> None:
        """All names are exported, and kept on three servers, while others write and ask."""
        farm, note = self.farm, self.report.note
        commits = Probe(farm, "alpha", lambda number: f"COMMIT probe/{what.replace(' ', '-')}-{number} 0 8388608 0")
        pings = Probe(farm, "alpha", lambda _: "PING")
        worked, begun = farm.servers["alpha"].processor_seconds(), time.monotonic()
        commits.start()
        pings.start()
        told = farm.cli("export", "--json", seconds=EXPORT_SECONDS)
        note(what, time.monotonic() - begun)
        for who, probe in (("a commit", commits), ("a PING", pings)):
            took = probe.stop()
            note(f"{who} during {what}, median", took[len(took) // 2])
            note(f"{who} during {what}, longest", took[-1], ANSWER_SECONDS_MAX)
        note(f"processor time of alpha for {what}", farm.servers["alpha"].processor_seconds() - worked)
        note(f"memory of alpha after {what} (bytes)", farm.servers["alpha"].peak_memory(), MEMORY_MAX)
        note(f"chunks that {what} stored (count)", json.loads(told.stdout)["new"])

    def restore(self) -> None:
        """The masters' tables are gone, and the names come back from the chunks of one of them."""
        farm = self.farm
        farm.kill9("alpha", "beta", "gamma")
        for path in farm.server("gamma").data.glob("table.sqlite*"):
            path.unlink()
        begun = time.monotonic()
        restored = farm.cli("restore", "--data", "gamma", "--yes", "lab", seconds=EXPORT_SECONDS)
        assert restored.returncode == 0, restored.stderr
        self.report.note("restoring all names", time.monotonic() - begun)
        self.start("gamma", "restored")

    def rest(self) -> None:
        """The same questions with nothing beside them."""
        commits = Probe(self.farm, "alpha", lambda number: f"COMMIT probe/rest-{number} 0 8388608 0")
        commits.start()
        time.sleep(REST_SECONDS)
        took = commits.stop()
        self.report.note("a commit of three at rest, median", took[len(took) // 2])
        self.report.note("a commit of three at rest, longest", took[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chunkfarm-million-") as folder:
        trial = Trial(Path(folder), arguments.rows)
        try:
            report = trial.run()
        finally:
            with contextlib.redirect_stdout(io.StringIO()):
                trial.farm.close()
    table = Table(title=f"A table of {arguments.rows:,} files")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for what, value in report.figures.items():
        table.add_row(what.replace(" (bytes)", "").replace(" (count)", ""), _shown(what, value))
    Console(width=100).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    for fault in report.wrong:
        print(f"WRONG: {fault}")
    raise SystemExit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
