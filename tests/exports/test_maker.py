"""Making exports: when, of what, and at what cost."""

from __future__ import annotations

import sqlite3
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import NotFound, ReadOnly
from chunkfarm.exports.form import EXPORT_KEY, EXPORTS_KEPT, read_page
from chunkfarm.exports.maker import FIRST_AFTER, INTERVAL, RETRY_AFTER, SPREAD_SECONDS, Made, export_pairs
from chunkfarm.model import EPOCH_KEY
from chunkfarm.table.interface import Row
from tests.exports.builders import NOW, World


class MakingTests(SynchronousTestCase):
    def make(self, rows: int = 500) -> World:
        world = World(self)
        world.fill(rows)
        return world

    def export(self, world: World) -> Made:
        """As a person asks for one, whose copies come to all servers."""
        number = world.maker.begin().number
        world.copy_to_all()
        world.pass_time(2)
        made = world.maker.progress(number).made
        assert made is not None, world.maker.progress(number)
        return made

    def rows_in(self, world: World, number: int = 0) -> list[Row]:
        return [row for digest in world.head(number).digests for row in read_page(world.chunk(digest))]

    def test_all_rows(self) -> None:
        """Everything that is in the table is in the export, and the head says what it is."""
        world = self.make()
        rows = [world.table.rows[key] for key in sorted(world.table.rows)]
        made = self.export(world)
        assert self.rows_in(world) == rows
        head = world.head()
        assert (head.farm, head.name, head.line, head.term, head.time) == ("fa" * 16, "lab", "1e" * 16, 3, NOW)
        assert (head.rows, head.revision, head.revision) == (500, 500, made.kept.revision)
        assert world.kept == (made.kept,) and made.new == made.pages > 1
        assert (made.complete, made.servers) == (3, 3)
        assert all(view.closed for view in world.views)

    def test_nothing_has_changed(self) -> None:
        """Then the last export is good, and nothing is written, whatever else the log has grown by."""
        world = self.make()
        first = self.export(world)
        before = world.table.revision
        again = self.export(world)
        assert (again.kept, again.new, world.table.revision) == (first.kept, 0, before)
        # An entry without an effect on rows moves the revision on, and a look at the rows finds them equal.
        world.table.revision += 5
        assert self.export(world).new == 0 and len(world.kept) == 1

    def test_only_what_changed_is_stored(self) -> None:
        """The next export stores the pages that are new, its head, and no others."""
        world = self.make(2_000)
        self.export(world)
        world.table.put(b"files/home/001000", b"other")
        held = set(world.links.on(world.servers[1])) | set(world.links.on(world.servers[2]))
        world.links.calls.clear()
        made = self.export(world)
        assert 1 <= made.new <= 3 < made.pages
        assert len([call for call in world.links.calls if call[0] == "put"]) <= 2 * (made.new + 1)
        assert held < set(world.links.on(world.servers[1]))
        assert len(world.kept) == 2 and self.rows_in(world)[1000].value == b"other"

    def test_some_are_kept(self) -> None:
        """The row names the last few, the newest first."""
        world = self.make(50)
        for number in range(EXPORTS_KEPT + 2):
            world.table.put(b"files/a/b", b"%d" % number)
            self.export(world)
        assert len(world.kept) == EXPORTS_KEPT
        assert [one.revision for one in world.kept] == sorted((one.revision for one in world.kept), reverse=True)

    def test_hourly_on_the_first(self) -> None:
        """A server that leads makes one after some minutes, then one an hour; one that does not makes none."""
        world = self.make(50)
        world.is_leader = False
        world.maker.start()
        world.pass_time(2 * INTERVAL, 5)
        assert not world.kept
        world.is_leader = True
        world.pass_time(FIRST_AFTER - 5, 5)
        assert not world.kept
        world.pass_time(10, 5)
        assert len(world.kept) == 1
        world.copy_to_all()
        world.table.put(b"files/a/b", b"")
        world.pass_time(INTERVAL - 100, 5)
        assert len(world.kept) == 1
        world.pass_time(200, 5)
        assert len(world.kept) == 2

    def test_what_must_not_come_back(self) -> None:
        """A key that was taken away, or a server that was forgotten, is not left to the next hour; but one a minute."""
        world = self.make(50)
        world.maker.start()
        world.pass_time(10, 5)
        world.urgent = True
        world.pass_time(15, 5)
        assert len(world.kept) == 1
        world.copy_to_all()
        world.table.put(b"files/a/b", b"")
        world.pass_time(RETRY_AFTER - 20, 5)
        assert len(world.kept) == 1
        world.pass_time(30, 5)
        assert len(world.kept) == 2
        world.urgent = False
        world.table.put(b"files/a/c", b"")
        world.pass_time(INTERVAL - 100, 5)
        assert len(world.kept) == 2

    def test_leading_anew(self) -> None:
        """Who loses the lead and gets it back begins to count anew."""
        world = self.make(50)
        world.maker.start()
        world.pass_time(FIRST_AFTER - 20, 5)
        world.has_quorum = False
        world.pass_time(5, 5)
        world.has_quorum = True
        world.pass_time(FIRST_AFTER - 10, 5)
        assert not world.kept
        world.pass_time(20, 5)
        assert len(world.kept) == 1

    def test_it_fails(self) -> None:
        """It says why, and is tried again soon."""
        world = self.make(50)
        world.maker.start()
        world.table.unavailable = True
        world.pass_time(FIRST_AFTER + 10, 5)
        assert "no majority" in world.maker.last.failed
        assert ("export-failed", world.maker.last.failed) in export_pairs((), world.maker.last, 0, NOW)
        world.table.unavailable = False
        world.pass_time(RETRY_AFTER + 10, 5)
        assert len(world.kept) == 1

    def test_a_failing_disk(self) -> None:
        """What cannot be read any more is told, for the process must end; it is no fault of the table's content."""
        world = self.make(50)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        world.fails_with = error
        world.maker.begin()
        assert [failure.value for failure in world.broken] == [error]
        assert "log" in world.maker.last.failed
        self.flushLoggedErrors(sqlite3.OperationalError)

    def test_who_holds_no_table(self) -> None:
        """A server without the rows sends who asks to another one."""
        world = self.make(50)
        world.holds_rows = False
        self.assertRaises(ReadOnly, world.maker.begin)
        self.assertRaises(NotFound, world.maker.progress, 1)

    def test_two_ask(self) -> None:
        """An export that was begun before does not count for whoever asks now: what was stored since is in another."""
        world = self.make(50)
        world.links.silent = {server.id for server in world.servers}
        first = world.maker.begin()
        world.table.put(b"files/late/one", b"")
        second = world.maker.begin()
        assert first.running and second.running and second.number == first.number + 1
        world.links.silent = set()
        world.links.release()
        world.pass_time(200)
        assert world.maker.progress(1).made is not None
        assert world.maker.progress(2).made is not None
        assert [row.key for row in self.rows_in(world)][-1] == b"files/late/one"

    def test_another_server_writes_the_row(self) -> None:
        """Two exports at once are both kept."""
        world = self.make(50)
        self.export(world)
        world.table.put(b"files/a/b", b"")
        value = world.table.rows[EXPORT_KEY].value.replace(b'"revision": 50', b'"revision": 49')

        def quicker(operations: object) -> None:
            world.table.before_transact = lambda operations: None
            world.table.put(EXPORT_KEY, value)

        world.table.before_transact = quicker
        self.export(world)
        assert [one.revision for one in world.kept] == [52, 49]

    def test_the_epoch_moves_on(self) -> None:
        """Whoever promised to keep the chunks is asked again, and only what they still have is named."""
        for lost in (False, True):
            world = self.make(50)

            def quicker(operations: object, world: World = world, lost: bool = lost) -> None:
                world.table.before_transact = lambda operations: None
                world.table.put(EPOCH_KEY, b"{}")
                if lost:
                    world.links.held.clear()
                    for prefix in range(256):
                        for digest in self.successResultOf(world.store.scan(prefix)):
                            self.successResultOf(world.store.delete(digest))

            world.table.before_transact = quicker
            world.maker.begin()
            world.pass_time(SPREAD_SECONDS + 5)
            assert ("hold", "s2") in world.links.calls
            if lost:
                assert "given up" in world.maker.last.failed and not world.kept
                world.maker.begin()
                world.pass_time(SPREAD_SECONDS + 5)
            assert len(world.kept) == 1 and world.head().rows == 50 + lost

    def test_chunks_of_the_last_one_are_lost(self) -> None:
        """Then everything is stored anew."""
        world = self.make(2_000)
        self.export(world)
        lost = world.head().digests[2]
        for held in world.links.held.values():
            held.pop(lost, None)
        self.successResultOf(world.store.delete(lost))
        world.table.put(b"files/home/000000", b"other")
        world.maker.begin()
        world.pass_time(SPREAD_SECONDS + 5)
        assert self.rows_in(world)[0].value == b"other" and len(self.rows_in(world)) == 2_000

    def test_a_server_lacks_some(self) -> None:
        """It is told on how many servers the export is whole; nobody is waited for for ever."""
        world = self.make(50)
        world.maker.begin()
        world.pass_time(SPREAD_SECONDS + 5)
        made = world.maker.last.made
        assert made is not None and made.complete < made.servers == 3
        told = dict(export_pairs(world.kept, world.maker.last, 4, NOW + 7_900))
        assert told["export-age"] == "7" and told["export-rows"] == "50" and told["export-missing-here"] == "4"
        assert told["export-complete-on"] == f"{made.complete} of 3 servers"
        assert told["export"] == "2026-11-22T10:00:00.123Z of revision 50"

    def test_stopping(self) -> None:
        """One that is under way when the server stops is given up, and its view is closed."""
        world = self.make(50)
        world.links.silent = {server.id for server in world.servers}
        world.maker.start()
        world.maker.begin()
        self.successResultOf(world.maker.stop())
        assert world.views[0].closed and not world.kept
        assert not world.clock.getDelayedCalls()


class GentleTests(SynchronousTestCase):
    def test_small_steps(self) -> None:
        """Rows are read in steps of a millisecond or two, with a longer rest after each."""
        world = World(self)
        world.fill(3_000)
        steps: list[float] = []
        run = world.maker._run

        def slow(function, *arguments, **more):  # type: ignore[no-untyped-def]
            if function.__name__ == "_step":
                steps.append(world.clock.seconds())
                world.clock.rightNow += 0.002
            return run(function, *arguments, **more)

        world.maker._run = slow  # type: ignore[assignment]
        world.maker.begin()
        world.pass_time(3, 0.001)
        assert len(steps) > 10
        gaps = [later - earlier for earlier, later in pairwise(steps)]
        assert min(gaps) >= 0.0079, min(gaps)
