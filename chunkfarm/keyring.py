"""The keys of users: made, listed, disabled and removed, each in one transaction.

Each of them also puts `farm/keys` anew, a row without a meaning of its own: every server follows `farm/`, and drops
what it remembers of keys when that row changes.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from twisted.internet.defer import Deferred

from chunkfarm.errors import Busy, InvalidRequest, NotFound, PreconditionFailed, Waiting
from chunkfarm.model import KEYS, KEYS_CHANGED_KEY, NAME_BYTES_MAX, ROLES, begins_file_name
from chunkfarm.table.interface import Compare, Conflict, Delete, ITable, Operation, Put, Row
from chunkfarm.table.registry import read_all
from chunkfarm.trust.keys import KeyPair, KeyRow, new_key
from chunkfarm.trust.seal import SealKey

LABEL_LENGTH_MAX = 100
"""Characters that say whose a key is: a name, and what for."""
KEYS_MAX = 10_000
"""Keys of one farm. All of them are read to list them, or to see whether an admin remains."""
TRIES_MAX = 10
"""A change that loses the race against others this often gives up."""


class Keyring:
    """The rows under `keys/`. `seal` gives this server's seal key if it may have one, `now` the time in ms."""

    def __init__(self, table: ITable, seal: Callable[[], SealKey | None], now: Callable[[], int]) -> None:
        self._table = table
        self._seal = seal
        self._now = now

    def add(self, role: str, prefix: str = "", label: str = "") -> Deferred[KeyPair]:
        """A new key, whose secret is told here and nowhere else.

        `prefix` is what the names of all files begin with that it is good for. Fails with `InvalidRequest`, and with
        `Waiting` on a server that may not have the farm's secrets.
        """
        return Deferred.fromCoroutine(self._add(role, prefix, label))

    def keys(self) -> Deferred[list[KeyRow]]:
        """All keys, by id."""
        return Deferred.fromCoroutine(self._keys())

    def enable(self, key_id: str, enabled: bool) -> Deferred[KeyRow]:
        """Have a key be good again, or not; fails with `NotFound`, or `PreconditionFailed` for the last admin's."""

        def change(row: KeyRow) -> KeyRow:
            return evolve(row, disabled=not enabled)

        return Deferred.fromCoroutine(self._change(key_id, change))

    def remove(self, key_id: str) -> Deferred[KeyRow]:
        """Take a key away for good; fails as `enable` does. Fires with what it was."""
        return Deferred.fromCoroutine(self._change(key_id, lambda row: None))

    async def _add(self, role: str, prefix: str, label: str) -> KeyPair:
        check_key(role, prefix, label)
        seal = self._seal()
        if seal is None:
            raise Waiting("this server keeps no secrets of the farm (master = no): ask another one")
        if len(await self._keys()) >= KEYS_MAX:
            raise InvalidRequest(f"a farm has at most {KEYS_MAX} keys: remove some")
        row, secret = new_key(role, created=self._now(), prefix=prefix, label=label, seal=seal)
        await self._table.transact((Compare(row.key, "==", 0),), (Put(row.key, row.to_value()), self._mark(row)))
        return KeyPair(row.id, secret)

    async def _keys(self) -> list[KeyRow]:
        return [row for row, _ in await self._rows()]

    async def _rows(self) -> list[tuple[KeyRow, Row]]:
        return [(KeyRow.from_value(row.value), row) for row in await read_all(self._table, KEYS)]

    async def _change(self, key_id: str, change: Callable[[KeyRow], KeyRow | None]) -> KeyRow:
        for _ in range(TRIES_MAX):
            rows = await self._rows()
            found = next((pair for pair in rows if pair[0].id == key_id), None)
            if found is None:
                raise NotFound(f"there is no key {key_id[:80]}")
            before, row = found
            after = change(before)
            admins = [one for one, _ in rows if one.role == "admin" and not one.disabled and one.id != key_id]
            if not admins and before.role == "admin" and not before.disabled and (after is None or after.disabled):
                raise PreconditionFailed("this is the last key of an admin that is good: make another one first")
            operation: Operation = Delete(row.key) if after is None else Put(row.key, after.to_value())
            # Two admins who disable each other at once must not both get their way.
            compares = (Compare(row.key, "==", row.revision), *self._still(rows, admins))
            try:
                await self._table.transact(compares, (operation, self._mark(before)))
            except Conflict:
                continue
            return after if after is not None else before
        raise Busy("the keys change all the time; try again")

    def _still(self, rows: list[tuple[KeyRow, Row]], admins: list[KeyRow]) -> tuple[Compare, ...]:
        """What must hold so that one of these admins remains: one of them is as it was."""
        first = next((row for one, row in rows if admins and one.id == admins[0].id), None)
        return () if first is None else (Compare(first.key, "==", first.revision),)

    def _mark(self, row: KeyRow) -> Put:
        return Put(KEYS_CHANGED_KEY, row.id.encode())


def check_key(role: str, prefix: str, label: str) -> None:
    """Raise `InvalidRequest` for what no key can have."""
    if role not in ROLES:
        raise InvalidRequest(f"a key has the role {', '.join(ROLES[:-1])} or {ROLES[-1]}, not {role[:40]!r}")
    if role == "admin" and prefix:
        raise InvalidRequest("an admin's key is good for all files: only read and write go with a prefix")
    try:
        long = len(prefix.encode()) > NAME_BYTES_MAX
    except UnicodeEncodeError:
        raise InvalidRequest("a prefix is text in UTF-8") from None
    if long or prefix.startswith(("/", "-")):
        raise InvalidRequest(f"a prefix begins a file's name (bucket/path), and has at most {NAME_BYTES_MAX} bytes")
    if not begins_file_name(prefix):
        raise InvalidRequest(f"no file has a name that begins with {prefix!r}: expected the beginning of bucket/path")
    if len(label) > LABEL_LENGTH_MAX or not label.isprintable():
        raise InvalidRequest(f"a label has at most {LABEL_LENGTH_MAX} characters that can be printed")
