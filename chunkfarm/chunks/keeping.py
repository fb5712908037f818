"""Whether another server may delete its copy of a chunk, because this one keeps its own: the answer to `keep`.

A server that gives a copy away has marked it as surplus before it asks, and deletes it only with a yes of every owner
and its mark still there. A yes takes the mark of whoever says it away. So of all who have deleted a copy, the one that
began last asked owners none of which has deleted its own since: however tables differ, those copies stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen
from twisted.internet.defer import Deferred

from chunkfarm.chunks import placement
from chunkfarm.chunks.repair import Servers
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.errors import Busy, NotFound


@frozen
class Keeper:
    """Answers for this server. `revision` is that of its rows, and `refresh` makes them as new as any."""

    store: ChunkStore
    servers: Callable[[], Servers]
    self_id: str
    replicas: Callable[[], int]
    revision: Callable[[], int]
    refresh: Callable[[], Deferred[None]]

    def keep(self, digests: Sequence[bytes], revision: int) -> Deferred[Sequence[int]]:
        """For each of these chunks its length, if this server owns it and keeps its copy from now on; else 0.

        It owns it by rows that are at least of that revision, and its copy has just been read and compared. It is
        kept for `collect_grace`, and then for as long as it is used and this server owns it. Fails with `Busy` if
        this server's rows are older.
        """
        return Deferred.fromCoroutine(self._keep(digests, revision))

    async def _keep(self, digests: Sequence[bytes], revision: int) -> Sequence[int]:
        if self.revision() < revision:
            await self.refresh()
            if self.revision() < revision:
                raise Busy(f"the rows of this server are of revision {self.revision()}, older than {revision}")
        whole = {digest for digest in dict.fromkeys(digests) if self._owns(digest) and await self._is_whole(digest)}
        # What was condemned is not answered for, and a plan of this server to give its own copy away ends here.
        held = await self.store.hold([digest for digest in digests if digest in whole])
        kept = dict(zip([digest for digest in digests if digest in whole], held, strict=True))
        return [kept.get(digest, 0) for digest in digests]

    def _owns(self, digest: bytes) -> bool:
        owners = placement.owners(digest, self.servers(), self.replicas())
        return any(server.id == self.self_id for server in owners)

    async def _is_whole(self, digest: bytes) -> bool:
        try:
            await self.store.check(digest)
        except NotFound:
            return False
        return True
