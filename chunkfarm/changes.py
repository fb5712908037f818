"""Changes of the rows of servers and farm that a person or a server asks for, by field or as a whole."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import Deferred, fail

from chunkfarm.errors import InvalidRequest
from chunkfarm.model import FarmOptions, Server
from chunkfarm.settings import changed_farm, changed_server, changed_table, read_table
from chunkfarm.table.registry import Registered, Registry


def set_server(registry: Registry, server: str, fields: Mapping[str, str]) -> Deferred[Server]:
    """Change editable fields of a server's row, by id or name; fails with `NotFound` or `InvalidRequest`."""

    def change(row: Server, before: Registered) -> Server:
        taken = {other.name for other in before.servers.values() if other.id != row.id}
        return changed_server(row, fields, taken)

    return registry.set_server(server, change)


def set_table(registry: Registry, block: bytes) -> Deferred[int]:
    """Put the editable fields of all rows, as SERVERS shows them; fires with how many rows were changed.

    Fails with `PreconditionFailed` if the table is not at the revision of the block, and as `set_server`.
    """

    def change(before: Registered) -> tuple[Server, ...]:
        return changed_table(told, before.servers, before.revisions, before.revision)

    try:
        told = read_table(block)
    except InvalidRequest:
        return fail()
    return registry.set_servers(change)


def set_farm(registry: Registry, fields: Mapping[str, str]) -> Deferred[FarmOptions]:
    """Change farm options; fails with `InvalidRequest`."""
    return registry.set_farm(lambda options: changed_farm(options, fields))
