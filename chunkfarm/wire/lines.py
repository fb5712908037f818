"""Framing of the line protocol, for both of its ends: lines, counted runs of bytes, words and fields.

What goes in are the reads of a transport, cut wherever the network cut them; what comes out are lines
and pieces of payload. Nothing here knows a command.

A line is UTF-8 and ends with LF or CRLF. Words in it are divided by spaces. A word that would contain a
space, a quotation mark, a percent sign or a control character has it percent-encoded. A field is
`name=word`, or `name="a sentence"`: the same encoding, but spaces stay. Unknown fields are skipped by
whoever reads them, so that more can be added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from chunkfarm.errors import InvalidRequest, LimitExceeded

LINE_BYTES_MAX = 16 * 1024
"""The longest line without its end: room for the longest name, percent-encoded, or 250 digests. As long as
what HTTP servers take for one header, and little enough to be held for each connection."""
CUT_BYTES = 4 * 1024
"""Lines of so many bytes are cut at a time: enough to be cheap, and little to cut again behind a payload."""

_UNSAFE_IN_WORD = re.compile('[\x00-\x20\x7f-\x9f"%\u2028\u2029]')
_UNSAFE_IN_SENTENCE = re.compile('[\x00-\x1f\x7f-\x9f"%\u2028\u2029]')
_UNSAFE_IN_VALUE = re.compile("[\x00-\x1f\x7f-\x9f%\u2028\u2029\udc80-\udcff]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_FIELD = re.compile(r' *([a-z_]+)=(?:"([^"]*)"|([^ ]*))')
_BARE = re.compile(r" *([^ ]+)")


class LineTooLong(LimitExceeded):
    """A line has passed the limit, and where the next one begins is not known."""


class LineBuffer:
    """What has been read and not yet been taken.

    The position moves and the bytes stay, so that taking all lines of one read costs time in proportion to
    that read: cutting each line off the front would make one large read quadratic. Lines are cut some at a
    time, because one look at many is several times cheaper than many looks.
    """

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._line_bytes_max = line_bytes_max
        self._bytes = b""
        self._position = 0
        """Up to where the bytes are taken or cut."""
        self._searched = 0
        """Up to where there is no end of a line; never before the position."""
        self._cut: list[bytes] = []
        """Lines before the position that are not taken yet, the last one first."""
        self._end_bytes = 1
        """How many bytes end each of them."""

    def __len__(self) -> int:
        """How many bytes wait."""
        return len(self._bytes) - self._position + self._cut_bytes()

    def _cut_bytes(self) -> int:
        return sum(map(len, self._cut)) + self._end_bytes * len(self._cut)

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._put_back()
        if self._position == len(self._bytes):
            self._bytes = data
            self._searched = 0
        else:
            self._bytes = self._bytes[self._position :] + data
            self._searched -= self._position
        self._position = 0

    def line(self) -> bytes | None:
        """Take the next line without its end, or None if it is not complete yet; raises `LineTooLong`."""
        if self._cut:
            return self._cut.pop()
        end = self._bytes.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._bytes)
            if len(self) > self._line_bytes_max + 1:
                raise LineTooLong(f"a line has at most {self._line_bytes_max} bytes")
            return None
        start, self._position, self._searched = self._position, end + 1, end + 1
        if end > start and self._bytes[end - 1] == 0x0D:
            end -= 1
        if end - start > self._line_bytes_max:
            raise LineTooLong(f"a line has at most {self._line_bytes_max} bytes")
        self._cut_some()
        return self._bytes[start:end]

    def _cut_some(self) -> None:
        """Cut the lines that follow, if there are several and all end alike."""
        start = self._position
        last = self._bytes.rfind(b"\n", start, start + min(CUT_BYTES, self._line_bytes_max))
        if last < 0:
            return
        some = self._bytes[start:last]
        if self._bytes[last - 1] == 0x0D:
            lines, end_bytes = some[:-1].split(b"\r\n"), 2
            alike = len(lines) > some.count(b"\n")
        else:
            lines, end_bytes = some.split(b"\n"), 1
            alike = b"\r" not in some
        if alike:
            lines.reverse()
            self._cut, self._end_bytes = lines, end_bytes
            self._position = self._searched = last + 1

    def _put_back(self) -> None:
        """Forget what was cut: more bytes follow it, or it is payload."""
        if self._cut:
            self._position -= self._cut_bytes()
            self._searched = self._position
            self._cut = []

    def take(self, limit: int) -> bytes | memoryview:
        """Take up to `limit` bytes of payload; empty if none wait."""
        self._put_back()
        start = self._position
        end = min(len(self._bytes), start + limit)
        self._position = self._searched = end
        if start == 0 and end == len(self._bytes):
            return self._bytes
        return memoryview(self._bytes)[start:end]


def text_of(line: bytes) -> str:
    """A line as text; raises `InvalidRequest` for what is not UTF-8 and for control characters."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("a line is UTF-8 text") from None
    if _CONTROL.search(text):
        raise InvalidRequest("a line has no control characters")
    return text


def words(text: str) -> list[str]:
    """The words of a line, still encoded. People may type several spaces."""
    return [word for word in text.split(" ") if word]


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def quote(text: str) -> str:
    """`text` as one word."""
    return _UNSAFE_IN_WORD.sub(_escape, text)


def unquote(word: str) -> str:
    """The reverse of `quote`; raises `InvalidRequest` for a stray percent sign or what is not UTF-8."""
    if "%" not in word:
        return word
    if _BAD_ESCAPE.search(word):
        raise InvalidRequest("a percent sign is followed by two hexadecimal digits (and is itself written %25)")
    try:
        return unquote_to_bytes(word).decode()
    except UnicodeDecodeError:
        raise InvalidRequest("percent-encoded bytes must be UTF-8") from None


def quote_sentence(text: str) -> str:
    """`text` as what stands between quotation marks."""
    return _UNSAFE_IN_SENTENCE.sub(_escape, text)


def quote_value(value: bytes) -> str:
    """Any bytes as the rest of a line: valid UTF-8 stays readable, the rest is percent-encoded."""
    return _UNSAFE_IN_VALUE.sub(_escape, value.decode("utf-8", "surrogateescape"))


def unquote_value(text: str) -> bytes:
    """The reverse of `quote_value`."""
    return unquote_to_bytes(text) if "%" in text else text.encode()


class Sentence(str):
    """A field's value that is written between quotation marks."""

    __slots__ = ()


def field(name: str, value: object) -> str:
    """`name=value`."""
    if isinstance(value, Sentence):
        return f'{name}="{quote_sentence(value)}"'
    return f"{name}={quote(str(value))}"


def format_fields(pairs: Iterable[tuple[str, object]]) -> str:
    """Fields, divided by spaces."""
    return " ".join(field(name, value) for name, value in pairs)


def parse_fields(text: str) -> tuple[list[str], dict[str, str]]:
    """The bare words and the fields of a line. A field named `value` takes the rest of the line, still encoded.

    Raises `InvalidRequest` for a field that cannot be decoded.
    """
    bare: list[str] = []
    fields: dict[str, str] = {}
    position, end = 0, len(text.rstrip(" "))
    while position < end:
        match = _FIELD.match(text, position)
        if match is not None and match[1] == "value":
            fields["value"] = text[match.start(1) + len("value=") :]
            return bare, fields
        if match is not None:
            fields[match[1]] = unquote(match[2] if match[2] is not None else match[3])
        else:
            match = _BARE.match(text, position)
            assert match is not None
            bare.append(unquote(match[1]))
        position = match.end()
    return bare, fields
