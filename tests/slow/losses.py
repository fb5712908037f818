"""A farm that loses one server after the other: `python -m tests.slow.losses`.

Five servers, three copies, thousands of files of sizes at which chunks begin and end, and one large one. One server is
killed with kill -9 and never comes back; while its chunks are copied elsewhere, and again when they are, every file is
read and compared. Then a second one, then a third: two are left, and every file is still there.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.slow.large_files import MIB, blocks
from tests.slow.real_farm import RealFarm

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")
VICTIMS = ("alpha", "gamma", "beta")
"""The first, then whoever may lead after it."""
QUICK = "master_grace = 4s\nrepair_after = 5s\n"
CHUNK = 64 * 1024
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1)
CLIENTS = 6
REPAIR_SECONDS = 600.0
SAMPLE = 200
"""Files of which CHECK is asked whether all copies are there; STATUS says it of all."""


class Losses:
    """One run. `say` is told what happens."""

    def __init__(self, farm: RealFarm, files: int, large: int, say: Callable[[str], None] = print) -> None:
        self.farm = farm
        self.say = say
        self.left = list(NAMES)
        self.large = large
        self.sizes = [SIZES[number % len(SIZES)] for number in range(files)]
        self.began = time.monotonic()

    def run(self) -> None:
        """All of it; raises `AssertionError` for a file that is not as it was put, or copies that stay away."""
        self.farm.start_serving(*NAMES)
        assert self.farm.cli("set", "farm", f"chunksize={CHUNK}").returncode == 0
        self.farm.wait_copies("beta", 3)
        self.put()
        self.wait_repaired(3)
        self.compare("before the first loss")
        for number, victim in enumerate(VICTIMS, 1):
            self.farm.kill9(victim)
            self.left.remove(victim)
            self.tell(f"{victim} is killed with kill -9")
            self.compare(f"right after loss {number}")
            self.wait_repaired(min(3, len(self.left)))
            self.compare(f"after the repair of loss {number}")

    def tell(self, text: str) -> None:
        self.say(f"{time.monotonic() - self.began:6.1f} s  {text}")

    # Files.

    def content(self, number: int) -> bytes:
        return random.Random(number).randbytes(self.sizes[number])

    def put(self) -> None:
        """Store all files, through all servers."""

        def put(number: int, link: Link) -> None:
            status, answer = link.ask("PUT", f"/many/{number:06}", self.content(number))
            assert status in (200, 201, 204), (number, status, answer)

        self.each(put)
        path = self.farm.directory / "large"
        with path.open("wb") as file:
            for block in blocks(self.large):
                file.write(block)
        stored = self.farm.cli("put", "large", "many/large", seconds=REPAIR_SECONDS)
        assert stored.returncode == 0, stored.stderr
        total = sum(self.sizes) + self.large
        self.tell(f"{len(self.sizes)} files and one of {self.large // MIB} MiB are stored, {total / MIB:.0f} MiB")

    def compare(self, when: str) -> None:
        """Read every file through the servers that are left."""

        def compare(number: int, link: Link) -> None:
            status, data = link.ask("GET", f"/many/{number:06}")
            assert status == 200 and data == self.content(number), (when, number, status, len(data))

        self.each(compare)
        with contextlib.closing(Link(self.farm, self.left[-1])) as link:
            status, data = link.ask("GET", "/many/large")
        wanted = hashlib.sha256()
        for block in blocks(self.large):
            wanted.update(block)
        assert status == 200 and hashlib.sha256(data).digest() == wanted.digest(), when
        self.tell(f"every file is as it was put, {when}")

    def each(self, work: Callable[[int, Link], None]) -> None:
        """Do it for every file, with several clients, each at a server of its own as far as there are."""
        numbers = iter(range(len(self.sizes)))
        wrong: list[BaseException] = []
        lock = threading.Lock()

        def client(place: int) -> None:
            with contextlib.closing(Link(self.farm, self.left[place % len(self.left)])) as link:
                for number in _taken(numbers, lock):
                    if wrong:
                        return
                    try:
                        work(number, link)
                    except BaseException as error:
                        wrong.append(error)

        threads = [threading.Thread(target=client, args=(place,)) for place in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise wrong[0]

    # Copies.

    def wait_repaired(self, copies: int) -> None:
        """Tell of the progress until all copies are there that can be."""
        until = time.monotonic() + REPAIR_SECONDS
        told = 0.0
        while True:
            status = {name: self.farm.status(name) for name in self.left}
            states = self.farm.states(self.left[0])
            settled = all(states.get(name) == "down" for name in NAMES if name not in self.left)
            short = int(status[self.left[0]]["under-replicated"])
            left = sum(int(one["repair-left"]) for one in status.values())
            looked = all(one["repair-looked"].startswith("100") for one in status.values())
            if settled and looked and not short and not left and not self.short_in_sample(copies):
                break
            assert time.monotonic() < until, (status, self.farm.tails())
            if time.monotonic() - told >= 2:
                told = time.monotonic()
                rate = sum(int(one["repair-rate"]) for one in status.values())
                self.tell(f"{short} chunks short, {left} known to be copied, {rate / MIB:.1f} MiB/s")
            time.sleep(0.5)
        self.tell(f"all have {copies} copies")

    def short_in_sample(self, copies: int) -> int:
        """Chunks of the large file and of some others that have fewer copies, by all who answer."""
        step = max(1, len(self.sizes) // SAMPLE)
        names = ["many/large", *(f"many/{number:06}" for number in range(0, len(self.sizes), step))]
        short = 0
        with self.farm.link(self.left[0], timeout=60.0) as link:
            for name in names:
                start, more = 0, True
                while more:
                    reply = link.ask(f"EXPLAIN {name} {start} 1000")
                    rows = [row for row in reply.parsed if "digest" in row]
                    short += sum(int(row["copies"]) < copies for row in rows)
                    start += 1000
                    more = reply.line.endswith(" more")
        return short


class Link:
    """HTTPS to one server, over one connection."""

    def __init__(self, farm: RealFarm, name: str) -> None:
        key_id, secret = farm.key()
        self._authorization = "Basic " + base64.b64encode(f"{key_id}:{secret}".encode()).decode()
        context = ssl.create_default_context()
        # What is tested is not whether this machine is itself.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", farm.servers[name].files, timeout=60, context=context
        )

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """The status and the bytes of the answer."""
        self._connection.request(method, path, body, {"Authorization": self._authorization})
        answer = self._connection.getresponse()
        return answer.status, answer.read()


def _taken(numbers: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    """Numbers that no other thread takes."""
    while True:
        with lock:
            number = next(numbers, None)
        if number is None:
            return
        yield number


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--large", type=int, default=200, help="MiB of the large file")
    given = parser.parse_args(arguments)
    farm = RealFarm(Path(tempfile.mkdtemp(prefix="chunkfarm-losses-")), farm=QUICK)
    try:
        Losses(farm, given.files, given.large * MIB).run()
    finally:
        farm.close()


if __name__ == "__main__":
    main()
