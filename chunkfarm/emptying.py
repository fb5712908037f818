"""Emptying a server (DRAIN): whether it may be begun, what its row becomes, and how its progress is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve

from chunkfarm.errors import PreconditionFailed
from chunkfarm.model import Drain, Server


def emptied(row: Server, servers: Iterable[Server], replicas: int, now: int, anyway: bool = False) -> Server:
    """The row of a server that is emptied from now on; as it is if it is already.

    Raises `PreconditionFailed` if nobody could take its chunks, and, unless `anyway`, if the others could not keep
    `replicas` copies of each or have no room for them. `now` is in ms.
    """
    if row.draining:
        return row
    others = [server for server in servers if server.id != row.id and server.owns]
    if row.stores and not others:
        raise PreconditionFailed(f"no other server stores chunks: {row.name} can only be emptied once there is one")
    if row.owns and not anyway:
        if len(others) < replicas:
            copies = "1 copy" if len(others) == 1 else f"{len(others)} copies"
            raise PreconditionFailed(
                f"without {row.name} {_servers(len(others))} chunks, so that each would have {copies} and not "
                f"{replicas}: add a server, or insist ({_insisting(row)})"
            )
        room = sum(server.free for server in others if not server.full and server.state != "down")
        if row.used > room:
            raise PreconditionFailed(
                f"the chunks of {row.name} take {row.used} bytes, and the others that are up have {room} free: "
                f"make room, or insist ({_insisting(row)})"
            )
    return _entered(evolve(row, draining=True), now)


def _insisting(row: Server) -> str:
    return f"DRAIN {row.name} anyway; chunkfarm drain {row.name} --anyway"


def kept(row: Server, now: int) -> Server:
    """The row of a server that is not emptied any more."""
    return _entered(evolve(row, draining=False), now)


def _entered(row: Server, now: int) -> Server:
    if row.state in ("up", "draining") and row.state != row.live_state:
        return evolve(row, state=row.live_state, since=now)
    return row


def _servers(count: int) -> str:
    return "one server stores" if count == 1 else f"{count} servers store"


def sentence_of(server: Server, drain: Drain | None) -> str:
    """How far it is, for STATUS."""
    if server.state == "down":
        return f"{server.name}: it is down; what it has is copied from others that have it, or when it is back"
    if drain is None or not drain.counted:
        return f"{server.name}: nothing is known of it yet" + (f"; {drain.paused}" if drain and drain.paused else "")
    if drain.drained:
        return f"{server.name}: drained, nothing on it is needed any more: it may be switched off, and then forgotten"
    told = f"{server.name}: {drain.left} of {drain.chunks} chunks left, {drain.bytes_left} bytes"
    if drain.rate:
        told += f", {drain.rate} a second, {drain.seconds_left} s left"
    return told + (f"; paused: {drain.paused}" if drain.paused else "")
