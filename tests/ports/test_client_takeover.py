"""The client port: letting the farm go on with one server."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.ports.client_link import ClientLink
from tests.ports.fakes import SERVER_ID, MemoryBackend

ROWS = [
    f"SEEN name=alpha address=10.0.0.1:4101 id={SERVER_ID} state=readonly term=3 index=17 longest=yes here=yes",
    'MISSED name=beta address=10.0.0.2:4101 error="no answer within 5 s"',
    "END",
    "",
]


class TakeoverTests(SynchronousTestCase):
    def make_link(self, key: str = "admin", phase: str = "readonly") -> ClientLink:
        backend = MemoryBackend()
        backend.state.phase = phase
        return ClientLink(backend=backend).auth(key)

    def test_looking(self) -> None:
        """Without a name it shows who was found with which journal, who was not, and whether this server may."""
        link = self.make_link()
        assert link.say("TAKEOVER").split("\r\n") == ["TAKEOVER 2 may=yes", *ROWS]
        link.backend.objection = "beta has the longer journal: say it there"
        first = link.say("TAKEOVER").split("\r\n")[0]
        assert first == 'TAKEOVER 2 may=no because="beta has the longer journal: say it there"'
        assert link.backend.taken_over == []

    def test_going_on(self) -> None:
        """With the farm's name it does it, and says which line began."""
        link = self.make_link()
        assert link.say("TAKEOVER lab").split("\r\n") == [f"TAKEOVER 2 line={'1e' * 16}", *ROWS]
        assert link.backend.taken_over == ["lab"]

    def test_refusals(self) -> None:
        """A wrong name, and anything that stands in the way, is a conflict and changes nothing."""
        link = self.make_link()
        assert link.say("TAKEOVER bal").startswith("ERR conflict this farm has another name")
        link.backend.objection = "the farm has a first that commits"
        assert link.say("TAKEOVER lab") == "ERR conflict the farm has a first that commits\r\n"
        assert link.say("TAKEOVER a b").startswith("ERR syntax ")
        assert link.backend.taken_over == []

    def test_who_may(self) -> None:
        """Admins alone."""
        for key in ("reader", "writer"):
            assert self.make_link(key).say("TAKEOVER lab").startswith("ERR denied ")
        assert ClientLink().say("TAKEOVER lab").startswith("ERR auth ")

    def test_while_it_waits(self) -> None:
        """A server that has the table knows its admins while nobody leads; all else waits for a first."""
        link = self.make_link(phase="waiting")
        assert link.say("TAKEOVER").startswith("TAKEOVER 2 may=yes")
        assert link.say("STATUS").startswith("STATUS ")
        for line in ("SERVERS", "LIST", "STAT a/b", "SET farm replicas=2", "WATCH"):
            assert link.say(line).startswith("ERR waiting "), line
        reader = self.make_link("reader", phase="waiting")
        assert reader.say("TAKEOVER lab").startswith("ERR denied ")

    def test_a_server_that_takes_part_no_more(self) -> None:
        """HELLO says why; a watch would show nothing any more, so there is none."""
        link = self.make_link()
        link.backend.state.halted = "the farm goes on without this server"
        refused = link.say("REMOVE a/b")
        assert refused.startswith("ERR readonly ") and "the farm goes on without this server" in refused
        assert link.say("HELLO").endswith(' because="the farm goes on without this server"\r\n')
        assert link.say("WATCH") == "ERR waiting the farm goes on without this server\r\n"
