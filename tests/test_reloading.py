"""`config.ini` read again by a server that runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from attrs import asdict, evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunk_parts import ChunkParts
from chunkfarm.config import Config, ConfigError, ServerOptions, parse_config
from chunkfarm.errors import ReadOnly
from chunkfarm.limits import Limits
from chunkfarm.logs import Logs
from chunkfarm.model import Server
from chunkfarm.parts import Parts
from chunkfarm.reloading import Reload
from chunkfarm.trust.private import TrustError
from tests.builders import make_server
from tests.chunks.builders import run_now

TEXT = "[farm]\nchunksize = 8M\n[servers]\n[server]\ndata = /d\nhost = 127.0.0.1\nname = alpha\n"
REPAIRING = ("caretaker", "surplus", "draining")


class RunningServer:
    """What a reload needs of a server's parts, and what it did to them."""

    def __init__(self) -> None:
        self.config = parse_config(TEXT, "config.ini", {}, "alpha")
        self.config_file = self
        self.path = "config.ini"
        self.run_in_thread = run_now
        self.renewal = self
        self.registry = self
        self.call_back: Any = None
        self.row_fields: list[dict[str, Any]] = []
        self.looked_at_certificate = 0
        self.certificates: list[Any] = []
        self.has_first = True

    def take_options(self, options: ServerOptions, certificate: Any, limits: Limits) -> None:
        self.config = evolve(self.config, server=options, limits=limits)
        self.certificates.append(certificate)

    def own_row(self) -> Any:
        return make_server(1, weight=self.config.server.weight or 100, zone=self.config.server.zone or "127.0.0.1")

    def set_server(self, server: str, change: Callable[[Server, Any], Server]) -> Deferred[Any]:
        if not self.has_first:
            return fail(ReadOnly("no first"))
        row = make_server(1)
        changed = change(row, SimpleNamespace(servers={row.id: row}))
        before, after = asdict(row), asdict(changed)
        self.row_fields.append({name: after[name] for name in after if after[name] != before[name]})
        return succeed(None)

    def look(self) -> Deferred[None]:
        self.looked_at_certificate += 1
        return succeed(None)


class ReloadTests(SynchronousTestCase):
    """What can change does, what cannot is named, and a mistake changes nothing."""

    def reload(self, added: str = "", text: str = TEXT) -> Any:
        """Read a config with some more lines in `[server]`."""

        def read() -> Config:
            return parse_config(text + added, "config.ini", {}, "alpha")

        self.logs = Logs()
        self.limits: list[Limits] = []
        self.server = getattr(self, "server", None) or RunningServer()
        return Reload(cast(Parts, self.server), read, self.logs, self.limits.append).run()

    def test_limits(self) -> None:
        """How much may be repaired, kept free and waited for can change at any time."""
        changes = self.successResultOf(self.reload("repair_rate = 5M\nreserve = 2G\ndrain_timeout = 3s\n"))
        assert changes.now == ("reserve", "repair_rate", "drain_timeout")
        assert self.server.config.server.repair_rate == 5 << 20
        assert self.server.row_fields == []

    def test_everything_that_repairs(self) -> None:
        """Another `repair_rate` holds for all that makes servers read or copy, also while this one is emptied."""
        rates: dict[str, Any] = {}
        told = {name: SimpleNamespace(limit=partial(rates.__setitem__, name)) for name in REPAIRING}
        chunks: Any = SimpleNamespace(store=SimpleNamespace(), **told)
        for text, rate in (("", None), ("repair_rate = 5M\n", 5 << 20), ("repair_rate = 0\n", 0)):
            options = parse_config(TEXT + text, "config.ini", {}, "alpha").server
            ChunkParts.take_options(chunks, options)
            assert rates == dict.fromkeys(REPAIRING, rate)

    def test_limits_of_ports(self) -> None:
        """All of [limits] holds at once, and the log names what is different."""
        changes = self.successResultOf(self.reload("[limits]\nfiles_idle = 2m\nclient_connections = 5000\n"))
        assert changes.now == ("client_connections", "files_idle") and changes.at_next_start == ()
        assert self.limits == [Limits(files_idle=120.0, client_connections=5000)] == [self.server.config.limits]

    def test_its_row(self) -> None:
        """The farm is told of another weight or zone."""
        self.successResultOf(self.reload("weight = 7\nzone = attic\n"))
        assert self.server.row_fields == [{"weight": 7, "zone": "attic"}]

    def test_without_a_first(self) -> None:
        """A server that nobody leads keeps the new weight, and says that the farm hears of it later."""
        self.server = RunningServer()
        self.server.has_first = False
        with capturedLogs() as events:
            self.successResultOf(self.reload("weight = 7\n"))
        assert self.server.config.server.weight == 7
        assert [event["log_level"] for event in events] == [LogLevel.info, LogLevel.warn]

    def test_what_cannot_change(self) -> None:
        """Ports, name and data directory wait for the next start, and the log names them."""
        with capturedLogs() as events:
            changes = self.successResultOf(self.reload("client = tcp:5100\nmaster = no\nweight = 3\n"))
        assert changes.at_next_start == ("client", "peer", "files", "master")
        assert self.server.config.server.client.port == 4100
        assert events[0]["later"] == "client, peer, files, master"

    def test_a_mistake(self) -> None:
        """A config that cannot be read changes nothing at all."""
        self.failureResultOf(self.reload("weight = 7\nreserve = much\n"), ConfigError)
        assert self.server.certificates == []
        assert self.server.config.server.weight is None

    def test_a_certificate_that_is_not_there(self) -> None:
        """Nor does one that names a file which holds no certificate."""
        path = Path(self.mktemp()).absolute()
        self.failureResultOf(self.reload(f"weight = 7\ncertificate = {path}\n"), TrustError)
        assert self.server.config.server.weight is None

    def test_names(self) -> None:
        """The farm's certificate is looked at, since it may lack a name now."""
        self.successResultOf(self.reload("names = files.example\n"))
        assert self.server.looked_at_certificate == 1

    def test_log_level(self) -> None:
        """What is less than the level is left out from now on."""
        self.reload("log_level = warn\n")
        seen: list[Any] = []
        observer = cast(Any, self.logs.filtered(cast(Any, seen.append)))
        for level in (LogLevel.info, LogLevel.error):
            observer({"log_level": level, "log_namespace": "chunkfarm"})
        assert [event["log_level"] for event in seen] == [LogLevel.error]
