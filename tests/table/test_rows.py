"""The state machine: what a log of transactions makes of the rows, the same on every server."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table import rows
from chunkfarm.table.codec import (
    PAGE_BYTES_MAX,
    Answer,
    AnswerKind,
    OpenSession,
    Request,
    Transaction,
    encode_answer,
    encode_page,
    encode_request,
)
from chunkfarm.table.interface import Compare, Delete, Operation, Page, Put, Row
from chunkfarm.table.records import Entry, EntryKind


class Machine:
    """A state machine in memory, fed with one request after the other."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.executescript(rows.ROWS_SCHEMA)
        self.index = 0
        self.entries: list[Entry] = []

    def entry(self, data: bytes, kind: EntryKind = EntryKind.DATA) -> rows.Applied:
        self.index += 1
        entry = Entry(1, self.index, kind, data)
        self.entries.append(entry)
        return rows.apply_entry(self.connection, entry)

    def do(self, request: Request) -> Answer:
        return self.entry(encode_request(request)).answer

    def open(self, client: str = "c") -> int:
        answer = self.do(OpenSession(client))
        assert answer.kind is AnswerKind.OPENED
        return answer.revision

    def read(self, prefix: bytes = b"", after: bytes = b"", limit: int = 1000, secrets: bool = True) -> Page:
        return rows.read_rows(self.connection, self.index, prefix, after, limit, secrets=secrets)

    def keys(self, prefix: bytes = b"") -> list[bytes]:
        return [row.key for row in self.read(prefix).rows]


class TransactionTests(SynchronousTestCase):
    """Compares, puts and deletes."""

    def machine(self) -> Machine:
        machine = Machine()
        self.addCleanup(machine.connection.close)
        self.epoch = machine.open()
        self.number = 0
        return machine

    def transact(
        self, machine: Machine, compares: Sequence[Compare] = (), operations: Sequence[Operation] = ()
    ) -> Answer:
        self.number += 1
        return machine.do(
            Transaction("c", self.epoch, self.number, self.number - 1, tuple(compares), tuple(operations))
        )

    def test_put_and_delete(self) -> None:
        """A row has the revision of the transaction that last changed it."""
        machine = self.machine()
        first = self.transact(machine, operations=[Put(b"a", b"1"), Put(b"b", b"1")])
        second = self.transact(machine, operations=[Put(b"a", b"2"), Delete(b"b"), Delete(b"nothing")])
        assert (first.kind, first.revision, second.kind, second.revision) == (AnswerKind.DONE, 2, AnswerKind.DONE, 3)
        assert machine.read().rows == (Row(b"a", b"2", 3),)

    def test_what_was_there(self) -> None:
        """A transaction is told the revisions of what it has changed and not compared; a repeat is not."""
        machine = self.machine()
        first = self.transact(machine, operations=[Put(b"a", b"1")])
        second = self.transact(machine, operations=[Put(b"a", b"2"), Delete(b"b")])
        assert first.rows == (Row(b"a", b"", 0),)
        assert second.rows == (Row(b"a", b"", first.revision), Row(b"b", b"", 0))
        self.number -= 1
        assert self.transact(machine, operations=[Put(b"a", b"2"), Delete(b"b")]) == Answer(AnswerKind.DONE, 3)
        third = self.transact(machine, [Compare(b"a", ">", 0)], [Put(b"a", b"3"), Put(b"c", b"")])
        assert third.rows == (Row(b"c", b"", 0),)

    def test_compares(self) -> None:
        """A compare holds for the row as it is before the transaction; an absent row is at revision 0."""
        machine = self.machine()
        revision = self.transact(machine, operations=[Put(b"a", b"")]).revision
        for key, relation, number, holds in (
            (b"a", "==", revision, True),
            (b"a", "==", revision - 1, False),
            (b"a", ">", revision - 1, True),
            (b"a", ">", revision, False),
            (b"a", "<", revision + 1, True),
            (b"a", "<", revision, False),
            (b"none", "==", 0, True),
            (b"none", "==", 1, False),
            (b"none", "<", 1, True),
            (b"none", ">", 0, False),
        ):
            answer = self.transact(machine, [Compare(key, relation, number)])
            assert (answer.kind is AnswerKind.DONE) == holds, (key, relation, number)

    def test_conflict(self) -> None:
        """One compare that fails undoes all, and the compared rows come back; absent ones do not."""
        machine = self.machine()
        revision = self.transact(machine, operations=[Put(b"a", b"x")]).revision
        answer = self.transact(
            machine,
            [Compare(b"a", "==", revision), Compare(b"none", "==", 7), Compare(b"a", ">", 0)],
            [Put(b"b", b"")],
        )
        assert answer == Answer(AnswerKind.CONFLICT, 3, (Row(b"a", b"x", revision),))
        assert machine.keys() == [b"a"]

    def test_large_conflict(self) -> None:
        """The rows of a conflict fit one answer, if need be without their values."""
        machine = self.machine()
        compares = []
        for n in range(40):
            key = b"%02d" % n + bytes(1000)
            self.transact(machine, operations=[Put(key, bytes(16 * 1024))])
            compares.append(Compare(key, "==", 0))
        answer = self.transact(machine, compares)
        assert len(answer.rows) == 40
        assert len(encode_answer(answer)) <= PAGE_BYTES_MAX + 100
        assert {len(row.value) for row in answer.rows} == {0} or answer.rows[0].value

    def test_garbage_in_the_log(self) -> None:
        """An entry that is no transaction changes nothing, and is no reason to stop."""
        machine = self.machine()
        before = rows.digest_of_state(machine.connection)
        assert machine.entry(b"\x11garbage").answer.kind is AnswerKind.INVALID
        assert machine.entry(b"", EntryKind.EMPTY).operations == ()
        assert rows.digest_of_state(machine.connection) == before


class ReadTests(SynchronousTestCase):
    """Pages of rows in key order."""

    def machine(self, *keys: bytes, value: bytes = b"") -> Machine:
        machine = Machine()
        self.addCleanup(machine.connection.close)
        epoch = machine.open()
        for number, key in enumerate(keys, 1):
            machine.do(Transaction("c", epoch, number, number - 1, (), (Put(key, value),)))
        return machine

    def test_prefix_after_and_limit(self) -> None:
        """A page begins behind `after`, ends with the prefix or the limit, and says whether more follows."""
        machine = self.machine(b"a/1", b"a/2", b"a/3", b"a0", b"b")
        page = machine.read(b"a/", limit=2)
        assert [row.key for row in page.rows] == [b"a/1", b"a/2"] and page.more
        page = machine.read(b"a/", after=b"a/2", limit=2)
        assert [row.key for row in page.rows] == [b"a/3"] and not page.more
        assert page.revision == machine.index
        assert machine.read(b"a/", limit=0) == Page(machine.index, (), more=True)

    def test_the_last_byte(self) -> None:
        """A prefix may end in 0xff, or be nothing else."""
        machine = self.machine(b"a\xff1", b"a\xff\xff2", b"b", b"\xff", b"\xff\xff1")
        assert machine.keys(b"a\xff") == [b"a\xff1", b"a\xff\xff2"]
        assert machine.keys(b"\xff") == [b"\xff", b"\xff\xff1"]
        assert machine.keys(b"\xff\xff") == [b"\xff\xff1"]

    def test_a_page_fits_a_payload(self) -> None:
        """Large rows end a page before its limit, and the pages together hold every row once."""
        machine = self.machine(*(b"%02d" % n for n in range(20)), value=bytes(16 * 1024))
        seen: list[bytes] = []
        after, more = b"", True
        while more:
            page = machine.read(after=after)
            assert page.rows and len(encode_page(page)) <= PAGE_BYTES_MAX + 100
            seen += [row.key for row in page.rows]
            after, more = seen[-1], page.more
        assert seen == [b"%02d" % n for n in range(20)]

    def test_without_secrets(self) -> None:
        """For some there are no secret rows, and their pages lead on all the same."""
        machine = self.machine(b"s", b"secret/1", b"secret/2", b"secret0", b"servers/1")
        page = machine.read(b"s", limit=2, secrets=False)
        assert [row.key for row in page.rows] == [b"s", b"secret0"] and page.more
        assert not machine.read(b"secret/", secrets=False).rows


class SessionTests(SynchronousTestCase):
    """A repeated transaction gets its answer again, and has no second effect."""

    def machine(self) -> Machine:
        machine = Machine()
        self.addCleanup(machine.connection.close)
        return machine

    def test_repeat(self) -> None:
        """The second copy of a removal does not remove what another client has put there since."""
        machine = self.machine()
        mine, theirs = machine.open("mine"), machine.open("theirs")
        machine.do(Transaction("mine", mine, 1, 0, (), (Put(b"f", b"old"),)))
        removal = Transaction("mine", mine, 2, 1, (), (Delete(b"f"),))
        first = machine.do(removal)
        machine.do(Transaction("theirs", theirs, 1, 0, (), (Put(b"f", b"new"),)))
        assert machine.do(removal).revision == first.revision
        assert machine.read().rows[0].value == b"new"

    def test_repeated_conflict(self) -> None:
        """A transaction that failed once has failed, even if its compares would hold by now."""
        machine = self.machine()
        epoch = machine.open()
        failing = Transaction("c", epoch, 1, 0, (Compare(b"a", ">", 0),), (Put(b"b", b""),))
        assert machine.do(failing).kind is AnswerKind.CONFLICT
        machine.do(Transaction("c", epoch, 2, 0, (), (Put(b"a", b""),)))
        assert machine.do(failing).kind is AnswerKind.CONFLICT
        assert machine.keys() == [b"a"]

    def test_out_of_order(self) -> None:
        """Many may be under way at once, and commit in any order."""
        machine = self.machine()
        epoch = machine.open()
        three = Transaction("c", epoch, 3, 0, (), (Put(b"3", b""),))
        one = Transaction("c", epoch, 1, 0, (), (Put(b"1", b""),))
        answers = {machine.do(three).revision, machine.do(one).revision}
        assert {machine.do(one).revision, machine.do(three).revision} == answers
        assert machine.read().rows == (Row(b"1", b"", 3), Row(b"3", b"", 2))

    def test_acknowledged(self) -> None:
        """Answers that have arrived are forgotten, and a copy that comes that late changes nothing."""
        machine = self.machine()
        epoch = machine.open()
        late = Transaction("c", epoch, 1, 0, (), (Put(b"a", b"1"),))
        machine.do(late)
        machine.do(Transaction("c", epoch, 2, 1, (), (Put(b"a", b"2"),)))
        assert machine.do(late).kind is AnswerKind.EXPIRED
        assert machine.read().rows[0].value == b"2"
        assert machine.connection.execute("SELECT count(*) FROM answers").fetchone() == (1,)

    def test_a_copy_that_arrives_after_its_client_gave_up(self) -> None:
        """A number that was given back before it ever arrived takes no effect later."""
        machine = self.machine()
        epoch = machine.open()
        machine.do(Transaction("c", epoch, 2, 1, (), ()))
        assert machine.do(Transaction("c", epoch, 1, 0, (), (Put(b"a", b""),))).kind is AnswerKind.EXPIRED
        assert machine.keys() == []

    def test_too_many_under_way(self) -> None:
        """A client cannot make the table remember without end."""
        machine = self.machine()
        epoch = machine.open()
        number = rows.ANSWERS_MAX + 1
        assert machine.do(Transaction("c", epoch, number, 0, (), ())).kind is AnswerKind.INVALID
        assert machine.do(Transaction("c", epoch, number - 1, 0, (), ())).kind is AnswerKind.DONE
        assert machine.do(Transaction("c", epoch, 5, 5, (), ())).kind is AnswerKind.INVALID

    def test_opened_twice(self) -> None:
        """A repeated opening finds the session of the first."""
        machine = self.machine()
        assert machine.open() == machine.open() == 1

    @patch.object(rows, "SESSIONS_MAX", 3)
    def test_forgotten(self) -> None:
        """The sessions that were used longest ago are forgotten; their late copies are told from new ones."""
        machine = self.machine()
        epochs = {client: machine.open(client) for client in "abc"}
        old = Transaction("b", epochs["b"], 1, 0, (), (Put(b"b", b""),))
        machine.do(old)
        machine.do(Transaction("a", epochs["a"], 1, 0, (), ()))
        machine.open("d")
        assert machine.do(Transaction("c", epochs["c"], 1, 0, (), (Put(b"c", b""),))).kind is AnswerKind.EXPIRED
        machine.do(Transaction("a", epochs["a"], 2, 1, (), ()))
        machine.open("e")
        # Now b is forgotten. It opens again, and a copy of its old transaction has no second effect.
        again = machine.open("b")
        assert again > epochs["b"]
        assert machine.do(old).kind is AnswerKind.EXPIRED
        assert machine.connection.execute("SELECT count(*) FROM sessions").fetchone() == (3,)
        clients = "SELECT count(*) FROM answers WHERE client NOT IN (SELECT client FROM sessions)"
        assert machine.connection.execute(clients).fetchone() == (0,)

    @settings(max_examples=60)
    @given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 4), st.integers(0, 6)), max_size=60))
    def test_deterministic(self, steps: list[tuple[str, int, int]]) -> None:
        """Two servers that apply the same log are the same in every byte, sessions and all."""
        with patch.object(rows, "SESSIONS_MAX", 3):
            machine = Machine()
            epochs: dict[str, int] = {}
            for client, back, what in steps:
                if what == 0 or client not in epochs:
                    epochs[client] = machine.open(client)
                    continue
                number = max(1, what - back)
                machine.do(
                    Transaction(
                        client,
                        epochs[client],
                        number,
                        max(0, number - 3),
                        (Compare(b"k", "<", max(0, machine.index - back)),),
                        (Put(b"k%d" % (what % 3), client.encode()), Delete(b"d")),
                    )
                )
            other = Machine()
            together = rows.StateMachine(other.connection)
            for entry in machine.entries:
                # As a server does that applies many entries with one commit, and now and then loses one.
                together.apply(entry)
                if entry.index % 3 == 0:
                    together.write()
                if entry.index % 9 == 0:
                    together.forget()
            together.write()
            assert rows.digest_of_state(other.connection) == rows.digest_of_state(machine.connection)
            machine.connection.close()
            other.connection.close()
