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
    fingerprint,
    issued_by,
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
    ca_pem: bytes = b""

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

        Raises `TrustError` if that is for another key or another server, or was not signed by that CA.
        """
        certificate, ca = parse_certificate(certificate_pem), parse_certificate(ca_pem)
        if certificate.public_key() != self.key.public_key():
            raise TrustError("it is for another key than this server's")
        if not issued_by(certificate, ca):
            raise TrustError("it was not signed by the farm's CA")
        if server_id_of(certificate) != self.server_id:
            raise TrustError(f"it is not for the server {self.server_id}")
        return evolve(self, certificate_pem=certificate_pem, ca_pem=ca_pem)

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
        if not self._same_key_and_ca_in(folder):
            # A certificate beside a key or CA that is not its own would be taken for damage.
            try:
                (folder / CERTIFICATE_FILE).unlink(missing_ok=True)
                sync_directory(folder)
            except OSError as error:
                raise TrustError(f"cannot write in {folder}: {error.strerror}") from error
            write_private(folder / KEY_FILE, self.key_pem)
            write_public(folder / CA_FILE, self.ca_pem)
        write_public(folder / CERTIFICATE_FILE, self.certificate_pem)

    def _same_key_and_ca_in(self, folder: Path) -> bool:
        try:
            return (read_private(folder / KEY_FILE), read_public(folder / CA_FILE)) == (self.key_pem, self.ca_pem)
        except TrustError:
            return False
