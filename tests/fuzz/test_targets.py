"""Each way into a server, with as many inputs as stand here: all promises of `tests.fuzz.promises` are kept."""

from __future__ import annotations

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.targets import make_target

QUICK = {"lines": 250, "boxes": 120, "http": 250, "config": 250, "answers": 400}
SLOW = {"lines": 800, "boxes": 300, "http": 1000, "config": 1500, "answers": 3000}


def must_hold(target: str, inputs: int, seed: int) -> None:
    """No input breaks a promise, and nothing stays in memory."""
    fuzzer = Fuzzer(make_target(target), seed)
    finding = fuzzer.run(inputs=inputs)
    assert finding is None, f"{finding.data!r}\n{finding.why}"
    fuzzer.look_for_growth()


class QuickTests(SynchronousTestCase):
    """The honest inputs, and some made of them."""

    def test_lines(self) -> None:
        """The line protocol."""
        must_hold("lines", QUICK["lines"], 1)

    def test_boxes(self) -> None:
        """The peer port."""
        must_hold("boxes", QUICK["boxes"], 1)

    def test_http(self) -> None:
        """The file port."""
        must_hold("http", QUICK["http"], 1)

    def test_config(self) -> None:
        """config.ini."""
        must_hold("config", QUICK["config"], 1)

    def test_answers(self) -> None:
        """What others answer to what we ask."""
        must_hold("answers", QUICK["answers"], 1)


@pytest.mark.slow
class MoreTests(SynchronousTestCase):
    """Ten times as many."""

    def test_all(self) -> None:
        """Every way in."""
        for target, inputs in SLOW.items():
            must_hold(target, inputs, 2)
