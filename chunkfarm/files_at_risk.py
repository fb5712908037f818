"""How many files can be lost now, and which: the first asks who has told of chunks at risk, and the masters' index.

Reports tell of chunks and bytes alone, so that a thousand servers at rest send no more for this. The files are counted
when somebody wants to know (STATUS, or whoever reads the metrics): the first takes the servers and pairs of servers
that it names, asks those who answer for their chunks which these are (`AtRisk`, eight bytes of each digest), and looks
them up in its index of which files use a chunk. What was counted is kept for a while, and counted anew at most so often
that a small part of the time goes into it. All other servers ask the first (`LostFiles`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, execute, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from chunkfarm.errors import FarmError
from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import check_server_id
from chunkfarm.risk import Exposed, FilesOf, LostFiles, Risk
from chunkfarm.said import lost_files_of

KEYS_MAX = 50_000
"""Chunks of one server or pair that are looked up, a few seconds' work of a thread; with more it is `at least`."""
KEYS_IN_ALL_MAX = 200_000
"""Of all together: with two copies every chunk is at risk with some pair."""
PAGES_MAX = 400
"""Questions to one server about one set: with a million chunks there, few of which are of this set, it needs 125."""
LOOKED_UP_AT_ONCE = 500
"""Chunks in one step, for which the index is locked: some ten milliseconds on a cold disk."""
OLD_SECONDS = 60.0
"""After so long it is counted anew although the chunks at risk are as many as they were: files are removed."""
FRESH_SECONDS = 5.0
"""It is never counted anew sooner, while copies come and go."""
REST_FACTOR = 20
"""Nor sooner than after so many times as long as it took."""
ANSWER_SECONDS = 10.0
"""For one answer of another server."""
WAIT_SECONDS = 2.0
"""How long whoever asks waits for the first count, or for a newer one; after that the last one has to do."""
FIRST_SECONDS = WAIT_SECONDS + 1.0
"""For the answer of the first."""
NAMES_MAX = 3
"""Names of files that are told of one set."""
NAMES_BYTES_MAX = 16_000
"""Bytes of all names in one answer, which has to fit 65,535 with what JSON makes of them."""

KEY = struct.Struct("!Q")
"""The beginning of one digest in an answer."""


class Files(Protocol):
    """What of `references.References` is needed here."""

    @property
    def hindrance(self) -> str: ...

    def files_with(self, keys: Sequence[bytes]) -> Deferred[tuple[frozenset[int], bool]]: ...

    def names_of(self, files: Sequence[int]) -> Deferred[list[str]]: ...


Ask = Callable[[str, tuple[str, ...], int], Deferred[tuple[Sequence[int], int | None]]]
"""Asks a server (its id) for the keys of the chunks of a set, from one on; gives them, and where to go on, or None."""


@frozen
class Told:
    """Chunks of one set, and the servers that have told of some of them and can be asked."""

    exposed: Exposed
    tellers: tuple[str, ...]


@define
class _Set:
    """What is found of one set."""

    told: Told
    files: set[int] = field(factory=set)
    at_least: bool = False
    known: bool = False
    """Whether anybody has said which chunks these are."""
    names: list[str] = field(factory=list)


class FilesAtRisk:
    """Counts, on the server that leads. `told` gives what can be lost now, the most dangerous first."""

    _log = Logger()

    def __init__(self, told: Callable[[], tuple[Told, ...]], ask: Ask, files: Files, clock: IReactorTime) -> None:
        self._told = told
        self._ask = ask
        self._files = files
        self._clock = clock
        self._found: LostFiles | None = None
        self._of: tuple[Told, ...] = ()
        self._ended = float("-inf")
        """When it was counted last."""
        self._took = 0.0
        self._running: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []

    def known(self, seconds: float = WAIT_SECONDS) -> Deferred[LostFiles | None]:
        """What can be lost in files, as it was counted of late, or after at most so many seconds; None if never yet."""
        told = self._told()
        if not told:
            return succeed(LostFiles())
        now = self._clock.seconds()
        age = now - self._ended
        is_old = age >= OLD_SECONDS or (told != self._of and age >= FRESH_SECONDS)
        if self._running is None and is_old and age >= REST_FACTOR * self._took:
            self._begin(told)
        if self._running is None:
            return succeed(self._found)
        return Deferred.fromCoroutine(self._wait(seconds))

    def stop(self) -> Deferred[None]:
        """Give up what is under way."""
        running, self._running = self._running, None
        if running is None:
            return succeed(None)
        running.cancel()
        return running

    def _begin(self, told: tuple[Told, ...]) -> None:
        began = self._clock.seconds()
        running = Deferred.fromCoroutine(self._count(told)).addErrback(self._failed).addBoth(self._over, began)
        if not running.called:
            self._running = running

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("while counting the files that can be lost", failure)

    def _over(self, _: object, began: float) -> None:
        self._running, self._ended = None, self._clock.seconds()
        self._took = self._ended - began
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    async def _wait(self, seconds: float) -> LostFiles | None:
        waiter: Deferred[None] = Deferred()

        def late() -> None:
            self._waiting.remove(waiter)
            waiter.callback(None)

        self._waiting.append(waiter)
        call = self._clock.callLater(seconds, late)
        try:
            await waiter
        finally:
            if call.active():
                call.cancel()
            if waiter in self._waiting:
                self._waiting.remove(waiter)
        return self._found

    # Counting.

    async def _count(self, told: tuple[Told, ...]) -> None:
        sets: list[_Set] = []
        left = KEYS_IN_ALL_MAX
        for one in told:
            found = _Set(one)
            left -= await self._count_one(found, min(KEYS_MAX, left))
            sets.append(found)
        await self._name(sets)
        self._found, self._of = _summed(sets), told

    async def _count_one(self, found: _Set, most: int) -> int:
        """Look up the chunks of one set, so many at most; gives how many it were."""
        looked_up = 0
        for server_id in found.told.tellers:
            start: int | None = 0
            for _ in range(PAGES_MAX):
                if start is None or looked_up >= most:
                    break
                try:
                    asked = self._ask(server_id, found.told.exposed.holders, start)
                    keys, start = await asked.addTimeout(ANSWER_SECONDS, self._clock)
                    keys = keys[: most - looked_up]
                    await self._look_up(found, keys)
                except CancelledError:
                    raise
                except Exception as error:
                    # It is of an earlier version, or gone; or this server does not hold the table any more.
                    self._log.debug("{server} does not say what can be lost: {error}", server=server_id, error=error)
                    break
                looked_up += len(keys)
            found.at_least = found.at_least or start is not None
        found.at_least = found.at_least or looked_up < found.told.exposed.chunks or bool(self._files.hindrance)
        found.known = looked_up > 0
        return looked_up

    async def _look_up(self, found: _Set, keys: Sequence[int]) -> None:
        for start in range(0, len(keys), LOOKED_UP_AT_ONCE):
            began = self._clock.seconds()
            some = [KEY.pack(key) for key in keys[start : start + LOOKED_UP_AT_ONCE]]
            files, is_cut = await self._files.files_with(some)
            found.files |= files
            found.at_least = found.at_least or is_cut
            if (elapsed := self._clock.seconds() - began) > 0:
                await deferLater(self._clock, elapsed)

    async def _name(self, sets: Iterable[_Set]) -> None:
        room = NAMES_BYTES_MAX
        for one in sets:
            for name in sorted(await self._files.names_of(sorted(one.files)[:NAMES_MAX])):
                if (room := room - len(name.encode())) < 0:
                    return
                one.names.append(name)


def _summed(sets: Sequence[_Set]) -> LostFiles:
    ones = [one for one in sets if len(one.told.exposed.holders) == 1]
    twos = [one for one in sets if len(one.told.exposed.holders) == 2]
    return LostFiles(
        sets=tuple(
            FilesOf(one.told.exposed.holders, len(one.files), one.at_least, tuple(one.names))
            for one in sets
            if one.known
        ),
        one=len(set().union(*(one.files for one in ones))),
        one_at_least=any(one.at_least for one in ones),
        two=len(set().union(*(one.files for one in twos))),
        two_at_least=any(one.at_least for one in twos),
    )


class Peers(Protocol):
    """What of `links.peers.Peers` is needed here."""

    def call(
        self, server_id: str, command: type[amp.Command], timeout: float = ..., **arguments: Any
    ) -> Deferred[dict[str, Any]]: ...


@define(eq=False)
class RiskLink:
    """How servers ask each other about what can be lost. `first` is the id of the server that leads, or empty."""

    self_id: str
    peers: Peers
    page: Callable[[tuple[str, ...], int], tuple[Sequence[int], int | None]]
    """Answers `ask` on this server."""
    first: Callable[[], str]

    def ask(self, server_id: str, holders: tuple[str, ...], start: int) -> Deferred[tuple[Sequence[int], int | None]]:
        """The keys of chunks of which these servers have all copies, by that server's word, as in `AtRisk.page`."""
        if server_id == self.self_id:
            return execute(self.page, holders, start)
        arguments = {"holders": ",".join(holders), "start": KEY.pack(start)}
        return self.peers.call(server_id, commands.AtRisk, ANSWER_SECONDS, **arguments).addCallback(_page_of)

    def answer(self, holders: str, start: bytes) -> dict[str, bytes]:
        """What this server answers to that question; raises `ValueError` for one that makes no sense."""
        if len(start) != KEY.size:
            raise ValueError("start is eight bytes")
        keys, following = self.page(tuple(map(check_server_id, holders.split(","))), KEY.unpack(start)[0])
        return {"keys": b"".join(map(KEY.pack, keys)), "next": b"" if following is None else KEY.pack(following)}

    def lost_files(self) -> Deferred[LostFiles | None]:
        """What the first has counted; None if it does not say."""
        first = self.first()
        if not first or first == self.self_id:
            return succeed(None)
        asked = self.peers.call(first, commands.LostFiles, FIRST_SECONDS)
        return asked.addCallback(lambda box: lost_files_of(box["answer"])).addErrback(_not_told)


def _page_of(box: Mapping[str, Any]) -> tuple[Sequence[int], int | None]:
    if len(box["keys"]) % KEY.size or len(box["next"]) not in (0, KEY.size):
        raise LinkFailed("its answer makes no sense")
    return [key for (key,) in KEY.iter_unpack(box["keys"])], KEY.unpack(box["next"])[0] if box["next"] else None


def _not_told(failure: Failure) -> None:
    failure.trap(LinkFailed, FarmError, ValueError, commands.NotFirst, commands.NotNow, commands.BadRequest)


def told_by(exposed: Iterable[Exposed], said: Mapping[str, Risk]) -> tuple[Told, ...]:
    """What can be lost, with those who have told of it; `said` is what each server that is up has told."""
    tellers: dict[tuple[str, ...], list[str]] = {}
    for server_id, risk in said.items():
        for one in risk.sets:
            tellers.setdefault(one.holders, []).append(server_id)
    return tuple(Told(one, tuple(sorted(tellers.get(one.holders, ())))) for one in exposed)
