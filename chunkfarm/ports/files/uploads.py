"""How much of files on their way in all connections together may keep in memory. Pure.

Each upload keeps up to four chunks, which is nothing for a few and too much for thousands. What counts is what has
come, not what was announced: whoever announces much and sends little takes nobody's room. Past the limit the oldest
upload alone is read on. It ends, or is ended for being slow, so that there is always one that goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, field

from chunkfarm.model import MIB

LOOK_BYTES = 8 * MIB
"""How much may come until all are looked at again."""


class Held(Protocol):
    """An upload, as far as this is concerned."""

    @property
    def held(self) -> int:
        """Bytes of it in memory."""


class Pausable(Protocol):
    """What its bytes come from."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


@define(eq=False)
class Flow:
    """The bytes of one upload: they come while neither it nor the memory of all has had enough."""

    _body: Pausable
    upload: Held | None = field(default=None, init=False)
    _full: bool = field(default=False, init=False)
    _waits: bool = field(default=False, init=False)

    def pause(self) -> None:
        """The upload has enough for now."""
        self._become(True, self._waits)

    def resume(self) -> None:
        """It takes more."""
        self._become(False, self._waits)

    def wait(self, wait: bool) -> None:
        """Whether there is no memory for more of it."""
        self._become(self._full, wait)

    def _become(self, full: bool, waits: bool) -> None:
        before, now = self._full or self._waits, full or waits
        self._full, self._waits = full, waits
        if now != before:
            (self._body.pause if now else self._body.resume)()


@define(eq=False)
class Uploads:
    """All uploads of the file port. `bytes_max` gives the limit, `limited` is told when it is reached."""

    _bytes_max: Callable[[], int]
    _limited: Callable[[], None]
    _running: dict[Flow, None] = field(factory=dict, init=False)
    """The oldest first."""
    _came: int = field(default=0, init=False)
    """Bytes since the last look."""
    _crowded: bool = field(default=False, init=False)

    def begin(self, body: Pausable) -> Flow:
        """An upload begins; `flow.upload` is to be set, and it is to be ended."""
        flow = Flow(body)
        self._running[flow] = None
        return flow

    def end(self, flow: Flow) -> None:
        """It is over."""
        del self._running[flow]
        if self._crowded:
            self.look()

    def came(self, count: int) -> None:
        """So many bytes have come."""
        self._came += count
        if self._came >= LOOK_BYTES:
            self.look()

    def look(self) -> None:
        """Decide who is read on; to be called now and then too, since memory is given back without a word."""
        self._came = 0
        held = sum(flow.upload.held for flow in self._running if flow.upload is not None)
        crowded = held > self._bytes_max()
        if crowded and not self._crowded:
            self._limited()
        self._crowded = crowded
        for place, flow in enumerate([flow for flow in self._running if flow.upload is not None]):
            flow.wait(crowded and place > 0)
