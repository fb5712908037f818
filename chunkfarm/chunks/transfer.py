"""Chunks to and from the servers of the farm: write to enough of them, read from the best."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from chunkfarm.chunks import placement
from chunkfarm.chunks.checking import Checked, Checker
from chunkfarm.chunks.holders import Survey
from chunkfarm.chunks.opened import ChunkReader
from chunkfarm.chunks.patience import Patience
from chunkfarm.chunks.pieces import Buffer, BytesSource, PieceSource, RunInThread
from chunkfarm.chunks.reading import ChunkFetch, ChunkUnavailable
from chunkfarm.chunks.repair import Meter
from chunkfarm.chunks.store import ChunkStore, DamagedChunk
from chunkfarm.chunks.writing import ChunkWrite, Plan
from chunkfarm.errors import InvalidRequest, LimitExceeded, Mismatch, NotFound
from chunkfarm.links.interface import HAVE_DIGESTS_MAX, IChunkLinks
from chunkfarm.model import CHUNK_SIZE_MAX, KIB, MIB, Server, digest_of

__all__ = ["ChunkReceipt", "ChunkUnavailable", "IChunkLinks", "Transfer"]

FOLLOWING_BYTES_MAX = 64 * MIB
"""Bytes of acknowledged chunks whose last copies are still on their way, over all writes. They are all in memory:
at the limit the oldest is waited for, for one hedge timeout, and then left to whoever repairs."""
FOREGROUND_SECONDS = 2.0
"""Over which it is measured how much is read and written for users."""
BUSY_RATE = 8 * MIB
"""Bytes of that a second from which on repairs make room for it."""
HASHED_HERE_MAX = 64 * KIB
"""Bytes hashed in the caller's thread, in 50 us at the most: the way to another thread and back takes longer."""
RECENT_BYTES_MAX = 32 * MIB
"""Bytes of chunks of other servers kept because only a part was asked for: a reader that goes through a file in
small ranges would otherwise fetch each chunk many times over."""

Question = Callable[[Server, Sequence[bytes]], Deferred[Sequence[int]]]
"""What a server is asked about chunks; it answers with the length of each, or 0."""


@frozen
class ChunkReceipt:
    """A chunk that is durable on the servers `holders` (ids)."""

    digest: bytes
    holders: tuple[str, ...]


class Transfer:
    """Writes and reads chunks wherever they belong.

    `servers` gives the server table, `self_id` is this server's id in it, `replicas` the farm's option.
    `look_here` has this server's caretaker look at chunks: those of which a write has left too few copies, say.
    """

    _log = Logger()

    def __init__(
        self,
        store: ChunkStore,
        servers: Callable[[], tuple[Server, ...]],
        self_id: str,
        links: IChunkLinks,
        replicas: Callable[[], int],
        clock: IReactorTime,
        run_in_thread: RunInThread,
        look_here: Callable[[Sequence[bytes]], None] = lambda digests: None,
    ) -> None:
        self._store = store
        self._servers = servers
        self._self_id = self_id
        self._links = links
        self._replicas = replicas
        self._clock = clock
        self._run = run_in_thread
        self._patience = Patience(clock)
        self._foreground = Meter(FOREGROUND_SECONDS)
        self._look_here = look_here
        self._checker = Checker(store, links, servers, self_id, replicas, clock, look_here)
        self._following: dict[ChunkWrite, int] = {}
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()

    def required(self) -> int:
        """Copies that must be durable before a write is acknowledged.

        More than half of `min(replicas, servers that are up and store)`; a full server counts as well,
        because it is no reason to promise more with less.
        """
        able = sum(server.stores and server.state == "up" for server in self._servers())
        return min(self._replicas(), able) // 2 + 1

    @property
    def following(self) -> int:
        """Bytes of acknowledged chunks whose last copies are still on their way."""
        return sum(self._following.values())

    @property
    def is_busy(self) -> bool:
        """Whether so much is read and written for users that other work should wait."""
        return self._foreground.rate(self._clock.seconds()) > BUSY_RATE

    def is_crowded(self, proven: bool) -> bool:
        """Whether so much that was read waits to be sent that nothing should be read ahead for a reader.

        `proven` says of one that it takes what it asks for.
        """
        return self._store.memory.is_crowded(proven)

    def write(self, data: Buffer, digest: bytes | None = None) -> Deferred[ChunkReceipt]:
        """Store a chunk on the servers it belongs on; fires when the required copies are durable.

        `data` must not be changed any more. Fails with `Mismatch` if it does not have `digest`, with `Full`,
        with `LimitExceeded`, or with `ReadOnly` if not enough servers take it. Cancelling gives it up.
        """
        return Deferred.fromCoroutine(self._write(data, digest))

    def open(
        self, digest: bytes, offset: int = 0, length: int | None = None, chunk_length: int | None = None
    ) -> Deferred[PieceSource]:
        """Verified pieces of a chunk from wherever it is; the first piece is ready when this fires.

        `chunk_length`, when known, is what the whole chunk must have: `Mismatch` if it has not. Fails with
        `NotFound` if every server answered that it has none, with `ChunkUnavailable` if some did not
        answer, with `InvalidRequest` for a range that the chunk does not have.
        """
        return Deferred.fromCoroutine(self._open(digest, offset, length, chunk_length))

    def fetch(self, digest: bytes) -> Deferred[bytes]:
        """A whole chunk from another server, checked against its digest; fails as `open` does."""
        servers = placement.reading_order(digest, self._servers(), self._replicas(), self._zone())
        others = [server for server in servers if server.id != self._self_id]
        fetch = ChunkFetch(digest, others, partial(self._get, digest), self._clock, self._patience)
        fetch.start()
        return fetch.result

    def have(
        self, digests: Sequence[bytes], enough: int | None = None, lengths: Mapping[bytes, int] | None = None
    ) -> Deferred[dict[bytes, tuple[str, ...]]]:
        """The ids of the servers that hold each chunk (an empty tuple if none does).

        Asks the owners first, and all others only about chunks found on fewer than `enough` servers (the
        required copies unless given). Who does not answer counts as not having it, and is not waited for
        longer than a hedge timeout if `enough` others have every chunk. Fails with `Mismatch` if a chunk that is
        held has not the length that `lengths` expects.
        """
        return Deferred.fromCoroutine(self._have(self.ask, digests, enough, lengths or {}))

    def everywhere(self, digests: Sequence[bytes]) -> Deferred[dict[bytes, tuple[str, ...]]]:
        """The ids of all servers that hold each chunk: every server is asked, also those that should not have it.

        Who does not answer counts as not having it, and is not waited for long again in the next `SILENT_FOR` seconds.
        """
        return Deferred.fromCoroutine(self._everywhere(digests))

    def hold(
        self, digests: Sequence[bytes], enough: int | None = None, lengths: Mapping[bytes, int] | None = None
    ) -> Deferred[dict[bytes, tuple[str, ...]]]:
        """The same as `have`, for whoever is going to rely on it: who is named keeps the chunks for `collect_grace`.

        A server that has begun to collect a chunk counts as not having it.
        """
        return Deferred.fromCoroutine(self._hold(digests, enough, lengths or {}))

    def ask(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """What one server, which may be this one, holds: as `IChunkLinks.have`, which promises nothing."""
        if server.id == self._self_id:
            return maybeDeferred(self._store.has, digests)
        return maybeDeferred(self._links.have, server, digests)

    def check(self, digests: Sequence[bytes], read: bool) -> Deferred[dict[bytes, Checked]]:
        """What all servers say of these chunks, with `read` after they have read and compared their copies.

        Those that are damaged, or on fewer servers than they should be, are mended in any case; nobody waits for it.
        """
        return Deferred.fromCoroutine(self._checker.check(digests, read))

    def verified(self, held: Mapping[bytes, Sequence[str]]) -> Deferred[dict[tuple[bytes, str], int]]:
        """By chunk and holder when the holder last read its copy whole and found it right, in ms, where that is known.

        `held` names the holders (ids) of each chunk.
        """
        return Deferred.fromCoroutine(self._checker.verified(held))

    def silent(self) -> frozenset[str]:
        """Ids of the servers that did not answer `check` of late."""
        return self._checker.silent()

    def wanted(self) -> int:
        """Copies that a chunk should have: `replicas`, or one on each server that may own it if there are fewer."""
        return min(self._replicas(), sum(server.owns for server in self._servers()))

    def stop(self) -> Deferred[None]:
        """Fires when no copy follows an acknowledged write any more; cancelling gives the last ones up."""
        return Deferred.fromCoroutine(self._stop())

    async def _write(self, data: Buffer, digest: bytes | None) -> ChunkReceipt:
        if len(data) > CHUNK_SIZE_MAX:
            raise LimitExceeded(f"a chunk has at most {CHUNK_SIZE_MAX} bytes, not {len(data)}")
        found = await self._digest_of(data)
        if digest is not None and found != digest:
            raise Mismatch(f"the bytes have the digest {found.hex()}, not {digest.hex()}")
        write = ChunkWrite(found, self._planning(found), partial(self._put, found, data), self._clock, self._patience)
        write.start()
        holders = await write.acknowledged
        self._foreground.note(self._clock.seconds(), len(data))
        if write.settled:
            self._settled(write, found)
        else:
            self._following[write] = len(data)
            write.when_settled().addCallback(lambda _: self._settled(write, found))
            await self._make_room()
        return ChunkReceipt(found, holders)

    def _settled(self, write: ChunkWrite, digest: bytes) -> None:
        self._following.pop(write, None)
        if write.is_short:
            self._tell_of_short([digest], write.holders)

    def _tell_of_short(self, digests: Sequence[bytes], holders: Sequence[str]) -> None:
        """Have a holder look at chunks that have too few copies: this server if it is one, else all that are."""
        if self._self_id in holders:
            self._look_here(digests)
            return
        for server in self._servers():
            if server.id in holders:
                for start in range(0, len(digests), HAVE_DIGESTS_MAX):
                    # One that cannot be told finds it by itself, only later.
                    self._links.look(server, digests[start : start + HAVE_DIGESTS_MAX]).addErrback(lambda failure: None)

    async def _make_room(self) -> None:
        """Wait until what follows fits the memory meant for it."""
        while self.following > FOLLOWING_BYTES_MAX:
            oldest = next(iter(self._following))
            # When the time is up the wait is cancelled, and with it nothing but the wait.
            done = oldest.when_settled().addTimeout(self._patience.hedge_timeout, self._clock)
            try:
                await done
            except CancelledError:
                raise
            except Exception:
                oldest.give_up()

    async def _digest_of(self, data: Buffer) -> bytes:
        return digest_of(data) if len(data) <= HASHED_HERE_MAX else await self._run(digest_of, data)

    def _planning(self, digest: bytes) -> Callable[[], Plan]:
        """What gives the plan for a chunk as it is now; it is computed anew when what it is made of has changed."""
        known: tuple[tuple[Server, ...], int, Plan] | None = None

        def plan() -> Plan:
            nonlocal known
            servers, replicas = self._servers(), self._replicas()
            if known is None or known[0] is not servers or known[1] != replicas:
                known = servers, replicas, self._plan(digest, servers, replicas)
            return known[2]

        return plan

    def _plan(self, digest: bytes, servers: tuple[Server, ...], replicas: int) -> Plan:
        line = placement.writing_order(digest, servers, replicas)
        return Plan(
            line=line,
            wanted=min(replicas, len(line)),
            required=self.required(),
            full=tuple(server for server in servers if server.stores and server.state == "up" and server.full),
        )

    def _put(self, digest: bytes, data: Buffer, server: Server) -> Deferred[object]:
        if server.id == self._self_id:
            return maybeDeferred(self._store.put, digest, data, checked=True)
        return maybeDeferred(self._links.put, server, digest, data)

    async def _open(self, digest: bytes, offset: int, length: int | None, chunk_length: int | None) -> PieceSource:
        try:
            reader = await self._store.open(digest, offset, length)
        except CancelledError:
            raise
        except InvalidRequest:
            # The range may come from a manifest that promises a longer chunk.
            if chunk_length is None or (found := await self._store.size(digest)) == chunk_length:
                raise
            raise _wrong_length(digest, found, chunk_length) from None
        except NotFound:
            pass
        except Exception:
            self._log.failure("while reading chunk {digest}; the other servers are asked", digest=digest.hex())
        else:
            if chunk_length is not None and reader.chunk_length != chunk_length:
                reader.close()
                raise _wrong_length(digest, reader.chunk_length, chunk_length)
            self._foreground.note(self._clock.seconds(), reader.length)
            return _LocalSource(self, digest, reader, offset)
        data = await self._whole(digest, part=offset > 0 or length is not None)
        if chunk_length is not None and len(data) != chunk_length:
            raise _wrong_length(digest, len(data), chunk_length)
        end = len(data) if length is None else offset + length
        if not 0 <= offset <= end <= len(data):
            raise InvalidRequest(f"the chunk has {len(data)} bytes: there is no range {offset} to {end}")
        self._foreground.note(self._clock.seconds(), end - offset)
        memory, held = self._store.memory, len(data)
        memory.take(held)
        return BytesSource(memoryview(data)[offset:end], closed=lambda: memory.give(held))

    async def _whole(self, digest: bytes, part: bool) -> bytes:
        """A chunk of another server, kept for the next reader if this one wants only a part."""
        data = self._recent.get(digest)
        if data is None:
            data = await self.fetch(digest)
        if part:
            self._recent[digest] = data
            self._recent.move_to_end(digest)
            while sum(map(len, self._recent.values())) > RECENT_BYTES_MAX:
                self._recent.popitem(last=False)
        return data

    def _get(self, digest: bytes, server: Server) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self._get_checked(digest, server))

    async def _get_checked(self, digest: bytes, server: Server) -> bytes:
        data = await self._links.get(server, digest)
        if await self._digest_of(data) != digest:
            self._log.error("{server} gave wrong bytes for chunk {digest}", server=server.name, digest=digest.hex())
            raise Mismatch("its bytes do not have that digest")
        return data

    async def _hold(
        self, digests: Sequence[bytes], enough: int | None, lengths: Mapping[bytes, int]
    ) -> dict[bytes, tuple[str, ...]]:
        holders = await self._have(self._ask_hold, digests, enough, lengths)
        able = sum(server.stores and server.state == "up" for server in self._servers())
        wanted = min(self._replicas(), able)
        # One of the holders may have collected its copy, before anybody was about to use it.
        short: dict[tuple[str, ...], list[bytes]] = {}
        for digest, held in holders.items():
            if 0 < len(held) < wanted:
                short.setdefault(held, []).append(digest)
        for held, some in short.items():
            self._tell_of_short(some, held)
        return holders

    async def _have(
        self, ask: Question, digests: Sequence[bytes], enough: int | None, lengths: Mapping[bytes, int]
    ) -> dict[bytes, tuple[str, ...]]:
        enough = self.required() if enough is None else enough
        holders: dict[bytes, tuple[str, ...]] = dict.fromkeys(digests, ())
        unique = list(holders)
        found: dict[bytes, int] = {}
        for start in range(0, len(unique), HAVE_DIGESTS_MAX):
            batch = unique[start : start + HAVE_DIGESTS_MAX]
            servers = self._servers()
            first = {
                digest: [
                    server for server in placement.owners(digest, servers, self._replicas()) if server.state != "down"
                ]
                for digest in batch
            }
            await self._survey(ask, holders, found, enough, first)
            rest = {
                digest: [server for server in servers if server not in first[digest]]
                for digest in batch
                if len(holders[digest]) < enough
            }
            await self._survey(ask, holders, found, enough, rest)
        for digest, expected in lengths.items():
            if found.get(digest, expected) != expected:
                raise _wrong_length(digest, found[digest], expected)
        return holders

    async def _everywhere(self, digests: Sequence[bytes]) -> dict[bytes, tuple[str, ...]]:
        holders: dict[bytes, tuple[str, ...]] = dict.fromkeys(digests, ())
        unique = list(holders)
        for start in range(0, len(unique), HAVE_DIGESTS_MAX):
            batch = unique[start : start + HAVE_DIGESTS_MAX]
            servers = list(self._servers())
            # No number of copies is enough here.
            await self._survey(self._ask_patiently, holders, {}, len(servers) + 1, dict.fromkeys(batch, servers))
        return holders

    async def _survey(
        self,
        ask: Question,
        holders: dict[bytes, tuple[str, ...]],
        lengths: dict[bytes, int],
        enough: int,
        whom: dict[bytes, list[Server]],
    ) -> None:
        survey = Survey(holders, lengths, enough, ask, self._clock, self._patience.hedge_timeout)
        survey.start(whom)
        await survey.done

    def _ask_patiently(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        if server.id == self._self_id:
            return maybeDeferred(self._store.has, digests)
        return Deferred.fromCoroutine(self._checker.have(server, digests))

    def _ask_hold(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        if server.id == self._self_id:
            return maybeDeferred(self._store.hold, digests)
        return maybeDeferred(self._links.hold, server, digests)

    def _zone(self) -> str:
        return next((server.zone for server in self._servers() if server.id == self._self_id), "")

    async def _stop(self) -> None:
        try:
            for write in list(self._following):
                await write.when_settled()
        except CancelledError:
            for write in list(self._following):
                write.give_up()
            raise


class _LocalSource:
    """Pieces of this server's own copy; when it turns out to be damaged, the rest comes from another server."""

    def __init__(self, transfer: Transfer, digest: bytes, reader: ChunkReader, offset: int) -> None:
        self._transfer = transfer
        self._digest = digest
        self._reader: PieceSource = reader
        self._position = offset
        self._end = offset + reader.length

    def next(self) -> Deferred[bytes | memoryview | None]:
        return Deferred.fromCoroutine(self._next())

    def close(self) -> None:
        self._reader.close()

    async def _next(self) -> bytes | memoryview | None:
        try:
            piece = await self._reader.next()
        except DamagedChunk:
            self._reader.close()
            data = await self._transfer.fetch(self._digest)
            self._reader = BytesSource(memoryview(data)[self._position : self._end])
            piece = await self._reader.next()
        if piece is not None:
            self._position += len(piece)
        return piece


def _wrong_length(digest: bytes, length: int, expected: int) -> Mismatch:
    return Mismatch(f"chunk {digest.hex()} has {length} bytes; the manifest says {expected}")
