"""Sealed secrets."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.trust.private import NoSuchFile, TrustError
from chunkfarm.trust.seal import KEYS_HELD_MAX, SEAL_KEY_LENGTH, SealKey


class SealTests(SynchronousTestCase):
    """A sealed secret is readable with the key, under its own name, unchanged."""

    def setUp(self) -> None:
        self.seal = SealKey.create()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    @given(st.text(max_size=40), st.binary(max_size=200))
    @settings(deadline=None)
    def test_round_trip(self, name: str, secret: bytes) -> None:
        """What was sealed can be unsealed, and does not show through."""
        sealed = self.seal.seal(name, secret)
        assert self.seal.unseal(name, sealed) == secret
        assert len(secret) < 8 or secret not in sealed

    def test_from_one_key_to_the_next(self) -> None:
        """Both are held for a while: what either sealed is opened, and only one of them seals."""
        other = SealKey.create()
        before = self.seal.seal("a", b"secret")
        both = self.seal.beside(other.material)
        assert (both.digest, both.key_of(other.digest)) == (self.seal.digest, other.material)
        after = both.led_by(other.digest)
        assert after.unseal("a", before) == b"secret"
        assert after.alone().unseal("a", after.seal("a", b"secret")) == b"secret"
        self.assertRaises(TrustError, after.alone().unseal, "a", before)
        self.assertRaises(TrustError, self.seal.unseal, "a", after.seal("a", b"secret"))
        assert after.led_by("nobody's") == after
        after.save(self.folder)
        assert SealKey.load(self.folder) == after
        for _ in range(10):
            after = after.beside(SealKey.create().material)
        assert len(after.held) == KEYS_HELD_MAX and after.digest == other.digest

    def test_never_the_same(self) -> None:
        """Sealing a secret twice does not show that it is the same one."""
        assert self.seal.seal("a", b"secret") != self.seal.seal("a", b"secret")

    def test_another_name(self) -> None:
        """A sealed value cannot be moved to another row."""
        sealed = self.seal.seal("keys/one", b"secret")
        error = self.assertRaises(TrustError, self.seal.unseal, "keys/two", sealed)
        assert "keys/two" in str(error)

    def test_another_key(self) -> None:
        """Another farm's key opens nothing."""
        self.assertRaises(TrustError, SealKey.create().unseal, "a", self.seal.seal("a", b"secret"))

    def test_any_change(self) -> None:
        """Any changed bit is noticed."""
        sealed = self.seal.seal("a", b"secret")
        for position in range(len(sealed)):
            changed = bytearray(sealed)
            changed[position] ^= 1
            self.assertRaises(TrustError, self.seal.unseal, "a", bytes(changed))

    @given(st.binary(max_size=100))
    @settings(deadline=None)
    def test_any_bytes(self, data: bytes) -> None:
        """Bytes that were never sealed are refused with a sentence."""
        self.assertRaises(TrustError, self.seal.unseal, "a", data)
        self.assertRaises(TrustError, self.seal.unseal, "a", b"\x01" + data)

    def test_file(self) -> None:
        """The key is kept for its owner only, and works after a restart."""
        sealed = self.seal.seal("a", b"secret")
        self.seal.save(self.folder)
        assert (self.folder / "seal.key").stat().st_mode & 0o777 == 0o600
        assert SealKey.load(self.folder).unseal("a", sealed) == b"secret"
        assert SealKey.load(self.folder) == self.seal

    def test_bad_files(self) -> None:
        """A missing, damaged or open key file is one sentence."""
        self.assertRaises(NoSuchFile, SealKey.load, self.folder)
        self.seal.save(self.folder)
        path = self.folder / "seal.key"
        path.chmod(0o640)
        self.assertRaises(TrustError, SealKey.load, self.folder)
        path.chmod(0o600)
        for content in (b"", b"hello", self.seal.material, self.seal.material.hex().encode()[:-2]):
            path.write_bytes(content)
            self.assertRaises(TrustError, SealKey.load, self.folder)

    def test_not_shown(self) -> None:
        """Printing a key does not print it, and a key of the wrong length is none."""
        assert "material" not in repr(self.seal)
        self.assertRaises(TrustError, SealKey, b"short")
        assert len(self.seal.material) == SEAL_KEY_LENGTH
