"""What a server does while it leads: replicate, commit, change the configuration, hand over, confirm reads.

A `Leadership` exists for one term of one leader and is thrown away with it, so nothing in it can be stale.
"""

from __future__ import annotations

from chunkfarm.table.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from chunkfarm.table.raft_log import ENTRY_OVERHEAD_BYTES, encode_configuration, encoded_size
from chunkfarm.table.raft_state import RaftState
from chunkfarm.table.read_rounds import ReadRounds
from chunkfarm.table.records import Configuration, Entry, EntryKind, Message, MessageKind, ReadState

ENTRY_BYTES_MAX = 52 * 1024
"""Data of one entry: a transaction of 48 KiB with its frame."""
APPEND_BYTES_MAX = 56 * 1024
"""Entries of one append: with the head of the message they fit one AMP value of 65,535 bytes."""
UNCOMMITTED_BYTES_MAX = 16 * 1024 * 1024
"""What a leader takes in ahead of its majority; beyond it proposals are dropped instead of filling memory."""
CHECK_QUORUM_VOTERS_MIN = 3
"""From here on a leader that hears no majority steps down: without it, two others can go on."""


class Dropped(Exception):
    """The proposal was not taken: leadership is being handed over, or too much is under way."""


class ChangeRefused(Exception):
    """The change of configuration, or the transfer, is not allowed now; the text says why."""


class Leadership:
    """One leader's term."""

    def __init__(self, state: RaftState, election_ticks: int, heartbeat_ticks: int) -> None:
        self.progress: dict[str, Progress] = {}
        self._state = state
        self._log = state.log
        self._election_ticks = election_ticks
        self._heartbeat_ticks = heartbeat_ticks
        self._since_heartbeat = 0
        self._rounds = ReadRounds()
        self._transfer_to = ""
        self._transfer_ticks = 0
        inherited = self._log.entries(state.commit + 1, self._log.last_index)
        self._uncommitted_bytes = sum(map(encoded_size, inherited))
        self.follow_configuration()
        self._append(EntryKind.EMPTY, b"")

    # Time.

    def tick(self) -> bool:
        """One unit of time has passed; False if this server must not lead any longer."""
        for one in self.progress.values():
            one.tick(self._election_ticks)
        if self._transfer_to:
            self._transfer_ticks += 1
            if self._transfer_ticks >= self._election_ticks:
                self._transfer_to = ""
        if len(self._state.configuration.voters) >= CHECK_QUORUM_VOTERS_MIN and not self.has_quorum:
            return False
        self._since_heartbeat += 1
        if self._since_heartbeat >= self._heartbeat_ticks:
            self._send_heartbeats()
        return True

    @property
    def has_quorum(self) -> bool:
        """Whether a majority has answered within an election timeout."""
        active = {id for id, one in self.progress.items() if one.recently_active and self._state.counts(one)}
        return self._state.is_quorum({self._state.id, *active})

    @property
    def hands_over(self) -> bool:
        """Whether leadership is being handed to another server."""
        return bool(self._transfer_to)

    @property
    def over(self) -> bool:
        """Whether this leader has been removed by a change that is committed."""
        return self._state.id not in self._state.configuration.voters and not self._state.pending_change

    # Proposals.

    def propose(self, data: bytes) -> tuple[int, int]:
        """Append an entry, or raise `Dropped`."""
        assert len(data) <= ENTRY_BYTES_MAX
        if self._transfer_to:
            raise Dropped("leadership is being handed over")
        if self._uncommitted_bytes >= UNCOMMITTED_BYTES_MAX:
            raise Dropped("too much is under way")
        return self._append(EntryKind.DATA, data)

    def propose_configuration(self, configuration: Configuration) -> tuple[int, int]:
        """Append a change of one server's role, or raise `ChangeRefused`."""
        if self._transfer_to:
            raise ChangeRefused("leadership is being handed over")
        self._check_change(configuration)
        return self._append_configuration(configuration)

    def drop(self, id: str, ticks: int) -> tuple[int, int]:
        """Go on without the other one of two voters, silent for at least `ticks`; or raise `ChangeRefused`.

        Not held to one change at a time, nor to an entry of this term: those rules see to it that the
        quorums of two leaders overlap, and here every possible quorum contains this leader, whose own
        disk must have the change before it counts.
        """
        now, one = self._state.configuration, self.progress.get(id)
        if now.voters != {self._state.id, id} or one is None:
            raise ChangeRefused("only the other one of two voters can be dropped")
        if not self._state.always_needed:
            raise ChangeRefused("others may be able to decide without this server")
        if one.silent_ticks < ticks:
            raise ChangeRefused("it has answered a short while ago")
        return self.go_on_without(id)

    def go_on_without(self, id: str) -> tuple[int, int]:
        """Append the configuration without this voter; whether that is safe has been looked at."""
        now = self._state.configuration
        return self._append_configuration(Configuration(now.voters - {id}, now.learners))

    def go_on_alone(self) -> tuple[int, int]:
        """Append a configuration of this server and nobody else; whether that may be has been decided."""
        return self._append_configuration(Configuration({self._state.id}))

    def _append_configuration(self, configuration: Configuration) -> tuple[int, int]:
        return self._append(EntryKind.CONFIGURATION, encode_configuration(configuration))

    def _check_change(self, configuration: Configuration) -> None:
        if self._state.pending_change:
            raise ChangeRefused("another change is under way")
        if not self._has_committed_own_term():
            raise ChangeRefused("nothing of this leader's term has been committed yet")
        if not configuration.voters or configuration.voters & configuration.learners:
            raise ChangeRefused("somebody must vote, and nobody votes and learns at once")
        now = self._state.configuration
        changed = (now.voters ^ configuration.voters) | (now.learners ^ configuration.learners)
        if len(changed) != 1:
            raise ChangeRefused("a change concerns exactly one server")

    def _append(self, kind: EntryKind, data: bytes) -> tuple[int, int]:
        entry = Entry(self._state.term, self._log.last_index + 1, kind, data)
        self._log.append(entry)
        self._uncommitted_bytes += len(data) + ENTRY_OVERHEAD_BYTES
        if kind is EntryKind.CONFIGURATION:
            self.follow_configuration()
        return entry.term, entry.index

    def follow_configuration(self) -> None:
        """The configuration in force has changed: start and stop telling those concerned."""
        members = self._state.configuration.members - {self._state.id}
        for id in self.progress.keys() - members:
            del self.progress[id]
        for id in sorted(members - self.progress.keys()):
            self.progress[id] = Progress(next=self._log.last_index + 1)
        if self._transfer_to not in self._state.configuration.voters:
            self._transfer_to = ""
        self._confirm_reads()

    # Commitment.

    def _has_committed_own_term(self) -> bool:
        return self._log.term_at(self._state.commit) == self._state.term

    def perhaps_commit(self) -> None:
        """Commit what a quorum has durably, if it is of this term; older entries go with it (dissertation 3.6.2)."""
        state = self._state
        index = state.reached_by_quorum(self._log.stable, self.progress, _match)
        if index <= state.commit or self._log.term_at(index) != state.term:
            return
        self._uncommitted_bytes -= sum(map(encoded_size, self._log.entries(state.commit + 1, index)))
        state.commit = index
        self._begin_round(heartbeats=False)

    def _heard(self, message: Message) -> Progress | None:
        one = self.progress.get(message.sender)
        if one is None:
            return None
        was_withheld = one.withheld
        if not one.heard(message.life, message.withheld):
            return None
        if was_withheld and not one.withheld:
            # What it has acknowledged until now counts from now on, and it may have nothing new to say for long.
            self.perhaps_commit()
            self._confirm_reads()
        return one

    def step_append_answer(self, message: Message) -> None:
        one = self._heard(message)
        if one is None:
            return
        if message.reject:
            hint = message.hint_index
            if message.hint_term:
                hint, _ = self._log.conflict_hint(hint, message.hint_term)
            one.refuse(message.log_index, hint)
            return
        if message.log_index > self._log.last_index:
            return
        news = one.accept(message.log_index)
        found = one.state == PROBE and one.match == message.log_index
        if found or (one.state == SNAPSHOT and one.match + 1 >= self._log.first_index):
            one.become_replicate()
        if news:
            if message.sender == self._transfer_to:
                self._perhaps_hand_over()
            self.perhaps_commit()

    def step_heartbeat_answer(self, message: Message) -> None:
        one = self._heard(message)
        if one is None:
            return
        one.waiting = False
        one.answer = message.answer or one.answer
        if one.match < self._log.last_index or one.state == PROBE:
            one.nudge = True
        if one.round < message.context <= self._rounds.number:
            one.round = message.context
            self._confirm_reads()

    # Transfer.

    def transfer(self, to: str) -> None:
        """Hand over to the voter `to`, or raise `ChangeRefused`."""
        if to == self._state.id or to == self._transfer_to:
            return
        if to not in self._state.configuration.voters:
            raise ChangeRefused("only a voter can lead")
        if self.progress[to].withheld:
            raise ChangeRefused("it decides nothing until it has caught up")
        self._transfer_to = to
        self._transfer_ticks = 0
        self._perhaps_hand_over()

    def _perhaps_hand_over(self) -> None:
        one = self.progress.get(self._transfer_to)
        if one is not None and one.match == self._log.last_index:
            self._state.send(self._transfer_to, MessageKind.TIMEOUT_NOW)

    # Messages out.

    def flush(self, commits: bool) -> None:
        """Queue what there is to say: a read round, entries, and with `commits` a commit index that has moved."""
        self._begin_round(heartbeats=True)
        self.send_appends(commits)

    def send_appends(self, commits: bool = True) -> None:
        last, commit = self._log.last_index, self._state.commit
        for id, one in self.progress.items():
            if one.next <= last or one.nudge or (commits and commit > one.sent_commit):
                while self._send_append(id, one, commits):
                    pass

    @property
    def commit_untold(self) -> bool:
        commit = self._state.commit
        return any(one.sent_commit < commit and one.state == REPLICATE for one in self.progress.values())

    def _send_append(self, id: str, one: Progress, commits: bool) -> bool:
        """Send one append if there is anything to say; True if there may be more."""
        if one.state == SNAPSHOT or one.waiting:
            return False
        log, previous, commit = self._log, one.next - 1, self._state.commit
        more = previous < log.last_index and one.room
        if not more and not one.nudge and not (commits and commit > one.sent_commit):
            return False
        previous_term = log.term_at(previous)
        if previous_term is None:
            # A server that answers gets a snapshot; for one that does not, it would be wasted.
            if one.recently_active:
                one.become_snapshot()
            return False
        entries = log.entries(one.next, log.last_index, APPEND_BYTES_MAX) if more else ()
        self._state.send(
            id,
            MessageKind.APPEND,
            log_index=previous,
            log_term=previous_term,
            entries=entries,
            commit=commit,
        )
        one.sent(previous + len(entries), sum(map(encoded_size, entries)), commit)
        return more

    def _send_heartbeats(self) -> None:
        self._since_heartbeat = 0
        context = self._rounds.number if self._rounds.under_way else 0
        for id, one in self.progress.items():
            # Where the match has been compacted nothing can be said of the commit index.
            term = self._log.term_at(one.match)
            known = one.match if term is not None else 0
            self._state.send(
                id,
                MessageKind.HEARTBEAT,
                log_index=known,
                log_term=term or 0,
                commit=min(known, self._state.commit),
                context=context,
                answer=one.answer if self._counts_on(id, one) else 0,
            )

    def _counts_on(self, id: str, one: Progress) -> bool:
        """Whether this follower has all that was ever committed without it, and is needed for all to come.

        Only then may it build on having been heard. A server that was dropped, and learns again, answers too.
        """
        state = self._state
        return id in state.configuration.voters and state.configuration_index <= min(one.match, state.commit)

    # The state of the links.

    def report_unreachable(self, id: str) -> None:
        one = self.progress.get(id)
        if one is not None and one.state == REPLICATE:
            one.become_probe(one.match + 1)

    def wants_snapshot(self) -> tuple[str, ...]:
        return tuple(id for id, one in self.progress.items() if one.state == SNAPSHOT)

    def report_snapshot(self, id: str, ok: bool) -> None:
        one = self.progress.get(id)
        if one is not None and one.state == SNAPSHOT:
            one.become_probe(max(one.match + 1, self._log.first_index) if ok else one.match + 1)
            one.waiting = True

    # Reads.

    def read(self, sender: str, token: int) -> None:
        """Somebody (empty: this server) asks for a read index."""
        self._rounds.add(sender, token)
        self._begin_round(heartbeats=False)

    def _begin_round(self, heartbeats: bool) -> None:
        """Let a round begin for the reads that wait; alone, a leader needs nobody's confirmation."""
        if not self._rounds.waiting or not self._has_committed_own_term():
            return
        if self._state.is_quorum({self._state.id}):
            self._rounds.begin(self._state.commit)
            self._confirm_reads()
        elif heartbeats and self._rounds.begin(self._state.commit):
            self._send_heartbeats()

    def _confirm_reads(self) -> None:
        number = self._state.reached_by_quorum(self._rounds.number, self.progress, _round)
        for sender, token, index in self._rounds.confirmed(number):
            if sender:
                self._state.send(sender, MessageKind.READ_ANSWER, context=token, log_index=index)
            else:
                self._state.reads.append(ReadState(token, index))


def _match(one: Progress) -> int:
    return one.match


def _round(one: Progress) -> int:
    return one.round
