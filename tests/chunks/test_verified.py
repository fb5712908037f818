"""When the copies of a disk were last read whole: what is known of it, and what outlives a process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.packs import MARK_MS
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.chunks.verified import AGAIN_MS
from tests.chunks.builders import make_store, pattern, read_all

SMALL, LARGE = pattern(1000, 1), pattern(100_000, 2)
BEGIN = 1_800_000_000_000


class VerifiedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = BEGIN
        self.directory = Path(self.mktemp()).absolute()
        self.store = self.make()

    def make(self) -> ChunkStore:
        store = make_store(self.directory / "chunks", packed_most=64 * 1024, now=lambda: self.now)
        self.addCleanup(store.close)
        return store

    def put(self, data: bytes) -> bytes:
        digest = self.successResultOf(self.store.put(None, data))
        path = self.directory / "chunks" / digest.hex()[:2] / f"{digest.hex()}.chunk"
        if path.exists():
            os.utime(path, ns=(0, self.now * 1_000_000))
        return digest

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> None:
        async def read() -> None:
            await read_all(await self.store.open(digest, offset, length))

        self.successResultOf(Deferred.fromCoroutine(read()))

    def when(self, digest: bytes) -> int:
        """Ms since the test began; what is not known is far below 0."""
        return self.successResultOf(self.store.verified([digest]))[0] - BEGIN

    def test_written(self) -> None:
        """What was written and never read since is as old as that, of a small chunk to a minute."""
        for data in (SMALL, LARGE):
            assert self.when(self.put(data)) == 0
        self.now += MARK_MS - 1
        early = self.put(pattern(1000, 3))
        self.now += 1
        late = self.put(pattern(1000, 4))
        assert (self.when(early), self.when(late)) == (0, MARK_MS)
        self.store.close()
        self.store = self.make()
        assert (self.when(early), self.when(late)) == (0, MARK_MS)

    def test_read(self) -> None:
        """A chunk that was read to its end has been verified; one of which a part was read has not."""
        for data in (SMALL, LARGE):
            digest = self.put(data)
            self.now += AGAIN_MS
            self.read(digest, 10)
            self.read(digest, 0, 10)
            before = self.when(digest)
            self.read(digest)
            assert self.when(digest) == self.now - BEGIN > before

    def test_checked(self) -> None:
        """A check counts, also for a process that starts later, after a proper end or once it was saved."""
        digest, other = self.put(LARGE), self.put(SMALL)
        self.now += 5000
        self.successResultOf(self.store.check(digest))
        self.successResultOf(self.store.save_verified())
        assert self.store._index.read("SELECT * FROM verified") == [(digest, BEGIN + 5000)]
        self.now += 1000
        self.successResultOf(self.store.check(other))
        self.store.close()
        self.store = self.make()
        assert (self.when(digest), self.when(other)) == (5000, 6000)

    def test_once_an_hour(self) -> None:
        """A chunk that everybody reads is not written down each time."""
        digest = self.put(SMALL)
        self.read(digest)
        self.successResultOf(self.store.save_verified())
        self.now += AGAIN_MS - 1
        self.read(digest)
        assert self.when(digest) == 0
        self.now += 1
        self.read(digest)
        assert self.when(digest) == AGAIN_MS

    def test_passed(self) -> None:
        """When all that begin with a byte were read, it holds for those, and what was noted before is forgotten."""
        digest, other = self.put(SMALL), self.put(LARGE)
        assert digest[0] != other[0]
        self.read(digest)
        self.successResultOf(self.store.save_verified())
        self.successResultOf(self.store.passed(digest[0], BEGIN + 7000))
        assert (self.when(digest), self.when(other)) == (7000, 0)
        assert self.store._index.read("SELECT * FROM verified") == []

    def test_damaged_or_gone(self) -> None:
        """Of a chunk that is not here nothing is known, whatever was before."""
        digest = self.put(SMALL)
        self.read(digest)
        self.successResultOf(self.store.delete(digest))
        assert self.when(digest) == self.when(bytes(32)) == -BEGIN

    def test_no_room(self) -> None:
        """On a full disk nothing is written down, and nobody is told of an error."""
        digest = self.put(LARGE)
        self.successResultOf(self.store.check(digest))
        self.patch(self.store._index, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no room")))
        self.successResultOf(self.store.save_verified())
        self.successResultOf(self.store.passed(digest[0], BEGIN))

    def test_the_index_is_lost(self) -> None:
        """Then nobody knows of small chunks; that is said, and nothing else is missing."""
        digest, large = self.put(SMALL), self.put(LARGE)
        self.store.close()
        for path in self.directory.rglob("index.sqlite*"):
            path.unlink()
        self.store = self.make()
        assert (self.when(digest), self.when(large)) == (-BEGIN, 0)
