"""The checker of histories, held to planted violations and to a checker that tries everything."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.interface import Compare, Delete, Operation, Put, Row
from tests.simulation.linearizable import (
    UNKNOWN,
    Call,
    Done,
    NotLinearizable,
    Outcome,
    Read,
    Refused,
    Seen,
    Transact,
    Undecided,
    check,
)

Rows = dict[bytes, tuple[bytes, int]]


class Plain:
    """A table without replicas, one call at a time; the model of the random histories."""

    def __init__(self) -> None:
        self.rows: Rows = {}
        self.revision = 0

    def holds(self, compare: Compare) -> bool:
        revision = self.rows[compare.key][1] if compare.key in self.rows else 0
        return {"==": revision == compare.revision, ">": revision > compare.revision}.get(
            compare.relation, revision < compare.revision
        )

    def do(self, what: Transact | Read, gap: int = 1) -> Outcome:
        if isinstance(what, Read):
            keys = [what.prefix] if what.exact else [key for key in sorted(self.rows) if key.startswith(what.prefix)]
            return Seen(self.page(keys), self.revision)
        if not all(map(self.holds, what.compares)):
            return Refused(self.page(sorted({one.key for one in what.compares})))
        self.revision += gap
        for one in what.operations:
            if isinstance(one, Put):
                self.rows[one.key] = (one.value, self.revision)
            else:
                self.rows.pop(one.key, None)
        return Done(self.revision)

    def page(self, keys: Sequence[bytes]) -> tuple[Row, ...]:
        return tuple(Row(key, *self.rows[key]) for key in keys if key in self.rows)


# A checker that tries everything, to compare with. It reads like the definition and remembers nothing.


def brute(calls: Sequence[Call], revision_max: int) -> bool:
    """Whether any order of the calls, and any revisions of those without, explains every outcome."""

    def place(left: tuple[Call, ...], table: Plain) -> bool:
        needed = [call for call in left if call.outcome is not UNKNOWN]
        if not needed:
            return True
        first_end = min(call.end for call in needed)
        for call in left:
            if call.invoked > first_end:
                continue
            rest = tuple(one for one in left if one is not call)
            for after in outcomes(call, table):
                if place(rest, after):
                    return True
        return False

    def outcomes(call: Call, table: Plain) -> list[Plain]:
        outcome = call.outcome
        if isinstance(outcome, Done):
            numbers: Sequence[int] = (outcome.revision,)
        elif outcome is UNKNOWN:
            numbers = () if isinstance(call.what, Read) else range(table.revision + 1, revision_max + 1)
        else:
            after = Plain()
            after.rows, after.revision = dict(table.rows), table.revision
            if isinstance(outcome, Seen) and outcome.revision is not None:
                if outcome.revision < table.revision:
                    return []
                after.revision = outcome.revision
            found = after.do(call.what)
            return [after] if type(found) is type(outcome) and same_rows(found, outcome) else []
        reached = []
        for number in numbers:
            after = Plain()
            after.rows, after.revision = dict(table.rows), table.revision
            if number > table.revision and after.do(call.what, number - table.revision) == Done(number):
                reached.append(after)
        return reached

    def same_rows(found: Outcome, outcome: Outcome) -> bool:
        assert isinstance(found, Seen | Refused) and isinstance(outcome, Seen | Refused)
        return outcome.rows is None or found.rows == outcome.rows

    return place(tuple(calls), Plain())


# Random histories.


KEYS = (b"a", b"ab", b"b")


def random_request(random: Random, table: Plain, keys: Sequence[bytes], value: bytes) -> Transact | Read:
    if random.random() < 0.4:
        exact = random.random() < 0.5
        return Read(random.choice(keys), exact=True) if exact else Read(random.choice((b"", *keys)))
    compares = []
    for key in random.sample(keys, random.choice((0, 0, 1, 1, 2))):
        revision = table.rows.get(key, (b"", 0))[1] if random.random() < 0.7 else random.randrange(table.revision + 2)
        compares.append(Compare(key, random.choice(("==", "==", ">", "<")), revision))
    chosen = random.sample(keys, random.choice((1, 1, 2)))
    operations: list[Operation] = [Delete(key) if random.random() < 0.3 else Put(key, value) for key in chosen]
    return Transact(tuple(compares), tuple(operations))


def history(
    random: Random, length: int, keys: Sequence[bytes] = KEYS, clients: int = 3, unknown: float = 0.25, values: int = 2
) -> list[Call]:
    """What clients of a table without faults ask and hear; some hear nothing, and some of that never happens."""
    table = Plain()
    free = [0.0] * clients
    calls = []
    for at in range(length):
        client = random.randrange(clients)
        moment = max(free[client], float(at)) + 1
        value = b"%d" % (random.randrange(values) if values else at)
        what = random_request(random, table, keys, value)
        lost = random.random() < unknown
        if lost and random.random() < 0.5:
            outcome: Outcome = UNKNOWN
        else:
            outcome = table.do(what, random.choice((1, 1, 2)))
        invoked = max(free[client] + 0.5, at - random.choice((0, 0, 1, 3)))
        free[client] = returned = moment + random.choice((0, 0.25, 1.5, 3))
        if isinstance(outcome, Seen) and random.random() < 0.5:
            outcome = evolve(outcome, revision=None)
        if isinstance(outcome, Refused) and random.random() < 0.5:
            outcome = Refused()
        # The moment at which it happened lies between its ends, or the table was never asked.
        calls.append(Call(str(client), min(invoked, at), max(returned, at), what, UNKNOWN if lost else outcome))
    return calls


def spoil(random: Random, calls: list[Call]) -> list[Call]:
    """The same history with one outcome changed; it may still be explained."""
    calls = list(calls)
    at = random.randrange(len(calls))
    outcome: Outcome = calls[at].outcome
    if isinstance(outcome, Done):
        outcome = random.choice((Refused(), Done(max(1, outcome.revision + random.choice((-1, 1))))))
    elif isinstance(outcome, Seen):
        rows = [row for row in outcome.rows if random.random() < 0.7]
        if random.random() < 0.5:
            rows = [evolve(row, revision=max(1, row.revision + random.choice((-1, 0, 1)))) for row in rows]
        outcome = Seen(tuple(rows), outcome.revision)
    elif isinstance(outcome, Refused):
        outcome = Done(random.randrange(1, 8))
    elif isinstance(calls[at].what, Transact):
        outcome = random.choice((Refused(), Done(random.randrange(1, 8))))
    calls[at] = evolve(calls[at], outcome=outcome)
    return calls


def passes(calls: Sequence[Call], apart: bool = True) -> bool:
    try:
        check(calls, apart=apart)
    except NotLinearizable:
        return False
    return True


class AgainstBruteForceTests(SynchronousTestCase):
    """Small random histories, good ones and spoiled ones."""

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, 2**32), st.booleans())
    def test_same_verdict(self, seed: int, spoiled: bool) -> None:
        """The checker says what one says that tries every order; looking at keys apart blames nobody wrongly."""
        random = Random(seed)
        calls = history(random, random.randrange(1, 6))
        if spoiled:
            calls = spoil(random, calls)
        numbers = [row.revision for call in calls for row in call.rows] + [call.revision or 0 for call in calls]
        numbers += [one.revision for call in calls for one in call.compares]
        explained = brute(calls, max(numbers) + len(calls))
        assert passes(calls, apart=False) is explained, "\n".join(map(str, calls))
        assert passes(calls) or not explained, "\n".join(map(str, calls))

    def test_both_verdicts_occur(self) -> None:
        """Of the spoiled histories many can still be explained, and many cannot."""
        verdicts = [passes(spoil(Random(seed), history(Random(seed), 5))) for seed in range(200)]
        assert 40 < sum(verdicts) < 160

    def test_long_histories(self) -> None:
        """Some hundred calls, a quarter of them of unknown outcome, are soon explained."""
        for seed in range(4):
            check(history(Random(seed), 300, keys=[b"%d" % one for one in range(6)], clients=6, values=0))

    def test_equal_values(self) -> None:
        """Also where many transactions put the same, so that what was seen says little."""
        for seed in range(4):
            check(history(Random(seed), 150, clients=4, values=2))


def call(invoked: float, returned: float, what: Transact | Read, outcome: Outcome = UNKNOWN, client: str = "c") -> Call:
    return Call(client, invoked, returned, what, outcome)


def put(value: bytes, *compares: Compare, key: bytes = b"k") -> Transact:
    return Transact(compares, (Put(key, value),))


def row(value: bytes, revision: int, key: bytes = b"k") -> Row:
    return Row(key, value, revision)


DELETE = Transact((), (Delete(b"k"),))
READ = Read(b"k", exact=True)
NOTHING = Seen(())


class PlantedTests(SynchronousTestCase):
    """What must not be explained away, and what must."""

    def refused(self, *calls: Call, says: str = "") -> None:
        for apart in (True, False):
            with pytest.raises(NotLinearizable) as caught:
                check(calls, apart=apart)
        assert says in str(caught.value), caught.value

    def test_stale_read(self) -> None:
        """A read does not show a state that had been replaced before it began."""
        before = [call(0, 1, put(b"1"), Done(1)), call(2, 3, put(b"2"), Done(2))]
        self.refused(*before, call(4, 5, READ, Seen((row(b"1", 1),))), says="it saw b'k'=b'1'@1")
        self.refused(*before, call(4, 5, READ, Seen((row(b"1", 1),), 1)), says="although 2 was reached before")
        self.refused(*before, call(4, 5, READ, Seen((row(b"1", 1),), 2)))
        check([*before, call(2.5, 5, READ, Seen((row(b"1", 1),)))])

    def test_reads_go_back(self) -> None:
        """Of two reads, the later one shows no older state, though the write is still under way."""
        write = call(0, 9, put(b"1"), Done(1))
        old, new = call(4, 5, READ, NOTHING), call(1, 2, READ, Seen((row(b"1", 1),)))
        self.refused(write, new, old)
        check([write, evolve(old, invoked=1, returned=2), evolve(new, invoked=4, returned=5)])

    def test_lost_write(self) -> None:
        """What was acknowledged is there, until something else takes its place."""
        write, read = call(0, 1, put(b"1"), Done(1)), call(4, 5, READ, NOTHING)
        self.refused(write, read, says="it saw no b'k', but there is b'k'=b'1'@1")
        check([write, call(2, 3, DELETE), read])

    def test_lost_for_another(self) -> None:
        """A compare that holds although the row it denies was put is a write that was lost."""
        absent = Compare(b"k", "==", 0)
        self.refused(call(0, 1, put(b"1", absent), Done(1)), call(2, 3, put(b"2", absent), Done(2)))

    def test_repeated_effect(self) -> None:
        """A transaction takes effect once: what was deleted behind it does not come back."""
        calls = [call(0, 1, put(b"1"), Done(1)), call(2, 3, DELETE, Done(2))]
        self.refused(*calls, call(4, 5, READ, Seen((row(b"1", 3),))), says="a repeated effect?")
        lost = [call(0, 1, put(b"1")), call(4, 5, READ, Seen((row(b"1", 3),))), call(6, 7, READ, Seen((row(b"1", 4),)))]
        self.refused(*lost, says="a repeated effect?")
        check(lost[:2])

    def test_repeated_delete(self) -> None:
        """A delete that was repeated takes the row of another with it."""
        self.refused(
            call(0, 1, DELETE, Done(1)), call(2, 3, put(b"1"), Done(2)), call(4, 5, READ, Seen((), 3)), says="it saw no"
        )

    def test_out_of_thin_air(self) -> None:
        """Nobody put what was seen, or not at that revision, or only later."""
        self.refused(call(0, 1, READ, Seen((row(b"1", 1),))), says="nobody put b'k'=b'1'@1")
        self.refused(call(0, 1, put(b"1"), Done(1)), call(2, 3, READ, Seen((row(b"1", 2),))), says="nobody put")
        self.refused(call(2, 3, put(b"1"), Done(1)), call(0, 1, READ, Seen((row(b"1", 1),))), says="nobody put")

    def test_conflict_although_it_held(self) -> None:
        """A conflict is answered only if a compare failed at some time between."""
        conflict = call(2, 3, put(b"2", Compare(b"k", "==", 1)), Refused())
        self.refused(call(0, 1, put(b"1"), Done(1)), conflict, says="every compare holds")
        check([call(0, 1, put(b"1"), Done(1)), call(2.5, 2.6, put(b"1"), Done(2)), conflict])
        check([call(0, 1, put(b"1"), Done(1)), call(1, 2, put(b"3")), conflict])
        self.refused(call(2, 3, put(b"2"), Refused()), says="it compared nothing")

    def test_done_although_it_failed(self) -> None:
        """A transaction whose compare fails has no effect."""
        self.refused(call(0, 1, put(b"1", Compare(b"k", ">", 0)), Done(1)), says="its compare does not hold")

    def test_unknown_takes_effect_late(self) -> None:
        """A transaction that nobody answered may show its effect at any time after it began, once."""
        lost = call(0, 1, put(b"1"))
        there = call(8, 9, READ, Seen((row(b"1", 5),)))
        check([lost, call(2, 3, READ, NOTHING), there])
        self.refused(lost, there, call(10, 11, READ, NOTHING))
        self.refused(evolve(lost, invoked=9.5), there)

    def test_half_of_a_transaction(self) -> None:
        """All of a transaction is seen or nothing of it."""
        both = Transact((), (Put(b"k", b"1"), Put(b"l", b"1")))
        all_rows, half = Read(b""), Seen((row(b"1", 1),))
        self.refused(call(0, 1, both, Done(1)), call(2, 3, all_rows, half))
        self.refused(call(0, 1, both), call(2, 3, all_rows, half))
        self.refused(call(0, 9, both, Done(2)), call(1, 2, all_rows, evolve(half, rows=(row(b"1", 2),), revision=2)))

    def test_two_at_one_revision(self) -> None:
        """A revision is one transaction's, and grows with real time, also between keys."""
        one = call(0, 1, put(b"1"), Done(1))
        self.refused(one, call(2, 3, put(b"1", key=b"l"), Done(1)), says="at one revision")
        self.refused(evolve(one, outcome=Done(3)), call(2, 3, put(b"1", key=b"l"), Done(2)), says="before it began")

    def test_pages(self) -> None:
        """A page that ends early says nothing of the rows behind its last one."""
        calls = [call(0, 1, put(b"1", key=key), Done(at)) for at, key in enumerate((b"a", b"b", b"c"), 1)]
        check([*calls, call(2, 3, Read(b""), Seen((row(b"1", 1, b"a"),), 3, more=True))])
        check([*calls, call(2, 3, Read(b"", after=b"b"), Seen((row(b"1", 3, b"c"),), 3))])
        self.refused(*calls, call(2, 3, Read(b""), Seen((row(b"1", 1, b"a"),), 3)))
        self.refused(*calls, call(2, 3, Read(b""), Seen((row(b"1", 2, b"b"),), 3, more=True)))

    def test_initial_rows(self) -> None:
        """A history may begin with a table that holds something."""
        initial = [row(b"0", 4)]
        read = call(0, 1, READ, Seen((row(b"0", 4),), 6))
        check([read, call(2, 3, put(b"1", Compare(b"k", "==", 4)), Done(7))], initial)
        with pytest.raises(NotLinearizable):
            check([call(0, 1, READ, NOTHING)], initial)

    def test_conflict_asked_again(self) -> None:
        """A conflict shows the compared rows as they were then or a little later, but not earlier."""
        calls = [call(0, 1, put(b"1"), Done(1)), call(2, 3, put(b"2"), Done(2)), call(4, 6, put(b"3"), Done(3))]
        conflict = call(4, 7, put(b"4", Compare(b"k", "==", 1)), Refused((row(b"3", 3),)))
        check([*calls, conflict])
        check([*calls, evolve(conflict, outcome=Refused((row(b"", 2),)))])
        self.refused(*calls, evolve(conflict, outcome=Refused((row(b"1", 1),))))

    def test_undecided(self) -> None:
        """Too many orders are told apart from none."""
        calls = [call(0, 1, put(b"%d" % at, Compare(b"k", "<", at))) for at in range(12)]
        calls.append(call(20, 21, put(b"x", Compare(b"k", "<", 0)), Done(100)))
        with pytest.raises(Undecided):
            check(calls, states_max=1000)

    def test_nonsense(self) -> None:
        """An outcome that such a call cannot have is the caller's mistake."""
        with pytest.raises(ValueError):
            check([call(0, 1, READ, Done(1))])

    def test_error_names_the_calls(self) -> None:
        """The error tells the order so far, the table then, and what could not follow."""
        with pytest.raises(NotLinearizable) as caught:
            check(
                [
                    call(0, 1, put(b"1"), Done(1), "ann"),
                    call(2, 3, READ, Seen((row(b"1", 1),), 1), "bob"),
                    call(4, 5, READ, Seen((), 1), "cid"),
                ]
            )
        assert str(caught.value) == (
            "no order explains what happened to b'k'.\n"
            "The longest that was found:\n"
            "  client ann at 0: put b'k'=b'1'; done at 1, revision 1\n"
            "  client bob at 2: read the row b'k'; answered at 3, revision 1: b'k'=b'1'@1\n"
            "The table holds then: b'k'=b'1'@1. What must come next, and cannot:\n"
            "  client cid at 4: read the row b'k'; answered at 5, revision 1: no rows\n"
            "    it saw no b'k', but there is b'k'=b'1'@1"
        )
