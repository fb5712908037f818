"""The log of the consensus core in memory, and the configurations that stand in it.

The log begins after a snapshot position and holds everything from there on. Three marks move along it:
`handed` (the disk was told to write entries up to here), `stable` (the disk has them) and, outside this
class, the commit index. A configuration is in force from the moment its entry is appended (Ongaro's
dissertation, section 4.1), so the log also knows which one that is, and goes back to the one before when
the entry is truncated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

from chunkfarm.table.records import Configuration, Entry, EntryKind, SnapshotMeta

ENTRY_OVERHEAD_BYTES = 32
"""What an entry costs on the wire beside its data: kind, term, index and length."""


def encode_configuration(configuration: Configuration) -> bytes:
    """The data of a CONFIGURATION entry; equal configurations give equal bytes."""
    item = {"voters": sorted(configuration.voters), "learners": sorted(configuration.learners)}
    return json.dumps(item, separators=(",", ":")).encode()


def decode_configuration(data: bytes) -> Configuration:
    """The reverse of `encode_configuration`; raises `ValueError` for anything else."""
    item = json.loads(data)
    if not isinstance(item, dict) or set(item) != {"voters", "learners"}:
        raise ValueError("a configuration has voters and learners")
    for names in item.values():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("a configuration lists server ids")
        # JSON can spell half of a surrogate pair, which no message and no disk takes.
        "".join(names).encode()
    return Configuration(item["voters"], item["learners"])


def encoded_size(entry: Entry) -> int:
    """About how many bytes the entry takes in a message."""
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


class RaftLog:
    """Entries after `snapshot`, in order and without gaps."""

    __slots__ = ("_configurations", "_entries", "handed", "last_index", "snapshot", "stable")

    def __init__(self, snapshot: SnapshotMeta, entries: Iterable[Entry]) -> None:
        self.snapshot = snapshot
        self._entries: list[Entry] = []
        self._configurations: list[tuple[int, Configuration]] = [(snapshot.index, snapshot.configuration)]
        self.last_index = snapshot.index
        for entry in entries:
            self.append(entry)
        self.handed = self.stable = self.last_index

    # What stands in the log.

    @property
    def first_index(self) -> int:
        """The oldest index whose entry is still held (one past the last index in an empty log)."""
        return self.snapshot.index + 1

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.snapshot.term

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None where the log does not reach or has been compacted."""
        offset = index - self.snapshot.index - 1
        if 0 <= offset < len(self._entries):
            return self._entries[offset].term
        return self.snapshot.term if offset == -1 else None

    def entries(self, first: int, last: int, bytes_max: int = sys.maxsize) -> tuple[Entry, ...]:
        """Entries from `first` to `last` (both included) that fit in `bytes_max` encoded; at least one, if any."""
        start = first - self.snapshot.index - 1
        end = last - self.snapshot.index
        assert start >= 0, "the entries asked for have been compacted"
        size = 0
        for offset in range(start, end):
            size += len(self._entries[offset].data) + ENTRY_OVERHEAD_BYTES
            if size > bytes_max and offset > start:
                end = offset
                break
        return tuple(self._entries[start:end])

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends with (`index`, `term`) is at least as complete as this one (dissertation 3.6.1)."""
        last_term = self.last_term
        return term > last_term or (term == last_term and index >= self.last_index)

    def conflict_hint(self, index: int, term: int) -> tuple[int, int]:
        """The last position at or before `index` whose term is not above `term`, with that term.

        Two logs cannot match between there and `index`, so a whole term is skipped in one step. The term
        is 0 where it is not known any more.
        """
        index = min(index, self.last_index)
        while index > self.snapshot.index:
            found = self._entries[index - self.snapshot.index - 1].term
            if found <= term:
                return index, found
            index -= 1
        return index, (self.term_at(index) or 0)

    # How the log changes.

    def append(self, entry: Entry) -> None:
        """Put one entry at the end."""
        assert entry.index == self.last_index + 1 and entry.term >= self.last_term
        self._entries.append(entry)
        self.last_index = entry.index
        if entry.kind is EntryKind.CONFIGURATION:
            self._configurations.append((entry.index, decode_configuration(entry.data)))

    def merge(self, entries: Sequence[Entry], commit: int) -> None:
        """Take entries that follow a matching position; truncate only from a real conflict on.

        Entries that are already here stay, and so does what follows them: the message may be an old one.
        """
        for position, entry in enumerate(entries):
            if entry.index <= self.last_index:
                if self.term_at(entry.index) == entry.term:
                    continue
                assert entry.index > commit, "a committed entry never conflicts"
                self._truncate(entry.index)
            for new in entries[position:]:
                self.append(new)
            break

    def _truncate(self, index: int) -> None:
        """Drop the entries from `index` on, and with them the configurations they brought."""
        del self._entries[index - self.snapshot.index - 1 :]
        self.last_index = index - 1
        while len(self._configurations) > 1 and self._configurations[-1][0] >= index:
            self._configurations.pop()
        self.handed = min(self.handed, index - 1)
        self.stable = min(self.stable, index - 1)

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Begin anew after a snapshot that this log does not match; nothing of it is durable yet."""
        self.snapshot = snapshot
        self._entries = []
        self._configurations = [(snapshot.index, snapshot.configuration)]
        self.last_index = self.handed = snapshot.index
        self.stable = 0

    def compact(self, index: int) -> None:
        """Forget the entries up to `index`; its term and configuration stay known."""
        self.snapshot, dropped = self.meta_at(index), index - self.snapshot.index
        del self._entries[:dropped]
        later = [item for item in self._configurations if item[0] > index]
        at = next(item for item in reversed(self._configurations) if item[0] <= index)
        self._configurations = [at, *later]

    def meta_at(self, index: int) -> SnapshotMeta:
        """Index, term and configuration of a position that the log still knows."""
        term = self.term_at(index)
        assert term is not None, "that position is not in the log"
        at = next(item for item in reversed(self._configurations) if item[0] <= index)
        return SnapshotMeta(index, term, at[1])

    # The way to the disk.

    def unhanded(self) -> tuple[Entry, ...]:
        """Entries that the disk has not been told about."""
        return tuple(self._entries[self.handed - self.snapshot.index :])

    # The configuration in force.

    @property
    def configuration(self) -> Configuration:
        return self._configurations[-1][1]

    @property
    def configuration_index(self) -> int:
        """Where the configuration in force was appended."""
        return self._configurations[-1][0]

    @property
    def previous_configuration(self) -> Configuration:
        """The one that is in force again if the last one is truncated (the same one if there is no other)."""
        return self._configurations[max(0, len(self._configurations) - 2)][1]

    def configurations_from(self, index: int) -> tuple[Configuration, ...]:
        """The configuration in force at `index`, and every later one in the log."""
        later = tuple(configuration for at, configuration in self._configurations if at > index)
        before = [configuration for at, configuration in self._configurations if at <= index]
        return (before[-1] if before else self._configurations[0][1], *later)
