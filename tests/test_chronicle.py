"""What a server noted of its farm outlives it, whatever happens to the file."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chronicle import FILE_TIMES, NOTES_MAX, Chronicle, NotesFile
from chunkfarm.timeline import Kind, Note, from_line, to_line
from tests.ports.fakes import NOW, AtOnce, MemoryNotes, memory_chronicle


def note(because: str = "") -> Note:
    return Note(kind=Kind.UP, server="5e" * 16, name="alpha", because=because)


class Clocks:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self.wall = NOW
        self.boot = 100.0

    def step(self, seconds: float) -> None:
        """That time passes."""
        self.wall += round(1000 * seconds)
        self.boot += seconds


class ChronicleTests(SynchronousTestCase):
    def make(
        self,
        file: MemoryNotes | None = None,
        run: str = "1",
        clocks: Clocks | None = None,
        most: int = NOTES_MAX,
    ) -> Chronicle:
        clocks = clocks or Clocks()
        return memory_chronicle(lambda: clocks.wall, file, run, lambda: clocks.boot, most)

    def told(self, chronicle: Chronicle, since: int = 0, after: int = 0, most: int = 1000) -> list[str]:
        return [one.because for one in chronicle.told(since, after, most)[0]]

    def test_the_next_process_knows(self) -> None:
        """What one process noted, the next one tells too, and counts on from there."""
        file = MemoryNotes()
        first = self.make(file)
        for word in ("a", "b"):
            first.note(note(word))
        second = self.make(file, run="2")
        second.note(note("c"))
        notes, more = second.told(0, 0, 10)
        assert ([one.number for one in notes], more) == ([1, 2, 3], False)
        assert self.told(second) == ["a", "b", "c"]
        assert second.last is not None and second.last.because == "c"

    def test_page_by_page(self) -> None:
        """An answer says whether there is more, and the next one goes on after it."""
        chronicle = self.make()
        for number in range(5):
            chronicle.note(note(str(number)))
        notes, more = chronicle.told(0, 0, 2)
        assert ([one.because for one in notes], more) == (["0", "1"], True)
        assert chronicle.told(0, 0, 0) == ((), True)
        notes, more = chronicle.told(0, notes[-1].number, 3)
        assert ([one.because for one in notes], more) == (["2", "3", "4"], False)

    def test_since(self) -> None:
        """Only what is not older than that."""
        clocks = Clocks()
        chronicle = self.make(clocks=clocks)
        for word in ("a", "b", "c"):
            chronicle.note(note(word))
            clocks.step(10)
        assert self.told(chronicle, since=NOW + 10_000) == ["b", "c"]

    def test_a_clock_that_is_set(self) -> None:
        """Times are told as the clock shows time now, so that a clock that was wrong before brings no disorder."""
        clocks = Clocks()
        file = MemoryNotes()
        chronicle = self.make(file, clocks=clocks)
        chronicle.note(note("a"))
        clocks.step(5)
        clocks.wall += 3_600_000
        chronicle.note(note("b"))
        clocks.step(1)
        first, second = chronicle.told(0, 0, 10)[0]
        assert (first.at, second.at) == (NOW + 3_600_000, NOW + 3_605_000)
        # Of an earlier process only the clock of that time is known.
        clocks.boot = 0.0
        assert self.make(file, run="2", clocks=clocks).told(0, 0, 1)[0][0].at == NOW

    def test_only_the_newest_are_kept(self) -> None:
        """Neither memory nor file grow without end, and what is newest stays."""
        file = MemoryNotes()
        chronicle = self.make(file, most=50)
        longest = 0
        for number in range(125):
            chronicle.note(note(str(number)))
            longest = max(longest, file.data.count(b"\n"))
        assert longest <= 50 * FILE_TIMES
        expected = [str(number) for number in range(75, 125)]
        assert self.told(chronicle) == expected
        assert self.told(self.make(file, run="2", most=50)) == expected

    def test_half_a_line(self) -> None:
        """A crash in the middle of a line costs that line and no other."""
        file = MemoryNotes()
        chronicle = self.make(file)
        for word in ("a", "b"):
            chronicle.note(note(word))
        file.data = file.data[:-10]
        second = self.make(file, run="2")
        second.note(note("c"))
        assert self.told(second) == ["a", "c"]
        assert self.told(self.make(file, run="3")) == ["a", "c"]

    def test_a_disk_without_room(self) -> None:
        """What could not be written is told all the same, logged once, and written when there is room again."""
        file = MemoryNotes()
        chronicle = self.make(file)
        chronicle.note(note("a"))
        file.error = OSError(errno.ENOSPC, "No space left on device")
        for word in ("b", "c"):
            chronicle.note(note(word))
        assert len(self.flushLoggedErrors(OSError)) == 1
        assert self.told(chronicle) == ["a", "b", "c"]
        file.error = None
        chronicle.note(note("d"))
        assert self.told(self.make(file, run="2")) == ["a", "b", "c", "d"]

    def test_a_file_that_cannot_be_read(self) -> None:
        """The server begins a new one, and says so in its log."""

        class Unreadable(MemoryNotes):
            def load(self) -> bytes:
                raise OSError(errno.EIO, "Input/output error")

        file = Unreadable()
        chronicle = self.make(file)
        assert len(self.flushLoggedErrors(OSError)) == 1
        chronicle.note(note("a"))
        assert self.told(chronicle) == ["a"] and file.data.count(b"\n") == 1

    def test_refused_start(self) -> None:
        """A start that is refused leaves nothing in the file, and is told of by nobody later."""
        directory = Path(self.mktemp())
        directory.mkdir()
        path = directory / "history.jsonl"
        threads: Any = AtOnce()
        chronicle = Chronicle(NotesFile(path), threads, "1", lambda: NOW, lambda: 1.0)
        chronicle.note(note("refused"))
        self.successResultOf(chronicle.stop())
        assert not path.exists()

    def test_a_real_file(self) -> None:
        """On a real disk too: made, added to, and readable by nobody else."""
        directory = Path(self.mktemp())
        directory.mkdir()
        path = directory / "history.jsonl"
        threads: Any = AtOnce()
        for run in ("1", "2"):
            chronicle = Chronicle(NotesFile(path), threads, run, lambda: NOW, lambda: 1.0)
            chronicle.note(note(run))
            chronicle.begin()
            chronicle.note(note(run))
            self.successResultOf(chronicle.stop())
        assert path.read_bytes().count(b"\n") == 4
        assert path.stat().st_mode & 0o777 == 0o600


class LineTests(SynchronousTestCase):
    @given(st.text(), st.text(), st.integers(), st.floats(allow_nan=False), st.sampled_from(Kind))
    def test_there_and_back(self, name: str, because: str, number: int, boot: float, kind: Kind) -> None:
        """A note comes back from its line as it was, and no note is two lines."""
        one = Note(kind=kind, server="a", name=name, because=because, number=number, at=number, boot=boot, run="r")
        line = to_line(one)
        assert from_line(line) == one
        assert line.count(b"\n") == 1 and b"\r" not in line

    @given(st.binary())
    def test_anything_else(self, line: bytes) -> None:
        """Whatever else stands there is no note, and no error."""
        assert from_line(line) is None

    def test_of_another_version(self) -> None:
        """What is noted by a version that knows more kinds, or fewer fields, is passed over."""
        whole = attrs.asdict(note())
        for changed in ({**whole, "kind": "married"}, {**whole, "number": "1"}, {**whole, "boot": None}):
            assert from_line(repr(changed).encode()) is None
        assert from_line(b'{"kind":"up"}') is None
        assert from_line(to_line(note()).replace(b'"number":0', b'"number":"0"')) is None
        assert from_line(to_line(note()).replace(b'"up"', b'"married"')) is None
