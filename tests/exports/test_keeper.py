"""Keeping the chunks of exports on every server."""

from __future__ import annotations

import errno

from attrs import evolve
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import placement
from chunkfarm.chunks.pieces import Buffer
from chunkfarm.exports.form import EXPORT_KEY, read_kept
from chunkfarm.exports.keeper import AGAIN_SECONDS, KEEPERS_MAX, ROUND_SECONDS, START_SECONDS, keepers
from chunkfarm.references import CannotTell
from chunkfarm.table.interface import Row
from tests.chunks.builders import make_servers
from tests.exports.builders import World

OTHER = b"o" * 32


class KeepingTests(SynchronousTestCase):
    def make(self, servers: int = 6) -> World:
        """A farm in which an export was made, of whose chunks s1 owns but some."""
        world = World(self, servers)
        world.fill(2_000)
        world.maker.begin()
        world.pass_time(120)
        return world

    def pieces(self, world: World) -> list[bytes]:
        return [world.kept[0].digest, *world.head().digests]

    def here(self, world: World) -> int:
        lengths = self.successResultOf(world.store.has(self.pieces(world)))
        return sum(map(bool, lengths))

    def test_everything_is_fetched(self) -> None:
        """Whoever owns them, all chunks of an export come to this server, and are left alone by whoever tidies up."""
        world = self.make()
        pieces = self.pieces(world)
        assert 0 < self.here(world) < len(pieces)
        assert world.keeper.guards(pieces[1]) and world.keeper.guards(OTHER), "nobody knows yet"
        world.keeper.start()
        world.pass_time(START_SECONDS + 30)
        assert self.here(world) == len(pieces) and world.keeper.missing == 0
        assert all(map(world.keeper.guards, pieces)) and not world.keeper.guards(OTHER)
        assert read_kept(world.noted.read_bytes()) == world.kept, "where to find it is written down beside the chunks"

    def test_the_next_export(self) -> None:
        """As soon as the row changes, what is new is fetched."""
        world = self.make()
        world.keeper.start()
        world.pass_time(START_SECONDS + 30)
        world.table.put(b"files/home/000100", b"other")
        world.maker.begin()
        world.keeper.table_changed()
        world.pass_time(5)
        assert self.here(world) == len(self.pieces(world))
        assert len(world.kept) == 2

    def test_a_copy_is_lost(self) -> None:
        """What vanished is fetched anew within the hour."""
        world = self.make()
        world.keeper.start()
        world.pass_time(START_SECONDS + 30)
        world.copy_to_all()
        self.successResultOf(world.store.delete(self.pieces(world)[3]))
        world.pass_time(ROUND_SECONDS + 60, 10)
        assert self.here(world) == len(self.pieces(world))

    def test_nobody_answers(self) -> None:
        """It says how much it lacks, and goes on when somebody does; one that is lost does not hold up the others."""
        world = self.make()
        missing = len(self.pieces(world)) - self.here(world)
        world.links.dead = {server.id for server in world.servers}
        world.keeper.start()
        world.pass_time(START_SECONDS + 5)
        assert world.keeper.missing == missing
        world.links.dead = set()
        lost = next(
            digest for digest in self.pieces(world)[1:] if not self.successResultOf(world.store.has([digest]))[0]
        )
        for held in world.links.held.values():
            held.pop(lost, None)
        world.pass_time(AGAIN_SECONDS + 30)
        assert world.keeper.missing == 1

    def test_a_chunk_that_the_disk_does_not_take(self) -> None:
        """If the disk fails at one chunk again and again, all others come here."""
        world = self.make()
        lengths = self.successResultOf(world.store.has(self.pieces(world)))
        missing = sorted(one for one, length in zip(self.pieces(world), lengths, strict=True) if not length)
        assert len(missing) > 1
        put = world.store.put

        def refusing(digest: bytes | None, data: Buffer, **options: bool) -> Deferred[bytes]:
            bad = digest == missing[0]
            return fail(OSError(errno.EIO, "Input/output error")) if bad else put(digest, data, **options)

        world.store.put = refusing  # type: ignore[method-assign]
        world.keeper.start()
        world.pass_time(START_SECONDS + AGAIN_SECONDS + 30)
        assert self.here(world) == len(self.pieces(world)) - 1

    def test_a_lost_head(self) -> None:
        """An export whose head no server has is of no use, and keeps nothing else from being tidied up."""
        world = self.make()
        head = world.kept[0].digest
        for held in world.links.held.values():
            held.pop(head, None)
        self.successResultOf(world.store.delete(head))
        world.keeper.start()
        world.pass_time(START_SECONDS + 5)
        assert not world.keeper.guards(OTHER)
        self.flushLoggedErrors()

    def test_a_row_that_makes_no_sense(self) -> None:
        """It is said, and nothing is tidied up by it."""
        world = self.make()
        world.table.put(EXPORT_KEY, b"nonsense")
        world.keeper.start()
        world.pass_time(START_SECONDS + 5)
        assert world.keeper.guards(OTHER) and world.keeper.kept == ()

    def test_what_is_used(self) -> None:
        """Whoever collects chunks is told of all that exports are made of, or that it cannot be said."""
        world = self.make()
        rows = [world.table.rows[EXPORT_KEY]]
        assert self.successResultOf(world.keeper.used(rows)) == frozenset(self.pieces(world))
        assert self.successResultOf(world.keeper.used([])) == frozenset()
        world.links.dead = {server.id for server in world.servers}
        self.successResultOf(world.store.delete(world.kept[0].digest))
        world.keeper._asked.clear()
        waiting = world.keeper.used(rows)
        world.pass_time(30)
        self.failureResultOf(waiting, CannotTell)
        self.failureResultOf(world.keeper.used([Row(EXPORT_KEY, b"nonsense", 9)]), CannotTell)

    def test_who_stores_nothing(self) -> None:
        """A server of weight 0, or one that is emptied, keeps no exports either."""
        for change in ({"weight": 0}, {"state": "draining"}):
            world = self.make()
            world.servers = (evolve(world.servers[0], **change), *world.servers[1:])
            before = self.here(world)
            world.keeper.start()
            world.pass_time(START_SECONDS + 30)
            assert self.here(world) == before and not world.keeper.guards(self.pieces(world)[1])

    def test_no_room(self) -> None:
        """A full server fetches nothing, and tries again."""
        world = self.make()
        before = self.here(world)
        world.store.reserve = 2**60
        world.keeper.start()
        world.pass_time(START_SECONDS + 5)
        assert self.here(world) == before
        world.store.reserve = 0
        world.pass_time(AGAIN_SECONDS + 30)
        assert self.here(world) == len(self.pieces(world))

    def test_no_room_for_the_note(self) -> None:
        """That is said once, and tried again; the chunks are guarded all the same."""
        world = self.make()
        world.noted = world.noted / "nowhere" / "exports.json"
        world.keeper = world.make_keeper(world.servers[0])
        world.keeper.start()
        self.addCleanup(world.keeper.stop)
        world.pass_time(START_SECONDS + 2 * AGAIN_SECONDS + 10)
        assert world.keeper.guards(self.pieces(world)[1]) and not world.keeper.guards(OTHER)
        assert self.here(world) == len(self.pieces(world))

    def test_who_keeps_them(self) -> None:
        """All servers of a farm of the usual size, and so many of a large one, in as many zones as there are."""
        servers = make_servers(KEEPERS_MAX)
        assert set(keepers(servers)) == set(servers)
        many = tuple(evolve(server, zone=f"z{server.seniority % 30}") for server in make_servers(200))
        assert len(keepers(many)) == KEEPERS_MAX
        assert len({server.zone for server in keepers(many)}) == KEEPERS_MAX
        assert placement.owners(b"\0" * 32, many, KEEPERS_MAX) == keepers(many)
