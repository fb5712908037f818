"""The membership time line: what one server has seen of who joined, led, left and came back (pure).

Every server notes what *it* saw, by its own clock. Servers that saw the same thing note the same `mark` with it, which
comes from the table or the consensus and from no clock, so that whoever puts several time lines together
(`chunkfarm history`) tells one thing seen by three from three things.
"""

from __future__ import annotations

import json
from enum import StrEnum

from attrs import asdict, fields, frozen


class Kind(StrEnum):
    """What may happen to a server."""

    STARTED = "started"
    """Its process began."""
    ENDED = "ended"
    """Its process ended in order."""
    WAITING = "waiting"
    """It cannot serve yet."""
    SERVING = "serving"
    READONLY = "readonly"
    JOINED = "joined"
    """It stands at the end of the line, for the first time or anew."""
    RESUMED = "resumed"
    """It was started anew and kept its place, with the whole farm."""
    UP = "up"
    DOWN = "down"
    LEAVING = "leaving"
    DRAINING = "draining"
    GIVEN_UP = "givenup"
    """It is not waited for any more: its chunks are copied elsewhere."""
    GONE = "gone"
    """Its row was removed."""
    MASTER = "master"
    """It votes."""
    NO_MASTER = "nomaster"
    LEADS = "leads"
    LEADS_NO_MORE = "ledto"
    """It led up to here."""


@frozen(kw_only=True)
class Note:
    """One thing that a server saw. `server` is whom it happened to."""

    kind: Kind
    server: str
    name: str
    """What that server was called then."""
    term: int = 0
    """Of the consensus, where somebody leads or did."""
    mark: str = ""
    """The same at all servers that saw this; empty for what only this server can know."""
    because: str = ""
    """A clause for people; empty where this server does not know."""
    number: int = 0
    """Grows by one with each note of a server, over restarts."""
    at: int = 0
    """By the wall clock of the server that saw it, ms since 1970."""
    boot: float = 0.0
    """By a clock of its machine that nobody sets, seconds."""
    run: str = ""
    """The process that saw it."""


_NUMBERS: dict[str, type] = {"term": int, "number": int, "at": int, "boot": float}


def to_line(note: Note) -> bytes:
    """A note as a line of a file, with its LF."""
    return json.dumps(asdict(note), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def from_line(line: bytes) -> Note | None:
    """The reverse of `to_line`; None for what is no such line, or comes from a version that notes other things."""
    try:
        told = json.loads(line)
        values = {field.name: told[field.name] for field in fields(Note)}
        for name, value in values.items():
            if not isinstance(value, _NUMBERS.get(name, str)):
                return None
        return Note(**values | {"kind": Kind(values["kind"])})
    except (ValueError, KeyError, TypeError):
        return None
