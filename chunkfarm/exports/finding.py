"""Finds exports among the chunks of servers that are stopped. Everything here blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec, Self, TypeVar

from attrs import define, frozen
from twisted.internet.defer import Deferred, execute
from twisted.python.failure import Failure

from chunkfarm.chunks.store import ChunkStore
from chunkfarm.data_directory import write_atomically
from chunkfarm.errors import FarmError
from chunkfarm.exports.form import HEAD_MAGIC, BadExport, Head, Kept, read_head, read_kept, read_page, write_kept
from chunkfarm.exports.keeper import EXPORTS_FILE
from chunkfarm.table.interface import Row

PREFIXES = 256

P = ParamSpec("P")
T = TypeVar("T")


class CannotRestore(FarmError):
    """Nothing is restored; the sentence says why."""


@frozen(kw_only=True)
class Candidate:
    """An export that was found."""

    digest: bytes
    head: Head
    missing: tuple[bytes, ...]
    """Its pages that are in none of the directories."""

    @property
    def is_whole(self) -> bool:
        return not self.missing


def _at_once(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """Nobody waits for anything else here, so no thread is needed."""
    return execute(function, *args, **kwargs)


def _now(deferred: Deferred[T]) -> T:
    """The outcome of what was done at once."""
    outcome: list[T | Failure] = []
    deferred.addBoth(outcome.append)
    (result,) = outcome
    if isinstance(result, Failure):
        result.raiseException()
        raise AssertionError
    return result


@define
class Pieces:
    """The chunks in several data directories."""

    _stores: list[ChunkStore]
    _noted: list[bytes]
    """Heads that the servers themselves knew of."""
    _scratch: TemporaryDirectory[str]

    @classmethod
    def open(cls, own: Path, more: Sequence[Path]) -> Self:
        """Look into a data directory, and into others or folders of chunks. Raises `CannotRestore`.

        Nothing is written into the others but what a start of their servers would write.
        """
        pieces = cls([], [], TemporaryDirectory(prefix="chunkfarm-restore-"))
        try:
            pieces._add(own, own / "index.sqlite")
            for number, directory in enumerate(more):
                # They may be copies without an index, or of which the index is older than the packs.
                pieces._add(directory, Path(pieces._scratch.name) / f"{number}.sqlite")
        except OSError as error:
            pieces.close()
            raise CannotRestore(f"{error.filename}: {error.strerror or error}") from None
        except BaseException:
            pieces.close()
            raise
        return pieces

    def _add(self, directory: Path, index: Path) -> None:
        chunks = directory / "chunks" if (directory / "chunks").is_dir() else directory
        if not chunks.is_dir():
            raise CannotRestore(f"there are no chunks in {directory}")
        store = ChunkStore(chunks, index, _at_once)
        self._stores.append(store)
        # Its bytes are not counted: nobody asks here.
        store.stop()
        _now(store.start())
        self._noted += _noted_heads(directory / EXPORTS_FILE)

    def close(self) -> None:
        """Let go of them."""
        for store in self._stores:
            store.close()
        self._scratch.cleanup()

    def read(self, digest: bytes) -> bytes | None:
        """A chunk, from the first directory that has a whole copy."""
        for store in self._stores:
            # A damaged chunk cannot even be put aside on a disk that is only read.
            with contextlib.suppress(FarmError, OSError):
                source = _now(store.open(digest))
                try:
                    parts = []
                    while (part := _now(source.next())) is not None:
                        parts.append(part)
                    return b"".join(parts)
                finally:
                    source.close()
        return None

    def noted(self, farm: str) -> list[Candidate]:
        """The exports of this farm that the servers have noted, the newest first. Quick."""
        return self._judged(dict.fromkeys(self._noted), farm)

    def scan(self, farm: str, on_progress: Callable[[int, int], None]) -> list[Candidate]:
        """Those that a look at every chunk finds. `on_progress` is told steps done, of how many."""
        found: dict[bytes, None] = {}
        for number, store in enumerate(self._stores):
            for prefix in range(PREFIXES):
                found |= dict.fromkeys(digest for digest in _now(store.scan(prefix)) if _is_head(store, digest))
                on_progress(number * PREFIXES + prefix + 1, len(self._stores) * PREFIXES)
        return self._judged(found, farm)

    def _judged(self, digests: Iterable[bytes], farm: str) -> list[Candidate]:
        candidates = []
        for digest in digests:
            data = self.read(digest)
            if data is None:
                continue
            try:
                head = read_head(data)
            except BadExport:
                continue
            if head.farm == farm:
                missing = tuple(page for page in head.digests if not self._has(page))
                candidates.append(Candidate(digest=digest, head=head, missing=missing))
        return sorted(candidates, key=lambda one: one.head.revision, reverse=True)

    def _has(self, digest: bytes) -> bool:
        return any(_now(store.has([digest]))[0] for store in self._stores)

    def copy(self, candidates: Sequence[Candidate], directory: Path) -> int:
        """Copy what is here of these exports into a directory that others can look into; returns how many chunks.

        Raises `CannotRestore`.
        """
        digests = dict.fromkeys(digest for one in candidates for digest in (one.digest, *one.head.digests))
        count = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            store = ChunkStore(directory / "chunks", directory / "index.sqlite", _at_once, reserve=0)
            try:
                store.stop()
                _now(store.start())
                for digest in digests:
                    if (data := self.read(digest)) is not None:
                        _now(store.put(digest, data))
                        count += 1
            finally:
                store.close()
            kept = [
                Kept(revision=one.head.revision, time=one.head.time, rows=one.head.rows, digest=one.digest)
                for one in candidates
            ]
            write_atomically(directory / EXPORTS_FILE, write_kept(kept))
        except OSError as error:
            raise CannotRestore(f"{error.filename or directory}: {error.strerror or error}") from None
        return count

    def rows(self, head: Head) -> Iterator[Row]:
        """All rows of an export, checked. Raises `CannotRestore`."""
        count, last = 0, b""
        for digest in head.digests:
            page = self.read(digest)
            if page is None:
                raise CannotRestore(f"chunk {digest.hex()} of the export is missing or damaged")
            try:
                rows = read_page(page, last)
            except BadExport as error:
                raise CannotRestore(f"chunk {digest.hex()} of the export cannot be used: {error}") from None
            if any(row.revision > head.revision for row in rows):
                raise CannotRestore(f"chunk {digest.hex()} has rows that are newer than the export")
            count, last = count + len(rows), rows[-1].key
            yield from rows
        if count != head.rows:
            raise CannotRestore(f"the export has {count} rows, and its head says {head.rows}")


def _noted_heads(path: Path) -> list[bytes]:
    try:
        return [kept.digest for kept in read_kept(path.read_bytes())]
    except (OSError, BadExport):
        # It only saves the look at every chunk.
        return []


def _is_head(store: ChunkStore, digest: bytes) -> bool:
    try:
        source = _now(store.open(digest, 0, len(HEAD_MAGIC)))
    except (FarmError, OSError):
        return False
    try:
        return bytes(_now(source.next()) or b"") == HEAD_MAGIC
    finally:
        source.close()
