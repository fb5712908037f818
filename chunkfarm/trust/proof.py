"""The join key, and how two sides of a TLS connection show each other that they know it.

A proof is `HMAC-SHA256(key, "chunkfarm join 1\\0" + role + "\\0" + exporter)`. The exporter is 32 bytes that only
the two ends of that one TLS connection can compute, so a proof is worth nothing on any other connection, and
whoever sits in between has two connections with different ones. Each side has a role of its own, so that
an impostor cannot answer with the proof it was just given. The key itself never travels.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL

from chunkfarm.trust.private import TrustError, read_private, write_private

JOIN_FILE = "farm.join"
"""Where the join key lies: beside `config.ini`."""
JOIN_KEY_LENGTH = 32
EXPORTER_LENGTH = 32
EXPORTER_LABEL = b"EXPORTER-Channel-Binding"
"""The label of RFC 9266, with an empty context."""

JOINER = "joiner"
MEMBER = "member"
DIALER = "dialer"
LISTENER = "listener"
ROLES = (JOINER, MEMBER, DIALER, LISTENER)
"""A joiner and a member of the farm; or, of two that are both still starting, who dialed and who listened."""


def make_join_key(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """A new join key."""
    return random_bytes(JOIN_KEY_LENGTH)


def read_join_key(path: str | os.PathLike[str]) -> bytes:
    """The join key in a file (`farm.join`): 64 hexadecimal digits.

    Raises `NoSuchFile`, or `TrustError` if others may read it or it is no key. Blocks for the disk.
    """
    text = read_private(path).strip()
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError as error:
        raise TrustError(f"{path} is not a join key: expected {2 * JOIN_KEY_LENGTH} hexadecimal digits") from error
    if len(key) != JOIN_KEY_LENGTH or len(text) != 2 * JOIN_KEY_LENGTH:
        raise TrustError(
            f"{path} is not a join key: expected {2 * JOIN_KEY_LENGTH} hexadecimal digits, found {len(text)} characters"
        )
    return key


def write_join_key(path: str | os.PathLike[str], key: bytes, *, replace: bool = False) -> None:
    """Write the join key for nobody but its owner to read.

    Raises `AlreadyExists` if there is one and it is not to be replaced, else `TrustError`. Blocks for the disk.
    """
    assert len(key) == JOIN_KEY_LENGTH
    write_private(path, key.hex().encode() + b"\n", replace=replace)


def digest_of_key(key: bytes) -> str:
    """By which it is known whether a join key is the right one: of 256 random bits it tells nobody the key."""
    return hashlib.sha256(b"chunkfarm join key\0" + key).hexdigest()


def proof(key: bytes, role: str, exporter: bytes) -> bytes:
    """What a side in `role` shows on the connection with that exporter, if it knows the key."""
    assert role in ROLES, role
    assert len(exporter) == EXPORTER_LENGTH
    message = b"chunkfarm join 1\0" + role.encode() + b"\0" + exporter
    return hmac.new(key, message, hashlib.sha256).digest()


def check_proof(key: bytes, role: str, exporter: bytes, shown: bytes) -> bool:
    """Whether `shown` is the proof of the other side, which is in `role`. Takes the same time either way."""
    return hmac.compare_digest(proof(key, role, exporter), shown)


def exporter_of(transport: Any) -> bytes:
    """The 32 bytes that both ends of this transport's TLS 1.3 connection, and nobody else, can compute.

    `transport` is anything whose `getHandle()` is a pyOpenSSL `Connection`. Raises `TrustError` if it is not
    encrypted, not by TLS 1.3, or the handshake is not over.
    """
    connection = transport.getHandle()
    if not isinstance(connection, SSL.Connection):
        raise TrustError("this connection is not encrypted, so nothing can be proved on it")
    # In TLS 1.2 without its extended master secret, two connections can be made to have the same exporter.
    if connection.get_protocol_version() < SSL.TLS1_3_VERSION:
        raise TrustError("a proof needs TLS 1.3, and this connection is older")
    try:
        return connection.export_keying_material(EXPORTER_LABEL, EXPORTER_LENGTH, b"")
    except SSL.Error as error:
        raise TrustError("nothing can be proved before the TLS handshake is over") from error
