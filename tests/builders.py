"""Small builders that tests of several rooms share."""

from __future__ import annotations

from attrs import evolve

from chunkfarm.model import Server


def server_id(number: int) -> str:
    """A legal server id that a person can read in a failing test."""
    return f"{number:032x}"


def make_server(number: int, **changes: object) -> Server:
    """Server `number`, joined at that seniority, on ports of its own."""
    base = 4100 + 10 * number
    server = Server(
        id=server_id(number),
        name=f"s{number}",
        host="127.0.0.1",
        client=base,
        peer=base + 1,
        files=base + 2,
        joined=1_000 * number,
        seniority=number,
        zone=f"zone{number}",
        weight=10,
        incarnation=f"run{number}",
    )
    return evolve(server, **changes)  # type: ignore[arg-type]
