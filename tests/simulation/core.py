"""A farm's consensus simulated in one process, from one seed: every history can be replayed exactly.

`Simulation` drives several `Consensus` cores over a network that loses, repeats, delays and reorders
messages and is cut in both or in one direction, on disks that take their time and lose what was not
written when the process crashes. Meanwhile clients write and read, servers are added, promoted and
removed, leadership is handed over and logs are compacted. `checks.Checks` looks on after every event.

Time is a whole number; a tick is `TICK` of it. The first part of a run is full of faults; then everything
is healed, and the farm has `HEALED_TICKS_MAX` ticks to choose a leader, to commit a new entry on every
member and to answer a read.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from attrs import define, field, frozen

from chunkfarm.table.consensus import ChangeRefused, Consensus, Dropped, NotLeader
from chunkfarm.table.raft_log import RaftLog
from chunkfarm.table.records import (
    Configuration,
    Entry,
    HardState,
    Message,
    MessageKind,
    ReadState,
    Ready,
    SnapshotMeta,
)
from chunkfarm.table.watches import WatchHub
from tests.simulation.checks import Checks, Violation
from tests.simulation.clients import Clients, Desk, Table, apply, encode
from tests.simulation.linearizable import Done, NotLinearizable, Refused

TICK = 10
"""Units of time in a tick."""
FAULTY_TICKS = 350
"""How long faults are made: thirty-five election timeouts, so that several leaders come and go."""
HEALED_TICKS_MAX = 150
"""Fifteen election timeouts after the last fault everything must work: a dozen elections may be split or lost."""
ELECTION_TICKS = 10
NAMES = ("a", "b", "c", "d", "e", "f")


class MakeCore(Protocol):
    """`Consensus`, or a subclass with a fault of its own."""

    def __call__(
        self,
        id: str,
        *,
        hard_state: HardState,
        snapshot: SnapshotMeta,
        entries: list[Entry],
        applied: int,
        random: Random,
        election_ticks: int,
        rank: Callable[[str], int] | None,
    ) -> Consensus: ...


@frozen
class Rows:
    """The state machine: how far it is, a number that depends on every entry applied so far, and the table."""

    index: int = 0
    digest: int = 0
    table: Table = field(factory=dict)

    def after(self, entry: Entry) -> Rows:
        return self.apply(entry)[0]

    def apply(self, entry: Entry) -> tuple[Rows, Done | Refused]:
        """The rows with one more entry, and what its client is told."""
        digest = (self.digest * 1_000_003 + entry.term) % (1 << 61)
        for byte in entry.data:
            digest = (digest * 257 + byte + 1) % (1 << 61)
        table, outcome = apply(self.table, entry)
        return Rows(entry.index, digest, table), outcome


@define
class Disk:
    """What survives a crash. Rows that were only applied ride along with the next write that is synced."""

    hard_state: HardState = field(factory=HardState)
    snapshot: SnapshotMeta = field(factory=SnapshotMeta)
    entries: list[Entry] = field(factory=list)
    rows: Rows = field(factory=Rows)

    def write(self, ready: Ready, rows: Rows) -> None:
        """Step 1 of a Ready, in one transaction."""
        if ready.snapshot is not None:
            self.snapshot = ready.snapshot
            self.entries = []
        if ready.entries:
            kept = ready.entries[0].index - self.snapshot.index - 1
            assert 0 <= kept <= len(self.entries), "the log on disk has no gap"
            self.entries[kept:] = ready.entries
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.must_sync:
            self.rows = rows

    def compact(self, meta: SnapshotMeta) -> None:
        del self.entries[: meta.index - self.snapshot.index]
        self.snapshot = meta

    @property
    def last_index(self) -> int:
        return self.snapshot.index + len(self.entries)

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None where there is none, or where it was compacted."""
        position = index - self.snapshot.index - 1
        if 0 <= position < len(self.entries):
            return self.entries[position].term
        return self.snapshot.term if position == -1 else None

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry is here, by itself or in what the rows include."""
        return index <= self.snapshot.index or self.term_at(index) == term

    def copy(self) -> Disk:
        return Disk(self.hard_state, self.snapshot, list(self.entries), self.rows)


@define(eq=False)
class Server:
    id: str
    desk: Desk
    disk: Disk = field(factory=Disk)
    core: Consensus | None = None
    life: int = 0
    """Counts starts, so that what belongs to an earlier one is told apart."""
    rows: Rows = field(factory=Rows)
    received: dict[tuple[int, int], Rows] = field(factory=dict)
    """Snapshots in the second file, by (index, term)."""
    streaming: set[str] = field(factory=set)
    frozen_until: int = 0
    """A paused process: nothing reaches it, no time passes for it, and it does not know."""


FALSE_HINTS = 0.01
"""Chance, in each tick of a server, of a link that ends though both sides live."""


@frozen
class Options:
    """What kind of farm and weather; drawn from the seed."""

    voters: int
    loss: float
    repeat: float
    slow: float
    disk_slow: float
    ranked: bool
    faults: float
    """Chance of a fault in each tick."""
    early_reads: bool
    """Whether confirmed reads are taken at once or with the next Ready."""
    late_commits: bool
    """Whether a leader leaves it to other messages to say how far is committed."""

    @classmethod
    def draw(cls, random: Random) -> Options:
        return cls(
            voters=random.choice((1, 2, 3, 3, 3, 4, 5)),
            loss=random.choice((0.0, 0.01, 0.05, 0.2)),
            repeat=random.choice((0.0, 0.02, 0.1)),
            slow=random.choice((0.0, 0.02, 0.1)),
            disk_slow=random.choice((0.0, 0.02, 0.1)),
            ranked=random.random() < 0.5,
            faults=random.choice((0.02, 0.05, 0.1, 0.2)),
            early_reads=random.random() < 0.5,
            late_commits=_copy(random).random() < 0.5,
        )


def _copy(random: Random) -> Random:
    """Another one that gives the same numbers, so that what is drawn of it leaves known histories as they are."""
    copy = Random()
    copy.setstate(random.getstate())
    return copy


class Simulation:
    """One run. `run()` raises `Violation` when a rule is broken; `trace` says what happened."""

    names: tuple[str, ...] = NAMES

    def __init__(
        self,
        seed: int,
        make_core: MakeCore = Consensus,
        faulty_ticks: int = FAULTY_TICKS,
        make_hub: Callable[..., WatchHub] = WatchHub,
    ) -> None:
        self.seed = seed
        self.now = 0
        self.random = Random(seed)
        self._telling = Random(seed)
        self._hints = Random(seed)
        self.options = self._draw_options()
        self.checks = Checks(Rows())
        self.trace: list[tuple[Any, ...]] = []
        self.clients = Clients(seed, lambda: self.now, make_hub)
        self.servers = {
            name: Server(name, self.clients.desk(0, lambda: RaftLog(SnapshotMeta(), ()))) for name in self.names
        }
        self.cut: set[tuple[str, str]] = set()
        self._make_core = make_core
        self._faulty_ticks = faulty_ticks
        self._healed = False
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._written = 0
        self._tokens = 0
        found = Configuration(self.names[: self.options.voters])
        for server in self.servers.values():
            if server.id in found.voters:
                server.disk.snapshot = SnapshotMeta(0, 0, found)
            self._start(server)
            self._at(self.random.randrange(TICK), self._tick, server)
        self._at(TICK, self._weather)

    # The course of a run.

    def run(self) -> None:
        """Faults, then healing, then proof of life."""
        self._until(self._faulty_ticks * TICK)
        self._heal()
        deadline = self.now + HEALED_TICKS_MAX * TICK
        while not self._alive():
            if self.now >= deadline:
                raise Violation(f"liveness: healed for {HEALED_TICKS_MAX} ticks, and {self._what_is_missing()}")
            self._until(self.now + 5 * TICK)
        self.checks.finished(self.servers)
        try:
            self.clients.check()
        except NotLinearizable as error:
            raise Violation(f"linearizable: {error}") from error

    def _until(self, time: int) -> None:
        while self._queue and self._queue[0][0] <= time:
            self.now, _, call, arguments = heapq.heappop(self._queue)
            call(*arguments)
        self.now = time

    def _at(self, delay: int, call: Callable[..., None], *arguments: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.now + delay, self._sequence, call, arguments))

    def _note(self, *what: Any) -> None:
        self.trace.append((self.now, *what))

    # A server.

    def _start(self, server: Server) -> None:
        disk = server.disk
        server.life += 1
        server.rows = disk.rows
        server.received = {}
        server.streaming = set()
        rank = (lambda id: self.names.index(id)) if self.options.ranked else None
        server.core = self._make_core(
            server.id,
            hard_state=disk.hard_state,
            snapshot=disk.snapshot,
            entries=list(disk.entries),
            applied=disk.rows.index,
            random=Random(self.random.getrandbits(32)),
            election_ticks=ELECTION_TICKS,
            rank=rank,
        )
        core = server.core
        server.desk.hub.close()
        server.desk = self.clients.desk(server.rows.index, lambda: core.log)

    def _crash(self, server: Server) -> None:
        self._note("crash", server.id)
        server.core = None
        for other in self.servers.values():
            self._at(self._hints.randrange(4 * TICK), self._hint, other, server)

    def _hint(self, server: Server, other: Server) -> None:
        """A link of a server has ended, mostly because the other one died."""
        if server.core is not None and not self._later(server, self._hint, server, other):
            server.core.suspect(other.id)
            self._touched(server)

    def _restart(self, server: Server) -> None:
        if server.core is None:
            self._note("restart", server.id)
            self._start(server)

    def _tick(self, server: Server) -> None:
        if self._later(server, self._tick, server):
            return
        self._at(TICK, self._tick, server)
        if server.core is not None:
            server.core.tick()
            self._touched(server)
            if self._hints.random() < FALSE_HINTS:
                # Any link may end at any time, also that of a leader who lives.
                self._hint(server, self._hints.choice(list(self.servers.values())))

    def _later(self, server: Server, call: Callable[..., None], *arguments: Any) -> bool:
        """Put the call off while the server is frozen."""
        if server.frozen_until <= self.now:
            return False
        self._at(server.frozen_until - self.now, call, *arguments)
        return True

    def _touched(self, server: Server) -> None:
        """Do what the core wants done, and look whether all is well."""
        core = server.core
        assert core is not None
        # Seldom enough that followers mostly learn of commits in other ways.
        for message in core.urgent(commits=not self.options.late_commits or self._telling.random() < 0.1):
            self._post(server, message)
        if self.options.early_reads:
            for read in core.take_reads():
                self._may_read(server, read)
        for id in core.wants_snapshot():
            self._stream(server, core, id)
        if core.has_ready():
            ready = core.ready()
            if ready.entries:
                self.checks.taken(server.id, core.log.term_at(ready.entries[0].index - 1), ready.entries)
            self._at(self._disk_time(ready), self._write, server, server.life, ready)
        self.checks.look(server, core, self.servers)
        self.clients.serve(server.desk, server.rows.index, server.rows.table)

    def _may_read(self, server: Server, read: ReadState) -> None:
        self.checks.read_answered(server.id, server.life, read.token, read.index)
        self.clients.read_from(server.desk, read.token, read.index)

    def _disk_time(self, ready: Ready) -> int:
        if not ready.must_sync or self._healed:
            return 0
        slow = self.random.random() < self.options.disk_slow
        return self.random.randrange(1, 60 if slow else 5)

    def _write(self, server: Server, life: int, ready: Ready) -> None:
        core = server.core
        if core is None or server.life != life or self._later(server, self._write, server, life, ready):
            return
        rows = server.rows
        if ready.snapshot is not None:
            rows = server.received.pop((ready.snapshot.index, ready.snapshot.term))
            self.clients.replaced(server.desk, rows.index)
        server.rows = rows
        server.disk.write(ready, rows)
        if not self._healed and self.random.random() < 0.002:
            self._crash(server)
            return
        for message in ready.messages:
            self._post(server, message)
        voted = any(message.kind is MessageKind.VOTE_ANSWER for message in ready.messages)
        if voted and not self._healed and self.random.random() < 0.1:
            # What was promised a moment ago is what must not be forgotten.
            self._crash(server)
            self._at(self.random.randrange(1, TICK), self._restart, server)
            return
        for entry in ready.committed:
            self.checks.applied(server.id, server.rows.index, entry)
            server.rows, outcome = server.rows.apply(entry)
            self.checks.rows(server.rows)
            self.clients.applied(server.desk, entry, outcome)
            self._applied(server, entry)
        for read in ready.reads:
            self._may_read(server, read)
        core.persisted(ready)
        self._touched(server)

    def _applied(self, server: Server, entry: Entry) -> None:
        """The entry is in the rows of this server."""

    # The network.

    def _post(self, server: Server, message: Message) -> None:
        assert message.sender == server.id
        self.checks.sent(message, server.disk)
        self._note("send", message)
        copies = 1
        if not self._healed:
            chance = self.random.random()
            if chance < self.options.loss:
                copies = 0
            elif chance < self.options.loss + self.options.repeat:
                copies = 2
        for _ in range(copies):
            self._at(self._delay(), self._deliver, message)

    def _delay(self) -> int:
        chance = self.random.random()
        if not self._healed and chance < self.options.slow:
            # One in ten of the slow ones is so late that it belongs to another time.
            return self.random.randrange(10, 800 if chance < self.options.slow / 10 else 60)
        return self.random.randrange(1, 4)

    def _deliver(self, message: Message) -> None:
        server = self.servers[message.to]
        if server.core is None or (message.sender, message.to) in self.cut:
            return
        if self._later(server, self._deliver, message):
            return
        self._note("deliver", message)
        server.core.step(message)
        self._touched(server)

    def _stream(self, server: Server, core: Consensus, to: str) -> None:
        """Send a snapshot of the applied rows, as the driver would: one at a time to each follower."""
        if to in server.streaming:
            return
        server.streaming.add(to)
        meta = core.snapshot_meta(server.rows.index)
        message = Message(kind=MessageKind.SNAPSHOT, sender=server.id, to=to, term=core.term, snapshot=meta)
        self._note("send", message)
        self._at(self.random.randrange(5, 80), self._receive, server, server.life, message, server.rows)

    def _receive(self, sender: Server, life: int, message: Message, rows: Rows) -> None:
        to = self.servers[message.to]
        lost = not self._healed and self.random.random() < self.options.loss
        ok = sender.life == life and sender.core is not None
        ok = (
            ok
            and to.core is not None
            and not to.frozen_until > self.now
            and (sender.id, to.id) not in self.cut
            and not lost
        )
        if ok:
            assert to.core is not None and message.snapshot is not None
            self._note("deliver", message)
            to.received[message.snapshot.index, message.snapshot.term] = rows
            to.core.step(message)
            self._touched(to)
        if sender.core is not None and sender.life == life:
            sender.streaming.discard(to.id)
            sender.core.report_snapshot(to.id, ok)
            self._touched(sender)

    # Clients, people and bad luck.

    def _weather(self) -> None:
        """Once a tick: clients do something, and sometimes something goes wrong."""
        self._at(TICK, self._weather)
        random = self.random
        for _ in range(random.randrange(3)):
            self._propose(random.choice(self._running()))
        for _ in range(random.randrange(3)):
            self._read(random.choice(self._running()))
        self.clients.watch([server.desk for server in self._running()])
        if self._healed:
            return
        if random.random() < self.options.faults:
            random.choice(self._faults())()
        if random.random() < 0.08:
            random.choice((self._change, self._change, self._transfer, self._compact, self._nudge))()

    def _draw_options(self) -> Options:
        return Options.draw(self.random)

    def _faults(self) -> tuple[Callable[[], None], ...]:
        """What may go wrong, as often as it stands here."""
        return (self._fault_crash, self._fault_cut, self._fault_cut, self._fault_freeze, self._mend)

    def _running(self) -> list[Server]:
        """Servers that run; at least one does. Leaders stand in the list more often."""
        awake = [server for server in self.servers.values() if server.frozen_until <= self.now]
        running = [server for server in awake if server.core is not None]
        if not running:
            server = awake[0] if awake else self.servers["a"]
            server.frozen_until = 0
            self._restart(server)
            return [server]
        leaders = [server for server in running if server.core is not None and server.core.role == "leader"]
        return running + leaders * 6

    def _propose(self, server: Server) -> None:
        assert server.core is not None
        self._written += 1
        what = self.clients.draw(self._written)
        data = encode(self._written, what)
        try:
            term, index = server.core.propose(data)
        except (NotLeader, Dropped):
            return
        self._note("propose", server.id, data.decode())
        self.clients.proposed(server.desk, what, term, index)
        self._touched(server)

    def _read(self, server: Server) -> None:
        assert server.core is not None
        self._tokens += 1
        self.checks.read_asked(server.id, server.life, self._tokens)
        self.clients.asked_to_read(server.desk, self._tokens)
        server.core.read_index(self._tokens)
        self._touched(server)

    def _fault_crash(self) -> None:
        server = self.random.choice(list(self.servers.values()))
        if server.core is None:
            self._restart(server)
        else:
            self._crash(server)
            if self.random.random() < 0.7:
                self._at(self.random.randrange(1, 60 * TICK), self._restart, server)

    def _fault_freeze(self) -> None:
        """Pause a process; when it goes on, the clients that waited for it are the first that it hears."""
        server = self.random.choice(self._running())
        length = self.random.randrange(2 * TICK, 50 * TICK)
        self._note("freeze", server.id, length)
        server.frozen_until = self.now + length
        self._at(length, self._thaw, server, server.life)

    def _thaw(self, server: Server, life: int) -> None:
        if server.core is not None and server.life == life:
            self._propose(server)
            self._read(server)

    def _fault_cut(self) -> None:
        """Cut the network in two, or one server off in one direction."""
        names = list(self.names)
        self.random.shuffle(names)
        size = self.random.randrange(1, len(names))
        some, others = names[:size], names[size:]
        if self.random.random() < 0.5:
            some = names[:1]
            others = names[1:]
        one_way = self.random.random() < 0.5
        for left in some:
            for right in others:
                self.cut.add((left, right))
                if not one_way:
                    self.cut.add((right, left))
        self._note("cut", "".join(some), "|>" if one_way else "|", "".join(others))
        self._at(self.random.randrange(5 * TICK, 60 * TICK), self._mend)

    def _mend(self) -> None:
        if self.cut:
            self._note("mend")
            self.cut.clear()

    def _leaders(self) -> list[Server]:
        return [server for server in self._running() if server.core is not None and server.core.role == "leader"]

    def _change(self) -> None:
        """Ask a leader for a change of one server's role."""
        for server in self._leaders()[:1]:
            core = server.core
            assert core is not None
            now = core.configuration
            one = self.random.choice(self.names)
            choices = [
                Configuration(now.voters | {one}, now.learners - {one}),
                Configuration(now.voters - {one}, now.learners | {one}),
                Configuration(now.voters - {one}, now.learners - {one}),
            ]
            wanted = self.random.choice(choices)
            try:
                core.propose_configuration(wanted)
            except (NotLeader, ChangeRefused):
                continue
            self._note("change", server.id, "".join(sorted(wanted.voters)), "".join(sorted(wanted.learners)))
            self.checks.changed(core)
            self._touched(server)

    def _transfer(self) -> None:
        for server in self._leaders()[:1]:
            assert server.core is not None
            to = self.random.choice(self.names)
            try:
                server.core.transfer(to)
            except (NotLeader, ChangeRefused):
                continue
            self._note("transfer", server.id, to)
            self._touched(server)

    def _compact(self) -> None:
        for server in self._running():
            core = server.core
            index = min(server.disk.rows.index, core.applied if core is not None else 0)
            index -= self.random.randrange(4)
            if core is not None and index >= core.log.first_index and index > server.disk.snapshot.index:
                self._note("compact", server.id, index)
                server.disk.compact(core.snapshot_meta(index))
                core.compact(index)
                self._touched(server)

    def _nudge(self) -> None:
        """What the surroundings may do at any time: stand for election, report a broken link."""
        server = self.random.choice(self._running())
        assert server.core is not None
        if self.random.random() < 0.5:
            self._note("campaign", server.id)
            server.core.campaign()
        else:
            server.core.report_unreachable(self.random.choice(self.names))
        self._touched(server)

    # The end.

    def _heal(self) -> None:
        self._note("heal")
        self._healed = True
        self.cut.clear()
        for server in self.servers.values():
            server.frozen_until = min(server.frozen_until, self.now)
            self._restart(server)
        self._goal = self.checks.commit
        self._goal_token = self._tokens

    def _leader(self) -> Consensus | None:
        cores = [server.core for server in self.servers.values() if server.core is not None]
        leaders = [core for core in cores if core.role == "leader"]
        return max(leaders, key=lambda core: core.term, default=None)

    def _alive(self) -> bool:
        return not self._what_is_missing()

    def _what_is_missing(self) -> str:
        leader = self._leader()
        if leader is None:
            return "there is no leader"
        if leader.commit < self._goal + 3:
            return "nothing new is committed"
        for id in sorted(leader.configuration.members):
            core = self.servers[id].core
            if core is None or core.applied < self._goal + 3 or core.leader != leader.id:
                return f"{id} does not follow {leader.id}"
        if not self.checks.answered_since(self._goal_token):
            return "no read is answered"
        return ""
