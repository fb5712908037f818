"""What is asked of other servers about chunks, as an interface: the file port's client gives the real one."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from twisted.internet.defer import Deferred
from zope.interface import Interface

from chunkfarm.model import Server


class IChunkLinks(Interface):
    """Chunks on other servers. Every Deferred may be cancelled, which gives up the request.

    Besides the errors named, any exception says that the server could not be asked (refused, lost, timed
    out, not that server): the caller then goes to the next one.
    """

    def put(
        server: Server, digest: bytes, data: bytes | bytearray | memoryview, gently: bool = False
    ) -> Deferred[None]:
        """Store the chunk on `server`; fires once it is durable there.

        Nobody waits for one that goes `gently`: it is sent in small pieces, with pauses for what others want.

        `data` is not changed while the request runs, and is not copied. Fails with `Full` if that server has
        no room, with `Mismatch` if the bytes do not have this digest.
        """

    def get(server: Server, digest: bytes, offset: int = 0, length: int | None = None) -> Deferred[bytes]:
        """Bytes of the chunk (to its end if `length` is None) from `server`; fails with `NotFound` if it has none.

        They are not checked against the digest yet: the caller does that.
        """

    def have(server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """For each of at most `HAVE_DIGESTS_MAX` digests its length if `server` holds that chunk, whole; else 0.

        The truth, which promises nothing: for whoever repairs and for whoever only wants to know.
        """

    def hold(server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """The same, for whoever is going to rely on it: a chunk that is answered for is kept for `collect_grace`.

        The promise is durable before the answer. 0 also for a chunk that `server` has begun to collect.
        """

    def keep(server: Server, digests: Sequence[bytes], revision: int) -> Deferred[Sequence[int]]:
        """For each of at most `KEEP_DIGESTS_MAX` digests its length if `server` keeps its copy, else 0.

        So the asker's own copy may go: that server owns the chunk by rows that are at least of that revision, has just
        read its copy, keeps it as `hold` does, and has given up any plan to delete it.
        """

    def verify(server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """The same after `server` has read each chunk and compared its digest: `DAMAGED` for one that it put aside.

        At most `VERIFY_DIGESTS_MAX`. It takes as long as its disk takes to read them.
        """

    def verified(server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        """When `server` last read each of at most `HAVE_DIGESTS_MAX` chunks whole and found it right; for people.

        In ms since 1970, by its clock; 0 if it does not know, or has none.
        """

    def look(server: Server, digests: Sequence[bytes]) -> Deferred[None]:
        """Let the caretaker of `server` look at these chunks (`HAVE_DIGESTS_MAX` at most) before all others."""


HAVE_DIGESTS_MAX = 1000
"""Digests in one question to another server: 64 KiB in hexadecimal."""

CHUNK_LENGTH = struct.Struct("!I")
"""One chunk in the answer to that question."""

VERIFIED_TIME = struct.Struct("!Q")
"""One chunk in the answer to when it was verified: ms since 1970."""

VERIFY_DIGESTS_MAX = 64
"""Digests in one question that makes the other server read whole chunks."""
KEEP_DIGESTS_MAX = 256
"""Digests in one question of `keep`, which makes the other server read whole chunks: small ones mostly, since whoever
asks bounds their bytes."""
DAMAGED = 2**32 - 1
"""Stands for the length of a chunk that was found damaged: no chunk is so long."""
