"""Named stories of whole farms: what people do with their machines, and what machines do to people."""

from __future__ import annotations

from itertools import permutations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.embedded import CAUGHT_UP_LAG
from chunkfarm.table.interface import Put
from chunkfarm.table.progress import REPLICATE
from tests.builders import make_server
from tests.simulation.stage import Stage
from tests.simulation.users import PREFIX


class GrowthTests(SynchronousTestCase):
    """From nothing to five."""

    def test_several_start_with_nobody_leading(self) -> None:
        """Three machines with copies of one list, started at the same moment, become one farm."""
        with Stage() as farm:
            servers = [farm.add_server() for _ in range(3)]
            for server in servers:
                server.configure(tuple(other for other in servers if other is not server))
                server.start()
            farm.end()
            farm.until(lambda: len(farm.voters()) == 3, "all three vote")

    def test_one_two_three_five(self) -> None:
        """A farm grows while it is used, and what was written when it was small is there when it is large."""
        with Stage() as farm:
            for count in (1, 2, 3, 5):
                farm.grow(count)
                farm.remember(farm[count], f"of {count}")
                farm.until(lambda count=count: len(farm.voters()) == min(count, 3), "masters vote")  # type: ignore[misc]
            farm.end()


class LossTests(SynchronousTestCase):
    """Servers that go, and come back or not."""

    def test_the_first_is_down_for_a_moment(self) -> None:
        """A first that is killed and started at once costs seconds, and no vote."""
        with Stage() as farm:
            farm.grow(3)
            farm.remember(farm[2], "before")
            farm[1].kill()
            farm.wait(0.5)
            farm[1].start()
            farm.serve(seconds=15.0)
            assert len(farm.voters()) == 3
            farm.end()

    def test_the_first_is_down_for_long(self) -> None:
        """A senior of the others leads; the one that comes back stands at the end of the line."""
        with Stage() as farm:
            farm.grow(4)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[1], "before")
            farm[1].kill()
            farm.serve(farm[2], farm[3], farm[4], seconds=15.0)
            farm.remember(farm[4], "meanwhile")
            farm.until(lambda: farm.voters() == {"s2", "s3", "s4"}, "a learner takes the place of the lost one")
            assert farm.first is farm[2]
            farm[1].start()
            farm.end()
            assert farm.first is farm[2]

    def test_two_of_three_are_down(self) -> None:
        """One of three writes nothing; with the two back all goes on, and nothing is lost."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[1], "before")
            farm[1].kill()
            farm[2].kill()
            assert not farm.try_to_write(farm[3], "alone")
            farm[1].start()
            farm[2].start()
            farm.end()

    def test_of_many_servers_all_are_known_at_once(self) -> None:
        """One that starts again knows each of some hundred by its own rows, before anybody has answered."""
        with Stage() as farm:
            farm.grow(2)
            many = [make_server(number, state="down") for number in range(100, 300)]
            for start in range(0, len(many), 50):
                rows = tuple(Put(row.key, row.to_value()) for row in many[start : start + 50])
                farm.ask(farm[1], lambda table, rows=rows: table.transact((), rows))  # type: ignore[misc]
            farm.wait(1.0)
            for server in farm.servers:
                server.kill()
            farm[1].start()
            farm.until(lambda: farm[1].parts is not None and bool(farm[1].parts.roster.servers), "it has read its rows")
            assert farm[1].parts is not None
            assert {row.id for row in many} < {row.id for row in farm[1].parts.servers()}

    def test_all_were_told_to_end(self) -> None:
        """One after the other. The one that is started again alone says whom it waits for, and what else helps."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            for server in farm.servers:
                server.stop()
                farm.wait(0.3)
            farm.wait(40.0)
            for server in farm.servers:
                server.start()
                farm.wait(15.0)
                assert server.parts is not None
                state = server.parts.state
                assert state.phase == "waiting" and len(state.waits) == 2, f"{server.name} {state}"
                assert "takeover" in "".join(state.cures)
                server.kill()
            for server in farm.servers:
                server.start()
            farm.end()

    def test_who_follows_a_full_disk(self) -> None:
        """The first hands over because its disk is full: whoever was told of changes by it is told by another."""
        with Stage() as farm:
            farm.grow(6)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            holding = [server.parts.embedded for server in farm.servers if server.parts is not None]
            farm.until(lambda: sum(table.holds_rows for table in holding) == 5, "five hold the table")
            follower, old = farm.servers[[table.holds_rows for table in holding].index(False)], farm.first
            old.disk.full = True
            farm.remember(farm[2], "by the next one")
            parts = farm.first.parts
            assert farm.first is not old and parts is not None and farm.first.process is not None
            farm.first.process.at(0.0, parts.registry.set_farm, lambda options: evolve(options, replicas=2))
            farm.wait(20.0)
            for server in (follower, old):
                assert server.parts is not None and server.parts.roster.options.replicas == 2, server.name
            farm.remember(old, "through the full one")
            page = farm.ask(old, lambda table: table.read(PREFIX), 5.0)
            assert len(page.rows) >= 2
            old.disk.full = False
            farm.end()

    def test_a_third_that_cannot_take_a_place(self) -> None:
        """One of two is lost while a third with a full disk learns: the other waits for neither."""
        with Stage() as farm:
            farm.grow(2)
            farm.until(lambda: len(farm.voters()) == 2, "two vote")
            first, second = farm.first, next(server for server in farm.servers if server is not farm.first)
            third = farm.add_server()
            farm.join(third)
            assert first.parts is not None
            table = first.parts.embedded
            assert farm.run_for(20.0, lambda: third.is_serving)
            third.disk.full = True
            farm.until(lambda: third.id in table.configuration.learners and not table.change_pending, "it learns")
            second.kill()
            farm.wait(15.0)
            farm.remember(first, "without the second")
            third.disk.full = False
            farm.until(lambda: farm.voters() == {first.name, third.name}, "the third votes")
            second.start()
            farm.end()

    def test_all_come_back_in_any_order(self) -> None:
        """Three servers without power are started again, one after the other, in each of the six orders."""
        for order in permutations((1, 2, 3)):
            with Stage() as farm:
                farm.grow(3)
                farm.until(lambda farm=farm: len(farm.voters()) == 3, "three vote")  # type: ignore[misc]
                farm.remember(farm[3], "before")
                for server in farm.servers:
                    server.cut_power()
                farm.wait(30.0)
                for number in order:
                    farm[number].power_on()
                    farm[number].start()
                    farm.wait(4.0)
                farm.end()

    def test_the_second_of_two_goes_on(self) -> None:
        """The first of two is killed and stays away: the second goes on, and the first follows when it is back."""
        with Stage() as farm:
            farm.grow(2)
            farm.until(lambda: len(farm.voters()) == 2, "both vote")
            farm.wait(5.0)
            farm.remember(farm[1], "before")
            farm.wait(5.0)
            farm[1].kill()
            farm.serve(farm[2], seconds=30.0)
            farm.remember(farm[2], "alone")
            farm[1].start()
            farm.end()
            assert farm.first is farm[2]


class NetworkTests(SynchronousTestCase):
    """Servers that live and do not hear each other."""

    def test_the_first_is_cut_off_from_the_masters_alone(self) -> None:
        """A first that hears only the servers without rows gives up; the others have a first within seconds."""
        with Stage() as farm:
            farm.grow(5)
            farm.until(lambda: farm.voters() == {"s1", "s2", "s3"}, "three vote")
            farm.remember(farm[4], "before")
            others = {farm[1].host, farm[2].host, farm[3].host}
            for one in others:
                for other in others:
                    if one != other and farm[1].host in (one, other):
                        farm.network.close_way(one, other)
            farm.serve(farm[2], farm[3], seconds=20.0)
            farm.remember(farm[2], "meanwhile")
            assert farm.first is not farm[1]
            assert not farm.try_to_write(farm[1], "by the first that was") or farm.first is not farm[1]
            for way in sorted(farm.network.cut):
                farm.network.open_way(*way)
            farm.end()

    def test_leadership_goes_to_the_senior(self) -> None:
        """A master that was cut off for a moment leads again some time after it is back, for it is the most senior."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            assert farm.first is farm[1]
            for other in (farm[2], farm[3]):
                farm.network.close_way(farm[1].host, other.host)
                farm.network.close_way(other.host, farm[1].host)
            farm.until(lambda: len(farm.leaders) == 1 and farm.leaders != [farm[1]], "another leads", 20.0)
            for way in sorted(farm.network.cut):
                farm.network.open_way(*way)
            farm.until(lambda: farm.leaders == [farm[1]], "the senior leads again", 40.0)
            farm.end()


class DiskTests(SynchronousTestCase):
    """Servers that come back with something else on their disks."""

    def test_an_empty_disk(self) -> None:
        """A machine that lost its disk joins as a new server, and the farm has three copies again."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[1], "before")
            farm[3].kill()
            farm[3].wipe()
            farm.wait(3.0)
            farm.join(farm[3])
            farm.serve()
            farm.until(lambda: farm.voters() == {"s1", "s2", "s3"}, "three vote again")
            farm.end()

    def test_a_learner_that_slept_while_the_first_was_replaced(self) -> None:
        """It finds the new first, though nobody sends it anything and the one that it heard last is no more."""
        with Stage() as farm:
            farm.grow(4)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.wait(2.0)
            farm[4].freeze(60.0)
            farm[1].kill()
            farm[1].wipe()
            farm.wait(3.0)
            farm.join(farm[1])
            farm.serve(farm[1], farm[2], farm[3])
            farm.wait(45.0)
            farm.serve(farm[4], seconds=15.0)
            farm.end()

    def test_the_power_fails_right_after_joining(self) -> None:
        """A server that joined, and has neither rows nor a list with ids yet, finds its farm again."""
        with Stage() as farm:
            farm.grow(2)
            third = farm.add_server()
            farm.join(third)
            assert farm.run_for(10.0, lambda: third.is_serving)
            third.cut_power()
            # Long enough that nobody sends it the table any more.
            farm.wait(25.0)
            third.power_on()
            third.start()
            farm.end()

    def test_a_disk_that_fails_at_a_start(self) -> None:
        """What is said is that the disk fails, and the next start, on a disk that works, is as any other."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm[3].kill()
            farm.wait(1.0)
            for server in farm.servers[:2]:
                for way in ((server.host, farm[3].host), (farm[3].host, server.host)):
                    farm.network.slow[way] = 0.2
            farm[3].start()
            # It reads the servers then, which takes a moment.
            farm.run_for(20.0, lambda: farm[3].parts is not None and farm[3].parts.reporter.belongs)
            assert not farm[3].is_serving
            farm[3].disk.broken = "write"
            farm.until(lambda: not farm[3].is_up, "it has ended")
            farm[3].disk.broken = ""
            farm.until(lambda: farm[3].is_serving, "it serves")
            farm.end()

    def test_an_old_journal(self) -> None:
        """A machine whose disk was put back from a backup learns what it has forgotten."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[1], "before")
            copy = farm[3].copy_disk()
            for number in range(5):
                farm.remember(farm[3], f"after the backup {number}")
            farm[3].kill()
            farm[3].put_back(copy)
            farm.wait(1.0)
            farm[3].start()
            farm.end()

    def test_an_old_journal_on_a_disk_that_fails(self) -> None:
        """It says so in a sentence and ends; with a disk that works it learns like any other."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            copy = farm[3].copy_disk()
            farm.grow(4)
            farm.until(lambda: "s4" in farm[3].config.read_text(), "the list of s3 is newer than the copy")
            farm[3].kill()
            farm[3].put_back(copy)
            farm[3].disk.broken = "sync"
            farm[3].start()
            farm.until(lambda: not farm[3].is_up, "it has ended")
            assert any("cannot be written: disk I/O error" in line for line in farm.story)
            farm[3].disk.broken = ""
            farm.end()

    def test_disks_change_places(self) -> None:
        """Two machines that have each other's disks are the two servers that they were, at each other's addresses."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[1], "before")
            ids = {server.id for server in farm.servers}
            for number in (2, 3):
                farm[number].kill()
            farm[2].swap_data(farm[3])
            for number in (2, 3):
                farm[number].start()
            farm.end()
            assert {server.id for server in farm.servers} == ids and len(farm.voters()) == 3

    def test_disks_change_places_and_nobody_else_is_there(self) -> None:
        """They find each other without a third: each listens where the rows say that the other one does."""
        with Stage() as farm:
            farm.grow(2)
            farm.until(lambda: len(farm.voters()) == 2, "two vote")
            farm.remember(farm[1], "before")
            ids = {server.id for server in farm.servers}
            for number in (1, 2):
                farm[number].kill()
            farm[1].swap_data(farm[2])
            for number in (1, 2):
                farm[number].start()
            farm.end()
            assert {server.id for server in farm.servers} == ids and len(farm.voters()) == 2

    def test_the_disk_of_one_that_lives(self) -> None:
        """A machine that comes back with a copy of another's disk does not start while that one lives."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[1], "before")
            farm[3].kill()
            farm[3].copy_data(farm[2])
            farm.wait(1.0)
            farm[3].start()
            farm.wait(20.0)
            assert not farm[3].is_serving and farm.first is farm[1]
            assert any(f"two processes have the server id {farm[2].name}" in line for line in farm.story)
            farm.serve(farm[1], farm[2])
            farm.remember(farm[2], "meanwhile")
            farm.until(lambda: not farm[3].is_up, "it has ended")
            farm[3].wipe()
            farm.join(farm[3])
            farm.end()

    def test_promoted_while_it_catches_up(self) -> None:
        """A learner that gets the table as a snapshot over a slow link votes only when it has it."""
        with Stage() as farm:
            farm.grow(2)
            for number in range(40):
                written = farm.remember(farm[1], f"row {number}")
            third = farm.add_server()
            for server in farm.servers[:2]:
                for way in ((server.host, third.host), (third.host, server.host)):
                    farm.network.slow[way] = 1.0
            farm.join(third)
            farm.until(lambda: third.parts is not None and third.parts.embedded.is_member, "it learns")
            farm[1].kill()
            farm.wait(1.0)
            farm[1].start()

            told: list[tuple[str, int, int]] = []

            def votes() -> bool:
                """Whether somebody leads who has given the third its vote, and how far that one knew it to be then."""
                for server in farm.leaders:
                    table = server.parts.embedded if server.parts is not None else None
                    if table is not None and third.id in table.configuration.voters:
                        known = table.progress()[third.id]
                        told.append((known.state, known.match, table.last_index - known.match))
                return bool(told)

            assert not votes()
            assert farm.run_for(120.0, votes), "it never votes"
            ((state, match, lag),) = told
            assert state == REPLICATE and lag <= CAUGHT_UP_LAG and match > written
            assert third.parts is not None and third.parts.embedded.revision > written
            farm.serve()
            farm.until(lambda: len(farm.voters()) == 3, "three vote", 120.0)
            farm.end()
