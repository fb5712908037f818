"""Watches of servers that do not hold the table."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

from OpenSSL import SSL
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.links.followers import ANSWER_TIMEOUT, PING_INTERVAL, FollowersWatch
from chunkfarm.model import Address
from chunkfarm.table.interface import Compacted, IWatch, TableClosed, Unavailable
from chunkfarm.trust.authority import Authority
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity
from tests.builders import server_id
from tests.memory_table import MemoryTable

NOW = 1_795_341_600_123


class ShownChain:
    """The transport of a link on which that certificate was shown."""

    def __init__(self, identity: Identity) -> None:
        self._connection = Mock(spec=SSL.Connection)
        self._connection.get_peer_cert_chain.return_value = [identity.certificate]

    def getHandle(self) -> Any:
        return self._connection


class FakeClient:
    """A link whose WATCH is a table in memory."""

    transport = None

    def __init__(self, table: MemoryTable) -> None:
        self.table = table
        self.lost = False
        self.frozen = False
        self.pings = 0
        self.watching: IWatch | None = None

    def request(self, line: str) -> Deferred[Any]:
        assert line == "PING"
        self.pings += 1
        return Deferred() if self.frozen else succeed("OK")

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        if self.frozen:
            return Deferred()

        def keep(watch: IWatch) -> IWatch:
            self.watching = watch
            return watch

        return self.table.watch(prefix, from_revision).addCallback(keep)

    def lose(self, reason: str = "") -> None:
        self.lost = True
        if self.watching is not None:
            watching: Any = self.watching
            watching.end(Unavailable(reason))


class FollowersWatchTests(SynchronousTestCase):
    """The next server in line serves when the first does not."""

    def make_follower(self, *ports: int) -> FollowersWatch:
        """Ports below 10 refuse; the others serve one table."""
        self.table = MemoryTable()
        self.clients: list[FakeClient] = []
        self.frozen: set[int] = set()

        def dial(reactor: Any, address: Address, **more: Any) -> Deferred[Any]:
            if address.port < 10:
                return fail(ConnectionRefusedError())
            if self.shown:
                more["check"](ShownChain(self.shown))
            self.clients.append(FakeClient(self.table))
            self.clients[-1].frozen = address.port in self.frozen
            return succeed(self.clients[-1])

        self.clock = Clock()
        self.answering: set[int] = set()
        authority = Authority.create("fa" * 16, NOW)
        self.known = Identity.provisional(server_id(2), NOW).signed_by(authority, [], NOW)
        contexts = Contexts(self.known)

        def member_of(certificate: Any) -> str | None:
            found = contexts.peer_of(certificate)
            return None if found in self.forgotten else found

        return FollowersWatch(
            self.clock,
            contexts,
            lambda: [Address("127.0.0.1", port) for port in ports],
            dial,
            lambda address: address.port in self.answering,
            member_of,
        )

    shown: Identity | None = None
    forgotten: tuple[str, ...] = ()

    def test_who_is_believed(self) -> None:
        """A server of the farm, and none that was forgotten, though its certificate is still good, nor a stranger."""
        follower = self.make_follower(11)
        self.shown = self.known
        self.successResultOf(follower.open(b"servers/", 0)).close()
        self.forgotten = (server_id(2),)
        failure = self.failureResultOf(follower.open(b"servers/", 0), Unavailable)
        assert "no server of this farm" in str(failure.value)
        self.forgotten, self.shown = (), Identity.provisional(server_id(2), NOW)
        self.failureResultOf(follower.open(b"servers/", 0), Unavailable)

    def test_the_first_that_answers(self) -> None:
        """Servers that refuse are passed over, and changes arrive."""
        follower = self.make_follower(1, 2, 11, 12)
        watch = self.successResultOf(follower.open(b"servers/", 0))
        self.table.put(b"servers/a", b"1")
        assert self.successResultOf(watch.next()).events[0].value == b"1"
        assert len(self.clients) == 1

    def test_nobody(self) -> None:
        """When nobody gives a watch, all that was tried is named."""
        follower = self.make_follower(1, 2)
        failure = self.failureResultOf(follower.open(b"servers/", 0), Unavailable)
        assert "127.0.0.1:1" in str(failure.value)
        assert "127.0.0.1:2" in str(failure.value)

    def test_fallen_behind(self) -> None:
        """Compacted is an answer, not a reason to ask the next server."""
        follower = self.make_follower(11, 12)
        self.table.put(b"servers/a", b"1")
        self.table.compact()
        self.failureResultOf(follower.open(b"servers/", 0), Compacted)
        assert [client.lost for client in self.clients] == [True]

    def test_closing_ends_the_link(self) -> None:
        """A watch that is not needed any more holds no connection."""
        watch = self.successResultOf(self.make_follower(11).open(b"servers/", 0))
        waiting = watch.next()
        watch.close()
        self.failureResultOf(waiting, TableClosed)
        assert self.clients[0].lost

    def test_a_server_that_answers_anyway(self) -> None:
        """Who has just answered something else is not asked; as soon as it does not any more, it is."""
        follower = self.make_follower(11)
        self.answering.add(11)
        self.successResultOf(follower.open(b"servers/", 0))
        self.clock.pump([PING_INTERVAL] * 3)
        assert self.clients[0].pings == 0
        self.answering.clear()
        self.clock.advance(PING_INTERVAL)
        assert self.clients[0].pings == 1

    def test_a_server_that_freezes(self) -> None:
        """Its kernel still takes bytes, but nobody answers: the watch ends, and can be had elsewhere."""
        watch = self.successResultOf(self.make_follower(11).open(b"servers/", 0))
        waiting = watch.next()
        self.clock.pump([PING_INTERVAL] * 3)
        self.assertNoResult(waiting)
        assert self.clients[0].pings == 3
        self.clients[0].frozen = True
        self.clock.pump([PING_INTERVAL, ANSWER_TIMEOUT])
        self.failureResultOf(waiting, Unavailable)
        assert self.clients[0].lost
        assert self.clock.getDelayedCalls() == []

    def test_a_frozen_server_is_passed_over(self) -> None:
        """One that takes the connection and says nothing does not hold up the watch for ever."""
        follower = self.make_follower(11, 12)
        self.frozen = {11}
        opening = follower.open(b"servers/", 0)
        self.clock.advance(ANSWER_TIMEOUT)
        watch = self.successResultOf(opening)
        assert [client.lost for client in self.clients] == [True, False]
        watch.close()
        assert self.clock.getDelayedCalls() == []
