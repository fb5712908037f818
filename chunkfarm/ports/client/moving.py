"""Commands that move bytes: HAVE, PUT, GET, COMMIT, FETCH."""

from __future__ import annotations

from chunkfarm.catalog import MANIFEST_DIGESTS_MAX, check_chunk_size
from chunkfarm.chunks.pieces import BytesSource, Digests
from chunkfarm.errors import Denied, InvalidRequest, Mismatch
from chunkfarm.model import (
    DIGEST_LENGTH,
    check_file_name,
    chunk_count,
)
from chunkfarm.ports.client.looking import number, stale_mark
from chunkfarm.ports.client.session import Answer, Request, Session, block, data, ok
from chunkfarm.wire.lines import format_fields

MANIFEST_BYTES_MAX = MANIFEST_DIGESTS_MAX * DIGEST_LENGTH
"""Digests in one COMMIT: as many as a file may have."""
HAVE_MAX = 240
"""What fits one line of 16 KiB."""

HOLDERS_SHOWN_MAX = 100
"""Ids in one receipt: a large file may be spread over a thousand servers, and a line ends at 16 KiB."""

CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "gif": "image/gif",
    "gz": "application/gzip",
    "htm": "text/html; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "md": "text/markdown; charset=utf-8",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
    "tar": "application/x-tar",
    "txt": "text/plain; charset=utf-8",
    "webm": "video/webm",
    "webp": "image/webp",
    "xml": "application/xml",
    "zip": "application/zip",
    "zst": "application/zstd",
}
"""Of files that come by COMMIT, which names none. A list of our own: the system's differs from server to server."""


def digest(word: str) -> bytes:
    """A chunk's name; raises `InvalidRequest`."""
    try:
        raw = bytes.fromhex(word)
    except ValueError:
        raw = b""
    if len(raw) != DIGEST_LENGTH or len(word) != 2 * DIGEST_LENGTH:
        raise InvalidRequest(f"{word[:80]!r} is not a digest: 64 hexadecimal digits of a SHA-256")
    return raw


def _range(request: Request) -> tuple[int, int | None]:
    """`[offset [length]]` after the first word."""
    offset = number(request.word(1, "0"), "offset")
    length = request.word(2)
    return offset, number(length, "length") if length else None


async def have(session: Session, request: Request) -> Answer:
    asked = [digest(word) for word in request.words]
    holders = await session.backend.transfer.hold(asked)
    rows = [
        "CHUNK "
        + format_fields([("digest", one.hex()), ("copies", len(holders[one])), ("holders", ",".join(holders[one]))])
        for one in asked
    ]
    return block("HAVE", rows)


async def put(session: Session, request: Request) -> Answer:
    name = digest(request.words[0])
    if not request.payload:
        raise InvalidRequest("a chunk has at least one byte")
    receipt = await session.backend.transfer.write(request.payload, name)
    fields = format_fields([("copies", len(receipt.holders)), ("holders", ",".join(receipt.holders))])
    return ok(f"{receipt.digest.hex()} {fields}")


async def get(session: Session, request: Request) -> Answer:
    name = digest(request.words[0])
    offset, length = _range(request)
    if session.principal is not None and session.principal.prefix:
        # Which files a chunk belongs to, its digest does not say.
        raise Denied("this key is good for some names only, and a digest is none: FETCH the file")
    source = await session.backend.transfer.open(name, offset, length)
    if length is not None:
        return data(source, length)
    # How long the chunk is shows at its end only; it is never more than a chunk.
    whole = bytearray()
    try:
        while (piece := await source.next()) is not None:
            whole += piece
    finally:
        source.close()
    return data(BytesSource(memoryview(whole)), len(whole))


def content_type_of(name: str) -> str:
    """What a file's name says about its content."""
    return CONTENT_TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream")


async def commit(session: Session, request: Request) -> Answer:
    name = check_file_name(request.words[0])
    size = number(request.words[1], "size")
    chunk_size = number(request.words[2], "chunk size")
    check_chunk_size(chunk_size)
    payload = request.payload or b""
    count = chunk_count(size, chunk_size)
    if len(payload) != count * DIGEST_LENGTH:
        raise Mismatch(
            f"{size} bytes in chunks of {chunk_size} are {count} chunks, whose digests take "
            f"{count * DIGEST_LENGTH} bytes, not {len(payload)}"
        )
    receipt = await session.catalog.commit(name, size, chunk_size, Digests(bytes(payload)), content_type_of(name))
    file = receipt.file
    return ok(
        format_fields(
            [
                ("name", file.name),
                ("size", file.size),
                ("chunks", count),
                ("copies", receipt.copies),
                ("holders", ",".join(receipt.holders[:HOLDERS_SHOWN_MAX])),
                ("etag", file.etag),
                ("revision", file.revision),
            ]
        )
    )


async def fetch(session: Session, request: Request) -> Answer:
    found = await session.catalog.find(check_file_name(request.words[0]))
    offset, length = _range(request)
    size = found.file.size
    if length is None:
        length = max(0, size - offset)
    if offset + length > size:
        raise InvalidRequest(f"the file has {size} bytes, and the range ends at {offset + length}")
    if offset > size:
        raise InvalidRequest(f"the file has {size} bytes, and the range begins at {offset}")
    source = await session.catalog.download(found.file, offset, length)
    return data(source, length, stale_mark(found.stale))
