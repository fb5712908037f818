"""The join key and its proof."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.trust.private import AlreadyExists, NoSuchFile, TrustError
from chunkfarm.trust.proof import (
    DIALER,
    JOIN_KEY_LENGTH,
    JOINER,
    LISTENER,
    MEMBER,
    ROLES,
    check_proof,
    exporter_of,
    make_join_key,
    proof,
    read_join_key,
    write_join_key,
)
from tests.trust.support import BETA, Link, make_authority, make_contexts, make_link

KEY = bytes(range(32))
EXPORTER = bytes(32)


class ProofTests(SynchronousTestCase):
    """Both sides show that they know the key, and nobody learns it."""

    def connect(self) -> Link:
        """A joiner without a certificate of the farm, connected to a member."""
        joiner, member = make_contexts(None, BETA), make_contexts(make_authority())
        return make_link(joiner.peer_client(), member.peer_server()).handshake()

    def test_form(self) -> None:
        """The proof is what the protocol says, so that another program can compute it."""
        expected = hmac.new(KEY, b"chunkfarm join 1\0joiner\0" + EXPORTER, hashlib.sha256).digest()
        assert proof(KEY, JOINER, EXPORTER) == expected

    def test_both_sides(self) -> None:
        """Two servers with one key convince each other over one connection."""
        link = self.connect()
        here, there = exporter_of(link.client), exporter_of(link.server)
        assert here == there
        assert check_proof(KEY, JOINER, there, proof(KEY, JOINER, here))
        assert check_proof(KEY, MEMBER, here, proof(KEY, MEMBER, there))

    def test_reflected(self) -> None:
        """An impostor who answers with the proof it was just shown convinces nobody."""
        link = self.connect()
        shown = proof(KEY, JOINER, exporter_of(link.client))
        assert not check_proof(KEY, MEMBER, exporter_of(link.client), shown)
        dialed = proof(KEY, DIALER, exporter_of(link.client))
        assert not check_proof(KEY, LISTENER, exporter_of(link.client), dialed)

    def test_all_roles_differ(self) -> None:
        """No role's proof is good for another role."""
        assert len({proof(KEY, role, EXPORTER) for role in ROLES}) == len(ROLES)

    def test_in_between(self) -> None:
        """Who sits between two servers cannot pass a proof from one connection on to another."""
        outer, inner = self.connect(), self.connect()
        shown = proof(KEY, JOINER, exporter_of(outer.client))
        assert not check_proof(KEY, JOINER, exporter_of(inner.server), shown)

    def test_wrong_key(self) -> None:
        """Without the key there is no proof, whatever its length."""
        assert not check_proof(KEY, JOINER, EXPORTER, proof(bytes(32), JOINER, EXPORTER))
        good = proof(KEY, JOINER, EXPORTER)
        for shown in (b"", good[:-1], good + b"\0"):
            assert not check_proof(KEY, JOINER, EXPORTER, shown)

    def test_constant_time(self) -> None:
        """How long a check takes tells nothing: the comparison is the one made for it."""
        compared: list[tuple[bytes, bytes]] = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return True

        self.patch(hmac, "compare_digest", compare)
        assert check_proof(KEY, JOINER, EXPORTER, b"anything")
        assert compared == [(proof(KEY, JOINER, EXPORTER), b"anything")]

    def test_without_tls(self) -> None:
        """Nothing can be proved in the clear."""

        class Plain:
            def getHandle(self) -> object:
                return object()

        self.assertRaises(TrustError, exporter_of, Plain())

    def test_before_the_handshake(self) -> None:
        """Nothing can be proved before the handshake is over."""
        joiner, member = make_contexts(), make_contexts(make_authority())
        link = make_link(joiner.peer_client(), member.peer_server())
        self.assertRaises(TrustError, exporter_of, link.client)
        self.assertRaises(TrustError, exporter_of, link.server)

    def test_older_tls(self) -> None:
        """Nothing is proved over a TLS whose exporter two connections can share."""
        contexts = make_contexts(make_authority())
        client = contexts.client()
        client.set_max_proto_version(SSL.TLS1_2_VERSION)
        link = make_link(client, contexts.client_port()).handshake()
        error = self.assertRaises(TrustError, exporter_of, link.client)
        assert "TLS 1.3" in str(error)


class JoinKeyFileTests(SynchronousTestCase):
    """`farm.join`."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.path = folder / "farm.join"

    def write(self, content: bytes) -> None:
        self.path.write_bytes(content)
        self.path.chmod(0o600)

    def test_round_trip(self) -> None:
        """A key is written as a line of hexadecimal digits for its owner only, and read back."""
        key = make_join_key()
        write_join_key(self.path, key)
        assert self.path.read_text() == key.hex() + "\n"
        assert self.path.stat().st_mode & 0o777 == 0o600
        assert read_join_key(self.path) == key

    def test_made_at_random(self) -> None:
        """A key is as many random bytes as the source is asked for."""
        assert make_join_key(lambda count: b"r" * count) == b"r" * JOIN_KEY_LENGTH
        assert make_join_key() != make_join_key()

    def test_existing_key_is_kept(self) -> None:
        """A farm's key is not overwritten, unless that is what is meant."""
        write_join_key(self.path, KEY)
        self.assertRaises(AlreadyExists, write_join_key, self.path, bytes(32))
        assert read_join_key(self.path) == KEY
        write_join_key(self.path, bytes(32), replace=True)
        assert read_join_key(self.path) == bytes(32)

    def test_as_edited_by_hand(self) -> None:
        """Upper case, a carriage return or no line end do no harm."""
        for text in (KEY.hex(), KEY.hex().upper() + "\r\n", " " + KEY.hex() + "\n\n"):
            self.write(text.encode())
            assert read_join_key(self.path) == KEY

    def test_open_to_others(self) -> None:
        """A key that others can read is refused, with the command that mends it."""
        self.write(KEY.hex().encode())
        self.path.chmod(0o644)
        error = self.assertRaises(TrustError, read_join_key, self.path)
        assert "chmod 600" in str(error)

    def test_wrong_content(self) -> None:
        """What is no key of the right length is refused, and not repeated in the sentence."""
        digits = KEY.hex()
        spaced = " ".join(digits[at : at + 8] for at in range(0, 64, 8))
        for wrong in ("", "no key", digits[:-2], digits + "00", digits[:-1], "é" * 32, spaced):
            self.write(wrong.encode())
            error = self.assertRaises(TrustError, read_join_key, self.path)
            assert str(self.path) in str(error)
            assert not wrong or wrong not in str(error).replace("is not a join key", "")

    def test_absent(self) -> None:
        """No key is told from a bad key."""
        self.assertRaises(NoSuchFile, read_join_key, self.path)

    @given(st.binary(max_size=200))
    @settings(deadline=None)
    def test_any_content(self, content: bytes) -> None:
        """Any content is either a key or one sentence."""
        self.write(content)
        try:
            key = read_join_key(self.path)
        except TrustError:
            return
        assert key.hex().encode() == content.strip().lower()
