"""Stand-ins for servers, many in one process: they report once a second and follow the table, and do no more.

Each has a row, a key, a certificate, a link to the first's peer port and its two watches, over the code that real
servers use for that. None of them may be a master, and none holds chunks. Rows and certificates are written into the
table of a first that does not run (`make`), since a thousand servers that join one after the other take long.

`growth` runs this file as a process of its own, and speaks with it in lines of JSON: {"do": "count"}.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from attrs import asdict, define, field
from twisted.internet import stdio
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.protocols.basic import LineOnlyReceiver

from benchmarks.alone import run_alone
from chunkfarm import __version__
from chunkfarm.config import parse_config
from chunkfarm.issuer import Issuer
from chunkfarm.links import commands
from chunkfarm.links.followers import FollowersWatch
from chunkfarm.links.lines import LineClient
from chunkfarm.links.lines import connect as connect_lines
from chunkfarm.links.peers import Peers
from chunkfarm.model import FARM, SERVERS, Address, Server
from chunkfarm.pace import lost_after, report_interval
from chunkfarm.reporter import REPORT_TIMEOUT
from chunkfarm.risk import Risk
from chunkfarm.said import told
from chunkfarm.table.duties import Report
from chunkfarm.table.embedded import EmbeddedTable
from chunkfarm.table.interface import Batch, IWatch, Put, TableError
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.seal import SealKey
from chunkfarm.wire import transport

NAME = "stand-in-"
OPERATIONS = 32
"""Rows of one transaction."""
SOURCES = 8
"""Loopback addresses that connections come from: one alone may not have that many."""
RETRY_SECONDS = 0.25
TCP_INFO_BYTES_RECEIVED = 128
"""Where `tcpi_bytes_received` stands in the kernel's `struct tcp_info`."""


def row_of(number: int) -> Server:
    """The row of one of them."""
    return Server(
        id=f"{number:032x}",
        name=f"{NAME}{number}",
        host="127.0.0.1",
        client=1,
        peer=1,
        files=1,
        weight=0,
        zone=f"zone-{number}",
        free=10**12,
        used=10**11,
        full=False,
        version=__version__,
        master=False,
        incarnation=f"{number:016x}",
        joined=1_795_000_000_000,
        since=1_795_000_000_000,
    )


async def make(table: EmbeddedTable, data: Path, count: int, path: Path) -> None:
    """Write their rows into a table that is alone, and their keys and certificates into a file."""
    issuer = Issuer(table, lambda: SealKey.load(data), lambda: int(time.time() * 1000))
    made = []
    for number in range(1, count + 1):
        server = row_of(number)
        identity = Identity.provisional(server.id, int(time.time() * 1000))
        certificate, ca = await issuer.sign(identity.signing_request([server.host]), server.id, server.host)
        made.append({"number": number, "identity": asdict(identity.certified(certificate, ca), value_serializer=_text)})
    rows = [row_of(number) for number in range(1, count + 1)]
    for start in range(0, count, OPERATIONS):
        await table.transact((), tuple(Put(row.key, row.to_value()) for row in rows[start : start + OPERATIONS]))
    path.write_text(json.dumps(made))


def _text(_instance: object, _attribute: object, value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


@define(eq=False)
class Farm:
    """Where the servers are that are not stood in for."""

    reactor: Any
    config: Path
    addresses: list[tuple[str, Address, Address]] = field(factory=list)
    """Server id, peer address and client address, the first ahead."""
    servers: int = 0
    """How many rows the table has."""
    refused: int = 0
    """Reports that were not answered well, of which one is told: while a thousand begin at once some are late."""

    def read(self) -> None:
        """Read `config.ini`."""
        self.addresses = [
            (row.id, Address(row.host, row.peer), Address(row.host, row.client))
            for row in parse_config(self.config.read_text(), self.config).servers
            if row.id and not row.name.startswith(NAME)
        ]


class StandIn:
    """One of them."""

    def __init__(self, farm: Farm, number: int, identity: Identity) -> None:
        self._farm = farm
        self.number = number
        self.incarnation = row_of(number).incarnation
        self.contexts = Contexts(identity)
        self.peers = Peers(farm.reactor, self._open, self.contexts.peer_of, self._address_of)
        self.clients: list[LineClient] = []
        self.batches = 0
        self.answered = 0
        self._answered_at = 0.0
        self.watches_lost = 0
        self._missing = [SERVERS, FARM]
        self.heard: dict[bytes, float] = {}
        """When a value was first seen in a row of a server, by what the row says."""

    def _open(self, address: Address, factory: Any, timeout: float) -> Deferred[Any]:
        tls = self.contexts.peer_client_factory()
        return transport.connect(self._farm.reactor, address.host, address.port, factory, tls, timeout)

    def _address_of(self, server_id: str) -> Address | None:
        return next((peer for known, peer, _ in self._farm.addresses if known == server_id), None)

    @property
    def is_watching(self) -> bool:
        return not self._missing

    def start_reporting(self, delay: float) -> None:
        """Report at a server's pace from a moment of its own on, as those do that were started at different times."""
        self._farm.reactor.callLater(delay, self._begin)

    def _begin(self) -> None:
        LoopingCall(self._report).start(report_interval(self._farm.servers)).addErrback(print, file=sys.stderr)

    def _report(self) -> None:
        report = Report(incarnation=self.incarnation, free=10**12, used=10**11, revision=10**6, risk=Risk())
        asked = self.peers.call(
            self._farm.addresses[0][0], commands.Report, REPORT_TIMEOUT, report=json.dumps(told(report))
        )
        asked.addCallbacks(self._answered, self._refused)

    def _refused(self, failure: Any) -> None:
        if not self._farm.refused:
            print(f"a report was refused: {failure.getErrorMessage()}", file=sys.stderr)
        self._farm.refused += 1

    def _answers(self, address: Address) -> bool:
        """As a server knows it: the first answers its reports."""
        patience = lost_after(self._farm.servers)
        return address == self._farm.addresses[0][2] and time.monotonic() - self._answered_at < patience

    def _answered(self, box: dict[str, Any]) -> None:
        if json.loads(box["answer"])["known"]:
            self.answered += 1
            self._answered_at = time.monotonic()

    async def watch(self, revision: int) -> None:
        """Follow what every server follows; returns when both watches have begun."""
        follower = FollowersWatch(
            self._farm.reactor,
            self.contexts,
            lambda: [client for _, _, client in self._farm.addresses],
            self._dial,
            self._answers,
        )
        for prefix in self._missing[:]:
            watch = await follower.open(prefix, revision)
            Deferred.fromCoroutine(self._follow(follower, prefix, watch, revision)).addErrback(print, file=sys.stderr)
            self._missing.remove(prefix)

    def _dial(self, *arguments: Any, **more: Any) -> Deferred[LineClient]:
        return connect_lines(*arguments, **more).addCallback(self._dialed)

    def _dialed(self, client: LineClient) -> LineClient:
        self.clients.append(client)
        return client

    async def _follow(self, follower: FollowersWatch, prefix: bytes, watch: IWatch, revision: int) -> None:
        while True:
            try:
                batch = await watch.next()
                revision = batch.revision
                self._take(batch)
            except TableError:
                self.watches_lost += 1
                await deferLater(self._farm.reactor, RETRY_SECONDS)
                with contextlib.suppress(TableError):
                    watch = await follower.open(prefix, revision)

    def _take(self, batch: Batch) -> None:
        self.batches += 1
        for event in batch.events:
            if event.kind == "PUT" and event.key.startswith(SERVERS):
                zone = json.loads(event.value).get("zone", "")
                self.heard.setdefault(zone.encode(), time.monotonic())

    def received(self) -> int:
        """Bytes that the kernel has taken for it, as they travel."""
        links = [place.link for place in self.peers._places.values()]
        streams = [cast(Any, one).transport for one in (*links, *self.clients) if one is not None]
        return sum(_received(stream.socket) for stream in streams if getattr(stream, "connected", False))


def _received(link: Any) -> int:
    info = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("Q", info, TCP_INFO_BYTES_RECEIVED)[0])


class Crowd(LineOnlyReceiver):
    """All of them, and who commands them."""

    delimiter = b"\n"

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self.all: list[StandIn] = []

    def lineReceived(self, line: bytes) -> None:
        asked = json.loads(line)
        done = Deferred.fromCoroutine(getattr(self, f"_{asked.pop('do')}")(**asked))
        done.addCallbacks(self._say, lambda failure: self._say({"error": failure.getTraceback()}))

    def _say(self, answer: dict[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode())

    def connectionLost(self, reason: Any = None) -> None:
        self._farm.reactor.stop()

    async def _report(self, identities: str) -> dict[str, Any]:
        """Begin to report, evenly one after the other, as those of a farm that has run for long."""
        self._farm.read()
        all_made = json.loads(Path(identities).read_text())
        self._farm.servers = len(self._farm.addresses) + len(all_made)
        interval = report_interval(self._farm.servers)
        for made in all_made:
            told = made["identity"]
            pems = {name: text.encode() for name, text in told.items() if name != "server_id"}
            one = StandIn(self._farm, made["number"], Identity(told["server_id"], **pems))
            one.start_reporting((one.number * 0.618) % 1 * interval)
            self.all.append(one)
        return {"count": len(self.all)}

    async def _watch(self, revision: int) -> dict[str, Any]:
        """Let all follow the table from a revision on."""
        self._farm.read()
        begun = time.monotonic()
        for one in self.all:
            while not one.is_watching:
                with contextlib.suppress(TableError):
                    await one.watch(revision)
        return {"seconds": time.monotonic() - begun}

    async def _count(self) -> dict[str, Any]:
        return {
            "at": time.monotonic(),
            "received": sum(one.received() for one in self.all),
            "answered": sum(one.answered for one in self.all),
            "batches": sum(one.batches for one in self.all),
            "watches_lost": sum(one.watches_lost for one in self.all),
        }

    async def _hear(self, zone: str, patience: float) -> dict[str, Any]:
        """When the last of them had heard of a zone, and how many had."""
        ended = time.monotonic() + patience
        while True:
            moments = [one.heard[zone.encode()] for one in self.all if zone.encode() in one.heard]
            if len(moments) == len(self.all) or time.monotonic() > ended:
                return {"heard": len(moments), "last": max(moments, default=0.0)}
            await deferLater(self._farm.reactor, 0.02)


def from_many_addresses() -> Callable[[Any], Any]:
    """Each connection comes from the next of some addresses of this machine."""
    made = [0]

    def make(connector: Any) -> Any:
        made[0] += 1
        source = (f"127.0.0.{1 + made[0] % SOURCES}", 0)
        return transport.DialedStream(connector.host, connector.port, source, connector, connector.reactor)

    return make


def stand_in(config: Path) -> None:
    """Stand in for servers until the standard input ends."""
    from twisted.internet import reactor

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    cast(Any, reactor).seconds = time.monotonic
    with patch.object(transport._Connector, "_makeTransport", from_many_addresses()):
        stdio.StandardIO(Crowd(Farm(reactor, config)), reactor=reactor)
        cast(Any, reactor).run()


def main() -> None:
    """`make DATA COUNT FILE`, or `run CONFIG`."""
    if sys.argv[1] == "make":
        data, count, path = Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
        run_alone(data, lambda table: make(table, data, count, path))
    else:
        stand_in(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
