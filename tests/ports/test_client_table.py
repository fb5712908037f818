"""The client port: the server table put as a whole."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.ports.client import looking
from tests.ports.client_link import ClientLink
from tests.ports.fakes import OTHER_ID


class TableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.link = ClientLink().auth("admin")

    def put(self, text: str) -> str:
        data = text.encode()
        return self.link.send(b"TABLE %d\r\n" % len(data) + data)

    def test_round_trip(self) -> None:
        """What SERVERS answered can be edited and given back."""
        text = self.link.say("SERVERS")
        assert self.put(text) == "OK changed=0\r\n"
        assert self.put(text.replace("name=beta", "name=gamma")) == "OK changed=1\r\n"
        assert self.link.say(f"SERVER {OTHER_ID}").startswith(f"OK SERVER id={OTHER_ID} name=gamma ")

    def test_too_late(self) -> None:
        """A table of an earlier revision is a conflict, and the link goes on."""
        text = self.link.say("SERVERS")
        self.link.backend.state.revision += 1
        assert self.put(text).startswith("ERR conflict the table has changed since revision 7 ")
        assert self.link.say("PING") == "OK\r\n"

    def test_nonsense(self) -> None:
        """What is no table is refused, and the link stays in step."""
        assert self.put("hello").startswith("ERR syntax ")
        assert self.put("") == "ERR syntax a table begins with TABLE <count> revision=<n>, as SERVERS shows it\r\n"
        assert self.link.say("PING") == "OK\r\n"
        assert self.link.say(f"TABLE {looking.TABLE_BYTES_MAX + 1}").startswith("ERR limit ")
        assert self.link.closed

    def test_not_an_admin(self) -> None:
        """It takes a key with the role admin."""
        for key in ("reader", "writer"):
            self.link = ClientLink().auth(key)
            text = self.link.say("SERVERS")
            assert self.put(text).startswith("ERR denied ")
            assert self.link.say("PING") == "OK\r\n"
