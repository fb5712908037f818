"""Where the chunks of a file are, and what is lost with which server."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import catalog
from chunkfarm.catalog import EXPLAINED_MAX, Catalog
from chunkfarm.chunks.download import DamagedFile
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.errors import NotFound
from chunkfarm.explanation import Explanation, Part, shares
from chunkfarm.links.interface import VERIFY_DIGESTS_MAX
from chunkfarm.model import INLINE_DIGESTS_MAX, KIB, FarmOptions
from tests.chunks.builders import MemoryLinks, make_servers, make_store, pattern, run_now
from tests.memory_table import MemoryTable

SIZE = 4 * KIB
NAME = "home/file"


class SharesTests(SynchronousTestCase):
    def test_shares(self) -> None:
        """What one server alone holds is lost with it; what two hold is not."""
        alpha, beta, gamma = make_servers(3)
        parts = [
            Part(b"m" * 32, (alpha.id,)),
            Part(b"a" * 32, (alpha.id, beta.id), 0, 100),
            Part(b"b" * 32, (beta.id,), 1, 100),
            Part(b"b" * 32, (beta.id,), 2, 100),
            Part(b"c" * 32, (), 3, 50),
        ]
        assert [(one.server.name, one.held, one.only, one.bytes) for one in shares(parts, (alpha, beta, gamma))] == [
            ("s1", 2, 1, 0),
            ("s2", 2, 1, 200),
            ("s3", 0, 0, 0),
        ]


class ExplainTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.links = MemoryLinks()
        self.servers = make_servers(3)
        self.store = make_store(self.mktemp())
        self.addCleanup(self.store.close)
        transfer = Transfer(
            self.store, lambda: self.servers, self.servers[0].id, self.links, lambda: 2, self.clock, run_now
        )
        options = FarmOptions(chunksize=SIZE, replicas=2)
        self.catalog = Catalog(MemoryTable(), transfer, lambda: options, lambda: 1234, self.clock)
        self.transfer = transfer

    def put(self, count: int) -> list[bytes]:
        """A file of so many chunks, the last one shorter; their digests."""
        chunks = [pattern(SIZE if number < count - 1 else 7, number) for number in range(count)]
        digests = [self.successResultOf(self.transfer.write(chunk)).digest for chunk in chunks]
        size = SIZE * (count - 1) + 7
        self.successResultOf(self.catalog.commit(NAME, size, SIZE, digests))
        return digests


class ExplainTests(ExplainTestCase):
    def explain(self, start: int = 0, limit: int = EXPLAINED_MAX) -> Explanation:
        return self.successResultOf(self.catalog.explain(NAME, start, limit))

    def test_every_holder(self) -> None:
        """All servers are asked, not only those that should have a chunk."""
        digests = self.put(3)
        told = self.explain()
        assert [(part.digest, part.number, part.length) for part in told.parts] == [
            (digests[0], 0, SIZE),
            (digests[1], 1, SIZE),
            (digests[2], 2, 7),
        ]
        assert all(len(part.holders) == 2 for part in told.parts)
        assert (told.wanted, told.more, told.file.name) == (2, False, NAME)
        # A third copy, which nobody is looking for.
        third = next(server for server in self.servers if server.id not in told.parts[0].holders)
        data = pattern(SIZE, 0)
        if third.id == self.servers[0].id:
            self.successResultOf(self.store.put(digests[0], data))
        else:
            self.links.on(third)[digests[0]] = data
        assert sorted(self.explain().parts[0].holders) == [server.id for server in self.servers]

    def test_verified(self) -> None:
        """Each holder says when it read its copy last, if it knows; one that does not say so is asked in vain."""
        digests = self.put(8)
        for number, digest in enumerate(digests):
            self.links.times[self.servers[1].id, digest] = 1000 + number
        parts = self.explain().parts
        for number, part in enumerate(parts):
            known = dict(zip(part.holders, part.verified, strict=True))
            assert known.get(self.servers[1].id, 1000 + number) == 1000 + number
            assert not known.get(self.servers[2].id) and known.get(self.servers[0].id, 1)
        oldest = next(1000 + number for number, part in enumerate(parts) if self.servers[1].id in part.holders)
        assert [share.verified for share in shares(parts, self.servers)][1:] == [oldest, 0]

    def test_who_does_not_answer(self) -> None:
        """A server that does not answer counts as holding nothing, and what it leaves to one other shows."""
        self.put(8)
        self.links.dead = {self.servers[1].id, self.servers[2].id}
        told = self.explain()
        assert all(part.holders in ((), (self.servers[0].id,)) for part in told.parts)
        first = shares(told.parts, self.servers)[0]
        assert first.only == first.held == sum(bool(part.holders) for part in told.parts)

    def test_pages(self) -> None:
        """A long file is told in runs."""
        digests = self.put(5)
        told = self.explain(1, 3)
        assert [part.number for part in told.parts] == [1, 2, 3]
        assert [part.digest for part in told.parts] == digests[1:4]
        assert told.more
        assert not self.explain(4).more
        assert self.explain(5).parts == ()

    def test_long_manifest(self) -> None:
        """The parts of a long manifest are told with the first run: without them no byte can be read."""
        digests = self.put(INLINE_DIGESTS_MAX + 3)
        told = self.explain(0, 2)
        manifest = [part for part in told.parts if part.number is None]
        assert len(manifest) == 2 and all(len(part.holders) == 2 for part in manifest)
        assert [part.digest for part in told.parts[2:]] == digests[:2]
        assert [part.number for part in self.explain(2, 2).parts] == [2, 3]

    def test_lost_manifest(self) -> None:
        """If a part of the manifest is lost, that is what is said."""
        self.put(INLINE_DIGESTS_MAX + 3)
        for part in self.explain(0, 1).parts[:-1]:
            self.successResultOf(self.store.delete(part.digest))
            for server in self.servers:
                self.links.on(server).pop(part.digest, None)
        error = self.failureResultOf(self.catalog.explain(NAME), DamagedFile).value
        assert "a part of the manifest" in str(error)

    def test_nothing_there(self) -> None:
        """A file that is not there cannot be explained; an empty one has no parts."""
        self.failureResultOf(self.catalog.explain(NAME), NotFound)
        self.successResultOf(self.catalog.commit(NAME, 0, SIZE, []))
        assert self.explain().parts == ()


class CheckTests(ExplainTestCase):
    """`check`, of the same farm."""

    def check(self, start: int = 0, limit: int = EXPLAINED_MAX, read: bool = True) -> Explanation:
        return self.successResultOf(self.catalog.check(NAME, start, limit, read))

    def test_damage(self) -> None:
        """Copies that are made to be read show their damage, and count no more."""
        digests = self.put(3)
        holder = next(server for server in self.servers[1:] if digests[0] in self.links.on(server))
        self.links.on(holder)[digests[0]] = bytes(SIZE)
        quick = self.check(read=False)
        assert all(len(part.holders) == 2 and not part.damaged for part in quick.parts)
        told = self.check()
        assert [part.damaged for part in told.parts] == [(holder.id,), (), ()]
        assert [len(part.holders) for part in told.parts] == [1, 2, 2]
        assert told.wanted == 2 and self.links.looked[holder.id] == [digests[0]]

    def test_few_bytes_at_a_time(self) -> None:
        """So much as is read before whoever asked loses patience, and no more digests than go into one question."""
        self.put(100)
        told = self.check()
        assert len(told.parts) == VERIFY_DIGESTS_MAX and told.more
        assert len(self.check(read=False).parts) == 100
        self.patch(catalog, "CHECKED_BYTES", 5 * SIZE)
        assert len(self.check().parts) == 5
        assert [part.number for part in self.check(98).parts] == [98, 99]

    def test_lost_manifest(self) -> None:
        """Of a long manifest that is lost the parts are told that are known."""
        self.put(INLINE_DIGESTS_MAX + 3)
        manifest = [part for part in self.check(0, 1).parts if part.number is None]
        for part in manifest:
            self.successResultOf(self.store.delete(part.digest))
            for held in self.links.held.values():
                held.pop(part.digest, None)
        told = self.check()
        assert [(part.digest, part.holders) for part in told.parts] == [(part.digest, ()) for part in manifest]
        assert not told.more
