"""People of a drill: what counts as acknowledged, and when a write began."""

from __future__ import annotations

import hashlib
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.drill.people import PAUSE_SECONDS, Load
from chunkfarm.drill.story import DrillFailed
from chunkfarm.errors import Busy


class Way:
    """Leads nowhere."""

    def __init__(self, *names: str, timeout: float) -> None:
        self.names = names

    def hang_up(self) -> None:
        self.names = ()


class LoadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.waiting: list[tuple[Any, str, bytes, Deferred[None]]] = []
        self.load = Load(self.clock, Way, [("alpha", "beta")], "drill", store=self.store)  # type: ignore[arg-type]
        self.load.start()

    def store(self, way: Any, name: str, data: bytes) -> Deferred[None]:
        self.waiting.append((way, name, data, Deferred()))
        return self.waiting[-1][3]

    def answer(self, error: Exception | None = None) -> str:
        _, name, _, answer = self.waiting.pop()
        answer.callback(None) if error is None else answer.errback(error)
        return name

    def after(self, moment: float) -> Deferred[float]:
        return Deferred.fromCoroutine(self.load.first_begun_after(moment, 30.0))

    def test_remembered(self) -> None:
        """An acknowledged file is remembered with its digest, and the next one gets another name."""
        way, name, data, _ = self.waiting[0]
        assert way.names == ("alpha", "beta") and self.load.under_way == 1
        self.answer()
        assert self.load.acknowledged == {name: hashlib.sha256(data).hexdigest()}
        self.clock.advance(PAUSE_SECONDS)
        assert self.waiting[0][1] != name

    def test_what_began_before_does_not_count(self) -> None:
        """Farm is back when a write is acknowledged that began after the fault, not one that was under way."""
        self.clock.advance(1.0)
        again = self.after(1.0)
        self.answer()
        self.clock.advance(PAUSE_SECONDS)
        assert not again.called
        self.clock.advance(2.0)
        self.answer()
        assert self.successResultOf(again) == 3.0 + PAUSE_SECONDS

    def test_never_again(self) -> None:
        """If nothing is acknowledged any more, the drill fails and says what the last refusal was."""
        self.answer(Busy("the farm is gone"))
        assert self.load.acknowledged == {} and len(self.load.refusals) == 1
        again = self.after(0.0)
        self.clock.pump([PAUSE_SECONDS, 30.0])
        assert "the farm is gone" in str(self.failureResultOf(again, DrillFailed).value)

    def test_stop(self) -> None:
        """Who is stopped ends what is under way, so that everything is known afterwards."""
        stopped = Deferred.fromCoroutine(self.load.stop())
        assert not stopped.called
        name = self.answer()
        self.clock.advance(PAUSE_SECONDS)
        self.successResultOf(stopped)
        assert list(self.load.acknowledged) == [name] and self.waiting == []

    def test_sent_away(self) -> None:
        """At the end of a drill nobody is waited for."""
        way = self.waiting[0][0]
        self.load.drop()
        assert way.names == () and self.clock.getDelayedCalls() == []
