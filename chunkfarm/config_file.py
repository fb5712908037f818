"""Moves `config.ini` to and from the disk: one reader, and a writer that others never catch half-way.

Several servers, and any number of other readers, may share one file. Who writes holds `config.ini.lock`;
who reads needs no lock, because a new version replaces the old one in a single rename. Everything here
blocks and belongs on a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import filecmp
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from attrs import define, field

from chunkfarm.config_render import render
from chunkfarm.config_text import Config, parse_config, scan
from chunkfarm.config_values import ConfigError, read_generation
from chunkfarm.durable import sync_directory
from chunkfarm.errors import FarmError
from chunkfarm.model import FarmOptions, Server

CONFIG_BYTES_MAX = 4 * 1024 * 1024
"""Some thirty thousand servers; what is larger is another file that was named by mistake."""
VERSIONS_KEPT = 3
REACHED_MAX = 1000
"""Servers that may share one file and are remembered in its lock file: far more than one machine runs."""
REACHED_BYTES_MAX = 64 * REACHED_MAX
"""A line is a server id of 32 digits and a number."""
_GENERATION = re.compile(r"[0-9]{1,12}\Z")
"""As many digits as `read_generation` takes."""
NEW_FILE_MODE = 0o644
"""The file holds no secret, and every client on the machine may read it."""


class LockHeld(FarmError):
    """Another process is writing the file at this moment."""

    code = "busy"
    http_status = 503


class ForeignFarm(ConfigError):
    """The file belongs to another farm, and is left alone."""


def read_config(
    path: str | os.PathLike[str], overrides: Mapping[str, str | None] | None = None, host_name: str = ""
) -> Config:
    """Read and validate a file; raises `ConfigError` for whatever is wrong with it.

    `overrides` are the command line's `data name host ports weight zone`; `data` is relative to the working
    directory there. `host_name` is this machine's, from which `name` is made if it is not given.
    """
    return ConfigFile(os.fspath(path)).read(overrides, host_name)


def _read_text(path: str) -> str:
    try:
        # A named pipe would block until somebody writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; expected one, and `chunkfarm init` writes it") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a file that can be read: {_reason(error)}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            found = "a directory" if stat.S_ISDIR(mode) else "something else"
            raise ConfigError(f"{path}: expected a file, found {found}")
        content = os.read(descriptor, CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: expected a file that can be read: {_reason(error)}") from None
    finally:
        os.close(descriptor)
    if len(content) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: expected a config.ini, found a file of more than {CONFIG_BYTES_MAX} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: expected text in UTF-8, found other bytes", line=line) from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@define
class ConfigFile:
    """One `config.ini` on this disk, named as the person named it. Holds no open files between calls."""

    path: str
    _seen: str = field(default="", init=False)
    """The last text that named a farm: what is put back if somebody deletes or empties the file."""

    def read(self, overrides: Mapping[str, str | None] | None = None, host_name: str = "") -> Config:
        """As `read_config`."""
        given = dict(overrides or {})
        if data := given.get("data"):
            given["data"] = os.path.abspath(data)
        return parse_config(self.read_text(), self.path, given, host_name)

    def versions(self, overrides: Mapping[str, str | None] | None = None, host_name: str = "") -> tuple[Config, ...]:
        """The file and its kept versions, newest first; those that are missing or damaged are left out."""
        found = []
        for ending in ("", *(f".{number}" for number in range(1, VERSIONS_KEPT + 1))):
            with contextlib.suppress(ConfigError):
                found.append(read_config(self.path + ending, overrides, host_name))
        return tuple(found)

    def read_text(self) -> str:
        """The text as it is; raises `ConfigError`."""
        text = _read_text(self.path)
        if _farm_id(text):
            self._seen = text
        return text

    def locked(self) -> HeldConfig:
        """Take `config.ini.lock`, and hold it until `release`, or the end of a `with` block.

        Raises `LockHeld` at once if another process (or another part of this one) has it, and `OSError`
        where the folder does not allow a lock file.
        """
        # Servers may name one file through different links: what is replaced, and locked, is the file itself.
        real = os.path.realpath(self.path)
        return HeldConfig(self, real, _take_lock(real + ".lock"))

    def reached(self, server_id: str) -> int | None:
        """The generation that this server last brought the file up to, or found it at; None if that is not known."""
        try:
            with open(os.path.realpath(self.path) + ".lock", "rb") as file:
                return _read_reached(file.read(REACHED_BYTES_MAX)).get(server_id)
        except OSError:
            return None

    def write_if_newer(
        self, generation: int, farm: FarmOptions, servers: Iterable[Server], reached_by: str = ""
    ) -> bool:
        """Bring the file up to `generation`, unless it is there already; returns whether it was written.

        Beside the file it is remembered, durably, that the table of the server `reached_by` has reached that.
        Raises `LockHeld`, `ForeignFarm`, `ConfigError` if the file cannot be understood, and `OSError` if it
        cannot be written. In every such case the file is as it was.
        """
        with self.locked() as held:
            written = held.write_if_newer(generation, farm, servers)
            if reached_by:
                held.note_reached(reached_by, generation)
            return written

    def put_back(self, seen: str, generation: int, farm: FarmOptions, servers: Iterable[Server]) -> bool:
        """Undo an edit: write the file, whatever its generation, if its text still is `seen`.

        Raises as `write_if_newer` does.
        """
        with self.locked() as held:
            return held.text() == seen and held.write(generation, farm, servers)


@define
class HeldConfig:
    """The file while this process holds its lock."""

    _file: ConfigFile
    _real: str
    _lock: int

    def __enter__(self) -> HeldConfig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let go of the lock. May be called again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def note_reached(self, server_id: str, generation: int) -> None:
        """Remember in the lock file that this server's table has reached `generation`."""
        known = _read_reached(os.pread(self._lock, REACHED_BYTES_MAX, 0))
        if known.get(server_id) == generation:
            return
        # Those noted last stand last; ids that have been given up long ago make room.
        known.pop(server_id, None)
        kept = [*list(known.items())[1 - REACHED_MAX :], (server_id, generation)]
        content = "".join(f"{id} {number}\n" for id, number in kept).encode()
        os.pwrite(self._lock, content, 0)
        os.ftruncate(self._lock, len(content))
        os.fsync(self._lock)

    def read(self, overrides: Mapping[str, str | None] | None = None, host_name: str = "") -> Config:
        """As `read_config`, and nobody writes until the lock is released."""
        return self._file.read(overrides, host_name)

    def text(self) -> str:
        """The text as it is, empty if there is no file; raises `ConfigError`."""
        return self._file.read_text() if os.path.lexists(self._real) else ""

    def write_if_newer(self, generation: int, farm: FarmOptions, servers: Iterable[Server]) -> bool:
        """As `ConfigFile.write_if_newer`."""
        document = scan(self.text(), self._file.path)
        if self._file._seen and not document.text_of("id") and os.path.lexists(self._real):
            # An editor that empties the file before it fills it again looks like this for a moment.
            raise ConfigError(f"{self._file.path}: expected the id of farm {farm.name}, which was there before")
        text = document.text_of("generation")
        try:
            there = read_generation(text) if text else 0
        except ValueError as error:
            raise document.error(document.options("farm")["generation"], f"generation = {text}: {error}") from None
        return there < generation and self.write(generation, farm, servers)

    def write(self, generation: int, farm: FarmOptions, servers: Iterable[Server], *, replaces: str = "") -> bool:
        """Write the farm's sections whatever the file's generation; returns False if nothing is different.

        Raises `ForeignFarm` if the file names another farm than this one, and than `replaces`: the id of a
        farm that a person has given up.
        """
        assert self._lock >= 0, "the lock has been released"
        text = self.text()
        there = _farm_id(text)
        if there not in ("", farm.id, replaces):
            raise ForeignFarm(
                f"{self._file.path}: it belongs to the farm with id {there}, expected {farm.id}, so it is left alone"
            )
        new = render(text if text.strip() else self._file._seen, farm, generation, servers)
        if new == text:
            return False
        _replace(self._real, new.encode())
        self._file._seen = new
        return True


def _read_reached(content: bytes) -> dict[str, int]:
    """Server ids and generations; a line that is damaged says nothing."""
    words = [line.split() for line in content.decode("ascii", "replace").splitlines()]
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and _GENERATION.match(pair[1])}


def _farm_id(text: str) -> str:
    try:
        return scan(text, "").text_of("id")
    except ConfigError:
        return ""


def _take_lock(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        # Whoever may write in the folder may replace the file, so may take the lock; nobody else may.
        folder = os.stat(os.path.dirname(path))
        writers = folder.st_mode & 0o022
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, -1, folder.st_gid)
            os.fchmod(descriptor, 0o600 | writers | writers << 1)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise LockHeld(f"another process holds {path}") from None
        raise
    return descriptor


def _replace(path: str, content: bytes) -> None:
    """Put `content` at `path` in one step, durably; readers see the old file or the new one, never neither."""
    temporary = path + ".tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(content)
            _take_over_mode(path, file.fileno())
            file.flush()
            os.fsync(file.fileno())
        _keep_version(path)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(os.path.dirname(path))


def _take_over_mode(path: str, descriptor: int) -> None:
    """Give the new file the mode and the owner of the old one, as far as this process may."""
    try:
        old = os.stat(path)
    except FileNotFoundError:
        os.fchmod(descriptor, NEW_FILE_MODE)
        return
    new = os.fstat(descriptor)
    for owner, group in ((-1, old.st_gid if old.st_gid != new.st_gid else -1), (old.st_uid, -1)):
        if (owner, group) not in ((-1, -1), (new.st_uid, -1)):
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, owner, group)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _keep_version(path: str) -> None:
    """Make the file as it is `.1`, and what was `.1` and `.2` one older."""
    if not os.path.lexists(path):
        return
    with contextlib.suppress(FileNotFoundError):
        # Where the last rename did not come off, the version is kept already.
        if filecmp.cmp(path, f"{path}.1", shallow=False):
            return
    for number in range(VERSIONS_KEPT, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}.{number - 1}", f"{path}.{number}")
    try:
        os.link(path, f"{path}.1")
    except OSError:
        # Some file systems have no hard links, and some systems forbid them for files of others.
        Path(f"{path}.1").write_bytes(Path(path).read_bytes())
