"""Cores that trust old disks or lose what is left, each with the seed of a history in which that breaks a rule."""

from __future__ import annotations

from chunkfarm.table.consensus import Consensus
from chunkfarm.table.lines import TERM_LEAP


class VotesAtOnce(Consensus):
    """A server whose disk is known to be old takes part as if nothing were amiss."""

    def withhold(self) -> None:
        return None


class ReleasedByAnyLeader(Consensus):
    """A server is released as soon as it has heard any leader, whom perhaps nobody else follows any more."""

    @property
    def proven(self) -> bool:
        return bool(self.leader)


class ForgetsItsTail(Consensus):
    """Who goes on by force drops what it does not know to be committed."""

    def force(self, term: int) -> None:
        self.log._truncate(self.commit + 1)
        super().force(term)


class ForcedNearby(Consensus):
    """Who goes on by force does not leap ahead in terms: those who are lost may have been in the same one."""

    def force(self, term: int) -> None:
        super().force(term - TERM_LEAP)


DISK_MUTANTS: dict[str, tuple[type[Consensus], int, str]] = {
    "old-disk-votes": (VotesAtOnce, 14, "leader completeness"),
    "old-disk-released-early": (ReleasedByAnyLeader, 733, "leader completeness"),
    "forced-without-tail": (ForgetsItsTail, 7, "leader completeness"),
    "forced-nearby": (ForcedNearby, 130, "one first"),
}
