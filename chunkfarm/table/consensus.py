"""Raft as a pure state machine: messages and ticks in, one value out that says what the world must do.

The rules are the published ones: Ongaro, "Consensus: Bridging Theory and Practice" (2014), with pre-vote
(9.6), read index (6.4), leadership transfer (3.10), single-server changes (4.1) and the shape of
etcd/raft (`Ready`, flow control, check-quorum). Nothing here knows a socket, a disk or a clock.

What the surroundings owe the core:

* `tick()` at a steady pace, `step()` for every message, in any order, any number of times;
* `urgent()` after every call that may have caused messages: those promise nothing that is not durable
  already, and are sent at once;
* `ready()` when `has_ready()`: make durable, then send, then apply, then `persisted()`. Granted votes,
  requests for votes and accepted appends leave only this way, so no promise is made before it is kept.

A leader's appends do not wait for its own disk, but its own disk counts towards a majority only once
`persisted()` says so. Messages may be lost, repeated and reordered at will.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from chunkfarm.table.leadership import CHECK_QUORUM_VOTERS_MIN, ChangeRefused, Dropped, Leadership
from chunkfarm.table.progress import Progress
from chunkfarm.table.raft_state import RaftState, majority
from chunkfarm.table.read_rounds import ReadQuestions
from chunkfarm.table.records import (
    Configuration,
    Entry,
    HardState,
    Message,
    MessageKind,
    ReadState,
    Ready,
    Reasons,
    SnapshotMeta,
    Why,
)
from chunkfarm.table.withheld import Proof

__all__ = ["ChangeRefused", "Consensus", "Dropped", "NotLeader", "majority"]

FOLLOWER = "follower"
PRE_CANDIDATE = "pre_candidate"
CANDIDATE = "candidate"
LEADER = "leader"
_FROM_LEADER = frozenset({MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT})

ANSWER_BITS = 48
"""Random bits of the number at which a process begins to count: two processes never meet, and none overflows."""
RANK_MAX = 6
"""Ranks beyond this are stretched no further, so that even the last in line stands for election in time."""


class NotLeader(Exception):
    """This server does not lead; `leader` is who does, as far as it knows (None: nobody)."""

    def __init__(self, leader: str | None) -> None:
        super().__init__(f"the leader is {leader}" if leader else "there is no leader")
        self.leader = leader


class Consensus(RaftState):
    """One server's part in the consensus.

    `snapshot` is where the log begins, `entries` is the log after it, `applied` how far the rows are.
    `rank` gives a server's place in the line of seniority (0 first): seniors stand for election sooner.
    """

    def __init__(
        self,
        id: str,
        *,
        hard_state: HardState,
        snapshot: SnapshotMeta,
        entries: Sequence[Entry],
        applied: int,
        random: Random,
        election_ticks: int = 10,
        heartbeat_ticks: int = 1,
        rank: Callable[[str], int] | None = None,
    ) -> None:
        assert election_ticks > heartbeat_ticks > 0
        super().__init__(id, hard_state, snapshot, entries, applied)
        self.role = FOLLOWER
        self.leader = ""
        self._random = random
        self._rank = rank
        self._election_ticks = election_ticks
        self._heartbeat_ticks = heartbeat_ticks
        self._elapsed = 0
        self._timeout = 0
        self._suspected = False
        """Whether the link to the leader has ended since it was heard."""
        self._stood: Why | None = None
        self._stood_after = ""
        self._former = ""
        """Who led last, as far as this server knows."""
        self._ceased: Why | None = None
        self._votes: dict[str, bool] = {}
        self._leading: Leadership | None = None
        self._questions = ReadQuestions(random)
        self.answers = random.getrandbits(ANSWER_BITS)
        """Number of the last heartbeat answer. It begins anywhere, so that answers of two processes are told apart."""
        self.confirmed = 0
        """Number of the last heartbeat answer of which a leader has said that it received it."""
        self._life = self.answers + 1
        self._proof = Proof()
        self._steps: dict[MessageKind, Callable[[Message], None]] = {
            MessageKind.PRE_VOTE: self._step_vote,
            MessageKind.PRE_VOTE_ANSWER: self._step_pre_vote_answer,
            MessageKind.VOTE: self._step_vote,
            MessageKind.VOTE_ANSWER: self._step_vote_answer,
            MessageKind.APPEND: self._step_append,
            MessageKind.APPEND_ANSWER: self._step_append_answer,
            MessageKind.HEARTBEAT: self._step_heartbeat,
            MessageKind.HEARTBEAT_ANSWER: self._step_heartbeat_answer,
            MessageKind.SNAPSHOT: self._step_snapshot,
            MessageKind.READ: self._step_read,
            MessageKind.READ_ANSWER: self._step_read_answer,
            MessageKind.TIMEOUT_NOW: self._step_timeout_now,
        }
        self._restart_timer()

    # What it is like.

    @property
    def progress(self) -> dict[str, Progress]:
        """A leader's view of the others, by server id; empty for everybody else."""
        return self._leading.progress if self._leading is not None else {}

    @property
    def has_quorum(self) -> bool:
        """Leader: a majority has answered within an election timeout. Others: they have heard a leader within it."""
        if self._leading is not None:
            return self._leading.has_quorum
        return bool(self.leader) and self._elapsed < self._election_ticks

    @property
    def reasons(self) -> Reasons:
        """Why this server stood for election last, and ceased to lead, for people."""
        return Reasons(self._stood, self._stood_after, self._ceased)

    def snapshot_meta(self, index: int) -> SnapshotMeta:
        """Index, term and configuration of an applied position that is not compacted yet."""
        return self.log.meta_at(index)

    # Time.

    def tick(self) -> None:
        """One unit of time has passed."""
        self._elapsed += 1
        if self.withheld and self.leader and self._proof.asks(self._election_ticks):
            self._questions.add(self._proof.token)
        if self._leading is not None:
            if not self._leading.tick():
                self._become_follower(self.term, "", Why.MAJORITY)
        elif self._elapsed >= self._timeout:
            # Who may not stand goes on counting, so that it is plain how long no leader was heard.
            self.campaign()

    def _restart_timer(self) -> None:
        """Forget the time that has passed, and draw a new election timeout.

        Without ranks it lies between one and two election timeouts. With ranks the draw is narrower, and
        each rank waits three tenths longer than the one before, so that mostly the senior stands first.
        """
        self._elapsed = 0
        self._suspected = False
        ticks = self._election_ticks
        if self._rank is None:
            self._timeout = ticks + self._random.randrange(ticks)
        else:
            stretch = min(max(self._rank(self.id), 0), RANK_MAX) * ticks * 3 // 10
            self._timeout = ticks + stretch + self._random.randrange(max(2, ticks // 2))

    def suspect(self, id: str) -> None:
        """The link to that server has ended. If it leads, look at once whether it still does.

        A hint and no more: whoever stands asks for pre-votes first, which a leader that lives and those who hear
        it do not heed, and its next word makes all as before. The most senior of the others begins a tick later,
        so that they have lost their links too; each one after it leaves it the time of an election. Two voters
        have nothing to look at: neither can lead without the other.
        """
        if self.role != FOLLOWER or id != self.leader or len(self.configuration.voters) < CHECK_QUORUM_VOTERS_MIN:
            return
        self._suspected = True
        self._elapsed = max(self._elapsed, self._election_ticks)
        if self._rank is None:
            wait = self._random.randrange(self._election_ticks)
        else:
            rank = min(max(self._rank(self.id), 0), RANK_MAX)
            wait = (rank - (self._rank(id) < rank)) * self._election_ticks * 3 // 10
        self._timeout = min(self._timeout, self._elapsed + 1 + wait)

    # Roles.

    def _reset(self, term: int) -> None:
        """What every change of role or term begins with."""
        if term != self.term:
            assert term > self.term
            self.term = term
            self.vote = ""
            # What was to be promised in an older term is not promised any more.
            self._promises.clear()
            self._questions.clear()
        self.leader = ""
        self.alone = self.forced = False
        self._leading = None
        self._votes = {}
        self._restart_timer()

    def _become_follower(self, term: int, leader: str, why: Why = Why.LATER) -> None:
        if self.role == LEADER:
            self._ceased = why
        self._reset(term)
        self.role = FOLLOWER
        self.leader = leader
        self._former = leader or self._former

    def _become_leader(self) -> None:
        assert self.role == CANDIDATE
        alone = self.alone
        self._reset(self.term)
        self.role = LEADER
        self.leader = self._former = self.id
        self._leading = self._lead()
        if alone:
            self._leading.go_on_alone()

    def _lead(self) -> Leadership:
        return Leadership(self, self._election_ticks, self._heartbeat_ticks)

    def campaign(self) -> None:
        """Stand for election, if this server may: first ask whether it would win (pre-vote, dissertation 9.6).

        Who goes on alone asks nobody, and waits for its own disk however long that takes.
        """
        if self.role == LEADER or self.alone or not self._may_campaign():
            return
        if self.role == FOLLOWER:
            self._stands_because(Why.CUT if self._suspected else Why.SILENT)
        self._reset(self.term)
        self.role = PRE_CANDIDATE
        self._votes = {self.id: True}
        if self.is_quorum({self.id}):
            self._stands_because(Why.ONLY)
            self._stand(transfer=False)
            return
        self._ask_for_votes(self.send, MessageKind.PRE_VOTE, self.term + 1)

    def _stands_because(self, why: Why) -> None:
        self._stood, self._stood_after = why, self._former

    def _may_campaign(self) -> bool:
        """Voters may; and one that a change removes, until that change is committed (dissertation 4.2.2).

        Its vote does not count then, but the others may need it: it can be the only one that has the change.
        """
        if self.withheld:
            return False
        if self.id in self.configuration.voters:
            return True
        return self.pending_change and self.id in self.log.previous_configuration.voters

    def _stand(self, transfer: bool) -> None:
        """Be a candidate in the next term. The own vote counts once it is durable (see `persisted`)."""
        self._reset(self.term + 1)
        self.role = CANDIDATE
        self.vote = self.id
        self._ask_for_votes(self.promise, MessageKind.VOTE, self.term, transfer)

    def take_over(self, leader: str) -> None:
        """Lead alone, because the other one of two voters, which led, is gone for good: `survivor` says when.

        Its own vote, once durable, decides; the term begins with a configuration of this server alone. While that
        is being written, to ask again changes nothing.
        Raises `ChangeRefused` unless the configuration in force is known to be committed, has just these two
        voters and no learners. The leader has committed all else with this server; a learner it could have
        promoted without, and a configuration that is not committed it may have lost in a crash.
        """
        if self.alone:
            return
        now = self.configuration
        if self.withheld:
            raise ChangeRefused("this server decides nothing until it has caught up")
        if self.role == LEADER or now != Configuration({self.id, leader}) or self.pending_change:
            raise ChangeRefused("others may have decided without this server")
        self._stands_because(Why.ALONE)
        self._stand(transfer=False)
        self.alone = True

    def force(self, term: int) -> None:
        """Lead alone, because a person has decided that the majority is lost for ever; above `term`, and its own.

        The whole log stays, also what is not known to be committed, as it does with every new leader. Works on
        a learner, on a server that was removed, and on one that is withheld, which thereby is released. Nobody
        is asked, and until the own vote is durable nobody is heard. Raises `ChangeRefused` where there is no
        table at all.
        """
        if not self.last_index:
            raise ChangeRefused("this server has no table to go on with")
        self.release()
        self._stands_because(Why.FORCED)
        self._reset(max(self.term, term) + 1)
        self.role = CANDIDATE
        self.vote = self.id
        self.alone = self.forced = True

    # Deciding nothing.

    def withhold(self) -> None:
        """Decide nothing until `release`: follow and acknowledge, but do not lead, stand, vote or count.

        For a server whose disk may have lost what it promised, or that may belong to another history.
        """
        self.withheld = True
        self._proof.begin()
        # A vote that has not left is not given.
        self._promises = [one for one in self._promises if one.kind not in (MessageKind.VOTE, MessageKind.VOTE_ANSWER)]
        if self.role != FOLLOWER:
            self._become_follower(self.term, "", Why.WITHHELD)

    def release(self) -> None:
        """Take part as before `withhold`."""
        if self.withheld:
            self.withheld = False
            self._restart_timer()

    @property
    def proven(self) -> bool:
        """Whether, since it is withheld, a leader has caught this server up with all that was decided (see `Proof`)."""
        return self._proof.index is not None and self.applied >= self._proof.index

    def _ask_for_votes(self, send: Callable[..., None], kind: MessageKind, term: int, transfer: bool = False) -> None:
        last, last_term = self.log.last_index, self.log.last_term
        for voter in sorted(self.configuration.voters - {self.id}):
            send(voter, kind, term=term, log_index=last, log_term=last_term, transfer=transfer)

    # Messages in.

    def step(self, message: Message) -> None:
        """Take one message from another server."""
        if message.to != self.id or message.sender == self.id or self.forced:
            return
        if message.term > self.term:
            if not self._accept_higher_term(message):
                return
        elif message.term < self.term:
            self._answer_lower_term(message)
            return
        self._steps[message.kind](message)

    def _accept_higher_term(self, message: Message) -> bool:
        """Move to a higher term where the message asks for it; False if the message is to be ignored."""
        kind = message.kind
        if kind is MessageKind.VOTE or kind is MessageKind.PRE_VOTE:
            # Whoever hears a leader does not help to depose it (dissertation 4.2.3), unless that leader asked.
            if not message.transfer and self._hears_leader():
                return False
            if kind is MessageKind.PRE_VOTE:
                return True
        if kind is MessageKind.PRE_VOTE_ANSWER and not message.reject:
            return True
        handed = self._leading is not None and self._leading.hands_over
        leader = message.sender if kind in _FROM_LEADER else ""
        self._become_follower(message.term, leader, Why.HANDED if handed else Why.LATER)
        return True

    def _hears_leader(self) -> bool:
        return self.role == LEADER or (bool(self.leader) and self._elapsed < self._election_ticks)

    def _answer_lower_term(self, message: Message) -> None:
        """Let a server that is behind know the term.

        A leader of an older term is answered although nothing of its message counts: with pre-vote, a
        server that is alone in a higher term would otherwise never be heard by the leader it should follow.
        """
        kind = message.kind
        if kind in _FROM_LEADER:
            self.send(message.sender, MessageKind.HEARTBEAT_ANSWER)
        elif kind is MessageKind.PRE_VOTE:
            self.send(message.sender, MessageKind.PRE_VOTE_ANSWER, reject=True)
        elif kind is MessageKind.VOTE:
            self.send(message.sender, MessageKind.VOTE_ANSWER, reject=True)

    # Elections.

    def _step_vote(self, message: Message) -> None:
        pre_vote = message.kind is MessageKind.PRE_VOTE
        kind = MessageKind.PRE_VOTE_ANSWER if pre_vote else MessageKind.VOTE_ANSWER
        free = self.vote == message.sender or (not self.vote and not self.leader)
        if pre_vote:
            free = free or message.term > self.term
        # Learners and removed servers answer as well: the candidate may know a newer configuration.
        if self.withheld or not free or not self.log.is_up_to_date(message.log_index, message.log_term):
            self.send(message.sender, kind, reject=True)
            return
        if pre_vote:
            # Carries the term that was asked about, and promises nothing.
            self.send(message.sender, kind, term=message.term)
            return
        self.vote = message.sender
        self._elapsed = 0
        self.promise(message.sender, kind)

    def _step_pre_vote_answer(self, message: Message) -> None:
        if self.role != PRE_CANDIDATE or not (message.reject or message.term == self.term + 1):
            return
        self._votes[message.sender] = not message.reject
        if self.is_quorum(self._voted(True)):
            self._stand(transfer=False)
        else:
            self._perhaps_lost()

    def _step_vote_answer(self, message: Message) -> None:
        if self.role == CANDIDATE:
            self._votes[message.sender] = not message.reject
            self._count_votes()

    def _count_votes(self) -> None:
        if self.is_quorum(self._voted(True)):
            self._become_leader()
        else:
            self._perhaps_lost()

    def _perhaps_lost(self) -> None:
        """Go back to following once no majority can be had any more."""
        if not self.is_quorum(set(self.configuration.voters - self._voted(False))):
            self._become_follower(self.term, "")

    def _voted(self, granted: bool) -> set[str]:
        return {id for id, vote in self._votes.items() if vote is granted}

    def _step_timeout_now(self, message: Message) -> None:
        if self.role == FOLLOWER and self.leader == message.sender and self._may_campaign():
            self._stands_because(Why.HANDED)
            self._stand(transfer=True)

    # Following.

    def _follow(self, message: Message) -> bool:
        """The sender leads this term; returns False if that cannot be (a second server of the same name)."""
        if self.role == LEADER:
            return False
        if self.role != FOLLOWER or self.leader != message.sender:
            self._become_follower(self.term, message.sender)
        self._elapsed = 0
        self._suspected = False
        return True

    def _step_append(self, message: Message) -> None:
        if not self._follow(message):
            return
        log = self.log
        previous = message.log_index
        if previous < self.commit:
            # What is committed matches any leader. Entries after it are sent again from there.
            self._answer_append(self.commit)
        elif log.term_at(previous) == message.log_term:
            log.merge(message.entries, self.commit)
            matched = previous + len(message.entries)
            self._commit_to(min(message.commit, matched))
            self._answer_append(matched)
        else:
            hint, hint_term = log.conflict_hint(previous, message.log_term)
            self._answer(
                self.send,
                MessageKind.APPEND_ANSWER,
                log_index=previous,
                reject=True,
                hint_index=hint,
                hint_term=hint_term,
            )

    def _answer_append(self, matched: int) -> None:
        """Acknowledge up to `matched`: after the disk has it, or at once if it has."""
        durable = matched <= self.log.stable and self.term_is_durable
        self._answer(self.send if durable else self.promise, MessageKind.APPEND_ANSWER, log_index=matched)

    def _answer(self, send: Callable[..., None], kind: MessageKind, **fields: Any) -> None:
        """Answer the leader, and say which process it is that answers, and whether it counts."""
        send(self.leader, kind, life=self._life, withheld=self.withheld, **fields)

    def _step_heartbeat(self, message: Message) -> None:
        if not self._follow(message):
            return
        # As the paper's empty append: what it says of the commit index holds only where the logs match.
        if self.log.term_at(message.log_index) == message.log_term:
            self._commit_to(min(message.commit, message.log_index))
        send = self.send if self.term_is_durable else self.promise
        self.answers += 1
        self.confirmed = message.answer or self.confirmed
        self._answer(send, MessageKind.HEARTBEAT_ANSWER, context=message.context, answer=self.answers)

    def _step_snapshot(self, message: Message) -> None:
        snapshot = message.snapshot
        if snapshot is None or not self._follow(message):
            return
        if snapshot.index > self.commit:
            if self.log.term_at(snapshot.index) == snapshot.term:
                # The log has all of it: keep what follows.
                self._commit_to(snapshot.index)
            else:
                self._restore(snapshot)
        self._answer_append(self.commit)

    def _restore(self, snapshot: SnapshotMeta) -> None:
        self.log.restore(snapshot)
        self.commit = self._applying = snapshot.index
        self._snapshot = snapshot
        self._handed_up_to = None

    def _commit_to(self, index: int) -> None:
        if index > self.commit:
            assert index <= self.log.last_index
            self.commit = index

    # Leading.

    def propose(self, data: bytes) -> tuple[int, int]:
        """Append an entry; returns (term, index). It is committed if that index is ever applied with that term.

        Raises `NotLeader`, or `Dropped` while leadership is handed over or too much is under way.
        """
        return self._must_lead().propose(data)

    def propose_configuration(self, configuration: Configuration) -> tuple[int, int]:
        """Change the role of one server; in force at once, done when committed. Returns (term, index).

        Raises `NotLeader`, or `ChangeRefused`: one change at a time, of one server, and only after an
        entry of this leader's own term has been committed (dissertation 4.1, and its author's correction
        of 2015).
        """
        return self._must_lead().propose_configuration(configuration)

    def drop(self, id: str, ticks: int) -> tuple[int, int]:
        """A leader of two goes on alone, if the other has not answered for `ticks`. Returns (term, index).

        Allowed while another change is under way, and before anything of this term is committed: where the
        other died while it joined, neither could ever come to an end. Raises `NotLeader`, or `ChangeRefused`
        if the other is not silent for long enough, or if a configuration from the last one known to be
        committed onward has more than two voters or lacks this server.
        """
        return self._must_lead().drop(id, ticks)

    def transfer(self, to: str) -> None:
        """Hand leadership to the voter `to`, as soon as it has caught up; given up after an election timeout.

        Raises `NotLeader`, or `ChangeRefused` if `to` is no voter.
        """
        self._must_lead().transfer(to)

    def _must_lead(self) -> Leadership:
        if self._leading is None:
            raise NotLeader(self.leader or None)
        return self._leading

    def _step_append_answer(self, message: Message) -> None:
        if self._leading is not None:
            self._leading.step_append_answer(message)
            self._perhaps_retire(self._leading)

    def _step_heartbeat_answer(self, message: Message) -> None:
        if self._leading is not None:
            self._leading.step_heartbeat_answer(message)
            self._perhaps_retire(self._leading)

    def _perhaps_retire(self, leading: Leadership) -> None:
        """Removed by its own hand: tell the others what is committed, then lead no more."""
        if leading.over:
            leading.send_appends()
            self._become_follower(self.term, "", Why.REMOVED)

    def report_unreachable(self, id: str) -> None:
        """Messages to `id` were probably lost: look again where its log is."""
        if self._leading is not None:
            self._leading.report_unreachable(id)

    def wants_snapshot(self) -> tuple[str, ...]:
        """Followers that need a snapshot, because their next entry is compacted.

        Each stays in this list until `report_snapshot`, or until it says that it has one.
        """
        return self._leading.wants_snapshot() if self._leading is not None else ()

    def report_snapshot(self, id: str, ok: bool) -> None:
        """Sending a snapshot to `id` has ended; the follower's answer, or its next heartbeat answer, goes on."""
        if self._leading is not None:
            self._leading.report_snapshot(id, ok)

    # Reads.

    def read_index(self, token: int) -> None:
        """Ask from which index on a read is linearizable; the answer is a `ReadState` with this token.

        Without a leader, and whenever leadership changes, the question is forgotten: ask again. A leader
        answers once an entry of its own term is committed, and a majority has confirmed its leadership
        after the question.
        """
        if self._leading is not None:
            self._leading.read("", token)
        elif self.leader:
            self._questions.add(token)

    def _step_read(self, message: Message) -> None:
        if self._leading is not None:
            self._leading.read(message.sender, message.context)

    def _step_read_answer(self, message: Message) -> None:
        for token in self._questions.answered(message.context):
            if token == self._proof.token:
                self._proof.index = message.log_index
            elif token > 0:
                self.reads.append(ReadState(token, message.log_index))

    # What the surroundings must do.

    def urgent(self, *, commits: bool = True) -> tuple[Message, ...]:
        """Take the messages that promise nothing new; send them now, without waiting for a disk.

        Without `commits` a leader says nothing to a follower to whom it has nothing to say but how far is
        committed: that goes with the next entries, with the next heartbeat, or with the next call that has it.
        """
        if self._leading is not None:
            self._leading.flush(commits)
        elif self.leader:
            number = self._questions.ask()
            if number:
                self.send(self.leader, MessageKind.READ, context=number)
        if not self._urgent:
            return ()
        messages = tuple(self._urgent)
        self._urgent.clear()
        return messages

    @property
    def commit_untold(self) -> bool:
        """Whether this server leads, and a follower could be told that more is committed."""
        return self._leading is not None and self._leading.commit_untold

    def persisted(self, ready: Ready) -> None:
        """Everything that `ready` asked for has been done."""
        self.note_persisted(ready)
        if self._leading is not None:
            self._leading.perhaps_commit()
            self._perhaps_retire(self._leading)
        elif self.role == CANDIDATE and self.vote_is_durable and self.vote == self.id:
            self._votes[self.id] = True
            self._count_votes()

    def compact(self, index: int) -> None:
        """The rows are durable up to `index`: forget the entries up to there (never beyond what is applied)."""
        index = min(index, self.applied)
        if index >= self.log.first_index:
            self.log.compact(index)
