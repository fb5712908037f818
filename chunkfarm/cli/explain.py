"""`chunkfarm explain`: where the parts of a file are, and what is lost with which server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest

from attrs import define, field

from chunkfarm.cli import screen
from chunkfarm.cli.farm import Farm
from chunkfarm.links.lines import Reply
from chunkfarm.links.rows import parse_row
from chunkfarm.wire.lines import quote

PAGE = 1000
"""Chunks of one EXPLAIN, which takes no more."""

Row = dict[str, str]


@define
class Loss:
    """What nobody but one server has."""

    chunks: set[str] = field(factory=set)
    bytes: int = 0
    manifest: bool = False
    """Whether a part of the manifest is among them: then it is the whole file."""


@define
class Explained:
    """All pages of an EXPLAIN. Rows are fields as the server told them."""

    file: Row
    manifest: list[Row]
    chunks: list[Row]
    servers: list[Row]
    """The farm's servers, as of the last page."""

    @property
    def parts(self) -> list[Row]:
        return [*self.manifest, *self.chunks]

    def held(self, server_id: str) -> int:
        """How many different chunks a server holds."""
        return len({part["digest"] for part in self.parts if server_id in holders(part)})

    def loss(self, server_id: str) -> Loss:
        """What dies with a server."""
        loss = Loss()
        for part in self.parts:
            if holders(part) == [server_id]:
                loss.chunks.add(part["digest"])
                loss.bytes += int(part.get("length", "0"))
                loss.manifest = loss.manifest or "length" not in part
        return loss

    @property
    def gone(self) -> int:
        """How many chunks nobody who answered holds."""
        return len({part["digest"] for part in self.parts if not holders(part)})


def holders(part: Row) -> list[str]:
    """Ids of the servers that hold a part."""
    return [holder for holder in part["holders"].split(",") if holder]


def verified(part: Row) -> dict[str, str | None]:
    """When each holder of a part last read it whole and found it right; None where that is not known."""
    times = part.get("verified", "").split(",")
    return {id: None if time in ("", "-") else time for id, time in zip_longest(holders(part), times) if id}


def oldest(parts: Iterable[Row], server_id: str = "") -> str:
    """Since when every copy of these parts, or every one of a server, has been verified; for people."""
    times = {time for part in parts for id, time in verified(part).items() if server_id in ("", id)}
    known = sorted(time for time in times if time is not None)
    if not known:
        return "not known" if times else ""
    return screen.readable_time(known[0]) if None not in times else "not all"


async def explain(farm: Farm, name: str) -> Explained:
    """Ask page by page."""
    told: Explained | None = None
    more = True
    while more:
        start = len(told.chunks) if told is not None else 0
        line = f"EXPLAIN {quote(name)} {start} {PAGE}"
        reply: Reply = await farm.run(lambda link, line=line: link.request(line))  # type: ignore[misc]
        if told is None or told.file["revision"] != reply.fields["revision"]:
            # Another file has come under this name meanwhile: the rows of the one before say nothing of it.
            told = Explained(reply.fields, [], [], [])
            if start:
                continue
        told.servers = []
        kinds = {"MANIFEST": told.manifest, "CHUNK": told.chunks, "HOLDER": told.servers}
        for row in reply.rows:
            word, fields = parse_row(row)
            if word in kinds:
                kinds[word].append(fields)
        more = "more" in reply.words and len(told.chunks) > start
    assert told is not None
    return told


def lines(told: Explained) -> Iterator[str]:
    """What people read before the tables."""
    file, parts = told.file, told.parts
    size = screen.readable_size(int(file["size"]))
    name = screen.clean(file["name"])
    if not parts:
        yield f"{name}: {size}, no chunks"
        return
    fewest = min(len(holders(part)) for part in parts)
    yield f"{name}: {size} in {_count(len(told.chunks))}, {file['wanted']} copies wanted, at least {fewest} there"
    if told.gone:
        yield f"No server that answered holds {_count(told.gone)}: the file cannot be read now."
    if "stale" in file:
        yield f"The masters do not answer; this is the file as of revision {file['stale']}."


def chunk_table(told: Explained) -> list[list[str]]:
    """Runs of chunks that lie on the same servers: which, their size, copies, since when verified, and where."""
    names = {server["id"]: server["name"] for server in told.servers}
    runs: list[tuple[list[Row], list[str]]] = []
    for part in told.parts:
        run = runs[-1] if runs else None
        if run is not None and run[1] == holders(part) and ("number" in run[0][0]) == ("number" in part):
            run[0].append(part)
        else:
            runs.append(([part], holders(part)))
    return [
        [
            _numbers(run),
            screen.readable_size(sum(int(part["length"]) for part in run)) if "number" in run[0] else "",
            str(len(on)),
            oldest(run),
            ", ".join(names.get(server_id, server_id) for server_id in on) or "nobody who answered",
        ]
        for run, on in runs
    ]


def server_table(told: Explained) -> list[list[str]]:
    """Each server: its state, what it holds, since when that is verified, and what is lost if it dies."""
    rows = []
    for server in told.servers:
        loss, held = told.loss(server["id"]), told.held(server["id"])
        if server["state"] == "down" and not held:
            # Nobody asks it, so 0 would say that it has nothing.
            rows.append([server["name"], "down", "?", "", "not known"])
            continue
        if loss.manifest:
            lost = "the file"
        elif loss.chunks:
            lost = f"{_count(len(loss.chunks))}, {screen.readable_size(loss.bytes)}"
        else:
            lost = "nothing"
        rows.append([server["name"], server["state"], str(held), oldest(told.parts, server["id"]), lost])
    return rows


def as_value(told: Explained) -> dict[str, object]:
    """All of it, for JSON."""

    def part(row: Row) -> dict[str, object]:
        numbers: dict[str, object] = {name: int(row[name]) for name in ("number", "length") if name in row}
        where = {"digest": row["digest"], "copies": len(holders(row)), "holders": holders(row)}
        return {**numbers, **where, "verified": verified(row)}

    servers = []
    for server in told.servers:
        loss = told.loss(server["id"])
        servers.append(
            {
                "id": server["id"],
                "name": server["name"],
                "state": server["state"],
                "held": told.held(server["id"]),
                "only": len(loss.chunks),
                "bytes": int(told.file["size"]) if loss.manifest else loss.bytes,
            }
        )
    return {
        "name": told.file["name"],
        "size": int(told.file["size"]),
        "wanted": int(told.file["wanted"]),
        "revision": int(told.file["revision"]),
        "manifest": [part(row) for row in told.manifest],
        "chunks": [part(row) for row in told.chunks],
        "servers": servers,
        **({"stale": int(told.file["stale"])} if "stale" in told.file else {}),
    }


def _count(chunks: int) -> str:
    return f"{chunks} chunk{'' if chunks == 1 else 's'}"


def _numbers(run: list[Row]) -> str:
    if "number" not in run[0]:
        return "manifest"
    first, last = run[0]["number"], run[-1]["number"]
    return first if first == last else f"{first}-{last}"
