"""A farm's trust in memory: authorities, identities, and TLS connections without sockets."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress

from attrs import define
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from chunkfarm.trust.authority import DAY_MS, SERVER_URI, Authority, moment
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity

NOW = 1_795_000_000_000
"""Some day in November 2026."""
ALPHA = "a1" * 16
BETA = "b2" * 16
FARM_ID = "6f0c" * 8
BIO_BYTES = 1 << 20
ROUNDS_MAX = 10
"""More than any handshake takes."""


def make_authority(now: int = NOW) -> Authority:
    return Authority.create(FARM_ID, now)


def make_identity(
    authority: Authority, server_id: str = ALPHA, names: Sequence[str] = ("10.0.0.1", "alpha.example"), now: int = NOW
) -> Identity:
    """A server that has joined."""
    return Identity.provisional(server_id, now).signed_by(authority, names, now)


def make_contexts(authority: Authority | None = None, server_id: str = ALPHA) -> Contexts:
    """The TLS of a server: of one that has joined, if there is an authority."""
    if authority is None:
        return Contexts(Identity.provisional(server_id, NOW))
    return Contexts(make_identity(authority, server_id))


def forge(
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    server_ids: Sequence[str] = (ALPHA,),
    subject: x509.Name | None = None,
    ca: bool = False,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
) -> x509.Certificate:
    """A certificate with whatever an attacker wants to have in it."""
    names = [x509.UniformResourceIdentifier(SERVER_URI + server_id) for server_id in server_ids]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject or issuer)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment(NOW - DAY_MS))
        .not_valid_after(moment(NOW + DAY_MS))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@define
class Side:
    """One end of a TLS connection: the part of a transport that `trust` looks at."""

    connection: SSL.Connection

    def getHandle(self) -> SSL.Connection:
        return self.connection


@define
class Link:
    """Two ends of a TLS connection, joined in memory."""

    client: Side
    server: Side

    def handshake(self) -> Link:
        """Carry bytes until nothing moves; raises `SSL.Error` if one side gives up."""
        quiet = False
        while not quiet:
            for side in (self.client, self.server):
                with suppress(SSL.WantReadError):
                    side.connection.do_handshake()
            quiet = not self.carry()
        return self

    def carry(self) -> bool:
        """Carry what either side has to send, and say whether there was anything."""
        moved = False
        for source, target in ((self.client, self.server), (self.server, self.client)):
            with suppress(SSL.WantReadError):
                target.connection.bio_write(source.connection.bio_read(BIO_BYTES))
                moved = True
        return moved


def make_link(client: SSL.Context, server: SSL.Context, server_name: bytes | None = None) -> Link:
    """A connection before its handshake."""
    ends = SSL.Connection(client, None), SSL.Connection(server, None)
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    if server_name is not None:
        ends[0].set_tlsext_host_name(server_name)
    return Link(Side(ends[0]), Side(ends[1]))


def handshake_with_python(client: ssl.SSLContext, server: SSL.Context, host: str) -> ssl.SSLObject:
    """A handshake between Python's own TLS client, which judges certificates itself, and a context of ours."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    end = client.wrap_bio(incoming, outgoing, server_hostname=host)
    ours = SSL.Connection(server, None)
    ours.set_accept_state()
    for _ in range(ROUNDS_MAX):
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
        if outgoing.pending:
            ours.bio_write(outgoing.read())
        with suppress(SSL.WantReadError):
            ours.do_handshake()
        with suppress(SSL.WantReadError):
            incoming.write(ours.bio_read(BIO_BYTES))
    return end
