"""What more servers cost the first: three masters, and 10, 100, 1,000 stand-ins for servers beside them.

    python -m benchmarks.growth [--sizes 10,100,1000] [--rest 10] [--changes 5] [--json FILE] [--plot FILE.svg]

Run it in the checkout. The masters are real processes on 127.0.0.1; the others are in one process that reports and
watches for each of them (`stand_ins`), and needs about as much processor time as the first. At rest nothing changes,
so all that the first does is to take reports and to answer those who make sure that it is still there. A change is a
SET of a field of one row, which everybody hears of. Processor time does not depend much on what else a machine does;
times do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from rich.console import Console
from rich.table import Table

from benchmarks.beside import cpu_of
from benchmarks.plot import Line, plot
from tests.slow.real_farm import RealFarm

MASTERS = ("alpha", "beta", "gamma")
STAND_INS = [sys.executable, "-m", "benchmarks.stand_ins"]
OPTIONS = "master_grace = 120s"
"""A crowd that needs long to begin keeps its places."""
START_SECONDS = 120.0
SETTLE_SECONDS = 5.0
"""After the last watch has begun."""
HEAR_SECONDS = 60.0
CPU_MAX = 0.1
"""Of a core, for a thousand servers at rest."""


@frozen
class Figures:
    """What was measured with so many servers beside the three."""

    servers: int
    first_cpu: float
    """Of a core, at rest."""
    master_cpu: float
    """The same of another master."""
    sent: float
    """Bytes a second that the three masters send to the others at rest, as they travel."""
    reports: float
    """Reports a second that were answered well."""
    first_memory: int
    """Bytes of the first's resident memory."""
    change_median: float
    """Seconds until a change has reached all."""
    change_cpu: float
    """Seconds of the first's processor for a change."""
    change_sent: float
    """Bytes sent for a change, to all together."""
    watches_lost: int
    """Watches that ended and were opened again, from the start on."""


class Growth:
    """A farm of three, and a crowd beside it."""

    def __init__(self, folder: Path, servers: int) -> None:
        self.farm = RealFarm(folder, farm=OPTIONS)
        self.servers = servers
        self._crowd: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Put the others into the table of a first that is down, and then let all live."""
        farm, made = self.farm, self.farm.directory / "identities.json"
        farm.start_serving(MASTERS[0])
        farm.sigterm(MASTERS[0])
        farm.wait_ended(MASTERS[0], 30)
        make = [*STAND_INS, "make", str(farm.server(MASTERS[0]).data), str(self.servers), str(made)]
        subprocess.run(make, check=True)
        farm.start_serving(MASTERS[0])
        self._crowd = subprocess.Popen(
            [*STAND_INS, "run", str(farm.config_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask("report", identities=str(made))
        farm.start_serving(*MASTERS[1:])
        farm.wait_copies(MASTERS[-1], len(MASTERS))
        farm.wait_for(self._all_up, START_SECONDS, "all are up")
        hello = farm.hello(MASTERS[0])
        assert hello is not None
        self.ask("watch", revision=int(hello.fields["revision"]))
        time.sleep(SETTLE_SECONDS)

    def _all_up(self) -> bool:
        return self.farm.status(MASTERS[0])["servers-up"] == str(self.servers + len(MASTERS))

    def close(self) -> None:
        """End every process."""
        if self._crowd is not None:
            self._crowd.kill()
            self._crowd.communicate()
        with contextlib.redirect_stdout(io.StringIO()):
            self.farm.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Let the crowd do something."""
        assert self._crowd is not None and self._crowd.stdin is not None and self._crowd.stdout is not None
        self._crowd.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._crowd.stdin.flush()
        answer: dict[str, Any] = json.loads(self._crowd.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer

    def measure(self, rest: float, changes: int) -> Figures:
        """Look at them at rest, and then change something."""
        first, other = self.farm.servers[self.farm.first()], self.farm.servers[MASTERS[-1]]
        counted, cpu, other_cpu = self.ask("count"), cpu_of([first.pid]), cpu_of([other.pid])
        time.sleep(rest)
        after = self.ask("count")
        passed = after["at"] - counted["at"]
        cpu, other_cpu = cpu_of([first.pid]) - cpu, cpu_of([other.pid]) - other_cpu
        sent, reports = (after[one] - counted[one] for one in ("received", "answered"))

        spent, taken, told = cpu_of([first.pid]), [], self.ask("count")
        for number in range(changes):
            zone = f"attic-{number}"
            begun = time.monotonic()
            self.farm.ask(first.name, f"SET {other.name} zone={zone}")
            heard = self.ask("hear", zone=zone, patience=HEAR_SECONDS)
            assert heard["heard"] == self.servers, f"{heard['heard']} of {self.servers} have heard of a change"
            taken.append(heard["last"] - begun)
        end = self.ask("count")
        during = end["at"] - told["at"]
        return Figures(
            servers=self.servers,
            first_cpu=cpu / passed,
            master_cpu=other_cpu / passed,
            sent=sent / passed,
            reports=reports / passed,
            first_memory=first.memory(),
            change_median=sorted(taken)[len(taken) // 2],
            change_cpu=max(0.0, cpu_of([first.pid]) - spent - cpu / passed * during) / changes,
            change_sent=max(0.0, end["received"] - told["received"] - sent / passed * during) / changes,
            watches_lost=end["watches_lost"],
        )


def show(all_figures: list[Figures]) -> None:
    """Print the table."""
    table = Table(title="Three masters, and so many servers beside them")
    for column in (
        "servers",
        "first, of a core",
        "gamma",
        "reports/s",
        "sent at rest, kB/s",
        "memory, MiB",
        "change reaches all, ms",
        "first's CPU for it, ms",
        "sent for it, kB",
    ):
        table.add_column(column, justify="right")
    for one in all_figures:
        table.add_row(
            f"{one.servers:,}",
            f"{one.first_cpu:.1%}",
            f"{one.master_cpu:.1%}",
            f"{one.reports:,.0f}",
            f"{one.sent / 1000:,.1f}",
            f"{one.first_memory / 2**20:.0f}",
            f"{one.change_median * 1000:.0f}",
            f"{one.change_cpu * 1000:.1f}",
            f"{one.change_sent / 1000:,.1f}",
        )
    Console(width=160).print(table)


def draw(all_figures: list[Figures], path: Path) -> None:
    """Draw how each figure grows with the servers, as a multiple of what it is with the fewest."""
    least = all_figures[0]
    lines = [Line("servers", [(one.servers, one.servers / least.servers) for one in all_figures], dashed=True)]
    for name, of in (
        ("the first at rest, CPU", lambda one: one.first_cpu),
        ("sent at rest, bytes", lambda one: one.sent),
        ("a change, CPU of the first", lambda one: one.change_cpu),
        ("memory of the first", lambda one: one.first_memory),
    ):
        lines.append(Line(name, [(one.servers, max(of(one), 1e-6) / max(of(least), 1e-6)) for one in all_figures]))
    path.write_text(plot("What grows with the servers", "servers beside the three masters", "times", lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,100,1000")
    parser.add_argument("--rest", type=float, default=10.0, help="seconds of rest that are measured")
    parser.add_argument("--changes", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    found: list[Figures] = []
    for servers in map(int, arguments.sizes.split(",")):
        with tempfile.TemporaryDirectory(prefix="chunkfarm-growth-") as folder:
            growth = Growth(Path(folder) / "farm", servers)
            try:
                growth.start()
                found.append(growth.measure(arguments.rest, arguments.changes))
            finally:
                growth.close()
        print(found[-1], flush=True)
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    if arguments.plot:
        draw(found, arguments.plot)
    if found[-1].servers >= 1000 and found[-1].first_cpu > CPU_MAX:
        raise SystemExit(f"the first uses {found[-1].first_cpu:.1%} of a core at rest, and may use {CPU_MAX:.0%}")


if __name__ == "__main__":
    main()
