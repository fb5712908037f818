"""The code with which one new server may join: where the farm is, how to recognise it, and a secret. Pure.

A code is text that a person can copy: `chunkfarm1-` and base64url of JSON. It takes the place of `config.ini` and
`farm.join` on the new machine.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from attrs import field, frozen

from chunkfarm.config_text import Listed
from chunkfarm.config_values import read_host, read_port, read_server_name
from chunkfarm.model import check_server_id
from chunkfarm.trust.private import TrustError

MARK = "chunkfarm1-"
SECRET_LENGTH = 32
"""Bytes: as long as the farm's join key, in whose place it stands for one server."""
CODE_LENGTH_MAX = 4096
"""Characters; one with three addresses has some 500."""
ADDRESSES_MAX = 8
ID = re.compile(r"[0-9a-f]{16}\Z")
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}\Z")


@frozen
class Invitation:
    """What a code says."""

    id: str
    """Of the row in the table that says whether the code is still good: 16 hexadecimal digits."""
    secret: bytes = field(repr=False)
    farm: str
    ca: str
    """Fingerprint of the farm's CA."""
    servers: tuple[Listed, ...]
    """Some of the farm's, to be asked."""

    def to_code(self) -> str:
        """As a person copies it."""
        item = {
            "i": self.id,
            "s": base64.b64encode(self.secret).decode(),
            "f": self.farm,
            "c": self.ca,
            "a": [[one.name, one.host, one.client, one.peer, one.files, one.id] for one in self.servers],
        }
        text = json.dumps(item, separators=(",", ":")).encode()
        return MARK + base64.urlsafe_b64encode(text).decode().rstrip("=")

    @classmethod
    def from_code(cls, code: str) -> Invitation:
        """The reverse; raises `TrustError` for anything else, without a word of it: it may be a secret."""
        wrong = TrustError(f"this is no code of `chunkfarm invite`: one begins with {MARK}")
        text = code.strip()
        if not text.startswith(MARK) or len(text) > CODE_LENGTH_MAX:
            raise wrong
        body = text.removeprefix(MARK)
        try:
            item: dict[str, Any] = json.loads(base64.b64decode(body + "=" * (-len(body) % 4), b"-_", validate=True))
            found = cls(
                id=_matching(ID, item["i"]),
                secret=base64.b64decode(item["s"], validate=True),
                farm=check_server_id(item["f"]),
                ca=_matching(_FINGERPRINT, item["c"]),
                servers=tuple(_listed(row) for row in item["a"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
            raise wrong from None
        if len(found.secret) != SECRET_LENGTH or not 0 < len(found.servers) <= ADDRESSES_MAX:
            raise wrong
        return found


def _matching(pattern: re.Pattern[str], text: Any) -> str:
    if not isinstance(text, str) or not pattern.match(text):
        raise ValueError("unexpected")
    return text


def _listed(row: Any) -> Listed:
    name, host, client, peer, files, server_id = row
    return Listed(
        name=read_server_name(name),
        host=read_host(host),
        client=read_port(str(client)),
        peer=read_port(str(peer)),
        files=read_port(str(files)),
        id=check_server_id(server_id),
        joined=0,
        state="up",
    )
