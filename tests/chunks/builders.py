"""What the tests of this room are made of: stores in a test's directory, servers that are only objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.error import ConnectionRefusedError
from zope.interface import implementer

from chunkfarm.chunks.pieces import Buffer, PieceSource
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.errors import Full, NotFound
from chunkfarm.links.interface import DAMAGED, HAVE_DIGESTS_MAX, KEEP_DIGESTS_MAX, IChunkLinks
from chunkfarm.model import GIB, Server, digest_of

P = ParamSpec("P")
T = TypeVar("T")


def run_now(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """A thread pool for tests that need none: the call happens at once."""
    return execute(function, *args, **kwargs)


def make_store(
    directory: str | Path,
    *,
    index: Path | None = None,
    reserve: int = 0,
    on_damaged: Callable[[bytes, str], None] = lambda digest, reason: None,
    free: Callable[[], int] = lambda: GIB,
    packed_most: int = -1,
    **options: Any,
) -> ChunkStore:
    """A started store that runs its disk work at once and believes what `free` says; by default it packs nothing."""
    store = ChunkStore(
        Path(directory).absolute(),
        index if index is not None else Path(directory).absolute() / "index.sqlite",
        run_now,
        reserve=reserve,
        on_damaged=on_damaged,
        room=lambda path: (free(), 100 * GIB),
        packed_most=packed_most,
        **options,
    )
    store.start()
    return store


def make_server(number: int, **fields: object) -> Server:
    """Server number `number`, with a zone of its own."""
    values: dict[str, object] = {"host": f"10.0.0.{number}", "client": 4100, "peer": 4101, "files": 4102}
    values |= {"id": f"{number:032x}", "name": f"s{number}", "seniority": number, "zone": f"z{number}"} | fields
    return Server(**values)  # type: ignore[arg-type]


def make_servers(count: int, **fields: object) -> tuple[Server, ...]:
    """Servers 1 to `count`."""
    return tuple(make_server(number, **fields) for number in range(1, count + 1))


async def read_all(source: PieceSource) -> bytes:
    """All bytes of a source."""
    pieces = []
    while (piece := await source.next()) is not None:
        assert len(piece)
        pieces.append(bytes(piece))
    return b"".join(pieces)


def pattern(length: int, seed: int = 0) -> bytes:
    """`length` bytes that repeat nowhere near a block or a chunk."""
    unit = b"".join((number * 2654435761 + seed).to_bytes(8, "big") for number in range(1021))
    return (unit * (length // len(unit) + 1))[:length]


@implementer(IChunkLinks)
class MemoryLinks:
    """The other servers, in memory. Faults are sets of server ids that a test may change at any time.

    `dead`: refuses. `silent`: never answers. `full`: takes nothing. `corrupting`: gives wrong bytes.
    """

    def __init__(self) -> None:
        self.held: dict[str, dict[bytes, bytes]] = {}
        self.looked: dict[str, list[bytes]] = {}
        self.times: dict[tuple[str, bytes], int] = {}
        """When a server has verified a chunk."""
        self.dead: set[str] = set()
        self.silent: set[str] = set()
        self.full: set[str] = set()
        self.corrupting: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.waiting: list[tuple[str, str, Callable[[], object], Deferred[object]]] = []
        self.cancelled: list[tuple[str, str]] = []

    def put(self, server: Server, digest: bytes, data: Buffer, gently: bool = False) -> Deferred[None]:
        def store() -> None:
            if server.id in self.full:
                raise Full(f"the disk of {server.name} is full")
            assert digest_of(data) == digest
            self.on(server)[digest] = bytes(data)

        return self._answer("put", server, store)

    def get(self, server: Server, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[bytes]:
        def read() -> bytes:
            if digest not in self.on(server):
                raise NotFound("no such chunk")
            data = self.on(server)[digest]
            if server.id in self.corrupting:
                data = bytes([data[0] ^ 1]) + data[1:]
            return data[offset:] if length is None else data[offset : offset + length]

        return self._answer("get", server, read)

    def have(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        assert len(digests) <= HAVE_DIGESTS_MAX
        return self._answer("have", server, lambda: [len(self.on(server).get(digest, b"")) for digest in digests])

    def hold(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        assert len(digests) <= HAVE_DIGESTS_MAX
        return self._answer("hold", server, lambda: [len(self.on(server).get(digest, b"")) for digest in digests])

    def keep(self, server: Server, digests: Sequence[bytes], revision: int) -> Deferred[Sequence[int]]:
        assert len(digests) <= KEEP_DIGESTS_MAX
        return self._answer("keep", server, lambda: [len(self.on(server).get(digest, b"")) for digest in digests])

    def verify(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        def verify(digest: bytes) -> int:
            data = self.on(server).get(digest, b"")
            if data and digest_of(data) != digest:
                del self.on(server)[digest]
                return DAMAGED
            return len(data)

        return self._answer("verify", server, lambda: [verify(digest) for digest in digests])

    def verified(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self._answer("verified", server, lambda: [self.times.get((server.id, one), 0) for one in digests])

    def look(self, server: Server, digests: Sequence[bytes]) -> Deferred[None]:
        return self._answer("look", server, lambda: self.looked.setdefault(server.id, []).extend(digests))

    def on(self, server: Server) -> dict[bytes, bytes]:
        """The chunks that `server` holds."""
        return self.held.setdefault(server.id, {})

    def release(self) -> None:
        """Let the silent servers answer all they were asked, in order."""
        waiting, self.waiting = self.waiting, []
        for _, _, work, answer in waiting:
            if not answer.called:
                execute(work).chainDeferred(answer)

    def _answer(self, verb: str, server: Server, work: Callable[[], T]) -> Deferred[T]:
        self.calls.append((verb, server.name))
        if server.id in self.dead:
            return fail(ConnectionRefusedError())
        if server.id in self.silent:
            answer: Deferred[T] = Deferred(lambda d: self.cancelled.append((verb, server.name)))
            self.waiting.append((verb, server.name, work, answer))  # type: ignore[arg-type]
            return answer
        return execute(work)
