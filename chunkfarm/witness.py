"""What this server sees of its farm becomes notes for the time line: rows, leaders, voters, and its own life.

Pure: it is told by those who see, and tells `note`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from chunkfarm.model import Server
from chunkfarm.pace import down_after
from chunkfarm.state import ServerState
from chunkfarm.table.records import Reasons, Why
from chunkfarm.timeline import Kind, Note

_PHASES = {"waiting": Kind.WAITING, "serving": Kind.SERVING, "readonly": Kind.READONLY}
_STATES = {"up": Kind.UP, "down": Kind.DOWN, "leaving": Kind.LEAVING, "draining": Kind.DRAINING}


class Witness:
    """What one process sees. `server_id` and `incarnation` are its own."""

    def __init__(self, server_id: str, incarnation: str, name: str, note: Callable[[Note], None]) -> None:
        self._id = server_id
        self._incarnation = incarnation
        self._note = note
        self._names = {server_id: name}
        self._rows: dict[str, Server] = {}
        self._seen: object = None
        self._gone: list[tuple[Server, bool, int]] = []
        """Rows that went, whether another server has their address, and up to which revision; why is known later."""
        self._takes_part = False
        """Whether this process has served. What it hears before is what it missed, and for others to tell."""
        self._phase: Kind | None = None
        self._leader = ("", 0)
        self._leads = False
        self._voters: frozenset[str] | None = None

    def _tell(self, kind: Kind, server_id: str, because: str = "", *, mark: str = "", term: int = 0) -> None:
        self._note(Note(kind=kind, server=server_id, name=self._name(server_id), because=because, mark=mark, term=term))

    def _name(self, server_id: str) -> str:
        return self._names.get(server_id, server_id[:8])

    # Its own life.

    def started(self, version: str, last: Note | None) -> None:
        """This process begins; `last` is what the process before it noted last."""
        because = f"version {version}"
        if last is not None and last.kind is not Kind.ENDED:
            because += "; the process before it ended without a word, as by kill -9, a crash or a power cut"
        self._tell(Kind.STARTED, self._id, because)

    def ended(self, because: str) -> None:
        """This process ends in order."""
        self._tell(Kind.ENDED, self._id, because)

    def phase(self, state: ServerState) -> None:
        """What this server does may have changed."""
        kind = _PHASES.get(state.phase)
        if kind is None or kind is self._phase:
            return
        self._phase = kind
        self._takes_part = self._takes_part or kind is Kind.SERVING
        waits = "; ".join(f"{wait.address}: {wait.error}" for wait in state.waits)
        self._tell(kind, self._id, state.halted or waits)

    # The rows.

    def rows(self, servers: tuple[Server, ...], barred: Collection[str], revisions: tuple[int, int]) -> None:
        """The server table as it is now; rows that have not changed are the same objects as before.

        `revisions` are those of the rows and of `barred`, which may be behind.
        """
        newest, known = revisions
        self._look(servers, newest)
        while self._gone and self._gone[0][2] <= known:
            row, replaced, _ = self._gone.pop(0)
            self._tell(Kind.GONE, row.id, _why_gone(row, replaced, barred), mark=str(row.seniority))

    def _look(self, servers: tuple[Server, ...], revision: int) -> None:
        if servers is self._seen or not servers:
            return
        self._seen = servers
        before, self._rows = self._rows, {server.id: server for server in servers}
        for server in servers:
            old = before.get(server.id)
            if old is server:
                continue
            self._names[server.id] = server.name
            is_own = (server.id, server.incarnation) == (self._id, self._incarnation)
            if self._takes_part or (is_own and (old is None or old.incarnation != server.incarnation)):
                self._row(old, server, founded=len(servers) == 1)
        if self._takes_part:
            places = {server.peer_address for server in servers}
            went = [old for old in before.values() if old.id not in self._rows]
            self._gone += [(old, old.peer_address in places, revision) for old in went]

    def _row(self, old: Server | None, new: Server, *, founded: bool) -> None:
        if old is None or old.seniority != new.seniority:
            because = "it founded the farm" if founded and old is None else _why_joined(old, new)
            self._tell(Kind.JOINED, new.id, because, mark=str(new.seniority))
        elif old.incarnation != new.incarnation:
            because = "the farm was started as a whole, so it keeps its place"
            self._tell(Kind.RESUMED, new.id, because, mark=new.incarnation)
        elif old.state != new.state and new.state in _STATES:
            because = _why_state(old.state, new.state, len(self._rows))
            self._tell(_STATES[new.state], new.id, because, mark=str(new.since))
        if new.given_up and not (old is not None and old.given_up):
            because = "silent for repair_after, so its chunks are copied to other servers"
            self._tell(Kind.GIVEN_UP, new.id, because, mark=str(new.since))

    # Who leads, and who votes.

    def hears(self, leader: str, term: int) -> None:
        """Somebody leads in that term, as another server says."""
        if leader and term and (leader, term) != self._leader and term >= self._leader[1]:
            self._leader = leader, term
            if self._takes_part:
                self._tell(Kind.LEADS, leader, mark=str(term), term=term)

    def table(self, leads: bool, leader: str, term: int, reasons: Reasons, voters: frozenset[str], index: int) -> None:
        """How the consensus stands as seen by one who takes part in it. `index` is where `voters` were decided."""
        if self._leads and not (leads and term == self._leader[1]):
            led = self._leader[1]
            self._tell(Kind.LEADS_NO_MORE, self._id, self._why_ceased(reasons, leader), mark=str(led), term=led)
        self._leads = leads
        if leads and (leader, term) != self._leader:
            self._leader = leader, term
            self._tell(Kind.LEADS, leader, self._why_leads(reasons), mark=str(term), term=term)
        elif leader:
            self.hears(leader, term)
        before, self._voters = self._voters, voters
        if before is not None and before != voters and self._id in before | voters and self._takes_part:
            self._changed(Kind.MASTER, voters - before, index)
            self._changed(Kind.NO_MASTER, before - voters, index)

    def _changed(self, kind: Kind, servers: Iterable[str], index: int) -> None:
        for server_id in sorted(servers):
            self._tell(kind, server_id, mark=str(index))

    def _why_leads(self, reasons: Reasons) -> str:
        former = self._name(reasons.former) if reasons.former not in ("", self._id) else ""
        match reasons.stood:
            case Why.ONLY:
                return "it alone votes"
            case Why.CUT:
                return f"{former or 'the one before it'} had ended its links and answered no more"
            case Why.HANDED:
                return f"{former or 'the one before it'} handed over to it{self._why_handed(reasons.former)}"
            case Why.ALONE:
                return f"{former or 'the other one'} of two had ended its links, and its ports refused for master_grace"
            case Why.FORCED:
                return "an admin said so, the majority being lost (takeover)"
            case Why.SILENT:
                return f"{former} was silent for an election timeout" if former else "no other leader was heard"
        return ""

    def _why_handed(self, former: str) -> str:
        row, own = (self._rows or {}).get(former), (self._rows or {}).get(self._id)
        if row is not None and row.state == "leaving":
            return ", which was told to end"
        if row is not None and own is not None and own.seniority < row.seniority:
            return ", the senior"
        return ""

    def _why_ceased(self, reasons: Reasons, leader: str) -> str:
        match reasons.ceased:
            case Why.HANDED:
                return "it handed over"
            case Why.MAJORITY:
                return "no majority of the masters answered it"
            case Why.REMOVED:
                return "it is no master any more"
            case Why.WITHHELD:
                return "it takes part in no decision until it was caught up"
            case Why.LATER:
                return f"{self._name(leader)} leads in a later term" if leader else "there is a later term"
        return ""


def _why_joined(old: Server | None, new: Server) -> str:
    if old is None:
        return "new in the farm"
    if old.incarnation != new.incarnation:
        return "its process was started anew, so it stands at the end of the line"
    return "it was away for longer than master_grace, so it stands at the end of the line"


def _why_state(old: str, new: str, servers: int) -> str:
    if new == "down":
        return "it had said that it leaves" if old == "leaving" else f"no report for {down_after(servers):g} s"
    if new == "leaving":
        return "it was told to end"
    if old == "down":
        return "it reports again"
    if new == "draining":
        return "an admin has it emptied"
    return "it is not emptied any more" if old == "draining" else ""


def _why_gone(gone: Server, replaced: bool, barred: Collection[str]) -> str:
    if gone.id in barred:
        return "an admin took it out for good"
    return "another server has taken its address" if replaced else "it was down for forget_after"
