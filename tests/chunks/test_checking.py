"""What all servers say of chunks once they have read them."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import placement
from chunkfarm.chunks.checking import ANSWER_SECONDS, SILENT_SECONDS, Checked
from chunkfarm.chunks.patience import AGAIN_TIMEOUT, SILENT_FOR
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.model import digest_of
from tests.chunks.builders import MemoryLinks, make_servers, make_store, pattern, run_now

DATA = pattern(1000)
DIGEST = digest_of(DATA)


class CheckTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.links = MemoryLinks()
        self.servers = make_servers(3)
        self.ids = [server.id for server in self.servers]
        self.directory = Path(self.mktemp()).absolute()
        self.store = make_store(self.directory)
        self.addCleanup(self.store.close)
        self.looked: list[bytes] = []
        self.transfer = Transfer(
            self.store,
            lambda: self.servers,
            self.ids[0],
            self.links,
            lambda: 3,
            self.clock,
            run_now,
            self.looked.extend,
        )
        self.successResultOf(self.store.put(DIGEST, DATA))
        for server in self.servers[1:]:
            self.links.on(server)[DIGEST] = DATA

    def check(self, read: bool = True) -> Checked:
        return self.successResultOf(self.transfer.check([DIGEST, DIGEST], read))[DIGEST]

    def test_whole(self) -> None:
        """All have it, and nobody need look at anything."""
        for read in (True, False):
            assert self.check(read) == Checked(tuple(self.ids), ())
        assert not self.looked and not self.links.looked

    def test_damaged(self) -> None:
        """A copy that rots is told of by whoever reads it, and everybody who can mend it is asked to look."""
        self.links.on(self.servers[1])[DIGEST] = b"x" + DATA[1:]
        assert self.check(read=False).damaged == ()
        assert self.check() == Checked((self.ids[0], self.ids[2]), (self.ids[1],))
        assert self.looked == [DIGEST]
        assert self.links.looked == {self.ids[1]: [DIGEST], self.ids[2]: [DIGEST]}

    def test_damaged_here(self) -> None:
        """The same of this server's own copy."""
        (file,) = self.directory.glob("??/*.chunk")
        data = bytearray(file.read_bytes())
        data[0] ^= 1
        file.write_bytes(data)
        assert self.check(read=False).holders == tuple(self.ids)
        assert self.check() == Checked((self.ids[1], self.ids[2]), (self.ids[0],))
        assert self.looked == [DIGEST]

    def test_missing(self) -> None:
        """So it is with a copy that is not there."""
        del self.links.on(self.servers[2])[DIGEST]
        assert self.check(read=False).holders == (self.ids[0], self.ids[1])
        assert self.looked == [DIGEST] and self.links.looked[self.ids[2]] == [DIGEST]

    def test_who_says_nothing(self) -> None:
        """A server that does not answer is named, and not asked again for a while."""
        self.links.silent.add(self.ids[1])
        checking = self.transfer.check([DIGEST], read=True)
        self.clock.advance(ANSWER_SECONDS)
        assert self.successResultOf(checking)[DIGEST].holders == (self.ids[0], self.ids[2])
        assert self.transfer.silent() == {self.ids[1]}
        assert self.check().holders == (self.ids[0], self.ids[2])
        self.links.silent.clear()
        self.clock.advance(SILENT_SECONDS)
        assert self.check().holders == tuple(self.ids) and not self.transfer.silent()

    def test_who_goes_on_to_say_nothing(self) -> None:
        """After that while it is asked about one chunk first, so that it is not waited for at full length each time."""
        self.links.silent.add(self.ids[1])
        checking = self.transfer.check([DIGEST], read=True)
        self.clock.advance(ANSWER_SECONDS)
        self.successResultOf(checking)
        for _ in range(3):
            self.clock.advance(SILENT_SECONDS)
            checking = self.transfer.check([DIGEST], read=True)
            self.assertNoResult(checking)
            self.clock.advance(AGAIN_TIMEOUT)
            assert self.successResultOf(checking)[DIGEST].holders == (self.ids[0], self.ids[2])
            assert self.transfer.silent() == {self.ids[1]}
        # Much later, and as soon as it has answered, it has all the time again.
        self.clock.advance(SILENT_SECONDS + SILENT_FOR)
        checking = self.transfer.check([DIGEST], read=True)
        self.clock.advance(ANSWER_SECONDS - 0.1)
        self.assertNoResult(checking)
        self.links.release()
        assert self.successResultOf(checking)[DIGEST].holders == tuple(self.ids)
        assert not self.transfer.silent()

    def everywhere(self) -> Deferred[dict[bytes, tuple[str, ...]]]:
        return self.transfer.everywhere([DIGEST, DIGEST])

    def test_everywhere(self) -> None:
        """All servers are asked who has a chunk; a silent one is waited for at full length once, and not again soon."""
        self.links.silent.add(self.ids[1])
        others = {DIGEST: (self.ids[0], self.ids[2])}
        asked = self.everywhere()
        self.clock.advance(ANSWER_SECONDS)
        assert self.successResultOf(asked) == others
        for _ in range(5):
            asked = self.everywhere()
            self.clock.advance(AGAIN_TIMEOUT)
            assert self.successResultOf(asked) == others
        self.links.silent.clear()
        assert sorted(self.successResultOf(self.everywhere())[DIGEST]) == self.ids

    def test_everywhere_and_down(self) -> None:
        """One that is down may have it all the same, and is hardly waited for."""
        self.servers = (self.servers[0], evolve(self.servers[1], state="down"), self.servers[2])
        assert len(self.successResultOf(self.everywhere())[DIGEST]) == 3
        self.links.silent.add(self.ids[1])
        asked = self.everywhere()
        self.clock.advance(AGAIN_TIMEOUT)
        assert self.ids[1] not in self.successResultOf(asked)[DIGEST]

    def test_what_is_wanted(self) -> None:
        """No more copies than there are servers that may own a chunk."""
        assert self.transfer.wanted() == 3
        self.servers = make_servers(2)
        assert self.transfer.wanted() == 2
        assert len(placement.owners(DIGEST, self.servers, 3)) == 2
