"""Linearizable reads without writing: the read index of Ongaro's dissertation, section 6.4, in batches.

The leader notes its commit index, then asks everyone whether it still leads. All reads that have come in
by then share that round; one that comes in later waits for the next, because a round proves leadership
only for what was asked before it began. Several rounds may be under way, and a later one that is
confirmed confirms those before it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from random import Random

ROUNDS_MAX = 4
"""Rounds under way at once; more requests than that share the next round."""
QUESTIONS_MAX = 256
"""Unanswered questions a follower remembers. A lost one is asked again by the caller, under a new number."""

Asker = tuple[str, int]
"""Who asked (empty: this server itself) and under which token or number."""


class ReadRounds:
    """The leader's side."""

    __slots__ = ("_rounds", "_waiting", "number")

    def __init__(self) -> None:
        self.number = 0
        """Of the latest round; heartbeats carry it."""
        self._waiting: list[Asker] = []
        self._rounds: deque[tuple[int, int, list[Asker]]] = deque()

    def add(self, sender: str, token: int) -> None:
        self._waiting.append((sender, token))

    def begin(self, commit: int) -> bool:
        """Start a round for all that wait, if any do and there is room; the answers will be `commit`."""
        if not self._waiting or len(self._rounds) >= ROUNDS_MAX:
            return False
        self.number += 1
        self._rounds.append((self.number, commit, self._waiting))
        self._waiting = []
        return True

    def confirmed(self, number: int) -> Iterator[tuple[str, int, int]]:
        """Sender, token and read index of every read in rounds up to `number`, which a quorum acknowledged."""
        while self._rounds and self._rounds[0][0] <= number:
            _, index, askers = self._rounds.popleft()
            for sender, token in askers:
                yield sender, token, index

    @property
    def under_way(self) -> bool:
        return bool(self._rounds)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)


class ReadQuestions:
    """The follower's side: tokens that wait to be asked, and questions that wait for the leader's answer.

    Numbers begin at a random place, so that the answer to a question of this server's last life, arriving
    late, is not taken for the answer to a new one: its index would be too old.
    """

    __slots__ = ("_asked", "_number", "_waiting")

    def __init__(self, random: Random) -> None:
        self._number = random.getrandbits(40) << 20
        self._waiting: list[int] = []
        self._asked: OrderedDict[int, list[int]] = OrderedDict()

    def add(self, token: int) -> None:
        self._waiting.append(token)

    def ask(self) -> int:
        """The number of a question for all tokens that wait; 0 if none does."""
        if not self._waiting:
            return 0
        self._number += 1
        self._asked[self._number] = self._waiting
        self._waiting = []
        if len(self._asked) > QUESTIONS_MAX:
            self._asked.popitem(last=False)
        return self._number

    def answered(self, number: int) -> list[int]:
        """The tokens of question `number` (none if it is not ours, or has been answered)."""
        return self._asked.pop(number, [])

    def clear(self) -> None:
        self._waiting = []
        self._asked.clear()
