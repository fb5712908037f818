"""Files over HTTP: GET, HEAD, PUT and DELETE of `/<bucket>/<path>`."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable

from chunkfarm.catalog import Condition, Found, check_size
from chunkfarm.chunks.placement import takes_chunks
from chunkfarm.errors import Full, InvalidRequest, Later, NotFound, PreconditionFailed
from chunkfarm.model import File, Receipt, check_file_name
from chunkfarm.ports.backend import Backend
from chunkfarm.ports.files.answers import Answer, LengthRequired, json_answer
from chunkfarm.ports.files.requests import Request
from chunkfarm.ports.files.uploads import Uploads
from chunkfarm.scoped import Names, catalog_of
from chunkfarm.wire.http1 import fields
from chunkfarm.wire.http1_rules import Conditions, format_date, parse_range, range_applies

CONTENT_TYPE_DEFAULT = "application/octet-stream"

_CONTENT_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*;[\t -~]*)?\Z")
CONTENT_TYPE_LENGTH_MAX = 255
"""It stands in the file's row, which is small."""

_SCRIPTED = re.compile(r"text/html|text/xsl|multipart/|.*[/+]xml\b", re.IGNORECASE)
"""Types that a browser runs scripts in: Chromium reads text/xsl as XML, and Firefox shows the parts of
multipart/x-mixed-replace as what each of them says that it is."""

_types = mimetypes.MimeTypes()


class Objects:
    """Files of the farm. `now_ms` is the wall clock, in milliseconds since 1970."""

    def __init__(self, backend: Backend, now_ms: Callable[[], int], uploads: Uploads) -> None:
        self._backend = backend
        self._uploads = uploads
        self._now_ms = now_ms

    async def get(self, request: Request, name: str) -> Answer:
        """GET and HEAD."""
        catalog = self._catalog(request)
        found = await catalog.find(check_file_name(name))
        file, headers = found.file, request.headers
        described = describe(found)
        conditions = Conditions.of(headers, self._now_ms() // 1000)
        if conditions is not None:
            status = conditions.failed(file.etag, file.modified // 1000, reading=True)
            if status == 304:
                return Answer(304, described)
            if status:
                raise PreconditionFailed(f"{name!r} is not as the request asks for")
        if request.method == b"HEAD":
            return Answer(200, described, length=file.size)
        status, start, end = 200, 0, file.size
        wanted = headers.get(b"range")
        if wanted is not None and range_applies(headers, file.etag):
            part = parse_range(wanted, file.size)
            if part is not None:
                status, (start, end) = 206, part
                described += b"Content-Range: bytes %d-%d/%d\r\n" % (start, end - 1, file.size)
        if start == end:
            return Answer(status, described)
        source = await catalog.download(file, start, end - start)
        return Answer(status, described, source=source, length=end - start)

    async def put(self, request: Request, name: str) -> Answer:
        """PUT. Everything that can be refused is refused before the first byte of the body is asked for."""
        check_file_name(name)
        content_type = self._content_type(request, name)
        if request.body.length == 0 and b"content-length" not in request.headers:
            raise LengthRequired("PUT takes a Content-Length, or a chunked body")
        self._check_room()
        catalog = self._catalog(request)
        condition = await self._condition(request, name)
        body = request.body
        flow = self._uploads.begin(body)
        flow.upload = upload = catalog.upload(None, flow.pause, flow.resume)

        def take(piece: bytes | memoryview) -> None:
            if upload.failure is not None:
                # The rest of the bytes would be sent for nothing.
                upload.failure.raiseException()
            upload.write(piece)
            self._uploads.came(len(piece))

        try:
            check_size(body.length or 0, upload.chunk_size)
            await body.into(take)
            written = await upload.finish()
            receipt = await catalog.commit(
                name, written.size, written.chunk_size, written.digests, content_type, condition, written
            )
        except BaseException:
            # A client that went away shows as CancelledError here.
            upload.abort()
            raise
        finally:
            self._uploads.end(flow)
        return stored(receipt)

    async def delete(self, request: Request, name: str) -> Answer:
        """DELETE."""
        check_file_name(name)
        catalog = self._catalog(request)
        conditions = Conditions.of(request.headers, self._now_ms() // 1000)
        if_match: tuple[str, ...] = ()
        if conditions is not None:
            file = await catalog.stat(name)
            if conditions.failed(file.etag, file.modified // 1000, reading=False):
                raise PreconditionFailed(f"{name!r} is not as the request asks for")
            if_match = (file.etag,)
        await catalog.remove(name, if_match)
        return Answer(204)

    def _catalog(self, request: Request) -> Names:
        return catalog_of(self._backend.catalog, request.principal)

    async def _there(self, catalog: Names, name: str) -> File | None:
        try:
            return await catalog.stat(name)
        except NotFound:
            return None

    async def _condition(self, request: Request, name: str) -> Condition:
        """What must still hold when the file is committed; raises `PreconditionFailed` if it does not hold now."""
        conditions = Conditions.of(request.headers, self._now_ms() // 1000)
        if conditions is None:
            return Condition()
        there = await self._there(self._catalog(request), name)
        etag, modified = (there.etag, there.modified // 1000) if there is not None else (None, 0)
        if conditions.failed(etag, modified, reading=False):
            raise PreconditionFailed(f"{name!r} is not as the request asks for")
        if_match = tuple(tag for weak, tag in conditions.if_match if not weak)
        if conditions.unmodified_since is not None and etag is not None:
            # A date cannot be compared when the row is written; the version that it was true of can.
            if_match = (etag,)
        return Condition(if_match, tuple(tag for _, tag in conditions.if_none_match))

    def _check_room(self) -> None:
        servers = self._backend.servers()
        if servers and not any(takes_chunks(server) for server in servers):
            raise Full("no server has room for more")

    def _content_type(self, request: Request, name: str) -> str:
        headers = request.headers
        if b"content-range" in headers:
            raise InvalidRequest("a part of a file cannot be stored; PUT takes the whole file")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Later("Content-Encoding is not kept with a file, so the bytes could not be read again as meant")
        value = headers.get(b"content-type")
        if value is None:
            return _types.guess_type(name, strict=False)[0] or CONTENT_TYPE_DEFAULT
        text = value.decode("latin-1")
        if len(text) > CONTENT_TYPE_LENGTH_MAX or not _CONTENT_TYPE.match(text):
            raise InvalidRequest("the Content-Type header is not a media type")
        return text


def describe(found: Found) -> bytes:
    """The header lines that say what a file is, in answers with and without its bytes."""
    file = found.file
    content_type = file.content_type
    if not _CONTENT_TYPE.match(content_type):
        content_type = CONTENT_TYPE_DEFAULT
    lines = (
        b'ETag: "%b"\r\nLast-Modified: %b\r\nContent-Type: %b\r\n'
        b"Accept-Ranges: bytes\r\nX-Content-Type-Options: nosniff\r\n"
    ) % (file.etag.encode(), format_date(file.modified // 1000).encode(), content_type.encode())
    if _SCRIPTED.match(content_type):
        # What somebody stored must not act with the key of whoever looks at it.
        lines += b"Content-Security-Policy: sandbox\r\n"
    if found.stale:
        lines += fields(("Warning", f'110 chunkfarm "as of revision {found.stale}"'))
    return lines


def stored(receipt: Receipt) -> Answer:
    """The receipt of a PUT."""
    file = receipt.file
    value = {
        "name": file.name,
        "size": file.size,
        "etag": file.etag,
        "copies": receipt.copies,
        "holders": list(receipt.holders),
    }
    return json_answer(201 if receipt.created else 200, value, fields(("ETag", f'"{file.etag}"')))
