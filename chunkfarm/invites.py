"""Codes with which one server each may join: made by an admin, good for a while, and used up by the join itself.

A row under `invites/` holds the sealed secret of a code. The transaction that adds the new server's row also notes in
it for which key of a server it was used: so of two that show the same code one joins, and one whose answer was lost
asks again and gets the same.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from typing import Any

from attrs import evolve, field, frozen
from twisted.internet.defer import Deferred

from chunkfarm.config import Listed
from chunkfarm.errors import InvalidRequest, Waiting
from chunkfarm.membership import masters
from chunkfarm.model import INVITES, ROTATION_KEY, ROTATION_WANTED_KEY, FarmOptions, Server
from chunkfarm.rotation import Rotation
from chunkfarm.table.interface import Compare, Delete, ITable, Operation, Put, Row, TableError
from chunkfarm.table.registry import read_all
from chunkfarm.trust.invitation import ID, SECRET_LENGTH, Invitation
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.seal import SealKey

VALID_SECONDS = 24 * 3600
"""How long a code is good unless it is said otherwise: until a new machine has been set up."""
VALID_MOST = 30 * 24 * 3600
"""No code lies around for longer than that."""
KEPT_MS = 24 * 3600 * 1000
"""A row stays for so long after its end, so that whoever shows the code late is told that it has run out."""
INVITES_MAX = 1000
"""Codes that are known at a time."""


@frozen
class Used:
    """An invitation that was shown and is good."""

    secret: bytes = field(repr=False)
    compares: tuple[Compare, ...]
    also: tuple[Operation, ...]
    """What the transaction that takes the server in must compare, and do besides."""


@frozen(kw_only=True)
class _Row:
    sealed: bytes = field(repr=False)
    expires: int
    """Milliseconds since 1970."""
    used_by: str = ""
    """Digest of the public key of the server that used it."""

    def to_value(self) -> bytes:
        item = {"sealed": base64.b64encode(self.sealed).decode(), "expires": self.expires, "used_by": self.used_by}
        return json.dumps(item, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_value(cls, value: bytes) -> _Row:
        try:
            item: dict[str, Any] = json.loads(value)
            return cls(
                sealed=base64.b64decode(item["sealed"], validate=True),
                expires=int(item["expires"]),
                used_by=str(item["used_by"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TrustError("an invitation's row in the table is damaged") from error


def sealed_secret(value: bytes) -> bytes:
    """The sealed secret in a row's value; raises `TrustError` if it is damaged."""
    return _Row.from_value(value).sealed


class Invites:
    """The rows under `invites/`. `seal` gives this server's seal key if it may have one, `now` the time in ms."""

    def __init__(
        self,
        table: ITable,
        seal: Callable[[], SealKey | None],
        now: Callable[[], int],
        servers: Callable[[], tuple[Server, ...]],
        options: Callable[[], FarmOptions],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._table = table
        self._seal = seal
        self._now = now
        self._servers = servers
        self._options = options
        self._random_bytes = random_bytes

    def make(self, seconds: float = VALID_SECONDS) -> Deferred[tuple[str, int]]:
        """A new code, and when it runs out (ms); rows of codes that are long over are cleared away.

        Fails with `InvalidRequest`, and with `Waiting` on a server that may not have the farm's secrets.
        """
        return Deferred.fromCoroutine(self._make(seconds))

    def look(self, invite_id: str, key_digest: str) -> Deferred[Used]:
        """The secret of a code that a server with this public key shows; what it proves is for the caller to check.

        Fails with `TrustError`: the code is not known, has run out, or was used by another server.
        """
        return Deferred.fromCoroutine(self._look(invite_id, key_digest))

    async def _make(self, seconds: float) -> tuple[str, int]:
        if not 1 <= seconds <= VALID_MOST:
            raise InvalidRequest(f"a code is good for 1 to {VALID_MOST} seconds, not {seconds:g}")
        seal = self._seal()
        if seal is None:
            raise Waiting("this server keeps no secrets of the farm (master = no): ask another one")
        servers = masters(self._servers())
        if not servers:
            raise Waiting("no master is known that a new server could ask")
        rows = await read_all(self._table, INVITES)
        over = [row for row in rows if _Row.from_value(row.value).expires + KEPT_MS < self._now()]
        if len(rows) - len(over) >= INVITES_MAX:
            raise InvalidRequest(f"there are {INVITES_MAX} codes already: wait until some have run out")
        invite_id, secret = self._random_bytes(8).hex(), self._random_bytes(SECRET_LENGTH)
        key = _key(invite_id)
        row = _Row(sealed=seal.seal(key.decode(), secret), expires=self._now() + round(seconds * 1000))
        cleared = tuple(Delete(one.key) for one in over[:50])
        await self._table.transact((Compare(key, "==", 0),), (Put(key, row.to_value()), *cleared))
        options = self._options()
        listed = tuple(Listed.of(server) for server in servers)
        return Invitation(invite_id, secret, options.id, options.ca, listed).to_code(), row.expires

    async def _look(self, invite_id: str, key_digest: str) -> Used:
        found = await self._row(invite_id)
        if found is None:
            raise TrustError("its code is not known: it was used long ago, or made for another farm")
        row = _Row.from_value(found.value)
        if row.used_by and row.used_by != key_digest:
            raise TrustError("its code was used by another server: each is good for one")
        if not row.used_by and row.expires < self._now():
            # Who has joined with it may still ask for the answer.
            raise TrustError("its code has run out: make another with `chunkfarm invite`")
        opening, unchanged = await self._opening()
        try:
            secret = opening.unseal(found.key.decode(), row.sealed)
        except TrustError:
            raise TrustError("its code was made before the farm changed the key of its secrets: make another") from None
        used = evolve(row, used_by=key_digest)
        return Used(secret, (Compare(found.key, "==", found.revision), *unchanged), (Put(found.key, used.to_value()),))

    async def _opening(self) -> tuple[SealKey, tuple[Compare, ...]]:
        """The key that codes must be sealed with, and what says that it still is.

        Raises `TrustError`, or `TableError` while that is about to change.

        Whoever took the key before knows the secrets of all codes that were made until then. So from when another key
        is wanted until it is there no code is good, and then none of those.
        """
        seal = self._seal()
        if seal is None:
            raise TrustError("this server has no key to open the farm's secrets (its config says master = no)")
        changed = await self._find(ROTATION_KEY)
        rotation = Rotation.from_value(changed.value) if changed is not None else None
        if await self._find(ROTATION_WANTED_KEY) is not None or (rotation is not None and rotation.step == "trusting"):
            raise TableError("the farm is about to change the key of its secrets, after which a new code is needed")
        revision = changed.revision if changed is not None else 0
        unchanged = Compare(ROTATION_WANTED_KEY, "==", 0), Compare(ROTATION_KEY, "==", revision)
        return (seal if rotation is None else seal.led_by(rotation.seal).alone()), unchanged

    async def _row(self, invite_id: str) -> Row | None:
        return await self._find(_key(invite_id)) if ID.match(invite_id) else None

    async def _find(self, key: bytes) -> Row | None:
        page = await self._table.read(key, limit=1)
        return next((row for row in page.rows if row.key == key), None)


def _key(invite_id: str) -> bytes:
    return INVITES + invite_id.encode()
