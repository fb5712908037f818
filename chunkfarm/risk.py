"""What could be lost now: the chunks with one or two copies, by the servers that have those. Records and sums, pure.

A copy counts if its server answered when the chunk was last looked at. Who is down or silent may come back with all
it had, or without; so long as nobody knows, what only the others have is told as theirs alone. Each chunk is counted by
one server, the one that would send it (`chunks.repair.sender_of`), so the servers' numbers can be added up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from attrs import evolve, frozen

from chunkfarm.model import Server

COPIES_MAX = 2
"""Chunks with more copies survive the loss of any two disks, and are not counted."""
TOLD_MAX = 64
"""Sets of servers that one server names in its reports: all of them in a farm of 64, in some 8 KiB."""
SUMMED_MAX = 16
"""Sets that the first names in its answers, which everybody gets each second: those of one server, then the largest."""

COUNT_MAX = 2**63 - 1
"""No sum is more, whatever a broken server tells: who reads the sum takes no larger numbers."""

Totals = Mapping[tuple[str, ...], tuple[int, int]]
"""Chunks and bytes by the ids of the servers that have all copies of them, in order."""


@frozen
class Exposed:
    """Chunks of which these servers have all copies: they are lost if the disks of all of these are."""

    holders: tuple[str, ...]
    """One id or two, in order."""
    chunks: int
    bytes: int


@frozen(kw_only=True)
class Risk:
    """What one server knows of the chunks that it answers for, or the sum of all servers."""

    sets: tuple[Exposed, ...] = ()
    """Single servers first, then pairs; of each the most bytes first."""
    more_sets: int = 0
    """Sets that were left out."""
    more_chunks: int = 0
    more_bytes: int = 0
    unknown: int = 0
    """Servers that have not looked at all of their chunks since they were started: there may be more."""


@frozen
class FilesOf:
    """Files of which parts are lost if the disks of all of these servers are."""

    holders: tuple[str, ...]
    """One id or two, in order."""
    files: int
    at_least: bool
    """Whether there may be more: not all chunks were looked up, or not all files are known."""
    names: tuple[str, ...] = ()
    """Of some of them."""

    @property
    def count(self) -> str:
        return _count(self.files, self.at_least)


@frozen(kw_only=True)
class LostFiles:
    """What can be lost, in files, so far as it was counted."""

    sets: tuple[FilesOf, ...] = ()
    one: int = 0
    """Files of which parts are lost with some one server."""
    one_at_least: bool = False
    two: int = 0
    """Those of which parts are on two servers alone."""
    two_at_least: bool = False


def _count(files: int, at_least: bool) -> str:
    return f"{files}+" if at_least else str(files)


def ranked(totals: Totals, limit: int, more: Risk | None = None) -> Risk:
    """The most dangerous sets of these; the others are added to what `more` leaves out."""
    more = more or Risk()
    line = sorted(totals.items(), key=lambda item: (len(item[0]), -item[1][1], item[0]))
    rest = [total for _, total in line[limit:]]
    return evolve(
        more,
        sets=tuple(Exposed(holders, _bounded(chunks), _bounded(size)) for holders, (chunks, size) in line[:limit]),
        more_sets=_bounded(more.more_sets + len(rest)),
        more_chunks=_bounded(more.more_chunks + sum(chunks for chunks, _ in rest)),
        more_bytes=_bounded(more.more_bytes + sum(size for _, size in rest)),
        unknown=_bounded(more.unknown),
    )


def _bounded(number: int) -> int:
    return min(number, COUNT_MAX)


def summed(told: Iterable[Risk | None], limit: int = SUMMED_MAX) -> Risk:
    """What several servers have told, as one; None is a server that has told nothing.

    A pair may be told by both; one that either of them left out counts as left out, perhaps twice.
    """
    totals: dict[tuple[str, ...], tuple[int, int]] = {}
    more = Risk()
    for risk in told:
        if risk is None:
            more = evolve(more, unknown=more.unknown + 1)
            continue
        for one in risk.sets:
            chunks, size = totals.get(one.holders, (0, 0))
            totals[one.holders] = chunks + one.chunks, size + one.bytes
        more = evolve(
            more,
            more_sets=more.more_sets + risk.more_sets,
            more_chunks=more.more_chunks + risk.more_chunks,
            more_bytes=more.more_bytes + risk.more_bytes,
            unknown=more.unknown + risk.unknown,
        )
    return ranked(totals, limit, more)


def of_down(risk: Risk, down: Collection[str]) -> Risk:
    """What still counts of the last words of a server that is down: what only such servers have; nobody else tells."""
    return Risk(sets=tuple(one for one in risk.sets if all(holder in down for holder in one.holders)))


LOST_FILE = "lost-file"
"""The name in STATUS of files of which something can be lost: a key that may see some names only is told of those."""


def pairs(risk: Risk | None, servers: Iterable[Server], files: LostFiles | None = None) -> list[tuple[str, str]]:
    """As STATUS shows it; None: nobody has told this server, or the files were not counted."""
    if risk is None:
        return [("can-be-lost", "not known: the first has not told it")]
    names = {server.id: server.name for server in servers}
    ones = [one for one in risk.sets if len(one.holders) == 1]
    twos = [one for one in risk.sets if len(one.holders) == 2]
    told = [("can-be-lost", _sentence(risk, bool(ones), bool(twos), files))]
    if risk.unknown:
        told.append(("risk-unknown-servers", str(risk.unknown)))
    told += [
        ("one-copy", str(sum(one.chunks for one in ones))),
        ("one-copy-bytes", str(sum(one.bytes for one in ones))),
        ("two-copies", str(sum(one.chunks for one in twos))),
        ("two-copies-bytes", str(sum(one.bytes for one in twos))),
    ]
    if files is not None:
        told += [
            ("one-copy-files", _count(files.one, files.one_at_least)),
            ("two-copies-files", _count(files.two, files.two_at_least)),
        ]
    counted = {one.holders: one for one in files.sets} if files is not None else {}
    for one in risk.sets:
        holders = ",".join(sorted(names.get(holder, holder) for holder in one.holders))
        line = f"{holders} chunks={one.chunks} bytes={one.bytes}"
        of = counted.get(one.holders)
        told.append(("lost-with", line if of is None else f"{line} files={of.count}"))
    if risk.more_sets:
        told.append(("lost-with-others", f"sets={risk.more_sets} chunks={risk.more_chunks} bytes={risk.more_bytes}"))
    return told


def _sentence(risk: Risk, one: bool, two: bool, files: LostFiles | None) -> str:
    """What people read first."""
    if risk.unknown:
        servers = "1 server has" if risk.unknown == 1 else f"{risk.unknown} servers have"
        doubt = f"{servers} yet to look at all chunks"
    else:
        doubt = ""
    in_one = f"chunks of {_files(files.one, files.one_at_least)}" if files is not None else "chunks"
    in_two = f"of {_files(files.two, files.two_at_least)}" if files is not None else "more"
    if one:
        found = f"{in_one} with one server, and {in_two} with two" if two else f"{in_one} with one server"
    elif two:
        in_two = f"chunks {in_two}" if files is not None else "chunks"
        found = f"{in_two} with two servers, with no one server alone"
    elif doubt:
        return f"not known yet: {doubt}"
    else:
        return "nothing with any one server, and nothing with any two"
    return f"{found}; {doubt}" if doubt else found


def _files(files: int, at_least: bool) -> str:
    told = "1 file" if files == 1 else f"{files} files"
    return f"at least {told}" if at_least else told
