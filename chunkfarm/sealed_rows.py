"""What becomes of a row that was sealed with the key before, when the farm has another one. Pure."""

from __future__ import annotations

from attrs import evolve, frozen

from chunkfarm.invites import sealed_secret
from chunkfarm.model import INVITES, SECRET
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
    """The change of a row under `secret/`, `keys/` or `invites/`; None if it holds nothing that another key sealed.

    A secret of the farm is sealed with the new key: the join key may have been made by a first that had not heard of
    that. So is the secret of a user's key, or left out if nobody can open it: it can be compared all the same. A code
    is taken away, for whoever has the key before knows its secret.
    """
    if row.key.startswith(SECRET):
        operation = _secret_anew(row, seal)
    else:
        operation = _code_anew(row, seal) if row.key.startswith(INVITES) else _key_anew(row, seal)
    return None if operation is None else Resealed(Compare(row.key, "==", row.revision), operation)


def _secret_anew(row: Row, seal: SealKey) -> Operation | None:
    name = row.key.decode()
    if _opens(seal, name, row.value):
        return None
    try:
        return Put(row.key, seal.seal(name, seal.unseal(name, row.value)))
    except TrustError:
        # Nobody gains by its going, and a server that holds another key may open it.
        return None


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
