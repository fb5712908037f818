from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import TestCase

from chunkfarm.chunks.opened import ChunkReader
from chunkfarm.chunks.read_memory import PIECE
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.model import GIB, digest_of
from tests.chunks.builders import pattern, read_all

P = ParamSpec("P")
T = TypeVar("T")

COUNTING_TURNS = 5000
"""The store counts in 256 steps; each question for its space takes a turn on the same threads."""


class ThreadsTests(TestCase):
    """The store on real threads."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        pool = ThreadPool(4, 4)
        pool.start()
        self.addCleanup(pool.stop)

        def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
            return deferToThreadPool(reactor, pool, function, *args, **kwargs)  # type: ignore[arg-type]

        self.directory = Path(self.mktemp()).absolute()
        self.store = ChunkStore(
            self.directory, self.directory / "index.sqlite", run, reserve=0, room=lambda path: (GIB, GIB)
        )
        self.addCleanup(self.store.close)

    async def test_same_chunk(self) -> None:
        """Many who store the same chunk at once all succeed, and there is one of it."""
        await self.store.start()
        data = pattern(PIECE)
        digest = digest_of(data)
        puts = [self.store.put(digest if number % 2 else None, data) for number in range(12)]
        assert await gatherResults(puts) == [digest] * 12
        assert await self.store.scan(digest[0]) == [digest]
        assert await self.store.check(digest) == PIECE
        assert list((self.directory / "incoming").iterdir()) == []

    async def test_many(self) -> None:
        """Many different chunks at once, counted right, also while the store is being counted."""
        await self.store.start()
        chunks = [pattern(1000 if seed % 2 else 70_000, seed) for seed in range(50)]
        digests = await gatherResults([self.store.put(None, chunk) for chunk in chunks])
        sizes = [path.stat().st_size for path in self.directory.rglob("*.chunk")]
        assert len(sizes) == 25
        sizes += [path.stat().st_size for path in self.directory.rglob("*.pack")]
        for _ in range(COUNTING_TURNS):
            if (await self.store.space()).used == sum(sizes):
                break
        else:
            self.fail("the chunks were never counted right")
        assert await gatherResults([self.read(digest) for digest in digests]) == chunks

    async def test_closed_while_read(self) -> None:
        """A reader closed while a thread reads for it disturbs nobody else."""
        await self.store.start()
        data = pattern(8 * PIECE)
        digest = await self.store.put(None, data)
        readers: list[ChunkReader] = await gatherResults([self.store.open(digest) for _ in range(8)])
        for reader in readers[:4]:
            await reader.next()
            reader.close()
        for reader in readers[4:]:
            assert await read_all(reader) == data

    def read(self, digest: bytes) -> Deferred[bytes]:
        async def read() -> bytes:
            return await read_all(await self.store.open(digest))

        return Deferred.fromCoroutine(read())
