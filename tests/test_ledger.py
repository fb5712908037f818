"""The ledger keeps config.ini as the table says, at the right moment, and says so when it cannot."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import config_file
from chunkfarm.config import Config, ConfigFile
from chunkfarm.ledger import (
    LOCK_RETRY_SECONDS,
    LOOK_SECONDS,
    OTHERS_WAIT_SECONDS,
    RETRY_SECONDS_FIRST,
    RETRY_SECONDS_MAX,
    Ledger,
)
from chunkfarm.model import FarmOptions, Server
from chunkfarm.table.interface import Unavailable

ID = "0123456789abcdef0123456789abcdef"
FARM = FarmOptions(name="lab", id=ID)
A = Server(id="a" * 32, name="a", host="10.0.0.1", client=4100, peer=4101, files=4102, joined=1, seniority=1)
B = evolve(A, id="b" * 32, name="b", seniority=2)


@define(eq=False)
class SetRoster:
    """A roster that knows what the test sets."""

    options: FarmOptions = FARM
    servers: tuple[Server, ...] = (A,)
    generation: int = 0
    newer: int = 0
    """The generation that a refresh finds in the table."""
    unavailable: bool = False
    watchers: list[Callable[[], None]] = field(factory=list)

    def subscribe(self, watcher: Callable[[], None]) -> Callable[[], None]:
        self.watchers.append(watcher)
        return lambda: self.watchers.remove(watcher)

    def refresh(self) -> Deferred[None]:
        if self.unavailable:
            return fail(Unavailable("no majority"))
        self.generation = max(self.generation, self.newer)
        return succeed(None)

    def change(self, generation: int, **changes: Any) -> None:
        self.generation = generation
        for name, value in changes.items():
            setattr(self, name, value)
        for watcher in list(self.watchers):
            watcher()


@define(eq=False)
class Threads:
    """Runs blocking functions at once, or when the test lets them."""

    held: bool = False
    waiting: list[Callable[[], Any]] = field(factory=list)
    calls: list[str] = field(factory=list)

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        self.calls.append(function.__name__)
        if not self.held:
            return maybeDeferred(function, *args, **kwargs)
        result: Deferred[Any] = Deferred()
        self.waiting.append(lambda: maybeDeferred(function, *args, **kwargs).chainDeferred(result))
        return result

    def release(self) -> None:
        self.waiting.pop(0)()


@define(eq=False)
class Desk:
    """A ledger and all that is around it."""

    path: Path
    file: ConfigFile
    roster: SetRoster
    clock: Clock
    threads: Threads
    notes: list[str]
    ledger: Ledger

    def read(self) -> Config:
        return ConfigFile(str(self.path)).read()

    def edit(self, old: str, new: str) -> str:
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))
        return self.path.read_text()

    def look(self) -> None:
        self.clock.advance(LOOK_SECONDS)


class LedgerTests(SynchronousTestCase):
    def make(self, first: bool = True, generation: int = 0, text: str = "[server]\nzone = x\n") -> Desk:
        """A running ledger over a config.ini; with a generation, the file is as the table has it."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        path = folder / "config.ini"
        path.write_text(text)
        file, roster, clock, threads = ConfigFile(str(path)), SetRoster(), Clock(), Threads()
        notes: list[str] = []
        ledger = Ledger(file, roster, clock, threads.run, lambda: first, notes.append)  # type: ignore[arg-type]
        desk = Desk(path, file, roster, clock, threads, notes, ledger)
        if generation:
            file.write_if_newer(generation, FARM, roster.servers)
            roster.generation = generation
        ledger.start()
        clock.advance(OTHERS_WAIT_SECONDS if not first else 0)
        del threads.calls[:]
        return desk

    def test_first_writes_at_once(self) -> None:
        """The first server writes as soon as the table changes."""
        desk = self.make(first=True)
        desk.roster.change(1, servers=(A, B))
        assert desk.read().generation == 1
        assert [row.name for row in desk.read().servers] == ["a", "b"]

    def test_others_wait(self) -> None:
        """Another server writes a second later."""
        desk = self.make(first=False)
        desk.roster.change(1)
        desk.clock.advance(OTHERS_WAIT_SECONDS * 0.9)
        assert desk.read().generation == 0
        desk.clock.advance(OTHERS_WAIT_SECONDS * 0.2)
        assert desk.read().generation == 1

    def test_others_find_it_written(self) -> None:
        """A server that finds the file written leaves it alone."""
        desk = self.make(first=False)
        desk.roster.change(1)
        ConfigFile(str(desk.path)).write_if_newer(1, FARM, [A])
        before = desk.path.stat()
        desk.clock.advance(OTHERS_WAIT_SECONDS)
        after = desk.path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert desk.threads.calls == ["write_if_newer"]

    def test_many_changes(self) -> None:
        """Changes that come within the second are written once, and a stream of them does not put it off."""
        desk = self.make(first=False)
        for generation in range(1, 11):
            desk.roster.change(generation)
            desk.clock.advance(OTHERS_WAIT_SECONDS / 10)
        assert desk.read().generation == 10
        assert desk.threads.calls == ["write_if_newer"]

    def test_no_change_of_the_file(self) -> None:
        """A change of the table that the file does not show starts no work."""
        desk = self.make(generation=3)
        desk.roster.change(3, servers=(evolve(A, free=5),))
        assert desk.threads.calls == []

    def test_one_write_at_a_time(self) -> None:
        """While a write runs, further changes wait for it, and the last of them is written next."""
        desk = self.make()
        desk.threads.held = True
        for generation in (1, 2, 3):
            desk.roster.change(generation)
        assert len(desk.threads.waiting) == 1
        desk.threads.release()
        assert len(desk.threads.waiting) == 1
        desk.threads.release()
        assert desk.read().generation == 3
        assert desk.threads.waiting == []

    def test_behind_at_the_start(self) -> None:
        """A server that comes back with an old file brings it up to date."""
        desk = self.make(first=False, generation=3)
        self.successResultOf(desk.ledger.stop())
        desk.roster.change(4)
        desk.ledger.start()
        desk.clock.advance(OTHERS_WAIT_SECONDS)
        assert desk.read().generation == 4

    def test_unwritable(self) -> None:
        """A file that cannot be written is said, tried again ever less often, and said to be cured."""
        desk = self.make()
        error = OSError(errno.EROFS, "Read-only file system")
        with mock.patch.object(config_file, "_replace", side_effect=error) as replace:
            desk.roster.change(1)
            assert desk.notes == [f"{desk.path} cannot be written: Read-only file system"]
            assert desk.ledger.note == desk.notes[0]
            desk.clock.advance(RETRY_SECONDS_FIRST)
            assert replace.call_count == 2
            desk.clock.pump([1] * 600)
            assert replace.call_count < 150
            assert len(desk.notes) == 1
        desk.clock.advance(RETRY_SECONDS_MAX)
        assert desk.read().generation == 1
        assert desk.notes[1:] == [""]
        desk.roster.change(2)
        assert desk.read().generation == 2

    def test_locked(self) -> None:
        """A lock that is held for a moment is waited for, without a word."""
        desk = self.make()
        with ConfigFile(str(desk.path)).locked():
            desk.roster.change(1)
        assert desk.read().generation == 0
        desk.clock.advance(LOCK_RETRY_SECONDS)
        assert desk.read().generation == 1
        assert desk.notes == []

    def test_fault(self) -> None:
        """A fault of ours is logged, and the next try follows all the same."""
        desk = self.make()
        with mock.patch.object(config_file, "_replace", side_effect=ZeroDivisionError):
            desk.roster.change(1)
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        desk.clock.advance(RETRY_SECONDS_FIRST)
        assert desk.read().generation == 1

    def test_edit(self) -> None:
        """An edit of [farm] is reported with both values, and put back at the second look that sees it."""
        desk = self.make(generation=3)
        good = desk.path.read_text()
        edited = desk.edit("replicas = 3", "replicas = 1")
        desk.look()
        assert [str(one) for one in desk.ledger.drift] == ["replicas is 1 in the file and 3 in the farm"]
        assert desk.path.read_text() == edited
        desk.look()
        assert desk.path.read_text() == good
        assert desk.ledger.drift == ()
        assert Path(f"{desk.path}.1").read_text() == edited
        assert desk.notes == []

    def test_edits_of_what_the_farm_writes(self) -> None:
        """The fingerprint, the generation and the rows are put back too; so is an id that was removed."""
        for old, new, option in (
            ("generation = 3", "generation = many", "generation"),
            (f"id = {ID}\n", "", "id"),
            (" 10.0.0.1 4100 ", " 10.0.0.9 4100 ", "a"),
            ("name = lab", "name = lab\nca = sha256:" + "0" * 64, "ca"),
        ):
            desk = self.make(generation=3)
            good = desk.path.read_text()
            desk.edit(old, new)
            desk.look()
            assert [one.option for one in desk.ledger.drift] == [option]
            desk.look()
            assert desk.path.read_text() == good
            assert desk.read().farm == FARM

    def test_still_editing(self) -> None:
        """As long as the text goes on changing, nobody interferes."""
        desk = self.make(generation=3)
        for replicas in (1, 2, 4, 5):
            desk.edit(f"replicas = {3 if replicas == 1 else desk.read().farm.replicas}", f"replicas = {replicas}")
            desk.look()
            assert desk.read().farm.replicas == replicas
        desk.look()
        assert desk.read().farm.replicas == 3

    def test_emptied_by_an_editor(self) -> None:
        """A file that is empty while it is saved is left to the editor, even if the table changes just then."""
        desk = self.make(generation=3)
        whole = desk.path.read_text()
        desk.path.write_text("")
        desk.look()
        desk.roster.change(4)
        assert desk.path.read_text() == ""
        desk.path.write_text(whole)
        desk.clock.advance(RETRY_SECONDS_FIRST)
        assert desk.read().generation == 4
        assert desk.read().server.zone == "x"

    def test_own_section(self) -> None:
        """An edit of [server] is nobody's business, unless the next start would fail over it."""
        desk = self.make(generation=3)
        desk.edit("zone = x", "zone = y")
        desk.look()
        desk.look()
        assert (desk.ledger.drift, desk.notes) == ((), [])
        edited = desk.edit("zone = y", "zone = the cellar")
        desk.look()
        desk.look()
        assert len(desk.notes) == 1
        assert "zone = the cellar: expected one word" in desk.notes[0]
        assert desk.path.read_text() == edited
        desk.edit("zone = the cellar", "zone = cellar")
        desk.look()
        assert desk.notes[1:] == [""]

    def test_not_understood(self) -> None:
        """A file that is no longer an INI file is left alone and explained, and kept again once it is mended."""
        desk = self.make(generation=3)
        whole = desk.path.read_text()
        desk.path.write_text("nonsense\n" + whole)
        desk.look()
        assert "line 1: nonsense: expected" in desk.notes[0]
        assert desk.path.read_text().startswith("nonsense")
        desk.path.write_text(whole)
        desk.look()
        assert desk.notes[1:] == [""]

    def test_older_file(self) -> None:
        """An older file that was copied over this one is simply brought up to date."""
        desk = self.make(generation=3)
        old = desk.path.read_text()
        desk.roster.change(4)
        new = desk.path.read_text()
        desk.path.write_text(old)
        desk.look()
        assert desk.path.read_text() == new
        assert desk.ledger.drift == ()

    def test_deleted(self) -> None:
        """A file that was deleted is there again after the next look, with the machine's section."""
        desk = self.make(generation=3)
        whole = desk.path.read_text()
        desk.look()
        desk.path.unlink()
        desk.look()
        assert desk.path.read_text() == whole

    def test_foreign(self) -> None:
        """A file of another farm is left alone, and the server says so."""
        desk = self.make(generation=3)
        edited = desk.edit(ID, "f" * 32)
        desk.look()
        desk.look()
        desk.roster.change(4)
        desk.clock.advance(RETRY_SECONDS_MAX)
        assert desk.path.read_text() == edited
        assert len(desk.notes) == 1
        assert "f" * 32 in desk.notes[0]

    def test_somebody_knows_more(self) -> None:
        """A shared file that another server has written from a newer table is not an edit."""
        desk = self.make(first=False, generation=3)
        ConfigFile(str(desk.path)).write_if_newer(4, FARM, [A])
        desk.roster.newer = 4
        desk.look()
        desk.look()
        assert (desk.read().generation, desk.ledger.drift) == (4, ())

    def test_nobody_to_ask(self) -> None:
        """Without a majority, a file that claims to be newer is left as it is."""
        desk = self.make(first=False, generation=3)
        ConfigFile(str(desk.path)).write_if_newer(4, FARM, [A])
        desk.roster.unavailable = True
        desk.look()
        desk.look()
        assert desk.read().generation == 4

    def test_generation_raised_by_hand(self) -> None:
        """A generation that the farm never had is put back, or no server would ever write again."""
        desk = self.make(first=False, generation=3)
        desk.edit("generation = 3", "generation = 300")
        desk.look()
        desk.look()
        assert desk.read().generation == 3

    def test_before_the_table_is_known(self) -> None:
        """As long as the table is not known the file is not looked at."""
        desk = self.make()
        desk.look()
        assert desk.threads.calls == []

    def test_stop(self) -> None:
        """A stopped ledger waits for the write that runs, and leaves no timer and no subscription."""
        desk = self.make()
        desk.threads.held = True
        desk.roster.change(1)
        stopping = desk.ledger.stop()
        self.assertNoResult(stopping)
        desk.threads.release()
        self.successResultOf(stopping)
        self.successResultOf(desk.ledger.stop())
        assert desk.read().generation == 1
        assert desk.clock.getDelayedCalls() == []
        assert desk.roster.watchers == []

    def test_stop_while_it_fails(self) -> None:
        """A write that fails while the ledger stops is not tried again."""
        desk = self.make()
        desk.threads.held = True
        desk.roster.change(1)
        stopping = desk.ledger.stop()
        with mock.patch.object(config_file, "_replace", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            desk.threads.release()
        self.successResultOf(stopping)
        assert desk.clock.getDelayedCalls() == []
