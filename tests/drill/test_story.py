"""A drill is told with times, and has passed only if it came to its end and nothing was wrong."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.drill.story import DrillFailed, Story, differences, in_short


class StoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(100)
        self.said: list[str] = []
        self.story = Story("kill-first", "the first is killed", self.clock.seconds, self.said.append)

    def test_told_while_it_happens(self) -> None:
        """Each line is shown at once, with the seconds since the drill began."""
        self.clock.advance(1.25)
        self.story.tell("alpha is killed")
        self.clock.advance(0.5)
        self.story.figure("takeover", 0.5, "a write is acknowledged {} later")
        assert self.said == [
            "kill-first: the first is killed",
            "    1.2 s  alpha is killed",
            "    1.8 s  a write is acknowledged 0.5 s later",
        ]

    def test_passed(self) -> None:
        """What was promised held, so it has passed, and the last line has the figures."""
        self.story.figure("takeover", 0.5, "a write after {}")
        self.story.figure("repair", 7.04, "all copies after {}")
        self.story.check(True, "all is equal", "a file differs")
        self.story.end()
        assert self.story.passed
        assert self.said[-1] == "PASS  kill-first: takeover 0.5 s, repair 7.0 s"

    def test_something_wrong(self) -> None:
        """One promise that does not hold is enough, and is shown where it happens and at the end."""
        self.story.check(False, "all is equal", "a file differs")
        self.story.check(True, "beta leads", "nobody leads")
        self.story.end()
        assert not self.story.passed
        assert "    0.0 s  WRONG: a file differs" in self.said
        assert self.said[-1] == "FAIL  kill-first: a file differs"

    def test_it_could_not_go_on(self) -> None:
        """What did not come true in time fails the drill, with the reason."""
        self.story.end(DrillFailed("not within 30 s: beta serves"))
        assert self.said[-1] == "FAIL  kill-first: not within 30 s: beta serves"

    def test_broken_off(self) -> None:
        """A drill that was not brought to its end has not passed."""
        self.story.check(True, "all is equal", "a file differs")
        assert not self.story.passed
        assert "not brought to its end" in self.story.verdict()

    def test_as_json(self) -> None:
        """Programs get the figures, the faults and the story with its times."""
        self.clock.advance(2)
        self.story.figure("takeover", 0.12345, "a write after {}")
        self.story.end()
        assert self.story.as_value() == {
            "drill": "kill-first",
            "passed": True,
            "seconds": {"takeover": 0.123},
            "faults": [],
            "story": [{"at": 2.0, "text": "a write after 0.1 s"}],
        }


class DifferencesTests(SynchronousTestCase):
    def test_equal(self) -> None:
        """Files that are read as they were stored are no difference, and others are not looked at."""
        assert differences({"a/b": "12"}, {"a/b": "12", "a/c": "34"}, "beta") == []

    def test_every_kind(self) -> None:
        """Another content, a reason in place of one, and a file that was not read are all told."""
        wrong = differences({"a": "1", "b": "2", "c": "3"}, {"a": "9", "b": "there is no file b"}, "beta")
        assert wrong == ["a from beta: 9, not 1", "b from beta: there is no file b, not 2", "c was not read from beta"]

    def test_many(self) -> None:
        """Of many faults some are shown, and how many there are more."""
        assert in_short(["a", "b"]) == "a; b"
        assert in_short([*"abcdef"]) == "a; b; c and 3 more"
