"""Whether the second of two servers may go on alone after the first is gone: a rule over what it saw, pure.

Silence proves nothing, for the leader may live behind a cut, and may already have gone on alone. What proves
its death is that its process is gone from its machine: the other side ended a link (a timeout never counts),
and its ports refuse. And it must have died before it could give up this server. It does that no sooner than
`grace` after the last answer that it received; so it had not, if the first refusal came less than `grace` after
this server sent an answer of which the leader has confirmed that it received it. What was merely sent proves
nothing: the leader may have been deaf.

Times are seconds on a clock that goes on while the machine sleeps (CLOCK_BOOTTIME). A process that was started
after it last could have heard that leader has no confirmed answer, so it never takes over.
"""

from __future__ import annotations

from collections import deque

from attrs import define, field

from chunkfarm.table.records import Message, MessageKind

ANSWERS_MAX = 1000
"""Answers remembered until they are confirmed: ten a second for longer than any `grace` that is of use here."""
GAP = 0.5
"""Part of `grace` that may lie between two refusals. In a longer gap the other could have come and gone unseen."""


@define
class Survivor:
    """What one server has seen of the leader of a pair. All of it is forgotten when another leads."""

    leader: str = ""
    _sent: deque[tuple[int, float]] = field(factory=deque)
    _confirmed_at: float = float("-inf")
    """When the last confirmed answer was sent."""
    _closed: bool = False
    _refused_first: float | None = None
    _refused_last: float = 0.0

    def saw(self, message: Message, term: int, answers: int, now: float) -> None:
        """A message came, and is about to be taken by a core in `term` that has given so many heartbeat answers."""
        self.heard(message.sender)
        if message.kind is MessageKind.HEARTBEAT and message.term >= term:
            self.answered(message.sender, answers + 1, now)
            if message.answer:
                self.confirmed(message.sender, message.answer)

    def answered(self, leader: str, number: int, now: float) -> None:
        """An answer with this number is about to be sent to the leader."""
        if leader != self.leader:
            self.forget()
            self.leader = leader
        self._sent.append((number, now))
        if len(self._sent) > ANSWERS_MAX:
            self._sent.popleft()

    def confirmed(self, leader: str, number: int) -> None:
        """The leader says that this is the last answer it has received."""
        if leader != self.leader or all(number != sent for sent, _ in self._sent):
            return
        while self._sent[0][0] != number:
            self._sent.popleft()
        self._confirmed_at = self._sent.popleft()[1]

    def heard(self, server: str) -> None:
        """Anything came from this server: whatever was seen of its death before was wrong, or is over."""
        if server == self.leader:
            self._closed = False
            self._refused_first = None

    def closed(self, server: str) -> None:
        """The other side has ended a link, by end of file or reset."""
        self._closed = self._closed or server == self.leader

    def tried(self, server: str, refused: bool, now: float, grace: float) -> bool:
        """Both ports were tried; returns whether this server may take over, which is so only right now.

        `refused` means that both were refused by that machine; anything else begins the proof anew.
        """
        if server != self.leader:
            return False
        if not refused or not self._closed:
            self._refused_first = None
            return False
        if self._refused_first is None or now - self._refused_last > grace * GAP:
            self._refused_first = now
        self._refused_last = now
        return self._refused_first - self._confirmed_at < grace <= now - self._refused_first

    @property
    def suspects(self) -> bool:
        """Whether the leader's ports should be tried."""
        return self._closed

    def forget(self) -> None:
        """Nothing seen so far counts."""
        self.leader = ""
        self._sent.clear()
        self._confirmed_at = float("-inf")
        self._closed = False
        self._refused_first = None
