"""New inputs out of old ones: bits, runs, pieces, words of a dictionary, numbers and lengths. All from one random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

RUNS = (1, 2, 3, 7, 16, 33, 100, 256, 1000, 5000, 20_000)
"""How often something is repeated: around the limits that lines, heads and numbers have."""
NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 64, 127, 128, 255, 256, 1000, 1024, 4096, 65535, 65536, 2**31, 2**32)
LARGE = (2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**18 - 1, 10**18, 10**40)
BYTES = b"\x00\x01\x09\x0a\x0b\x0d\x1b\x20\x22\x23\x25\x2d\x2e\x2f\x3a\x3b\x3d\x5b\x5c\x7e\x7f\x80\xc2\xed\xff"
"""Bytes that mean something somewhere, or are no text."""

Change = Callable[["Mutations", bytearray], None]


class Mutations:
    """Changes inputs of up to `longest` bytes; `separator` divides one into pieces that can be moved about."""

    def __init__(self, random: Random, tokens: Sequence[bytes], separator: bytes, longest: int) -> None:
        self.random = random
        self._tokens = tokens
        self._separator = separator
        self._longest = longest

    def of(self, data: bytes, other: bytes) -> bytes:
        """`data`, changed in one or in several places; `other` is another input that may lend some of its own."""
        for _ in range(self.random.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            if self.random.random() < 0.1:
                data = self._spliced(data, other)
            else:
                changed = bytearray(data)
                self.random.choice(_CHANGES)(self, changed)
                data = bytes(changed)
        return data[: self._longest]

    def of_word(self, word: bytes) -> bytes:
        """A word, changed in one place: often by one of its bytes that comes many times."""
        changed = bytearray(word)
        if word and self.random.random() < 0.4:
            at = self.random.randrange(len(word))
            changed[at : at + 1] = word[at : at + 1] * self.random.choice(RUNS)
        else:
            self.random.choice(_CHANGES)(self, changed)
        return bytes(changed)

    def token(self) -> bytes:
        """A word of the dictionary."""
        return self.random.choice(self._tokens)

    def number(self) -> int:
        """A number that may be a limit, or beside one."""
        return max(0, self.random.choice(NUMBERS + LARGE) + self.random.choice((-1, 0, 0, 0, 1)))

    def _spliced(self, data: bytes, other: bytes) -> bytes:
        if self.random.random() < 0.5:
            mine, theirs = data.split(self._separator), other.split(self._separator)
            at = self.random.randrange(len(theirs))
            some = theirs[at : at + self.random.randint(1, 4)]
            into = self.random.randint(0, len(mine))
            return self._separator.join(mine[:into] + some + mine[into:])
        return data[: self._place(data)] + other[self._place(other) :]

    def _place(self, data: bytes | bytearray) -> int:
        return self.random.randint(0, len(data))

    def _span(self, data: bytes | bytearray, most: int = 64) -> tuple[int, int]:
        start = self._place(data)
        return start, min(len(data), start + self.random.randint(1, most))

    def flip(self, data: bytearray) -> None:
        """One bit."""
        if data:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)

    def set_byte(self, data: bytearray) -> None:
        """One byte."""
        if data:
            data[self.random.randrange(len(data))] = self.random.choice(BYTES)

    def insert_byte(self, data: bytearray) -> None:
        data.insert(self._place(data), self.random.choice(BYTES))

    def delete(self, data: bytearray) -> None:
        start, end = self._span(data)
        del data[start:end]

    def duplicate(self, data: bytearray) -> None:
        start, end = self._span(data)
        place = self._place(data)
        data[place:place] = data[start:end] * self.random.choice((1, 1, 1, 2, 3))

    def stretch(self, data: bytearray) -> None:
        """A short run, many times."""
        start, end = self._span(data, 3)
        if start < end:
            times = min(self.random.choice(RUNS), self._longest // (end - start))
            data[start:end] = bytes(data[start:end]) * times

    def insert_token(self, data: bytearray) -> None:
        place = self._place(data)
        data[place:place] = self.token()

    def replace_by_token(self, data: bytearray) -> None:
        start, end = self._span(data, 16)
        data[start:end] = self.token()

    def replace_word(self, data: bytearray) -> None:
        """A word between spaces by one of the dictionary, or by a number."""
        words = bytes(data).split(b" ")
        at = self.random.randrange(len(words))
        words[at] = self.token() if self.random.random() < 0.6 else b"%d" % self.number()
        data[:] = b" ".join(words)

    def replace_digits(self, data: bytearray) -> None:
        """A decimal number by another."""
        places = [at for at, byte in enumerate(data) if 0x30 <= byte <= 0x39]
        if places:
            start = end = self.random.choice(places)
            while end < len(data) and 0x30 <= data[end] <= 0x39:
                end += 1
            there = int(bytes(data[start:end])) if end - start < 1000 else 0
            data[start:end] = b"%d" % self.random.choice((self.number(), there + 1, max(0, there - 1)))

    def set_length(self, data: bytearray) -> None:
        """A number of two, four or eight bytes."""
        size = self.random.choice((2, 2, 4, 8))
        if len(data) >= size:
            start = self.random.randrange(len(data) - size + 1)
            data[start : start + size] = (self.number() % 256**size).to_bytes(size, "big")

    def move_piece(self, data: bytearray) -> None:
        """Pieces are exchanged, left out, or come twice."""
        pieces = bytes(data).split(self._separator)
        one, other = self.random.randrange(len(pieces)), self.random.randrange(len(pieces))
        what = self.random.randrange(3)
        if what == 0:
            pieces[one], pieces[other] = pieces[other], pieces[one]
        elif what == 1:
            del pieces[one]
        else:
            pieces.insert(other, pieces[one])
        data[:] = self._separator.join(pieces)

    def set_first(self, data: bytearray) -> None:
        """The first byte says under which circumstances an input arrives."""
        data[:1] = bytes((self.random.randrange(32),))


_CHANGES: tuple[Change, ...] = (
    Mutations.flip,
    Mutations.set_byte,
    Mutations.insert_byte,
    Mutations.delete,
    Mutations.duplicate,
    Mutations.stretch,
    Mutations.insert_token,
    Mutations.insert_token,
    Mutations.replace_by_token,
    Mutations.replace_word,
    Mutations.replace_word,
    Mutations.replace_digits,
    Mutations.set_length,
    Mutations.move_piece,
    Mutations.move_piece,
    Mutations.set_first,
)
