"""How the farm changes its CA: the rules."""

from __future__ import annotations

import base64
import json

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.model import INVITES, Server
from chunkfarm.rotation import Authorities, Rotation, believed, held_up_by, in_force, without_key
from chunkfarm.sealed_rows import sealed_anew
from chunkfarm.table.duties import Report
from chunkfarm.table.interface import Delete, Put, Row
from chunkfarm.trust.authority import Authority
from chunkfarm.trust.keys import KeyRow, new_key
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.seal import SealKey
from tests.builders import make_server

NOW = 1_795_000_000_000
OLD, NEW = (Authority.create("f" * 32, NOW) for _ in range(2))


def make_rotation(step: str = "trusting") -> Rotation:
    ca, old = NEW.certificate_pem.decode(), OLD.certificate_pem.decode()
    return Rotation(step=step, ca=ca, old=old, introduction="", seal="5e" * 32, since=NOW)


class RotationTests(SynchronousTestCase):
    """The row, and who believes what by it."""

    def test_row(self) -> None:
        """It is read as it was written; anything else is refused."""
        rotation = make_rotation()
        assert Rotation.from_value(rotation.to_value()) == rotation
        for value in (b"", b"[]", b"{}", evolve(rotation, step="later").to_value()):
            self.assertRaises(TrustError, Rotation.from_value, value)

    def test_who_is_believed(self) -> None:
        """Both while it runs; the signature alone is enough of the one that cannot be stolen yet."""
        old, new = OLD.certificate_pem.decode(), NEW.certificate_pem.decode()
        for signs, rotation, believes, enough in (
            (old, None, {old}, old),
            (old, make_rotation("trusting"), {old, new}, new),
            (new, make_rotation("renewing"), {old, new}, new),
            (new, make_rotation("done"), {new}, new),
            (new, make_rotation("over"), {new}, new),
        ):
            assert set(believed(signs, rotation)) == believes
            assert in_force(signs, rotation) == enough

    def test_who_holds_it_up(self) -> None:
        """Servers that are there and have not done their part; who is down is not waited for."""
        new, old = NEW.fingerprint, OLD.fingerprint
        servers = (make_server(1), make_server(2), make_server(3, state="down"), make_server(4, state="draining"))
        told = {
            make_server(1).id: Report(incarnation="1", ca=new, ready=new),
            make_server(2).id: Report(incarnation="1", ca=old, ready=new),
        }

        def names(step: str, rows: tuple[Server, ...] = servers) -> list[str]:
            return [server.name for server in held_up_by(make_rotation(step), rows, told)]

        assert names("trusting") == ["s4"]
        assert names("renewing") == ["s2", "s4"]
        assert names("done") == names("over") == []
        assert names("trusting", servers[:3]) == []

    def test_whose_key_is_not_known(self) -> None:
        """Nothing begins before the keys of all that are there stand in their rows."""
        servers = (make_server(1, public_key="aa"), make_server(2), make_server(3, state="down"))
        assert [server.name for server in without_key(servers)] == ["s2"]

    def test_told_to_people(self) -> None:
        """How far it is, and for whom it waits."""
        signs = OLD.certificate_pem.decode()
        assert Authorities(signs=signs).sentence == Authorities(signs=signs, rotation=make_rotation("done")).step == ""
        told = Authorities(signs=signs, rotation=make_rotation(), waits_for=("beta", "gamma"))
        assert told.sentence == "trusting, waits for beta, gamma"
        assert [role for role, _ in told.others] == ["next"]
        assert [role for role, _ in evolve(told, rotation=make_rotation("renewing")).others] == ["before"]
        assert evolve(told, wanted=True, waits_for=(), problem="no room").sentence == "wanted, no room"


class SealedRowTests(SynchronousTestCase):
    """What was sealed with the key before."""

    def setUp(self) -> None:
        self.old, new = SealKey.create(), SealKey.create()
        self.seal = self.old.beside(new.material).led_by(new.digest)

    def anew(self, key: bytes, value: bytes, seal: SealKey | None = None) -> Put | Delete | None:
        changed = sealed_anew(Row(key, value, 7), seal or self.seal)
        if changed is None:
            return None
        assert (changed.compare.key, changed.compare.revision) == (key, 7)
        assert isinstance(changed.operation, Put | Delete)
        return changed.operation

    def test_a_users_key(self) -> None:
        """Its secret is sealed with the new key, and everything else stays."""
        row, secret = new_key("write", prefix="lab/", label="x", seal=self.old)
        changed = self.anew(row.key, row.to_value())
        assert isinstance(changed, Put)
        after = KeyRow.from_value(changed.value)
        assert evolve(after, sealed=b"") == evolve(row, sealed=b"")
        assert self.seal.alone().unseal(after.seal_name, after.sealed) == secret.encode()
        assert self.anew(row.key, changed.value) is None

    def test_a_secret_that_nobody_can_open(self) -> None:
        """The key can be compared all the same, and nothing is held up."""
        row, _ = new_key("read", seal=SealKey.create())
        changed = self.anew(row.key, row.to_value())
        assert isinstance(changed, Put) and KeyRow.from_value(changed.value).sealed == b""
        assert self.anew(row.key, changed.value) is None

    def test_damaged(self) -> None:
        """A row that is none stays as it is."""
        assert self.anew(b"keys/x", b"{") is None

    def test_codes(self) -> None:
        """Codes that were made before go: whoever has the key before knows their secrets."""
        key = INVITES + b"0" * 16
        for seal, gone in ((self.old, True), (self.seal, False)):
            sealed = base64.b64encode(seal.seal(key.decode(), b"s" * 32)).decode()
            value = json.dumps({"sealed": sealed, "expires": 1, "used_by": ""}).encode()
            assert isinstance(self.anew(key, value), Delete) is gone
        assert isinstance(self.anew(key, b"{"), Delete)
