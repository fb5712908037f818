"""Who shows which key: what is no key at all is refused like one that is not known."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.access import Access
from chunkfarm.errors import AuthenticationFailed
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import Principal, Server
from chunkfarm.table.interface import Put
from chunkfarm.trust.keys import new_key
from tests.memory_table import MemoryTable

FIRST = Server(id="5e" * 16, name="alpha", host="10.0.0.1", client=1, peer=2, files=3)
UNFIT = ("", "a b", "a/b", "\u00e4", "a\0", "a" * 65, "a" * 2000, "a" * 100_000)


class MemoryPeers:
    """The other servers, which know every key that they are asked about."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    role = "admin"
    gone = False

    def call(self, server_id: str, command: Any, key: str, proof: bytes) -> Deferred[dict[str, str]]:
        self.asked.append(key)
        return fail(LinkFailed("refused")) if self.gone else succeed({"role": self.role})


class AccessTests(SynchronousTestCase):
    def make(self, holds_rows: bool, *, stands_still: bool = False) -> Access:
        self.table, self.peers = MemoryTable(), MemoryPeers()
        peers: Any = self.peers
        return Access(
            self.table, lambda: holds_rows, peers, lambda: (FIRST,), Clock(), stands_still=lambda: stands_still
        )

    def test_good(self) -> None:
        """A key that stands in the table is good, with its secret."""
        access = self.make(True)
        row, secret = new_key("write", prefix="lab/")
        self.table.transact((), (Put(row.key, row.to_value()),))
        assert self.successResultOf(access.authenticate(row.id, secret)) == Principal(row.id, "write", "lab/")
        self.failureResultOf(access.authenticate(row.id, "another"), AuthenticationFailed)

    def test_rows_that_stand_still(self) -> None:
        """With a full disk a master does not hear of a key that was removed: it asks another, if one answers."""
        access = self.make(True, stands_still=True)
        row, secret = new_key("write")
        self.table.transact((), (Put(row.key, row.to_value()),))
        self.peers.role = ""
        self.failureResultOf(access.authenticate(row.id, secret), AuthenticationFailed)
        self.peers.gone = True
        assert self.successResultOf(access.authenticate(row.id, secret)) == Principal(row.id, "write", "")

    def test_unfit_ids(self) -> None:
        """An id that no key can have is refused as an unknown one is, whatever its length: it waits, and is counted."""
        access = self.make(True)
        unknown = self.failureResultOf(access.authenticate("AEBAGBAFAYDQQCIK", "secret"), AuthenticationFailed).value
        for key_id in UNFIT:
            error = self.failureResultOf(access.authenticate(key_id, "secret"), AuthenticationFailed).value
            assert str(error) == str(unknown)
            self.failureResultOf(Deferred.fromCoroutine(access.check_here(key_id, b"p" * 32)), AuthenticationFailed)

    def test_unfit_ids_are_not_asked_about(self) -> None:
        """Other servers are not asked about them, in messages that could not hold some of them."""
        access = self.make(False)
        for key_id in UNFIT:
            self.failureResultOf(access.authenticate(key_id, "secret"), AuthenticationFailed)
        assert self.peers.asked == []
        self.successResultOf(access.authenticate("AEBAGBAFAYDQQCIK", "secret"))
        assert self.peers.asked == ["AEBAGBAFAYDQQCIK"]
