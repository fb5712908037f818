"""The client port: having the table exported."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.exports.maker import Progress
from tests.ports.client_link import ClientLink
from tests.ports.fakes import EXPORT_MADE, EXPORT_RUNS, MemoryBackend


class ExportTests(SynchronousTestCase):
    def make_link(self, *exports: Progress, key: str = "admin") -> ClientLink:
        backend = MemoryBackend()
        backend.exports = list(exports)
        return ClientLink(backend=backend).auth(key)

    def test_an_export(self) -> None:
        """EXPORT begins one, EXPORT with its number says how it is and what it has come to."""
        link = self.make_link(EXPORT_RUNS, EXPORT_MADE)
        assert link.say("EXPORT") == "OK number=2 state=running rows=100\r\n"
        assert link.say("EXPORT 2") == (
            "OK number=2 state=done revision=1234 time=2026-11-22T10:00:00.123Z rows=5678 chunks=12 new=3 size=700000 "
            f"digest={'1e' * 32} complete=4 servers=5\r\n"
        )

    def test_it_fails(self) -> None:
        """The answer says why."""
        link = self.make_link(Progress(number=1, running=False, failed="there is no room"))
        assert link.say("EXPORT 1") == 'OK number=1 state=failed because="there is no room"\r\n'

    def test_refusals(self) -> None:
        """A server without the table, a word that is no number, a key that is no admin's."""
        assert self.make_link().say("EXPORT").startswith("ERR readonly this server does not hold the table")
        assert self.make_link().say("EXPORT x").startswith("ERR syntax ")
        assert self.make_link(key="writer").say("EXPORT").startswith("ERR denied ")
