"""Which server may let the farm go on alone, and what it does then."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.by_hand import WRITE_TIMEOUT, Seen, TakeoverByHand, objection
from chunkfarm.errors import Busy, PreconditionFailed
from chunkfarm.history import Stopped
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import Address, Server
from chunkfarm.survey import Told
from chunkfarm.table.leadership import ChangeRefused
from chunkfarm.table.lines import TERM_LEAP, Chain, Fork
from tests.builders import make_server, server_id

X, Y = Fork("1" * 32, 10, 2), Fork("2" * 32, 20, 5)

STOPPED = Stopped(verdict="apart", line=X.line, index=10, term=2, server=server_id(2), name="s2", address="")


def told(number: int, term: int = 3, index: int = 17, **more: Any) -> Told:
    values: dict[str, Any] = {
        "server": server_id(number),
        "name": f"s{number}",
        "state": "readonly",
        "journal": (term, index),
        **more,
    }
    return Told(**values)


def seen(number: int, found: Told | None, error: str = "") -> Seen:
    address = make_server(number).peer_address
    return Seen(name=f"s{number}", address=address, told=found, error=error, here=number == 1)


class ObjectionTests(SynchronousTestCase):
    """What stands in the way of s1."""

    def why(self, me: Told, *others: Told | None) -> str:
        return objection([seen(1, me), *(seen(number, other, "refused") for number, other in enumerate(others, 2))])

    def test_the_last_one(self) -> None:
        """Nobody else answers: it may."""
        assert self.why(told(1), None, None) == ""

    def test_the_longest(self) -> None:
        """Others answer with journals that are no longer: it may. A tie is broken by whoever is asked."""
        assert self.why(told(1), told(2, index=16), told(3, term=2, index=99)) == ""
        assert self.why(told(1), told(2)) == ""

    def test_a_longer_one(self) -> None:
        """It is named; a later term counts for more than any index."""
        assert "s2 (127.0.0.1:4121) has the longer journal" in self.why(told(1), told(2, index=18))
        assert "s3 (127.0.0.1:4131) has the longer journal" in self.why(told(1), None, told(3, term=4, index=1))

    def test_a_first_that_commits(self) -> None:
        """Nothing is lost, whether this server hears it or another one does."""
        assert "s2" in self.why(told(1), told(2, commits=True, state="serving"))
        assert "nothing is lost" in self.why(told(1, commits=True))
        heard = self.why(told(1), None, told(3, state="serving", first=server_id(2)))
        assert "s3 is served by a first" in heard
        assert "s2" in self.why(told(1, state="serving", first=server_id(2)), told(2))

    def test_no_journal(self) -> None:
        """Such a server names those that hold the table."""
        assert "say it to s2 (127.0.0.1:4121)" in self.why(told(1, journal=None), told(2), told(3, journal=None))
        assert "nobody who answers does" in self.why(told(1, journal=None), None)

    def test_another_line(self) -> None:
        """Who knows of a takeover that this server does not, knows more."""
        assert "knows of a takeover" in self.why(told(1), told(2, index=1, chain=(X,)))
        assert "knows of a takeover" in self.why(told(1, chain=(X,)), told(2, index=1, chain=(Y,)))
        assert self.why(told(1, chain=(X,)), told(2)) == ""

    def test_one_that_only_learns(self) -> None:
        """Its journal lacks what was done since the takeover."""
        assert "has not learned" in self.why(told(1, chain=(X,), settled=False), None)

    def test_one_that_stopped(self) -> None:
        """A server that takes part in nothing any more neither hinders nor counts."""
        assert self.why(told(1, chain=(X,)), told(2, index=99, stopped=True)) == ""
        assert self.why(told(1, stopped=True), None) == ""

    def test_a_line_that_has_ended(self) -> None:
        """To go on there would divide the farm that goes on elsewhere."""
        assert objection([seen(1, told(1, stopped=True))], "the farm goes on") == "the farm goes on"


class TakeoverByHandTests(SynchronousTestCase):
    """Asking, showing, doing."""

    def make_takeover(self) -> TakeoverByHand:
        self.clock = Clock()
        self.servers = (make_server(1), make_server(2), make_server(3))
        self.found: dict[Address, Told] = {}
        self.asked: list[Address] = []
        self.in_config: list[Seen] = []
        self.me = told(1)
        self.events: list[Any] = []
        # The engine, the history and the questions, as far as they are needed.
        self.term = 5
        self.journal_position = (3, 17)
        self.refusal: Exception | None = None
        self.stopped: Stopped | None = None
        self.chain: Chain = ()
        self.written: Deferred[None] = succeed(None)
        self.beginning: Deferred[None] | None = None
        fake: Any = self
        return TakeoverByHand(
            fake,
            fake,
            fake,
            lambda: self.me,
            lambda: self.servers,
            lambda: succeed(self.in_config),
            lambda: make_server(1).peer_address,
            lambda: "lab",
            self.clock,
        )

    def ask_at(self, address: Address) -> Deferred[Told]:
        self.asked.append(address)
        found = self.found.get(address)
        return fail(LinkFailed("refused")) if found is None else succeed(found)

    def begin(self, position: tuple[int, int]) -> Deferred[None]:
        self.events.append(("begin", position))
        self.journal_position = (3, 18)
        return self.beginning or succeed(None)

    def abandon(self, stopped: Stopped | None) -> Deferred[None]:
        self.events.append(("abandon", stopped))
        return succeed(None)

    def take_over_by_force(self, term: int) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.events.append(("force", term))
        self.chain = (X,)

    def when_written(self) -> Deferred[None]:
        return self.written

    def listens(self, row: Server, found: Told) -> None:
        self.found[row.peer_address] = found

    def test_looking(self) -> None:
        """All rows and all addresses in config.ini are asked once, this server's own not; nothing is changed."""
        takeover = self.make_takeover()
        self.listens(self.servers[1], told(2, index=5))
        elsewhere = Address("10.0.0.9", 4101)
        self.in_config = [
            Seen(name="s3", address=self.servers[2].peer_address),
            Seen(name="s9", address=elsewhere),
            Seen(name="s1", address=self.servers[0].peer_address),
        ]
        outlook = self.successResultOf(takeover.look())
        assert sorted(self.asked, key=str) == sorted(
            [self.servers[1].peer_address, self.servers[2].peer_address, elsewhere], key=str
        )
        assert [(one.name, one.error) for one in outlook.seen] == [
            ("s1", ""),
            ("s2", ""),
            ("s3", "refused"),
            ("s9", "refused"),
        ]
        assert [one.longest for one in outlook.seen] == [True, False, False, False]
        assert outlook.objection == "" and self.events == []

    def test_one_server_at_two_addresses(self) -> None:
        """It stands in the list once; so does this server, where an old list has its old address."""
        takeover = self.make_takeover()
        self.listens(self.servers[1], told(2))
        moved, mine = Address("10.0.0.9", 4101), Address("10.0.0.1", 4101)
        self.found |= {moved: told(2), mine: told(1)}
        self.in_config = [Seen(name="s2", address=moved), Seen(name="s1", address=mine)]
        outlook = self.successResultOf(takeover.look())
        assert [one.name for one in outlook.seen] == ["s1", "s2", "s3"]

    def test_going_on(self) -> None:
        """First it is written down, then done, far above every term that the lost ones can reach."""
        takeover = self.make_takeover()
        self.listens(self.servers[1], told(2, term=2, index=5))
        outlook = self.successResultOf(takeover.run("lab"))
        assert self.events == [("begin", (3, 17)), ("begin", (3, 18)), ("force", 5 + TERM_LEAP)]
        assert outlook.line == X.line and len(outlook.seen) == 3

    def test_a_wrong_name(self) -> None:
        """Nobody is asked, nothing is changed."""
        takeover = self.make_takeover()
        failure = self.failureResultOf(takeover.run("bal"), PreconditionFailed)
        assert "another name" in str(failure.value) and self.asked == [] and self.events == []

    def test_an_objection(self) -> None:
        """It is the answer, and nothing is changed."""
        takeover = self.make_takeover()
        self.listens(self.servers[1], told(2, term=4))
        failure = self.failureResultOf(takeover.run("lab"), PreconditionFailed)
        assert "longer journal" in str(failure.value) and self.events == []

    def test_refused_by_the_engine(self) -> None:
        """What was begun is taken back."""
        takeover = self.make_takeover()
        self.refusal = ChangeRefused("this server has no table to go on with")
        self.failureResultOf(takeover.run("lab"), PreconditionFailed)
        assert self.events[-1] == ("abandon", None)

    def test_an_admin_who_goes_away(self) -> None:
        """While it is being written down: it is taken back, or this server would listen to nobody any more."""
        takeover = self.make_takeover()
        self.stopped = STOPPED
        self.beginning = Deferred(lambda _: self.events.append("the write was broken off"))
        asked = takeover.run("lab")
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        assert self.events == [("begin", (3, 17)), ("abandon", STOPPED)]
        self.beginning.callback(None)
        assert self.events == [("begin", (3, 17)), ("abandon", STOPPED)]

    def test_an_admin_who_goes_away_too_late(self) -> None:
        """What is done stays done, and where the line begins is written down all the same."""
        takeover = self.make_takeover()
        self.written = Deferred(lambda _: self.events.append("nobody waits"))
        asked = takeover.run("lab")
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        assert self.events == [("begin", (3, 17)), ("begin", (3, 18)), ("force", 5 + TERM_LEAP), "nobody waits"]
        # The same while the place is written down.
        takeover = self.make_takeover()
        begun: list[Deferred[None]] = [succeed(None), Deferred(lambda _: self.events.append("broken off"))]
        begin = self.begin

        def begin_slowly(position: tuple[int, int]) -> Deferred[None]:
            self.beginning = begun[len(self.events)]
            return begin(position)

        self.patch(self, "begin", begin_slowly)
        asked = takeover.run("lab")
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        assert self.events == [("begin", (3, 17)), ("begin", (3, 18)), ("force", 5 + TERM_LEAP)]

    def test_a_disk_that_takes_its_time(self) -> None:
        """Whoever asked is not kept waiting for ever, and hears that it has begun."""
        takeover = self.make_takeover()
        self.written = Deferred()
        asked = takeover.run("lab")
        self.clock.advance(WRITE_TIMEOUT)
        failure = self.failureResultOf(asked, Busy)
        assert "has begun" in str(failure.value)

    def test_a_server_is_asked_again_in_the_end(self) -> None:
        """A first that was heard while the others were asked counts."""
        takeover = self.make_takeover()
        calls = []

        def own() -> Told:
            calls.append(1)
            return self.me if len(calls) == 1 else evolve(self.me, state="serving")

        takeover = evolve(takeover, own=own)
        assert "served by a first" in self.successResultOf(takeover.look()).objection
