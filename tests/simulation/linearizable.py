"""Whether a history of calls to the table can be explained by one order in which they happened one at a time.

The order must agree with real time: what had returned before something else began comes before it (Herlihy and
Wing, 1990). Each call must give what a plain table gives at its place (`table.interface`: compares, puts, deletes,
rows under a prefix), and every revision must be greater than those before it. A transaction whose outcome is
unknown may have happened at any time after it began, or never.

`check` raises `NotLinearizable` and says which calls have no explanation. It looks at three things:

1. Revisions and real time. Of two transactions, or reads that say at which revision they were made, the one that
   had ended before the other began has the lower revision.
2. Rows that were seen. Each was put by somebody, at that revision. An unknown transaction that alone can have put
   a row that was seen has thereby taken effect, and its revision is known.
3. Order. Keys are looked at one by one (a history is linearizable if that of each object is; a revision ties the
   parts of a transaction, or of a read, together). Only keys that an unknown transaction, a conflict or a read
   without a revision has in common are looked at together. Of each such part `ordering.Ordering` looks for an order.

Of revisions that nobody saw, those of two parts are not compared: two unknown transactions of different keys may
be given the same one. In every other respect what passes can be explained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from attrs import frozen

from chunkfarm.table.interface import Compare, Operation, Put, Row
from tests.simulation.ordering import STATES_MAX, NotLinearizable, Ordering, Step, Undecided, row_text

__all__ = [
    "UNKNOWN",
    "Call",
    "Done",
    "NotLinearizable",
    "Read",
    "Refused",
    "Seen",
    "Transact",
    "Undecided",
    "Unknown",
    "check",
]


@frozen
class Transact:
    compares: tuple[Compare, ...]
    operations: tuple[Operation, ...]


@frozen
class Read:
    """Rows whose key starts with `prefix` and is greater than `after`; with `exact`, the one row `prefix`."""

    prefix: bytes
    after: bytes = b""
    exact: bool = False


@frozen
class Done:
    """The operations took effect at `revision`."""

    revision: int


@frozen
class Refused:
    """A compare did not hold. `rows` are the compared rows then or a little later (None: not known).

    A value may be left empty, as the table does where the rows together are too large.
    """

    rows: tuple[Row, ...] | None = None


@frozen
class Seen:
    """What a read returned. `revision` is that of the table (None: not known); with `more` it ends at the last row."""

    rows: tuple[Row, ...]
    revision: int | None = None
    more: bool = False


@frozen
class Unknown:
    """No answer, or one that does not say: it may take effect at any time after it began, or never."""


UNKNOWN = Unknown()
Outcome = Done | Refused | Seen | Unknown


@frozen(eq=False)
class Call:
    """What one client asked and was told. Times are any numbers that grow; calls that touch count as overlapping.

    `returned` means nothing where the outcome is unknown. Two calls are two, however alike they look.
    """

    client: str
    invoked: float
    returned: float
    what: Transact | Read
    outcome: Outcome

    @property
    def compares(self) -> tuple[Compare, ...]:
        return self.what.compares if isinstance(self.what, Transact) else ()

    @property
    def operations(self) -> tuple[Operation, ...]:
        return self.what.operations if isinstance(self.what, Transact) else ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows that it showed."""
        return (self.outcome.rows or ()) if isinstance(self.outcome, Seen | Refused) else ()

    @property
    def revision(self) -> int | None:
        return self.outcome.revision if isinstance(self.outcome, Seen | Done) else None

    @property
    def end(self) -> float:
        """After this it can have no effect."""
        return inf if isinstance(self.outcome, Unknown) else self.returned

    def __str__(self) -> str:
        asked = f"client {self.client} at {self.invoked:g}: "
        if isinstance(self.what, Read):
            what = "read the row" if self.what.exact else "read the rows under"
            asked += f"{what} {self.what.prefix!r}"
            asked += f" behind {self.what.after!r}" if self.what.after else ""
        else:
            words = [f"if {one.key!r} {one.relation} {one.revision}" for one in self.what.compares]
            words += [
                f"put {one.key!r}={one.value!r}" if isinstance(one, Put) else f"delete {one.key!r}"
                for one in self.what.operations
            ]
            asked += ", ".join(words) or "an empty transaction"
        return f"{asked}; {self._told()}"

    def _told(self) -> str:
        outcome = self.outcome
        if isinstance(outcome, Done):
            return f"done at {self.returned:g}, revision {outcome.revision}"
        if isinstance(outcome, Refused):
            return f"refused at {self.returned:g}" + _rows_text(outcome.rows)
        if isinstance(outcome, Seen):
            at = "" if outcome.revision is None else f", revision {outcome.revision}"
            return f"answered at {self.returned:g}{at}" + _rows_text(outcome.rows)
        return "outcome unknown"


def _rows_text(rows: tuple[Row, ...] | None) -> str:
    if rows is None:
        return ""
    return ": " + (", ".join(row_text(row.key, (row.value, row.revision)) for row in rows) or "no rows")


def check(
    calls: Iterable[Call], initial: Iterable[Row] = (), *, apart: bool = True, states_max: int = STATES_MAX
) -> None:
    """Raise `NotLinearizable` if no order explains the calls, which began with the rows `initial`.

    Raises `Undecided` after looking at `states_max` states of one part. `apart=False` looks at all keys together:
    much slower, and it finds two unknown transactions that cannot both have had the revision they need.
    """
    _History(tuple(calls), tuple(initial)).check(apart, states_max)


class _History:
    """One history on its way through the three looks."""

    def __init__(self, calls: tuple[Call, ...], initial: tuple[Row, ...]) -> None:
        self.transactions = [call for call in calls if isinstance(call.what, Transact)]
        self.reads = [call for call in calls if isinstance(call.what, Read) and isinstance(call.outcome, Seen)]
        self.initial = {row.key: (row.value, row.revision) for row in initial}
        for call in calls:
            expected = (Seen, Unknown) if isinstance(call.what, Read) else (Done, Refused, Unknown)
            if not isinstance(call.outcome, expected):
                raise ValueError(f"{call}: this is no outcome of such a call")
        self.numbers: dict[Call, int] = {}
        """Revisions that are known, of transactions that have taken effect."""
        self.at: dict[int, Call] = {}
        self.maybe: list[Call] = []
        """Transactions of which nobody knows whether they took effect, and when."""
        self.candidates: dict[int, list[Call]] = {}
        """Of revisions that were seen, and whose transaction is not known: those that it can have been."""

    def check(self, apart: bool, states_max: int) -> None:
        self._number_transactions()
        self._explain_rows()
        self._check_numbers()
        for keys in self._parts(apart):
            self._ordering(keys, states_max).find()

    # What is known of revisions.

    def _number_transactions(self) -> None:
        for call in self.transactions:
            if isinstance(call.outcome, Done):
                self._number(call, call.outcome.revision)
            elif isinstance(call.outcome, Unknown) and call.operations:
                self.maybe.append(call)

    def _number(self, call: Call, revision: int) -> None:
        other = self.at.setdefault(revision, call)
        if other is not call:
            raise NotLinearizable(f"two transactions took effect at one revision:\n  {other}\n  {call}")
        self.numbers[call] = revision

    def _explain_rows(self) -> None:
        """Every row that was seen was put by somebody, at its revision."""
        for call in (*self.reads, *self.transactions):
            for row in call.rows:
                self._explain_row(call, row)
        # Who alone can have taken a revision has taken it, and no other one.
        while found := next((at for at, calls in self.candidates.items() if len(calls) < 2), None):
            if not self.candidates[found]:
                raise NotLinearizable(self._twice(found))
            (call,) = self.candidates.pop(found)
            self._number(call, found)
            self.maybe.remove(call)
            for calls in self.candidates.values():
                if call in calls:
                    calls.remove(call)

    def _explain_row(self, seen_by: Call, row: Row) -> None:
        anything = isinstance(seen_by.outcome, Refused) and not row.value
        if row.revision in self.at:
            puts: Sequence[Call] = [self.at[row.revision]]
        elif self._initially(row, anything):
            return
        else:
            puts = self.candidates.get(row.revision, self.maybe)
        puts = [call for call in puts if call.invoked <= seen_by.returned and _puts(call, row, anything)]
        if not puts:
            raise NotLinearizable(self._nobody(seen_by, row))
        if row.revision not in self.at:
            self.candidates[row.revision] = puts

    def _initially(self, row: Row, anything: bool) -> bool:
        before = self.initial.get(row.key)
        return before is not None and before[1] == row.revision and (anything or before[0] == row.value)

    def _nobody(self, seen_by: Call, row: Row) -> str:
        text = f"nobody put {row_text(row.key, (row.value, row.revision))}, which was seen:\n  {seen_by}"
        others = [call for call in self.transactions if _puts(call, row, False)]
        if row.revision in self.at:
            text += f"\nthat revision is another transaction's:\n  {self.at[row.revision]}"
        for call in others:
            text += f"\nthis value was put (a repeated effect?) by:\n  {call}"
        return text

    def _twice(self, revision: int) -> str:
        rows = {row for call in (*self.reads, *self.transactions) for row in call.rows if row.revision == revision}
        rows_text = ", ".join(sorted(row_text(row.key, (row.value, row.revision)) for row in rows))
        text = f"who put {rows_text} has taken another revision already (a repeated effect?):"
        for call in self.numbers:
            if any(_puts(call, row, not row.value) for row in rows):
                text += f"\n  {call} (revision {self.numbers[call]})"
        return text

    def _check_numbers(self) -> None:
        """Of two that do not overlap, the later one has the higher revision."""
        calls = [(call, number, True) for call, number in self.numbers.items()]
        calls += [(call, call.revision, False) for call in self.reads if call.revision is not None]
        ended = sorted((call for call in calls if call[0].end < inf), key=lambda one: one[0].end)
        before: tuple[Call, int] | None = None
        at = 0
        for call, number, changes in sorted(calls, key=lambda one: one[0].invoked):
            while at < len(ended) and ended[at][0].end < call.invoked:
                if before is None or ended[at][1] > before[1]:
                    before = ended[at][:2]
                at += 1
            if before is not None and (before[1] >= number if changes else before[1] > number):
                did = "took" if changes else "read at"
                raise NotLinearizable(
                    f"this {did} revision {number}, although {before[1]} was reached before it began:\n"
                    f"  {call}\n  {before[0]}"
                )

    # Parts that can be looked at by themselves.

    def _keys(self) -> list[bytes]:
        keys = set(self.initial)
        for call in self.transactions:
            keys.update(one.key for one in (*call.compares, *call.operations))
        for call in self.reads:
            keys.update(row.key for row in call.rows)
            if isinstance(call.what, Read) and call.what.exact:
                keys.add(call.what.prefix)
        return sorted(keys)

    def _parts(self, apart: bool) -> list[list[bytes]]:
        keys = self._keys()
        if not apart:
            return [keys] if keys else []
        group = {key: key for key in keys}

        def root(key: bytes) -> bytes:
            while group[key] != key:
                key = group[key]
            return key

        def join(together: Sequence[bytes]) -> None:
            for key in together[1:]:
                group[root(key)] = root(together[0])

        for call in self.transactions:
            if isinstance(call.outcome, Refused):
                join([one.key for one in call.compares])
            elif call not in self.numbers:
                join([one.key for one in (*call.compares, *call.operations)])
        for call in self.reads:
            if call.revision is None:
                join(_covered(call, keys))
        parts: dict[bytes, list[bytes]] = {}
        for key in keys:
            parts.setdefault(root(key), []).append(key)
        return list(parts.values())

    def _ordering(self, keys: list[bytes], states_max: int) -> Ordering:
        """The search for this part, with what each call has to do with it."""
        here = set(keys)
        steps = []
        for call in self.transactions:
            compares = tuple(one for one in call.compares if one.key in here)
            operations = tuple(one for one in call.operations if one.key in here)
            if isinstance(call.outcome, Refused):
                if not call.compares:
                    raise NotLinearizable(f"refused, although it compared nothing:\n  {call}")
                if compares:
                    steps += _refusal(call, compares)
            elif compares or operations:
                number = self.numbers.get(call)
                kind = "maybe" if number is None else "effect"
                if number is not None or call in self.maybe:
                    points = frozenset(at for at, calls in self.candidates.items() if call in calls)
                    steps.append(
                        Step(str(call), kind, call.invoked, call.end, number, compares, operations, points=points)
                    )
        for call in self.reads:
            covered = _covered(call, keys)
            if covered:
                kind = "look" if call.revision is None else "read"
                wants = _wanted(covered, call.rows)
                steps.append(Step(str(call), kind, call.invoked, call.returned, call.revision, wants=wants))
        initial = tuple(self.initial.get(key) for key in keys)
        taken = frozenset(self.at) | frozenset(self.candidates)
        return Ordering(keys, initial, steps, taken, states_max)


def _refusal(call: Call, compares: tuple[Compare, ...]) -> list[Step]:
    refused = Step(str(call), "refused", call.invoked, call.returned, compares=compares)
    if isinstance(call.outcome, Refused) and call.outcome.rows is None:
        return [refused]
    wants = _wanted({one.key for one in compares}, call.rows)
    loose = frozenset(row.key for row in call.rows if not row.value)
    # A conflict that is asked for again answers with the rows of that time.
    return [refused, Step(str(call), "look", call.invoked, call.returned, wants=wants, loose=loose, after=refused)]


def _rows_of(call: Call) -> tuple[Row, ...]:
    if isinstance(call.outcome, Seen):
        return call.outcome.rows
    return (call.outcome.rows or ()) if isinstance(call.outcome, Refused) else ()


def _puts(call: Call, row: Row, anything: bool) -> bool:
    return any(
        isinstance(one, Put) and one.key == row.key and (anything or one.value == row.value) for one in call.operations
    )


def _covered(call: Call, keys: Sequence[bytes]) -> list[bytes]:
    """The keys of which this read says whether they are there."""
    what, seen = call.what, call.outcome
    assert isinstance(what, Read) and isinstance(seen, Seen)
    if what.exact:
        return [what.prefix] if what.prefix in keys else []
    if seen.more and not seen.rows:
        return []
    covered = [key for key in keys if key.startswith(what.prefix) and key > what.after]
    return [key for key in covered if key <= seen.rows[-1].key] if seen.more else covered


def _wanted(keys: Iterable[bytes], rows: tuple[Row, ...]) -> dict[bytes, tuple[bytes, int] | None]:
    there = {row.key: (row.value, row.revision) for row in rows}
    return {key: there.get(key) for key in keys}
