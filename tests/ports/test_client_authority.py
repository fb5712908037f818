"""The client port: the farm's CA, and changing it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.rotation import Authorities
from tests.ports.client_link import ClientLink
from tests.ports.fakes import MemoryBackend
from tests.test_rotation import NEW, OLD, make_rotation


class AuthorityTests(SynchronousTestCase):
    def make_link(self, key: str, *told: Authorities) -> ClientLink:
        self.backend = MemoryBackend()
        self.backend.told_of_ca = list(told) or self.backend.told_of_ca
        return ClientLink(backend=self.backend).auth(key)

    def test_the_ca(self) -> None:
        """Any key is told it."""
        header, row, end = (
            self.make_link("reader", Authorities(signs=OLD.certificate_pem.decode())).say("CA").splitlines()
        )
        assert (header, end) == ("CA 1 step=none", "END")
        assert row.startswith(f"CERTIFICATE role=signs fingerprint={OLD.fingerprint} until=20")

    def test_while_it_changes(self) -> None:
        """Both, how far it is, and for whom it waits."""
        told = Authorities(
            signs=OLD.certificate_pem.decode(), rotation=make_rotation(), waits_for=("beta",), problem="a b"
        )
        header, first, second, _ = self.make_link("reader", told).say("CA").splitlines()
        assert header == 'CA 2 step=trusting waitsfor=beta because="a b"'
        assert "role=signs" in first and f"role=next fingerprint={NEW.fingerprint}" in second

    def test_rotate(self) -> None:
        """An admin may, nobody else."""
        assert self.make_link("writer").say("ROTATE").startswith("ERR denied ")
        assert self.backend.rotated == 0
        assert self.make_link("admin").say("ROTATE") == "OK ROTATE\r\n"
        assert self.backend.rotated == 1

    def test_not_known_yet(self) -> None:
        """A server that has not seen the table says so."""
        assert self.make_link("reader").say("CA").startswith("ERR waiting ")
