"""Which line of the farm's history goes on, when two meet."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.lines import (
    LINES_MAX,
    TERM_LEAP,
    Chain,
    Fork,
    Past,
    Verdict,
    contains,
    fork_between,
    judge,
    longer,
    newest,
    read_chain,
)


def line(number: int) -> str:
    return f"{number:032x}"


def past(terms: Iterable[int], committed: int, term: int | None = None) -> Past:
    """The past of a journal whose entries, from index 1 on, have these terms."""
    journal = list(terms)

    def term_at(index: int) -> int | None:
        return journal[index - 1] if 0 < index <= len(journal) else None

    return Past(term=term if term is not None else journal[-1], committed=committed, term_at=term_at)


X, Y, Z = Fork(line(1), 3, 2), Fork(line(2), 6, 2 + TERM_LEAP), Fork(line(3), 4, 2)


class JudgeTests(SynchronousTestCase):
    """What becomes of this server."""

    def test_the_same_line(self) -> None:
        """Nothing, if both are of one line."""
        for chain in ((), (X,), (X, Y)):
            assert judge(chain, past([1, 1, 2], 3), chain, None) is Verdict.SAME

    def test_whoever_has_the_takeover_goes_on(self) -> None:
        """The side that lacks it learns; the other one has nothing to do."""
        assert judge((X,), past([1, 1, 2, 9, 9], 5), (), None) is Verdict.AHEAD
        assert judge((X, Y), past([1, 1, 2, 9, 9], 5), (X,), None) is Verdict.AHEAD
        assert judge((), past([1, 1, 2], 3), (X,), None) is Verdict.BEHIND
        assert judge((X,), past([1, 1, 2], 3), (X, Y), None) is Verdict.BEHIND

    def test_what_is_not_committed_is_no_promise(self) -> None:
        """Entries past the fork that nobody was told of go, and the server learns."""
        assert judge((), past([1, 1, 2, 2, 2], 3), (X,), None) is Verdict.BEHIND
        assert judge((), past([1, 1, 2, 3, 4], 3), (X,), None) is Verdict.BEHIND

    def test_a_promise_past_the_fork(self) -> None:
        """It lacks on the other side, so this server stops."""
        assert judge((), past([1, 1, 2, 2], 4), (X,), None) is Verdict.LOST
        assert judge((), past([1, 1, 3], 3), (X,), None) is Verdict.LOST

    def test_a_later_term(self) -> None:
        """An earlier index proves nothing there: the new line's journal must have the very entry."""
        mine = past([1, 1, 3], 2, 3)
        assert judge((), mine, (X,), 1) is Verdict.BEHIND
        assert judge((), mine, (X,), 2) is Verdict.LOST
        assert judge((), mine, (X,), None) is Verdict.LOST

    def test_a_short_journal(self) -> None:
        """A server that lagged when the others went on has committed nothing else."""
        assert judge((), past([1, 1], 2), (X,), None) is Verdict.BEHIND
        assert judge((), past([1, 1], 2, 2), (X,), None) is Verdict.BEHIND

    def test_an_export_was_restored(self) -> None:
        """Its line leaves the old one at the export: who committed more has lost it, also before later takeovers."""
        restored = Fork(line(9), 2, 1)
        assert judge((), past([1, 1, 2], 3), (restored,), None) is Verdict.LOST
        assert judge((), past([1, 1, 1], 2), (restored,), None) is Verdict.BEHIND
        assert judge((), past([1, 1, 1], 3), (restored,), None) is Verdict.LOST
        assert judge((X,), past([1, 1, 2, 9], 4), (X, restored), None) is Verdict.LOST
        # A server of the line before X shares no more with the restored one than the export either.
        assert judge((), past([1, 1, 2], 3), (X, restored), None) is Verdict.LOST
        assert judge((), past([1, 1, 1], 2), (X, restored), None) is Verdict.BEHIND
        assert judge((X, restored), past([1, 1, 2, 9], 4), (X,), None) is Verdict.AHEAD
        assert fork_between((), (X, restored, Y)) == restored and fork_between((X, restored), (X, restored, Y)) == Y

    def test_no_journal(self) -> None:
        """A server that never held the table has nothing to lose."""
        nothing = Past(term=0, committed=0, term_at=lambda index: None)
        assert judge((), nothing, (X, Y), None) is Verdict.BEHIND
        assert judge((X,), nothing, (Z,), None) is Verdict.BEHIND

    def test_two_takeovers(self) -> None:
        """Each has one that the other lacks: neither can be right for both."""
        assert judge((X,), past([1, 1, 2], 3), (Z,), None) is Verdict.APART
        assert judge((X, Y), past([1, 1, 2], 3), (X, Z), None) is Verdict.APART

    def test_the_first_of_several_forks_counts(self) -> None:
        """Who was away for two takeovers is judged by the one with which its line was left."""
        assert judge((), past([1, 1, 2, 2], 4), (X, Y), None) is Verdict.LOST
        assert judge((), past([1, 1, 2, 2], 3), (X, Y), None) is Verdict.BEHIND

    def test_too_long_away(self) -> None:
        """A chain that has forgotten its beginning cannot say that nothing is missing."""
        chain = tuple(Fork(line(number), number + 10, 1) for number in range(1, LINES_MAX + 1))
        assert fork_between((), chain) is None
        assert judge((), past([1, 1], 2), chain, 1) is Verdict.LOST
        assert fork_between((), chain[:-1]) == chain[0]

    def test_words(self) -> None:
        """The newest line, and whether a chain leads through one."""
        assert (newest(()), newest((X, Y))) == ("", Y.line)
        assert contains((), "") and contains((X,), "") and contains((X, Y), X.line) and not contains((X,), Y.line)
        assert longer((X,), (X, Y)) == longer((X, Y), (X,)) == (X, Y)

    def test_from_json(self) -> None:
        """What others say is looked at before it is believed."""
        assert read_chain([X.as_item(), Y.as_item()]) == (X, Y)
        wrong: list[Any] = [
            {},
            [1],
            [{"line": "x", "index": 1, "term": 1}],
            [{"line": line(1), "index": True, "term": 1}],
            [{"line": line(1), "index": -1, "term": 1}],
            [X.as_item()] * (LINES_MAX + 1),
        ]
        for items in wrong:
            self.assertRaises(ValueError, read_chain, items)


class Server:
    """A journal of terms, what it knows to be committed, and the takeovers it went through."""

    def __init__(self) -> None:
        self.journal: list[int] = []
        self.term = 0
        self.committed = 0
        self.chain: Chain = ()

    def past(self) -> Past:
        return past(self.journal, self.committed, self.term)

    def last(self) -> tuple[int, int]:
        return (self.journal[-1] if self.journal else 0, len(self.journal))


class World:
    """Three masters by the rules of Raft, without messages: elections, appends and commits happen at one stroke."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.servers = [Server() for _ in range(3)]
        self.leader: tuple[Server, int] | None = None
        self.decided: list[int] = []
        """Terms of the entries that were ever committed in the first line, by index."""

    def step(self) -> None:
        self.rng.choice((self.elect, self.append, self.append, self.replicate, self.replicate, self.commit))()

    def elect(self) -> None:
        """A server stands with one other, which votes by the rule; the vote may come to nothing."""
        candidate, voter = self.rng.sample(self.servers, 2)
        term = max(candidate.term, voter.term) + 1
        candidate.term = term
        if candidate.last() < voter.last():
            return
        voter.term = term
        if self.rng.random() < 0.9:
            self.leader = candidate, term
            candidate.journal.append(term)

    def append(self) -> None:
        if self.leader is not None and self.leader[0].term == self.leader[1]:
            self.leader[0].journal.append(self.leader[1])

    def replicate(self) -> None:
        """A follower takes what the leader has up to somewhere, and hears what is committed."""
        if self.leader is None or self.leader[0].term > self.leader[1]:
            return
        leader, term = self.leader
        follower = self.rng.choice([server for server in self.servers if server is not leader])
        if follower.term > term:
            return
        follower.term = term
        upto = self.rng.randint(0, len(leader.journal))
        same = 0
        while same < min(len(follower.journal), upto) and follower.journal[same] == leader.journal[same]:
            same += 1
        # Terms alone tell entries apart here, as (index, term) does.
        if follower.journal[:upto] != leader.journal[:upto]:
            follower.journal = leader.journal[:upto]
        follower.committed = max(follower.committed, min(leader.committed, upto))

    def commit(self) -> None:
        """The leader commits what another one has too, if it is of its own term."""
        if self.leader is None or self.leader[0].term != self.leader[1]:
            return
        leader, term = self.leader
        for other in self.servers:
            if other is leader or other.term != term:
                continue
            shared = 0
            while (
                shared < min(len(leader.journal), len(other.journal))
                and leader.journal[shared] == other.journal[shared]
            ):
                shared += 1
            if shared > leader.committed and leader.journal[shared - 1] == term:
                leader.committed = shared
                self.decided = leader.journal[:shared]


class HistoryTests(SynchronousTestCase):
    """Histories by the rules of Raft, of which one server takes over at some moment."""

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 40), st.booleans())
    def test_whoever_learns_loses_no_promise(self, seed: int, before: int, after: int, knows: bool) -> None:
        """A server that is told to learn has committed only what the new line has, entry by entry."""
        self.check(seed, before, after, knows)

    def test_rare_histories(self) -> None:
        """The same for many more, among which are those where an index or a term alone would deceive."""
        for seed in range(3000):
            self.check(seed, 10 + seed % 30, seed % 20, bool(seed % 3))

    def check(self, seed: int, before: int, after: int, knows: bool) -> None:
        rng = random.Random(seed)
        world = World(rng)
        for _ in range(before):
            world.step()
        survivor = rng.choice(world.servers)
        others = [server for server in world.servers if server is not survivor]
        journal, (term, index) = list(survivor.journal), survivor.last()
        fork = Fork(line(1), index, term)
        # The two others go on among themselves; the survivor is not asked any more.
        world.servers = others
        if world.leader is not None and world.leader[0] is survivor:
            world.leader = None
        for _ in range(after):
            world.step()
        there = journal + [term + TERM_LEAP] * 50
        for other in others:
            mine = other.past()
            term_there = there[mine.committed - 1] if knows and mine.committed else None
            verdict = judge((), mine, (fork,), term_there)
            assert verdict in (Verdict.BEHIND, Verdict.LOST)
            kept = other.journal[: mine.committed] == there[: mine.committed]
            if verdict is Verdict.BEHIND:
                assert kept
            elif knows:
                assert not kept, "what the new line has need not be given up"
            assert judge((fork,), past(there, len(there)), (), None) is Verdict.AHEAD
