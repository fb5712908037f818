"""Keys of users: made, listed, disabled, removed."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import InvalidRequest, NotFound, PreconditionFailed, Waiting
from chunkfarm.keyring import Keyring, check_key
from chunkfarm.model import KEYS_CHANGED_KEY
from chunkfarm.trust.keys import KeyPair, KeyRow, check, secret_digest
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.seal import SealKey
from tests.memory_table import MemoryTable

NOW = 1_700_000_000_000


class KeyringTests(SynchronousTestCase):
    """What an admin may do with keys."""

    def make_keyring(self, *roles: str) -> Keyring:
        self.table = MemoryTable()
        self.seal: SealKey | None = SealKey.create()
        keyring = Keyring(self.table, lambda: self.seal, lambda: NOW)
        self.pairs = [self.successResultOf(keyring.add(role)) for role in roles]
        return keyring

    def rows(self, keyring: Keyring) -> dict[str, KeyRow]:
        return {row.id: row for row in self.successResultOf(keyring.keys())}

    def marked(self) -> int:
        page = self.successResultOf(self.table.read(KEYS_CHANGED_KEY))
        return page.rows[0].revision if page.rows else 0

    def test_add(self) -> None:
        """A new key has its role, prefix and label, and a secret that the table can compare and masters can unseal."""
        keyring = self.make_keyring("admin")
        pair = self.successResultOf(keyring.add("write", "lab/", "the microscope"))
        row = self.rows(keyring)[pair.id]
        assert (row.role, row.prefix, row.label, row.created, row.disabled) == (
            "write",
            "lab/",
            "the microscope",
            NOW,
            False,
        )
        assert check(row, secret_digest(pair.secret))
        assert self.seal is not None
        assert self.seal.unseal(row.seal_name, row.sealed) == pair.secret.encode()
        assert pair.secret not in repr(row) + repr(pair)

    def test_every_change_is_marked(self) -> None:
        """Servers that may not follow the keys follow a row that changes with each of them."""
        keyring = self.make_keyring("admin", "read")
        seen = [self.marked()]
        self.successResultOf(keyring.enable(self.pairs[1].id, False))
        seen.append(self.marked())
        self.successResultOf(keyring.remove(self.pairs[1].id))
        seen.append(self.marked())
        assert seen == sorted(set(seen))

    def test_disable_and_enable(self) -> None:
        """A disabled key is refused, and good again when it is enabled."""
        keyring = self.make_keyring("admin", "read")
        pair = self.pairs[1]
        for enabled in (False, True):
            self.successResultOf(keyring.enable(pair.id, enabled))
            assert check(self.rows(keyring)[pair.id], secret_digest(pair.secret)) is enabled

    def test_the_last_admin(self) -> None:
        """The last good key of an admin can be neither disabled nor removed; the last but one can."""
        keyring = self.make_keyring("admin", "admin", "write")
        first, second = self.pairs[:2]
        self.successResultOf(keyring.enable(first.id, False))
        for change in (keyring.enable(second.id, False), keyring.remove(second.id)):
            self.failureResultOf(change, PreconditionFailed)
        self.successResultOf(keyring.remove(first.id))
        self.failureResultOf(keyring.remove(second.id), PreconditionFailed)

    def test_two_admins_at_once(self) -> None:
        """Of two admins who disable each other at the same moment one gets their way."""
        keyring = self.make_keyring("admin", "admin")
        other = Keyring(self.table, lambda: self.seal, lambda: NOW)
        first, second = self.pairs
        transact = self.table.transact
        raced: list[bool] = []

        def race(compares, operations):  # type: ignore[no-untyped-def]
            if not raced:
                raced.append(True)
                self.successResultOf(other.enable(first.id, False))
            return transact(compares, operations)

        self.table.transact = race  # type: ignore[method-assign]
        self.failureResultOf(keyring.enable(second.id, False), PreconditionFailed)
        assert [row.disabled for row in self.rows(keyring).values()].count(True) == 1

    def test_unknown(self) -> None:
        """A key that does not exist is named."""
        keyring = self.make_keyring("admin")
        assert "NOBODY" in str(self.failureResultOf(keyring.remove("NOBODY"), NotFound).value)

    def test_what_no_key_can_have(self) -> None:
        """Another role, an admin of some files only, a prefix that no name begins with, a label with line breaks."""
        keyring = self.make_keyring("admin")
        for role, prefix, label in (
            ("owner", "", ""),
            ("admin", "lab/", ""),
            ("read", "/lab", ""),
            ("read", "-/", ""),
            ("read", "x" * 1025, ""),
            ("read", "\ud800", ""),
            ("read", "", "a\nb"),
            ("read", "", "x" * 101),
        ):
            self.failureResultOf(keyring.add(role, prefix, label), InvalidRequest)
        assert len(self.rows(keyring)) == 1

    def test_prefixes(self) -> None:
        """A key is for names that there can be: one for others would open nothing, and nobody would know why."""
        for prefix in (
            "../",
            "./",
            "lab/../",
            "lab//",
            "lab/./a",
            "lab\n",
            "lab/a\nb",
            "lab/\x7f",
            ".",
            "a b/",
            "x" * 64,
        ):
            with self.assertRaises(InvalidRequest) as caught:
                check_key("read", prefix, "")
            assert str(caught.exception).startswith("no file has a name that begins with "), prefix
            assert "\n" not in str(caught.exception)
        for prefix in ("", "l", "lab", "lab/", "lab/a", "lab/.", "lab/..", "lab/a b", "x" * 63, "lab/" + "x" * 1020):
            check_key("write", prefix, "")

    def test_no_secrets_here(self) -> None:
        """A server that may not know the farm's secrets makes no keys."""
        keyring = self.make_keyring("admin")
        self.seal = None
        self.failureResultOf(keyring.add("read"), Waiting)

    def test_damaged_prefix(self) -> None:
        """A row whose prefix is no text is damaged, and never good for all files."""
        keyring = self.make_keyring("admin", "read")
        row = self.rows(keyring)[self.pairs[1].id]
        self.table.put(row.key, row.to_value().replace(b'"prefix":""', b'"prefix":null'))
        self.failureResultOf(keyring.keys(), TrustError)

    def test_pair(self) -> None:
        """What is told is a pair that a key file can hold."""
        self.make_keyring("admin")
        assert isinstance(self.pairs[0], KeyPair)
