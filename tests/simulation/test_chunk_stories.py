"""Histories that broke earlier rules, each played with the real objects, and with the rule left out that answers it."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred, DeferredList
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import placement
from chunkfarm.errors import MissingChunks
from chunkfarm.model import Receipt
from chunkfarm.table.interface import Compare, Replaced
from tests.simulation.checks import Violation
from tests.simulation.chunk_contents import CHUNK_SIZE, Content
from tests.simulation.chunk_mutants import CHUNK_MUTANTS, RARE
from tests.simulation.chunk_servers import ChunkServer, Make
from tests.simulation.chunk_stage import ChunkStage
from tests.simulation.chunks import GRACE, REMEMBERED_SECONDS, TIDY_SECONDS


def make(mutant: str) -> Make:
    return RARE[mutant] if mutant in RARE else CHUNK_MUTANTS[mutant][0]


class HandOverTests(SynchronousTestCase):
    """A chunk that is old and unused is handed over to a new file while its holders collect it."""

    def play(self, make: Make | None) -> None:
        """HAVE says yes, the only file is removed, and the row comes when the chunk is gone from all disks."""
        with ChunkStage(make) as stage:
            stage.grow(3)
            content = stage.content()
            stage.put(stage[1], "home/old", content)
            stage.pass_time(2 * GRACE)
            server = stage[2]
            held = stage.wait_for(server.transfer.hold(content.digests))
            assert all(len(holders) >= 2 for holders in held.values())
            arrives: Deferred[None] = Deferred()
            commit = self.commit_late(server, content, arrives)
            stage.pass_time(5.0)
            stage.wait_for(stage[3].catalog.remove("home/old"))
            stage.until(lambda: not any(map(stage.intact, content.all)), TIDY_SECONDS)
            arrives.callback(None)
            with pytest.raises(MissingChunks):
                stage.wait_for(commit)
            assert "home/new" not in stage.live
            # Nothing is lost: whoever has the bytes sends them again.
            stage.put(server, "home/new", content)
            assert stage.get(stage[1], "home/new") == content.data

    def commit_late(self, server: ChunkServer, content: Content, arrives: Deferred[None]) -> Deferred[Receipt]:
        """COMMIT, of which the row is under way for as long as the story wants."""
        replace = server.table.replace

        async def late(key: bytes, value: bytes, compares: tuple[Compare, ...]) -> Replaced:
            await arrives
            return await replace(key, value, compares)

        def begin(key: bytes, value: bytes, compares: tuple[Compare, ...] = ()) -> Deferred[Replaced]:
            return Deferred.fromCoroutine(late(key, value, compares))

        self.patch(server.table, "replace", begin)
        return server.catalog.commit("home/new", len(content.data), CHUNK_SIZE, content.digests)

    def test_hand_over_against_collection(self) -> None:
        """The row is refused, because the epoch in which the holders said yes is over."""
        self.play(None)

    def test_without_the_epoch(self) -> None:
        """With a commit that ignores the epoch a file would have no chunks."""
        with pytest.raises(Violation, match="commit"):
            self.play(make("ignores-the-epoch"))


class UnequalTablesTests(SynchronousTestCase):
    """Two servers believe of each other that they own a chunk, and not of themselves."""

    def play(self, make: Make | None, seconds: float, lag: float) -> None:
        """All four have the chunk; so long after A belongs out, it belongs in, and B out, of which B hears late."""
        with ChunkStage(make) as stage:
            stage.grow(4, replicas=4)
            content = stage.content()
            stage.put(stage[1], "home/file", content)
            stage.until(lambda: all(len(stage.intact(digest)) == 4 for digest in content.all), 60.0)
            stage.pass_time(REMEMBERED_SECONDS + 10.0)
            one, other = stage[1], stage[2]
            other.lag_max = lag
            row = stage.row(one)
            assert row is not None
            stage.update(one, weight=0)
            stage.set_options(3)
            stage.pass_time(seconds)
            stage.update(one, weight=1)
            stage.update(other, weight=0)
            stage.until(lambda: self.are_owners(stage, content), TIDY_SECONDS)
            assert stage.get(stage[3], "home/file") == content.data

    def are_owners(self, stage: ChunkStage, content: Content) -> bool:
        rows = stage.rows
        return all(
            {server.id for server in stage.intact(digest)} == {row.id for row in placement.owners(digest, rows, 3)}
            for digest in content.all
        )

    def test_surplus_with_unequal_tables(self) -> None:
        """However the two cross, three copies stay, and the fourth goes in the end."""
        for seconds, lag in ((0.0, 0.02), (0.05, 0.5), (0.2, 0.02)):
            self.play(None, seconds, lag)

    def test_by_its_own_table(self) -> None:
        """Servers that ask nobody would leave two."""
        with pytest.raises(Violation, match="removed"):
            for seconds in (0.05, 0.1, 0.2, 0.4):
                self.play(make("trusts-its-table"), seconds, 0.02)


class PromiseTests(SynchronousTestCase):
    """What is promised outlives a power cut, also where nothing had to be written down for it."""

    def play(self, seed: int) -> None:
        """A chunk was held, collected, and is stored and held again right before the power fails."""
        with ChunkStage(seed=seed) as stage:
            stage.grow(1, replicas=1)
            server, content, other = stage[1], stage.content(), stage.content()
            for name, one in (("home/file", content), ("home/other", other)):
                stage.put(server, name, one)
                stage.wait_for(server.catalog.remove(name))
            stage.pass_time(GRACE / 2)
            assert all(stage.wait_for(server.transfer.hold(content.digests)).values())
            while any(map(stage.intact, content.all)):
                # A promise about something else is written down meanwhile, and with it how late it is.
                assert all(stage.wait_for(server.transfer.hold(other.digests)).values())
                stage.pass_time(GRACE / 3)
            for piece in content.pieces():
                stage.wait_for(server.transfer.write(piece))
            held = stage.now
            assert all(stage.wait_for(server.transfer.hold(content.digests)).values())
            server.cut_power()
            server.start()
            # Who collects what was promised is told of by the farm itself; that it is collected at all shows that it
            # was looked at.
            stage.until(lambda: not any(map(stage.intact, content.digests)), 2 * TIDY_SECONDS)
            assert stage.now >= held + GRACE

    def test_an_old_promise_stays_forgotten(self) -> None:
        """No power cut brings back how long ago the chunk had been held before."""
        for seed in (1, 2):
            self.play(seed)


class JustJoinedTests(SynchronousTestCase):
    """Right after joins no computed owner has a chunk yet."""

    def play(self, make: Make | None) -> None:
        """Files on two servers are read over four that have just joined, and which own most chunks now."""
        with ChunkStage(make) as stage:
            stage.grow(2)
            contents = [stage.content() for _ in range(4)]
            for number, content in enumerate(contents):
                stage.put(stage[1], f"home/{number}", content)
            for _ in range(4):
                stage.add(weight=1).start()
            servers = list(stage.servers.values())
            stage.until(lambda: all(one.is_serving and len(one.roster.servers) == 6 for one in servers), 5.0)
            rows = stage.rows
            strangers = [
                digest
                for content in contents
                for digest in content.all
                if not {row.id for row in placement.owners(digest, rows, 3)} & {one.id for one in stage.intact(digest)}
            ]
            assert strangers, "every chunk is on one of its owners: this story proves nothing"
            for number, content in enumerate(contents):
                readings = [stage.read(server, f"home/{number}") for server in servers[2:]]
                for succeeded, result in stage.wait_for(DeferredList(readings, consumeErrors=True)):
                    assert succeeded and result == content.data, str(result)
            stage.until(lambda: self.is_tidy(stage), TIDY_SECONDS)

    def is_tidy(self, stage: ChunkStage) -> bool:
        try:
            stage.tidy()
        except Violation:
            return False
        return True

    def test_just_joined(self) -> None:
        """Every file can be read over every server at once; then the owners get theirs, and others give theirs up."""
        self.play(None)

    def test_owners_alone(self) -> None:
        """Readers that ask owners alone would not find them."""
        with pytest.raises(Violation, match="no server has"):
            self.play(make("asks-owners-alone"))
