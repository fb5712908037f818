"""How a server finds out that its data directory is old, before it takes part (pure).

A directory that was put back from a backup has forgotten votes and entries that this server has promised to keep.
What it cannot know by itself is remembered beside `config.ini`: up to which generation of the farm this very server
brought that file. Where nothing is remembered, the file itself and its kept versions say it. They count only where
this server's own row does not stand as down, because a file that several servers share, or that was copied from
another, also tells of times at which this server was away. Whoever was merely away has forgotten nothing, and two
of three servers must be able to go on without the third.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from chunkfarm.config import Config

OLDER_THAN_CONFIG = (
    "the table on this server's disk is older than config.ini, as after a backup was put back: "
    "it decides nothing until a first of the farm has caught it up"
)
OLDER_THAN_OTHERS = (
    "the table on this server's disk is older than that of the farm, whose first it does not hear yet: "
    "it decides nothing until that one has caught it up"
)

OLD_DISKS = (OLDER_THAN_CONFIG, OLDER_THAN_OTHERS)


def witness(server_id: str, farm: str, versions: Iterable[Config], reached: int | None = None) -> int:
    """The generation that this server had reached: `reached`, or what versions of `config.ini` say; 0 for none.

    0 too where no version lists anybody else: then there is nobody who could catch this server up.
    """
    ours = [version for version in versions if version.farm.id == farm]
    if all(row.id == server_id for version in ours for row in version.servers):
        return 0
    if reached is not None:
        return reached
    live = (
        version.generation
        for version in ours
        if any(row.id == server_id and row.state != "down" for row in version.servers)
    )
    return max(live, default=0)


def tells_of_newer(told: Mapping[str, Any], me: str, held: int) -> bool:
    """Whether another server's answer to a probe shows that the table of `me`, at generation `held`, is an old one.

    Only where somebody else leads, who can catch this server up. Where nobody does, being behind is no sign of an
    old disk, and a majority must be able to go on.
    """
    first = told["first"]
    led = first is not None and first["id"] != me and told["state"] == "serving"
    return bool(led and told["generation"] > held)
