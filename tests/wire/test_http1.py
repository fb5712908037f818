"""Heads and bodies of HTTP/1.1: what is read, what is refused, and with which status."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import FarmError, InvalidRequest
from chunkfarm.wire.http1 import (
    CHUNK_LINE_BYTES_MAX,
    HEAD_BYTES_MAX,
    HEADER_LINES_MAX,
    TARGET_BYTES_MAX,
    TRAILER_BYTES_MAX,
    BadResponse,
    Body,
    ChunkedBody,
    CountedBody,
    RequestHead,
    body_of,
    fields,
    parse_request,
    parse_response,
)

CRLF = "\r\n"


def head(*lines: str, request: str = "GET /a HTTP/1.1", host: str | None = "farm:4102") -> bytes:
    """A request head; `Host` is there unless the test takes it away."""
    every = [request, *([f"Host: {host}"] if host is not None else []), *lines, "", ""]
    return CRLF.join(every).encode("latin-1")


def parse(*lines: str, **options: str | None) -> RequestHead:
    parsed = parse_request(head(*lines, **options))  # type: ignore[arg-type]
    assert parsed is not None
    return parsed


def refused(data: bytes) -> int:
    """The status with which the head is refused."""
    with pytest.raises(FarmError) as caught:
        parse_request(data)
    assert "\n" not in str(caught.value)
    return caught.value.http_status


def swallow(body: Body, data: bytes, cuts: list[int]) -> tuple[bytes, int]:
    """What `body` takes of `data`, given in pieces, and how much of `data` it used."""
    taken, used, edges = b"", 0, [*sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    start = 0
    for end in edges:
        piece = data[start:end]
        offset = 0
        while offset < len(piece) and not body.done:
            got, offset = body.take(piece, offset)
            taken += bytes(got)
        used += offset
        start = end
        if body.done:
            break
    return taken, used


class RequestHeadTests(SynchronousTestCase):
    """`parse_request`."""

    def test_parts(self) -> None:
        """Method, target and headers come out, header names in lower case, values without outer spaces."""
        request = parse("X-Thing:  a b \t", request="PUT /a%20b?c=d HTTP/1.1")
        assert (request.method, request.target) == (b"PUT", b"/a%20b?c=d")
        assert request.headers == {b"host": b"farm:4102", b"x-thing": b"a b"}
        assert request.keep_alive and not request.has_body and request.length is None

    def test_list_header_repeated(self) -> None:
        """A header that is a list may be given twice: the values are joined."""
        assert parse('If-None-Match: "a"', 'if-none-match: "b"').headers[b"if-none-match"] == b'"a", "b"'

    def test_single_header_repeated(self) -> None:
        """A header with one value is refused when it is given twice."""
        for line in ("Host: b", "Authorization: x", "Range: bytes=0-1", "Content-Type: a/b", "Expect: 100-continue"):
            assert refused(head(line, line)) == 400, line

    def test_host(self) -> None:
        """HTTP/1.1 takes exactly one Host, and it must be one; HTTP/1.0 may do without."""
        assert refused(head(host=None)) == 400
        assert refused(head("Host: farm:4102")) == 400
        for bad in (
            "",
            "a b",
            "a/b",
            "user@farm",
            "farm?x",
            "fa\xe4rm",
            "a,b\\",
            "farm:x",
            "farm:123456",
            "[::1",
            "::1",
            ":1",
        ):
            assert refused(head(host=bad)) == 400, bad
        for good in ("farm", "10.0.0.1:4102", "[::1]:4102", "xn--frm-qla.example"):
            assert parse(host=good).headers[b"host"] == good.encode()
        assert not parse(request="GET /a HTTP/1.0", host=None).keep_alive

    def test_host_of_the_target(self) -> None:
        """A target that is a whole URL names the host of the Host header, or a proxy could believe another one."""
        assert parse(request="GET https://Farm:4102/a HTTP/1.1").target == b"https://Farm:4102/a"
        for target in (
            "http://evil/a",
            "https://farm/a",
            "http://farm:4102@evil/a",
            "http://u:p@farm:4102/a",
            "http:///a",
        ):
            assert refused(head(request=f"GET {target} HTTP/1.1")) == 400, target

    def test_keep_alive(self) -> None:
        """A connection stays open unless the client says close, or speaks HTTP/1.0."""
        assert parse("Connection: keep-alive").keep_alive
        assert not parse("Connection: Close").keep_alive
        assert not parse("Connection: te, close").keep_alive
        assert not parse("Connection: keep-alive", request="GET /a HTTP/1.0").keep_alive

    def test_body(self) -> None:
        """A body is counted or chunked, and a client may wait to be told to go on."""
        assert parse("Content-Length: 12").length == 12
        assert not parse("Content-Length: 0").has_body
        assert parse("Transfer-Encoding: Chunked").chunked
        assert parse("Content-Length: 12", "Expect: 100-Continue").expects_continue
        assert not parse("Expect: 100-continue").expects_continue
        assert isinstance(body_of(parse("Content-Length: 12")), CountedBody)
        assert isinstance(body_of(parse("Transfer-Encoding: chunked")), ChunkedBody)

    def test_smuggling(self) -> None:
        """Whatever two readers could frame differently is refused."""
        length, chunked = "Content-Length: 3", "Transfer-Encoding: chunked"
        for lines in (
            (length, length),
            (length, "Content-Length: 4"),
            ("Content-Length: 3, 3",),
            ("Content-Length: +3",),
            ("Content-Length: -3",),
            ("Content-Length: 0x3",),
            ("Content-Length:",),
            ("Content-Length: 99999999999999999999",),
            ("Content-Length: 9999999999999999999",),
            ("Content-Length: 18446744073709551615",),
            ("Content-Length: 3 3",),
            ("Content-Length: 3;",),
            ("Content-Length: 1_0",),
            ("Content_Length: 3",),
            ("Transfer_Encoding: chunked", length),
            (length, chunked),
            (chunked, length),
            (chunked, chunked),
            ("Transfer-Encoding: xchunked",),
            ("Transfer-Encoding: \x0bchunked",),
            ("Transfer-Encoding: chunked;q=1",),
            ('Transfer-Encoding: "chunked"',),
            ("Transfer-Encoding: identity",),
            ("Transfer-Encoding:",),
            ("Transfer-Encoding: chunked, chunked",),
            ("Transfer-Encoding\t: chunked",),
            ("Content-Length : 3",),
            (": a",),
            ("no colon",),
            ("X: a\x7fb",),
            ("X: a\x1bb",),
            ("Transfer-Encoding : chunked",),
            (" Transfer-Encoding: chunked",),
            ("Transfer-Encoding: chunked, identity",),
            ("X: a", " folded"),
            ("X: a\rY: b",),
            ("X: a\nY: b",),
            ("X: a\0b",),
            ("X\x01: a",),
        ):
            assert refused(head(*lines, request="PUT /a HTTP/1.1")) == 400, lines
        assert refused(head(chunked, request="PUT /a HTTP/1.0")) == 400
        assert refused(head("Transfer-Encoding: gzip, chunked", request="PUT /a HTTP/1.1")) == 501

    def test_targets(self) -> None:
        """Control characters and raw bytes do not get into a target."""
        for request in ("GET /a\0b HTTP/1.1", "GET /a\x1fb HTTP/1.1", "GET /a\x7f HTTP/1.1", "GET /\xe4 HTTP/1.1"):
            assert refused(head(request=request)) == 400
        assert refused(head(request="GET /a b HTTP/1.1")) == 400

    def test_line_ends(self) -> None:
        """Every line ends with CR and LF, and nothing stands before the first word of a line."""
        for data in (
            b"GET /a HTTP/1.1\nHost: a\n\n\r\n\r\n",
            b"GET /a HTTP/1.1\nHost: a\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            b"GET /a HTTP/1.1\rX: b\r\nHost: a\r\n\r\n",
            b"GET /a HTTP/1.1\r\n X: b\r\nHost: a\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n",
            b"GET  /a HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET\t/a HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /a  HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /a HTTP/1.1 \r\nHost: a\r\n\r\n",
        ):
            assert refused(data) in (400, 501), data

    def test_limits(self) -> None:
        """A head has a largest size, a largest number of lines, and a target a largest length."""
        fill = "x" * (TARGET_BYTES_MAX - 1)
        assert parse(request=f"GET /{fill} HTTP/1.1").target == b"/" + fill.encode()
        assert refused(head(request=f"GET /{fill}x HTTP/1.1")) == 414
        lines = [f"X{number}: y" for number in range(HEADER_LINES_MAX - 1)]
        assert len(parse(*lines).headers) == HEADER_LINES_MAX
        assert refused(head("Y: z", *lines)) == 431
        room = HEAD_BYTES_MAX - len(head("X: "))
        assert parse("X: " + "x" * room)
        assert refused(head("X: " + "x" * (room + 1))) == 431

    def test_versions_and_methods(self) -> None:
        """Another version of HTTP, an unknown method and an unknown expectation have statuses of their own."""
        assert refused(b"PRI * HTTP/2.0\r\n\r\n") == 505
        assert refused(b"GET /a\r\n\r\n") == 505
        assert refused(head(request="BREW /a HTTP/1.1")) == 501
        assert refused(head("Expect: more", "Content-Length: 1")) == 417
        assert refused(b"\x16\x03\x01\x02\x00\x01\r\n\r\n") in (400, 501)

    def test_upgrade_is_ignored(self) -> None:
        """A wish to speak another protocol is not granted, and is no error."""
        request = parse("Connection: Upgrade", "Upgrade: h2c")
        assert request.target == b"/a" and request.keep_alive

    def test_empty_lines(self) -> None:
        """Empty lines before a request are passed over."""
        assert parse_request(b"\r\n\r\n") is None
        assert parse_request(b"\r\n" + head()) is not None

    def test_any_bytes(self) -> None:
        """Whatever comes, the result is a request or an error that can be told."""

        @given(st.binary(max_size=300))
        def holds(data: bytes) -> None:
            try:
                parse_request(data + b"\r\n\r\n")
            except FarmError as error:
                assert 400 <= error.http_status < 600

        holds()


class BodyTests(SynchronousTestCase):
    """`CountedBody` and `ChunkedBody`."""

    def test_counted(self) -> None:
        """A counted body ends where it said, however its bytes are cut."""

        @given(st.binary(max_size=60), st.binary(max_size=20), st.lists(st.integers(0, 100)))
        def holds(data: bytes, after: bytes, cuts: list[int]) -> None:
            body = CountedBody(len(data))
            taken, used = swallow(body, data + after, cuts)
            assert body.done and (taken, used) == (data, len(data))

        holds()

    def test_chunked(self) -> None:
        """A chunked body comes out as it was, and what follows it is not touched, however the bytes are cut."""
        extensions = st.sampled_from(["", ";x", ' ; name="value"'])
        chunks = st.lists(st.tuples(st.binary(min_size=1, max_size=40), extensions), max_size=5)

        @given(chunks, st.sampled_from(["", "X: y\r\n"]), st.binary(max_size=20), st.lists(st.integers(0, 400)))
        def holds(chunks: list[tuple[bytes, str]], trailer: str, after: bytes, cuts: list[int]) -> None:
            encoded = b"".join(f"{len(data):X}{text}\r\n".encode() + data + b"\r\n" for data, text in chunks)
            encoded += b"00\r\n" + trailer.encode() + b"\r\n"
            body = ChunkedBody()
            taken, used = swallow(body, encoded + after, cuts)
            assert body.done
            assert (taken, used) == (b"".join(data for data, _ in chunks), len(encoded))

        holds()

    def test_chunked_malformed(self) -> None:
        """A chunked body that another reader could understand differently is refused, however it is cut."""
        bad = [
            b"3\nabc\r\n0\r\n\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"+3\r\nabc\r\n0\r\n\r\n",
            b" 3\r\nabc\r\n0\r\n\r\n",
            b"3 \r\nabc\r\n0\r\n\r\n",
            b"0x3\r\nabc\r\n0\r\n\r\n",
            b"\r\n",
            b"g\r\n",
            b"1" * 16 + b"\r\n",
            b"3;a\x00b\r\nabc\r\n0\r\n\r\n",
            b"3;" + b"x" * CHUNK_LINE_BYTES_MAX + b"\r\nabc\r\n0\r\n\r\n",
            b"0\r\n\n",
            b"0\r\n" + b"X: y\r\n" * (TRAILER_BYTES_MAX // 6 + 1) + b"\r\n",
            b"0\r\nX: " + b"x" * TRAILER_BYTES_MAX,
        ]

        @given(st.sampled_from(bad), st.lists(st.integers(0, 10_000), max_size=6))
        def holds(data: bytes, cuts: list[int]) -> None:
            with pytest.raises(InvalidRequest):
                swallow(ChunkedBody(), data, cuts)

        holds()

    def test_long_trailer_line(self) -> None:
        """A trailer line may be longer than a chunk's size line."""
        data = b"0\r\nX: " + b"x" * 2 * CHUNK_LINE_BYTES_MAX + b"\r\n\r\n"
        body = ChunkedBody()
        assert swallow(body, data + b"GET", [])[1] == len(data) and body.done


class ResponseHeadTests(SynchronousTestCase):
    """`parse_response`, as servers of a farm use it among themselves."""

    def test_parts(self) -> None:
        """Status, length and whether the connection may be used again."""
        response = parse_response(b"HTTP/1.1 206 Partial\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/9\r\n\r\n")
        assert (response.status, response.length, response.keep_alive) == (206, 5, True)
        assert response.headers[b"content-range"] == b"bytes 0-4/9"
        response = parse_response(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        assert (response.status, response.length, response.keep_alive) == (204, 0, False)

    def test_refused(self) -> None:
        """What servers of a farm never send is not guessed at."""
        for data in (
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 5000 + b"1\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n\r\n",
        ):
            with pytest.raises(BadResponse):
                parse_response(data)


class FieldsTests(SynchronousTestCase):
    """`fields`."""

    def test_lines(self) -> None:
        """Header lines, each with its end."""
        assert fields(("A", "b"), ("C", "d e")) == b"A: b\r\nC: d e\r\n"

    def test_no_second_line(self) -> None:
        """A value never begins another header line."""
        for bad in ("a\r\nSet-Cookie: x", "a\nb", "a\rb", "a\0b"):
            with pytest.raises(AssertionError):
                fields(("A", bad))
