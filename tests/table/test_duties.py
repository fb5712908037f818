"""What the first does: who is alive, who is a master, who leads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import pace
from chunkfarm.membership import in_order
from chunkfarm.model import EPOCH_KEY, GENERATION_KEY, SERVERS, Drain, FarmOptions, Server
from chunkfarm.pace import down_after
from chunkfarm.risk import Exposed, Risk
from chunkfarm.table.duties import MEASURE_INTERVAL, RESTART_GATHER, ROUND, SAID_MAX, Duties, Report
from chunkfarm.table.epochs import Epochs
from chunkfarm.table.interface import TableError, Unavailable
from chunkfarm.table.leadership import ChangeRefused
from chunkfarm.table.records import Configuration
from chunkfarm.table.registry import Registry
from tests.builders import make_server, server_id
from tests.memory_table import MemoryTable

DOWN_AFTER = down_after(3)


class FakeLed:
    """The leader's side of an engine, by hand."""

    def __init__(self) -> None:
        self.is_leader = True
        self.leader = server_id(1)
        self.term = 1
        self.has_quorum = True
        self.configuration = Configuration((server_id(1),))
        self.change_pending = False
        self.committed_this_term = True
        self.proposed: list[Configuration] = []
        self.handed_to: list[str] = []
        self.lagging: set[str] = set()
        self.dropped: list[tuple[str, float]] = []

    def caught_up(self) -> frozenset[str]:
        return self.configuration.members - self.lagging

    def propose_configuration(self, configuration: Configuration) -> Deferred[None]:
        self.proposed.append(configuration)
        self.configuration = configuration
        return succeed(None)

    def drop(self, server_id: str, seconds: float) -> Deferred[None]:
        self.dropped.append((server_id, seconds))
        self.configuration = Configuration(self.configuration.voters - {server_id}, self.configuration.learners)
        return succeed(None)

    def transfer(self, to: str) -> None:
        self.handed_to.append(to)


class DutiesTests(SynchronousTestCase):
    """The first's rounds, on a clock of the test's own."""

    def make_duties(self, *servers: Server, incarnation: str = "run1") -> Duties:
        self.clock = Clock()
        self.table = MemoryTable()
        for server in servers:
            self.table.put(server.key, server.to_value())
        self.led = FakeLed()
        self.time = 7_000
        registry = Registry(self.table, lambda: self.time)
        epochs = Epochs(self.table, self.epoch, FarmOptions)
        duties = Duties(server_id(1), incarnation, self.led, registry, self.servers, FarmOptions, self.clock, epochs)
        duties.start()
        self.addCleanup(duties.stop)
        return duties

    def epoch(self) -> int:
        row = self.table.rows.get(EPOCH_KEY)
        return row.revision if row is not None else 0

    def servers(self) -> tuple[Server, ...]:
        rows = (row for key, row in self.table.rows.items() if key.startswith(SERVERS))
        return in_order(Server.from_value(row.value, row.revision) for row in rows)

    def states(self) -> dict[str, str]:
        return {server.name: server.state for server in self.servers()}

    def pass_time(self, duties: Duties, seconds: float, *reporting: int, **told: Any) -> None:
        """Let time pass in rounds, with these servers reporting in each."""
        for _ in range(round(seconds / ROUND)):
            for number in reporting:
                duties.report(server_id(number), Report(incarnation=f"run{number}", **told))
            self.clock.advance(ROUND)

    def test_silence(self) -> None:
        """Five seconds without a report, and the server is down; not a round earlier."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        self.pass_time(duties, 1, 2, 3)
        self.pass_time(duties, DOWN_AFTER - 1, 2)
        assert self.states()["s3"] == "up"
        self.pass_time(duties, 2, 2)
        assert self.states() == {"s1": "up", "s2": "up", "s3": "down"}

    def test_silence_of_many(self) -> None:
        """Where servers report every two seconds, because they are so many, five reports take ten."""
        self.patch(pace, "SERVERS_A_SECOND", 2)
        duties = self.make_duties(*(make_server(number) for number in range(1, 5)))
        numbers = range(2, 5)
        for _ in range(2):
            self.pass_time(duties, 1, *numbers)
            self.pass_time(duties, 8)
        assert set(self.states().values()) == {"up"}
        self.pass_time(duties, 1, *numbers[1:])
        self.pass_time(duties, 2)
        assert [name for name, state in self.states().items() if state == "down"] == ["s2"]

    def test_reports_of_many(self) -> None:
        """A report costs the same in a farm of two and in one of a thousand: no look at every row for each of them."""
        looks = []

        class Rows(tuple[Server, ...]):
            def __iter__(self) -> Iterator[Server]:
                looks.append(len(self))
                return super().__iter__()

        duties = self.make_duties(*(make_server(number) for number in range(1, 51)))
        rows = Rows(self.servers())
        duties._servers = lambda: rows
        for number in range(1, 51):
            assert duties.report(server_id(number), Report(incarnation=f"run{number}"))
        assert len(looks) < 10

    def test_epoch(self) -> None:
        """The epoch moves on four times in `collect_grace`, and nothing that people see changes with it."""
        duties = self.make_duties(make_server(1))
        part = FarmOptions().collect_grace / 4
        self.clock.advance(ROUND)
        for _ in range(2):
            before = self.epoch()
            self.clock.advance(part - 5)
            assert self.epoch() == before, "not before its time"
            self.pass_time(duties, 6)
            assert self.epoch() > before
        assert GENERATION_KEY not in self.table.rows
        assert len([one for _, one in self.table.transactions if one[0].key == EPOCH_KEY]) == 2

    def test_epoch_of_a_new_first(self) -> None:
        """A new first counts from when it began to lead, and one that does not lead leaves the epoch alone."""
        duties = self.make_duties(make_server(1))
        part = FarmOptions().collect_grace / 4
        self.clock.advance(ROUND)
        self.led.is_leader = False
        self.clock.advance(part)
        self.pass_time(duties, 1)
        self.led.is_leader, self.led.term = True, 2
        self.clock.advance(ROUND)
        self.clock.advance(part - 2 * ROUND)
        assert self.epoch() == 0
        self.pass_time(duties, 3)
        assert self.epoch() > 0

    def test_epoch_that_moved_on_unseen(self) -> None:
        """A first that has not heard yet of the newest epoch does not put another one."""
        duties = self.make_duties(make_server(1))
        self.clock.advance(ROUND)
        self.table.put(EPOCH_KEY, b"{}")
        self.epoch = lambda: 0  # type: ignore[method-assign]
        duties._epochs._known = self.epoch
        before = self.table.rows[EPOCH_KEY].revision
        self.clock.advance(FarmOptions().collect_grace / 4)
        self.pass_time(duties, 3)
        assert self.table.rows[EPOCH_KEY].revision == before

    def test_given_up(self) -> None:
        """A server that stays down is given up after `repair_after`, once; when it is back it is not any more."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        repair_after = FarmOptions().repair_after
        self.pass_time(duties, repair_after - 2, 2)
        assert self.states()["s3"] == "down" and not any(server.given_up for server in self.servers())
        self.pass_time(duties, 4, 2)
        assert {server.name: server.given_up for server in self.servers()} == {"s1": False, "s2": False, "s3": True}
        before = len(self.table.transactions)
        self.pass_time(duties, 20, 2)
        assert len(self.table.transactions) == before
        duties.put(make_server(3, incarnation="run9", given_up=True))
        assert not any(server.given_up for server in self.servers())

    def test_chunks_that_are_short(self) -> None:
        """What servers say that their chunks lack is added up, of those that are not down."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        self.pass_time(duties, 1, 2, 3, short=4)
        assert duties.short() == 8
        self.pass_time(duties, DOWN_AFTER + 1, 2, short=5)
        assert self.states()["s3"] == "down" and duties.short() == 5

    def test_what_can_be_lost(self) -> None:
        """What servers tell is added up. Of one that is down counts what nobody else has."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        assert duties.risk().unknown == 3
        both = Risk(sets=(Exposed((server_id(2), server_id(3)), 1, 10), Exposed((server_id(3),), 2, 20)))
        self.pass_time(duties, 1, 1, risk=Risk())
        self.pass_time(duties, 1, 2, 3, risk=both)
        # A sum is made once a second, however much is told.
        self.pass_time(duties, 1, 2, 3, risk=both)
        assert duties.risk().sets == (Exposed((server_id(3),), 4, 40), Exposed((server_id(2), server_id(3)), 2, 20))
        assert duties.risk() is duties.risk()
        self.pass_time(duties, DOWN_AFTER + 1, 2, risk=Risk(sets=(Exposed((server_id(2),), 2, 20),)))
        assert self.states()["s3"] == "down"
        assert duties.risk() == Risk(sets=(Exposed((server_id(2),), 2, 20), Exposed((server_id(3),), 2, 20)))

    def test_servers_that_are_emptied(self) -> None:
        """How far they are is remembered as they told last; of others nothing is told. Leadership goes to who stays."""
        duties = self.make_duties(make_server(1, draining=True, state="draining"), make_server(2), make_server(3))
        self.led.configuration = Configuration((server_id(1), server_id(2), server_id(3)))
        self.pass_time(duties, 1, 1, 2, 3, drain=Drain(left=4))
        assert duties.drains() == {server_id(1): Drain(left=4)}
        self.pass_time(duties, 12, 1, 2, 3)
        assert self.led.handed_to[:1] == [server_id(2)]

    def test_not_given_up_by_a_new_first(self) -> None:
        """A first that begins to lead counts from then on, whatever the clock on the wall says."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3, state="down", since=0))
        self.time = 10**12
        self.pass_time(duties, FarmOptions().repair_after - 5, 2)
        assert not any(server.given_up for server in self.servers())
        self.pass_time(duties, 10, 2)
        assert [server.name for server in self.servers() if server.given_up] == ["s3"]

    def test_all_that_are_silent_go_down_together(self) -> None:
        """One transaction marks all of them."""
        self.make_duties(make_server(1), make_server(2), make_server(3))
        self.clock.pump([ROUND] * 14)
        changes = [operations for _, operations in self.table.transactions]
        assert self.states() == {"s1": "up", "s2": "down", "s3": "down"}
        assert len(changes) == 1

    def test_disks_without_room(self) -> None:
        """Full disks are named when too few voters are left that can acknowledge; one of three hinders nobody."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        self.led.configuration = Configuration((server_id(1), server_id(2), server_id(3)))
        duties.report(server_id(2), Report(incarnation="run2", table_full=True))
        assert duties.without_room() == ()
        duties.report(server_id(3), Report(incarnation="run3", table_full=True))
        assert duties.without_room() == ("s2", "s3")
        duties.report(server_id(2), Report(incarnation="run2"))
        assert duties.without_room() == ()

    def test_only_the_leader_judges(self) -> None:
        """A server that does not lead changes nothing, however silent the others are."""
        self.make_duties(make_server(1), make_server(2))
        self.led.is_leader = False
        self.clock.pump([ROUND] * 40)
        assert self.states() == {"s1": "up", "s2": "up"}

    def test_a_new_leader_gives_everyone_a_full_round(self) -> None:
        """Silence counts from the beginning of its term."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.led.is_leader = False
        self.pass_time(duties, 60)
        self.led.is_leader, self.led.term = True, 2
        self.pass_time(duties, DOWN_AFTER - 1)
        assert self.states()["s2"] == "up"

    def test_the_leader_before_is_judged_by_its_own_silence(self) -> None:
        """Who takes over knows when it last heard the old first, and does not begin to count anew."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        self.led.is_leader, self.led.leader = False, server_id(2)
        self.pass_time(duties, 2)
        self.led.has_quorum = False
        self.pass_time(duties, 2)
        self.led.is_leader, self.led.leader, self.led.term = True, server_id(1), 2
        self.pass_time(duties, 2.5)
        assert self.states() == {"s1": "up", "s2": "up", "s3": "up"}
        self.pass_time(duties, 1)
        assert self.states() == {"s1": "up", "s2": "down", "s3": "up"}

    def test_after_a_pause_nobody_is_judged(self) -> None:
        """A process that wakes waits a full round before it calls anyone silent."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.pass_time(duties, 1, 2)
        self.clock.advance(60)
        self.pass_time(duties, DOWN_AFTER - 1)
        assert self.states()["s2"] == "up"

    def test_back_within_the_grace_keeps_its_place(self) -> None:
        """It only lost contact: up again, and as senior as before."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        before = {server.id: server.seniority for server in self.servers()}
        self.pass_time(duties, 6, 3)
        assert self.states()["s2"] == "down"
        assert duties.report(server_id(2), Report(incarnation="run2"))
        assert self.states()["s2"] == "up"
        assert {server.id: server.seniority for server in self.servers()} == before

    def test_many_come_back_at_once(self) -> None:
        """Those who come back while one is being marked up are marked in one transaction, and nobody is forgotten."""
        servers = [make_server(1), *(make_server(number, state="down") for number in range(2, 42))]
        duties = self.make_duties(*servers)
        marked: list[tuple[list[str], Deferred[None]]] = []

        def enter_state(ids: Iterable[str], state: str, *, only_from: tuple[str, ...]) -> Deferred[None]:
            assert (state, only_from) == ("up", ("down",))
            marked.append((list(ids), Deferred()))
            return marked[-1][1]

        self.time = 0
        self.patch(duties._registry, "enter_state", enter_state)
        for number in range(2, 42):
            assert duties.report(server_id(number), Report(incarnation=f"run{number}"))
        assert [ids for ids, _ in marked] == [[server_id(2)]]
        marked[0][1].callback(None)
        assert [ids for ids, _ in marked[1:]] == [[server_id(number) for number in range(3, 42)]]
        marked[1][1].errback(Unavailable("no majority"))
        assert duties.report(server_id(7), Report(incarnation="run7"))
        assert [ids for ids, _ in marked[2:]] == [[server_id(7)]]
        marked[2][1].callback(None)

    def test_back_after_the_grace_goes_to_the_end(self) -> None:
        """Gone for longer than `master_grace`, it must give its row anew."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        self.pass_time(duties, 11, 3)
        assert not duties.report(server_id(2), Report(incarnation="run2"))
        self.successResultOf(duties.put(make_server(2)))
        assert [server.name for server in self.servers()] == ["s1", "s3", "s2"]
        assert self.states()["s2"] == "up"

    def test_a_new_process_goes_to_the_end(self) -> None:
        """A report of another incarnation is not known, and its row joins at the end of the line."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        self.pass_time(duties, 1, 2, 3)
        assert not duties.report(server_id(2), Report(incarnation="again"))
        self.successResultOf(duties.put(make_server(2, incarnation="again")))
        assert [server.name for server in self.servers()] == ["s1", "s3", "s2"]
        assert duties.report(server_id(2), Report(incarnation="again"))

    def test_a_restarted_farm_keeps_its_order(self) -> None:
        """Servers that come back together, in whatever order, stand as they stood."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3), incarnation="again")
        order = [server.name for server in self.servers()]
        self.clock.advance(ROUND)
        waiting = [duties.put(make_server(number, incarnation="again")) for number in (3, 1, 2)]
        self.clock.advance(ROUND)
        assert [self.successResultOf(deferred).name for deferred in waiting] == ["s3", "s1", "s2"]
        assert [server.name for server in self.servers()] == order
        assert {server.incarnation for server in self.servers()} == {"again"}

    def test_back_before_the_first_round(self) -> None:
        """A server that gives its row in the very moment in which the leader is elected keeps its place too."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3), incarnation="again")
        order = [server.name for server in self.servers()]
        waiting = [duties.put(make_server(number, incarnation="again")) for number in (2, 1)]
        self.clock.advance(ROUND)
        waiting.append(duties.put(make_server(3, incarnation="again")))
        self.clock.advance(ROUND)
        for deferred in waiting:
            self.successResultOf(deferred)
        assert [server.name for server in self.servers()] == order

    def test_a_first_that_restarts_alone(self) -> None:
        """Elected again before anybody else was, it has lost its place all the same: the others went on."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3), incarnation="again")
        back = duties.put(make_server(1, incarnation="again"))
        assert duties.report(server_id(2), Report(incarnation="run2"))
        self.clock.advance(ROUND)
        assert self.successResultOf(back).name == "s1"
        assert [server.name for server in self.servers()] == ["s2", "s3", "s1"]

    def test_leadership_lost_while_the_farm_gathers(self) -> None:
        """Whoever waits for its place is told, and tries again with the next first."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3), incarnation="again")
        waiting = [duties.put(make_server(number, incarnation="again")) for number in (1, 2)]
        self.led.is_leader, self.led.leader = False, server_id(3)
        self.clock.advance(ROUND)
        for deferred in waiting:
            self.failureResultOf(deferred, TableError)

    def test_a_table_that_fails_while_the_farm_gathers(self) -> None:
        """Nobody waits for ever for a row that could not be written."""
        duties = self.make_duties(make_server(1), incarnation="again")
        waiting = duties.put(make_server(1, incarnation="again"))
        self.table.unavailable = True
        self.clock.advance(ROUND)
        self.failureResultOf(waiting, TableError)

    def test_a_large_farm_keeps_its_order(self) -> None:
        """More servers than fit one transaction come back to their places."""
        servers = [make_server(number) for number in range(1, 101)]
        duties = self.make_duties(*servers, incarnation="again")
        waiting = [duties.put(make_server(number, incarnation="again")) for number in range(1, 101)]
        self.clock.advance(ROUND)
        for deferred in waiting:
            self.successResultOf(deferred)
        assert [server.name for server in self.servers()] == [server.name for server in servers]
        assert {server.incarnation for server in self.servers()} == {"again"}

    def test_a_row_that_could_not_be_given(self) -> None:
        """Who was gone for too long stays so until its row is written, however often it reports."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        self.pass_time(duties, 11, 3)
        for _ in range(3):
            assert not duties.report(server_id(2), Report(incarnation="run2"))
            self.clock.advance(ROUND)
        assert self.states()["s2"] == "down"
        self.successResultOf(duties.put(make_server(2)))
        assert duties.report(server_id(2), Report(incarnation="run2"))

    def test_back_under_another_leader(self) -> None:
        """A new leader goes by the row: who has been down for long lost its place, who just went down keeps it."""
        for since, kept in ((7_000 - 60_000, False), (7_000 - 1_000, True)):
            duties = self.make_duties(make_server(1), make_server(2, state="down", since=since), make_server(3))
            self.clock.advance(ROUND)
            assert duties.report(server_id(2), Report(incarnation="run2")) is kept

    def test_what_was_heard_in_an_earlier_term(self) -> None:
        """Silence from before this server led again says nothing: the leader in between was listening."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        self.pass_time(duties, 1, 2, 3)
        self.led.is_leader, self.led.leader = False, server_id(2)
        self.pass_time(duties, 1000)
        gone = make_server(3, state="down", since=7_000)
        self.table.put(gone.key, gone.to_value())
        self.led.is_leader, self.led.leader, self.led.term = True, server_id(1), 3
        self.pass_time(duties, 1, 2)
        assert duties.heard()[server_id(3)] < 2

    def test_an_unexpected_error_ends_no_round(self) -> None:
        """A fault is logged, and the next round looks again."""
        duties = self.make_duties(make_server(1), make_server(2))
        good, self.led.caught_up = self.led.caught_up, None  # type: ignore[assignment, method-assign]
        servers, duties._servers = duties._servers, None  # type: ignore[assignment]
        self.pass_time(duties, 1)
        assert self.flushLoggedErrors(TypeError)
        duties._servers, self.led.caught_up = servers, good  # type: ignore[method-assign]
        self.pass_time(duties, 7)
        assert self.states()["s2"] == "down"

    def test_two_processes_of_one_server(self) -> None:
        """A copied data directory: while the later process lives the earlier one is refused, both addresses named."""
        duties = self.make_duties(make_server(1), make_server(2))
        copy = make_server(2, incarnation="copy", peer=9001)
        assert duties.report(server_id(2), Report(incarnation="run2"))
        self.successResultOf(duties.put(copy))
        assert duties.report(server_id(2), Report(incarnation="copy"))
        assert not duties.report(server_id(2), Report(incarnation="run2"))
        error = str(self.failureResultOf(duties.put(make_server(2)), TableError).value)
        assert "127.0.0.1:9001" in error
        assert "127.0.0.1:4121" in error
        self.clock.advance(DOWN_AFTER)
        self.successResultOf(duties.put(make_server(2)))
        assert {server.peer for server in self.servers() if server.id == server_id(2)} == {4121}

    def test_many_restarts(self) -> None:
        """A server may be started anew as often as one likes."""
        duties = self.make_duties(make_server(1), make_server(2))
        for number in range(30):
            assert not duties.report(server_id(2), Report(incarnation=f"start{number}"))
            self.successResultOf(duties.put(make_server(2, incarnation=f"start{number}")))
            assert duties.report(server_id(2), Report(incarnation=f"start{number}"))

    def test_who_is_late_after_a_restart(self) -> None:
        """Gathering ends after its time; whoever comes later joins at the end of the line."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3), incarnation="again")
        self.clock.advance(ROUND)
        first = [duties.put(make_server(number, incarnation="again")) for number in (1, 3)]
        self.clock.pump([ROUND] * round(RESTART_GATHER / ROUND + 1))
        for deferred in first:
            self.successResultOf(deferred)
        self.successResultOf(duties.put(make_server(2, incarnation="again")))
        assert [server.name for server in self.servers()] == ["s1", "s3", "s2"]

    def test_a_leaving_server_says_so(self) -> None:
        """Its row becomes `leaving` at once, and `down` when it is silent."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.pass_time(duties, 1, 2, leaving=True)
        assert self.states()["s2"] == "leaving"
        self.pass_time(duties, 6)
        assert self.states()["s2"] == "down"

    def test_free_space_is_written_seldom(self) -> None:
        """A percent more or less reaches the row, at most once a minute."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.pass_time(duties, 1, 2, free=1_000_000)
        assert {server.name: server.free for server in self.servers()}["s2"] == 1_000_000
        count = len(self.table.transactions)
        for step in range(40):
            self.pass_time(duties, ROUND, 2, free=900_000 - 20_000 * step)
        assert len(self.table.transactions) == count
        self.pass_time(duties, MEASURE_INTERVAL, 2, free=500_000)
        assert {server.name: server.free for server in self.servers()}["s2"] == 500_000

    def test_used_space_of_a_large_disk(self) -> None:
        """What a server holds is shown right within a minute, also if it is little for its disk and counted late."""
        duties = self.make_duties(make_server(1), make_server(2))
        tib = 1 << 40
        self.pass_time(duties, 1, 2, free=16 * tib, used=17_000)
        self.pass_time(duties, MEASURE_INTERVAL, 2, free=16 * tib, used=tib // 16)
        assert {server.name: server.used for server in self.servers()}["s2"] == tib // 16
        count = len(self.table.transactions)
        self.pass_time(duties, 2 * MEASURE_INTERVAL, 2, free=16 * tib, used=tib // 16 + tib // 2000)
        assert len(self.table.transactions) == count, "less than a percent of that is no news"

    def test_a_full_disk_is_written_at_once(self) -> None:
        """Others must not place chunks there any more."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.pass_time(duties, 1, 2, full=True)
        assert {server.name: server.full for server in self.servers()} == {"s1": False, "s2": True}

    def test_measures_that_could_not_be_written(self) -> None:
        """What a server said once is written as soon as the table takes it, although it says the same all the time."""
        duties = self.make_duties(make_server(1), make_server(2))
        rows = self.servers()
        duties._servers = lambda: rows
        report = Report(incarnation="run2", full=True, free=7)
        self.table.unavailable = True
        for step in range(4):
            duties.report(server_id(2), report)
            self.clock.advance(ROUND)
            if step == 1:
                assert not self.servers()[1].full
                self.table.unavailable = False
        assert self.servers()[1].full
        rows = self.servers()
        count = len(self.table.transactions)
        self.pass_time(duties, 2, 2, full=True, free=7)
        assert len(self.table.transactions) == count

    def test_a_report_storm(self) -> None:
        """What goes to and fro in the reports each second costs a few commits a minute, and is written in the end."""
        duties = self.make_duties(make_server(1), make_server(2))
        count = len(self.table.transactions)
        for step in range(240):
            self.pass_time(duties, ROUND, 2, full=step % 2 == 0, note=f"trouble {step}", free=step * 1_000_000)
        assert len(self.table.transactions) - count <= (240 * ROUND / MEASURE_INTERVAL + 1) * (SAID_MAX + 1)
        self.pass_time(duties, MEASURE_INTERVAL, 2, full=True, note="at last")
        assert [(server.full, server.note) for server in self.servers()][1] == (True, "at last")

    def test_a_note_is_written_at_once(self) -> None:
        """What a server has to say now and then is in its row with the next round, and is gone with one."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.pass_time(duties, 1, 2, note="config.ini cannot be written")
        assert {server.name: server.note for server in self.servers()}["s2"] == "config.ini cannot be written"
        self.pass_time(duties, MEASURE_INTERVAL, 2)
        assert {server.name: server.note for server in self.servers()}["s2"] == ""

    def test_at_rest_nothing_is_committed(self) -> None:
        """Reports alone cost no transaction."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.pass_time(duties, 1, 2, free=5)
        count = len(self.table.transactions)
        self.pass_time(duties, 300, 2, free=5)
        assert len(self.table.transactions) == count

    def test_voters_grow_with_the_farm(self) -> None:
        """One change a round, until the three oldest vote and the next two learn."""
        duties = self.make_duties(*(make_server(number) for number in range(1, 7)))
        self.pass_time(duties, 8, 2, 3, 4, 5, 6)
        assert self.led.configuration == Configuration(
            [server_id(number) for number in (1, 2, 3)], [server_id(number) for number in (4, 5)]
        )
        assert len(self.led.proposed) == 6

    def test_one_change_at_a_time(self) -> None:
        """While one is under way no other is proposed."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.led.change_pending = True
        self.pass_time(duties, 3, 2)
        assert self.led.proposed == []

    def test_a_lost_partner_is_dropped(self) -> None:
        """Of two voters one is silent for `master_grace`: the first goes on alone, though no write comes to an end."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.led.configuration = Configuration([server_id(1), server_id(2)])
        self.pass_time(duties, 2, 2)
        stuck: Deferred[int] = Deferred()
        self.patch(self.table, "transact", lambda compares, operations: stuck)
        self.pass_time(duties, 9)
        assert self.led.dropped == []
        self.pass_time(duties, 1.5)
        assert self.led.dropped == [(server_id(2), 10.0)]
        assert self.led.configuration == Configuration([server_id(1)])

    def test_a_lost_partner_at_the_beginning_of_a_term(self) -> None:
        """Before anything of the term is decided no third may take its place, and nothing can be without it."""
        duties = self.make_duties(make_server(1), make_server(2), make_server(3))
        self.led.configuration = Configuration([server_id(1), server_id(2)], [server_id(3)])
        self.led.committed_this_term = False
        refused = fail(ChangeRefused("nothing of this leader's term has been committed yet"))
        self.led.propose_configuration = lambda configuration: refused  # type: ignore[method-assign]
        self.pass_time(duties, 12, 3)
        assert self.led.dropped == [(server_id(2), 10.0)]

    def test_a_shorter_grace_counts_when_the_partner_must_know_of_it(self) -> None:
        """The other one goes by what it has heard: it must not take over by the longer one after it was dropped."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.led.configuration = Configuration([server_id(1), server_id(2)])
        options = FarmOptions(master_grace=20.0)
        self.patch(duties, "_options", lambda: options)
        self.pass_time(duties, 5, 2)
        options = FarmOptions(master_grace=2.0)
        self.pass_time(duties, 18)
        assert self.led.dropped == []
        self.pass_time(duties, 3)
        assert self.led.dropped == [(server_id(2), 20.0)]

    def test_a_shorter_grace_that_is_known(self) -> None:
        """From then on it is what counts; a longer one counts at once."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.led.configuration = Configuration([server_id(1), server_id(2)])
        options = FarmOptions(master_grace=20.0)
        self.patch(duties, "_options", lambda: options)
        self.pass_time(duties, 5, 2)
        options = FarmOptions(master_grace=2.0)
        self.pass_time(duties, 25, 2)
        options = FarmOptions(master_grace=8.0)
        self.pass_time(duties, 5, 2)
        self.pass_time(duties, 7)
        assert self.led.dropped == []
        self.pass_time(duties, 2)
        assert self.led.dropped == [(server_id(2), 8.0)]

    def test_a_partner_that_reports_is_kept(self) -> None:
        """However long nothing can be committed."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.led.configuration = Configuration([server_id(1), server_id(2)])
        self.pass_time(duties, 30, 2)
        assert self.led.dropped == []

    def test_a_refused_drop_is_asked_for_again(self) -> None:
        """The core has heard the other a little later than its reports tell: the next round asks again."""
        duties = self.make_duties(make_server(1), make_server(2))
        self.led.configuration = Configuration([server_id(1), server_id(2)])
        good = self.led.drop
        self.led.drop = lambda server_id, seconds: fail(ChangeRefused("too early"))  # type: ignore[method-assign]
        self.pass_time(duties, 15)
        self.led.drop = good  # type: ignore[method-assign]
        self.pass_time(duties, 1)
        assert self.led.dropped == [(server_id(2), 10.0)]

    def test_a_junior_leader_hands_over(self) -> None:
        """Once it has led for `master_grace`, to the most senior that is caught up, and not every round."""
        duties = self.make_duties(make_server(1, seniority=9), make_server(2), make_server(3))
        self.led.configuration = Configuration([server_id(number) for number in (1, 2, 3)])
        self.pass_time(duties, 9, 2, 3)
        assert self.led.handed_to == []
        self.pass_time(duties, 2, 2, 3)
        assert self.led.handed_to == [server_id(2)]
