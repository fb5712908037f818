"""What a server makes of other lines of the farm's history, and what it remembers of them."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from random import Random
from typing import Any
from unittest.mock import patch

from attrs import evolve
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.history import (
    ASK_INTERVAL,
    DOWN_INTERVAL,
    NOBODY_TEACHES,
    NOTE,
    ROUND,
    History,
    HistoryError,
    OwnLine,
)
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import EPOCH_KEY, GENERATION_KEY, LINES_KEY, Server
from chunkfarm.survey import Told
from chunkfarm.table.driver import FULL_RETRY
from chunkfarm.table.interface import Page, Put
from chunkfarm.table.lines import Fork, Past
from chunkfarm.table.records import Configuration
from tests.builders import make_server, server_id
from tests.memory_table import MemoryTable

ME, OTHER, THIRD = server_id(1), server_id(2), server_id(3)
X, Y = Fork("1" * 32, 10, 2), Fork("2" * 32, 20, 5)


class FakeTable(MemoryTable):
    """A journal of ten entries of term 2, of which the tenth is known to be committed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_leader = self.has_quorum = self.committed_this_term = False
        self.last_index = 10
        self.terms = [2] * 10
        self.committed = 10
        self.configuration = Configuration((ME, OTHER, THIRD))
        self.configuration_index = 1
        self.withheld: list[tuple[str, Callable[[], bool]]] = []

    @property
    def past(self) -> Past:
        def term_at(index: int) -> int | None:
            return self.terms[index - 1] if 0 < index <= len(self.terms) else None

        return Past(term=self.terms[-1] if self.terms else 0, committed=self.committed, term_at=term_at)

    @property
    def journal_position(self) -> tuple[int, int]:
        return self.terms[-1], self.last_index

    def withhold(self, reason: str, until: Callable[[], bool]) -> None:
        self.withheld.append((reason, until))


class FakeNotes:
    """The journal's notes, and the one row that is looked at."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self.lines: bytes | None = None

    def note(self, name: str) -> str:
        return self.notes.get(name, "")

    def set_note(self, name: str, value: str) -> None:
        self.notes[name] = value

    def read(self, prefix: bytes, after: bytes, limit: int) -> Page:
        table = MemoryTable()
        if self.lines is not None:
            table.put(LINES_KEY, self.lines)
        return Page(table.revision, tuple(table.rows.values()), False)


def row(*chain: Fork) -> bytes:
    return json.dumps([fork.as_item() for fork in chain]).encode()


class HistoryTests(SynchronousTestCase):
    """One server, which meets others."""

    def make_history(self, notes: FakeNotes | None = None, table: FakeTable | None = None) -> History:
        self.clock = Clock()
        self.table, self.notes = table or FakeTable(), notes or FakeNotes()
        self.answers: dict[str, Told] = {}
        self.asked: list[tuple[str, int]] = []
        self.rows: tuple[Server, ...] = tuple(make_server(number) for number in (1, 2, 3))
        self.changes = 0
        self.learned: list[int] = []
        self.asking: Deferred[Told] | None = None
        self.fatal: list[Failure] = []
        self.writing: Deferred[None] | None = None
        history = History(
            server_id=ME,
            table=self.table,
            notes=self.notes,
            run_in_thread=self.run_in_thread,
            ask=self.ask,
            servers=lambda: self.rows,
            generation=lambda: 7,
            on_change=self.changed,
            on_learned=self.learned.append,
            on_fatal=self.fatal.append,
            clock=self.clock,
            random=Random(1),
        )
        history.load()
        history.start()
        self.addCleanup(history.stop)
        return history

    def run_in_thread(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        if self.writing is not None:
            written: Deferred[Any] = Deferred()
            self.writing.addCallbacks(lambda _: written.callback(function(*args, **kwargs)), written.errback)
            return written
        return maybeDeferred(function, *args, **kwargs)

    def ask(self, server: str, index: int) -> Deferred[Told]:
        self.asked.append((server, index))
        if self.asking is not None:
            return self.asking
        answer = self.answers.get(server)
        return fail(LinkFailed("refused")) if answer is None else succeed(answer)

    def changed(self) -> None:
        self.changes += 1

    def told(self, *chain: Fork, **more: Any) -> Told:
        values: dict[str, Any] = {"server": OTHER, "name": "s2", "state": "serving", "chain": chain, **more}
        return Told(**values)

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([ROUND] * round(seconds / ROUND))

    def restarted(self) -> History:
        return self.make_history(self.notes, FakeTable())

    def test_the_same_line(self) -> None:
        """Servers of one line do as they are asked, and nobody asks anything."""
        history = self.make_history()
        assert history.said == ""
        assert history.met(OTHER, "")
        assert self.asked == []

    def test_no_history_yet(self) -> None:
        """A server that has no table says no line, so that whoever has one answers it."""
        table = FakeTable()
        table.last_index, table.terms, table.committed = 0, [], 0
        history = self.make_history(table=table)
        assert history.said is None
        self.answers[OTHER] = self.told(X)
        assert not history.met(OTHER, X.line)
        assert history.said == X.line and history.met(OTHER, X.line)
        assert self.table.withheld == [] and self.learned == [X.index]

    def test_no_history_of_its_own_and_two_lines(self) -> None:
        """Who only follows belongs to the line that it met last; of what it was told before that nothing counts."""
        table = FakeTable()
        table.last_index, table.terms, table.committed = 0, [], 0
        history = self.make_history(table=table)
        for server, fork in ((OTHER, X), (THIRD, Y)):
            self.answers[server] = self.told(fork, server=server)
            history.met(server, fork.line)
        assert history.said == Y.line and self.learned == [X.index, 0]

    def test_behind(self) -> None:
        """It belongs to the new line from then on, and decides nothing until its own rows tell of it."""
        history = self.make_history()
        self.answers[OTHER] = self.told(X)
        assert not history.met(OTHER, X.line), "what came with another line is not done"
        assert self.asked == [(OTHER, 10)]
        assert history.met(OTHER, X.line) and not history.met(THIRD, "")
        assert self.learned == [X.index], "what was told of the old line after that does not count any more"
        ((_, learned),) = self.table.withheld
        assert not learned() and history.learns
        self.notes.lines = row(X)
        self.pass_time(1)
        assert learned() and not history.learns

    def test_behind_survives_a_restart(self) -> None:
        """What was learned of a line is there before anything is said again."""
        history = self.make_history()
        self.answers[OTHER] = self.told(X)
        history.met(OTHER, X.line)
        again = self.restarted()
        assert again.said == X.line and not again.met(THIRD, "")
        assert len(self.table.withheld) == 1
        self.notes.lines = row(X)
        assert not self.restarted().learns
        assert self.table.withheld == []

    def test_nothing_is_done_before_it_is_written(self) -> None:
        """While the disk works the old line's words are no more, and the new one's are not yet, good."""
        history = self.make_history()
        self.answers[OTHER] = self.told(X)
        self.writing = Deferred()
        history.met(OTHER, X.line)
        assert len(self.table.withheld) == 1, "it decides nothing from the turn of the judgement"
        assert not history.met(THIRD, "") and not history.met(OTHER, X.line)
        writing, self.writing = self.writing, None
        writing.callback(None)
        assert history.met(OTHER, X.line)

    def test_a_full_disk(self) -> None:
        """A disk without room is waited for, as it is with the journal; what was to be kept is kept then."""
        history = self.make_history()
        error = OSError(errno.ENOSPC, "No space left on device")
        with patch.object(self.notes, "set_note", side_effect=error):
            beginning = history.begin((1, 5))
            self.clock.pump([1.0] * 5)
            self.assertNoResult(beginning)
        assert self.fatal == []
        self.clock.advance(FULL_RETRY)
        self.successResultOf(beginning)
        assert json.loads(self.notes.note("lines"))["intended"]["index"] == 5

    def test_a_disk_that_fails(self) -> None:
        """What cannot be written down ends the process, as for the journal itself."""
        history = self.make_history()
        self.answers[OTHER] = self.told(X)
        self.writing = fail(OSError("no disk"))
        history.met(OTHER, X.line)
        assert len(self.fatal) == 1 and history.said == ""
        assert len(self.flushLoggedErrors(OSError)) == 1

    def test_lost(self) -> None:
        """It takes part in nothing more, says who goes on, and what to do."""
        history = self.make_history()
        self.answers[OTHER] = self.told(evolve(X, index=9), first=THIRD)
        history.met(OTHER, X.line)
        stopped = history.stopped
        assert stopped is not None and self.changes == 1
        assert (stopped.verdict, stopped.name) == ("lost", "s3")
        assert "s3 (127.0.0.1:4130)" in stopped.reason and X.line[:8] in stopped.reason
        assert "chunkfarm get" in stopped.cures[0] and "empty the data directory" in stopped.cures[0]
        ((_, over),) = self.table.withheld
        assert not over() and self.learned == []
        assert not history.met(THIRD, "") and not history.met(OTHER, X.line)

    def test_lost_survives_a_restart(self) -> None:
        """Nor does it begin to decide anything when it is started again."""
        history = self.make_history()
        self.answers[OTHER] = self.told(evolve(X, index=9))
        history.met(OTHER, X.line)
        again = self.restarted()
        assert again.stopped == history.stopped and self.changes == 1
        assert len(self.table.withheld) == 1

    def test_apart(self) -> None:
        """Where each side took over, both stop; the cure says that a person must choose."""
        notes = FakeNotes()
        notes.lines = row(Y)
        history = self.make_history(notes)
        self.answers[OTHER] = self.told(X)
        history.met(OTHER, X.line)
        assert history.stopped is not None and history.stopped.verdict == "apart"
        assert "choose" in history.stopped.cures[0]

    def test_ahead(self) -> None:
        """A server of the line that was left has nothing to tell; its words are not done."""
        notes = FakeNotes()
        notes.lines = row(X)
        history = self.make_history(notes)
        self.answers[OTHER] = self.told()
        assert not history.met(OTHER, "")
        assert history.stopped is None and self.table.withheld == []
        assert history.said == X.line

    def test_one_that_stopped_decides_for_nobody(self) -> None:
        """Nobody learns from it; but where both sides took over, the second to notice stops too."""
        history = self.make_history()
        self.answers[OTHER] = self.told(X, stopped=True)
        history.met(OTHER, X.line)
        assert history.said == "" and history.stopped is None
        notes = FakeNotes()
        notes.lines = row(Y)
        history = self.make_history(notes)
        self.answers[OTHER] = self.told(X, stopped=True)
        history.met(OTHER, X.line)
        assert history.stopped is not None and history.stopped.verdict == "apart"

    def test_who_is_behind_one_that_stopped_waits(self) -> None:
        """What that one acknowledged stands, so nobody goes on without it until it is known which side does."""
        history = self.make_history()
        self.answers[OTHER] = self.told(X, stopped=True)
        for _ in range(3):
            history.met(OTHER, X.line)
            self.clock.advance(ASK_INTERVAL)
        ((reason, until),) = self.table.withheld
        assert reason == NOBODY_TEACHES and not until()
        self.answers[THIRD] = self.told(Y, server=THIRD)
        history.met(THIRD, Y.line)
        assert until() and history.said == Y.line
        # Who has no rows yet has nothing to go on with.
        table = FakeTable()
        table.last_index, table.terms, table.committed = 0, [], 0
        history = self.make_history(table=table)
        self.answers[OTHER] = self.told(X, stopped=True)
        history.met(OTHER, X.line)
        assert self.table.withheld == []

    def test_one_that_only_learns_is_no_witness(self) -> None:
        """What its journal has is of the line that was left: who has learned is waited for."""
        history = self.make_history()
        self.table.committed = 9
        fork = Fork(X.line, 12, 3)
        self.table.terms = [1] * 9 + [4]
        self.answers[OTHER] = self.told(fork, settled=False, term_there=2)
        history.met(OTHER, X.line)
        assert history.said == "" and history.stopped is None
        self.clock.advance(ASK_INTERVAL)
        self.answers[OTHER] = self.told(fork, term_there=1)
        history.met(OTHER, X.line)
        assert history.said == X.line and history.stopped is None

    def test_what_is_committed_while_the_other_is_asked(self) -> None:
        """Its answer is about an earlier entry, and tells nothing of the later one: it is asked again."""
        history = self.make_history()
        self.table.terms = [1] * 10 + [4]
        self.table.committed = 9
        fork = Fork(X.line, 12, 3)
        asking: Deferred[Told] = Deferred()
        self.asking = asking
        history.met(OTHER, X.line)
        self.table.committed = 10
        asking.callback(self.told(fork, term_there=1))
        assert history.said == "" and history.stopped is None
        self.asking = None
        self.clock.advance(ASK_INTERVAL)
        self.answers[OTHER] = self.told(fork, term_there=3)
        history.met(OTHER, X.line)
        assert self.asked == [(OTHER, 9), (OTHER, 10)]
        assert history.stopped is not None and history.stopped.verdict == "lost"

    def test_what_is_committed_while_the_other_is_asked_changes_no_loss(self) -> None:
        """Where it lacks the earlier entry already, that says enough."""
        history = self.make_history()
        self.table.terms = [1] * 8 + [4] * 3
        self.table.committed = 9
        self.asking = Deferred()
        history.met(OTHER, X.line)
        self.table.committed = 10
        self.asking.callback(self.told(Fork(X.line, 12, 3), term_there=1))
        assert history.stopped is not None and history.stopped.verdict == "lost"

    def test_questions_are_few(self) -> None:
        """Ten messages a second of another line are one question in two seconds."""
        history = self.make_history()
        for _ in range(30):
            history.met(OTHER, X.line)
            self.clock.advance(0.1)
        assert len(self.asked) == 2

    def test_a_first_looks_for_those_that_are_down(self) -> None:
        """One that leads another line is met in no other way."""
        self.make_history()
        self.rows = (self.rows[0], evolve(self.rows[1], state="down"), self.rows[2])
        self.pass_time(2 * DOWN_INTERVAL)
        assert self.asked == []
        self.table.is_leader = self.table.has_quorum = True
        self.pass_time(2 * DOWN_INTERVAL)
        assert self.asked == [(OTHER, 10)] * 2

    def test_a_takeover(self) -> None:
        """Its line is said from that turn on, told once the table has it, and its generation is beyond the file's."""
        history = self.make_history()
        self.successResultOf(history.begin((2, 10)))
        (line,) = {history.said}
        assert line and not history.met(OTHER, "")
        assert history.describe(None)["lines"] == []
        written = history.when_written()
        self.pass_time(2)
        self.assertNoResult(written)
        self.table.is_leader = self.table.has_quorum = self.table.committed_this_term = True
        self.pass_time(1)
        self.successResultOf(written)
        (item,) = json.loads(self.table.rows[LINES_KEY].value)
        assert item == {"line": line, "index": 10, "term": 2}
        assert self.table.rows[GENERATION_KEY].value == b"8"
        assert history.said == line and history.describe(None)["lines"] == [item]
        self.successResultOf(history.when_written())

    def test_the_epoch_moves_on(self) -> None:
        """What is lost may have moved it on, and chunks were collected then that an older commit could rely on."""
        history = self.make_history()
        before = self.table.put(EPOCH_KEY, b"{}")
        history.begin((2, 10))
        self.table.is_leader = self.table.has_quorum = self.table.committed_this_term = True
        self.pass_time(1)
        assert self.table.rows[EPOCH_KEY].revision > before

    def test_takeovers_are_added(self) -> None:
        """Earlier ones stay in the row; the generation grows from what the table has."""
        notes = FakeNotes()
        notes.lines = row(X)
        history = self.make_history(notes)
        self.table.put(LINES_KEY, row(X))
        self.table.put(GENERATION_KEY, b"41")
        history.begin((5, 20))
        self.table.is_leader = self.table.has_quorum = self.table.committed_this_term = True
        self.pass_time(1)
        assert [item["index"] for item in json.loads(self.table.rows[LINES_KEY].value)] == [10, 20]
        assert self.table.rows[GENERATION_KEY].value == b"42"

    def test_a_crash_before_the_takeover(self) -> None:
        """Nobody was told of it, so it is forgotten."""
        history = self.make_history()
        history.begin((2, 10))
        assert self.restarted().said == ""

    def test_a_takeover_that_a_crash_prevented_stays_forgotten(self) -> None:
        """Also if this server comes to vote alone in order later: no line begins where it once nearly did."""
        history = self.make_history()
        history.begin((2, 10))
        self.restarted()
        table = FakeTable()
        table.configuration, table.configuration_index, table.last_index = Configuration((ME,)), 40, 40
        table.is_leader = table.has_quorum = table.committed_this_term = True
        again = self.make_history(self.notes, table)
        self.pass_time(1)
        assert again.said == "" and again.chain == () and LINES_KEY not in table.rows

    def test_a_crash_before_the_takeover_of_one_that_votes_alone(self) -> None:
        """It voted alone before, so that proves nothing."""
        table = FakeTable()
        table.configuration, table.configuration_index = Configuration((ME,)), 7
        self.make_history(table=table).begin((2, 10))
        assert self.make_history(self.notes, table).said == ""

    def test_a_crash_after_the_takeover(self) -> None:
        """This server votes alone already, so it goes on to tell the table."""
        history = self.make_history()
        history.begin((2, 10))
        line = history.said
        table = FakeTable()
        table.configuration, table.configuration_index = Configuration((ME,)), 12
        table.is_leader = table.has_quorum = table.committed_this_term = True
        again = self.make_history(self.notes, table)
        assert again.said == line
        self.pass_time(1)
        assert again.chain == (Fork(line or "", 10, 2),)

    def test_a_takeover_that_came_to_nothing(self) -> None:
        """Then all is as before."""
        history = self.make_history()
        history.begin((2, 10))
        self.successResultOf(history.abandon())
        assert history.said == "" and history.met(OTHER, "")
        assert self.restarted().said == ""

    def test_nobody_is_judged_in_the_middle_of_a_takeover(self) -> None:
        """Its chain is not complete then; afterwards it is asked again."""
        history = self.make_history()
        history.begin((2, 10))
        self.answers[OTHER] = self.told(X)
        history.met(OTHER, X.line)
        assert history.stopped is None and self.table.withheld == []

    def test_a_damaged_note(self) -> None:
        """It is named in one sentence, and the server does not start on half of it."""
        for text in ("[", "{}", '{"chain": [1], "intended": null, "stopped": null}'):
            notes = FakeNotes()
            notes.notes[NOTE] = text
            self.assertRaises(HistoryError, self.make_history, notes)
        notes = FakeNotes()
        notes.lines = b"{}"
        self.assertRaises(HistoryError, self.make_history, notes)

    def test_what_a_probe_is_told(self) -> None:
        """Position, takeovers, and the term at an index; the last only from who has the rows of its line."""
        history = self.make_history()
        assert history.describe(9) == {
            "journal": {"term": 2, "index": 10},
            "commits": False,
            "lines": [],
            "settled": True,
            "stopped": False,
            "term_at": 2,
        }
        assert history.describe(99)["term_at"] is None and history.describe(-1)["term_at"] is None
        self.answers[OTHER] = self.told(X)
        history.met(OTHER, X.line)
        told = history.describe(9)
        assert told["term_at"] is None and not told["settled"] and told["lines"] == [X.as_item()]

    def test_before_there_is_a_history(self) -> None:
        """Links say nothing of lines then, and find none strange."""
        own = OwnLine()
        assert own.said is None and own.met(OTHER, X.line)
        own.history = self.make_history()
        assert own.said == "" and not own.met(OTHER, X.line)

    def test_rows_are_written_once(self) -> None:
        """One transaction, with what it was read from compared."""
        history = self.make_history()
        history.begin((2, 10))
        self.table.is_leader = self.table.has_quorum = self.table.committed_this_term = True
        self.pass_time(5)
        ((compares, operations),) = self.table.transactions
        assert {compare.key for compare in compares} == {LINES_KEY, GENERATION_KEY}
        assert all(isinstance(operation, Put) for operation in operations)
