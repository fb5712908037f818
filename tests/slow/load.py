"""Clients that put, get and SET without a rest, and remember what was acknowledged to them.

Each client has names of its own, so it knows what each may hold: the last acknowledged bytes, or those of a later
put that was refused or broken off. Anything else is a fault. A put to which there was no answer at all may still
be done at any later time (its server may hang, and wake), so its name is never put again: what it holds stays
comparable.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import itertools
import random
import ssl
import threading
import time
from collections.abc import Sequence

from attrs import define, field

from chunkfarm.config import ConfigError
from tests.slow.line_socket import Refused
from tests.slow.real_farm import RealFarm

NAMES_PER_CLIENT = 12
SIZES = (0, 1, 100, 5_000, 70_000, 300_000)
SETTLE_SECONDS = 30.0
POLL_SECONDS = 0.05
PAUSE_SECONDS = 0.02
"""Between two requests of a client: the load is to find faults, not to fill the machine."""
FORGET_AFTER = 604_800
"""Seconds; the SET client counts up from here, in an option that changes nothing while a test runs."""


@define
class Name:
    """What a name may hold, as digests; None stands for "no such file"."""

    possible: set[str | None] = field(factory=lambda: {None})


class Client(threading.Thread):
    """Puts and gets, and remembers what it was told."""

    def __init__(self, load: Load, number: int, names: int) -> None:
        super().__init__(daemon=True)
        self._load = load
        self._random = random.Random(f"{load.seed} {number}")
        self._number = number
        self._count = 0
        self.names: dict[str, Name] = {}
        self._current: list[str] = []
        for _ in range(names):
            self._add_name()
        self.put_good = self.put_unknown = self.read_good = self.read_refused = self.read_stale = 0
        self.wrong: list[str] = []

    def _add_name(self) -> None:
        name = f"load-{self._load.seed}/{self._number}-{self._count}"
        self._count += 1
        self.names[name] = Name()
        self._current.append(name)

    def run(self) -> None:
        while not self._load.stopping.is_set():
            name = self._random.choice(self._current)
            if self._random.random() < 0.5:
                self.put(name, self._random.randbytes(self._random.choice(self._load.sizes)))
            else:
                self.get(name)
            time.sleep(PAUSE_SECONDS)

    def _ask(self, method: str, name: str, body: bytes | None = None, server: str = "") -> tuple[int, bytes, str]:
        load = self._load
        server = server or self._random.choice(load.servers)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", load.farm.servers[server].files, timeout=load.timeout, context=load.context
        )
        with contextlib.closing(connection):
            with load.farm.inside(server):
                connection.connect()
            connection.request(method, f"/{name}", body, {"Authorization": load.authorization})
            response = connection.getresponse()
            return response.status, response.read(), response.getheader("Warning") or ""

    def put(self, name: str, data: bytes) -> bool:
        """Put once; what is not acknowledged may have happened or not."""
        digest = hashlib.sha256(data).hexdigest()
        possible = self.names[name].possible
        possible.add(digest)
        refused = False
        try:
            status, body, _ = self._ask("PUT", name, data)
        except ConnectionRefusedError:
            status, body, refused = 0, b"", True
        except (OSError, http.client.HTTPException):
            status, body = 0, b""
        if status in (200, 201):
            self.names[name].possible = {digest}
            self.put_good += 1
            self._load.note_acknowledged()
            return True
        if status not in (0, 503):
            self.wrong.append(f"PUT {name} of {len(data)} bytes: {status} {body[:200]!r}")
        if not status and not refused:
            self._current.remove(name)
            self._add_name()
        self.put_unknown += 1
        return False

    def get(self, name: str, server: str = "") -> bool:
        """Get once; an answer must be one of what the name may hold."""
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


class Setter(threading.Thread):
    """Changes one option of the farm over and over, each time to a higher number."""

    def __init__(self, load: Load) -> None:
        super().__init__(daemon=True)
        self._load = load
        self._random = random.Random(f"{load.seed} set")
        self._value = FORGET_AFTER
        self.possible: set[int] = {FORGET_AFTER}
        self._open: set[int] = set()
        """Of changes without an answer, which may still be made."""
        self.good = self.unknown = 0

    def run(self) -> None:
        while not self._load.stopping.is_set():
            self._value += 1
            self.possible.add(self._value)
            try:
                server = self._random.choice(self._load.servers)
                with self._load.farm.link(server, self._load.timeout) as link:
                    link.ask(f"SET farm forget_after={self._value}s")
            except (Refused, ConnectionRefusedError):
                self.unknown += 1
            except (OSError, ValueError, AssertionError):
                # The last two are what an answer is that broke off in the middle.
                self._open.add(self._value)
                self.unknown += 1
            else:
                self.possible = {self._value} | self._open
                self.good += 1
            time.sleep(PAUSE_SECONDS)


class Load:
    """Some clients at work on a farm; loads beside each other need different seeds. `check` tells what was wrong."""

    def __init__(
        self,
        farm: RealFarm,
        *,
        servers: Sequence[str] = (),
        clients: int = 3,
        names: int = NAMES_PER_CLIENT,
        seed: int = 1,
        sizes: Sequence[int] = SIZES,
        timeout: float = 60.0,
        sets: bool = True,
    ) -> None:
        """`servers` are those that are asked; an answer is given up after `timeout` seconds."""
        self.farm = farm
        self.servers = list(servers or farm.servers)
        self.seed = seed
        self.sizes = tuple(sizes)
        self.timeout = timeout
        (ca, *_) = farm.directory.glob("*/ca.pem")
        self.context = ssl.create_default_context(cafile=str(ca))
        key_id, secret = farm.key()
        self.authorization = "Basic " + base64.b64encode(f"{key_id}:{secret}".encode()).decode()
        self.stopping = threading.Event()
        self.acknowledged: list[float] = []
        """When puts were acknowledged, in seconds of `time.monotonic`."""
        self.clients = [Client(self, number, names) for number in range(clients)]
        self.setter = Setter(self) if sets else None
        self._begun = time.monotonic()

    def start(self) -> None:
        """Set the clients to work."""
        self._begun = time.monotonic()
        for thread in self._threads():
            thread.start()

    def stop(self) -> None:
        """Let them end what they do; harmless the second time."""
        self.stopping.set()
        for thread in self._threads():
            if thread.ident is not None:
                thread.join(2 * self.timeout + 5)
                assert not thread.is_alive(), "a client of the load has not ended"

    def _threads(self) -> list[threading.Thread]:
        return [*self.clients, *filter(None, [self.setter])]

    def note_acknowledged(self) -> None:
        self.acknowledged.append(time.monotonic())

    def wait_for_puts(self, count: int, seconds: float) -> float:
        """Wait until so many more puts than now are acknowledged; returns how many seconds the first one took."""
        begun, before = time.monotonic(), len(self.acknowledged)
        self.farm.wait_for(lambda: len(self.acknowledged) >= before + count, seconds, f"{count} puts are acknowledged")
        return self.acknowledged[before] - begun

    def longest_gap(self) -> float:
        """The longest time without an acknowledged put, from the start to the last one."""
        moments = [self._begun, *self.acknowledged]
        return max((later - sooner for sooner, later in itertools.pairwise(moments)), default=0.0)

    def check(self, servers: Sequence[str] = ()) -> list[str]:
        """Stop, and read everything from each server, all of which are up: what is wrong."""
        self.stop()
        wrong = self._unreadable(servers or self.servers)
        wrong += [fault for client in self.clients for fault in client.wrong]
        if self.setter is not None:
            wrong += self._wrong_option(self.setter)
        return sorted(set(wrong))

    def _unreadable(self, servers: Sequence[str]) -> list[str]:
        missing = []
        for client in self.clients:
            for name in client.names:
                for server in servers:
                    deadline = time.monotonic() + SETTLE_SECONDS
                    while not client.get(name, server):
                        if time.monotonic() > deadline:
                            missing.append(f"{name} cannot be read from {server}")
                            break
                        time.sleep(POLL_SECONDS)
        return missing

    def _wrong_option(self, setter: Setter) -> list[str]:
        """`config.ini` follows the table within seconds."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            found: float = -1.0
            with contextlib.suppress(ConfigError):
                found = self.farm.config().farm.forget_after
            if found in setter.possible:
                return []
            if time.monotonic() > deadline:
                return [f"forget_after is {found:g} s, and may be {sorted(setter.possible)}"]
            time.sleep(POLL_SECONDS)

    def __str__(self) -> str:
        clients = self.clients
        sets = f"{self.setter.good} changes acknowledged, {self.setter.unknown} not; " if self.setter else ""
        return (
            f"{sum(c.put_good for c in clients)} puts acknowledged, {sum(c.put_unknown for c in clients)} not; {sets}"
            f"{sum(c.read_good for c in clients)} reads, {sum(c.read_stale for c in clients)} stale, "
            f"{sum(c.read_refused for c in clients)} refused; "
            f"longest time without an acknowledged put {self.longest_gap():.1f} s"
        )
