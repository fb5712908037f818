"""What other servers ask of the table here: messages of the consensus, and what they send on to the leader."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from chunkfarm.errors import FarmError
from chunkfarm.links.commands import BadRequest, NotFirst, NotNow
from chunkfarm.model import SECRET
from chunkfarm.table.codec import (
    REQUEST_BYTES_MAX,
    Transaction,
    check_transaction,
    decode_consensus,
    decode_read,
    decode_request,
    encode_answer,
    encode_page,
    is_snapshot_page,
)
from chunkfarm.table.consensus import Dropped, NotLeader
from chunkfarm.table.driver import Driver, Lost
from chunkfarm.table.framing import CodecError
from chunkfarm.table.interface import READ_LIMIT_MAX, TableError
from chunkfarm.table.objections import objection
from chunkfarm.table.own_rows import OwnRows
from chunkfarm.table.records import Message, MessageKind

ANSWER_PATIENCE = 8.0
"""Seconds for what another server sent on: it gives up after 10 (`over_peers`), and should hear why before that."""
SHOWN_MAX = 60
"""Characters of a name in the log that a peer has made up."""

T = TypeVar("T")


class Standing(Protocol):
    """What this server is in the consensus now."""

    @property
    def is_leader(self) -> bool: ...

    @property
    def leader(self) -> str: ...

    @property
    def has_quorum(self) -> bool: ...

    @property
    def holds_rows(self) -> bool: ...


class ForOthers:
    """The table's answers to other servers. `observe` sees each message before the core takes it (`EmbeddedTable`)."""

    _log = Logger()

    def __init__(
        self,
        standing: Standing,
        driver: Driver,
        rows: OwnRows,
        clock: IReactorTime,
        observe: Callable[[Message, int, int], None],
    ) -> None:
        self._standing = standing
        self._driver = driver
        self._rows = rows
        self._clock = clock
        self._observe = observe

    def receive(self, sender: str, payload: bytes) -> Deferred[None]:
        """Take a payload of `Consensus`. `sender` is the server that the certificate of the link names.

        A message of the core never fails (what is wrong with it is logged, and it is lost). A page of a
        snapshot fires when it is written, and fails with `BadRequest` or `NotNow`.
        """
        if is_snapshot_page(payload):
            return self._driver.receive_page(sender, payload)
        try:
            message = decode_consensus(payload)
        except CodecError as error:
            self._log.warn("A message of {sender} makes no sense: {error}", sender=sender, error=error)
            return succeed(None)
        assert isinstance(message, Message)
        if message.sender != sender or message.to != self._driver.id or message.kind is MessageKind.SNAPSHOT:
            # What it says instead may be anything, and does not belong into a line of the log as it stands.
            self._log.warn(
                "A message from {claimed!r} to {to!r} came from {sender}, and is ignored.",
                claimed=message.sender[:SHOWN_MAX],
                to=message.to[:SHOWN_MAX],
                sender=sender,
            )
            return succeed(None)
        core = self._driver.core
        why = objection(message, core.term)
        if why:
            self._log.warn("A message of {sender} makes no sense: {why}.", sender=sender, why=why)
            return succeed(None)
        self._observe(message, core.term, core.answers)
        self._driver.step(message)
        return succeed(None)

    def transact(self, request: bytes, *, allow_secret: bool = False) -> Deferred[bytes]:
        """Do what another server sent on. Fails with `NotFirst` (text: `{"id": ...}`), `NotNow` or `BadRequest`.

        Without `allow_secret` a transaction that touches `secret/` is a `BadRequest`.
        """
        return Deferred.fromCoroutine(self._transact(request, allow_secret))

    async def _transact(self, request: bytes, allow_secret: bool) -> bytes:
        self._must_lead()
        try:
            decoded = decode_request(request)
            if isinstance(decoded, Transaction):
                check_transaction(decoded.compares, decoded.operations)
        except (CodecError, FarmError) as error:
            raise BadRequest(str(error)) from error
        if len(request) > REQUEST_BYTES_MAX:
            raise BadRequest("the transaction is too large")
        if isinstance(decoded, Transaction) and not allow_secret:
            keys = (item.key for item in (*decoded.compares, *decoded.operations))
            if any(key.startswith(SECRET) for key in keys):
                raise BadRequest("secret rows are for masters alone")
        answer = await self._for_another(self._driver.propose(request))
        return encode_answer(answer)

    def read(self, request: bytes, *, allow_secret: bool = False, stale: bool = False) -> Deferred[bytes]:
        """Read for another server, linearizably, or `stale` from the rows here; failures as in `transact`.

        Without `allow_secret` a read of `secret/` is a `BadRequest`, and a wider one leaves those rows out.
        """
        return Deferred.fromCoroutine(self._read(request, allow_secret, stale))

    async def _read(self, request: bytes, allow_secret: bool, stale: bool) -> bytes:
        if not stale:
            self._must_lead()
        elif not self._standing.holds_rows:
            raise NotNow("this server holds no rows")
        try:
            decoded = decode_read(request)
        except CodecError as error:
            raise BadRequest(str(error)) from error
        if decoded.limit > READ_LIMIT_MAX:
            raise BadRequest(f"a read asks for at most {READ_LIMIT_MAX} rows")
        if decoded.prefix.startswith(SECRET) and not allow_secret:
            raise BadRequest("secret rows are for masters alone")
        read = self._rows.read if stale else self._rows.read_current
        return encode_page(await self._for_another(Deferred.fromCoroutine(read(decoded, allow_secret))))

    def _must_lead(self) -> None:
        if self._driver.stopped:
            raise NotNow("this server is stopping")
        if not self._standing.is_leader:
            raise self._not_first()
        if not self._standing.has_quorum:
            raise NotNow("the first of the farm hears no majority of the masters")

    def _not_first(self) -> NotFirst:
        leader = self._standing.leader
        return NotFirst(json.dumps({"id": leader} if leader and leader != self._driver.id else {}))

    async def _for_another(self, work: Deferred[T]) -> T:
        """Turn what can go wrong here into what the peer port may say."""
        try:
            return await work.addTimeout(ANSWER_PATIENCE, self._clock)
        except (NotLeader, Lost):
            raise self._not_first() from None
        except Dropped as error:
            raise NotNow(str(error)) from None
        except TimeoutError:
            raise NotNow("no majority of the masters answered in time") from None
        except TableError as error:
            raise NotNow(str(error)) from None
