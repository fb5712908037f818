"""A server of the farm that came back calls the others until it belongs again.

While it was away they may have moved, and so may it: then no row says where anybody listens. Each call tells where
this server listens now and finds out who listens at an address; both are proved by the farm's certificates.
What `config.ini` lists is read anew for every round, so that a person can say where the others went.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.finding import AT_ONCE, Asking, arguments_of, read_answer
from chunkfarm.links.commands import Probe
from chunkfarm.links.peers import CONNECT_TIMEOUT, Peers, call_on
from chunkfarm.model import Address

INTERVAL = 2.0
"""Seconds between two rounds, and before the first: a server whose farm is where it was belongs by then."""


@define
class Calls:
    """Rounds of calls to every address where a server of the farm may listen."""

    _log = Logger()

    peers: Peers
    asking: Asking
    addresses: Callable[[], Deferred[list[Address]]]
    learn: Callable[[str, Address], None]
    clock: IReactorTime
    told: Callable[[dict[str, Any]], None] = lambda answer: None
    """Hears what servers of the farm answer."""
    _loop: LoopingCall | None = field(default=None, init=False)
    _round: Deferred[None] | None = field(default=None, init=False)

    def start(self) -> None:
        """Begin, after `INTERVAL`."""
        self._loop = LoopingCall(self._go_round)
        self._loop.clock = self.clock
        self._loop.start(INTERVAL, now=False).addErrback(self._failed)

    def stop(self) -> None:
        """End, and the round under way too."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        if self._round is not None:
            self._round.cancel()

    def _go_round(self) -> Deferred[None]:
        self._round = Deferred.fromCoroutine(self._call_all())
        return self._round.addErrback(self._failed)

    def _failed(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("while calling the other servers", failure)

    async def _call_all(self) -> None:
        turns = DeferredSemaphore(AT_ONCE)
        own = self.asking.address
        calls = [turns.run(self._call, address) for address in await self.addresses() if address != own]
        await gatherResults(calls, consumeErrors=True)

    def _call(self, address: Address) -> Deferred[None]:
        # The round that is cancelled cancels its calls, and ends when they have.
        return Deferred.fromCoroutine(self._call_one(address)).addErrback(_ended)

    async def _call_one(self, address: Address) -> None:
        """Ask who listens there; whoever is no server of the farm, or does not answer, is passed over."""
        try:
            link = await self.peers.open(address)
        except CancelledError:
            raise
        except Exception:
            return
        try:
            found = self.peers.identity(link)
            if found is None or found == self.asking.me.server_id:
                return
            call = call_on(link, Probe, arguments_of(self.asking))
            told = read_answer((await self.peers.limit(call, CONNECT_TIMEOUT, "Probe"))["answer"])
            self.learn(found, address)
            self.told(told)
            if (first := told["first"]) is not None and first["id"] not in (found, self.asking.me.server_id):
                self.learn(first["id"], Address(first["host"], first["peer"]))
        except CancelledError:
            raise
        except Exception as error:
            self._log.debug("{address} gave no answer: {error}", address=str(address), error=error)
        finally:
            link.close()


def _ended(failure: Failure) -> None:
    failure.trap(CancelledError)
