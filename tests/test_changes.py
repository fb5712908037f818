"""Where a server is said to listen: SET and TABLE take no address at which it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.changes import set_server, set_table
from chunkfarm.errors import FarmError, InvalidRequest
from chunkfarm.links.calling_back import CallBack, NotThere
from chunkfarm.links.rows import server_row
from chunkfarm.model import Address, FarmOptions, Server
from chunkfarm.table.registry import Registered, Registry
from tests.builders import make_server, server_id
from tests.memory_table import MemoryTable


class FakeCalls(CallBack):
    """Knows who listens where, and notes who was called."""

    def __init__(self, listening: dict[Address, str]) -> None:
        self.listening = listening
        self.open: set[Address] = set()
        self.called: list[Address] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def call(self, address: Address, server: str, is_same: object = None) -> Deferred[None]:
        self.called.append(address)
        self.meanwhile()
        if (found := self.listening.get(address)) is None:
            return fail(NotThere("cannot be reached from here: refused"))
        return fail(NotThere(f"leads to another server, {found}", found)) if found != server else succeed(None)

    def knock(self, address: Address) -> Deferred[None]:
        self.called.append(address)
        return succeed(None) if address in self.open else fail(NotThere("cannot be reached from here: refused"))


class AddressTests(SynchronousTestCase):
    """A farm of three on one machine."""

    def make_farm(self) -> Registry:
        self.table = MemoryTable()
        self.calls = FakeCalls({make_server(n).peer_address: server_id(n) for n in (1, 2, 3)})
        self.registry = Registry(self.table, lambda: 5_000)
        self.successResultOf(self.registry.found(make_server(1), FarmOptions(name="lab"), ()))
        for number in (2, 3):
            self.successResultOf(self.registry.join(make_server(number)))
        return self.registry

    def row(self, number: int) -> Server:
        now = self.successResultOf(self.registry.read())
        assert isinstance(now, Registered)
        return now.servers[server_id(number)]

    def down(self, number: int) -> None:
        self.successResultOf(self.registry.enter_state((server_id(number),), "down", only_from=("up",)))

    def set(self, server: str, **fields: str) -> Deferred[Server]:
        return set_server(self.registry, server, fields, self.calls)

    def refused(self, asked: Deferred[Any]) -> str:
        """Why; nothing has changed."""
        error = self.failureResultOf(asked, InvalidRequest).value
        assert isinstance(error, FarmError)
        return error.sentence

    def refused_set(self, server: str, **fields: str) -> str:
        before = dict(self.table.rows)
        sentence = self.refused(self.set(server, **fields))
        assert self.table.rows == before
        return sentence

    def test_nobody_answers(self) -> None:
        """A server that is up is not said to be where nobody answers."""
        self.make_farm()
        assert self.refused_set("s2", host="10.255.255.1") == (
            "s2 is up, and its peer port would be 10.255.255.1:4121, which cannot be reached from here: refused"
        )

    def test_another_answers(self) -> None:
        """Nor where another server answers, which is named."""
        self.make_farm()
        self.calls.listening[Address("10.0.0.9", 4121)] = server_id(3)
        assert self.refused_set("s2", host="10.0.0.9") == (
            "s2 is up, and its peer port would be 10.0.0.9:4121, which leads to another server, s3"
        )
        self.calls.listening[Address("10.0.0.9", 4121)] = server_id(7)
        assert self.refused_set("s2", host="10.0.0.9").endswith(f"leads to another server, {server_id(7)}")

    def test_it_answers(self) -> None:
        """A server that answers at the new address is said to be there, and called there once."""
        self.make_farm()
        self.calls.listening[Address("10.0.0.9", 4999)] = server_id(2)
        self.calls.open = {Address("10.0.0.9", 4120)}
        assert self.refused_set("s2", host="10.0.0.9", peer="4999") == (
            "s2 is up, and its file port would be 10.0.0.9:4122, which cannot be reached from here: refused"
        )
        self.calls.called.clear()
        self.calls.open.add(Address("10.0.0.9", 4122))
        changed = self.successResultOf(self.set("s2", host="10.0.0.9", peer="4999"))
        assert changed == self.row(2) and changed.peer_address == Address("10.0.0.9", 4999)
        assert self.calls.called == [Address("10.0.0.9", port) for port in (4999, 4120, 4122)]

    def test_other_fields(self) -> None:
        """Nobody is called for a change of what is no address."""
        self.make_farm()
        self.successResultOf(self.set("s2", zone="rack", name="b", host="127.0.0.1", peer="4121"))
        assert not self.calls.called

    def test_other_ports(self) -> None:
        """Where clients and chunks go somebody must listen, too."""
        self.make_farm()
        for port, name in (("client", "client"), ("file", "files")):
            assert self.refused_set("s2", **{name: "4129"}) == (
                f"s2 is up, and its {port} port would be 127.0.0.1:4129, which cannot be reached from here: refused"
            )
        self.calls.open = {Address("127.0.0.1", 4129)}
        assert self.successResultOf(self.set("s2", files="4129")).files == 4129

    def test_taken_ports(self) -> None:
        """No two servers are said to listen on one port, nor one of them twice."""
        self.make_farm()
        assert self.refused_set("s2", client="4130") == "127.0.0.1:4130 is the client port of s3"
        assert self.refused_set("s2", peer="4132") == "127.0.0.1:4132 is the file port of s3"
        assert self.refused_set("s2", files="4111") == "127.0.0.1:4111 is the peer port of s1"
        assert self.refused_set("s2", files="4121") == "127.0.0.1:4121 is the peer port of s2 itself"
        assert self.refused_set("s2", host="localhost", client="4110") == "localhost:4110 is the client port of s1"
        assert not self.calls.called

    def test_down(self) -> None:
        """A server that is down may be given any address that no other one has."""
        self.make_farm()
        self.down(2)
        assert self.successResultOf(self.set("s2", host="10.255.255.1")).host == "10.255.255.1"
        assert not self.calls.called
        assert self.refused_set("s2", host="127.0.0.1", peer="4131") == "127.0.0.1:4131 is the peer port of s3"

    def test_taken_before(self) -> None:
        """Rows that share a port since before can be changed, and mended one after the other."""
        self.make_farm()
        row = evolve(self.row(2), client=4130)
        self.table.put(row.key, row.to_value())
        self.calls.open = {Address("127.0.0.1", 4120)}
        assert self.successResultOf(self.set("s2", zone="rack")).zone == "rack"
        assert self.successResultOf(self.set("s2", client="4120")).client == 4120

    def test_loopback(self) -> None:
        """Where servers are on several machines none is said to be on the one of whoever asks."""
        self.make_farm()
        row = evolve(self.row(3), host="10.0.0.3")
        self.table.put(row.key, row.to_value())
        self.calls.listening[Address("localhost", 4131)] = server_id(3)
        self.calls.listening[Address("localhost", 4121)] = server_id(2)
        self.calls.open = {Address("localhost", 4130), Address("localhost", 4132)}
        assert self.refused_set("s2", host="localhost") == (
            "localhost is an address that only the own machine of s2 can reach, and s3 is at 10.0.0.3"
        )
        assert self.successResultOf(self.set("s3", host="localhost")).host == "localhost"

    def test_taken_while_it_was_called(self) -> None:
        """Who takes the port while the server is called, has it."""
        self.make_farm()
        self.calls.listening[Address("127.0.0.1", 4999)] = server_id(2)

        def quicker() -> None:
            row = evolve(self.row(3), files=4999)
            self.table.put(row.key, row.to_value())

        self.calls.meanwhile = quicker
        assert self.refused(self.set("s2", peer="4999")) == "127.0.0.1:4999 is the file port of s3"
        assert self.row(2).peer == 4121

    def test_table(self) -> None:
        """A whole table is held to the same, and ports may be swapped in it."""
        self.make_farm()

        def put(*changes: tuple[str, str]) -> Deferred[int]:
            now = self.successResultOf(self.registry.read())
            rows = [server_row(row, "") for row in now.servers.values()]
            text = "\n".join((f"TABLE {len(rows)} revision={now.revision}", *rows, "END"))
            for old, new in changes:
                assert old in text
                text = text.replace(old, new, 1)
            return set_table(self.registry, text.encode(), self.calls)

        before = dict(self.table.rows)
        assert self.refused(put(("peer=4121", "peer=4999"))) == (
            "s2 is up, and its peer port would be 127.0.0.1:4999, which cannot be reached from here: refused"
        )
        assert self.refused(put(("client=4120", "client=4131"))) == "127.0.0.1:4131 is the peer port of s3"
        swapped = ("peer=4121", "peer=+"), ("peer=4131", "peer=4121"), ("peer=+", "peer=4131")
        assert self.refused(put(*swapped)).endswith("which leads to another server, s3")
        assert self.table.rows == before
        self.calls.open = {Address("127.0.0.1", 4120), Address("127.0.0.1", 4130)}
        swapped = ("client=4120", "client=+"), ("client=4130", "client=4120"), ("client=+", "client=4130")
        assert self.successResultOf(put(*swapped)) == 2
