"""A farm of three servers with three copies beside nginx with one: large files and small ones, over TLS.

    python -m benchmarks.first_look [--mebibytes 256] [--rounds 5] [--only get] [--json FILE]

Run it in the checkout. Needs curl; nginx is left out when it is not installed. All servers are processes on
127.0.0.1 that share one disk; rounds alternate between them, and what is put differs from round to round. nginx
answers a PUT without a hash and without waiting for the disk; a farm answers when two of three copies are
hashed and fsynced, encrypted on the way to each server, and the file's row is committed by two masters.
Absolute figures depend on the machine and its other work: read the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import define, field, frozen
from rich.console import Console
from rich.table import Table

from benchmarks.beside import Nginx, cpu_of, installed
from tests.slow.real_farm import RealFarm

SERVERS = ("alpha", "beta", "gamma")
ROOT = Path(__file__).resolve().parents[1]
STAMP_EVERY = 64 * 1024
MIB = 1024 * 1024
SETTLE_SECONDS = 0.3
"""Between two measurements: the third copies of a PUT follow its answer, and belong to it."""


@frozen
class Sample:
    """One measurement: `amount` is in MiB for a large file, in files for small ones."""

    amount: float
    seconds: float
    cpu: float
    each: tuple[float, ...] = ()
    """Milliseconds of each request, for small files."""


@define
class Row:
    """One line of the table: what was measured, of whom, and the samples of all rounds."""

    what: str
    who: str
    unit: str
    samples: list[Sample] = field(factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(sample.amount / sample.seconds for sample in self.samples)

    @property
    def cpu(self) -> float:
        """Seconds for a GiB, or milliseconds for a file, of all server processes together."""
        factor = 1024 if self.unit == "MiB/s" else 1000
        return statistics.median(sample.cpu / sample.amount for sample in self.samples) * factor

    def percentile(self, part: float) -> float:
        each = sorted(one for sample in self.samples for one in sample.each)
        return each[min(len(each) - 1, int(part * len(each)))] if each else 0.0


class FirstLook:
    """The servers, and what is asked of them."""

    def __init__(self, folder: Path, mebibytes: int, counts: dict[int, int]) -> None:
        self._folder = folder
        self._mebibytes = mebibytes
        self._counts = counts
        self._stamp = 0
        self.rows: dict[tuple[str, str], Row] = {}
        self.farm = RealFarm(folder / "farm", replicas=3)
        self.nginx = Nginx(folder / "nginx") if installed() else None
        self._file = folder / "large"

    def start(self) -> None:
        """Start the farm, and make the large file."""
        self.farm.start_serving(*SERVERS)
        with self._file.open("wb") as file:
            for _ in range(self._mebibytes):
                file.write(os.urandom(MIB))
        # A founder alone stores one copy: the first measurements must not be of that.
        self.farm.wait_for(lambda: self._members() >= len(SERVERS), 30, "three servers are up")
        time.sleep(2)

    def _members(self) -> int:
        return sum(row["state"] == "up" for row in self.farm.rows(SERVERS[0]))

    def close(self) -> None:
        """End every process."""
        if self.nginx is not None:
            self.nginx.close()
        with contextlib.redirect_stdout(io.StringIO()):
            # It shows its logs, which matter when something has failed, and are in the error then.
            self.farm.close()

    # The measurements.

    def large(self, number: int) -> None:
        """PUT and GET of the large file: farm by curl, farm by its own command, nginx by curl."""
        size, file = f"{self._mebibytes} MiB", str(self._file)
        url, name = f"{self.farm.server('alpha').url}/home/large-{number}", f"home/command-{number}"
        ways: list[tuple[str, Callable[[], None], Callable[[], None], Sequence[int]]] = [
            ("farm, curl", lambda: self._farm_curl("-T", file, url), lambda: self._farm_curl(url), self._pids),
            ("farm, chunkfarm", lambda: self._command("put", file, name), lambda: self._command("get", name, "-"),
             self._pids),
        ]  # fmt: skip
        if self.nginx is not None:
            beside = f"{self.nginx.url}/put/large-{number}"
            ways.append(
                ("nginx", lambda: self._curl("-k", "-T", file, beside), lambda: self._curl("-k", beside),
                 self.nginx.pids)
            )  # fmt: skip
        for who, put, get, pids in ways:
            self._stamp_file()
            self._time(f"put {size}", who, put, pids)
            self._time(f"get {size}", who, get, pids)
            self._clear_disks()

    def small(self, number: int) -> None:
        """PUT and GET of small files by one client: at the first server, at another one, and at nginx."""
        for size, count in self._counts.items():
            for verb in ("PUT", "GET"):
                what = f"{verb.lower()} {size // 1024} KiB"
                for who, name in (("farm, the first", "alpha"), ("farm, another", "beta")):
                    server = self.farm.server(name)
                    key = str(self.farm.key_file())
                    self._small(what, who, verb, size, count, server.files, f"/small/{name}-{size}-{number}-",
                                self.farm.directory / "alpha" / "ca.pem", key, self._pids)  # fmt: skip
                if self.nginx is not None:
                    ca = self._folder / "nginx" / "certificate.pem"
                    self._small(what, "nginx", verb, size, count, self.nginx.port,
                                f"/put/small-{size}-{number}-", ca, "", self.nginx.pids)  # fmt: skip
        self._clear_disks()

    def _clear_disks(self) -> None:
        """Remove what was put, behind the back of the servers, which are not asked for it again.

        Otherwise each round needs gigabytes of fresh memory for the page cache, and a virtual machine whose host
        has taken that memory back gets it again at a tenth of the speed: that would be measured, and nothing else.
        """
        for name in SERVERS:
            for chunk in self.farm.server(name).data.glob("chunks/??/*.chunk"):
                chunk.unlink()
        for put in (self._folder / "nginx" / "www" / "put").glob("*"):
            put.unlink()

    @property
    def _pids(self) -> list[int]:
        return [self.farm.server(name).pid for name in SERVERS]

    def _time(self, what: str, who: str, run: Callable[[], None], pids: Sequence[int]) -> None:
        """Time one transfer of the large file, and the processor time of its servers."""
        os.sync()
        before, begin = cpu_of(pids), time.perf_counter()
        run()
        seconds = time.perf_counter() - begin
        time.sleep(SETTLE_SECONDS)
        self._note(what, who, "MiB/s", Sample(self._mebibytes, seconds, cpu_of(pids) - before))

    def _small(self, what: str, who: str, verb: str, size: int, count: int, port: int, prefix: str,
               ca: Path, key: str, pids: Sequence[int]) -> None:  # fmt: skip
        os.sync()
        before = cpu_of(pids)
        command = [sys.executable, "-m", "benchmarks.small_files", verb, "--port", str(port), "--prefix", prefix]
        command += ["--count", str(count), "--size", str(size), "--ca", str(ca), "--key", key]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + self.farm.tails()
        time.sleep(SETTLE_SECONDS)
        told = json.loads(done.stdout)
        sample = Sample(count, told["seconds"], cpu_of(pids) - before, tuple(told["each"]))
        self._note(what, who, "files/s", sample)

    def _note(self, what: str, who: str, unit: str, sample: Sample) -> None:
        self.rows.setdefault((what, who), Row(what, who, unit)).samples.append(sample)

    def forget_warm_up(self) -> None:
        """The first round warms the page cache, the links and the interpreter."""
        self.rows.clear()

    # The tools.

    def _curl(self, *arguments: str) -> None:
        subprocess.run(["curl", "-sSf", "-o", "/dev/null", *arguments], check=True, stdin=subprocess.DEVNULL)

    def _farm_curl(self, *arguments: str) -> None:
        data = self.farm.directory / "alpha"
        self._curl("--cacert", str(data / "ca.pem"), "--netrc-file", str(data / "netrc"), *arguments)

    def _command(self, *arguments: str) -> None:
        config, key = self.farm.config_path, self.farm.directory / "alpha" / "admin.key"
        command = [sys.executable, "-c", "from chunkfarm.cli import main; main()", "--config", str(config)]
        subprocess.run([*command, "--key", str(key), *arguments], cwd=ROOT, check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    def _stamp_file(self) -> None:
        """Change every chunk of the large file: a chunk that the farm holds already would not be stored again."""
        self._stamp += 1
        with self._file.open("r+b") as file:
            for place in range(0, self._mebibytes * MIB, STAMP_EVERY):
                file.seek(place)
                file.write(b"%016d" % self._stamp)


def show(rows: Sequence[Row]) -> None:
    """The table, for people; ratios are to nginx."""
    table = Table(title="medians; ratio: of nginx's rate; cpu: of all server processes")
    for name in ("what", "who", "rate", "", "ratio", "p50 ms", "p99 ms", "cpu", "", "rounds"):
        table.add_column(name, justify="left" if name in ("what", "who", "") else "right")
    # All who were asked the same stand together.
    order = list(dict.fromkeys(row.what for row in rows))
    for row in sorted(rows, key=lambda row: order.index(row.what)):
        beside = next((one for one in rows if one.what == row.what and one.who == "nginx"), None)
        small = row.unit == "files/s"
        table.add_row(
            row.what,
            row.who,
            f"{row.rate:,.0f}",
            row.unit,
            f"{row.rate / beside.rate:.2f}" if beside is not None else "",
            f"{row.percentile(0.5):.2f}" if small else "",
            f"{row.percentile(0.99):.2f}" if small else "",
            f"{row.cpu:.2f}",
            "ms/file" if small else "s/GiB",
            " ".join(f"{sample.amount / sample.seconds:.0f}" for sample in row.samples),
        )
    Console(width=160).print(table)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--mebibytes", type=int, default=256)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", choices=["large", "small"])
    options.add_argument("--files", type=int, default=400, help="small files of each size in a round")
    options.add_argument("--json", type=Path, help="keep all samples there")
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="first-look-"))
    folder.chmod(0o755)
    look = FirstLook(folder, chosen.mebibytes, {64 * 1024: chosen.files, 1024: chosen.files})
    try:
        look.start()
        print("load average before:", *os.getloadavg())
        for number in range(chosen.rounds + 1):
            if chosen.only != "small":
                look.large(number)
            if chosen.only != "large":
                look.small(number)
            if number == 0:
                look.forget_warm_up()
        print("load average after:", *os.getloadavg())
        rows = list(look.rows.values())
        show(rows)
        if chosen.json:
            told = [
                {
                    "what": row.what,
                    "who": row.who,
                    "rates": [one.amount / one.seconds for one in row.samples],
                    "cpu": row.cpu,
                    "p50": row.percentile(0.5),
                    "p99": row.percentile(0.99),
                }
                for row in rows
            ]
            chosen.json.write_text(json.dumps(told, indent=1))
    finally:
        look.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
