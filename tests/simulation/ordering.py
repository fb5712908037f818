"""The search for an order that explains a history: Wing and Gong's, with Lowe's memory of where it has been.

From each state every step is tried that may come next in real time and that the table allows. A state is what has
been placed so far and what the table holds then; none is looked at twice, nor one that differs from another only in
having used up more. Steps whose revision is known are in one line from the beginning, and what only looks is placed
as soon as it fits, since it changes nothing: so there is a choice only of where transactions of unknown outcome took
effect.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from math import inf

from attrs import field, frozen

from chunkfarm.table.interface import Compare, Operation, Put

STATES_MAX = 100_000
"""Some ten seconds. A history that needs more has too many unknown transactions of the same keys."""
TOLD_MAX = 12
"""Steps of the longest order that an error shows."""

Value = tuple[bytes, int] | None
"""A row's value and revision; None: there is no such row."""
State = tuple[Value, ...]


class NotLinearizable(AssertionError):
    """No order explains the history; the text says what has no explanation."""


class Undecided(Exception):
    """There are too many orders to try them all."""


@frozen(eq=False)
class Step:
    """One call, as far as it concerns these keys.

    `kind` is `effect` (took effect at `number`), `read` (of the table at revision `number`), `maybe` (took effect
    at an unknown revision, or never), `refused` (a compare did not hold) or `look` (rows seen, revision unknown).
    """

    text: str
    kind: str
    invoked: float
    returned: float
    number: int | None = None
    compares: tuple[Compare, ...] = ()
    operations: tuple[Operation, ...] = ()
    wants: Mapping[bytes, Value] = field(factory=dict)
    loose: frozenset[bytes] = frozenset()
    """Keys of which only the revision is compared."""
    after: Step | None = None
    points: frozenset[int] = frozenset()
    """Revisions at which its rows may have been seen."""


@frozen(eq=False)
class _Node:
    """A state of the search, and the way to it."""

    line: int
    """How many steps of the line have been placed."""
    maybes: int
    """Which transactions of unknown outcome have been placed, one bit each."""
    looks: int
    """The same for what only looks."""
    state: State
    floor: int
    """The highest revision so far."""
    step: Step | None = None
    parent: _Node | None = None

    @property
    def placed(self) -> int:
        return self.line + self.looks.bit_count()


class Ordering:
    """The search for one part of a history; `taken` are revisions of which it is known whose they can be."""

    def __init__(
        self, keys: Sequence[bytes], initial: State, steps: Sequence[Step], taken: frozenset[int], states_max: int
    ) -> None:
        self._keys = list(keys)
        self._position = {key: at for at, key in enumerate(keys)}
        self._initial = initial
        self._states_max = states_max
        known = [step for step in steps if step.number is not None]
        self._line = sorted(known, key=lambda step: (step.number, step.kind == "read", step.invoked))
        self._looks = [step for step in steps if step.kind in ("refused", "look")]
        self._maybes = [step for step in steps if step.kind == "maybe"]
        self._bit_of = {step: 1 << at for at, step in enumerate(self._looks)}
        self._points = [self._points_of(step, taken) for step in self._maybes]
        self._marks = self._told_apart()
        self._ends = [inf]
        """The first end of all steps of the line from each one on."""
        for step in reversed(self._line):
            self._ends.append(min(step.returned, self._ends[-1]))
        self._ends.reverse()

    def find(self) -> None:
        """Raise `NotLinearizable` if there is no order, `Undecided` if there are too many to try."""
        first = max((value[1] for value in self._initial if value is not None), default=0)
        begin = self._look_around(_Node(0, 0, 0, self._initial, first))
        been: dict[tuple[int, int, State], list[tuple[int, int]]] = {}
        count = 0
        stack = [begin]
        farthest = begin
        while stack:
            node = stack.pop()
            count += 1
            if count > self._states_max:
                raise Undecided(f"more than {self._states_max} states of {self._keys}")
            used = been.setdefault((node.line, node.looks, self._seen_as(node.state)), [])
            if any(maybes & ~node.maybes == 0 and floor <= node.floor for maybes, floor in used):
                continue
            used.append((node.maybes, node.floor))
            if node.line == len(self._line) and node.looks == (1 << len(self._looks)) - 1:
                return
            if node.placed > farthest.placed:
                farthest = node
            # What is tried first goes on top: the known before the unknown.
            stack += reversed([self._look_around(one) for one in self._followers(node)])
        raise NotLinearizable(self._explain(farthest))

    # From one state to the next.

    def _frontier(self, node: _Node) -> float:
        """Nothing that began after this may come next: something that has not been placed had ended by then."""
        ends = (step.returned for step in self._looks if not node.looks & self._bit_of[step])
        return min(self._ends[node.line], min(ends, default=inf))

    def _look_around(self, node: _Node) -> _Node:
        """Place all that only looks, and fits here; each may let another one come."""
        while True:
            frontier = self._frontier(node)
            found = next((step for step in self._looks if self._fits(step, node, frontier)), None)
            if found is None:
                return node
            looks = node.looks | self._bit_of[found]
            node = _Node(node.line, node.maybes, looks, node.state, node.floor, found, node)

    def _fits(self, step: Step, node: _Node, frontier: float) -> bool:
        if node.looks & self._bit_of[step] or step.invoked > frontier:
            return False
        if step.after is not None and not node.looks & self._bit_of[step.after]:
            return False
        return not self._why_not(step, node)

    def _followers(self, node: _Node) -> Iterator[_Node]:
        frontier = self._frontier(node)
        limit = inf
        if node.line < len(self._line):
            step = self._line[node.line]
            assert step.number is not None
            limit = step.number if step.kind == "read" else step.number - 1
            if step.invoked <= frontier and not self._why_not(step, node):
                state = self._after(step, node.state, step.number)
                yield _Node(node.line + 1, node.maybes, node.looks, state, step.number, step, node)
        for at, step in enumerate(self._maybes):
            if node.maybes >> at & 1 or step.invoked > frontier or self._why_not(step, node):
                continue
            # Of the revisions between which nothing can tell a difference the lowest leaves the most room.
            numbers = {node.floor + 1, *(point for point in self._points[at] if point > node.floor)}
            for number in sorted(numbers):
                if number <= limit:
                    state = self._after(step, node.state, number)
                    yield _Node(node.line, node.maybes | 1 << at, node.looks, state, number, step, node)

    def _after(self, step: Step, state: State, number: int) -> State:
        if not step.operations:
            return state
        rows = list(state)
        for one in step.operations:
            rows[self._position[one.key]] = (one.value, number) if isinstance(one, Put) else None
        return tuple(rows)

    def _points_of(self, maybe: Step, taken: frozenset[int]) -> frozenset[int]:
        """Revisions that somebody could tell from those below, had this transaction taken them."""
        points = set(maybe.points)
        puts = {one.key for one in maybe.operations if isinstance(one, Put)}
        for step in (*self._line, *self._looks, *self._maybes):
            for one in step.compares:
                if one.key not in puts:
                    continue
                if one.relation == ">":
                    points.add(one.revision + 1)
                elif one.relation == "<" or one.revision not in taken:
                    points.add(one.revision)
        return frozenset(points)

    def _told_apart(self) -> list[list[int]]:
        """For each key the revisions that anything still to come is compared with."""
        steps = (*self._line, *self._looks, *self._maybes)
        numbers: dict[bytes, set[int]] = {key: set() for key in self._keys}
        for step in steps:
            for one in step.compares:
                numbers[one.key].add(one.revision)
            for key, wanted in step.wants.items():
                if wanted is not None:
                    numbers[key].add(wanted[1])
        return [sorted(numbers[key]) for key in self._keys]

    def _seen_as(self, state: State) -> State:
        """The same state with every revision replaced by what can be told of it."""
        return tuple(
            None if value is None else (value[0], bisect_left(marks, value[1]) + bisect_right(marks, value[1]))
            for value, marks in zip(state, self._marks, strict=True)
        )

    # Whether a step fits.

    def _why_not(self, step: Step, node: _Node) -> str:
        """Why this step cannot come here, whatever the time; empty if it can."""
        if step.kind == "refused":
            return "" if any(self._fails(one, node.state) for one in step.compares) else "every compare holds"
        if step.wants:
            return self._not_seen(step, node.state)
        failed = [one for one in step.compares if self._fails(one, node.state)]
        if failed:
            return "its compare does not hold, for " + self._there(failed[0].key, node.state)
        return ""

    def _fails(self, compare: Compare, state: State) -> bool:
        value = state[self._position[compare.key]]
        revision = 0 if value is None else value[1]
        if compare.relation == "==":
            return revision != compare.revision
        return revision <= compare.revision if compare.relation == ">" else revision >= compare.revision

    def _not_seen(self, step: Step, state: State) -> str:
        for key, wanted in step.wants.items():
            there = state[self._position[key]]
            if there == wanted:
                continue
            loosely = key in step.loose and there is not None and wanted is not None and there[1] == wanted[1]
            if not loosely:
                what = row_text(key, wanted) if wanted is not None else f"no {key!r}"
                return f"it saw {what}, but {self._there(key, state)}"
        return ""

    def _there(self, key: bytes, state: State) -> str:
        value = state[self._position[key]]
        return f"there is no {key!r}" if value is None else f"there is {row_text(key, value)}"

    # The error.

    def _explain(self, node: _Node) -> str:
        """The longest order that was found, and why nothing can follow it."""
        way: list[Step] = []
        at: _Node | None = node
        while at is not None:
            if at.step is not None:
                way.append(at.step)
            at = at.parent
        way.reverse()
        lines = [f"no order explains what happened to {', '.join(map(repr, self._keys))}."]
        if way:
            left_out = len(way) - TOLD_MAX
            lines.append("The longest that was found:" + (f" ({left_out} more)" if left_out > 0 else ""))
            lines += [f"  {step.text}" for step in way[-TOLD_MAX:]]
        there = [row_text(key, value) for key, value in zip(self._keys, node.state, strict=True) if value is not None]
        lines.append(f"The table holds then: {', '.join(there) or 'nothing'}. What must come next, and cannot:")
        frontier = self._frontier(node)
        left = [*self._line[node.line :], *(step for step in self._looks if not node.looks & self._bit_of[step])]
        for step in [step for step in left if step.invoked <= frontier][:TOLD_MAX]:
            lines.append(f"  {step.text}\n    {self._why_not(step, node) or 'others must come before it'}")
        return "\n".join(lines)


def row_text(key: bytes, value: tuple[bytes, int]) -> str:
    """A row for people."""
    return f"{key!r}={value[0]!r}@{value[1]}"
