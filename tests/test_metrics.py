"""What Prometheus reads, and what is made for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

import chunkfarm
from chunkfarm.chunks.collecting import Collected
from chunkfarm.chunks.repair import Progress
from chunkfarm.chunks.surplus import Given
from chunkfarm.metrics import FROM_STATUS, Metrics
from chunkfarm.risk import LostFiles, Risk, pairs
from chunkfarm.unheld import Unheld
from chunkfarm.unheld import pairs as lost_pairs

MONITORING = Path(chunkfarm.__file__).parents[1] / "monitoring"


def read(metrics: Metrics, *status: tuple[str, str]) -> dict[str, float]:
    """Every sample, by its name with its labels."""
    return {
        sample.name + "".join(f" {label}={value}" for label, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text(status).decode())
        for sample in family.samples
    }


class MetricsTests(SynchronousTestCase):
    """Counted where it happens, or taken from STATUS."""

    def test_requests(self) -> None:
        """Requests are counted by what came of them, and timed."""
        metrics = Metrics()
        metrics.observed("client", "PUT", "ok", 0.004)
        metrics.observed("client", "PUT", "ok", 3.0)
        metrics.observed("client", "PUT", "full", 0.001)
        told = read(metrics)
        assert told["chunkfarm_requests_total operation=PUT outcome=ok port=client"] == 2
        assert told["chunkfarm_requests_total operation=PUT outcome=full port=client"] == 1
        assert told["chunkfarm_request_seconds_bucket le=0.005 operation=PUT port=client"] == 2
        assert told["chunkfarm_request_seconds_count operation=PUT port=client"] == 3

    def test_status(self) -> None:
        """What STATUS tells as a number, in percent, or as yes and no is a gauge; what it does not tell is left out."""
        status = [("revision", "17"), ("verified", "25%"), ("full", "yes"), ("name", "alpha"), ("free", "?")]
        told = read(Metrics(), *status)
        assert told["chunkfarm_table_revision"] == 17
        assert told["chunkfarm_verified_ratio"] == 0.25
        assert told["chunkfarm_disk_full"] == 1
        assert told["chunkfarm_info farm= first= name=alpha state="] == 1
        assert "chunkfarm_disk_free_bytes" not in told

    def test_what_only_grows(self) -> None:
        """What a server counts from its start on is a counter, of which a rate may be taken also over a restart."""
        status = [(name, "3") for name in FROM_STATUS]
        families = {one.name: one for one in text_string_to_metric_families(Metrics().text(status).decode())}
        for name in ("failed_attempts", "damaged_chunks", "collected_chunks", "collected_bytes",
                     "surplus_moved_chunks", "surplus_moved_bytes"):  # fmt: skip
            family = families[f"chunkfarm_{name}"]
            assert (family.type, [sample.name for sample in family.samples]) == ("counter", [f"chunkfarm_{name}_total"])
        assert families["chunkfarm_surplus_chunks"].type == families["chunkfarm_condemned_chunks"].type == "gauge"

    def test_rates(self) -> None:
        """The dashboard and the rules take rates and increases of counters alone."""
        for file in ("grafana-dashboard.json", "alerts.yml"):
            for name in re.findall(r"\b(?:i?rate|increase)\(([a-z_]+)", (MONITORING / file).read_text()):
                assert name.endswith(("_total", "_sum", "_count", "_bucket")), (file, name)

    def test_connections_and_lag(self) -> None:
        """Connections are counted when they are asked for; a reactor that is early is not late."""
        metrics = Metrics()
        connections = [1]
        metrics.count_connections("files", lambda: len(connections))
        metrics.late(-0.1)
        metrics.committed(0.01)
        connections.append(2)
        told = read(metrics)
        assert told["chunkfarm_connections port=files"] == 2
        assert told["chunkfarm_reactor_lag_seconds_sum"] == 0
        assert told["chunkfarm_transaction_seconds_count"] == 1
        assert told["process_resident_memory_bytes"] > 0

    def test_the_caretaker_is_there(self) -> None:
        """Every number that the caretaker tells of itself has its metric."""
        told = dict(Progress(left=1, bytes_left=10, rate=5).pairs())
        assert set(told) - {"repair-seconds-left", "repair-paused"} <= set(FROM_STATUS)
        told = dict(pairs(Risk(), (), LostFiles()))
        assert set(told) - {"can-be-lost"} <= set(FROM_STATUS)
        assert set(dict(lost_pairs(Unheld(chunks=1)))) & set(FROM_STATUS) == {"lost"}
        told = dict([*Collected(paused="x").pairs(), *Given(paused="x").pairs()])
        assert set(told) - {"collect-paused", "surplus-paused"} <= set(FROM_STATUS)


class MonitoringTests(SynchronousTestCase):
    """The dashboard and the alert rules ask for nothing that does not exist."""

    def test_names(self) -> None:
        """Every metric that they name is one that a server tells."""
        metrics = Metrics()
        metrics.observed("client", "PUT", "ok", 0.1)
        metrics.count_connections("client", lambda: 1)
        status = [(name, "1") for name in FROM_STATUS]
        known = {name.split(" ")[0] for name in read(metrics, *status)}
        for file in ("grafana-dashboard.json", "alerts.yml"):
            named = set(re.findall(r"\b(?:chunkfarm|process)_[a-z_]+\b", (MONITORING / file).read_text()))
            assert named and named <= known, (file, named - known)

    def test_what_is_lost_counts_once(self) -> None:
        """Each server tells the number of the whole farm, so that nothing adds them up."""
        for file in ("grafana-dashboard.json", "alerts.yml"):
            text = (MONITORING / file).read_text()
            assert "max(chunkfarm_lost_chunks)" in text and "sum(chunkfarm_lost_chunks)" not in text

    def test_dashboard(self) -> None:
        """The dashboard is one that Grafana can import: panels with ids of their own, each with a query."""
        panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert all(target["expr"] for panel in panels for target in panel["targets"])
