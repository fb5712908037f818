"""AMP as both ends of a link between servers speak it.

Boxes are taken apart here, and not by Twisted: a message of the consensus comes as the same box every time, in
which nothing but the payload differs, and several of them go to and fro for every transaction.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Protocol, cast

from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

BOX_KEYS_MAX = 32
"""Keys of one box: no command has a third of that, and a box that never ends would be kept as a whole in memory."""
KEY_BYTES_MAX = 255
"""The longest key of a box, says AMP."""
REASON_MAX = 200
"""Characters of the reason for which a link is closed that go into the log: a peer may have made them up."""
LINE = b"line"
"""Key of every box between servers: the line of the farm's history that its sender belongs to (`table.lines`)."""


class Lines(Protocol):
    """What a link asks about the lines of the farm's history."""

    @property
    def said(self) -> str | None:
        """The line to say in every box; empty for the first one, None for a server that has no history yet."""

    def met(self, server_id: str, line: str) -> bool:
        """A server of this farm has said its line; returns whether it is this server's too."""


class NoLines:
    """Says nothing of lines, and finds none strange."""

    said = None

    def met(self, server_id: str, line: str) -> bool:
        return True


def line_in(box: amp.AmpBox) -> str | None:
    """Take the line out of a box; None if it says none, as a server of an earlier version does not."""
    line = box.pop(LINE, None)
    return None if line is None else line.decode("ascii", "replace")


_LENGTH = struct.Struct("!H")
_END = b"\x00\x00"
_MESSAGE = b"\x00\x08_command\x00\x09Consensus"
_ASK = b"\x00\x04_ask"
_ANSWER = b"\x00\x07_answer"
_LINE = b"\x00\x04line"
_PAYLOAD = b"\x00\x07payload"
"""What the box of a message of the consensus is made of, which wants no answer; keys come in AMP's order."""
_MESSAGE_KEYS = {amp.COMMAND, b"payload"}


def message_box(payload: bytes, line: str | None) -> bytes:
    """What `links.commands.ConsensusOneWay` is on the wire."""
    said = () if line is None else (_LINE, _LENGTH.pack(len(line)), line.encode())
    return b"".join((_MESSAGE, *said, _PAYLOAD, _LENGTH.pack(len(payload)), payload, _END))


def _value(data: bytes, key: bytes, at: int) -> tuple[int, int] | None:
    """Where the value begins and ends whose key stands at `at`; None if it is another key, or not all there."""
    begin = at + len(key) + _LENGTH.size
    if begin > len(data) or not data.startswith(key, at):
        return None
    end = begin + _LENGTH.unpack_from(data, begin - _LENGTH.size)[0]
    return (begin, end) if end + len(_END) <= len(data) else None


def asked(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the tag of a question begins and ends whose box begins at `at`; None if there is none, or not all."""
    return _value(data, _ASK, at)


def question(data: bytes, at: int, command: bytes, argument: bytes) -> tuple[bytes | None, bytes, int] | None:
    """A call of a command with one argument, from the end `at` of its tag on: line and argument, and where it ends.

    `command` and `argument` are as on the wire (see `named`). None if it is another box, or not all there.
    """
    if not data.startswith(command, at):
        return None
    line = _value(data, _LINE, at + len(command))
    value = _value(data, argument, line[1] if line else at + len(command))
    if value is None or not data.startswith(_END, value[1]):
        return None
    return data[slice(*line)] if line else None, data[slice(*value)], value[1] + len(_END)


def named(key: bytes, value: bytes = b"") -> bytes:
    """A key, with its value if that is always the same."""
    return b"".join(_LENGTH.pack(len(one)) + one for one in (key, value) if one)


def answer_box(tag: bytes, key: bytes, value: bytes, line: str | None) -> bytes:
    """The answer with one value to the question with that tag. `key`, as `named`, comes before `line`."""
    said = () if line is None else (_LINE, _LENGTH.pack(len(line)), line.encode())
    return b"".join((_ANSWER, _LENGTH.pack(len(tag)), tag, key, _LENGTH.pack(len(value)), value, *said, _END))


class BoxTooLong(ValueError):
    """An unfinished box has more bytes than this side takes."""


class Boxes(amp.AMP):
    """AMP that says nothing when links come and go, and does not let a peer's malformed box raise here."""

    _log = Logger()
    _unread = b""
    """Where the next box begins, or the next key or value of this one."""
    _box: amp.AmpBox | None = None
    """The box that is coming in."""
    _key = b""
    """Its key whose value comes next."""

    _over = False
    """This side has ended the link; what has come and is not read yet is nothing any more."""
    _box_bytes = 0
    """Bytes of that box so far."""
    box_bytes_max: int | None = None
    """More than that and the link ends; None: what AMP itself allows, some two megabytes."""

    _write_message: Callable[[bytes], None]

    def __init__(self, lines: Lines | None = None) -> None:
        super().__init__()
        self._lines = lines or NoLines()

    def sendBox(self, box: amp.AmpBox) -> None:
        """Send a request or an answer, with the line that this server belongs to."""
        if (line := self._lines.said) is not None:
            box[LINE] = line.encode()
        super().sendBox(box)

    def makeConnection(self, transport: Any) -> None:
        # AMP's own version logs each link at its beginning and end; a farm's links come and go all day.
        # The core collects what it has to say, so that nothing is gained by waiting for more.
        self._write_message = getattr(transport, "write_now", transport.write)
        amp.BinaryBoxProtocol.makeConnection(self, transport)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None
        del self._write_message

    def dataReceived(self, data: bytes) -> None:
        """Take bytes; those that are no AMP are the peer's fault and end only this link."""
        try:
            self._take(self._unread + data if self._unread else data)
        except Exception as error:
            if isinstance(error, BoxTooLong):
                self.box_too_long()
            self._log.info("A peer sent what is not AMP ({error}); its link is closed.", error=type(error).__name__)
            self.abort()

    def box_too_long(self) -> None:
        """The link is about to end, because of a box that has more than `box_bytes_max` bytes."""

    def _take(self, data: bytes) -> None:
        """Pass on each whole box in `data`, and keep what is left."""
        at = 0
        self._unread = b""
        while self.transport is not None and not self._over:
            if self._box is None and data.startswith(_MESSAGE, at):
                after = self._take_message(data, at + len(_MESSAGE))
                if after:
                    at = after
                    continue
            elif self._box is None and data.startswith(_ASK, at):
                after = self._take_question(data, at)
                if after:
                    at = after
                    continue
            begin = at + _LENGTH.size
            if begin > len(data):
                break
            end = begin + _LENGTH.unpack_from(data, at)[0]
            if not self._key and end - begin > KEY_BYTES_MAX:
                raise ValueError(f"a key has at most {KEY_BYTES_MAX} bytes")
            if end > len(data):
                break
            at = end
            self._string(data[begin:end])
        if self._over:
            return
        self._unread = data[at:]
        if self.box_bytes_max is not None and self._box_bytes + len(self._unread) > self.box_bytes_max:
            raise BoxTooLong(f"a box has at most {self.box_bytes_max} bytes here")

    def _take_message(self, data: bytes, at: int) -> int:
        """Take a message of the consensus, after its command; where it ends, or 0 if it is not one, or not whole."""
        line = _value(data, _LINE, at)
        payload = _value(data, _PAYLOAD, line[1] if line else at)
        if payload is None or not data.startswith(_END, payload[1]):
            return 0
        self.message_received(data[slice(*payload)], data[slice(*line)] if line else None)
        return payload[1] + len(_END)

    def _take_question(self, data: bytes, at: int) -> int:
        """Answer the question that begins at `at` at once; where it ends, or 0 to leave it to AMP."""
        return 0

    def _string(self, string: bytes) -> None:
        """Take a key or a value; an empty key ends the box."""
        box = amp.AmpBox() if self._box is None else self._box
        self._box_bytes += _LENGTH.size + len(string)
        if self._key:
            if len(box) >= BOX_KEYS_MAX:
                raise ValueError(f"a box has at most {BOX_KEYS_MAX} keys")
            box[self._key] = string
            self._box, self._key = box, b""
        elif string:
            self._box, self._key = box, string
        elif box.keys() - {LINE} == _MESSAGE_KEYS and box[amp.COMMAND] == b"Consensus":
            # What a network has cut up means the same as what came whole.
            self._box, self._box_bytes = None, 0
            self.message_received(box[b"payload"], box.get(LINE))
        else:
            self._box, self._box_bytes = None, 0
            self.ampBoxReceived(box)

    def message_received(self, payload: bytes, line: bytes | None) -> None:
        """A message of the consensus has come, as `message_box` makes it."""
        box = amp.AmpBox({amp.COMMAND: b"Consensus", b"payload": payload})
        if line is not None:
            box[LINE] = line
        self.ampBoxReceived(box)

    def send_message(self, payload: bytes) -> None:
        """Send a message of the consensus; it may be lost with the link."""
        if self.transport is not None:
            self._write_message(message_box(payload, self._lines.said))

    def locateResponder(self, name: bytes) -> Callable[..., Any] | None:
        """What answers a command of that name, or None."""
        # AMP answers StartTLS by itself, to anybody; a link here is encrypted before its first box, and once.
        if name == amp.StartTLS.commandName:
            return None
        return cast("Callable[..., Any] | None", super().locateResponder(name))

    def unhandledError(self, failure: Failure) -> None:
        """An error that cannot be told to the peer, such as that of a command without an answer, ends the link."""
        if isinstance(failure.value, amp.RemoteAmpError):
            # The peer's fault, however often it asks: no traceback for it.
            # And no more of what it has made up than tells what it was.
            self._log.info("A peer's link is closed: {reason}.", reason=str(failure.value.description)[:REASON_MAX])
        else:
            self._log.failure("while answering a peer; its link is closed", failure)
        self.abort()

    def abort(self) -> None:
        """End the link at once; harmless when it has ended."""
        self._over = True
        if self.transport is not None:
            cast(Any, self.transport).abortConnection()
