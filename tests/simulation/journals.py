"""Looks on while simulated servers write their journals, and knows what each of them has made durable.

The checks of the consensus are those of the simulation of its core; here is what a whole farm needs beside them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from attrs import define, field

from chunkfarm.parts import Parts
from chunkfarm.table.consensus import LEADER, Consensus
from chunkfarm.table.interface import Operation
from chunkfarm.table.journal import Journal, Loaded, Saved
from chunkfarm.table.records import Entry, Message, ReadState, Ready
from chunkfarm.table.rows import ROWS_SCHEMA, StateMachine, digest_of_state
from tests.simulation.checks import Checks, Violation
from tests.simulation.core import Disk as Mirror
from tests.simulation.core import Rows
from tests.simulation.disks import Disk

FOUNDED = 1
"""The index at which a farm begins, with an empty table."""


class WatchedJournal(Journal):
    """A journal whose every write is seen, and counts as durable once it returns."""

    seen: Seen

    def found(self, server_id: str) -> None:
        super().found(server_id)
        self.seen.founded(self)

    def save(self, ready: Ready, *, apply: bool = True) -> Saved:
        before = self.applied
        try:
            saved = super().save(ready, apply=apply)
        except BaseException:
            self.seen.uncertain = self.seen.uncertain or ready.snapshot is not None
            raise
        with self.seen.checks.telling():
            self.seen.saved(ready, before, saved, self.applied)
        return saved

    def compact(self, index: int) -> None:
        super().compact(index)
        self.seen.disk.compact(self.snapshot)


@define(eq=False)
class Seen:
    """What is known of one server's journal. Stands where the checks of the core expect a server."""

    checks: JournalChecks
    name: str
    id: str = ""
    life: int = 0
    disk: Mirror = field(factory=Mirror)
    uncertain: bool = False
    """Whether the last write was broken off where it may have been done."""
    farm: str = ""
    runs: bool = False
    """Whether a process has it open."""
    looked: tuple[Any, ...] = ()
    """What the checks last saw of its core."""

    def founded(self, journal: WatchedJournal) -> None:
        self.farm = journal.farm_id
        self._take(journal.load())
        self.checks.founded(self)

    def saved(self, ready: Ready, before: int, saved: Saved, applied: int) -> None:
        checks = self.checks.of(self.farm)
        if ready.snapshot is not None:
            before = max(before, ready.snapshot.index)
        self.disk.write(ready, Rows(applied))
        if ready.entries:
            checks.taken(self.name, self.disk.term_at(ready.entries[0].index - 1), ready.entries)
        entries = {entry.index: entry for entry in ready.committed}
        for done in saved.applied:
            checks.applied(self.name, before, entries[done.index])
            before = done.index
            if done.operations:
                checks.changes.setdefault(done.index, done.operations)

    def opened(self, loaded: Loaded) -> None:
        """A new process finds what the earlier ones have made durable."""
        kept = self.disk
        if not self.uncertain:
            found = (loaded.hard_state.term, loaded.hard_state.vote)
            promised = (kept.hard_state.term, kept.hard_state.vote)
            if found != promised:
                raise Violation(f"promises: {self.name} finds term and vote {found} on its disk, and wrote {promised}")
            log = [(entry.index, entry.term) for entry in kept.entries]
            there = [(entry.index, entry.term) for entry in loaded.entries]
            if there[len(there) - len(log) :] != log:
                raise Violation(f"promises: {self.name} finds the log {there} on its disk, and wrote {log}")
        if self.farm:
            # What was written in a write that was broken off counts too.
            self.checks.of(self.farm).taken(self.name, loaded.snapshot.term, loaded.entries)
        self._take(loaded)

    def _take(self, loaded: Loaded) -> None:
        self.uncertain = False
        self.disk = Mirror(loaded.hard_state, loaded.snapshot, list(loaded.entries), Rows(loaded.applied))


class FarmChecks(Checks):
    """The checks of one farm, whose table begins as if from a snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self._committed = [(0, 0), (1, 1)]
        self.commit = FOUNDED
        self.changes_max = 2
        self.changes: dict[int, tuple[Operation, ...]] = {}
        """What each revision has changed."""

    def one_change(self, core: Consensus) -> None:
        """One change of the voters at a time, but for a leader of two that goes on alone."""
        under_way = len(core.log.configurations_from(core.commit)) - 1
        if under_way > 1 and core.configuration.voters != {core.id}:
            raise Violation(f"one change at a time: {core.id} has {under_way} under way")

    def own_term_first(self, core: Consensus) -> None:
        """A leader changes who votes after an entry of its own term, but for one of two that goes on alone."""
        if core.log.term_at(core.configuration_index) == core.term and core.configuration.voters != {core.id}:
            self.changed(core)

    def rows_of(self, wanted: Collection[int], logs: Iterable[Iterable[Entry]]) -> dict[int, str]:
        """Digests of the state that a replay comes to at these indexes, as far as what was applied is known.

        `logs` are what servers have applied of theirs: of a write that was broken off nothing else is known.
        """
        last = max(wanted, default=0)
        entries = {entry.index: entry for log in logs for entry in log} | self._applied
        found: dict[int, str] = {}
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.executescript(ROWS_SCHEMA)
            machine = StateMachine(connection)
            for index in range(FOUNDED + 1, last + 1):
                if index not in entries:
                    break
                machine.apply(entries[index])
                if index in wanted:
                    machine.write()
                    found[index] = digest_of_state(connection)
        return found

    @property
    def terms(self) -> int:
        """In how many terms somebody has led."""
        return len(self._leaders)


class JournalChecks:
    """All journals of a simulation."""

    def __init__(self, fail: Callable[[BaseException | None], None] = lambda error: None) -> None:
        """`fail` is told of what does not hold: the product takes an exception in a write for a broken disk."""
        self._fail = fail
        self.servers: dict[str, Seen] = {}
        """By server id."""
        self._by_name: dict[str, Seen] = {}
        self._farms: dict[str, FarmChecks] = {}
        self.on_message: Callable[[Message], None] = lambda message: None
        self.replayed = 0
        """Indexes at which rows were compared with a replay of the log."""

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell of what goes wrong inside."""
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def of(self, farm: str) -> FarmChecks:
        if farm not in self._farms:
            self._farms[farm] = FarmChecks()
        return self._farms[farm]

    @property
    def changes(self) -> dict[int, tuple[Operation, ...]]:
        """What each revision of the one farm has changed."""
        return max(self._farms.values(), key=lambda farm: farm.commit).changes

    @property
    def farms(self) -> dict[str, FarmChecks]:
        return self._farms

    def founded(self, seen: Seen) -> None:
        self._farms[seen.farm] = FarmChecks()

    def forget(self, name: str) -> None:
        """That server's disk holds something else now."""
        self._by_name.pop(name, None)

    def ended(self, name: str) -> None:
        """The process of that server is gone."""
        if name in self._by_name:
            self._by_name[name].runs = False

    def swap(self, name: str, other: str) -> None:
        """Each of these machines has what was the other's disk."""
        mine, theirs = self._by_name[name], self._by_name[other]
        self._by_name[name], self._by_name[other] = theirs, mine
        mine.name, theirs.name = other, name

    def open(self, name: str, life: int, path: str, disk: Disk) -> WatchedJournal:
        """Open a journal, and compare it with what was written into it."""
        if not disk.exists(path):
            self.forget(name)
        journal = WatchedJournal.open(path, disk)
        seen = self._by_name.setdefault(name, Seen(self, name, uncertain=True))
        seen.life = life
        seen.farm = journal.farm_id or seen.farm
        seen.opened(journal.load())
        journal.seen = seen
        return journal

    def watch(self, server: Any, parts: Parts) -> None:
        """Look at every message that this process sends, and at what it is told when it asks from where on to read."""
        seen = self._by_name[server.name]
        seen.id = parts.data.server_id
        before = self.servers.get(seen.id)
        if before is None or not before.runs:
            # Else it has a copy of a disk that is in use, and must not come to count.
            self.servers[seen.id] = seen
        seen.runs = True
        driver = parts.embedded._driver
        send = driver._send

        def watched(messages: tuple[Message, ...]) -> None:
            checks = self.of(parts.journal.farm_id)
            for message in messages:
                self.on_message(message)
                with self.telling():
                    checks.sent(message, seen.disk)
            send(messages)

        driver._send = watched  # type: ignore[method-assign]
        tokens, confirm = driver._tokens, driver._confirm
        # Whoever founds a farm asks before it has one, and has another core then.
        of: dict[int, FarmChecks] = {}

        def asking() -> Iterator[int]:
            for token in tokens:
                of[token] = self.of(parts.journal.farm_id)
                of[token].read_asked(seen.name, seen.life, token)
                yield token

        def confirmed(reads: tuple[ReadState, ...]) -> None:
            with self.telling():
                for read in reads:
                    of.pop(read.token).read_answered(seen.name, seen.life, read.token, read.index)
            confirm(reads)

        driver._tokens = asking()  # type: ignore[assignment]
        driver._confirm = confirmed  # type: ignore[method-assign]

    def look(self, server: Any) -> None:
        """After every event, at the server that it touched."""
        parts: Parts | None = server.parts
        if parts is None:
            return
        core: Consensus = parts.embedded._driver.core
        seen = self._by_name[server.name]
        # Most events change nothing of this. The last entry stands for the whole log, which is checked as it grows.
        looked = (server.lives, core.role, core.term, core.commit, core.last_index, core.log.last_term)
        if looked == seen.looked or not parts.journal.farm_id:
            return
        seen.farm = parts.journal.farm_id
        if not core.configuration.members:
            return
        seen.looked = looked
        checks = self.of(seen.farm)
        checks.look(seen, core, self.servers)  # type: ignore[arg-type]
        if core.role == LEADER and core.pending_change:
            checks.one_change(core)
            checks.own_term_first(core)

    def compare_rows(self, servers: Iterable[Any]) -> None:
        """The state in every journal is what a replay of the log makes of it; else that of the others, where that ends.

        `servers` are those whose farm goes on.
        """
        farms: dict[str, dict[str, Parts]] = {}
        for server in servers:
            farms.setdefault(server.parts.journal.farm_id, {})[server.name] = server.parts
        for farm, named in farms.items():
            told = {name: parts.journal.applied for name, parts in named.items()}
            logs = [
                [entry for entry in parts.journal.load().entries if entry.index <= told[name]]
                for name, parts in named.items()
            ]
            replayed = self.of(farm).rows_of(set(told.values()), logs)
            self.replayed += len(replayed)
            for name, parts in named.items():
                found = digest_of_state(parts.journal._connection)
                if replayed.setdefault(told[name], found) != found:
                    raise Violation(f"replay: the rows of {name} at {told[name]} are not what the log makes of them")
