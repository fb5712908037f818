"""The table beside etcd: transactions a second with 1 and 64 under way, and how long a new leader takes.

    python -m benchmarks.table [--rounds 5] [--seconds 3] [--failovers 5] [--only rate|failover] [--json FILE]

Run it in the checkout. Both are three processes on 127.0.0.1 whose data lie on the same disk; etcd is left out
where it is not installed (Debian's `etcd-server` and `etcd-client`). Rounds alternate between them.

A transaction of a farm is a COMMIT of an empty file at the first server: that is the command of the client port
that does the least beside one transaction, which compares and puts one row. It is a line in, a look whether the
name was there, the transaction, a line out. A transaction of etcd is a put of a key and a value of the same length
at its leader, over gRPC; "gateway" is the same through the JSON gateway of the same processes. Both answer when a
majority has it on disk; a farm encrypts between its servers, etcd does not. Every writer has a connection with one
write under way, and all writers are one process. `--pids` waits, so that somebody can look at the processes.

Failover: the leader is killed with kill -9; the time is from there until a write is committed by any of the two
others, at each of which another one is begun every 20 ms. Then the killed one is started again.

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
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field
from rich.console import Console
from rich.table import Table

from benchmarks import etcd
from benchmarks.beside import cpu_of
from tests.slow.real_farm import RealFarm

SERVERS = ("alpha", "beta", "gamma")
ROOT = Path(__file__).resolve().parents[1]
WRITERS = (1, 64)
SETTLE_SECONDS = 0.5
REST_SECONDS = 5.0
"""Between a failover and the next one: whoever came back has caught up, and nothing else is going on."""


class System(Protocol):
    """A farm or etcd, as far as it is measured."""

    name: str

    def start(self) -> None: ...

    def leader(self) -> str: ...

    def command(self, servers: list[str]) -> list[str]:
        """How a client is told where to write."""

    def others(self, leader: str) -> list[str]: ...

    def kill9(self, name: str) -> None: ...

    def start_again(self, name: str) -> None: ...

    def pids(self) -> list[int]: ...

    def close(self) -> None: ...


class Farm:
    """Three servers with a table."""

    name = "farm"

    def __init__(self, folder: Path) -> None:
        self.farm = RealFarm(folder, replicas=3)

    def start(self) -> None:
        self.farm.start_serving(*SERVERS)
        self.farm.wait_for(self._whole, 60, "three masters vote")

    def _whole(self) -> bool:
        """Whether all are up, and the table has three copies that are current."""
        try:
            asked = next(name for name in SERVERS if self.farm.servers[name].is_running())
            said = self._said(asked)
        except OSError:
            return False
        up = [row for row in self.farm.rows(asked) if row["state"] == "up"]
        return len(up) == len(SERVERS) and said.get("table-copies") == "3"

    def leader(self) -> str:
        return self.farm.wait_for(self._agreed, 60, "all know who leads")

    def _agreed(self) -> str:
        """The server that leads, if all say the same."""
        try:
            said = {self._said(name)["first"] for name in SERVERS}
        except OSError:
            return ""
        return said.pop() if len(said) == 1 and said <= {*SERVERS} else ""

    def _said(self, name: str) -> dict[str, str]:
        return dict(row.split("=", 1) for row in self.farm.ask(name, "STATUS").rows)

    def others(self, leader: str) -> list[str]:
        return [name for name in SERVERS if name != leader]

    def command(self, servers: list[str]) -> list[str]:
        ports = [str(self.farm.server(name).client) for name in servers]
        return ["farm", "--key", str(self.farm.key_file()), "--ports", *ports]

    def kill9(self, name: str) -> None:
        os.kill(self.farm.server(name).pid, 9)

    def start_again(self, name: str) -> None:
        self.farm.wait_ended(name, 10)
        self.farm.start(name)
        self.farm.wait_serving(name)
        self.farm.wait_for(self._whole, 60, "three masters vote")

    def pids(self) -> list[int]:
        return [self.farm.server(name).pid for name in SERVERS]

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            # It shows its logs, which matter when something has failed, and are in the error then.
            self.farm.close()


class Beside:
    """etcd, by gRPC or through its JSON gateway."""

    def __init__(self, members: etcd.Etcd, protocol: str) -> None:
        self.name = protocol
        self._protocol = protocol
        self._etcd = members

    def start(self) -> None:
        self._etcd.start()

    def leader(self) -> str:
        return self._etcd.wait_leader()

    def others(self, leader: str) -> list[str]:
        return [name for name in etcd.MEMBERS if name != leader]

    def command(self, servers: list[str]) -> list[str]:
        return [self._protocol, "--ports", *(str(self._etcd.ports[name]) for name in servers)]

    def kill9(self, name: str) -> None:
        self._etcd.kill9(name)

    def start_again(self, name: str) -> None:
        self._etcd.start_again(name)
        self._etcd.wait_leader()

    def pids(self) -> list[int]:
        return self._etcd.pids

    def close(self) -> None:
        self._etcd.close()


@define
class Samples:
    """What was measured of one system with so many writers."""

    rates: list[float] = field(factory=list)
    p50: list[float] = field(factory=list)
    p99: list[float] = field(factory=list)
    cpu: list[float] = field(factory=list)
    """Milliseconds of processor time for a transaction, of the three servers together."""


def rate(system: System, writers: int, seconds: float, stem: str, samples: Samples) -> None:
    """One measurement of a rate."""
    os.sync()
    before = cpu_of(system.pids())
    command = [sys.executable, "-m", "benchmarks.table_writers", *system.command([system.leader()])]
    command += ["--stem", stem, "--writers", str(writers), "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    samples.rates.append(told["count"] / told["seconds"])
    samples.p50.append(told["p50"])
    samples.p99.append(told["p99"])
    samples.cpu.append((cpu_of(system.pids()) - before) / told["count"] * 1000)
    time.sleep(SETTLE_SECONDS)


def failover(system: System, stem: str) -> float:
    """Seconds from the end of the leader to the next committed write."""
    leader = system.leader()
    command = [sys.executable, "-m", "benchmarks.table_writers", *system.command(system.others(leader))]
    client = subprocess.Popen(
        [*command, "--stem", stem, "--until-first"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdin is not None and client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    killed = time.monotonic()
    system.kill9(leader)
    client.stdin.write("go\n")
    client.stdin.flush()
    committed = float(client.stdout.readline())
    client.stdin.close()
    client.stdout.close()
    client.wait()
    time.sleep(1)
    system.start_again(leader)
    time.sleep(REST_SECONDS)
    return committed - killed


def show_rates(rates: dict[tuple[str, int], Samples]) -> None:
    middle = statistics.median
    names = ("under way", "who", "transactions/s", "of etcd", "of gateway", "p50 ms", "p99 ms", "cpu ms", "rounds")
    table = Table(*names, title="transactions: medians; cpu: of the three servers, for each transaction")
    for (who, writers), samples in sorted(rates.items(), key=lambda item: (item[0][1], item[0][0] != "farm")):
        ratios = [
            f"{middle(samples.rates) / middle(other.rates):.2f}" if other is not None and who == "farm" else ""
            for other in (rates.get(("etcd", writers)), rates.get(("gateway", writers)))
        ]
        table.add_row(
            str(writers),
            who,
            f"{middle(samples.rates):,.0f}",
            *ratios,
            f"{middle(samples.p50):.2f}",
            f"{middle(samples.p99):.2f}",
            f"{middle(samples.cpu):.2f}",
            " ".join(f"{one:.0f}" for one in samples.rates),
        )
    Console(width=140).print(table)


def show_failovers(gaps: dict[str, list[float]]) -> None:
    table = Table("who", "median s", "rounds", title="from kill -9 of the leader to the next committed write")
    for who, seconds in gaps.items():
        table.add_row(who, f"{statistics.median(seconds):.2f}", " ".join(f"{one:.2f}" for one in seconds))
    Console(width=140).print(table)


def main() -> None:
    options = argparse.ArgumentParser(description="Measure the table.")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--failovers", type=int, default=5)
    options.add_argument("--only", choices=["rate", "failover"])
    options.add_argument("--alone", action="store_true", help="without etcd")
    options.add_argument("--pids", action="store_true", help="show the processes and wait for a line")
    options.add_argument("--json", type=Path, help="keep all samples there")
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="table-"))
    systems: list[System] = [Farm(folder / "farm")]
    if chosen.alone:
        pass
    elif etcd.installed():
        members = etcd.Etcd(folder / "etcd")
        systems += [Beside(members, "etcd"), Beside(members, "gateway")]
    else:
        print("etcd is not installed (Debian: etcd-server and etcd-client), so the farm is measured alone.")
    kept: dict[str, Any] = {}
    try:
        for system in systems[:2]:
            system.start()
        time.sleep(REST_SECONDS)
        if chosen.pids:
            print({system.name: (system.leader(), system.pids()) for system in systems}, flush=True)
            sys.stdin.readline()
        print("load average before:", *os.getloadavg())
        if chosen.only != "failover":
            rates: dict[tuple[str, int], Samples] = {}
            for number in range(chosen.rounds + 1):
                if number == 1:
                    # The first round warms the links and the interpreter.
                    rates.clear()
                for writers in WRITERS:
                    for system in systems:
                        samples = rates.setdefault((system.name, writers), Samples())
                        rate(system, writers, chosen.seconds, f"{number}-{writers}", samples)
            show_rates(rates)
            kept["rates"] = {f"{who} {writers}": samples.rates for (who, writers), samples in rates.items()}
        if chosen.only != "rate":
            gaps: dict[str, list[float]] = {system.name: [] for system in systems[:2]}
            for number in range(chosen.failovers):
                for system in systems[:2]:
                    gaps[system.name].append(failover(system, f"failover-{number}"))
            show_failovers(gaps)
            kept["failovers"] = gaps
        print("load average after:", *os.getloadavg())
        if chosen.json:
            chosen.json.write_text(json.dumps(kept, indent=1))
    finally:
        for system in systems:
            system.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
