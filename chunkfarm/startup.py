"""How a server starts: read_config -> find_farm -> first_server | subsequent_server -> serve.

One Deferred chain, cancellable at every wait. What a person must mend ends it with a `FarmError`, one sentence;
whatever time may mend is waited for, and the state says what that is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.addresses import is_own_address
from chunkfarm.changes import set_table
from chunkfarm.config import Config, ConfigFile, HeldConfig, LockHeld
from chunkfarm.config_values import is_loopback
from chunkfarm.data_directory import DataDirectory
from chunkfarm.errors import FarmError
from chunkfarm.finding import SOON, WAIT_MOST, Answer, Asking, Join, Search, Wait
from chunkfarm.founding import discard_unrecorded, found, join_file, remove_marker
from chunkfarm.joining import JoinLater, join
from chunkfarm.links.twins import find_twin, twin_sentence
from chunkfarm.machine import Machine
from chunkfarm.membership import Candidate
from chunkfarm.model import FARM, GENERATION_KEY, SERVERS, Address
from chunkfarm.old_disks import OLDER_THAN_CONFIG, OLDER_THAN_OTHERS, tells_of_newer, witness
from chunkfarm.parts import Parts
from chunkfarm.ports.answers import PeerAnswers
from chunkfarm.ports.callers import Callers
from chunkfarm.returning import Calls
from chunkfarm.state import Wait as StateWait
from chunkfarm.threads import Threads
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.invitation import Invitation
from chunkfarm.trust.private import NoSuchFile
from chunkfarm.trust.proof import read_join_key
from chunkfarm.trust.seal import SealKey
from chunkfarm.wire.inherited import with_ports

STORED_ROWS_MAX = 10_000
"""Rows read from this server's own journal to find the others: more servers than a farm has."""
EXPLAIN_INTERVAL = 1.0
"""Seconds between two updates of what a server says it waits for."""


class CannotStart(FarmError):
    """This server must not start as things are; the sentence says why."""


@frozen(kw_only=True)
class Wish:
    """What the command line asks for."""

    config: str
    overrides: Mapping[str, str | None]
    host_name: str
    found_anyway: bool = False
    invitation: Invitation | None = None
    """The code that was given, in whose farm this server is to join."""


@frozen(kw_only=True)
class Surroundings:
    """What the process gives to a starting server."""

    reactor: Any
    pool: Threads
    machine: Machine
    on_fatal: Callable[[Failure], None]
    on_parts: Callable[[Parts], None]
    """Told as soon as there is anything that a shutdown must take down again."""


class OpenPorts(Protocol):
    """What opens the three ports; each raises `CannotStart` if its port is taken."""

    def open_peer(self, parts: Parts, answers: PeerAnswers) -> None: ...

    def open_client(self, parts: Parts) -> None: ...

    def open_files(self, parts: Parts) -> None: ...


class Startup:
    """One start of one server."""

    _log = Logger()

    def __init__(self, wish: Wish, surroundings: Surroundings, ports: OpenPorts) -> None:
        self._wish = wish
        self._surroundings = surroundings
        self._ports = ports
        self._file = ConfigFile(wish.config)
        self._answers: PeerAnswers | None = None
        self._callers = Callers(surroundings.reactor)
        self._held: HeldConfig | None = None
        self._given_up = ""
        self._search: Search | None = None
        self._since: dict[Address, int] = {}
        self._tries = 0
        self._said: tuple[Any, ...] = ()
        self._held_generation = 0
        """The newest generation in the journal as this process found it."""

    def run(self) -> Deferred[Parts]:
        """Start; fires with the parts of a server that serves."""
        startup: Deferred[Any] = Deferred.fromCoroutine(self._read_config())
        startup.addCallback(_step(self._find_farm))
        startup.addCallback(_step(self._first_or_subsequent))
        startup.addCallback(_step(self._serve))
        startup.addErrback(self._give_up)
        return startup

    def _give_up(self, failure: Failure) -> Failure:
        if self._held is not None:
            self._held.release()
        return failure

    async def _read_config(self) -> Parts:
        config = self._seen(self._file.read(self._wish.overrides, self._wish.host_name))
        data = DataDirectory.open(config.server.data, self._surroundings.machine.new_id())
        try:
            if discard_unrecorded(data.path, config.farm.id):
                self._log.warn("Discarded a farm that was never recorded: its founder stopped half-way.")
            parts = Parts(
                self._surroundings.reactor,
                config,
                self._file,
                data,
                self._surroundings.pool,
                machine=self._surroundings.machine,
                on_fatal=self._surroundings.on_fatal,
            )
        except BaseException:
            data.close()
            raise
        self._surroundings.on_parts(parts)
        self._answers = PeerAnswers(
            state=parts.state,
            contexts=parts.contexts,
            peers=parts.peers,
            table=parts.embedded,
            registry=parts.registry,
            duties=parts.duties,
            access=parts.access,
            issuer=parts.issuer,
            invites=parts.invites,
            first=parts.first,
            servers=parts.servers,
            learn=parts.book.learn,
            farm=lambda: parts.recorded_farm,
            callers=self._callers,
            call_back=parts.call_back,
            set_table=partial(set_table, parts.registry, call_back=parts.call_back),
            tell=parts.history.describe,
            generation=lambda: parts.roster.generation,
            uses=parts.chunks.references.uses,
            at_risk=parts.chunks.risk_link.answer,
            lost_files=parts.chunks.files_at_risk.known,
            barred=parts.barred,
            forget=parts.forgetting.forget,
            seal_key=parts.seal_key,
            shown=parts.shown,
            unheld=lambda: parts.reporter.unheld,
        )
        return parts

    def _seen(self, config: Config) -> Config:
        """The config with what it does not say itself: ports of passed sockets, and the farm that a code names.

        Raises `CannotStart` if it names another farm than the code.
        """
        config = with_ports(config)
        invitation = self._wish.invitation
        if invitation is None:
            return config
        if config.farm.id and config.farm.id != invitation.farm:
            raise CannotStart(f"{self._file.path} names farm {config.farm.id}, and the code is for {invitation.farm}")
        if config.farm.id:
            # It has joined before, and the list in the file is newer.
            return config
        farm = evolve(config.farm, id=invitation.farm, ca=invitation.ca)
        return evolve(config, farm=farm, servers=(*invitation.servers, *config.servers))

    async def _find_farm(self, parts: Parts) -> tuple[Parts, Decided]:
        assert self._answers is not None
        # Known before anybody can ask: a server with data of a farm must not be taken for one that looks for it.
        resumes = await self._owns_data(parts)
        # The peer port is open before anybody else is asked: of two that start at once, at least one sees the other.
        self._ports.open_peer(parts, self._answers)
        self._ports.open_client(parts)
        if resumes:
            return parts, Resumes()

        async def may_found() -> bool:
            self._held = await self._lock_to_found(parts)
            return self._held is not None

        search = Search(
            parts.peers,
            parts.state,
            self._callers,
            self._surroundings.reactor,
            read=lambda: Deferred.fromCoroutine(self._whom_to_ask(parts)),
            may_found=lambda: Deferred.fromCoroutine(may_found()),
            explain=lambda wait: self._explain(parts, wait),
            found_anyway=self._wish.found_anyway,
        )
        self._search = search
        return parts, await self._decide(search)

    async def _decide(self, search: Search) -> Founds | Join:
        decision = await search.run()
        if isinstance(decision, Join):
            return decision
        assert self._held is not None
        return Founds(self._held, self._given_up)

    async def _whom_to_ask(self, parts: Parts) -> tuple[list[Address], Asking]:
        """The servers in the list as it is now, and what this one tells them."""
        config = await parts.run_in_thread(self._file.read, self._wish.overrides, self._wish.host_name)
        parts.config = self._seen(config)
        try:
            key = await parts.run_in_thread(read_join_key, join_file(self._file.path))
        except NoSuchFile:
            key = None
        me = Candidate(stamp=parts.state.stamp, server_id=parts.state.server_id)
        own = Address(parts.host, parts.config.server.peer.port)
        self._given_up = parts.recorded_farm
        addresses = [Address(row.host, row.peer) for row in parts.config.servers if row.id != me.server_id]
        return addresses, Asking(me=me, address=own, farm=parts.recorded_farm, key=key)

    async def _owns_data(self, parts: Parts) -> bool:
        """Whether the data directory already belongs to this farm; then the identity in it is taken up."""
        farm = parts.journal.farm_id
        identity = await parts.run_in_thread(Identity.load, parts.data.path, parts.data.server_id)
        if self._wish.found_anyway and parts.embedded.last_index:
            raise CannotStart(
                f"--found is refused: the data directory {parts.data.path} belongs to farm {farm or 'of unknown id'}"
            )
        if not farm or identity is None:
            # Without an identity it was stopped while it joined: it joins again, and founds nothing beside that farm.
            return False
        recorded = parts.config.farm.id
        if self._wish.found_anyway:
            raise CannotStart(f"--found is refused: the data directory {parts.data.path} belongs to farm {farm}")
        if recorded and recorded != farm:
            raise CannotStart(
                f"{self._file.path} names farm {recorded}, but the data directory {parts.data.path} belongs to "
                f"farm {farm}: give the one that goes with the other"
            )
        parts.contexts.replace(identity)
        parts.state.farm_id = farm
        try:
            parts.seal = await parts.run_in_thread(SealKey.load, parts.data.path)
        except NoSuchFile:
            parts.seal = None
        return True

    async def _lock_to_found(self, parts: Parts) -> HeldConfig | None:
        """The lock under which to found, or None if somebody else was first (or may be)."""
        try:
            held = await parts.run_in_thread(self._file.locked)
        except LockHeld:
            return None
        except OSError as error:
            raise CannotStart(f"no farm can be founded: {self._file.path} cannot be locked: {error}") from None
        try:
            config = self._seen(await parts.run_in_thread(held.read, self._wish.overrides, self._wish.host_name))
            unchanged = (config.farm.id, config.servers) == (parts.config.farm.id, parts.config.servers)
            if not unchanged:
                held.release()
                return None
            if self._wish.found_anyway:
                config = evolve(config, farm=evolve(config.farm, id="", ca=""), generation=0, servers=())
            parts.config = config
        except BaseException:
            held.release()
            raise
        return held

    def _explain(self, parts: Parts, decision: Wait) -> None:
        """Say what is waited for: in the state always, in the log once a change."""
        self._tries += 1
        waits = tuple(
            StateWait(answer.address, answer.error, self._since_of(answer), self._tries) for answer in decision.reasons
        )
        parts.state.change("waiting" if waits else "starting", waits=waits, cures=decision.cures)
        said = tuple((str(wait.address), wait.error) for wait in waits)
        if said != self._said:
            self._said = said
            if waits:
                self._log.info(
                    "Waiting for the farm: {waits}. Cure: {cures}.",
                    waits="; ".join(f"{address}: {error}" for address, error in said),
                    cures=", or ".join(decision.cures) or "none needed, this passes by itself",
                )

    def _since_of(self, answer: Answer) -> int:
        return self._since.setdefault(answer.address, self._surroundings.machine.now())

    def _sleep(self, seconds: float) -> Deferred[None]:
        return deferLater(self._surroundings.reactor, seconds, lambda: None)

    async def _first_or_subsequent(self, found_out: tuple[Parts, Decided]) -> tuple[Parts, str]:
        parts, decided = found_out
        # From here on the farm hears of this server, so a port that is taken must show before.
        self._ports.open_files(parts)
        await parts.chunks.store.start()
        await parts.measure_space()
        if isinstance(decided, Resumes):
            return await self._resumed_server(parts)
        assert self._search is not None
        delay = SOON
        while isinstance(decided, Join):
            first = await self._subsequent_server(parts, decided)
            if first:
                return parts, first
            # The farm may have moved on, and config.ini may say where to.
            await self._sleep(delay)
            delay = min(2 * delay, WAIT_MOST)
            decided = await self._decide(self._search)
        with decided.held:
            return await self._first_server(parts, decided)

    async def _first_server(self, parts: Parts, founds: Founds) -> tuple[Parts, str]:
        if is_loopback(parts.host):
            self._log.warn(
                "This server advertises {host}, which only its own machine can reach: for servers on other machines, "
                "set host in [server] of {path}.",
                host=parts.host,
                path=self._file.path,
            )
        await found(parts, founds.held, founds.replaces)
        return parts, parts.state.server_id

    async def _subsequent_server(self, parts: Parts, decision: Join) -> str:
        """Join at the first, or at whoever answered; returns who leads, or nothing if none can take it in now."""
        answer = decision.answer
        leader, addresses = answer.server_id, [answer.address]
        if answer.first:
            leader, first = str(answer.first["id"]), Address(str(answer.first["host"]), int(answer.first["peer"]))
            parts.book.learn(leader, first)
            addresses = [first, *(address for address in addresses if address != first)]
        waits = []
        for address in addresses:
            try:
                await join(parts, address, answer.version, self._wish.invitation)
            except JoinLater as error:
                waits.append(Answer(address=address, outcome="", error=str(error)))
            else:
                parts.embedded.start()
                return leader
        self._explain(parts, Wait(tuple(waits), ()))
        return ""

    async def _resumed_server(self, parts: Parts) -> tuple[Parts, str]:
        await parts.run_in_thread(remove_marker, parts.data.path)
        # Until the farm answers, the rows on this disk say best where the others listen.
        for prefix in (SERVERS, FARM):
            page = parts.journal.read(prefix, b"", STORED_ROWS_MAX)
            rows = list(page.rows)
            while page.more:
                # A page ends after so many bytes, and it is by their ids that servers come first.
                page = parts.journal.read(prefix, rows[-1].key, STORED_ROWS_MAX)
                rows += page.rows
            parts.roster.adopt(rows, page.revision)
        hosts = {row.id: row.host for row in parts.config.servers} | {row.id: row.host for row in parts.servers()}
        own = hosts.get(parts.state.server_id, "")
        if parts.config.server.host is None and own and is_own_address(own):
            # It joined with the address that reaches the farm, which on some machines is not that of the default route.
            parts.host = own
        await self._check_disk(parts)
        parts.embedded.start()
        return parts, ""

    async def _check_disk(self, parts: Parts) -> None:
        """Refuse a copy of a data directory that is in use, and let a server with an old one decide nothing."""
        me, here = parts.state.server_id, Address(parts.host, parts.config.server.peer.port)
        listed = [Address(row.host, row.peer) for row in parts.config.servers if row.id == me]
        rows = [server.peer_address for server in parts.servers() if server.id == me]
        addresses = [address for address in dict.fromkeys(listed + rows) if address != here]
        twin = await find_twin(parts.peers, me, parts.state.incarnation, addresses)
        if twin is not None:
            raise CannotStart(twin_sentence(me, twin, here))
        self._held_generation = int(await parts.run_in_thread(parts.journal.newest, GENERATION_KEY) or 0)
        versions = await parts.run_in_thread(self._file.versions, self._wish.overrides, self._wish.host_name)
        noted = await parts.run_in_thread(self._file.reached, me)
        reached = witness(me, parts.state.farm_id, versions, noted)
        if parts.embedded.is_member and reached > self._held_generation:
            try:
                self._withhold(parts, OLDER_THAN_CONFIG, reached)
            except sqlite3.Error as error:
                raise CannotStart(f"the table in {parts.data.path} cannot be written: {error}") from None

    def _withhold(self, parts: Parts, reason: str, reached: int) -> None:
        self._log.warn(
            "{reason} (generation {held}, and {reached} there).",
            reason=reason[0].upper() + reason[1:],
            held=self._held_generation,
            reached=reached,
        )
        parts.embedded.withhold(reason, lambda: True)

    def _compare(self, parts: Parts, told: dict[str, Any]) -> None:
        """Decide nothing if another server tells of a farm that is further than this disk, and led by one not heard."""
        table, held = parts.embedded, max(self._held_generation, parts.roster.generation)
        ahead = tells_of_newer(told, parts.state.server_id, held)
        if ahead and table.is_member and not table.leader and not table.withheld:
            self._withhold(parts, OLDER_THAN_OTHERS, told["generation"])

    async def _serve(self, begun: tuple[Parts, str]) -> Parts:
        parts, first = begun
        roster = parts.roster.start()
        if first == parts.state.server_id:
            # Who leads compares reports with the rows, so a founder must know its own before it reports.
            await roster
        parts.duties.start()
        parts.takeover.start()
        parts.history.start()
        parts.reporter.start(first)
        explaining = LoopingCall(self._explain_missing, parts, self._surroundings.machine.now())
        explaining.clock = self._surroundings.reactor
        explaining.start(EXPLAIN_INTERVAL, now=False).addErrback(
            lambda failure: self._log.failure("while explaining what is waited for", failure)
        )
        calls = self._make_calls(parts)
        calls.start()
        try:
            belongs = await parts.reporter.when_settled()
            if belongs:
                await roster
        except BaseException:
            # Nobody waits for it any more, and whoever stops the roster lets it fail.
            roster.addErrback(lambda _: None)
            raise
        finally:
            explaining.stop()
            calls.stop()
        if not belongs:
            # Its rows say all that it will ever know, unless an admin lets it go on alone.
            roster.addErrback(lambda _: None)
            parts.state.change("readonly", cures=parts.state.halted_cures)
            parts.reporter.when_belonging().addCallbacks(lambda _: self._keep_up(parts), lambda _: None)
            self._log.critical("This server only shows what it has: {reason}.", reason=parts.state.halted)
            return parts
        self._keep_up(parts)
        parts.state.change("serving")
        self._log.info(
            "Serving as {name} of farm {farm}: client port {client}, peer port {peer}, file port {files}.",
            name=parts.state.name,
            farm=parts.state.farm_id,
            client=parts.config.server.client.port,
            peer=parts.config.server.peer.port,
            files=parts.config.server.files.port,
        )
        return parts

    def _keep_up(self, parts: Parts) -> None:
        """What only a server does that belongs."""
        parts.ledger.start()
        parts.beliefs.start()
        parts.rotating.start()
        parts.renewal.start()
        parts.chunks.start()
        parts.forgetting.start()
        parts.join_file.start()

    def _make_calls(self, parts: Parts) -> Calls:
        async def addresses() -> list[Address]:
            try:
                config = await parts.run_in_thread(self._file.read, self._wish.overrides, self._wish.host_name)
            except FarmError:
                # A person is editing it.
                config = parts.config
            # Also where this server's own row says: if it has moved, somebody else may listen there now.
            listed = [Address(row.host, row.peer) for row in config.servers]
            return list(dict.fromkeys(listed + [server.peer_address for server in parts.servers()]))

        me = Candidate(stamp=parts.state.stamp, server_id=parts.state.server_id)
        own = Address(parts.host, parts.config.server.peer.port)
        asking = Asking(me=me, address=own, farm=parts.recorded_farm)
        read = lambda: Deferred.fromCoroutine(addresses())  # noqa: E731

        def told(answer: dict[str, Any]) -> None:
            self._compare(parts, answer)
            if answer["first"] is not None:
                parts.reporter.hear_of(str(answer["first"]["id"]))

        return Calls(parts.peers, asking, read, parts.book.learn, self._surroundings.reactor, told)

    def _explain_missing(self, parts: Parts, since: int) -> None:
        waits = parts.reporter.waits(since)
        answers = tuple(Answer(address=wait.address, outcome="", error=wait.error) for wait in waits)
        if answers:
            self._explain(parts, Wait(answers, parts.cures()))


@frozen
class Founds:
    """This server founds, and holds the lock under which that happens."""

    held: HeldConfig
    replaces: str
    """The farm that is given up for it, or empty."""


@frozen
class Resumes:
    """The data directory belongs to the farm: go on with it, whoever answers."""


Decided = Founds | Join | Resumes


def _step(coroutine: Callable[[Any], Coroutine[Deferred[Any], Any, Any]]) -> Callable[[Any], Deferred[Any]]:
    return lambda value: Deferred.fromCoroutine(coroutine(value))
