"""The client port: emptying a server."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.model import Drain
from tests.ports.client_link import ClientLink
from tests.ports.fakes import OTHER_ID, MemoryBackend


class DrainTests(SynchronousTestCase):
    def make_link(self, key: str = "admin", replicas: int = 1) -> ClientLink:
        backend = MemoryBackend()
        backend.farm = type(backend.farm)(name="lab", replicas=replicas)
        return ClientLink(backend=backend).auth(key)

    def test_begin_and_end(self) -> None:
        """DRAIN begins it and says how far it is, SERVERS shows the state, `off` ends it."""
        link = self.make_link()
        assert link.say("DRAIN") == "DRAINS 0\r\nEND\r\n"
        assert link.say("DRAIN beta") == f"OK DRAIN name=beta id={OTHER_ID} state=draining drained=no\r\n"
        assert "name=beta" in link.say("SERVERS") and "state=draining" in link.say("SERVER beta")
        link.backend.told[OTHER_ID] = Drain(
            chunks=9, left=3, bytes_left=300, rate=100, counted=True, paused="no room on gamma"
        )
        row = f"DRAIN name=beta id={OTHER_ID} state=draining chunks=9 left=3 bytes=300 rate=100 seconds=3"
        assert link.say("DRAIN") == f'DRAINS 1\r\n{row} drained=no paused="no room on gamma"\r\nEND\r\n'
        link.backend.told[OTHER_ID] = Drain(chunks=9, counted=True, drained=True)
        assert link.say(f"DRAIN {OTHER_ID}").endswith("chunks=9 left=0 bytes=0 rate=0 drained=yes\r\n")
        assert link.say("DRAIN beta off").startswith("OK DRAIN name=beta ")
        assert link.say("DRAIN") == "DRAINS 0\r\nEND\r\n"

    def test_refusals(self) -> None:
        """What cannot be done is a conflict with a sentence; `anyway` is for what is only unwise."""
        link = self.make_link(replicas=2)
        said = link.say("DRAIN beta")
        assert said.startswith("ERR conflict ") and "one server stores chunks" in said and "1 copy and not 2" in said
        assert link.say("DRAIN beta anyway").startswith("OK DRAIN name=beta")
        assert link.say("DRAIN alpha anyway").startswith("ERR conflict no other server stores chunks")
        assert link.say("DRAIN delta").startswith("ERR notfound ")
        assert link.say("DRAIN delta off").startswith("ERR notfound ")
        assert link.say("DRAIN beta now").startswith("ERR syntax ")
        assert link.say("DRAIN a b c").startswith("ERR syntax ")

    def test_who_may(self) -> None:
        """Admins alone."""
        for key in ("reader", "writer"):
            assert self.make_link(key).say("DRAIN beta").startswith("ERR denied ")
