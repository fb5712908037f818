"""`/-/chunks/`: the chunks on this server's disk, for other servers of the farm."""

from __future__ import annotations

import re

from chunkfarm.chunks.checking import verify_here
from chunkfarm.errors import Busy, InvalidRequest, LimitExceeded
from chunkfarm.links.interface import (
    CHUNK_LENGTH,
    HAVE_DIGESTS_MAX,
    KEEP_DIGESTS_MAX,
    VERIFIED_TIME,
    VERIFY_DIGESTS_MAX,
)
from chunkfarm.model import CHUNK_SIZE_MAX, DIGEST_LENGTH, MIB, split_digests
from chunkfarm.ports.backend import Backend
from chunkfarm.ports.files.answers import Answer, LengthRequired, MethodNotAllowed
from chunkfarm.ports.files.requests import Request
from chunkfarm.wire.http1 import fields
from chunkfarm.wire.http1_rules import parse_range

BODIES_BYTES_MAX = 512 * MIB
"""Chunks on their way in at one time: each is held in memory as a whole until it is on disk."""

BYTES = b"Content-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\n"

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_KEEP = re.compile(r"keep/([0-9]{1,18})\Z")


class Chunks:
    """Chunks by digest. Whoever calls has made sure that the client is a server of the farm."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._held = 0
        """Bytes announced by the bodies that are coming in."""

    async def answer(self, request: Request, rest: str) -> Answer:
        """The answer to a request for `/-/chunks/<rest>`."""
        method = request.method
        if rest == "have":
            if method != b"POST":
                raise MethodNotAllowed("have answers POST", "POST")
            return await self._have(request)
        if rest == "hold":
            if method != b"POST":
                raise MethodNotAllowed("hold answers POST", "POST")
            return await self._hold(request)
        if keep := _KEEP.match(rest):
            if method != b"POST":
                raise MethodNotAllowed("keep answers POST", "POST")
            return await self._keep(request, int(keep[1]))
        if rest == "verify":
            if method != b"POST":
                raise MethodNotAllowed("verify answers POST", "POST")
            return await self._verify(request)
        if rest == "verified":
            if method != b"POST":
                raise MethodNotAllowed("verified answers POST", "POST")
            return await self._verified(request)
        if rest == "look":
            if method != b"POST":
                raise MethodNotAllowed("look answers POST", "POST")
            self._backend.caretaker.look_first(await self._digests(request, HAVE_DIGESTS_MAX))
            return Answer(204)
        if not _DIGEST.match(rest):
            raise InvalidRequest("a chunk is named by 64 lower-case hexadecimal digits")
        digest = bytes.fromhex(rest)
        if method in (b"GET", b"HEAD"):
            return await self._get(request, digest)
        if method == b"PUT":
            return await self._put(request, digest)
        raise MethodNotAllowed("a chunk answers GET, HEAD and PUT", "GET, HEAD, PUT")

    async def _get(self, request: Request, digest: bytes) -> Answer:
        store = self._backend.store
        wanted = request.headers.get(b"range")
        if request.method == b"GET" and wanted is None:
            # Whoever opens a chunk is told its length, and a small one of late is at hand without a thread.
            reader = await store.open(digest)
            if not reader.chunk_length:
                reader.close()
                return Answer(200, BYTES)
            return Answer(200, BYTES, source=reader, length=reader.chunk_length)
        size = await store.size(digest)
        if request.method == b"HEAD":
            return Answer(200, BYTES, length=size)
        status, extra, start, end = 200, b"", 0, size
        if wanted is not None and (found := parse_range(wanted, size)) is not None:
            status, (start, end) = 206, found
            extra = fields(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
        if start == end:
            return Answer(status, BYTES + extra)
        source = await store.open(digest, start, end - start)
        return Answer(status, BYTES + extra, source=source, length=end - start)

    async def _put(self, request: Request, digest: bytes) -> Answer:
        length = request.body.length
        if length is None:
            raise LengthRequired("a chunk's length is announced")
        if length > CHUNK_SIZE_MAX:
            raise LimitExceeded(f"a chunk has at most {CHUNK_SIZE_MAX} bytes")
        if self._held + length > BODIES_BYTES_MAX:
            raise Busy("too many chunks are coming in at once")
        self._held += length
        try:
            data = await request.body.gather(CHUNK_SIZE_MAX)
            await self._backend.store.put(digest, data)
        finally:
            self._held -= length
        return Answer(204)

    async def _have(self, request: Request) -> Answer:
        lengths = await self._backend.store.has(await self._digests(request, HAVE_DIGESTS_MAX))
        return Answer(200, BYTES, b"".join(map(CHUNK_LENGTH.pack, lengths)))

    async def _hold(self, request: Request) -> Answer:
        lengths = await self._backend.store.hold(await self._digests(request, HAVE_DIGESTS_MAX))
        return Answer(200, BYTES, b"".join(map(CHUNK_LENGTH.pack, lengths)))

    async def _keep(self, request: Request, revision: int) -> Answer:
        lengths = await self._backend.keep(await self._digests(request, KEEP_DIGESTS_MAX), revision)
        return Answer(200, BYTES, b"".join(map(CHUNK_LENGTH.pack, lengths)))

    async def _verify(self, request: Request) -> Answer:
        lengths = await verify_here(self._backend.store, await self._digests(request, VERIFY_DIGESTS_MAX))
        return Answer(200, BYTES, b"".join(map(CHUNK_LENGTH.pack, lengths)))

    async def _verified(self, request: Request) -> Answer:
        times = await self._backend.store.verified(await self._digests(request, HAVE_DIGESTS_MAX))
        return Answer(200, BYTES, b"".join(map(VERIFIED_TIME.pack, times)))

    async def _digests(self, request: Request, most: int) -> tuple[bytes, ...]:
        return split_digests(bytes(await request.body.gather(most * DIGEST_LENGTH)))
