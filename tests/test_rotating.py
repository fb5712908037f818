"""The first changes the farm's CA, its seal key and its join key."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.issuer import CA_CERTIFICATE, CA_KEY, JOIN_KEY, NEXT_CA_KEY, Issuer, secret_rows
from chunkfarm.membership import in_order
from chunkfarm.model import (
    GENERATION_KEY,
    JOIN_DIGEST_KEY,
    OPTIONS_KEY,
    ROTATION_KEY,
    ROTATION_WANTED_KEY,
    SEAL_DIGEST_KEY,
    SERVERS,
    FarmOptions,
    Server,
)
from chunkfarm.rotating import ROUND_SECONDS, Rotating
from chunkfarm.rotation import INTRODUCED_MS, Rotation, introductions
from chunkfarm.table.duties import Report
from chunkfarm.table.interface import VALUE_BYTES_MAX
from chunkfarm.table.registry import Registry
from chunkfarm.trust.authority import (
    INTRODUCTION,
    INTRODUCTIONS_MAX,
    Authority,
    certificates_in,
    fingerprint,
    fingerprint_of,
    introduces,
)
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.keys import KeyRow, new_key
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.seal import SealKey
from tests.builders import make_server, server_id
from tests.chunks.builders import run_now
from tests.memory_table import MemoryTable

NOW = 1_795_000_000_000
FARM = "f" * 32
JOIN = b"j" * 32


class RotatingTests(SynchronousTestCase):
    """Servers s1 to s3 are there, and s4 is down. This is s1, the first."""

    def setUp(self) -> None:
        self.clock, self.table, self.now = Clock(), MemoryTable(), NOW
        self.seal: SealKey | None = SealKey.create()
        self.thief = self.seal
        self.authority = Authority.create(FARM, NOW)
        self.user, self.secret = new_key("write", seal=self.seal)
        for operation in secret_rows(self.seal, self.authority, JOIN):
            self.table.put(operation.key, getattr(operation, "value", b""))
        self.table.put(self.user.key, self.user.to_value())
        self.table.put(OPTIONS_KEY, FarmOptions(id=FARM, ca=self.authority.fingerprint).to_value())
        self.table.put(GENERATION_KEY, b"7")
        for number in (1, 2, 3, 4):
            row = make_server(number, public_key=f"{number}", state="down" if number == 4 else "up")
            self.table.put(row.key, row.to_value())
        self.told: dict[str, Report] = {}
        self.tell(1, 2, 3)
        self.shown: dict[str, str] = {}
        self.leading = True
        self.rotating = self.make()

    def make(self) -> Rotating:
        registry = Registry(self.table, lambda: self.now)
        rotating = Rotating(
            farm_id=lambda: FARM,
            table=self.table,
            registry=registry,
            issuer=Issuer(self.table, lambda: self.seal, lambda: self.now),
            row=lambda key: self.table.rows.get(key),
            seal=lambda: self.seal,
            hold=self.hold,
            servers=self.servers,
            told=lambda: self.told,
            shown=lambda: self.shown,
            leads=lambda: self.leading,
            clock=self.clock,
            now=lambda: self.now,
            run_in_thread=run_now,
        )
        rotating.start()
        self.addCleanup(rotating.stop)
        return rotating

    def hold(self, key: bytes) -> Deferred[None]:
        self.seal = self.seal.beside(key) if self.seal is not None else SealKey(key)
        return succeed(None)

    def servers(self) -> tuple[Server, ...]:
        rows = (row for key, row in self.table.rows.items() if key.startswith(SERVERS))
        return in_order(Server.from_value(row.value, row.revision) for row in rows)

    def turn(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.clock.advance(ROUND_SECONDS)

    @property
    def step(self) -> str:
        row = self.table.rows.get(ROTATION_KEY)
        return Rotation.from_value(row.value).step if row is not None else ""

    @property
    def rotation(self) -> Rotation:
        return Rotation.from_value(self.table.rows[ROTATION_KEY].value)

    def want(self) -> None:
        self.successResultOf(self.rotating.want("a test wants it"))

    def tell(self, *numbers: int, ca: str | None = None, ready: str = "") -> None:
        old = self.authority.fingerprint
        for number in numbers:
            report = Report(incarnation=f"run{number}", ca=old if ca is None else ca, ready=ready)
            self.told[server_id(number)] = report

    def value(self, key: bytes) -> bytes:
        return self.table.rows[key].value

    def to(self, step: str) -> None:
        """Let it go so far."""
        self.want()
        self.turn()
        assert self.step == "trusting"
        if step == "trusting":
            return
        self.tell(1, 2, 3, ready=self.rotation.fingerprint)
        self.turn()
        assert self.step == "renewing"
        if step == "renewing":
            return
        self.tell(1, 2, 3, ca=self.rotation.fingerprint)
        self.turn(3)
        assert self.step == "done"

    def test_nothing_is_wanted(self) -> None:
        """Then nothing is done."""
        before = dict(self.table.rows)
        self.turn(5)
        assert self.table.rows == before

    def test_keys_are_noted_first(self) -> None:
        """Servers that are there and whose keys are not known are named; one that shows its key has it in its row."""
        row = make_server(2)
        self.table.put(row.key, row.to_value())
        self.want()
        self.turn(2)
        assert (self.step, self.rotating.waits_for) == ("", ("s2",))
        self.shown[server_id(2)] = "two"
        self.turn(2)
        assert self.step == "trusting"
        assert {server.id: server.public_key for server in self.servers()}[server_id(2)] == "two"

    def test_older_servers(self) -> None:
        """Nothing begins while a server is there that knows nothing of this: rows that it puts would lack the keys."""
        self.tell(3, ca="")
        self.want()
        self.turn(3)
        assert (self.step, self.rotating.waits_for) == ("", ("s3",))
        self.tell(3, ca=self.authority.fingerprint)
        self.turn()
        assert self.step == "trusting"

    def test_the_next_ca(self) -> None:
        """It is told to all with its introduction, and signs nothing; what opens its key is new."""
        self.to("trusting")
        new = certificates_in(self.rotation.ca.encode())[0]
        link, old = certificates_in(self.rotation.introduction.encode())
        assert introduces(link, old) and old == self.authority.certificate and link.public_key() == new.public_key()
        assert ROTATION_WANTED_KEY not in self.table.rows
        assert self.value(CA_CERTIFICATE) == self.authority.certificate_pem
        assert self.seal is not None and self.seal.key_of(self.rotation.seal) is not None
        self.assertRaises(TrustError, self.thief.unseal, NEXT_CA_KEY.decode(), self.value(NEXT_CA_KEY))
        assert self.seal.digest == self.thief.digest, "until all have the next one"

    def test_nobody_signs_before_all_are_ready(self) -> None:
        """Who is there and not ready is waited for, and named; who is down is not."""
        self.to("trusting")
        self.tell(1, 3, ready=self.rotation.fingerprint)
        self.tell(2, ready=self.authority.fingerprint)
        self.turn(3)
        assert (self.step, self.rotating.waits_for) == ("trusting", ("s2",))
        assert self.value(CA_CERTIFICATE) == self.authority.certificate_pem
        self.tell(2, ready=self.rotation.fingerprint)
        self.turn()
        assert (self.step, self.rotating.waits_for) == ("renewing", ())
        assert self.value(CA_CERTIFICATE) == self.rotation.ca.encode()

    def test_what_was_sealed(self) -> None:
        """The CA's key, the join key (a new one) and users' secrets open with the new key, and with no other."""
        self.to("renewing")
        self.turn()
        assert self.seal is not None
        new = self.seal.led_by(self.rotation.seal).alone()
        assert self.value(SEAL_DIGEST_KEY).decode() == new.digest
        user = KeyRow.from_value(self.value(self.user.key))
        sealed = {CA_KEY: self.value(CA_KEY), JOIN_KEY: self.value(JOIN_KEY), self.user.key: user.sealed}
        for key, value in sealed.items():
            opened = new.unseal(key.decode(), value)
            assert opened != JOIN
            self.assertRaises(TrustError, self.thief.unseal, key.decode(), value)
        assert JOIN_DIGEST_KEY in self.table.rows and NEXT_CA_KEY not in self.table.rows

    def test_config_ini_comes_last(self) -> None:
        """It names the new CA when all that are there have certificates of it, and every secret is sealed anew."""
        self.to("renewing")
        self.tell(1, 2, ca=self.rotation.fingerprint)
        self.turn(4)
        assert (self.step, self.rotating.waits_for) == ("renewing", ("s3",))
        assert FarmOptions.from_value(self.value(OPTIONS_KEY)).ca == self.authority.fingerprint
        # A master that had not heard of it yet has just made a key.
        late, secret = new_key("read", seal=self.thief)
        self.table.put(late.key, late.to_value())
        self.tell(3, ca=self.rotation.fingerprint)
        self.turn(4)
        assert self.step == "done"
        assert FarmOptions.from_value(self.value(OPTIONS_KEY)).ca == self.rotation.fingerprint
        assert self.value(GENERATION_KEY) == b"8"
        assert self.seal is not None
        after = KeyRow.from_value(self.value(late.key))
        alone = self.seal.led_by(self.rotation.seal).alone()
        assert alone.unseal(after.seal_name, after.sealed) == secret.encode()

    def test_a_join_key_made_meanwhile(self) -> None:
        """A server is forgotten by a first that had not heard of the new key: masters that come later open it, too."""
        self.to("renewing")
        late = b"l" * 32
        self.table.put(JOIN_KEY, self.thief.seal(JOIN_KEY.decode(), late))
        self.tell(1, 2, 3, ca=self.rotation.fingerprint)
        self.turn(4)
        assert self.step == "done" and self.seal is not None
        alone = self.seal.led_by(self.rotation.seal).alone()
        assert alone.unseal(JOIN_KEY.decode(), self.value(JOIN_KEY)) == late
        assert alone.unseal(CA_KEY.decode(), self.value(CA_KEY)) == self.key_of_the_ca()

    def key_of_the_ca(self) -> bytes:
        issuer = Issuer(self.table, lambda: self.seal, lambda: self.now)
        return self.successResultOf(issuer.authority()).key_pem

    def test_what_nobody_can_open(self) -> None:
        """A secret of the farm that is sealed with a key which is gone stays as it is, and hinders nothing."""
        self.to("renewing")
        lost = SealKey.create().seal(JOIN_KEY.decode(), b"l" * 32)
        self.table.put(JOIN_KEY, lost)
        self.tell(1, 2, 3, ca=self.rotation.fingerprint)
        self.turn(4)
        assert (self.step, self.value(JOIN_KEY)) == ("done", lost)

    def test_tries_that_fail(self) -> None:
        """However often it must begin again, no key is given up for one that came to nothing."""
        self.to("done")
        assert self.seal is not None
        self.seal = self.seal.led_by(self.rotation.seal)
        self.want()
        self.table.unavailable = True
        self.turn(5)
        self.table.unavailable = False
        self.turn()
        assert self.step == "trusting"
        assert self.seal.key_of(self.thief.digest) is not None, "old exports are sealed with it"

    def test_a_first_without_the_new_key(self) -> None:
        """It begins anew while nobody relies on it, and touches nothing once somebody does."""
        self.to("trusting")
        before, self.seal = self.rotation, self.thief
        self.tell(1, 2, 3, ready=before.fingerprint)
        self.turn()
        assert self.step == "trusting" and self.rotation.fingerprint != before.fingerprint
        self.tell(1, 2, 3, ready=self.rotation.fingerprint)
        self.turn()
        assert self.step == "renewing"
        held, rows, self.seal = self.seal, dict(self.table.rows), self.thief
        self.turn(3)
        assert self.table.rows == rows
        self.seal = held
        self.tell(1, 2, 3, ca=self.rotation.fingerprint)
        self.turn(3)
        assert self.step == "done"

    def test_it_is_wanted_again(self) -> None:
        """Before anybody has a certificate it begins anew; after that it goes to its end, and then begins again."""
        self.to("trusting")
        before = self.rotation.fingerprint
        self.want()
        self.turn()
        assert self.step == "trusting" and self.rotation.fingerprint != before
        self.tell(1, 2, 3, ready=self.rotation.fingerprint)
        self.turn()
        before = self.rotation.fingerprint
        self.want()
        self.turn()
        assert self.step == "renewing" and self.rotation.fingerprint == before
        self.tell(1, 2, 3, ca=before)
        self.turn(4)
        assert self.step == "trusting"
        assert fingerprint(self.rotation.old.encode()) == before != self.rotation.fingerprint

    def test_who_was_away_for_two(self) -> None:
        """What introduced the CA before goes along, also past one that came to nothing, for who knows but the first."""
        self.to("done")
        assert self.seal is not None
        first, second = self.authority.certificate, certificates_in(self.rotation.ca.encode())[0]
        self.seal = self.seal.led_by(self.rotation.seal)
        for _ in range(2):
            self.want()
            self.tell(1, 2, 3, ca=fingerprint_of(second))
            self.turn()
            assert self.step == "trusting"
            third = certificates_in(self.rotation.ca.encode())[0]
            links = certificates_in(self.rotation.introduction.encode())
            assert len(links) == 4
            assert introduces(links[0], second) and links[0].public_key() == third.public_key() and links[1] == second
            assert introduces(links[2], first) and links[2].public_key() == second.public_key() and links[3] == first
        # Certificates are signed by the second meanwhile.
        issuer = Issuer(self.table, lambda: self.seal, lambda: self.now)
        request = Identity.provisional(server_id(5), NOW).signing_request()
        chain, _ = self.successResultOf(issuer.sign(request, server_id(5), "10.0.0.5"))
        assert certificates_in(chain)[1:] == links[2:]

    def test_so_many_changes(self) -> None:
        """What is kept of them fits one row, however many there were."""
        introduction, old = "", self.authority
        for _ in range(INTRODUCTIONS_MAX + 2):
            new = Authority.create(FARM, NOW)
            introduction, old = introductions(old.introduce(new.certificate), introduction), new
        ca = old.certificate_pem.decode()
        row = Rotation(step="renewing", ca=ca, old=ca, introduction=introduction, seal="5e" * 32, since=NOW)
        assert len(certificates_in(introduction.encode())) == INTRODUCTION * INTRODUCTIONS_MAX
        assert len(row.to_value()) <= VALUE_BYTES_MAX

    def test_one_that_leads_no_more(self) -> None:
        """Another first was quicker: what this one still does comes to nothing."""
        self.to("trusting")
        self.tell(1, 2, 3, ready=self.rotation.fingerprint)
        stale = self.table.rows[ROTATION_KEY]
        self.table.put(ROTATION_KEY, evolve(self.rotation, since=self.now + 1).to_value())
        rows = dict(self.table.rows)
        with_stale = {**self.table.rows, ROTATION_KEY: stale}
        self.rotating._row = with_stale.get
        self.turn()
        assert self.table.rows == rows
        self.leading = False
        self.turn()
        assert self.table.rows == rows

    def test_a_day_later(self) -> None:
        """Clients with the CA of before are served no more, and that is the end of it."""
        self.to("done")
        self.now += INTRODUCED_MS - 1
        self.turn()
        assert self.step == "done"
        self.now += 1
        self.turn()
        assert self.step == "over"
        rows = dict(self.table.rows)
        self.turn(3)
        assert self.table.rows == rows

    def test_nobody_holds_a_key(self) -> None:
        """The farm gets another CA, which nobody introduces, and users' secrets are left out."""
        self.seal = None
        self.to("done")
        assert self.rotation.introduction == ""
        assert KeyRow.from_value(self.value(self.user.key)).sealed == b""

    def test_a_row_that_cannot_be_read(self) -> None:
        """It says so, and does nothing."""
        self.table.put(ROTATION_KEY, json.dumps({"step": "later"}).encode())
        rows: dict[bytes, Any] = dict(self.table.rows)
        self.turn(2)
        assert self.table.rows == rows
        assert "cannot be read" in self.rotating.problem
