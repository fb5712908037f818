"""What clients of a simulated farm ask, hear and see: transactions with compares, reads, and watches.

A transaction is proposed on the server that the client has reached, and its outcome is known when that server
applies the entry in the term of the proposal; with the server dies the answer. A read asks for a read index, and
looks at the rows once they are so far. What was asked and answered is kept as `linearizable.Call`s. Watchers follow
the real `WatchHub` of a server, and go on at another one from the revision that they were told last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from random import Random
from typing import Any

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from chunkfarm.table.interface import Batch, Compacted, Compare, Delete, Event, IWatch, Operation, Put, Row
from chunkfarm.table.raft_log import RaftLog
from chunkfarm.table.records import Entry, EntryKind
from chunkfarm.table.watches import WatchHub
from tests.simulation.linearizable import UNKNOWN, Call, Done, NotLinearizable, Read, Refused, Seen, Transact, check
from tests.simulation.ordering import Undecided

KEYS = (b"a", b"b", b"c")
"""Few, so that clients meet."""

Table = Mapping[bytes, tuple[bytes, int]]
"""Value and revision by key."""


def encode(number: int, what: Transact) -> bytes:
    """A transaction as an entry that people can read in a trace."""
    words = [str(number)]
    words += [f"{one.key.decode()}{one.relation}{one.revision}" for one in what.compares]
    words += [("+" if isinstance(one, Put) else "-") + one.key.decode() for one in what.operations]
    return " ".join(words).encode()


@cache
def decode(data: bytes) -> Transact:
    """The reverse of `encode`; what is put is the number."""
    number, *words = data.decode().split()
    compares = []
    operations: list[Operation] = []
    for word in words:
        if word[0] == "+":
            operations.append(Put(word[1:].encode(), number.encode()))
        elif word[0] == "-":
            operations.append(Delete(word[1:].encode()))
        else:
            relation = "==" if word[1] == "=" else word[1]
            compares.append(Compare(word[:1].encode(), relation, int(word[1 + len(relation) :])))
    return Transact(tuple(compares), tuple(operations))


def _holds(table: Table, compare: Compare) -> bool:
    revision = table[compare.key][1] if compare.key in table else 0
    if compare.relation == "==":
        return revision == compare.revision
    return revision > compare.revision if compare.relation == ">" else revision < compare.revision


def apply(table: Table, entry: Entry) -> tuple[Table, Done | Refused]:
    """The table after a committed entry, and what whoever proposed it is told."""
    what = decode(entry.data) if entry.kind is EntryKind.DATA else Transact((), ())
    if not all(_holds(table, one) for one in what.compares):
        return table, Refused(rows_under(table, *{one.key for one in what.compares}))
    if not what.operations:
        return table, Done(entry.index)
    after = dict(table)
    for one in what.operations:
        if isinstance(one, Put):
            after[one.key] = (one.value, entry.index)
        else:
            after.pop(one.key, None)
    return after, Done(entry.index)


def rows_under(table: Table, *prefixes: bytes) -> tuple[Row, ...]:
    return tuple(Row(key, *table[key]) for key in sorted(table) if key.startswith(prefixes))


def events_of(entry: Entry, outcome: Done | Refused) -> tuple[Event, ...]:
    """What watchers are to see of an entry."""
    if entry.kind is not EntryKind.DATA or isinstance(outcome, Refused):
        return ()
    return tuple(
        Event(entry.index, "PUT", one.key, one.value)
        if isinstance(one, Put)
        else Event(entry.index, "DEL", one.key, b"")
        for one in decode(entry.data).operations
    )


@frozen
class Asked:
    """A call under way: the term in which it was proposed, or the index from which on it may be read."""

    at: int
    call: int
    """Its place in the history."""


@define
class Desk:
    """The clients that wait for one process."""

    hub: WatchHub
    proposed: dict[int, Asked] = field(factory=dict)
    """By index."""
    reading: dict[int, int] = field(factory=dict)
    """Calls by the token of their read index."""
    due: list[Asked] = field(factory=list)
    """Reads whose index is known."""
    unpublished: list[tuple[int, tuple[Event, ...]]] = field(factory=list)


class Clients:
    """All clients of one run, and the history of what they were told. `now` tells the time."""

    def __init__(self, seed: int, now: Callable[[], int], make_hub: Callable[..., WatchHub] = WatchHub) -> None:
        self.calls: list[Call] = []
        self.undecided = False
        self.wrong: list[NotLinearizable] = []
        """What watchers have found."""
        self.watchers = (Watcher(self, KEYS[0]), Watcher(self, b""))
        self.changes: list[tuple[Event, ...]] = [()]
        """By index, of every entry that anybody has applied."""
        # Of its own, so that what clients ask changes nothing of the weather.
        self._random = Random(f"clients {seed}")
        self._now = now
        self._moments = 0
        self._make_hub = make_hub
        self._revisions: dict[bytes, int] = {}
        """What clients have heard of last."""

    def desk(self, revision: int, log: Callable[[], RaftLog]) -> Desk:
        """What a process begins with; `revision` is that of its rows."""

        def history(prefix: bytes, after: int, until: int) -> Deferred[tuple[tuple[Event, ...], int]]:
            if after < log().snapshot.index:
                return fail(Compacted(log().first_index))
            return succeed((self.events(prefix, after, until), until))

        return Desk(self._make_hub(revision, history))

    def events(self, prefix: bytes, after: int, until: int) -> tuple[Event, ...]:
        changes = self.changes[after + 1 : until + 1]
        return tuple(event for events in changes for event in events if event.key.startswith(prefix))

    # Asking.

    def _moment(self) -> float:
        # Of two things in one unit of time the first came first.
        self._moments += 1
        return self._now() + self._moments * 1e-7

    def _ask(self, what: Transact | Read) -> int:
        self.calls.append(Call(str(len(self.calls)), self._moment(), 0.0, what, UNKNOWN))
        return len(self.calls) - 1

    def _answer(self, at: int, outcome: Done | Refused | Seen) -> None:
        self.calls[at] = evolve(self.calls[at], returned=self._moment(), outcome=outcome)
        for row in self.calls[at].rows:
            self._revisions[row.key] = row.revision

    def draw(self, number: int) -> Transact:
        """What a client wants to change."""
        random = self._random
        compares = []
        for key in random.sample(KEYS, random.choice((0, 0, 1, 1, 2))):
            relation = random.choice(("==", "==", "==", ">", "<"))
            known = self._revisions.get(key, 0) if random.random() < 0.8 else 0
            compares.append(Compare(key, relation, known + 1 if relation == "<" else known))
        value = b"%d" % number
        operations: list[Operation] = []
        for key in random.sample(KEYS, random.choice((1, 1, 2))):
            operations.append(Delete(key) if random.random() < 0.25 else Put(key, value))
        return Transact(tuple(compares), tuple(operations))

    def proposed(self, desk: Desk, what: Transact, term: int, index: int) -> None:
        desk.proposed[index] = Asked(term, self._ask(what))

    def asked_to_read(self, desk: Desk, token: int) -> None:
        desk.reading[token] = self._ask(Read(self._random.choice((b"", *KEYS))))

    # Answers.

    def applied(self, desk: Desk, entry: Entry, outcome: Done | Refused) -> None:
        """A server has applied an entry, and may tell of it."""
        events = events_of(entry, outcome)
        if entry.index == len(self.changes):
            self.changes.append(events)
        if events:
            desk.unpublished.append((entry.index, events))
        asked = desk.proposed.pop(entry.index, None)
        if asked is not None and asked.at == entry.term:
            if isinstance(outcome, Refused) and self._random.random() < 0.5:
                outcome = Refused()
            self._answer(asked.call, outcome)

    def read_from(self, desk: Desk, token: int, index: int) -> None:
        """From this index on the rows may be read."""
        if token in desk.reading:
            desk.due.append(Asked(index, desk.reading.pop(token)))

    def serve(self, desk: Desk, revision: int, table: Table) -> None:
        """The rows of a server have moved: tell watchers, and those whose index has been reached."""
        if revision > desk.hub.revision:
            desk.hub.publish(revision, desk.unpublished)
            desk.unpublished = []
        for asked in [asked for asked in desk.due if asked.at <= revision]:
            desk.due.remove(asked)
            what = self.calls[asked.call].what
            assert isinstance(what, Read)
            self._answer(asked.call, Seen(rows_under(table, what.prefix), revision))

    def replaced(self, desk: Desk, revision: int) -> None:
        """A server has all its rows from another one."""
        desk.proposed = {index: asked for index, asked in desk.proposed.items() if index > revision}
        desk.unpublished = []
        desk.hub.replace(revision)

    def watch(self, desks: Sequence[Desk]) -> None:
        """Whoever watches nowhere begins at one of these."""
        for watcher in self.watchers:
            if not watcher.busy:
                watcher.begin(self._random.choice(desks).hub)

    def check(self) -> None:
        """Whether watches told all, and one order explains everything; raises `NotLinearizable`."""
        for error in self.wrong:
            raise error
        try:
            check(self.calls)
        except Undecided:
            self.undecided = True


class Watcher:
    """A client that follows the changes under a prefix, from one server to the next."""

    def __init__(self, clients: Clients, prefix: bytes) -> None:
        self.busy = False
        self.seen = 0
        """Events so far."""
        self._clients = clients
        self._prefix = prefix
        self._position = 0
        self._hub: WatchHub | None = None

    def begin(self, hub: WatchHub) -> None:
        self.busy = True
        self._hub = hub
        hub.watch(self._prefix, self._position).addCallback(self._go_on).addErrback(self._ended)

    def _go_on(self, watch: IWatch) -> Any:
        return watch.next().addCallback(self._told, watch)

    def _told(self, batch: Batch, watch: IWatch) -> Any:
        expected = self._clients.events(self._prefix, self._position, batch.revision)
        if batch.revision < self._position or batch.events != expected:
            raise NotLinearizable(
                f"watches: behind {self._position}, up to {batch.revision}, {self._prefix!r} changed by {expected}, "
                f"and the watch said {batch.events}"
            )
        self.seen += len(batch.events)
        self._position = batch.revision
        return self._go_on(watch)

    def _ended(self, failure: Failure) -> None:
        self.busy = False
        if isinstance(failure.value, NotLinearizable):
            self._clients.wrong.append(failure.value)
        elif failure.check(Compacted) and self._hub is not None:
            # As a client does: read, and watch from there.
            self._position = max(self._position, self._hub.revision)
