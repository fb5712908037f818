"""The throw-away farm of a drill: servers in one folder, and what they say."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import DeferredList
from twisted.internet.task import deferLater

from chunkfarm.cli import check as checking
from chunkfarm.cli import farm as cli
from chunkfarm.cli.screen import NoBar
from chunkfarm.cli.surroundings import dial_with, greet_with, probe_with
from chunkfarm.config import Config, Listed, read_config
from chunkfarm.drill.relay import OUTSIDE, Relays
from chunkfarm.drill.servers import INSIDE, Server
from chunkfarm.drill.story import DrillFailed
from chunkfarm.errors import FarmError
from chunkfarm.links.lines import Reply
from chunkfarm.links.rows import parse_row
from chunkfarm.trust.keys import ADMIN_KEY_FILE, read_key_file

POLL_SECONDS = 0.1
START_SECONDS = 60.0
"""For a server to serve, on a machine that is busy with other things."""
END_SECONDS = 10.0
ASK_TIMEOUT = 10.0
"""Seconds without an answer before a question is given up."""

FARM = """\
[farm]
chunksize = {chunksize}
name = drill
replicas = {replicas}
{more}
[servers]
"""

T = TypeVar("T")


class DrillFarm:
    """Servers that share nothing but loopback. With `relayed` they reach each other through relays that can be cut."""

    def __init__(
        self,
        reactor: Any,
        folder: Path,
        names: Sequence[str],
        bases: Sequence[int],
        now_ms: Callable[[], int],
        *,
        relayed: bool = False,
    ) -> None:
        self.reactor = reactor
        self.folder = folder
        self._now_ms = now_ms
        self._names = tuple(names)
        self._bases = tuple(bases)
        host = OUTSIDE if relayed else INSIDE
        self.servers = {
            name: Server(reactor, name, base, folder / name, host) for name, base in zip(names, bases, strict=True)
        }
        self.relays = Relays(reactor, self.servers.values()) if relayed else None

    # Processes.

    async def start(self, *, replicas: int = 3, chunksize: str = "1M", farm: str = "", server: str = "") -> None:
        """Start them all, `farm` and `server` being further options, and wait until the table has three copies."""
        founder, *others = self.servers.values()
        if self.relays is not None:
            self.relays.open()
        founder.write_config(FARM.format(chunksize=chunksize, replicas=replicas, more=farm), server)
        founder.start()
        await self.serving(founder.name)
        known = founder.config.read_text().partition("[server]")[0]
        for other in others:
            other.write_config(known, server)
            join = other.folder / "farm.join"
            shutil.copy(founder.folder / "farm.join", join)
            other.start()
        await self.serving(*self.servers)
        copies = str(min(3, len(self.servers)))

        async def is_safe() -> bool:
            return (await self.status(founder.name)).get("table-copies") == copies

        await self.until(is_safe, START_SECONDS, f"{copies} servers hold the table")

    async def kill9(self, name: str) -> None:
        """kill -9. Its ports refuse from then on, as those of a dead process do."""
        gone = self.servers[name].kill9()
        if self.relays is not None:
            self.relays.close(name)
        await gone

    async def close(self) -> None:
        """End every process; the folder stays."""
        gone = DeferredList([server.kill9() for server in self.servers.values()])
        gone.addTimeout(END_SECONDS, self.reactor, onTimeoutCancel=lambda *_: None)
        if self.relays is not None:
            self.relays.close_all()
        await gone

    # Waiting.

    async def sleep(self, seconds: float) -> None:
        """Let some time pass."""
        await deferLater(self.reactor, seconds)

    async def until(self, is_so: Callable[[], Awaitable[T]], seconds: float, what: str) -> T:
        """What `is_so` gives once it is true; raises `DrillFailed` after that time. Errors of the farm count as no."""
        deadline = self.reactor.seconds() + seconds
        because = ""
        while True:
            try:
                if value := await is_so():
                    return value
            except DrillFailed:
                raise
            except (FarmError, OSError) as error:
                because = f" ({cli.sentence_of(error)})"
            if self.reactor.seconds() >= deadline:
                raise DrillFailed(f"not within {seconds:g} s: {what}{because}")
            await self.sleep(POLL_SECONDS)

    async def serving(self, *names: str, seconds: float = START_SECONDS) -> None:
        """Wait until these servers serve; raises `DrillFailed`, also if one has ended by itself."""
        for name in names:

            async def serves(name: str = name) -> bool:
                server = self.servers[name]
                if not server.is_running:
                    raise DrillFailed(f"{name} has ended by itself: {server.last_words()}")
                return await self.state(name) == "serving"

            await self.until(serves, seconds, f"{name} serves")

    # What is true now.

    def config(self) -> Config:
        """The founder's `config.ini`."""
        return read_config(next(iter(self.servers.values())).config, {})

    def people(self, *names: str, timeout: float = ASK_TIMEOUT) -> cli.Farm:
        """A way to some of the servers (all that run by default), which are tried in this order."""
        config = self.config()
        key = read_key_file(config.server.data / ADMIN_KEY_FILE)
        chosen = names or tuple(name for name, server in self.servers.items() if server.is_running)
        dial = dial_with(self.reactor, config, key, timeout, self._now_ms)
        listed = tuple(self.servers[name].listed() for name in chosen)
        return cli.Farm(self.reactor, listed, dial, probe_with(self.reactor), timeout)

    async def ask(self, line: str, *names: str, timeout: float = ASK_TIMEOUT) -> Reply:
        """One question, to some servers or to any that runs."""
        people = self.people(*names, timeout=timeout)
        try:
            return await people.run(lambda link: link.request(line))
        finally:
            people.hang_up()

    async def state(self, name: str) -> str:
        """What a server says that it is; `gone` if it says nothing."""
        try:
            return (await self._hello(self.servers[name].listed()))["state"]
        except Exception:
            # Nobody listens yet, or any more.
            return "gone"

    async def _hello(self, server: Listed) -> dict[str, str]:
        return dict(await greet_with(self.reactor)(server))

    async def status(self, name: str) -> dict[str, str]:
        """What STATUS tells; of a word that comes more than once the first."""
        told: dict[str, str] = {}
        for row in (await self.ask("STATUS", name)).rows:
            word, _, value = row.partition("=")
            told.setdefault(word, parse_row(f"x={value}")[1]["x"])
        return told

    async def first(self, *names: str, but: str = "") -> str:
        """Who leads the farm, as some servers tell it; raises `DrillFailed` if nobody does for long.

        `but` has lost the lead: who is asked may be the last to hear that another one has it.
        """

        async def leads() -> str:
            rows = (await self.ask("WHO", *names)).parsed()
            return next((row["name"] for row in rows if row.get("leads") == "yes" and row["name"] != but), "")

        return await self.until(leads, START_SECONDS, f"another than {but} leads" if but else "somebody leads the farm")

    async def checked(self, *, quick: bool, prefix: str = "") -> checking.Checked:
        """What `chunkfarm check` finds."""
        people = self.people()
        try:
            return await checking.check(people, prefix, quick, NoBar())
        finally:
            people.hang_up()

    async def until_whole(self, seconds: float) -> checking.Checked:
        """Wait until every chunk has all its copies."""

        async def is_whole() -> checking.Checked | None:
            found = await self.checked(quick=True)
            return found if not found.wrong else None

        whole = await self.until(is_whole, seconds, "every chunk has all its copies")
        assert whole is not None
        return whole
