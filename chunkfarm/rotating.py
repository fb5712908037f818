"""The first changes the farm's CA, its seal key and its join key, step by step (see `rotation`).

Each step is one transaction that compares the row of the step before, so it does not matter which first makes it, or
whether one that has just been deposed thinks it still may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.errors import FarmError
from chunkfarm.issuer import CA_KEY, JOIN_KEY, NEXT_CA_KEY, Issuer
from chunkfarm.model import (
    CA_CERTIFICATE_KEY,
    INVITES,
    JOIN_DIGEST_KEY,
    KEYS,
    ROTATION_KEY,
    ROTATION_WANTED_KEY,
    SEAL_DIGEST_KEY,
    SECRET,
    Server,
)
from chunkfarm.rotation import INTRODUCED_MS, Rotation, Told, held_up_by, introductions, unaware, without_key
from chunkfarm.sealed_rows import sealed_anew
from chunkfarm.table.interface import Compare, Conflict, Delete, ITable, Operation, Put, Row, TableError
from chunkfarm.table.registry import Change, Registered, Registry, read_all
from chunkfarm.trust.authority import Authority
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.proof import digest_of_key, make_join_key
from chunkfarm.trust.seal import SealKey

ROUND_SECONDS = 1.0
"""As often as servers report."""
SEALED_A_TRANSACTION = 40
"""Rows sealed anew in one transaction, which takes 64 operations and 48 KiB: a row has some 400 bytes."""
KEYS_NOTED_A_ROUND = 50
"""Rows of servers to which their key is added in one transaction."""


class Rotating:
    """Runs on every server, and does something on the one that leads.

    `row` gives a row under `farm/` as this server knows it, `seal` the seal keys that it holds, `hold` keeps another
    one durably, `told` what the servers that are there reported last, `shown` by which public keys they proved who they
    are to this server.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        farm_id: Callable[[], str],
        table: ITable,
        registry: Registry,
        issuer: Issuer,
        row: Callable[[bytes], Row | None],
        seal: Callable[[], SealKey | None],
        hold: Callable[[bytes], Deferred[None]],
        servers: Callable[[], tuple[Server, ...]],
        told: Callable[[], Mapping[str, Told]],
        shown: Callable[[], Mapping[str, str]],
        leads: Callable[[], bool],
        clock: IReactorTime,
        now: Callable[[], int],
        run_in_thread: RunInThread,
    ) -> None:
        self._farm_id = farm_id
        self._table = table
        self._registry = registry
        self._issuer = issuer
        self._row = row
        self._seal = seal
        self._hold = hold
        self._servers = servers
        self._told = told
        self._shown = shown
        self._leads = leads
        self._clock = clock
        self._now = now
        self._run_in_thread = run_in_thread
        self._loop: LoopingCall | None = None
        self._busy: Deferred[None] | None = None
        self._sealed: Rotation | None = None
        """The rotation in which all rows were found to be sealed anew."""
        self.waits_for: tuple[str, ...] = ()
        """Names of the servers without which it cannot go on, on the server that leads."""
        self.problem = ""
        """Why the last round could do nothing."""

    def start(self) -> None:
        """Begin the rounds."""
        self._loop = LoopingCall(self._round)
        self._loop.clock = self._clock
        self._loop.start(ROUND_SECONDS, now=False)

    def stop(self) -> Deferred[None]:
        """End them; fires when nothing is under way any more."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        busy, self._busy = self._busy, None
        if busy is None:
            return succeed(None)
        busy.cancel()
        return busy

    def want(self, because: str) -> Deferred[None]:
        """Have the CA changed; fires when that is committed, and whoever leads begins. May be said on any server."""
        put: Deferred[int] = self._table.transact((), (wanted(because),))
        return put.addCallback(lambda _: None)

    @property
    def rotation(self) -> Rotation | None:
        """How far it is, or was the last time, as far as this server knows; raises `TrustError`."""
        row = self._row(ROTATION_KEY)
        return Rotation.from_value(row.value) if row is not None else None

    def _round(self) -> None:
        if not self._leads():
            self.waits_for, self.problem = (), ""
            return
        if self._busy is None:
            busy = Deferred.fromCoroutine(self._work())
            if not busy.called:
                self._busy = busy
            busy.addCallbacks(self._went, self._failed).addCallback(self._rest)

    def _rest(self, _: object) -> None:
        self._busy = None

    def _went(self, _: None) -> None:
        self.problem = ""

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if not failure.check(TableError, FarmError):
            self._log.failure("while changing the farm's CA", failure)
        elif not failure.check(Conflict) and str(failure.value) != self.problem:
            self.problem = str(failure.value)
            self._log.warn("The farm's CA cannot be changed yet: {reason}", reason=self.problem)

    async def _work(self) -> None:
        await self._note_keys()
        row, wanted_row = self._row(ROTATION_KEY), self._row(ROTATION_WANTED_KEY)
        rotation = Rotation.from_value(row.value) if row is not None else None
        holds = rotation is not None and self._holds(rotation)
        self.waits_for = ()
        if wanted_row is not None and not (rotation is not None and rotation.step == "renewing" and holds):
            await self._begin(row, wanted_row)
        elif rotation is None or row is None or rotation.step == "over":
            return
        elif rotation.step == "trusting":
            await (self._renew(rotation, row) if holds else self._begin(row, None))
        elif rotation.step == "renewing":
            await self._seal_rows(rotation)
            await self._finish(rotation, row)
        elif self._now() - rotation.since >= INTRODUCED_MS:
            await self._commit(row, (self._reached(rotation, "over"),))
            self._log.info("Clients that know only the CA before this one are not served any more.")

    def _holds(self, rotation: Rotation) -> bool:
        seal = self._seal()
        return seal is not None and seal.key_of(rotation.seal) is not None

    async def _note_keys(self) -> None:
        """Write into rows by which keys their servers prove who they are, where that is not known yet."""
        shown = self._shown()
        keys = {server.id: shown[server.id] for server in without_key(self._servers()) if server.id in shown}
        if keys:
            some = list(keys.items())[:KEYS_NOTED_A_ROUND]
            await self._registry.measure({id: {"public_key": key} for id, key in some})

    def _is_held_up(self, servers: tuple[Server, ...]) -> bool:
        self.waits_for = tuple(dict.fromkeys(server.name for server in servers))
        return bool(servers)

    async def _commit(self, row: Row | None, operations: tuple[Operation, ...], *also: Compare) -> None:
        await self._table.transact((Compare(ROTATION_KEY, "==", 0 if row is None else row.revision), *also), operations)

    def _reached(self, rotation: Rotation, step: str) -> Put:
        return Put(ROTATION_KEY, evolve(rotation, step=step, since=self._now()).to_value())

    async def _begin(self, row: Row | None, wanted_row: Row | None) -> None:
        """Make the next CA and the next seal key; nothing is signed or sealed with them yet but the CA's own key."""
        servers = self._servers()
        if self._is_held_up((*without_key(servers), *unaware(servers, self._told()))):
            return
        now_row = self._row(CA_CERTIFICATE_KEY)
        if now_row is None:
            raise TrustError("the farm's CA is not known here yet")
        authority = await self._run_in_thread(Authority.create, self._farm_id(), self._now())
        try:
            old = await self._issuer.authority()
            introduction = await self._run_in_thread(old.introduce, authority.certificate)
        except TrustError as error:
            introduction = b""
            self._log.warn("The next CA cannot be introduced by the one before: {reason}", reason=str(error))
        known = Rotation.from_value(row.value).introduction_of(now_row.value.decode()) if row is not None else ""
        # Not before all else has been read: of too many keys the oldest goes, and old exports may be sealed with it.
        next_seal = SealKey.create()
        await self._hold(next_seal.material)
        rotation = Rotation(
            step="trusting",
            ca=authority.certificate_pem.decode(),
            old=now_row.value.decode(),
            introduction=introductions(introduction, known),
            seal=next_seal.digest,
            since=self._now(),
        )
        operations: list[Operation] = [
            Put(ROTATION_KEY, rotation.to_value()),
            Put(NEXT_CA_KEY, next_seal.seal(NEXT_CA_KEY.decode(), authority.key_pem)),
        ]
        compares = [Compare(CA_CERTIFICATE_KEY, "==", now_row.revision)]
        if wanted_row is not None:
            compares.append(Compare(ROTATION_WANTED_KEY, "==", wanted_row.revision))
            operations.append(Delete(ROTATION_WANTED_KEY))
        await self._commit(row, tuple(operations), *compares)
        self._log.warn("The farm's CA is being changed to {ca}.", ca=rotation.fingerprint)

    async def _renew(self, rotation: Rotation, row: Row) -> None:
        """Everybody who is there believes the next CA, and who may be a master can open its key: it signs from now."""
        seal = self._seal()
        assert seal is not None
        if self._is_held_up(held_up_by(rotation, self._servers(), self._told())):
            return
        new = seal.led_by(rotation.seal)
        key = new.unseal(NEXT_CA_KEY.decode(), await self._value(NEXT_CA_KEY))
        join_key = make_join_key()
        await self._commit(
            row,
            (
                self._reached(rotation, "renewing"),
                Put(CA_CERTIFICATE_KEY, rotation.ca.encode()),
                Put(CA_KEY, new.seal(CA_KEY.decode(), key)),
                Delete(NEXT_CA_KEY),
                Put(SEAL_DIGEST_KEY, rotation.seal.encode()),
                Put(JOIN_KEY, new.seal(JOIN_KEY.decode(), join_key)),
                Put(JOIN_DIGEST_KEY, digest_of_key(join_key).encode()),
            ),
        )
        self._log.info("The next CA signs from now on; each server asks it for a certificate.")

    async def _seal_rows(self, rotation: Rotation) -> None:
        """Seal with the new key what the one before sealed; codes that were made before are good no more."""
        seal = self._seal()
        if seal is None or self._sealed == rotation:
            return
        seal = seal.led_by(rotation.seal)
        rows = [row for prefix in (SECRET, KEYS, INVITES) for row in await read_all(self._table, prefix)]
        changes = [change for change in (sealed_anew(one, seal) for one in rows) if change is not None]
        for start in range(0, len(changes), SEALED_A_TRANSACTION):
            some = changes[start : start + SEALED_A_TRANSACTION]
            await self._table.transact(tuple(one.compare for one in some), tuple(one.operation for one in some))
        if not changes:
            self._sealed = rotation

    async def _finish(self, rotation: Rotation, row: Row) -> None:
        if self._is_held_up(held_up_by(rotation, self._servers(), self._told())):
            return
        # Once more: a master that had not heard of this step may have sealed something meanwhile.
        self._sealed = None
        await self._seal_rows(rotation)
        if self._sealed != rotation:
            return

        def decide(before: Registered) -> Change:
            return Change(
                options=evolve(before.options, ca=rotation.fingerprint),
                also=(self._reached(rotation, "done"),),
                compares=(Compare(ROTATION_KEY, "==", row.revision),),
            )

        await self._registry.edit(decide)
        self._log.warn("The farm's CA is {ca} now.", ca=rotation.fingerprint)

    async def _value(self, key: bytes) -> bytes:
        page = await self._table.read(key, limit=1)
        for row in page.rows:
            if row.key == key:
                return row.value
        raise TrustError(f"the table has no row {key.decode()}")


def wanted(because: str) -> Put:
    """The operation by which the CA is changed, whoever leads next."""
    return Put(ROTATION_WANTED_KEY, because.encode())
