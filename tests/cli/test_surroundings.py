"""Reaching real servers: TLS on 127.0.0.1, certificates judged by the fingerprint in `config.ini`."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from chunkfarm.cli.surroundings import dial_with, probe_with
from chunkfarm.config import Config, Listed, ListenDescription, parse_config
from chunkfarm.errors import AuthenticationFailed, Waiting
from chunkfarm.ports.client import ClientFactory
from chunkfarm.trust.authority import Authority
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.keys import KeyPair
from chunkfarm.trust.verify import Untrusted
from chunkfarm.wire.transport import listen
from tests.ports.fakes import OTHER_ID, SERVER_ID, MemoryBackend
from tests.trust.support import NOW

reactor: Any = global_reactor


class DialTests(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.authority = Authority.create("fa" * 16, NOW)
        identity = Identity.provisional(SERVER_ID, NOW).signed_by(self.authority, ["127.0.0.1"], NOW)
        self.backend = MemoryBackend()
        inside: Any = self.backend
        factory = ClientFactory(inside, reactor, Contexts(identity).client_port_factory())
        port: Any = listen(reactor, ListenDescription("tcp", 0, "127.0.0.1"), factory)
        self.number = port.getHost().port
        self.port = port

        async def clean() -> None:
            await maybeDeferred(self.port.stopListening)
            while factory.connections:
                await deferLater(reactor, 0.01)

        self.addCleanup(lambda: Deferred.fromCoroutine(clean()))

    def config(self, server_id: str = SERVER_ID, fingerprint: str | None = None) -> Config:
        """What the farm would have written."""
        return parse_config(
            f"[farm]\nchunksize = 8M\nname = lab\nid = {'fa' * 16}\ngeneration = 1\n"
            f"ca = {fingerprint or self.authority.fingerprint}\n"
            f"[servers]\nalpha = 2026-11-22T10:00:00.123Z 127.0.0.1 {self.number} 4101 4102 up {server_id}\n"
            "[server]\ndata = ./data\n",
            "config.ini",
        )

    async def dial(self, config: Config, secret: str = "secret") -> str:
        """Who answers, after everything that must be proved is."""
        link = await dial_with(reactor, config, KeyPair("reader", secret), 5.0, lambda: NOW)(config.servers[0])
        try:
            reply = await link.request("LIST")
            assert reply.word == "FILES"
            assert link.hello is not None
            return link.hello.fields["server"]
        finally:
            link.lose()
            await link.when_lost()

    async def test_dial(self) -> None:
        """A server of the farm is reached with nothing but config.ini and a key."""
        assert await self.dial(self.config()) == SERVER_ID

    async def test_other_server(self) -> None:
        """An address that another server has now is not taken for the listed one."""
        with self.assertRaises(Untrusted):
            await self.dial(self.config(OTHER_ID))
        assert self.backend.authentications == []

    async def test_other_farm(self) -> None:
        """A server of another farm does not see the key."""
        with self.assertRaises(Untrusted):
            await self.dial(self.config(fingerprint="sha256:" + "00" * 32))
        assert self.backend.authentications == []

    async def test_wrong_key(self) -> None:
        """A wrong key is told as such."""
        with self.assertRaises(AuthenticationFailed):
            await self.dial(self.config(), "wrong")

    async def test_not_serving(self) -> None:
        """A server that does not serve yet does not see the key."""
        self.backend.state.phase = "starting"
        with self.assertRaises(Waiting):
            await self.dial(self.config())
        assert self.backend.authentications == []

    async def test_probe(self) -> None:
        """A server that lives answers a probe; a dead one does not."""
        listed: Listed = self.config().servers[0]
        await probe_with(reactor)(listed)
        await maybeDeferred(self.port.stopListening)
        with self.assertRaises(ConnectionRefusedError):
            await probe_with(reactor)(listed)
