"""A server that decides nothing for now, because its disk may have lost what it promised: why, and until when.

It follows and acknowledges what it has, but does not lead, stand for election, vote or count. Two things end
that. The rules outside the core that withheld it must be content (`Doubts`); and a leader must have caught it
up (`Proof`). Whatever it may have promised and forgotten, a vote or an entry, could only come to something
with a majority that it was part of. So it asks for a read index, which a leader gives after a majority
_without_ it has confirmed that leader, or by itself where nothing at all is decided without that leader. The
two majorities share somebody who has not forgotten; so nothing came of the promise, or what came of it is in
the leader's log up to that index. Once this server has applied that much, it knows all that it could have known.

What this cannot save: a server that does not know that its disk is old. And of four voters and more a vote may
still be counted that was given before the disk was rolled back, while another is given in the same term after.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field


@define
class Proof:
    """The read index that is asked for while the server is withheld."""

    index: int | None = None
    """What a leader answered, if one has."""
    token: int = 0
    """Of the read that asks. Surroundings count theirs from 1 upwards, these go down, so none is like another."""
    _wait: int = 0

    def begin(self) -> None:
        """Forget what was proven before: what gives rise to doubt came after it."""
        self.index = None
        self.token -= 1
        self._wait = 0

    def asks(self, every: int) -> bool:
        """Whether to ask in this tick, in which a leader is known; the question may be lost, so once in `every`."""
        self._wait -= 1
        if self.index is not None or self._wait > 0:
            return False
        self._wait = every
        return True


@define
class Doubts:
    """Why this server is withheld, each reason with what must hold until it counts no more."""

    _doubts: dict[str, Callable[[], bool]] = field(factory=dict)

    def add(self, reason: str, until: Callable[[], bool]) -> None:
        """`reason` is told to people; one that was given before is replaced."""
        self._doubts[reason] = until

    def clear(self) -> None:
        self._doubts.clear()

    @property
    def reason(self) -> str:
        """All reasons; empty if there are none."""
        return "; ".join(self._doubts)

    def settled(self) -> bool:
        """Whether everything that was waited for has come to pass. A condition that fails counts as not met."""
        return all(until() for until in self._doubts.values())
