"""A server that came back finds the others, and they find it, wherever they have gone."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.addresses import HINT_SECONDS, AddressBook
from chunkfarm.finding import Asking
from chunkfarm.links.peers import Peers
from chunkfarm.membership import Candidate
from chunkfarm.model import Address, Server
from chunkfarm.returning import INTERVAL, Calls
from tests.builders import make_server, server_id

FARM = "f" * 32
HERE = Address("127.0.0.1", 4101)


class CalledLink:
    """A link to a server whose certificate proves `proved`."""

    def __init__(self, test: CallsTests, proved: str | None, told: Any) -> None:
        self.test, self.proved, self.told = test, proved, told
        test.open += 1

    def certificate(self) -> str | None:
        return self.proved

    def callRemote(self, command: Any, **arguments: Any) -> Deferred[Any]:
        self.test.asked.append(arguments)
        if self.told is None:
            return Deferred()
        return succeed({"answer": json.dumps(self.told)})

    def close(self) -> None:
        self.test.open -= 1


class CallsTests(SynchronousTestCase):
    """Rounds of calls, until it belongs."""

    def make_calls(self, places: dict[int, Any]) -> Calls:
        """`places`: port -> None (refuses) or who is proved there, and the answer."""
        self.clock = Clock()
        self.learned: dict[str, Address] = {}
        self.asked: list[dict[str, Any]] = []
        self.open = 0
        self.heard: list[dict[str, Any]] = []
        self.places = places

        def open_link(address: Address, factory: Any, timeout: float) -> Deferred[Any]:
            place = self.places.get(address.port)
            return succeed(CalledLink(self, *place)) if place else fail(ConnectionRefusedError())

        peers = Peers(self.clock, open_link, lambda certificate: certificate, lambda server: None)
        me = Candidate(stamp=1, server_id=server_id(0))
        calls = Calls(
            peers,
            Asking(me=me, address=HERE, farm=FARM),
            lambda: succeed([HERE, *(Address("127.0.0.1", port) for port in self.places)]),
            self.learned.__setitem__,
            self.clock,
            self.heard.append,
        )
        calls.start()
        self.addCleanup(calls.stop)
        return calls

    def told(self, **more: Any) -> dict[str, Any]:
        return {"server": server_id(1), "state": "waiting", "farm": FARM, "stamp": 1, "first": {}, **more}

    def test_who_is_where(self) -> None:
        """The certificate says who listens at an address; who refuses is asked again."""
        self.make_calls({5001: (server_id(1), self.told()), 5002: None})
        assert self.learned == {}
        self.clock.advance(INTERVAL)
        assert self.learned == {server_id(1): Address("127.0.0.1", 5001)}
        self.places[5002] = (server_id(2), self.told())
        self.clock.advance(INTERVAL)
        assert self.learned[server_id(2)] == Address("127.0.0.1", 5002)
        assert self.open == 0
        assert (self.asked[0]["host"], self.asked[0]["peer"]) == (HERE.host, HERE.port)

    def test_what_they_answer(self) -> None:
        """How far the farm is, as a server of the farm says it, or 0 if it does not say."""
        self.make_calls({5001: (server_id(1), self.told(generation=7)), 5002: (server_id(2), self.told())})
        self.clock.advance(INTERVAL)
        assert sorted(told["generation"] for told in self.heard) == [0, 7]

    def test_a_stranger_is_not_believed(self) -> None:
        """Without a certificate of the farm nothing that is said counts, and nothing is said either."""
        first = {"id": server_id(3), "host": "10.6.6.6", "peer": 666}
        self.make_calls({5001: (None, self.told(first=first))})
        self.clock.advance(INTERVAL)
        assert self.learned == {} and self.asked == [] and self.open == 0 and self.heard == []

    def test_who_leads(self) -> None:
        """A server of the farm also says where the first listens."""
        first = {"id": server_id(3), "host": "127.0.0.1", "peer": 5003}
        self.make_calls({5001: (server_id(1), self.told(first=first))})
        self.clock.advance(INTERVAL)
        assert self.learned[server_id(3)] == Address("127.0.0.1", 5003)

    def test_nonsense_and_silence(self) -> None:
        """An answer that is none, and one that never comes, stop no round."""
        self.make_calls({5001: (server_id(1), []), 5002: (server_id(2), None), 5003: (server_id(3), self.told())})
        self.clock.advance(INTERVAL)
        self.clock.advance(5)
        assert list(self.learned) == [server_id(3)]
        self.clock.advance(INTERVAL)
        assert len(self.asked) == 6

    def test_the_end(self) -> None:
        """When it belongs nobody is called any more, and a call under way is ended."""
        calls = self.make_calls({5001: (server_id(1), None)})
        self.clock.advance(INTERVAL)
        assert self.open == 1
        calls.stop()
        self.clock.pump([INTERVAL] * 5)
        assert len(self.asked) == 1 and self.open == 0


class AddressBookTests(SynchronousTestCase):
    """Rows and hints."""

    def make_book(self, *servers: Server) -> AddressBook:
        self.rows = servers
        self.clock = Clock()
        return AddressBook(lambda: self.rows, self.clock)

    def test_a_hint_counts_for_a_while(self) -> None:
        """A server is looked for where it was last seen, and later where its row says again."""
        book = self.make_book(make_server(1))
        assert book.lookup(server_id(1)) == make_server(1).peer_address
        book.learn(server_id(1), Address("127.0.0.1", 5001))
        assert book.lookup(server_id(1)) == Address("127.0.0.1", 5001)
        self.clock.advance(HINT_SECONDS)
        assert book.lookup(server_id(1)) == make_server(1).peer_address

    def test_a_row_that_changes_is_newer(self) -> None:
        """A hint that was told of an older row does not hide the new one; a change of other rows does not matter."""
        book = self.make_book(make_server(1), make_server(2))
        book.learn(server_id(1), Address("127.0.0.1", 5001))
        self.rows = (make_server(1), make_server(2, peer=6001))
        assert book.lookup(server_id(1)) == Address("127.0.0.1", 5001)
        self.rows = (make_server(1, peer=6000), make_server(2))
        assert book.lookup(server_id(1)) == Address("127.0.0.1", 6000)

    def test_without_a_row_a_hint_is_all(self) -> None:
        """A joiner knows the first by a hint alone until it has seen the table."""
        book = self.make_book()
        assert book.lookup(server_id(1)) is None
        book.learn(server_id(1), Address("127.0.0.1", 5001))
        self.clock.advance(10 * HINT_SECONDS)
        assert book.lookup(server_id(1)) == Address("127.0.0.1", 5001)
