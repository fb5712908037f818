"""Reports to the first, and what their answers make of this server."""

from __future__ import annotations

import json
from typing import Any

from attrs import asdict
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import Address, Drain, Server
from chunkfarm.pace import INTERVAL, lost_after
from chunkfarm.reporter import BEHIND_SECONDS, Reporter
from chunkfarm.risk import Exposed, Risk
from chunkfarm.state import ServerState
from chunkfarm.table.duties import Report
from chunkfarm.table.records import Configuration
from chunkfarm.unheld import Unheld
from tests.builders import make_server, server_id

LOST_AFTER = lost_after(3)


class FakePeers:
    """Answers by server id: an exception, None (never) or the answer to a report."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, str]] = []

    def call(self, to: str, command: Any, timeout: float, **arguments: Any) -> Deferred[Any]:
        self.calls.append((to, command.__name__))
        answer = self.answers.get(to, LinkFailed("refused"))
        if isinstance(answer, Exception):
            return fail(answer)
        if command is commands.PutServer:
            self.answers[to] = {"known": True}
            return succeed({"row": arguments["row"]})
        told = {"term": 4, "voters": [server_id(1), server_id(2)], "learners": [server_id(3)], **answer}
        return succeed({"answer": json.dumps(told)})

    def error_of(self, to: str) -> str:
        return ""


class FakeTable:
    """Who leads, as this server's engine sees it."""

    leader = ""
    is_leader = False
    has_quorum = True
    withheld = ""
    configuration = Configuration()


class FakeDuties:
    """The local first."""

    def __init__(self) -> None:
        self.known = False
        self.full: tuple[str, ...] = ()
        self.put_rows: list[Server] = []

    def report(self, server: str, report: Report) -> bool:
        return self.known

    def without_room(self) -> tuple[str, ...]:
        return self.full

    def short(self) -> int:
        return 3

    def drains(self) -> dict[str, Drain]:
        return {server_id(1): Drain(left=5)}

    def risk(self) -> Risk:
        return Risk(unknown=1)

    def put(self, row: Server) -> Deferred[Server]:
        self.known = True
        self.put_rows.append(row)
        return succeed(row)


class ReporterTests(SynchronousTestCase):
    """One report a second; serving while they are answered."""

    def make_reporter(self, first: str = "", servers: int = 3) -> Reporter:
        self.clock = Clock()
        self.peers, self.table, self.duties = FakePeers(), FakeTable(), FakeDuties()
        self.state = ServerState(server_id=server_id(3), name="s3", stamp=0, incarnation="run3")
        self.learned: dict[str, Address] = {}
        self.heeded: list[tuple[int, frozenset[str]]] = []
        self.heard: list[tuple[str, int]] = []
        self.rows = tuple(make_server(number) for number in range(1, servers + 1))
        self.behind = 0
        self.counted: Unheld | None = None
        reporter = Reporter(
            state=self.state,
            make_report=lambda: Report(incarnation="run3"),
            own_row=lambda: make_server(3),
            table=self.table,
            duties=self.duties,  # type: ignore[arg-type]
            peers=self.peers,  # type: ignore[arg-type]
            servers=lambda: self.rows,
            learn=self.learned.__setitem__,
            clock=self.clock,
            now=lambda: 77,
            heed=lambda term, members: self.heeded.append((term, members)),
            heard=lambda first, term: self.heard.append((first, term)),
            cures=lambda: ("start a majority of the masters",),
            behind=self.falls_behind,
            unheld=lambda: self.counted,
        )
        self.reporter = reporter
        self.addCleanup(reporter.stop)
        self.first = first
        return reporter

    def falls_behind(self) -> None:
        self.behind += 1

    def run_for(self, seconds: float) -> None:
        for _ in range(round(seconds / INTERVAL)):
            self.clock.advance(INTERVAL)

    def test_a_known_server_belongs(self) -> None:
        """The first answer of the first is what a starting server waits for."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {"known": True}
        belonging = reporter.when_belonging()
        reporter.start(server_id(1))
        self.successResultOf(belonging)
        assert self.peers.calls == [(server_id(1), "Report")]

    def test_a_table_that_stands_still(self) -> None:
        """Who does not hear for long what the first had long ago listens to somebody who does not either."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {"known": True, "revision": 7}
        self.state.revision = 7
        reporter.start(server_id(1))
        self.run_for(2 * BEHIND_SECONDS)
        # A moment behind all the time, as on every busy farm.
        for revision in range(8, 50):
            self.peers.answers[server_id(1)] = {"known": True, "revision": revision}
            self.run_for(1)
            self.state.revision = revision - 1
        assert self.behind == 0
        self.run_for(BEHIND_SECONDS - 2)
        assert self.behind == 0
        self.run_for(3)
        assert self.behind == 1
        self.run_for(BEHIND_SECONDS + 1)
        assert self.behind == 2
        self.state.revision = 60
        self.run_for(2 * BEHIND_SECONDS)
        assert self.behind == 2

    def test_full_disks(self) -> None:
        """A first that cannot make a change durable at enough masters is read-only, and says whose disk is full."""
        reporter = self.make_reporter()
        self.table.is_leader, self.table.leader = True, server_id(3)
        reporter.start()
        self.state.change("serving")
        self.duties.full = ("s3", "s1")
        self.run_for(LOST_AFTER + INTERVAL)
        assert self.state.phase == "readonly"
        assert [str(wait.address) for wait in self.state.waits] == ["127.0.0.1:4131"]
        assert self.state.waits[0].error.endswith("the disk that holds the table is full on s3, s1")
        assert self.state.cures == ("make room on the disks of the servers that are named",)
        self.duties.full = ()
        self.run_for(INTERVAL)
        assert self.state.phase == "serving"

    def test_who_votes(self) -> None:
        """The answer tells who votes and who holds rows, which a server that was removed cannot know by itself."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {"known": True}
        reporter.start(server_id(1))
        assert reporter.voters == {server_id(1), server_id(2)}
        assert self.heeded == [(4, frozenset({server_id(1), server_id(2), server_id(3)}))]

    def test_who_leads_and_in_which_term(self) -> None:
        """Who holds no table learns from the answers who leads, and since which term, for the time line."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {"known": True}
        reporter.start(server_id(1))
        assert self.heard == [(server_id(1), 4)]

    def test_what_the_farm_lacks(self) -> None:
        """The answer tells how many chunks of the farm have too few copies; an older first does not."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {
            "known": True,
            "short": 7,
            "drains": {server_id(2): {"left": 3, "paused": "it\nwaits", "new": 1}},
            "risk": {"sets": [{"holders": [server_id(2)], "chunks": 1, "bytes": 2, "new": 3}], "new": 1},
            "lost": {"chunks": 5, "since": 6, "looked": 7, "new": 1},
        }
        reporter.start(server_id(1))
        assert reporter.risk == Risk(sets=(Exposed((server_id(2),), 1, 2),))
        assert reporter.unheld == Unheld(chunks=5, since=6, looked=7)
        assert reporter.short == 7 and reporter.drains == {server_id(2): Drain(left=3, paused="it waits")}
        self.peers.answers[server_id(1)] = {"known": True}
        self.run_for(1)
        assert reporter.short == 0 and reporter.risk is None and reporter.unheld is None

    def test_what_is_lost_by_its_own_count(self) -> None:
        """A new first goes by what the one before it told of lost chunks, until it has counted itself."""
        reporter = self.make_reporter()
        before = Unheld(chunks=5, since=6, looked=7)
        self.peers.answers[server_id(1)] = {"known": True, "lost": asdict(before)}
        reporter.start(server_id(1))
        self.state.change("serving")
        self.table.leader, self.table.is_leader = server_id(3), True
        self.run_for(2)
        assert reporter.unheld == before
        self.counted = Unheld(chunks=1, since=6, looked=9)
        self.run_for(1)
        assert reporter.unheld == self.counted
        self.table.has_quorum = False
        self.run_for(2 * LOST_AFTER)
        assert reporter.unheld is None

    def test_a_new_process_gives_its_row(self) -> None:
        """Asked for, the row is given, and only then does the server belong."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {"known": False}
        reporter.start(server_id(1))
        assert self.peers.calls == [(server_id(1), "Report"), (server_id(1), "PutServer")]
        assert reporter.belongs

    def test_it_follows_to_the_new_first(self) -> None:
        """A server that does not lead names the one that does."""
        reporter = self.make_reporter()
        hint = json.dumps({"id": server_id(2), "host": "127.0.0.1", "peer": 4121})
        self.peers.answers[server_id(1)] = commands.NotFirst(hint)
        self.peers.answers[server_id(2)] = {"known": True}
        reporter.start(server_id(1))
        self.run_for(1)
        assert reporter.first == server_id(2)
        assert self.learned == {server_id(2): Address("127.0.0.1", 4121)}

    def test_it_looks_for_the_first(self) -> None:
        """When the first is gone the others are asked in turn until one leads."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(2)] = {"known": True}
        reporter.start(server_id(1))
        self.run_for(3)
        assert reporter.first == server_id(2)

    def test_answers_that_make_no_sense(self) -> None:
        """Whoever answers a report with anything else is not asked for ever, and its answer changes nothing."""
        good: dict[str, Any] = {"term": 4, "voters": [], "learners": [], "known": True}
        wrong: tuple[dict[str, Any], ...] = (
            {"known": 1},
            {"term": -1},
            {"term": 10**40},
            {"voters": {}},
            {"learners": ["x"]},
            {"revision": "1"},
            {"short": "1"},
            {"risk": 5},
            {"lost": 5},
            {"lost": {"chunks": -1}},
            {"lost": {"chunks": 1, "looked": 10**18}},
            {"drains": []},
            {"drains": {"x": {}}},
        )
        for text in ("[" * 60_000, "[]", "{}", "nonsense", *(json.dumps(good | changed) for changed in wrong)):
            reporter = self.make_reporter()
            self.peers.call = lambda *call, text=text, **more: succeed({"answer": text})  # type: ignore
            reporter.start(server_id(1))
            assert reporter.first == "", text[:80]
            assert not reporter.belongs and not self.heard and not self.heeded
        assert self.flushLoggedErrors() == []

    def test_a_hint_that_makes_no_sense(self) -> None:
        """Who says that another one leads, and not where, is not believed."""
        for hint in ("[" * 60_000, '{"id": "x", "host": "h", "peer": 1}', "null"):
            reporter = self.make_reporter()
            self.peers.answers[server_id(1)] = commands.NotFirst(hint)
            reporter.start(server_id(1))
            assert reporter.first == "" and not self.learned
        told = {"id": server_id(2), "host": "10.0.0.2", "peer": 4101}
        for wrong in ({"peer": float("inf")}, {"peer": 0}, {"host": "a b"}, {"id": "2"}):
            reporter = self.make_reporter()
            self.peers.answers[server_id(1)] = commands.NotFirst(json.dumps(told | wrong))
            reporter.start(server_id(1))
            assert reporter.first == "" and not self.learned, wrong
        assert self.flushLoggedErrors() == []

    def test_read_only_and_why(self) -> None:
        """Without answers the server calls itself read-only, and names whom it misses and the cure."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {"known": True}
        reporter.start(server_id(1))
        self.state.change("serving")
        self.peers.answers[server_id(1)] = LinkFailed("refused")
        self.run_for(LOST_AFTER - 1)
        assert self.state.phase == "serving"
        self.run_for(3)
        assert self.state.phase == "readonly"
        assert {str(wait.address): wait.error for wait in self.state.waits} == {
            "127.0.0.1:4111": "refused",
            "127.0.0.1:4121": "refused",
        }
        assert self.state.waits[0].since == 77
        self.table.withheld = "its disk is old"
        assert {wait.error.split("; ")[-1] for wait in reporter.waits(1)} == {"its disk is old"}
        assert "majority" in self.state.cures[0]
        self.peers.answers[server_id(2)] = {"known": True}
        self.run_for(3)
        assert self.state.phase == "serving"
        assert self.state.waits == ()

    def test_those_that_left_are_waited_for(self) -> None:
        """They vote until somebody has taken their place, so they are waited for; where all left, all are."""
        reporter = self.make_reporter(servers=4)
        left = [make_server(number, state="leaving") for number in (1, 2, 4)]
        for row, voters in ((make_server(3), (1, 3)), (make_server(3, state="leaving"), ())):
            self.rows = (row, *left)
            self.table.configuration = Configuration(map(server_id, voters))
            reporter.start()
            self.run_for(10)
            waits = {str(wait.address): wait.error for wait in reporter.waits(1)}
            expected = {"127.0.0.1:4111", "127.0.0.1:4121", "127.0.0.1:4141"} if not voters else {"127.0.0.1:4111"}
            assert waits == dict.fromkeys(expected, "refused")
            self.successResultOf(reporter.stop())

    def test_nobody_else_can_catch_it_up(self) -> None:
        """A server that decides nothing, and is the only master, says why all the same."""
        reporter = self.make_reporter()
        self.table.withheld = "its disk is old"
        self.rows = (make_server(1, state="down"), make_server(3))
        self.table.configuration = Configuration([server_id(3)])
        (wait,) = reporter.waits(5)
        assert (str(wait.address), wait.error, wait.since) == ("127.0.0.1:4131", "its disk is old", 5)
        self.table.withheld = ""
        assert reporter.waits(5) == ()

    def test_reports_of_many(self) -> None:
        """One of a thousand reports every two seconds while it is answered, and is patient in proportion."""
        reporter = self.make_reporter(servers=1000)
        self.peers.answers[server_id(1)] = {"known": True}
        reporter.start(server_id(1))
        self.state.change("serving")
        self.run_for(20)
        assert len(self.peers.calls) == 11
        self.peers.answers[server_id(1)] = LinkFailed("refused")
        self.run_for(5)
        assert self.state.phase == "serving"
        self.run_for(2)
        assert self.state.phase == "readonly"

    def test_one_of_many_asks_again_soon(self) -> None:
        """Who gets no answer, or has a new first, reports within a second, however many there are."""
        reporter = self.make_reporter(servers=1000)
        self.peers.answers[server_id(1)] = self.peers.answers[server_id(2)] = {"known": True}
        reporter.start(server_id(1))
        self.table.leader = server_id(2)
        self.run_for(1)
        assert [to for to, _ in self.peers.calls] == [server_id(1), server_id(2)]
        self.peers.answers[server_id(2)] = LinkFailed("refused")
        self.run_for(4)
        assert [to for to, _ in self.peers.calls[2:]] == [server_id(2)] * 3

    def test_after_a_pause(self) -> None:
        """A process that wakes from a pause misses nobody until it could have been answered; then it does."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {"known": True}
        reporter.start(server_id(1))
        self.state.change("serving")
        self.run_for(3)
        phases: list[str] = []
        self.state.subscribe(lambda: phases.append(self.state.phase))
        self.peers.answers[server_id(1)] = LinkFailed("refused")
        self.clock.advance(60)
        self.run_for(LOST_AFTER - 1)
        assert phases == []
        self.run_for(2)
        assert set(phases) == {"readonly"}

    def test_an_unexpected_error_ends_no_report(self) -> None:
        """A fault while judging is logged, and the reports go on."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {"known": True}
        reporter.start(server_id(1))
        self.state.change("serving")
        end = self.state.subscribe(lambda: 1 / 0)  # type: ignore[arg-type]
        self.peers.answers[server_id(1)] = LinkFailed("refused")
        self.run_for(LOST_AFTER + 2)
        assert self.flushLoggedErrors(ZeroDivisionError)
        end()
        self.peers.answers[server_id(1)] = {"known": True}
        self.run_for(3)
        assert self.state.phase == "serving"

    def test_the_first_reports_to_itself(self) -> None:
        """Leading is no excuse: the first's own row must carry this process too."""
        reporter = self.make_reporter()
        self.table.leader, self.table.is_leader = server_id(3), True
        reporter.start()
        assert [row.name for row in self.duties.put_rows] == ["s3"]
        assert reporter.belongs

    def test_a_leader_without_a_majority_is_read_only(self) -> None:
        """A leader that hears nobody does not count itself as served."""
        reporter = self.make_reporter()
        self.table.leader, self.table.is_leader = server_id(3), True
        reporter.start()
        self.state.change("serving")
        self.table.has_quorum = False
        self.run_for(LOST_AFTER + 1)
        assert self.state.phase == "readonly"

    def test_a_server_that_takes_part_no_more(self) -> None:
        """It reports to nobody, is read-only and says the cure; who waited for it to belong waits no longer."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {"known": True}
        settled = reporter.when_settled()
        self.state.halted, self.state.halted_cures = "the farm goes on without it", ("empty it",)
        reporter.start(server_id(1))
        assert self.successResultOf(settled) is False
        assert self.successResultOf(reporter.when_settled()) is False
        assert self.peers.calls == []
        self.state.change("serving")
        self.run_for(1)
        assert (self.state.phase, self.state.cures, self.state.waits) == ("readonly", ("empty it",), ())

    def test_taking_part_again(self) -> None:
        """Where an admin lets it go on, it belongs like any other."""
        reporter = self.make_reporter()
        self.peers.answers[server_id(1)] = {"known": True}
        self.state.halted = "the farm was divided"
        reporter.start(server_id(1))
        belonging, settled = reporter.when_belonging(), reporter.when_settled()
        assert self.successResultOf(settled) is False
        self.state.halted = ""
        self.run_for(1)
        self.successResultOf(belonging)
        assert self.successResultOf(reporter.when_settled()) is True
