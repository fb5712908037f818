"""The fuzzer itself: it finds what is planted, is the same for the same seed, and notices what stays in memory."""

from __future__ import annotations

from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config_values import FARM_READERS
from chunkfarm.ports.answers import PeerAnswers
from chunkfarm.ports.client import looking
from chunkfarm.ports.client.looking import number
from chunkfarm.ports.files.factory import FileFactory
from chunkfarm.wire.lines import LineBuffer
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.mutations import Mutations
from tests.fuzz.promises import Broken
from tests.fuzz.targets import make_target


class Maze:
    """Four doors behind each other: nobody guesses all of them at once."""

    name = "maze"
    modules = (__name__,)
    seeds = (b"nothing",)
    tokens = (b"open", b"sesame", b"!")
    separator = b" "
    leaks = False

    def __init__(self) -> None:
        self.left: list[bytes] = []

    def run(self, data: bytes) -> None:
        # One line each, for lines are what is counted.
        if b"open" not in data:
            return
        if b"sesame" not in data:
            return
        if len(data) <= 100:
            return
        if data.count(b"!") > 10:
            raise Broken("all doors are open")

    def live(self, data: bytes) -> None:
        if self.leaks:
            self.left += [data + b"%d" % number for number in range(5)]

    def end(self) -> None:
        self.left.clear()

    def changed(self, data: bytes, mutations: Mutations) -> bytes | None:
        return None


class FuzzerTests(SynchronousTestCase):
    def test_doors(self) -> None:
        """What lies behind several doors is found, because an input that opens one is kept."""
        finding = Fuzzer(Maze()).run(inputs=5000)
        assert finding is not None and finding.why == "all doors are open"
        # And made as short as it can be.
        assert len(finding.data) == 101

    def test_the_same_seed(self) -> None:
        """A run is the same every time, and another one with another seed."""
        runs = []
        # The first of them fills what the product remembers of its inputs.
        for seed in (7, 7, 7, 8):
            fuzzer = Fuzzer(make_target("config"), seed)
            assert fuzzer.run(inputs=60) is None
            runs.append((fuzzer.corpus, len(fuzzer.known)))
        assert runs[1] == runs[2] != runs[3]

    def test_growth(self) -> None:
        """What stays in memory of each input is noticed."""
        maze = Maze()
        Fuzzer(maze).look_for_growth()
        maze.leaks = True
        with self.assertRaises(Broken):
            Fuzzer(maze).look_for_growth()


class PlantedFaultsTests(SynchronousTestCase):
    """Faults in the product are found, each within the inputs that are stated here."""

    def finds(self, target: str, inputs: int, why: str) -> None:
        finding = Fuzzer(make_target(target)).run(inputs=inputs)
        assert finding is not None, "nothing was found"
        assert why in finding.why, finding.why

    def test_a_crash_on_large_numbers(self) -> None:
        """A number that is too large for something behind it."""

        def faulty(word: str, what: str) -> int:
            assert len(word) < 12, "planted"
            return number(word, what)

        with patch.object(looking, "number", faulty):
            self.finds("lines", 2000, "planted")

    def test_a_line_cut_wrongly(self) -> None:
        """Lines of which one read ends between CR and LF."""
        feed = LineBuffer.feed

        def faulty(buffer: LineBuffer, data: bytes) -> None:
            feed(buffer, data.removesuffix(b"\r"))

        with patch.object(LineBuffer, "feed", faulty):
            self.finds("lines", 200, "depend on how the bytes were cut up")

    def test_a_timer_that_is_left(self) -> None:
        """A connection that is gone, and still has a timer."""
        with patch.object(FileFactory, "forget", lambda factory, protocol: factory.connections.pop(protocol)):
            self.finds("http", 1, "timers are left")

    def test_an_option_that_cannot_be_read_back(self) -> None:
        """A name of the farm that stands in config.ini as something else."""
        with patch.dict(FARM_READERS, name=str):
            self.finds("config", 3000, "")

    def test_a_fault_in_an_answer(self) -> None:
        """A question that raises what it has not declared."""
        with patch.object(PeerAnswers, "get_server", lambda answers, server: {}[server]):
            self.finds("boxes", 60, "has a fault")
