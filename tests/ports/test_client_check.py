"""The client port: CHECK."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.ports.client_link import ClientLink
from tests.ports.fakes import OTHER_ID, SERVER_ID

BOTH = f"{SERVER_ID},{OTHER_ID}"


class CheckTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.link = ClientLink().auth("reader")

    def test_damage(self) -> None:
        """Each chunk with its holders and those whose copy was damaged, then the servers that did not answer."""
        file = self.link.backend.catalog.add("a/b", b"1" * 4096 + b"22")
        first, second = (digest.hex() for digest in file.digests)
        self.link.backend.transfer.damaged.add(file.digests[1])
        assert self.link.say("CHECK a/b").split("\r\n") == [
            "CHECK 2 name=a/b size=4098 chunksize=4096 chunks=2 wanted=2 revision=1",
            f"CHUNK number=0 length=4096 digest={first} copies=2 holders={BOTH} damaged=",
            f"CHUNK number=1 length=2 digest={second} copies=1 holders={SERVER_ID} damaged={OTHER_ID}",
            "END",
            "",
        ]
        self.link.backend.transfer.unheard = frozenset({OTHER_ID})
        lines = self.link.say("CHECK a/b").split("\r\n")
        assert lines[3] == f"SILENT id={OTHER_ID} name=beta state=up owns=yes"

    def test_words(self) -> None:
        """Where to begin, how many, and whether the servers are only asked."""
        self.link.backend.catalog.add("a/b", b"x" * (3 * 4096))
        assert self.link.say("CHECK a/b 1 1").split("\r\n")[0].endswith(" revision=1 more")
        assert self.link.say("CHECK a/b - - quick").startswith("CHECK 3 ")
        asked = [call[2:] for call in self.link.backend.catalog.calls if call[0] == "check"]
        assert asked == [(1, 1, True), (0, 1000, False)]

    def test_nonsense(self) -> None:
        """What is asked wrongly is an error."""
        assert self.link.say("CHECK a/b").startswith("ERR notfound ")
        assert self.link.say("CHECK a/b 0 5 slow").startswith("ERR syntax ")
        assert self.link.say("CHECK a/b 0 1001").startswith("ERR limit ")
        assert self.link.say("CHECK").startswith("ERR syntax usage: CHECK <name> [from] [limit] [quick]")
