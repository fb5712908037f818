"""`chunkfarm servers`, `who`, `status`, `set`, `watch`; finding a server and a key; exit statuses."""

from __future__ import annotations

import json
import os

from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from chunkfarm.cli.surroundings import check_new_file
from tests.cli.world import World
from tests.ports.fakes import SERVER_ID


class TableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(self.mktemp())

    def test_servers(self) -> None:
        """The server table as people read it, and as JSON."""
        lines = self.world.run("servers").stdout.splitlines()
        assert lines[0].split() == ["NAME", "STATE", "ROLE", "ADDRESS", "USED", "FREE", "ZONE", "JOINED", "VERSION"]
        assert lines[1].split()[:4] == ["alpha", "up", "first", "10.0.0.1:4100"]
        table = json.loads(self.world.run("servers", "--json").stdout)
        assert table[0]["id"] == SERVER_ID
        assert table[0]["client"] == 4100

    def test_whole_table(self) -> None:
        """The table can be printed as the farm writes it, edited, and put back in one step."""
        raw = self.world.run("servers", "--raw").stdout
        assert raw.startswith("TABLE 2 revision=7\nSERVER id=") and raw.endswith("\nEND\n")
        assert self.world.run("servers", "--put", "-", input=raw.encode()).stdout == "0 rows changed\n"
        edited = self.world.directory / "table"
        edited.write_text(raw.replace("name=beta", "name=left"))
        assert self.world.run("servers", "--put", str(edited)).stdout == "1 row changed\n"
        assert "left" in self.world.run("servers").stdout
        result = self.world.run("servers", "--put", "-", input=raw.replace("state=up", "state=down").encode())
        assert result.exit_code == exits.FAILED
        assert result.stderr == "chunkfarm: state of alpha cannot be set; it is up\n"

    def test_who(self) -> None:
        """Who leads, who is next, and why."""
        lines = self.world.run("who").stdout.splitlines()
        assert lines[0] == "alpha leads the farm."
        assert lines[2].split(maxsplit=4) == ["1", "alpha", "first", "up", "the most senior live master"]
        told = json.loads(self.world.run("who", "--json").stdout)
        assert [(row["rank"], row["leads"]) for row in told] == [(1, True), (2, False)]

    def test_how_servers_were(self) -> None:
        """Where no change can be made, nobody can note who went down: what is shown is said to be old."""
        told = [("state", "readonly"), ("waits-for", "10.0.0.2:4101 refused"), ("waits-for", "10.0.0.3:4101 timed out")]
        backend = self.world.servers["alpha"].backend
        backend.status = lambda: succeed(told)  # type: ignore[method-assign]
        for command in (("who",), ("servers",), ("servers", "--raw"), ("who", "--json")):
            backend.state.phase = "serving"
            sure = self.world.run(*command)
            backend.state.phase = "readonly"
            doubtful = self.world.run(*command)
            assert (sure.stderr, doubtful.stdout, doubtful.exit_code) == ("", sure.stdout, 0)
            assert doubtful.stderr == (
                f"chunkfarm: alpha is readonly: this is how things stood at revision {backend.state.revision}, and a "
                "server that is called up here may be down; "
                "it waits for 10.0.0.2:4101 refused, 10.0.0.3:4101 timed out\n"
            )

    def test_status(self) -> None:
        """What STATUS tells."""
        assert self.world.run("status").stdout == "table copies             2\nunder-replicated chunks  0\n"
        assert json.loads(self.world.run("status", "--json").stdout)["table copies"] == 2

    def test_status_json(self) -> None:
        """Numbers are numbers, a server called 7 is not, and nothing is lost of what is there several times."""
        told = [("name", "7"), ("term", "7"), ("waits-for", "a:1 refused"), ("waits-for", "b:1 refused"), ("cure", "x")]
        self.world.servers["alpha"].backend.status = lambda: succeed(told)  # type: ignore[method-assign]
        assert json.loads(self.world.run("status", "--json").stdout) == {
            "name": "7",
            "term": 7,
            "waits-for": ["a:1 refused", "b:1 refused"],
            "cure": ["x"],
        }

    def test_what_can_be_lost(self) -> None:
        """The servers that have all copies of something are a table below the rest, and a list in JSON."""
        told = [
            ("can-be-lost", "chunks with one server, and more with two"),
            ("lost-with", "gamma chunks=1 bytes=5"),
            ("lost-with", "alpha,beta chunks=20 bytes=2097152 files=7+"),
            ("lost-file", "alpha,beta lab/a b"),
            ("lost-file", "alpha,beta lab/c"),
        ]
        self.world.servers["alpha"].backend.status = lambda: succeed(told)  # type: ignore[method-assign]
        assert self.world.run("status").stdout.splitlines() == [
            "can-be-lost  chunks with one server, and more with two",
            "",
            "LOST WITH       CHUNKS     SIZE      FILES  SUCH AS",
            "gamma                1      5 B  not known",
            "alpha and beta      20  2.0 MiB  7 or more  lab/a b, lab/c",
        ]
        assert json.loads(self.world.run("status", "--json").stdout)["lost-with"] == [
            {"servers": ["gamma"], "chunks": 1, "bytes": 5},
            {
                "servers": ["alpha", "beta"],
                "chunks": 20,
                "bytes": 2097152,
                "files": 7,
                "exactly": False,
                "names": ["lab/a b", "lab/c"],
            },
        ]

    def test_set(self) -> None:
        """Fields of a server can be changed, words with spaces too."""
        result = self.world.run("set", "beta", "zone=rack 1")
        assert result.exit_code == 0
        assert "zone                 rack 1\n" in result.stdout
        assert self.world.run("set", "beta", "zone").exit_code == exits.USAGE
        assert self.world.run("set", "gamma", "zone=x").exit_code == exits.NOT_FOUND

    def test_set_json(self) -> None:
        """The same for programs, numbers as numbers."""
        told = json.loads(self.world.run("set", "farm", "replicas=2", "--json").stdout)
        assert told["replicas"] == 2

    def test_terminal_tricks(self) -> None:
        """What a server says cannot move the cursor of a terminal."""
        self.world.catalog.add("a/\u202eb", b"")
        assert "\u202e" not in self.world.run("ls").stdout

    def change(self, key: bytes, value: bytes) -> None:
        self.world.table.put(key, value)

    def test_watch(self) -> None:
        """Changes are shown as they happen, and a server's death loses none of them."""
        beta = self.world.servers["beta"]
        self.world.on_idle = [
            lambda: None,
            lambda: self.change(b"farm/a", b'{"x":1}'),
            self.world.servers["alpha"].die,
            lambda: self.change(b"farm/b", b"2"),
            *[lambda: self.world.clock.advance(0.5)] * 3,
            beta.die,
        ]
        for server in self.world.servers.values():
            server.backend.state.revision = 0
        result = self.world.run("--timeout", "3", "watch", "--json")
        assert [json.loads(line) for line in result.stdout.splitlines()] == [
            {"revision": 1, "kind": "PUT", "key": "farm/a", "value": {"x": 1}},
            {"revision": 2, "kind": "PUT", "key": "farm/b", "value": 2},
        ]
        assert result.exit_code == exits.NOBODY_ANSWERED

    def test_numbers(self) -> None:
        """Programs get every option of the farm that is a number as one; durations in seconds."""
        told = json.loads(self.world.run("set", "farm", "replicas=3", "--json").stdout)
        numbers = {name: value for name, value in told.items() if not isinstance(value, str)}
        assert numbers == {
            "chunksize": 4096,
            "replicas": 3,
            "master_grace": 10,
            "repair_after": 600,
            "forget_after": 604800,
            "collect_grace": 86400,
        }

    def test_watch_secrets(self) -> None:
        """What may not be watched is refused."""
        assert self.world.run("watch", "keys/").exit_code == exits.NOT_ALLOWED

    def test_watch_what_is_not_there(self) -> None:
        """A prefix that nothing begins with is a mistake in usage; nobody is asked for it."""
        for prefix in ("nosuch/", "servers", "lab/a"):
            result = self.world.run("watch", prefix)
            assert result.exit_code == exits.USAGE, prefix
            assert "servers/, farm/ or files/" in result.stderr
        assert self.world.dialled == []


class FindingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(self.mktemp())

    def test_first_server(self) -> None:
        """The first listed server that answers is asked."""
        self.world.run("who")
        assert self.world.dialled == ["alpha"]

    def test_next_server(self) -> None:
        """A server that refuses, or does not serve yet, is passed over."""
        self.world.servers["alpha"].refuses = True
        assert self.world.run("who").exit_code == 0
        self.world.servers["alpha"].refuses = False
        self.world.servers["alpha"].backend.state.phase = "starting"
        assert self.world.run("who").exit_code == 0
        assert self.world.dialled == ["alpha", "beta"] * 2

    def test_down_servers_last(self) -> None:
        """Servers that are listed as down are tried last."""
        text = self.world.config.read_text()
        self.world.config.write_text(text.replace(f"up {SERVER_ID}", f"down {SERVER_ID}"))
        self.world.run("who")
        assert self.world.dialled == ["beta"]

    def test_nobody(self) -> None:
        """When nobody answers, the command says whom it asked and what came back, after the timeout."""
        for server in self.world.servers.values():
            server.refuses = True
        result = self.world.run("--timeout", "5", "who")
        assert result.exit_code == exits.NOBODY_ANSWERED
        assert result.stderr == (
            "chunkfarm: nobody answered within 5 s: alpha (10.0.0.1:4100): refused; beta (10.0.0.2:4100): refused\n"
        )
        assert 5 <= self.world.clock.seconds() < 8

    def test_no_servers(self) -> None:
        """A config without servers is not waited on."""
        text = self.world.config.read_text()
        self.world.config.write_text(
            "\n".join(line for line in text.splitlines() if not line.startswith(("alpha", "beta")))
        )
        (self.world.directory / "data" / "admin.key").unlink()
        result = self.world.run("who")
        assert result.exit_code == exits.NOBODY_ANSWERED
        assert "lists no servers" in result.stderr

    def test_no_config(self) -> None:
        """A config that is not there, or broken, is one sentence."""
        self.world.config.write_text("[farm]\ncolour = blue\n")
        result = self.world.run("who")
        assert result.exit_code == exits.FAILED
        assert result.stderr.startswith("chunkfarm: ") and result.stderr.count("\n") == 1
        self.world.config.unlink()
        result = self.world.run("who")
        assert result.exit_code == exits.FAILED
        assert result.stderr.startswith("chunkfarm: ") and result.stderr.count("\n") == 1

    def test_wrong_key(self) -> None:
        """A wrong key is told at once, and is not tried elsewhere."""
        path = self.world.directory / "key"
        self.world.write_key(path, "stranger")
        result = self.world.run("--key", str(path), "who")
        assert result.exit_code == exits.NOT_ALLOWED
        assert self.world.dialled == ["alpha"]

    def test_not_allowed(self) -> None:
        """What the key does not allow is told as such."""
        path = self.world.directory / "key"
        self.world.write_key(path, "reader")
        assert self.world.run("--key", str(path), "rm", "a/b").exit_code == exits.NOT_ALLOWED

    def test_key_places(self) -> None:
        """The key is looked for where one says, then in the data directory, beside the config, and at home."""
        keys = ["--key", str(self.world.directory / "key")]
        self.world.write_key(self.world.directory / "key", "reader")
        self.world.write_key(self.world.directory / "variable", "writer")
        (self.world.home / ".config" / "chunkfarm").mkdir(parents=True)
        self.world.write_key(self.world.home / ".config" / "chunkfarm" / "key", "writer")
        self.world.write_key(self.world.directory / "admin.key", "reader")
        self.world.environment["CHUNKFARM_KEY_FILE"] = str(self.world.directory / "variable")
        shown = self.world.servers["alpha"].backend.authentications
        self.world.run(*keys, "who")
        self.world.run("who")
        del self.world.environment["CHUNKFARM_KEY_FILE"]
        self.world.run("who")
        (self.world.directory / "data" / "admin.key").unlink()
        self.world.run("who")
        (self.world.directory / "admin.key").unlink()
        self.world.run("who")
        assert shown == ["reader", "writer", "admin", "reader", "writer"]

    def test_no_key(self) -> None:
        """Without any key the command says where it looked."""
        (self.world.directory / "data" / "admin.key").unlink()
        result = self.world.run("who")
        assert result.exit_code == exits.NOT_ALLOWED
        assert "there is no key to show" in result.stderr

    def test_open_key(self) -> None:
        """A key file that others may read is refused."""
        os.chmod(self.world.directory / "data" / "admin.key", 0o644)
        result = self.world.run("who")
        assert result.exit_code == exits.NOT_ALLOWED
        assert self.world.dialled == []

    def test_words_that_are_no_text(self) -> None:
        """A word that is not UTF-8 gets a sentence like any other mistake, and changes nothing."""
        word = os.fsdecode(b"a\xff")
        for arguments, status in (
            (("ls", word), exits.FAILED),
            (("check", "--quick", word), exits.FAILED),
            (("set", "farm", f"name={word}"), exits.FAILED),
            (("drain", word), exits.FAILED),
            (("forget", word, "--yes"), exits.FAILED),
            (("takeover", "--farm", word), exits.FAILED),
            (("key", "add", "--role", "read", "--label", word), exits.FAILED),
            (("watch", f"files/{word}"), exits.USAGE),
            (("stat", f"home/{word}"), exits.USAGE),
        ):
            result = self.world.run(*arguments)
            assert isinstance(result.exception, SystemExit) and result.exit_code == status, arguments
            assert result.stderr.splitlines()[-1].endswith(("is UTF-8 text", "is not UTF-8", "is UTF-8"))

    def test_a_prefix_that_says_nothing(self) -> None:
        """A key for names that begin with a dash, as none does, does not become one for all names."""
        result = self.world.run("key", "add", "--role", "read", "--prefix", "-")
        assert result.exit_code == exits.USAGE and self.world.dialled == []

    def test_nowhere_to_write(self) -> None:
        """A key or a code that could not be kept is not made; the farm is not even asked."""
        (self.world.directory / "there").write_text("mine")
        for command in (("key", "add", "--role", "read"), ("invite",)):
            result = self.world.run(*command, "--out", "none/secret")
            assert result.exit_code == exits.FAILED, result.output
            assert result.stderr == "chunkfarm: cannot write none/secret: No such file or directory\n"
            assert self.world.run(*command, "--out", "there").exit_code == exits.USAGE
        assert self.world.dialled == []
        before = sorted(os.listdir(self.world.directory))
        check_new_file(str(self.world.directory / "code"))
        assert sorted(os.listdir(self.world.directory)) == before, "looking leaves nothing behind"

    def test_usage(self) -> None:
        """A mistake in usage has an exit status of its own."""
        assert self.world.run("fly").exit_code == exits.USAGE
        assert self.world.run("put").exit_code == exits.USAGE
        for timeout in ("-1", "nan", "inf"):
            # With what is no number of seconds it would be waited for ever.
            assert self.world.run("--timeout", timeout, "who").exit_code == exits.USAGE, timeout
