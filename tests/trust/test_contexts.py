"""TLS on ports and links."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLContextFactory,
    IOpenSSLServerConnectionCreator,
)
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.protocols import amp
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.test.iosim import FakeTransport, connect
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from chunkfarm.links.commands import GetServer
from chunkfarm.trust.authority import key_to_pem
from chunkfarm.trust.contexts import (
    HTTP_1_1,
    MODE_ACCEPT_MOVING_WRITE_BUFFER,
    MODE_ENABLE_PARTIAL_WRITE,
    Certificate,
    Contexts,
)
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.proof import exporter_of
from chunkfarm.trust.verify import Untrusted, chain_of, check_chain
from tests.trust.support import (
    ALPHA,
    BETA,
    FARM_ID,
    NOW,
    Side,
    forge,
    handshake_with_python,
    make_authority,
    make_contexts,
    make_identity,
    make_link,
    new_key,
    to_pem,
)


def shown_by(side: Side) -> x509.Certificate | None:
    """The certificate that the other end of this side showed."""
    return side.connection.get_peer_certificate(as_cryptography=True)


class PeerTests(SynchronousTestCase):
    """Servers know each other by certificate, and a stranger may knock."""

    def setUp(self) -> None:
        self.authority = make_authority()
        self.alpha = make_contexts(self.authority)
        self.beta = make_contexts(self.authority, BETA)

    def test_two_servers(self) -> None:
        """Two servers of a farm each learn who the other is, over TLS 1.3."""
        link = make_link(self.beta.peer_client(), self.alpha.peer_server()).handshake()
        assert link.client.connection.get_protocol_version_name() == "TLSv1.3"
        assert self.alpha.peer_of(link.server.connection.get_peer_certificate()) == BETA
        assert self.beta.peer_of(link.client.connection.get_peer_certificate()) == ALPHA

    def test_strangers(self) -> None:
        """A server with a certificate of its own, or none at all, gets through the handshake and is nobody."""
        link = make_link(make_contexts(None, BETA).peer_client(), self.alpha.peer_server()).handshake()
        assert shown_by(link.server) is not None
        assert self.alpha.peer_of(shown_by(link.server)) is None
        link = make_link(Contexts().client(), self.alpha.peer_server()).handshake()
        assert shown_by(link.server) is None
        assert self.alpha.peer_of(None) is None

    def test_both_starting(self) -> None:
        """Two servers without a farm can speak, share an exporter, and are nobody to each other."""
        one, two = make_contexts(None, ALPHA), make_contexts(None, BETA)
        link = make_link(one.peer_client(), two.peer_server()).handshake()
        assert exporter_of(link.client) == exporter_of(link.server)
        assert one.peer_of(shown_by(link.client)) is None
        assert two.peer_of(shown_by(link.server)) is None

    def test_older_tls(self) -> None:
        """The peer port speaks nothing older than TLS 1.3."""
        old = self.beta.client()
        old.set_max_proto_version(SSL.TLS1_2_VERSION)
        self.assertRaises(SSL.Error, make_link(old, self.alpha.peer_server()).handshake)

    def test_new_identity(self) -> None:
        """A server that joins has its certificate on every connection made from then on, and keeps those it has."""
        contexts = make_contexts(None, BETA)
        factory = contexts.peer_client_factory()
        before = make_link(factory.getContext(), self.alpha.peer_server()).handshake()
        contexts.replace(make_identity(self.authority, BETA))
        after = make_link(factory.getContext(), self.alpha.peer_server()).handshake()
        assert self.alpha.peer_of(shown_by(before.server)) is None
        assert self.alpha.peer_of(shown_by(after.server)) == BETA
        assert contexts.peer_of(shown_by(after.client)) == ALPHA
        before.server.connection.send(b"still here")
        before.carry()
        assert before.client.connection.recv(100) == b"still here"

    def test_contexts_are_kept(self) -> None:
        """A context is made once, not for each connection, as long as the identity stays."""
        assert self.alpha.peer_server() is self.alpha.peer_server()
        assert self.alpha.client([HTTP_1_1]) is self.alpha.client([HTTP_1_1])
        assert self.alpha.client([HTTP_1_1]) is not self.alpha.client()


class SuccessionTests(SynchronousTestCase):
    """While the farm goes from one CA to the next, and afterwards."""

    def setUp(self) -> None:
        self.old, self.new = make_authority(), make_authority()
        self.alpha = make_contexts(self.old)
        self.beta = make_identity(self.old, BETA)
        self.keys = {BETA: self.beta.key_digest}
        self.alpha.key_of = lambda server_id: self.keys.get(server_id, "")
        self.alpha.in_force = (self.new.certificate,)

    def renewed(self) -> Contexts:
        assert self.alpha.identity is not None
        request = self.alpha.identity.signing_request()
        chain = self.new.sign(request, ALPHA, ["10.0.0.1"], NOW) + self.old.introduce(self.new.certificate)
        self.alpha.replace(self.alpha.identity.certified(chain, self.new.certificate_pem))
        return self.alpha

    def test_the_next_ca(self) -> None:
        """Its signature is enough."""
        assert self.alpha.peer_of(make_identity(self.new, BETA).certificate) == BETA

    def test_the_key_in_the_row(self) -> None:
        """A certificate of the old CA counts for the key that is known, and for no other: its CA may be stolen."""
        assert self.alpha.peer_of(self.beta.certificate) == BETA
        assert self.alpha.peer_of(make_identity(self.old, BETA).certificate) is None
        self.keys.clear()
        assert self.alpha.peer_of(self.beta.certificate) is None

    def test_clients_that_know_the_old_one(self) -> None:
        """They are shown what introduces the next CA for as long as the farm wants, other servers always."""
        contexts = self.renewed()
        for context, shown in (
            (contexts.client_port, False),
            (contexts.file_port, False),
            (contexts.peer_server, True),
        ):
            for wanted in (False, True):
                contexts.introduce_to_clients(wanted)
                link = make_link(Contexts().client(), context()).handshake()
                chain = chain_of(link.client)
                assert (len(chain) == 4) is (shown or wanted)
                for authority in (self.old, self.new) if shown or wanted else (self.new,):
                    assert check_chain(chain, authority.fingerprint, "10.0.0.1", NOW) == ALPHA
                if not (shown or wanted):
                    error = self.assertRaises(Untrusted, check_chain, chain, self.old.fingerprint, "10.0.0.1", NOW)
                    assert "take a newer config.ini" in str(error)

    def test_several_changes_ago(self) -> None:
        """Servers are shown the way from a CA long before, clients from the one before alone."""
        first = make_authority()
        contexts, identity = self.renewed(), self.alpha.identity
        assert identity is not None
        chain = identity.certificate_pem + first.introduce(self.old.certificate)
        contexts.replace(identity.certified(chain, self.new.certificate_pem))
        contexts.introduce_to_clients(True)
        seen = chain_of(make_link(Contexts().client(), contexts.peer_server()).handshake().client)
        assert check_chain(seen, first.fingerprint, "10.0.0.1", NOW) == ALPHA
        for context in (contexts.client_port, contexts.file_port):
            seen = chain_of(make_link(Contexts().client(), context()).handshake().client)
            assert check_chain(seen, self.old.fingerprint, "10.0.0.1", NOW) == ALPHA
            self.assertRaises(Untrusted, check_chain, seen, first.fingerprint, "10.0.0.1", NOW)

    def test_other_programs_that_know_the_old_one(self) -> None:
        """OpenSSL finds its way from either CA, with no setting of its own."""
        contexts = self.renewed()
        contexts.introduce_to_clients(True)
        for authority in (self.old, self.new):
            context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
            handshake_with_python(context, contexts.file_port(), "10.0.0.1")


class PeerOfTests(SynchronousTestCase):
    """Nobody but a server with a certificate from this farm's CA is a peer."""

    def setUp(self) -> None:
        self.authority = make_authority()
        self.contexts = make_contexts(self.authority)

    def test_self_signed(self) -> None:
        """A self-signed certificate that copies a server's id is nobody's."""
        key = new_key()
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ALPHA)])
        assert self.contexts.peer_of(forge(key, issuer=own, signer=key)) is None

    def test_copied_names(self) -> None:
        """A certificate that names the farm's CA as issuer without its signature is nobody's."""
        key = new_key()
        subject = make_identity(self.authority).certificate.subject
        forged = forge(key, issuer=self.authority.certificate.subject, subject=subject, signer=key)
        assert self.contexts.peer_of(forged) is None

    def test_another_authority_of_the_same_name(self) -> None:
        """Another CA with the same subject does not count."""
        other = make_authority()
        assert other.certificate.subject == self.authority.certificate.subject
        assert self.contexts.peer_of(make_identity(other).certificate) is None
        assert make_contexts(other).peer_of(make_identity(other).certificate) == ALPHA

    def test_intermediate(self) -> None:
        """Neither an authority below the farm's nor what it signs is a peer."""
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "between")])
        between = forge(
            key, issuer=self.authority.certificate.subject, subject=name, signer=self.authority.key, ca=True
        )
        assert self.contexts.peer_of(between) is None
        assert self.contexts.peer_of(forge(new_key(), issuer=name, signer=key)) is None

    def test_server_as_authority(self) -> None:
        """A certificate signed with a server's key is nobody's."""
        beta = make_identity(self.authority, BETA)
        assert self.contexts.peer_of(forge(new_key(), issuer=beta.certificate.subject, signer=beta.key)) is None

    def test_authority_itself(self) -> None:
        """The CA's own certificate is nobody's."""
        assert self.contexts.peer_of(self.authority.certificate) is None

    def test_dates_do_not_count(self) -> None:
        """A server that was off for years is still known; the table decides whether it belongs."""
        long_ago = 1_000_000_000_000
        authority = make_authority(long_ago)
        contexts = Contexts(make_identity(authority, now=long_ago))
        link = make_link(contexts.peer_client(), contexts.peer_server()).handshake()
        assert contexts.peer_of(shown_by(link.server)) == ALPHA

    def test_without_a_farm(self) -> None:
        """A server that has no CA yet, and a client that has none, know nobody."""
        certificate = make_identity(self.authority).certificate
        assert make_contexts().peer_of(certificate) is None
        assert Contexts().peer_of(certificate) is None


class ClientSideTests(SynchronousTestCase):
    """The ports that clients use."""

    def setUp(self) -> None:
        self.authority = make_authority()
        self.contexts = make_contexts(self.authority)

    def python(self, *protocols: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.authority.certificate_pem.decode())
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    def test_alpn(self) -> None:
        """The file port chooses HTTP/1.1 where it is offered, and serves those who offer nothing or something else."""
        both, only, other = ["h2", "http/1.1"], ["http/1.1"], ["h2"]
        for offered, chosen in ((both, "http/1.1"), (only, "http/1.1"), ([], None), (other, None)):
            end = handshake_with_python(self.python(*offered), self.contexts.file_port(), "127.0.0.1")
            assert end.version() == "TLSv1.3"
            assert end.selected_alpn_protocol() == chosen

    def test_alpn_between_servers(self) -> None:
        """A server that fetches chunks agrees on HTTP/1.1."""
        link = make_link(self.contexts.client([HTTP_1_1]), self.contexts.file_port()).handshake()
        assert link.client.connection.get_alpn_proto_negotiated() == HTTP_1_1
        assert self.contexts.peer_of(shown_by(link.server)) == ALPHA

    def test_versions(self) -> None:
        """Clients may speak TLS 1.2, with forward secrecy and authenticated encryption only, and nothing older."""
        for server in (self.contexts.file_port(), self.contexts.client_port()):
            old = self.python()
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            end = handshake_with_python(old, server, "localhost")
            cipher = end.cipher()
            assert cipher is not None
            assert cipher[0].startswith("ECDHE-ECDSA-")
            old.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
            self.assertRaises(SSL.Error, handshake_with_python, old, server, "localhost")

    def test_tls_1_1(self) -> None:
        """TLS 1.1 is refused."""
        old = SSL.Context(SSL.TLS_METHOD)
        old.set_cipher_list(b"ALL:@SECLEVEL=0")
        old.set_max_proto_version(SSL.TLS1_1_VERSION)
        old.set_min_proto_version(SSL.TLS1_VERSION)
        self.assertRaises(SSL.Error, make_link(old, self.contexts.file_port()).handshake)

    def test_client_without_certificate(self) -> None:
        """A client of the farm needs no certificate and shows none."""
        link = make_link(Contexts().client(), self.contexts.client_port()).handshake()
        assert shown_by(link.server) is None

    def test_farm_certificate_on_the_client_port(self) -> None:
        """A server that follows the table over the client port is known by its certificate."""
        beta = make_contexts(self.authority, BETA)
        link = make_link(beta.client(), self.contexts.client_port()).handshake()
        assert self.contexts.peer_of(shown_by(link.server)) == BETA

    def test_provisional_certificate_is_not_shown(self) -> None:
        """A certificate that proves nothing is not shown to client and file ports."""
        link = make_link(make_contexts(None, BETA).client(), self.contexts.client_port()).handshake()
        assert shown_by(link.server) is None

    def test_browsers_are_told_whose_certificates_count(self) -> None:
        """The ports name the farm's CA, so that a browser does not offer certificates of others."""
        link = make_link(Contexts().client(), self.contexts.file_port()).handshake()
        names = link.client.connection.get_client_ca_list(as_cryptography=True)
        assert names == [self.authority.certificate.subject]

    def test_session_is_resumed(self) -> None:
        """A client that comes back resumes its session although a certificate was asked for."""
        context = Contexts().client()
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        server = self.contexts.file_port()
        first = make_link(context, server).handshake()
        session = first.client.connection.get_session()
        assert session is not None
        second = make_link(context, server)
        second.client.connection.set_session(session)
        second.handshake()
        assert second.client.connection.master_key() == first.client.connection.master_key()

    def test_whole_pieces(self) -> None:
        """A large piece is taken in one call: no context writes only a part of it."""
        beta = make_contexts(self.authority, BETA)
        for client, server in (
            (beta.peer_client(), self.contexts.peer_server()),
            (beta.client(), self.contexts.client_port()),
            (beta.client([HTTP_1_1]), self.contexts.file_port()),
        ):
            for context in (client, server):
                mode = context.set_mode(0)
                assert not mode & MODE_ENABLE_PARTIAL_WRITE
                assert mode & MODE_ACCEPT_MOVING_WRITE_BUFFER
                assert mode & SSL.MODE_RELEASE_BUFFERS
            link = make_link(client, server).handshake()
            for side in (link.client, link.server):
                assert side.connection.send(memoryview(bytes(256 * 1024))) == 256 * 1024


class OwnCertificateTests(SynchronousTestCase):
    """A file port with a certificate from elsewhere."""

    def setUp(self) -> None:
        self.farm, self.elsewhere = make_authority(), make_authority()
        self.own = make_identity(self.elsewhere, BETA, ["files.example"])
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def write(self, name: str, content: bytes, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(mode)
        return path

    def test_by_name(self) -> None:
        """Clients see that certificate with its chain; a server that asks for the server id sees the farm's."""
        path = self.write("both.pem", self.own.key_pem + self.own.certificate_pem + self.own.ca_pem)
        contexts = Contexts(make_identity(self.farm), Certificate.load(path))
        for name, expected in ((None, BETA), (b"files.example", BETA), (ALPHA.encode(), ALPHA)):
            link = make_link(Contexts().client([HTTP_1_1]), contexts.file_port(), name).handshake()
            chain = link.client.connection.get_peer_cert_chain(as_cryptography=True)
            assert chain is not None
            authority = self.farm if expected == ALPHA else self.elsewhere
            assert chain[1:] == [authority.certificate]
            assert make_contexts(authority).peer_of(chain[0]) == expected
            assert link.client.connection.get_alpn_proto_negotiated() == HTTP_1_1

    def test_replaced_while_running(self) -> None:
        """Connections made after a change see the other certificate."""
        contexts = Contexts(make_identity(self.farm))
        factory = contexts.file_port_factory()
        for certificate, expected in (
            (Certificate(self.own.certificate, (), self.own.key), self.own.certificate),
            (None, make_identity(self.farm).certificate),
        ):
            contexts.show_on_file_port(certificate)
            link = make_link(Contexts().client(), factory.getContext()).handshake()
            shown = shown_by(link.client)
            assert shown is not None
            assert shown.subject == expected.subject

    def test_servers_still_show_theirs(self) -> None:
        """A server that fetches chunks from such a port is still known by its farm certificate."""
        path = self.write("both.pem", self.own.certificate_pem + self.own.key_pem)
        contexts = Contexts(make_identity(self.farm), Certificate.load(path))
        factory = make_contexts(self.farm, BETA).client_factory([HTTP_1_1], server_id=ALPHA)
        link = make_link(factory.getContext(), contexts.file_port(), factory.server_name).handshake()
        assert contexts.peer_of(shown_by(link.server)) == BETA
        assert contexts.peer_of(shown_by(link.client)) == ALPHA

    def test_key_in_a_file_of_its_own(self) -> None:
        """Certificate and key may be two files, of which only the key must be closed to others."""
        certificate = self.write("cert.pem", self.own.certificate_pem, 0o644)
        key = self.write("key.pem", self.own.key_pem)
        loaded = Certificate.load(certificate, key)
        assert (loaded.certificate, loaded.chain) == (self.own.certificate, ())
        key.chmod(0o640)
        assert "chmod 600" in str(self.assertRaises(TrustError, Certificate.load, certificate, key))

    def test_encrypted_or_wrong_keys(self) -> None:
        """A key with a password, another certificate's key, or none is refused with the file's name."""
        key = new_key()
        encrypted = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
        for secret in (encrypted, key_to_pem(key), b"", b"-----BEGIN"):
            path = self.write("both.pem", self.own.certificate_pem + secret)
            assert str(path) in str(self.assertRaises(TrustError, Certificate.load, path))
        path = self.write("both.pem", self.own.key_pem)
        assert "no certificate" in str(self.assertRaises(TrustError, Certificate.load, path))
        assert "PRIVATE" not in repr(Certificate(self.own.certificate, (), self.own.key))


class Responder(amp.AMP):
    """Answers with who asked, as far as the certificate says."""

    contexts: Contexts

    @GetServer.responder
    def get_server(self, server: str) -> dict[str, str]:
        return {"row": str(self.peer())}

    def peer(self) -> str | None:
        transport: Any = self.transport
        return self.contexts.peer_of(transport.getPeerCertificate())


class FactoryTests(SynchronousTestCase):
    """The factories fit what Twisted makes connections with."""

    def test_interfaces(self) -> None:
        """They provide all three of Twisted's interfaces, so none is taken for the legacy kind."""
        contexts = make_contexts(make_authority())
        for factory in (
            contexts.peer_server_factory(),
            contexts.peer_client_factory(),
            contexts.client_port_factory(),
            contexts.file_port_factory(),
            contexts.client_factory(),
        ):
            for interface in (
                IOpenSSLContextFactory,
                IOpenSSLServerConnectionCreator,
                IOpenSSLClientConnectionCreator,
            ):
                assert verifyObject(interface, factory)

    def test_amp(self) -> None:
        """AMP over Twisted's own TLS works, and each side has certificate and exporter at hand."""
        authority = make_authority()
        alpha, beta = make_contexts(authority), make_contexts(authority, BETA)
        clock = Clock()
        responder, asker = Responder(), Responder()
        responder.contexts, asker.contexts = alpha, beta
        server = TLSMemoryBIOFactory(
            alpha.peer_server_factory(), False, Factory.forProtocol(lambda: responder), clock
        ).buildProtocol(None)
        client = TLSMemoryBIOFactory(
            beta.peer_client_factory(), True, Factory.forProtocol(lambda: asker), clock
        ).buildProtocol(None)
        assert server is not None
        assert client is not None
        pump = connect(server, FakeTransport(server, True), client, FakeTransport(client, False))
        answer: Deferred[dict[str, str]] = asker.callRemote(GetServer, server=ALPHA)
        for _ in range(5):
            pump.flush()
            clock.advance(0)
        assert self.successResultOf(answer) == {"row": BETA}
        assert asker.peer() == ALPHA
        assert exporter_of(asker.transport) == exporter_of(responder.transport)

    def test_server_name(self) -> None:
        """A link that wants a certain server's certificate says so ahead."""
        contexts = make_contexts(make_authority())
        connection = contexts.client_factory(server_id=FARM_ID).clientConnectionForTLS(None)  # type: ignore[arg-type]
        link = make_link(connection.get_context(), contexts.file_port(), FARM_ID.encode()).handshake()
        assert link.server.connection.get_servername() == FARM_ID.encode()
        connection.set_connect_state()
        self.assertRaises(SSL.WantReadError, connection.do_handshake)
        assert FARM_ID.encode() in connection.bio_read(1 << 16)

    def test_client_of_the_farm(self) -> None:
        """A process without an identity has no contexts for servers."""
        self.assertRaises(AssertionError, Contexts().peer_server)
        self.assertRaises(AssertionError, Contexts().peer_client)
        assert to_pem(make_identity(make_authority()).certificate).startswith(b"-----BEGIN CERTIFICATE")
