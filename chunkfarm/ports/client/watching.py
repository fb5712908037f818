"""WATCH and UNWATCH: changes of the table as lines, for clients and for servers that follow."""

from __future__ import annotations

from collections import OrderedDict

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.errors import Busy, Denied, FarmError, InvalidRequest, PreconditionFailed, Waiting
from chunkfarm.links.rows import event_lines, event_server_id, more_follows
from chunkfarm.membership import Standing
from chunkfarm.model import EXPORTS_KEY, FARM, FILES, MIB, SERVERS
from chunkfarm.ports.backend import Backend
from chunkfarm.ports.client.looking import number
from chunkfarm.ports.client.session import Answer, Link, Request, Session, ok
from chunkfarm.table.interface import Batch, Compacted, Event, IWatch, TableClosed, Unavailable

OPEN = (SERVERS, FARM, FILES)
"""`keys/`, `invites/` and `secret/` are for nobody to watch."""
FOR_SERVERS = (EXPORTS_KEY,)
"""Of these, what only servers are told. Who knows the digests of an export could read all names, and the digests of all
files: also with a key that is good for some names only."""
PROGRESS_INTERVAL = 1.0
"""Seconds between two lines that only move the revision on: a watcher is told of changes that are not its own, but a
busy farm does not send it a line for each."""
WRITTEN_BYTES_MAX = 4 * MIB
"""Of changes kept as lines: all watchers are told of a change in the same moment, and when a thousand servers turn to
another one they all ask for what happened since, several thousand changes of rows."""


def compacted(error: Compacted, revision: int) -> PreconditionFailed:
    """What a watcher is told whose revision is too old, or has not been; the links read the number back from this."""
    if error.first_revision <= revision:
        return PreconditionFailed(
            f"changes before revision {error.first_revision} are all that there have been, and {revision} is beyond "
            "them; read, then watch again"
        )
    return PreconditionFailed(
        f"changes before revision {error.first_revision} are no longer kept; read, then watch again"
    )


class Written:
    """The newest changes as lines, made once for all links that watch: most are told to each of them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._kept: OrderedDict[tuple[Event, bool], list[str]] = OrderedDict()
        self._size = 0
        self._line: tuple[Standing, ...] = ()
        self._roles: dict[str, str] = {}

    def lines(self, event: Event, more: bool) -> list[str]:
        """As `event_lines`; a server's role is the one that it had when the change was first told."""
        lines = self._kept.get((event, more))
        if lines is None:
            lines = self._kept[event, more] = event_lines(event, self._role(event), more)
            self._size += sum(map(len, lines))
            while self._size > WRITTEN_BYTES_MAX:
                self._size -= sum(map(len, self._kept.popitem(last=False)[1]))
        return lines

    def _role(self, event: Event) -> str:
        server_id = event_server_id(event)
        if not server_id:
            return "server"
        line = self._backend.succession()
        if line is not self._line:
            self._line = line
            self._roles = {standing.server.id: standing.role for standing in line}
        return self._roles.get(server_id, "server")


class Following:
    """One running watch."""

    _log = Logger()

    def __init__(self, session: Session, watch: IWatch, revision: int) -> None:
        self._session = session
        self._link: Link = session.link
        self._watch = watch
        self._told = self._reached = revision
        self._hidden = () if session.principal is not None and session.principal.role == "server" else FOR_SERVERS
        self._stopped = False
        self._progress: Deferred[None] | None = None

    def start(self) -> None:
        """Begin to emit."""
        if not self._stopped:
            Deferred.fromCoroutine(self._follow()).addErrback(self._failed)

    def stop(self) -> None:
        """End it without a word."""
        if self._stopped:
            return
        self._stopped = True
        # A waiting `next` then fails, and with it the loop ends.
        self._watch.close()
        if self._progress is not None:
            self._progress.cancel()

    async def _follow(self) -> None:
        while not self._stopped:
            batch = await self._watch.next()
            if self._stopped:
                return
            self._tell(batch)

    def _tell(self, batch: Batch) -> None:
        events = [
            event for event in batch.events if event.key.startswith(OPEN) and not event.key.startswith(self._hidden)
        ]
        lines: list[str] = []
        for event, more in more_follows(events):
            lines += self._session.written.lines(event, more)
        if events:
            self._told = events[-1].revision
            self._link.emit(lines)
        self._reached = max(self._reached, batch.revision)
        if self._reached > self._told and self._progress is None:
            self._progress = self._link.pause(PROGRESS_INTERVAL)
            self._progress.addCallbacks(lambda _: self._tell_progress(), lambda _: None)

    def _tell_progress(self) -> None:
        self._progress = None
        if self._reached > self._told and not self._stopped:
            self._told = self._reached
            self._link.emit([f"EVENT {self._told} NONE"])

    def _failed(self, failure: Failure) -> None:
        if self._stopped:
            return
        error = failure.value
        if isinstance(error, Compacted):
            told: FarmError = compacted(error, self._reached)
        elif isinstance(error, TableClosed):
            told = Waiting("this server is leaving; watch another")
        elif isinstance(error, Unavailable):
            told = Busy("this watch cannot go on; read and watch again")
        else:
            self._log.failure("while watching the table", failure)
            told = FarmError("this server has a fault; its log says more")
        self._link.fail(told)


async def watch(session: Session, request: Request) -> Answer:
    principal = session.principal
    assert principal is not None
    prefix = request.word(0).encode()
    if prefix and not prefix.startswith(OPEN):
        raise Denied(f"only {', '.join(one.decode() for one in OPEN)} can be watched")
    if principal.prefix and not prefix.startswith((SERVERS, FARM, FILES + principal.prefix.encode())):
        raise Denied(f"this key is good for names that begin with {principal.prefix}: watch files/{principal.prefix}")
    if principal.role == "server" and not session.backend.holds_table:
        # Two servers that were both put out while they were away would follow each other, and nobody else.
        raise Busy("this server does not hold the table; watch one that does")
    if session.watching is not None:
        raise InvalidRequest("a watch is running on this link; say UNWATCH first")
    if session.backend.state.halted:
        # Nothing will ever change here, and a server that follows its farm should look elsewhere.
        raise Waiting(session.backend.state.halted)
    given = request.word(1, "")
    revision = number(given, "revision") if given else session.backend.state.revision
    while True:
        try:
            running = await session.backend.table.watch(prefix, revision)
            break
        except Compacted as error:
            # The table of a server that has just joined is replaced as a whole. Who asked for "from now on" is told
            # where that begins; who named a revision must read what it missed.
            if given or error.first_revision <= revision + 1:
                raise compacted(error, revision) from None
            revision = error.first_revision - 1
    following = Following(session, running, revision)
    session.watching = following
    try:
        # The key may have been taken away while the table was asked. From here on it is looked at when any changes.
        await session.confirm()
    except BaseException:
        session.end_watch()
        raise
    return Answer(lines=(f"OK revision={revision}",), then=following.start)


async def unwatch(session: Session, request: Request) -> Answer:
    session.end_watch()
    return ok()
