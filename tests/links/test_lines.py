from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import errors
from chunkfarm.links import lines
from chunkfarm.links.lines import LineClient, LinkLost, NotUnderstood, Reply
from chunkfarm.model import Address, digest_of
from chunkfarm.state import Wait
from chunkfarm.table.interface import Batch, Compacted, Delete, Event, IWatch, Put, TableClosed, Unavailable
from tests.links.line_pair import LinePair, PretendedTLS
from tests.ports.fakes import NOW, SERVER_ID

DATA = bytes(range(256)) * 4000


class RequestTests(SynchronousTestCase):
    def ask(self, pair: LinePair, line: str, *payload: bytes) -> Reply:
        """One request and its answer."""
        asked = pair.client.request(line, payload)
        pair.pump.flush()
        return self.successResultOf(asked)

    def refused(self, pair: LinePair, line: str, *payload: bytes) -> errors.FarmError:
        """One request and the error that it is answered with."""
        asked = pair.client.request(line, payload)
        pair.pump.flush()
        return self.failureResultOf(asked, errors.FarmError).value  # type: ignore[no-any-return]

    def test_hello(self) -> None:
        """HELLO's fields can be read by name."""
        pair = LinePair()
        hello = pair.client.say_hello()
        pair.pump.flush()
        reply = self.successResultOf(hello)
        assert reply.words == ["chunkfarm/1"]
        assert reply.fields["server"] == SERVER_ID
        assert pair.client.hello is reply

    def test_waiting(self) -> None:
        """A waiting server's HELLO goes on with whom it waits for; the next answer is still found."""
        pair = LinePair()
        pair.backend.state.change("waiting", waits=(Wait(Address("b", 1), "refused", NOW, 2),), cures=("start b",))
        hello, ping = pair.client.say_hello(), pair.client.request("PING")
        pair.pump.flush()
        assert self.successResultOf(hello).rows == (
            'PEER b:1 error="refused" since=2026-11-22T10:00:00.123Z tries=2',
            "CURE start b",
        )
        assert self.successResultOf(ping).word == "OK"

    def test_block(self) -> None:
        """A block's rows can be read by field name."""
        reply = self.ask(LinePair().auth(), "SERVERS")
        assert reply.word == "TABLE"
        assert reply.fields == {"revision": "7"}
        assert [row["name"] for row in reply.parsed()] == ["alpha", "beta"]
        assert self.ask(LinePair().auth(), "LIST").rows == ()

    def test_errors(self) -> None:
        """An ERR becomes the error that it stands for."""
        pair = LinePair().auth("reader")
        assert type(self.refused(pair, "STAT a/b")) is errors.NotFound
        assert type(self.refused(pair, "FLY")) is errors.UnknownCommand
        assert type(self.refused(pair, "SET a b=c")) is errors.Denied
        error = self.refused(pair, "STAT a/50%25%22")
        assert str(error) == "there is no file 'a/50%\"'"

    def test_what_is_no_text(self) -> None:
        """A line that cannot be written as UTF-8 is refused, and the link goes on."""
        pair = LinePair().auth()
        assert isinstance(self.refused(pair, "LIST a\udcff"), errors.InvalidRequest)
        assert self.ask(pair, "PING").word == "OK"

    def test_payload_and_data(self) -> None:
        """Bytes go out in pieces and come back whole."""
        pair = LinePair().auth("writer")
        name = digest_of(DATA).hex()
        half = len(DATA) // 2
        reply = self.ask(pair, f"PUT {name} {len(DATA)}", DATA[:half], b"", DATA[half:])
        assert reply.words[0] == name
        reply = self.ask(pair, f"GET {name}")
        assert (reply.word, reply.length, reply.data) == ("DATA", len(DATA), DATA)

    def test_pipelined(self) -> None:
        """Requests need not wait for each other; answers find theirs."""
        pair = LinePair().auth("writer")
        pair.backend.catalog.add("a/b", b"0123456789")
        asked = [
            pair.client.request("FETCH a/b 2 3"),
            pair.client.request(f"PUT {digest_of(b'x').hex()} 1", (b"x",)),
            pair.client.request("FETCH a/b 10"),
            pair.client.request("LIST"),
        ]
        pair.pump.flush()
        replies = [self.successResultOf(deferred) for deferred in asked]
        assert [reply.word for reply in replies] == ["DATA", "OK", "DATA", "FILES"]
        assert [reply.data for reply in replies] == [b"234", b"", b"", b""]

    def test_sink_back_pressure(self) -> None:
        """While a sink is not done with a piece, no more bytes are read."""
        client, transport = LineClient(), StringTransport()
        client.makeConnection(transport)
        taken: list[bytes] = []
        waits: list[Deferred[None]] = []

        def sink(piece: bytes | memoryview) -> Deferred[None]:
            taken.append(bytes(piece))
            waits.append(Deferred())
            return waits[-1]

        asked, ping = client.request("FETCH a/b", sink=sink), client.request("PING")
        client.dataReceived(b"DATA 6\r\nabc")
        assert transport.producerState == "paused"
        client.dataReceived(b"defOK\r\n")
        assert taken == [b"abc"]
        waits[0].callback(None)
        assert taken == [b"abc", b"def"]
        self.assertNoResult(asked)
        waits[1].callback(None)
        assert transport.producerState == "producing"
        assert self.successResultOf(asked).length == 6
        assert self.successResultOf(ping).word == "OK"

    def test_sink_fails(self) -> None:
        """A sink that cannot take its bytes fails the request and ends the link."""
        pair = LinePair().auth()
        pair.backend.catalog.add("a/b", b"0123456789")

        def sink(piece: bytes | memoryview) -> None:
            raise OSError("disk full")

        asked, ping = pair.client.request("FETCH a/b", sink=sink), pair.client.request("PING")
        pair.pump.flush()
        self.failureResultOf(asked, OSError)
        self.failureResultOf(ping, LinkLost)

    def test_write_back_pressure(self) -> None:
        """A payload waits until the network takes it."""
        client, transport = LineClient(), StringTransport()
        client.makeConnection(transport)
        client.pauseProducing()
        client.request("PUT x 3", (b"abc",))
        assert transport.value() == b""
        client.resumeProducing()
        assert transport.value() == b"PUT x 3\r\nabc"

    def test_cancel(self) -> None:
        """A cancelled request's answer is dropped, and the next one's is found."""
        pair = LinePair().auth()
        pair.backend.catalog.add("a/b", b"0123456789")
        asked, ping = pair.client.request("FETCH a/b"), pair.client.request("PING")
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        pair.pump.flush()
        assert self.successResultOf(ping).word == "OK"

    def test_lost(self) -> None:
        """When the link is lost, what was asked fails, and so does what is asked after."""
        pair = LinePair().auth()
        pair.backend.catalog.waits = Deferred()
        asked = pair.client.request("LIST")
        gone = pair.client.when_lost()
        pair.pump.flush()
        pair.server_transport.loseConnection()
        pair.pump.flush()
        self.failureResultOf(asked, LinkLost)
        self.failureResultOf(pair.client.request("LIST"), LinkLost)
        self.successResultOf(gone)
        self.successResultOf(pair.client.when_lost())

    def test_last_words(self) -> None:
        """The server's reason for ending a link is in the error."""
        pair = LinePair()
        pair.clock.pump([10] * 8)
        pair.pump.flush()
        error = self.failureResultOf(pair.client.request("PING"), LinkLost).value
        assert "nothing moved on this link" in str(error)

    def test_quit(self) -> None:
        """A link can be ended politely."""
        pair = LinePair()
        gone = pair.client.quit()
        pair.pump.flush()
        self.successResultOf(gone)

    def test_activity(self) -> None:
        """Whoever waits sees that bytes move."""
        pair = LinePair().auth()
        moves: list[int] = []
        pair.client.on_activity = lambda: moves.append(1)
        pair.client.request("PING")
        assert len(moves) == 1
        pair.pump.flush()
        assert len(moves) > 1

    def test_nonsense(self) -> None:
        """What no server of this protocol says ends the link with a sentence."""
        for said in (
            b"OK\r\nOK\r\n",
            b"FILES x\r\n",
            b"DATA -1\r\n",
            b"FILES 0\r\nOK\r\n",
            b"\xff\r\n",
            b"220 smtp\r\n",
            b"x" * 20000,
        ):
            client, transport = LineClient(), StringTransport()
            client.makeConnection(transport)
            asked = client.request("PING")
            client.dataReceived(said)
            assert transport.disconnected or transport.disconnecting, said
            client.connectionLost()
            if said[:2] != b"OK":
                self.failureResultOf(asked, NotUnderstood)

    def test_blocks_without_end(self) -> None:
        """A block may have many lines and may have long ones, but not more than any answer has."""
        self.patch(lines, "BLOCK_CHARACTERS_MAX", 50_000)
        client, transport = LineClient(), StringTransport()
        client.makeConnection(transport)
        asked = client.request("LIST")
        client.dataReceived(b"FILES 100 revision=1\r\n" + (b"x" * 10_000 + b"\r\n") * 6)
        assert transport.disconnected or transport.disconnecting
        client.connectionLost()
        self.failureResultOf(asked, NotUnderstood)

    def test_what_an_answer_lacks(self) -> None:
        """Whoever reads a field that is not there is told that the server is not understood, as with a bad number."""
        reply = lines.Reply("OK", "FILE size=5 chunks=x revision=9999999999999999999")
        assert reply.fields.number("size") == 5
        for name in ("chunks", "revision", "etag"):
            with self.assertRaises(NotUnderstood):
                reply.fields.number(name)
        with self.assertRaises(NotUnderstood):
            reply.fields.number("size", 6)
        with self.assertRaises(NotUnderstood):
            lines.Reply("FILES", "", ("FILE name=a",)).parsed()[0]["size"]


class StartTLSTests(SynchronousTestCase):
    def test_starttls(self) -> None:
        """From elsewhere, TLS and a look at the server come first, then AUTH is possible."""
        pair = LinePair("10.0.0.9")
        checked: list[Any] = []
        encrypted = pair.client.starttls(PretendedTLS(), checked.append)  # type: ignore[arg-type]
        pair.pump.flush()
        assert self.successResultOf(encrypted).fields["name"] == "alpha"
        assert checked == [pair.client_transport]
        authenticated = pair.client.auth("admin", "secret")
        pair.pump.flush()
        assert self.successResultOf(authenticated).fields == {"role": "admin"}

    def test_wrong_server(self) -> None:
        """A server that does not pass the check is told nothing more."""
        pair = LinePair("10.0.0.9")

        def check(transport: object) -> None:
            raise errors.FarmError("not of this farm")

        encrypted = pair.client.starttls(PretendedTLS(), check)  # type: ignore[arg-type]
        pair.pump.flush()
        self.failureResultOf(encrypted, errors.FarmError)
        self.failureResultOf(pair.client.auth("admin", "secret"), LinkLost)
        assert pair.backend.authentications == []

    def test_bytes_behind_ok(self) -> None:
        """Bytes that come along with the OK end the link."""
        client, transport = LineClient(), StringTransport()
        client.makeConnection(transport)
        encrypted = client.starttls(PretendedTLS(), lambda transport: None)  # type: ignore[arg-type]
        client.dataReceived(b"OK\r\nOK chunkfarm/1 farm=- state=serving\r\n")
        self.failureResultOf(encrypted, NotUnderstood)
        assert transport.disconnected or transport.disconnecting


class WatchTests(SynchronousTestCase):
    def watching(self, pair: LinePair, prefix: bytes = b"", revision: int | None = 0) -> IWatch:
        """A watch that has begun."""
        asked = pair.client.watch(prefix, revision)
        pair.pump.flush()
        return self.successResultOf(asked)

    def test_batches(self) -> None:
        """Changes come as they are in the table, whole transactions, in order."""
        pair = LinePair().auth()
        pair.backend.table.put(b"farm/a", b"\x00 1")
        watch = self.watching(pair)
        pair.backend.table.transact((), (Put(b"farm/b", b"2"), Delete(b"farm/a")))
        pair.pump.flush()
        assert self.successResultOf(watch.next()) == Batch(
            2,
            (
                Event(1, "PUT", b"farm/a", b"\x00 1"),
                Event(2, "PUT", b"farm/b", b"2"),
                Event(2, "DEL", b"farm/a", b""),
            ),
        )
        waiting = watch.next()
        self.assertNoResult(waiting)
        pair.backend.table.put(b"servers/x", b"3")
        pair.pump.flush()
        assert self.successResultOf(waiting) == Batch(3, (Event(3, "PUT", b"servers/x", b"3"),))

    def test_progress(self) -> None:
        """The revision moves on although nothing that is watched changes."""
        pair = LinePair().auth()
        watch = self.watching(pair)
        waiting = watch.next()
        pair.backend.table.put(b"secret/a", b"1")
        pair.clock.advance(1)
        pair.pump.flush()
        assert self.successResultOf(waiting) == Batch(1, ())

    def test_a_server_that_breaks_the_protocol(self) -> None:
        """Transactions and values without end, and numbers beyond counting, end the watch; nobody waits for more."""
        for said in (
            b"EVENT 6 PUT ROW key=farm/a more=1 value=x\r\n" * 100,
            (b"EVENT 6 PART value=" + b"x" * 4096 + b"\r\n") * 10,
            b"EVENT 6 PART value=\r\n",
            b"EVENT " + b"9" * 5000 + b" NONE\r\n",
            b"EVENT 1e5 NONE\r\n",
            b"ERR conflict changes before revision " + b"9" * 5000 + b" are no longer kept\r\n",
        ):
            client, transport = LineClient(), StringTransport()
            client.makeConnection(transport)
            asked = client.watch(b"farm/", 5)
            client.dataReceived(b"OK revision=5\r\n")
            waiting = self.successResultOf(asked).next()
            client.dataReceived(said)
            assert transport.disconnected or transport.disconnecting or said.startswith(b"ERR"), said
            client.connectionLost()
            self.failureResultOf(waiting, Unavailable)

    def test_compacted(self) -> None:
        """A revision that is no longer kept is told as in the table."""
        pair = LinePair().auth()
        for _ in range(3):
            pair.backend.table.put(b"farm/a", b"1")
        pair.backend.table.compact()
        asked = pair.client.watch(b"farm/", 1)
        pair.pump.flush()
        assert self.failureResultOf(asked, Compacted).value.first_revision == 4
        # The link can be used for another watch.
        self.watching(pair, b"farm/", 3)

    def test_refused(self) -> None:
        """What may not be watched is an error."""
        pair = LinePair().auth()
        asked = pair.client.watch(b"keys/", 1)
        pair.pump.flush()
        self.failureResultOf(asked, errors.Denied)

    def test_close(self) -> None:
        """A closed watch fails who waits, and leaves the link open, also for another watch."""
        pair = LinePair().auth()
        watch = self.watching(pair)
        waiting = watch.next()
        watch.close()
        self.failureResultOf(waiting, TableClosed)
        self.failureResultOf(watch.next(), TableClosed)
        pair.pump.flush()
        other = self.watching(pair, b"farm/")
        pair.backend.table.put(b"farm/a", b"1")
        pair.pump.flush()
        assert self.successResultOf(other.next()).revision == 1

    def test_lost(self) -> None:
        """When the link is lost, what has come is still given out, and then an error."""
        pair = LinePair().auth()
        watch = self.watching(pair)
        pair.backend.table.put(b"farm/a", b"1")
        pair.pump.flush()
        pair.server_transport.loseConnection()
        pair.pump.flush()
        assert self.successResultOf(watch.next()).revision == 1
        self.failureResultOf(watch.next(), Unavailable)

    def test_server_leaves(self) -> None:
        """A watch on a server that stops fails, so that another can be asked."""
        pair = LinePair().auth()
        waiting = self.watching(pair).next()
        pair.backend.table.close()
        pair.pump.flush()
        assert "leaving" in str(self.failureResultOf(waiting, Unavailable).value)

    def test_other_requests(self) -> None:
        """A watch and requests share a link."""
        pair = LinePair().auth()
        watch = self.watching(pair)
        asked = pair.client.request("LIST")
        pair.backend.table.put(b"farm/a", b"1")
        pair.pump.flush()
        assert self.successResultOf(asked).word == "FILES"
        assert self.successResultOf(watch.next()).revision == 1
