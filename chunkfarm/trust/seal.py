"""Sealing: secrets that stand in the table are encrypted with a key that does not."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from attrs import field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from chunkfarm.trust.private import TrustError, read_private, write_private

SEAL_FILE = "seal.key"
SEAL_KEY_LENGTH = 32
NONCE_LENGTH = 12
"""Random, as AES-GCM has it; a farm seals thousands of values, and 2**32 would still be safe."""
TAG_LENGTH = 16
VERSION = b"\x01"
"""The first byte of a sealed value, so that another way of sealing can be told from this one."""


@frozen
class SealKey:
    """The key that seals secret rows. It lives in the data directories of servers that may be masters."""

    material: bytes = field(repr=False)
    """32 bytes, as `Join` hands them to a new server."""
    _random_bytes: Callable[[int], bytes] = field(default=secrets.token_bytes, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if len(self.material) != SEAL_KEY_LENGTH:
            raise TrustError(f"a key for sealing has {SEAL_KEY_LENGTH} bytes, not {len(self.material)}")

    @classmethod
    def create(cls, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> SealKey:
        """A new key."""
        return cls(random_bytes(SEAL_KEY_LENGTH), random_bytes)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> SealKey:
        """The key in a data directory; raises `NoSuchFile` or `TrustError`. Blocks for the disk."""
        path = Path(directory) / SEAL_FILE
        try:
            return cls(bytes.fromhex(read_private(path).decode("ascii")))
        except ValueError as error:
            raise TrustError(f"{path} is damaged: expected {2 * SEAL_KEY_LENGTH} hexadecimal digits") from error

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Keep it in a data directory; raises `TrustError` if it cannot be written. Blocks for the disk."""
        write_private(Path(directory) / SEAL_FILE, self.material.hex().encode() + b"\n")

    def seal(self, name: str, plaintext: bytes) -> bytes:
        """Encrypt; only who gives the same `name` (such as the key of the row) can read it."""
        nonce = self._random_bytes(NONCE_LENGTH)
        return VERSION + nonce + AESGCM(self.material).encrypt(nonce, plaintext, _bound_to(name))

    def unseal(self, name: str, sealed: bytes) -> bytes:
        """The reverse; raises `TrustError` if it was sealed with another key, under another name, or changed since."""
        if sealed[:1] != VERSION or len(sealed) < len(VERSION) + NONCE_LENGTH + TAG_LENGTH:
            raise TrustError(f"{name} is not sealed in a way that is known here")
        nonce, rest = sealed[1 : 1 + NONCE_LENGTH], sealed[1 + NONCE_LENGTH :]
        try:
            return AESGCM(self.material).decrypt(nonce, rest, _bound_to(name))
        except InvalidTag as error:
            raise TrustError(f"{name} was sealed with another key than the one in {SEAL_FILE}, or damaged") from error


def _bound_to(name: str) -> bytes:
    return b"chunkfarm seal 1\0" + name.encode()
