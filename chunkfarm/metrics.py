"""What this process counts, in the form that Prometheus reads.

Requests are counted where they are answered (`observed`); everything else is what STATUS tells at the moment, under the
names in `FROM_STATUS`, so that the two never differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Bounds of the histograms: from a small read that needs no disk to the longest wait for a write."""

FROM_STATUS: dict[str, tuple[str, str]] = {
    "revision": ("chunkfarm_table_revision", "Newest change of the table that this server knows of"),
    "term": ("chunkfarm_table_term", "Term of the consensus"),
    "generation": ("chunkfarm_config_generation", "Generation of config.ini"),
    "table-copies": ("chunkfarm_table_copies", "Servers that vote on the table"),
    "table-learners": ("chunkfarm_table_learners", "Servers that are caught up to vote later"),
    "takeovers": ("chunkfarm_takeovers", "Takeovers, by rule or by hand, since the farm was founded"),
    "servers": ("chunkfarm_servers", "Servers in the table"),
    "servers-up": ("chunkfarm_servers_up", "Servers that are up"),
    "replicas": ("chunkfarm_replicas", "Copies that each chunk should have"),
    "copies-possible": ("chunkfarm_copies_possible", "Copies that each chunk can have with the servers that are up"),
    "free": ("chunkfarm_disk_free_bytes", "Free bytes of this server's disk"),
    "used": ("chunkfarm_disk_used_bytes", "Bytes of chunks on this server"),
    "full": ("chunkfarm_disk_full", "Whether this server takes no more chunks for want of room"),
    "failed-attempts": ("chunkfarm_failed_attempts_total", "Wrong keys shown to this process"),
    "one-copy": ("chunkfarm_one_copy_chunks", "Chunks of which one server has the only copy, in the whole farm"),
    "one-copy-bytes": ("chunkfarm_one_copy_bytes", "Bytes of them"),
    "two-copies": ("chunkfarm_two_copies_chunks", "Chunks of which two servers have the only copies"),
    "two-copies-bytes": ("chunkfarm_two_copies_bytes", "Bytes of them"),
    "one-copy-files": ("chunkfarm_one_copy_files", "Files of which one server has the only copy of something"),
    "two-copies-files": ("chunkfarm_two_copies_files", "Files of which two servers have the only copies of something"),
    "risk-unknown-servers": ("chunkfarm_risk_unknown_servers", "Servers that have yet to look at all their chunks"),
    "under-replicated": ("chunkfarm_under_replicated_chunks", "Chunks with too few copies in the whole farm"),
    "under-replicated-here": ("chunkfarm_under_replicated_chunks_here", "Chunks with too few copies, by this server"),
    "repair-done": ("chunkfarm_repair_done_chunks", "Chunks copied since the caretaker last had nothing to do"),
    "repair-left": ("chunkfarm_repair_left_chunks", "Chunks still to be copied"),
    "repair-rate": ("chunkfarm_repair_bytes_per_second", "Bytes a second that are copied"),
    "repair-looked": ("chunkfarm_repair_looked_ratio", "Part of the chunks looked at since something last changed"),
    "damaged": ("chunkfarm_damaged_chunks_total", "Chunks put aside since this process began"),
    "lost": ("chunkfarm_lost_chunks", "Chunks of files that no server that answers has, in the whole farm"),
    "unreached": ("chunkfarm_unreached_servers", "Servers that are up by their reports, and did not answer this one"),
    "export-age": ("chunkfarm_export_age_seconds", "Seconds since the newest export of the table was begun"),
    "export-rows": ("chunkfarm_export_rows", "Rows in the newest export of the table"),
    "export-missing-here": ("chunkfarm_export_missing_chunks", "Chunks of exports that this server should have"),
    "collected": ("chunkfarm_collected_chunks_total", "Chunks that no file used, deleted since this process began"),
    "collected-bytes": ("chunkfarm_collected_bytes_total", "Bytes of them"),
    "condemned": ("chunkfarm_condemned_chunks", "Chunks that no file uses, about to be deleted"),
    "surplus": ("chunkfarm_surplus_chunks", "Chunks here that belong on other servers"),
    "surplus-moved": ("chunkfarm_surplus_moved_chunks_total", "Chunks that were given up to other servers"),
    "surplus-bytes": ("chunkfarm_surplus_moved_bytes_total", "Bytes of them"),
    "verified": ("chunkfarm_verified_ratio", "Part of the chunks that the scrub has read in this round"),
}
"""What of STATUS is a number: its metric, and what that says. One with `_total` only grows while a process runs."""


def _number(text: str) -> float | None:
    if text in ("yes", "no"):
        return float(text == "yes")
    try:
        # What was not counted to its end is at least so much.
        return float(text.removesuffix("%").removesuffix("+")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


class _Status(Collector):
    """Pairs of STATUS as gauges and counters. They are given anew before each collection."""

    def __init__(self) -> None:
        self.pairs: Iterable[tuple[str, str]] = ()

    def collect(self) -> Iterator[Metric]:
        told = dict(self.pairs)
        for name, (metric, text) in FROM_STATUS.items():
            if name in told and (value := _number(told[name])) is not None:
                kind = CounterMetricFamily if metric.endswith("_total") else GaugeMetricFamily
                yield kind(metric, text, value=value)
        labels = ["farm", "name", "state", "first"]
        info = GaugeMetricFamily("chunkfarm_info", "This server and its farm", labels=labels)
        info.add_metric([told.get(name, "") for name in labels], 1.0)
        yield info


class Metrics:
    """Everything that one process counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._status = _Status()
        self._registry.register(self._status)
        self._requests = Counter(
            "chunkfarm_requests",
            "Requests answered, by what came of them (ok, or the code of the error)",
            ["port", "operation", "outcome"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "chunkfarm_request_seconds",
            "Seconds until a request was answered",
            ["port", "operation"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._connections = Gauge(
            "chunkfarm_connections", "Connections that are open", ["port"], registry=self._registry
        )
        self._limited = Counter(
            "chunkfarm_limited",
            "Connections that a limit of config.ini has refused or ended, by its name without that of the port",
            ["port", "limit"],
            registry=self._registry,
        )
        self._commits = Histogram(
            "chunkfarm_transaction_seconds",
            "Seconds until a transaction of the table was acknowledged to this server",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._lag = Histogram(
            "chunkfarm_reactor_lag_seconds",
            "How late the reactor comes to what it was to do at a certain moment",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._known: dict[tuple[str, str, str], Counter] = {}
        self._timed: dict[tuple[str, str], Histogram] = {}

    def observed(self, port: str, operation: str, outcome: str, seconds: float) -> None:
        """A request was answered. `outcome` is `ok` or the code of an error."""
        # To look up labels costs several times what counting does.
        key = port, operation, outcome
        counter = self._known.get(key)
        if counter is None:
            counter = self._known[key] = self._requests.labels(*key)
        counter.inc()
        timer = self._timed.get(key[:2])
        if timer is None:
            timer = self._timed[key[:2]] = self._seconds.labels(*key[:2])
        timer.observe(seconds)

    def limited(self, port: str, limit: str) -> None:
        """A limit of a port has kept somebody out, or ended a connection."""
        self._limited.labels(port, limit).inc()

    def committed(self, seconds: float) -> None:
        """A transaction of this server was acknowledged after so long."""
        self._commits.observe(seconds)

    def late(self, seconds: float) -> None:
        """The reactor came so late to a timer."""
        self._lag.observe(max(0.0, seconds))

    def count_connections(self, port: str, count: Callable[[], int]) -> None:
        """Say where the number of a port's connections is to be had."""
        self._connections.labels(port).set_function(lambda: float(count()))

    def text(self, status: Iterable[tuple[str, str]]) -> bytes:
        """All of it, with what STATUS tells now."""
        self._status.pairs = status
        return generate_latest(self._registry)
