"""AMP as both ends of a link between servers speak it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

BOX_KEYS_MAX = 32
"""Keys of one box: no command has a third of that, and a box that never ends would be kept as a whole in memory."""

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


class Boxes(amp.AMP):
    """AMP that says nothing when links come and go, and does not let a peer's malformed box raise here."""

    _log = Logger()

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
        amp.BinaryBoxProtocol.makeConnection(self, transport)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None

    def dataReceived(self, data: bytes) -> None:
        """Take bytes; those that are no AMP are the peer's fault and end only this link."""
        try:
            super().dataReceived(data)
        except Exception as error:
            self._log.info("A peer sent what is not AMP ({error}); its link is closed.", error=type(error).__name__)
            self.abort()

    def proto_value(self, string: bytes) -> str:
        """A value of the box that is coming in; raises what ends the link if the box has too many."""
        box = self._currentBox
        if box is not None and len(box) >= BOX_KEYS_MAX:
            raise ValueError(f"a box has at most {BOX_KEYS_MAX} keys")
        return cast(str, super().proto_value(string))

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
            self._log.info("A peer's link is closed: {reason}.", reason=failure.value.description)
        else:
            self._log.failure("while answering a peer; its link is closed", failure)
        self.abort()

    def abort(self) -> None:
        """End the link at once; harmless when it has ended."""
        if self.transport is not None:
            cast(Any, self.transport).abortConnection()
