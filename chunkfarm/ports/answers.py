"""What this server answers on its peer port: the rules behind `ports.peer`, without a transport."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import asdict, evolve
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chunkfarm.access import Access
from chunkfarm.config_values import is_loopback
from chunkfarm.errors import AuthenticationFailed, Busy, FarmError, InvalidRequest, PreconditionFailed
from chunkfarm.invites import Invites
from chunkfarm.issuer import Issuer
from chunkfarm.links import commands
from chunkfarm.links.calling_back import CallBack, NotThere
from chunkfarm.links.interface import HAVE_DIGESTS_MAX
from chunkfarm.links.peers import PeerLink, Peers
from chunkfarm.links.twins import find_twin, twin_sentence
from chunkfarm.model import (
    BARRED,
    CA_CERTIFICATE_KEY,
    DIGEST_LENGTH,
    EPOCH_KEY,
    EXPORTS_KEY,
    FARM,
    FILES,
    JOIN_DIGEST_KEY,
    KEYS_CHANGED_KEY,
    LINES_KEY,
    ROTATION_KEY,
    SEAL_DIGEST_KEY,
    SERVERS,
    Address,
    Principal,
    Server,
    split_digests,
)
from chunkfarm.ports.callers import Callers
from chunkfarm.ports.peer import Joiner, Prober
from chunkfarm.references_link import pack_counts
from chunkfarm.risk import LostFiles
from chunkfarm.said import check_put, report_of, row_of, told
from chunkfarm.state import ServerState
from chunkfarm.table import codec
from chunkfarm.table.duties import Duties, Report, no_room_sentence
from chunkfarm.table.embedded import EmbeddedTable
from chunkfarm.table.framing import CodecError
from chunkfarm.table.interface import Put, TableError
from chunkfarm.table.registry import Forgotten, Registry
from chunkfarm.trust.authority import public_key_digest
from chunkfarm.trust.contexts import Contexts, key_digest_of
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.proof import JOINER, MEMBER, check_proof, proof
from chunkfarm.unheld import Unheld

STRANGE_VERSIONS_MAX = 256
"""Senders of versions that are not understood, of which each is told in the log once."""

REPORTS_KEPT_MAX = 4096
"""Reports that are kept to be compared with the next ones: as many as the peer port takes connections."""

OF_WHO_LEADS = frozenset(
    (CA_CERTIFICATE_KEY, EPOCH_KEY, JOIN_DIGEST_KEY, KEYS_CHANGED_KEY, LINES_KEY, ROTATION_KEY, SEAL_DIGEST_KEY)
)
"""With those of exports and of servers that were forgotten, rows that no server changes for its clients: whoever could
put another CA there, or take a bar away, could not be forgotten."""
OPEN_TO_SERVERS = (SERVERS, FARM, FILES)
"""Rows for servers that do not hold the table: keys, invites and secrets stay with those that do."""


class PeerAnswers:
    """Implements `ports.peer.PeerBackend`."""

    _log = Logger()

    def __init__(
        self,
        *,
        state: ServerState,
        contexts: Contexts,
        peers: Peers,
        table: EmbeddedTable,
        registry: Registry,
        duties: Duties,
        access: Access,
        issuer: Issuer,
        invites: Invites,
        first: Callable[[], str],
        servers: Callable[[], tuple[Server, ...]],
        learn: Callable[[str, Address], None],
        farm: Callable[[], str],
        callers: Callers,
        call_back: CallBack,
        set_table: Callable[[bytes], Deferred[int]],
        tell: Callable[[int | None], dict[str, Any]] = lambda index: {},
        generation: Callable[[], int] = lambda: 0,
        barred: Callable[[str], str] = lambda server_id: "",
        forget: Callable[[str], Deferred[Server]] | None = None,
        uses: Callable[[Sequence[bytes]], Deferred[list[int]]],
        at_risk: Callable[[str, bytes], dict[str, bytes]],
        lost_files: Callable[[], Deferred[LostFiles | None]],
        seal_key: Callable[[str], bytes | None] = lambda digest: None,
        shown: dict[str, str] | None = None,
        unheld: Callable[[], Unheld | None] = lambda: None,
    ) -> None:
        """`tell` says what this server's journal holds, and its term at an index; `uses` how many files use chunks.

        `barred` is as in the backend; `at_risk` and `lost_files` answer the commands of these names. `seal_key` gives
        the key of a digest, if it is held and the table names it; `shown` takes by which public key each server proved
        who it is. `unheld` is what the first tells of chunks that no server has.
        """
        self._unheld = unheld
        self._at_risk = at_risk
        self._count_lost_files = lost_files
        self._uses = uses
        self._seal_key = seal_key
        self._barred = barred
        self._forget_here = forget
        self._tell = tell
        self._state = state
        self._contexts = contexts
        self._peers = peers
        self._calls = call_back
        self._table = table
        self._registry = registry
        self._duties = duties
        self._access = access
        self._issuer = issuer
        self._invites = invites
        self._first = first
        self._servers = servers
        self._learn = learn
        self._farm = farm
        self._callers = callers
        self._set_table = set_table
        self._generation = generation
        self._strange: set[tuple[str, int]] = set()
        self._reports: dict[str, tuple[str, Report]] = {}
        """The last report of each server, as it came and as it was read."""
        self.shown = shown if shown is not None else {}
        """By which public keys servers have proved to this one who they are."""
        self._answered: tuple[object, str] = (None, "")
        """The last answer to a report, and what it depends on."""

    def peer_of(self, certificate: Any) -> str | None:
        server_id = self._contexts.peer_of(certificate)
        if server_id is not None:
            self.shown[server_id] = key_digest_of(certificate)
        return server_id

    def barred(self, server_id: str) -> str:
        return self._barred(server_id)

    def probe(self, prober: Prober) -> dict[str, Any]:
        if problem := commands.version_problem(prober.version):
            self._warn_of_version(prober, problem)
        shown = b""
        is_starting = self._state.phase in ("starting", "waiting")
        if is_starting and not problem:
            shown = self._callers.take(prober)
        if prober.certified == prober.server and prober.advertised is not None:
            # A server of this farm that came back on another address cannot be found by its row.
            self._learn(prober.server, prober.advertised)
        return {
            **(self._tell(prober.index) if prober.certified is not None else {}),
            # Who is older by one takes only its own version, and the newer one speaks that too.
            "version": commands.version_for(prober.version),
            "server": self._state.server_id,
            "state": self._state.phase,
            "farm": self._farm(),
            "name": self._state.name,
            "stamp": self._state.stamp,
            "incarnation": self._state.incarnation,
            "generation": self._generation(),
            "revision": self._state.revision,
            "first": self._hint(),
            "keyed": is_starting and self._callers.key is not None,
            "proof": shown.hex(),
        }

    def _warn_of_version(self, prober: Prober, problem: str) -> None:
        seen = (prober.host, prober.version)
        if seen not in self._strange and len(self._strange) < STRANGE_VERSIONS_MAX:
            self._strange.add(seen)
            self._log.warn("A server at {host} cannot be spoken with: {problem}.", host=prober.host, problem=problem)

    def _hint(self) -> dict[str, Any]:
        first = self._first()
        row = next((server for server in self._servers() if server.id == first), None)
        return {} if row is None else {"id": row.id, "host": row.host, "peer": row.peer}

    def _not_first(self) -> commands.NotFirst | commands.NotNow:
        hint = self._hint()
        if not hint or hint["id"] == self._state.server_id:
            full = self._table.disk_full
            return commands.NotNow(no_room_sentence((self._state.name,)) if full else "no server leads the farm now")
        return commands.NotFirst(json.dumps(hint))

    def _must_lead(self) -> None:
        if not self._table.is_leader:
            raise self._not_first()

    def join(self, joiner: Joiner) -> Deferred[dict[str, Any]]:
        return Deferred.fromCoroutine(self._join(joiner))

    async def _join(self, joiner: Joiner) -> dict[str, Any]:
        if self._state.phase not in ("serving", "readonly"):
            raise commands.NotNow(f"this server is {self._state.phase}")
        self._must_lead()
        if problem := commands.version_problem(joiner.version):
            self._log.warn("A server at {host} may not join: {problem}.", host=joiner.host, problem=problem)
            raise commands.JoinRefused(problem)
        if joiner.farm and joiner.farm != self._state.farm_id:
            raise commands.JoinRefused(f"it asks for farm {joiner.farm}, and this is farm {self._state.farm_id}")
        try:
            used = await self._invites.look(joiner.invite, public_key_digest(joiner.request)) if joiner.invite else None
            key = used.secret if used is not None else await self._issuer.join_key()
            if not check_proof(key, JOINER, joiner.exporter, joiner.proof):
                self._log.warn("A server at {host} tried to join with a wrong join key.", host=joiner.host)
                what = "code" if used is not None else "join key (farm.join)"
                raise commands.JoinRefused(f"its {what} is not this farm's")
            row = _row(joiner.row)
            if refused := self._barred(row.id):
                raise commands.JoinRefused(refused)
            if is_loopback(row.host) and not is_loopback(joiner.host):
                raise commands.JoinRefused(
                    f"it advertises {row.host}, which only its own machine can reach: set host in its config.ini"
                )
            await self._call_back(
                row, lambda link: key_digest_of(link.certificate()) == public_key_digest(joiner.request)
            )
            certificate, ca = await self._issuer.sign(joiner.request, row.id, row.host)
            seal = self._issuer.seal_key if row.master else b""
            joined = await self._registry.join(
                evolve(row, public_key=public_key_digest(joiner.request)),
                also=used.also if used is not None else (),
                compares=used.compares if used is not None else (),
            )
        except TrustError as error:
            self._log.warn("A server at {host} may not join: {reason}.", host=joiner.host, reason=str(error))
            raise commands.JoinRefused(str(error)) from None
        except Forgotten as error:
            self._log.warn("A server at {host} may not join: {reason}.", host=joiner.host, reason=str(error))
            raise commands.JoinRefused(str(error)) from None
        except TableError as error:
            raise commands.NotNow(str(error)) from None
        self._log.info("{name} joined at {address}.", name=joined.name, address=str(joined.peer_address))
        return {
            "proof": proof(key, MEMBER, joiner.exporter),
            "farm": self._state.farm_id,
            "certificate": certificate,
            "ca": ca,
            "seal": seal,
            "row": joined.to_value().decode(),
        }

    async def _call_back(self, row: Server, is_same: Callable[[PeerLink], bool] | None = None) -> None:
        """Check that the advertised address leads to the server that gives this row, and to no other."""
        try:
            await self._calls.call(row.peer_address, row.id, is_same)
        except NotThere as error:
            raise commands.JoinRefused(f"the address it advertises, {row.peer_address}, {error}") from None

    def renew(self, server_id: str, request: bytes) -> Deferred[dict[str, Any]]:
        return Deferred.fromCoroutine(self._renew(server_id, request))

    async def _renew(self, server_id: str, request: bytes) -> dict[str, Any]:
        self._must_lead()
        row = self._known(server_id)
        try:
            if row.public_key not in ("", public_key_digest(request)):
                raise TrustError("the request is for another key than the one by which this server is known")
            certificate, ca = await self._issuer.sign(request, row.id, row.host)
        except TrustError as error:
            raise commands.BadRequest(str(error)) from None
        except TableError as error:
            raise commands.NotNow(str(error)) from None
        return {"certificate": certificate, "ca": ca}

    def _known(self, server_id: str) -> Server:
        row = next((server for server in self._servers() if server.id == server_id), None)
        if row is None:
            raise commands.BadRequest(f"server {server_id} is not in the table of this farm")
        return row

    def report(self, server_id: str, report: str) -> str:
        self._must_lead()
        is_known = self._duties.report(server_id, self._told_by(server_id, report))
        if names := self._duties.without_room():
            raise commands.NotNow(no_room_sentence(names))
        return self._answer_to_report(is_known)

    def _told_by(self, server_id: str, text: str) -> Report:
        """What a report says. At rest a server says the same again and again, which is read once."""
        before = self._reports.get(server_id)
        if before is not None and before[0] == text:
            return before[1]
        try:
            read = report_of(_json_object(text))
        except ValueError as error:
            raise commands.BadRequest(f"this is not a report: {error}") from None
        if len(self._reports) > REPORTS_KEPT_MAX:
            self._reports.clear()
        self._reports[server_id] = (text, read)
        return read

    def _answer_to_report(self, is_known: bool) -> str:
        """Made once for all to whom it is the same."""
        table = self._table
        short, drains, risk = self._duties.short(), self._duties.drains(), self._duties.risk()
        unheld = self._unheld()
        key = (table.term, table.configuration, self._state.revision, short, drains, risk, unheld, is_known)
        if key != self._answered[0]:
            term, configuration, revision, *_ = key
            answer = {
                "term": term,
                "first": self._state.server_id,
                "voters": sorted(configuration.voters),
                "learners": sorted(configuration.learners),
                "revision": revision,
                "known": is_known,
                "risk": told(risk),
            }
            # What is left out is as it mostly is: everybody is told this every second.
            if short:
                answer["short"] = short
            if drains:
                answer["drains"] = {server: told(drain) for server, drain in drains.items()}
            if unheld is not None:
                answer["lost"] = told(unheld)
            self._answered = (key, json.dumps(answer))
        return self._answered[1]

    def put_server(self, server_id: str, row: str, key: str = "") -> Deferred[str]:
        return Deferred.fromCoroutine(self._put_server(server_id, row, key))

    async def _put_server(self, server_id: str, text: str, key: str) -> str:
        self._must_lead()
        row = evolve(_row(text), public_key=key)
        if row.id != server_id:
            raise commands.BadRequest("a server gives its own row only")
        # One without a row was down for so long that the farm has removed it by itself, and is taken in again.
        before = next((server for server in self._servers() if server.id == server_id), None)
        if before is None or before.peer_address != row.peer_address:
            # Whoever moved is called back like a joiner: one wrong address in the table would be in every config.ini.
            await self._call_back(row)
            if before is not None:
                await self._refuse_twin(before, row)
        self._learn(server_id, row.peer_address)
        try:
            return (await self._duties.put(row)).to_value().decode()
        except TableError as error:
            raise commands.NotNow(str(error)) from None

    async def _refuse_twin(self, before: Server, row: Server) -> None:
        """Of two processes that live on copies of one data directory the one that was here first stays."""
        if await find_twin(self._peers, row.id, row.incarnation, [before.peer_address]) is not None:
            self._log.warn(
                "Two processes have the server id of {name}, at {here} and at {there}; the second is refused.",
                name=before.name,
                here=str(before.peer_address),
                there=str(row.peer_address),
            )
            raise commands.JoinRefused(twin_sentence(row.id, before.peer_address, row.peer_address))

    def get_server(self, server_id: str) -> str:
        return self._known(server_id).to_value().decode()

    def transact(self, server_id: str, request: bytes) -> Deferred[bytes]:
        member = server_id in self._table.configuration.members

        def answer(told: bytes) -> Deferred[bytes]:
            if not member:
                _check_changes(told)
            return self._table.for_others.transact(told, allow_secret=member)

        return Deferred.fromCoroutine(self._asked(server_id, answer, request))

    def read(self, server_id: str, request: bytes, stale: bool = False) -> Deferred[bytes]:
        member = server_id in self._table.configuration.members

        def answer(told: bytes) -> Deferred[bytes]:
            if not member:
                _check_open([codec.decode_read(told).prefix])
            return self._table.for_others.read(told, allow_secret=member, stale=stale)

        return Deferred.fromCoroutine(self._asked(server_id, answer, request))

    async def _asked(self, server_id: str, answer: Callable[[bytes], Deferred[bytes]], request: bytes) -> bytes:
        if self._servers():
            self._known(server_id)
        try:
            return await answer(request)
        except commands.NotFirst:
            raise self._not_first() from None
        except CodecError as error:
            raise commands.BadRequest(str(error)) from None
        except TableError as error:
            raise commands.NotNow(str(error)) from None

    def referenced(self, server_id: str, digests: bytes) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self._referenced(server_id, digests))

    async def _referenced(self, server_id: str, raw: bytes) -> bytes:
        if self._servers():
            self._known(server_id)
        if len(raw) > HAVE_DIGESTS_MAX * DIGEST_LENGTH:
            raise commands.BadRequest(f"a question is about {HAVE_DIGESTS_MAX} chunks at most")
        try:
            digests = split_digests(raw)
        except InvalidRequest as error:
            raise commands.BadRequest(str(error)) from None
        if not self._table.holds_rows:
            raise self._not_first()
        try:
            return pack_counts(await self._uses(digests))
        except FarmError as error:
            raise commands.NotNow(str(error)) from None

    def at_risk(self, server_id: str, holders: str, start: bytes) -> dict[str, bytes]:
        self._known(server_id)
        try:
            return self._at_risk(holders, start)
        except ValueError as error:
            raise commands.BadRequest(str(error)) from None

    def lost_files(self, server_id: str) -> Deferred[str]:
        return Deferred.fromCoroutine(self._lost_files(server_id))

    async def _lost_files(self, server_id: str) -> str:
        self._must_lead()
        self._known(server_id)
        if (found := await self._count_lost_files()) is None:
            raise commands.NotNow("the files that can be lost have not been counted yet")
        return json.dumps(asdict(found), ensure_ascii=False)

    def get_table(self, server_id: str, request: bytes) -> Deferred[bytes]:
        def answer(told: bytes) -> Deferred[bytes]:
            if not codec.decode_read(told).prefix.startswith((SERVERS, FARM)):
                raise commands.BadRequest("only servers/ and farm/ are given out as a table")
            return self._table.for_others.read(told, allow_secret=False)

        return Deferred.fromCoroutine(self._asked(server_id, answer, request))

    def put_table(self, server_id: str, block: bytes) -> Deferred[int]:
        return Deferred.fromCoroutine(self._put_table(server_id, block))

    async def _put_table(self, server_id: str, block: bytes) -> int:
        self._known(server_id)
        try:
            return await self._set_table(block)
        except PreconditionFailed as error:
            raise commands.Conflict(str(error)) from None
        except FarmError as error:
            raise commands.BadRequest(str(error)) from None
        except TableError as error:
            raise commands.NotNow(str(error)) from None

    def consensus(self, server_id: str, payload: bytes) -> Deferred[None]:
        return self._table.for_others.receive(server_id, payload)

    def forget(self, server_id: str, target: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self._forget(server_id, target))

    async def _forget(self, server_id: str, target: str) -> None:
        self._must_lead()
        self._known(server_id)
        assert self._forget_here is not None, "who leads can forget"
        try:
            await self._forget_here(target)
        except PreconditionFailed as error:
            raise commands.Conflict(str(error)) from None
        except Busy as error:
            raise commands.NotNow(str(error)) from None
        except FarmError as error:
            raise commands.BadRequest(str(error)) from None
        except TableError as error:
            raise commands.NotNow(str(error)) from None

    def join_key(self, server_id: str) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self._join_key(server_id))

    async def _join_key(self, server_id: str) -> bytes:
        self._must_lead()
        self._known(server_id)
        try:
            return await self._issuer.join_key()
        except (TrustError, TableError) as error:
            raise commands.NotNow(str(error)) from None

    def seal_key(self, server_id: str, digest: str) -> bytes:
        if not self._known(server_id).master:
            raise commands.BadRequest("this key is for servers that may be masters")
        key = self._seal_key(digest)
        if key is None:
            raise commands.NotNow("this server does not hold the key that is asked for, or the farm does not name it")
        return key

    def authenticate(self, key: str, proof: bytes) -> Deferred[Principal | None]:
        return Deferred.fromCoroutine(self._authenticate(key, proof))

    async def _authenticate(self, key: str, proof: bytes) -> Principal | None:
        if not self._table.holds_rows or self._table.stands_still:
            raise commands.NotNow("this server holds no keys, or none that are current")
        try:
            return await self._access.check_here(key, proof)
        except AuthenticationFailed:
            return None
        except FarmError as error:
            raise commands.NotNow(str(error)) from None


def _check_changes(request: bytes) -> None:
    """Raise `BadRequest` for a transaction that is not for a server which does not hold the table."""
    decoded = codec.decode_request(request)
    if not isinstance(decoded, codec.Transaction):
        return
    _check_open(item.key for item in (*decoded.compares, *decoded.operations))
    for operation in decoded.operations:
        key = operation.key
        if key in OF_WHO_LEADS or key.startswith((BARRED, EXPORTS_KEY)):
            raise commands.BadRequest("this row is changed by those who hold the table")
        try:
            if isinstance(operation, Put):
                check_put(key, operation.value)
            elif not key.startswith(FILES):
                raise ValueError("it is taken away by who leads")
        except ValueError as error:
            raise commands.BadRequest(f"this change of a row is not taken: {error}") from None


def _check_open(keys: Iterable[bytes]) -> None:
    if not all(key.startswith(OPEN_TO_SERVERS) for key in keys):
        raise commands.BadRequest("these rows are for servers that hold the table")


def _row(text: str) -> Server:
    """A row that another server gave of itself, checked field by field."""
    try:
        return row_of(text)
    except ValueError as error:
        raise commands.BadRequest(f"this is not a row of the server table: {error}") from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise commands.BadRequest("expected a JSON object")
    return value
