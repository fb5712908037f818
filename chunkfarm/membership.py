"""Who votes, leads and follows: rules over rows, pure.

Seniority is the revision of a server's join entry; the three most senior live servers, on different zones
while there are enough, are the masters, and the most senior of them is the first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from attrs import frozen

from chunkfarm.model import Server, timestamp

MASTERS = 3
"""Copies of the table: one may be lost without stopping it, and each more costs every commit."""
LEARNERS = 2
"""Servers next in line that are kept caught up, ready to be promoted."""

LIVE = ("up", "draining")
_BEHIND = {"draining": 1, "leaving": 2, "down": 3}


@frozen(kw_only=True)
class Candidate:
    """A starting server's place in the order of founders: the lower one founds."""

    stamp: int
    server_id: str

    def before(self, other: Candidate) -> bool:
        return (self.stamp, self.server_id) < (other.stamp, other.server_id)


@frozen
class Standing:
    """A server's place in the line of succession, and why."""

    server: Server
    role: str
    """`first`, `master` or `server`."""
    reason: str
    leads: bool = False
    """Whether it leads at this moment, whatever its role should be."""


def in_order(servers: Iterable[Server]) -> tuple[Server, ...]:
    """All servers, live ones first, then those that are emptied, leaving, and down; oldest first in each part.

    So the first three that stand in `config.ini` are the masters as soon as one of them begins to leave.
    """
    return tuple(sorted(servers, key=lambda server: (_BEHIND.get(server.state, 0), server.seniority, server.id)))


def candidates(servers: Iterable[Server]) -> tuple[Server, ...]:
    """Live servers that may be masters, oldest first, each zone's first ahead of its others.

    The order is by seniority among servers whose zone has not been seen yet, as long as fewer than
    `MASTERS` zones have been found; what was passed over follows by seniority. Servers that are emptied are to leave,
    so they stand behind all others: they hold the table only while there are not enough of those.
    """
    live = [server for server in servers if server.state in LIVE and server.master]
    staying = _in_line([server for server in live if not server.is_emptied])
    return staying + tuple(sorted((server for server in live if server.is_emptied), key=_seniority))


def _in_line(servers: Iterable[Server]) -> tuple[Server, ...]:
    line = sorted(servers, key=_seniority)
    zones: set[str] = set()
    ahead: list[Server] = []
    passed_over: list[Server] = []
    for server in line:
        if len(ahead) < MASTERS and (server.zone or server.id) not in zones:
            zones.add(server.zone or server.id)
            ahead.append(server)
        else:
            passed_over.append(server)
    chosen = ahead + passed_over
    return tuple(sorted(chosen[:MASTERS], key=_seniority)) + tuple(chosen[MASTERS:])


def _seniority(server: Server) -> tuple[int, str]:
    return server.seniority, server.id


def masters(servers: Iterable[Server]) -> tuple[Server, ...]:
    """The masters as they should be, oldest first."""
    return candidates(servers)[:MASTERS]


def learners(servers: Iterable[Server]) -> tuple[Server, ...]:
    """The next in line after the masters."""
    return candidates(servers)[MASTERS : MASTERS + LEARNERS]


def succession(servers: Iterable[Server], voters: Collection[str] = (), leader: str = "") -> tuple[Standing, ...]:
    """The line of succession: every server, live ones first, with its role and the reason in one clause.

    `voters` and `leader` are what the table's engine says now; where that differs from the rules (a
    hand-over is under way), the reason says so.
    """
    everyone = in_order(servers)
    chosen = masters(everyone)
    chosen_ids = [server.id for server in chosen]
    line: list[Standing] = []
    for server in everyone:
        if server.id in chosen_ids:
            rank = chosen_ids.index(server.id)
            role = "first" if rank == 0 else "master"
            reason = "the most senior live master" if rank == 0 else f"number {rank + 1} in seniority among the masters"
            if server.is_emptied:
                reason = "it is emptied, and holds the table until another server can"
            if rank == 0 and leader and leader != server.id:
                reason += (
                    "; it does not lead: that is being handed to it, or it is silent and about to be called down, "
                    "or the disk that holds its table is full"
                )
            if voters and server.id not in voters:
                reason += "; it is still catching up"
        else:
            role = "server"
            reason = _why_not(server, chosen)
        if server.id == leader and role != "first":
            reason += "; it leads until the first does"
        line.append(Standing(server, role, reason, server.id == leader))
    return tuple(line)


def _why_not(server: Server, chosen: tuple[Server, ...]) -> str:
    if server.state not in LIVE:
        return f"it is {server.state}" + (f" since {timestamp(server.since)}" if server.since else "")
    if not server.master:
        return "its config says master = no"
    if server.is_emptied:
        return "it is emptied, to be taken out"
    if any(other.seniority > server.seniority for other in chosen):
        rival = next(other for other in chosen if other.zone == server.zone)
        return f"passed over: {rival.name} stands for the same zone, {server.zone}"
    return f"there are {MASTERS} masters ahead of it"
