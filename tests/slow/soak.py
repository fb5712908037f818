"""A farm under kill -9 for as long as you like: `python -m tests.slow.soak --seconds 300 --seed 7`.

Four servers, three copies. Clients put and get files through whichever server they like, while one server after
the other (the first more often than not) is killed and started again. Each client has names of its own, so it knows
what each may hold: the last acknowledged bytes, or those of a later put whose answer did not come. Anything else is
a failure, and so is an acknowledged file that cannot be read when all servers are back.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import http.client
import random
import ssl
import tempfile
import threading
import time
from pathlib import Path

from attrs import define, field

from tests.slow.real_farm import RealFarm

NAMES_PER_CLIENT = 25
CLIENTS = 3
SIZES = (0, 1, 100, 5_000, 70_000, 1_000_000, 9_000_000)
SETTLE_SECONDS = 30.0


@define
class Name:
    """What a name may hold, as digests; None stands for "no such file"."""

    possible: set[str | None] = field(factory=lambda: {None})


class Client(threading.Thread):
    """Puts and gets, and remembers what it was told."""

    def __init__(self, farm: RealFarm, number: int, seed: int, context: ssl.SSLContext, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._farm = farm
        self._random = random.Random(f"{seed} {number}")
        self._context = context
        self._stop_asked = stop
        key_id, secret = farm.key()
        self._authorization = "Basic " + base64.b64encode(f"{key_id}:{secret}".encode()).decode()
        self.names = {f"soak/{number}-{index}": Name() for index in range(NAMES_PER_CLIENT)}
        self.put_good = self.put_unknown = self.read_good = self.read_refused = self.read_stale = 0
        self.longest_gap = 0.0
        self.wrong: list[str] = []

    def run(self) -> None:
        last_good = time.monotonic()
        while not self._stop_asked.is_set():
            name = self._random.choice(list(self.names))
            if self._random.random() < 0.5:
                if self.put(name, self._random.randbytes(self._random.choice(SIZES))):
                    self.longest_gap = max(self.longest_gap, time.monotonic() - last_good)
                    last_good = time.monotonic()
            else:
                self.get(name)

    def _ask(self, method: str, name: str, body: bytes | None = None, server: str = "") -> tuple[int, bytes, str]:
        port = self._farm.servers[server or self._random.choice(list(self._farm.servers))].files
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=self._context)
        with contextlib.closing(connection):
            connection.request(method, f"/{name}", body, {"Authorization": self._authorization})
            response = connection.getresponse()
            return response.status, response.read(), response.getheader("Warning") or ""

    def put(self, name: str, data: bytes) -> bool:
        """Put once; what is not acknowledged may have happened or not."""
        digest = hashlib.sha256(data).hexdigest()
        possible = self.names[name].possible
        possible.add(digest)
        try:
            status, body, _ = self._ask("PUT", name, data)
        except (OSError, http.client.HTTPException):
            status, body = 0, b""
        if status in (200, 201):
            self.names[name].possible = {digest}
            self.put_good += 1
            return True
        if status and status != 503:
            self.wrong.append(f"PUT {name} of {len(data)} bytes: {status} {body[:200]!r}")
        self.put_unknown += 1
        return False

    def get(self, name: str, server: str = "") -> bool:
        """Get once; an answer must be one of what the name may hold, and settles it."""
        try:
            status, body, warning = self._ask("GET", name, server=server)
        except (OSError, http.client.HTTPException):
            self.read_refused += 1
            return False
        if status not in (200, 404):
            self.read_refused += 1
            if status != 503:
                self.wrong.append(f"GET {name}: {status} {body[:200]!r}")
            return False
        found = hashlib.sha256(body).hexdigest() if status == 200 else None
        if warning:
            self.read_stale += 1
        elif found not in self.names[name].possible:
            self.wrong.append(f"GET {name}: {len(body)} bytes that were never put last, status {status}")
        else:
            self.read_good += 1
        return True


def soak(seconds: float, seed: int) -> list[str]:
    """Run it; returns what went wrong."""
    chance = random.Random(seed)
    farm = RealFarm(Path(tempfile.mkdtemp(prefix="chunkfarm-soak-")))
    try:
        names = ["alpha", "beta", "gamma", "delta"]
        farm.start_serving(*names)
        context = ssl.create_default_context(cafile=str(farm.directory / "alpha" / "ca.pem"))
        stop = threading.Event()
        clients = [Client(farm, number, seed, context, stop) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        kills = _kill_and_restart(farm, names, chance, time.monotonic() + seconds)
        stop.set()
        for client in clients:
            client.join(120)
        farm.wait_serving(*names, seconds=60)
        wrong = [fault for client in clients for fault in client.wrong]
        wrong += _read_everything(clients, names)
        wrong += [f"{name}: a traceback in its log" for name in names if "Traceback" in farm.servers[name].logged()]
        print(
            f"seed {seed}: {kills} kills, {sum(c.put_good for c in clients)} puts acknowledged, "
            f"{sum(c.put_unknown for c in clients)} not; {sum(c.read_good for c in clients)} reads, "
            f"{sum(c.read_stale for c in clients)} stale, {sum(c.read_refused for c in clients)} refused; "
            f"longest time without an acknowledged put {max(c.longest_gap for c in clients):.1f} s"
        )
        return wrong
    finally:
        farm.close()


def _kill_and_restart(farm: RealFarm, names: list[str], chance: random.Random, until: float) -> int:
    kills = 0
    while time.monotonic() < until:
        time.sleep(chance.uniform(1, 6))
        leader = next((row["name"] for name in names for row in farm.rows(name) if row["role"] == "first"), names[0])
        victim = leader if chance.random() < 0.6 else chance.choice(names)
        farm.kill9(victim)
        kills += 1
        time.sleep(chance.choice([0.1, 2, 7, 14]))
        farm.start(victim)
        farm.wait_serving(victim, seconds=60)
    return kills


def _read_everything(clients: list[Client], servers: list[str]) -> list[str]:
    """With all servers up, each name is read from each server."""
    missing = []
    for client in clients:
        for name in client.names:
            for server in servers:
                deadline = time.monotonic() + SETTLE_SECONDS
                while not client.get(name, server):
                    if time.monotonic() > deadline:
                        missing.append(f"{name} cannot be read from {server}")
                        break
                    time.sleep(0.5)
    return missing + [fault for client in clients for fault in client.wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    wrong = soak(arguments.seconds, arguments.seed)
    for fault in sorted(set(wrong)):
        print(f"WRONG: {fault}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
