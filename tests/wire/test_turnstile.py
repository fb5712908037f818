"""Handshakes in line."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.wire.turnstile import Turnstile

IN_TURN = 3


@define(eq=False)
class Visitor:
    went: list[Visitor]
    turnstile: Turnstile[Visitor]
    steps: int = field(default=0)
    fails: bool = field(default=False)

    def come(self) -> None:
        if self.turnstile.passes(self):
            self.go_on()

    def go_on(self) -> None:
        if self.fails:
            raise ArithmeticError("a fault of ours")
        self.steps += 1
        self.went.append(self)


class TurnstileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.turnstile: Turnstile[Visitor] = Turnstile(self.clock, IN_TURN, Visitor.go_on)
        self.went: list[Visitor] = []

    def visitors(self, count: int) -> list[Visitor]:
        return [Visitor(self.went, self.turnstile) for _ in range(count)]

    def test_in_line(self) -> None:
        """Those who come together go one after the other, in the order in which they came."""
        visitors = self.visitors(10)
        for visitor in visitors:
            visitor.come()
        turns = 1
        while len(self.went) < len(visitors):
            assert len(self.went) == turns * IN_TURN
            self.clock.advance(0)
            turns += 1
        assert self.went == visitors
        self.clock.pump([0] * 3)
        assert self.clock.getDelayedCalls() == []

    def test_alone(self) -> None:
        """Whoever comes alone does not wait."""
        (visitor,) = self.visitors(1)
        for step in range(3):
            visitor.come()
            assert visitor.steps == step + 1
            self.clock.pump([0] * 2)

    def test_asked_again(self) -> None:
        """Who is in line keeps its place, and goes once."""
        visitors = self.visitors(IN_TURN + 2)
        for visitor in visitors * 2:
            visitor.come()
        self.clock.pump([0] * 10)
        assert [visitor.steps for visitor in visitors[IN_TURN:]] == [1, 1]

    def test_one_that_fails(self) -> None:
        """Who raises an error in its turn is told of, and the others behind it have theirs."""
        visitors = self.visitors(2 * IN_TURN + 2)
        for visitor in visitors:
            visitor.come()
        visitors[IN_TURN].fails = True
        self.assertRaises(ArithmeticError, self.clock.advance, 0)
        self.clock.pump([0] * 10)
        assert self.went == [visitor for visitor in visitors if not visitor.fails]

    def test_gone(self) -> None:
        """Who left is not called."""
        visitors = self.visitors(IN_TURN + 2)
        for visitor in visitors:
            visitor.come()
        self.turnstile.leave(visitors[IN_TURN])
        self.clock.pump([0] * 10)
        assert [visitor.steps for visitor in visitors[IN_TURN:]] == [0, 1]
