"""Reads every chunk on this disk, one after the other and gently, and compares it with its digest.

A damaged chunk is put aside by the store, which tells the caretaker. Where it stands is kept in a small file, so
that a server that starts often comes round all the same; nothing is lost with the file but that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import frozen
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from chunkfarm.chunks.chunkfile import is_unreadable
from chunkfarm.chunks.loop import Loop
from chunkfarm.chunks.loose import PREFIXES
from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.data_directory import write_atomically
from chunkfarm.errors import NotFound
from chunkfarm.model import DIGEST_LENGTH, MIB

ROUND_SECONDS = 14 * 86_400
"""In which every chunk is read once: bad sectors are found while there are other copies, and 10 TB are 9 MB/s."""
RATE_MIN = MIB
"""Bytes a second at least, so that a small store is done soon and then rests; a disk does not feel it."""
START_SECONDS = 60.0
"""After a start of this process, which has other things to do then."""
SAVE_SECONDS = 60.0
"""Between two notes of where it stands."""
BUSY_SECONDS = 5.0
"""How long it makes room for foreground work before each chunk."""
FAILED_SECONDS = 60.0


@frozen
class Position:
    """Where a round stands."""

    began: int = 0
    """ms since 1970; 0: no round was begun yet."""
    last: bytes = b""
    """The chunk that was read last; all digests up to it are done."""
    done: bool = False
    entered: int = 0
    """When it came to the chunks that begin like the last one; ms since 1970, 0 if that is not known."""

    @property
    def percent(self) -> int:
        """How much of the store has been read, by the digests, which are spread evenly."""
        return 100 if self.done else 100 * int.from_bytes(self.last[:2].ljust(2, b"\0"), "big") // 65_536

    def to_json(self) -> bytes:
        told = {"began": self.began, "last": self.last.hex(), "done": self.done, "entered": self.entered}
        return json.dumps(told).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Position:
        """The reverse; what cannot be read is the beginning."""
        try:
            told = json.loads(text)
            last = bytes.fromhex(told["last"])
            position = cls(int(told["began"]), last, bool(told["done"]), int(told.get("entered", 0)))
        except (ValueError, KeyError, TypeError):
            return cls()
        return position if len(position.last) in (0, DIGEST_LENGTH) else cls()


class Scrub(Loop):
    """The round over this disk. `now` is the wall clock in ms; `used` the bytes held, `busy` whether users wait."""

    _log = Logger()

    def __init__(
        self,
        store: ChunkStore,
        path: Path,
        clock: IReactorTime,
        now: Callable[[], int],
        run_in_thread: RunInThread,
        used: Callable[[], int],
        busy: Callable[[], bool],
    ) -> None:
        super().__init__(
            clock,
            "verifying the chunks of this server",
            start_seconds=START_SECONDS,
            failed_seconds=FAILED_SECONDS,
            busy=busy,
        )
        self._store = store
        self._path = path
        self._now = now
        self._run_in_thread = run_in_thread
        self._used = used
        self._position = Position()
        self._saved_at = 0.0
        self._said = ""
        """Why its position could not be saved last."""
        self._failed = b""
        """The chunk, or the beginning of those, that could not be read last."""

    @property
    def percent(self) -> int:
        """How much of the present round is done."""
        return self._position.percent

    async def _begin(self) -> None:
        self._position = Position.from_json(await self._run_in_thread(self._load))

    async def _step(self) -> float:
        await self._wait_for_round()
        await self._round()
        return 0.0

    async def _wait_for_round(self) -> None:
        while self._position.done and 0 <= self._now() - self._position.began < ROUND_SECONDS * 1000:
            await self._store.save_verified()
            await deferLater(self._clock, SAVE_SECONDS)
        if self._position.done or not self._position.began:
            self._position = Position(self._now())

    async def _round(self) -> None:
        begin = self._position.last
        for prefix in range(begin[0] if begin else 0, PREFIXES):
            goes_on = begin and begin[0] == prefix
            entered = self._position.entered if goes_on else self._now()
            digests = await self._scan(prefix)
            if digests is None:
                continue
            for digest in digests:
                if digest > begin:
                    entered = await self._verify(digest, entered)
            if entered:
                await self._store.passed(prefix, entered)
        self._position = Position(self._position.began, b"\xff" * DIGEST_LENGTH, True)
        await self._note_position()

    async def _note_position(self) -> None:
        try:
            await self._run_in_thread(self._save)
        except OSError as error:
            # A full disk, say. It only means that the next process begins where this one did.
            if str(error) != self._said:
                self._said = str(error)
                self._log.warn("It cannot be noted how far the chunks were verified: {error}", error=error)

    async def _scan(self, prefix: int) -> Sequence[bytes] | None:
        try:
            return await self._store.scan(prefix)
        except CancelledError:
            raise
        except Exception:
            self._pass_over(bytes([prefix]), f"chunks of {prefix:02x}")
            return None

    def _pass_over(self, what: bytes, named: str) -> None:
        """In the handling of an error: raise it again, the first time, for it may have been for a moment only."""
        if what != self._failed:
            self._failed = what
            raise
        self._log.failure("while verifying {named}, passed over", named=named)

    async def _verify(self, digest: bytes, entered: int) -> int:
        """Gives `entered`, or 0 if the chunk could not be read: then not all were that begin like it."""
        await self._make_room(BUSY_SECONDS)
        length = 0
        try:
            length = await self._store.check(digest, note=False)
        except NotFound:
            # It was removed, or was damaged: then the store has told of it.
            pass
        except CancelledError:
            raise
        except Exception:
            self._pass_over(digest, f"chunk {digest.hex()}")
            entered = 0
        self._position = Position(self._position.began, digest, entered=entered)
        if self._clock.seconds() - self._saved_at >= SAVE_SECONDS:
            self._saved_at = self._clock.seconds()
            await self._note_position()
            await self._store.save_verified()
        await deferLater(self._clock, length / max(RATE_MIN, self._used() / ROUND_SECONDS))
        return entered

    # On a thread.

    def _load(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and not is_unreadable(error):
                raise
            return b""

    def _save(self) -> None:
        write_atomically(self._path, self._position.to_json())
