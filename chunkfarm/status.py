"""What STATUS tells, for people, programs and Prometheus alike: one list of names and values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from chunkfarm import membership, risk, unheld
from chunkfarm.emptying import sentence_of
from chunkfarm.exports.maker import export_pairs

if TYPE_CHECKING:
    from chunkfarm.model import Server
    from chunkfarm.parts import Parts


def status_pairs(parts: Parts, lost_files: risk.LostFiles | None = None) -> list[tuple[str, str]]:
    """Everything that a server knows of itself and its farm now; a name may occur more than once."""
    state, servers, options = parts.state, parts.servers(), parts.options()
    first = next((server.name for server in servers if server.id == parts.first()), "-")
    stored_on = sum(1 for server in servers if server.state in membership.LIVE and server.stores)
    configuration = parts.embedded.configuration
    pairs = [
        ("state", state.phase),
        ("farm", state.farm_id),
        ("name", state.name),
        ("first", first),
        ("term", str(parts.embedded.term)),
        ("revision", str(state.revision)),
        ("generation", str(parts.roster.generation)),
        ("servers", str(len(servers))),
        ("servers-up", str(sum(1 for server in servers if server.state in membership.LIVE))),
        ("table-copies", str(len(configuration.voters))),
        ("table-learners", str(len(configuration.learners))),
        ("holds-table", "yes" if parts.embedded.holds_rows else "no"),
        ("replicas", str(options.replicas)),
        ("copies-possible", str(min(options.replicas, stored_on))),
        ("free", str(parts.space.free)),
        ("used", str(parts.space.used)),
        ("full", "yes" if parts.space.full else "no"),
        ("failed-attempts", str(parts.failed_attempts.total)),
    ]
    if sentence := parts.authorities().sentence:
        pairs.append(("ca-change", sentence))
    if state.halted:
        pairs.append(("halted", state.halted))
    pairs += risk.pairs(parts.reporter.risk, servers, lost_files)
    pairs += _named(lost_files, servers)
    pairs.append(("under-replicated", str(parts.reporter.short)))
    pairs += unheld.pairs(parts.reporter.unheld)
    pairs += parts.chunks.caretaker.progress.pairs()
    pairs += parts.chunks.collector.progress.pairs()
    pairs += parts.chunks.surplus.progress.pairs()
    pairs += [("draining", sentence_of(server, drain)) for server, drain in parts.drains()]
    pairs += export_pairs(
        parts.chunks.export_keeper.kept, parts.chunks.exports.last, parts.chunks.export_keeper.missing, parts.now()
    )
    pairs += [("waits-for", f"{wait.address} {wait.error}") for wait in state.waits]
    pairs += [("cure", cure) for cure in state.cures]
    if parts.is_withheld:
        pairs.append(("withheld", parts.embedded.withheld))
    pairs.append(("takeovers", str(len(parts.history.chain))))
    pairs += [("drift", str(difference)) for difference in parts.ledger.drift]
    pairs += [("note", f"{server.name}: {server.note}") for server in servers if server.note]
    return pairs


def _named(lost_files: risk.LostFiles | None, servers: Iterable[Server]) -> list[tuple[str, str]]:
    names = {server.id: server.name for server in servers}
    return [
        (risk.LOST_FILE, f"{','.join(sorted(names.get(holder, holder) for holder in one.holders))} {name}")
        for one in (lost_files.sets if lost_files is not None else ())
        for name in one.names
    ]
