"""Judging a server by the fingerprint of its farm's CA."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.trust.authority import DAY_MS
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.verify import Untrusted, chain_of, check_chain
from tests.trust.support import (
    ALPHA,
    BETA,
    NOW,
    Side,
    forge,
    make_authority,
    make_contexts,
    make_identity,
    make_link,
    new_key,
)


class CheckChainTests(SynchronousTestCase):
    """A client that knows a fingerprint, and nothing else, knows the right server from any other."""

    def setUp(self) -> None:
        self.authority = make_authority()
        self.fingerprint = self.authority.fingerprint
        self.ca = self.authority.certificate
        self.chain = (make_identity(self.authority).certificate, self.ca)

    def check(
        self, chain: Sequence[x509.Certificate] | None = None, expected: str | None = None, now: int | None = NOW
    ) -> str:
        return check_chain(self.chain if chain is None else chain, self.fingerprint, expected, now)

    def refusal(
        self, chain: Sequence[x509.Certificate] | None = None, expected: str | None = None, now: int | None = NOW
    ) -> str:
        return str(self.assertRaises(Untrusted, self.check, chain, expected, now))

    def test_from_a_handshake(self) -> None:
        """The chain that a server really sends is enough, in either version of TLS."""
        server = make_contexts(self.authority)
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            context = Contexts().client()
            context.set_max_proto_version(version)
            link = make_link(context, server.client_port()).handshake()
            chain = chain_of(link.client)
            assert len(chain) == 2
            assert self.check(chain, "10.0.0.1") == ALPHA

    def test_without_tls(self) -> None:
        """A connection that is not encrypted has no chain, and no chain is refused."""

        class Plain:
            def getHandle(self) -> object:
                return object()

        assert chain_of(Plain()) == ()
        assert self.refusal(()) == "the server showed no certificate"

    def test_before_the_handshake(self) -> None:
        """A connection whose handshake is not over has no chain."""
        assert chain_of(Side(SSL.Connection(Contexts().client(), None))) == ()

    def test_names(self) -> None:
        """A server is accepted under every name in its certificate, by its id, or as any server of the farm."""
        for expected in (
            "10.0.0.1",
            "ALPHA.example",
            "alpha.example.",
            "localhost",
            "127.0.0.1",
            "::1",
            "[::1]",
            ALPHA,
            None,
        ):
            assert self.check(expected=expected) == ALPHA

    def test_other_names(self) -> None:
        """A server of the farm that is not the one asked for is refused, and named."""
        for expected in ("10.0.0.2", "beta.example", "example", "::2"):
            sentence = self.refusal(expected=expected)
            assert ALPHA in sentence
            assert expected in sentence
        assert self.refusal(expected=BETA) == f"this is the server {ALPHA}, not {BETA}"

    def test_no_name_at_all(self) -> None:
        """What can be no name is refused, not ignored."""
        for expected in ("", " ", "a b", "12345", "é" * 80):
            self.refusal(expected=expected)

    def test_another_farm(self) -> None:
        """Another farm's server is refused, and both fingerprints are told."""
        other = make_authority()
        sentence = self.refusal((make_identity(other).certificate, other.certificate))
        assert self.fingerprint in sentence
        assert other.fingerprint in sentence

    def test_no_fingerprint_known(self) -> None:
        """Without a fingerprint nothing is trusted."""
        error = self.assertRaises(Untrusted, check_chain, self.chain, "", None, NOW)
        assert "not known" in str(error)

    def test_fingerprint_written_large(self) -> None:
        """A fingerprint typed in upper case is the same one."""
        assert check_chain(self.chain, self.fingerprint.upper(), None, NOW) == ALPHA

    def test_borrowed_authority(self) -> None:
        """An impostor who appends the farm's CA to a chain of its own is refused."""
        key = new_key()
        own = forge(key, issuer=self.ca.subject, signer=key)
        assert "not signed" in self.refusal((own, self.ca))
        other = make_authority()
        assert "not signed" in self.refusal((make_identity(other).certificate, other.certificate, self.ca))

    def test_authority_alone(self) -> None:
        """The CA's certificate, which everybody has, makes nobody a server."""
        self.refusal((self.ca,))
        self.refusal((self.ca, self.ca))

    def test_server_as_authority(self) -> None:
        """A server of the farm cannot sign for others."""
        identity = make_identity(self.authority)
        forged = forge(new_key(), issuer=identity.certificate.subject, signer=identity.key, server_ids=[BETA])
        assert "not signed" in self.refusal((forged, identity.certificate, self.ca))

    def test_certificate_without_an_id(self) -> None:
        """Something else that the CA may once have signed is no server."""
        signed = forge(new_key(), issuer=self.ca.subject, signer=self.authority.key, server_ids=[])
        assert "not one of a farm's server" in self.refusal((signed, self.ca))

    def test_certificate_for_clients(self) -> None:
        """A certificate that is not for servers makes no server."""
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        signed = forge(new_key(), issuer=self.ca.subject, signer=self.authority.key, usage=usage)
        assert "not one of a farm's server" in self.refusal((signed, self.ca))

    def test_dates(self) -> None:
        """A certificate before or after its time is refused, and the clock suspected."""
        assert "ran out" in self.refusal(now=NOW + 366 * DAY_MS)
        assert "valid from" in self.refusal(now=NOW - 3 * DAY_MS)
        assert self.check(now=NOW - DAY_MS) == ALPHA
        assert self.check(now=NOW + 364 * DAY_MS) == ALPHA

    def test_authority_that_ran_out(self) -> None:
        """An authority's dates count as well."""
        old = make_authority(NOW - 21 * 365 * DAY_MS)
        leaf = forge(new_key(), issuer=old.certificate.subject, signer=old.key)
        error = self.assertRaises(Untrusted, check_chain, (leaf, old.certificate), old.fingerprint, None, NOW)
        assert str(error).startswith("the farm's CA ran out")

    def test_between_servers(self) -> None:
        """Between servers dates do not count: a server that was shelved for a year comes back."""
        old = make_authority(NOW - 3 * 365 * DAY_MS)
        chain = (make_identity(old, now=NOW - 3 * 365 * DAY_MS).certificate, old.certificate)
        assert check_chain(chain, old.fingerprint, "10.0.0.1", None) == ALPHA
        self.assertRaises(Untrusted, check_chain, chain, old.fingerprint, "10.0.0.1", NOW)
