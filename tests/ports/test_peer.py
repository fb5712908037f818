"""The peer port: strangers may probe and join, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols import amp
from twisted.test.iosim import FakeTransport, IOPump, connect
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.limits import Limits
from chunkfarm.links import commands
from chunkfarm.links.boxes import message_box
from chunkfarm.links.peers import PeerLink
from chunkfarm.model import Address, Principal
from chunkfarm.ports.peer import REPORT_KEPT_MAX, Joiner, PeerPort, PeerPortFactory, Prober
from tests.builders import server_id

LIMITS = Limits()


class FakePeerBackend:
    """Says what it was asked."""

    def __init__(self) -> None:
        self.peer: str | None = None
        self.joiners: list[Joiner] = []
        self.probers: list[Prober] = []
        self.payloads: list[bytes] = []

    def peer_of(self, certificate: Any) -> str | None:
        return self.peer

    def probe(self, prober: Prober) -> dict[str, Any]:
        self.probers.append(prober)
        return {"server": server_id(1), "asked": prober.server}

    def join(self, joiner: Joiner) -> Deferred[dict[str, Any]]:
        self.joiners.append(joiner)
        raise commands.JoinRefused("not today")

    def renew(self, sender: str, request: bytes) -> Deferred[dict[str, Any]]:
        return succeed({"certificate": request, "ca": sender.encode()})

    def report(self, sender: str, report: str) -> str:
        if not report.startswith("{"):
            raise commands.BadRequest("expected a JSON object")
        return json.dumps({"known": True, "sender": sender, "told": report})

    def put_server(self, sender: str, row: str, key: str = "") -> Deferred[str]:
        return succeed(row)

    def get_server(self, server: str) -> str:
        return server

    def transact(self, sender: str, request: bytes) -> Deferred[bytes]:
        return succeed(request + sender.encode())

    def read(self, sender: str, request: bytes, stale: bool = False) -> Deferred[bytes]:
        return succeed(request + b" as last known" if stale else request)

    def get_table(self, sender: str, request: bytes) -> Deferred[bytes]:
        return succeed(request)

    def referenced(self, sender: str, digests: bytes) -> Deferred[bytes]:
        return succeed(digests[:4])

    def at_risk(self, sender: str, holders: str, start: bytes) -> dict[str, bytes]:
        return {"keys": start, "next": b""}

    def lost_files(self, sender: str) -> Deferred[str]:
        return succeed("{}")

    def put_table(self, sender: str, block: bytes) -> Deferred[int]:
        return succeed(len(block))

    def consensus(self, sender: str, payload: bytes) -> Deferred[None]:
        self.payloads.append(payload)
        return succeed(None)

    def authenticate(self, key: str, proof: bytes) -> Deferred[Principal | None]:
        return succeed(Principal(key, "read", "lab/"))

    forgotten = ""

    def barred(self, server: str) -> str:
        return "it was forgotten" if server == self.forgotten else ""

    def forget(self, sender: str, target: str) -> Deferred[None]:
        raise commands.Conflict(f"{target} is up")

    def join_key(self, sender: str) -> Deferred[bytes]:
        return succeed(b"k" * 32)

    def seal_key(self, sender: str, digest: str) -> bytes:
        return b"s" * 32


class FakeLines:
    """The line `1e`, and what others said."""

    said: str | None = "1e"

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def met(self, server_id: str, line: str) -> bool:
        self.heard.append((server_id, line))
        return line == self.said


class FakeHandle:
    def export_keying_material(self, label: bytes, length: int, context: bytes) -> bytes:
        return b"e" * length


class PeerTransport(FakeTransport):
    """An in-memory transport that can be asked what a TLS one can."""

    host = "127.0.0.1"

    def getPeerCertificate(self) -> None:
        return None

    def getHandle(self) -> FakeHandle:
        return FakeHandle()

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", self.host, 5000)

    def abortConnection(self) -> None:
        self.loseConnection()


class PeerPortTests(SynchronousTestCase):
    """One link, in memory."""

    def make_link(self, peer: str | None = None, host: str = "127.0.0.1") -> tuple[PeerLink, PeerPort, IOPump]:
        if not hasattr(self, "backend"):
            self.clock = Clock()
            self.backend = FakePeerBackend()
            self.lines = FakeLines()
            self.limited: list[str] = []
            self.factory = PeerPortFactory(self.backend, self.clock, lines=self.lines, limited=self.limited.append)
        self.backend.peer = peer
        port, link = self.factory.buildProtocol(None), PeerLink()
        port_side, link_side = PeerTransport(port, isServer=True), PeerTransport(link, isServer=False)
        port_side.host = host
        pump = connect(port, port_side, link, link_side)
        return link, port, pump

    def ask(self, link: PeerLink, pump: IOPump, command: type[amp.Command], **arguments: Any) -> Deferred[Any]:
        answer: Deferred[Any] = link.callRemote(command, **arguments)
        # AMP drops the link if an error finds nobody, so somebody must be there before it arrives.
        outcome: Deferred[Any] = Deferred()
        answer.addCallbacks(outcome.callback, outcome.errback)
        pump.flush()
        return outcome

    QUESTIONS: list[tuple[type[amp.Command], dict[str, Any]]] = [
        (commands.Renew, {"request": b""}),
        (commands.Report, {"report": "{}"}),
        (commands.GetTable, {"request": b""}),
        (commands.Referenced, {"digests": b""}),
        (commands.AtRisk, {"holders": "x", "start": bytes(8)}),
        (commands.LostFiles, {}),
        (commands.PutTable, {"block": b""}),
        (commands.GetServer, {"server": "x"}),
        (commands.PutServer, {"row": "{}"}),
        (commands.Transact, {"request": b""}),
        (commands.Read, {"request": b""}),
        (commands.Consensus, {"payload": b""}),
        (commands.Authenticate, {"key": "k", "proof": b""}),
    ]

    def test_a_stranger_may_probe(self) -> None:
        """Without a certificate one learns who listens here."""
        link, _, pump = self.make_link()
        box = self.successResultOf(self.ask(link, pump, commands.Probe, server=server_id(2), stamp=1, farm=""))
        assert json.loads(box["answer"])["asked"] == server_id(2)

    def test_what_a_prober_may_leave_out(self) -> None:
        """A server of the first version says neither version nor proof nor where it listens."""
        link, _, pump = self.make_link()
        told = {"server": server_id(2), "stamp": 1, "farm": ""}
        self.successResultOf(self.ask(link, pump, commands.Probe, **told))
        assert self.backend.probers[-1] == Prober(server_id(2), 1, "", host="127.0.0.1")
        more = {"version": 2, "proof": b"p", "host": "10.0.0.1", "peer": 4101}
        self.successResultOf(self.ask(link, pump, commands.Probe, **told, **more))
        prober = self.backend.probers[-1]
        assert (prober.version, prober.proof, prober.exporter) == (2, b"p", b"e" * 32)
        assert prober.advertised == Address("10.0.0.1", 4101)
        self.successResultOf(self.ask(link, pump, commands.Probe, **told, host="no host", peer=4101))
        assert self.backend.probers[-1].advertised is None

    def test_a_stranger_gets_nothing_else(self) -> None:
        """Every other command wants a certificate of this farm."""
        for command, arguments in self.QUESTIONS:
            link, _, pump = self.make_link()
            failure = self.failureResultOf(self.ask(link, pump, command, **arguments), commands.BadRequest)
            assert "certificate of this farm" in str(failure.value), command

    def test_a_server_is_who_its_certificate_says(self) -> None:
        """What is answered depends on the certificate, not on a claim."""
        link, _, pump = self.make_link(server_id(7))
        for command, arguments in self.QUESTIONS:
            self.successResultOf(self.ask(link, pump, command, **arguments))
        box = self.successResultOf(self.ask(link, pump, commands.Transact, request=b"x"))
        assert box["answer"] == b"x" + server_id(7).encode()

    def test_what_is_last_known(self) -> None:
        """A read says whether it is for a leader, or for anybody who holds rows."""
        link, _, pump = self.make_link(server_id(7))
        told = {}
        for stale in (False, True):
            box = self.successResultOf(self.ask(link, pump, commands.Read, request=b"x", stale=stale))
            told[stale] = box["page"]
        assert told == {False: b"x", True: b"x as last known"}

    def test_a_server_that_was_forgotten(self) -> None:
        """It is told so with each question, its messages are lost, and it counts as a stranger who asks who is here."""
        link, port, pump = self.make_link(server_id(7))
        self.successResultOf(self.ask(link, pump, commands.Report, report="{}"))
        self.backend.forgotten = server_id(7)
        for command, arguments in self.QUESTIONS:
            failure = self.failureResultOf(self.ask(link, pump, command, **arguments), commands.BadRequest)
            assert str(failure.value) == "it was forgotten"
        link.send_message(b"2")
        pump.flush()
        assert self.backend.payloads == []
        message = message_box(b"2", "1e")
        for cut in range(1, len(message)):
            # However a network cuts it up.
            port.dataReceived(message[:cut])
            port.dataReceived(message[cut:])
        assert self.backend.payloads == [] and port in self.factory.connections
        self.successResultOf(self.ask(link, pump, commands.Probe, server=server_id(7), stamp=1, farm=""))
        assert self.backend.probers[-1].certified is None
        self.factory.cut(server_id(8))
        assert port in self.factory.connections
        self.factory.cut(server_id(7))
        pump.flush()
        assert port not in self.factory.connections

    def test_joining_is_bound_to_the_connection(self) -> None:
        """The backend gets the exporter of this very TLS connection, and refusals reach the joiner as such."""
        link, _, pump = self.make_link()
        arguments = {"version": 1, "farm": "", "proof": b"p", "request": b"r", "row": "{}"}
        failure = self.failureResultOf(self.ask(link, pump, commands.Join, **arguments), commands.JoinRefused)
        assert str(failure.value) == "not today"
        assert self.backend.joiners[0].exporter == b"e" * 32

    def test_reports_in_a_row(self) -> None:
        """A report that is answered without AMP's detour has the same answer, as the bytes and as the asker sees it."""
        link, port, pump = self.make_link(server_id(7))
        told = [self.successResultOf(self.ask(link, pump, commands.Report, report="{}")) for _ in range(2)]
        assert told[0] == told[1] and json.loads(told[0]["answer"])["sender"] == server_id(7)
        box = amp.AmpBox({amp.ASK: b"2a", amp.COMMAND: b"Report", b"line": b"1e", b"report": b'{"free": 1}'})
        question = box.serialize()
        answer = json.dumps({"known": True, "sender": server_id(7), "told": '{"free": 1}'})
        transport = StringTransport()
        port.transport = transport
        for cut in (len(question), 9, 30, len(question) - 2):
            transport.clear()
            port.dataReceived(question[:cut])
            port.dataReceived(question[cut:])
            expected = amp.AmpBox({amp.ANSWER: b"2a", b"answer": answer.encode(), b"line": b"1e"})
            assert transport.value() == expected.serialize()
        assert self.lines.heard[-4:] == [(server_id(7), "1e")] * 4

    def test_the_same_report_over_and_over(self) -> None:
        """Of what was said before nothing is taken for said again: not another report, not another line of history."""
        link, port, pump = self.make_link(server_id(7))
        self.successResultOf(self.ask(link, pump, commands.Report, report="{}"))
        transport = StringTransport()
        port.transport = transport
        long = '{"note": "' + "n" * REPORT_KEPT_MAX + '"}'
        for tag, line, report in (
            (b"1", b"1e", '{"free": 1}'),
            (b"2", b"1e", '{"free": 1}'),
            (b"3", b"1e", '{"free": 12}'),
            (b"4", None, '{"free": 12}'),
            (b"6", b"1e", long),
            (b"7", b"1e", long),
        ):
            box = amp.AmpBox({amp.ASK: tag, amp.COMMAND: b"Report", b"report": report.encode()})
            transport.clear()
            port.dataReceived((amp.AmpBox({**box, b"line": line}) if line else box).serialize())
            answer = json.dumps({"known": True, "sender": server_id(7), "told": report}).encode()
            expected = amp.AmpBox({amp.ANSWER: tag, b"answer": answer, b"line": b"1e"})
            assert transport.value() == expected.serialize()
        assert [line for _, line in self.lines.heard[-5:]] == ["1e"] * 5
        again = amp.AmpBox({amp.ASK: b"8", amp.COMMAND: b"Report", b"report": b"{}", b"line": b"1e"})
        for said, box, refusal in (
            ("1e", again, b""),
            ("2e", again, b"NOT_NOW"),
            ("2e", amp.AmpBox({amp.ASK: b"9", amp.COMMAND: b"Report", b"report": b"\xff{}"}), b"BAD_REQUEST"),
        ):
            self.lines.said = said
            transport.clear()
            port.dataReceived(box.serialize())
            assert (refusal or amp.ANSWER) in transport.value()

    def test_a_broken_report_is_the_peers_fault(self) -> None:
        """What is no JSON object is refused; the link goes on."""
        link, _, pump = self.make_link(server_id(7))
        for text in ("", "[]", "nonsense"):
            self.failureResultOf(self.ask(link, pump, commands.Report, report=text), commands.BadRequest)
        self.successResultOf(self.ask(link, pump, commands.GetServer, server="x"))

    def test_bytes_that_are_no_amp_end_the_link(self) -> None:
        """A malformed box closes this link without a traceback."""
        for garbage in (b"\x00\x00", b"\xff" * 300, b"\x00\x04_ask"):
            link, port, pump = self.make_link()
            assert link.transport is not None
            link.transport.write(garbage + b"\x00\x01\x00\xff\xff")
            pump.flush()
            assert port not in self.factory.connections
        assert self.flushLoggedErrors() == []

    def test_tls_within_tls(self) -> None:
        """AMP's own StartTLS is a command like any other unknown one: nothing is begun, nothing is logged."""
        link, port, pump = self.make_link()
        assert link.transport is not None
        link.transport.write(amp.AmpBox({b"_ask": b"1", b"_command": b"StartTLS"}).serialize())
        pump.flush()
        assert port.hostCertificate is None
        assert self.flushLoggedErrors() == []

    def test_a_box_without_end(self) -> None:
        """A stranger cannot fill the memory with the keys of one box."""
        link, port, pump = self.make_link()
        assert link.transport is not None
        link.transport.write(b"".join(b"\x00\x05key%02d\x00\x01x" % number for number in range(100)))
        pump.flush()
        assert port not in self.factory.connections
        assert self.flushLoggedErrors() == []

    def test_a_stranger_that_wants_no_answer(self) -> None:
        """A refusal that nobody waits for ends the link, without a traceback for each try."""
        link, port, pump = self.make_link()
        link.callRemote(commands.ConsensusOneWay, payload=b"x")
        pump.flush()
        assert port not in self.factory.connections
        assert self.flushLoggedErrors() == []

    def test_names_without_end(self) -> None:
        """A stranger that makes up commands fills no log with them."""
        link, port, pump = self.make_link()
        assert link.transport is not None
        with capturedLogs() as events:
            link.transport.write(amp.AmpBox({amp.COMMAND: b"x" * 60_000}).serialize())
            pump.flush()
        assert port not in self.factory.connections
        assert [len(formatEvent(event)) < 500 for event in events] == [True]

    def test_messages(self) -> None:
        """Messages of the consensus from a server of the farm are taken, in order, without an answer."""
        link, port, pump = self.make_link(server_id(7))
        taken: list[tuple[str, bytes]] = []

        def take(sender: str, payload: bytes) -> Deferred[None]:
            taken.append((sender, payload))
            return fail(commands.BadRequest("no")) if payload == b"bad" else succeed(None)

        self.backend.consensus = take  # type: ignore[method-assign]
        self.successResultOf(self.ask(link, pump, commands.Consensus, payload=b"1"))
        link.send_message(b"2")
        link.send_message(b"3")
        pump.flush()
        assert taken == [(server_id(7), payload) for payload in (b"1", b"2", b"3")]
        assert port in self.factory.connections
        link.send_message(b"bad")
        pump.flush()
        assert port not in self.factory.connections
        assert self.flushLoggedErrors() == []

    def test_a_fault_of_ours(self) -> None:
        """What goes wrong here is logged here; the peer hears that it may ask again, and its link goes on."""
        link, port, pump = self.make_link(server_id(7))

        def faulty(key: str, proof: bytes) -> Deferred[Principal | None]:
            return fail(ZeroDivisionError())

        self.backend.authenticate = faulty  # type: ignore[method-assign]
        failure = self.failureResultOf(self.ask(link, pump, commands.Authenticate, key="k", proof=b""), commands.NotNow)
        assert "fault" in str(failure.value)
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        assert port in self.factory.connections

    def test_arguments_that_make_no_sense(self) -> None:
        """They are the peer's fault; nothing of it is logged, and the link goes on."""
        link, port, pump = self.make_link()
        assert link.transport is not None
        for box in ({b"server": b"x"}, {b"server": b"\xff", b"stamp": b"1", b"farm": b""}):
            answer: Deferred[Any] = Deferred()
            link._outstandingRequests[b"1"] = answer
            link.transport.write(amp.AmpBox({b"_ask": b"1", b"_command": b"Probe", **box}).serialize())
            refusal: list[Any] = []
            answer.addErrback(refusal.append)
            pump.flush()
            assert refusal[0].value.errorCode == b"BAD_REQUEST"
        assert port in self.factory.connections
        assert self.flushLoggedErrors() == []

    def test_deeply_nested_reports(self) -> None:
        """A report that no parser wants to follow is refused like other nonsense."""
        link, _, pump = self.make_link(server_id(7))
        self.failureResultOf(self.ask(link, pump, commands.Report, report="[" * 60_000), commands.BadRequest)
        assert self.flushLoggedErrors() == []

    def test_strangers_do_not_keep_servers_out(self) -> None:
        """However many strangers hold a link, a server of the farm gets one."""
        for _ in range(LIMITS.peer_strangers + 10):
            self.make_link()
        link, port, pump = self.make_link(server_id(7))
        self.successResultOf(self.ask(link, pump, commands.GetServer, server="x"))
        assert port in self.factory.connections

    def test_a_stranger_may_not_stay(self) -> None:
        """A link that proves nothing ends after a while; one with a certificate stays."""
        link, port, pump = self.make_link(server_id(7))
        self.successResultOf(self.ask(link, pump, commands.GetServer, server="x"))
        _, _, other = self.make_link()
        self.clock.advance(LIMITS.peer_stranger_time)
        pump.flush()
        other.flush()
        assert list(self.factory.connections) == [port]

    def test_many_strangers(self) -> None:
        """Past the limit the oldest strangers make room, and known servers are not disturbed."""
        link, port, pump = self.make_link(server_id(7))
        self.successResultOf(self.ask(link, pump, commands.GetServer, server="x"))
        self.factory.limits = Limits(peer_strangers=6, peer_strangers_address=4)
        _, patient_port, _ = self.make_link(host="10.0.0.1")
        floods = [self.make_link(host=f"10.0.0.{2 + number % 2}")[2] for number in range(40)]
        for flood in floods:
            flood.flush()
        assert len(self.factory.strangers) == 6
        assert patient_port in self.factory.connections, "who came alone is not put out by those who are many"
        assert set(self.limited) == {"strangers"}
        self.factory.limits = Limits(peer_strangers=60, peer_strangers_address=4)
        for number in range(1, 40):
            self.make_link(host=f"2001:db8::{number:x}")
        assert max(map(len, self.factory._by_address.values())) <= 4
        assert "strangers_address" in self.limited
        self.backend.peer = server_id(7)
        self.successResultOf(self.ask(link, pump, commands.GetServer, server="x"))
        self.factory.close_all()
        pump.flush()
        assert port not in self.factory.connections

    def test_known_by_its_handshake(self) -> None:
        """A server of the farm is no stranger from its handshake on, unless it was forgotten."""
        _, port, pump = self.make_link()
        self.backend.peer = server_id(7)
        self.backend.forgotten = server_id(7)
        port.handshakeCompleted()
        assert port in self.factory.strangers
        self.backend.forgotten = ""
        port.handshakeCompleted()
        assert port not in self.factory.strangers and port.peer is None
        assert "127.0.0.1" in self.factory._met
        self.clock.advance(LIMITS.peer_stranger_time)
        pump.flush()
        assert port in self.factory.connections

    def test_a_box_of_a_stranger(self) -> None:
        """Strangers may send boxes as large as a join needs; servers what AMP allows."""
        values = {f"k{number}".encode(): b"x" * 30_000 for number in range(4)}
        data = amp.AmpBox({b"_ask": b"1", b"_command": b"Probe", **values}).serialize()[:-2]
        for peer, stays in ((None, False), (server_id(7), True)):
            _, port, pump = self.make_link(peer)
            for start in range(0, len(data), 10_000):
                if port in self.factory.connections:
                    port.dataReceived(data[start : start + 10_000])
                    pump.flush()
            assert (port in self.factory.connections) == stays
        assert self.flushLoggedErrors() == []
        assert self.limited == ["stranger_bytes"]

    def test_a_stranger_that_goes_on_asking(self) -> None:
        """After more questions than a joiner has the link ends, at once, however many more have come with them."""
        told = {b"server": server_id(2).encode(), b"stamp": b"1", b"farm": b""}
        probe = amp.AmpBox({b"_ask": b"1", b"_command": b"Probe", **told}).serialize()
        message = message_box(b"x", None)
        _, port, pump = self.make_link()
        port.dataReceived(probe * 1000 + message)
        assert len(self.backend.probers) == LIMITS.peer_stranger_questions
        pump.flush()
        assert port not in self.factory.connections
        assert self.limited == ["stranger_questions"]
        self.backend.probers.clear()
        _, port, _ = self.make_link(server_id(7))
        port.dataReceived(probe * 1000 + message)
        assert len(self.backend.probers) == 1000
        assert self.backend.payloads == [b"x"]
        assert self.limited == ["stranger_questions"]

    def test_all_places_taken(self) -> None:
        """A server gets in while there is any stranger to make room."""
        self.make_link(server_id(7))
        self.factory.limits = Limits(peer_connections=4, peer_strangers=3)
        for _ in range(10):
            self.make_link()
        for number in range(3):
            _, port, _ = self.make_link(server_id(number + 1))
            assert port in self.factory.connections
        assert len(self.factory.connections) <= 4

    def make_lined(self, line: str | None, peer: str | None = None) -> tuple[PeerLink, PeerPort, IOPump]:
        """A link on whose other side a server says that line."""
        link, port, pump = self.make_link(peer)
        there = FakeLines()
        there.said = line
        link._lines = there
        return link, port, pump

    def test_another_line(self) -> None:
        """What a server of another line asks is not done, and it is told that it may ask again; the link goes on."""
        link, port, pump = self.make_lined("2f", server_id(7))
        for command, arguments in self.QUESTIONS:
            failure = self.failureResultOf(self.ask(link, pump, command, **arguments), commands.NotNow)
            assert "another line" in str(failure.value)
        link.callRemote(commands.ConsensusOneWay, payload=b"x")
        pump.flush()
        assert self.backend.payloads == []
        assert set(self.lines.heard) == {(server_id(7), "2f")}
        assert port in self.factory.connections and self.flushLoggedErrors() == []

    def test_the_same_line_or_none(self) -> None:
        """A server of this line is answered, and so is one of a version that says nothing of lines."""
        for line in ("1e", None):
            link, _, pump = self.make_lined(line, server_id(7))
            for command, arguments in self.QUESTIONS:
                self.successResultOf(self.ask(link, pump, command, **arguments))
        assert len(self.backend.payloads) == 2

    def test_a_probe_of_another_line(self) -> None:
        """It is how a server learns of the other line, so it is answered; the index that it asks about is passed on."""
        link, _, pump = self.make_lined("2f", server_id(7))
        told = {"server": server_id(7), "stamp": 1, "farm": "", "index": 17}
        self.successResultOf(self.ask(link, pump, commands.Probe, **told))
        assert self.backend.probers[-1].index == 17
        assert self.lines.heard == [(server_id(7), "2f")]

    def test_a_stranger_with_a_line(self) -> None:
        """Whoever shows no certificate has no line that counts."""
        link, _, pump = self.make_lined("2f")
        self.successResultOf(self.ask(link, pump, commands.Probe, server=server_id(2), stamp=1, farm=""))
        self.failureResultOf(self.ask(link, pump, commands.GetServer, server="x"), commands.BadRequest)
        assert self.lines.heard == []

    def test_the_line_in_answers(self) -> None:
        """Answers and refusals say this server's."""
        link, _, pump = self.make_lined("2f", server_id(7))
        link._peer_of = lambda certificate: server_id(1)
        self.failureResultOf(self.ask(link, pump, commands.GetServer, server="x"), commands.NotNow)
        assert isinstance(link._lines, FakeLines) and link._lines.heard == [(server_id(1), "1e")]
