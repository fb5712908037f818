"""How long a wrong key waits for its answer."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.failed_attempts import ADDRESSES_MAX, FORGET_SECONDS, PAUSE_FIRST, PAUSE_MOST, FailedAttempts


class FailedAttemptsTests(SynchronousTestCase):
    """Each address has its own count."""

    def test_slower_and_slower(self) -> None:
        """A person who mistypes waits a second, a program that goes on waits half a minute."""
        attempts = FailedAttempts()
        pauses = [attempts.note("10.0.0.1", 0.0) for _ in range(12)]
        assert pauses[:5] == [PAUSE_FIRST, PAUSE_FIRST, PAUSE_FIRST, 2 * PAUSE_FIRST, 4 * PAUSE_FIRST]
        assert pauses == sorted(pauses) and pauses[-1] == PAUSE_MOST
        assert attempts.note("10.0.0.2", 0.0) == PAUSE_FIRST
        assert attempts.total == 13

    def test_forgotten(self) -> None:
        """After a while without one, an address begins anew."""
        attempts = FailedAttempts()
        for _ in range(10):
            attempts.note("10.0.0.1", 0.0)
        assert attempts.note("10.0.0.1", FORGET_SECONDS) == PAUSE_MOST
        assert attempts.note("10.0.0.1", 2 * FORGET_SECONDS + 1) == PAUSE_FIRST

    def test_bounded(self) -> None:
        """Whoever has many addresses fills no memory."""
        attempts = FailedAttempts()
        for number in range(ADDRESSES_MAX + 100):
            attempts.note(str(number), 0.0)
        assert len(attempts._by_address) == ADDRESSES_MAX
