"""Signs certificates with the farm's CA, whose key is a sealed row of the table.

Every server that holds the rows and the sealing key can do this, so that the farm needs no machine of its own
for it. What is signed for is decided by the caller; the secrets stay in here.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from chunkfarm.model import CA_CERTIFICATE_KEY, JOIN_DIGEST_KEY, ROTATION_KEY, SECRET
from chunkfarm.rotation import Rotation
from chunkfarm.table.interface import ITable, Operation, Put
from chunkfarm.trust.authority import Authority, requested_names
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.proof import digest_of_key
from chunkfarm.trust.seal import SealKey

CA_KEY = SECRET + b"ca"
CA_CERTIFICATE = CA_CERTIFICATE_KEY
NEXT_CA_KEY = SECRET + b"ca/next"
JOIN_KEY = SECRET + b"join"


def secret_rows(seal: SealKey, authority: Authority, join_key: bytes) -> tuple[Operation, ...]:
    """The rows by which a founded farm remembers its CA and its join key."""
    return (
        Put(CA_CERTIFICATE, authority.certificate_pem),
        Put(CA_KEY, seal.seal(CA_KEY.decode(), authority.key_pem)),
        Put(JOIN_KEY, seal.seal(JOIN_KEY.decode(), join_key)),
    )


class Issuer:
    """The farm's secrets, as far as this server may use them."""

    def __init__(self, table: ITable, seal: Callable[[], SealKey | None], now: Callable[[], int]) -> None:
        self._table = table
        self._seal = seal
        self._now = now

    @property
    def seal_key(self) -> bytes:
        """The key that a new server needs to become a master."""
        return self._sealing().material

    def join_key(self) -> Deferred[bytes]:
        """The farm's join key; fails with `TrustError` if this server cannot open it."""
        return Deferred.fromCoroutine(self._secret(JOIN_KEY))

    def join_key_rows(self, key: bytes) -> tuple[Operation, ...]:
        """The rows by which the farm has another join key; raises `TrustError` if this server cannot seal it."""
        sealed = self._sealing().seal(JOIN_KEY.decode(), key)
        return Put(JOIN_KEY, sealed), Put(JOIN_DIGEST_KEY, digest_of_key(key).encode())

    def sign(self, request: bytes, server_id: str, host: str) -> Deferred[tuple[bytes, bytes]]:
        """A certificate for a server, and the CA's, both PEM; fails with `TrustError` for a bad request.

        Behind the certificate stands what introduces the CA to those who know the one before it.
        """
        return Deferred.fromCoroutine(self._sign(request, server_id, host))

    async def _sign(self, request: bytes, server_id: str, host: str) -> tuple[bytes, bytes]:
        names = (host, *requested_names(request))
        authority = await self._authority()
        certificate = authority.sign(request, server_id, names, self._now())
        return certificate + await self._introduction(authority), authority.certificate_pem

    def authority(self) -> Deferred[Authority]:
        """The farm's CA with its key; fails with `TrustError` if this server cannot open it."""
        return Deferred.fromCoroutine(self._authority())

    async def _authority(self) -> Authority:
        certificate = await self._row(CA_CERTIFICATE)
        while True:
            key = await self._secret(CA_KEY)
            before, certificate = certificate, await self._row(CA_CERTIFICATE)
            if certificate == before:
                return Authority.load(certificate, key)

    async def _introduction(self, authority: Authority) -> bytes:
        """What goes along with certificates, for those who know a CA before this one."""
        row = await self._find(ROTATION_KEY)
        if row is None:
            return b""
        return Rotation.from_value(row).introduction_of(authority.certificate_pem.decode()).encode()

    def _sealing(self) -> SealKey:
        seal = self._seal()
        if seal is None:
            raise TrustError("this server has no key to open the farm's secrets (its config says master = no)")
        return seal

    async def _secret(self, key: bytes) -> bytes:
        return self._sealing().unseal(key.decode(), await self._row(key))

    async def _row(self, key: bytes) -> bytes:
        value = await self._find(key)
        if value is None:
            raise TrustError(f"the table has no row {key.decode()}")
        return value

    async def _find(self, key: bytes) -> bytes | None:
        page = await self._table.read(key, limit=1)
        return next((row.value for row in page.rows if row.key == key), None)
