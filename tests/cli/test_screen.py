"""What is shown while something goes on."""

from __future__ import annotations

import io
import json
from unittest import mock

from rich.progress import Progress
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import screen
from chunkfarm.cli.screen import _Rate


class SayTests(SynchronousTestCase):
    def test_words_of_a_server(self) -> None:
        """Lines stay lines, and nothing in them means anything to a terminal; in JSON it can be read back."""
        with mock.patch("sys.stdout", io.StringIO()) as written:
            screen.say("one\x1b[2J\ntwo")
            screen.show_json({"name": "a\x9b1m\u2028é"})
        first, second, third = written.getvalue().splitlines()
        assert (first, second) == ("one\N{REPLACEMENT CHARACTER}[2J", "two")
        assert third.isprintable() and "é" in third
        assert json.loads(third) == {"name": "a\x9b1m\u2028é"}


class BarTests(SynchronousTestCase):
    def test_rate(self) -> None:
        """The rate is told in the units in which sizes are told, and not before there is one."""
        now = [0.0]
        progress = Progress(_Rate(), get_time=lambda: now[0])
        task = progress.add_task("a", total=None)
        shown = []
        for done in (0, 1024 * 1024, 3 * 1024 * 1024):
            now[0] += 1
            progress.update(task, completed=done)
            shown.append(_Rate().render(progress.tasks[0]).plain)
        assert shown == ["", "", "2.0 MiB/s"]

    def test_without_a_terminal(self) -> None:
        """Nobody watches a pipe or a log, so nothing is written there."""
        with mock.patch("sys.stderr", io.StringIO()) as written:
            with screen.bar("a") as bar:
                bar.size(10)
                bar.more(5)
                bar.at(10)
            assert written.getvalue() == ""

    def test_a_name_that_plays_tricks(self) -> None:
        """A name is shown as it is, whatever it would mean to a terminal or to the library that draws."""
        progress = Progress()
        screen.RichBar(progress, "home/[red]\x1b[2J")
        assert progress.tasks[0].description == "home/\\[red]\N{REPLACEMENT CHARACTER}\\[2J"
