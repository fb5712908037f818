"""Whether a starting server joins, founds or waits."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionRefusedError, NoRouteError, TimeoutError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.finding import (
    ANSWERED,
    FAILED,
    FOUNDING,
    REFUSED,
    STARTING,
    TIMED_OUT,
    UNTRUSTED,
    Answer,
    Asking,
    Decision,
    Found,
    Join,
    Search,
    Wait,
    ask,
    decide,
)
from chunkfarm.links.commands import PROTOCOL_VERSION
from chunkfarm.links.peers import Peers
from chunkfarm.membership import Candidate
from chunkfarm.model import Address
from chunkfarm.ports.callers import Caller, Callers
from chunkfarm.state import ServerState
from chunkfarm.trust.proof import DIALER, LISTENER, check_proof, proof
from chunkfarm.wire.tls import HandshakeTimedOut, TLSFailed
from tests.builders import server_id
from tests.simulation.starts import PlayedConnection

FARM = "f" * 32
KEY = b"k" * 32
EXPORTER = b"e" * 32
ME = Candidate(stamp=1, server_id=server_id(0))
HERE = Address("127.0.0.1", 4101)


def answer(number: int, outcome: str, **more: Any) -> Answer:
    return Answer(
        address=Address("127.0.0.1", 4001 + 10 * number), outcome=outcome, server_id=server_id(number), **more
    )


class DecideTests(SynchronousTestCase):
    """Found only on proof that nobody else has, or will."""

    def decide(self, *answers: Answer, farm: str = "", asked_by: tuple[Caller, ...] = (), **more: Any) -> Decision:
        me = Candidate(stamp=1000, server_id=server_id(5))
        return decide(farm=farm, me=me, answers=answers, asked_by=asked_by, **more)

    def test_an_empty_list_founds(self) -> None:
        """Nobody is listed and no farm is recorded: this is the first server."""
        assert isinstance(self.decide(), Found)

    def test_an_answer_is_joined(self) -> None:
        """Whoever answers for the farm is joined."""
        decision = self.decide(answer(1, REFUSED), answer(2, ANSWERED, farm=FARM), farm=FARM)
        assert isinstance(decision, Join)
        assert decision.answer.server_id == server_id(2)

    def test_another_farm_is_not_joined(self) -> None:
        """A server of another farm on a listed address is waited out, and said."""
        decision = self.decide(answer(2, ANSWERED, farm="e" * 32, error="it belongs to another farm"), farm=FARM)
        assert isinstance(decision, Wait)
        assert decision.reasons[0].error == "it belongs to another farm"

    def test_a_recorded_farm_is_never_founded_over(self) -> None:
        """The config names a farm and nobody answers: wait, explain, and name the override."""
        decision = self.decide(answer(1, REFUSED), farm=FARM)
        assert isinstance(decision, Wait)
        assert any("--found" in cure for cure in decision.cures)

    def test_the_override(self) -> None:
        """`--found` founds all the same, but not when somebody answers."""
        assert isinstance(self.decide(answer(1, REFUSED), farm=FARM, found_anyway=True), Found)
        answered = self.decide(answer(1, ANSWERED, farm=FARM), farm=FARM, found_anyway=True)
        assert isinstance(answered, Join)

    def test_a_hand_made_list_of_which_all_refuse(self) -> None:
        """All others are certainly not running: found."""
        assert isinstance(self.decide(answer(1, REFUSED), answer(2, REFUSED)), Found)

    def test_a_silent_address_may_be_a_farm(self) -> None:
        """A time-out or an untrusted answer is no proof, so it is waited for."""
        for outcome in (TIMED_OUT, UNTRUSTED, FAILED):
            assert isinstance(self.decide(answer(1, REFUSED), answer(2, outcome)), Wait)

    def test_of_two_that_start_the_earlier_founds(self) -> None:
        """The order is (stamp, server id), the same on both sides."""
        assert isinstance(self.decide(answer(1, STARTING, stamp=1001)), Found)
        assert isinstance(self.decide(answer(1, STARTING, stamp=999)), Wait)
        assert isinstance(self.decide(answer(1, STARTING, stamp=1000)), Wait)
        assert isinstance(self.decide(answer(9, STARTING, stamp=1000)), Found)

    def test_a_founder_is_waited_for(self) -> None:
        """Somebody is making the farm at this moment: look again soon."""
        decision = self.decide(answer(1, FOUNDING, stamp=2000))
        assert isinstance(decision, Wait)
        assert decision.again_soon

    def test_asked_by_a_lower_candidate(self) -> None:
        """One that refused a moment ago and has asked us since is alive and comes first: look again."""
        where = Address("127.0.0.1", 4111)
        lower = Caller(Candidate(stamp=900, server_id=server_id(1)), where, 0.0)
        decision = self.decide(answer(1, REFUSED), asked_by=(lower,))
        assert isinstance(decision, Wait)
        assert decision.again_soon
        assert [(told.address, told.error) for told in decision.reasons] == [
            (where, "it asked this server, and comes before it")
        ]
        higher = Caller(Candidate(stamp=1100, server_id=server_id(1)), where, 0.0)
        assert isinstance(self.decide(answer(1, REFUSED), asked_by=(higher,)), Found)

    def test_a_server_knows_itself_in_the_list(self) -> None:
        """An answer with our own server id is ourselves."""
        assert isinstance(self.decide(answer(5, STARTING, stamp=1000)), Found)

    def test_a_stranger_that_takes_our_id(self) -> None:
        """Who does not prove the join key is not taken for this server itself, but waited for."""
        assert isinstance(self.decide(answer(5, UNTRUSTED)), Wait)

    def test_two_that_see_each_other_never_both_found(self) -> None:
        """Whatever the stamps, exactly one of two founds."""
        for mine in (1, 2):
            for other in (1, 2):
                a = Candidate(stamp=mine, server_id=server_id(1))
                b = Candidate(stamp=other, server_id=server_id(2))
                of_a = decide(farm="", me=a, answers=[answer(2, STARTING, stamp=other)])
                of_b = decide(farm="", me=b, answers=[answer(1, STARTING, stamp=mine)])
                assert [isinstance(of_a, Found), isinstance(of_b, Found)].count(True) == 1


class FakeLink:
    """A link that answers a probe with what it was made for."""

    def __init__(self, told: Any) -> None:
        self.told = told
        self.closed = False
        self.transport = self

    def getHandle(self) -> PlayedConnection:
        return PlayedConnection(EXPORTER)

    def callRemote(self, command: Any, **arguments: Any) -> Deferred[Any]:
        if isinstance(self.told, Exception):
            return fail(self.told)
        if self.told is None:
            return Deferred()
        if callable(self.told):
            return succeed({"answer": json.dumps(self.told(arguments))})
        return succeed({"answer": json.dumps(self.told)})

    def close(self) -> None:
        self.closed = True


class AskTests(SynchronousTestCase):
    """A round of questions."""

    key: bytes | None = None

    def make_round(self, places: dict[int, Any], farm: str = "") -> Deferred[list[Answer]]:
        """`places`: port -> an exception, None (never answers) or the answer."""
        self.clock = Clock()
        self.asked: list[int] = []

        def open_link(address: Address, factory: Any, timeout: float) -> Deferred[Any]:
            self.asked.append(address.port)
            place = places[address.port]
            if isinstance(place, OSError | ConnectError | TLSFailed):
                return fail(place)
            return succeed(FakeLink(place))

        peers = Peers(self.clock, open_link, lambda certificate: None, lambda server_id: None)
        addresses = [Address("127.0.0.1", port) for port in places]
        return ask(peers, addresses, Asking(me=ME, address=HERE, farm=farm, key=self.key))

    def told(self, number: int, state: str = "serving", farm: str = FARM) -> dict[str, Any]:
        return {"server": server_id(number), "state": state, "farm": farm, "stamp": 5, "first": {}}

    def test_the_masters_are_asked_first(self) -> None:
        """When one of the first three answers, nobody else is bothered."""
        places: dict[int, Any] = {port: self.told(port) for port in range(1, 7)}
        answers = self.successResultOf(self.make_round(places))
        assert [answer.outcome for answer in answers] == [ANSWERED] * 3
        assert self.asked == [1, 2, 3]

    def test_then_the_rest(self) -> None:
        """When none of them does, all others are asked."""
        places: dict[int, Any] = {port: ConnectionRefusedError() for port in range(1, 40)}
        places[39] = self.told(39)
        answers = self.successResultOf(self.make_round(places))
        assert [answer.outcome for answer in answers] == [REFUSED] * 38 + [ANSWERED]

    def test_every_ending_has_a_name(self) -> None:
        """Refused, timed out, silent, broken and starting are told apart."""
        places: dict[int, Any] = {
            1: ConnectionRefusedError(),
            2: TimeoutError(),
            3: None,
            4: ValueError("not AMP"),
            5: self.told(5, "starting", ""),
            6: self.told(6, "founding", ""),
            7: self.told(7, "waiting", FARM),
        }
        waiting = self.make_round(places)
        self.assertNoResult(waiting)
        self.clock.advance(10)
        answers = self.successResultOf(waiting)
        assert [answer.outcome for answer in answers] == [
            REFUSED,
            TIMED_OUT,
            TIMED_OUT,
            UNTRUSTED,
            STARTING,
            FOUNDING,
            FAILED,
        ]
        assert answers[6].error == f"it is waiting too, for farm {FARM}"

    def test_why_nobody_could_be_asked(self) -> None:
        """The reason is a few words that people know, not those of a library."""
        places: dict[int, Any] = {
            1: ConnectionRefusedError(111, "Connection refused"),
            2: TimeoutError(110, "timed out"),
            3: HandshakeTimedOut("the peer did not finish the handshake within 4.99946 seconds"),
            4: TLSFailed("no protocols available"),
            5: NoRouteError(113, "No route to host"),
        }
        answers = self.successResultOf(self.make_round(places))
        assert [(answer.outcome, answer.error) for answer in answers] == [
            (REFUSED, "refused"),
            (TIMED_OUT, "no answer within 5 s"),
            (TIMED_OUT, "no answer within 5 s"),
            (UNTRUSTED, "TLS failed: no protocols available"),
            (FAILED, "No route to host: 113: No route to host"),
        ]

    def test_answers_that_nobody_should_believe(self) -> None:
        """What is said is shown to people and acted on, so what makes no sense is no answer."""
        for changes in (
            {"state": "serving\nREADY=1"},
            {"state": ["serving"]},
            {"stamp": "5"},
            {"stamp": 1e400},
            {"server": "x" * 60_000},
            {"farm": "f\nf"},
            {"first": [1]},
            {"first": {"id": server_id(1)}},
            {"first": {"id": server_id(1), "host": "a b", "peer": 4101}},
            {"first": {"id": server_id(1), "host": "10.0.0.1", "peer": 70_000}},
        ):
            answers = self.successResultOf(self.make_round({1: {**self.told(1), **changes}}))
            assert answers[0].outcome == UNTRUSTED, changes
            assert len(answers[0].error) < 200, changes
        good = {"id": server_id(1), "host": "10.0.0.1", "peer": 4101}
        answers = self.successResultOf(self.make_round({1: {**self.told(1), "first": good}}))
        assert answers[0].first == good

    def one(self, told: Any) -> Answer:
        (answered,) = self.successResultOf(self.make_round({1: told}))
        return answered

    def test_who_proves_the_join_key(self) -> None:
        """Two that start with the same farm.join know each other by it."""
        self.key = KEY

        def listener(asked: dict[str, Any]) -> dict[str, Any]:
            assert check_proof(KEY, DIALER, EXPORTER, asked["proof"])
            return {**self.told(1, "starting", ""), "keyed": True, "proof": proof(KEY, LISTENER, EXPORTER).hex()}

        assert self.one(listener).outcome == STARTING

    def test_who_does_not(self) -> None:
        """No proof, one of another key or connection, one that is none: waited for, and said."""
        self.key = KEY
        for shown in (
            "",
            "nonsense",
            proof(b"x" * 32, LISTENER, EXPORTER).hex(),
            proof(KEY, LISTENER, b"o" * 32).hex(),
        ):
            answered = self.one({**self.told(1, "starting", ""), "keyed": True, "proof": shown})
            assert answered.outcome == UNTRUSTED
            assert "farm.join" in answered.error

    def test_a_reflected_proof(self) -> None:
        """An impostor that sends back what it was shown proves nothing, not even under our own id."""
        self.key = KEY
        for number in (0, 1):
            mirror = lambda asked, number=number: {  # noqa: E731
                **self.told(number, "starting", ""),
                "keyed": True,
                "proof": asked["proof"].hex(),
            }
            answered = self.one(mirror)
            assert answered.outcome == UNTRUSTED
            assert isinstance(decide(farm="", me=ME, answers=[answered]), Wait)

    def test_the_other_has_a_join_key_and_this_one_has_none(self) -> None:
        """Then this one was forgotten when farm.join was copied, and must not found a farm of its own."""
        answered = self.one({**self.told(1, "starting", ""), "keyed": True, "proof": ""})
        assert answered.outcome == UNTRUSTED
        assert "copy" in answered.error

    def test_nobody_has_a_join_key(self) -> None:
        """On a first start without farm.join whoever is starting counts."""
        assert self.one({**self.told(1, "starting", ""), "keyed": False, "proof": ""}).outcome == STARTING

    def test_versions(self) -> None:
        """Our version and the one before are spoken with; of another the sentence says which."""
        for version in (PROTOCOL_VERSION, PROTOCOL_VERSION - 1):
            assert self.one({**self.told(1), "version": version}).outcome == ANSWERED
        for version in (PROTOCOL_VERSION + 1, PROTOCOL_VERSION - 2):
            answered = self.one({**self.told(1), "version": version})
            assert answered.outcome == FAILED
            assert answered.error.startswith(f"it speaks version {version} of the peer protocol")

    def test_what_is_told(self) -> None:
        """The question carries our version and where we listen."""
        told: dict[str, Any] = {}

        def listener(asked: dict[str, Any]) -> dict[str, Any]:
            told.update(asked)
            return self.told(1)

        self.one(listener)
        assert (told["version"], told["host"], told["peer"]) == (PROTOCOL_VERSION, HERE.host, HERE.port)
        assert "proof" not in told

    def test_another_farm_does_not_hide_ours(self) -> None:
        """One of the first three belongs to another farm: the rest is asked all the same."""
        places: dict[int, Any] = {port: ConnectionRefusedError() for port in range(1, 5)}
        places[1], places[4] = self.told(1, farm="e" * 32), self.told(4)
        answers = self.successResultOf(self.make_round(places, farm=FARM))
        assert [answered.farm for answered in answers if answered.outcome == ANSWERED] == ["e" * 32, FARM]

    def test_another_farm_is_named(self) -> None:
        """An answer for another farm says which."""
        answers = self.successResultOf(self.make_round({1: self.told(1)}, farm="e" * 32))
        assert answers[0].error == f"it belongs to another farm, {FARM}"


class SearchTests(SynchronousTestCase):
    """Round after round, until it is clear what to do."""

    def make_search(self, *answers: Any, may_found: tuple[bool, ...] = (True,), **more: Any) -> Deferred[Any]:
        """`answers`: what the one listed server does in each round, the last one for ever."""
        self.clock = Clock()
        self.waited: list[Wait] = []
        self.rounds = list(answers)
        turns = list(may_found)
        self.state = ServerState(server_id=ME.server_id, name="s0", stamp=ME.stamp, incarnation="run")

        def open_link(address: Address, factory: Any, timeout: float) -> Deferred[Any]:
            place = self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]
            return fail(place) if isinstance(place, Exception) else succeed(FakeLink(place))

        self.search = Search(
            Peers(self.clock, open_link, lambda certificate: None, lambda server: None),
            self.state,
            Callers(self.clock),
            self.clock,
            read=lambda: succeed(([Address("127.0.0.1", 4111)], Asking(me=ME, address=HERE))),
            may_found=lambda: succeed(turns.pop(0)),
            explain=self.waited.append,
            **more,
        )
        return Deferred.fromCoroutine(self.search.run())

    def told(self, state: str, stamp: int = 0, farm: str = "") -> dict[str, Any]:
        return {"server": server_id(1), "state": state, "farm": farm, "stamp": stamp, "first": {}}

    def test_waits_for_a_founder_and_joins(self) -> None:
        """While another makes the farm it is asked again soon, and then joined."""
        search = self.make_search(self.told("founding"), self.told("founding"), self.told("serving", farm=FARM))
        self.assertNoResult(search)
        self.clock.pump([0.3, 0.3])
        assert isinstance(self.successResultOf(search), Join)

    def test_a_founder_that_stopped(self) -> None:
        """Whoever was founding and refuses may have a farm on its disk: nobody founds beside it."""
        search = self.make_search(self.told("founding"), ConnectionRefusedError())
        self.clock.pump([0.3] * 40)
        self.assertNoResult(search)
        assert "it was making the farm" in self.waited[-1].reasons[0].error
        self.rounds = [self.told("starting", stamp=2)]
        self.clock.pump([2.0])
        assert isinstance(self.successResultOf(search), Found)

    def test_a_farm_that_was_seen(self) -> None:
        """Who could not join a farm that has gone since does not found another one, not even with --found."""
        search = self.make_search(self.told("serving", farm=FARM), ConnectionRefusedError(), found_anyway=True)
        assert isinstance(self.successResultOf(search), Join)
        again = Deferred.fromCoroutine(self.search.run())
        self.clock.pump([0.3] * 40)
        self.assertNoResult(again)
        assert "it served a farm" in self.waited[-1].reasons[0].error
        self.rounds = [self.told("serving", farm=FARM)]
        self.clock.pump([2.0])
        assert isinstance(self.successResultOf(again), Join)

    def test_says_founding_from_the_turn_of_the_decision(self) -> None:
        """Before anything else happens, the state says that a farm is being made."""
        search = self.make_search(ConnectionRefusedError())
        assert isinstance(self.successResultOf(search), Found)
        assert self.state.phase == "founding"

    def test_somebody_else_was_quicker(self) -> None:
        """Who does not get the lock of config.ini looks again."""
        search = self.make_search(ConnectionRefusedError(), may_found=(False, True))
        self.assertNoResult(search)
        self.clock.advance(0.3)
        assert isinstance(self.successResultOf(search), Found)
