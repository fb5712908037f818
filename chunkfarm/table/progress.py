"""What a leader knows of one follower, and how much it may send to it.

Three states, as in etcd/raft: `probe` looks for the place where the logs match, one message at a time;
`replicate` streams entries ahead of the answers, within limits; `snapshot` waits until the follower has
received a whole state, because the entries it needs are gone.
"""

from __future__ import annotations

from collections import deque

from attrs import define, field

PROBE = "probe"
REPLICATE = "replicate"
SNAPSHOT = "snapshot"

INFLIGHT_ENTRIES_MAX = 4096
"""Entries sent and not answered: more than a disk commits in one turn, so the stream never starves."""
INFLIGHT_BYTES_MAX = 1024 * 1024
"""Bytes sent and not answered: eight milliseconds of a gigabit link, and a bound on what a lost link wastes."""
LIVES_MAX = 8
"""Earlier processes of a follower whose answers may still be on their way; of one there is hardly ever anything."""


@define
class Progress:
    """One follower, seen from the leader."""

    next: int
    """The next entry to send."""
    match: int = 0
    """The last entry that the follower has acknowledged as durable, in this term."""
    state: str = PROBE
    recently_active: bool = True
    """Whether it has answered within the last election timeout."""
    silent_ticks: int = 0
    """Ticks since its last answer."""
    waiting: bool = False
    """A probe is out; nothing more is sent before an answer or a heartbeat's answer."""
    nudge: bool = False
    """Send a message even without entries: the answer shows whether something was lost."""
    sent_commit: int = -1
    """The commit index of the last append."""
    round: int = 0
    """The last read round that it has acknowledged."""
    answer: int = 0
    """The number of its last heartbeat answer, told back to it while it is counted on."""
    life: int = 0
    """The process of that server that answers; 0 before the first answer."""
    withheld: bool = False
    """Whether it says that it decides nothing: what it has counts only where every decision needs the leader too."""
    _inflight: deque[tuple[int, int]] = field(factory=deque)
    _inflight_bytes: int = 0
    _past_lives: deque[int] = field(factory=lambda: deque(maxlen=LIVES_MAX))

    def heard(self, life: int = 0, withheld: bool = False) -> bool:
        """It has answered; returns False for what an earlier process of it had said, which counts for nothing.

        Another process than before may have another disk, so what it has is looked for anew. Which of two came later
        nobody can tell: if the one that is taken for the later one has nothing more to say, it was the other.
        """
        if life in self._past_lives:
            if self.recently_active:
                return False
            self._past_lives.remove(life)
        if self.life and life and life != self.life:
            self._past_lives.append(self.life)
            self.match = self.answer = self.round = 0
            self.become_probe(self.next)
        self.life = life or self.life
        self.withheld = withheld
        self.silent_ticks = 0
        self.recently_active = True
        return True

    def tick(self, election_ticks: int) -> None:
        self.silent_ticks += 1
        if self.silent_ticks >= election_ticks:
            self.recently_active = False

    @property
    def room(self) -> bool:
        """Whether entries may be sent now."""
        if self.state == REPLICATE:
            return self._inflight_bytes < INFLIGHT_BYTES_MAX and self.next - self.match <= INFLIGHT_ENTRIES_MAX
        return self.state == PROBE and not self.waiting

    def sent(self, last: int, size: int, commit: int) -> None:
        """An append that ends at `last` (or with nothing new, if below `next`) has gone out."""
        self.sent_commit = commit
        self.nudge = False
        if self.state == REPLICATE:
            if last >= self.next:
                self.next = last + 1
                self._inflight.append((last, size))
                self._inflight_bytes += size
        else:
            self.waiting = True

    def accept(self, index: int) -> bool:
        """The follower matches up to `index`; returns whether that was news."""
        news = index > self.match
        if news:
            self.match = index
            self.waiting = False
        self.next = max(self.next, index + 1)
        while self._inflight and self._inflight[0][0] <= index:
            self._inflight_bytes -= self._inflight.popleft()[1]
        return news

    def refuse(self, rejected: int, hint: int) -> bool:
        """The follower does not match at `rejected`, but may at `hint`; returns False if that is old news."""
        if self.state == REPLICATE:
            if rejected <= self.match:
                return False
            self.become_probe(self.match + 1)
            return True
        if self.state == SNAPSHOT or self.next - 1 != rejected:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.waiting = False
        return True

    def become_probe(self, start: int) -> None:
        self._become(PROBE)
        self.next = start

    def become_replicate(self) -> None:
        self._become(REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self) -> None:
        self._become(SNAPSHOT)

    def _become(self, state: str) -> None:
        self.state = state
        self.waiting = False
        self._inflight.clear()
        self._inflight_bytes = 0
