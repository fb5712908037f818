"""KEYS, KEY and INVITE: who may use the farm, and who may join it."""

from __future__ import annotations

from chunkfarm.errors import InvalidRequest
from chunkfarm.invites import VALID_SECONDS
from chunkfarm.model import timestamp
from chunkfarm.ports.client.looking import number
from chunkfarm.ports.client.session import Answer, Request, Session, block, ok
from chunkfarm.trust.keys import KeyRow
from chunkfarm.wire.lines import Sentence, format_fields


async def list_keys(session: Session, request: Request) -> Answer:
    return block("KEYS", [_row(key) for key in await session.backend.keyring.keys()])


async def change_key(session: Session, request: Request) -> Answer:
    what, rest = request.words[0].lower(), request.words[1:]
    keyring = session.backend.keyring
    if what == "add":
        pair = await keyring.add(rest[0], request.word(2), request.word(3))
        return ok(format_fields([("id", pair.id), ("secret", pair.secret)]))
    if len(rest) != 1 or what not in ("enable", "disable", "remove"):
        raise InvalidRequest("expected KEY add, disable, enable or remove; HELP KEY shows how")
    if what == "remove":
        return ok(_row(await keyring.remove(rest[0])))
    return ok(_row(await keyring.enable(rest[0], what == "enable")))


async def invite(session: Session, request: Request) -> Answer:
    seconds = number(request.word(0, str(VALID_SECONDS)), "seconds")
    code, expires = await session.backend.invite(seconds)
    return ok(format_fields([("code", code), ("expires", timestamp(expires))]))


def _row(key: KeyRow) -> str:
    return "KEY " + format_fields(
        [
            ("id", key.id),
            ("role", key.role),
            ("prefix", key.prefix),
            ("label", Sentence(key.label)),
            ("created", timestamp(key.created)),
            ("disabled", "yes" if key.disabled else "no"),
        ]
    )
