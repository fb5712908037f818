"""The line protocol over real TLS on 127.0.0.1: both transports, real certificates, whole chunks."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from chunkfarm.config import ListenDescription
from chunkfarm.errors import Denied
from chunkfarm.links.lines import LineClient, LinkLost, connect
from chunkfarm.model import MIB, Address, Server, digest_of
from chunkfarm.ports.client import ClientFactory
from chunkfarm.trust.authority import Authority
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.verify import Untrusted, chain_of, check_chain
from chunkfarm.wire.transport import listen
from tests.memory_table import MemoryTable
from tests.ports.fakes import OTHER_ID, SERVER_ID, MemoryBackend
from tests.trust.support import NOW

reactor: Any = global_reactor


def identity(authority: Authority, server_id: str) -> Identity:
    return Identity.provisional(server_id, NOW).signed_by(authority, ["127.0.0.1"], NOW)


class TLSTests(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.authority = Authority.create("fa" * 16, NOW)
        self.contexts = Contexts(identity(self.authority, SERVER_ID))
        self.backend = MemoryBackend()
        self.backend.table = MemoryTable()
        self.backend.state.revision = 0
        self.backend.peer_of = self.contexts.peer_of  # type: ignore[method-assign]
        inside: Any = self.backend
        factory = ClientFactory(inside, reactor, self.contexts.client_port_factory())
        port: Any = listen(reactor, ListenDescription("tcp", 0, "127.0.0.1"), factory)
        self.address = Address("127.0.0.1", port.getHost().port)
        self.clients: list[LineClient] = []

        async def clean() -> None:
            for client in self.clients:
                client.lose()
                await client.when_lost()
            await port.stopListening()
            while factory.connections:
                await deferLater(reactor, 0.01)

        self.addCleanup(lambda: Deferred.fromCoroutine(clean()))

    async def connected(self, contexts: Contexts, fingerprint: str | None = None) -> LineClient:
        """A link that has looked at the server's certificate."""
        wanted = fingerprint or self.authority.fingerprint

        def check(transport: Any) -> None:
            assert check_chain(chain_of(transport), wanted, "127.0.0.1", NOW) == SERVER_ID

        client = await connect(reactor, self.address, tls=contexts.client_factory(), check=check)
        self.clients.append(client)
        return client

    async def test_chunks(self) -> None:
        """Whole chunks go in and out, several at a time."""
        client = await self.connected(Contexts())
        await client.auth("writer", "secret")
        chunks = [os.urandom(8 * MIB - number) for number in range(4)]
        sent = [client.request(f"PUT {digest_of(chunk).hex()} {len(chunk)}", (chunk,)) for chunk in chunks]
        for chunk, answer in zip(chunks, sent, strict=True):
            assert (await answer).words == [digest_of(chunk).hex()]
        assert set(self.backend.store.chunks.values()) == set(chunks)
        asked = [client.request(f"GET {digest_of(chunk).hex()}") for chunk in chunks]
        for chunk, answer in zip(chunks, asked, strict=True):
            assert (await answer).data == chunk

    async def test_slow_reader(self) -> None:
        """A file goes out as fast as it is taken, and whole."""
        data = os.urandom(20 * MIB)
        self.backend.catalog.add("a/b", data, chunk_size=MIB)
        client = await self.connected(Contexts())
        await client.auth("reader", "secret")
        taken = []

        def sink(piece: bytes | memoryview) -> Deferred[None] | None:
            taken.append(bytes(piece))
            return deferLater(reactor, 0.001) if len(taken) % 10 == 0 else None

        reply = await client.request("FETCH a/b", sink=sink)
        assert reply.length == len(data)
        assert b"".join(taken) == data

    async def test_other_farm(self) -> None:
        """A server of another farm is told nothing."""
        with self.assertRaises(Untrusted):
            await self.connected(Contexts(), "sha256:" + "00" * 32)

    async def test_farm_certificate(self) -> None:
        """A server follows the table with nothing but its certificate."""
        client = await self.connected(Contexts(identity(self.authority, OTHER_ID)))
        watch = await client.watch(b"servers/", 0)
        row = Server(id=OTHER_ID, name="beta", host="h", client=1, peer=2, files=3, seniority=1)
        self.backend.table.put(row.key, row.to_value())
        batch = await watch.next()
        assert [(event.key, event.value) for event in batch.events] == [(row.key, row.to_value())]
        with self.assertRaises(Denied):
            await client.request("LIST")

    async def test_stranger_certificate(self) -> None:
        """A certificate of another farm is nothing."""
        other = Authority.create("0a" * 16, NOW)
        client = await self.connected(Contexts(identity(other, OTHER_ID)))
        with self.assertRaises(Exception):  # noqa: B017 - AuthenticationFailed, or the end of the link
            await client.watch(b"servers/", 0)

    async def test_bytes_behind_starttls(self) -> None:
        """What came in the clear behind STARTTLS is never run, and ends the link."""
        client = await connect(reactor, self.address, tls=None)
        self.clients.append(client)
        transport: Any = client.transport
        transport.write(b"STARTTLS\r\nHELLO\r\n")
        await client.when_lost()
        with self.assertRaises(LinkLost):
            await client.request("HELLO")

    async def test_ended_link(self) -> None:
        """QUIT ends an encrypted link in order."""
        client = await self.connected(Contexts())
        await client.quit()
