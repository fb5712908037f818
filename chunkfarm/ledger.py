"""Keeps `config.ini` as the table says: the text of `[farm]` and `[servers]` follows from the table.

Every server does this for the file that it was started with, so that one shared file and one copy a machine
both work. When the generation grows, the first writes at once and the others a moment later, by when a
shared file is mostly done. A file that cannot be written stops nobody: that is said, and tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.config import ConfigError, ConfigFile, Difference, LockHeld, parse_config
from chunkfarm.config_render import differences, row_differences
from chunkfarm.config_text import Document, scan
from chunkfarm.config_values import read_generation
from chunkfarm.table.interface import TableError
from chunkfarm.table.roster import Roster

OTHERS_WAIT_SECONDS = 1.0
"""Servers other than the first write this much later: on a shared file they find it written."""
LOOK_SECONDS = 10.0
"""How often the file is compared with the table. An edit is put back at the second look that sees it, so an
editor that saves in several steps is not disturbed."""
LOCK_RETRY_SECONDS = 0.25
"""A lock is held for as long as a small file takes to be written."""
RETRY_SECONDS_FIRST = 2.0
RETRY_SECONDS_MAX = 60.0
"""A folder that was mounted read-only is noticed within this time after it has become writable."""


@define(eq=False)
class Ledger:
    """Writes `config.ini` from the roster, one write at a time, and watches over the farm's part of it.

    `on_note` is called with one sentence when the file cannot be kept, and with an empty one when it can
    again. `drift` is where the file differed from the table at the last look.
    """

    _log = Logger()

    _file: ConfigFile
    _roster: Roster
    _clock: IReactorTime
    _run_in_thread: RunInThread
    _am_first: Callable[[], bool]
    _on_note: Callable[[str], None] = field(default=lambda _: None)
    _own_id: str = ""
    """The server whose table this is; what it has reached is remembered beside the file."""
    drift: tuple[Difference, ...] = field(default=(), init=False)
    note: str = field(default="", init=False)
    _written: int = field(default=0, init=False)
    """The generation that the file is known to have."""
    _seen: str | None = field(default=None, init=False)
    """The text with a drift that the last look saw."""
    _fine: tuple[object, ...] = field(default=(), init=False)
    """A text that was right, and what it was compared with: that of a thousand servers takes 0.1 s to read."""
    _delay: float = field(default=RETRY_SECONDS_FIRST, init=False)
    _due: IDelayedCall | None = field(default=None, init=False)
    _look_due: IDelayedCall | None = field(default=None, init=False)
    _busy: bool = field(default=False, init=False)
    _waiting_for_idle: list[Deferred[None]] = field(factory=list, init=False)
    _unsubscribe: Callable[[], None] | None = field(default=None, init=False)

    def start(self) -> None:
        """Follow the roster, and look at the file now and then."""
        assert self._unsubscribe is None, "the ledger runs already"
        self._unsubscribe = self._roster.subscribe(self._roster_changed)
        self._look_due = self._clock.callLater(LOOK_SECONDS, self._look_now)
        self._roster_changed()

    def stop(self) -> Deferred[None]:
        """Write no more; fires when a write that has begun is done. May be called at any time, also twice."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        for due in (self._due, self._look_due):
            if due is not None:
                due.cancel()
        self._due = self._look_due = None
        # The write itself is not broken off: it leaves the old file or the new one.
        if not self._busy:
            return succeed(None)
        idle: Deferred[None] = Deferred()
        self._waiting_for_idle.append(idle)
        return idle

    # --- writing ---------------------------------------------------------------------------------------

    @property
    def _stopped(self) -> bool:
        return self._unsubscribe is None

    def _roster_changed(self) -> None:
        if self._roster.generation > self._written and self._due is None and not self._busy:
            self._write_in(0.0 if self._am_first() else OTHERS_WAIT_SECONDS)

    def _write_in(self, seconds: float) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._stopped:
            return
        if seconds:
            self._due = self._clock.callLater(seconds, self._write_now)
        else:
            self._write_now()

    def _write_now(self) -> None:
        self._due = None
        if not self._busy:
            self._run(self._write())

    def _run(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        """Do one thing at a time; what came up meanwhile is looked at when it has ended."""
        self._busy = True
        running = Deferred.fromCoroutine(work)
        running.addErrback(self._failed)
        running.addCallback(self._ended)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("while keeping {path}", failure, path=self._file.path)
        self._write_in(self._next_delay())

    def _ended(self, _: None) -> None:
        self._busy = False
        waiting, self._waiting_for_idle = self._waiting_for_idle, []
        for one in waiting:
            one.callback(None)
        if not self._stopped:
            self._roster_changed()

    async def _write(self) -> None:
        """Bring the file up to the newest generation, however many have come meanwhile."""
        while self._written < self._roster.generation and not self._stopped:
            generation, farm, servers = self._roster.generation, self._roster.options, self._roster.servers
            if not await self._attempt(self._file.write_if_newer, generation, farm, servers, self._own_id):
                return
            self._written = generation

    async def _attempt(self, write: Callable[..., bool], *arguments: Any) -> bool:
        """Do one piece of work on the file; on failure say so, plan another try, and return False."""
        try:
            if await self._run_in_thread(write, *arguments):
                self._log.info("wrote {path}", path=self._file.path)
        except LockHeld:
            self._write_in(LOCK_RETRY_SECONDS)
            return False
        except OSError as error:
            self._tell(f"{self._file.path} cannot be written: {error.strerror or error}")
            self._write_in(self._next_delay())
            return False
        except ConfigError as error:
            self._tell(str(error))
            self._write_in(self._next_delay())
            return False
        self._delay = RETRY_SECONDS_FIRST
        self._tell("")
        return True

    def _next_delay(self) -> float:
        delay = self._delay
        self._delay = min(2 * delay, RETRY_SECONDS_MAX)
        return delay

    def _tell(self, note: str) -> None:
        if note == self.note:
            return
        self.note = note
        if note:
            self._log.warn("{note}", note=note)
        else:
            self._log.info("{path} is kept again", path=self._file.path)
        self._on_note(note)

    # --- looking ---------------------------------------------------------------------------------------

    def _look_now(self) -> None:
        self._look_due = self._clock.callLater(LOOK_SECONDS, self._look_now)
        if not self._busy and self._roster.generation:
            self._run(self._look())

    async def _look(self) -> None:
        """Compare the file with the table: write what is behind, report what was edited and put it back."""
        try:
            text = await self._run_in_thread(self._file.read_text)
            if (text, *self._compared_with()) == self._fine:
                self.drift, self._seen = (), None
                self._tell("")
                return
            document = scan(text, self._file.path)
        except ConfigError:
            # Missing, unreadable or no INI file: to write it is what cures the first, and what explains the others.
            await self._write_again()
            return
        if (_generation_of(document) or 0) > self._roster.generation:
            # Another server may know more than this one and have written it; only the table can tell.
            try:
                await self._roster.refresh()
            except TableError:
                return
        farm, generation, servers = self._roster.options, self._roster.generation, self._roster.servers
        farm_id, there = document.text_of("id"), _generation_of(document)
        if farm_id and (farm_id != farm.id or (there is not None and there < generation)):
            # Not an edit but an older file, or another farm's: the one is written, the other left alone.
            await self._write_again()
            return
        found = differences(document, farm, generation)
        if there == generation:
            found += row_differences(document, servers)
        if not found:
            self._all_right(text)
        elif text != self._seen:
            self._report(text, found)
        elif await self._attempt(self._file.put_back, text, generation, farm, servers):
            self._log.warn(
                "{path} is as the farm has it again; what was edited is kept in {path}.1", path=self._file.path
            )
            self.drift, self._seen = (), None

    async def _write_again(self) -> None:
        self.drift, self._seen = (), None
        self._written = 0
        await self._write()

    def _all_right(self, text: str) -> None:
        self.drift, self._seen = (), None
        try:
            parse_config(text, self._file.path)
        except ConfigError as error:
            # Not ours to mend, but the next start would fail over it.
            self._tell(str(error))
        else:
            self._fine = (text, *self._compared_with())
            self._tell("")

    def _compared_with(self) -> tuple[object, ...]:
        return self._roster.generation, self._roster.options, self._roster.servers

    def _report(self, text: str, found: tuple[Difference, ...]) -> None:
        self.drift, self._seen = found, text
        for difference in found:
            self._log.warn(
                "{path} was edited: {difference}; it will be put back, and SET farm changes it for good",
                path=self._file.path,
                difference=difference,
            )


def _generation_of(document: Document) -> int | None:
    """The generation in the file, 0 if there is none, or None if it is not a number."""
    text = document.text_of("generation")
    try:
        return read_generation(text) if text else 0
    except ValueError:
        return None
