"""DRAIN: a server is emptied, or is not any more, and how far those are that are."""

from __future__ import annotations

from chunkfarm.errors import InvalidRequest
from chunkfarm.model import Drain, Server
from chunkfarm.ports.client.session import Answer, Request, Session, block, ok
from chunkfarm.wire.lines import Sentence, format_fields


async def drain(session: Session, request: Request) -> Answer:
    if not request.words:
        return block("DRAINS", [_row(server, told) for server, told in session.backend.drains()])
    target, how = request.words[0], request.word(1).lower()
    if how not in ("", "anyway", "off"):
        raise InvalidRequest("the second word can only be anyway or off")
    if how == "off":
        row = await session.backend.end_drain(target)
    else:
        row = await session.backend.drain(target, how == "anyway")
    told = {server.id: told for server, told in session.backend.drains()}
    return ok(_row(row, told.get(row.id)))


def _row(server: Server, told: Drain | None) -> str:
    fields: list[tuple[str, object]] = [("name", server.name), ("id", server.id), ("state", server.state)]
    if told is not None and told.counted and server.state != "down":
        fields += [("chunks", told.chunks), ("left", told.left), ("bytes", told.bytes_left), ("rate", told.rate)]
        if told.seconds_left is not None:
            fields.append(("seconds", told.seconds_left))
    fields.append(("drained", "yes" if told is not None and told.drained else "no"))
    if told is not None and told.paused:
        fields.append(("paused", Sentence(told.paused)))
    return "DRAIN " + format_fields(fields)
