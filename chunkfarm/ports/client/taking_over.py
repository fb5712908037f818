"""TAKEOVER: who has which journal, and going on with this server alone."""

from __future__ import annotations

from chunkfarm.by_hand import Outlook, Seen
from chunkfarm.ports.client.session import Answer, Request, Session, block
from chunkfarm.wire.lines import Sentence, format_fields


async def takeover(session: Session, request: Request) -> Answer:
    if not request.words:
        outlook = await session.backend.look_at_takeover()
        fields = [("may", "no" if outlook.objection else "yes")]
        because = [("because", Sentence(outlook.objection))] if outlook.objection else []
        return block("TAKEOVER", _rows(outlook), format_fields([*fields, *because]))
    outlook = await session.backend.take_over(request.words[0])
    return block("TAKEOVER", _rows(outlook), format_fields([("line", outlook.line)]))


def _rows(outlook: Outlook) -> list[str]:
    return [_row(one) for one in outlook.seen]


def _row(one: Seen) -> str:
    where = [("name", one.name), ("address", str(one.address))]
    if one.told is None:
        return "MISSED " + format_fields([*where, ("error", Sentence(one.error))])
    term, index = one.told.journal or ("-", "-")
    return "SEEN " + format_fields(
        [
            *where,
            ("id", one.told.server),
            ("state", one.told.state),
            ("term", term),
            ("index", index),
            ("longest", "yes" if one.longest else "no"),
            ("here", "yes" if one.here else "no"),
        ]
    )
