"""The server table put as a whole: what SERVERS shows, edited, and given to TABLE."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import FarmError, InvalidRequest, LimitExceeded, NotFound, PreconditionFailed
from chunkfarm.links.rows import server_row
from chunkfarm.membership import in_order, succession
from chunkfarm.model import FarmOptions, Server
from chunkfarm.settings import changed_table, read_table
from chunkfarm.table.registry import ROWS_A_TRANSACTION, Registered, Registry
from tests.builders import make_server, server_id
from tests.memory_table import MemoryTable


def show(servers: dict[str, Server], revision: int) -> str:
    """What SERVERS answers."""
    roles = {standing.server.id: standing.role for standing in succession(servers.values())}
    rows = [server_row(server, roles[server.id]) for server in in_order(servers.values())]
    return "".join(f"{line}\r\n" for line in (f"TABLE {len(rows)} revision={revision}", *rows, "END"))


class TableBlockTests(SynchronousTestCase):
    def make_registry(self, count: int = 3) -> Registry:
        self.table = MemoryTable()
        registry = Registry(self.table, lambda: 5_000)
        self.successResultOf(registry.found(make_server(1), FarmOptions(name="lab"), ()))
        for number in range(2, count + 1):
            self.successResultOf(registry.join(make_server(number)))
        self.registry = registry
        return registry

    def now(self) -> Registered:
        registered = self.successResultOf(self.registry.read())
        assert isinstance(registered, Registered)
        return registered

    def shown(self) -> str:
        now = self.now()
        return show(now.servers, now.revision)

    def put(self, text: str) -> Deferred[int]:
        """TABLE, as the server does it."""
        block = read_table(text.encode())
        return self.registry.set_servers(
            lambda before: changed_table(block, before.servers, before.revisions, before.revision)
        )

    def refused(self, kind: type[FarmError], text: str) -> str:
        """Why a table is not taken; nothing has changed."""
        before = dict(self.table.rows)
        try:
            error = self.failureResultOf(self.put(text), kind).value
        except kind as raised:
            error = raised
        assert self.table.rows == before
        assert isinstance(error, FarmError)
        return error.sentence

    def edit(self, change: Callable[[str], str]) -> str:
        text = self.shown()
        edited = change(text)
        assert edited != text
        return edited

    def test_round_trip(self) -> None:
        """The table as it was shown changes nothing, not even the revision."""
        self.make_registry()
        revision = self.table.revision
        assert self.successResultOf(self.put(self.shown())) == 0
        assert self.successResultOf(self.put(self.shown().replace("\r\n", "\n") + "\n")) == 0
        assert self.table.revision == revision

    def test_edited(self) -> None:
        """Several rows are changed in one transaction, and config.ini's generation moves once."""
        self.make_registry()
        before = self.now()
        text = self.edit(lambda text: text.replace("name=s2", "name=left").replace("name=s3", "name=right"))
        text = text.replace("weight=10 zone=zone3", "weight=7 zone=rack")
        transactions = len(self.table.transactions)
        assert self.successResultOf(self.put(text)) == 2
        after = self.now()
        assert len(self.table.transactions) == transactions + 1
        assert after.generation == before.generation + 1
        assert [after.servers[server_id(number)].name for number in (1, 2, 3)] == ["s1", "left", "right"]
        assert after.servers[server_id(3)].weight == 7
        assert after.servers[server_id(1)] == before.servers[server_id(1)]

    def test_master_is_not_shown_and_can_be_set(self) -> None:
        """What is not shown stays as it is unless it is added."""
        self.make_registry()
        assert self.successResultOf(self.put(self.edit(lambda text: text.replace("name=s2", "name=s2 master=no")))) == 1
        assert not self.now().servers[server_id(2)].master
        assert self.successResultOf(self.put(self.edit(lambda text: text.replace("zone=zone2", "zone=rack")))) == 1
        assert not self.now().servers[server_id(2)].master

    def test_names_may_be_swapped(self) -> None:
        """The names must differ in the end, not on the way."""
        self.make_registry()
        swap = {"name=s1": "name=s2", "name=s2": "name=s1"}
        text = "\n".join(
            next((line.replace(old, new) for old, new in swap.items() if f"{old} " in line), line)
            for line in self.shown().splitlines()
        )
        assert self.successResultOf(self.put(text)) == 2
        assert self.now().servers[server_id(1)].name == "s2"
        sentence = self.refused(InvalidRequest, self.edit(lambda text: text.replace("name=s3", "name=s1")))
        assert sentence == "2 servers would have the name s1"

    def test_changed_meanwhile(self) -> None:
        """A table that somebody else has changed is not put over the change."""
        self.make_registry()
        text = self.edit(lambda text: text.replace("name=s2", "name=left"))
        self.successResultOf(self.registry.measure({server_id(3): {"free": 17}}))
        sentence = self.refused(PreconditionFailed, text)
        assert sentence.startswith("the table has changed since revision ") and "(s3)" in sentence
        # One that came meanwhile, too.
        text = self.edit(lambda text: text.replace("name=s2", "name=left"))
        self.successResultOf(self.registry.join(make_server(4)))
        assert "(s4)" in self.refused(PreconditionFailed, text)

    def test_files_do_not_count(self) -> None:
        """Changes of files, which a busy farm makes all the time, are not changes of this table."""
        self.make_registry()
        text = self.edit(lambda text: text.replace("name=s2", "name=left"))
        self.table.put(b"files/home/a", b"{}")
        assert self.successResultOf(self.put(text)) == 1

    def test_changed_in_the_last_moment(self) -> None:
        """Nor over one that is made between the look and the commit, in whatever row."""
        self.make_registry()
        text = self.edit(lambda text: text.replace("zone=zone2", "zone=rack"))

        def quicker(operations: object) -> None:
            self.table.before_transact = lambda operations: None
            row = self.now().servers[server_id(3)]
            self.table.put(row.key, evolve(row, note="quick").to_value())

        self.table.before_transact = quicker
        self.failureResultOf(self.put(text), PreconditionFailed)
        assert self.now().servers[server_id(2)].zone == "zone2"

    def test_of_the_future(self) -> None:
        """A revision that has not been is no way round the comparison."""
        self.make_registry()
        now = self.table.revision
        text = self.edit(lambda text: text.replace(f"revision={now}", f"revision={now + 1}"))
        assert "has not been at" in self.refused(PreconditionFailed, text)

    def test_not_whole(self) -> None:
        """A server that is left out, or that is not there, is an error."""
        self.make_registry()
        lines = self.shown().replace("TABLE 3", "TABLE 2").splitlines()
        assert self.refused(InvalidRequest, "\n".join(lines[:3] + lines[4:])).startswith("s3 is left out")
        self.refused(NotFound, self.edit(lambda text: text.replace(server_id(3), "f" * 32)))
        self.refused(InvalidRequest, self.edit(lambda text: text.replace(server_id(3), server_id(2))))

    def test_fields_that_cannot_be_set(self) -> None:
        """What a person cannot set is an error, not silently dropped; the role is not looked at."""
        self.make_registry()
        sentence = self.refused(InvalidRequest, self.edit(lambda text: text.replace("state=up", "state=down", 1)))
        assert sentence == "state of s1 cannot be set; it is up"
        for old, new in (
            ("seniority=1", "seniority=9"),
            ("free=0", "free=9"),
            ("weight=", "wieght="),
            ("client=", "client=x"),
            ("name=s1", "name=S1"),
        ):
            self.refused(InvalidRequest, self.edit(lambda text, old=old, new=new: text.replace(old, new, 1)))  # type: ignore[misc]
        assert self.successResultOf(self.put(self.edit(lambda text: text.replace("role=first", "role=server")))) == 0

    def test_malformed(self) -> None:
        """What is not a table is an error that says what was expected."""
        self.make_registry()
        text = self.shown()
        for wrong in (
            "",
            "\n\n",
            "END",
            "TABLE",
            "TABLE 0 revision=0",
            text.replace("TABLE 3", "TABLE 4"),
            text.replace("TABLE 3", "TABLE 3 4"),
            text.replace("revision=", "revision=-"),
            text.replace("END", ""),
            text + "PING\n",
            text.replace("SERVER ", "SURFER "),
            text.replace("id=", "ID="),
            text.replace("name=s1", "name=%zz"),
            text.replace("name=s1", "name=s1 name=s4"),
            text.replace("weight=10", "weight 9"),
            "\x00",
        ):
            self.refused(InvalidRequest, wrong)

    def test_too_many(self) -> None:
        """More rows than fit one transaction are refused, not done in part."""
        self.make_registry(ROWS_A_TRANSACTION + 1)
        sentence = self.refused(LimitExceeded, self.edit(lambda text: text.replace("weight=10", "weight=9")))
        assert sentence == f"{ROWS_A_TRANSACTION + 1} servers are more than can be changed in one step"
        text = self.edit(lambda text: text.replace("zone=zone7", "zone=rack"))
        assert self.successResultOf(self.put(text)) == 1

    @settings(deadline=None, max_examples=60)
    @given(st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        """Whatever is put, what comes back is an error with a sentence."""
        try:
            read_table(data)
        except FarmError as error:
            assert error.sentence
