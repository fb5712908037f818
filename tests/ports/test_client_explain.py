"""The client port: where the chunks of a file are."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.ports.client_link import ClientLink
from tests.ports.fakes import OTHER_ID, SERVER_ID

BOTH = f"{SERVER_ID},{OTHER_ID}"


class ExplainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.link = ClientLink().auth("reader")

    def test_holders(self) -> None:
        """Each chunk with its holders, then each server with what is lost if it dies."""
        file = self.link.backend.catalog.add("a/b", b"1" * 4096 + b"22")
        first, second = (digest.hex() for digest in file.digests)
        self.link.backend.transfer.only.add(file.digests[1])
        self.link.backend.catalog.transfer.store.times[file.digests[0]] = 1_800_000_000_000
        self.link.backend.catalog.transfer.store.times[file.digests[1]] = 1_700_000_000_000
        assert self.link.say("EXPLAIN a/b").split("\r\n") == [
            "EXPLAIN 4 name=a/b size=4098 chunksize=4096 chunks=2 wanted=2 revision=1",
            f"CHUNK number=0 length=4096 digest={first} copies=2 holders={BOTH} verified=2027-01-15T08:00:00.000Z,-",
            f"CHUNK number=1 length=2 digest={second} copies=1 holders={SERVER_ID} verified=2023-11-14T22:13:20.000Z",
            f"HOLDER id={SERVER_ID} name=alpha state=up held=2 only=1 bytes=2 verified=2023-11-14T22:13:20.000Z",
            f"HOLDER id={OTHER_ID} name=beta state=up held=1 only=0 bytes=0 verified=-",
            "END",
            "",
        ]

    def test_pages(self) -> None:
        """A long file is told in runs; the header says that others follow."""
        self.link.backend.catalog.add("a/b", b"x" * (3 * 4096))
        lines = self.link.say("EXPLAIN a/b 1 1").split("\r\n")
        assert lines[0].endswith(" chunks=3 wanted=2 revision=1 more")
        assert lines[1].startswith("CHUNK number=1 length=4096 ")
        assert lines[2].startswith("HOLDER ")
        assert "more" not in self.link.say("EXPLAIN a/b 2").split("\r\n")[0]

    def test_stale(self) -> None:
        """What was true a while ago says so."""
        self.link.backend.catalog.add("a/b", b"x")
        self.link.backend.catalog.stale = 5
        assert self.link.say("EXPLAIN a/b").split("\r\n")[0].endswith(" revision=1 stale=5")

    def test_nonsense(self) -> None:
        """What is asked wrongly is an error."""
        assert self.link.say("EXPLAIN a/b").startswith("ERR notfound ")
        assert self.link.say("EXPLAIN a").startswith("ERR syntax ")
        assert self.link.say("EXPLAIN").startswith("ERR syntax usage: EXPLAIN <name> [from] [limit]")
        assert self.link.say("EXPLAIN a/b x").startswith("ERR syntax ")
        assert self.link.say("EXPLAIN a/b 0 1001").startswith("ERR limit ")
        assert self.link.say("EXPLAIN a/b 0 0").startswith("ERR limit ")
