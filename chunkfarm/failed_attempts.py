"""How long whoever showed a wrong key waits for the answer, by the address that it came from. Pure.

A secret is 256 random bits, so guessing is hopeless at any speed; what the wait prevents is that trying is a load, and
that it goes unseen.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import define, field

PAUSE_FIRST = 1.0
"""Seconds before the first wrong key is answered: people mistype, programs do not."""
PAUSE_MOST = 30.0
"""No client waits longer than this for an answer anyway."""
FREE = 3
"""Wrong keys from one address that are answered after the first pause; each further one waits twice as long."""
FORGET_SECONDS = 600.0
"""After so long without one, an address begins anew."""
ADDRESSES_MAX = 10_000
"""Addresses remembered, so that whoever has many of them fills no memory; the oldest are forgotten first."""


@define
class FailedAttempts:
    """Counts them."""

    total: int = 0
    """Since this process began."""
    _by_address: OrderedDict[str, tuple[int, float]] = field(factory=OrderedDict, init=False)
    """How many, and when the last one was."""

    def note(self, address: str, now: float) -> float:
        """One more, at `now` (seconds); gives the seconds to wait before it is answered."""
        count, last = self._by_address.pop(address, (0, now))
        count = 1 if now - last > FORGET_SECONDS else count + 1
        self._by_address[address] = count, now
        if len(self._by_address) > ADDRESSES_MAX:
            self._by_address.popitem(last=False)
        self.total += 1
        return min(PAUSE_MOST, PAUSE_FIRST * 2.0 ** min(max(0, count - FREE), 16))
