"""The words of the farm as frozen records: Server, File, Manifest, Address, options.

Nothing here does I/O. Times are milliseconds since 1970 (UTC), sizes are bytes, digests are the 32 raw
bytes of a SHA-256. A record that stands in the table knows its key and how to write itself as JSON.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import asdict, evolve, field, fields, frozen

from chunkfarm.errors import InvalidRequest

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

DIGEST_LENGTH = 32
CHUNK_SIZE_MAX = 64 * MIB
"""The largest chunk a writer may choose: a chunk is held in memory as a whole while it is written."""
CHUNK_SIZE_MIN = 4 * KIB
"""Below this the manifest would outweigh the bytes."""
INLINE_DIGESTS_MAX = 128
"""Digests that stand in a file's row; a longer manifest is itself stored as chunks (row values end at 16 KiB)."""
NAME_BYTES_MAX = 1024
"""A file name in UTF-8, as S3 has it; with its prefix it fits the table's keys of 1,200 bytes."""

SERVERS = b"servers/"
FILES = b"files/"
FARM = b"farm/"
KEYS = b"keys/"
INVITES = b"invites/"
SECRET = b"secret/"
OPTIONS_KEY = b"farm/options"
GENERATION_KEY = b"farm/generation"
EPOCH_KEY = b"farm/epoch"
"""Its revision is the farm's epoch (see `table.epochs`)."""
EXPORTS_KEY = b"farm/export"
"""Rows from here on name the chunks of exports of the table: JSON objects with a list `exports` of objects, each with a
list `digests` in hexadecimal."""
KEYS_CHANGED_KEY = b"farm/keys"
"""Put anew with each change of a key: everybody follows `farm/`, and nobody may follow `keys/`."""
BARRED = b"farm/barred/"
"""Ids of servers that were forgotten, and may never be one of the farm again; the value says which name and when."""
CA_CERTIFICATE_KEY = b"farm/ca"
"""The certificate of the CA that signs for servers."""
ROTATION_KEY = b"farm/rotation"
"""How far the farm is with changing its CA, or which one it had before (see `rotation`)."""
ROTATION_WANTED_KEY = b"farm/rotation/wanted"
"""Somebody wants the CA to be changed; whoever leads begins, and takes this row away."""
SEAL_DIGEST_KEY = b"farm/seal"
"""By which masters know that secret rows are sealed with another key: its digest, once it was made anew."""
JOIN_DIGEST_KEY = b"farm/join"
"""By which servers know that the join key has changed: its digest, once it was made anew."""
LINES_KEY = b"farm/lines"
"""Each takeover: which line of the table's history goes on, and from where."""

SERVER_STATES = ("up", "down", "leaving", "draining")
ROLES = ("read", "write", "admin")

_SERVER_ID = re.compile(r"[0-9a-f]{32}\Z")
_SERVER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NO_UTF8 = re.compile(r"[\ud800-\udfff]")


def timestamp(milliseconds: int) -> str:
    """Milliseconds since 1970 as `2026-11-22T10:00:00.123Z`."""
    moment = datetime.datetime.fromtimestamp(milliseconds // 1000, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def parse_timestamp(text: str) -> int:
    """The reverse of `timestamp`; raises `ValueError`."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text):
        raise ValueError(f"{text!r} is not a time like 2026-11-22T10:00:00.123Z")
    moment = datetime.datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.UTC)
    return int(moment.timestamp()) * 1000 + int(text[20:23])


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """The SHA-256 by which a chunk is named."""
    return hashlib.sha256(data).digest()


def check_server_id(text: str) -> str:
    """Return `text` if it is a server id (32 hexadecimal digits); raise `ValueError` if not."""
    if not _SERVER_ID.match(text):
        raise ValueError(f"{text!r} is not a server id of 32 hexadecimal digits")
    return text


def check_server_name(text: str) -> str:
    """Return `text` if it can be a server's name; raise `ValueError` if not."""
    if not _SERVER_NAME.match(text):
        raise ValueError(
            f"{text!r} is not a server name: up to 63 lower-case letters, digits, dots, dashes and underscores"
        )
    return text


_NO_PARTS = frozenset(("", ".", ".."))


def check_file_name(name: str) -> str:
    """Return `name` if it is a file name, `bucket/path`; raise `InvalidRequest` if not."""
    bucket, slash, path = name.partition("/")
    if not slash or not path:
        raise InvalidRequest(f"{name!r} is not a file name: expected bucket/path")
    if not _BUCKET.match(bucket):
        raise InvalidRequest(
            f"{bucket!r} is not a bucket: up to 63 letters, digits, dots, dashes and underscores, "
            "the first a letter or digit"
        )
    if _NO_UTF8.search(name):
        raise InvalidRequest("a file name is UTF-8")
    if _CONTROL.search(name):
        raise InvalidRequest("a file name has no control characters")
    if len(name.encode()) > NAME_BYTES_MAX:
        raise InvalidRequest(f"a file name has at most {NAME_BYTES_MAX} bytes")
    if not _NO_PARTS.isdisjoint(path.split("/")):
        raise InvalidRequest(f"{name!r} is not a file name: no part of the path may be empty, '.' or '..'")
    return name


def begins_file_name(prefix: str) -> bool:
    """Whether a file name can begin so."""
    # What lacks something lacks a part, or a slash and a part, or letters behind the dots of the last part.
    for rest in ("", "x", "/x"):
        with contextlib.suppress(InvalidRequest):
            check_file_name(prefix + rest)
            return True
    return not prefix


def _to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


@frozen
class Address:
    """A host (name or IP address, IPv6 without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen(kw_only=True)
class Server:
    """A row of the server table.

    `seniority` is the revision of the transaction that made the server join, and is filled in from the row
    when it is read (`seniority = 0` in a value means "the revision of this row"). `incarnation` names the
    process, so that a server that starts anew is told from one that only lost contact.
    """

    id: str
    name: str
    host: str
    client: int
    peer: int
    files: int
    joined: int = 0
    seniority: int = 0
    state: str = "up"
    since: int = 0
    """When the state was entered (farm time, ms)."""
    weight: int = 1
    zone: str = ""
    free: int = 0
    used: int = 0
    version: str = ""
    master: bool = True
    full: bool = False
    incarnation: str = ""
    note: str = ""
    """What the server wants people to know, such as that it cannot write its config.ini."""
    given_up: bool = False
    """Whether it has been down for `repair_after`, by the clock of the first: its chunks are copied elsewhere.

    It stands in the row, so that servers with the same rows agree on who owns a chunk, whatever their clocks say.
    """
    draining: bool = False
    """Whether an admin wants it emptied (DRAIN). Unlike `state` it says so while the server is down, too."""
    public_key: str = ""
    """SHA-256 of the public key by which it proves who it is, in hexadecimal; empty if that was not noted yet."""
    secrets: bool = False
    """Whether it ever had the key that opens the farm's secrets: every server that may be a master, or might."""

    @property
    def key(self) -> bytes:
        return SERVERS + self.id.encode()

    @property
    def peer_address(self) -> Address:
        return Address(self.host, self.peer)

    @property
    def client_address(self) -> Address:
        return Address(self.host, self.client)

    @property
    def files_address(self) -> Address:
        return Address(self.host, self.files)

    @property
    def stores(self) -> bool:
        """Whether chunks are placed on this server at all (new ones only while it is up and not full)."""
        return self.weight > 0

    @property
    def owns(self) -> bool:
        """Whether chunks belong on this server, so that those that it lacks are copied to it.

        Not while it is emptied (`draining`), and not once the farm has given it up. One that is down for a while, or
        full, keeps what is its own.
        """
        return self.stores and not self.is_emptied and not self.given_up

    @property
    def is_emptied(self) -> bool:
        """Whether its chunks are to go to other servers, because an admin wants it out."""
        return self.draining or self.state == "draining"

    @property
    def live_state(self) -> str:
        """The state that it has, or will have, while it is there."""
        return "draining" if self.draining else "up"

    def to_value(self) -> bytes:
        return _to_json(asdict(self))

    @classmethod
    def from_value(cls, value: bytes, revision: int = 0) -> Server:
        known = {attribute.name for attribute in fields(cls)}
        server = cls(**{name: item for name, item in json.loads(value).items() if name in known})
        return server if server.seniority else evolve(server, seniority=revision)


@frozen(kw_only=True)
class Drain:
    """How far a server is that is emptied, by its own word."""

    chunks: int = 0
    """On its disk."""
    left: int = 0
    """Of those, which are not known to be whole on as many other servers as should have them."""
    bytes_left: int = 0
    rate: int = 0
    """Bytes a second, of late."""
    counted: bool = False
    """Whether it has looked at its whole disk, so that these numbers say something."""
    drained: bool = False
    """Whether nothing on it is needed any more."""
    paused: str = ""
    """Why it does not go on, as a clause; empty while it does."""

    @property
    def seconds_left(self) -> int | None:
        """At the present rate; None if nothing is left, or nothing moves."""
        return -(-self.bytes_left // self.rate) if self.left and self.rate else None


@frozen(kw_only=True)
class FarmOptions:
    """The options of `[farm]` that all servers share. Durations are seconds."""

    chunksize: int = 8 * MIB
    name: str = "farm"
    id: str = ""
    ca: str = ""
    replicas: int = 3
    table: str = "embedded"
    master_grace: float = 10.0
    repair_after: float = 600.0
    forget_after: float = 604800.0
    collect_grace: float = 86400.0
    two_server_takeover: str = "auto"

    def to_value(self) -> bytes:
        return _to_json(asdict(self))

    @classmethod
    def from_value(cls, value: bytes) -> FarmOptions:
        known = {attribute.name for attribute in fields(cls)}
        return cls(**{name: item for name, item in json.loads(value).items() if name in known})


def _digests(values: Iterable[bytes]) -> tuple[bytes, ...]:
    digests = tuple(values)
    assert all(len(digest) == DIGEST_LENGTH for digest in digests)
    return digests


@frozen(kw_only=True)
class File:
    """A row under `files/`.

    With `levels == 0` the `digests` are those of the file's chunks in order. With `levels == n` they name
    chunks that hold, concatenated, the raw digests of the level below.
    """

    name: str
    size: int
    chunk_size: int
    digests: tuple[bytes, ...] = field(default=(), converter=_digests)
    levels: int = 0
    modified: int = 0
    content_type: str = "application/octet-stream"
    etag: str = ""
    revision: int = 0
    """Of the row it was read from; not part of the value."""

    @property
    def key(self) -> bytes:
        return FILES + self.name.encode()

    def to_value(self) -> bytes:
        return _to_json(
            {
                "size": self.size,
                "chunk_size": self.chunk_size,
                "digests": base64.b64encode(b"".join(self.digests)).decode(),
                "levels": self.levels,
                "modified": self.modified,
                "content_type": self.content_type,
                "etag": self.etag,
            }
        )

    @classmethod
    def from_row(cls, key: bytes, value: bytes, revision: int) -> File:
        item = json.loads(value)
        return cls(
            name=key[len(FILES) :].decode(),
            size=item["size"],
            chunk_size=item["chunk_size"],
            digests=split_digests(base64.b64decode(item["digests"])),
            levels=item["levels"],
            modified=item["modified"],
            content_type=item["content_type"],
            etag=item["etag"],
            revision=revision,
        )


@frozen
class Manifest:
    """A file's own chunk size and its chunk digests in order; every chunk but the last has exactly that size."""

    size: int
    chunk_size: int
    digests: Sequence[bytes]

    def chunk_length(self, position: int) -> int:
        """Bytes of the chunk at `position`."""
        return min(self.chunk_size, self.size - position * self.chunk_size)


def split_digests(data: bytes) -> tuple[bytes, ...]:
    """Raw digests, concatenated, as a tuple; raises `InvalidRequest` for a broken length."""
    if len(data) % DIGEST_LENGTH:
        raise InvalidRequest(f"{len(data)} bytes are not a whole number of {DIGEST_LENGTH}-byte digests")
    return tuple(data[start : start + DIGEST_LENGTH] for start in range(0, len(data), DIGEST_LENGTH))


def chunk_count(size: int, chunk_size: int) -> int:
    """How many chunks a file of `size` bytes has."""
    return -(-size // chunk_size)


def etag_of(size: int, chunk_size: int, digests: Sequence[bytes]) -> str:
    """The strong ETag (without quotes) of a file: it changes whenever a byte of the file does."""
    text = hashlib.sha256(b"%d %d " % (size, chunk_size))
    for digest in digests:
        text.update(digest)
    return text.hexdigest()[:32]


@frozen
class Principal:
    """Who asks: a key's id and role, or a server's id with the role `server`."""

    id: str
    role: str
    prefix: str = ""
    """What the names of all files begin with that this one may see or touch."""

    def may(self, role: str) -> bool:
        """Whether this principal may do what takes `role` (read < write < admin)."""
        if self.role == "server":
            return role == "read"
        return ROLES.index(self.role) >= ROLES.index(role)


@frozen
class Receipt:
    """What an acknowledged write promises: the file as committed, and the fewest copies any chunk of it has."""

    file: File
    copies: int
    holders: tuple[str, ...]
    """Ids of the servers that hold chunks of it."""
    created: bool = True
    """Whether there was no file of that name at the moment of the commit."""
