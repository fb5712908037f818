"""Reads the table back from an export, when every server that held it is lost.

Works on the data directory of a server that is stopped. Its chunks, and those of other directories that are given, are
looked through for exports; the rows of one become the table of this server, which goes on with them alone. It begins a
line of the farm's history that leaves the old one at the revision of the export, so that a server that comes back with
more than that is found out when they meet (`table.lines`).

Everything here blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Self
from uuid import UUID

from attrs import evolve, field, frozen

from chunkfarm.config import Config, ConfigFile, Listed
from chunkfarm.data_directory import DataDirectory, is_unused
from chunkfarm.exports.finding import Candidate, CannotRestore, Pieces
from chunkfarm.exports.form import EXPORT_KEY, Kept, write_kept
from chunkfarm.history import NOTE, HistoryError, Memory
from chunkfarm.issuer import CA_CERTIFICATE, CA_KEY
from chunkfarm.model import (
    EPOCH_KEY,
    GENERATION_KEY,
    LINES_KEY,
    OPTIONS_KEY,
    ROTATION_WANTED_KEY,
    SERVERS,
    FarmOptions,
    Server,
    timestamp,
)
from chunkfarm.table.interface import Row
from chunkfarm.table.journal import Journal
from chunkfarm.table.journal_file import JournalError
from chunkfarm.table.lines import LINES_MAX, TERM_LEAP, Chain, Fork, longer, read_chain
from chunkfarm.trust.authority import fingerprint, fingerprint_of
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.seal import SealKey

__all__ = ["Candidate", "CannotRestore", "Plan", "Restoring", "when"]

TABLE_FILE = "table.sqlite"
REVISION_LEAP = 2**32
"""Revisions by which the restored table goes ahead: more than any farm commits between two exports. Whoever remembers a
revision of the table that is lost must not take a later change for one that it has seen."""
GENERATION_LEAP = 1000
"""Generations by which it does. The list in `config.ini` on another machine may be a little newer than the one here,
and must not seem newer than the table."""
NAMED_MAX = 5
"""Missing chunks that a sentence names."""


@frozen(kw_only=True)
class Plan:
    """What is going to be written, and what a person should know before."""

    candidate: Candidate
    server: str
    """The name of the server that goes on."""
    farm: FarmOptions
    rows: int
    changed: tuple[Row, ...] = field(repr=False)
    """In the place of those of the export, or beside them."""
    replaced: frozenset[bytes] = field(repr=False)
    """Rows of the export that are left out."""
    index: int
    term: int
    memory: Memory
    notes: tuple[str, ...]
    """What will not be as it was, in sentences."""


class Restoring:
    """A data directory of a server that is stopped, for as long as it is looked at and written."""

    def __init__(
        self,
        config: Config,
        generation: int,
        data: DataDirectory,
        identity: Identity,
        journal: Journal,
        pieces: Pieces,
        more: Sequence[Path],
    ) -> None:
        self.config = config
        self._generation = generation
        self._data = data
        self._identity = identity
        self._journal = journal
        self.pieces = pieces
        self._more = tuple(more)

    @classmethod
    def open(cls, file: ConfigFile, overrides: Mapping[str, str | None], host_name: str, more: Sequence[Path]) -> Self:
        """Lock the data directory that `config.ini` names, and look into it and into `more`. Raises a `FarmError`."""
        config = file.read(overrides, host_name)
        path = config.server.data
        if not (path / "server.id").exists():
            raise CannotRestore(f"{path} is not the data directory of a server")
        _check_owner(path)
        for directory in more:
            if not is_unused(directory):
                raise CannotRestore(f"{directory} is in use by a server that runs: stop it before")
        # It has an id, so the one that is given here is not used.
        data = DataDirectory.open(path, UUID(int=0))
        with contextlib.ExitStack() as stack:
            stack.callback(data.close)
            identity = Identity.load(path, data.server_id)
            if identity is None:
                raise CannotRestore(f"{path} has no certificate of the farm: its server never joined")
            try:
                journal = Journal.open(os.fspath(path / TABLE_FILE))
            except JournalError as error:
                raise CannotRestore(f"{error}; if it is damaged, move it away and say this again") from None
            stack.callback(journal.close)
            recorded = config.farm.id
            if recorded and journal.farm_id and recorded != journal.farm_id:
                raise CannotRestore(
                    f"{config.path} names farm {recorded}, but the data directory {path} belongs to farm "
                    f"{journal.farm_id}: give the one that goes with the other"
                )
            if not recorded and not journal.farm_id:
                raise CannotRestore(f"neither {config.path} nor {path} says which farm this is")
            versions = [one.generation for one in file.versions(overrides, host_name) if one.farm.id == config.farm.id]
            generation = max((*versions, file.reached(data.server_id) or 0))
            pieces = Pieces.open(path, more)
            stack.pop_all()
        return cls(config, generation, data, identity, journal, pieces, more)

    def close(self) -> None:
        """Let go of everything."""
        self.pieces.close()
        self._journal.close()
        self._data.close()

    @property
    def farm(self) -> str:
        """The id of the farm."""
        return self.config.farm.id or self._journal.farm_id

    @property
    def server_id(self) -> str:
        return self._data.server_id

    def plan(self, candidate: Candidate, random: Random, now: int, *, force: bool = False) -> Plan:
        """What is to be written for this export. Reads and checks all of it. Raises `CannotRestore`.

        `now` is in ms. Refuses to go back behind rows that this server holds, unless `force` is given.
        """
        head = candidate.head
        if not self.config.server.master:
            raise CannotRestore(
                f"{self.config.path} says master = no for this server, and it would have to hold the table: remove that"
            )
        self._check(candidate, force)
        known: dict[bytes, Row] = {}
        count = 0
        for row in self.pieces.rows(head):
            count += 1
            if row.key in (OPTIONS_KEY, GENERATION_KEY, LINES_KEY, CA_CERTIFICATE, CA_KEY) or row.key.startswith(
                SERVERS
            ):
                known[row.key] = row
        if OPTIONS_KEY not in known or GENERATION_KEY not in known:
            raise CannotRestore("the export lacks the farm's options: it is of a farm that was just being founded")
        farm = FarmOptions.from_value(known[OPTIONS_KEY].value)
        notes = [self._seal_note(known), *_NOTES]
        loaded = self._journal.load()
        index = max(head.revision, loaded.snapshot.index + len(loaded.entries)) + REVISION_LEAP
        generation = int(known[GENERATION_KEY].value)
        servers, server_notes = self._servers(known, generation, index, now)
        chain = self._chain(known, Fork(f"{random.getrandbits(128):032x}", head.revision, head.term))
        kept = Kept(revision=head.revision, time=head.time, rows=head.rows, digest=candidate.digest)
        changed = {server.key: server.to_value() for server in servers}
        changed[LINES_KEY] = json.dumps([fork.as_item() for fork in chain]).encode()
        changed[GENERATION_KEY] = b"%d" % (max(generation, self._generation) + GENERATION_LEAP)
        changed[EXPORT_KEY] = write_kept([kept])
        # A commit of a server that has run since then could else rely on what has been collected after the export.
        changed[EPOCH_KEY] = b"{}"
        if self._is_of_the_ca_before(known):
            changed[ROTATION_WANTED_KEY] = b"an export of before the last change was restored"
            notes.append(
                "The farm has changed its CA after the export. It has the one of before again, whose key others may "
                "know, and changes it anew by itself as soon as it serves."
            )
        replaced = frozenset(changed) | {key for key in known if key.startswith(SERVERS)}
        return Plan(
            candidate=candidate,
            server=next(server.name for server in servers if server.id == self.server_id),
            farm=farm,
            rows=count,
            changed=tuple(Row(key, value, index) for key, value in changed.items()),
            replaced=replaced,
            index=index,
            term=max(head.term, loaded.hard_state.term) + TERM_LEAP,
            memory=Memory(chain=chain),
            notes=tuple(note for note in (*notes, *server_notes) if note),
        )

    def write(self, plan: Plan) -> None:
        """Put the rows in the place of this server's table, in one step. Raises `JournalError`, `CannotRestore`."""
        old = (row for row in self.pieces.rows(plan.candidate.head) if row.key not in plan.replaced)
        notes = {"farm": self.farm, NOTE: plan.memory.to_text()}

        def rows() -> Iterator[Row]:
            yield from old
            yield from plan.changed

        self._journal.restore(self.server_id, plan.term, plan.index, rows(), notes)

    def _check(self, candidate: Candidate, force: bool) -> None:
        if candidate.missing:
            some = ", ".join(digest.hex() for digest in candidate.missing[:NAMED_MAX])
            more = f" and {len(candidate.missing) - NAMED_MAX} more" if len(candidate.missing) > NAMED_MAX else ""
            raise CannotRestore(
                f"the export of revision {candidate.head.revision} is not whole here, it lacks {some}{more}: name the "
                "data directories of other servers, or copies of their chunks folders, with --from"
            )
        for directory, applied in (("this server", self._journal.applied), *self._others_applied()):
            if applied >= candidate.head.revision and not force:
                raise CannotRestore(
                    f"{directory} holds the table itself, up to revision {applied}, and the export is of revision "
                    f"{candidate.head.revision}: start that server, and say `chunkfarm takeover`"
                )

    def _others_applied(self) -> Iterator[tuple[str, int]]:
        """The tables in the other directories, and how far they are."""
        for directory in self._more:
            path = directory / TABLE_FILE
            with contextlib.suppress(JournalError):
                if path.exists():
                    journal = Journal.open(os.fspath(path))
                    applied = journal.applied
                    journal.close()
                    yield f"the server of {directory}", applied

    def _seal_note(self, known: dict[bytes, Row]) -> str:
        """Raises `CannotRestore` if the export is not of the farm whose certificate this server has."""
        certificate, key = known.get(CA_CERTIFICATE), known.get(CA_KEY)
        is_own = certificate is not None and fingerprint(certificate.value) == self._identity.ca_fingerprint
        if not (is_own or self._is_of_the_ca_before(known)):
            raise CannotRestore("the export is of a farm with another CA than this server's certificate is from")
        try:
            seal = SealKey.load(self._data.path)
            if key is not None:
                seal.unseal(CA_KEY.decode(), key.value)
        except TrustError as error:
            return (
                f"The farm's secrets stay sealed ({error}): files are served and written, keys are good, but no server "
                "can join and no certificate be renewed until seal.key of a lost master is put into this data directory"
            )
        return ""

    def _is_of_the_ca_before(self, known: dict[bytes, Row]) -> bool:
        """Whether the export was made before the farm changed its CA to that of this server's certificate."""
        certificate = known.get(CA_CERTIFICATE)
        before = {fingerprint_of(link) for link in self._identity.introductions}
        return certificate is not None and fingerprint(certificate.value) in before

    def _chain(self, known: dict[bytes, Row], fork: Fork) -> Chain:
        """The line that begins. This server may have learned of a takeover that came after the export."""
        try:
            chain = read_chain(json.loads(known[LINES_KEY].value)) if LINES_KEY in known else ()
            chain = longer(chain, Memory.from_text(self._journal.note(NOTE)).chain)
        except (ValueError, HistoryError) as error:
            raise CannotRestore(f"the takeovers that are noted cannot be read: {error}") from None
        return (*chain, fork)[-LINES_MAX:]

    def _servers(
        self, known: dict[bytes, Row], generation: int, index: int, now: int
    ) -> tuple[list[Server], tuple[str, ...]]:
        """The rows of all servers: if `config.ini` is newer than the export, of those that are in it."""
        rows = {
            server.id: server
            for row in known.values()
            if row.key.startswith(SERVERS)
            for server in [Server.from_value(row.value, row.revision)]
        }
        listed = {row.id: row for row in self.config.servers if row.id}
        notes = []
        if listed and self.config.farm.id and self.config.generation >= generation:
            gone = [server.name for id, server in rows.items() if id not in listed and id != self.server_id]
            if gone:
                notes.append(f"{', '.join(gone)} left the farm after the export, by {self.config.path}.")
            rows = {id: server for id, server in rows.items() if id in listed or id == self.server_id}
        seniority = index - len(listed) - 1
        for row in (*listed.values(), self._own_listing()):
            if row.id not in rows:
                seniority += 1
                rows[row.id] = _new_row(row, seniority, now)
        return [
            evolve(server, state="up", since=now, given_up=False)
            if server.id == self.server_id
            else evolve(server, state="down", since=server.since if server.state == "down" else now)
            for server in rows.values()
        ], tuple(notes)

    def _own_listing(self) -> Listed:
        options = self.config.server
        return Listed(
            name=options.name,
            host=options.host or "127.0.0.1",
            client=options.client.port,
            peer=options.peer.port,
            files=options.files.port,
            id=self.server_id,
        )


def _check_owner(path: Path) -> None:
    """Refuse to write into it what its server could not read."""
    owner = path.stat().st_uid
    if owner != os.geteuid():
        raise CannotRestore(
            f"{path} belongs to the user with the number {owner}: say this as that user, with sudo -u '#{owner}'"
        )


_NOTES = (
    "What was stored under a name after the export has that name no more; what was removed after it is named again, "
    "and its content may be gone (`chunkfarm check` tells).",
    "Keys that were removed after the export are good again, and those made after it are not.",
)


def _new_row(row: Listed, seniority: int, now: int) -> Server:
    """Of a server that joined after the export."""
    return Server(
        id=row.id,
        name=row.name,
        host=row.host,
        client=row.client,
        peer=row.peer,
        files=row.files,
        joined=row.joined or now,
        seniority=seniority,
        zone=row.host,
    )


def when(candidate: Candidate) -> str:
    """The time of an export."""
    return timestamp(candidate.head.time)
