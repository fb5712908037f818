"""FORGET: what would be lost with a server, and taking it out for good."""

from __future__ import annotations

from chunkfarm.forgetting import ForgetOutlook, knows_secrets
from chunkfarm.ports.client.session import Answer, Request, Session, block, ok
from chunkfarm.wire.lines import Sentence, format_fields


async def forget(session: Session, request: Request) -> Answer:
    if len(request.words) == 1:
        return _shown(session, await session.backend.look_at_forgetting(request.words[0]))
    server = await session.backend.forget(request.words[0], request.words[1])
    return ok("FORGET " + format_fields([("name", server.name), ("id", server.id)]))


def _shown(session: Session, outlook: ForgetOutlook) -> Answer:
    losses = outlook.losses
    header: list[tuple[str, object]] = [
        ("may", "no" if outlook.objection else "yes"),
        ("name", outlook.server.name),
        ("id", outlook.server.id),
        ("state", outlook.server.state),
        ("secrets", "yes" if knows_secrets(outlook.server) else "no"),
        ("farm", session.backend.options().name),
        ("done", "yes" if losses.done else "no"),
        ("files", losses.files),
        ("chunks", losses.chunks),
        ("lostfiles", losses.lost_files),
        ("lostchunks", losses.lost_chunks),
        ("lostbytes", losses.lost_bytes),
        ("shortfiles", losses.short_files),
        ("shortchunks", losses.short_chunks),
        ("shortbytes", losses.short_bytes),
    ]
    if losses.silent:
        header.append(("silent", ",".join(losses.silent)))
    if outlook.objection:
        header.append(("because", Sentence(outlook.objection)))
    rows = [
        "LOST " + format_fields([("name", loss.name), ("chunks", loss.chunks), ("bytes", loss.bytes)])
        for loss in losses.named
    ]
    return block("FORGET", rows, format_fields(header))
