"""What a server answers to the others: who may join, who leads, what a stranger's row is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attrs import evolve
from OpenSSL import crypto
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.access import Access
from chunkfarm.errors import Busy, InvalidRequest, PreconditionFailed, Waiting
from chunkfarm.invites import Invites
from chunkfarm.issuer import Issuer, secret_rows
from chunkfarm.links import commands
from chunkfarm.links.calling_back import CallBack
from chunkfarm.links.interface import HAVE_DIGESTS_MAX
from chunkfarm.links.peers import Peers
from chunkfarm.membership import in_order
from chunkfarm.model import (
    BARRED,
    CA_CERTIFICATE_KEY,
    EPOCH_KEY,
    EXPORTS_KEY,
    GENERATION_KEY,
    LINES_KEY,
    OPTIONS_KEY,
    ROTATION_KEY,
    ROTATION_WANTED_KEY,
    SERVERS,
    Address,
    FarmOptions,
    File,
    Principal,
    Server,
)
from chunkfarm.ports.answers import PeerAnswers
from chunkfarm.ports.callers import CALLER_SECONDS, Callers
from chunkfarm.ports.peer import Joiner, Prober
from chunkfarm.risk import FilesOf, LostFiles
from chunkfarm.rotation import Rotation
from chunkfarm.said import lost_files_of
from chunkfarm.state import ServerState
from chunkfarm.table.codec import OpenSession, ReadRequest, Transaction, encode_read, encode_request
from chunkfarm.table.duties import Duties
from chunkfarm.table.epochs import Epochs
from chunkfarm.table.interface import Compare, Delete, Put, Unavailable
from chunkfarm.table.records import Configuration
from chunkfarm.table.registry import Registry
from chunkfarm.trust.authority import Authority, server_id_of
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.invitation import Invitation
from chunkfarm.trust.keys import new_key, secret_digest
from chunkfarm.trust.proof import DIALER, JOINER, LISTENER, MEMBER, check_proof, proof
from chunkfarm.trust.seal import SealKey
from chunkfarm.unheld import Unheld
from tests.builders import make_server, server_id
from tests.memory_table import MemoryTable

FARM = "f" * 32
KEY = b"k" * 32
EXPORTER = b"e" * 32
NOW = 1_700_000_000_000


def nobody(*arguments: Any) -> Deferred[Any]:
    """Connects to no address."""
    return fail(ConnectionRefusedError())


class FakeEngine:
    """The engine's face towards the peer port."""

    is_leader = True
    leader = server_id(1)
    term = 3
    has_quorum = True
    holds_rows = True
    stands_still = False
    disk_full = False
    change_pending = False
    configuration = Configuration((server_id(1), server_id(2)))

    def __init__(self) -> None:
        self.secret_reads: list[bool] = []
        self.stale_reads: list[bool] = []
        self.for_others = self
        self.secret_writes: list[bool] = []

    def transact(self, request: bytes, allow_secret: bool = False) -> Deferred[bytes]:
        self.secret_writes.append(allow_secret)
        return succeed(request)

    def read(self, request: bytes, allow_secret: bool, stale: bool = False) -> Deferred[bytes]:
        self.secret_reads.append(allow_secret)
        self.stale_reads.append(stale)
        return succeed(request)


class CalledBack:
    """The link on which a joiner is called back."""

    def __init__(self, identity: Identity, server: str, incarnation: str = "") -> None:
        self.identity = identity
        self.server = server
        self.incarnation = incarnation

    def certificate(self) -> crypto.X509:
        return crypto.X509.from_cryptography(self.identity.certificate)

    def callRemote(self, command: Any, **arguments: Any) -> Deferred[Any]:
        return succeed({"answer": json.dumps({"server": self.server, "incarnation": self.incarnation})})

    def close(self) -> None:
        pass


class PeerAnswersTests(SynchronousTestCase):
    """The first of a farm of two, asked by servers and strangers."""

    def make_answers(self) -> PeerAnswers:
        self.clock = clock = Clock()
        self.callers = Callers(clock)
        self.blocks: list[bytes] = []
        self.table_fails: Exception | None = None
        self.learned: dict[str, Address] = {}
        self.places: dict[Address, Any] = {}
        self.table, self.engine = MemoryTable(), FakeEngine()
        self.authority = authority = Authority.create(FARM, NOW)
        self.seal = SealKey.create()
        self.now = NOW
        options = FarmOptions(id=FARM, ca=authority.fingerprint)
        self.invites = Invites(self.table, lambda: self.seal, lambda: self.now, self.servers, lambda: options)
        registry = Registry(self.table, lambda: NOW)
        also = secret_rows(self.seal, authority, KEY)
        self.successResultOf(registry.found(make_server(1), FarmOptions(id=FARM), also))
        self.successResultOf(registry.join(make_server(2)))
        identity = Identity.provisional(server_id(1), NOW).signed_by(authority, [], NOW)
        self.contexts = Contexts(identity)
        self.joiner_identity = Identity.provisional(server_id(9), NOW)
        self.back: Any = CalledBack(self.joiner_identity, server_id(9))

        def open_link(address: Any, factory: Any, timeout: float) -> Deferred[Any]:
            self.called_back = address
            if address in self.places:
                return succeed(self.places[address])
            return fail(self.back) if isinstance(self.back, Exception) else succeed(self.back)

        peers = Peers(clock, open_link, self.contexts.peer_of, lambda server: None)
        self.state = ServerState(
            server_id=server_id(1), name="s1", stamp=1, incarnation="run1", phase="serving", farm_id=FARM
        )
        led: Any = self.engine
        epochs = Epochs(self.table, lambda: 0, FarmOptions)
        duties = Duties(server_id(1), "run1", led, registry, self.servers, FarmOptions, clock, epochs)
        self.leading = server_id(1)
        self.forgotten: set[str] = set()
        self.forgot: list[str] = []
        self.sealed: dict[str, bytes] = {}
        self.forget_fails: Exception | None = None
        return PeerAnswers(
            state=self.state,
            contexts=self.contexts,
            peers=peers,
            table=led,
            registry=registry,
            duties=duties,
            access=Access(self.table, lambda: True, peers, lambda: (), clock),
            issuer=Issuer(self.table, lambda: self.seal, lambda: NOW),
            invites=self.invites,
            first=lambda: self.leading,
            servers=self.servers,
            learn=self.learned.__setitem__,
            farm=lambda: FARM,
            callers=self.callers,
            call_back=CallBack(peers, self.state, nobody, clock),
            set_table=self.set_table,
            barred=lambda server: "it was forgotten" if server in self.forgotten else "",
            forget=self.forget,
            tell=lambda index: {"journal": {"term": 3, "index": 17}, "term_at": index},
            uses=self.uses,
            seal_key=lambda digest: self.sealed.get(digest),
            at_risk=self.at_risk,
            lost_files=lambda: succeed(self.lost),
            unheld=lambda: self.unheld,
        )

    lost: LostFiles | None = None
    unheld: Unheld | None = None

    def at_risk(self, holders: str, start: bytes) -> dict[str, bytes]:
        if not holders:
            raise ValueError("there are no holders")
        return {"keys": start, "next": b""}

    def uses(self, digests: Sequence[bytes]) -> Deferred[list[int]]:
        return fail(Waiting("the index is being made")) if not digests else succeed([digest[0] for digest in digests])

    def set_table(self, block: bytes) -> Deferred[int]:
        self.blocks.append(block)
        return fail(self.table_fails) if self.table_fails is not None else succeed(2)

    def servers(self) -> tuple[Server, ...]:
        rows = (row for key, row in self.table.rows.items() if key.startswith(SERVERS))
        return in_order(Server.from_value(row.value, row.revision) for row in rows)

    def forget(self, target: str) -> Deferred[Server]:
        if self.forget_fails is not None:
            return fail(self.forget_fails)
        self.forgot.append(target)
        return succeed(make_server(3))

    def make_joiner(self, **changes: Any) -> Joiner:
        row = changes.pop("row", make_server(9))
        joiner = Joiner(
            version=commands.PROTOCOL_VERSION,
            farm=FARM,
            proof=proof(KEY, JOINER, EXPORTER),
            request=self.joiner_identity.signing_request(),
            row=row if isinstance(row, str) else row.to_value().decode(),
            exporter=EXPORTER,
            host="127.0.0.1",
        )
        return evolve(joiner, **changes)

    def refusal(self, answers: PeerAnswers, *kinds: type[Exception], **changes: Any) -> str:
        before = dict(self.table.rows)
        failure = self.failureResultOf(answers.join(self.make_joiner(**changes)), *(kinds or (commands.JoinRefused,)))
        assert self.table.rows == before, "a refused joiner changes nothing"
        return str(failure.value)

    def test_a_joiner_that_knows_the_key(self) -> None:
        """It gets a certificate for its own key, the CA, the sealing key, its row, and a proof in return."""
        answers = self.make_answers()
        box = self.successResultOf(answers.join(self.make_joiner()))
        assert check_proof(KEY, MEMBER, EXPORTER, box["proof"])
        certified = self.joiner_identity.certified(box["certificate"], box["ca"])
        assert server_id_of(certified.certificate) == server_id(9)
        assert self.contexts.peer_of(certified.certificate) == server_id(9)
        assert SealKey(box["seal"]).material == self.seal.material
        assert [server.name for server in self.servers()] == ["s1", "s2", "s9"]
        assert str(self.called_back) == "127.0.0.1:4191"

    def test_master_no_gets_no_sealing_key(self) -> None:
        """A server that may not be a master cannot open the farm's secrets."""
        answers = self.make_answers()
        box = self.successResultOf(answers.join(self.make_joiner(row=make_server(9, master=False))))
        assert box["seal"] == b""

    def test_a_wrong_join_key(self) -> None:
        """One sentence, and no change."""
        told = self.refusal(self.make_answers(), proof=proof(b"x" * 32, JOINER, EXPORTER))
        assert told == "its join key (farm.join) is not this farm's"

    def test_a_reflected_proof(self) -> None:
        """A proof in the member's own role is worth nothing."""
        self.refusal(self.make_answers(), proof=proof(KEY, MEMBER, EXPORTER))

    def test_a_proof_from_another_connection(self) -> None:
        """It is bound to the TLS connection it was made for."""
        self.refusal(self.make_answers(), proof=proof(KEY, JOINER, b"o" * 32))

    def test_another_farm_and_another_version(self) -> None:
        """Both sides are named."""
        answers = self.make_answers()
        assert FARM in self.refusal(answers, farm="e" * 32)
        assert "version 99" in self.refusal(answers, version=99)
        for version in (commands.PROTOCOL_VERSION - 2, commands.PROTOCOL_VERSION + 1):
            assert f"version {version} of the peer protocol" in self.refusal(answers, version=version)
        # Nor is the log for digits without end.
        assert len(self.refusal(answers, version=10**4000)) < 200

    def invited(self, answers: PeerAnswers, seconds: float = 60.0) -> dict[str, Any]:
        """What a joiner shows that has a new code."""
        invitation = Invitation.from_code(self.successResultOf(self.invites.make(seconds))[0])
        assert (invitation.farm, invitation.ca) == (FARM, self.authority.fingerprint)
        return {"invite": invitation.id, "proof": proof(invitation.secret, JOINER, EXPORTER)}

    def test_a_code(self) -> None:
        """Who shows a code joins without the join key, and is shown in turn that the farm knows its secret."""
        answers = self.make_answers()
        shown = self.invited(answers)
        box = self.successResultOf(answers.join(self.make_joiner(**shown)))
        assert Server.from_value(box["row"].encode()).id == server_id(9)
        assert box["proof"] != proof(KEY, MEMBER, EXPORTER)

    def test_a_code_whose_answer_was_lost(self) -> None:
        """The same server asks again, even after the code has run out; another one that shows it is refused."""
        answers = self.make_answers()
        shown = self.invited(answers)
        self.successResultOf(answers.join(self.make_joiner(**shown)))
        self.now += 3600_000
        self.successResultOf(answers.join(self.make_joiner(**shown)))
        thief = Identity.provisional(server_id(8), NOW)
        self.back = CalledBack(thief, server_id(8))
        other = {"row": make_server(8), "request": thief.signing_request(), **shown}
        assert "used by another" in self.refusal(answers, **other)

    def test_a_code_of_a_server_that_was_forgotten(self) -> None:
        """Its key is barred as its id is: it does not get in under another id, with the code that it still has."""
        answers = self.make_answers()
        shown = self.invited(answers)
        self.successResultOf(answers.join(self.make_joiner(**shown)))
        registry = Registry(self.table, lambda: NOW)
        self.successResultOf(registry.forget(server_id(9), lambda row: "", bar=True))
        self.back = CalledBack(self.joiner_identity, server_id(7))
        assert "taken out of this farm for good" in self.refusal(answers, row=make_server(7), **shown)
        again = {"row": make_server(7), "proof": proof(KEY, JOINER, EXPORTER)}
        assert "taken out of this farm for good" in self.refusal(answers, **again)
        self.joiner_identity = Identity.provisional(server_id(7), NOW)
        self.back = CalledBack(self.joiner_identity, server_id(7))
        self.successResultOf(answers.join(self.make_joiner(**again)))

    def test_codes_that_a_thief_can_open(self) -> None:
        """From when the key of the farm's secrets is to be changed, no code is good that the one before has sealed."""
        answers = self.make_answers()
        shown = self.invited(answers)
        old, next_seal = self.seal, SealKey.create()
        self.table.put(ROTATION_WANTED_KEY, b"a master was stolen")
        assert "about to change" in self.refusal(answers, commands.NotNow, **shown)
        self.successResultOf(self.table.transact((), (Delete(ROTATION_WANTED_KEY),)))
        step: dict[str, Any] = {"ca": "x", "old": "y", "introduction": "", "seal": next_seal.digest, "since": 1}
        for name, word, refused in (
            ("trusting", "about to change", commands.NotNow),
            ("renewing", "made before", commands.JoinRefused),
            ("done", "made before", commands.JoinRefused),
        ):
            self.table.put(ROTATION_KEY, Rotation(step=name, **step).to_value())
            self.seal = old.beside(next_seal.material)
            assert word in self.refusal(answers, refused, **shown)
        self.seal = self.seal.led_by(next_seal.digest)
        self.table.put(ROTATION_KEY, Rotation(step="over", **step).to_value())
        self.successResultOf(answers.join(self.make_joiner(**self.invited(answers))))

    def test_two_with_one_code(self) -> None:
        """Of two that show the same code at once one joins."""
        answers = self.make_answers()
        shown = self.invited(answers)
        read = self.invites._row
        raced: list[bool] = []

        async def race(invite_id: str) -> Any:
            row = await read(invite_id)
            if not raced:
                raced.append(True)
                thief = Identity.provisional(server_id(8), NOW)
                back, self.back = self.back, CalledBack(thief, server_id(8))
                other = self.make_joiner(row=make_server(8), request=thief.signing_request(), **shown)
                self.successResultOf(answers.join(other))
                self.back = back
            return row

        self.invites._row = race  # type: ignore[method-assign]
        failure = self.failureResultOf(answers.join(self.make_joiner(**shown)))
        assert failure.check(commands.JoinRefused, commands.NotNow)
        assert server_id(9) not in {server.id for server in self.servers()}

    def test_codes_that_are_no_good(self) -> None:
        """One that has run out, one that nobody made, and one shown without knowing its secret are refused."""
        answers = self.make_answers()
        shown = self.invited(answers)
        assert "not this farm's" in self.refusal(answers, **{**shown, "proof": proof(KEY, JOINER, EXPORTER)})
        for invite in ("0" * 16, "x", "../join", "é" * 16):
            assert "not known" in self.refusal(answers, **{**shown, "invite": invite})
        self.now += 61_000
        assert "run out" in self.refusal(answers, **shown)

    def test_a_joiner_of_the_version_before(self) -> None:
        """It is taken in, so that a farm can be renewed one server after the other."""
        answers = self.make_answers()
        self.successResultOf(answers.join(self.make_joiner(version=commands.PROTOCOL_VERSION - 1)))

    def test_the_address_that_leads_elsewhere(self) -> None:
        """The call back must reach the joiner itself: its id and its key."""
        answers = self.make_answers()
        self.back = CalledBack(self.joiner_identity, server_id(2))
        assert "leads to another server" in self.refusal(answers)
        self.back = CalledBack(Identity.provisional(server_id(9), NOW), server_id(9))
        assert "leads to another server" in self.refusal(answers)
        self.back = ConnectionRefusedError()
        assert "127.0.0.1:4191, cannot be reached from here" in self.refusal(answers)

    def test_loopback_from_another_host(self) -> None:
        """A joiner from another machine that advertises 127.0.0.1 is told to set host."""
        answers = self.make_answers()
        assert "set host" in self.refusal(answers, host="10.1.2.3")
        assert "set host" in self.refusal(answers, host="10.1.2.3", row=make_server(9, host="127.0.1.1"))
        assert "set host" in self.refusal(answers, host="10.1.2.3", row=make_server(9, host="LocalHost"))

    def test_loopback_seen_by_a_port_for_ipv6(self) -> None:
        """The machine's own IPv4 address is its own in that form too."""
        self.successResultOf(self.make_answers().join(self.make_joiner(host="::ffff:127.0.0.1")))

    def test_rows_that_are_none(self) -> None:
        """A row with impossible fields is refused as a bad request."""
        answers = self.make_answers()
        for row in (
            "nonsense",
            "[]",
            make_server(9, peer=0),
            make_server(9, weight=-1),
            make_server(9, host=" "),
            make_server(9, name="../x"),
            make_server(9, id="short"),
            make_server(9, note="x" * 5000),
        ):
            self.refusal(answers, commands.BadRequest, row=row)

    def test_only_the_first_takes_servers_in(self) -> None:
        """Another master names the one that leads; without one it says so."""
        answers = self.make_answers()
        self.engine.is_leader = False
        self.leading = server_id(2)
        assert json.loads(self.refusal(answers, commands.NotFirst)) == {
            "id": server_id(2),
            "host": "127.0.0.1",
            "peer": 4121,
        }
        self.leading = ""
        self.refusal(answers, commands.NotNow)
        self.engine.disk_full = True
        assert "the disk that holds the table is full on s1" in self.refusal(answers, commands.NotNow)
        self.state.change("waiting")
        self.refusal(answers, commands.NotNow)

    def test_without_the_sealing_key(self) -> None:
        """A first that cannot open the secrets refuses with the reason."""
        answers = self.make_answers()
        self.seal = None  # type: ignore[assignment]
        assert "master = no" in self.refusal(answers)

    def test_a_server_gives_its_own_row_only(self) -> None:
        """Not another's. One whose row the farm has removed by itself is called back, and taken in again."""
        answers = self.make_answers()
        row = make_server(2, incarnation="again").to_value().decode()
        assert json.loads(self.successResultOf(answers.put_server(server_id(2), row)))["incarnation"] == "again"
        self.failureResultOf(answers.put_server(server_id(1), row), commands.BadRequest)
        stranger = make_server(9).to_value().decode()
        refused = self.failureResultOf(answers.put_server(server_id(9), stranger), commands.JoinRefused)
        assert "leads to another server" in str(refused.value)
        self.back.identity = self.joiner_identity.signed_by(self.authority, [], NOW)
        self.successResultOf(answers.put_server(server_id(9), stranger))
        assert "s9" in [server.name for server in self.servers()]

    def test_servers_that_were_forgotten(self) -> None:
        """They may not join, whatever they know; who leads forgets for the others, and gives them the new join key."""
        answers = self.make_answers()
        self.forgotten = {server_id(9)}
        assert self.refusal(answers) == "it was forgotten"
        assert answers.barred(server_id(9)) and not answers.barred(server_id(2))
        self.successResultOf(answers.forget(server_id(2), "gone"))
        assert self.forgot == ["gone"]
        for error, kind in (
            (PreconditionFailed("it is up"), commands.Conflict),
            (Busy("no seal"), commands.NotNow),
            (InvalidRequest("what"), commands.BadRequest),
            (Unavailable("no majority"), commands.NotNow),
        ):
            self.forget_fails = error
            self.failureResultOf(answers.forget(server_id(2), "gone"), kind)
        assert self.successResultOf(answers.join_key(server_id(2))) == KEY
        self.failureResultOf(answers.join_key(server_id(5)), commands.BadRequest)
        self.engine.is_leader = False
        self.leading = server_id(2)
        self.failureResultOf(answers.join_key(server_id(2)), commands.NotFirst)
        self.failureResultOf(answers.forget(server_id(2), "gone"), commands.NotFirst)

    def test_reports(self) -> None:
        """A known incarnation is known; a report with strange types is refused."""
        answers = self.make_answers()

        def report(told: dict[str, object]) -> bool:
            known: bool = json.loads(answers.report(server_id(2), json.dumps(told)))["known"]
            return known

        assert report({"incarnation": "run2", "unheard": 1})
        assert report({"incarnation": "run2", "unheard": 1})
        assert not report({"incarnation": "other"})
        with self.assertRaises(commands.NotNow) as raised:
            report({"incarnation": "run2", "table_full": True})
        assert "the disk that holds the table is full on s2" in str(raised.exception)
        report({"incarnation": "run2"})
        wrong: tuple[dict[str, object], ...] = (
            {},
            {"incarnation": "run2", "free": "much"},
            {"incarnation": "run2", "used": float("nan")},
        )
        for told in wrong:
            with self.assertRaises(commands.BadRequest):
                report(told)

    def test_the_same_report_again(self) -> None:
        """What is answered follows what is so, also while a server says the same all the time."""
        answers = self.make_answers()
        same = json.dumps({"incarnation": "run2", "short": 3})
        first = json.loads(answers.report(server_id(2), same))
        self.successResultOf(answers.put_server(server_id(2), make_server(2, incarnation="again").to_value().decode()))
        second = json.loads(answers.report(server_id(2), same))
        assert (first["known"], first["short"], second["known"]) == (True, 3, False)

    def test_what_is_lost(self) -> None:
        """The first tells everybody how many chunks no server has, from the moment when it knows."""
        answers = self.make_answers()
        report = json.dumps({"incarnation": "run2"})
        assert "lost" not in json.loads(answers.report(server_id(2), report))
        self.unheld = Unheld(chunks=3, since=5)
        assert json.loads(answers.report(server_id(2), report))["lost"] == {"chunks": 3, "since": 5}

    def test_secrets_stay_with_those_who_hold_the_table(self) -> None:
        """A member of the configuration may read all rows, another server no keys and no secrets."""
        answers = self.make_answers()
        everything = encode_read(ReadRequest(b"", b"", 10))
        self.successResultOf(answers.read(server_id(2), everything))
        self.successResultOf(answers.join(self.make_joiner()))
        for prefix in (b"", b"s", b"k", b"secret/", b"keys/", b"invites/x", b"server"):
            request = encode_read(ReadRequest(prefix, b"", 10))
            self.failureResultOf(answers.read(server_id(9), request), commands.BadRequest)
        for prefix in (b"servers/", b"farm/options", b"files/a"):
            self.successResultOf(answers.read(server_id(9), encode_read(ReadRequest(prefix, b"", 10))))
        assert self.engine.secret_reads == [True, False, False, False]
        for prefix in (b"secret/", b"keys/"):
            request = encode_read(ReadRequest(prefix, b"", 10))
            self.failureResultOf(answers.read(server_id(9), request, stale=True), commands.BadRequest)
        self.successResultOf(answers.read(server_id(9), encode_read(ReadRequest(b"files/", b"", 10)), stale=True))
        assert (self.engine.secret_reads[-1], self.engine.stale_reads) == (False, [False] * 4 + [True])
        self.failureResultOf(answers.read(server_id(5), everything), commands.BadRequest)

    def test_who_may_write_keys(self) -> None:
        """A server that does not hold the table makes nobody an admin, and learns no key by a compare."""
        answers = self.make_answers()
        self.successResultOf(answers.join(self.make_joiner()))
        for compares, operations in (
            ((), (Put(b"keys/x", b"{}"),)),
            ((Compare(b"keys/x", "==", 7),), (Put(b"files/home/a", b"{}"),)),
            ((), (Delete(b"secret/ca"),)),
        ):
            request = encode_request(Transaction("c", 1, 1, 0, compares, operations))
            self.failureResultOf(answers.transact(server_id(9), request), commands.BadRequest)
        row = File(name="home/a", size=0, chunk_size=4096)
        file = encode_request(Transaction("c", 1, 1, 0, (), (Put(row.key, row.to_value()),)))
        assert self.successResultOf(answers.transact(server_id(9), file)) == file
        assert self.successResultOf(answers.transact(server_id(9), encode_request(OpenSession("c"))))
        key = encode_request(Transaction("c", 1, 1, 0, (), (Put(b"keys/x", b"{}"),)))
        assert self.successResultOf(answers.transact(server_id(2), key)) == key
        secret = encode_request(Transaction("c", 1, 1, 0, (), (Put(b"secret/x", b"{}"),)))
        assert self.successResultOf(answers.transact(server_id(2), secret)) == secret
        assert self.engine.secret_writes == [False, False, True, True]

    def test_rows_that_nobody_could_read(self) -> None:
        """A server that does not hold the table puts no row that would stop all who read it, nor one of the first's."""
        answers = self.make_answers()
        self.successResultOf(answers.join(self.make_joiner()))
        server, file = make_server(2), File(name="home/a", size=0, chunk_size=4096)
        rows = json.loads(server.to_value()), json.loads(FarmOptions().to_value())

        def put(key: bytes, value: bytes) -> Deferred[bytes]:
            return answers.transact(
                server_id(9), encode_request(Transaction("c", 1, 1, 0, (), (Put(key, value), Delete(file.key))))
            )

        for key, value in (
            (server.key, server.to_value()),
            (file.key, file.to_value()),
            (OPTIONS_KEY, FarmOptions(replicas=2, forget_after=5).to_value()),
            (GENERATION_KEY, b"17"),
            (ROTATION_WANTED_KEY, b"an admin wanted it"),
            (b"farm/what/a/later/version/has", b"\xff"),
        ):
            self.successResultOf(put(key, value))
        for key, row, changes in (
            (
                server.key,
                rows[0],
                ({"id": server_id(3)}, {"peer": "x"}, {"host": "a b"}, {"master": 1}, {"name": "\n"}),
            ),
            (OPTIONS_KEY, rows[1], ({"replicas": "3"}, {"repair_after": float("nan")}, {"name": 5})),
        ):
            for wrong in (b"", b"{}" if row is not rows[1] else b"[]", b"[" * 16_000, b"\xff"):
                self.failureResultOf(put(key, wrong), commands.BadRequest)
            for change in changes:
                self.failureResultOf(put(key, json.dumps(row | change).encode()), commands.BadRequest)
        self.failureResultOf(put(server.key, json.dumps(rows[0] | {"joined": 10**15}).encode()), commands.BadRequest)
        for key in (
            GENERATION_KEY,
            *(CA_CERTIFICATE_KEY, EPOCH_KEY, EXPORTS_KEY, LINES_KEY, ROTATION_KEY, BARRED + b"x", b"farm/keys"),
        ):
            self.failureResultOf(put(key, b"x"), commands.BadRequest)
        for key in (server.key, BARRED + b"x", OPTIONS_KEY, ROTATION_WANTED_KEY):
            request = encode_request(Transaction("c", 1, 1, 0, (), (Delete(key),)))
            self.failureResultOf(answers.transact(server_id(9), request), commands.BadRequest)
            self.successResultOf(answers.transact(server_id(2), request))

    def test_requests_that_make_no_sense(self) -> None:
        """Every kind of request says so with a declared error."""
        answers = self.make_answers()
        self.successResultOf(answers.join(self.make_joiner()))
        for ask in (answers.get_table, answers.read, answers.transact):
            self.failureResultOf(ask(server_id(9), b"junk"), commands.BadRequest)
        request = encode_read(ReadRequest(b"keys/", b"", 10))
        self.failureResultOf(answers.get_table(server_id(2), request), commands.BadRequest)
        table = encode_read(ReadRequest(b"servers/", b"", 10))
        self.successResultOf(answers.get_table(server_id(2), table))
        self.failureResultOf(answers.get_table(server_id(5), table), commands.BadRequest)

    def test_what_can_be_lost(self) -> None:
        """Servers of the farm say which of their chunks are at risk; how many files that is, the first says alone."""
        answers = self.make_answers()
        assert answers.at_risk(server_id(2), "x", bytes(8)) == {"keys": bytes(8), "next": b""}
        for server, holders in ((server_id(5), "x"), (server_id(2), "")):
            with self.assertRaises(commands.BadRequest):
                answers.at_risk(server, holders, bytes(8))
        self.failureResultOf(answers.lost_files(server_id(2)), commands.NotNow)
        self.lost = LostFiles(sets=(FilesOf((server_id(1),), 3, False, ("a/ü",)),), one=3)
        assert lost_files_of(self.successResultOf(answers.lost_files(server_id(2)))) == self.lost
        self.failureResultOf(answers.lost_files(server_id(5)), commands.BadRequest)
        self.engine.is_leader, self.leading = False, server_id(2)
        self.failureResultOf(answers.lost_files(server_id(2)), commands.NotFirst)

    def test_uses_of_chunks(self) -> None:
        """A server of the farm asks how many files use chunks, of one that holds the table."""
        answers = self.make_answers()
        digests = [bytes([number]) * 32 for number in (7, 0, 9)]
        asked = answers.referenced(server_id(2), b"".join(digests))
        assert self.successResultOf(asked) == b"\0\0\0\7" + bytes(4) + b"\0\0\0\x09"
        self.successResultOf(answers.referenced(server_id(2), bytes(32) * HAVE_DIGESTS_MAX))
        for bad in (bytes(31), bytes(32) * (HAVE_DIGESTS_MAX + 1)):
            self.failureResultOf(answers.referenced(server_id(2), bad), commands.BadRequest)
        self.failureResultOf(answers.referenced(server_id(5), digests[0]), commands.BadRequest)
        refused = self.failureResultOf(answers.referenced(server_id(2), b""), commands.NotNow)
        assert str(refused.value) == "the index is being made"
        self.engine.holds_rows = False
        self.leading = server_id(2)
        refused = self.failureResultOf(answers.referenced(server_id(2), digests[0]), commands.NotFirst)
        assert json.loads(str(refused.value))["id"] == server_id(2)

    def test_a_whole_table(self) -> None:
        """A server of the farm may put the whole table; what stands in the way is told by kind."""
        answers = self.make_answers()
        assert self.successResultOf(answers.put_table(server_id(2), b"TABLE")) == 2
        assert self.blocks == [b"TABLE"]
        self.failureResultOf(answers.put_table(server_id(5), b"TABLE"), commands.BadRequest)
        assert self.blocks == [b"TABLE"]
        for error, kind in (
            (PreconditionFailed("it has changed"), commands.Conflict),
            (InvalidRequest("no table"), commands.BadRequest),
            (Unavailable("nobody leads"), commands.NotNow),
        ):
            self.table_fails = error
            refused = self.failureResultOf(answers.put_table(server_id(2), b"TABLE"), kind)
            assert str(refused.value) == str(error)

    def test_a_row_given_anew_cannot_harm(self) -> None:
        """A server of the farm cannot write into config.ini through its host, nor choose its place."""
        answers = self.make_answers()
        harmful = make_server(2, host="10.0.0.1 1 2 3 up\n[server]").to_value().decode()
        self.failureResultOf(answers.put_server(server_id(2), harmful), commands.BadRequest)
        forged = make_server(2, seniority=1, joined=1, state="leaving").to_value().decode()
        self.successResultOf(answers.put_server(server_id(2), forged))
        assert [server.name for server in self.servers()] == ["s1", "s2"]
        assert {server.name: server.state for server in self.servers()}["s2"] == "up"

    def test_who_moved_is_called_back(self) -> None:
        """A server of the farm that comes back on another address must be reached there, with its certificate."""
        answers = self.make_answers()
        before = dict(self.table.rows)
        moved = make_server(2, host="10.0.0.7").to_value().decode()
        self.back = ConnectionRefusedError()
        refused = self.failureResultOf(answers.put_server(server_id(2), moved), commands.JoinRefused)
        assert "10.0.0.7:4121, cannot be reached from here: refused" in str(refused.value)
        self.back = CalledBack(Identity.provisional(server_id(2), NOW), server_id(2))
        refused = self.failureResultOf(answers.put_server(server_id(2), moved), commands.JoinRefused)
        assert "leads to another server" in str(refused.value)
        assert self.table.rows == before and self.learned == {}
        identity = Identity.provisional(server_id(2), NOW).signed_by(self.authority, [], NOW)
        self.back = CalledBack(identity, server_id(2))
        self.successResultOf(answers.put_server(server_id(2), moved))
        assert {server.name: server.host for server in self.servers()}["s2"] == "10.0.0.7"

    def test_a_copied_data_directory(self) -> None:
        """Whoever moved is refused while another process of that server answers where it was, both addresses named."""
        answers = self.make_answers()
        identity = Identity.provisional(server_id(2), NOW).signed_by(self.authority, [], NOW)
        (here,) = [row.peer_address for row in self.servers() if row.id == server_id(2)]
        moved = make_server(2, host="10.0.0.7", incarnation="copy")
        self.back = CalledBack(identity, server_id(2), "copy")
        self.places[here] = CalledBack(identity, server_id(2), "run2")
        asked = answers.put_server(server_id(2), moved.to_value().decode())
        refused = str(self.failureResultOf(asked, commands.JoinRefused).value)
        assert str(here) in refused and "10.0.0.7:4121" in refused
        # The same process on two addresses is no copy, and neither is another server that listens there now.
        other = Identity.provisional(server_id(9), NOW).signed_by(self.authority, [], NOW)
        self.places[here] = CalledBack(other, server_id(9), "run9")
        self.successResultOf(answers.put_server(server_id(2), moved.to_value().decode()))

    def test_keys_are_checked_for_others(self) -> None:
        """A server without the rows asks with a hash, and learns whose it is or nothing."""
        answers = self.make_answers()
        row, secret = new_key("write", prefix="lab/")
        self.table.put(row.key, row.to_value())
        asked = answers.authenticate(row.id, secret_digest(secret))
        assert self.successResultOf(asked) == Principal(row.id, "write", "lab/")
        assert self.successResultOf(answers.authenticate(row.id, secret_digest("x"))) is None
        assert self.successResultOf(answers.authenticate("nobody", secret_digest(secret))) is None
        self.engine.stands_still = True
        self.failureResultOf(answers.authenticate(row.id, secret_digest(secret)), commands.NotNow)
        self.engine.stands_still = False
        self.engine.holds_rows = False
        self.failureResultOf(answers.authenticate(row.id, secret_digest(secret)), commands.NotNow)

    def test_renewing(self) -> None:
        """A server of the farm gets a fresh certificate for its id; one that is not in the table gets none."""
        answers = self.make_answers()
        request = Identity.provisional(server_id(2), NOW).signing_request()
        box = self.successResultOf(answers.renew(server_id(2), request))
        assert b"BEGIN CERTIFICATE" in box["certificate"]
        self.failureResultOf(answers.renew(server_id(5), request), commands.BadRequest)
        self.failureResultOf(answers.renew(server_id(2), b"junk"), commands.BadRequest)

    def test_renewing_for_another_key(self) -> None:
        """Where the row says by which key a server is known, only that key is certified."""
        answers = self.make_answers()
        identity = Identity.provisional(server_id(2), NOW)
        row = make_server(2, public_key=identity.key_digest)
        self.table.put(row.key, row.to_value())
        self.successResultOf(answers.renew(server_id(2), identity.signing_request()))
        other = Identity.provisional(server_id(2), NOW).signing_request()
        self.failureResultOf(answers.renew(server_id(2), other), commands.BadRequest)

    def test_the_key_stands_in_the_row(self) -> None:
        """That of a joiner is the one it asks a certificate for; a row that is given later keeps it."""
        answers = self.make_answers()
        self.successResultOf(answers.join(self.make_joiner(row=make_server(9, public_key="a lie"))))
        (row,) = (server for server in self.servers() if server.id == server_id(9))
        assert row.public_key == self.joiner_identity.key_digest and row.secrets
        again = evolve(row, incarnation="again", public_key="a lie", master=False, secrets=False)
        self.successResultOf(answers.put_server(server_id(9), again.to_value().decode(), row.public_key))
        (after,) = (server for server in self.servers() if server.id == server_id(9))
        assert (after.public_key, after.master, after.secrets) == (row.public_key, False, True)

    def test_the_seal_key(self) -> None:
        """It is for servers of the table that may be masters, if the farm names it and it is held here."""
        answers = self.make_answers()
        self.sealed = {"a digest": b"s" * 32}
        assert answers.seal_key(server_id(2), "a digest") == b"s" * 32
        self.assertRaises(commands.NotNow, answers.seal_key, server_id(2), "another")
        self.assertRaises(commands.BadRequest, answers.seal_key, server_id(7), "a digest")
        row = make_server(3, master=False)
        self.table.put(row.key, row.to_value())
        self.assertRaises(commands.BadRequest, answers.seal_key, server_id(3), "a digest")

    def test_a_probe_while_starting_is_remembered(self) -> None:
        """Who asks a starting server is a candidate that it must count."""
        answers = self.make_answers()
        self.state.change("starting")
        told = answers.probe(Prober(server_id(7), 55, "", host="10.0.0.7"))
        assert (told["state"], told["keyed"], told["proof"]) == ("starting", False, "")
        assert self.called() == [server_id(7)]
        self.state.change("serving")
        answers.probe(Prober(server_id(8), 55, ""))
        assert self.called() == [server_id(7)]
        self.clock.advance(CALLER_SECONDS + 1)
        assert self.called() == []

    def test_what_the_journal_holds(self) -> None:
        """It is told to servers of the farm, and to nobody else."""
        answers = self.make_answers()
        told = answers.probe(Prober(server_id(2), 1, FARM, certified=server_id(2), index=9))
        assert told["journal"] == {"term": 3, "index": 17} and told["term_at"] == 9
        assert told["server"] == server_id(1)
        assert "journal" not in answers.probe(Prober(server_id(2), 1, FARM, index=9))

    def called(self) -> list[str]:
        return [caller.candidate.server_id for caller in self.callers.current()]

    def test_a_probe_with_a_join_key(self) -> None:
        """Who proves the join key gets a proof in return and counts; who does not gets none and counts for nothing."""
        answers = self.make_answers()
        self.state.change("waiting")
        self.callers.key = KEY
        shown = proof(KEY, DIALER, EXPORTER)
        told = answers.probe(Prober(server_id(7), 55, "", proof=shown, exporter=EXPORTER))
        assert told["keyed"] and check_proof(KEY, LISTENER, EXPORTER, bytes.fromhex(told["proof"]))
        for number, wrong in enumerate(
            (
                b"",
                b"short",
                proof(b"x" * 32, DIALER, EXPORTER),
                proof(KEY, LISTENER, EXPORTER),
                proof(KEY, DIALER, b"o" * 32),
            )
        ):
            told = answers.probe(Prober(server_id(20 + number), 1, "", proof=wrong, exporter=EXPORTER))
            assert (told["keyed"], told["proof"]) == (True, "")
        assert self.called() == [server_id(7)]

    def test_a_serving_server_shows_no_proof(self) -> None:
        """Its certificate says who it is; the join key is for joining."""
        answers = self.make_answers()
        self.callers.key = KEY
        shown = proof(KEY, DIALER, EXPORTER)
        told = answers.probe(Prober(server_id(7), 55, "", proof=shown, exporter=EXPORTER))
        assert (told["keyed"], told["proof"]) == (False, "")

    def test_a_probe_of_a_version_that_is_not_understood(self) -> None:
        """It is answered, so that the other side can say so too, but does not count; the log says it once."""
        answers = self.make_answers()
        self.state.change("starting")
        said: list[Any] = []
        observer: Any = said.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for _ in range(3):
            told = answers.probe(Prober(server_id(7), 1, "", version=commands.PROTOCOL_VERSION + 1, host="10.0.0.7"))
            assert told["version"] == commands.PROTOCOL_VERSION
        assert self.called() == []
        assert [event["problem"].split(",")[0] for event in said if "problem" in event] == [
            "it speaks version 2 of the peer protocol"
        ]
        told = answers.probe(Prober(server_id(7), 1, "", version=commands.PROTOCOL_VERSION - 1))
        assert self.called() == [server_id(7)]
        assert told["version"] == commands.PROTOCOL_VERSION - 1, "the older one would take no other"

    def test_where_a_server_of_the_farm_listens_now(self) -> None:
        """One that came back on another address says so with its certificate; nobody can say it of another."""
        answers = self.make_answers()
        moved = Address("127.0.0.1", 5001)
        answers.probe(Prober(server_id(2), 1, FARM, advertised=moved))
        answers.probe(Prober(server_id(2), 1, FARM, advertised=moved, certified=server_id(1)))
        assert self.learned == {}
        answers.probe(Prober(server_id(2), 1, FARM, advertised=moved, certified=server_id(2)))
        assert self.learned == {server_id(2): moved}
