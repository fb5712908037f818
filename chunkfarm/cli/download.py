"""`chunkfarm get`: a file from whichever servers answer, in one piece and checked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

from chunkfarm.cli.farm import Farm
from chunkfarm.errors import Busy, FarmError, InvalidRequest, Mismatch
from chunkfarm.links.lines import Fields, LineClient
from chunkfarm.model import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, etag_of
from chunkfarm.wire.lines import quote

NAME_SHOWN = 50
"""Characters of a file's name in that of its unfinished copy, for whoever finds one: up to 200 of 255 bytes."""

PERMISSIONS = 0o777
"""What of a mode goes over to other content: who may read and write it, not as whom it is run."""


class Changed(Busy):
    """The file was replaced while it was read."""


class Download:
    """One file on its way out; survives the loss of any link.

    The target grows from its beginning; if the file is replaced meanwhile, it begins anew, where the target
    can. `on_size` is told the size, `on_bytes` how many bytes there are now.
    """

    def __init__(
        self,
        farm: Farm,
        name: str,
        target: IO[bytes],
        *,
        can_restart: bool,
        on_size: Callable[[int], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        self._farm = farm
        self._name = name
        self._target = target
        self._can_restart = can_restart
        self._on_size = on_size
        self._on_bytes = on_bytes
        self._etag: str | None = None
        self.size = 0
        self.stale = 0
        """The revision that the file is shown as of, if nobody who knows the last state answered."""
        self._chunk_size = 1
        self._offset = 0
        self._digests: list[bytes] = []
        self._chunk = hashlib.sha256()

    async def run(self) -> dict[str, str]:
        """Do it all; the answer is the file's row."""
        return await self._farm.run(self._over)

    async def _over(self, link: LineClient) -> dict[str, str]:
        reply = await link.request(f"STAT {quote(self._name)}")
        stat, self.stale = reply.fields, reply.stale
        if stat["etag"] != self._etag:
            self._begin(stat)
        if self._offset < self.size:
            line = f"FETCH {quote(self._name)} {self._offset} {self.size - self._offset}"
            fetched = link.request(line, sink=self._take)
            after = link.request(f"STAT {quote(self._name)}")
            # It is looked at below, or does not matter any more.
            after.addErrback(lambda _: None)
            try:
                self.stale = max(self.stale, (await fetched).stale)
            except InvalidRequest:
                raise Changed("the file was replaced while it was being read") from None
            now = await after
            if now is None or now.fields["etag"] != self._etag:
                # Bytes of both may have been mixed.
                self._etag = None
                raise Changed("the file was replaced while it was being read")
        if etag_of(self.size, self._chunk_size, self._digests) != self._etag:
            self._etag = None
            raise Mismatch("the bytes that came are not those of the file")
        return stat

    def _begin(self, stat: Fields) -> None:
        if self._offset and not self._can_restart:
            raise FarmError("the file was replaced while it was being read")
        if self._offset:
            self._target.seek(0)
            self._target.truncate()
        self._etag = stat["etag"]
        self.size = stat.number("size")
        self._chunk_size = stat.number("chunksize", CHUNK_SIZE_MIN, CHUNK_SIZE_MAX)
        self._offset = 0
        self._digests.clear()
        self._chunk = hashlib.sha256()
        self._on_size(self.size)
        self._on_bytes(0)

    def _take(self, piece: bytes | memoryview) -> None:
        self._target.write(piece)
        view = memoryview(piece)
        while len(view):
            room = self._chunk_size - self._offset % self._chunk_size
            part, view = view[:room], view[room:]
            self._chunk.update(part)
            self._offset += len(part)
            if self._offset % self._chunk_size == 0 or self._offset == self.size:
                self._digests.append(self._chunk.digest())
                self._chunk = hashlib.sha256()
        self._farm.moved()
        self._on_bytes(self._offset)


class NewFile:
    """A file that appears under its name when it is whole, and not at all if it never is.

    It has the mode of the file that it replaces, from its first byte on. What is no ordinary file, such as a pipe or
    `/dev/null`, is written to as it is; what a link points to is replaced, and not the link. Raises `OSError`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._temporary: Path | None = None
        self.can_restart = not path.exists() or path.is_file()
        if not self.can_restart:
            self.stream: IO[bytes] = open(path, "wb")  # noqa: SIM115 - `keep` and `drop` close it
            return
        # Of a long name only the beginning: together it must be no longer than a name may be, in bytes.
        self._temporary = self._path.with_name(f".{self._path.name[:NAME_SHOWN]}.{secrets.token_hex(4)}.part")
        mode = path.stat().st_mode & PERMISSIONS if path.exists() else None
        try:
            self.stream = open(  # noqa: SIM115 - as above
                self._temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o666 if mode is None else 0o600)
            )
        except OSError as error:
            # Of the other name nobody has ever heard.
            raise type(error)(error.errno, error.strerror, str(path)) from None
        if mode is not None:
            # Where a file system has no such modes, it stays one that nobody else reads.
            with contextlib.suppress(OSError):
                os.fchmod(self.stream.fileno(), mode)

    def keep(self) -> None:
        """It is whole."""
        self.stream.flush()
        if self._temporary is not None:
            os.fsync(self.stream.fileno())
        self.stream.close()
        if self._temporary is not None:
            os.replace(self._temporary, self._path)

    def drop(self) -> None:
        """It is not."""
        # What a buffer still holds, on a full disk or for a pipe that nobody reads, is of no use to anybody.
        with contextlib.suppress(OSError):
            self.stream.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
