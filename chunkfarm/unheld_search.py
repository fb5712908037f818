"""Looks for chunks of files that no server that answers has: the first goes through all that its index of uses names.

The caretakers look at chunks that somebody has. What all holders have lost, or took with them, nobody would miss: so
the first asks for each chunk that files use who has it, its owners first, and all others only for what those do not
have. Nothing is pinned and no byte of a chunk is read. It rests as long as each step took, and keeps a number, and a
few digests for people. Chunks of exports alone are not among them: every server says of those what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from chunkfarm.chunks.examining import together
from chunkfarm.chunks.holders import HAVE_TIMEOUT
from chunkfarm.chunks.loop import Loop
from chunkfarm.chunks.patience import reason_of
from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.links.interface import HAVE_DIGESTS_MAX
from chunkfarm.model import Server
from chunkfarm.references import CannotTell
from chunkfarm.unheld import (
    LOOK_SECONDS,
    Servers,
    Turns,
    Unheld,
    counted,
    found_so_far,
    living,
    owners_alive,
    questions,
    standing,
)

RETRY_SECONDS = 5.0
"""After the index could not be asked. And before those are asked once more that did not answer about chunks that nobody
else has: who is gone is down by then."""
SILENCES_MAX = 2
"""Steps in a row without an answer, after which a server is not waited for any more in the same look."""
SOME_MAX = 24
"""Digests that are remembered of those that are lost: a person looks for a pattern, not for a list."""
NAMES_MAX = 5
"""Files that the log names."""

Ask = Callable[[Server, Sequence[bytes]], Deferred[Sequence[int]]]
"""Asks a server for the lengths of up to `HAVE_DIGESTS_MAX` chunks, 0 for one that it has not."""


class Used(Protocol):
    """What of `references.References` is needed here."""

    @property
    def hindrance(self) -> str: ...

    def used_after(self, after: bytes, limit: int) -> Deferred[list[bytes]]: ...

    def still_used(self, digests: Sequence[bytes]) -> Deferred[list[bytes]]: ...

    def names(self, digest: bytes, limit: int) -> Deferred[list[str]]: ...


@define
class _Look:
    """One way through all chunks that files use."""

    after: bytes = b""
    unheld: int = 0
    some: list[bytes] = field(factory=list)
    silences: dict[str, int] = field(factory=dict)
    """For how many steps in a row a server did not answer."""


@define
class _Step:
    """Some chunks of them: which were not found yet, and who was asked in vain."""

    missing: dict[bytes, None]
    silent: set[str] = field(factory=set)


class UnheldSearch(Loop):
    """The loop. It works while `leads()`: while this server leads, and hears a majority of the masters.

    `missed` is how many chunks each server says to miss that it found nowhere. `before` is what was told last, by
    whoever led. `now` is the wall clock in ms.
    """

    def __init__(
        self,
        used: Used,
        ask: Ask,
        servers: Callable[[], Servers],
        replicas: Callable[[], int],
        leads: Callable[[], bool],
        missed: Callable[[], Mapping[str, int]],
        before: Callable[[], Unheld | None],
        clock: IReactorTime,
        now: Callable[[], int],
        run_in_thread: RunInThread,
    ) -> None:
        super().__init__(
            clock, "looking for chunks that no server has", start_seconds=LOOK_SECONDS, failed_seconds=RETRY_SECONDS
        )
        self._used = used
        self._ask = ask
        self._servers = servers
        self._replicas = replicas
        self._leads = leads
        self._missed = missed
        self._before = before
        self._now = now
        self._run_in_thread = run_in_thread
        self._turns = Turns()
        self._look: _Look | None = None
        self._logged = 0
        self.told: Unheld | None = None
        """What was found since this server leads; None as long as that is nothing."""

    def table_changed(self) -> None:
        """Servers came, went or changed."""
        if self._look is None:
            self._wake()

    async def _step(self) -> float:
        began = self._clock.seconds()
        if not self._leads():
            self._look, self.told, self._turns = None, None, Turns()
            return LOOK_SECONDS
        self._turns.note(standing(self._servers()), self._missed(), began)
        if self._turns.begins(began):
            self._look = _Look()
        if self._look is None:
            return self._turns.rest(began)
        try:
            await self._go_on(self._look)
        except BaseException as error:
            self._look = None
            self._turns.failed(self._clock.seconds(), RETRY_SECONDS)
            if not isinstance(error, CannotTell):
                raise
            self._log.debug("Nobody looks now for chunks that no server has: {why}", why=str(error))
        return self._clock.seconds() - began

    async def _go_on(self, look: _Look) -> None:
        """Look at the next chunks."""
        digests = await self._used.used_after(look.after, HAVE_DIGESTS_MAX)
        unheld = await self._find_unheld(look, digests)
        if unheld:
            # Their files may have been removed meanwhile, and they with them.
            unheld = await self._used.still_used(unheld)
        if not self._leads():
            return
        look.unheld += len(unheld)
        look.some += unheld[: SOME_MAX - len(look.some)]
        if len(digests) == HAVE_DIGESTS_MAX:
            look.after = digests[-1]
            self.told = found_so_far(self._known, look.unheld, self._now())
            return
        is_cut = bool(self._used.hindrance)
        self.told = counted(self._known, look.unheld, is_cut, self._now())
        self._look = None
        self._turns.over(self._clock.seconds(), again=bool(look.unheld or look.silences or is_cut))
        await self._say(look)

    @property
    def _known(self) -> Unheld | None:
        return self.told if self.told is not None else self._before()

    async def _find_unheld(self, look: _Look, digests: Sequence[bytes]) -> list[bytes]:
        """Those that nobody has who answers."""
        step = _Step(dict.fromkeys(digests))
        whom = {server.id for server in self._servers() if look.silences.get(server.id, 0) < SILENCES_MAX}
        line = await self._run_in_thread(owners_alive, digests, self._servers(), self._replicas())
        for rank in range(max(map(len, line.values()), default=0)):
            asked = questions(line, step.missing, rank)
            await self._ask_all(step, {id: some for id, some in asked.items() if id in whom})
        await self._ask_everybody(step, whom)
        heard = whom - step.silent
        if step.missing:
            # One that is on its way to another server may have been here not yet and there no more; and who did not
            # answer gets another chance.
            if step.silent:
                await deferLater(self._clock, RETRY_SECONDS)
            step.silent.clear()
            await self._ask_everybody(step, whom)
            look.silences |= dict.fromkeys(step.silent, SILENCES_MAX)
            heard = whom - step.silent
        for id in heard:
            look.silences.pop(id, None)
        for id in step.silent:
            look.silences[id] = look.silences.get(id, 0) + 1
        return list(step.missing)

    async def _ask_everybody(self, step: _Step, whom: Collection[str]) -> None:
        if asked := list(step.missing):
            ids = [server.id for server in living(self._servers()) if server.id in whom]
            await self._ask_all(step, dict.fromkeys(ids, asked))

    async def _ask_all(self, step: _Step, asked: Mapping[str, Sequence[bytes]]) -> None:
        """Ask servers, and take out of `missing` what they have; nobody is asked again who was silent."""
        rows = {server.id: server for server in self._servers()}
        whom = [id for id in asked if id in rows and id not in step.silent]
        await together(self._ask_one(step, rows[id], asked[id]) for id in whom)

    async def _ask_one(self, step: _Step, server: Server, digests: Sequence[bytes]) -> None:
        try:
            lengths = await self._ask(server, digests).addTimeout(HAVE_TIMEOUT, self._clock)
            held = [digest for digest, length in zip(digests, lengths, strict=True) if length]
        except CancelledError:
            raise
        except Exception:
            self._log.info(
                "{server} does not say what it holds: {reason}", server=server.name, reason=reason_of(Failure())
            )
            step.silent.add(server.id)
            return
        for digest in held:
            step.missing.pop(digest, None)

    async def _say(self, look: _Look) -> None:
        """Tell the log when the number has become another."""
        if look.unheld == self._logged:
            return
        self._logged = look.unheld
        if not look.unheld:
            self._log.info("Every chunk of every file is on some server that answers again.")
            return
        names: dict[str, None] = {}
        with suppress(CannotTell):
            for digest in look.some:
                names |= dict.fromkeys(await self._used.names(digest, 1))
        self._log.error(
            "{count} chunks of files are on no server that answers, such as {digest}, of files such as {names}: start "
            "what is down; `chunkfarm check` names all files.",
            count=look.unheld,
            digest=look.some[0].hex(),
            names=", ".join(list(names)[:NAMES_MAX]),
        )
