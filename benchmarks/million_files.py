"""A million small files in a farm of three with three copies: are the last ones stored as fast as the first?

    python -m benchmarks.million_files [--files 1000000] [--clients 8] [--size 1024]

Run it in the checkout. So many clients, each with one connection, put files into folders of 1,000. Told are the rate of
each twentieth, the processor time of the servers for each file, which says the same on a machine that has other things
to do, the time left, how long the servers need to serve again after a proper end of all and after kill -9 of one, and
what memory they have then. Fails if the last tenth comes at less than 80 % of the rate of the first. On a quiet
machine with two processors a million take some 50 minutes and 12 GiB of disk; 100,000 tell most of it in five.
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
from benchmarks.files import SERVERS, start_farm
from benchmarks.first_look import MIB, ROOT
from tests.slow.real_farm import RealFarm

PARTS = 20
BOUND = 0.8
START_SECONDS = 300.0
SETTLE_SECONDS = 5.0


class Trial:
    """The farm, and who fills it."""

    def __init__(self, farm: RealFarm, clients: int, size: int) -> None:
        self._farm = farm
        self._clients = clients
        self._size = size
        self._asked = farm.first()

    def put(self, part: int, count: int) -> tuple[float, float]:
        """Store that many more files; files a second, and ms of processor time that all servers took for one."""
        before = self._processor_seconds()
        each = max(1, count // self._clients)
        server, ca = self._farm.server(self._asked), str(self._farm.directory / SERVERS[0] / "ca.pem")
        command = [sys.executable, "-m", "benchmarks.small_files", "PUT", "--port", str(server.files), "--ca", ca]
        command += ["--key", str(self._farm.key_file()), "--count", str(each), "--size", str(self._size)]
        running = [
            subprocess.Popen(
                [*command, "--folders", "--prefix", f"/million/{part}-{client}"], cwd=ROOT, stdout=subprocess.PIPE
            )
            for client in range(self._clients)
        ]
        told = [process.communicate()[0] for process in running]
        assert all(process.returncode == 0 for process in running), self._farm.tails()
        files = each * self._clients
        took = self._processor_seconds() - before
        return files / max(float(json.loads(one)["seconds"]) for one in told), 1000 * took / files

    def _processor_seconds(self) -> float:
        return sum(self._farm.server(name).processor_seconds() for name in SERVERS)

    def start_again(self) -> float:
        """End all servers as a person would, and start them; seconds until all serve."""
        for name in SERVERS:
            self._farm.sigterm(name)
        for name in SERVERS:
            self._farm.wait_ended(name, 60)
        begin = time.monotonic()
        for name in SERVERS:
            self._farm.start(name)
        self._farm.wait_serving(*SERVERS, seconds=START_SECONDS)
        return time.monotonic() - begin

    def start_after_kill(self) -> float:
        """Kill one that is not the first, and start it; seconds until it serves."""
        name = next(name for name in SERVERS if name != self._farm.first())
        self._farm.kill9(name)
        begin = time.monotonic()
        self._farm.start(name)
        self._farm.wait_serving(name, seconds=START_SECONDS)
        return time.monotonic() - begin

    def memory(self) -> str:
        """MiB of each server, now and at most."""
        servers = [self._farm.server(name) for name in SERVERS]
        return ", ".join(f"{one.name} {one.memory() // MIB} (at most {one.peak_memory() // MIB})" for one in servers)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--files", type=int, default=1_000_000)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--size", type=int, default=1024)
    chosen = options.parse_args()
    end_properly()
    folder = Path(tempfile.mkdtemp(prefix="million-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        farm = start_farm(folder / "farm")
        stack.callback(_close, farm)
        trial = Trial(farm, chosen.clients, chosen.size)
        print("MiB of memory at first:", trial.memory())
        rates, costs = [], []
        begin = time.monotonic()
        for part in range(PARTS):
            rate, cost = trial.put(part, chosen.files // PARTS)
            rates.append(rate)
            costs.append(cost)
            told = f"{(part + 1) * (chosen.files // PARTS):>9,} files: {rate:,.0f} a second, {cost:.2f} ms of processor"
            left = (time.monotonic() - begin) / (part + 1) * (PARTS - part - 1) / 60
            print(f"{told}, load {os.getloadavg()[0]:.1f}, {left:.0f} min left, MiB: {trial.memory()}", flush=True)
        time.sleep(SETTLE_SECONDS)
        print(f"all serve again after {trial.start_again():.1f} s; MiB: {trial.memory()}", flush=True)
        time.sleep(SETTLE_SECONDS)
        print(f"one serves again after kill -9 in {trial.start_after_kill():.1f} s; MiB: {trial.memory()}")
        ratio = _last_to_first(rates)
        print(
            f"the last tenth came at {ratio:.2f} of the rate of the first, for {_last_to_first(costs):.2f} of its time"
        )
        if ratio < BOUND:
            sys.exit("the last files were stored too slowly")


def _last_to_first(each: Sequence[float]) -> float:
    tenth = PARTS // 10
    return sum(each[-tenth:]) / sum(each[:tenth])


def _close(farm: RealFarm) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        farm.close()


if __name__ == "__main__":
    main()
