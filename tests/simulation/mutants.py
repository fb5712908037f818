"""Cores with one fault each. A simulation that lets one of them live checks nothing.

Each stands in `MUTANTS` with a seed that catches it, and the rule that it breaks then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve

from chunkfarm.table.consensus import LEADER, Consensus
from chunkfarm.table.leadership import Leadership, _match
from chunkfarm.table.progress import REPLICATE
from chunkfarm.table.raft_log import RaftLog
from chunkfarm.table.raft_state import majority
from chunkfarm.table.records import Configuration, Entry, Message, MessageKind, ReadState, Ready


class _TruncatingLog(RaftLog):
    def merge(self, entries: Sequence[Entry], commit: int) -> None:
        if entries and commit < entries[0].index <= self.last_index:
            self._truncate(entries[0].index)
        super().merge(entries, commit)


class TruncatesMatchingEntries(Consensus):
    """A late append cuts off entries that match, and that were acknowledged."""

    def __init__(self, id: str, **arguments: Any) -> None:
        super().__init__(id, **arguments)
        self.log = _TruncatingLog(arguments["snapshot"], arguments["entries"])


class _CountingLeadership(Leadership):
    def perhaps_commit(self) -> None:
        index = self._state.reached_by_quorum(self._log.stable, self.progress, _match)
        self._state.commit = max(self._state.commit, index)


class CommitsOldTermsByCounting(Consensus):
    """An entry of an earlier term is committed because it is on a majority (figure 3.7)."""

    def _lead(self) -> Leadership:
        return _CountingLeadership(self, self._election_ticks, self._heartbeat_ticks)


class _Forgetful(Consensus):
    """What is written is not what the core thinks is written."""

    def _written(self, ready: Ready) -> Ready:
        raise NotImplementedError

    def ready(self) -> Ready:
        self._whole = super().ready()
        return self._written(self._whole)

    def persisted(self, ready: Ready) -> None:
        super().persisted(self._whole)


class ForgetsVotes(_Forgetful):
    """A vote is sent, and not written."""

    def _written(self, ready: Ready) -> Ready:
        if ready.hard_state is None:
            return ready
        return evolve(ready, hard_state=evolve(ready.hard_state, vote=""))


class ForgetsTerms(_Forgetful):
    """Neither term nor vote is written before it is told, unless entries are."""

    def _written(self, ready: Ready) -> Ready:
        return ready if ready.entries else evolve(ready, hard_state=None)


class _HastyLeadership(Leadership):
    def _check_change(self, configuration: Configuration) -> None:
        if not self._has_committed_own_term() or not configuration.voters:
            super()._check_change(configuration)


class ChangesTwice(Consensus):
    """A second change of configuration begins before the first is committed."""

    def _lead(self) -> Leadership:
        return _HastyLeadership(self, self._election_ticks, self._heartbeat_ticks)


class _EarlyLeadership(Leadership):
    def _has_committed_own_term(self) -> bool:
        return True


class ChangesBeforeOwnTerm(Consensus):
    """A new leader changes the configuration, and answers reads, before it has committed anything."""

    def _lead(self) -> Leadership:
        return _EarlyLeadership(self, self._election_ticks, self._heartbeat_ticks)


class AcknowledgesBeforeDisk(Consensus):
    """A follower says that it has entries which its disk does not have."""

    def _answer_append(self, matched: int) -> None:
        self.send(self.leader, MessageKind.APPEND_ANSWER, log_index=matched)


class CountsItsDiskTooEarly(Consensus):
    """A leader counts itself before its disk has the entry."""

    def _lead(self) -> Leadership:
        return _EagerLeadership(self, self._election_ticks, self._heartbeat_ticks)


class _EagerLeadership(Leadership):
    def step_append_answer(self, message: Message) -> None:
        self._log.stable = self._log.last_index
        super().step_append_answer(message)


class _TrustingLeadership(Leadership):
    def read(self, sender: str, token: int) -> None:
        if sender or not self._has_committed_own_term():
            super().read(sender, token)
        else:
            self._state.reads.append(ReadState(token, self._state.commit))


class ReadsWithoutRound(Consensus):
    """A leader answers reads without asking whether it still leads."""

    def _lead(self) -> Leadership:
        return _TrustingLeadership(self, self._election_ticks, self._heartbeat_ticks)


class VotesForShortLogs(Consensus):
    """A vote is given although the candidate's log is behind."""

    def _step_vote(self, message: Message) -> None:
        super()._step_vote(evolve(message, log_index=1 << 40, log_term=1 << 40))


class CommitsWithoutMatch(Consensus):
    """A follower believes any commit index, whether its log matches there or not."""

    def _step_append(self, message: Message) -> None:
        super()._step_append(message)
        self._commit_to(min(message.commit, self.last_index))


class _HastyHeartbeats(Leadership):
    def _send_heartbeats(self) -> None:
        super()._send_heartbeats()
        for id, one in self.progress.items():
            if one.state != REPLICATE:
                self._state.send(id, MessageKind.HEARTBEAT, commit=self._state.commit)


class CommitsDuringSnapshot(Consensus):
    """While a follower is sent a snapshot, or looked at, heartbeats move its commit index as far as its log goes."""

    def _lead(self) -> Leadership:
        return _HastyHeartbeats(self, self._election_ticks, self._heartbeat_ticks)

    def _step_heartbeat(self, message: Message) -> None:
        super()._step_heartbeat(message)
        self._commit_to(min(message.commit, self.last_index))


class AnswersWithoutTerm(Consensus):
    """An answer carries no term, so it counts in whatever term it arrives, and nobody learns from one of another."""

    def step(self, message: Message) -> None:
        kinds = (MessageKind.APPEND_ANSWER, MessageKind.VOTE_ANSWER, MessageKind.HEARTBEAT_ANSWER)
        super().step(evolve(message, term=self.term) if message.kind in kinds else message)


class NoPreVote(Consensus):
    """Whoever hears no leader stands for election at once, in a new term."""

    def campaign(self) -> None:
        if self.role != LEADER and self._may_campaign():
            self._stand(transfer=False)


class _HalfLeadership(Leadership):
    def perhaps_commit(self) -> None:
        voters = self._state.configuration.voters
        matches = sorted([self._log.stable, *(one.match for id, one in self.progress.items() if id in voters)])
        index = matches[-max(1, majority(len(voters)) - 1)]
        if index > self._state.commit and self._log.term_at(index) == self._state.term:
            self._state.commit = index


class CommitsOnHalf(Consensus):
    """One server short of a majority is enough to commit."""

    def _lead(self) -> Leadership:
        return _HalfLeadership(self, self._election_ticks, self._heartbeat_ticks)


class NeverStandsAgain(Consensus):
    """A follower that has lost an election does not stand for another: the farm stops."""

    def _perhaps_lost(self) -> None:
        return None

    def campaign(self) -> None:
        if self.role == "follower":
            super().campaign()


MUTANTS: dict[str, tuple[type[Consensus], int, str]] = {
    "truncates-matching": (TruncatesMatchingEntries, 5, "promises"),
    "commits-old-terms": (CommitsOldTermsByCounting, 108, "commitment"),
    "forgets-votes": (ForgetsVotes, 1, "promises"),
    "forgets-terms": (ForgetsTerms, 1, "promises"),
    "changes-twice": (ChangesTwice, 3, "one change at a time"),
    "changes-early": (ChangesBeforeOwnTerm, 10, "own term first"),
    "acknowledges-early": (AcknowledgesBeforeDisk, 1, "promises"),
    "counts-own-disk-early": (CountsItsDiskTooEarly, 1, "durability"),
    "reads-without-round": (ReadsWithoutRound, 10, "linearizable reads"),
    "votes-for-short-logs": (VotesForShortLogs, 2, "leader completeness"),
    "commits-without-match": (CommitsWithoutMatch, 6, "state machine safety"),
    "commits-during-snapshot": (CommitsDuringSnapshot, 9, "state machine safety"),
    "commits-on-half": (CommitsOnHalf, 1, "durability"),
    "never-stands-again": (NeverStandsAgain, 2, "liveness"),
}
