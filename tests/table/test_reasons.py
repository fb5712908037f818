"""Why a server stood for election, and why it ceased to lead, as the core tells it to people."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.table.records import Configuration, MessageKind, Reasons, Why
from tests.table.one_server import ELECTION_TICKS, OneServer

K = MessageKind


class ReasonsTests(SynchronousTestCase):
    def following(self, others: str = "bc") -> OneServer:
        server = OneServer(others)
        server.hear("b", K.HEARTBEAT, term=1)
        return server

    def test_silence(self) -> None:
        """A leader that is not heard any more; a second try tells the same."""
        server = self.following()
        server.tick(2 * ELECTION_TICKS)
        assert server.core.reasons == Reasons(Why.SILENT, "b")
        server.tick(4 * ELECTION_TICKS)
        assert server.core.reasons == Reasons(Why.SILENT, "b")

    def test_nobody_was_heard(self) -> None:
        """After a start there may have been no leader at all."""
        server = OneServer()
        server.tick(2 * ELECTION_TICKS)
        assert server.core.reasons == Reasons(Why.SILENT, "")

    def test_a_link_ended(self) -> None:
        """A leader whose link has ended; not if it was heard again since."""
        server = self.following()
        server.core.suspect("b")
        server.tick(ELECTION_TICKS)
        assert server.core.reasons == Reasons(Why.CUT, "b")
        server = self.following()
        server.core.suspect("b")
        server.hear("b", K.HEARTBEAT, term=1)
        server.tick(2 * ELECTION_TICKS)
        assert server.core.reasons == Reasons(Why.SILENT, "b")

    def test_handed_over(self) -> None:
        """A leader that asks this server to take its place, and one that has done so."""
        server = self.following()
        server.hear("b", K.TIMEOUT_NOW)
        assert server.core.reasons == Reasons(Why.HANDED, "b")
        server = OneServer.leading()
        server.core.transfer("b")
        server.hear("b", K.VOTE, term=server.core.term + 1, log_index=9, log_term=server.core.term, transfer=True)
        assert server.core.reasons.ceased is Why.HANDED

    def test_alone(self) -> None:
        """The only voter, the one that is left of two, and the one of which a person said so."""
        server = OneServer("")
        server.core.campaign()
        assert server.core.reasons == Reasons(Why.ONLY, "")
        server = self.following("b")
        server.core.take_over("b")
        assert server.core.reasons == Reasons(Why.ALONE, "b")
        server = OneServer.leading()
        server.hear("b", K.HEARTBEAT, term=server.core.term + 1)
        server.core.force(9)
        assert server.core.reasons == Reasons(Why.FORCED, "b", Why.LATER)

    def test_no_majority(self) -> None:
        """A leader of three that hears nobody."""
        server = OneServer.leading()
        server.tick(3 * ELECTION_TICKS)
        assert server.core.reasons.ceased is Why.MAJORITY

    def test_removed(self) -> None:
        """A leader whose own removal is committed."""
        server = OneServer.leading()
        server.core.propose_configuration(Configuration({"b", "c"}))
        server.take()
        for other in "bc":
            server.answer(other, server.core.last_index)
        assert server.core.reasons.ceased is Why.REMOVED

    def test_withheld(self) -> None:
        """A leader that finds that it may have forgotten what it promised."""
        server = OneServer.leading()
        server.core.withhold()
        assert server.core.reasons.ceased is Why.WITHHELD

    def test_the_one_before(self) -> None:
        """Who led last is the one before, also if that was this very server."""
        server = OneServer.leading()
        server.tick(3 * ELECTION_TICKS)
        server.core.campaign()
        assert server.core.reasons == Reasons(Why.SILENT, "a", Why.MAJORITY)
