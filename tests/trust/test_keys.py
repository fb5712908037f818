"""Keys of users."""

from __future__ import annotations

import hashlib
import hmac
import json
import netrc
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import AuthenticationFailed
from chunkfarm.trust.keys import (
    KeyPair,
    KeyRow,
    check,
    new_key,
    parse_key_line,
    read_key_file,
    secret_digest,
    split_bearer,
    write_admin_key,
    write_netrc,
)
from chunkfarm.trust.private import NoSuchFile, TrustError
from chunkfarm.trust.seal import SealKey

PAIR = KeyPair("CFKEY", "s3cret-_")
WORD = st.text("abcXYZ019_-", min_size=1, max_size=64)


class KeyRowTests(SynchronousTestCase):
    """A key's row knows enough to check a secret, and no more than that unsealed."""

    def test_new_key(self) -> None:
        """A new key has a random id and a secret of 256 bits, and its row holds only the digest."""
        row, secret = new_key("write", created=7)
        assert (row.role, row.created, row.disabled, row.sealed) == ("write", 7, False, b"")
        assert row.secret_sha256 == hashlib.sha256(secret.encode()).digest()
        assert len(secret) == 43
        assert row.key == b"keys/" + row.id.encode()
        assert secret.encode() not in row.to_value()
        assert secret not in repr(row)
        assert new_key("write")[0].id != row.id

    def test_randomness_is_given(self) -> None:
        """All randomness comes from the source that is handed in."""
        assert new_key("read", random_bytes=bytes) == new_key("read", random_bytes=bytes)

    def test_words(self) -> None:
        """An id and a secret fit every place where they are used: a line, a header, a token, netrc."""
        for _ in range(50):
            row, secret = new_key("read")
            assert split_bearer(KeyPair(row.id, secret).bearer) == KeyPair(row.id, secret)
            assert parse_key_line(f"{row.id} {secret}\n", "x") == KeyPair(row.id, secret)
            assert ":" not in row.id + secret

    def test_sealed(self) -> None:
        """The secret can be had back from the row with the key that seals, for signatures."""
        seal = SealKey.create()
        row, secret = new_key("admin", seal=seal)
        assert seal.unseal(row.seal_name, KeyRow.from_value(row.to_value()).sealed).decode() == secret

    def test_check(self) -> None:
        """The right secret of an enabled key is good, nothing else is."""
        row, secret = new_key("admin")
        assert check(row, secret_digest(secret))
        assert not check(row, secret_digest(secret + "x"))
        assert not check(row, b"")
        disabled = KeyRow(id=row.id, role=row.role, secret_sha256=row.secret_sha256, disabled=True)
        assert not check(disabled, secret_digest(secret))

    def test_constant_time(self) -> None:
        """How long a check takes tells nothing: the comparison is the one made for it."""
        row, _ = new_key("admin")
        compared: list[tuple[bytes, bytes]] = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return True

        self.patch(hmac, "compare_digest", compare)
        assert check(row, b"shown")
        assert compared == [(row.secret_sha256, b"shown")]

    @given(
        st.builds(
            KeyRow,
            id=WORD,
            role=st.sampled_from(["read", "write", "admin"]),
            secret_sha256=st.binary(min_size=32, max_size=32),
            sealed=st.binary(max_size=99),
            created=st.integers(0, 2**48),
            disabled=st.booleans(),
        )
    )
    @settings(deadline=None)
    def test_round_trip(self, row: KeyRow) -> None:
        """A row is read as it was written."""
        assert KeyRow.from_value(row.to_value()) == row

    def test_fields_of_a_later_version(self) -> None:
        """A field that this version does not know is passed over; one that it needs may not be missing."""
        row, _ = new_key("read")
        item = json.loads(row.to_value())
        assert KeyRow.from_value(json.dumps({**item, "later": 1}).encode()) == row
        for name in ("id", "role", "secret_sha256"):
            less = {key: value for key, value in item.items() if key != name}
            self.assertRaises(TrustError, KeyRow.from_value, json.dumps(less).encode())
        self.assertRaises(TrustError, KeyRow.from_value, json.dumps({**item, "role": "root"}).encode())
        self.assertRaises(TrustError, KeyRow.from_value, json.dumps({**item, "secret_sha256": ""}).encode())
        odd = KeyRow.from_value(json.dumps({**item, "disabled": "false"}).encode())
        assert odd.disabled

    @given(
        st.one_of(
            st.binary(max_size=60),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.text(max_size=5),
                lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "role", "created"]), inner),
                max_leaves=5,
            ).map(lambda item: json.dumps(item).encode()),
        )
    )
    @settings(deadline=None)
    def test_any_value(self, value: bytes) -> None:
        """A damaged row is one sentence."""
        self.assertRaises(TrustError, KeyRow.from_value, value)


class TokenTests(SynchronousTestCase):
    """Keys as people and programs hand them in."""

    @given(WORD, WORD)
    @settings(deadline=None)
    def test_bearer(self, key_id: str, secret: str) -> None:
        """A bearer token is id, dot, secret."""
        assert split_bearer(f"{key_id}.{secret}") == KeyPair(key_id, secret)

    @given(st.text(max_size=40))
    @settings(deadline=None)
    def test_any_token(self, token: str) -> None:
        """Any other token is refused as wrong, not as a fault."""
        try:
            pair = split_bearer(token)
        except AuthenticationFailed as error:
            assert str(error) == "a bearer token is <key id>.<secret>"
        else:
            assert pair.bearer == token

    def test_not_bearer(self) -> None:
        """Missing parts, spaces and endless tokens are refused."""
        for wrong in ("", ".", "a", "a.", ".b", "a b.c", "a.b c", "a.b\n", "a." + "b" * 1000, "é.b"):
            self.assertRaises(AuthenticationFailed, split_bearer, wrong)

    @given(WORD, WORD, st.sampled_from(["", "\n", "\r\n"]))
    @settings(deadline=None)
    def test_key_line(self, key_id: str, secret: str, end: str) -> None:
        """A key file is one line: id, space, secret."""
        assert parse_key_line(f"{key_id} {secret}{end}", "x") == KeyPair(key_id, secret)

    @given(st.text(max_size=60))
    @settings(deadline=None)
    def test_any_line(self, text: str) -> None:
        """Any other content is one sentence that does not repeat it."""
        try:
            pair = parse_key_line(text, "FILE")
        except TrustError as error:
            assert str(error) == "FILE is not a key file: expected one line, <key id> <secret>"
        else:
            assert f"{pair.id} {pair.secret}" == text.rstrip("\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029")

    def test_secret_is_not_shown(self) -> None:
        """Printing a key does not print its secret."""
        assert PAIR.secret not in repr(PAIR)


class KeyFileTests(SynchronousTestCase):
    """`admin.key` and `netrc` in the data directory."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def test_admin_key(self) -> None:
        """The admin key is one line in a file for its owner only."""
        write_admin_key(self.folder, PAIR)
        path = self.folder / "admin.key"
        assert path.read_text() == "CFKEY s3cret-_\n"
        assert path.stat().st_mode & 0o777 == 0o600
        assert read_key_file(path) == PAIR

    def test_bad_key_files(self) -> None:
        """An absent, open, binary or foreign file is refused in one sentence with its name."""
        path = self.folder / "admin.key"
        self.assertRaises(NoSuchFile, read_key_file, path)
        write_admin_key(self.folder, PAIR)
        path.chmod(0o604)
        assert "chmod 600" in str(self.assertRaises(TrustError, read_key_file, path))
        path.chmod(0o600)
        for content in (b"", b"\xff\xfe \x00", b"one two three\n", b"one two\nthree four\n"):
            path.write_bytes(content)
            assert str(path) in str(self.assertRaises(TrustError, read_key_file, path))

    def test_netrc(self) -> None:
        """Programs that read netrc find the key for each of the server's names, once."""
        write_netrc(self.folder, ["10.0.0.1", "127.0.0.1", "fe80::1"], PAIR)
        path = self.folder / "netrc"
        assert path.stat().st_mode & 0o777 == 0o600
        hosts = netrc.netrc(str(path)).hosts
        assert list(hosts) == ["localhost", "127.0.0.1", "::1", "10.0.0.1", "fe80::1"]
        assert {(entry[0], entry[2]) for entry in hosts.values()} == {(PAIR.id, PAIR.secret)}
        assert path.read_text().count("127.0.0.1") == 1

    def test_netrc_with_an_odd_host(self) -> None:
        """A host that is no word cannot smuggle in an entry of its own."""
        write_netrc(self.folder, ["a\nmachine b", "", "two words"], PAIR)
        assert list(netrc.netrc(str(self.folder / "netrc")).hosts) == ["localhost", "127.0.0.1", "::1"]
