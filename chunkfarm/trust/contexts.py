"""TLS on ports and links, from the identity that this server has at the moment.

No handshake here fails for a certificate: a peer may have none yet (it wants to join), and between servers the
row in the table decides, not a date. So every context asks the other side for its certificate, accepts what
comes, and leaves the judgement to who opened or accepted the connection: `Contexts.peer_of` on a server,
`verify.check_chain` for those who know the CA's fingerprint only. A connection whose other side nobody judged has
proved nothing.

A context is frozen by its first connection, so a new identity means new contexts; the factories here look theirs up
for each connection, so that listening ports and reconnecting links need not know.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLContextFactory,
    IOpenSSLServerConnectionCreator,
)
from zope.interface import implementer

from chunkfarm.trust.authority import INTRODUCTION, issued_by, key_digest, server_id_of
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.private import TrustError, read_private, read_public
from chunkfarm.wire.tls import explain

if TYPE_CHECKING:
    from twisted.protocols.tls import TLSMemoryBIOProtocol

HTTP_1_1 = b"http/1.1"

CIPHERS = b":".join(
    [
        b"ECDHE-ECDSA-AES128-GCM-SHA256",
        b"ECDHE-RSA-AES128-GCM-SHA256",
        b"ECDHE-ECDSA-AES256-GCM-SHA384",
        b"ECDHE-RSA-AES256-GCM-SHA384",
        b"ECDHE-ECDSA-CHACHA20-POLY1305",
        b"ECDHE-RSA-CHACHA20-POLY1305",
    ]
)
"""For TLS 1.2: forward secrecy and authenticated encryption only. RSA is there for a `Certificate` from elsewhere."""
CIPHERS_1_3 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""The quickest first. It is the client's order that counts, since only the client may be a machine without AES."""

STRICT = 3
"""OpenSSL's security level on this server's ports: nothing in a handshake is weaker than 128 bits.

That refuses what the default level lets pass beyond Mozilla's *intermediate* configuration: signatures with SHA-224,
groups of 2,048 bits. pyOpenSSL has no public way to give lists of groups and signatures; its `set_tmp_ecdh` takes one
curve, which would refuse all who offer another, and X25519 with ML-KEM."""
COMPATIBLE = 2
"""The same with 112 bits, for links to file ports, and for one of ours, with a certificate from elsewhere: most of the
world's are of RSA with 2,048 bits. It is said, because OpenSSL as some systems build it begins at 1."""
RSA_BITS_STRICT = 3072
"""The shortest RSA key of 128 bits, by NIST SP 800-57."""

MODE_ENABLE_PARTIAL_WRITE = 0x1
"""OpenSSL's SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets on each new context and has no name for."""
MODE_ACCEPT_MOVING_WRITE_BUFFER = 0x2
"""OpenSSL's SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER; pyOpenSSL sets it, and our writing depends on it."""
OP_NO_RENEGOTIATION = 1 << 30
"""OpenSSL's SSL_OP_NO_RENEGOTIATION: a TLS 1.2 client could else have us do handshakes without end."""


@frozen
class Certificate:
    """A certificate from elsewhere for the file port, with its chain and key."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: Any = field(repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str], key_path: str | os.PathLike[str] | None = None) -> Certificate:
        """From a PEM file with the certificate, then its chain; the key in the same file or in one of its own.

        The file with the key must be closed to others. Raises `TrustError`. Blocks for the disk.
        """
        secret = read_private(key_path if key_path is not None else path)
        text = read_public(path) if key_path is not None else secret
        try:
            certificates = x509.load_pem_x509_certificates(text)
        except ValueError as error:
            raise TrustError(f"{path} holds no certificate in PEM form") from error
        try:
            key = serialization.load_pem_private_key(_key_part(secret), None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise TrustError(f"{key_path or path} holds no private key in PEM form without a password") from error
        if key.public_key() != certificates[0].public_key():
            raise TrustError(f"the key in {key_path or path} does not belong to the first certificate in {path}")
        loaded = cls(certificates[0], tuple(certificates[1:]), key)
        try:
            loaded.show_in(_new_context(SSL.TLS1_2_VERSION, loaded.level))
        except SSL.Error as error:
            raise TrustError(f"TLS does not take the certificate in {path}: {explain(error)}") from error
        return loaded

    @property
    def level(self) -> int:
        """The security level that all of its keys reach."""
        keys = [shown.public_key() for shown in (self.certificate, *self.chain)]
        short = any(isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS_STRICT for key in keys)
        return COMPATIBLE if short else STRICT

    def show_in(self, context: SSL.Context) -> None:
        """Have it shown by connections of this context."""
        context.use_certificate(self.certificate)
        context.use_privatekey(self.key)
        for link in self.chain:
            context.add_extra_chain_cert(link)


@implementer(IOpenSSLContextFactory, IOpenSSLServerConnectionCreator, IOpenSSLClientConnectionCreator)
@frozen
class ContextFactory:
    """What Twisted wants for `startTLS`, `TLSMemoryBIOFactory` and `wrapClientTLS`.

    The context is looked up for each connection. As a client, `server_name` is sent ahead (SNI) if given.
    """

    _lookup: Callable[[], SSL.Context]
    server_name: bytes | None = None

    def getContext(self) -> SSL.Context:
        return self._lookup()

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self._lookup(), None)

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._lookup(), None)
        if self.server_name is not None:
            connection.set_tlsext_host_name(self.server_name)
        return connection


@define(eq=False)
class Contexts:
    """The TLS contexts of one process, made from its identity when they are first needed.

    Without an identity (a client of the farm) only `client` contexts can be had. `file_certificate` is shown on the
    file port in place of the farm's, except to a client that asks for the server id by name.
    """

    identity: Identity | None = None
    file_certificate: Certificate | None = None
    in_force: tuple[x509.Certificate, ...] = ()
    """The CAs whose signature alone is enough between servers, by the table; without any, all that are believed."""
    key_of: Callable[[str], str] = lambda server_id: ""
    """The digest of the public key that stands in a server's row; empty if none does."""
    introduces_to_clients: bool = False
    """Whether client and file port also show what introduces this server's CA to those who know the one before."""
    _made: dict[object, SSL.Context] = field(factory=dict, init=False, repr=False)

    def replace(self, identity: Identity) -> None:
        """Use another identity for all connections from now on; those that are open keep theirs."""
        self.identity = identity
        self._made.clear()

    def show_on_file_port(self, certificate: Certificate | None) -> None:
        """Use another certificate for the file port from now on, or with None the farm's again."""
        self.file_certificate = certificate
        self._made.clear()

    def introduce_to_clients(self, shown: bool) -> None:
        """Show it, or do not any more, on all connections from now on."""
        if shown != self.introduces_to_clients:
            self.introduces_to_clients = shown
            self._made.clear()

    def peer_of(self, certificate: x509.Certificate | crypto.X509 | None) -> str | None:
        """The server id that a peer's certificate proves, or None.

        It must state a server id, and be signed by a CA in force itself; or its key must be the one that stands in that
        server's row, whoever signed it, for a CA whose key is known to others proves nothing. Its dates do not count:
        whether that server is one of the farm is for the table to say. None while this server has no CA. It costs a
        check of a signature (0.1 ms), so ask once a connection, not once a request.
        """
        if certificate is None or self.identity is None or self.identity.ca is None:
            return None
        try:
            shown = certificate.to_cryptography() if isinstance(certificate, crypto.X509) else certificate
            server_id = server_id_of(shown)
            if server_id is None:
                return None
            if any(issued_by(shown, ca) for ca in self.in_force or self.identity.believed):
                return server_id
            key = self.key_of(server_id)
            return server_id if key and key == key_digest(shown) else None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # Bytes that OpenSSL lets pass and a stricter reader does not are no certificate of ours.
            return None

    def peer_server(self) -> SSL.Context:
        """For the peer port: TLS 1.3, asks for a certificate."""
        return self._cached("peer server", lambda: self._server(SSL.TLS1_3_VERSION, introductions=sys.maxsize))

    def peer_client(self) -> SSL.Context:
        """For links to peer ports: TLS 1.3, shows this server's certificate."""
        return self._cached("peer client", lambda: self._with_identity(_new_context(SSL.TLS1_3_VERSION, STRICT)))

    def client_port(self) -> SSL.Context:
        """For STARTTLS on the client port."""
        return self._cached(
            "client port", lambda: self._server(SSL.TLS1_2_VERSION, introductions=self._shown_to_clients)
        )

    def file_port(self) -> SSL.Context:
        """For the file port: speaks HTTP/1.1 only, and says so."""
        return self._cached("file port", self._make_file_port)

    def client(self, protocols: Sequence[bytes] = ()) -> SSL.Context:
        """For connections to client and file ports, offering `protocols` (ALPN).

        Shows this server's certificate if there is one.
        """
        return self._cached(("client", tuple(protocols)), lambda: self._make_client(tuple(protocols)))

    def peer_server_factory(self) -> ContextFactory:
        """`peer_server`, looked up for each connection."""
        return ContextFactory(self.peer_server)

    def peer_client_factory(self) -> ContextFactory:
        """`peer_client`, looked up for each connection."""
        return ContextFactory(self.peer_client)

    def client_port_factory(self) -> ContextFactory:
        """`client_port`, looked up for each connection."""
        return ContextFactory(self.client_port)

    def file_port_factory(self) -> ContextFactory:
        """`file_port`, looked up for each connection."""
        return ContextFactory(self.file_port)

    def client_factory(self, protocols: Sequence[bytes] = (), server_id: str = "") -> ContextFactory:
        """`client`, looked up for each connection.

        With a `server_id` the farm's certificate is asked for, also where the file port has another.
        """
        return ContextFactory(lambda: self.client(protocols), server_id.encode() or None)

    def _cached(self, name: object, make: Callable[[], SSL.Context]) -> SSL.Context:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def _shown_to_clients(self) -> int:
        """Certificates of an introduction that clients are shown: by the CA before, and by none before that one."""
        return INTRODUCTION if self.introduces_to_clients else 0

    def _with_identity(self, context: SSL.Context, introductions: int = 0) -> SSL.Context:
        assert self.identity is not None, "a server has an identity, if only a provisional one"
        context.use_certificate(self.identity.certificate)
        context.use_privatekey(self.identity.key)
        for link in self.identity.introductions[:introductions]:
            # Before the CA: OpenSSL takes the first that fits, and has the CA itself if it is to be trusted.
            context.add_extra_chain_cert(link)
        if self.identity.ca is not None:
            # With the CA in the chain, its fingerprint is all that a client needs to know.
            context.add_extra_chain_cert(self.identity.ca)
        return context

    def _server(self, minimum: int, own: Certificate | None = None, *, introductions: int) -> SSL.Context:
        context = _new_context(minimum, STRICT if own is None else own.level)
        # Without a name of our own for sessions, OpenSSL refuses to resume one when a certificate was asked for.
        context.set_session_id(b"chunkfarm")
        assert self.identity is not None
        for ca in self.identity.believed[:1]:
            # A browser then does not bother people who have certificates of other CAs. All CAs of a farm have one name.
            context.add_client_ca(ca)
        if own is None:
            return self._with_identity(context, introductions)
        own.show_in(context)
        return context

    def _make_file_port(self) -> SSL.Context:
        context = self._server(SSL.TLS1_2_VERSION, introductions=self._shown_to_clients)
        context.set_alpn_select_callback(_choose_http)
        if self.file_certificate is None:
            return context
        assert self.identity is not None
        farm, farm_name = context, self.identity.server_id.encode()

        def choose_certificate(connection: SSL.Connection) -> None:
            if connection.get_servername() == farm_name:
                connection.set_context(farm)

        context = self._server(SSL.TLS1_2_VERSION, self.file_certificate, introductions=0)
        context.set_alpn_select_callback(_choose_http)
        context.set_tlsext_servername_callback(choose_certificate)
        return context

    def _make_client(self, protocols: tuple[bytes, ...]) -> SSL.Context:
        context = _new_context(SSL.TLS1_2_VERSION, COMPATIBLE)
        if protocols:
            context.set_alpn_protos(list(protocols))
        # A provisional certificate would prove nothing.
        return self._with_identity(context) if self.identity is not None and self.identity.ca_pem else context


def key_digest_of(certificate: x509.Certificate | crypto.X509) -> str:
    """SHA-256 (hexadecimal) of the public key in a certificate as a connection gives it."""
    return key_digest(certificate.to_cryptography() if isinstance(certificate, crypto.X509) else certificate)


def _new_context(minimum: int, level: int) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(minimum)
    context.set_cipher_list(b"%b:@SECLEVEL=%d" % (CIPHERS, level))
    context.set_tls13_ciphersuites(CIPHERS_1_3)
    # A partial write ends after one record of 16 KiB, which makes sixteen calls of a piece of 256 KiB.
    context.clear_mode(MODE_ENABLE_PARTIAL_WRITE)
    # Idle links, of which there may be thousands, then keep no buffers.
    context.set_mode(MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL.MODE_RELEASE_BUFFERS)
    context.set_options(SSL.OP_NO_COMPRESSION | OP_NO_RENEGOTIATION)
    context.set_verify(SSL.VERIFY_PEER, _accept)
    return context


def _accept(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
    return True


def _choose_http(connection: SSL.Connection, offered: list[bytes]) -> Any:
    # A client that offers only others is better served by an HTTP answer that says so than by a failed handshake.
    return HTTP_1_1 if HTTP_1_1 in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _key_part(pem: bytes) -> bytes:
    """The private key in a PEM text that holds certificates too."""
    start = pem.find(b"-----BEGIN")
    while start >= 0:
        if b"PRIVATE KEY" in pem[start : pem.find(b"\n", start)]:
            return pem[start:]
        start = pem.find(b"-----BEGIN", start + 1)
    return pem
