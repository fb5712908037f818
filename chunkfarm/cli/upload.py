"""`chunkfarm put`: a file, chunk by chunk, to whichever servers answer, and then its name."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import IO, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from chunkfarm.cli.farm import Farm
from chunkfarm.cli.threads import RunInThread
from chunkfarm.errors import FarmError, MissingChunks
from chunkfarm.links.lines import LineClient, Reply
from chunkfarm.model import MIB, digest_of
from chunkfarm.wire.lines import quote

IN_FLIGHT_MIN = 3
"""Chunks in memory, whatever their size: one on its way, one being stored, one being read."""
IN_FLIGHT_MAX = 16
"""Of smaller chunks more are under way, since each waits for a disk; a server takes in 64 commands of a link."""
IN_FLIGHT_BYTES = 24 * MIB
"""So many that they take the memory of three usual ones, which is also what a server takes in of a link."""
ASK_BATCH_MAX = 64
"""Chunks asked for at a time while the farm has them all; half a gigabyte of the usual ones."""
COMMIT_PAUSE = 1.0
"""Seconds until it is asked again whether the farm has enough copies of all that was stored, and twice as long each
further time."""
COMMIT_PAUSE_MAX = 8.0
"""At most: each time all holders of all chunks are asked."""
ASK_AGAIN_AFTER = 64
"""Chunks sent without asking once one was not there: to ask costs an answer's time, in which nothing is sent."""


class Upload:
    """One file on its way in; survives the loss of any link.

    What is acknowledged is not sent again. A source that is not `seekable` is read once. `on_bytes` is told how
    many more bytes are done, sent or found there.
    """

    def __init__(
        self,
        farm: Farm,
        source: IO[bytes],
        name: str,
        *,
        seekable: bool,
        run_in_thread: RunInThread,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._farm = farm
        self._source = source
        self._name = name
        self._run = run_in_thread
        self._on_bytes = on_bytes
        self._seekable = seekable
        self._began = self._mark()
        self._chunk_size = 0
        self._size = 0
        self._digests: list[bytes] = []
        self._flight: dict[int, bytes] = {}
        """Chunks that are not acknowledged yet."""
        self._found: list[int] = []
        """Chunks that were not sent because the farm said it had them."""
        self._ended = False
        self._send_unasked = 0
        self._ask = 1

    def _mark(self) -> Any:
        """What changes when somebody writes to the file meanwhile."""
        if not self._seekable:
            return None
        status = os.fstat(self._source.fileno())
        return status.st_size, status.st_mtime_ns

    async def run(self) -> Reply:
        """Do it all; the answer is the receipt of the COMMIT."""
        clock, since, pause = self._farm.clock, None, COMMIT_PAUSE
        while True:
            try:
                return await self._farm.run(self._over)
            except MissingChunks:
                # Too few copies of chunks that were there already: to PUT them again makes up for it.
                found, self._found = self._found, []
                for position in found:
                    await self._farm.run(lambda link, position=position: self._again(link, position))  # type: ignore[misc]
                if found:
                    continue
                # Or of what was acknowledged, because a holder has been stopped since. The others are copying it by
                # now, for whoever was asked to commit has told them.
                since = clock.seconds() if since is None else since
                if clock.seconds() - since >= self._farm.timeout:
                    raise
            await deferLater(clock, pause)
            pause = min(2 * pause, COMMIT_PAUSE_MAX)

    async def _over(self, link: LineClient) -> Reply:
        """Go on over this link."""
        if not self._chunk_size:
            assert link.hello is not None
            self._chunk_size = int(link.hello.fields["chunksize"])
        sending = _Sending(self, link)
        for position in sorted(self._flight):
            sending.put(position)
        # A new link may be to a server that knows of what the last one took.
        self._send_unasked, self._ask = 0, 1
        while not self._ended:
            if self._seekable and self._send_unasked == 0:
                await sending.drained(0)
                await self._ask_first(link)
                continue
            await sending.drained(self._in_flight - 1)
            await self._read_one(sending)
        await sending.drained(0)
        if self._mark() != self._began:
            raise FarmError("the file was changed while it was being read; put it again")
        manifest = b"".join(self._digests)
        return await link.request(
            f"COMMIT {quote(self._name)} {self._size} {self._chunk_size} {len(manifest)}", (manifest,)
        )

    async def _read_one(self, sending: _Sending) -> None:
        position = len(self._digests)
        data, digest = await self._run(self._load, position)
        if not data:
            self._ended = True
            return
        self._digests.append(digest)
        self._size += len(data)
        self._flight[position] = data
        self._send_unasked = max(0, self._send_unasked - 1)
        sending.put(position)

    async def _ask_first(self, link: LineClient) -> None:
        """Hash some chunks and skip those that the farm has; the first that it has not ends the asking."""
        first = len(self._digests)
        hashed = await self._run(self._hash, first, self._ask)
        if not hashed:
            self._ended = True
            return
        if first == 0 and len(hashed) == 1 and hashed[0][1] < self._chunk_size:
            # One small chunk is sent in the time that it takes to ask.
            self._send_unasked = ASK_AGAIN_AFTER
            return
        reply = await link.request("HAVE " + " ".join(digest.hex() for digest, _ in hashed))
        for (digest, length), row in zip(hashed, reply.parsed(), strict=True):
            if row["copies"] == "0":
                self._send_unasked, self._ask = ASK_AGAIN_AFTER, 1
                return
            self._found.append(len(self._digests))
            self._digests.append(digest)
            self._size += length
            self._farm.moved()
            self._on_bytes(length)
        self._ask = min(8 * self._ask, ASK_BATCH_MAX)

    async def _again(self, link: LineClient, position: int) -> None:
        data, digest = await self._run(self._load, position)
        if digest != self._digests[position]:
            raise FarmError("the file was changed while it was being read; put it again")
        await link.request(f"PUT {digest.hex()} {len(data)}", (data,))
        self._farm.moved()

    def acknowledged(self, position: int) -> None:
        """The farm has this chunk."""
        data = self._flight.pop(position, b"")
        self._farm.moved()
        self._on_bytes(len(data))

    def request_for(self, position: int) -> tuple[str, bytes]:
        """The PUT of a chunk in flight."""
        data = self._flight[position]
        return f"PUT {self._digests[position].hex()} {len(data)}", data

    @property
    def _in_flight(self) -> int:
        return max(IN_FLIGHT_MIN, min(IN_FLIGHT_MAX, IN_FLIGHT_BYTES // self._chunk_size))

    @property
    def flying(self) -> int:
        """How many chunks are not acknowledged yet."""
        return len(self._flight)

    # On a thread.

    def _load(self, position: int) -> tuple[bytes, bytes]:
        if self._seekable:
            self._source.seek(position * self._chunk_size)
        parts = []
        left = self._chunk_size
        while left:
            part = self._source.read(left)
            if part is None:
                # A standard input that never waits has nothing now, which is not its end: whoever shares it made it so.
                select.select([self._source], [], [])
                continue
            if not part:
                break
            parts.append(part)
            left -= len(part)
        data = b"".join(parts) if len(parts) != 1 else parts[0]
        return data, digest_of(data)

    def _hash(self, first: int, count: int) -> list[tuple[bytes, int]]:
        found = []
        for position in range(first, first + count):
            data, digest = self._load(position)
            if not data:
                break
            found.append((digest, len(data)))
        return found


class _Sending:
    """The PUTs over one link."""

    def __init__(self, upload: Upload, link: LineClient) -> None:
        self._upload = upload
        self._link = link
        self._error: BaseException | None = None
        self._waiting: Deferred[None] | None = None

    def put(self, position: int) -> None:
        """Send a chunk."""
        line, data = self._upload.request_for(position)
        sent = self._link.request(line, (data,))
        sent.addCallback(lambda _: self._upload.acknowledged(position))
        sent.addErrback(self._failed)
        sent.addCallback(lambda _: self._wake())

    def _failed(self, failure: Any) -> None:
        self._error = self._error or failure.value

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    async def drained(self, most: int) -> None:
        """Wait until at most so many chunks are in flight; raises what a PUT failed with."""
        while self._error is None and self._upload.flying > most:
            self._waiting = Deferred()
            await self._waiting
        if self._error is not None:
            raise self._error
