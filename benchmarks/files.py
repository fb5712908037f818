"""Files of 256 MiB, 64 KiB and 1 KiB, put and got: a farm beside MooseFS, Gluster and Tahoe-LAFS, three copies each.

    python -m benchmarks.files [--rounds 5] [--peers moosefs gluster tahoe] [--tahoe COMMAND] [--only small]

Run it in the checkout. Needs curl. All servers of all stores are processes on this machine that share one disk, and
rounds alternate between the stores; a peer that is not installed is left out, and said so (see `benchmarks.peers`
for what each needs, and for what its answer to a put means). Small files come from one client, one after the
other. Absolute figures depend on the machine and its other work: read the ratios, of the farm's rate to a peer's.
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
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.beside import cpu_of, end_properly
from benchmarks.first_look import MIB, ROOT, SETTLE_SECONDS, STAMP_EVERY, Row, Sample
from benchmarks.peers import Peer, start_peers
from tests.slow.real_farm import RealFarm

SERVERS = ("alpha", "beta", "gamma")
SIZES = (64 * 1024, 1024)
PEERS = ("moosefs", "gluster", "tahoe")
SLOW = {"Tahoe-LAFS": 4}
"""Of so many small files it gets one, or a round would be its alone."""
FARM = "farm"


class Farm:
    """Three servers with three copies, asked at one of them, as a `Peer`."""

    def __init__(self, name: str, farm: RealFarm, asked: str) -> None:
        self.name = name
        self._farm = farm
        self._asked = asked

    @property
    def pids(self) -> list[int]:
        return [self._farm.server(name).pid for name in SERVERS]

    def put_large(self, file: Path, name: str) -> None:
        """Store a file with curl."""
        self._curl("-T", str(file), name)

    def get_large(self, name: str) -> None:
        """Read it with curl."""
        self._curl(name)

    def _curl(self, *arguments: str) -> None:
        *more, name = arguments
        url = f"{self._farm.server(self._asked).url}/large/{name}"
        done = self._farm.curl("-f", "-o", "/dev/null", *more, url)
        assert done.returncode == 0, done.stderr.decode() + self._farm.tails()

    def client(self) -> list[str]:
        """The port, the CA, and the first key."""
        ca = str(self._farm.directory / SERVERS[0] / "ca.pem")
        return ["--port", str(self._farm.server(self._asked).files), "--ca", ca, "--key", str(self._farm.key_file())]

    def clear(self, names: Sequence[str]) -> None:
        """Remove the large chunks behind the back of the servers, which are not asked for them again.

        Otherwise each round needs gigabytes of fresh memory for the page cache (see `first_look`).
        """
        for server in SERVERS:
            for chunk in self._farm.server(server).data.glob("chunks/??/*.chunk"):
                chunk.unlink()

    def close(self) -> None:
        """End every process."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._farm.close()


def start_farm(folder: Path) -> RealFarm:
    """A farm of which all servers are up."""
    farm = RealFarm(folder, replicas=3)
    try:
        farm.start_serving(*SERVERS)
        # A founder alone stores one copy: the first measurements must not be of that.
        farm.wait_for(lambda: list(farm.states(SERVERS[0]).values()) == ["up"] * 3, 30, "all are up")
        farm.wait_copies(SERVERS[0], 3)
    except BaseException:
        farm.close()
        raise
    return farm


class Round:
    """What is asked of every store, and what came of it."""

    def __init__(self, folder: Path, mebibytes: int, count: int) -> None:
        self._file = folder / "large"
        self._mebibytes = mebibytes
        self._count = count
        self._stamp = 0
        self.rows: dict[tuple[str, str], Row] = {}
        with self._file.open("wb") as file:
            for _ in range(mebibytes):
                file.write(os.urandom(MIB))

    def large(self, peer: Peer, number: int) -> None:
        """Put and get a large file that nobody has seen before."""
        self._stamp += 1
        with self._file.open("r+b") as file:
            for place in range(0, self._mebibytes * MIB, STAMP_EVERY):
                file.seek(place)
                file.write(b"%016d" % self._stamp)
        name, size = f"large-{number}", f"{self._mebibytes} MiB"
        for what, do in (("put", lambda: peer.put_large(self._file, name)), ("get", lambda: peer.get_large(name))):
            os.sync()
            pids = peer.pids
            before, begin = cpu_of(pids), time.perf_counter()
            do()
            seconds = time.perf_counter() - begin
            time.sleep(SETTLE_SECONDS)
            sample = Sample(self._mebibytes, seconds, cpu_of(pids) - before)
            self._note(f"{what} {size}", peer.name, "MiB/s", sample)
        peer.clear([name])

    def small(self, peer: Peer, number: int) -> None:
        """Put and get small files."""
        count = self._count // SLOW.get(peer.name, 1)
        for size in SIZES:
            for verb in ("PUT", "GET"):
                os.sync()
                command = [sys.executable, "-m", "benchmarks.small_files", verb, "--count", str(count)]
                command += ["--size", str(size), "--prefix", f"/small/{size}-{number}-{peer.name.partition(' ')[2]}-"]
                pids = peer.pids
                before = cpu_of(pids)
                done = subprocess.run([*command, *peer.client()], cwd=ROOT, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
                time.sleep(SETTLE_SECONDS)
                told = json.loads(done.stdout)
                sample = Sample(count, told["seconds"], cpu_of(pids) - before, tuple(told["each"]))
                self._note(f"{verb.lower()} {size // 1024} KiB", peer.name, "files/s", sample)

    def _note(self, what: str, who: str, unit: str, sample: Sample) -> None:
        self.rows.setdefault((what, who), Row(what, who, unit)).samples.append(sample)


def ratio(row: Row, farm: Row) -> float:
    """The farm's rate as a part of the other's: the median of the rounds, each of which measured both."""
    return statistics.median(
        (one.amount / one.seconds) / (other.amount / other.seconds)
        for one, other in zip(farm.samples, row.samples, strict=True)
    )


def show(rows: Sequence[Row]) -> None:
    """The table, for people."""
    table = Table(title="medians; ratio: the farm's rate to this one's; cpu: of all processes of the store")
    for name in ("what", "who", "rate", "", "ratio", "p50 ms", "p99 ms", "cpu", "", "rounds"):
        table.add_column(name, justify="left" if name in ("what", "who", "") else "right")
    for what in dict.fromkeys(row.what for row in rows):
        same = [row for row in rows if row.what == what]
        farm = next(row for row in same if row.who == FARM)
        for row in same:
            small = row.unit == "files/s"
            table.add_row(
                what,
                row.who,
                f"{row.rate:,.0f}",
                row.unit,
                "" if row is farm else f"{ratio(row, farm):.2f}",
                f"{row.percentile(0.5):.2f}" if small else "",
                f"{row.percentile(0.99):.2f}" if small else "",
                f"{row.cpu:.2f}",
                "ms/file" if small else "s/GiB",
                " ".join(f"{sample.amount / sample.seconds:.0f}" for sample in row.samples),
                end_section=row is same[-1],
            )
    Console(width=150).print(table)


def told(rows: Sequence[Row]) -> str:
    """All samples, as JSON."""
    return json.dumps(
        [
            {
                "what": row.what,
                "who": row.who,
                "rates": [one.amount / one.seconds for one in row.samples],
                "cpu": row.cpu,
                "p50": row.percentile(0.5),
                "p99": row.percentile(0.99),
            }
            for row in rows
        ],
        indent=1,
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--mebibytes", type=int, default=256)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--files", type=int, default=400, help="small files of each size in a round")
    options.add_argument("--only", choices=["large", "small"])
    options.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    options.add_argument("--tahoe", default="tahoe", help="the command of Tahoe-LAFS, in an environment of its own")
    options.add_argument("--json", type=Path, help="keep all samples there")
    chosen = options.parse_args()
    end_properly()
    folder = Path(tempfile.mkdtemp(prefix="files-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        real = start_farm(folder / "farm")
        first = real.first()
        farm = Farm(FARM, real, first)
        stack.callback(farm.close)
        another = Farm(f"{FARM}, another", real, next(name for name in SERVERS if name != first))
        peers: list[Peer] = [farm]
        for peer in start_peers(folder, chosen.peers, chosen.tahoe):
            if isinstance(peer, str):
                print(peer)
            else:
                stack.callback(peer.close)
                peers.append(peer)
        if len(peers) == 1:
            print("no peer runs here: this is of the farm alone")
        work = Round(folder, chosen.mebibytes, chosen.files)
        print("load average before:", *os.getloadavg())
        for number in range(chosen.rounds + 1):
            if chosen.only != "small":
                for peer in peers:
                    work.large(peer, number)
            if chosen.only != "large":
                for peer in [farm, another, *peers[1:]]:
                    work.small(peer, number)
            if number == 0:
                # The first round warms the page cache, the links and the interpreter.
                work.rows.clear()
        print("load average after:", *os.getloadavg())
        rows = list(work.rows.values())
        show(rows)
        if chosen.json:
            chosen.json.write_text(told(rows))


if __name__ == "__main__":
    main()
