"""What other servers say of their journals, and how it is asked."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.links.peers import LinkFailed, Peers
from chunkfarm.model import Address
from chunkfarm.survey import Questions, Told, read_told
from chunkfarm.table.lines import Fork
from tests.builders import server_id

X = Fork("1" * 32, 10, 2)
ANSWER: dict[str, Any] = {
    "server": server_id(2),
    "name": "s2",
    "state": "readonly",
    "first": {"id": server_id(3), "host": "10.0.0.3", "peer": 4101},
    "journal": {"term": 3, "index": 17},
    "commits": False,
    "lines": [X.as_item()],
    "settled": False,
    "stopped": True,
    "term_at": 2,
}
WHERE = Address("10.0.0.2", 4101)


class Link:
    """A link whose other end says one thing."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.closed = False
        self.asked: dict[str, Any] = {}

    def certificate(self) -> str:
        return server_id(2)

    def callRemote(self, command: Any, **arguments: Any) -> Deferred[Any]:
        self.asked = arguments
        return succeed({"answer": self.answer})

    def close(self) -> None:
        self.closed = True


class SurveyTests(SynchronousTestCase):
    def make_questions(self, answer: Any = ANSWER) -> Questions:
        self.link = Link(answer if isinstance(answer, str) else json.dumps(answer))
        self.refusal: Exception | None = None
        self.known = server_id(2)

        def open_link(address: Address, factory: Any, timeout: float) -> Deferred[Any]:
            return succeed(self.link) if self.refusal is None else fail(self.refusal)

        peers = Peers(Clock(), open_link, lambda certificate: self.known, lambda server: WHERE)
        return Questions(peers, lambda: {"server": server_id(1)})

    def test_an_answer(self) -> None:
        """All that it says is taken."""
        told = self.successResultOf(self.make_questions().ask_at(WHERE))
        assert told == Told(
            server=server_id(2),
            name="s2",
            state="readonly",
            first=server_id(3),
            journal=(3, 17),
            chain=(X,),
            settled=False,
            stopped=True,
            term_there=2,
        )
        assert self.link.closed and self.link.asked == {"server": server_id(1)}

    def test_an_earlier_version(self) -> None:
        """A server that knows nothing of lines holds no journal that could be compared, and no takeover."""
        told = read_told(json.dumps({"server": server_id(2), "name": "s2", "state": "serving", "first": {}}))
        assert told == Told(server=server_id(2), name="s2", state="serving")

    def test_who_cannot_be_asked(self) -> None:
        """Why is told in the words that are used everywhere."""
        questions = self.make_questions()
        self.refusal = ConnectionRefusedError()
        assert str(self.failureResultOf(questions.ask_at(WHERE), LinkFailed).value) == "refused"
        self.refusal, self.known = None, ""
        self.known = None  # type: ignore[assignment]
        assert "no server of this farm" in str(self.failureResultOf(questions.ask_at(WHERE), LinkFailed).value)
        self.known = server_id(9)
        assert "another server's id" in str(self.failureResultOf(questions.ask_at(WHERE), LinkFailed).value)

    def test_nonsense(self) -> None:
        """It is nobody's answer."""
        wrong: list[Any] = [
            "nonsense",
            "[" * 50_000,
            [],
            {},
            {**ANSWER, "server": "x"},
            {**ANSWER, "name": "A B"},
            {**ANSWER, "journal": {"term": -1, "index": 2}},
            {**ANSWER, "journal": {"term": 1}},
            {**ANSWER, "lines": [{}]},
            {**ANSWER, "term_at": "x"},
            {**ANSWER, "first": [1]},
        ]
        for answer in wrong:
            questions = self.make_questions(answer)
            failure = self.failureResultOf(questions.ask_at(WHERE), LinkFailed)
            assert "makes no sense" in str(failure.value), answer

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)
                        | st.dictionaries(st.sampled_from([*ANSWER, "line", "index", "term"]), inner)))  # fmt: skip
    def test_anything(self, answer: Any) -> None:
        """Whatever comes is either understood or refused in one way."""
        told = {**ANSWER, **answer} if isinstance(answer, dict) else answer
        questions = self.make_questions(json.dumps(told))
        outcome: list[Any] = []
        questions.ask_at(WHERE).addBoth(outcome.append)
        assert isinstance(outcome[0], Told) or outcome[0].check(LinkFailed)
