"""`chunkfarm check`: has the holders of every chunk read it, says what is wrong, and waits for the repair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import define, field
from twisted.internet.task import deferLater

from chunkfarm.cli import screen
from chunkfarm.cli.farm import Farm
from chunkfarm.errors import NotFound
from chunkfarm.links.lines import Reply
from chunkfarm.links.rows import parse_row
from chunkfarm.wire.lines import quote

LIST_PAGE = 1000
PAGE = 1000
"""Chunks of one CHECK; the server looks at fewer if they have many bytes."""
POLL_SECONDS = 1.0
"""Between two looks at what is being repaired."""
TOLD_SECONDS = 5.0
"""Between two words on what is left."""

Row = dict[str, str]


@define
class FileCheck:
    """What one file has wrong, by the servers that answered. Chunks are told apart by their digests."""

    name: str
    size: int = 0
    wanted: int = 0
    chunks: set[str] = field(factory=set)
    damaged: set[tuple[str, str]] = field(factory=set)
    """Digest and server id."""
    short: dict[str, int] = field(factory=dict)
    """Copies of each chunk that has too few."""
    silent: dict[str, Row] = field(factory=dict)
    """Servers that did not answer."""
    stale: int = 0
    """The revision that this is as of, if nobody who knows the last state answered."""

    @property
    def lost(self) -> set[str]:
        """Chunks that nobody has who answered."""
        return {digest for digest, copies in self.short.items() if copies == 0}

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged and not self.short

    @property
    def copies_missing(self) -> int:
        """Copies that are to be made."""
        return sum(self.wanted - copies for copies in self.short.values())

    def take(self, reply: Reply) -> None:
        """Note one page."""
        self.stale = max(self.stale, reply.stale)
        self.size, self.wanted = int(reply.fields["size"]), int(reply.fields["wanted"])
        for row in reply.rows:
            word, fields = parse_row(row)
            if word == "SILENT":
                self.silent[fields["id"]] = fields
            elif word in ("CHUNK", "MANIFEST"):
                digest, copies = fields["digest"], int(fields["copies"])
                self.chunks.add(digest)
                self.damaged |= {(digest, server) for server in fields["damaged"].split(",") if server}
                if copies < self.wanted:
                    self.short[digest] = copies


async def check_file(farm: Farm, name: str, quick: bool) -> FileCheck | None:
    """Ask page by page; None if there is no such file any more."""
    told, start, revision, more = FileCheck(name), 0, "", True
    while more:
        line = f"CHECK {quote(name)} {start} {PAGE}" + (" quick" if quick else "")
        try:
            reply: Reply = await farm.run(lambda link, line=line: link.request(line))  # type: ignore[misc]
        except NotFound:
            return None
        if revision not in ("", reply.fields["revision"]):
            # Another file has come under this name meanwhile.
            told, start, revision = FileCheck(name), 0, ""
            continue
        revision = reply.fields["revision"]
        told.take(reply)
        chunks = sum(row.startswith("CHUNK ") for row in reply.rows)
        start += chunks
        more = "more" in reply.words and chunks > 0
    return told


@define
class Checked:
    """All files, as they were found."""

    files: int = 0
    chunks: int = 0
    bytes: int = 0
    wrong: list[FileCheck] = field(factory=list)
    stale: int = 0
    """The revision that some of this is as of, if nobody who knows the last state answered."""


async def check(farm: Farm, prefix: str, quick: bool, bar: screen.Bar) -> Checked:
    """Go through the files whose names begin with `prefix`, page by page: there may be millions."""
    found = Checked()
    after, more, listed = "-", True, 0
    while more:
        line = f"LIST {quote(prefix) or '-'} {after} {LIST_PAGE}"
        reply: Reply = await farm.run(lambda link, line=line: link.request(line))  # type: ignore[misc]
        rows = reply.parsed()
        found.stale = max(found.stale, reply.stale)
        more = "more" in reply.words and bool(rows)
        listed += sum(int(row["size"]) for row in rows)
        # What is behind the last page is not known yet.
        bar.size(None if more else listed)
        for row in rows:
            after = quote(row["name"])
            told = await check_file(farm, row["name"], quick)
            bar.more(int(row["size"]))
            if told is not None:
                found.files += 1
                found.chunks += len(told.chunks)
                found.bytes += told.size
                found.stale = max(found.stale, told.stale)
                if not told.is_whole:
                    found.wrong.append(told)
    return found


async def _repairs(farm: Farm) -> tuple[int, int]:
    """What STATUS says of repairs: the copies that this server has made, and the farm's chunks that are short."""
    reply: Reply = await farm.run(lambda link: link.request("STATUS"))
    told = dict(row.partition("=")[::2] for row in reply.rows)
    done, short = told.get("repair-done", ""), told.get("under-replicated", "")
    return int(done) if done.isdecimal() else 0, int(short) if short.isdecimal() else 0


async def repaired(farm: Farm, wrong: Sequence[FileCheck], timeout: float, quick: bool) -> list[FileCheck]:
    """Wait until these files are whole; gives those that are not when nothing has moved for `timeout` seconds.

    Copies that the farm makes of other chunks count as well, since those with fewer copies come first. While a server
    is down that may come back, its copies are not made elsewhere yet, and that is waited for too. One that is up
    by its reports, and does not answer, may stay like this for ever.
    """
    left = list(wrong)
    fewest, moved, said = _missing(left), farm.clock.seconds(), float("-inf")
    done, short = await _repairs(farm)
    while left:
        await deferLater(farm.clock, POLL_SECONDS)
        done_before, short_before = done, short
        done, short = await _repairs(farm)
        # Chunks may be found short again and again, so that only what is less than ever before is progress.
        goes_on = done != done_before or short < short_before
        short = min(short, short_before)
        still = []
        for file in left:
            told = await check_file(farm, file.name, quick=True)
            if told is not None and told.is_whole and not quick:
                # Nothing is missing: what was damaged is read once more.
                told = await check_file(farm, file.name, quick=False)
            if told is not None and not told.is_whole:
                still.append(told)
        left = still
        now = farm.clock.seconds()
        if (missing := _missing(left)) < fewest or goes_on:
            fewest, moved = min(missing, fewest), now
        silent = [row for row in _silent(left).values() if row.get("owns") == "yes"]
        awaited = [row for row in silent if row.get("state") == "down"]
        if awaited:
            # Who comes back has as long as others to take its copies.
            moved = now
        if now - said >= TOLD_SECONDS and left:
            said = now
            waits = [
                f"; {row['name']} is {row['state']}, and {'may come back' if row in awaited else 'does not answer'}"
                for row in silent
            ]
            copies = _count(missing[1], "copy", "copies")
            screen.progress(f"{copies} in {_count(missing[0], 'file')} left{''.join(waits)}")
        if now - moved >= timeout:
            break
    return left


def _missing(files: Sequence[FileCheck]) -> tuple[int, int]:
    return len(files), sum(file.copies_missing + len(file.damaged) for file in files)


def _silent(files: Sequence[FileCheck]) -> dict[str, Row]:
    return {id: row for file in files for id, row in file.silent.items()}


def lines(found: Checked, quick: bool, server_names: dict[str, str]) -> Iterator[str]:
    """What people read: each file that is not whole, then all in one line."""
    for file in found.wrong:
        yield f"{screen.clean(file.name)}: {'; '.join(_troubles(file, server_names))}"
    for row in _silent(found.wrong).values():
        yield f"{screen.clean(row['name'])} did not answer (it is {row['state']}): what it has is not counted."
    how = "asked about" if quick else "read"
    wrong = "all whole" if not found.wrong else f"{_count(len(found.wrong), 'file')} not whole"
    yield (
        f"{_count(found.files, 'file')}, {_count(found.chunks, 'chunk')}, "
        f"{screen.readable_size(found.bytes)} {how}: {wrong}"
    )


def _troubles(file: FileCheck, server_names: dict[str, str]) -> Iterator[str]:
    by_server: dict[str, int] = {}
    for _, server in file.damaged:
        by_server[server] = by_server.get(server, 0) + 1
    for server, count in sorted(by_server.items()):
        yield f"{_count(count, 'chunk')} damaged on {screen.clean(server_names.get(server, server))}"
    for copies in sorted({copies for copies in file.short.values() if copies}):
        count = sum(1 for one in file.short.values() if one == copies)
        yield f"{_count(count, 'chunk')} with {copies} of {file.wanted} copies"
    if file.lost:
        yield f"{_count(len(file.lost), 'chunk')} {'on no server that answered' if file.silent else 'lost'}"


def as_value(found: Checked) -> dict[str, object]:
    """All of it, for JSON."""
    return {
        "files": found.files,
        "chunks": found.chunks,
        "bytes": found.bytes,
        "wrong": [
            {
                "name": file.name,
                "wanted": file.wanted,
                "damaged": [{"digest": digest, "server": server} for digest, server in sorted(file.damaged)],
                "short": [{"digest": digest, "copies": copies} for digest, copies in sorted(file.short.items())],
                "silent": sorted(file.silent),
            }
            for file in found.wrong
        ],
        **({"stale": found.stale} if found.stale else {}),
    }


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
