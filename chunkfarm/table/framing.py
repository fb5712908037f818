"""Numbers, texts and byte strings as bytes and back: what the codec's payloads are made of.

Numbers are fixed-width and big-endian; texts and byte strings carry their length. Whatever is not there, or is
too large for SQLite's signed 64 bits, is a `CodecError`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

NUMBER_MAX = 2**63 - 1

BYTE = struct.Struct("!B")
SHORT = struct.Struct("!H")
LENGTH = struct.Struct("!I")
NUMBER = struct.Struct("!Q")

T = TypeVar("T")


class CodecError(ValueError):
    """The bytes are not what they should be."""


class Reader:
    """Takes values off the front of a byte string; what is not there is a `CodecError`."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._at = at

    def unpack(self, shape: struct.Struct) -> tuple[int, ...]:
        try:
            values = shape.unpack_from(self._data, self._at)
        except struct.error as error:
            raise CodecError("the bytes end too early") from error
        self._at += shape.size
        if max(values) > NUMBER_MAX:
            raise CodecError("a number is too large")
        return values

    def byte(self) -> int:
        return self.unpack(BYTE)[0]

    def flag(self) -> bool:
        value = self.byte()
        if value > 1:
            raise CodecError(f"{value} is neither yes nor no")
        return value == 1

    def number(self) -> int:
        return self.unpack(NUMBER)[0]

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise CodecError("the bytes end too early")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def data(self) -> bytes:
        return self.take(self.unpack(LENGTH)[0])

    def text(self) -> str:
        try:
            return self.take(self.unpack(SHORT)[0]).decode()
        except UnicodeDecodeError as error:
            raise CodecError("a text is not UTF-8") from error

    def many(self, one: Callable[[], T], smallest: int) -> tuple[T, ...]:
        """A counted run; `smallest` bytes an item bound the count before anything is built."""
        count = self.unpack(LENGTH)[0]
        if count * smallest > len(self._data) - self._at:
            raise CodecError("the bytes end too early")
        return tuple(one() for _ in range(count))

    @property
    def exhausted(self) -> bool:
        return self._at == len(self._data)

    def end(self) -> None:
        if not self.exhausted:
            raise CodecError("there are bytes behind the end")

    def tag(self, expected: int) -> None:
        tag = self.byte()
        if tag != expected:
            raise CodecError(f"the payload is of kind {tag}, not {expected}")


def put_data(value: bytes) -> bytes:
    return LENGTH.pack(len(value)) + value


def put_text(value: str) -> bytes:
    encoded = value.encode()
    return SHORT.pack(len(encoded)) + encoded


def put_many(items: Iterable[bytes]) -> bytes:
    encoded = list(items)
    return LENGTH.pack(len(encoded)) + b"".join(encoded)
