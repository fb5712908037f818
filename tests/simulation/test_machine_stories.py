"""Named stories of machines: hanging disks, processes that crash in a loop, pauses, reboots, lost rooms."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.model import GIB
from chunkfarm.table.interface import Delete
from tests.simulation.faults import both
from tests.simulation.servers import PEER_PORT, SimulatedServer
from tests.simulation.stage import Stage
from tests.simulation.users import PREFIX

WRITE_LIMIT = 10.0
"""Seconds after which a write to the journal has failed: `master_grace`, as it is by default."""
EVERY = 1.0
"""Seconds between two starts of a process that crashes."""


class HangingDiskTests(SynchronousTestCase):
    """A disk that never answers."""

    def play(self, number: int) -> None:
        """The disk of that server hangs, also under each of its next processes, until somebody gives it another."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            ill, life = farm[number], farm[number].lives
            others = [server for server in farm.servers if server is not ill]
            ill.disk_hangs = True
            farm.try_to_write(others[0], "while it hangs", WRITE_LIMIT + 5.0)
            farm.until(lambda: not ill.is_up or ill.lives > life, "its process has ended", WRITE_LIMIT + 2.0)
            farm.serve(*others, seconds=10.0)
            assert farm.first in others
            farm.remember(others[0], "meanwhile")
            farm.wait(3 * WRITE_LIMIT)
            farm.remember(others[1], "later")
            assert not ill.is_serving
            ill.kill()
            ill.disk_hangs = False
            ill.start()
            farm.end()

    def test_of_the_first(self) -> None:
        """Its process ends when a write has taken too long, and another server leads."""
        self.play(1)

    def test_of_another(self) -> None:
        """Nobody waits for it, and its process ends as well."""
        self.play(3)

    def test_slow_disks(self) -> None:
        """Where every disk takes seconds the first stays, since it is heard all the same, and writes come to an end."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            first, leaderships = farm.first, farm.leaderships
            for server in farm.servers:
                server.disk_slow = 6.0
            for number in range(5):
                farm.remember(farm[number % 3 + 1], f"slowly {number}")
            assert (farm.first, farm.leaderships) == (first, leaderships)
            for server in farm.servers:
                server.disk_slow = 0.0
            farm.end()


class CrashLoop:
    """A process that opens its ports, crashes, and is started again each second."""

    def __init__(self, farm: Stage, server: SimulatedServer, life: float) -> None:
        self._farm = farm
        self._server = server
        self._life = life
        self.listened = 0
        """How often somebody could have found its port open."""
        self.goes_on = True
        self._start()

    def _start(self) -> None:
        if self.goes_on:
            self._server.start()
            self._farm.world.at(self._life, None, self._crash)
            self._farm.world.at(EVERY, None, self._start)

    def _crash(self) -> None:
        self.listened += (self._server.host, PEER_PORT) in self._farm.network.ports
        self._server.kill()


class CrashLoopTests(SynchronousTestCase):
    """The first crashes, and does so again as soon as it is started."""

    def play(self, servers: int, life: float) -> None:
        """Whoever is left takes writes while it goes on, and the one that crashes belongs to the farm afterwards."""
        with Stage() as farm:
            farm.grow(servers)
            farm.until(lambda: len(farm.voters()) == min(servers, 3), "masters vote")
            farm.wait(2.0)
            farm.remember(farm[2], "before")
            ill = farm.first
            ill.kill()
            farm.wait(EVERY - life)
            loop = CrashLoop(farm, ill, life)
            farm.wait(20.0)
            for number in range(3):
                farm.remember(farm[2], f"meanwhile {number}")
            assert loop.listened > 15, "nobody can have noticed that it is back: this story proves nothing"
            assert farm.leaders == [farm[2]]
            if servers > 3:
                assert farm.voters() == {"s2", "s3", "s4"}
            loop.goes_on = False
            farm.wait(EVERY)
            ill.start()
            farm.end()

    def test_the_first_of_two(self) -> None:
        """The second goes on, whether the first lives long enough to vote or only to listen."""
        for life in (0.03, 0.6):
            self.play(2, life)

    def test_the_first_of_four(self) -> None:
        """Another leads, and a server that runs takes its place among those who vote."""
        for life in (0.03, 0.6):
            self.play(4, life)


class PauseTests(SynchronousTestCase):
    """Processes that do not run for a while."""

    def test_all_at_once(self) -> None:
        """Five that were frozen together wake up: nobody takes another one for dead, and the first stays."""
        with Stage() as farm:
            farm.grow(5)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.wait(5.0)
            first, voters, leaderships, told = farm.first, farm.voters(), farm.leaderships, len(farm.story)
            for server in farm.servers:
                server.freeze(60.0)
            farm.wait(80.0)
            assert not [line for line in farm.story[told:] if "Down" in line]
            assert (farm.first, farm.voters(), farm.leaderships) == (first, voters, leaderships)
            farm.end()


class RebootTests(SynchronousTestCase):
    """A machine that is away for as long as it takes to start it again."""

    def test_power_fails_while_one_comes_back(self) -> None:
        """One of three was away for a minute; when it is back another one may lose its power at once."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[1], "before")
            farm[3].kill()
            farm.wait(60.0)
            farm.remember(farm[2], "meanwhile")
            farm[3].start()
            farm.until(lambda: farm[3].parts is not None, "it is back")
            farm[1].cut_power()
            farm.serve(farm[2], farm[3], seconds=20.0)
            farm.remember(farm[3], "without the first")
            farm[1].power_on()
            farm[1].start()
            farm.end()

    def test_who_comes_back_meets_one_that_lags(self) -> None:
        """What two of three decided is there although one of them restarts and hears nobody but the third."""
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            one, behind, other = farm.servers
            for way in both(one, behind) + both(other, behind):
                farm.network.close_way(*way)
            farm.remember(other, "of two")
            other.kill()
            one.cut_power()
            for way in both(one, behind) + both(other, behind):
                farm.network.open_way(*way)
            other.start()
            farm.serve(other, behind, seconds=40.0)
            farm.check_memory()
            one.power_on()
            one.start()
            farm.end()


class RepeatTests(SynchronousTestCase):
    """What was decided and not answered."""

    def test_a_removal_is_not_repeated(self) -> None:
        """The first dies before it answers; a row of the same name that came meanwhile is not removed with the old."""
        key = PREFIX + b"file"
        with Stage() as farm:
            farm.grow(4)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[2], "file")
            asks, first = farm[4], farm.first
            told: list[object] = []

            def remove() -> Deferred[None]:
                assert asks.parts is not None
                return asks.parts.embedded.transact((), (Delete(key),)).addBoth(told.append)

            def is_removed() -> bool:
                return any(Delete(key) in operations for operations in farm.checks.changes.values())

            assert asks.process is not None
            asks.process.at(0.0, remove)
            assert farm.run_for(5.0, is_removed) and not told
            asks.freeze(8.0)
            first.kill()
            farm.serve(farm[2], farm[3], seconds=6.0)
            farm.remember(farm[3], "file")
            farm.until(lambda: bool(told), "it is answered", 40.0)
            assert isinstance(told[0], int), told
            farm.check_memory()
            first.start()
            farm.end()


class OneRoomTests(SynchronousTestCase):
    """Machines that are lost together."""

    def test_all_masters_in_one_room(self) -> None:
        """Two machines elsewhere join later: the room may be lost then, and they go on together with one of another."""
        with Stage() as farm:
            for number, zone in enumerate(("cellar", "cellar", "cellar", "attic", "garden")):
                server = farm.add_server()
                server.zone = zone
                if number:
                    farm.join(server)
                else:
                    server.configure(())
                    server.start()
                farm.serve()
            farm.until(lambda: len(farm.voters() & {"s4", "s5"}) == 2, "those elsewhere vote")
            farm.remember(farm[1], "before")
            farm.wait(5.0)
            for server in farm.servers[:3]:
                server.cut_power()
            farm.serve(farm[4], farm[5], seconds=20.0)
            farm.remember(farm[5], "without the room")
            for server in farm.servers[:3]:
                server.power_on()
                server.start()
            farm.end()


class ReportTests(SynchronousTestCase):
    """What servers say of themselves each second."""

    def test_free_space_changes_all_the_time(self) -> None:
        """Disks that fill and empty each second cost one commit a minute for each server, and no more."""
        with Stage() as farm:
            farm.grow(5)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.wait(5.0)
            before = set(farm.checks.changes)
            for second in range(60):
                for server in farm.servers:
                    server.free = (20 + second % 2 * 40 + server.number) * GIB
                farm.wait(1.0)
            commits = len(set(farm.checks.changes) - before)
            assert 5 <= commits <= 2 * 5 + 2, commits
            farm.end()
