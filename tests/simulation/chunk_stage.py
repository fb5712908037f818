"""A farm that carries files, on which a named story is played: its script says what happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chunkfarm.model import Receipt
from tests.simulation.checks import Violation
from tests.simulation.chunk_contents import CHUNK_SIZE, Content
from tests.simulation.chunk_servers import ChunkServer, Make
from tests.simulation.chunk_users import download
from tests.simulation.chunks import GRACE, ChunkFarm

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds that a client waits."""


class ChunkStage(ChunkFarm):
    """Use it as a context. Servers are counted from 1, and all weigh the same; nothing goes wrong that is not said."""

    def __init__(self, make: Make | None = None, seed: int = 1) -> None:
        super().__init__(seed, make)
        self.table.loses_answers = False
        self.pinned_for = GRACE

    def __getitem__(self, number: int) -> ChunkServer:
        return list(self.servers.values())[number - 1]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        story = self.story
        super().__exit__(kind, error, trace)
        if isinstance(error, AssertionError):
            raise Violation(f"{error}\n" + "\n".join(story)) from error

    def grow(self, count: int, replicas: int = 3) -> None:
        """So many servers are up and know each other."""
        self.set_options(replicas)
        first = not self.servers
        for _ in range(count):
            server = self.add(weight=1)
            server.start()
        if first:
            self._turn_epoch()
        self.pass_time(2.0)

    def wait_for(self, work: Deferred[T]) -> T:
        """What comes of it, in the time that a client waits."""
        told: list[Any] = []
        work.addBoth(told.append)
        until = self.now + PATIENCE
        while not told and self.now < until:
            self.pass_time(0.05)
        assert told, "a client waits in vain"
        if isinstance(told[0], Failure):
            told[0].raiseException()
        result: T = told[0]
        return result

    def until(self, holds: Callable[[], bool], seconds: float) -> None:
        """Time passes until it is so."""
        end = self.now + seconds
        while not holds():
            assert self.now < end, "it does not come to that"
            self.pass_time(0.05)

    def content(self) -> Content:
        """The bytes of a file."""
        content = self.users.contents.make()
        self.users.by_etag[content.etag] = content
        return content

    def put(self, server: ChunkServer, name: str, content: Content) -> Receipt:
        """A client stores a file."""
        upload = server.catalog.upload(CHUNK_SIZE)
        upload.write(content.data)
        uploaded = self.wait_for(upload.finish())
        return self.wait_for(server.catalog.commit(name, uploaded.size, CHUNK_SIZE, uploaded.digests, written=uploaded))

    def get(self, server: ChunkServer, name: str) -> bytes:
        """A client reads a file."""
        return self.wait_for(self.read(server, name))

    def read(self, server: ChunkServer, name: str) -> Deferred[bytes]:
        """It begins to."""

        async def read() -> bytes:
            found = await server.catalog.find(name)
            return await download(server, found.file, 0, found.file.size)

        return Deferred.fromCoroutine(read())
