"""Servers of neighbouring versions: what one lacks of what the other says, in both directions."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from attrs import NOTHING, fields
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.protocols import amp
from twisted.test.iosim import IOPump, connect
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed, PeerLink, call_on
from chunkfarm.model import FarmOptions, Server
from chunkfarm.ports.peer import PeerPortFactory
from chunkfarm.said import report_of, row_of
from chunkfarm.table.duties import Report
from tests.builders import make_server, server_id
from tests.ports.test_peer import FakeLines, FakePeerBackend, PeerTransport

VERSION = 1
"""The version of which the following is what has to be said. A later one has a table of its own."""
REQUIRED: dict[str, tuple[str, str]] = {
    "Probe": ("server stamp farm", "answer"),
    "Join": ("version farm proof request row", "proof farm certificate ca seal row"),
    "Renew": ("request", "certificate ca"),
    "Report": ("report", "answer"),
    "GetTable": ("request", "page"),
    "PutTable": ("block", "changed"),
    "GetServer": ("server", "row"),
    "PutServer": ("row", "row"),
    "Transact": ("request", "answer"),
    "Read": ("request", "page"),
    "Referenced": ("digests", "counts"),
    "Consensus": ("payload", ""),
    "Authenticate": ("key proof", "role"),
}
"""Command: what must be given, and what must be answered. Commands that came later are not here: nobody may count on
them."""


def kinds() -> dict[str, type[amp.Command]]:
    found = inspect.getmembers(commands, inspect.isclass)
    return {
        name: kind for name, kind in found if issubclass(kind, amp.Command) and kind is not commands.ConsensusOneWay
    }


def must(arguments: list[tuple[bytes, amp.Argument]]) -> list[tuple[bytes, amp.Argument]]:
    return [(name, argument) for name, argument in arguments if not argument.optional]


def as_of(kind: type[amp.Command], more: tuple[tuple[bytes, amp.Argument], ...] = ()) -> Any:
    """The command with nothing but what it must have, and `more`."""
    values = {"arguments": [*must(kind.arguments), *more], "response": [*must(kind.response), *more]}
    return type(kind.__name__, (amp.Command,), {**values, "commandName": kind.commandName, "errors": kind.errors})


def value_for(argument: amp.Argument) -> Any:
    return 1 if isinstance(argument, amp.Integer) else "{}" if isinstance(argument, amp.Unicode) else b"b"


def given(kind: type[amp.Command]) -> dict[str, Any]:
    return {name.decode(): value_for(argument) for name, argument in must(kind.arguments)}


class OlderPeerTests(SynchronousTestCase):
    def ask(self, link: PeerLink, pump: IOPump, command: Any, arguments: dict[str, Any]) -> Deferred[Any]:
        answer = call_on(link, command, arguments)
        outcome: Deferred[Any] = Deferred()
        answer.addCallbacks(outcome.callback, outcome.errback)
        pump.flush()
        return outcome

    def our_port(self) -> tuple[PeerLink, IOPump]:
        backend = FakePeerBackend()
        backend.peer = server_id(2)
        factory = PeerPortFactory(backend, Clock(), lines=FakeLines())
        port, link = factory.buildProtocol(None), PeerLink()
        self.addCleanup(port.abort)
        return link, connect(port, PeerTransport(port, isServer=True), link, PeerTransport(link, isServer=False))

    def their_port(self, **answers: Callable[..., dict[str, Any]]) -> tuple[PeerLink, IOPump]:
        """A port of theirs that answers commands with nothing but what they must have."""

        for name, answer in answers.items():
            # AMP gives them to the next class that is made.
            as_of(kinds()[name]).responder(lambda port, answer=answer, **arguments: answer(**arguments))

        class Port(amp.AMP):
            pass

        port, link = Port(), PeerLink()
        return link, connect(port, PeerTransport(port, isServer=True), link, PeerTransport(link, isServer=False))

    def test_what_must_be_said(self) -> None:
        """What came into this version since must not be needed; a new argument is optional, or the version grows."""
        assert commands.PROTOCOL_VERSION == VERSION, "a new version has a table of its own"
        found = {
            name: tuple(" ".join(one.decode() for one, _ in must(part)) for part in (kind.arguments, kind.response))
            for name, kind in kinds().items()
            if name in REQUIRED
        }
        assert found == REQUIRED

    def test_they_ask(self) -> None:
        """Who says nothing but what must be said is answered; so is one that says more than we know."""
        news = (b"news", amp.Unicode(optional=True))
        for name in REQUIRED:
            for command, more in ((as_of(kinds()[name]), {}), (as_of(kinds()[name], (news,)), {"news": "later"})):
                link, pump = self.our_port()
                asked = self.ask(link, pump, command, {**given(kinds()[name]), **more})
                if name == "Join":
                    # Of this backend; what matters is that it came so far.
                    self.failureResultOf(asked, commands.JoinRefused)
                else:
                    self.successResultOf(asked)
                assert link.alive

    def test_we_ask(self) -> None:
        """Who knows nothing but what must be said takes what we ask, and we take its answer."""
        heard: list[dict[str, Any]] = []

        def answer(name: str) -> Callable[..., dict[str, Any]]:
            def taken(**arguments: Any) -> dict[str, Any]:
                heard.append(arguments)
                return {one.decode(): value_for(argument) for one, argument in must(kinds()[name].response)}

            return taken

        for name, kind in kinds().items():
            if name not in REQUIRED:
                continue
            link, pump = self.their_port(**{name: answer(name)})
            everything = {one.decode(): value_for(argument) for one, argument in kind.arguments}
            told = self.successResultOf(self.ask(link, pump, kind, everything))
            assert set(heard.pop()) == set(given(kind)), name
            # What an answer may lack is not missed.
            assert all(told.get(one.decode()) is None for one, argument in kind.response if argument.optional)

    def test_commands_that_they_do_not_know(self) -> None:
        """They fail like an unanswered call, and the link goes on."""
        link, pump = self.their_port()
        for name in kinds().keys() - REQUIRED.keys():
            self.failureResultOf(self.ask(link, pump, kinds()[name], given(kinds()[name])), LinkFailed)
            assert link.alive

    def test_records(self) -> None:
        """A report needs the name of its process only; whoever reads passes over what is new, and misses nothing."""
        report = report_of({"incarnation": "x", "news": [1]})
        assert report == Report(incarnation="x")
        told = json.loads(make_server(3).to_value())
        least = {name: told[name] for name in ("id", "name", "host", "client", "peer", "files")}
        assert row_of(json.dumps({**least, "news": {}})).id == server_id(3)
        assert Server.from_value(json.dumps({**told, "news": 1}).encode()).name == "s3"
        assert FarmOptions.from_value(b'{"name":"lab","news":1}') == FarmOptions(name="lab")
        assert [one.name for one in fields(Report) if one.default is NOTHING] == ["incarnation"]
