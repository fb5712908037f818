"""Clients of a farm of chunks: they put, overwrite, remove and read files in every way that there is, or dawdle.

A client outlives the server that it talks to. What it was told is compared with what is on the disks at that moment,
and what it reads with what was stored.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.python.failure import Failure

from chunkfarm.chunks.download import DamagedFile
from chunkfarm.chunks.transfer import ChunkUnavailable
from chunkfarm.errors import Busy, FarmError, Full, MissingChunks, NotFound, ReadOnly
from chunkfarm.model import File, Receipt
from tests.simulation.checks import Violation
from tests.simulation.chunk_contents import CHUNK_SIZE, Content, Contents
from tests.simulation.chunk_servers import ChunkServer, read_all

if TYPE_CHECKING:
    from tests.simulation.chunks import ChunkFarm

NAMES = 8
"""Files of one farm: so few that many are overwritten."""
EXPECTED = (ConnectionLost, ConnectionRefusedError, ReadOnly, Busy, Full, MissingChunks)
"""What a client takes for weather."""
PAUSES = (0.0, 0.0, 0.1, 5.0, 60.0, 400.0)
"""Seconds between two chunks of an upload, or two steps of a client."""


class _Lost(Exception):
    """The server that this client talked to is gone."""


class Users:
    """All clients. Counts what they were told."""

    def __init__(self, farm: ChunkFarm) -> None:
        self.farm = farm
        self.random = farm.world.random("users")
        self.contents = Contents(self.random, farm.images)
        self.by_etag: dict[str, Content] = {}
        self.old: list[Content] = []
        """Of which some chunks may still be there."""
        self.acknowledged = self.removed = self.reads = self.unavailable = self.resumed = 0
        self.under_way = 0

    # What they do.

    def act(self) -> None:
        """One of them begins something."""
        server = self._server()
        if server is None:
            return
        what = self.random.choices(
            (self._put, self._put_slowly, self._commit_by_hand, self._remove, self._get), (4, 4, 4, 4, 5)
        )[0]
        self._begin(what(server))

    def _begin(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        self.under_way += 1

        def over(result: object) -> None:
            self.under_way -= 1
            if isinstance(result, Failure) and not result.check(*EXPECTED, _Lost):
                self.farm.fail(result.value)

        Deferred.fromCoroutine(work).addBoth(over)

    def _server(self) -> ChunkServer | None:
        serving = [server for server in self.farm.servers.values() if server.is_serving]
        return self.random.choice(serving) if serving else None

    def _name(self) -> str:
        return f"home/{self.random.randrange(NAMES)}"

    def _content(self) -> Content:
        """Something new, or what somebody has stored before, or tried to."""
        if self.old and self.random.random() < 0.5:
            return self.random.choice(self.old)
        content = self.contents.make()
        self.by_etag[content.etag] = content
        self.old = [*self.old[-9:], content]
        return content

    async def _put(self, server: ChunkServer) -> None:
        await self._upload(server, self._name(), self._content(), (0.0,))

    async def _put_slowly(self, server: ChunkServer) -> None:
        """A long upload; one that fails on the way is resumed elsewhere, by asking what is there already."""
        name, content = self._name(), self._content()
        try:
            await self._upload(server, name, content, PAUSES)
        except (_Lost, *EXPECTED):
            await self.farm.sleep(self.random.choice(PAUSES))
            other = self._server()
            if other is not None:
                self.resumed += 1
                await self._commit_in_steps(other, name, content)

    async def _upload(self, server: ChunkServer, name: str, content: Content, pauses: Sequence[float]) -> None:
        process = server.process
        began = self.farm.now
        with self.farm.wants(content):
            upload = server.catalog.upload(CHUNK_SIZE)
            for piece in content.pieces():
                upload.write(piece)
                await self.farm.sleep(self.random.choice(pauses))
                if server.process is not process:
                    raise _Lost
            uploaded = await self._ask(server, lambda one: upload.finish())
            if server.process is not process:
                raise _Lost
            receipt = await self._ask(
                server,
                lambda one: one.catalog.commit(name, uploaded.size, CHUNK_SIZE, uploaded.digests, written=uploaded),
            )
            self._told(server, content, receipt, began)

    async def _commit_by_hand(self, server: ChunkServer) -> None:
        await self._commit_in_steps(server, self._name(), self._content())

    async def _commit_in_steps(self, server: ChunkServer, name: str, content: Content) -> None:
        """HAVE, PUT of what is missing, and COMMIT, perhaps much later and over other servers."""
        began = self.farm.now
        with self.farm.wants(content):
            for _ in range(3):
                held = await self._ask(server, lambda one: one.transfer.hold(content.digests))
                missing = [digest for digest in content.digests if len(held[digest]) < self.farm.required]
                await self.farm.sleep(self.random.choice(PAUSES))
                for digest in missing:
                    data = self.farm.images.known[digest]
                    await self._ask(server, lambda one, data=data: one.transfer.write(data))  # type: ignore[misc]
                await self.farm.sleep(self.random.choice(PAUSES))
                server = self._server() or server
                try:
                    receipt = await self._ask(
                        server,
                        lambda one: one.catalog.commit(name, len(content.data), CHUNK_SIZE, content.digests),
                    )
                except MissingChunks:
                    continue
                self._told(server, content, receipt, began)
                return

    async def _remove(self, server: ChunkServer) -> None:
        try:
            await self._ask(server, lambda one: one.catalog.remove(self._name()))
        except NotFound:
            return
        self.removed += 1

    async def _get(self, server: ChunkServer) -> None:
        """Read a file, or a range of it, and compare."""
        process = server.process
        try:
            found = await self._ask(server, lambda one: one.catalog.find(self._name()))
        except NotFound:
            return
        file = found.file
        content = self.by_etag[file.etag]
        offset, length = 0, file.size
        if self.random.random() < 0.5:
            offset = self.random.randrange(file.size)
            length = self.random.randint(1, file.size - offset)
        able = self.farm.reachable(content, server)
        try:
            data = await self._ask(server, lambda one: download(one, file, offset, length))
        except (ChunkUnavailable, DamagedFile, NotFound) as error:
            self.unavailable += 1
            # What was there all the time, on a server that ran all the time, must have been found.
            still = self.farm.reachable(content, server)
            is_there = all(able[digest] & still[digest] for digest in content.all)
            if is_there and server.process is process and self.farm.is_live(file):
                raise Violation(f"availability: {file.name} could not be read over {server.name}: {error}") from error
            return
        self.reads += 1
        if data != content.data[offset : offset + length]:
            raise Violation(f"bytes: {server.name} gave something else for {file.name} than what was stored")

    # What they are told.

    def _told(self, server: ChunkServer, content: Content, receipt: Receipt, began: float) -> None:
        self.acknowledged += 1
        self.farm.note(server.name, f"{receipt.file.name} is acknowledged, {receipt.copies} copies: {names(content)}")
        self.farm.must_have_copies(content, receipt.copies, began)

    # The end.

    def read_all(self) -> None:
        """Every file can be read over every server."""
        for name in sorted(self.farm.live):
            for server in self.farm.servers.values():
                if server.is_serving:
                    self._begin(self._must_get(server, name))
        self.farm.pass_time(60.0)
        if self.under_way:
            raise Violation(f"availability: {self.under_way} requests have no answer")

    async def _must_get(self, server: ChunkServer, name: str) -> None:
        found = await self._ask(server, lambda one: one.catalog.find(name))
        try:
            data = await self._ask(server, lambda one: download(one, found.file, 0, found.file.size))
        except FarmError as error:
            raise Violation(f"availability: {name} could not be read over {server.name}: {error}") from error
        if data != self.farm.live[name].data:
            raise Violation(f"bytes: {server.name} gave something else for {name} than what was stored")

    def _ask(self, server: ChunkServer, work: Callable[[ChunkServer], Deferred[Any]]) -> Deferred[Any]:
        return server.ask(None, work)


def download(server: ChunkServer, file: File, offset: int, length: int) -> Deferred[bytes]:
    async def download() -> bytes:
        return await read_all(await server.catalog.download(file, offset, length))

    return Deferred.fromCoroutine(download())


def names(content: Content) -> str:
    """For people."""
    return " ".join(digest.hex()[:6] for digest in content.all)
