"""A table of which one server decides nothing, and its leader is gone."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.table.cluster import Cluster


class WithheldTableTests(SynchronousTestCase):
    def test_a_leader_that_is_gone(self) -> None:
        """A server that never stands for election forgets it all the same, and looks for another."""
        cluster = Cluster(self.mktemp())
        self.addCleanup(cluster.stop)
        cluster.found("a")
        cluster.grow("b", "c")
        table = cluster.nodes["c"].table
        table.withhold("It only learns.", lambda: False)
        cluster.until(lambda: table.leader == "a")
        cluster.kill("a")
        cluster.kill("b")
        cluster.until(lambda: not table.leader)
        cluster.hint = "b"
        assert table.leader == ""
