"""The running farm: how far each server is, and how fast files go in and come out. What is stored is removed again."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import IO, Any, cast

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from chunkfarm.bench.bounds import MIB, median
from chunkfarm.cli.download import Download
from chunkfarm.cli.farm import Farm, sentence_of
from chunkfarm.cli.threads import RunInThread
from chunkfarm.cli.upload import Upload
from chunkfarm.config import Listed
from chunkfarm.drill.people import together
from chunkfarm.errors import FarmError, Mismatch, NotFound
from chunkfarm.links.lines import LineClient
from chunkfarm.wire.lines import quote

PINGS = 50
LINK_BYTES = 32 * MIB
LINK_PIECE = 4 * MIB
"""Chunks that are sent to a server under a wrong digest: it takes them in, hashes them, and refuses them, so nothing is
stored. Four are under way at a time."""
SMALL_FILES = 200
SMALL_BYTES = 64 * 1024
PEOPLE = 8
LIST_PAGE = 1000
REMOVE_SECONDS = 20.0
"""To remove what was stored, when nobody wants the figures any more."""
LAST_LOOKS = 2
LATE_SECONDS = 0.5
"""Between two looks that find nothing: a commit that was under way when its link ended may still be done."""
WRONG = "0" * 64


class Content(io.RawIOBase):
    """A file of so many bytes whose chunks all differ, at no cost: a block of random bytes with a number in it."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._block = bytearray(os.urandom(MIB))
        self._number = int.from_bytes(os.urandom(8), "big")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        length = min(self._left, len(self._block), self._left if size < 0 else size)
        self._number = (self._number + 1) % (1 << 64)
        self._block[:8] = self._number.to_bytes(8, "big")
        self._left -= length
        return bytes(self._block[:length])


class _Nowhere(io.RawIOBase):
    """Takes bytes and forgets them."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def truncate(self, size: int | None = None) -> int:
        return 0


@define
class Through:
    """A benchmark of one farm. `seconds` is a monotonic clock; names stand in a bucket that nobody else can have."""

    farm: Farm
    run_in_thread: RunInThread
    seconds: Callable[[], float]
    bucket: str = field(factory=lambda: f"bench-{secrets.token_hex(8)}")
    _ways: list[Farm] = field(factory=list, init=False)

    async def ask(self, line: str) -> list[dict[str, str]]:
        """The rows of an answer."""
        return (await self.farm.run(lambda link: link.request(line))).parsed()

    async def status(self) -> dict[str, str]:
        """What STATUS tells."""
        rows = (await self.farm.run(lambda link: link.request("STATUS"))).rows
        return {name: value for name, _, value in (row.partition("=") for row in rows)}

    async def link(self, server: Listed) -> tuple[float, float] | str:
        """Round trip in milliseconds and bytes a second to a server, or why there is none."""
        try:
            link = await self.farm.dial(server)
        except CancelledError:
            raise
        except Exception as error:
            return sentence_of(error)
        try:
            times = []
            for _ in range(PINGS):
                begun = self.seconds()
                await link.request("PING")
                times.append(self.seconds() - begun)
            return 1000 * median(times), await self._rate_to(link)
        except FarmError as error:
            return error.sentence
        finally:
            link.lose()

    async def _rate_to(self, link: LineClient) -> float:
        piece = os.urandom(LINK_PIECE)
        begun = self.seconds()
        sent = [
            Deferred.fromCoroutine(_refused(link, f"PUT {WRONG} {len(piece)}", piece))
            for _ in range(LINK_BYTES // LINK_PIECE)
        ]
        await together(sent)
        return LINK_BYTES / (self.seconds() - begun)

    async def put_large(self, size: int) -> float:
        """Bytes a second of storing one large file."""
        begun = self.seconds()
        await self._put(self.farm, "large", Content(size))
        return size / (self.seconds() - begun)

    async def get_large(self, size: int) -> float:
        """Bytes a second of reading it."""
        begun = self.seconds()
        await self._get(self.farm, "large")
        return size / (self.seconds() - begun)

    async def put_small(self, count: int = SMALL_FILES) -> float:
        """Files a second that several people store."""
        return await self._by_people(count, lambda way, name: self._put(way, name, Content(SMALL_BYTES)))

    async def get_small(self, count: int = SMALL_FILES) -> float:
        """Files a second that several people read."""
        return await self._by_people(count, self._get)

    async def _by_people(self, count: int, work: Callable[[Farm, str], Awaitable[object]]) -> float:
        names = [f"small-{number}" for number in range(count)]

        async def person(names: Sequence[str]) -> None:
            way = Farm(self.farm.clock, self.farm.servers, self.farm.dial, self.farm.probe, self.farm.timeout)
            try:
                for name in names:
                    await work(way, name)
            finally:
                way.hang_up()

        begun = self.seconds()
        await together(Deferred.fromCoroutine(person(names[turn::PEOPLE])) for turn in range(PEOPLE))
        return count / (self.seconds() - begun)

    async def _put(self, way: Farm, name: str, content: io.RawIOBase) -> None:
        upload = Upload(
            way,
            cast(IO[bytes], content),
            f"{self.bucket}/{name}",
            seekable=False,
            run_in_thread=self.run_in_thread,
            on_bytes=lambda done: None,
        )
        await upload.run()

    async def _get(self, way: Farm, name: str) -> None:
        download = Download(
            way,
            f"{self.bucket}/{name}",
            cast(IO[bytes], _Nowhere()),
            can_restart=True,
            on_size=lambda size: None,
            on_bytes=lambda done: None,
        )
        await download.run()

    async def remove(self) -> int:
        """Remove what was stored; gives how many files that were. Raises `FarmError`."""
        # The link may be in the middle of something that nobody waits for any more.
        self.farm.hang_up()
        removed, looks = 0, 0
        while looks < LAST_LOOKS:
            rows = await self.ask(f"LIST {quote(self.bucket + '/')} - {LIST_PAGE}")
            for row in rows:
                with contextlib.suppress(NotFound):
                    await self.farm.run(lambda link, row=row: link.request(f"REMOVE {quote(row['name'])}"))  # type: ignore[misc]
            removed += len(rows)
            if not rows:
                looks += 1
                await deferLater(self.farm.clock, LATE_SECONDS)
        return removed


async def _refused(link: LineClient, line: str, payload: bytes) -> None:
    """Send bytes that the server takes in and refuses."""
    try:
        await link.request(line, (payload,))
    except Mismatch:
        return
    raise Mismatch("a server took a chunk under a digest that is not its own")
