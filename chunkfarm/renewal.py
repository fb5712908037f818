"""Renews this server's certificate long before it runs out, or when it goes by other names, without a restart."""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.errors import FarmError
from chunkfarm.following import UNANSWERED
from chunkfarm.issuer import Issuer
from chunkfarm.links import commands
from chunkfarm.links.peers import Peers
from chunkfarm.table.interface import TableError
from chunkfarm.trust.authority import certified_names, fingerprint, usable_names
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity

LOOK_SECONDS = 6 * 3600.0
"""A certificate is renewed months before its end, so a look every few hours leaves hundreds of tries."""


class Renewal:
    """Looks at the certificate now and then, and asks the first for a fresh one when it is time."""

    _log = Logger()

    def __init__(
        self,
        directory: os.PathLike[str],
        contexts: Contexts,
        issuer: Issuer,
        peers: Peers,
        first: Callable[[], str],
        names: Callable[[], tuple[str, ...]],
        clock: IReactorTime,
        now: Callable[[], int],
        run_in_thread: RunInThread,
        authority: Callable[[], bytes] = lambda: b"",
        turn: DeferredLock | None = None,
    ) -> None:
        """`authority` gives the CA that signs now (PEM), as far as that is known; `turn` who may write the identity."""
        self._authority = authority
        self._turn = turn or DeferredLock()
        self._directory = directory
        self._contexts = contexts
        self._issuer = issuer
        self._peers = peers
        self._first = first
        self._names = names
        self._now = now
        self._run_in_thread = run_in_thread
        self._loop = LoopingCall(self._round)
        self._loop.clock = clock
        self._asking: Deferred[None] | None = None
        self._asked_for: frozenset[str] = frozenset()
        """Names that were asked for last. The first may refuse some, and is not asked for the same ones again."""

    def start(self) -> None:
        """Look now, and then every few hours."""
        self._loop.start(LOOK_SECONDS)

    def stop(self) -> Deferred[None]:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
        if self._loop.running:
            self._loop.stop()
        return succeed(None)

    def _round(self) -> Deferred[None]:
        # A look that was given up is the loop's last one only if the loop was stopped.
        return self.look().addErrback(_given_up)

    def look(self) -> Deferred[None]:
        """Renew the certificate if it is time; a failure is logged, and the next look tries again.

        Fails only if it is cancelled: whoever waited for it is not to go on as if it were done.
        """
        identity = self._contexts.identity
        if identity is None or not identity.ca_pem:
            return succeed(None)
        due = identity.renew_due(self._now()) or self._lacks_names(identity) or self._is_of_another_ca(identity)
        if not due:
            return succeed(None)
        self._asking = self._turn.run(lambda: Deferred.fromCoroutine(self._renew()))
        return self._asking.addErrback(self._failed)

    def _lacks_names(self, identity: Identity) -> bool:
        wanted = frozenset(usable_names(self._names()))
        return wanted != self._asked_for and not wanted <= set(certified_names(identity.certificate))

    def _is_of_another_ca(self, identity: Identity) -> bool:
        signs = self._authority()
        return bool(signs) and fingerprint(signs) != identity.ca_fingerprint

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            # It goes on to whoever waits.
            failure.raiseException()
        if failure.check(FarmError, TableError, *UNANSWERED):
            self._log.warn("The certificate cannot be renewed now: {reason}", reason=str(failure.value))
        else:
            self._log.failure("while renewing the certificate", failure)

    async def _renew(self) -> None:
        identity = self._contexts.identity
        assert identity is not None
        names = usable_names(self._names())
        request = identity.signing_request(names)
        first = self._first()
        if first == identity.server_id:
            certificate, ca = await self._issuer.sign(request, identity.server_id, self._names()[0])
        else:
            box = await self._peers.call(first, commands.Renew, request=request)
            certificate, ca = box["certificate"], box["ca"]
        # What else is believed now is for the rows to say.
        renewed = identity.certified(certificate, ca + identity.ca_pem)
        await self._run_in_thread(renewed.save, self._directory)
        self._contexts.replace(renewed)
        self._asked_for = frozenset(names)
        self._log.info("This server's certificate has been renewed.")


def _given_up(failure: Failure) -> None:
    failure.trap(CancelledError)
