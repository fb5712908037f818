"""Files: their names and manifests, and what it takes to commit one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from attrs import evolve, frozen
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from chunkfarm.chunks.download import DamagedFile, Download
from chunkfarm.chunks.pieces import Digests, raw_digests, read_whole
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.chunks.upload import Upload, Uploaded
from chunkfarm.errors import (
    Busy,
    InvalidRequest,
    LimitExceeded,
    Mismatch,
    MissingChunks,
    NotFound,
    PreconditionFailed,
    ReadOnly,
)
from chunkfarm.explanation import Explanation, Part
from chunkfarm.links.interface import HAVE_DIGESTS_MAX, VERIFY_DIGESTS_MAX
from chunkfarm.model import (
    CHUNK_SIZE_MAX,
    CHUNK_SIZE_MIN,
    DIGEST_LENGTH,
    FILES,
    INLINE_DIGESTS_MAX,
    MIB,
    FarmOptions,
    File,
    Manifest,
    Receipt,
    check_file_name,
    chunk_count,
    etag_of,
)
from chunkfarm.table.epochs import in_epoch, read_epoch
from chunkfarm.table.interface import (
    Compare,
    Conflict,
    Delete,
    ITable,
    Operation,
    Page,
    Put,
    TableClosed,
    Unavailable,
    of_one,
)

STALE_AFTER = 2.0
"""Seconds after which a reader is served from what is last known, when no leader answers."""
STALE_AGAIN_AFTER = 0.25
"""The same for `check` and `explain` while no leader has answered a moment ago: they go through many files, one after
the other, and what they tell of the old ones is of use. A leader that lives answers in a fraction of that."""
NO_LEADER_SECONDS = 10.0
"""A moment: so often it is waited for at full length."""
MANIFEST_DIGESTS_MAX = 1024 * 1024
"""Chunks of one file: 8 TiB at 8M. Their digests, 32 MiB, are in memory while the file is read or committed."""
CONTENT_TYPE_MAX = 255
"""Characters of a content type; RFC 6838 allows 127 for each half of the name alone, parameters come on top."""
TRIES_MAX = 10
"""A conditional change that loses the race this often gives up: whoever asks may ask again."""
EPOCHS_MAX = 5
"""A commit asks the holders so often. The epoch moves on every few hours, or with a very short `collect_grace` every
second: who cannot ask all holders within one has a farm that is too slow for that option."""
LIST_LIMIT_MAX = 10_000
"""Files in one listing, which is in memory as a whole."""
EXPLAINED_MAX = HAVE_DIGESTS_MAX
"""Chunks in one explanation: one question to each server."""
CHECKED_BYTES = 64 * MIB
"""Bytes of a file that servers read for one answer of `check`: done before whoever asked loses patience."""
NAMED_MISSING_MAX = 5
"""Missing chunks that an error names: a line has room for more, a person has not."""
_PAGE = 1000


@frozen
class Condition:
    """What must hold of the file that is there: etags without quotes; `("*",)` is any file."""

    if_match: tuple[str, ...] = ()
    """One of these must be there (none given: no condition)."""
    if_none_match: tuple[str, ...] = ()
    """None of these may be there."""

    def check(self, name: str, etag: str | None) -> None:
        """Raise `PreconditionFailed` unless the file with this etag (None: no file) will do."""
        if self.if_match and not (etag is not None and ("*" in self.if_match or etag in self.if_match)):
            there = "there is no such file" if etag is None else f"its etag is {etag}"
            raise PreconditionFailed(f"{name} is not what was asked for: {there}")
        if etag is not None and ("*" in self.if_none_match or etag in self.if_none_match):
            raise PreconditionFailed(f"{name} exists already, with the etag {etag}")


@frozen
class Listing:
    """Files in name order; `more` says that others follow after the last one."""

    files: tuple[File, ...]
    more: bool
    stale: int = 0
    """The revision of this server's last state, if the farm could not be asked; 0 if it could."""


@frozen
class Found:
    """A file as it is, or (`stale` > 0) as it was at that revision, the last that this server knows."""

    file: File
    stale: int = 0


@frozen
class FileParts:
    """What a file is made of."""

    file: File
    chunks: Sequence[bytes]
    """Digests, in order."""
    manifest: tuple[bytes, ...]
    """Digests of the chunks that hold a long manifest."""
    complete: bool
    """Whether all of it is here: not if a part of the manifest cannot be read."""

    def digests(self, start: int, count: int) -> list[bytes]:
        """A run of all digests, those of the manifest last."""
        behind = max(0, start - len(self.chunks))
        found = list(self.chunks[start : start + count])
        return found + list(self.manifest[behind : behind + count - len(found)])

    def length(self, number: int) -> int:
        """Bytes of the file in the part of that number."""
        return (
            Manifest(self.file.size, self.file.chunk_size, ()).chunk_length(number) if number < len(self.chunks) else 0
        )


def check_size(size: int, chunk_size: int) -> int:
    """How many chunks a file of `size` bytes has; raises `LimitExceeded` if there is no such file."""
    if (needed := chunk_count(size, chunk_size)) > MANIFEST_DIGESTS_MAX:
        raise LimitExceeded(
            f"a file has at most {MANIFEST_DIGESTS_MAX} chunks, not {needed}: choose a larger chunk size"
        )
    return needed


def check_shape(size: int, chunk_size: int, digests: int) -> None:
    """Raise `InvalidRequest` or `LimitExceeded` if no file of `size` bytes has this manifest."""
    check_chunk_size(chunk_size)
    if size < 0:
        raise InvalidRequest(f"a file cannot have {size} bytes")
    if digests != (needed := check_size(size, chunk_size)):
        raise InvalidRequest(f"{size} bytes in chunks of {chunk_size} have {needed} digests, not {digests}")


def check_chunk_size(chunk_size: int) -> int:
    """Return a chunk size that a writer may choose; raise `InvalidRequest` or `LimitExceeded` for another."""
    if chunk_size > CHUNK_SIZE_MAX:
        raise LimitExceeded(f"a chunk has at most {CHUNK_SIZE_MAX} bytes, not {chunk_size}")
    if chunk_size < CHUNK_SIZE_MIN:
        raise InvalidRequest(f"a chunk size has at least {CHUNK_SIZE_MIN} bytes, not {chunk_size}")
    return chunk_size


class Catalog:
    """The one owner of names and manifests. `options` gives the farm's options, `now_ms` the wall clock."""

    def __init__(
        self,
        table: ITable,
        transfer: Transfer,
        options: Callable[[], FarmOptions],
        now_ms: Callable[[], int],
        clock: IReactorTime,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        """`epoch` is the farm's epoch as this server knows it; one that is not the newest costs a commit some time."""
        self._epoch = epoch
        self._table = table
        self._transfer = transfer
        self._options = options
        self._now_ms = now_ms
        self._clock = clock
        self._no_leader_until = 0.0
        """Before this time `check` and `explain` do not wait long for a leader again."""

    def stat(self, name: str) -> Deferred[File]:
        """The file as it is now; fails with `NotFound`, or `ReadOnly` when there is no majority to ask."""
        return Deferred.fromCoroutine(self._stat(name))

    def find(self, name: str) -> Deferred[Found]:
        """The file for reading; fails with `NotFound`, or `ReadOnly` if nobody who holds the table answers.

        After `STALE_AFTER` seconds without an answer of a leader it is what this server, or a master, last knew.
        """
        return Deferred.fromCoroutine(self._find(name))

    def list(self, prefix: str = "", after: str = "", limit: int = 1000) -> Deferred[Listing]:
        """Files whose name starts with `prefix` and is greater than `after`, in order of their UTF-8.

        At most `limit`, and never more than `LIST_LIMIT_MAX`. Falls back to the last state as `find` does.
        """
        return Deferred.fromCoroutine(self._list(prefix, after, max(0, min(limit, LIST_LIMIT_MAX))))

    def remove(self, name: str, if_match: Sequence[str] = ()) -> Deferred[None]:
        """Remove a file; fails with `NotFound`, `ReadOnly`, or `PreconditionFailed` for an etag not in `if_match`."""
        return Deferred.fromCoroutine(self._remove(name, Condition(if_match=tuple(if_match))))

    def commit(
        self,
        name: str,
        size: int,
        chunk_size: int,
        digests: Sequence[bytes],
        content_type: str = "application/octet-stream",
        condition: Condition = Condition(),
        written: Uploaded | None = None,
    ) -> Deferred[Receipt]:
        """Give chunks a name; an unconditional commit replaces what is there.

        Every chunk must be on the required number of servers, which are asked unless `written` is the upload
        of this process that stored these very digests in the farm's present epoch (see `table.epochs`). Fails with
        `InvalidRequest`, `LimitExceeded`, `MissingChunks`, `PreconditionFailed`, `Busy`, and with `ReadOnly` (then it
        may have happened).
        """
        return Deferred.fromCoroutine(self._commit(name, size, chunk_size, digests, content_type, condition, written))

    def manifest(self, file: File) -> Deferred[Manifest]:
        """The whole manifest of a file, read from its chunks if need be; fails with `DamagedFile`, or as reads do."""
        return Deferred.fromCoroutine(self._manifest(file))

    def digests(self, file: File) -> Deferred[Sequence[Digests]]:
        """All chunks that a file is made of, level by level, its manifest's own first; fails as `manifest` does."""
        return Deferred.fromCoroutine(self._levels(file))

    def parts(self, file: File) -> Deferred[FileParts]:
        """All chunks of a file, those of its manifest included, as far as that can be read."""
        return Deferred.fromCoroutine(self._parts(file))

    def explain(self, name: str, start: int = 0, limit: int = EXPLAINED_MAX) -> Deferred[Explanation]:
        """Who holds the chunks `start`, `start + 1` ... of a file, `limit` at most, and when they were last read whole.

        With chunk 0 those of its manifest, too.

        All servers are asked, and who does not answer counts as holding nothing. Fails as `find` and `manifest` do.
        """
        return Deferred.fromCoroutine(self._explain(name, start, min(limit, EXPLAINED_MAX)))

    def check(self, name: str, start: int = 0, limit: int = EXPLAINED_MAX, read: bool = True) -> Deferred[Explanation]:
        """The same after every holder has read its copies (without `read` it is only asked), damage included.

        At most `CHECKED_BYTES` at a time. What is wrong is mended in any case. A manifest that cannot be read is
        no error here: its parts that are known are what is told.
        """
        return Deferred.fromCoroutine(self._check(name, start, min(limit, EXPLAINED_MAX), read))

    def download(self, file: File, offset: int = 0, length: int | None = None) -> Deferred[Download]:
        """The bytes of a file; its first piece is ready when this fires, so errors come before any byte.

        Fails with `InvalidRequest` for a range that the file does not have, with `DamagedFile`,
        `ChunkUnavailable`.
        """
        return Deferred.fromCoroutine(self._download(file, offset, length))

    def upload(
        self,
        chunk_size: int | None = None,
        on_pause: Callable[[], None] = lambda: None,
        on_resume: Callable[[], None] = lambda: None,
    ) -> Upload:
        """Begin to take a file; commit what its `finish` gives. Raises as `check_chunk_size` does."""
        size = check_chunk_size(self._options().chunksize if chunk_size is None else chunk_size)
        return Upload(self._transfer, size, on_pause, on_resume, self._epoch)

    async def _stat(self, name: str) -> File:
        key = _key(name)
        file = _file_in(await self._asked(self._table.find(key)))
        if file is None:
            raise NotFound(f"there is no file {name}")
        return file

    async def _find(self, name: str, briefly: bool = False) -> Found:
        """The file; `briefly` asks a leader that did not answer a moment ago for a moment only."""
        key = _key(name)
        last_known = partial(self._table.last_known, key, limit=1)
        page, stale = await self._somehow(self._table.find(key), lambda: last_known().addCallback(of_one, key), briefly)
        file = _file_in(page)
        if file is None and stale:
            # It may have been stored since. Who asks can try another server.
            raise Busy(f"there was no file {name} at revision {stale}, and nobody who knows the last state answers")
        if file is None:
            raise NotFound(f"there is no file {name}")
        return Found(file, stale)

    async def _list(self, prefix: str, after: str, limit: int) -> Listing:
        if limit == 0:
            return Listing((), False)
        try:
            key, start = FILES + prefix.encode(), FILES + after.encode() if after else b""
        except UnicodeEncodeError:
            raise InvalidRequest("a prefix is text in UTF-8") from None
        first = (key, start, min(limit, _PAGE))
        page, stale = await self._somehow(self._table.read(*first), lambda: self._table.last_known(*first))
        rows = [*page.rows]
        go_on = self._table.last_known if stale else self._table.read
        while page.more and len(rows) < limit:
            start = rows[-1].key if rows else start
            page = await self._asked(go_on(key, start, min(limit - len(rows), _PAGE)))
            if not page.rows:
                break
            rows += page.rows
        return Listing(tuple(File.from_row(row.key, row.value, row.revision) for row in rows), page.more, stale)

    async def _remove(self, name: str, condition: Condition) -> None:
        key = _key(name)
        if not condition.if_match or "*" in condition.if_match:
            try:
                await self._transact((Compare(key, ">", 0),), (Delete(key),))
            except Conflict:
                raise NotFound(f"there is no file {name}") from None
            return
        for _ in range(TRIES_MAX):
            file = await self._stat(name)
            condition.check(name, file.etag)
            try:
                await self._transact((Compare(key, "==", file.revision),), (Delete(key),))
            except Conflict:
                continue
            return
        raise _too_busy(name)

    async def _commit(
        self,
        name: str,
        size: int,
        chunk_size: int,
        digests: Sequence[bytes],
        content_type: str,
        condition: Condition,
        written: Uploaded | None,
    ) -> Receipt:
        check_file_name(name)
        check_shape(size, chunk_size, len(digests))
        _check_content_type(content_type)
        # What fails anyway should not first cost a question about every chunk.
        before = await self._check_condition(name, condition)
        epoch = self._epoch()
        for _ in range(EPOCHS_MAX):
            if written is not None and written.epoch == epoch:
                assert written.digests == digests
                copies, holders = written.copies, set(written.holders)
            else:
                copies, holders = await self._check_copies(digests, size, chunk_size)
            # Its chunks may be given up like any other, so they too are stored in the epoch that the row names.
            inline, levels, copies = await self._write_manifest(digests, copies, holders)
            file = File(
                name=name,
                size=size,
                chunk_size=chunk_size,
                digests=inline,
                levels=levels,
                modified=self._now_ms(),
                content_type=content_type,
                # One run of bytes hashes to the same as its parts.
                etag=etag_of(size, chunk_size, [raw_digests(digests)]),
            )
            try:
                revision, created = await self._put(file, condition, before, self._relying_on(epoch))
            except _EpochMoved:
                epoch = await self._read_epoch()
                continue
            return Receipt(evolve(file, revision=revision), copies, tuple(sorted(holders)), created)
        raise Busy(f"the chunks of {name} were asked for {EPOCHS_MAX} times, each time too slowly: try again")

    def _relying_on(self, epoch: int) -> tuple[Compare, ...]:
        """What a row is committed under whose chunks were asked for in this epoch."""
        return (in_epoch(epoch),)

    async def _read_epoch(self) -> int:
        try:
            return await read_epoch(self._table)
        except (Unavailable, TableClosed) as error:
            raise ReadOnly(f"no files can be changed now: {error}") from error

    async def _check_condition(self, name: str, condition: Condition) -> int:
        """The revision of the file that fulfils the condition; 0 for none, and if there is no condition."""
        if not condition.if_match and not condition.if_none_match:
            return 0
        key = _key(name)
        file = _file_in(await self._asked(self._table.find(key)))
        condition.check(name, file.etag if file is not None else None)
        return file.revision if file is not None else 0

    async def _put(self, file: File, condition: Condition, before: int, under: tuple[Compare, ...]) -> tuple[int, bool]:
        """Write the row if the condition still holds, as it did at the revision `before`.

        Fires with the row's revision, and whether there was none before it. Raises `_EpochMoved` if what it is
        committed under does not hold.
        """
        value = file.to_value()
        if not condition.if_match and not condition.if_none_match:
            return await self._put_anyway(file.key, value, under)
        operations = (Put(file.key, value),)
        for _ in range(TRIES_MAX):
            try:
                return await self._transact((Compare(file.key, "==", before), *under), operations), before == 0
            except Conflict as conflict:
                _check_epoch(conflict, under)
                before = await self._check_condition(file.name, condition)
        raise _too_busy(file.name)

    async def _put_anyway(self, key: bytes, value: bytes, under: tuple[Compare, ...]) -> tuple[int, bool]:
        """Write a row whatever is there; the transaction tells whether anything was.

        It does not if its first answer was lost on the way: then it is said to have replaced something.
        """
        try:
            done = await self._table.replace(key, value, under)
        except Conflict:
            raise _EpochMoved from None
        except (Unavailable, TableClosed) as error:
            raise _read_only(error) from error
        return done.revision, done.before == 0

    async def _check_copies(self, digests: Sequence[bytes], size: int, chunk_size: int) -> tuple[int, set[str]]:
        """The fewest copies of any chunk, and all holders; raises `MissingChunks` if any has too few copies.

        Raises `Mismatch` if one is not as long as a file of that size needs it. The one place that asks the
        holders on behalf of a commit.
        """
        last = len(digests) - 1
        required = self._transfer.required()
        fewest: list[int] = []
        holders: set[str] = set()
        missing: list[bytes] = []
        for start in range(0, len(digests), HAVE_DIGESTS_MAX):
            batch = digests[start : start + HAVE_DIGESTS_MAX]
            lengths = dict.fromkeys(batch, chunk_size)
            if start + len(batch) > last:
                lengths[digests[last]] = size - last * chunk_size
                if lengths[digests[last]] != chunk_size and digests[last] in batch[:-1]:
                    raise Mismatch(
                        f"chunk {digests[last].hex()} is the short last one, and stands earlier as a full one"
                    )
            found = await self._transfer.hold(batch, enough=required, lengths=lengths)
            missing += [digest for digest, held in found.items() if len(held) < required]
            fewest.append(min(map(len, found.values())))
            holders.update(*found.values())
        if missing:
            some = ", ".join(digest.hex() for digest in missing[:NAMED_MISSING_MAX])
            more = f" and {len(missing) - NAMED_MISSING_MAX} more" if len(missing) > NAMED_MISSING_MAX else ""
            raise MissingChunks(f"the farm does not hold {required} copies of {some}{more}")
        return min(fewest, default=0), holders

    async def _write_manifest(
        self, digests: Sequence[bytes], copies: int, holders: set[str]
    ) -> tuple[tuple[bytes, ...], int, int]:
        """Store a long manifest as chunks, level upon level: the digests for the row, the levels, the copies."""
        step = max(self._options().chunksize, CHUNK_SIZE_MIN) // DIGEST_LENGTH * DIGEST_LENGTH
        raw, levels = raw_digests(digests), 0
        while len(raw) > INLINE_DIGESTS_MAX * DIGEST_LENGTH:
            above = []
            for start in range(0, len(raw), step):
                receipt = await self._transfer.write(memoryview(raw)[start : start + step])
                above.append(receipt.digest)
                copies = min(copies, len(receipt.holders))
                holders.update(receipt.holders)
            raw, levels = b"".join(above), levels + 1
        return tuple(Digests(raw)), levels, copies

    async def _manifest(self, file: File) -> Manifest:
        digests = (await self._levels(file))[-1] if file.levels else file.digests
        return Manifest(file.size, file.chunk_size, digests)

    async def _parts(self, file: File) -> FileParts:
        try:
            *above, chunks = await self._levels(file)
        except DamagedFile:
            return FileParts(file, Digests(b""), tuple(file.digests), complete=False)
        return FileParts(file, chunks, tuple(digest for level in above for digest in level), complete=True)

    async def _levels(self, file: File) -> tuple[Digests, ...]:
        """The digests in the row, then those of each level of a long manifest; the last are the file's chunks."""
        levels: tuple[Digests, ...] = (Digests(b"".join(file.digests)),)
        for _ in range(file.levels):
            parts: list[bytes] = []
            for digest in levels[-1]:
                parts.append(await self._read_chunk(file, digest))
                if sum(map(len, parts)) > MANIFEST_DIGESTS_MAX * DIGEST_LENGTH:
                    raise DamagedFile(f"the manifest of {file.name} is longer than any file's")
            raw = b"".join(parts)
            if len(raw) % DIGEST_LENGTH or (len(levels) == file.levels and len(raw) != _manifest_length(file)):
                raise DamagedFile(f"the manifest of {file.name} does not fit its size")
            levels = (*levels, Digests(raw))
        return levels

    async def _explain(self, name: str, start: int, limit: int) -> Explanation:
        found = await self._find(name, briefly=True)
        *above, digests = await self._levels(found.file)
        manifest = Manifest(found.file.size, found.file.chunk_size, digests)
        end = min(start + limit, len(digests))
        # No number of copies is enough here: the answer is about every server.
        numbers = range(start, end)
        named = [digest for level in above for digest in level] if start == 0 else []
        held = await self._transfer.everywhere([*named, *(digests[number] for number in numbers)])
        times = await self._transfer.verified(held)
        parts = [Part(digest, held[digest], verified=_times(times, digest, held[digest])) for digest in named]
        for number in numbers:
            digest = digests[number]
            holders, length = held[digest], manifest.chunk_length(number)
            parts.append(Part(digest, holders, number, length, verified=_times(times, digest, holders)))
        return Explanation(found.file, self._options().replicas, tuple(parts), end < len(digests), found.stale)

    async def _check(self, name: str, start: int, limit: int, read: bool) -> Explanation:
        found = await self._find(name, briefly=True)
        file = found.file
        if read:
            limit = min(limit, VERIFY_DIGESTS_MAX, max(1, CHECKED_BYTES // file.chunk_size))
        try:
            *above, digests = await self._levels(file)
        except DamagedFile:
            above, digests = [Digests(b"".join(file.digests))], Digests(b"")
        numbers = range(start, min(start + limit, len(digests)))
        named = [digest for level in above for digest in level] if start == 0 else []
        said = await self._transfer.check([*named, *(digests[number] for number in numbers)], read)
        parts = [Part(digest, said[digest].holders, damaged=said[digest].damaged) for digest in named]
        manifest = Manifest(file.size, file.chunk_size, digests)
        for number in numbers:
            digest = digests[number]
            held = said[digest]
            parts.append(Part(digest, held.holders, number, manifest.chunk_length(number), held.damaged))
        more = numbers.stop < len(digests)
        return Explanation(file, self._transfer.wanted(), tuple(parts), more, found.stale)

    async def _read_chunk(self, file: File, digest: bytes) -> bytes:
        try:
            source = await self._transfer.open(digest)
        except NotFound as error:
            raise DamagedFile(f"a part of the manifest of {file.name} is lost: {error}") from error
        return await read_whole(source)

    async def _download(self, file: File, offset: int, length: int | None) -> Download:
        manifest = await self._manifest(file)
        crowded = self._transfer.is_crowded
        download = Download(self._transfer, manifest, offset, length, crowded)
        try:
            await download.begin()
        except BaseException:
            download.close()
            raise
        return download

    async def _asked(self, asked: Deferred[Page]) -> Page:
        try:
            return await asked
        except (Unavailable, TableClosed) as error:
            raise ReadOnly(f"the file table cannot be asked now: {error}") from error

    async def _somehow(
        self, now: Deferred[Page], last_known: Callable[[], Deferred[Page]], briefly: bool = False
    ) -> tuple[Page, int]:
        """A page as it is now and 0; or what is last known of it, and the revision of that."""
        briefly = briefly and self._clock.seconds() < self._no_leader_until
        try:
            page = await now.addTimeout(STALE_AGAIN_AFTER if briefly else STALE_AFTER, self._clock)
        except (Unavailable, TimeoutError):
            if not briefly:
                self._no_leader_until = self._clock.seconds() + NO_LEADER_SECONDS
            page = await self._asked(last_known())
            return page, page.revision
        except TableClosed as error:
            raise ReadOnly(f"the file table cannot be asked now: {error}") from error
        self._no_leader_until = 0.0
        return page, 0

    async def _transact(self, compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> int:
        try:
            return await self._table.transact(compares, operations)
        except (Unavailable, TableClosed) as error:
            raise _read_only(error) from error


class _EpochMoved(Exception):
    """The farm's epoch is not the one any more in which the holders were asked."""


def _check_epoch(conflict: Conflict, under: tuple[Compare, ...]) -> None:
    """Raise `_EpochMoved` if one of these compares does not hold; what else was compared is for the caller."""
    revisions = {row.key: row.revision for row in conflict.rows}
    if any(revisions.get(compare.key, 0) != compare.revision for compare in under):
        raise _EpochMoved


def _key(name: str) -> bytes:
    return FILES + check_file_name(name).encode()


def _file_in(page: Page) -> File | None:
    """The file in a page of one row or none."""
    for row in page.rows:
        return File.from_row(row.key, row.value, row.revision)
    return None


def _times(times: Mapping[tuple[bytes, str], int], digest: bytes, holders: Sequence[str]) -> tuple[int, ...]:
    return tuple(times.get((digest, holder), 0) for holder in holders)


def _manifest_length(file: File) -> int:
    return chunk_count(file.size, file.chunk_size) * DIGEST_LENGTH


def _check_content_type(content_type: str) -> None:
    if len(content_type) > CONTENT_TYPE_MAX or not content_type.isprintable() or not content_type.isascii():
        raise InvalidRequest(f"a content type has at most {CONTENT_TYPE_MAX} printable ASCII characters")


def _read_only(error: Exception) -> ReadOnly:
    return ReadOnly(f"no files can be changed now: {error}")


def _too_busy(name: str) -> Busy:
    return Busy(f"{name} was changed by others {TRIES_MAX} times while this change was tried: try again")
