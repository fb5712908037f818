"""Watching the table from a server that does not hold it: over the client port of one that does.

It is the WATCH that every client may use; the certificate shown in STARTTLS stands for the key.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.links.lines import LineClient, connect
from chunkfarm.model import Address
from chunkfarm.table.interface import Batch, Compacted, IWatch, Unavailable
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.verify import Untrusted, chain_of
from chunkfarm.wire.transport import end_when_silent

PING_INTERVAL = 5.0
"""Seconds between two questions to the server that is watched: as long as until a silent one counts as down."""
ANSWER_TIMEOUT = 5.0
"""Seconds for an answer. The kernel of a process that is frozen goes on taking bytes, so only an answer tells."""


@implementer(IWatch)
class FollowedWatch:
    """A watch with a link of its own, which ends with it, or when the server does not answer any more."""

    def __init__(
        self, client: LineClient, watch: IWatch, clock: IReactorTime, answers: Callable[[], bool] = lambda: False
    ) -> None:
        """`answers` says whether the server has just answered something else, and need not be asked."""
        self._answers = answers
        self._client = client
        self._watch = watch
        self._clock = clock
        self._loop = LoopingCall(self._ping)
        self._loop.clock = clock
        self._loop.start(PING_INTERVAL, now=False)

    def next(self) -> Deferred[Batch]:
        batch: Deferred[Batch] = self._watch.next()
        return batch.addErrback(self._ended)

    def close(self) -> None:
        self._rest()
        self._watch.close()
        self._client.lose()

    def _ended(self, failure: Failure) -> Failure:
        if not failure.check(CancelledError):
            self._rest()
        return failure

    def _rest(self) -> None:
        if self._loop.running:
            self._loop.stop()

    def _ping(self) -> Deferred[object]:
        if self._answers():
            return succeed(None)
        asked = self._client.request("PING").addTimeout(ANSWER_TIMEOUT, self._clock)
        return asked.addErrback(self._silent)

    def _silent(self, _: Failure) -> None:
        self._rest()
        self._client.lose(f"no answer within {ANSWER_TIMEOUT:g} s")


class FollowersWatch:
    """Opens watches at the first server in line that gives one."""

    def __init__(
        self,
        reactor: Any,
        contexts: Contexts,
        addresses: Callable[[], list[Address]],
        dial: Callable[..., Deferred[LineClient]] = connect,
        answers: Callable[[Address], bool] = lambda address: False,
        member_of: Callable[[Any], str | None] | None = None,
    ) -> None:
        """`answers` says of a server whether it is known to live, so that its watches need not ask. `member_of` gives
        the server of this farm that a certificate proves, if not everybody counts whom `contexts` know.

        A thousand servers that watch the first report to it each second, and would ask it four hundred times besides.
        """
        self._answers = answers
        self._member_of = member_of or contexts.peer_of
        self._reactor = reactor
        self._contexts = contexts
        self._addresses = addresses
        self._dial = dial

    def open(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        """As `ITable.watch`; fails with `Unavailable` when no server gives a watch."""
        return Deferred.fromCoroutine(self._open(prefix, from_revision))

    async def _open(self, prefix: bytes, from_revision: int) -> IWatch:
        problems = []
        for address in self._addresses():
            client = None
            try:
                client = await self._dial(
                    self._reactor, address, tls=self._contexts.client_factory(), check=self._check
                )
                # At rest nothing is sent either way, so only the kernel can notice that the other machine is gone.
                end_when_silent(client.transport)
                begun = client.watch(prefix, from_revision).addTimeout(ANSWER_TIMEOUT, self._reactor)
                watch = await begun
                return FollowedWatch(client, watch, self._reactor, partial(self._answers, address))
            except (CancelledError, Compacted):
                if client is not None:
                    client.lose()
                raise
            except Exception as error:
                if client is not None:
                    client.lose()
                problems.append(f"{address}: {error}")
        raise Unavailable(f"no server gives a watch ({'; '.join(problems) or 'none is known'})")

    def _check(self, transport: Any) -> None:
        """Any server of the farm will do; between servers the table decides, not the date."""
        chain = chain_of(transport)
        if not chain or self._member_of(chain[0]) is None:
            raise Untrusted("it is no server of this farm")
