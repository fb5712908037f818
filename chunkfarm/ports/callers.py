"""Who asked this server while it was starting: the ones that may found a farm before it does.

Whoever starts asks the others, so a server whose address is not in this one's list, or refused a moment before it
opened its port, is known from its own question.
"""

from __future__ import annotations

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from chunkfarm.membership import Candidate
from chunkfarm.model import Address
from chunkfarm.ports.peer import Prober
from chunkfarm.trust.proof import DIALER, LISTENER, check_proof, proof

CALLERS_MAX = 1024
"""Starting servers remembered; more than a farm ever starts at once."""
CALLER_SECONDS = 15.0
"""How long a question counts. One that waits for a silent address asks again after 5 s, 5 s for more than three
listed, and 2 s of rest; one that ended is waited for as long as this."""


@frozen
class Caller:
    """A starting server that asked."""

    candidate: Candidate
    address: Address
    """Where it listens, as it says; with port 0 if it did not."""
    at: float


@define
class Callers:
    """Remembers them, and holds the join key by which starting servers know each other."""

    clock: IReactorTime
    key: bytes | None = None
    """The join key of `farm.join`, if there is one."""
    _by_id: dict[str, Caller] = field(factory=dict, init=False)

    def take(self, prober: Prober) -> bytes:
        """Remember who asks. Returns our proof if there is a join key and it proved that it knows it too."""
        known = self.key is not None and bool(prober.proof)
        if self.key is not None and not (known and check_proof(self.key, DIALER, prober.exporter, prober.proof)):
            # A stranger must not keep a farm from being founded.
            return b""
        if prober.server in self._by_id or len(self._by_id) < CALLERS_MAX:
            address = prober.advertised or Address(prober.host, 0)
            candidate = Candidate(stamp=prober.stamp, server_id=prober.server)
            self._by_id[prober.server] = Caller(candidate, address, self.clock.seconds())
        return b"" if self.key is None else proof(self.key, LISTENER, prober.exporter)

    def current(self) -> tuple[Caller, ...]:
        """Those that asked not long ago."""
        oldest = self.clock.seconds() - CALLER_SECONDS
        for server_id, caller in list(self._by_id.items()):
            if caller.at < oldest:
                del self._by_id[server_id]
        return tuple(self._by_id.values())
