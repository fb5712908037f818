"""Watches of servers that do not hold the table."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.links.followers import FollowersWatch
from chunkfarm.model import Address
from chunkfarm.table.interface import Compacted, IWatch, TableClosed, Unavailable
from chunkfarm.trust.contexts import Contexts
from tests.memory_table import MemoryTable


class FakeClient:
    """A link whose WATCH is a table in memory."""

    transport = None

    def __init__(self, table: MemoryTable) -> None:
        self.table = table
        self.lost = False

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        return self.table.watch(prefix, from_revision)

    def lose(self) -> None:
        self.lost = True


class FollowersWatchTests(SynchronousTestCase):
    """The next server in line serves when the first does not."""

    def make_follower(self, *ports: int) -> FollowersWatch:
        """Ports below 10 refuse; the others serve one table."""
        self.table = MemoryTable()
        self.clients: list[FakeClient] = []

        def dial(reactor: Any, address: Address, **more: Any) -> Deferred[Any]:
            if address.port < 10:
                return fail(ConnectionRefusedError())
            self.clients.append(FakeClient(self.table))
            return succeed(self.clients[-1])

        return FollowersWatch(Clock(), Contexts(), lambda: [Address("127.0.0.1", port) for port in ports], dial)

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
