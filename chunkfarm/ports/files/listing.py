"""Listings: the files under a prefix, as JSON for programs or as a page for people."""

from __future__ import annotations

import re
from typing import Any

from attrs import define, field

from chunkfarm.errors import InvalidRequest
from chunkfarm.model import NAME_BYTES_MAX, File, check_file_name, timestamp
from chunkfarm.ports.backend import Backend
from chunkfarm.ports.files.answers import HTML, Answer, json_answer
from chunkfarm.ports.files.pages import listing_page
from chunkfarm.ports.files.requests import Request
from chunkfarm.scoped import Names, catalog_of
from chunkfarm.wire.http1 import fields
from chunkfarm.wire.http1_rules import parse_query

LIMIT_MAX = 1000
"""Entries in one answer, as S3 has it: some hundred kilobytes, and one read of the table."""
FOLD_READ = 250
"""Rows asked for at a time while folders are folded: most of them may turn out to be of one folder."""
FOLD_READS_MAX = 100
"""Reads of the table for one answer; many large folders then make a shorter answer, with `next`."""
LAST_CHARACTER = "\U0010ffff"
"""Nothing in UTF-8 comes after it: put after a folder's name it passes over all that is in the folder."""

_NUMBER = re.compile(r"[0-9]{1,5}\Z")


@define
class Entries:
    """What a listing shows: files, and names of folders (with their `/`); `next` is what to go on after."""

    files: list[File] = field(factory=list)
    folders: list[str] = field(factory=list)
    next: str | None = None
    stale: int = 0

    def __len__(self) -> int:
        return len(self.files) + len(self.folders)


class Listings:
    """Answers to GET of a path that names no file."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def get(self, request: Request, path: str) -> Answer:
        """`path` is what stands between the first `/` and the query: empty, a bucket, or ends with `/`."""
        if path and not path.endswith("/"):
            path += "/"
        if path:
            # Whatever may stand before a name must itself be the beginning of one.
            check_file_name(path + "x")
        query = parse_query(request.query)
        prefix = path + query.get("prefix", "")
        after = query.get("after", "")
        for text in (prefix, after):
            if len(text.encode()) > NAME_BYTES_MAX + len(LAST_CHARACTER.encode()):
                raise InvalidRequest(f"a file name has at most {NAME_BYTES_MAX} bytes")
        limit = _limit(query.get("limit"))
        if query.get("delimiter", "/") != "/":
            raise InvalidRequest("the only delimiter is '/'")
        as_json = _wants_json(request, query)
        catalog = catalog_of(self._backend.catalog, request.principal)
        if "delimiter" in query or not as_json:
            entries = await fold(catalog, prefix, after, limit)
        else:
            entries = await flat(catalog, prefix, after, limit)
        extra = b"Vary: Accept\r\n"
        if entries.stale:
            extra += fields(("Warning", f'110 chunkfarm "as of revision {entries.stale}"'))
        if as_json:
            return json_answer(200, _to_json(prefix, entries, "delimiter" in query), extra)
        return Answer(200, HTML + extra, listing_page(prefix, after, entries.folders, entries.files, entries.next))


async def flat(catalog: Names, prefix: str, after: str, limit: int) -> Entries:
    """All files under `prefix` after `after`, up to `limit`. A page of the table may be shorter than asked for."""
    page = await catalog.list(prefix, after, limit)
    return Entries(list(page.files), next=page.files[-1].name if page.more and page.files else None, stale=page.stale)


async def fold(catalog: Names, prefix: str, after: str, limit: int) -> Entries:
    """The same, what has a `/` after the prefix folded into one entry for its folder.

    As soon as a folder is seen at the end of what was read, the rest of it is passed over, so that a folder
    of a million files costs no more than one of a hundred.
    """
    entries = Entries()
    cursor = after
    for _ in range(FOLD_READS_MAX):
        page = await catalog.list(prefix, cursor, FOLD_READ)
        entries.stale = max(entries.stale, page.stale)
        for file in page.files:
            folder, slash, _ = file.name[len(prefix) :].partition("/")
            full = prefix + folder + slash
            if slash and (cursor.startswith(full + LAST_CHARACTER) or entries.folders[-1:] == [full]):
                # Shown already, here or before `after`. Names may go on behind where it was to be passed over.
                cursor = max(cursor, file.name)
                continue
            if len(entries) == limit:
                entries.next = cursor
                return entries
            if slash:
                entries.folders.append(full)
                cursor = full + LAST_CHARACTER
            else:
                entries.files.append(file)
                cursor = file.name
        if not page.more:
            return entries
    entries.next = cursor
    return entries


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT_MAX
    if not _NUMBER.match(text) or not 1 <= int(text) <= LIMIT_MAX:
        raise InvalidRequest(f"limit is a number from 1 to {LIMIT_MAX}")
    return int(text)


def _wants_json(request: Request, query: dict[str, str]) -> bool:
    form = query.get("format")
    if form is None:
        return b"application/json" in request.headers.get(b"accept", b"").lower()
    if form not in ("json", "html"):
        raise InvalidRequest("format is json or html")
    return form == "json"


def _to_json(prefix: str, entries: Entries, folded: bool) -> dict[str, Any]:
    value: dict[str, Any] = {
        "prefix": prefix,
        "files": [
            {
                "name": file.name,
                "size": file.size,
                "modified": timestamp(file.modified),
                "etag": file.etag,
                "content_type": file.content_type,
            }
            for file in entries.files
        ],
    }
    if folded:
        value["folders"] = entries.folders
    value["more"] = entries.next is not None
    value["next"] = entries.next
    return value
