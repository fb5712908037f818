"""The transactions that change server rows and farm options.

Each is a compare-and-put: read, decide, commit only if nothing it looked at has changed, else look again.
A change that `config.ini` shows raises the generation in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import evolve, field, frozen
from twisted.internet.defer import Deferred, DeferredLock

from chunkfarm.errors import LimitExceeded, NotFound, PreconditionFailed
from chunkfarm.membership import in_order
from chunkfarm.model import BARRED, FARM, GENERATION_KEY, OPTIONS_KEY, SERVERS, FarmOptions, Server
from chunkfarm.table.interface import (
    OPERATIONS_MAX,
    TRANSACTION_BYTES_MAX,
    Compare,
    Conflict,
    Delete,
    ITable,
    Operation,
    Put,
    Row,
    TableError,
    Unavailable,
)

ATTEMPTS_MAX = 50
"""Conflicts in a row before giving up: each one means that somebody else's change was made, so this is generous."""
ROWS_A_TRANSACTION = OPERATIONS_MAX - 4
"""Server rows that fit a transaction beside the generation and the options."""
ROW_BYTES_A_TRANSACTION = TRANSACTION_BYTES_MAX - 4096
"""Bytes of them: the rest is for the generation, the options and what is compared."""


def shown(server: Server) -> tuple[Any, ...]:
    """What `config.ini` shows of a server; a change of it raises the generation."""
    return (
        server.id,
        server.name,
        server.joined,
        server.seniority,
        server.host,
        server.client,
        server.peer,
        server.files,
        server.state,
    )


class Forgotten(TableError):
    """A server that was taken out of the farm for good wants to join."""


@frozen
class Registered:
    """The server rows and farm options as read at one moment."""

    servers: dict[str, Server]
    revisions: dict[str, int]
    options: FarmOptions
    options_revision: int
    generation: int
    generation_revision: int
    revision: int = 0
    """Of the table, when the server rows were read."""
    barred: frozenset[str] = frozenset()
    """Ids of servers that were forgotten."""
    barred_keys: frozenset[str] = frozenset()
    """Digests of their public keys, by which they are known under other ids too."""

    @property
    def last_joined(self) -> int:
        return max((server.joined for server in self.servers.values()), default=0)


@frozen(kw_only=True)
class Change:
    """What a transaction is to do. A put server with `seniority == 0` joins at the end of the line."""

    put: tuple[Server, ...] = ()
    delete: tuple[str, ...] = ()
    options: FarmOptions | None = None
    also: tuple[Operation, ...] = ()
    compares: tuple[Compare, ...] = ()
    result: Any = field(default=None)


def read_all(table: ITable, prefix: bytes) -> Deferred[list[Row]]:
    """All rows under a prefix, page by page; only for prefixes that stay small."""

    return Deferred.fromCoroutine(_pages(table, prefix)).addCallback(lambda read: read[0])


async def _pages(table: ITable, prefix: bytes) -> tuple[list[Row], int]:
    """The rows, and the revision of the first page."""
    rows: list[Row] = []
    after = b""
    revision: int | None = None
    while True:
        page = await table.read(prefix, after)
        rows.extend(page.rows)
        revision = page.revision if revision is None else revision
        if not page.more:
            return rows, revision
        after = page.rows[-1].key


class Registry:
    """Changes of server rows and farm options, each one transaction."""

    def __init__(self, table: ITable, now: Callable[[], int]) -> None:
        self._table = table
        self._now = now
        # Changes made by one server take turns, so that only different servers can conflict.
        self._turn = DeferredLock()

    def now(self) -> int:
        """Milliseconds since 1970, by which rows say since when."""
        return self._now()

    def read(self) -> Deferred[Registered]:
        """The rows as they are now, linearizable."""
        return Deferred.fromCoroutine(self._read())

    async def _read(self) -> Registered:
        servers, revisions = {}, {}
        rows, revision = await _pages(self._table, SERVERS)
        for row in rows:
            server = Server.from_value(row.value, row.revision)
            servers[server.id] = server
            revisions[server.id] = row.revision
        farm = {row.key: row for row in await read_all(self._table, FARM)}
        options, generation = farm.get(OPTIONS_KEY), farm.get(GENERATION_KEY)
        return Registered(
            servers,
            revisions,
            FarmOptions.from_value(options.value) if options else FarmOptions(),
            options.revision if options else 0,
            int(generation.value) if generation else 0,
            generation.revision if generation else 0,
            revision,
            frozenset(key[len(BARRED) :].decode() for key in farm if key.startswith(BARRED)),
            frozenset(filter(None, (barred_key(row.value) for key, row in farm.items() if key.startswith(BARRED)))),
        )

    def edit(self, decide: Callable[[Registered], Change | None]) -> Deferred[Any]:
        """Read, let `decide` say what to change (None: nothing), commit; again on a conflict.

        Fires with the change's `result`. `decide` may be called several times and must not have effects. Fails with
        `Conflict` if it goes on to compare a row with what that is not any more.
        """
        return self._turn.run(lambda: Deferred.fromCoroutine(self._edit(decide)))

    async def _edit(self, decide: Callable[[Registered], Change | None]) -> Any:
        conflict, broken = Conflict(()), set[Compare]()
        for _ in range(ATTEMPTS_MAX):
            before = await self._read()
            change = decide(before)
            if change is None:
                return None
            if broken.intersection(change.compares):
                raise conflict
            compares, operations = _transaction(before, change)
            if not operations:
                return change.result
            try:
                revision = await self._table.transact(compares, operations)
            except Conflict as error:
                conflict, broken = error, _broken(change.compares, error)
                continue
            result = change.result
            if isinstance(result, Server) and result.seniority == 0:
                result = evolve(result, seniority=revision)
            return result
        raise Unavailable("too many changes of the server table at once")

    def found(self, server: Server, options: FarmOptions, also: tuple[Operation, ...]) -> Deferred[Server]:
        """The first transaction of a farm: its options, its first server and its secrets."""

        def decide(before: Registered) -> Change:
            joined = evolve(server, joined=self._now(), since=self._now(), seniority=0, state="up")
            return Change(put=(joined,), options=options, also=also, result=joined)

        return self.edit(decide)

    def join(
        self, server: Server, *, also: tuple[Operation, ...] = (), compares: tuple[Compare, ...] = ()
    ) -> Deferred[Server]:
        """Put a server at the end of the line.

        A known id keeps its name, and is emptied on if it was; whatever else a person set in its row is left to the
        new row's owner. A new id on the host and peer port of a row that is down replaces that row. A known one that
        has moved there does not: where two disks have changed places, the other server is where this one was.
        """

        def decide(before: Registered) -> Change:
            if server.id in before.barred or server.public_key in before.barred_keys:
                raise Forgotten(forgotten_sentence(server.id))
            old = before.servers.get(server.id)
            moved = old is not None and old.peer_address != server.peer_address
            replaced = tuple(
                other.id
                for other in before.servers.values()
                if not moved
                and other.id != server.id
                and other.state == "down"
                and other.host == server.host
                and other.peer == server.peer
            )
            taken = {
                other.name for other in before.servers.values() if other.id != server.id and other.id not in replaced
            }
            moment = max(self._now(), before.last_joined)
            joined = _live(
                evolve(
                    server,
                    name=old.name if old is not None else _free_name(server.name, taken),
                    joined=moment,
                    since=moment,
                    seniority=0,
                    draining=old is not None and old.draining,
                    **_kept_of(old, server),
                )
            )
            return Change(put=(joined,), delete=replaced, also=also, compares=compares, result=joined)

        return self.edit(decide)

    def forget(
        self,
        server: str,
        objection: Callable[[Server], str],
        *,
        bar: bool,
        also: Callable[[Server], tuple[Operation, ...]] = lambda row: (),
    ) -> Deferred[Server]:
        """Remove a row, by id or name, unless `objection` has a sentence; with `bar` that server never comes back.

        `also` says what else is done in the same transaction.

        Fires with the row that it was. Fails with `NotFound` or `PreconditionFailed`.
        """

        def decide(before: Registered) -> Change:
            row = before.servers.get(server) or next(
                (other for other in before.servers.values() if other.name == server), None
            )
            if row is None:
                raise NotFound(f"there is no server {server!r}")
            if why := objection(row):
                raise PreconditionFailed(why)
            barring: tuple[Operation, ...] = ()
            if bar:
                # By its key it is known when it comes back, and told why it may not.
                told = {"name": row.name, "since": self._now(), "key": row.public_key}
                barring = (Put(BARRED + row.id.encode(), json.dumps(told).encode()),)
            return Change(delete=(row.id,), also=(*barring, *also(row)), result=row)

        return self.edit(decide)

    def resume(self, servers: Iterable[Server]) -> Deferred[None]:
        """After a restart of the whole farm: those who are back keep their places in the line."""
        return Deferred.fromCoroutine(self._resume({server.id: server for server in servers}))

    async def _resume(self, back: Mapping[str, Server]) -> None:
        def decide(before: Registered) -> Change:
            rows = []
            for old in before.servers.values():
                if (new := back.get(old.id)) is not None:
                    row = _live(
                        evolve(
                            new,
                            name=old.name,
                            joined=old.joined,
                            seniority=old.seniority,
                            since=old.since if old.state == old.live_state else self._now(),
                            draining=old.draining,
                            **_kept_of(old, new),
                        )
                    )
                    if row != old:
                        rows.append(row)
            return Change(put=tuple(rows[:ROWS_A_TRANSACTION]), result=len(rows))

        # As many as have room go with each transaction, so that the last look finds nothing left.
        for _ in range(len(back) + 1):
            if not await self.edit(decide):
                return

    def enter_state(self, ids: Iterable[str], state: str, *, only_from: tuple[str, ...]) -> Deferred[None]:
        """Move servers into a state, in one transaction; rows in other states than `only_from` are left.

        Those that come up while they are emptied are `draining`.
        """
        wanted = tuple(ids)

        def decide(before: Registered) -> Change | None:
            rows = tuple(
                _entered(before.servers[id], state, self._now())
                for id in wanted
                if id in before.servers and before.servers[id].state in only_from
            )
            return Change(put=rows[:ROWS_A_TRANSACTION]) if rows else None

        return self.edit(decide)

    def give_up(self, ids: Iterable[str]) -> Deferred[None]:
        """Note of servers that are down that their chunks are to be copied elsewhere; others are left alone."""
        wanted = tuple(ids)

        def decide(before: Registered) -> Change | None:
            rows = tuple(
                evolve(before.servers[id], given_up=True)
                for id in wanted
                if id in before.servers and before.servers[id].state == "down"
            )
            return Change(put=rows[:ROWS_A_TRANSACTION]) if rows else None

        return self.edit(decide)

    def measure(self, figures: Mapping[str, Mapping[str, Any]]) -> Deferred[None]:
        """Write what servers reported of themselves (`free`, `used`, `full`, `note`) into their rows."""

        def decide(before: Registered) -> Change | None:
            rows = tuple(
                evolve(before.servers[id], **dict(changed)) for id, changed in figures.items() if id in before.servers
            )
            return Change(put=rows[:ROWS_A_TRANSACTION]) if rows else None

        return self.edit(decide)

    def set_server(self, server: str, change: Callable[[Server, Registered], Server]) -> Deferred[Server]:
        """Change one row, named by id or name. Fails with `NotFound`; `change` may raise `InvalidRequest`."""

        def decide(before: Registered) -> Change:
            row = before.servers.get(server) or next(
                (other for other in before.servers.values() if other.name == server), None
            )
            if row is None:
                raise NotFound(f"there is no server {server!r}")
            changed = change(row, before)
            return Change(put=(changed,), result=changed)

        return self.edit(decide)

    def set_servers(self, change: Callable[[Registered], tuple[Server, ...]]) -> Deferred[int]:
        """Change several rows, all or none, if no row changes meanwhile; fires with how many were changed.

        `change` may raise any `FarmError`. Fails with `LimitExceeded` for more rows than fit one transaction.
        """

        def decide(before: Registered) -> Change:
            rows = change(before)
            size = sum(len(row.key) + len(row.to_value()) for row in rows)
            if len(rows) > ROWS_A_TRANSACTION or size > ROW_BYTES_A_TRANSACTION:
                raise LimitExceeded(f"{len(rows)} servers are more than can be changed in one step")
            # Those that stay are compared too, as far as there is room: what the names were checked against
            # cannot change unseen in any case, since a change of a name moves the generation.
            put = {row.id for row in rows}
            others = [id for id in before.servers if id not in put][: ROWS_A_TRANSACTION - len(rows)]
            compares = tuple(Compare(before.servers[id].key, "==", before.revisions[id]) for id in others)
            return Change(put=rows, compares=compares, result=len(rows))

        return self.edit(decide)

    def set_farm(self, change: Callable[[FarmOptions], FarmOptions]) -> Deferred[FarmOptions]:
        """Change the farm's options; `change` may raise `InvalidRequest`."""

        def decide(before: Registered) -> Change:
            options = change(before.options)
            return Change(options=options, result=options)

        return self.edit(decide)


def barred_key(value: bytes) -> str:
    """The digest of the public key in the row of a server that was forgotten; empty if there is none."""
    try:
        return str(json.loads(value).get("key", ""))
    except (ValueError, AttributeError, RecursionError):
        return ""


def forgotten_sentence(server_id: str) -> str:
    """What a server is told that comes back after it was forgotten."""
    return (
        f"server {server_id} was taken out of this farm for good: to let it join as a new one, empty its data "
        "directory and give it the new farm.join"
    )


def _broken(compares: tuple[Compare, ...], conflict: Conflict) -> set[Compare]:
    """Those that made the conflict, and never hold again: no row comes back to a revision that it has left."""
    there = {row.key: row.revision for row in conflict.rows}
    return {one for one in compares if one.relation == "==" and one.revision and there.get(one.key, 0) != one.revision}


def _live(server: Server) -> Server:
    return evolve(server, state=server.live_state, given_up=False)


def _kept_of(old: Server | None, new: Server) -> dict[str, Any]:
    """What a row keeps of the one before: the key by which its server is known, and that it had the farm's secrets."""
    had = old is not None and (old.secrets or old.master)
    key = new.public_key or (old.public_key if old is not None else "")
    return {"public_key": key, "secrets": new.secrets or new.master or had}


def _entered(server: Server, state: str, now: int) -> Server:
    return evolve(server, state=server.live_state if state == "up" else state, since=now, given_up=False)


def _free_name(name: str, taken: set[str]) -> str:
    """The name itself, or the name with `-2`, `-3` ... if others have it."""
    if name not in taken:
        return name
    number = 2
    while f"{name[:59]}-{number}" in taken:
        number += 1
    return f"{name[:59]}-{number}"


def _transaction(before: Registered, change: Change) -> tuple[tuple[Compare, ...], tuple[Operation, ...]]:
    """The compares and operations of a change, with the generation raised if the file will look different."""
    compares = list(change.compares)
    operations: list[Operation] = []
    after = dict(before.servers)
    size = sum(len(value.value) for value in change.also if isinstance(value, Put))
    for server in change.put:
        if before.servers.get(server.id) == server:
            continue
        value = server.to_value()
        size += len(value) + len(server.key)
        if size > ROW_BYTES_A_TRANSACTION and operations:
            break
        compares.append(Compare(server.key, "==", before.revisions.get(server.id, 0)))
        operations.append(Put(server.key, value))
        after[server.id] = server
    for server_id in change.delete:
        gone = after.pop(server_id)
        compares.append(Compare(gone.key, "==", before.revisions[server_id]))
        operations.append(Delete(gone.key))
    options_changed = change.options is not None and (change.options != before.options or before.options_revision == 0)
    if options_changed:
        assert change.options is not None
        compares.append(Compare(OPTIONS_KEY, "==", before.options_revision))
        operations.append(Put(OPTIONS_KEY, change.options.to_value()))
    if options_changed or _looks(before.servers) != _looks(after):
        compares.append(Compare(GENERATION_KEY, "==", before.generation_revision))
        operations.append(Put(GENERATION_KEY, b"%d" % (before.generation + 1)))
    operations.extend(change.also)
    return tuple(compares), tuple(operations)


def _looks(servers: Mapping[str, Server]) -> list[tuple[Any, ...]]:
    return [shown(server) for server in in_order(servers.values())]
