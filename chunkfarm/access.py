"""Who may do what: a key id and a secret become a principal.

Servers that hold the table's rows look the key up themselves; the others ask one that does, and remember a
yes for a minute, or until a key changes. The secret itself never leaves this process: what is
asked with is its SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from chunkfarm.errors import AuthenticationFailed, Waiting
from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed, Peers
from chunkfarm.model import KEYS, ROLES, Principal, Server
from chunkfarm.table.interface import ITable, TableError
from chunkfarm.trust.keys import KeyRow, check, is_key_id, secret_digest

REMEMBER_SECONDS = 60.0
"""How long a good key is remembered by a server that has not heard yet that it was disabled."""
REMEMBER_MAX = 4096
"""Good keys remembered at once, so that a flood of them fills no memory."""

REFUSAL = "the key is not known or the secret is wrong"
"""One sentence for every failure: it must not tell which of the two it was."""


class Access:
    """Authenticates keys for all ports of one server. `revision` is that of the last change of any key.

    Rows that stand still do not hear of keys that were taken away, so others are asked as long as one of them answers.
    """

    def __init__(
        self,
        table: ITable,
        holds_rows: Callable[[], bool],
        peers: Peers,
        masters: Callable[[], tuple[Server, ...]],
        clock: IReactorTime,
        revision: Callable[[], int] = lambda: 0,
        stands_still: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stands_still = stands_still
        self._table = table
        self._holds_rows = holds_rows
        self._peers = peers
        self._masters = masters
        self._clock = clock
        self._revision = revision
        self._remembered: dict[tuple[str, bytes], tuple[float, int, Principal]] = {}

    def authenticate(self, key_id: str, secret: str) -> Deferred[Principal]:
        """Fails with `AuthenticationFailed`, or with `Waiting` when nobody who holds keys can be asked."""
        return self.check(key_id, secret_digest(secret))

    def check(self, key_id: str, proof: bytes) -> Deferred[Principal]:
        """Whose key it is, given the SHA-256 of its secret; fails as `authenticate` does."""
        return Deferred.fromCoroutine(self._check(key_id, proof))

    async def _check(self, key_id: str, proof: bytes) -> Principal:
        holds_rows = self._holds_rows()
        if holds_rows and not self._stands_still():
            return await self.check_here(key_id, proof)
        _refuse_unfit(key_id)
        now, revision = self._clock.seconds(), self._revision()
        known = self._remembered.get((key_id, proof))
        if known is not None and now < known[0] and known[1] == revision:
            return known[2]
        try:
            principal = await self._ask(key_id, proof)
        except Waiting:
            if not holds_rows:
                raise
            return await self.check_here(key_id, proof)
        if len(self._remembered) >= REMEMBER_MAX:
            self._remembered.clear()
        # The revision of before: a key that changed while it was asked about is asked about again.
        self._remembered[(key_id, proof)] = (now + REMEMBER_SECONDS, revision, principal)
        return principal

    async def check_here(self, key_id: str, proof: bytes) -> Principal:
        """Whose key it is, looked up in the rows that this server holds."""
        _refuse_unfit(key_id)
        try:
            key = KEYS + key_id.encode()
            page = await self._table.find(key, stale=True)
        except (TableError, UnicodeEncodeError):
            raise Waiting("the table with the keys cannot be read now") from None
        if not page.rows:
            raise AuthenticationFailed(REFUSAL)
        known = KeyRow.from_value(page.rows[0].value)
        if not check(known, proof):
            raise AuthenticationFailed(REFUSAL)
        return known.principal

    async def _ask(self, key_id: str, proof: bytes) -> Principal:
        problem = "no master is known"
        for server in self._masters():
            try:
                box = await self._peers.call(server.id, commands.Authenticate, key=key_id, proof=proof)
            except CancelledError:
                raise
            except (LinkFailed, commands.NotNow, commands.NotFirst) as error:
                problem = f"{server.name}: {error}"
                continue
            except commands.BadRequest:
                raise AuthenticationFailed(REFUSAL) from None
            if box["role"] not in ROLES:
                raise AuthenticationFailed(REFUSAL)
            return Principal(key_id, str(box["role"]), str(box.get("prefix") or ""))
        raise Waiting(f"no master answers for the keys now ({problem})")


def _refuse_unfit(key_id: str) -> None:
    """Raise `AuthenticationFailed` for an id that no key has: the table, or a message, may not even take it."""
    if not is_key_id(key_id):
        raise AuthenticationFailed(REFUSAL)
