"""The farm's CA and what it signs."""

from __future__ import annotations

import datetime
import ipaddress
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.trust.authority import (
    DAY_MS,
    INTRODUCTIONS_MAX,
    NAMES_MAX,
    REQUEST_BYTES_MAX,
    Authority,
    certificates_in,
    fingerprint,
    general_name,
    introduced,
    introduces,
    issued_by,
    key_to_pem,
    parse_certificate,
    parse_key,
    public_key_digest,
    requested_names,
    server_id_of,
    signing_request,
    usable_names,
)
from chunkfarm.trust.private import TrustError
from tests.trust.support import (
    ALPHA,
    BETA,
    FARM_ID,
    NOW,
    forge,
    handshake_with_python,
    make_authority,
    make_contexts,
    make_identity,
    new_key,
    to_pem,
)


def names_of(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


class AuthorityTests(SynchronousTestCase):
    """The authority signs for servers, and only what it should."""

    def setUp(self) -> None:
        self.authority = make_authority()
        self.key = new_key()
        self.request = signing_request(self.key, ALPHA, ["alpha.example"])

    def sign(self, *names: str, request: bytes | None = None, server_id: str = ALPHA) -> x509.Certificate:
        return parse_certificate(self.authority.sign(request or self.request, server_id, names, NOW))

    def test_names_in_a_certificate(self) -> None:
        """A certificate carries the server id, the names given, and the loopback names."""
        certificate = self.sign("10.0.0.1", "Alpha.Example.", "fe80::1%eth0")
        assert names_of(certificate) == {
            f"chunkfarm:server-{ALPHA}",
            "10.0.0.1",
            "alpha.example",
            "fe80::1",
            "localhost",
            "127.0.0.1",
            "::1",
        }
        assert server_id_of(certificate) == ALPHA
        assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == ALPHA

    def test_names_are_the_callers_word(self) -> None:
        """Names that a request asks for are not given unless the caller says so."""
        assert "alpha.example" not in names_of(self.sign())
        assert requested_names(self.request) == ("alpha.example",)

    def test_dates(self) -> None:
        """A certificate is valid from two days back for a year, the CA's for twenty years."""
        certificate, now = self.sign(), datetime.datetime.fromtimestamp(NOW // 1000, datetime.UTC)
        assert certificate.not_valid_before_utc == now - datetime.timedelta(days=2)
        assert certificate.not_valid_after_utc == now + datetime.timedelta(days=365)
        assert self.authority.certificate.not_valid_before_utc == now - datetime.timedelta(days=2)
        assert self.authority.certificate.not_valid_after_utc == now + datetime.timedelta(days=20 * 365)

    def test_no_longer_than_the_authority(self) -> None:
        """No certificate outlives the CA."""
        late = NOW + 20 * 365 * DAY_MS - DAY_MS
        certificate = parse_certificate(self.authority.sign(self.request, ALPHA, (), late))
        assert certificate.not_valid_after_utc == self.authority.certificate.not_valid_after_utc

    def test_clock_far_off(self) -> None:
        """A signer whose clock lies outside the CA's life says so, and signs nothing."""
        for now in (0, NOW - 3 * 365 * DAY_MS, NOW + 21 * 365 * DAY_MS):
            error = self.assertRaises(TrustError, self.authority.sign, self.request, ALPHA, (), now)
            assert "clock" in str(error)

    def test_load(self) -> None:
        """A stored authority goes on signing as the same one."""
        again = Authority.load(self.authority.certificate_pem, self.authority.key_pem)
        certificate = parse_certificate(again.sign(self.request, ALPHA, (), NOW))
        assert issued_by(certificate, self.authority.certificate)
        assert again.fingerprint == self.authority.fingerprint

    def test_load_of_parts_that_do_not_match(self) -> None:
        """A key that is not the certificate's is refused."""
        other = make_authority()
        self.assertRaises(TrustError, Authority.load, self.authority.certificate_pem, other.key_pem)
        self.assertRaises(TrustError, Authority.load, b"nothing", other.key_pem)
        self.assertRaises(TrustError, Authority.load, self.authority.certificate_pem, b"nothing")

    def test_key_is_not_shown(self) -> None:
        """Printing an authority does not print its key."""
        assert "PRIVATE" not in repr(self.authority)

    def test_fingerprint(self) -> None:
        """The fingerprint is the one that other tools print, in our form."""
        der = ssl.PEM_cert_to_DER_cert(self.authority.certificate_pem.decode())
        digest = hashes.Hash(hashes.SHA256())
        digest.update(der)
        assert fingerprint(self.authority.certificate_pem) == "sha256:" + digest.finalize().hex()
        self.assertRaises(TrustError, fingerprint, b"no certificate")

    def test_request_signed_by_another_key(self) -> None:
        """A request for a key that its sender does not have is refused."""
        der = bytearray(ssl.PEM_cert_to_DER_cert(self._as_certificate(self.request)))
        der[-1] ^= 1
        broken = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
        error = self.assertRaises(TrustError, self.sign, request=broken)
        assert str(error) == "the signing request is not signed by its own key"
        self.assertRaises(TrustError, public_key_digest, broken)
        self.assertRaises(TrustError, requested_names, broken)

    @staticmethod
    def _as_certificate(request: bytes) -> str:
        return request.decode().replace("CERTIFICATE REQUEST", "CERTIFICATE")

    def test_request_for_other_kinds_of_keys(self) -> None:
        """Only P-256 keys, which every client can check, are signed for."""
        for key in (
            rsa.generate_private_key(65537, 2048),
            ec.generate_private_key(ec.SECP384R1()),
            ed25519.Ed25519PrivateKey.generate(),
        ):
            algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
            request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, algorithm)
            pem = request.public_bytes(serialization.Encoding.PEM)
            error = self.assertRaises(TrustError, self.sign, request=pem)
            assert "P-256" in str(error)

    def test_request_that_is_none(self) -> None:
        """Anything but a signing request is refused with a sentence."""
        for wrong in (b"", b"hello", self.authority.certificate_pem, self.request[:-80], b"\0" * 100):
            self.assertRaises(TrustError, self.authority.sign, wrong, ALPHA, (), NOW)
        huge = self.request + b"\n" * REQUEST_BYTES_MAX
        error = self.assertRaises(TrustError, self.sign, request=huge)
        assert str(REQUEST_BYTES_MAX) in str(error)

    def test_bad_server_id(self) -> None:
        """Nothing is signed for what is no server id."""
        for wrong in ("", "alpha", ALPHA.upper(), ALPHA + "0", ALPHA + "\n"):
            self.assertRaises(TrustError, self.sign, server_id=wrong)

    def test_bad_names(self) -> None:
        """A name that verifiers would choke on is refused before it spoils a certificate."""
        for wrong in (
            "",
            ".",
            "a b",
            "-..x",
            "12345",
            "*",
            "*.com",
            "a" * 64 + ".example",
            "a." * 130 + "a",
            "a\0b",
            "ü" * 80,
        ):
            self.assertRaises(TrustError, self.sign, wrong)

    def test_too_many_names(self) -> None:
        """A certificate with hundreds of names is refused."""
        self.sign(*(f"10.0.0.{number}" for number in range(NAMES_MAX - 3)))
        self.assertRaises(TrustError, self.sign, *(f"10.0.0.{number}" for number in range(NAMES_MAX - 2)))

    def test_international_names(self) -> None:
        """A name with letters beyond ASCII stands in the certificate in its encoded form."""
        assert general_name("bücher.example") == x509.DNSName("xn--bcher-kva.example")
        assert general_name("*.bücher.example") == x509.DNSName("*.xn--bcher-kva.example")

    def test_usable_names(self) -> None:
        """A machine's odd host name does not keep it out of the farm; it is left out."""
        assert usable_names(["my host!", "alpha", "10.0.0.1"]) == ("alpha", "10.0.0.1")

    @given(st.text(max_size=80))
    @settings(deadline=None)
    def test_any_text_as_a_name(self, text: str) -> None:
        """Any text either is a name or is refused with a sentence."""
        try:
            name = general_name(text)
        except TrustError:
            return
        assert isinstance(name, (x509.DNSName, x509.IPAddress))
        x509.SubjectAlternativeName([name]).public_bytes()

    @given(st.binary(max_size=300))
    @settings(deadline=None)
    def test_any_bytes_as_a_request(self, data: bytes) -> None:
        """Whatever a stranger sends as a request is refused with a sentence."""
        self.assertRaises(TrustError, requested_names, data)
        armoured = b"-----BEGIN CERTIFICATE REQUEST-----\n" + data + b"\n-----END CERTIFICATE REQUEST-----\n"
        self.assertRaises(TrustError, requested_names, armoured)

    def test_requested_names(self) -> None:
        """A request carries host names and addresses, in the form in which they can be signed."""
        request = signing_request(self.key, ALPHA, ["Alpha", "10.0.0.1", "2001:DB8::1", "alpha"])
        assert requested_names(request) == ("alpha", "10.0.0.1", "2001:db8::1")
        assert requested_names(signing_request(self.key, ALPHA, [])) == ()
        self.assertRaises(TrustError, signing_request, self.key, ALPHA, ["a b"])

    def test_public_key_digest(self) -> None:
        """Requests for one key have one digest, whatever else is in them."""
        again = signing_request(self.key, BETA, [])
        assert public_key_digest(again) == public_key_digest(self.request)
        assert public_key_digest(signing_request(new_key(), ALPHA, [])) != public_key_digest(self.request)

    def test_keys_of_ours(self) -> None:
        """A key file with another kind of key, or none, is refused."""
        assert key_to_pem(parse_key(key_to_pem(self.key))) == key_to_pem(self.key)
        other = ec.generate_private_key(ec.SECP384R1())
        self.assertRaises(TrustError, parse_key, key_to_pem(other))
        self.assertRaises(TrustError, parse_key, b"no key")

    def test_strict_clients(self) -> None:
        """A client that checks by the strictest rules accepts address, host name and localhost."""
        server = make_contexts(self.authority).file_port()
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        client.load_verify_locations(cadata=self.authority.certificate_pem.decode())
        for host in ("127.0.0.1", "::1", "localhost", "10.0.0.1", "alpha.example"):
            assert handshake_with_python(client, server, host).version() == "TLSv1.3"
        self.assertRaises(ssl.SSLCertVerificationError, handshake_with_python, client, server, "beta.example")


class StatedIdTests(SynchronousTestCase):
    """Which server a certificate is for, and who signed it."""

    def setUp(self) -> None:
        self.authority = make_authority()
        self.ca = self.authority.certificate

    def forge(self, *server_ids: str, ca: bool = False) -> x509.Certificate:
        return forge(new_key(), issuer=self.ca.subject, signer=self.authority.key, server_ids=server_ids, ca=ca)

    def test_one_server_a_certificate(self) -> None:
        """A certificate that states two servers, or none, is nobody's."""
        assert server_id_of(self.forge(ALPHA)) == ALPHA
        assert server_id_of(self.forge(ALPHA, BETA)) is None
        assert server_id_of(self.forge()) is None
        assert server_id_of(self.forge("alpha")) is None

    def test_signed_by_the_authority(self) -> None:
        """Only what the CA itself signed, and not its own certificate, is a server's."""
        assert issued_by(self.forge(ALPHA), self.ca)
        assert not issued_by(self.ca, self.ca)
        assert not issued_by(self.forge(ALPHA, ca=True), self.ca)

    def test_id_as_a_host_name(self) -> None:
        """A server that asks for another's id as a host name does not become it."""
        request = signing_request(new_key(), BETA, [ALPHA])
        certificate = parse_certificate(self.authority.sign(request, BETA, requested_names(request), NOW))
        assert server_id_of(certificate) == BETA

    def test_addresses_are_addresses(self) -> None:
        """An address stands in the certificate as one, not as a name."""
        assert general_name("10.0.0.1") == x509.IPAddress(ipaddress.IPv4Address("10.0.0.1"))

    def test_farm_id_that_is_too_long(self) -> None:
        """A long farm id still makes a certificate that strict readers take."""
        authority = Authority.create(FARM_ID * 4, NOW)
        assert parse_certificate(to_pem(authority.certificate)) == authority.certificate


class SuccessionTests(SynchronousTestCase):
    """One CA introduces the next, to those who know nothing but the one before."""

    def setUp(self) -> None:
        self.old, self.new = make_authority(), make_authority()
        self.introduction = certificates_in(self.old.introduce(self.new.certificate))
        leaf = make_identity(self.new).certificate
        self.chain = (leaf, *self.introduction, self.new.certificate)

    def test_introduced(self) -> None:
        """A chain shows the next CA, and by what the old one introduces it; the old one's own certificate is there."""
        assert introduced(self.chain, (self.old.certificate,)) == (self.new.certificate, self.introduction[0])
        assert self.introduction[1] == self.old.certificate
        assert introduces(self.introduction[0], self.old.certificate)

    def test_not_by_others(self) -> None:
        """Nor by a CA that is not known, by a chain that lacks the new CA, for another CA's certificate."""
        stranger = make_authority()
        assert introduced(self.chain, (stranger.certificate,)) is None
        assert introduced(self.chain[:-1], (self.old.certificate,)) is None
        assert introduced((make_identity(stranger).certificate, *self.chain[1:]), (self.old.certificate,)) is None
        # A server's certificate introduces nobody, whoever signed it.
        server = make_identity(self.old)
        forged = forge(new_key(), issuer=server.certificate.subject, signer=server.key)
        assert introduced((forged, server.certificate, self.old.certificate), (self.old.certificate,)) is None

    def test_in_several_steps(self) -> None:
        """Who knows but a CA long before follows from one to the next, as long as each one's word is there."""
        third = make_authority()
        second = certificates_in(self.new.introduce(third.certificate))
        leaf = make_identity(third).certificate
        chain = (leaf, *second, *self.introduction, third.certificate)
        found = introduced(chain, (self.old.certificate,))
        assert found == (third.certificate, second[0], self.new.certificate, self.introduction[0])
        assert introduced(chain, (self.new.certificate,)) == (third.certificate, second[0])
        assert introduced((leaf, *second, third.certificate), (self.old.certificate,)) is None
        assert introduced((leaf, *self.introduction, third.certificate), (self.old.certificate,)) is None
        assert introduced((leaf, second[0], *self.introduction, third.certificate), (self.old.certificate,)) is None

    def test_as_many_steps_as_are_told(self) -> None:
        """A chain without end is not followed to its end."""
        cas = [self.old, *(make_authority() for _ in range(INTRODUCTIONS_MAX + 1))]
        for last in (INTRODUCTIONS_MAX, INTRODUCTIONS_MAX + 1):
            steps = [certificates_in(cas[at].introduce(cas[at + 1].certificate)) for at in reversed(range(last))]
            links = [link for step in steps for link in step]
            chain = (make_identity(cas[last]).certificate, *links, cas[last].certificate)
            assert (introduced(chain, (self.old.certificate,)) is not None) is (last == INTRODUCTIONS_MAX)

    def test_another_farm(self) -> None:
        """A farm's CA introduces none of another farm."""
        self.assertRaises(TrustError, self.old.introduce, Authority.create("0" * 32, NOW).certificate)
