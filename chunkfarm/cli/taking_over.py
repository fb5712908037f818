"""`chunkfarm takeover`: finds the server that may go on alone, and lets it."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from twisted.internet import error as network
from twisted.internet.defer import TimeoutError

from chunkfarm.cli.exits import NobodyAnswered
from chunkfarm.cli.farm import Farm, sentence_of
from chunkfarm.config import Listed
from chunkfarm.errors import AuthenticationFailed, Denied, FarmError
from chunkfarm.links.lines import LinkLost, Reply
from chunkfarm.wire.lines import quote


@frozen(kw_only=True)
class Taken:
    """What one server said: whom it found, and whether it may take over, or has."""

    server: Listed
    rows: tuple[dict[str, str], ...]
    objection: str = ""
    line: str = ""

    @property
    def name(self) -> str:
        """Of the server that says this."""
        return next((row["name"] for row in self.rows if row.get("here") == "yes"), self.server.name)

    def as_value(self) -> dict[str, Any]:
        """For JSON."""
        told: dict[str, Any] = {"server": self.name, "taken_over": bool(self.line)}
        if self.objection:
            told["because"] = self.objection
        if self.line:
            told["line"] = self.line
        told["servers"] = [_typed(row) for row in self.rows]
        return told


async def look(farm: Farm) -> Taken:
    """What the server says that may take over; if none may, what the first says that answers."""
    found: Taken | None = None
    reasons = []
    key: FarmError | None = None
    for server in farm.servers:
        try:
            taken = _read(server, await _ask(farm, server, "TAKEOVER"))
        except (
            FarmError,
            network.ConnectError,
            network.ConnectionLost,
            network.ConnectionDone,
            network.DNSLookupError,
        ) as error:
            reasons.append(f"{server.name}: {sentence_of(error)}")
            if isinstance(error, AuthenticationFailed | Denied):
                key = error
            continue
        if not taken.objection:
            return taken
        found = found or taken
    if found is None and key is not None:
        # Another key is the cure, whoever else may be down.
        raise key
    if found is None:
        raise NobodyAnswered(f"no server could be asked: {'; '.join(reasons)}")
    return found


async def take_over(farm: Farm, outlook: Taken, farm_name: str) -> Taken:
    """Let it go on alone."""
    return _read(outlook.server, await _ask(farm, outlook.server, f"TAKEOVER {quote(farm_name)}"))


async def _ask(farm: Farm, server: Listed, line: str) -> Reply:
    """To this server and no other, over a link of its own: what one may say, another may not."""
    link = await farm.dial(server)
    try:
        return await link.request(line).addTimeout(farm.timeout, farm.clock)
    except TimeoutError:
        raise LinkLost(f"no answer within {farm.timeout:g} s") from None
    finally:
        link.lose()


def _read(server: Listed, reply: Reply) -> Taken:
    fields = reply.fields
    return Taken(
        server=server,
        rows=tuple(reply.parsed()),
        objection=fields.get("because", "it must not") if fields.get("may") == "no" else "",
        line=fields.get("line", ""),
    )


def _typed(row: dict[str, str]) -> dict[str, Any]:
    """Numbers as numbers, yes and no as such; what a server without a journal does not have is left out."""
    value: dict[str, Any] = {}
    for name, word in row.items():
        if name in ("here", "longest"):
            value[name] = word == "yes"
        elif name in ("term", "index"):
            if word.isdecimal():
                value[name] = int(word)
        else:
            value[name] = word
    return value
