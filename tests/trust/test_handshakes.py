"""What each TLS port takes and refuses in a handshake: versions, ciphers, groups, signatures."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.trust.authority import DAY_MS, key_to_pem, moment
from chunkfarm.trust.contexts import COMPATIBLE, STRICT, Certificate, Contexts
from chunkfarm.trust.private import TrustError
from tests.trust import hello
from tests.trust.hello import TLS_1_2, TLS_1_3, client_hello, is_taken
from tests.trust.support import NOW, handshake_with_python, make_authority, make_contexts, make_link, to_pem

ONE_GOOD_GROUP = (hello.P256,)


def elsewhere(bits: int) -> Certificate:
    """A certificate of another CA with an RSA key, as most of the world's are."""
    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "files.example")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, moment(NOW - DAY_MS), moment(NOW + DAY_MS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("files.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(certificate, (), key)


class PortTests(SynchronousTestCase):
    """Hellos that offer one thing only, to each port."""

    def setUp(self) -> None:
        contexts = make_contexts(make_authority())
        self.both = {"client": contexts.client_port(), "files": contexts.file_port()}
        self.all = {**self.both, "peer": contexts.peer_server()}

    def test_versions(self) -> None:
        """TLS 1.0 and 1.1 are refused everywhere, 1.2 on the peer port too."""
        for name, port in self.all.items():
            assert is_taken(port, client_hello(TLS_1_3)), name
            assert is_taken(port, client_hello(TLS_1_2)) == (name != "peer"), name
            for old in (0x0300, 0x0301, 0x0302):
                assert not is_taken(port, client_hello(old)), (name, old)

    def test_ciphers_of_tls_1_2(self) -> None:
        """Without forward secrecy, without authenticated encryption, or by RC4, 3DES, export or null: refused."""
        for port in self.both.values():
            for good in (0xC02B, 0xC02C, 0xCCA9):
                assert is_taken(port, client_hello(ciphers=(good,), groups=ONE_GOOD_GROUP)), hex(good)
            # By RSA; ECDHE with CBC, RC4, 3DES, null; DHE; anonymous; export; CCM-8; ARIA.
            for bad in (0x9C, 0x9D, 0x2F, 0x35, 0xC009, 0xC023, 0xC024, 0xC007, 0xC008, 0xC006, 0x9E, 0x33, 0xC018,
                        0x34, 0x03, 0x08, 0x05, 0x0A, 0x3B, 0xC0AE, 0xC05C, 0x00FF):  # fmt: skip
                assert not is_taken(port, client_hello(ciphers=(bad,))), hex(bad)

    def test_ciphers_of_tls_1_3(self) -> None:
        """The three of Mozilla's configuration, and not the ones with shortened or no encryption."""
        for name, port in self.all.items():
            for good in hello.GOOD_CIPHERS_1_3:
                assert is_taken(port, client_hello(TLS_1_3, ciphers=(good,))), (name, hex(good))
            for bad in (0x1304, 0x1305, 0xC0B4, 0xC0B5):
                assert not is_taken(port, client_hello(TLS_1_3, ciphers=(bad,))), (name, hex(bad))

    def test_groups(self) -> None:
        """A client that offers only groups of less than 128 bits, or odd ones, is refused."""
        good = (hello.X25519, hello.P256, hello.P384)
        stronger = (hello.P521, hello.X448, hello.FFDHE3072)
        # P-192, P-224, secp256k1, sect163k1, sect571r1, DH of 2,048 bits, a group that nobody knows.
        bad = (0x13, hello.P224, hello.SECP256K1, 0x01, 0x0E, hello.FFDHE2048, 0x4242)
        for name, port in self.all.items():
            for group in good + stronger:
                assert is_taken(port, client_hello(TLS_1_3, groups=(group,))), (name, hex(group))
            for group in bad:
                assert not is_taken(port, client_hello(TLS_1_3, groups=(group,))), (name, hex(group))
            assert not is_taken(port, client_hello(TLS_1_3, groups=bad)), name
        for port in self.both.values():
            assert is_taken(port, client_hello(groups=ONE_GOOD_GROUP))
            for group in bad:
                assert not is_taken(port, client_hello(groups=(group,))), hex(group)

    def test_signatures(self) -> None:
        """A client that takes only MD5, SHA-1 or SHA-224, or no signature that this key can make, is refused."""
        bad = (hello.ECDSA_SHA224, hello.ECDSA_SHA1, hello.RSA_SHA1, hello.RSA_MD5, 0x0202, 0x0402, hello.RSA_SHA256)
        for port in self.all.values():
            assert is_taken(port, client_hello(TLS_1_3, signatures=(hello.ECDSA_SHA256,)))
        for port in self.both.values():
            for good in (hello.ECDSA_SHA256, hello.ECDSA_SHA384, hello.ECDSA_SHA512):
                assert is_taken(port, client_hello(groups=ONE_GOOD_GROUP, signatures=(good,))), hex(good)
            for signature in bad:
                assert not is_taken(port, client_hello(signatures=(signature,))), hex(signature)
            assert not is_taken(port, client_hello(signatures=bad))

    def test_compression_alone(self) -> None:
        """A client that insists on compression (CRIME) is refused."""
        for port in self.both.values():
            assert not is_taken(port, client_hello(compression=b"\1"))

    def test_the_strongest_of_what_is_offered(self) -> None:
        """Servers among themselves agree on TLS 1.3 with one of the first three groups, or X25519 with ML-KEM."""
        authority = make_authority()
        server = make_contexts(authority)
        link = make_link(make_contexts(authority).peer_client(), server.peer_server()).handshake()
        assert link.client.connection.get_cipher_name() == "TLS_AES_128_GCM_SHA256"
        group = str(link.client.connection.get_group_name())
        assert group in ("X25519MLKEM768", "x25519", "X25519"), group


class OwnCertificateTests(SynchronousTestCase):
    """A certificate from elsewhere on the file port."""

    def test_short_key(self) -> None:
        """One of RSA with 2,048 bits is shown, with the protection that its key has and the same ciphers."""
        own = elsewhere(2048)
        assert own.level == COMPATIBLE
        port = Contexts(make_contexts(make_authority()).identity, own).file_port()
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            client.maximum_version = version
            assert handshake_with_python(client, port, "files.example").version() == version.name.replace("v1_", "v1.")
        assert not is_taken(port, client_hello(signatures=(hello.RSA_SHA1, hello.RSA_MD5)))
        assert not is_taken(port, client_hello(ciphers=(0x9C, 0x2F, 0xC013, 0xC027)))

    def test_long_key(self) -> None:
        """With a longer key the port is as strict as the others."""
        own = elsewhere(3072)
        assert own.level == STRICT
        port = Contexts(make_contexts(make_authority()).identity, own).file_port()
        assert is_taken(port, client_hello(groups=ONE_GOOD_GROUP))
        assert not is_taken(port, client_hello(signatures=(0x0301,)))

    def test_links_to_such_ports(self) -> None:
        """Servers and programs of this farm take them: what they prove is judged by others."""
        for bits in (2048, 3072):
            port = Contexts(make_contexts(make_authority()).identity, elsewhere(bits)).file_port()
            link = make_link(Contexts().client(), port).handshake()
            assert link.client.connection.get_protocol_version_name() == "TLSv1.3"

    def test_too_short(self) -> None:
        """A certificate that no client should believe is refused at the start, with the name of its file."""
        own = elsewhere(1024)
        path = Path(self.mktemp())
        path.write_bytes(key_to_pem(own.key) + to_pem(own.certificate))
        path.chmod(0o600)
        error = self.assertRaises(TrustError, Certificate.load, path)
        assert str(path) in str(error) and "too small" in str(error), error
