"""What files are made of in a farm of chunks: bytes whose chunks have names in few of the 256 parts of all names.

What looks after chunks goes through them in parts, by the first byte of their names. A farm of thirty chunks is empty
in most of them, and to look at nothing would be most of what is simulated. So there are few parts here, and names are
digests whose first byte is cut down to them.
"""

from __future__ import annotations

import hashlib
import os
from random import Random

from attrs import define, field, frozen

from chunkfarm.chunks.chunkfile import write_chunk
from chunkfarm.chunks.packs import _head
from chunkfarm.chunks.pieces import Buffer
from chunkfarm.model import etag_of

PREFIXES = 4
"""Parts of all names; a power of two."""
CHUNK_SIZE = 128
CHUNK_SIZE_MIN = 64
INLINE = 2
"""Digests in a row: files of three chunks have a manifest that is stored as chunks."""
STEP = CHUNK_SIZE // 32
"""Digests in one chunk of a manifest."""
CHUNKS_MAX = 9


class Hash:
    """Stands in the place of `hashlib.sha256`."""

    def __init__(self, data: Buffer = b"") -> None:
        self._hash = hashlib.sha256(data)

    def update(self, data: Buffer) -> None:
        self._hash.update(data)

    def digest(self) -> bytes:
        digest = self._hash.digest()
        return bytes([digest[0] % PREFIXES]) + digest[1:]


def digest_of(data: Buffer) -> bytes:
    """Stands in the place of `model.digest_of`."""
    return Hash(data).digest()


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
        chunks = [self._chunk(CHUNK_SIZE, fresh=False) for _ in range(count - 1)]
        chunks.append(self._chunk(self._random.randint(9, CHUNK_SIZE), fresh=True))
        digests = tuple(map(self._images.learn, chunks))
        level = digests
        above: list[bytes] = []
        while len(level) > INLINE:
            groups = [b"".join(level[at : at + STEP]) for at in range(0, len(level), STEP)]
            level = tuple(map(self._images.learn, groups))
            above += level
        self._used += [chunk for chunk in chunks if len(chunk) == CHUNK_SIZE]
        return Content(b"".join(chunks), digests, tuple(above))

    def _chunk(self, size: int, fresh: bool) -> bytes:
        if not fresh and self._used and self._random.random() < 0.3:
            return self._random.choice(self._used)
        self._number += 1
        return self._number.to_bytes(8, "big") + self._random.randbytes(size - 8)
