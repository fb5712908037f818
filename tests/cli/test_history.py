"""`chunkfarm history`."""

from __future__ import annotations

import json
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from chunkfarm.cli.history import _WORDS, _checked, read_since
from chunkfarm.links.lines import NotUnderstood
from chunkfarm.model import parse_timestamp
from chunkfarm.ports.client.commands import COMMANDS
from chunkfarm.timeline import Kind, Note
from tests.cli.world import World
from tests.ports.fakes import NOW, OTHER_ID, SERVER_ID, memory_chronicle

IDS = {"alpha": SERVER_ID, "beta": OTHER_ID}


class HistoryTests(SynchronousTestCase):
    def make(self, **ahead: int) -> World:
        """Two servers, whose clocks are so many ms ahead of this machine's; it is NOW."""
        world = World(self.mktemp())
        world.now_ms = NOW
        for name, server in world.servers.items():
            server.backend.state.server_id = IDS[name]
            server.backend.now = NOW + ahead.get(name, 0)
            server.backend.chronicle = memory_chronicle(lambda backend=server.backend: backend.now)  # type: ignore[misc]
        return world

    def note(
        self, world: World, by: str, kind: Kind, of: str, *, ago: float = 0, mark: str = "", because: str = ""
    ) -> None:
        """That server notes something so many seconds ago."""
        backend = world.servers[by].backend
        now, backend.now = backend.now, backend.now - round(1000 * ago)
        term = 3 if kind is Kind.LEADS else 0
        backend.chronicle.note(Note(kind=kind, server=IDS[of], name=of, mark=mark, term=term, because=because))
        backend.now = now

    def shown(self, world: World, *arguments: str) -> list[list[str]]:
        """The lines of the table without its head, in words."""
        result = world.run("history", *arguments)
        assert result.exit_code == 0, result.output
        return [line.split() for line in result.stdout.splitlines()[1:]]

    def test_one_line_out_of_two(self) -> None:
        """What both saw stands there once, in the order in which it was, and says who saw it."""
        world = self.make()
        self.note(world, "alpha", Kind.STARTED, "alpha", ago=60)
        for by in ("alpha", "beta"):
            self.note(world, by, Kind.DOWN, "beta", ago=30, mark="1000", because="no report for 5 s")
        self.note(world, "beta", Kind.STARTED, "beta", ago=45)
        assert self.shown(world) == [
            ["2026-11-22", "09:59:00.123", "alpha", "was", "started", "alpha"],
            ["2026-11-22", "09:59:15.123", "beta", "was", "started", "beta"],
            ["2026-11-22", "09:59:30.123", "beta", "went", "down", "no", "report", "for", "5", "s", "all", "2"],
        ]

    def test_clocks_that_differ(self) -> None:
        """Times are corrected by how far each clock is off, so that the order is the true one; and that is said."""
        world = self.make(beta=3_600_000)
        self.note(world, "beta", Kind.LEADS, "beta", ago=20, mark="3", because="alpha was silent")
        self.note(world, "alpha", Kind.LEADS, "beta", ago=19.5, mark="3")
        self.note(world, "alpha", Kind.STARTED, "alpha", ago=10)
        result = world.run("history")
        lines = result.stdout.splitlines()
        assert lines[1].split() == [
            "2026-11-22",
            "09:59:40.123",
            "beta",
            "leads,",
            "term",
            "3",
            "alpha",
            "was",
            "silent",
            "all",
            "2",
        ]
        assert "was started" in lines[2]
        assert "beta's clock is 3600.0 s ahead of this machine's" in result.stderr
        assert "alpha's" not in result.stderr

    def test_who_leads_knows_since_when(self) -> None:
        """Who heard of it much later does not move it, nor does one of three whose clock was wrong then."""
        world = self.make()
        self.note(world, "alpha", Kind.LEADS, "alpha", ago=100, mark="3", because="it alone votes")
        self.note(world, "beta", Kind.LEADS, "alpha", ago=120, mark="3")
        (line,) = self.shown(world)
        assert line[:2] == ["2026-11-22", "09:58:20.123"]

    def test_things_of_one_kind(self) -> None:
        """Two starts of one server are two, and so are the same words of two servers."""
        world = self.make()
        for ago in (30, 20):
            self.note(world, "alpha", Kind.STARTED, "alpha", ago=ago)
        self.note(world, "beta", Kind.STARTED, "beta", ago=20)
        assert len(self.shown(world)) == 3

    def test_who_did_not_answer(self) -> None:
        """The rest is shown, with a word on who is missing."""
        world = self.make()
        self.note(world, "alpha", Kind.STARTED, "alpha")
        world.servers["beta"].refuses = True
        result = world.run("history")
        assert result.exit_code == 0
        assert "was started" in result.stdout
        assert result.stderr == "chunkfarm: without what beta (10.0.0.2:4100) saw: refused\n"

    def test_nobody_answers(self) -> None:
        """Exit status 5, with all reasons; 4 if it is the key."""
        world = self.make()
        for server in world.servers.values():
            server.refuses = True
        result = world.run("history")
        assert result.exit_code == exits.NOBODY_ANSWERED
        assert "alpha (10.0.0.1:4100): refused; beta (10.0.0.2:4100): refused" in result.stderr
        world = self.make()
        for server in world.servers.values():
            server.backend.keys.clear()
        result = world.run("history")
        assert result.exit_code == exits.NOT_ALLOWED, result.output

    def test_one_hangs(self) -> None:
        """A server that takes the question and never answers is waited for no longer than --timeout."""
        world = self.make()
        self.note(world, "alpha", Kind.STARTED, "alpha")
        world.servers["beta"].backend.authenticate = lambda key_id, secret: Deferred()  # type: ignore[method-assign]
        result = world.run("--timeout", "3", "history")
        assert result.exit_code == 0
        assert "beta (10.0.0.2:4100) saw: no answer within 3 s" in result.stderr

    def test_one_waits(self) -> None:
        """A server that waits for the others has no table to show, but tells what it saw."""
        world = self.make()
        self.note(world, "beta", Kind.WAITING, "beta")
        world.servers["alpha"].refuses = True
        world.servers["beta"].backend.state.phase = "waiting"
        assert [line[3:] for line in self.shown(world)] == [["waits", "for", "others", "beta"]]

    def test_servers_that_no_list_names(self) -> None:
        """A config.ini that is old does not list all: the servers know each other."""
        world = self.make()
        text = world.config.read_text()
        world.config.write_text("".join(line for line in text.splitlines(True) if not line.startswith("beta")))
        self.note(world, "beta", Kind.STARTED, "beta")
        assert len(self.shown(world)) == 1
        assert world.dialled == ["alpha", "beta"]

    def test_since(self) -> None:
        """Only what was since then; what one server noted late is not taken for news."""
        world = self.make()
        for by, ago in (("alpha", 100), ("beta", 5)):
            self.note(world, by, Kind.DOWN, "beta", ago=ago, mark="1000")
        self.note(world, "alpha", Kind.STARTED, "alpha", ago=10)
        assert [line[2:5] for line in self.shown(world, "--since", "30s")] == [["alpha", "was", "started"]]
        assert len(self.shown(world, "--since", "2026-11-22T09:58")) == 2
        assert world.run("history", "--since", "soon").exit_code == exits.USAGE

    def test_many_notes(self) -> None:
        """More than one answer holds."""
        world = self.make()
        for _ in range(1001):
            self.note(world, "alpha", Kind.SERVING, "alpha")
        assert len(self.shown(world)) == 1001

    def test_json(self) -> None:
        """The same for programs, with the clocks, and who did not answer."""
        world = self.make(alpha=-250)
        self.note(world, "alpha", Kind.LEADS, "alpha", ago=1, mark="3", because="it alone votes")
        world.servers["beta"].refuses = True
        told = json.loads(world.run("history", "--json").stdout)
        assert told == {
            "events": [
                {
                    "time": "2026-11-22T09:59:59.123Z",
                    "kind": "leads",
                    "server": SERVER_ID,
                    "name": "alpha",
                    "term": 3,
                    "because": "it alone votes",
                    "seen_by": ["alpha"],
                }
            ],
            "servers": [
                {"id": SERVER_ID, "name": "alpha", "answered": True, "clock_ahead_ms": -250.0, "margin_ms": 0.0},
                {"id": OTHER_ID, "name": "beta", "answered": False, "because": "refused"},
            ],
        }

    def test_words(self) -> None:
        """There are words for all that may happen."""
        assert set(_WORDS) == set(Kind)

    def test_moments(self) -> None:
        """How long ago, or when; a day, a minute, a second or a millisecond will do."""
        now = parse_timestamp("2026-11-22T10:00:00.000Z")
        for text, moment in (
            ("2h", "2026-11-22T08:00:00.000Z"),
            ("2026-11-20", "2026-11-20T00:00:00.000Z"),
            ("2026-11-20 07:30", "2026-11-20T07:30:00.000Z"),
            ("2026-11-20t07:30:05z", "2026-11-20T07:30:05.000Z"),
            ("2026-11-20T07:30:05.250Z", "2026-11-20T07:30:05.250Z"),
        ):
            assert read_since(text, now) == parse_timestamp(moment), text
        for text in ("", "yesterday", "2026-13-01", "-3h"):
            with self.assertRaises(ValueError):
                read_since(text, now)

    def test_an_older_version(self) -> None:
        """A server that keeps no history yet is told from one that is gone."""
        world = self.make()
        with mock.patch.dict(COMMANDS):
            del COMMANDS["HISTORY"]
            result = world.run("history")
        assert result.exit_code == exits.NOBODY_ANSWERED
        assert "alpha (10.0.0.1:4100): its version keeps no history" in result.stderr

    def test_nonsense(self) -> None:
        """What a server tells that is no note is told from one."""
        whole = {"at": "2026-11-22T10:00:00.000Z", "number": "1", "kind": "up", "server": "a", "name": "b", "new": "x"}
        assert _checked(whole) == whole
        for field in ("at", "number", "kind", "server", "name"):
            with self.assertRaises(NotUnderstood):
                _checked({name: value for name, value in whole.items() if name != field})
        with self.assertRaises(NotUnderstood):
            _checked({**whole, "at": "yesterday"})

    def test_the_key_is_wrong_for_one(self) -> None:
        """What one server refuses is told with its reason."""
        world = self.make()
        world.servers["beta"].backend.keys.clear()
        result = world.run("history")
        assert result.exit_code == 0
        assert "without what beta" in result.stderr
