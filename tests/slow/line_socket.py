"""A client of the line protocol that blocks: nothing but the standard library, so that a fault of ours shows."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from attrs import field, frozen

_FIELD = re.compile(r'([a-z_]+)=(?:"([^"]*)"|([^ ]*))')


class Refused(Exception):
    """The server answered ERR."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        _, self.code, self.sentence = (line + "  ").split(" ", 2)


def fields_of(line: str) -> dict[str, str]:
    """The `name=word` and `name="a sentence"` of a line."""
    return {name: unquote(sentence or word) for name, sentence, word in _FIELD.findall(line)}


@frozen
class Reply:
    """One answer: its first line, the rows of its block, its counted bytes."""

    line: str
    rows: tuple[str, ...] = ()
    data: bytes = b""

    @property
    def fields(self) -> dict[str, str]:
        return fields_of(self.line)

    @property
    def parsed(self) -> list[dict[str, str]]:
        return [fields_of(row) for row in self.rows]


@frozen
class Hello:
    """What a server says of itself to anybody."""

    fields: dict[str, str]
    waits: dict[str, dict[str, str]] = field(factory=dict)
    """By address: `error`, `since` and `tries`."""
    cures: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        return self.fields["state"]


class LineSocket:
    """One unencrypted link from this machine."""

    def __init__(self, port: int, timeout: float = 10.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._file = self.socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> str:
        """The next line; empty at the end of the link."""
        return self._file.readline().decode().rstrip("\r\n")

    def rest(self) -> bytes:
        """Everything until the end of the link."""
        return self._file.read()

    def reply(self) -> Reply:
        """The next answer; raises `Refused` for an ERR, and `ConnectionError` at the end of the link."""
        line = self.line()
        word, _, rest = line.partition(" ")
        if not word:
            raise ConnectionResetError("the link ended before an answer")
        if word == "ERR":
            raise Refused(line)
        if word == "OK":
            return Reply(line)
        count = int(rest.split(" ")[0])
        if word == "DATA":
            return Reply(line, data=self._file.read(count))
        rows = tuple(self.line() for _ in range(count))
        end = self.line()
        assert end == "END", (line, rows, end)
        return Reply(line, rows)

    def ask(self, line: str, payload: bytes = b"") -> Reply:
        """One command and its answer; raises as `reply` does."""
        self.send(line.encode() + b"\n" + payload)
        return self.reply()

    def hello(self) -> Hello:
        said = self.ask("HELLO").fields
        if said["state"] != "waiting":
            return Hello(said)
        waits: dict[str, dict[str, str]] = {}
        cures: list[str] = []
        for row in self.reply().rows:
            word, _, rest = row.partition(" ")
            if word == "PEER":
                address, _, details = rest.partition(" ")
                waits[unquote(address)] = fields_of(details)
            else:
                assert word == "CURE", row
                cures.append(unquote(rest))
        return Hello(said, waits, tuple(cures))


@contextmanager
def link_to(port: int, key: tuple[str, str] | None = None, timeout: float = 10.0) -> Iterator[LineSocket]:
    """A link, after AUTH if a key is given."""
    link = LineSocket(port, timeout)
    try:
        if key is not None:
            link.ask(f"AUTH {key[0]} {key[1]}")
        yield link
    finally:
        link.close()
