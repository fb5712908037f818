from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import InvalidRequest
from chunkfarm.wire.lines import (
    LINE_BYTES_MAX,
    LineBuffer,
    LineTooLong,
    Sentence,
    format_fields,
    parse_fields,
    quote,
    quote_value,
    text_of,
    unquote,
    unquote_value,
    words,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces, cut at the given places."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def all_lines(pieces: list[bytes]) -> list[bytes]:
    """What a buffer makes of these reads."""
    buffer = LineBuffer()
    found = []
    for piece in pieces:
        buffer.feed(piece)
        while (line := buffer.line()) is not None:
            found.append(line)
    return found


class LineBufferTests(SynchronousTestCase):
    @given(
        st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line and not line.endswith(b"\r"))),
        st.lists(st.integers(min_value=0)),
        st.lists(st.booleans(), min_size=1),
    )
    def test_cuts(self, lines: list[bytes], places: list[int], ends: list[bool]) -> None:
        """Wherever the network cuts, the lines are the same, and LF and CRLF end them alike."""
        data = b"".join(line + (b"\r\n" if ends[i % len(ends)] else b"\n") for i, line in enumerate(lines))
        assert all_lines(cut(data, places)) == lines

    @given(st.binary(min_size=1, max_size=200), st.lists(st.integers(min_value=0)))
    def test_payload(self, payload: bytes, places: list[int]) -> None:
        """A counted run of any bytes comes out whole, and the line after it is found."""
        data = b"PUT\n" + payload + b"PING\n"
        buffer = LineBuffer()
        lines: list[bytes] = []
        taken = b""
        for piece in cut(data, places):
            buffer.feed(piece)
            if not lines:
                if (line := buffer.line()) is None:
                    continue
                lines.append(line)
            taken += bytes(buffer.take(len(payload) - len(taken)))
            if len(taken) == len(payload) and (line := buffer.line()) is not None:
                lines.append(line)
        assert lines == [b"PUT", b"PING"]
        assert taken == payload
        assert len(buffer) == 0

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([b"", b"A", b"B C", b"D\r"]), st.sampled_from([b"\n", b"\r\n"]), st.binary(max_size=5)
            )
        ),
        st.lists(st.integers(min_value=0)),
        st.integers(min_value=1, max_value=5),
    )
    def test_lines_and_payloads(self, parts: list[tuple[bytes, bytes, bytes]], places: list[int], greed: int) -> None:
        """Lines and payloads in any order come out as they went in, also when more is read between two of them."""
        reads = cut(b"".join(line + end + payload for line, end, payload in parts), places)
        buffer = LineBuffer()
        fed = 0
        for wanted, end, payload in parts:
            while (line := buffer.line()) is None:
                buffer.feed(reads.pop(0))
            assert line == (wanted + end)[:-1].removesuffix(b"\r")
            taken = b""
            while len(taken) < len(payload):
                piece = bytes(buffer.take(min(greed, len(payload) - len(taken))))
                if not piece or fed % 2:
                    buffer.feed(reads.pop(0) if reads else b"")
                fed += 1
                taken += piece
            assert taken == payload
            if reads and fed % 3 == 0:
                buffer.feed(reads.pop(0))
        assert len(buffer) + sum(map(len, reads)) == 0

    def test_longest_line(self) -> None:
        """A line of exactly the limit passes, with either end."""
        longest = b"x" * LINE_BYTES_MAX
        assert all_lines([longest + b"\n" + longest, b"\r", b"\n"]) == [longest, longest]

    def test_line_too_long(self) -> None:
        """A longer line is refused, whether its end has come or not."""
        for data in (b"x" * (LINE_BYTES_MAX + 1) + b"\n", b"x" * (LINE_BYTES_MAX + 2)):
            buffer = LineBuffer()
            buffer.feed(data)
            self.assertRaises(LineTooLong, buffer.line)

    def test_whole_read_is_not_copied(self) -> None:
        """A read that is all payload is passed on as it came."""
        buffer = LineBuffer()
        data = b"x" * 1000
        buffer.feed(data)
        assert buffer.take(5000) is data


class WordTests(SynchronousTestCase):
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_round_trip(self, text: str) -> None:
        """Any text survives as one word."""
        word = quote(text)
        assert " " not in word and '"' not in word
        assert text_of(word.encode()) == word
        assert unquote(word) == text

    @given(st.binary())
    def test_value_round_trip(self, value: bytes) -> None:
        """Any bytes survive as the rest of a line."""
        text = quote_value(value)
        assert text_of(text.encode()) == text
        assert unquote_value(text) == value

    @given(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.text(st.characters(exclude_categories=["Cs"]))
    )
    def test_fields_round_trip(self, texts: list[str], last: str) -> None:
        """Fields survive, whether they are written as words or as sentences."""
        names = [f"f{'x' * position}" for position in range(len(texts))]
        pairs = [
            (name, Sentence(text) if position % 2 else text)
            for position, (name, text) in enumerate(zip(names, texts, strict=True))
        ]
        line = f"KIND {format_fields(pairs)} value={quote_value(last.encode())}"
        bare, fields = parse_fields(line)
        assert bare == ["KIND"]
        assert unquote_value(fields.pop("value")).decode() == last
        assert fields == dict(zip(names, texts, strict=True))

    def test_readable(self) -> None:
        """Letters of every language stay as they are."""
        assert quote("home/résumé 100%.txt") == "home/résumé%20100%25.txt"

    def test_bad_words(self) -> None:
        """A stray percent sign and bytes that are no text are refused."""
        for word in ("100%", "%2", "%zz", "%ff"):
            self.assertRaises(InvalidRequest, unquote, word)

    def test_bad_lines(self) -> None:
        """Control characters and what is not UTF-8 are refused."""
        for line in (b"a\x00b", b"a\tb", b"a\rb", b"\xff", "\x85".encode()):
            self.assertRaises(InvalidRequest, text_of, line)

    def test_spaces(self) -> None:
        """People may type more than one space."""
        assert words("  LIST  a ") == ["LIST", "a"]
