"""Certificates and TLS contexts made for a test."""

from __future__ import annotations

import datetime
import functools
import ipaddress
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from OpenSSL.crypto import X509

PARTIAL_WRITE = 0x1


@functools.cache
def certificate(name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A self-signed certificate for `name`, localhost and 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()), key


def pem(name: str) -> tuple[bytes, bytes]:
    """Certificate and key as PEM."""
    made, key = certificate(name)
    return (
        made.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


@frozen
class Contexts:
    """Makes one TLS context and gives it for every connection."""

    make: Callable[[], SSL.Context]

    def getContext(self) -> SSL.Context:
        return self.make()


def _choose(ours: list[bytes], connection: SSL.Connection, theirs: list[bytes]) -> Any:
    return next((item for item in ours if item in theirs), SSL.NO_OVERLAPPING_PROTOCOLS)


def contexts(
    name: str | None,
    *,
    version: int = SSL.TLS1_3_VERSION,
    alpn: Sequence[bytes] = (),
    verify: Callable[[SSL.Connection, X509, int, int, int], bool] | None = None,
    tuned: bool = True,
) -> Contexts:
    """A TLS context of exactly `version` that shows the certificate of `name` and calls `verify` with the peer's."""
    context = SSL.Context(SSL.TLS_METHOD)
    if tuned:
        context.clear_mode(PARTIAL_WRITE)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    if name is not None:
        made, key = certificate(name)
        context.use_certificate(made)
        context.use_privatekey(key)
    if alpn:
        context.set_alpn_protos(list(alpn))
        context.set_alpn_select_callback(functools.partial(_choose, list(alpn)))
    if verify is not None:
        context.set_verify(SSL.VERIFY_PEER, verify)
    return Contexts(lambda: context)
