"""What must hold in every history of the consensus, whatever happens (Ongaro's dissertation, figure 3.2).

The checks know everything that any server ever did, and compare. None of them looks at how the core
reaches its decisions, except where the rule itself is about that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from chunkfarm.table.consensus import Consensus, majority
from chunkfarm.table.records import Entry, EntryKind, Message, MessageKind

if TYPE_CHECKING:
    from tests.simulation.core import Disk, Rows, Server


class Violation(AssertionError):
    """A rule was broken; the text says which."""


def _must(holds: bool, sentence: str) -> None:
    if not holds:
        raise Violation(sentence)


class Checks:
    """All that has been seen so far in one run."""

    def __init__(self, empty: Rows | None = None) -> None:
        self.commit = 0
        """The highest index that any server has known to be committed."""
        self.changes_max = 1
        """Changes of configuration that may be under way in one log. A leader of two may drop the other beside one."""
        self._leaders: dict[int, tuple[str, int]] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._logs: dict[int, dict[int, int]] = {}
        """For each term, what its leader has told of its log: the term of the entry at an index."""
        self._entries: dict[tuple[int, int], tuple[int, EntryKind, bytes]] = {}
        self._committed: list[tuple[int, int]] = [(0, 0)]
        """For each index: term of the entry, term of the leader that committed it."""
        self._committing_terms: set[int] = set()
        self._known: dict[tuple[str, int], int] = {}
        self._applied: dict[int, Entry] = {}
        self._empty = empty
        """Rows of which nothing has been applied; without them nothing is replayed."""
        self._rows: dict[int, Rows] = {}
        self._reads: dict[tuple[str, int, int], int] = {}
        self._answered = 0
        self._lost: dict[str, list[Disk]] = {}

    @property
    def terms_led(self) -> tuple[int, ...]:
        """The terms in which there was a leader, in the order in which they were seen."""
        return tuple(self._leaders)

    # Elections.

    def sent(self, message: Message, disk: Disk) -> None:
        """What is promised is on the disk, and a vote is given once a term, across restarts."""
        if message.kind is MessageKind.VOTE:
            self._voted(message, message.sender, disk)
        elif message.kind is MessageKind.VOTE_ANSWER and not message.reject:
            self._voted(message, message.to, disk)
        elif message.kind is MessageKind.APPEND:
            leads = self._logs.setdefault(message.term, {})
            leads[message.log_index] = message.log_term
            for entry in message.entries:
                leads[entry.index] = entry.term
        elif message.kind is MessageKind.APPEND_ANSWER and not message.reject:
            self._acknowledged(message, disk)

    def _acknowledged(self, message: Message, disk: Disk) -> None:
        """Whoever leads that term counts the entry of its own log, so no other one at that index will do."""
        index = message.log_index
        term = self._logs.get(message.term, {}).get(index)
        # Who was sent a snapshot acknowledges what no append has told of.
        written = disk.last_index >= index if term is None else disk.holds(index, term)
        durable = disk.hard_state.term >= message.term and written
        _must(durable, f"promises: {message.sender} acknowledged {index}, which it has not written")

    def _voted(self, message: Message, candidate: str, disk: Disk) -> None:
        voter, term = message.sender, message.term
        before = self._votes.setdefault((voter, term), candidate)
        _must(before == candidate, f"vote once: {voter} voted for {before} and {candidate} in term {term}")
        written = disk.hard_state
        durable = written.term > term or (written.term == term and written.vote == candidate)
        _must(durable, f"promises: {voter} voted for {candidate} in term {term}, and has not written it")

    def put_back(self, id: str, lost: Disk) -> None:
        """An older disk has taken the place of this one, until `caught_up`.

        A candidate that is gone wins nothing any more, so what it voted for itself may be forgotten.
        """
        self._lost.setdefault(id, []).append(lost)
        for key in [key for key, candidate in self._votes.items() if key[0] == id == candidate]:
            del self._votes[key]

    def _lead(self, server: Server, core: Consensus) -> None:
        """Election safety: one leader a term. Leader completeness: it has what earlier terms committed."""
        me = (server.id, server.life)
        before = self._leaders.get(core.term)
        if before == me:
            return
        _must(before is None, f"election safety: {before} and {me} lead term {core.term}")
        self._leaders[core.term] = me
        for index in range(core.log.snapshot.index, len(self._committed)):
            term, by = self._committed[index]
            if index and by < core.term:
                found = core.log.term_at(index)
                _must(found == term, f"leader completeness: {server.id} leads {core.term} without {index} of {term}")

    # Logs.

    def taken(self, id: str, previous: int | None, entries: Iterable[Entry]) -> None:
        """Log matching: an index and a term name one entry, and one entry before it, here of the term `previous`."""
        for entry in entries:
            if previous is not None:
                seen = (previous, entry.kind, entry.data)
                before = self._entries.setdefault((entry.index, entry.term), seen)
                _must(before == seen, f"log matching: {id} has another {entry.index} of term {entry.term}")
            previous = entry.term

    def changed(self, core: Consensus) -> None:
        """A leader changes the configuration only after an entry of its own term has been committed."""
        own = core.term in self._committing_terms
        _must(own, f"own term first: {core.id} changes the configuration before it has committed anything")

    def look(self, server: Server, core: Consensus, servers: Mapping[str, Server]) -> None:
        """After every event, at the server that it touched."""
        if core.role == "leader":
            self._lead(server, core)
        under_way = len(core.log.configurations_from(self.commit)) - 1
        _must(under_way <= self.changes_max, f"one change at a time: {core.id} has {under_way} under way")
        key = (server.id, server.life)
        known = self._known.get(key, 0)
        if core.commit == known:
            return
        _must(core.commit > known, f"commit index: that of {server.id} went from {known} to {core.commit}")
        _must(core.commit <= core.last_index, f"commit index: {server.id} committed what it does not have")
        self._known[key] = core.commit
        for index in range(max(known, core.log.snapshot.index) + 1, core.commit + 1):
            term = core.log.term_at(index)
            assert term is not None
            if index < len(self._committed):
                _must(self._committed[index][0] == term, f"state machine safety: {server.id} committed another {index}")
            else:
                self._newly_committed(server, core, index, term, servers)
        self.commit = len(self._committed) - 1

    def _newly_committed(
        self, server: Server, core: Consensus, index: int, term: int, servers: Mapping[str, Server]
    ) -> None:
        """Committed means: by a leader, up to an entry of its own term, durable on a majority of those in force."""
        me = (server.id, server.life)
        _must(self._leaders.get(core.term) == me, f"commitment: {server.id} committed {index} without leading")
        if index == core.commit:
            _must(term == core.term, f"commitment: {server.id} committed {index} of term {term} by counting")
        latest = self._committed[-1][1]
        _must(core.term >= latest, f"one first: {server.id} committed {index} in {core.term}, after one in {latest}")
        voters = core.configuration.voters
        # What a disk had before it was put back was a promise that its leader may have counted.
        disks = {id: [servers[id].disk, *self._lost.get(id, [])] for id in sorted(voters)}
        holders = [id for id, some in disks.items() if any(disk.holds(index, term) for disk in some)]
        _must(len(holders) >= majority(len(voters)), f"durability: {index} is committed and durable only on {holders}")
        assert index == len(self._committed)
        self._committed.append((term, core.term))
        self._committing_terms.add(core.term)

    # Rows.

    def applied(self, id: str, rows_index: int, entry: Entry) -> None:
        """State machine safety: the same entry everywhere, in order, without a gap, and only if committed."""
        _must(entry.index == rows_index + 1, f"order: {id} applied {entry.index} after {rows_index}")
        _must(entry.index <= self.commit, f"state machine safety: {id} applied {entry.index}, which is not committed")
        before = self._applied.setdefault(entry.index, entry)
        _must(before == entry, f"state machine safety: {id} applied another {entry.index}")

    def rows(self, rows: Rows) -> None:
        before = self._rows.setdefault(rows.index, rows)
        _must(before == rows, f"state machine safety: rows differ at {rows.index}")

    # Reads.

    def read_asked(self, id: str, life: int, token: int) -> None:
        self._reads[id, life, token] = self.commit

    def read_answered(self, id: str, life: int, token: int, index: int) -> None:
        """A read sees everything that anybody could have seen before it began."""
        known = self._reads.pop((id, life, token), None)
        _must(known is not None, f"reads: {id} answered {token}, which it was not asked")
        assert known is not None
        _must(index >= known, f"linearizable reads: {id} read at {index} what was already {known}")
        self._answered = max(self._answered, token)

    def answered_since(self, token: int) -> bool:
        return self._answered > token

    def caught_up(self, id: str) -> None:
        """Whatever was on that disk is again where it is needed."""
        self._lost.pop(id, None)

    def has_all(self, disk: Disk) -> bool:
        """Whether everything that was ever committed is on this disk."""
        return disk.holds(self.commit, self._committed[self.commit][0])

    # The end.

    def lost(self, core: Consensus, term: int) -> None:
        """A majority is gone, and with it what only that had, and every term after `term`; this log goes on."""
        self._leaders = {key: leader for key, leader in self._leaders.items() if key <= term}
        self._votes = {key: vote for key, vote in self._votes.items() if key[1] <= term}
        self._logs = {key: told for key, told in self._logs.items() if key <= term}
        self._entries = {key: entry for key, entry in self._entries.items() if key[1] <= term}
        last = core.log.snapshot.index
        while last + 1 < len(self._committed) and core.log.term_at(last + 1) == self._committed[last + 1][0]:
            last += 1
        del self._committed[last + 1 :]
        self.commit = len(self._committed) - 1
        for index in [index for index in self._applied if index > last]:
            del self._applied[index]
        for index in [index for index in self._rows if index > last]:
            del self._rows[index]
        self._reads.clear()

    def finished(self, servers: Mapping[str, Server]) -> None:
        """The table is the replay of the log: the rows of every server, and of those that have gone."""
        rows = self._empty
        if rows is None:
            return
        replayed = {0: rows}
        for index in range(1, len(self._committed)):
            if index not in self._applied:
                break
            rows = replayed[index] = rows.after(self._applied[index])
        for index, seen in self._rows.items():
            _must(seen == replayed.get(index), f"replay: rows at {index} are not what the log makes of them")
        for server in servers.values():
            same = server.rows == replayed.get(server.rows.index)
            _must(same, f"replay: the rows of {server.id} are not what the log makes of them")
