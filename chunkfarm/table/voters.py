"""Which change of the configuration comes next: a rule over rows and the core's view, pure.

The voters should be the masters (`membership.masters`), the learners the next two in line. Each step is one
single-server change (Ongaro's dissertation, 4.1), and copies are made before any is given up: a server
learns, then votes, and only then does the one it replaces go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from attrs import frozen

from chunkfarm import membership
from chunkfarm.model import Server
from chunkfarm.table.records import Configuration


@frozen(kw_only=True)
class View:
    """What the first knows when it decides."""

    servers: tuple[Server, ...]
    configuration: Configuration
    leader: str
    caught_up: Collection[str]
    """Members whose log follows the leader's closely, and who answered lately."""
    silent: Mapping[str, float]
    """Seconds since each server was heard."""
    master_grace: float
    repair_after: float
    change_pending: bool = False
    """Whether no change of the configuration may begin: another is not committed yet, or nothing of this term is."""


def next_configuration(view: View) -> Configuration | None:
    """The configuration that is one step nearer to what should be, or None when nothing is to be done now."""
    wanted = [server.id for server in membership.masters(view.servers)]
    next_in_line = [server.id for server in membership.learners(view.servers)]
    voters, learners = view.configuration.voters, view.configuration.learners
    rows = {server.id: server for server in view.servers}

    for server_id in wanted:
        if server_id not in voters and server_id in learners and server_id in view.caught_up:
            if _may_grow(view, rows, wanted):
                return Configuration(voters | {server_id}, learners - {server_id})
            break
    for server_id in _to_remove(view, rows, wanted):
        return Configuration(voters - {server_id}, learners)
    for server_id in (*wanted, *next_in_line):
        if server_id not in voters and server_id not in learners:
            return Configuration(voters, learners | {server_id})
    for server_id in sorted(learners):
        row = rows.get(server_id)
        gone = row is None or not row.master or view.silent.get(server_id, 0.0) >= view.master_grace
        if server_id not in wanted and server_id not in next_in_line and (gone or len(learners) > membership.LEARNERS):
            return Configuration(voters, learners - {server_id})
    return None


def to_drop(view: View) -> str | None:
    """The other one of two voters, if the leader should go on without it; or None.

    It has been silent for `master_grace`, and nobody alive can take its place: a third server could only if it has
    learned everything already and a change may begin, for any other step would need the one that is gone. One that
    still learns would be waited for as long as that takes, and its disk may be full. Whether it is safe the core
    decides (`Consensus.drop`).
    """
    configuration = view.configuration
    others = configuration.voters - {view.leader}
    if len(configuration.voters) != 2 or len(others) != 1:
        return None
    (other,) = others
    if view.silent.get(other, 0.0) < view.master_grace:
        return None
    step = next_configuration(view) if not view.change_pending else None
    taking = step.voters - configuration.voters if step is not None else frozenset()
    return None if any(view.silent.get(one, 0.0) < view.master_grace for one in taking) else other


def _may_grow(view: View, rows: Mapping[str, Server], wanted: Iterable[str]) -> bool:
    """Whether one more voter may be added.

    Up to the number of masters, always. Past that only to replace a voter that has been silent for
    `master_grace`, or one that is alive but no longer a master.
    """
    voters = view.configuration.voters
    if len(voters) < membership.MASTERS:
        return True
    if len(voters) > membership.MASTERS:
        return False
    return any(
        rows.get(voter) is None
        or rows[voter].state in membership.LIVE
        or view.silent.get(voter, 0.0) >= view.master_grace
        for voter in voters - frozenset(wanted)
    )


def _to_remove(view: View, rows: Mapping[str, Server], wanted: list[str]) -> list[str]:
    """Voters that may go now, the least useful first; never the leader itself, which hands over before."""
    voters = view.configuration.voters
    surplus = [voter for voter in voters if voter not in wanted and voter != view.leader]
    replaced = len(voters) > membership.MASTERS
    enough = frozenset(wanted) <= voters
    going: list[str] = []
    for voter in sorted(surplus, key=lambda id: (-view.silent.get(id, 0.0), id)):
        row = rows.get(voter)
        alive = row is not None and row.state in membership.LIVE
        # It is replaced after `master_grace`, if it can be, so before that it is not given up either.
        # One without a row was forgotten, or another server stands in its place.
        lost_for_good = row is None or (
            not alive and view.silent.get(voter, 0.0) >= max(view.repair_after, view.master_grace)
        )
        # With one of two gone the other could commit nothing, so the one that leaves gives up its vote before.
        # One that stays keeps it: while it lives it may believe that nothing is decided without it.
        leaves_one = row is not None and row.state == "leaving"
        may_go = leaves_one if len(voters) == 2 else (alive and enough) or lost_for_good
        if replaced or may_go:
            going.append(voter)
    return going


def heir(view: View) -> str | None:
    """The senior that leadership should be handed to, or None if the leader is the right one already."""
    line = [server.id for server in membership.masters(view.servers)]
    for server_id in line:
        if server_id == view.leader:
            return None
        if server_id in view.configuration.voters and server_id in view.caught_up:
            return server_id
    return None
