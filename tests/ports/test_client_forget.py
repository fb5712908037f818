"""The client port: taking a server out for good."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.losses import Loss, Losses
from tests.ports.client_link import ClientLink
from tests.ports.fakes import OTHER_ID, MemoryBackend


class ForgetTests(SynchronousTestCase):
    def make_link(self, key: str = "admin", state: str = "down") -> ClientLink:
        backend = MemoryBackend()
        backend.rows[1] = evolve(backend.rows[1], state=state)
        return ClientLink(backend=backend).auth(key)

    def test_looking(self) -> None:
        """Without the farm's name it says what would be lost, and changes nothing."""
        link = self.make_link()
        header = f"FORGET 0 may=yes name=beta id={OTHER_ID} state=down secrets=yes farm=lab done=yes files=7 chunks=9"
        assert link.say("FORGET beta").startswith(header)
        link.backend.losses = Losses(
            files=7, lost_files=1, lost_chunks=2, lost_bytes=30, silent=("gamma", "delta"), named=(
                Loss(name="a/b c", chunks=2, bytes=30),
            )
        )  # fmt: skip
        first, *rest = link.say(f"FORGET {OTHER_ID}").split("\r\n")
        assert " done=no " in first and " lostfiles=1 lostchunks=2 lostbytes=30 " in first
        assert first.endswith("silent=gamma,delta")
        assert rest == ["LOST name=a/b%20c chunks=2 bytes=30", "END", ""]
        assert len(link.backend.rows) == 2

    def test_forgotten(self) -> None:
        """With the farm's name it is done."""
        link = self.make_link()
        assert link.say("FORGET beta lab") == f"OK FORGET name=beta id={OTHER_ID}\r\n"
        assert link.say("SERVER beta").startswith("ERR notfound ")

    def test_refusals(self) -> None:
        """A server that lives, a wrong name, one that is not there: nothing is changed."""
        link = self.make_link(state="up")
        said = link.say("FORGET beta").split("\r\n")[0]
        assert said.startswith("FORGET 0 may=no ") and 'because="beta is up, and only a server that is down' in said
        assert link.say("FORGET beta lab").startswith("ERR conflict beta is up")
        assert link.say("FORGET beta bal").startswith("ERR conflict this farm has another name")
        assert link.say("FORGET nobody").startswith("ERR notfound ")
        assert link.say("FORGET").startswith("ERR syntax ")
        assert len(link.backend.rows) == 2

    def test_who_may(self) -> None:
        """Admins alone."""
        for key in ("reader", "writer"):
            assert self.make_link(key).say("FORGET beta lab").startswith("ERR denied ")

    def test_what_the_forgotten_may(self) -> None:
        """Its certificate opens nothing any more, and the link on which it showed it is ended."""
        link = ClientLink()
        link.backend.peers["certificate"] = OTHER_ID
        link.transport.certificate = "certificate"
        link.say("STARTTLS")
        assert link.say("SERVERS").startswith("TABLE 2 ")
        link.backend.forgotten.add(OTHER_ID)
        for line in ("SERVERS", "WATCH servers/", f"SET {OTHER_ID} zone=x"):
            assert link.say(line) == "ERR denied it was forgotten\r\n"
        link.factory.cut("ab" * 16)
        assert not link.closed
        link.factory.cut(OTHER_ID)
        assert link.closed
