"""Sealing: secrets that stand in the table are encrypted with a key that does not."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from attrs import evolve, field, frozen
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


KEYS_HELD_MAX = 4
"""Of one server: the one in force, the one before it (for old exports), the next one, and one that came to nothing."""


@frozen
class SealKey:
    """The key that seals secret rows. It lives in the data directories of servers that may be masters.

    While the farm changes from one key to the next a server holds both: it seals with the first, and opens with any.
    """

    material: bytes = field(repr=False)
    """32 bytes, as `Join` hands them to a new server."""
    others: tuple[bytes, ...] = field(default=(), repr=False)
    """Keys that are held beside it."""
    _random_bytes: Callable[[int], bytes] = field(default=secrets.token_bytes, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if any(len(key) != SEAL_KEY_LENGTH for key in self.held):
            raise TrustError(f"a key for sealing has {SEAL_KEY_LENGTH} bytes")

    @classmethod
    def create(cls, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> SealKey:
        """A new key."""
        return cls(random_bytes(SEAL_KEY_LENGTH), random_bytes=random_bytes)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> SealKey:
        """The keys in a data directory; raises `NoSuchFile` or `TrustError`. Blocks for the disk."""
        path = Path(directory) / SEAL_FILE
        try:
            material, *others = (bytes.fromhex(line) for line in read_private(path).decode("ascii").split())
            return cls(material, tuple(others))
        except ValueError as error:
            raise TrustError(f"{path} is damaged: expected {2 * SEAL_KEY_LENGTH} hexadecimal digits a line") from error

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Keep it in a data directory; raises `TrustError` if it cannot be written. Blocks for the disk."""
        text = "".join(f"{key.hex()}\n" for key in self.held)
        write_private(Path(directory) / SEAL_FILE, text.encode())

    @property
    def held(self) -> tuple[bytes, ...]:
        """All keys, the one that seals first."""
        return (self.material, *self.others)

    @property
    def digest(self) -> str:
        """By which servers say which key they mean."""
        return digest_of_seal_key(self.material)

    def key_of(self, digest: str) -> bytes | None:
        """The key with that digest, if it is held."""
        return next((key for key in self.held if digest_of_seal_key(key) == digest), None)

    def beside(self, key: bytes) -> SealKey:
        """This one, holding another key too; of too many the oldest goes."""
        if key in self.held:
            return self
        return evolve(self, others=(key, *self.others)[: KEYS_HELD_MAX - 1])

    def led_by(self, digest: str) -> SealKey:
        """The same keys, sealing with the one of that digest, if it is held."""
        key = self.key_of(digest)
        if key is None or key == self.material:
            return self
        return evolve(self, material=key, others=tuple(one for one in self.held if one != key))

    def alone(self) -> SealKey:
        """The key that seals, and no others: what it opens is sealed with it."""
        return evolve(self, others=())

    def seal(self, name: str, plaintext: bytes) -> bytes:
        """Encrypt; only who gives the same `name` (such as the key of the row) can read it."""
        nonce = self._random_bytes(NONCE_LENGTH)
        return VERSION + nonce + AESGCM(self.material).encrypt(nonce, plaintext, _bound_to(name))

    def unseal(self, name: str, sealed: bytes) -> bytes:
        """The reverse; raises `TrustError` if it was sealed with other keys, under another name, or changed since."""
        if sealed[:1] != VERSION or len(sealed) < len(VERSION) + NONCE_LENGTH + TAG_LENGTH:
            raise TrustError(f"{name} is not sealed in a way that is known here")
        nonce, rest = sealed[1 : 1 + NONCE_LENGTH], sealed[1 + NONCE_LENGTH :]
        for key in self.held:
            with contextlib.suppress(InvalidTag):
                return AESGCM(key).decrypt(nonce, rest, _bound_to(name))
        raise TrustError(f"{name} was sealed with another key than the one in {SEAL_FILE}, or damaged")


def digest_of_seal_key(key: bytes) -> str:
    """What names a key in rows and in questions: it is random, so its digest gives nothing away."""
    return hashlib.sha256(b"chunkfarm seal key 1\0" + key).hexdigest()


def _bound_to(name: str) -> bytes:
    return b"chunkfarm seal 1\0" + name.encode()
