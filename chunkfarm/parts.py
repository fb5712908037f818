"""The parts that one server is made of, built and wired once; nothing runs yet when this returns.

Startup decides what to do with them, `farm` starts and stops the process around them, and `backend` answers the
ports with them. What has to do with chunks is made in `chunk_parts`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm import __version__, membership
from chunkfarm.access import Access
from chunkfarm.addresses import AddressBook, advertised_host
from chunkfarm.believing import Beliefs
from chunkfarm.by_hand import Seen, TakeoverByHand
from chunkfarm.chronicle import CHRONICLE_FILE, THREAD, Chronicle, NotesFile
from chunkfarm.chunk_parts import ChunkParts
from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.chunks.store import Space
from chunkfarm.config import Config, ConfigFile, Listed, ServerOptions
from chunkfarm.cures import cures
from chunkfarm.data_directory import DataDirectory
from chunkfarm.errors import FarmError
from chunkfarm.failed_attempts import FailedAttempts
from chunkfarm.forgetting import Forgetting
from chunkfarm.history import History, OwnLine
from chunkfarm.invites import Invites
from chunkfarm.issuer import Issuer
from chunkfarm.join_file import JoinFile
from chunkfarm.keyring import Keyring
from chunkfarm.ledger import Ledger
from chunkfarm.limits import Limits
from chunkfarm.links import commands, lines
from chunkfarm.links.calling_back import CallBack
from chunkfarm.links.commands import PROTOCOL_VERSION
from chunkfarm.links.followers import FollowersWatch
from chunkfarm.links.peers import LinkFailed, Peers
from chunkfarm.losses import LossSurvey
from chunkfarm.machine import Machine
from chunkfarm.metrics import Metrics
from chunkfarm.model import (
    CA_CERTIFICATE_KEY,
    GIB,
    ROTATION_WANTED_KEY,
    SEAL_DIGEST_KEY,
    Address,
    Drain,
    FarmOptions,
    Server,
)
from chunkfarm.old_disks import OLD_DISKS
from chunkfarm.renewal import Renewal
from chunkfarm.reporter import Reporter
from chunkfarm.rotating import Rotating
from chunkfarm.rotation import Authorities
from chunkfarm.said import note_of
from chunkfarm.state import ServerState
from chunkfarm.survey import Questions, Told
from chunkfarm.table.duties import Duties, Report
from chunkfarm.table.embedded import EmbeddedTable
from chunkfarm.table.epochs import Epochs
from chunkfarm.table.interface import TableError
from chunkfarm.table.over_peers import TableOverPeers
from chunkfarm.table.registry import Registry, forgotten_sentence
from chunkfarm.table.relay import Relay
from chunkfarm.table.roster import Roster
from chunkfarm.takeover import Takeover, refuses
from chunkfarm.threads import Threads
from chunkfarm.trust.contexts import Certificate, Contexts
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.proof import JOIN_FILE
from chunkfarm.trust.seal import SealKey
from chunkfarm.trust.verify import chain_of
from chunkfarm.witness import Witness

INCARNATION_BITS = 64
"""Random bits that tell this process from every other start of the same server."""


class Parts:
    """One server's parts."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: Config,
        config_file: ConfigFile,
        data: DataDirectory,
        pool: Threads,
        *,
        machine: Machine,
        on_fatal: Callable[[Failure], None],
    ) -> None:
        self.reactor = reactor
        self.machine = machine
        self.config = config
        self.config_file = config_file
        self.data = data
        self.now = machine.now
        self.on_fatal = on_fatal
        self.host = advertised_host(config.server.host)
        self.weight = self._weight_by(config.server)
        self.leaving = False
        self.metrics = Metrics()
        self._keys_seen = 0
        self.failed_attempts = FailedAttempts()
        self.on_keys_changed: Callable[[], None] = lambda: None
        """Called when a key was made, changed or removed."""
        self.note = ""
        self.space = Space(0, 0, False)
        self._line: tuple[str, ...] = ()
        self.state = ServerState(
            server_id=data.server_id,
            name=config.server.name,
            stamp=self.now(),
            incarnation=f"{machine.random.getrandbits(INCARNATION_BITS):0{INCARNATION_BITS // 4}x}",
            chunksize=config.farm.chunksize,
        )
        self.chronicle = Chronicle(
            NotesFile(data.path / CHRONICLE_FILE),
            machine.threads(reactor, 1, THREAD),
            self.state.incarnation,
            self.now,
            machine.boot_time,
        )
        self.witness = Witness(data.server_id, self.state.incarnation, config.server.name, self.chronicle.note)
        self.state.subscribe(lambda: self.witness.phase(self.state))
        self.contexts = Contexts(Identity.provisional(data.server_id, self.now()))
        if config.server.certificate is not None:
            self.contexts.show_on_file_port(Certificate.load(config.server.certificate))

        self.run_in_thread: RunInThread = pool.run
        self.cutting: list[Callable[[str], None]] = []
        """What ends the links of a server that was forgotten."""
        self.judging: list[Callable[[], None]] = []
        """What ends the links whose certificates prove nothing any more."""
        self.shown: dict[str, str] = {}
        """By which public keys other servers have proved to this one who they are, as digests."""
        self._barred: frozenset[str] = frozenset()
        self.line = OwnLine()
        self.book = AddressBook(self.servers, reactor)
        self.peers = Peers(
            reactor,
            self._open_link,
            self._member_of,
            self.book.lookup,
            self.link_ended,
            self.line,
        )
        self.call_back = CallBack(self.peers, self.state, machine.connect, reactor)
        # Pages of snapshots have connections of their own, so that heartbeats never wait behind them.
        self.streams = Peers(reactor, self._open_link, self._member_of, self.book.lookup, lines=self.line)
        self.cutting += [self.peers.cut, self.streams.cut]
        self.judging += [self.peers.judge_again, self.streams.judge_again]
        self.journal = machine.open_journal(os.fspath(data.path / "table.sqlite"))
        self._build_table(on_fatal)
        self.chunks = ChunkParts(self)
        self._build_forgetting()
        self.ledger = Ledger(
            config_file,
            self.roster,
            reactor,
            self.run_in_thread,
            lambda: self.first() == data.server_id,
            self._take_note,
            data.server_id,
        )

    def _build_table(self, on_fatal: Callable[[Failure], None]) -> None:
        dial = partial(lines.connect, dial=self.machine.connect)
        self.watches = FollowersWatch(
            self.reactor, self.contexts, self._watchable, dial, self._answers, self._member_of
        )
        self.relay = Relay(self.watches.open, self.reactor)
        links = TableOverPeers(
            self.peers, self.streams, self.relay.watch, lambda: self.reporter.hint, self._who_holds_rows
        )
        self.embedded = EmbeddedTable(
            self.data.server_id,
            self.journal,
            links,
            self.reactor,
            self.machine.random,
            client_id=self.state.incarnation,
            rank=self._rank,
            on_fatal=on_fatal,
            threads=self.machine.threads,
            observe=lambda message, term, answers: self.takeover.saw(message, term, answers),
            on_committed=self.metrics.committed,
            on_change=self._lead_changed,
        )
        self.roster = Roster(self.embedded, self.reactor)
        self.roster.subscribe(self._roster_changed)
        self.roster.subscribe(self._rows_changed)
        self.registry = Registry(self.embedded, self.now)
        self.issuer = Issuer(self.embedded, lambda: self.seal, self.now)
        self.duties = Duties(
            self.data.server_id,
            self.state.incarnation,
            self.embedded,
            self.registry,
            lambda: self.roster.servers,
            lambda: self.roster.options,
            self.reactor,
            Epochs(self.embedded, lambda: self.roster.epoch, lambda: self.roster.options),
        )
        self.reporter = Reporter(
            state=self.state,
            make_report=self.make_report,
            own_row=self.own_row,
            table=self.embedded,
            duties=self.duties,
            peers=self.peers,
            servers=self.servers,
            learn=self.book.learn,
            clock=self.reactor,
            now=self.now,
            heed=self.embedded.heed,
            cures=self.cures,
            heard=self.witness.hears,
            behind=self._stands_still,
            unheld=lambda: self.chunks.unheld.told,
        )
        self._build_history(on_fatal)
        self._build_trust()
        self.access = Access(
            self.embedded,
            lambda: self.embedded.holds_rows,
            self.peers,
            self._who_knows_keys,
            self.reactor,
            lambda: self.roster.keys_revision,
            lambda: self.embedded.stands_still,
        )
        self.keyring = Keyring(self.embedded, lambda: self.seal, self.now)
        self.invites = Invites(self.embedded, lambda: self.seal, self.now, self.servers, self.options)

    def _build_trust(self) -> None:
        turn = DeferredLock()
        self.contexts.key_of = self._key_of
        self.renewal = Renewal(
            self.data.path,
            self.contexts,
            self.issuer,
            self.peers,
            self.first,
            self.certificate_names,
            self.reactor,
            self.now,
            self.run_in_thread,
            self._signing_ca,
            turn,
        )
        self.beliefs = Beliefs(
            directory=self.data.path,
            contexts=self.contexts,
            turn=turn,
            row=self.roster.farm_row,
            may_be_master=lambda: self.config.server.master,
            ask=self._ask_seal_key,
            renew=self.renewal.look,
            changed=self._judge_again,
            clock=self.reactor,
            run_in_thread=self.run_in_thread,
        )
        self.rotating = Rotating(
            farm_id=lambda: self.options().id,
            table=self.embedded,
            registry=self.registry,
            issuer=self.issuer,
            row=self.roster.farm_row,
            seal=lambda: self.seal,
            hold=self.beliefs.hold,
            servers=lambda: self.roster.servers,
            told=self.duties.reports,
            shown=self._keys_shown,
            leads=lambda: self.embedded.is_leader,
            clock=self.reactor,
            now=self.now,
            run_in_thread=self.run_in_thread,
        )

    def _build_history(self, on_fatal: Callable[[Failure], None]) -> None:
        questions = Questions(self.peers, self._probe_arguments)
        self._file_generation = self.config.generation
        self.history = History(
            server_id=self.data.server_id,
            table=self.embedded,
            notes=self.journal,
            run_in_thread=self.run_in_thread,
            ask=questions.ask,
            servers=self.servers,
            generation=lambda: self._file_generation,
            on_change=self._history_changed,
            on_learned=self._line_left,
            on_fatal=on_fatal,
            clock=self.reactor,
            random=self.machine.random,
        )
        # Before anything is said to anybody.
        self.history.load()
        self.line.history = self.history
        self.takeover = Takeover(
            self.data.server_id,
            self.embedded,
            lambda: self.roster.servers,
            self.options,
            self._may_take_over,
            lambda host, port: refuses(self.machine.connect, self.reactor, host, port),
            self.reactor,
            self.machine.boot_time,
            self.history,
        )
        self.by_hand = TakeoverByHand(
            self.history,
            self.embedded,
            questions,
            self._own_telling,
            self.servers,
            self._listed_places,
            lambda: Address(self.host, self.config.server.peer.port),
            lambda: self.options().name,
            self.reactor,
        )

    def _probe_arguments(self) -> dict[str, Any]:
        return {
            "server": self.data.server_id,
            "stamp": self.state.stamp,
            "farm": self.recorded_farm,
            "version": PROTOCOL_VERSION,
            "host": self.host,
            "peer": self.config.server.peer.port,
        }

    def _own_telling(self) -> Told:
        """What this server would tell of itself."""
        said = self.history.describe(None)
        journal = said["journal"]
        return Told(
            server=self.data.server_id,
            name=self.state.name,
            state=self.state.phase,
            first=self.first(),
            commits=said["commits"],
            journal=(journal["term"], journal["index"]) if journal is not None else None,
            chain=self.history.chain,
            settled=self.history.settled,
            stopped=said["stopped"],
        )

    def _listed_places(self) -> Deferred[list[Seen]]:
        async def read() -> list[Seen]:
            try:
                config = await self.run_in_thread(self.config_file.read, {}, self.state.name)
            except FarmError:
                # A person is editing it.
                config = self.config
            # Those that are lost now may have written it last.
            self._file_generation = max(self._file_generation, config.generation)
            rows = [row for row in config.servers if row.id != self.data.server_id]
            return [Seen(name=row.name, address=Address(row.host, row.peer)) for row in rows]

        return Deferred.fromCoroutine(read())

    def cures(self) -> tuple[str, ...]:
        """What a person may do while nobody leads the farm."""
        voters = self.embedded.configuration.voters
        return cures(self.data.server_id, self.servers(), voters, self.history.learns, self.is_withheld)

    def _history_changed(self) -> None:
        stopped = self.history.stopped
        self.embedded.refuse_writes(stopped.reason if stopped is not None else "")
        self.state.halted = stopped.reason if stopped is not None else ""
        self.state.halted_cures = stopped.cures if stopped is not None else ()
        if stopped is None:
            return
        if self.state.phase == "serving":
            self.state.change("readonly", cures=stopped.cures)
        # Servers that follow the table here would hear of nothing any more.
        self.embedded.end_watches(stopped.reason)

    def _stands_still(self) -> None:
        """What this server knows of the table does not become what the first knew long ago."""
        self.relay.look_elsewhere()
        if self.embedded.stands_still:
            # Its own rows tell of nothing, and it is asked for servers, options and keys all the same.
            self.roster.refresh().addErrback(lambda failure: failure.trap(TableError))

    def _line_left(self, index: int) -> None:
        """The farm went on without what this server may have been told after that index."""
        self.relay.leave_line(index)
        self.roster.leave_line(index)

    def _build_forgetting(self) -> None:
        survey = LossSurvey(
            self.chunks.catalog, self.chunks.transfer, self.servers, lambda: self.options().replicas, self.reactor
        )
        self.forgetting = Forgetting(
            server_id=self.data.server_id,
            registry=self.registry,
            issuer=self.issuer,
            survey=survey,
            peers=self.peers,
            servers=self.servers,
            options=self.options,
            first=self.first,
            leads=lambda: self.embedded.is_leader,
            clock=self.reactor,
        )
        self.join_file = JoinFile(
            Path(self.config_file.path).absolute().parent / JOIN_FILE,
            lambda: self.roster.join_digest,
            self._ask_join_key,
            self.reactor,
            self.run_in_thread,
        )

    # What the parts ask of each other.

    def _ask_join_key(self) -> Deferred[bytes]:
        if self.embedded.is_leader:
            return self.issuer.join_key()
        key: Deferred[dict[str, Any]] = self.peers.call(self.first(), commands.JoinKey)
        return key.addCallback(lambda box: box["key"])

    def authorities(self) -> Authorities:
        """The farm's CA, and how far the farm is with changing it."""
        return Authorities(
            signs=self._signing_ca().decode(),
            rotation=self.beliefs.rotation,
            wanted=self.roster.farm_row(ROTATION_WANTED_KEY) is not None,
            waits_for=self.rotating.waits_for,
            problem=self.rotating.problem,
        )

    @property
    def seal(self) -> SealKey | None:
        """The keys that seal secret rows, if this server may have them."""
        return self.beliefs.seal

    @seal.setter
    def seal(self, seal: SealKey | None) -> None:
        self.beliefs.seal = seal

    def seal_key(self, digest: str) -> bytes | None:
        """The seal key of that digest, if it is held here and the rows name it."""
        rotation, row = self.beliefs.rotation, self.roster.farm_row(SEAL_DIGEST_KEY)
        named = {row.value.decode()} if row is not None else set()
        named |= {rotation.seal} if rotation is not None and rotation.is_running else set()
        return self.seal.key_of(digest) if self.seal is not None and digest in named else None

    def _ask_seal_key(self, digest: str) -> Deferred[bytes]:
        async def ask() -> bytes:
            line = dict.fromkeys([self.first(), *(server.id for server in membership.candidates(self.servers()))])
            problem = "nobody who may hold it is known"
            for server_id in line:
                if server_id and server_id != self.data.server_id:
                    try:
                        box = await self.peers.call(server_id, commands.SealKey, digest=digest)
                    except (LinkFailed, commands.NotNow, commands.BadRequest) as error:
                        problem = str(error)
                        continue
                    return bytes(box["key"])
            raise LinkFailed(f"nobody gives the new key that seals secrets: {problem}")

        return Deferred.fromCoroutine(ask())

    def _signing_ca(self) -> bytes:
        row = self.roster.farm_row(CA_CERTIFICATE_KEY)
        return row.value if row is not None else b""

    def _key_of(self, server_id: str) -> str:
        row = self.roster.server(server_id)
        return row.public_key if row is not None else self.roster.barred_key(server_id)

    def _keys_shown(self) -> dict[str, str]:
        identity = self.contexts.identity
        return self.shown | ({identity.server_id: identity.key_digest} if identity is not None else {})

    def _judge_again(self) -> None:
        for judge in self.judging:
            judge()

    def _member_of(self, certificate: Any) -> str | None:
        """The server of this farm that a certificate proves, unless it was forgotten."""
        server_id = self.contexts.peer_of(certificate)
        return server_id if server_id is not None and not self.barred(server_id) else None

    @property
    def is_withheld(self) -> bool:
        # An old disk matters to those who vote or learn; others start from whatever a first sends them.
        return bool(self.embedded.withheld) and (self.embedded.is_member or self.embedded.withheld not in OLD_DISKS)

    def _open_link(self, address: Address, factory: Factory, timeout: float) -> Deferred[Any]:
        tls = self.contexts.peer_client_factory()
        opening = self.machine.connect(self.reactor, address.host, address.port, factory, tls, timeout)

        def introduced(link: Any) -> Any:
            self.beliefs.introduced(chain_of(link.transport))
            return link

        return opening.addCallback(introduced)

    def _may_take_over(self) -> bool:
        """Whether this process has a place among the masters, and keeps it."""
        return self.reporter.belongs and not self.leaving and self.config.server.master

    def _rank(self, server_id: str) -> int:
        return self._line.index(server_id) if server_id in self._line else len(self._line)

    def _who_holds_rows(self) -> tuple[str, ...]:
        """The other servers that hold rows, as far as this one knows, the one that leads ahead."""
        # Answers to reports may know of newer masters than the rows, which come with the watch.
        masters = (server.id for server in membership.masters(self.servers()))
        line = dict.fromkeys([self.first(), *masters, *self.reporter.voters])
        return tuple(id for id in line if id and id != self.data.server_id)

    def _watchable(self) -> list[Address]:
        rows = {server.id: server for server in self.servers()}
        return [rows[id].client_address for id in self._who_holds_rows() if id in rows]

    def _who_knows_keys(self) -> tuple[Server, ...]:
        """The other masters, the one that leads ahead: one that is cut off from it does not hear of keys that went."""
        others = [server for server in membership.masters(self.servers()) if server.id != self.data.server_id]
        return tuple(sorted(others, key=lambda server: server.id != self.first()))

    def _answers(self, address: Address) -> bool:
        """Whether the server with that client port is known to live."""
        rows = (server for server in self.servers() if server.id == self.reporter.first)
        return any(row.client_address == address and self.reporter.answered_by(row.id) for row in rows)

    def _roster_changed(self) -> None:
        self.state.revision = self.roster.revision
        self.state.chunksize = self.roster.options.chunksize
        self._line = tuple(server.id for server in membership.candidates(self.roster.servers))
        for server in self.roster.servers:
            if server.id == self.data.server_id:
                self.state.name = server.name
        new, self._barred = self.roster.barred - self._barred, self.roster.barred
        for server_id in sorted(new):
            for cut in self.cutting:
                cut(server_id)
        self.beliefs.table_changed()
        self.join_file.table_changed()
        self.chunks.table_changed()
        if self._keys_seen != self.roster.keys_revision:
            self._keys_seen = self.roster.keys_revision
            self.on_keys_changed()

    def _rows_changed(self) -> None:
        self.witness.rows(self.roster.servers, self.roster.barred, self.roster.revisions)

    def _lead_changed(self) -> None:
        table = self.embedded
        self.witness.table(
            table.is_leader,
            table.leader if table.is_member else "",
            table.term,
            table.reasons,
            table.configuration.voters,
            table.configuration_index,
        )

    def _weight_by(self, options: ServerOptions) -> int:
        if options.weight is not None:
            return options.weight
        # The size of the disk in GiB.
        return max(1, self.machine.room(os.fspath(self.data.path))[1] // GIB)

    def take_options(self, options: ServerOptions, certificate: Certificate | None, limits: Limits) -> None:
        """Go on with other options for this server; `reloading` says which may be others than at the start."""
        self.config = evolve(self.config, server=options, limits=limits)
        self.weight = self._weight_by(options)
        self.chunks.take_options(options)
        self.contexts.show_on_file_port(certificate)

    def _take_note(self, note: str) -> None:
        self.note = note_of(note)

    def _told_note(self) -> str:
        return note_of("; ".join(filter(None, (self.note, self.chunks.caretaker.trouble))))

    def first(self) -> str:
        """The server that leads, as far as this one knows; empty if it does not."""
        return self.reporter.first

    def make_report(self) -> Report:
        """What this server says of itself once a second."""
        ca, ready = self.beliefs.report()
        return Report(
            incarnation=self.state.incarnation,
            free=self.space.free,
            used=self.space.used,
            full=self.space.full,
            revision=self.state.revision,
            note=self._told_note(),
            leaving=self.leaving,
            table_full=self.embedded.disk_full,
            short=self.chunks.caretaker.progress.short,
            drain=self.chunks.draining.progress,
            ca=ca,
            ready=ready,
            risk=self.chunks.caretaker.risk,
            missed=self.chunks.caretaker.progress.lost,
        )

    def own_row(self) -> Server:
        """This server's row as it would join with it now."""
        options = self.config.server
        return Server(
            id=self.data.server_id,
            name=self.state.name,
            host=self.host,
            client=options.client.port,
            peer=options.peer.port,
            files=options.files.port,
            weight=self.weight,
            zone=options.zone or self.host,
            free=self.space.free,
            used=self.space.used,
            full=self.space.full,
            version=__version__,
            master=options.master,
            public_key=self.contexts.identity.key_digest if self.contexts.identity is not None else "",
            incarnation=self.state.incarnation,
            note=self._told_note(),
        )

    def certificate_names(self) -> tuple[str, ...]:
        """The names this server's certificate should carry, besides its id and the loopback ones."""
        return (self.host, socket.gethostname(), *self.config.server.names)

    @property
    def recorded_farm(self) -> str:
        """The farm that `config.ini` names, or that this server was about to join when it stopped; or empty."""
        return self.config.farm.id or self.journal.farm_id

    def servers(self) -> tuple[Server, ...]:
        """The server table as this server knows it; before it has seen the table, the list in its config."""
        if self.roster.servers:
            return self.roster.servers
        return tuple(_listed_server(row, number) for number, row in enumerate(self.config.servers) if row.id)

    def options(self) -> FarmOptions:
        return self.roster.options if self.roster.servers else self.config.farm

    def link_ended(self, server_id: str) -> None:
        """A server of this farm has ended a link to this one, or from it, by end of file or reset."""
        self.takeover.ended(server_id)
        self.embedded.suspect(server_id)

    def barred(self, server_id: str) -> str:
        return forgotten_sentence(server_id) if server_id in self.roster.barred else ""

    def drains(self) -> tuple[tuple[Server, Drain | None], ...]:
        told = self.reporter.drains
        return tuple((server, told.get(server.id)) for server in self.servers() if server.is_emptied)

    def measure_space(self) -> Deferred[None]:
        """Look at the disk, for the next report."""

        def take(space: Space) -> None:
            self.space = space

        return self.chunks.store.space().addCallback(take)


def _listed_server(row: Listed, number: int) -> Server:
    return evolve(
        Server(id=row.id, name=row.name, host=row.host, client=row.client, peer=row.peer, files=row.files),
        joined=row.joined or 0,
        seniority=number + 1,
        state=row.state or "up",
        draining=row.state == "draining",
    )
