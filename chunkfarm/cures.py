"""What a person may do when nobody leads the farm: a rule over rows, pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from chunkfarm.membership import masters
from chunkfarm.model import Server

PAIR = 2


def cures(
    me: str, servers: Iterable[Server], voters: Collection[str], learns: bool, withheld: bool = False
) -> tuple[str, ...]:
    """Sentences, the best first, for the server `me` of a table with these rows and voters.

    `learns` says that the farm went on without this server, which has not learned since what happened; `withheld` that
    it decides nothing, because its disk may be an old one.
    """
    rows = {server.id: server for server in servers}
    if learns:
        return ("start a server again that went on with the farm: this one only learns what happened without it",)
    deciding = voters or [server.id for server in masters(rows.values())]
    missing = [_named(rows, other) for other in sorted(deciding) if other != me]
    if not missing and withheld:
        return (
            "nobody else can catch this server up: put a newer copy of its data directory back, if there is one",
            "if this copy is the newest that is left, say `chunkfarm takeover` here: what came after it is lost then",
        )
    if not missing:
        return ("start the masters named above again: a majority of them must be up",)
    if len(deciding) == PAIR and me in deciding:
        return (
            f"start {missing[0]} again",
            f"if {missing[0]} is lost for good, say `chunkfarm takeover` here: what only that server knew is lost then",
            "once there are two again, add a third server (one with weight = 0 stores no chunks and is enough): "
            "of three any one may be lost",
        )
    needed = len(deciding) // 2 + (0 if me in deciding else 1)
    if needed == len(missing):
        who = " and ".join(missing)
    else:
        who = f"{needed} of {', '.join(missing)}" if needed > 1 else " or ".join(missing)
    return (
        f"start {who} again: a majority of the masters must be up",
        "if that majority is lost for good, say `chunkfarm takeover`: it shows which server has the longest journal, "
        "and lets the farm go on with that one alone",
    )


def _named(rows: dict[str, Server], server_id: str) -> str:
    row = rows.get(server_id)
    return f"{row.name} ({row.peer_address})" if row is not None else f"the server {server_id}"
