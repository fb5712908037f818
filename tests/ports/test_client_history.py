"""The client port: what a server saw of its farm."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.timeline import Kind, Note
from tests.ports.client_link import ClientLink
from tests.ports.fakes import OTHER_ID, SERVER_ID, MemoryBackend

HEAD = f"server={SERVER_ID} name=alpha now=2026-11-22T10:00:02.123Z"


class HistoryTests(SynchronousTestCase):
    def make_link(self, key: str = "reader") -> ClientLink:
        """A server that noted two things, a second apart, and is asked a second later."""
        backend = MemoryBackend()
        backend.chronicle.note(Note(kind=Kind.STARTED, server=SERVER_ID, name="alpha", because="version 1"))
        backend.now += 1000
        backend.chronicle.note(Note(kind=Kind.LEADS, server=OTHER_ID, name="beta", term=3, mark="3"))
        backend.now += 1000
        return ClientLink(backend=backend).auth(key)

    def test_all(self) -> None:
        """With a key of the role read: the notes, and what the server's clock shows now."""
        assert self.make_link().say("HISTORY") == (
            f"HISTORY 2 {HEAD}\r\n"
            f"NOTE number=1 at=2026-11-22T10:00:00.123Z kind=started server={SERVER_ID} name=alpha "
            'because="version 1"\r\n'
            f"NOTE number=2 at=2026-11-22T10:00:01.123Z kind=leads server={OTHER_ID} name=beta term=3 mark=3\r\n"
            "END\r\n"
        )

    def test_parts(self) -> None:
        """Since a time, after a number, at most so many; none at all to learn what the clock shows."""
        link = self.make_link()
        assert link.say("HISTORY 2026-11-22T10:00:01.000Z").startswith(f"HISTORY 1 {HEAD}\r\nNOTE number=2 ")
        assert link.say("HISTORY - 1").startswith(f"HISTORY 1 {HEAD}\r\nNOTE number=2 ")
        assert link.say("HISTORY - - 1").startswith(f"HISTORY 1 {HEAD} more\r\nNOTE number=1 ")
        assert link.say("HISTORY - - 0") == f"HISTORY 0 {HEAD} more\r\nEND\r\n"

    def test_refusals(self) -> None:
        """What is no time, no number or too much; and a link that has shown no key."""
        link = self.make_link()
        assert link.say("HISTORY yesterday").startswith("ERR syntax 'yesterday' is not a time like ")
        assert link.say("HISTORY - x").startswith("ERR syntax ")
        assert link.say("HISTORY - - 1001").startswith("ERR limit ")
        assert ClientLink().say("HISTORY").startswith("ERR auth ")

    def test_while_it_waits(self) -> None:
        """A server that has the table and waits for the others tells it too: then it is wanted most."""
        link = self.make_link()
        link.backend.state.phase = "waiting"
        assert link.say("HISTORY").startswith("HISTORY 2 ")
        link.backend.holds_table = False
        assert link.say("HISTORY").startswith("ERR waiting ")
