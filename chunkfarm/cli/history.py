"""`chunkfarm history`: what the servers saw of who joined, led, left and came back, put together in one time line.

Each server tells what it saw by its own clock. The clocks are compared with this machine's as NTP does: half of the
time that a short question took lies before the moment that the answer names, give or take that half.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import click
from attrs import define, field, frozen
from twisted.internet import error as network
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError, gatherResults

from chunkfarm.cli import screen
from chunkfarm.cli.exits import NobodyAnswered
from chunkfarm.cli.farm import Farm, sentence_of
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.cli.threads import RunInThread
from chunkfarm.config import ConfigError, Listed, parse_duration
from chunkfarm.errors import AuthenticationFailed, Denied, FarmError, UnknownCommand, Waiting
from chunkfarm.links.lines import LineClient, LinkLost, NotUnderstood
from chunkfarm.model import Address, parse_timestamp, timestamp
from chunkfarm.trust.private import TrustError

PROBES = 4
"""Questions for the time; the one that was answered soonest counts."""
AT_ONCE = 16
"""Servers that are asked at the same time."""
LATE_MS = 600_000
"""By which a server may note a thing later than others, because it was cut off: so much earlier than wanted is asked
for, since what others saw decides when it was."""
SPREAD_TOLD_MS = 1000
"""From here on a clock that differs is worth a word."""

_WORDS = {
    "started": "was started",
    "ended": "ended",
    "waiting": "waits for others",
    "serving": "serves",
    "readonly": "takes no changes",
    "joined": "joined",
    "resumed": "is back",
    "up": "is up",
    "down": "went down",
    "leaving": "leaves",
    "draining": "is emptied",
    "givenup": "was given up",
    "gone": "was taken out",
    "master": "became master",
    "nomaster": "is master no more",
    "leads": "leads",
    "ledto": "leads no more",
}
"""What happened, for people."""

Row = dict[str, str]


@define
class Told:
    """What one server said, or why it said nothing."""

    server: Listed
    id: str = ""
    name: str = ""
    ahead: float = 0.0
    """Milliseconds by which its clock is ahead of this machine's."""
    margin: float = 0.0
    """By which that may be wrong."""
    notes: list[Row] = field(factory=list)
    error: Exception | None = None
    others: list[Row] = field(factory=list)
    """The rows of its server table."""

    def moment(self, note: Row) -> float:
        """When that was, by this machine's clock, in milliseconds since 1970."""
        return parse_timestamp(note["at"]) - self.ahead


@frozen(kw_only=True)
class Happened:
    """One thing, by all who saw it."""

    time: int
    """By this machine's clock, ms since 1970: of the times that they tell the one in the middle, for one clock among
    them may be wrong; of who leads, what that server says itself, for others may have heard of it much later."""
    kind: str
    server: str
    name: str
    term: str
    because: str
    seen_by: tuple[str, ...]
    """Names, in the order in which they saw it."""


def merged(told: Iterable[Told]) -> list[Happened]:
    """One time line out of several, the oldest first."""
    groups: dict[tuple[str, ...], list[tuple[float, Told, Row]]] = {}
    for one in told:
        for note in one.notes:
            # What has no mark, a server alone can know.
            mark = (note["mark"],) if "mark" in note else (one.id, note["number"])
            key = (note["kind"], note["server"], *mark)
            groups.setdefault(key, []).append((one.moment(note), one, note))
    line = [_happened(sorted(seen, key=lambda one: one[0])) for seen in groups.values()]
    return sorted(line, key=lambda one: one.time)


def _happened(seen: list[tuple[float, Told, Row]]) -> Happened:
    # What it happened to knows best why.
    by_itself = [(moment, note) for moment, one, note in seen if one.id == note["server"]]
    notes = [note for _, note in by_itself] + [note for _, _, note in seen]
    note = notes[0]
    if note["kind"] in ("leads", "ledto"):
        time = by_itself[0][0] if by_itself else seen[0][0]
    else:
        time = statistics.median_low(moment for moment, _, _ in seen)
    return Happened(
        time=round(time),
        kind=note["kind"],
        server=note["server"],
        name=note["name"],
        term=note.get("term", ""),
        because=next((one["because"] for one in notes if "because" in one), ""),
        seen_by=tuple(dict.fromkeys(one.name for _, one, _ in seen)),
    )


async def ask(farm: Farm, server: Listed, since: int, now_ms: Callable[[], int]) -> Told:
    """One server, over a link of its own; whatever goes wrong is its `error`."""
    told = Told(server, server.id, server.name)
    try:
        # Also the time that it takes to connect.
        await Deferred.fromCoroutine(_ask(farm, told, since, now_ms)).addTimeout(farm.timeout, farm.clock)
    except CancelledError:
        raise
    except TimeoutError:
        told.error = LinkLost(f"no answer within {farm.timeout:g} s")
    except UnknownCommand:
        told.error = FarmError("its version keeps no history")
    except (FarmError, TrustError, network.ConnectError, network.ConnectionLost, network.ConnectionDone,
            network.DNSLookupError) as error:  # fmt: skip
        told.error = error
    return told


async def _ask(farm: Farm, told: Told, since: int, now_ms: Callable[[], int]) -> None:
    link = await farm.dial(told.server)
    try:
        await _set_clock(farm, link, told, now_ms)
        earliest = timestamp(max(0, round(since + told.ahead - LATE_MS))) if since else "-"
        after, more = "0", True
        while more:
            reply = await link.request(f"HISTORY {earliest} {after}")
            rows = reply.parsed()
            told.notes += map(_checked, rows)
            more = "more" in reply.words and bool(rows)
            after = rows[-1]["number"] if rows else after
        with contextlib.suppress(Waiting):
            # While it waits for the others, it tells what it saw, and does not show its table.
            told.others = (await link.request("SERVERS")).parsed()
    finally:
        link.lose()


def _checked(note: Row) -> Row:
    """A note that has what every note has; raises `NotUnderstood`."""
    try:
        parse_timestamp(note["at"])
        if all(name in note for name in ("number", "kind", "server", "name")):
            return note
    except (KeyError, ValueError):
        pass
    raise NotUnderstood("it tells something that is no note")


async def _set_clock(farm: Farm, link: LineClient, told: Told, now_ms: Callable[[], int]) -> None:
    best = float("inf")
    for _ in range(PROBES):
        wall, began = now_ms(), farm.clock.seconds()
        reply = await link.request("HISTORY - - 0")
        took = 1000 * (farm.clock.seconds() - began)
        try:
            shown = parse_timestamp(reply.fields["now"])
            told.id, told.name = reply.fields["server"], reply.fields["name"]
        except (KeyError, ValueError):
            raise NotUnderstood("it does not say who it is and what its clock shows") from None
        if took < best:
            best = took
            told.ahead = shown - (wall + took / 2)
            told.margin = took / 2


async def ask_all(farm: Farm, since: int, now_ms: Callable[[], int]) -> list[Told]:
    """All servers of `config.ini`, and those that the servers know of which it does not list.

    Fails with `NobodyAnswered`, or with what is wrong with the key, if nobody tells anything.
    """
    told: list[Told] = []
    asked: set[tuple[str, int]] = set()
    wanted: Sequence[Listed] = farm.servers
    while wanted:
        asked |= {(server.host, server.client) for server in wanted}
        told += await _together([partial(ask, farm, server, since, now_ms) for server in wanted])
        known = {one.id for one in told if one.id}
        wanted = [
            row for row in _rows(told) if row.id not in known and (row.host, row.client) not in asked
        ]  # fmt: skip
    # A list that is old may name one server twice.
    told = list({(one.id or one.name, one.error is None): one for one in told}.values())
    if not any(one.error is None for one in told):
        for one in told:
            if isinstance(one.error, AuthenticationFailed | Denied):
                raise one.error
        raise NobodyAnswered("nobody answered: " + "; ".join(_silent_sentence(one) for one in told))
    return told


async def _together(works: Sequence[Callable[[], Coroutine[Deferred[Any], Any, Told]]]) -> list[Told]:
    few = DeferredSemaphore(AT_ONCE)

    def begin(work: Callable[[], Coroutine[Deferred[Any], Any, Told]]) -> Deferred[Told]:
        return Deferred.fromCoroutine(work())

    return await gatherResults([few.run(begin, work) for work in works], consumeErrors=True)


def _rows(told: Sequence[Told]) -> list[Listed]:
    """The servers in the tables that were told, each once."""
    found: dict[str, Listed] = {}
    for row in (row for one in told for row in one.others):
        found.setdefault(
            row["id"],
            Listed(
                name=row["name"],
                host=row["host"],
                client=int(row["client"]),
                peer=int(row["peer"]),
                files=int(row["files"]),
                state=row["state"],
                id=row["id"],
            ),
        )
    return list(found.values())


def _silent_sentence(told: Told, did: str = "") -> str:
    assert told.error is not None
    return f"{told.name} ({Address(told.server.host, told.server.client)}){did}: {sentence_of(told.error)}"


def read_since(text: str, now: int) -> int:
    """`2h` (ago) or a moment, `2026-11-22` or `2026-11-22 10:00`, in ms since 1970; raises `ValueError`."""
    try:
        return max(0, now - round(1000 * parse_duration(text)))
    except ConfigError:
        pass
    whole = text.strip().upper().removesuffix("Z").replace(" ", "T")
    for tail in ("", ".000Z", ":00.000Z", "T00:00:00.000Z", "Z"):
        try:
            return parse_timestamp(whole + tail)
        except ValueError:
            continue
    raise ValueError(f"{text!r} is neither how long ago (30m, 2h, 7d) nor a time like 2026-11-22 or 2026-11-22T10:00")


@click.command("history")
@click.option("--since", metavar="TIME", help="How long ago it begins (30m, 2h, 7d), or when (2026-11-22T10:00, UTC).")
@screen.as_json
@click.pass_obj
def history(surroundings: Surroundings, since: str | None, as_json: bool) -> None:
    """Show who joined, led, left, went down and came back, when, and why.

    All servers are asked for what they saw. Their clocks are compared with that of this machine, by which the times are
    shown (in UTC), and what several saw stands there once.

    \b
    chunkfarm history
    chunkfarm history --since 2h
    chunkfarm --timeout 5 history --json
    """
    try:
        begin = read_since(since, surroundings.now_ms()) if since is not None else 0
    except ValueError as error:
        raise click.UsageError(f"--since: {error}") from None

    async def work(farm: Farm, run_in_thread: RunInThread) -> list[Told]:
        return await ask_all(farm, begin, surroundings.now_ms)

    told = surroundings.run(work)
    line = [one for one in merged(told) if one.time >= begin]
    answered = [one for one in told if one.error is None]
    if as_json:
        screen.show_json(as_value(line, told))
        return
    everybody = {one.name for one in answered}
    screen.show_table(
        ["TIME", "SERVER", "WHAT", "BECAUSE", "SEEN BY"],
        [
            [
                timestamp(max(0, one.time))[:-1].replace("T", " "),
                one.name,
                _words(one),
                one.because,
                _seen_by(one, everybody),
            ]
            for one in line
        ],
    )
    for one in answered:
        if abs(one.ahead) >= SPREAD_TOLD_MS + one.margin:
            word = "ahead of" if one.ahead > 0 else "behind"
            screen.say(
                f"chunkfarm: {screen.clean(one.name)}'s clock is {abs(one.ahead) / 1000:.1f} s {word} this machine's; "
                "its times are corrected by that",
                err=True,
            )
    for one in told:
        if one.error is not None:
            screen.say(f"chunkfarm: without what {screen.clean(_silent_sentence(one, ' saw'))}", err=True)


def _words(one: Happened) -> str:
    words = _WORDS.get(one.kind, one.kind)
    return f"{words}, term {one.term}" if one.term else words


def _seen_by(one: Happened, everybody: set[str]) -> str:
    if len(everybody) > 1 and everybody <= set(one.seen_by):
        return f"all {len(everybody)}"
    return ", ".join(one.seen_by)


def as_value(line: Sequence[Happened], told: Sequence[Told]) -> dict[str, Any]:
    """All of it, for JSON."""
    events = []
    for one in line:
        event: dict[str, Any] = {
            "time": timestamp(max(0, one.time)),
            "kind": one.kind,
            "server": one.server,
            "name": one.name,
        }
        if one.term:
            event["term"] = int(one.term)
        if one.because:
            event["because"] = one.because
        events.append(event | {"seen_by": list(one.seen_by)})
    servers = []
    for told_by in told:
        server: dict[str, Any] = {"id": told_by.id, "name": told_by.name, "answered": told_by.error is None}
        if told_by.error is None:
            server |= {"clock_ahead_ms": round(told_by.ahead, 1), "margin_ms": round(told_by.margin, 1)}
        else:
            server["because"] = sentence_of(told_by.error)
        servers.append(server)
    return {"events": events, "servers": servers}
