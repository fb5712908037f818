"""Links to the peer ports of other servers: how they fail, and how they are given up."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.protocols import amp
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.links import commands
from chunkfarm.links.boxes import message_box
from chunkfarm.links.peers import (
    CALL_TIMEOUT,
    DESCRIPTION_BYTES_MAX,
    RETRY_DELAY,
    UNANSWERED_MAX,
    LinkFailed,
    PeerLink,
    Peers,
)
from chunkfarm.model import Address
from chunkfarm.wire.tls import PeerEnded
from tests.builders import server_id


class Wire:
    """A transport that keeps what is written, and has no other end."""

    def __init__(self, link: PeerLink) -> None:
        self.link = link
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def getPeerCertificate(self) -> str:
        return server_id(2)

    def lose(self, reason: Exception) -> None:
        self.link.connectionLost(Failure(reason))

    def abortConnection(self) -> None:
        self.lose(ConnectionAborted())

    def loseConnection(self) -> None:
        self.lose(ConnectionDone())


class PeersCase(SynchronousTestCase):
    """Links to one other server, in memory."""

    def make_peers(self) -> Peers:
        self.clock = Clock()
        self.wires: list[Wire] = []
        self.refusal: Exception | None = None

        def open_link(address: Address, factory: Any, timeout: float) -> Deferred[Any]:
            if self.refusal is not None:
                return fail(self.refusal)
            link = factory.buildProtocol(None)
            self.wires.append(Wire(link))
            link.makeConnection(self.wires[-1])
            return succeed(link)

        known = {server_id(2): Address("127.0.0.1", 4121)}
        self.ended: list[str] = []
        return Peers(self.clock, open_link, lambda certificate: certificate, known.get, self.ended.append)

    def ask(self, peers: Peers, timeout: float = CALL_TIMEOUT) -> Deferred[dict[str, Any]]:
        return peers.call(server_id(2), commands.GetServer, timeout, server="x")

    def answer(self, wire: Wire, ask: bytes, **box: bytes) -> None:
        said = {key.encode(): value for key, value in box.items()}
        wire.link.dataReceived(amp.AmpBox({b"_answer": ask, **said}).serialize())


class PeersTests(PeersCase):
    """Calls to one other server."""

    def test_a_refusal_without_end(self) -> None:
        """Of what another server says of an error there is kept what a sentence takes: it is shown, and told on."""
        peers = self.make_peers()
        asked = self.ask(peers)
        box = {b"_error": b"1", b"_error_code": b"NOT_NOW", b"_error_description": b"x" * 60_000}
        self.wires[0].link.dataReceived(amp.AmpBox(box).serialize())
        assert len(str(self.failureResultOf(asked, commands.NotNow).value)) == DESCRIPTION_BYTES_MAX
        asked = self.ask(peers)
        box = {b"_error": b"2", b"_error_code": b"NOT_NOW", b"_error_description": b"one\r\ntwo\x1b[2J"}
        self.wires[0].link.dataReceived(amp.AmpBox(box).serialize())
        assert str(self.failureResultOf(asked, commands.NotNow).value) == "one  two [2J"

    def test_an_answer(self) -> None:
        """A call is answered over the link, which is kept for the next one."""
        peers = self.make_peers()
        first = self.ask(peers)
        self.answer(self.wires[0], b"1", row=b"r")
        assert self.successResultOf(first) == {"row": "r"}
        second = self.ask(peers)
        self.answer(self.wires[0], b"2", row=b"s")
        assert self.successResultOf(second) == {"row": "s"}
        assert len(self.wires) == 1

    def test_who_ended_it(self) -> None:
        """Only an end that came from the other side is told as one: not silence, and not this side's own."""
        peers = self.make_peers()
        for reason in (ConnectionLost(), ConnectionDone(), ConnectionAborted()):
            self.ask(peers).addErrback(lambda failure: None)
            self.wires[-1].lose(reason)
        assert self.ended == []
        self.ask(peers).addErrback(lambda failure: None)
        self.wires[-1].lose(PeerEnded())
        assert self.ended == [server_id(2)]

    def test_however_the_link_ends(self) -> None:
        """Cut, reset or closed in order: whoever waits hears that the link has failed."""
        peers = self.make_peers()
        for error in (ConnectionLost(), ConnectionDone(), ConnectionAborted()):
            asked = self.ask(peers)
            self.wires[-1].lose(error)
            self.failureResultOf(asked, LinkFailed)
        assert len(self.wires) == 3

    def test_a_peer_that_does_not_understand(self) -> None:
        """An error that no command declares is a failed link to whoever asked."""
        peers = self.make_peers()
        asked = self.ask(peers)
        box = amp.AmpBox({b"_error": b"1", b"_error_code": b"UNKNOWN", b"_error_description": b"?"})
        self.wires[0].link.dataReceived(box.serialize())
        self.failureResultOf(asked, LinkFailed)

    def test_an_answer_that_is_none(self) -> None:
        """An answer without its values, or with broken ones, is a failed link too."""
        peers = self.make_peers()
        for number, box in ((b"1", {}), (b"2", {"row": b"\xff"})):
            asked = self.ask(peers)
            self.answer(self.wires[0], number, **box)
            self.failureResultOf(asked, LinkFailed)

    def test_what_does_not_fit_a_box(self) -> None:
        """An argument that is too long fails the call, and not the caller."""
        peers = self.make_peers()
        call = peers.call(server_id(2), commands.GetServer, server="x" * 70_000)
        self.failureResultOf(call, LinkFailed)

    def test_a_link_that_leads_nowhere(self) -> None:
        """Calls into silence end the link after a while, and the next one goes over another."""
        peers = self.make_peers()
        for _ in range(UNANSWERED_MAX):
            asked = self.ask(peers, 2.0)
            self.clock.advance(2.0)
            self.failureResultOf(asked, LinkFailed)
        assert len(self.wires) == 1
        self.ask(peers, 2.0).addErrback(lambda failure: None)
        assert len(self.wires) == 2

    def test_a_slow_peer_keeps_its_link(self) -> None:
        """Who answers anything at all is there, however late it is with one call."""
        peers = self.make_peers()
        for number in range(1, 2 * UNANSWERED_MAX, 2):
            slow, quick = self.ask(peers, 2.0), self.ask(peers, 2.0)
            self.answer(self.wires[0], b"%x" % (number + 1), row=b"r")
            self.successResultOf(quick)
            self.clock.advance(2.0)
            self.failureResultOf(slow, LinkFailed)
        assert len(self.wires) == 1

    def test_an_address_that_cannot_be_one(self) -> None:
        """Whatever opening a link raises is told to who asked."""
        peers = self.make_peers()
        self.refusal = ConnectionRefusedError()
        assert "refused" in str(self.failureResultOf(self.ask(peers), LinkFailed).value)
        assert peers.error_of(server_id(2)) == "refused"
        self.clock.advance(RETRY_DELAY)

        def impossible(address: Address, factory: Any, timeout: float) -> Deferred[Any]:
            raise OverflowError("getsockaddrarg: port must be 0-65535")

        peers._open_link = impossible
        self.failureResultOf(self.ask(peers), LinkFailed)


class FakeLines:
    """A line to say, and what others said."""

    def __init__(self, said: str | None) -> None:
        self.said = said
        self.heard: list[tuple[str, str]] = []
        self.good = False

    def met(self, server_id: str, line: str) -> bool:
        self.heard.append((server_id, line))
        return self.good


class LineTests(PeersCase):
    """The line of the farm's history, in every box."""

    def make_lined(self, said: str | None) -> Peers:
        peers = self.make_peers()
        self.lines = peers._lines = FakeLines(said)
        return peers

    def test_the_first_message_is_kept(self) -> None:
        """A message for a server without a link is the first on the link that is opened for it."""
        peers = self.make_peers()
        peers.send(server_id(2), b"first")
        assert self.wires[-1].written == message_box(b"first", None)
        peers.send(server_id(2), b"second")
        assert self.wires[-1].written == message_box(b"first", None) + message_box(b"second", None)
        assert len(self.wires) == 1

    def test_it_is_said(self) -> None:
        """With every call, also where it is the first line, which has no name; a server without a history says none."""
        for said, written in (("1e", b"\x00\x04line\x00\x021e"), ("", b"\x00\x04line\x00\x00"), (None, None)):
            peers = self.make_lined(said)
            self.ask(peers).addErrback(lambda failure: None)
            peers.send(server_id(2), payload=b"x")
            count = self.wires[-1].written.count(b"\x00\x04line" if written is None else written)
            assert count == (0 if written is None else 2), said

    def test_another_line_in_an_answer(self) -> None:
        """It is noted, and the answer is taken all the same; the same line, or none, is nothing to note."""
        peers = self.make_lined("1e")
        for number, box in ((b"1", {"line": b"2f"}), (b"2", {"line": b"1e"}), (b"3", {})):
            asked = self.ask(peers)
            self.answer(self.wires[0], number, row=b"r", **box)
            assert self.successResultOf(asked) == {"row": "r"}
        assert self.lines.heard == [(server_id(2), "2f")]
