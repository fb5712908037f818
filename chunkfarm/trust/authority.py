"""The farm's certificate authority: what it signs, and what stands in a certificate.

A server's certificate names it twice. Between servers only the URI name `chunkfarm:server-<server id>` counts
(see `server_id_of`): the authority alone writes it, and no host that a server asks for can look like it. The
subject's common name repeats the id for people. Everything else (advertised host, host name, `names`, and
localhost, 127.0.0.1 and ::1 always) are DNS and address names, by which curl and browsers know the server.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import field, frozen
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from service_identity.exceptions import CertificateError
from service_identity.hazmat import DNS_ID, DNSPattern

from chunkfarm.model import check_server_id
from chunkfarm.trust.private import TrustError

CURVE = ec.SECP256R1
"""P-256: fast to sign with, and every TLS client knows it."""
DAY_MS = 24 * 3600 * 1000
BACKDATED_MS = 2 * DAY_MS
"""A signer whose clock runs ahead must not make certificates that are not yet valid for the others."""
AUTHORITY_LIFE_MS = 20 * 365 * DAY_MS
SERVER_LIFE_MS = 365 * DAY_MS
"""A server that was shelved for less than a year comes back with a certificate that clients accept."""
REQUEST_BYTES_MAX = 16 * 1024
"""A signing request with all its names takes some 3 KiB; this one comes from a stranger."""
NAMES_MAX = 32
"""Names in one certificate: enough for every network of a machine, few enough to check quickly."""
INTRODUCTION = 2
"""Certificates by which one CA introduces the next: one for that one's key, and its own."""
INTRODUCTIONS_MAX = 8
"""Steps from one CA to the next that servers go on introducing: whoever was away for more of them joins anew. With
some 800 bytes a certificate they fit a row, and what servers send each other."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
SERVER_URI = "chunkfarm:server-"
COMMON_NAME_MAX = 64
"""From X.520; longer ones are refused by strict readers."""


def fingerprint(certificate_pem: bytes) -> str:
    """`sha256:` and the digest of a certificate in hexadecimal, as `config.ini` has it; raises `TrustError`."""
    return fingerprint_of(parse_certificate(certificate_pem))


def fingerprint_of(certificate: x509.Certificate) -> str:
    """The same of a certificate already read."""
    return "sha256:" + certificate.fingerprint(hashes.SHA256()).hex()


def parse_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM text; raises `TrustError`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise TrustError("this is not a certificate in PEM form") from error


def certificates_in(pem: bytes) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM text; raises `TrustError` if there is none."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise TrustError("this is not a certificate in PEM form") from error


def pem_of(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def bundle(certificates: Iterable[x509.Certificate]) -> bytes:
    """Certificates as one PEM text, each of them once."""
    return b"".join(pem_of(certificate) for certificate in dict.fromkeys(certificates))


def key_digest(certificate: x509.Certificate) -> str:
    """SHA-256 (hexadecimal) of a certificate's public key, whoever signed it."""
    return _digest_of_key(certificate.public_key())


def _digest_of_key(key: Any) -> str:
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key.public_bytes(*form)).hexdigest()


def parse_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """An unencrypted P-256 key of ours; raises `TrustError`."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError("this is not a private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, CURVE):
        raise TrustError("this is not a private key on the curve P-256")
    return key


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PKCS #8, not encrypted: the file's mode or a sealed row protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_key_digest(request_pem: bytes) -> str:
    """SHA-256 (hexadecimal) of the public key in a signing request: what an invite is bound to; raises `TrustError`."""
    return _digest_of_key(_parse_request(request_pem).public_key())


def general_name(name: str) -> x509.GeneralName:
    """A host name or address as it stands in a certificate; raises `TrustError` if it cannot.

    A DNS name may begin with `*.`. Whatever the verifying side would reject is refused here, since one bad
    name makes the whole certificate unusable to it.
    """
    try:
        # An IPv6 zone such as %eth0 has a meaning on one machine only.
        return x509.IPAddress(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        pass
    star, bare = ("*.", name[2:]) if name.startswith("*.") else ("", name)
    try:
        text = star + DNS_ID(bare.rstrip(".")).hostname.decode("ascii")
        DNSPattern.from_bytes(text.encode("ascii"))
        if len(text) > 253 or any(not 0 < len(label) <= 63 for label in text.split(".")):
            raise ValueError(text)
    except (ValueError, CertificateError) as error:
        raise TrustError(
            f"{name!r} can be no name in a certificate: it is neither a host name nor an address"
        ) from error
    return x509.DNSName(text)


def usable_names(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that can stand in a certificate, for names that nobody chose, such as a machine's host name."""
    usable = []
    for name in names:
        try:
            general_name(name)
        except TrustError:
            continue
        usable.append(name)
    return tuple(usable)


def requested_names(request_pem: bytes) -> tuple[str, ...]:
    """The host names and addresses that a signing request asks for; raises `TrustError`."""
    try:
        return _host_names(_parse_request(request_pem).extensions)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise TrustError("the signing request has broken extensions") from error


def certified_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The host names and addresses in a certificate of ours."""
    return _host_names(certificate.extensions)


def _host_names(extensions: x509.Extensions) -> tuple[str, ...]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    hosts = tuple(names.get_values_for_type(x509.DNSName))
    addresses = tuple(str(address) for address in names.get_values_for_type(x509.IPAddress))
    return hosts + addresses


def server_id_of(certificate: x509.Certificate) -> str | None:
    """The server id that a certificate states. It proves nothing until the signature has been checked."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        stated = [
            uri.removeprefix(SERVER_URI)
            for uri in names.get_values_for_type(x509.UniformResourceIdentifier)
            if uri.startswith(SERVER_URI)
        ]
        return check_server_id(stated[0]) if len(stated) == 1 else None
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return None


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether `authority` itself, and no authority below it or of the same name, signed this server certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    except (x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    # The authority's own certificate is signed by it too, and is no server's.
    return not constraints.ca


def introduces(link: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether by `link` a farm's CA says of another key that it is the farm's next CA.

    Such a certificate has the CA's own name as its subject; whatever else a CA may have signed is none.
    """
    try:
        link.verify_directly_issued_by(authority)
        constraints = link.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    except (x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    return constraints.ca and link.subject == authority.subject


def introduced(
    chain: Sequence[x509.Certificate], authorities: Iterable[x509.Certificate]
) -> tuple[x509.Certificate, ...] | None:
    """The CA that signed the first of a chain, and by what one of `authorities` introduces it there; else None.

    That may take several steps, of a CA that introduced the next, which introduced the one after that.
    """
    ways: dict[x509.Certificate, tuple[x509.Certificate, ...]] = dict.fromkeys(authorities, ())
    shown = tuple(chain[1 : INTRODUCTION * (INTRODUCTIONS_MAX + 1)])
    for _ in range(INTRODUCTIONS_MAX):
        before = len(ways)
        for link in shown:
            by = next((authority for authority in ways if introduces(link, authority)), None)
            for ca in shown if by is not None and link not in ways else ():
                if ca not in ways and ca != link and ca.public_key() == link.public_key() and introduces(ca, ca):
                    assert by is not None
                    ways[ca] = (ca, link, *ways[by])
                    if issued_by(chain[0], ca):
                        return ways[ca]
        if len(ways) == before:
            break
    return None


def moment(milliseconds: int) -> datetime.datetime:
    """A time as certificates have it, in whole seconds."""
    return datetime.datetime.fromtimestamp(milliseconds // 1000, datetime.UTC)


@frozen
class Authority:
    """The farm's CA with its key."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)

    @classmethod
    def create(cls, farm_id: str, now: int) -> Authority:
        """A new CA, valid for 20 years from `now` (ms since 1970)."""
        key = ec.generate_private_key(CURVE())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "chunkfarm"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"farm {farm_id}"[:COMMON_NAME_MAX]),
            ]
        )
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        life = moment(now - BACKDATED_MS), moment(now + AUTHORITY_LIFE_MS)
        certificate = _authority_certificate(name, key.public_key(), name, identifier, life).sign(key, hashes.SHA256())
        return cls(pem_of(certificate), key_to_pem(key))

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes) -> Authority:
        """A CA as stored before; raises `TrustError` if certificate and key do not belong together."""
        authority = cls(certificate_pem, key_pem)
        if authority.certificate.public_key() != authority.key.public_key():
            raise TrustError("the CA's key does not belong to its certificate")
        return authority

    @functools.cached_property
    def certificate(self) -> x509.Certificate:
        return parse_certificate(self.certificate_pem)

    @functools.cached_property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return parse_key(self.key_pem)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate_pem)

    def introduce(self, successor: x509.Certificate) -> bytes:
        """What says to those who know this CA that `successor` is the farm's next one: two certificates (PEM).

        The first is for the successor's key and signed by this CA, the second is this CA's own. Servers send both along
        with their own certificate, so that who knows either of the two CAs knows them. Raises `TrustError` for a
        successor of another farm.
        """
        own = self.certificate
        if successor.subject != own.subject:
            raise TrustError("a farm's CA is followed only by one of the same farm")
        identifier = own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        life = (
            max(own.not_valid_before_utc, successor.not_valid_before_utc),
            min(own.not_valid_after_utc, successor.not_valid_after_utc),
        )
        link = _authority_certificate(successor.subject, successor.public_key(), own.subject, identifier, life)
        return bundle((link.sign(self.key, hashes.SHA256()), own))

    def sign(self, request_pem: bytes, server_id: str, names: Iterable[str], now: int) -> bytes:
        """A certificate (PEM) for one year from `now` (ms), for the key of a signing request.

        Of the request only the public key is used: who it is for and which `names` (host names, addresses) it
        carries is the caller's word. The server id and the loopback names are always in it. Raises
        `TrustError` for a request that its own key has not signed, a key that is not on P-256, a bad server
        id, a name that can be none, too many names, or a clock outside the CA's own life.
        """
        key = _parse_request(request_pem).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVE):
            raise TrustError("the signing request is for a key that is not on the curve P-256")
        try:
            check_server_id(server_id)
        except ValueError as error:
            raise TrustError(f"cannot sign for this server: {error}") from error
        hosts = list(dict.fromkeys(general_name(name) for name in (*names, *LOOPBACK_NAMES)))
        if len(hosts) > NAMES_MAX:
            raise TrustError(f"a certificate has at most {NAMES_MAX} names, and {len(hosts)} were asked for")
        own = self.certificate
        start = max(moment(now - BACKDATED_MS), own.not_valid_before_utc)
        end = min(moment(now + SERVER_LIFE_MS), own.not_valid_after_utc)
        if start >= end:
            raise TrustError(
                f"cannot sign: this machine's clock says {moment(now):%Y-%m-%d %H:%M} UTC, and the farm's CA is valid "
                f"from {own.not_valid_before_utc:%Y-%m-%d} to {own.not_valid_after_utc:%Y-%m-%d}"
            )
        return (
            x509.CertificateBuilder()
            .subject_name(_server_name(server_id))
            .issuer_name(own.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SERVER_URI + server_id), *hosts]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
                ),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def _authority_certificate(
    subject: x509.Name,
    key: Any,
    issuer: x509.Name,
    issuer_key: x509.SubjectKeyIdentifier,
    life: tuple[datetime.datetime, datetime.datetime],
) -> x509.CertificateBuilder:
    """What stands in a certificate of a CA. One for another CA of the same name is no step of a path of its own."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(life[0])
        .not_valid_after(life[1])
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
    )


def signing_request(key: ec.EllipticCurvePrivateKey, server_id: str, names: Iterable[str]) -> bytes:
    """A PEM request for a certificate: it leaves the server, the key does not. Raises `TrustError` for a bad name."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_server_name(server_id))
    hosts = list(dict.fromkeys(general_name(name) for name in names))
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def self_signed(key: ec.EllipticCurvePrivateKey, server_id: str, now: int) -> bytes:
    """A certificate (PEM) that proves nothing, for a server that has no authority's yet but must speak TLS."""
    return (
        x509.CertificateBuilder()
        .subject_name(_server_name(server_id))
        .issuer_name(_server_name(server_id))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment(now - BACKDATED_MS))
        .not_valid_after(moment(now + SERVER_LIFE_MS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def _server_name(server_id: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "chunkfarm"),
            x509.NameAttribute(NameOID.COMMON_NAME, server_id),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _parse_request(request_pem: bytes) -> x509.CertificateSigningRequest:
    if len(request_pem) > REQUEST_BYTES_MAX:
        raise TrustError(f"a signing request has at most {REQUEST_BYTES_MAX} bytes")
    try:
        request = x509.load_pem_x509_csr(request_pem)
        signed = request.is_signature_valid
    except (ValueError, TypeError) as error:
        raise TrustError("this is not a signing request in PEM form") from error
    except UnsupportedAlgorithm as error:
        raise TrustError("the signing request uses an algorithm that is not known here") from error
    if not signed:
        raise TrustError("the signing request is not signed by its own key")
    return request
