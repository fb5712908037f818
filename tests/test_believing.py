"""What a server believes while the farm changes its CA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.believing import RETRY_SECONDS, Beliefs
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import CA_CERTIFICATE_KEY, ROTATION_KEY, SEAL_DIGEST_KEY
from chunkfarm.rotation import Rotation
from chunkfarm.table.interface import Row
from chunkfarm.trust.authority import Authority, certificates_in, fingerprint_of
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.seal import SealKey
from tests.builders import server_id

NOW = 1_795_000_000_000
OLD, NEW = (Authority.create("f" * 32, NOW) for _ in range(2))
SEAL, NEXT_SEAL = SealKey.create(), SealKey.create()


def make_identity(authority: Authority, number: int = 1) -> Identity:
    return Identity.provisional(server_id(number), NOW).signed_by(authority, [], NOW)


class BelievingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.contexts = Contexts(make_identity(OLD))
        assert self.contexts.identity is not None
        self.contexts.identity.save(self.folder)
        SEAL.save(self.folder)
        self.rows: dict[bytes, Row] = {}
        self.clock, self.asked, self.judged, self.renewed = Clock(), 0, 0, 0
        self.answer: Deferred[bytes] = succeed(NEXT_SEAL.material)
        self.held: list[tuple[Deferred[Any], Callable[[], Any]]] | None = None
        run: Any = self.run_thread
        self.beliefs = Beliefs(
            directory=self.folder,
            contexts=self.contexts,
            turn=DeferredLock(),
            row=lambda key: self.rows.get(key),
            may_be_master=lambda: True,
            ask=self.ask,
            renew=self.renew,
            changed=self.changed,
            clock=self.clock,
            run_in_thread=run,
        )
        self.beliefs.seal = SEAL
        self.put(CA_CERTIFICATE_KEY, OLD.certificate_pem)
        self.beliefs.start()
        self.addCleanup(self.beliefs.stop)

    def run_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if self.held is None:
            return succeed(function(*arguments))
        waiting: Deferred[Any] = Deferred()
        self.held.append((waiting, lambda: function(*arguments)))
        return waiting

    def release(self) -> None:
        while self.held:
            waiting, call = self.held.pop(0)
            waiting.callback(call())

    def ask(self, digest: str) -> Deferred[bytes]:
        self.asked += 1
        return self.answer

    def changed(self) -> None:
        self.judged += 1

    def renew(self) -> Deferred[None]:
        self.renewed += 1
        row = self.rows[CA_CERTIFICATE_KEY]
        identity = self.contexts.identity
        assert identity is not None
        if row.value == NEW.certificate_pem:
            signed = NEW.sign(identity.signing_request(), identity.server_id, [], NOW)
            renewed = identity.certified(signed, row.value + identity.ca_pem)
            renewed.save(self.folder)
            self.contexts.replace(renewed)
        return succeed(None)

    def put(self, key: bytes, value: bytes) -> None:
        self.rows[key] = Row(key, value, 1 + max((row.revision for row in self.rows.values()), default=0))

    def go(self, step: str) -> None:
        rotation = Rotation(
            step=step,
            ca=NEW.certificate_pem.decode(),
            old=OLD.certificate_pem.decode(),
            introduction=OLD.introduce(NEW.certificate).decode(),
            seal=NEXT_SEAL.digest,
            since=NOW,
        )
        if step != "trusting":
            self.put(CA_CERTIFICATE_KEY, NEW.certificate_pem)
            self.put(SEAL_DIGEST_KEY, NEXT_SEAL.digest.encode())
        self.put(ROTATION_KEY, rotation.to_value())
        self.beliefs.table_changed()

    def believed_on_disk(self) -> list[str]:
        identity = Identity.load(self.folder, server_id(1))
        assert identity is not None
        return [fingerprint_of(ca) for ca in identity.believed]

    def test_at_rest(self) -> None:
        """Nothing is written, asked or said."""
        assert (self.asked, self.judged, self.beliefs.report()) == (0, 0, ("", ""))
        assert self.believed_on_disk() == [OLD.fingerprint]

    def test_ready(self) -> None:
        """It is said only when it is on the disk: both CAs, and both seal keys."""
        self.held = []
        self.go("trusting")
        assert self.beliefs.report() == (OLD.fingerprint, "")
        self.release()
        assert self.believed_on_disk() == [OLD.fingerprint, NEW.fingerprint]
        assert SealKey.load(self.folder).held == (SEAL.material, NEXT_SEAL.material)
        assert self.beliefs.report() == (OLD.fingerprint, NEW.fingerprint)

    def test_open_links_are_judged_again(self) -> None:
        """From the first step on whoever has the old CA's key is nobody, and not only on new links."""
        forged = make_identity(OLD, 2).certificate
        assert self.contexts.peer_of(forged) == server_id(2)
        self.go("trusting")
        assert self.contexts.peer_of(forged) is None
        assert self.contexts.peer_of(make_identity(NEW, 2).certificate) == server_id(2)
        assert self.judged == 1

    def test_to_the_end(self) -> None:
        """In the end it believes one CA, has its certificate, and seals with the new key."""
        self.go("trusting")
        self.go("renewing")
        assert self.beliefs.report() == (NEW.fingerprint, NEW.fingerprint)
        assert self.beliefs.seal is not None and self.beliefs.seal.digest == NEXT_SEAL.digest
        assert SealKey.load(self.folder).digest == NEXT_SEAL.digest
        self.go("done")
        assert self.contexts.identity is not None
        assert [fingerprint_of(ca) for ca in self.contexts.identity.believed] == [NEW.fingerprint]
        assert self.contexts.introduces_to_clients
        self.go("over")
        assert not self.contexts.introduces_to_clients
        assert self.beliefs.report() == ("", "")

    def test_away_until_it_was_over(self) -> None:
        """One that comes back with a certificate of the CA before believes that one no longer than it has to."""
        self.go("over")
        assert self.contexts.identity is not None and self.contexts.identity.ca_fingerprint == NEW.fingerprint
        assert self.believed_on_disk() == [NEW.fingerprint]
        self.contexts.in_force = ()
        assert self.contexts.peer_of(make_identity(OLD, 2).certificate) is None

    def test_nobody_gives_the_key(self) -> None:
        """It is asked for again; a wrong one is not kept."""
        for answer in (fail(LinkFailed("refused")), succeed(b"x" * 32)):
            self.answer = answer
            self.go("trusting")
            self.clock.advance(RETRY_SECONDS)
            assert self.beliefs.report() == (OLD.fingerprint, "")
            assert SealKey.load(self.folder) == SEAL
        self.answer = succeed(NEXT_SEAL.material)
        self.clock.advance(RETRY_SECONDS)
        assert self.beliefs.report() == (OLD.fingerprint, NEW.fingerprint)

    def test_introduced_by_another_server(self) -> None:
        """One that was away learns the CA from what others show, but not from a CA that has no say any more."""
        chain = (make_identity(NEW, 2).certificate, *self.introduction(OLD, NEW), NEW.certificate)
        self.beliefs.introduced(chain)
        assert self.contexts.peer_of(chain[0]) == server_id(2)
        third = Authority.create("f" * 32, NOW)
        self.go("renewing")
        late = (make_identity(third, 2).certificate, *self.introduction(OLD, third), third.certificate)
        self.beliefs.introduced(late)
        assert self.contexts.peer_of(late[0]) is None

    def introduction(self, old: Authority, new: Authority) -> Any:
        return certificates_in(old.introduce(new.certificate))
