"""The rows that the line protocol shows, written and read: servers, files, and changes of the table.

Both ends use these functions, so what one writes the other reads. The forms are described for people at
the head of `chunkfarm.ports.client`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import frozen

from chunkfarm.errors import InvalidRequest
from chunkfarm.model import FILES, SERVERS, File, Server, chunk_count, timestamp
from chunkfarm.table.interface import KEY_BYTES_MAX, OPERATIONS_MAX, VALUE_BYTES_MAX, Batch, Event
from chunkfarm.wire.lines import Sentence, format_fields, parse_fields, quote_value, unquote_value

EVENT_VALUE_MAX = 12 * 1024
"""Characters of a value in one EVENT line: with the longest key beside it, the line stays under its limit."""
_SUBJECT_MAX = 3 * KEY_BYTES_MAX + 200
"""Bytes of a row before its value, for the same reason: the longest key with every byte encoded fits."""
_PART_BYTES = EVENT_VALUE_MAX // 3
"""Bytes of a value in one PART line: percent-encoding makes at most three characters of a byte."""
_REVISION = re.compile(r"[0-9]{1,18}\Z")
"""As every number in this protocol: never slow to read, and 64 bits hold it everywhere."""


def server_row(server: Server, role: str) -> str:
    """`SERVER id= name= ...`; `role` is its place in the line of succession: first, master or server."""
    return "SERVER " + format_fields(
        [
            ("id", server.id),
            ("name", server.name),
            ("joined", timestamp(server.joined)),
            ("seniority", server.seniority),
            ("host", server.host),
            ("client", server.client),
            ("peer", server.peer),
            ("files", server.files),
            ("state", server.state),
            ("role", role),
            ("weight", server.weight),
            ("zone", server.zone),
            ("free", server.free),
            ("used", server.used),
            ("version", server.version),
        ]
    )


def file_row(file: File) -> str:
    """`FILE name= size= modified= etag= type= ...`."""
    return "FILE " + format_fields(
        [
            ("name", file.name),
            ("size", file.size),
            ("modified", timestamp(file.modified)),
            ("etag", file.etag),
            ("type", Sentence(file.content_type)),
            ("chunksize", file.chunk_size),
            ("chunks", chunk_count(file.size, file.chunk_size)),
            ("revision", file.revision),
        ]
    )


def parse_row(line: str) -> tuple[str, dict[str, str]]:
    """The first word of a row and its fields."""
    bare, fields = parse_fields(line)
    return (bare[0] if bare else ""), fields


def _subject(event: Event, role: str) -> str:
    """The row of an event without its value: readable where it can be, always enough to tell the key."""
    row = _readable(event, role)
    if row is not None and len(row.encode()) <= _SUBJECT_MAX:
        return row
    return "ROW key=" + quote_value(event.key).replace(" ", "%20").replace('"', "%22")


def _readable(event: Event, role: str) -> str | None:
    try:
        if event.key.startswith(SERVERS):
            if event.kind == "DEL":
                return "SERVER " + format_fields([("id", event.key[len(SERVERS) :].decode())])
            server = Server.from_value(event.value, event.revision)
            if server.key == event.key:
                return server_row(server, role)
        elif event.key.startswith(FILES):
            if event.kind == "DEL":
                return "FILE " + format_fields([("name", event.key[len(FILES) :].decode())])
            return file_row(File.from_row(event.key, event.value, event.revision))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        # A row that this version does not understand is passed on as it stands.
        pass
    return None


def event_server_id(event: Event) -> str:
    """Whose row it is, for the `role` that stands in it; empty if it is no server's."""
    return event.key[len(SERVERS) :].decode("ascii", "replace") if event.key.startswith(SERVERS) else ""


def event_lines(event: Event, role: str = "server", more: bool = False) -> list[str]:
    """The lines of one change. `more`: another change of the same transaction follows."""
    mark = " more=1" if more else ""
    if event.kind == "DEL":
        return [f"EVENT {event.revision} DEL {_subject(event, role)}{mark}"]
    lines = []
    value = event.value
    text = quote_value(value)
    while len(text.encode()) > EVENT_VALUE_MAX:
        lines.append(f"EVENT {event.revision} PART value={quote_value(value[:_PART_BYTES])}")
        value = value[_PART_BYTES:]
        text = quote_value(value)
    return [*lines, f"EVENT {event.revision} PUT {_subject(event, role)}{mark} value={text}"]


@frozen
class EventLine:
    """What one EVENT line says."""

    revision: int
    kind: str
    """PUT, DEL, PART or NONE."""
    key: bytes
    value: bytes
    more: bool


def parse_event(line: str) -> EventLine:
    """Read `EVENT <revision> <kind> <row>`; raises `InvalidRequest` for what is none."""
    head = line.split(" ", 3)
    if len(head) < 3 or head[0] != "EVENT" or not _REVISION.match(head[1]):
        raise InvalidRequest(f"not an event: {line[:80]!r}")
    revision, kind, row = int(head[1]), head[2], head[3] if len(head) == 4 else ""
    key = b""
    if row.startswith("ROW key="):
        # Keys are bytes, not always text.
        encoded, _, rest = row.removeprefix("ROW key=").partition(" ")
        word, fields, key = "ROW", parse_row(rest)[1], unquote_value(encoded)
    else:
        word, fields = parse_row(row)
    if word == "SERVER":
        key = SERVERS + fields.get("id", "").encode()
    elif word == "FILE":
        key = FILES + fields.get("name", "").encode()
    if kind not in ("PUT", "DEL", "PART", "NONE") or bool(key) != (kind in ("PUT", "DEL")):
        raise InvalidRequest(f"not an event: {line[:80]!r}")
    value = unquote_value(fields.get("value", ""))
    more = fields.get("more") == "1"
    return EventLine(revision, kind, key, value, more)


class EventReader:
    """Makes batches of whole transactions from EVENT lines."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        """All changes up to here have been given out."""
        self._events: list[Event] = []
        self._parts: list[bytes] = []

    def add(self, line: str) -> bool:
        """Take one line; returns whether a transaction (or a word that there was none) is complete.

        Raises `InvalidRequest` for what is none, such as a transaction that does not end.
        """
        said = parse_event(line)
        if said.kind == "PART":
            self._parts.append(said.value)
            if sum(map(len, self._parts)) > VALUE_BYTES_MAX or not said.value:
                raise InvalidRequest("a value in parts that do not end")
            return False
        if len(self._events) >= OPERATIONS_MAX:
            raise InvalidRequest("a transaction that does not end")
        if said.kind != "NONE":
            value = b"".join([*self._parts, said.value])
            self._events.append(Event(said.revision, said.kind, said.key, value))
        self._parts.clear()
        if said.more:
            return False
        self.revision = said.revision
        return True

    def take(self) -> Batch:
        """What is complete so far; call it right after `add` returned true."""
        batch = Batch(self.revision, tuple(self._events))
        self._events.clear()
        return batch


def more_follows(events: Iterable[Event]) -> list[tuple[Event, bool]]:
    """Each event of a batch, with whether the next one belongs to the same transaction."""
    listed = list(events)
    return [
        (event, position < len(listed) and listed[position].revision == event.revision)
        for position, event in enumerate(listed, 1)
    ]
