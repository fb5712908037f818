"""What the ports ask of a server, answered by its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from chunkfarm import changes, membership
from chunkfarm.emptying import emptied, kept
from chunkfarm.ports.places import whose
from chunkfarm.status import status_pairs

if TYPE_CHECKING:
    from chunkfarm.by_hand import Outlook
    from chunkfarm.catalog import Catalog
    from chunkfarm.chronicle import Chronicle
    from chunkfarm.chunks.caretaker import Caretaker
    from chunkfarm.chunks.store import ChunkStore
    from chunkfarm.chunks.transfer import Transfer
    from chunkfarm.exports.maker import Progress
    from chunkfarm.forgetting import ForgetOutlook
    from chunkfarm.keyring import Keyring
    from chunkfarm.membership import Standing
    from chunkfarm.metrics import Metrics
    from chunkfarm.model import Drain, FarmOptions, Principal, Server
    from chunkfarm.parts import Parts
    from chunkfarm.rotation import Authorities
    from chunkfarm.state import ServerState
    from chunkfarm.table.interface import ITable
    from chunkfarm.table.registry import Registered


class ServerBackend:
    """One server behind its ports. Implements `ports.backend.Backend`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._line: tuple[Standing, ...] = ()
        self._line_of: tuple[tuple[Server, ...], frozenset[str], str] = ((), frozenset(), "")

    @property
    def state(self) -> ServerState:
        return self._parts.state

    @property
    def table(self) -> ITable:
        return self._parts.embedded

    @property
    def holds_table(self) -> bool:
        return self._parts.embedded.holds_rows

    @property
    def catalog(self) -> Catalog:
        return self._parts.chunks.catalog

    @property
    def store(self) -> ChunkStore:
        return self._parts.chunks.store

    @property
    def transfer(self) -> Transfer:
        return self._parts.chunks.transfer

    @property
    def caretaker(self) -> Caretaker:
        return self._parts.chunks.caretaker

    def keep(self, digests: Sequence[bytes], revision: int) -> Deferred[Sequence[int]]:
        return self._parts.chunks.keeper.keep(digests, revision)

    def servers(self) -> tuple[Server, ...]:
        return self._parts.servers()

    def options(self) -> FarmOptions:
        return self._parts.options()

    def succession(self) -> tuple[Standing, ...]:
        servers, voters, first = self._parts.servers(), self._parts.embedded.configuration.voters, self._parts.first()
        known = self._line_of
        if servers is not known[0] or (voters, first) != known[1:]:
            # A thousand servers take milliseconds, and whoever is told of many changes asks for each.
            self._line = membership.succession(servers, voters, first)
            self._line_of = servers, voters, first
        return self._line

    def authenticate(self, key_id: str, secret: str) -> Deferred[Principal]:
        return self._parts.access.authenticate(key_id, secret)

    def invite(self, seconds: float) -> Deferred[tuple[str, int]]:
        return self._parts.invites.make(seconds)

    @property
    def chronicle(self) -> Chronicle:
        return self._parts.chronicle

    @property
    def now(self) -> int:
        return self._parts.now()

    @property
    def metrics(self) -> Metrics:
        return self._parts.metrics

    @property
    def keyring(self) -> Keyring:
        return self._parts.keyring

    @property
    def keys_revision(self) -> int:
        return self._parts.roster.keys_revision

    def confirm(self, key_id: str, proof: bytes) -> Deferred[Principal]:
        return self._parts.access.check(key_id, proof)

    def failed_attempt(self, address: str) -> float:
        return self._parts.failed_attempts.note(whose(address), self._parts.reactor.seconds())

    def is_master(self, server_id: str) -> bool:
        return any(server.id == server_id for server in membership.masters(self._parts.servers()))

    def look_at_takeover(self) -> Deferred[Outlook]:
        return self._parts.by_hand.look()

    def take_over(self, farm_name: str) -> Deferred[Outlook]:
        return self._parts.by_hand.run(farm_name)

    def drain(self, server: str, anyway: bool) -> Deferred[Server]:
        def change(row: Server, before: Registered) -> Server:
            return emptied(row, before.servers.values(), before.options.replicas, self._parts.now(), anyway)

        return self._parts.registry.set_server(server, change)

    def end_drain(self, server: str) -> Deferred[Server]:
        return self._parts.registry.set_server(server, lambda row, before: kept(row, self._parts.now()))

    def drains(self) -> tuple[tuple[Server, Drain | None], ...]:
        return self._parts.drains()

    def export(self, number: int = 0) -> Progress:
        return self._parts.chunks.exports.progress(number) if number else self._parts.chunks.exports.begin()

    def authorities(self) -> Authorities:
        return self._parts.authorities()

    def rotate(self) -> Deferred[None]:
        return self._parts.rotating.want("an admin wanted it")

    def look_at_forgetting(self, server: str) -> Deferred[ForgetOutlook]:
        return self._parts.forgetting.look(server)

    def forget(self, server: str, farm_name: str) -> Deferred[Server]:
        return self._parts.forgetting.run(server, farm_name)

    def barred(self, server_id: str) -> str:
        return self._parts.barred(server_id)

    def peer_of(self, certificate: Any) -> str | None:
        return self._parts.contexts.peer_of(certificate)

    def set_server(self, server: str, fields: Mapping[str, str]) -> Deferred[Server]:
        return changes.set_server(self._parts.registry, server, fields, self._parts.call_back)

    def set_table(self, block: bytes) -> Deferred[int]:
        return changes.set_table(self._parts.registry, block, self._parts.call_back)

    def set_farm(self, fields: Mapping[str, str]) -> Deferred[FarmOptions]:
        return changes.set_farm(self._parts.registry, fields)

    def status(self) -> Deferred[list[tuple[str, str]]]:
        return Deferred.fromCoroutine(self._status())

    async def _status(self) -> list[tuple[str, str]]:
        await self._parts.measure_space()
        known = self._parts.reporter.risk
        # Most of the time nothing can be lost, and nobody needs to be asked.
        lost_files = await self._parts.chunks.lost_files() if known is not None and known.sets else None
        return status_pairs(self._parts, lost_files)
