"""What this server believes, and which seal keys it holds, as the table says while the farm changes its CA.

The rules of the table count at once for connections (`Contexts.in_force`); what must outlive this process is written
into the data directory first, and only then said to the first (`ready`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from cryptography import x509
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from chunkfarm.chunks.pieces import RunInThread
from chunkfarm.errors import FarmError
from chunkfarm.following import UNANSWERED, Following
from chunkfarm.model import CA_CERTIFICATE_KEY, ROTATION_KEY, ROTATION_WANTED_KEY, SEAL_DIGEST_KEY
from chunkfarm.rotation import Rotation, believed, in_force
from chunkfarm.table.interface import Row, TableError
from chunkfarm.trust.authority import certificates_in, fingerprint, fingerprint_of, introduced
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.seal import SealKey, digest_of_seal_key

RETRY_SECONDS = 3.0
"""After a try that failed: the farm waits for it."""


class Beliefs:
    """Looks at each change of the rows.

    `row` gives a row under `farm/` as this server knows it; `ask` gives the seal key of a digest from whoever holds it;
    `renew` looks whether this server's certificate is of the right CA; `changed` is told when others may count who did
    not, or do not any more who did.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        directory: os.PathLike[str],
        contexts: Contexts,
        turn: DeferredLock,
        row: Callable[[bytes], Row | None],
        may_be_master: Callable[[], bool],
        ask: Callable[[str], Deferred[bytes]],
        renew: Callable[[], Deferred[None]],
        changed: Callable[[], None],
        clock: IReactorTime,
        run_in_thread: RunInThread,
    ) -> None:
        self._directory = directory
        self._contexts = contexts
        self._turn = turn
        self._row = row
        self._may_be_master = may_be_master
        self._ask = ask
        self._renew = renew
        self._changed = changed
        self._run_in_thread = run_in_thread
        self.seal: SealKey | None = None
        """The keys that seal secret rows; None on a server that may not be a master, or has none yet."""
        self._ready = ""
        self._seen: tuple[int, ...] = ()
        self._done: tuple[int, ...] = ()
        self._following = Following(
            lambda: self._done != self._seen, self._bring_up_to_date, self._failed, RETRY_SECONDS, clock
        )

    # What is said of it.

    @property
    def rotation(self) -> Rotation | None:
        """How far the farm is with changing its CA; None if it never did, or says so in a way not known here."""
        row = self._row(ROTATION_KEY)
        try:
            return Rotation.from_value(row.value) if row is not None else None
        except TrustError:
            return None

    def report(self) -> tuple[str, str]:
        """While the farm changes its CA, or wants to: that of this server's certificate, and one it is ready for."""
        rotation, identity = self.rotation, self._contexts.identity
        runs = rotation is not None and rotation.is_running
        if identity is None or not (runs or self._row(ROTATION_WANTED_KEY) is not None):
            return "", ""
        return identity.ca_fingerprint, self._ready

    # What changes it.

    def start(self) -> None:
        """Bring the data directory up to date, now and from now on."""
        self.table_changed()
        self._following.start()

    def stop(self) -> Deferred[None]:
        """Look no more; fires when nothing is under way."""
        return self._following.stop()

    def introduced(self, chain: Sequence[x509.Certificate]) -> None:
        """Another server showed this chain: believe its CA if one that is believed introduces it there."""
        identity = self._contexts.identity
        if not chain or identity is None or self._contexts.peer_of(chain[0]) is not None:
            return
        # Not by all that is believed: a CA that is about to go may have been stolen, and the rows say which one counts.
        found = introduced(chain, self._contexts.in_force or identity.believed)
        if found is None:
            return
        self._log.info("The farm has changed its CA to {ca} meanwhile.", ca=fingerprint_of(found[0]))
        self._contexts.replace(identity.believing((*identity.believed, found[0])))
        if self._contexts.in_force:
            self._contexts.in_force = (*self._contexts.in_force, found[0])

    def table_changed(self) -> None:
        """The rows may be others."""
        rows = [self._row(key) for key in (CA_CERTIFICATE_KEY, ROTATION_KEY, SEAL_DIGEST_KEY)]
        seen = tuple(0 if row is None else row.revision for row in rows)
        if seen != self._seen:
            self._take(seen)
        self._following.look()

    def _take(self, seen: tuple[int, ...]) -> None:
        """Judge connections by the new rows, those that are open too."""
        row, rotation = self._row(CA_CERTIFICATE_KEY), self.rotation
        if row is None:
            return
        known, self._seen = bool(self._seen), seen
        before = self._contexts.in_force
        self._contexts.in_force = certificates_in(in_force(row.value.decode(), rotation).encode())
        self._contexts.introduce_to_clients(rotation is not None and rotation.step in ("renewing", "done"))
        if known and before != self._contexts.in_force:
            self._changed()

    def _failed(self, failure: Failure) -> None:
        if failure.check(FarmError, TableError, OSError, *UNANSWERED):
            self._log.warn("What the change of the farm's CA takes is not here yet: {why}", why=str(failure.value))
        else:
            self._log.failure("while following the change of the farm's CA", failure)

    async def _bring_up_to_date(self) -> None:
        seen = self._seen
        rotation, row = self.rotation, self._row(CA_CERTIFICATE_KEY)
        if row is None:
            return
        authorities = believed(row.value.decode(), rotation)
        await self._believe(authorities)
        if self._may_be_master():
            seal_row = self._row(SEAL_DIGEST_KEY)
            wanted = [seal_row.value.decode()] if seal_row is not None else []
            wanted += [rotation.seal] if rotation is not None and rotation.is_running else []
            for digest in dict.fromkeys(wanted):
                await self._fetch(digest)
            if seal_row is not None:
                await self.hold(leader=seal_row.value.decode())
        self._ready = rotation.fingerprint if rotation is not None and rotation.is_running else ""
        await self._renew()
        identity = self._contexts.identity
        signs = rotation is None or rotation.step != "trusting"
        if signs and (identity is None or identity.ca_fingerprint != fingerprint(row.value)):
            raise TrustError("this server's certificate is still of the CA before")
        # The one that signed its certificate until now may be believed no more.
        await self._believe(authorities)
        self._done = seen

    async def _believe(self, authorities: Sequence[str]) -> None:
        await self._turn.run(lambda: Deferred.fromCoroutine(self._keep_believing(authorities)))

    async def _keep_believing(self, authorities: Sequence[str]) -> None:
        identity = self._contexts.identity
        assert identity is not None
        wanted = [certificate for pem in authorities for certificate in certificates_in(pem.encode())]
        changed = identity.believing(wanted)
        if changed.ca_pem != identity.ca_pem:
            await self._run_in_thread(changed.save, self._directory)
            self._contexts.replace(changed)

    async def _fetch(self, digest: str) -> None:
        if self.seal is None or self.seal.key_of(digest) is None:
            key = await self._ask(digest)
            if digest_of_seal_key(key) != digest:
                raise TrustError("the seal key that was given is not the one that the table names")
            await self.hold(key)

    def hold(self, key: bytes | None = None, leader: str = "") -> Deferred[None]:
        """Keep another seal key, or seal with that of a digest; durable when it fires."""
        return self._turn.run(lambda: Deferred.fromCoroutine(self._hold(key, leader)))

    async def _hold(self, key: bytes | None, leader: str) -> None:
        seal = self.seal
        if key is not None:
            seal = seal.beside(key) if seal is not None else SealKey(key)
        if seal is not None and leader:
            seal = seal.led_by(leader)
        if seal is not None and (self.seal is None or seal.held != self.seal.held):
            await self._run_in_thread(seal.save, self._directory)
            self.seal = seal
