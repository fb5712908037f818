"""Connections of the file port: framing, pipelining, limits, time, faults and the end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.limits import Limits
from chunkfarm.ports.files import connection
from chunkfarm.ports.files.connection import QUEUED_MAX
from chunkfarm.ports.files.factory import ENDED_IN_TURN
from chunkfarm.ports.places import REFUSALS_MAX
from chunkfarm.wire.http1 import HEAD_BYTES_MAX
from tests.ports.fakes import OTHER_ID
from tests.ports.files_caller import CERTIFICATE, Caller, request
from tests.ports.test_files_objects import pausing

LIMITS = Limits()


class FramingTests(SynchronousTestCase):
    """Requests out of bytes."""

    def test_keep_alive(self) -> None:
        """A connection serves one request after the other."""
        caller = Caller()
        assert [caller.one("GET", "/home/a").status for _ in range(3)] == [404, 404, 404]
        assert caller.open

    def test_close(self) -> None:
        """A client that says close, or speaks HTTP/1.0, gets one answer and the end."""
        for data in (request("GET", "/-/health", "Connection: close"), b"GET /-/health HTTP/1.0\r\n\r\n"):
            caller = Caller()
            caller.send(data + request("GET", "/-/health"))
            (answer,) = caller.answers()
            assert answer.status == 200 and answer.headers["connection"] == "close"
            assert not caller.open
            caller.send(request("GET", "/-/health"))
            assert caller.answers() == []

    def test_any_cut(self) -> None:
        """The answers are the same however the bytes of the requests are cut."""
        requests = [
            request("PUT", "/home/a", body=b"0123456789"),
            request("GET", "/home/a", "Range: bytes=2-4"),
            b"\r\n" + request("PUT", "/home/b", "Transfer-Encoding: chunked", raw=True) + b"3\r\nabc\r\n0\r\n\r\n",
            request("GET", "/home/b"),
            request("PUT", "/home/a", body=b"refused before it is read", key=None),
            request("DELETE", "/home/a"),
            request("GET", "/?format=json"),
            request("GET", "/home/../a"),
            request("GET", "/home/b"),
        ]

        def answers(pieces: list[bytes]) -> list[tuple[int, bytes]]:
            caller = Caller()
            for piece in pieces:
                caller.send(piece)
            return [(answer.status, answer.body) for answer in caller.answers()]

        data = b"".join(requests)
        expected = answers([data])
        # The body of the request without a key is all there, so the connection goes on; it ends with the bad target.
        assert [status for status, _ in expected] == [201, 206, 201, 200, 401, 204, 200, 400]
        # Refused before all of its body has come, that request ends the connection: it is not cut here.
        start = len(b"".join(requests[:4]))
        whole = range(start + 1, start + len(requests[4]))

        @settings(max_examples=60)
        @given(st.lists(st.integers(0, len(data)), max_size=12))
        def holds(cuts: list[int]) -> None:
            edges = sorted({0, len(data), *(cut for cut in cuts if cut not in whole)})
            assert answers([data[start:end] for start, end in pairwise(edges)]) == expected

        holds()

    def test_byte_by_byte(self) -> None:
        """A request may come a byte at a time."""
        caller = Caller()
        for byte in request("PUT", "/home/a", body=b"abc"):
            caller.send(bytes([byte]))
        assert caller.answers()[0].status == 201

    def test_bad_head(self) -> None:
        """A head that is none is answered and ends the connection, whatever stands behind it."""
        for head, status in (
            (b"GET /home/a HTTP/1.1\r\n\r\n", 400),
            (b"GET /home/a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            (b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
            (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
            (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"Host: a\r\n\r\n", 431),
        ):
            caller = Caller()
            caller.send(head + request("GET", "/-/health"))
            (answer,) = caller.answers()
            assert (answer.status, answer.headers["connection"]) == (status, "close"), head
            assert not caller.open

    def test_lines_that_end_with_lf(self) -> None:
        """A head whose empty line ends with LF alone is refused when that comes, not when its time is over."""
        for head in (
            b"GET /home/a HTTP/1.1\nHost: a\n\n",
            b"GET /home/a HTTP/1.1\r\nHost: a\r\n\n",
            b"GET /home/a HTTP/1.1\nHost: a\n\r\n",
            b"GET /home/a HTTP/1.1\nHost: a\n\nGET /home/a HTTP/1.1\r\nHost: a\r\n\r\n",
            b"PUT /home/a HTTP/1.1\nHost: a\nContent-Length: 4\n\na\n\nb",
            b"\n\n",
        ):
            told = set()
            for pieces in ([head], [head[at : at + 1] for at in range(len(head))], [head[:-1], head[-1:]]):
                caller = Caller()
                for piece in pieces:
                    caller.send(piece)
                (answer,) = caller.answers()
                told.add((answer.status, answer.body))
                assert (answer.status, answer.headers["connection"], caller.open) == (400, "close", False), head
                assert caller.backend.catalog.files == {}
            assert len(told) == 1, head

    def test_refused_head(self) -> None:
        """HEAD is answered without a body also where its target is none, or there is no place for who asks."""
        crowded = Caller(limits=evolve(LIMITS, files_connections=2, files_reserved=1))
        away = Caller(crowded.backend, crowded.factory)
        for caller, target, status in ((Caller(), "/home/../a", 400), (away, "/home/a", 503)):
            caller.send(request("HEAD", target))
            (answer,) = caller.answers(head_only=True)
            assert answer.status == status and int(answer.headers["content-length"]) > 0
            assert not caller.open

    def test_odd_methods_and_targets(self) -> None:
        """CONNECT, TRACE and targets that are no path get an error; what is stored under such a name is not told."""
        for line, status in (
            ("CONNECT farm:443", 400),
            ("CONNECT /home/a", 405),
            ("TRACE /home/a", 405),
            ("OPTIONS *", 400),
            ("OPTIONS /home/a", 405),
            ("GET farm:443", 400),
            ("GET http://evil/home/a", 400),
            ("GET /home//a", 400),
            ("GET //home/a", 400),
            ("GET /home/../a", 400),
            ("GET /home/%2e%2e/a", 400),
            ("GET /home/..%5ca", 400),
            ("GET /home\\a", 400),
            ("GET /home/a%00", 400),
            ("GET /home/a%0d%0aX:b", 400),
            ("GET /home/%c0%ae%c0%ae/a", 400),
            ("GET /home/%252e%252e/a", 404),
        ):
            caller = Caller()
            caller.backend.catalog.add("home/a", b"0123456789")
            method, target = line.split()
            answer = caller.one(method, target)
            assert answer.status == status and b"01234" not in answer.body, line
            assert answer.headers.get("allow", "GET") != "" and "authorization" not in answer.text.lower()

    def test_a_file_that_cannot_be(self) -> None:
        """A PUT of more bytes than a file can have is refused before any of them is read."""
        caller = Caller()
        caller.send(request("PUT", "/home/a", "Content-Length: 999999999999999999", "Expect: 100-continue", raw=True))
        (answer,) = caller.answers()
        assert answer.status == 413 and not caller.open

    def test_endless_head(self) -> None:
        """A head that does not end is cut off at its limit, and not kept."""
        caller = Caller()
        caller.send(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(HEAD_BYTES_MAX // 1024 + 1):
            caller.send(b"x" * 1024)
        assert [answer.status for answer in caller.answers()] == [431] and not caller.open

    def test_large_heads_are_counted(self) -> None:
        """A head beyond its limit is counted, however it comes; what breaks other rules is not."""
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * HEAD_BYTES_MAX
        for data in (head, head + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"Host: a\r\n\r\n"):
            caller = Caller()
            caller.send(data)
            assert caller.answers()[0].status == 431
            assert 'limited_total{limit="head",port="files"} 1.0' in caller.backend.metrics.text(()).decode()
        caller = Caller()
        caller.send(b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert 'limit="head"' not in caller.backend.metrics.text(()).decode()

    def test_unwanted_body(self) -> None:
        """A body that nobody reads ends the connection, unless it is short and all there."""
        caller = Caller()
        assert caller.one("GET", "/-/health", "Content-Length: 3", body=b"abc", raw=True).status == 200
        assert caller.open
        caller.send(request("GET", "/-/health", "Content-Length: 4", raw=True), b"abc")
        (answer,) = caller.answers()
        assert answer.headers["connection"] == "close" and not caller.open


class PipelineTests(SynchronousTestCase):
    """Several requests at once."""

    def test_in_order(self) -> None:
        """The next request is begun when the one before is answered; until then no more is read."""
        caller = Caller()
        caller.backend.catalog.add("home/a", b"A")
        waits: Deferred[None] = Deferred()
        caller.backend.catalog.waits = waits
        caller.send(request("GET", "/home/a") + request("GET", "/-/health") + request("GET", "/home/b"))
        assert caller.answers() == [] and not caller.reading
        assert caller.backend.catalog.calls == [("find", "home/a")]
        caller.backend.catalog.waits = None
        waits.callback(None)
        assert [answer.status for answer in caller.answers()] == [200, 200, 404]
        assert caller.reading

    def test_streams_in_order(self) -> None:
        """A large answer is whole before the next one begins."""
        caller = Caller()
        data = bytes(range(256)) * 4000
        caller.backend.catalog.add("home/large", data)
        link: Any = caller.link
        link.write = pausing(caller, 2)
        caller.send(request("GET", "/home/large") + request("GET", "/-/health"))
        assert len(link.value()) < len(data)
        del link.write
        link.producer.resumeProducing()
        first, second = caller.answers()
        assert first.body == data and second.json["state"] == "serving"

    def test_many(self) -> None:
        """Thousands of pipelined requests take turns with other connections, and none is lost."""
        caller = Caller()
        caller.send(request("GET", "/-/health") * 1000)
        assert len(caller.answers()) == LIMITS.files_pipelined
        assert not caller.reading
        count = LIMITS.files_pipelined
        while not caller.reading:
            caller.clock.advance(0)
            count += len(caller.answers())
        assert count == 1000 and caller.open

    def test_answers_not_taken(self) -> None:
        """A client that takes no answers gets no further one begun until it has taken what there is."""
        caller = Caller()
        caller.backend.catalog.add("home/a", b"x" * 60_000)
        caller.link.queued = QUEUED_MAX + 1
        caller.send(request("GET", "/home/a") * 3)
        assert len(caller.answers()) == 1 and not caller.reading
        caller.link.queued = 0
        producer: Any = caller.link.producer
        # A pull producer is asked when it is registered, and again when nothing is queued.
        producer.resumeProducing()
        assert caller.answers() == []
        producer.resumeProducing()
        assert len(caller.answers()) == 2 and caller.reading and caller.link.producer is None


class TimeTests(SynchronousTestCase):
    """What takes too long."""

    def test_idle(self) -> None:
        """A connection without a request is closed after a while, a used one later."""
        caller = Caller()
        caller.clock.advance(LIMITS.files_idle - 1)
        assert caller.one("GET", "/-/health").status == 200
        caller.clock.advance(LIMITS.files_idle - 1)
        assert caller.open
        caller.clock.advance(1)
        assert not caller.open and caller.answers() == []

    def test_many_idle(self) -> None:
        """Hundreds that are due in the same second are closed a few at a time, and all of them."""
        first = Caller(limits=Limits(files_connections_address=1000))
        others = [Caller(first.backend, first.factory) for _ in range(100)]
        first.clock.advance(LIMITS.files_idle)
        turns = 0
        while still := sum(caller.open for caller in (first, *others)):
            assert still == 101 - (turns + 1) * ENDED_IN_TURN
            first.clock.advance(0)
            turns += 1
        for caller in (first, *others):
            caller.hang_up()
        assert first.clock.getDelayedCalls() == []

    def test_lost_while_others_are_closed(self) -> None:
        """Whoever leaves while the idle ones are closed is not closed once more."""
        first = Caller(limits=Limits(files_connections_address=1000))
        others = [Caller(first.backend, first.factory) for _ in range(2 * ENDED_IN_TURN)]
        first.clock.advance(LIMITS.files_idle)
        for caller in (first, *others):
            caller.hang_up()
        first.clock.advance(0)
        assert first.clock.getDelayedCalls() == []

    def test_slow_head(self) -> None:
        """A head has to come whole within its time, however it is dribbled."""
        caller = Caller()
        for byte in request("GET", "/-/health")[: int(LIMITS.files_head_time)]:
            assert caller.open
            caller.send(bytes([byte]))
            caller.clock.advance(1)
        (answer,) = caller.answers()
        assert answer.status == 408 and not caller.open

    def test_head_time_is_its_own(self) -> None:
        """The time of a head begins with its first byte, not with the connection or the request before."""
        caller = Caller()
        data = request("GET", "/-/health")
        for _ in range(4):
            caller.clock.advance(LIMITS.files_head_time - 1)
            caller.send(data[:5])
            caller.clock.advance(LIMITS.files_head_time - 1)
            caller.send(data[5:])
            assert caller.answers()[0].status == 200

    def test_slow_body(self) -> None:
        """A body that hardly comes is given up."""
        caller = Caller()
        caller.send(request("PUT", "/home/a", "Content-Length: 1000000", raw=True))
        for _ in range(int(LIMITS.files_body_time)):
            assert caller.open
            caller.send(b"x" * (LIMITS.files_body_rate - 1))
            caller.clock.advance(1)
        (answer,) = caller.answers()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert caller.backend.catalog.uploads[0].aborted

    def test_fast_enough_body(self) -> None:
        """A slow line is slow, not too slow."""
        caller = Caller()
        seconds = int(LIMITS.files_body_time) * 4
        caller.send(request("PUT", "/home/a", f"Content-Length: {seconds * LIMITS.files_body_rate}", raw=True))
        for _ in range(seconds):
            caller.send(b"x" * LIMITS.files_body_rate)
            caller.clock.advance(1)
        assert caller.answers()[0].status == 201

    def test_our_slowness(self) -> None:
        """While our disks are busy the client is not blamed."""
        caller = Caller()
        caller.send(request("PUT", "/home/a", "Content-Length: 6", raw=True), b"abc")
        caller.backend.catalog.uploads[0].on_pause()
        caller.clock.advance(LIMITS.files_body_time * 10)
        caller.backend.catalog.uploads[0].on_resume()
        caller.clock.advance(1)
        caller.send(b"def")
        assert caller.answers()[0].status == 201

    def test_stalled_answer(self) -> None:
        """A client that hardly takes its answer is cut off; a slow one is not, nor is one that we are slow to."""
        rate = LIMITS.files_answer_rate
        for taking, queued, ends in ((0, 1, True), (1, 1, True), (rate - 1, 1, True), (rate, 1, False), (0, 0, False)):
            caller = Caller()
            link: Any = caller.link
            caller.backend.catalog.add("home/large", b"x" * 1_000_000)
            link.write = pausing(caller, 1)
            caller.send(request("GET", "/home/large"))
            link.queued = queued
            for _ in range(int(LIMITS.files_answer_time) * 3):
                link.delivered += taking
                caller.clock.advance(1)
            assert link.aborted is ends, taking

    def test_answers_never_taken(self) -> None:
        """A client that pipelines and takes no answers is cut off too."""
        caller = Caller()
        caller.link.queued = QUEUED_MAX + 1
        caller.send(request("GET", "/-/health") * 3)
        caller.clock.pump([1] * 62)
        assert caller.link.aborted

    def test_slow_table(self) -> None:
        """A request that waits for the farm is not ended by the time of the connection."""
        caller = Caller()
        waits: Deferred[None] = Deferred()
        caller.backend.catalog.waits = waits
        caller.send(request("GET", "/home/a"))
        caller.clock.advance(1000)
        assert caller.open
        waits.callback(None)
        assert caller.answers()[0].status == 404

    def test_date(self) -> None:
        """The date of an answer is at most a second old, and nothing is left ticking without connections."""
        now = 0
        caller = Caller()
        caller.factory._now_ms = lambda: now
        now = 1_000_000
        caller.clock.advance(1)
        assert caller.one("GET", "/-/health").headers["date"] == "Thu, 01 Jan 1970 00:16:40 GMT"
        caller.hang_up()
        assert caller.clock.getDelayedCalls() == []


class FaultTests(SynchronousTestCase):
    """What goes wrong with us."""

    def test_unknown_error(self) -> None:
        """A fault of ours is 500, logged with the request but never with its key."""
        caller = Caller()
        caller.backend.catalog.error = RuntimeError("oops")
        answer = caller.one("GET", "/home/a?b=c")
        assert (answer.status, answer.text) == (500, "internal this server has a fault; its log says more\n")
        assert caller.open
        (failure,) = self.flushLoggedErrors(RuntimeError)
        assert "oops" not in answer.text and "YWRtaW4" not in failure.getTraceback()

    def test_error_in_the_middle(self) -> None:
        """A fault of ours in the middle of an answer resets the connection."""
        caller = Caller()
        caller.backend.catalog.add("home/large", b"x" * 1_000_000)
        original = caller.backend.catalog.download

        def broken(*arguments: Any) -> Any:
            def spoil(source: Any) -> Any:
                pieces = [source.next(), Deferred(), Deferred()]
                pieces[1].errback(RuntimeError("oops"))
                source.next = lambda: pieces.pop(0)
                return source

            return original(*arguments).addCallback(spoil)

        self.patch(caller.backend.catalog, "download", broken)
        caller.send(request("GET", "/home/large"))
        assert caller.link.aborted
        assert len(self.flushLoggedErrors(RuntimeError)) == 1


class FactoryTests(SynchronousTestCase):
    """All connections together."""

    def test_limits(self) -> None:
        """There are so many connections in all, and so many from one address; others come in again later."""
        first = Caller(limits=Limits(files_connections=4, files_connections_address=2, files_reserved=1))
        files = first.factory

        def gets_in(host: str) -> bool:
            caller = Caller(first.backend, files, host=host)
            (answer,) = caller.ask("GET", "/-/health")
            if answer.status == 503:
                assert answer.text == "busy this server has too many connections\n" and not caller.open
                assert answer.headers["retry-after"]
                caller.hang_up()
            return answer.status == 200

        assert gets_in("10.0.0.9")
        assert not gets_in("10.0.0.9")
        assert gets_in("10.0.0.8")
        assert not gets_in("10.0.0.7")
        first.hang_up()
        assert gets_in("10.0.0.9")
        text = first.backend.metrics.text(()).decode()
        assert 'chunkfarm_limited_total{limit="connections_address",port="files"} 1.0' in text
        assert 'chunkfarm_limited_total{limit="connections",port="files"} 1.0' in text

    def test_many_refusals(self) -> None:
        """Telling people that there is no room takes no room without end, and not for long."""
        first = Caller(limits=Limits(files_connections=2, files_reserved=1))
        away = [Caller(first.backend, first.factory) for _ in range(REFUSALS_MAX)]
        assert first.factory.buildProtocol(IPv4Address("TCP", "10.0.0.9", 1)) is None
        first.clock.pump([1] * 31)
        assert not any(caller.open for caller in away)
        for caller in away:
            caller.hang_up()
        assert first.factory.buildProtocol(IPv4Address("TCP", "10.0.0.9", 1)) is not None

    def test_places_for_servers(self) -> None:
        """A server of the farm gets in from where one was met before, also when strangers have all other places."""
        first = Caller(limits=Limits(files_connections=4, files_reserved=2))
        first.backend.peers[CERTIFICATE] = OTHER_ID
        server = Caller(first.backend, first.factory, host="10.0.0.2")
        server.link.certificate = CERTIFICATE
        chunk = "/-/chunks/" + "0" * 64
        assert server.one("GET", chunk, key=None).status == 404
        assert Caller(first.backend, first.factory, host="10.0.0.3").one("GET", "/-/health").status == 503
        assert Caller(first.backend, first.factory, host="10.0.0.2").one("GET", "/-/health").status == 503
        second = Caller(first.backend, first.factory, host="10.0.0.2")
        second.link.certificate = CERTIFICATE
        assert second.one("GET", chunk, key=None).status == 404
        first.clock.advance(1)
        assert second.one("GET", chunk, key=None).status == 404
        assert 'limited_total{limit="connections",port="files"} 2.0' in first.backend.metrics.text(()).decode()

    def test_other_limits(self) -> None:
        """Limits that change hold for the next request of connections that are open."""
        caller = Caller()
        assert caller.one("GET", "/-/health", "X: " + "x" * 5000).status == 200
        caller.factory.limits = Limits(files_head=4096)
        assert caller.one("GET", "/-/health").status == 200
        assert caller.one("GET", "/-/health", "X: " + "x" * 5000).status == 431

    def test_finish(self) -> None:
        """At the end idle connections close, requests under way are answered, and then it is over."""
        busy = Caller()
        files = busy.factory
        idle = Caller(busy.backend, files)
        waits: Deferred[None] = Deferred()
        busy.backend.catalog.waits = waits
        busy.send(request("GET", "/home/a"))
        finished = files.finish()
        assert not idle.open and busy.open
        idle.hang_up()
        self.assertNoResult(finished)
        waits.callback(None)
        (answer,) = busy.answers()
        assert answer.headers["connection"] == "close" and not busy.open
        busy.hang_up()
        assert self.successResultOf(finished) is None
        assert self.successResultOf(files.finish()) is None
        assert files.buildProtocol(IPv4Address("TCP", "10.0.0.9", 1)) is None

    def test_finish_in_the_middle_of_an_answer(self) -> None:
        """A connection whose answer had begun when the server was told to end closes behind it, as the others do."""
        caller = Caller()
        caller.backend.catalog.add("home/a", b"x" * 300_000)
        self.patch(caller.link, "write", pausing(caller, 0))
        caller.send(request("GET", "/home/a"))
        finished = caller.factory.finish()
        assert caller.open
        self.patch(caller.link, "write", pausing(caller, 100))
        while (producer := caller.link.producer) is not None:
            producer.resumeProducing()
        (answer,) = caller.answers()
        assert len(answer.body) == 300_000 and not caller.open
        caller.hang_up()
        assert self.successResultOf(finished) is None

    def test_finish_while_answers_are_taken(self) -> None:
        """So does one that waited for its client to take what was written: it begins no further request."""
        caller = Caller()
        caller.link.queued = QUEUED_MAX + 1
        caller.send(request("GET", "/-/health") * 2)
        finished = caller.factory.finish()
        assert caller.open and len(caller.answers()) == 1
        producer: Any = caller.link.producer
        for _ in range(2):
            # A transport asks once at the beginning, and then when nothing is queued any more.
            producer.resumeProducing()
        assert not caller.open and caller.answers() == []
        caller.hang_up()
        assert self.successResultOf(finished) is None

    def test_abort(self) -> None:
        """What does not finish in time is cut off."""
        busy = Caller()
        busy.backend.catalog.waits = Deferred()
        busy.send(request("GET", "/home/a"))
        finished = busy.factory.finish()
        busy.factory.abort()
        assert busy.link.aborted
        busy.hang_up()
        assert self.successResultOf(finished) is None

    def test_names_of_states(self) -> None:
        """The states are told apart by identity."""
        assert len({connection.WAITING, connection.BODY, connection.ANSWERING, connection.ENDED}) == 4
