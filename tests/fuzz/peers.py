"""The first of a farm behind its peer port: table, journal and rules are the product's, links and disk are not."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.access import Access
from chunkfarm.chunks.at_risk import AtRisk
from chunkfarm.errors import FarmError, PreconditionFailed
from chunkfarm.files_at_risk import RiskLink
from chunkfarm.invites import Invites
from chunkfarm.issuer import Issuer, secret_rows
from chunkfarm.links.calling_back import CallBack
from chunkfarm.links.peers import Peers
from chunkfarm.model import FarmOptions, Server
from chunkfarm.ports.answers import PeerAnswers
from chunkfarm.ports.callers import Callers
from chunkfarm.ports.peer import PeerPortFactory
from chunkfarm.risk import LostFiles
from chunkfarm.settings import changed_table, read_table
from chunkfarm.state import ServerState
from chunkfarm.table.codec import decode_consensus
from chunkfarm.table.duties import Duties
from chunkfarm.table.embedded import EmbeddedTable, IConsensusLinks
from chunkfarm.table.epochs import Epochs
from chunkfarm.table.interface import IWatch
from chunkfarm.table.journal import Journal
from chunkfarm.table.objections import objection
from chunkfarm.table.records import Configuration, Message
from chunkfarm.table.registry import Registered, Registry
from chunkfarm.table.roster import Roster
from chunkfarm.trust.authority import Authority
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.seal import SealKey
from tests.builders import make_server, server_id
from tests.fuzz.promises import Broken, promise
from tests.simulation.disks import Disk
from tests.table.cluster import at_once

ME, LEARNER, STORES, FORGOTTEN, UNKNOWN = map(server_id, (1, 2, 3, 4, 5))
"""The first, a server that learns the table, one that only stores, one that was forgotten, one without a row."""
FARM = "fa" * 16
NOW = 1_795_341_600_123
JOIN_KEY = b"k" * 32
EXPORTER = b"e" * 32
"""What binds a proof to a connection, were it one."""
PATIENCE = 40.0


@frozen
class Founded:
    """A farm, and the journal of its first server."""

    journal: bytes
    seal: SealKey
    authority: Authority


@implementer(IConsensusLinks)
class Nobody:
    """Links to servers of which none answers; what is sent to them must make sense."""

    def send(self, to: str, payload: bytes) -> None:
        message = decode_consensus(payload)
        assert isinstance(message, Message)
        promise(message.sender == ME and message.to == to, f"a message that is not ours: {message}")
        why = objection(message, message.term)
        promise(not why, f"this server says what no other would take: {why}: {message}")

    def call(self, to: str, payload: bytes) -> Deferred[None]:
        return fail(ConnectionRefusedError())

    def transact(self, to: str, request: bytes) -> Deferred[bytes]:
        return fail(ConnectionRefusedError())

    def read(self, to: str, request: bytes, stale: bool = False) -> Deferred[bytes]:
        return fail(ConnectionRefusedError())

    def holders(self) -> tuple[str, ...]:
        return ()

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        return fail(ConnectionRefusedError())

    def leader_hint(self) -> str:
        return ""


class Line:
    """The line of history that this server belongs to."""

    said: str | None = "1e"

    def met(self, server: str, line: str) -> bool:
        return line == self.said


_KEY = Identity.provisional(ME, NOW).certificate.public_key()


@frozen
class Certificate:
    """What a server shows: all of them have one key here."""

    id: str

    def public_key(self) -> Any:
        return _KEY


class Shown:
    """Whom a certificate proves."""

    def peer_of(self, certificate: Certificate | None) -> str | None:
        return certificate.id if certificate is not None else None


class PeerServer:
    """One server, from its journal on."""

    def __init__(self, founded: Founded | None, phase: str = "serving") -> None:
        self.clock = clock = Clock()
        self.fatal: list[Failure] = []
        disk = Disk(Random(1))
        path = str(_directory() / "table.sqlite")
        if founded is not None:
            disk.restore(path, founded.journal)
        self._seal = founded.seal if founded is not None else None
        self.table = EmbeddedTable(
            ME,
            Journal.open(path, disk),
            Nobody(),
            clock,
            Random(1),
            run_on_disk=at_once,
            run_reads=at_once,
            on_fatal=self.fatal.append,
        )
        self.roster = Roster(self.table, clock)
        self.registry = Registry(self.table, lambda: NOW)
        self.table.start()
        self.phase = phase
        self.answers = self._answers()
        self.factory = PeerPortFactory(self.answers, clock, lines=Line())
        if founded is not None:
            self.until(lambda: self.table.is_leader)
            self.roster.start().addErrback(lambda failure: None)
            self.until(lambda: self.roster.servers)
            # Pages of reads are over, and the first tick has come.
            clock.advance(1.0)

    def until(self, what: Any) -> None:
        for _ in range(round(PATIENCE / 0.05)):
            if what():
                return
            self.clock.advance(0.05)
        raise Broken("this server does not begin")

    def result(self, deferred: Deferred[Any]) -> Any:
        outcome: list[Any] = []
        deferred.addBoth(outcome.append)
        self.until(lambda: outcome)
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        return outcome[0]

    def end(self) -> None:
        self.roster.stop().addErrback(lambda failure: None)
        self.result(self.table.stop())

    def _answers(self) -> PeerAnswers:
        clock, contexts = self.clock, Shown()

        def refuse(address: Any, factory: Any, timeout: float) -> Deferred[Any]:
            return fail(ConnectionRefusedError())

        peers = Peers(clock, refuse, contexts.peer_of, lambda server: None, lines=Line())
        options = FarmOptions(id=FARM, ca="sha256:" + "0a" * 32)
        state = ServerState(server_id=ME, name="s1", stamp=1, incarnation="run1", phase=self.phase, farm_id=FARM)
        callers = Callers(clock)
        callers.key = JOIN_KEY
        epochs = Epochs(self.table, lambda: self.roster.epoch, lambda: options)
        shown: Any = contexts
        risky = AtRisk()
        risky.note(bytes(32), 5, [STORES])
        return PeerAnswers(
            state=state,
            contexts=shown,
            peers=peers,
            table=self.table,
            registry=self.registry,
            duties=Duties(
                ME, "run1", self.table, self.registry, lambda: self.roster.servers, lambda: options, clock, epochs
            ),
            access=Access(self.table, lambda: True, peers, lambda: (), clock),
            issuer=Issuer(self.table, lambda: self._seal, lambda: NOW),
            invites=Invites(self.table, lambda: self._seal, lambda: NOW, lambda: self.roster.servers, lambda: options),
            first=lambda: self.table.leader,
            servers=lambda: self.roster.servers,
            learn=lambda server, address: None,
            farm=lambda: FARM if self.phase == "serving" else "",
            callers=callers,
            call_back=CallBack(peers, state, refuse, clock),
            set_table=self._set_table,
            tell=self._tell,
            barred=lambda server: "it was forgotten" if server == FORGOTTEN else "",
            forget=lambda target: fail(PreconditionFailed(f"{target} is up")),
            uses=lambda digests: succeed([1] * len(digests)),
            at_risk=RiskLink(ME, peers, risky.page, lambda: self.table.leader).answer,
            lost_files=lambda: succeed(LostFiles()),
        )

    def _tell(self, index: int | None) -> dict[str, Any]:
        term, last = self.table.journal_position
        there = self.table.past.term_at(index) if index is not None and index >= 0 else None
        return {"journal": {"term": term, "index": last}, "term_at": there}

    def _set_table(self, block: bytes) -> Deferred[int]:
        def change(before: Registered) -> tuple[Server, ...]:
            return changed_table(told, before.servers, before.revisions, before.revision)

        try:
            told = read_table(block)
        except FarmError:
            return fail()
        return self.registry.set_servers(change)


def _directory() -> Path:
    """Where names of files stand that are not there: one for the process."""
    if not _MADE:
        _MADE.append(Path(tempfile.mkdtemp(prefix="chunkfarm-fuzz-")))
        (_MADE[0] / "table.sqlite").touch()
        atexit.register(shutil.rmtree, _MADE[0], ignore_errors=True)
    return _MADE[0]


_MADE: list[Path] = []


def found() -> Founded:
    """A farm of three servers, of which the first leads and the second learns."""
    seal, authority = SealKey.create(), Authority.create(FARM, NOW)
    directory = Path(tempfile.mkdtemp(prefix="chunkfarm-fuzz-"))
    try:
        disk, path, clock = Disk(Random(1)), str(directory / "table.sqlite"), Clock()
        journal = Journal.open(path, disk)
        table = EmbeddedTable(ME, journal, Nobody(), clock, Random(1), run_on_disk=at_once, run_reads=at_once)
        table.start()

        def result(deferred: Deferred[Any]) -> None:
            outcome: list[Any] = []
            deferred.addBoth(outcome.append)
            while not outcome:
                clock.advance(0.05)
            if isinstance(outcome[0], Failure):
                outcome[0].raiseException()

        result(table.found())
        while not table.is_leader:
            clock.advance(0.05)
        registry = Registry(table, lambda: NOW)
        result(registry.found(make_server(1), FarmOptions(id=FARM), secret_rows(seal, authority, JOIN_KEY)))
        result(registry.join(make_server(2)))
        result(registry.join(make_server(3)))
        result(table.propose_configuration(Configuration({ME}, {LEARNER})))
        image = disk.image(path)
        result(table.stop())
        return Founded(image, seal, authority)
    finally:
        shutil.rmtree(directory)
