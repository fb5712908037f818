"""Changes of the rows of servers and farm that a person or a server asks for, by field or as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from attrs import frozen
from twisted.internet.defer import Deferred, fail

from chunkfarm.errors import InvalidRequest
from chunkfarm.links.calling_back import CallBack, NotThere
from chunkfarm.membership import LIVE
from chunkfarm.model import Address, FarmOptions, Server
from chunkfarm.settings import changed_farm, changed_server, changed_table, check_places, read_table
from chunkfarm.table.registry import Registered, Registry
from chunkfarm.trust.private import TrustError

_T = TypeVar("_T")


@frozen
class _Move:
    """Where a server is to have one of its ports."""

    server: str
    port: str
    address: Address


class _NotCalled(Exception):
    """Servers that are up would move to where they have not been called yet."""

    def __init__(self, moves: tuple[_Move, ...], names: Mapping[str, str]) -> None:
        super().__init__()
        self.moves = moves
        self.names = names


def set_server(registry: Registry, server: str, fields: Mapping[str, str], call_back: CallBack) -> Deferred[Server]:
    """Change editable fields of a server's row, by id or name; fails with `NotFound` or `InvalidRequest`.

    A server that is up must answer at the peer address that it is given, and somebody at each other one, and none of
    them may be that of another server.
    """

    def edit(check: Callable[[Iterable[Server], Registered], None]) -> Deferred[Server]:
        def change(row: Server, before: Registered) -> Server:
            taken = {other.name for other in before.servers.values() if other.id != row.id}
            changed = changed_server(row, fields, taken)
            check((changed,), before)
            return changed

        return registry.set_server(server, change)

    return Deferred.fromCoroutine(_where_they_answer(edit, call_back))


def set_table(registry: Registry, block: bytes, call_back: CallBack) -> Deferred[int]:
    """Put the editable fields of all rows, as SERVERS shows them; fires with how many rows were changed.

    Fails with `PreconditionFailed` if the table is not at the revision of the block, and as `set_server`.
    """
    try:
        told = read_table(block)
    except InvalidRequest:
        return fail()

    def edit(check: Callable[[Iterable[Server], Registered], None]) -> Deferred[int]:
        def change(before: Registered) -> tuple[Server, ...]:
            rows = changed_table(told, before.servers, before.revisions, before.revision)
            check(rows, before)
            return rows

        return registry.set_servers(change)

    return Deferred.fromCoroutine(_where_they_answer(edit, call_back))


async def _where_they_answer(
    edit: Callable[[Callable[[Iterable[Server], Registered], None]], Deferred[_T]], call_back: CallBack
) -> _T:
    """Do what `edit` does with a check of the rows that it changes, as soon as all who move have answered there.

    Nobody is called while other changes wait for this one, so what was asked for is worked out again after the calls.
    """
    answered: set[_Move] = set()

    def check(rows: Iterable[Server], before: Registered) -> None:
        rows = tuple(rows)
        check_places(rows, before.servers)
        moves = tuple(
            move
            for row in rows
            if row.state in LIVE
            for move in _moves(before.servers[row.id], row)
            if move not in answered
        )
        if moves:
            raise _NotCalled(moves, {server.id: server.name for server in before.servers.values()})

    while True:
        try:
            return await edit(check)
        except _NotCalled as error:
            moves, names = error.moves, error.names
        for move in moves:
            await _call(call_back, move, names)
            answered.add(move)


def _moves(before: Server, after: Server) -> list[_Move]:
    """The port at which servers know each other first: what is told of that is the most."""
    addresses = {
        "peer": (before.peer_address, after.peer_address),
        "client": (before.client_address, after.client_address),
        "file": (before.files_address, after.files_address),
    }
    return [_Move(after.id, port, new) for port, (old, new) in addresses.items() if new != old]


async def _call(call_back: CallBack, move: _Move, names: Mapping[str, str]) -> None:
    try:
        if move.port == "peer":
            await call_back.call(move.address, move.server)
        else:
            await call_back.knock(move.address)
    except NotThere as error:
        found = str(error).replace(error.found, names.get(error.found, error.found)) if error.found else str(error)
    except TrustError as error:
        found = f"has no certificate that is worth anything: {error}"
    else:
        return
    name = names[move.server]
    raise InvalidRequest(f"{name} is up, and its {move.port} port would be {move.address}, which {found}")


def set_farm(registry: Registry, fields: Mapping[str, str]) -> Deferred[FarmOptions]:
    """Change farm options; fails with `InvalidRequest`."""
    return registry.set_farm(lambda options: changed_farm(options, fields))
