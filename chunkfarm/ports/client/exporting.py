"""EXPORT: has an export of the table made, and says how it is."""

from __future__ import annotations

from typing import Any

from chunkfarm.model import timestamp
from chunkfarm.ports.client.looking import number
from chunkfarm.ports.client.session import Answer, Request, Session, ok
from chunkfarm.wire.lines import Sentence, format_fields


async def export(session: Session, request: Request) -> Answer:
    asked = number(request.words[0], "the number of an export") if request.words else 0
    progress = session.backend.export(asked)
    fields: list[tuple[str, Any]] = [("number", progress.number)]
    if progress.made is not None:
        made = progress.made
        fields += [
            ("state", "done"),
            ("revision", made.kept.revision),
            ("time", timestamp(made.kept.time)),
            ("rows", made.kept.rows),
            ("chunks", made.pages + 1),
            ("new", made.new),
            ("size", made.size),
            ("digest", made.kept.digest.hex()),
            ("complete", made.complete),
            ("servers", made.servers),
        ]
    elif progress.running:
        fields += [("state", "running"), ("rows", progress.rows)]
    else:
        fields += [("state", "failed"), ("because", Sentence(progress.failed))]
    return ok(format_fields(fields))
