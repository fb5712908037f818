"""The disk under the journal of a simulated server: SQLite in memory, and what a power cut leaves of it.

SQLite promises that a commit with `synchronous=FULL` is durable, and that after a power cut a file is as it was after
one of its commits, none of them later lost before an earlier one. This is that promise; whether SQLite keeps it is not
tested here. A process that is killed loses nothing that it has written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, cast

from attrs import define

from chunkfarm.table.journal_file import Files
from tests.simulation.world import PowerCut

FULL = "database or disk is full"
BROKEN = "disk I/O error"


@define(eq=False)
class _File:
    """One file: what the process sees, and what a power cut would leave."""

    base: sqlite3.Connection
    durable: bytes | None = b""
    """The last synchronized contents; None: as it is now."""
    open: int = 0


def _open_memory(image: bytes | None = None) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    if image:
        connection.deserialize(image)
    return connection


def _error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


class Disk(Files):
    """Files by name. Every write and every sync is a point at which it may fail, or the power."""

    def __init__(self, random: Random) -> None:
        self.full = False
        self.broken = ""
        """`write` or `sync`: that fails from now on."""
        self.cut_at = 0
        """The power fails at this point, counted from now; 0: it does not."""
        self.points = 0
        self.on_cut: Callable[[], None] = lambda: None
        self.life = 0
        """Counts processes: what is left of an earlier one closes nothing of a later one."""
        self._random = random
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}

    def point(self, what: str) -> None:
        """Something is about to be done on the disk."""
        self.points += 1
        if self.cut_at and self.points >= self.cut_at:
            self.cut_at = 0
            self.on_cut()
            raise PowerCut(what)
        if what != "sync":
            self.need_room()
        if self.broken == what:
            raise _error(BROKEN, sqlite3.SQLITE_IOERR)

    def need_room(self) -> None:
        """What is done now makes a file longer."""
        if self.full:
            raise _error(FULL, sqlite3.SQLITE_FULL)

    def end_process(self) -> None:
        """The process is gone; all that it committed stays, and what it had open is closed."""
        self.cut_at = 0
        self.life += 1
        for file in self._names.values():
            file.open = 0
            if file.base.in_transaction:
                file.base.execute("ROLLBACK")

    def lose_power(self) -> None:
        """What was not synchronized may be there or not."""
        self.end_process()
        if self._random.random() < 0.5:
            self._names = dict(self._durable_names)
        for name, file in list(self._names.items()):
            if file.durable is not None and self._random.random() < 0.7:
                self._names[name] = _File(_open_memory(file.durable), None)
            else:
                file.durable = None
        self._durable_names = dict(self._names)
        for name in self._names:
            Path(name).touch()

    def wipe(self) -> None:
        """An empty disk."""
        self._names.clear()
        self._durable_names.clear()

    def image(self, path: str) -> bytes:
        """A copy of a file, to be put back with `restore`: an old disk."""
        return self._names[path].base.serialize()

    def restore(self, path: str, image: bytes) -> None:
        """Put a copy in its place."""
        self._names[path] = self._durable_names[path] = _File(_open_memory(image), None)

    def swap(self, other: Disk, path: str, there: str) -> None:
        """A file changes places with one of another disk; both machines are off, so all of both is durable."""
        for names, theirs in ((self._names, other._names), (self._durable_names, other._durable_names)):
            names[path], theirs[there] = theirs[there], names[path]

    # What the journal does.

    def connect(self, path: str) -> sqlite3.Connection:
        file = self._names[path]
        file.open += 1
        return cast(sqlite3.Connection, _Connection(self, file, file.open))

    def create(self, path: str) -> None:
        self.point("write")
        self._names[path] = _File(_open_memory())
        Path(path).touch()

    def exists(self, path: str) -> bool:
        # A founder that never came to an end has its table unlinked, by name.
        return path in self._names and Path(path).exists()

    def remove(self, path: str) -> None:
        self._names.pop(path, None)
        with suppress(FileNotFoundError):
            Path(path).unlink()

    def rename(self, path: str, to: str) -> None:
        self.point("write")
        self._names[to] = self._names.pop(path)
        Path(path).rename(to)

    def sync(self, path: str) -> None:
        self.point("sync")
        if path in self._names:
            self._names[path].durable = None
        else:
            self._durable_names = dict(self._names)


class _Connection:
    """What the journal uses of a `sqlite3.Connection`. The first of a file writes, the second reads, others look back.

    A call of the journal happens as a whole, so the first two can share one; a view that must stay as it is gets a
    copy.
    """

    def __init__(self, disk: Disk, file: _File, number: int) -> None:
        self._disk = disk
        self._file = file
        self._number = number
        self._base = file.base
        self._full = True
        self._closed = False
        self._life = disk.life

    @property
    def in_transaction(self) -> bool:
        return self._number == 1 and self._base.in_transaction

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        if self._life != self._disk.life:
            # Whoever asks is no more.
            raise PowerCut(sql)
        if sql.startswith("PRAGMA"):
            return self._pragma(sql)
        if self._number > 1 and sql in ("BEGIN", "ROLLBACK"):
            if self._number > 2 and sql == "BEGIN":
                self._base = _open_memory(self._file.base.serialize())
            return None
        if sql == "COMMIT":
            return self._commit()
        if sql.startswith("BEGIN"):
            self._before_write()
        return self._base.execute(sql, parameters)

    def _pragma(self, sql: str) -> Any:
        _, _, rest = sql.partition(" ")
        name, _, value = rest.partition(" = ")
        if name == "synchronous":
            self._full = value == "FULL"
        if name in ("synchronous", "journal_mode", "query_only", "cache_size"):
            return None
        if name == "wal_checkpoint(PASSIVE)":
            self._disk.need_room()
            return None
        return self._base.execute(sql)

    def _before_write(self) -> None:
        self._disk.point("write")
        if self._file.durable is None:
            self._file.durable = self._base.serialize()

    def _commit(self) -> None:
        try:
            self._disk.point("write")
            if self._full:
                self._disk.point("sync")
        except BaseException:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")
        if self._full:
            self._file.durable = None

    def executemany(self, sql: str, rows: Any) -> Any:
        return self._base.executemany(sql, rows)

    def executescript(self, script: str) -> Any:
        return self._base.executescript(script)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._life == self._disk.life:
            self._file.open -= 1
        if self._number > 2:
            self._base.close()
        elif self._number == 1 and self._life == self._disk.life and self._base.in_transaction:
            self._base.execute("ROLLBACK")
