"""What a server sees of its farm, as notes of its time line."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.model import Address, Server
from chunkfarm.state import ServerState, Wait
from chunkfarm.table.records import Reasons, Why
from chunkfarm.timeline import Kind, Note
from chunkfarm.witness import Witness

ME, OTHER, THIRD = "a" * 32, "b" * 32, "c" * 32
NAMES = {ME: "alpha", OTHER: "beta", THIRD: "gamma"}


def row(server_id: str = OTHER, **values: Any) -> Server:
    defaults: dict[str, Any] = {
        "host": "10.0.0.1", "client": 1, "peer": ord(server_id[0]), "files": 3, "seniority": 7, "incarnation": "1",
        "since": 1000,
    }  # fmt: skip
    return Server(**{"id": server_id, "name": NAMES[server_id], **defaults, **values})


class WitnessTests(SynchronousTestCase):
    def make(self, *, serves: bool = True, rows: tuple[Server, ...] = ()) -> Witness:
        """A witness in a process that serves, and has seen these rows before."""
        self.notes: list[Note] = []
        witness = Witness(ME, "me", "alpha", self.notes.append)
        if rows:
            witness.rows(rows, (), (1, 1))
        if serves:
            self.state(witness, "serving")
        self.notes.clear()
        return witness

    def state(self, witness: Witness, phase: str, **values: Any) -> None:
        witness.phase(ServerState(server_id=ME, name="alpha", stamp=0, incarnation="me", phase=phase, **values))

    def seen(self) -> list[tuple[str, str, str]]:
        """What was noted since the last question: kind, name, because."""
        found = [(one.kind.value, one.name, one.because) for one in self.notes]
        self.notes.clear()
        return found

    # Its own life.

    def test_a_life(self) -> None:
        """Starts and ends are noted, and what it cannot do meanwhile, with the reason, once each."""
        witness = self.make(serves=False)
        witness.started("1.2", None)
        wait = Wait(Address("10.0.0.2", 4101), "refused", 0, 1)
        self.state(witness, "starting")
        self.state(witness, "waiting", waits=(wait,))
        self.state(witness, "waiting", waits=(evolve(wait, tries=2),))
        self.state(witness, "serving")
        self.state(witness, "readonly", halted="another line goes on")
        self.state(witness, "leaving")
        witness.ended("it was told to end")
        assert self.seen() == [
            ("started", "alpha", "version 1.2"),
            ("waiting", "alpha", "10.0.0.2:4101: refused"),
            ("serving", "alpha", ""),
            ("readonly", "alpha", "another line goes on"),
            ("ended", "alpha", "it was told to end"),
        ]

    def test_an_end_without_a_word(self) -> None:
        """A process that was killed could not note it, so the next one does."""
        witness = self.make()
        ended = Note(kind=Kind.ENDED, server=ME, name="alpha")
        witness.started("1.2", ended)
        witness.started("1.2", evolve(ended, kind=Kind.SERVING))
        assert [because for _, _, because in self.seen()] == [
            "version 1.2",
            "version 1.2; the process before it ended without a word, as by kill -9, a crash or a power cut",
        ]

    # Rows.

    def changed(self, before: Server, after: Server | None, barred: tuple[str, ...] = ()) -> tuple[str, str, str]:
        """What is noted when that row becomes this one."""
        own = row(ME, incarnation="me", seniority=1)
        witness = self.make(rows=(own, before))
        witness.rows((own, after) if after is not None else (own,), barred, (1, 1))
        (found,) = self.seen()
        return found

    def test_states(self) -> None:
        """Every change of a server's state, with what it means."""
        up, down = row(), row(state="down", since=2000)
        leaving, draining = row(state="leaving"), row(state="draining", draining=True)
        for before, after, kind, because in (
            (up, down, "down", "no report for 5 s"),
            (up, leaving, "leaving", "it was told to end"),
            (leaving, down, "down", "it had said that it leaves"),
            (down, up, "up", "it reports again"),
            (up, draining, "draining", "an admin has it emptied"),
            (draining, up, "up", "it is not emptied any more"),
        ):
            assert self.changed(before, after) == (kind, "beta", because)
        given_up = evolve(down, given_up=True)
        assert self.changed(down, given_up)[0] == "givenup"

    def test_joins(self) -> None:
        """Who is new, who was started anew, who was away for too long, and who came back with the whole farm."""
        own = row(ME, incarnation="me", seniority=1)
        witness = self.make(rows=(own,))
        witness.rows((own, row()), (), (1, 1))
        assert self.seen() == [("joined", "beta", "new in the farm")]
        anew = self.changed(row(), row(incarnation="2", seniority=9))
        assert anew == ("joined", "beta", "its process was started anew, so it stands at the end of the line")
        away = self.changed(row(state="down"), row(seniority=9))
        assert away == (
            "joined",
            "beta",
            "it was away for longer than master_grace, so it stands at the end of the line",
        )
        assert self.changed(row(), row(incarnation="2"))[0] == "resumed"

    def test_a_row_goes(self) -> None:
        """Whoever is taken out is told by name, with who or what took it out."""
        down = row(state="down")
        assert self.changed(down, None) == ("gone", "beta", "it was down for forget_after")
        assert self.changed(down, None, (OTHER,)) == ("gone", "beta", "an admin took it out for good")
        own = row(ME, incarnation="me", seniority=1)
        witness = self.make(rows=(own, down))
        witness.rows((own, row(THIRD, peer=down.peer)), (), (1, 1))
        assert self.seen() == [
            ("joined", "gamma", "new in the farm"),
            ("gone", "beta", "another server has taken its address"),
        ]

    def test_barred_a_moment_later(self) -> None:
        """The rows may come before the word that a server is barred: why it went is told when both are there."""
        own, down = row(ME, incarnation="me", seniority=1), row(state="down")
        witness = self.make(rows=(own, down))
        witness.rows((own,), (), (7, 6))
        own = evolve(own, free=3)
        witness.rows((own,), (), (9, 6))
        assert self.seen() == []
        for _ in range(2):
            witness.rows((own,), (OTHER,), (9, 7))
        assert self.seen() == [("gone", "beta", "an admin took it out for good")]

    def test_figures_are_no_news(self) -> None:
        """Free space, notes and the same rows again are not noted."""
        before = row()
        own = row(ME, incarnation="me")
        witness = self.make(rows=(own, before))
        witness.rows((own, evolve(before, free=7, note="x", full=True)), (), (1, 1))
        assert self.seen() == []

    def test_what_it_missed(self) -> None:
        """A process notes nothing that it was not there for, but its own place in the table."""
        witness = self.make(serves=False)
        own = row(ME, incarnation="old", seniority=1)
        witness.rows((own, row()), (), (1, 1))
        witness.rows((own, row(state="down")), (), (1, 1))
        witness.hears(OTHER, 3)
        witness.table(False, OTHER, 3, Reasons(), frozenset({OTHER}), 4)
        assert self.seen() == []
        witness.rows((evolve(own, incarnation="me", seniority=9), row(state="down")), (), (1, 1))
        assert self.seen()[0][:2] == ("joined", "alpha")

    def test_the_founder(self) -> None:
        """A farm's first note is by whom it was founded."""
        witness = self.make(serves=False)
        witness.rows((row(ME, incarnation="me"),), (), (1, 1))
        assert self.seen() == [("joined", "alpha", "it founded the farm")]

    def test_the_same_mark(self) -> None:
        """Servers that see the same change note the same mark, also if one of them missed a change in between."""
        down, measured = row(state="down", since=2000), row(state="down", since=2000, free=9)
        marks = []
        for after in (down, measured):
            self.changed_quietly(row(), after)
            marks.append(self.notes[0].mark)
        assert marks == ["2000", "2000"]

    def changed_quietly(self, before: Server, after: Server) -> None:
        own = row(ME, incarnation="me", seniority=1)
        self.make(rows=(own, before)).rows((own, after), (), (1, 1))

    # Who leads.

    def leads(self, why: Why, former: str = OTHER, rows: tuple[Server, ...] = ()) -> str:
        witness = self.make(rows=rows or (row(ME, incarnation="me"), row()))
        witness.table(True, ME, 4, Reasons(why, former), frozenset({ME, OTHER}), 3)
        (found,) = self.seen()
        assert found[:2] == ("leads", "alpha")
        return found[2]

    def test_why_it_leads(self) -> None:
        """Each way to become the leader is told in words."""
        assert self.leads(Why.ONLY, "") == "it alone votes"
        assert self.leads(Why.CUT) == "beta had ended its links and answered no more"
        assert self.leads(Why.SILENT) == "beta was silent for an election timeout"
        assert self.leads(Why.SILENT, "") == "no other leader was heard"
        assert self.leads(Why.SILENT, ME) == "no other leader was heard"
        assert self.leads(Why.HANDED) == "beta handed over to it"
        assert self.leads(Why.ALONE) == "beta of two had ended its links, and its ports refused for master_grace"
        assert self.leads(Why.FORCED) == "an admin said so, the majority being lost (takeover)"
        own = row(ME, incarnation="me", seniority=1)
        assert self.leads(Why.HANDED, rows=(own, row())) == "beta handed over to it, the senior"
        leaving = (own, row(state="leaving"))
        assert self.leads(Why.HANDED, rows=leaving) == "beta handed over to it, which was told to end"

    def test_why_it_leads_no_more(self) -> None:
        """And each way in which that ends; once."""
        for why, because in (
            (Why.HANDED, "it handed over"),
            (Why.MAJORITY, "no majority of the masters answered it"),
            (Why.REMOVED, "it is no master any more"),
            (Why.WITHHELD, "it takes part in no decision until it was caught up"),
            (Why.LATER, "there is a later term"),
        ):
            witness = self.make()
            witness.table(True, ME, 4, Reasons(Why.ONLY), frozenset({ME}), 3)
            self.notes.clear()
            for _ in range(2):
                witness.table(False, "", 5, Reasons(ceased=why), frozenset({ME}), 3)
            assert self.seen() == [("ledto", "alpha", because)]

    def test_leaders_are_told_once(self) -> None:
        """A new leader is noted once, with its term, whoever tells of it and however often; never an older one."""
        witness = self.make(rows=(row(), row(THIRD)))
        for leader, term in ((OTHER, 3), (OTHER, 3), ("", 4), (THIRD, 4), (OTHER, 3)):
            witness.hears(leader, term)
        witness.table(False, THIRD, 4, Reasons(), frozenset(), 0)
        assert [(one.kind, one.name, one.term, one.mark) for one in self.notes] == [
            (Kind.LEADS, "beta", 3, "3"),
            (Kind.LEADS, "gamma", 4, "4"),
        ]

    def test_masters(self) -> None:
        """Who begins to vote and who does no more, as far as it concerns those who hold the table."""
        witness = self.make(rows=(row(), row(THIRD)))
        for voters, index in (({ME, OTHER}, 3), ({ME, OTHER, THIRD}, 5), ({ME, THIRD}, 9), ({THIRD}, 12), (set(), 13)):
            witness.table(False, "", 0, Reasons(), frozenset(voters), index)
        assert [(one.kind, one.name, one.mark) for one in self.notes] == [
            (Kind.MASTER, "gamma", "5"),
            (Kind.NO_MASTER, "beta", "9"),
            (Kind.NO_MASTER, "alpha", "12"),
        ]
