"""The client port: watching the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.limits import Limits
from chunkfarm.links import line_watch
from chunkfarm.links.lines import error_of
from chunkfarm.membership import Standing, succession
from chunkfarm.model import Server
from chunkfarm.ports.client import watching
from chunkfarm.ports.client.watching import PROGRESS_INTERVAL
from chunkfarm.table.interface import Compacted, Delete, Event, Put
from tests.memory_table import MemoryTable
from tests.ports.client_link import ClientLink
from tests.ports.fakes import SERVER_ID, MemoryBackend

ROW = Server(id=SERVER_ID, name="alpha", host="10.0.0.1", client=1, peer=2, files=3, seniority=1)


class Counted(tuple[Standing, ...]):
    """A line of succession that counts how often it is gone through."""

    times = 0

    def __iter__(self) -> Iterator[Standing]:
        self.times += 1
        return super().__iter__()


class WrittenTests(SynchronousTestCase):
    """A change is made into lines once, however many are told of it."""

    def setUp(self) -> None:
        self.backend = MemoryBackend()
        inside: Any = self.backend
        self.written = watching.Written(inside)

    def test_once(self) -> None:
        """The second watcher is told what the first was."""
        event = Event(1, "PUT", ROW.key, ROW.to_value())
        first = self.written.lines(event, False)
        assert " role=first " in first[0]
        self.backend.rows.reverse()
        self.patch(watching, "event_lines", None)
        assert self.written.lines(Event(1, "PUT", ROW.key, ROW.to_value()), False) == first

    def test_each_its_own(self) -> None:
        """Changes that differ in anything differ in their lines."""
        told = [
            self.written.lines(event, more)
            for event in (
                Event(1, "PUT", b"farm/a", b"1"),
                Event(2, "PUT", b"farm/a", b"1"),
                Event(2, "DEL", b"farm/a", b""),
            )
            for more in (False, True)
        ]
        assert len({tuple(lines) for lines in told}) == 6

    def test_forgotten(self) -> None:
        """A long stream of changes fills no memory, and old ones are told as well."""
        self.patch(watching, "WRITTEN_BYTES_MAX", 10_000)
        for number in range(1000):
            self.written.lines(Event(number, "PUT", b"farm/a", b"1"), False)
        kept = list(self.written._kept.values())
        assert 9_900 < sum(len(line) for lines in kept for line in lines) <= 10_000
        assert kept[-1][0].startswith("EVENT 999 ")
        assert self.written.lines(Event(0, "PUT", b"farm/a", b"1"), False) == ["EVENT 0 PUT ROW key=farm/a value=1"]

    def test_many_servers(self) -> None:
        """To tell a thousand changes of rows the line of succession is gone through once, not for each."""
        servers = [evolve(ROW, id=f"{number:032x}", name=f"s{number}", seniority=number + 1) for number in range(1000)]
        line = Counted(succession(servers))
        self.patch(self.backend, "succession", lambda: line)
        told = [self.written.lines(Event(1, "PUT", one.key, one.to_value()), False)[0] for one in servers]
        assert line.times == 1
        roles = {standing.server.id: standing.role for standing in line}
        assert all(f" role={roles[one.id]} " in text for one, text in zip(servers, told, strict=True))


class WatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.link = ClientLink().auth("reader")
        table = self.link.backend.table
        assert isinstance(table, MemoryTable)
        self.table = table
        self.link.backend.state.revision = 0

    def test_rows(self) -> None:
        """A change of a server is told as its row, with the value that followers need."""
        assert self.link.say("WATCH servers/") == "OK revision=0\r\n"
        self.table.put(ROW.key, ROW.to_value())
        heard = self.link.heard()
        assert heard.startswith(f"EVENT 1 PUT SERVER id={SERVER_ID} name=alpha ")
        assert " role=first " in heard
        assert heard.endswith(f" value={ROW.to_value().decode()}\r\n")
        self.table.transact((), (Delete(ROW.key),))
        assert self.link.heard() == f"EVENT 2 DEL SERVER id={SERVER_ID}\r\n"

    def test_from(self) -> None:
        """Changes after the given revision are told at once, whole transactions marked."""
        self.table.put(b"farm/a", b"1")
        self.table.transact((), (Put(b"farm/b", b"2"), Put(b"farm/c", b"3")))
        assert self.link.say("WATCH farm/ 1") == (
            "OK revision=1\r\nEVENT 2 PUT ROW key=farm/b more=1 value=2\r\nEVENT 2 PUT ROW key=farm/c value=3\r\n"
        )

    def test_table_replaced(self) -> None:
        """Who watches from now on is served also where the table was just replaced, and told where that begins."""
        for number in range(8):
            self.table.put(b"farm/a", str(number).encode())
        self.table.compact()
        self.link.backend.state.revision = 5
        assert self.link.say("WATCH farm/ 5").startswith("ERR conflict changes before revision 9 are no longer kept")
        assert self.link.say("WATCH farm/") == "OK revision=8\r\n"
        self.table.put(b"farm/a", b"x")
        assert self.link.heard() == "EVENT 9 PUT ROW key=farm/a value=x\r\n"

    def test_secrets(self) -> None:
        """Keys, invites and secrets are for nobody to watch, with or without a prefix."""
        for prefix in ("keys/", "secret/", "invites/", "s", "f", "files", "/"):
            assert self.link.say(f"WATCH {prefix}").startswith("ERR denied "), prefix
        assert self.link.say("WATCH") == "OK revision=0\r\n"
        self.table.transact(
            (),
            (
                Put(b"secret/ca", b"s"),
                Put(b"farm/a", b"1"),
                Put(b"keys/a", b"s"),
                Put(b"farm/b", b"1"),
                Put(b"invites/a", b"s"),
            ),
        )
        assert self.link.heard() == (
            "EVENT 1 PUT ROW key=farm/a more=1 value=1\r\nEVENT 1 PUT ROW key=farm/b value=1\r\n"
        )

    def test_exports(self) -> None:
        """Which chunks an export of all names has is for servers to know: by them anybody could read every file."""
        for key in ("reader", "writer", "admin", ""):
            link = ClientLink()
            if key:
                link.auth(key)
            else:
                link.backend.peers["certificate"] = SERVER_ID
                link.transport.certificate = "certificate"
                link.say("STARTTLS")
            link.backend.state.revision = 0
            assert link.say("WATCH farm/") == "OK revision=0\r\n"
            link.backend.table.transact((), (Put(b"farm/a", b"1"), Put(b"farm/export", b"{}"), Put(b"farm/b", b"2")))
            heard = link.heard()
            assert "key=farm/a more=1" in heard and "key=farm/b value=2" in heard
            assert ("farm/export" in heard) is (key == "")

    def test_progress(self) -> None:
        """A watcher learns that time goes on, at most once a second."""
        self.link.say("WATCH")
        self.table.put(b"secret/a", b"1")
        self.table.put(b"secret/a", b"2")
        assert self.link.heard() == ""
        self.link.clock.advance(PROGRESS_INTERVAL)
        assert self.link.heard() == "EVENT 2 NONE\r\n"
        self.link.clock.advance(PROGRESS_INTERVAL)
        assert self.link.heard() == ""

    def test_unwatch(self) -> None:
        """After the OK of UNWATCH there are no events; then another watch may begin."""
        self.link.say("WATCH")
        assert self.link.say("WATCH").startswith("ERR syntax ")
        self.table.put(b"secret/a", b"1")
        assert self.link.say("UNWATCH", "UNWATCH") == "OK\r\nOK\r\n"
        self.table.put(b"farm/a", b"1")
        self.link.clock.advance(PROGRESS_INTERVAL)
        assert self.link.heard() == ""
        assert self.link.say("WATCH farm/ 1").endswith("EVENT 2 PUT ROW key=farm/a value=1\r\n")

    def test_between_answers(self) -> None:
        """Events stand between answers, never inside one."""
        self.link.backend.catalog.add("a/b", b"0123456789")
        self.link.backend.catalog.piece = 5
        self.link.say("WATCH farm/")
        write = self.link.transport.write
        self.link.transport.write = lambda data: (write(data), self.link.protocol.pauseProducing())  # type: ignore
        assert self.link.say("FETCH a/b") == "DATA 10\r\n01234"
        self.table.put(b"farm/a", b"1")
        assert self.link.heard() == ""
        self.link.protocol.resumeProducing()
        self.link.transport.write = write  # type: ignore[method-assign]
        self.link.protocol.resumeProducing()
        self.link.protocol.resumeProducing()
        assert self.link.heard() == "56789EVENT 1 PUT ROW key=farm/a value=1\r\n"

    def test_compacted(self) -> None:
        """A revision that is no longer kept is an error that says from where one can watch."""
        for _ in range(5):
            self.table.put(b"farm/a", b"1")
        self.table.compact()
        assert self.link.say("WATCH farm/ 1") == (
            "ERR conflict changes before revision 6 are no longer kept; read, then watch again\r\n"
        )
        assert self.link.say("WATCH farm/ 5") == "OK revision=5\r\n"

    def test_revision_that_has_not_been(self) -> None:
        """Nothing is lost of what has not happened: it is said that the revision is the wrong one."""
        self.table.watch = lambda prefix, from_revision: fail(Compacted(114))  # type: ignore[method-assign]
        told = self.link.say("WATCH farm/ 999999")
        assert told == (
            "ERR conflict changes before revision 114 are all that there have been, and 999999 is beyond them; "
            "read, then watch again\r\n"
        )
        # By this number a server that was told more elsewhere begins anew.
        compacted = line_watch.compacted(error_of(told.rstrip()))
        assert compacted is not None and compacted.first_revision == 114

    def test_bad_revision(self) -> None:
        """A revision that is no number is an error."""
        assert self.link.say("WATCH farm/ x").startswith("ERR syntax ")

    def test_slow_watcher(self) -> None:
        """A watcher that does not take its events is cut off with a reason."""
        self.link.say("WATCH")
        self.link.protocol.pauseProducing()
        value = b"x" * 10_000
        for _ in range(Limits().client_watch_backlog // len(value)):
            self.table.put(b"farm/a", value)
        assert not self.link.closed
        self.table.put(b"farm/a", value)
        self.table.put(b"farm/a", value)
        assert self.link.heard() == "ERR limit this watcher is too slow: read, then watch again\r\n"
        assert self.link.closed

    def test_catches_up(self) -> None:
        """A watcher that was slow for a while gets all events, in order."""
        self.link.say("WATCH")
        self.link.protocol.pauseProducing()
        for _ in range(10):
            self.table.put(b"farm/a", b"1")
        assert self.link.heard() == ""
        self.link.protocol.resumeProducing()
        assert [line.split(" ")[1] for line in self.link.heard().split("\r\n")[:-1]] == [str(n) for n in range(1, 11)]

    def test_table_closes(self) -> None:
        """When the server stops, the watcher is told, and the link ends."""
        self.link.say("WATCH")
        self.table.close()
        assert self.link.heard() == "ERR waiting this server is leaving; watch another\r\n"
        assert self.link.closed

    def test_server_leaves(self) -> None:
        """A watcher that is otherwise silent is told that the server leaves, and not just cut off."""
        self.link.say("WATCH")
        self.link.factory.finish()
        assert self.link.heard() == "ERR waiting this server is leaving; watch another\r\n"
        assert self.link.closed

    def test_link_lost(self) -> None:
        """A lost link ends its watch."""
        self.link.say("WATCH")
        self.table.put(b"secret/a", b"1")
        self.link.lose()
        self.table.put(b"farm/a", b"1")
        assert self.link.clock.getDelayedCalls() == []
        assert self.link.heard() == ""

    def test_link_lost_while_beginning(self) -> None:
        """So does one that is lost before the watch has begun."""
        waits: Deferred[object] = Deferred()
        self.table.watch = lambda prefix, revision: waits  # type: ignore
        self.link.say("WATCH")
        self.link.lose()
        assert self.link.heard() == ""
