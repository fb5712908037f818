"""People who use the farm of a drill: they put and get files, and remember what was acknowledged to them."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults, maybeDeferred
from twisted.internet.task import deferLater

from chunkfarm.cli import farm as cli
from chunkfarm.cli.download import Download
from chunkfarm.cli.upload import Upload
from chunkfarm.drill.story import DrillFailed
from chunkfarm.errors import FarmError
from chunkfarm.links.lines import Reply

SIZES = (1_000, 40_000, 200_000, 1_200_000)
"""Of the files: packed chunks, a chunk of its own, and several of them."""
PAUSE_SECONDS = 0.1
"""Between two files of one person: a drill is to show what happens, and reads everything back; it need not fill the
machine."""

P = ParamSpec("P")
T = TypeVar("T")
Way = Callable[..., cli.Farm]
"""Opens a way to servers by their names, as `DrillFarm.people`."""


def at_once(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """Files of a drill are small, and in memory."""
    return maybeDeferred(function, *args, **kwargs)


async def put(way: cli.Farm, name: str, data: bytes) -> Reply:
    """Store a file as the `chunkfarm` command does; gives the receipt. Raises `FarmError`."""
    upload = Upload(way, io.BytesIO(data), name, seekable=False, run_in_thread=at_once, on_bytes=lambda done: None)
    return await upload.run()


async def get(way: cli.Farm, name: str) -> bytes:
    """Fetch a file as the `chunkfarm` command does. Raises `FarmError`."""
    target = io.BytesIO()
    download = Download(way, name, target, can_restart=True, on_size=lambda size: None, on_bytes=lambda done: None)
    await download.run()
    return target.getvalue()


@define
class Load:
    """Some people who store files without a rest, each under a new name, until they are stopped.

    `orders` are the servers that each of them tries, in this order.
    """

    clock: Any
    way: Way
    orders: Sequence[Sequence[str]]
    prefix: str
    timeout: float = 60.0
    sizes: Sequence[int] = SIZES
    store: Callable[[cli.Farm, str, bytes], Awaitable[object]] = put
    acknowledged: dict[str, str] = field(factory=dict, init=False)
    """Digests, by name."""
    refusals: list[str] = field(factory=list, init=False)
    begun: int = field(default=0, init=False)
    _stopping: bool = field(default=False, init=False)
    _work: list[Deferred[None]] = field(factory=list, init=False)
    _waiting: list[tuple[Callable[[float], bool], Deferred[float]]] = field(factory=list, init=False)

    def start(self) -> None:
        """Set them to work."""
        self._work = [Deferred.fromCoroutine(self._store(number)) for number in range(len(self.orders))]

    @property
    def under_way(self) -> int:
        """How many files are neither acknowledged nor refused yet."""
        return self.begun - len(self.acknowledged) - len(self.refusals)

    async def _store(self, number: int) -> None:
        chance = random.Random(f"{self.prefix} {number}")  # noqa: S311 - any bytes will do
        way = self.way(*self.orders[number], timeout=self.timeout)
        count = 0
        try:
            while not self._stopping:
                data = chance.randbytes(chance.choice(self.sizes))
                name, count = f"{self.prefix}/{number}-{count}", count + 1
                self.begun += 1
                began = self.clock.seconds()
                try:
                    await self.store(way, name, data)
                except CancelledError:
                    raise
                except (FarmError, OSError) as error:
                    self.refusals.append(f"{name}: {cli.sentence_of(error)}")
                else:
                    self.acknowledged[name] = hashlib.sha256(data).hexdigest()
                    self._tell(began)
                await deferLater(self.clock, PAUSE_SECONDS)
        finally:
            way.hang_up()

    def _tell(self, began: float) -> None:
        waiting, self._waiting = self._waiting, []
        for suits, deferred in waiting:
            if suits(began):
                deferred.callback(self.clock.seconds())
            else:
                self._waiting.append((suits, deferred))

    async def first_begun_after(self, moment: float, seconds: float) -> float:
        """When a write was acknowledged first that began after `moment`; raises `DrillFailed` after that time.

        One that was under way before may have been done already, with only its answer on the way.
        """
        told: Deferred[float] = Deferred()
        self._waiting.append((lambda began: began >= moment, told))
        told.addTimeout(seconds, self.clock)
        try:
            return await told
        except CancelledError:
            raise
        except Exception:
            last = f": {self.refusals[-1]}" if self.refusals else ""
            raise DrillFailed(f"no write was acknowledged again within {seconds:g} s{last}") from None

    async def some_more(self, count: int, seconds: float) -> None:
        """Wait until so many more files are acknowledged; raises `DrillFailed`."""
        for _ in range(count):
            await self.first_begun_after(float("-inf"), seconds)

    async def stop(self) -> None:
        """Let them end what they do."""
        self._stopping = True
        await together(self._work)

    def drop(self) -> None:
        """Send them away in the middle of what they do."""
        for work in self._work:
            work.addErrback(lambda _: None)
            work.cancel()


async def together(work: Iterable[Deferred[T]]) -> list[T]:
    """Wait for all of them; raises what the first that fails does."""
    try:
        return await gatherResults(work, consumeErrors=True)
    except FirstError as error:
        # What really happened stands in it: a Ctrl-C, say.
        raise error.subFailure.value or error from None


async def digests(way: cli.Farm, names: Sequence[str]) -> dict[str, str]:
    """What is read under these names, as digests; in place of one that cannot be read there is the reason."""
    found = {}
    for name in names:
        try:
            found[name] = hashlib.sha256(await get(way, name)).hexdigest()
        except CancelledError:
            raise
        except (FarmError, OSError) as error:
            found[name] = cli.sentence_of(error)
    return found
