"""Writers of small rows, in a process of their own: so many at a time, for so many seconds, through one server.

Prints JSON: `count` of what was committed, `seconds`, and `p50` and `p99` in milliseconds. Every writer has a
connection of its own with one write under way on it. Nothing but the standard library.

With `--until-first` it waits for a line on its standard input and then prints, as soon as any of several servers
has committed a write, the seconds of the monotonic clock. Every 20 ms another write is begun at each of them.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.etcd import GatewayLink, Link

VALUE = b"x" * 190
"""As long as the row of an empty file."""
WARM_UP = 0.3
"""Seconds that do not count."""
EVERY = 0.02
PATIENCE = 60.0


class FarmLink:
    """A connection to the client port that commits empty files: one row, and no chunk."""

    def __init__(self, port: int, key: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bytes = b""
        self._sent = 0
        self._answered = 0
        self.socket.sendall(f"AUTH {key}\n".encode())
        while not self._bytes.endswith(b"\n"):
            self._bytes += self.socket.recv(4096)
        assert self._bytes.startswith(b"OK"), self._bytes
        self._bytes = b""

    def put(self, key: bytes, value: bytes) -> int:
        self.socket.sendall(b"COMMIT bench/%s 0 8388608 0\n" % key)
        self._sent += 1
        return self._sent

    def answers(self) -> Iterator[tuple[int, bool]]:
        read = self.socket.recv(65_536)
        if not read:
            raise ConnectionResetError("the server has closed the connection")
        *lines, self._bytes = (self._bytes + read).split(b"\n")
        for line in lines:
            self._answered += 1
            yield self._answered, line.startswith(b"OK")

    def close(self) -> None:
        self.socket.close()


AnyLink = FarmLink | GatewayLink | Link


def measure(links: list[AnyLink], stem: bytes, seconds: float) -> dict[str, float]:
    """Keep one write under way on each link."""
    watched = select.epoll()
    by_number: dict[int, AnyLink] = {}
    begun: dict[int, float] = {}
    number = 0
    for link in links:
        watched.register(link.socket, select.EPOLLIN)
        by_number[link.socket.fileno()] = link
    start = time.perf_counter()
    for link in links:
        number += 1
        begun[link.socket.fileno()] = time.perf_counter()
        link.put(b"%s-%d" % (stem, number), VALUE)
    each: list[float] = []
    warm, end = start + WARM_UP, start + WARM_UP + seconds
    while (now := time.perf_counter()) < end:
        for file, _ in watched.poll(1.0):
            link = by_number[file]
            for _, done in link.answers():
                assert done, "a write was refused"
                now = time.perf_counter()
                if now > warm:
                    each.append((now - begun[file]) * 1000)
                number += 1
                begun[file] = now
                link.put(b"%s-%d" % (stem, number), VALUE)
    each.sort()
    return {
        "count": len(each),
        "seconds": now - warm,
        "p50": each[len(each) // 2],
        "p99": each[min(len(each) - 1, len(each) * 99 // 100)],
    }


def until_first(connect: list[tuple[str, int, str]], stem: bytes) -> float:
    """When the first write is committed, as seconds of the monotonic clock."""
    links = [_open(*one) for one in connect for _ in range(int(2 / EVERY))]
    half = len(links) // len(connect)
    order = [links[server * half + place] for place in range(half) for server in range(len(connect))]
    print("ready", flush=True)
    sys.stdin.readline()
    watched = select.epoll()
    by_number = {link.socket.fileno(): link for link in links}
    deadline = time.monotonic() + PATIENCE
    free, number, due = order, 0, time.monotonic()
    while time.monotonic() < deadline:
        if time.monotonic() >= due:
            due += EVERY
            for link in free[: len(connect)]:
                number += 1
                link.put(b"%s-%d" % (stem, number), VALUE)
                watched.register(link.socket, select.EPOLLIN)
            free = free[len(connect) :]
        for file, _ in watched.poll(max(0.0, due - time.monotonic())):
            link = by_number[file]
            for _, done in link.answers():
                if done:
                    return time.monotonic()
                # Refused: it may be asked again.
                watched.unregister(file)
                free.append(link)
    raise AssertionError(f"nothing was committed in {PATIENCE} s")


def _open(system: str, port: int, key: str) -> AnyLink:
    if system == "farm":
        return FarmLink(port, key)
    return Link(port) if system == "etcd" else GatewayLink(port)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("system", choices=["farm", "etcd", "gateway"])
    options.add_argument("--ports", type=int, nargs="+", required=True)
    options.add_argument("--stem", required=True, help="what the names begin with")
    options.add_argument("--key", type=Path, help="file with the key: <key id> <secret>")
    options.add_argument("--writers", type=int, default=1)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--until-first", action="store_true")
    chosen = options.parse_args()
    key = chosen.key.read_text().strip() if chosen.key else ""
    if chosen.until_first:
        print(until_first([(chosen.system, port, key) for port in chosen.ports], chosen.stem.encode()))
        return
    links = [_open(chosen.system, chosen.ports[0], key) for _ in range(chosen.writers)]
    print(json.dumps(measure(links, chosen.stem.encode(), chosen.seconds)))


if __name__ == "__main__":
    main()
