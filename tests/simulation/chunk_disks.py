"""Disks under real chunk stores: files in a folder, SQLite in memory, and what a power cut or bad luck leaves of them.

`Disks` stands in the place of the module `os` in what stores chunks, and knows what was synchronized. A name outlives
a power cut if its directory was synchronized after it, the bytes of a file if the file was; what was not may be there,
or not, or in part. A transaction of SQLite outlives it if it was committed with `synchronous=FULL`. Every write and
every sync is a point at which the power may fail, or the process end.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, cast

from attrs import define

from tests.simulation.world import PowerCut

GIB = 2**30


class Disks:
    """Everything of the module `os`, with an eye on the folders of the disks below `base`."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.disks: dict[str, ChunkDisk] = {}
        self._paths: dict[int, str] = {}
        """Of descriptors that are open."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def add(self, name: str, random: Random) -> ChunkDisk:
        """A new disk, in a folder of that name."""
        disk = ChunkDisk(os.path.join(self.base, name), random)
        self.disks[name] = disk
        return disk

    def of(self, path: str | os.PathLike[str]) -> ChunkDisk | None:
        text = os.fspath(path)
        if not text.startswith(self.base):
            return None
        return self.disks.get(text[len(self.base) + 1 :].partition("/")[0])

    def connect(self, path: Any, **options: Any) -> sqlite3.Connection:
        """Stands in the place of `sqlite3.connect`."""
        disk = self.of(path) if path != ":memory:" else None
        return disk.connect(os.fspath(path)) if disk is not None else _connect(path, **options)

    # What the stores do.

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        disk = self.of(path)
        if disk is None or not flags & os.O_CREAT:
            descriptor = os.open(path, flags, mode)
        else:
            is_new = not os.path.exists(path)
            if is_new:
                disk.point("write")
                disk.changes(path)
            descriptor = os.open(path, flags, mode)
            if is_new:
                disk.synced[os.fstat(descriptor).st_ino] = 0
        self._paths[descriptor] = os.fspath(path)
        return descriptor

    def close(self, descriptor: int) -> None:
        self._paths.pop(descriptor, None)
        os.close(descriptor)

    def write(self, descriptor: int, data: Any) -> int:
        self._before_write(descriptor)
        return os.write(descriptor, data)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        self._before_write(descriptor)
        return os.pwrite(descriptor, data, offset)

    def ftruncate(self, descriptor: int, length: int) -> None:
        disk = self._before_write(descriptor)
        os.ftruncate(descriptor, length)
        if disk is not None:
            inode = os.fstat(descriptor).st_ino
            disk.synced[inode] = min(length, disk.synced.get(inode, length))

    def fsync(self, descriptor: int) -> None:
        path = self._paths.get(descriptor, "")
        disk = self.of(path)
        if disk is None:
            return
        disk.point("sync")
        status = os.fstat(descriptor)
        if os.path.isdir(path):
            disk.keeps_names(path)
        else:
            disk.synced[status.st_ino] = status.st_size

    fdatasync = fsync

    def rename(self, source: Any, to: Any) -> None:
        for path in (source, to):
            if (disk := self.of(path)) is not None:
                disk.point("name")
                disk.changes(path)
        os.rename(source, to)

    replace = rename

    def unlink(self, path: Any) -> None:
        disk = self.of(path)
        if disk is not None:
            disk.point("name")
            if os.path.exists(path):
                disk.unlinks(os.fspath(path))
        os.unlink(path)

    remove = unlink

    def makedirs(self, path: Any, mode: int = 0o777, exist_ok: bool = False) -> None:
        disk = self.of(path)
        if disk is not None and not os.path.exists(path):
            disk.point("write")
            disk.changes(path)
        os.makedirs(path, mode, exist_ok)

    def _before_write(self, descriptor: int) -> ChunkDisk | None:
        disk = self.of(self._paths.get(descriptor, ""))
        if disk is not None:
            disk.point("write")
        return disk


_connect = sqlite3.connect


@define(eq=False)
class _Database:
    """A database in memory, and what a power cut would leave of it."""

    base: sqlite3.Connection
    durable: bytes | None = None
    """The last synchronized contents; None: as it is now."""


class ChunkDisk:
    """One server's disk. `on_cut(power)` is told when a point is reached at which its machine or process ends."""

    def __init__(self, folder: str, random: Random) -> None:
        self.folder = folder
        self.full = False
        """Nothing is taken any more, in good time."""
        self.no_space = False
        """Somebody else has used up even what was kept in reserve."""
        self.cut_at = 0
        """The power fails, or the process ends, at this point, counted from now; 0: it does not."""
        self.cut_power = True
        self.life = 0
        """Counts processes: what is left of an earlier one does nothing any more."""
        self.dead = False
        self.synced: dict[int, int] = {}
        """Bytes of each inode that outlive a power cut; those that are not here do as they are."""
        self.on_cut: Callable[[bool], None] = lambda power: None
        self.on_unlink: Callable[[str], None] = lambda path: None
        self.on_forget: Callable[[bytes], None] = lambda digest: None
        """A packed chunk is about to be forgotten."""
        self._random = random
        self._names: dict[str, int | None] = {}
        """Names that were changed since their directory was synchronized: the inode that they stood for before."""
        self._databases: dict[str, _Database] = {}
        os.makedirs(os.path.join(folder, ".before"))

    def room(self, path: str) -> tuple[int, int]:
        """As `chunks.store.room_of`; a reserve of 1 GiB is taken for granted."""
        return (GIB // 2 if self.full else 50 * GIB, 100 * GIB)

    def point(self, what: str) -> None:
        """Something is about to be done on the disk."""
        if self.dead:
            raise PowerCut(what)
        if self.cut_at:
            self.cut_at -= 1
            if not self.cut_at:
                self.dead = True
                self.on_cut(self.cut_power)
                raise PowerCut(what)
        if self.no_space and what == "write":
            raise OSError(errno.ENOSPC, "No space left on device")

    def begin_process(self) -> None:
        """A process begins; all that an earlier one has left is on the disk."""
        self.life += 1
        self.dead = False
        self.cut_at = 0
        for database in self._databases.values():
            if database.base.in_transaction:
                database.base.execute("ROLLBACK")

    # Names and bytes.

    def changes(self, path: Any) -> None:
        """A name is about to stand for another file, or for none."""
        text = os.fspath(path)
        if text not in self._names and "/incoming/" not in text:
            inode = os.stat(text).st_ino if os.path.exists(text) else None
            self._names[text] = inode
            if inode is not None and not os.path.isdir(text):
                with suppress(FileExistsError):
                    os.link(text, self._before(inode))

    def unlinks(self, path: str) -> None:
        """A file is about to be removed."""
        if path in self._databases:
            del self._databases[path]
            return
        self.on_unlink(path)
        self.changes(path)

    def vanishes(self, path: str) -> None:
        """Bad luck takes a file."""
        os.unlink(path)
        self._let_go(self._names.pop(path, None))

    def keeps_names(self, directory: str) -> None:
        """The names in a directory are durable now."""
        for path in [path for path in self._names if os.path.dirname(path) == directory.rstrip("/")]:
            self._let_go(self._names.pop(path))

    def lose_power(self) -> None:
        """What was not synchronized may be there or not."""
        for path, inode in self._names.items():
            if self._random.random() < 0.5:
                self._put_back(path, inode)
        for inode in self._names.values():
            self._let_go(inode)
        self._names.clear()
        for folder, folders, files in os.walk(self.folder):
            folders.sort()
            for name in sorted(files):
                self._lose_tail(os.path.join(folder, name))
        self._databases = {path: one for path, one in self._databases.items() if os.path.exists(path)}
        for database in self._databases.values():
            if database.base.in_transaction:
                database.base.execute("ROLLBACK")
            if database.durable is not None and self._random.random() < 0.7:
                database.base = open_memory(database.durable)
            database.durable = None

    def _put_back(self, path: str, inode: int | None) -> None:
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.unlink(path)
        if inode is not None and os.path.exists(self._before(inode)) and os.path.isdir(os.path.dirname(path)):
            os.link(self._before(inode), path)

    def _lose_tail(self, path: str) -> None:
        status = os.stat(path)
        kept = self.synced.get(status.st_ino, status.st_size)
        if status.st_size > kept:
            kind = self._random.random()
            if kind < 0.75:
                os.truncate(path, kept + (self._random.randint(0, status.st_size - kept) if kind < 0.25 else 0))
            elif kind < 0.9:
                # The length has come to the disk, and the bytes have not.
                with open(path, "r+b") as file:
                    file.seek(kept)
                    file.write(bytes(status.st_size - kept))
        self.synced[status.st_ino] = os.stat(path).st_size

    def _let_go(self, inode: int | None) -> None:
        if inode is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._before(inode))

    def _before(self, inode: int) -> str:
        """Where a file is kept whose name is gone, while a power cut may bring it back."""
        return os.path.join(self.folder, ".before", str(inode))

    def wipe(self) -> None:
        """An empty disk."""
        shutil.rmtree(self.folder)
        os.makedirs(os.path.join(self.folder, ".before"))
        self.synced.clear()
        self._names.clear()
        self._databases.clear()

    # SQLite.

    def connect(self, path: str) -> sqlite3.Connection:
        if not os.path.exists(path):
            Path(path).touch()
        if path not in self._databases:
            self._databases[path] = _Database(open_memory())
        return cast(sqlite3.Connection, _Connection(self, self._databases[path]))

    def database(self, path: str) -> sqlite3.Connection | None:
        """What a database holds now, for whoever looks on."""
        found = self._databases.get(path)
        return found.base if found is not None else None


class _Connection:
    """What stores use of a `sqlite3.Connection`. All of one database share it, for a call on a thread is one event."""

    def __init__(self, disk: ChunkDisk, database: _Database) -> None:
        self._disk = disk
        self._database = database
        self._life = disk.life
        self._full = True

    @property
    def in_transaction(self) -> bool:
        return self._database.base.in_transaction

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        word = sql.split(None, 1)[0].upper()
        base = self._database.base
        if self._life != self._disk.life or self._disk.dead:
            raise PowerCut(sql)
        if word == "PRAGMA":
            return self._pragma(sql)
        if word in ("SELECT", "ROLLBACK", "WITH"):
            return base.execute(sql, parameters)
        if word in ("COMMIT", "END"):
            return self._commit()
        alone = not base.in_transaction
        if alone:
            self._before_write()
        result = base.execute(sql, parameters)
        if alone and not base.in_transaction:
            self._synchronize()
        return result

    def executemany(self, sql: str, rows: Iterable[Any]) -> Any:
        assert self.in_transaction, "a transaction for each row is slow on a real disk"
        if sql.startswith("DELETE FROM chunks WHERE digest = ?"):
            rows = list(rows)
            for (digest,) in rows:
                self._disk.on_forget(digest)
        return self._database.base.executemany(sql, rows)

    def executescript(self, script: str) -> Any:
        self._before_write()
        result = self._database.base.executescript(script)
        self._synchronize()
        return result

    def close(self) -> None:
        """Whoever else has the database open goes on."""

    def _pragma(self, sql: str) -> Any:
        name, _, value = sql.partition(" ")[2].partition("=")
        if name.strip() == "synchronous" and value:
            self._full = value.strip().upper() in ("FULL", "EXTRA", "2", "3")
        if name.strip() in ("synchronous", "journal_mode", "cache_size", "busy_timeout", "temp_store"):
            return self._database.base.execute("SELECT 1 WHERE 0")
        return self._database.base.execute(sql)

    def _before_write(self) -> None:
        self._disk.point("sync")
        if self._disk.no_space:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        if self._database.durable is None:
            # One that has no page yet cannot be serialized.
            (pages,) = self._database.base.execute("PRAGMA page_count").fetchone()
            self._database.durable = self._database.base.serialize() if pages else b""

    def _commit(self) -> Any:
        self._disk.point("sync")
        result = self._database.base.execute("COMMIT")
        self._synchronize()
        return result

    def _synchronize(self) -> None:
        if self._full:
            self._database.durable = None


def open_memory(image: bytes | None = None) -> sqlite3.Connection:
    """A database in memory, with those contents."""
    connection = _connect(":memory:", isolation_level=None)
    if image:
        connection.deserialize(image)
    return connection
