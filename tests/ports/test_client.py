"""The client port: getting in, order, framing and limits."""

from __future__ import annotations

import itertools
import re
import socket
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.limits import Limits
from chunkfarm.model import Address, digest_of
from chunkfarm.ports.client import commands, limits
from chunkfarm.ports.places import REFUSALS_MAX
from chunkfarm.state import Wait
from chunkfarm.wire.lines import LINE_BYTES_MAX
from tests.ports.client_link import ClientLink, LinkTransport
from tests.ports.fakes import NOW, OTHER_ID, SERVER_ID

ELSEWHERE = "10.0.0.9"
HELLO = f"OK chunkfarm/1 farm={'fa' * 16} name=alpha state=serving server={SERVER_ID} revision=7 chunksize=8388608\r\n"


class HelloTests(SynchronousTestCase):
    def test_hello(self) -> None:
        """HELLO says who is there; nothing is said before."""
        link = ClientLink()
        assert link.heard() == ""
        assert link.say("HELLO") == HELLO
        assert link.say("hello") == HELLO

    def test_no_farm_yet(self) -> None:
        """A server without a farm says so with a dash."""
        link = ClientLink()
        link.backend.state.farm_id = ""
        link.backend.state.phase = "starting"
        assert " farm=- " in link.say("HELLO")

    def test_waiting(self) -> None:
        """A waiting server says for whom it waits, and what helps."""
        link = ClientLink()
        link.backend.state.change(
            "waiting",
            waits=(Wait(Address("10.0.0.2", 4101), "refused", NOW, 3),),
            cures=("start beta, or take it from [servers]",),
        )
        lines = link.say("HELLO").split("\r\n")
        assert " state=waiting " in lines[0]
        assert lines[1:] == [
            "WAIT 2",
            'PEER 10.0.0.2:4101 error="refused" since=2026-11-22T10:00:00.123Z tries=3',
            "CURE start beta, or take it from [servers]",
            "END",
            "",
        ]

    def test_help(self) -> None:
        """HELP lists every command, and says what one of them does."""
        link = ClientLink()
        listed = link.say("HELP").split("\r\n")
        assert listed[0] == f"HELP {len(commands.COMMANDS)}"
        assert listed[-2:] == ["END", ""]
        assert "COMMIT <name> <size> <chunk size> <length>" in listed
        assert (
            link.say("HELP put") == "HELP 2\r\nPUT <digest> <length>\r\nStores the chunk whose bytes follow.\r\nEND\r\n"
        )
        assert link.say("HELP fly").startswith("ERR unknown ")

    def test_quit(self) -> None:
        """QUIT is answered, and ends the link; nothing behind it is done."""
        link = ClientLink()
        assert link.say("HELLO", "QUIT", "HELLO") == HELLO + "OK\r\n"
        assert link.closed


class GettingInTests(SynchronousTestCase):
    def test_in_the_clear_from_elsewhere(self) -> None:
        """From another machine an unencrypted link gets HELLO, HELP, QUIT and STARTTLS, and nothing else."""
        for name, command in commands.COMMANDS.items():
            link = ClientLink(ELSEWHERE)
            answer = link.say(" ".join([name, *["1"] * command.least]))
            if name in ("HELLO", "HELP", "QUIT", "STARTTLS"):
                assert answer.startswith(("OK", "HELP"))
            elif command.payload_at is not None:
                assert link.send(b"x").startswith("ERR denied ")
            else:
                assert answer.startswith("ERR denied ")
            assert link.backend.authentications == []

    def test_in_the_clear_from_here(self) -> None:
        """From the machine itself AUTH is enough, and is needed."""
        for host in ("127.0.0.1", "127.5.0.1", "::1", "::ffff:127.0.0.1"):
            link = ClientLink(host)
            assert link.say("SERVERS").startswith("ERR auth ")
            assert link.auth("reader").say("SERVERS").startswith("TABLE 2 revision=7\r\n")

    def test_addresses_that_are_not_here(self) -> None:
        """Nothing but a loopback address counts as this machine."""
        for host in ("10.0.0.1", "0.0.0.0", "::", "localhost", "", "::ffff:10.0.0.1"):
            assert ClientLink(host).say("PING").startswith("ERR denied ")

    def test_starttls(self) -> None:
        """STARTTLS is answered in the clear, then the link is encrypted, and AUTH is possible."""
        link = ClientLink(ELSEWHERE)
        assert link.say("STARTTLS") == "OK\r\n"
        assert link.transport.tls == ["a context"]
        assert link.say("STARTTLS").startswith("ERR syntax ")
        assert link.auth("reader").say("LIST") == "FILES 0 revision=7\r\nEND\r\n"

    def test_bytes_behind_starttls(self) -> None:
        """Bytes that come along with STARTTLS end the link: they are from whoever sits in between."""
        link = ClientLink(ELSEWHERE)
        assert link.say("STARTTLS", "AUTH admin secret") == ""
        assert link.closed
        assert link.transport.tls == []
        assert link.backend.authentications == []

    def test_bytes_while_starttls_waits(self) -> None:
        """So do bytes that come before the OK."""
        link = ClientLink().auth("reader")
        link.backend.catalog.waits = Deferred()
        assert link.say("LIST", "STARTTLS") == ""
        assert not link.closed
        link.say("LIST")
        assert link.closed
        assert link.transport.tls == []

    def test_starttls_waits_its_turn(self) -> None:
        """What was asked before STARTTLS is answered before it, in the clear."""
        link = ClientLink().auth("reader")
        waits: Deferred[None] = Deferred()
        link.backend.catalog.waits = waits
        link.say("LIST", "STARTTLS")
        waits.callback(None)
        assert link.heard() == "FILES 0 revision=7\r\nEND\r\nOK\r\n"
        assert link.transport.tls == ["a context"]

    def test_starttls_forgets(self) -> None:
        """What was proved in the clear counts no more once the link is encrypted."""
        link = ClientLink().auth("admin")
        link.say("STARTTLS")
        assert link.say("SERVERS").startswith("ERR auth ")

    def test_starttls_while_answers_wait(self) -> None:
        """Where the other side had yet to take what was said before STARTTLS, the link goes on behind the handshake."""
        link = ClientLink().auth("reader")
        waits: Deferred[None] = Deferred()
        link.backend.catalog.waits = waits
        link.say("LIST", "STARTTLS")
        written = link.transport.write

        def write(data: bytes) -> None:
            written(data)
            if link.transport.producer is not None and not link.transport.tls:
                link.transport.producer.pauseProducing()

        self.patch(link.transport, "write", write)
        waits.callback(None)
        assert link.heard().endswith("OK\r\n") and link.transport.tls == ["a context"]
        assert link.say("PING") == "OK\r\n"

    def test_starttls_forgets_the_key(self) -> None:
        """A server that showed a key before its certificate does not lose its link when keys change."""
        link = ClientLink().auth("admin")
        link.backend.peers["the certificate of beta"] = OTHER_ID
        link.transport.certificate = "the certificate of beta"
        link.say("STARTTLS")
        link.backend.keys_revision += 1
        assert link.say("SERVERS").startswith("TABLE ")
        link.backend.keys_revision += 1
        assert link.say("SERVERS").startswith("TABLE ")

    def test_no_certificate_yet(self) -> None:
        """A server without a certificate says that it cannot encrypt, and the link goes on."""
        link = ClientLink(ELSEWHERE, tls=None)
        assert link.say("STARTTLS").startswith("ERR waiting ")
        assert link.say("HELLO") == HELLO

    def test_tls_at_once(self) -> None:
        """A client that begins with TLS is told how this port begins."""
        link = ClientLink(ELSEWHERE)
        assert link.send(b"\x16\x03\x01\x02\x00\x01").startswith("ERR syntax this port begins in plain text")
        assert link.closed

    def test_http(self) -> None:
        """A web page that posts to this port gets nothing done and nothing said."""
        for first in (
            "POST / HTTP/1.1",
            "GET / HTTP/1.1",
            "PUT /x HTTP/1.1",
            "OPTIONS * HTTP/1.0",
            "Host: 127.0.0.1:4100",
            "content-length:12",
        ):
            link = ClientLink()
            assert link.say(first, "AUTH admin secret", "REMOVE a/b") == ""
            assert link.closed
            assert link.backend.authentications == []

    def test_wrong_key(self) -> None:
        """A wrong key is answered after a pause, always alike, and the third one ends the link."""
        link = ClientLink()
        link.backend.pause = 1.0
        answers = set()
        for attempt in ("AUTH admin wrong", "AUTH nobody secret", "AUTH admin wrong"):
            assert not link.closed
            assert link.say(attempt) == ""
            link.clock.advance(1.0)
            answers.add(link.heard())
        assert answers == {"ERR auth the key is unknown or the secret is wrong\r\n"}
        assert link.closed
        assert link.backend.failed == ["127.0.0.1"] * 3

    def test_wrong_key_takes_the_old_one(self) -> None:
        """After a failed AUTH the link has no key."""
        link = ClientLink().auth("admin")
        link.say("AUTH admin wrong")
        link.clock.advance(0)
        link.heard()
        assert link.say("LIST").startswith("ERR auth ")

    def test_auth_comes_first(self) -> None:
        """A command that came along with AUTH is judged after it."""
        link = ClientLink()
        assert link.say("AUTH reader secret", "LIST") == "OK role=read\r\nFILES 0 revision=7\r\nEND\r\n"

    def test_roles(self) -> None:
        """Readers read, writers write, and only admins change servers."""
        digest = digest_of(b"x").hex()
        for role, allowed in (("reader", 1), ("writer", 2), ("admin", 3)):
            link = ClientLink().auth(role)
            link.backend.catalog.add("a/b", b"x")
            answers = [
                link.say("STAT a/b"),
                link.send(f"PUT {digest} 1\nx".encode()),
                link.say("SET alpha weight=2"),
            ]
            assert [answer.startswith("OK") for answer in answers] == [rank < allowed for rank in range(3)]
            assert all(answer.startswith(("OK", "ERR denied")) for answer in answers)

    def test_certificate(self) -> None:
        """A farm certificate is enough for SERVERS, WATCH of the farm's rows, and SET of the server's own row."""
        link = ClientLink(ELSEWHERE)
        link.backend.peers["certificate"] = SERVER_ID
        link.transport.certificate = "certificate"
        assert link.say("SERVERS").startswith("ERR denied")
        link.say("STARTTLS")
        assert link.say("SERVERS").startswith("TABLE ")
        assert link.say("WATCH servers/") == "OK revision=7\r\n"
        assert link.say("UNWATCH") == "OK\r\n"
        assert link.say("WATCH keys/").startswith("ERR denied ")
        assert link.say("LIST").startswith("ERR denied ")
        assert link.say("SET alpha zone=z").startswith("OK SERVER ")
        assert link.say("SET beta zone=z").startswith("ERR denied ")
        assert link.say("SET farm replicas=1").startswith("ERR denied ")

    def test_a_server_watches_where_the_table_is(self) -> None:
        """Clients may watch at any server; other servers only where the rows are, lest two follow each other."""
        link = ClientLink(ELSEWHERE)
        link.backend.peers["certificate"] = SERVER_ID
        link.transport.certificate = "certificate"
        link.backend.holds_table = False
        link.say("STARTTLS")
        assert link.say("WATCH servers/") == "ERR busy this server does not hold the table; watch one that does\r\n"
        link = ClientLink().auth("reader")
        link.backend.holds_table = False
        assert link.say("WATCH servers/") == "OK revision=7\r\n"

    def test_before_serving(self) -> None:
        """Before a server serves it answers HELLO, HELP, QUIT, PING and STARTTLS, and touches nothing else."""
        for phase in ("starting", "founding", "waiting", "leaving"):
            link = ClientLink()
            link.backend.state.phase = phase
            link.backend.holds_table = False
            del link.backend.table, link.backend.catalog, link.backend.transfer
            assert link.say("AUTH admin secret").startswith("ERR waiting ")
            assert link.say("SERVERS").startswith("ERR waiting ")
            assert link.say("PING") == "OK\r\n"
            assert link.say("STARTTLS") == "OK\r\n"
            assert link.say("SERVERS").startswith("ERR waiting ")
            assert link.backend.authentications == []


class OrderTests(SynchronousTestCase):
    def test_unknown(self) -> None:
        """An unknown command is an error, and the link goes on."""
        link = ClientLink()
        assert link.say("FLY", "HELLO") == "ERR unknown there is no command 'FLY'; HELP lists them\r\n" + HELLO

    def test_bad_lines(self) -> None:
        """Nonsense is an error with a sentence, and the link goes on."""
        link = ClientLink().auth("admin")
        for line in (
            b"\xff\xfe\n",
            b"STAT a\x00b\n",
            b"STAT\n",
            b"STAT a b\n",
            b"STAT a%zz\n",
            b"AUTH x\n",
            b"SET alpha zone\n",
        ):
            assert re.fullmatch(r"ERR syntax [^\r\n]+\r\n", link.send(line)), line
        assert link.say("PING") == "OK\r\n"

    def test_empty_lines(self) -> None:
        """An empty line is nothing."""
        assert ClientLink().say("", "  ", "PING") == "OK\r\n"

    def test_line_too_long(self) -> None:
        """A line beyond the limit ends the link with a reason, after the answers that are due."""
        link = ClientLink()
        assert (
            link.send(b"PING\n" + b"x" * (LINE_BYTES_MAX + 2))
            == f"OK\r\nERR limit a line has at most {LINE_BYTES_MAX} bytes\r\n"
        )
        assert link.closed
        assert 'limited_total{limit="line",port="client"} 1.0' in link.backend.metrics.text(()).decode()

    def test_large_read(self) -> None:
        """However many commands come in one read, each is answered."""
        assert ClientLink().say(*["PING"] * 5000) == "OK\r\n" * 5000

    def test_others_have_their_turn(self) -> None:
        """Whoever sends thousands of lines at once, empty ones too, is served some in each turn of the reactor."""
        for line in (b"PING\n", b"\n"):
            link = ClientLink()
            link.protocol.dataReceived(line * 5000)
            assert len(link.protocol._buffer) > 4900 * len(line)
            assert link.transport.producerState == "paused", "no more is read meanwhile"
            with patch.object(link.clock, "callLater", wraps=link.clock.callLater) as later:
                link.clock.advance(0)
            assert later.call_count >= 5000 // limits.LINES_IN_TURN - 1
            assert link.heard() == ("OK\r\n" * 5000 if line.strip() else "")
            assert link.transport.producerState == "producing"
            link.protocol.dataReceived(line * 200)
            link.lose()
            assert link.clock.getDelayedCalls() == []

    def test_answers_in_order(self) -> None:
        """A slow answer keeps those behind it waiting; errors wait too."""
        link = ClientLink().auth("reader")
        waits: Deferred[None] = Deferred()
        link.backend.catalog.waits = waits
        assert link.say("LIST", "FLY", "PING") == ""
        waits.callback(None)
        answers = link.heard().split("\r\n")
        assert [answer.split(" ")[0] for answer in answers] == ["FILES", "END", "ERR", "OK", ""]

    def test_too_much_pending(self) -> None:
        """Reading pauses when much is pending, and goes on when it is answered."""
        link = ClientLink().auth("reader")
        waits: Deferred[None] = Deferred()
        link.backend.catalog.waits = waits
        link.say("LIST", *["PING"] * (Limits().client_pending - 2))
        assert link.transport.producerState == "producing"
        link.say("PING", "PING", "PING")
        assert link.transport.producerState == "paused"
        link.backend.catalog.waits = None
        waits.callback(None)
        assert link.heard().count("OK") == Limits().client_pending + 1
        assert link.transport.producerState == "producing"

    def test_answers_not_taken(self) -> None:
        """A client that does not take its answers is not read from, so they cannot pile up."""
        link = ClientLink()
        link.protocol.pauseProducing()
        assert link.transport.producerState == "paused"
        assert link.say("PING") == ""
        link.protocol.resumeProducing()
        assert link.heard() == "OK\r\n"
        assert link.transport.producerState == "producing"

    def test_large_answers_not_taken(self) -> None:
        """Of many large answers that are asked for at once, a client that takes none makes one, and no more."""
        link = ClientLink().auth("reader")
        asked: list[None] = []
        real, written = link.backend.catalog.list, link.transport.write

        def counted(*arguments: Any) -> Any:
            asked.append(None)
            return real(*arguments)

        def write(data: bytes) -> None:
            written(data)
            link.protocol.pauseProducing()

        link.backend.catalog.list = counted  # type: ignore[assignment, method-assign]
        link.transport.write = write  # type: ignore[method-assign]
        assert link.say(*["LIST"] * 20) == "FILES 0 revision=7\r\nEND\r\n"
        assert len(asked) == 1
        link.protocol.resumeProducing()
        assert len(asked) == 2
        link.transport.write = written  # type: ignore[method-assign]
        link.protocol.resumeProducing()
        assert len(asked) == 20
        assert link.heard().count("END") == 19

    def test_payloads_of_who_takes_nothing(self) -> None:
        """What brought bytes is done all the same: it would keep them in memory, and is answered in a word."""
        link = ClientLink().auth("writer")
        link.protocol.pauseProducing()
        link.protocol.resumeProducing()
        chunk = digest_of(b"abc").hex()
        written = link.transport.write

        def write(data: bytes) -> None:
            written(data)
            link.protocol.pauseProducing()

        link.transport.write = write  # type: ignore[method-assign]
        heard = link.send(f"HELLO\nPUT {chunk} 3\nabcHELLO\n".encode())
        assert heard.startswith("OK chunkfarm/1 ") and f"OK {chunk} " in heard and heard.count("OK") == 2
        assert link.factory._payload_bytes == 0

    def test_fault(self) -> None:
        """A fault of ours is logged and answered as one; the link goes on."""
        link = ClientLink().auth("reader")
        link.backend.catalog.error = RuntimeError("secret detail")
        assert link.say("LIST") == "ERR internal this server has a fault; its log says more\r\n"
        assert len(self.flushLoggedErrors(RuntimeError)) == 1
        assert link.say("PING") == "OK\r\n"

    def test_given_up_inside(self) -> None:
        """If something inside gives up, the link is told, and goes on."""
        link = ClientLink().auth("reader")
        waits: Deferred[Any] = Deferred()
        link.backend.catalog.list = lambda *arguments: waits  # type: ignore
        link.say("LIST", "PING")
        waits.errback(CancelledError())
        assert link.heard() == "ERR busy this was given up; try again\r\nOK\r\n"

    def test_lost_link(self) -> None:
        """When the link is lost in the middle, what it asked for is given up."""
        link = ClientLink().auth("reader")
        link.backend.catalog.waits = Deferred()
        link.say("LIST", "PING")
        link.lose()
        assert link.factory.connections == {}
        assert link.clock.getDelayedCalls() == []

    @settings(max_examples=60)
    @given(st.lists(st.integers(min_value=0), max_size=30))
    def test_cut_anywhere(self, places: list[int]) -> None:
        """Wherever the network cuts the commands, the answers are the same."""
        chunk = b"PING\r\nQUIT\n" * 20
        said = (
            b"AUTH writer secret\r\nHELLO\nPUT %s %d\r\n%bLIST\nFLY\nHAVE %s\nPUT %s 3\nabcGET %s\nPING\n"
            b"COMMIT home/x %d 4096 32\n%bFETCH home/x 1 5\nQUIT\n"
        ) % (
            digest_of(chunk).hex().encode(),
            len(chunk),
            chunk,
            digest_of(chunk).hex().encode(),
            b"00" * 32,
            digest_of(chunk).hex().encode(),
            len(chunk),
            digest_of(chunk),
        )
        expected = ClientLink().send(said)
        assert expected.count("OK") == 6
        link = ClientLink()
        edges = [0, *sorted(place % len(said) for place in places), len(said)]
        heard = "".join(link.send(said[start:end]) for start, end in itertools.pairwise(edges))
        assert heard == expected
        assert link.closed


class LimitTests(SynchronousTestCase):
    def test_stranger(self) -> None:
        """A link that proves nothing is closed after a minute of silence, with a reason."""
        link = ClientLink()
        link.clock.pump([10] * 6)
        assert not link.closed
        link.clock.pump([10] * 2)
        assert link.heard() == "ERR limit nothing moved on this link for 60 seconds\r\n"
        assert link.closed

    def test_known(self) -> None:
        """A link with a key may be silent for longer, but not for ever."""
        link = ClientLink().auth("reader")
        link.clock.pump([10] * 60)
        assert not link.closed
        link.clock.pump([10] * 2)
        assert link.closed

    def test_watchers_may_be_silent(self) -> None:
        """A link that watches may be silent."""
        link = ClientLink().auth("reader")
        link.say("WATCH")
        link.clock.pump([10] * 200)
        assert not link.closed

    def test_own_slowness(self) -> None:
        """A link that waits for our answer is not closed for being silent."""
        link = ClientLink().auth("reader")
        link.backend.catalog.waits = Deferred()
        link.say("LIST")
        link.clock.pump([10] * 200)
        assert not link.closed

    def test_answers_never_taken(self) -> None:
        """A client that takes no answers is cut off at last."""
        link = ClientLink().auth("reader")
        link.say("WATCH")
        link.protocol.pauseProducing()
        link.clock.pump([10] * 5)
        assert not link.closed
        link.clock.pump([10])
        assert link.closed
        assert "ERR limit answers must be taken with at least 1024 bytes a second" in link.heard()
        link.clock.advance(limits.CLOSE_TIMEOUT)
        assert link.transport.disconnected

    def test_answers_taken_slowly(self) -> None:
        """A slow line is slow, not too slow; what counts is what has arrived at the other end."""
        link = ClientLink().auth("reader")
        link.say("WATCH")
        link.protocol.pauseProducing()
        for _ in range(100):
            link.transport.delivered += 10 * Limits().client_answer_rate
            link.clock.advance(10)
        assert not link.closed
        link.clock.pump([10] * 12)
        assert link.closed

    def test_a_watcher_whose_machine_is_gone(self) -> None:
        """Where nothing is sent only the kernel can notice, so it is asked to look."""
        with socket.socket() as sock, patch.object(LinkTransport, "socket", sock, create=True):
            ClientLink()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1

    def test_slow_line(self) -> None:
        """A line must come whole within its time, however it drips; the time of the next one is its own."""
        link = ClientLink().auth("reader")
        for _ in range(5):
            link.send(b"PI")
            link.clock.pump([5] * 5)
            assert link.send(b"NG\n") == "OK\r\n"
        heard = ""
        for _ in range(9):
            heard += link.send(b"x")
            link.clock.advance(5)
        assert heard == "ERR limit a line must come whole within 30 seconds\r\n"
        assert link.closed

    def test_line_that_we_do_not_read(self) -> None:
        """A part of a line that waits behind what we have not answered is no fault of the client."""
        link = ClientLink(limits=Limits(client_pending=1)).auth("reader")
        waits: Deferred[None] = Deferred()
        link.backend.catalog.waits = waits
        link.send(b"LIST\nPI")
        link.clock.pump([10] * 50)
        link.backend.catalog.waits = None
        waits.callback(None)
        link.heard()
        assert link.send(b"NG\n") == "OK\r\n"

    def test_stranger_that_goes_on_asking(self) -> None:
        """Whoever proves nothing is sent away after some minutes, however busy it is."""
        link = ClientLink()
        for _ in range(30):
            assert not link.closed
            link.say("HELLO")
            link.clock.advance(10)
        link.heard()
        link.clock.pump([10] * 2)
        assert link.heard() == "ERR limit nobody has said who this is for 300 seconds\r\n"

    def test_slow_payload(self) -> None:
        """A payload that drips is cut off: it holds memory."""
        link = ClientLink().auth("writer")
        link.send(b"PUT %s 1000000\n" % (b"00" * 32))
        for _ in range(8):
            link.clock.advance(10)
            link.send(b"x" * 100)
        assert link.closed

    def test_too_many_links(self) -> None:
        """One address cannot take all links; it is told so, and others get in."""
        limits = Limits(client_connections_address=1, client_connections=4, client_reserved=1)
        link = ClientLink("10.0.0.1", limits=limits)
        other = link.beside("10.0.0.1")
        assert other.heard() == "ERR busy this server has too many connections\r\n"
        assert other.closed
        assert not link.beside("10.0.0.2").closed
        assert not link.beside("2001:db8::1").closed
        assert link.beside("10.0.0.3").closed, "the last place is kept for servers"
        text = link.backend.metrics.text(()).decode()
        assert 'chunkfarm_limited_total{limit="connections_address",port="client"} 1.0' in text
        assert 'chunkfarm_limited_total{limit="connections",port="client"} 1.0' in text
        link.lose()
        assert not link.beside("10.0.0.1").closed

    def test_one_network_of_ipv6(self) -> None:
        """Whoever has one address of IPv6 has very many, which count as one; an IPv4 address is the same as ever."""
        link = ClientLink("2001:db8::1", limits=Limits(client_connections_address=1))
        assert link.beside("2001:db8::2:3").closed
        assert not link.beside("2001:db8:0:1::2").closed
        assert not link.beside("::ffff:10.0.0.1").closed
        assert link.beside("10.0.0.1").closed

    def test_many_refusals(self) -> None:
        """Telling people that there is no room takes no room without end."""
        link = ClientLink("10.0.0.1", limits=Limits(client_connections_address=1))
        address = IPv4Address("TCP", "10.0.0.1", 1)
        for _ in range(REFUSALS_MAX):
            link.beside("10.0.0.1")
        assert link.factory.buildProtocol(address) is None
        link.factory.turned_away -= 1
        assert link.factory.buildProtocol(address) is not None

    def test_places_for_servers(self) -> None:
        """A server of the farm gets in from where one was met before, also when strangers have all other places."""
        link = ClientLink("10.0.0.1", limits=Limits(client_connections=3, client_reserved=2))
        assert link.beside("10.0.0.2").closed
        link.factory.met.note("10.0.0.2")
        server = link.beside("10.0.0.2")
        server.say("STARTTLS")
        server.backend.peers["certificate"] = SERVER_ID
        server.transport.certificate = "certificate"
        assert server.say("SERVERS").startswith("TABLE ")
        impostor = link.beside("10.0.0.2")
        impostor.say("STARTTLS")
        impostor.auth("reader")
        assert link.beside("10.0.0.2").closed, "these places have an end too"
        link.clock.advance(20)
        assert impostor.closed and "ERR busy" in impostor.heard()
        assert not server.closed

    def test_leaving(self) -> None:
        """A server that leaves answers what is pending, ends its links, and says when all are gone."""
        link = ClientLink().auth("reader")
        waits: Deferred[None] = Deferred()
        link.backend.catalog.waits = waits
        link.say("LIST")
        gone = link.factory.finish()
        assert link.say("PING") == ""
        waits.callback(None)
        assert link.heard() == "FILES 0 revision=7\r\nEND\r\nERR waiting this server is leaving; ask another\r\n"
        assert link.closed
        self.assertNoResult(gone)
        link.lose()
        self.successResultOf(gone)

    def test_leaving_when_silent(self) -> None:
        """A silent link ends at once."""
        link = ClientLink().auth("writer")
        link.factory.finish()
        assert link.closed

    def test_leaving_amid_a_payload(self) -> None:
        """A payload that is on its way in is taken and answered, and no command after it."""
        link = ClientLink().auth("writer")
        link.send(b"PUT %s 10\nabc" % (b"00" * 32))
        link.factory.finish()
        assert not link.closed
        told = link.send(b"defghij" + b"PING\n").splitlines()
        assert [line.split(" ")[:2] for line in told] == [["ERR", "mismatch"], ["ERR", "waiting"]]
        assert link.closed
