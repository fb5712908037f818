"""Whether another server may delete its copy because this one keeps its own."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import placement
from chunkfarm.chunks.keeping import Keeper
from chunkfarm.errors import Busy, NotFound, ReadOnly
from chunkfarm.model import digest_of
from tests.chunks.builders import make_servers, make_store, pattern

DATA = pattern(1000)
DIGEST = digest_of(DATA)


class KeeperTests(SynchronousTestCase):
    """Server s1 of three is this one, and there are three copies of everything."""

    def make(self, count: int = 3) -> Keeper:
        self.servers = make_servers(count)
        self.revision = 10
        self.newest = 10
        self.damaged: list[bytes] = []
        self.store = make_store(self.mktemp(), on_damaged=lambda digest, reason: self.damaged.append(digest))
        self.addCleanup(self.store.close)
        self.successResultOf(self.store.put(DIGEST, DATA))
        return Keeper(
            self.store, lambda: self.servers, self.servers[0].id, lambda: 3, lambda: self.revision, self.refresh
        )

    def refresh(self) -> Deferred[None]:
        self.revision = self.newest
        return succeed(None)

    def keep(self, keeper: Keeper, digests: Sequence[bytes], revision: int = 10) -> list[int]:
        kept: Sequence[int] = self.successResultOf(keeper.keep(digests, revision))
        return list(kept)

    def test_yes(self) -> None:
        """An owner that has a chunk keeps it; of what it has not it says so."""
        assert self.keep(self.make(), [DIGEST, bytes(32), DIGEST]) == [1000, 0, 1000]

    def test_not_an_owner(self) -> None:
        """One that does not own the chunk promises nothing, though it has it."""
        keeper = self.make(count=9)
        owners = placement.owners(DIGEST, self.servers, 3)
        stranger = next(server for server in self.servers if server not in owners)
        assert self.keep(evolve(keeper, self_id=stranger.id), [DIGEST]) == [0]
        assert self.keep(evolve(keeper, self_id=owners[2].id), [DIGEST]) == [1000]

    def test_damaged(self) -> None:
        """A copy that looks whole is read before it is promised."""
        keeper = self.make()
        (path,) = (self.store._loose.path(DIGEST),)
        with open(path, "r+b") as file:
            file.write(b"rot")
        assert self.keep(keeper, [DIGEST]) == [0]
        assert self.damaged == [DIGEST]

    def test_older_rows(self) -> None:
        """One whose rows are older looks for newer ones; while there are none, it does not answer."""
        keeper = self.make()
        self.newest = 20
        assert self.keep(keeper, [DIGEST], 15) == [1000]
        self.failureResultOf(keeper.keep([DIGEST], 21), Busy)
        self.failureResultOf(
            evolve(keeper, refresh=lambda: fail(ReadOnly("nobody leads"))).keep([DIGEST], 21), ReadOnly
        )

    def test_condemned(self) -> None:
        """One that is being collected is not promised."""
        keeper = self.make()
        self.store._promises.condemned.add(DIGEST)
        assert self.keep(keeper, [DIGEST]) == [0]

    def test_gives_up_its_own_plan(self) -> None:
        """Who promises does not delete its own copy by a plan that it had before."""
        keeper = self.make()
        self.store.mark_surplus([DIGEST])
        assert self.keep(keeper, [DIGEST]) == [1000]
        assert self.successResultOf(self.store.delete_surplus([DIGEST])) == []

    def test_deleted_before(self) -> None:
        """Who has deleted its copy says no, whatever it owns."""
        keeper = self.make()
        self.store.mark_surplus([DIGEST])
        self.successResultOf(self.store.delete_surplus([DIGEST]))
        self.failureResultOf(self.store.check(DIGEST), NotFound)
        assert self.keep(keeper, [DIGEST]) == [0]
