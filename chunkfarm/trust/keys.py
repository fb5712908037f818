"""Keys of users: an id, a secret, and what it is good for.

The table knows a secret's SHA-256, which is enough for AUTH, Basic and Bearer (a secret is 256 random bits, so there is
nothing to guess and no need for a slow hash), and the secret sealed, for schemes that sign with it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from attrs import field, frozen

from chunkfarm.errors import AuthenticationFailed
from chunkfarm.model import KEYS, ROLES, Principal
from chunkfarm.trust.authority import LOOPBACK_NAMES
from chunkfarm.trust.private import TrustError, read_private, write_private
from chunkfarm.trust.seal import SealKey

ADMIN_KEY_FILE = "admin.key"
NETRC_FILE = "netrc"
ID_RANDOM_BYTES = 10
"""80 bits are sixteen characters of base 32: no two keys ever meet."""
SECRET_RANDOM_BYTES = 32
ID_LENGTH_MAX = 64
SECRET_LENGTH_MAX = 256
"""Ours has 43 characters; the limit is for what others send."""

_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{ID_LENGTH_MAX}}}\Z")
_SECRET = re.compile(rf"[!-~]{{1,{SECRET_LENGTH_MAX}}}\Z")
_HOST = re.compile(r"[!-~]+\Z")


@frozen
class KeyPair:
    """A key id with its secret, as a user has it."""

    id: str
    secret: str = field(repr=False)

    @property
    def bearer(self) -> str:
        """As it stands in `Authorization: Bearer`."""
        return f"{self.id}.{self.secret}"


@frozen(kw_only=True)
class KeyRow:
    """A row under `keys/`."""

    id: str
    role: str
    secret_sha256: bytes = field(repr=False)
    sealed: bytes = field(default=b"", repr=False)
    """The secret, sealed under the name `keys/<id>`; empty if it can only be compared."""
    created: int = 0
    """Milliseconds since 1970."""
    disabled: bool = False
    prefix: str = ""
    """What the names of the files begin with that it is good for."""
    label: str = ""
    """Whose it is, in the words of whoever made it."""

    @property
    def principal(self) -> Principal:
        """Who shows this key."""
        return Principal(self.id, self.role, self.prefix)

    @property
    def key(self) -> bytes:
        """Where the row stands in the table."""
        return KEYS + self.id.encode()

    @property
    def seal_name(self) -> str:
        return self.key.decode()

    def to_value(self) -> bytes:
        item = {
            "id": self.id,
            "role": self.role,
            "secret_sha256": self.secret_sha256.hex(),
            "sealed": base64.b64encode(self.sealed).decode(),
            "created": self.created,
            "disabled": self.disabled,
            "prefix": self.prefix,
            "label": self.label,
        }
        return json.dumps(item, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_value(cls, value: bytes) -> KeyRow:
        """The reverse of `to_value`; raises `TrustError` for anything else."""
        try:
            item: dict[str, Any] = json.loads(value)
            row = cls(
                id=str(item["id"]),
                role=item["role"],
                secret_sha256=bytes.fromhex(item["secret_sha256"]),
                sealed=base64.b64decode(item.get("sealed", ""), validate=True),
                created=int(item.get("created", 0)),
                # Whatever is not plainly enabled is not.
                disabled=item.get("disabled", False) is not False,
                prefix=_text(item.get("prefix", "")),
                label=_text(item.get("label", "")),
            )
        except (ValueError, KeyError, TypeError, OverflowError, AttributeError, RecursionError) as error:
            raise TrustError("a key's row in the table is damaged") from error
        if row.role not in ROLES or len(row.secret_sha256) != hashlib.sha256().digest_size:
            raise TrustError("a key's row in the table is damaged")
        return row


def _text(value: Any) -> str:
    if not isinstance(value, str):
        # A prefix that cannot be understood must not become none.
        raise TypeError("expected text")
    return value


def is_key_id(text: str) -> bool:
    """Whether a key could have this id."""
    return _ID.match(text) is not None


def secret_digest(secret: str) -> bytes:
    """SHA-256 of a secret: what a key row holds, and what servers ask each other with."""
    return hashlib.sha256(secret.encode()).digest()


def new_key(
    role: str,
    *,
    created: int = 0,
    prefix: str = "",
    label: str = "",
    seal: SealKey | None = None,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> tuple[KeyRow, str]:
    """A new key's row and its secret, which is told once and then nowhere to be read. `created` is in ms."""
    assert role in ROLES, role
    key_id = base64.b32encode(random_bytes(ID_RANDOM_BYTES)).decode()
    secret = base64.urlsafe_b64encode(random_bytes(SECRET_RANDOM_BYTES)).decode().rstrip("=")
    sealed = seal.seal((KEYS + key_id.encode()).decode(), secret.encode()) if seal is not None else b""
    row = KeyRow(
        id=key_id,
        role=role,
        secret_sha256=secret_digest(secret),
        sealed=sealed,
        created=created,
        prefix=prefix,
        label=label,
    )
    return row, secret


def check(row: KeyRow, secret_sha256: bytes) -> bool:
    """Whether the key is good and this is the digest of its secret. Takes the same time for every wrong digest."""
    return hmac.compare_digest(row.secret_sha256, secret_sha256) and not row.disabled


def split_bearer(token: str) -> KeyPair:
    """The parts of `<key id>.<secret>`; raises `AuthenticationFailed` for anything else."""
    key_id, dot, secret = token.partition(".")
    if not dot or not _ID.match(key_id) or not _SECRET.match(secret):
        raise AuthenticationFailed("a bearer token is <key id>.<secret>")
    return KeyPair(key_id, secret)


def parse_key_line(text: str, source: str) -> KeyPair:
    """The content of a key file, one line `<key id> <secret>`; raises `TrustError`, naming `source`."""
    lines = text.splitlines()
    words = lines[0].split(" ") if len(lines) == 1 else []
    if len(words) != 2 or not _ID.match(words[0]) or not _SECRET.match(words[1]):
        # Not a word of the content: it may be a secret.
        raise TrustError(f"{source} is not a key file: expected one line, <key id> <secret>")
    return KeyPair(words[0], words[1])


def read_key_file(path: str | os.PathLike[str]) -> KeyPair:
    """The key in a file; raises `NoSuchFile`, or `TrustError` if others may read it. Blocks for the disk."""
    try:
        return parse_key_line(read_private(path).decode("ascii"), os.fspath(path))
    except UnicodeDecodeError as error:
        raise TrustError(f"{path} is not a key file: expected one line, <key id> <secret>") from error


def write_key_file(path: str | os.PathLike[str], pair: KeyPair) -> None:
    """Write a file that `read_key_file` reads; raises `TrustError`. Blocks for the disk."""
    write_private(path, f"{pair.id} {pair.secret}\n".encode())


def write_admin_key(directory: str | os.PathLike[str], pair: KeyPair) -> None:
    """Write `admin.key` in a data directory; raises `TrustError`. Blocks for the disk."""
    write_key_file(Path(directory) / ADMIN_KEY_FILE, pair)


def write_netrc(directory: str | os.PathLike[str], hosts: Iterable[str], pair: KeyPair) -> None:
    """Write `netrc` in a data directory, for `curl --netrc-file`.

    It names the loopback addresses and `hosts`. Raises `TrustError`. Blocks for the disk.
    """
    names = dict.fromkeys([*LOOPBACK_NAMES, *hosts])
    # A host that is no single word would begin another entry.
    lines = [f"machine {name} login {pair.id} password {pair.secret}\n" for name in names if _HOST.match(name)]
    write_private(Path(directory) / NETRC_FILE, "".join(lines).encode())
