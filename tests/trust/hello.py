"""ClientHellos as no library would write them: one offers exactly what a test wants it to offer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress

from OpenSSL import SSL

TLS_1_2, TLS_1_3 = 0x0303, 0x0304
ALERT, HANDSHAKE, SERVER_HELLO = 21, 22, 2
X25519, P256, P384, P521, X448, P224, SECP256K1 = 0x1D, 0x17, 0x18, 0x19, 0x1E, 0x15, 0x16
FFDHE2048, FFDHE3072 = 0x100, 0x101
ECDSA_SHA256, ECDSA_SHA384, ECDSA_SHA512 = 0x0403, 0x0503, 0x0603
ECDSA_SHA224, ECDSA_SHA1, RSA_SHA1, RSA_SHA256, RSA_MD5 = 0x0303, 0x0203, 0x0201, 0x0401, 0x0101
EVERY_SIGNATURE = (ECDSA_SHA256, ECDSA_SHA384, ECDSA_SHA512, 0x0804, 0x0805, RSA_SHA256)
GOOD_CIPHERS = (0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8)
GOOD_CIPHERS_1_3 = (0x1301, 0x1302, 0x1303)


def _vector(content: bytes, length: str = "!H") -> bytes:
    return struct.pack(length, len(content)) + content


def _numbers(numbers: Sequence[int]) -> bytes:
    return b"".join(struct.pack("!H", number) for number in numbers)


def _extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!H", kind) + _vector(content)


def client_hello(
    version: int = TLS_1_2,
    ciphers: Sequence[int] | None = None,
    groups: Sequence[int] = (X25519, P256, P384),
    signatures: Sequence[int] = EVERY_SIGNATURE,
    compression: bytes = b"\0",
) -> bytes:
    """A ClientHello in its record. For TLS 1.3 without a key share: the server asks for one of the group it chooses."""
    if ciphers is None:
        ciphers = GOOD_CIPHERS_1_3 if version == TLS_1_3 else GOOD_CIPHERS
    extensions = (
        _extension(10, _vector(_numbers(groups)))
        + _extension(11, _vector(b"\0", "!B"))
        + _extension(13, _vector(_numbers(signatures)))
    )
    if version == TLS_1_3:
        extensions += _extension(43, _vector(_numbers((TLS_1_3,)), "!B")) + _extension(51, _vector(b""))
    body = (
        struct.pack("!H", min(version, TLS_1_2))
        + bytes(range(32))
        + _vector(b"\1" * 32, "!B")
        + _vector(_numbers(ciphers))
        + _vector(compression, "!B")
        + _vector(extensions)
    )
    return struct.pack("!BH", HANDSHAKE, 0x0301) + _vector(b"\1" + struct.pack("!I", len(body))[1:] + body)


def is_taken(context: SSL.Context, hello: bytes) -> bool:
    """Whether a server goes on after that hello (a ServerHello, or the request for another key share)."""
    connection = SSL.Connection(context, None)
    connection.set_accept_state()
    connection.bio_write(hello)
    refused = False
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        pass
    except SSL.Error:
        refused = True
    said = b""
    with suppress(SSL.WantReadError):
        said = connection.bio_read(1 << 16)
    taken = said[:1] == bytes([HANDSHAKE]) and said[5:6] == bytes([SERVER_HELLO])
    assert taken != refused and (taken or said[:1] == bytes([ALERT])), said[:6]
    return taken
