"""Whether a server may be emptied, and how that is told."""

from __future__ import annotations

import pytest
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.emptying import emptied, kept, sentence_of
from chunkfarm.errors import PreconditionFailed
from chunkfarm.model import Drain, Server
from tests.builders import make_server

NOW = 9_000


class EmptiedTests(SynchronousTestCase):
    """Server s1 is to be emptied."""

    def refused(self, *servers: Server, replicas: int = 3, anyway: bool = False) -> str:
        with pytest.raises(PreconditionFailed) as caught:
            emptied(servers[0], servers, replicas, NOW, anyway)
        return str(caught.value)

    def test_begin_and_end(self) -> None:
        """Its state says so since now, and once more that it is up; to say it twice changes nothing."""
        servers = [make_server(number) for number in (1, 2, 3, 4)]
        row = emptied(servers[0], servers, 3, NOW)
        assert (row.state, row.draining, row.owns, row.since) == ("draining", True, False, NOW)
        assert emptied(row, servers, 3, NOW + 1) == row
        back = kept(row, NOW + 2)
        assert (back.state, back.draining, back.owns, back.since) == ("up", False, True, NOW + 2)
        assert kept(servers[0], NOW) == servers[0]

    def test_while_it_is_down(self) -> None:
        """It may be emptied then, too: it owns nothing any more, and stays down."""
        servers = [make_server(1, state="down", since=5), *(make_server(number) for number in (2, 3, 4))]
        row = emptied(servers[0], servers, 3, NOW)
        assert (row.state, row.since, row.owns, row.live_state) == ("down", 5, False, "draining")

    def test_nobody_else_stores_chunks(self) -> None:
        """Then it is refused whatever is said."""
        said = self.refused(make_server(1), make_server(2, weight=0), make_server(3, draining=True), anyway=True)
        assert said == "no other server stores chunks: s1 can only be emptied once there is one"

    def test_too_few_others(self) -> None:
        """With fewer others than replicas it says how many copies would remain, and takes it if it is meant."""
        servers = [make_server(1), make_server(2), make_server(3)]
        assert "each would have 2 copies and not 3" in self.refused(*servers)
        assert emptied(servers[0], servers, 3, NOW, anyway=True).draining
        assert emptied(servers[0], servers, 2, NOW).draining
        # One that holds no chunks by its weight is missed by nobody.
        assert emptied(make_server(1, weight=0), servers, 3, NOW).draining

    def test_no_room(self) -> None:
        """If its chunks do not fit on the others that says so, with both figures."""
        others = [make_server(2, free=50), make_server(3, free=40, full=True), make_server(4, free=40)]
        said = self.refused(make_server(1, used=91), *others)
        assert (
            "take 91 bytes" in said
            and "have 90 free" in said
            and "DRAIN s1 anyway" in said
            and "chunkfarm drain s1 --anyway" in said
        )
        assert emptied(make_server(1, used=90), others, 3, NOW).draining

    def test_what_is_told(self) -> None:
        """How far it is in one sentence, whatever is known of it."""
        server = make_server(1, state="draining", draining=True)
        assert sentence_of(server, None) == "s1: nothing is known of it yet"
        left = Drain(chunks=10, left=4, bytes_left=4000, rate=100, counted=True)
        assert sentence_of(server, left) == "s1: 4 of 10 chunks left, 4000 bytes, 100 a second, 40 s left"
        paused = Drain(chunks=10, left=4, bytes_left=4000, counted=True, paused="no room on s2")
        assert sentence_of(server, paused) == "s1: 4 of 10 chunks left, 4000 bytes; paused: no room on s2"
        assert "may be switched off" in sentence_of(server, Drain(chunks=10, counted=True, drained=True))
        assert "it is down" in sentence_of(make_server(1, state="down", draining=True), left)
