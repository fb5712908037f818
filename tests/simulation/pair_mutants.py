"""Rules for two servers with one fault each. A simulation that lets one of them live checks nothing.

Each stands in `PAIR_MUTANTS` with a seed that catches it, and the rule that it breaks then.
"""

from __future__ import annotations

from chunkfarm.table.consensus import LEADER, ChangeRefused, Consensus
from chunkfarm.table.leadership import Leadership
from chunkfarm.table.progress import Progress
from chunkfarm.table.records import Ready
from chunkfarm.table.survivor import Survivor
from tests.simulation.pairs import GRACE, Rules


class _TrustsTimeouts(Survivor):
    """A link that is silent, and ports that do not answer, are taken for the end of a process."""

    @property
    def suspects(self) -> bool:
        return bool(self.leader)

    def tried(self, server: str, refused: bool, now: float, grace: float) -> bool:
        self.closed(server)
        return super().tried(server, True, now, grace)


class _TrustsWhatItSent(Survivor):
    """An answer counts when it is sent, confirmed or not."""

    def answered(self, leader: str, number: int, now: float) -> None:
        super().answered(leader, number, now)
        self.confirmed(leader, number)


class _TrustsAnyRefusal(Survivor):
    """Ports that refuse prove the end of the leader, however long ago it was heard."""

    def tried(self, server: str, refused: bool, now: float, grace: float) -> bool:
        self._confirmed_at = now
        return super().tried(server, refused, now, grace)


class _TrustsStolenAddresses(Survivor):
    """Ports that refuse are enough; no link needs to have been ended."""

    @property
    def suspects(self) -> bool:
        return bool(self.leader)

    def tried(self, server: str, refused: bool, now: float, grace: float) -> bool:
        self.closed(server)
        return super().tried(server, refused, now, grace)


class _ConfirmsAnybody(Leadership):
    def _counts_on(self, id: str, one: Progress) -> bool:
        return True


class _LeadsAnybody(Consensus):
    """A leader confirms the answers of servers that lack what was committed without them."""

    def _lead(self) -> Leadership:
        return _ConfirmsAnybody(self, self._election_ticks, self._heartbeat_ticks)


class _OverlooksOthers(Consensus):
    """A survivor takes over although a learner may vote by now, or its configuration was never committed."""

    def take_over(self, leader: str) -> None:
        if self.role == LEADER or self.configuration.voters != {self.id, leader}:
            raise ChangeRefused("others")
        self._stand(transfer=False)
        self.alone = True


class _DropsAnybody(Leadership):
    def drop(self, id: str, ticks: int) -> tuple[int, int]:
        one = self.progress.get(id)
        if one is None or one.silent_ticks < ticks or id not in self._state.configuration.voters:
            raise ChangeRefused("not silent")
        return self.go_on_without(id)


class _DropsOneOfThree(Consensus):
    """A leader drops whoever is silent, however many can decide without it."""

    def _lead(self) -> Leadership:
        return _DropsAnybody(self, self._election_ticks, self._heartbeat_ticks)


class _TakesReplacedForWritten(Consensus):
    """Entries that came into the place of others while the disk wrote those are taken for what it has written."""

    def note_persisted(self, ready: Ready) -> None:
        handed = self._handed_up_to
        super().note_persisted(ready)
        if handed is not None:
            self.log.stable = max(self.log.stable, handed[0])


PAIR_MUTANTS: dict[str, tuple[Rules, int, str]] = {
    "takes-over-on-timeout": (Rules(make_survivor=_TrustsTimeouts), 2, "state machine safety"),
    "takes-over-unconfirmed": (Rules(make_survivor=_TrustsWhatItSent), 21, "leader completeness"),
    "takes-over-restarted": (Rules(remembers=True), 2, "log matching"),
    "takes-over-thawed": (Rules(make_survivor=_TrustsAnyRefusal), 21, "leader completeness"),
    "takes-over-stolen": (Rules(make_survivor=_TrustsStolenAddresses), 2, "state machine safety"),
    "takes-over-beside-others": (Rules(make_core=_OverlooksOthers), 2, "leader completeness"),
    "confirms-anybody": (Rules(make_core=_LeadsAnybody), 43, "leader completeness"),
    "drops-too-early": (Rules(drop_after=GRACE // 60), 28, "leader completeness"),
    "drops-one-of-three": (Rules(make_core=_DropsOneOfThree), 133, "leader completeness"),
    "takes-replaced-for-written": (Rules(make_core=_TakesReplacedForWritten), 161, "promises"),
}
