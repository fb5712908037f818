"""Keys that are good for some names only, and keys that change while links are open."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import AuthenticationFailed
from chunkfarm.keyring import Keyring
from chunkfarm.model import Principal, digest_of
from chunkfarm.table.interface import IWatch, TableClosed
from chunkfarm.trust.seal import SealKey
from tests.memory_table import MemoryTable
from tests.ports.client_link import ClientLink
from tests.ports.fakes import OTHER_ID, SERVER_ID, MemoryBackend
from tests.ports.files_caller import Caller

ELSEWHERE = "10.0.0.99"
DIGEST = digest_of(b"x").hex()


def make_backend() -> MemoryBackend:
    """A server with three files, where the reader's and the writer's key are good for `lab/`."""
    backend = MemoryBackend()
    backend.prefixes = {"reader": "lab/", "writer": "lab/"}
    for name in ("home/a", "lab/a", "lab/b"):
        backend.catalog.add(name, b"x")
    return backend


class ClientPortTests(SynchronousTestCase):
    """On the client port."""

    def make_link(self, key: str = "writer") -> ClientLink:
        link = ClientLink(backend=make_backend())
        assert link.say(f"AUTH {key} secret").endswith("prefix=lab/\r\n")
        return link

    def test_other_names(self) -> None:
        """Every command with a name outside is denied, whether there is such a file or not."""
        link = self.make_link()
        for name in ("home/a", "home/none", "laboratory/a"):
            for line in (f"STAT {name}", f"FETCH {name}", f"EXPLAIN {name}", f"CHECK {name}", f"REMOVE {name}"):
                assert link.say(line).startswith("ERR denied "), line
            assert link.send(f"COMMIT {name} 0 4096 0\n".encode()).startswith("ERR denied "), name

    def test_own_names(self) -> None:
        """Names inside are as for everybody."""
        link = self.make_link()
        assert link.say("STAT lab/a").startswith("OK FILE name=lab/a ")
        assert link.say("FETCH lab/a") == "DATA 1\r\nx"
        assert link.say("REMOVE lab/b").startswith("OK")

    def test_files_that_can_be_lost(self) -> None:
        """STATUS names those inside, and no others."""
        link = self.make_link("reader")
        told = [
            ("lost-file", "alpha lab/a"),
            ("lost-file", "alpha home/a"),
            ("lost-file", "alpha lab/b c"),
            ("lost", "0"),
        ]
        link.backend.status = lambda: succeed(told)  # type: ignore[method-assign]
        assert link.say("STATUS").split("\r\n")[1:4] == [
            'lost-file="alpha lab/a"',
            'lost-file="alpha lab/b c"',
            "lost=0",
        ]

    def test_list(self) -> None:
        """A list of everything shows the names inside; one of another folder shows none."""
        link = self.make_link("reader")
        assert link.say("LIST").startswith("FILES 2 ")
        assert link.say("LIST la").startswith("FILES 2 ")
        assert link.say("LIST lab/b").startswith("FILES 1 ")
        assert link.say("LIST home/").startswith("FILES 0 ")

    def test_digests(self) -> None:
        """A digest says not whose it is, so no chunk is given out by it."""
        assert self.make_link("reader").say(f"GET {DIGEST}").startswith("ERR denied ")

    def test_watch(self) -> None:
        """Its own files can be watched, all files cannot."""
        for prefix in ("", "files/", "files/home/"):
            assert self.make_link("reader").say(f"WATCH {prefix}").startswith("ERR denied "), prefix
        for prefix in ("files/lab/", "files/lab/a", "servers/"):
            assert self.make_link("reader").say(f"WATCH {prefix}").startswith("OK"), prefix


class FilePortTests(SynchronousTestCase):
    """On the file port."""

    def test_other_names(self) -> None:
        """Files outside are forbidden, listings show what is inside."""
        caller = Caller(make_backend())
        assert caller.one("GET", "/lab/a", key="reader").status == 200
        for method in ("GET", "HEAD", "DELETE", "PUT"):
            assert caller.one(method, "/home/a", key="writer").status == 403, method
        listed = caller.one("GET", "/", "Accept: application/json", key="reader").text
        assert "lab/" in listed and "home" not in listed


class ChangedKeyTests(SynchronousTestCase):
    """A key that is taken away, or becomes less, while a link is open."""

    def refuse(self, key_id: str, proof: bytes) -> Deferred[Principal]:
        return fail(AuthenticationFailed("gone"))

    def test_next_command(self) -> None:
        """The next command of a link whose key was disabled is refused, and so is all that follows."""
        link = ClientLink().auth("writer")
        link.backend.confirm = self.refuse  # type: ignore[method-assign]
        assert link.say("LIST").startswith("FILES ")
        link.backend.keys_revision = 9
        for _ in range(2):
            assert link.say("LIST").startswith("ERR auth ")
        assert link.say("PING") == "OK\r\n"

    def test_another_key_changed(self) -> None:
        """A key that is still good goes on, and is looked at once."""
        link = ClientLink().auth("writer")
        link.backend.keys_revision = 9
        for _ in range(2):
            assert link.say("LIST").startswith("FILES ")
        assert link.backend.authentications == ["writer", "writer"]

    def test_less_than_before(self) -> None:
        """A key that may only read now writes no more."""
        link = ClientLink().auth("writer")
        link.backend.keys["writer"] = "read"
        link.backend.keys_revision = 9
        assert link.say("REMOVE lab/a").startswith("ERR denied ")

    def test_watch(self) -> None:
        """A watch ends when its key is disabled, without waiting for a command."""
        link = ClientLink().auth("reader")
        link.say("WATCH")
        link.backend.confirm = self.refuse  # type: ignore[method-assign]
        link.backend.keys_revision = 9
        link.factory.keys_changed()
        assert "ERR auth the key of this link is no longer good" in link.heard()
        assert link.closed

    def test_watch_of_another_key(self) -> None:
        """A watch does not outlive the key that allowed it: AUTH ends it, good or wrong, and so does STARTTLS."""
        for line in ("AUTH admin wrong", "AUTH writer secret", "STARTTLS"):
            link = ClientLink().auth("reader")
            table = link.backend.table
            assert isinstance(table, MemoryTable)
            link.say("WATCH farm/")
            table.put(b"farm/a", b"1")
            assert link.heard().startswith("EVENT 1 PUT ")
            link.say(line)
            link.clock.advance(1)
            link.heard()
            table.put(b"farm/a", b"2")
            assert link.heard() == "", line
            # And another one may be begun.
            link.auth("reader")
            assert link.say("WATCH farm/ 1").startswith("OK revision=1\r\nEVENT 2 PUT "), line

    def test_watch_that_is_beginning(self) -> None:
        """A key that is disabled while its watch is still being prepared is noticed too."""
        link = ClientLink().auth("reader")
        table: Any = link.backend.table
        begun = self.successResultOf(table.watch(b"farm/", 0))
        waits: Deferred[IWatch] = Deferred()
        table.watch = lambda prefix, revision: waits
        assert link.say("WATCH farm/") == ""
        link.backend.confirm = self.refuse  # type: ignore[method-assign]
        link.backend.keys_revision = 9
        link.factory.keys_changed()
        waits.callback(begun)
        assert link.heard() == "ERR auth the key of this link is no longer good\r\n"
        table.put(b"farm/a", b"1")
        assert link.heard() == ""
        self.failureResultOf(begun.next(), TableClosed)

    def test_file_port(self) -> None:
        """A connection of the file port does not go on with what it remembered."""
        caller = Caller(make_backend())
        assert caller.one("GET", "/lab/a", key="reader").status == 200
        caller.backend.keys.pop("reader")
        caller.backend.keys_revision = 9
        assert caller.one("GET", "/lab/a", key="reader").status == 401


class KeyCommandTests(SynchronousTestCase):
    """KEY and KEYS."""

    def make_link(self, key: str = "admin", host: str = "127.0.0.1") -> ClientLink:
        link = ClientLink(host)
        seal = SealKey.create()
        link.backend.keyring = Keyring(MemoryTable(), lambda: seal, lambda: 0)
        return link.auth(key) if key else link

    def test_from_making_to_removing(self) -> None:
        """A key is made, shown without its secret, disabled, enabled and removed."""
        link = self.make_link()
        link.say("KEY add admin")
        made = dict(word.split("=") for word in link.say("KEY add write lab/ the%20lab").split()[1:])
        listed = link.say("KEYS")
        assert f"KEY id={made['id']} role=write prefix=lab/ " in listed and "the lab" in listed
        assert made["secret"] not in listed
        assert "disabled=yes" in link.say(f"KEY disable {made['id']}")
        assert "disabled=no" in link.say(f"KEY enable {made['id']}")
        link.say(f"KEY remove {made['id']}")
        assert made["id"] not in link.say("KEYS")

    def test_misuse(self) -> None:
        """What cannot be meant is refused with what was expected."""
        link = self.make_link()
        for line in ("KEY list all", "KEY disable", "KEY disable a b", "KEY add owner"):
            assert link.say(line).startswith("ERR syntax "), line

    def test_who_may(self) -> None:
        """An admin may, and a master by its certificate; no other server, and no other key."""
        assert self.make_link("writer").say("KEYS").startswith("ERR denied ")
        for server, told in ((SERVER_ID, "KEYS 0"), (OTHER_ID, "ERR denied ")):
            link = self.make_link("", ELSEWHERE)
            link.backend.peers["certificate"] = server
            link.transport.certificate = "certificate"
            assert link.say("STARTTLS") == "OK\r\n"
            assert link.say("KEYS").startswith(told)

    def test_audit(self) -> None:
        """The log says who did what, and no secret."""
        link = self.make_link()
        with capturedLogs() as events:
            link.say("SET alpha weight=2", "KEY add read", "REMOVE none/such", "REMOVE home/a", "LIST")
        told = [event for event in events if event["log_namespace"] == "chunkfarm.audit"]
        assert [event["change"] for event in told] == ["SET alpha weight=2", "KEY add read"]
        assert {(event["principal"], event["role"], event["address"]) for event in told} == {
            ("admin", "admin", "127.0.0.1")
        }
        assert {event["log_level"] for event in told} == {LogLevel.info}

    def test_audit_of_odd_words(self) -> None:
        """What an admin names cannot make up lines of the log, nor write to the terminal of whoever reads it."""
        link = self.make_link()
        with capturedLogs() as events:
            assert link.say("KEY add read lab/ a%0Ab%1B[2J%E2%80%A8c").startswith("ERR syntax ")
            link.say("KEY add read lab/%20%25 me", "SET alpha zone=%C3%A9")
        told = [event["change"] for event in events if event["log_namespace"] == "chunkfarm.audit"]
        assert told == ["KEY add read lab/%20%25 me", "SET alpha zone=\u00e9"]
