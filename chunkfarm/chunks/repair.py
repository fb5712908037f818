"""What is to be done about a chunk, and what comes first: rules without disk, links, reactor or clock.

A chunk should be on every server that owns it (`placement.owners`). Each server that has a copy asks the owners
whether they have theirs; of all that have one, one sends it to those that lack it. Which one follows from the
chunk and the rows alone, so that two servers seldom send the same chunk, and from who answers: when the one whose
task it is has lost its own copy, the next one is it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from math import exp

from attrs import define, field, frozen

from chunkfarm.chunks import placement
from chunkfarm.model import Server

Servers = tuple[Server, ...]

FIRST_SECONDS = 1.0
"""What moves sooner after the beginning of a measurement counts as moved within so long."""


@frozen
class Need:
    """What one chunk needs."""

    targets: tuple[Server, ...]
    """Whom to send it to, the most entitled first."""
    sender: str
    """Id of the server that should do it; empty if nobody who answered has the chunk."""
    copies: int
    """Servers that have it now."""
    staying: int
    """Of those, on which it stays: not those that are emptied, or hold no chunks by their weight."""
    wanted: int
    """Copies that there should be: `replicas`, or one on each server that may own it if there are fewer."""

    @property
    def is_short(self) -> bool:
        """Whether it has too few copies now; it may need moving also if it has not."""
        return self.copies < self.wanted


def need(digest: bytes, servers: Servers, replicas: int, holders: Collection[str]) -> Need:
    """What a chunk needs that the servers `holders` (ids) said they have.

    Every owner that lacks it and takes chunks gets it. An owner that is down is waited for: it most likely still
    has its copy, and one that does not come back is given up by the first. For an owner that is full another
    server stands in, the next in order.
    """
    owners = placement.owners(digest, servers, replicas)
    held = [server for server in servers if server.id in holders]
    staying = sum(server.owns for server in held)
    targets = [server for server in owners if server.id not in holders and placement.takes_chunks(server)]
    awaited = sum(server.id not in holders and server.state in ("down", "leaving") for server in owners)
    missing = len(owners) - staying - awaited - len(targets)
    if missing > 0:
        others = placement.order(digest, (server for server in servers if placement.takes_chunks(server)))
        able = [server for server in others if server.id not in holders and server not in targets]
        targets += able[:missing]
    return Need(tuple(targets), sender_of(digest, owners, servers, holders), len(held), staying, len(owners))


def sender_of(digest: bytes, owners: Sequence[Server], servers: Servers, holders: Collection[str]) -> str:
    """Who of the holders sends the chunk to those that lack it: the most entitled owner, else the next in order."""
    for server in owners:
        if server.id in holders:
            return server.id
    held = [server for server in servers if server.id in holders]
    line = placement.order(digest, held)
    return next((server.id for server in (*line, *held)), "")


def owners_to_ask(digest: bytes, servers: Servers, replicas: int) -> Servers:
    """Whose answer says whether a chunk is well: its owners that may answer."""
    return tuple(server for server in placement.owners(digest, servers, replicas) if server.state != "down")


def others_to_ask(digest: bytes, servers: Servers, replicas: int, asked: Collection[str]) -> Servers:
    """Who may have a copy besides the owners: as many as there should be copies, the next in order.

    While an owner was down or full, the next in order was given its copy.
    """
    line = placement.order(digest, (server for server in servers if server.state != "down"))
    return tuple([server for server in line if server.id not in asked][:replicas])


def standing(servers: Iterable[Server], replicas: int) -> tuple[object, ...]:
    """Everything that the needs of chunks follow from: while it stays the same, a chunk that was well is well."""
    return replicas, frozenset(map(_place, servers))


def _place(server: Server) -> tuple[object, ...]:
    away = server.state in ("down", "leaving")
    # A server that was started anew may have come back with another disk.
    return (server.id, server.weight, server.zone, server.owns, away, server.full, server.incarnation)


def is_affected(digest: bytes, before: Servers, after: Servers, replicas: tuple[int, int]) -> bool:
    """Whether a change from the rows `before` to those `after` may change what the chunk needs.

    It does if others own it now, or if an owner came, went, filled up or has room again; and while an owner is full, if
    that happened to a server that may stand in for it. `replicas` is that option before and after.
    """
    was, now = _who_counts(digest, before, replicas[0]), _who_counts(digest, after, replicas[1])
    return list(map(_place, was)) != list(map(_place, now))


def _who_counts(digest: bytes, servers: Servers, replicas: int) -> list[Server]:
    """The owners, and who may stand in for those that are full: the next in order, until enough of them have room."""
    counting = list(placement.owners(digest, servers, replicas))
    wanting = sum(owner.full for owner in counting)
    if wanting:
        for server in placement.order(digest, (server for server in servers if server.owns)):
            if wanting and server not in counting:
                counting.append(server)
                wanting -= placement.takes_chunks(server)
    return counting


@define
class Backlog:
    """Chunks to be copied. Those with the fewest copies come first, and of equals those that were found first."""

    size: int = 0
    """Bytes of these chunks."""
    _known: dict[bytes, tuple[int, int]] = field(factory=dict)
    """Copies and length by digest."""
    _lines: dict[int, deque[bytes]] = field(factory=dict)
    """By copies; a chunk whose copies are others now, or that is gone from `_known`, is passed over."""

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    @property
    def fewest(self) -> int | None:
        """Copies of the chunk that comes first; None if there is no chunk."""
        while self._lines:
            copies = min(self._lines)
            line = self._lines[copies]
            while line and self._known.get(line[0], (-1, 0))[0] != copies:
                line.popleft()
            if line:
                return copies
            del self._lines[copies]
        return None

    def add(self, digest: bytes, copies: int, length: int) -> None:
        """Note a chunk, or that it has more or fewer copies than was noted."""
        before = self._known.get(digest)
        if before is not None:
            if before[0] == copies:
                return
            self.discard(digest)
        self._known[digest] = copies, length
        self.size += length
        self._lines.setdefault(copies, deque()).append(digest)

    def discard(self, digest: bytes) -> None:
        """It needs nothing any more; harmless for one that is not noted."""
        known = self._known.pop(digest, None)
        if known is not None:
            self.size -= known[1]

    def take(self, count: int) -> list[bytes]:
        """Up to `count` chunks that come first, all with the same number of copies; they are noted no more."""
        taken: list[bytes] = []
        copies = self.fewest
        while len(taken) < count and copies is not None and self.fewest == copies:
            digest = self._lines[copies].popleft()
            self.discard(digest)
            taken.append(digest)
        return taken


@define
class Bucket:
    """So many bytes a second, and no more: a token bucket in which a large chunk may leave a debt."""

    rate: float
    """Bytes a second; 0 is no limit."""
    burst: float
    """Bytes that may go at once after a pause."""
    _tokens: float = 0.0
    _at: float | None = None

    def take(self, now: float, amount: int) -> float:
        """Seconds to wait before `amount` bytes may move; they are counted as moved."""
        if not self.rate:
            return 0.0
        if self._at is None:
            self._tokens = self.burst
        else:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        self._tokens -= amount
        return max(0.0, -self._tokens / self.rate)


@define
class Meter:
    """How many bytes a second have moved of late: an average in which older bytes fade."""

    seconds: float
    """After so long a byte counts for about a third."""
    _value: float = 0.0
    _at: float = 0.0
    _since: float | None = None

    def begin(self, now: float) -> None:
        """Forget what was, and measure from now on: until the average is full it is that of the time since then."""
        self._value, self._at, self._since = 0.0, now, now

    def note(self, now: float, amount: int) -> None:
        """So many bytes have moved."""
        self._value = self._faded(now) + amount / self.seconds
        self._at = now

    def rate(self, now: float) -> float:
        """Bytes a second, now."""
        if self._since is None:
            return self._faded(now)
        return self._faded(now) / (1 - exp(-max(FIRST_SECONDS, now - self._since) / self.seconds))

    def is_silent(self, now: float) -> bool:
        """Whether nothing has moved for so long that the rate only tells of what was."""
        return now - self._at > self.seconds

    def _faded(self, now: float) -> float:
        return self._value * exp(min(0.0, self._at - now) / self.seconds)


@frozen(kw_only=True)
class Progress:
    """What the caretaker of one server does: one record, wherever it is shown."""

    done: int = 0
    """Chunks copied or fetched anew since it last had nothing to do."""
    left: int = 0
    """Chunks that are known to need it."""
    bytes_left: int = 0
    rate: int = 0
    """Bytes a second, of late."""
    paused: str = ""
    """Why it does not go on, as a clause; empty while it does."""
    looked: int = 100
    """Percent of this server's chunks that were looked at since something last changed."""
    short: int = 0
    """Chunks with too few copies for which this server answers, and no other does."""
    damaged: int = 0
    """Chunks that were put aside since this process began."""
    lost: int = 0
    """Chunks that should be here, and that no server has which answers. Others may miss the same, and nobody those that
    no living server ever knew: `unheld_search` counts all of them, and only that number is told to people."""
    verified: int = 0
    """Percent of this server's chunks that were read and compared in the present round."""
    unreached: int = 0
    """Servers that are up by their reports, and did not answer this one the last time."""

    @property
    def seconds_left(self) -> int | None:
        """At the present rate; None if nothing is left, or nothing moves."""
        return -(-self.bytes_left // self.rate) if self.left and self.rate else None

    def pairs(self) -> list[tuple[str, str]]:
        """As STATUS shows it."""
        told = [
            ("repair-done", str(self.done)),
            ("repair-left", str(self.left)),
            ("repair-rate", str(self.rate)),
            ("repair-looked", f"{self.looked}%"),
            ("under-replicated-here", str(self.short)),
            ("damaged", str(self.damaged)),
            ("verified", f"{self.verified}%"),
            ("unreached", str(self.unreached)),
        ]
        if self.seconds_left is not None:
            told.insert(3, ("repair-seconds-left", str(self.seconds_left)))
        if self.paused:
            told.insert(0, ("repair-paused", self.paused))
        return told
