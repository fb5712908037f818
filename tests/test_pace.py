"""How often servers report, by how many there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis.strategies import integers
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.pace import INTERVAL, SERVERS_A_SECOND, down_after, lost_after, report_interval


class PaceTests(SynchronousTestCase):
    def test_most_farms(self) -> None:
        """Up to some hundreds of servers report once a second; one is missed after three, and down after five."""
        for servers in (0, 1, 3, 749):
            assert (report_interval(servers), lost_after(servers), down_after(servers)) == (1, 3, 5)

    def test_a_thousand(self) -> None:
        """A thousand report every two seconds, and everything takes twice as long."""
        assert (report_interval(1003), lost_after(1003), down_after(1003)) == (2, 6, 10)

    @given(integers(0, 100_000))
    def test_bounded(self, servers: int) -> None:
        """However many there are, the first gets no more reports a second than from some hundreds; turns are whole."""
        interval = report_interval(servers)
        assert servers / interval <= SERVERS_A_SECOND * 1.5
        assert interval % INTERVAL == 0 and INTERVAL <= interval <= max(INTERVAL, servers / SERVERS_A_SECOND + INTERVAL)
        assert interval < lost_after(servers) < down_after(servers)
