"""A server's own key and certificate, and where they are kept."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from attrs import evolve, field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from chunkfarm.durable import sync_directory
from chunkfarm.trust.authority import (
    CURVE,
    Authority,
    bundle,
    certificates_in,
    fingerprint,
    issued_by,
    key_digest,
    key_to_pem,
    moment,
    parse_certificate,
    parse_key,
    self_signed,
    server_id_of,
    signing_request,
)
from chunkfarm.trust.private import (
    NoSuchFile,
    TrustError,
    read_private,
    read_public,
    write_private,
    write_public,
)

KEY_FILE = "server.key"
CERTIFICATE_FILE = "server.pem"
CA_FILE = "ca.pem"
RENEW_AFTER = 2 / 3
"""Of a certificate's life: four months are left then, and a farm that is off for a season still comes back."""


@frozen
class Identity:
    """Who this server is towards others: its key, its certificate, and the CA that signed it.

    Without a CA it is provisional: it can speak TLS, and proves nothing.
    """

    server_id: str
    key_pem: bytes = field(repr=False)
    certificate_pem: bytes
    """Behind the certificate may stand what introduces its CA to those who know the one before it."""
    ca_pem: bytes = b""
    """The CA that signed it, and behind it others that are believed while the farm changes from one to the next."""

    @classmethod
    def provisional(cls, server_id: str, now: int) -> Identity:
        """A new key with a certificate of its own (`now` in ms), for a server that has yet to find its farm."""
        key = ec.generate_private_key(CURVE())
        return cls(server_id, key_to_pem(key), self_signed(key, server_id, now))

    @classmethod
    def load(cls, directory: str | os.PathLike[str], server_id: str) -> Identity | None:
        """The identity saved in a data directory, or None if it has none.

        Raises `TrustError` if it is damaged, open to others, or another server's. Blocks for the disk.
        """
        folder = Path(directory)
        try:
            # This one is written last: where it stands, the others do.
            certificate_pem = read_public(folder / CERTIFICATE_FILE)
        except NoSuchFile:
            return None
        key_pem = read_private(folder / KEY_FILE)
        ca_pem = read_public(folder / CA_FILE)
        try:
            return cls(server_id, key_pem, b"").certified(certificate_pem, ca_pem)
        except TrustError as error:
            raise TrustError(f"the certificate in {folder / CERTIFICATE_FILE} cannot be used: {error}") from error

    @classmethod
    def load_any(cls, directory: str | os.PathLike[str]) -> Identity | None:
        """As `load`, of whichever server the data directory is."""
        try:
            server_id = server_id_of(parse_certificate(read_public(Path(directory) / CERTIFICATE_FILE)))
        except NoSuchFile:
            return None
        return cls.load(directory, server_id) if server_id is not None else None

    @functools.cached_property
    def certificate(self) -> x509.Certificate:
        return parse_certificate(self.certificate_pem)

    @functools.cached_property
    def ca(self) -> x509.Certificate | None:
        return parse_certificate(self.ca_pem) if self.ca_pem else None

    @functools.cached_property
    def introductions(self) -> tuple[x509.Certificate, ...]:
        """What introduces the CA of this certificate to others."""
        return certificates_in(self.certificate_pem)[1:]

    @functools.cached_property
    def believed(self) -> tuple[x509.Certificate, ...]:
        """The CAs that this server believes, the one of its own certificate first; none while provisional."""
        return certificates_in(self.ca_pem) if self.ca_pem else ()

    @functools.cached_property
    def key_digest(self) -> str:
        """SHA-256 of the public key, in hexadecimal."""
        return key_digest(self.certificate)

    @functools.cached_property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return parse_key(self.key_pem)

    @property
    def ca_fingerprint(self) -> str:
        """As in `config.ini`; empty while provisional."""
        return fingerprint(self.ca_pem) if self.ca_pem else ""

    def signing_request(self, names: Iterable[str] = ()) -> bytes:
        """A PEM request for this key, asking for these host names and addresses; raises `TrustError` for a bad one."""
        return signing_request(self.key, self.server_id, names)

    def certified(self, certificate_pem: bytes, ca_pem: bytes) -> Identity:
        """This identity with a certificate that it has been given.

        Raises `TrustError` if that is for another key or another server, or was signed by none of those CAs.
        """
        certificate, authorities = parse_certificate(certificate_pem), certificates_in(ca_pem)
        if certificate.public_key() != self.key.public_key():
            raise TrustError("it is for another key than this server's")
        ca = next((one for one in authorities if issued_by(certificate, one)), None)
        if ca is None:
            raise TrustError("it was not signed by the farm's CA")
        if server_id_of(certificate) != self.server_id:
            raise TrustError(f"it is not for the server {self.server_id}")
        return evolve(self, certificate_pem=certificate_pem, ca_pem=bundle((ca, *authorities)))

    def believing(self, authorities: Iterable[x509.Certificate]) -> Identity:
        """This identity, believing these CAs beside that of its own certificate, and no others."""
        return evolve(self, ca_pem=bundle((*self.believed[:1], *authorities)))

    def signed_by(self, authority: Authority, names: Iterable[str], now: int) -> Identity:
        """This identity with a certificate from an authority that this server itself holds."""
        request = self.signing_request()
        return self.certified(authority.sign(request, self.server_id, names, now), authority.certificate_pem)

    def renew_due(self, now: int) -> bool:
        """Whether it is time (`now`, ms) to ask for a fresh certificate: two thirds of its life are over."""
        start, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        return not start <= moment(now) < start + (end - start) * RENEW_AFTER

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Keep it in a data directory, so that a crash leaves the old one, the new one, or none.

        Raises `TrustError` if it cannot be written. Blocks for the disk.
        """
        assert self.ca_pem, "a provisional identity is not kept"
        folder = Path(directory)
        there = self._authorities_in(folder)
        if there is None:
            # A certificate beside a key that is not its own would be taken for damage.
            try:
                (folder / CERTIFICATE_FILE).unlink(missing_ok=True)
                sync_directory(folder)
            except OSError as error:
                raise TrustError(f"cannot write in {folder}: {error.strerror}") from error
            write_private(folder / KEY_FILE, self.key_pem)
            write_public(folder / CA_FILE, self.ca_pem)
        elif there != self.ca_pem:
            # Whichever of the two certificates a crash leaves, its CA stands here.
            write_public(folder / CA_FILE, bundle((*certificates_in(there), *self.believed)))
        write_public(folder / CERTIFICATE_FILE, self.certificate_pem)
        if there is not None and there != self.ca_pem:
            write_public(folder / CA_FILE, self.ca_pem)

    def _authorities_in(self, folder: Path) -> bytes | None:
        """The CAs that stand there with this very key; None if it is another, or something cannot be read."""
        try:
            if read_private(folder / KEY_FILE) != self.key_pem:
                return None
            text = read_public(folder / CA_FILE)
            certificates_in(text)
        except TrustError:
            return None
        return text
