"""Lines of the farm's history, and which one goes on when two meet: a rule over what is known, pure.

A takeover begins a new *line*: a server goes on alone, without the majority that was lost. What it has in its
journal up to its last entry then, the *fork*, is the past that both lines share; what the others committed
behind that is not in its line. Which takeovers a history went through is its *chain*, oldest first.

The side whose chain has the takeover goes on. A server of the other side that committed nothing past the fork
loses nothing by learning the new line. One that did has promised what the new line lacks, so it stops. Where each
side has a takeover that the other lacks, nobody can tell which promises count: both stop.

Why `judge` believes that nothing was committed past the fork. The last entry of the one that took over was made by
a leader of the fork's term, and the journal up to there is that leader's. It had all that was committed in terms
before its own, and of its own term nothing is committed that it did not make (dissertation 3.4). So whoever never
was in a later term, and has committed no further than the fork's index, has committed nothing else. A server that
was in a later term may have: it compares the term of its last committed entry with that of the new line's journal
at the same index, since two journals with equal terms at an index are equal up to there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Any

from attrs import frozen

LINES_MAX = 128
"""Takeovers that a chain keeps, the newest: with them it fits a row, and a farm seldom has one a month."""
NUMBER_MAX = 2**63 - 1
"""Terms and indexes are kept in a journal, whose numbers end here."""
TERM_LEAP = 2**24
"""Terms by which a takeover by hand goes ahead. The lost majority may come back and elect leaders of its own, one
term after the other; one that reached a term of the new line could not be told from its leader by the journals. An
election takes a second, so they would need half a year of nothing but elections. A server takes messages that are
`objections.TERM_STEP_MAX` terms ahead of it, which is more takeovers than a chain keeps."""

_LINE = re.compile(r"[0-9a-f]{32}\Z")


@frozen
class Fork:
    """A takeover: the line that begins with it, and the last entry of the journal of the server that took over."""

    line: str
    index: int
    term: int

    def as_item(self) -> dict[str, Any]:
        """For JSON."""
        return {"line": self.line, "index": self.index, "term": self.term}


Chain = tuple[Fork, ...]


def read_chain(items: Any) -> Chain:
    """A chain as it came from JSON; raises `ValueError` for anything else."""
    if not isinstance(items, list) or len(items) > LINES_MAX:
        raise ValueError(f"it is not a list of up to {LINES_MAX} takeovers")
    return tuple(map(read_fork, items))


def read_fork(item: Any) -> Fork:
    """One takeover as it came from JSON; raises `ValueError` for anything else."""
    if not isinstance(item, dict) or not _LINE.match(str(item.get("line"))):
        raise ValueError("a takeover has the id of its line, 32 hexadecimal digits")
    numbers = item.get("index"), item.get("term")
    if not all(type(number) is int and 0 <= number <= NUMBER_MAX for number in numbers):
        raise ValueError("a takeover has an index and a term")
    return Fork(item["line"], item["index"], item["term"])


def newest(chain: Chain) -> str:
    """The line that a chain leads to; empty for a farm that saw no takeover."""
    return chain[-1].line if chain else ""


def contains(chain: Chain, line: str) -> bool:
    """Whether the chain leads through that line; every chain leads through the first one, which has no name."""
    return not line or any(fork.line == line for fork in chain)


def longer(chain: Chain, other: Chain) -> Chain:
    """Of two chains of which one goes on where the other ends, the one that goes on."""
    return other if contains(other, newest(chain)) else chain


@frozen(kw_only=True)
class Past:
    """What a server has in its journal."""

    term: int
    """The highest term it was in."""
    committed: int
    """The index of the last entry that it knows to be committed, or that it alone decides on."""
    term_at: Callable[[int], int | None]
    """The term of its entry at an index; None where it has none, or has forgotten it."""


class Verdict(Enum):
    """What it means for this server that it met another one."""

    SAME = "same"
    """Both are of one line."""
    AHEAD = "ahead"
    """This server's line goes on; the other one will learn it."""
    BEHIND = "behind"
    """The other line goes on, and has all that this server committed."""
    LOST = "lost"
    """The other line goes on, and lacks, or may lack, what this server committed."""
    APART = "apart"
    """Each has a takeover that the other lacks."""


def fork_between(mine: Chain, theirs: Chain) -> Fork | None:
    """The takeover up to which the other line shares this one's past; None if it is older than their chain tells.

    Only where the other's chain leads through this one's newest line. It is the first takeover since then, unless a
    later one went back behind it, as the restoring of an export does.
    """
    if not mine:
        later = theirs if len(theirs) < LINES_MAX else ()
    else:
        later = theirs[[fork.line for fork in theirs].index(mine[-1].line) + 1 :]
    return min(later, key=lambda fork: fork.index, default=None)


def judge(mine: Chain, past: Past, theirs: Chain, term_there: int | None) -> Verdict:
    """What is to become of this server, which met one with another chain.

    `term_there` is the term of the other journal at this server's `committed`; None if the other one has forgotten
    it, or does not hold the rows of its line.
    """
    if newest(mine) == newest(theirs):
        return Verdict.SAME
    if contains(mine, newest(theirs)):
        return Verdict.AHEAD
    if not past.committed:
        return Verdict.BEHIND
    if not contains(theirs, newest(mine)):
        return Verdict.APART
    fork = fork_between(mine, theirs)
    if fork is None or past.committed > fork.index:
        return Verdict.LOST
    if past.term_at(fork.index) == fork.term or past.term <= fork.term:
        # Its journal leads through the very entry of the fork, or was never in a later term than that.
        return Verdict.BEHIND
    shared = term_there is not None and term_there == past.term_at(past.committed)
    return Verdict.BEHIND if shared else Verdict.LOST
