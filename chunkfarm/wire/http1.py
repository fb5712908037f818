"""HTTP/1.1 on the wire: heads in and out, and where a body ends. Pure: bytes in, values out.

Heads are read by llhttp (`httptools`) in its strict mode, which refuses what makes two readers disagree
about a message: folded header lines, a line that ends without CR, a doubled Content-Length, Content-Length
beside Transfer-Encoding, control characters. What it leaves open is refused here: a missing or doubled
Host, any transfer coding but `chunked`, a doubled header of those that have one value.

A head is found by its empty line and given to a parser of its own, so that nothing is left over from the
message before, and the bytes of a body never pass through callbacks: whoever reads counts them with
`CountedBody` or `ChunkedBody`.
"""

from __future__ import annotations

import re
from typing import Protocol

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpResponseParser,
)

from chunkfarm.errors import InvalidRequest, Later, LimitExceeded, UnknownCommand
from chunkfarm.model import KIB

HEAD_BYTES_MAX = 32 * KIB
"""A whole head. Browsers with many cookies send 8 KiB; Tomcat and node.js end at 8 and 16 KiB, nginx at 32."""
HEADER_LINES_MAX = 100
"""Apache's number; the clients of a file store send about ten."""
TARGET_BYTES_MAX = 8 * KIB
"""A file name of 1,024 bytes takes 3 KiB percent-encoded; a listing's query may hold two of them."""
CHUNK_LINE_BYTES_MAX = 256
"""The line before each chunk of a chunked body: a size and, hardly ever, an extension."""
CHUNKS_AT_ONCE = 1000
"""Chunks of a chunked body that are taken before others have a turn: one read may bring forty thousand, a byte each."""
TRAILER_BYTES_MAX = 8 * KIB
"""All trailer lines after a chunked body; they are read and forgotten."""

HEAD_END = b"\r\n\r\n"
EMPTY_LINE = re.compile(rb"\n\r?\n")
"""What ends a head, or what others might take for its end: whoever writes so waits for an answer."""

_SINGLE = frozenset(
    (
        b"host",
        b"authorization",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"content-range",
        b"expect",
        b"range",
        b"if-range",
        b"if-modified-since",
        b"if-unmodified-since",
    )
)
"""Headers that have one value: given twice, two readers could each believe another one."""

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")
_LOOKALIKES = frozenset((b"content_length", b"transfer_encoding"))
"""What some proxies take for the names with a hyphen, by which a message ends."""
LENGTH_DIGITS_MAX = 18
"""Of a Content-Length: more than any file has bytes, and never too much for whoever computes with it."""
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e]*)?\r\n\Z")
"""Fifteen digits are less than 2**60: nothing overflows anywhere."""

_AUTHORITY = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")
"""Of a target in absolute form."""

REASONS = {
    100: "Continue",
    200: "OK",
    201: "Created",
    204: "No Content",
    206: "Partial Content",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    412: "Precondition Failed",
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    417: "Expectation Failed",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
}

STATUS_LINES = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in REASONS.items()}


class HeadTooLarge(LimitExceeded):
    """The head has more bytes or more lines than a head may have."""

    http_status = 431


class TargetTooLong(LimitExceeded):
    """The request target is longer than one may be."""

    http_status = 414


class VersionNotSupported(InvalidRequest):
    """Neither HTTP/1.0 nor HTTP/1.1."""

    http_status = 505


class UnknownMethod(UnknownCommand):
    """Not a method of HTTP that llhttp knows."""

    http_status = 501


class ExpectationFailed(InvalidRequest):
    """An Expect header that is not `100-continue`."""

    http_status = 417


class BadResponse(Exception):
    """A server answered with something that is not the HTTP/1.1 that servers of a farm speak."""


class RequestHead:
    """The head of a request, checked. Header names are lower case; the values of a repeated header are joined."""

    __slots__ = (
        "chunked",
        "expects_continue",
        "headers",
        "keep_alive",
        "length",
        "lines",
        "method",
        "repeated",
        "target",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.keep_alive = True
        self.length: int | None = None
        """The Content-Length; None if there is none."""
        self.chunked = False
        self.expects_continue = False
        self.lines = 0
        self.repeated: bytes | None = None

    def on_url(self, target: bytes) -> None:
        """Called by the parser."""
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        name = name.lower()
        self.lines += 1
        if name in self.headers:
            if name in _SINGLE:
                self.repeated = name
            else:
                value = b"%b, %b" % (self.headers[name], value)
        self.headers[name] = value.rstrip(b" \t")

    @property
    def has_body(self) -> bool:
        """Whether any bytes follow the head."""
        return self.chunked or bool(self.length)


def parse_request(head: bytes, bytes_max: int = HEAD_BYTES_MAX) -> RequestHead | None:
    """The request whose head, up to and with the empty line, is `head`; None if there are only empty lines.

    Raises a `FarmError` with the HTTP status to answer; after any of them the connection has to be closed,
    because where the next message begins is not known.
    """
    if len(head) > bytes_max:
        raise HeadTooLarge(f"the head of a request has at most {bytes_max} bytes")
    if not head.endswith(HEAD_END):
        raise InvalidRequest("the head of the request is malformed: its lines end with LF alone, not with CR and LF")
    request = RequestHead()
    parser = HttpRequestParser(request)
    try:
        parser.feed_data(head)
    except HttpParserUpgrade:
        # A wish to speak another protocol is not granted by going on with this one, as RFC 9110, 7.8 allows.
        pass
    except HttpParserInvalidMethodError:
        raise UnknownMethod("the request begins with a method that is not known here") from None
    except HttpParserError as error:
        if parser.get_http_version() == "2.0":
            raise VersionNotSupported("this port speaks HTTP/1.1") from None
        raise InvalidRequest(f"the head of the request is malformed: {error}") from None
    if not request.target:
        return None
    request.method = parser.get_method()
    _check(request, parser.get_http_version())
    if not head.lstrip(b"\r\n").startswith(b"%b %b HTTP/" % (request.method, request.target)):
        raise InvalidRequest("the first line of a request is method, target and version, with one space between them")
    return request


def _check(request: RequestHead, version: str) -> None:
    headers = request.headers
    if request.lines > HEADER_LINES_MAX:
        raise HeadTooLarge(f"a request has at most {HEADER_LINES_MAX} header lines")
    if len(request.target) > TARGET_BYTES_MAX:
        raise TargetTooLong(f"a request target has at most {TARGET_BYTES_MAX} bytes")
    if request.repeated is not None:
        raise InvalidRequest(f"the header {request.repeated.decode()} is given more than once")
    host = headers.get(b"host")
    if version == "1.1":
        if host is None:
            raise InvalidRequest("the request has no Host header")
        connection = headers.get(b"connection")
        if connection is not None and b"close" in _tokens(connection):
            request.keep_alive = False
    elif version == "1.0":
        request.keep_alive = False
    else:
        raise VersionNotSupported("this port speaks HTTP/1.1")
    if host is not None and not _HOST.match(host):
        raise InvalidRequest("the Host header is not a host with an optional port")
    if (length := headers.get(b"content-length")) is not None:
        if len(length) > LENGTH_DIGITS_MAX:
            raise InvalidRequest(f"a Content-Length has at most {LENGTH_DIGITS_MAX} digits")
        request.length = int(length)
    if not _LOOKALIKES.isdisjoint(headers):
        raise InvalidRequest("a header looks like Content-Length or Transfer-Encoding, and is neither")
    if (
        host is not None
        and (named := _AUTHORITY.match(request.target)) is not None
        and named[1].lower() != host.lower()
    ):
        raise InvalidRequest("the request target names another host than the Host header")
    if (coding := headers.get(b"transfer-encoding")) is not None:
        if version != "1.1":
            raise InvalidRequest("HTTP/1.0 has no transfer codings")
        if coding.lower() != b"chunked":
            raise Later("the only transfer coding understood here is chunked")
        request.chunked = True
    if (expect := headers.get(b"expect")) is not None and version == "1.1":
        if expect.lower() != b"100-continue":
            raise ExpectationFailed("the only expectation understood here is 100-continue")
        request.expects_continue = request.has_body


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip(b" \t") for token in value.lower().split(b",")]


class ResponseHead:
    """The head of a response that another server of the farm gave. Header names are lower case."""

    __slots__ = ("headers", "keep_alive", "length", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.keep_alive = True
        self.length = 0
        """Content-Length; 0 where the status allows no body."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers[name.lower()] = value.rstrip(b" \t")


def parse_response(head: bytes) -> ResponseHead:
    """The response whose head, up to and with the empty line, is `head`; raises `BadResponse`.

    Servers of a farm say the length of every body, so a response without Content-Length is refused
    rather than read to the end of the connection, where a body cut short would look whole.
    """
    response = ResponseHead()
    parser = HttpResponseParser(response)
    try:
        parser.feed_data(head)
    except HttpParserUpgrade:
        raise BadResponse("the server wants to speak another protocol") from None
    except HttpParserError as error:
        raise BadResponse(f"the head of the answer is malformed: {error}") from None
    response.status = parser.get_status_code()
    headers = response.headers
    if parser.get_http_version() != "1.1":
        raise BadResponse("the answer is not HTTP/1.1")
    if b"transfer-encoding" in headers:
        raise BadResponse("the answer has a transfer coding")
    response.keep_alive = b"close" not in _tokens(headers.get(b"connection", b""))
    if response.status >= 200 and response.status not in (204, 304):
        if b"content-length" not in headers:
            raise BadResponse("the answer does not say its length")
        if len(headers[b"content-length"]) > LENGTH_DIGITS_MAX:
            raise BadResponse("the answer says its length in too many digits")
        response.length = int(headers[b"content-length"])
    return response


class Body(Protocol):
    """Finds the end of a body in the bytes that follow a head."""

    done: bool
    """Whether the end was found."""

    def take(self, data: bytes, offset: int) -> tuple[bytes | memoryview, int]:
        """What of `data` from `offset` on belongs to the body, and where to go on; raises `InvalidRequest`."""


class CountedBody:
    """A body of a known length."""

    __slots__ = ("done", "remaining")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.done = not length

    def take(self, data: bytes, offset: int) -> tuple[bytes | memoryview, int]:
        """The next bytes of the body, and the offset after them."""
        end = min(len(data), offset + self.remaining)
        self.remaining -= end - offset
        self.done = not self.remaining
        if end - offset == len(data):
            return data, end
        return memoryview(data)[offset:end], end


class ChunkedBody:
    """A body in the chunked transfer coding (RFC 9112, 7.1), strictly: CRLF everywhere, no sign, no spaces."""

    __slots__ = ("_line", "_remaining", "_step", "_trailer_bytes", "done")

    # What is expected next.
    _SIZE, _DATA, _AFTER_DATA, _TRAILER = range(4)

    def __init__(self) -> None:
        self.done = False
        self._step = self._SIZE
        self._remaining = 0
        self._line = b""
        self._trailer_bytes = 0

    def take(self, data: bytes, offset: int) -> tuple[bytes | memoryview, int]:
        """The next bytes of the body, and the offset after them.

        Those of many small chunks are joined, of up to `CHUNKS_AT_ONCE`: there may be more.
        """
        pieces: list[memoryview] = []
        view = memoryview(data)
        while offset < len(data) and not self.done and len(pieces) < CHUNKS_AT_ONCE:
            if self._step == self._DATA:
                end = min(len(data), offset + self._remaining)
                pieces.append(view[offset:end])
                self._remaining -= end - offset
                offset = end
                if not self._remaining:
                    self._step = self._AFTER_DATA
            else:
                end = data.find(b"\n", offset) + 1 or len(data)
                self._line += data[offset:end]
                offset = end
                if len(self._line) > (TRAILER_BYTES_MAX if self._step == self._TRAILER else CHUNK_LINE_BYTES_MAX):
                    raise InvalidRequest("a line of the chunked body is too long")
                if self._line.endswith(b"\n"):
                    line, self._line = self._line, b""
                    self._take_line(line)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), offset

    def _take_line(self, line: bytes) -> None:
        if self._step == self._SIZE:
            match = _SIZE_LINE.match(line)
            if match is None:
                raise InvalidRequest("the chunked body has a malformed chunk size")
            self._remaining = int(match[1], 16)
            self._step = self._DATA if self._remaining else self._TRAILER
        elif self._step == self._AFTER_DATA:
            if line != b"\r\n":
                raise InvalidRequest("the chunked body has a chunk that is longer than its size")
            self._step = self._SIZE
        else:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > TRAILER_BYTES_MAX:
                raise InvalidRequest("the trailer of the chunked body is too long")
            if not line.endswith(b"\r\n"):
                raise InvalidRequest("the trailer of the chunked body has a line without CR")
            self.done = line == b"\r\n"


def body_of(request: RequestHead) -> Body:
    """What finds the end of the body of `request`."""
    return ChunkedBody() if request.chunked else CountedBody(request.length or 0)


def fields(*pairs: tuple[str, str]) -> bytes:
    """Header lines, each with its line end. A value that could begin another line is refused by `assert`."""
    text = "".join(f"{name}: {value}\r\n" for name, value in pairs)
    assert text.count("\n") == len(pairs) == text.count("\r") and "\0" not in text
    return text.encode("latin-1")
