"""What files are made of in a farm of chunks: bytes whose chunks have names in few of the 256 parts of all names.

What looks after chunks goes through them in parts, by the first byte of their names. A farm of thirty chunks is empty
in most of them, and to look at nothing would be most of what is simulated. So there are fewer parts here, and bytes
are made until their names fit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from random import Random

from attrs import define, field, frozen

from chunkfarm.chunks.chunkfile import write_chunk
from chunkfarm.chunks.packs import _head
from chunkfarm.model import digest_of, etag_of

PREFIXES = 16
"""Parts; four would be quicker to look at, and eight chunks of one manifest not to be found any more."""
CHUNK_SIZE = 128
CHUNK_SIZE_MIN = 64
INLINE = 2
"""Digests in a row: files of three chunks have a manifest that is stored as chunks."""
STEP = CHUNK_SIZE // 32
"""Digests in one chunk of a manifest."""
CHUNKS_MAX = 9


@frozen(eq=False)
class Content:
    """The bytes of a file, and the names of all chunks of it."""

    data: bytes
    digests: tuple[bytes, ...]
    """Of its bytes."""
    above: tuple[bytes, ...]
    """Of its manifest."""

    @property
    def etag(self) -> str:
        return etag_of(len(self.data), CHUNK_SIZE, [b"".join(self.digests)])

    @property
    def all(self) -> tuple[bytes, ...]:
        return tuple(dict.fromkeys(self.digests + self.above))

    def pieces(self) -> list[bytes]:
        """Its chunks."""
        return [self.data[start : start + CHUNK_SIZE] for start in range(0, len(self.data), CHUNK_SIZE)]


@define
class Images:
    """Every chunk that was ever made, and how it should stand on a disk."""

    scratch: str
    """A file that may be written."""
    known: dict[bytes, bytes] = field(factory=dict)
    _files: dict[bytes, bytes] = field(factory=dict)

    def learn(self, data: bytes) -> bytes:
        digest = digest_of(data)
        self.known[digest] = data
        return digest

    def packed(self, digest: bytes) -> bytes:
        """The record in a pack."""
        data = self.known.get(digest, b"")
        return _head(digest, data) + data

    def file(self, digest: bytes) -> bytes:
        """The whole file."""
        if digest not in self._files:
            write_chunk(self.scratch, self.known[digest], digest)
            with open(self.scratch, "rb") as file:
                self._files[digest] = file.read()
            os.unlink(self.scratch)
        return self._files[digest]


class Contents:
    """Makes contents; some chunks of new ones are those of earlier ones."""

    def __init__(self, random: Random, images: Images) -> None:
        self._random = random
        self._images = images
        self._used: list[bytes] = []
        self._number = 0

    def make(self) -> Content:
        """A new one, of one chunk in most cases."""
        count = self._random.choice((1, 1, 1, 2, 2, 3, 5, CHUNKS_MAX))
        chunks: list[bytes] = []
        above: list[bytes] = []
        group_digests: list[bytes] = []
        for start in range(0, count, STEP):
            end = min(start + STEP, count)
            chunks += [self._chunk(CHUNK_SIZE, fresh=False) for _ in range(start, end - 1)]
            size = self._random.randint(1, CHUNK_SIZE) if end == count else CHUNK_SIZE
            while True:
                last = self._chunk(max(size, 9), fresh=True)
                group = b"".join(digest_of(chunk) for chunk in [*chunks[start:], last])
                if count <= INLINE or _fits(group):
                    break
            chunks.append(last)
            if count > INLINE:
                group_digests.append(self._images.learn(group))
        above += group_digests
        while len(group_digests) > INLINE:
            groups = [b"".join(group_digests[at : at + STEP]) for at in range(0, len(group_digests), STEP)]
            if not all(map(_fits, groups)):
                return self.make()
            group_digests = [self._images.learn(group) for group in groups]
            above += group_digests
        digests = tuple(map(self._images.learn, chunks))
        self._used += [chunk for chunk in chunks if len(chunk) == CHUNK_SIZE]
        return Content(b"".join(chunks), digests, tuple(above))

    def _chunk(self, size: int, fresh: bool) -> bytes:
        if not fresh and self._used and self._random.random() < 0.3:
            return self._random.choice(self._used)
        rest = self._random.randbytes(size - 8)
        while True:
            self._number += 1
            data = self._number.to_bytes(8, "big") + rest
            if _fits(data):
                return data


def _fits(data: bytes) -> bool:
    return digest_of(data)[0] < PREFIXES


def digests_of(contents: Sequence[Content]) -> set[bytes]:
    return {digest for content in contents for digest in content.all}
