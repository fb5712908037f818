"""What one server does with chunks, built and wired once: storing, repairing, moving, collecting, exporting.

`parts` makes the rest of a server; nothing runs yet when this returns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm import membership
from chunkfarm.catalog import Catalog
from chunkfarm.chunks.caretaker import Caretaker
from chunkfarm.chunks.collecting import Collector
from chunkfarm.chunks.draining import Draining
from chunkfarm.chunks.keeping import Keeper
from chunkfarm.chunks.scrub import Scrub
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.chunks.surplus import Surplus
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.exports.form import EXPORT_KEY
from chunkfarm.exports.keeper import EXPORTS_FILE, ExportKeeper, keepers
from chunkfarm.exports.maker import ExportMaker
from chunkfarm.files_at_risk import FilesAtRisk, RiskLink, told_by
from chunkfarm.links.chunks import ChunkClient
from chunkfarm.model import JOIN_DIGEST_KEY, KEYS_CHANGED_KEY, ROTATION_KEY
from chunkfarm.reference_index import ReferenceIndex
from chunkfarm.references import References
from chunkfarm.references_link import ReferencesLink
from chunkfarm.table.lines import newest
from chunkfarm.unheld_search import UnheldSearch

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from chunkfarm.config import ServerOptions
    from chunkfarm.parts import Parts
    from chunkfarm.risk import LostFiles


class ChunkParts:
    """The chunk side of one server, on top of its `Parts`, whose table and peers are there already."""

    _log = Logger()

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._build_chunks(parts)
        self._build_exports(parts)
        self._build_references(parts)
        self._build_risk(parts)

    def _build_chunks(self, parts: Parts) -> None:
        self.store = ChunkStore(
            parts.data.path / "chunks",
            parts.data.path / "index.sqlite",
            parts.run_in_thread,
            reserve=parts.config.server.reserve,
            on_damaged=lambda digest, reason: self.caretaker.found_damaged(digest, reason),
            on_broken=self._index_broken,
            on_stored=self._stored,
            room=parts.machine.room,
            grace=lambda: parts.options().collect_grace,
            seconds=parts.reactor.seconds,
            now=parts.now,
        )
        self.links = ChunkClient(parts.reactor, parts.contexts, parts.machine.connect)
        self.transfer = Transfer(
            self.store,
            parts.servers,
            parts.data.server_id,
            self.links,
            lambda: parts.options().replicas,
            parts.reactor,
            parts.run_in_thread,
            lambda digests: self.caretaker.look_first(digests),
        )
        self.scrub = Scrub(
            self.store,
            parts.data.path / "scrub.json",
            parts.reactor,
            parts.now,
            parts.run_in_thread,
            lambda: parts.space.used,
            lambda: self.transfer.is_busy,
        )
        self.caretaker = Caretaker(
            self.store,
            self.links,
            self.transfer,
            parts.servers,
            parts.data.server_id,
            lambda: parts.options().replicas,
            parts.reactor,
            parts.run_in_thread,
            rate=parts.config.server.repair_rate,
            hindered=self._why_no_repair,
            verified=lambda: self.scrub.percent,
            uses=lambda digests: self.references_link.uses(digests),
            is_everywhere=lambda digest: self.export_keeper.is_exported(digest),
        )
        self.collector = Collector(
            self.store,
            lambda digests: self.references_link.uses(digests),
            lambda: self.references_link.epoch(),
            lambda: parts.options().collect_grace,
            parts.reactor,
            busy=lambda: self.transfer.is_busy,
            hindered=self._why_no_deleting,
            last_word=lambda digests: self.references_link.uses_by_all(digests),
        )
        self.surplus = Surplus(
            self.store,
            self.links,
            parts.servers,
            parts.data.server_id,
            lambda: parts.options().replicas,
            lambda: parts.roster.revision,
            parts.roster.refresh,
            parts.reactor,
            parts.run_in_thread,
            rate=parts.config.server.repair_rate,
            busy=lambda: self.transfer.is_busy,
            hindered=self._why_no_deleting,
            guards=lambda digest: self.export_keeper.guards(digest),
        )
        self.keeper = Keeper(
            self.store,
            parts.servers,
            parts.data.server_id,
            lambda: parts.options().replicas,
            lambda: parts.roster.revision,
            parts.roster.refresh,
        )
        self.draining = Draining(
            self.store,
            self.links,
            parts.servers,
            parts.data.server_id,
            lambda: parts.options().replicas,
            parts.reactor,
            parts.run_in_thread,
            rate=parts.config.server.repair_rate,
            hindered=self._why_no_repair,
            refresh=parts.roster.refresh,
        )
        self.catalog = Catalog(
            parts.embedded, self.transfer, parts.options, parts.now, parts.reactor, lambda: parts.roster.epoch
        )

    def _build_exports(self, parts: Parts) -> None:
        self.exports = ExportMaker(
            parts.embedded,
            parts.embedded,
            parts.journal.open_outgoing,
            self.transfer,
            lambda: keepers(parts.servers()),
            parts.options,
            lambda: newest(parts.history.chain),
            parts.reactor,
            parts.now,
            parts.run_in_thread,
            self._export_is_urgent,
            parts.on_fatal,
        )
        self.export_keeper = ExportKeeper(
            lambda: row.value if (row := parts.roster.farm_row(EXPORT_KEY)) is not None else b"",
            self.store,
            self.transfer,
            parts.servers,
            parts.data.server_id,
            parts.reactor,
            parts.data.path / EXPORTS_FILE,
            parts.run_in_thread,
        )

    def _build_references(self, parts: Parts) -> None:
        self.references = References(
            ReferenceIndex(os.fspath(parts.data.path / "references.sqlite")),
            parts.embedded,
            lambda: parts.embedded.holds_rows,
            # A revision stands for something else on another line of the farm's history.
            lambda: f"{parts.journal.farm_id} {newest(parts.history.chain)}",
            parts.journal.applied,
            self.catalog.digests,
            parts.reactor,
            parts.run_in_thread,
            lambda rows: self.export_keeper.used(rows),
        )
        self.references_link = ReferencesLink(
            parts.data.server_id,
            self.references,
            parts.embedded,
            parts.peers,
            parts.first,
            lambda: membership.masters(parts.servers()),
        )

    def _build_risk(self, parts: Parts) -> None:
        self.risk_link = RiskLink(parts.data.server_id, parts.peers, self.caretaker.at_risk, parts.first)
        self.files_at_risk = FilesAtRisk(
            lambda: told_by(parts.duties.risk().sets, parts.duties.told_risk()) if parts.embedded.is_leader else (),
            self.risk_link.ask,
            self.references,
            parts.reactor,
        )
        self.unheld = UnheldSearch(
            self.references,
            self.transfer.ask,
            parts.servers,
            lambda: parts.options().replicas,
            lambda: parts.embedded.is_leader and parts.embedded.has_quorum,
            lambda: {id: report.missed for id, report in parts.duties.reports().items() if report.missed},
            lambda: parts.reporter.unheld,
            parts.reactor,
            parts.now,
            parts.run_in_thread,
        )

    def lost_files(self) -> Deferred[LostFiles | None]:
        """What can be lost in files, by this server's own count or that of the first; None if nobody tells."""
        if self._parts.embedded.is_leader:
            return self.files_at_risk.known()
        return self.risk_link.lost_files()

    def start(self) -> None:
        """Begin what only a server does that belongs to a farm."""
        self.references.start()
        self.caretaker.start()
        self.collector.start()
        self.surplus.start()
        self.scrub.start()
        self.draining.start()
        self.export_keeper.start()
        self.exports.start()
        self.unheld.start()

    def loops_to_stop(self) -> Sequence[Callable[[], Any]]:
        """What ends each of these, in order; `transfer` and `store`, which they use, are to be stopped later."""
        return (
            self.unheld.stop,
            self.files_at_risk.stop,
            self.exports.stop,
            self.export_keeper.stop,
            self.collector.stop,
            self.surplus.stop,
            self.caretaker.stop,
            self.references.stop,
            self.scrub.stop,
            self.draining.stop,
        )

    def _export_is_urgent(self) -> bool:
        """Whether keys were changed, a server was forgotten, or the CA is being changed, since the newest export."""
        rows = [self._parts.roster.farm_row(key) for key in (KEYS_CHANGED_KEY, JOIN_DIGEST_KEY, ROTATION_KEY)]
        exported = max((one.revision for one in self.export_keeper.kept), default=0)
        return any(row is not None and row.revision > exported for row in rows)

    def _stored(self, digest: bytes) -> None:
        self.caretaker.stored(digest)
        self.draining.stored(digest)

    def _index_broken(self, failure: Failure) -> None:
        """As with the table's journal; what the index held is found out anew by the next process."""
        self._log.failure("while using the index of the chunks, which the next start makes anew", failure)
        self._parts.on_fatal(failure)

    def _why_no_repair(self) -> str:
        return "" if self._parts.state.phase == "serving" else f"this server is {self._parts.state.phase}"

    def _why_no_deleting(self) -> str:
        if hindered := self._why_no_repair():
            return hindered
        if self._parts.is_withheld:
            return f"this server takes no part in the table: {self._parts.embedded.withheld}"
        return "" if self._parts.first() else "nobody leads the farm"

    def table_changed(self) -> None:
        """Have everything that depends on which servers there are look again."""
        self.caretaker.table_changed()
        self.collector.table_changed()
        self.surplus.table_changed()
        self.draining.table_changed()
        self.export_keeper.table_changed()
        self.unheld.table_changed()

    def take_options(self, options: ServerOptions) -> None:
        """Go on with other options for this server."""
        self.store.reserve = options.reserve
        self.caretaker.limit(options.repair_rate)
        self.surplus.limit(options.repair_rate)
        self.draining.limit(options.repair_rate)
