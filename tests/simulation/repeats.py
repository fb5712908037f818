"""Clients whose requests are lost, late and sent again, before the real sessions and the real state machine.

Consensus is played by one list: what arrives is appended and applied (`table.rows`, on SQLite in memory). What is
real is what makes a repeat harmless: the numbers of `table.sessions`, the answers that the rows remember, and their
way through a snapshot. The history is held to one order by `linearizable`.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable
from random import Random
from typing import Any

from attrs import evolve, frozen
from twisted.internet.defer import Deferred

from chunkfarm.table.codec import Answer, AnswerKind, OpenSession, Transaction, encode_request
from chunkfarm.table.interface import Compare, Delete, Operation, Put
from chunkfarm.table.records import Entry, EntryKind
from chunkfarm.table.rows import ROWS_SCHEMA, Applied, apply_entry, insert_record, read_rows, records
from chunkfarm.table.sessions import Session
from tests.simulation.checks import Violation
from tests.simulation.linearizable import UNKNOWN, Call, Done, NotLinearizable, Outcome, Read, Refused, Seen, Transact
from tests.simulation.linearizable import check as check_history

KEYS = (b"a", b"b")
CLIENTS = 3
TRANSACTIONS = 15
"""Of each client."""
AGAIN_AFTER = 20
"""Units of time until a client sends its request again."""
TRIES_MAX = 4


@frozen
class RepeatRules:
    """What is tried out: the real rules, or one of them broken."""

    apply: Callable[[sqlite3.Connection, Entry], Applied] = apply_entry
    restores: Callable[[Any], bool] = lambda record: True
    """Whether a record of a snapshot arrives."""
    renumbers: bool = False
    """Whether what is sent again has a number of its own."""


class RepeatSimulation:
    """One run; `run()` raises `Violation`."""

    def __init__(self, seed: int, rules: RepeatRules | None = None) -> None:
        self.calls: list[Call] = []
        self._rules = rules or RepeatRules()
        self._random = Random(seed)
        self._now = 0.0
        self._index = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._connection = self._empty()
        for number in range(CLIENTS):
            _Client(self, f"client {number}", self._random)

    def _empty(self) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:")
        connection.executescript(ROWS_SCHEMA)
        return connection

    def run(self) -> None:
        while self._queue:
            self._now, _, call = heapq.heappop(self._queue)
            self._now += self._count * 1e-7
            call()
            if self._random.random() < 0.03:
                self._replace()
        self._connection.close()
        try:
            check_history(self.calls)
        except NotLinearizable as error:
            raise Violation(f"once: {error}") from error

    def later(self, delay: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self._now + delay, self._count, call))

    def asked(self, client: str, what: Transact | Read) -> int:
        self.later(0, lambda: None)
        self.calls.append(Call(client, self._now + self._count * 1e-7, 0.0, what, UNKNOWN))
        return len(self.calls) - 1

    def answered(self, at: int, outcome: Outcome) -> None:
        self._count += 1
        self.calls[at] = evolve(self.calls[at], returned=self._now + self._count * 1e-7, outcome=outcome)

    # The farm.

    def append(self, data: bytes) -> Answer:
        """An entry is committed and applied."""
        self._index += 1
        return self._rules.apply(self._connection, Entry(1, self._index, EntryKind.DATA, data)).answer

    def send(self, data: bytes, told: Callable[[Answer], None]) -> None:
        """The request may be lost, late or doubled on its way, and so may its answer."""
        for _ in range(self._random.choice((0, 1, 1, 1, 2))):
            self.later(self._random.choice((1, 2, 5, 70)), lambda: self._arrive(data, told))

    def _arrive(self, data: bytes, told: Callable[[Answer], None]) -> None:
        answer = self.append(data)
        if self._random.random() < 0.6:
            self.later(self._random.choice((1, 2, 30)), lambda: told(answer))

    def read(self) -> Seen:
        page = read_rows(self._connection, self._index, b"", b"", 1000)
        return Seen(page.rows, page.revision)

    def _replace(self) -> None:
        """A server that has everything from a snapshot goes on."""
        connection = self._empty()
        for record in records(self._connection):
            if self._rules.restores(record):
                insert_record(connection, record)
        self._connection.close()
        self._connection = connection


class _Client:
    """One transaction after the other, each sent until it is answered."""

    def __init__(self, farm: RepeatSimulation, name: str, random: Random) -> None:
        self._farm, self._name, self._random = farm, name, random
        self._left = TRANSACTIONS
        self._values = 0
        opened = farm.append(encode_request(OpenSession(name)))
        self._session = Session(name, opened.revision)
        farm.later(random.randrange(20), self._begin)

    def _begin(self) -> None:
        if not self._left:
            return
        self._left -= 1
        call = self._farm.asked(self._name, Read(b""))
        self._farm.answered(call, self._farm.read())
        self._session.take().addCallback(self._transact)

    def _transact(self, number: int) -> None:
        what = self._draw()
        call = self._farm.asked(self._name, what)
        transaction = Transaction(
            self._session.client,
            self._session.epoch,
            number,
            self._session.acknowledged,
            what.compares,
            what.operations,
        )
        self._try(number, transaction, call, TRIES_MAX)

    def _draw(self) -> Transact:
        random = self._random
        self._values += 1
        value = f"{self._name} {self._values}".encode()
        key = random.choice(KEYS)
        compares = (Compare(key, random.choice(("==", ">")), 0),) if random.random() < 0.4 else ()
        operation: Operation = Delete(key) if random.random() < 0.4 else Put(key, value)
        return Transact(compares, (operation,))

    def _try(self, number: int, transaction: Transaction, call: int, left: int) -> None:
        if number not in self._session._taken:
            return
        if not left:
            self._end(number)
            return
        if self._farm._rules.renumbers and left < TRIES_MAX:
            other: list[int] = []
            taken: Deferred[int] = self._session.take()
            taken.addCallback(other.append)
            transaction = evolve(transaction, number=other[0])
        data = encode_request(transaction)
        self._farm.send(data, lambda answer: self._told(number, call, answer))
        self._farm.later(AGAIN_AFTER, lambda: self._try(number, transaction, call, left - 1))

    def _told(self, number: int, call: int, answer: Answer) -> None:
        if number not in self._session._taken:
            return
        if answer.kind is AnswerKind.DONE:
            self._farm.answered(call, Done(answer.revision))
        elif answer.kind is AnswerKind.CONFLICT:
            self._farm.answered(call, Refused(answer.rows))
        else:
            raise Violation(f"sessions: {self._name} was told {answer.kind.name} in a session that is open")
        self._end(number)

    def _end(self, number: int) -> None:
        self._session.give_back(number)
        self._farm.later(self._random.randrange(1, 10), self._begin)
