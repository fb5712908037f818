"""A server's own key and certificate."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.trust import identity as identity_module
from chunkfarm.trust.authority import DAY_MS, fingerprint_of, server_id_of
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.private import TrustError, write_public
from tests.trust.support import ALPHA, BETA, NOW, make_authority, make_identity


class IdentityTests(SynchronousTestCase):
    """A server makes its own key, has it certified, and keeps it."""

    def setUp(self) -> None:
        self.authority = make_authority()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def test_provisional(self) -> None:
        """A server without a farm can speak TLS and proves nothing."""
        identity = Identity.provisional(ALPHA, NOW)
        assert identity.certificate.public_key() == identity.key.public_key()
        assert server_id_of(identity.certificate) is None
        assert (identity.ca, identity.ca_pem, identity.ca_fingerprint) == (None, b"", "")

    def test_key_stays_and_is_not_shown(self) -> None:
        """The key neither travels in the request nor appears when an identity is printed."""
        identity = Identity.provisional(ALPHA, NOW)
        assert b"PRIVATE" not in identity.signing_request(["alpha.example"])
        assert "PRIVATE" not in repr(identity)

    def test_certified(self) -> None:
        """After joining, the same key has the farm's certificate."""
        provisional = Identity.provisional(ALPHA, NOW)
        signed = self.authority.sign(provisional.signing_request(), ALPHA, [], NOW)
        identity = provisional.certified(signed, self.authority.certificate_pem)
        assert identity.key_pem == provisional.key_pem
        assert server_id_of(identity.certificate) == ALPHA
        assert identity.ca_fingerprint == self.authority.fingerprint

    def test_foreign_certificates(self) -> None:
        """A certificate for another key, for another server or by another CA is not accepted."""
        provisional = Identity.provisional(ALPHA, NOW)
        ca_pem = self.authority.certificate_pem
        other_key = make_identity(self.authority).certificate_pem
        other_server = self.authority.sign(provisional.signing_request(), BETA, [], NOW)
        other_ca = make_authority().sign(provisional.signing_request(), ALPHA, [], NOW)
        for pem, reason in ((other_key, "another key"), (other_server, ALPHA), (other_ca, "CA"), (b"", "PEM")):
            error = self.assertRaises(TrustError, provisional.certified, pem, ca_pem)
            assert reason in str(error)

    def test_save_and_load(self) -> None:
        """A restarted server is who it was; its key file is closed to others, its certificates are open."""
        identity = make_identity(self.authority)
        identity.save(self.folder)
        assert Identity.load(self.folder, ALPHA) == identity
        modes = {name: stat.S_IMODE((self.folder / name).stat().st_mode) for name in os.listdir(self.folder)}
        assert modes == {"server.key": 0o600, "server.pem": 0o644, "ca.pem": 0o644}

    def test_load_nothing(self) -> None:
        """A fresh data directory holds no identity."""
        assert Identity.load(self.folder, ALPHA) is None

    def test_load_of_an_open_key(self) -> None:
        """A server whose key others can read does not start with it."""
        make_identity(self.authority).save(self.folder)
        (self.folder / "server.key").chmod(0o640)
        error = self.assertRaises(TrustError, Identity.load, self.folder, ALPHA)
        assert "chmod 600" in str(error)

    def test_load_of_another_servers(self) -> None:
        """The files of another server are refused, and the file named."""
        make_identity(self.authority).save(self.folder)
        error = self.assertRaises(TrustError, Identity.load, self.folder, BETA)
        assert str(self.folder / "server.pem") in str(error)
        assert BETA in str(error)

    def test_load_of_damaged_files(self) -> None:
        """Each damaged file is noticed."""
        make_identity(self.authority).save(self.folder)
        for name in ("server.key", "server.pem", "ca.pem"):
            whole = (self.folder / name).read_bytes()
            (self.folder / name).write_bytes(whole[:-40])
            self.assertRaises(TrustError, Identity.load, self.folder, ALPHA)
            (self.folder / name).write_bytes(whole)

    def test_renewal_replaces_only_the_certificate(self) -> None:
        """A fresh certificate for the same key is put in place in one step."""
        identity = make_identity(self.authority)
        identity.save(self.folder)
        renewed = identity.signed_by(self.authority, ["gamma"], NOW + 300 * DAY_MS)
        written: list[str] = []

        def watched(path: Path, data: bytes) -> None:
            written.append(path.name)
            write_public(path, data)

        self.patch(identity_module, "write_public", watched)
        renewed.save(self.folder)
        assert written == ["server.pem"]
        assert Identity.load(self.folder, ALPHA) == renewed

    def test_crash_while_replacing(self) -> None:
        """A crash between the files of a new identity leaves none, never a mixture."""
        make_identity(self.authority).save(self.folder)
        successor = make_identity(make_authority())

        for point in ("write_private", "write_public"):

            def crash(path: Any, data: bytes) -> None:
                raise KeyboardInterrupt

            make_identity(self.authority).save(self.folder)
            patch = self.patch(identity_module, point, crash)
            self.assertRaises(KeyboardInterrupt, successor.save, self.folder)
            patch.restore()
            assert Identity.load(self.folder, ALPHA) is None
        successor.save(self.folder)
        assert Identity.load(self.folder, ALPHA) == successor

    def test_crash_while_the_ca_changes(self) -> None:
        """Whatever a crash leaves of a renewal by the next CA can be used: the old certificate, or the new one."""
        identity = make_identity(self.authority)
        successor = make_authority()
        renewed = identity.certified(
            successor.sign(identity.signing_request(), ALPHA, [], NOW), successor.certificate_pem + identity.ca_pem
        )
        assert renewed.ca_fingerprint == successor.fingerprint
        assert [fingerprint_of(ca) for ca in renewed.believed] == [successor.fingerprint, self.authority.fingerprint]
        for crash_at in range(4):
            identity.save(self.folder)
            written: list[str] = []

            def crash(path: Path, data: bytes, crash_at: int = crash_at, written: list[str] = written) -> None:
                if len(written) == crash_at:
                    raise KeyboardInterrupt
                written.append(path.name)
                write_public(path, data)

            patch = self.patch(identity_module, "write_public", crash)
            if crash_at < 3:
                self.assertRaises(KeyboardInterrupt, renewed.save, self.folder)
            else:
                renewed.save(self.folder)
            patch.restore()
            found = Identity.load(self.folder, ALPHA)
            assert found is not None and found.key_pem == identity.key_pem
            assert found.ca_fingerprint == (successor if crash_at >= 2 else self.authority).fingerprint, crash_at
        assert found == renewed

    def test_beliefs(self) -> None:
        """The CA of the own certificate comes first, each one once, and what is not believed any more is gone."""
        identity, other = make_identity(self.authority), make_authority()
        believing = identity.believing([other.certificate, self.authority.certificate])
        assert believing.believed == (self.authority.certificate, other.certificate)
        assert believing.believing([]).ca_pem == identity.ca_pem

    def test_renew_due(self) -> None:
        """A certificate is renewed well before it ends, and also when the clock says it is not yet valid."""
        identity = make_identity(self.authority)
        assert not identity.renew_due(NOW)
        assert not identity.renew_due(NOW + 240 * DAY_MS)
        assert identity.renew_due(NOW + 250 * DAY_MS)
        assert identity.renew_due(NOW + 2000 * DAY_MS)
        assert identity.renew_due(NOW - 3 * DAY_MS)
