"""A farm changes its CA while it is used, because a machine that held the CA's key was stolen."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from chunkfarm.issuer import CA_CERTIFICATE, CA_KEY, JOIN_KEY
from chunkfarm.model import KEYS
from chunkfarm.table.interface import Row
from chunkfarm.table.journal import Journal
from chunkfarm.trust.authority import Authority, issued_by
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.keys import KeyRow
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.seal import SealKey
from tests.slow.farm_case import FarmTestCase
from tests.slow.line_socket import link_to
from tests.slow.real_farm import RealFarm
from tests.slow.test_refused_requests import amp, read_box, unchecked

pytestmark = pytest.mark.slow

QUICK = "master_grace = 4s\nrepair_after = 5s\n"


def rows_in(data: Path) -> dict[bytes, Row]:
    """All rows of the table in a data directory that nobody uses."""
    journal = Journal.open(str(data / "table.sqlite"))
    try:
        return {row.key: row for row in journal.read(b"", b"", 10_000).rows}
    finally:
        journal.close()


class RotationTests(FarmTestCase):
    def test_a_stolen_master(self) -> None:
        """With its whole disk nobody gets in, or opens anything; users notice nothing, and who was away comes back."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta", farm=QUICK)
        farm.wait_copies("beta", 3)
        load = self.make_load(farm, servers=("alpha", "beta"), sets=False)
        farm.kill9("gamma", "delta")
        stolen = farm.directory / "stolen"
        shutil.copytree(farm.server("gamma").data, stolen)
        old_ca, old_config = (farm.directory / "alpha" / "ca.pem").read_bytes(), farm.directory / "old.ini"
        shutil.copy(farm.config_path, old_config)
        pids = {name: farm.server(name).pid for name in ("alpha", "beta")}
        away = {"alpha": "up", "beta": "up", "gamma": "down", "delta": "down"}
        farm.wait_for(lambda: farm.states("beta") == away, 20, "two are down")
        before = farm.config().farm.ca
        ids = {row["name"]: row["id"] for row in farm.rows("alpha")}

        forgotten = farm.cli("forget", "gamma", "--yes")
        print(forgotten.stdout)
        assert forgotten.returncode == 0, forgotten
        farm.wait_for(lambda: farm.config().farm.ca != before, 30, "config.ini names another CA")
        after = farm.config().farm.ca
        print(farm.cli("status").stdout)
        # Nobody was started anew, and clients know the servers by either CA.
        assert {name: farm.server(name).pid for name in pids} == pids
        assert farm.server("alpha").is_running() and farm.server("beta").is_running()
        assert farm.cli("ls").returncode == 0
        known = farm.cli("--config", str(old_config), "ls")
        assert known.returncode == 0, known
        printed = farm.cli("ca").stdout.encode()
        assert printed != old_ca and issued_by(certificate_of(farm, "alpha"), x509.load_pem_x509_certificate(printed))
        assert issued_by(certificate_of(farm, "beta"), x509.load_pem_x509_certificate(printed))

        # What the thief has.
        seal, rows = SealKey.load(stolen), rows_in(stolen)
        authority = Authority.load(rows[CA_CERTIFICATE].value, seal.unseal("secret/ca", rows[CA_KEY].value))
        now = 1_790_000_000_000
        for name in ("beta", "delta", "nobody"):
            identity = Identity.provisional(ids.get(name, "9" * 32), now).signed_by(authority, ["127.0.0.1"], now)
            self.is_a_stranger(farm, identity)
        own = Identity.load(stolen, ids["gamma"])
        assert own is not None
        assert "taken out of this farm" in self.answer(farm, own)

        # Who was away has a certificate of the old CA, and its own key.
        farm.start("delta")
        farm.wait_serving("delta")
        farm.wait_for(
            lambda: issued_by(certificate_of(farm, "delta"), x509.load_pem_x509_certificate(printed)), 20, "delta's"
        )
        farm.wait_for(lambda: farm.states("alpha").get("delta") == "up", 20, "delta is up")
        self.check_load(farm, load)
        assert farm.config().farm.ca == after

        # Nothing that is sealed now opens with what the thief has, and all of it with what the farm has.
        farm.sigterm("beta")
        farm.wait_ended("beta", 20)
        rows, ours = rows_in(farm.server("beta").data), SealKey.load(farm.server("beta").data)
        sealed = {"secret/ca": rows[CA_KEY].value, "secret/join": rows[JOIN_KEY].value}
        for key, row in rows.items():
            if key.startswith(KEYS):
                user = KeyRow.from_value(row.value)
                sealed[user.seal_name] = user.sealed
        assert len(sealed) >= 3
        for name, value in sealed.items():
            assert ours.alone().unseal(name, value)
            self.assertRaises(TrustError, seal.unseal, name, value)

    def answer(self, farm: RealFarm, identity: Identity) -> str:
        """What the peer port says to somebody with that certificate."""
        pem = farm.directory / "forged.pem"
        pem.write_bytes(identity.key_pem + identity.certificate_pem + identity.ca_pem)
        context = unchecked()
        context.load_cert_chain(pem)
        pem.unlink()
        with link_to(farm.server("alpha").peer) as link, context.wrap_socket(link.socket) as tls:
            tls.sendall(amp(_ask="1", _command="SealKey", digest="0" * 64))
            told = read_box(tls)
        assert told.get("_error_code") == "BAD_REQUEST", told
        return told["_error_description"]

    def is_a_stranger(self, farm: RealFarm, identity: Identity) -> None:
        assert "certificate of this farm" in self.answer(farm, identity)


def certificate_of(farm: RealFarm, name: str) -> x509.Certificate:
    """What a server shows to clients now."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with link_to(farm.server(name).files) as link, context.wrap_socket(link.socket) as tls:
        shown = tls.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)
