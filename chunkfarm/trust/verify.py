"""Judging a server by nothing but the fingerprint of its farm's CA, as the CLI does.

Servers send the CA in their chain, so there is no file to hand around: the fingerprint in `config.ini` says whether it
is the right one. This comes after the handshake, whose contexts accept any certificate, and before anything is said.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity

from chunkfarm.model import check_server_id
from chunkfarm.trust.authority import fingerprint_of, introduced, issued_by, moment, server_id_of
from chunkfarm.trust.private import TrustError


class Untrusted(TrustError):
    """The other side is not, or not provably, the server it should be."""


def chain_of(transport: Any) -> tuple[x509.Certificate, ...]:
    """The certificates that a TLS peer showed, its own first; empty if it showed none or is not encrypted.

    `transport` is anything whose `getHandle()` is a pyOpenSSL `Connection` of which this is the client side.
    """
    connection = transport.getHandle()
    if not isinstance(connection, SSL.Connection):
        return ()
    try:
        return tuple(connection.get_peer_cert_chain(as_cryptography=True) or ())
    except ValueError as error:
        raise Untrusted("the server's certificate cannot be read") from error


def check_chain(chain: Sequence[x509.Certificate], fingerprint: str, expected: str | None, now: int | None) -> str:
    """Return the server id that a chain proves.

    `fingerprint` is the farm CA's, as in `config.ini`. `expected` is a host name, an address or a server id that the
    certificate must carry, or None if any server of the farm will do. `now` is in ms; None leaves the dates out, as
    between servers, where the table decides. The server's certificate may be signed by a CA that the one of this
    fingerprint introduces in the chain. Raises `Untrusted` with the reason.
    """
    if not chain:
        raise Untrusted("the server showed no certificate")
    leaf = chain[0]
    ca = next((link for link in chain[1:] if fingerprint_of(link) == fingerprint.lower()), None)
    if ca is None:
        shown = fingerprint_of(chain[-1])
        raise Untrusted(
            f"the server is not of this farm: the farm's CA is {fingerprint or 'not known'}, and it showed {shown}; if "
            "the farm has changed its CA, take a newer config.ini from one of its servers"
        )
    links: tuple[tuple[x509.Certificate, str], ...] = ((leaf, "the server's certificate"), (ca, "the farm's CA"))
    if not issued_by(leaf, ca):
        # The farm has changed its CA, or does so now, and this side has yet to be told.
        found = introduced(chain, (ca,))
        if found is None:
            raise Untrusted("the server's certificate was not signed by the farm's CA that it showed")
        links += ((found[0], "the farm's next CA"),)
        links += tuple((link, "the introduction of the farm's next CA") for link in found[1:])
    server_id = server_id_of(leaf)
    if server_id is None or not _may_serve(leaf):
        raise Untrusted("the server's certificate is not one of a farm's server")
    if now is not None:
        for link, whose in links:
            _check_dates(link, whose, now)
    if expected is not None:
        _check_name(leaf, server_id, expected)
    return server_id


def _may_serve(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in usages


def _check_dates(certificate: x509.Certificate, whose: str, now: int) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if moment(now) < start:
        raise Untrusted(f"{whose} is valid from {start:%Y-%m-%d %H:%M} UTC only: is this machine's clock right?")
    if moment(now) > end:
        raise Untrusted(f"{whose} ran out on {end:%Y-%m-%d %H:%M} UTC: is this machine's clock right?")


def _check_name(leaf: x509.Certificate, server_id: str, expected: str) -> None:
    try:
        check_server_id(expected)
    except ValueError:
        pass
    else:
        if expected != server_id:
            raise Untrusted(f"this is the server {server_id}, not {expected}")
        return
    try:
        verify_service_identity(extract_patterns(leaf), [_identity(expected)], [])
    except (VerificationError, CertificateError) as error:
        raise Untrusted(
            f"the certificate of server {server_id} is not for {expected}: add it to `names` of that server, "
            "or use an address that is in it"
        ) from error
    except ValueError as error:
        raise Untrusted(f"{expected!r} is neither a host name nor an address") from error


def _identity(expected: str) -> DNS_ID | IPAddress_ID:
    try:
        # The zone of an IPv6 address is never part of a certificate.
        return IPAddress_ID(str(ipaddress.ip_address(expected.strip("[]").partition("%")[0])))
    except ValueError:
        return DNS_ID(expected.rstrip("."))
