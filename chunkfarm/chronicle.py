"""Keeps what this server saw of its farm's members: in memory, and in a file that outlives the process.

The file is a convenience for people and promises nothing to anybody, so a disk that is full or fails is told in the log
and stops nothing. It is written away from the reactor, and synchronized, because the notes before a crash are those
that are wanted afterwards.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.data_directory import write_atomically
from chunkfarm.threads import Threads
from chunkfarm.timeline import Note, from_line, to_line

CHRONICLE_FILE = "history.jsonl"
THREAD = "chunkfarm-history"
NOTES_MAX = 5_000
"""Notes that are kept, the newest: a small farm makes some ten a day, a thousand servers that all start anew some
thousands. They take about a kilobyte each in memory."""
FILE_TIMES = 2
"""How often that many lines the file may have before the old ones are cut off: so a note is written about twice."""


class NotesFile:
    """The file. Everything here blocks, and raises `OSError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes:
        """All of it."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def add(self, data: bytes) -> None:
        """Add lines at its end; durable on return."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "ab", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, data: bytes) -> None:
        """Put this in the place of all of it."""
        write_atomically(self._path, data)


class KeepsNotes(Protocol):
    """What a `Chronicle` needs of its file."""

    def load(self) -> bytes: ...

    def add(self, data: bytes) -> None: ...

    def replace(self, data: bytes) -> None: ...


class Chronicle:
    """The notes of one server.

    `run` names this process, `now` is the wall clock in ms, `boot_time` a clock in seconds that nobody sets. What was
    noted before is read at once, as everything is that a server needs before it starts. Nothing is written before
    `begin`: a start that is refused leaves the data directory as it was.
    """

    _log = Logger()

    def __init__(
        self,
        file: KeepsNotes,
        threads: Threads,
        run: str,
        now: Callable[[], int],
        boot_time: Callable[[], float],
        most: int = NOTES_MAX,
    ) -> None:
        self._file = file
        self._threads = threads
        self._run = run
        self._now = now
        self._boot_time = boot_time
        self._most = most
        self._notes: deque[Note] = deque(maxlen=most)
        self._unwritten: list[Note] = []
        self._in_file = 0
        self._rewrite = False
        """Whether the file may end in half a line, or lacks notes."""
        self._failing = False
        self._writing: Deferred[Any] | None = None
        self._idle: list[Deferred[None]] = []
        self._begun = False
        self._load()

    def _load(self) -> None:
        try:
            data = self._file.load()
        except OSError:
            self._log.failure("while reading what this server has noted of its farm; it begins anew")
            self._rewrite = True
            return
        lines = data.split(b"\n")
        for line in lines[:-1]:
            note = from_line(line)
            if note is None:
                self._rewrite = True
            else:
                self._notes.append(note)
        self._in_file = len(lines) - 1
        self._rewrite = self._rewrite or bool(lines[-1])

    @property
    def last(self) -> Note | None:
        """The newest note."""
        return self._notes[-1] if self._notes else None

    def begin(self) -> None:
        """Write what was noted so far, and from now on at once."""
        self._begun = True
        self._write()

    def note(self, note: Note) -> None:
        """Keep a note, with its number and its time filled in."""
        number = self._notes[-1].number + 1 if self._notes else 1
        whole = evolve(note, number=number, at=self._now(), boot=self._boot_time(), run=self._run)
        self._notes.append(whole)
        self._unwritten.append(whole)
        self._write()

    def told(self, since: int, after: int, most: int) -> tuple[tuple[Note, ...], bool]:
        """Notes with greater numbers than `after` and not before `since` (ms), and whether there are more.

        Their times are by this server's wall clock as it is set *now*, also of those that this process made while it
        was set otherwise.
        """
        chosen = [
            one
            for note in self._notes
            if note.number > after and (one := self._in_present_time(note)).at >= since
        ]  # fmt: skip
        return tuple(chosen[:most]), len(chosen) > most

    def _in_present_time(self, note: Note) -> Note:
        if note.run != self._run:
            return note
        return evolve(note, at=self._now() - round(1000 * (self._boot_time() - note.boot)))

    def when_written(self) -> Deferred[None]:
        """Fires when nothing is being written any more."""
        if self._writing is None:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._idle.append(waiting)
        return waiting

    def stop(self) -> Deferred[None]:
        """Write what is there, and end; does not fire while the disk hangs."""
        return self.when_written().addCallback(lambda _: self._threads.stop())

    def _write(self) -> None:
        if not self._begun or self._writing is not None or not self._unwritten:
            return
        some, self._unwritten = self._unwritten, []
        # The first write makes the file, whose name is to be durable too.
        if self._rewrite or not self._in_file or self._in_file + len(some) > FILE_TIMES * self._most:
            some = list(self._notes)
            self._unwritten = []
            self._in_file = 0
            self._writing = self._threads.run(self._replace, some)
        else:
            self._writing = self._threads.run(self._add, some)
        self._in_file += len(some)
        self._rewrite = False
        writing = self._writing
        writing.addCallbacks(self._written, self._failed).addCallback(lambda _: self._done())

    # On a thread.

    def _add(self, notes: Sequence[Note]) -> None:
        self._file.add(b"".join(map(to_line, notes)))

    def _replace(self, notes: Sequence[Note]) -> None:
        self._file.replace(b"".join(map(to_line, notes)))

    # Back on the reactor's.

    def _written(self, _: object) -> None:
        self._failing = False

    def _failed(self, failure: Failure) -> None:
        # Half a line may be there now: the next write, with the next note, is of everything.
        self._rewrite = True
        if not self._failing:
            self._failing = True
            self._log.failure("while noting what this server saw of its farm", failure)

    def _done(self) -> None:
        self._writing = None
        self._write()
        if self._writing is None:
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)
