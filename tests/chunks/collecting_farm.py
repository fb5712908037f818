"""One server that collects, its disk, the masters' table, and people who put and remove files meanwhile.

Everything that is asked takes some time there and back, so that answers cross. `grace` is 0 by default: then pins
protect nobody, and what is left is what safety hangs on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from chunkfarm.chunks.collecting import Collector
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.errors import FarmError
from chunkfarm.model import GIB, digest_of
from tests.chunks.builders import run_now

P = ParamSpec("P")
T = TypeVar("T")

PREFIXES = 2
"""Chunks begin with one of so many bytes: a round is short then."""


class EpochMoved(Exception):
    """A commit named an epoch that is over."""


def chunk(number: int) -> bytes:
    """The bytes of chunk number `number`, which begins with one of the first bytes."""
    attempt = 0
    while digest_of(data := b"%d %d" % (number, attempt))[0] >= PREFIXES:
        attempt += 1
    return data


@define
class Masters:
    """The table as far as it matters here. `error` is what everybody is told who asks."""

    files: dict[str, frozenset[bytes]] = field(factory=dict)
    epoch: int = 1
    error: Exception | None = None
    asked: list[int] = field(factory=list)

    def commit(self, name: str, digests: Sequence[bytes], epoch: int) -> None:
        """Give chunks a name, if the epoch is still the one in which holders were asked about them."""
        if epoch != self.epoch:
            raise EpochMoved
        self.files[name] = frozenset(digests)

    def count(self, digests: Sequence[bytes]) -> list[int]:
        if self.error is not None:
            raise self.error
        self.asked.append(len(digests))
        return [sum(digest in used for used in self.files.values()) for digest in digests]

    def read_epoch(self) -> int:
        if self.error is not None:
            raise self.error
        return self.epoch


MakeCollector = Callable[..., Collector]
MakeStore = Callable[..., ChunkStore]


class CollectingFarm:
    """With `delays` every question and everything that a disk does takes one of these times."""

    def __init__(
        self,
        directory: Path,
        seed: int = 0,
        *,
        delays: Sequence[float] = (),
        grace: float = 0.0,
        make_collector: MakeCollector = Collector,
        make_store: MakeStore = ChunkStore,
    ) -> None:
        self.clock = Clock()
        self.random = Random(seed)
        self.delays = delays
        self.grace = grace
        self.busy = False
        self.hindered = ""
        self.masters = Masters()
        self.story: list[str] = []
        self.committed = self.refused = 0
        self.store = make_store(
            directory,
            directory / "index.sqlite",
            self.on_disk if delays else run_now,
            reserve=0,
            room=lambda path: (GIB, GIB),
            grace=lambda: self.grace,
            seconds=self.clock.seconds,
        )
        self.store.start()
        self.collector = make_collector(
            self.store,
            self.uses,
            lambda: self.ask(self.masters.read_epoch),
            lambda: self.grace,
            self.clock,
            busy=lambda: self.busy,
            hindered=lambda: self.hindered,
        )
        self.pass_time(1)

    # How anything takes time.

    def delay(self) -> float:
        return self.random.choice(self.delays) if self.delays else 0.0

    def on_disk(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return deferLater(self.clock, self.delay(), function, *args, **kwargs)

    def ask(self, question: Callable[[], T]) -> Deferred[T]:
        """There, the question at one moment, and back."""
        if not self.delays:
            return execute(question)
        answer: Deferred[T] = deferLater(self.clock, self.delay(), question)
        return answer.addBoth(lambda result: deferLater(self.clock, self.delay(), lambda: result))

    def uses(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self.ask(lambda: self.masters.count(digests))

    def pass_time(self, seconds: float) -> None:
        """From event to event, so that nothing that comes between them is passed over."""
        end = self.clock.seconds() + seconds
        while calls := [call.getTime() for call in self.clock.getDelayedCalls()]:
            if min(calls) > end:
                break
            self.clock.advance(max(0.0, min(calls) - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    # What people do.

    def has(self, digest: bytes) -> bool:
        """Whether the bytes are on the disk at this moment."""
        return self.store._whole(digest) is not None

    def put(self, *numbers: int) -> list[bytes]:
        """Store chunks that no file uses."""
        for number in numbers:
            self.store.put(None, chunk(number))
        self.pass_time(2)
        return [digest_of(chunk(number)) for number in numbers]

    def write(self, name: str, numbers: Sequence[int]) -> Deferred[None]:
        """What a client and the catalog do: ask who has the chunks, send what is missing, commit, some times over."""
        return Deferred.fromCoroutine(self._write(name, numbers))

    async def _write(self, name: str, numbers: Sequence[int]) -> None:
        digests = [digest_of(chunk(number)) for number in numbers]
        for _ in range(5):
            epoch = self.masters.epoch
            await self.ask(lambda: None)
            there = await self._hold(digests)
            for number, digest in zip(numbers, digests, strict=True):
                if digest not in there:
                    self.say(f"{name} sends {digest.hex()[:8]}")
                    await self.ask(lambda: None)
                    await self.store.put(digest, chunk(number))
                    await self.ask(lambda: None)
            try:
                await self.ask(lambda: self.masters.commit(name, digests, epoch))  # noqa: B023
            except EpochMoved:
                self.refused += 1
                self.say(f"{name} is refused, the epoch is not {epoch} any more")
                continue
            self.committed += 1
            self.say(f"{name} is told that it is stored")
            return

    async def _hold(self, digests: Sequence[bytes]) -> set[bytes]:
        await self.ask(lambda: None)
        held = await self.store.hold(digests)
        await self.ask(lambda: None)
        return {digest for digest, length in zip(digests, held, strict=True) if length}

    def remove(self, name: str) -> None:
        self.masters.files.pop(name, None)
        self.say(f"{name} is removed")

    def say(self, text: str) -> None:
        self.story.append(f"{self.clock.seconds():8.2f}  {text}")

    # A whole history.

    def run(self, steps: int = 60) -> None:
        """People do what they do, at random; raises `AssertionError` as soon as a file lacks a chunk."""
        self.collector.start()
        number = 0
        for _ in range(steps):
            what = self.random.choice(("write", "write", "remove", "remove", "remove", "epoch", "wait"))
            if what == "write":
                number += 1
                numbers = self.random.sample(range(6), self.random.randint(1, 2))
                self.write(f"file {number}", numbers).addErrback(self._no_room)
            elif what == "remove" and self.masters.files:
                self.remove(self.random.choice(sorted(self.masters.files)))
            elif what == "epoch":
                self.masters.epoch += 1
                self.say(f"the epoch is {self.masters.epoch}")
            self._pass_and_look(self.random.choice((0.0, 0.2, 1.0, 3.0)))
        self._pass_and_look(20.0)

    def _no_room(self, failure: Failure) -> None:
        failure.trap(FarmError)

    def _pass_and_look(self, seconds: float) -> None:
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.pass_time(min(0.1, end - self.clock.seconds()))
            for name, digests in self.masters.files.items():
                for digest in digests:
                    assert self.has(digest), f"{name} has lost {digest.hex()[:8]}"

    def close(self) -> None:
        with suppress(Exception):
            self.collector.stop()
        self.store.close()


def never(_: Any) -> Deferred[Any]:
    """A question that is not answered."""
    return fail(FarmError("nobody answers"))
