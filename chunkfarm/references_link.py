"""Asks the masters which chunks are used, and what the farm's epoch is: what it takes to give a chunk up safely."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from chunkfarm.errors import FarmError
from chunkfarm.links import commands
from chunkfarm.links.interface import HAVE_DIGESTS_MAX
from chunkfarm.links.peers import LinkFailed, Peers
from chunkfarm.model import Server
from chunkfarm.references import CannotTell, References
from chunkfarm.table.epochs import read_epoch
from chunkfarm.table.interface import ITable, TableError

_NO_ANSWER = (FarmError, LinkFailed, commands.NotNow, commands.NotFirst, commands.BadRequest)

COUNT = struct.Struct("!I")
"""The number of one chunk's uses in an answer."""


def pack_counts(counts: Sequence[int]) -> bytes:
    """The answer of `Referenced`."""
    return b"".join(map(COUNT.pack, counts))


class ReferencesLink:
    """How a server that holds chunks asks about them, wherever it stands.

    `references` answers if this server is to be asked itself. `first` is the id of the server that leads, as far as
    this one knows, and `masters` are those that hold the table, as far as it knows.
    """

    _log = Logger()

    def __init__(
        self,
        self_id: str,
        references: References,
        table: ITable,
        peers: Peers,
        first: Callable[[], str],
        masters: Callable[[], Sequence[Server]],
    ) -> None:
        self._self_id = self_id
        self._references = references
        self._table = table
        self._peers = peers
        self._first = first
        self._masters = masters

    def uses(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """How many files and exports use each of at most `HAVE_DIGESTS_MAX` chunks, as in `References.uses`.

        The answer tells the uses as they were at some moment after this call: everything that was committed before is
        in it. Asks the first, then the other masters. Fails with `CannotTell`, a `FarmError` whose sentence says why
        nobody can tell; then nothing may be given up. May be cancelled.
        """
        assert len(digests) <= HAVE_DIGESTS_MAX
        return Deferred.fromCoroutine(self._uses(tuple(digests)))

    def uses_by_all(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """The same by every master that answers, for whoever is about to delete: the most that any of them says.

        The rows of one, or its index, may be wrong though nothing looks wrong, by a bit that flipped on its disk: then
        others would delete by it what all of them have.
        """
        assert len(digests) <= HAVE_DIGESTS_MAX
        return Deferred.fromCoroutine(self._uses_by_all(tuple(digests)))

    def epoch(self) -> Deferred[int]:
        """The farm's epoch now (see `table.epochs`), linearizable; 0 before the first. Fails with `CannotTell`."""
        return Deferred.fromCoroutine(self._epoch())

    async def _uses(self, digests: tuple[bytes, ...]) -> Sequence[int]:
        return (await self._told_by(self._in_line(), digests))[1] if digests else ()

    async def _uses_by_all(self, digests: tuple[bytes, ...]) -> Sequence[int]:
        if not digests:
            return ()
        line = self._in_line()
        uses = dict.fromkeys(digests, 0)
        by: dict[bytes, str] = {}
        # The one whose word counts comes last: until something is deleted by it, it must not grow old.
        for server_id, name in list(line.items())[1:]:
            try:
                told = await self._answer(server_id, digests)
            except CancelledError:
                raise
            except Exception as error:
                # Whatever it is: nobody waits for this one.
                self._log.debug("{name} does not say which chunks are used: {error}", name=name, error=error)
                continue
            by |= {digest: name for digest, count in zip(digests, told, strict=True) if count}
            uses |= {digest: max(count, uses[digest]) for digest, count in zip(digests, told, strict=True)}
        teller, counts = await self._told_by(line, digests)
        unused = [digest for digest, count in zip(digests, counts, strict=True) if not count and digest in by]
        if unused:
            self._log.warn(
                "{count} chunks are not deleted: {name} says that files use them, and {other} that none does. If this "
                "is said again and again, the table or references.sqlite of one of the two is damaged.",
                count=len(unused),
                name=by[unused[0]],
                other=line[teller],
            )
        return [max(count, uses[digest]) for digest, count in zip(digests, counts, strict=True)]

    def _in_line(self) -> dict[str, str]:
        """Whom to ask, and their names."""
        names = {server.id: server.name for server in self._masters()}
        first = self._first()
        return ({first: names.get(first, first)} if first else {}) | names

    async def _told_by(self, line: Mapping[str, str], digests: tuple[bytes, ...]) -> tuple[str, Sequence[int]]:
        """The first who answers, and what it says."""
        problem = "no master is known"
        for server_id, name in line.items():
            try:
                return server_id, await self._answer(server_id, digests)
            except CancelledError:
                raise
            except _NO_ANSWER as error:
                # That of the first is the one that counts: the others mostly say that they are not there.
                if problem == "no master is known":
                    problem = f"{name}: {error}"
        raise CannotTell(f"no master can tell which chunks are used ({problem})")

    async def _answer(self, server_id: str, digests: tuple[bytes, ...]) -> Sequence[int]:
        if server_id == self._self_id:
            return await self._references.uses(digests)
        return await self._ask(server_id, digests)

    async def _ask(self, server_id: str, digests: tuple[bytes, ...]) -> Sequence[int]:
        box = await self._peers.call(server_id, commands.Referenced, digests=b"".join(digests))
        answer = bytes(box["counts"])
        if len(answer) != COUNT.size * len(digests):
            raise LinkFailed("its answer is not about the chunks that it was asked for")
        return [count for (count,) in COUNT.iter_unpack(answer)]

    async def _epoch(self) -> int:
        try:
            return await read_epoch(self._table)
        except TableError as error:
            raise CannotTell(f"the farm's epoch cannot be read now: {error}") from error
