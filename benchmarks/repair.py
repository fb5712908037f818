"""How long small reads take while a farm copies what a dead server held: at most twice as long as at rest.

    python -m benchmarks.repair [--mebibytes 1024] [--files 2000] [--rate 64M]

Run it in the checkout. Four servers with three copies on this machine; one is killed, and the others copy its chunks
to each other. One client reads files of 64 KiB from one of them, twenty a second (`now and then`) or one after the
other (`all the time`), before, meanwhile and afterwards. All servers share two processors and one disk here, so this
is harder on the reader than machines of their own are. Fails if the 99th percentile more than doubles.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.beside import end_properly
from benchmarks.first_look import MIB, ROOT
from tests.slow.real_farm import RealFarm

SERVERS = ("alpha", "beta", "gamma", "delta")
SIZE = 64 * 1024
PACES = {"now and then": 20.0, "all the time": 0.0}
"""Reads a second; 0: one after the other."""
SLICE_SECONDS = 4.0
"""Of reading at one pace, before it is looked again whether there is anything left to copy."""
REST_SECONDS = 12.0
SETTLE_SECONDS = 5.0
BEGIN_SECONDS = 120.0
BOUND = 2.0
LARGE_MEBIBYTES = 64


class Trial:
    """The farm, and who reads from it."""

    def __init__(self, folder: Path, rate: str, files: int) -> None:
        server = f"repair_rate = {rate}" if rate else ""
        self.farm = RealFarm(folder, replicas=3, farm="repair_after = 3s", server=server)
        self.files = files
        self.asked = ""

    def fill(self, mebibytes: int) -> None:
        """Start the servers and store what there will be to copy."""
        farm = self.farm
        farm.start_serving(*SERVERS)
        farm.wait_for(lambda: list(farm.states(SERVERS[0]).values()) == ["up"] * len(SERVERS), 30, "all are up")
        farm.wait_copies(SERVERS[0], 3)
        self.asked = farm.first()
        large = farm.directory / "large"
        for number in range(0, mebibytes, LARGE_MEBIBYTES):
            large.write_bytes(os.urandom(LARGE_MEBIBYTES * MIB))
            done = farm.curl("-f", "-T", str(large), f"{farm.server(self.asked).url}/large/{number}")
            assert done.returncode == 0, done.stderr.decode()
        self._ask("PUT", "--count", str(self.files))

    def read(self, pace: float, seconds: float) -> list[float]:
        """Milliseconds of each read."""
        return self._ask("GET", "--count", str(self.files), "--pace", str(pace), "--seconds", str(seconds))

    def _ask(self, verb: str, *more: str) -> list[float]:
        server = self.farm.server(self.asked)
        command = [sys.executable, "-m", "benchmarks.small_files", verb, "--size", str(SIZE), "--prefix", "/small/"]
        command += ["--port", str(server.files), "--key", str(self.farm.key_file())]
        command += ["--ca", str(self.farm.directory / SERVERS[0] / "ca.pem")]
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + self.farm.tails()
        told: list[float] = json.loads(done.stdout)["each"]
        return told

    def left(self) -> int:
        """Chunks that still have to be copied, as far as the servers know."""
        return sum(
            int(self.farm.status(name)["repair-left"]) for name in SERVERS if self.farm.server(name).is_running()
        )

    def kill_one(self) -> str:
        """End a server that is not the one asked; returns when the others have begun to copy."""
        name = next(name for name in reversed(SERVERS) if name != self.asked)
        self.farm.kill9(name)
        self.farm.wait_for(lambda: self.left() > 0, BEGIN_SECONDS, "the others copy")
        return name


def percentile(each: Sequence[float], part: float) -> float:
    """Of the milliseconds."""
    return sorted(each)[min(len(each) - 1, int(part * len(each)))] if each else 0.0


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--mebibytes", type=int, default=1024, help="of large files")
    options.add_argument("--files", type=int, default=2000, help="of 64 KiB")
    options.add_argument("--rate", default="", help="repair_rate of every server, unless as it comes")
    chosen = options.parse_args()
    end_properly()
    folder = Path(tempfile.mkdtemp(prefix="repair-"))
    trial = Trial(folder / "farm", chosen.rate, chosen.files)
    rest: dict[str, list[float]] = {name: [] for name in PACES}
    meanwhile: dict[str, list[float]] = {name: [] for name in PACES}
    try:
        trial.fill(chosen.mebibytes)
        time.sleep(SETTLE_SECONDS)
        print("load average:", *os.getloadavg())
        for name, pace in PACES.items():
            rest[name] += trial.read(pace, REST_SECONDS)
        trial.kill_one()
        before, begin = trial.left(), time.monotonic()
        left = before
        while left:
            for name, pace in PACES.items():
                each = trial.read(pace, SLICE_SECONDS)
                left = trial.left()
                if left:
                    meanwhile[name] += each
        print(f"{before} chunks known to be copied at first; all were after {time.monotonic() - begin:.0f} s")
        time.sleep(SETTLE_SECONDS)
        for name, pace in PACES.items():
            rest[name] += trial.read(pace, REST_SECONDS)
        print("load average:", *os.getloadavg())
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            trial.farm.close()
        shutil.rmtree(folder, ignore_errors=True)
    worst = 0.0
    for name in PACES:
        for what, each in (("at rest", rest[name]), ("meanwhile", meanwhile[name])):
            middle, last = percentile(each, 0.5), percentile(each, 0.99)
            print(f"{name}, {what}: {len(each)} reads, p50 {middle:.2f} ms, p99 {last:.2f} ms")
        if meanwhile[name]:
            ratio = percentile(meanwhile[name], 0.99) / percentile(rest[name], 0.99)
            worst = max(worst, ratio)
            print(f"{name}: p99 meanwhile is {ratio:.2f} times that at rest")
    if worst > BOUND:
        sys.exit(f"p99 is {worst:.2f} times that at rest, more than {BOUND:g}")


if __name__ == "__main__":
    main()
