"""What becomes of a row that was sealed with the key before, when the farm has another one. Pure."""

from __future__ import annotations

from attrs import evolve, frozen

from chunkfarm.invites import sealed_secret
from chunkfarm.model import INVITES
from chunkfarm.table.interface import Compare, Delete, Operation, Put, Row
from chunkfarm.trust.keys import KeyRow
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.seal import SealKey


@frozen
class Resealed:
    """One row's change, if it is still as it was."""

    compare: Compare
    operation: Operation


def sealed_anew(row: Row, seal: SealKey) -> Resealed | None:
    """The change of a row under `keys/` or `invites/`; None if it holds nothing that another key sealed.

    The secret of a user's key is sealed with the new key, or left out if nobody can open it: it can be compared all the
    same. A code is taken away, for whoever has the key before knows its secret.
    """
    operation = _code_anew(row, seal) if row.key.startswith(INVITES) else _key_anew(row, seal)
    return None if operation is None else Resealed(Compare(row.key, "==", row.revision), operation)


def _code_anew(row: Row, seal: SealKey) -> Operation | None:
    try:
        good = _opens(seal, row.key.decode(), sealed_secret(row.value))
    except TrustError:
        good = False
    return None if good else Delete(row.key)


def _key_anew(row: Row, seal: SealKey) -> Operation | None:
    try:
        key = KeyRow.from_value(row.value)
    except TrustError:
        # It is good for nothing, and it is not for this to take it away.
        return None
    if not key.sealed or _opens(seal, key.seal_name, key.sealed):
        return None
    try:
        sealed = seal.seal(key.seal_name, seal.unseal(key.seal_name, key.sealed))
    except TrustError:
        sealed = b""
    return Put(row.key, evolve(key, sealed=sealed).to_value())


def _opens(seal: SealKey, name: str, sealed: bytes) -> bool:
    """Whether the key that seals now opens it."""
    try:
        seal.alone().unseal(name, sealed)
    except TrustError:
        return False
    return True
