"""A certificate that is renewed in time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.issuer import Issuer, secret_rows
from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed
from chunkfarm.renewal import LOOK_SECONDS, Renewal
from chunkfarm.trust.authority import DAY_MS, Authority
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.seal import SealKey
from tests.builders import server_id
from tests.chunks.builders import run_now
from tests.memory_table import MemoryTable

START = 1_700_000_000_000


class RenewalTests(SynchronousTestCase):
    """Two thirds into its life a certificate is replaced, by whoever leads."""

    def make_renewal(self, first: int) -> Renewal:
        self.now = START
        self.clock = Clock()
        self.directory = Path(self.mktemp())
        os.mkdir(self.directory)
        self.authority = Authority.create("f" * 32, START)
        identity = Identity.provisional(server_id(1), START).signed_by(self.authority, ["127.0.0.1"], START)
        self.contexts = Contexts(identity)
        table, seal = MemoryTable(), SealKey.create()
        self.successResultOf(table.transact((), secret_rows(seal, self.authority, b"k" * 32)))
        self.issuer = Issuer(table, lambda: seal, lambda: self.now)
        self.reachable = True
        self.names: tuple[str, ...] = ("127.0.0.1",)
        return Renewal(
            self.directory,
            self.contexts,
            self.issuer,
            self,  # type: ignore[arg-type]
            lambda: server_id(first),
            lambda: self.names,
            self.clock,
            lambda: self.now,
            run_now,
        )

    def call(self, to: str, command: Any, **arguments: Any) -> Deferred[Any]:
        """What the first answers to `Renew`."""
        assert command is commands.Renew
        if not self.reachable:
            return fail(LinkFailed("refused"))
        pair = self.successResultOf(self.issuer.sign(arguments["request"], server_id(1), "127.0.0.1"))
        return succeed({"certificate": pair[0], "ca": pair[1]})

    def shown(self) -> bytes:
        assert self.contexts.identity is not None
        return self.contexts.identity.certificate_pem

    def test_a_young_certificate_stays(self) -> None:
        """Nothing is asked for while most of its life lies ahead."""
        renewal = self.make_renewal(2)
        before = self.shown()
        self.now += 200 * DAY_MS
        self.successResultOf(renewal.look())
        assert self.shown() == before

    def test_an_old_one_is_renewed_at_the_first(self) -> None:
        """The new one is in use at once, kept on disk, and for the same key."""
        renewal = self.make_renewal(2)
        before = self.shown()
        self.now += 300 * DAY_MS
        self.successResultOf(renewal.look())
        assert self.shown() != before
        kept = Identity.load(self.directory, server_id(1))
        assert kept is not None
        assert kept.certificate_pem == self.shown()
        assert not kept.renew_due(self.now)

    def test_the_first_renews_its_own(self) -> None:
        """The server that leads signs for itself."""
        renewal = self.make_renewal(1)
        before = self.shown()
        self.now += 300 * DAY_MS
        self.successResultOf(renewal.look())
        assert self.shown() != before

    def test_it_tries_again(self) -> None:
        """When the first cannot be asked, the next look does."""
        renewal = self.make_renewal(2)
        before = self.shown()
        self.now += 300 * DAY_MS
        self.reachable = False
        renewal.start()
        self.addCleanup(renewal.stop)
        assert self.shown() == before
        self.reachable = True
        self.clock.advance(LOOK_SECONDS)
        assert self.shown() != before

    def test_given_up(self) -> None:
        """Whoever waits for a look that is given up is told so, and a loop that goes on looks again."""
        renewal = self.make_renewal(2)
        before, call = self.shown(), self.call
        self.now += 300 * DAY_MS
        asked: list[Deferred[Any]] = []
        self.call = lambda *arguments, **more: asked.append(Deferred()) or asked[-1]  # type: ignore
        looking = renewal.look()
        looking.cancel()
        self.failureResultOf(looking, CancelledError)
        renewal.start()
        asked[-1].cancel()
        self.call = call  # type: ignore[method-assign]
        self.clock.advance(LOOK_SECONDS)
        assert self.shown() != before
        self.now += 300 * DAY_MS
        self.call = lambda *arguments, **more: asked.append(Deferred()) or asked[-1]  # type: ignore
        self.clock.advance(LOOK_SECONDS)
        self.successResultOf(renewal.stop())
        assert self.clock.getDelayedCalls() == [] and self.flushLoggedErrors() == []

    def test_another_name(self) -> None:
        """A server that goes by one more name gets a certificate with it, and asks once for what it does not get."""
        renewal = self.make_renewal(1)
        before = self.shown()
        self.names = ("127.0.0.1", "files.example")
        self.successResultOf(renewal.look())
        renewed = self.shown()
        assert renewed != before
        self.successResultOf(renewal.look())
        assert self.shown() == renewed
