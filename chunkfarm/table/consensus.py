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

from chunkfarm.table.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from chunkfarm.table.raft_log import ENTRY_OVERHEAD_BYTES, RaftLog, encode_configuration, encoded_size
from chunkfarm.table.read_rounds import ReadQuestions, ReadRounds
from chunkfarm.table.records import (
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageKind,
    ReadState,
    Ready,
    SnapshotMeta,
)

FOLLOWER = "follower"
PRE_CANDIDATE = "pre_candidate"
CANDIDATE = "candidate"
LEADER = "leader"

ENTRY_BYTES_MAX = 52 * 1024
"""Data of one entry: a transaction of 48 KiB with its frame."""
APPEND_BYTES_MAX = 56 * 1024
"""Entries of one append: with the head of the message they fit one AMP value of 65,535 bytes."""
UNCOMMITTED_BYTES_MAX = 16 * 1024 * 1024
"""What a leader takes in ahead of its majority; beyond it proposals are dropped instead of filling memory."""
APPLY_BYTES_MAX = 1024 * 1024
"""Committed entries in one Ready: applying them must not hold up the next append for long."""
CHECK_QUORUM_VOTERS_MIN = 3
"""From here on a leader that hears no majority steps down: without it, two others can go on."""
RANK_MAX = 6
"""Ranks beyond this are stretched no further, so that even the last in line stands for election in time."""


class NotLeader(Exception):
    """This server does not lead; `leader` is who does, as far as it knows (None: nobody)."""

    def __init__(self, leader: str | None) -> None:
        super().__init__(f"the leader is {leader}" if leader else "there is no leader")
        self.leader = leader


class Dropped(Exception):
    """The proposal was not taken: leadership is being handed over, or too much is under way."""


class ChangeRefused(Exception):
    """The change of configuration, or the transfer, is not allowed now; the text says why."""


def majority(voters: int) -> int:
    """How many of `voters` decide."""
    return voters // 2 + 1


class Consensus:
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
        self.id = id
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = FOLLOWER
        self.leader = ""
        self.progress: dict[str, Progress] = {}
        self.log = RaftLog(snapshot, entries)
        self.commit = max(hard_state.commit, applied, snapshot.index)
        if self.commit > self.log.last_index or self.log.last_term > self.term:
            raise ValueError("the log on disk lacks entries that were committed, or the term is too old for it")
        self.applied = max(applied, snapshot.index)
        self._random = random
        self._rank = rank
        self._election_ticks = election_ticks
        self._heartbeat_ticks = heartbeat_ticks
        self._elapsed = 0
        self._since_heartbeat = 0
        self._timeout = 0
        self._votes: dict[str, bool] = {}
        self._transfer_to = ""
        self._transfer_ticks = 0
        self._uncommitted_bytes = 0
        self._rounds = ReadRounds()
        self._questions = ReadQuestions(random)
        # What goes out.
        self._urgent: list[Message] = []
        self._promises: list[Message] = []
        self._reads: list[ReadState] = []
        self._snapshot: SnapshotMeta | None = None
        self._under_way: Ready | None = None
        self._handed_up_to: tuple[int, int] | None = None
        self._handed_hard = (self.term, self.vote)
        self._durable_hard = (self.term, self.vote)
        self._handed_commit = hard_state.commit
        self._applying = self.applied
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
    def last_index(self) -> int:
        return self.log.last_index

    @property
    def configuration(self) -> Configuration:
        """The configuration in force, committed or not."""
        return self.log.configuration

    @property
    def configuration_index(self) -> int:
        return self.log.configuration_index

    @property
    def pending_change(self) -> bool:
        """Whether the configuration in force is not known to be committed."""
        return self.log.configuration_index > self.commit

    @property
    def has_quorum(self) -> bool:
        """Leader: a majority has answered within an election timeout. Others: they have heard a leader within it."""
        if self.role != LEADER:
            return bool(self.leader) and self._elapsed < self._election_ticks
        return self._is_quorum({self.id, *(id for id, one in self.progress.items() if one.recently_active)})

    def snapshot_meta(self, index: int) -> SnapshotMeta:
        """Index, term and configuration of an applied position that is not compacted yet."""
        return self.log.meta_at(index)

    # The one place that knows what a quorum is.

    def _is_quorum(self, servers: set[str]) -> bool:
        """Whether these servers decide, under the configuration in force."""
        voters = self.log.configuration.voters
        return len(voters & servers) >= majority(len(voters))

    def _reached_by_quorum(self, mine: int, theirs: Callable[[Progress], int]) -> int:
        """The highest number that a quorum has reached; `mine` is this server's, `theirs` a follower's."""
        voters = self.log.configuration.voters
        reached = [theirs(one) for id, one in self.progress.items() if id in voters]
        if self.id in voters:
            reached.append(mine)
        if len(reached) < majority(len(voters)):
            return 0
        reached.sort(reverse=True)
        return reached[majority(len(voters)) - 1]

    # Time.

    def tick(self) -> None:
        """One unit of time has passed."""
        self._elapsed += 1
        if self.role == LEADER:
            self._tick_leader()
        elif self._elapsed >= self._timeout:
            self._restart_timer()
            self.campaign()

    def _tick_leader(self) -> None:
        for one in self.progress.values():
            one.tick(self._election_ticks)
        if self._transfer_to:
            self._transfer_ticks += 1
            if self._transfer_ticks >= self._election_ticks:
                self._transfer_to = ""
        if len(self.configuration.voters) >= CHECK_QUORUM_VOTERS_MIN and not self.has_quorum:
            self._become_follower(self.term, "")
            return
        self._since_heartbeat += 1
        if self._since_heartbeat >= self._heartbeat_ticks:
            self._send_heartbeats()

    def _restart_timer(self) -> None:
        """Forget the time that has passed, and draw a new election timeout.

        Without ranks it lies between one and two election timeouts. With ranks the draw is narrower, and
        each rank waits three tenths longer than the one before, so that mostly the senior stands first.
        """
        self._elapsed = 0
        ticks = self._election_ticks
        if self._rank is None:
            self._timeout = ticks + self._random.randrange(ticks)
        else:
            stretch = min(max(self._rank(self.id), 0), RANK_MAX) * ticks * 3 // 10
            self._timeout = ticks + stretch + self._random.randrange(max(2, ticks // 2))

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
        self.progress = {}
        self._votes = {}
        self._transfer_to = ""
        self._rounds.clear()
        self._restart_timer()

    def _become_follower(self, term: int, leader: str) -> None:
        self._reset(term)
        self.role = FOLLOWER
        self.leader = leader

    def _become_leader(self) -> None:
        assert self.role == CANDIDATE
        self._reset(self.term)
        self.role = LEADER
        self.leader = self.id
        self._since_heartbeat = 0
        self._uncommitted_bytes = sum(
            encoded_size(entry) for entry in self.log.entries(self.commit + 1, self.last_index)
        )
        self._follow_configuration()
        self._append(EntryKind.EMPTY, b"")

    def campaign(self) -> None:
        """Stand for election, if this server may: first ask whether it would win (pre-vote, dissertation 9.6)."""
        if self.role == LEADER or not self._may_campaign():
            return
        self._reset(self.term)
        self.role = PRE_CANDIDATE
        self._votes = {self.id: True}
        if self._is_quorum({self.id}):
            self._stand(transfer=False)
            return
        self._ask_for_votes(self._send, MessageKind.PRE_VOTE, self.term + 1)

    def _may_campaign(self) -> bool:
        """Voters may; and one that a change removes, until that change is committed (dissertation 4.2.2).

        Its vote does not count then, but the others may need it: it can be the only one that has the change.
        """
        if self.id in self.configuration.voters:
            return True
        return self.pending_change and self.id in self.log.previous_configuration.voters

    def _stand(self, transfer: bool) -> None:
        """Be a candidate in the next term. The own vote counts once it is durable (see `persisted`)."""
        self._reset(self.term + 1)
        self.role = CANDIDATE
        self.vote = self.id
        self._ask_for_votes(self._promise, MessageKind.VOTE, self.term, transfer)

    def _ask_for_votes(self, send: Callable[..., None], kind: MessageKind, term: int, transfer: bool = False) -> None:
        last, last_term = self.log.last_index, self.log.last_term
        for voter in sorted(self.configuration.voters - {self.id}):
            send(voter, kind, term=term, log_index=last, log_term=last_term, transfer=transfer)

    # Messages in.

    def step(self, message: Message) -> None:
        """Take one message from another server."""
        if message.to != self.id or message.sender == self.id:
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
        self._become_follower(message.term, message.sender if kind in _FROM_LEADER else "")
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
            self._send(message.sender, MessageKind.HEARTBEAT_ANSWER)
        elif kind is MessageKind.PRE_VOTE:
            self._send(message.sender, MessageKind.PRE_VOTE_ANSWER, reject=True)
        elif kind is MessageKind.VOTE:
            self._send(message.sender, MessageKind.VOTE_ANSWER, reject=True)

    def _message(self, to: str, kind: MessageKind, **fields: Any) -> Message:
        return Message(kind=kind, sender=self.id, to=to, term=fields.pop("term", self.term), **fields)

    def _send(self, to: str, kind: MessageKind, **fields: Any) -> None:
        """Queue a message that promises nothing."""
        self._urgent.append(self._message(to, kind, **fields))

    def _promise(self, to: str, kind: MessageKind, **fields: Any) -> None:
        """Queue a message that leaves only when everything that has happened so far is durable."""
        self._promises.append(self._message(to, kind, **fields))

    # Elections.

    def _step_vote(self, message: Message) -> None:
        pre_vote = message.kind is MessageKind.PRE_VOTE
        kind = MessageKind.PRE_VOTE_ANSWER if pre_vote else MessageKind.VOTE_ANSWER
        free = self.vote == message.sender or (not self.vote and not self.leader)
        if pre_vote:
            free = free or message.term > self.term
        # Learners and removed servers answer as well: the candidate may know a newer configuration.
        if not free or not self.log.is_up_to_date(message.log_index, message.log_term):
            self._send(message.sender, kind, reject=True)
            return
        if pre_vote:
            # Carries the term that was asked about, and promises nothing.
            self._send(message.sender, kind, term=message.term)
            return
        self.vote = message.sender
        self._elapsed = 0
        self._promise(message.sender, kind)

    def _step_pre_vote_answer(self, message: Message) -> None:
        if self.role != PRE_CANDIDATE or not (message.reject or message.term == self.term + 1):
            return
        self._votes[message.sender] = not message.reject
        if self._is_quorum(self._voted(True)):
            self._stand(transfer=False)
        else:
            self._perhaps_lost()

    def _step_vote_answer(self, message: Message) -> None:
        if self.role == CANDIDATE:
            self._votes[message.sender] = not message.reject
            self._count_votes()

    def _count_votes(self) -> None:
        if self._is_quorum(self._voted(True)):
            self._become_leader()
        else:
            self._perhaps_lost()

    def _perhaps_lost(self) -> None:
        """Go back to following once no majority can be had any more."""
        if not self._is_quorum(set(self.configuration.voters - self._voted(False))):
            self._become_follower(self.term, "")

    def _voted(self, granted: bool) -> set[str]:
        return {id for id, vote in self._votes.items() if vote is granted}

    def _step_timeout_now(self, message: Message) -> None:
        if self.role == FOLLOWER and self._may_campaign():
            self._stand(transfer=True)

    # Following.

    def _follow(self, message: Message) -> bool:
        """The sender leads this term; returns False if that cannot be (a second server of the same name)."""
        if self.role == LEADER:
            return False
        if self.role != FOLLOWER or self.leader != message.sender:
            self._become_follower(self.term, message.sender)
        self._elapsed = 0
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
            if log.merge(message.entries, self.commit):
                self._follow_configuration()
            matched = previous + len(message.entries)
            self._commit_to(min(message.commit, matched))
            self._answer_append(matched)
        else:
            hint, hint_term = log.conflict_hint(previous, message.log_term)
            self._send(
                message.sender,
                MessageKind.APPEND_ANSWER,
                log_index=previous,
                reject=True,
                hint_index=hint,
                hint_term=hint_term,
            )

    def _answer_append(self, matched: int) -> None:
        """Acknowledge up to `matched`: after the disk has it, or at once if it has."""
        durable = matched <= self.log.stable and self._term_is_durable()
        (self._send if durable else self._promise)(self.leader, MessageKind.APPEND_ANSWER, log_index=matched)

    def _term_is_durable(self) -> bool:
        return self._durable_hard[0] == self.term

    def _step_heartbeat(self, message: Message) -> None:
        if not self._follow(message):
            return
        # As the paper's empty append: what it says of the commit index holds only where the logs match.
        if self.log.term_at(message.log_index) == message.log_term:
            self._commit_to(min(message.commit, message.log_index))
        send = self._send if self._term_is_durable() else self._promise
        send(message.sender, MessageKind.HEARTBEAT_ANSWER, context=message.context)

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
        self._follow_configuration()

    def _commit_to(self, index: int) -> None:
        if index > self.commit:
            assert index <= self.log.last_index
            self.commit = index

    # Leading.

    def propose(self, data: bytes) -> tuple[int, int]:
        """Append an entry; returns (term, index). It is committed if that index is ever applied with that term.

        Raises `NotLeader`, or `Dropped` while leadership is handed over or too much is under way.
        """
        self._must_lead()
        assert len(data) <= ENTRY_BYTES_MAX
        if self._transfer_to:
            raise Dropped("leadership is being handed over")
        if self._uncommitted_bytes >= UNCOMMITTED_BYTES_MAX:
            raise Dropped("too much is under way")
        return self._append(EntryKind.DATA, data)

    def propose_configuration(self, configuration: Configuration) -> tuple[int, int]:
        """Change the role of one server; in force at once, done when committed. Returns (term, index).

        Raises `NotLeader`, or `ChangeRefused`: one change at a time, of one server, and only after an
        entry of this leader's own term has been committed (dissertation 4.1, and its author's correction
        of 2015).
        """
        self._must_lead()
        if self._transfer_to:
            raise ChangeRefused("leadership is being handed over")
        self._check_change(configuration)
        return self._append(EntryKind.CONFIGURATION, encode_configuration(configuration))

    def _check_change(self, configuration: Configuration) -> None:
        if self.pending_change:
            raise ChangeRefused("another change is under way")
        if not self._has_committed_own_term():
            raise ChangeRefused("nothing of this leader's term has been committed yet")
        if not configuration.voters or configuration.voters & configuration.learners:
            raise ChangeRefused("somebody must vote, and nobody votes and learns at once")
        now = self.configuration
        changed = (now.voters ^ configuration.voters) | (now.learners ^ configuration.learners)
        if len(changed) != 1:
            raise ChangeRefused("a change concerns exactly one server")

    def transfer(self, to: str) -> None:
        """Hand leadership to the voter `to`, as soon as it has caught up; given up after an election timeout.

        Raises `NotLeader`, or `ChangeRefused` if `to` is no voter.
        """
        self._must_lead()
        if to == self.id or to == self._transfer_to:
            return
        if to not in self.configuration.voters:
            raise ChangeRefused("only a voter can lead")
        self._transfer_to = to
        self._transfer_ticks = 0
        self._perhaps_hand_over()

    def _perhaps_hand_over(self) -> None:
        one = self.progress.get(self._transfer_to)
        if one is not None and one.match == self.last_index:
            self._send(self._transfer_to, MessageKind.TIMEOUT_NOW)

    def _must_lead(self) -> None:
        if self.role != LEADER:
            raise NotLeader(self.leader or None)

    def _append(self, kind: EntryKind, data: bytes) -> tuple[int, int]:
        entry = Entry(self.term, self.log.last_index + 1, kind, data)
        self.log.append(entry)
        self._uncommitted_bytes += len(data) + ENTRY_OVERHEAD_BYTES
        if kind is EntryKind.CONFIGURATION:
            self._follow_configuration()
        return entry.term, entry.index

    def _follow_configuration(self) -> None:
        """The configuration in force has changed: a leader starts and stops telling those concerned."""
        if self.role != LEADER:
            return
        members = self.configuration.members - {self.id}
        for id in self.progress.keys() - members:
            del self.progress[id]
        for id in sorted(members - self.progress.keys()):
            self.progress[id] = Progress(next=self.last_index + 1)
        if self._transfer_to not in self.configuration.voters:
            self._transfer_to = ""
        self._confirm_reads()

    def _has_committed_own_term(self) -> bool:
        return self.log.term_at(self.commit) == self.term

    def _perhaps_commit(self) -> None:
        """Commit what a quorum has durably, if it is of this term; older entries go with it (dissertation 3.6.2)."""
        index = self._reached_by_quorum(self.log.stable, _match)
        if index <= self.commit or self.log.term_at(index) != self.term:
            return
        for entry in self.log.entries(self.commit + 1, index):
            self._uncommitted_bytes -= encoded_size(entry)
        self.commit = index
        self._begin_round(heartbeats=False)
        if self.id not in self.configuration.voters and not self.pending_change:
            # Removed by its own hand: tell the others what is committed, then lead no more.
            self._send_appends()
            self._become_follower(self.term, "")

    def _step_append_answer(self, message: Message) -> None:
        one = self.progress.get(message.sender)
        if one is None:
            return
        one.heard()
        if message.reject:
            hint = message.hint_index
            if message.hint_term:
                hint, _ = self.log.conflict_hint(hint, message.hint_term)
            one.refuse(message.log_index, hint)
            return
        news = one.accept(message.log_index)
        found = one.state == PROBE and one.match == message.log_index
        if found or (one.state == SNAPSHOT and one.match + 1 >= self.log.first_index):
            one.become_replicate()
        if news:
            if message.sender == self._transfer_to:
                self._perhaps_hand_over()
            self._perhaps_commit()

    def _step_heartbeat_answer(self, message: Message) -> None:
        one = self.progress.get(message.sender)
        if one is None:
            return
        one.heard()
        one.waiting = False
        if one.match < self.last_index or one.state == PROBE:
            one.nudge = True
        if message.context > one.round:
            one.round = message.context
            self._confirm_reads()

    def report_unreachable(self, id: str) -> None:
        """Messages to `id` were probably lost: look again where its log is."""
        one = self.progress.get(id)
        if one is not None and one.state == REPLICATE:
            one.become_probe(one.match + 1)

    def wants_snapshot(self) -> tuple[str, ...]:
        """Followers that need a snapshot, because their next entry is compacted.

        Each stays in this list until `report_snapshot`, or until it says that it has one.
        """
        return tuple(id for id, one in self.progress.items() if one.state == SNAPSHOT)

    def report_snapshot(self, id: str, ok: bool) -> None:
        """Sending a snapshot to `id` has ended; the follower's answer, or its next heartbeat answer, goes on."""
        one = self.progress.get(id)
        if one is not None and one.state == SNAPSHOT:
            one.become_probe(max(one.match + 1, self.log.first_index) if ok else one.match + 1)
            one.waiting = True

    # Messages of a leader.

    def _send_heartbeats(self) -> None:
        self._since_heartbeat = 0
        context = self._rounds.number if self._rounds.under_way else 0
        for id, one in self.progress.items():
            # Where the match has been compacted nothing can be said of the commit index.
            term = self.log.term_at(one.match)
            known = one.match if term is not None else 0
            self._send(
                id,
                MessageKind.HEARTBEAT,
                log_index=known,
                log_term=term or 0,
                commit=min(known, self.commit),
                context=context,
            )

    def _send_appends(self) -> None:
        for id, one in self.progress.items():
            while self._send_append(id, one):
                pass

    def _send_append(self, id: str, one: Progress) -> bool:
        """Send one append if there is anything to say; True if there may be more."""
        if one.state == SNAPSHOT or one.waiting:
            return False
        log, previous = self.log, one.next - 1
        more = previous < log.last_index and one.room
        if not more and not one.nudge and self.commit <= one.sent_commit:
            return False
        previous_term = log.term_at(previous)
        if previous_term is None:
            # A server that answers gets a snapshot; for one that does not, it would be wasted.
            if one.recently_active:
                one.become_snapshot()
            return False
        entries = log.entries(one.next, log.last_index, APPEND_BYTES_MAX) if more else ()
        self._send(
            id,
            MessageKind.APPEND,
            log_index=previous,
            log_term=previous_term,
            entries=entries,
            commit=self.commit,
        )
        one.sent(previous + len(entries), sum(map(encoded_size, entries)), self.commit)
        return more

    # Reads.

    def read_index(self, token: int) -> None:
        """Ask from which index on a read is linearizable; the answer is a `ReadState` with this token.

        Without a leader, and whenever leadership changes, the question is forgotten: ask again. A leader
        answers once an entry of its own term is committed, and a majority has confirmed its leadership
        after the question.
        """
        if self.role == LEADER:
            self._rounds.add("", token)
            self._begin_round(heartbeats=False)
        elif self.leader:
            self._questions.add(token)

    def _begin_round(self, heartbeats: bool) -> None:
        """Let a round begin for the reads that wait; alone, a leader needs nobody's confirmation."""
        if not self._rounds.waiting or not self._has_committed_own_term():
            return
        if self._is_quorum({self.id}):
            self._rounds.begin(self.commit)
            self._confirm_reads()
        elif heartbeats and self._rounds.begin(self.commit):
            self._send_heartbeats()

    def _confirm_reads(self) -> None:
        number = self._reached_by_quorum(self._rounds.number, _round)
        for sender, token, index in self._rounds.confirmed(number):
            if sender:
                self._send(sender, MessageKind.READ_ANSWER, context=token, log_index=index)
            else:
                self._reads.append(ReadState(token, index))

    def _step_read(self, message: Message) -> None:
        if self.role == LEADER:
            self._rounds.add(message.sender, message.context)
            self._begin_round(heartbeats=False)

    def _step_read_answer(self, message: Message) -> None:
        for token in self._questions.answered(message.context):
            self._reads.append(ReadState(token, message.log_index))

    # What the surroundings must do.

    def urgent(self) -> tuple[Message, ...]:
        """Take the messages that promise nothing new; send them now, without waiting for a disk."""
        if self.role == LEADER:
            self._begin_round(heartbeats=True)
            self._send_appends()
        elif self.leader:
            number = self._questions.ask()
            if number:
                self._send(self.leader, MessageKind.READ, context=number)
        if not self._urgent:
            return ()
        messages = tuple(self._urgent)
        self._urgent.clear()
        return messages

    def take_reads(self) -> tuple[ReadState, ...]:
        """Take the reads that are confirmed, for surroundings that do not want them to wait for the next Ready."""
        reads = tuple(self._reads)
        self._reads.clear()
        return reads

    def has_ready(self) -> bool:
        """Whether `ready()` would have something (never while one is under way)."""
        return self._under_way is None and bool(
            self.log.handed < self.log.last_index
            or self._promises
            or self.commit > self._applying
            or self._reads
            or self._snapshot is not None
            or self._handed_hard != (self.term, self.vote)
        )

    def ready(self) -> Ready:
        """Everything that is to be done now, as `records.Ready` says; `persisted` must follow."""
        assert self._under_way is None, "one Ready at a time"
        entries = self.log.unhanded()
        hard_state = None
        hard = (self.term, self.vote)
        # A commit index that has only moved rides along with the next write: losing it costs nothing.
        if hard != self._handed_hard or ((entries or self._snapshot) and self.commit != self._handed_commit):
            hard_state = HardState(self.term, self.vote, self.commit)
            self._handed_hard = hard
            self._handed_commit = self.commit
        committed: tuple[Entry, ...] = ()
        if self.commit > self._applying:
            committed = self.log.entries(self._applying + 1, self.commit, APPLY_BYTES_MAX)
            self._applying = committed[-1].index
        self._under_way = Ready(
            hard_state=hard_state,
            snapshot=self._snapshot,
            entries=entries,
            messages=tuple(self._promises),
            committed=committed,
            reads=self.take_reads(),
        )
        if entries:
            self.log.handed = entries[-1].index
            self._handed_up_to = (entries[-1].index, entries[-1].term)
        elif self._snapshot is not None:
            self._handed_up_to = (self._snapshot.index, self._snapshot.term)
        self._snapshot = None
        self._promises.clear()
        return self._under_way

    def persisted(self, ready: Ready) -> None:
        """Everything that `ready` asked for has been done."""
        assert ready is self._under_way
        self._under_way = None
        if ready.hard_state is not None:
            self._durable_hard = (ready.hard_state.term, ready.hard_state.vote)
        if ready.snapshot is not None:
            self.applied = max(self.applied, ready.snapshot.index)
        if ready.committed:
            self.applied = max(self.applied, ready.committed[-1].index)
        if self._handed_up_to is not None:
            # Entries that were truncated meanwhile, and replaced, are not what the disk has now.
            index, term = self._handed_up_to
            if self.log.term_at(index) == term:
                self.log.stable = max(self.log.stable, index)
            self._handed_up_to = None
        if self.role == LEADER:
            self._perhaps_commit()
        elif self.role == CANDIDATE and self._durable_hard == (self.term, self.id):
            self._votes[self.id] = True
            self._count_votes()

    def compact(self, index: int) -> None:
        """The rows are durable up to `index`: forget the entries up to there (never beyond what is applied)."""
        index = min(index, self.applied)
        if index >= self.log.first_index:
            self.log.compact(index)


_FROM_LEADER = frozenset({MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT})


def _match(one: Progress) -> int:
    return one.match


def _round(one: Progress) -> int:
    return one.round
