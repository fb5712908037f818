"""What a well-behaved client notices while others abuse a server, and what becomes of those.

    python -m benchmarks.abuse
    python -m benchmarks.abuse --seconds 8 --times 4        # with limits of 4 s in place of the defaults

One server. A client at an address of its own (127.0.1.1) gets a file of 64 KiB fifty times a second over one kept
connection, and each time counts from when the request was due: whoever waits for a late answer does not hide the next.
Then, all at once, from ten other addresses of 127.0.0.0/8, in another process:

- 100 connections whose head comes a byte a second,
- 100 PUTs, with a key, whose body comes a byte a second,
- 100 GETs, with a key, of a file of 64 MiB, of which 100 bytes a second are read,
- 1,000 idle ones: to the file port after the handshake, to it without one, to the client port, to the peer port.

The table tells the client's times before, while the others came, and while they stayed; memory and descriptors of the
server; and for each kind when the first and the last was closed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import define, field
from rich.console import Console
from rich.table import Table

from tests.slow.real_farm import RealFarm

ROOT = Path(__file__).parents[1]
RATE = 50
"""Requests a second: far less than a server can do, so that nothing queues at rest."""
SMALL = 64 * 1024
LARGE = 64 * 1024 * 1024
ADDRESSES = [f"127.0.0.{number}" for number in range(2, 12)]
CLIENT = "127.0.1.1"
ESTABLISHED = 1
"""The kernel's number for a connection that neither side has ended."""
LEAST = {
    "slow head": 100,
    "slow body": 100,
    "slow read": 100,
    "idle, TLS": 250,
    "idle, no TLS": 250,
    "idle, client port": 250,
    "idle, peer port": 250,
}
"""What there is at once, of each kind, unless fewer are asked for."""
KINDS = tuple(LEAST)


@define
class Held:
    """Connections of one kind, as the attacker saw them: seconds from the beginning."""

    opened: int = 0
    refused: int = 0
    closed: list[float] = field(factory=list)


# --- the attacker, in a process of its own ----------------------------------------------------------------


class Attack:
    """Opens everything at once, and holds on until it is closed or the time is over."""

    def __init__(self, client: int, peer: int, files: int, key: str, slow: int, idle: int) -> None:
        self._ports = {"client": client, "peer": peer, "files": files}
        self._authorization = b"Authorization: Basic " + base64.b64encode(key.encode())
        self._slow, self._idle = slow, idle
        self.held = {kind: Held() for kind in KINDS}
        self._began = time.monotonic()
        self._count = 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE

    def _socket(self, port: str) -> socket.socket:
        plain = socket.socket()
        # Little is taken by the kernel in place of the program that is slow to read.
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._count += 1
        plain.bind((ADDRESSES[self._count % len(ADDRESSES)], 0))
        plain.setblocking(False)
        return plain

    async def _one(self, kind: str, port: str, tls: bool, first: bytes, each: bytes = b"", read: int = 0) -> None:
        held = self.held[kind]
        plain = self._socket(port)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(plain, ("127.0.0.1", self._ports[port]))
            reader, writer = await asyncio.open_connection(
                sock=plain, ssl=self._tls if tls else None, server_hostname="localhost" if tls else None, limit=256
            )
        except OSError:
            held.refused += 1
            plain.close()
            return
        held.opened += 1
        try:
            if first:
                writer.write(first)
            while True:
                if read:
                    # A program that hardly reads hears of an end only when it has read all that came before it.
                    state = plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
                    if state != ESTABLISHED or not await reader.read(read):
                        break
                    await asyncio.sleep(1)
                    continue
                try:
                    async with asyncio.timeout(1):
                        if not await reader.read(4096):
                            break
                except TimeoutError:
                    if each:
                        writer.write(each)
        except (OSError, ssl.SSLError):
            pass
        held.closed.append(time.monotonic() - self._began)
        writer.close()

    async def run(self, seconds: float) -> None:
        host = b" HTTP/1.1\r\nHost: farm\r\n"
        put = b"PUT /home/slow" + host + self._authorization + b"\r\nContent-Length: 10000000\r\n\r\n"
        get = b"GET /home/large" + host + self._authorization + b"\r\n\r\n"
        third, quarter = self._slow // 3, self._idle // 4
        tasks = [
            asyncio.ensure_future(self._one(kind, port, tls, first, each, read))
            for count, kind, port, tls, first, each, read in (
                (third, "slow head", "files", True, b"GET /", b"a", 0),
                (third, "slow body", "files", True, put, b"x", 0),
                (third, "slow read", "files", True, get, b"", 100),
                (quarter, "idle, TLS", "files", True, b"", b"", 0),
                (quarter, "idle, no TLS", "files", False, b"", b"", 0),
                (quarter, "idle, client port", "client", False, b"", b"", 0),
                (quarter, "idle, peer port", "peer", False, b"", b"", 0),
            )
            for _ in range(count)
        ]
        told = False
        while time.monotonic() - self._began < seconds:
            await asyncio.sleep(0.1)
            if not told and sum(held.opened + held.refused for held in self.held.values()) == len(tasks):
                told = True
                print(json.dumps({"open": time.monotonic() - self._began}), flush=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        told_of = {kind: [held.opened, held.refused, held.closed] for kind, held in self.held.items()}
        print(json.dumps({"held": told_of}), flush=True)


def attack(arguments: Sequence[str]) -> None:
    client, peer, files, slow, idle, seconds = arguments[:6]
    key = os.environ["ABUSE_KEY"]
    asyncio.run(Attack(int(client), int(peer), int(files), key, int(slow), int(idle)).run(float(seconds)))


# --- the well-behaved client and the server that is looked at ----------------------------------------------


class Client:
    """Gets a small file at a steady pace; each time counts from when it was due."""

    def __init__(self, port: int, key: str) -> None:
        plain = socket.create_connection(("127.0.0.1", port), 30, source_address=(CLIENT, 0))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._socket = context.wrap_socket(plain, server_hostname="localhost")
        authorization = base64.b64encode(key.encode())
        self._request = b"GET /home/small HTTP/1.1\r\nHost: farm\r\nAuthorization: Basic %b\r\n\r\n" % authorization

    def get(self) -> None:
        self._socket.sendall(self._request)
        told = b""
        while b"\r\n\r\n" not in told:
            told += self._receive()
        assert told.startswith(b"HTTP/1.1 200 "), told[:80]
        whole = told.index(b"\r\n\r\n") + 4 + SMALL
        while len(told) < whole:
            told += self._receive()

    def _receive(self) -> bytes:
        data = self._socket.recv(1 << 18)
        assert data, "the well-behaved client was cut off"
        return data

    def close(self) -> None:
        self._socket.close()

    def times(self, seconds: float, look: Any = lambda: None) -> list[tuple[float, float]]:
        """For each request when it was due, in seconds from now, and how many milliseconds later it was answered."""
        began, found = time.monotonic(), []
        for number in range(round(seconds * RATE)):
            due = began + number / RATE
            time.sleep(max(0.0, due - time.monotonic()))
            self.get()
            found.append((due - began, (time.monotonic() - due) * 1e3))
            if number % RATE == 0:
                look()
        return found


@define
class Outcome:
    """What a run found."""

    before: list[float]
    coming: list[float]
    staying: list[float]
    opened_after: float
    memory: list[int]
    descriptors: list[int]
    held: dict[str, Held]

    @property
    def during(self) -> list[float]:
        return self.coming + self.staying


def percentile(values: Sequence[float], part: float) -> float:
    """The value that so large a part of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("nan")


def run(farm: RealFarm, seconds: float, slow: int = 300, idle: int = 1000) -> Outcome:
    """Abuse the server alpha of this farm, which has one server and serves."""
    alpha = farm.servers["alpha"]
    for name, size in (("small", SMALL), ("large", LARGE)):
        path = farm.directory / name
        path.write_bytes(os.urandom(size))
        done = farm.cli("put", str(path), f"home/{name}")
        assert done.returncode == 0, done
    key = ":".join(farm.key())
    client = Client(alpha.files, key)
    client.times(2)
    before = client.times(min(seconds / 2, 20.0))
    memory, descriptors = [], []

    def look() -> None:
        memory.append(alpha.memory())
        descriptors.append(len(os.listdir(f"/proc/{alpha.pid}/fd")))

    look()
    attacker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.abuse", "--attack"]
        + [str(number) for number in (alpha.client, alpha.peer, alpha.files, slow, idle, seconds + 1)],
        cwd=ROOT,
        env={**os.environ, "ABUSE_KEY": key},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        during = client.times(seconds, look)
        out, _ = attacker.communicate(timeout=60)
    finally:
        client.close()
        attacker.kill()
        attacker.wait()
        if attacker.stdout is not None:
            attacker.stdout.close()
    told: dict[str, Any] = {}
    for line in out.splitlines():
        told |= json.loads(line)
    opened_after = float(told.get("open", seconds))
    held = {kind: Held(opened, refused, closed) for kind, (opened, refused, closed) in told["held"].items()}
    # The attacker's Python starts for a while; its clock begins when it has.
    coming = [took for due, took in during if due <= opened_after + 1]
    staying = [took for due, took in during if due > opened_after + 1]
    return Outcome([took for _, took in before], coming, staying, opened_after, memory, descriptors, held)


def show(outcome: Outcome) -> None:
    screen = Table("GET of 64 KiB", "requests", "median, ms", "p99, ms", "longest, ms")
    for what, times in (
        ("before", outcome.before),
        ("while they come", outcome.coming),
        ("while they stay", outcome.staying),
        ("both", outcome.during),
    ):
        if times:
            screen.add_row(
                what,
                str(len(times)),
                f"{statistics.median(times):.1f}",
                f"{percentile(times, 0.99):.1f}",
                f"{max(times):.1f}",
            )
    console = Console()
    console.print(screen)
    console.print(f"all were open after {outcome.opened_after:.1f} s")
    memory = [f"{size >> 20} MiB" for size in outcome.memory]
    for what, first, most, last in (
        ("memory", memory[0], f"{max(outcome.memory) >> 20} MiB", memory[-1]),
        ("descriptors", outcome.descriptors[0], max(outcome.descriptors), outcome.descriptors[-1]),
    ):
        console.print(f"{what}: {first} before, {most} at the most, {last} at the end")
    screen = Table("kind", "opened", "refused", "closed by the server", "first, s", "last, s")
    for kind, held in outcome.held.items():
        ends = [f"{end:.1f}" for end in (min(held.closed), max(held.closed))] if held.closed else ["", ""]
        screen.add_row(kind, str(held.opened), str(held.refused), str(len(held.closed)), *ends)
    console.print(screen)


def limits(seconds: float) -> str:
    """`[limits]` with other times, so that a run need not take more than a minute."""
    names = (
        "handshake_time client_stranger_idle client_stranger_time peer_stranger_time files_head_time files_idle "
        "files_body_time files_answer_time"
    )
    return "[limits]\n" + "".join(f"{name} = {seconds:g}s\n" for name in names.split())


def main() -> None:
    if sys.argv[1:2] == ["--attack"]:
        attack(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="benchmarks.abuse", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=130.0, help="how long it goes on (default: %(default)s)")
    parser.add_argument("--times", type=float, help="seconds in place of all times in [limits]")
    parser.add_argument("--slow", type=int, default=300, help="slow connections (default: %(default)s)")
    parser.add_argument("--idle", type=int, default=1000, help="idle connections (default: %(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        farm = RealFarm(Path(folder) / "farm", replicas=1, server="" if given.times is None else limits(given.times))
        try:
            farm.start_serving("alpha")
            show(run(farm, given.seconds, given.slow, given.idle))
        finally:
            farm.close()


if __name__ == "__main__":
    main()
