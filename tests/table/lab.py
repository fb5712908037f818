"""A handful of consensus cores on a table, moved by commands; what happens is told line by line.

The scenario scripts are written in these commands (see `Lab.COMMANDS`), and tests may call them too.
Messages wait in one queue until they are delivered; what a core wants written waits until its disk works.
Election timeouts are exact: 10 ticks for server 1, 13 for server 2, 16 for server 3, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from attrs import define, field

from chunkfarm.table.consensus import ChangeRefused, Consensus, Dropped, NotLeader
from chunkfarm.table.records import Configuration, Message, MessageKind, Ready, SnapshotMeta
from tests.simulation.core import Disk, Rows
from tests.simulation.trace import configuration_text, entry_text, message_text, state_text

ROUNDS_MAX = 100
"""A farm that has not come to rest after so many rounds of messages never will."""


class ExactRandom(Random):
    """Draws the shortest election timeout, and numbers that tell one life of a server from the next."""

    life = 0

    def randrange(self, *arguments: Any, **more: Any) -> int:
        return 0

    def getrandbits(self, k: int, /) -> int:
        return self.life


@define(eq=False)
class Bench:
    """One server: what it is, and what it has on its disk."""

    id: str
    core: Consensus | None
    disk: Disk = field(factory=Disk)
    rows: Rows = field(factory=Rows)
    received: dict[tuple[int, int], Rows] = field(factory=dict)
    lives: int = 0
    was: tuple[str, int, str] = ("follower", 0, "")


class Lab:
    """Servers, a queue of messages, cuts, and the trace of what happened."""

    def __init__(self) -> None:
        self.benches: dict[str, Bench] = {}
        self.queue: list[tuple[Message, Rows]] = []
        self.cuts: set[tuple[str, str]] = set()
        self.told: list[str] = []
        self._copies: list[Message] = []
        self._quiet = False

    def run(self, command: str) -> list[str]:
        """Do one command; returns what happened."""
        self.told = []
        words = command.split()
        self._quiet = words[0] == "quietly"
        name, *arguments = words[1:] if self._quiet else words
        self.COMMANDS[name](self, *arguments)
        for bench in self.benches.values():
            self._notice(bench)
        return self.told

    def core(self, id: str) -> Consensus:
        core = self.benches[id].core
        assert core is not None, f"{id} is down"
        return core

    # What is told.

    def _tell(self, line: str, detail: bool = False) -> None:
        if not (detail and self._quiet):
            self.told.append(line)

    def _notice(self, bench: Bench) -> None:
        """Queue what the core sends at once, and tell when its role has changed."""
        core = bench.core
        if core is None:
            return
        self.queue.extend((message, Rows()) for message in core.urgent())
        for read in core.take_reads():
            self._tell(f"{bench.id} may answer read {read.token} at {read.index}")
        for id in core.wants_snapshot():
            meta = core.snapshot_meta(bench.rows.index)
            message = Message(kind=MessageKind.SNAPSHOT, sender=bench.id, to=id, term=core.term, snapshot=meta)
            if not any(queued == message for queued, _ in self.queue):
                self.queue.append((message, bench.rows))
        now = (core.role, core.term, core.leader)
        if now != bench.was:
            bench.was = now
            what = f"{core.role} of term {core.term}"
            led = core.role == "follower" and core.leader
            self._tell(f"{bench.id} is {what}" + (f", led by {core.leader}" if led else ""))

    # Servers.

    def _add(self, id: str, configuration: Configuration) -> None:
        bench = self.benches[id] = Bench(id, None)
        bench.disk.snapshot = SnapshotMeta(0, 0, configuration)
        self._boot(bench)

    def _boot(self, bench: Bench) -> None:
        disk = bench.disk
        random = ExactRandom()
        random.life = bench.lives
        bench.lives += 1
        bench.rows = disk.rows
        bench.core = Consensus(
            bench.id,
            hard_state=disk.hard_state,
            snapshot=disk.snapshot,
            entries=list(disk.entries),
            applied=disk.rows.index,
            random=random,
            rank=lambda id: int(id) - 1,
        )
        bench.was = (bench.core.role, bench.core.term, "")

    def nodes(self, count: str) -> None:
        """nodes N: voters 1 to N, with empty logs"""
        names = [str(number) for number in range(1, int(count) + 1)]
        for name in names:
            self._add(name, Configuration(names))

    def spare(self, id: str) -> None:
        """spare ID: a server that belongs to no configuration yet"""
        self._add(id, Configuration())

    def crash(self, id: str) -> None:
        """crash ID: it stops, and what its disk has not written is gone"""
        self.benches[id].core = None

    def restart(self, id: str) -> None:
        """restart ID: it starts from its disk"""
        bench = self.benches[id]
        self._boot(bench)
        assert bench.core is not None
        self._tell(f"{id}: {state_text(bench.core)} vote={bench.core.vote or '-'}")

    # What a server is told to do.

    def tick(self, id: str, count: str = "1") -> None:
        """tick ID [N]: N ticks pass for one server"""
        for _ in range(int(count)):
            self.core(id).tick()
            self._notice(self.benches[id])

    def elapse(self, count: str) -> None:
        """elapse N: N ticks pass for all, and all messages arrive in time"""
        for _ in range(int(count)):
            for bench in self.benches.values():
                if bench.core is not None:
                    bench.core.tick()
            self.stabilize()

    def campaign(self, id: str) -> None:
        """campaign ID: it stands for election"""
        self.core(id).campaign()

    def _try(self, what: Callable[[], tuple[int, int] | None]) -> None:
        try:
            done = what()
        except (NotLeader, Dropped, ChangeRefused) as error:
            self._tell(f"{type(error).__name__}: {error}")
        else:
            if done is not None:
                self._tell(f"will be {done[1]}/{done[0]}")

    def propose(self, id: str, data: str) -> None:
        """propose ID DATA: a client writes"""
        self._try(lambda: self.core(id).propose(data.encode()))

    def change(self, id: str, *members: str) -> None:
        """change ID VOTER... [+ LEARNER...]: a new configuration"""
        at = members.index("+") if "+" in members else len(members)
        self._try(lambda: self.core(id).propose_configuration(Configuration(members[:at], members[at + 1 :])))

    def transfer(self, id: str, to: str) -> None:
        """transfer ID TO: hand leadership over"""
        self._try(lambda: self.core(id).transfer(to))

    def read(self, id: str, token: str) -> None:
        """read ID TOKEN: ask for a read index"""
        self.core(id).read_index(int(token))

    def compact(self, id: str, index: str) -> None:
        """compact ID INDEX: forget the log up to there"""
        bench, core = self.benches[id], self.core(id)
        bench.disk.rows = bench.rows
        bench.disk.compact(core.snapshot_meta(int(index)))
        core.compact(int(index))

    def unreachable(self, id: str, to: str) -> None:
        """unreachable ID TO: its link to another server broke"""
        self.core(id).report_unreachable(to)

    # Disks and links.

    def disk(self, id: str) -> None:
        """disk ID: its disk writes what waits, and then the promises leave"""
        bench, core = self.benches[id], self.core(id)
        while core.has_ready():
            self._write(bench, core, core.ready())
            self._notice(bench)

    def _write(self, bench: Bench, core: Consensus, ready: Ready) -> None:
        if ready.snapshot is not None:
            bench.rows = bench.received.pop((ready.snapshot.index, ready.snapshot.term))
        bench.disk.write(ready, bench.rows)
        words = []
        if ready.snapshot is not None:
            words.append(f"snapshot {ready.snapshot.index}/{ready.snapshot.term}")
        if ready.hard_state is not None:
            words.append(f"term={ready.hard_state.term} vote={ready.hard_state.vote or '-'}")
        if ready.entries:
            words.append("[" + ", ".join(map(entry_text, ready.entries)) + "]")
        if words:
            self._tell(f"{bench.id} writes {' '.join(words)}", detail=True)
        self.queue.extend((message, Rows()) for message in ready.messages)
        for entry in ready.committed:
            bench.rows = bench.rows.after(entry)
            self._tell(f"{bench.id} applies {entry_text(entry)}")
        for read in ready.reads:
            self._tell(f"{bench.id} may answer read {read.token} at {read.index}")
        core.persisted(ready)

    def deliver(self, sender: str = "", to: str = "") -> None:
        """deliver [FROM TO]: messages that wait now arrive (all, or those of one link)"""
        self._collect()
        chosen = [item for item in self.queue if not sender or (item[0].sender, item[0].to) == (sender, to)]
        self.queue = [item for item in self.queue if item not in chosen]
        for message, rows in chosen:
            self._deliver(message, rows)

    def _collect(self) -> None:
        for bench in self.benches.values():
            self._notice(bench)

    def _deliver(self, message: Message, rows: Rows) -> None:
        bench = self.benches.get(message.to)
        arrives = bench is not None and bench.core is not None and (message.sender, message.to) not in self.cuts
        self._tell(message_text(message) + ("" if arrives else " (lost)"), detail=True)
        if arrives:
            assert bench is not None and bench.core is not None
            if message.snapshot is not None:
                bench.received[message.snapshot.index, message.snapshot.term] = rows
            bench.core.step(message)
            self._notice(bench)
        sender = self.benches[message.sender]
        if message.snapshot is not None and sender.core is not None:
            sender.core.report_snapshot(message.to, arrives)

    def drop(self) -> None:
        """drop: messages that wait now are lost"""
        self._collect()
        for message, _ in self.queue:
            self._tell(message_text(message) + " (lost)", detail=True)
        self.queue.clear()

    def copy(self, sender: str, to: str) -> None:
        """copy FROM TO: the network keeps a copy of what waits on this link"""
        self._collect()
        self._copies += [message for message, _ in self.queue if (message.sender, message.to) == (sender, to)]

    def again(self) -> None:
        """again: the copies arrive"""
        for message in self._copies:
            self._deliver(message, Rows())
        self._copies.clear()

    def stabilize(self) -> None:
        """stabilize: disks write and messages arrive until nothing is left to do"""
        for _ in range(ROUNDS_MAX):
            for bench in self.benches.values():
                if bench.core is not None:
                    self.disk(bench.id)
            self._collect()
            if not self.queue:
                return
            self.deliver()
        raise AssertionError("the servers do not come to rest")

    def partition(self, *sides: str) -> None:
        """partition A... | B...: nothing passes between the two sides"""
        at = sides.index("|")
        for left in sides[:at]:
            for right in sides[at + 1 :]:
                self.cuts |= {(left, right), (right, left)}

    def cut(self, sender: str, to: str) -> None:
        """cut FROM TO: nothing passes in this direction"""
        self.cuts.add((sender, to))

    def heal(self) -> None:
        """heal: everything passes again"""
        self.cuts.clear()

    # What can be looked at.

    def state(self, *ids: str) -> None:
        """state [ID...]: how servers stand"""
        for id in ids or self.benches:
            core = self.benches[id].core
            self._tell(f"{id}: {state_text(core) if core is not None else 'down'}")

    def log(self, id: str) -> None:
        """log ID: its log, and the configuration in force"""
        core = self.core(id)
        for entry in core.log.entries(core.log.first_index, core.last_index):
            self._tell(entry_text(entry))
        self._tell(f"in force: {configuration_text(core.configuration)}" + (" (pending)" * core.pending_change))

    def progress(self, id: str) -> None:
        """progress ID: a leader's view of the others"""
        for other, one in self.core(id).progress.items():
            self._tell(f"{other}: {one.state} match={one.match} next={one.next}")

    COMMANDS: dict[str, Callable[..., None]] = {
        "nodes": nodes,
        "spare": spare,
        "crash": crash,
        "restart": restart,
        "tick": tick,
        "elapse": elapse,
        "campaign": campaign,
        "propose": propose,
        "change": change,
        "transfer": transfer,
        "read": read,
        "compact": compact,
        "unreachable": unreachable,
        "disk": disk,
        "deliver": deliver,
        "drop": drop,
        "copy": copy,
        "again": again,
        "stabilize": stabilize,
        "partition": partition,
        "cut": cut,
        "heal": heal,
        "state": state,
        "log": log,
        "progress": progress,
    }
